//! `floodgate load`, against gateways whose limits it knows, and against one that lies.

use std::process::{Command, Output};

use super::ROUTES;
use super::harness::{Gateway, Start};

const BIN: &str = env!("CARGO_BIN_EXE_floodgate");

const MIX: &str = r#"
apps = ["load#one", "load#two"]
ips = 100000
[[call]]
name = "app"
method = "GET"
path = "/t/app"
[[call]]
name = "messages"
method = "POST"
path = "/t/messages"
body = '{"to":[{users:3}]}'
[[call]]
name = "free"
method = "GET"
path = "/users/{user}"
"#;

struct Loaded {
    output: Output,
    report: serde_json::Value,
    page: String,
}

impl Loaded {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.output.stdout).into_owned()
    }

    fn limit(&self, limit: &str, who: &str) -> &serde_json::Value {
        let rows = self.report["limits"].as_array().expect("limits");
        rows.iter()
            .find(|row| {
                row["limit"]
                    .as_str()
                    .is_some_and(|name| name.starts_with(limit))
                    && row["who"] == who
            })
            .unwrap_or_else(|| panic!("no {limit} of {who}: {rows:?}"))
    }
}

/// Loads a gateway by these routes, which need not be its own.
fn load(gateway: &Gateway, routes: &str, args: &[&str]) -> Loaded {
    let dir = tempfile::tempdir().expect("a folder");
    let file = |name: &str| dir.path().join(name);
    std::fs::write(file("mix.toml"), MIX).expect("a mix");
    std::fs::write(file("routes.toml"), routes).expect("routes");
    let output = Command::new(BIN)
        .args(["load", "--target", &format!("http://{}", gateway.addr)])
        .args(["--routes", "shipped", "--routes"])
        .arg(file("routes.toml"))
        .arg("--mix")
        .arg(file("mix.toml"))
        .args(["--rate", "50", "--duration", "2s", "--connections", "4"])
        .arg("--json")
        .arg(file("report.json"))
        .arg("--html")
        .arg(file("report.html"))
        .args(args)
        .output()
        .expect("the load");
    let report = std::fs::read(file("report.json")).expect("a report");
    Loaded {
        report: serde_json::from_slice(&report).unwrap_or_default(),
        page: std::fs::read_to_string(file("report.html")).expect("a page"),
        output,
    }
}

fn number(value: &serde_json::Value) -> u64 {
    value
        .as_u64()
        .unwrap_or_else(|| panic!("{value} is no number"))
}

#[test]
fn what_was_admitted_is_what_the_limits_allow_and_what_the_backend_saw() {
    let gateway = Start {
        routes: ROUTES,
        args: &["--trusted-proxy", "127.0.0.1"],
        ..Start::default()
    }
    .start();
    let loaded = load(&gateway, ROUTES, &[]);
    let text = loaded.text();
    assert_eq!(loaded.output.status.code(), Some(0), "{text}");
    let report = &loaded.report;
    let (admitted, denied) = (number(&report["admitted"]), number(&report["denied"]));
    assert_eq!(
        (number(&report["failed"]), number(&report["missed"])),
        (0, 0),
        "{text}"
    );
    assert_eq!(admitted + denied, 100, "{text}");
    assert_eq!(admitted, gateway.backend().count() as u64);
    assert!(denied > 20, "{text}");
    for app in ["load#one", "load#two"] {
        let calls = loaded.limit("t-app:calls/60min:app", app);
        assert!(
            number(&calls["denied"]) > 0 && calls["most_in_a_window"] == 3,
            "{calls}"
        );
        assert_eq!(
            (&calls["exceeded"], number(&calls["denied_early"])),
            (&false.into(), 0)
        );
        // Three calls of three recipients are nine of ten messages.
        let messages = loaded.limit("t-messages:messages/60min:app", app);
        assert_eq!(
            (number(&messages["admitted"]), number(&messages["quota"])),
            (9, 10)
        );
    }
    assert!(
        text.contains("app load#one: 3 calls/3600s allowed, 3 admitted, "),
        "{text}"
    );
    assert!(text.contains("No limit was exceeded."), "{text}");
    assert!(number(&report["latency"]["p50_us"]) > 0);
    assert!(
        report["series"]
            .as_array()
            .is_some_and(|series| !series.is_empty())
    );
    for part in [
        "<svg",
        "load#one",
        "t-app:calls/60min:app",
        "No limit was exceeded.",
    ] {
        assert!(loaded.page.contains(part), "{part}");
    }
    let progress = String::from_utf8_lossy(&loaded.output.stderr);
    assert!(
        progress
            .lines()
            .any(|line| line.contains(" s  ") && line.contains("admitted")),
        "{progress}"
    );
}

