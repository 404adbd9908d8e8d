//! Whose fault a failure is, and which calls are sent again on a kept connection that breaks.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use floodgate::standin::{StandIn, StandInOptions};

use crate::door::soon;
use crate::faults::script::{Fault, Scripted};
use crate::harness::{Gateway, Start};
use crate::pools::{BUSY, Fixed};
use crate::upstreams::dead;

const HEAD: &str = "POST /o/a/t/any HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer YWMtgood\r\n\
                    Content-Length: 200000\r\n";

fn failures(gateway: &Gateway) -> f64 {
    gateway.metric("floodgate_upstream_failures_total", &[])
}

fn repeated(gateway: &Gateway) -> f64 {
    gateway.metric("floodgate_upstream_retries_total", &[])
}

fn field(fault: Fault) -> String {
    format!("x-fault: {}", fault.name())
}

#[test]
fn an_upstream_that_breaks_while_it_is_sent_a_body_is_ejected_like_any_other() {
    let broken = Scripted::start();
    let other = StandIn::start(StandInOptions::default()).expect("a stand-in backend");
    let url = format!("http://{}", other.addr);
    let gateway = Start {
        upstream: Some(broken.addr),
        args: &[
            "--upstream",
            &url,
            "--eject-after",
            "3",
            "--eject-time",
            "5min",
        ],
        ..Start::default()
    }
    .start();
    let begun = format!("{HEAD}{}\r\n\r\nand", field(Fault::CloseAtHead));
    soon("it is ejected", || {
        let mut connection = gateway.connect();
        let before = failures(&gateway);
        connection.send(begun.as_bytes());
        // The other one waits for the rest, and has to be spared it. One after the other: none that
        // had begun is to fail when it is ejected.
        for _ in 0..100 {
            if failures(&gateway) > before {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        gateway.metric("floodgate_upstream_ejections_total", &[]) == 1.0
    });
    assert!(broken.take_seen().len() >= 3);
    assert_eq!(failures(&gateway), 3.0);
}

#[test]
fn a_caller_that_leaves_or_takes_its_time_speaks_against_no_upstream() {
    let upstream = Scripted::start();
    let gateway = Start {
        upstream: Some(upstream.addr),
        args: &["--read-timeout", "1s", "--body-timeout", "5s"],
        ..Start::default()
    }
    .start();
    let begun = format!("{HEAD}\r\nand");
    let mut seen = 0;
    for n in 1..=3 {
        let mut gone = gateway.connect();
        gone.send(begun.as_bytes());
        let mut reset = gateway.connect();
        reset.send(begun.as_bytes());
        soon("both have come", || {
            seen += upstream.take_seen().len();
            seen == 2 * n
        });
        reset.reset();
    }
    let mut slow = gateway.connect();
    slow.send(begun.as_bytes());
    assert_eq!(slow.read_answer("POST").status, 408);
    soon("all are over", || {
        gateway.metric("floodgate_requests_in_flight", &[]) == 0.0
    });
    assert_eq!(seen + upstream.take_seen().len(), 7);
    assert_eq!(failures(&gateway), 0.0);
}

/// A call's connection is kept when the call is over, which is after its answer.
fn is_kept(gateway: &Gateway) {
    soon("its connection is kept", || {
        gateway.metric("floodgate_requests_in_flight", &[]) == 0.0
    });
}

/// What comes of a call whose kept connection ends when the upstream has read all of it, and how
/// often the upstream was sent it.
fn on_a_kept_connection(method: &str, args: &[&str]) -> (u16, usize, f64) {
    let upstream = Scripted::start();
    let gateway = Start {
        upstream: Some(upstream.addr),
        args: &[&["--threads", "1"], args].concat(),
        ..Start::default()
    }
    .start();
    assert_eq!(gateway.call("GET", "/o/a/t/any", "").status, 200);
    is_kept(&gateway);
    upstream.take_seen();
    let field = field(Fault::CloseReused);
    let mut connection = gateway.connect();
    let answer = connection.call(method, "/o/a/t/any", &[&field], "");
    // Neither is a failure of the upstream's: it may close what it keeps.
    assert_eq!(failures(&gateway), 0.0);
    (
        answer.status,
        upstream.take_seen().len(),
        repeated(&gateway),
    )
}

#[test]
fn what_changes_nothing_is_sent_again_when_a_kept_connection_breaks() {
    for method in ["GET", "HEAD", "OPTIONS"] {
        let got = on_a_kept_connection(method, &[]);
        assert_eq!(got, (200, 2, 1.0), "{method}");
    }
}

#[test]
fn what_may_have_changed_something_is_sent_again_only_if_retry_on_says_so() {
    for method in ["DELETE", "PUT"] {
        let got = on_a_kept_connection(method, &[]);
        assert_eq!(got, (502, 1, 0.0), "{method}");
        let got = on_a_kept_connection(method, &["--retry-on", "503"]);
        assert_eq!(got, (502, 1, 0.0), "{method}");
        let got = on_a_kept_connection(method, &["--retry-on", "reset"]);
        assert_eq!(got, (200, 2, 1.0), "{method}");
    }
    let got = on_a_kept_connection("POST", &["--retry-on", "reset"]);
    assert_eq!(got, (502, 1, 0.0));
}

/// An upstream that answers the first call of a connection, when so many have come in all; of the
/// second, this is all. And how many it has had.
fn half(answer: &'static str, together: usize) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let addr = listener.local_addr().expect("an address");
    let calls = Arc::new(AtomicUsize::new(0));
    let seen = calls.clone();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let seen = seen.clone();
            std::thread::spawn(move || {
                for answer in ["HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", answer] {
                    let (mut head, mut byte) = (Vec::new(), [0]);
                    while !head.ends_with(b"\r\n\r\n") {
                        if !matches!(stream.read(&mut byte), Ok(1)) {
                            return;
                        }
                        head.extend(byte);
                    }
                    seen.fetch_add(1, SeqCst);
                    while seen.load(SeqCst) < together {
                        std::thread::sleep(Duration::from_millis(5));
                    }
                    if stream.write_all(answer.as_bytes()).is_err() {
                        return;
                    }
                }
                // What is sent has to be read before the end is.
                std::thread::sleep(Duration::from_millis(50));
            });
        }
    });
    (addr, calls)
}

