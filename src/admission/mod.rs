//! The spine: identify → match → price → decide. And, when the call has ended, settle.
//!
//! Knows no proxy and no clock. The gateway calls [`Admission::screen`] with the head,
//! [`recipients`] with the body if the route counts one, [`Admission::admit`] for the one
//! decision, and [`Admission::settle`] exactly once with what came of the call.

mod call;
pub mod history;
mod known;
mod others;
pub mod payload;
mod settle;
#[cfg(test)]
mod tests;
pub mod totals;

use std::net::IpAddr;
use std::time::Duration;

pub use self::call::{Call, Target, screen};
pub use self::others::{Foreign, ForeignError, Owner};
pub use self::settle::Outcome;
use crate::apps::UnknownApps;
use crate::head::Head;
use crate::identity::token::TokenError;
use crate::identity::{self, Auth};
use crate::limit::total::TotalCharge;
use crate::limit::{Decision, LimitId, Moment, Plan, Scope, Unit};
use crate::route::canonical::PathError;
use crate::route::pricing::{self, PriceError};
use crate::spec::{EditionId, Route, Ruleset};
use crate::store::{Store, StoreError};

/// What of the settings the spine needs.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Editions for the App Key and the App ID form.
    pub editions: (EditionId, EditionId),
    /// What the bearer token of a call must be, before it reaches an app counter.
    pub auth: Auth,
    /// Length of the IPv6 prefix that counts as one address.
    pub ipv6_prefix: u8,
    /// What becomes of calls for apps that no entry names.
    pub unknown_apps: UnknownApps,
}

/// A call that goes no further, for a reason of its own (4xx).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reject {
    /// The path can be read in two ways.
    Path(PathError),
    /// No such path.
    NotFound,
    /// No entry names the app, and only known ones may be called.
    UnknownApp,
    /// The app is suspended.
    Suspended,
    /// The app may not be called from this address.
    Address,
    /// The path exists with other methods.
    MethodNotAllowed {
        /// For `Allow`.
        allow: String,
    },
    /// No bearer token.
    Unauthenticated,
    /// A bearer token that is not accepted here.
    Token(TokenError),
    /// A bearer token that the upstream has just refused.
    TokenRefused,
    /// An hour of the message history that the app's plan does not keep.
    Expired(Box<history::Expired>),
    /// It carries more than it may.
    Payload(Box<crate::spec::payload::Refused>),
    /// The body cannot be priced, or has more recipients than one call may have.
    Body(PriceError),
}

impl Reject {
    /// What stands against the call, where its status does not say it: a word for logs.
    #[must_use]
    pub fn why(&self) -> &'static str {
        match self {
            Self::UnknownApp => "unknown app",
            Self::Suspended => "app suspended",
            Self::Address => "address not allowed",
            Self::Token(error) => error.as_str(),
            Self::TokenRefused => "token refused before",
            Self::Expired(_) => "history not kept",
            Self::Payload(_) => "payload",
            Self::Path(_)
            | Self::NotFound
            | Self::MethodNotAllowed { .. }
            | Self::Unauthenticated
            | Self::Body(_) => "",
        }
    }
}

/// A call over a limit. Nothing was charged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denied {
    /// The limit that was hit.
    pub limit: LimitId,
    /// Units left in its counter.
    pub left: u32,
    /// When to come again; `None`: this call can never succeed.
    pub retry_after: Option<Duration>,
}

/// Why a call is not forwarded.
#[derive(Debug)]
pub enum Refused {
    /// Over a limit.
    Deny(Denied),
    /// Bad, unknown or unauthenticated.
    Reject(Reject),
    /// No room in a total.
    Full(Box<totals::Full>),
    /// The store could not decide.
    Store(StoreError),
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl Refused {
    fn full(charge: &TotalCharge) -> Self {
        Self::Full(Box::new(totals::Full {
            kind: charge.kind,
            whose: charge.whose.clone(),
        }))
    }
}

/// The limit nearest to exhaustion, for the `RateLimit` fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nearest {
    /// Which limit.
    pub limit: LimitId,
    /// Units left.
    pub left: u32,
    /// Until units come free.
    pub resets_in: Duration,
}

/// An admitted call: the charges that were taken, to be settled once.
#[derive(Debug)]
pub struct Admitted {
    /// The charges.
    pub plan: Box<Plan>,
    /// The limit nearest to exhaustion.
    pub nearest: Option<Nearest>,
    /// Report-only limits that would have denied: bit i is charge i of the plan.
    pub reported: u64,
}

/// The spine over a store.
#[derive(Debug)]
pub struct Admission<S> {
    store: S,
    known: known::KnownApps,
}

/// Counts the recipients of a call's body, if its route counts any.
///
/// # Errors
/// [`Reject::Body`].
pub fn recipients(route: &Route, body: &[u8]) -> Result<u32, Reject> {
    let Some(source) = &route.cost else {
        return Ok(1);
    };
    pricing::recipients(source, body).map_err(Reject::Body)
}

