//! What HTTP/2 lets a caller ask for cheaply. Each attack is followed by the same three
//! questions: are others served, is memory what it was, is anything left behind?

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use crate::door::{soon, turned_away};
use crate::frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, Field, GOAWAY, HEADERS, PING, Peer, RST_STREAM,
    SETTINGS, WINDOW_UPDATE, call, frame, head, status,
};
use crate::harness::{Gateway, start};

/// `ENHANCE_YOUR_CALM`.
const CALM: u32 = 11;
const SLOW: Field<'_> = ("x-standin-delay-ms", "1500");

fn reset(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())
}

fn ask(stream: u32, fields: &[Field<'_>]) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, stream, &head(fields))
}

/// Client streams have odd numbers.
fn odd(nth: u32) -> u32 {
    nth * 2 + 1
}

/// Whether a caller on another connection is served. Of a route that no attack uses up.
fn serves(gateway: &Gateway) -> bool {
    const PATH: &str = "/o/b/chatgroups";
    let mut peer = Peer::new(gateway);
    peer.ask(1, &call("GET", PATH, &[]));
    peer.answered() == Some(200) && gateway.call("GET", PATH, "").status == 200
}

/// Runs an attack, and asks the three questions. `mib`: by how much memory may have grown at any
/// time of it.
fn under(gateway: &Gateway, mib: u64, attack: impl FnOnce()) {
    assert!(serves(gateway), "before");
    let (before, _) = gateway.memory();
    attack();
    assert!(serves(gateway), "after");
    let (_, most) = gateway.memory();
    assert!(
        most < before + mib * 1024,
        "{before} KiB before, at most {most} KiB"
    );
    soon("nothing is in flight", || {
        gateway.metric("floodgate_requests_in_flight", &[]) == 0.0
    });
    soon("no connection is left", || {
        gateway.metric("floodgate_connections_open", &[]) == 0.0
    });
}

#[test]
fn half_a_head_has_the_time_of_a_head_and_no_more() {
    let args = ["--h2c", "--header-timeout", "1s", "--keepalive", "600s"];
    let gateway = start(&args);
    let whole = ask(3, &call("GET", "/o/a/users/x", &[]));
    let block = head(&call("GET", "/o/a/users/x", &[]));
    let open = frame(HEADERS, END_STREAM, 3, &block[..4]);
    let cases: [(&str, Vec<u8>, bool); 4] = [
        (
            "a frame cut in half",
            whole[..whole.len() / 2].to_vec(),
            false,
        ),
        ("half a frame's head", whole[..5].to_vec(), false),
        ("a head that does not end", open.clone(), false),
        ("one that goes on a byte at a time", open, true),
    ];
    for (what, half, drips) in cases {
        // Beside a call that runs, too.
        for busy in [false, true] {
            let mut peer = Peer::new(&gateway);
            if busy {
                let slow = ("x-standin-delay-ms", "100000");
                peer.ask(1, &call("GET", "/o/a/users/x", &[slow]));
            } else {
                peer.ask(1, &call("GET", "/o/a/users/x", &[]));
                assert_eq!(peer.answered(), Some(200));
            }
            peer.send(&half).unwrap();
            let before = turned_away(&gateway, "slow-head");
            let reading = peer.reading();
            for byte in block[4..].iter().filter(|_| drips) {
                std::thread::sleep(Duration::from_millis(200));
                if reading.is_finished() {
                    break;
                }
                let _ = peer.send(&frame(CONTINUATION, 0, 3, &[*byte]));
            }
            soon(what, || reading.is_finished());
            assert_eq!(turned_away(&gateway, "slow-head"), before + 1.0, "{what}");
        }
    }
    // Who is only slow with a body is not in a head.
    let mut peer = Peer::new(&gateway);
    let fields = call("POST", "/o/a/t/any", &[("content-length", "4")]);
    peer.send(&frame(HEADERS, END_HEADERS, 1, &head(&fields)))
        .unwrap();
    let body = frame(DATA, END_STREAM, 1, b"body");
    peer.send(&body[..11]).unwrap();
    std::thread::sleep(Duration::from_millis(2500));
    peer.send(&body[11..]).unwrap();
    assert_eq!(peer.answered(), Some(200));
}

#[test]
fn a_burst_of_resets_ends_the_connection() {
    let gateway = start(&["--h2c"]);
    under(&gateway, 16, || {
        let fields = call("GET", "/o/a/users/x", &[SLOW]);
        let burst: Vec<u8> = (0..5000)
            .flat_map(|nth| [ask(odd(nth), &fields), reset(odd(nth))].concat())
            .collect();
        for _ in 0..5 {
            let mut peer = Peer::new(&gateway);
            let reading = peer.reading();
            // It is closed before all of it has gone.
            let _ = peer.send(&burst);
            let frames = reading.join().expect("frames");
            let last = frames.iter().rfind(|frame| frame.kind == GOAWAY);
            let last = last.unwrap_or_else(|| panic!("no goodbye in {frames:?}"));
            assert_eq!(last.error(), CALM);
        }
        // Of 25,000 calls, those that had begun before it was noticed; no more than a connection's
        // streams each.
        assert!(gateway.metric("floodgate_requests_in_flight", &[]) <= 500.0);
    });
    assert!(gateway.backend().count() <= 502 + 2);
}

#[test]
fn resets_at_leisure_make_no_room() {
    let gateway = start(&["--h2c", "--max-streams", "8"]);
    under(&gateway, 16, || {
        let before = gateway.backend().count();
        // The backend takes longer than the attack: it has eight of each connection, all along.
        // By a token that is known to be good, and by one that is not.
        let good = call("GET", "/o/b/users/x", &[("x-standin-delay-ms", "20000")]);
        let mut fields = [good.clone(), good.clone(), good];
        fields[2][4].1 = "Bearer YWMtnobody-has-seen";
        let mut peers: Vec<Peer> = (0..3).map(|_| Peer::new(&gateway)).collect();
        for nth in 0..150 {
            for (peer, fields) in peers.iter_mut().zip(&fields) {
                // One whose resets come in a heap is closed.
                let _ = peer.send(&ask(odd(nth), fields));
            }
            std::thread::sleep(Duration::from_millis(3));
            for peer in &mut peers {
                let _ = peer.send(&reset(odd(nth)));
            }
        }
        let waiting = gateway.metric("floodgate_upstream_waiting", &[]);
        assert!(waiting <= 24.0, "{waiting}");
        assert!(gateway.metric("floodgate_requests_in_flight", &[]) <= 24.0);
        assert!(gateway.metric("floodgate_shed_total", &["why=\"streams\""]) > 0.0);
        assert!(gateway.backend().count() - before <= 24);
    });
}

#[test]
fn a_head_that_never_ends_is_not_collected() {
    let gateway = start(&["--h2c"]);
    under(&gateway, 16, || {
        let first = head(&call("GET", "/o/a/users/x", &[]));
        let piece = head(&[("x-pad", &"p".repeat(1000))]);
        for piece in [&piece[..], b""] {
            let mut peer = Peer::new(&gateway);
            let reading = peer.reading();
            let mut sent = peer
                .send(&frame(HEADERS, END_STREAM, 1, &first))
                .map(|()| 0);
            while let Ok(frames) = sent {
                if frames > 100_000 {
                    eprintln!("{:?} {} B", reading.is_finished(), piece.len());
                    break;
                }
                let next = frame(CONTINUATION, 0, 1, piece).repeat(100);
                sent = peer.send(&next).map(|()| frames + 100);
            }
            reading.join().expect("frames");
        }
    });
    // None was a call.
    assert_eq!(gateway.backend().count(), 4);
}

#[test]
fn a_small_block_does_not_become_a_large_head() {
    let gateway = start(&["--h2c", "--max-header-bytes", "16384"]);
    under(&gateway, 16, || {
        // A field of 4,000 bytes is remembered, and then named by one byte, ten thousand times.
        let mut block = head(&call("GET", "/o/a/users/x", &[]));
        block.push(0x40);
        block.extend(&head(&[("x-bomb", &"b".repeat(3900))])[1..]);
        block.extend([0x80 | 62; 10_000]);
        for _ in 0..20 {
            let mut peer = Peer::new(&gateway);
            let flags = END_STREAM | END_HEADERS;
            peer.send(&frame(HEADERS, flags, 1, &block)).expect("sent");
            let answer = peer.next_of(&[HEADERS, RST_STREAM, GOAWAY]);
            let answer = answer.expect("a refusal");
            let is_refused = answer.kind != HEADERS || status(&answer.payload) == 431;
            assert!(is_refused, "{answer:?}");
        }
    });
    // The same bound for fields that are written out.
    for (length, expected) in [(10_000, Some(200)), (17_000, Some(431))] {
        let pad = "p".repeat(length);
        let mut peer = Peer::new(&gateway);
        let fields = call("GET", "/o/a/users/x", &[("x-pad", &pad)]);
        let block = head(&fields);
        let (first, rest) = block.split_at(block.len().min(16_000));
        let mut bytes = frame(HEADERS, END_STREAM, 1, first);
        bytes.extend(frame(CONTINUATION, END_HEADERS, 1, rest));
        peer.send(&bytes).expect("sent");
        assert_eq!(peer.answered(), expected, "{length}");
    }
}

#[test]
fn what_asks_for_an_answer_is_not_read_faster_than_it_is_answered() {
    let gateway = start(&["--h2c", "--send-timeout", "1s"]);
    for (name, one) in [
        ("PING", frame(PING, 0, 0, &[7; 8])),
        ("SETTINGS", frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0])),
    ] {
        under(&gateway, 16, || {
            let many = one.repeat(10_000);
            let mut peer = Peer::new(&gateway);
            // Of what is never read there can be no end: the gateway stops reading, then closes.
            let mut sent = 0;
            while peer.send(&many).is_ok() {
                sent += 1;
                assert!(sent < 10_000, "{name}: nobody minds");
            }
        });
    }
}

