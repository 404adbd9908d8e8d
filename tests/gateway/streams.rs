//! Upstreams of HTTP/2, frame by frame: streams that break, calls that are refused unbegun.

mod uploads;
mod windows;

use std::collections::HashSet;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use floodgate::standin::{StandIn, StandInOptions};

use crate::door::soon;
use crate::frames::{
    DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, RST_STREAM, SETTINGS, WINDOW_UPDATE, frame,
};
use crate::harness::{Gateway, Start};

const ACK: u8 = 1;
const MIB: u32 = 1 << 20;

const NO_ERROR: u32 = 0;
const INTERNAL_ERROR: u32 = 2;
const REFUSED_STREAM: u32 = 7;
const ENHANCE_YOUR_CALM: u32 = 11;

/// What becomes of a call.
#[derive(Clone, Copy, Debug)]
enum Act {
    Answer,
    Nothing,
    Reset(u32),
    /// No call after that stream is taken; the connection ends.
    GoAway(u32, u32),
    End,
}

/// A call that has come: the how many-th of all, and the how many-th of its connection.
#[derive(Clone, Copy, Debug)]
struct Came {
    nth: usize,
    nth_here: usize,
    stream: u32,
    has_body: bool,
}

/// An upstream of HTTP/2 in the clear.
struct Streams {
    addr: SocketAddr,
    calls: Arc<AtomicUsize>,
    connections: Arc<AtomicUsize>,
}

impl Streams {
    fn start(act: impl Fn(Came) -> Act + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let addr = listener.local_addr().expect("an address");
        let (calls, connections) = (Arc::default(), Arc::default());
        let upstream = Self {
            addr,
            calls: Arc::clone(&calls),
            connections: Arc::clone(&connections),
        };
        let act = Arc::new(act);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                connections.fetch_add(1, SeqCst);
                let (act, calls) = (act.clone(), calls.clone());
                std::thread::spawn(move || serve(stream, &*act, &calls));
            }
        });
        upstream
    }

    fn url(&self) -> String {
        format!("http://{} http2", self.addr)
    }

    fn calls(&self) -> usize {
        self.calls.load(SeqCst)
    }

    fn connections(&self) -> usize {
        self.connections.load(SeqCst)
    }
}

/// One connection. `None`: it has ended.
fn serve(mut tcp: TcpStream, act: &dyn Fn(Came) -> Act, calls: &AtomicUsize) -> Option<()> {
    tcp.set_nodelay(true).ok()?;
    tcp.read_exact(&mut [0; 24]).ok()?;
    // Streams at once (setting 3); room for a body, of each stream (4) and of the connection.
    let room = MIB.to_be_bytes();
    let settings = [&[0, 3, 0, 0, 0, 2, 0, 4], &room[..]].concat();
    let settings = frame(SETTINGS, 0, 0, &settings);
    let more = frame(WINDOW_UPDATE, 0, 0, &room);
    tcp.write_all(&[settings, more].concat()).ok()?;
    let mut nth_here = 0;
    let mut with_body = HashSet::new();
    loop {
        let mut head = [0; 9];
        tcp.read_exact(&mut head).ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let (kind, flags) = (head[3], head[4]);
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        std::io::copy(&mut (&mut tcp).take(length.into()), &mut std::io::sink()).ok()?;
        if kind == SETTINGS && flags & ACK == 0 {
            tcp.write_all(&frame(SETTINGS, ACK, 0, b"")).ok()?;
        }
        if kind == DATA && length > 0 {
            with_body.insert(stream);
        }
        if !matches!(kind, HEADERS | DATA) || flags & END_STREAM == 0 {
            continue;
        }
        nth_here += 1;
        let came = Came {
            nth: calls.fetch_add(1, SeqCst) + 1,
            nth_here,
            stream,
            has_body: with_body.remove(&stream),
        };
        match act(came) {
            Act::Answer => {
                // 200, the eighth of the fields that HPACK knows.
                let answer = frame(HEADERS, END_HEADERS | END_STREAM, stream, &[0x88]);
                tcp.write_all(&answer).ok()?;
            }
            Act::Nothing => {}
            Act::Reset(code) => {
                let reset = frame(RST_STREAM, 0, stream, &code.to_be_bytes());
                tcp.write_all(&reset).ok()?;
            }
            Act::GoAway(last, code) => {
                let why = [last.to_be_bytes(), code.to_be_bytes()].concat();
                tcp.write_all(&frame(GOAWAY, 0, 0, &why)).ok()?;
                // Until the other side has read it, and closed.
                while tcp.read(&mut [0; 1024]).ok()? > 0 {}
                return None;
            }
            Act::End => return None,
        }
    }
}

