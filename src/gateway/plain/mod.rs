//! Plain calls, carried upstream and back without pingora's proxy, for less: HTTP/1.1 on
//! both sides, in the clear to the upstream, the request here as a whole. The steps are the same
//! ([`steps`](super::steps)); what fails before an answer and may be tried again is pingora's.

mod alarm;
mod answer;
mod caller;
mod framing;
mod head;
mod idle;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::BytesMut;
use http::{HeaderName, Method, header};
use pingora::http::RequestHeader;
use pingora::{Error, ErrorType};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout;

pub(super) use self::alarm::Alarm;
pub(super) use self::caller::Caller;
use self::caller::{LITTLE, gone};
use self::head::Own;
pub(super) use self::idle::Idle;
use super::context::Context;
use super::field::Value;
use super::steps::Failure;
use super::upstream::Hop;
use super::{Gateway, headers};
use crate::limit::Moment;

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
        let put = |name, value: Value<'_>| own.put(name, value);
        self.carrier.gateway.common_fields(self.ctx, put);
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
