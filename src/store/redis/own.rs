//! What this gateway has taken itself, and what it last read at the store: kept beside the
//! store, so that its share can be given when the store is gone, and so that a store that comes
//! back can be told.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use foldhash::fast::RandomState;
use hashbrown::HashMap;
use parking_lot::Mutex;
use smallvec::SmallVec;

use super::lease::{Held, Leases};
use super::time::StoreTime;
use super::wire::{Name, Part, Reading};
use crate::limit::plan::{longest_wait, reported_bit, smallest_share};
use crate::limit::slots::TASK_WAIT;
use crate::limit::{
    Charge, CounterKey, Decision, Moment, OnStoreFailure, Plan, Room, Scope, Span, Taken, sliding,
};
use crate::store::StoreGauges;
use crate::store::memory::counter::Counter;
use crate::store::memory::shard::scope_index;

const SHARDS: usize = 64;
/// Shards that one sweep looks at: the whole table takes eight.
const SWEPT_AT_ONCE: usize = 8;

/// Counters of this gateway's own.
#[derive(Debug)]
pub(super) struct Own {
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
pub(super) enum Leased {
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
pub(super) struct Due {
    pub(super) name: Name,
    /// Units to put, by the store's clock.
    pub(super) put: Option<Part>,
    /// Units to give back.
    pub(super) back: Option<Part>,
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

/// Where units lie in a counter of ours: the step, the day or the slot.
fn place(taken: Taken) -> u64 {
    match taken {
        Taken::Step(at) | Taken::Day(at) | Taken::Slot(at) => at,
    }
}

/// Units of a counter, where they were taken from.
fn part(name: Name, span: Span, taken: Taken, units: u32) -> Part {
    Part::new(name, span, units, place(taken))
}

impl Own {
    pub(super) fn new(most: usize, slot_lease: Duration) -> Self {
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
    pub(super) fn owes(&self) -> bool {
        self.owes.load(Ordering::Relaxed) && self.owes.swap(false, Ordering::AcqRel)
    }

    /// It could not be told.
    pub(super) fn owe_still(&self) {
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

    /// Decides by the leases, if they suffice. `at` is by the clock of the own counters,
    /// `mono_us` is the process's.
    pub(super) fn decide_by_leases(&self, plan: &mut Plan, mono_us: u64, at: Moment) -> Leased {
        let mut own: SmallVec<[Option<Taken>; 6]> = SmallVec::new();
        let mut rooms: SmallVec<[(u32, u64); 6]> = SmallVec::new();
        let (mut decided, mut is_known) = (None, true);
        for index in 0..plan.charges.len() {
            let charge = plan.charges[index];
            let name = Name::of(plan, &charge);
            let found = self.with(name, None, |entry| {
                let held = match is_known {
                    true => entry.leases.take(&charge, mono_us),
                    // The store must be asked, unless a counter is known to be full.
                    false => entry.leases.full(&charge, mono_us).unwrap_or(Held::Unknown),
                };
                let Held::Room(taken) = held else {
                    return (held, None, (0, 0));
                };
                let taken_here = taken.map(|_| {
                    entry.advance(charge.span, at);
                    entry.counter.take(&charge)
                });
                let left = charge.quota.saturating_sub(entry.seen) + entry.leases.left(mono_us);
                let resets_us = match charge.span {
                    Span::Day { end_us, .. } => end_us.saturating_sub(at.unix_us),
                    Span::Sliding { .. } | Span::Running => entry.leases.resets_in_us(mono_us),
                };
                (held, taken_here, (left, resets_us))
            });
            let (held, taken_here, room) = found.unwrap_or((Held::Unknown, None, (0, 0)));
            match held {
                Held::Room(taken) => {
                    plan.charges[index].taken = taken;
                    own.push(taken_here);
                    rooms.push(room);
                }
                Held::Full { left, wait_us } => {
                    decided = Some(Decision::Deny {
                        charge: index,
                        left,
                        retry_after: Some(Duration::from_micros(wait_us)),
                    });
                    break;
                }
                Held::Unknown => is_known = false,
            }
        }
        if is_known && decided.is_none() {
            let left = rooms
                .iter()
                .enumerate()
                .map(|(index, (left, _))| (index, *left));
            let enforced = left.filter(|(index, _)| !plan.charges[*index].report);
            let nearest = smallest_share(&plan.charges, enforced).map(|(charge, left)| Room {
                charge,
                left,
                resets_in: Duration::from_micros(rooms[charge].1),
            });
            return Leased::Decided(Decision::Admit {
                nearest,
                reported: 0,
            });
        }
        for (index, taken_here) in own.into_iter().enumerate() {
            let charge = plan.charges[index];
            plan.charges[index].taken = None;
            if let (Some(taken), Some(taken_here)) = (charge.taken, taken_here) {
                self.with(Name::of(plan, &charge), None, |entry| {
                    entry.leases.put_back(&charge, taken);
                    entry.counter.give_back(&charge, taken_here);
                });
            }
        }
        if let Some(denied) = decided {
            return Leased::Decided(denied);
        }
        let (mut wanted, mut over) = (SmallVec::new(), Vec::new());
        for charge in &plan.charges {
            let name = Name::of(plan, charge);
            let more = self.with(name, None, |entry| {
                let span = entry.span;
                let mut unused = 0_u32;
                entry.leases.ended(mono_us, |taken, units| {
                    unused = unused.saturating_add(units);
                    over.push(part(name, span, taken, units));
                });
                // They go back, and so they are not among what was read any more.
                entry.seen = entry.seen.saturating_sub(unused);
                let by_store = Moment { mono_us, ..at };
                entry.leases.wanted(charge, by_store)
            });
            wanted.push(more.unwrap_or(0));
        }
        Leased::Ask { wanted, over }
    }

    /// The store does not know of any lease: nothing may be taken from one, or given back.
    pub(super) fn drop_leases(&self, concerns: impl Fn(&Name) -> bool) {
        self.leased.lock().retain(|name| {
            if concerns(name) {
                self.with(*name, None, |entry| {
                    (entry.leases, entry.is_leased) = (Leases::default(), false);
                });
            }
            !concerns(name)
        });
    }

    /// The leases that have been over since `mono_us`.
    pub(super) fn leases_over(&self, mono_us: u64) -> Vec<Part> {
        let mut over = Vec::new();
        let mut leased = self.leased.lock();
        leased.retain(|name| {
            let is_leased = self.with(*name, None, |entry| {
                let span = entry.span;
                let mut unused = 0_u32;
                entry.leases.ended(mono_us, |taken, units| {
                    unused = unused.saturating_add(units);
                    over.push(part(*name, span, taken, units));
                });
                // They go back, and so they are not among what was read any more.
                entry.seen = entry.seen.saturating_sub(unused);
                entry.is_leased = !entry.leases.is_empty();
                entry.is_leased
            });
            is_leased.unwrap_or(false)
        });
        over
    }

    /// Notes what the store said to a plan: what is used there, and what was taken from it.
    /// `sent_us` is when it was asked, `at` and `store_us` when it answered.
    pub(super) fn note(
        &self,
        plan: &Plan,
        readings: &[Reading],
        is_admitted: bool,
        (sent_us, store_us): (u64, u64),
        at: Moment,
    ) {
        let mut newly_leased: SmallVec<[Name; 6]> = SmallVec::new();
        for (charge, reading) in plan.charges.iter().zip(readings) {
            let fresh = Some((charge, at));
            let name = Name::of(plan, charge);
            self.with(name, fresh, |entry| {
                entry.advance(charge.span, at);
                entry.seen = reading.used;
                entry.seen_us = at.mono_us;
                entry.since = 0;
                if let Some(taken) = charge.taken {
                    entry.seen = entry.seen.saturating_add(charge.cost + reading.granted);
                    entry.counter.take_as(charge, taken);
                    entry.leases.used(charge, sent_us);
                }
                let (used, wait_us) = (entry.seen, reading.wait_us());
                if is_admitted {
                    let leases = &mut entry.leases;
                    if leases.heard(charge, reading, used, sent_us, store_us) && !entry.is_leased {
                        entry.is_leased = true;
                        newly_leased.push(name);
                    }
                } else if wait_us > 0 && !charge.report {
                    entry.leases.heard_full(charge, used, wait_us, sent_us);
                }
            });
        }
        if !newly_leased.is_empty() {
            self.leased.lock().extend(newly_leased);
        }
    }

    /// Decides without the store: `share` is this gateway's part of a quota. What it takes is
    /// owed to the store. `first_slot` numbers the slots.
    pub(super) fn decide(
        &self,
        plan: &mut Plan,
        share: impl Fn(&Name, u32) -> u32,
        first_slot: u64,
        at: Moment,
        time: &StoreTime,
    ) -> Decision {
        let mut denied: Option<(usize, u32, Option<Duration>)> = None;
        let mut left: SmallVec<[(usize, u32); 6]> = SmallVec::new();
        let mut reported = 0;
        for index in 0..plan.charges.len() {
            let charge = plan.charges[index];
            let name = Name::of(plan, &charge);
            let share = match charge.on_store_failure {
                OnStoreFailure::Allow => None,
                OnStoreFailure::Local | OnStoreFailure::Deny => Some(share(&name, charge.quota)),
            };
            let slot = first_slot + u64::try_from(index).unwrap_or(0);
            let (found, taken) = self.reserve(name, &charge, share, slot, at);
            let charge = &mut plan.charges[index];
            charge.taken = taken.map(|taken| match (taken, charge.span) {
                (Taken::Step(step), Span::Sliding { window_us }) => {
                    Taken::Step(time.store_step(step, sliding::step_us(window_us)))
                }
                (taken, _) => taken,
            });
            match found {
                Found::Room { left: room } if !charge.report => left.push((index, room)),
                Found::Room { .. } => (),
                Found::Full { .. } if charge.report => reported |= reported_bit(index),
                Found::Full { left, wait } => {
                    let wait = (charge.cost <= charge.quota).then_some(wait);
                    let this = (index, wait);
                    let longest =
                        longest_wait(denied.map(|d| (d.0, d.2)).into_iter().chain([this]));
                    if longest == Some(this) {
                        denied = Some((index, left, wait));
                    }
                }
            }
        }
        if let Some((charge, left, retry_after)) = denied {
            for index in 0..plan.charges.len() {
                let charge = plan.charges[index];
                if let Some(taken) = charge.taken {
                    self.give_back(Name::of(plan, &charge), &charge, taken, true, time);
                }
                plan.charges[index].taken = None;
            }
            return Decision::Deny {
                charge,
                left,
                retry_after,
            };
        }
        let nearest = smallest_share(&plan.charges, left.into_iter()).map(|(charge, left)| Room {
            charge,
            left,
            resets_in: Duration::ZERO,
        });
        Decision::Admit { nearest, reported }
    }

    fn reserve(
        &self,
        name: Name,
        charge: &Charge,
        share: Option<u32>,
        slot: u64,
        at: Moment,
    ) -> (Found, Option<Taken>) {
        let reserved = self.with(name, Some((charge, at)), |entry| {
            entry.advance(charge.span, at);
            let lasts_us = match charge.span {
                Span::Sliding { window_us } => window_us,
                Span::Day { start_us, end_us } => end_us.saturating_sub(start_us),
                Span::Running => self.slot_lease_us,
            };
            if at.mono_us.saturating_sub(entry.seen_us) > lasts_us {
                (entry.seen, entry.since) = (0, 0);
            }
            let own = entry.counter.used();
            let left = share.map_or(charge.quota, |share| {
                let read = in_proportion(entry.seen, share, charge.quota);
                share.saturating_sub(own.max(read.saturating_add(entry.since)))
            });
            if share.is_some() && left < charge.cost.max(1) {
                let wait = entry
                    .counter
                    .wait(charge, charge.cost, at)
                    .unwrap_or(Duration::from_micros(lasts_us))
                    .clamp(
                        Duration::from_micros(1),
                        Duration::from_micros(lasts_us.max(1)),
                    );
                let wait = match charge.span {
                    Span::Running => TASK_WAIT,
                    _ => wait,
                };
                return (Found::Full { left, wait }, None);
            }
            if charge.cost == 0 {
                return (Found::Room { left }, None);
            }
            let taken = match charge.span {
                Span::Running => {
                    entry.counter.take_as(charge, Taken::Slot(slot));
                    Taken::Slot(slot)
                }
                _ => entry.counter.take(charge),
            };
            entry.since = entry.since.saturating_add(charge.cost);
            if !matches!(taken, Taken::Slot(_)) {
                entry.owe(place(taken), i64::from(charge.cost));
            }
            self.owe_still();
            let left = left.saturating_sub(charge.cost);
            (Found::Room { left }, Some(taken))
        });
        // No room to remember it: what cannot be counted is not given.
        reserved.unwrap_or((
            Found::Full {
                left: 0,
                wait: TASK_WAIT,
            },
            None,
        ))
    }

    /// Gives units back. Whether the store must be told: `false` when it never knew of them, or
    /// will be told later.
    pub(super) fn give_back(
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
            let at = place(taken);
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
    pub(super) fn hold(&self, name: Name, taken: Taken, task: &str, until_us: u64) {
        self.with(name, None, |entry| {
            entry.counter.hold(taken, task, until_us)
        });
    }

    /// Frees the slot of a task.
    pub(super) fn finish(&self, name: Name, key: CounterKey, task: &str, at: Moment) {
        self.with(name, None, |entry| entry.counter.finish(key, task, at));
    }

    /// Forgets a counter that was reset.
    pub(super) fn forget(&self, name: Name) {
        if self.shards[name.shard(SHARDS)]
            .lock()
            .remove(&name)
            .is_some()
        {
            self.entries.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// What the store must be told: all that is owed, or, when it has lost all, everything
    /// that still counts.
    pub(super) fn due(
        &self,
        concerns: impl Fn(&Name) -> bool,
        everything: bool,
        at: Moment,
        time: &StoreTime,
    ) -> Vec<Due> {
        let mut due = Vec::new();
        for shard in &self.shards {
            for (name, entry) in shard.lock().iter_mut() {
                if !everything && entry.owed.is_empty() || !concerns(name) {
                    continue;
                }
                entry.advance(entry.span, at);
                entry.due(*name, everything, time, &mut due);
            }
        }
        due
    }

    /// The store has been told this.
    pub(super) fn told(&self, due: &Due) {
        self.with(due.name, None, |entry| {
            if due.owed != 0 {
                entry.owe(due.step, -due.owed);
            }
        });
    }

    /// Sliding counters in use, with nothing to put there.
    pub(super) fn sliding(&self, concerns: impl Fn(&Name) -> bool) -> Vec<Part> {
        let mut sliding = Vec::new();
        for shard in &self.shards {
            for (name, entry) in shard.lock().iter() {
                if matches!(entry.counter, Counter::Sliding(_)) && concerns(name) {
                    sliding.push(Part::new(*name, entry.span, 0, 0));
                }
            }
        }
        sliding
    }

    /// Slots of calls that still run.
    pub(super) fn running(&self) -> Vec<(Name, u64)> {
        let mut running = Vec::new();
        for shard in &self.shards {
            for (name, entry) in shard.lock().iter() {
                if let Counter::Slots(slots) = &entry.counter {
                    running.extend(slots.running().map(|slot| (*name, slot)));
                }
            }
        }
        running
    }

    /// Slots that are held for tasks: number, task, and until when.
    pub(super) fn held(&self) -> Vec<(Name, u64, String, u64)> {
        let mut held = Vec::new();
        for shard in &self.shards {
            for (name, entry) in shard.lock().iter() {
                if let Counter::Slots(slots) = &entry.counter {
                    held.extend(
                        slots
                            .held()
                            .map(|(slot, task, until_us)| (*name, slot, task.to_owned(), until_us)),
                    );
                }
            }
        }
        held
    }

    /// Drops idle entries, a part of the table at a time.
    pub(super) fn sweep(&self, at: Moment) {
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
    pub(super) fn gauges(&self) -> StoreGauges {
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

impl Entry {
    fn due(&self, name: Name, everything: bool, time: &StoreTime, due: &mut Vec<Due>) {
        let owed = |step: u64| {
            let owed = self.owed.iter().find(|(at, _)| *at == step);
            owed.map_or(0, |(_, units)| *units)
        };
        let mut add = |step: u64, units: i64, owed: i64| {
            let at = match self.span {
                Span::Sliding { window_us } => time.store_step(step, sliding::step_us(window_us)),
                Span::Day { .. } | Span::Running => step,
            };
            let part = |units: u64| {
                let units = u32::try_from(units).unwrap_or(u32::MAX);
                Part::new(name, self.span, units, at)
            };
            due.push(Due {
                name,
                put: (units > 0).then(|| part(units.unsigned_abs())),
                back: (units < 0).then(|| part(units.unsigned_abs())),
                step,
                owed,
            });
        };
        match (&self.counter, everything) {
            (Counter::Sliding(counter), true) => {
                for (step, units) in counter.steps() {
                    add(step, i64::from(units), owed(step));
                }
            }
            (Counter::Day(day), true) if day.used() > 0 => {
                let owed = self.owed.iter().map(|(_, units)| *units).sum();
                let at = self.owed.first().map_or(0, |(at, _)| *at);
                add(at, i64::from(day.used()), owed);
            }
            (Counter::Slots(_), _) | (Counter::Day(_), true) => (),
            (_, false) => {
                for (step, units) in &self.owed {
                    add(*step, *units, *units);
                }
            }
        }
    }
}
