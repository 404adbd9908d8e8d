//! What calls do to totals, over the embedded store.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use serde_json::json;

use super::*;
use crate::admission::{Admission, Policy, Refused, screen};
use crate::apps::UnknownApps;
use crate::head::Head;
use crate::identity::Auth;
use crate::limit::total::Total;
use crate::spec::SHIPPED;
use crate::spec::compile::{Layer, compile};
use crate::store::memory::{MemoryOptions, MemoryStore};

const APPS: &str = r#"
[[app]]
names = ["free#app", "freeid"]
plan = "free"
[[app]]
names = "basic#app"
plan = "basic"
[[app]]
names = "own#app"
totals = { users = 3, friends = 2, groups = "none", group_members = 4 }
[[app]]
names = "old#app"
plan = "free"
edition = "v1"
[[app]]
names = "none#app"
"#;

const NOW: Moment = Moment {
    mono_us: 10_000_000_000,
    unix_us: 1_700_000_000_000_000,
};
const NOW_S: u64 = 1_700_000_000;

struct World {
    rules: Ruleset,
    policy: Policy,
    spine: Admission<MemoryStore>,
}

/// A call that has been admitted.
struct Admitted {
    asked: Asked,
    plan: Plan,
}

fn ready<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("the embedded store waited"),
    }
}

fn rules(layer: &str, apps: &str) -> Ruleset {
    let layers = [SHIPPED, layer].map(|text| Layer {
        name: "routes.toml".to_owned(),
        text: text.to_owned(),
    });
    let mut rules = compile(&layers, KeyHasher::new((1, 2))).unwrap_or_else(|m| panic!("{m}"));
    let editions = rules.selection("current").unwrap();
    let apps = Layer {
        name: "apps.toml".to_owned(),
        text: apps.to_owned(),
    };
    rules
        .add_apps(&[apps], editions, &|_| Ok(None))
        .unwrap_or_else(|m| panic!("{m}"));
    rules
}

impl World {
    fn new(layer: &str) -> Self {
        Self::with_apps(layer, APPS)
    }

    fn with_apps(layer: &str, apps: &str) -> Self {
        let rules = rules(layer, apps);
        Self {
            policy: Policy {
                editions: rules.selection("current").unwrap(),
                auth: Auth::RequireBearer,
                ipv6_prefix: 64,
                unknown_apps: UnknownApps::Allow,
            },
            rules,
            spine: Admission::new(MemoryStore::new(MemoryOptions::default())),
        }
    }

    fn call(&self, method: &str, path: &str) -> Call {
        let head = Head {
            method,
            raw_path: path,
            ip: [10, 0, 0, 1].into(),
            has_bearer: true,
        };
        screen(&self.rules, &self.policy, &head, path).unwrap()
    }

    /// Asks; `None`: totals have no part in the call. A total is believed for a minute.
    fn ask(&self, method: &str, path: &str, body: &str) -> Option<Result<Admitted, Full>> {
        let call = self.call(method, path);
        let since_s = NOW_S - 60;
        let (asked, charges) =
            asked(&self.rules, &call, path, Some(body.as_bytes()), since_s).unwrap()?;
        let mut plan = self.spine.plan(&self.rules, &call, 1, NOW);
        plan.totals = charges;
        Some(match ready(self.spine.decide(plan, NOW)) {
            Ok(admitted) => Ok(Admitted {
                asked,
                plan: *admitted.plan,
            }),
            Err(Refused::Full(full)) => Err(*full),
            Err(other) => panic!("{other:?}"),
        })
    }

    fn admit(&self, method: &str, path: &str, body: &str) -> Admitted {
        match self.ask(method, path, body) {
            Some(Ok(admitted)) => admitted,
            Some(Err(full)) => panic!("{method} {path}: {full:?}"),
            None => panic!("{method} {path}: no totals"),
        }
    }

    fn full(&self, method: &str, path: &str, body: &str) -> Full {
        match self.ask(method, path, body) {
            Some(Err(full)) => full,
            _ => panic!("{method} {path}: not refused"),
        }
    }

    fn settle(&self, mut admitted: Admitted, told: Told<'_>) {
        let changes = admitted.asked.settle(&mut admitted.plan, told, NOW);
        let app = admitted.asked.app_key();
        self.spine.store_totals(app, &changes, NOW);
    }

    fn answer(&self, admitted: Admitted, status: u16, body: &Value) {
        let body = body.to_string();
        let body = Some(body.as_bytes());
        self.settle(admitted, Told::Answered { status, body });
    }

    /// Asks, and has it answered.
    fn done(&self, method: &str, path: &str, body: &str, status: u16, answer: &Value) {
        let admitted = self.admit(method, path, body);
        self.answer(admitted, status, answer);
    }

