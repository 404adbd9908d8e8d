//! Pools: whom they serve, how they are balanced, found, checked, ejected and tried again.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use floodgate::standin::{StandIn, StandInOptions};

use crate::ROUTES;
use crate::door::soon as eventually;
use crate::harness::{Connection, Gateway, Start};
use crate::upstreams::{dead, secure};

fn stand_in() -> StandIn {
    StandIn::start(StandInOptions::default()).expect("a stand-in backend")
}

/// The same at an address that is known already.
fn stand_in_at(listen: SocketAddr) -> StandIn {
    StandIn::start(StandInOptions {
        listen,
        ..StandInOptions::default()
    })
    .expect("a stand-in backend")
}

fn url(backend: &StandIn) -> String {
    format!("http://{}", backend.addr)
}

/// A gateway with this floodgate.toml, behind it a default backend.
fn with_file(text: &str) -> Gateway {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("floodgate.toml");
    std::fs::write(&file, text).expect("a file");
    Start {
        routes: ROUTES,
        args: &["--config", file.to_str().expect("UTF-8")],
        ..Start::default()
    }
    .start()
}

/// Waits until the log, which is written by a thread of its own, says this.
fn said(gateway: &Gateway, what: &str) {
    eventually(what, || gateway.log().contains(what));
}

fn ready(gateway: &Gateway) -> (u16, String) {
    let answer = Connection::to(gateway.admin).call("GET", "/ready", &[], "");
    (answer.status, answer.text())
}

/// A backend that answers each request with these bytes, or closes where there are none.
pub(crate) struct Fixed {
    pub(crate) addr: SocketAddr,
    count: Arc<AtomicUsize>,
}

