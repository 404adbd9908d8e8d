//! Metrics of the way upstream. Their labels are the operator's own words: pools, and addresses.

use prometheus::core::Collector;
use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

/// Why an attempt failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No connection.
    Connect,
    /// No answer in time.
    Timeout,
    /// The connection broke, or the answer was none.
    Broken,
}

impl Failure {
    /// The label's value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Timeout => "timeout",
            Self::Broken => "broken",
        }
    }
}

/// Why an attempt is followed by another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    /// Nothing had been sent.
    Connect,
    /// The connection had been idle, and was closed meanwhile.
    Stale,
    /// It broke before the answer.
    Broken,
    /// By the answer's status.
    Status,
    /// The upstream said that it had not begun it.
    Refused,
}

impl Again {
    const ALL: [Self; 5] = [
        Self::Connect,
        Self::Stale,
        Self::Broken,
        Self::Status,
        Self::Refused,
    ];

    /// The label's value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Stale => "stale",
            Self::Broken => "broken",
            Self::Status => "status",
            Self::Refused => "refused",
        }
    }
}

/// All metrics of the way upstream.
#[derive(Clone, Debug)]
pub struct UpstreamMetrics {
    up: IntGaugeVec,
    in_flight: IntGaugeVec,
    attempts: IntCounterVec,
    failures: IntCounterVec,
    ejections: IntCounterVec,
    checks: IntCounterVec,
    retries: IntCounterVec,
    exhausted: IntCounterVec,
    lookups: IntCounterVec,
    places: IntGaugeVec,
    placed: IntGaugeVec,
    shed: IntCounterVec,
}

impl UpstreamMetrics {
    /// Registers them.
    ///
    /// # Errors
    /// When a metric is described wrongly; never with the names below.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        fn kept<C: Collector + Clone + 'static>(
            registry: &Registry,
            one: C,
        ) -> prometheus::Result<C> {
            registry.register(Box::new(one.clone()))?;
            Ok(one)
        }
        let counters = |name: &str, help: &str, labels: &[&str]| {
            kept(registry, IntCounterVec::new(Opts::new(name, help), labels)?)
        };
        let gauges_of = |name: &str, help: &str, labels: &[&str]| {
            kept(registry, IntGaugeVec::new(Opts::new(name, help), labels)?)
        };
        let gauges = |name: &str, help: &str| gauges_of(name, help, &["pool", "upstream"]);
        Ok(Self {
            up: gauges(
                "floodgate_upstream_up",
                "Whether an upstream address is well: neither ejected nor failing its checks.",
            )?,
            in_flight: gauges(
                "floodgate_upstream_in_flight",
                "Calls that an upstream address is answering.",
            )?,
            attempts: counters(
                "floodgate_upstream_attempts_total",
                "Calls sent to an upstream address, repeated ones each time.",
                &["pool", "upstream"],
            )?,
            failures: counters(
                "floodgate_upstream_failures_total",
                "Calls that an upstream address failed: connect, timeout, broken.",
                &["pool", "upstream", "why"],
            )?,
            ejections: counters(
                "floodgate_upstream_ejections_total",
                "Times that an upstream address was ejected after failures in a row.",
                &["pool", "upstream"],
            )?,
            checks: counters(
                "floodgate_upstream_checks_total",
                "Health checks of an upstream address: pass, fail.",
                &["pool", "upstream", "result"],
            )?,
            retries: counters(
                "floodgate_upstream_retries_total",
                "Attempts after the first: after no connection, a stale or broken one, a status, or a call \
                 that was refused unbegun.",
                &["pool", "why"],
            )?,
            exhausted: counters(
                "floodgate_upstream_retry_budget_exhausted_total",
                "Attempts that were not repeated because too many others had been.",
                &["pool"],
            )?,
            lookups: counters(
                "floodgate_upstream_lookup_failures_total",
                "Names of upstreams that could not be looked up again; their last addresses stay.",
                &["host"],
            )?,
            places: gauges_of(
                "floodgate_upstream_concurrency_limit",
                "Calls that a pool may have at once, as its latency bears (concurrency = adaptive).",
                &["pool"],
            )?,
            placed: gauges_of(
                "floodgate_upstream_concurrency_in_flight",
                "Calls that a pool has at once, of those that count for its limit.",
                &["pool"],
            )?,
            shed: counters(
                "floodgate_upstream_shed_total",
                "Calls shed because a pool had as many as it bears (limit), or their app its share (share).",
                &["pool", "why"],
            )?,
        })
    }

    /// Those of one address.
    #[must_use]
    pub fn endpoint(&self, pool: &str, upstream: &str) -> EndpointMetrics {
        let of = [pool, upstream];
        let failed = |why: Failure| {
            self.failures
                .with_label_values(&[pool, upstream, why.as_str()])
        };
        let checked = |result: &str| self.checks.with_label_values(&[pool, upstream, result]);
        EndpointMetrics {
            up: self.up.with_label_values(&of),
            in_flight: self.in_flight.with_label_values(&of),
            attempts: self.attempts.with_label_values(&of),
            failures: [Failure::Connect, Failure::Timeout, Failure::Broken].map(failed),
            ejections: self.ejections.with_label_values(&of),
            checks: [checked("fail"), checked("pass")],
        }
    }

    /// Forgets an address that is no upstream any more.
    pub fn forget(&self, pool: &str, upstream: &str) {
        let of = [pool, upstream];
        // One that is not there has been forgotten.
        let _ = self.up.remove_label_values(&of);
        let _ = self.in_flight.remove_label_values(&of);
        let _ = self.attempts.remove_label_values(&of);
        let _ = self.ejections.remove_label_values(&of);
        for why in [Failure::Connect, Failure::Timeout, Failure::Broken] {
            let _ = self
                .failures
                .remove_label_values(&[pool, upstream, why.as_str()]);
        }
        for result in ["fail", "pass"] {
            let _ = self.checks.remove_label_values(&[pool, upstream, result]);
        }
    }

    /// Forgets a pool that is there no more.
    pub fn forget_pool(&self, pool: &str) {
        for why in Again::ALL {
            let _ = self.retries.remove_label_values(&[pool, why.as_str()]);
        }
        let _ = self.exhausted.remove_label_values(&[pool]);
        self.forget_concurrency(pool);
    }

    /// Forgets a host that is no upstream any more.
    pub fn forget_host(&self, host: &str) {
        let _ = self.lookups.remove_label_values(&[host]);
    }

    /// Those of one pool.
    #[must_use]
    pub fn pool(&self, pool: &str) -> PoolMetrics {
        let again = |why: Again| self.retries.with_label_values(&[pool, why.as_str()]);
        PoolMetrics {
            retries: Again::ALL.map(again),
            exhausted: self.exhausted.with_label_values(&[pool]),
        }
    }

    /// Those of one pool whose calls at once are limited.
    #[must_use]
    pub fn concurrency(&self, pool: &str) -> ConcurrencyMetrics {
        ConcurrencyMetrics {
            limit: self.places.with_label_values(&[pool]),
            in_flight: self.placed.with_label_values(&[pool]),
            full: self.shed.with_label_values(&[pool, "limit"]),
            share: self.shed.with_label_values(&[pool, "share"]),
        }
    }

    /// Forgets those of a pool that has no such limit any more.
    pub fn forget_concurrency(&self, pool: &str) {
        let _ = self.places.remove_label_values(&[pool]);
        let _ = self.placed.remove_label_values(&[pool]);
        for why in ["limit", "share"] {
            let _ = self.shed.remove_label_values(&[pool, why]);
        }
    }

    /// Counts a name that could not be looked up.
    pub fn lookup_failed(&self, host: &str) {
        self.lookups.with_label_values(&[host]).inc();
    }
}

