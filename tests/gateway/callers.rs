//! Callers that speak an older or a newer HTTP, leave, or are slow: what they get, what becomes of
//! their calls upstream, and what the log says of it.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use floodgate::clock::Clock;
use serde_json::Value;

use crate::ROUTES;
use crate::door::soon;
use crate::frames::{
    DATA, END_HEADERS, END_STREAM, HEADERS, Peer, RST_STREAM, call, frame, head, status,
};
use crate::harness::{Gateway, Start};

const MS: Duration = Duration::from_millis(1);
/// As slow as a busy machine may be.
const LONG: Duration = Duration::from_secs(25);
const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const CHUNKS: &[u8] =
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n";

/// An upstream that does this with each connection, once it has the head of a call.
fn upstream(act: impl Fn(&mut TcpStream, &str) + Clone + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let addr = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let act = act.clone();
            std::thread::spawn(move || {
                let (mut head, mut byte) = (Vec::new(), [0]);
                while !head.ends_with(b"\r\n\r\n") && matches!(stream.read(&mut byte), Ok(1)) {
                    head.extend(byte);
                }
                act(&mut stream, &String::from_utf8_lossy(&head));
            });
        }
    });
    addr
}

fn before(upstream: SocketAddr, args: &[&str]) -> Gateway {
    Start {
        routes: ROUTES,
        upstream: Some(upstream),
        args: &[&["--unproven-share", "100"], args].concat(),
        ..Start::default()
    }
    .start()
}

fn us(line: &Value, field: &str) -> u64 {
    let us = line[field].as_u64();
    us.unwrap_or_else(|| panic!("{field}: {line}"))
}

/// The access log's lines that have a cause, once there are so many.
fn failed(gateway: &Gateway, count: usize) -> Vec<Value> {
    let lines = || -> Vec<Value> {
        let log = gateway.log();
        let lines = log.lines().map(|l| serde_json::from_str(l).expect("JSON"));
        lines
            .filter(|l: &Value| l["cause"].as_str().is_some_and(|c| !c.is_empty()))
            .collect()
    };
    soon("the line of each", || lines().len() >= count);
    lines()
}

#[test]
fn an_older_caller_gets_no_chunks_and_the_end_of_its_connection_instead() {
    let no_length = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabcdef";
    for answer in [CHUNKS, no_length] {
        let upstream = upstream(move |stream, _| {
            let _ = stream.write_all(answer);
            if answer == no_length {
                return;
            }
            let _ = stream.read(&mut [0]);
        });
        let gateway = before(upstream, &["--keepalive", "60s"]);
        for kept in ["", "Connection: keep-alive\r\n"] {
            let mut caller = gateway.connect();
            let get = "GET /o/a/users/x HTTP/1.0\r\nHost: h\r\nAuthorization: Bearer t\r\n";
            caller.send(format!("{get}{kept}\r\n").as_bytes());
            let clock = Clock::start();
            let began = clock.now().mono_us;
            let got = caller.rest().to_ascii_lowercase();
            let took = Duration::from_micros(clock.now().mono_us - began);
            assert!(took < LONG, "{got}");
            assert!(
                got.starts_with("http/1.1 200") && got.ends_with("\r\n\r\nabcdef"),
                "{got}"
            );
            assert!(!got.contains("transfer-encoding"), "{got}");
            assert!(got.contains("connection: close"), "{got}");
        }
        // HTTP/1.1 goes on as before.
        let mut caller = gateway.connect();
        let answer = caller.call("GET", "/o/a/users/x", &[], "");
        assert_eq!(answer.header("transfer-encoding"), Some("chunked"));
        assert_eq!(
            (answer.text(), answer.header("connection")),
            ("abcdef".into(), Some("keep-alive"))
        );
    }
}

#[test]
fn an_older_caller_gets_no_interim_answer_and_keeps_its_connection() {
    let upstream = upstream(|stream, _| {
        loop {
            let hints = b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n";
            let _ = stream.write_all(hints);
            std::thread::sleep(MS * 50);
            let _ = stream.write_all(OK);
            if !matches!(stream.read(&mut [0; 4096]), Ok(1..)) {
                return;
            }
        }
    });
    let gateway = before(upstream, &[]);
    let mut caller = gateway.connect();
    for _ in 0..2 {
        caller.send(b"GET /o/a/users/x HTTP/1.0\r\nHost: h\r\nAuthorization: Bearer t\r\nConnection: keep-alive\r\n\r\n");
        let answer = caller.read_answer("GET");
        assert_eq!(
            (answer.status, answer.text(), answer.interim),
            (200, "ok".into(), vec![])
        );
    }
    // A newer one gets it.
    let answer = gateway.connect().call("GET", "/o/a/users/x", &[], "");
    assert_eq!((answer.status, answer.interim), (200, vec![103]));
}

