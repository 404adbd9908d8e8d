//! Heads that are none, and plain HTTP where TLS is spoken: told in our own form, counted and
//! logged, though no request has come of them.
//!
//! Who reads a head is pingora alone. What it writes before it has handed a request over is its
//! refusal of one, and ours goes out in its place: so there is no second reading.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context as Turn, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::timeout;

use super::connection::Connection;
use super::state::{Phase, State};
use crate::gateway::reply::Reply;
use crate::gateway::{Context, Gateway, Live, headers};

/// How long a refusal may take to leave.
const FAREWELL: Duration = Duration::from_secs(1);
/// How long what still comes in is read for when nothing goes out any more: over unread bytes the
/// system resets a connection, and drops what the caller has not got yet.
const LINGER: Duration = Duration::from_secs(5);
/// How much of that.
const MAX_UNREAD: u64 = 1024 * 1024;

/// What is sent to this peer, as HTTP/1.1 has it. It is counted and logged now.
pub(super) fn of(
    live: &Live,
    peer: SocketAddr,
    tls: bool,
    reply: &Reply,
    why: &'static str,
) -> Bytes {
    let gateway = Gateway::new(live.clone());
    let shared = live.now();
    let mut ctx = Context::refused(shared.clone(), peer.ip(), tls, why);
    // For whom a trusted proxy calls is not known.
    let shielded = match headers::is_trusted(&shared.settings, peer.ip()) {
        true => None,
        false => gateway.shield(&shared, &mut ctx),
    };
    let reply = shielded.as_ref().unwrap_or(reply);
    let wire = gateway.on_the_wire(&ctx, reply, ctx.verdict, false, false);
    ctx.note_end(reply.status, None);
    // An answer without a status there is not.
    wire.unwrap_or_default().into()
}

/// The same for a call that has been counted and logged.
pub(super) fn of_noted(live: &Live, state: &State, reply: &Reply) -> Bytes {
    let ctx = Context::refused(live.now(), state.peer.ip(), state.tls, "");
    let wire = Gateway::new(live.clone()).on_the_wire(&ctx, reply, ctx.verdict, false, false);
    wire.unwrap_or_default().into()
}

/// Reads and drops what still comes, for a while.
pub(super) async fn drop_the_rest(io: &mut (impl AsyncRead + Unpin)) {
    let mut io = io.take(MAX_UNREAD);
    let _ = timeout(LINGER, tokio::io::copy(&mut io, &mut tokio::io::sink())).await;
}

/// Sends a refusal, and ends the connection.
pub(super) async fn send(io: &mut (impl AsyncRead + AsyncWrite + Unpin), refusal: &[u8]) {
    let sending = async {
        io.write_all(refusal).await?;
        io.shutdown().await
    };
    if matches!(timeout(FAREWELL, sending).await, Ok(Ok(()))) {
        drop_the_rest(io).await;
    }
}

impl Connection {
    /// Whether what is written now is pingora's refusal of a head: our own answers come later.
    pub(super) fn is_refused_by_pingora(&self) -> bool {
        !self.is_http2() && self.phase() != Phase::Busy
    }

    /// Writes our refusal in place of pingora's.
    pub(super) fn poll_refuse(&mut self, cx: &mut Turn<'_>) -> Poll<io::Result<()>> {
        if self.refusal.is_none() {
            self.refuse(&Reply::bad_request(), "malformed");
        }
        while let Some(rest) = self.refusal.as_mut().filter(|rest| !rest.is_empty()) {
            let written = ready!(Pin::new(&mut self.io).poll_write(cx, rest))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let _ = rest.split_to(written.min(rest.len()));
        }
        Poll::Ready(Ok(()))
    }

    /// From now on, nothing but this is said on the connection.
    pub(super) fn refuse(&mut self, reply: &Reply, why: &'static str) {
        let state = self.state();
        self.refusal = Some(of(&self.live, state.peer, state.tls, reply, why));
    }
}
