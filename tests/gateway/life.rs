//! Start, health, metrics, log, drain.

use std::net::TcpListener;
use std::process::Command;

use crate::door::soon;
use crate::harness::{BIN, Connection, Gateway, start};

#[test]
fn each_worker_has_a_socket_of_its_own() {
    let gateway = start(&["--threads", "3"]);
    // Local addresses of listening sockets, as the kernel lists them.
    let hex_port = format!(":{:04X} ", gateway.addr.port());
    let listening = || {
        let table = std::fs::read_to_string("/proc/net/tcp").expect("the kernel's table");
        table
            .lines()
            .filter(|l| l.contains(&hex_port) && l.contains(" 0A "))
            .count()
    };
    // The first answers before the last is there.
    soon("all listen", || listening() >= 3);
    assert_eq!(listening(), 3);
}

#[test]
fn health_and_metrics_are_served() {
    let gateway = start(&[]);
    gateway.call("GET", "/o/a/users/alice", "");
    // Counted when it has ended, which is after its answer.
    soon("it is counted", || {
        gateway.metric("floodgate_decisions_total", &["verb=\"admit\""]) == 1.0
            && gateway.metric("floodgate_requests_in_flight", &[]) == 0.0
    });
    let get = |path: &str| Connection::to(gateway.admin).call("GET", path, &[], "");
    assert_eq!(get("/live").status, 200);
    assert_eq!(get("/ready").status, 200);
    let text = get("/metrics").text();
    for name in [
        "floodgate_decisions_total",
        "floodgate_units_charged_total",
        "floodgate_own_seconds_bucket",
        "floodgate_upstream_seconds_bucket",
        "floodgate_counters",
        "floodgate_task_slots_in_use",
    ] {
        assert!(text.contains(name), "{name} is missing");
    }
    assert!(!text.contains("alice"), "a caller's name is a label");
    assert_eq!(
        gateway.metric("floodgate_decisions_total", &["verb=\"admit\""]),
        1.0
    );
}

#[test]
fn the_access_log_names_the_call_and_never_the_token() {
    let mut gateway = start(&[]);
    gateway.connect().call(
        "GET",
        "/Org/App/users/alice?token=query",
        &["Authorization: Bearer s3cret"],
        "",
    );
    gateway.signal("-TERM");
    gateway.wait();
    soon("its line", || gateway.log().contains("\"path\""));
    let log = gateway.log();
    let line = log
        .lines()
        .find(|l| l.contains("\"path\""))
        .unwrap_or_else(|| panic!("no line: {log}"));
    let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
    assert_eq!(line["app"], "org#app");
    assert_eq!(line["verb"], "admit");
    assert_eq!(line["status"], 200);
    assert_eq!(line["path"], "/Org/App/users/alice");
    for key in [
        "id",
        "route",
        "limit",
        "cost",
        "own_us",
        "upstream_us",
        "ip",
        "method",
    ] {
        assert!(!line[key].is_null(), "{key} is missing: {line}");
    }
    assert!(!log.contains("s3cret") && !log.contains("query"));
}

#[test]
fn a_refused_path_is_logged_as_it_came_and_without_its_query() {
    let gateway = start(&[]);
    assert_eq!(
        gateway
            .call("GET", "/o/a/us%1bers/../x?token=query", "")
            .status,
        400
    );
    soon("its line", || gateway.log().contains("/o/a/us%1bers/../x"));
    assert!(!gateway.log().contains("token=query"));
}

#[test]
fn a_drain_lets_running_requests_end_and_exits_0() {
    let mut gateway = start(&["--grace", "80s"]);
    let mut running = gateway.connect();
    running.send_call("GET", "/o/a/users/alice", &["x-standin-delay-ms: 5000"], "");
    soon("it runs", || {
        gateway.metric("floodgate_requests_in_flight", &[]) >= 1.0
    });
    gateway.signal("-TERM");
    assert_eq!(running.read_answer("GET").status, 200);
    assert_eq!(gateway.wait(), Some(0));
    assert!(std::net::TcpStream::connect(gateway.addr).is_err());
}

#[test]
fn before_the_listeners_close_a_balancer_has_time_to_look_elsewhere() {
    let mut gateway = start(&["--drain-delay", "10s"]);
    let ready = |gateway: &Gateway| {
        let mut admin = Connection::to(gateway.admin);
        admin.call("GET", "/ready", &[], "").status
    };
    let mut kept = gateway.connect();
    assert_eq!(kept.call("GET", "/o/a/users/x", &[], "").status, 200);
    assert_eq!(ready(&gateway), 200);
    gateway.signal("-TERM");
    soon("it is not ready", || ready(&gateway) == 503);
    // Who comes now is served, and told to come no more.
    for mut connection in [kept, gateway.connect()] {
        let answer = connection.call("GET", "/o/a/users/x", &[], "");
        assert_eq!(
            (answer.status, answer.header("connection")),
            (200, Some("close"))
        );
        assert!(connection.is_closed());
    }
    assert_eq!(gateway.wait(), Some(0));
    assert!(std::net::TcpStream::connect(gateway.addr).is_err());
}

#[test]
fn a_drain_ends_after_its_grace() {
    let mut gateway = start(&["--grace", "1s"]);
    let mut running = gateway.connect();
    running.send_call(
        "GET",
        "/o/a/users/alice",
        &["x-standin-delay-ms: 60000"],
        "",
    );
    soon("it runs", || {
        gateway.metric("floodgate_requests_in_flight", &[]) >= 1.0
    });
    gateway.signal("-INT");
    assert_eq!(gateway.wait(), Some(0));
}

#[test]
fn a_port_in_use_is_one_clear_line_and_exit_1() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let addr = taken.local_addr().expect("an address").to_string();
    let output = Command::new(BIN)
        .args([
            "run",
            "--upstream",
            "http://127.0.0.1:1",
            "--listen",
            &addr,
            "--admin",
            "127.0.0.1:0",
        ])
        .output()
        .expect("it runs");
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.contains(&addr) && text.contains("--listen"), "{text}");
}
