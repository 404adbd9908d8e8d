//! A connection as pingora sees it, with the time limits that pingora does not know: for a head
//! as a whole, for an idle connection, and for a caller that does not read its answer.

use std::io;
use std::os::fd::{AsRawFd as _, RawFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use pingora::http::ResponseHeader;
use pingora::protocols::l4::ext::get_tcp_info;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::tls::SslDigest;
use pingora::protocols::{
    ALPN, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl,
    TimingDigest, UniqueID, UniqueIDType,
};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

use super::caps::Place;
use super::channel::Channel;
use super::frames::Frames;
use super::refusal;
use super::state::{Phase, State};
use crate::gateway::Live;
use crate::gateway::plain::Caller;
use crate::gateway::reply::Reply;
use crate::gateway::unseen::Unseen;
use crate::observe::metrics::Turned;

/// How slowly a caller may read its answer, bytes a second, once it holds the answer up.
const SLOWEST: u64 = 1024;
/// How long a goodbye may take.
const GOODBYE: Duration = Duration::from_secs(2);

/// An HTTP/2 connection has been opened when its preface and the head of its settings are here.
const OPENING: u64 = 24 + 9;

/// The time between two requests. The timer is set anew only when it fires: most requests come
/// long before.
#[derive(Debug)]
struct Idle {
    /// How many heads there had been.
    after: u32,
    since: Instant,
    timer: Pin<Box<Sleep>>,
}

/// One connection of a caller.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) io: Channel,
    fd: RawFd,
    state: Arc<State>,
    carried: Arc<ProxyDigest>,
    socket: Arc<SocketDigest>,
    tls: Option<Arc<SslDigest>>,
    http2: bool,
    /// Of HTTP/2.
    frames: Option<Frames>,
    pub(super) live: Live,
    idle: Option<Idle>,
    /// The head that is coming in, and until when.
    head: Option<(u32, Pin<Box<Sleep>>)>,
    /// Bytes of that head.
    taken: usize,
    /// Bytes that have been received, in all.
    received: u64,
    /// Since a write could not go on: until when, and what the caller had by then.
    held_up: Option<(Pin<Box<Sleep>>, u64)>,
    /// Whether something written may not have gone.
    is_gathering: bool,
    /// What has been read, and is read again.
    ahead: Unseen,
    /// What is left to send of the refusal of a head, if one was refused.
    pub(super) refusal: Option<Bytes>,
    /// Its place among the connections; free again when it is dropped.
    place: Option<Place>,
}

impl Connection {
    pub(super) fn new(
        io: Channel,
        http2: bool,
        state: Arc<State>,
        live: Live,
        place: Place,
    ) -> Self {
        // That it is there tells pingora that ALPN, and nothing else, chooses the protocol.
        let tls = state
            .tls
            .then(|| Arc::new(SslDigest::new("", "", None, None, Vec::new())));
        let fd = io.tcp().map_or(-1, |tcp| tcp.as_raw_fd());
        let socket = SocketDigest::from_raw_fd(fd);
        // Asking the system for it would be a call for each request.
        let _ = socket.peer_addr.set(Some(state.peer.into()));
        // pingora hands this from the connection to its calls, untouched.
        let nothing = ResponseHeader::from(http::Response::new(()).into_parts().0);
        let carried = ProxyDigest::new(Box::new(nothing), Some(Box::new(state.clone())));
        Self {
            io,
            fd,
            state,
            carried: Arc::new(carried),
            socket: Arc::new(socket),
            tls,
            http2,
            frames: http2.then(Frames::new),
            live,
            idle: None,
            head: None,
            taken: 0,
            received: 0,
            ahead: Unseen::default(),
            refusal: None,
            held_up: None,
            is_gathering: false,
            place: Some(place),
        }
    }

    pub(super) fn state(&self) -> Arc<State> {
        self.state.clone()
    }

    pub(super) fn phase(&self) -> Phase {
        self.state.phase()
    }

    pub(super) fn is_http2(&self) -> bool {
        self.http2
    }

    /// Whether nothing has been received but the requests that are over.
    pub(super) fn is_at_a_beginning(&self) -> bool {
        self.received == self.state.read()
    }

    /// Whether the caller has sent what nobody will read, or may have.
    fn may_have_more(&self) -> bool {
        let is_unread = |tcp: &TcpStream| tcp.try_read(&mut [0]).is_ok_and(|n| n > 0);
        !self.http2
            && (self.refusal.is_some()
                || !self.is_at_a_beginning()
                || self.io.tcp().is_some_and(is_unread))
    }

    /// These bytes, the last that were received, come again as if for the first time.
    pub(super) fn unread(&mut self, bytes: Bytes) {
        self.received -= bytes.len() as u64;
        self.ahead = Unseen(match self.ahead.is_empty() {
            true => bytes,
            false => [&bytes[..], &self.ahead[..]].concat().into(),
        });
        self.state.idle();
    }

