//! The contract of a store: by a simulated clock, the same decisions as the embedded store.

use std::time::Duration;

use floodgate::clock::Clock;
use floodgate::limit::{Decision, Moment, Plan};
use floodgate::store::Store as _;
use floodgate::store::memory::{MemoryOptions, MemoryStore};
use floodgate::store::redis::TimeSource;
use futures_util::future::join_all;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::calls::{Ask, START_US, charge, moment, plan, runtime, store};
use crate::server::{Cluster, Server};

/// What one step of a trace asks.
#[derive(Clone, Debug)]
enum Step {
    /// So many callers ask for the same at once.
    Decide(u64, Vec<Ask>, usize),
    /// Gives back what is left of an earlier plan, by its number modulo those there are.
    GiveBack(u64, usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let ask = (0_u8..8, 1_u32..30, 0_u32..7, prop::bool::weighted(0.15)).prop_map(
        |(counter, quota, cost, report)| Ask {
            counter,
            quota,
            cost,
            report,
        },
    );
    // Mostly within a step, sometimes within the window, now and then past it.
    let pause = prop_oneof![
        6 => 0_u64..15_000,
        4 => 15_000_u64..300_000,
        1 => 300_000_u64..5_000_000,
    ];
    let step = (
        pause,
        prop::collection::vec(ask, 1..5),
        prop_oneof![3 => Just(1_usize), 1 => 2_usize..7],
        prop::bool::weighted(0.2),
        any::<prop::sample::Index>(),
    )
        .prop_map(|(pause, asks, times, back, index)| {
            if back {
                Step::GiveBack(pause, index.index(1 << 16))
            } else {
                Step::Decide(pause, asks, times)
            }
        });
    prop::collection::vec(step, 1..120)
}

#[test]
fn the_same_trace_gets_the_same_decisions_as_in_memory() {
    same_as_in_memory(&Server::start().url(), 96);
}

#[test]
fn the_same_trace_gets_the_same_decisions_in_a_cluster() {
    same_as_in_memory(&Cluster::start(0).url(), 24);
}

fn same_as_in_memory(url: &str, cases: u32) {
    let runtime = runtime();
    let traces = std::cell::Cell::new(0);
    let mut runner = TestRunner::new(Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    });
    runner
        .run(&steps(), |steps| {
            traces.set(traces.get() + 1);
            let redis = store(
                url,
                &format!("t{}-", traces.get()),
                "me",
                TimeSource::Caller,
            );
            let memory = MemoryStore::new(MemoryOptions::default());
            runtime.block_on(async {
                let mut now_us = START_US;
                let mut plans: Vec<(Plan, Plan)> = Vec::new();
                for step in &steps {
                    match step {
                        Step::Decide(pause, asks, times) => {
                            now_us += pause;
                            let mut there = vec![plan(asks, now_us); *times];
                            let mut here = there.clone();
                            let theirs = there.iter_mut().map(|p| redis.decide(p, moment(now_us)));
                            let theirs = join_all(theirs).await;
                            for (here, theirs) in here.iter_mut().zip(theirs) {
                                let ours = memory.decide_now(here, moment(now_us));
                                prop_assert_eq!(&ours, &theirs.unwrap(), "at {}", now_us);
                            }
                            for (here, there) in here.into_iter().zip(there) {
                                for (a, b) in here.charges.iter().zip(&there.charges) {
                                    prop_assert_eq!(a.taken.is_some(), b.taken.is_some());
                                }
                                plans.push((here, there));
                            }
                        }
                        Step::GiveBack(pause, index) => {
                            now_us += pause;
                            let count = plans.len().max(1);
                            if let Some((here, there)) = plans.get_mut(index % count) {
                                memory.give_back(here, moment(now_us), &|_| true);
                                redis.give_back(there, moment(now_us), &|_| true);
                                prop_assert!(there.charges.iter().all(|c| c.taken.is_none()));
                            }
                        }
                    }
                }
                Ok(())
            })
        })
        .unwrap();
}

