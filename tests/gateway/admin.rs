//! The admin listener: charges of others, resets, who hits which limit.

use serde_json::{Value, json};

use crate::ROUTES;
use crate::door::soon;
use crate::harness::{Answer, Connection, Gateway, Start, start};

const TOKEN: &str = "an-admin-token-of-tests";

fn gateway() -> Gateway {
    Start {
        routes: ROUTES,
        args: &["--admin-token", TOKEN],
        ..Start::default()
    }
    .start()
}

fn ask(gateway: &Gateway, method: &str, path: &str, body: &str) -> Answer {
    let token = format!("Authorization: Bearer {TOKEN}");
    Connection::to(gateway.admin).call(method, path, &[&token], body)
}

fn post(gateway: &Gateway, path: &str, body: &Value) -> Answer {
    ask(gateway, "POST", path, &body.to_string())
}

fn charge(gateway: &Gateway, body: &Value) -> Value {
    let answer = post(gateway, "/charge", body);
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

#[test]
fn others_charge_the_counter_that_calls_are_charged_to() {
    let gateway = gateway();
    let one = json!({ "route": "t-app", "app": "O#A" });
    let charged = charge(&gateway, &one);
    assert_eq!(charged["admitted"], true);
    assert_eq!(charged["limit"], "t-app:calls/60min:app");
    assert_eq!(charged["left"], 2);
    assert_eq!(gateway.call("GET", "/o/a/t/app", "").status, 200);
    let batch = charge(&gateway, &json!([one, one]));
    assert_eq!(batch[0]["admitted"], true);
    assert_eq!(batch[1]["admitted"], false);
    assert_eq!(batch[1]["limit"], "t-app:calls/60min:app");
    assert_eq!(batch[1]["left"], 0);
    assert_eq!(batch[1]["receipt"], Value::Null);
    let wait = batch[1]["retry_after"].as_f64().unwrap();
    assert!((3000.0..=3600.0).contains(&wait), "{wait}");
    assert_eq!(gateway.call("GET", "/o/a/t/app", "").status, 429);
}

#[test]
fn costs_users_and_addresses_are_charged_as_by_a_call() {
    let gateway = gateway();
    let messages = |cost: u32, ip: Value| {
        let body = json!({ "route": "t-messages", "app": "o#a", "cost": cost, "ip": ip });
        charge(&gateway, &body)
    };
    assert_eq!(messages(6, Value::Null)["left"], 4);
    assert_eq!(
        messages(5, Value::Null)["admitted"],
        false,
        "all or nothing"
    );
    assert_eq!(messages(4, json!("192.0.2.1"))["left"], 0);
    let user = |name: &str| {
        let body = json!({ "route": "t-user", "app": "o#a", "user": name });
        charge(&gateway, &body)
    };
    assert_eq!(user("Eve")["left"], 1);
    assert_eq!(user("eve")["left"], 0);
    assert_eq!(user("eve")["admitted"], false);
    assert_eq!(user("bob")["admitted"], true);
    assert_eq!(gateway.call("GET", "/o/a/t/user/EVE", "").status, 429);
    let by_ip = |ip: Value| {
        let body = json!({ "route": "t-ip", "app": "o#a", "ip": ip });
        charge(&gateway, &body)
    };
    for left in [2, 1, 0] {
        assert_eq!(by_ip(json!("192.0.2.9"))["left"], left);
    }
    assert_eq!(by_ip(json!("192.0.2.9"))["limit"], "t-ip:calls/60min:ip");
    assert_eq!(by_ip(json!("192.0.2.9"))["admitted"], false);
    for _ in 0..5 {
        assert_eq!(
            by_ip(Value::Null)["admitted"],
            true,
            "no address, no limit of it"
        );
    }
}

#[test]
fn a_receipt_gives_back_once() {
    let gateway = gateway();
    let body = json!({ "route": "t-messages", "app": "o#a", "cost": 6 });
    let receipt = charge(&gateway, &body)["receipt"].clone();
    let back = |receipt: &Value| {
        let answer = post(
            &gateway,
            "/charge/give-back",
            &json!({ "receipt": receipt }),
        );
        assert_eq!(answer.status, 200);
        answer.json()["given_back"].clone()
    };
    assert_eq!(charge(&gateway, &body)["admitted"], false);
    assert_eq!(back(&receipt), true);
    assert_eq!(back(&receipt), false);
    assert_eq!(back(&json!("made up")), false);
    assert_eq!(charge(&gateway, &body)["left"], 4);
    assert_eq!(charge(&gateway, &body)["admitted"], false);
    assert_eq!(
        gateway.metric("floodgate_units_refunded_total", &["t-messages"]),
        6.0
    );
}

#[test]
fn a_slot_is_held_until_its_receipt_is_given_back() {
    let gateway = gateway();
    let body = json!({ "route": "t-slot", "app": "o#a" });
    let receipt = charge(&gateway, &body)["receipt"].clone();
    assert_eq!(charge(&gateway, &body)["admitted"], false);
    let answer = post(
        &gateway,
        "/charge/give-back",
        &json!([{ "receipt": receipt }]),
    );
    assert_eq!(answer.json()[0]["given_back"], true);
    assert_eq!(charge(&gateway, &body)["admitted"], true);
}

#[test]
fn every_mistake_of_a_batch_is_told_and_nothing_is_charged() {
    let gateway = gateway();
    let answer = post(
        &gateway,
        "/charge",
        &json!([
            { "route": "t-app", "app": "o#a" },
            { "route": "t-ap", "app": "o#a" },
            { "route": "t-user", "app": "o#a" },
            { "route": "t-app", "app": "o#" },
            { "route": "t-app", "app": "o#a", "cost": 2 },
            { "route": "t-messages", "app": "o#a", "cost": 7 },
            { "route": "t-messages", "app": "o#a", "cost": 0 },
            { "route": "t-app", "app": "o#a", "adress": "1.1.1.1" },
            { "route": "t-app", "app": "o#a", "ip": "1.1.1" },
            { "route": "t-app" },
            7,
        ]),
    );
    assert_eq!(answer.status, 400);
    let items = answer.json()["items"].clone();
    let wrong: Vec<(u64, &str)> = items
        .as_array()
        .unwrap()
        .iter()
        .map(|item| {
            (
                item["item"].as_u64().unwrap(),
                item["error"].as_str().unwrap(),
            )
        })
        .collect();
    for (item, text) in [
        (1, "did you mean `t-app`?"),
        (2, "`user` is needed"),
        (3, "write org#app or an App ID"),
        (4, "counts calls"),
        (5, "at most 6 recipients"),
        (6, "costs 1 or more"),
        (7, "unknown field `adress`"),
        (8, "invalid IP address"),
        (9, "missing field `app`"),
        (10, "invalid type"),
    ] {
        assert!(
            wrong
                .iter()
                .any(|(at, why)| *at == item && why.contains(text)),
            "{item}: {text}: {wrong:?}"
        );
    }
    assert_eq!(wrong.len(), 10);
    let left = charge(&gateway, &json!({ "route": "t-app", "app": "o#a" }));
    assert_eq!(left["left"], 2, "nothing was charged before");
}

#[test]
fn what_is_too_large_or_no_json_is_refused() {
    let gateway = gateway();
    let one = json!({ "route": "t-app", "app": "o#a" });
    let many = Value::Array(vec![one; 101]);
    assert_eq!(post(&gateway, "/charge", &many).status, 413);
    let large = " ".repeat(300_000);
    assert_eq!(ask(&gateway, "POST", "/charge", &large).status, 413);
    for body in ["", "{", "[]", "nonsense"] {
        let answer = ask(&gateway, "POST", "/charge", body);
        assert_eq!(answer.status, 400, "{body}");
        assert!(answer.json()["error"].is_string());
    }
    assert_eq!(ask(&gateway, "GET", "/charge", "").status, 405);
}

#[test]
fn changing_counters_needs_the_token() {
    let gateway = gateway();
    let paths = ["/charge", "/charge/give-back", "/counters/reset"];
    for path in paths {
        for header in [
            "Authorization: -",
            "Authorization: Bearer x",
            "Authorization: Basic an-admin-token-of-tests",
        ] {
            let answer = Connection::to(gateway.admin).call("POST", path, &[header], "{}");
            assert_eq!(answer.status, 401, "{path} {header}");
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
        }
    }
    let without = start(&[]);
    for path in paths {
        let answer = ask(&without, "POST", path, "{}");
        assert_eq!(answer.status, 403);
        assert!(
            answer.text().contains("admin_token_file"),
            "{}",
            answer.text()
        );
    }
    assert!(!gateway.whole_log().contains(TOKEN));
}

#[test]
fn the_token_may_be_in_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    std::fs::write(&file, format!("{TOKEN}\n")).unwrap();
    let gateway = Start {
        routes: ROUTES,
        args: &["--admin-token-file", file.to_str().unwrap()],
        ..Start::default()
    }
    .start();
    charge(&gateway, &json!({ "route": "t-app", "app": "o#a" }));
}

