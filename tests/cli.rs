//! The program's commands, run as a program.

#![cfg(feature = "gateway")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

/// How a run ended.
struct Ran {
    code: i32,
    out: String,
    err: String,
}

fn run_with(dir: &Path, env: &[(&str, &str)], args: &[&str], input: &str) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_floodgate"));
    command.env_clear().envs(env.iter().copied()).args(args);
    command.current_dir(dir).stdin(Stdio::piped());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // A program that reads no input may have closed it.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    Ran {
        code: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

fn run(args: &[&str]) -> Ran {
    run_with(&std::env::temp_dir(), &[], args, "")
}

fn json_of(ran: &Ran) -> Value {
    serde_json::from_str(&ran.out).unwrap_or_else(|error| panic!("{error}: {}{}", ran.out, ran.err))
}

fn explain(edition: &str, method: &str, url: &str) -> Value {
    let ran = run(&["explain", "--edition", edition, "--json", method, url]);
    assert_eq!(ran.code, 0, "{}{}", ran.out, ran.err);
    json_of(&ran)
}

/// `(unit, quota, window, scope, cost)` of each limit, sorted.
fn figures(explained: &Value) -> Vec<(String, u64, u64, String, Value)> {
    let limits = explained["limits"].as_array().unwrap();
    let mut figures: Vec<_> = limits
        .iter()
        .map(|limit| {
            (
                limit["unit"].as_str().unwrap().to_owned(),
                limit["quota"].as_u64().unwrap(),
                limit["window_s"].as_u64().unwrap(),
                limit["scope"].to_string(),
                limit["cost"].clone(),
            )
        })
        .collect();
    figures.sort_by_key(|figure| format!("{figure:?}"));
    figures
}

fn figure(
    unit: &str,
    quota: u64,
    window_s: u64,
    scope: &str,
    cost: Value,
) -> (String, u64, u64, String, Value) {
    let scope = format!("[{scope:?}]");
    (unit.to_owned(), quota, window_s, scope, cost)
}

#[test]
fn an_unknown_flag_is_told_the_near_one() {
    let ran = run(&["run", "--upstrem", "http://a"]);
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("'--upstream'"), "{}", ran.err);
    let ran = run(&["chekc"]);
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("'check'"), "{}", ran.err);
}

#[test]
fn help_and_version_are_no_errors() {
    let ran = run(&["--version"]);
    assert_eq!(
        ran.out,
        concat!("floodgate ", env!("CARGO_PKG_VERSION"), "\n")
    );
    for args in [
        ["run", "--help"],
        ["check", "-h"],
        ["routes", "--help"],
        ["explain", "-h"],
    ] {
        let ran = run(&args);
        assert_eq!(ran.code, 0);
        assert!(ran.out.contains("--routes"), "{}", ran.out);
    }
    let long = run(&["run", "--help"]).out;
    assert!(
        long.contains("[env: FLOODGATE_TRUSTED_PROXY] [key: trusted_proxies, a list]"),
        "{long}"
    );
    let short = run(&["explain", "-h"]).out;
    assert!(!short.contains("--keepalive"), "{short}");
}

#[test]
fn a_start_that_fails_says_why_in_one_line() {
    let cases: [(&[&str], &str); 5] = [
        (
            &["run"],
            "floodgate: no upstream is given; write --upstream http://host:port",
        ),
        (
            // It may have named the upstream.
            &["run", "--config", "nowhere.toml"],
            "floodgate: cannot read nowhere.toml: No such file or directory (os error 2); correct the \
             path, or leave --config out",
        ),
        (
            &["run", "--upstream", "http://127.0.0.1:1", "--listen", "x"],
            "floodgate: --listen x: not a listening address",
        ),
        (
            &[
                "run",
                "--upstream",
                "http://127.0.0.1:1",
                "--config",
                "nowhere.toml",
            ],
            "floodgate: cannot read nowhere.toml: No such file",
        ),
        (
            &[
                "run",
                "--upstream",
                "http://127.0.0.1:1",
                "--routes",
                "nowhere.toml",
            ],
            "floodgate: cannot read nowhere.toml: No such file or directory (os error 2); correct the \
             path after --routes or --apps, or leave it out: a table of routes is built in",
        ),
    ];
    for (args, start) in cases {
        let ran = run(args);
        assert_eq!(ran.code, 1, "{}", ran.err);
        assert!(ran.err.starts_with(start), "{}", ran.err);
        assert_eq!(ran.err.lines().count(), 1, "{}", ran.err);
    }
}

#[test]
fn what_explain_cannot_explain_is_said_and_what_to_write() {
    for (method, url, said) in [
        (
            "get",
            "/o/a/users/u",
            "get: methods are case-sensitive; write GET\n",
        ),
        (
            "Post",
            "/o/a/users",
            "methods are case-sensitive; write POST\n",
        ),
        (
            "GE T",
            "/o/a/users",
            "\"GE T\" is no method; write GET, POST, ",
        ),
        ("", "/o/a/users", "\"\" is no method"),
        (
            "GET",
            "http://host:99999/o/a/users",
            "the port is no number from 1 to 65535\n",
        ),
        ("GET", "http://host:0/o/a/users", "the port is no number"),
        ("GET", "http://[::1]:x/o/a/users", "the port is no number"),
        ("GET", "http:///o/a/users", "is no URL; write https://host/"),
        ("GET", "/o/a/users/a b", "a URL has no spaces"),
        (
            "GET",
            "/o/a/users/a\u{1b}[31mb",
            "\\u{1b}[31mb\": a URL has no spaces",
        ),
        ("GET", "o/a/users", "is no URL; write https://host/"),
    ] {
        let ran = run(&["explain", method, url]);
        assert_eq!((ran.code, &*ran.out), (1, ""), "{method} {url}");
        assert!(ran.err.contains(said), "{method} {url}: {}", ran.err);
        assert_eq!(ran.err.lines().count(), 1, "{}", ran.err);
    }
    for url in [
        "http://host:65535/o/a/users/u",
        "https://user@[::1]:8080/o/a/users/u",
        "http://host/o/a/users/u",
        "http://host:/o/a/users/u",
    ] {
        let ran = run(&["explain", "GET", url]);
        assert_eq!(ran.code, 0, "{url}: {}", ran.err);
    }
}

