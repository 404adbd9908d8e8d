//! A pool: addresses that stand in for each other, and a budget for repeated calls.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use pingora::protocols::tls::CaType;

use super::adaptive::Adaptive;
use super::choice::Set;
use super::endpoint::{Endpoint, Kind};
use super::standing::{Checking, Ejecting, Standing};
use crate::observe::upstreams::{Failure, PoolMetrics, UpstreamMetrics};
use crate::settings::{Balance, Check, PoolSettings, RetryOn, Tending, Times, Upstream};

/// Repeated calls that are always allowed within [`SPAN_US`], so that a quiet pool has some.
const FREE: usize = 10;
/// How long calls and repeated ones are held against each other.
const SPAN_US: u64 = 10_000_000;

/// One pool.
#[derive(Debug)]
pub(super) struct Pool {
    pub(super) name: Arc<str>,
    pub(super) balance: Balance,
    /// Whether all its addresses speak HTTP/1.1 in the clear.
    pub(super) is_plain: bool,
    pub(super) times: Times,
    pub(super) check: Check,
    pub(super) checking: Checking,
    pub(super) retry_on: RetryOn,
    pub(super) metrics: PoolMetrics,
    /// How many calls it may have at once, where that is limited.
    pub(super) adaptive: Option<Arc<Adaptive>>,
    pub(super) set: ArcSwap<Set>,
    ejecting: Ejecting,
    /// One ejection at a time: two must not rely on each other.
    one_ejects: Mutex<()>,
    budget_percent: u32,
    /// Calls so far.
    calls: AtomicUsize,
    budget: Mutex<Budget>,
    sources: Mutex<Vec<Source>>,
}

/// A host, and its addresses.
#[derive(Debug)]
struct Source {
    kind: Kind,
    endpoints: Vec<Arc<Endpoint>>,
}

#[derive(Debug, Default)]
struct Budget {
    /// When this span began, µs.
    began: u64,
    /// The pool's calls until then.
    calls: usize,
    /// Calls in the span before.
    before: usize,
    spent: usize,
}

impl Pool {
    pub(super) fn new(
        settings: &PoolSettings,
        ca: Option<&(Arc<CaType>, u64)>,
        tending: &Tending,
        metrics: &UpstreamMetrics,
        previous: Option<&Self>,
    ) -> Self {
        let name: Arc<str> = settings.name.as_str().into();
        let sources = settings.upstreams.iter().map(|upstream| Source {
            kind: Kind {
                upstream: upstream.clone(),
                ca: ca.map(|(ca, _)| ca.clone()),
                group: group(upstream, ca.map_or(0, |(_, group)| *group)),
            },
            endpoints: Vec::new(),
        });
        let pool = Self {
            name: name.clone(),
            balance: settings.balance,
            is_plain: settings.upstreams.iter().all(|u| !u.tls && !u.http2),
            times: settings.times,
            check: settings.check.clone(),
            checking: Checking::new(&settings.check, tending),
            retry_on: settings.retry_on.clone(),
            metrics: metrics.pool(&name),
            adaptive: settings.concurrency.map(|concurrency| {
                let previous = previous.and_then(|pool| pool.adaptive.as_ref());
                Adaptive::of(concurrency, previous, || metrics.concurrency(&name))
            }),
            set: ArcSwap::default(),
            ejecting: Ejecting {
                after: tending.eject_after,
                time: tending.eject_time,
            },
            one_ejects: Mutex::default(),
            budget_percent: tending.retry_budget,
            calls: AtomicUsize::new(0),
            budget: Mutex::default(),
            sources: Mutex::new(sources.collect()),
        };
        let before = previous.map(|pool| pool.set.load_full());
        for upstream in &settings.upstreams {
            let Upstream {
                host, port, addrs, ..
            } = upstream;
            pool.take(host, *port, addrs, metrics, Some(before.as_deref()));
        }
        if let Some(previous) = previous {
            pool.tell(previous);
        }
        pool
    }

