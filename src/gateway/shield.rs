//! The shield before all counters: a per-IP cap on requests and on denied requests per second.
//!
//! governor's GCRA may pass up to twice the figure within one second: right for a shield that
//! protects the process, not for the documented limits.
//!
//! Memory is bounded. Where there is no room for another address, those that are known are
//! served and turned away as ever, and a new one passes unremembered: the shield is against few
//! loud addresses, and against more quiet ones than it can remember the limits behind it and
//! `max_in_flight` stand. Turning new ones away would let a flood lock out everybody else.

use std::collections::HashMap;
use std::hash::BuildHasher as _;
use std::net::IpAddr;
use std::num::NonZeroU32;

use foldhash::quality::RandomState;
use governor::clock::DefaultClock;
use governor::nanos::Nanos;
use governor::state::StateStore;
use governor::state::keyed::ShrinkableKeyedStateStore;
use governor::{Quota, RateLimiter};
use parking_lot::{Mutex, RwLock};

use crate::limit::Moment;
use crate::settings;

/// Addresses that each limiter may remember.
const MAX_ADDRESSES: usize = 1_000_000;
/// Locks over them.
const SHARDS: usize = 64;

type PerAddress = RateLimiter<IpAddr, Addresses, DefaultClock>;

#[derive(Debug)]
pub(super) struct Shield {
    requests: Option<PerAddress>,
    denials: Option<PerAddress>,
    /// Addresses over their denials, and until when (monotonic microseconds). governor cannot
    /// look without taking.
    penalised: RwLock<HashMap<IpAddr, u64>>,
}

/// How long an address over its denials is turned away.
const PENALTY_US: u64 = 1_000_000;

impl Shield {
    pub(super) fn new(settings: &settings::Shield) -> Self {
        Self::remembering(settings, MAX_ADDRESSES)
    }

    fn remembering(settings: &settings::Shield, most: usize) -> Self {
        let limiter = |per_s: Option<NonZeroU32>| {
            per_s.map(|n| {
                RateLimiter::new(
                    Quota::per_second(n),
                    Addresses::new(most),
                    DefaultClock::default(),
                )
            })
        };
        Self {
            requests: limiter(settings.requests_per_s),
            denials: limiter(settings.denials_per_s),
            penalised: RwLock::default(),
        }
    }

    /// Whether this address may ask at all.
    pub(super) fn admits(&self, ip: IpAddr, now: Moment) -> bool {
        let within = self
            .requests
            .as_ref()
            .is_none_or(|limiter| limiter.check_key(&ip).is_ok());
        let penalised = self.denials.is_some()
            && self
                .penalised
                .read()
                .get(&ip)
                .is_some_and(|until| now.mono_us < *until);
        within && !penalised
    }

    /// Notes a request that was denied.
    pub(super) fn note_denial(&self, ip: IpAddr, now: Moment) {
        let Some(limiter) = &self.denials else { return };
        // Only an address that is remembered can be over: so these are bounded as well.
        if limiter.check_key(&ip).is_err() {
            self.penalised
                .write()
                .insert(ip, now.mono_us.saturating_add(PENALTY_US));
        }
    }

    /// Forgets addresses that have been quiet.
    pub(super) fn sweep(&self, now: Moment) {
        for limiter in [&self.requests, &self.denials].into_iter().flatten() {
            limiter.retain_recent();
            limiter.shrink_to_fit();
        }
        self.penalised
            .write()
            .retain(|_, until| now.mono_us < *until);
    }
}

/// governor's state of each address, bounded.
#[derive(Debug)]
struct Addresses {
    shards: Vec<Mutex<HashMap<IpAddr, Nanos>>>,
    /// Of one shard.
    most: usize,
    hasher: RandomState,
}

impl Addresses {
    fn new(most: usize) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            most: most.div_ceil(SHARDS),
            hasher: RandomState::default(),
        }
    }
}

impl StateStore for Addresses {
    type Key = IpAddr;

    fn measure_and_replace<T, F, E>(&self, ip: &IpAddr, decide: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let nth = usize::try_from(self.hasher.hash_one(ip) % SHARDS as u64).unwrap_or_default();
        let Some(shard) = self.shards.get(nth) else {
            return decide(None).map(|(verdict, _)| verdict);
        };
        let mut shard = shard.lock();
        let known = shard.get(ip).copied();
        let (verdict, next) = decide(known)?;
        if known.is_some() || shard.len() < self.most {
            shard.insert(*ip, next);
        }
        Ok(verdict)
    }
}

impl ShrinkableKeyedStateStore<IpAddr> for Addresses {
    fn retain_recent(&self, drop_below: Nanos) {
        for shard in &self.shards {
            shard.lock().retain(|_, next| *next > drop_below);
        }
    }

    fn shrink_to_fit(&self) {
        for shard in &self.shards {
            shard.lock().shrink_to_fit();
        }
    }

    fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shield(requests: u32, denials: u32, most: usize) -> Shield {
        let settings = settings::Shield {
            requests_per_s: NonZeroU32::new(requests),
            denials_per_s: NonZeroU32::new(denials),
        };
        Shield::remembering(&settings, most)
    }

    fn at(mono_us: u64) -> Moment {
        Moment {
            mono_us,
            unix_us: 0,
        }
    }

    fn address(n: u32) -> IpAddr {
        IpAddr::V4(n.into())
    }

    /// Fills every shard.
    fn fill(shield: &Shield) {
        for n in 0..10_000 {
            assert!(shield.admits(address(n), at(0)));
        }
    }

    #[test]
    fn a_full_shield_serves_and_turns_away_whom_it_knows() {
        let shield = shield(2, 0, 128);
        let known = address(0);
        assert!(shield.admits(known, at(0)));
        fill(&shield);
        // The second within a second was spent in `fill`.
        assert!(!shield.admits(known, at(0)));
        assert_eq!(shield.requests.as_ref().map(RateLimiter::len), Some(128));
    }

    #[test]
    fn a_full_shield_lets_new_addresses_pass_unremembered() {
        let shield = shield(1, 0, 128);
        fill(&shield);
        let new = address(1_000_000);
        for _ in 0..5 {
            assert!(shield.admits(new, at(0)));
        }
        assert_eq!(shield.requests.as_ref().map(RateLimiter::len), Some(128));
    }

    #[test]
    fn an_address_over_its_denials_is_turned_away_for_a_second() {
        let shield = shield(0, 2, 128);
        let loud = address(1);
        for _ in 0..2 {
            shield.note_denial(loud, at(0));
            assert!(shield.admits(loud, at(0)));
        }
        shield.note_denial(loud, at(0));
        assert!(!shield.admits(loud, at(PENALTY_US - 1)));
        assert!(shield.admits(loud, at(PENALTY_US)));
        assert!(shield.admits(address(2), at(0)));
    }
}
