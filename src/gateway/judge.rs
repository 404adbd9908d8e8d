//! Steps 1 to 4 of a call over HTTP: identify, match, price, decide.

use pingora::proxy::Session;

use super::context::{Admitted, Context};
use super::downstream::state::State;
use super::reply::Reply;
use super::{Gateway, body, headers, strict};
use crate::admission::{self, Refused, Reject};
use crate::head::Head;
use crate::identity::address::prefix;
use crate::observe::metrics::Verb;
use crate::route::canonical::{self, PathError};

impl Gateway {
    /// The verdict on a call: `None` forwards it, otherwise it gets this answer. An error means
    /// that downstream is gone.
    pub(super) async fn judge(
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
        let looked = shared
            .tokens
            .look(&shared.rules, auth, &call, bearer, now)
            .and_then(|token| self.kept(&call, &ctx.path, now).map(|()| token));
        ctx.token = match looked {
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
