//! Totals in a store that came back as it was before: restored, or a replica that lacked the last
//! writes. Nothing is shown as exact that it may lack.

use std::fs;
use std::time::Duration;

use crate::backend::Backend;
use crate::gateways::acquainted;
use crate::harness::Gateway;
use crate::proxy::Proxy;
use crate::server::{Cluster, Server, wait_until};
use crate::totals_outage::{gateway, gateway_with, register};
use crate::totals_words::{is_up, set, shown};

/// So many gateways, which know a figure of 10.
fn gateways(url: &str, backend: &Backend, count: usize) -> (Vec<Gateway>, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let all: Vec<Gateway> = (0..count)
        .map(|_| gateway(url, dir.path(), backend))
        .collect();
    acquainted(&all.iter().collect::<Vec<_>>());
    wait_until("a figure is imported", || set(&all[0], 10) == 200);
    for gateway in &all {
        wait_until("all know it", || shown(gateway) == Some((10, false)));
    }
    (all, dir)
}

/// That it is in doubt, and exact after an import.
fn noticed(all: &[Gateway], least: u64) {
    for gateway in all {
        let is_marked = || matches!(shown(gateway), Some((count, true)) if count >= least);
        wait_until("it is noticed", is_marked);
    }
    // All have found it.
    std::thread::sleep(Duration::from_millis(1200));
    wait_until("a figure is imported", || set(&all[0], 40) == 200);
    std::thread::sleep(Duration::from_millis(1200));
    for gateway in all {
        assert_eq!(shown(gateway), Some((40, false)), "once");
    }
}

#[test]
fn what_was_made_since_a_snapshot_is_missed_at_once() {
    for count in [1, 2] {
        let (mut server, backend) = (Server::start(), Backend::start());
        let (all, _dir) = gateways(&server.url(), &backend, count);
        server.cli(&["save"]);
        assert_eq!(register(&all[0], "s", 5), [200; 5]);
        server.restart();
        noticed(&all, 15);
        assert_eq!(register(&all[0], "n", 2), [200; 2]);
        assert_eq!(shown(&all[0]), Some((42, false)));
    }
}

#[test]
fn what_other_gateways_do_does_not_hide_it() {
    let (mut server, backend) = (Server::start(), Backend::start());
    let (all, _dir) = gateways(&server.url(), &backend, 2);
    server.cli(&["save"]);
    assert_eq!(register(&all[0], "s", 5), [200; 5]);
    // It makes as many as were lost before the first looks at the store again.
    all[0].signal("-STOP");
    server.restart();
    wait_until("the other uses it", || is_up(&all[1]));
    assert_eq!(register(&all[1], "o", 9), [200; 9]);
    std::thread::sleep(Duration::from_millis(1200));
    all[0].signal("-CONT");
    noticed(&all, 15);
}

#[test]
fn answers_that_come_too_late_do_not_hide_it() {
    let (mut server, backend) = (Server::start(), Backend::start());
    let proxy = Proxy::to(server.port());
    let dir = tempfile::tempdir().unwrap();
    let all = [gateway_with(&proxy.url(), dir.path(), &backend, "300ms")];
    acquainted(&[&all[0]]);
    wait_until("a figure is imported", || set(&all[0], 10) == 200);
    server.cli(&["save"]);
    assert_eq!(register(&all[0], "s", 5), [200; 5]);
    std::thread::sleep(Duration::from_millis(1200));
    proxy.slow(Duration::from_millis(400));
    server.restart();
    std::thread::sleep(Duration::from_millis(2500));
    proxy.heal();
    noticed(&all, 15);
}

#[test]
fn a_backup_of_before_all_was_lost_is_in_doubt() {
    let (mut server, backend) = (Server::start(), Backend::start());
    let (all, _dir) = gateways(&server.url(), &backend, 1);
    server.cli(&["save"]);
    let backup = fs::read(server.dump()).unwrap();
    fs::remove_file(server.dump()).unwrap();
    assert_eq!(register(&all[0], "s", 5), [200; 5]);
    server.restart_empty();
    wait_until("it is told", || shown(&all[0]) == Some((15, true)));
    std::thread::sleep(Duration::from_millis(2000));
    wait_until("a figure is imported", || set(&all[0], 30) == 200);
    assert_eq!(shown(&all[0]), Some((30, false)));
    server.kill();
    fs::write(server.dump(), backup).unwrap();
    server.restart();
    noticed(&all, 30);
}

