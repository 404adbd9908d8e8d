//! The charges one call asks for, and the answer.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use super::total::TotalCharge;
use super::{CounterKey, OnStoreFailure, Scope};

/// Index of a limit in its ruleset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LimitId(pub u32);

/// The window of a charge, resolved at the moment of the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Span {
    /// A sliding window of this length.
    Sliding {
        /// Length in microseconds.
        window_us: u64,
    },
    /// A calendar day.
    Day {
        /// When the day began, Unix microseconds.
        start_us: u64,
        /// When it ends.
        end_us: u64,
    },
    /// A task slot: held until released.
    Running,
}

/// Where an admitted charge's units were taken from: what a give-back needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Taken {
    /// The step of a sliding window, by number.
    Step(u64),
    /// The day that ends at this time, Unix microseconds.
    Day(u64),
    /// A slot, by its number.
    Slot(u64),
}

impl Taken {
    /// The number of the step or slot, or the end of the day.
    #[must_use]
    pub fn place(self) -> u64 {
        match self {
            Self::Step(at) | Self::Day(at) | Self::Slot(at) => at,
        }
    }
}

/// Units asked of one counter.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Charge {
    /// The limit, for the one who asked.
    pub limit: LimitId,
    /// The counter.
    pub key: CounterKey,
    /// Names the limit's overflow counter, which new keys share when there are too many.
    pub overflow: CounterKey,
    /// Units per window.
    pub quota: u32,
    /// Units asked for. 0 takes nothing and denies when the counter is full.
    pub cost: u32,
    /// The window.
    pub span: Span,
    /// Which share of the counter bound the counter belongs to.
    pub scope: Scope,
    /// Counted, but never denies.
    pub report: bool,
    /// What to do when the store cannot be asked.
    pub on_store_failure: OnStoreFailure,
    /// The app is configured or has had a recent 2xx: its counters never share the overflow.
    pub known: bool,
    /// Filled by the store when the units were taken; taken out when they are given back, so
    /// that they go back once.
    pub taken: Option<Taken>,
    /// Filled by the store: the units were taken from the overflow counter.
    pub shared: bool,
}

/// The charges of one call: all or nothing.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Plan {
    /// The charges, in the order in which limits are named to the caller.
    pub charges: SmallVec<[Charge; 6]>,
    /// What it asks of the app's totals. No total is asked twice.
    pub totals: Vec<TotalCharge>,
    /// The key of the address that asked: bounds how many new counters one address makes.
    pub origin: Option<CounterKey>,
    /// The key of the app that is called: its counters are kept together.
    pub app: Option<CounterKey>,
}

/// What is left of one limit after a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Room {
    /// Index into [`Plan::charges`].
    pub charge: usize,
    /// Units left.
    pub left: u32,
    /// Until units come free again (for a sliding window: the oldest units in it; for a day:
    /// its end). Zero when the counter is empty, and for tasks.
    pub resets_in: Duration,
}

/// The store's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Decision {
    /// Every charge was taken (report-only ones where there was room).
    Admit {
        /// The enforced limit nearest to exhaustion, by share of its quota.
        nearest: Option<Room>,
        /// Report-only charges that would have denied: bit i is charge i.
        reported: u64,
    },
    /// Nothing was taken.
    Deny {
        /// The denying charge with the longest wait.
        charge: usize,
        /// Units left in that counter.
        left: u32,
        /// When a retry can succeed; `None`: never, the cost is larger than the quota.
        /// At most the window's length. For tasks: one second, since nobody knows.
        retry_after: Option<Duration>,
    },
    /// Nothing was taken: no rate denies, and a total has no room.
    Full {
        /// Which of [`Plan::totals`].
        total: usize,
    },
}

/// The denial with the longest wait, the first of equals: `None`, never, is the longest of all.
pub(crate) fn longest_wait(
    denials: impl Iterator<Item = (usize, Option<Duration>)>,
) -> Option<(usize, Option<Duration>)> {
    denials.reduce(|known, other| {
        let longer = match (other.1, known.1) {
            (_, None) => false,
            (None, Some(_)) => true,
            (Some(wait), Some(known)) => wait > known,
        };
        if longer { other } else { known }
    })
}

/// The charge with the smallest share of its quota left, the first of equals.
pub(crate) fn smallest_share(
    charges: &[Charge],
    left: impl Iterator<Item = (usize, u32)>,
) -> Option<(usize, u32)> {
    left.reduce(|known, other| {
        let nearer = u64::from(other.1) * u64::from(charges[known.0].quota)
            < u64::from(known.1) * u64::from(charges[other.0].quota);
        if nearer { other } else { known }
    })
}

/// The bit of a charge in [`Decision::Admit`]'s `reported`; none above the sixty-fourth.
pub(crate) fn reported_bit(index: usize) -> u64 {
    u32::try_from(index)
        .ok()
        .and_then(|bit| 1_u64.checked_shl(bit))
        .unwrap_or(0)
}
