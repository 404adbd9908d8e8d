//! A call's place among those that its pool may have at once.

use pingora::{Error, ErrorSource, ErrorType};

use super::adaptive::{Held, Shed};
use super::way::Way;
use crate::admission::Call;
use crate::limit::Moment;
use crate::protect::{Outcome, Who};

impl Way {
    /// Asks the pool's guard for a place. `proven`: whether the app is one; asked where it matters.
    pub(in crate::gateway) fn ask(
        &mut self,
        call: &Call,
        proven: impl FnOnce() -> bool,
        is_whole: bool,
        now: Moment,
    ) -> Result<(), Shed> {
        let Some(adaptive) = self.guard_of(call) else {
            return Ok(());
        };
        let who = match proven() {
            true => Who::App(call.app_key().0),
            false => Who::Stranger,
        };
        self.held = Some(Held::ask(&adaptive, who, is_whole, now)?);
        Ok(())
    }

    /// The upstream has all of the call.
    pub(in crate::gateway) fn sent(&mut self, now: Moment) {
        self.sent_us = Some(now.mono_us);
        if let Some(held) = &mut self.held {
            held.sent(now);
        }
    }

    /// The upstream has answered with this status: the place is free.
    pub(in crate::gateway) fn place_answered(&mut self, status: u16, now: Moment) {
        if let Some(held) = self.held.take() {
            let outcome = match (status, held.waited_us(now)) {
                (503 | 504, _) => Outcome::Overloaded,
                // An error may come sooner than an answer that has been worked for.
                (500.., _) | (_, None) => Outcome::Unknown,
                (_, Some(us)) => Outcome::Answered(us),
            };
            held.leave(outcome, now);
        }
    }

    /// There is no answer, and none will come: the place is free.
    pub(in crate::gateway) fn place_failed(&mut self, error: &Error, now: Moment) {
        use ErrorType::{ConnectTimedout, ReadTimedout, TLSHandshakeTimedout, WriteTimedout};
        let is_late = matches!(
            error.etype(),
            ConnectTimedout | ReadTimedout | TLSHandshakeTimedout | WriteTimedout
        );
        match (error.esource(), is_late) {
            (ErrorSource::Upstream, true) => self.leave_place(Outcome::Overloaded, now),
            (ErrorSource::Upstream, false) => self.leave_place(Outcome::Unknown, now),
            _ => self.give_place_up(now),
        }
    }

    /// Whether the call has one.
    pub(in crate::gateway) fn has_place(&self) -> bool {
        self.held.is_some()
    }

    /// The call has ended without the upstream: it never went there, or its caller has gone.
    pub(in crate::gateway) fn give_place_up(&mut self, now: Moment) {
        let waited = self.held.as_ref().and_then(|held| held.waited_us(now));
        self.leave_place(waited.map_or(Outcome::Unknown, Outcome::GivenUp), now);
    }

    fn leave_place(&mut self, outcome: Outcome, now: Moment) {
        if let Some(held) = self.held.take() {
            held.leave(outcome, now);
        }
    }
}
