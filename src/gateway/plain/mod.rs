//! Plain calls, carried upstream and back without pingora's proxy, for less: HTTP/1.1 on
//! both sides, in the clear to the upstream, the request here as a whole. The steps are the same
//! ([`steps`](super::steps)); what fails before an answer and may be tried again is pingora's.

mod alarm;
mod framing;
mod head;
mod idle;

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::task::{Context as Task, Poll};
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use http::{HeaderName, Method, header};
use pingora::http::RequestHeader;
use pingora::{Error, ErrorType};
use tokio::io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

pub(super) use self::alarm::Alarm;
use self::framing::{Framing, Piece};
use self::head::{Head, Own};
pub(super) use self::idle::Idle;
use super::context::Context;
use super::steps::{Failure, Heard};
use super::upstream::Hop;
use super::watch::LATER;
use super::{Gateway, headers, upstream};
use crate::limit::Moment;

/// Room for what an upstream says, in bytes: at first, and where it has more.
const LITTLE: usize = 4 * 1024;
const MUCH: usize = 64 * 1024;
/// Pieces up to this leave together.
const TOGETHER: usize = 16 * 1024;
/// What is read of an answer that nobody hears and that says what was made, in bytes.
const MAX_UNHEARD: usize = 1024 * 1024;

/// Who called.
pub(super) trait Caller: AsyncWrite + Unpin {
    /// Sends all of this, with what has been written before it.
    async fn send(&mut self, answer: &[u8]) -> io::Result<()>;

    /// Until nothing more comes from the caller: it has gone, or says no more and waits for its
    /// answer (`Ok`). What comes before that is kept for later.
    fn poll_left(&mut self, cx: &mut Task<'_>) -> Poll<io::Result<()>>;
}

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Carried {
    /// It has its answer. Whether its connection has room for another.
    Over {
        /// Whether it has.
        is_kept: bool,
    },
    /// It may be tried again, by pingora.
    Again,
}

/// What carries the calls of one connection.
pub(super) struct Carrier<'a, C> {
    pub(super) gateway: &'a Gateway,
    pub(super) idle: &'a Idle,
    pub(super) alarm: &'a mut Alarm,
    pub(super) caller: &'a mut C,
}

impl<C: Caller> Carrier<'_, C> {
    /// Carries an admitted call, to its end. `is_kept`: whether its connection may be kept.
    pub(super) async fn carry(
        &mut self,
        request: &RequestHeader,
        body: &[u8],
        ctx: &mut Context,
        is_kept: bool,
    ) -> Carried {
        let gateway = self.gateway;
        let method = request.method.clone();
        let mut call = Call {
            carrier: self,
            ctx,
            method: &method,
            is_kept,
            status: 0,
            is_watched: true,
            is_gone: false,
            unheard_us: None,
            is_again: false,
        };
        let ended = call.run(request, body).await;
        let Call {
            carrier: Carrier { caller, .. },
            ctx,
            mut status,
            is_gone,
            is_again,
            ..
        } = call;
        let Err(error) = ended else {
            gateway.is_over(ctx, None, status).await;
            let is_kept = is_kept && !is_gone;
            return Carried::Over { is_kept };
        };
        if is_again {
            return Carried::Again;
        }
        let Failure { reply, is_gone } = gateway.failure(ctx, &error);
        if !is_gone && status == 0 {
            let now = ctx.shared.clock.since(ctx.started);
            let head_only = method == Method::HEAD;
            let wire = gateway.on_the_wire(ctx, &reply, now, head_only, false);
            if let Ok(wire) = wire
                && caller.send(&wire).await.is_ok()
            {
                status = reply.status;
            }
        }
        gateway.is_over(ctx, Some(&error), status).await;
        Carried::Over { is_kept: false }
    }
}

