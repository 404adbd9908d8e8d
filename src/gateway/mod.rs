//! Steps 5 and 6, forward and settle: the pingora adapter. Each hook in the order in which a
//! call meets it; charged once in `request_filter` (a retry re-enters at `upstream_peer`),
//! settled in `logging`, with `Drop` of the context behind it.

mod auth;
mod body;
mod context;
pub(crate) mod downstream;
mod headers;
mod leaver;
pub mod reply;
mod shared;
mod shield;
mod strict;
mod task;
pub mod upstream;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::modules::http::HttpModules;
use pingora::prelude::HttpPeer;
use pingora::proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};
use pingora::{Error, ErrorSource, ErrorType};

use self::body::Pace;
use self::context::Admitted;
pub use self::context::Context;
use self::downstream::state::State;
use self::reply::Reply;
pub use self::shared::{Shared, SharedError};
use self::upstream::Broken;
use crate::admission::{self, Refused, Reject};
use crate::head::Head;
use crate::identity::address::prefix;
use crate::limit::{Hold, Moment, Unit};
use crate::observe::log;
use crate::observe::metrics::Verb;
use crate::route::canonical::{self, PathError};
use crate::settings::RateLimitHeaders;

/// The largest unread body that is read and thrown away to keep a connection.
const MAX_DRAINED_BODY: u64 = 1024 * 1024;
/// How long that may take.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// The adapter.
#[derive(Debug)]
pub struct Gateway {
    shared: Arc<Shared>,
}

