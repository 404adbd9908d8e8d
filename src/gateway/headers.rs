//! What changes in a head on its way up and down.

mod behind;

use std::net::IpAddr;

use bytes::Bytes;
use http::HeaderMap;
use http::header::{self, HeaderName, HeaderValue};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::{ErrorType, OrErr as _};

use self::behind::stays_behind;
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

/// Makes the head that goes upstream: hop-by-hop fields removed, the forwarding fields set.
pub(super) fn prepare_upstream(
    request: &mut RequestHeader,
    settings: &Settings,
    peer: IpAddr,
    ip: IpAddr,
    https: bool,
    id: &HeaderValue,
) -> pingora::Result<()> {
    let peer = peer.to_canonical();
    let trusted = is_trusted(settings, peer);
    let mut parts = taken_apart(request);
    let fields = &mut parts.headers;
    for name in named_by_connection(fields) {
        fields.remove(&name);
    }
    for name in found(fields, |name| stays_behind(name, trusted)) {
        fields.remove(&name);
    }

    join_crumbs(fields)?;

    let proto = if https { "https" } else { "http" };

    let mut forwarded_for = Vec::with_capacity(40);
    let mut forwarded = Vec::with_capacity(128);
    if trusted {
        // Of the header that is not read, only what the other one says.
        let naming = settings.client_ip_header;
        let (read, other) = match naming {
            Naming::XForwardedFor => (&mut forwarded_for, &mut forwarded),
            Naming::Forwarded => (&mut forwarded, &mut forwarded_for),
        };
        push_said(read, fields, name_of(naming));
        // What comes behind a quote that does not end is part of it, to who reads quotes.
        if read.iter().filter(|b| **b == b'"').count() % 2 == 1 {
            read.clear();
            if ip != peer {
                push_element(read, ip);
                read.extend_from_slice(b", ");
            }
        }
        if ip != peer {
            match naming {
                Naming::XForwardedFor => push_element(other, ip),
                Naming::Forwarded => push_ip(other, ip),
            }
            other.extend_from_slice(b", ");
        }
    }
    push_ip(&mut forwarded_for, peer);
    push_element(&mut forwarded, peer);
    for part in [b";proto=", proto.as_bytes()] {
        forwarded.extend_from_slice(part);
    }
    let host = fields.get(header::HOST).map(HeaderValue::as_bytes);
    // To an upstream of HTTP/2 goes what a caller of HTTP/2 has said.
    let authority = || parts.uri.authority().map(|said| said.as_str().as_bytes());
    if let Some(host) = host.or_else(authority).filter(|h| {
        h.iter()
            .all(|b| b.is_ascii_alphanumeric() || b".-:[]".contains(b))
    }) {
        for part in [&b";host=\""[..], host, b"\""] {
            forwarded.extend_from_slice(part);
        }
    }
    let mut real_ip = Vec::with_capacity(40);
    push_ip(&mut real_ip, ip);
    fields.reserve(5);
    fields.insert(X_FORWARDED_FOR, value(forwarded_for)?);
    fields.insert(X_REAL_IP, value(real_ip)?);
    fields.insert(FORWARDED, value(forwarded)?);
    fields.insert(X_FORWARDED_PROTO, HeaderValue::from_static(proto));
    fields.insert(X_REQUEST_ID, id.clone());
    *request = RequestHeader::from(parts);
    Ok(())
}

/// Puts the crumbs into which HTTP/2 may cut cookies together: of several lines, one server reads
/// the first and another the last (RFC 9113, 8.2.3). They are no longer than the bounds of a head
/// let them come in.
fn join_crumbs(fields: &mut HeaderMap) -> pingora::Result<()> {
    let crumbs = fields.get_all(header::COOKIE);
    if crumbs.iter().nth(1).is_none() {
        return Ok(());
    }
    let crumbs: Vec<&[u8]> = crumbs.iter().map(HeaderValue::as_bytes).collect();
    let joined = crumbs.join(&b"; "[..]);
    fields.insert(header::COOKIE, value(joined)?);
    Ok(())
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
