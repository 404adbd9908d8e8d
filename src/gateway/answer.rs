//! Answers of our own, sent.

use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http::header::{self, HeaderName};
use pingora::http::ResponseHeader;
use pingora::proxy::Session;
use pingora::{Error, ErrorType, OrErr as _};

use super::context::Context;
use super::field::{self, Value};
use super::reply::Reply;
use super::{Gateway, Shared, headers};
use crate::admission::{self, Call, Refused, Reject, history};
use crate::identity::address::prefix;
use crate::limit::Moment;
use crate::observe::failures::Cause;
use crate::observe::metrics::Verb;
use crate::settings::RateLimitHeaders;

/// The largest unread body that is read and thrown away to keep a connection.
const MAX_DRAINED_BODY: u64 = 1024 * 1024;
/// How long that may take.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

impl Gateway {
    /// Answers a bad call, unless its address has had too many such answers.
    pub(super) async fn reject(&self, shared: &Shared, ctx: &mut Context, reject: Reject) -> Reply {
        let now = ctx.started;
        ctx.error = reject.why();
        let charged = shared
            .admission
            .charge_address(&shared.rules, &shared.policy, ctx.ip, &reject, now)
            .await;
        match charged {
            Ok(admitted) => {
                for charge in admitted.plan.charges.iter().filter(|c| c.taken.is_some()) {
                    shared.counts.charge(charge.limit, charge.cost);
                    let ip = prefix(ctx.ip, shared.policy.ipv6_prefix);
                    shared.top.address(charge.limit, ip, false, now);
                }
                if let Reject::Expired(expired) = &reject {
                    shared.metrics.not_kept(expired.plan);
                }
                ctx.verb = Some(Verb::Reject);
                Reply::rejected(&reject, &ctx.path)
            }
            Err(refused) => self.refuse(shared, ctx, &refused, now),
        }
    }

    /// Whether the hour of the message history that a call may ask for is kept.
    pub(super) fn kept(
        &self,
        shared: &Shared,
        call: &Call,
        path: &str,
        now: Moment,
    ) -> Result<(), Reject> {
        match history::expired(&shared.rules, call, path, now) {
            None => Ok(()),
            Some(expired) if expired.report => {
                let route = call.route_name(&shared.rules);
                shared.metrics.report(route, "history");
                Ok(())
            }
            Some(expired) => Err(Reject::Expired(expired)),
        }
    }

