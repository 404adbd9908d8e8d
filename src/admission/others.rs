//! What is no request of this gateway's and still concerns its counters: charges of others, a
//! look at a counter, its reset.

use std::net::IpAddr;

use super::call::{counted, named};
use super::{Admission, Admitted, Call, Policy, Refused, Target};
use crate::identity::{self, Caller, address};
use crate::limit::{Charge, Decision, LimitId, Moment, Plan, Scope, Span};
use crate::spec::check::suggestion;
use crate::spec::{RouteId, Ruleset, Unmatched};
use crate::store::{Store, StoreError};

/// A call that went elsewhere, with the operation that it stands for, which is charged as a call
/// of that operation here.
#[derive(Clone, Debug)]
pub struct Foreign {
    call: Call,
    has_ip: bool,
    recipients: u32,
}

/// Why nothing can be charged for such a call.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ForeignError {
    /// No such operation.
    #[error("unknown route {name:?}; {suggestion}")]
    Route {
        /// As given.
        name: String,
        /// What is meant perhaps.
        suggestion: String,
    },
    /// No app's name.
    #[error("app {0:?} is none; write org#app or an App ID")]
    App(String),
    /// The operation has limits per user.
    #[error("route {0} has limits per user: `user` is needed")]
    NoUser(Box<str>),
    /// A cost of 0.
    #[error("cost 0; a charge costs 1 or more")]
    NoCost,
    /// The operation counts calls alone.
    #[error("cost {cost}: route {route} counts calls; send a charge for each")]
    Cost {
        /// The operation.
        route: Box<str>,
        /// As given.
        cost: u32,
    },
    /// More recipients than one call may have.
    #[error("cost {cost}: a call of route {route} has at most {most} recipients")]
    TooCostly {
        /// The operation.
        route: Box<str>,
        /// As given.
        cost: u32,
        /// What is allowed.
        most: u32,
    },
}

/// Whose counter: names as counters know them, or any other spelling of an app's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Owner<'n> {
    /// An app.
    App(&'n str),
    /// A user of an app.
    User(&'n str, &'n str),
    /// An address.
    Ip(IpAddr),
}

impl Owner<'_> {
    /// Of which limits it has counters.
    #[must_use]
    pub fn scope(&self) -> Scope {
        match self {
            Self::App(_) => Scope::App,
            Self::User(..) => Scope::User,
            Self::Ip(_) => Scope::Ip,
        }
    }
}

impl Foreign {
    /// A call of the operation `route` for this app (`org#app` or App ID), user (the plain ID)
    /// and address, with so many recipients.
    ///
    /// # Errors
    /// [`ForeignError`].
    pub fn new(
        rules: &Ruleset,
        policy: &Policy,
        route: &str,
        app: &str,
        user: Option<&str>,
        ip: Option<IpAddr>,
        recipients: u32,
    ) -> Result<Self, ForeignError> {
        let form = identity::form(app).ok_or_else(|| ForeignError::App(app.to_owned()))?;
        let documented = rules.routes.iter().position(|known| &*known.name == route);
        let takes_unmatched = rules.unmatched == Unmatched::DefaultLimit;
        let target = match documented {
            Some(id) => Target::Route(RouteId(id)),
            None if takes_unmatched && route == &*rules.unmatched_route.name => Target::Unmatched,
            None => {
                return Err(ForeignError::Route {
                    name: route.to_owned(),
                    suggestion: suggestion(route, rules.routes.iter().map(|known| &*known.name)),
                });
            }
        };
        let named = named(rules, policy, app, form);
        let address = ip.map_or(IpAddr::from([0, 0, 0, 0]), |ip| {
            address::prefix(ip, policy.ipv6_prefix)
        });
        let call = Call {
            target,
            form,
            edition: named.edition,
            ip: address,
            ip_key: rules.keys.ip(address),
            app_key: named.key,
            caller: Caller {
                app: named.name,
                user: user.map(identity::plainest),
            },
            known: named.known,
            respelt: false,
        };
        check(rules, &call, recipients)?;
        Ok(Self {
            call,
            has_ip: ip.is_some(),
            recipients,
        })
    }

    /// The call that it is charged as. Its address is of no account when none was given.
    #[must_use]
    pub fn call(&self) -> &Call {
        &self.call
    }

    /// Its recipients.
    #[must_use]
    pub fn recipients(&self) -> u32 {
        self.recipients
    }
}

