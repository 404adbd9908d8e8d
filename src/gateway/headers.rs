//! What changes in a head on its way up and down.

use std::net::{IpAddr, SocketAddr};

use http::header::{self, HeaderName, HeaderValue};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::proxy::Session;

use crate::identity::address;
use crate::settings::Settings;
use crate::text::push_ip;

const FORWARDED: HeaderName = HeaderName::from_static("forwarded");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// Names the request in both directions and in the log.
pub(super) static X_REQUEST_ID: HeaderName = HeaderName::from_static(REQUEST_ID);
/// pingora parses a name in any case, and copies one that is no literal.
const REQUEST_ID: &str = "x-request-id";
pub(super) static RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");
pub(super) static RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
pub(super) static X_RATELIMIT_LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
pub(super) static X_RATELIMIT_REMAINING: HeaderName =
    HeaderName::from_static("x-ratelimit-remaining");
pub(super) static X_RATELIMIT_RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// Headers of one hop (RFC 9110, 7.6.1), and those that would let a caller change the method
/// behind our back.
const NOT_FORWARDED: &[&str] = &[
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "upgrade",
    "http2-settings",
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
];

/// The peer of the downstream connection.
pub(super) fn peer(session: &Session) -> Option<IpAddr> {
    session
        .client_addr()
        .and_then(|addr| addr.as_inet())
        .map(SocketAddr::ip)
}

/// The address to charge.
pub(super) fn client_ip(session: &Session, settings: &Settings, peer: IpAddr) -> IpAddr {
    if !is_trusted(settings, peer) {
        return peer.to_canonical();
    }
    let headers = &session.req_header().headers;
    let lines = headers
        .get_all(X_FORWARDED_FOR)
        .iter()
        .map(http::HeaderValue::as_bytes);
    address::client_ip(peer, lines, &settings.trusted_proxies)
}

/// Whether what this peer says of others is believed.
pub(super) fn is_trusted(settings: &Settings, peer: IpAddr) -> bool {
    let peer = peer.to_canonical();
    settings
        .trusted_proxies
        .iter()
        .any(|net| net.contains(&peer))
}

/// Whether the call carries a bearer token.
pub(super) fn has_bearer(request: &RequestHeader) -> bool {
    let mut values = request.headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return false;
    };
    let value = value.to_str().ok();
    let Some((scheme, token)) = value.and_then(|v| v.split_at_checked("bearer ".len())) else {
        return false;
    };
    scheme.eq_ignore_ascii_case("bearer ") && !token.trim().is_empty()
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
fn named_by_connection(headers: &http::HeaderMap) -> Vec<HeaderName> {
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

/// Takes the upstream hop's own fields out of an answer. `Connection` itself is pingora's.
pub(super) fn remove_hop_by_hop(response: &mut ResponseHeader) {
    for name in named_by_connection(&response.headers) {
        response.remove_header(&name);
    }
    for name in present(&response.headers, &["keep-alive", "proxy-connection"]) {
        response.remove_header(&name);
    }
}

/// Which of these fields are there. One walk: looking up each would cost more than it finds.
fn present(headers: &http::HeaderMap, names: &[&str]) -> Vec<HeaderName> {
    headers
        .keys()
        .filter(|name| names.contains(&name.as_str()))
        .cloned()
        .collect()
}

/// Makes the head that goes upstream: hop-by-hop fields removed, the forwarding fields set.
pub(super) fn prepare_upstream(
    request: &mut RequestHeader,
    settings: &Settings,
    peer: IpAddr,
    id: &HeaderValue,
) -> pingora::Result<()> {
    let named = named_by_connection(&request.headers);
    for name in &named {
        request.remove_header(name);
    }
    request.remove_header(&header::CONNECTION);
    for name in present(&request.headers, NOT_FORWARDED) {
        request.remove_header(&name);
    }

    let peer = peer.to_canonical();
    let trusted = is_trusted(settings, peer);
    let proto = match request.headers.get(X_FORWARDED_PROTO) {
        Some(value) if trusted && value == "https" => "https",
        _ => "http",
    };

    let mut forwarded_for = Vec::with_capacity(40);
    push_ip(&mut forwarded_for, peer);
    let mut forwarded = Vec::with_capacity(128);
    let (open, close): (&[u8], &[u8]) = if peer.is_ipv6() {
        (b"for=\"[", b"]\";proto=")
    } else {
        (b"for=", b";proto=")
    };
    for part in [open, &forwarded_for, close, proto.as_bytes()] {
        forwarded.extend_from_slice(part);
    }
    let host = request.headers.get(header::HOST).map(HeaderValue::as_bytes);
    if let Some(host) = host.filter(|h| {
        h.iter()
            .all(|b| b.is_ascii_alphanumeric() || b".-:[]".contains(b))
    }) {
        for part in [&b";host=\""[..], host, b"\""] {
            forwarded.extend_from_slice(part);
        }
    }
    if trusted {
        forwarded = appended(&request.headers, &FORWARDED, &forwarded);
        forwarded_for = appended(&request.headers, &X_FORWARDED_FOR, &forwarded_for);
    }
    request.insert_header("x-forwarded-for", &forwarded_for[..])?;
    request.insert_header("forwarded", &forwarded[..])?;
    request.insert_header("x-forwarded-proto", HeaderValue::from_static(proto))?;
    request.insert_header(REQUEST_ID, id.clone())?;
    Ok(())
}

/// What trusted proxies have said of a call, and what we say.
fn appended(headers: &http::HeaderMap, name: &HeaderName, own: &[u8]) -> Vec<u8> {
    let mut all = Vec::new();
    for said in headers.get_all(name).iter().filter_map(|v| v.to_str().ok()) {
        all.extend_from_slice(said.as_bytes());
        all.extend_from_slice(b", ");
    }
    all.extend_from_slice(own);
    all
}

fn is_end_to_end(name: &HeaderName) -> bool {
    [
        &header::HOST,
        &header::AUTHORIZATION,
        &header::CONTENT_LENGTH,
        &header::TRANSFER_ENCODING,
        &header::CONTENT_TYPE,
        &FORWARDED,
        &X_FORWARDED_FOR,
        &X_FORWARDED_PROTO,
        &X_REQUEST_ID,
    ]
    .contains(&name)
}