impl Gateway {
    /// An adapter over this gateway.
    #[must_use]
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// The verdict on a call: `None` forwards it, otherwise it gets this answer. An error means
    /// that downstream is gone.
    async fn judge(
        &self,
        session: &mut Session,
        ctx: &mut Context,
    ) -> pingora::Result<Option<Reply>> {
        let shared = &self.shared;
        let Some(connection) = State::of(session.as_downstream().digest()) else {
            return Ok(Some(Reply::bad_request()));
        };
        let peer = connection.peer.ip();
        let trusted = headers::is_trusted(&shared.settings, peer);
        ctx.https = headers::is_https(session.req_header(), &shared.settings, peer, connection.tls);
        // Those that the caller has reset are still with the backend.
        let crowded = connection.call_begins() >= shared.settings.max_streams;
        ctx.connection = Some(connection.clone());
        ctx.peer = peer;
        ctx.ip = headers::client_ip(session, &shared.settings, peer);
        let trusted_id = trusted
            .then(|| headers::request_id(session.req_header()))
            .flatten();
        ctx.id = trusted_id.cloned().unwrap_or_else(|| shared.new_id());
        if !ctx.enter() || crowded {
            ctx.verb = Some(Verb::Shed);
            return Ok(Some(Reply::shed("The gateway is at its capacity.")));
        }
        let now = ctx.started;
        if !shared
            .shield
            .admits(prefix(ctx.ip, shared.policy.ipv6_prefix), now)
        {
            ctx.verb = Some(Verb::Shed);
            ctx.error = "shield";
            return Ok(Some(Reply::shielded()));
        }

        if let Some(reply) = strict::refusal(session) {
            ctx.error = "malformed";
            return Ok(Some(reply));
        }
        if let Some(reply) = self.door(session, ctx) {
            ctx.verb = Some(Verb::Reject);
            return Ok(Some(reply));
        }

        // 1 identify, 2 match
        let request = session.req_header();
        let bearer = headers::bearer(request);
        let target = match self.target(session, ctx) {
            Ok(()) => {
                let head = Head {
                    method: request.method.as_str(),
                    raw_path: &ctx.path,
                    ip: ctx.ip,
                    has_bearer: bearer.is_some(),
                };
                shared
                    .admission
                    .screen(&shared.rules, &shared.policy, &head, &ctx.path)
            }
            Err(reject) => Err(reject),
        };
        let call = match target {
            Ok(call) => call,
            // Boxed, as other rare turns are: each call pays for the size of its futures.
            Err(reject) => return Ok(Some(Box::pin(self.reject(ctx, reject)).await)),
        };
        let auth = call.auth(&shared.rules, &shared.policy);
        ctx.token = match shared.tokens.look(&shared.rules, auth, &call, bearer, now) {
            Ok(token) => token,
            Err(reject) => {
                let reply = Box::pin(self.reject(ctx, reject)).await;
                // Only now: its address was charged, and not its app.
                ctx.call = Some(call);
                return Ok(Some(reply));
            }
        };
        if headers::expects_the_unknown(session.req_header()) {
            ctx.call = Some(call);
            ctx.verb = Some(Verb::Reject);
            return Ok(Some(Reply::expectation_failed()));
        }

        // 3 price
        let counted = call
            .route(&shared.rules)
            .filter(|route| route.cost.is_some());
        ctx.has_read_body = counted.is_some()
            || !session.as_downstream_mut().is_body_done() && call.holds_others_up(&shared.rules);
        let reading = body::read(session, &shared.settings, counted.is_some());
        let recipients = match ctx.has_read_body {
            false => Ok(1),
            true => match Box::pin(reading).await {
                Ok(body) => counted.map_or(Ok(1), |route| admission::recipients(route, &body)),
                Err(body::BodyError::Gone(error)) => return Err(error),
                Err(body::BodyError::Refused(reply)) => {
                    ctx.call = Some(call);
                    ctx.verb = Some(Verb::Reject);
                    return Ok(Some(reply));
                }
            },
        };
        // The body may have taken long: decide by the time it ended.
        let now = if ctx.has_read_body {
            shared.clock.since(ctx.started)
        } else {
            now
        };
        ctx.body_us = now.mono_us.saturating_sub(ctx.started.mono_us);
        let recipients = match recipients {
            Ok(recipients) => recipients,
            Err(reject) => {
                ctx.call = Some(call);
                ctx.verb = Some(Verb::Reject);
                return Ok(Some(Reply::rejected(&reject, &ctx.path)));
            }
        };
        ctx.cost = recipients;

        // 4 decide
        let plan = shared.admission.plan(&shared.rules, &call, recipients, now);
        let verdict = match shared.tokens.hold(ctx.token, &plan) {
            Ok(held) => {
                ctx.held = held;
                shared.admission.decide(plan, now).await
            }
            Err(denied) => {
                ctx.error = "unproven";
                Err(Refused::Deny(denied))
            }
        };
        let call = ctx.call.insert(call);
        match verdict {
            Ok(admitted) => {
                ctx.verb = Some(Verb::Admit);
                ctx.nearest = admitted.nearest;
                shared.metrics.admit(call.target);
                shared
                    .top
                    .admitted(call, &admitted.plan, admitted.reported, now);
                for (i, charge) in admitted.plan.charges.iter().enumerate() {
                    if charge.taken.is_some() {
                        shared.metrics.charge(charge.limit, charge.cost);
                    }
                    if i < 64 && admitted.reported >> i & 1 == 1 {
                        shared.metrics.report(
                            call.route_name(&shared.rules),
                            &shared.rules.limit(charge.limit).name,
                        );
                        ctx.limit.get_or_insert(charge.limit);
                    }
                }
                ctx.admitted = Some(Admitted {
                    plan: admitted.plan,
                    forwarded: false,
                    whole: false,
                });
                Ok(None)
            }
            Err(refused) => {
                ctx.let_go();
                Ok(Some(self.refuse(ctx, &refused, now)))
            }
        }
    }

    /// Heads that are too large, and plain HTTP where HTTPS is asked for.
    fn door(&self, session: &mut Session, ctx: &Context) -> Option<Reply> {
        let settings = &self.shared.settings;
        let request = session.req_header();
        let head = session.as_downstream().as_http1();
        let bytes = head.map_or(0, |http1| http1.get_headers_raw_bytes().len());
        let refused = if request.raw_path().len() > settings.max_url {
            Reply::target_too_long()
        } else if bytes > settings.max_header_bytes || request.headers.len() > settings.max_headers
        {
            Reply::head_too_large()
        } else if settings.https.only && !ctx.https {
            headers::https_location(request, settings.https.redirect)
                .map_or_else(Reply::https_only, Reply::to_https)
        } else {
            return None;
        };
        // Whatever follows is not read.
        session.set_keepalive(None);
        Some(refused)
    }

    /// The canonical path, into the context.
    fn target(&self, session: &Session, ctx: &mut Context) -> Result<(), Reject> {
        let raw = session.req_header().raw_path();
        if headers::has_fragment(session) {
            return Err(Reject::Path(PathError::Delimiter));
        }
        // pingora takes `GET x/y` and `GET http://host/x` alike; the first is no target at all.
        let absolute = !raw.starts_with(b"/");
        let raw_target = if absolute { origin_form(raw) } else { raw };
        let raw_path = raw_target
            .split(|b| *b == b'?')
            .next()
            .unwrap_or(raw_target);
        let raw_path = String::from_utf8_lossy(raw_path);
        let path = canonical::canonical(&raw_path).map_err(Reject::Path)?;
        ctx.rewrite = absolute || path.as_bytes() != raw_path.as_bytes();
        ctx.path = path.into_owned();
        Ok(())
    }