#[test]
fn a_switch_takes_its_value_with_a_space_too() {
    for value in ["true", "false"] {
        let ran = run(&["check", "--h2c", value]);
        assert_eq!(ran.code, 0, "{}", ran.err);
    }
    let ran = run(&["check", "--h2c", "on"]);
    assert_eq!(ran.code, 1);
    assert!(
        ran.err.starts_with("--h2c on: not one of true, false"),
        "{}",
        ran.err
    );
    // What follows a switch is no value of it because it stands there.
    let ran = run(&["explain", "--h2c", "GET", "/o/a/users/u"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
}

#[test]
fn route_files_without_an_edition_are_said_to_have_none() {
    for command in ["check", "run", "routes"] {
        let upstream = [("FLOODGATE_UPSTREAM", "http://127.0.0.1:1")];
        let args = [command, "--routes", "/dev/null"];
        let ran = run_with(&std::env::temp_dir(), &upstream, &args, "");
        assert_eq!(ran.code, 1);
        assert!(
            ran.err.contains(
                "there is no edition and no route in the route files; write --routes shipped before"
            ),
            "{}",
            ran.err
        );
    }
}

#[test]
fn no_name_steers_the_terminal() {
    let evil = "a\u{1b}]0;x\u{7}\u{9b}31m";
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("routes.toml");
    fs::write(
        &file,
        "[[route]]\nname = \"\\u001b[31mred\"\ncalls = [\"GET /x\\u0007\"]\n",
    )
    .unwrap();
    let file = file.to_str().unwrap();
    for args in [
        &["check", "--edition", evil][..],
        &["run", "--routes", evil],
        &["run", "--listen", evil],
        &["run", evil],
        &["run", "--edition", evil, "--upstream", "http://127.0.0.1:1"],
        &["explain", evil, "/o/a/users"],
        &["explain", "GET", evil],
        &["explain", "--ip", evil, "GET", "/o/a/users"],
        &["explain", "--body", evil, "GET", "/o/a/users"],
        &["routes", evil],
        &["check", "--routes", "shipped", "--routes", file],
        &["routes", "--routes", "shipped", "--routes", file],
        &[evil],
    ] {
        let ran = run(args);
        assert_ne!(ran.code, 0, "{args:?}");
        let text = ran.err + &ran.out;
        let raw = |c: char| c.is_control() && c != '\n';
        assert!(!text.contains(raw), "{args:?}: {text:?}");
    }
}

#[test]
fn a_port_in_use_is_one_line_and_exit_1() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let upstream = ["--upstream", "http://127.0.0.1:1"];
    for flag in ["--listen", "--admin"] {
        let other = match flag {
            "--listen" => "--admin",
            _ => "--listen",
        };
        let args = [&["run", flag, &addr, other, "127.0.0.1:0"], &upstream[..]].concat();
        let ran = run(&args);
        assert_eq!(ran.code, 1, "{}", ran.err);
        assert!(
            ran.err.contains(&format!("cannot listen on {addr}")),
            "{}",
            ran.err
        );
        assert_eq!(ran.err.lines().count(), 1, "{}", ran.err);
    }
}

#[test]
fn an_unknown_edition_is_told_the_known_ones() {
    for command in ["routes", "run"] {
        let args = [command, "--edition", "curent"];
        let upstream = [("FLOODGATE_UPSTREAM", "http://127.0.0.1:1")];
        let ran = run_with(&std::env::temp_dir(), &upstream, &args, "");
        assert_eq!(ran.code, 1);
        assert!(
            ran.err
                .starts_with("floodgate: unknown edition \"curent\"; known: current, "),
            "{}",
            ran.err
        );
        assert!(ran.err.ends_with("did you mean current?\n"), "{}", ran.err);
    }
}

#[test]
fn check_is_content_with_the_shipped_table() {
    let ran = run(&["check"]);
    assert_eq!((ran.code, &*ran.err), (0, ""));
    assert!(ran.out.starts_with("good: "), "{}", ran.out);
    assert!(
        ran.out.contains("v1 v2 v3 v4; selected: current"),
        "{}",
        ran.out
    );
}

#[test]
fn check_warns_of_a_file_of_totals_that_redis_makes_needless() {
    let store = ["--store", "redis://127.0.0.1:1"];
    let file = ["--plan-file", "totals"];
    let warns = |args: &[&str]| {
        let ran = run(&[&["check"], args].concat());
        assert_eq!((ran.code, &*ran.err), (0, ""));
        ran.out.contains("warning: plan_file totals is not used")
    };
    assert!(warns(&[store, file].concat()));
    assert!(!warns(&store) && !warns(&file));
}

#[test]
fn check_reports_all_mistakes_of_settings_and_routes() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(
        dir.path().join("floodgate.toml"),
        "lisen = 1\ngrace = \"30\"\n",
    )
    .unwrap();
    fs::write(dir.path().join("mine.toml"), "nonsense = 1\n").unwrap();
    let args = [
        "check",
        "--config",
        "floodgate.toml",
        "--routes",
        "shipped",
        "--routes",
        "mine.toml",
    ];
    let ran = run_with(dir.path(), &[], &args, "");
    assert_eq!((ran.code, &*ran.out), (1, ""));
    let lines: Vec<_> = ran.err.lines().collect();
    assert_eq!(
        lines[0],
        "floodgate.toml:1: unknown key \"lisen\"; did you mean listen?"
    );
    assert!(
        lines[1].starts_with("floodgate.toml:2: grace = \"30\": "),
        "{}",
        ran.err
    );
    assert!(lines[2].starts_with("mine.toml:1: "), "{}", ran.err);
    assert_eq!(*lines.last().unwrap(), "3 mistakes");
}

#[test]
fn check_tells_a_file_it_cannot_read_from_a_mistake() {
    for args in [
        ["check", "--config", "nowhere.toml"],
        ["check", "--routes", "nowhere.toml"],
    ] {
        let ran = run(&args);
        assert_eq!(ran.code, 2, "{}", ran.err);
        assert!(
            ran.err.starts_with("cannot read nowhere.toml: "),
            "{}",
            ran.err
        );
        assert!(ran.err.ends_with("\n1 mistake\n"), "{}", ran.err);
    }
}

