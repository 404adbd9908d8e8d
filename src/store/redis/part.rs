//! One counter in what goes to the script: `script/counters.lua` says what the numbers mean.

use std::time::Duration;

use super::name::Name;
use crate::limit::total::{Change, TotalCharge};
use crate::limit::{Span, sliding};

/// Units asked of one counter, or given back to it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    pub(super) name: Name,
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
pub(super) const SLIDING: u8 = 0;
const DAY: u8 = 1;
pub(super) const RUNNING: u8 = 2;
pub(super) const TOTAL: u8 = 3;
/// Numbers of changes: those that come in any order, the one that is none, and those of gateways
/// alone.
const ADD: u8 = 0;
const LOWER: u8 = 1;
const GIVE_BACK: u8 = 2;
const DOUBT: u8 = 3;
pub(super) const READ: u8 = 9;
const KEEP: u8 = 10;
pub(super) const TAKE: u8 = 11;
const GONE: u8 = 13;
pub(super) const OVER: u8 = 14;
const HELD: u8 = 15;

impl Part {
    /// Units asked of a total.
    pub(super) fn total(name: Name, charge: &TotalCharge, era: u32) -> Self {
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
    pub(super) fn era(&self) -> Option<u32> {
        let is_of_units = [GIVE_BACK, KEEP, TAKE].contains(&self.kind);
        is_of_units.then(|| u32::try_from(self.b).unwrap_or(0))
    }
}

fn micros_of(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
