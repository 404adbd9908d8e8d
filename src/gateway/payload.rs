//! What calls carry, while they come: a body that is here as a whole before the decision, any
//! other while it streams. Of one that may be refused, the last piece stays here until the
//! verdict: a backend never has it as a whole.

use std::sync::Arc;

use bytes::Bytes;
use http::header;
use pingora::http::RequestHeader;
use pingora::{Error, ErrorType};

use super::context::Context;
use super::reply::Reply;
use super::{Shared, body};
use crate::admission::{Call, Reject, payload};
use crate::observe::metrics::Verb;
use crate::payload::{Checker, Found};
use crate::route::pricing::PriceError;
use crate::spec::payload::{Checked, Judged, RECIPIENTS};

/// Why a body that is being forwarded is cut off.
const REFUSED: ErrorType = ErrorType::Custom("PayloadRefused");

/// Whether a call failed by what it carries.
pub(super) fn is_refused(error: &Error) -> bool {
    *error.etype() == REFUSED
}

/// What is known of what a call carries.
#[derive(Debug, Default)]
pub(super) struct Payload {
    stream: Option<Box<Stream>>,
    /// The limit that refused it, or would have.
    limit: Box<str>,
    /// Its answer, where it was refused while it was forwarded.
    reply: Option<Box<Reply>>,
}

/// A body that is checked while it is forwarded.
#[derive(Debug)]
struct Stream {
    checker: Checker,
    content_type: Option<Box<[u8]>>,
    query: Box<[u8]>,
    /// Whether the call may be refused for it.
    enforces: bool,
    /// What has come and waits for what follows.
    held: Option<Bytes>,
}

impl Payload {
    /// The limit's name, or nothing.
    pub(super) fn limit(&self) -> &str {
        &self.limit
    }

    /// The answer to a call that was refused while it was forwarded.
    pub(super) fn reply(&self) -> Reply {
        self.reply
            .as_deref()
            .cloned()
            .unwrap_or_else(Reply::bad_request)
    }

    /// Whether the call was refused while it was forwarded.
    pub(super) fn is_cut_off(&self) -> bool {
        self.reply.is_some()
    }

    /// The body is sent from its beginning, for the first time or again.
    pub(super) fn restart(&mut self) {
        if let Some(stream) = &mut self.stream {
            let checks = stream.checker.checks().clone();
            stream.checker = Checker::new(checks, stream.content_type.as_deref());
            stream.checker.query(&stream.query);
            stream.held = None;
        }
    }

    /// A limit is only reported.
    fn reports(&mut self, limit: &str) {
        if self.limit.is_empty() {
            self.limit = limit.into();
        }
    }

    /// A limit refuses the call, whatever was reported; or none does by itself.
    fn refuses(&mut self, limit: &str) {
        self.limit = limit.into();
    }
}

fn content_type(request: &RequestHeader) -> Option<&[u8]> {
    let value = request.headers.get(header::CONTENT_TYPE);
    value.map(http::HeaderValue::as_bytes)
}

/// The query, if there is one.
fn query(request: &RequestHeader) -> &[u8] {
    let mut parts = request.raw_path().splitn(2, |byte| *byte == b'?');
    parts.nth(1).unwrap_or_default()
}

/// Whether a call has fields in its query that count with those of its body.
pub(super) fn has_fields(shared: &Shared, call: &Call, request: &RequestHeader) -> bool {
    let checked = payload::checked(&shared.rules, call);
    checked.is_some_and(|checked| checked.checks.reads_query()) && !query(request).is_empty()
}

/// Whether a call may be refused for its body.
pub(super) fn enforces_body(shared: &Shared, call: &Call) -> bool {
    payload::checked(&shared.rules, call).is_some_and(|checked| checked.enforces_body)
}

/// Counts what is only reported: the refusal that is left.
fn rejected(shared: &Shared, call: &Call, ctx: &mut Context, mut judged: Judged) -> Option<Reject> {
    for name in &judged.reported {
        shared.metrics.report(call.route_name(&shared.rules), name);
    }
    let reject = payload::rejected(&mut judged);
    match &reject {
        Some(Reject::Payload(refused)) => ctx.payload.refuses(&refused.name),
        Some(_) => ctx.payload.refuses(""),
        None => {
            if let Some(name) = judged.reported.first() {
                ctx.payload.reports(name);
            }
        }
    }
    reject
}

