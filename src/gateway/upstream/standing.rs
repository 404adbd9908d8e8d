//! What is known of one upstream address: whether it may be chosen, and what speaks against it. It
//! outlives changes of what the address is given, such as its weight.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::observe::upstreams::{EndpointMetrics, Failure};
use crate::settings::{Check, Tending};

/// The longest time that an address is ejected for.
const MAX_EJECTION: Duration = Duration::from_secs(300);

/// When failures in a row eject an address.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ejecting {
    pub(super) after: Option<NonZeroU32>,
    pub(super) time: Duration,
}

/// What health checks have to find, and how often in a row, until they change the mind.
#[derive(Clone, Copy, Debug)]
pub(super) struct Checking {
    rise: u32,
    fall: u32,
    /// Tells verdicts by these checks from those by others. Nothing: there are none.
    by: Option<u64>,
}

impl Checking {
    pub(super) fn new(check: &Check, tending: &Tending) -> Self {
        let Tending { rise, fall, .. } = *tending;
        let by = match check {
            Check::Off => None,
            check => {
                let all = format!("{check:?} {rise} {fall}");
                Some(super::choice::hash(all.as_bytes()))
            }
        };
        Self { rise, fall, by }
    }
}

/// How one address of a pool stands.
#[derive(Debug)]
pub(super) struct Standing {
    addr: SocketAddr,
    pool: Arc<str>,
    pub(super) metrics: EndpointMetrics,
    in_flight: AtomicU64,
    /// Whether nothing speaks against it.
    available: AtomicBool,
    /// Failures in a row.
    failures: AtomicU32,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// What the health checks say.
    up: bool,
    /// Which ones.
    by: Option<u64>,
    /// Checks in a row that say otherwise.
    streak: u32,
    /// Whether failures have ejected it: then an answer to an earlier call says nothing new.
    out: bool,
    /// When its failures are forgotten, µs. Until then it is not well.
    until: Option<u64>,
    /// Ejections in a row.
    ejections: u32,
    /// When they are forgotten, µs.
    calm_at: u64,
}

impl Standing {
    /// That of an address of which nothing is known.
    pub(super) fn new(addr: SocketAddr, pool: Arc<str>, metrics: EndpointMetrics) -> Self {
        Self {
            addr,
            pool,
            metrics,
            in_flight: AtomicU64::new(0),
            available: AtomicBool::new(true),
            failures: AtomicU32::new(0),
            state: Mutex::new(State {
                up: true,
                by: None,
                streak: 0,
                out: false,
                until: None,
                ejections: 0,
                calm_at: 0,
            }),
        }
    }

    /// These are the checks that it has from now on. What others have found is no verdict of theirs.
    pub(super) fn goes_by(&self, checking: Checking) {
        let mut state = self.state.lock();
        if state.by == checking.by {
            return;
        }
        state.by = checking.by;
        state.streak = 0;
        if !std::mem::replace(&mut state.up, true) {
            self.show(&state);
            tracing::info!(pool = &*self.pool, upstream = %self.addr, "upstream has failed checks that it has no more");
        }
    }

    pub(super) fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed)
    }

    pub(super) fn enter(&self) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        self.metrics.attempts.inc();
    }

    pub(super) fn leave(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    /// Whether nothing speaks against it: then it is chosen before others are.
    pub(super) fn is_well(&self) -> bool {
        self.available.load(Ordering::Relaxed)
    }

    fn show(&self, state: &State) {
        let is_well = state.up && state.until.is_none();
        self.available.store(is_well, Ordering::Relaxed);
    }

    /// No other address is well: the first of all that answers is the one to go to.
    pub(super) fn is_needed(&self) {
        self.state.lock().out = false;
    }

    /// It has answered a call.
    pub(super) fn answered(&self) {
        if self.failures.load(Ordering::Relaxed) == 0 && self.is_well() {
            return;
        }
        self.failures.store(0, Ordering::Relaxed);
        let mut state = self.state.lock();
        // An answer to a call from before its ejection says nothing new.
        if !state.out && state.until.take().is_some() {
            self.show(&state);
            tracing::info!(pool = &*self.pool, upstream = %self.addr, "upstream answers again");
        }
    }

    /// It has failed a call. `others` says whether another is well. Whether this was the last that
    /// was.
    pub(super) fn failed(
        &self,
        why: Failure,
        now_us: u64,
        ejecting: Ejecting,
        others: impl FnOnce() -> bool,
    ) -> bool {
        self.metrics.failed(why);
        let failures = self
            .failures
            .fetch_add(1, Ordering::Relaxed)
            .saturating_add(1);
        if ejecting.after.is_none_or(|after| failures < after.get()) {
            return false;
        }
        let mut state = self.state.lock();
        if state.until.is_some() {
            // The last one until now: another has recovered.
            if !state.out && others() {
                state.out = true;
                self.metrics.ejections.inc();
                tracing::warn!(pool = &*self.pool, upstream = %self.addr, why = why.as_str(), failures, "upstream ejected");
            }
            return false;
        }
        if now_us >= state.calm_at {
            state.ejections = 0;
        }
        let time = ejecting
            .time
            .saturating_mul(1 << state.ejections.min(16))
            .min(MAX_EJECTION.max(ejecting.time));
        let time_us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let until = now_us.saturating_add(time_us);
        state.ejections = state.ejections.saturating_add(1);
        state.until = Some(until);
        state.calm_at = until.saturating_add(time_us);
        state.out = others();
        self.show(&state);
        let time_ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        if state.out {
            self.metrics.ejections.inc();
            tracing::warn!(pool = &*self.pool, upstream = %self.addr, why = why.as_str(), failures, time_ms, "upstream ejected");
        } else {
            tracing::warn!(pool = &*self.pool, upstream = %self.addr, why = why.as_str(), failures, "upstream fails; no other is well");
        }
        !state.out
    }

    /// Its time out is over, if it is.
    pub(super) fn tick(&self, now_us: u64) {
        let mut state = self.state.lock();
        if state.until.is_none_or(|until| now_us < until) {
            return;
        }
        state.until = None;
        self.failures.store(0, Ordering::Relaxed);
        self.show(&state);
        if std::mem::take(&mut state.out) {
            tracing::info!(pool = &*self.pool, upstream = %self.addr, "upstream takes calls again");
        }
    }

    /// What a health check has found. So many in a row change the mind.
    pub(super) fn checked(&self, found: Result<(), String>, checking: Checking) {
        let passed = found.is_ok();
        self.metrics.checked(passed);
        let mut state = self.state.lock();
        // One that was begun before a change of settings.
        if state.by != checking.by {
            return;
        }
        if passed == state.up {
            state.streak = 0;
            return;
        }
        state.streak += 1;
        let Checking { rise, fall, .. } = checking;
        if state.streak < if passed { rise } else { fall } {
            return;
        }
        state.streak = 0;
        state.up = passed;
        self.show(&state);
        match found {
            Ok(()) => {
                tracing::info!(pool = &*self.pool, upstream = %self.addr, "upstream passes its checks again");
            }
            Err(why) => {
                tracing::warn!(pool = &*self.pool, upstream = %self.addr, why, "upstream fails its checks");
            }
        }
    }
}
