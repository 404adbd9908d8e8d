//! Why a call failed, told from what pingora reports.

use std::io;

use pingora::{Error, ErrorSource, ErrorType};

use super::body;
use super::payload;
use super::upstream;
use crate::observe::failures::Cause;

/// What is known of the call, beside the error.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    /// Whether the head of an answer has come.
    pub(super) is_answered: bool,
    /// Whether the call has had its time.
    pub(super) is_over: bool,
}

pub(super) fn of(error: &Error, seen: Seen) -> Cause {
    match error.esource() {
        ErrorSource::Upstream => of_upstream(error, seen),
        ErrorSource::Downstream => of_downstream(error),
        // pingora says whose the errors of upstream connections are, and forgets some of callers'.
        ErrorSource::Unset
            if matches!(
                error.etype(),
                ErrorType::WriteError | ErrorType::ReadError | ErrorType::ConnectionClosed
            ) =>
        {
            of_downstream(error)
        }
        ErrorSource::Internal | ErrorSource::Unset => match error.etype() {
            ErrorType::HTTPStatus(400..=499) => Cause::ClientMalformed,
            _ => Cause::Internal,
        },
    }
}

fn of_upstream(error: &Error, seen: Seen) -> Cause {
    use ErrorType as E;
    let is_late = matches!(
        error.etype(),
        E::ConnectTimedout | E::ReadTimedout | E::WriteTimedout | E::TLSHandshakeTimedout
    );
    if is_late && seen.is_over {
        return Cause::RequestTimeout;
    }
    match error.etype() {
        etype if *etype == upstream::NOWHERE => Cause::NoUpstream,
        E::ConnectRefused => Cause::ConnectRefused,
        E::ConnectTimedout => Cause::ConnectTimeout,
        E::ConnectNoRoute
        | E::ConnectError
        | E::ConnectProxyFailure
        | E::HandshakeError
        | E::BindError
        | E::SocketError => Cause::ConnectFailed,
        E::TLSHandshakeFailure
        | E::TLSHandshakeTimedout
        | E::TLSWantX509Lookup
        | E::InvalidCert => Cause::Tls,
        E::ReadTimedout if seen.is_answered => Cause::BodyTimeout,
        E::ReadTimedout => Cause::HeaderTimeout,
        E::WriteTimedout => Cause::WriteTimeout,
        E::InvalidHTTPHeader if is_head_too_large(error) => Cause::HeadTooLarge,
        E::InvalidHTTPHeader | E::H1Error | E::InvalidH2 | E::Custom(_) | E::CustomCode(..) => {
            Cause::Malformed
        }
        _ if is_no_http2(error) => Cause::Malformed,
        _ if seen.is_answered => Cause::ResetInBody,
        _ => Cause::ResetBeforeHeaders,
    }
}

/// Whether what an upstream of HTTP/2 said was against the protocol: we have ended it, and not the
/// upstream.
fn is_no_http2(error: &Error) -> bool {
    let Some(error) = error.root_cause().downcast_ref::<h2::Error>() else {
        return false;
    };
    let is_ours = error.is_library() && (error.is_go_away() || error.is_reset());
    is_ours
        && !matches!(
            error.reason(),
            None | Some(h2::Reason::NO_ERROR | h2::Reason::CANCEL)
        )
}

/// By what pingora and httparse say: they have no type for it.
fn is_head_too_large(error: &Error) -> bool {
    let context = error
        .context
        .as_ref()
        .map_or("", |context| context.as_str());
    context.starts_with("Response header larger")
        || error
            .cause
            .as_ref()
            .and_then(|cause| cause.downcast_ref::<httparse::Error>())
            .is_some_and(|error| *error == httparse::Error::TooManyHeaders)
}

