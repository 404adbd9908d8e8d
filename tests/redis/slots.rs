//! Slots of running tasks: renewed while their gateway lives, free soon after it died, and a
//! task's slot is the task's.

use std::time::Duration;

use crate::gateways::{gateway, is_up, pair};
use crate::harness::{Connection, Gateway};
use crate::server::{Server, wait_until};

fn slow_call(gateway: &Gateway, path: &str, delay_ms: u32) -> Connection {
    let mut connection = gateway.connect();
    let delay = format!("x-standin-delay-ms: {delay_ms}");
    connection.send_call("POST", path, &[&delay], "{}");
    connection
}

fn slots_in_use(gateway: &Gateway, count: f64) {
    wait_until("the slots are taken", || {
        gateway.metric("floodgate_task_slots_in_use", &[]) == count
    });
}

/// The server's clock, seconds.
fn time(server: &Server) -> f64 {
    let text = server.cli(&["time"]);
    let parts: Vec<f64> = text.lines().map(|line| line.parse().unwrap()).collect();
    parts[0] + parts[1] / 1e6
}

/// When the slots of the one counter of slots end, the first first; seconds.
fn ends(server: &Server) -> Vec<f64> {
    let keys = server.cli(&["keys", "fg:1{*"]);
    let of_slots = keys
        .lines()
        .find(|key| !key.contains("{all}") && server.cli(&["type", key]) == "zset");
    let Some(of_slots) = of_slots else {
        return Vec::new();
    };
    let text = server.cli(&["zrange", of_slots, "0", "-1", "withscores"]);
    text.lines()
        .skip(1)
        .step_by(2)
        .map(|score| score.parse::<f64>().unwrap() / 1e6)
        .collect()
}

#[test]
fn slots_of_a_gateway_that_was_killed_are_free_when_their_lease_is_over_and_not_before() {
    let server = Server::start();
    let flags = ["--store-slot-lease", "6s"];
    let url = server.url();
    let (a, b) = pair([&url, &url], &flags);
    let _running = [
        slow_call(&a, "/o/a/t/slot", 600_000),
        slow_call(&a, "/o/a/t/slot", 600_000),
    ];
    slots_in_use(&a, 2.0);
    let taken = ends(&server)[0];
    wait_until("they have been renewed", || {
        let ends = ends(&server);
        ends.len() == 2 && ends[0] > taken
    });
    a.signal("-KILL");
    let killed = time(&server);
    let ends = ends(&server);
    assert_eq!(ends.len(), 2);
    let lease_s = 6.0;
    assert!(
        ends.iter().all(|end| *end <= killed + lease_s + 0.1),
        "{ends:?}, killed {killed}"
    );
    wait_until("a slot is free", || {
        b.call("POST", "/o/a/t/slot", "{}").status == 200
    });
    let freed = time(&server);
    assert!(freed >= ends[0], "free at {freed}, leased until {ends:?}");
    // Two seconds by the rule; the rest is for a busy machine.
    assert!(
        freed <= killed + lease_s + 2.0 + 15.0,
        "killed {killed}, free {freed}"
    );
}

#[test]
fn a_call_that_runs_longer_than_its_lease_keeps_its_slot() {
    let server = Server::start();
    let flags = ["--store-slot-lease", "6s"];
    let url = server.url();
    let (a, b) = pair([&url, &url], &flags);
    let mut running = [
        slow_call(&a, "/o/a/t/slot", 15_000),
        slow_call(&a, "/o/a/t/slot", 15_000),
    ];
    slots_in_use(&a, 2.0);
    while a.metric("floodgate_requests_in_flight", &[]) == 2.0 {
        let answer = b.call("POST", "/o/a/t/slot", "{}");
        let both_run = a.metric("floodgate_requests_in_flight", &[]) == 2.0;
        assert!(answer.status != 200 || !both_run, "a third slot of two");
        std::thread::sleep(Duration::from_millis(100));
    }
    for connection in &mut running {
        assert_eq!(connection.read_answer("POST").status, 200);
    }
    wait_until("a slot is free", || {
        b.call("POST", "/o/a/t/slot", "{}").status == 200
    });
}

