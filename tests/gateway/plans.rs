//! What an app may hold by its plan: totals over a backend that has its own truth.

#[path = "plans/backend.rs"]
pub(crate) mod backend;
#[path = "plans/bodies.rs"]
mod bodies;

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use self::backend::Backend;
use crate::door::soon;
use crate::harness::{Answer, BIN, Connection, Gateway, Start};

const TOKEN: &str = "an-admin-token-of-tests";
const APPS: &str = "[[app]]\nnames = [\"f#free\", \"freeid\"]\nplan = \"free\"\n\
                    [[app]]\nnames = \"b#basic\"\nplan = \"basic\"\ntotals = { users = 5, groups = 2, group_members = 3, joined_groups = 2, friends = 1, chatrooms = 2 }\n\
                    [[app]]\nnames = \"p#pro\"\nplan = \"enterprise\"\n";

struct World {
    dir: tempfile::TempDir,
    backend: Backend,
    gateway: Gateway,
}

fn start(dir: &Path, backend: &Backend, args: &[&str]) -> Gateway {
    let apps = dir.join("apps.toml");
    std::fs::write(&apps, APPS).unwrap();
    let mut all = vec!["--apps", apps.to_str().unwrap(), "--admin-token", TOKEN];
    all.extend(["--trusted-proxy", "127.0.0.0/8", "--threads", "2"]);
    all.extend(args);
    Start {
        upstream: Some(backend.addr),
        args: &all,
        ..Start::default()
    }
    .start()
}

impl World {
    fn new(args: &[&str]) -> Self {
        let (dir, backend) = (tempfile::tempdir().unwrap(), Backend::start());
        let gateway = start(dir.path(), &backend, args);
        Self {
            dir,
            backend,
            gateway,
        }
    }

    /// With a file of totals.
    fn kept() -> Self {
        let (dir, backend) = (tempfile::tempdir().unwrap(), Backend::start());
        let file = dir.path().join("totals");
        let gateway = start(
            dir.path(),
            &backend,
            &["--plan-file", file.to_str().unwrap()],
        );
        Self {
            dir,
            backend,
            gateway,
        }
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("totals")
    }

    /// Another gateway in the place of this one.
    fn restart(self) -> Self {
        let Self {
            dir,
            backend,
            gateway,
        } = self;
        drop(gateway);
        let file = dir.path().join("totals");
        let gateway = start(
            dir.path(),
            &backend,
            &["--plan-file", file.to_str().unwrap()],
        );
        Self {
            dir,
            backend,
            gateway,
        }
    }

    fn call(&self, method: &str, path: &str, body: &Value) -> Answer {
        let body = match body {
            Value::Null => String::new(),
            body => body.to_string(),
        };
        self.gateway.call(method, path, &body)
    }

    fn register(&self, names: &[&str]) -> Answer {
        let users: Vec<Value> = names
            .iter()
            .map(|name| json!({ "username": name }))
            .collect();
        self.call("POST", "/b/basic/users", &json!(users))
    }

    fn admin(&self, method: &str, path: &str, body: &Value) -> Answer {
        let token = format!("Authorization: Bearer {TOKEN}");
        let body = match body {
            Value::Null => String::new(),
            body => body.to_string(),
        };
        Connection::to(self.gateway.admin).call(method, path, &[&token], &body)
    }

    fn import(&self, body: &Value) {
        let answer = self.admin("POST", "/plan/import", body);
        assert_eq!(answer.status, 200, "{}", answer.text());
    }

    /// A total as the admin listener shows it; `whose`: `&user=…`, `&group=…` or nothing.
    fn total(&self, app: &str, whose: &str, kind: &str) -> Value {
        let app = app.replace('#', "%23");
        let answer = self.admin("GET", &format!("/plan?app={app}{whose}"), &Value::Null);
        assert_eq!(answer.status, 200, "{}", answer.text());
        let answer = answer.json();
        let totals = answer["totals"].as_array().unwrap();
        let found = totals.iter().find(|total| total["total"] == kind);
        found
            .unwrap_or_else(|| panic!("no {kind}: {answer}"))
            .clone()
    }

    /// Until a total has settled, which it does when its call has been logged.
    fn becomes(&self, whose: &str, kind: &str, count: u64) {
        soon(&format!("{kind}{whose} is {count}"), || {
            self.total("b#basic", whose, kind)["count"] == count
        });
    }

    fn plan(&self, args: &[&str]) -> std::process::Output {
        let admin = self.gateway.admin.to_string();
        let mut command = Command::new(BIN);
        command.arg("plan").args(args);
        command.args(["--admin", &admin, "--admin-token", TOKEN]);
        command.output().unwrap()
    }
}