#[test]
fn a_reset_counter_is_empty_and_no_other_is() {
    let gateway = gateway();
    let day = |app: &str| gateway.call("POST", &format!("/o/{app}/t/day"), "").status;
    for app in ["a", "b"] {
        assert_eq!([day(app), day(app), day(app)], [200, 200, 429]);
    }
    for _ in 0..3 {
        assert_eq!(gateway.call("GET", "/o/a/t/app", "").status, 200);
    }
    let body = json!({ "app": "o#a", "limit": "t-day:calls/day:app" });
    let answer = post(&gateway, "/counters/reset", &body);
    assert_eq!(answer.json(), json!({ "reset": ["t-day:calls/day:app"] }));
    assert_eq!([day("a"), day("a"), day("a")], [200, 200, 429]);
    assert_eq!(day("b"), 429);
    assert_eq!(gateway.call("GET", "/o/a/t/app", "").status, 429);
    let answer = post(&gateway, "/counters/reset", &json!({ "app": "o#a" }));
    assert_eq!(answer.status, 200);
    assert_eq!(day("a"), 200);
    assert_eq!(
        gateway.call("GET", "/o/a/t/app", "").status,
        429,
        "its address is full"
    );
    let answer = post(&gateway, "/counters/reset", &json!({ "ip": "127.0.0.1" }));
    assert_eq!(answer.status, 200);
    assert_eq!(gateway.call("GET", "/o/a/t/app", "").status, 200);
}

