//! A caller that was refused and goes on, on one connection: answered without pingora, and no
//! differently.

use crate::door::soon;
use crate::harness::{Answer, Connection, Gateway, Start};

fn gateway(args: &[&str]) -> Gateway {
    Start {
        routes: crate::ROUTES,
        args,
        ..Start::default()
    }
    .start()
}

/// What of an answer does not change with time.
fn lasting(answer: &Answer) -> (u16, Vec<(String, String)>, String) {
    let mut headers: Vec<_> = answer
        .headers
        .iter()
        .filter(|(name, _)| !["date", "x-request-id", "content-length"].contains(&&**name))
        .cloned()
        .collect();
    headers.sort();
    for (name, value) in &mut headers {
        if name == "ratelimit" || name == "retry-after" {
            value.retain(|c| !c.is_ascii_digit());
        }
    }
    let (error, description) = answer.error();
    (answer.status, headers, format!("{error}: {description}"))
}

fn spend(connection: &mut Connection) {
    for _ in 0..3 {
        assert_eq!(connection.call("GET", "/o/a/t/app", &[], "").status, 200);
    }
}

#[test]
fn every_denial_of_a_connection_is_the_same() {
    let gateway = gateway(&[]);
    let mut connection = gateway.connect();
    spend(&mut connection);
    let first = connection.call("GET", "/o/a/t/app", &[], "");
    assert_eq!(first.status, 429);
    for _ in 0..5 {
        let next = connection.call("GET", "/o/a/t/app", &[], "");
        assert_eq!(lasting(&next), lasting(&first));
        assert!(next.header("date").is_some());
        assert_ne!(next.header("x-request-id"), first.header("x-request-id"));
    }
    assert_eq!(gateway.backend().count(), 3);
    let denied = ["route=\"t-app\"", "verb=\"deny\""];
    // Counted when it has gone.
    soon("all are counted", || {
        gateway.metric("floodgate_decisions_total", &denied) == 6.0
            && gateway.metric("floodgate_requests_in_flight", &[]) == 0.0
    });
    soon("all are logged", || {
        let log = gateway.log();
        log.lines().filter(|line| line.contains("\"deny\"")).count() == 6
    });
    let head = connection.call("HEAD", "/o/a/t/app", &[], "");
    assert_eq!((head.status, head.body.len()), (429, 0));
}

#[test]
fn a_call_that_is_admitted_again_goes_on_and_is_charged_once() {
    let gateway = gateway(&[]);
    let mut connection = gateway.connect();
    spend(&mut connection);
    let before = gateway.metric("floodgate_units_charged_total", &["t-user", ":user"]);
    for _ in 0..2 {
        assert_eq!(connection.call("GET", "/o/a/t/app", &[], "").status, 429);
        assert_eq!(connection.call("GET", "/o/a/t/app", &[], "").status, 429);
        let path = "/o/a/t/user/eve?x=%20y";
        assert_eq!(connection.call("GET", path, &["X-Own: 1"], "").status, 200);
        let seen = gateway.backend().requests().pop().expect("a call");
        assert_eq!(seen.target, path);
        assert!(
            seen.headers
                .iter()
                .any(|(name, value)| name == "x-own" && value == "1")
        );
    }
    assert_eq!(
        connection.call("GET", "/o/a/t/user/eve", &[], "").status,
        429
    );
    let after = gateway.metric("floodgate_units_charged_total", &["t-user", ":user"]);
    assert_eq!(after - before, 2.0);
}

#[test]
fn bodies_are_priced_and_forwarded_as_ever() {
    let gateway = gateway(&[]);
    let mut connection = gateway.connect();
    let of = |n: usize| format!("{{\"to\":{:?}}}", vec!["u"; n]);
    let mut send = |body: &str| connection.call("POST", "/o/a/t/messages", &[], body);
    assert_eq!(send(&of(6)).status, 200);
    assert_eq!(send(&of(6)).status, 403);
    assert_eq!(send(&of(5)).status, 403);
    assert_eq!(send("{\"to\":").status, 400);
    assert_eq!(send(&of(7)).status, 400);
    let last = of(4);
    assert_eq!(send(&last).status, 200);
    let seen = gateway.backend().requests().pop().expect("a call");
    assert_eq!(seen.body, last.as_bytes());
    assert_eq!(send(&of(1)).status, 403);
    assert_eq!(gateway.backend().count(), 2);
}

#[test]
fn callers_without_a_token_and_unknown_paths_are_refused_the_same() {
    let gateway = gateway(&[]);
    let mut connection = gateway.connect();
    for (path, header, status) in [
        ("/o/a/users/x", "Authorization: -", 401),
        ("/nothing", "X: 1", 404),
    ] {
        let first = connection.call("GET", path, &[header], "");
        assert_eq!(first.status, status);
        for _ in 0..3 {
            assert_eq!(
                lasting(&connection.call("GET", path, &[header], "")),
                lasting(&first)
            );
        }
    }
    assert_eq!(connection.call("GET", "/o/a/users/x", &[], "").status, 200);
}