#[test]
fn a_caller_of_http2_is_told_that_no_answer_came() {
    let drips = |bytes: &'static [u8]| {
        upstream(move |stream, _| {
            let _ = stream.write_all(b"HTTP/1.1 103 E\r\nx-drip: x");
            while stream.write_all(bytes).is_ok() {
                std::thread::sleep(MS * 100);
            }
        })
    };
    // A byte of a head, or an interim answer, at a time.
    for bytes in [&b"x"[..], b"\r\n\r\nHTTP/1.1 103 E\r\nx-drip: x"] {
        let gateway = before(drips(bytes), &["--h2c", "--read-timeout", "500ms"]);
        let mut peer = Peer::new(&gateway);
        peer.ask(1, &call("GET", "/o/a/users/x", &[]));
        let answer = peer.next_of(&[HEADERS, RST_STREAM]).expect("a frame");
        assert_eq!((answer.kind, status(&answer.payload)), (HEADERS, 504));
        let body = peer.next_of(&[DATA, RST_STREAM]).expect("a frame");
        let body: Value = serde_json::from_slice(&body.payload).expect("the native form");
        assert!(body["error_description"].is_string(), "{body}");
        let line = failed(&gateway, 1).remove(0);
        assert_eq!(
            (&line["status"], &line["cause"]),
            (&504.into(), &"header-timeout".into())
        );
        let timeouts = gateway.metric("floodgate_upstream_failures_total", &["timeout"]);
        assert_eq!(timeouts, 1.0);
        // The connection serves on.
        peer.ask(3, &call("GET", "/nowhere", &[]));
        assert_eq!(peer.answered(), Some(404));
        soon("nothing is left", || {
            gateway.metric("floodgate_requests_in_flight", &[]) == 0.0
        });
    }
}

