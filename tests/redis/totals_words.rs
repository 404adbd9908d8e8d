//! Words about totals that do not come to the store as they should: refused, too many, late.

use std::path::Path;
use std::time::Duration;

use floodgate::clock::Clock;
use floodgate::limit::total::{Change, Kind, Total, TotalCharge};
use floodgate::limit::{CounterKey, Plan};
use floodgate::store::Store as _;
use floodgate::store::redis::connect::{Connector, RedisOptions};
use floodgate::store::redis::{RedisStore, TimeSource};
use serde_json::json;

use crate::backend::Backend;
use crate::calls::{is_admitted, runtime};
use crate::gateways::acquainted;
use crate::harness::{Connection, Gateway};
use crate::proxy::Proxy;
use crate::server::{Server, wait_until};
use crate::totals_outage::{TOKEN, count, gateway, gateway_with, import, register, users};

const APP: CounterKey = CounterKey(9 << 100);

pub(crate) fn set(gateway: &Gateway, users: u64) -> u16 {
    let token = format!("Authorization: Bearer {TOKEN}");
    let body = json!({ "app": "o#a", "totals": { "users": users } }).to_string();
    let mut admin = Connection::to(gateway.admin);
    admin.call("POST", "/plan/import", &[&token], &body).status
}

pub(crate) fn is_up(gateway: &Gateway) -> bool {
    gateway.metric("floodgate_store_up", &[]) == 1.0
}

pub(crate) fn shown(gateway: &Gateway) -> Option<(u64, bool)> {
    let total = users(gateway)?;
    Some((total["count"].as_u64()?, total["approximate"].as_bool()?))
}

#[test]
fn words_that_the_store_refuses_are_told_again() {
    let (server, backend) = (Server::start(), Backend::start());
    let dir = tempfile::tempdir().unwrap();
    let gateway = gateway(&server.url(), dir.path(), &backend);
    acquainted(&[&gateway]);
    let mut there = 10;
    for round in 0..3 {
        let figures = json!({ "app": "o#a", "totals": { "users": there } });
        import(&gateway, &figures);
        let mut calls: Vec<Connection> = (0..4)
            .map(|n| {
                let mut call = gateway.connect();
                let body = json!({ "username": format!("a{round}x{n}") }).to_string();
                call.send_call("POST", "/o/a/users", &["x-do: wait"], &body);
                call
            })
            .collect();
        wait_until("they are taken", || count(&gateway) == Some(there + 4));
        server.cli(&["config", "set", "min-replicas-to-write", "1"]);
        backend.with(|state| state.may_answer = true);
        for call in &mut calls {
            assert_eq!(call.read_answer("POST").status, 200);
        }
        // Alone, too.
        let body = json!({ "username": format!("b{round}") }).to_string();
        assert_eq!(gateway.call("POST", "/o/a/users", &body).status, 200);
        std::thread::sleep(Duration::from_millis(700));
        server.cli(&["config", "set", "min-replicas-to-write", "0"]);
        backend.with(|state| state.may_answer = false);
        wait_until("the store is in use", || is_up(&gateway));
        there += 5;
        wait_until("all are counted", || count(&gateway) == Some(there));
        import(
            &gateway,
            &json!({ "app": "o#a", "totals": { "users": there } }),
        );
        assert_eq!(shown(&gateway), Some((there, false)), "{round}");
    }
}

/// Two gateways that know a figure of 10; the first has made 5 more since it was cut off.
fn one_cut_off(server: &Server, backend: &Backend, dir: &Path) -> (Gateway, Gateway, Proxy) {
    let proxy = Proxy::to(server.port());
    let cut_off = gateway(&proxy.url(), dir, backend);
    let other = gateway(&server.url(), dir, backend);
    acquainted(&[&cut_off, &other]);
    wait_until("a figure is imported", || set(&other, 10) == 200);
    wait_until("both know it", || count(&cut_off) == Some(10));
    proxy.cut();
    wait_until("it is cut off", || !is_up(&cut_off));
    assert_eq!(register(&cut_off, "c", 5), [200; 5]);
    (cut_off, other, proxy)
}

