//! Whose token a call bears: checked here where that can be done, remembered for a while where
//! only the backend could tell. Of a token only a keyed hash is kept, and nothing is printed.

mod memory;
mod unproven;

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::time::Duration;

use siphasher::sip128::{Hasher128 as _, SipHasher13};

use self::memory::Memory;
pub(super) use self::unproven::Held;
use self::unproven::Unproven;
use crate::admission::{Call, Denied, Reject, Target};
use crate::apps::App;
use crate::identity::{Auth, token};
use crate::limit::{Moment, Plan};
use crate::observe::tokens::TokenResult;
use crate::spec::Ruleset;

/// Good tokens that are remembered. An app's own server has one or two.
const GOOD: usize = 65_536;
/// Bad ones.
const BAD: usize = 16_384;
/// How long a token counts as good after a 2xx, or after it has been verified.
const GOOD_US: u64 = 3_600_000_000;
/// A younger memory is not renewed: keeps the write lock off the hot path.
const RENEW_US: u64 = 60_000_000;

/// What has made a token good.
#[derive(Clone, Copy, Debug, Default)]
struct Proof {
    /// The backend answered a call with it by a 2xx.
    answered: bool,
    /// A certificate of the app has signed it, and it has the app privilege.
    verified: bool,
}

/// A call's token: its hash, and what is known of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Token {
    key: u128,
    is_good: bool,
    /// What came of looking at it.
    result: TokenResult,
    /// Whether a 2xx says that it is good: who knows what a backend serves beside what is
    /// documented, and to whom.
    proves: bool,
}

impl Token {
    /// Whether it has been seen good.
    pub(super) fn is_good(self) -> bool {
        self.is_good
    }

    /// What came of looking for one, for the metrics. `has_field`: whether there is something in
    /// a token's place. `None`: the call needs none.
    pub(super) fn result(
        looked: &Result<Option<Self>, &Reject>,
        has_field: bool,
    ) -> Option<TokenResult> {
        match looked {
            Ok(token) => token.map(|token| token.result),
            Err(Reject::Unauthenticated) if has_field => Some(TokenResult::Malformed),
            Err(Reject::Unauthenticated) => Some(TokenResult::Missing),
            Err(Reject::Token(fault)) => Some(TokenResult::Bad(*fault)),
            Err(Reject::TokenRefused) => Some(TokenResult::Remembered),
            Err(_) => None,
        }
    }
}

/// What is known of tokens.
#[derive(Debug)]
pub(super) struct Tokens {
    /// Of the hash: drawn when the process starts.
    secret: (u64, u64),
    good: Memory<Proof>,
    bad: Memory<()>,
    unproven: Unproven,
}

impl Default for Tokens {
    fn default() -> Self {
        // std draws its keys from the system.
        let random = || RandomState::new().hash_one(0_u8);
        Self {
            secret: (random(), random()),
            good: Memory::new(GOOD),
            bad: Memory::new(BAD),
            unproven: Unproven::default(),
        }
    }
}

impl Tokens {
    /// The hash of an app's token. An app's names are one. `checked`: the entry by which it can
    /// be verified; what was known by another entry, with other certificates, is nothing known.
    fn key(&self, app: &str, token: &str, checked: Option<&App>) -> u128 {
        let mut hasher = SipHasher13::new_with_keys(self.secret.0, self.secret.1);
        hasher.write_usize(app.len());
        hasher.write(app.as_bytes());
        hasher.write_usize(token.len());
        hasher.write(token.as_bytes());
        if let Some(checked) = checked {
            for certificate in &checked.certificates {
                hasher.write(certificate.expose().as_bytes());
            }
            for id in app_ids(checked) {
                hasher.write(id.as_bytes());
                hasher.write_u8(0);
            }
        }
        hasher.finish128().as_u128()
    }

