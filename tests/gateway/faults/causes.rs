//! The causes of failures that a script of answers cannot show: each is in the log and counted.

use std::net::{SocketAddr, TcpListener, TcpStream};

use serde_json::Value;

use super::ROUTES;
use super::script::{Fault, Scripted};
use crate::door::soon;
use crate::harness::{Gateway, Start};
use crate::upstreams::{dead, secure};

fn before(upstream: SocketAddr, args: &[&str]) -> Gateway {
    let args = [&["--unproven-share", "100"], args].concat();
    Start {
        routes: ROUTES,
        upstream: Some(upstream),
        args: &args,
        ..Start::default()
    }
    .start()
}

/// The lines of a route's calls that failed, once there are so many.
fn failures(gateway: &Gateway, count: usize) -> Vec<Value> {
    let lines = || -> Vec<Value> {
        let log = gateway.log();
        let lines = log
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON"));
        let failed = |line: &Value| {
            line["cause"]
                .as_str()
                .is_some_and(|cause| !cause.is_empty())
        };
        lines.filter(failed).collect()
    };
    soon("the line of each", || lines().len() >= count);
    let lines = lines();
    assert_eq!(lines.len(), count, "{lines:?}");
    lines
}

/// There is one failure, with this cause and this status; it is counted.
fn failed(gateway: &Gateway, cause: &str, status: u16) -> Value {
    let line = failures(gateway, 1).remove(0);
    assert_eq!(line["cause"], cause, "{line}");
    assert_eq!(line["status"], status, "{line}");
    let label = format!("cause=\"{cause}\"");
    let counted = gateway.metric("floodgate_failures_total", &[&label]);
    assert_eq!(counted, 1.0, "{line}");
    line
}

fn us(line: &Value, field: &str) -> u64 {
    line[field]
        .as_u64()
        .unwrap_or_else(|| panic!("{field}: {line}"))
}

#[test]
fn nobody_there() {
    let upstream = dead();
    let gateway = before(upstream, &[]);
    assert_eq!(gateway.call("GET", "/o/a/f/get", "").status, 502);
    let line = failed(&gateway, "connect-refused", 502);
    assert_eq!(line["pool"], "default");
    assert_eq!(line["upstream"], upstream.to_string());
    assert_eq!(us(&line, "attempts"), 1);
    assert_eq!(us(&line, "first_byte_us"), 0);
}

#[test]
fn nobody_accepts() {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
    let socket = socket.expect("a socket");
    let any: SocketAddr = "127.0.0.1:0".parse().expect("an address");
    socket.bind(&any.into()).expect("a port");
    socket.listen(0).expect("a listener");
    let addr = socket.local_addr().expect("an address").as_socket();
    let addr = addr.expect("an address");
    let _waiting = TcpStream::connect(addr).expect("a connection");
    let gateway = before(addr, &["--connect-timeout", "300ms"]);
    assert_eq!(gateway.call("GET", "/o/a/f/get", "").status, 504);
    let line = failed(&gateway, "connect-timeout", 504);
    assert!(us(&line, "connect_us") >= 250_000, "{line}");
    assert!(
        us(&line, "connect_us") <= us(&line, "upstream_us"),
        "{line}"
    );
}

#[test]
fn nobody_vouches_for_it() {
    let upstream = secure();
    let gateway = Start {
        routes: ROUTES,
        url: Some(upstream.url),
        ..Start::default()
    }
    .start();
    assert_eq!(gateway.call("GET", "/o/a/f/get", "").status, 502);
    let line = failed(&gateway, "tls", 502);
    let error = line["error"].as_str().expect("a text");
    assert!(error.contains("UnknownIssuer"), "{line}");
}

#[test]
fn an_upstream_that_takes_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let addr = listener.local_addr().expect("an address");
    let gateway = before(
        addr,
        &[
            "--write-timeout",
            "500ms",
            "--max-body",
            "1GiB",
            // None of this is waited for.
            "--read-timeout",
            "60s",
        ],
    );
    let mut connection = gateway.connect();
    connection.send(b"POST /o/a/f/up HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer t\r\nContent-Length: 67108864\r\n\r\n");
    // More than the buffers on the way hold; who is answered in the middle of it stops.
    let part = vec![b'u'; 1024 * 1024];
    for _ in 0..64 {
        if connection.try_send(&part).is_err() {
            break;
        }
    }
    let line = failures(&gateway, 1).remove(0);
    assert_eq!(line["cause"], "write-timeout", "{line}");
    assert_eq!(line["status"], 504, "{line}");
    assert!(us(&line, "upstream_us") < 25_000_000, "{line}");
    let failed = gateway.metric("floodgate_upstream_failures_total", &["timeout"]);
    assert_eq!(failed, 1.0);
}