fn said(output: &std::process::Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

#[test]
fn totals_go_along_with_an_upgrade_and_their_file_too() {
    let (dir, backend) = (tempfile::tempdir().unwrap(), Backend::start());
    let (file, socket) = (dir.path().join("totals"), dir.path().join("upgrade.sock"));
    let args = ["--plan-file", file.to_str().unwrap(), "--upgrade-socket"];
    let args = [&args[..], &[socket.to_str().unwrap()]].concat();
    let mut old = start(dir.path(), &backend, &args);
    let register = |gateway: &Gateway, name: &str| {
        let body = json!({ "username": name }).to_string();
        gateway.call("POST", "/b/basic/users", &body).status
    };
    let import = json!({ "app": "b#basic", "totals": { "users": 3 } }).to_string();
    let token = format!("Authorization: Bearer {TOKEN}");
    let imported = Connection::to(old.admin).call("POST", "/plan/import", &[&token], &import);
    assert_eq!(imported.status, 200, "{}", imported.text());
    assert_eq!(register(&old, "a"), 200);
    let mut kept = old.connect();
    assert_eq!(kept.call("GET", "/b/basic/users", &[], "").status, 200);
    let new = start(dir.path(), &backend, &[&args[..], &["--upgrade"]].concat());
    assert_eq!(register(&new, "b"), 200);
    // A call of before the upgrade is decided by the same totals.
    let body = json!({ "username": "c" }).to_string();
    let last = kept.call("POST", "/b/basic/users", &[], &body);
    assert_eq!((last.status, register(&new, "d")), (429, 429));
    drop(kept);
    assert_eq!(old.wait(), Some(0));
    let world = World {
        dir,
        backend,
        gateway: new,
    };
    world.becomes("", "users", 5);
    let world = world.restart();
    assert_eq!(world.total("b#basic", "", "users")["count"], 5);
    assert_eq!(register(&world.gateway, "e"), 429);
}

#[test]
fn a_gateway_that_began_before_another_ended_takes_in_what_that_has_written() {
    let mut first = World::kept();
    first.import(&json!({ "app": "b#basic", "totals": { "users": 1 } }));
    soon("it is written", || {
        std::fs::read_to_string(first.file()).is_ok_and(|text| text.lines().count() > 2)
    });
    let file = first.file();
    let args = ["--plan-file", file.to_str().unwrap()];
    let second = World {
        dir: tempfile::tempdir().unwrap(),
        backend: first.backend.clone(),
        gateway: start(first.dir.path(), &first.backend, &args),
    };
    first.import(&json!({ "app": "b#basic", "totals": { "users": 2, "groups": 1 } }));
    assert_eq!(first.register(&["a"]).status, 200);
    first.becomes("", "users", 3);
    assert_eq!(second.register(&["b"]).status, 200);
    second.becomes("", "users", 2);
    first.gateway.signal("-TERM");
    assert_eq!(first.gateway.wait(), Some(0));
    second.becomes("", "users", 4);
    assert_eq!(second.total("b#basic", "", "users")["approximate"], true);
    assert_eq!(second.total("b#basic", "", "groups")["count"], 1);
    assert_eq!(second.register(&["c", "d"]).status, 429);
    assert_eq!(second.register(&["c"]).status, 200);
}

#[test]
fn users_are_registered_up_to_the_figure_and_the_next_gets_the_native_answer() {
    let world = World::new(&[]);
    world.import(&json!({ "app": "b#basic", "totals": { "users": 3 } }));
    assert_eq!(world.register(&["a", "b"]).status, 200);
    let answer = world.register(&["c"]);
    assert_eq!(answer.status, 429);
    let (error, text) = answer.error();
    assert_eq!(error, "resource_limited");
    assert_eq!(
        text,
        "You have exceeded the limit of the basic edition. Please upgrade to higher edition."
    );
    assert_eq!(answer.json()["limit"], "plan:users");
    assert_eq!(answer.header("retry-after"), None, "no time makes room");
    assert_eq!(world.backend.asked("POST"), 1);
    let denied = ["limit=\"plan:users\"", "verb=\"deny\""];
    soon("it is counted", || {
        world.gateway.metric("floodgate_decisions_total", &denied) == 1.0
    });
    // The single form is the same route.
    assert_eq!(
        world
            .call("POST", "/b/basic/users", &json!({ "username": "d" }))
            .status,
        429
    );
}

#[test]
fn a_batch_counts_what_was_made_of_it() {
    let world = World::new(&[]);
    world.import(&json!({ "app": "b#basic", "totals": { "users": 0 } }));
    assert_eq!(world.register(&["a", "bad1", "b", "bad2"]).status, 200);
    world.becomes("", "users", 2);
    assert_eq!(world.register(&["c", "d", "e"]).status, 200);
    assert_eq!(world.register(&["f"]).status, 429);
    assert_eq!(world.backend.with(|state| state.users.len()), 5);
}

#[test]
fn failures_give_back_deletions_lower_and_a_lost_answer_counts() {
    let world = World::new(&[]);
    world.import(&json!({ "app": "b#basic", "totals": { "users": 0 } }));
    let with = |wish: &str| {
        let wish = format!("x-do: {wish}");
        let body = r#"[{"username":"x"},{"username":"y"}]"#;
        let answer = world
            .gateway
            .connect()
            .call("POST", "/b/basic/users", &[&wish], body);
        answer.status
    };
    assert_eq!(with("fail"), 500);
    world.becomes("", "users", 0);
    assert_eq!(world.total("b#basic", "", "users")["approximate"], false);
    assert_eq!(with("lose"), 502);
    world.becomes("", "users", 2);
    soon("it is known to be in doubt", || {
        world.total("b#basic", "", "users")["approximate"] == true
    });
    assert_eq!(world.register(&["a", "b", "c"]).status, 200);
    world.becomes("", "users", 5);
    assert_eq!(world.register(&["d"]).status, 429);
    assert_eq!(
        world
            .call("DELETE", "/b/basic/users/a", &Value::Null)
            .status,
        200
    );
    world.becomes("", "users", 4);
    assert_eq!(
        world
            .call("DELETE", "/b/basic/users/nobody", &Value::Null)
            .status,
        404
    );
    assert_eq!(
        world
            .call("DELETE", "/b/basic/users?limit=2", &Value::Null)
            .status,
        200
    );
    world.becomes("", "users", 2);
    for _ in 0..3 {
        assert_eq!(
            world
                .call("DELETE", "/b/basic/users?limit=2", &Value::Null)
                .status,
            200
        );
    }
    world.becomes("", "users", 0);
}

#[test]
fn each_kind_has_its_figure_and_its_native_answer() {
    let world = World::new(&[]);
    let group = json!({ "groupname": "g", "owner": "ann", "members": ["bob"] });
    let members = |names: &[&str]| json!({ "usernames": names });
    world.import(&json!({
        "app": "b#basic",
        "totals": { "groups": 0, "chatrooms": 0 },
        "users": { "full": { "joined_groups": 2, "friends": 1 }, "new": { "friends": 0 } },
        "groups": { "7": { "group_members": 1 } },
    }));
    let refused = |answer: Answer, text: &str| {
        assert_eq!(answer.status, 403, "{}", answer.text());
        assert_eq!(answer.error(), ("exceed_limit".to_owned(), text.to_owned()));
    };
    for _ in 0..2 {
        assert_eq!(
            world.call("POST", "/b/basic/chatgroups", &group).status,
            200
        );
    }
    let answer = world.call("POST", "/b/basic/chatgroups", &group);
    refused(answer, "appKey:b#basic has create too many groups!");
    world.becomes("&user=bob", "joined_groups", 2);
    world.becomes("&group=1", "group_members", 2);
    for _ in 0..2 {
        assert_eq!(
            world
                .call("POST", "/b/basic/chatrooms", &json!({ "owner": "ann" }))
                .status,
            200
        );
    }
    let answer = world.call("POST", "/b/basic/chatrooms", &json!({ "owner": "ann" }));
    refused(answer, "appKey:b#basic has create too many chatrooms!");
    let path = "/b/basic/chatgroups/7/users";
    assert_eq!(world.call("POST", path, &members(&["x", "y"])).status, 200);
    let answer = world.call("POST", path, &members(&["z"]));
    refused(answer, "members size is greater than max user size !");
    let answer = world.call("POST", "/b/basic/chatgroups/9/users/Full", &Value::Null);
    refused(answer, "user full has joined too many groups!");
    let friend = "/b/basic/users/new/contacts/users/other";
    assert_eq!(world.call("POST", friend, &Value::Null).status, 200);
    let answer = world.call(
        "POST",
        "/b/basic/users/new/contacts/users/third",
        &Value::Null,
    );
    refused(answer, "user contact number exceed limit");
    // What was deleted makes room.
    let id = world
        .backend
        .with(|state| state.groups.first().cloned().unwrap());
    world.call("DELETE", &format!("/b/basic/chatgroups/{id}"), &Value::Null);
    world.becomes("", "groups", 1);
    let owner = json!({ "owner": "somebody" });
    assert_eq!(
        world.call("POST", "/b/basic/chatgroups", &owner).status,
        200
    );
    let id = world
        .backend
        .with(|state| state.rooms.first().cloned().unwrap());
    world.call("DELETE", &format!("/b/basic/chatrooms/{id}"), &Value::Null);
    world.becomes("", "chatrooms", 1);
}

#[test]
fn a_free_app_has_no_chatrooms_by_any_of_its_names() {
    let world = World::new(&[]);
    for app in ["f/free", "app-id/FREEID"] {
        let answer = world.call(
            "POST",
            &format!("/{app}/chatrooms"),
            &json!({ "owner": "a" }),
        );
        assert_eq!(answer.status, 403);
        let text = "appKey:f#free has create too many chatrooms!";
        assert_eq!(answer.error(), ("exceed_limit".to_owned(), text.to_owned()));
    }
    assert_eq!(world.backend.asked(""), 0, "the backend was not asked");
}

#[test]
fn a_total_that_was_never_imported_or_too_long_ago_reports() {
    let world = World::new(&["--plan-max-age", "8s"]);
    let seven = ["a", "b", "c", "d", "e", "f", "g"];
    assert_eq!(world.register(&seven).status, 200);
    let reported = ["limit=\"plan:users\""];
    assert_eq!(
        world.gateway.metric("floodgate_reported_total", &reported),
        1.0
    );
    world.becomes("", "users", 7);
    let total = world.total("b#basic", "", "users");
    assert_eq!(
        (&total["enforced"], &total["checked"]),
        (&json!(false), &Value::Null)
    );
    world.import(&json!({ "app": "b#basic", "totals": { "users": 1_000_000 } }));
    assert_eq!(world.register(&["h"]).status, 429);
    soon("it is too old", || world.register(&["h"]).status == 200);
    assert_eq!(world.total("b#basic", "", "users")["enforced"], false);
}

#[test]
fn the_backends_own_plan_error_makes_a_total_full() {
    let world = World::new(&[]);
    world.import(&json!({ "app": "b#basic", "totals": { "users": 0 } }));
    world.backend.with(|state| state.most_users = Some(0));
    assert_eq!(world.register(&["a"]).status, 429);
    world.becomes("", "users", 5);
    assert_eq!(world.backend.asked("POST"), 1);
    assert_eq!(world.register(&["a"]).status, 429);
    assert_eq!(
        world.backend.asked("POST"),
        1,
        "the second was refused here"
    );
}

#[test]
fn a_caller_that_leaves_early_takes_what_its_call_has_made_and_no_more() {
    let world = World::new(&[]);
    world.import(&json!({ "app": "b#basic", "totals": { "users": 0 } }));
    let body = r#"[{"username":"a"},{"username":"bad"}]"#;
    let mut connection = world.gateway.connect();
    connection.send_call("POST", "/b/basic/users", &["x-do: slow"], body);
    soon("it is there", || world.backend.asked("POST") == 1);
    connection.reset();
    world.becomes("", "users", 1);
    assert_eq!(world.total("b#basic", "", "users")["approximate"], false);
}

#[test]
fn totals_survive_a_restart_in_order() {
    let mut world = World::kept();
    world.import(&json!({ "app": "b#basic", "totals": { "users": 3 }, "users": { "ann": { "friends": 1 } } }));
    assert_eq!(world.register(&["a"]).status, 200);
    world.becomes("", "users", 4);
    world.gateway.signal("-TERM");
    assert_eq!(world.gateway.wait(), Some(0));
    let world = world.restart();
    let total = world.total("b#basic", "", "users");
    assert_eq!(
        (&total["count"], &total["approximate"]),
        (&json!(4), &json!(false))
    );
    assert_eq!(total["enforced"], true);
    assert_eq!(world.total("b#basic", "&user=ann", "friends")["count"], 1);
    assert_eq!(world.register(&["b", "c"]).status, 429);
    assert_eq!(world.register(&["b"]).status, 200);
}

#[test]
fn totals_survive_a_kill_and_are_in_doubt_then() {
    let mut world = World::kept();
    world.import(&json!({ "app": "b#basic", "totals": { "users": 0 } }));
    for name in ["a", "b", "c", "d"] {
        assert_eq!(world.register(&[name]).status, 200);
    }
    world.becomes("", "users", 4);
    // Longer than changes wait to be written.
    let written = || std::fs::read_to_string(world.file()).unwrap_or_default();
    soon("the file has it", || {
        let text = written();
        text.lines()
            .rev()
            .any(|line| line.split(' ').nth(1) == Some("4"))
    });
    world.gateway.signal("-KILL");
    world.gateway.wait();
    let world = world.restart();
    let total = world.total("b#basic", "", "users");
    assert_eq!(
        (&total["count"], &total["approximate"]),
        (&json!(4), &json!(true))
    );
    assert_eq!(world.register(&["e"]).status, 200);
    assert_eq!(world.register(&["f"]).status, 429, "still enforced");
}

#[test]
fn a_spoilt_file_of_totals_is_refused_with_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("totals");
    std::fs::write(&file, "[settings]\n").unwrap();
    let output = Command::new(BIN)
        .args([
            "run",
            "--upstream",
            "http://127.0.0.1:1",
            "--listen",
            "127.0.0.1:0",
        ])
        .args(["--admin", "127.0.0.1:0", "--plan-file"])
        .arg(&file)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = said(&output);
    assert!(
        said.contains("no file of totals") && said.contains("plan_file"),
        "{said}"
    );
}

