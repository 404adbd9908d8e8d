//! The sliding window: units of the last window in steps of a fiftieth of it.
//!
//! A step stops counting when its end is a window old, so that no interval as long as the window
//! ever holds more than the quota; what that holds back is at most one step. Knows no keys.

use serde::{Deserialize, Serialize};

/// Steps to a window.
pub const STEPS: u64 = 50;

/// Steps that count at one time: those of a whole window and the one that is being filled.
const RING: usize = 51;
const RING_STEPS: u64 = 51;

/// Steps that a counter keeps without a ring of its own.
const FEW: usize = 3;

/// The length of a step of this window, microseconds.
#[must_use]
pub fn step_us(window_us: u64) -> u64 {
    // Rounded up: fifty steps are never shorter than the window.
    window_us.div_ceil(STEPS).max(1)
}

/// Units by step. The slot of a step is its number modulo the ring.
#[derive(Clone, Debug)]
enum Steps {
    /// Most counters (one caller, a call now and then) need no more, and no allocation.
    Few { slots: [u8; FEW], units: [u32; FEW] },
    /// At most 65,535 units a step: 102 bytes keep a million busy counters within their bound.
    Shorts(Box<[u16; RING]>),
    /// Any number.
    Words(Box<[u32; RING]>),
}

/// The slot of a step.
fn slot_of(step: u64) -> u8 {
    // The remainder is below 51.
    u8::try_from(step % RING_STEPS).unwrap_or(0)
}

/// How many steps older `slot` is than the newest.
fn age_of(slot: u8, newest: u8) -> u64 {
    (u64::from(newest) + RING_STEPS - u64::from(slot)) % RING_STEPS
}

impl Steps {
    const EMPTY: Self = Self::Few {
        slots: [0; FEW],
        units: [0; FEW],
    };

    fn get(&self, slot: u8) -> u32 {
        match self {
            Self::Few { slots, units } => slots
                .iter()
                .zip(units)
                .filter(|(s, _)| **s == slot)
                .map(|(_, n)| *n)
                .sum(),
            Self::Shorts(ring) => u32::from(ring[usize::from(slot)]),
            Self::Words(ring) => ring[usize::from(slot)],
        }
    }

    fn set(&mut self, slot: u8, units: u32) {
        match self {
            Self::Few { slots, units: kept } => {
                let place = (0..FEW)
                    .find(|&i| kept[i] > 0 && slots[i] == slot)
                    .or_else(|| (0..FEW).find(|&i| kept[i] == 0));
                match place {
                    Some(i) => (slots[i], kept[i]) = (slot, units),
                    None => self.widen(slot, units),
                }
            }
            Self::Shorts(ring) => match u16::try_from(units) {
                Ok(units) => ring[usize::from(slot)] = units,
                Err(_) => self.widen(slot, units),
            },
            Self::Words(ring) => ring[usize::from(slot)] = units,
        }
    }

    /// The next larger form. At most twice in a counter's life.
    fn widen(&mut self, slot: u8, units: u32) {
        let mut words = [0; RING];
        for (slot, word) in (0_u8..).zip(&mut words) {
            *word = self.get(slot);
        }
        words[usize::from(slot)] = units;
        let fits = words.iter().all(|&word| u16::try_from(word).is_ok());
        *self = if fits {
            Self::Shorts(Box::new(
                words.map(|word| u16::try_from(word).unwrap_or(u16::MAX)),
            ))
        } else {
            Self::Words(Box::new(words))
        };
    }

    /// Forgets everything, keeping the ring.
    fn clear(&mut self) {
        match self {
            Self::Few { units, .. } => units.fill(0),
            Self::Shorts(ring) => ring.fill(0),
            Self::Words(ring) => ring.fill(0),
        }
    }

    /// Drops what leaves the window when it moves on by `by` steps (fewer than a ring) from
    /// `newest`, and says how many units that were.
    fn drop_oldest(&mut self, newest: u64, by: u64) -> u32 {
        match self {
            Self::Few { slots, units } => {
                let newest = slot_of(newest);
                let mut gone = 0;
                for (slot, units) in slots.iter().zip(units) {
                    if age_of(*slot, newest) + by >= RING_STEPS {
                        gone += std::mem::take(units);
                    }
                }
                gone
            }
            Self::Shorts(ring) => slots_from(newest + 1, by)
                .map(|slot| u32::from(std::mem::take(&mut ring[slot])))
                .sum(),
            Self::Words(ring) => slots_from(newest + 1, by)
                .map(|slot| std::mem::take(&mut ring[slot]))
                .sum(),
        }
    }