#[test]
fn an_upstream_of_http2_that_speaks_something_else() {
    // Bytes that are no frames; an answer of HTTP/1.1; a head without a status.
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    let no_status = [&settings[..], &[0, 0, 5, 1, 5, 0, 0, 0, 1], b"\0\x01x\x01y"].concat();
    for said in [
        b"SSH-2.0-OpenSSH_9.9\r\nand more of the same, which is a frame of nothing\r\n".to_vec(),
        b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_vec(),
        no_status,
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let addr = listener.local_addr().expect("an address");
        let shown = String::from_utf8_lossy(&said).into_owned();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                // Once it has been asked.
                let mut asked: Vec<u8> = Vec::new();
                while !asked.windows(4).any(|w| w == b"\x01\x05\0\0") {
                    let mut some = [0; 1024];
                    match std::io::Read::read(&mut stream, &mut some) {
                        Ok(n @ 1..) => asked.extend(&some[..n]),
                        _ => break,
                    }
                }
                let _ = std::io::Write::write_all(&mut stream, &said);
                let _ = std::io::copy(&mut stream, &mut std::io::sink());
            }
        });
        let gateway = Start {
            routes: ROUTES,
            url: Some(format!("http://{addr} http2")),
            args: &["--unproven-share", "100"],
            ..Start::default()
        }
        .start();
        assert_eq!(gateway.call("GET", "/o/a/f/get", "").status, 502, "{shown}");
        let line = failures(&gateway, 1).remove(0);
        assert_eq!(line["cause"], "malformed", "{shown}: {line}");
    }
}

#[test]
fn a_caller_that_leaves() {
    let upstream = Scripted::start();
    let gateway = before(upstream.addr, &[]);
    // From here on its token is known: nobody waits for the status of another call.
    assert_eq!(gateway.call("GET", "/o/a/f/get", "").status, 200);
    let mut connection = gateway.connect();
    let silent = format!("x-fault: {}", Fault::Silent.name());
    connection.send_call("GET", "/o/a/f/get", &[&silent], "");
    soon("it is with the upstream", || {
        upstream.open() >= 1 && { gateway.metric("floodgate_upstream_waiting", &[]) == 1.0 }
    });
    drop(connection);
    failed(&gateway, "client-left", 0);
}

