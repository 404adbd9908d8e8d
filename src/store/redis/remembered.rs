//! Totals as the store last told them, kept for when it does not answer: a total that is believed
//! then has this gateway's share of what was left, and no more.

use std::mem;

use foldhash::fast::RandomState;
use hashbrown::HashMap;
use parking_lot::Mutex;

use super::name::Name;
use crate::limit::total::{Change, Total, TotalCharge};
use crate::limit::{CounterKey, Plan};

/// The most that are remembered, whatever the bound of counters is: those of users and groups
/// are many, and those that calls still move are few.
const MOST: usize = 100_000;

/// What the store said of a total.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reading {
    pub(super) count: u64,
    pub(super) checked_s: u64,
    /// For what is taken without the store, and goes back.
    pub(super) round: u32,
    /// For what is deleted without it.
    pub(super) basis: u32,
}

impl From<Total> for Reading {
    fn from(total: Total) -> Self {
        Self {
            count: total.count,
            checked_s: total.checked_s,
            round: total.round(),
            basis: total.basis(),
        }
    }
}

/// When a reading was asked for: what was taken without the store later is not in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    /// Takings until then.
    after: u64,
    /// How often the store had been out of use by then.
    outages: u64,
    /// Whether the store may still lack what others took without it.
    is_seeding: bool,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    reading: Reading,
    /// Taken here without the store since then, less what came back.
    since: i64,
    /// Which taking was the last.
    last: u64,
    /// How often the store had been out of use by then.
    outages: u64,
}

/// Readings by total, the last ones that were of use.
#[derive(Debug)]
pub(super) struct Remembered {
    both: Mutex<Generations>,
    most: usize,
}

/// Two tables in turn: what nobody has asked for while one was filled goes with the other.
#[derive(Debug, Default)]
struct Generations {
    young: HashMap<Name, Entry, RandomState>,
    old: HashMap<Name, Entry, RandomState>,
    /// Takings so far.
    takings: u64,
}

impl Generations {
    fn entry(&mut self, name: Name, most: usize) -> Option<&mut Entry> {
        if !self.young.contains_key(&name) {
            let entry = self.old.remove(&name)?;
            self.add(name, entry, most);
        }
        self.young.get_mut(&name)
    }

    fn add(&mut self, name: Name, entry: Entry, most: usize) {
        if self.young.len() >= most / 2 {
            self.old = mem::take(&mut self.young);
        }
        self.young.insert(name, entry);
    }
}

/// What a total says without the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Here {
    Room,
    Full,
    /// Never read, or not believed.
    Unknown,
}

impl Remembered {
    pub(super) fn new(most: usize) -> Self {
        Self {
            both: Mutex::default(),
            most: most.clamp(2, MOST),
        }
    }

    /// The store is asked now.
    pub(super) fn asked(&self, outages: u64, is_seeding: bool) -> Asked {
        Asked {
            after: self.both.lock().takings,
            outages,
            is_seeding,
        }
    }

    /// Notes what the store said to a question.
    pub(super) fn note(&self, name: Name, reading: Reading, asked: Asked) {
        let mut both = self.both.lock();
        let Some(entry) = both.entry(name, self.most) else {
            let entry = Entry {
                reading,
                since: 0,
                last: 0,
                outages: asked.outages,
            };
            both.add(name, entry, self.most);
            return;
        };
        // Until all have told what they took, what was left before is shared on.
        if asked.is_seeding && entry.outages < asked.outages {
            return;
        }
        entry.reading = reading;
        entry.outages = asked.outages;
        if asked.after >= entry.last {
            entry.since = 0;
        }
    }

    /// Takes what the plan asks of totals from this gateway's shares, all or nothing. `share`: its
    /// part of so many units. The first that has no room refuses.
    pub(super) fn take(
        &self,
        plan: &mut Plan,
        share: impl Fn(&Name, u64) -> u64,
    ) -> Result<(), usize> {
        let mut both = self.both.lock();
        let most = self.most;
        let mut found = Vec::with_capacity(plan.totals.len());
        for (at, charge) in plan.totals.iter().enumerate() {
            let name = Name::of_total(plan, charge.key);
            let here = match both.entry(name, most) {
                Some(entry) => entry.here(charge, |left| share(&name, left)),
                None => Here::Unknown,
            };
            if here == Here::Full && !charge.report {
                return Err(at);
            }
            found.push(here);
        }
        for (at, here) in found.into_iter().enumerate() {
            let name = Name::of_total(plan, plan.totals[at].key);
            let charge = &mut plan.totals[at];
            charge.over = charge.figure != u64::MAX && here != Here::Room;
            let known = both.entry(name, most).map(|entry| entry.reading);
            charge.taken = match charge.units {
                0 => known.filter(|_| charge.looks()).map(|known| known.basis),
                _ => known.map(|known| known.round),
            };
            if charge.taken.is_some() && charge.units > 0 {
                both.took(name, charge.units, most);
            }
        }
        Ok(())
    }

