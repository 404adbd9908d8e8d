//! Totals while the store does not answer: real processes on both sides.

use std::time::Duration;

use serde_json::{Value, json};

use crate::backend::Backend;
use crate::gateways::acquainted;
use crate::harness::{Connection, Gateway, Start};
use crate::proxy::Proxy;
use crate::server::{Server, wait_until};

pub(crate) const TOKEN: &str = "an-admin-token-of-tests";

pub(crate) fn gateway(url: &str, dir: &std::path::Path, backend: &Backend) -> Gateway {
    gateway_with(url, dir, backend, "500ms")
}

pub(crate) fn gateway_with(
    url: &str,
    dir: &std::path::Path,
    backend: &Backend,
    timeout: &str,
) -> Gateway {
    let apps = dir.join("apps.toml");
    std::fs::write(&apps, "[[app]]\nnames = \"o#a\"\nplan = \"free\"\n").unwrap();
    let mut args = vec!["--store", url, "--threads", "2", "--store-timeout", timeout];
    args.extend(["--admin-token", TOKEN, "--apps", apps.to_str().unwrap()]);
    args.extend(["--unproven-share", "100"]);
    Start {
        upstream: Some(backend.addr),
        args: &args,
        ..Start::default()
    }
    .start()
}

/// The totals of the app, if the store can say them.
pub(crate) fn users(gateway: &Gateway) -> Option<Value> {
    let token = format!("Authorization: Bearer {TOKEN}");
    let answer = Connection::to(gateway.admin).call("GET", "/plan?app=o%23a", &[&token], "");
    (answer.status == 200).then(|| answer.json()["totals"][0].clone())
}

pub(crate) fn count(gateway: &Gateway) -> Option<u64> {
    users(gateway).and_then(|total| total["count"].as_u64())
}

pub(crate) fn import(gateway: &Gateway, figures: &Value) {
    let token = format!("Authorization: Bearer {TOKEN}");
    let body = figures.to_string();
    let mut admin = Connection::to(gateway.admin);
    wait_until("the figure is imported", || {
        admin.call("POST", "/plan/import", &[&token], &body).status == 200
    });
}

/// The statuses of so many registrations.
pub(crate) fn register(gateway: &Gateway, names: &str, times: usize) -> Vec<u16> {
    let mut connection = gateway.connect();
    let calls = (0..times).map(|n| {
        let body = json!({ "username": format!("{names}{n}") }).to_string();
        connection.call("POST", "/o/a/users", &[], &body).status
    });
    calls.collect()
}

fn reported(gateway: &Gateway) -> f64 {
    gateway.metric("floodgate_reported_total", &["plan:users"])
}

