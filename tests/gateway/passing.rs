//! What goes upstream plainly, without pingora's proxy, and comes back: no different from what
//! pingora carries.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::door::soon;
use crate::harness::{Answer, Connection, Gateway, Start};

const ROUTES: &str = r#"
[[route]]
name = "p-any"
calls = ["GET /p/any"]
v3 = { limits = ["100000/s"] }
"#;

/// With this, a request is for pingora to read; it goes no further.
const PINGORAS: &str = "TE: trailers";

/// An upstream that answers calls with what stands at the number in their path, and how many
/// connections it has had.
struct Upstream {
    addr: SocketAddr,
    connections: Arc<AtomicUsize>,
}

impl Upstream {
    fn start(answers: Vec<Vec<u8>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let addr = listener.local_addr().expect("an address");
        let answers = Arc::new(answers);
        let connections = Arc::new(AtomicUsize::new(0));
        let count = connections.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                count.fetch_add(1, Ordering::SeqCst);
                let answers = answers.clone();
                std::thread::spawn(move || serve(stream, &answers));
            }
        });
        Self { addr, connections }
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    fn gateway(&self, args: &[&str]) -> Gateway {
        Start {
            routes: ROUTES,
            upstream: Some(self.addr),
            args,
            ..Start::default()
        }
        .start()
    }
}

fn serve(mut stream: TcpStream, answers: &[Vec<u8>]) {
    loop {
        let (mut head, mut byte) = (Vec::new(), [0]);
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read(&mut byte) {
                Ok(1) => head.extend(byte),
                _ => return,
            }
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let number = head.split_once("?n=").map_or("", |(_, rest)| rest);
        let number = number.split(' ').next().and_then(|n| n.parse().ok());
        let answer = answers.get(number.unwrap_or(0)).expect("an answer");
        if stream.write_all(answer).is_err() {
            return;
        }
        let text = String::from_utf8_lossy(answer).to_ascii_lowercase();
        let is_framed = ["content-length", "chunked"]
            .iter()
            .any(|f| text.contains(f));
        let is_empty = [" 204", " 304"].iter().any(|status| text.contains(status));
        if !(is_framed || is_empty) || text.contains("connection: close") {
            return;
        }
    }
}

fn ask(connection: &mut Connection, method: &str, n: usize, headers: &[&str]) -> Answer {
    connection.call(method, &format!("/o/a/p/any?n={n}"), headers, "")
}

/// What of an answer does not change with time, or from one call to the next.
fn lasting(answer: &Answer) -> (u16, Vec<(String, String)>, String) {
    let fields = answer.headers.iter().filter(|(name, _)| {
        !["date", "x-request-id", "ratelimit", "ratelimit-policy"].contains(&&**name)
    });
    let mut fields: Vec<_> = fields.cloned().collect();
    fields.sort();
    // One that is there twice may go on as one.
    fields.dedup_by(|a, b| a == b && a.0 == "content-length");
    let mut body = answer.text();
    if answer.status == 502 {
        // It tells the time, which has a length of its own.
        if !answer.body.is_empty() {
            body = answer.error().1;
        }
        fields.retain(|(name, _)| name != "content-length");
    }
    (answer.status, fields, body)
}

#[test]
fn both_carriers_give_the_same_answers() {
    let large = "x".repeat(300_000);
    let chunks = format!("{:x}\r\n{large}\r\n", large.len());
    let folded = "HTTP/1.1 200 OK\r\nX: a\r\n  b\r\nContent-Length: 2\r\n\r\nok";
    let answers = [
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 Fine, thanks\r\nContent-Length: 0\r\nServer: s\r\n\r\n",
        "HTTP/1.1 404 \r\nContent-Length: 2\r\n\r\nno",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n3;x=y\r\ncde\r\n0\r\nT: v\r\n\r\n",
        "HTTP/1.1 200 OK\r\n\r\nuntil the end",
        "HTTP/1.0 200 OK\r\n\r\nuntil the end",
        "HTTP/1.0 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok",
        "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\nX: y\r\n\r\n",
        "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\nETag: e\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nConnection: X-Hop, keep-alive\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nProxy-Connection: x\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nConnection: Content-Type, Authorization\r\nContent-Type: a/b\r\nAuthorization: c\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nDate: long ago\r\nX-Request-Id: theirs\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nSet-Cookie: c=d\r\nx-odd:   s p a c e   \r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: close\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\nConnection: close\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nok",
        "HTTP/1.1 999 What\r\nContent-Length: 2\r\n\r\nok",
        "SMTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 500 Oh\r\nContent-Length: 2\r\n\r\noh",
        folded,
        &format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{large}",
            large.len()
        ),
        &format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}{chunks}0\r\n\r\n"),
        "HTTP/1.1 200 OK\r\nX: \u{e9}\r\nContent-Length: 2\r\n\r\nok",
    ];
    let upstream = Upstream::start(answers.iter().map(|a| a.as_bytes().to_vec()).collect());
    let gateway = upstream.gateway(&[]);
    for (n, text) in answers.iter().enumerate() {
        for method in ["GET", "HEAD"] {
            let of = |headers: &[&str]| {
                let answer = ask(&mut gateway.connect(), method, n, headers);
                (answer.interim.clone(), lasting(&answer))
            };
            let shown = text.get(..text.len().min(200)).unwrap_or(text);
            assert_eq!(of(&[]), of(&[PINGORAS]), "{method} {shown:?}");
        }
    }
}

