//! What all calls of one connection know of it.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use pingora::protocols::Digest;
use tokio::sync::Notify;

use crate::gateway::Context;
use crate::gateway::drain::Unheard;
use crate::gateway::reply::Reply;
use crate::gateway::unseen::Unseen;

/// How long a stream that was reset makes no room for another.
const NO_ROOM: Duration = Duration::from_secs(10);

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
    /// Whether HTTP/2 is spoken.
    http2: bool,
    phase: AtomicU8,
    /// Counts heads, so that a time limit is never that of an earlier one.
    heads: AtomicU32,
    calls: AtomicU32,
    all_calls: AtomicU32,
    another: Notify,
    /// Bytes of all requests that have been read to their end. Whatever else has been received
    /// is of the next one, and in pingora's hands.
    read: AtomicU64,
    /// Whether the last request was refused.
    is_refused: AtomicBool,
    admitted: Mutex<Option<Admitted>>,
    /// Until its first call.
    unheard: Mutex<Option<Unheard>>,
    /// Whether the caller takes nothing of its answer.
    is_held_up: AtomicBool,
    /// Whether more is waited for from the caller.
    is_waited_for: AtomicBool,
    /// Calls of streams that were reset a while ago.
    reset: AtomicU32,
    /// What the connection ends with.
    owed: Mutex<Option<Reply>>,
}

/// A call that has been admitted before pingora has read it, as it was read then.
#[derive(Debug)]
struct Admitted {
    ctx: Box<Context>,
    request: Unseen,
    /// Bytes of its head.
    head: usize,
}

impl State {
    pub(super) fn new(peer: SocketAddr, tls: bool, http2: bool, unheard: Unheard) -> Self {
        Self {
            peer,
            tls,
            http2,
            phase: AtomicU8::new(Phase::Idle as u8),
            heads: AtomicU32::new(0),
            calls: AtomicU32::new(0),
            all_calls: AtomicU32::new(0),
            another: Notify::new(),
            read: AtomicU64::new(0),
            is_refused: AtomicBool::new(false),
            admitted: Mutex::new(None),
            unheard: Mutex::new(Some(unheard)),
            is_held_up: AtomicBool::new(false),
            is_waited_for: AtomicBool::new(false),
            reset: AtomicU32::new(0),
            owed: Mutex::new(None),
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

    /// A call begins. How many others of this connection are not over, or have just been reset.
    pub(crate) fn call_begins(&self) -> u32 {
        if self.all_calls.fetch_add(1, Ordering::Relaxed) == 0 {
            self.unheard.lock().take();
        }
        self.another.notify_one();
        let reset = self.reset.load(Ordering::Relaxed);
        self.calls
            .fetch_add(1, Ordering::Relaxed)
            .saturating_add(reset)
    }

    /// Whether there have been so many calls.
    pub(crate) fn has_had(&self, most: Option<NonZeroU32>) -> bool {
        most.is_some_and(|most| self.all_calls.load(Ordering::Relaxed) >= most.get())
    }

    /// A request of this length on the wire is in hand. `None`: its end cannot be told.
    pub(crate) fn reads(&self, length: Option<u64>) {
        // Never again as many as have been received.
        let length = length.unwrap_or(u64::MAX / 2);
        let read = self.read.load(Ordering::Relaxed);
        self.read
            .store(read.saturating_add(length), Ordering::Relaxed);
    }

    /// Bytes of all requests so far.
    pub(super) fn read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// The request in hand has been refused.
    pub(crate) fn refused(&self) {
        self.is_refused.store(true, Ordering::Relaxed);
    }

    /// Whether the last request was refused; asked once.
    pub(super) fn take_refused(&self) -> bool {
        self.is_refused.swap(false, Ordering::Relaxed)
    }

    /// This call is admitted: pingora is about to read it. `head`: bytes of its head.
    pub(super) fn admit(&self, ctx: Box<Context>, request: Bytes, head: usize) {
        let request = Unseen(request);
        *self.admitted.lock() = Some(Admitted { ctx, request, head });
    }

    /// The call with this head, if it has been admitted. With no other body.
    pub(crate) fn take_admitted(&self, head: &[u8]) -> Option<Box<Context>> {
        let Admitted {
            mut ctx,
            request,
            head: length,
        } = self.admitted.lock().take()?;
        let mut request = request.0;
        let body = request.split_off(length.min(request.len()));
        (*request == *head).then(|| {
            ctx.only(body);
            ctx
        })
    }

    /// Nothing came of what was admitted.
    pub(super) fn drop_admitted(&self) {
        // Not in the lock: a context settles when it is dropped.
        let admitted = self.admitted.lock().take();
        drop(admitted);
    }

    /// Whether a write waits for the caller.
    pub(super) fn hold_up(&self, is_so: bool) {
        self.is_held_up.store(is_so, Ordering::Relaxed);
    }

    /// Whether a write waits for the caller.
    pub(crate) fn is_held_up(&self) -> bool {
        self.is_held_up.load(Ordering::Relaxed)
    }

    /// Whether more is waited for from the caller.
    pub(super) fn wait_for(&self, is_so: bool) {
        self.is_waited_for.store(is_so, Ordering::Relaxed);
    }

    /// Whether more is waited for from the caller; not known of HTTP/2.
    pub(crate) fn is_waited_for(&self) -> bool {
        self.http2 || self.is_waited_for.load(Ordering::Relaxed)
    }

    /// The connection ends with this answer. Whether it can.
    pub(crate) fn owe(&self, reply: Reply) -> bool {
        let is_alone = self.phase() == Phase::Busy && !self.http2;
        *self.owed.lock() = is_alone.then_some(reply);
        is_alone
    }

    /// What the connection ends with, if it does.
    pub(super) fn take_owed(&self) -> Option<Reply> {
        self.owed.lock().take()
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

    /// A call is over because its caller has left: of HTTP/2, its stream makes no room for a while.
    /// Otherwise the backend would have calls as fast as a caller can write and reset them.
    pub(crate) fn call_is_left(self: &Arc<Self>) {
        self.call_ends();
        let Some(runtime) = self.http2.then(tokio::runtime::Handle::try_current) else {
            return;
        };
        let Ok(runtime) = runtime else { return };
        self.reset.fetch_add(1, Ordering::Relaxed);
        let state = self.clone();
        runtime.spawn(async move {
            tokio::time::sleep(NO_ROOM).await;
            state.reset.fetch_sub(1, Ordering::Relaxed);
        });
    }
}
