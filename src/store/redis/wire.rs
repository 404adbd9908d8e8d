//! What goes to the script: `script/counters.lua` says what the bytes mean.

use std::iter;
use std::time::Duration;

use smallvec::SmallVec;

use super::name::Name;
use super::reply::{Answer, Verdict};
use crate::limit::total::{Change, TotalCharge};
use crate::limit::{KeyHasher, Plan, Span, sliding};

/// What an item asks for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum What {
    /// One all-or-nothing decision, if it runs between these times of the store
    /// (microseconds).
    Decide { earliest_us: u64, latest_us: u64 },
    /// Units back to where they were taken from.
    GiveBack,
    /// Units that were admitted without the store.
    Put,
    /// Slots whose calls still run; `lost_too`: also those that the store has forgotten.
    Renew { lost_too: bool },
    /// A slot that outlives its call, as this task's.
    Hold { task: Task },
    /// The same, unless the store knows of it: the slot's number says which of this name.
    Keep { task: Task },
    /// The end of such a task.
    Finish { task: Task },
    /// Counters to be empty.
    Empty,
    /// Changes of totals.
    Change,
    /// The same for one who waits, if it runs between these times of the store (microseconds).
    ChangeBy { earliest_us: u64, latest_us: u64 },
}

impl What {
    fn is_change(self) -> bool {
        matches!(self, Self::Change | Self::ChangeBy { .. })
    }
}

/// A task's name, hashed: names are callers' and of any length.
pub(super) type Task = [u8; 16];

/// The hash of a task's name.
pub(super) fn task(name: &str) -> Task {
    KeyHasher::shared().task(name).0.to_le_bytes()
}

/// Units asked of one counter, or given back to it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    name: Name,
    pub(super) kind: u8,
    pub(super) report: bool,
    pub(super) quota: u32,
    pub(super) units: u32,
    /// Wanted beyond the units. Of a total, the gateway's era.
    pub(super) more: u32,
    pub(super) a: u64,
    pub(super) b: u64,
}

impl Part {
    /// Units of a step of a sliding window, of a day (`at` is of no account), or a slot.
    pub(super) fn new(name: Name, span: Span, units: u32, at: u64) -> Self {
        let (kind, a, b) = match span {
            Span::Sliding { window_us } => (SLIDING, sliding::step_us(window_us), at),
            Span::Day { start_us, end_us } => (DAY, start_us, end_us),
            Span::Running => (RUNNING, 0, at),
        };
        Self {
            name,
            kind,
            report: false,
            quota: 0,
            units,
            more: 0,
            a,
            b,
        }
    }

    /// A slot and the time for which it is to count.
    pub(super) fn slot(name: Name, number: u64, lasts: Duration) -> Self {
        Self {
            a: micros_of(lasts),
            ..Self::new(name, Span::Running, 1, number)
        }
    }
}

/// Kinds of parts, the rarer ones last.
const SLIDING: u8 = 0;
const DAY: u8 = 1;
const RUNNING: u8 = 2;
const TOTAL: u8 = 3;
/// Numbers of changes: those that come in any order, the one that is none, and those of gateways
/// alone.
const ADD: u8 = 0;
const LOWER: u8 = 1;
const GIVE_BACK: u8 = 2;
const DOUBT: u8 = 3;
const READ: u8 = 9;
const KEEP: u8 = 10;
const TAKE: u8 = 11;
const GONE: u8 = 13;
const OVER: u8 = 14;
const HELD: u8 = 15;

impl Part {
    /// Units asked of a total.
    fn total(name: Name, charge: &TotalCharge, era: u32) -> Self {
        Self {
            kind: TOTAL,
            report: charge.report,
            units: charge.units,
            more: era,
            a: charge.since_s,
            b: charge.figure,
            ..Self::new(name, Span::Running, 0, 0)
        }
    }

