//! Steps 1 to 4 of a call over HTTP: identify, match, price, decide.

use std::sync::Arc;
use std::time::Duration;

use http::header;
use pingora::http::RequestHeader;
use pingora::proxy::Session;

use super::auth::Token;
use super::body::Room;
use super::context::{Admitted, Context};
use super::downstream::state::State;
use super::reply::Reply;
use super::{Gateway, Shared, body, headers, kind, payload, strict};
use crate::admission::{Call, Refused, Reject};
use crate::head::Head;
use crate::identity::address::prefix;
use crate::limit::Moment;
use crate::observe::failures::Cause;
use crate::observe::metrics::Verb;
use crate::observe::tokens::TokenResult;
use crate::route::canonical::{self, PathError};
use crate::route::pricing::PriceError;
use crate::text;

/// Characters of a refused path that the log has.
const MAX_LOGGED: usize = 256;

/// The answer to a call that goes no further.
pub(super) struct Stop {
    pub(super) reply: Reply,
    /// Whether nothing is read that comes after it on its connection.
    pub(super) is_last: bool,
}

impl From<Reply> for Stop {
    fn from(reply: Reply) -> Self {
        Self {
            reply,
            is_last: false,
        }
    }
}

impl Stop {
    fn last(reply: Reply) -> Self {
        Self {
            reply,
            is_last: true,
        }
    }
}

impl Gateway {
    /// The verdict on a call: `None` forwards it, otherwise it gets this answer. An error means
    /// that downstream is gone. `head`: as HTTP/1 has it on the wire.
    pub(super) async fn judge(
        &self,
        session: &mut Session,
        head: Option<&[u8]>,
        connection: &Arc<State>,
        ctx: &mut Context,
    ) -> pingora::Result<Option<Reply>> {
        let shared = &*ctx.shared.clone();
        if strict::ends_its_connection(session.req_header()) {
            session.set_keepalive(None);
        }
        let request = session.req_header();
        let identified = self.identify(shared, request, head, connection, ctx);
        let call = match identified.await {
            Ok(call) => call,
            Err(Stop { reply, is_last }) => {
                if is_last {
                    session.set_keepalive(None);
                }
                return Ok(Some(reply));
            }
        };

        // 3 price
        let counted = call
            .route(&shared.rules)
            .filter(|route| route.cost.is_some());
        let has_body = !session.as_downstream_mut().is_body_done();
        let length = match has_body {
            true => headers::content_length(session.req_header()),
            false => Some(0),
        };
        let counts = counted.is_some() || self.counts_totals(&call, shared, length);
        ctx.has_read_body = counts || has_body && call.holds_others_up(&shared.rules);
        let most = call.max_body(&shared.rules, shared.settings.max_body);
        if !ctx.has_read_body && length.is_some_and(|length| length > most) {
            ctx.call = Some(call);
            return Ok(Some(too_large(ctx)));
        }
        ctx.room = Room::new(most);
        // What is refused for its body, and fits, never reaches the backend.
        let has_fields = payload::has_fields(shared, &call, session.req_header());
        let is_checked = (has_body || has_fields) && payload::enforces_body(shared, &call);
        ctx.has_read_body |= (is_checked || has_fields) && length.is_some_and(body::fits);
        let refused = match has_body && !ctx.has_read_body {
            true => payload::check_stream(shared, &call, session.req_header(), ctx),
            false => None,
        };
        if let Some(reply) = refused {
            ctx.call = Some(call);
            ctx.verb = Some(Verb::Reject);
            (ctx.cause, ctx.error) = body::why(&reply);
            return Ok(Some(reply));
        }
        let is_whole = ctx.has_read_body || !has_body;
        ctx.has_all = is_whole;
        let is_plain = counts || is_checked;
        let mut within = shared.settings.body_timeout;
        if let Some(whole) = ctx.way.request_timeout(&call).filter(|_| has_body) {
            let spent = shared.clock.since(ctx.started).mono_us - ctx.started.mono_us;
            within = within.min(whole.saturating_sub(Duration::from_micros(spent)));
        }
        let mut now = ctx.started;
        let read = match ctx.has_read_body {
            false => None,
            true => {
                let began = shared.clock.since(ctx.started);
                let reading = body::read(session, within, is_plain, most);
                let read = Box::pin(reading).await;
                // It may have taken long: decide by the time it ended.
                now = shared.clock.since(ctx.started);
                ctx.body_us = now.mono_us.saturating_sub(began.mono_us);
                Some(read)
            }
        };
        let recipients = match read {
            None => self.ask_totals(&call, None, ctx).map(|()| 1),
            Some(read) => match read {
                // What counts is JSON; of a form by the documents nothing is counted.
                Ok(body)
                    if counts
                        && kind::has_fields_of_a_form(&session.req_header().headers, &body) =>
                {
                    Err(Reject::Body(PriceError::Malformed))
                }
                Ok(body) => payload::recipients(shared, &call, &body, ctx)
                    .and_then(|recipients| {
                        let request = session.req_header();
                        let checked = payload::check_body(shared, &call, request, &body, ctx);
                        checked.map(|()| recipients)
                    })
                    .and_then(|n| self.ask_totals(&call, Some(&body), ctx).map(|()| n)),
                Err(body::BodyError::Gone(error)) => {
                    ctx.call = Some(call);
                    return Err(error);
                }
                Err(body::BodyError::TooLarge) => {
                    let reply = Reply::too_large_to_read(&shared.rules, &call);
                    ctx.call = Some(call);
                    ctx.verb = Some(Verb::Reject);
                    (ctx.cause, ctx.error) = body::why(&reply);
                    return Ok(Some(reply));
                }
                Err(body::BodyError::Refused(reply)) => {
                    ctx.call = Some(call);
                    ctx.verb = Some(Verb::Reject);
                    (ctx.cause, ctx.error) = body::why(&reply);
                    return Ok(Some(reply));
                }
            },
        };
        let decided = self.decide(shared, call, recipients, is_whole, now, ctx);
        Ok(decided.await)
    }

