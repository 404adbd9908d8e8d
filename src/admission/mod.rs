//! The spine: identify → match → price → decide. And, when the call has ended, settle.
//!
//! Knows no proxy and no clock. The gateway calls [`Admission::screen`] with the head,
//! [`recipients`] with the body if the route counts one, [`Admission::admit`] for the one
//! decision, and [`Admission::settle`] exactly once with what came of the call.

mod known;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::net::IpAddr;
use std::time::Duration;

use crate::head::Head;
use crate::identity::{self, Caller};
use crate::limit::{Charge, CounterKey, Decision, Hold, LimitId, Moment, Plan, Scope, Unit};
use crate::route::canonical::{self, PathError};
use crate::route::pricing::PriceError;
use crate::route::table::Found;
use crate::route::{Form, pricing};
use crate::spec::{EditionId, Route, RouteId, Ruleset, Unmatched};
use crate::store::{Store, StoreError};

/// What of the settings the spine needs.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Editions for the App Key and the App ID form.
    pub editions: (EditionId, EditionId),
    /// Whether a call without a bearer token is refused (401) before it reaches an app counter.
    pub require_bearer: bool,
    /// Length of the IPv6 prefix that counts as one address.
    pub ipv6_prefix: u8,
}

/// What the call is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A documented operation.
    Route(RouteId),
    /// A path of an app that no document has.
    Unmatched,
    /// `OPTIONS`: charged to the address alone.
    Options,
}

/// A call that is well-formed and known: steps 1 and 2 done.
#[derive(Clone, Debug)]
pub struct Call {
    /// What it is for.
    pub target: Target,
    /// How the app was addressed.
    pub form: Form,
    /// The edition whose limits hold.
    pub edition: EditionId,
    /// Whose call it is.
    pub caller: Caller,
    /// The address, cut to the prefix that counts.
    pub ip: IpAddr,
    ip_key: CounterKey,
    app_key: CounterKey,
}

impl Call {
    /// The operation; the shared one for a path that no document has. `None` for `OPTIONS`.
    #[must_use]
    pub fn route<'r>(&self, rules: &'r Ruleset) -> Option<&'r Route> {
        match self.target {
            Target::Route(id) => rules.routes.get(id.0),
            Target::Unmatched => Some(&rules.unmatched_route),
            Target::Options => None,
        }
    }

    /// The operation's name: a metric label.
    #[must_use]
    pub fn route_name<'r>(&self, rules: &'r Ruleset) -> &'r str {
        self.route(rules).map_or("options", |route| &route.name)
    }

    /// The limits that an authorised call is charged.
    #[must_use]
    pub fn limits<'r>(&self, rules: &'r Ruleset) -> &'r [LimitId] {
        match self.route(rules) {
            Some(route) => route
                .editions
                .get(self.edition.0)
                .map_or(&[], |e| &e.limits),
            None => &rules.ip_limits.options,
        }
    }
}

/// A call that goes no further, for a reason of its own (4xx).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reject {
    /// The path can be read in two ways.
    Path(PathError),
    /// No such path.
    NotFound,
    /// The path exists with other methods.
    MethodNotAllowed {
        /// For `Allow`.
        allow: String,
    },
    /// No bearer token.
    Unauthenticated,
    /// The body cannot be priced.
    Body(PriceError),
    /// More recipients than one call may have.
    TooManyRecipients {
        /// The cap.
        max: u32,
        /// The body field.
        field: Box<str>,
    },
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
    /// The store could not decide.
    Store(StoreError),
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
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
    pub plan: Plan,
    /// The limit nearest to exhaustion.
    pub nearest: Option<Nearest>,
    /// Report-only limits that would have denied: bit i is charge i of the plan.
    pub reported: u64,
}

/// What came of an admitted call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome<'t> {
    /// It never reached the upstream: everything is given back.
    NotForwarded,
    /// It was sent, and no answer came.
    NoAnswer,
    /// The upstream answered.
    Answered {
        /// The status.
        status: u16,
        /// The ID of the task that the answer names, for slots that are held past the response.
        task: Option<&'t str>,
    },
}