#[test]
fn an_unreadable_route_file_hides_no_mistake_of_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let wrong = "[[route]]\nname = \"x\"\ncalls = [\"GET /x\"]\nv3 = { limits = [\"0/s\"] }\n";
    std::fs::write(dir.path().join("mine.toml"), wrong).unwrap();
    let args = ["check", "--routes", "nowhere.toml", "--routes", "mine.toml"];
    let ran = run_with(dir.path(), &[], &args, "");
    assert_eq!(ran.code, 2, "{}", ran.err);
    let lines: Vec<&str> = ran.err.lines().collect();
    assert!(lines[0].starts_with("cannot read nowhere.toml: "));
    assert!(lines[1].starts_with("mine.toml:4: route `x`: "));
    assert_eq!(lines[2..], ["2 mistakes"]);
}

#[test]
fn an_app_key_call_has_the_figures_of_v3_and_an_app_id_call_those_of_v4() {
    let by_key = explain("current", "GET", "https://host/Org/App/users/Alice?x=1");
    assert_eq!(by_key["edition"], "v3");
    assert_eq!(by_key["app"], "org#app");
    assert_eq!(by_key["user"], "alice");
    assert_eq!(by_key["ip"], "127.0.0.1");
    let expected = [
        figure("calls", 100, 1, "app", json!(1)),
        figure("calls", 100, 1, "ip", json!(1)),
    ];
    assert_eq!(figures(&by_key), expected);
    let by_id = explain("current", "GET", "/app-id/x/users/alice");
    assert_eq!(by_id["edition"], "v4");
    assert_eq!(figures(&by_id), expected[..1]);
    assert_eq!(
        explain("v4", "GET", "/org/app/users/alice")["edition"],
        "v4"
    );
}

#[test]
fn explain_names_the_pool_that_a_call_goes_to() {
    let dir = tempfile::tempdir().unwrap();
    let text = "[[pool]]\nname = \"files\"\nroutes = [\"chatfile-upload\"]\n\
                [[pool]]\nname = \"vip\"\napps = [\"org#vip\"]\n";
    let upload = explain("current", "POST", "/org/app/chatfiles")["route"].clone();
    let text = text.replace("chatfile-upload", upload.as_str().unwrap());
    std::fs::write(dir.path().join("floodgate.toml"), text).unwrap();
    let ask = |args: &[&str]| {
        let all = [&["explain", "--config", "floodgate.toml"], args].concat();
        run_with(dir.path(), &[], &all, "")
    };
    for (method, url, pool) in [
        ("GET", "/org/app/users/alice", json!("default")),
        ("POST", "/org/app/chatfiles", json!("files")),
        ("POST", "/Org/VIP/chatfiles", json!("vip")),
        // It goes nowhere.
        ("GET", "/users", json!(null)),
    ] {
        assert_eq!(
            json_of(&ask(&["--json", method, url]))["pool"],
            pool,
            "{url}"
        );
    }
    let told = ask(&["POST", "/org/app/chatfiles"]).out;
    let is_it = |line: &str| line.split_whitespace().eq(["pool", "files"]);
    assert!(told.lines().any(is_it), "{told}");
}

#[test]
fn an_upstream_that_is_the_gateway_is_refused_at_the_start() {
    for (listen, admin, upstream, where_) in [
        (
            "127.0.0.1:8080",
            "127.0.0.1:9",
            "http://127.0.0.1:8080",
            "127.0.0.1:8080",
        ),
        (
            ":8080",
            "127.0.0.1:9",
            "http://localhost:8080",
            "0.0.0.0:8080",
        ),
        (
            "127.0.0.1:8080",
            "127.0.0.1:9090",
            "http://127.0.0.1:9090",
            "127.0.0.1:9090",
        ),
    ] {
        let args = [
            "run",
            "--listen",
            listen,
            "--admin",
            admin,
            "--upstream",
            upstream,
        ];
        let ran = run(&args);
        assert_eq!(ran.code, 1, "{}", ran.err);
        let told = format!("the gateway itself listens at {where_}");
        assert!(
            ran.err.contains(&told) && ran.err.contains("--upstream"),
            "{}",
            ran.err
        );
        assert_eq!(ran.err.lines().count(), 1, "{}", ran.err);
    }
}

#[test]
fn times_and_limits_that_do_not_fit_each_other_are_told_what_to_write() {
    let dir = tempfile::tempdir().unwrap();
    let text = "first_byte_timeout = \"2s\"\nread_timeout = \"3s\"\n[[pool]]\nname = \"a\"\neditions = [\"v1\"]\n\
                first_byte_timeout = \"1s\"\nconcurrency = \"adaptiv\"\nconcurrency_max = 5\n\
                concurrency_min = 6\n";
    std::fs::write(dir.path().join("floodgate.toml"), text).unwrap();
    let ran = run_with(
        dir.path(),
        &[],
        &["check", "--config", "floodgate.toml"],
        "",
    );
    for told in [
        "floodgate.toml:1: first_byte_timeout = \"2s\": shorter than read_timeout, which is 3s",
        "floodgate.toml:9: concurrency_min = 6: more than concurrency_max, which is 5",
        "floodgate.toml:6: first_byte_timeout = \"1s\": shorter than read_timeout, which is 3s",
        "did you mean adaptive?",
    ] {
        assert!(
            ran.err.contains(told) || ran.out.contains(told),
            "{told}: {}{}",
            ran.out,
            ran.err
        );
    }
    assert_ne!(ran.code, 0);
}

