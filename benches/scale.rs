//! What many gateways ask of their Redis: the real store and a real redis-server, by a simulated
//! clock, so that 1,000 gateways fit on one machine. Prints the tables of `deploy/scale.md`. Needs
//! redis-server.
//!
//! ```text
//! cargo bench --bench scale
//! ```
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a bench"
)]

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use floodgate::clock::Clock;
use floodgate::limit::{
    Charge, CounterKey, Decision, LimitId, Moment, OnStoreFailure, Plan, Scope, Span,
};
use floodgate::store::Store as _;
use floodgate::store::redis::connect::{Connector, RedisOptions};
use floodgate::store::redis::{RedisStore, TimeSource};

const START_US: u64 = 1_000_000_000_000;
/// What a core of Redis is used to before another node is wanted.
const BUSY: f64 = 0.6;

struct Server(Child, u16);

impl Server {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let child = Command::new("redis-server")
            .args([
                "--port",
                &port.to_string(),
                "--save",
                "",
                "--maxclients",
                "5000",
            ])
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

/// One app's calls: so many a second over all gateways, of so many that are allowed in a window.
#[derive(Clone, Copy)]
struct Load {
    gateways: usize,
    per_second: f64,
    quota: u32,
    window_s: u64,
    leases: bool,
}

#[derive(Clone, Copy, Default)]
struct Seen {
    calls: u64,
    admitted: u64,
    commands: u64,
    seconds: f64,
}

impl Seen {
    fn commands_per_call(self) -> f64 {
        self.commands as f64 / self.calls.max(1) as f64
    }
}

struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Until the next call of so many a second, µs: they know nothing of each other.
    fn pause_us(&mut self, per_second: f64) -> f64 {
        let unit = (self.next() >> 11) as f64 / (1_u64 << 53) as f64;
        -(1.0 - unit).ln() * 1e6 / per_second
    }
}

struct World {
    server: Server,
    runs: u64,
}

impl World {
    fn stores(&mut self, load: Load, time: TimeSource) -> Vec<RedisStore> {
        self.runs += 1;
        // One that no earlier gateway is connected to.
        self.server = Server::start();
        let store = |nth: usize| {
            let options = RedisOptions {
                prefix: format!("s{}", self.runs),
                timeout: Duration::from_secs(60),
                leases: load.leases,
                ..RedisOptions::parse(&format!("redis://127.0.0.1:{}", self.server.1)).unwrap()
            };
            let connector = Connector::new(options).unwrap();
            RedisStore::new(connector, format!("g{nth}"), 100_000, time)
        };
        (0..load.gateways).map(store).collect()
    }

    /// By a simulated clock. A window goes by before anything is counted.
    async fn simulate(&mut self, load: Load) -> Seen {
        let stores = self.stores(load, TimeSource::Caller);
        let mut dice = Dice(0x9E37_79B9_7F4A_7C15 ^ self.runs);
        let warm_us = 1_000_000.0;
        let until_us = warm_us + if load.window_s == 1 { 2e6 } else { 8e6 };
        let (mut at_us, mut seen, mut before) = (0.0, Seen::default(), None);
        while at_us < until_us {
            at_us += dice.pause_us(load.per_second);
            if at_us >= warm_us && before.is_none() {
                before = Some(commands(&stores));
            }
            let nth = dice.next() as usize % stores.len();
            let now = moment(START_US + at_us as u64);
            let decision = stores[nth].decide(&mut plan(load), now).await.unwrap();
            if before.is_some() {
                seen.calls += 1;
                seen.admitted += u64::from(matches!(decision, Decision::Admit { .. }));
            }
        }
        seen.commands = commands(&stores) - before.unwrap_or_default();
        seen.seconds = (until_us - warm_us) / 1e6;
        seen
    }

