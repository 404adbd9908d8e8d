//! What changes in a head on its way up and down.

mod behind;

use std::net::IpAddr;

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, Uri};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::{ErrorType, OrErr as _};

use self::behind::stays_behind;
use super::field::push_field;
use crate::identity;
use crate::identity::address::{self, Naming};
use crate::settings::Settings;
use crate::text::push_ip;

const FORWARDED: HeaderName = HeaderName::from_static("forwarded");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
/// Names the request in both directions and in the log.
pub(super) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub(super) const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");
pub(super) const RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
pub(super) const X_RATELIMIT_LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
pub(super) const X_RATELIMIT_REMAINING: HeaderName =
    HeaderName::from_static("x-ratelimit-remaining");
pub(super) const X_RATELIMIT_RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// Whether the request's target goes on with a `#`, where pingora has cut it off: another server
/// might have taken it for a part of the path. HTTP/2 has no request line, and a `#` there is cut
/// off unseen.
pub(super) fn has_fragment(head: &[u8], request: &RequestHeader) -> bool {
    // Empty lines before a request are allowed.
    let line = head.iter().position(|b| !matches!(b, b'\r' | b'\n'));
    let target = line.map_or(0, |at| at + request.method.as_str().len() + 1);
    // A target that is nothing but a fragment is read as `/`.
    [target, target + request.raw_path().len()]
        .iter()
        .any(|at| head.get(*at) == Some(&b'#'))
}

/// Whether the caller speaks HTTPS: to us, or to a trusted proxy that says so, in the header in
/// which it names its caller or in that one's sister.
pub(super) fn is_https(
    request: &RequestHeader,
    settings: &Settings,
    peer: IpAddr,
    tls: bool,
) -> bool {
    if !is_trusted(settings, peer) {
        return tls;
    }
    if settings.client_ip_header == Naming::Forwarded {
        return client(request, settings, peer).https.unwrap_or(tls);
    }
    let mut said = request.headers.get_all(X_FORWARDED_PROTO).iter();
    match (said.next(), said.next()) {
        (Some(proto), None) => proto.as_bytes().eq_ignore_ascii_case(b"https"),
        _ => tls,
    }
}

/// Where a `GET` over plain HTTP is sent, if at all.
pub(super) fn https_location(request: &RequestHeader, port: Option<u16>) -> Option<String> {
    let port = port?;
    let safe = [http::Method::GET, http::Method::HEAD].contains(&request.method);
    let host = request
        .headers
        .get(header::HOST)?
        .to_str()
        .ok()
        .filter(|_| safe)?;
    // Without its own port; an IPv6 address has colons of its own.
    let name = match host.rsplit_once(':') {
        Some((name, digits)) if digits.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let is_name = |b: u8| b.is_ascii_alphanumeric() || b".-[]:".contains(&b);
    let target = std::str::from_utf8(request.raw_path()).ok()?;
    if name.is_empty() || !name.bytes().all(is_name) || !target.starts_with('/') {
        return None;
    }
    Some(match port {
        443 => format!("https://{name}{target}"),
        _ => format!("https://{name}:{port}{target}"),
    })
}

/// The address to charge.
pub(super) fn client_ip(request: &RequestHeader, settings: &Settings, peer: IpAddr) -> IpAddr {
    if !is_trusted(settings, peer) {
        return peer.to_canonical();
    }
    client(request, settings, peer).ip
}

/// Whom a trusted proxy calls for.
fn client(request: &RequestHeader, settings: &Settings, peer: IpAddr) -> address::Client {
    let naming = settings.client_ip_header;
    let lines = request.headers.get_all(name_of(naming)).iter();
    let lines = lines.map(HeaderValue::as_bytes);
    address::client(peer, naming, lines, &settings.trusted_proxies)
}

/// The header that is read.
fn name_of(naming: Naming) -> &'static HeaderName {
    static NAMES: [HeaderName; 2] = [X_FORWARDED_FOR, FORWARDED];
    match naming {
        Naming::XForwardedFor => &NAMES[0],
        Naming::Forwarded => &NAMES[1],
    }
}

/// Whether what this peer says of others is believed.
pub(super) fn is_trusted(settings: &Settings, peer: IpAddr) -> bool {
    let peer = peer.to_canonical();
    settings
        .trusted_proxies
        .iter()
        .any(|net| net.contains(&peer))
}

/// The bearer token of the call.
pub(super) fn bearer(request: &RequestHeader) -> Option<&str> {
    let lines = request.headers.get_all(header::AUTHORIZATION).iter();
    identity::bearer(lines.map(HeaderValue::as_bytes))
}

