//! Embedded counters.
//!
//! A table in shards, each under one lock. A decision locks the shards of its plan in ascending
//! order, looks at all counters, and then takes from all or from none.

mod bound;
pub(super) mod counter;
mod decide;
pub mod moving;
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

    /// Changes totals; what each is then. `None`: another process has them.
    pub fn change_here(&self, changes: &[(CounterKey, Change)]) -> Option<Vec<Total>> {
        let mut totals = self.totals.lock();
        if totals.away {
            return None;
        }
        let changed = |(key, change): &(CounterKey, Change)| totals.change(*key, *change);
        Some(changes.iter().map(changed).collect())
    }

    /// Whether another process has the totals.
    pub fn totals_are_away(&self) -> bool {
        self.totals.lock().away
    }

    /// The totals that have changed since this was last asked.
    pub fn changed_totals(&self) -> Vec<(CounterKey, Total)> {
        self.totals.lock().changed()
    }

    /// All totals; none of them counts as changed afterwards.
    pub fn all_totals(&self) -> Vec<(CounterKey, Total)> {
        self.totals.lock().all()
    }

    /// From now on it is noted what calls here do to each total, while another process writes them.
    pub fn note_own_totals(&self) {
        self.totals.lock().note_own();
    }

    /// Whether calls here have changed any since, and it was not merged.
    pub fn has_own_totals(&self) -> bool {
        self.totals.lock().has_own()
    }

    /// Takes in what another process has written since these were read; `None`: nothing. What calls
    /// here have done since comes on top.
    pub fn merge_totals(&self, theirs: Option<impl Iterator<Item = (CounterKey, Total)>>) {
        self.totals.lock().merge(theirs);
    }

    /// How many totals there are.
    pub fn count_totals(&self) -> usize {
        self.totals.lock().len()
    }

    fn shard(&self, key: CounterKey) -> &Mutex<Shard> {
        &self.shards[shard_of(key)]
    }

    /// Works on the counter that this charge was taken from, if it is still there. `false`: it
    /// is another process's.
    fn with_counter(&self, charge: &Charge, work: impl FnOnce(&mut Counter)) -> bool {
        if charge.shared {
            let mut bound = self.bound.lock();
            if !bound.away {
                bound.with(charge, work);
            }
            !bound.away
        } else {
            let mut shard = self.shard(charge.key).lock();
            if !shard.away {
                shard.with(charge.key, work);
            }
            !shard.away
        }
    }

    /// Frees the slot of a task. Whether there was one; `None`: that is another process's to say.
    pub fn finish_now(&self, key: CounterKey, task: &str, now: Moment) -> Option<bool> {
        let mut shard = self.shard(key).lock();
        if shard.away {
            return None;
        }
        let own = shard.with(key, |counter| counter.finish(key, task, now));
        drop(shard);
        if own == Some(true) || !self.overflowing.load(Ordering::Acquire) {
            return Some(own == Some(true));
        }
        let mut bound = self.bound.lock();
        (!bound.away).then(|| bound.finish(key, task, now))
    }

    /// Sets counters to empty. `false`: some are another process's.
    pub fn reset_now(&self, plan: &Plan, now: Moment) -> bool {
        plan.charges.iter().all(|charge| {
            // What callers share in an overflow counter is nobody's to reset.
            let mut shard = self.shard(charge.key).lock();
            if !shard.away {
                shard.with(charge.key, |counter| counter.reset(charge.span, now));
            }
            !shard.away
        })
    }
}

impl Store for MemoryStore {
    fn decide(
        &self,
        plan: &mut Plan,
        now: Moment,
    ) -> impl Future<Output = Result<Decision, StoreError>> + Send {
        ready(self.decide_here(plan, now).ok_or(StoreError::Unavailable))
    }

    fn give_back(&self, plan: &mut Plan, _now: Moment, which: &dyn Fn(&Charge) -> bool) {
        for charge in &mut plan.charges {
            if charge.taken.is_some() && which(charge) {
                // Taken out: whoever comes next finds nothing to give back.
                if let Some(taken) = charge.taken.take() {
                    let is_here = self.with_counter(charge, |counter| {
                        counter.give_back(charge, taken);
                    });
                    charge.taken = (!is_here).then_some(taken);
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
                    let hold = |counter: &mut Counter| counter.hold(taken, task, until_us);
                    let is_here = self.with_counter(charge, hold);
                    charge.taken = (!is_here).then_some(taken);
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
        self.finish_now(key, task, now)
            .ok_or(StoreError::Unavailable)
    }

    async fn reset(&self, plan: &Plan, now: Moment) -> Result<(), StoreError> {
        match self.reset_now(plan, now) {
            true => Ok(()),
            false => Err(StoreError::Unavailable),
        }
    }

    fn tell_totals(&self, _app: CounterKey, changes: &[(CounterKey, Change)], _now: Moment) {
        self.change_here(changes);
    }

    async fn change_totals(
        &self,
        _app: CounterKey,
        changes: &[(CounterKey, Change)],
        _now: Moment,
    ) -> Result<Vec<Total>, StoreError> {
        self.change_here(changes).ok_or(StoreError::Unavailable)
    }

    fn sweep(&self, now: Moment) {
        let first = self.swept.fetch_add(SWEPT_AT_ONCE, Ordering::Relaxed);
        for index in first..first + SWEPT_AT_ONCE {
            let mut shard = self.shards[index % SHARDS].lock();
            if shard.away {
                continue;
            }
            let gone = shard.sweep(now);
            self.bound.lock().release(gone);
        }
        let mut bound = self.bound.lock();
        if bound.away {
            return;
        }
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
