//! One upstream address: whether it may be chosen, and what speaks against it.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use pingora::prelude::HttpPeer;
use pingora::protocols::tls::CaType;
use pingora::upstreams::peer::HttpUpstreamRequestPolicy;

use crate::observe::upstreams::{EndpointMetrics, Failure};
use crate::settings::Upstream;

/// The longest time that an address is ejected for.
const MAX_EJECTION: Duration = Duration::from_secs(300);
/// Calls that share one HTTP/2 connection.
const STREAMS: usize = 100;

/// What makes an address, beside where it is.
#[derive(Clone, Debug)]
pub(super) struct Kind {
    pub(super) pool: Arc<str>,
    pub(super) upstream: Upstream,
    pub(super) ca: Option<Arc<CaType>>,
    /// Tells apart connections that must not be shared.
    pub(super) group: u64,
}

impl Kind {
    /// The same for kinds between which nothing tells.
    pub(super) fn number(&self) -> u64 {
        let Upstream {
            tls,
            host,
            port,
            weight,
            http2,
            sni,
            ..
        } = &self.upstream;
        let group = self.group;
        let all = format!("{tls} {host} {port} {weight} {http2} {sni:?} {group}");
        super::choice::hash(all.as_bytes())
    }
}

/// When failures in a row eject an address.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ejecting {
    pub(super) after: Option<NonZeroU32>,
    pub(super) time: Duration,
}

/// One address of a pool.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub(super) addr: SocketAddr,
    pub(super) weight: u32,
    /// [`Kind::number`].
    pub(super) kind: u64,
    /// What consistent hashing knows it by.
    pub(super) hash: u64,
    pub(super) metrics: EndpointMetrics,
    /// Cloned for each attempt.
    peer: HttpPeer,
    /// The host and port of its URL, for health checks.
    pub(super) authority: String,
    pool: Arc<str>,
    in_flight: AtomicU64,
    /// Whether it is chosen before others are.
    available: AtomicBool,
    /// Failures in a row.
    failures: AtomicU32,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// What the health checks say.
    up: bool,
    /// Checks in a row that say otherwise.
    streak: u32,
    /// Whether it is not chosen, because of failures.
    out: bool,
    /// When its failures are forgotten, µs.
    until: Option<u64>,
    /// Ejections in a row.
    ejections: u32,
    /// When they are forgotten, µs.
    calm_at: u64,
}

impl Endpoint {
    pub(super) fn new(addr: SocketAddr, kind: &Kind, metrics: EndpointMetrics) -> Self {
        let Upstream {
            tls,
            host,
            port,
            weight,
            http2,
            sni,
            ..
        } = &kind.upstream;
        let name = match tls {
            true => sni.as_ref().unwrap_or(host).clone(),
            false => String::new(),
        };
        let mut peer = HttpPeer::new(addr, *tls, name);
        peer.group_key = kind.group;
        peer.options.ca.clone_from(&kind.ca);
        if *http2 {
            // Over TLS, one that cannot may say so; in the clear there is nothing to ask.
            peer.options.set_http_version(2, if *tls { 1 } else { 2 });
            peer.options.max_h2_streams = STREAMS;
        }
        // Ours to do: pingora would take whatever `Connection` names, the token too.
        peer.options.http_upstream_request_policy = HttpUpstreamRequestPolicy::preserve();
        let authority = match host.contains(':') {
            true => format!("[{host}]:{port}"),
            false => format!("{host}:{port}"),
        };
        Self {
            addr,
            weight: *weight,
            kind: kind.number(),
            hash: super::choice::hash(addr.to_string().as_bytes()),
            metrics,
            peer,
            authority,
            pool: kind.pool.clone(),
            in_flight: AtomicU64::new(0),
            available: AtomicBool::new(true),
            failures: AtomicU32::new(0),
            state: Mutex::new(State {
                up: true,
                streak: 0,
                out: false,
                until: None,
                ejections: 0,
                calm_at: 0,
            }),
        }
    }

