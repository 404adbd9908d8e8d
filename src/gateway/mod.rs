//! Steps 5 and 6, forward and settle: the pingora adapter. Each hook in the order in which a
//! call meets it; charged once in `request_filter` (a retry re-enters at `upstream_peer`),
//! settled in `logging`, with `Drop` of the context behind it.

mod answer;
mod auth;
mod body;
mod cause;
mod context;
mod cut;
pub(crate) mod downstream;
pub mod drain;
mod ending;
mod field;
mod headers;
mod judge;
mod kind;
mod leaver;
mod live;
mod load;
mod payload;
mod plain;
pub mod reply;
mod shared;
mod shield;
mod steps;
mod strict;
mod task;
mod totals;
mod unseen;
pub mod upstream;
mod watch;

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::header;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::modules::http::HttpModules;
use pingora::prelude::HttpPeer;
use pingora::protocols::Digest;
use pingora::proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};
use pingora::{Error, ErrorSource, ErrorType};

use self::body::Pace;
pub use self::context::Context;
use self::downstream::state::State;
pub use self::live::Live;
pub use self::shared::{Lasting, Shared, SharedError};
use self::steps::{Failure, Heard};
use self::upstream::Broken;
use crate::limit::Moment;
use crate::observe::metrics::Verb;

/// The adapter.
#[derive(Debug)]
pub struct Gateway {
    live: Live,
}

impl Gateway {
    /// An adapter over this gateway.
    #[must_use]
    pub fn new(live: Live) -> Self {
        Self { live }
    }

    /// Lets a body that is being forwarded go on, unless it takes too long.
    fn pace(
        &self,
        session: &mut Session,
        ctx: &mut Context,
        arrived: usize,
    ) -> pingora::Result<()> {
        let now = ctx.shared.clock.since(ctx.started);
        let pace = ctx.pace.get_or_insert_with(|| Pace::new(now));
        match pace.note(arrived, now, ctx.shared.settings.body_timeout) {
            // A chunk that never comes does not get here.
            Some(left) => session.as_downstream_mut().set_read_timeout(Some(left)),
            None => {
                let slow = Error::explain(ErrorType::ReadTimedout, "the body came too slowly");
                return Err(slow.into_down());
            }
        }
        Ok(())
    }

    /// The upstream gets the end of the request, and nothing more.
    fn all_sent(&self, session: &mut Session, ctx: &mut Context) {
        let now = ctx.shared.clock.since(ctx.started);
        let is_unanswered = ctx.upstream_status.is_none();
        let is_awaited = self.is_sent(ctx, now);
        if is_unanswered {
            let (most, left) = (ctx.way.head_timeout(), ctx.way.time_left(now));
            match ctx.way.is_watched() {
                true => watch::awaits_body(Some(most), left, None),
                false => watch::awaits_head(most, left),
            }
        }
        if is_awaited {
            leaver::wait_without_caller(session);
        }
    }

    /// Bounds the waits for the rest of an answer.
    fn watch_body(session: &Session, ctx: &Context, now: Moment) {
        let most = ctx
            .way
            .piece_timeout()
            .map(|most| match session.is_http2() {
                // There it cannot be told whether the caller holds it up.
                true => most.saturating_add(ctx.shared.settings.send_timeout),
                false => most,
            });
        let left = ctx.way.time_left(now);
        if most.is_some() || left.is_some() {
            let caller = ctx.connection.clone().filter(|_| !session.is_http2());
            watch::awaits_body(most, left, caller);
        } else {
            watch::ends();
        }
    }

    /// Whether nothing comes from upstream because the caller has not sent all of the call: pingora reads
    /// there only while it has nothing to write.
    fn is_callers(&self, error: &Error, session: &Session, ctx: &Context) -> bool {
        let has_expect = session.req_header().headers.contains_key(header::EXPECT);
        let is_whole = ctx.admitted.as_ref().is_none_or(|admitted| admitted.whole);
        *error.esource() == ErrorSource::Upstream
            && *error.etype() == ErrorType::ReadTimedout
            && !is_whole
            && ctx.upstream_status.is_none()
            // Who waits to be asked for its body waits for the upstream.
            && (ctx.way.has_begun || !has_expect)
            && ctx.connection.as_ref().is_some_and(|c| c.is_waited_for())
    }
}

#[async_trait]
impl ProxyHttp for Gateway {
    /// Boxed: pingora moves it about.
    type CTX = Box<Context>;

    fn new_ctx(&self) -> Box<Context> {
        Box::new(Context::new(self.live.now()))
    }

