//! The store's clock, as this gateway expects it: what it showed last, and the monotonic time
//! since. A clock that jumps is noticed, and the gateway's own counters are not led astray.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::clock::Clock;
use crate::limit::Moment;

/// What the store's clock may be off from what was expected of it, microseconds.
pub(super) const JUMP_US: u64 = 1_000_000;

/// Whose time decides.
#[derive(Clone, Copy, Debug)]
pub enum TimeSource {
    /// The server's clock; this process's own says how far it has gone since an answer.
    Server(Clock),
    /// The monotonic part of the moment that each call is given: for tests.
    Caller,
}

impl TimeSource {
    /// The time that a script is told, for a simulated clock.
    pub(super) fn told_us(self, now: Moment) -> Option<u64> {
        matches!(self, Self::Caller).then_some(now.mono_us)
    }

    /// What time it is by now, for what is asked after a while.
    pub(super) fn later(self, then: Moment) -> Moment {
        match self {
            Self::Server(clock) => clock.now(),
            Self::Caller => then,
        }
    }

    /// This process's monotonic time; `None` for a simulated clock.
    pub(super) fn mono_us(self) -> Option<u64> {
        match self {
            Self::Server(clock) => Some(clock.now().mono_us),
            Self::Caller => None,
        }
    }
}

/// The clock of a part of the store.
#[derive(Debug)]
pub(super) struct StoreTime {
    source: TimeSource,
    /// Store time less monotonic time, at most; `i64::MIN` before the first answer.
    ahead_us: AtomicI64,
    /// How far the store's clock has jumped since the first answer.
    jumped_by_us: AtomicI64,
    /// When it last did, monotonic; 0: never.
    jumped_at_us: AtomicU64,
    noting: Mutex<()>,
}

impl StoreTime {
    pub(super) fn new(source: TimeSource) -> Self {
        Self {
            source,
            ahead_us: AtomicI64::new(i64::MIN),
            jumped_by_us: AtomicI64::new(0),
            jumped_at_us: AtomicU64::new(0),
            noting: Mutex::new(()),
        }
    }

    /// What the store's clock shows now, as far as is known; before it has been seen, the wall
    /// clock.
    pub(super) fn expected_us(&self, now: Moment) -> u64 {
        match (self.source, self.known(now)) {
            (TimeSource::Caller, _) => now.mono_us,
            (TimeSource::Server(_), Some(expected_us)) => expected_us,
            (TimeSource::Server(_), None) => now.unix_us,
        }
    }

    /// What the store's clock shows now, if it has been seen.
    pub(super) fn known(&self, now: Moment) -> Option<u64> {
        let ahead_us = self.ahead_us.load(Ordering::Relaxed);
        match self.source {
            TimeSource::Server(_) if ahead_us != i64::MIN => {
                now.mono_us.checked_add_signed(ahead_us)
            }
            TimeSource::Server(_) | TimeSource::Caller => None,
        }
    }

    /// A time of the store by the clock of this gateway's own counters, which does not jump.
    pub(super) fn framed_us(&self, store_us: u64) -> u64 {
        store_us.saturating_add_signed(-self.jumped_by_us.load(Ordering::Relaxed))
    }

    /// A time of the store as a moment of the gateway's own counters.
    pub(super) fn framed(&self, store_us: u64) -> Moment {
        Moment {
            mono_us: self.framed_us(store_us),
            unix_us: store_us,
        }
    }

    /// The step of the gateway's own counters for a step of the store's.
    pub(super) fn framed_step(&self, step: u64, step_us: u64) -> u64 {
        match self.jumped_by_us.load(Ordering::Relaxed) {
            0 => step,
            // Rounded up, as the way there rounds down: so that it leads back to where it began.
            _ => self
                .framed_us(step.saturating_mul(step_us))
                .div_ceil(step_us.max(1)),
        }
    }

    /// The step of the store's for one of the gateway's own counters.
    pub(super) fn store_step(&self, framed: u64, step_us: u64) -> u64 {
        match self.jumped_by_us.load(Ordering::Relaxed) {
            0 => framed,
            by_us => framed.saturating_mul(step_us).saturating_add_signed(by_us) / step_us.max(1),
        }
    }