#[test]
fn both_carriers_ask_the_same() {
    let lines = [
        "Cookie: a=b",
        "Accept: x/y",
        "Cookie: c=d",
        "Connection: keep-alive",
        "Keep-Alive: 5",
        "X-Forwarded-For: 192.0.2.1, 192.0.2.2",
        "Forwarded: for=192.0.2.9;host=\"quoted\"",
        "X-Real-IP: 192.0.2.3",
        "X-Original-URL: /other",
        "X-Forwarded-Proto: https",
        "X-Request-Id: theirs",
        "Accept-Encoding: gzip",
        "X-Two: 1",
        "X-Two: 2",
    ];
    let quote = [
        &lines[..],
        &["X-Forwarded-For: \"", "Forwarded: for=\"not ended"],
    ]
    .concat();
    for args in [
        &[][..],
        &["--trusted-proxy", "127.0.0.0/8"],
        &[
            "--trusted-proxy",
            "127.0.0.0/8",
            "--client-ip-header",
            "forwarded",
        ],
    ] {
        let gateway = Start {
            routes: ROUTES,
            args,
            ..Start::default()
        }
        .start();
        let mut connection = gateway.connect();
        for lines in [&lines[..], &quote] {
            for target in ["/o/a/p/any?x=%7e", "/o/a/p/%61ny/?y", "/o/a/p/any"] {
                let mut seen = |more: &[&str]| {
                    let lines = [lines, more].concat();
                    assert_eq!(connection.call("GET", target, &lines, "").status, 200);
                    let seen = gateway.backend().requests().pop().expect("a call");
                    let mut fields = seen.headers;
                    let is_own = |name: &str| name == "x-request-id" && args.is_empty();
                    fields.retain(|(name, _)| !is_own(name));
                    fields.sort();
                    (seen.method, seen.target, fields)
                };
                let plain = seen(&[]);
                assert!(
                    plain
                        .2
                        .contains(&("cookie".to_owned(), "a=b; c=d".to_owned()))
                );
                assert_eq!(plain, seen(&[PINGORAS]), "{args:?} {target}");
            }
        }
    }
}

#[test]
fn a_connection_to_an_upstream_has_one_call_after_the_other() {
    let answers = [
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "HTTP/1.1 204 No Content\r\n\r\n",
    ];
    let upstream = Upstream::start(answers.iter().map(|a| a.as_bytes().to_vec()).collect());
    let gateway = upstream.gateway(&["--threads", "1"]);
    let mut connection = gateway.connect();
    for n in [0, 1, 2, 0, 2, 1, 0] {
        let answer = ask(&mut connection, "GET", n, &[]);
        assert_eq!(answer.text(), if n == 2 { "" } else { "ok" });
    }
    assert_eq!(upstream.connections(), 1);
}

#[test]
fn what_comes_behind_an_answer_is_nobodys() {
    let more = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbad";
    let answers = [
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_owned(),
        format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok{more}"),
        format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n{more}"),
        format!("HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\nok{more}"),
    ];
    let upstream = Upstream::start(answers.map(String::into_bytes).to_vec());
    let gateway = upstream.gateway(&["--threads", "1"]);
    let mut connection = gateway.connect();
    for n in 1..4 {
        let before = upstream.connections();
        assert!([200, 204].contains(&ask(&mut connection, "GET", n, &[]).status));
        let next = ask(&mut connection, "GET", 0, &[]);
        assert_eq!((next.status, &*next.text()), (200, "ok"), "{n}");
        assert!(upstream.connections() > before, "{n}");
    }
}

