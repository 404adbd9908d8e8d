//! Who may use the admin listener, and what a request to it may weigh.

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::header::{AUTHORIZATION, HOST, ORIGIN, WWW_AUTHENTICATE};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use sha2::{Digest as _, Sha256};
use std::sync::Arc;
use subtle::ConstantTimeEq as _;

use super::error;
use crate::gateway::Shared;
use crate::store::redis::connect::Secret;

/// The largest body, in bytes.
pub(super) const MAX_BODY: usize = 256 * 1024;

/// Lets those pass who have the token; nobody where there is none.
pub(super) async fn token(
    State(shared): State<Arc<Shared>>,
    request: Request,
    next: Next,
) -> Response {
    match &shared.settings.admin_token {
        Some(token) => with(token, request, next).await,
        None => no_token(),
    }
}

/// The same for finished tasks; but where there is no token, those of this host may pass.
pub(super) async fn task(
    State(shared): State<Arc<Shared>>,
    request: Request,
    next: Next,
) -> Response {
    let settings = &shared.settings;
    match &settings.admin_token {
        Some(token) => with(token, request, next).await,
        None if settings.admin.ip().is_loopback() => next.run(request).await,
        None => no_token(),
    }
}

/// The same for what only tells; but all may pass where the settings do not say otherwise.
pub(super) async fn read(
    State(shared): State<Arc<Shared>>,
    request: Request,
    next: Next,
) -> Response {
    match &shared.settings.admin_token {
        Some(token) if shared.settings.admin_token_for_all => with(token, request, next).await,
        _ => next.run(request).await,
    }
}

fn no_token() -> Response {
    let why = "this gateway has no token for changes; set admin_token_file, \
               --admin-token-file or FLOODGATE_ADMIN_TOKEN";
    error(StatusCode::FORBIDDEN, why)
}

async fn with(token: &Secret, request: Request, next: Next) -> Response {
    let mut values = request.headers().get_all(AUTHORIZATION).iter();
    let given = match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().ok().and_then(|value| {
            let (scheme, token) = value.split_once(' ')?;
            scheme
                .eq_ignore_ascii_case("bearer")
                .then(|| token.trim().to_owned())
        }),
        _ => None,
    };
    // Digests are of one length, and compared in one time.
    let digest = |text: &str| -> [u8; 32] { Sha256::digest(text.as_bytes()).into() };
    let is_right = given.is_some_and(|given| digest(&given).ct_eq(&digest(token.expose())).into());
    if is_right {
        return next.run(request).await;
    }
    let why = "a wrong token, or none; send Authorization: Bearer and this gateway's admin_token";
    let mut response = error(StatusCode::UNAUTHORIZED, why);
    response.headers_mut().insert(
        WWW_AUTHENTICATE,
        axum::http::HeaderValue::from_static("Bearer"),
    );
    response
}

/// Refuses what a web page of another origin has made a browser send, and what calls this
/// listener by a name that may be a web page's own (DNS rebinding).
pub(super) async fn page(
    State(shared): State<Arc<Shared>>,
    request: Request,
    next: Next,
) -> Response {
    let headers = request.headers();
    // A target may name another host than the field: neither may be a page's.
    let target = request
        .uri()
        .authority()
        .map(|authority| authority.as_str());
    let hosts = headers.get_all(HOST).iter();
    let mut hosts = hosts.map(|host| host.to_str().ok()).chain(target.map(Some));
    let is_ours = |host: &str| is_our_name(host, &shared.settings.admin_hosts);
    if !hosts.all(|host| host.is_some_and(is_ours)) {
        let why = "the admin listener is called by another name than its own; \
                   use its address, or add the name to admin_hosts";
        return error(StatusCode::MISDIRECTED_REQUEST, why);
    }
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    let is_other = |origin: &axum::http::HeaderValue| {
        let origin = origin
            .to_str()
            .ok()
            .and_then(|origin| origin.split_once("://"));
        origin.map(|(_, authority)| authority) != host
    };
    // Browsers tell the second of pages that they trust alone, the first of all that change.
    let is_foreign = headers.get_all(ORIGIN).iter().any(is_other)
        || headers
            .get_all("sec-fetch-site")
            .iter()
            .any(|site| site != "same-origin" && site != "none");
    if is_foreign {
        let why = "the admin listener answers no web page of another origin";
        return error(StatusCode::FORBIDDEN, why);
    }
    next.run(request).await
}

/// Whether nobody else's name can be this one: an address, a name without a dot, one of a
/// cluster or network of its own, or one that the settings give.
fn is_our_name(host: &str, given: &[String]) -> bool {
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((inside, _)) => return inside.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host.split(':').next().unwrap_or(host),
    };
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    !name.is_empty()
        && (name.parse::<std::net::Ipv4Addr>().is_ok()
            || !name.contains('.')
            || [".localhost", ".svc", ".cluster.local", ".internal"]
                .iter()
                .any(|own| name.ends_with(own))
            || given.contains(&name))
}

/// Reads a body.
pub(super) async fn body(shared: &Shared, body: Body) -> Result<Bytes, Response> {
    let read = Limited::new(body, MAX_BODY).collect();
    match tokio::time::timeout(shared.settings.body_timeout, read).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(why)) if why.downcast_ref::<LengthLimitError>().is_some() => Err(error(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the body is larger than {MAX_BODY} bytes"),
        )),
        Ok(Err(why)) => Err(error(
            StatusCode::BAD_REQUEST,
            format!("the body cannot be read: {why}"),
        )),
        Err(_) => Err(error(
            StatusCode::REQUEST_TIMEOUT,
            "the body did not arrive in time",
        )),
    }
}

/// Reads JSON.
#[expect(
    clippy::result_large_err,
    reason = "an answer, and not on the hot path"
)]
pub(super) fn json<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, Response> {
    serde_json::from_slice(body)
        .map_err(|why| error(StatusCode::BAD_REQUEST, format!("the body: {why}")))
}

/// An answer with a body of its own.
pub(super) fn answer(status: StatusCode, body: serde_json::Value) -> Response {
    (status, axum::Json(body)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_a_web_page_can_have_is_not_ours() {
        let given = ["metrics.example.com".to_owned()];
        for host in [
            "127.0.0.1:9090",
            "127.0.0.1",
            "10.1.2.3:9090",
            "[::1]:9090",
            "[2001:db8::1]",
            "localhost:9090",
            "LocalHost",
            "app.localhost",
            "floodgate:9090",
            "floodgate.monitoring.svc:9090",
            "floodgate.monitoring.svc.cluster.local.",
            "metadata.google.internal",
            "Metrics.Example.com:9090",
        ] {
            assert!(is_our_name(host, &given), "{host}");
        }
        for host in [
            "",
            ":9090",
            "evil.example",
            "evil.example:9090",
            "127.0.0.1.evil.example",
            "127.0.0.1.nip.io",
            "localhost.evil.example",
            "xmetrics.example.com",
            "svc.example",
            "[evil.example]",
            "127.0.0.1.",
            "127.1.2",
        ] {
            let is_ours = is_our_name(host, &given);
            assert_eq!(is_ours, host == "127.0.0.1.", "{host}");
        }
    }
}