    /// A change of a total. `era`: of the units that are taken or closed.
    pub(super) fn change(name: Name, change: Change, era: u32) -> Self {
        let (how, units, a, b) = match change {
            Change::Add(units) => (ADD, units, 0, 0),
            Change::Lower { units, basis } => (LOWER, units, u64::from(basis), 0),
            Change::GiveBack { units, round } => (GIVE_BACK, units, u64::from(round), era.into()),
            Change::Doubt => (DOUBT, 0, 0, 0),
            Change::Clear => (4, 0, 0, 0),
            Change::AtLeast { count, round } => {
                (5, 0, count, round.map_or(0, |round| 1 + u64::from(round)))
            }
            Change::Set { count, now_s } => (6, 0, count, now_s),
            Change::Begin { now_s } => (7, 0, now_s, 0),
            Change::End {
                round,
                listed,
                now_s,
            } => (8, round, listed, now_s),
            Change::Read => (READ, 0, 0, 0),
            Change::Keep { units, round } => (KEEP, units, u64::from(round), era.into()),
            Change::Take { units, round } => (TAKE, units, u64::from(round), era.into()),
            Change::Recall(count) => (12, 0, count, 0),
        };
        Self::of_total(name, how, units, (a, b))
    }

    /// A gateway seems to be gone, which has units of this total under way. `None`: its ID is none
    /// of ours.
    pub(super) fn gone(name: Name, gateway: &str) -> Option<Self> {
        let id = u64::from_str_radix(gateway, 16).ok()?;
        // As doubles can carry it.
        let halves = (id >> 32, id & 0xffff_ffff);
        (gateway.len() == 16).then(|| Self::of_total(name, GONE, 0, halves))
    }

    /// Nothing of this gateway's era is under way.
    pub(super) fn over(name: Name, era: u32) -> Self {
        Self::of_total(name, OVER, 0, (era.into(), 0))
    }

    /// This gateway has so many under way of a total that was lost.
    pub(super) fn held(name: Name, era: u32, units: u32) -> Self {
        Self::of_total(name, HELD, units, (era.into(), 0))
    }

    pub(super) fn name(&self) -> Name {
        self.name
    }

    /// Whether two changes of a total, in either order, come to the same.
    pub(super) fn commutes(&self, other: &Self) -> bool {
        let any = [ADD, GIVE_BACK, DOUBT, KEEP, TAKE];
        let both = any.contains(&self.kind) && any.contains(&other.kind);
        both || self.kind == LOWER && other.kind == LOWER
    }

    /// Makes one change of two that are alike. Whether they are.
    pub(super) fn join(&mut self, other: &Self) -> bool {
        let same = (self.kind, self.a, self.b) == (other.kind, other.a, other.b);
        let units = self.units.checked_add(other.units).filter(|_| same);
        self.units = units.unwrap_or(self.units);
        units.is_some()
    }

    fn of_total(name: Name, how: u8, units: u32, (a, b): (u64, u64)) -> Self {
        Self {
            kind: how,
            units,
            a,
            b,
            ..Self::new(name, Span::Running, 0, 0)
        }
    }

    /// The era of the units that it takes or closes, as a change of a total.
    fn era(&self) -> Option<u32> {
        let is_of_units = [GIVE_BACK, KEEP, TAKE].contains(&self.kind);
        is_of_units.then(|| u32::try_from(self.b).unwrap_or(0))
    }
}

