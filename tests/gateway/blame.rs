//! Whose fault a failure is, and which calls are sent again on a kept connection that breaks.

use std::time::Duration;

use floodgate::standin::{StandIn, StandInOptions};

use crate::door::soon;
use crate::faults::script::{Fault, Scripted};
use crate::harness::{Gateway, Start};

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
        args: &["--upstream", &url, "--eject-after", "3"],
        ..Start::default()
    }
    .start();
    let begun = format!("{HEAD}{}\r\n\r\nand", field(Fault::CloseAtHead));
    soon("it is ejected", || {
        let mut connection = gateway.connect();
        connection.send(begun.as_bytes());
        // The other one waits for the rest, and has to be spared it.
        std::thread::sleep(Duration::from_millis(100));
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
        args: &["--read-timeout", "1s", "--body-timeout", "30s"],
        ..Start::default()
    }
    .start();
    let begun = format!("{HEAD}\r\nand");
    for _ in 0..3 {
        let mut gone = gateway.connect();
        gone.send(begun.as_bytes());
        let mut reset = gateway.connect();
        reset.send(begun.as_bytes());
        std::thread::sleep(Duration::from_millis(50));
        reset.reset();
    }
    let mut slow = gateway.connect();
    slow.send(begun.as_bytes());
    assert_eq!(slow.read_answer("POST").status, 504);
    soon("all are over", || {
        gateway.metric("floodgate_requests_in_flight", &[]) == 0.0
    });
    assert_eq!(upstream.take_seen().len(), 7);
    assert_eq!(failures(&gateway), 0.0);
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