/// A gateway before this one, and others.
fn before(first: &str, args: &[&str]) -> Gateway {
    Start {
        url: Some(first.to_owned()),
        args,
        ..Start::default()
    }
    .start()
}

fn repeated(gateway: &Gateway, why: &str) -> f64 {
    gateway.metric("floodgate_upstream_retries_total", &[why])
}

fn failures(gateway: &Gateway) -> f64 {
    gateway.metric("floodgate_upstream_failures_total", &[])
}

#[test]
fn a_stream_that_breaks_is_a_failure_like_any_other_and_its_call_is_sent_once() {
    for act in [Act::Reset(INTERNAL_ERROR), Act::End] {
        let broken = Streams::start(move |_| act);
        let other = StandIn::start(StandInOptions::default()).expect("a stand-in backend");
        let url = format!("http://{}", other.addr);
        let args = [
            "--upstream",
            &url,
            "--eject-after",
            "3",
            "--eject-time",
            "5min",
        ];
        let gateway = before(&broken.url(), &args);
        let mut connection = gateway.connect();
        let mut failed = 0;
        for n in 0..20 {
            let method = ["GET", "DELETE", "PUT"][n % 3];
            match connection.call(method, "/o/a/t/any", &[], "").status {
                200 => {}
                502 => {
                    failed += 1;
                    connection = gateway.connect();
                }
                other => panic!("{act:?}: {other}"),
            }
        }
        assert_eq!((failed, broken.calls()), (3, 3), "{act:?}");
        let ejections = gateway.metric("floodgate_upstream_ejections_total", &[]);
        assert_eq!((failures(&gateway), ejections), (3.0, 1.0), "{act:?}");
        assert_eq!(repeated(&gateway, ""), 0.0, "{act:?}");
    }
}

#[test]
fn an_upstream_that_does_not_answer_a_call_without_a_body_is_waited_for_and_blamed() {
    let silent = Streams::start(|_| Act::Nothing);
    let gateway = before(&silent.url(), &["--read-timeout", "6s"]);
    let mut connection = gateway.connect();
    connection.send_call("GET", "/o/a/t/any", &[], "");
    soon("it is waited for", || {
        gateway.metric("floodgate_upstream_waiting", &[]) == 1.0
    });
    assert_eq!(connection.read_answer("GET").status, 504);
    soon("it is over", || {
        failures(&gateway) == 1.0 && gateway.metric("floodgate_upstream_waiting", &[]) == 0.0
    });
}

#[test]
fn a_call_whose_stream_broke_is_repeated_by_retry_on_and_its_budget_alone() {
    for (budget, calls) in [("20", 3), ("0", 1)] {
        let broken = Streams::start(|_| Act::Reset(INTERNAL_ERROR));
        let args = ["--retry-on", "reset", "--retry-budget", budget];
        let gateway = before(&broken.url(), &args);
        for (method, due) in [("POST", 1), ("GET", calls), ("PUT", calls)] {
            let before = broken.calls();
            assert_eq!(gateway.call(method, "/o/a/t/any", "").status, 502);
            assert_eq!(broken.calls() - before, due, "{method}, {budget} %");
        }
        assert_eq!(repeated(&gateway, "broken"), 2.0 * (calls - 1) as f64);
        assert_eq!(repeated(&gateway, ""), repeated(&gateway, "broken"));
    }
}

