//! `concurrency = "adaptive"` before a backend whose answers take longer the more calls it has.
//!
//! Nothing here asks how fast the machine is: what the backend does takes so long that all else is
//! little, and what is compared are two gateways on the same machine, or two apps at one.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use floodgate::clock::Clock;

use crate::door::soon;
use crate::harness::{Connection, Gateway, Start};

/// How many calls it works on at once.
const WORKERS: usize = 4;
/// How long one takes, while there are no more than [`MANY`].
const DELAY: Duration = Duration::from_millis(100);
/// From so many calls on, each takes longer in proportion.
const MANY: usize = 8;

/// A backend with so many workers before a queue, that thrashes when there is too much to do.
struct Thrashing {
    addr: SocketAddr,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    free: Mutex<usize>,
    freed: Condvar,
    /// Calls that it has, working or waiting.
    here: AtomicUsize,
    most: AtomicUsize,
    /// While it is set, no worker ends.
    stuck: AtomicBool,
}

impl Thrashing {
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
    /// Answers 404 to apps that it does not know.
    fn serve(&self, stream: TcpStream) {
        let mut stream = BufReader::new(stream);
        loop {
            let (mut line, mut first) = (String::new(), String::new());
            while line != "\r\n" {
                line.clear();
                if !matches!(stream.read_line(&mut line), Ok(1..)) {
                    return;
                }
                if first.is_empty() {
                    first.clone_from(&line);
                }
            }
            let here = self.here.fetch_add(1, SeqCst) + 1;
            self.most.fetch_max(here, SeqCst);
            self.work();
            self.here.fetch_sub(1, SeqCst);
            let status = match first.contains("/made-up-") {
                true => "404 Not Found",
                false => "200 OK",
            };
            let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\n{{}}");
            if stream.get_mut().write_all(answer.as_bytes()).is_err() {
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
        let slower = self.here.load(SeqCst).div_ceil(MANY).max(1);
        std::thread::sleep(DELAY * u32::try_from(slower).expect("few"));
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

fn before(upstream: SocketAddr, args: &[&str]) -> Gateway {
    Start {
        routes: ROUTES,
        upstream: Some(upstream),
        args,
        ..Start::default()
    }
    .start()
}

/// What callers saw.
#[derive(Debug, Default)]
struct Seen {
    answered: Vec<Duration>,
    shed: usize,
    took: Duration,
}

impl Seen {
    fn median(&mut self) -> Duration {
        self.answered.sort_unstable();
        self.answered[self.answered.len() / 2]
    }

    fn a_second(&self) -> f64 {
        self.answered.len() as f64 / self.took.as_secs_f64()
    }
}

/// Callers that ask again as soon as they are answered, until `go_on` says no.
fn call_on(
    gateway: &Gateway,
    callers: usize,
    app: impl Fn() -> String + Sync,
    go_on: impl Fn(&Seen) -> bool + Sync,
) -> Seen {
    let seen = Mutex::new(Seen::default());
    let clock = Clock::start();
    let now = || Duration::from_micros(clock.now().mono_us);
    let from = now();
    std::thread::scope(|scope| {
        for _ in 0..callers {
            scope.spawn(|| {
                let mut connection = gateway.connect();
                while go_on(&seen.lock().expect("a lock")) {
                    let began = now();
                    let path = format!("/o/{}/t/free", app());
                    let answer = connection.call("GET", &path, &[], "");
                    let took = now() - began;
                    if answer.status == 503 {
                        assert_eq!(answer.error().0, "service_unavailable");
                        assert_eq!(answer.header("retry-after"), Some("1"));
                        seen.lock().expect("a lock").shed += 1;
                        // As a caller would that heeds it, in small.
                        std::thread::sleep(DELAY);
                    } else {
                        assert!(matches!(answer.status, 200 | 404), "{}", answer.status);
                        seen.lock().expect("a lock").answered.push(took);
                    }
                }
            });
        }
    });
    let mut seen = seen.into_inner().expect("a lock");
    seen.took = now() - from;
    seen
}

fn flood(gateway: &Gateway, answers: usize) -> Seen {
    call_on(
        gateway,
        48,
        || "a".to_owned(),
        |seen| seen.answered.len() < answers,
    )
}

#[test]
fn a_backend_that_would_collapse_does_its_work_and_in_time() {
    let backend = Thrashing::start();
    let gateway = before(backend.addr, &[]);
    let mut without = flood(&gateway, 60);
    assert_eq!(without.shed, 0);
    assert!(backend.state.most.load(SeqCst) > 40);
    drop(gateway);

    let backend = Thrashing::start();
    let gateway = before(backend.addr, &["--concurrency", "adaptive"]);
    flood(&gateway, 100);
    backend.state.most.store(0, SeqCst);
    let mut with = flood(&gateway, 200);
    let (slow, quick) = (without.median(), with.median());
    assert!(quick * 4 < slow, "{slow:?} without, {quick:?} with it");
    let (few, many) = (without.a_second(), with.a_second());
    assert!(many > 1.3 * few, "{few}/s without, {many}/s with it");
    let most = backend.state.most.load(SeqCst);
    assert!(most < 30, "{most}");
    let limit = gateway.metric(
        "floodgate_upstream_concurrency_limit",
        &["pool=\"default\""],
    );
    assert!((4.0..30.0).contains(&limit), "{limit}");
    let shed = gateway.metric("floodgate_upstream_shed_total", &["why=\"limit\""]);
    assert!(shed >= with.shed as f64 && with.shed > 0, "{shed}");
    soon("no place is taken", || {
        gateway.metric("floodgate_upstream_concurrency_in_flight", &[]) == 0.0
    });
}

/// What an app with few calls sees while others, called so, flood the gateway.
fn beside(flooding: impl Fn() -> String + Sync) -> (Seen, Seen) {
    let backend = Thrashing::start();
    let gateway = before(
        backend.addr,
        &["--concurrency", "adaptive", "--concurrency-min", "8"],
    );
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let flood = scope.spawn(|| call_on(&gateway, 40, &flooding, |_| !stop.load(SeqCst)));
        let quiet = || "quiet".to_owned();
        // The backend has to let it in once, and the limit to be found.
        call_on(&gateway, 2, quiet, |seen| seen.answered.len() < 15);
        let seen = call_on(&gateway, 2, quiet, |seen| seen.answered.len() < 60);
        stop.store(true, SeqCst);
        (seen, flood.join().expect("it floods"))
    })
}

#[test]
fn a_flood_of_one_app_takes_no_place_of_another() {
    let (quiet, flood) = beside(|| "flood".to_owned());
    assert!(flood.shed > flood.answered.len(), "{}", flood.shed);
    // By a simulated clock one in fifty at most: src/protect/tests.rs. This machine has other work.
    assert!(quiet.shed * 4 < quiet.answered.len(), "{}", quiet.shed);
}

#[test]
fn a_flood_of_made_up_apps_takes_no_place_of_a_real_one() {
    let nth = AtomicU64::new(0);
    let (quiet, flood) = beside(|| format!("made-up-{}", nth.fetch_add(1, SeqCst)));
    assert!(flood.shed > flood.answered.len(), "{}", flood.shed);
    // By a simulated clock one in fifty at most: src/protect/tests.rs. This machine has other work.
    assert!(quiet.shed * 4 < quiet.answered.len(), "{}", quiet.shed);
}

#[test]
fn a_call_that_is_shed_is_told_at_once_charged_nothing_and_logged() {
    let backend = Thrashing::start();
    backend.state.stuck.store(true, SeqCst);
    let args = [
        "--concurrency",
        "adaptive",
        "--concurrency-min",
        "1",
        "--concurrency-max",
        "2",
    ];
    let gateway = before(backend.addr, &args);
    let mut held: Vec<Connection> = (0..2).map(|_| gateway.connect()).collect();
    for connection in &mut held {
        connection.send_call("GET", "/o/a/t/free", &[], "");
    }
    let in_flight = || gateway.metric("floodgate_upstream_concurrency_in_flight", &[]);
    soon("both have a place", || in_flight() == 2.0);
    let charged = || gateway.metric("floodgate_units_charged_total", &["t-free"]);
    assert_eq!(charged(), 2.0);
    for n in 0..20 {
        let method = ["GET", "POST"][n % 2];
        let answer = gateway.call(method, "/o/a/t/free", "");
        assert_eq!(answer.status, 503);
        let (error, why) = answer.error();
        assert_eq!(error, "service_unavailable");
        assert_eq!(why, "The upstream is at its capacity.");
        assert_eq!(answer.header("retry-after"), Some("1"));
    }
    assert_eq!(charged(), 2.0);
    let shed = |name, why| gateway.metric(name, &[why]);
    assert_eq!(shed("floodgate_shed_total", "why=\"concurrency\""), 20.0);
    assert_eq!(shed("floodgate_upstream_shed_total", "default"), 20.0);
    let limit = gateway.metric("floodgate_upstream_concurrency_limit", &[]);
    assert_eq!((limit, in_flight()), (2.0, 2.0));
    soon("they are logged", || {
        let log = gateway.log();
        let lines = log
            .lines()
            .filter(|line| line.contains("\"verb\":\"shed\""));
        lines
            .filter(|line| line.contains("\"concurrency\""))
            .count()
            == 20
    });
    backend.state.stuck.store(false, SeqCst);
    for connection in &mut held {
        assert_eq!(connection.read_answer("GET").status, 200);
    }
    soon("the places are free", || in_flight() == 0.0);
    assert_eq!(gateway.call("GET", "/o/a/t/free", "").status, 200);
}

#[test]
fn however_a_call_ends_its_place_is_free_again() {
    let gateway = Start {
        routes: ROUTES,
        args: &[
            "--concurrency",
            "adaptive",
            "--concurrency-min",
            "3",
            "--concurrency-max",
            "3",
            "--read-timeout",
            "3s",
            "--eject-after",
            "off",
        ],
        ..Start::default()
    }
    .start();
    let in_flight = || gateway.metric("floodgate_upstream_concurrency_in_flight", &[]);
    let free = || soon("the place is free", || in_flight() == 0.0);
    for nth in 0..2 {
        if nth == 0 {
            let wish = ["x-standin-delay-ms: 600000"];
            let answer = gateway.connect().call("GET", "/o/a/t/free", &wish, "");
            assert_eq!(answer.status, 504);
            free();
        }
        for (wish, status) in [
            ("x-standin-close: before", 502),
            ("x-standin-status: 500", 500),
            ("x-standin-status: 401", 401),
        ] {
            let answer = gateway.connect().call("GET", "/o/a/t/free", &[wish], "");
            assert_eq!(answer.status, status, "{wish}: {}", answer.text());
            free();
        }
        // Half an answer, a caller that goes, and one that goes in the middle of its body.
        let mut connection = gateway.connect();
        connection.send_call("GET", "/o/a/t/free", &["x-standin-close: mid"], "");
        connection.rest();
        free();
        let mut gone = gateway.connect();
        gone.send_call("GET", "/o/a/t/free", &["x-standin-delay-ms: 250"], "");
        drop(gone);
        let mut gone = gateway.connect();
        gone.send(b"POST /o/a/t/free HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer t\r\nContent-Length: 9\r\n\r\n123");
        drop(gone);
        soon("nobody is here", || {
            gateway.metric("floodgate_requests_in_flight", &[]) == 0.0
        });
        free();
    }
    assert_eq!(gateway.metric("floodgate_upstream_shed_total", &[]), 0.0);
    // A limit denies after the place was taken.
    for _ in 0..4 {
        let answer = gateway.call("POST", "/o/a/push/task", "{}");
        assert!(
            matches!(answer.status, 200 | 403 | 504),
            "{}",
            answer.text()
        );
    }
    free();
}