    /// No downstream modules: answers go as the upstream coded them.
    fn init_downstream_modules(&self, _modules: &mut HttpModules) {}

    async fn request_filter(
        &self,
        session: &mut Session,
        ctx: &mut Box<Context>,
    ) -> pingora::Result<bool> {
        // pingora resets it with every request; where it has refused to keep, so do we.
        if session.get_keepalive().is_some() {
            // 0: without a limit of pingora's. An idle connection has ours.
            session.set_keepalive((!ctx.shared.is_draining()).then_some(0));
        }
        let Some(connection) = State::of(session.as_downstream().digest()).cloned() else {
            return Error::e_explain(ErrorType::InternalError, "a connection of nobody's");
        };
        connection.busy();
        if session.req_header().version == http::Version::HTTP_10 {
            // It knows none (RFC 9110, 15.2): the first of them would be its answer.
            session.as_downstream_mut().set_ignore_info_resp(true);
        }
        if session.is_http2() {
            // One stream that is not read does not stop the connection's writes.
            let limit = ctx.shared.settings.send_timeout;
            session.as_downstream_mut().set_write_timeout(Some(limit));
        }
        // Otherwise pingora drops what a caller has sent after its request, and closes.
        session.as_downstream_mut().set_pipelining_enabled(true);
        let head = session.as_downstream().as_http1();
        let head = head.map(|http1| http1.get_headers_raw_bytes());
        if let Some(head) = &head {
            let length = headers::plain_length(session.req_header())
                .filter(|_| !headers::may_be_escaped(head));
            connection.reads(length.map(|length| head.len() as u64 + length));
        }
        let head = head.as_deref();
        let admitted = head.and_then(|head| connection.take_admitted(head));
        let verdict = match admitted {
            Some(admitted) => {
                *ctx = admitted;
                None
            }
            None => {
                let verdict = self.judge(session, head, &connection, ctx).await;
                ctx.verdict = ctx.shared.clock.since(ctx.started);
                ctx.shared.metrics.own(ctx.own_us());
                verdict?
            }
        };
        let most = ctx.shared.settings.max_requests_per_connection;
        // Of HTTP/2, the caller is told in another way.
        if !session.is_http2() && connection.has_had(most) {
            session.set_keepalive(None);
        }
        let Some(reply) = verdict else {
            return Ok(false);
        };
        if matches!(ctx.verb, Some(Verb::Deny | Verb::Reject)) {
            connection.refused();
        }
        self.answer(session, ctx, &reply, ctx.verdict).await?;
        Ok(true)
    }

    async fn upstream_peer(
        &self,
        session: &mut Session,
        ctx: &mut Box<Context>,
    ) -> pingora::Result<Box<HttpPeer>> {
        leaver::end_with_caller(session);
        watch::connects();
        let now = ctx.shared.clock.since(ctx.started);
        let body_comes = !session.as_downstream_mut().is_body_done();
        // Who waits to be asked for it does not pause: that is for the upstream to do.
        let pause = match session.req_header().headers.contains_key(header::EXPECT) {
            true => Duration::ZERO,
            false => ctx
                .shared
                .settings
                .body_timeout
                .saturating_add(watch::LATER),
        };
        let pause = body_comes.then_some(pause);
        ctx.way.begin(ctx.call.as_ref(), ctx.started, pause, now)
    }