#[test]
fn what_was_made_alone_before_an_import_is_in_doubt_after_it() {
    let (server, backend) = (Server::start(), Backend::start());
    let dir = tempfile::tempdir().unwrap();
    let (_cut_off, other, proxy) = one_cut_off(&server, &backend, dir.path());
    wait_until("all are imported", || set(&other, 15) == 200);
    assert_eq!(shown(&other), Some((15, false)));
    proxy.heal();
    wait_until("it is told", || count(&other) == Some(20));
    assert_eq!(shown(&other), Some((20, true)));
}

#[test]
fn a_gateway_that_ends_without_the_store_waits_to_tell_it() {
    let (server, backend) = (Server::start(), Backend::start());
    let dir = tempfile::tempdir().unwrap();
    let (mut cut_off, other, proxy) = one_cut_off(&server, &backend, dir.path());
    cut_off.signal("-TERM");
    let waits = || cut_off.whole_log().contains("waiting to tell it");
    wait_until("it waits", waits);
    assert_eq!(count(&other), Some(10));
    proxy.heal();
    assert_eq!(cut_off.wait(), Some(0));
    assert_eq!(shown(&other), Some((15, false)));
}

#[test]
fn a_gateway_that_ends_while_the_store_hangs_loses_no_word() {
    for after_ms in [0, 1000] {
        let (server, backend) = (Server::start(), Backend::start());
        let dir = tempfile::tempdir().unwrap();
        let mut ending = gateway(&server.url(), dir.path(), &backend);
        acquainted(&[&ending]);
        wait_until("a figure is imported", || set(&ending, 10) == 200);
        server.freeze();
        assert_eq!(register(&ending, "c", 2), [200; 2]);
        std::thread::sleep(Duration::from_millis(after_ms));
        ending.signal("-TERM");
        std::thread::sleep(Duration::from_millis(1000));
        server.thaw();
        assert_eq!(ending.wait(), Some(0));
        let other = gateway(&server.url(), dir.path(), &backend);
        acquainted(&[&other]);
        let total = shown(&other);
        assert!(
            matches!(total, Some((12, false) | (12.., true))),
            "{after_ms}: {total:?} {}",
            ending.whole_log()
        );
    }
}

#[test]
fn an_import_that_was_not_answered_does_nothing_later() {
    let (server, backend) = (Server::start(), Backend::start());
    let dir = tempfile::tempdir().unwrap();
    let proxy = Proxy::to(server.port());
    let gateway = gateway_with(&proxy.url(), dir.path(), &backend, "2s");
    acquainted(&[&gateway]);
    wait_until("a figure is imported", || set(&gateway, 10) == 200);
    // It reads the total, and is on its way when nothing passes any more.
    proxy.slow(Duration::from_millis(800));
    let status = std::thread::scope(|scope| {
        let import = scope.spawn(|| set(&gateway, 77));
        std::thread::sleep(Duration::from_millis(2000));
        proxy.cut();
        import.join().unwrap()
    });
    assert_eq!(status, 503);
    std::thread::sleep(Duration::from_millis(500));
    proxy.heal();
    wait_until("the store is in use", || is_up(&gateway));
    std::thread::sleep(Duration::from_millis(500));
    wait_until("it is read", || count(&gateway).is_some());
    assert_eq!(count(&gateway), Some(10));
}