/// Metrics of one address.
#[derive(Debug)]
pub struct EndpointMetrics {
    /// Whether it is well.
    pub up: IntGauge,
    /// Calls that it is answering.
    pub in_flight: IntGauge,
    /// Calls sent to it.
    pub attempts: IntCounter,
    failures: [IntCounter; 3],
    /// Times that it was ejected.
    pub ejections: IntCounter,
    checks: [IntCounter; 2],
}

impl EndpointMetrics {
    /// Counts a failed attempt.
    pub fn failed(&self, why: Failure) {
        let [connect, timeout, broken] = &self.failures;
        match why {
            Failure::Connect => connect,
            Failure::Timeout => timeout,
            Failure::Broken => broken,
        }
        .inc();
    }

    /// Counts a health check.
    pub fn checked(&self, passed: bool) {
        let [fail, pass] = &self.checks;
        if passed { pass } else { fail }.inc();
    }
}

/// Metrics of one pool whose calls at once are limited.
#[derive(Debug)]
pub struct ConcurrencyMetrics {
    /// The limit.
    pub limit: IntGauge,
    /// Calls that count for it.
    pub in_flight: IntGauge,
    /// Calls shed at the limit.
    pub full: IntCounter,
    /// Calls shed because their app had its share.
    pub share: IntCounter,
}

/// Metrics of one pool.
#[derive(Debug)]
pub struct PoolMetrics {
    retries: [IntCounter; 5],
    /// Attempts not repeated for want of budget.
    pub exhausted: IntCounter,
}

impl PoolMetrics {
    /// Counts a repeated attempt.
    pub fn again(&self, why: Again) {
        let [connect, stale, broken, status, refused] = &self.retries;
        match why {
            Again::Connect => connect,
            Again::Stale => stale,
            Again::Broken => broken,
            Again::Status => status,
            Again::Refused => refused,
        }
        .inc();
    }
}