#[test]
fn an_operator_imports_and_is_shown_totals() {
    let world = World::new(&[]);
    let output = world.plan(&["import", "--app", "B#Basic", "users=3", "groups=1_0"]);
    assert!(output.status.success(), "{}", said(&output));
    let text = said(&output);
    assert!(text.starts_with("b#basic, plan basic\n"), "{text}");
    let line = |name: &str| {
        let line = text
            .lines()
            .find(|line| line.trim_start().starts_with(name));
        line.unwrap_or_else(|| panic!("{name}: {text}"))
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert!(
        line("users").starts_with("users 3 of 5 refuses; checked "),
        "{text}"
    );
    assert!(
        line("groups").starts_with("groups 10 of 2 refuses; checked "),
        "{text}"
    );
    assert!(
        line("user_attributes").starts_with(
            "user_attributes ~0 of 10737418240 reports: not checked lately; never checked"
        ),
        "{text}"
    );
    assert!(text.contains("~ approximate"), "{text}");
    let output = world.plan(&["import", "--app", "b#basic", "--user", "Ann", "friends=1"]);
    assert!(said(&output).contains("user Ann"), "{}", said(&output));
    assert!(
        said(&output).contains("~1"),
        "friends are approximate: {}",
        said(&output)
    );
    let output = world.plan(&["show", "--app", "b#basic", "--user", "ann", "--json"]);
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(shown["totals"][0]["count"], 1);
    assert_eq!(shown["totals"][0]["approximate"], true);
    for (args, text) in [
        (
            &["import", "--app", "no#app", "users=3"][..],
            "give it a plan",
        ),
        (
            &["import", "--app", "b#basic", "user=3"],
            "did you mean `users`?",
        ),
        (
            &["import", "--app", "b#basic", "users=many"],
            "write e.g. users=42",
        ),
        (
            &["import", "--app", "b#basic", "--user", "a", "users=3"],
            "no total of a user",
        ),
    ] {
        let output = world.plan(args);
        assert!(!output.status.success());
        assert!(said(&output).contains(text), "{args:?}: {}", said(&output));
    }
    let metric = |name: &str, labels: &[&str]| world.gateway.metric(name, labels);
    let labels = [
        "app=\"b#basic\"",
        "total=\"users\"",
        "approximate=\"false\"",
    ];
    assert_eq!(metric("floodgate_plan_total", &labels), 3.0);
    assert_eq!(metric("floodgate_plan_figure", &labels[..2]), 5.0);
    assert!(metric("floodgate_plan_checked_timestamp_seconds", &labels[..2]) > 1e9);
}

#[test]
fn totals_are_changed_by_whom_has_the_token_alone() {
    let world = World::new(&[]);
    for path in ["/plan/import", "/plan/listing", "/plan/listing/end"] {
        let answer = Connection::to(world.gateway.admin).call(
            "POST",
            path,
            &["Authorization: Bearer x"],
            "{}",
        );
        assert_eq!(answer.status, 401, "{path}");
        assert_eq!(
            world.admin("POST", path, &json!({ "app": 1 })).status,
            400,
            "{path}"
        );
    }
}

fn reconcile(world: &World, more: &[&str]) -> std::process::Output {
    let gateway = format!("http://{}", world.gateway.addr);
    reconcile_by(world, &gateway, more)
}

fn reconcile_by(world: &World, gateway: &str, more: &[&str]) -> std::process::Output {
    let token = world.dir.path().join("token");
    std::fs::write(&token, "YWMtgood\n").unwrap();
    let mut args = vec!["reconcile", "--app", "b#basic", "--gateway", gateway];
    args.extend(["--token-file", token.to_str().unwrap(), "--rate", "500"]);
    args.extend(more);
    world.plan(&args)
}

#[test]
fn reconciling_pages_through_the_backends_own_listings() {
    let world = World::new(&[]);
    world.backend.with(|state| {
        state.users = (0..30).map(|n| format!("u{n:02}")).collect();
        state.groups = (0..15).map(|n| format!("{}", 100 + n)).collect();
        state.rooms = ["1".to_owned()].into();
        state.capacity = 12_345;
    });
    world.import(&json!({ "app": "b#basic", "totals": { "users": 2 } }));
    let output = reconcile(&world, &[]);
    assert!(output.status.success(), "{}", said(&output));
    assert!(
        said(&output).contains("users: 30 listed, was 2, is 30\n"),
        "{}",
        said(&output)
    );
    let count = |whose: &str, kind: &str| world.total("b#basic", whose, kind)["count"].clone();
    assert_eq!(count("", "users"), 30);
    assert_eq!(count("", "groups"), 15);
    assert_eq!(count("", "chatrooms"), 1);
    assert_eq!(count("&group=105", "group_members"), 4);
    world.becomes("", "user_attributes", 12_345);
    assert_eq!(
        world.backend.asked("GET /b/basic/users?"),
        5,
        "seven to a page"
    );
    assert_eq!(world.total("b#basic", "", "users")["approximate"], false);
    assert_eq!(world.register(&["x"]).status, 429);
    let output = reconcile(&world, &["--total", "friends"]);
    assert!(
        said(&output).contains("friends: of 30 users"),
        "{}",
        said(&output)
    );
    assert_eq!(count("&user=u07", "friends"), 2);
    let charged = world
        .gateway
        .metric("floodgate_units_charged_total", &["users-get", ":app"]);
    assert!(
        charged >= 10.0,
        "listings are charged like any call: {charged}"
    );
}

#[test]
fn a_listing_goes_on_over_a_page_without_an_entry() {
    let world = World::new(&[]);
    world.backend.with(|state| {
        state.users = (0..30).map(|n| format!("u{n:02}")).collect();
        state.hollow = true;
    });
    let output = reconcile(&world, &["--total", "users"]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(world.total("b#basic", "", "users")["count"], 30);
}

#[test]
fn what_a_user_has_is_read_to_its_last_page() {
    let world = World::new(&[]);
    world.backend.with(|state| {
        state.users = ["u1".to_owned()].into();
        state.friends = (0..16).map(|n| format!("f{n:02}")).collect();
        state.joined = 205;
    });
    let output = reconcile(&world, &["--total", "friends", "--total", "joined_groups"]);
    assert!(output.status.success(), "{}", said(&output));
    let count = |kind: &str| world.total("b#basic", "&user=u1", kind)["count"].clone();
    assert_eq!(
        (count("friends"), count("joined_groups")),
        (json!(16), json!(205))
    );
    assert_eq!(world.backend.asked("GET /b/basic/users/u1/joined"), 3);
}

#[test]
fn users_that_are_gone_are_skipped_and_those_that_fail_are_named() {
    let world = World::new(&[]);
    world.backend.with(|state| {
        state.users = (0..5).map(|n| format!("u{n}")).collect();
        state.gone = ["u1".to_owned()].into();
    });
    let output = reconcile(&world, &["--total", "friends"]);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("friends: of 4 users\n"), "{text}");
    assert!(text.contains("gone since they were listed: 1\n"), "{text}");
    world.backend.with(|state| {
        state.broken = ["u2".to_owned()].into();
        state.friends = ["x".to_owned()].into();
    });
    let output = reconcile(&world, &["--total", "friends"]);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("friends: of 3 users\n"), "{text}");
    assert!(text.contains("users failed: 1, the first u2: "), "{text}");
    for (user, count) in [("u0", 1), ("u2", 2), ("u4", 1)] {
        let whose = format!("&user={user}");
        assert_eq!(world.total("b#basic", &whose, "friends")["count"], count);
    }
}

