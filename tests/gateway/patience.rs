//! How long an upstream is waited for: for the head of its answer, between two pieces, and as a
//! whole; and that a piece does not wait for the next one.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use floodgate::clock::Clock;

use crate::door::soon;
use crate::frames::{self, DATA, END_HEADERS, END_STREAM, HEADERS, Peer, call, frame};
use crate::harness::{Gateway, Start};

const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n";
const MS: Duration = Duration::from_millis(1);

/// An upstream that answers each connection's first call as it is told here.
fn upstream(answer: impl Fn(&mut TcpStream) + Clone + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let addr = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let answer = answer.clone();
            std::thread::spawn(move || {
                let (mut head, mut byte) = (Vec::new(), [0]);
                while !head.ends_with(b"\r\n\r\n") && matches!(stream.read(&mut byte), Ok(1)) {
                    head.extend(byte);
                }
                answer(&mut stream);
            });
        }
    });
    addr
}

fn before(upstream: SocketAddr, args: &[&str]) -> Gateway {
    Start {
        upstream: Some(upstream),
        args,
        ..Start::default()
    }
    .start()
}

/// What came, and how long it took.
fn ask(gateway: &Gateway) -> (String, Duration) {
    let clock = Clock::start();
    let began = clock.now().mono_us;
    let mut connection = gateway.connect();
    connection.send_call("GET", "/o/a/t/any", &[], "");
    let rest = connection.rest();
    (rest, Duration::from_micros(clock.now().mono_us - began))
}

fn stall() {
    std::thread::sleep(MS * 60_000);
}

#[test]
fn the_head_has_a_time_of_its_own_and_the_pieces_after_it_another() {
    let slow_head = upstream(|stream| {
        std::thread::sleep(MS * 2500);
        let _ = stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok");
    });
    let times = ["--first-byte-timeout", "60s", "--read-timeout", "1s"];
    // Longer than between two pieces.
    let (answer, _) = ask(&before(
        slow_head,
        &[&times[..], &["--keepalive", "1s"]].concat(),
    ));
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.ends_with("ok"), "{answer}");

    let stalls = upstream(|stream| {
        let _ = stream.write_all(HEAD);
        let _ = stream.write_all(b"half");
        stall();
    });
    let gateway = before(stalls, &times);
    // The harness would wait half as long as there is time for the head.
    let (answer, took) = ask(&gateway);
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.ends_with("half"),
        "{answer}"
    );
    assert!(took >= MS * 1000 && took < MS * 25_000, "{took:?}");
    soon("it is the upstream's failure", || {
        gateway.metric("floodgate_upstream_failures_total", &["timeout"]) == 1.0
    });
    soon("the log says why", || {
        let log = gateway.log();
        log.lines().any(|line| {
            line.contains("\"verb\":\"admit\"")
                && line.contains("ReadTimedout")
                && line.contains("200")
        })
    });
}

#[test]
fn pieces_that_come_in_time_may_take_longer_as_a_whole() {
    let slow = upstream(|stream| {
        let _ =
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 14\r\nConnection: close\r\n\r\n");
        for _ in 0..14 {
            std::thread::sleep(MS * 500);
            let _ = stream.write_all(b"x");
        }
    });
    let times = [
        "--first-byte-timeout",
        "60s",
        "--read-timeout",
        "5s",
        "--keepalive",
        "1s",
    ];
    let (answer, took) = ask(&before(slow, &times));
    assert!(answer.ends_with(&"x".repeat(14)), "{answer}");
    assert!(took > MS * 6000, "{took:?}");
}

#[test]
fn a_caller_that_reads_slowly_is_not_the_upstreams_fault() {
    const LENGTH: usize = 16 << 20;
    let large = upstream(|stream| {
        let head =
            format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\nConnection: close\r\n\r\n");
        let _ = stream.write_all(head.as_bytes());
        let _ = stream.write_all(&vec![b'x'; LENGTH]);
        let _ = stream.read(&mut [0]);
    });
    let times = [
        "--first-byte-timeout",
        "60s",
        "--read-timeout",
        "3s",
        "--keepalive",
        "1s",
    ];
    let gateway = before(large, &times);
    let mut connection = gateway.connect();
    connection.send_call("GET", "/o/a/t/any", &[], "");
    std::thread::sleep(MS * 6000);
    let answer = connection.read_answer("GET");
    assert_eq!((answer.status, answer.body.len()), (200, LENGTH));
}

#[test]
fn a_call_that_stalls_in_the_middle_ends_when_its_time_is_over_and_not_later() {
    let late = upstream(|stream| {
        std::thread::sleep(MS * 9000);
        let _ = stream.write_all(HEAD);
        stall();
    });
    let gateway = before(late, &["--request-timeout", "14s"]);
    let (answer, took) = ask(&gateway);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    // Its whole time once more from there would be over after 23 s.
    assert!(took >= MS * 13_900 && took < MS * 22_000, "{took:?}");
    // Our own impatience does not speak against the upstream.
    let failures = gateway.metric("floodgate_upstream_failures_total", &["timeout"]);
    assert_eq!(failures, 0.0);
}

