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

/// What was done of that to which there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Done {
    Nothing,
    /// All, some, or nothing.
    Unknown,
}

/// What a server says that takes no writes, be it to the first one of a script: it does not begin
/// to say so in the middle of one.
const NO_WRITES: [&str; 4] = ["OOM", "READONLY", "NOREPLICAS", "MISCONF"];

impl Done {
    pub(super) fn of(error: &RedisError) -> Self {
        match error.code() {
            Some(code) if NO_WRITES.contains(&code) => Self::Nothing,
            // One of the script's commands.
            Some(_) if says(error, "script") => Self::Unknown,
            Some(_) => Self::Nothing,
            None => Self::Unknown,
        }
    }
}

fn says(error: &RedisError, what: &str) -> bool {
    error.detail().is_some_and(|text| text.contains(what))
}