#[test]
fn a_users_counter_is_reset_by_app_and_user() {
    let gateway = gateway();
    let get = |user: &str| {
        gateway
            .call("GET", &format!("/o/a/t/user/{user}"), "")
            .status
    };
    for user in ["eve", "bob"] {
        assert_eq!([get(user), get(user), get(user)], [200, 200, 429]);
    }
    let body = json!({ "app": "o#a", "user": "Eve", "limit": "t-user:calls/60min:user" });
    assert_eq!(post(&gateway, "/counters/reset", &body).status, 200);
    assert_eq!([get("eve"), get("bob")], [200, 429]);
}

#[test]
fn a_reset_of_nothing_says_what_is_wrong() {
    let gateway = gateway();
    for (body, text) in [
        (json!({}), "whose counters?"),
        (json!({ "app": "o#a", "ip": "1.1.1.1" }), "whose counters?"),
        (
            json!({ "app": "o#a", "limit": "t-day:calls/day" }),
            "did you mean `t-day:calls/day:app`?",
        ),
        (
            json!({ "app": "o#a", "limit": "t-user:calls/60min:user" }),
            "write `app` and `user`",
        ),
        (json!({ "apps": "o#a" }), "unknown field"),
    ] {
        let answer = post(&gateway, "/counters/reset", &body);
        assert_eq!(answer.status, 400);
        assert!(answer.text().contains(text), "{}", answer.text());
    }
}

