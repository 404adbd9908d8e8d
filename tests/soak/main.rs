//! Two gateways on one Redis before an upstream that breaks, Redis that hangs, dies and is cut off,
//! and callers that misbehave: all at once, at random, for a minute, or for
//! `FLOODGATE_SOAK_SECONDS`. `FLOODGATE_SOAK_SEED` repeats the dice of a run, whose seed is printed.
#![cfg(feature = "gateway")]
#![allow(
    missing_docs,
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "tests; what they share is written for others; real time, and a seed from outside"
)]

#[path = "../gateway/faults/caller.rs"]
mod caller;
mod dice;
#[path = "../gateway/harness.rs"]
mod harness;
mod judge;
#[path = "../redis/proxy.rs"]
mod proxy;
mod rude;
#[path = "../gateway/faults/script.rs"]
mod script;
#[path = "../redis/server.rs"]
mod server;
#[path = "../gateway/faults/setup.rs"]
mod setup;
mod streams;
mod trouble;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;

use self::caller::{Ask, Sends, Wire};
use self::dice::Dice;
use self::harness::{Gateway, Start};
use self::judge::Life;
use self::proxy::Proxy;
use self::script::{Fault, Scripted};
use self::server::{Server, wait_until};
use self::streams::Streams;

/// Windows that end within the run, and a day.
const ROUTES: &str = r#"
[[route]]
name = "s-second"
calls = ["GET /s/second"]
v3 = { limits = ["60/s"], ip_copy = false }

[[route]]
name = "s-long"
calls = ["GET /s/long"]
v3 = { limits = ["120/10s"], ip_copy = false }

[[route]]
name = "s-messages"
calls = ["POST /s/messages"]
cost = "to"
max_recipients = 6
v3 = { limits = ["150 messages/5s"], ip_copy = false }

[[route]]
name = "s-day"
calls = ["GET /s/day"]
v3 = { limits = ["900/day"], ip_copy = false }

[[route]]
name = "s-up"
calls = ["POST /s/up"]
v3 = { limits = ["100000/10s"], ip_copy = false }

[[route]]
name = "s-stream"
calls = ["GET /s/stream", "POST /s/stream"]
v3 = { limits = ["100000/10s"], ip_copy = false }

[[route]]
name = "s-slot"
calls = ["POST /s/slot"]
v3 = { limits = ["4 tasks"], ip_copy = false }

[[route]]
name = "s-task"
calls = ["POST /s/task"]
v3 = { limits = [{ rate = "6 tasks", hold = "task", max_hold = "15s" }], ip_copy = false }
"#;

/// Callers that behave, for each gateway; half as many do not.
const CALLERS: usize = 12;
/// The longest that a call may take by the time-outs below, on a machine that stands still now and
/// then.
const BOUND: Duration = Duration::from_secs(40);

/// A number from outside.
fn given(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name}: {text:?} is no number")),
    )
}

/// What became of a call of a caller that behaves.
#[derive(Clone, Debug)]
struct Done {
    id: String,
    status: u16,
    is_whole: bool,
    took: Duration,
    /// The path, and the beginning of an answer that was none of the upstream's.
    what: String,
}

/// What all callers share.
struct Run {
    upstream: Scripted,
    streams: Streams,
    is_over: AtomicBool,
    next: AtomicU64,
    done: Mutex<Vec<Done>>,
}

impl Run {
    fn is_over(&self) -> bool {
        self.is_over.load(Relaxed)
    }

    /// Breaks all connections to both upstreams.
    fn close_all(&self) {
        self.upstream.close_all();
        self.streams.close_all();
    }
}

