//! The store goes away in every way that it can, and comes back: real processes on both sides.
//! Each call is answered in time and by its limit's `on_store_failure`; what was admitted
//! meanwhile counts afterwards.

use std::time::{Duration, Instant};

use crate::gateways::{BOUND, IMPATIENT, LOOKING_ON, calls, exhaust, gateway, is_up};
use crate::harness::Gateway;
use crate::proxy::Proxy;
use crate::server::{Server, Watched, wait_until};

/// The store fails by `fail` and comes back by `back`, under one gateway that shares with another
/// it has never seen (`min_gateways`).
#[expect(clippy::disallowed_methods, reason = "measures how long it takes")]
fn goes_by_policy_and_recovers<S>(
    url: &str,
    mut store: S,
    fail: impl FnOnce(&mut S),
    back: impl FnOnce(&mut S),
) {
    let gateway = gateway(url, &[&IMPATIENT[..], &["--min-gateways", "2"]].concat());
    wait_until("it is up", || is_up(&gateway));
    assert_eq!(calls(&gateway, "/o/a/t/local", 4).admitted, 4);
    assert_eq!(calls(&gateway, "/o/a/t/day", 3).admitted, 3);
    fail(&mut store);
    let meanwhile = by_policy(&gateway);
    wait_until("the breaker opens", || !is_up(&gateway));
    assert!(gateway.metric("floodgate_store_failures_total", &[]) >= 1.0);
    // It stays so: probing a store that is gone lets nobody wait and nothing through.
    let still = calls(&gateway, "/o/a/t/local", 5);
    assert_eq!((still.admitted, still.denied), (0, 5));
    assert!(still.longest < BOUND, "{:?}", still.longest);
    back(&mut store);
    let back = Instant::now();
    is_exact_again(&gateway, meanwhile);
    // Twice looked on for a while.
    let took = back.elapsed().saturating_sub(2 * LOOKING_ON);
    println!("exact again after {took:?}");
    // Two seconds by the rule; the rest is for a busy machine.
    assert!(took < Duration::from_secs(20), "{took:?}");
}

/// Half of ten and of eleven, less what was used; all for `allow`, nothing for `deny`.
fn by_policy(gateway: &Gateway) -> [u32; 2] {
    let local = calls(gateway, "/o/a/t/local", 8);
    let day = calls(gateway, "/o/a/t/day", 8);
    let allow = calls(gateway, "/o/a/t/allow", 8);
    let deny = calls(gateway, "/o/a/t/deny", 8);
    assert_eq!((local.admitted, local.denied), (1, 7), "{local:?}");
    assert_eq!((day.admitted, day.denied), (2, 6), "{day:?}");
    assert_eq!(allow.admitted, 8, "{allow:?}");
    assert_eq!(deny.unavailable, 8, "{deny:?}");
    for tally in [&local, &day, &allow, &deny] {
        assert!(tally.longest < BOUND, "{tally:?}");
    }
    [local.admitted, day.admitted]
}

fn is_exact_again(gateway: &Gateway, meanwhile: [u32; 2]) {
    wait_until("the breaker closes", || is_up(gateway));
    let local = exhaust(&[gateway], "/o/a/t/local", 4 + meanwhile[0], 10);
    assert_eq!(local, 10);
    let day = exhaust(&[gateway], "/o/a/t/day", 3 + meanwhile[1], 11);
    assert_eq!(day, 11);
    // One that a busy machine has kept from the store is refused.
    wait_until("nothing is refused", || {
        calls(gateway, "/o/a/t/deny", 3).admitted == 3
    });
    // What was let through counts.
    assert_eq!(calls(gateway, "/o/a/t/allow", 3).denied, 3);
}

#[test]
fn a_store_that_is_stopped_and_started_empty() {
    let server = Server::start();
    let url = server.url();
    goes_by_policy_and_recovers(&url, server, Server::stop, Server::restart_empty);
}