    fn total(&self, kind: &str, app: &str, whose: &str) -> Total {
        let app = self.rules.apps.find(app).unwrap();
        let key = key(Kind::named(kind).unwrap(), app, whose);
        let read = [(key, Change::Read)];
        ready(self.spine.change_totals(app.key, &read, NOW)).unwrap()[0]
    }

    fn count(&self, kind: &str, app: &str, whose: &str) -> u64 {
        self.total(kind, app, whose).count
    }

    fn set(&self, kind: &str, app: &str, whose: &str, count: u64, now_s: u64) {
        let app = self.rules.apps.find(app).unwrap();
        let key = key(Kind::named(kind).unwrap(), app, whose);
        let set = [(key, Change::Set { count, now_s })];
        ready(self.spine.change_totals(app.key, &set, NOW)).unwrap();
    }
}

fn users(names: &[&str]) -> Value {
    let users = names.iter().map(|name| json!({ "username": name }));
    json!({ "entities": users.collect::<Vec<_>>() })
}

#[test]
fn users_are_made_up_to_the_figure_and_none_more() {
    let world = World::new("");
    world.set("users", "free#app", "", 98, NOW_S);
    let one = r#"{"username":"a","password":"1"}"#;
    let two = r#"[{"username":"a"},{"username":"b"}]"#;
    world.done("POST", "/free/app/users", one, 200, &users(&["a"]));
    let full = world.full("POST", "/free/app/users", two);
    assert_eq!((full.kind, full.whose), (Kind::Users, None));
    assert_eq!(
        world.count("users", "free#app", ""),
        99,
        "a refused call takes nothing"
    );
    // The same app by its other name.
    world.done("POST", "/app-id/FreeID/users", one, 200, &users(&["b"]));
    assert_eq!(
        world.full("POST", "/app-id/freeid/users", one).kind,
        Kind::Users
    );
    assert_eq!(world.count("users", "freeid", ""), 100);
}

#[test]
fn a_refusal_by_a_total_spends_no_rate() {
    let world = World::new("");
    world.set("users", "free#app", "", 100, NOW_S);
    for _ in 0..500 {
        world.full("POST", "/free/app/users", "{}");
    }
    world.set("users", "free#app", "", 0, NOW_S);
    world.admit("POST", "/free/app/users", "{}");
}

#[test]
fn a_batch_confirms_what_the_answer_names_and_gives_the_rest_back() {
    let world = World::new("");
    let three = r#"[{"username":"a"},{"username":"b"},{"username":"c"}]"#;
    let admitted = world.admit("POST", "/free/app/users", three);
    assert_eq!(world.count("users", "free#app", ""), 3);
    let mut answer = users(&["a"]);
    answer["data"] = json!([{ "username": "b", "registerUserFailReason": "exists" }]);
    world.answer(admitted, 200, &answer);
    assert_eq!(world.count("users", "free#app", ""), 1);
    assert!(!world.total("users", "free#app", "").approximate);
}

#[test]
fn a_failure_gives_all_back_and_a_lost_answer_none() {
    let world = World::new("");
    let count = || world.count("users", "free#app", "");
    let ask = || world.admit("POST", "/free/app/users", "[{},{}]");
    for status in [301, 400, 403, 429, 500, 503] {
        world.answer(ask(), status, &json!({ "error": "x" }));
        assert_eq!(count(), 0, "{status}");
    }
    world.settle(ask(), Told::Nothing);
    assert_eq!(count(), 0);
    assert!(!world.total("users", "free#app", "").approximate);
    let lost = [
        Told::Lost,
        Told::Answered {
            status: 502,
            body: Some(b"{}"),
        },
        Told::Answered {
            status: 504,
            body: None,
        },
        Told::Answered {
            status: 200,
            body: None,
        },
        Told::Answered {
            status: 200,
            body: Some(b"{\"entities\":["),
        },
        Told::Answered {
            status: 200,
            body: Some(b"{}"),
        },
    ];
    for (nth, told) in (1..).zip(lost) {
        world.settle(ask(), told);
        assert_eq!(count(), 2 * nth, "{told:?}");
        assert!(world.total("users", "free#app", "").approximate);
    }
    world.set("users", "free#app", "", 1, NOW_S);
    assert!(!world.total("users", "free#app", "").approximate);
}

#[test]
fn deletions_lower_a_total_and_never_below_0() {
    let world = World::new("");
    world.set("users", "free#app", "", 5, NOW_S);
    for (kind, count) in [
        ("friends", 4),
        ("joined_groups", 3),
        ("joined_chatrooms", 2),
    ] {
        world.set(kind, "free#app", "bob", count, NOW_S);
    }
    world.done("DELETE", "/free/app/users/Bob", "", 200, &users(&["bob"]));
    assert_eq!(world.count("users", "free#app", ""), 4);
    for kind in ["friends", "joined_groups"] {
        assert_eq!(world.count(kind, "free#app", "bob"), 0, "{kind}");
    }
    world.done(
        "DELETE",
        "/free/app/users/x",
        "",
        404,
        &json!({ "error": "x" }),
    );
    assert_eq!(world.count("users", "free#app", ""), 4);
    world.done(
        "DELETE",
        "/free/app/users",
        "",
        200,
        &users(&["a", "b", "c"]),
    );
    assert_eq!(world.count("users", "free#app", ""), 1);
    world.done(
        "DELETE",
        "/free/app/users",
        "",
        200,
        &users(&["d", "e", "f"]),
    );
    assert_eq!(world.count("users", "free#app", ""), 0);
}

