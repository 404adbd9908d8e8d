//! What changes in a head on its way up and down.

use std::net::IpAddr;

use bytes::Bytes;
use http::HeaderMap;
use http::header::{self, HeaderName, HeaderValue};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::{ErrorType, OrErr as _};

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
    "base-url",
    "http-method",
    "http-method-override",
    "http-url",
    "method-override",
    "path-info",
    "path-translated",
    "proxy",
    "proxy-host",
    "proxy-url",
    "query-string",
    "redirect-url",
    "request-method",
    "request-uri",
    "script-name",
    "script-url",
    "unencoded-url",
    "url-override",
    "x-accel-internal",
    "x-accel-mapping",
    "x-accel-redirect",
    "x-backend-host",
    "x-destination-url",
    "x-envoy-internal",
    "x-envoy-original-dst-host",
    "x-envoy-original-method",
    "x-envoy-original-path",
    "x-forwarded-method",
    "x-forwarded-original-url",
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
    "x-http-query-string",
    "x-http-url-override",
    "x-lighttpd-send-file",
    "x-method",
    "x-method-override",
    "x-ms-original-url",
    "x-original-host",
    "x-original-method",
    "x-original-path",
    "x-original-request-uri",
    "x-original-scheme",
    "x-original-uri",
    "x-original-url",
    "x-override-method",
    "x-override-url",
    "x-path",
    "x-path-info",
    "x-proxy-host",
    "x-proxy-url",
    "x-request-method",
    "x-request-path",
    "x-request-uri",
    "x-request-url",
    "x-rest-method",
    "x-rewrite-path",
    "x-rewrite-uri",
    "x-rewrite-url",
    "x-rewritten-url",
    "x-script-name",
    "x-sendfile",
    "x-sendfile-type",
    "x-target-uri",
    "x-tunnel-method",
    "x-uri",
    "x-url",
    "x-url-scheme",
    "x-waws-unencoded-url",
];

/// Fields that name a caller beside those that are set here.
const OTHER_CALLERS: &[&str] = &[
    "akamai-client-ip",
    "ali-cdn-real-ip",
    "auth-user",
    "cdn-real-ip",
    "cdn-src-ip",
    "cf-connecting-ip",
    "cf-connecting-ipv6",
    "cf-pseudo-ipv4",
    "client-address",
    "client-ip",
    "do-connecting-ip",
    "eo-client-ip",
    "eo-connecting-ip",
    "fastly-client-ip",
    "fly-client-ip",
    "forwarded-for",
    "http-cf-connecting-ip",
    "http-client-ip",
    "http-forwarded",
    "http-forwarded-for",
    "http-x-forwarded",
    "http-x-forwarded-for",
    "http-x-real-ip",
    "proxy-client-ip",
    "real-ip",
    "remote-addr",
    "remote-host",
    "remote-ident",
    "remote-ip",
    "remote-port",
    "remote-user",
    "source-ip",
    "ssl-client-cert",
    "ssl-client-verify",
    "true-client-ip",
    "wl-proxy-client-ip",
    "x-amzn-client-ip",
    "x-appengine-remote-addr",
    "x-appengine-user-ip",
    "x-authenticated-user",
    "x-aws-client-ip",
    "x-azure-clientip",
    "x-azure-socketip",
    "x-client-address",
    "x-client-cert",
    "x-client-dn",
    "x-client-ip",
    "x-clientip",
    "x-cluster-client-ip",
    "x-cluster-clientip",
    "x-envoy-external-address",
    "x-forward",
    "x-forward-for",
    "x-forwarded",
    "x-forwarded-client-cert",
    "x-forwarded-for-original",
    "x-forwarded-user",
    "x-forwarder-for",
    "x-from-ip",
    "x-ip",
    "x-ip-trail",
    "x-nf-client-connection-ip",
    "x-nginx-real-ip",
    "x-original-for",
    "x-original-forwarded-for",
    "x-original-ip",
    "x-original-remote-addr",
    "x-originally-forwarded-for",
    "x-originating-client-ip",
    "x-originating-ip",
    "x-proxyuser-ip",
    "x-real-client-ip",
    "x-real-user-ip",
    "x-realip",
    "x-remote-addr",
    "x-remote-host",
    "x-remote-ip",
    "x-remote-user",
    "x-sina-proxyuser",
    "x-source-ip",
    "x-ssl-client-cert",
    "x-ssl-client-s-dn",
    "x-ssl-client-verify",
    "x-true-client-ip",
    "x-true-ip",
    "x-user-ip",
    "x-vercel-forwarded-for",
    "x-yahoo-client-ip",
];

/// Fields of the call itself, or set here: no second spelling of theirs goes upstream.
const ONE_SPELLING: &[&str] = &["authorization", "host", "x-real-ip", "x-request-id"];

/// By first letter, the lengths of the names above, as bits: the usual names are told from them
/// without comparing.
static LENGTHS: [u64; 256] = lengths(&[OF_THIS_HOP, OTHER_READINGS, OTHER_CALLERS]);

const fn lengths(lists: &[&[&str]]) -> [u64; 256] {
    let mut lengths = [0; 256];
    let mut list = 0;
    while list < lists.len() {
        let mut at = 0;
        while at < lists[list].len() {
            let name = lists[list][at].as_bytes();
            lengths[name[0] as usize] |= 1 << name.len();
            at += 1;
        }
        list += 1;
    }
    lengths
}

/// Whether a name is in one of the lists above.
fn is_listed(name: &str) -> bool {
    let first = name.as_bytes().first().copied().unwrap_or_default();
    let lengths = LENGTHS[usize::from(first)];
    u32::try_from(name.len()).is_ok_and(|length| lengths.checked_shr(length).unwrap_or(0) & 1 == 1)
        && [OF_THIS_HOP, OTHER_READINGS, OTHER_CALLERS]
            .iter()
            .any(|list| list.contains(&name))
}

/// Whether a field of the caller's goes no further.
fn stays_behind(name: &str, trusted: bool) -> bool {
    // A trusted proxy's host and port are believed.
    let listed = |name: &str| is_listed(name) || !trusted && name.starts_with("x-forwarded-");
    let bytes = name.as_bytes();
    if bytes
        .iter()
        .all(|b| b.is_ascii_alphanumeric() || *b == b'-')
    {
        return listed(name);
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

/// The bearer token of the call. One that names two has none.
pub(super) fn bearer(request: &RequestHeader) -> Option<&str> {
    let mut values = request.headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return None;
    };
    let (scheme, token) = value.to_str().ok()?.split_at_checked("bearer ".len())?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer ") && !token.is_empty()).then_some(token)
}

/// The length of a request's body, where its framing says it: 0 without one.
pub(super) fn plain_length(request: &RequestHeader) -> Option<u64> {
    if request.headers.contains_key(header::TRANSFER_ENCODING) {
        return None;
    }
    match request.headers.get(header::CONTENT_LENGTH) {
        Some(length) => length.to_str().ok()?.parse().ok(),
        None => Some(0),
    }
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
    if let Some(host) = host.filter(|h| {
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

#[cfg(test)]
mod tests;