    /// Answers a bad call, unless its address has had too many such answers.
    async fn reject(&self, ctx: &mut Context, reject: Reject) -> Reply {
        let shared = &self.shared;
        let now = ctx.started;
        ctx.error = reject.why();
        let charged = shared
            .admission
            .charge_address(&shared.rules, &shared.policy, ctx.ip, &reject, now)
            .await;
        match charged {
            Ok(admitted) => {
                for charge in admitted.plan.charges.iter().filter(|c| c.taken.is_some()) {
                    shared.metrics.charge(charge.limit, charge.cost);
                    let ip = prefix(ctx.ip, shared.policy.ipv6_prefix);
                    shared.top.address(charge.limit, ip, false, now);
                }
                ctx.verb = Some(Verb::Reject);
                Reply::rejected(&reject, &ctx.path)
            }
            Err(refused) => self.refuse(ctx, &refused, now),
        }
    }

    fn refuse(&self, ctx: &mut Context, refused: &Refused, now: Moment) -> Reply {
        let shared = &self.shared;
        match refused {
            Refused::Deny(denied) => {
                ctx.verb = Some(Verb::Deny);
                ctx.limit = Some(denied.limit);
                ctx.nearest = Some(admission::Nearest {
                    limit: denied.limit,
                    left: denied.left,
                    resets_in: denied.retry_after.unwrap_or_default(),
                });
                shared
                    .shield
                    .note_denial(prefix(ctx.ip, shared.policy.ipv6_prefix), now);
                match &ctx.call {
                    Some(call) => {
                        let cost =
                            admission::cost_of(shared.rules.limit(denied.limit).unit, ctx.cost);
                        shared
                            .top
                            .denied(&shared.rules, call, denied.limit, cost, now);
                    }
                    None => {
                        let ip = prefix(ctx.ip, shared.policy.ipv6_prefix);
                        shared.top.address(denied.limit, ip, true, now);
                    }
                }
                let app = ctx.call.as_ref().map(|call| call.caller.app.as_str());
                Reply::denied(shared.rules.limit(denied.limit), denied, app)
            }
            Refused::Reject(reject) => {
                ctx.verb = Some(Verb::Reject);
                Reply::rejected(reject, &ctx.path)
            }
            Refused::Store(_) => {
                ctx.verb = Some(Verb::Shed);
                ctx.error = "store";
                Reply::shed("The limits cannot be checked at the moment.")
            }
        }
    }

    /// Sends an answer of our own. The connection stays usable where that is safe.
    async fn answer(
        &self,
        session: &mut Session,
        ctx: &Context,
        reply: &Reply,
        now: Moment,
    ) -> pingora::Result<()> {
        let settings = &self.shared.settings;
        let took_ms = now.mono_us.saturating_sub(ctx.started.mono_us) / 1000;
        let body = Bytes::from(reply.body(settings.answers, now.unix_us / 1000, took_ms));
        let mut parts = reply.head(settings.answers, body.len())?;
        self.common_fields(ctx, |name, value| {
            parts.headers.insert(name, value);
            Ok(())
        })?;
        let response = ResponseHeader::from(parts);

        let request = session.req_header();
        let head_only = request.method == http::Method::HEAD;
        let waits_for_continue = request.headers.contains_key(header::EXPECT);
        let is_chunked = request.headers.contains_key(header::TRANSFER_ENCODING);
        let length = request
            .headers
            .get(header::CONTENT_LENGTH)
            .and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        if !session.as_downstream_mut().is_body_done() {
            // After `Expect` nobody knows whether the next bytes are a body or a request.
            if waits_for_continue || length.is_some_and(|length| length > MAX_DRAINED_BODY) {
                session.set_keepalive(None);
            } else {
                session
                    .as_downstream_mut()
                    .set_close_on_response_before_downstream_finish(false);
                session
                    .as_downstream_mut()
                    .set_total_drain_timeout(Some(DRAIN_TIMEOUT));
            }
        }
        session
            .write_response_header(Box::new(response), head_only)
            .await?;
        if !head_only {
            session.write_response_body(Some(body), true).await?;
        }
        if is_chunked && !waits_for_continue {
            // It is closed after this, and over unread bytes a connection may lose the answer.
            session.as_downstream_mut().drain_request_body().await.ok();
        }
        Ok(())
    }