fn of_downstream(error: &Error) -> Cause {
    use ErrorType as E;
    match error.etype() {
        _ if body::is_too_large(error) || payload::is_refused(error) => Cause::ClientTooLarge,
        E::ReadTimedout | E::WriteTimedout => Cause::ClientSlow,
        // Of a caller that does not read: the connection's own limit.
        E::WriteError | E::ReadError if io_kind(error) == Some(io::ErrorKind::TimedOut) => {
            Cause::ClientSlow
        }
        E::WriteError | E::ReadError | E::ConnectionClosed | E::H2Error => Cause::ClientLeft,
        _ => Cause::ClientMalformed,
    }
}

fn io_kind(error: &Error) -> Option<io::ErrorKind> {
    let cause = error.cause.as_ref()?;
    cause.downcast_ref::<io::Error>().map(io::Error::kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASKED: Seen = Seen {
        is_answered: false,
        is_over: false,
    };
    const ANSWERED: Seen = Seen {
        is_answered: true,
        ..ASKED
    };

    fn up(etype: ErrorType) -> Box<Error> {
        Error::new(etype).into_up()
    }

    #[test]
    fn an_error_of_the_upstream_depends_on_how_far_the_answer_had_come() {
        for (etype, before, after) in [
            (
                ErrorType::ReadTimedout,
                Cause::HeaderTimeout,
                Cause::BodyTimeout,
            ),
            (
                ErrorType::ConnectionClosed,
                Cause::ResetBeforeHeaders,
                Cause::ResetInBody,
            ),
            (
                ErrorType::WriteError,
                Cause::ResetBeforeHeaders,
                Cause::ResetInBody,
            ),
        ] {
            assert_eq!(of(&up(etype.clone()), ASKED), before);
            assert_eq!(of(&up(etype), ANSWERED), after);
        }
    }

    #[test]
    fn the_time_for_the_whole_call_is_told_from_the_others() {
        let over = Seen {
            is_over: true,
            ..ANSWERED
        };
        assert_eq!(
            of(&up(ErrorType::ReadTimedout), over),
            Cause::RequestTimeout
        );
        assert_eq!(
            of(&up(ErrorType::ConnectTimedout), over),
            Cause::RequestTimeout
        );
        assert_eq!(
            of(&up(ErrorType::ConnectionClosed), over),
            Cause::ResetInBody
        );
    }

    #[test]
    fn a_head_that_is_too_large_is_told_from_one_that_is_none() {
        let none = Error::because(
            ErrorType::InvalidHTTPHeader,
            "buf: x",
            httparse::Error::Version,
        );
        assert_eq!(of(&none.into_up(), ASKED), Cause::Malformed);
        let many = Error::because(
            ErrorType::InvalidHTTPHeader,
            "buf: x",
            httparse::Error::TooManyHeaders,
        );
        assert_eq!(of(&many.into_up(), ASKED), Cause::HeadTooLarge);
        let large = "Response header larger than 1048575";
        let large = Error::explain(ErrorType::InvalidHTTPHeader, large);
        assert_eq!(of(&large.into_up(), ASKED), Cause::HeadTooLarge);
    }

    #[test]
    fn a_caller_that_left_is_told_from_one_that_stands_still() {
        let of = |etype: ErrorType, kind: io::ErrorKind| {
            let error = Error::because(etype, "x", io::Error::from(kind));
            super::of(&error.into_down(), ASKED)
        };
        use io::ErrorKind::{ConnectionReset, TimedOut};
        assert_eq!(
            of(ErrorType::WriteError, ConnectionReset),
            Cause::ClientLeft
        );
        assert_eq!(of(ErrorType::WriteError, TimedOut), Cause::ClientSlow);
        let nobodys = Error::new(ErrorType::WriteError);
        assert_eq!(super::of(&nobodys, ASKED), Cause::ClientLeft);
        assert_eq!(of(ErrorType::ReadTimedout, TimedOut), Cause::ClientSlow);
        assert_eq!(
            of(ErrorType::Custom("InvalidChunk"), TimedOut),
            Cause::ClientMalformed
        );
    }
}
