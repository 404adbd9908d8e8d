//! Leases by a simulated clock: four gateways on one server, against the slow exact count.

use floodgate::store::Store as _;
use floodgate::store::redis::{RedisStore, TimeSource};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::calls::{Ask, DAY_US, START_US, is_admitted, moment, plan, runtime, store_with};
use crate::server::Server;

/// A counter of a second, of a minute, or of a day.
const COUNTERS: [u8; 3] = [0, 1, 2];

fn window_us(counter: u8) -> u64 {
    match counter {
        0 => 1_000_000,
        1 => 60_000_000,
        _ => DAY_US,
    }
}

fn stores(server: &Server, prefix: &str, count: usize) -> Vec<RedisStore> {
    let store = |gateway: usize| {
        store_with(
            &server.url(),
            prefix,
            &format!("g{gateway}"),
            TimeSource::Caller,
            true,
        )
    };
    (0..count).map(store).collect()
}

/// The most units that any window holds; for a day, the most of a day.
fn most(counter: u8, admitted: &[(u64, u32)]) -> u32 {
    let window_us = window_us(counter);
    admitted
        .iter()
        .map(|(first, _)| {
            let begin = if counter == 2 {
                first - first % DAY_US
            } else {
                *first
            };
            admitted
                .iter()
                .filter(|(at, _)| (begin..begin + window_us).contains(at))
                .map(|(_, units)| units)
                .sum()
        })
        .max()
        .unwrap_or(0)
}

/// (gateway, counter, cost, pause in thousandths of a step, given back at once). Much is asked
/// within a step, then leases are used at the end of their life, and then a window later.
fn trace() -> impl Strategy<Value = Vec<(usize, u8, u32, u64, bool)>> {
    let pause = prop_oneof![
        40 => 0_u64..30,
        6 => 900_u64..1_100,
        3 => 1_000_u64..20_000,
        2 => 48_000_u64..52_000,
    ];
    let call = (
        0_usize..4,
        prop_oneof![6 => Just(0_u8), 3 => Just(1), 1 => Just(2)],
        1_u32..4,
        pause,
        prop::bool::weighted(0.05),
    );
    prop::collection::vec(call, 300..900)
}

#[test]
fn leases_of_four_gateways_are_never_over_whatever_the_trace() {
    let server = Server::start();
    let runtime = runtime();
    let mut runner = TestRunner::new(Config {
        cases: 24,
        failure_persistence: None,
        ..Config::default()
    });
    let number = std::cell::Cell::new(0);
    runner
        .run(&(trace(), 40_u32..250), |(trace, quota)| {
            number.set(number.get() + 1);
            let stores = stores(&server, &format!("p{}", number.get()), 4);
            runtime.block_on(async {
                let mut admitted: [Vec<(u64, u32)>; 3] = Default::default();
                let mut now_us = START_US;
                for (gateway, counter, cost, pause, back) in trace {
                    now_us += pause * window_us(counter.min(1)) / 50_000;
                    let ask = Ask {
                        counter,
                        quota,
                        cost,
                        report: false,
                    };
                    let (store, now) = (&stores[gateway], moment(now_us));
                    let mut plan = plan(&[ask], now_us);
                    if is_admitted(&store.decide(&mut plan, now).await.unwrap()) {
                        if back {
                            store.give_back(&mut plan, now, &|_| true);
                            // Done before the clock moves on: nobody waits for a giving back.
                            let look = Ask {
                                counter: 8,
                                cost: 0,
                                ..ask
                            };
                            let mut look = crate::calls::plan(&[look], now_us);
                            store.decide(&mut look, now).await.unwrap();
                        } else {
                            admitted[usize::from(counter)].push((now_us, cost));
                        }
                    }
                }
                for counter in COUNTERS {
                    let most = most(counter, &admitted[usize::from(counter)]);
                    prop_assert!(most <= quota, "counter {counter}: {most} of {quota}");
                }
                Ok(())
            })
        })
        .unwrap();
}

