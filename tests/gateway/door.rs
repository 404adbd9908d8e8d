//! What guards a connection before a request is there, and in the middle of its head.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use floodgate::clock::Clock;

use crate::harness::{Connection, Gateway, Start, start};

const HEAD: &str = "GET /o/a/users/x HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer t\r\n";

pub(crate) fn turned_away(gateway: &Gateway, why: &str) -> f64 {
    let label = format!("why=\"{why}\"");
    gateway.metric("floodgate_connections_turned_away_total", &[&label])
}

/// Longer than anything takes that comes to pass at all, on a machine that stands still for seconds.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// Waits for what must come to pass.
pub(crate) fn soon(what: &str, mut holds: impl FnMut() -> bool) {
    let clock = Clock::start();
    let patience_us = u64::try_from(PATIENCE.as_micros()).expect("a time");
    let until = clock.now().mono_us + patience_us;
    while !holds() {
        assert!(clock.now().mono_us < until, "never: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_head_that_drips_is_told_so_and_closed() {
    let gateway = start(&["--header-timeout", "2s"]);
    let mut connection = gateway.connect();
    // A whole call first: the limit is for each head, not for the connection.
    assert_eq!(connection.call("GET", "/o/a/users/x", &[], "").status, 200);
    let clock = Clock::start();
    let began = clock.now().mono_us;
    for byte in HEAD.bytes().chain(*b"X: ").chain(std::iter::repeat(b'x')) {
        let took = clock.now().mono_us - began;
        if connection.try_send(&[byte]).is_err() || took > 2_500_000 {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let answer = connection.rest();
    assert!(
        answer.starts_with("HTTP/1.1 408 Request Timeout\r\n"),
        "{answer:?}"
    );
    assert!(
        answer.contains("\"error\":\"request_timeout\""),
        "{answer:?}"
    );
    soon("it is counted", || {
        turned_away(&gateway, "slow-head") == 1.0
    });
    assert_eq!(gateway.backend().count(), 1);
}

#[test]
fn an_idle_connection_is_closed_and_a_used_one_is_not() {
    let gateway = start(&["--keepalive", "6s"]);
    let mut idle = gateway.connect();
    let mut used = gateway.connect();
    for _ in 0..10 {
        assert_eq!(used.call("GET", "/o/a/users/x", &[], "").status, 200);
        std::thread::sleep(Duration::from_millis(700));
    }
    assert!(idle.is_closed());
    assert_eq!(used.call("GET", "/o/a/users/x", &[], "").status, 200);
    assert!(used.is_closed());
}

#[test]
fn a_head_may_be_so_large_and_no_larger() {
    let gateway = start(&[
        "--max-header-bytes",
        "4096",
        "--max-headers",
        "20",
        "--max-url",
        "300",
    ]);
    let status = |head: &str| {
        let mut connection = gateway.connect();
        connection.send(head.as_bytes());
        let answer = connection.read_answer("GET");
        let closed = answer.header("connection") == Some("close");
        (answer.status, closed, answer.error().0)
    };
    let fields = |n: usize| (0..n).map(|i| format!("x-{i}: 1\r\n")).collect::<String>();
    let padded = |total: usize| {
        let around = HEAD.len() + "x-pad: \r\n\r\n".len();
        format!("{HEAD}x-pad: {}\r\n\r\n", "p".repeat(total - around))
    };
    let target = |length: usize| {
        let path = "/o/a/users/x?";
        HEAD.replace(
            "/o/a/users/x",
            &format!("{path}{}", "q".repeat(length - path.len())),
        ) + "\r\n"
    };
    let too_large = (431, true, "request_header_fields_too_large".to_owned());
    for (fits, too_much, refused) in [
        (padded(4096), padded(4097), too_large.clone()),
        (
            format!("{HEAD}{}\r\n", fields(18)),
            format!("{HEAD}{}\r\n", fields(19)),
            too_large.clone(),
        ),
        (
            target(300),
            target(301),
            (414, true, "uri_too_long".to_owned()),
        ),
    ] {
        let mut connection = gateway.connect();
        connection.send(fits.as_bytes());
        assert_eq!(connection.read_answer("GET").status, 200);
        assert_eq!(status(&too_much), refused);
    }
    // One that never ends is not waited for.
    let endless = format!("{HEAD}x-pad: {}", "p".repeat(20_000));
    assert_eq!(status(&endless), too_large);
    soon("it is counted", || {
        turned_away(&gateway, "large-head") == 1.0
    });
    assert_eq!(gateway.backend().count(), 3);
}

#[test]
fn so_many_connections_and_no_more() {
    let gateway = start(&["--max-connections", "3"]);
    // Those that asked whether it listens.
    soon("none is open", || {
        gateway.metric("floodgate_connections_total", &[]) >= 1.0
            && gateway.metric("floodgate_connections_open", &[]) == 0.0
    });
    let mut open: Vec<_> = (0..3).map(|_| gateway.connect()).collect();
    for connection in &mut open {
        assert_eq!(connection.call("GET", "/o/a/users/x", &[], "").status, 200);
    }
    assert!(gateway.connect().is_gone());
    soon("it is counted", || turned_away(&gateway, "full") == 1.0);
    open.pop();
    soon("a place is free", || {
        gateway.metric("floodgate_connections_open", &[]) == 2.0
    });
    assert_eq!(gateway.call("GET", "/o/a/users/x", "").status, 200);
    // The others were never touched.
    for connection in &mut open {
        assert_eq!(connection.call("GET", "/o/a/users/x", &[], "").status, 200);
    }
}

fn behind_a_balancer(args: &[&str]) -> Gateway {
    let mut all = vec![
        "--listen",
        "127.0.0.1:0 proxy-protocol",
        "--trusted-proxy",
        "127.0.0.1",
    ];
    all.extend(args);
    Start {
        routes: crate::ROUTES,
        args: &all,
        ..Start::default()
    }
    .start()
}

fn said(gateway: &Gateway, header: &[u8]) -> Connection {
    let mut connection = Connection::to(gateway.listeners[1]);
    connection.send(header);
    connection
}

fn v2(ip: [u8; 4]) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    header.extend(ip);
    header.extend([127, 0, 0, 1, 0x12, 0x67, 1, 187]);
    header
}

#[test]
fn a_trusted_balancer_says_who_connects() {
    let gateway = behind_a_balancer(&[]);
    let call = |header: &[u8], headers: &[&str]| {
        said(&gateway, header)
            .call("GET", "/o/a/t/ip", headers, "")
            .status
    };
    // Three for each address, however it is spelt, in whatever version.
    let a = b"PROXY TCP4 9.9.9.9 127.0.0.1 4711 80\r\n";
    assert_eq!(call(a, &[]), 200);
    assert_eq!(call(&v2([9, 9, 9, 9]), &[]), 200);
    assert_eq!(call(b"PROXY TCP6 ::ffff:9.9.9.9 ::1 1 2\r\n", &[]), 200);
    assert_eq!(call(a, &[]), 429);
    assert_eq!(call(&v2([9, 9, 9, 9]), &["X-Forwarded-For: 8.8.8.8"]), 429);
    assert_eq!(call(&v2([8, 8, 8, 8]), &[]), 200);
    let seen = gateway.backend().requests().pop().expect("a call");
    let field = |name: &str| {
        seen.headers
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, v)| &**v)
    };
    assert_eq!(field("x-forwarded-for"), Some("8.8.8.8"));
    assert_eq!(field("x-real-ip"), Some("8.8.8.8"));
    // The balancer for itself: then its own address, and what it says in the request, count.
    let local = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";
    assert_eq!(call(local, &["X-Forwarded-For: 9.9.9.9"]), 429);
    assert_eq!(
        call(b"PROXY UNKNOWN\r\n", &["X-Forwarded-For: 7.7.7.7"]),
        200
    );
}

#[test]
fn what_comes_with_a_header_is_not_waited_for_again() {
    let gateway = behind_a_balancer(&["--h2c"]);
    for header in [&b"PROXY UNKNOWN\r\n"[..], &v2([9, 9, 9, 9])] {
        let small = [header, b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"].concat();
        assert_eq!(said(&gateway, &small).read_answer("GET").status, 404);
        // An HTTP/2 caller's preface and settings with it: the server's settings come back.
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
        let mut http2 = said(&gateway, &[header, preface].concat());
        assert_eq!(http2.read_some(4)[3], 4, "a SETTINGS frame");
    }
}

#[test]
fn a_header_in_pieces_is_one_header() {
    let gateway = behind_a_balancer(&[]);
    for header in [
        b"PROXY TCP4 9.9.9.9 127.0.0.1 4711 80\r\n".to_vec(),
        v2([9, 9, 9, 9]),
    ] {
        let mut connection = Connection::to(gateway.listeners[1]);
        for byte in header {
            connection.send(&[byte]);
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(connection.call("GET", "/o/a/t/ip", &[], "").status, 200);
        assert_eq!(connection.call("GET", "/o/a/users/x", &[], "").status, 200);
    }
}

#[test]
fn without_a_good_header_nobody_comes_in() {
    let gateway = behind_a_balancer(&["--header-timeout", "3s"]);
    for bytes in [
        &b"GET /o/a/users/x HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer t\r\n\r\n"[..],
        b"PROXY TCP4 9.9.9.9 127.0.0.1 4711\r\nGET / HTTP/1.1\r\n\r\n",
        b"PROXY TCP4 9.9.9",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff",
        b"",
    ] {
        assert!(said(&gateway, bytes).is_gone(), "{bytes:?}");
    }
    soon("all are counted", || {
        turned_away(&gateway, "proxy-protocol") == 5.0
    });
    assert_eq!(gateway.backend().count(), 0);
    // On a listener without the protocol, it is no request.
    let mut plain = gateway.connect();
    plain.send(b"PROXY TCP4 9.9.9.9 127.0.0.1 1 2\r\n\r\n");
    assert!(plain.rest().starts_with("HTTP/1.1 400"));
}

#[test]
fn nobody_else_is_believed() {
    let gateway = start(&[
        "--listen",
        "127.0.0.1:0 proxy-protocol",
        "--trusted-proxy",
        "10.0.0.0/8",
    ]);
    assert!(said(&gateway, b"PROXY TCP4 9.9.9.9 127.0.0.1 1 2\r\n").is_gone());
    soon("it is counted", || {
        turned_away(&gateway, "proxy-protocol") == 1.0
    });
}

#[test]
fn one_address_has_so_many_connections_and_no_more() {
    let gateway = behind_a_balancer(&["--max-connections-per-ip", "2"]);
    let open = |ip: [u8; 4]| said(&gateway, &v2(ip));
    let mut first = open([9, 9, 9, 9]);
    let mut second = open([9, 9, 9, 9]);
    for connection in [&mut first, &mut second] {
        assert_eq!(connection.call("GET", "/o/a/users/x", &[], "").status, 200);
    }
    assert!(open([9, 9, 9, 9]).is_gone());
    assert_eq!(
        open([8, 8, 8, 8])
            .call("GET", "/o/a/users/x", &[], "")
            .status,
        200
    );
    drop(first);
    soon("its place is free", || {
        gateway.metric("floodgate_connections_open", &[]) == 1.0
    });
    assert_eq!(
        open([9, 9, 9, 9])
            .call("GET", "/o/a/users/x", &[], "")
            .status,
        200
    );
    soon("it is counted", || {
        turned_away(&gateway, "address-full") == 1.0
    });
    // A trusted proxy brings the calls of many.
    let many: Vec<_> = (0..5).map(|_| gateway.connect()).collect();
    for mut connection in many {
        assert_eq!(connection.call("GET", "/o/a/users/x", &[], "").status, 200);
    }
}

#[test]
fn a_caller_that_does_not_read_is_given_up() {
    let gateway = start(&["--send-timeout", "4s"]);
    let mut stuck = TcpStream::connect(gateway.addr).expect("a connection");
    let big = format!("{HEAD}x-standin-body: 50000000\r\n\r\n");
    stuck.write_all(big.as_bytes()).expect("sent");
    soon("it is in flight", || {
        gateway.metric("floodgate_requests_in_flight", &[]) == 1.0
    });
    soon("it is given up", || {
        gateway.metric("floodgate_requests_in_flight", &[]) == 0.0
    });
    // One that reads on, slowly, gets all of it.
    let mut slow = TcpStream::connect(gateway.addr).expect("a connection");
    slow.write_all(big.replace("50000000", "16000000").as_bytes())
        .expect("sent");
    let mut read = 0;
    let mut buffer = vec![0; 500_000];
    while read < 16_000_000 {
        std::thread::sleep(Duration::from_millis(150));
        let n = slow.read(&mut buffer).expect("more");
        assert!(n > 0, "closed after {read}");
        read += n;
    }
}

#[test]
fn a_caller_that_reads_slowly_and_steadily_is_waited_for() {
    let gateway = start(&["--send-timeout", "3s"]);
    let mut slow = TcpStream::connect(gateway.addr).expect("a connection");
    socket2::SockRef::from(&slow)
        .set_recv_buffer_size(32 * 1024)
        .expect("a socket option");
    let big = format!("{HEAD}x-standin-body: 50000000\r\n\r\n");
    slow.write_all(big.as_bytes()).expect("sent");
    // Much less than the kernel takes from the gateway at once.
    let mut buffer = vec![0; 8 * 1024];
    for nth in 0..140 {
        slow.read_exact(&mut buffer)
            .unwrap_or_else(|error| panic!("read {nth}: {error}"));
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(
        gateway.metric("floodgate_requests_in_flight", &[]),
        1.0,
        "it goes on"
    );
}

#[test]
fn a_connection_has_so_many_requests_and_then_another_is_opened() {
    let gateway = start(&["--max-requests-per-connection", "3"]);
    let mut connection = gateway.connect();
    for nth in 1..=3 {
        let answer = connection.call("GET", "/o/a/users/x", &[], "");
        let kept = if nth < 3 { "keep-alive" } else { "close" };
        assert_eq!(
            (answer.status, answer.header("connection")),
            (200, Some(kept)),
            "{nth}"
        );
    }
    assert!(connection.is_closed());
}

#[test]
fn http_2_in_the_clear_waits_for_nobody_without_a_limit() {
    let gateway = start(&["--h2c", "--header-timeout", "3s", "--keepalive", "3s"]);
    // A short request of HTTP/1.1 is not waited for as if it were a preface.
    let mut short = gateway.connect();
    short.send(b"GET / HTTP/1.1\r\nHost:h\r\n\r\n");
    assert_eq!(short.read_answer("GET").status, 404);
    for begin in [
        &b""[..],
        b"PRI * HTTP/2.0\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let mut connection = gateway.connect();
        connection.send(begin);
        connection.rest();
    }
    soon("all are closed", || {
        drop(short.rest());
        gateway.metric("floodgate_connections_open", &[]) == 0.0
    });
}

#[test]
fn what_is_sent_behind_the_last_request_costs_no_answer() {
    let gateway = start(&[]);
    const LARGE: usize = 8_000_000;
    let large = format!("{HEAD}Connection: close\r\nx-standin-body: {LARGE}\r\n\r\n");
    let chunked = "POST /o/a/users HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer t\r\nTransfer-Encoding: chunked\r\n";
    let chunked = format!("{chunked}x-standin-body: {LARGE}\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n");
    for request in [large, chunked] {
        let mut connection = gateway.connect();
        connection.send(request.as_bytes());
        // Nobody reads these: neither those that are there when the answer ends, nor later ones.
        connection.send(format!("{HEAD}\r\n").repeat(200).as_bytes());
        std::thread::sleep(Duration::from_millis(300));
        let mut got = connection.read_some(1_000_000).len();
        let mut behind = Ok(());
        while behind.is_ok() && got < LARGE {
            behind = connection.try_send(format!("{HEAD}\r\n").as_bytes());
            got += connection.read_some(500_000).len();
            std::thread::sleep(Duration::from_millis(20));
        }
        got += connection.rest().len();
        assert!(got > LARGE, "{got}");
    }
    soon("no connection is left", || {
        gateway.metric("floodgate_connections_open", &[]) == 0.0
    });
}