#[test]
fn a_gateway_that_lets_more_through_than_its_limits_say_is_found_out() {
    let gateway = Start {
        routes: ROUTES,
        args: &["--trusted-proxy", "127.0.0.1"],
        ..Start::default()
    }
    .start();
    let loaded = load(&gateway, &ROUTES.replace("\"3/3600s\"", "\"2/3600s\""), &[]);
    let text = loaded.text();
    assert_eq!(loaded.output.status.code(), Some(1), "{text}");
    assert_eq!(
        loaded.limit("t-app:calls/60min:app", "load#one")["exceeded"],
        true
    );
    assert!(text.contains("EXCEEDED"), "{text}");
    assert!(loaded.page.contains("class=\"verdict bad\""));
}

#[test]
fn the_same_calls_go_over_http2() {
    let gateway = Start {
        routes: ROUTES,
        args: &["--h2c", "--trusted-proxy", "127.0.0.1"],
        ..Start::default()
    }
    .start();
    let loaded = load(&gateway, ROUTES, &["--http2"]);
    assert_eq!(loaded.output.status.code(), Some(0), "{}", loaded.text());
    assert_eq!(
        number(&loaded.report["admitted"]),
        gateway.backend().count() as u64
    );
    assert_eq!(number(&loaded.report["failed"]), 0, "{}", loaded.text());
}

#[test]
fn a_target_that_does_not_answer_is_said_to_be_none() {
    let gone = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let addr = gone.local_addr().expect("its address");
    drop(gone);
    let output = Command::new(BIN)
        .args(["load", "--target", &format!("http://{addr}")])
        .args(["--rate", "20", "--duration", "1s"])
        .output()
        .expect("the load");
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.contains("could not connect: 20") && text.contains("Nothing was answered."),
        "{text}"
    );
}

#[test]
fn mistakes_are_said_before_anything_is_sent() {
    let run = |args: &[&str]| {
        let output = Command::new(BIN)
            .arg("load")
            .args(args)
            .output()
            .expect("the load");
        assert_eq!(
            output.status.code().map(|code| code > 0),
            Some(true),
            "{args:?}"
        );
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let here = ["--target", "http://127.0.0.1:9"];
    let with = |more: &[&'static str]| run(&[&here[..], more].concat());
    assert!(run(&["--target", "http://192.0.2.1:80"]).contains("--allow-target 192.0.2.1"));
    assert!(run(&[]).contains("--target"));
    assert!(with(&["--rate", "0"]).contains("--rate 0: write calls each second"));
    assert!(with(&["--ramp", "5"]).contains("from..to, e.g. 100..2000"));
    assert!(with(&["--duration", "5"]).contains("--duration 5: "));
    assert!(with(&["--mix", "/nowhere.toml"]).contains("--mix /nowhere.toml: cannot read it"));
    assert!(with(&["--json", "/nowhere/x"]).contains("cannot write /nowhere/x"));
    let mix = Command::new(BIN)
        .args(["load", "--print-mix"])
        .output()
        .expect("the mix");
    assert!(mix.status.success() && String::from_utf8_lossy(&mix.stdout).contains("[[call]]"));
}