/// Whether pingora may have escaped what the caller wrote in its target, so that the head is
/// longer than what came in. It does so where it cannot read a target otherwise, which is for
/// blanks and controls alone. Then it escapes `<`, `>`, `"` and all that is no ASCII as well: one
/// of the former is there whenever any of the latter is its work, and not the caller's.
pub(super) fn may_be_escaped(head: &[u8]) -> bool {
    // Empty lines before a request are allowed.
    let mut lines = head.split(|b| *b == b'\n');
    let line = lines.find(|line| !matches!(line, [] | [b'\r']));
    line.unwrap_or_default().windows(3).any(|escape| {
        matches!(
            escape,
            [b'%', b'2', b'0'] | [b'%', b'0' | b'1', _] | [b'%', b'7', b'F']
        )
    })
}

/// The length of a request's body, where its framing says it: 0 without one.
pub(super) fn plain_length(request: &RequestHeader) -> Option<u64> {
    if request.headers.contains_key(header::TRANSFER_ENCODING) {
        return None;
    }
    match request.headers.contains_key(header::CONTENT_LENGTH) {
        true => content_length(request),
        false => Some(0),
    }
}

/// The length that a head announces.
pub(super) fn content_length(request: &RequestHeader) -> Option<u64> {
    let length = request.headers.get(header::CONTENT_LENGTH)?;
    length.to_str().ok()?.parse().ok()
}

/// Whether the call expects what nobody here knows (RFC 9110, 10.1.1).
pub(super) fn expects_the_unknown(request: &RequestHeader) -> bool {
    request
        .headers
        .get_all(header::EXPECT)
        .iter()
        .any(|expected| !expected.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// The caller's own request ID, if a trusted proxy brings a sane one.
pub(super) fn request_id(request: &RequestHeader) -> Option<&HeaderValue> {
    let id = request.headers.get(&X_REQUEST_ID)?;
    let sane = (1..=128).contains(&id.len())
        && id
            .as_bytes()
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.:+/=".contains(b));
    sane.then_some(id)
}

/// The fields that `Connection` names.
fn named_by_connection(headers: &HeaderMap) -> Vec<HeaderName> {
    headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        // Framing is pingora's, and no hop may drop the fields that identify a call.
        .filter(|name| !is_end_to_end(name))
        .collect()
}

/// Whether the body of an answer is framed in a way that is known here.
pub(super) fn is_framed_plainly(fields: &HeaderMap) -> bool {
    let mut codings = fields.get_all(header::TRANSFER_ENCODING).iter();
    let is_known = |coding: &HeaderValue| {
        let coding = coding.as_bytes().trim_ascii();
        [&b"chunked"[..], b"identity"]
            .iter()
            .any(|known| coding.eq_ignore_ascii_case(known))
    };
    codings.next().is_none_or(is_known) && codings.next().is_none()
}

/// Takes the upstream hop's own fields out of an answer. `Connection` itself is pingora's.
pub(super) fn remove_hop_by_hop(fields: &mut HeaderMap) {
    for name in named_by_connection(fields) {
        fields.remove(&name);
    }
    for name in found(fields, |name| {
        matches!(name, "keep-alive" | "proxy-connection")
    }) {
        fields.remove(&name);
    }
}

/// Which such fields are there. One walk: looking up each would cost more than it finds.
fn found(headers: &HeaderMap, which: impl Fn(&str) -> bool) -> Vec<HeaderName> {
    headers
        .keys()
        .filter(|name| which(name.as_str()))
        .cloned()
        .collect()
}

/// Who has called, as the head that goes upstream says it.
pub(super) struct Origin<'a> {
    pub(super) peer: IpAddr,
    /// The address that is charged.
    pub(super) ip: IpAddr,
    pub(super) https: bool,
    /// The request's.
    pub(super) id: &'a HeaderValue,
}

/// Makes the head that goes upstream: hop-by-hop fields removed, the forwarding fields set.
pub(super) fn prepare_upstream(
    request: &mut RequestHeader,
    settings: &Settings,
    origin: &Origin<'_>,
) -> pingora::Result<()> {
    let trusted = is_trusted(settings, origin.peer);
    let mut parts = taken_apart(request);
    let fields = &mut parts.headers;
    for name in named_by_connection(fields) {
        fields.remove(&name);
    }
    for name in found(fields, |name| stays_behind(name, trusted)) {
        fields.remove(&name);
    }
    if let Some(crumbs) = crumbs(fields) {
        fields.insert(header::COOKIE, value(crumbs)?);
    }
    let chain = Chain::new(fields, &parts.uri, settings, origin);
    let (mut forwarded_for, mut forwarded, mut real_ip) = (Vec::new(), Vec::new(), Vec::new());
    chain.push_forwarded_for(&mut forwarded_for);
    chain.push_forwarded(&mut forwarded);
    push_ip(&mut real_ip, origin.ip);
    fields.reserve(5);
    fields.insert(X_FORWARDED_FOR, value(forwarded_for)?);
    fields.insert(X_REAL_IP, value(real_ip)?);
    fields.insert(FORWARDED, value(forwarded)?);
    fields.insert(X_FORWARDED_PROTO, HeaderValue::from_static(origin.proto()));
    fields.insert(X_REQUEST_ID, origin.id.clone());
    *request = RequestHeader::from(parts);
    Ok(())
}

/// Writes the same fields as HTTP/1.1 has them, but for `without`.
pub(super) fn write_upstream(
    request: &RequestHeader,
    settings: &Settings,
    origin: &Origin<'_>,
    without: impl Fn(&HeaderName) -> bool,
    wire: &mut Vec<u8>,
) {
    const OURS: [HeaderName; 5] = [
        X_FORWARDED_FOR,
        X_REAL_IP,
        FORWARDED,
        X_FORWARDED_PROTO,
        X_REQUEST_ID,
    ];
    let trusted = is_trusted(settings, origin.peer);
    let fields = &request.headers;
    let named = named_by_connection(fields);
    let mut crumbs = crumbs(fields);
    for (name, value) in fields {
        let is_other = OURS.contains(name) || named.contains(name) || without(name);
        if is_other || stays_behind(name.as_str(), trusted) {
            continue;
        }
        let mut line = |value: &[u8]| push_field(wire, name.as_str(), value);
        match &mut crumbs {
            Some(joined) if *name == header::COOKIE => {
                if !joined.is_empty() {
                    line(&std::mem::take(joined));
                }
            }
            _ => line(value.as_bytes()),
        }
    }
    let chain = Chain::new(fields, &request.uri, settings, origin);
    wire.extend_from_slice(b"x-forwarded-for: ");
    chain.push_forwarded_for(wire);
    wire.extend_from_slice(b"\r\nx-real-ip: ");
    push_ip(wire, origin.ip);
    wire.extend_from_slice(b"\r\nforwarded: ");
    chain.push_forwarded(wire);
    for (name, value) in [
        (&b"\r\nx-forwarded-proto: "[..], origin.proto().as_bytes()),
        (b"\r\nx-request-id: ", origin.id.as_bytes()),
        (b"\r\n", b""),
    ] {
        wire.extend_from_slice(name);
        wire.extend_from_slice(value);
    }
}

impl Origin<'_> {
    fn proto(&self) -> &'static str {
        if self.https { "https" } else { "http" }
    }
}

