//! What a denied caller reads: the service's own body, and header fields that parse.

use sfv::{BareItem, ListEntry, Parser};

use crate::ROUTES;
use crate::door::soon;
use crate::harness::{Answer, Gateway, Start, start};

fn gateway(args: &[&str]) -> Gateway {
    Start {
        routes: ROUTES,
        args,
        ..Start::default()
    }
    .start()
}

/// Name and integer parameters of the one member of a structured-field list.
fn member(field: &str) -> (String, Vec<(String, i64)>) {
    let list: sfv::List = Parser::new(field)
        .parse()
        .unwrap_or_else(|e| panic!("{field}: {e}"));
    assert_eq!(list.len(), 1, "{field}");
    let ListEntry::Item(item) = &list[0] else {
        panic!("an inner list: {field}")
    };
    let BareItem::String(name) = &item.bare_item else {
        panic!("no string: {field}")
    };
    let params = item
        .params
        .iter()
        .filter_map(|(key, value)| Some((key.as_str().to_owned(), i64::from(value.as_integer()?))))
        .collect();
    (name.as_str().to_owned(), params)
}

fn denied(gateway: &Gateway, method: &str, path: &str, body: &str) -> Answer {
    for _ in 0..200 {
        let answer = gateway.call(method, path, body);
        if answer.status != 200 {
            return answer;
        }
    }
    panic!("never denied");
}

#[test]
fn a_call_rate_denial_is_the_services_429_and_says_when() {
    let gateway = gateway(&[]);
    let answer = denied(&gateway, "GET", "/Org/App/t/app", "");
    assert_eq!(answer.status, 429);
    assert_eq!(
        answer.error(),
        (
            "reach_limit".to_owned(),
            "This request has reached api limit".to_owned()
        )
    );
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.json()["app"], "org#app");
    let limit = answer.json()["limit"]
        .as_str()
        .expect("the limit")
        .to_owned();
    let wait: i64 = answer
        .header("retry-after")
        .expect("Retry-After")
        .parse()
        .expect("seconds");
    assert!((1..=3600).contains(&wait), "{wait}");
    let (name, policy) = member(answer.header("ratelimit-policy").expect("the policy"));
    assert_eq!(name, limit);
    assert_eq!(policy, [("q".to_owned(), 3), ("w".to_owned(), 3600)]);
    let (name, left) = member(answer.header("ratelimit").expect("what is left"));
    assert_eq!(name, limit);
    assert_eq!(left, [("r".to_owned(), 0), ("t".to_owned(), wait)]);
}

#[test]
fn an_admitted_call_is_told_the_limit_nearest_to_exhaustion() {
    let gateway = gateway(&[]);
    let answer = gateway.call("GET", "/o/a/t/user/alice", "");
    let (name, policy) = member(answer.header("ratelimit-policy").expect("the policy"));
    assert!(
        name.starts_with("t-user:calls") && name.ends_with(":user"),
        "{name}"
    );
    assert_eq!(policy[0], ("q".to_owned(), 2));
    let (_, left) = member(answer.header("ratelimit").expect("what is left"));
    assert_eq!(left[0], ("r".to_owned(), 1));
    assert!(
        answer
            .header("x-request-id")
            .is_some_and(|id| !id.is_empty())
    );
}

#[test]
fn message_denials_have_the_services_403() {
    let gateway = gateway(&[]);
    let answer = denied(
        &gateway,
        "POST",
        "/o/a/t/messages",
        r#"{"to":["a","b","c"]}"#,
    );
    assert_eq!(answer.status, 403);
    assert_eq!(
        answer.error(),
        (
            "message_send_error".to_owned(),
            "message send reach limit".to_owned()
        )
    );
    assert!(answer.header("retry-after").is_some());
}

#[test]
fn broadcast_days_and_minutes_answer_differently() {
    let gateway = start(&[]);
    let body = r#"{"msg":{"type":"txt","msg":"hi"}}"#;
    assert_eq!(
        gateway
            .call("POST", "/app-id/x/messages/users/broadcast", body)
            .status,
        200
    );
    let minute = gateway.call("POST", "/app-id/x/messages/users/broadcast", body);
    assert_eq!(
        (minute.status, minute.error().0.as_str()),
        (429, "reach_limit")
    );
}

