//! The store's clock jumps, or another server with another clock takes over: limits neither open
//! nor stay shut for it, and today stays today.

use std::time::{Duration, Instant};

use crate::gateways::{acquainted, calls, exhaust, pair, with_routes};
use crate::harness::Gateway;
use crate::load::{Call, during, most_in_a_window};
use crate::server::{Server, Watched, wait_until};

const WINDOW: Duration = Duration::from_secs(2);
const QUOTA: u32 = 60;

const ROUTES: &str = r#"
[[route]]
name = "t-window"
calls = ["GET /t/window"]
v3 = { limits = ["60/2s"], ip_copy = false }

[[route]]
name = "t-day"
calls = ["GET /t/day"]
v3 = { limits = ["11/day"], ip_copy = false }
"#;

/// Two gateways under load far above the limit; `jump` comes in the middle of a window.
#[expect(clippy::disallowed_methods, reason = "windows of real time")]
fn holds_through_a_jump(url: &str, jump: impl FnOnce()) {
    let (a, b) = (with_routes(ROUTES, url, &[]), with_routes(ROUTES, url, &[]));
    let both = [&a, &b];
    acquainted(&both);
    let today: u32 = both
        .iter()
        .map(|g| calls(g, "/o/a/t/day", 3).admitted)
        .sum();
    assert_eq!(today, 6);
    let start = Instant::now();
    let load = Call::get("/o/a/t/window");
    let ([admitted], jumped) = during(&both, [load], start, || {
        std::thread::sleep(WINDOW + WINDOW / 2);
        jump();
        let jumped = start.elapsed();
        let admitted = || -> f64 {
            let of = |g: &&Gateway| g.metric("floodgate_units_charged_total", &["t-window"]);
            both.iter().map(of).sum()
        };
        let before = admitted();
        std::thread::sleep(2 * WINDOW + WINDOW / 2);
        // More than one window has: what was on its way before does not show that it is open.
        let more = f64::from(QUOTA) + 10.0;
        wait_until("the limit is open", || admitted() >= before + more);
        jumped
    });
    let most = most_in_a_window(&admitted, WINDOW);
    assert!(most <= QUOTA, "{most} in a window");
    // Not shut for longer than a window and a second; the rest is for a busy machine. Wrongly, it
    // would be for an hour.
    let first = admitted
        .iter()
        .map(|(sent, ..)| *sent)
        .filter(|sent| *sent > jumped)
        .min();
    let shut = first.expect("one is admitted") - jumped;
    assert!(shut < WINDOW + Duration::from_secs(15), "{shut:?}");
    assert_eq!(exhaust(&both, "/o/a/t/day", today, 11), 11);
}

#[test]
fn an_hour_forwards() {
    let server = Server::with_clock(&[]);
    holds_through_a_jump(&server.url(), || server.put_clock(3600));
}

#[test]
fn an_hour_backwards() {
    let server = Server::with_clock(&[]);
    holds_through_a_jump(&server.url(), || server.put_clock(-3600));
}

/// A failover as the gateways see it: the same data, another clock.
fn holds_through_a_failover(ahead_s: i64) {
    let master = Server::with_clock(&[]);
    let replica = Server::with_clock(&[&format!("replicaof 127.0.0.1 {}", master.port())]);
    replica.put_clock(ahead_s);
    let mut watched = Watched::over(master, replica);
    let old = watched.master_port();
    holds_through_a_jump(&watched.url(), || {
        watched.nodes[0].kill();
        wait_until("the other one is master", || watched.master_port() != old);
    });
}

#[test]
fn a_failover_to_a_server_five_seconds_ahead() {
    holds_through_a_failover(5);
}

#[test]
fn a_failover_to_a_server_five_seconds_behind() {
    holds_through_a_failover(-5);
}

#[test]
fn slots_of_running_calls_outlive_a_jump_of_an_hour() {
    for ahead_s in [3600, -3600] {
        let server = Server::with_clock(&[]);
        let url = server.url();
        let (a, b) = pair([&url, &url], &[]);
        let mut running: Vec<_> = (0..2)
            .map(|_| {
                let mut connection = a.connect();
                let delay = ["x-standin-delay-ms: 8000"];
                connection.send_call("POST", "/o/a/t/slot", &delay, "{}");
                connection
            })
            .collect();
        let task = a.call("POST", "/o/a/push/task", "{}");
        assert_eq!(task.status, 200);
        wait_until("the slots are taken", || {
            a.metric("floodgate_task_slots_in_use", &[]) == 3.0
        });
        server.put_clock(ahead_s);
        // Noticed at once by who asks, and by the beat of who does not.
        for _ in 0..15 {
            for path in ["/o/a/t/slot", "/o/a/push/task"] {
                assert_ne!(b.call("POST", path, "{}").status, 200, "{path}");
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        for connection in &mut running {
            assert_eq!(connection.read_answer("POST").status, 200);
        }
        wait_until("a slot is free", || {
            b.call("POST", "/o/a/t/slot", "{}").status == 200
        });
    }
}