    /// How it is connected to.
    pub(super) fn peer(&self) -> HttpPeer {
        self.peer.clone()
    }

    pub(super) fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed)
    }

    pub(super) fn enter(&self) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        self.metrics.attempts.inc();
    }

    pub(super) fn leave(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    /// Whether it is chosen before others are.
    pub(super) fn is_available(&self) -> bool {
        self.available.load(Ordering::Relaxed)
    }

    /// Whether nothing speaks against it. The last one of a pool is chosen all the same.
    pub(super) fn is_well(&self) -> bool {
        let state = self.state.lock();
        state.up && state.until.is_none()
    }

    /// It has answered a call.
    pub(super) fn answered(&self) {
        if self.failures.load(Ordering::Relaxed) == 0 {
            return;
        }
        self.failures.store(0, Ordering::Relaxed);
        let mut state = self.state.lock();
        // An answer to a call from before its ejection says nothing new.
        if !state.out && state.until.take().is_some() {
            tracing::info!(pool = &*self.pool, upstream = %self.addr, "upstream answers again");
        }
    }

    /// It has failed a call. `others` says whether there is another to choose.
    pub(super) fn failed(
        &self,
        why: Failure,
        now_us: u64,
        ejecting: Ejecting,
        others: impl FnOnce() -> bool,
    ) {
        self.metrics.failed(why);
        let failures = self
            .failures
            .fetch_add(1, Ordering::Relaxed)
            .saturating_add(1);
        if ejecting.after.is_none_or(|after| failures < after.get()) {
            return;
        }
        let mut state = self.state.lock();
        if state.until.is_some() {
            return;
        }
        if now_us >= state.calm_at {
            state.ejections = 0;
        }
        let time = ejecting
            .time
            .saturating_mul(1 << state.ejections.min(16))
            .min(MAX_EJECTION.max(ejecting.time));
        let time_us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let until = now_us.saturating_add(time_us);
        state.ejections = state.ejections.saturating_add(1);
        state.until = Some(until);
        state.calm_at = until.saturating_add(time_us);
        state.out = others();
        self.available
            .store(state.up && !state.out, Ordering::Relaxed);
        let time_ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        if state.out {
            self.metrics.ejections.inc();
            tracing::warn!(pool = &*self.pool, upstream = %self.addr, why = why.as_str(), failures, time_ms, "upstream ejected");
        } else {
            tracing::warn!(pool = &*self.pool, upstream = %self.addr, why = why.as_str(), failures, "upstream fails; there is no other");
        }
    }

    /// Its time out is over, if it is.
    pub(super) fn tick(&self, now_us: u64) {
        let mut state = self.state.lock();
        if state.until.is_none_or(|until| now_us < until) {
            return;
        }
        state.until = None;
        self.failures.store(0, Ordering::Relaxed);
        if std::mem::take(&mut state.out) {
            self.available.store(state.up, Ordering::Relaxed);
            tracing::info!(pool = &*self.pool, upstream = %self.addr, "upstream takes calls again");
        }
    }

    /// What a health check has found. `rise` and `fall` in a row change the mind.
    pub(super) fn checked(&self, found: Result<(), String>, rise: u32, fall: u32) {
        let passed = found.is_ok();
        self.metrics.checked(passed);
        let mut state = self.state.lock();
        if passed == state.up {
            state.streak = 0;
            return;
        }
        state.streak += 1;
        if state.streak < if passed { rise } else { fall } {
            return;
        }
        state.streak = 0;
        state.up = passed;
        self.available
            .store(state.up && !state.out, Ordering::Relaxed);
        match found {
            Ok(()) => {
                tracing::info!(pool = &*self.pool, upstream = %self.addr, "upstream passes its checks again");
            }
            Err(why) => {
                tracing::warn!(pool = &*self.pool, upstream = %self.addr, why, "upstream fails its checks");
            }
        }
    }
}