/// The spine over a store.
#[derive(Debug)]
pub struct Admission<S> {
    store: S,
    known: known::KnownApps,
}

/// Steps 1 and 2: who calls, and what.
///
/// `path` is the canonical path ([`canonical::canonical`]); the one that is forwarded.
///
/// # Errors
/// [`Reject`]; the caller then asks [`Admission::charge_address`] whether the address may
/// still have that answer.
pub fn screen(
    rules: &Ruleset,
    policy: &Policy,
    head: &Head<'_>,
    path: &str,
) -> Result<Call, Reject> {
    if matches!(head.method, "TRACE" | "CONNECT") {
        // Never for a backend: one echoes credentials, the other opens a tunnel.
        let allow = "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT".to_owned();
        return Err(Reject::MethodNotAllowed { allow });
    }
    let (app, tail) = canonical::split_app(path).ok_or(Reject::NotFound)?;
    let edition = match app.form {
        Form::AppKey => policy.editions.0,
        Form::AppId => policy.editions.1,
    };
    let (target, user) = if head.method == "OPTIONS" {
        (Target::Options, None)
    } else {
        match rules.table.find(head.method, tail) {
            Found::Route { id, user } => (Target::Route(id), user.map(identity::fold_user)),
            Found::MethodNotAllowed(allow) => return Err(Reject::MethodNotAllowed { allow }),
            Found::Unmatched if rules.unmatched == Unmatched::Reject => {
                return Err(Reject::NotFound);
            }
            Found::Unmatched => (Target::Unmatched, None),
        }
    };
    let app_name = identity::fold_app(&app.name, rules.fold_app_names);
    let ip = identity::address::prefix(head.ip, policy.ipv6_prefix);
    let call = Call {
        target,
        form: app.form,
        edition,
        ip,
        ip_key: rules.keys.ip(ip),
        app_key: rules.keys.app(&app_name),
        caller: Caller {
            app: app_name,
            user,
        },
    };
    let needs_token = call.route(rules).is_some_and(|route| route.needs_token);
    if policy.require_bearer && needs_token && !head.has_bearer {
        return Err(Reject::Unauthenticated);
    }
    Ok(call)
}

/// Counts the recipients of a call's body, if its route counts any.
///
/// # Errors
/// [`Reject::Body`] and [`Reject::TooManyRecipients`].
pub fn recipients(route: &Route, body: &[u8]) -> Result<u32, Reject> {
    let Some(source) = &route.cost else {
        return Ok(1);
    };
    let count = pricing::recipients(source, body).map_err(Reject::Body)?;
    match route.max_recipients {
        Some(max) if count > max => Err(Reject::TooManyRecipients {
            max,
            field: source.field.clone(),
        }),
        _ => Ok(count),
    }
}