    async fn connected_to_upstream(
        &self,
        session: &mut Session,
        reused: bool,
        _peer: &HttpPeer,
        fd: std::os::unix::io::RawFd,
        _digest: Option<&Digest>,
        ctx: &mut Box<Context>,
    ) -> pingora::Result<()> {
        // One that was idle has cost no time to connect, and is not worth a look at the clock.
        if !reused {
            let now = ctx.shared.clock.since(ctx.started);
            ctx.way.connected(now);
        }
        if session.is_http2() {
            watch::holds(fd);
        }
        Ok(())
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        request: &mut RequestHeader,
        ctx: &mut Box<Context>,
    ) -> pingora::Result<()> {
        ctx.goes_out(request.version == http::Version::HTTP_2);
        if ctx.way.is_stream {
            watch::lets_go();
        }
        if let Some(most) = ctx.way.upload_timeout(ctx.shared.settings.body_timeout) {
            let now = ctx.shared.clock.since(ctx.started);
            watch::awaits_head(most, ctx.way.time_left(now));
        }
        headers::prepare_upstream(request, &ctx.shared.settings, &ctx.origin())?;
        if ctx.rewrite || !session.req_header().raw_path_is_utf8() {
            let raw = session.req_header().raw_path();
            let query = raw
                .iter()
                .position(|b| *b == b'?')
                .and_then(|at| raw.get(at..));
            let mut target = ctx.path.clone().into_bytes();
            target.extend_from_slice(query.unwrap_or_default());
            request.set_raw_path(&target)?;
        }
        ctx.pace = None;
        ctx.room.restart();
        ctx.payload.restart();
        if session.req_header().version == http::Version::HTTP_10 {
            // To such a caller it means nothing, and the backend's 100 would be its answer.
            request.remove_header(&header::EXPECT);
        }
        if ctx.way.is_stream && request.headers.contains_key(header::EXPECT) {
            // pingora tells nothing of an HTTP/2 upstream's 100: the caller has ours.
            request.remove_header(&header::EXPECT);
            let downstream = session.as_downstream_mut();
            downstream.set_close_on_response_before_downstream_finish(false);
            downstream.write_continue_response().await?;
        }
        if request.headers.contains_key(header::EXPECT) {
            // The backend may take its time to ask for the body. If it does not, that is no fault
            // of the caller: its own time is over first.
            let wait = ctx.way.read_timeout(ctx.shared.clock.since(ctx.started));
            let wait = wait.saturating_add(watch::LATER);
            session.as_downstream_mut().set_read_timeout(Some(wait));
        } else if !session.as_downstream_mut().is_body_done() {
            self.pace(session, ctx, 0)?;
        }
        if ctx.has_read_body {
            // Its body has been asked for and read already.
            request.remove_header(&header::EXPECT);
        }
        if self.holds_task(ctx) {
            // The task's ID is read from the answer.
            request.remove_header(&header::ACCEPT_ENCODING);
        }
        ctx.totals.prepare(request);
        // Of no body, an HTTP/2 upstream learns with the head: there is no end to come.
        if ctx.way.is_stream && session.as_downstream_mut().is_body_empty() {
            self.all_sent(session, ctx);
        }
        Ok(())
    }

    async fn request_body_filter(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        end_of_stream: bool,
        ctx: &mut Box<Context>,
    ) -> pingora::Result<()> {
        ctx.way.has_begun = true;
        if ctx.way.has_limit() && ctx.way.is_over(ctx.shared.clock.since(ctx.started)) {
            return Err(match end_of_stream {
                true => upstream::out_of_time(),
                false => body::out_of_time(),
            });
        }
        let bytes = body.as_ref().map_or(0, Bytes::len);
        ctx.room.take(body.as_deref().unwrap_or_default())?;
        payload::pass(ctx, body, end_of_stream)?;
        if !end_of_stream {
            match ctx.upstream_status.is_none() && !session.is_http2() {
                true => watch::takes(ctx.way.write_timeout(), ctx.connection.clone()),
                false => watch::step(),
            }
            return self.pace(session, ctx, bytes);
        }
        // pingora would write an empty piece as a last chunk, and then the last chunk: the second
        // one is the beginning of the next request to the upstream.
        if body.as_ref().is_some_and(Bytes::is_empty) {
            *body = None;
        }
        self.all_sent(session, ctx);
        Ok(())
    }

