//! The way in: sockets, connections, and what guards them before a request is there. Each worker
//! accepts on sockets of its own (`SO_REUSEPORT`), and serves what it accepts on its own thread.
//!
//! In order, for one connection: a place among all; the PROXY header, where the listener has one;
//! a place among those of its address; TLS; HTTP/1.1 or HTTP/2.

mod ahead;
pub(crate) mod caps;
mod channel;
mod closing;
mod connection;
mod frames;
mod http2;
mod refusal;
pub(crate) mod state;
pub(crate) mod tls;
mod wire;
mod worker;

use std::io;
use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};

pub(crate) use self::worker::{SETTLE, Worker};
use crate::settings::Listen;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 4096;

/// A listening socket of one worker.
#[derive(Debug)]
pub(crate) struct Listening {
    pub(crate) socket: TcpListener,
    pub(crate) how: Listen,
}

/// A socket on this address for each worker. Of port 0, all get the same.
pub(crate) fn bind(addr: SocketAddr, workers: usize) -> io::Result<(SocketAddr, Vec<TcpListener>)> {
    // Ours share the address among themselves; without this look they would share it with any
    // other process too.
    let addr = TcpListener::bind(addr)?.local_addr()?;
    Ok((addr, bind_more(addr, workers)?))
}

/// So many sockets on an address that sockets of ours have.
pub(crate) fn bind_more(addr: SocketAddr, count: usize) -> io::Result<Vec<TcpListener>> {
    (0..count).map(|_| bind_one(addr)).collect()
}

fn bind_one(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    // What is accepted has these too (Linux).
    socket.set_tcp_nodelay(true)?;
    socket.set_keepalive(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}
