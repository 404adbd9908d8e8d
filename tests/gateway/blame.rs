//! Whose fault a failure is.

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
