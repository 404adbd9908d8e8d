//! Totals in Redis: moved by the script as in memory, shared, and kept for good.

use floodgate::clock::Clock;
use floodgate::limit::total::{Change, Kind, Total, TotalCharge};
use floodgate::limit::{CounterKey, Decision, Plan};
use floodgate::store::Store as _;
use floodgate::store::memory::{MemoryOptions, MemoryStore};
use floodgate::store::redis::TimeSource;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};

use crate::backend::Backend;
use crate::calls::{START_US, is_admitted, moment, plan, runtime, store};
use crate::harness::{Connection, Gateway, Start};
use crate::server::{Cluster, Server, wait_until};

const APP: CounterKey = CounterKey(9 << 100);

/// The round of a total that is not there yet: of one that has been lost, no round comes again.
const FIRST: u32 = (START_US / 1000 % (1 << 31)) as u32;

/// The same as Redis knows it.
fn in_redis(change: Change) -> Change {
    let of = |round: u32| round + FIRST;
    match change {
        Change::Lower { units, basis } => Change::Lower {
            units,
            basis: of(basis),
        },
        Change::AtLeast { count, round } => Change::AtLeast {
            count,
            round: round.map(of),
        },
        Change::Take { units, round } => Change::Take {
            units,
            round: of(round),
        },
        Change::GiveBack { units, round } => Change::GiveBack {
            units,
            round: of(round),
        },
        Change::Keep { units, round } => Change::Keep {
            units,
            round: of(round),
        },
        Change::End {
            round,
            listed,
            now_s,
        } => Change::End {
            round: of(round),
            listed,
            now_s,
        },
        other => other,
    }
}

/// As in memory, where rounds begin at 0.
fn in_memory(total: Total) -> Total {
    let text = total.to_text();
    let words = text.split(' ').enumerate().map(|(nth, word)| match nth {
        3 | 4 => (word.parse::<u32>().unwrap() - FIRST).to_string(),
        _ => word.to_owned(),
    });
    Total::of_text(&words.collect::<Vec<_>>().join(" ")).unwrap()
}

fn charge(key: u128, figure: u64, units: u32, since_s: u64, report: bool) -> TotalCharge {
    TotalCharge {
        kind: Kind::Users,
        key: CounterKey(key),
        figure,
        units,
        report,
        since_s,
        whose: None,
        is_new: false,
        taken: None,
        over: false,
    }
}

#[derive(Clone, Debug)]
enum Step {
    Decide(Vec<(u128, u64, u32, u64, bool)>),
    /// Settles an earlier plan: so many of its units come back.
    GiveBack(usize, u32),
    /// So many of them are kept.
    Keep(usize, u32),
    Change(u128, Change),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let ask = (
        0_u128..4,
        prop_oneof![9 => 0_u64..40, 1 => Just(u64::MAX)],
        0_u32..8,
        0_u64..3,
        prop::bool::weighted(0.2),
    );
    let change = prop_oneof![
        4 => (0_u32..9).prop_map(Change::Add),
        4 => (0_u32..9, 0_u32..4).prop_map(|(units, basis)| Change::Lower { units, basis }),
        2 => (0_u32..9, 0_u32..6).prop_map(|(units, round)| Change::Take { units, round }),
        1 => Just(Change::Doubt),
        1 => Just(Change::Clear),
        2 => (0_u64..60, prop::option::weighted(0.3, 0_u32..3)).prop_map(|(count, round)| Change::AtLeast { count, round }),
        1 => (0_u64..60).prop_map(Change::Recall),
        2 => (0_u64..60, 1_u64..4).prop_map(|(count, now_s)| Change::Set { count, now_s }),
        2 => (0_u64..9000).prop_map(|now_s| Change::Begin { now_s }),
        3 => (0_u32..6, 0_u64..60, 1_u64..4)
            .prop_map(|(round, listed, now_s)| Change::End { round, listed, now_s }),
        1 => Just(Change::Read),
    ];
    let step = prop_oneof![
        4 => prop::collection::vec(ask, 1..4).prop_map(Step::Decide),
        3 => (0_usize..64, 0_u32..8).prop_map(|(nth, units)| Step::GiveBack(nth, units)),
        3 => (0_usize..64, 0_u32..8).prop_map(|(nth, units)| Step::Keep(nth, units)),
        4 => (0_u128..4, change).prop_map(|(key, change)| Step::Change(key, change)),
    ];
    prop::collection::vec(step, 1..80)
}