#[test]
fn a_message_costs_its_recipients() {
    let dir = tempfile::tempdir().unwrap();
    let url = "/app-id/x/messages/users";
    let ask = |body: &str| {
        run_with(
            dir.path(),
            &[],
            &["explain", "--json", "--body", "-", "POST", url],
            body,
        )
    };
    let counted = json_of(&ask(r#"{"to":["a","b","b"],"type":"txt","body":{}}"#));
    let expected = [
        figure("calls", 100, 1, "app", json!(1)),
        figure("messages", 6000, 60, "app", json!(3)),
    ];
    assert_eq!(figures(&counted), expected);
    assert_eq!(counted["max_recipients"], 600);
    assert_eq!(counted.get("refused"), None);

    let unknown = explain("current", "POST", url);
    assert_eq!(figures(&unknown)[1].4, json!(null));

    let many: Vec<String> = (0..601).map(|i| format!("u{i}")).collect();
    for (body, reason) in [
        (
            json!({ "to": many }).to_string(),
            "params to's size can't exceed limit 600",
        ),
        (r#"{"to":[]}"#.to_owned(), "param to can't be empty"),
        (
            "{".to_owned(),
            "Request body is invalid. Please check body is correct.",
        ),
        (" ".repeat(65_537), "message is too large"),
    ] {
        let ran = ask(&body);
        assert_eq!(ran.code, 1);
        assert_eq!(
            json_of(&ran)["refused"],
            json!({"status": 400, "reason": reason})
        );
    }
}

#[test]
fn explain_says_what_is_refused() {
    for (method, url, status) in [
        ("GET", "/users", 404),
        ("PATCH", "/org/app/messages/users", 405),
    ] {
        let ran = run(&["explain", "--json", method, url]);
        assert_eq!(ran.code, 1);
        assert_eq!(json_of(&ran)["refused"]["status"], status);
    }
    let ran = run(&["explain", "GET", "host/org/app"]);
    assert_eq!(ran.code, 1);
    assert!(
        ran.err.starts_with("floodgate: \"host/org/app\" is no URL"),
        "{}",
        ran.err
    );
}

#[test]
fn explain_in_words_says_that_a_body_is_refused_and_how() {
    let args = ["explain", "--body", "-", "POST", "/org/app/messages/users"];
    let ran = run_with(&std::env::temp_dir(), &[], &args, r#"{"to":[]}"#);
    assert_eq!(ran.code, 1);
    let line = |start: &str| {
        let found = ran.out.lines().find(|line| line.trim().starts_with(start));
        found.unwrap_or_else(|| panic!("{start}: {}", ran.out))
    };
    assert!(line("refused").contains("400 param to can't be empty"));
    assert!(line("6000 messages/min").contains("  refused  "));
}

/// The first block of TOML in the README that has this.
fn of_the_readme(part: &str) -> &'static str {
    let mut blocks = include_str!("../README.md")
        .split("```toml\n")
        .filter_map(|text| text.split("```").next());
    blocks.find(|block| block.contains(part)).unwrap()
}

#[test]
fn the_task_slots_of_the_readme_hold_in_the_default_edition() {
    let block = of_the_readme("{ rate = \"3 tasks\"");
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("mine.toml"), block).unwrap();
    let layers = ["--routes", "shipped", "--routes", "mine.toml"];
    let check = run_with(dir.path(), &[], &[&["check"][..], &layers].concat(), "");
    assert_eq!(check.code, 0, "{}", check.err);
    for path in ["/org/app/push/task", "/app-id/x/push/task"] {
        let args = [&["explain", "--json"][..], &layers, &["POST", path]].concat();
        let explained = json_of(&run_with(dir.path(), &[], &args, ""));
        let by_app: Vec<_> = figures(&explained)
            .into_iter()
            .filter(|(.., scope, _)| scope.contains("app"))
            .map(|(unit, quota, ..)| (unit, quota))
            .collect();
        let expected = [("calls", 100), ("calls", 5), ("tasks", 3)];
        assert_eq!(
            by_app,
            expected.map(|(unit, n)| (unit.to_owned(), n)),
            "{path}"
        );
    }
}

const CERTIFICATE: &str = "0123456789abcdef0123456789abcdef";

#[test]
fn every_mistake_in_a_file_of_apps_is_told_with_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let apps = "[[app]]\nnames = [\"o#a\", \"id\"]\nlimits.message-users = \"12000/min\"\nedition = \"v9\"\n\
                [[app]]\nnames = \"O#A\"\nlimits.messages-users = \"100/day\"\nallow = [\"10.0.0.300\"]\n\
                [[app]]\nnames = \"id2\"\ncertificate_env = \"APP_CERTIFICATE\"\n";
    fs::write(dir.path().join("apps.toml"), apps).unwrap();
    let env = [("APP_CERTIFICATE", "not-so-secret")];
    let ran = run_with(dir.path(), &env, &["check", "--apps", "apps.toml"], "");
    let expected = [
        "apps.toml:4: app `o#a`: `v9`: unknown edition; did you mean `v1`?",
        "apps.toml:6: app `O#A`: `O#A`: app `o#a` has this name already, in apps.toml:2; an app's names stand in one entry",
        "apps.toml:7: app `O#A`: `100/day`: an app's figure goes over one for all, and there is none of this unit, window and scope; there are messages/min:app, messages/min:ip",
        "apps.toml:8: app `O#A`: `\"10.0.0.300\"`: not a network; write 203.0.113.0/24, 2001:db8::/32 or one address",
        "apps.toml:11: app `id2`: `APP_CERTIFICATE`: entry 1 is no certificate; write 32 hex digits, one certificate a line",
        "5 mistakes",
    ];
    assert_eq!(ran.err.lines().collect::<Vec<_>>(), expected);
    assert_eq!(ran.code, 1);
    let ran = run_with(
        dir.path(),
        &env,
        &[
            "run",
            "--upstream",
            "http://127.0.0.1:1",
            "--apps",
            "apps.toml",
        ],
        "",
    );
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("apps.toml:11: app `id2`"), "{}", ran.err);
    assert!(!ran.err.contains("not-so-secret"), "{}", ran.err);
}

