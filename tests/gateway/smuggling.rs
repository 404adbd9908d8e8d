//! Request smuggling: raw bytes at the gateway, a second, strict parser behind it. Whatever is
//! sent is refused, or both see the same requests; and so of what comes after on the connection.

mod backend;
mod h2;
mod mixed;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use self::backend::Backend;
use crate::door::soon;
use crate::harness::{Gateway, Start};

const ROUTES: &str = r#"
[ip]
unauthorized = ["1000000/s"]
rejected = ["1000000/s"]
options = ["1000000/s"]

[[route]]
name = "s-plain"
calls = ["GET /s/plain", "POST /s/plain", "DELETE /s/plain"]
v3 = { limits = ["1000000/s"], ip_copy = false }

[[route]]
name = "s-counted"
calls = ["POST /s/counted"]
cost = "to"
max_recipients = 6
v3 = { limits = ["1000000 messages/s"], ip_copy = false }

[[route]]
name = "s-once"
calls = ["GET /s/once"]
v3 = { limits = ["1/3600s"], ip_copy = false }

[[route]]
name = "s-next"
calls = ["GET /s/next"]
v3 = { limits = ["1000000/s"], ip_copy = false }
"#;

/// What comes after each row on its connection.
const NEXT: &str = "GET /o/a/s/next HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer t\r\n\
                    Connection: close\r\n\r\n";
/// A body that can be counted, of 12 bytes.
const BODY: &str = r#"{"to":["a"]}"#;

fn gateway(backend: &Backend, args: &[&str]) -> Gateway {
    let mut all = vec!["--keepalive", "20s", "--body-timeout", "10s"];
    all.extend(args);
    Start {
        routes: ROUTES,
        args: &all,
        upstream: Some(backend.addr),
        ..Start::default()
    }
    .start()
}