#[test]
fn a_deletion_under_way_across_an_import_is_not_taken_off_it() {
    let world = World::new("");
    let gone = users(&["a", "b", "c"]);
    world.set("users", "free#app", "", 5, NOW_S);
    let under_way = world.admit("DELETE", "/free/app/users", "");
    world.set("users", "free#app", "", 2, NOW_S);
    world.answer(under_way, 200, &gone);
    let total = world.total("users", "free#app", "");
    assert_eq!((total.count, total.approximate), (2, true));
    world.set("group_members", "free#app", "7", 5, NOW_S);
    let one = json!({ "data": { "result": true } });
    let path = "/free/app/chatgroups/7/users/x";
    let under_way = world.admit("DELETE", path, "");
    world.set("group_members", "free#app", "7", 4, NOW_S);
    world.answer(under_way, 200, &one);
    assert_eq!(world.count("group_members", "free#app", "7"), 4);
    // The next one knows of it.
    world.done("DELETE", path, "", 200, &one);
    assert_eq!(world.count("group_members", "free#app", "7"), 3);
    world.set("users", "free#app", "", 4, NOW_S);
    world.done("DELETE", "/free/app/users", "", 200, &gone);
    let total = world.total("users", "free#app", "");
    assert_eq!((total.count, total.approximate), (1, false));
}

#[test]
fn friends_are_of_both_and_refused_by_either() {
    let world = World::new("");
    let path = "/own/app/users/Ann/contacts/users/bob";
    world.done("POST", path, "", 200, &json!({}));
    for user in ["ann", "bob"] {
        assert_eq!(world.count("friends", "own#app", user), 1, "{user}");
    }
    world.set("friends", "own#app", "bob", 2, NOW_S);
    let full = world.full("POST", path, "");
    assert_eq!(
        (full.kind, full.whose.as_deref()),
        (Kind::Friends, Some("bob"))
    );
    assert_eq!(world.count("friends", "own#app", "ann"), 1);
    world.done("DELETE", path, "", 200, &json!({}));
    assert_eq!(world.count("friends", "own#app", "ann"), 0);
    assert_eq!(world.count("friends", "own#app", "bob"), 1);
    world.set("friends", "own#app", "ann", 0, NOW_S);
    let import = r#"{"usernames":["x","y","x"]}"#;
    world.done(
        "POST",
        "/own/app/users/ann/contacts/import",
        import,
        200,
        &json!({}),
    );
    assert_eq!(world.count("friends", "own#app", "ann"), 2);
    assert_eq!(world.count("friends", "own#app", "x"), 1);
}

#[test]
fn a_new_group_has_its_owner_and_members_in_all_totals() {
    let world = World::new("");
    let body = r#"{"groupname":"g","owner":"Ann","members":["bob","cy"]}"#;
    let answer = json!({ "data": { "groupid": "77" } });
    world.done("POST", "/basic/app/chatgroups", body, 200, &answer);
    assert_eq!(world.count("groups", "basic#app", ""), 1);
    assert_eq!(world.count("group_members", "basic#app", "77"), 3);
    for user in ["ann", "bob", "cy"] {
        assert_eq!(world.count("joined_groups", "basic#app", user), 1, "{user}");
    }
    world.done(
        "DELETE",
        "/basic/app/chatgroups/77",
        "",
        200,
        &json!({ "data": {} }),
    );
    assert_eq!(world.count("groups", "basic#app", ""), 0);
    assert_eq!(world.count("group_members", "basic#app", "77"), 0);
}

#[test]
fn a_new_group_with_more_members_than_a_group_may_have_is_refused_at_once() {
    let world = World::new("");
    let members: Vec<String> = (0..300).map(|n| format!("u{n}")).collect();
    let body = |n: usize| json!({ "owner": "ann", "members": members[..n] }).to_string();
    assert_eq!(
        world.full("POST", "/basic/app/chatgroups", &body(300)).kind,
        Kind::GroupMembers
    );
    let admitted = world.admit("POST", "/basic/app/chatgroups", &body(299));
    assert_eq!(
        admitted.plan.totals.len(),
        2 + 299,
        "no store is asked for what is new"
    );
}

