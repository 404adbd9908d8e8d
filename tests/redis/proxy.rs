//! A TCP proxy before a server: slows what passes, or lets nothing pass.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

#[derive(Default)]
struct State {
    delay_ms: AtomicU64,
    /// Bytes are kept back, connections stay: as behind a cable that was pulled.
    is_cut: AtomicBool,
    /// What the server says is lost.
    is_deaf: AtomicBool,
    is_over: AtomicBool,
    /// With the number of its connection.
    streams: Mutex<Vec<(usize, TcpStream)>>,
}

/// Passes bytes on until dropped.
pub(crate) struct Proxy {
    port: u16,
    state: Arc<State>,
}

impl Proxy {
    /// Before the server on this port.
    pub(crate) fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let own = listener.local_addr().unwrap().port();
        let state = Arc::new(State::default());
        let shared = state.clone();
        std::thread::spawn(move || {
            for (number, client) in listener.incoming().map_while(Result::ok).enumerate() {
                if shared.is_over.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(server) = TcpStream::connect(("127.0.0.1", port)) else {
                    continue;
                };
                let both = [&client, &server].map(|s| (number, s.try_clone().unwrap()));
                shared.streams.lock().extend(both);
                for (from, to, is_reply) in [(&client, &server, false), (&server, &client, true)] {
                    to.set_nodelay(true).unwrap();
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let shared = shared.clone();
                    std::thread::spawn(move || {
                        pass(from, to, is_reply, &shared);
                        shared.streams.lock().retain(|(n, _)| *n != number);
                    });
                }
            }
        });
        Self { port: own, state }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Holds up all that passes, each way.
    pub(crate) fn slow(&self, delay: Duration) {
        let delay_ms = u64::try_from(delay.as_millis()).unwrap();
        self.state.delay_ms.store(delay_ms, Ordering::Relaxed);
    }

    pub(crate) fn cut(&self) {
        self.state.is_cut.store(true, Ordering::Relaxed);
    }

    /// What is asked arrives, and no reply does.
    pub(crate) fn deafen(&self) {
        self.state.is_deaf.store(true, Ordering::Relaxed);
    }

    /// Ends all connections; new ones may come.
    pub(crate) fn break_all(&self) {
        for (_, stream) in self.state.streams.lock().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    pub(crate) fn heal(&self) {
        self.slow(Duration::ZERO);
        self.state.is_cut.store(false, Ordering::Relaxed);
        self.state.is_deaf.store(false, Ordering::Relaxed);
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, is_reply: bool, state: &State) {
    let mut bytes = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        let delay_ms = state.delay_ms.load(Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(delay_ms));
        while state.is_cut.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(5));
        }
        if is_reply && state.is_deaf.load(Ordering::Relaxed) {
            continue;
        }
        if to.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.is_over.store(true, Ordering::Relaxed);
        self.heal();
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        self.break_all();
    }
}
