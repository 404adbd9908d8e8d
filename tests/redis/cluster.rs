//! Plans whose counters lie on several nodes of a cluster.

use std::sync::Arc;
use std::time::Duration;

use floodgate::clock::Clock;
use floodgate::limit::{Charge, CounterKey, Decision, LimitId, OnStoreFailure, Plan, Scope, Span};
use floodgate::store::Store as _;
use floodgate::store::redis::connect::{Connector, RedisOptions};
use floodgate::store::redis::{RedisStore, TimeSource};

use crate::calls::{DAY_US, is_admitted, runtime};
use crate::server::{Cluster, Server, wait_until};

fn charge(key: u128, scope: Scope, quota: u32, cost: u32, now_us: u64) -> Charge {
    Charge {
        limit: LimitId(0),
        key: CounterKey(key),
        overflow: CounterKey(1),
        quota,
        cost,
        span: Span::Day {
            start_us: now_us - now_us % DAY_US,
            end_us: now_us - now_us % DAY_US + DAY_US,
        },
        scope,
        report: false,
        on_store_failure: OnStoreFailure::Local,
        known: false,
        taken: None,
        shared: false,
    }
}

const ADDRESS: u128 = 3 << 96;
const APP: u128 = 0x1234_5678 << 96;

/// An address' and an app's counter, which are on different nodes.
fn call(app_quota: u32, cost: u32, now_us: u64) -> Plan {
    let mut plan = Plan {
        app: Some(CounterKey(APP)),
        origin: Some(CounterKey(ADDRESS)),
        ..Plan::default()
    };
    plan.charges
        .push(charge(APP + 1, Scope::App, app_quota, cost, now_us));
    plan.charges
        .push(charge(ADDRESS + 1, Scope::Ip, 1_000_000, cost, now_us));
    plan
}

/// What a look finds used of the two: address, app.
async fn used(store: &RedisStore, clock: Clock, app_quota: u32) -> [u32; 2] {
    let now = clock.now();
    let mut used = [0; 2];
    for (used, index) in used.iter_mut().zip([1, 0]) {
        let whole = call(app_quota, 0, now.unix_us);
        let mut plan = Plan {
            charges: whole.charges[index..=index].into(),
            ..whole.clone()
        };
        let quota = plan.charges[0].quota;
        *used = quota
            - match store.decide(&mut plan, now).await.unwrap() {
                Decision::Admit { nearest, .. } => nearest.unwrap().left,
                Decision::Deny { left, .. } => left,
                Decision::Full { .. } => panic!("it asks no total"),
            };
    }
    used
}

