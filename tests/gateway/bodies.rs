//! Counted bodies: read once, bounded, forwarded byte for byte.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::Duration;

use crate::ROUTES;
use crate::door::soon;
use crate::harness::{Connection, Gateway, Start, start};

fn gateway() -> Gateway {
    Start {
        routes: ROUTES,
        ..Start::default()
    }
    .start()
}

/// A valid counted body of exactly this length.
fn sized(length: usize) -> String {
    let frame = r#"{"to":["a"],"pad":""}"#;
    format!(
        r#"{{"to":["a"],"pad":"{}"}}"#,
        "x".repeat(length - frame.len())
    )
}

#[test]
fn a_counted_body_without_a_byte_is_the_native_400_and_costs_nothing() {
    let gateway = gateway();
    for body in [
        "",
        "{",
        "[]",
        "null",
        "{\"to\":\"a\"}",
        "{\"to\":[\"a\"]} x",
        "{\"to\":[\"a\"],\"to\":[]}",
        "{\"to\":[\"a\"],\"TO\":[\"b\"]}",
    ] {
        let answer = gateway.call("POST", "/o/a/t/messages", body);
        assert_eq!(
            (answer.status, answer.error().0.as_str()),
            (400, "invalid_request_body"),
            "{body}"
        );
    }
    for body in ["{}", "{\"to\":[]}"] {
        let answer = gateway.call("POST", "/o/a/t/messages", body);
        assert_eq!(
            answer.error(),
            (
                "message_send_error".to_owned(),
                "param to can't be empty".to_owned()
            )
        );
    }
    assert_eq!(gateway.backend().count(), 0);
    assert_eq!(
        gateway.metric("floodgate_units_charged_total", &["t-messages"]),
        0.0
    );
}

#[test]
fn a_counted_body_of_64_kib_passes_whole_and_one_byte_more_is_too_large() {
    let gateway = gateway();
    let body = sized(64 * 1024);
    assert_eq!(gateway.call("POST", "/o/a/t/messages", &body).status, 200);
    let seen = gateway.backend().requests().pop().expect("a request");
    assert_eq!(seen.body_length, 64 * 1024);
    let answer = gateway.call("POST", "/o/a/t/messages", &sized(64 * 1024 + 1));
    assert_eq!(answer.status, 400);
    assert_eq!(
        answer.error(),
        (
            "message_send_error".to_owned(),
            "message is too large".to_owned()
        )
    );
    assert_eq!(gateway.backend().count(), 1);
}