    /// In real time, for comparison: calls that come together share their commands.
    async fn measure(&mut self, load: Load) -> Seen {
        let clock = Clock::start();
        let stores = self.stores(load, TimeSource::Server(clock));
        let stores: Vec<_> = stores.into_iter().map(std::sync::Arc::new).collect();
        let begun = Instant::now();
        let (warm, all) = (Duration::from_secs(1), Duration::from_secs(4));
        let mut callers = Vec::new();
        for (nth, store) in stores.iter().cloned().enumerate() {
            let rate = load.per_second / load.gateways as f64;
            callers.push(tokio::spawn(async move {
                let (mut dice, mut due) = (Dice(77 + nth as u64), Duration::ZERO);
                let (mut calls, mut admitted) = (0, 0);
                while due < all {
                    due += Duration::from_secs_f64(dice.pause_us(rate) / 1e6);
                    tokio::time::sleep_until((begun + due).into()).await;
                    let decision = store.decide(&mut plan(load), clock.now()).await.unwrap();
                    if due >= warm {
                        calls += 1;
                        admitted += u64::from(matches!(decision, Decision::Admit { .. }));
                    }
                }
                (calls, admitted)
            }));
        }
        let count = || {
            stores
                .iter()
                .map(|store| store.round_trips().0)
                .sum::<u64>()
        };
        tokio::time::sleep(warm).await;
        let before = count();
        let mut seen = Seen::default();
        for caller in callers {
            let (calls, admitted) = caller.await.unwrap();
            seen.calls += calls;
            seen.admitted += admitted;
        }
        seen.commands = count() - before;
        seen.seconds = (all - warm).as_secs_f64();
        seen
    }
}

fn commands(stores: &[RedisStore]) -> u64 {
    stores.iter().map(|store| store.round_trips().0).sum()
}

fn moment(us: u64) -> Moment {
    Moment {
        mono_us: us,
        unix_us: us,
    }
}

fn plan(load: Load) -> Plan {
    let app = CounterKey(9 << 64);
    let mut plan = Plan {
        app: Some(app),
        ..Plan::default()
    };
    plan.charges.push(Charge {
        limit: LimitId(1),
        key: CounterKey(app.0 + 1),
        overflow: CounterKey(0),
        quota: load.quota,
        cost: 1,
        span: Span::Sliding {
            window_us: load.window_s * 1_000_000,
        },
        scope: Scope::App,
        report: false,
        known: true,
        taken: None,
        shared: false,
        on_store_failure: OnStoreFailure::Local,
    });
    plan
}

fn quota_for(per_second: f64, window_s: u64, use_of_it: f64) -> u32 {
    let quota = per_second * window_s as f64 / use_of_it;
    (quota.ceil() as u32).max(100)
}

/// Commands for a call, by the calls a second of one app at one gateway: read off a curve.
struct Curve(Vec<(f64, f64)>);

impl Curve {
    fn at(&self, rate: f64) -> f64 {
        let above = self.0.iter().position(|(x, _)| *x >= rate);
        match above {
            Some(0) => self.0[0].1,
            None => {
                // The lease's life is what is shared: beyond the curve, as many commands as there.
                let (x, y) = self.0[self.0.len() - 1];
                y * x / rate
            }
            Some(nth) => {
                let ((x0, y0), (x1, y1)) = (self.0[nth - 1], self.0[nth]);
                let part = (rate.ln() - x0.ln()) / (x1.ln() - x0.ln());
                y0 + (y1 - y0) * part
            }
        }
    }
}