#[test]
fn an_owner_who_is_named_among_the_members_is_one_of_them() {
    let world = World::new("");
    let members: Vec<String> = (0..300).map(|n| format!("u{n}")).collect();
    let body = |owner: &str| json!({ "owner": owner, "members": members }).to_string();
    let path = "/basic/app/chatgroups";
    assert_eq!(
        world.full("POST", path, &body("ann")).kind,
        Kind::GroupMembers
    );
    let answer = json!({ "data": { "groupid": "77" } });
    world.done("POST", path, &body("U7"), 200, &answer);
    assert_eq!(world.count("group_members", "basic#app", "77"), 300);
    assert_eq!(world.count("joined_groups", "basic#app", "u7"), 1);
}

#[test]
fn the_last_of_many_names_is_asked_and_counted_as_the_first() {
    let world = World::new("");
    let names: Vec<String> = (0..200).map(|n| format!("u{n}")).collect();
    let group = json!({ "owner": "ann", "members": names }).to_string();
    let path = "/basic/app/chatgroups";
    world.set("joined_groups", "basic#app", "u199", 600, NOW_S);
    let full = world.full("POST", path, &group);
    assert_eq!(full.kind, Kind::JoinedGroups);
    assert_eq!(full.whose.as_deref(), Some("u199"));
    world.set("joined_groups", "basic#app", "u199", 599, NOW_S);
    let answer = json!({ "data": { "groupid": "77" } });
    world.done("POST", path, &group, 200, &answer);
    assert_eq!(world.count("joined_groups", "basic#app", "u199"), 600);
    assert_eq!(world.count("joined_groups", "basic#app", "u150"), 1);
}

#[test]
fn a_call_that_names_more_than_are_followed_is_refused_where_each_is_counted() {
    let world = World::new("");
    let names: Vec<String> = (0..=MOST_HOLDERS).map(|n| format!("u{n}")).collect();
    let path = "/own/app/users/ann/contacts/import";
    let call = world.call("POST", path);
    let asked = |n: usize| {
        let body = json!({ "usernames": names[..n] }).to_string();
        asked(&world.rules, &call, path, Some(body.as_bytes()), 0).map(|_| ())
    };
    assert_eq!(asked(MOST_HOLDERS), Ok(()));
    let cap = Cap {
        field: "usernames".into(),
        max: 1000,
    };
    assert_eq!(asked(MOST_HOLDERS + 1), Err(PriceError::TooManyNames(cap)));
    // Nobody asks how many groups each of them is in.
    let body = json!({ "owner": "ann", "members": names }).to_string();
    let apps = "[[app]]\nnames = \"ent#app\"\nplan = \"enterprise\"\n";
    let world = World::with_apps("", apps);
    world.admit("POST", "/ent/app/chatgroups", &body);
}

#[test]
fn members_that_the_answer_names_were_added_and_no_others() {
    let world = World::new("");
    let body = r#"{"usernames":["a","b","B","c"]}"#;
    let path = "/basic/app/chatgroups/7/users";
    let admitted = world.admit("POST", path, body);
    assert_eq!(world.count("group_members", "basic#app", "7"), 3);
    world.answer(
        admitted,
        200,
        &json!({ "data": { "newmembers": ["a", "C"] } }),
    );
    assert_eq!(world.count("group_members", "basic#app", "7"), 2);
    let joined = |user| world.count("joined_groups", "basic#app", user);
    assert_eq!((joined("a"), joined("b"), joined("c")), (1, 0, 1));
    let gone =
        json!({ "data": [{ "result": true, "user": "a" }, { "result": false, "user": "b" }] });
    world.done(
        "DELETE",
        "/basic/app/chatgroups/7/users/a%2Cb",
        "",
        200,
        &gone,
    );
    assert_eq!(world.count("group_members", "basic#app", "7"), 1);
    assert_eq!((joined("a"), joined("b"), joined("c")), (0, 0, 1));
    let one = json!({ "data": { "result": true, "user": "c" } });
    world.done(
        "POST",
        "/basic/app/chatgroups/7/blocks/users/c",
        "",
        200,
        &one,
    );
    assert_eq!(
        (world.count("group_members", "basic#app", "7"), joined("c")),
        (0, 0)
    );
    let not = json!({ "data": { "result": false } });
    world.done("POST", "/basic/app/chatgroups/7/users/d", "", 200, &not);
    assert_eq!(
        (world.count("group_members", "basic#app", "7"), joined("d")),
        (0, 0)
    );
}

#[test]
fn a_user_in_too_many_groups_is_named() {
    let world = World::new("");
    world.set("joined_groups", "basic#app", "bob", 600, NOW_S);
    let full = world.full("POST", "/basic/app/chatgroups/7/users/Bob", "");
    assert_eq!(
        (full.kind, full.whose.as_deref()),
        (Kind::JoinedGroups, Some("bob"))
    );
    assert_eq!(
        world.count("group_members", "basic#app", "7"),
        0,
        "all or nothing"
    );
    let batch = r#"{"usernames":["ann","bob"]}"#;
    assert_eq!(
        world
            .full("POST", "/basic/app/chatgroups/7/users", batch)
            .kind,
        Kind::JoinedGroups
    );
    assert_eq!(world.count("joined_groups", "basic#app", "ann"), 0);
}

