//! Several gateways on one server, by its own clock.

use std::time::Duration;

use floodgate::clock::Clock;
use floodgate::limit::Decision;
use floodgate::store::Store as _;
use floodgate::store::redis::TimeSource;

use crate::calls::{
    Ask, START_US, is_admitted, moment, most_in_a_window, plan, runtime, store, store_with,
};
use crate::server::Server;

/// What one gateway of several saw.
struct Seen {
    /// Asked, answered, units.
    admitted: Vec<(u64, u64, u32)>,
    round_trips: u64,
    lease_hits: u64,
}

/// Gateways of a thread each that call for `windows` windows, each call after a pause of
/// `pause_us`.
fn gateways(
    server: &Server,
    leases: bool,
    count: usize,
    ask: Ask,
    windows: u64,
    pause_us: u64,
) -> Vec<Seen> {
    let clock = Clock::start();
    let prefix = format!("f{leases}{count}");
    let threads: Vec<_> = (0..count)
        .map(|gateway| {
            let store = store_with(
                &server.url(),
                &prefix,
                &format!("g{gateway}"),
                TimeSource::Server(clock),
                leases,
            );
            std::thread::spawn(move || {
                let runtime = runtime();
                let calling = async {
                    // Until a new store is believed.
                    tokio::time::sleep(Duration::from_millis(2_200)).await;
                    let mut admitted = Vec::new();
                    let begun_us = clock.now().mono_us;
                    let mut next_us = begun_us;
                    while clock.now().mono_us < begun_us + windows * 1_000_000 {
                        let now = clock.now();
                        let mut plan = plan(&[ask], now.unix_us);
                        if let Decision::Admit { .. } = store.decide(&mut plan, now).await.unwrap()
                        {
                            admitted.push((now.mono_us, clock.now().mono_us, ask.cost));
                        }
                        tokio::task::yield_now().await;
                        next_us += pause_us;
                        let pause_us = next_us.saturating_sub(clock.now().mono_us);
                        if pause_us > 0 {
                            tokio::time::sleep(Duration::from_micros(pause_us)).await;
                        }
                    }
                    admitted
                };
                let admitted = runtime.block_on(async {
                    tokio::select! {
                        admitted = calling => admitted,
                        () = store.watch() => unreachable!("it has no end"),
                    }
                });
                let gauges = store.shared_gauges();
                Seen {
                    admitted,
                    round_trips: gauges.round_trips,
                    lease_hits: gauges.lease_hits,
                }
            })
        })
        .collect();
    threads.into_iter().map(|t| t.join().unwrap()).collect()
}

#[test]
fn several_gateways_on_one_server_are_never_over_and_use_it_all() {
    let server = Server::start();
    let ask = Ask {
        counter: 0,
        quota: 200,
        cost: 3,
        report: false,
    };
    for leases in [false, true] {
        for count in [1, 2, 4] {
            // A machine that stands still gets less: then once more.
            let mut sums = Vec::new();
            while sums.iter().all(|sum| *sum < 400) {
                assert!(
                    sums.len() < 5,
                    "{sums:?} units, {count} gateways, leases {leases}"
                );
                let seen = gateways(&server, leases, count, ask, 3, 0);
                let admitted: Vec<_> = seen.iter().flat_map(|s| s.admitted.clone()).collect();
                let most = most_in_a_window(&admitted, 1_000_000);
                assert!(
                    most <= 200,
                    "{most} units in one window of {count}, leases {leases}"
                );
                // Three windows and what the first finds free.
                let sum: u32 = admitted.iter().map(|(.., units)| units).sum();
                sums.push(sum);
            }
        }
    }
}

#[test]
fn leases_spare_round_trips_and_an_empty_counter_is_not_asked() {
    let server = Server::start();
    let roomy = Ask {
        counter: 4,
        quota: 4000,
        cost: 1,
        report: false,
    };
    // 2,000 a second asked of 4,000.
    let seen = &gateways(&server, true, 1, roomy, 3, 500)[0];
    let admitted = u64::try_from(seen.admitted.len()).unwrap();
    assert!(seen.lease_hits > 0);
    assert!(
        seen.round_trips * 5 <= admitted,
        "{} round trips for {admitted} admitted",
        seen.round_trips
    );
    let full = Ask {
        counter: 0,
        quota: 20,
        ..roomy
    };
    let seen = &gateways(&server, true, 1, full, 2, 100)[0];
    // Each admitted call, each new attempt when units come free, and the watch.
    assert!(seen.round_trips < 200, "{} round trips", seen.round_trips);
    assert!(seen.lease_hits > 1000, "{} denials", seen.lease_hits);
}

#[test]
fn the_time_to_live_of_a_counter_in_use_is_set_anew_each_minute() {
    let server = Server::start();
    let store = store(&server.url(), "ttl", "g", TimeSource::Caller);
    let runtime = runtime();
    let take = |at_us: u64| {
        let ask = Ask {
            counter: 0,
            quota: 100,
            cost: 1,
            report: false,
        };
        let mut plan = plan(&[ask], at_us);
        let decision = runtime.block_on(store.decide(&mut plan, moment(at_us)));
        assert!(is_admitted(&decision.unwrap()));
    };
    let lives_ms = |key: &str| server.cli(&["pttl", key]).trim().parse::<i64>().unwrap();
    // A quarter of a minute before the next.
    take(START_US);
    let keys = server.cli(&["keys", "ttl:*"]);
    let mut keys = keys.lines().filter(|key| lives_ms(key) > 0);
    let (key, other) = (keys.next().unwrap(), keys.next());
    assert!(other.is_none());
    assert!(lives_ms(key) > 62_000, "for a window and a minute");

    server.cli(&["pexpire", key, "62000"]);
    take(START_US + 14_000_000);
    assert!(lives_ms(key) <= 62_000);
    take(START_US + 15_000_000);
    assert!(lives_ms(key) > 62_000);
}