    /// Says in what this pool's addresses are others than before a reload.
    fn tell(&self, previous: &Self) {
        let of = |one: &Self, other: &Self| {
            let others = other.endpoints();
            let all = one.addresses().into_iter().flat_map(|((host, _), addrs)| {
                let with = move |addr| (host.clone(), addr);
                addrs.into_iter().map(with)
            });
            let is_new = |(_, addr): &(String, SocketAddr)| others.iter().all(|e| e.addr != *addr);
            all.filter(is_new).collect::<Vec<_>>()
        };
        let (pool, count) = (&*self.name, self.well().1);
        for (host, upstream) in of(previous, self) {
            tracing::info!(pool, host, %upstream, count, "upstream address gone");
        }
        for (host, upstream) in of(self, previous) {
            tracing::info!(pool, host, %upstream, count, "upstream address found");
        }
    }

    /// The number of the next call.
    pub(super) fn next(&self) -> usize {
        self.calls.fetch_add(1, Ordering::Relaxed)
    }

    /// Whether there is an address that nothing speaks against.
    pub(super) fn is_well(&self) -> bool {
        self.set
            .load()
            .endpoints
            .iter()
            .any(|e| e.standing.is_well())
    }

    /// Its addresses.
    pub(super) fn endpoints(&self) -> Vec<Arc<Endpoint>> {
        self.set.load().endpoints.to_vec()
    }

    /// How many of its addresses are well, and how many there are.
    pub(super) fn well(&self) -> (usize, usize) {
        let set = self.set.load();
        let well = set
            .endpoints
            .iter()
            .filter(|e| e.standing.is_well())
            .count();
        (well, set.endpoints.len())
    }

    /// An address has failed a call.
    pub(super) fn failed(&self, endpoint: &Endpoint, why: Failure, now_us: u64) {
        let _one = self.one_ejects.lock();
        let set = self.set.load();
        let others = || set.endpoints.iter().filter(|e| e.addr != endpoint.addr);
        let is_last = endpoint.standing.failed(why, now_us, self.ejecting, || {
            others().any(|e| e.standing.is_well())
        });
        if is_last {
            others().for_each(|e| e.standing.is_needed());
        }
    }

    /// Ends the ejection of one of its addresses, if it is time.
    pub(super) fn tick(&self, endpoint: &Endpoint, now_us: u64) {
        match self.ejecting.after {
            Some(_) => endpoint.standing.tick(now_us),
            None => endpoint.standing.tick(u64::MAX),
        }
    }

    /// Whether a call may be repeated. Counted if so.
    pub(super) fn may_repeat(&self, now_us: u64) -> bool {
        let calls = self.calls.load(Ordering::Relaxed);
        let mut budget = self.budget.lock();
        let passed = now_us.saturating_sub(budget.began);
        if passed >= SPAN_US {
            let lately = calls.saturating_sub(budget.calls);
            *budget = Budget {
                began: now_us,
                calls,
                before: if passed < 2 * SPAN_US { lately } else { 0 },
                spent: 0,
            };
        }
        let lately = calls.saturating_sub(budget.calls).max(budget.before);
        let percent = usize::try_from(self.budget_percent).unwrap_or(0);
        let most = lately.saturating_mul(percent) / 100 + if percent > 0 { FREE } else { 0 };
        let is_left = budget.spent < most;
        if is_left {
            budget.spent += 1;
        } else {
            self.metrics.exhausted.inc();
        }
        is_left
    }

    /// Its hosts and ports.
    pub(super) fn hosts(&self) -> Vec<(String, u16)> {
        let sources = self.sources.lock();
        let hosts = sources.iter().map(|source| &source.kind.upstream);
        hosts.map(|u| (u.host.clone(), u.port)).collect()
    }

    /// Its hosts and ports, and what their addresses are now.
    pub(super) fn addresses(&self) -> Vec<((String, u16), Vec<SocketAddr>)> {
        let sources = self.sources.lock();
        let of = |source: &Source| {
            let Upstream { host, port, .. } = &source.kind.upstream;
            let addrs = source.endpoints.iter().map(|endpoint| endpoint.addr);
            ((host.clone(), *port), addrs.collect())
        };
        sources.iter().map(of).collect()
    }

