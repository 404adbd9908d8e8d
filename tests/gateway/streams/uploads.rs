//! Bodies that take their time, to upstreams of HTTP/2: the wait for an answer begins when they are
//! there as a whole.

use std::time::Duration;

use super::*;
use crate::frames::{Peer, call, head};
use crate::harness::Connection;

const MS: Duration = Duration::from_millis(1);

/// No address may leave more than one call incomplete.
const ROUTES: &str = "[[route]]\nname = \"t-up\"\ncalls = [\"POST /t/up\"]\n\
                      v3 = { limits = [\"1000/s\"], ip_copy = false }\n\
                      [ip]\nunauthorized = [\"1/3600s\"]\n";

fn before(upstream: &Streams, args: &[&str]) -> Gateway {
    Start {
        routes: ROUTES,
        url: Some(upstream.url()),
        args,
        ..Start::default()
    }
    .start()
}

/// Begins a call of which nothing but the first byte of its body is there yet.
fn begin(gateway: &Gateway, length: usize) -> Connection {
    let mut connection = gateway.connect();
    let head = format!(
        "POST /o/a/t/up HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer YWMtgood\r\n\
         Content-Length: {length}\r\n\r\nx"
    );
    connection.send(head.as_bytes());
    std::thread::sleep(MS * 100);
    connection
}

fn timeouts(gateway: &Gateway) -> f64 {
    gateway.metric("floodgate_upstream_failures_total", &["timeout"])
}

/// Shorter than [`slowly`] takes by far, and longer than a busy machine stands still.
const READ_TIMEOUT: [&str; 2] = ["--read-timeout", "4s"];

/// An upload of twice `read_timeout`, piece by piece: `also` is told which of twenty.
fn slowly(connection: &mut Connection, mut also: impl FnMut(usize)) {
    for n in 1..=20 {
        std::thread::sleep(MS * 450);
        connection.try_send(&[b'x'; 2000]).expect("taken");
        also(n);
    }
}

#[test]
fn an_upload_may_take_longer_than_an_answer_may() {
    let upstream = Streams::start(|_| Act::Answer);
    let gateway = before(&upstream, &[&READ_TIMEOUT[..], &["--h2c"]].concat());
    let mut connection = begin(&gateway, 40_001);
    // From a caller of HTTP/2 as well.
    let mut peer = Peer::new(&gateway);
    let fields = head(&call("POST", "/o/a/t/up", &[]));
    peer.send(&frame(HEADERS, END_HEADERS, 1, &fields))
        .expect("sent");
    slowly(&mut connection, |n| {
        let end = if n == 20 { END_STREAM } else { 0 };
        peer.send(&frame(DATA, end, 1, &[b'x'; 2000]))
            .expect("sent");
    });
    assert_eq!(connection.read_answer("POST").status, 200);
    assert_eq!(peer.answered(), Some(200));
    assert_eq!((upstream.calls(), timeouts(&gateway)), (2, 0.0));
}

#[test]
fn an_upstream_that_has_all_of_an_upload_is_waited_for_so_long_and_blamed() {
    let upstream = Streams::start(|_| Act::Nothing);
    let gateway = before(&upstream, &["--read-timeout", "1s", "--threads", "1"]);
    for n in 1..=3_u8 {
        let mut connection = begin(&gateway, 2);
        connection.send(b"y");
        let answer = connection.read_answer("POST");
        // Neither is it charged to the caller.
        assert_eq!(answer.status, 504, "{}", answer.text());
        soon("it is counted", || timeouts(&gateway) == f64::from(n));
        // None is left behind for another.
        assert_eq!(upstream.connections(), 1);
    }
    soon("the log says why", || {
        gateway
            .log()
            .matches("\"cause\":\"header-timeout\"")
            .count()
            == 3
    });
}

