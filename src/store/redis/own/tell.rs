//! What the store must be told when it is back.

use super::{Due, Entry, Own};
use crate::limit::{Moment, Span, sliding};
use crate::store::memory::counter::Counter;
use crate::store::redis::name::Name;
use crate::store::redis::time::StoreTime;
use crate::store::redis::wire::Part;

impl Own {
    /// What the store must be told: all that is owed, or, when it has lost all, everything
    /// that still counts.
    pub(in crate::store::redis) fn due(
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
    pub(in crate::store::redis) fn told(&self, due: &Due) {
        self.with(due.name, None, |entry| {
            if due.owed != 0 {
                entry.owe(due.step, -due.owed);
            }
        });
    }

    /// Slots of calls that still run.
    pub(in crate::store::redis) fn running(&self) -> Vec<(Name, u64)> {
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
    pub(in crate::store::redis) fn held(&self) -> Vec<(Name, u64, String, u64)> {
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
