//! The store that the settings name.

use std::time::Duration;

use super::away::Movable;
use super::redis::RedisStore;
use super::redis::decide::AtOnce;
use super::{Store, StoreError, StoreGauges};
use crate::limit::total::{Change, Total};
use crate::limit::{Charge, CounterKey, Decision, Moment, Plan};

/// Counters in this process, or in a Redis that gateways share.
#[derive(Debug)]
pub enum AnyStore {
    /// In this process.
    Memory(Movable),
    /// In Redis.
    Redis(RedisStore),
}

impl AnyStore {
    /// The shared store, if it is one.
    #[must_use]
    pub fn shared(&self) -> Option<&RedisStore> {
        match self {
            Self::Memory(_) => None,
            Self::Redis(store) => Some(store),
        }
    }

    /// The embedded counters, if it is those.
    #[must_use]
    pub fn embedded(&self) -> Option<&Movable> {
        match self {
            Self::Memory(store) => Some(store),
            Self::Redis(_) => None,
        }
    }
}

impl Store for AnyStore {
    async fn decide(&self, plan: &mut Plan, now: Moment) -> Result<Decision, StoreError> {
        match self {
            Self::Memory(store) => match store.counters().decide_here(plan, now) {
                Some(decision) => Ok(decision),
                None => store.decide(plan, now).await,
            },
            Self::Redis(store) => match store.begin(plan, now) {
                AtOnce::Decided(decision) => decision,
                // Boxed: calls that need no question do not pay for its size.
                begun => Box::pin(store.finish(plan, now, begun)).await,
            },
        }
    }

    fn give_back(&self, plan: &mut Plan, now: Moment, which: &dyn Fn(&Charge) -> bool) {
        match self {
            Self::Memory(store) => store.give_back(plan, now, which),
            Self::Redis(store) => store.give_back(plan, now, which),
        }
    }

    fn hold_task(
        &self,
        plan: &mut Plan,
        task: &str,
        longest: Duration,
        now: Moment,
        which: &dyn Fn(&Charge) -> bool,
    ) {
        match self {
            Self::Memory(store) => store.hold_task(plan, task, longest, now, which),
            Self::Redis(store) => store.hold_task(plan, task, longest, now, which),
        }
    }

    async fn finish_task(
        &self,
        app: CounterKey,
        key: CounterKey,
        task: &str,
        now: Moment,
    ) -> Result<bool, StoreError> {
        match self {
            Self::Memory(store) => store.finish_task(app, key, task, now).await,
            Self::Redis(store) => store.finish_task(app, key, task, now).await,
        }
    }

    async fn reset(&self, plan: &Plan, now: Moment) -> Result<(), StoreError> {
        match self {
            Self::Memory(store) => store.reset(plan, now).await,
            Self::Redis(store) => store.reset(plan, now).await,
        }
    }

    fn tell_totals(&self, app: CounterKey, changes: &[(CounterKey, Change)], now: Moment) {
        match self {
            Self::Memory(store) => store.tell_totals(app, changes, now),
            Self::Redis(store) => store.tell_totals(app, changes, now),
        }
    }

    async fn change_totals(
        &self,
        app: CounterKey,
        changes: &[(CounterKey, Change)],
        now: Moment,
    ) -> Result<Vec<Total>, StoreError> {
        match self {
            Self::Memory(store) => store.change_totals(app, changes, now).await,
            Self::Redis(store) => store.change_totals(app, changes, now).await,
        }
    }

    fn sweep(&self, now: Moment) {
        match self {
            Self::Memory(store) => store.sweep(now),
            Self::Redis(store) => store.sweep(now),
        }
    }

    fn gauges(&self) -> StoreGauges {
        match self {
            Self::Memory(store) => store.gauges(),
            Self::Redis(store) => store.gauges(),
        }
    }
}