#[test]
fn a_store_that_is_killed_and_started_empty() {
    let server = Server::start();
    let url = server.url();
    goes_by_policy_and_recovers(&url, server, Server::kill, Server::restart_empty);
}

#[test]
fn a_store_that_is_stopped_and_started_with_its_data() {
    let server = Server::with(&["appendonly yes", "appendfsync always"]);
    let url = server.url();
    goes_by_policy_and_recovers(&url, server, Server::stop, Server::restart);
}

#[test]
fn a_store_that_hangs_and_goes_on() {
    let server = Server::start();
    let url = server.url();
    goes_by_policy_and_recovers(&url, server, |s| s.freeze(), |s| s.thaw());
}

#[test]
fn a_store_that_is_too_slow() {
    let server = Server::start();
    let proxy = Proxy::to(server.port());
    let url = proxy.url();
    goes_by_policy_and_recovers(
        &url,
        proxy,
        |proxy| proxy.slow(Duration::from_millis(500)),
        |proxy| proxy.heal(),
    );
}

#[test]
fn a_store_that_is_cut_off() {
    let server = Server::start();
    let proxy = Proxy::to(server.port());
    let url = proxy.url();
    goes_by_policy_and_recovers(&url, proxy, |proxy| proxy.cut(), |proxy| proxy.heal());
}

#[test]
fn a_store_that_is_full() {
    let server = Server::with(&["maxmemory-policy noeviction"]);
    let url = server.url();
    goes_by_policy_and_recovers(
        &url,
        server,
        |s| drop(s.cli(&["config", "set", "maxmemory", "1"])),
        |s| drop(s.cli(&["config", "set", "maxmemory", "0"])),
    );
}

#[test]
fn a_store_that_is_made_a_replica() {
    let server = Server::start();
    let url = server.url();
    goes_by_policy_and_recovers(
        &url,
        server,
        // Of nobody: its data stay as they are.
        |s| drop(s.cli(&["replicaof", "127.0.0.1", "1"])),
        |s| drop(s.cli(&["replicaof", "no", "one"])),
    );
}

#[test]
fn a_store_that_may_not_write_without_its_replicas() {
    let server = Server::start();
    let url = server.url();
    goes_by_policy_and_recovers(
        &url,
        server,
        |s| drop(s.cli(&["config", "set", "min-replicas-to-write", "1"])),
        |s| drop(s.cli(&["config", "set", "min-replicas-to-write", "0"])),
    );
}

#[test]
fn a_store_that_sentinels_replace() {
    let watched = Watched::start();
    let url = watched.url();
    let old = watched.master_port();
    goes_by_policy_and_recovers(
        &url,
        watched,
        |watched| {
            // Until then the sentinels name the master that is gone.
            for sentinel in &watched.sentinels {
                sentinel.freeze();
            }
            let port = watched.master_port_of_nodes();
            let node = watched.nodes.iter_mut().find(|node| node.port() == port);
            node.unwrap().kill();
        },
        |watched| {
            for sentinel in &watched.sentinels {
                sentinel.thaw();
            }
            wait_until("another master is named", || watched.master_port() != old);
        },
    );
}

#[test]
fn a_store_that_is_flushed_is_told_and_never_over() {
    let server = Server::start();
    let gateway = gateway(&server.url(), &[]);
    wait_until("it is up", || is_up(&gateway));
    let mut used = [0, 0];
    for calls_before in [2, 3] {
        used[0] += calls(&gateway, "/o/a/t/local", calls_before).admitted;
        used[1] += calls(&gateway, "/o/a/t/day", calls_before).admitted;
        server.cli(&["flushall"]);
    }
    assert!(used[0] <= 5 && used[1] <= 5, "{used:?}");
    assert_eq!(exhaust(&[&gateway], "/o/a/t/local", used[0], 10), 10);
    assert_eq!(exhaust(&[&gateway], "/o/a/t/day", used[1], 11), 11);
}