#[test]
fn a_caller_whose_body_does_not_go_on_is_no_fault_of_the_upstream() {
    let upstream = Streams::start(|_| Act::Answer);
    let times = ["--read-timeout", "3s", "--write-timeout", "3s"];
    let args = [&times[..], &["--body-timeout", "5s", "--h2c"]].concat();
    // Such a caller is charged for it: one that may be so more often.
    let gateway = super::before(&upstream.url(), &args);
    let mut connection = begin(&gateway, 2);
    assert_eq!(connection.read_answer("POST").status, 408);
    let mut peer = Peer::new(&gateway);
    let fields = head(&call("POST", "/o/a/t/up", &[]));
    peer.send(&frame(HEADERS, END_HEADERS, 1, &fields))
        .expect("sent");
    peer.send(&frame(DATA, 0, 1, b"x")).expect("sent");
    soon("the log says whose it is", || {
        gateway.log().matches("\"cause\":\"client-slow\"").count() == 2
    });
    assert_eq!((upstream.calls(), failures(&gateway)), (0, 0.0));
}

#[test]
fn a_body_that_stalls_has_the_time_of_the_call_and_is_its_callers() {
    let upstream = Streams::start(|_| Act::Answer);
    let gateway = before(&upstream, &["--request-timeout", "3s"]);
    let mut connection = begin(&gateway, 2);
    assert_eq!(connection.read_answer("POST").status, 408);
    assert_eq!(failures(&gateway), 0.0);
}

#[test]
fn who_waits_to_be_asked_for_a_body_is_asked() {
    let upstream = Streams::start(|_| Act::Answer);
    let gateway = before(&upstream, &[]);
    let mut connection = gateway.connect();
    let head = "POST /o/a/t/up HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer YWMtgood\r\n\
                Content-Length: 2\r\nExpect: 100-continue\r\n\r\n";
    connection.send(head.as_bytes());
    let line = connection.try_line().expect("an interim answer");
    assert!(line.starts_with("HTTP/1.1 100 "), "{line}");
    assert_eq!(connection.try_line().as_deref(), Ok("\r\n"));
    connection.send(b"xy");
    assert_eq!(connection.read_answer("POST").status, 200);
}

/// Answers a call when its head is there, and sends the body of the answer when all of it is.
fn early() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let addr = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for mut tcp in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                tcp.read_exact(&mut [0; 24]).ok()?;
                let more = frame(WINDOW_UPDATE, 0, 0, &MIB.to_be_bytes());
                let settings = frame(SETTINGS, 0, 0, b"");
                tcp.write_all(&[settings, more].concat()).ok()?;
                loop {
                    let mut head = [0; 9];
                    tcp.read_exact(&mut head).ok()?;
                    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
                    let (kind, flags) = (head[3], head[4]);
                    let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
                    let mut payload = (&mut tcp).take(length.into());
                    std::io::copy(&mut payload, &mut std::io::sink()).ok()?;
                    if kind == SETTINGS && flags & ACK == 0 {
                        tcp.write_all(&frame(SETTINGS, ACK, 0, b"")).ok()?;
                    }
                    if kind == HEADERS {
                        let answer = frame(HEADERS, END_HEADERS, stream, &[0x88]);
                        tcp.write_all(&answer).ok()?;
                    }
                    if kind == DATA && flags & END_STREAM > 0 {
                        let body = frame(DATA, END_STREAM, stream, b"ok");
                        tcp.write_all(&body).ok()?;
                    }
                }
                #[allow(unreachable_code, reason = "the type of what ends by an error")]
                Some(())
            });
        }
    });
    addr
}

#[test]
fn an_upstream_may_answer_before_it_has_all_and_go_on_after() {
    let gateway = Start {
        routes: ROUTES,
        url: Some(format!("http://{} http2", early())),
        args: &READ_TIMEOUT,
        ..Start::default()
    }
    .start();
    let mut connection = begin(&gateway, 40_001);
    slowly(&mut connection, |_| ());
    let answer = connection.read_answer("POST");
    assert_eq!((answer.status, &*answer.text()), (200, "ok"));
    assert_eq!(timeouts(&gateway), 0.0);
}