fn same_as_in_memory(url: &str, cases: u32) {
    let runtime = runtime();
    let traces = std::cell::Cell::new(0);
    let mut runner = TestRunner::new(Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    });
    let now = moment(START_US);
    runner
        .run(&steps(), |steps| {
            traces.set(traces.get() + 1);
            let prefix = format!("t{}-", traces.get());
            let redis = store(url, &prefix, "me", TimeSource::Caller);
            let memory = MemoryStore::new(MemoryOptions::default());
            runtime.block_on(async {
                let mut taken: Vec<(CounterKey, u32, u32)> = Vec::new();
                for step in &steps {
                    let changes = match step {
                        Step::Decide(asks) => {
                            let mut here = plan(&[], START_US);
                            for (key, figure, units, since_s, report) in asks {
                                if here.totals.iter().all(|c| c.key.0 != *key) {
                                    let one = charge(*key, *figure, *units, *since_s, *report);
                                    here.totals.push(one);
                                }
                            }
                            let mut there = here.clone();
                            let ours = memory.decide_now(&mut here, now);
                            let theirs = redis.decide(&mut there, now).await.unwrap();
                            prop_assert_eq!(&ours, &theirs);
                            for charge in &mut there.totals {
                                charge.taken = charge.taken.map(|round| round - FIRST);
                            }
                            if is_admitted(&ours) {
                                prop_assert_eq!(&here.totals, &there.totals);
                                let all = here.totals.iter();
                                taken.extend(all.filter_map(|c| Some((c.key, c.units, c.taken?))));
                            }
                            continue;
                        }
                        Step::GiveBack(nth, units) | Step::Keep(nth, units) => {
                            let count = taken.len().max(1);
                            let Some((key, most, round)) = taken.get(nth % count).copied() else {
                                continue;
                            };
                            let units = (*units).min(most);
                            let change = match step {
                                Step::Keep(..) => Change::Keep { units, round },
                                _ => Change::GiveBack { units, round },
                            };
                            vec![(key, change)]
                        }
                        Step::Change(key, change) => vec![(CounterKey(*key), *change)],
                    };
                    let ours = memory.change_totals(APP, &changes, now).await.unwrap();
                    let shifted: Vec<_> = changes.iter().map(|(k, c)| (*k, in_redis(*c))).collect();
                    let theirs = redis.change_totals(APP, &shifted, now).await.unwrap();
                    let theirs: Vec<_> = theirs.into_iter().map(in_memory).collect();
                    prop_assert_eq!(ours, theirs, "{:?}", changes);
                }
                Ok(())
            })
        })
        .unwrap();
}

#[test]
fn totals_move_as_in_memory() {
    same_as_in_memory(&Server::start().url(), 96);
}

#[test]
fn totals_move_as_in_memory_in_a_cluster() {
    same_as_in_memory(&Cluster::start(0).url(), 16);
}

#[test]
fn what_was_taken_of_a_total_that_was_lost_is_none_of_the_next_one() {
    let server = Server::start();
    let redis = store(&server.url(), "t", "me", TimeSource::Caller);
    let runtime = runtime();
    let key = CounterKey(1);
    let at = |seconds: u64| moment(START_US + seconds * 1_000_000);
    let set = |count, now_s| vec![(key, Change::Set { count, now_s })];
    let took = |plan: &Plan| plan.totals[0].taken.unwrap();
    runtime.block_on(async {
        let change = async |changes: &[(CounterKey, Change)], now| {
            redis
                .change_totals(APP, changes, now)
                .await
                .unwrap()
                .remove(0)
        };
        change(&set(18, 1), at(0)).await;
        let mut lost = plan(&[], START_US);
        lost.totals.push(charge(key.0, 40, 5, 0, false));
        assert!(is_admitted(&redis.decide(&mut lost, at(0)).await.unwrap()));
        let basis = change(&[(key, Change::Read)], at(0)).await.basis();
        server.cli(&["flushall"]);
        change(&set(10, 2), at(1)).await;
        let mut next = plan(&[], START_US);
        next.totals.push(charge(key.0, 40, 5, 0, false));
        assert!(is_admitted(&redis.decide(&mut next, at(1)).await.unwrap()));
        // The deletion, and the call that failed, were of the one before.
        let lower = Change::Lower { units: 8, basis };
        assert_eq!(change(&[(key, lower)], at(2)).await.count, 15);
        let round = took(&lost);
        let back = Change::GiveBack { units: 5, round };
        let total = change(&[(key, back)], at(2)).await;
        assert_eq!((total.count, total.approximate), (15, true));
        // One that somebody has checked is not raised to what another remembers.
        let total = change(&[(key, Change::Recall(19))], at(3)).await;
        assert_eq!(total.count, 15);
    });
}