fn gateway(run: &Run, store: &Proxy, dead: &str, tls: &[String; 2], config: &str) -> Gateway {
    Start {
        routes: ROUTES,
        upstream: Some(run.upstream.addr),
        keep_errors: true,
        args: &[
            "--config",
            config,
            "--upstream",
            dead,
            "--listen",
            "127.0.0.1:0 tls",
            "--tls-cert",
            &tls[0],
            "--tls-key",
            &tls[1],
            "--https-only",
            "false",
            "--h2c",
            "--threads",
            "2",
            "--store",
            &store.url(),
            "--store-timeout",
            "200ms",
            "--min-gateways",
            "2",
            "--trusted-proxy",
            "127.0.0.1",
            "--unproven-share",
            "100",
            "--retry-on",
            "reset",
            "--connect-timeout",
            "1s",
            "--read-timeout",
            "1s",
            "--write-timeout",
            "2s",
            "--request-timeout",
            "5s",
            "--body-timeout",
            "3s",
            "--header-timeout",
            "3s",
            "--send-timeout",
            "3s",
            "--keepalive",
            "5s",
        ],
        ..Start::default()
    }
    .start()
}

/// A caller that behaves.
async fn call_on(run: Arc<Run>, wires: Vec<Wire>, mut dice: Dice) {
    const ROUTES: [(&str, &str); 10] = [
        ("GET", "second"),
        ("GET", "long"),
        ("GET", "day"),
        ("HEAD", "second"),
        ("POST", "messages"),
        ("POST", "up"),
        ("GET", "stream"),
        ("POST", "stream"),
        ("POST", "slot"),
        ("POST", "task"),
    ];
    while !run.is_over() {
        let wire = &wires[dice.below(wires.len())];
        let (method, route) = ROUTES[dice.below(ROUTES.len())];
        let method = if method == "HEAD" { "GET" } else { method };
        let fault = match dice.one_in(3) {
            true if route == "stream" => {
                streams::FAULTS[dice.below(streams::FAULTS.len())].to_owned()
            }
            true => Fault::ALL[dice.below(Fault::ALL.len())].name(),
            false => Fault::None.name(),
        };
        let id = format!("s-{}", run.next.fetch_add(1, Relaxed));
        let ask = Ask {
            method,
            path: format!("/o/a/s/{route}"),
            fields: vec![
                ("x-fault", fault),
                ("x-forwarded-for", format!("10.1.0.{}", dice.below(256))),
                ("x-request-id", id.clone()),
                ("x-wait-ms", dice.below(30).to_string()),
                (
                    "x-units",
                    if route == "messages" { "3" } else { "1" }.to_owned(),
                ),
                ("x-sent", run.upstream.clock.now().mono_us.to_string()),
            ],
            body: body(method, route, &mut dice),
        };
        let begun = Instant::now();
        let got = wire.call(&ask).await;
        run.done.lock().push(Done {
            id,
            status: got.status,
            is_whole: got.is_whole,
            took: begun.elapsed(),
            what: match got.status {
                200 => String::new(),
                _ => {
                    let beginning = &got.body[..got.body.len().min(200)];
                    format!("{} {}", ask.path, String::from_utf8_lossy(beginning))
                }
            },
        });
        let rest = Duration::from_millis(10 + dice.below(80) as u64);
        tokio::time::sleep(rest).await;
    }
}