    /// What has come behind a request that is not over is read after it.
    fn keep(&mut self, bytes: &[u8]) {
        self.received -= bytes.len() as u64;
        self.ahead = Unseen([&self.ahead[..], bytes].concat().into());
    }

    /// Nothing has come: for how long may that go on?
    fn wait(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.http2 {
            // After its opening, pingora closes it when it has been idle.
            let awaited = self.frames.as_ref().and_then(Frames::awaited);
            return match (self.received < OPENING, awaited) {
                (true, _) => self.wait_for_head(cx, 0),
                (false, Some(which)) => self.wait_for_head(cx, which),
                (false, None) => Poll::Pending,
            };
        }
        match self.state.phase() {
            Phase::Busy => Poll::Pending,
            Phase::Idle => self.wait_for_request(cx),
            Phase::Head => self.wait_for_head(cx, self.state.head()),
        }
    }

    fn wait_for_request(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let after = self.state.head();
        let live = &self.live;
        let idle = self.idle.get_or_insert_with(|| Idle {
            after,
            since: Instant::now(),
            timer: Box::pin(tokio::time::sleep(live.look().settings.keepalive)),
        });
        if idle.after != after {
            (idle.after, idle.since) = (after, Instant::now());
        }
        ready!(idle.timer.as_mut().poll(cx));
        let patience = self.live.look().settings.keepalive;
        idle.timer.as_mut().reset(idle.since + patience);
        ready!(idle.timer.as_mut().poll(cx));
        // The end, as if the caller had closed: nothing is lost.
        Poll::Ready(Ok(()))
    }

    fn wait_for_head(&mut self, cx: &mut Context<'_>, which: u32) -> Poll<io::Result<()>> {
        if self.head.as_ref().is_none_or(|(head, _)| *head != which) {
            let limit = tokio::time::sleep(self.live.look().settings.header_timeout);
            self.head = Some((which, Box::pin(limit)));
        }
        if let Some((_, limit)) = &mut self.head {
            ready!(limit.as_mut().poll(cx));
        }
        Poll::Ready(Err(self.turn_away(
            cx,
            Turned::SlowHead,
            &Reply::head_timeout(),
        )))
    }

    /// Ends the connection in the middle of a head. The answer is sent if it can be at once: its
    /// few bytes find room in a socket that nothing has been written to.
    fn turn_away(&mut self, cx: &mut Context<'_>, why: Turned, reply: &Reply) -> io::Error {
        self.live.look().metrics.turned_away(why);
        if !self.http2 {
            self.refuse(reply, why.as_str());
            if self.poll_refuse(cx).is_ready() {
                let _ = Pin::new(&mut self.io).poll_flush(cx);
            }
        }
        io::ErrorKind::TimedOut.into()
    }

    /// A write cannot go on: for how long may that last?
    fn hold(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let patience = self.live.look().settings.send_timeout;
        self.state.hold_up(true);
        let fd = self.fd;
        let (limit, acked) = self
            .held_up
            .get_or_insert_with(|| (Box::pin(tokio::time::sleep(patience)), acked(fd)));
        ready!(limit.as_mut().poll(cx));
        let now = self::acked(fd);
        if now.saturating_sub(*acked) < SLOWEST.saturating_mul(patience.as_secs().max(1)) {
            return Poll::Ready(io::ErrorKind::TimedOut.into());
        }
        *acked = now;
        limit.as_mut().reset(Instant::now() + patience);
        match limit.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Poll::Pending,
        }
    }

    fn written(
        &mut self,
        cx: &mut Context<'_>,
        polled: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        match polled {
            Poll::Pending => Poll::Ready(Err(ready!(self.hold(cx)))),
            Poll::Ready(Ok(n)) => {
                self.is_gathering = true;
                if self.held_up.is_some() {
                    self.state.hold_up(false);
                }
                if let Some(frames) = &mut self.frames {
                    frames.went(n);
                }
                Poll::Ready(Ok(n))
            }
            failed => failed,
        }
    }

    fn finished(
        &mut self,
        cx: &mut Context<'_>,
        polled: Poll<io::Result<()>>,
    ) -> Poll<io::Result<()>> {
        if polled.is_pending() {
            return Poll::Ready(Err(ready!(self.hold(cx))));
        }
        self.is_gathering = false;
        if self.held_up.take().is_some() {
            self.state.hold_up(false);
        }
        polled
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let is_head = !this.http2 && this.state.phase() == Phase::Head;
        if is_head && this.taken > this.live.look().settings.max_header_bytes {
            let error = this.turn_away(cx, Turned::LargeHead, &Reply::head_too_large());
            return Poll::Ready(Err(error));
        }
        if this.is_gathering && !this.http2 {
            // Whoever reads has no more to write for now: a piece of an answer does not wait for
            // the next one.
            match Pin::new(&mut this.io).poll_flush(cx) {
                Poll::Ready(Ok(())) => this.is_gathering = false,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {}
            }
        }
        let before = buf.filled().len();
        let polled = if this.ahead.is_empty() {
            Pin::new(&mut this.io).poll_read(cx, buf)
        } else {
            let n = this.ahead.len().min(buf.remaining());
            buf.put_slice(&this.ahead.split_to(n));
            Poll::Ready(Ok(()))
        };
        this.state.wait_for(polled.is_pending());
        if polled.is_pending() {
            return this.wait(cx);
        }
        let came = buf.filled().len() - before;
        this.received += came as u64;
        if let Some(frames) = &mut this.frames
            && !frames.came(buf.filled().get(before..).unwrap_or_default())
        {
            this.live.look().metrics.turned_away(Turned::Frames);
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        if !this.http2 && came > 0 {
            match this.state.phase() {
                Phase::Idle => {
                    this.state.head_begins();
                    this.taken = came;
                }
                Phase::Head => this.taken += came,
                Phase::Busy => {}
            }
        }
        polled
    }
}

