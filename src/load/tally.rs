//! What came of the calls: counts and latencies, in all, by kind of call, and by second.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::ledger::Outcome;

/// The longest latency that is told apart, µs.
const LONGEST: u64 = 600_000_000;
/// Seconds of which each is kept.
const MAX_SECONDS: usize = 86_400;

/// Latencies, µs.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Latency {
    /// Calls.
    pub count: u64,
    /// Half took no longer.
    pub p50_us: u64,
    /// 90 of 100 took no longer.
    pub p90_us: u64,
    /// 99 of 100.
    pub p99_us: u64,
    /// 999 of 1,000.
    pub p999_us: u64,
    /// The longest.
    pub max_us: u64,
}

impl Latency {
    fn of(histogram: &Histogram<u64>) -> Self {
        let at = |quantile| histogram.value_at_quantile(quantile);
        Self {
            count: histogram.len(),
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: histogram.max(),
        }
    }
}

/// How calls ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Counts {
    /// Let through, and answered.
    pub admitted: u64,
    /// A limit was hit.
    pub denied: u64,
    /// Neither: an error, or no answer.
    pub failed: u64,
}

impl Counts {
    fn add(&mut self, outcome: Outcome<'_>) {
        *match outcome {
            Outcome::Admitted => &mut self.admitted,
            Outcome::Denied(_) => &mut self.denied,
            Outcome::Unknown => &mut self.failed,
        } += 1;
    }

    /// All of them.
    #[must_use]
    pub(super) fn all(self) -> u64 {
        self.admitted + self.denied + self.failed
    }
}

/// One second of the run.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Second {
    /// From the start.
    pub second: u64,
    /// How the calls ended that ended in it.
    #[serde(flatten)]
    pub counts: Counts,
    /// Of admitted calls, from when they were due.
    pub p50_us: u64,
    /// The same.
    pub p99_us: u64,
}

/// One point of the distribution of latencies.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Point {
    /// Of 100.
    pub percentile: f64,
    /// Latency, µs.
    pub us: u64,
}

#[derive(Debug)]
struct OfKind {
    counts: Counts,
    due: Histogram<u64>,
}

/// Everything counted.
#[derive(Debug)]
pub(super) struct Tally {
    /// In all.
    pub counts: Counts,
    /// Due, and not sent: the target or this program could not keep up.
    pub missed: u64,
    /// By status.
    pub statuses: BTreeMap<u16, u64>,
    /// Calls without an answer, by why.
    pub errors: BTreeMap<&'static str, u64>,
    due: Histogram<u64>,
    sent: Histogram<u64>,
    denied: Histogram<u64>,
    kinds: Vec<OfKind>,
    seconds: Vec<Second>,
    now: Second,
    of_now: Histogram<u64>,
}

/// How long one call took, µs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Took {
    /// From when it was due: with what it waited behind slow answers.
    pub from_due: u64,
    /// From when it was sent.
    pub from_sent: u64,
}

fn histogram() -> Result<Histogram<u64>, hdrhistogram::CreationError> {
    Histogram::new_with_bounds(1, LONGEST, 3)
}

impl Tally {
    /// An empty one, for so many kinds of calls.
    ///
    /// # Errors
    /// When a histogram cannot be made.
    pub(super) fn new(kinds: usize) -> Result<Self, hdrhistogram::CreationError> {
        let kind = || {
            Ok(OfKind {
                counts: Counts::default(),
                due: histogram()?,
            })
        };
        Ok(Self {
            counts: Counts::default(),
            missed: 0,
            statuses: BTreeMap::new(),
            errors: BTreeMap::new(),
            due: histogram()?,
            sent: histogram()?,
            denied: histogram()?,
            kinds: (0..kinds).map(|_| kind()).collect::<Result<_, _>>()?,
            seconds: Vec::new(),
            now: Second::default(),
            of_now: histogram()?,
        })
    }

