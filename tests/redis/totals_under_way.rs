//! Units of calls under way at gateways that are gone, that only seem so, or that have lost a
//! reply of the store's: real processes on both sides.

use std::time::Duration;

use serde_json::json;

use crate::backend::Backend;
use crate::gateways::acquainted;
use crate::harness::{Connection, Gateway};
use crate::proxy::Proxy;
use crate::server::{Server, wait_until};
use crate::totals_outage::{count, gateway, import, register, users};

/// Of the plan of these gateways.
const FIGURE: u64 = 100;

struct Scene {
    server: Server,
    backend: Backend,
    dir: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        Self {
            server: Server::start(),
            backend: Backend::start(),
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn gateway(&self) -> Gateway {
        gateway(&self.server.url(), self.dir.path(), &self.backend)
    }

    fn gateway_through(&self, proxy: &Proxy) -> Gateway {
        gateway(&proxy.url(), self.dir.path(), &self.backend)
    }

    /// How many the backend has, beside those that it had before.
    fn made(&self) -> u64 {
        self.backend.with(|state| state.users.len()) as u64
    }

    /// Whether the store has any of the app's total.
    fn has_units_under_way(&self) -> bool {
        let keys = self.server.cli(&["keys", "*"]);
        let lasting = keys
            .lines()
            .filter(|key| self.server.cli(&["ttl", key]).trim() == "-1");
        let mut totals = lasting.map(|key| self.server.cli(&["get", key]));
        totals.any(|total| total.contains(" @"))
    }

    fn may_answer(&self, may: bool) {
        self.backend.with(|state| state.may_answer = may);
    }
}

fn set(gateway: &Gateway, users: u64) {
    import(
        gateway,
        &json!({ "app": "o#a", "totals": { "users": users } }),
    );
}

/// Calls under way, each for one.
fn send(gateway: &Gateway, names: &str, times: usize) -> Vec<Connection> {
    let send = |n| {
        let mut call = gateway.connect();
        let body = json!({ "username": format!("{names}{n}") }).to_string();
        call.send_call("POST", "/o/a/users", &["x-do: wait"], &body);
        call
    };
    (0..times).map(send).collect()
}

fn is_exact(gateway: &Gateway) -> Option<bool> {
    users(gateway).map(|total| total["approximate"] == json!(false))
}

fn is_alone(gateway: &Gateway) {
    wait_until("the other counts as gone", || {
        gateway.metric("floodgate_store_gateways", &[]) == 1.0
    });
}

#[test]
fn what_a_gateway_that_is_gone_had_under_way_does_not_come_on_top_of_an_import() {
    let scene = Scene::new();
    let all = [0, 1, 2].map(|_| scene.gateway());
    acquainted(&[&all[0], &all[1], &all[2]]);
    let [first, second, last] = all;
    set(&last, 10);
    let mut calls = Vec::new();
    for (nth, gateway) in [&first, &second].into_iter().enumerate() {
        calls.extend(send(gateway, &format!("{nth}x"), 3));
    }
    calls.extend(send(&last, "z", 1));
    wait_until("all are taken", || count(&last) == Some(17));
    first.signal("-KILL");
    wait_until("it is noticed", || {
        last.metric("floodgate_store_gateways", &[]) == 2.0
    });
    // Nobody has read it since: the import itself sees who is gone.
    set(&last, 13);
    assert_eq!(count(&last), Some(17), "those of two are under way still");
    second.signal("-KILL");
    is_alone(&last);
    set(&last, 16);
    assert_eq!(count(&last), Some(17), "its own call is under way still");
    scene.may_answer(true);
    assert_eq!(calls.pop().unwrap().read_answer("POST").status, 200);
    wait_until("what came of it is heard", || {
        set(&last, 17);
        count(&last) == Some(17)
    });
}

/// Takes what there is room for, at both, until nothing is left; the total is never too low
/// meanwhile where it is shown as exact.
fn fill(scene: &Scene, pair: &[Gateway; 2], before: u64) {
    for round in 0..60 {
        let statuses = [0, 1].map(|at| register(&pair[at], &format!("f{at}x{round}x"), 1)[0]);
        let made = before + scene.made();
        let total = users(&pair[1]).unwrap();
        let shown = total["count"].as_u64().unwrap();
        assert!(
            total["approximate"] == json!(true) || shown >= made,
            "{made}: {total}"
        );
        if statuses == [429, 429] {
            return;
        }
    }
    panic!("it is never full");
}

#[test]
fn a_gateway_that_was_stopped_and_goes_on_closes_nothing_of_what_is_under_way_since() {
    let scene = Scene::new();
    let pair = [0, 1].map(|_| scene.gateway());
    acquainted(&[&pair[0], &pair[1]]);
    let before = 70;
    set(&pair[1], before);
    let mut calls = send(&pair[0], "a", 8);
    wait_until("they are taken", || count(&pair[1]) == Some(78));
    pair[0].signal("-STOP");
    is_alone(&pair[1]);
    // Twice, and neither has seen what those calls make.
    for _ in 0..2 {
        set(&pair[1], before);
        assert_eq!(count(&pair[1]), Some(70));
        assert_eq!(is_exact(&pair[1]), Some(false), "they may be made yet");
    }
    let mut others = send(&pair[1], "b", 5);
    wait_until("more are taken", || count(&pair[1]) == Some(75));
    // The answers come when it has new calls.
    pair[0].signal("-CONT");
    acquainted(&[&pair[0], &pair[1]]);
    calls.extend(send(&pair[0], "c", 5));
    wait_until("it takes more", || count(&pair[1]) == Some(80));
    scene.may_answer(true);
    for call in calls.iter_mut().chain(&mut others) {
        assert_eq!(call.read_answer("POST").status, 200);
    }
    wait_until("all are counted", || count(&pair[1]) == Some(88));
    assert_eq!(scene.made(), 18);
    fill(&scene, &pair, before);
    assert!(before + scene.made() <= FIGURE, "{}", scene.made());
    set(&pair[1], before + scene.made());
    assert_eq!(count(&pair[1]), Some(before + scene.made()));
    assert_eq!(is_exact(&pair[1]), Some(true));
}

#[test]
fn a_gateway_that_was_cut_off_from_the_store_closes_nothing_of_what_is_under_way_since() {
    let scene = Scene::new();
    let proxy = Proxy::to(scene.server.port());
    let pair = [scene.gateway_through(&proxy), scene.gateway()];
    acquainted(&[&pair[0], &pair[1]]);
    let before = 50;
    set(&pair[1], before);
    for gateway in &pair {
        wait_until("both have read it", || count(gateway) == Some(50));
    }
    let mut calls = send(&pair[0], "a", 8);
    wait_until("they are taken", || count(&pair[1]) == Some(58));
    proxy.cut();
    is_alone(&pair[1]);
    set(&pair[1], before);
    assert_eq!(
        (count(&pair[1]), is_exact(&pair[1])),
        (Some(50), Some(false))
    );
    // By its share, meanwhile.
    calls.extend(send(&pair[0], "c", 4));
    wait_until("they are under way", || scene.made() == 12);
    let mut others = send(&pair[1], "b", 5);
    wait_until("more are taken", || count(&pair[1]) == Some(55));
    proxy.heal();
    acquainted(&[&pair[0], &pair[1]]);
    wait_until("all are known that it took alone", || {
        count(&pair[1]) >= Some(59)
    });
    set(&pair[1], before);
    assert_eq!(
        count(&pair[1]),
        Some(59),
        "these nine are under way, and eight may be"
    );
    scene.may_answer(true);
    for call in calls.iter_mut().chain(&mut others) {
        assert_eq!(call.read_answer("POST").status, 200);
    }
    wait_until("all are counted", || count(&pair[1]) == Some(67));
    fill(&scene, &pair, before);
    assert!(before + scene.made() <= FIGURE, "{}", scene.made());
    set(&pair[1], before + scene.made());
    wait_until("it is exact", || {
        set(&pair[1], before + scene.made());
        count(&pair[1]) == Some(before + scene.made()) && is_exact(&pair[1]) == Some(true)
    });
}

#[test]
fn a_decision_whose_reply_was_lost_has_nothing_under_way_for_long() {
    let scene = Scene::new();
    let proxy = Proxy::to(scene.server.port());
    let gateway = scene.gateway_through(&proxy);
    acquainted(&[&gateway]);
    let mut there = 10;
    set(&gateway, there);
    // On a thread that has a connection, the script runs, and its reply never comes.
    let mut tries = 0;
    wait_until("a decision is lost", || {
        tries += 1;
        assert_eq!(register(&gateway, &format!("a{tries}x"), 1), [200]);
        wait_until("the store is in use", || {
            count(&gateway) == Some(there + scene.made())
        });
        proxy.deafen();
        let names = format!("b{tries}x");
        assert_eq!(register(&gateway, &names, 1), [200], "by its share");
        let is_lost = scene.has_units_under_way();
        proxy.break_all();
        proxy.heal();
        is_lost
    });
    there += scene.made();
    let shown = || {
        let total = users(&gateway);
        total.map(|total| (total["count"].clone(), total["approximate"].clone()))
    };
    wait_until("what may have been made counts", || {
        shown() == Some((json!(there + 1), json!(true)))
    });
    // It is on top of imports no longer than words may be on their way.
    let mut imports = 0;
    wait_until("an import is exact", || {
        imports += 1;
        set(&gateway, there);
        std::thread::sleep(Duration::from_millis(200));
        shown() == Some((json!(there), json!(false)))
    });
    assert!(imports < 60, "{imports}");
}

#[test]
fn a_call_under_way_when_the_store_lost_its_totals_counts_once() {
    let mut scene = Scene::new();
    let gateway = scene.gateway();
    acquainted(&[&gateway]);
    set(&gateway, 10);
    let mut calls = send(&gateway, "a", 2);
    wait_until("they are taken", || count(&gateway) == Some(12));
    scene.server.kill();
    scene.server.restart_empty();
    wait_until("it is told", || count(&gateway) == Some(12));
    assert!(scene.has_units_under_way());
    scene.may_answer(true);
    for call in &mut calls {
        assert_eq!(call.read_answer("POST").status, 200);
    }
    wait_until("they are heard", || !scene.has_units_under_way());
    assert_eq!(count(&gateway), Some(12));
}
