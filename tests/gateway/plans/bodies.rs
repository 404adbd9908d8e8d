//! Bodies of calls that totals are asked for: when they are read, and how large they may be.

use std::process::Command;

use serde_json::{Value, json};

use super::World;
use crate::door::soon;
use crate::harness::BIN;

#[test]
fn a_body_that_drips_holds_no_unit_of_a_total() {
    let world = World::new(&["--unproven-share", "100"]);
    world.import(&json!({
        "app": "b#basic",
        "users": { "vic": { "friends": 0, "joined_groups": 1 } },
        "groups": { "7": { "group_members": 2 } },
    }));
    let last = [
        (
            "/b/basic/users/att/contacts/users/vic",
            "/b/basic/users/friend/contacts/users/vic",
        ),
        (
            "/b/basic/chatgroups/7/users/vic",
            "/b/basic/chatgroups/7/users/friend",
        ),
    ];
    for (of_one, of_another) in last {
        // It has come as far as its body, which does not end.
        let mut drips = world.gateway.connect();
        let head = format!(
            "POST {of_one} HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer bad\r\nContent-Length: 1000\r\n\r\n{{"
        );
        drips.send(head.as_bytes());
        soon("it is under way", || {
            world.gateway.metric("floodgate_requests_in_flight", &[]) >= 1.0
        });
        std::thread::sleep(std::time::Duration::from_millis(200));
        let genuine = world.gateway.call("POST", of_another, "");
        assert_eq!(genuine.status, 200, "{of_another}: {}", genuine.text());
    }
}

/// What `explain` says of a call with this body: its status, 200 where nothing refuses it.
fn explained(world: &World, path: &str, body: &str) -> (u16, String) {
    let file = world.dir.path().join("body");
    std::fs::write(&file, body).unwrap();
    let apps = world.dir.path().join("apps.toml");
    let ran = Command::new(BIN)
        .args(["explain", "--json", "--apps"])
        .arg(apps)
        .arg("--body")
        .arg(file)
        .args(["POST", path])
        .output()
        .unwrap();
    let said: Value = serde_json::from_slice(&ran.stdout).unwrap();
    match &said["refused"] {
        Value::Null => (200, String::new()),
        refused => (
            u16::try_from(refused["status"].as_u64().unwrap()).unwrap(),
            refused["reason"].as_str().unwrap().to_owned(),
        ),
    }
}

#[test]
fn a_body_too_large_to_be_counted_is_a_413_where_a_bounded_total_asks_for_it() {
    let world = World::new(&[]);
    let large = |text: &str| text.replace('X', &"a".repeat(70_000));
    let group = large(r#"{"groupname":"g","owner":"o","x":"X"}"#);
    let users = large(r#"[{"username":"u1","nickname":"X"},{"username":"u2"}]"#);
    let cases = [
        ("/f/free/chatgroups", &group, 413),
        ("/f/free/users", &users, 413),
        // No plan; and a total that is kept without a bound.
        ("/none/known/chatgroups", &group, 200),
        ("/p/pro/users", &users, 200),
    ];
    for (path, body, status) in cases {
        let answer = world.gateway.call("POST", path, body);
        let words = match status {
            413 => "the file size exceeds the maximum limit.",
            _ => "",
        };
        let told = (answer.status, &*answer.text());
        assert_eq!(told.0, status, "{path}: {}", told.1);
        assert!(told.1.contains(words), "{path}: {}", told.1);
        let said = explained(&world, path, body);
        assert_eq!((said.0, &*said.1), (status, words), "{path}");
    }
    // The answer has told how many they were.
    soon("both are counted", || {
        world.total("p#pro", "", "users")["count"] == 2
    });
    assert_eq!(world.total("p#pro", "", "users")["approximate"], false);
    let small = world
        .gateway
        .call("POST", "/p/pro/users", r#"{"username":"u3"}"#);
    assert_eq!(small.status, 200);
    soon("it is counted", || {
        world.total("p#pro", "", "users")["count"] == 3
    });
}