fn body(method: &str, route: &str, dice: &mut Dice) -> Sends {
    let whole = match route {
        "messages" => Bytes::from_static(br#"{"to":["a","b","c"]}"#),
        "up" | "stream" if method == "POST" => vec![b'u'; 1 + dice.below(150_000)].into(),
        "slot" | "task" => Bytes::from_static(b"{}"),
        _ => return Sends::Nothing,
    };
    if dice.one_in(2) {
        return Sends::Whole(whole);
    }
    Sends::Chunks(whole.chunks(20_000).map(Bytes::copy_from_slice).collect())
}

fn is_up(gateway: &Gateway) -> bool {
    gateway.metric("floodgate_store_up", &[]) == 1.0
}

#[test]
fn nothing_is_lost_leaked_or_exceeded_while_everything_breaks() {
    let seconds = given("FLOODGATE_SOAK_SECONDS").unwrap_or(60);
    let now = floodgate::clock::Clock::start().now().unix_us;
    let seed = given("FLOODGATE_SOAK_SEED").unwrap_or(now);
    println!("FLOODGATE_SOAK_SEED={seed} FLOODGATE_SOAK_SECONDS={seconds}");
    let mut dice = Dice::new(seed);
    let dir = tempfile::tempdir().expect("a folder");
    let (files, tls) = setup::certificate(dir.path());
    let mut redis = Server::with(&["appendonly yes", "appendfsync always"]);
    let stores = [Proxy::to(redis.port()), Proxy::to(redis.port())];
    let runtime = setup::runtime();
    let run = Arc::new(Run {
        upstream: Scripted::start(),
        streams: Streams::start(&runtime),
        is_over: AtomicBool::new(false),
        next: AtomicU64::new(0),
        done: Mutex::default(),
    });
    // An address where nobody is: each call may meet it first.
    let dead = tokio::net::TcpSocket::new_v4().expect("a socket");
    dead.bind(std::net::SocketAddr::from(([127, 0, 0, 1], 0)))
        .expect("a port");
    let url = format!("http://{}", dead.local_addr().expect("an address"));
    let config = dir.path().join("floodgate.toml");
    let pool = format!(
        "[[pool]]\nname = \"streams\"\nroutes = [\"s-stream\"]\nupstreams = [\"http://{} http2\"]\n",
        run.streams.addr
    );
    std::fs::write(&config, pool).expect("a file");
    let config = config.to_str().expect("UTF-8");
    let gateways = [0, 1].map(|n| gateway(&run, &stores[n], &url, &files, config));
    wait_until("the gateways know of each other", || {
        gateways
            .iter()
            .all(|g| g.metric("floodgate_store_gateways", &[]) == 2.0)
    });
    let wires = gateways.each_ref().map(|g| setup::wires(g, &tls));
    let wires = wires.map(|all| all.into_iter().map(|(_, wire)| wire).collect::<Vec<_>>());

    // What every later call finds there: connections to Redis, the pools, the log's queue.
    let warm = spawn(&runtime, &run, &wires, &mut dice);
    std::thread::sleep(Duration::from_secs(5));
    end(&runtime, &run, warm);
    judge::quiet(&gateways, &run);
    let mut lives = gateways.each_ref().map(Life::begin);
    run.is_over.store(false, Relaxed);

    let callers = spawn(&runtime, &run, &wires, &mut dice);
    let mut troubles = trouble::Troubles::new(run.upstream.clock);
    let until = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < until {
        troubles.make(&mut dice, &mut redis, &stores, &run);
        for life in &mut lives {
            life.look();
        }
    }
    end(&runtime, &run, callers);
    wait_until("the store is back", || gateways.iter().all(is_up));

    let seen = run.upstream.take_seen();
    let done = std::mem::take(&mut *run.done.lock());
    judge::answered(&done, BOUND);
    judge::limits(&seen, &troubles);
    judge::quiet(&gateways, &run);
    judge::nothing_taken(&runtime, &gateways, &wires);
    for life in &mut lives {
        life.end(&run);
    }
    judge::logs(&gateways, &done);
    println!(
        "troubles: {:?}; the machine stood still {} times",
        troubles.counts,
        troubles.stills()
    );
    println!("still FLOODGATE_SOAK_SEED={seed}");
}

type Callers = Vec<tokio::task::JoinHandle<()>>;

fn spawn(
    runtime: &tokio::runtime::Runtime,
    run: &Arc<Run>,
    wires: &[Vec<Wire>; 2],
    dice: &mut Dice,
) -> Callers {
    let mut callers = Vec::new();
    for wires in wires {
        for n in 0..CALLERS {
            callers.push(runtime.spawn(call_on(run.clone(), wires.clone(), dice.other())));
            if n % 2 == 0 {
                callers.push(runtime.spawn(rude::call_on(
                    run.clone(),
                    wires[0].addr,
                    dice.other(),
                )));
            }
        }
    }
    callers
}

/// Each comes to its end by itself: nothing hangs.
fn end(runtime: &tokio::runtime::Runtime, run: &Run, callers: Callers) {
    run.is_over.store(true, Relaxed);
    runtime.block_on(async {
        for caller in callers {
            let ended = tokio::time::timeout(Duration::from_secs(60), caller).await;
            ended.expect("a caller hangs").expect("a caller");
        }
    });
}