    /// The addresses of a host, as they are from now on. Those that stay keep their state and
    /// their connections; calls that run at those that go end there.
    pub(super) fn found(
        &self,
        host: &str,
        port: u16,
        addrs: &[SocketAddr],
        metrics: &UpstreamMetrics,
    ) {
        self.take(host, port, addrs, metrics, None);
    }

    /// The same, with what the settings before had, if there were any, while the pool is made.
    fn take(
        &self,
        host: &str,
        port: u16,
        addrs: &[SocketAddr],
        metrics: &UpstreamMetrics,
        previous: Option<Option<&Set>>,
    ) {
        let is_made = previous.is_some();
        let mut sources = self.sources.lock();
        let mut is_changed = false;
        let now = self.set.load_full();
        let now = &*now.endpoints;
        let before = previous.flatten().map_or(&[][..], |set| &*set.endpoints);
        for source in sources.iter_mut() {
            let Upstream {
                host: h, port: p, ..
            } = &source.kind.upstream;
            let was = source.endpoints.iter().map(|e| e.addr);
            if h != host || *p != port || was.eq(addrs.iter().copied()) {
                continue;
            }
            is_changed = true;
            let old = std::mem::take(&mut source.endpoints);
            for addr in addrs {
                let endpoint = self.endpoint(*addr, &source.kind, &[&old, before, now], metrics);
                endpoint.standing.goes_by(self.checking);
                source.endpoints.push(endpoint);
            }
        }
        if !is_changed {
            return;
        }
        let mut all: Vec<Arc<Endpoint>> = Vec::new();
        for endpoint in sources.iter().flat_map(|source| &source.endpoints) {
            // Two names may stand for one address.
            if all.iter().all(|e| e.addr != endpoint.addr) {
                all.push(endpoint.clone());
            }
        }
        let count = all.len();
        let old = self.set.swap(Arc::new(Set::new(all)));
        let now = self.set.load();
        let is_in = |set: &Set, addr| set.endpoints.iter().any(|e| e.addr == addr);
        for gone in old.endpoints.iter().filter(|e| !is_in(&now, e.addr)) {
            metrics.forget(&self.name, &gone.addr.to_string());
            tracing::info!(pool = &*self.name, host, upstream = %gone.addr, count, "upstream address gone");
        }
        if is_made {
            // One host after the other: what is news is told of all together.
            return;
        }
        for new in now.endpoints.iter().filter(|e| !is_in(&old, e.addr)) {
            tracing::info!(pool = &*self.name, host, upstream = %new.addr, count, "upstream address found");
        }
    }

    /// One of these, if it is there already; if one is there that differs in what it is given alone,
    /// its standing goes on.
    fn endpoint(
        &self,
        addr: SocketAddr,
        kind: &Kind,
        known: &[&[Arc<Endpoint>]],
        metrics: &UpstreamMetrics,
    ) -> Arc<Endpoint> {
        let known = || known.iter().flat_map(|known| known.iter());
        let number = kind.number();
        if let Some(same) = known().find(|e| e.addr == addr && e.kind == number) {
            return same.clone();
        }
        let standing = known()
            .find(|e| e.is_like(addr, kind))
            .map(|like| like.standing.clone());
        let standing = standing.unwrap_or_else(|| {
            let own = metrics.endpoint(&self.name, &addr.to_string());
            Arc::new(Standing::new(addr, self.name.clone(), own))
        });
        Arc::new(Endpoint::new(addr, kind, standing))
    }
}

/// Connections of one group may be shared: those verified by other certificates, or with another
/// protocol, are of another.
fn group(upstream: &Upstream, ca: u64) -> u64 {
    ca.rotate_left(1) ^ u64::from(upstream.http2)
}

#[cfg(test)]
mod tests;