impl Fixed {
    pub(crate) fn start(answer: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let addr = listener.local_addr().expect("an address");
        let count = Arc::new(AtomicUsize::new(0));
        let seen = count.clone();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                let seen = seen.clone();
                std::thread::spawn(move || {
                    let (mut head, mut byte) = (Vec::new(), [0]);
                    while matches!(stream.read(&mut byte), Ok(1)) {
                        head.extend(byte);
                        if !head.ends_with(b"\r\n\r\n") {
                            continue;
                        }
                        head.clear();
                        seen.fetch_add(1, Ordering::SeqCst);
                        if answer.is_empty() || stream.write_all(answer.as_bytes()).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Self { addr, count }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    fn count(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }
}

pub(crate) const BUSY: &str = "HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy";

#[test]
fn upstreams_get_calls_by_their_weight() {
    let (heavy, light) = (stand_in(), stand_in());
    let gateway = with_file(&format!(
        "[[pool]]\nname = \"w\"\nroutes = [\"unmatched\"]\nupstreams = [\"{} weight=3\", \"{}\"]\n",
        url(&heavy),
        url(&light)
    ));
    for _ in 0..12 {
        assert_eq!(gateway.call("GET", "/o/a/t/any", "").status, 200);
    }
    assert_eq!((heavy.count(), light.count()), (9, 3));
    assert_eq!(gateway.backend().count(), 0);
}

#[test]
fn a_pool_serves_its_apps_before_its_routes_before_its_editions() {
    let (apps, routes, editions) = (stand_in(), stand_in(), stand_in());
    let text = format!(
        "[[pool]]\nname = \"apps\"\napps = [\"O#Vip\", \"x9\"]\nupstreams = [\"{}\"]\n\
         [[pool]]\nname = \"routes\"\nroutes = [\"t-app\", \"options\"]\nupstreams = [\"{}\"]\n\
         [[pool]]\nname = \"editions\"\neditions = [\"v4\"]\nupstreams = [\"{}\"]\n",
        url(&apps),
        url(&routes),
        url(&editions)
    );
    let gateway = with_file(&text);
    let counts = || {
        [
            gateway.backend().count(),
            apps.count(),
            routes.count(),
            editions.count(),
        ]
    };
    for (method, path, expected) in [
        ("GET", "/o/a/t/user/x", [1, 0, 0, 0]),
        ("GET", "/o/vip/t/app", [1, 1, 0, 0]),
        ("GET", "/app-id/x9/users/y", [1, 2, 0, 0]),
        ("GET", "/o/a/t/app", [1, 2, 1, 0]),
        ("OPTIONS", "/o/a/users", [1, 2, 2, 0]),
        ("GET", "/app-id/x1/users/y", [1, 2, 2, 1]),
    ] {
        let answer = gateway.call(method, path, "");
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        assert_eq!(counts(), expected, "{method} {path}");
    }
}

#[test]
fn the_fewest_calls_in_flight_get_the_next_one() {
    let other = stand_in();
    let url = url(&other);
    let gateway = Start {
        args: &["--upstream", &url, "--balance", "least-connections"],
        ..Start::default()
    }
    .start();
    let mut slow = gateway.connect();
    slow.send_call("GET", "/o/a/t/any", &["x-standin-delay-ms: 50000"], "");
    eventually("the slow call is there", || {
        gateway.backend().count() + other.count() == 1
    });
    let mut connection = gateway.connect();
    for _ in 0..6 {
        assert_eq!(connection.call("GET", "/o/a/t/any", &[], "").status, 200);
    }
    let counts = [gateway.backend().count(), other.count()];
    assert!(counts == [1, 6] || counts == [6, 1], "{counts:?}");
    eventually("one is in flight", || {
        gateway.metric("floodgate_upstream_in_flight", &["default"]) == 1.0
    });
}

#[test]
fn calls_of_one_app_go_to_one_upstream() {
    let others = [stand_in(), stand_in()];
    let urls = others.each_ref().map(url);
    let gateway = Start {
        args: &[
            "--upstream",
            &urls[0],
            "--upstream",
            &urls[1],
            "--balance",
            "hash-app",
        ],
        ..Start::default()
    }
    .start();
    let counts = || {
        [
            gateway.backend().count(),
            others[0].count(),
            others[1].count(),
        ]
    };
    let mut used = [false; 3];
    for app in 0..24 {
        let before = counts();
        for _ in 0..3 {
            let path = format!("/o/a{app}/t/any");
            assert_eq!(gateway.call("GET", &path, "").status, 200);
        }
        let now = counts();
        let grown: Vec<usize> = (0..3).filter(|n| now[*n] != before[*n]).collect();
        assert_eq!(grown.len(), 1, "{app}: {before:?} {now:?}");
        used[grown[0]] = true;
    }
    assert_eq!(used, [true; 3]);
}

/// A name server that knows one set of addresses for all names; `None`: it fails.
struct NameServer {
    addr: SocketAddr,
    known: Arc<Mutex<Option<Vec<Ipv4Addr>>>>,
}

impl NameServer {
    fn start(known: &[Ipv4Addr]) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
        let addr = socket.local_addr().expect("an address");
        let known = Arc::new(Mutex::new(Some(known.to_vec())));
        let asked = known.clone();
        std::thread::spawn(move || {
            let mut query = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut query) {
                let known = asked.lock().expect("it").clone();
                let _ = socket.send_to(&answer(&query[..length], known.as_deref()), from);
            }
        });
        Self { addr, known }
    }

    fn know(&self, known: Option<&[Ipv4Addr]>) {
        *self.known.lock().expect("it") = known.map(<[_]>::to_vec);
    }
}

fn answer(query: &[u8], known: Option<&[Ipv4Addr]>) -> Vec<u8> {
    let name = query[12..].iter().position(|b| *b == 0).expect("a name") + 13;
    let question = &query[12..name + 4];
    let is_a = question[question.len() - 4..] == [0, 1, 0, 1];
    let addrs = known.filter(|_| is_a).unwrap_or_default();
    let code = if known.is_none() { 2 } else { 0 };
    let count = u8::try_from(addrs.len()).expect("few");
    let mut answer = query[..2].to_vec();
    answer.extend([0x81, 0x80 | code, 0, 1, 0, count, 0, 0, 0, 0]);
    answer.extend(question);
    for addr in addrs {
        answer.extend([0xC0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4]);
        answer.extend(addr.octets());
    }
    answer
}

#[test]
fn addresses_behind_a_name_come_and_go_without_a_restart() {
    let one = stand_in();
    let port = one.addr.port();
    let second = Ipv4Addr::new(127, 0, 0, 2);
    let other = stand_in_at(SocketAddr::from((second, port)));
    let names = NameServer::start(&[Ipv4Addr::LOCALHOST]);
    let server = names.addr.to_string();
    let gateway = Start {
        args: &[
            "--dns-server",
            &server,
            "--dns-interval",
            "50ms",
            "--threads",
            "1",
        ],
        url: Some(format!("http://im.backend.svc:{port}")),
        ..Start::default()
    }
    .start();
    let calls = || {
        let mut connection = gateway.connect();
        for _ in 0..4 {
            assert_eq!(connection.call("GET", "/o/a/t/any", &[], "").status, 200);
        }
    };
    calls();
    assert_eq!((one.count(), other.count()), (4, 0));
    let known = |n: f64| {
        eventually("the addresses are known", || {
            gateway.metric("floodgate_upstream_up", &["default"]) == n
        });
    };
    names.know(Some(&[second, Ipv4Addr::LOCALHOST]));
    known(2.0);
    calls();
    assert_eq!((one.count(), other.count()), (6, 2));
    names.know(Some(&[second]));
    known(1.0);
    calls();
    assert_eq!((one.count(), other.count()), (6, 6));
    // Neither a name server that fails nor one that forgets takes the last address away.
    for nothing in [None, Some(&[][..])] {
        names.know(nothing);
        let failed = || gateway.metric("floodgate_upstream_lookup_failures_total", &["im.backend"]);
        let before = failed();
        eventually("the name was asked for", || failed() > before + 1.0);
        calls();
    }
    assert_eq!((one.count(), other.count()), (6, 14));
    said(&gateway, "upstream address found");
    said(&gateway, "upstream address gone");
    said(&gateway, "cannot be looked up");
    // Not with each attempt; once more where a busy machine has let the name server seem gone.
    let log = gateway.log();
    let times = log.matches("cannot be looked up").count();
    assert!(matches!(times, 1 | 2), "{log}");
}

#[test]
fn an_upstream_that_fails_its_checks_gets_no_calls_until_it_passes_them() {
    let other = stand_in();
    let addr = other.addr;
    let url = url(&other);
    let gateway = Start {
        args: &[
            "--upstream",
            &url,
            "--health-check",
            "/o/a/t/health",
            "--health-interval",
            "50ms",
            "--health-timeout",
            "20s",
            "--eject-after",
            "off",
        ],
        ..Start::default()
    }
    .start();
    let up = || gateway.metric("floodgate_upstream_up", &[&addr.to_string()]);
    eventually("it is checked", || other.count() > 2);
    drop(other);
    eventually("it is out", || up() == 0.0);
    let failures = || gateway.metric("floodgate_upstream_failures_total", &[]);
    let before = failures();
    for _ in 0..6 {
        assert_eq!(gateway.call("POST", "/o/a/t/any", "{}").status, 200);
    }
    assert_eq!(failures(), before);
    let _again = stand_in_at(addr);
    eventually("it is back", || up() == 1.0);
    said(&gateway, "upstream fails its checks");
    said(&gateway, "upstream passes its checks again");
}

#[test]
fn where_all_checks_fail_all_upstreams_are_used() {
    let gateway = Start {
        args: &[
            "--health-check",
            "/nowhere",
            "--health-interval",
            "20ms",
            "--ready-requires",
            "upstream",
        ],
        ..Start::default()
    }
    .start();
    eventually("its checks fail", || ready(&gateway).0 == 503);
    assert_eq!(
        ready(&gateway).1,
        "pool default: none of 1 upstream addresses is well\n"
    );
    assert_eq!(gateway.call("GET", "/o/a/t/any", "").status, 200);
}

#[test]
fn an_upstream_that_fails_calls_in_a_row_is_ejected_for_a_while() {
    let url = format!("http://{}", dead());
    let gateway = Start {
        args: &[
            "--upstream",
            &url,
            "--eject-after",
            "3",
            "--eject-time",
            "8s",
        ],
        ..Start::default()
    }
    .start();
    let failures = || gateway.metric("floodgate_upstream_failures_total", &["connect"]);
    let ejections = || gateway.metric("floodgate_upstream_ejections_total", &[]);
    let mut connection = gateway.connect();
    let mut call = || connection.call("POST", "/o/a/t/any", &[], "{}").status;
    for _ in 0..20 {
        assert_eq!(call(), 200);
    }
    assert_eq!((failures(), ejections()), (3.0, 1.0));
    eventually("it gets another chance, and fails again", || {
        assert_eq!(call(), 200);
        ejections() == 2.0
    });
    assert_eq!(failures(), 6.0);
    assert_eq!(
        gateway.metric("floodgate_upstream_retries_total", &["connect"]),
        6.0
    );
    said(&gateway, "upstream ejected");
    said(&gateway, "\"time_ms\":16000");
}

#[test]
fn the_last_upstream_is_never_ejected_and_ready_tells_the_truth() {
    let backend = stand_in();
    let addr = backend.addr;
    let gateway = Start {
        args: &[
            "--ready-requires",
            "upstream",
            "--ready-requires",
            "store",
            "--eject-after",
            "2",
        ],
        upstream: Some(addr),
        ..Start::default()
    }
    .start();
    assert_eq!(ready(&gateway).0, 200);
    drop(backend);
    for _ in 0..3 {
        assert_eq!(gateway.call("GET", "/o/a/t/any", "").status, 502);
    }
    assert_eq!(ready(&gateway).0, 503);
    let _again = stand_in_at(addr);
    assert_eq!(gateway.call("GET", "/o/a/t/any", "").status, 200);
    assert_eq!(ready(&gateway).0, 200);
    assert_eq!(
        gateway.metric("floodgate_upstream_ejections_total", &[]),
        0.0
    );
}

#[test]
fn a_call_that_may_run_twice_is_tried_again_after_a_status_and_charged_once() {
    let busy = Fixed::start(BUSY);
    let gateway = Start {
        routes: ROUTES,
        args: &["--upstream", &busy.url(), "--retry-on", "503"],
        ..Start::default()
    }
    .start();
    let mut connection = gateway.connect();
    for _ in 0..3 {
        assert_eq!(connection.call("GET", "/o/a/t/app", &[], "").status, 200);
    }
    assert_eq!(connection.call("GET", "/o/a/t/app", &[], "").status, 429);
    assert!(busy.count() >= 1);
    let charged = gateway.metric("floodgate_units_charged_total", &["\"t-app:", ":app\""]);
    assert_eq!(charged, 3.0);
    // A body goes along.
    for _ in 0..2 {
        let answer = connection.call("PUT", "/o/a/t/any", &[], "{\"a\":1}");
        assert_eq!(answer.status, 200);
    }
    let bodies = gateway.backend().requests();
    let puts: Vec<_> = bodies.iter().filter(|seen| seen.method == "PUT").collect();
    assert_eq!(puts.len(), 2);
    assert!(puts.iter().all(|seen| &*seen.body == b"{\"a\":1}"));
    let again = gateway.metric("floodgate_upstream_retries_total", &["status"]);
    assert_eq!(again, busy.count() as f64);
}

#[test]
fn what_may_not_run_twice_is_not_tried_again() {
    let busy = Fixed::start(BUSY);
    let gateway = Start {
        args: &["--retry-on", "503", "--retry-on", "reset"],
        upstream: Some(busy.addr),
        ..Start::default()
    }
    .start();
    assert_eq!(gateway.call("POST", "/o/a/t/any", "{}").status, 503);
    assert_eq!(busy.count(), 1);
    let closing = Fixed::start("");
    let gateway = Start {
        args: &["--retry-on", "reset"],
        upstream: Some(closing.addr),
        ..Start::default()
    }
    .start();
    assert_eq!(gateway.call("POST", "/o/a/t/any", "{}").status, 502);
    assert_eq!(closing.count(), 1);
    assert_eq!(gateway.call("GET", "/o/a/t/any", "").status, 502);
    assert_eq!(closing.count(), 4);
}

#[test]
fn a_budget_bounds_repeated_calls() {
    let busy = Fixed::start(BUSY);
    let gateway = Start {
        args: &["--retry-on", "503", "--retry-budget", "10"],
        upstream: Some(busy.addr),
        ..Start::default()
    }
    .start();
    let mut connection = gateway.connect();
    for _ in 0..40 {
        assert_eq!(connection.call("GET", "/o/a/t/any", &[], "").status, 503);
    }
    let repeated = busy.count() - 40;
    assert!((10..=30).contains(&repeated), "{repeated}");
    let exhausted = gateway.metric("floodgate_upstream_retry_budget_exhausted_total", &[]);
    assert!(exhausted > 10.0, "{exhausted}");
}

#[test]
fn a_route_has_times_of_its_own() {
    let gateway = with_file(
        "[[pool]]\nname = \"quick\"\nroutes = [\"t-app\"]\nrequest_timeout = \"4s\"\n\
         [[pool]]\nname = \"impatient\"\nroutes = [\"t-ip\"]\nread_timeout = \"4s\"\n",
    );
    let mut connection = gateway.connect();
    let slow = ["x-standin-delay-ms: 6000"];
    assert_eq!(connection.call("GET", "/o/a/t/any", &slow, "").status, 200);
    for path in ["/o/a/t/app", "/o/a/t/ip"] {
        let answer = gateway.connect().call("GET", path, &slow, "");
        assert_eq!(answer.status, 504, "{path}");
        assert_eq!(gateway.call("GET", path, "").status, 200, "{path}");
    }
    // The upstream has had all of the time, of which each pool has its own.
    let timeouts = |pool| gateway.metric("floodgate_upstream_failures_total", &["timeout", pool]);
    assert_eq!(timeouts("quick"), 1.0);
    assert_eq!(timeouts("impatient"), 1.0);
    assert_eq!(timeouts("\"default\""), 0.0);
}

/// A backend whose answer never ends.
fn endless() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let addr = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let mut head = [0; 1024];
                let _ = stream.read(&mut head);
                let head = b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n";
                let mut sent = stream.write_all(head);
                while sent.is_ok() {
                    std::thread::sleep(Duration::from_millis(50));
                    sent = stream.write_all(&[b'x'; 4000]);
                }
            });
        }
    });
    addr
}