#[test]
fn frames_that_say_nothing_end_their_connection_and_hold_up_nobody() {
    let gateway = start(&["--h2c"]);
    let open = frame(
        HEADERS,
        END_HEADERS,
        1,
        &head(&call("POST", "/o/a/users", &[])),
    );
    for (name, begin, one) in [
        (
            "WINDOW_UPDATE",
            &[][..],
            frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]),
        ),
        ("PRIORITY", &[], frame(2, 0, 1, &[0, 0, 0, 0, 1])),
        ("unknown", &[], frame(0xbe, 0, 0, b"")),
        ("DATA", &open, frame(DATA, 0, 1, b"")),
    ] {
        under(&gateway, 16, || {
            let mut peer = Peer::new(&gateway);
            let _ = peer.send(begin);
            let many = one.repeat(1000);
            let mut sent = 0;
            // What the sockets hold is more than what is read.
            while peer.send(&many).is_ok() {
                assert!(sent % 100 > 0 || serves(&gateway), "{name}");
                sent += 1;
                assert!(sent < 3000, "{name}: nobody minds");
            }
        });
    }
    // h2 has a count of its own for empty DATA.
    assert!(turned_away(&gateway, "frames") >= 3.0);
}

#[test]
fn a_window_that_never_opens_holds_a_little_and_not_for_long() {
    let gateway = start(&["--h2c", "--send-timeout", "1s"]);
    // Of 160 MiB.
    under(&gateway, 80, || {
        let fields = call("GET", "/o/a/users/x", &[("x-standin-body", "2000000")]);
        let mut peer = Peer::new(&gateway);
        // INITIAL_WINDOW_SIZE 0.
        let mut bytes = frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
        for nth in 0..80 {
            bytes.extend(ask(odd(nth), &fields));
        }
        peer.send(&bytes).expect("sent");
        soon("all are in flight", || {
            gateway.metric("floodgate_requests_in_flight", &[]) >= 80.0
        });
        soon("all are given up", || {
            gateway.metric("floodgate_requests_in_flight", &[]) == 0.0
        });
        peer.close();
    });
}

