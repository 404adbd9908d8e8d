//! HTTP/2 over clear text, frame by frame: what becomes two requests, or another one, in HTTP/1.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use super::backend::Backend;
use super::{BODY, gateway};
use crate::frames::{Field, frame, head, status};
use crate::harness::Gateway;

/// What a stream comes to.
#[derive(Debug, PartialEq)]
enum End {
    Status(u16),
    /// The stream or the connection is given up.
    Reset,
}

/// One request on a connection of its own, and what its stream comes to.
fn ask(gateway: &Gateway, fields: &[Field<'_>], body: Option<&str>, trailers: &[Field<'_>]) -> End {
    let body: Vec<&str> = body.into_iter().collect();
    ask_in_pieces(gateway, fields, &body, trailers)
}

/// The same with a body in so many frames.
fn ask_in_pieces(
    gateway: &Gateway,
    fields: &[Field<'_>],
    body: &[&str],
    trailers: &[Field<'_>],
) -> End {
    let mut stream = TcpStream::connect(gateway.addr).expect("a connection");
    let timeout = Some(Duration::from_secs(60));
    stream.set_read_timeout(timeout).expect("a timeout");
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(4, 0, 0, &[]));
    let end = |last: bool| u8::from(last);
    bytes.extend(frame(1, 4 | end(body.is_empty()), 1, &head(fields)));
    for (nth, piece) in body.iter().enumerate() {
        let is_last = nth + 1 == body.len() && trailers.is_empty();
        bytes.extend(frame(0, end(is_last), 1, piece.as_bytes()));
    }
    if !trailers.is_empty() {
        bytes.extend(frame(1, 5, 1, &head(trailers)));
    }
    stream.write_all(&bytes).expect("sent");
    loop {
        let mut start = [0; 9];
        if stream.read_exact(&mut start).is_err() {
            return End::Reset;
        }
        let length = u32::from_be_bytes([0, start[0], start[1], start[2]]);
        let mut payload = vec![0; usize::try_from(length).expect("a length")];
        if stream.read_exact(&mut payload).is_err() {
            return End::Reset;
        }
        match start[3] {
            1 => return End::Status(status(&payload)),
            3 | 7 => return End::Reset,
            _ => {}
        }
    }
}

const GET: [Field<'_>; 4] = [
    (":method", "GET"),
    (":scheme", "http"),
    (":authority", "gateway"),
    (":path", "/o/a/s/plain"),
];
const TOKEN: Field<'_> = ("authorization", "Bearer t");

/// A `GET` with these fields behind the first four.
fn get<'a>(more: &[Field<'a>]) -> Vec<Field<'a>> {
    [&GET[..], &[TOKEN], more].concat()
}

/// A `GET` with another value, or without the field for `-`, or with another name for `=…`.
fn with<'a>(name: &str, value: &'a str) -> Vec<Field<'a>> {
    let mut fields = get(&[]);
    fields.retain(|field| value != "-" || field.0 != name);
    for field in &mut fields {
        if field.0 == name {
            field.1 = value;
        }
    }
    fields
}

