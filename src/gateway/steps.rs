//! What becomes of an admitted call on its way upstream and back, whoever carries it: pingora's
//! proxy, or [`plain`](super::plain).

use http::Method;
use pingora::{Error, ErrorSource, ErrorType};

use super::context::Context;
use super::headers::Origin;
use super::reply::Reply;
use super::upstream::Broken;
use super::{Gateway, body, task, upstream};
use crate::limit::{Hold, Limit, Moment, Unit};
use crate::observe::tokens::TokenResult;

/// What of an answer's head matters.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heard {
    pub(super) status: u16,
    /// Whether its body is in a coding.
    pub(super) is_coded: bool,
    /// Whether it announces a body of no bytes.
    pub(super) is_empty: bool,
}

/// What a caller is told of a failure.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) reply: Reply,
    /// Whether there is nobody to be told.
    pub(super) is_gone: bool,
}

impl Gateway {
    /// The upstream has all of the call. Whether its answer matters though the caller leaves.
    pub(super) fn is_sent(&self, ctx: &mut Context, now: Moment) -> bool {
        let is_awaited = ctx.upstream_status.is_none();
        if is_awaited {
            ctx.waits();
            ctx.way.sent(now);
        }
        match &mut ctx.admitted {
            Some(admitted) => {
                admitted.whole = true;
                is_awaited && self.is_awaited(ctx)
            }
            None => false,
        }
    }

    /// Whether the backend's status matters though the caller has gone: it may be a 401, or its
    /// task may run on. Any other call has cost what it has cost, and is given up.
    fn is_awaited(&self, ctx: &Context) -> bool {
        let is_unknown = ctx.token.is_some_and(|token| !token.is_good());
        // What it has made counts, whoever is there to hear of it.
        is_unknown
            || ctx.totals.is_there()
            || self.has_taken(ctx, |limit| limit.unit == Unit::Tasks)
    }

    /// An answer has begun, and it is the call's.
    pub(super) async fn hears(&self, ctx: &mut Context, heard: Heard, now: Moment) {
        let status = heard.status;
        ctx.upstream_status = Some(status);
        ctx.waits_no_more();
        ctx.way.place_answered(status, now);
        if let Some(token) = ctx.token {
            let bad = ctx.shared.settings.bad_token_memory;
            ctx.shared.tokens.answered(token, status, bad, now);
            if status == 401 {
                let tokens = &ctx.shared.metrics.tokens;
                tokens.count(TokenResult::RefusedUpstream);
            }
        }
        if status == 401 {
            self.charge_unauthorized(ctx).await;
            // Nothing waits for the rest of its body, or for its caller to read.
            ctx.settle(None, ctx.shared.clock.now());
        }
        ctx.let_go();
        ctx.totals.begin(heard);
        if self.holds_task(ctx) {
            ctx.answer = Some(Vec::new());
        }
    }

    /// More of the answer's body.
    pub(super) fn hears_more(&self, ctx: &mut Context, piece: &[u8], is_end: bool) {
        ctx.totals.note(piece, is_end);
        if let Some(answer) = &mut ctx.answer {
            let room = task::MAX_ANSWER.saturating_sub(answer.len());
            answer.extend_from_slice(&piece[..piece.len().min(room)]);
        }
    }

    /// No connection. Whether another address is tried.
    pub(super) fn not_connected(&self, ctx: &mut Context) -> bool {
        ctx.was_not_sent();
        let now = ctx.shared.clock.since(ctx.started);
        ctx.way.not_connected(now)
    }

    /// An attempt that got out has failed. Whether there is another.
    pub(super) fn broke(&self, ctx: &mut Context, error: &Error, how: Broken<'_>) -> bool {
        let now = ctx.shared.clock.since(ctx.started);
        let is_another = ctx.way.broke(error, how, now);
        ctx.was_not_sent();
        is_another
    }

