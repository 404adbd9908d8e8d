//! What the store must be told when it is back.

use std::sync::OnceLock;

use super::{Due, Entry, Own};
use crate::limit::{Moment, Span, sliding};
use crate::store::memory::counter::Counter;
use crate::store::redis::name::Name;
use crate::store::redis::part::Part;
use crate::store::redis::time::StoreTime;

/// By part of the store.
type ByPart<T> = OnceLock<Vec<Vec<T>>>;

/// A slot that is held for a task: its number, the task, and until when.
pub(in crate::store::redis) type HeldSlot = (Name, u64, String, u64);

/// What a beat has to say of the own counters: looked up once for all parts of the store, and
/// only if any of them needs it.
#[derive(Debug)]
pub(in crate::store::redis) struct Census<'o> {
    own: &'o Own,
    parts: usize,
    all: ByPart<Name>,
    owing: ByPart<Name>,
    running: ByPart<(Name, u64)>,
    held: ByPart<HeldSlot>,
}

impl<'o> Census<'o> {
    pub(in crate::store::redis) fn new(own: &'o Own, parts: usize) -> Self {
        Self {
            own,
            parts,
            all: OnceLock::new(),
            owing: OnceLock::new(),
            running: OnceLock::new(),
            held: OnceLock::new(),
        }
    }

    /// The counters in a part.
    pub(in crate::store::redis) fn all(&self, part: usize) -> &[Name] {
        self.look(&self.all, part, |name, _, found| found.push(name))
    }

    /// Those of which the store must be told something.
    pub(in crate::store::redis) fn owing(&self, part: usize) -> &[Name] {
        self.look(&self.owing, part, |name, entry, found| {
            found.extend((!entry.owed.is_empty()).then_some(name));
        })
    }

    /// Slots of calls that still run.
    pub(in crate::store::redis) fn running(&self, part: usize) -> &[(Name, u64)] {
        self.look(&self.running, part, |name, entry, found| {
            if let Counter::Slots(slots) = &entry.counter {
                found.extend(slots.running().map(|slot| (name, slot)));
            }
        })
    }

    /// Slots that are held for tasks.
    pub(in crate::store::redis) fn held(&self, part: usize) -> &[HeldSlot] {
        self.look(&self.held, part, |name, entry, found| {
            if let Counter::Slots(slots) = &entry.counter {
                let held = slots.held();
                found.extend(held.map(|(slot, task, until)| (name, slot, task.to_owned(), until)));
            }
        })
    }

    fn look<'s, T>(
        &'s self,
        found: &'s ByPart<T>,
        part: usize,
        look: impl Fn(Name, &Entry, &mut Vec<T>),
    ) -> &'s [T] {
        let found = found.get_or_init(|| {
            let mut found: Vec<Vec<T>> = (0..self.parts).map(|_| Vec::new()).collect();
            for shard in &self.own.shards {
                for (name, entry) in shard.lock().iter() {
                    if let Some(found) = found.get_mut(name.part(self.parts)) {
                        look(*name, entry, found);
                    }
                }
            }
            found
        });
        found.get(part).map_or(&[], Vec::as_slice)
    }
}

impl Own {
    /// What the store must be told of these counters: all that is owed, or, when it has lost
    /// all, everything that still counts.
    pub(in crate::store::redis) fn due(
        &self,
        names: &[Name],
        everything: bool,
        at: Moment,
        time: &StoreTime,
    ) -> Vec<Due> {
        let mut due = Vec::new();
        for name in names {
            self.with(*name, None, |entry| {
                entry.advance(entry.span, at);
                entry.due(*name, everything, time, &mut due);
            });
        }
        due
    }

    /// The store has been told this.
    pub(in crate::store::redis) fn told(&self, due: &Due) {
        self.with(due.name, None, |entry| {
            if due.owed != 0 {
                entry.owe(due.step, -due.owed);
            }
        });
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