#[test]
fn an_import_takes_thousands_of_gateways_that_are_gone() {
    let (server, backend) = (Server::start(), Backend::start());
    let dir = tempfile::tempdir().unwrap();
    let gateway = gateway(&server.url(), dir.path(), &backend);
    acquainted(&[&gateway]);
    wait_until("a figure is imported", || set(&gateway, 10) == 200);
    let keys = server.cli(&["keys", "*"]);
    let lasting = |key: &&str| server.cli(&["ttl", key]).trim() == "-1";
    let is_total = |key: &&str| server.cli(&["get", key]).starts_with("10 ");
    let total = keys.lines().filter(lasting).find(is_total).unwrap();
    let text = server.cli(&["get", total]);
    let text = text.trim().replacen("10 ", "2010 ", 1);
    let owners = (0..2000).map(|n| format!("{:016x}.0:1/0/0/0/0/0", 0xabc0 + n));
    let owners = owners.collect::<Vec<_>>().join(",");
    server.cli(&["set", total, &format!("{text} 2000 0 0 @{owners}")]);
    assert_eq!(count(&gateway), Some(2010));
    assert_eq!(set(&gateway, 20), 200);
    assert_eq!(shown(&gateway), Some((20, true)), "none is on top of it");
}

fn store(url: &str, clock: Clock) -> RedisStore {
    let options = RedisOptions {
        timeout: Duration::from_millis(300),
        ..RedisOptions::parse(url).unwrap()
    };
    let id = RedisStore::new_gateway_id();
    let connector = Connector::new(options).unwrap();
    RedisStore::new(connector, id, 100_000, TimeSource::Server(clock))
}

fn asks(key: u128) -> Plan {
    Plan {
        app: Some(APP),
        totals: vec![TotalCharge {
            kind: Kind::Users,
            key: CounterKey(key),
            figure: 1 << 40,
            units: 1,
            report: false,
            since_s: 0,
            whose: None,
            is_new: false,
            taken: None,
            over: false,
        }],
        ..Plan::default()
    }
}

/// A call that makes what it asks for.
async fn call(store: &RedisStore, key: u128, clock: Clock) {
    let mut plan = asks(key);
    assert!(is_admitted(
        &store.decide(&mut plan, clock.now()).await.unwrap()
    ));
    if let Some(round) = plan.totals[0].taken {
        let keep = Change::Keep { units: 1, round };
        store.tell_totals(APP, &[(CounterKey(key), keep)], clock.now());
    }
}

async fn change(store: &RedisStore, key: u128, change: Change, clock: Clock) -> Total {
    let changes = [(CounterKey(key), change)];
    for _ in 0..900 {
        if let Ok(totals) = store.change_totals(APP, &changes, clock.now()).await {
            return totals[0];
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("the store is not back");
}

#[test]
fn whatever_an_outage_brings_is_counted_or_in_doubt() {
    let server = Server::start();
    let clock = Clock::start();
    runtime().block_on(async {
        let store = store(&server.url(), clock);
        let others = 100..6100_u128;
        let work = async {
            store.greet().await;
            let now_s = clock.now().unix_us / 1_000_000;
            let set = |count| Change::Set { count, now_s };
            change(&store, 1, set(1000), clock).await;
            let all: Vec<_> = others
                .clone()
                .map(|key| (CounterKey(key), set(10)))
                .collect();
            for some in all.chunks(100) {
                store.change_totals(APP, some, clock.now()).await.unwrap();
            }
            server.freeze();
            // Of what was on its way just then nobody would know.
            while store.shared_gauges().is_up {
                let read = [(CounterKey(1), Change::Read)];
                let _ = store.change_totals(APP, &read, clock.now()).await;
            }
            for _ in 0..3000 {
                call(&store, 1, clock).await;
            }
            for key in others.clone() {
                call(&store, key, clock).await;
            }
            server.thaw();
            let mut total = Total::default();
            for _ in 0..300 {
                total = change(&store, 1, Change::Read, clock).await;
                if total.count >= 4000 {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            assert_eq!((total.count, total.approximate), (4000, false));
            let total = change(&store, 1, set(4000), clock).await;
            assert_eq!((total.count, total.approximate), (4000, false));
            for key in others {
                let total = change(&store, key, Change::Read, clock).await;
                assert!(total.approximate || total.count == 11, "{total:?}");
            }
        };
        tokio::select! {
            () = work => (),
            () = store.watch() => (),
        }
    });
}