#[test]
fn a_chunked_body_is_counted_and_forwarded_and_bounded() {
    let gateway = gateway();
    let mut connection = gateway.connect();
    let head = "POST /o/a/t/messages HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer t\r\nTransfer-Encoding: chunked\r\n\r\n";
    connection.send(head.as_bytes());
    for part in [r#"{"to":["a","#, r#""b","c"],"#, r#""type":"txt"}"#] {
        // Slowly: each chunk by itself.
        connection.send(format!("{:x}\r\n{part}\r\n", part.len()).as_bytes());
        std::thread::sleep(std::time::Duration::from_millis(30));
    }
    connection.send(b"0\r\n\r\n");
    assert_eq!(connection.read_answer("POST").status, 200);
    assert_eq!(
        gateway.metric("floodgate_units_charged_total", &["t-messages", ":app"]),
        3.0
    );
    let seen = gateway.backend().requests().pop().expect("a request");
    assert_eq!(seen.body.as_ref(), br#"{"to":["a","b","c"],"type":"txt"}"#);

    let mut connection = gateway.connect();
    connection.send(head.as_bytes());
    let chunk = format!("{:x}\r\n{}\r\n", 32 * 1024, "x".repeat(32 * 1024));
    for _ in 0..3 {
        connection.send(chunk.as_bytes());
    }
    connection.send(b"0\r\n\r\n");
    let answer = connection.read_answer("POST");
    assert_eq!(
        (answer.status, answer.error().1.as_str()),
        (400, "message is too large")
    );
}

#[test]
fn a_client_that_expects_100_continue_is_told_to_go_on() {
    let gateway = gateway();
    let mut connection = gateway.connect();
    let body = r#"{"to":["a"]}"#;
    connection.send(
        format!("POST /o/a/t/messages HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer t\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes(),
    );
    // The body goes out only when the gateway has asked for it; the answer's 100 says that it has.
    connection.send(body.as_bytes());
    let answer = connection.read_answer("POST");
    assert_eq!((answer.status, answer.interim), (200, vec![100]));
    let seen = gateway.backend().requests().pop().expect("a request");
    assert!(seen.headers.iter().all(|(name, _)| name != "expect"));
}

#[test]
fn a_body_that_waits_for_100_continue_is_asked_for_and_only_then_sent() {
    let gateway = gateway();
    let head = |path: &str, length: usize| {
        format!(
            "POST {path} HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer t\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n"
        )
    };
    let body = r#"{"to":["a"]}"#;
    // Counted here, and only forwarded: either way the caller sends nothing before it is asked.
    for path in ["/o/a/t/messages", "/o/a/chatfiles"] {
        let mut connection = gateway.connect();
        connection.send(head(path, body.len()).as_bytes());
        assert_eq!(connection.read_interim(), 100, "{path}");
        connection.send(body.as_bytes());
        assert_eq!(connection.read_answer("POST").status, 200, "{path}");
        let seen = gateway.backend().requests().pop().expect("a request");
        assert_eq!(seen.body.as_ref(), body.as_bytes(), "{path}");
    }
    // A call that is refused by its head is never asked for its body.
    let mut connection = gateway.connect();
    connection.send(head("/o/a/t/messages", 64 * 1024 + 1).as_bytes());
    let answer = connection.read_answer("POST");
    assert_eq!((answer.status, answer.interim), (400, vec![]));
    assert!(connection.is_closed());
}

#[test]
fn an_expectation_that_nobody_knows_is_refused() {
    let gateway = gateway();
    let body = r#"{"to":["a"]}"#;
    for (path, headers) in [
        ("/o/a/t/messages", &["Expect: a-miracle"][..]),
        ("/o/a/chatfiles", &["Expect: a-miracle"]),
        (
            "/o/a/t/messages",
            &["Expect: 100-continue", "Expect: a-miracle"],
        ),
        ("/o/a/chatfiles", &["Expect: 100-continue, a-miracle"]),
    ] {
        let mut connection = gateway.connect();
        let answer = connection.call("POST", path, headers, body);
        assert_eq!((answer.status, &*answer.interim), (417, &[][..]), "{path}");
        assert_eq!(answer.error().0, "expectation_failed");
        // Nobody knows whether a body or a request comes next.
        assert!(connection.is_closed());
    }
    assert_eq!(gateway.backend().count(), 0);
    let charged = gateway.metric("floodgate_units_charged_total", &["t-messages"]);
    assert_eq!(charged, 0.0);
}

#[test]
fn a_caller_of_http_1_0_gets_no_interim_answer() {
    let gateway = gateway();
    for path in ["/o/a/t/messages", "/o/a/chatfiles"] {
        let mut connection = gateway.connect();
        connection.send(format!("POST {path} HTTP/1.0\r\nHost: g\r\nAuthorization: Bearer t\r\nExpect: 100-continue\r\nContent-Length: 12\r\n\r\n{{\"to\":[\"a\"]}}").as_bytes());
        let answer = connection.read_answer("POST");
        assert_eq!((answer.status, &*answer.interim), (200, &[][..]), "{path}");
    }
}

#[test]
fn a_coded_body_is_refused_where_it_is_counted() {
    let gateway = gateway();
    let answer = gateway.connect().call(
        "POST",
        "/o/a/t/messages",
        &["Content-Encoding: gzip"],
        r#"{"to":["a"]}"#,
    );
    assert_eq!(answer.status, 415);
    answer.error();
    assert_eq!(gateway.backend().count(), 0);
}

#[test]
fn a_counted_body_that_never_comes_is_given_up() {
    let gateway = Start {
        routes: ROUTES,
        args: &["--body-timeout", "300ms"],
        ..Start::default()
    }
    .start();
    let mut connection = gateway.connect();
    connection.send(b"POST /o/a/t/messages HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer t\r\nContent-Length: 100\r\n\r\n{\"to\"");
    assert_eq!(connection.read_answer("POST").status, 408);
    assert!(connection.is_closed());
}

#[test]
fn a_body_that_is_awaited_has_no_longer_than_the_call_as_a_whole() {
    let gateway = Start {
        routes: ROUTES,
        args: &["--body-timeout", "1h", "--request-timeout", "300ms"],
        ..Start::default()
    }
    .start();
    let mut slow = drip(&gateway, "/o/a/t/slot", b"x", Duration::ZERO, 1);
    assert_eq!(slow.read_answer("POST").status, 408);
    assert!(slow.is_closed());
}

/// Sends a body that never ends: this many bytes, this often.
fn drip(gateway: &Gateway, path: &str, chunk: &[u8], every: Duration, times: usize) -> Connection {
    let mut connection = gateway.connect();
    let length = if path.ends_with("slot") {
        10_000
    } else {
        100_000
    };
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer bad\r\nContent-Length: {length}\r\n\r\n"
    );
    connection.send(head.as_bytes());
    for _ in 0..times {
        // It may have been given up by now.
        let _ = connection.try_send(chunk);
        std::thread::sleep(every);
    }
    connection
}

#[test]
fn a_body_that_drips_or_stops_is_given_up() {
    let gateway = Start {
        routes: ROUTES,
        args: &["--body-timeout", "3s", "--bad-token-memory", "off"],
        ..Start::default()
    }
    .start();
    let slot = "/o/a/t/slot";
    // One byte at a time, or none after the first.
    for times in [1, 8] {
        let mut slow = drip(&gateway, slot, b"x", Duration::from_millis(100), times);
        assert_eq!(slow.read_answer("POST").status, 408);
        assert!(slow.is_closed());
        assert_eq!(gateway.call("POST", slot, "{}").status, 200);
    }
    // Fast enough for an upload, which holds nobody up: 2 KiB/s over twice the time.
    let (chunk, every) = ([b'x'; 1024], Duration::from_millis(500));
    let mut slow = drip(&gateway, slot, &chunk, every, 3);
    assert_eq!(slow.read_answer("POST").status, 408);
    let mut upload = drip(&gateway, "/o/a/chatfiles", &chunk, every, 12);
    upload.send(&[b'x'; 100_000 - 12 * 1024]);
    assert_eq!(upload.read_answer("POST").status, 401);
    let mut upload = drip(&gateway, "/o/a/chatfiles", b"x", every, 3);
    assert_eq!(upload.read_answer("POST").status, 408);
}

#[test]
fn a_call_takes_no_slot_and_no_unit_of_the_day_before_its_body_is_there() {
    let gateway = gateway();
    let slot = |body: &str| gateway.call("POST", "/o/a/t/slot", body).status;
    let broken = [
        "Content-Length: 70000\r\n\r\n{",
        "Content-Length: 100\r\n\r\n{",
        "Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n",
    ];
    let mut held = Vec::new();
    for (call, rest) in ["POST /o/a/t/slot", "POST /o/a/t/day"]
        .iter()
        .flat_map(|call| broken.iter().map(move |rest| (call, rest)))
    {
        let mut connection = gateway.connect();
        let head = format!("{call} HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer bad\r\n{rest}");
        connection.send(head.as_bytes());
        held.push(connection);
    }
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(slot("{}"), 200);
    for _ in 0..2 {
        assert_eq!(gateway.call("POST", "/o/a/t/day", "").status, 200);
    }
    // The first of each three has announced too much.
    for first in held.iter_mut().step_by(3) {
        assert_eq!(first.read_answer("POST").error().1, "message is too large");
    }
    // A whole one is forwarded byte for byte, also when it comes in parts.
    drop(held);
    soon("the slot is free", || {
        gateway.metric("floodgate_task_slots_in_use", &[]) == 0.0
    });
    let body = sized(64 * 1024);
    assert_eq!(slot(&body), 200);
    let seen = gateway.backend().requests().pop().expect("a request");
    assert_eq!(seen.body.as_ref(), body.as_bytes());
}

#[test]
fn a_401_gives_its_unit_back_while_the_body_still_comes() {
    // A backend that answers by the head alone.
    let backend = TcpListener::bind("127.0.0.1:0").expect("a port");
    let upstream = backend.local_addr().expect("an address");
    std::thread::spawn(move || {
        for mut stream in backend.incoming().map_while(Result::ok) {
            let mut head = [0; 4096];
            let _ = stream.read(&mut head);
            let _ = stream.write_all(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\n{}");
            std::thread::spawn(move || while matches!(stream.read(&mut head), Ok(1..)) {});
        }
    });
    let gateway = Start {
        upstream: Some(upstream),
        ..Start::default()
    }
    .start();
    let every = Duration::from_millis(50);
    let mut upload = drip(&gateway, "/o/a/chatfiles", &[b'x'; 512], every, 3);
    assert_eq!(upload.read_answer("POST").status, 401);
    let app = ["chatfiles", ":app"];
    soon("it is given back", || {
        gateway.metric("floodgate_units_refunded_total", &app) == 1.0
    });
    assert!(gateway.log().is_empty(), "the call has not ended");
}

#[test]
fn a_large_upload_passes_where_nothing_is_counted() {
    let gateway = start(&[]);
    let body = "x".repeat(5 * 1024 * 1024);
    assert_eq!(gateway.call("POST", "/o/a/chatfiles", &body).status, 200);
    assert_eq!(
        gateway
            .backend()
            .requests()
            .pop()
            .expect("a request")
            .body_length,
        body.len()
    );
}
