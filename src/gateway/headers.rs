//! What changes in a head on its way up and down.

use std::net::IpAddr;

use http::header::{self, HeaderName, HeaderValue};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::proxy::Session;

use crate::identity::address;
use crate::settings::Settings;
use crate::text::push_ip;

const FORWARDED: HeaderName = HeaderName::from_static("forwarded");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
pub(super) static STRICT_TRANSPORT_SECURITY: HeaderName = header::STRICT_TRANSPORT_SECURITY;
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

/// Fields of one hop (RFC 9110, 7.6.1). pingora frames the body anew.
const OF_THIS_HOP: &[&str] = &[
    "connection",
    "http2-settings",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Fields by which a backend could read another path, method or host than the one that was
/// matched.
/// Not even from a trusted proxy: many pass on what their callers send.
const OTHER_READINGS: &[&str] = &[
    "x-envoy-original-path",
    "x-forwarded-method",
    "x-forwarded-path",
    "x-forwarded-prefix",
    "x-forwarded-uri",
    "x-forwarded-url",
    "x-host",
    "x-http-destinationurl",
    "x-http-host-override",
    "x-http-method",
    "x-http-method-override",
    "x-http-path-override",
    "x-method-override",
    "x-original-host",
    "x-original-method",
    "x-original-path",
    "x-original-uri",
    "x-original-url",
    "x-override-url",
    "x-proxy-url",
    "x-request-uri",
    "x-rewrite-uri",
    "x-rewrite-url",
    "x-script-name",
    "x-waws-unencoded-url",
];

/// Fields that name a caller beside those that are set here.
const OTHER_CALLERS: &[&str] = &[
    "cf-connecting-ip",
    "client-ip",
    "fastly-client-ip",
    "forwarded-for",
    "http-client-ip",
    "http-x-forwarded-for",
    "proxy-client-ip",
    "true-client-ip",
    "wl-proxy-client-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-forwarded",
    "x-original-forwarded-for",
    "x-originating-ip",
    "x-remote-addr",
    "x-remote-ip",
];

/// Fields of the call itself, or set here: no second spelling of theirs goes upstream.
const ONE_SPELLING: &[&str] = &["authorization", "host", "x-real-ip", "x-request-id"];

/// Whether a field of the caller's goes no further.
fn stays_behind(name: &str, trusted: bool) -> bool {
    let listed = |name: &str| {
        OF_THIS_HOP.contains(&name)
            || OTHER_READINGS.contains(&name)
            || OTHER_CALLERS.contains(&name)
            // A trusted proxy's host and port are believed.
            || !trusted && name.starts_with("x-forwarded-")
    };
    let bytes = name.as_bytes();
    if bytes
        .iter()
        .all(|b| b.is_ascii_alphanumeric() || *b == b'-')
    {
        // The usual names begin otherwise, and are not compared with each of these.
        return matches!(
            bytes.first(),
            Some(b'c' | b'f' | b'h' | b'k' | b'p' | b't' | b'u' | b'w' | b'x')
        ) && listed(name);
    }
    // A backend of the CGI kind reads `X_Original_URL` as `X-Original-URL`.
    let folded: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    listed(&folded)
        || ONE_SPELLING.contains(&&*folded)
        || ["content-", "x-forwarded-"]
            .iter()
            .any(|start| folded.starts_with(start))
}

/// Whether the request's target goes on with a `#`, where pingora has cut it off: another server
/// might have taken it for a part of the path. HTTP/2 has no request line, and a `#` there is cut
/// off unseen.
pub(super) fn has_fragment(session: &Session) -> bool {
    let Some(http1) = session.as_downstream().as_http1() else {
        return false;
    };
    let request = session.req_header();
    let head = http1.get_headers_raw_bytes();
    // Empty lines before a request are allowed.
    let line = head.iter().position(|b| !matches!(b, b'\r' | b'\n'));
    let target = line.map_or(0, |at| at + request.method.as_str().len() + 1);
    // A target that is nothing but a fragment is read as `/`.
    [target, target + request.raw_path().len()]
        .iter()
        .any(|at| head.get(*at) == Some(&b'#'))
}

/// Whether the caller speaks HTTPS: to us, or to a trusted proxy that says so.
pub(super) fn is_https(request: &RequestHeader, tls: bool, trusted: bool) -> bool {
    let mut said = request.headers.get_all(X_FORWARDED_PROTO).iter();
    let said = trusted.then(|| (said.next(), said.next()));
    match said {
        Some((Some(proto), None)) => proto.as_bytes().eq_ignore_ascii_case(b"https"),
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
    for name in found(&response.headers, |name| {
        matches!(name, "keep-alive" | "proxy-connection")
    }) {
        response.remove_header(&name);
    }
}

/// Which such fields are there. One walk: looking up each would cost more than it finds.
fn found(headers: &http::HeaderMap, which: impl Fn(&str) -> bool) -> Vec<HeaderName> {
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
    for name in named_by_connection(&request.headers) {
        request.remove_header(&name);
    }
    for name in found(&request.headers, |name| stays_behind(name, trusted)) {
        request.remove_header(&name);
    }

    let proto = if https { "https" } else { "http" };

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
    let mut real_ip = Vec::with_capacity(40);
    push_ip(&mut real_ip, ip);
    request.insert_header("x-forwarded-for", &forwarded_for[..])?;
    request.insert_header("x-real-ip", &real_ip[..])?;
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

/// Whether a field is for both ends, so that no hop may drop it, whatever `Connection` says.
fn is_end_to_end(name: &HeaderName) -> bool {
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