/// The proxies that a call came through.
struct Chain<'a> {
    origin: &'a Origin<'a>,
    peer: IpAddr,
    host: Option<&'a [u8]>,
    /// What trusted ones have said, in the header that is read.
    said: Option<(Naming, Vec<u8>)>,
}

impl<'a> Chain<'a> {
    fn new(
        fields: &'a HeaderMap,
        uri: &'a Uri,
        settings: &Settings,
        origin: &'a Origin<'a>,
    ) -> Self {
        let peer = origin.peer.to_canonical();
        let said = is_trusted(settings, peer).then(|| {
            let naming = settings.client_ip_header;
            let mut said = Vec::new();
            push_said(&mut said, fields, name_of(naming));
            // What comes behind a quote that does not end is part of it, to who reads quotes.
            if said.iter().filter(|b| **b == b'"').count() % 2 == 1 {
                said.clear();
                if origin.ip != peer {
                    push_as(naming, &mut said, origin.ip);
                    said.extend_from_slice(b", ");
                }
            }
            (naming, said)
        });
        let host = fields.get(header::HOST).map(HeaderValue::as_bytes);
        // To an upstream of HTTP/2 goes what a caller of HTTP/2 has said.
        let authority = || uri.authority().map(|said| said.as_str().as_bytes());
        let is_plain = |b: &u8| b.is_ascii_alphanumeric() || b".-:[]".contains(b);
        let host = host.or_else(authority);
        Self {
            origin,
            peer,
            host: host.filter(|host| host.iter().all(is_plain)),
            said,
        }
    }

    fn push_forwarded_for(&self, out: &mut Vec<u8>) {
        self.push(Naming::XForwardedFor, out);
    }

