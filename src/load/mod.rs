//! The load generator behind `floodgate load`: an open loop of calls at a rate, their latencies
//! from when they were due, and the answers checked against the limits.
//!
//! ```text
//! pace ─► queue ─► connections ─► target
//!                      └────────► ledger (limits), tally (counts, latencies) ─► report
//! ```
//!
//! A call that is due waits in a bounded queue for a connection that is free; its latency counts
//! from when it was due, so that a slow answer is paid for by all calls behind it (what closed
//! loops leave out: coordinated omission).

mod html;
mod ledger;
pub mod mix;
pub mod pace;
mod report;
mod send;
mod tally;

use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;

use self::ledger::{Ledger, Outcome};
use self::mix::Mix;
use self::pace::Pace;
pub use self::report::Report;
use self::send::{Event, Queue, Slot};
use self::tally::Second;
use self::tally::{Tally, Took};
use crate::admission::Policy;
use crate::clock::Clock;
use crate::spec::Ruleset;

/// Streams of each HTTP/2 connection.
const STREAMS: usize = 32;
/// Calls that may wait for a connection, for each call that can be under way.
const WAITING: usize = 256;
/// What the connections tell, and is not yet counted.
const MAX_EVENTS: usize = 65_536;
/// The shortest sleep: calls that fall due within it go out together.
const SHORTEST: Duration = Duration::from_micros(100);
/// The longest: so long Ctrl-C may be kept waiting.
const LONGEST: Duration = Duration::from_millis(100);

/// Why there is no load.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The target is no URL.
    #[error("--target {0}: no URL; write http://127.0.0.1:8080 or https://host:port")]
    Target(String),
    /// It cannot be found.
    #[error("--target {host}: cannot be resolved: {source}")]
    Lookup {
        /// Its name.
        host: String,
        /// Why.
        source: io::Error,
    },
    /// It is not this machine, and nobody has said that it may be loaded.
    #[error(
        "--target {0}: not this machine. If you may put load on it, say so: --allow-target {0}"
    )]
    Foreign(String),
    /// The authorities cannot be read.
    #[error("--ca {path}: {why}")]
    Authority {
        /// The file.
        path: String,
        /// Why.
        why: String,
    },
    /// HTTPS without authorities.
    #[error("--target is https: name the certificates that it is trusted by with --ca FILE (PEM)")]
    NoAuthority,
    /// No threads, or the like.
    #[error("cannot start: {0}")]
    Start(#[from] io::Error),
    /// No histogram.
    #[error("cannot count: {0}")]
    Count(#[from] hdrhistogram::CreationError),
}

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// URL of the target, without a path.
    pub target: String,
    /// Hosts that are not this machine and may be loaded.
    pub allowed: Vec<String>,
    /// Certificates (PEM) that an HTTPS target is trusted by.
    pub authority: Option<String>,
    /// When calls are due.
    pub pace: Pace,
    /// Connections.
    pub connections: usize,
    /// Whether they speak HTTP/2.
    pub http2: bool,
    /// Threads.
    pub threads: usize,
    /// How long a call may take.
    pub timeout: Duration,
    /// The same seed makes the same calls.
    pub seed: u64,
}

/// One second of the run, once it is over.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Which, from the start.
    pub second: u64,
    /// Calls that were let through.
    pub admitted: u64,
    /// Calls that a limit denied.
    pub denied: u64,
    /// Calls without either.
    pub failed: u64,
    /// Of admitted calls, from when they were due, µs.
    pub p50_us: u64,
    /// The same.
    pub p99_us: u64,
}

impl From<Second> for Progress {
    fn from(second: Second) -> Self {
        Self {
            second: second.second,
            admitted: second.counts.admitted,
            denied: second.counts.denied,
            failed: second.counts.failed,
            p50_us: second.p50_us,
            p99_us: second.p99_us,
        }
    }
}