#[test]
fn a_free_app_has_no_chatroom_whatever_is_known() {
    let world = World::new("");
    let body = r#"{"name":"r","owner":"ann"}"#;
    assert_eq!(
        world.full("POST", "/free/app/chatrooms", body).kind,
        Kind::Chatrooms
    );
    let path = "/free/app/chatrooms/5/users/ann";
    assert_eq!(world.full("POST", path, "").kind, Kind::JoinedChatrooms);
    // The oldest edition has none for the app, and no bound for its users.
    assert_eq!(
        world.full("POST", "/old/app/chatrooms", body).kind,
        Kind::Chatrooms
    );
    assert!(
        world
            .ask("POST", "/old/app/chatrooms/5/users/ann", "")
            .is_none()
    );
    let reporting = World::new(
        "[totals.chatrooms]\nmode = \"report\"\n[totals.joined_chatrooms]\nmode = \"off\"\n",
    );
    let admitted = reporting.admit("POST", "/free/app/chatrooms", body);
    assert!(admitted.plan.totals[0].over);
}

#[test]
fn a_total_that_was_not_checked_lately_reports_and_counts() {
    let world = World::new("");
    for checked_s in [0, NOW_S - 61] {
        if checked_s > 0 {
            world.set("users", "own#app", "", 3, checked_s);
        }
        let admitted = world.admit("POST", "/own/app/users", "[{},{},{},{}]");
        assert!(admitted.plan.totals[0].over);
        world.answer(admitted, 200, &users(&["a", "b", "c", "d"]));
    }
    assert_eq!(world.count("users", "own#app", ""), 7);
    world.set("users", "own#app", "", 3, NOW_S - 60);
    world.full("POST", "/own/app/users", "{}");
}

#[test]
fn the_backends_own_plan_error_corrects_a_total() {
    let world = World::new("");
    let refuse = |error: &str, text: &str| json!({ "error": error, "error_description": text });
    let limited = refuse(
        "resource_limited",
        "You have exceeded the limit of the free edition.",
    );
    world.done("POST", "/free/app/users", "{}", 429, &limited);
    assert_eq!(world.count("users", "free#app", ""), 100);
    world.set("users", "free#app", "", 7, NOW_S);
    world.done("POST", "/free/app/users", "[{},{},{}]", 429, &limited);
    assert_eq!(
        world.count("users", "free#app", ""),
        98,
        "three had no room: 98 at least"
    );
    let rate = refuse("reach_limit", "This request has reached api limit");
    world.done("POST", "/free/app/users", "{}", 429, &rate);
    assert_eq!(world.count("users", "free#app", ""), 98);
    for (path, body, text, kind, whose, count) in [
        (
            "/chatgroups",
            r#"{"owner":"a"}"#,
            "appKey:basic#app has create too many groups!",
            "groups",
            "",
            100_000,
        ),
        (
            "/chatrooms",
            r#"{"owner":"a"}"#,
            "appKey:basic#app has create too many chatrooms!",
            "chatrooms",
            "",
            100,
        ),
        (
            "/chatgroups/7/users",
            r#"{"usernames":["x","y"]}"#,
            "user y has joined too many groups!",
            "joined_groups",
            "y",
            600,
        ),
        (
            "/chatgroups/8/users/x",
            "",
            "members size is greater than max user size !",
            "group_members",
            "8",
            300,
        ),
        (
            "/users/ann/contacts/users/x",
            "",
            "user contact number exceed limit",
            "friends",
            "ann",
            // It may be full, or the other.
            0,
        ),
    ] {
        let path = format!("/basic/app{path}");
        world.done("POST", &path, body, 403, &refuse("exceed_limit", text));
        assert_eq!(world.count(kind, "basic#app", whose), count, "{text}");
    }
    assert_eq!(world.count("joined_groups", "basic#app", "x"), 0);
    assert_eq!(world.count("friends", "basic#app", "x"), 0);
    // One without a bound has nothing to be corrected by.
    world.done("POST", "/basic/app/users", "{}", 429, &limited);
    assert_eq!(world.count("users", "basic#app", ""), 0);
}

#[test]
fn the_size_of_all_attributes_is_what_the_backend_tells() {
    let world = World::new("");
    let put = "/basic/app/metadata/user/ann";
    world.admit("PUT", put, "");
    let tell = |bytes: u64| {
        let admitted = world.admit("GET", "/basic/app/metadata/user/capacity", "");
        world.answer(admitted, 200, &json!({ "data": bytes }));
    };
    tell((10 << 30) - 1);
    world.admit("PUT", put, "");
    tell(10 << 30);
    assert_eq!(world.full("PUT", put, "").kind, Kind::UserAttributes);
    assert_eq!(world.count("user_attributes", "basic#app", ""), 10 << 30);
}