#[test]
fn a_call_that_pauses_is_no_late_answer() {
    let echo = upstream(|stream| {
        let _ = stream.read_exact(&mut [0; 2]);
        let _ = stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok");
    });
    let silent = upstream(|stream| {
        let _ = stream.read_exact(&mut [0; 2]);
        stall();
    });
    let times = ["--read-timeout", "4s", "--body-timeout", "60s", "--h2c"];
    let begun = [(echo, 200), (silent, 504)].map(|(upstream, status)| {
        let gateway = before(upstream, &times);
        let mut connection = gateway.connect();
        let head = "POST /o/a/t/any HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer YWMtgood\r\n\
                    Content-Length: 2\r\n\r\nx";
        connection.send(head.as_bytes());
        let mut peer = Peer::new(&gateway);
        let fields = frames::head(&call("POST", "/o/a/t/any", &[]));
        peer.send(&frame(HEADERS, END_HEADERS, 1, &fields))
            .expect("sent");
        peer.send(&frame(DATA, 0, 1, b"x")).expect("sent");
        (gateway, connection, peer, status)
    });
    std::thread::sleep(MS * 6000);
    for (_gateway, mut connection, mut peer, status) in begun {
        connection.send(b"y");
        peer.send(&frame(DATA, END_STREAM, 1, b"y")).expect("sent");
        assert_eq!(connection.read_answer("POST").status, status);
        assert_eq!(peer.answered(), Some(status));
    }
}

#[test]
fn a_caller_that_stops_in_the_middle_of_its_body_is_what_is_slow() {
    let waits = upstream(|_| stall());
    let times = ["--read-timeout", "2s", "--body-timeout", "1s", "--h2c"];
    let gateway = before(waits, &times);
    let mut peer = Peer::new(&gateway);
    let fields = frames::head(&call("POST", "/o/a/t/any", &[]));
    peer.send(&frame(HEADERS, END_HEADERS, 1, &fields))
        .expect("sent");
    peer.send(&frame(DATA, 0, 1, b"x")).expect("sent");
    assert_eq!(peer.answered(), Some(408));
    soon("the log says whose it is", || {
        gateway.log().contains("\"cause\":\"client-slow\"")
    });
    let failures = gateway.metric("floodgate_upstream_failures_total", &[]);
    assert_eq!(failures, 0.0);
}

#[test]
fn a_head_that_drips_in_is_given_up() {
    let drips = upstream(|stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nx-drip: ");
        while stream.write_all(b"x").is_ok() {
            std::thread::sleep(MS * 50);
        }
    });
    let gateway = before(drips, &["--read-timeout", "1s"]);
    let (answer, _) = ask(&gateway);
    assert!(answer.starts_with("HTTP/1.1 504"), "{answer}");
    soon("it is the upstream's failure, and over", || {
        gateway.metric("floodgate_upstream_failures_total", &["timeout"]) == 1.0
            && gateway.metric("floodgate_requests_in_flight", &[]) == 0.0
    });
}

#[test]
fn a_stream_of_http2_that_stalls_is_reset_and_the_others_go_on() {
    let stalls = upstream(|stream| {
        let _ = stream.write_all(HEAD);
        stall();
    });
    let gateway = before(
        stalls,
        &["--h2c", "--request-timeout", "6s", "--read-timeout", "60s"],
    );
    let mut peer = Peer::new(&gateway);
    peer.ask(1, &call("GET", "/o/a/t/any", &[]));
    assert_eq!(peer.answered(), Some(200));
    let reset = peer.next_of(&[crate::frames::RST_STREAM]);
    assert_eq!(reset.expect("a reset").stream, 1);
    peer.ask(3, &call("GET", "/nowhere", &[]));
    assert_eq!(peer.answered(), Some(404));
}

#[test]
fn a_piece_of_an_answer_does_not_wait_for_the_next_one() {
    // The upstream goes on when its first piece has been seen.
    let (seen, next): (Sender<()>, Receiver<()>) = channel();
    let next = std::sync::Arc::new(std::sync::Mutex::new(next));
    let streams = upstream(move |stream| {
        let _ = stream.write_all(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n",
        );
        for _ in 0..3 {
            let _ = stream.write_all(b"5\r\npiece\r\n");
            let _ = next.lock().expect("it").recv();
        }
        let _ = stream.write_all(b"0\r\n\r\n");
    });
    let gateway = before(streams, &["--keepalive", "1s"]);
    let mut tcp = TcpStream::connect(gateway.addr).expect("a connection");
    tcp.set_read_timeout(Some(MS * 60_000)).expect("a time");
    tcp.write_all(b"GET /o/a/t/any HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer t\r\n\r\n")
        .expect("sent");
    let mut came = Vec::new();
    for n in 1..=3 {
        let pieces = |came: &[u8]| came.windows(5).filter(|five| five == b"piece").count();
        while pieces(&came) < n {
            let mut some = [0; 512];
            let length = tcp.read(&mut some).expect("a piece");
            assert!(length > 0, "{}", String::from_utf8_lossy(&came));
            came.extend(&some[..length]);
        }
        seen.send(()).expect("it waits");
    }
}

#[test]
fn a_caller_that_goes_away_stops_the_call_upstream() {
    let (tell, told) = channel();
    let first = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    let waits = upstream(move |stream| {
        if first.swap(false, std::sync::atomic::Ordering::SeqCst) {
            let _ = stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok");
            return;
        }
        let _ = tell.send("asked");
        // Nothing more comes: this ends when the gateway closes.
        let _ = stream.read(&mut [0]);
        let _ = tell.send("stopped");
    });
    let gateway = before(waits, &[]);
    // From now on the token is known to be good: nothing but the answer hangs on the call.
    assert_eq!(gateway.call("GET", "/o/a/users/x", "").status, 200);
    let mut connection = gateway.connect();
    connection.send_call("GET", "/o/a/users/x", &[], "");
    let wait = |what| assert_eq!(told.recv_timeout(MS * 60_000), Ok(what));
    wait("asked");
    drop(connection);
    wait("stopped");
}