#[test]
fn a_tasks_slot_survives_its_gateway_and_is_reported_done_at_any() {
    let server = Server::start();
    let flags = ["--store-slot-lease", "1s"];
    let url = server.url();
    let (a, b) = pair([&url, &url], &flags);
    let answer = a.call("POST", "/o/a/push/task", "{}");
    assert_eq!(answer.status, 200, "{}", answer.text());
    wait_until("the task holds its slot", || {
        let ends = ends(&server);
        ends.len() == 1 && ends[0] > time(&server) + 100.0
    });
    a.signal("-KILL");
    std::thread::sleep(Duration::from_millis(2500));
    let again = gateway(&server.url(), &flags);
    for gateway in [&again, &b] {
        assert_ne!(gateway.call("POST", "/o/a/push/task", "{}").status, 200);
    }
    let done = format!("/apps/o%23a/tasks/{}", answer.json()["data"]);
    let report = |gateway: &Gateway| {
        Connection::to(gateway.admin)
            .call("DELETE", &done, &[], "")
            .status
    };
    assert_eq!(report(&b), 200);
    assert_eq!(report(&again), 404);
    assert_eq!(again.call("POST", "/o/a/push/task", "{}").status, 200);
}

#[test]
fn a_store_that_lost_all_is_told_of_running_calls_and_of_tasks() {
    let mut server = Server::start();
    let url = server.url();
    let (a, b) = pair([&url, &url], &[]);
    let _running = slow_call(&a, "/o/a/t/slot", 600_000);
    let task = b.call("POST", "/o/a/push/task", "{}");
    assert_eq!(task.status, 200);
    slots_in_use(&a, 1.0);
    server.restart_empty();
    let zsets = || {
        let keys = server.cli(&["keys", "fg:1{*"]);
        // The gateways are one too.
        let is_zset = |key: &&str| !key.contains("{all}") && server.cli(&["type", key]) == "zset";
        keys.lines().filter(is_zset).count()
    };
    wait_until("both counters are back", || {
        zsets() == 2 && is_up(&a) && is_up(&b)
    });
    assert_ne!(a.call("POST", "/o/a/push/task", "{}").status, 200);
    let done = format!("/apps/o%23a/tasks/{}", task.json()["data"]);
    let report = |gateway: &Gateway| {
        Connection::to(gateway.admin)
            .call("DELETE", &done, &[], "")
            .status
    };
    wait_until("it is reported at the other one", || report(&a) == 200);
    wait_until("there is room for another task", || {
        b.call("POST", "/o/a/push/task", "{}").status == 200
    });
}

#[test]
fn slots_and_leases_are_given_back_when_a_gateway_ends() {
    let server = Server::start();
    let url = server.url();
    // A lease so long that nothing is free by itself.
    let flags = ["--store-slot-lease", "60s", "--grace", "1s"];
    let (mut a, b) = pair([&url, &url], &flags);
    let _running = [
        slow_call(&a, "/o/a/t/slot", 600_000),
        slow_call(&a, "/o/a/t/slot", 600_000),
    ];
    slots_in_use(&a, 2.0);
    // Denied: a task limit's own answer.
    assert_eq!(b.call("POST", "/o/a/t/slot", "{}").status, 403);
    a.signal("-TERM");
    assert_eq!(a.wait(), Some(0));
    // At once, and it is no gateway of the store any more.
    assert_eq!(b.call("POST", "/o/a/t/slot", "{}").status, 200);
    wait_until("the other is alone", || {
        b.metric("floodgate_store_gateways", &[]) == 1.0
    });
}

#[test]
fn unused_leases_count_no_more_when_a_gateway_has_ended() {
    let server = Server::start();
    let url = server.url();
    let routes = r#"
[[route]]
name = "t-leased"
calls = ["GET /t/leased"]
v3 = { limits = ["1000/1000s"], ip_copy = false }
"#;
    let mut a = crate::gateways::with_routes(routes, &url, &[]);
    crate::gateways::acquainted(&[&a]);
    // Many in a lease's life, so that as many are leased for the next one; then the end.
    let mut connection = a.connect();
    let mut admitted = 0;
    for _ in 0..300 {
        let answer = connection.call("GET", "/o/a/t/leased", &[], "");
        admitted += u32::from(answer.status == 200);
    }
    // However quick the machine is: the next life has begun.
    wait_until("some were leased", || {
        let answer = connection.call("GET", "/o/a/t/leased", &[], "");
        admitted += u32::from(answer.status == 200);
        a.metric("floodgate_store_lease_hits_total", &[]) > 0.0
    });
    a.signal("-TERM");
    assert_eq!(a.wait(), Some(0));
    let b = crate::gateways::with_routes(routes, &url, &["--store-leases", "false"]);
    let mut connection = b.connect();
    let mut more = 0;
    for _ in 0..1000 {
        let answer = connection.call("GET", "/o/a/t/leased", &[], "");
        more += u32::from(answer.status == 200);
    }
    assert_eq!(admitted + more, 1000);
}
