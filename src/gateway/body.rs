//! Reading the body of a counted call: whole, bounded, before the decision. pingora replays it
//! to the upstream byte for byte.

use http::header;
use pingora::proxy::Session;

use super::reply::Reply;
use crate::route::pricing::MAX_COUNTED_BODY;
use crate::settings::Settings;

/// Why there is no body to price.
pub(super) enum BodyError {
    /// The call is refused with this answer.
    Refused(Reply),
    /// The downstream connection is gone.
    Gone(Box<pingora::Error>),
}

/// The whole body of a counted call.
pub(super) async fn read(session: &mut Session, settings: &Settings) -> Result<Vec<u8>, BodyError> {
    let headers = &session.req_header().headers;
    let coded = headers
        .get_all(header::CONTENT_ENCODING)
        .iter()
        .any(|coding| {
            !coding
                .as_bytes()
                .trim_ascii()
                .eq_ignore_ascii_case(b"identity")
        });
    if coded {
        return Err(BodyError::Refused(Reply::unsupported_encoding()));
    }
    let announced = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.parse::<u64>().ok());
    // pingora's replay buffer drops everything silently one byte above its bound: look first.
    if announced.is_some_and(|length| length > MAX_COUNTED_BODY as u64) {
        return Err(BodyError::Refused(Reply::body_too_large()));
    }
    let waits_for_continue = headers.get(header::EXPECT).is_some();
    session.as_downstream_mut().enable_retry_buffering();
    if waits_for_continue {
        session
            .as_downstream_mut()
            .set_close_on_response_before_downstream_finish(false);
        session
            .as_downstream_mut()
            .write_continue_response()
            .await
            .map_err(BodyError::Gone)?;
    }
    let capacity = announced
        .and_then(|length| usize::try_from(length).ok())
        .unwrap_or(1024);
    let mut body = Vec::with_capacity(capacity.min(MAX_COUNTED_BODY));
    // One deadline over the whole body: pingora's own is per read, and HTTP/2 has none.
    let reading = async {
        while let Some(chunk) = session.read_request_body().await? {
            if body.len() + chunk.len() > MAX_COUNTED_BODY {
                return Ok(false);
            }
            body.extend_from_slice(&chunk);
        }
        Ok(true)
    };
    match tokio::time::timeout(settings.body_timeout, reading).await {
        Err(_) => Err(BodyError::Refused(Reply::body_timeout())),
        Ok(Err(error)) => Err(BodyError::Gone(error)),
        Ok(Ok(false)) => Err(BodyError::Refused(Reply::body_too_large())),
        Ok(Ok(true)) if session.as_ref().retry_buffer_truncated() => {
            Err(BodyError::Refused(Reply::body_too_large()))
        }
        Ok(Ok(true)) => Ok(body),
    }
}