/// One call.
struct Call<'a, 'c, C> {
    carrier: &'a mut Carrier<'c, C>,
    ctx: &'a mut Context,
    method: &'a Method,
    is_kept: bool,
    /// Of the answer, once the caller has had any of it.
    status: u16,
    /// Whether anything may come from the caller.
    is_watched: bool,
    /// Whether the caller has gone.
    is_gone: bool,
    /// Until when the call goes on without it.
    unheard_us: Option<u64>,
    /// Whether the call may be tried again.
    is_again: bool,
}

/// What has come of a wait.
enum Came {
    Bytes(usize),
    Failed(io::Error),
    /// The caller says no more, or has gone.
    Left(io::Result<()>),
    Late,
}

impl<C: Caller> Call<'_, '_, C> {
    fn now(&self) -> Moment {
        self.ctx.shared.clock.since(self.ctx.started)
    }

    async fn run(&mut self, request: &RequestHeader, body: &[u8]) -> pingora::Result<()> {
        let ctx = &mut *self.ctx;
        let hop = ctx.way.next(ctx.call.as_ref(), ctx.started, ctx.verdict)?;
        // What may have changed something is not sent again.
        let matters = !self.method.is_safe();
        let (tcp, is_reused) = match self.carrier.idle.take(hop.addr, matters) {
            Some(tcp) => (tcp, true),
            None => (self.connect(hop).await?, false),
        };
        let wire = self.request(request, body);
        self.ctx.goes_out(false);
        let ended = self.exchange(tcp, hop, &wire).await;
        if let Err(error) = &ended {
            let broken = self.ctx.broken(self.method, is_reused);
            self.is_again = self.carrier.gateway.broke(self.ctx, error, broken);
        }
        ended
    }

    async fn connect(&mut self, hop: Hop) -> pingora::Result<TcpStream> {
        let connecting = timeout(hop.connect, connect(hop.addr)).await;
        let late = || Error::explain(ErrorType::ConnectTimedout, "the time to connect is over");
        let connected = connecting.unwrap_or_else(|_| Err(late()));
        match connected {
            Ok(tcp) => {
                let now = self.now();
                self.ctx.way.connected(now);
                Ok(tcp)
            }
            Err(error) => {
                self.is_again = self.carrier.gateway.not_connected(self.ctx);
                Err(error.into_up())
            }
        }
    }

    /// The request as it goes upstream.
    fn request(&self, request: &RequestHeader, body: &[u8]) -> Vec<u8> {
        let ctx = &*self.ctx;
        let raw = request.raw_path();
        let query = raw.iter().position(|b| *b == b'?');
        let query = query.and_then(|at| raw.get(at..)).unwrap_or_default();
        let target = match ctx.rewrite {
            false => [raw, b""],
            true => [ctx.path.as_bytes(), query],
        };
        let mut wire = Vec::with_capacity(1024 + body.len());
        let method = request.method.as_str().as_bytes();
        for part in [method, b" ", target[0], target[1], b" HTTP/1.1\r\n"] {
            wire.extend_from_slice(part);
        }
        // What an answer says must be read.
        let is_read = self.carrier.gateway.holds_task(ctx) || ctx.totals.is_there();
        let without = |name: &HeaderName| is_read && *name == header::ACCEPT_ENCODING;
        let settings = &ctx.shared.settings;
        headers::write_upstream(request, settings, &ctx.origin(), without, &mut wire);
        wire.extend_from_slice(b"\r\n");
        wire.extend_from_slice(body);
        wire
    }

