//! How many calls an upstream may have at once, by how much longer its answers take than when it
//! had little to do. The idea is that of Netflix's gradient limiters and of Envoy's filter:
//!
//! - The answers of a window have a median. Calls that began before the window do not count: they
//!   tell of the limit before.
//! - Up to so many times the latency of an upstream with little to do (`slack`) the limit grows by
//!   its square root, where it was in use; at first it doubles. Above, it shrinks by as much as
//!   answers take too long, and by half at most. The square root of it is added all the same: room
//!   for a queue that keeps the upstream busy.
//! - What an upstream with little to do takes is the least median seen. It follows slowly while the
//!   upstream has little to do anyway. Where there is not room for all calls, it is measured anew
//!   from time to time, with so low a limit that the upstream has little to do. A limit that stays
//!   at its lower bound says by itself that the measure was wrong.

use super::Outcome;

/// What a window is at least: so long, and so many answers.
const WINDOW_US: u64 = 100_000;
const ENOUGH: usize = 10;
/// Answers of a window that are looked at.
const MOST_SAMPLES: usize = 256;
/// The limit before anything is known.
const FIRST: u32 = 20;
/// No limit is smaller than what answers that take twice too long lead to: x = x / 2 + √x.
const FLOOR: f64 = 5.0;
/// Windows in a row at the lower bound that prove the measure wrong.
const AT_THE_BOTTOM: u32 = 5;
/// How long a measurement may wait until the upstream has little to do: this, or four answers.
const PATIENCE_US: u64 = 500_000;

/// What the operator sets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bounds {
    /// The smallest limit; 1 or more.
    pub least: u32,
    /// The largest.
    pub most: u32,
    /// How much longer than with little to do an answer may take, in percent.
    pub slack_percent: u32,
    /// How often the latency of an upstream with little to do is measured anew.
    pub measure_us: u64,
}

impl Bounds {
    fn sound(self) -> Self {
        Self {
            least: self.least.max(1),
            most: self.most.max(self.least).max(1),
            ..self
        }
    }

    /// How many times as long as with little to do.
    fn slack(&self) -> f64 {
        1.0 + f64::from(self.slack_percent) / 100.0
    }
}

#[derive(Debug)]
struct Window {
    began_us: u64,
    /// Latencies, µs.
    samples: Vec<u64>,
    overloaded: u32,
    /// The most calls at once.
    peak: u32,
}

impl Window {
    fn new(now_us: u64, in_flight: u32) -> Self {
        Self {
            began_us: now_us,
            samples: Vec::new(),
            overloaded: 0,
            peak: in_flight,
        }
    }

    fn is_full(&self, now_us: u64) -> bool {
        let overloaded = usize::try_from(self.overloaded).unwrap_or(usize::MAX);
        now_us.saturating_sub(self.began_us) >= WINDOW_US
            && self.samples.len().saturating_add(overloaded) >= ENOUGH
    }

    fn median(&mut self) -> Option<f64> {
        let middle = self.samples.len() / 2;
        if self.samples.is_empty() {
            return None;
        }
        let (_, median, _) = self.samples.select_nth_unstable(middle);
        // A day at most.
        u32::try_from((*median).clamp(1, 1 << 31))
            .ok()
            .map(f64::from)
    }

    /// The part of its calls that were not too much for the upstream.
    fn borne(&self) -> f64 {
        let answered = u32::try_from(self.samples.len()).unwrap_or(u32::MAX);
        f64::from(answered) / (f64::from(answered) + f64::from(self.overloaded)).max(1.0)
    }
}

/// A measurement of the latency of an upstream with little to do.
#[derive(Debug)]
struct Measuring {
    limit: f64,
    /// Whether no more calls are there than that.
    is_quiet: bool,
    until_us: u64,
}

#[derive(Debug)]
pub(super) struct Gradient {
    bounds: Bounds,
    limit: f64,
    /// Latency with little to do, µs.
    unloaded: Option<f64>,
    /// Of the last window, µs.
    latest: f64,
    window: Window,
    /// Until it shrinks for the first time.
    is_first_rise: bool,
    at_the_bottom: u32,
    measuring: Option<Measuring>,
    /// The last time; or since when there are calls.
    measured_us: Option<u64>,
    /// Whether there was not room for all in this window.
    was_short: bool,
}

impl Gradient {
    pub(super) fn new(bounds: Bounds) -> Self {
        let bounds = bounds.sound();
        Self {
            bounds,
            limit: f64::from(FIRST.clamp(bounds.least, bounds.most)),
            unloaded: None,
            latest: 0.0,
            window: Window::new(0, 0),
            is_first_rise: true,
            at_the_bottom: 0,
            measuring: None,
            measured_us: None,
            was_short: false,
        }
    }

    pub(super) fn limit(&self) -> u32 {
        whole(self.limit)
    }

    /// Goes by these from now on, with what it has learnt.
    pub(super) fn set_bounds(&mut self, bounds: Bounds) {
        let bounds = bounds.sound();
        if bounds != self.bounds {
            self.bounds = bounds;
            self.limit = self
                .limit
                .clamp(f64::from(bounds.least), f64::from(bounds.most));
        }
    }