/// Puts load on a target, and says what came of it.
///
/// # Errors
/// When the target cannot be used, or nothing be started.
pub fn run(
    options: &Options,
    mix: Mix,
    rules: &Ruleset,
    policy: &Policy,
    progress: &mut dyn FnMut(Progress),
) -> Result<Report, LoadError> {
    let target = Arc::new(target(options)?);
    let mix = Arc::new(mix);
    // One thread sends and counts: to wake another for each answer costs as much as the call.
    let mut runtime = match options.threads {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = runtime
        .worker_threads(options.threads)
        .enable_all()
        .build()?;
    let clock = Clock::start();
    let begin = clock.now();
    let queue = Arc::new(Queue::default());
    let (tell, told) = mpsc::channel(MAX_EVENTS);
    let streams = if options.http2 { STREAMS } else { 1 };
    let slots: Vec<Slot> = (0..options.connections).map(|_| Slot::default()).collect();
    for slot in slots
        .iter()
        .flat_map(|slot| std::iter::repeat_n(slot, streams))
    {
        runtime.spawn(send::work(
            target.clone(),
            mix.clone(),
            queue.clone(),
            slot.clone(),
            clock,
            tell.clone(),
        ));
    }
    drop(tell);

    let is_over = AtomicBool::new(false);
    let most_waiting = options.connections * streams * WAITING;
    let mut ledger = Ledger::new(rules, begin);
    let mut tally = Tally::new(mix.kinds.len())?;
    let missed = std::thread::scope(|scope| {
        let pacing = scope.spawn(|| {
            let due = |number| options.pace.due(number);
            let missed = keep_pace(clock, &is_over, due, |number, due| {
                let asked = mix.call(options.seed, number);
                let claims = mix.kinds.get(asked.kind).map_or_else(
                    || [].into(),
                    |kind| ledger::claims(rules, policy, kind, &asked),
                );
                queue.push(send::Job { due, asked, claims }, most_waiting)
            });
            queue.close();
            missed
        });
        let collecting = collect(
            told,
            &mut ledger,
            &mut tally,
            clock,
            &is_over,
            &queue,
            options,
            progress,
        );
        let dropped = runtime.block_on(collecting);
        is_over.store(true, Ordering::Relaxed);
        // It does not panic.
        pacing.join().unwrap_or_default() + dropped
    });
    tally.missed = missed;
    let took = clock.since(begin).mono_us - begin.mono_us;
    runtime.shutdown_background();
    Ok(Report::new(options, &mix, &ledger, &tally, begin, took))
}

/// Hands on each call when it is due. How many were not taken.
fn keep_pace(
    clock: Clock,
    is_over: &AtomicBool,
    due: impl Fn(u64) -> Option<Duration>,
    mut hand_on: impl FnMut(u64, u64) -> bool,
) -> u64 {
    let begin = clock.now().mono_us;
    let mut missed = 0;
    for number in 0.. {
        let Some(due) = due(number) else { break };
        let due = begin + u64::try_from(due.as_micros()).unwrap_or(u64::MAX / 2);
        loop {
            let now = clock.now().mono_us;
            if now >= due || is_over.load(Ordering::Relaxed) {
                break;
            }
            std::thread::sleep(Duration::from_micros(due - now).clamp(SHORTEST, LONGEST));
        }
        if is_over.load(Ordering::Relaxed) {
            break;
        }
        if !hand_on(number, due) {
            missed += 1;
        }
    }
    missed
}

/// Counts what the connections tell, until all is over, or Ctrl-C. How many calls were dropped.
#[expect(
    clippy::too_many_arguments,
    reason = "one caller, and each is a part of its own"
)]
async fn collect(
    mut told: mpsc::Receiver<Event>,
    ledger: &mut Ledger<'_>,
    tally: &mut Tally,
    clock: Clock,
    is_over: &AtomicBool,
    queue: &Queue,
    options: &Options,
    progress: &mut dyn FnMut(Progress),
) -> u64 {
    let begin = clock.now();
    let mut dropped = 0;
    let mut ticks = tokio::time::interval(Duration::from_millis(200));
    let interrupted = tokio::signal::ctrl_c();
    tokio::pin!(interrupted);
    // What is under way then has the time of one call.
    let end = tokio::time::sleep(options.pace.lasts);
    tokio::pin!(end);
    let mut is_ending = false;
    let mut newest = begin;
    let mut shown = None;
    loop {
        tokio::select! {
            event = told.recv() => match event {
                None => break,
                Some(Event::Sent(claims)) => ledger.sent(&claims),
                Some(Event::Ended(mut ended)) => {
                    // Two threads may tell in another order than things were.
                    if ended.ended.mono_us > newest.mono_us {
                        newest = ended.ended;
                    }
                    ended.ended = newest;
                    count(&ended, begin.mono_us, ledger, tally);
                }
            },
            _ = ticks.tick() => {
                let now = clock.since(begin).mono_us - begin.mono_us;
                tally.until(now / 1_000_000);
                // An answer may have ended its second before the tick did.
                if let Some(second) = tally.last().filter(|s| Some(s.second) != shown) {
                    shown = Some(second.second);
                    progress((*second).into());
                }
            }
            _ = &mut interrupted, if !is_over.load(Ordering::Relaxed) => {
                is_over.store(true, Ordering::Relaxed);
                dropped += queue.clear() as u64;
                queue.close();
            }
            () = &mut end => {
                if is_ending {
                    // What still waits has waited for longer than a call may take.
                    dropped += queue.clear() as u64;
                    queue.close();
                }
                is_ending = true;
                end.set(tokio::time::sleep(options.timeout));
            }
        }
    }
    dropped
}