    /// Fields that every answer carries: the request's ID, and the limit nearest to exhaustion.
    fn common_fields(
        &self,
        ctx: &Context,
        mut insert: impl FnMut(&'static HeaderName, HeaderValue) -> pingora::Result<()>,
    ) -> pingora::Result<()> {
        insert(&headers::X_REQUEST_ID, ctx.id.clone())?;
        if let Some(hsts) = self.shared.hsts().filter(|_| ctx.https) {
            insert(&headers::STRICT_TRANSPORT_SECURITY, hsts.clone())?;
        }
        let Some(nearest) = ctx.nearest else {
            return Ok(());
        };
        let limit = self.shared.rules.limit(nearest.limit);
        match self.shared.settings.ratelimit_headers {
            RateLimitHeaders::Draft11 => {
                let (policy, name) = self.shared.limit_fields(nearest.limit);
                insert(&headers::RATELIMIT_POLICY, policy.clone())?;
                insert(
                    &headers::RATELIMIT,
                    reply::limit_field(name, nearest.left, nearest.resets_in)?,
                )
            }
            RateLimitHeaders::XRateLimit => {
                insert(&headers::X_RATELIMIT_LIMIT, limit.quota.get().into())?;
                insert(&headers::X_RATELIMIT_REMAINING, nearest.left.into())?;
                insert(
                    &headers::X_RATELIMIT_RESET,
                    reply::whole_seconds(nearest.resets_in).into(),
                )
            }
            RateLimitHeaders::Off => Ok(()),
        }
    }

    /// Lets a body that is being forwarded go on, unless it takes too long.
    fn pace(
        &self,
        session: &mut Session,
        ctx: &mut Context,
        arrived: usize,
    ) -> pingora::Result<()> {
        let now = self.shared.clock.since(ctx.started);
        let pace = ctx.pace.get_or_insert_with(|| Pace::new(now));
        match pace.note(arrived, now, self.shared.settings.body_timeout) {
            // A chunk that never comes does not get here.
            Some(left) => session.as_downstream_mut().set_read_timeout(Some(left)),
            None => {
                let slow = Error::explain(ErrorType::ReadTimedout, "the body came too slowly");
                return Err(slow.into_down());
            }
        }
        Ok(())
    }

    /// Charges the call's address for a token that is none, or for leaving the call incomplete.
    async fn charge_unauthorized(&self, ctx: &Context) {
        let Some(call) = &ctx.call else { return };
        let (admission, now) = (&self.shared.admission, self.shared.clock.now());
        let charging = admission.charge_unauthorized(&self.shared.rules, call, now);
        match Box::pin(charging).await {
            Ok(charged) => charged
                .into_iter()
                .for_each(|limit| self.shared.metrics.charge(limit, 1)),
            Err(error) => tracing::warn!(%error, "a refusal was not charged to its address"),
        }
    }

    /// Whether a slot of this call is held past its response.
    fn holds_task(&self, ctx: &Context) -> bool {
        ctx.admitted.as_ref().is_some_and(|admitted| {
            admitted
                .plan
                .charges
                .iter()
                .filter(|charge| charge.taken.is_some())
                .any(|charge| {
                    let limit = self.shared.rules.limit(charge.limit);
                    limit.unit == Unit::Tasks && limit.hold == Hold::Task
                })
        })
    }
}

/// The path and query of an absolute target (`http://host/path`); anything else as it is. Its
/// host is that of `Host`: pingora refuses any other with its own 400, before any hook.
fn origin_form(target: &[u8]) -> &[u8] {
    let scheme = |name: &[u8]| {
        target
            .get(..name.len())
            .filter(|start| start.eq_ignore_ascii_case(name))
            .and_then(|_| target.get(name.len()..))
    };
    let Some(rest) = scheme(b"http://").or_else(|| scheme(b"https://")) else {
        return target;
    };
    match rest.iter().position(|b| matches!(b, b'/' | b'?')) {
        Some(at) => rest.get(at..).unwrap_or(b"/"),
        None => b"/",
    }
}

#[async_trait]
impl ProxyHttp for Gateway {
    /// Boxed: pingora moves it about.
    type CTX = Box<Context>;