    /// When the store's clock last jumped, monotonic microseconds.
    pub(super) fn jumped_at_us(&self) -> Option<u64> {
        Some(self.jumped_at_us.load(Ordering::Relaxed)).filter(|at| *at > 0)
    }

    /// Notes what the store's clock showed in an answer to a command of `sent_us` (monotonic).
    /// What is then expected of it is never later than what it shows, so that no script
    /// outlives the call that waits for it. Whether the clock has jumped.
    pub(super) fn note(&self, sent_us: u64, store_us: u64) -> bool {
        let TimeSource::Server(clock) = self.source else {
            return false;
        };
        let heard_us = clock.now().mono_us;
        let difference = |mono_us: u64| {
            let (store, mono) = (i64::try_from(store_us), i64::try_from(mono_us));
            store.unwrap_or(i64::MAX) - mono.unwrap_or(i64::MAX)
        };
        // The script ran at some time between sending and hearing.
        let (least, most) = (difference(heard_us), difference(sent_us.min(heard_us)));
        let known = self.ahead_us.load(Ordering::Relaxed);
        if known >= least && known <= most {
            return false;
        }
        let _noting = self.noting.lock();
        let known = self.ahead_us.load(Ordering::Relaxed);
        let new = if known == i64::MIN {
            least
        } else {
            known.clamp(least, most)
        };
        self.ahead_us.store(new, Ordering::Relaxed);
        if known == i64::MIN || new.abs_diff(known) <= JUMP_US {
            return false;
        }
        self.jumped_by_us.fetch_add(new - known, Ordering::Relaxed);
        self.jumped_at_us.store(heard_us.max(1), Ordering::Relaxed);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moment(mono_us: u64) -> Moment {
        Moment {
            mono_us,
            unix_us: 0,
        }
    }

    #[test]
    fn what_is_expected_is_never_later_than_what_was_shown() {
        let clock = Clock::start();
        let time = StoreTime::new(TimeSource::Server(clock));
        assert_eq!(time.known(moment(5)), None);
        let sent_us = clock.now().mono_us;
        assert!(!time.note(sent_us, 10_000_000_000));
        let known = time.known(clock.now()).unwrap();
        assert!(known >= 10_000_000_000);
        assert!(time.known(moment(sent_us)).unwrap() <= 10_000_000_000);
    }

    #[test]
    fn a_jump_is_noticed_and_own_counters_go_on() {
        let clock = Clock::start();
        let time = StoreTime::new(TimeSource::Server(clock));
        let hour_us = 3_600_000_000;
        let begun_us = clock.now().mono_us;
        time.note(begun_us, 10 * hour_us);
        let before = time.framed_us(time.expected_us(clock.now()));
        assert!(time.note(clock.now().mono_us, 11 * hour_us));
        assert!(time.jumped_at_us().is_some());
        let after = time.framed_us(time.expected_us(clock.now()));
        let took_us = clock.now().mono_us - begun_us;
        assert!(after >= before && after - before < JUMP_US + took_us);
        let step = time.framed_step(11 * hour_us / 20_000, 20_000);
        assert!(step.abs_diff(10 * hour_us / 20_000) <= 50 + took_us / 20_000);
    }

    #[test]
    fn a_step_of_ours_is_the_same_after_a_way_to_the_store_and_back() {
        let clock = Clock::start();
        for by_us in [3_600_012_345, 5_000_001] {
            let time = StoreTime::new(TimeSource::Server(clock));
            time.note(clock.now().mono_us, 10_000_000_000);
            assert!(time.note(clock.now().mono_us, 10_000_000_000 + by_us));
            for step_us in [20_000, 60_000, 1_200_000] {
                for step in 10_000..10_050 {
                    let there = time.store_step(step, step_us);
                    assert_eq!(time.framed_step(there, step_us), step);
                }
            }
        }
    }

    #[test]
    fn a_slow_answer_is_no_jump() {
        let clock = Clock::start();
        let time = StoreTime::new(TimeSource::Server(clock));
        let now_us = clock.now().mono_us;
        time.note(now_us, 10_000_000_000);
        // Sent five seconds ago, run four seconds ago.
        assert!(!time.note(now_us - 5_000_000, 10_000_000_000 - 4_000_000));
    }
}
