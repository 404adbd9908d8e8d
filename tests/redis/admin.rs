//! The admin listeners of two gateways that share a store.

use std::time::Duration;

use serde_json::{Value, json};

use crate::gateways::acquainted;
use crate::harness::{Answer, Connection, Gateway, Start};
use crate::server::{Cluster, Server, wait_until};

const TOKEN: &str = "an-admin-token-of-tests";

const ROUTES: &str = r#"
[[route]]
name = "t-hour"
calls = ["GET /t/hour"]
v3 = { limits = ["10/60min"], ip_copy = false }

[[route]]
name = "t-day"
calls = ["GET /t/day"]
v3 = { limits = ["4/day"], ip_copy = false }

[[route]]
name = "t-slot"
calls = ["POST /t/slot"]
v3 = { limits = ["1 tasks"], ip_copy = false }
"#;

fn gateway(url: &str) -> Gateway {
    Start {
        routes: ROUTES,
        args: &[
            "--store",
            url,
            "--admin-token",
            TOKEN,
            "--threads",
            "1",
            "--store-timeout",
            "10s",
        ],
        ..Start::default()
    }
    .start()
}

/// Two that know of each other, over a store that they believe.
fn pair(url: &str) -> [Gateway; 2] {
    let pair = [gateway(url), gateway(url)];
    acquainted(&[&pair[0], &pair[1]]);
    pair
}

fn ask(gateway: &Gateway, method: &str, path: &str, body: &Value) -> Answer {
    let token = format!("Authorization: Bearer {TOKEN}");
    let body = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    Connection::to(gateway.admin).call(method, path, &[&token], &body)
}

