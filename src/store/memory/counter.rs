//! One counter of any kind.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::limit::calendar::Day;
use crate::limit::sliding::Sliding;
use crate::limit::slots::{Slots, TASK_WAIT};
use crate::limit::{Charge, CounterKey, Moment, Span, Taken};

/// What is stored under a key.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::store) enum Counter {
    /// Of a sliding window.
    Sliding(Sliding),
    /// Of a calendar day.
    Day(Day),
    /// Of running tasks. Boxed: the others set the size of a table entry.
    Slots(Box<Slots>),
}

impl Counter {
    /// An empty counter for this span.
    pub(in crate::store) fn new(span: Span, now: Moment) -> Self {
        let mut counter = match span {
            Span::Sliding { .. } => Self::Sliding(Sliding::new()),
            Span::Day { .. } => Self::Day(Day::default()),
            Span::Running => Self::Slots(Box::default()),
        };
        counter.advance(span, now);
        counter
    }

    /// Moves the counter to `now`; afterwards [`Counter::used`] holds.
    pub(in crate::store) fn advance(&mut self, span: Span, now: Moment) {
        match (&mut *self, span) {
            (Self::Sliding(sliding), Span::Sliding { window_us }) => {
                sliding.advance(window_us, now.mono_us)
            }
            (Self::Day(day), Span::Day { start_us, end_us }) => day.advance(start_us, end_us),
            (Self::Slots(slots), Span::Running) => slots.expire(now.mono_us),
            // A limit keeps its kind of window for as long as it keeps its name.
            _ => *self = Self::new(span, now),
        }
    }

    /// Units that count.
    pub(in crate::store) fn used(&self) -> u32 {
        match self {
            Self::Sliding(sliding) => sliding.used(),
            Self::Day(day) => day.used(),
            Self::Slots(slots) => slots.used(),
        }
    }

    /// Slots in use; 0 for the other kinds.
    pub(in crate::store) fn slots(&self) -> usize {
        match self {
            Self::Slots(slots) => usize::try_from(slots.used()).unwrap_or(usize::MAX),
            Self::Sliding(_) | Self::Day(_) => 0,
        }
    }

    /// Takes the cost of this charge.
    pub(in crate::store) fn take(&mut self, charge: &Charge) -> Taken {
        match self {
            Self::Sliding(sliding) => Taken::Step(sliding.take(charge.cost)),
            Self::Day(day) => Taken::Day(day.take(charge.cost)),
            Self::Slots(slots) => Taken::Slot(slots.take(charge.key, charge.cost)),
        }
    }

    /// Takes the cost of this charge as it was taken elsewhere.
    #[cfg(feature = "gateway")]
    pub(in crate::store) fn take_as(&mut self, charge: &Charge, taken: Taken) {
        match (self, taken) {
            (Self::Slots(slots), Taken::Slot(id)) => slots.take_as(id, charge.key, charge.cost),
            (counter, _) => {
                counter.take(charge);
            }
        }
    }

    /// Gives back what this charge took. How many units were there to be given back.
    pub(in crate::store) fn give_back(&mut self, charge: &Charge, taken: Taken) -> u32 {
        match (self, taken, charge.span) {
            (Self::Sliding(sliding), Taken::Step(step), Span::Sliding { window_us }) => {
                return sliding.give_back(window_us, step, charge.cost);
            }
            (Self::Day(day), Taken::Day(end_us), _) => day.give_back(end_us, charge.cost),
            (Self::Slots(slots), Taken::Slot(id), _) => {
                slots.release(id);
            }
            // The counter is of another kind now, which the units were not taken from.
            _ => {}
        }
        charge.cost
    }

    /// The numbers of the slots whose calls still run.
    pub(in crate::store) fn running(&self) -> impl Iterator<Item = u64> {
        let slots = match self {
            Self::Slots(slots) => Some(slots.running()),
            Self::Sliding(_) | Self::Day(_) => None,
        };
        slots.into_iter().flatten()
    }

    /// Frees a slot whose call's process is gone.
    pub(in crate::store) fn abandon(&mut self, slot: u64) {
        if let Self::Slots(slots) = self {
            slots.abandon(slot);
        }
    }

    /// Keeps a slot for a task.
    pub(in crate::store) fn hold(&mut self, taken: Taken, task: &str, until_us: u64) {
        if let (Self::Slots(slots), Taken::Slot(id)) = (self, taken) {
            slots.hold(id, task, until_us);
        }
    }

    /// Frees the slot of a caller's task. Whether there was one.
    pub(in crate::store) fn finish(&mut self, caller: CounterKey, task: &str, now: Moment) -> bool {
        match self {
            Self::Slots(slots) => {
                slots.expire(now.mono_us);
                slots.finish(caller, task)
            }
            Self::Sliding(_) | Self::Day(_) => false,
        }
    }

    /// How long until `cost` units fit; `None`: never.
    pub(in crate::store) fn wait(
        &self,
        charge: &Charge,
        cost: u32,
        now: Moment,
    ) -> Option<Duration> {
        if cost.max(1) > charge.quota {
            return None;
        }
        match (self, charge.span) {
            (Self::Sliding(sliding), Span::Sliding { window_us }) => sliding
                .wait_us(charge.quota, cost, window_us, now.mono_us)
                .map(Duration::from_micros),
            (Self::Day(_), _) => Some(self.resets_in(charge.span, now)),
            (Self::Slots(_) | Self::Sliding(_), _) => Some(TASK_WAIT),
        }
    }

    /// Until units come free; zero when none are taken, and for tasks.
    pub(in crate::store) fn resets_in(&self, span: Span, now: Moment) -> Duration {
        let wait_us = match (self, span) {
            (Self::Sliding(sliding), Span::Sliding { window_us }) => {
                sliding.resets_in_us(window_us, now.mono_us)
            }
            (Self::Day(day), Span::Day { start_us, end_us }) if day.used() > 0 => {
                day.ends_in_us(end_us.saturating_sub(start_us), now.unix_us)
            }
            _ => 0,
        };
        Duration::from_micros(wait_us)
    }

    /// Forgets all units and slots.
    pub(in crate::store) fn reset(&mut self, span: Span, now: Moment) {
        match self {
            // Numbers of slots go on: a call that ends later must not free another's.
            Self::Slots(slots) => slots.clear(),
            Self::Sliding(_) | Self::Day(_) => *self = Self::new(span, now),
        }
    }

    /// Whether the counter can go.
    pub(in crate::store) fn is_idle(&mut self, now: Moment) -> bool {
        match self {
            Self::Sliding(sliding) => sliding.is_idle(now.mono_us),
            Self::Day(day) => day.is_idle(now.unix_us),
            Self::Slots(slots) => {
                slots.expire(now.mono_us);
                slots.used() == 0
            }
        }
    }
}