#[test]
fn what_comes_in_pieces_or_together_is_read_in_its_order() {
    let gateway = gateway(&[]);
    let mut connection = gateway.connect();
    spend(&mut connection);
    let denied = "GET /o/a/t/app HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer t\r\n\r\n";
    let good = denied.replace("/t/app", "/t/first");
    // One in pieces, after a refusal.
    assert_eq!(connection.call("GET", "/o/a/t/app", &[], "").status, 429);
    for piece in denied.as_bytes().chunks(9) {
        connection.send(piece);
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    assert_eq!(connection.read_answer("GET").status, 429);
    // Many at once: refused, admitted, refused, admitted.
    connection.send([denied, &good, denied, &good].concat().as_bytes());
    let statuses: Vec<_> = (0..4)
        .map(|_| connection.read_answer("GET").status)
        .collect();
    assert_eq!(statuses, [429, 200, 429, 200]);
    assert_eq!(connection.call("GET", "/o/a/t/app", &[], "").status, 429);
    // And what it was not asked for: a body that is chunked, and one that does not come at once.
    let mut other = gateway.connect();
    assert_eq!(other.call("GET", "/o/a/t/app", &[], "").status, 429);
    other.send(b"POST /o/a/t/day HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer t\r\nContent-Length: 2\r\n\r\n");
    std::thread::sleep(std::time::Duration::from_millis(20));
    other.send(b"{}");
    assert_eq!(other.read_answer("POST").status, 200);
    assert_eq!(other.call("GET", "/o/a/t/app", &[], "").status, 429);
    other.send(b"POST /o/a/t/day HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer t\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n");
    assert_eq!(other.read_answer("POST").status, 200);
}

#[test]
fn a_refused_connection_has_its_number_of_requests_too() {
    let gateway = gateway(&["--max-requests-per-connection", "6"]);
    let mut connection = gateway.connect();
    spend(&mut connection);
    for nth in 4..=6 {
        let answer = connection.call("GET", "/o/a/t/app", &[], "");
        let kept = if nth < 6 { "keep-alive" } else { "close" };
        assert_eq!(
            (answer.status, answer.header("connection")),
            (429, Some(kept)),
            "{nth}"
        );
    }
    assert!(connection.is_closed());
}

#[test]
fn a_refused_connection_that_is_idle_ends_with_the_gateway() {
    let mut gateway = gateway(&[]);
    let mut connection = gateway.connect();
    spend(&mut connection);
    for _ in 0..2 {
        assert_eq!(connection.call("GET", "/o/a/t/app", &[], "").status, 429);
    }
    gateway.signal("-TERM");
    assert!(connection.is_closed());
    assert_eq!(gateway.wait(), Some(0));
}

/// A, with the first bytes of B; then the rest of B, which is refused, with as many bytes of what
/// follows it as there were of B before.
fn overlap(gateway: &Gateway, a: &str, first: &str) -> Connection {
    let mut connection = gateway.connect();
    let r = first.len();
    let b = format!(
        "GET /o/a/users/bb HTTP/1.1\r\nHost: h\r\nX-Pad: {}\r\n\r\n",
        "p".repeat(r + 50)
    );
    connection.send(format!("{a}{}", &b[..r]).as_bytes());
    connection.read_answer("GET");
    connection.send(format!("{}{first}", &b[r..]).as_bytes());
    assert_eq!(connection.read_answer("GET").status, 401);
    connection
}

#[test]
fn bytes_that_pingora_holds_are_never_overtaken() {
    let gateway = gateway(&["--bad-token-memory", "off"]);
    let refused = "GET /o/a/users/aa HTTP/1.1\r\nHost: h\r\n\r\n";
    let good = refused.replace("Host: h", "Host: h\r\nAuthorization: Bearer t");
    let plain = "GET /o/a/users/cc HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer t\r\n\r\n";
    for a in [refused, &good] {
        // A whole request behind B has its answer, and what follows it too.
        let mut connection = overlap(&gateway, a, plain);
        assert_eq!(connection.read_answer("GET").status, 200);
        assert_eq!(connection.call("GET", "/o/a/users/d", &[], "").status, 200);

        // One verdict for two bodies there is not: what was priced is what goes up.
        let body = |n: usize| format!("{{\"to\":{:?}}}", (0..n).collect::<Vec<_>>());
        let (many, one) = (body(5), format!("{:<1$}", body(1), body(5).len()));
        let head = format!(
            "POST /o/a/t/messages HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer t\r\nContent-Length: {}\r\n\r\n",
            many.len()
        );
        let before = gateway.metric("floodgate_units_charged_total", &["t-messages", ":app"]);
        let mut connection = overlap(&gateway, a, &format!("{head}{many}"));
        connection.send(format!("{head}{one}").as_bytes());
        let mut status = || connection.read_answer("POST").status;
        let statuses = (status(), status());
        let charged = gateway.metric("floodgate_units_charged_total", &["t-messages", ":app"]);
        let bodies: Vec<_> = gateway.backend().requests().into_iter().rev().collect();
        let sent = |body: &str| {
            bodies
                .iter()
                .filter(|seen| seen.body == body.as_bytes())
                .count()
        };
        match statuses {
            // Ten in all: five and one, then one of the two again.
            (200, 200) => assert_eq!(charged - before, 6.0),
            (403, 200) => assert_eq!(charged - before, 1.0),
            other => panic!("{other:?}"),
        }
        assert!(sent(&many) >= 1 && sent(&one) >= 1);
    }
    assert_eq!(
        gateway
            .backend()
            .requests()
            .iter()
            .filter(|seen| seen.body.starts_with(b"{\"to\":[0, 1"))
            .count(),
        1
    );
}

#[test]
fn a_body_that_looks_like_a_request_stays_a_body() {
    let gateway = gateway(&["--bad-token-memory", "off"]);
    let refused = "GET /o/a/users/aa HTTP/1.1\r\nHost: h\r\n\r\n";
    let inner = "GET /o/a/users/INNER HTTP/1.1\r\nHost: h\r\n\r\n";
    let head = format!(
        "POST /o/a/t/any HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer t\r\nContent-Length: {}\r\n\r\n",
        inner.len()
    );
    let mut connection = overlap(&gateway, refused, &head);
    connection.send(inner.as_bytes());
    assert_eq!(connection.read_answer("POST").status, 200);
    let seen = gateway.backend().requests().pop().expect("a call");
    assert_eq!((&*seen.method, &*seen.body), ("POST", inner.as_bytes()));
    assert_eq!(
        connection.call("DELETE", "/o/a/users/d", &[], "").status,
        200
    );
}

#[test]
fn a_target_that_pingora_has_escaped_hides_no_bytes_in_its_hands() {
    // Each becomes longer in the head as pingora has it: by as much as it holds of what comes after.
    for escaped in [" x", "\u{1}x", "\u{7f}x", "\t<", "  "] {
        hides_no_bytes(escaped);
    }
}

fn hides_no_bytes(escaped: &str) {
    let gateway = gateway(&["--bad-token-memory", "off"]);
    let body = |n: usize| format!("{{\"to\":{:?}}}", (0..n).collect::<Vec<_>>());
    let (many, one) = (body(5), format!("{:<1$}", body(1), body(5).len()));
    let head = |pad: &str| {
        format!(
            "POST /o/a/t/messages HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer t\r\nX: {pad}\r\nContent-Length: {}\r\n\r\n",
            many.len()
        )
    };
    let pad = "p".repeat(4 - (head("").len() + many.len()) % 4);
    let first = format!("{}{many}", head(&pad));
    // By how much the head grows with each.
    let more = match escaped.ends_with('x') {
        true => 2,
        false => 4,
    };
    let blanks = escaped.repeat(first.len() / more);
    let refused = format!("GET /o/a/users/x{blanks} HTTP/1.1\r\nHost: h\r\n\r\n");
    let mut connection = gateway.connect();
    connection.send(format!("{refused}{first}").as_bytes());
    let status = connection.read_answer("GET").status;
    assert!(matches!(status, 400 | 401), "{escaped:?}: {status}");
    connection.send(format!("{}{one}", head(&pad)).as_bytes());
    for _ in 0..2 {
        assert_eq!(connection.read_answer("POST").status, 200);
    }
    let bodies: Vec<_> = gateway.backend().requests();
    let bodies: Vec<_> = bodies.iter().map(|seen| &*seen.body).collect();
    assert_eq!(bodies, [many.as_bytes(), one.as_bytes()]);
    let charged = gateway.metric("floodgate_units_charged_total", &["t-messages", ":app"]);
    assert_eq!(charged, 6.0);
    // And what follows is in its place.
    assert_eq!(connection.call("GET", "/o/a/users/x", &[], "").status, 200);
}

#[test]
fn a_refused_caller_has_no_more_time_than_any_other() {
    let args = [
        "--header-timeout",
        "3s",
        "--body-timeout",
        "3s",
        "--keepalive",
        "8s",
    ];
    let gateway = gateway(&args);
    let refused = || {
        let mut connection = gateway.connect();
        for _ in 0..2 {
            let answer = connection.call("GET", "/o/a/users/x", &["Authorization: -"], "");
            assert_eq!(answer.status, 401);
        }
        connection
    };
    let (mut idle, mut slow, mut half) = (refused(), refused(), refused());
    // A head that drips, a body that does not come, and nothing at all.
    half.send(b"POST /o/a/t/messages HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer t\r\nContent-Length: 9\r\n\r\n{");
    for byte in b"GET /o/a/users/x HTTP/1.1\r\nHost: h\r\nX: "
        .iter()
        .chain(std::iter::repeat(&b'x'))
        .take(180)
    {
        if slow.try_send(&[*byte]).is_err() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    for connection in [&mut slow, &mut half] {
        let answer = connection.read_answer("GET");
        assert_eq!(
            (answer.status, &*answer.error().0),
            (408, "request_timeout")
        );
        assert!(connection.is_closed());
    }
    assert!(idle.is_closed());
    soon("the slow one is logged", || {
        let log = gateway.log();
        log.lines()
            .any(|line| line.contains("\"slow-head\"") && line.contains("408"))
    });
    assert_eq!(gateway.backend().count(), 0);
}
