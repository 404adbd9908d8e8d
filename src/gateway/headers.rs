//! What changes in a head on its way up and down.

use std::net::{IpAddr, SocketAddr};

use http::header::{self, HeaderName};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::proxy::Session;

use crate::identity::address;
use crate::settings::Settings;

const FORWARDED: HeaderName = HeaderName::from_static("forwarded");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// Names the request in both directions and in the log.
pub(super) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

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
    let Some((scheme, token)) = value.to_str().ok().and_then(|v| v.split_once(' ')) else {
        return false;
    };
    scheme.eq_ignore_ascii_case("bearer") && !token.trim().is_empty()
}

/// The caller's own request ID, if a trusted proxy brings a sane one.
pub(super) fn request_id(request: &RequestHeader) -> Option<&str> {
    let id = request.headers.get(X_REQUEST_ID)?.to_str().ok()?;
    let sane = (1..=128).contains(&id.len())
        && id
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.:+/=".contains(&b));
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
    for name in ["keep-alive", "proxy-connection"] {
        response.remove_header(name);
    }
}

/// Makes the head that goes upstream: hop-by-hop fields removed, the forwarding fields set.
pub(super) fn prepare_upstream(
    request: &mut RequestHeader,
    settings: &Settings,
    peer: IpAddr,
    id: &str,
) -> pingora::Result<()> {
    let named = named_by_connection(&request.headers);
    for name in &named {
        request.remove_header(name);
    }
    request.remove_header(&header::CONNECTION);
    for name in NOT_FORWARDED {
        request.remove_header(*name);
    }

    let peer = peer.to_canonical();
    let trusted = is_trusted(settings, peer);
    let host = request
        .headers
        .get(header::HOST)
        .and_then(|h| h.to_str().ok())
        .map(str::to_owned);
    let proto = request
        .headers
        .get(X_FORWARDED_PROTO)
        .and_then(|value| value.to_str().ok())
        .filter(|value| trusted && matches!(*value, "http" | "https"))
        .unwrap_or("http")
        .to_owned();

    let joined = |name: &HeaderName, own: String, request: &RequestHeader| {
        let mut lines: Vec<&str> = Vec::new();
        if trusted {
            lines.extend(
                request
                    .headers
                    .get_all(name)
                    .iter()
                    .filter_map(|v| v.to_str().ok()),
            );
        }
        lines.push(&own);
        lines.join(", ")
    };
    let node = match peer {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => format!("\"[{v6}]\""),
    };
    let mut element = format!("for={node};proto={proto}");
    if let Some(host) = host.filter(|h| {
        h.bytes()
            .all(|b| b.is_ascii_alphanumeric() || b".-:[]".contains(&b))
    }) {
        element.push_str(&format!(";host=\"{host}\""));
    }
    let forwarded_for = joined(&X_FORWARDED_FOR, peer.to_string(), request);
    let forwarded = joined(&FORWARDED, element, request);
    request.insert_header(X_FORWARDED_FOR, forwarded_for)?;
    request.insert_header(FORWARDED, forwarded)?;
    request.insert_header(X_FORWARDED_PROTO, proto)?;
    request.insert_header(X_REQUEST_ID, id)?;
    Ok(())
}

fn is_end_to_end(name: &HeaderName) -> bool {
    [
        header::HOST,
        header::AUTHORIZATION,
        header::CONTENT_LENGTH,
        header::TRANSFER_ENCODING,
        header::CONTENT_TYPE,
        FORWARDED,
        X_FORWARDED_FOR,
        X_FORWARDED_PROTO,
        X_REQUEST_ID,
    ]
    .contains(name)
}
