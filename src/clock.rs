//! The one place that reads time.

use std::time::{SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

use crate::limit::Moment;

/// The process's clock. Its monotonic time is the system's: counters that another process takes
/// over mean the same there.
#[derive(Clone, Copy, Debug)]
pub struct Clock(());

impl Clock {
    /// A clock.
    #[must_use]
    pub fn start() -> Self {
        Self(())
    }

    /// Now, as a later moment of the same call: the wall clock moves on with the other one,
    /// which is the only one that is read.
    #[must_use]
    pub fn since(&self, earlier: Moment) -> Moment {
        let mono_us = self.mono_us();
        Moment {
            mono_us,
            unix_us: earlier
                .unix_us
                .saturating_add(mono_us.saturating_sub(earlier.mono_us)),
        }
    }

    // An hour ahead, so that no window reaches back before the clock's beginning.
    fn mono_us(&self) -> u64 {
        let since_boot = clock_gettime(ClockId::Monotonic);
        let seconds = u64::try_from(since_boot.tv_sec).unwrap_or(0);
        let micros = u64::try_from(since_boot.tv_nsec).unwrap_or(0) / 1000;
        seconds
            .saturating_mul(1_000_000)
            .saturating_add(micros)
            .saturating_add(3_600_000_000)
    }

    /// Now.
    #[must_use]
    pub fn now(&self) -> Moment {
        Moment {
            mono_us: self.mono_us(),
            unix_us: unix_us(),
        }
    }
}

/// The wall clock, Unix microseconds.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "the one place that reads time")]
pub fn unix_us() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
        })
}