#[test]
fn callers_whose_bodies_come_too_slowly() {
    let upstream = Scripted::start();
    let gateway = before(upstream.addr, &["--body-timeout", "500ms"]);
    for path in ["/o/a/f/up", "/o/a/f/count"] {
        let mut connection = gateway.connect();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer t\r\nContent-Length: 20\r\n\r\n{{"
        );
        connection.send(head.as_bytes());
        assert_eq!(connection.read_answer("POST").status, 408, "{path}");
    }
    for line in failures(&gateway, 2) {
        assert_eq!(line["cause"], "client-slow", "{line}");
        assert_eq!(line["status"], 408, "{line}");
    }
}

#[test]
fn a_caller_whose_chunks_are_none() {
    let upstream = Scripted::start();
    let gateway = before(upstream.addr, &[]);
    let mut connection = gateway.connect();
    connection.send(b"POST /o/a/f/up HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer t\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\nzz\r\n");
    assert_eq!(connection.read_answer("POST").status, 400);
    failed(&gateway, "client-malformed", 400);
}

#[test]
fn bodies_that_are_too_large() {
    let upstream = Scripted::start();
    let gateway = before(upstream.addr, &["--max-body", "1000"]);
    let large = "x".repeat(1001);
    // By its length, chunk by chunk, and where it is counted.
    assert_eq!(gateway.call("POST", "/o/a/f/up", &large).status, 413);
    let mut connection = gateway.connect();
    connection.send(format!("POST /o/a/f/up HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer t\r\nTransfer-Encoding: chunked\r\n\r\n3e9\r\n{large}\r\n").as_bytes());
    assert_eq!(connection.read_answer("POST").status, 413);
    assert_eq!(gateway.call("POST", "/o/a/f/count", &large).status, 400);
    for line in failures(&gateway, 3) {
        assert_eq!(line["cause"], "client-too-large", "{line}");
    }
}

#[test]
fn a_call_that_is_shed() {
    let upstream = Scripted::start();
    let gateway = before(upstream.addr, &["--max-upstream-waiting", "1"]);
    let mut first = gateway.connect();
    let silent = format!("x-fault: {}", Fault::Silent.name());
    first.send_call("GET", "/o/a/f/get", &[&silent], "");
    soon("it waits", || {
        gateway.metric("floodgate_upstream_waiting", &[]) == 1.0
    });
    assert_eq!(gateway.call("GET", "/o/a/f/get", "").status, 503);
    let line = failed(&gateway, "shed", 503);
    assert_eq!(line["error"], "upstream");
}

#[test]
fn a_store_that_cannot_be_asked() {
    let upstream = Scripted::start();
    let url = format!("redis://{}", dead());
    let args = ["--store", &url, "--store-timeout", "100ms"];
    let deny = r#"
[[route]]
name = "f-deny"
calls = ["GET /f/deny"]
v3 = { limits = [{ rate = "10/s", on_store_failure = "deny" }], ip_copy = false }
"#;
    let gateway = Start {
        routes: deny,
        upstream: Some(upstream.addr),
        args: &args,
        ..Start::default()
    }
    .start();
    assert_eq!(gateway.call("GET", "/o/a/f/deny", "").status, 503);
    let line = failed(&gateway, "store", 503);
    assert!(us(&line, "store_us") <= us(&line, "own_us"), "{line}");
}

#[test]
fn a_call_that_outlives_the_grace() {
    let upstream = Scripted::start();
    let mut gateway = before(upstream.addr, &["--grace", "1s", "--read-timeout", "50s"]);
    let mut connection = gateway.connect();
    let slow = format!("x-fault: {}", Fault::SlowBody.name());
    connection.send_call("GET", "/o/a/f/get", &[&slow], "");
    // The beginning of an answer is not held back for its rest.
    let line = connection.try_line().expect("a status line");
    assert!(line.starts_with("HTTP/1.1 200"), "{line}");
    gateway.signal("-TERM");
    assert_eq!(gateway.wait(), Some(0));
    let rest = connection.rest();
    assert!(rest.ends_with("begun"), "{rest:?}");
    let line = failures(&gateway, 1).remove(0);
    assert_eq!(line["cause"], "draining", "{line}");
    assert_eq!(line["path"], "/o/a/f/get", "{line}");
}

#[test]
fn what_a_call_waits_for_is_told_apart() {
    let upstream = Scripted::start();
    let gateway = before(upstream.addr, &[]);
    let mut connection = gateway.connect();
    let answer = connection.call("GET", "/o/a/f/get", &["x-wait-ms: 2500"], "");
    assert_eq!(answer.status, 200);
    connection.send(b"POST /o/a/f/count HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer t\r\nContent-Length: 14\r\n\r\n{\"to\":");
    std::thread::sleep(std::time::Duration::from_millis(300));
    connection.send(b"[\"aaa\"]}"[..8].as_ref());
    assert_eq!(connection.read_answer("POST").status, 200);
    soon("both lines", || gateway.log().contains("f-count"));
    let log = gateway.log();
    let of = |route: &str| -> Value {
        let line = log
            .lines()
            .find(|line| line.contains(&format!("\"{route}\"")));
        serde_json::from_str(line.expect("a line")).expect("JSON")
    };
    let (slow, sent) = (of("f-get"), of("f-count"));
    assert!(us(&slow, "first_byte_us") >= 2_500_000, "{slow}");
    assert!(
        us(&slow, "upstream_us") >= us(&slow, "first_byte_us"),
        "{slow}"
    );
    assert!(us(&slow, "own_us") < 2_500_000, "{slow}");
    assert!(us(&sent, "body_us") >= 200_000, "{sent}");
    assert_eq!(us(&sent, "store_us"), 0, "{sent}");
    let seconds = gateway.metric("floodgate_upstream_first_byte_seconds_sum", &[]);
    assert!(seconds >= 2.5, "{seconds}");
}