#[test]
fn top_says_who_hits_which_limit_and_what_is_left() {
    let gateway = gateway();
    for _ in 0..7 {
        gateway.call("GET", "/Loud/a/t/app", "");
    }
    for _ in 0..2 {
        gateway.call("GET", "/o/a/t/user/Eve", "");
    }
    let top = |query: &str| {
        let answer = ask(&gateway, "GET", &format!("/top{query}"), "");
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()["top"].as_array().unwrap().clone()
    };
    let limit = "t-app:calls/60min:app";
    let rows = top(&format!("?limit={limit}"));
    assert_eq!(
        rows,
        [
            json!({ "limit": limit, "by": "app", "app": "loud#a", "units": 3, "denied": 4,
                 "quota": 3, "used": 3, "left": 0 })
        ]
    );
    for _ in 0..3 {
        gateway.call("GET", "/o/a/t/report", "");
    }
    let reported = top("?limit=t-report:calls/60min:app");
    assert_eq!(
        (&reported[0]["units"], &reported[0]["denied"]),
        (&json!(1), &json!(2))
    );
    let users = top("?by=user");
    assert_eq!(users.len(), 1);
    assert_eq!(
        (&users[0]["app"], &users[0]["user"]),
        (&json!("o#a"), &json!("eve"))
    );
    assert_eq!(
        (&users[0]["used"], &users[0]["left"]),
        (&json!(2), &json!(0))
    );
    let addresses = top("?by=ip");
    assert!(addresses.iter().all(|row| row["ip"] == "127.0.0.1"));
    assert_eq!(top("?n=1").len(), 1);
    assert_eq!(top("?n=1")[0]["denied"], 4);
    for (query, text) in [
        ("?n=0", "n: not from 1 to 100"),
        ("?n=x", "invalid digit"),
        ("?by=you", "by=app|user|ip"),
        (
            "?limit=t-app:calls/60min:ap",
            "did you mean `t-app:calls/60min:app`?",
        ),
        ("?lim=1", "unknown field"),
    ] {
        let answer = ask(&gateway, "GET", &format!("/top{query}"), "");
        assert_eq!(answer.status, 400, "{query}");
        assert!(answer.text().contains(text), "{query}: {}", answer.text());
    }
}

#[test]
fn alone_a_gateway_has_no_peers() {
    let answer = ask(&gateway(), "GET", "/peers", "");
    assert_eq!(answer.json()["store"], "memory");
    assert_eq!(answer.json()["gateways"], json!([]));
}

/// A call of the admin listener with these lines in its head, and no other.
fn plain(gateway: &Gateway, method: &str, path: &str, lines: &[&str]) -> Answer {
    let mut connection = Connection::to(gateway.admin);
    let lines: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
    connection
        .send(format!("{method} {path} HTTP/1.1\r\nContent-Length: 0\r\n{lines}\r\n").as_bytes());
    connection.read_answer(method)
}

