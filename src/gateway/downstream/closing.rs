//! The end of a listener. The system completes handshakes by itself and queues what they made;
//! a socket that closes resets all of it. So the socket is told to take no new handshakes, those
//! that have begun are waited for, and what is queued is served, before it closes.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::FutureExt as _;
use socket2::{SockFilter, SockRef};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep_until};

/// A packet filter that drops what asks for a new connection (SYN without ACK), and lets all else
/// through. Who asked asks again after a second, and is then refused, as by any closed port.
const NO_HANDSHAKES: [SockFilter; 5] = [
    // The flags of the TCP header.
    SockFilter::new(0x30, 0, 0, 13),
    // SYN and ACK of them.
    SockFilter::new(0x54, 0, 0, 0x12),
    SockFilter::new(0x15, 0, 1, 0x02),
    SockFilter::new(0x06, 0, 0, 0),
    SockFilter::new(0x06, 0, 0, u32::MAX),
];

/// Serves what is queued on a listener, and what gets there within `quiet` of the last, and
/// closes it.
pub(super) async fn serve_queued(
    socket: TcpListener,
    quiet: Duration,
    mut enter: impl FnMut(TcpStream, SocketAddr),
) {
    if SockRef::from(&socket).attach_filter(&NO_HANDSHAKES).is_ok() {
        let mut until = Instant::now() + quiet;
        loop {
            tokio::select! {
                biased;
                accepted = socket.accept() => match accepted {
                    Ok((tcp, peer)) => {
                        until = Instant::now() + quiet;
                        enter(tcp, peer);
                    }
                    // Of one connection, or without a file: what is left is looked for below.
                    Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
                },
                () = sleep_until(until) => break,
            }
        }
    }
    while let Some(Ok((tcp, peer))) = socket.accept().now_or_never() {
        enter(tcp, peer);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read as _, Write as _};
    use std::net::TcpStream as Client;

    use super::*;
    use crate::gateway::downstream::bind;

    #[tokio::test]
    async fn what_is_queued_is_served_and_nobody_else_is_let_in() {
        let (addr, mut sockets) = bind("127.0.0.1:0".parse().unwrap(), 1).unwrap();
        let socket = TcpListener::from_std(sockets.remove(0)).unwrap();
        let mut queued: Vec<_> = (0..20).map(|_| Client::connect(addr).unwrap()).collect();
        let late = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(1500));
            Client::connect_timeout(&addr, Duration::from_secs(20))
        });
        let mut served = Vec::new();
        serve_queued(socket, Duration::from_secs(3), |tcp, _| {
            served.push(tcp.into_std().unwrap());
        })
        .await;
        assert_eq!(served.len(), 20);
        for tcp in &mut served {
            tcp.set_nonblocking(false).unwrap();
            tcp.write_all(b"x").unwrap();
        }
        for client in &mut queued {
            client.read_exact(&mut [0]).unwrap();
        }
        // It came between the begin and the end: refused, and never connected and then reset.
        let late = late.join().unwrap().expect_err("a refusal");
        assert_eq!(late.kind(), ErrorKind::ConnectionRefused);
    }
}
