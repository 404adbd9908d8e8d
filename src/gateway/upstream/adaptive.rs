//! The guard of a pool, asked before a call is charged and told how the call ended: once, however
//! it ends.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::limit::Moment;
use crate::observe::upstreams::ConcurrencyMetrics;
use crate::protect::{Bounds, Full, Guard, Outcome, Place, Who};
use crate::settings::Concurrency;

/// A pool's guard.
#[derive(Debug)]
pub(super) struct Adaptive {
    bounds: Bounds,
    /// Shared with those of the pool's earlier settings: what has been learnt, and the calls that run.
    guard: Arc<Mutex<Guard>>,
    metrics: ConcurrencyMetrics,
}

/// Why a call is shed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::gateway) struct Shed(Full);

impl Shed {
    /// As the log and the metrics have it.
    pub(in crate::gateway) fn as_str(self) -> &'static str {
        match self.0 {
            Full::Limit => "concurrency",
            Full::Share => "fair-share",
        }
    }
}

impl Adaptive {
    /// A guard by these settings, with what the one before has learnt.
    pub(super) fn of(
        settings: Concurrency,
        previous: Option<&Arc<Self>>,
        metrics: impl FnOnce() -> ConcurrencyMetrics,
    ) -> Arc<Self> {
        let bounds = Bounds {
            least: settings.least,
            most: settings.most,
            slack_percent: settings.slack_percent,
            measure_us: u64::try_from(settings.measure.as_micros()).unwrap_or(u64::MAX),
        };
        if let Some(same) = previous.filter(|previous| previous.bounds == bounds) {
            return same.clone();
        }
        let guard = previous.map(|previous| previous.guard.clone());
        Arc::new(Self {
            bounds,
            guard: guard.unwrap_or_else(|| Arc::new(Mutex::new(Guard::new(bounds)))),
            metrics: metrics(),
        })
    }

    /// Brings the gauges up to date.
    pub(super) fn show(&self) {
        let (limit, in_flight) = {
            let guard = self.guard.lock();
            (guard.limit(), guard.in_flight())
        };
        self.metrics.limit.set(limit.into());
        self.metrics.in_flight.set(in_flight.into());
    }

    fn shed(&self, full: Full) -> Shed {
        match full {
            Full::Limit => self.metrics.full.inc(),
            Full::Share => self.metrics.share.inc(),
        }
        Shed(full)
    }
}

/// What one call has of a guard.
#[derive(Debug)]
pub(super) struct Held {
    adaptive: Arc<Adaptive>,
    who: Who,
    place: Option<Place>,
    /// When the upstream had all of the latest attempt, µs.
    sent_us: Option<u64>,
}

impl Held {
    /// Asks for a place. One is taken if the call `is_whole`; otherwise when its body has gone: a
    /// slow one holds none meanwhile, and is not shed after that.
    pub(super) fn ask(
        adaptive: &Arc<Adaptive>,
        who: Who,
        is_whole: bool,
        now: Moment,
    ) -> Result<Self, Shed> {
        let found = {
            let mut guard = adaptive.guard.lock();
            // Here, and not when they were read: settings that are never used change nothing.
            guard.set_bounds(adaptive.bounds);
            match is_whole {
                true => guard.enter(who, now.mono_us).map(Some),
                false => guard.may_enter(who, now.mono_us).map(|()| None),
            }
        };
        Ok(Self {
            place: found.map_err(|full| adaptive.shed(full))?,
            adaptive: adaptive.clone(),
            who,
            sent_us: None,
        })
    }

    /// The upstream has all of the call.
    pub(super) fn sent(&mut self, now: Moment) {
        if self.place.is_none() {
            self.place = Some(self.adaptive.guard.lock().force(self.who, now.mono_us));
        }
        self.sent_us = Some(now.mono_us);
    }

    /// How long the upstream has had all of it, µs.
    pub(super) fn waited_us(&self, now: Moment) -> Option<u64> {
        self.sent_us.map(|sent| now.mono_us.saturating_sub(sent))
    }

    /// Gives the place back. It takes the call's part, so that it is told once.
    pub(super) fn leave(self, outcome: Outcome, now: Moment) {
        if let Some(place) = self.place {
            self.adaptive
                .guard
                .lock()
                .leave(place, outcome, now.mono_us);
        }
    }
}