/// The limits that an address is charged for an answer of our own.
#[must_use]
pub fn address_limits<'r>(rules: &'r Ruleset, reject: &Reject) -> &'r [LimitId] {
    match reject {
        Reject::Unauthenticated => &rules.ip_limits.unauthorized,
        Reject::NotFound | Reject::MethodNotAllowed { .. } | Reject::Path(_) => {
            &rules.ip_limits.rejected
        }
        Reject::Body(_) | Reject::TooManyRecipients { .. } => &[],
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
        let mut plan = Plan {
            origin: Some(key),
            ..Plan::default()
        };
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

    /// The charges of a call: a look at the address's `unauthorized` limits, then its own limits.
    #[must_use]
    pub fn plan(&self, rules: &Ruleset, call: &Call, recipients: u32, now: Moment) -> Plan {
        let known = self.known.contains(call.app_key, now);
        let mut plan = Plan {
            origin: Some(call.ip_key),
            ..Plan::default()
        };
        // Cost 0: an address that has used up its refusals has no call on any app's units.
        plan.charges.extend(
            rules
                .ip_limits
                .unauthorized
                .iter()
                .map(|id| rules.limit(*id).charge(*id, call.ip_key, 0, false, now)),
        );
        plan.charges
            .extend(call.limits(rules).iter().filter_map(|id| {
                let limit = rules.limit(*id);
                let key = match limit.scope {
                    Scope::App => call.app_key,
                    Scope::User => rules
                        .keys
                        .user(&call.caller.app, call.caller.user.as_deref()?),
                    Scope::Ip => call.ip_key,
                };
                // Its users' names are made by callers, and stay bounded.
                let known = known && limit.scope == Scope::App;
                Some(limit.charge(*id, key, cost_of(limit.unit, recipients), known, now))
            }));
        plan
    }

    async fn decide(&self, mut plan: Plan, now: Moment) -> Result<Admitted, Refused> {
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
        }
    }

    /// Step 6: gives back what bought nothing, frees or keeps slots. What remains taken in the
    /// plan has been spent. Called again it does nothing more. Returns the units given back, by
    /// charge of the plan.
    pub fn settle(
        &self,
        rules: &Ruleset,
        call: &Call,
        plan: &mut Plan,
        outcome: Outcome<'_>,
        now: Moment,
    ) -> Vec<(LimitId, u32)> {
        let refunds = |charge: &Charge| match outcome {
            Outcome::NotForwarded => true,
            Outcome::NoAnswer => false,
            Outcome::Answered { status, .. } => {
                rules.limit(charge.limit).refund_on.contains(&status)
            }
        };
        let given_back = plan
            .charges
            .iter()
            .filter(|charge| {
                charge.taken.is_some() && rules.limit(charge.limit).unit != Unit::Tasks
            })
            .filter(|charge| refunds(charge))
            .map(|charge| (charge.limit, charge.cost))
            .collect();
        if let Outcome::Answered {
            status: 200..=299,
            task: Some(task),
        } = outcome
        {
            for hold in plan
                .charges
                .iter()
                .filter(|c| c.taken.is_some())
                .map(|c| c.limit)
                .collect::<Vec<_>>()
            {
                let limit = rules.limit(hold);
                if limit.unit == Unit::Tasks && limit.hold == Hold::Task {
                    let until = now.mono_us.saturating_add(
                        u64::try_from(limit.max_hold.as_micros()).unwrap_or(u64::MAX),
                    );
                    self.store
                        .hold_task(plan, task, until, &|charge| charge.limit == hold);
                }
            }
        }
        self.store.give_back(plan, now, &|charge| {
            rules.limit(charge.limit).unit == Unit::Tasks || refunds(charge)
        });
        if let Outcome::Answered {
            status: 200..=299, ..
        } = outcome
        {
            // Only a call that the backend has let in by its token speaks for its app: anyone may
            // send OPTIONS, or ask for a token of a made-up one.
            if call.route(rules).is_some_and(|route| route.needs_token) {
                self.known.note(call.app_key, now);
            }
        }
        given_back
    }

    /// Charges the address for a 401 of the upstream's. A full counter stays full.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn charge_unauthorized(
        &self,
        rules: &Ruleset,
        call: &Call,
        now: Moment,
    ) -> Result<Vec<LimitId>, StoreError> {
        let mut plan = Plan {
            origin: Some(call.ip_key),
            ..Plan::default()
        };
        let mut charged = Vec::new();
        for id in &rules.ip_limits.unauthorized {
            plan.charges.clear();
            plan.charges
                .push(rules.limit(*id).charge(*id, call.ip_key, 1, false, now));
            if let Decision::Admit { .. } = self.store.decide(&mut plan, now).await? {
                charged.push(*id);
            }
        }
        Ok(charged)
    }

    /// Reports a task done: frees its slot. Whether there was one.
    pub fn finish_task(&self, rules: &Ruleset, app: &str, task: &str, now: Moment) -> bool {
        let app_key = rules
            .keys
            .app(&identity::fold_app(app, rules.fold_app_names));
        rules
            .limits
            .iter()
            .filter(|limit| limit.unit == Unit::Tasks && limit.scope == Scope::App)
            .map(|limit| limit.salt.with(app_key))
            // One name may stand for several figures: each counter is asked once.
            .collect::<HashSet<CounterKey>>()
            .into_iter()
            // A task may hold slots of several limits: none may be left behind.
            .filter(|key| self.store.finish_task(*key, task, now))
            .count()
            > 0
    }
}