#[test]
fn a_rate_and_a_total_are_taken_together_or_not_at_all() {
    let server = Server::start();
    let runtime = runtime();
    let redis = store(&server.url(), "t", "me", TimeSource::Caller);
    let ask = crate::calls::Ask {
        counter: 0,
        quota: 3,
        cost: 1,
        report: false,
    };
    let decide = |figure: u64| {
        let mut both: Plan = plan(&[ask], START_US);
        both.totals.push(charge(1, figure, 1, 0, false));
        runtime
            .block_on(redis.decide(&mut both, moment(START_US)))
            .unwrap()
    };
    let count = || {
        let read = [(CounterKey(1), Change::Read)];
        runtime
            .block_on(redis.change_totals(APP, &read, moment(START_US)))
            .unwrap()[0]
            .count
    };
    assert!(is_admitted(&decide(9)));
    for _ in 0..5 {
        assert_eq!(decide(1), Decision::Full { total: 0 });
    }
    assert!(is_admitted(&decide(9)) && is_admitted(&decide(9)));
    assert_eq!(count(), 3);
    assert!(matches!(decide(9), Decision::Deny { charge: 0, .. }));
    assert_eq!(count(), 3, "a rate that denies takes nothing of a total");
}

#[test]
fn more_totals_than_the_script_can_unpack_at_once_are_decided_together() {
    let server = Server::start();
    let runtime = runtime();
    let redis = store(&server.url(), "t", "me", TimeSource::Caller);
    let now = moment(START_US);
    runtime.block_on(async {
        let mut all = plan(&[], START_US);
        // As a batch of calls has that name a thousand each.
        all.totals = (0..9000).map(|key| charge(key, 1, 1, 0, false)).collect();
        let mut again = all.clone();
        assert!(is_admitted(&redis.decide(&mut all, now).await.unwrap()));
        again.totals.swap(0, 8999);
        let full = redis.decide(&mut again, now).await.unwrap();
        assert_eq!(full, Decision::Full { total: 0 });
        let reads: Vec<_> = [0, 4000, 8999]
            .map(|key| (CounterKey(key), Change::Read))
            .into();
        let totals = redis.change_totals(APP, &reads, now).await.unwrap();
        assert!(totals.iter().all(|total| total.count == 1));
    });
}

