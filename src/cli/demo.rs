//! `floodgate demo`: a stand-in IM backend, the gateway before it, a little real traffic, and a
//! live view of who is admitted and who is denied by which limit.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::{self, BufRead as _, BufReader, IsTerminal as _, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use clap::ArgMatches;
use clap::parser::ValueSource;
use ipnet::IpNet;
use parking_lot::Mutex;

use super::rules::Certificates;
use super::{CliError, Ended, Purpose, load, rules};
use crate::handover::Start;
use crate::serve;
use crate::settings::{Listen, Upstream};
use crate::standin::{StandIn, StandInOptions};

/// One caller of the demo: the same call, again and again.
struct Script {
    app: &'static str,
    /// For X-Forwarded-For: each caller has an address of its own.
    ip: &'static str,
    method: &'static str,
    path: &'static str,
    what: &'static str,
    body: &'static str,
    token: &'static str,
    /// Calls each second.
    rate: u64,
}

const FIVE: &str =
    r#"{"from":"admin","to":["u1","u2","u3","u4","u5"],"type":"txt","body":{"msg":"hello"}}"#;
const THREE_GROUPS: &str =
    r#"{"from":"admin","to":["101","102","103"],"type":"txt","body":{"msg":"hello"}}"#;
const PING: &str = r#"{"msg":{"type":"txt","msg":"hello"}}"#;

const SCRIPTS: &[Script] = &[
    Script {
        app: "acme#chat",
        ip: "198.51.100.1",
        method: "GET",
        path: "/acme/chat/users/alice",
        what: "GET users/alice",
        body: "",
        token: "YWMtdemo",
        rate: 60,
    },
    Script {
        app: "globex#im",
        ip: "198.51.100.2",
        method: "GET",
        path: "/globex/im/users/bob",
        what: "GET users/bob",
        body: "",
        token: "YWMtdemo",
        rate: 160,
    },
    Script {
        app: "acme#chat",
        ip: "198.51.100.3",
        method: "POST",
        path: "/acme/chat/messages/users",
        what: "POST messages/users, 5 recipients",
        body: FIVE,
        token: "YWMtdemo",
        rate: 30,
    },
    Script {
        app: "a1b2c3",
        ip: "198.51.100.4",
        method: "POST",
        path: "/app-id/a1b2c3/messages/chatgroups",
        what: "POST messages/chatgroups, 3 groups",
        body: THREE_GROUPS,
        token: "YWMtdemo",
        rate: 10,
    },
    Script {
        app: "a1b2c3",
        ip: "198.51.100.4",
        method: "POST",
        path: "/app-id/a1b2c3/messages/users/broadcast",
        what: "POST messages/users/broadcast",
        body: PING,
        token: "YWMtdemo",
        rate: 1,
    },
    Script {
        app: "globex#im",
        ip: "198.51.100.5",
        method: "DELETE",
        path: "/globex/im/users/eve/user_channel",
        what: "DELETE users/eve/user_channel",
        body: "",
        token: "YWMtdemo",
        rate: 2,
    },
    Script {
        app: "acme#chat",
        ip: "203.0.113.66",
        method: "GET",
        path: "/acme/chat/users/alice",
        what: "GET users/alice, bad token",
        body: "",
        token: "bad",
        rate: 40,
    },
];

/// What came of a caller's calls.
#[derive(Default)]
struct Tally {
    admitted: AtomicU64,
    denied: AtomicU64,
    rejected: AtomicU64,
    failed: AtomicU64,
    limits: Mutex<BTreeMap<String, u64>>,
}

