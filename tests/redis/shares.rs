//! What gateways admit while their store is away adds up: to the quota among all of them, to a
//! share for one that is cut off alone; and the store is told all of it afterwards.

use std::time::Duration;

use crate::gateways::{IMPATIENT, acquainted, calls, exhaust, gateway, is_up, pair};
use crate::harness::{Connection, Gateway};
use crate::proxy::Proxy;
use crate::server::{Server, wait_until};

/// Calls in turn, so that each gateway reads what all have used.
fn in_turn(gateways: &[&Gateway], path: &str, rounds: usize) -> u32 {
    let round = || gateways.iter().map(|g| calls(g, path, 1).admitted);
    (0..rounds).flat_map(|_| round()).sum()
}

/// Two that know each other, of which the second one's way to the store can be cut.
fn before_a_cable(server: &Server, proxy: &Proxy, args: &[&str]) -> (Gateway, Gateway) {
    let a = gateway(&server.url(), args);
    let b = gateway(&proxy.url(), &[&IMPATIENT[..], args].concat());
    acquainted(&[&a, &b]);
    (a, b)
}

fn all_up(gateways: &[&Gateway], up: bool) {
    for gateway in gateways {
        wait_until("all have noticed", || is_up(gateway) == up);
    }
}

/// Of a quota of ten an hour and of eleven a day, admitted before, during and after an outage:
/// never more, and at last all.
fn never_over_through(
    mut server: Server,
    fail: impl FnOnce(&mut Server),
    back: impl FnOnce(&mut Server),
) {
    let url = server.url();
    let (a, b) = pair([&url, &url], &IMPATIENT);
    let both = [&a, &b];
    let paths = [("/o/a/t/local", 10), ("/o/a/t/day", 11)];
    let mut sums = paths.map(|(path, _)| in_turn(&both, path, 2));
    assert_eq!(sums, [4, 4]);
    fail(&mut server);
    for (sum, (path, quota)) in sums.iter_mut().zip(paths) {
        let meanwhile = [calls(&a, path, 12), calls(&b, path, 12)];
        *sum += meanwhile.iter().map(|tally| tally.admitted).sum::<u32>();
        assert!(*sum <= quota, "{path}: {meanwhile:?}");
        assert!(
            meanwhile.iter().all(|tally| tally.admitted >= 2),
            "{path}: {meanwhile:?}"
        );
    }
    all_up(&both, false);
    back(&mut server);
    for (sum, (path, quota)) in sums.into_iter().zip(paths) {
        assert_eq!(exhaust(&both, path, sum, quota), quota, "{path}");
    }
}

#[test]
fn two_gateways_are_never_over_when_their_store_comes_back_empty() {
    never_over_through(Server::start(), Server::kill, Server::restart_empty);
}

#[test]
fn two_gateways_are_never_over_when_their_store_comes_back_with_its_data() {
    let server = Server::with(&["appendonly yes", "appendfsync always"]);
    never_over_through(server, Server::kill, Server::restart);
}

#[test]
fn two_gateways_are_never_over_when_their_store_hangs() {
    never_over_through(Server::start(), |s| s.freeze(), |s| s.thaw());
}

#[test]
fn a_gateway_that_starts_without_the_store_has_its_share_and_no_more() {
    let mut server = Server::start();
    let url = server.url();
    let flags = [&IMPATIENT[..], &["--min-gateways", "3"]].concat();
    let (a, b) = pair([&url, &url], &flags);
    server.kill();
    let c = gateway(&url, &flags);
    let all = [&a, &b, &c];
    let admitted = all.map(|gateway| calls(gateway, "/o/a/t/local", 12).admitted);
    assert_eq!(admitted, [3, 3, 3]);
    all_up(&all, false);
    server.restart_empty();
    assert_eq!(exhaust(&all, "/o/a/t/local", 9, 10), 10);
}

