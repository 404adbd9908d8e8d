//! Connections to upstreams that wait for their next call.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use parking_lot::Mutex;
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::time::Instant;

/// The most that one worker keeps.
const MOST: usize = 1024;
/// How long one waits at most. An upstream that closes it sooner is seen.
const LONGEST: Duration = Duration::from_secs(60);
/// How often those are looked for that have waited too long, or were closed.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// Those of one worker.
#[derive(Debug, Default)]
pub(in crate::gateway) struct Idle(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    count: usize,
    /// Of each address, the last one that came is the first to go.
    by_address: HashMap<SocketAddr, Vec<(TcpStream, Instant)>>,
}

impl Idle {
    /// One to this address that the upstream has not closed, as far as one can see: with a
    /// question to the system, where that `matters`.
    pub(super) fn take(&self, addr: SocketAddr, matters: bool) -> Option<TcpStream> {
        let mut waiting = self.0.lock();
        let Waiting { count, by_address } = &mut *waiting;
        let some = by_address.get_mut(&addr)?;
        while let Some((tcp, _)) = some.pop() {
            *count -= 1;
            if is_open(&tcp) && !(matters && has_more(&tcp)) {
                return Some(tcp);
            }
        }
        None
    }

    /// Keeps one on which nothing is to come.
    pub(super) fn put(&self, addr: SocketAddr, tcp: TcpStream) {
        let mut waiting = self.0.lock();
        if waiting.count < MOST {
            waiting.count += 1;
            let some = waiting.by_address.entry(addr).or_default();
            some.push((tcp, Instant::now()));
        }
    }

    /// Closes those that have waited too long, and that upstreams have closed, for as long as
    /// there are any to come.
    pub(in crate::gateway) async fn sweep(self: Arc<Self>) {
        loop {
            tokio::time::sleep(SWEEP_EVERY).await;
            self.sweep_now(Instant::now());
        }
    }

    fn sweep_now(&self, now: Instant) {
        let mut waiting = self.0.lock();
        let Waiting { count, by_address } = &mut *waiting;
        by_address.retain(|_, some| {
            let before = some.len();
            some.retain(|(tcp, since)| now - *since < LONGEST && is_open(tcp));
            *count -= before - some.len();
            !some.is_empty()
        });
    }
}

/// Whether something has come of which the runtime has not heard yet.
fn has_more(tcp: &TcpStream) -> bool {
    let came = SockRef::from(tcp).peek(&mut [std::mem::MaybeUninit::uninit()]);
    !came.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
}

/// Whether nothing has come: neither an end, nor what nobody has asked for.
fn is_open(tcp: &TcpStream) -> bool {
    let came = tcp.try_read(&mut [0]);
    came.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;

    use super::*;

    async fn pair(listener: &TcpListener) -> (TcpStream, TcpStream) {
        let ours = TcpStream::connect(listener.local_addr().unwrap()).await;
        (ours.unwrap(), listener.accept().await.unwrap().0)
    }

    async fn readable(tcp: &TcpStream) {
        tcp.readable().await.unwrap();
    }

    #[tokio::test]
    async fn the_last_that_is_open_is_taken() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let idle = Idle::default();
        let (first, _first) = pair(&listener).await;
        let (second, mut talks) = pair(&listener).await;
        let (third, closes) = pair(&listener).await;
        let port = first.local_addr().unwrap();
        talks.write_all(b"x").await.unwrap();
        drop(closes);
        readable(&second).await;
        readable(&third).await;
        for tcp in [first, second, third] {
            idle.put(addr, tcp);
        }
        assert_eq!(idle.take(addr, false).unwrap().local_addr().unwrap(), port);
        assert!(idle.take(addr, false).is_none());
        assert_eq!(idle.0.lock().count, 0);
    }

    #[tokio::test]
    async fn where_it_matters_the_system_is_asked() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let idle = Idle::default();
        let (open, _theirs) = pair(&listener).await;
        let (closed, theirs) = pair(&listener).await;
        let port = open.local_addr().unwrap();
        assert!(is_open(&open) && is_open(&closed));
        idle.put(addr, open);
        idle.put(addr, closed);
        drop(theirs);
        // The runtime has had no turn to hear of that.
        assert_eq!(idle.take(addr, true).unwrap().local_addr().unwrap(), port);
        assert!(idle.take(addr, true).is_none());
    }

    #[tokio::test]
    async fn who_has_waited_too_long_or_was_closed_goes() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let idle = Idle::default();
        let (open, _open) = pair(&listener).await;
        let (closed, theirs) = pair(&listener).await;
        drop(theirs);
        readable(&closed).await;
        idle.put(addr, open);
        idle.put(addr, closed);
        idle.sweep_now(Instant::now());
        assert_eq!(idle.0.lock().count, 1);
        idle.sweep_now(Instant::now() + LONGEST);
        let waiting = idle.0.lock();
        assert!(waiting.count == 0 && waiting.by_address.is_empty());
    }

    #[tokio::test]
    async fn there_is_a_bound() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let idle = Idle::default();
        idle.0.lock().count = MOST;
        let (one, _theirs) = pair(&listener).await;
        let addr = listener.local_addr().unwrap();
        idle.put(addr, one);
        assert!(idle.take(addr, false).is_none());
    }
}