#[test]
fn a_backup_of_after_all_was_lost_is_in_doubt() {
    let (mut server, backend) = (Server::start(), Backend::start());
    let (all, _dir) = gateways(&server.url(), &backend, 1);
    server.cli(&["save"]);
    let first = fs::read(server.dump()).unwrap();
    server.cli(&["flushall"]);
    wait_until("it is told", || matches!(shown(&all[0]), Some((_, true))));
    std::thread::sleep(Duration::from_millis(2000));
    wait_until("a figure is imported", || set(&all[0], 20) == 200);
    server.cli(&["save"]);
    let second = fs::read(server.dump()).unwrap();
    server.kill();
    fs::write(server.dump(), first).unwrap();
    server.restart();
    noticed(&all, 10);
    server.kill();
    fs::write(server.dump(), second).unwrap();
    server.restart();
    noticed(&all, 20);
}

#[test]
fn one_loss_is_found_once() {
    let (mut server, backend) = (Server::start(), Backend::start());
    let (all, _dir) = gateways(&server.url(), &backend, 2);
    server.cli(&["save"]);
    assert_eq!(register(&all[0], "s", 5), [200; 5]);
    std::thread::sleep(Duration::from_millis(1200));
    all[1].signal("-STOP");
    server.restart();
    wait_until("it is noticed", || shown(&all[0]) == Some((15, true)));
    wait_until("a figure is imported", || set(&all[0], 15) == 200);
    assert_eq!(shown(&all[0]), Some((15, false)));
    // It has lost as much, and no more.
    all[1].signal("-CONT");
    wait_until("it is there again", || is_up(&all[1]));
    std::thread::sleep(Duration::from_millis(1200));
    assert_eq!(
        [shown(&all[0]), shown(&all[1])],
        [Some((15, false)); 2],
        "both"
    );
}

#[test]
fn a_store_that_comes_back_with_all_it_had_is_not_in_doubt() {
    let (mut server, backend) = (Server::start(), Backend::start());
    let (all, _dir) = gateways(&server.url(), &backend, 2);
    assert_eq!(register(&all[0], "s", 5), [200; 5]);
    server.cli(&["config", "set", "save", "3600 1"]);
    server.stop();
    // Nothing is on its way when it goes.
    wait_until("it is missed", || !is_up(&all[0]));
    assert_eq!(register(&all[0], "t", 2), [200; 2]);
    server.restart();
    for gateway in &all {
        wait_until("all is told", || shown(gateway) == Some((17, false)));
    }
    std::thread::sleep(Duration::from_millis(1200));
    assert_eq!(shown(&all[0]), Some((17, false)));
}

#[test]
fn a_total_that_nobody_has_read_is_in_doubt_too() {
    let (mut server, backend) = (Server::start(), Backend::start());
    let (mut all, dir) = gateways(&server.url(), &backend, 1);
    assert_eq!(register(&all[0], "s", 5), [200; 5]);
    server.cli(&["save"]);
    assert_eq!(register(&all[0], "t", 5), [200; 5]);
    all[0].signal("-TERM");
    assert_eq!(all[0].wait(), Some(0));
    all[0] = gateway(&server.url(), dir.path(), &backend);
    acquainted(&[&all[0]]);
    server.restart();
    noticed(&all, 15);
}

/// The node of a cluster that has the total, and its replica.
fn nodes_of_total(cluster: &Cluster) -> (&Server, &Server) {
    let has_total = |node: &&Server| {
        let keys = node.cli(&["keys", "fg:1{*"]);
        let of_part = |key: &str| ["epoch", "signed", "doubts"].map(|end| key.ends_with(end));
        let mut keys = keys.lines().filter(|key| !of_part(key).contains(&true));
        node.cli(&["role"]).starts_with("master") && keys.any(|key| node.cli(&["ttl", key]) == "-1")
    };
    let master = cluster.nodes.iter().find(has_total).unwrap();
    let port = master.port().to_string();
    let follows = |node: &&Server| {
        let role = node.cli(&["role"]);
        role.starts_with("slave") && role.lines().any(|line| line == port)
    };
    (master, cluster.nodes.iter().find(follows).unwrap())
}

#[test]
fn a_replica_without_the_last_writes_is_in_doubt() {
    let (cluster, backend) = (Cluster::start(1), Backend::start());
    let (all, _dir) = gateways(&cluster.url(), &backend, 2);
    let (master, replica) = nodes_of_total(&cluster);
    // What is written from now on does not come to it.
    replica.freeze();
    master.cli(&["client", "kill", "type", "replica"]);
    assert_eq!(register(&all[0], "s", 5), [200; 5]);
    std::thread::sleep(Duration::from_millis(50));
    master.freeze();
    replica.thaw();
    replica.cli(&["cluster", "failover", "takeover"]);
    noticed(&all, 10);
}
