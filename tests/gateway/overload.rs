//! More calls than the upstream can take. What is admitted goes on as if there were no others.
//!
//! Nothing here asks how fast the machine is: the upstream has so many workers, each takes so
//! long for a call, and what is counted is how many calls it has at once, and in which order.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use floodgate::clock::Clock;

use crate::door::soon;
use crate::harness::{Connection, Gateway, Start};

/// How many calls it works on at once.
const WORKERS: usize = 4;
/// How long one takes.
const DELAY: Duration = Duration::from_millis(150);

/// A backend with so many workers; further calls queue in it, as many as come.
struct Busy {
    addr: SocketAddr,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    free: Mutex<usize>,
    freed: Condvar,
    /// Calls that it has: being worked on, or in its queue.
    here: AtomicUsize,
    most: AtomicUsize,
    done: AtomicUsize,
    /// While it is set, no worker ends.
    stuck: AtomicBool,
}

impl Busy {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let addr = listener.local_addr().expect("its address");
        let state = Arc::new(State {
            free: Mutex::new(WORKERS),
            ..State::default()
        });
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let state = shared.clone();
                std::thread::spawn(move || state.serve(stream));
            }
        });
        Self { addr, state }
    }
}

impl State {
    fn serve(&self, stream: TcpStream) {
        let mut stream = BufReader::new(stream);
        loop {
            let mut line = String::new();
            let mut length = 0;
            while line != "\r\n" {
                line.clear();
                if !matches!(stream.read_line(&mut line), Ok(1..)) {
                    return;
                }
                if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().expect("a length");
                }
            }
            let mut body = vec![0; length];
            std::io::Read::read_exact(&mut stream, &mut body).expect("a body");
            self.most
                .fetch_max(self.here.fetch_add(1, SeqCst) + 1, SeqCst);
            self.work();
            self.here.fetch_sub(1, SeqCst);
            self.done.fetch_add(1, SeqCst);
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
            if stream.get_mut().write_all(answer).is_err() {
                return;
            }
        }
    }

    fn work(&self) {
        let mut free = self.free.lock().expect("a lock");
        while *free == 0 {
            free = self.freed.wait(free).expect("a lock");
        }
        *free -= 1;
        drop(free);
        std::thread::sleep(DELAY);
        while self.stuck.load(SeqCst) {
            std::thread::sleep(Duration::from_millis(5));
        }
        *self.free.lock().expect("a lock") += 1;
        self.freed.notify_one();
    }
}

const ROUTES: &str = r#"
[[route]]
name = "t-free"
calls = ["GET /t/free", "POST /t/free"]
v3 = { limits = ["1000000/3600s"], ip_copy = false }
"#;

fn before(backend: &Busy, args: &[&str]) -> Gateway {
    Start {
        routes: ROUTES,
        upstream: Some(backend.addr),
        args,
        ..Start::default()
    }
    .start()
}

/// What the callers of a load saw.
#[derive(Debug, Default)]
struct Seen {
    admitted: Vec<Duration>,
    shed: Vec<Duration>,
}

