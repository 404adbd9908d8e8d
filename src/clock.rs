//! The one place that reads time.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::limit::Moment;

/// The process's clock.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// A clock whose monotonic time begins now.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the one place that reads time")]
    pub fn start() -> Self {
        Self {
            start: Instant::now(),
        }
    }

    /// Now.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the one place that reads time")]
    pub fn now(&self) -> Moment {
        Moment {
            // An hour ahead, so that no window reaches back before the clock's beginning.
            mono_us: u64::try_from(self.start.elapsed().as_micros())
                .unwrap_or(u64::MAX)
                .saturating_add(3_600_000_000),
            unix_us: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| {
                    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
                }),
        }
    }
}
