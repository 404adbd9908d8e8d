//! How large a body may be.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use crate::door::soon;
use crate::frames::{END_HEADERS, HEADERS, Peer, call, frame, head};
use crate::harness::{Connection, Gateway, Start, start};

const ROUTES: &str = r#"
[[route]]
name = "t-upload"
calls = ["POST /t/upload"]
max_body = "100KiB"
v3 = { limits = ["6/3600s"], ip_copy = false }
"#;

const TOO_LARGE: (&str, &str) = (
    "file exceeding maximum limit",
    "the file size exceeds the maximum limit.",
);

fn small(args: &[&str]) -> Gateway {
    let mut all = vec!["--max-body", "50KiB"];
    all.extend(args);
    Start {
        routes: ROUTES,
        args: &all,
        ..Start::default()
    }
    .start()
}

fn is_told_so(answer: &crate::harness::Answer) -> bool {
    answer.status == 413 && {
        let (error, description) = answer.error();
        (&*error, &*description) == TOO_LARGE
    }
}

/// Units of the route's one limit: charged, and given back.
fn units(gateway: &Gateway) -> (f64, f64) {
    let of = |name: &str| gateway.metric(name, &["t-upload:calls"]);
    (
        of("floodgate_units_charged_total"),
        of("floodgate_units_refunded_total"),
    )
}

fn in_chunks(gateway: &Gateway, path: &str, length: usize) -> Connection {
    let mut connection = gateway.connect();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer t\r\nTransfer-Encoding: chunked\r\n\r\n"
    );
    connection.send(head.as_bytes());
    let mut left = length;
    while left > 0 {
        let size = left.min(1000);
        let chunk = format!("{size:x}\r\n{}\r\n", "x".repeat(size));
        connection.send(chunk.as_bytes());
        left -= size;
    }
    connection
}

#[test]
fn a_body_may_be_as_large_as_its_route_says_and_no_larger() {
    let gateway = small(&[]);
    for (path, most) in [
        ("/o/a/t/upload", 102_400),
        ("/o/a/notification/template", 51_200),
    ] {
        for (length, passes) in [(most - 1, true), (most, true), (most + 1, false)] {
            let answer = gateway.call("POST", path, &"x".repeat(length));
            assert_eq!(answer.status == 200, passes, "{path} {length}");
            assert_eq!(is_told_so(&answer), !passes, "{path} {length}");
            let seen = gateway.backend().requests().pop().expect("a call");
            assert_eq!(seen.body_length, length.min(most), "{path}");
        }
    }
    // Nothing is charged for what is not forwarded.
    assert_eq!(units(&gateway), (2.0, 0.0));
    assert_eq!(gateway.backend().count(), 4);
    soon("the log says why", || gateway.log().contains("max-body"));
}

#[test]
fn the_answer_comes_before_the_body_and_is_not_lost_behind_it() {
    let gateway = small(&[]);
    // At once, and without a 100.
    let mut connection = gateway.connect();
    connection.send(
        b"POST /o/a/t/upload HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer t\r\nExpect: 100-continue\r\nContent-Length: 200000\r\n\r\n",
    );
    let answer = connection.read_answer("POST");
    assert!(is_told_so(&answer) && answer.interim.is_empty());
    assert_eq!(answer.header("connection"), Some("close"));
    // Who sends all of it first is told so as well.
    let answer = gateway.call("POST", "/o/a/t/upload", &"x".repeat(20_000_000));
    assert!(is_told_so(&answer));
    assert_eq!(gateway.backend().count(), 0);
    // One that is read to its end leaves the connection as it was.
    let mut kept = gateway.connect();
    assert!(is_told_so(&kept.call(
        "POST",
        "/o/a/t/upload",
        &[],
        &"x".repeat(200_000)
    )));
    assert_eq!(kept.call("GET", "/o/a/users/x", &[], "").status, 200);
}

#[test]
fn a_body_of_no_announced_length_is_cut_off_where_it_is_too_large() {
    let gateway = small(&[]);
    let mut fits = in_chunks(&gateway, "/o/a/t/upload", 102_400);
    fits.send(b"0\r\n\r\n");
    assert_eq!(fits.read_answer("POST").status, 200);
    assert_eq!(units(&gateway), (1.0, 0.0));
    let mut large = in_chunks(&gateway, "/o/a/t/upload", 102_401);
    let answer = large.read_answer("POST");
    assert!(is_told_so(&answer), "{}", answer.text());
    assert_eq!(answer.header("connection"), Some("close"));
    // The backend never had it as a whole; the app has its unit back, its address pays.
    soon("the unit is given back", || units(&gateway) == (2.0, 1.0));
    assert_eq!(gateway.backend().count(), 1);
    let unauthorized = gateway.metric("floodgate_units_charged_total", &["unauthorized:calls/s"]);
    assert_eq!(unauthorized, 1.0);
    soon("nothing is in flight", || {
        gateway.metric("floodgate_requests_in_flight", &[]) == 0.0
    });
}