/// A connection from another address of this host.
fn from(address: [u8; 4], to: SocketAddr) -> TcpStream {
    use socket2::{Domain, Socket, Type};
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    let own = SocketAddr::from((Ipv4Addr::from(address), 0));
    socket.bind(&own.into()).expect("an address");
    socket.connect(&to.into()).expect("a connection");
    socket.into()
}

#[test]
fn many_connections_of_one_address_are_bounded_and_small() {
    const MOST: usize = 200;
    let most = MOST.to_string();
    let gateway = start(&["--h2c", "--max-connections-per-ip", &most]);
    soon("no other is open", || {
        gateway.metric("floodgate_connections_open", &[]) == 0.0
    });
    let (before, _) = gateway.memory();
    let mut peers: Vec<Peer> = (0..2 * MOST)
        .map(|_| Peer::over(from([127, 0, 0, 2], gateway.addr)))
        .collect();
    for peer in &mut peers {
        // Those above the cap are closed already.
        let _ = peer.send(&ask(1, &call("GET", "/o/a/users/x", &[])));
    }
    let answered = peers.iter_mut().filter_map(Peer::answered).count();
    assert_eq!(answered, MOST);
    soon("the others are counted", || {
        turned_away(&gateway, "address-full") == 200.0
    });
    let (after, _) = gateway.memory();
    let each = after.saturating_sub(before) / 200;
    assert!(each < 160, "{each} KiB each");
    // Others come in all the same.
    assert!(serves(&gateway));
}

