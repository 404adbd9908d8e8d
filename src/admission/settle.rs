//! Step 6, settle: what an ended call gives back, and the slots that outlive it.

use std::collections::HashSet;

use super::call::counted;
use super::{Admission, Call};
use crate::identity::Auth;
use crate::limit::total::{Change, Total};
use crate::limit::{Charge, CounterKey, Decision, Hold, LimitId, Moment, Plan, Scope, Unit};
use crate::spec::{Route, Ruleset};
use crate::store::{Store, StoreError};

/// What came of an admitted call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome<'t> {
    /// It never reached the upstream: everything is given back.
    NotForwarded,
    /// It ended before the upstream had its body as a whole, and before an answer: what may have
    /// come of it nobody is to pay for but its address.
    Incomplete,
    /// It was sent, and no answer came.
    NoAnswer {
        /// Names what may be running, for slots that are held past the response.
        task: &'t str,
    },
    /// The upstream answered.
    Answered {
        /// The status.
        status: u16,
        /// The ID of the task that the answer names, for slots that are held past the response.
        task: Option<&'t str>,
    },
}

impl<S: Store> Admission<S> {
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
        let refunds_on =
            |charge: &Charge, status| rules.limit(charge.limit).refund_on.contains(&status);
        let refunds = |charge: &Charge| match outcome {
            Outcome::NotForwarded => true,
            // Nobody knows whether its token is good: whoever breaks off must not take more of
            // an app than a 401 would.
            Outcome::Incomplete => refunds_on(charge, 401),
            Outcome::NoAnswer { .. } => false,
            Outcome::Answered { status, .. } => refunds_on(charge, status),
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
        if let Outcome::NoAnswer { task }
        | Outcome::Answered {
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
                    self.store
                        .hold_task(plan, task, limit.max_hold, now, &|c| c.limit == hold);
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
            let asks = |route: &Route| route.auth != Some(Auth::Off);
            if call.route(rules).is_some_and(asks) {
                self.known.note(call.app_key, now);
            }
        }
        given_back
    }

    /// Changes totals of this app by what came of a call. Never waits.
    pub fn store_totals(&self, app: CounterKey, changes: &[(CounterKey, Change)], now: Moment) {
        self.store.tell_totals(app, changes, now);
    }

    /// Changes totals of this app; what each is then.
    ///
    /// # Errors
    /// [`StoreError`]; some may have been changed.
    pub async fn change_totals(
        &self,
        app: CounterKey,
        changes: &[(CounterKey, Change)],
        now: Moment,
    ) -> Result<Vec<Total>, StoreError> {
        self.store.change_totals(app, changes, now).await
    }

    /// Charges the address for a 401 of the upstream's, or for a call that it left incomplete. A
    /// full counter stays full.
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

    /// Reports a task done: frees its slot. Whether there was one. `former`: salts of limits that
    /// were in these rules once, of which it may hold one.
    ///
    /// # Errors
    /// [`StoreError`]; the task may then still hold slots.
    pub async fn finish_task(
        &self,
        rules: &Ruleset,
        former: &[CounterKey],
        app: &str,
        task: &str,
        now: Moment,
    ) -> Result<bool, StoreError> {
        let (_, app_key, _) = counted(rules, app);
        let keys: HashSet<CounterKey> = rules
            .limits
            .iter()
            .filter(|limit| limit.unit == Unit::Tasks && limit.scope == Scope::App)
            .map(|limit| limit.salt)
            .chain(former.iter().copied())
            .map(|salt| salt.with(app_key))
            // One name may stand for several figures: each counter is asked once.
            .collect();
        let mut held = false;
        for key in keys {
            // A task may hold slots of several limits: none may be left behind.
            held |= self.store.finish_task(app_key, key, task, now).await?;
        }
        Ok(held)
    }
}