fn charge(gateway: &Gateway, route: &str) -> Value {
    let answer = ask(
        gateway,
        "POST",
        "/charge",
        &json!({ "route": route, "app": "o#a" }),
    );
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

fn statuses(gateway: &Gateway, path: &str, count: usize) -> Vec<u16> {
    (0..count)
        .map(|_| gateway.call("GET", path, "").status)
        .collect()
}

fn reset(gateway: &Gateway, body: &Value) {
    let answer = ask(gateway, "POST", "/counters/reset", body);
    assert_eq!(answer.status, 200, "{}", answer.text());
}

/// Charges at one gateway count at the other, are given back once, and are reset for both.
fn shared_by_all(url: &str) {
    let [one, other] = pair(url);
    let batch = json!(vec![json!({ "route": "t-hour", "app": "o#a" }); 6]);
    let answers = ask(&one, "POST", "/charge", &batch).json();
    let answers = answers.as_array().unwrap();
    assert!(
        answers.iter().all(|answer| answer["admitted"] == true),
        "{answers:?}"
    );
    assert_eq!(answers[5]["left"], 4, "in their order: {answers:?}");
    assert_eq!(
        statuses(&other, "/o/a/t/hour", 5),
        [200, 200, 200, 200, 429]
    );
    let denied = charge(&one, "t-hour");
    assert_eq!(
        (&denied["admitted"], &denied["left"]),
        (&json!(false), &json!(0))
    );
    assert!(denied["retry_after"].as_f64().unwrap() > 3000.0);
    let receipt = json!({ "receipt": answers[0]["receipt"] });
    let back = |gateway| ask(gateway, "POST", "/charge/give-back", &receipt).json();
    assert_eq!(back(&other)["given_back"], false, "another gateway's");
    assert_eq!(back(&one)["given_back"], true);
    assert_eq!(back(&one)["given_back"], false);
    wait_until("the other knows no more that it was full", || {
        statuses(&other, "/o/a/t/hour", 1) == [200]
    });
    assert_eq!(charge(&one, "t-hour")["admitted"], false);

    let slot = charge(&one, "t-slot");
    assert_eq!(charge(&other, "t-slot")["admitted"], false);
    ask(
        &one,
        "POST",
        "/charge/give-back",
        &json!({ "receipt": slot["receipt"] }),
    );
    wait_until("the slot is free", || {
        charge(&other, "t-slot")["admitted"] == true
    });

    assert_eq!(statuses(&one, "/o/a/t/day", 5), [200, 200, 200, 200, 429]);
    assert_eq!(statuses(&other, "/o/a/t/day", 1), [429]);
    reset(&one, &json!({ "app": "o#a" }));
    for path in ["/o/a/t/day", "/o/a/t/hour"] {
        assert_eq!(statuses(&one, path, 1), [200], "at once where it was done");
        wait_until("the other has heard of the reset", || {
            statuses(&other, path, 1) == [200]
        });
    }
    assert_eq!(statuses(&one, "/o/a/t/day", 3), [200, 200, 429]);
}

#[test]
fn others_charge_and_reset_what_gateways_share() {
    shared_by_all(&Server::start().url());
}

#[test]
fn others_charge_and_reset_what_gateways_share_in_a_cluster() {
    shared_by_all(&Cluster::start(0).url());
}

#[test]
fn a_store_that_comes_back_empty_is_not_told_what_was_reset() {
    let mut server = Server::start();
    let [one, other] = pair(&server.url());
    assert_eq!(statuses(&other, "/o/a/t/day", 4), [200; 4]);
    reset(
        &one,
        &json!({ "app": "o#a", "limit": "t-day:calls/day:app" }),
    );
    wait_until("the other has heard of the reset", || {
        statuses(&other, "/o/a/t/day", 1) == [200]
    });
    std::thread::sleep(Duration::from_millis(1500));
    server.restart_empty();
    wait_until("some of it may be used", || {
        statuses(&one, "/o/a/t/day", 1) == [200]
    });
    for gateway in [&one, &other] {
        wait_until("the store is in use", || {
            ask(gateway, "GET", "/peers", &Value::Null).json()["up"] == true
        });
    }
    std::thread::sleep(Duration::from_millis(3000));
    // Since the reset, and from both.
    assert_eq!(statuses(&one, "/o/a/t/day", 3), [200, 200, 429]);
}

#[test]
fn top_is_of_all_gateways_and_peers_are_told() {
    let server = Server::start();
    let [one, other] = pair(&server.url());
    statuses(&one, "/loud/a/t/hour", 3);
    statuses(&other, "/loud/a/t/hour", 9);
    statuses(&other, "/o/a/t/hour", 2);
    statuses(&one, "/p/a/t/hour", 2);
    let top = |gateway| {
        ask(
            gateway,
            "GET",
            "/top?limit=t-hour:calls/60min:app",
            &Value::Null,
        )
        .json()
    };
    let of = |gateway, app: &str| {
        let top = top(gateway);
        let rows = top["top"].as_array().unwrap().clone();
        rows.into_iter().find(|row| row["app"] == app)
    };
    for gateway in [&one, &other] {
        // They halve in a minute: on a busy machine the last is asked long after the first.
        let has = |app, least| {
            let units = of(gateway, app).and_then(|row| row["units"].as_u64());
            units.is_some_and(|units| units >= least)
        };
        wait_until("the gateway has heard of the other's callers", || {
            has("loud#a", 4) && has("o#a", 1) && has("p#a", 1)
        });
        let loud = of(gateway, "loud#a").unwrap();
        assert_eq!(
            (&loud["denied"], &loud["used"], &loud["left"]),
            (&json!(2), &json!(10), &json!(0))
        );
        let quiet = of(gateway, "o#a").unwrap();
        assert_eq!(
            (&quiet["denied"], &quiet["used"], &quiet["left"]),
            (&json!(0), &json!(2), &json!(8))
        );
        assert_eq!(top(gateway)["silent_gateways"], json!([]));
    }
    let peers = [&one, &other].map(|gateway| ask(gateway, "GET", "/peers", &Value::Null).json());
    for peers in &peers {
        assert_eq!(
            (&peers["store"], &peers["up"]),
            (&json!("redis"), &json!(true))
        );
        assert_eq!(peers["gateways"].as_array().unwrap().len(), 2);
        assert!(
            peers["gateways"]
                .as_array()
                .unwrap()
                .contains(&peers["gateway"])
        );
    }
    assert_ne!(peers[0]["gateway"], peers[1]["gateway"]);
    assert_eq!(peers[0]["epochs"], peers[1]["epochs"]);
    assert!(peers[0]["epochs"][0].is_string());
}

#[test]
fn without_its_store_nothing_is_reset_and_peers_say_so() {
    let mut server = Server::start();
    let gateway = gateway(&server.url());
    server.stop();
    wait_until("the breaker opens", || {
        ask(&gateway, "GET", "/peers", &Value::Null).json()["up"] == false
    });
    let answer = ask(
        &gateway,
        "POST",
        "/counters/reset",
        &json!({ "app": "o#a" }),
    );
    assert_eq!(answer.status, 503, "{}", answer.text());
    gateway.call("GET", "/o/a/t/hour", "");
    let top = ask(&gateway, "GET", "/top?by=app", &Value::Null).json();
    assert_eq!(top["top"][0]["units"], 1);
    assert_eq!(top["top"][0]["left"], Value::Null);
}
