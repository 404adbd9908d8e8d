//! Whom an error answer concerns: the store, or no more than the items that were sent.

use redis::{ErrorKind, RedisError, ServerErrorKind};

/// Whom an error answer concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The store: nothing of it can be used.
    Store,
    /// A slot of a cluster that moves to another node: keys of one owner are on both. Nothing was
    /// done.
    Moving,
    /// An item, for what is at its key or for a right to it.
    Item,
}

impl Fault {
    pub(super) fn of(error: &RedisError) -> Self {
        match error.kind() {
            ErrorKind::Server(
                ServerErrorKind::TryAgain | ServerErrorKind::Ask | ServerErrorKind::Moved,
            ) => Self::Moving,
            // Said by a command of our script.
            ErrorKind::Server(ServerErrorKind::ResponseError) if says(error, "script: ") => {
                Self::Item
            }
            ErrorKind::Server(ServerErrorKind::NoPerm) if says(error, " key") => Self::Item,
            _ if error.code() == Some("WRONGTYPE") => Self::Item,
            _ => Self::Store,
        }
    }
}

fn says(error: &RedisError, what: &str) -> bool {
    error.detail().is_some_and(|text| text.contains(what))
}