#[test]
fn a_stream_of_http_2_is_cut_off_too() {
    let gateway = small(&["--h2c"]);
    for (length, expected) in [(102_400, 200), (102_401, 413)] {
        let mut peer = Peer::new(&gateway);
        let fields = call("POST", "/o/a/t/upload", &[]);
        peer.send(&frame(HEADERS, END_HEADERS, 1, &head(&fields)))
            .expect("sent");
        assert_eq!(peer.upload(1, length), Some(expected), "{length}");
    }
    soon("the unit is given back", || units(&gateway) == (2.0, 1.0));
    // A length that is announced is looked at first.
    let mut peer = Peer::new(&gateway);
    let fields = call("POST", "/o/a/t/upload", &[("content-length", "102401")]);
    peer.send(&frame(HEADERS, END_HEADERS, 1, &head(&fields)))
        .expect("sent");
    assert_eq!(peer.answered(), Some(413));
    assert_eq!(units(&gateway), (2.0, 1.0));
}

#[test]
fn a_body_that_is_counted_keeps_its_own_bound() {
    let gateway = start(&[]);
    let body = format!("{{\"to\":[\"a\"],\"x\":\"{}\"}}", "x".repeat(70_000));
    let answer = gateway.call("POST", "/o/a/messages/users", &body);
    assert_eq!(answer.status, 400);
    assert_eq!(answer.error().1, "message is too large");
    let gateway = start(&["--max-body", "1KiB"]);
    let body = format!("{{\"to\":[\"a\"],\"x\":\"{}\"}}", "x".repeat(1100));
    let answer = gateway.call("POST", "/o/a/messages/users", &body);
    assert_eq!(answer.status, 400);
}

/// A file of 10 MB and what a multipart body has around it.
fn multipart(file: usize) -> (String, Vec<u8>) {
    let boundary = "-".repeat(60);
    let mut body = format!(
        "--{boundary}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.bin\"\r\nContent-Type: application/octet-stream\r\n\r\n"
    )
    .into_bytes();
    body.resize(body.len() + file, b'x');
    body.extend(format!("\r\n--{boundary}--\r\n").into_bytes());
    let head = format!(
        "Host: h\r\nAuthorization: Bearer t\r\nContent-Type: multipart/form-data; boundary={boundary}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    (head, body)
}

#[test]
fn a_file_of_10_mb_passes_and_is_never_in_memory() {
    const CALLERS: usize = 12;
    // A backend that reads nothing until it is told to.
    let slow = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let (go, told) = std::sync::mpsc::channel::<()>();
    let addr = slow.local_addr().expect("its address");
    let backend = std::thread::spawn(move || {
        let streams: Vec<TcpStream> = (0..CALLERS)
            .map(|_| slow.accept().expect("one").0)
            .collect();
        told.recv().expect("told");
        let one = |mut stream: TcpStream| {
            let (mut all, mut buffer) = (0, vec![0; 100_000]);
            while all < 10 << 20 {
                all += stream.read(&mut buffer).expect("more");
            }
            std::thread::sleep(Duration::from_millis(200));
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}";
            stream.write_all(answer).expect("sent");
            let _ = stream.read(&mut buffer);
        };
        let all: Vec<_> = streams
            .into_iter()
            .map(|stream| std::thread::spawn(move || one(stream)))
            .collect();
        all.into_iter().for_each(|one| one.join().expect("read"));
    });
    let gateway = Start {
        upstream: Some(addr),
        args: &["--threads", "1"],
        ..Start::default()
    }
    .start();
    let (before, _) = gateway.memory();
    let paths = ["/o/a/chatfiles", "/app-id/x/chatgroups/1/share_files"];
    let callers: Vec<_> = (0..CALLERS)
        .map(|i| {
            let mut connection = gateway.connect();
            std::thread::spawn(move || {
                let (head, body) = multipart(10 << 20);
                let path = paths[i % 2];
                connection.send(format!("POST {path} HTTP/1.1\r\n{head}").as_bytes());
                connection.send(&body);
                connection.read_answer("POST").status
            })
        })
        .collect();
    // While the backend takes nothing, the callers are held up, and nothing piles up here.
    std::thread::sleep(Duration::from_millis(700));
    let (held, _) = gateway.memory();
    go.send(()).expect("told");
    for caller in callers {
        assert_eq!(caller.join().expect("an answer"), 200);
    }
    backend.join().expect("the backend");
    let (_, most) = gateway.memory();
    // Of 120 MiB.
    assert!(held < before + 40 * 1024, "{before} KiB, then {held} KiB");
    assert!(
        most < before + 40 * 1024,
        "{before} KiB, at most {most} KiB"
    );
    let answer = gateway.call("POST", "/o/a/chatfiles", &"x".repeat((11 << 20) + 1));
    assert!(is_told_so(&answer));
}