    fn new_ctx(&self) -> Box<Context> {
        Box::new(Context::new(self.shared.clone()))
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
            session.set_keepalive((!self.shared.is_draining()).then_some(0));
        }
        if let Some(connection) = State::of(session.as_downstream().digest()) {
            connection.busy();
        }
        if session.is_http2() {
            // One stream that is not read does not stop the connection's writes.
            let limit = self.shared.settings.send_timeout;
            session.as_downstream_mut().set_write_timeout(Some(limit));
        }
        // Otherwise pingora drops what a caller has sent after its request, and closes.
        session.as_downstream_mut().set_pipelining_enabled(true);
        let verdict = self.judge(session, ctx).await?;
        ctx.verdict = self.shared.clock.since(ctx.started);
        self.shared.metrics.own(ctx.own_us());
        let Some(reply) = verdict else {
            return Ok(false);
        };
        self.answer(session, ctx, &reply, ctx.verdict).await?;
        Ok(true)
    }

    async fn upstream_peer(
        &self,
        session: &mut Session,
        ctx: &mut Box<Context>,
    ) -> pingora::Result<Box<HttpPeer>> {
        leaver::end_with_caller(session);
        let now = self.shared.clock.since(ctx.started);
        ctx.way.begin(ctx.call.as_ref(), ctx.started, now)
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        request: &mut RequestHeader,
        ctx: &mut Box<Context>,
    ) -> pingora::Result<()> {
        if let Some(admitted) = &mut ctx.admitted {
            admitted.forwarded = true;
            admitted.whole = false;
        }
        ctx.way.was_sent = true;
        if ctx.rewrite {
            let raw = session.req_header().raw_path();
            let query = raw
                .iter()
                .position(|b| *b == b'?')
                .and_then(|at| raw.get(at..));
            let mut target = ctx.path.clone().into_bytes();
            target.extend_from_slice(query.unwrap_or_default());
            request.set_raw_path(&target)?;
        }
        headers::prepare_upstream(
            request,
            &self.shared.settings,
            ctx.peer,
            ctx.ip,
            ctx.https,
            &ctx.id,
        )?;
        ctx.pace = None;
        if session.req_header().version == http::Version::HTTP_10 {
            // To such a caller it means nothing, and the backend's 100 would be its answer.
            request.remove_header(&header::EXPECT);
        }
        if request.headers.contains_key(header::EXPECT) {
            // The backend may take its time to ask for the body.
            let wait = ctx.way.read_timeout(self.shared.clock.since(ctx.started));
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
        Ok(())
    }

    async fn request_body_filter(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        end_of_stream: bool,
        ctx: &mut Box<Context>,
    ) -> pingora::Result<()> {
        if ctx.way.is_over(self.shared.clock.since(ctx.started)) {
            return Err(upstream::out_of_time());
        }
        if !end_of_stream {
            let bytes = body.as_ref().map_or(0, Bytes::len);
            return self.pace(session, ctx, bytes);
        }
        if let Some(admitted) = &mut ctx.admitted {
            admitted.whole = true;
            if ctx.upstream_status.is_none() {
                leaver::wait_without_caller(session);
            }
        }
        Ok(())
    }

    async fn upstream_response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut Box<Context>,
    ) -> pingora::Result<()> {
        if response.status.is_informational() {
            return Ok(());
        }
        leaver::end_with_caller(session);
        let now = self.shared.clock.since(ctx.started);
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
        if response.status.is_informational() {
            // Asked for its body only now.
            ctx.pace = None;
            return self.pace(session, ctx, 0);
        }
        let status = response.status.as_u16();
        ctx.upstream_status = Some(status);
        if let Some(token) = ctx.token {
            let now = self.shared.clock.since(ctx.started);
            self.shared.tokens.answered(token, status, now);
        }
        if status == 401 {
            self.charge_unauthorized(ctx).await;
            // Nothing waits for the rest of its body, or for its caller to read.
            ctx.settle(None, self.shared.clock.now());
        }
        ctx.let_go();
        if self.holds_task(ctx) {
            ctx.answer = Some(Vec::new());
        }
        headers::remove_hop_by_hop(response);
        // As a literal: pingora copies any other name.
        self.common_fields(ctx, |name, value| {
            response.insert_header(name.as_str(), value)
        })
    }