#[test]
fn gateways_share_what_was_left_of_a_total_when_the_store_went_away() {
    let (server, backend) = (Server::start(), Backend::start());
    let dir = tempfile::tempdir().unwrap();
    let pair = [0, 1].map(|_| gateway(&server.url(), dir.path(), &backend));
    acquainted(&[&pair[0], &pair[1]]);
    import(
        &pair[0],
        &json!({ "app": "o#a", "totals": { "users": 92 } }),
    );
    for gateway in &pair {
        wait_until("both have read it", || count(gateway) == Some(92));
    }
    server.freeze();
    let made: Vec<Vec<u16>> = std::thread::scope(|scope| {
        let threads: Vec<_> = ["a", "b"]
            .into_iter()
            .zip(&pair)
            .map(|(names, gateway)| scope.spawn(move || register(gateway, names, 10)))
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    for statuses in &made {
        let count = |status| statuses.iter().filter(|s| **s == status).count();
        assert_eq!((count(200), count(429)), (4, 6), "{statuses:?}");
    }
    assert_eq!(pair.each_ref().map(reported), [0.0, 0.0]);
    server.thaw();
    for gateway in &pair {
        wait_until("all is counted", || count(gateway) == Some(100));
        wait_until("it is full", || register(gateway, "c", 1) == [429]);
    }
}

#[test]
fn a_total_that_a_gateway_never_read_is_reported_while_the_store_is_away() {
    let (server, backend) = (Server::start(), Backend::start());
    let dir = tempfile::tempdir().unwrap();
    let pair = [0, 1].map(|_| gateway(&server.url(), dir.path(), &backend));
    acquainted(&[&pair[0], &pair[1]]);
    // Of a user's totals a gateway reads those that it is asked about.
    let full = json!({ "app": "o#a", "users": { "vic": { "friends": 100 } } });
    import(&pair[0], &full);
    server.freeze();
    let befriend = |gateway: &Gateway| gateway.call("POST", "/o/a/users/x/contacts/users/vic", "");
    let reported =
        |gateway: &Gateway| gateway.metric("floodgate_reported_total", &["plan:friends"]);
    assert_eq!(befriend(&pair[0]).status, 403);
    assert_eq!(befriend(&pair[1]).status, 200);
    assert_eq!(reported(&pair[1]), 2.0, "for both users");
    server.thaw();
}

#[test]
fn a_unit_whose_decision_was_answered_too_late_counts_once() {
    let (server, backend) = (Server::start(), Backend::start());
    let dir = tempfile::tempdir().unwrap();
    let proxy = Proxy::to(server.port());
    let gateway = gateway_with(&proxy.url(), dir.path(), &backend, "2s");
    import(
        &gateway,
        &json!({ "app": "o#a", "totals": { "users": 10 } }),
    );
    assert_eq!(register(&gateway, "a", 1), [200]);
    // The script runs in time, and its answer is late.
    proxy.slow(Duration::from_millis(1200));
    assert_eq!(register(&gateway, "b", 2), [200, 200]);
    std::thread::sleep(Duration::from_millis(3000));
    proxy.heal();
    wait_until("they are counted once", || count(&gateway) == Some(13));
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(count(&gateway), Some(13));
    assert_eq!(users(&gateway).unwrap()["approximate"], json!(false));
}

#[test]
fn a_total_that_was_never_read_is_asked_for_again_before_it_passes() {
    let (server, backend) = (Server::start(), Backend::start());
    let dir = tempfile::tempdir().unwrap();
    let first = gateway(&server.url(), dir.path(), &backend);
    let proxy = Proxy::to(server.port());
    let second = gateway_with(&proxy.url(), dir.path(), &backend, "2s");
    acquainted(&[&first, &second]);
    let full = json!({ "app": "o#a", "users": { "vic": { "friends": 100 } } });
    import(&first, &full);
    // The first answer is too late, and the next is not.
    proxy.slow(Duration::from_millis(1200));
    let status = std::thread::scope(|scope| {
        let befriend = || second.call("POST", "/o/a/users/x/contacts/users/vic", "");
        let call = scope.spawn(befriend);
        std::thread::sleep(Duration::from_millis(1600));
        proxy.heal();
        call.join().unwrap().status
    });
    assert_eq!(status, 403);
}

#[test]
fn what_a_gateway_that_is_gone_had_under_way_is_in_doubt() {
    let (server, backend) = (Server::start(), Backend::start());
    let dir = tempfile::tempdir().unwrap();
    let pair = [0, 1].map(|_| gateway(&server.url(), dir.path(), &backend));
    acquainted(&[&pair[0], &pair[1]]);
    import(
        &pair[1],
        &json!({ "app": "o#a", "totals": { "users": 10 } }),
    );
    let mut under_way = pair[0].connect();
    let body = r#"{"username":"a"}"#;
    under_way.send_call("POST", "/o/a/users", &["x-do: wait"], body);
    wait_until("it is taken", || count(&pair[1]) == Some(11));
    let is_marked = || users(&pair[1]).map(|total| total["approximate"].clone());
    assert_eq!(is_marked(), Some(json!(false)), "it may yet be given back");
    pair[0].signal("-KILL");
    wait_until("it is marked", || is_marked() == Some(json!(true)));
    assert_eq!(count(&pair[1]), Some(11), "it counts as made");
}

#[test]
fn a_store_that_has_lost_its_totals_is_told_what_was_known_of_them() {
    let (mut server, backend) = (Server::start(), Backend::start());
    let dir = tempfile::tempdir().unwrap();
    let gateway = gateway(&server.url(), dir.path(), &backend);
    let figures = json!({ "app": "o#a", "totals": { "users": 90 } });
    import(&gateway, &figures);
    assert_eq!(register(&gateway, "a", 1), [200]);
    wait_until("it is read", || count(&gateway) == Some(91));
    server.kill();
    assert_eq!(register(&gateway, "b", 3), [200; 3]);
    server.restart_empty();
    wait_until("all is counted", || count(&gateway) == Some(94));
    let total = users(&gateway).unwrap();
    assert_eq!(total["approximate"], json!(true), "{total}");
    // And one that is emptied while it is there, and what it says is believed again.
    std::thread::sleep(Duration::from_secs(2));
    import(&gateway, &figures);
    assert_eq!(users(&gateway).unwrap()["approximate"], json!(false));
    server.cli(&["flushall"]);
    wait_until("it is in doubt", || {
        users(&gateway).is_some_and(|total| total["approximate"] == json!(true))
    });
    assert_eq!(count(&gateway), Some(90));
}