/// What a row comes to.
#[derive(Clone, Debug)]
enum Reading {
    /// This answer, nothing behind saw anything, and the connection is closed.
    Refused(u16),
    /// The same, but the connection is kept, and the next request is answered.
    Answered(u16),
    /// Exactly this request, and the next one.
    One(&'static str, &'static str, &'static str),
    /// Refused with 400, or exactly this request and the next one: as the bytes happen to come in.
    OneOr400(&'static str, &'static str, &'static str),
    /// Exactly this request, and the connection is closed: nothing after it is read.
    Only(&'static str, &'static str, &'static str),
}
use Reading::{Answered, One, OneOr400, Only, Refused};

struct Row {
    name: String,
    raw: Vec<u8>,
    reading: Reading,
}

#[derive(Default)]
struct Table(Vec<Row>);

impl Table {
    fn raw(&mut self, name: &str, raw: impl AsRef<[u8]>, reading: Reading) {
        self.0.push(Row {
            name: name.to_owned(),
            raw: raw.as_ref().to_vec(),
            reading,
        });
    }

    /// `GET /o/a/s/plain` with more lines; each with its end.
    fn get(&mut self, name: &str, lines: &str, reading: Reading) {
        let head = "GET /o/a/s/plain HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer t\r\n";
        self.raw(name, format!("{head}{lines}\r\n"), reading);
    }

    fn target(&mut self, target: &str, reading: Reading) {
        let lines = "HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer t\r\n\r\n";
        self.raw(target, format!("GET {target} {lines}"), reading);
    }

    /// `POST` of a body, to a call that is only forwarded and to one that is counted.
    fn post(&mut self, name: &str, lines: &str, body: &str, reading: Reading) {
        for (path, reading) in [
            ("/o/a/s/plain", reading.clone()),
            (
                "/o/a/s/counted",
                match reading {
                    One(method, _, body) => One(method, "/o/a/s/counted", body),
                    Only(method, _, body) => Only(method, "/o/a/s/counted", body),
                    other => other,
                },
            ),
        ] {
            let head = format!(
                "POST {path} HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer t\r\n{lines}\r\n"
            );
            let mut raw = head.into_bytes();
            raw.extend(body.as_bytes());
            self.raw(&format!("{name} ({path})"), raw, reading);
        }
    }

    fn chunked(&mut self, name: &str, body: &str, reading: Reading) {
        self.post(name, "Transfer-Encoding: chunked\r\n", body, reading);
    }
}

const PLAIN: Reading = One("GET", "/o/a/s/plain", "");
const POSTED: Reading = One("POST", "/o/a/s/plain", BODY);
/// After chunks, nothing is read.
const CHUNKED: Reading = Only("POST", "/o/a/s/plain", BODY);
const BAD: Reading = Refused(400);

/// The statuses of all that is answered before the connection ends.
fn statuses(answers: &[u8]) -> Vec<u16> {
    let text = String::from_utf8_lossy(answers);
    text.match_indices("HTTP/1.1 ")
        .filter_map(|(at, _)| text.get(at + 9..at + 12)?.parse().ok())
        .filter(|status| *status != 100)
        .collect()
}

/// Sends it, whole or in pieces: the answers, and whether the other side closed.
fn send(gateway: &Gateway, bytes: &[u8], piece: usize) -> (Vec<u8>, bool) {
    let mut stream = TcpStream::connect(gateway.addr).expect("a connection");
    stream.set_nodelay(true).expect("a socket option");
    let timeout = Some(Duration::from_secs(60));
    stream.set_read_timeout(timeout).expect("a timeout");
    let mut writer = stream.try_clone().expect("a second handle");
    let mut answers = Vec::new();
    let closed = std::thread::scope(|scope| {
        scope.spawn(move || {
            for piece in bytes.chunks(piece) {
                // It may have been refused by now.
                if writer.write_all(piece).is_err() {
                    break;
                }
            }
        });
        let mut chunk = [0; 4096];
        loop {
            match stream.read(&mut chunk) {
                Ok(0) => return true,
                Ok(read) => answers.extend_from_slice(&chunk[..read]),
                Err(error) => return error.kind() == std::io::ErrorKind::ConnectionReset,
            }
        }
    });
    let _ = stream.shutdown(Shutdown::Both);
    (answers, closed)
}

/// Whether this is an answer of our own in the native form.
fn is_native(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer);
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    let json: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
    let has = |field: &str| json[field].is_string();
    head.contains("x-request-id: ") && has("error") && has("exception") && has("error_description")
}

fn run(table: &Table) {
    let backend = Backend::start();
    let gateway = gateway(&backend, &[]);
    let mut wrong = Vec::new();
    for row in &table.0 {
        let mut bytes = row.raw.clone();
        bytes.extend(NEXT.as_bytes());
        for piece in [bytes.len(), 7] {
            backend.take();
            let (answers, closed) = send(&gateway, &bytes, piece);
            let statuses = statuses(&answers);
            let seen = backend.take();
            let seen: Vec<_> = seen
                .iter()
                .map(|r| {
                    let body = std::str::from_utf8(&r.body).unwrap_or("no UTF-8");
                    (&*r.method, &*r.target, body)
                })
                .collect();
            let next = ("GET", "/o/a/s/next", "");
            let (as_expected, requests) = match row.reading {
                Refused(status) => (statuses == [status] && is_native(&answers), vec![]),
                Answered(status) => (statuses == [status, 200], vec![next]),
                OneOr400(..) if statuses == [400] => (is_native(&answers), vec![]),
                One(method, target, body) | OneOr400(method, target, body) => {
                    (statuses == [200, 200], vec![(method, target, body), next])
                }
                Only(method, target, body) => (statuses == [200], vec![(method, target, body)]),
            };
            if !as_expected || !closed || seen != requests {
                wrong.push(format!(
                    "{} (pieces of {piece}): {statuses:?}, closed: {closed}, saw {seen:?}",
                    row.name
                ));
            }
        }
    }
    // What is cut off in a body arrives late.
    std::thread::sleep(Duration::from_millis(100));
    let faults = backend.faults();
    assert!(wrong.is_empty(), "{}\n{faults:#?}", wrong.join("\n"));
    assert!(faults.is_empty(), "{faults:#?}");
}

#[test]
fn a_plain_request_is_seen_as_it_is() {
    let mut t = Table::default();
    let chunks = format!("c\r\n{BODY}\r\n0\r\n\r\n");
    let head = "/o/a/s/plain HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer t\r\n";
    for method in ["GET", "DELETE"] {
        let with_length = format!("{method} {head}Content-Length: 12\r\n\r\n{BODY}");
        t.raw(method, with_length, One(method, "/o/a/s/plain", BODY));
        let chunked = format!("{method} {head}Transfer-Encoding: chunked\r\n\r\n{chunks}");
        t.raw(method, chunked, Only(method, "/o/a/s/plain", BODY));
    }
    t.get("no body", "", PLAIN);
    t.get(
        "bytes above ASCII in a value",
        "X-Name: b\u{fc}cher\r\n",
        PLAIN,
    );
    t.raw(
        "empty lines before",
        format!("\r\n\r\nGET {head}\r\n"),
        PLAIN,
    );
    t.post("a length", "Content-Length: 12\r\n", BODY, POSTED);
    t.post(
        "blanks around it",
        "Content-Length: \t 12 \t\r\n",
        BODY,
        POSTED,
    );
    for line in [
        "Transfer-Encoding: chunked\r\n",
        "transfer-encoding:CHUNKED \r\n",
        "Transfer-Encoding:\tchunked\r\n",
    ] {
        t.post(&format!("{line:?}"), line, &chunks, CHUNKED);
    }
    let waits = "Expect: 100-continue\r\nContent-Length: 12\r\n";
    t.post("100-continue", waits, BODY, POSTED);
    let old = "/o/a/s/plain HTTP/1.0\r\nHost: gateway\r\nAuthorization: Bearer t\r\n";
    let read = Only("GET", "/o/a/s/plain", "");
    t.raw("HTTP/1.0", format!("GET {old}\r\n"), read);
    let kept = format!("GET {old}Connection: keep-alive\r\n\r\n");
    t.raw("HTTP/1.0, kept", kept, PLAIN);
    let posted = format!("POST {old}Content-Length: 12\r\n\r\n{BODY}");
    t.raw("HTTP/1.0 with a length", posted, CHUNKED);
    run(&t);
}

#[test]
fn a_body_has_one_framing() {
    let mut t = Table::default();
    let hidden = "0\r\n\r\nGET /o/a/s/hidden HTTP/1.1\r\nX: ";
    t.post(
        "CL.TE",
        "Content-Length: 12\r\nTransfer-Encoding: chunked\r\n",
        hidden,
        BAD,
    );
    t.post(
        "TE.CL",
        "Transfer-Encoding: chunked\r\nContent-Length: 12\r\n",
        hidden,
        BAD,
    );
    t.post(
        "CL.0.TE",
        "Content-Length: 0\r\nTransfer-Encoding: chunked\r\n",
        hidden,
        BAD,
    );
    t.post(
        "cl.TE, other case",
        "content-LENGTH: 12\r\nTransfer-Encoding: chunked\r\n",
        hidden,
        BAD,
    );
    for coding in [
        "xchunked",
        "gzip, chunked",
        "chunked, identity",
        "chunked, chunked",
        "identity",
        "\"chunked\"",
        "chunked;q=1",
        "chunked,",
        ",chunked",
        "",
        "\u{b}chunked",
        "chunked\u{0}",
        "chunk\u{200b}ed",
        "x\r\n chunked",
        "gzip",
    ] {
        let lines = format!("Transfer-Encoding: {coding}\r\n");
        t.post(&format!("{coding:?}"), &lines, hidden, BAD);
        let lines = format!("Content-Length: 12\r\nTransfer-Encoding: {coding}\r\n");
        t.post(&format!("a length and {coding:?}"), &lines, hidden, BAD);
    }
    for lines in [
        "Transfer-Encoding : chunked\r\n",
        "Transfer-Encoding\t: chunked\r\n",
        "Transfer-Encoding\r\n: chunked\r\n",
        " Transfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n",
        "Transfer-Encoding: x\r\nTransfer-Encoding: chunked\r\n",
        "X: x\nTransfer-Encoding: chunked\r\n",
        "X: x\rTransfer-Encoding: chunked\r\n",
        "X: x\r\n\rTransfer-Encoding: chunked\r\n",
        "Transfer\u{0}-Encoding: chunked\r\n",
    ] {
        t.post(&format!("{lines:?}"), lines, hidden, BAD);
        let both = format!("Content-Length: 12\r\n{lines}");
        t.post(&format!("a length and {lines:?}"), &both, hidden, BAD);
    }
    // Another field altogether, and to some a second spelling: it goes no further.
    let other = "Content-Length: 12\r\nTransfer_Encoding: chunked\r\nContent_Length: 5\r\n";
    t.post("Transfer_Encoding", other, BODY, POSTED);
    let old = "POST /o/a/s/plain HTTP/1.0\r\nHost: gateway\r\nTransfer-Encoding: chunked\r\n\r\n";
    t.raw("chunks of HTTP/1.0", format!("{old}{hidden}"), BAD);
    run(&t);
}

#[test]
fn a_length_is_one_plain_number() {
    let mut t = Table::default();
    for length in [
        "12, 12",
        "12, 13",
        "12,",
        ",12",
        "+12",
        "-12",
        "0x0c",
        "12.0",
        "1e1",
        "1 2",
        "012",
        "00",
        "",
        "12;",
        "12\u{b}",
        "\u{661}\u{662}",
        "99999999999999999999",
        "9223372036854775808",
        "18446744073709551628",
        "12\r\n 3",
        "12 # x",
        "\"12\"",
    ] {
        let lines = format!("Content-Length: {length}\r\n");
        t.post(&format!("{length:?}"), &lines, BODY, BAD);
    }
    for lines in [
        "Content-Length: 12\r\nContent-Length: 12\r\n",
        "Content-Length: 12\r\nContent-Length: 13\r\n",
        "Content-Length: 0\r\nContent-Length: 12\r\n",
        "Content-Length : 12\r\n",
        "Content-Length\t: 12\r\n",
        "\tContent-Length: 12\r\n",
    ] {
        t.post(&format!("{lines:?}"), lines, BODY, BAD);
    }
    run(&t);
}

#[test]
fn a_head_is_lines_of_crlf_and_fields_of_tokens() {
    let mut t = Table::default();
    let line = "GET /o/a/s/plain HTTP/1.1";
    let token = "Authorization: Bearer t";
    t.raw(
        "LF alone, everywhere",
        format!("{line}\nHost: gateway\n{token}\n\n"),
        BAD,
    );
    t.raw(
        "LF after the first line",
        format!("{line}\nHost: gateway\r\n{token}\r\n\r\n"),
        BAD,
    );
    t.raw(
        "LF after a field",
        format!("{line}\r\nHost: gateway\n{token}\r\n\r\n"),
        BAD,
    );
    t.raw(
        "LF for the empty line",
        format!("{line}\r\nHost: gateway\r\n{token}\r\n\n"),
        BAD,
    );
    t.raw(
        "LF before it",
        format!("\n{line}\r\nHost: gateway\r\n{token}\r\n\r\n"),
        BAD,
    );
    t.raw(
        "CR alone",
        format!("{line}\rHost: gateway\r{token}\r\r"),
        BAD,
    );
    t.raw(
        "CR CR LF",
        format!("{line}\r\r\nHost: gateway\r\n{token}\r\n\r\n"),
        BAD,
    );
    for lines in [
        "X: a\rb\r\n",
        "X: a\0b\r\n",
        "X: a\u{1}b\r\n",
        "X: a\u{7f}b\r\n",
        "X: a\r\n b\r\n",
        "X: a\r\n\tb\r\n",
        " X: a\r\n",
        "X : a\r\n",
        "X\t: a\r\n",
        "X Y: a\r\n",
        ": a\r\n",
        "X\r\n",
        "X\0: a\r\n",
        "X(: a\r\n",
        "X@Y: a\r\n",
        "X\u{fc}: a\r\n",
        "X;Y: a\r\n",
        "\u{feff}X: a\r\n",
        "X: a\n\r\n",
        "X: a\nY: b\r\n",
        "X\\: a\r\n",
    ] {
        t.get(&format!("{lines:?}"), lines, BAD);
    }
    for line in [
        "GET /o/a/s/plain",
        "GET /o/a/s/plain HTTP/1.2",
        "GET /o/a/s/plain HTTP/2.0",
        "GET /o/a/s/plain HTTP/0.9",
        "GET /o/a/s/plain HTTP/01.1",
        "GET /o/a/s/plain http/1.1",
        "GET /o/a/s/plain HTTP/1.1 ",
        "GET /o/a/s/plain HTTP/1.1x",
        "GET  /o/a/s/plain HTTP/1.1",
        "GET\t/o/a/s/plain\tHTTP/1.1",
        " GET /o/a/s/plain HTTP/1.1",
        "GET HTTP/1.1",
        "G\0ET /o/a/s/plain HTTP/1.1",
        "G(T /o/a/s/plain HTTP/1.1",
        "/o/a/s/plain HTTP/1.1",
        "PRI * HTTP/2.0",
        "GET /o/a/s/plain HTTP/1,1",
        "GET /o/a/s/plain XHTTP/1.1",
    ] {
        let raw = format!("{line}\r\nHost: gateway\r\n{token}\r\n\r\n");
        t.raw(&format!("{line:?}"), raw, BAD);
    }
    // pingora escapes blanks in a target, if the whole line is there when it sees them.
    t.target("/o/a/s/plain x", OneOr400("GET", "/o/a/s/plain%20x", ""));
    t.target("/o/a/s/plain ", OneOr400("GET", "/o/a/s/plain%20", ""));
    t.target("/o/a/s/plain HTTP/1.1", BAD);
    run(&t);
}

#[test]
fn a_target_names_one_path_and_one_host() {
    let mut t = Table::default();
    t.target("http://gateway/o/a/s/plain", PLAIN);
    t.target(
        "HTTP://gateway/o/a/s/plain?x=1",
        One("GET", "/o/a/s/plain?x=1", ""),
    );
    t.target("https://gateway/o/a/s/plain", PLAIN);
    for target in [
        "http://other/o/a/s/plain",
        "http://gateway:80/o/a/s/plain",
        "http://GATEWAY/o/a/s/plain",
        "http://a@gateway/o/a/s/plain",
        "http://gateway@other/o/a/s/plain",
        "http:///o/a/s/plain",
        "http:/o/a/s/plain",
        "http:o/a/s/plain",
        "http:\\\\gateway/o/a/s/plain",
        "http:/\\gateway/o/a/s/plain",
        "http://gateway\\@other/o/a/s/plain",
        "http://",
        "ftp://gateway/o/a/s/plain",
        "ws://gateway/o/a/s/plain",
        "gateway:80",
        "gateway",
        "o/a/s/plain",
        "*",
        "?x=1",
        "\\o\\a\\s\\plain",
        "./o/a/s/plain",
        "mailto:a",
        "%2Fo/a/s/plain",
    ] {
        t.target(target, BAD);
    }
    t.target("http://gateway", Answered(404));
    // A path with two readings is told from where the request ends.
    for target in [
        "//o/a/s/plain",
        "//gateway/o/a/s/plain",
        "/o/a/s/plain#x",
        "/o/a/s/../plain",
        "/o/a/s/plain%00",
        "/o/a/s/plain%0d%0a",
        "/o/a/s\\plain",
        "/o/a/s%2Fplain",
        "/o/a/s/plain;x=1",
    ] {
        t.target(target, Answered(400));
    }
    let line = "GET /o/a/s/plain HTTP/1.1\r\nAuthorization: Bearer t\r\n";
    t.raw("no Host", format!("{line}\r\n"), BAD);
    t.raw(
        "no Host, absolute",
        "GET http://gateway/o/a/s/plain HTTP/1.1\r\n\r\n",
        BAD,
    );
    t.raw(
        "no Host, HTTP/1.0",
        "GET /o/a/s/plain HTTP/1.0\r\n\r\n",
        BAD,
    );
    for host in [
        "",
        " ",
        "gateway, other",
        "gateway other",
        "gateway/",
        "a@gateway",
        "gateway:x",
        "gateway:",
        "gateway:99999",
        "gate%77ay",
        "g\u{e4}teway",
        "[::1",
        "gateway\r\nHost: gateway",
        "gateway\r\nHost: other",
        "gateway\r\n other",
        "gateway#",
        "gateway?",
        "http://gateway",
    ] {
        t.raw(
            &format!("Host: {host:?}"),
            format!("{line}Host: {host}\r\n\r\n"),
            BAD,
        );
    }
    for method in ["_method=DELETE", "x=1&%5Fmethod=DELETE"] {
        t.target(&format!("/o/a/s/plain?{method}"), BAD);
    }
    run(&t);
}

#[test]
fn no_tunnel_and_no_other_protocol() {
    let mut t = Table::default();
    let rest = "HTTP/1.1\r\nHost: gateway:80\r\nAuthorization: Bearer t\r\n\r\n";
    t.raw(
        "CONNECT",
        format!("CONNECT gateway:80 {rest}"),
        Refused(405),
    );
    t.raw(
        "CONNECT to a path",
        format!("CONNECT /o/a/s/plain {rest}"),
        Refused(405),
    );
    t.raw("CONNECT elsewhere", format!("CONNECT other:80 {rest}"), BAD);
    t.raw("TRACE", format!("TRACE /o/a/s/plain {rest}"), Answered(405));
    t.raw("OPTIONS *", format!("OPTIONS * {rest}"), BAD);
    t.raw("get", format!("get /o/a/s/plain {rest}"), Answered(405));
    t.raw("GETT", format!("GETT /o/a/s/plain {rest}"), Answered(405));
    t.get("websocket", "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", PLAIN);
    t.get("an upgrade to h2c", "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n", PLAIN);
    t.post(
        "an upgrade with a body",
        "Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 12\r\n",
        BODY,
        POSTED,
    );
    t.get(
        "an upgrade without Connection",
        "Upgrade: websocket\r\n",
        PLAIN,
    );
    for named in [
        "Content-Length",
        "Content-Length, close-x",
        "Host",
        "Authorization, Host",
        "Content-Length:",
    ] {
        let lines = format!("Connection: {named}\r\nContent-Length: 12\r\n");
        t.post(&format!("Connection: {named}"), &lines, BODY, POSTED);
    }
    let lines = "Connection: Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n";
    t.post(
        "Connection: Transfer-Encoding",
        lines,
        &format!("c\r\n{BODY}\r\n0\r\n\r\n"),
        CHUNKED,
    );
    t.get(
        "hop-by-hop fields",
        "TE: trailers\r\nTrailer: X\r\nKeep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\n",
        PLAIN,
    );
    run(&t);
}

#[test]
fn chunks_have_one_reading() {
    let mut t = Table::default();
    let end = "0\r\n\r\n";
    t.chunked(
        "zeros before a size",
        &format!("00000c\r\n{BODY}\r\n{end}"),
        CHUNKED,
    );
    t.chunked(
        "zeros for the last",
        &format!("c\r\n{BODY}\r\n0000\r\n\r\n"),
        CHUNKED,
    );
    t.chunked(
        "two chunks",
        &format!("6\r\n{}\r\n6\r\n{}\r\n{end}", &BODY[..6], &BODY[6..]),
        CHUNKED,
    );
    t.chunked(
        "an extension",
        &format!("c;a=b\r\n{BODY}\r\n{end}"),
        CHUNKED,
    );
    t.chunked(
        "a quoted extension",
        &format!("c;a=\"b;c\"\r\n{BODY}\r\n{end}"),
        CHUNKED,
    );
    t.chunked(
        "a blank after a size",
        &format!("c \r\n{BODY}\r\n{end}"),
        CHUNKED,
    );
    t.chunked(
        "an extension of the last",
        &format!("c\r\n{BODY}\r\n0;a=b\r\n\r\n"),
        CHUNKED,
    );
    t.chunked(
        "an extension of 2 KB",
        &format!("c;{}\r\n{BODY}\r\n{end}", "a".repeat(2000)),
        CHUNKED,
    );
    t.chunked(
        "trailers",
        &format!("c\r\n{BODY}\r\n0\r\nX: y\r\n\r\n"),
        CHUNKED,
    );
    t.chunked(
        "trailers that frame",
        &format!(
            "c\r\n{BODY}\r\n0\r\nContent-Length: 5\r\nTransfer-Encoding: x\r\nHost: other\r\n\r\n"
        ),
        CHUNKED,
    );
    t.chunked(
        "the next request as a trailer",
        &format!("c\r\n{BODY}\r\n0\r\n"),
        Only("POST", "/o/a/s/plain", BODY),
    );
    for size in [
        "x",
        "0x0c",
        "-c",
        "+c",
        " c",
        "c c",
        "c,",
        "cg",
        "\u{661}",
        "c\u{0}",
        "0c\u{b}",
        "1000000000000000c",
        "0000000000000000c",
        "ffffffffffffffff",
        "fffffffffffffffe",
        "\"c\"",
        "c.0",
    ] {
        t.chunked(
            &format!("size {size:?}"),
            &format!("{size}\r\n{BODY}\r\n{end}"),
            BAD,
        );
    }
    for body in [
        format!("c\n{BODY}\n0\n\n"),
        format!("c\n{BODY}\r\n0\r\n\r\n"),
        format!("c\r\n{BODY}\n0\r\n\r\n"),
        format!("c\r\n{BODY}\r\n0\n\r\n"),
        format!("c\r\n{BODY}\r\n0\r\n\n"),
        format!("c\r{BODY}\r\n{end}"),
        format!("c\r\r\n{BODY}\r\n{end}"),
        format!("c\r\n{BODY}{end}"),
        format!("c\r\n{BODY}x\r\n{end}"),
        format!("b\r\n{BODY}\r\n{end}"),
        format!("c\r\n{BODY}\r\n0\r\nX: y\n\r\n"),
        format!("c\r\n{BODY}\r\n0\r\nX: y\r\n\n"),
        format!("c;{}\r\n{BODY}\r\n{end}", "a".repeat(70_000)),
        format!("c\r\n{BODY}\r\n0\r\nX: {}\r\n\r\n", "a".repeat(70_000)),
    ] {
        let name: String = body.escape_debug().take(60).collect();
        t.chunked(&name, &body, BAD);
    }
    // An empty size is a last chunk to pingora, and anything an extension. Both sides see what
    // it sees, and what else another parser saw there is not read.
    let early = format!("c\r\n{BODY}\r\n\r\n{end}");
    t.chunked("no size after a chunk", &early, CHUNKED);
    let line_feed = format!("c;\nx\r\n{BODY}\r\n{end}");
    t.chunked("LF in an extension", &line_feed, CHUNKED);
    for size in ["", " ", ";a=b"] {
        let head = "POST /o/a/s/plain HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer t\r\n";
        let raw = format!("{head}Transfer-Encoding: chunked\r\n\r\n{size}\r\n{BODY}\r\n{end}");
        t.raw(
            &format!("size {size:?}"),
            raw,
            Only("POST", "/o/a/s/plain", ""),
        );
    }
    run(&t);
}

#[test]
fn a_body_that_is_cut_off_is_no_request_behind() {
    let backend = Backend::start();
    let gateway = gateway(&backend, &[]);
    for (framing, body) in [
        ("Transfer-Encoding: chunked", "c\r\n{\"to\":[\"a\"]}\r\n"),
        ("Transfer-Encoding: chunked", "c\r\n{\"to\""),
        (
            "Transfer-Encoding: chunked",
            "c\r\n{\"to\":[\"a\"]}\r\n0\r\n",
        ),
        ("Content-Length: 13", BODY),
    ] {
        for path in ["/o/a/s/plain", "/o/a/s/counted"] {
            let mut stream = TcpStream::connect(gateway.addr).expect("a connection");
            let head = format!(
                "POST {path} HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer t\r\n{framing}\r\n\r\n"
            );
            stream.write_all(head.as_bytes()).expect("sent");
            stream.write_all(body.as_bytes()).expect("sent");
            std::thread::sleep(Duration::from_millis(20));
            stream.shutdown(Shutdown::Write).expect("closed");
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest);
        }
    }
    for _ in 0..15 {
        assert!(backend.take().is_empty());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(backend.faults(), Vec::<String>::new());
}

#[test]
fn a_refused_head_gets_the_native_answer_and_reaches_no_counter() {
    let backend = Backend::start();
    let gateway = gateway(&backend, &[]);
    for head in [
        "GET /o/a/s/plain HTTP/1.1\nHost: gateway\r\n\r\n",
        "GET /o/a/s/plain HTTP/1.1\r\n\r\n",
        "POST /o/a/s/plain HTTP/1.1\r\nHost: g\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        // These pingora refuses.
        "GET /o/a/s/plain HTTP/1.1\r\nHost : g\r\n\r\n",
        "GET /o/a/s/plain HTTP/1.1\r\nHost: g\r\nHost: h\r\n\r\n",
        "nonsense\r\n\r\n",
        "GET /o/a/s/plain HTTP/1.1\r\nHost: g\r\nContent-Length: x\r\n\r\n",
    ] {
        let mut connection = gateway.connect();
        connection.send(head.as_bytes());
        let answer = connection.read_answer("GET");
        assert_eq!(answer.status, 400);
        assert_eq!(answer.error().0, "illegal_argument");
        assert_eq!(answer.header("connection"), Some("close"));
        assert!(answer.header("date").is_some());
        assert!(connection.is_closed());
        // The answer's name is in the log.
        let id = answer.header("x-request-id").expect("a name").to_owned();
        soon("it is logged", || {
            let log = gateway.log();
            let mut lines = log.lines();
            lines.any(|line| {
                line.contains(&id) && line.contains("\"malformed\"") && line.contains("400")
            })
        });
    }
    assert_eq!(gateway.metric("floodgate_units_charged_total", &[]), 0.0);
    let rejected = ["route=\"none\"", "verb=\"reject\""];
    assert_eq!(gateway.metric("floodgate_decisions_total", &rejected), 7.0);
}

#[test]
fn a_refused_head_is_told_on_a_used_connection_and_behind_another_request_too() {
    let backend = Backend::start();
    let gateway = gateway(&backend, &[]);
    let good = NEXT.replace("Connection: close\r\n", "");
    let bad = "GET /o/a/s/plain HTTP/1.1\r\nHost : g\r\n\r\n";
    // In one packet, and after the answer.
    for wait in [false, true] {
        let mut connection = gateway.connect();
        if wait {
            connection.send(good.as_bytes());
            assert_eq!(connection.read_answer("GET").status, 200);
            connection.send(bad.as_bytes());
        } else {
            connection.send(format!("{good}{bad}{good}").as_bytes());
            assert_eq!(connection.read_answer("GET").status, 200);
        }
        let answer = connection.read_answer("GET");
        assert_eq!(
            (answer.status, &*answer.error().0),
            (400, "illegal_argument")
        );
        assert!(connection.is_closed());
    }
    // After a refusal, where pingora is not asked first.
    let mut connection = gateway.connect();
    let no_token = good.replace("Authorization", "X-Authorization");
    for _ in 0..2 {
        connection.send(no_token.as_bytes());
        assert_eq!(connection.read_answer("GET").status, 401);
    }
    connection.send(bad.as_bytes());
    let answer = connection.read_answer("GET");
    assert_eq!(
        (answer.status, &*answer.error().0),
        (400, "illegal_argument")
    );
    assert!(connection.is_closed());
}

#[test]
fn heads_that_are_none_count_for_the_shield() {
    let backend = Backend::start();
    let gateway = gateway(&backend, &["--shield-requests", "5"]);
    let status = || {
        let mut connection = gateway.connect();
        connection.send(b"nonsense\r\n\r\n");
        connection.read_answer("GET").status
    };
    let statuses: Vec<u16> = (0..40).map(|_| status()).collect();
    assert_eq!(statuses[0], 400);
    assert!(statuses.contains(&429), "{statuses:?}");
}