#[test]
fn a_stream_is_one_request_of_http_1_or_none() {
    let backend = Backend::start();
    let gateway = gateway(&backend, &["--h2c"]);
    let seen = || {
        let seen = backend.take().into_iter();
        let seen = seen.map(|r| {
            (
                r.method,
                r.target,
                String::from_utf8_lossy(&r.body).into_owned(),
            )
        });
        seen.collect::<Vec<_>>()
    };
    let post = |more: &[Field<'static>]| {
        let mut fields = get(more);
        fields[0].1 = "POST";
        fields
    };
    let one = |method: &str, target: &str, body: &str| {
        vec![(method.to_owned(), target.to_owned(), body.to_owned())]
    };
    let length = ("content-length", "12");
    let only_host = |host| [with(":authority", "-"), vec![("host", host)]].concat();

    // Forwarded, in one reading.
    for (fields, body, trailers, expected) in [
        (get(&[]), None, &[][..], one("GET", "/o/a/s/plain", "")),
        (
            only_host("gateway"),
            None,
            &[],
            one("GET", "/o/a/s/plain", ""),
        ),
        (
            get(&[("host", "gateway")]),
            None,
            &[],
            one("GET", "/o/a/s/plain", ""),
        ),
        (
            get(&[("te", "trailers")]),
            None,
            &[],
            one("GET", "/o/a/s/plain", ""),
        ),
        (
            get(&[("x_forwarded_for", "6.6.6.6")]),
            None,
            &[],
            one("GET", "/o/a/s/plain", ""),
        ),
        (
            with(":path", "/o/a/s/plain?x=1"),
            None,
            &[],
            one("GET", "/o/a/s/plain?x=1", ""),
        ),
        (
            post(&[length]),
            Some(BODY),
            &[],
            one("POST", "/o/a/s/plain", BODY),
        ),
        (
            post(&[]),
            Some(BODY),
            &[],
            one("POST", "/o/a/s/plain", BODY),
        ),
        (
            post(&[]),
            Some(BODY),
            &[("x-end", "1")],
            one("POST", "/o/a/s/plain", BODY),
        ),
        (
            post(&[]),
            Some(BODY),
            &[("content-length", "5")],
            one("POST", "/o/a/s/plain", BODY),
        ),
    ] {
        assert_eq!(
            ask(&gateway, &fields, body, trailers),
            End::Status(200),
            "{fields:?}"
        );
        assert_eq!(seen(), expected, "{fields:?}");
    }

    // Refused: a status of 4xx, or the stream is reset; nothing behind sees a request.
    let hidden = "x\r\nGET /o/a/s/hidden HTTP/1.1\r\n\r\n";
    let mut refused = vec![
        (get(&[("Host", "gateway")]), None),
        (get(&[("X-Upper", "1")]), None),
        (get(&[("connection", "keep-alive")]), None),
        (get(&[("keep-alive", "timeout=5")]), None),
        (get(&[("proxy-connection", "keep-alive")]), None),
        (get(&[("upgrade", "websocket")]), None),
        (get(&[("te", "gzip")]), None),
        (post(&[("transfer-encoding", "chunked")]), Some("0\r\n\r\n")),
        (
            post(&[("transfer-encoding", "identity"), length]),
            Some(BODY),
        ),
        (post(&[("content-length", "11")]), Some(BODY)),
        (post(&[("content-length", "13")]), Some(BODY)),
        (post(&[length, ("content-length", "13")]), Some(BODY)),
        (post(&[length, length]), Some(BODY)),
        (post(&[("content-length", "+12")]), Some(BODY)),
        (post(&[("content-length", "012")]), Some(BODY)),
        (post(&[("content-length", "12, 12")]), Some(BODY)),
        (get(&[("content-length", "12")]), None),
        (get(&[("host", "other")]), None),
        (get(&[("host", "gateway"), ("host", "gateway")]), None),
        (get(&[("host", "gateway:80")]), None),
        (get(&[(":path", "/o/a/s/hidden")]), None),
        (get(&[(":method", "POST")]), None),
        (get(&[(":status", "200")]), None),
        (get(&[(":x", "1")]), None),
        (get(&[(":protocol", "websocket")]), None),
        (get(&[("x-name", hidden)]), None),
        (get(&[("x-name", "a\0b")]), None),
        (get(&[("x-name", "a\nb")]), None),
        (get(&[("x-name\r\nx-hidden", "1")]), None),
        (get(&[("x name", "1")]), None),
        (get(&[("x-name: 1\r\nx", "1")]), None),
        (get(&[("", "1")]), None),
        ([&[TOKEN], &GET[..]].concat(), None),
        (only_host("other host"), None),
        (only_host("-"), None),
    ];
    for (name, values) in [
        (
            ":method",
            &[
                "-",
                "",
                "G T",
                "GET /o/a/s/hidden HTTP/1.1\r\nx:",
                "CONNECT",
                "TRACE",
                "get",
            ][..],
        ),
        (":scheme", &["-"]),
        (
            ":authority",
            &[
                "-",
                "",
                "a@gateway",
                "gate way",
                "gateway/x",
                "gateway,other",
                "gateway:x",
                "gateway\r\nx: y",
                "[::1",
            ],
        ),
        (
            ":path",
            &[
                "-",
                "",
                "o/a/s/plain",
                "*",
                "http://gateway/o/a/s/plain",
                "/o/a/s/plain x",
                "/o/a/s/plain HTTP/1.1\r\nx: y",
                "/o/a/s/plain\0",
                "/o/a/s/plain\n",
                "//o/a/s/plain",
                "/o/a/s/../plain",
                "/o/a/s/plain?_method=DELETE",
                "/o/a/s/plain?x=\r\n",
            ],
        ),
    ] {
        refused.extend(values.iter().map(|value| (with(name, value), None)));
    }
    let mut wrong = Vec::new();
    for (fields, body) in refused {
        let end = ask(&gateway, &fields, body, &[]);
        let is_refused = end == End::Reset || matches!(end, End::Status(400..500));
        // What is forwarded all the same may come late.
        std::thread::sleep(Duration::from_millis(5));
        let seen = seen();
        if !is_refused || !seen.is_empty() {
            wrong.push(format!("{fields:?}: {end:?}, saw {seen:?}"));
        }
    }
    std::thread::sleep(Duration::from_millis(100));
    assert!(seen().is_empty());
    let faults = backend.faults();
    assert!(wrong.is_empty(), "{}\n{faults:#?}", wrong.join("\n"));
    assert!(faults.is_empty(), "{faults:#?}");
    // Of no length, it is complete with its head: bytes of a body come too late, and nowhere.
    let empty = post(&[("content-length", "0")]);
    assert_eq!(ask(&gateway, &empty, Some(BODY), &[]), End::Reset);
    std::thread::sleep(Duration::from_millis(50));
    // Where its reset is read first, it goes nowhere either.
    let seen = seen();
    assert!(
        seen.is_empty() || seen == one("POST", "/o/a/s/plain", ""),
        "{seen:?}"
    );
    // The gateway has taken no harm.
    assert_eq!(ask(&gateway, &get(&[]), None, &[]), End::Status(200));
}

