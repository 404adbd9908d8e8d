//! Bodies of calls that totals are asked for: when they are read, and how large they may be.

use serde_json::json;

use super::{World, soon};

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