#[test]
fn an_even_pace_below_the_limit_is_never_denied_with_leases() {
    let server = Server::start();
    runtime().block_on(async {
        for (prefix, count, cost) in [("even1", 1, 1), ("even2", 1, 10), ("even4", 4, 1)] {
            let stores = stores(&server, prefix, count);
            let calls = 1000 / cost * 95 / 100;
            for call in 0..u64::from(calls) * 3 {
                let now_us = START_US + call * 1_000_000 / u64::from(calls);
                let ask = Ask {
                    counter: 0,
                    quota: 1000,
                    cost,
                    report: false,
                };
                let gateway = usize::try_from(call).unwrap() % count;
                let mut plan = plan(&[ask], now_us);
                let decision = stores[gateway].decide(&mut plan, moment(now_us)).await;
                assert!(is_admitted(&decision.unwrap()), "{prefix}: call {call}");
            }
            if cost == 1 {
                let hits: u64 = stores.iter().map(|s| s.shared_gauges().lease_hits).sum();
                assert!(hits > 0, "{prefix}");
            }
        }
    });
}

#[test]
fn four_gateways_with_leases_give_a_limit_in_full() {
    let server = Server::start();
    let stores = stores(&server, "full", 4);
    let ask = Ask {
        counter: 0,
        quota: 1000,
        cost: 1,
        report: false,
    };
    let admitted = runtime().block_on(async {
        let mut admitted = Vec::new();
        // Each gateway asks four times as often as it could be let.
        for call in 0..4 * 4 * 1000_u64 {
            let now_us = START_US + call * 1_000_000 / 4000;
            let gateway = usize::try_from(call % 4).unwrap();
            let mut plan = plan(&[ask], now_us);
            let decision = stores[gateway].decide(&mut plan, moment(now_us)).await;
            if is_admitted(&decision.unwrap()) {
                admitted.push((now_us, 1));
            }
        }
        admitted
    });
    assert!(most(0, &admitted) <= 1000);
    let windows = |from: u64, to: u64| {
        let window = START_US + from * 1_000_000..START_US + to * 1_000_000;
        admitted
            .iter()
            .filter(|(at, _)| window.contains(at))
            .count()
    };
    // 95 % of each window after the first.
    assert!(windows(1, 4) >= 3 * 950, "{} units", windows(1, 4));
}

#[test]
fn a_lease_that_is_used_at_the_end_of_its_life_is_never_over() {
    const STEP: u64 = 20_000;
    let server = Server::start();
    let runtime = runtime();
    for offset_us in (200..STEP).step_by(1_900) {
        let stores = stores(&server, &format!("late{offset_us}"), 2);
        let mut admitted = Vec::new();
        let mut hits = 0;
        let mut call = |gateway: usize, at_us: u64| {
            let ask = Ask {
                counter: 0,
                quota: 100,
                cost: 1,
                report: false,
            };
            let mut plan = plan(&[ask], at_us);
            let deciding = stores[gateway].decide(&mut plan, moment(at_us));
            let is_admitted = is_admitted(&runtime.block_on(deciding).unwrap());
            if is_admitted {
                admitted.push((at_us, 1));
            }
            is_admitted
        };
        // Busy in one step, it takes as much in advance in the next.
        let leased_us = START_US + STEP + offset_us;
        for at in 0..30 {
            assert!(call(0, leased_us - STEP - 100 + at));
        }
        assert!(call(0, leased_us));
        // Meanwhile the other one takes what there is,
        while call(1, leased_us + 1) {}
        // and the lease is used when it is all but over.
        while call(0, leased_us + STEP - 1) {
            hits += 1;
        }
        for at_us in (leased_us..leased_us + 1_100_000).step_by(2_000) {
            while call(1, at_us + STEP) {}
        }
        assert!(hits >= 10, "{hits} calls by the lease");
        let most = most(0, &admitted);
        assert!(
            most <= 100,
            "{most} units, leased {offset_us} µs into a step"
        );
    }
}

#[test]
fn a_call_that_must_ask_finds_what_its_gateway_holds() {
    let server = Server::start();
    let store = &stores(&server, "held", 1)[0];
    let ask = |counter, quota, cost| Ask {
        counter,
        quota,
        cost,
        report: false,
    };
    runtime().block_on(async {
        let mut now_us = START_US;
        // Busy: units are held in advance.
        for _ in 0..60 {
            now_us += 500;
            let mut plan = plan(&[ask(0, 100, 1)], now_us);
            let decision = store.decide(&mut plan, moment(now_us)).await;
            assert!(is_admitted(&decision.unwrap()));
        }
        assert!(store.shared_gauges().lease_hits > 0);
        // A call with another counter, which is asked for, and as much as there is left of this.
        let mut plan = plan(&[ask(0, 100, 40), ask(1, 1000, 1)], now_us);
        let decision = store.decide(&mut plan, moment(now_us)).await;
        assert!(is_admitted(&decision.unwrap()));
    });
}