#[test]
fn a_stream_is_no_tunnel() {
    let backend = Backend::start();
    let gateway = gateway(&backend, &["--h2c"]);
    let fields = [(":method", "CONNECT"), (":authority", "gateway:80"), TOKEN];
    assert_eq!(ask(&gateway, &fields, None, &[]), End::Status(405));
    assert_eq!(ask(&gateway, &fields, Some(BODY), &[]), End::Status(405));
    assert!(backend.take().is_empty());
    let rejected = ["route=\"none\"", "verb=\"reject\""];
    crate::door::soon("both are counted", || {
        gateway.metric("floodgate_decisions_total", &rejected) == 2.0
    });
}

#[test]
fn an_empty_frame_ends_a_body_once() {
    let backend = Backend::start();
    let gateway = gateway(&backend, &["--h2c"]);
    for method in ["GET", "POST", "DELETE"] {
        for length in [false, true] {
            for pieces in [
                &["{}", ""][..],
                &[""],
                &["", ""],
                &["", "{}", "", ""],
                &["{", "", "}"],
            ] {
                let body = pieces.concat();
                let count = body.len().to_string();
                let mut fields = match length {
                    true => get(&[("content-length", &count)]),
                    false => get(&[]),
                };
                fields[0].1 = method;
                let what = format!("{method} {pieces:?}, with a length: {length}");
                let answered = ask_in_pieces(&gateway, &fields, pieces, &[]);
                assert_eq!(answered, End::Status(200), "{what}");
                // Whoever comes next on that connection to the backend is read as it came.
                assert_eq!(
                    ask(&gateway, &get(&[]), None, &[]),
                    End::Status(200),
                    "{what}"
                );
                let seen = backend.take().into_iter();
                let seen: Vec<_> = seen.map(|seen| (seen.method, seen.body)).collect();
                let expected = [(method, body.as_bytes()), ("GET", b"")];
                let expected = expected.map(|(method, body)| (method.to_owned(), body.to_vec()));
                assert_eq!(seen, expected, "{what}");
                assert_eq!(backend.faults(), Vec::<String>::new(), "{what}");
            }
        }
    }
}