    async fn upstream_response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut Box<Context>,
    ) -> pingora::Result<()> {
        if response.status == http::StatusCode::SWITCHING_PROTOCOLS {
            // `Upgrade` does not go upstream.
            let why = "101, for which nobody has asked";
            return Err(Error::explain(ErrorType::InvalidHTTPHeader, why).into_up());
        }
        if response.status.is_informational() {
            return ctx.way.interim();
        }
        if !headers::is_framed_plainly(&response.headers) {
            let why = "a transfer coding that is not known here";
            return Err(Error::explain(ErrorType::InvalidHTTPHeader, why).into_up());
        }
        leaver::end_with_caller(session);
        let now = ctx.shared.clock.since(ctx.started);
        let is_kept = !session.as_ref().retry_buffer_truncated();
        let method = &session.req_header().method;
        ctx.way
            .answered(response.status.as_u16(), method, is_kept, now)
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut Box<Context>,
    ) -> pingora::Result<()> {
        // Whatever it speaks, what goes on from here is ours.
        response.set_version(http::Version::HTTP_11);
        if response.status.is_informational() || response.status == http::StatusCode::NO_CONTENT {
            // There is no body (RFC 9110, 8.6): who waited for one would take the next answer for it.
            response.remove_header(&header::CONTENT_LENGTH);
            response.remove_header(&header::TRANSFER_ENCODING);
        }
        if response.status.is_informational() {
            // Asked for its body only now.
            ctx.pace = None;
            return self.pace(session, ctx, 0);
        }
        let status = response.status.as_u16();
        let now = ctx.shared.clock.since(ctx.started);
        Self::watch_body(session, ctx, now);
        let is =
            |name, is: fn(&http::HeaderValue) -> bool| response.headers.get(name).is_some_and(is);
        let heard = Heard {
            status,
            is_coded: is(header::CONTENT_ENCODING, |coding| coding != "identity"),
            is_empty: is(header::CONTENT_LENGTH, |length| length == "0"),
        };
        self.hears(ctx, heard, now).await;
        let mut taken = headers::response_taken_apart(response);
        let fields = &mut taken.0.headers;
        headers::remove_hop_by_hop(fields);
        if session.req_header().version == http::Version::HTTP_10 {
            // It knows no chunks (RFC 9112, 6.1): without a length, the end is the connection's.
            fields.remove(header::TRANSFER_ENCODING);
            let has_none =
                session.req_header().method == http::Method::HEAD || matches!(status, 204 | 304);
            if !has_none && !fields.contains_key(header::CONTENT_LENGTH) {
                session.set_keepalive(None);
            }
        }
        fields.reserve(4);
        self.common_fields(ctx, |name, value| {
            fields.insert(name, value.into());
        });
        headers::put_together(response, taken)
    }

    fn response_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        end_of_stream: bool,
        ctx: &mut Box<Context>,
    ) -> pingora::Result<Option<Duration>> {
        match end_of_stream {
            true => watch::ends(),
            false => watch::step(),
        }
        let piece = body.as_deref().unwrap_or_default();
        self.hears_more(ctx, piece, end_of_stream);
        ctx.has_time()?;
        Ok(None)
    }

    fn fail_to_connect(
        &self,
        _session: &mut Session,
        _peer: &HttpPeer,
        ctx: &mut Box<Context>,
        mut error: Box<Error>,
    ) -> Box<Error> {
        error.set_retry(self.not_connected(ctx));
        error
    }

    fn error_while_proxy(
        &self,
        _peer: &HttpPeer,
        session: &mut Session,
        mut error: Box<Error>,
        ctx: &mut Box<Context>,
        is_reused: bool,
    ) -> Box<Error> {
        watch::lets_go();
        if watch::is_late() {
            // Broken because of that.
            error = upstream::out_of_time();
        } else if self.is_callers(&error, session, ctx) {
            error = body::out_of_time();
        }
        let broken = Broken {
            method: &session.req_header().method,
            is_kept: !session.as_ref().retry_buffer_truncated(),
            is_whole: ctx.admitted.as_ref().is_some_and(|a| a.whole),
            is_answered: ctx.upstream_status.is_some(),
            is_reused,
        };
        error.set_retry(self.broke(ctx, &error, broken));
        error
    }

    async fn fail_to_proxy(
        &self,
        session: &mut Session,
        error: &Error,
        ctx: &mut Box<Context>,
    ) -> FailToProxy {
        watch::ends();
        let Failure { reply, is_gone } = self.failure(ctx, error);
        let started = session
            .response_written()
            .is_some_and(|response| !response.status.is_informational());
        if is_gone || started {
            return FailToProxy {
                error_code: 0,
                can_reuse_downstream: false,
            };
        }
        // What is left of the request on this connection cannot be told from the next one.
        session.set_keepalive(None);
        let now = ctx.shared.clock.now();
        if let Err(error) = self.answer(session, ctx, &reply, now).await {
            tracing::debug!(%error, "downstream went away before the answer");
        }
        FailToProxy {
            error_code: reply.status,
            can_reuse_downstream: false,
        }
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, ctx: &mut Box<Context>) {
        let sent = session.response_written();
        let sent = sent.filter(|response| !response.status.is_informational());
        let status = sent.map_or(0, |response| response.status.as_u16());
        self.is_over(ctx, error, status).await;
    }

    fn suppress_proxy_warn_log(
        &self,
        _session: &Session,
        _ctx: &Box<Context>,
        _error: &Error,
        context: ProxyWarnLogContext,
    ) -> bool {
        // A caller that has gone, not a cache that fails; and a retry, which metrics count.
        matches!(
            context,
            ProxyWarnLogContext::DownstreamCache | ProxyWarnLogContext::UpstreamRetry
        )
    }

    fn suppress_error_log(&self, _session: &Session, _ctx: &Box<Context>, _error: &Error) -> bool {
        // The access log says why.
        true
    }
}
