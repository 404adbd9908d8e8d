//! Who may change counters, and what a request to do so may weigh.

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use sha2::{Digest as _, Sha256};
use std::sync::Arc;
use subtle::ConstantTimeEq as _;

use super::error;
use crate::gateway::Shared;

/// The largest body, in bytes.
pub(super) const MAX_BODY: usize = 256 * 1024;

/// Lets those pass who have the token.
pub(super) async fn token(
    State(shared): State<Arc<Shared>>,
    request: Request,
    next: Next,
) -> Response {
    let Some(token) = &shared.settings.admin_token else {
        let why = "this gateway has no token for changing counters; set admin_token_file, \
                   --admin-token-file or FLOODGATE_ADMIN_TOKEN";
        return error(StatusCode::FORBIDDEN, why);
    };
    let given = request.headers().get(AUTHORIZATION).and_then(|value| {
        let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
        scheme
            .eq_ignore_ascii_case("bearer")
            .then(|| token.trim().to_owned())
    });
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