#[test]
fn a_file_of_apps_is_good_or_unreadable() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    fs::create_dir(dir.path().join("conf")).unwrap();
    write(
        "conf/apps.toml",
        "[[app]]\nnames = [\"o#a\", \"id\"]\nlimits.messages-users = \"12000/min\"\n\
         certificate_file = \"id.cert\"\ncertificate_env = \"NEXT\"\n",
    );
    let check = |env: &[(&str, &str)], more: &[&str]| {
        let args = [&["check", "--apps", "conf/apps.toml"][..], more].concat();
        run_with(dir.path(), env, &args, "")
    };
    let env = [("NEXT", CERTIFICATE)];
    let ran = check(&env, &[]);
    assert_eq!(
        ran.code, 2,
        "the certificate's file is missing: {}",
        ran.err
    );
    assert!(
        ran.err
            .starts_with("conf/apps.toml:4: app `o#a`: `id.cert`: cannot read conf/id.cert"),
        "{}",
        ran.err
    );
    write(
        "conf/id.cert",
        &format!("{CERTIFICATE}\n{}\n", "f".repeat(32)),
    );
    let ran = check(&env, &["--unknown-apps", "reject"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(
        ran.out.ends_with("selected: current; 1 app\n"),
        "{}",
        ran.out
    );
    let ran = check(&[], &[]);
    assert_eq!(ran.code, 1, "{}", ran.err);
    assert!(ran.err.contains("`NEXT`: no such variable"), "{}", ran.err);
    let ran = check(&env, &["--apps", "gone.toml"]);
    assert_eq!(ran.code, 2);
    assert!(ran.err.starts_with("cannot read gone.toml"), "{}", ran.err);
    let ran = run(&["check", "--unknown-apps", "reject"]);
    assert_eq!(ran.code, 1);
    assert!(
        ran.err
            .contains("every app is unknown; name a file of known ones with --apps"),
        "{}",
        ran.err
    );
}

#[test]
fn explain_says_what_is_known_of_an_app_and_needs_no_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let apps = "[[app]]\nnames = [\"Org#App\", \"id\"]\nedition = \"v3\"\nlimits.messages-users = \"12000/min\"\n\
                allow = [\"10.0.0.0/8\"]\ncertificate_file = \"gone\"\n\
                [[app]]\nnames = \"old\"\nsuspended = true\n";
    fs::write(dir.path().join("apps.toml"), apps).unwrap();
    let ask = |args: &[&str]| {
        let all = [&["explain", "--apps", "apps.toml"][..], args].concat();
        run_with(dir.path(), &[], &all, "")
    };
    let path = "/app-id/ID/messages/users";
    let explained = json_of(&ask(&["--json", "--ip", "10.1.1.1", "POST", path]));
    assert_eq!(explained["app"], "org#app");
    assert_eq!(explained["edition"], "v3");
    assert_eq!(
        explained["known"],
        json!({ "names": ["org#app", "id"], "allow": ["10.0.0.0/8"], "suspended": false })
    );
    let expected = [
        figure("messages", 12_000, 60, "app", json!(null)),
        figure("messages", 12_000, 60, "ip", json!(null)),
    ];
    assert_eq!(figures(&explained), expected);
    assert_eq!(explained["limits"][0]["quota_of_all"], 6000);
    assert_eq!(
        explained["limits"][0]["key"],
        "messages-users:messages/min:app{org#app}"
    );
    let words = ask(&["--ip", "10.1.1.1", "POST", path]);
    for said in [
        "12000 messages/min (its own; 6000 for all)",
        "also        id",
        "allowed     10.0.0.0/8",
    ] {
        assert!(words.out.contains(said), "{said}: {}", words.out);
    }
    let outside = ask(&["--json", "POST", path]);
    assert_eq!(outside.code, 1);
    assert_eq!(
        json_of(&outside)["refused"],
        json!({ "status": 403, "reason": "This app may not be called from this address." })
    );
    let suspended = json_of(&ask(&["--json", "GET", "/app-id/old/users/a"]));
    assert_eq!(suspended["refused"]["status"], 403);
    assert_eq!(suspended["known"]["suspended"], true);
    assert_eq!(suspended["limits"][0]["name"], "unauthorized:calls/s:ip");
    let unknown = ask(&["--json", "--unknown-apps", "reject", "GET", "/x/y/users/a"]);
    assert_eq!(json_of(&unknown)["refused"]["status"], 404);
}

#[test]
fn explain_says_how_long_an_app_keeps_its_history() {
    let dir = tempfile::tempdir().unwrap();
    let apps = "[[app]]\nnames = [\"o#a\", \"id\"]\nplan = \"free\"\n\
                [[app]]\nnames = \"own\"\nhistory_days = 30\n";
    fs::write(dir.path().join("apps.toml"), apps).unwrap();
    let ask = |args: &[&str]| {
        let all = [&["explain", "--apps", "apps.toml"][..], args].concat();
        run_with(dir.path(), &[], &all, "")
    };
    let gone = ask(&["--json", "GET", "/app-id/id/chatmessages/2020010100"]);
    assert_eq!(gone.code, 1);
    let explained = json_of(&gone);
    assert_eq!(explained["route"], "chatmessages-one");
    assert_eq!(explained["known"]["plan"], "free");
    assert_eq!(explained["refused"]["status"], 404);
    assert_eq!(explained["limits"][0]["name"], "rejected:calls/s:ip");
    assert_eq!(explained["limits"][0]["cost"], 1);
    let history = &explained["history"];
    assert_eq!(history["days"], 3);
    assert_eq!(history["timezone"], "UTC");
    assert_eq!(history["hour"], "2020010100");
    assert_eq!(history["expired"], true);
    assert_eq!(history["sources"][0], "002:36");

    let coming = ask(&["GET", "/o/a/chatmessages/9999123123"]);
    assert_eq!(coming.code, 0, "{}", coming.err);
    for said in ["plan     free\n", "history  3 days; from "] {
        assert!(coming.out.contains(said), "{said}: {}", coming.out);
    }
    let own = json_of(&ask(&["--json", "GET", "/app-id/own/chatmessages/x"]));
    assert_eq!(own["history"]["days"], 30);
    assert_eq!(own["history"]["hour"], json!(null));
    assert_eq!(own["history"]["sources"], json!([]));
    let unknown = json_of(&ask(&["--json", "GET", "/x/y/chatmessages/2020010100"]));
    assert_eq!(unknown["history"], json!(null));
    assert_eq!(unknown["refused"], json!(null));
}