    /// The same for a request whose body is here as a whole.
    pub(super) async fn judge_whole(
        &self,
        request: &RequestHeader,
        head: &[u8],
        body: &[u8],
        connection: &Arc<State>,
        ctx: &mut Context,
    ) -> Option<Stop> {
        let shared = &*ctx.shared.clone();
        let identified = self.identify(shared, request, Some(head), connection, ctx);
        let call = match identified.await {
            Ok(call) => call,
            Err(stop) => return Some(stop),
        };
        let most = call.max_body(&shared.rules, shared.settings.max_body);
        if body.len() as u64 > most {
            let reply = Reply::too_large_to_read(&shared.rules, &call);
            ctx.call = Some(call);
            ctx.verb = Some(Verb::Reject);
            (ctx.cause, ctx.error) = body::why(&reply);
            return Some(reply.into());
        }
        ctx.room = Room::new(most);
        ctx.has_all = true;
        // In a coding it does not get here.
        let recipients = payload::recipients(shared, &call, body, ctx)
            .and_then(|recipients| {
                let checked = payload::check_body(shared, &call, request, body, ctx);
                checked.map(|()| recipients)
            })
            .and_then(|n| self.ask_totals(&call, Some(body), ctx).map(|()| n));
        let now = ctx.started;
        let decided = self.decide(shared, call, recipients, true, now, ctx);
        decided.await.map(Stop::from)
    }

