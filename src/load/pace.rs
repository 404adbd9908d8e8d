//! When calls are due. An open loop: a slow answer does not put off the calls after it, so that
//! it cannot hide what they would have waited.

use std::time::Duration;

/// Arrivals at even distances, at a rate that stays or changes evenly.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// Calls each second at the start.
    pub from: f64,
    /// At the end.
    pub to: f64,
    /// How long calls are due.
    pub lasts: Duration,
}

impl Pace {
    /// When the call of this number is due, from the start on; `None`: after the end.
    #[must_use]
    #[expect(
        clippy::cast_precision_loss,
        reason = "a count of calls is far below 2^52"
    )]
    pub fn due(&self, number: u64) -> Option<Duration> {
        let n = number as f64;
        // n = from * t + growth * t²
        let growth = (self.to - self.from) / (2.0 * self.lasts.as_secs_f64());
        let root = (self.from * self.from + 4.0 * growth * n).max(0.0).sqrt();
        // The form that does not divide by a growth of nothing.
        let seconds = if number == 0 {
            0.0
        } else {
            2.0 * n / (self.from + root)
        };
        let due = Duration::try_from_secs_f64(seconds).ok()?;
        let is_beyond = growth < 0.0 && self.from * self.from + 4.0 * growth * n < 0.0;
        (due < self.lasts && !is_beyond).then_some(due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace(from: f64, to: f64) -> Pace {
        Pace {
            from,
            to,
            lasts: Duration::from_secs(10),
        }
    }

    fn count(pace: Pace, until: f64) -> usize {
        (0..)
            .map_while(|n| pace.due(n))
            .filter(|due| due.as_secs_f64() < until)
            .count()
    }

    #[test]
    fn a_rate_gives_its_calls_each_second() {
        let even = pace(500.0, 500.0);
        assert_eq!(count(even, 10.0), 5_000);
        assert!(count(even, 3.0).abs_diff(1_500) <= 1);
    }

    #[test]
    fn a_ramp_grows_evenly() {
        let ramp = pace(0.0, 1_000.0);
        assert!(count(ramp, 10.0).abs_diff(5_000) <= 1);
        assert!(count(ramp, 5.0).abs_diff(1_250) <= 2);
        let down = pace(1_000.0, 0.0);
        assert!(count(down, 10.0).abs_diff(5_000) <= 1);
        assert!(count(down, 5.0).abs_diff(3_750) <= 2);
    }

    #[test]
    fn no_call_is_due_before_the_one_before_it() {
        for pace in [pace(1.0, 1.0), pace(0.0, 777.0), pace(900.0, 3.0)] {
            let due: Vec<_> = (0..).map_while(|n| pace.due(n)).collect();
            assert!(due.is_sorted(), "{pace:?}");
            assert!(!due.is_empty());
        }
    }
}
