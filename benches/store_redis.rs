//! Three-limit decisions through one Redis, beside a plain `INCR` and beside what others do: the
//! fixed window (`MGET`, then `INCRBY`), a script that only adds (`HINCRBY`), and a script that keeps
//! a log of the window (`ZADD`); interleaved on one redis-server. Needs redis-server.
//!
//! ```text
//! cargo bench --bench store_redis
//! ```
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a bench"
)]

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use floodgate::clock::Clock;
use floodgate::limit::{Charge, CounterKey, LimitId, Plan, Scope, Span};
use floodgate::store::Store as _;
use floodgate::store::redis::connect::{Connection, Connector, RedisOptions};
use floodgate::store::redis::{RedisStore, TimeSource};

/// Calls that are under way at the same time.
const CALLERS: u64 = 64;
const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_millis(800);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Incr,
    FixedWindow,
    Blind,
    Log,
    Exact,
    Leased,
}

/// Adds to three counters, whatever they have.
const BLIND: &str = "
for i = 1, 3 do redis.call('HINCRBY', KEYS[i], ARGV[1], 1) end
return 1";

/// Three sliding windows of a second, exactly: an entry for each call, in each.
const LOG: &str = "
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
for i = 1, 3 do
  redis.call('ZREMRANGEBYSCORE', KEYS[i], '-inf', now - 1000000)
  if redis.call('ZCARD', KEYS[i]) >= 2000000000 then return 0 end
end
for i = 1, 3 do redis.call('ZADD', KEYS[i], now, ARGV[1]) end
return 1";

/// The scripts as the server knows them.
#[derive(Clone)]
struct Loaded {
    blind: String,
    log: String,
}

impl Loaded {
    async fn load(link: &mut Connection) -> Self {
        let mut shas = Vec::new();
        for text in [BLIND, LOG] {
            let mut load = redis::cmd("SCRIPT");
            let sha = link.send(load.arg("LOAD").arg(text)).await.unwrap();
            shas.push(redis::from_redis_value::<String>(sha).unwrap());
        }
        let [blind, log] = shas.try_into().unwrap();
        Self { blind, log }
    }
}

struct Server(Child, u16);