pub(super) fn run(matches: &ArgMatches, env: &[(OsString, OsString)]) -> Result<Ended, CliError> {
    let mut settings = load(matches, env, Purpose::Look)?;
    let mut rules = rules::load(&settings.routes)?;
    rules::validate(&mut rules, &settings);
    let editions = rules::selection(&rules, &settings.edition)?;
    let certificates = Certificates::Read(env);
    let files = serve::Files::default();
    rules::add_apps(
        Some((&mut rules, editions)),
        &settings.apps,
        certificates,
        &files,
    )?;
    let backend = StandIn::start(StandInOptions {
        remember: 0,
        ..StandInOptions::default()
    })
    .map_err(serve::ServeError::Start)?;
    // One backend for all that the settings would send elsewhere.
    settings.pools.truncate(1);
    for pool in &mut settings.pools {
        pool.upstreams = vec![Upstream {
            tls: false,
            host: backend.addr.ip().to_string(),
            port: backend.addr.port(),
            addrs: vec![backend.addr],
            weight: 1,
            http2: false,
            sni: None,
        }];
    }
    // The demo's callers come from one machine and say who they are.
    settings
        .trusted_proxies
        .push(IpNet::from(IpAddr::V4(Ipv4Addr::LOCALHOST)));
    settings.access_log = false;
    let given = |key: &str| {
        matches
            .value_source(key)
            .is_some_and(|source| source != ValueSource::DefaultValue)
    };
    // A newcomer's port 8080 may be taken; one that was asked for must be had.
    if !given("listen") && settings.listen.iter().any(|listen| is_taken(&listen.addr)) {
        settings.listen = vec![Listen {
            addr: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            tls: false,
            proxy_protocol: false,
        }];
    }
    if !given("admin") && is_taken(&settings.admin) {
        settings.admin.set_port(0);
    }
    let seconds: Option<u64> = matches.get_one::<u64>("seconds").copied();
    let prepared = serve::prepare(settings, Arc::new(rules), rules::random(), Start::default())?;
    let Some(gateway) = prepared.listen.first().map(|listen| listen.addr) else {
        return Ok(Ended::Bad);
    };
    let intro = intro(gateway, prepared.admin_addr, backend.addr);

    let tallies: Arc<Vec<Tally>> = Arc::new(SCRIPTS.iter().map(|_| Tally::default()).collect());
    let stop = Arc::new(AtomicBool::new(false));
    let (tell, told) = tokio::sync::watch::channel(false);
    let mut threads = Vec::new();
    let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(work)
            .map_err(serve::ServeError::Start)
    };
    for nth in 0..SCRIPTS.len() {
        let (tallies, stop, live) = (tallies.clone(), stop.clone(), prepared.live());
        threads.push(spawn(
            "caller",
            Box::new(move || {
                call(nth, gateway, &tallies, &|| {
                    stop.load(Ordering::SeqCst) || live.look().is_draining()
                })
            }),
        )?);
    }
    let (shown, stopping) = (tallies.clone(), stop.clone());
    threads.push(spawn(
        "view",
        Box::new(move || {
            view(&intro, &shown, &stopping, seconds);
            let _ = tell.send(true);
        }),
    )?);

    let ended = prepared.run(Some(told));
    stop.store(true, Ordering::SeqCst);
    for thread in threads {
        // A thread that panicked has nothing more to show.
        let _ = thread.join();
    }
    ended?;
    super::print(&format!(
        "{}\nThe demo has ended: {} calls reached the backend.\n",
        table(&tallies),
        backend.count()
    ))?;
    Ok(Ended::Good)
}

fn is_taken(addr: &SocketAddr) -> bool {
    std::net::TcpListener::bind(addr).is_err()
}

fn intro(gateway: SocketAddr, admin: SocketAddr, backend: SocketAddr) -> String {
    format!(
        "floodgate demo: gateway http://{gateway}, before a stand-in IM backend (http://{backend}); \
         admin http://{admin}\n\n\
         Try, in another terminal:\n\
         \x20 curl -i http://{gateway}/acme/chat/users/alice -H 'Authorization: Bearer YWMtdemo'\n\
         \x20 curl -i http://{gateway}/acme/chat/messages/users -H 'Authorization: Bearer YWMtdemo' -d '{{\"to\":[\"u1\",\"u2\"],\"type\":\"txt\",\"body\":{{\"msg\":\"hi\"}}}}'\n\
         \x20 curl -i http://{gateway}/acme/chat/users/alice            # no token: 401, charged to your address\n\
         \x20 curl -s http://{admin}/metrics | grep floodgate_decisions_total\n\
         \x20 floodgate explain GET http://{gateway}/acme/chat/users/alice\n\n\
         Ctrl-C ends it.\n\n"
    )
}

/// Redraws the table every second until stopped or the time is over.
fn view(intro: &str, tallies: &[Tally], stop: &AtomicBool, seconds: Option<u64>) {
    let mut stdout = io::stdout();
    let live = stdout.is_terminal();
    let _ = write!(stdout, "{intro}");
    let mut tenths = 0_u64;
    let mut drawn = 0;
    while !stop.load(Ordering::SeqCst) && seconds.is_none_or(|s| tenths < s.saturating_mul(10)) {
        std::thread::sleep(Duration::from_millis(100));
        tenths += 1;
        if tenths.is_multiple_of(10) {
            let table = table(tallies);
            // Without a terminal there is nothing to redraw: the table is printed at the end.
            if live {
                let up = if drawn > 0 {
                    format!("\x1b[{drawn}A\x1b[J")
                } else {
                    String::new()
                };
                // Without wrapping: a narrow terminal cuts lines off, and what goes up is counted.
                let _ = write!(stdout, "{up}\x1b[?7l{table}\x1b[?7h");
                drawn = table.lines().count();
            } else {
                let _ = writeln!(stdout, "{}", line(tallies, tenths / 10));
            }
            let _ = stdout.flush();
        }
    }
}

