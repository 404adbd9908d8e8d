//! One, two and four gateway processes on one redis-server, under far more load than their limits
//! admit: never over, and used in full. And under load on a server that hangs.

use std::fs;
use std::time::{Duration, Instant};

use crate::gateways::{BOUND, IMPATIENT, acquainted, calls, exhaust, is_up, with_routes};
use crate::harness::Gateway;
use crate::load::{Admitted, Call, during, most_in_a_window, sum};
use crate::server::{Server, wait_until};

const ROUTES: &str = r#"
[[group]]
name = "t-pair"
v3 = { limits = ["40/s"], ip_copy = false }

[[route]]
name = "t-second"
calls = ["GET /t/second"]
v3 = { limits = ["100/s"], ip_copy = false }

[[route]]
name = "t-long"
calls = ["GET /t/long"]
v3 = { limits = ["90/3s"], ip_copy = false }

[[route]]
name = "t-messages"
calls = ["POST /t/messages"]
cost = "to"
max_recipients = 6
v3 = { limits = ["100 messages/2s"], ip_copy = false }

[[route]]
name = "t-left"
calls = ["GET /t/left"]
v3 = { group = "t-pair" }

[[route]]
name = "t-right"
calls = ["GET /t/right"]
v3 = { group = "t-pair" }

[[route]]
name = "t-day"
calls = ["GET /t/day"]
v3 = { limits = ["300/day"], ip_copy = false }
"#;

const LASTS: Duration = Duration::from_secs(4);

/// Never over; how much of it was used.
fn holds(what: &str, admitted: &[Admitted], quota: u32, window: Duration) -> f64 {
    let most = most_in_a_window(admitted, window);
    assert!(most <= quota, "{what}: {most} of {quota} in a window");
    let all = f64::from(quota) * LASTS.as_secs_f64() / window.as_secs_f64();
    let used = f64::from(sum(admitted)) / all;
    println!(
        "{what}: at most {most} of {quota}, {:.0} % used",
        used * 100.0
    );
    used
}

/// The exact mode and leases are one number apart; the rule is the same.
#[expect(clippy::disallowed_methods, reason = "windows of real time")]
fn never_over_and_used_in_full(count: usize, leases: &str) {
    let server = Server::start();
    let start = || with_routes(ROUTES, &server.url(), &["--store-leases", leases]);
    let gateways: Vec<Gateway> = (0..count).map(|_| start()).collect();
    let gateways: Vec<&Gateway> = gateways.iter().collect();
    acquainted(&gateways);
    let load = [
        Call::get("/o/a/t/second"),
        Call::get("/o/a/t/long"),
        Call::get("/o/a/t/left"),
        Call::get("/o/a/t/right"),
        Call::get("/o/a/t/day"),
        Call {
            method: "POST",
            path: "/o/a/t/messages",
            body: r#"{"to":["a","b","c"]}"#,
            units: 3,
        },
    ];
    let mut today = 0;
    let mut most_used = [0.0_f64; 4];
    // A machine that stands still uses less: then once more.
    for _ in 0..5 {
        let start = Instant::now();
        let (admitted, ()) = during(&gateways, load, start, || std::thread::sleep(LASTS));
        let [second, long, left, right, day, messages] = admitted;
        let pair = [left, right].concat();
        let second_long = Duration::from_secs(1);
        let used = [
            holds("a second", &second, 100, second_long),
            holds("three seconds", &long, 90, 3 * second_long),
            holds("a group", &pair, 40, second_long),
            holds("messages of three", &messages, 100, 2 * second_long),
        ];
        today += sum(&day);
        most_used = [0, 1, 2, 3].map(|n| most_used[n].max(used[n]));
        if most_used.iter().all(|used| *used > 0.5) {
            break;
        }
    }
    assert!(most_used.iter().all(|used| *used > 0.5), "{most_used:?}");
    assert_eq!(exhaust(&gateways, "/o/a/t/day", today, 300), 300);
    let alone = |gateway: &&Gateway| gateway.metric("floodgate_store_local_decisions_total", &[]);
    let alone: f64 = gateways.iter().map(alone).sum();
    println!("decided alone: {alone}");
}

#[test]
fn one_gateway_is_never_over_and_uses_all() {
    never_over_and_used_in_full(1, "true");
}

#[test]
fn two_gateways_are_never_over_and_use_all() {
    never_over_and_used_in_full(2, "true");
}

#[test]
fn two_gateways_that_always_ask_are_never_over_and_use_all() {
    never_over_and_used_in_full(2, "false");
}

#[test]
fn four_gateways_are_never_over_and_use_all() {
    never_over_and_used_in_full(4, "true");
}

#[test]
fn four_gateways_that_always_ask_are_never_over_and_use_all() {
    never_over_and_used_in_full(4, "false");
}

/// Memory of a process, KiB.
fn memory(gateway: &Gateway) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", gateway.pid())).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a load of some seconds")]
fn a_store_that_hangs_under_load_holds_up_nobody_and_counts_exactly_afterwards() {
    const QUOTA: u32 = 3000;
    const CLIENTS: usize = 32;
    /// A call of each client when it hangs, and whenever else a busy machine lets it seem so.
    const LOST: u32 = 160;
    let routes = ROUTES.replace("300/day", "3000/day");
    let server = Server::start();
    let gateway = with_routes(&routes, &server.url(), &IMPATIENT);
    acquainted(&[&gateway]);
    let mut admitted = calls(&gateway, "/o/a/t/day", 50).admitted;
    let before = memory(&gateway);
    let begun = Instant::now();
    let tallies: Vec<_> = std::thread::scope(|scope| {
        let client = || {
            let mut tallies = Vec::new();
            while begun.elapsed() < Duration::from_secs(4) {
                tallies.push(calls(&gateway, "/o/a/t/day", 5));
                tallies.push(calls(&gateway, "/o/a/t/second", 20));
            }
            tallies
        };
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(client)).collect();
        wait_until("they are at it", || {
            begun.elapsed() > Duration::from_millis(300)
        });
        server.freeze();
        let join = |client: std::thread::ScopedJoinHandle<'_, Vec<_>>| client.join().unwrap();
        clients.into_iter().flat_map(join).collect()
    });
    for (index, tally) in tallies.iter().enumerate() {
        // A client's calls are by turns of the day and of the second.
        admitted += if index % 2 == 0 { tally.admitted } else { 0 };
        assert!(tally.longest < BOUND, "{tally:?}");
        assert_eq!(tally.unavailable, 0, "{tally:?}");
    }
    let grown = memory(&gateway).saturating_sub(before);
    println!("{admitted} admitted, grown by {grown} KiB");
    assert!(grown < 64 * 1024, "grown by {grown} KiB");
    assert!(admitted <= QUOTA);
    server.thaw();
    wait_until("it is back", || is_up(&gateway));
    // Scripts that were on their way and ran late did nothing; one that had run and could not
    // say so any more did.
    let mut all = admitted;
    wait_until("all is used", || {
        all += calls(&gateway, "/o/a/t/day", 100).admitted;
        all >= QUOTA - LOST
    });
    all += calls(&gateway, "/o/a/t/day", 100).admitted;
    assert!((QUOTA - LOST..=QUOTA).contains(&all), "{all}");
}
