//! What this gateway has taken itself, and what it last read at the store: kept beside the
//! store, so that its share can be given when the store is gone, and so that a store that comes
//! back can be told.

mod decide;
mod tell;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use foldhash::fast::RandomState;
use hashbrown::HashMap;
use parking_lot::Mutex;
use smallvec::SmallVec;

use crate::limit::{Charge, CounterKey, Decision, Moment, Scope, Span, Taken, sliding};
use crate::store::StoreGauges;
use crate::store::memory::counter::Counter;
use crate::store::memory::shard::scope_index;
use crate::store::redis::lease::Leases;
use crate::store::redis::name::Name;
use crate::store::redis::part::Part;
use crate::store::redis::time::StoreTime;

pub(in crate::store::redis) use self::tell::Census;

const SHARDS: usize = 64;
/// Shards that one sweep looks at: the whole table takes eight.
const SWEPT_AT_ONCE: usize = 8;

/// Counters of this gateway's own.
#[derive(Debug)]
pub(in crate::store::redis) struct Own {
    shards: Box<[Mutex<HashMap<Name, Entry, RandomState>>]>,
    entries: AtomicUsize,
    most: usize,
    swept: AtomicUsize,
    /// Counters with leases.
    leased: Mutex<Vec<Name>>,
    /// How long a reading of running tasks is of use.
    slot_lease_us: u64,
    /// Whether something was taken or given back that the store has not been told.
    owes: AtomicBool,
}

#[derive(Debug)]
struct Entry {
    /// Units that this gateway took, by the clock that does not jump.
    counter: Counter,
    span: Span,
    scope: Scope,
    /// Units of all gateways when the store was last asked.
    seen: u32,
    seen_us: u64,
    /// Units taken without the store since then.
    since: u32,
    /// Units that the store does not know of, by step of the own counter; negative: that it
    /// still counts, though they were given back.
    owed: SmallVec<[(u64, i64); 1]>,
    leases: Leases,
    /// Whether it is among those whose leases are looked after.
    is_leased: bool,
}

/// What the leases say to a plan.
pub(in crate::store::redis) enum Leased {
    /// The decision.
    Decided(Decision),
    /// The store must be asked, and for these units more of each counter; these leases are over
    /// meanwhile.
    Ask {
        wanted: SmallVec<[u32; 6]>,
        over: Vec<Part>,
    },
}

/// Units to tell the store of, and what of them was owed.
#[derive(Debug)]
pub(in crate::store::redis) struct Due {
    pub(in crate::store::redis) name: Name,
    /// Units to put, by the store's clock.
    pub(in crate::store::redis) put: Option<Part>,
    /// Units to give back.
    pub(in crate::store::redis) back: Option<Part>,
    step: u64,
    owed: i64,
}

/// What a charge finds.
enum Found {
    Room { left: u32 },
    Full { left: u32, wait: Duration },
}

impl Entry {
    fn new(span: Span, scope: Scope, now: Moment) -> Self {
        Self {
            scope,
            counter: Counter::new(span, now),
            span,
            seen: 0,
            seen_us: 0,
            since: 0,
            owed: SmallVec::new(),
            leases: Leases::default(),
            is_leased: false,
        }
    }

    fn advance(&mut self, span: Span, now: Moment) {
        self.span = span;
        self.counter.advance(span, now);
    }

    /// Takes out the leases that are over at `mono_us`: they go back, and so they are not among
    /// what was read any more.
    fn end_leases(&mut self, name: Name, mono_us: u64, over: &mut Vec<Part>) {
        let (span, mut unused) = (self.span, 0_u32);
        self.leases.ended(mono_us, |taken, units| {
            unused = unused.saturating_add(units);
            over.push(part(name, span, taken, units));
        });
        if unused > 0 {
            self.seen = self.seen.saturating_sub(unused);
            self.leases.freed();
        }
    }

    fn owe(&mut self, at: u64, units: i64) {
        match self.owed.iter_mut().find(|(step, _)| *step == at) {
            Some((_, owed)) => *owed += units,
            None => self.owed.push((at, units)),
        }
        let slides = matches!(self.counter, Counter::Sliding(_));
        // What no longer counts need not be told: an outage may be long.
        self.owed
            .retain(|(step, units)| *units != 0 && !(slides && step.saturating_add(64) < at));
    }
}

/// `share` of `quota`, in proportion to `used`, rounded up.
fn in_proportion(used: u32, share: u32, quota: u32) -> u32 {
    let part = (u64::from(used) * u64::from(share)).div_ceil(u64::from(quota.max(1)));
    u32::try_from(part).unwrap_or(u32::MAX)
}

/// Units of a counter, where they were taken from.
fn part(name: Name, span: Span, taken: Taken, units: u32) -> Part {
    Part::new(name, span, units, taken.place())
}