    /// The age of the step that takes the last of these units along when it leaves, oldest first.
    fn age_of_unit(&self, units: u32, newest: u64) -> Option<u64> {
        match self {
            Self::Few { slots, units: kept } => {
                let newest = slot_of(newest);
                let mut steps: [_; FEW] =
                    std::array::from_fn(|i| (age_of(slots[i], newest), kept[i]));
                steps.sort_unstable_by_key(|(age, _)| std::cmp::Reverse(*age));
                holder_of(units, steps.into_iter())
            }
            Self::Shorts(_) | Self::Words(_) => holder_of(units, self.oldest_first(newest)),
        }
    }

    /// Age and units of the steps that have any, oldest first.
    fn oldest_first(&self, newest: u64) -> impl Iterator<Item = (u64, u32)> {
        slots_from(newest.wrapping_add(1), RING_STEPS)
            .zip((0..RING_STEPS).rev())
            .map(|(slot, age)| (age, self.get(u8::try_from(slot).unwrap_or(0))))
            .filter(|(_, units)| *units > 0)
    }
}

/// The age of the step that holds the last of the first `units` units.
fn holder_of(units: u32, mut oldest_first: impl Iterator<Item = (u64, u32)>) -> Option<u64> {
    let mut left = units;
    oldest_first.find_map(|(age, kept)| {
        left = left.saturating_sub(kept);
        (kept > 0 && left == 0).then_some(age)
    })
}

/// The slots of `count` steps from `first` on.
fn slots_from(first: u64, count: u64) -> impl Iterator<Item = usize> {
    let start = usize::from(slot_of(first));
    let count = usize::try_from(count).unwrap_or(RING).min(RING);
    (start..start + count).map(|slot| if slot < RING { slot } else { slot - RING })
}

/// The units of one caller in the last window.
///
/// [`Sliding::advance`] comes before every other question about a moment.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(from = "Written", into = "Written")]
pub struct Sliding {
    /// The step that is being filled.
    newest: u64,
    step_us: u64,
    used: u32,
    steps: Steps,
}

/// A counter as another process reads it.
#[derive(Serialize, Deserialize)]
struct Written {
    newest: u64,
    step_us: u64,
    /// Age and units of the steps that have any.
    steps: Vec<(u64, u32)>,
}

impl From<Sliding> for Written {
    fn from(counter: Sliding) -> Self {
        Self {
            newest: counter.newest,
            step_us: counter.step_us,
            steps: counter.steps.oldest_first(counter.newest).collect(),
        }
    }
}

impl From<Written> for Sliding {
    fn from(written: Written) -> Self {
        let mut counter = Self {
            newest: written.newest,
            step_us: written.step_us,
            ..Self::new()
        };
        for (age, units) in written
            .steps
            .into_iter()
            .filter(|(age, _)| *age < RING_STEPS)
        {
            let units = units.min(u32::MAX - counter.used);
            let slot = slot_of(counter.newest % RING_STEPS + RING_STEPS - age);
            counter.used += units;
            counter
                .steps
                .set(slot, counter.steps.get(slot).saturating_add(units));
        }
        counter
    }
}

impl Default for Sliding {
    fn default() -> Self {
        Self::new()
    }
}