    /// Totals of which the store has said that there are some, or that they were checked: how many.
    pub(super) fn all(&self, concerns: impl Fn(&Name) -> bool) -> Vec<(Name, u64)> {
        let both = self.both.lock();
        let all = both.old.iter().chain(&both.young);
        let some = all.filter(|(name, entry)| {
            let reading = entry.reading;
            concerns(name) && (reading.count > 0 || reading.checked_s > 0)
        });
        some.map(|(name, entry)| (*name, entry.reading.count))
            .collect()
    }

    /// The totals of a plan that would pass for want of a reading that is believed.
    pub(super) fn unknown(&self, plan: &Plan) -> Vec<CounterKey> {
        let mut both = self.both.lock();
        let enforced = plan.totals.iter().filter(|charge| !charge.report);
        let unknown = enforced.filter(|charge| {
            let entry = both.entry(Name::of_total(plan, charge.key), self.most);
            let is_known = entry.is_some_and(|e| e.reading.checked_s >= charge.since_s);
            charge.figure < u64::MAX && !is_known
        });
        unknown.map(|charge| charge.key).collect()
    }

    /// Whether the shares of what was left before an outage have room, where the store may not
    /// have heard of all since: the first that has none. `outages`: how many there were.
    pub(super) fn lacks(
        &self,
        plan: &Plan,
        outages: u64,
        share: impl Fn(&Name, u64) -> u64,
    ) -> Option<usize> {
        let mut both = self.both.lock();
        plan.totals.iter().position(|charge| {
            let name = Name::of_total(plan, charge.key);
            let entry = both.entry(name, self.most);
            let entry = entry.filter(|entry| entry.outages < outages && !charge.report);
            entry.is_some_and(|entry| entry.here(charge, |left| share(&name, left)) == Here::Full)
        })
    }

    /// The store has admitted a plan while it may not have heard of all: it counts here too.
    pub(super) fn took(&self, plan: &Plan, outages: u64) {
        let mut both = self.both.lock();
        for charge in plan.totals.iter().filter(|charge| charge.units > 0) {
            let name = Name::of_total(plan, charge.key);
            let entry = both.entry(name, self.most);
            if entry.is_some_and(|entry| entry.outages < outages) {
                both.took(name, charge.units, self.most);
            }
        }
    }

    /// Notes what this gateway itself has made free.
    pub(super) fn changed(&self, name: Name, change: Change) {
        let (Change::Lower { units, .. } | Change::GiveBack { units, .. }) = change else {
            return;
        };
        let mut both = self.both.lock();
        let entry = both.entry(name, self.most);
        let is_lowered = |entry: &&mut Entry| match change {
            Change::Lower { basis, .. } => basis == entry.reading.basis,
            _ => true,
        };
        if let Some(entry) = entry.filter(is_lowered) {
            entry.since = entry.since.saturating_sub(units.into());
        }
    }
}

impl Generations {
    fn took(&mut self, name: Name, units: u32, most: usize) {
        self.takings += 1;
        let nth = self.takings;
        if let Some(entry) = self.entry(name, most) {
            entry.since = entry.since.saturating_add(units.into());
            entry.last = nth;
        }
    }
}

impl Entry {
    fn here(&self, charge: &TotalCharge, share: impl Fn(u64) -> u64) -> Here {
        if charge.figure == u64::MAX {
            return Here::Room;
        }
        if self.reading.checked_s < charge.since_s {
            return Here::Unknown;
        }
        let share = share(charge.figure.saturating_sub(self.reading.count));
        let left = share.saturating_add_signed(self.since.saturating_neg());
        match left >= u64::from(charge.units.max(1)) {
            true => Here::Room,
            false => Here::Full,
        }
    }
}

#[cfg(test)]
mod tests;