#[test]
fn a_connection_is_told_to_go_when_it_has_had_its_requests() {
    let gateway = start(&["--h2c", "--max-requests-per-connection", "5"]);
    let mut peer = Peer::new(&gateway);
    let fields = call("GET", "/o/a/users/x", &[]);
    for nth in 0..5 {
        peer.ask(odd(nth), &fields);
    }
    // Told by a GOAWAY without an error; the PING behind it is answered, as everyone does.
    let mut frames = Vec::new();
    while let Some(came) = peer.next() {
        if came.kind == PING {
            let _ = peer.send(&frame(PING, 1, 0, &came.payload));
        }
        frames.push(came);
    }
    let of = |kind| frames.iter().filter(move |frame| frame.kind == kind);
    assert_eq!(of(HEADERS).filter(|f| status(&f.payload) == 200).count(), 5);
    let errors: Vec<u32> = of(GOAWAY).map(crate::frames::Frame::error).collect();
    assert!(
        !errors.is_empty() && errors.iter().all(|error| *error == 0),
        "{errors:?}"
    );
    assert_eq!(gateway.backend().count(), 5);
}

#[test]
fn who_does_not_go_is_closed() {
    let gateway = start(&[
        "--h2c",
        "--max-requests-per-connection",
        "5",
        "--max-streams",
        "4",
        "--header-timeout",
        "700ms",
    ]);
    // No PING is answered, and calls go on; those that are reset count as well.
    let fields = call("GET", "/o/a/users/x", &[]);
    for resets in [false, true] {
        let mut peer = Peer::new(&gateway);
        let reading = peer.reading();
        let before = gateway.backend().count();
        let mut nth = 0;
        while peer.send(&ask(odd(nth), &fields)).is_ok() {
            std::thread::sleep(Duration::from_millis(20));
            if resets {
                let _ = peer.send(&reset(odd(nth)));
            }
            nth += 1;
            assert!(nth < 3000, "nobody minds");
        }
        reading.join().expect("frames");
        assert!(gateway.backend().count() - before <= 5 + 4);
    }
    // One that does nothing more is closed, too.
    let mut peer = Peer::new(&gateway);
    for nth in 0..5 {
        peer.ask(odd(nth), &fields);
        assert_eq!(peer.answered(), Some(200));
    }
    soon("no connection is left", || {
        gateway.metric("floodgate_connections_open", &[]) == 0.0
    });
}

#[test]
fn who_leaves_with_calls_that_were_whole_is_not_charged_for_leaving_them_incomplete() {
    let gateway = start(&["--h2c"]);
    for round in 0..40 {
        let mut peer = Peer::new(&gateway);
        let path = format!("/o/a{round}/users/x");
        let calls: Vec<u8> = (0..90)
            .flat_map(|nth| ask(odd(nth), &call("GET", &path, &[])))
            .collect();
        peer.send(&calls).expect("sent");
        // Wherever its calls are by then.
        std::thread::sleep(Duration::from_millis(round));
        peer.close();
    }
    soon("all are over", || {
        gateway.metric("floodgate_requests_in_flight", &[]) == 0.0
            && gateway.metric("floodgate_connections_open", &[]) == 0.0
    });
    let charged = gateway.metric("floodgate_units_charged_total", &["unauthorized"]);
    assert_eq!(charged, 0.0);
}