    async fn exchange(&mut self, mut tcp: TcpStream, hop: Hop, wire: &[u8]) -> pingora::Result<()> {
        match timeout_of(&mut tcp, wire, hop.write).await {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                let why = "the upstream does not take the request";
                return Err(Error::explain(ErrorType::WriteTimedout, why).into_up());
            }
            Err(error) => {
                let why = "while writing the request";
                return Err(Error::because(ErrorType::WriteError, why, error).into_up());
            }
        }
        let now = self.now();
        let is_awaited = self.carrier.gateway.is_sent(self.ctx, now);
        let mut own = Own::new();
        let put = |name, value| own.push((name, value));
        self.carrier.gateway.common_fields(self.ctx, put)?;
        let mut came = BytesMut::with_capacity(LITTLE);
        let head = self.head(&mut tcp, &mut came, &own, (now, hop.head), is_awaited);
        let head = head.await?;
        let is_kept = head.is_kept;
        let is_whole = self.answer(&mut tcp, &mut came, head, &own).await?;
        if is_kept && is_whole && came.is_empty() {
            self.carrier.idle.put(hop.addr, tcp);
        }
        match self.is_gone {
            true => Err(gone()),
            false => Ok(()),
        }
    }

    /// Waits for the head of the answer: so long for each piece of it, and a second more as a whole.
    /// Interim ones go on.
    async fn head(
        &mut self,
        tcp: &mut TcpStream,
        came: &mut BytesMut,
        own: &Own,
        (sent, most): (Moment, Duration),
        is_awaited: bool,
    ) -> pingora::Result<Head> {
        let whole_us = self.ctx.way.due_us(sent, most.saturating_add(LATER));
        let mut due_us = self.ctx.way.due_us(sent, most);
        let mut is_new = false;
        loop {
            while let Some(mut head) = Head::read(came, self.method, own)? {
                came.advance(head.length);
                match head.status {
                    101 => {
                        // `Upgrade` does not go upstream.
                        let why = "101, for which nobody has asked";
                        return Err(Error::explain(ErrorType::InvalidHTTPHeader, why).into_up());
                    }
                    100..200 => {
                        self.ctx.way.interim()?;
                        head.wire.extend_from_slice(b"\r\n");
                        self.send(&head.wire, is_awaited).await?;
                    }
                    _ => return Ok(head),
                }
            }
            if std::mem::take(&mut is_new) {
                let now = self.now();
                due_us = self.ctx.way.due_us(now, most).min(whole_us);
            }
            let before = came.len();
            match self.wait(tcp, came, due_us).await {
                Came::Bytes(n) if n > 0 => is_new = true,
                Came::Bytes(_) => {
                    let why = format!("bytes already read: {before}");
                    return Err(Error::explain(ErrorType::ConnectionClosed, why).into_up());
                }
                Came::Failed(error) => {
                    let why = format!("bytes already read: {before}");
                    return Err(Error::because(ErrorType::ReadError, why, error).into_up());
                }
                Came::Left(how) => self.leaves(how, is_awaited)?,
                Came::Late => return Err(late("the head of the answer")),
            }
        }
    }

    /// Sends the answer on. Whether its end can be told from what comes after it.
    async fn answer(
        &mut self,
        tcp: &mut TcpStream,
        came: &mut BytesMut,
        mut head: Head,
        own: &Own,
    ) -> pingora::Result<bool> {
        let gateway = self.carrier.gateway;
        let now = self.now();
        let status = head.status;
        self.ctx.way.answered(status, self.method, true, now)?;
        let heard = Heard {
            status,
            is_coded: head.is_coded,
            is_empty: head.is_empty,
        };
        gateway.hears(self.ctx, heard, now).await;
        let is_read = self.ctx.totals.is_there() || self.ctx.answer.is_some();
        if self.is_gone && !is_read {
            // Only its status was waited for.
            return Err(gone());
        }
        head.finish(own, self.is_kept);
        let is_chunked = !matches!(head.framing, Framing::Length(_));
        let mut out = head.wire;
        let mut framing = head.framing;
        let mut room = MAX_UNHEARD;
        let mut last = now;
        loop {
            let pieces = self.pieces(&mut framing, came, &mut out, is_chunked, is_read);
            let is_over = pieces.await;
            if matches!(is_over, Ok(true)) {
                break;
            }
            // It has begun, whatever came after that.
            self.send(&out, is_read).await?;
            out.clear();
            is_over?;
            let due_us = self.ctx.way.due_us(last, self.ctx.way.between());
            let due_us = due_us.min(self.unheard_us.unwrap_or(u64::MAX));
            match self.wait(tcp, came, due_us).await {
                Came::Bytes(0) if framing == Framing::UntilClose => break,
                Came::Bytes(0) => {
                    let why = "in the middle of an answer";
                    return Err(Error::explain(ErrorType::ConnectionClosed, why).into_up());
                }
                Came::Bytes(n) => {
                    if self.is_gone {
                        room = room.saturating_sub(n);
                        if room == 0 {
                            return Err(gone());
                        }
                    }
                }
                Came::Failed(error) => {
                    let why = "in the middle of an answer";
                    return Err(Error::because(ErrorType::ReadError, why, error).into_up());
                }
                Came::Left(how) => self.leaves(how, is_read)?,
                Came::Late if self.unheard_us.is_some() => return Err(gone()),
                Came::Late => return Err(late("more of the answer")),
            }
            last = self.now();
        }
        gateway.hears_more(self.ctx, &[], true);
        if is_chunked {
            out.extend_from_slice(b"0\r\n\r\n");
        }
        self.send(&out, is_read).await?;
        Ok(framing != Framing::UntilClose)
    }

    /// Takes the body in what has come. Whether that was all.
    async fn pieces(
        &mut self,
        framing: &mut Framing,
        came: &mut BytesMut,
        out: &mut Vec<u8>,
        is_chunked: bool,
        is_read: bool,
    ) -> pingora::Result<bool> {
        while !framing.is_done() {
            let Ok(Piece { skip, length }) = framing.next(came) else {
                let why = "not the chunks of an answer";
                return Err(Error::explain(ErrorType::Custom("InvalidChunk"), why).into_up());
            };
            came.advance(skip);
            if skip + length == 0 {
                return Ok(false);
            }
            if length == 0 {
                continue;
            }
            self.ctx.has_time()?;
            let piece = came.get(..length).unwrap_or_default();
            self.carrier.gateway.hears_more(self.ctx, piece, false);
            if is_chunked {
                out.extend_from_slice(format!("{length:x}\r\n").as_bytes());
            }
            if out.len() + length > TOGETHER {
                self.write(out, is_read).await?;
                out.clear();
                let piece = came.get(..length).unwrap_or_default();
                self.write(piece, is_read).await?;
            } else {
                out.extend_from_slice(piece);
            }
            if is_chunked {
                out.extend_from_slice(b"\r\n");
            }
            came.advance(length);
        }
        Ok(true)
    }

    /// Waits for more from upstream, and for the caller to leave.
    async fn wait(&mut self, tcp: &mut TcpStream, came: &mut BytesMut, due_us: u64) -> Came {
        // What has filled its room has more behind it.
        let is_full = came.capacity() == came.len();
        came.reserve(if is_full { MUCH } else { LITTLE });
        let is_watched = self.is_watched;
        let Carrier { caller, alarm, .. } = &mut *self.carrier;
        let mut reading = pin!(tcp.read_buf(came));
        poll_fn(|cx| {
            if let Poll::Ready(read) = reading.as_mut().poll(cx) {
                return Poll::Ready(match read {
                    Ok(n) => Came::Bytes(n),
                    Err(error) => Came::Failed(error),
                });
            }
            if is_watched && let Poll::Ready(how) = caller.poll_left(cx) {
                return Poll::Ready(Came::Left(how));
            }
            alarm.poll(cx, due_us).map(|()| Came::Late)
        })
        .await
    }

    /// Nothing more comes from the caller. An error, unless the call goes on all the same: then one
    /// that is still there has its answer.
    fn leaves(&mut self, how: io::Result<()>, goes_on: bool) -> pingora::Result<()> {
        self.is_watched = false;
        match (how, goes_on) {
            (_, false) => Err(gone()),
            (Ok(()), true) => Ok(()),
            (Err(error), true) => self.is_written(Err(error), true),
        }
    }

    /// Writes to the caller, if it is there. `goes_on`: whether the call does without it.
    async fn write(&mut self, bytes: &[u8], goes_on: bool) -> pingora::Result<()> {
        if self.is_gone || bytes.is_empty() {
            return Ok(());
        }
        self.begins();
        let ends_us = self.ctx.way.ends_us();
        let Carrier { caller, alarm, .. } = &mut *self.carrier;
        let written = in_time(caller.write_all(bytes), alarm, ends_us).await?;
        self.is_written(written, goes_on)
    }

    /// The same for the last that is written for now: it goes at once, with all before it.
    async fn send(&mut self, bytes: &[u8], goes_on: bool) -> pingora::Result<()> {
        if self.is_gone {
            return Ok(());
        }
        self.begins();
        let ends_us = self.ctx.way.ends_us();
        let Carrier { caller, alarm, .. } = &mut *self.carrier;
        let sent = in_time(caller.send(bytes), alarm, ends_us).await?;
        self.is_written(sent, goes_on)
    }

    /// The caller has of the answer, if there is one yet.
    fn begins(&mut self) {
        if let (Some(status), 0) = (self.ctx.upstream_status, self.status) {
            self.status = status;
        }
    }

    fn is_written(&mut self, written: io::Result<()>, goes_on: bool) -> pingora::Result<()> {
        let Err(error) = written else {
            return Ok(());
        };
        (self.is_gone, self.is_watched) = (true, false);
        if !goes_on {
            let why = "while writing the answer";
            return Err(Error::because(ErrorType::WriteError, why, error).into_down());
        }
        let now = self.now();
        let until = self.ctx.way.due_us(now, self.ctx.way.between());
        self.unheard_us.get_or_insert(until);
        Ok(())
    }
}