#[test]
fn a_gateway_that_is_cut_off_alone_adds_its_share_at_most() {
    let server = Server::start();
    let proxy = Proxy::to(server.port());
    let (a, b) = before_a_cable(&server, &proxy, &[]);
    assert_eq!(in_turn(&[&a, &b], "/o/a/t/local", 1), 2);
    proxy.cut();
    let alone = calls(&b, "/o/a/t/local", 12);
    assert!((1..=4).contains(&alone.admitted), "{alone:?}");
    wait_until("it is given up", || !is_up(&b));
    // The other one is as exact as before.
    let other = calls(&a, "/o/a/t/local", 12);
    assert_eq!(other.admitted, 8, "{other:?}");
    proxy.heal();
    wait_until("it is back", || is_up(&b));
    for gateway in [&a, &b] {
        assert_eq!(calls(gateway, "/o/a/t/local", 5).denied, 5);
    }
    assert_eq!(calls(&a, "/o/a/t/day", 2).admitted, 2);
}

#[test]
fn what_one_cut_off_alone_has_admitted_counts_for_all_when_it_is_back() {
    let server = Server::start();
    let proxy = Proxy::to(server.port());
    let (a, b) = before_a_cable(&server, &proxy, &[]);
    proxy.cut();
    let alone = calls(&b, "/o/a/t/day", 12).admitted;
    assert!((5..=6).contains(&alone), "{alone}");
    wait_until("it is given up", || !is_up(&b));
    proxy.heal();
    wait_until("it is back", || is_up(&b));
    assert_eq!(calls(&a, "/o/a/t/day", 12).admitted, 11 - alone);
}

#[test]
fn units_given_back_during_an_outage_are_free_afterwards() {
    let server = Server::start();
    let proxy = Proxy::to(server.port());
    let (a, b) = before_a_cable(&server, &proxy, &[]);
    let mut lost: Vec<_> = ["/o/a/t/local", "/o/a/t/day"]
        .iter()
        .map(|path| {
            let mut connection = b.connect();
            let wishes = ["x-standin-delay-ms: 8000", "x-standin-status: 401"];
            connection.send_call("GET", path, &wishes, "");
            connection
        })
        .collect();
    wait_until("both calls run", || {
        b.metric("floodgate_requests_in_flight", &[]) >= 2.0
            && b.metric("floodgate_units_charged_total", &["t-day"]) >= 1.0
    });
    proxy.cut();
    let deny = calls(&b, "/o/a/t/deny", 8);
    assert_eq!(deny.unavailable, 8, "{deny:?}");
    wait_until("it is given up", || !is_up(&b));
    for connection in &mut lost {
        assert_eq!(connection.read_answer("GET").status, 401);
    }
    proxy.heal();
    wait_until("it is back", || is_up(&b));
    // At the other one: in the store, not in the memory of the first.
    assert_eq!(exhaust(&[&a], "/o/a/t/local", 0, 10), 10);
    assert_eq!(exhaust(&[&a], "/o/a/t/day", 0, 11), 11);
}

#[test]
fn a_slot_that_is_freed_or_held_during_an_outage_is_so_afterwards() {
    let server = Server::start();
    let proxy = Proxy::to(server.port());
    // Longer than this test: nothing is freed by time.
    let flags = ["--store-slot-lease", "60s"];
    let (a, b) = before_a_cable(&server, &proxy, &flags);
    let post = |gateway: &Gateway, path: &str| {
        let mut connection = gateway.connect();
        connection.send_call("POST", path, &["x-standin-delay-ms: 8000"], "{}");
        connection
    };
    let mut slots = [post(&b, "/o/a/t/slot"), post(&b, "/o/a/t/slot")];
    let mut task = post(&b, "/o/a/push/task");
    wait_until("all slots are taken", || {
        b.metric("floodgate_task_slots_in_use", &[]) == 3.0
    });
    assert_ne!(a.call("POST", "/o/a/t/slot", "{}").status, 200);
    proxy.cut();
    let deny = calls(&b, "/o/a/t/deny", 8);
    assert_eq!(deny.unavailable, 8, "{deny:?}");
    wait_until("it is given up", || !is_up(&b));
    for connection in &mut slots {
        assert_eq!(connection.read_answer("POST").status, 200);
    }
    let answer = task.read_answer("POST");
    assert_eq!(answer.status, 200);
    proxy.heal();
    wait_until("it is back", || is_up(&b));
    wait_until("the slots are free at the other one", || {
        a.call("POST", "/o/a/t/slot", "{}").status == 200
    });
    assert_ne!(a.call("POST", "/o/a/push/task", "{}").status, 200);
    let done = format!("/apps/o%23a/tasks/{}", answer.json()["data"]);
    let report = |gateway: &Gateway| {
        Connection::to(gateway.admin)
            .call("DELETE", &done, &[], "")
            .status
    };
    assert_eq!(report(&a), 200);
    assert_eq!(report(&a), 404);
    assert_eq!(a.call("POST", "/o/a/push/task", "{}").status, 200);
}