#[test]
fn an_answer_that_goes_on_for_ever_is_cut_off_by_the_time_for_the_call() {
    let gateway = Start {
        args: &["--request-timeout", "4s"],
        upstream: Some(endless()),
        ..Start::default()
    }
    .start();
    let mut connection = gateway.connect();
    connection.send_call("GET", "/o/a/t/any", &[], "");
    let rest = connection.rest();
    assert!(rest.starts_with("HTTP/1.1 200"), "{rest}");
    assert!(rest.len() < 1_000_000, "{}", rest.len());
}

#[test]
fn an_upstream_speaks_http2_in_the_clear() {
    let backend = stand_in();
    let over = Start {
        url: Some(format!("{} http2", url(&backend))),
        ..Start::default()
    }
    .start();
    let mut connection = over.connect();
    assert_eq!(connection.call("GET", "/o/a/t/any", &[], "").status, 200);
    let answer = connection.call("POST", "/o/a/t/any", &[], "{\"a\":1}");
    assert_eq!(answer.status, 200, "{}", answer.text());
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let addr = listener.local_addr().expect("an address");
    let preface = std::thread::spawn(move || {
        let (mut stream, _): (TcpStream, _) = listener.accept().expect("a connection");
        let mut preface = [0; 14];
        stream.read_exact(&mut preface).expect("a preface");
        preface
    });
    let over = Start {
        url: Some(format!("http://{addr} http2")),
        ..Start::default()
    }
    .start();
    let mut caller = over.connect();
    caller.send_call("GET", "/o/a/t/any", &[], "");
    assert_eq!(&preface.join().expect("it")[..], b"PRI * HTTP/2.0");
}