#[test]
fn web_pages_of_other_origins_get_nothing() {
    let gateway = start(&[
        "--admin-token",
        TOKEN,
        "--admin-host",
        "metrics.example.com",
    ]);
    let token = format!("Authorization: Bearer {TOKEN}");
    let get = |lines: &[&str]| plain(&gateway, "GET", "/top", lines).status;
    let own = format!("Host: {}", gateway.admin);
    let origin = format!("Origin: http://{}", gateway.admin);
    assert_eq!(get(&[&own]), 200);
    assert_eq!(get(&[&own, &origin]), 200);
    assert_eq!(get(&[&own, "Sec-Fetch-Site: none"]), 200);
    assert_eq!(get(&[&own, "Sec-Fetch-Site: same-origin"]), 200);
    assert_eq!(get(&["Host: metrics.example.com"]), 200);
    for line in [
        "Origin: http://evil.example",
        "Origin: null",
        "Origin: http://127.0.0.1",
        "Origin: http://127.0.0.1:1",
        "Sec-Fetch-Site: cross-site",
        "Sec-Fetch-Site: same-site",
    ] {
        for (method, path) in [
            ("GET", "/top"),
            ("GET", "/metrics"),
            ("GET", "/peers"),
            ("POST", "/charge"),
            ("POST", "/counters/reset"),
            ("DELETE", "/apps/o%23a/tasks/1"),
            ("OPTIONS", "/charge"),
        ] {
            let answer = plain(&gateway, method, path, &[&own, &token, line]);
            assert_eq!(answer.status, 403, "{method} {path} {line}");
            assert_eq!(answer.header("access-control-allow-origin"), None);
        }
    }
    for host in [
        "evil.example",
        "127.0.0.1.nip.io:9090",
        "",
        "evil.example:80",
    ] {
        let line = format!("Host: {host}");
        assert_eq!(get(&[&line]), 421, "{host}");
        // A page whose name points here is of one origin with it.
        let origin = format!("Origin: http://{host}");
        assert_eq!(get(&[&line, &origin]), 421, "{host}");
    }
    let target = "http://evil.example/top";
    assert_eq!(plain(&gateway, "GET", target, &[&own]).status, 421);
    for path in ["/live", "/ready"] {
        assert_eq!(
            plain(&gateway, "GET", path, &["Host: probe.example"]).status,
            200
        );
    }
}

#[test]
fn all_but_health_asks_for_the_token_where_it_is_told_to() {
    let gateway = start(&["--admin-token", TOKEN, "--admin-auth", "all"]);
    for path in ["/top", "/metrics", "/peers"] {
        assert_eq!(
            plain(&gateway, "GET", path, &["Host: g"]).status,
            401,
            "{path}"
        );
        assert_eq!(ask(&gateway, "GET", path, "").status, 200, "{path}");
        let right = format!("Authorization: Bearer {TOKEN}");
        let two = ["Host: g", &*right, "Authorization: Bearer x"];
        assert_eq!(plain(&gateway, "GET", path, &two).status, 401, "{path}");
    }
    for path in ["/live", "/ready"] {
        assert_eq!(
            plain(&gateway, "GET", path, &["Host: g"]).status,
            200,
            "{path}"
        );
    }
}

#[test]
fn a_task_is_ended_by_whom_has_the_token_where_there_is_one() {
    let path = "/apps/o%23a/tasks/1";
    let gateway = gateway();
    assert_eq!(plain(&gateway, "DELETE", path, &["Host: g"]).status, 401);
    assert_eq!(ask(&gateway, "DELETE", path, "").status, 404);
    // Without one, nobody from beyond this host.
    assert_eq!(plain(&start(&[]), "DELETE", path, &["Host: g"]).status, 404);
    let open = start(&["--admin", "0.0.0.0:0"]);
    assert_eq!(plain(&open, "DELETE", path, &["Host: g"]).status, 403);
    soon("it is warned", || open.log().contains("not on loopback"));
}

#[test]
fn heads_that_never_end_hold_the_admin_listener_for_a_while_alone() {
    let gateway = gateway();
    let mut held: Vec<_> = (0..200)
        .map(|_| {
            let mut connection = Connection::to(gateway.admin);
            connection.send(b"GET /to");
            connection
        })
        .collect();
    // Callers do not notice, and operators are served again when the heads have had their time.
    assert_eq!(gateway.call("GET", "/o/a/users/x", "").status, 200);
    assert_eq!(ask(&gateway, "GET", "/live", "").status, 200);
    assert!(held.first_mut().is_some_and(Connection::is_gone));
}