    /// How many calls there may be at the moment: fewer while the latency is measured.
    pub(super) fn room(&self) -> u32 {
        whole(self.measuring.as_ref().map_or(self.limit, |m| m.limit))
    }

    /// A call has come in.
    pub(super) fn entered(&mut self, in_flight: u32) {
        self.window.peak = self.window.peak.max(in_flight);
    }

    /// There was no room for a call.
    pub(super) fn refused(&mut self) {
        self.was_short |= self.measuring.is_none();
    }

    /// A call is over.
    pub(super) fn ended(&mut self, began_us: u64, outcome: Outcome) {
        if began_us >= self.window.began_us {
            let sample = match outcome {
                Outcome::Answered(us) => Some(us),
                Outcome::GivenUp(us) => u32::try_from(us)
                    .is_ok_and(|us| f64::from(us) >= self.latest && self.latest > 0.0)
                    .then_some(us),
                Outcome::Overloaded => {
                    self.window.overloaded = self.window.overloaded.saturating_add(1);
                    None
                }
                Outcome::Unknown => None,
            };
            if let Some(us) = sample.filter(|_| self.window.samples.len() < MOST_SAMPLES) {
                self.window.samples.push(us);
            }
        }
    }

    /// Ends the window, if it is time, and what else has its time. `spare`: places of those that
    /// are let in though the latency is being measured.
    pub(super) fn tick(&mut self, in_flight: u32, spare: u32, now_us: u64) {
        if let Some(measuring) = &mut self.measuring {
            let room = whole(measuring.limit).saturating_add(spare);
            if !measuring.is_quiet && in_flight <= room {
                // What began from now on finds an upstream with little to do.
                measuring.is_quiet = true;
                self.window = Window::new(now_us, in_flight);
                return;
            }
            if now_us >= measuring.until_us {
                self.measuring = None;
                self.end_measuring(in_flight, now_us);
                return;
            }
            if !measuring.is_quiet {
                return;
            }
        }
        if !self.window.is_full(now_us) {
            return;
        }
        let median = self.window.median();
        match (self.measuring.take(), median) {
            (Some(_), _) => {
                self.unloaded = median.or(self.unloaded);
                self.end_measuring(in_flight, now_us);
            }
            (None, median) => {
                self.adjust(median, now_us);
                self.window = Window::new(now_us, in_flight);
            }
        }
    }

    fn end_measuring(&mut self, in_flight: u32, now_us: u64) {
        self.measured_us = Some(now_us);
        self.was_short = false;
        self.window = Window::new(now_us, in_flight);
    }

    /// A limit at which the upstream has little to do, even if the limit is twice too high.
    fn little(&self) -> f64 {
        (self.limit / (2.0 * self.bounds.slack())).max(1.0)
    }

    fn adjust(&mut self, median: Option<f64>, now_us: u64) {
        let mut gradient = self.window.borne();
        if let Some(median) = median {
            self.latest = median;
            let had_little_to_do = f64::from(self.window.peak) <= self.little();
            let unloaded = match self.unloaded {
                None => median,
                Some(unloaded) if median < unloaded => median,
                Some(unloaded) if had_little_to_do && median <= unloaded * self.bounds.slack() => {
                    unloaded + (median - unloaded) / 10.0
                }
                Some(unloaded) => unloaded,
            };
            self.unloaded = Some(unloaded);
            gradient *= (self.bounds.slack() * unloaded / median).min(1.0);
        }
        let gradient = gradient.max(0.5);
        let (least, most) = (f64::from(self.bounds.least), f64::from(self.bounds.most));
        if gradient < 1.0 {
            self.is_first_rise = false;
            self.limit = self.limit * gradient + self.limit.sqrt();
        } else if f64::from(self.window.peak) * 2.0 >= self.limit {
            let more = match self.is_first_rise {
                true => self.limit,
                false => self.limit.sqrt(),
            };
            self.limit += more;
        }
        self.limit = self.limit.clamp(least, most);
        let is_at_the_bottom = gradient < 1.0 && self.limit <= least.max(FLOOR);
        self.at_the_bottom = match is_at_the_bottom {
            true => self.at_the_bottom.saturating_add(1),
            false => 0,
        };
        if self.at_the_bottom >= AT_THE_BOTTOM {
            self.at_the_bottom = 0;
            self.unloaded = median.or(self.unloaded);
        }
        let was_short = std::mem::take(&mut self.was_short) || gradient < 1.0;
        let since_us = now_us.saturating_sub(*self.measured_us.get_or_insert(now_us));
        if was_short && since_us >= self.bounds.measure_us {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "an hour or so at most"
            )]
            let answers_us = (self.latest * 4.0) as u64;
            self.measuring = Some(Measuring {
                limit: self.little(),
                is_quiet: false,
                until_us: now_us.saturating_add(answers_us.max(PATIENCE_US)),
            });
        }
    }
}

fn whole(limit: f64) -> u32 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between the bounds, which are u32"
    )]
    let limit = limit as u32;
    limit.max(1)
}