#[test]
fn a_day_limit_of_broadcasts_has_the_services_403() {
    let gateway = Start {
        routes: r#"
[[route]]
name = "t-cast"
calls = ["POST /t/cast"]
denial = "broadcast-users"
v4 = { limits = ["1/day"] }
"#,
        ..Start::default()
    }
    .start();
    let answer = denied(&gateway, "POST", "/app-id/x/t/cast", "{}");
    assert_eq!(answer.status, 403);
    assert_eq!(
        answer.error(),
        (
            "forbidden_op".to_owned(),
            "online user broadcast limit exceeded".to_owned()
        )
    );
}

#[test]
fn a_call_that_can_never_succeed_is_not_told_to_retry() {
    let gateway = Start {
        routes: r#"
[[route]]
name = "t-big"
calls = ["POST /t/big"]
cost = "to"
v3 = { limits = ["2 messages/s"], ip_copy = false }
"#,
        ..Start::default()
    }
    .start();
    let answer = gateway.call("POST", "/o/a/t/big", r#"{"to":["a","b","c"]}"#);
    assert_eq!(answer.status, 403);
    assert_eq!(answer.header("retry-after"), None);
}

#[test]
fn problem_json_replaces_the_native_body_where_asked() {
    let gateway = gateway(&["--answers", "problem"]);
    let answer = denied(&gateway, "GET", "/o/a/t/app", "");
    assert_eq!(
        answer.header("content-type"),
        Some("application/problem+json")
    );
    let json = answer.json();
    assert_eq!(json["status"], 429);
    assert_eq!(json["title"], "Too Many Requests");
    assert!(json["type"].is_string() && json["detail"].is_string());
}

#[test]
fn the_header_form_can_be_chosen() {
    let old = gateway(&["--ratelimit-headers", "x-ratelimit"]);
    let answer = denied(&old, "GET", "/o/a/t/app", "");
    assert_eq!(answer.header("x-ratelimit-limit"), Some("3"));
    assert_eq!(answer.header("x-ratelimit-remaining"), Some("0"));
    assert!(answer.header("x-ratelimit-reset").is_some() && answer.header("ratelimit").is_none());
    let none = gateway(&["--ratelimit-headers", "off"]);
    let answer = denied(&none, "GET", "/o/a/t/app", "");
    assert!(
        answer
            .headers
            .iter()
            .all(|(name, _)| !name.contains("ratelimit"))
    );
    assert!(answer.header("retry-after").is_some());
}

#[test]
fn the_connection_serves_on_after_a_denial() {
    let gateway = gateway(&[]);
    let mut connection = gateway.connect();
    for _ in 0..3 {
        assert_eq!(connection.call("GET", "/o/a/t/app", &[], "").status, 200);
    }
    assert_eq!(connection.call("GET", "/o/a/t/app", &[], "").status, 429);
    // A body that nobody reads does not end up as the next request.
    let body = "x".repeat(10_000);
    assert_eq!(connection.call("POST", "/nowhere", &[], &body).status, 404);
    assert_eq!(connection.call("GET", "/o/a/t/first", &[], "").status, 200);
    assert_eq!(connection.call("GET", "/o/a/t/app", &[], "").status, 429);
}

#[test]
fn a_pipelined_request_has_its_own_answer() {
    let gateway = gateway(&[]);
    let get =
        |path: &str| format!("GET {path} HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer t\r\n\r\n");
    let post = |path: &str, body: &str| {
        let length = body.len();
        format!(
            "POST {path} HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer t\r\nContent-Length: {length}\r\n\r\n{body}"
        )
    };
    let paths = |answers: [Answer; 2]| {
        answers.map(|answer| {
            assert_eq!(answer.status, 200, "{}", answer.text());
            answer.json()["path"]
                .as_str()
                .unwrap_or_default()
                .to_owned()
        })
    };
    let mut connection = gateway.connect();
    connection.send((get("/o/a/users/one") + &get("/o/a/users/two")).as_bytes());
    let answers = [connection.read_answer("GET"), connection.read_answer("GET")];
    assert_eq!(paths(answers), ["/users/one", "/users/two"]);

    // After a counted body.
    let mut connection = gateway.connect();
    let message = post("/o/a/t/messages", r#"{"to":["a","b"]}"#);
    connection.send((message + &get("/o/a/users/two")).as_bytes());
    let answers = [
        connection.read_answer("POST"),
        connection.read_answer("GET"),
    ];
    assert_eq!(paths(answers), ["/t/messages", "/users/two"]);

    // After a body that nobody reads.
    let mut connection = gateway.connect();
    connection.send((post("/nowhere", "GET /o/a/t/app") + &get("/o/a/users/two")).as_bytes());
    assert_eq!(connection.read_answer("POST").status, 404);
    let answer = connection.read_answer("GET");
    assert_eq!(answer.json()["path"], "/users/two");
    assert_eq!(
        gateway.metric("floodgate_units_charged_total", &["t-app"]),
        0.0
    );
}

#[test]
fn the_shield_counts_ipv6_callers_by_their_64() {
    let gateway = gateway(&["--shield-requests", "3", "--trusted-proxy", "127.0.0.0/8"]);
    let mut connection = gateway.connect();
    let mut call = |ip: &str| {
        let from = format!("X-Forwarded-For: {ip}");
        connection.call("GET", "/o/a/users/x", &[&from], "").status
    };
    let flood: Vec<u16> = (0..40)
        .map(|n| call(&format!("2001:db8:0:1::{n:x}")))
        .collect();
    assert_eq!(flood[..3], [200; 3]);
    assert!(flood.contains(&429), "{flood:?}");
    assert_eq!(call("2001:db8:0:2::1"), 200);
    assert_eq!(call("192.0.2.1"), 200);
}

#[test]
fn the_shield_turns_a_flood_away_before_any_counter() {
    let gateway = gateway(&["--shield-requests", "5"]);
    let mut connection = gateway.connect();
    let statuses: Vec<u16> = (0..40)
        .map(|_| connection.call("GET", "/o/a/t/user/x", &[], "").status)
        .collect();
    assert_eq!(statuses[0], 200);
    assert!(
        gateway.metric(
            "floodgate_decisions_total",
            &["route=\"none\"", "verb=\"shed\""]
        ) >= 1.0
    );
}

#[test]
fn what_is_no_http_has_the_native_answer_and_goes_nowhere() {
    let gateway = gateway(&[]);
    let many: String = (0..300).map(|n| format!("X-{n}: 1\r\n")).collect();
    let get = |target: &str, version: &str, fields: &str| {
        format!("GET {target} HTTP/{version}\r\nHost: g\r\nAuthorization: Bearer t\r\n{fields}\r\n")
    };
    for (request, status) in [
        (get("/o/a/users/x", "1.1", &many), 400),
        (get("/o/a/users/x", "1.1", "Content-Length: 1x\r\n"), 400),
        (
            get(
                "/o/a/users/x",
                "1.1",
                "Content-Length: 1\r\nContent-Length: 2\r\n",
            ),
            400,
        ),
        (get("/o/a/users/x", "1.2", ""), 400),
        // RFC 9112 would have the target win; no host is the safer answer.
        (get("http://other/o/a/users/x", "1.1", ""), 400),
        (get("/o/a/users/x", "1.1", "Host: other\r\n"), 400),
        (get("g:443", "1.1", "").replace("GET", "CONNECT"), 405),
    ] {
        let mut connection = gateway.connect();
        connection.send(request.as_bytes());
        let answer = connection.read_answer("GET");
        assert_eq!(answer.status, status, "{request}");
        let error = if status == 405 {
            assert!(answer.header("allow").is_some_and(|a| a.contains("GET")));
            "method_not_allowed"
        } else {
            "illegal_argument"
        };
        assert_eq!(answer.error().0, error, "{request}");
        assert!(connection.is_closed());
    }
    let mut connection = gateway.connect();
    connection.send(b"GET /o/a/users/\xff HTTP/1.1\r\nHost: g\r\n\r\n");
    let answer = connection.read_answer("GET");
    assert_eq!(
        (answer.status, &*answer.error().0),
        (400, "illegal_argument")
    );
    // Escaped, the same bytes reach us.
    let answer = gateway.call("GET", "/o/a/users/%ff", "");
    assert_eq!(
        (answer.status, &*answer.error().0),
        (400, "illegal_argument")
    );
    soon("each has a line", || gateway.log().lines().count() == 9);
    assert_eq!(gateway.backend().count(), 0);
}