#[test]
fn a_script_that_comes_too_late_does_nothing_and_a_decision_nobody_waits_for_is_undone() {
    let server = Server::start();
    let clock = Clock::start();
    let store = store(&server.url(), "l-", "me", TimeSource::Server(clock));
    let runtime = runtime();
    let ask = Ask {
        counter: 2,
        quota: 5,
        cost: 2,
        report: false,
    };
    let left = |decision: Decision| match decision {
        Decision::Admit {
            nearest: Some(room),
            ..
        } => room.left,
        other => panic!("{other:?}"),
    };
    runtime.block_on(async {
        let mut first = Plan::default();
        first.charges.push(charge(ask, clock.now().unix_us));
        let decision = store.decide(&mut first, clock.now()).await.unwrap();
        assert_eq!(left(decision), 3);

        // Sent an hour late, by the clock of its caller.
        let late = Moment {
            mono_us: clock.now().mono_us - 3_600_000_000,
            ..clock.now()
        };
        let mut plan = Plan::default();
        plan.charges.push(charge(ask, clock.now().unix_us));
        store.decide(&mut plan, late).await.unwrap();
        assert_eq!(store.shared_gauges().alone, 1, "the store did nothing");
        store.give_back(&mut plan, clock.now(), &|_| true);

        // Dropped while it waits: whatever came of it is given back.
        let mut gone = Plan::default();
        gone.charges.push(charge(ask, clock.now().unix_us));
        tokio::select! {
            biased;
            _ = store.decide(&mut gone, clock.now()) => panic!("an answer in no time"),
            () = tokio::task::yield_now() => (),
        }

        let mut last = Plan::default();
        last.charges.push(charge(ask, clock.now().unix_us));
        let mut asked = 0;
        let decision = loop {
            asked += 1;
            assert!(asked < 10_000, "the units are not given back");
            // The giving back is on its way.
            match store.decide(&mut last, clock.now()).await.unwrap() {
                admitted @ Decision::Admit { .. } => break admitted,
                _ => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        };
        assert_eq!(left(decision), 1);
    });
}

#[test]
fn a_figure_that_differs_between_gateways_counts_what_all_have_used() {
    let server = Server::start();
    runtime().block_on(async {
        let stores = ["old", "new"].map(|gateway| {
            let url = server.url();
            crate::calls::store_with(&url, "rollout", gateway, TimeSource::Caller, true)
        });
        let now = moment(START_US);
        let call = async |gateway: usize, quota: u32, cost: u32| {
            let ask = Ask {
                counter: 0,
                quota,
                cost,
                report: false,
            };
            let mut plan = plan(&[ask], START_US);
            crate::calls::is_admitted(&stores[gateway].decide(&mut plan, now).await.unwrap())
        };
        assert!(call(0, 300, 200).await);
        // Lowered: nothing is left. Raised: what is left, and no more.
        assert!(!call(1, 150, 1).await);
        assert!(call(1, 400, 200).await);
        assert!(!call(1, 400, 1).await);
        assert!(!call(0, 300, 1).await);
        assert!(call(1, 401, 1).await);
    });
}

#[test]
fn what_is_not_ours_at_our_keys_harms_nobody() {
    let server = Server::start();
    runtime().block_on(async {
        let store = store(&server.url(), "foreign", "me", TimeSource::Caller);
        let asks = [0, 1, 2, 3].map(|counter| Ask {
            counter,
            quota: 10,
            cost: 1,
            report: false,
        });
        let huge = "99999999999999999999";
        for (kind, text) in [
            ("set", "abc"),
            ("set", "1.5"),
            ("set", huge),
            ("rpush", "abc"),
        ] {
            let mut first = plan(&asks, START_US);
            let decision = store.decide(&mut first, moment(START_US)).await.unwrap();
            assert!(crate::calls::is_admitted(&decision));
            let keys = server.cli(&["keys", "foreign:1{*"]);
            assert_eq!(keys.lines().count(), 4);
            for key in keys.lines() {
                server.cli(&["del", key]);
                server.cli(&[kind, key, text]);
            }
            let mut again = plan(&asks, START_US);
            let decision = store.decide(&mut again, moment(START_US)).await.unwrap();
            assert!(crate::calls::is_admitted(&decision));
            store.give_back(&mut again, moment(START_US), &|_| true);
            store.give_back(&mut first, moment(START_US), &|_| true);
            server.cli(&["flushall"]);
        }
        let mut slots = plan(&asks[3..], START_US);
        let key = |server: &Server| server.cli(&["keys", "foreign:1{*"]);
        let decision = store.decide(&mut slots, moment(START_US)).await.unwrap();
        assert!(crate::calls::is_admitted(&decision));
        server.cli(&["set", key(&server).trim(), "abc"]);
        let decision = store.decide(&mut slots, moment(START_US)).await.unwrap();
        assert!(crate::calls::is_admitted(&decision));
        assert!(store.shared_gauges().is_up);
        assert_eq!(store.shared_gauges().alone, 0);
    });
}
