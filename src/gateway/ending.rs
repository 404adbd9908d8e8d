//! The end of a call: settled, counted, and written to the access log, once.

use http::Method;
use pingora::{Error, ErrorType};

use super::cause::{self, Seen};
use super::context::Context;
use super::reply::Reply;
use super::{upstream, watch};
use crate::limit::Moment;
use crate::observe::failures::{Cause, Times};
use crate::observe::log;
use crate::observe::metrics::Verb;

/// The longest detail of a line, in characters.
const MAX_DETAIL: usize = 300;

impl Context {
    /// Notes why the call fails.
    pub(super) fn failed(&mut self, error: &Error) {
        let now = self.shared.clock.since(self.started);
        let seen = Seen {
            is_answered: self.upstream_status.is_some(),
            is_over: self.way.is_over(now),
        };
        let cause = cause::of(error, seen);
        self.cause = Some(cause);
        self.error = error.etype().as_str();
        // Of a certificate or a handshake, the type alone says nothing that can be mended.
        self.detail = (cause == Cause::Tls).then(|| {
            let said = error.to_string();
            said.chars().take(MAX_DETAIL).collect::<String>().into()
        });
    }

    /// Settles a call that is over, counts it, and writes its line. `status`: of the answer that
    /// went out, 0 if none did.
    pub(super) fn note_end(&mut self, status: u16, task: Option<&str>) {
        self.is_noted = true;
        let verb = self.verb.unwrap_or(Verb::Reject);
        let end = match verb {
            Verb::Admit => self.shared.clock.since(self.verdict),
            Verb::Deny | Verb::Shed | Verb::Reject => self.verdict,
        };
        let times = self.times(end);
        self.settle(task, end);
        let shared = &*self.shared;
        let route = self
            .call
            .as_ref()
            .map_or("none", |call| call.route_name(&shared.rules));
        let limit = self.limit.map(|id| &*shared.rules.limit(id).name);
        let limit = limit.or(self.full).unwrap_or_else(|| self.payload.limit());
        if verb == Verb::Admit {
            shared.metrics.upstream(times.upstream_us);
        } else {
            match (verb, &self.call, self.limit) {
                (Verb::Deny, Some(call), Some(id)) => {
                    shared
                        .metrics
                        .deny(&shared.counts, call.target, id, route, limit);
                }
                _ => shared.metrics.refuse(route, limit, verb),
            }
            if verb == Verb::Shed {
                shared.metrics.shed(self.error);
            }
        }
        shared.metrics.failures.took(&times);
        if let Some(cause) = self.cause {
            shared.metrics.failures.failed(self.way.pool_name(), cause);
        }
        if shared.settings.access_log {
            let line = log::Line {
                unix_us: end.unix_us,
                id: self.id.to_str().unwrap_or_default(),
                ip: self.ip,
                method: self.method.as_ref().map_or("", Method::as_str),
                path: &self.path,
                route,
                app: self.call.as_ref().map_or("", |call| &call.caller.app),
                verb: verb.as_str(),
                limit,
                cost: self.cost,
                status,
                times,
                pool: self.way.pool_name(),
                upstream: self.way.address(),
                attempts: self.way.attempts(),
                cause: self.cause.map_or("", Cause::as_str),
                error: self.detail.as_deref().unwrap_or(self.error),
            };
            log::access(&line, shared.settings.log);
        }
    }

    fn times(&self, end: Moment) -> Times {
        Times {
            own_us: self.own_us(),
            body_us: self.body_us,
            store_us: self.store_us,
            upstream_us: end.mono_us.saturating_sub(self.verdict.mono_us),
            connect_us: self.way.connect_us(),
            first_byte_us: self.way.first_byte_us(),
        }
    }

    /// The end of a call that nobody has noted: it has had its time, it is cut off, or a hook has
    /// panicked.
    pub(super) fn note_lost(&mut self) {
        if self.is_noted || self.connection.is_none() {
            return;
        }
        let now = self.shared.clock.since(self.started);
        let is_late = watch::is_late();
        let is_answered = self.upstream_status.is_some();
        let is_over = self.way.is_over(now);
        let is_callers = is_late && !watch::is_taking() && self.is_incomplete();
        let (cause, reply) = if is_callers {
            (Cause::ClientSlow, Some(Reply::body_timeout()))
        } else if is_late {
            let cause = match (is_over, is_answered) {
                (true, _) => Cause::RequestTimeout,
                (false, true) => Cause::BodyTimeout,
                (false, false) if watch::is_taking() => Cause::WriteTimeout,
                (false, false) => Cause::HeaderTimeout,
            };
            (cause, Some(Reply::gateway_timeout()))
        } else if self.shared.serving.is_cut_off() {
            let reply = Reply::shed("The gateway is shutting down.");
            (Cause::Draining, Some(reply))
        } else {
            (Cause::Internal, None)
        };
        if is_late {
            self.error = match watch::is_taking() {
                true => ErrorType::WriteTimedout.as_str(),
                false => ErrorType::ReadTimedout.as_str(),
            };
            let is_asked = !is_answered && !self.is_incomplete();
            self.way.timed_out(is_asked, is_callers, now);
            match is_callers {
                true => self.way.give_place_up(now),
                false => self.way.place_failed(&upstream::out_of_time(), now),
            }
            if !is_answered && !is_callers {
                self.shared.metrics.upstream_error();
            }
        } else if self.error.is_empty() {
            self.error = "cut-off";
        }
        // An answer of our own may be on its way already.
        let is_unanswered = self.cause.is_none() && matches!(self.verb, None | Some(Verb::Admit));
        self.cause.get_or_insert(cause);
        let status = match (self.upstream_status, reply, &self.connection) {
            (Some(status), ..) => status,
            (None, Some(reply), Some(connection)) if is_unanswered => {
                let status = reply.status;
                if connection.owe(reply) { status } else { 0 }
            }
            _ => 0,
        };
        // Its task may run all the same.
        let task = self.answer.take().map(|_| self.unnamed_task());
        self.note_end(status, task.as_deref());
    }
}
