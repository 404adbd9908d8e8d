//! Against a real redis-server: the same decisions as the embedded store, by a simulated clock;
//! and never over from several gateways, by the server's own.

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

    fn store(&self, prefix: &str, gateway: &str, time: TimeSource) -> RedisStore {
        let url = format!("redis://127.0.0.1:{}", self.port);
        let options = RedisOptions {
            prefix: prefix.to_owned(),
            // The clock of these tests stands still meanwhile.
            timeout: Duration::from_secs(60),
            slot_lease: Duration::from_secs(86_400),
            ..RedisOptions::parse(&url).unwrap()
        };
        RedisStore::new(
            Connector::new(options).unwrap(),
            gateway.to_owned(),
            100_000,
            time,
        )
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

#[test]
fn four_gateways_on_one_server_are_never_over_and_use_it_all() {
    let server = Server::start();
    let clock = Clock::start();
    let (quota, window_us) = (200_u32, 1_000_000_u64);
    let threads: Vec<_> = (0..4)
        .map(|gateway| {
            let store = server.store("f-", &format!("g{gateway}"), TimeSource::Server(clock));
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap();
                runtime.block_on(async {
                    let mut admitted = Vec::new();
                    let begun_us = clock.now().mono_us;
                    while clock.now().mono_us < begun_us + 4 * window_us {
                        let now = clock.now();
                        let mut plan = Plan::default();
                        plan.charges.push(charge(
                            Ask {
                                counter: 0,
                                quota,
                                cost: 3,
                                report: false,
                            },
                            now.unix_us,
                        ));
                        if let Decision::Admit { .. } = store.decide(&mut plan, now).await.unwrap()
                        {
                            admitted.push((now.mono_us, clock.now().mono_us, 3));
                        }
                    }
                    admitted
                })
            })
        })
        .collect();
    let admitted: Vec<_> = threads
        .into_iter()
        .flat_map(|thread| thread.join().unwrap())
        .collect();
    let most = most_in_a_window(&admitted, window_us);
    assert!(most <= quota, "{most} units in one window");
    let sum: u32 = admitted.iter().map(|(.., units)| units).sum();
    // Four windows and what the first one finds free; a machine that stands still gets less.
    assert!(sum > 2 * quota, "{sum} units in four windows");
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
        assert!(store.ask(&mut plan, late).await.is_err());

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
