//! What is known of an upstream address through changes of settings, and where the calls of one that
//! is out go.

use floodgate::standin::{StandIn, StandInOptions};

use crate::door::soon;
use crate::harness::Gateway;
use crate::pools::{BUSY, Fixed};
use crate::reload::{Folder, reload};
use crate::upstreams::dead;

const CHECKED: &str = "health_check = \"/o/a/t/health\"\n";

fn stand_in() -> StandIn {
    StandIn::start(StandInOptions::default()).expect("a stand-in backend")
}

/// A pool of all calls that no route is for, and settings for all pools.
fn settings(upstreams: &[String], balance: &str, more: &str) -> String {
    format!(
        "health_interval = \"50ms\"\neject_after = 2\neject_time = \"5min\"\n\
         [[pool]]\nname = \"p\"\nroutes = [\"unmatched\"]\nbalance = \"{balance}\"\n{more}\
         upstreams = {upstreams:?}\n"
    )
}

fn start(text: &str) -> (Folder, Gateway) {
    let folder = Folder::new(&[("floodgate.toml", text)]);
    let gateway = folder.start(&["--watch", "false", "--threads", "1"]);
    (folder, gateway)
}

fn change(folder: &Folder, gateway: &Gateway, text: &str) {
    folder.write("floodgate.toml", text);
    assert_eq!(reload(gateway)["last"]["result"], "applied");
}

fn ejections(gateway: &Gateway) -> f64 {
    gateway.metric("floodgate_upstream_ejections_total", &["\"p\""])
}

/// The statuses of so many calls.
fn calls(gateway: &Gateway, count: usize) -> Vec<u16> {
    let mut connection = gateway.connect();
    let mut call = || connection.call("GET", "/o/a/t/any", &[], "").status;
    (0..count).map(|_| call()).collect()
}

#[test]
fn an_address_that_was_down_is_up_when_it_is_not_checked_any_more() {
    let (sick, well) = (Fixed::start(BUSY), stand_in());
    let upstreams = [sick.url(), format!("http://{}", well.addr)];
    let (folder, gateway) = start(&settings(&upstreams, "round-robin", CHECKED));
    let up = || gateway.metric("floodgate_upstream_up", &["\"p\"", &sick.addr.to_string()]);
    soon("it is down", || up() == 0.0);
    assert_eq!(calls(&gateway, 4), [200; 4]);
    let off = settings(&upstreams, "round-robin", "health_check = \"off\"\n");
    change(&folder, &gateway, &off);
    assert_eq!(up(), 1.0);
    let got = calls(&gateway, 4);
    assert_eq!(
        got.iter().filter(|status| **status == 503).count(),
        2,
        "{got:?}"
    );
}

#[test]
fn an_address_that_fails_one_check_may_pass_another() {
    let (sick, well) = (Fixed::start(BUSY), stand_in());
    let upstreams = [sick.url(), format!("http://{}", well.addr)];
    let (folder, gateway) = start(&settings(&upstreams, "round-robin", CHECKED));
    let up = || gateway.metric("floodgate_upstream_up", &["\"p\"", &sick.addr.to_string()]);
    soon("it is down", || up() == 0.0);
    // It would take five minutes until checks that are so rare had said so.
    let rare = "health_interval = \"5min\"";
    let tcp = settings(&upstreams, "round-robin", "health_check = \"tcp\"\n");
    let tcp = tcp.replace("health_interval = \"50ms\"", rare);
    change(&folder, &gateway, &tcp);
    assert_eq!(up(), 1.0);
}

#[test]
fn an_ejected_address_whose_weight_changes_stays_ejected() {
    let (one, other) = (stand_in(), stand_in());
    let url = |backend: &StandIn| format!("http://{}", backend.addr);
    let mut upstreams = [format!("http://{}", dead()), url(&one), url(&other)];
    let (folder, gateway) = start(&settings(&upstreams, "round-robin", ""));
    let failures = || gateway.metric("floodgate_upstream_failures_total", &["\"p\""]);
    assert_eq!(calls(&gateway, 12), [200; 12]);
    assert_eq!((ejections(&gateway), failures()), (1.0, 2.0));
    upstreams[0] += " weight=4";
    upstreams[1] += " weight=3";
    change(&folder, &gateway, &settings(&upstreams, "round-robin", ""));
    let before = (one.count(), other.count());
    assert_eq!(calls(&gateway, 32), [200; 32]);
    assert_eq!(failures(), 2.0);
    // The new weights hold for those that are in.
    let got = (one.count() - before.0, other.count() - before.1);
    assert_eq!(got, (24, 8));
}

#[test]
fn the_calls_of_an_ejected_address_go_to_all_others_alike() {
    for balance in ["round-robin", "least-connections"] {
        let others = [stand_in(), stand_in(), stand_in()];
        let mut upstreams = vec![format!("http://{}", dead())];
        upstreams.extend(others.iter().map(|other| format!("http://{}", other.addr)));
        let (_folder, gateway) = start(&settings(&upstreams, balance, ""));
        while ejections(&gateway) < 1.0 {
            calls(&gateway, 1);
        }
        let before = others.each_ref().map(StandIn::count);
        assert_eq!(calls(&gateway, 60), [200; 60]);
        let got = [0, 1, 2].map(|n| others[n].count() - before[n]);
        assert!(
            got.iter().all(|got| (18..=22).contains(got)),
            "{balance}: {got:?}"
        );
    }
}
