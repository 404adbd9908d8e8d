//! Attempts that got out and have failed: whose fault that is, and whether the call may be sent again.

use std::time::Duration;

use http::Method;
use pingora::{Error, ErrorSource, ErrorType};

use super::super::MAX_ATTEMPTS;
use super::super::pool::Pool;
use super::super::refused::Refused;
use super::{MAX_STALE, Way};
use crate::limit::Moment;
use crate::observe::upstreams::{Again, Failure};

/// A call that got out is sent again this often at most.
pub(super) const MAX_REPEATS: u8 = 2;

/// What is known of an attempt that broke.
#[derive(Clone, Copy, Debug)]
pub(in crate::gateway) struct Broken<'a> {
    pub(in crate::gateway) method: &'a Method,
    /// Whether the request can be sent again as a whole.
    pub(in crate::gateway) is_kept: bool,
    /// Whether it had gone out as a whole.
    pub(in crate::gateway) is_whole: bool,
    /// Whether an answer has begun.
    pub(in crate::gateway) is_answered: bool,
    /// Whether the connection had been used before.
    pub(in crate::gateway) is_reused: bool,
}

impl Way {
    /// An attempt gets out.
    pub(in crate::gateway) fn goes_out(&mut self, is_stream: bool) {
        self.had_sent = std::mem::replace(&mut self.was_sent, true);
        self.is_stream = is_stream;
        self.has_begun = false;
    }

    /// Whether any attempt has got out that may have run.
    pub(in crate::gateway) fn was_sent(&self) -> bool {
        self.was_sent
    }

    /// The longest wait while a body goes out, where nobody else bounds it: others say sooner whose
    /// fault it is.
    pub(in crate::gateway) fn upload_timeout(&self, body: Duration) -> Option<Duration> {
        let times = self.pool().filter(|_| self.is_watched)?.times;
        Some(times.head().max(times.write).max(body))
    }

    /// Whether the wait for the head is bounded by our own watch alone.
    pub(in crate::gateway) fn is_watched(&self) -> bool {
        self.is_watched
    }

    /// Nothing has come for too long. `is_asked`: the upstream had all of the call, and has not
    /// answered. `is_callers`: the rest of the call has not come.
    pub(in crate::gateway) fn timed_out(&self, is_asked: bool, is_callers: bool, now: Moment) {
        let (Some(pool), Some(endpoint)) = (self.pool(), &self.at) else {
            return;
        };
        if is_callers {
            return;
        }
        if !self.is_over(now) || (is_asked && self.has_waited_long(now)) {
            pool.failed(endpoint, Failure::Timeout, now.mono_us);
        }
    }

    /// Whether the upstream has had the whole call for at least half of the time that it may take.
    fn has_waited_long(&self, now: Moment) -> bool {
        let most = self.pool().and_then(|pool| pool.times.request);
        let until = self
            .ends_us
            .map_or(now.mono_us, |ends| ends.min(now.mono_us));
        let waited = self.sent_us.map(|sent| until.saturating_sub(sent));
        most.zip(waited)
            .is_some_and(|(most, waited)| Duration::from_micros(waited) >= most / 2)
    }

    /// Whether a call that got out may be sent once more: never where it could run twice and
    /// that would be twice as much, and never without budget.
    pub(super) fn may_repeat(&self, pool: &Pool, method: &Method, now: Moment) -> bool {
        method.is_idempotent()
            && self.repeats < MAX_REPEATS
            && self.attempts < MAX_ATTEMPTS
            && !self.is_over(now)
            && pool.may_repeat(now.mono_us)
    }

    /// An attempt that got out has failed. Whether there is another.
    pub(in crate::gateway) fn broke(
        &mut self,
        error: &Error,
        how: Broken<'_>,
        now: Moment,
    ) -> bool {
        if self.repeat {
            return true;
        }
        if *error.esource() != ErrorSource::Upstream {
            return false;
        }
        let is_late = matches!(
            error.etype(),
            ErrorType::ReadTimedout | ErrorType::WriteTimedout
        );
        if let Some(refused) = Refused::of(error).filter(|_| !how.is_answered) {
            return self.was_refused(refused, how, now);
        }
        // The backend may have closed what was idle just when the request came. A connection of
        // HTTP/2 is in use: what breaks a stream of it is no old news.
        let is_stale = how.is_reused
            && !self.is_stream
            && !how.is_answered
            && !is_late
            && self.interims == 0
            && !had_begun_to_answer(error);
        let Some(pool) = self.pool() else {
            return false;
        };
        // An upstream may wait for the rest of a call. That, or a time of ours, says nothing of it.
        let is_callers = *error.etype() == ErrorType::ReadTimedout && !how.is_whole;
        if let Some(endpoint) = &self.at
            && !is_callers
            && !is_stale
            && (!self.is_over(now)
                || (is_late && how.is_whole && !how.is_answered && self.has_waited_long(now)))
        {
            let why = if is_late {
                Failure::Timeout
            } else {
                Failure::Broken
            };
            pool.failed(endpoint, why, now.mono_us);
        }
        if how.is_answered || !how.is_kept || is_late {
            return false;
        }
        // Of half a head nothing runs; of a whole call, it cannot be told.
        let is_unsent = *error.etype() == ErrorType::WriteError && !self.has_begun;
        let may_run_twice = pool.retry_on.reset && how.method.is_idempotent();
        let may = is_unsent || how.method.is_safe() || may_run_twice;
        let again = if is_stale && may && self.attempts < MAX_ATTEMPTS && !self.is_over(now) {
            Again::Stale
        } else if pool.retry_on.reset && self.may_repeat(pool, how.method, now) {
            Again::Broken
        } else {
            return false;
        };
        pool.metrics.again(again);
        match again {
            // The address has done no wrong.
            Again::Stale => {
                self.stale = self.stale.saturating_add(1);
                self.tried.pop();
            }
            _ => self.repeats += 1,
        }
        self.repeat = true;
        true
    }

    /// An attempt has not run, and the upstream says so: it may be sent again whatever the method, as
    /// one that found no connection. Whether there is another.
    fn was_refused(&mut self, refused: Refused, how: Broken<'_>, now: Moment) -> bool {
        let Some(pool) = self.pool() else {
            return false;
        };
        // A connection may go at any time, but not before it has taken any call.
        let is_failure = match refused {
            Refused::Call => true,
            Refused::Leaving => !how.is_reused,
            Refused::Version => false,
        };
        if let Some(endpoint) = &self.at
            && is_failure
            && !self.is_over(now)
        {
            pool.failed(endpoint, Failure::Broken, now.mono_us);
        }
        let set = pool.set.load();
        let mut others = set.endpoints.iter();
        let is_another = others.any(|e| e.standing.is_well() && !self.tried.contains(&e.addr));
        let may = how.is_kept
            && (is_another || self.stale <= MAX_STALE)
            && self.attempts < MAX_ATTEMPTS
            && !self.is_over(now);
        if may {
            pool.metrics.again(Again::Refused);
            self.stale = self.stale.saturating_add(1);
            self.repeat = true;
        }
        self.was_sent = self.had_sent;
        may
    }
}

/// Whether anything of an answer had come, by what pingora says: it has no type for it.
fn had_begun_to_answer(error: &Error) -> bool {
    let said = error.context.as_ref().map_or("", |said| said.as_str());
    match *error.etype() {
        ErrorType::ConnectionClosed | ErrorType::ReadError => said
            .rsplit_once("bytes already read: ")
            .is_some_and(|(_, bytes)| bytes != "0"),
        // What came was no answer.
        ErrorType::InvalidHTTPHeader => true,
        _ => false,
    }
}