/// Waits until both counters have these units: leases that were not used go back within a second.
async fn settles(store: &RedisStore, clock: Clock, app_quota: u32, units: u32) {
    let mut found = [0; 2];
    for _ in 0..1200 {
        found = used(store, clock, app_quota).await;
        if found == [units; 2] {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(found, [units; 2]);
}

fn store(cluster: &Cluster, gateway: &str, clock: Clock, timeout: Duration) -> Arc<RedisStore> {
    let options = RedisOptions {
        timeout,
        leases: false,
        ..RedisOptions::parse(&cluster.url()).unwrap()
    };
    let connector = Connector::new(options).unwrap();
    let time = TimeSource::Server(clock);
    Arc::new(RedisStore::new(
        connector,
        gateway.to_owned(),
        100_000,
        time,
    ))
}

/// Greets, and watches from then on, until the store is believed.
async fn begin(store: &Arc<RedisStore>) {
    store.greet().await;
    assert!(store.shared_gauges().is_up);
    let watched = store.clone();
    tokio::spawn(async move { watched.watch().await });
    tokio::time::sleep(Duration::from_millis(2_300)).await;
}

#[test]
fn what_spans_nodes_leaks_nothing_whether_denied_or_dropped() {
    let cluster = Cluster::start(0);
    let clock = Clock::start();
    runtime().block_on(async {
        let store = store(&cluster, "me", clock, Duration::from_secs(20));
        begin(&store).await;
        let mut admitted = 0;
        // The last fifty are denied by the app, after the address was charged.
        for number in 0..200_u64 {
            let now = clock.now();
            let mut plan = call(400, 3, now.unix_us);
            // Some callers leave, each at another time.
            let patience = match number % 3 {
                0 => Duration::from_micros(number * 7),
                _ => Duration::from_secs(20),
            };
            tokio::select! {
                decision = store.decide(&mut plan, now) => {
                    admitted += 3 * u32::from(is_admitted(&decision.unwrap()));
                }
                () = tokio::time::sleep(patience) => (),
            }
        }
        assert!((390..=400).contains(&admitted), "{admitted} units");
        // What was dropped on its way is given back when the answer comes.
        settles(&store, clock, 400, admitted).await;
        assert_eq!(store.shared_gauges().alone, 0);
    });
}

#[test]
fn a_dead_node_is_no_affair_of_the_others_and_a_promoted_replica_goes_on() {
    let mut cluster = Cluster::start(1);
    let clock = Clock::start();
    let timeout = Duration::from_millis(200);
    runtime().block_on(async {
        let store = store(&cluster, "me", clock, timeout);
        begin(&store).await;
        for _ in 0..20 {
            let now = clock.now();
            let decision = store.decide(&mut call(1000, 1, now.unix_us), now).await;
            assert!(is_admitted(&decision.unwrap()));
        }
        settles(&store, clock, 1000, 20).await;
        let key =
            cluster.nodes[0].cli(&["-c", "cluster", "keyslot", &format!("{{{:x}}}", APP >> 96)]);
        let port = cluster.master_of(key.trim().parse().unwrap());
        // Replicas acknowledge in their own time.
        let master = cluster.nodes.iter().find(|n| n.port() == port).unwrap();
        wait_until("its replica has all", || {
            // "master", how far it is, and of each replica its address and how far that is.
            let role = master.cli(&["role"]);
            let lines: Vec<_> = role.lines().collect();
            lines.len() == 5 && lines[1] == lines[4]
        });
        let dead = cluster.nodes.iter_mut().find(|n| n.port() == port).unwrap();
        dead.kill();
        let mut admitted = 20;
        let begun = clock.now().mono_us;
        let mut back = None;
        let mut slow = 0;
        while back.is_none() && clock.now().mono_us - begun < 120_000_000 {
            let now = clock.now();
            let decision = store.decide(&mut call(1000, 1, now.unix_us), now).await;
            assert!(is_admitted(&decision.unwrap()));
            admitted += 1;
            let took_us = clock.now().mono_us - now.mono_us;
            // A timeout for each node; a busy machine adds to a few.
            slow += u32::from(took_us > 2 * 200_000 + 600_000);
            assert!(slow < 10, "again {took_us} µs");
            if store.shared_gauges().times_down > 0 && store.shared_gauges().is_up {
                back = Some(clock.now().mono_us - begun);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(back.is_some(), "the promoted replica is not used");
        settles(&store, clock, 1000, admitted).await;
    });
}

/// A slot on its way from one node to another.
struct Moving<'c> {
    slot: String,
    from: &'c Server,
    to: &'c Server,
}

impl<'c> Moving<'c> {
    /// That of the app's counters.
    fn of_app(cluster: &'c Cluster) -> Self {
        let tag = format!("{{{:x}}}", APP >> 96);
        let slot = cluster.nodes[0].cli(&["cluster", "keyslot", &tag]);
        let slot = slot.trim().to_owned();
        let from = cluster.master_of(slot.parse().unwrap());
        let (from, to): (Vec<_>, Vec<_>) = cluster.nodes.iter().partition(|n| n.port() == from);
        let (from, to) = (from[0], to[0]);
        Self { slot, from, to }
    }

    fn set(&self, node: &Server, how: &[&str]) {
        let answer = node.cli(&[&["cluster", "setslot", self.slot.as_str()], how].concat());
        assert_eq!(answer.trim(), "OK");
    }

    fn begin(&self) {
        let [from, to] = [self.from, self.to].map(|node| node.cli(&["cluster", "myid"]));
        self.set(self.to, &["importing", from.trim()]);
        self.set(self.from, &["migrating", to.trim()]);
    }

    /// Moves so many of the keys that are still there; how many there were.
    fn move_keys(&self, count: usize) -> usize {
        let port = self.to.port().to_string();
        let keys = self
            .from
            .cli(&["cluster", "getkeysinslot", &self.slot, "100"]);
        for key in keys.lines().take(count) {
            self.from
                .cli(&["migrate", "127.0.0.1", &port, key, "0", "5000"]);
        }
        keys.lines().count()
    }

    fn end(&self) {
        let to = self.to.cli(&["cluster", "myid"]);
        self.set(self.to, &["node", to.trim()]);
        self.set(self.from, &["node", to.trim()]);
    }
}

#[test]
fn a_slot_that_moves_to_another_node_keeps_its_counters() {
    let cluster = Cluster::start(0);
    let clock = Clock::start();
    let timeout = Duration::from_secs(20);
    let moving = Moving::of_app(&cluster);
    runtime().block_on(async {
        let store = store(&cluster, "me", clock, timeout);
        begin(&store).await;
        let (mut admitted, mut slow) = (0, 0);
        for number in 0..120 {
            match number {
                30 => moving.begin(),
                60 => assert!(moving.move_keys(100) > 0),
                90 => moving.end(),
                _ => (),
            }
            let now = clock.now();
            let decision = store.decide(&mut call(1000, 1, now.unix_us), now).await;
            assert!(is_admitted(&decision.unwrap()), "call {number}");
            admitted += 1;
            // None waits for its time-out; a busy machine adds to a few.
            let took_us = clock.now().mono_us - now.mono_us;
            assert!(took_us < 20_000_000, "{took_us} µs");
            slow += u32::from(took_us > 1_000_000);
            assert!(slow < 10, "again {took_us} µs");
        }
        let slot = moving.slot.parse().unwrap();
        assert_eq!(cluster.master_of(slot), moving.to.port());
        settles(&store, clock, 1000, admitted).await;
    });
}

/// Three counters of the app, the second of which has this quota, and the address'.
fn call_of_many(quota: u32, set: u128, now_us: u64) -> Plan {
    let mut plan = call(1000, 1, now_us);
    for (number, quota) in [(2, quota), (3, 1_000_000)] {
        let key = APP + 10 * set + number;
        plan.charges.push(charge(key, Scope::App, quota, 1, now_us));
    }
    plan
}

#[test]
fn while_a_slot_moves_no_call_is_lost_and_no_unit() {
    let cluster = Cluster::start(0);
    let clock = Clock::start();
    let moving = Moving::of_app(&cluster);
    runtime().block_on(async {
        let store = store(&cluster, "me", clock, Duration::from_secs(20));
        begin(&store).await;
        let (mut admitted, mut of_set) = (0, [0; 3]);
        for round in 0..6_u128 {
            match round {
                1 => moving.begin(),
                // Some keys of a plan are here, some there: no node decides it.
                2 => assert_eq!(moving.move_keys(1), 3),
                // None of them is here, and those of the next plans nowhere.
                3 => assert!(moving.move_keys(100) > 0),
                5 => moving.end(),
                _ => (),
            }
            // Counters of their own before, while and after it moves.
            let set = usize::try_from(round / 2).unwrap();
            let calls = (0..20).map(|_| {
                let store = &store;
                async move {
                    let now = clock.now();
                    let mut plan = call_of_many(30, round / 2, now.unix_us);
                    store.decide(&mut plan, now).await.unwrap()
                }
            });
            for decision in futures_util::future::join_all(calls).await {
                of_set[set] += u32::from(is_admitted(&decision));
            }
            // Givings back of what a later counter denied are on their way.
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        admitted += of_set.iter().sum::<u32>();
        let gauges = store.shared_gauges();
        assert_eq!((gauges.alone, gauges.times_down), (0, 0));
        // Two rounds of twenty calls, for thirty units.
        assert_eq!(of_set, [30; 3]);
        settles(&store, clock, 1000, admitted).await;
    });
}