impl Sliding {
    /// A counter without units. Allocates nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            newest: 0,
            step_us: 0,
            used: 0,
            steps: Steps::EMPTY,
        }
    }

    /// Moves the window to `now_us`. A time before the last one leaves it where it is: what is
    /// then taken counts a little longer, never shorter.
    pub fn advance(&mut self, window_us: u64, now_us: u64) {
        let step_us = step_us(window_us);
        if self.step_us == 0 {
            self.step_us = step_us;
            self.newest = now_us / step_us;
        }
        self.move_to(now_us / self.step_us);
        if self.step_us != step_us {
            // Another window under the same key: what still counts is kept as if taken now.
            self.steps.clear();
            self.step_us = step_us;
            self.newest = now_us / step_us;
            self.steps.set(slot_of(self.newest), self.used);
        }
    }

    fn move_to(&mut self, step: u64) {
        let Some(by) = step.checked_sub(self.newest).filter(|&by| by > 0) else {
            return;
        };
        if self.used > 0 {
            if by >= RING_STEPS {
                self.steps.clear();
                self.used = 0;
            } else {
                self.used -= self.steps.drop_oldest(self.newest, by);
            }
        }
        self.newest = step;
    }

    /// Units that count.
    #[must_use]
    pub fn used(&self) -> u32 {
        self.used
    }

    /// Takes units; the step that holds them.
    pub fn take(&mut self, units: u32) -> u64 {
        let units = units.min(u32::MAX - self.used);
        if units > 0 {
            let slot = slot_of(self.newest);
            self.steps.set(slot, self.steps.get(slot) + units);
            self.used += units;
        }
        self.newest
    }

    /// Gives units back to the step from which they were taken, if that still counts. How many
    /// there were.
    pub fn give_back(&mut self, window_us: u64, step: u64, units: u32) -> u32 {
        let age = self.newest.checked_sub(step);
        if self.step_us == step_us(window_us) && age.is_some_and(|age| age < RING_STEPS) {
            let slot = slot_of(step);
            let there = self.steps.get(slot);
            let back = units.min(there);
            if back > 0 {
                self.steps.set(slot, there - back);
                self.used -= back;
            }
            return back;
        }
        0
    }

    /// Microseconds until `cost` units fit into `quota`: at least 1, at most the window. `None`
    /// when they never will. A cost of 0 waits for one unit.
    ///
    /// Units taken in the step at hand come free up to a step after a window: nobody is told to
    /// wait longer than the window, and who comes then may have to come once more, a step later.
    #[must_use]
    pub fn wait_us(&self, quota: u32, cost: u32, window_us: u64, now_us: u64) -> Option<u64> {
        let room_for = quota.checked_sub(cost.max(1))?;
        let too_many = self.used.saturating_sub(room_for);
        if too_many == 0 {
            return Some(1);
        }
        let age = self.steps.age_of_unit(too_many, self.newest);
        Some(age.map_or(1, |age| self.free_in(age, window_us, now_us)))
    }

    /// Microseconds until the oldest units come free; 0 when there are none.
    #[must_use]
    pub fn resets_in_us(&self, window_us: u64, now_us: u64) -> u64 {
        if self.used == 0 {
            return 0;
        }
        self.steps
            .age_of_unit(1, self.newest)
            .map_or(0, |age| self.free_in(age, window_us, now_us))
    }

    fn free_in(&self, age: u64, window_us: u64, now_us: u64) -> u64 {
        let free_at = self
            .newest
            .saturating_sub(age)
            .saturating_add(RING_STEPS)
            .saturating_mul(self.step_us);
        free_at.saturating_sub(now_us).clamp(1, window_us.max(1))
    }

    /// The steps that count, oldest first: number and units.
    pub fn steps(&self) -> impl Iterator<Item = (u64, u32)> {
        let steps = self.steps.oldest_first(self.newest);
        steps.map(|(age, units)| (self.newest.saturating_sub(age), units))
    }

    /// Whether nothing counts any more: the counter can go.
    #[must_use]
    pub fn is_idle(&self, now_us: u64) -> bool {
        self.used == 0 || (now_us / self.step_us.max(1)).saturating_sub(self.newest) >= RING_STEPS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const W: u64 = 1_000_000;
    const STEP: u64 = 20_000;

    fn at(counter: &mut Sliding, now_us: u64) -> u32 {
        counter.advance(W, now_us);
        counter.used()
    }

    #[test]
    fn a_step_stops_counting_when_its_end_is_a_window_old() {
        let mut counter = Sliding::new();
        at(&mut counter, 5 * STEP + 1);
        assert_eq!(counter.take(7), 5);
        assert_eq!(at(&mut counter, 6 * STEP + W - 1), 7);
        assert_eq!(at(&mut counter, 6 * STEP + W), 0);
    }

    #[test]
    fn every_form_of_the_steps_counts_the_same() {
        // One unit a step, then many: inline, short ring, word ring.
        for units in [1_u32, 70_000] {
            let mut counter = Sliding::new();
            for step in 0..200_u64 {
                let expected = u32::try_from(step.min(50)).unwrap() * units;
                assert_eq!(at(&mut counter, step * STEP), expected, "step {step}");
                counter.take(units);
            }
            assert_eq!(at(&mut counter, 300 * STEP), 0);
        }
    }

    #[test]
    fn units_go_back_to_their_step_while_it_counts() {
        let mut counter = Sliding::new();
        at(&mut counter, 0);
        let first = counter.take(3);
        at(&mut counter, 10 * STEP);
        counter.take(4);
        counter.give_back(W, first, 3);
        assert_eq!(counter.used(), 4);
        counter.give_back(W, first, 3);
        assert_eq!(counter.used(), 4, "the step is empty");
        at(&mut counter, 10 * STEP + 2 * W);
        counter.take(5);
        counter.give_back(W, 10, 4);
        assert_eq!(counter.used(), 5, "the step is long over");
    }

    #[test]
    fn the_wait_is_until_enough_of_the_oldest_steps_are_free() {
        let mut counter = Sliding::new();
        for step in 0..5 {
            at(&mut counter, step * STEP);
            counter.take(2);
        }
        let now = 4 * STEP;
        assert_eq!(counter.wait_us(10, 2, W, now), Some(51 * STEP - now));
        assert_eq!(counter.wait_us(10, 3, W, now), Some(52 * STEP - now));
        assert_eq!(counter.wait_us(10, 0, W, now), Some(51 * STEP - now));
        assert_eq!(
            counter.wait_us(10, 10, W, now),
            Some(W),
            "55 steps away: capped"
        );
        assert_eq!(counter.wait_us(10, 11, W, now), None);
        assert_eq!(
            counter.wait_us(4, 1, W, now),
            Some(54 * STEP - now),
            "a lowered quota"
        );
        assert_eq!(counter.resets_in_us(W, now), 51 * STEP - now);
    }

    #[test]
    fn another_window_keeps_what_counts() {
        let mut counter = Sliding::new();
        at(&mut counter, 0);
        counter.take(9);
        counter.advance(60 * W, W / 2);
        assert_eq!(counter.used(), 9);
        counter.advance(60 * W, 61 * W);
        assert_eq!(counter.used(), 9);
        counter.advance(60 * W, 62 * W + W / 2);
        assert_eq!(counter.used(), 0);
    }

    #[test]
    fn a_time_that_goes_back_frees_nothing() {
        let mut counter = Sliding::new();
        at(&mut counter, 5 * W);
        counter.take(1);
        assert_eq!(at(&mut counter, 0), 1);
        counter.take(1);
        assert_eq!(counter.used(), 2);
    }

    #[test]
    fn a_counter_that_was_written_and_read_counts_the_same() {
        for units in [1_u32, 70_000] {
            let mut counter = Sliding::new();
            for step in 0..200_u64 {
                at(&mut counter, step * STEP);
                counter.take(units);
                let text = serde_json::to_string(&counter).unwrap();
                let mut read: Sliding = serde_json::from_str(&text).unwrap();
                assert!(read.steps().eq(counter.steps()));
                for later in [0, 1, 25, 50, 51] {
                    let now = (step + later) * STEP;
                    let mut counter = counter.clone();
                    assert_eq!(at(&mut read.clone(), now), at(&mut counter, now));
                }
                at(&mut read, step * STEP);
                counter = read;
            }
        }
        let absurd =
            r#"{"newest":18446744073709551615,"step_us":0,"steps":[[50,4294967295],[0,9],[51,1]]}"#;
        let mut absurd: Sliding = serde_json::from_str(absurd).unwrap();
        absurd.advance(W, u64::MAX);
    }

    #[test]
    fn absurd_times_and_windows_do_not_panic() {
        for window in [0, 1, 49, W, u64::MAX] {
            for now in [0, 1, u64::MAX - 1, u64::MAX] {
                let mut counter = Sliding::new();
                counter.advance(window, now);
                let step = counter.take(u32::MAX);
                counter.take(u32::MAX);
                let _ = (
                    counter.wait_us(1, 1, window, now),
                    counter.resets_in_us(window, now),
                );
                counter.advance(window, u64::MAX);
                counter.give_back(window, step, 1);
                let _ = counter.is_idle(u64::MAX);
            }
        }
    }
}