#[test]
fn a_slot_that_runs_through_an_outage_is_taken_afterwards() {
    let server = Server::start();
    // Longer than a busy machine stands still: then it would be free by right.
    let flags = [&IMPATIENT[..], &["--store-slot-lease", "5s"]].concat();
    let url = server.url();
    let (a, b) = pair([&url, &url], &flags);
    let mut running = Vec::new();
    for gateway in [&a, &b] {
        let mut connection = gateway.connect();
        connection.send_call("POST", "/o/a/t/slot", &["x-standin-delay-ms: 600000"], "{}");
        running.push(connection);
    }
    for gateway in [&a, &b] {
        wait_until("both slots are taken", || {
            gateway.metric("floodgate_task_slots_in_use", &[]) == 1.0
        });
    }
    server.freeze();
    all_up(&[&a, &b], false);
    // Their leases pass.
    std::thread::sleep(Duration::from_millis(5500));
    server.thaw();
    wait_until("one of them is back", || is_up(&a) || is_up(&b));
    for _ in 0..10 {
        for gateway in [&a, &b] {
            assert_ne!(gateway.call("POST", "/o/a/t/slot", "{}").status, 200);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn what_a_store_refuses_to_be_told_of_one_counter_keeps_nothing_else_away() {
    let server = Server::with(&["user gate on >secret ~fg:* +@all"]);
    let proxy = Proxy::to(server.port());
    let url = proxy.url().replace("://", "://gate:secret@");
    let gateway = gateway(&url, &["--store-timeout", "2s"]);
    acquainted(&[&gateway]);
    // Two apps: the keys of one will be out of bounds.
    let keys = || -> Vec<String> {
        let keys = server.cli(&["keys", "fg:1{*"]);
        let counters = keys.lines().filter(|key| !key.contains("{all}"));
        counters.map(str::to_owned).collect()
    };
    assert_eq!(calls(&gateway, "/o/b/t/local", 2).admitted, 2);
    let theirs = keys();
    assert_eq!(calls(&gateway, "/o/a/t/local", 2).admitted, 2);
    let ours: Vec<String> = keys()
        .into_iter()
        .filter(|key| !theirs.contains(key))
        .collect();
    assert!(!theirs.is_empty() && !ours.is_empty());
    proxy.cut();
    let meanwhile = ["/o/a/t/local", "/o/b/t/local"].map(|path| calls(&gateway, path, 5).admitted);
    assert_eq!(meanwhile, [5, 5]);
    wait_until("it is given up", || !is_up(&gateway));
    let tag = &ours[0][..=ours[0].find('}').unwrap()];
    let rights = [
        "~fg:1{all}*",
        "~fg:1news*",
        "~fg:1resets",
        &format!("~{tag}*"),
    ];
    let command = ["acl", "setuser", "gate", "resetkeys"];
    assert_eq!(server.cli(&[&command, &rights[..]].concat()), "OK");
    proxy.heal();
    wait_until("it is back", || is_up(&gateway));
    // What is refused has been dropped, and all else was told.
    assert_eq!(exhaust(&[&gateway], "/o/a/t/local", 2 + 5, 10), 10);
    // Its calls are decided without the store, which stays in use.
    let theirs = calls(&gateway, "/o/b/t/local", 8);
    assert_eq!((theirs.admitted, theirs.denied), (3, 5), "{theirs:?}");
    assert!(is_up(&gateway));
    assert_eq!(gateway.metric("floodgate_store_failures_total", &[]), 1.0);
    let is_said = || gateway.log().contains("refuses what concerns one counter");
    wait_until("it is said", is_said);
    let log = gateway.log();
    let warned = log
        .lines()
        .filter(|line| line.contains("refuses what concerns one counter"));
    // Not once for each: how many there were goes by how often it was tried.
    let mut times: Vec<u64> = warned
        .map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
            line["times"].as_u64().expect("a number")
        })
        .collect();
    // Threads may write them in another order.
    times.sort_unstable();
    let powers: Vec<u64> = (0..times.len()).map(|n| 1 << n).collect();
    assert_eq!(times, powers, "{log}");
}