fn count(ended: &send::Ended, begin: u64, ledger: &mut Ledger<'_>, tally: &mut Tally) {
    let outcome = match &ended.answer {
        Ok(answer) => match &answer.limit {
            Some(limit) if matches!(answer.status, 400..=499) => Outcome::Denied(limit),
            // A 401 gives the units back, and errors of a gateway may.
            _ if matches!(answer.status, 200..=399 | 404) => Outcome::Admitted,
            _ => Outcome::Unknown,
        },
        Err(_) => Outcome::Unknown,
    };
    ledger.ended(&ended.claims, ended.sent, ended.ended, outcome);
    match &ended.answer {
        Ok(answer) => *tally.statuses.entry(answer.status).or_default() += 1,
        Err(failed) => *tally.errors.entry(failed.as_str()).or_default() += 1,
    }
    let took = Took {
        from_due: ended.ended.mono_us.saturating_sub(ended.due),
        from_sent: ended.ended.mono_us.saturating_sub(ended.sent.mono_us),
    };
    let second = ended.ended.mono_us.saturating_sub(begin) / 1_000_000;
    tally.ended(ended.kind, second, outcome, took);
}

/// Finds the target, and makes sure that it may be loaded.
fn target(options: &Options) -> Result<send::Target, LoadError> {
    let wrong = || LoadError::Target(options.target.clone());
    let url: http::Uri = options.target.parse().map_err(|_| wrong())?;
    let is_tls = match url.scheme_str() {
        Some("http") => false,
        Some("https") => true,
        _ => return Err(wrong()),
    };
    let authority = url.authority().ok_or_else(wrong)?;
    if !matches!(url.path(), "" | "/") || url.query().is_some() || authority.as_str().contains('@')
    {
        return Err(wrong());
    }
    let host = authority.host().trim_matches(['[', ']']).to_owned();
    let port = authority
        .port_u16()
        .unwrap_or(if is_tls { 443 } else { 80 });
    let found = (host.as_str(), port).to_socket_addrs();
    let lookup = |source| LoadError::Lookup {
        host: host.clone(),
        source,
    };
    let addrs: Vec<SocketAddr> = found.map_err(lookup)?.collect();
    let is_here = addrs
        .iter()
        .all(|addr| addr.ip().to_canonical().is_loopback());
    let is_allowed = options
        .allowed
        .iter()
        .any(|name| name.eq_ignore_ascii_case(&host));
    if !is_here && !is_allowed {
        return Err(LoadError::Foreign(host));
    }
    let addr = addrs.first().copied().ok_or_else(wrong)?;
    let tls = match is_tls {
        true => {
            let name = ServerName::try_from(host).map_err(|_| wrong())?;
            Some((connector(options)?, name))
        }
        false => None,
    };
    Ok(send::Target {
        addr,
        authority: authority.to_string(),
        tls,
        http2: options.http2,
        timeout: options.timeout,
    })
}

fn connector(options: &Options) -> Result<TlsConnector, LoadError> {
    let path = options.authority.as_deref().ok_or(LoadError::NoAuthority)?;
    let wrong = |why: String| LoadError::Authority {
        path: path.to_owned(),
        why,
    };
    let pem = std::fs::read(path).map_err(|error| wrong(format!("cannot be read: {error}")))?;
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| wrong(format!("no PEM: {error}")))?;
        let added = roots.add(certificate);
        added.map_err(|error| wrong(format!("no certificate: {error}")))?;
    }
    if roots.is_empty() {
        return Err(wrong("no certificate in it; write PEM".to_owned()));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let protocol: &[u8] = if options.http2 { b"h2" } else { b"http/1.1" };
    config.alpn_protocols = vec![protocol.to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

#[cfg(test)]
mod tests;
