//! Counters behind one trait. Sees keys, quotas and costs; never routes, requests or callers.

#[cfg(feature = "gateway")]
mod any;
#[cfg(feature = "gateway")]
pub mod away;
#[cfg(feature = "gateway")]
pub mod journal;
pub mod memory;
#[cfg(feature = "gateway")]
pub mod redis;

#[cfg(feature = "gateway")]
pub use any::AnyStore;

use std::time::Duration;

use crate::limit::total::{Change, Total};
use crate::limit::{CounterKey, Decision, Moment, Plan};

/// Why a store could not decide.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The store did not answer.
    #[error("the counter store is unavailable")]
    Unavailable,
}

/// Gauges of a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreGauges {
    /// Live counters by scope: app, user, IP.
    pub counters: [usize; 3],
    /// Task slots in use.
    pub slots: usize,
    /// Keys that were counted in an overflow counter since the start.
    pub overflowed: u64,
}

/// Shared counters.
pub trait Store: Send + Sync + 'static {
    /// One all-or-nothing decision over every charge of the plan, and every total that it asks.
    /// On admission each charge's `taken` is filled, and that of each total. A total that is never
    /// read, and whose store is out of use, refuses nothing, and nothing is taken from it: it is
    /// marked `over`.
    ///
    /// # Errors
    /// When the store cannot be asked; nothing has been charged then.
    fn decide(
        &self,
        plan: &mut Plan,
        now: Moment,
    ) -> impl Future<Output = Result<Decision, StoreError>> + Send;

    /// Gives back what these charges took (all that still have `taken` and pass `which`), to the
    /// step from which it came. Slots among them are freed. Never waits.
    fn give_back(
        &self,
        plan: &mut Plan,
        now: Moment,
        which: &dyn Fn(&crate::limit::Charge) -> bool,
    );

    /// Keeps the slots of this plan that pass `which` past the end of the call, as task `task`,
    /// until [`Store::finish_task`], at most for `longest`. Never waits.
    fn hold_task(
        &self,
        plan: &mut Plan,
        task: &str,
        longest: Duration,
        now: Moment,
        which: &dyn Fn(&crate::limit::Charge) -> bool,
    );

    /// Frees the slot that task `task` holds on counter `key` of this app. Whether there was one.
    ///
    /// # Errors
    /// When the store cannot be asked.
    fn finish_task(
        &self,
        app: CounterKey,
        key: CounterKey,
        task: &str,
        now: Moment,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// Sets the counters of this plan to empty, whatever its charges ask. Units and slots that
    /// were taken before are forgotten. Other gateways go by what they remember (leases, denials)
    /// for a second and a half at most.
    ///
    /// # Errors
    /// When the store cannot be asked; nothing is known of the counters then.
    fn reset(
        &self,
        plan: &Plan,
        now: Moment,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Changes totals of this app. Never waits: where the store is out of use, it is told later.
    fn tell_totals(&self, app: CounterKey, changes: &[(CounterKey, Change)], now: Moment);

    /// Changes totals of this app; what each is after its change.
    ///
    /// # Errors
    /// When the store cannot be asked; some of the changes may have been made.
    fn change_totals(
        &self,
        app: CounterKey,
        changes: &[(CounterKey, Change)],
        now: Moment,
    ) -> impl Future<Output = Result<Vec<Total>, StoreError>> + Send;

    /// Drops idle counters, a part of the store at a time. Called a few times a second.
    fn sweep(&self, now: Moment);

    /// The gauges.
    fn gauges(&self) -> StoreGauges;
}
