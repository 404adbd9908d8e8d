//! What goes to the script: `script/counters.lua` says what the bytes mean.

use std::iter;
use std::time::Duration;

use smallvec::SmallVec;

use super::name::Name;
use super::part::{OVER, Part, READ, RUNNING, SLIDING, TAKE, TOTAL};
use super::reply::{Answer, Verdict};
use crate::limit::total::Change;
use crate::limit::{KeyHasher, Plan, Span};

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