    fn response_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        _end_of_stream: bool,
        ctx: &mut Box<Context>,
    ) -> pingora::Result<Option<Duration>> {
        if let (Some(answer), Some(chunk)) = (&mut ctx.answer, body) {
            let room = task::MAX_ANSWER.saturating_sub(answer.len());
            answer.extend_from_slice(&chunk[..chunk.len().min(room)]);
        }
        if ctx.way.is_over(self.shared.clock.since(ctx.started)) {
            return Err(upstream::out_of_time());
        }
        Ok(None)
    }

    fn fail_to_connect(
        &self,
        _session: &mut Session,
        _peer: &HttpPeer,
        ctx: &mut Box<Context>,
        mut error: Box<Error>,
    ) -> Box<Error> {
        // Of an earlier attempt the units may have bought something.
        if let Some(admitted) = &mut ctx.admitted
            && !ctx.way.was_sent
        {
            admitted.forwarded = false;
        }
        let now = self.shared.clock.since(ctx.started);
        error.set_retry(ctx.way.not_connected(now));
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
        let broken = Broken {
            method: &session.req_header().method,
            is_kept: !session.as_ref().retry_buffer_truncated(),
            is_whole: ctx.admitted.as_ref().is_some_and(|a| a.whole),
            is_answered: ctx.upstream_status.is_some(),
            is_reused,
        };
        let now = self.shared.clock.since(ctx.started);
        error.set_retry(ctx.way.broke(&error, broken, now));
        error
    }

    async fn fail_to_proxy(
        &self,
        session: &mut Session,
        error: &Error,
        ctx: &mut Box<Context>,
    ) -> FailToProxy {
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
            ErrorSource::Downstream if timed_out => Reply::body_timeout(),
            ErrorSource::Downstream => Reply::bad_request(),
            ErrorSource::Internal | ErrorSource::Unset => match error.etype() {
                ErrorType::HTTPStatus(400..=499) => Reply::bad_request(),
                _ => Reply::internal(),
            },
        };
        ctx.error = error.etype().as_str();
        if *error.esource() == ErrorSource::Upstream {
            ctx.let_go();
            self.shared.metrics.upstream_error();
        }
        let gone = *error.esource() == ErrorSource::Downstream
            && matches!(
                error.etype(),
                ErrorType::WriteError | ErrorType::ReadError | ErrorType::ConnectionClosed
            );
        let started = session
            .response_written()
            .is_some_and(|response| !response.status.is_informational());
        if gone || started {
            return FailToProxy {
                error_code: 0,
                can_reuse_downstream: false,
            };
        }
        // What is left of the request on this connection cannot be told from the next one.
        session.set_keepalive(None);
        let now = self.shared.clock.now();
        if let Err(error) = self.answer(session, ctx, &reply, now).await {
            tracing::debug!(%error, "downstream went away before the answer");
        }
        FailToProxy {
            error_code: reply.status,
            can_reuse_downstream: false,
        }
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, ctx: &mut Box<Context>) {
        let shared = &self.shared;
        let task = ctx.answer.take().and_then(|answer| {
            // Half an answer names no task, and one may run all the same.
            task::id(&answer).or_else(|| error.is_some().then(|| ctx.unnamed_task()))
        });
        let verb = ctx.verb.unwrap_or(Verb::Reject);
        let end = match verb {
            Verb::Admit => shared.clock.since(ctx.verdict),
            Verb::Deny | Verb::Shed | Verb::Reject => ctx.verdict,
        };
        let upstream_us = end.mono_us.saturating_sub(ctx.verdict.mono_us);
        if ctx.is_incomplete() {
            self.charge_unauthorized(ctx).await;
        }
        ctx.settle(task.as_deref(), end);
        let route = ctx
            .call
            .as_ref()
            .map_or("none", |call| call.route_name(&shared.rules));
        let limit = ctx.limit.map_or("", |id| &*shared.rules.limit(id).name);
        if verb == Verb::Admit {
            shared.metrics.upstream(upstream_us);
        } else {
            shared.metrics.refuse(route, limit, verb);
        }
        if let (Some(error), "") = (error, ctx.error) {
            ctx.error = error.etype().as_str();
        }
        if shared.settings.access_log {
            let status = session
                .response_written()
                .map_or(0, |response| response.status.as_u16());
            let line = log::Line {
                unix_us: end.unix_us,
                id: ctx.id.to_str().unwrap_or_default(),
                ip: ctx.ip,
                method: session.req_header().method.as_str(),
                path: &ctx.path,
                route,
                app: ctx.call.as_ref().map_or("", |call| &call.caller.app),
                verb: verb.as_str(),
                limit,
                cost: ctx.cost,
                status,
                own_us: ctx.own_us(),
                upstream_us,
                upstream: ctx.way.address(),
                attempts: ctx.way.attempts(),
                error: ctx.error,
            };
            log::access(&line, shared.settings.log);
        }
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
