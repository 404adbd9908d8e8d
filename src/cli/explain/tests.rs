//! What `explain` says.

use serde_json::{Value, json};

use super::*;
use crate::cli::sample;
use crate::identity::Auth;

/// 2026-11-21 15:30 UTC.
const NOW: Moment = Moment {
    mono_us: 5_000_000_000,
    unix_us: 1_795_275_000_000_000,
};

fn explained(selection: &str, method: &str, path: &str, body: Option<&[u8]>) -> Value {
    let rules = sample::rules();
    let policy = Policy {
        editions: rules.selection(selection).unwrap(),
        auth: Auth::RequireBearer,
        ipv6_prefix: 64,
        unknown_apps: Default::default(),
    };
    let asked = Asked {
        method,
        path,
        query: "",
        ip: [10, 0, 0, 1].into(),
        body,
        max_body: 2 << 20,
        now: NOW,
        pools: &[],
    };
    serde_json::to_value(explain(&rules, &policy, asked)).unwrap()
}

fn costs(explained: &Value) -> Vec<Value> {
    let limits = explained["limits"].as_array().unwrap();
    limits.iter().map(|limit| limit["cost"].clone()).collect()
}

#[test]
fn a_call_is_explained_with_every_limit_and_its_counter() {
    assert_eq!(
        explained("current", "GET", "/app-id/X1/users/Alice", None),
        json!({
            "route": "user-get",
            "edition": "v4",
            "pool": null,
            "method": "GET",
            "app": "x1",
            "user": "alice",
            "ip": "10.0.0.1",
            "limits": [
                {"name": "user-get:calls/s:app", "unit": "calls", "quota": 100, "window_s": 1,
                 "scope": ["app"], "group": null, "cost": 1,
                 "key": "user-get:calls/s:app{x1}"},
                {"name": "profile:calls/min:user", "unit": "calls", "quota": 5,
                 "window_s": 60, "scope": ["app", "user"], "group": "profile", "cost": 1,
                 "key": "profile:calls/min:user{x1,alice}"},
            ],
            "max_recipients": null,
            "max_body": 2_097_152,
        })
    );
}

#[test]
fn the_edition_is_that_of_the_address_form() {
    let by_key = explained("current", "GET", "/org/app/users/bob", None);
    assert_eq!(by_key["edition"], "v3");
    assert_eq!(by_key["app"], "org#app");
    assert_eq!(by_key["limits"][1]["key"], "user-get:calls/s:ip{10.0.0.1}");
    let named = explained("v4", "GET", "/org/app/users/bob", None);
    assert_eq!(named["edition"], "v4");
}

#[test]
fn messages_cost_their_recipients_and_calls_cost_one() {
    let path = "/org/app/messages/users";
    let body = br#"{"to":["a","b"],"rooms":["r"]}"#;
    let counted = explained("v4", "POST", path, Some(body));
    assert_eq!(costs(&counted), [json!(1), json!(2)]);
    assert_eq!(counted["max_recipients"], 3);
    let unknown = explained("v4", "POST", path, None);
    assert_eq!(costs(&unknown), [json!(1), json!(null)]);
}

#[test]
fn a_body_that_is_refused_is_charged_nothing() {
    let large = vec![b' '; MAX_COUNTED_BODY + 1];
    let bodies: [(&[u8], &str); 6] = [
        (
            b"{",
            "Request body is invalid. Please check body is correct.",
        ),
        (br#"{"to":[]}"#, "param to can't be empty"),
        (
            br#"{"to":[1,2,3,4],"rooms":["r"]}"#,
            "params to's size can't exceed limit 3",
        ),
        (br#"{"to":["a"]}"#, "param rooms can't be empty"),
        (
            br#"{"to":["a"],"rooms":[1,2]}"#,
            "params rooms's size can't exceed limit 1",
        ),
        (&large, "message is too large"),
    ];
    for (body, reason) in bodies {
        let explained = explained("v4", "POST", "/org/app/messages/users", Some(body));
        assert_eq!(
            explained["refused"],
            json!({"status": 400, "reason": reason})
        );
        assert_eq!(costs(&explained), [json!(0), json!(0)]);
    }
}

#[test]
fn a_call_that_no_route_takes_is_refused_and_its_address_pays() {
    let outside = explained("v4", "GET", "/users", None);
    assert_eq!(outside["refused"]["status"], 404);
    assert_eq!(outside["limits"][0]["key"], "rejected:calls/s:ip{10.0.0.1}");
    assert_eq!(costs(&outside), [json!(1)]);
    let method = explained("v4", "DELETE", "/org/app/messages/users", None);
    assert_eq!(method["refused"]["status"], 405);
    assert_eq!(method["route"], json!(null));
}

#[test]
fn the_words_say_what_the_json_says() {
    let rules = sample::rules();
    let policy = Policy {
        editions: rules.selection("v4").unwrap(),
        auth: Auth::RequireBearer,
        ipv6_prefix: 64,
        unknown_apps: Default::default(),
    };
    let asked = Asked {
        method: "POST",
        path: "/org/app/messages/users",
        query: "",
        ip: [10, 0, 0, 1].into(),
        body: None,
        max_body: 2 << 20,
        now: NOW,
        pools: &[],
    };
    let text = in_words(&explain(&rules, &policy, asked), asked.path);
    let expected = "\
POST /org/app/messages/users
  route       messages-users  发送单聊消息
  edition     v4
  app         org#app
  ip          10.0.0.1
  recipients  at most 3
  body        at most 64 KiB
  rooms       at most 1

  limit              cost     group  counter
  100 calls/s        1        -      messages-users:calls/s:app{org#app}
  6000 messages/min  by body  -      messages-users:messages/min:app{org#app}
";
    assert_eq!(text, expected);
}

#[test]
fn a_url_and_its_path_are_the_same_call() {
    for url in [
        "/o/a/users?x=1",
        "/o/a/users",
        "https://host/o/a/users#x",
        "http://host:80/o/a/users?to=/x",
    ] {
        assert_eq!(path_of(url).unwrap(), "/o/a/users", "{url}");
    }
    for url in ["https://host", "https://host?x", "http://host/"] {
        assert_eq!(path_of(url).unwrap(), "/", "{url}");
    }
    assert!(path_of("host/o/a").is_err());
    assert!(path_of("").is_err());
}