#[test]
fn what_the_store_could_not_be_asked_for_is_counted_by_the_answer() {
    let world = World::new("");
    let unasked = |told: Told<'_>| {
        let call = world.call("POST", "/free/app/users");
        let (asked, charges) = asked(&world.rules, &call, "/free/app/users", Some(b"[{},{}]"), 0)
            .unwrap()
            .unwrap();
        let plan = Plan {
            totals: charges,
            ..Plan::default()
        };
        world.settle(Admitted { asked, plan }, told);
        world.count("users", "free#app", "")
    };
    let body = users(&["a"]).to_string();
    let body = Some(body.as_bytes());
    assert_eq!(
        unasked(Told::Answered {
            status: 400,
            body: None
        }),
        0
    );
    assert_eq!(unasked(Told::Answered { status: 200, body }), 1);
    assert_eq!(unasked(Told::Lost), 3);
}

#[test]
fn an_answer_that_says_more_was_made_than_was_asked_for_is_believed() {
    let world = World::new("");
    world.set("users", "free#app", "", 98, NOW_S);
    let nested = r#"[[{"username":"a"},{"username":"b"},{"username":"c"}]]"#;
    let answer = users(&["a", "b", "c"]);
    world.done("POST", "/free/app/users", nested, 200, &answer);
    let total = world.total("users", "free#app", "");
    assert_eq!((total.count, total.approximate), (101, true));
    world.full("POST", "/free/app/users", "{}");
    // A list that is empty, as far as can be seen.
    world.set("users", "free#app", "", 98, NOW_S);
    world.done("POST", "/free/app/users", "[]", 200, &users(&[]));
    assert!(!world.total("users", "free#app", "").approximate);
    world.done("POST", "/free/app/users", "[]", 200, &users(&["a"]));
    let total = world.total("users", "free#app", "");
    assert_eq!((total.count, total.approximate), (99, true));
}