    /// A call of this kind ended in this second of the run.
    pub(super) fn ended(&mut self, kind: usize, second: u64, outcome: Outcome<'_>, took: Took) {
        self.until(second);
        self.counts.add(outcome);
        self.now.counts.add(outcome);
        match outcome {
            Outcome::Admitted => {
                self.due.saturating_record(took.from_due);
                self.sent.saturating_record(took.from_sent);
                self.of_now.saturating_record(took.from_due);
            }
            Outcome::Denied(_) => self.denied.saturating_record(took.from_due),
            Outcome::Unknown => {}
        }
        if let Some(kind) = self.kinds.get_mut(kind) {
            kind.counts.add(outcome);
            if outcome == Outcome::Admitted {
                kind.due.saturating_record(took.from_due);
            }
        }
    }

    /// Ends the seconds before this one.
    pub(super) fn until(&mut self, second: u64) {
        while self.now.second < second && self.seconds.len() < MAX_SECONDS {
            let next = self.now.second + 1;
            self.now.p50_us = self.of_now.value_at_quantile(0.5);
            self.now.p99_us = self.of_now.value_at_quantile(0.99);
            self.seconds.push(std::mem::take(&mut self.now));
            self.of_now.reset();
            self.now.second = next;
        }
    }

    /// The last second that is over.
    #[must_use]
    pub(super) fn last(&self) -> Option<&Second> {
        self.seconds.last()
    }

    /// Every second that is over.
    #[must_use]
    pub(super) fn seconds(&self) -> &[Second] {
        &self.seconds
    }

    /// Of admitted calls, from when they were due.
    #[must_use]
    pub(super) fn since_due(&self) -> Latency {
        Latency::of(&self.due)
    }

    /// Of admitted calls, from when they were sent.
    #[must_use]
    pub(super) fn since_sent(&self) -> Latency {
        Latency::of(&self.sent)
    }

    /// Of denials, from when they were due.
    #[must_use]
    pub(super) fn denials(&self) -> Latency {
        Latency::of(&self.denied)
    }

    /// Of one kind of call.
    #[must_use]
    pub(super) fn kind(&self, kind: usize) -> (Counts, Latency) {
        self.kinds.get(kind).map_or_else(Default::default, |kind| {
            (kind.counts, Latency::of(&kind.due))
        })
    }

    /// How latencies are distributed, from when calls were due.
    #[must_use]
    pub(super) fn distribution(&self) -> Vec<Point> {
        const PERCENTILES: [f64; 15] = [
            0.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 97.5, 99.0, 99.5, 99.75, 99.9, 99.95, 99.99,
            100.0,
        ];
        let point = |percentile| Point {
            percentile,
            us: self.due.value_at_percentile(percentile),
        };
        PERCENTILES.map(point).to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn took(us: u64) -> Took {
        Took {
            from_due: us,
            from_sent: us / 2,
        }
    }

    #[test]
    fn a_second_has_its_own_figures() {
        let mut tally = Tally::new(1).unwrap();
        for us in 1..=100 {
            tally.ended(0, 0, Outcome::Admitted, took(us * 1_000));
        }
        tally.ended(0, 2, Outcome::Denied("x"), took(5));
        tally.until(3);
        let seconds = tally.seconds();
        assert_eq!(seconds.len(), 3);
        assert_eq!(seconds[0].counts.admitted, 100);
        assert!(seconds[0].p50_us.abs_diff(50_000) < 100);
        assert_eq!(seconds[1].counts.all(), 0);
        assert_eq!((seconds[2].counts.denied, seconds[2].p99_us), (1, 0));
        assert!(tally.since_due().p99_us.abs_diff(99_000) < 100);
        assert!(tally.since_sent().max_us.abs_diff(50_000) < 100);
        assert_eq!(tally.denials().count, 1);
        assert_eq!(tally.kind(0).0.all(), 101);
    }

    #[test]
    fn a_call_that_took_longer_than_anything_is_counted() {
        let mut tally = Tally::new(1).unwrap();
        tally.ended(0, 0, Outcome::Admitted, took(u64::MAX));
        assert!(tally.since_due().max_us >= LONGEST);
    }
}