    /// Looks at a call's token. `None`: the call needs none. `bad`: for how long bad ones are
    /// remembered, if they are.
    ///
    /// # Errors
    /// The token is not accepted.
    pub(super) fn look(
        &self,
        rules: &Ruleset,
        auth: Auth,
        call: &Call,
        token: Option<&str>,
        bad: Option<Duration>,
        now: Moment,
    ) -> Result<Option<Token>, Reject> {
        if auth == Auth::Off {
            return Ok(None);
        }
        let token = token.ok_or(Reject::Unauthenticated)?;
        let is_checked = auth == Auth::Verify && token::is_access_token(token);
        let app = call.app(rules).filter(|_| token::is_access_token(token));
        let app = app.filter(|app| !app.certificates.is_empty());
        let key = self.key(&call.caller.app, token, app);
        let seen = |result| Token {
            key,
            is_good: result != TokenResult::Opaque,
            result,
            proves: matches!(call.target, Target::Route(_)),
        };
        let known = self.good.get(key, now.mono_us).map(|(proof, _)| proof);
        if known.is_some_and(|proof| proof.verified || !is_checked) {
            return Ok(Some(seen(TokenResult::Known)));
        }
        // It may have been signed well, and have been withdrawn.
        if bad.is_some() && self.bad.get(key, now.mono_us).is_some() {
            return Err(Reject::TokenRefused);
        }
        let Some(app) = app.filter(|_| is_checked) else {
            // Opaque, as far as can be told here.
            return Ok(Some(seen(match known {
                Some(_) => TokenResult::Known,
                None => TokenResult::Opaque,
            })));
        };
        let is_app = |id: &str| app_ids(app).any(|name| name.eq_ignore_ascii_case(id));
        let certificates = app
            .certificates
            .iter()
            .map(|certificate| certificate.expose());
        let now_s = now.unix_us / 1_000_000;
        let verified = token::verify(token, is_app, certificates, now_s).map_err(Reject::Token)?;
        let left_us = verified
            .expires_s
            .saturating_mul(1_000_000)
            .saturating_sub(now.unix_us);
        let proof = Proof {
            verified: true,
            answered: known.is_some_and(|proof| proof.answered),
        };
        self.good
            .put(key, proof, now.mono_us.saturating_add(left_us.min(GOOD_US)));
        Ok(Some(seen(TokenResult::Verified)))
    }

    /// Learns from the backend's answer to a call with this token.
    pub(super) fn answered(&self, token: Token, status: u16, bad: Option<Duration>, now: Moment) {
        let known = self.good.get(token.key, now.mono_us);
        match (status, known) {
            (200..=299, _) if !token.proves => {}
            (200..=299, Some((proof, until_us))) if proof.answered => {
                let left_us = until_us.saturating_sub(now.mono_us);
                // What has been verified is so again in time: it may have ended.
                if !proof.verified && left_us < GOOD_US - RENEW_US {
                    self.good
                        .put(token.key, proof, now.mono_us.saturating_add(GOOD_US));
                }
            }
            (200..=299, known) => {
                let (proof, until_us) =
                    known.unwrap_or((Proof::default(), now.mono_us.saturating_add(GOOD_US)));
                let answered = true;
                self.good
                    .put(token.key, Proof { answered, ..proof }, until_us);
                self.bad.remove(token.key);
            }
            // A first 401 may mean this call alone: the token is nothing known again.
            (401, Some((proof, _))) if proof.answered => self.good.remove(token.key),
            (401, known) => {
                if known.is_some() {
                    self.good.remove(token.key);
                }
                if let Some(bad) = bad {
                    let bad_us = u64::try_from(bad.as_micros()).unwrap_or(u64::MAX);
                    let until_us = now.mono_us.saturating_add(bad_us);
                    self.bad.put(token.key, (), until_us);
                }
            }
            // Much is answered before anybody looks at the token.
            _ => {}
        }
    }

    /// Takes the call's share (percent) of what its address may hold with tokens that are not
    /// known.
    ///
    /// # Errors
    /// The limit of which it holds its share.
    pub(super) fn hold(
        &self,
        token: Option<Token>,
        plan: &Plan,
        share: u8,
    ) -> Result<Held, Denied> {
        match token {
            Some(token) if !token.is_good => {
                self.unproven.hold(plan, share).map_err(|limit| Denied {
                    limit,
                    left: 0,
                    // Nobody knows when the backend answers.
                    retry_after: Some(Duration::from_secs(1)),
                })
            }
            _ => Ok(Held::default()),
        }
    }

    /// Lets go of it, once.
    pub(super) fn let_go(&self, held: &mut Held) {
        self.unproven.let_go(held);
    }
}

/// A token names an App ID, never an App Key.
fn app_ids(app: &App) -> impl Iterator<Item = &String> {
    app.names.iter().filter(|name| !name.contains('#'))
}

#[cfg(test)]
mod tests;