impl Caller for Connection {
    async fn send(&mut self, answer: &[u8]) -> io::Result<()> {
        // Nearly always there is room for it, and nothing to gather it with.
        let at_once = match &self.io {
            Channel::Plain(wire) if !self.is_gathering => wire.try_write(answer),
            _ => Ok(0),
        };
        let n = match at_once {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            other => other?,
        };
        match answer.get(n..).unwrap_or_default() {
            [] => Ok(()),
            rest => {
                self.write_all(rest).await?;
                self.flush().await
            }
        }
    }

    fn poll_left(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.ahead.is_empty() {
            // Of who has sent more it is seen when that is read.
            return Poll::Pending;
        }
        let mut some = [0; 512];
        let mut some = ReadBuf::new(&mut some);
        match ready!(Pin::new(&mut *self).poll_read(cx, &mut some)) {
            Ok(()) if !some.filled().is_empty() => {
                self.keep(some.filled());
                Poll::Pending
            }
            left => Poll::Ready(left),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = match this.is_refused_by_pingora() {
            true => this.poll_refuse(cx).map_ok(|()| bytes.len()),
            false => Pin::new(&mut this.io).poll_write(cx, bytes),
        };
        this.written(cx, polled)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = match this.is_refused_by_pingora() {
            true => this
                .poll_refuse(cx)
                .map_ok(|()| slices.iter().map(|slice| slice.len()).sum()),
            false => Pin::new(&mut this.io).poll_write_vectored(cx, slices),
        };
        this.written(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.io).poll_flush(cx);
        this.finished(cx, polled)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.io).poll_shutdown(cx);
        this.finished(cx, polled)
    }
}

#[async_trait]
impl Shutdown for Connection {
    async fn shutdown(&mut self) {
        // A caller that is gone is told nothing.
        let _ = tokio::time::timeout(GOODBYE, AsyncWriteExt::shutdown(self)).await;
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // As in the middle of a head: what cannot be sent at once is not sent.
        let cx = &mut Context::from_waker(std::task::Waker::noop());
        if let Some(reply) = self.state.take_owed() {
            let answer = refusal::of_noted(&self.live, &self.state, &reply);
            let written = Pin::new(&mut self.io).poll_write(cx, &answer);
            self.is_gathering |= matches!(written, Poll::Ready(Ok(_)));
        }
        if self.is_gathering && !self.http2 {
            // The beginning of an answer that is broken off, too.
            let _ = Pin::new(&mut self.io).poll_flush(cx);
        }
        if !self.may_have_more() {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        if let Some(mut tcp) = self.io.take_tcp() {
            let place = self.place.take();
            runtime.spawn(async move {
                let _ = tcp.shutdown().await;
                refusal::drop_the_rest(&mut tcp).await;
                drop(place);
            });
        }
    }
}

/// Bytes that the other side has acknowledged. What the kernel takes from us comes in leaps of a third
/// of its buffer, megabytes at times.
fn acked(fd: RawFd) -> u64 {
    get_tcp_info(fd).map_or(0, |info| info.tcpi_bytes_acked)
}

impl UniqueID for Connection {
    fn id(&self) -> UniqueIDType {
        self.fd
    }
}

impl Ssl for Connection {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.tls.clone()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        self.http2.then_some(ALPN::H2)
    }
}

impl GetTimingDigest for Connection {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new()
    }
}

impl GetProxyDigest for Connection {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        Some(self.carried.clone())
    }
}

impl GetSocketDigest for Connection {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        Some(self.socket.clone())
    }
}

impl Peek for Connection {}