fn gone() -> Box<Error> {
    Error::explain(ErrorType::ConnectionClosed, "the caller has gone").into_down()
}

/// What is done for a caller, unless the call has had its time first.
async fn in_time(
    doing: impl Future<Output = io::Result<()>>,
    alarm: &mut Alarm,
    ends_us: Option<u64>,
) -> pingora::Result<io::Result<()>> {
    let mut doing = pin!(doing);
    poll_fn(|cx| match (doing.as_mut().poll(cx), ends_us) {
        (Poll::Ready(done), _) => Poll::Ready(Ok(done)),
        (Poll::Pending, Some(ends)) => alarm.poll(cx, ends).map(|()| Err(upstream::out_of_time())),
        (Poll::Pending, None) => Poll::Pending,
    })
    .await
}

fn late(what: &str) -> Box<Error> {
    let why = format!("{what} did not come in time");
    Error::explain(ErrorType::ReadTimedout, why).into_up()
}

/// Writes all, within this time.
async fn timeout_of(tcp: &mut TcpStream, wire: &[u8], most: Duration) -> io::Result<()> {
    // Nearly always there is room for it: then no timer is set.
    let n = match tcp.try_write(wire) {
        Ok(n) => n,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
        Err(error) => return Err(error),
    };
    match wire.get(n..).unwrap_or_default() {
        [] => Ok(()),
        rest => match timeout(most, tcp.write_all(rest)).await {
            Ok(written) => written,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        },
    }
}

async fn connect(addr: SocketAddr) -> pingora::Result<TcpStream> {
    use io::ErrorKind as K;
    let connected = async {
        let tcp = TcpStream::connect(addr).await?;
        tcp.set_nodelay(true)?;
        Ok::<_, io::Error>(tcp)
    };
    connected.await.map_err(|error| {
        let etype = match error.kind() {
            K::ConnectionRefused => ErrorType::ConnectRefused,
            K::TimedOut => ErrorType::ConnectTimedout,
            K::HostUnreachable | K::NetworkUnreachable => ErrorType::ConnectNoRoute,
            _ => ErrorType::ConnectError,
        };
        Error::because(etype, format!("cannot connect to {addr}"), error)
    })
}