#[test]
fn a_body_that_follows_its_head_is_one_call_with_it() {
    let gateway = Start {
        routes: crate::ROUTES,
        ..Start::default()
    }
    .start();
    let mut connection = gateway.connect();
    let body = r#"{"to":["u","v"]}"#;
    let head = format!(
        "POST /o/a/t/messages HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer YWMtgood\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    for pause in [0, 5, 300] {
        connection.send(head.as_bytes());
        std::thread::sleep(Duration::from_millis(pause));
        let (first, second) = body.split_at(5);
        connection.send(first.as_bytes());
        std::thread::sleep(Duration::from_millis(pause));
        connection.send(second.as_bytes());
        assert_eq!(connection.read_answer("POST").status, 200);
        let seen = gateway.backend().requests().pop().expect("a call");
        assert_eq!(seen.body, body.as_bytes());
    }
    let charged = || gateway.metric("floodgate_units_charged_total", &["t-messages"]);
    // Of the app, and of its address.
    soon("each is charged once", || charged() == 2.0 * 6.0);
}

#[test]
fn what_a_caller_sends_while_it_waits_is_its_next_call() {
    let slow = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nslow";
    let fast = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfast";
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let addr = listener.local_addr().expect("an address");
    let (go, wait) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let mut head = [0; 4096];
        for answer in [slow, fast] {
            assert!(stream.read(&mut head).expect("a call") > 0);
            if answer == slow {
                wait.recv().expect("a word");
            }
            stream.write_all(answer.as_bytes()).expect("sent");
        }
    });
    let gateway = Start {
        upstream: Some(addr),
        args: &["--threads", "1"],
        ..Start::default()
    }
    .start();
    let mut connection = gateway.connect();
    connection.send_call("GET", "/o/a/p/any?n=1", &[], "");
    soon("the call waits", || {
        gateway.metric("floodgate_requests_in_flight", &[]) == 1.0
    });
    connection.send_call("GET", "/o/a/p/any?n=2", &[], "");
    std::thread::sleep(Duration::from_millis(50));
    go.send(()).expect("heard");
    assert_eq!(connection.read_answer("GET").text(), "slow");
    assert_eq!(connection.read_answer("GET").text(), "fast");
}

/// An upstream that does this with each connection, once it has a call.
fn upstream(act: impl Fn(&mut TcpStream) + Clone + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let addr = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let act = act.clone();
            std::thread::spawn(move || {
                if stream.read(&mut [0; 4096]).is_ok() {
                    act(&mut stream);
                }
            });
        }
    });
    addr
}

#[test]
fn a_call_has_its_time_though_its_caller_does_not_read() {
    let endless = upstream(|stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n");
        while stream.write_all(&[b'x'; 65536]).is_ok() {}
    });
    let gateway = Start {
        upstream: Some(endless),
        routes: ROUTES,
        args: &["--request-timeout", "1s", "--send-timeout", "3600s"],
        ..Start::default()
    }
    .start();
    let mut connections = [gateway.connect(), gateway.connect()];
    connections[0].send_call("GET", "/o/a/p/any", &[], "");
    connections[1].send_call("GET", "/o/a/p/any", &[PINGORAS], "");
    soon("both have had their time", || {
        let log = gateway.log();
        let over = log.lines().filter(|line| line.contains("request-timeout"));
        over.count() == 2 && gateway.metric("floodgate_requests_in_flight", &[]) == 0.0
    });
}

#[test]
fn who_says_no_more_has_its_answer_where_that_is_waited_for() {
    let slow = upstream(|stream| {
        std::thread::sleep(Duration::from_millis(300));
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    });
    let gateway = Start {
        upstream: Some(slow),
        routes: ROUTES,
        ..Start::default()
    }
    .start();
    for headers in [&[][..], &[PINGORAS]] {
        let token = format!("Authorization: Bearer new{}", headers.len());
        let headers = [headers, &[&*token]].concat();
        let mut connection = gateway.connect();
        connection.send_call("GET", "/o/a/p/any", &headers, "");
        connection.say_no_more();
        let answer = connection.read_answer("GET");
        assert_eq!((answer.status, &*answer.text()), (200, "ok"));
    }
}

#[test]
fn a_body_in_packets_is_no_part_of_its_head() {
    let gateway = Start {
        routes: crate::ROUTES,
        args: &["--max-header-bytes", "1024"],
        ..Start::default()
    }
    .start();
    let mut connection = gateway.connect();
    let body = "x".repeat(3000);
    let head = format!(
        "POST /o/a/p/any HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer YWMtgood\r\n\
         Content-Type: text/plain\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    for piece in [&*head, &body[..1500], &body[1500..]] {
        connection.send(piece.as_bytes());
        std::thread::sleep(Duration::from_millis(3));
    }
    assert_eq!(connection.read_answer("POST").status, 200);
}
