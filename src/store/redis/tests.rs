//! Against a real redis-server: the same decisions as the embedded store, by a simulated clock;
//! and never over from several gateways, by the server's own.

mod leases;

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::connect::{Connector, RedisOptions};
use super::*;
use crate::clock::Clock;
use crate::limit::{CounterKey, LimitId, Scope};
use crate::store::Store as _;
use crate::store::memory::{MemoryOptions, MemoryStore};

const DAY_US: u64 = 86_400_000_000;
/// A quarter of a minute before a midnight.
const START_US: u64 = 20_000 * DAY_US - 15_000_000;

struct Server {
    child: Child,
    port: u16,
    _dir: tempfile::TempDir,
}

impl Server {
    fn start() -> Self {
        loop {
            let port = TcpListener::bind("127.0.0.1:0")
                .unwrap()
                .local_addr()
                .unwrap()
                .port();
            let dir = tempfile::tempdir().unwrap();
            let mut child = Command::new("redis-server")
                .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
                .args(["--save", "", "--appendonly", "no"])
                .args(["--maxmemory-policy", "noeviction"])
                .current_dir(dir.path())
                .stdout(Stdio::null())
                .spawn()
                .expect("redis-server is installed (Debian: apt-get install redis-server)");
            let client = redis::Client::open(format!("redis://127.0.0.1:{port}")).unwrap();
            loop {
                let ready = client
                    .get_connection()
                    .and_then(|mut link| redis::cmd("PING").query::<String>(&mut link));
                if ready.is_ok() {
                    return Self {
                        child,
                        port,
                        _dir: dir,
                    };
                }
                if child.try_wait().unwrap().is_some() {
                    break; // another process was faster to take the port
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }

    fn store_with(
        &self,
        prefix: &str,
        gateway: usize,
        time: TimeSource,
        leases: bool,
    ) -> RedisStore {
        let options = RedisOptions {
            leases,
            ..self.options(prefix)
        };
        let connector = Connector::new(options).unwrap();
        RedisStore::new(connector, format!("g{gateway}"), 100_000, time)
    }

    fn store(&self, prefix: &str, gateway: &str, time: TimeSource) -> RedisStore {
        let connector = Connector::new(self.options(prefix)).unwrap();
        RedisStore::new(connector, gateway.to_owned(), 100_000, time)
    }

    fn options(&self, prefix: &str) -> RedisOptions {
        let url = format!("redis://127.0.0.1:{}", self.port);
        RedisOptions {
            prefix: prefix.to_owned(),
            // The clock of these tests stands still meanwhile.
            timeout: Duration::from_secs(60),
            slot_lease: Duration::from_secs(86_400),
            leases: false,
            ..RedisOptions::parse(&url).unwrap()
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn moment(us: u64) -> Moment {
    Moment {
        mono_us: us,
        unix_us: us,
    }
}

/// What one step of a trace asks.
#[derive(Clone, Debug)]
enum Step {
    Decide(u64, Vec<Ask>),
    /// Gives back what is left of an earlier plan, by its number modulo those there are.
    GiveBack(u64, usize),
}

#[derive(Clone, Copy, Debug)]
struct Ask {
    counter: u8,
    quota: u32,
    cost: u32,
    report: bool,
}

fn charge(ask: Ask, now_us: u64) -> Charge {
    let key = CounterKey(u128::from(ask.counter) + (7 << 100));
    let span = match ask.counter % 4 {
        0 => Span::Sliding {
            window_us: 1_000_000,
        },
        1 => Span::Sliding {
            window_us: 60_000_000,
        },
        2 => Span::Day {
            start_us: now_us - now_us % DAY_US,
            end_us: now_us - now_us % DAY_US + DAY_US,
        },
        _ => Span::Running,
    };
    Charge {
        limit: LimitId(0),
        key,
        overflow: CounterKey(1),
        quota: ask.quota,
        cost: if span == Span::Running {
            ask.cost.min(1)
        } else {
            ask.cost
        },
        span,
        scope: Scope::App,
        report: ask.report,
        known: false,
        taken: None,
        shared: false,
        on_store_failure: crate::limit::OnStoreFailure::Local,
    }
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
        prop::bool::weighted(0.2),
        any::<prop::sample::Index>(),
    )
        .prop_map(|(pause, asks, back, index)| {
            if back {
                Step::GiveBack(pause, index.index(1 << 16))
            } else {
                Step::Decide(pause, asks)
            }
        });
    prop::collection::vec(step, 1..120)
}

#[test]
fn the_same_trace_gets_the_same_decisions_as_in_memory() {
    let server = Server::start();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let traces = std::cell::Cell::new(0);
    let mut runner = TestRunner::new(Config {
        cases: 96,
        failure_persistence: None,
        ..Config::default()
    });
    runner
        .run(&steps(), |steps| {
            traces.set(traces.get() + 1);
            let redis = server.store(&format!("t{}-", traces.get()), "me", TimeSource::Caller);
            let memory = MemoryStore::new(MemoryOptions::default());
            runtime.block_on(async {
                let mut now_us = START_US;
                let mut plans: Vec<(Plan, Plan)> = Vec::new();
                for step in &steps {
                    match step {
                        Step::Decide(pause, asks) => {
                            now_us += pause;
                            let mut here = Plan {
                                app: Some(CounterKey(9 << 100)),
                                ..Plan::default()
                            };
                            here.charges
                                .extend(asks.iter().map(|ask| charge(*ask, now_us)));
                            let mut there = here.clone();
                            let ours = memory.decide_now(&mut here, moment(now_us));
                            let theirs = redis.decide(&mut there, moment(now_us)).await.unwrap();
                            prop_assert_eq!(&ours, &theirs, "at {}", now_us);
                            for (a, b) in here.charges.iter().zip(&there.charges) {
                                prop_assert_eq!(a.taken.is_some(), b.taken.is_some());
                            }
                            plans.push((here, there));
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

/// Admitted units of a trace, each with the time before it was asked and after it was answered:
/// the store took them somewhere between.
fn most_in_a_window(admitted: &[(u64, u64, u32)], window_us: u64) -> u32 {
    admitted
        .iter()
        .map(|(first, ..)| {
            // Certainly within one window: asked after `first`, answered before its end.
            admitted
                .iter()
                .filter(|(asked, answered, _)| asked >= first && *answered < first + window_us)
                .map(|(.., units)| units)
                .sum()
        })
        .max()
        .unwrap_or(0)
}

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
            let store = server.store_with(&prefix, gateway, TimeSource::Server(clock), leases);
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap();
                let calling = async {
                    // Until a new store is believed.
                    tokio::time::sleep(Duration::from_millis(2_200)).await;
                    let mut admitted = Vec::new();
                    let begun_us = clock.now().mono_us;
                    let mut next_us = begun_us;
                    while clock.now().mono_us < begun_us + windows * 1_000_000 {
                        let now = clock.now();
                        let mut plan = Plan::default();
                        plan.charges.push(charge(ask, now.unix_us));
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
                        () = store.watch(&Vec::new) => unreachable!("it has no end"),
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
            let seen = gateways(&server, leases, count, ask, 3, 0);
            let admitted: Vec<_> = seen.iter().flat_map(|s| s.admitted.clone()).collect();
            let most = most_in_a_window(&admitted, 1_000_000);
            assert!(
                most <= 200,
                "{most} units in one window of {count}, leases {leases}"
            );
            let sum: u32 = admitted.iter().map(|(.., units)| units).sum();
            // Three windows and what the first finds free; a machine that stands still gets less.
            assert!(sum >= 400, "{sum} units, {count} gateways, leases {leases}");
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
fn a_script_that_comes_too_late_does_nothing_and_a_decision_nobody_waits_for_is_undone() {
    let server = Server::start();
    let clock = Clock::start();
    let store = server.store("l-", "me", TimeSource::Server(clock));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
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
        assert!(store.ask(&mut plan, late, &[]).await.is_err());

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
            assert!(asked < 1000, "the units are not given back");
            // The giving back is on its way.
            match store.decide(&mut last, clock.now()).await.unwrap() {
                admitted @ Decision::Admit { .. } => break admitted,
                Decision::Deny { .. } => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        };
        assert_eq!(left(decision), 1);
    });
}