    /// Who calls, and what; all that can be said of a call by its head. `head`: as HTTP/1 has it
    /// on the wire.
    async fn identify(
        &self,
        shared: &Shared,
        request: &RequestHeader,
        head: Option<&[u8]>,
        connection: &Arc<State>,
        ctx: &mut Context,
    ) -> Result<Call, Stop> {
        let peer = connection.peer.ip();
        let trusted = headers::is_trusted(&shared.settings, peer);
        ctx.https = headers::is_https(request, &shared.settings, peer, connection.tls);
        // Those that the caller has reset are still with the backend.
        let crowded = connection.call_begins() >= shared.settings.max_streams;
        ctx.connection = Some(connection.clone());
        ctx.method = Some(request.method.clone());
        ctx.peer = peer;
        ctx.ip = headers::client_ip(request, &shared.settings, peer);
        let trusted_id = trusted.then(|| headers::request_id(request)).flatten();
        ctx.id = trusted_id.cloned().unwrap_or_else(|| shared.new_id());
        if !ctx.enter() || crowded {
            ctx.verb = Some(Verb::Shed);
            ctx.error = if crowded { "streams" } else { "in-flight" };
            ctx.cause = Some(Cause::Shed);
            return Err(Reply::shed("The gateway is at its capacity.").into());
        }
        let now = ctx.started;
        if let Some(reply) = self.shield(shared, ctx) {
            return Err(reply.into());
        }

        if let Some(reply) = strict::refusal(request, head) {
            ctx.error = "malformed";
            return Err(Stop::last(reply));
        }
        if let Some(reply) = self.door(request, head, ctx) {
            ctx.verb = Some(Verb::Reject);
            return Err(Stop::last(reply));
        }

        // 1 identify, 2 match
        let bearer = headers::bearer(request);
        let target = match self.target(request, head, ctx) {
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
            Err(reject) => {
                self.count_token(shared, request, &Err(&reject));
                return Err(Box::pin(self.reject(shared, ctx, reject)).await.into());
            }
        };
        let auth = call.auth(&shared.rules, &shared.policy);
        let looked = shared.tokens.look(
            &shared.rules,
            auth,
            &call,
            bearer,
            shared.settings.bad_token_memory,
            now,
        );
        self.count_token(shared, request, &looked.as_ref().copied());
        let looked =
            looked.and_then(|token| self.kept(shared, &call, &ctx.path, now).map(|()| token));
        ctx.token = match looked {
            Ok(token) => token,
            Err(reject) => {
                let reply = Box::pin(self.reject(shared, ctx, reject)).await;
                // Only now: its address was charged, and not its app.
                ctx.call = Some(call);
                return Err(reply.into());
            }
        };
        if let Err(reject) = payload::check_path(shared, &call, request.method.as_str(), ctx) {
            ctx.call = Some(call);
            ctx.verb = Some(Verb::Reject);
            ctx.error = reject.why();
            return Err(Reply::rejected(&reject, &ctx.path).into());
        }
        if headers::expects_the_unknown(request) {
            ctx.call = Some(call);
            ctx.verb = Some(Verb::Reject);
            return Err(Reply::expectation_failed().into());
        }
        Ok(call)
    }

    /// Counts what came of looking for a call's token.
    fn count_token(
        &self,
        shared: &Shared,
        request: &RequestHeader,
        looked: &Result<Option<Token>, &Reject>,
    ) {
        let has_field = request.headers.contains_key(header::AUTHORIZATION);
        if let Some(result) = Token::result(looked, has_field) {
            shared.metrics.tokens.count(result);
        }
    }

    /// The answer to an address that has asked too often.
    pub(super) fn shield(&self, shared: &Shared, ctx: &mut Context) -> Option<Reply> {
        let ip = prefix(ctx.ip, shared.policy.ipv6_prefix);
        if shared.shield.admits(ip, ctx.started) {
            return None;
        }
        ctx.verb = Some(Verb::Shed);
        ctx.error = "shield";
        ctx.cause = Some(Cause::Shed);
        Some(Reply::shielded())
    }