/// An upstream that answers its first connection, and tells of any other when it has a call, and
/// when it is closed.
fn tells() -> (SocketAddr, Receiver<&'static str>) {
    let (tell, told): (Sender<&'static str>, _) = channel();
    let addr = upstream(move |stream, asked| {
        if asked.starts_with("GET /o/a/users/good") {
            let _ = stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok");
            return;
        }
        let _ = tell.send("asked");
        // Of a call with a body, this is the body.
        while matches!(stream.read(&mut [0; 512]), Ok(1..)) {}
        let _ = tell.send("stopped");
    });
    (addr, told)
}

#[test]
fn a_caller_of_http2_that_goes_away_stops_the_call_upstream() {
    for method in ["GET", "POST"] {
        for is_reset in [true, false] {
            let (addr, told) = tells();
            let gateway = before(addr, &["--h2c"]);
            let mut peer = Peer::new(&gateway);
            // From now on the token is known to be good: nothing but the answer hangs on the call.
            peer.ask(1, &call("GET", "/o/a/users/good", &[]));
            assert_eq!(peer.answered(), Some(200));
            let fields = call(method, "/o/a/t/any", &[]);
            if method == "GET" {
                peer.ask(3, &fields);
            } else {
                let asked = frame(HEADERS, END_HEADERS, 3, &head(&fields));
                let body = frame(DATA, END_STREAM, 3, b"{}");
                peer.send(&[asked, body].concat()).expect("sent");
            }
            assert_eq!(told.recv_timeout(LONG), Ok("asked"));
            soon("all of it is there", || {
                gateway.metric("floodgate_upstream_waiting", &[]) == 1.0
            });
            if is_reset {
                let reset = frame(RST_STREAM, 0, 3, &8_u32.to_be_bytes());
                peer.send(&reset).expect("sent");
            } else {
                peer.close();
            }
            assert_eq!(
                told.recv_timeout(LONG),
                Ok("stopped"),
                "{method} {is_reset}"
            );
            let line = failed(&gateway, 1).remove(0);
            assert_eq!(
                (&line["status"], &line["cause"]),
                (&0.into(), &"client-left".into())
            );
            if is_reset {
                peer.ask(5, &call("GET", "/o/a/users/good", &[]));
                assert_eq!(peer.answered(), Some(200));
            }
        }
    }
}

#[test]
fn a_caller_of_http2_that_goes_away_is_waited_for_where_the_answer_counts() {
    let (addr, told) = tells();
    let gateway = before(addr, &["--h2c"]);
    let mut peer = Peer::new(&gateway);
    // Nobody knows the token yet.
    peer.ask(1, &call("GET", "/o/a/users/x", &[]));
    assert_eq!(told.recv_timeout(LONG), Ok("asked"));
    peer.close();
    assert!(told.recv_timeout(MS * 1500).is_err());
    assert_eq!(gateway.metric("floodgate_upstream_waiting", &[]), 1.0);
}

#[test]
fn a_call_whose_body_is_not_here_in_its_time_is_the_callers_failure() {
    let (addr, _told) = tells();
    let gateway = before(
        addr,
        &["--h2c", "--request-timeout", "1s", "--body-timeout", "60s"],
    );
    // One whose body is forwarded, and one whose body is read before.
    for path in ["/o/a/t/any", "/o/a/t/messages"] {
        let mut caller = gateway.connect();
        let first = format!(
            "POST {path} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer t\r\nContent-Length: 99\r\n\r\n{{"
        );
        caller.send(first.as_bytes());
        assert_eq!(caller.read_answer("POST").status, 408, "{path}");
        // Drop by drop.
        let mut caller = gateway.connect();
        caller.send(first.as_bytes());
        let mut peer = Peer::new(&gateway);
        let fields = call("POST", path, &[]);
        let asked = [
            frame(HEADERS, END_HEADERS, 1, &head(&fields)),
            frame(DATA, 0, 1, b"{"),
        ];
        peer.send(&asked.concat()).expect("sent");
        for _ in 0..12 {
            let _ = caller.try_send(b"x");
            std::thread::sleep(MS * 200);
        }
        assert_eq!(caller.read_answer("POST").status, 408, "{path}");
        let answer = peer.next_of(&[HEADERS, RST_STREAM]).expect("a frame");
        assert_eq!(
            (answer.kind, status(&answer.payload)),
            (HEADERS, 408),
            "{path}"
        );
    }
    for line in failed(&gateway, 6) {
        assert_eq!(
            (&line["status"], &line["cause"]),
            (&408.into(), &"client-slow".into()),
            "{line}"
        );
    }
    assert_eq!(
        gateway.metric("floodgate_upstream_failures_total", &[]),
        0.0
    );
    assert_eq!(gateway.metric("floodgate_upstream_errors_total", &[]), 0.0);
}

#[test]
fn time_spent_on_a_body_is_the_bodys_however_the_call_ends() {
    let (addr, _told) = tells();
    let gateway = before(addr, &["--body-timeout", "8s"]);
    let post = |more: &str| {
        let mut caller = gateway.connect();
        let first = "POST /o/a/t/messages HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer t\r\n";
        caller.send(format!("{first}{more}").as_bytes());
        caller
    };
    // Too slow, gone, and too large.
    let mut slow = post("Content-Length: 99\r\n\r\n{");
    assert_eq!(slow.read_answer("POST").status, 408);
    failed(&gateway, 1);
    let gone = post("Content-Length: 99\r\n\r\n{");
    std::thread::sleep(MS * 3000);
    drop(gone);
    failed(&gateway, 2);
    let mut large = post("Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n");
    std::thread::sleep(MS * 3000);
    let _ = large.try_send(format!("20000\r\n{}\r\n", "x".repeat(0x20000)).as_bytes());
    let lines = failed(&gateway, 3);
    let causes: Vec<_> = lines
        .iter()
        .map(|l| l["cause"].as_str().unwrap_or(""))
        .collect();
    assert_eq!(causes, ["client-slow", "client-left", "client-too-large"]);
    for line in &lines {
        assert!(us(line, "body_us") >= 2_500_000, "{line}");
        // The rest is ours: a busy machine may take some time for it.
        assert!(us(line, "own_us") < 2_500_000, "{line}");
    }
    let own = gateway.metric("floodgate_own_seconds_sum", &[]);
    assert!(own < 2.5, "{own}");
}