#[test]
fn names_in_another_shape_than_a_list_are_not_free() {
    let path = "/own/app/chatgroups/7/users";
    let new = |names: &[&str]| json!({ "data": { "newmembers": names } });
    for (body, most, made) in [
        (r#"{"usernames":"a,b,c"}"#, 3, 2),
        (r#"{"usernames":["a,b"]}"#, 2, 2),
        (r#"{"usernames":[["a"]]}"#, 1, 1),
        (r#"{"usernames":{"x":"a"}}"#, 1, 1),
        (r#"{"usernames":[{"user":"a"},{"user":"b"}]}"#, 2, 2),
        (r#"{"usernames":[true]}"#, 1, 1),
        (r#"[{"usernames":["a"]},{"usernames":["a","b"]}]"#, 2, 2),
        (r#"[[{"usernames":["a"]}],7,"x",null,1.5,false,-1]"#, 1, 1),
    ] {
        let world = World::new("");
        let members = || world.count("group_members", "own#app", "7");
        let admitted = world.admit("POST", path, body);
        assert_eq!(members(), most, "{body}");
        let count = usize::try_from(made).unwrap();
        world.answer(admitted, 200, &new(&["a", "b"][..count]));
        assert_eq!(members(), made, "{body}");
        world.set("group_members", "own#app", "7", 4, NOW_S);
        world.full("POST", path, body);
    }
    // Who is made a member is in one group more, whatever the list looked like.
    let world = World::with_apps(
        "",
        "[[app]]\nnames = \"own#app\"\ntotals = { group_members = 9, joined_groups = 2 }\n",
    );
    let joined = |user| world.count("joined_groups", "own#app", user);
    let odd = r#"{"usernames":[["a"],"b"]}"#;
    world.done("POST", path, odd, 200, &new(&["A", "b"]));
    world.done("POST", path, r#"{"usernames":"c,d"}"#, 200, &new(&["c"]));
    assert_eq!(
        [joined("a"), joined("b"), joined("c"), joined("d")],
        [1, 1, 1, 0]
    );
}

#[test]
fn a_deletion_that_the_answer_denies_lowers_nothing() {
    let world = World::new("");
    let groups = || world.total("groups", "basic#app", "");
    world.set("groups", "basic#app", "", 3, NOW_S);
    world.set("group_members", "basic#app", "7", 5, NOW_S);
    let path = "/basic/app/chatgroups/7";
    for answer in [
        json!({ "data": { "success": false, "groupid": "7" } }),
        json!({ "data": [{ "success": false, "groupid": "7" }] }),
        json!({ "data": { "success": "false" } }),
        json!({ "success": false }),
    ] {
        world.done("DELETE", path, "", 200, &answer);
        let members = world.count("group_members", "basic#app", "7");
        assert_eq!((groups().count, members), (3, 5), "{answer}");
    }
    assert!(!groups().approximate);
    let denied =
        json!({ "data": [{ "success": false, "user": "a" }, { "result": true, "user": "b" }] });
    world.done(
        "DELETE",
        "/basic/app/chatgroups/7/users/a,b",
        "",
        200,
        &denied,
    );
    assert_eq!(world.count("group_members", "basic#app", "7"), 4);
    let done = json!({ "data": { "success": true, "groupid": "7" } });
    world.done("DELETE", path, "", 200, &done);
    let members = world.count("group_members", "basic#app", "7");
    assert_eq!((groups().count, members), (2, 0));
}

#[test]
fn a_batch_of_which_nobody_knows_how_many_were_deleted_is_in_doubt() {
    let world = World::new("");
    world.set("users", "free#app", "", 5, NOW_S);
    world.done(
        "DELETE",
        "/free/app/users",
        "",
        200,
        &json!({ "entities": "x" }),
    );
    let total = world.total("users", "free#app", "");
    assert_eq!((total.count, total.approximate), (5, true));
}

#[test]
fn a_body_that_can_be_read_in_two_ways_is_refused() {
    let world = World::new("");
    let asked = |path: &str, body: &str| {
        let call = world.call("POST", path);
        asked(&world.rules, &call, path, Some(body.as_bytes()), 0).map(|_| ())
    };
    let path = "/basic/app/chatgroups/7/users";
    for body in [
        "",
        "{",
        "[] x",
        r#"{"usernames":["a"],"usernames":["b"]}"#,
        r#"{"usernames":["a"],"Usernames":["b"]}"#,
        r#"{"userNames":["full"]}"#,
        "{\"\u{17f}erNames\":[\"full\"],\"u\u{17f}ernames\":[\"full\"]}",
        "{\"usernames\":[\"\\ud800\"]}",
        r#"[{"usernames":["a"],"usernames":["b"]}]"#,
    ] {
        assert_eq!(asked(path, body), Err(PriceError::Malformed), "{body}");
    }
    for body in [
        r#"{"usernames":null}"#,
        r#"{"other":1,"other":2}"#,
        "[]",
        r#"{"usernames":[1,{}]}"#,
    ] {
        assert_eq!(asked(path, body), Ok(()), "{body}");
    }
    // Of an app without a plan nothing is read.
    assert_eq!(asked("/none/app/chatgroups/7/users", "{"), Ok(()));
}

#[test]
fn only_apps_with_a_plan_or_figures_have_totals() {
    let world = World::new("");
    assert!(world.ask("POST", "/none/app/users", "{}").is_none());
    assert!(world.ask("POST", "/un/known/users", "{}").is_none());
    assert!(world.ask("GET", "/free/app/users", "").is_none());
    let find = |name: &str| known(&world.rules, &world.policy, name).map(|(app, _)| app.name());
    assert_eq!(find("FreeID"), Some("free#app"));
    assert_eq!(find("own#app"), Some("own#app"));
    assert_eq!((find("none#app"), find("un#known")), (None, None));
}

#[test]
fn figures_are_those_of_the_pages() {
    let world = World::new("");
    let rules = &world.rules;
    let all = u64::MAX;
    let edition = |name: &str| rules.selection(name).unwrap().0;
    let gib = 10 << 30;
    for name in ["v2", "v3", "v4"] {
        for (kind, figures) in [
            (Kind::Users, [100, all, all, all]),
            (Kind::Friends, [100, 3_000, all, all]),
            (Kind::Groups, [100, 100_000, all, all]),
            (Kind::GroupMembers, [100, 300, 3_000, 8_000]),
            (Kind::JoinedGroups, [100, 600, all, all]),
            (Kind::Chatrooms, [0, 100, all, all]),
            (Kind::JoinedChatrooms, [0, all, all, all]),
            (Kind::UserAttributes, [gib, gib, gib, gib]),
        ] {
            let printed = rules.totals[kind.index()].editions[edition(name).0]
                .as_ref()
                .unwrap();
            assert_eq!(printed.most, figures, "{name} {kind:?}");
            assert!(!printed.sources.is_empty());
        }
    }
    let v1 = rules.totals[Kind::JoinedChatrooms.index()].editions[edition("v1").0].as_ref();
    assert_eq!(v1.unwrap().most, [all; 4]);
}

#[test]
fn each_figure_of_a_plan_holds_at_it_and_lets_pass_below_it() {
    const ALL: u64 = u64::MAX;
    const GIB10: u64 = 10 << 30;
    let plans = ["free", "basic", "advanced", "enterprise"];
    let mut apps = String::new();
    for edition in ["v1", "v2", "v3"] {
        for plan in plans {
            apps += &format!(
                "[[app]]\nnames = \"{edition}#{plan}\"\nplan = \"{plan}\"\nedition = \"{edition}\"\n"
            );
        }
    }
    let world = World::with_apps("", &apps);
    let group = r#"{"groupname":"g","owner":"ann"}"#;
    let room = r#"{"name":"r","owner":"ann"}"#;
    for edition in ["v1", "v2", "v3"] {
        let no_rooms = if edition == "v1" { ALL } else { 0 };
        for (kind, whose, method, path, body, figures) in [
            ("users", "", "POST", "users", "{}", [100, ALL, ALL, ALL]),
            (
                "friends",
                "ann",
                "POST",
                "users/ann/contacts/users/bob",
                "",
                [100, 3_000, ALL, ALL],
            ),
            (
                "groups",
                "",
                "POST",
                "chatgroups",
                group,
                [100, 100_000, ALL, ALL],
            ),
            (
                "group_members",
                "7",
                "POST",
                "chatgroups/7/users/bob",
                "",
                [100, 300, 3_000, 8_000],
            ),
            (
                "joined_groups",
                "bob",
                "POST",
                "chatgroups/8/users/bob",
                "",
                [100, 600, ALL, ALL],
            ),
            (
                "chatrooms",
                "",
                "POST",
                "chatrooms",
                room,
                [0, 100, ALL, ALL],
            ),
            (
                "joined_chatrooms",
                "ann",
                "POST",
                "chatrooms/5/users/ann",
                "",
                [no_rooms, ALL, ALL, ALL],
            ),
            (
                "user_attributes",
                "",
                "PUT",
                "metadata/user/ann",
                "nickname=a",
                [GIB10; 4],
            ),
        ] {
            for (plan, figure) in plans.into_iter().zip(figures) {
                let app = format!("{edition}#{plan}");
                let path = format!("/{edition}/{plan}/{path}");
                let what = format!("{app} {kind}");
                let ask = |count| {
                    world.set(kind, &app, whose, count, NOW_S);
                    let asked = world.ask(method, &path, body);
                    asked.map(|asked| asked.map(|call| world.settle(call, Told::Nothing)))
                };
                if figure == ALL {
                    assert!(!matches!(ask(1 << 40), Some(Err(_))), "{what}");
                    continue;
                }
                let Some(Err(full)) = ask(figure) else {
                    panic!("{what}: {figure} and one more");
                };
                assert_eq!(full.kind.as_str(), kind, "{what}");
                if figure > 0 {
                    assert!(matches!(ask(figure - 1), Some(Ok(_))), "{what}");
                }
                assert!(matches!(ask(figure + 1), Some(Err(_))), "{what}");
            }
        }
    }
}

#[test]
fn figures_and_rules_can_be_changed_and_mistakes_say_what_to_write() {
    let rules = rules(
        "[totals.users]\nv3 = { free = 200 }\nmode = \"report\"\n",
        APPS,
    );
    let editions = &rules.totals[Kind::Users.index()].editions;
    let v3 = rules.selection("v3").unwrap().0;
    assert_eq!(editions[v3.0].as_ref().unwrap().most[0], 200);
    for (text, message) in [
        ("[totals.user]\n", "did you mean `users`?"),
        (
            "[totals.users]\nv3 = { free = -1 }\n",
            "\"unlimited\" or \"none\"",
        ),
        ("[totals.users]\nv3 = { fre = 1 }\n", "did you mean `free`?"),
        ("[totals.users]\nv9 = { free = 1 }\n", "unknown key"),
        (
            "[[route]]\nname = \"users-post\"\nmakes = [{ total = \"users\", count = \"bodys\" }]\n",
            "no count",
        ),
        (
            "[[route]]\nname = \"users-post\"\nmakes = [{ of = \"x\" }]\n",
            "total = \"users\"",
        ),
        (
            "[[route]]\nname = \"users-post\"\nmakes = [{ total = \"users\", of = \"x\" }]\n",
            "leave `of`",
        ),
        (
            "[[route]]\nname = \"users-post\"\nmakes = [{ total = \"friends\" }]\n",
            "whose they are",
        ),
        (
            "[[route]]\nname = \"users-post\"\nmakes = [{ total = \"friends\", of = \"{username}\" }]\n",
            "at one place",
        ),
        (
            "[[route]]\nname = \"users-post\"\nfrees = [{ total = \"users\", count = \"answer\" }]\n",
            "made =",
        ),
        (
            "[[route]]\nname = \"users-delete\"\nfrees = [{ total = \"users\", count = \"body\" }]\n",
            "no body",
        ),
        (
            "[[route]]\nname = \"users-get\"\ntells = { total = \"friends\", at = \"x\" }\n",
            "an app alone",
        ),
    ] {
        let layers = [SHIPPED, text].map(|text| Layer {
            name: "own.toml".to_owned(),
            text: text.to_owned(),
        });
        let mistakes = compile(&layers, KeyHasher::new((1, 2)))
            .unwrap_err()
            .to_string();
        assert!(mistakes.contains(message), "{text}: {mistakes}");
    }
}