/// The limits that an address is charged for an answer of our own.
#[must_use]
pub fn address_limits<'r>(rules: &'r Ruleset, reject: &Reject) -> &'r [LimitId] {
    match reject {
        Reject::Unauthenticated
        | Reject::Token(_)
        | Reject::TokenRefused
        | Reject::Suspended
        | Reject::Address => &rules.ip_limits.unauthorized,
        Reject::NotFound
        | Reject::UnknownApp
        | Reject::Expired(_)
        | Reject::MethodNotAllowed { .. }
        | Reject::Path(_) => &rules.ip_limits.rejected,
        Reject::Body(_) | Reject::Payload(_) => &[],
    }
}

/// The units that one call spends of a limit.
#[must_use]
pub fn cost_of(unit: Unit, recipients: u32) -> u32 {
    match unit {
        Unit::Messages => recipients,
        Unit::Calls | Unit::Tasks => 1,
    }
}

impl<S: Store> Admission<S> {
    /// A spine over this store.
    pub fn new(store: S) -> Self {
        Self {
            store,
            known: known::KnownApps::default(),
        }
    }

    /// The counters.
    pub fn store(&self) -> &S {
        &self.store
    }

    /// Steps 1 and 2: who calls, and what; see [`screen`].
    ///
    /// # Errors
    /// [`Reject`].
    pub fn screen(
        &self,
        rules: &Ruleset,
        policy: &Policy,
        head: &Head<'_>,
        path: &str,
    ) -> Result<Call, Reject> {
        screen(rules, policy, head, path)
    }

    /// Charges an address for an answer of our own: a missing token, a 404, a 405.
    ///
    /// # Errors
    /// [`Refused::Deny`] when the address has used up those answers too.
    pub async fn charge_address(
        &self,
        rules: &Ruleset,
        policy: &Policy,
        ip: IpAddr,
        reject: &Reject,
        now: Moment,
    ) -> Result<Admitted, Refused> {
        let limits = address_limits(rules, reject);
        let key = rules
            .keys
            .ip(identity::address::prefix(ip, policy.ipv6_prefix));
        let mut plan = Box::new(Plan {
            origin: Some(key),
            ..Plan::default()
        });
        plan.charges.extend(
            limits
                .iter()
                .map(|id| rules.limit(*id).charge(*id, key, 1, false, now)),
        );
        self.decide(plan, now).await
    }

    /// Step 4: one all-or-nothing decision over every limit of the call.
    ///
    /// # Errors
    /// [`Refused::Deny`] over a limit, [`Refused::Store`] when the store failed.
    pub async fn admit(
        &self,
        rules: &Ruleset,
        call: &Call,
        recipients: u32,
        now: Moment,
    ) -> Result<Admitted, Refused> {
        self.decide(self.plan(rules, call, recipients, now), now)
            .await
    }

    /// Whether the app is one: by an entry, or because the backend has lately let a call of its in.
    #[must_use]
    pub fn is_proven(&self, call: &Call, now: Moment) -> bool {
        call.known.is_some() || self.known.contains(call.app_key, now)
    }

    /// The charges of a call: a look at the address's `unauthorized` limits, then its own limits.
    #[must_use]
    pub fn plan(&self, rules: &Ruleset, call: &Call, recipients: u32, now: Moment) -> Box<Plan> {
        let known = self.is_proven(call, now);
        // Boxed: it goes from hand to hand.
        let mut plan = Box::new(Plan {
            origin: Some(call.ip_key),
            app: Some(call.app_key),
            ..Plan::default()
        });
        // Cost 0: an address that has used up its refusals has no call on any app's units.
        plan.charges.extend(
            rules
                .ip_limits
                .unauthorized
                .iter()
                .map(|id| rules.limit(*id).charge(*id, call.ip_key, 0, false, now)),
        );
        plan.charges.extend(call.limits(rules).filter_map(|id| {
            let limit = rules.limit(id);
            let key = match limit.scope {
                Scope::App => call.app_key,
                Scope::User => rules
                    .keys
                    .user(&call.caller.app, call.caller.user.as_deref()?),
                Scope::Ip => call.ip_key,
            };
            // Its users' names are made by callers, and stay bounded.
            let known = known && limit.scope == Scope::App;
            Some(limit.charge(id, key, cost_of(limit.unit, recipients), known, now))
        }));
        plan
    }

    /// The decision over a plan that [`Admission::plan`] has made.
    ///
    /// # Errors
    /// As [`Admission::admit`].
    pub async fn decide(&self, mut plan: Box<Plan>, now: Moment) -> Result<Admitted, Refused> {
        if let Some(charge) = plan.totals.iter().find(|charge| charge.can_never_fit()) {
            return Err(Refused::full(charge));
        }
        // Of what is not there yet no store knows. They stand behind all others.
        plan.totals.retain(|charge| !charge.is_new);
        match self.store.decide(&mut plan, now).await? {
            Decision::Admit { nearest, reported } => Ok(Admitted {
                nearest: nearest.map(|room| Nearest {
                    limit: plan.charges[room.charge].limit,
                    left: room.left,
                    resets_in: room.resets_in,
                }),
                plan,
                reported,
            }),
            Decision::Deny {
                charge,
                left,
                retry_after,
            } => Err(Refused::Deny(Denied {
                limit: plan.charges[charge].limit,
                left,
                retry_after,
            })),
            Decision::Full { total } => Err(Refused::full(&plan.totals[total])),
        }
    }
}