/// So many callers, each asking again as soon as it is answered, until so many were admitted.
fn offer(gateway: &Gateway, callers: usize, admitted: usize) -> Seen {
    let seen = Mutex::new(Seen::default());
    let left = AtomicUsize::new(admitted);
    std::thread::scope(|scope| {
        for _ in 0..callers {
            scope.spawn(|| {
                let clock = Clock::start();
                let mut connection = gateway.connect();
                while left.load(SeqCst) > 0 {
                    let began = clock.now().mono_us;
                    let answer = connection.call("GET", "/o/a/t/free", &[], "");
                    let took = Duration::from_micros(clock.now().mono_us - began);
                    let mut seen = seen.lock().expect("a lock");
                    match answer.status {
                        200 => {
                            seen.admitted.push(took);
                            let _ = left.fetch_update(SeqCst, SeqCst, |n| n.checked_sub(1));
                        }
                        503 => {
                            assert_eq!(answer.error().0, "service_unavailable");
                            assert_eq!(answer.header("retry-after"), Some("1"));
                            seen.shed.push(took);
                            drop(seen);
                            // As a caller would that heeds it, in small.
                            std::thread::sleep(DELAY / 2);
                        }
                        other => panic!("{other}"),
                    }
                }
            });
        }
    });
    seen.into_inner().expect("a lock")
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

#[test]
fn at_four_times_the_capacity_what_is_admitted_goes_on_as_before() {
    let backend = Busy::start();
    let most = (WORKERS + 1).to_string();
    let gateway = before(&backend, &["--max-upstream-waiting", &most]);
    // As many callers as there are workers: nobody waits.
    let alone = offer(&gateway, WORKERS, 60);
    assert!(alone.shed.is_empty(), "{:?}", alone.shed.len());
    let (before, _) = gateway.memory();
    let stop = AtomicBool::new(false);
    let (seen, looks) = std::thread::scope(|scope| {
        let looking = scope.spawn(|| {
            let mut looks = 0;
            while !stop.load(SeqCst) {
                for path in ["/live", "/ready", "/metrics"] {
                    let answer = Connection::to(gateway.admin).call("GET", path, &[], "");
                    assert_eq!(answer.status, 200, "{path}");
                }
                looks += 1;
                std::thread::sleep(Duration::from_millis(10));
            }
            looks
        });
        let seen = offer(&gateway, 4 * WORKERS, 240);
        stop.store(true, SeqCst);
        (seen, looking.join().expect("looks"))
    });
    let (_, most) = gateway.memory();
    // The upstream never had more than it was to have, and was never idle for want of calls.
    assert!(backend.state.most.load(SeqCst) <= WORKERS + 1);
    let admitted = alone.admitted.len() + seen.admitted.len();
    assert_eq!(backend.state.done.load(SeqCst), admitted);
    assert!(
        seen.shed.len() > seen.admitted.len() / 4,
        "{}",
        seen.shed.len()
    );
    // So a call waits for one other at most, behind one of four workers. Compared with what this
    // machine took when there was no overload.
    let (quiet, loaded) = (median(alone.admitted), median(seen.admitted));
    assert!(loaded < quiet * 3, "{quiet:?}, then {loaded:?}");
    // Who is shed hears it long before an admitted call is answered.
    let told = median(seen.shed);
    assert!(told < quiet / 2, "shed in {told:?}, served in {quiet:?}");
    assert!(looks > 10, "{looks}");
    assert!(most < before + 16 * 1024, "{before} KiB, then {most} KiB");
    let shed = gateway.metric("floodgate_shed_total", &["why=\"upstream\""]);
    assert!(shed >= 60.0, "{shed}");
    soon("nobody waits", || {
        gateway.metric("floodgate_upstream_waiting", &[]) == 0.0
    });
}

#[test]
fn while_the_upstream_is_stuck_the_rest_is_told_at_once_and_charged_nothing() {
    let backend = Busy::start();
    backend.state.stuck.store(true, SeqCst);
    let gateway = before(&backend, &["--max-upstream-waiting", "3"]);
    let mut waiting: Vec<Connection> = (0..3).map(|_| gateway.connect()).collect();
    for connection in &mut waiting {
        connection.send_call("GET", "/o/a/t/free", &[], "");
    }
    soon("three wait", || {
        gateway.metric("floodgate_upstream_waiting", &[]) == 3.0
    });
    let charged = || gateway.metric("floodgate_units_charged_total", &["t-free"]);
    assert_eq!(charged(), 3.0);
    for method in ["GET", "POST"] {
        for _ in 0..50 {
            let answer = gateway.call(method, "/o/a/t/free", "");
            assert_eq!(answer.status, 503);
            let (error, why) = answer.error();
            assert_eq!(error, "service_unavailable");
            assert_eq!(why, "The upstream is at its capacity.");
            assert_eq!(answer.header("retry-after"), Some("1"));
        }
    }
    assert_eq!(charged(), 3.0);
    assert_eq!(gateway.metric("floodgate_shed_total", &["upstream"]), 100.0);
    // Our own answers need no upstream.
    assert_eq!(gateway.call("GET", "/nowhere", "").status, 404);
    assert_eq!(backend.state.here.load(SeqCst), 3);
    backend.state.stuck.store(false, SeqCst);
    for connection in &mut waiting {
        assert_eq!(connection.read_answer("GET").status, 200);
    }
    assert_eq!(gateway.call("GET", "/o/a/t/free", "").status, 200);
}

#[test]
fn a_body_that_still_comes_holds_no_place() {
    let backend = Busy::start();
    let gateway = before(&backend, &["--max-upstream-waiting", "1"]);
    let head = "POST /o/a/t/free HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer t\r\nContent-Length: 10\r\n\r\n";
    let mut slow: Vec<Connection> = (0..4).map(|_| gateway.connect()).collect();
    for connection in &mut slow {
        connection.send(head.as_bytes());
        connection.send(b"12345");
    }
    soon("all are in flight", || {
        gateway.metric("floodgate_requests_in_flight", &[]) == 4.0
    });
    assert_eq!(gateway.metric("floodgate_upstream_waiting", &[]), 0.0);
    assert_eq!(gateway.call("GET", "/o/a/t/free", "").status, 200);
    // They were let in: what they wait for when they are whole is not taken from them.
    for connection in &mut slow {
        connection.send(b"67890");
    }
    for connection in &mut slow {
        assert_eq!(connection.read_answer("POST").status, 200);
    }
}

#[test]
fn one_that_is_shed_takes_no_place_while_it_is_told() {
    let backend = Busy::start();
    backend.state.stuck.store(true, SeqCst);
    let gateway = before(&backend, &["--max-in-flight", "2"]);
    let mut held: Vec<Connection> = (0..2).map(|_| gateway.connect()).collect();
    for connection in &mut held {
        connection.send_call("GET", "/o/a/t/free", &[], "");
    }
    soon("two are in flight", || {
        gateway.metric("floodgate_requests_in_flight", &[]) == 2.0
    });
    // Their bodies never end: each is read for two seconds after its 503.
    let head = "POST /o/a/t/free HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer t\r\nContent-Length: 10\r\n\r\n";
    let mut shed: Vec<Connection> = (0..20).map(|_| gateway.connect()).collect();
    for connection in &mut shed {
        connection.send(head.as_bytes());
        assert_eq!(connection.read_answer("POST").status, 503);
    }
    backend.state.stuck.store(false, SeqCst);
    for connection in &mut held {
        assert_eq!(connection.read_answer("GET").status, 200);
    }
    assert_eq!(gateway.call("GET", "/o/a/t/free", "").status, 200);
    assert_eq!(gateway.metric("floodgate_shed_total", &["in-flight"]), 20.0);
}