/// The recipients of a body that is here as a whole, unless there are too many.
pub(super) fn recipients(
    shared: &Shared,
    call: &Call,
    body: &[u8],
    ctx: &mut Context,
) -> Result<u32, Reject> {
    let Some(route) = call.route(&shared.rules) else {
        return Ok(1);
    };
    match payload::recipients(&shared.rules, route, body) {
        Ok((recipients, is_over)) => {
            if is_over {
                shared.metrics.report(&route.name, RECIPIENTS);
                ctx.payload.reports(RECIPIENTS);
            }
            Ok(recipients)
        }
        Err(reject) => {
            ctx.payload.refuses(match reject {
                Reject::Body(PriceError::TooMany(_)) => RECIPIENTS,
                _ => "",
            });
            Err(reject)
        }
    }
}

/// What of a call's path is refused.
pub(super) fn check_path(
    shared: &Shared,
    call: &Call,
    method: &str,
    ctx: &mut Context,
) -> Result<(), Reject> {
    let rules = &shared.rules;
    let found = payload::in_path(rules, call, method, &ctx.path);
    if found.is_good() {
        return Ok(());
    }
    let judged = payload::judge(rules, call, &found);
    rejected(shared, call, ctx, judged).map_or(Ok(()), Err)
}

/// What of a body that is here as a whole is refused.
pub(super) fn check_body(
    shared: &Shared,
    call: &Call,
    request: &RequestHeader,
    body: &[u8],
    ctx: &mut Context,
) -> Result<(), Reject> {
    let judged = payload::in_body(
        &shared.rules,
        call,
        query(request),
        content_type(request),
        body,
    );
    rejected(shared, call, ctx, judged).map_or(Ok(()), Err)
}

/// Makes ready for a body that will be forwarded as it comes. An answer, where it is in a
/// coding that cannot be looked into.
pub(super) fn check_stream(
    shared: &Shared,
    call: &Call,
    request: &RequestHeader,
    ctx: &mut Context,
) -> Option<Reply> {
    let Checked {
        checks,
        enforces_body,
    } = payload::checked(&shared.rules, call)?;
    checks.of_body().next()?;
    if body::is_coded(request) {
        if *enforces_body {
            return Some(Reply::unsupported_encoding());
        }
        let judged = payload::judge(&shared.rules, call, &Found::malformed());
        rejected(shared, call, ctx, judged);
        return None;
    }
    let content_type = content_type(request);
    let query = query(request);
    let mut checker = Checker::new(Arc::clone(checks), content_type);
    checker.query(query);
    ctx.payload.stream = Some(Box::new(Stream {
        checker,
        query: query.into(),
        content_type: content_type.map(Into::into),
        enforces: *enforces_body,
        held: None,
    }));
    None
}

/// Checks what has come of a body. An error cuts it off.
pub(super) fn pass(
    ctx: &mut Context,
    body: &mut Option<Bytes>,
    is_end: bool,
) -> pingora::Result<()> {
    let Some(stream) = &mut ctx.payload.stream else {
        return Ok(());
    };
    if let Some(piece) = body {
        stream.checker.push(piece);
    }
    if is_end {
        stream.checker.finish();
    }
    let found = stream.checker.found();
    if !found.is_good() && (stream.enforces || is_end) {
        let payloads = &ctx.shared.rules.payloads;
        let mut judged = payloads.judge(stream.checker.checks(), found);
        if !is_end {
            // What is reported is counted once.
            judged.reported.clear();
        }
        refuse(ctx, judged)?;
    }
    let Some(stream) = ctx.payload.stream.as_mut().filter(|stream| stream.enforces) else {
        return Ok(());
    };
    let piece = body.take().filter(|piece| !piece.is_empty());
    *body = match (is_end, stream.held.take(), piece) {
        (true, Some(held), Some(piece)) => Some([held, piece].concat().into()),
        (true, held, piece) => held.or(piece),
        (false, held, None) => {
            stream.held = held;
            Some(Bytes::new())
        }
        (false, held, piece) => {
            stream.held = piece;
            Some(held.unwrap_or_default())
        }
    };
    Ok(())
}

/// Cuts a body off, if it is refused: all that the call has taken is given back.
fn refuse(ctx: &mut Context, judged: Judged) -> pingora::Result<()> {
    let Some(call) = ctx.call.take() else {
        return Ok(());
    };
    let shared = ctx.shared.clone();
    let reject = rejected(&shared, &call, ctx, judged);
    ctx.call = Some(call);
    let Some(reject) = reject else {
        return Ok(());
    };
    ctx.verb = Some(Verb::Reject);
    ctx.payload.stream = None;
    ctx.payload.reply = Some(Box::new(Reply::rejected(&reject, &ctx.path)));
    if let Some(admitted) = &mut ctx.admitted {
        admitted.forwarded = false;
    }
    Err(Error::explain(REFUSED, "refused for what it carries").into_down())
}
