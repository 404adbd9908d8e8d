//! Bodies. That of a counted call, and of one whose units or slots another would miss for long,
//! is read before the decision: whole and bounded; pingora replays it to the upstream byte for
//! byte. Any other is forwarded at its own pace, above a slowest one.

use std::time::Duration;

use bytes::Bytes;
use http::header;
use pingora::http::RequestHeader;
use pingora::proxy::Session;
use pingora::{Error, ErrorType};

use super::headers::content_length;
use super::kind;
use super::reply::Reply;
use super::unseen::Unseen;
use crate::limit::Moment;
use crate::observe::failures::Cause;
use crate::route::pricing::MAX_COUNTED_BODY;

/// Why there is no body to price.
pub(super) enum BodyError {
    /// The call is refused with this answer.
    Refused(Reply),
    /// It is refused for its size.
    TooLarge,
    /// The downstream connection is gone.
    Gone(Box<pingora::Error>),
}

/// Whether a body is in a coding, or in other characters, and cannot be looked into.
pub(super) fn is_coded(request: &RequestHeader) -> bool {
    if kind::has_other_characters(&request.headers) {
        return true;
    }
    let mut codings = request.headers.get_all(header::CONTENT_ENCODING).iter();
    codings.any(|coding| {
        !coding
            .as_bytes()
            .trim_ascii()
            .eq_ignore_ascii_case(b"identity")
    })
}

/// Whether a body of this length can be read before the decision.
pub(super) fn fits(length: u64) -> bool {
    length <= MAX_COUNTED_BODY as u64
}

/// The whole body of a call, `most` bytes at most, `within` this time. Where it is `counted`, in no
/// coding.
pub(super) async fn read(
    session: &mut Session,
    within: Duration,
    counted: bool,
    most: u64,
) -> Result<Vec<u8>, BodyError> {
    let headers = &session.req_header().headers;
    if counted && is_coded(session.req_header()) {
        return Err(BodyError::Refused(Reply::unsupported_encoding()));
    }
    // pingora's replay buffer drops everything silently one byte above its bound: look first.
    let most = usize::try_from(most).map_or(MAX_COUNTED_BODY, |most| most.min(MAX_COUNTED_BODY));
    let announced = content_length(session.req_header());
    if announced.is_some_and(|length| length > most as u64) {
        return Err(BodyError::TooLarge);
    }
    // Of HTTP/1.0 it means nothing, and a 100 would be read as the answer.
    let waits_for_continue = headers.contains_key(header::EXPECT)
        && session.req_header().version != http::Version::HTTP_10;
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
    let mut body = Vec::with_capacity(capacity.min(most));
    // One deadline over the whole body: pingora's own is per read, and HTTP/2 has none.
    let reading = async {
        while let Some(chunk) = session.read_request_body().await? {
            if body.len() + chunk.len() > most {
                return Ok::<_, Box<pingora::Error>>(false);
            }
            body.extend_from_slice(&chunk);
        }
        Ok(true)
    };
    match tokio::time::timeout(within, reading).await {
        Err(_) => Err(BodyError::Refused(Reply::body_timeout())),
        Ok(Err(error)) => Err(BodyError::Gone(error.into_down())),
        Ok(Ok(false)) => Err(BodyError::TooLarge),
        Ok(Ok(true)) if session.as_ref().retry_buffer_truncated() => Err(BodyError::TooLarge),
        Ok(Ok(true)) => Ok(body),
    }
}

/// Why a body is refused, as the log says it.
pub(super) fn why(refused: &Reply) -> (Option<Cause>, &'static str) {
    match refused.status {
        408 => (Some(Cause::ClientSlow), "body-timeout"),
        415 => (None, "content-encoding"),
        _ => (Some(Cause::ClientTooLarge), "max-body"),
    }
}

/// Why a body that is being forwarded is cut off.
const TOO_LARGE: ErrorType = ErrorType::Custom("BodyTooLarge");
/// The same, where it is not the body that was priced.
const ANOTHER: ErrorType = ErrorType::Custom("BodyNotPriced");

/// What ends a call that has had its time before its body was here.
pub(super) fn out_of_time() -> Box<Error> {
    let why = "the call has had its time, and is not whole";
    Error::explain(ErrorType::ReadTimedout, why).into_down()
}

/// Whether a call failed by the size of its body.
pub(super) fn is_too_large(error: &Error) -> bool {
    *error.etype() == TOO_LARGE
}

/// How much of a body that is being forwarded may come, and what of it is known already.
#[derive(Debug, Default)]
pub(super) struct Room {
    most: u64,
    left: u64,
    /// The body that was priced, where pingora reads it only afterwards.
    priced: Option<Unseen>,
}

impl Room {
    pub(super) fn new(most: u64) -> Self {
        Self {
            most,
            left: most,
            priced: None,
        }
    }

    /// No other body than this one goes on.
    pub(super) fn only(&mut self, priced: Bytes) {
        self.priced = Some(Unseen(priced));
    }

    /// The body is sent from its beginning, for the first time or again.
    pub(super) fn restart(&mut self) {
        self.left = self.most;
    }

    /// Takes what has come. An error where it is too much: the upstream does not get it.
    pub(super) fn take(&mut self, bytes: &[u8]) -> pingora::Result<()> {
        let Some(left) = self.left.checked_sub(bytes.len() as u64) else {
            return Err(Error::explain(TOO_LARGE, "more than max_body").into_down());
        };
        if let Some(priced) = &self.priced {
            let from = usize::try_from(self.most - self.left).unwrap_or(usize::MAX);
            if !priced.get(from..).is_some_and(|p| p.starts_with(bytes)) {
                return Err(Error::explain(ANOTHER, "not the body that was priced").into_down());
            }
        }
        self.left = left;
        Ok(())
    }
}

/// How fast a body must arrive that is only forwarded, bytes a second.
const SLOWEST: u64 = 1024;

/// The pace of a body that is being forwarded: each stretch of `body_timeout` brings its share.
/// So a large upload on a slow line passes, and nobody holds a call by dripping.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// When this stretch began, monotonic microseconds.
    began_us: u64,
    /// What it has brought.
    bytes: u64,
}

impl Pace {
    /// A body that may begin now.
    pub(super) fn new(now: Moment) -> Self {
        Self {
            began_us: now.mono_us,
            bytes: 0,
        }
    }

    /// Notes what has arrived: how long what comes next may take. `None` when it has taken too
    /// long.
    pub(super) fn note(
        &mut self,
        bytes: usize,
        now: Moment,
        stretch: Duration,
    ) -> Option<Duration> {
        self.bytes = self.bytes.saturating_add(bytes as u64);
        // What came in while the backend was slow counts before the time does.
        let share = SLOWEST.saturating_mul(stretch.as_secs().max(1));
        if self.bytes >= share {
            *self = Self::new(now);
        }
        let taken = Duration::from_micros(now.mono_us.saturating_sub(self.began_us));
        stretch.checked_sub(taken).filter(|left| !left.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_other_body_goes_on_than_the_one_that_was_priced() {
        let mut room = Room::new(10);
        room.only(Bytes::from_static(b"abcdef"));
        assert!(room.take(b"abc").is_ok());
        assert!(room.take(b"dx").is_err());
        assert!(room.take(b"def").is_ok());
        assert!(room.take(b"g").is_err());
        room.restart();
        assert!(room.take(b"def").is_err());
        assert!(room.take(b"abcdef").is_ok());
        let mut any = Room::new(2);
        assert!(any.take(b"ab").is_ok());
        assert!(is_too_large(&any.take(b"c").unwrap_err()));
    }
}
