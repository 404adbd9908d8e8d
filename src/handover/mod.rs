//! An upgrade without a gap: a new process takes the listening sockets of the running one, and
//! its embedded counters, over a Unix socket. Connections that wait on those sockets never
//! notice: the system keeps one queue for both processes.
//!
//! ```text
//! new process                        running process
//!   Hello                      ─►
//!                              ◄─    Welcome: which sockets, the secret of the counter keys
//!   (reads settings and rules; a mistake ends it here, and nothing has changed)
//!   Take: these addresses      ─►
//!                              ◄─    the sockets themselves
//!   (binds what is new)
//!   Ready                      ─►    decides nothing more by itself
//!                              ◄─    Counters …, End
//!   Go                         ─►    accepts no more, drains
//!                              ◄─    Gone
//!   (accepts)                  ◄─►   its last calls are decided by the new process's counters
//! ```
//!
//! Until `Go` the running process can go on as if nothing had been: it does when the other breaks
//! off, or takes too long.

mod counters;
mod give;
mod sockets;
mod take;
mod wire;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::limit::KeyHasher;
use crate::store::memory::moving::Piece;

pub(crate) use self::give::{Door, Giving};
pub(crate) use self::sockets::{Held, Sockets};
pub use self::take::Taking;

/// What is said over the socket. Another number: the two cannot understand each other.
const PROTOCOL: u32 = 1;

/// Why nothing can be handed over.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// No place to ask.
    #[error(
        "--upgrade: no upgrade_socket is set; write the path that the running process has, and see \
         the README on upgrades"
    )]
    NoPath,
    /// Nobody is there.
    #[error(
        "--upgrade: no running process at {}: {source}; start the first one without --upgrade",
        path.display()
    )]
    Nobody {
        /// The socket.
        path: PathBuf,
        /// What connecting to it said.
        source: io::Error,
    },
    /// Another user's process is there.
    #[error(
        "--upgrade: the process at {} is of another user ({theirs}, we are {ours}); it gets and \
         gives nothing",
        path.display()
    )]
    Stranger {
        /// The socket.
        path: PathBuf,
        /// Whose it is.
        theirs: u32,
        /// Who we are.
        ours: u32,
    },
    /// It will not.
    #[error("--upgrade: the running process says: {0}")]
    Refused(String),
    /// The conversation broke off.
    #[error("--upgrade: {0}; the running process goes on as it was")]
    Broken(#[from] io::Error),
    /// A process without `--upgrade` is already served there.
    #[error(
        "upgrade_socket {}: a running process is there; take over from it with --upgrade, or \
         choose another path", path.display()
    )]
    Occupied {
        /// The socket.
        path: PathBuf,
    },
    /// The socket cannot be made.
    #[error("upgrade_socket {}: {source}; choose a path in a folder of this user's", path.display())]
    Bind {
        /// The socket.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// What a start may go by, beside settings and rules.
#[derive(Debug, Default)]
pub struct Start {
    /// The running process that is followed.
    pub taking: Option<Taking>,
}

impl Start {
    /// Begins a start; with `upgrade`, as the follower of the process at this socket.
    ///
    /// # Errors
    /// When there is nobody to follow.
    pub fn begin(upgrade: bool, path: Option<&Path>) -> Result<Self, HandoverError> {
        let taking = match (upgrade, path) {
            (false, _) => None,
            (true, None) => return Err(HandoverError::NoPath),
            (true, Some(path)) => Some(Taking::begin(path)?),
        };
        Ok(Self { taking })
    }

    /// How counter keys are made here: as in the process that is followed, if it has a secret.
    #[must_use]
    pub fn keys(&self, fresh: (u64, u64)) -> KeyHasher {
        let seed = self.taking.as_ref().and_then(Taking::seed);
        KeyHasher::new(seed.unwrap_or(fresh))
    }
}

/// What a new process says.
#[derive(Debug, Serialize, Deserialize)]
enum Ask {
    Hello {
        protocol: u32,
        version: String,
    },
    /// Addresses of the offer, by number.
    Take {
        listeners: Vec<usize>,
        admin: bool,
    },
    /// Everything else is there. Whether there is a place for embedded counters.
    Ready {
        counters: bool,
    },
    Go,
}

/// What the running one says.
#[derive(Debug, Serialize, Deserialize)]
enum Say {
    Welcome(Offer),
    Refused(String),
    /// They follow.
    Sockets,
    Counters(Piece),
    End,
    Gone,
}

/// What a running process has to give.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Offer {
    version: String,
    pid: u32,
    /// Of the keys of its embedded counters; `None`: it has none.
    seed: Option<(u64, u64)>,
    listeners: Vec<Offered>,
    admin: Offered,
}

/// The sockets of one address.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Offered {
    /// As its settings write it: the port may be 0.
    written: SocketAddr,
    /// As it is.
    addr: SocketAddr,
    sockets: usize,
}

impl Offered {
    /// Whether these are the sockets for an address of the settings.
    fn is(&self, written: SocketAddr) -> bool {
        written == self.addr || written == self.written
    }
}
