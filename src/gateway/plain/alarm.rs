//! One timer for all the waits of a connection's calls: set anew only when it fires, which for
//! most calls is never.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

use crate::limit::Moment;

/// The timer.
#[derive(Debug)]
pub(in crate::gateway) struct Alarm {
    /// One instant by both clocks, which go alike.
    began: Instant,
    began_us: u64,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Alarm {
    /// A timer, `now`.
    pub(in crate::gateway) fn new(now: Moment) -> Self {
        Self {
            began: Instant::now(),
            began_us: now.mono_us,
            timer: None,
        }
    }

    /// Until then, monotonic microseconds.
    pub(in crate::gateway) fn poll(&mut self, cx: &mut Context<'_>, due_us: u64) -> Poll<()> {
        let wait = Duration::from_micros(due_us.saturating_sub(self.began_us));
        // Without an end that a clock knows, it is a day.
        let due = self.began.checked_add(wait);
        let due = due.unwrap_or_else(|| Instant::now() + Duration::from_secs(86_400));
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(due)));
        if timer.deadline() > due {
            timer.as_mut().reset(due);
        }
        loop {
            ready!(timer.as_mut().poll(cx));
            if timer.deadline() >= due {
                return Poll::Ready(());
            }
            // It was an earlier wait's.
            timer.as_mut().reset(due);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_wait_has_its_own_end() {
        let now = Moment {
            mono_us: 7_000_000,
            unix_us: 0,
        };
        let mut alarm = Alarm::new(now);
        let began = Instant::now();
        for seconds in [10, 12, 12, 30] {
            // One that is over before its end.
            let early = poll_fn(|cx| alarm.poll(cx, 7_000_000 + (seconds - 1) * 1_000_000));
            let early = tokio::time::timeout(Duration::from_millis(5), early);
            assert!(early.await.is_err() || seconds == 12);
            poll_fn(|cx| alarm.poll(cx, 7_000_000 + seconds * 1_000_000)).await;
            assert_eq!(began.elapsed().as_secs(), seconds);
        }
    }
}