    fn push_forwarded(&self, out: &mut Vec<u8>) {
        self.push(Naming::Forwarded, out);
        out.extend_from_slice(b";proto=");
        out.extend_from_slice(self.origin.proto().as_bytes());
        if let Some(host) = self.host {
            for part in [&b";host=\""[..], host, b"\""] {
                out.extend_from_slice(part);
            }
        }
    }

    /// Of the header that is not read, only what the other one says.
    fn push(&self, header: Naming, out: &mut Vec<u8>) {
        match &self.said {
            Some((read, said)) if *read == header => out.extend_from_slice(said),
            Some(_) if self.origin.ip != self.peer => {
                push_as(header, out, self.origin.ip);
                out.extend_from_slice(b", ");
            }
            _ => {}
        }
        push_as(header, out, self.peer);
    }
}

/// An address as this header has it.
fn push_as(header: Naming, out: &mut Vec<u8>, ip: IpAddr) {
    match header {
        Naming::XForwardedFor => push_ip(out, ip),
        Naming::Forwarded => push_element(out, ip),
    }
}

/// The crumbs into which HTTP/2 may cut cookies, put together: of several lines, one server reads
/// the first and another the last (RFC 9113, 8.2.3). They are no longer than the bounds of a head
/// let them come in.
fn crumbs(fields: &HeaderMap) -> Option<Vec<u8>> {
    let crumbs = fields.get_all(header::COOKIE);
    crumbs.iter().nth(1)?;
    let crumbs: Vec<&[u8]> = crumbs.iter().map(HeaderValue::as_bytes).collect();
    Some(crumbs.join(&b"; "[..]))
}

/// Without the copy: the text is the value's own.
fn value(text: Vec<u8>) -> pingora::Result<HeaderValue> {
    HeaderValue::from_maybe_shared(Bytes::from(text))
        .or_err(ErrorType::InvalidHTTPHeader, "a field's value")
}

/// A request's parts, to be put together again by `RequestHeader::from`. pingora keeps each
/// name a second time, as it was written, and parses what is inserted: names go upstream in
/// lower case instead, at half the price. What stands in the target is the caller's to restore,
/// where it is no UTF-8.
fn taken_apart(request: &mut RequestHeader) -> http::request::Parts {
    let nothing = http::Request::new(()).into_parts().0;
    std::mem::replace(request, RequestHeader::from(nothing)).into()
}

/// The same of a response; see [`put_together`].
pub(super) fn response_taken_apart(
    response: &mut ResponseHeader,
) -> (http::response::Parts, Option<String>) {
    let reason = response.get_reason_phrase();
    let own = (reason != response.status.canonical_reason())
        .then(|| reason.unwrap_or_default().to_owned());
    let nothing = http::Response::new(()).into_parts().0;
    let whole = std::mem::replace(response, ResponseHeader::from(nothing));
    (whole.into(), own)
}

/// Puts a response together again, with the reason that the upstream gave.
pub(super) fn put_together(
    response: &mut ResponseHeader,
    (parts, reason): (http::response::Parts, Option<String>),
) -> pingora::Result<()> {
    *response = ResponseHeader::from(parts);
    match reason {
        Some(reason) => response.set_reason_phrase(Some(&reason)),
        None => Ok(()),
    }
}

/// What trusted proxies have said of a call.
fn push_said(out: &mut Vec<u8>, headers: &HeaderMap, name: &HeaderName) {
    for said in headers.get_all(name).iter().filter_map(|v| v.to_str().ok()) {
        out.extend_from_slice(said.as_bytes());
        out.extend_from_slice(b", ");
    }
}

/// An address as `Forwarded` has it.
fn push_element(out: &mut Vec<u8>, ip: IpAddr) {
    let (open, close): (&[u8], &[u8]) = match ip {
        IpAddr::V4(_) => (b"for=", b""),
        IpAddr::V6(_) => (b"for=\"[", b"]\""),
    };
    out.extend_from_slice(open);
    push_ip(out, ip);
    out.extend_from_slice(close);
}

/// Whether a field is for both ends, so that no hop may drop it, whatever `Connection` says.
pub(super) fn is_end_to_end(name: &HeaderName) -> bool {
    ["accept", "content-", "if-"]
        .iter()
        .any(|start| name.as_str().starts_with(start))
        || [
            &header::AUTHORIZATION,
            &header::CACHE_CONTROL,
            &header::COOKIE,
            &header::EXPECT,
            &header::HOST,
            &header::RANGE,
            &header::TRANSFER_ENCODING,
            &header::USER_AGENT,
            &FORWARDED,
            &X_FORWARDED_FOR,
            &X_FORWARDED_PROTO,
            &X_REQUEST_ID,
        ]
        .contains(&name)
}

#[cfg(test)]
mod tests;
