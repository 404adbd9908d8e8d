//! Calls of which an HTTP/2 upstream says that it has not begun them.

use pingora::{Error, ErrorType, RetryType};

/// What it has refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// The call, by the protocol's own word for it.
    Call,
    /// More calls on this connection: it is being closed, or speaks another version.
    Connection,
}

impl Refused {
    /// Nothing where the call may have run.
    pub(super) fn of(error: &Error) -> Option<Self> {
        if *error.etype() == ErrorType::H2Downgrade {
            // Not where HTTP/1.1 is no choice.
            let is_choice = matches!(error.retry, RetryType::Decided(true));
            return is_choice.then_some(Self::Connection);
        }
        let error = error.root_cause().downcast_ref::<h2::Error>()?;
        if !error.is_remote() {
            return None;
        }
        // It is an error of the streams alone that are above the last one of the GOAWAY frame.
        if error.is_go_away() {
            return Some(Self::Connection);
        }
        let is_refused = error.reason() == Some(h2::Reason::REFUSED_STREAM);
        (error.is_reset() && is_refused).then_some(Self::Call)
    }
}