#[test]
fn a_connection_on_which_an_answer_had_begun_was_not_closed_long_ago() {
    let early = "HTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\n";
    for begun in ["HTTP/1.1 200", "H", early, "nonsense\r\n\r\n"] {
        let (upstream, calls) = half(begun, 1);
        let gateway = Start {
            upstream: Some(upstream),
            args: &["--threads", "1"],
            ..Start::default()
        }
        .start();
        assert_eq!(gateway.call("GET", "/o/a/t/any", "").status, 200);
        is_kept(&gateway);
        assert_eq!(gateway.call("GET", "/o/a/t/any", "").status, 502, "{begun}");
        assert_eq!(calls.load(SeqCst), 2, "{begun}");
        assert_eq!(
            (failures(&gateway), repeated(&gateway)),
            (1.0, 0.0),
            "{begun}"
        );
    }
}

#[test]
fn where_all_kept_connections_break_a_call_is_sent_once_more_and_not_for_each() {
    const KEPT: usize = 4;
    // All at once, so that none of them is used twice.
    let (upstream, calls) = half("", KEPT);
    let gateway = Start {
        upstream: Some(upstream),
        args: &["--threads", "1"],
        ..Start::default()
    }
    .start();
    let mut callers: Vec<_> = (0..KEPT).map(|_| gateway.connect()).collect();
    for caller in &mut callers {
        caller.send_call("GET", "/o/a/t/any", &[], "");
    }
    for caller in &mut callers {
        assert_eq!(caller.read_answer("GET").status, 200);
    }
    is_kept(&gateway);
    assert_eq!(gateway.call("GET", "/o/a/t/any", "").status, 200);
    assert_eq!(calls.load(SeqCst), KEPT + 2);
    assert_eq!((failures(&gateway), repeated(&gateway)), (0.0, 1.0));
}

#[test]
fn an_upstream_that_uses_up_the_time_of_calls_is_ejected_like_any_other() {
    let silent = Scripted::start();
    let other = StandIn::start(StandInOptions::default()).expect("a stand-in backend");
    let url = format!("http://{}", other.addr);
    let gateway = Start {
        upstream: Some(silent.addr),
        args: &[
            "--upstream",
            &url,
            "--eject-after",
            "2",
            "--eject-time",
            "5min",
            "--request-timeout",
            "4s",
        ],
        ..Start::default()
    }
    .start();
    let field = field(Fault::Silent);
    let call = || gateway.connect().call("GET", "/o/a/t/any", &[&field], "");
    let statuses: Vec<_> = (0..10).map(|_| call().status).collect();
    let late = statuses.iter().filter(|status| **status == 504).count();
    assert_eq!(late, 2, "{statuses:?}");
    assert_eq!(
        gateway.metric("floodgate_upstream_ejections_total", &[]),
        1.0
    );
}

#[test]
fn a_caller_that_uses_up_the_time_of_its_call_speaks_against_no_upstream() {
    let silent = Scripted::start();
    let gateway = Start {
        upstream: Some(silent.addr),
        args: &["--request-timeout", "9s"],
        ..Start::default()
    }
    .start();
    let head = HEAD.replace("200000", "2");
    let mut slow = gateway.connect();
    slow.send(format!("{head}{}\r\n\r\na", field(Fault::Silent)).as_bytes());
    std::thread::sleep(Duration::from_millis(5500));
    slow.send(b"b");
    assert_eq!(slow.read_answer("POST").status, 504);
    soon("it is over", || {
        gateway.metric("floodgate_requests_in_flight", &[]) == 0.0
    });
    assert_eq!(failures(&gateway), 0.0);
}

#[test]
fn an_error_is_not_lost_because_no_other_upstream_can_be_reached() {
    let busy = Fixed::start(BUSY);
    let dead = format!("http://{}", dead());
    let gateway = Start {
        url: Some(busy.url()),
        args: &[
            "--upstream",
            &dead,
            "--retry-on",
            "503",
            "--eject-after",
            "off",
        ],
        ..Start::default()
    }
    .start();
    for _ in 0..4 {
        let answer = gateway.call("GET", "/o/a/t/any", "");
        assert_eq!((answer.status, &*answer.text()), (503, "busy"));
    }
}

#[test]
fn an_upstream_that_does_not_ask_for_a_body_is_no_fault_of_the_caller() {
    let silent = Scripted::start();
    let routes = "[[route]]\nname = \"t-up\"\ncalls = [\"POST /t/up\"]\n\
                  v3 = { limits = [\"50/s\"], ip_copy = false }\n\
                  [ip]\nunauthorized = [\"1/3600s\"]\n";
    let gateway = Start {
        routes,
        upstream: Some(silent.addr),
        args: &["--read-timeout", "500ms"],
        ..Start::default()
    }
    .start();
    let head = HEAD.replace("/t/any", "/t/up");
    let head = format!(
        "{head}{}\r\nExpect: 100-continue\r\n\r\n",
        field(Fault::Silent)
    );
    for _ in 0..3 {
        let mut connection = gateway.connect();
        connection.send(head.as_bytes());
        let answer = connection.read_answer("POST");
        assert_eq!(answer.status, 504, "{}", answer.text());
    }
}
