//! What is known of an upstream address through changes of settings, and where the calls of one that
//! is out go.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use floodgate::standin::{StandIn, StandInOptions};

use crate::door::soon;
use crate::harness::{Gateway, Start};
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
        "health_interval = \"50ms\"\nhealth_timeout = \"20s\"\neject_after = 2\neject_time = \"5min\"\n\
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

/// An upstream that answers while it may, and otherwise closes when it has read a head.
struct Switch {
    url: String,
    answers: Arc<AtomicBool>,
    count: Arc<AtomicUsize>,
}

impl Switch {
    fn start(answers: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let answers = Arc::new(AtomicBool::new(answers));
        let count = Arc::new(AtomicUsize::new(0));
        let (may, seen) = (answers.clone(), count.clone());
        std::thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                let (may, seen) = (may.clone(), seen.clone());
                std::thread::spawn(move || {
                    let (mut head, mut byte) = (Vec::new(), [0]);
                    while !head.ends_with(b"\r\n\r\n") && matches!(stream.read(&mut byte), Ok(1)) {
                        head.extend(byte);
                    }
                    seen.fetch_add(1, SeqCst);
                    let answer =
                        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
                    if may.load(SeqCst) {
                        let _ = stream.write_all(answer);
                    }
                });
            }
        });
        Self {
            url,
            answers,
            count,
        }
    }
}

#[test]
fn when_the_last_one_fails_those_that_are_out_are_used_again() {
    let (one, other) = (Switch::start(false), Switch::start(true));
    let upstreams = [one.url.clone(), other.url.clone()];
    let (_folder, gateway) = start(&settings(&upstreams, "round-robin", ""));
    let call = || gateway.call("POST", "/o/a/t/any", "").status;
    while ejections(&gateway) < 1.0 {
        call();
    }
    one.answers.store(true, SeqCst);
    other.answers.store(false, SeqCst);
    let before = one.count.load(SeqCst);
    assert_eq!([call(), call()], [502, 502]);
    assert_eq!(one.count.load(SeqCst), before);
    // All are tried, until one answers: then it is the only one.
    let mut first = (0..3).map(|_| call());
    assert!(first.any(|status| status == 200));
    assert_eq!((0..20).map(|_| call()).collect::<Vec<_>>(), [200; 20]);
}

#[test]
fn nothing_stays_out_when_nothing_is_ejected_any_more() {
    let (one, other) = (Switch::start(false), Switch::start(true));
    let upstreams = [one.url.clone(), other.url.clone()];
    let text = settings(&upstreams, "round-robin", "");
    let (folder, gateway) = start(&text);
    let call = || gateway.call("POST", "/o/a/t/any", "").status;
    while ejections(&gateway) < 1.0 {
        call();
    }
    one.answers.store(true, SeqCst);
    let before = one.count.load(SeqCst);
    assert_eq!((call(), call()), (200, 200));
    assert_eq!(one.count.load(SeqCst), before);
    change(
        &folder,
        &gateway,
        &text.replace("eject_after = 2", "eject_after = \"off\""),
    );
    soon("it gets calls", || {
        assert_eq!(call(), 200);
        one.count.load(SeqCst) > before
    });
}

#[test]
fn a_check_goes_by_the_answer_and_not_by_what_comes_before_it() {
    let upstream = Fixed::start(
        "HTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    );
    let gateway = Start {
        url: Some(upstream.url()),
        args: &[
            "--health-check",
            "/health",
            "--health-interval",
            "50ms",
            "--health-timeout",
            "20s",
        ],
        ..Start::default()
    }
    .start();
    let checks = |result| gateway.metric("floodgate_upstream_checks_total", &[result]);
    soon("it is checked", || checks("\"pass\"") >= 3.0);
    assert_eq!(checks("\"fail\""), 0.0);
}