#[test]
fn an_admission_that_nobody_waits_for_takes_nothing_of_a_total() {
    let server = Server::start();
    let clock = Clock::start();
    let runtime = runtime();
    let redis = store(&server.url(), "t", "me", TimeSource::Server(clock));
    runtime.block_on(async {
        let mut asked = plan(&[], START_US);
        asked.totals.push(charge(1, 9, 2, 0, false));
        assert!(is_admitted(
            &redis.decide(&mut asked, clock.now()).await.unwrap()
        ));
        server.freeze();
        {
            let mut lost = asked.clone();
            let deciding = redis.decide(&mut lost, clock.now());
            let _ = tokio::time::timeout(std::time::Duration::from_millis(100), deciding).await;
        }
        server.thaw();
        let read = [(CounterKey(1), Change::Read)];
        let mut last = Total::default();
        for _ in 0..9000 {
            last = redis.change_totals(APP, &read, clock.now()).await.unwrap()[0];
            if last.count == 2 {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        panic!("{last:?}");
    });
}

const TOKEN: &str = "an-admin-token-of-tests";

fn gateway(url: &str, dir: &std::path::Path, backend: &Backend) -> Gateway {
    let apps = dir.join("apps.toml");
    std::fs::write(&apps, "[[app]]\nnames = \"o#a\"\nplan = \"free\"\n").unwrap();
    Start {
        upstream: Some(backend.addr),
        args: &[
            "--store",
            url,
            "--threads",
            "2",
            "--store-timeout",
            "5s",
            "--admin-token",
            TOKEN,
            "--apps",
            apps.to_str().unwrap(),
            "--unproven-share",
            "100",
        ],
        ..Start::default()
    }
    .start()
}

fn admin(gateway: &Gateway, method: &str, path: &str, body: &str) -> Value {
    let token = format!("Authorization: Bearer {TOKEN}");
    let answer = Connection::to(gateway.admin).call(method, path, &[&token], body);
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

fn users(gateway: &Gateway) -> u64 {
    let shown = admin(gateway, "GET", "/plan?app=o%23a", "");
    shown["totals"][0]["count"].as_u64().unwrap()
}

#[test]
fn two_gateways_share_totals_and_never_go_over() {
    let (server, backend) = (Server::start(), Backend::start());
    let dir = tempfile::tempdir().unwrap();
    let pair = [0, 1].map(|_| gateway(&server.url(), dir.path(), &backend));
    let import = json!({ "app": "o#a", "totals": { "users": 0 } }).to_string();
    admin(&pair[0], "POST", "/plan/import", &import);
    let made = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|thread| {
                let gateway = &pair[thread % 2];
                scope.spawn(move || {
                    let mut connection = gateway.connect();
                    let calls = (0..20).map(|n| {
                        let names =
                            [0, 1, 2].map(|i| json!({ "username": format!("u{thread}x{n}x{i}") }));
                        let body = json!(names).to_string();
                        connection.call("POST", "/o/a/users", &[], &body).status
                    });
                    calls.filter(|status| *status == 200).count()
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .sum::<usize>()
    });
    assert_eq!(made, 33, "all that fits, and no more");
    assert_eq!(backend.with(|state| state.users.len()), 99);
    for gateway in &pair {
        wait_until("both know of all", || users(gateway) == 99);
    }
    // What one deletes, the other may make.
    let name = backend.with(|state| state.users.first().cloned().unwrap());
    let deleted = pair[0].call("DELETE", &format!("/o/a/users/{name}"), "");
    assert_eq!(deleted.status, 200);
    wait_until("there is room", || users(&pair[1]) == 98);
    let two = r#"[{"username":"x"},{"username":"y"}]"#;
    assert_eq!(pair[1].call("POST", "/o/a/users", two).status, 200);
    assert_eq!(
        pair[0]
            .call("POST", "/o/a/users", r#"{"username":"z"}"#)
            .status,
        429
    );
    // They outlive their gateways: no key of a total expires.
    drop(pair);
    let keys = server.cli(&["keys", "*"]);
    let lasting: Vec<&str> = keys
        .lines()
        .filter(|key| server.cli(&["ttl", key]).trim() == "-1")
        .collect();
    let totals = lasting.iter().filter(|key| {
        let value = server.cli(&["get", key]);
        value.starts_with("100 ")
    });
    assert_eq!(totals.count(), 1, "{keys}");
    let later = gateway(&server.url(), dir.path(), &backend);
    assert_eq!(users(&later), 100);
    assert_eq!(
        later
            .call("POST", "/o/a/users", r#"{"username":"z"}"#)
            .status,
        429
    );
}

#[test]
fn what_is_made_while_the_store_is_away_is_counted_when_it_is_back() {
    let (mut server, backend) = (Server::start(), Backend::start());
    let dir = tempfile::tempdir().unwrap();
    let gateway = gateway(&server.url(), dir.path(), &backend);
    let import = json!({ "app": "o#a", "totals": { "users": 10 } }).to_string();
    admin(&gateway, "POST", "/plan/import", &import);
    server.freeze();
    wait_until("the store is out of use", || {
        gateway.call("GET", "/o/a/users/x", "");
        gateway.metric("floodgate_store_up", &[]) == 0.0
    });
    let two = r#"[{"username":"x"},{"username":"y"}]"#;
    assert_eq!(gateway.call("POST", "/o/a/users", two).status, 200);
    server.thaw();
    wait_until("the store is in use", || {
        gateway.metric("floodgate_store_up", &[]) == 1.0
    });
    wait_until("they are counted", || users(&gateway) == 12);
    server.stop();
}