#[test]
fn explain_says_what_a_call_does_to_what_a_plan_bounds() {
    let dir = tempfile::tempdir().unwrap();
    let apps = "[[app]]\nnames = \"o#a\"\nplan = \"free\"\n[[app]]\nnames = \"p#a\"\n";
    fs::write(dir.path().join("apps.toml"), apps).unwrap();
    let ask = |args: &[&str], body: &str| {
        let all = [&["explain", "--apps", "apps.toml", "--body", "-"][..], args].concat();
        run_with(dir.path(), &[], &all, body)
    };
    let users = r#"[{"username":"x"},{"username":"y"}]"#;
    let two = ask(&["--json", "POST", "/o/a/users"], users);
    assert_eq!(two.code, 0, "{}{}", two.out, two.err);
    let expected = json!([{"total": "users", "of": null, "effect": "takes", "units": 2, "max": 100,
        "mode": "enforce", "approximate": false, "never_fits": false,
        "sources": ["002:12", "002:16", "002:20", "002:24"]}]);
    assert_eq!(json_of(&two)["totals"], expected);
    let friend = "/o/a/users/ann/contacts/users/bob";
    let friend = json_of(&ask(&["--json", "POST", friend], ""));
    let of: Vec<_> = friend["totals"].as_array().unwrap().iter().collect();
    assert_eq!((&of[0]["of"], &of[1]["of"]), (&json!("ann"), &json!("bob")));
    assert_eq!(of[0]["approximate"], true);
    let gone = ask(&["DELETE", "/o/a/users/ann"], "");
    assert!(gone.out.contains(" frees  enforce\n"), "{}", gone.out);
    // A free app has no chatroom at all.
    let room = ask(&["POST", "/o/a/chatrooms"], r#"{"name":"r","owner":"ann"}"#);
    assert_eq!(room.code, 1);
    for said in ["takes 1, which is refused", "(plan:chatrooms)"] {
        assert!(room.out.contains(said), "{said}: {}", room.out);
    }
    // Nor is there a total of an app without a plan.
    let none = json_of(&ask(&["--json", "POST", "/p/a/users"], users));
    assert_eq!(none["totals"], json!(null));
    // Without a body it is not known how many.
    let all = ["explain", "--apps", "apps.toml", "POST", "/o/a/users"];
    let unknown = run_with(dir.path(), &[], &all, "");
    assert!(unknown.out.contains("takes, by body"), "{}", unknown.out);
    let listed = json_of(&run(&["routes", "--json"]));
    let listed = listed.as_array().unwrap().iter();
    let mut post = listed.filter(|r| r["route"] == "users-post");
    let post = post.next().unwrap();
    assert_eq!(post["totals"], json!(["users"]));
    let payload = post["payload"].as_array().unwrap();
    assert!(payload.contains(&json!("users-registered")), "{payload:?}");
}

#[test]
fn explain_says_what_a_call_may_carry_and_what_refuses_it() {
    let path = "/o/a/messages/users";
    let ask = |args: &[&str], body: &str| {
        let all = [&["explain"][..], args, &["--body", "-", "POST", path]].concat();
        run_with(&std::env::temp_dir(), &[], &all, body)
    };
    let body = |length: usize| {
        let text = "中".repeat(length / 3) + &"a".repeat(length % 3);
        format!(r#"{{"from":"a b","to":["b"],"type":"txt","body":{{"msg":"{text}"}}}}"#)
    };
    let good = ask(&["--json"], &body(3072));
    assert_eq!(good.code, 0, "{}", good.err);
    let explained = json_of(&good);
    let payload = |explained: &Value, limit: &str, place: &str| {
        let all = explained["payload"].as_array().unwrap();
        let mut all = all.iter();
        let found = all.find(|view| view["limit"] == limit && view["place"] == place);
        found.unwrap().clone()
    };
    assert_eq!(
        payload(&explained, "message-text", "body.msg"),
        json!({
            "limit": "message-text", "place": "body.msg", "measure": "bytes", "max": 3072,
            "types": ["txt"], "validate": "enforce", "found": 3072, "exceeded": false,
            "sources": ["002:48"],
        })
    );
    let user = payload(&explained, "user-id", "from");
    assert_eq!(user["validate"], "report");
    assert_eq!(user["allow"], "A-Za-z0-9_.-");
    assert_eq!(user["exceeded"], true);
    assert_eq!(explained["limits"][0]["cost"], 1);

    let refused = ask(&["--json"], &body(3073));
    assert_eq!(refused.code, 1);
    let explained = json_of(&refused);
    assert_eq!(
        explained["refused"],
        json!({"status": 400, "reason": "message is too large", "limit": "message-text"})
    );
    assert_eq!(
        payload(&explained, "message-text", "body.msg")["found"],
        3073
    );
    assert_eq!(explained["limits"][0]["cost"], 0);
    let words = ask(&[], &body(3073)).out;
    for said in [
        "refused     400 message is too large (message-text)",
        "3073, which is refused",
        "message-ext      as its message",
        "3, which is reported",
    ] {
        assert!(words.contains(said), "{said}: {words}");
    }
    for (args, code) in [
        (&["--edition", "v1"][..], 0),
        (&["--validate", "report"], 0),
        (&["--validate", "off"], 0),
    ] {
        assert_eq!(ask(args, &body(3073)).code, code, "{args:?}");
    }
    assert_eq!(ask(&["--validate", "no"], &body(1)).code, 1);

    // Without a body: what there is.
    let none = explain("current", "POST", path);
    assert_eq!(
        payload(&none, "message-text", "body.msg")["found"],
        json!(null)
    );
    // A path, and a file of which the boundary is its first line.
    let ran = run(&["explain", "GET", "/o/a/users/a%20b"]);
    assert!(
        ran.out.contains("{username}  3, which is reported"),
        "{}",
        ran.out
    );
    let file = |length: usize| {
        let body = format!(
            "--x\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\n{}\r\n--x--\r\n",
            "a".repeat(length)
        );
        let args = ["explain", "--json", "--body", "-", "POST", "/o/a/chatfiles"];
        run_with(&std::env::temp_dir(), &[], &args, &body)
    };
    assert_eq!(file(10 << 20).code, 0);
    let large = file((10 << 20) + 1);
    assert_eq!(json_of(&large)["refused"]["status"], 413);
    assert_eq!(json_of(&large)["refused"]["limit"], "file");
}

#[test]
fn the_apps_of_the_readme_are_good() {
    let block = of_the_readme("[[app]]");
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("apps.toml"), block).unwrap();
    fs::write(dir.path().join("acme.cert"), CERTIFICATE).unwrap();
    let ran = run_with(dir.path(), &[], &["check", "--apps", "apps.toml"], "");
    assert_eq!(ran.code, 0, "{}", ran.err);
    let block = of_the_readme("[history]");
    fs::write(dir.path().join("mine.toml"), block).unwrap();
    let args = ["check", "--routes", "shipped", "--routes", "mine.toml"];
    let ran = run_with(dir.path(), &[], &args, "");
    assert_eq!(ran.code, 0, "{}", ran.err);
}

#[test]
fn the_pools_of_the_readme_are_good() {
    let block = of_the_readme("[[pool]]");
    let dir = tempfile::tempdir().unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let ca = rcgen::CertificateParams::new(Vec::new()).unwrap();
    let ca = ca.self_signed(&key).unwrap().pem();
    fs::write(dir.path().join("files-ca.pem"), ca).unwrap();
    fs::write(dir.path().join("floodgate.toml"), block).unwrap();
    let args = ["check", "--config", "floodgate.toml"];
    let ran = run_with(dir.path(), &[], &args, "");
    assert_eq!(ran.code, 0, "{}", ran.err);
}

#[test]
fn the_edge_of_the_readme_is_good() {
    let block = of_the_readme("tls_cert");
    let dir = tempfile::tempdir().unwrap();
    for name in ["a.example", "b.example"] {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        let cert = params.self_signed(&key).unwrap().pem();
        fs::write(dir.path().join(format!("{name}.crt")), cert).unwrap();
        fs::write(dir.path().join(format!("{name}.key")), key.serialize_pem()).unwrap();
    }
    let block = block.replace("/etc/floodgate/", "");
    fs::write(dir.path().join("floodgate.toml"), block).unwrap();
    let args = ["check", "--config", "floodgate.toml"];
    let ran = run_with(dir.path(), &[], &args, "");
    assert_eq!(ran.code, 0, "{}", ran.err);
}

#[test]
fn numbers_and_switches_need_no_quotes() {
    let dir = tempfile::tempdir().unwrap();
    for (line, code) in [
        ("https_only = true", 0),
        ("https_only = false", 0),
        ("https_only = 1", 1),
        ("https_redirect = 443", 0),
        ("https_redirect = true", 1),
        ("max_body = 1000000", 0),
        ("tls_min = 1.3", 0),
        ("tls_min = 1.4", 1),
        ("threads = 2", 0),
        ("watch = false", 0),
        ("grace = 30", 1),
    ] {
        fs::write(dir.path().join("floodgate.toml"), line).unwrap();
        let ran = run_with(
            dir.path(),
            &[],
            &["check", "--config", "floodgate.toml"],
            "",
        );
        assert_eq!(ran.code, code, "{line}: {}", ran.err);
    }
}

#[test]
fn what_a_pool_names_must_be_there() {
    let dir = tempfile::tempdir().unwrap();
    let text = "[[pool]]\nname = \"a\"\nroutes = [\"chatfile\"]\napps = [\"O#a\"]\n\
                [[pool]]\nname = \"b\"\neditions = [\"v9\"]\napps = [\"o#A\", \"x/y\"]\nca = \"no.pem\"\n";
    fs::write(dir.path().join("floodgate.toml"), text).unwrap();
    let args = ["check", "--config", "floodgate.toml"];
    let ran = run_with(dir.path(), &[], &args, "");
    assert_eq!(ran.code, 1, "{}", ran.err);
    for line in [
        "floodgate.toml:3: there is no route \"chatfile\"; did you mean chatfiles?",
        "floodgate.toml:7: there is no edition \"v9\"; known: ",
        "floodgate.toml:8: app \"o#A\" is at floodgate.toml:4 already: a call goes to one pool",
        "floodgate.toml:8: \"x/y\" is no app; write org#app or an App ID",
        "pool b: ca no.pem: ",
        "5 mistakes",
    ] {
        assert!(ran.err.contains(line), "{line}\n{}", ran.err);
    }
}

#[test]
fn explain_in_words_names_the_chinese_title() {
    let ran = run(&[
        "explain",
        "--ip",
        "2001:db8:1:2:3::4",
        "GET",
        "/org/app/users/alice",
    ]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.out.contains("2001:db8:1:2::"), "{}", ran.out);
    assert!(ran.out.contains('用'), "{}", ran.out);
}

#[test]
fn routes_lists_every_call_in_both_forms() {
    let ran = run(&["routes", "--json"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    let list = json_of(&ran);
    let list = list.as_array().unwrap();
    let of_form = |prefix: &str, edition: &str| {
        list.iter()
            .filter(|r| r["path"].as_str().unwrap().starts_with(prefix))
            .inspect(|r| assert_eq!(r["edition"], edition))
            .count()
    };
    let by_key = of_form("/{org_name}/{app_name}", "v3");
    let by_id = of_form("/app-id/{app_id}", "v4");
    // 185 pairs of method and path shape in the documents, App Key and App ID forms counted once.
    assert!(by_key >= 150, "{by_key}");
    assert_eq!(by_key, by_id);
    assert_eq!(by_key + by_id, list.len());
    for entry in list {
        assert!(!entry["limits"].as_array().unwrap().is_empty(), "{entry}");
        let sources = entry["sources"].as_array().unwrap();
        assert!(!sources.is_empty(), "{entry}");
        assert!(
            sources.iter().all(|s| s.as_str().unwrap().contains(':')),
            "{entry}"
        );
    }
}

#[test]
fn routes_shows_what_holds_for_a_known_app() {
    let dir = tempfile::tempdir().unwrap();
    let apps = "[[app]]\nnames = [\"Own#Chat\", \"0a1b\"]\nplan = \"basic\"\nedition = \"v3\"\n\
                suspended = true\nallow = [\"10.0.0.0/8\"]\ncertificate_file = \"not-there\"\n\
                limits.messages-users = \"12345/min\"\n\
                [[app]]\nnames = [\"plain#app\"]\n";
    fs::write(dir.path().join("apps.toml"), apps).unwrap();
    let run_here = |args: &[&str]| {
        let all = [&["routes", "--apps", "apps.toml"][..], args].concat();
        run_with(dir.path(), &[], &all, "")
    };
    let all = run_here(&[]);
    assert_eq!(all.code, 0, "{}", all.err);
    let note = "1 of 2 known apps differ: floodgate routes --app NAME\n";
    assert!(all.out.starts_with(note), "{}", all.out);
    assert!(!all.out.contains("12345"), "{}", all.out);
    for name in ["own#chat", "Own#Chat", "0A1B"] {
        let own = run_here(&["--app", name]);
        assert_eq!(own.code, 0, "{}", own.err);
        assert_eq!(
            own.out.lines().next(),
            Some(
                "app own#chat, 0a1b; plan basic; from 10.0.0.0/8 alone; suspended: each of its \
                 calls is answered by 403"
            )
        );
        assert!(
            own.out.contains("12345 messages/min per app"),
            "{}",
            own.out
        );
        assert_eq!(own.out.matches("(edition v3)").count(), 2, "{}", own.out);
    }
    let listed = json_of(&run_here(&["--app", "own#chat", "--json"]));
    let own: Vec<_> = listed
        .as_array()
        .unwrap()
        .iter()
        .filter(|entry| {
            let limits = entry["limits"].as_array().unwrap();
            limits.iter().any(|limit| limit["quota"] == 12345)
        })
        .map(|entry| entry["route"].as_str().unwrap())
        .collect();
    assert!(
        own.len() == 2 && own.iter().all(|route| *route == "messages-users"),
        "{own:?}"
    );
    // One that has a name in one form is called in that form alone.
    let plain = run_here(&["--app", "plain#app"]);
    assert!(plain.out.contains("/{org_name}") && !plain.out.contains("/app-id/"));
    for (name, instead) in [
        ("own#chatt", "did you mean \"own#chat\"?"),
        (
            "nothing-like-it",
            "leave it out to see what holds for an app like any other",
        ),
    ] {
        let ran = run_here(&["--app", name]);
        assert_eq!(ran.code, 1);
        assert_eq!(
            ran.err,
            format!("floodgate: --app {name:?}: no [[app]] entry has this name; {instead}\n")
        );
    }
    let ran = run(&["routes", "--app", "x"]);
    assert!(
        ran.err.contains("name the file that has it by --apps"),
        "{}",
        ran.err
    );
}

#[test]
fn a_file_by_itself_is_told_how_it_is_named() {
    for command in ["check", "run", "routes"] {
        let ran = run(&[command, "nope.toml"]);
        assert_eq!(ran.code, 2);
        assert!(
            ran.err
                .contains("tip: a file is named by what it holds: --config for settings"),
            "{}",
            ran.err
        );
    }
    let ran = run(&["check", "--nope.toml"]);
    assert!(!ran.err.contains("a file is named"), "{}", ran.err);
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_floodgate"));
    command
        .env_clear()
        .arg("routes")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stderr.is_empty());
}

#[test]
fn the_size_of_a_body_is_shown_where_it_is_a_routes_own() {
    let url = "https://h/o/a/chatfiles";
    for (args, bytes, words) in [
        (&["POST", url][..], 11 << 20, "body     at most 11 MiB"),
        (
            &["POST", "https://h/o/a/users"],
            2 << 20,
            "body     at most 2 MiB",
        ),
        (
            &["--max-body", "300KiB", "POST", "https://h/o/a/users"],
            300 << 10,
            "body     at most 300 KiB",
        ),
        (
            &["--max-body", "1MiB", "POST", url],
            11 << 20,
            "body     at most 11 MiB",
        ),
    ] {
        let json = run(&[&["explain", "--json"], args].concat());
        assert_eq!(json_of(&json)["max_body"], bytes, "{args:?}");
        let text = run(&[&["explain"], args].concat()).out;
        assert!(text.contains(words), "{text}");
    }
    let listed = json_of(&run(&["routes", "--json"]));
    let sizes: Vec<_> = listed
        .as_array()
        .unwrap()
        .iter()
        .filter(|route| !route["max_body"].is_null())
        .map(|route| (route["path"].as_str().unwrap(), &route["max_body"]))
        .collect();
    assert_eq!(sizes.len(), 4, "{sizes:?}");
    let text = run(&["routes"]).out;
    assert_eq!(text.matches("body at most 11 MiB").count(), 4);
    let ran = run(&[
        "check",
        "--upstream",
        "http://127.0.0.1:1",
        "--max-body",
        "10MB",
    ]);
    assert_eq!(ran.code, 1);
    assert!(
        ran.err.contains("--max-body 10MB: not a size; write"),
        "{}",
        ran.err
    );
}

#[test]
fn verifying_by_no_certificate_at_all_is_a_mistake() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    write(
        "own.toml",
        "[[route]]\nname = \"chatfiles\"\nauth = \"verify\"\n",
    );
    write(
        "apps.toml",
        "[[app]]\nnames = [\"o#a\", \"id\"]\ncertificate_env = \"CERTIFICATE\"\n",
    );
    let run = |args: &[&str]| run_with(dir.path(), &[("CERTIFICATE", CERTIFICATE)], args, "");
    let own = ["--routes", "shipped", "--routes", "own.toml"];
    let apps = ["--apps", "apps.toml"];
    for (args, start) in [
        (
            &["--auth", "verify"][..],
            "auth verify: no app has a certificate",
        ),
        (&own, "route `chatfiles`: auth verify: no app"),
    ] {
        let ran = run(&[&["check"], args].concat());
        assert_eq!(ran.code, 1, "{}", ran.err);
        assert!(ran.err.starts_with(start), "{}", ran.err);
        let ran = run(&[&["run", "--upstream", "http://127.0.0.1:1"], args].concat());
        assert_eq!(ran.code, 1, "{}", ran.err);
        assert!(ran.err.contains(start), "{}", ran.err);
        let ran = run(&[&["check"], args, &apps].concat());
        assert_eq!(ran.code, 0, "{}", ran.err);
    }
}