fn check(rules: &Ruleset, call: &Call, cost: u32) -> Result<(), ForeignError> {
    let Some(route) = call.route(rules) else {
        return Ok(());
    };
    let per_user = |id: LimitId| rules.limit(id).scope == Scope::User;
    let has_user = call
        .caller
        .user
        .as_deref()
        .is_some_and(|user| !user.is_empty());
    if !has_user && call.limits(rules).any(per_user) {
        return Err(ForeignError::NoUser(route.name.clone()));
    }
    match (cost, route.max_recipients) {
        (0, _) => Err(ForeignError::NoCost),
        (2.., _) if route.cost.is_none() => Err(ForeignError::Cost {
            route: route.name.clone(),
            cost,
        }),
        (_, Some(most)) if cost > most => Err(ForeignError::TooCostly {
            route: route.name.clone(),
            cost,
            most,
        }),
        _ => Ok(()),
    }
}

impl<S: Store> Admission<S> {
    /// Charges what a call of this operation is charged; addresses only if one was given.
    ///
    /// # Errors
    /// [`Refused::Deny`] over a limit, [`Refused::Store`] when the store failed.
    pub async fn admit_foreign(
        &self,
        rules: &Ruleset,
        foreign: &Foreign,
        now: Moment,
    ) -> Result<Admitted, Refused> {
        let mut plan = self.plan(rules, &foreign.call, foreign.recipients, now);
        if !foreign.has_ip {
            plan.charges.retain(|charge| charge.scope != Scope::Ip);
            plan.origin = None;
        }
        if plan.charges.is_empty() {
            return Ok(Admitted {
                plan,
                nearest: None,
                reported: 0,
            });
        }
        self.decide(plan, now).await
    }

    /// Gives back what such a charge took. Called again it does nothing more. Returns the units
    /// given back.
    pub fn give_back_foreign(&self, plan: &mut Plan, now: Moment) -> Vec<(LimitId, u32)> {
        let given_back = plan
            .charges
            .iter()
            .filter(|charge| charge.taken.is_some())
            // Slots are no units. By the charge itself: its rules may have gone since.
            .filter(|charge| charge.span != Span::Running)
            .map(|charge| (charge.limit, charge.cost))
            .collect();
        self.store.give_back(plan, now, &|_| true);
        given_back
    }

    /// Nobody will give this charge back any more: its units are spent, its slots are freed.
    pub fn end_foreign(&self, plan: &mut Plan, now: Moment) {
        self.store
            .give_back(plan, now, &|charge| charge.span == Span::Running);
    }

    /// Units left in a counter. Takes nothing.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn left(
        &self,
        rules: &Ruleset,
        limit: LimitId,
        owner: Owner<'_>,
        now: Moment,
    ) -> Result<u32, StoreError> {
        let mut plan = counters(rules, &[limit], owner, now);
        for charge in &mut plan.charges {
            // One that only reports would not say what is left.
            charge.report = false;
        }
        match self.store.decide(&mut plan, now).await? {
            Decision::Admit { nearest, .. } => Ok(nearest.map_or(0, |room| room.left)),
            Decision::Deny { left, .. } => Ok(left),
            // It asks no total.
            Decision::Full { .. } => Ok(0),
        }
    }

    /// Sets these limits' counters of this owner to empty.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn reset(
        &self,
        rules: &Ruleset,
        limits: &[LimitId],
        owner: Owner<'_>,
        now: Moment,
    ) -> Result<(), StoreError> {
        self.store
            .reset(&counters(rules, limits, owner, now), now)
            .await
    }
}

/// Charges of nothing to these limits' counters of this owner; each counter once.
fn counters(rules: &Ruleset, limits: &[LimitId], owner: Owner<'_>, now: Moment) -> Plan {
    let (app, origin, key) = match owner {
        Owner::App(app) => {
            let (_, app, _) = counted(rules, app);
            (Some(app), None, app)
        }
        Owner::User(app, user) => {
            let (name, app, _) = counted(rules, app);
            let key = rules.keys.user(&name, &identity::plainest(user));
            (Some(app), None, key)
        }
        Owner::Ip(ip) => {
            let key = rules.keys.ip(ip);
            (None, Some(key), key)
        }
    };
    let mut plan = Plan {
        app,
        origin,
        ..Plan::default()
    };
    for id in limits {
        let charge: Charge = rules.limit(*id).charge(*id, key, 0, false, now);
        // One name may stand for several figures.
        if !plan.charges.iter().any(|known| known.key == charge.key) {
            plan.charges.push(charge);
        }
    }
    plan
}