/// Commands a second of all apps, their calls by rank as Zipf has them; and those of the busiest.
fn of_all_apps(apps: u64, calls: f64, gateways: f64, curve: &Curve) -> (f64, f64) {
    let sum: f64 = (1..=apps).map(|rank| 1.0 / rank as f64).sum();
    let of = |rank: u64| {
        let rate = calls / rank as f64 / sum;
        rate * curve.at(rate / gateways)
    };
    ((1..=apps).map(of).sum(), of(1))
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mut world = World {
        server: Server::start(),
        runs: 0,
    };
    let mut curves = Vec::new();
    for window_s in [1, 60] {
        println!("\n## Commands for each call of one app, limit per {window_s} s, used to half\n");
        let rates = [0.1, 1.0, 10.0, 30.0, 100.0, 300.0, 1000.0];
        let heads: Vec<String> = rates.iter().map(|rate| format!("{rate}/s")).collect();
        println!("| gateways | {} |", heads.join(" | "));
        println!("| --- |{}", " --- |".repeat(rates.len()));
        for gateways in [1, 2, 4, 10, 100, 1000] {
            let mut cells = Vec::new();
            let mut curve = Vec::new();
            for rate in rates {
                let per_second = rate * gateways as f64;
                if per_second > 100_000.0 {
                    cells.push("–".to_owned());
                    continue;
                }
                let load = Load {
                    gateways,
                    per_second,
                    quota: quota_for(per_second, window_s, 0.5),
                    window_s,
                    leases: true,
                };
                let seen = world.simulate(load).await;
                let all = seen.admitted == seen.calls;
                cells.push(format!(
                    "{:.3}{}",
                    seen.commands_per_call(),
                    if all { "" } else { " (!)" }
                ));
                curve.push((rate, seen.commands_per_call()));
            }
            println!("| {gateways} | {} |", cells.join(" | "));
            curves.push((window_s, gateways, Curve(curve)));
        }
    }

    println!("\n## One app far above its limit (2,000/s, five times as many calls)\n");
    println!("| gateways | commands/s | for each call | given of the limit |");
    println!("| --- | --- | --- | --- |");
    for gateways in [1, 2, 4, 10, 100, 1000] {
        let load = Load {
            gateways,
            per_second: 10_000.0,
            quota: 2_000,
            window_s: 1,
            leases: true,
        };
        let seen = world.simulate(load).await;
        let given = seen.admitted as f64 / seen.seconds / 2_000.0;
        let rate = seen.commands as f64 / seen.seconds;
        let per_call = seen.commands_per_call();
        println!("| {gateways} | {rate:.0} | {per_call:.3} | {given:.3} |");
    }

    println!("\n## The simulation against real time\n");
    println!("| gateways | calls/s of one app | mode | commands/s, simulated | measured |");
    println!("| --- | --- | --- | --- | --- |");
    for gateways in [1, 2, 4] {
        for (rate, leases) in [(50.0, true), (500.0, true), (200.0, false)] {
            let per_second = rate * gateways as f64;
            let load = Load {
                gateways,
                per_second,
                quota: quota_for(per_second, 1, 0.5),
                window_s: 1,
                leases,
            };
            let simulated = world.simulate(load).await;
            let measured = world.measure(load).await;
            let mode = if leases { "leases" } else { "exact" };
            let [simulated, measured] =
                [simulated, measured].map(|s| s.commands as f64 / s.seconds);
            println!("| {gateways} | {per_second} | {mode} | {simulated:.0} | {measured:.0} |");
        }
    }

    println!(
        "\n## A million apps, 10,000 calls/s a gateway, a limit per second and per address each\n"
    );
    println!(
        "| gateways | calls/s | any gateway for any app: commands/s | nodes | one gateway for each app: commands/s | nodes | busiest app's commands/s |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    // µs of Redis for a command with one or two limits: `cargo bench --bench store_redis`.
    let micros = 5.0;
    let nodes = |commands: f64| (commands * micros / 1e6 / BUSY).ceil().max(1.0);
    for gateways in [1, 10, 100, 1000] {
        let curve = |of: usize| {
            let found = curves.iter().find(|(w, g, _)| *w == 1 && *g == of);
            &found.unwrap().2
        };
        let calls = 10_000.0 * gateways as f64;
        let (spread, busiest) = of_all_apps(1_000_000, calls, gateways as f64, curve(gateways));
        let (pinned, _) = of_all_apps(1_000_000, calls, 1.0, curve(1));
        println!(
            "| {gateways} | {calls:.0} | {spread:.0} | {} | {pinned:.0} | {} | {busiest:.0} |",
            nodes(spread),
            nodes(pinned)
        );
    }
}