#[test]
fn groups_that_their_list_tells_nothing_of_are_asked_themselves() {
    let world = World::new(&[]);
    world.backend.with(|state| {
        state.groups = ["101".to_owned(), "102".to_owned()].into();
        state.hides_members = true;
        state.members = Some(3);
    });
    let by_members = ["--total", "group_members"];
    let output = reconcile(&world, &by_members);
    assert!(output.status.success(), "{}", said(&output));
    assert!(said(&output).contains("group_members: of 2 groups\n"));
    let count = world.total("b#basic", "&group=102", "group_members")["count"].clone();
    assert_eq!(count, 3);
    world.backend.with(|state| state.members = None);
    let output = reconcile(&world, &by_members);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("group_members: of 0 groups\n"), "{text}");
    assert!(text.contains("groups failed: 2, the first 101: "), "{text}");
    assert!(text.contains("affiliations_count"), "{text}");
}

#[test]
fn an_import_that_cannot_be_kept_as_it_is_said_is_refused() {
    let world = World::new(&[]);
    let refused = |args: &[&str], why: &str| {
        let output = world.plan(&[&["import", "--app", "b#basic"], args].concat());
        assert_ne!(output.status.code(), Some(0), "{args:?}");
        assert!(said(&output).contains(why), "{args:?}: {}", said(&output));
    };
    refused(&["--user", "", "friends=1"], "--user");
    refused(&["--group", "", "group_members=1"], "--group");
    refused(&["users=9007199254740993"], "the most is 9007199254740991");
    assert_eq!(world.total("b#basic", "", "users")["checked"], Value::Null);
    let bad = |body: &str, why: &str| {
        let token = format!("Authorization: Bearer {TOKEN}");
        let mut admin = Connection::to(world.gateway.admin);
        let answer = admin.call("POST", "/plan/import", &[&token], body);
        assert_eq!(answer.status, 400, "{body}");
        assert!(answer.text().contains(why), "{}", answer.text());
    };
    let twice = "is there twice";
    bad(r#"{"app":"b#basic","totals":{"users":1,"users":2}}"#, twice);
    bad(
        r#"{"app":"b#basic","totals":{"users":1},"totals":{"users":2}}"#,
        "duplicate field",
    );
    bad(
        r#"{"app":"b#basic","users":{"a":{"friends":1},"a":{"friends":2}}}"#,
        twice,
    );
    bad(
        r#"{"app":"b#basic","users":{"a":{"friends":1,"friends":2}}}"#,
        twice,
    );
    bad(
        r#"{"app":"b#basic","users":{"a":{"friends":1},"A":{"friends":2}}}"#,
        twice,
    );
    bad(
        r#"{"app":"b#basic","users":{"":{"friends":1}}}"#,
        "has no name",
    );
    let answer = world.admin("GET", "/plan?app=b%23basic&user=", &Value::Null);
    assert_eq!(answer.status, 400);
}

#[test]
fn a_total_that_is_not_kept_is_neither_imported_nor_reconciled() {
    let dir = tempfile::tempdir().unwrap();
    let routes = dir.path().join("mine.toml");
    std::fs::write(&routes, "[totals.groups]\nmode = \"off\"\n").unwrap();
    let routes = routes.to_str().unwrap();
    let world = World::new(&["--routes", routes]);
    let output = world.plan(&["import", "--app", "b#basic", "groups=3"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("groups is not kept for app b#basic"));
    let output = reconcile(&world, &["--total", "groups"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("groups is not kept for app b#basic"));
    let output = reconcile(&world, &[]);
    assert!(output.status.success(), "{}", said(&output));
    assert!(
        !said(&output).contains("groups: 0 listed"),
        "{}",
        said(&output)
    );
}

#[test]
fn reconciling_over_https_asks_who_answers() {
    let files = tempfile::tempdir().unwrap();
    let write = |name: &str| {
        let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        let (certificate, key) = (files.path().join(name), files.path().join("key"));
        std::fs::write(&certificate, made.cert.pem()).unwrap();
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        (certificate.display().to_string(), key.display().to_string())
    };
    let (other, _) = write("other");
    let (certificate, key) = write("certificate");
    let world = World::new(&[
        "--listen",
        "127.0.0.1:0 tls",
        "--tls-cert",
        &certificate,
        "--tls-key",
        &key,
    ]);
    world.backend.with(|state| {
        state.users = (0..30).map(|n| format!("u{n:02}")).collect();
    });
    let gateway = format!("https://{}", world.gateway.listeners[1]);
    let by = |ca: &[&str]| reconcile_by(&world, &gateway, &[&["--total", "users"], ca].concat());
    for (ca, why) in [
        (&[][..], "write --gateway-ca FILE"),
        (&["--gateway-ca", &other], "certificate"),
    ] {
        let output = by(ca);
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        assert!(said(&output).contains(why), "{}", said(&output));
        assert_eq!(world.total("b#basic", "", "users")["count"], 0);
    }
    let output = by(&["--gateway-ca", &certificate]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(world.total("b#basic", "", "users")["count"], 30);
}

#[test]
fn what_comes_between_a_listing_is_counted_and_marked() {
    let world = World::new(&[]);
    let begin = json!({ "app": "b#basic", "total": "users" });
    let round = world.admin("POST", "/plan/listing", &begin).json()["round"].clone();
    assert_eq!(world.register(&["a", "b"]).status, 200);
    world.becomes("", "users", 2);
    let end = json!({ "app": "b#basic", "total": "users", "round": round, "listed": 1 });
    let ended = world.admin("POST", "/plan/listing/end", &end).json();
    assert_eq!(ended["after"]["count"], 3);
    assert_eq!(ended["after"]["approximate"], true);
    // The same end again changes nothing, nor does one that another listing has overtaken.
    let mut late = end.clone();
    late["listed"] = json!(99);
    let ended = world.admin("POST", "/plan/listing/end", &late).json();
    assert_eq!(ended["after"]["count"], 3);
    world.admin("POST", "/plan/listing", &begin);
    assert_eq!(world.admin("POST", "/plan/listing/end", &late).status, 409);
    world.becomes("", "users", 3);
}

#[test]
fn a_call_under_way_across_a_listing_is_not_forgotten() {
    let world = World::new(&[]);
    world.import(&json!({ "app": "b#basic", "totals": { "users": 1 } }));
    let body = r#"[{"username":"a"},{"username":"b"}]"#;
    let mut connection = world.gateway.connect();
    connection.send_call("POST", "/b/basic/users", &["x-do: wait"], body);
    soon("it is there", || world.backend.asked("POST") == 1);
    let begin = json!({ "app": "b#basic", "total": "users" });
    let round = world.admin("POST", "/plan/listing", &begin).json()["round"].clone();
    let end = json!({ "app": "b#basic", "total": "users", "round": round, "listed": 1 });
    let ended = world.admin("POST", "/plan/listing/end", &end).json();
    assert_eq!(ended["after"]["count"], 3);
    assert_eq!(ended["after"]["approximate"], true);
    world.backend.with(|state| state.may_answer = true);
    assert_eq!(connection.read_answer("POST").status, 200);
    // What it has kept is settled before the next one's.
    assert_eq!(world.register(&["c"]).status, 200);
    world.becomes("", "users", 4);
    assert_eq!(world.total("b#basic", "", "users")["approximate"], true);
    assert_eq!(world.register(&["d", "e"]).status, 429);
}

#[test]
fn json_with_fields_of_a_form_counts_nothing_and_goes_no_further() {
    let world = World::new(&[]);
    let call = |method: &str, path: &str, kind: &str, body: &str| {
        let kind = format!("Content-Type: {kind}");
        let mut connection = Connection::to(world.gateway.addr);
        connection.call(method, path, &[&kind], body).status
    };
    const FORM: &str = "application/x-www-form-urlencoded";
    let users = r#"[{"username":"a","x":"&username=b&username=c"}]"#;
    let members = r#"{"usernames":["a"],"x":";usernames=b;usernames=c"}"#;
    let calls = [
        ("POST", "/b/basic/users", users),
        ("POST", "/b/basic/chatgroups/1/users", members),
    ];
    for (method, path, body) in calls {
        assert_eq!(call(method, path, FORM, body), 400, "{path}");
        let kind = "Application/X-WWW-Form-Urlencoded; charset=utf-8";
        assert_eq!(call(method, path, kind, body), 400, "{path}");
    }
    assert_eq!(world.backend.asked("POST"), 0);
    // As `curl -d` says it of everything; and what is a form by the documents.
    let plain = r#"[{"username":"a"}]"#;
    assert_eq!(call("POST", "/b/basic/users", FORM, plain), 200);
    for (method, path, body) in calls {
        assert_eq!(call(method, path, "application/json", body), 200, "{path}");
    }
    let form = "nickname=a&sign=b;c&sex=1";
    assert_eq!(call("PUT", "/b/basic/metadata/user/a", FORM, form), 200);
    assert_eq!(world.backend.asked("PUT"), 1);
}

#[test]
fn what_was_reconciled_is_told_though_something_fails_after_it() {
    let world = World::new(&[]);
    world.backend.with(|state| {
        state.users = ["a".to_owned()].into();
        state.broken = ["capacity".to_owned()].into();
    });
    let output = reconcile(&world, &[]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    for words in [
        "users: 1 listed, was 0, is 1\n",
        "answered 404 to /b/basic/metadata/user/capacity: service_resource_not_found",
    ] {
        assert!(said(&output).contains(words), "{}", said(&output));
    }
}

#[test]
fn a_listing_that_has_not_begun_does_not_end() {
    let world = World::new(&[]);
    let end = json!({ "app": "b#basic", "total": "groups", "round": 0, "listed": 7 });
    assert_eq!(world.admin("POST", "/plan/listing/end", &end).status, 409);
    assert_eq!(world.total("b#basic", "", "groups")["count"], 0);
}

#[test]
fn reconciling_without_a_good_token_says_so() {
    let world = World::new(&[]);
    let gateway = format!("http://{}", world.gateway.addr);
    let output = world.plan(&["reconcile", "--app", "b#basic", "--gateway", &gateway]);
    assert!(said(&output).contains("--token-file"), "{}", said(&output));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    for wrong in ["", " \n", "one\ntwo"] {
        std::fs::write(&file, wrong).unwrap();
        let token = ["--token-file", file.to_str().unwrap()];
        let asked = ["reconcile", "--app", "b#basic", "--gateway", &gateway];
        let output = world.plan(&[&asked[..], &token].concat());
        assert!(
            said(&output).contains("must hold one token"),
            "{wrong:?}: {}",
            said(&output)
        );
    }
    let output = world.plan(&["reconcile", "--app", "b#basic", "--gateway", "gateway:1"]);
    assert!(
        said(&output).contains("http://host:port"),
        "{}",
        said(&output)
    );
}