#[test]
fn a_pool_has_an_authority_and_a_server_name_of_its_own() {
    let upstream = secure();
    let dir = tempfile::tempdir().expect("a folder");
    let ca = dir.path().join("ca.pem");
    std::fs::write(&ca, &upstream.ca).expect("a file");
    let by_address = upstream.url.replace("localhost", "127.0.0.1");
    let gateway = with_file(&format!(
        "[[pool]]\nname = \"own\"\nroutes = [\"t-app\"]\nupstreams = [\"{by_address}\"]\n\
         ca = {ca:?}\nsni = \"localhost\"\n\
         [[pool]]\nname = \"none\"\nroutes = [\"t-ip\"]\nupstreams = [\"{by_address} sni=localhost\"]\n\
         [[pool]]\nname = \"h2\"\nroutes = [\"t-first\"]\nupstreams = [\"{0} http2\"]\nca = {ca:?}\n",
        upstream.url
    ));
    let answer = gateway.call("GET", "/o/a/t/app", "");
    assert_eq!((answer.status, answer.text().as_str()), (200, "ok"));
    assert_eq!(upstream.asked.recv().expect("a request").0, "localhost");
    // An upstream that does not speak HTTP/2 says so, and gets what it speaks.
    let answer = gateway.call("GET", "/o/a/t/first", "");
    assert_eq!((answer.status, answer.text().as_str()), (200, "ok"));
    // Whom one pool trusts is nobody to another.
    assert_eq!(gateway.call("GET", "/o/a/t/ip", "").status, 502);
}