fn micros_of(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// One decision or one giving back.
#[derive(Clone, Debug)]
pub(super) struct Item {
    what: What,
    parts: SmallVec<[Part; 6]>,
}

impl Item {
    /// Asks for a plan, and for these units more of each of its counters. `slot` numbers the
    /// slots that it may take, from there on; `era` is that of the units of totals.
    pub(super) fn decide(
        plan: &Plan,
        wanted: &[u32],
        what: What,
        (slot, slot_lease): (u64, Duration),
        era: u32,
    ) -> Self {
        let wanted = wanted.iter().copied().chain(iter::repeat(0));
        let parts = plan
            .charges
            .iter()
            .zip(slot..)
            .zip(wanted)
            .map(|((charge, slot), more)| {
                let name = Name::of(plan, charge);
                let part = match charge.span {
                    Span::Running => Part::slot(name, slot, slot_lease),
                    Span::Sliding { .. } | Span::Day { .. } => Part::new(name, charge.span, 0, 0),
                };
                Part {
                    report: charge.report,
                    quota: charge.quota,
                    units: charge.cost,
                    more,
                    ..part
                }
            });
        let totals = plan.totals.iter();
        let totals = totals.map(|c| Part::total(Name::of_total(plan, c.key), c, era));
        Self {
            what,
            parts: parts.chain(totals).collect(),
        }
    }

    /// Units that were admitted without the store, or given back then.
    pub(super) fn of(what: What, parts: &[Part]) -> Self {
        Self {
            what,
            parts: parts.into(),
        }
    }

    /// Changes of totals that nobody waits for.
    pub(super) fn changes(parts: &[Part]) -> Self {
        Self::of(What::Change, parts)
    }

    /// What of this changes totals, and the rest. Of a decision, all is the rest.
    pub(super) fn into_changes(self) -> (SmallVec<[Part; 6]>, Option<Self>) {
        let what = self.what;
        let (changes, rest): (SmallVec<[Part; 6]>, SmallVec<[Part; 6]>) =
            self.parts.into_iter().partition(|part| match what {
                What::GiveBack => part.kind == TOTAL,
                _ => what.is_change(),
            });
        let change = |part: Part| match what {
            What::GiveBack => {
                let era = u32::try_from(part.a).unwrap_or(0);
                let round = u32::try_from(part.b).unwrap_or(0);
                let units = part.units;
                Part::change(part.name, Change::GiveBack { units, round }, era)
            }
            _ => part,
        };
        let rest = (!rest.is_empty()).then_some(Self { what, parts: rest });
        (changes.into_iter().map(change).collect(), rest)
    }

    /// Whether the script says what became of it.
    pub(super) fn has_verdict(&self) -> bool {
        matches!(self.what, What::Decide { .. }) || self.what.is_change()
    }

    /// Whose counters these are: the first one's, which in a cluster are all on one node.
    pub(super) fn name(&self) -> Option<Name> {
        self.parts.first().map(|part| part.name)
    }

    /// Whether it is about counters of windows and days alone.
    pub(super) fn is_of_rates(&self) -> bool {
        let is_known = matches!(self.what, What::Decide { .. } | What::GiveBack | What::Put);
        is_known && self.parts.iter().all(|part| part.kind < RUNNING)
    }

    /// Whether it is a decision of which all that ask for it can be decided at once.
    pub(super) fn is_plain(&self) -> bool {
        let is_plain = |part: &Part| part.kind < RUNNING && !part.report && part.more == 0;
        matches!(self.what, What::Decide { .. }) && self.parts.iter().all(is_plain)
    }

    /// Units that a decision asks of the counter of one of its parts.
    pub(super) fn asked(&self, part: &Part) -> u32 {
        let same = self.parts.iter().filter(|other| other.name == part.name);
        same.fold(0, |sum, part| sum.saturating_add(part.units))
    }

    pub(super) fn what(&self) -> What {
        self.what
    }

    pub(super) fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Whether it is about one counter.
    pub(super) fn is_of_one_counter(&self) -> bool {
        self.parts.windows(2).all(|two| two[0].name == two[1].name)
    }

    /// The same for each counter.
    pub(super) fn by_counter(self) -> Vec<Self> {
        self.by(|one, other| one == other)
    }

    /// The same for each owner of counters.
    pub(super) fn by_owner(self) -> Vec<Self> {
        self.by(|one, other| one.tag() == other.tag())
    }

    fn by(self, is_together: impl Fn(&Name, &Name) -> bool) -> Vec<Self> {
        let mut items: Vec<Self> = Vec::with_capacity(1);
        for part in self.parts {
            let same = |item: &&mut Self| {
                item.name()
                    .is_some_and(|name| is_together(&name, &part.name))
            };
            match items.iter_mut().find(same) {
                Some(item) => item.parts.push(part),
                None => items.push(Self::of(self.what, &[part])),
            }
        }
        items
    }

    /// Whether it changes totals.
    pub(super) fn is_of_totals(&self) -> bool {
        self.what.is_change()
    }

    fn moved(&self) -> impl Iterator<Item = &Part> {
        self.parts.iter().filter(|part| match self.what {
            What::Decide { .. } => part.kind == TOTAL && part.units > 0,
            What::GiveBack => part.kind == TOTAL,
            What::Change | What::ChangeBy { .. } => ![READ, OVER].contains(&part.kind),
            _ => false,
        })
    }

    /// Whether it takes or moves totals.
    pub(super) fn moves_totals(&self) -> bool {
        self.moved().next().is_some()
    }

    /// What marks the totals that this takes or moves, if any: nobody knows whether it has.
    pub(super) fn doubt(&self) -> Option<Self> {
        let moved = self.moved();
        let parts: SmallVec<[Part; 6]> = moved
            .map(|part| Part::change(part.name, Change::Doubt, 0))
            .collect();
        (!parts.is_empty()).then_some(Self {
            what: What::Change,
            parts,
        })
    }

    /// Whose units of totals this takes or closes: of which era.
    pub(super) fn eras(&self) -> impl Iterator<Item = (Name, u32)> {
        self.parts.iter().filter_map(|part| {
            let is_total = part.kind == TOTAL && part.units > 0;
            let era = match self.what {
                What::Decide { .. } => is_total.then_some(part.more),
                What::GiveBack => is_total.then(|| u32::try_from(part.a).unwrap_or(0)),
                What::Change | What::ChangeBy { .. } => part.era(),
                _ => None,
            };
            era.map(|era| (part.name, era))
        })
    }

    /// The units that this says were taken without the store, as far as they are to be told again.
    pub(super) fn again(
        &self,
        again: impl Fn(Name, u32, u32, u32) -> Option<(u32, u32)>,
    ) -> Option<Self> {
        let is_take = |part: &&Part| self.what.is_change() && part.kind == TAKE;
        let taken = self.parts.iter().filter(is_take).filter_map(|part| {
            let round = u32::try_from(part.a).ok()?;
            let (era, units) = again(part.name, part.era()?, round, part.units)?;
            Some(Part::change(part.name, Change::Take { units, round }, era))
        });
        let parts: SmallVec<[Part; 6]> = taken.collect();
        (!parts.is_empty()).then_some(Self {
            what: What::Change,
            parts,
        })
    }

    /// What undoes this decision after it was admitted. `None` when it took nothing.
    pub(super) fn undo(&self, answer: &Answer) -> Option<Self> {
        let Some(Verdict::Admitted(readings)) = &answer.verdict else {
            return None;
        };
        let parts: SmallVec<[Part; 6]> = self
            .parts
            .iter()
            .zip(readings)
            .filter(|(part, reading)| part.units > 0 && (!reading.is_over() || part.kind == TOTAL))
            .flat_map(|(part, reading)| {
                if part.kind == TOTAL {
                    let back = Part {
                        a: part.more.into(),
                        b: reading.granted.into(),
                        ..*part
                    };
                    return iter::once(back).chain(None);
                }
                let step = answer.store_us / part.a.max(1);
                let at = |units, ahead| Part {
                    units,
                    b: if part.kind == SLIDING {
                        step + ahead
                    } else {
                        part.b
                    },
                    ..*part
                };
                // What was granted beyond the cost lies a step ahead.
                let more = (reading.granted > 0).then(|| at(reading.granted, 1));
                iter::once(at(part.units, 0)).chain(more)
            })
            .collect();
        (!parts.is_empty()).then_some(Self {
            what: What::GiveBack,
            parts,
        })
    }
}
