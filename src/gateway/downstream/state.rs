//! What all calls of one connection know of it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::time::Duration;

use pingora::protocols::Digest;
use tokio::sync::Notify;

/// What a connection is doing, as its time limits see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Between two requests: nothing of the next one has come.
    Idle,
    /// A head is coming in.
    Head,
    /// A request is being handled: its body and its answer have limits of their own.
    Busy,
}

/// One connection, seen from its calls.
#[derive(Debug)]
pub(crate) struct State {
    /// Who connected: the peer, or what a trusted balancer says in its PROXY header.
    pub(crate) peer: SocketAddr,
    /// Whether it came in over TLS.
    pub(crate) tls: bool,
    phase: AtomicU8,
    /// Counts heads, so that a time limit is never that of an earlier one.
    heads: AtomicU32,
    calls: AtomicU32,
    all_calls: AtomicU32,
    another: Notify,
}

impl State {
    pub(crate) fn new(peer: SocketAddr, tls: bool) -> Self {
        Self {
            peer,
            tls,
            phase: AtomicU8::new(Phase::Idle as u8),
            heads: AtomicU32::new(0),
            calls: AtomicU32::new(0),
            all_calls: AtomicU32::new(0),
            another: Notify::new(),
        }
    }

    /// The state of the connection that a session's digest belongs to.
    pub(crate) fn of(digest: Option<&Digest>) -> Option<&Arc<Self>> {
        let carried = digest?.proxy_digest.as_ref()?.user_data.as_ref()?;
        carried.downcast_ref()
    }

    pub(crate) fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Relaxed) {
            0 => Phase::Idle,
            1 => Phase::Head,
            _ => Phase::Busy,
        }
    }

    /// The next request may come.
    pub(crate) fn idle(&self) {
        self.phase.store(Phase::Idle as u8, Ordering::Relaxed);
    }

    /// The first bytes of a request are here. Returns which head it is.
    pub(super) fn head_begins(&self) {
        self.heads.fetch_add(1, Ordering::Relaxed);
        self.phase.store(Phase::Head as u8, Ordering::Relaxed);
    }

    /// Which head is coming in.
    pub(super) fn head(&self) -> u32 {
        self.heads.load(Ordering::Relaxed)
    }

    /// The head of a request is whole.
    pub(crate) fn busy(&self) {
        self.phase.store(Phase::Busy as u8, Ordering::Relaxed);
    }

    /// A call begins. How many others of this connection are not over.
    pub(crate) fn call_begins(&self) -> u32 {
        self.all_calls.fetch_add(1, Ordering::Relaxed);
        self.another.notify_one();
        self.calls.fetch_add(1, Ordering::Relaxed)
    }

    /// Until there have been this many calls.
    pub(super) async fn spent(&self, most: u32) {
        while self.all_calls.load(Ordering::Relaxed) < most {
            self.another.notified().await;
        }
    }

    /// Until there are no calls, looked at so often.
    pub(super) async fn rest(&self, every: Duration) {
        loop {
            tokio::time::sleep(every).await;
            if self.calls.load(Ordering::Relaxed) == 0 {
                return;
            }
        }
    }

    /// A call is over.
    pub(crate) fn call_ends(&self) {
        self.calls.fetch_sub(1, Ordering::Relaxed);
    }
}