impl Own {
    pub(in crate::store::redis) fn new(most: usize, slot_lease: Duration) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            entries: AtomicUsize::new(0),
            most,
            swept: AtomicUsize::new(0),
            leased: Mutex::default(),
            slot_lease_us: u64::try_from(slot_lease.as_micros()).unwrap_or(u64::MAX),
            owes: AtomicBool::new(false),
        }
    }

    /// Whether the store must be told something since this was last asked.
    pub(in crate::store::redis) fn owes(&self) -> bool {
        self.owes.load(Ordering::Relaxed) && self.owes.swap(false, Ordering::AcqRel)
    }

    /// It could not be told.
    pub(in crate::store::redis) fn owe_still(&self) {
        self.owes.store(true, Ordering::Release);
    }

    /// Works on the entry of a counter; on a new one, if there is room for it.
    fn with<T>(
        &self,
        name: Name,
        fresh: Option<(&Charge, Moment)>,
        work: impl FnOnce(&mut Entry) -> T,
    ) -> Option<T> {
        let mut shard = self.shards[name.shard(SHARDS)].lock();
        if let Some(entry) = shard.get_mut(&name) {
            return Some(work(entry));
        }
        let (charge, now) = fresh?;
        if self.entries.fetch_add(1, Ordering::Relaxed) >= self.most {
            self.entries.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        let fresh = || Entry::new(charge.span, charge.scope, now);
        Some(work(shard.entry(name).or_insert_with(fresh)))
    }

    /// Gives units back. Whether the store must be told: `false` when it never knew of them, or
    /// will be told later.
    pub(in crate::store::redis) fn give_back(
        &self,
        name: Name,
        charge: &Charge,
        taken: Taken,
        reachable: bool,
        time: &StoreTime,
    ) -> bool {
        let taken = match (taken, charge.span) {
            (Taken::Step(step), Span::Sliding { window_us }) => {
                Taken::Step(time.framed_step(step, sliding::step_us(window_us)))
            }
            (taken, _) => taken,
        };
        let told = self.with(name, None, |entry| {
            entry.leases.freed();
            let back = entry.counter.give_back(charge, taken);
            if let Taken::Step(step) = taken
                && back < charge.cost
            {
                // What was leased is counted a step before the store counts it.
                let rest = Charge {
                    cost: charge.cost - back,
                    ..*charge
                };
                let before = Taken::Step(step.saturating_sub(1));
                entry.counter.give_back(&rest, before);
            }
            if matches!(taken, Taken::Slot(_)) {
                return true;
            }
            let at = taken.place();
            let units = i64::from(charge.cost);
            let is_owed = entry
                .owed
                .iter()
                .any(|(step, owed)| *step == at && *owed >= units);
            if is_owed || !reachable {
                entry.since = entry.since.saturating_sub(charge.cost);
                entry.owe(at, -units);
                self.owe_still();
            }
            !is_owed && reachable
        });
        told.unwrap_or(reachable)
    }

    /// Keeps a slot for a task.
    pub(in crate::store::redis) fn hold(
        &self,
        name: Name,
        taken: Taken,
        task: &str,
        until_us: u64,
    ) {
        self.with(name, None, |entry| {
            entry.counter.hold(taken, task, until_us)
        });
    }

    /// Frees the slot of a task.
    pub(in crate::store::redis) fn finish(
        &self,
        name: Name,
        key: CounterKey,
        task: &str,
        at: Moment,
    ) {
        self.with(name, None, |entry| entry.counter.finish(key, task, at));
    }

    /// Forgets a counter that was reset.
    pub(in crate::store::redis) fn forget(&self, name: Name) {
        if self.shards[name.shard(SHARDS)]
            .lock()
            .remove(&name)
            .is_some()
        {
            self.entries.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// The sliding ones of these counters, with nothing to put there.
    pub(in crate::store::redis) fn sliding(&self, names: &[Name]) -> Vec<Part> {
        let sliding = names.iter().map(|name| {
            let part = |entry: &mut Entry| {
                let slides = matches!(entry.counter, Counter::Sliding(_));
                slides.then(|| Part::new(*name, entry.span, 0, 0))
            };
            self.with(*name, None, part).flatten()
        });
        sliding.flatten().collect()
    }

    /// Drops idle entries, a part of the table at a time.
    pub(in crate::store::redis) fn sweep(&self, at: Moment) {
        let first = self.swept.fetch_add(SWEPT_AT_ONCE, Ordering::Relaxed);
        for index in first..first + SWEPT_AT_ONCE {
            let mut shard = self.shards[index % SHARDS].lock();
            let before = shard.len();
            shard.retain(|_, entry| {
                let lasts_us = match entry.span {
                    Span::Sliding { window_us } => window_us,
                    Span::Day { .. } | Span::Running => self.slot_lease_us,
                };
                // What others have used of a day, and what is owed to it, is of use until its end.
                let is_day = match entry.span {
                    Span::Day { end_us, .. } => at.unix_us < end_us,
                    Span::Sliding { .. } | Span::Running => false,
                };
                let is_read = at.mono_us.saturating_sub(entry.seen_us) <= lasts_us
                    || is_day && (entry.seen > 0 || !entry.owed.is_empty());
                is_read || !entry.leases.is_empty() || !entry.counter.is_idle(at)
            });
            if shard.capacity() > 64 && shard.len() < shard.capacity() / 4 {
                shard.shrink_to_fit();
            }
            self.entries
                .fetch_sub(before - shard.len(), Ordering::Relaxed);
        }
    }

    /// Slots of this gateway, and what it remembers.
    pub(in crate::store::redis) fn gauges(&self) -> StoreGauges {
        let mut gauges = StoreGauges::default();
        for shard in &self.shards {
            for entry in shard.lock().values() {
                gauges.slots += entry.counter.slots();
                gauges.counters[scope_index(entry.scope)] += 1;
            }
        }
        gauges
    }
}
