//! Embedded counters.
//!
//! A table in shards, each under one lock. A decision locks the shards of its plan in ascending
//! order, looks at all counters, and then takes from all or from none.

mod bound;
pub(super) mod counter;
mod decide;
pub(super) mod shard;
#[cfg(test)]
mod tests;
mod totals;

use std::future::ready;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use self::bound::Bound;
use self::counter::Counter;
use self::shard::{SHARDS, Shard, shard_of};
use self::totals::Totals;
use super::{Store, StoreError, StoreGauges};
use crate::limit::total::{Change, Total};
use crate::limit::{Charge, CounterKey, Decision, Moment, Plan};

/// Shards that one call of [`Store::sweep`] looks at: the whole table takes eight.
const SWEPT_AT_ONCE: usize = 8;

/// What bounds a memory store.
#[derive(Clone, Copy, Debug)]
pub struct MemoryOptions {
    /// The most counters: a quarter each for apps and addresses, three eighths for users, and
    /// an eighth that only known apps and their users may use. New keys above their share use
    /// one overflow counter for each limit.
    pub max_counters: usize,
}

impl Default for MemoryOptions {
    fn default() -> Self {
        Self {
            max_counters: 1_000_000,
        }
    }
}

/// Counters in this process.
#[derive(Debug)]
pub struct MemoryStore {
    shards: Box<[Mutex<Shard>]>,
    /// Locked after shards, never before.
    bound: Mutex<Bound>,
    /// Locked last of all.
    totals: Mutex<Totals>,
    /// Whether there are overflow counters: spares those who only look the lock.
    overflowing: AtomicBool,
    swept: AtomicUsize,
}

impl MemoryStore {
    /// An empty store.
    #[must_use]
    pub fn new(options: MemoryOptions) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            bound: Mutex::new(Bound::new(options.max_counters)),
            totals: Mutex::new(Totals::new(options.max_counters)),
            overflowing: AtomicBool::new(false),
            swept: AtomicUsize::new(0),
        }
    }

    /// Begins with these totals. From now on, [`MemoryStore::changed_totals`] says what changes.
    pub fn restore_totals(&self, all: impl Iterator<Item = (CounterKey, Total)>) {
        self.totals.lock().restore(all);
    }

    /// The totals that have changed since this was last asked.
    pub fn changed_totals(&self) -> Vec<(CounterKey, Total)> {
        self.totals.lock().changed()
    }

    /// All totals; none of them counts as changed afterwards.
    pub fn all_totals(&self) -> Vec<(CounterKey, Total)> {
        self.totals.lock().all()
    }

    /// Marks all totals: nobody knows what else has changed them.
    pub fn doubt_totals(&self) {
        self.totals.lock().doubt();
    }

    /// How many totals there are.
    pub fn count_totals(&self) -> usize {
        self.totals.lock().len()
    }

    fn shard(&self, key: CounterKey) -> &Mutex<Shard> {
        &self.shards[shard_of(key)]
    }

    /// Works on the counter that this charge was taken from, if it is still there.
    fn with_counter(&self, charge: &Charge, work: impl FnOnce(&mut Counter)) {
        if charge.shared {
            self.bound.lock().with(charge, work);
        } else {
            self.shard(charge.key).lock().with(charge.key, work);
        }
    }
}

impl Store for MemoryStore {
    fn decide(
        &self,
        plan: &mut Plan,
        now: Moment,
    ) -> impl Future<Output = Result<Decision, StoreError>> + Send {
        ready(Ok(self.decide_now(plan, now)))
    }

    fn give_back(&self, plan: &mut Plan, _now: Moment, which: &dyn Fn(&Charge) -> bool) {
        for charge in &mut plan.charges {
            if charge.taken.is_some() && which(charge) {
                // Taken out: whoever comes next finds nothing to give back.
                if let Some(taken) = charge.taken.take() {
                    self.with_counter(charge, |counter| {
                        counter.give_back(charge, taken);
                    });
                }
            }
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
        let longest_us = u64::try_from(longest.as_micros()).unwrap_or(u64::MAX);
        let until_us = now.mono_us.saturating_add(longest_us);
        for charge in &mut plan.charges {
            if matches!(charge.taken, Some(crate::limit::Taken::Slot(_))) && which(charge) {
                // The slot is the task's now: the end of the call does not free it.
                if let Some(taken) = charge.taken.take() {
                    self.with_counter(charge, |counter| counter.hold(taken, task, until_us));
                }
            }
        }
    }

    async fn finish_task(
        &self,
        _app: CounterKey,
        key: CounterKey,
        task: &str,
        now: Moment,
    ) -> Result<bool, StoreError> {
        let own = self
            .shard(key)
            .lock()
            .with(key, |counter| counter.finish(key, task, now));
        Ok(own == Some(true)
            || self.overflowing.load(Ordering::Acquire) && self.bound.lock().finish(key, task, now))
    }

    async fn reset(&self, plan: &Plan, now: Moment) -> Result<(), StoreError> {
        for charge in &plan.charges {
            // What callers share in an overflow counter is nobody's to reset.
            self.shard(charge.key)
                .lock()
                .with(charge.key, |counter| counter.reset(charge.span, now));
        }
        Ok(())
    }

    fn tell_totals(&self, _app: CounterKey, changes: &[(CounterKey, Change)], _now: Moment) {
        let mut totals = self.totals.lock();
        for (key, change) in changes {
            totals.change(*key, *change);
        }
    }

    async fn change_totals(
        &self,
        _app: CounterKey,
        changes: &[(CounterKey, Change)],
        _now: Moment,
    ) -> Result<Vec<Total>, StoreError> {
        let mut totals = self.totals.lock();
        let made = changes
            .iter()
            .map(|(key, change)| totals.change(*key, *change));
        Ok(made.collect())
    }

    fn sweep(&self, now: Moment) {
        let first = self.swept.fetch_add(SWEPT_AT_ONCE, Ordering::Relaxed);
        for index in first..first + SWEPT_AT_ONCE {
            let mut shard = self.shards[index % SHARDS].lock();
            let gone = shard.sweep(now);
            self.bound.lock().release(gone);
        }
        let mut bound = self.bound.lock();
        let overflowing = bound.sweep(now);
        self.overflowing.store(overflowing, Ordering::Release);
    }

    fn gauges(&self) -> StoreGauges {
        let mut gauges = StoreGauges::default();
        for shard in &self.shards {
            let shard = shard.lock();
            for (sum, counters) in gauges.counters.iter_mut().zip(shard.counters) {
                *sum += counters;
            }
            gauges.slots += shard.slots;
        }
        let bound = self.bound.lock();
        gauges.slots += bound.slots();
        gauges.overflowed = bound.overflowed();
        gauges
    }
}