    /// The call has failed.
    pub(super) fn failure(&self, ctx: &mut Context, error: &Error) -> Failure {
        let timed_out = matches!(
            error.etype(),
            ErrorType::ConnectTimedout
                | ErrorType::ReadTimedout
                | ErrorType::WriteTimedout
                | ErrorType::TLSHandshakeTimedout
        );
        let reply = match error.esource() {
            ErrorSource::Upstream if timed_out => Reply::gateway_timeout(),
            ErrorSource::Upstream if ctx.admitted.as_ref().is_some_and(|a| a.forwarded) => {
                Reply::broken_off()
            }
            ErrorSource::Upstream => Reply::bad_gateway(),
            _ if ctx.payload.is_cut_off() => ctx.payload.reply(),
            ErrorSource::Downstream if body::is_too_large(error) => Reply::file_too_large(),
            ErrorSource::Downstream if timed_out => Reply::body_timeout(),
            ErrorSource::Downstream => Reply::bad_request(),
            ErrorSource::Internal | ErrorSource::Unset => match error.etype() {
                ErrorType::HTTPStatus(400..=499) => Reply::bad_request(),
                _ => Reply::internal(),
            },
        };
        ctx.failed(error);
        ctx.waits_no_more();
        ctx.way
            .place_failed(error, ctx.shared.clock.since(ctx.started));
        if *error.esource() == ErrorSource::Upstream {
            ctx.let_go();
            ctx.shared.metrics.upstream_error();
        }
        let is_gone = *error.esource() == ErrorSource::Downstream
            && matches!(
                error.etype(),
                ErrorType::WriteError
                    | ErrorType::ReadError
                    | ErrorType::ConnectionClosed
                    | ErrorType::H2Error
            );
        Failure { reply, is_gone }
    }

    /// The call is over. `status`: of what the caller has had of an answer, 0 if nothing.
    pub(super) async fn is_over(&self, ctx: &mut Context, error: Option<&Error>, status: u16) {
        let task = ctx.answer.take().and_then(|answer| {
            // Half an answer names no task, and one may run all the same.
            task::id(&answer).or_else(|| error.is_some().then(|| ctx.unnamed_task()))
        });
        if let (Some(error), None) = (error, ctx.cause) {
            ctx.failed(error);
        }
        // Who sends without a good token what is refused keeps the backend busy all the same.
        let is_refused = ctx.payload.is_cut_off() && ctx.token.is_none_or(|t| !t.is_good());
        let is_callers = ctx.is_incomplete() && !ctx.has_all && !ctx.is_upstream_late(error);
        if is_callers || is_refused {
            self.charge_unauthorized(ctx).await;
        }
        ctx.note_end(status, task.as_deref());
    }

    /// Charges the call's address for a token that is none, or for leaving the call incomplete.
    async fn charge_unauthorized(&self, ctx: &Context) {
        let Some(call) = &ctx.call else { return };
        let (admission, now) = (&ctx.shared.admission, ctx.shared.clock.now());
        let charging = admission.charge_unauthorized(&ctx.shared.rules, call, now);
        match Box::pin(charging).await {
            Ok(charged) => charged
                .into_iter()
                .for_each(|limit| ctx.shared.counts.charge(limit, 1)),
            Err(error) => tracing::warn!(%error, "a refusal was not charged to its address"),
        }
    }

    /// Whether a slot of this call is held past its response.
    pub(super) fn holds_task(&self, ctx: &Context) -> bool {
        self.has_taken(ctx, |limit| {
            limit.unit == Unit::Tasks && limit.hold == Hold::Task
        })
    }

    /// Whether the call has taken something of such a limit.
    fn has_taken(&self, ctx: &Context, such: impl Fn(&Limit) -> bool) -> bool {
        ctx.admitted.as_ref().is_some_and(|admitted| {
            let charges = admitted.plan.charges.iter();
            charges
                .filter(|charge| charge.taken.is_some())
                .any(|charge| such(ctx.shared.rules.limit(charge.limit)))
        })
    }
}

impl Context {
    /// The request is about to go upstream.
    pub(super) fn goes_out(&mut self, is_stream: bool) {
        if let Some(admitted) = &mut self.admitted {
            admitted.forwarded = true;
            admitted.whole = false;
        }
        self.way.goes_out(is_stream);
    }

    /// Who has called.
    pub(super) fn origin(&self) -> Origin<'_> {
        Origin {
            peer: self.peer,
            ip: self.ip,
            https: self.https,
            id: &self.id,
        }
    }

    /// What no upstream has begun has bought nothing; of an earlier attempt the units may have.
    fn was_not_sent(&mut self) {
        if let Some(admitted) = &mut self.admitted
            && !self.way.was_sent()
        {
            admitted.forwarded = false;
        }
    }

    /// An error where the call has had its time.
    pub(super) fn has_time(&self) -> pingora::Result<()> {
        let is_over = self.way.has_limit() && {
            let now = self.shared.clock.since(self.started);
            self.way.is_over(now)
        };
        match is_over {
            true => Err(upstream::out_of_time()),
            false => Ok(()),
        }
    }

    /// How a request that has no more to come broke off.
    pub(super) fn broken<'a>(&self, method: &'a Method, is_reused: bool) -> Broken<'a> {
        Broken {
            method,
            is_kept: true,
            is_whole: true,
            is_answered: self.upstream_status.is_some(),
            is_reused,
        }
    }
}