impl Server {
    fn start() -> Self {
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let child = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--save", ""])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(500));
        Self(child, port)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn plan(busy: u64, number: u64) -> Plan {
    let app = CounterKey(u128::from(number % busy) << 64);
    let mut plan = Plan {
        app: Some(app),
        ..Plan::default()
    };
    for (limit, window_us) in [(1_u32, 1_000_000), (2, 60_000_000), (3, 1_000_000)] {
        plan.charges.push(Charge {
            limit: LimitId(limit),
            key: CounterKey(app.0 + u128::from(limit)),
            overflow: CounterKey(0),
            quota: 2_000_000_000,
            cost: 1,
            span: Span::Sliding { window_us },
            scope: Scope::App,
            report: false,
            known: true,
            taken: None,
            shared: false,
            on_store_failure: floodgate::limit::OnStoreFailure::Local,
        });
    }
    plan
}

async fn one(
    way: Way,
    busy: u64,
    number: u64,
    store: &RedisStore,
    (link, loaded): (&mut Connection, &Loaded),
    clock: Clock,
) {
    let key = |limit: u64| format!("{way:?}:{}:{limit}", number % busy);
    match way {
        Way::Incr => {
            link.send(redis::cmd("INCR").arg(key(0))).await.unwrap();
        }
        Way::FixedWindow => {
            let keys = [key(1), key(2), key(3)];
            link.send(redis::cmd("MGET").arg(&keys)).await.unwrap();
            // Three commands of one write: the library pipelines what is sent together.
            let (mut a, mut b, mut c) = (link.clone(), link.clone(), link.clone());
            let add = |key: &String| redis::cmd("INCRBY").arg(key).arg(1).to_owned();
            let (one, two, three) = (add(&keys[0]), add(&keys[1]), add(&keys[2]));
            let _ = tokio::join!(a.send(&one), b.send(&two), c.send(&three));
        }
        Way::Blind | Way::Log => {
            let (sha, arg) = match way {
                Way::Log => (&loaded.log, number),
                _ => (&loaded.blind, 7),
            };
            let mut command = redis::cmd("EVALSHA");
            command.arg(sha).arg(3).arg(&[key(1), key(2), key(3)]);
            link.send(command.arg(arg)).await.unwrap();
        }
        Way::Exact | Way::Leased => {
            let mut plan = plan(busy, number);
            store.decide(&mut plan, clock.now()).await.unwrap();
            // A call that has not waited still leaves the others their turn.
            tokio::task::yield_now().await;
        }
    }
}

/// CPU seconds of the server.
async fn cpu(link: &mut Connection) -> f64 {
    let info = link.send(redis::cmd("INFO").arg("cpu")).await.unwrap();
    let text: String = redis::from_redis_value(info).unwrap();
    text.lines()
        .filter(|line| line.starts_with("used_cpu_user:") || line.starts_with("used_cpu_sys:"))
        .filter_map(|line| line.split_once(':')?.1.trim().parse::<f64>().ok())
        .sum()
}

/// Calls per second, and microseconds of the server's CPU for each.
async fn round(
    way: Way,
    busy: u64,
    store: &Arc<RedisStore>,
    (link, loaded): (&Connection, &Loaded),
    clock: Clock,
) -> (f64, f64) {
    let count = Arc::new(AtomicU64::new(0));
    let before = cpu(&mut link.clone()).await;
    let begun = Instant::now();
    let callers: Vec<_> = (0..CALLERS)
        .map(|caller| {
            let (store, mut link, count) = (store.clone(), link.clone(), count.clone());
            let loaded = loaded.clone();
            tokio::spawn(async move {
                let mut number = caller.wrapping_mul(7919);
                while begun.elapsed() < ROUND {
                    number = number
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1_442_695_040_888_963_407);
                    let with = (&mut link, &loaded);
                    one(way, busy, number >> 33, &store, with, clock).await;
                    count.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.unwrap();
    }
    let seconds = begun.elapsed().as_secs_f64();
    let calls = count.load(Ordering::Relaxed) as f64;
    let cpu = cpu(&mut link.clone()).await - before;
    (calls / seconds, cpu / calls * 1e6)
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let server = Server::start();
    let options = |leases| RedisOptions {
        leases,
        prefix: format!("bench-{leases}"),
        timeout: Duration::from_secs(5),
        ..RedisOptions::parse(&format!("redis://127.0.0.1:{}", server.1)).unwrap()
    };
    let clock = Clock::start();
    let store = |leases| {
        let connector = Connector::new(options(leases)).unwrap();
        let time = TimeSource::Server(clock);
        Arc::new(RedisStore::new(
            connector,
            "bench".to_owned(),
            100_000,
            time,
        ))
    };
    let link = Connector::new(options(false)).unwrap().connect().await;
    let mut link = link.unwrap();
    let loaded = Loaded::load(&mut link).await;
    let (exact, leased) = (store(false), store(true));
    let store_of = |way| if way == Way::Leased { &leased } else { &exact };
    println!("| busy counters | what | per s against INCR | Redis CPU, µs | calls per command |");
    println!("| --- | --- | --- | --- | --- |");
    for busy in [1, 10, 1000] {
        let ways = [
            (Way::Incr, "INCR (1 counter, no limit)"),
            (Way::FixedWindow, "MGET, then 3 INCRBY (never exact)"),
            (Way::Blind, "3 HINCRBY in a script (no limit)"),
            (Way::Log, "3 logs in a script (ZADD)"),
            (Way::Exact, "3 limits, exact"),
            (Way::Leased, "3 limits, leases"),
        ];
        let mut measured = vec![Vec::new(); ways.len()];
        let before = [&exact, &leased].map(|store| store.round_trips());
        for _ in 0..ROUNDS {
            for (index, (way, _)) in ways.iter().enumerate() {
                measured[index]
                    .push(round(*way, busy, store_of(*way), (&link, &loaded), clock).await);
            }
        }
        let per_trip = |way| {
            let before = before[usize::from(way == Way::Leased)];
            let (trips, items) = store_of(way).round_trips();
            (items - before.1) as f64 / (trips - before.0) as f64
        };
        let rate = |rounds: &[(f64, f64)]| median(rounds.iter().map(|(rate, _)| *rate).collect());
        let base = rate(&measured[0]);
        for ((way, name), rounds) in ways.iter().zip(&measured) {
            let cpu = median(rounds.iter().map(|(_, cpu)| *cpu).collect());
            let shared = match way {
                Way::Exact | Way::Leased => format!("{:.1}", per_trip(*way)),
                _ => String::new(),
            };
            println!(
                "| {busy} | {name} | {:.2} | {cpu:.1} | {shared} |",
                rate(rounds) / base
            );
        }
    }
}