    /// Step 4: the answer, unless the call is admitted. `is_whole`: nothing of its body is to come.
    async fn decide(
        &self,
        shared: &Shared,
        call: Call,
        recipients: Result<u32, Reject>,
        is_whole: bool,
        now: Moment,
        ctx: &mut Context,
    ) -> Option<Reply> {
        let recipients = match recipients {
            Ok(recipients) => recipients,
            Err(reject) => {
                ctx.call = Some(call);
                ctx.verb = Some(Verb::Reject);
                ctx.error = reject.why();
                return Some(Reply::rejected(&reject, &ctx.path));
            }
        };
        ctx.cost = recipients;

        // What the upstream cannot take is not charged.
        if !ctx.may_wait(is_whole) {
            ctx.call = Some(call);
            ctx.verb = Some(Verb::Shed);
            ctx.error = "upstream";
            ctx.cause = Some(Cause::Shed);
            return Some(Reply::shed("The upstream is at its capacity."));
        }
        let proven = || shared.admission.is_proven(&call, now);
        if let Err(shed) = ctx.way.ask(&call, proven, is_whole, now) {
            ctx.call = Some(call);
            ctx.waits_no_more();
            ctx.verb = Some(Verb::Shed);
            ctx.error = shed.as_str();
            ctx.cause = Some(Cause::Shed);
            return Some(Reply::shed("The upstream is at its capacity."));
        }
        let mut plan = shared.admission.plan(&shared.rules, &call, recipients, now);
        plan.totals = ctx.totals.take_charges();
        let verdict = match shared
            .tokens
            .hold(ctx.token, &plan, shared.settings.unproven_share)
        {
            Ok(held) => {
                ctx.held = held;
                let asked = shared.is_store_shared().then(|| shared.clock.since(now));
                let verdict = shared.admission.decide(plan, now).await;
                if let Some(asked) = asked {
                    let told = shared.clock.since(now);
                    ctx.store_us = told.mono_us.saturating_sub(asked.mono_us);
                }
                verdict
            }
            Err(denied) => {
                ctx.error = "unproven";
                shared.metrics.tokens.count(TokenResult::Unproven);
                Err(Refused::Deny(denied))
            }
        };
        let call = ctx.call.insert(call);
        match verdict {
            Ok(admitted) => {
                ctx.verb = Some(Verb::Admit);
                ctx.nearest = admitted.nearest;
                shared.counts.admit(call.target);
                shared
                    .top
                    .admitted(call, &admitted.plan, admitted.reported, now);
                for (i, charge) in admitted.plan.charges.iter().enumerate() {
                    if charge.taken.is_some() {
                        shared.counts.charge(charge.limit, charge.cost);
                    }
                    if i < 64 && admitted.reported >> i & 1 == 1 {
                        shared.metrics.report(
                            call.route_name(&shared.rules),
                            &shared.rules.limit(charge.limit).name,
                        );
                        ctx.limit.get_or_insert(charge.limit);
                    }
                }
                ctx.full = self.report_totals(shared, call, &admitted.plan);
                ctx.admitted = Some(Admitted {
                    plan: admitted.plan,
                    forwarded: false,
                    whole: false,
                });
                None
            }
            Err(refused) => {
                ctx.let_go();
                ctx.waits_no_more();
                ctx.way.give_place_up(now);
                Some(self.refuse(shared, ctx, &refused, now))
            }
        }
    }

    /// Heads that are too large, and plain HTTP where HTTPS is asked for.
    fn door(&self, request: &RequestHeader, head: Option<&[u8]>, ctx: &Context) -> Option<Reply> {
        let settings = &ctx.shared.settings;
        let bytes = head.map_or(0, <[u8]>::len);
        Some(if request.raw_path().len() > settings.max_url {
            Reply::target_too_long()
        } else if bytes > settings.max_header_bytes || request.headers.len() > settings.max_headers
        {
            Reply::head_too_large()
        } else if settings.https.only && !ctx.https {
            headers::https_location(request, settings.https.redirect)
                .map_or_else(Reply::https_only, Reply::to_https)
        } else {
            return None;
        })
    }

    /// The canonical path, into the context.
    fn target(
        &self,
        request: &RequestHeader,
        head: Option<&[u8]>,
        ctx: &mut Context,
    ) -> Result<(), Reject> {
        let raw = request.raw_path();
        if head.is_some_and(|head| headers::has_fragment(head, request)) {
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
        let path = canonical::canonical(&raw_path).map_err(|error| {
            // For the log alone: it goes nowhere.
            let shown: String = raw_path.chars().take(MAX_LOGGED).collect();
            ctx.path = text::printable(&shown).into_owned();
            Reject::Path(error)
        })?;
        ctx.rewrite = absolute || path.as_bytes() != raw_path.as_bytes();
        ctx.path = path.into_owned();
        Ok(())
    }
}

/// The answer to a body that is larger than its route takes.
fn too_large(ctx: &mut Context) -> Reply {
    ctx.verb = Some(Verb::Reject);
    ctx.error = "max-body";
    ctx.cause = Some(Cause::ClientTooLarge);
    Reply::file_too_large()
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