    pub(super) fn refuse(
        &self,
        shared: &Shared,
        ctx: &mut Context,
        refused: &Refused,
        now: Moment,
    ) -> Reply {
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
            Refused::Full(full) => self.refuse_full(ctx, full),
            Refused::Store(_) => {
                ctx.verb = Some(Verb::Shed);
                ctx.error = "store";
                ctx.cause = Some(Cause::Store);
                Reply::shed("The limits cannot be checked at the moment.")
            }
        }
    }

    fn body(&self, ctx: &Context, reply: &Reply, now: Moment) -> Vec<u8> {
        let took_ms = now.mono_us.saturating_sub(ctx.started.mono_us) / 1000;
        reply.body(ctx.shared.settings.answers, now.unix_us / 1000, took_ms)
    }

    /// An answer of our own as HTTP/1.1 writes it.
    pub(super) fn on_the_wire(
        &self,
        ctx: &Context,
        reply: &Reply,
        now: Moment,
        head_only: bool,
        kept: bool,
    ) -> pingora::Result<Vec<u8>> {
        let body = self.body(ctx, reply, now);
        let mut wire = Vec::with_capacity(1024);
        let status = StatusCode::from_u16(reply.status)
            .or_err(ErrorType::InvalidHTTPHeader, "invalid status")?;
        let reason = status.canonical_reason().unwrap_or_default();
        for part in ["HTTP/1.1 ", status.as_str(), " ", reason, "\r\n"] {
            wire.extend_from_slice(part.as_bytes());
        }
        let mut put = |name, value: Value<'_>| field::push_own(&mut wire, &name, value);
        reply.fields(ctx.shared.settings.answers, body.len(), &mut put);
        self.common_fields(ctx, put);
        field::push_end(&mut wire, now, kept);
        if !head_only {
            wire.extend_from_slice(&body);
        }
        Ok(wire)
    }

    /// Sends an answer of our own. The connection stays usable where that is safe.
    pub(super) async fn answer(
        &self,
        session: &mut Session,
        ctx: &Context,
        reply: &Reply,
        now: Moment,
    ) -> pingora::Result<()> {
        let body = self.body(ctx, reply, now);
        let mut parts = reply.head(ctx.shared.settings.answers, body.len())?;
        self.common_fields(ctx, |name, value| {
            parts.headers.insert(name, value.into());
        });
        let response = ResponseHeader::from(parts);
        let body = Bytes::from(body);

        let request = session.req_header();
        let head_only = request.method == http::Method::HEAD;
        let waits_for_continue = request.headers.contains_key(header::EXPECT);
        let is_chunked = request.headers.contains_key(header::TRANSFER_ENCODING);
        let length = headers::content_length(session.req_header());
        // Who sends a large file reads the answer only when all of it has gone.
        let is_large = reply.status == 413 || ctx.payload.is_cut_off();
        let lingers = is_chunked || is_large && !session.is_http2();
        if !session.as_downstream_mut().is_body_done() {
            // After `Expect` nobody knows whether the next bytes are a body or a request.
            if waits_for_continue || length.is_some_and(|length| length > MAX_DRAINED_BODY) {
                session.set_keepalive(None);
            } else {
                session
                    .as_downstream_mut()
                    .set_close_on_response_before_downstream_finish(false);
            }
            session
                .as_downstream_mut()
                .set_total_drain_timeout(Some(DRAIN_TIMEOUT));
        }
        session
            .write_response_header(Box::new(response), head_only)
            .await
            .map_err(Error::into_down)?;
        if !head_only {
            let written = session.write_response_body(Some(body), true).await;
            written.map_err(Error::into_down)?;
        } else if session.is_http2() {
            // pingora ends the stream of a call that has failed with a reset.
            let ended = session.as_downstream_mut().finish_body().await;
            ended.map_err(Error::into_down)?;
        }
        if lingers && !waits_for_continue {
            // It is closed after this, and over unread bytes a connection may lose the answer.
            session.as_downstream_mut().drain_request_body().await.ok();
        }
        Ok(())
    }

    /// Fields that every answer carries: the request's ID, and the limit nearest to exhaustion.
    pub(super) fn common_fields(&self, ctx: &Context, mut put: impl FnMut(HeaderName, Value<'_>)) {
        put(headers::X_REQUEST_ID, Value::Field(&ctx.id));
        if let Some(hsts) = ctx.shared.hsts().filter(|_| ctx.https) {
            put(header::STRICT_TRANSPORT_SECURITY, Value::Field(hsts));
        }
        let Some(nearest) = ctx.nearest else {
            return;
        };
        let limit = ctx.shared.rules.limit(nearest.limit);
        match ctx.shared.settings.ratelimit_headers {
            RateLimitHeaders::Draft11 => {
                let (policy, name) = ctx.shared.limit_fields(nearest.limit);
                put(headers::RATELIMIT_POLICY, Value::Field(policy));
                let value = Value::Limit {
                    name,
                    left: nearest.left,
                    resets_in: nearest.resets_in,
                };
                put(headers::RATELIMIT, value);
            }
            RateLimitHeaders::XRateLimit => {
                let quota = limit.quota.get().into();
                put(headers::X_RATELIMIT_LIMIT, Value::Number(quota));
                put(
                    headers::X_RATELIMIT_REMAINING,
                    Value::Number(nearest.left.into()),
                );
                let reset = field::whole_seconds(nearest.resets_in);
                put(headers::X_RATELIMIT_RESET, Value::Number(reset));
            }
            RateLimitHeaders::Off => {}
        }
    }
}