fn line(tallies: &[Tally], second: u64) -> String {
    let sum = |count: fn(&Tally) -> &AtomicU64| {
        tallies
            .iter()
            .map(|t| count(t).load(Ordering::Relaxed))
            .sum::<u64>()
    };
    format!(
        "{second:>4} s: {} admitted, {} denied, {} rejected",
        sum(|t| &t.admitted),
        sum(|t| &t.denied),
        sum(|t| &t.rejected)
    )
}

fn table(tallies: &[Tally]) -> String {
    let mut text = format!(
        "{:<11} {:<36} {:>6} {:>9} {:>8} {:>9}  {}\n",
        "app", "call", "per s", "admitted", "denied", "rejected", "denied by"
    );
    for (script, tally) in SCRIPTS.iter().zip(tallies) {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let limits: Vec<String> = tally
            .limits
            .lock()
            .iter()
            .map(|(limit, n)| format!("{limit} ({n})"))
            .collect();
        let _ = writeln!(
            text,
            "{:<11} {:<36} {:>6} {:>9} {:>8} {:>9}  {}",
            script.app,
            script.what,
            script.rate,
            count(&tally.admitted),
            count(&tally.denied),
            count(&tally.rejected) + count(&tally.failed),
            limits.join(", ")
        );
    }
    text
}

/// Sends one caller's calls, at its rate, on one connection.
fn call(nth: usize, gateway: SocketAddr, tallies: &[Tally], is_over: &dyn Fn() -> bool) {
    let (Some(script), Some(tally)) = (SCRIPTS.get(nth), tallies.get(nth)) else {
        return;
    };
    let request = format!(
        "{} {} HTTP/1.1\r\nHost: {gateway}\r\nAuthorization: Bearer {}\r\nX-Forwarded-For: {}\r\nContent-Length: {}\r\n\r\n{}",
        script.method,
        script.path,
        script.token,
        script.ip,
        script.body.len(),
        script.body
    );
    let pause = Duration::from_micros(1_000_000 / script.rate.max(1));
    // The gateway starts beside its callers.
    while TcpStream::connect(gateway).is_err() && !is_over() {
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut connection: Option<BufReader<TcpStream>> = None;
    while !is_over() {
        let counter = match exchange(&mut connection, gateway, &request) {
            Ok((200..=299, _)) => &tally.admitted,
            Ok((_, Some(limit))) => {
                *tally.limits.lock().entry(limit).or_default() += 1;
                &tally.denied
            }
            Ok(_) => &tally.rejected,
            // The gateway is going away: this call is no failure of its.
            Err(_) if is_over() => return,
            Err(_) => {
                connection = None;
                &tally.failed
            }
        };
        counter.fetch_add(1, Ordering::Relaxed);
        // In small pieces, so that Ctrl-C is not kept waiting.
        let mut left = pause;
        while !left.is_zero() && !is_over() {
            let piece = left.min(Duration::from_millis(100));
            std::thread::sleep(piece);
            left -= piece;
        }
    }
}

/// One call: the status, and the limit that the answer names.
fn exchange(
    connection: &mut Option<BufReader<TcpStream>>,
    gateway: SocketAddr,
    request: &str,
) -> io::Result<(u16, Option<String>)> {
    let stream = match connection {
        Some(stream) => stream,
        None => {
            let stream = TcpStream::connect(gateway)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            connection.insert(BufReader::new(stream))
        }
    };
    stream.get_mut().write_all(request.as_bytes())?;
    let mut read_line = || -> io::Result<String> {
        let mut line = String::new();
        match stream.read_line(&mut line)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(line.trim_end().to_owned()),
        }
    };
    let status = read_line()?
        .split(' ')
        .nth(1)
        .and_then(|s| s.parse().ok())
        .ok_or(io::ErrorKind::InvalidData)?;
    let mut length = 0;
    let mut keep = true;
    loop {
        let line = read_line()?.to_ascii_lowercase();
        match line.split_once(':') {
            Some(("content-length", value)) => {
                length = value
                    .trim()
                    .parse()
                    .map_err(|_| io::ErrorKind::InvalidData)?;
            }
            Some(("connection", value)) => keep = value.trim() != "close",
            Some(_) => {}
            None => break,
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    if !keep {
        *connection = None;
    }
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    Ok((status, body["limit"].as_str().map(str::to_owned)))
}