#[test]
fn a_refused_stream_has_not_run_and_its_call_goes_elsewhere_whatever_the_method() {
    let refusing = Streams::start(|_| Act::Reset(REFUSED_STREAM));
    let other = StandIn::start(StandInOptions::default()).expect("a stand-in backend");
    let url = format!("http://{}", other.addr);
    let args = [
        "--upstream",
        &url,
        "--eject-after",
        "3",
        "--eject-time",
        "5min",
    ];
    let gateway = before(&refusing.url(), &args);
    let mut connection = gateway.connect();
    for _ in 0..12 {
        let answer = connection.call("POST", "/o/a/t/any", &[], "{\"a\":1}");
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    let seen = other.requests();
    assert_eq!(seen.len(), 12);
    assert!(seen.iter().all(|seen| &*seen.body == b"{\"a\":1}"));
    // It does no work: that is a failure.
    assert_eq!((refusing.calls(), failures(&gateway)), (3, 3.0));
    assert_eq!(repeated(&gateway, "refused"), 3.0);
}

#[test]
fn a_refused_call_whose_body_is_not_kept_is_not_sent_again() {
    let refusing = Streams::start(|_| Act::Reset(REFUSED_STREAM));
    let gateway = before(&refusing.url(), &[]);
    // One that is kept comes back twice where there is no other upstream.
    assert_eq!(gateway.call("POST", "/o/a/t/any", "{}").status, 502);
    assert_eq!(refusing.calls(), 3);
    let large = format!("{{\"a\":\"{}\"}}", "u".repeat(130_000));
    assert_eq!(gateway.call("POST", "/o/a/t/any", &large).status, 502);
    assert_eq!(refusing.calls(), 4);
}

#[test]
fn a_connection_that_goes_away_takes_no_call_along_that_it_has_not_begun() {
    for code in [NO_ERROR, ENHANCE_YOUR_CALM] {
        // Each connection answers one call, and no more.
        let upstream = Streams::start(move |came| match came.nth_here {
            1 => Act::Answer,
            _ => Act::GoAway(came.stream - 2, code),
        });
        let gateway = before(&upstream.url(), &["--threads", "1"]);
        let mut connection = gateway.connect();
        for _ in 0..6 {
            let answer = connection.call("POST", "/o/a/t/any", &[], "{}");
            assert_eq!(answer.status, 200, "{code}: {}", answer.text());
        }
        assert!(upstream.connections() > 1);
        assert!(repeated(&gateway, "refused") >= 1.0);
        assert_eq!(failures(&gateway), 0.0);
    }
}

#[test]
fn a_call_that_a_connection_may_have_begun_before_it_went_is_not_sent_again() {
    let upstream = Streams::start(|came| match came.nth {
        1 => Act::Answer,
        _ => Act::GoAway(came.stream, NO_ERROR),
    });
    let gateway = before(&upstream.url(), &["--threads", "1", "--read-timeout", "6s"]);
    assert_eq!(gateway.call("POST", "/o/a/t/any", "{}").status, 200);
    let status = gateway.call("POST", "/o/a/t/any", "{}").status;
    assert!(matches!(status, 502 | 504), "{status}");
    assert_eq!(upstream.calls(), 2);
    assert_eq!(repeated(&gateway, ""), 0.0);
}

#[test]
fn what_no_upstream_has_begun_costs_nothing() {
    let refusing = Streams::start(|_| Act::Reset(REFUSED_STREAM));
    let leaving = Streams::start(|_| Act::GoAway(0, NO_ERROR));
    let dead = format!("http://{}", crate::upstreams::dead());
    let task = "\n[[route]]\nname = \"t-task\"\ncalls = [\"POST /t/task\"]\n\
                v3 = { limits = [{ rate = \"1 tasks\", hold = \"task\" }], ip_copy = false }\n";
    for (first, other) in [
        (refusing.url(), None),
        (leaving.url(), None),
        (refusing.url(), Some(dead)),
    ] {
        let mut args = vec!["--eject-after", "off"];
        args.extend(other.iter().flat_map(|other| ["--upstream", other]));
        let gateway = Start {
            routes: &format!("{}{task}", crate::ROUTES),
            url: Some(first.clone()),
            args: &args,
            ..Start::default()
        }
        .start();
        // Two a day, and one task.
        for path in ["/o/a/t/day", "/o/a/t/task"] {
            for n in 1..=5 {
                let answer = gateway.call("POST", path, "{}");
                assert_eq!(answer.status, 502, "{first} {other:?} {}", answer.text());
                assert_eq!(answer.error().1, "The upstream could not be reached.");
                soon("it is over", || {
                    gateway.metric("floodgate_requests_in_flight", &[]) == 0.0
                });
                let units = |what: &str| {
                    let name = format!("floodgate_units_{what}_total");
                    gateway.metric(&name, &["t-day", ":app"])
                };
                if path.ends_with("day") {
                    let due = f64::from(n);
                    soon("they are back", || units("refunded") == due);
                    assert_eq!(units("charged"), due, "{first} {other:?}");
                }
            }
        }
    }
}

#[test]
fn units_go_back_no_more_where_an_earlier_attempt_may_have_run() {
    // The first attempt breaks, and is repeated; the others are refused.
    let upstream = Streams::start(|came| match came.nth {
        1 => Act::Reset(INTERNAL_ERROR),
        _ => Act::Reset(REFUSED_STREAM),
    });
    let gateway = Start {
        routes: crate::ROUTES,
        url: Some(upstream.url()),
        args: &["--retry-on", "reset"],
        ..Start::default()
    }
    .start();
    assert_eq!(gateway.call("GET", "/o/a/t/app", "").status, 502);
    assert!(upstream.calls() > 1);
    let refunded = || gateway.metric("floodgate_units_refunded_total", &["t-app"]);
    soon("it is over", || {
        gateway.metric("floodgate_requests_in_flight", &[]) == 0.0
    });
    assert_eq!(refunded(), 0.0);
}

#[test]
fn a_connection_that_goes_away_before_it_has_taken_a_call_is_a_failure() {
    let leaving = Streams::start(|_| Act::GoAway(0, NO_ERROR));
    let other = StandIn::start(StandInOptions::default()).expect("a stand-in backend");
    let url = format!("http://{}", other.addr);
    let args = [
        "--upstream",
        &url,
        "--eject-after",
        "3",
        "--eject-time",
        "5min",
    ];
    let gateway = before(&leaving.url(), &args);
    for _ in 0..12 {
        assert_eq!(gateway.call("POST", "/o/a/t/any", "{}").status, 200);
    }
    assert_eq!((leaving.calls(), failures(&gateway)), (3, 3.0));
    let alone = before(&leaving.url(), &["--ready-requires", "upstream"]);
    for _ in 0..5 {
        assert_eq!(alone.call("POST", "/o/a/t/any", "{}").status, 502);
    }
    let ready = crate::harness::Connection::to(alone.admin).call("GET", "/ready", &[], "");
    assert_eq!(ready.status, 503);
}

fn checks(gateway: &Gateway, result: &str) -> f64 {
    let result = format!("result=\"{result}\"");
    gateway.metric("floodgate_upstream_checks_total", &[&result])
}

const CHECKED: [&str; 6] = [
    "--health-check",
    "/health",
    "--health-interval",
    "50ms",
    "--health-timeout",
    "20s",
];

#[test]
fn checks_have_a_connection_of_their_own_each() {
    // Whatever comes second on a connection is not answered: it is dead, and nobody has said so.
    let upstream = Streams::start(|came| match came.nth_here {
        1 => Act::Answer,
        _ => Act::Nothing,
    });
    let gateway = before(&upstream.url(), &CHECKED);
    soon("it is checked", || checks(&gateway, "pass") >= 8.0);
    assert_eq!(checks(&gateway, "fail"), 0.0);
    assert!(upstream.connections() >= 8);
}

#[test]
fn neither_calls_nor_checks_wait_for_the_other() {
    // Two calls fill a connection. Those with a body are not answered.
    let upstream = Streams::start(|came| match came.has_body {
        true => Act::Nothing,
        false => Act::Answer,
    });
    let gateway = before(&upstream.url(), &CHECKED);
    let mut waiting = Vec::new();
    for _ in 0..6 {
        let mut connection = gateway.connect();
        connection.send_call("POST", "/o/a/t/any", &[], "{}");
        waiting.push(connection);
    }
    soon("all calls wait", || {
        gateway.metric("floodgate_upstream_waiting", &[]) == 6.0
    });
    let before = checks(&gateway, "pass");
    soon("it is checked", || checks(&gateway, "pass") >= before + 5.0);
    assert_eq!(checks(&gateway, "fail"), 0.0);
    // A check that hangs is none of a call's business either.
    let answer = gateway.call("GET", "/o/a/t/any", "");
    assert_eq!(answer.status, 200, "{}", gateway.log());
}
