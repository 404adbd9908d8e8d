//! Prometheus metrics. No label has values that callers choose: routes, limits and verbs come
//! from the ruleset.

use std::collections::{HashMap, HashSet};
use std::sync::OnceLock;

use foldhash::fast::RandomState;
use parking_lot::Mutex;
use prometheus::core::Collector as _;
use prometheus::{
    Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

use super::failures::FailureMetrics;
use super::reloads::ReloadMetrics;
use super::tokens::TokenMetrics;
use super::upstreams::UpstreamMetrics;
use crate::admission::Target;
use crate::limit::LimitId;
use crate::limit::total::Kind;
use crate::spec::payload::{MALFORMED, RECIPIENTS};
use crate::spec::{RouteId, Ruleset};
use crate::store::StoreGauges;
use crate::store::redis::SharedGauges;

/// Our own part of a call: 10 µs to 100 ms.
const OWN_BUCKETS: &[f64] = &[
    0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.01, 0.1,
];
/// The upstream's part: 1 ms to 60 s.
const UPSTREAM_BUCKETS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0,
];

/// What series say of calls of no route, and of no limit.
const OTHER_ROUTES: [&str; 3] = ["unmatched", "options", "none"];
const OTHER_LIMITS: [&str; 4] = ["", "history", MALFORMED, RECIPIENTS];

/// What the gateway did with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Forwarded.
    Admit,
    /// Over a limit.
    Deny,
    /// Refused to protect ourselves.
    Shed,
    /// Bad, unknown or unauthenticated.
    Reject,
}

impl Verb {
    /// The label's value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Admit => "admit",
            Self::Deny => "deny",
            Self::Shed => "shed",
            Self::Reject => "reject",
        }
    }
}

/// Why a connection was turned away before its first request, or in the middle of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turned {
    /// There are too many.
    Full,
    /// There are too many of its address.
    AddressFull,
    /// No good PROXY header, or none that may be believed.
    ProxyProtocol,
    /// The handshake failed.
    Tls,
    /// Nothing came.
    Idle,
    /// A head that came too slowly.
    SlowHead,
    /// A head that is too large.
    LargeHead,
    /// Plain HTTP on a listener with TLS.
    PlainHttp,
    /// Frames of HTTP/2 that do nothing, and too many of them.
    Frames,
}

impl Turned {
    const ALL: [(Self, &'static str); 9] = [
        (Self::Full, "full"),
        (Self::AddressFull, "address-full"),
        (Self::ProxyProtocol, "proxy-protocol"),
        (Self::Tls, "tls"),
        (Self::Idle, "idle"),
        (Self::SlowHead, "slow-head"),
        (Self::LargeHead, "large-head"),
        (Self::PlainHttp, "plain-http"),
        (Self::Frames, "frames"),
    ];

    /// Its label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        let mut all = Self::ALL.iter();
        all.find(|(turned, _)| *turned == self)
            .map_or("", |(_, why)| *why)
    }
}

/// All metrics of a gateway.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Those of the way upstream.
    pub upstreams: UpstreamMetrics,
    /// Of calls that fail, and where time goes.
    pub failures: FailureMetrics,
    /// Those of callers' tokens.
    pub tokens: TokenMetrics,
    /// Those of reloads.
    pub reloads: ReloadMetrics,
    decisions: IntCounterVec,
    shed: IntCounterVec,
    reported: IntCounterVec,
    expired: IntCounterVec,
    charged: IntCounterVec,
    refunded: IntCounterVec,
    own: Histogram,
    upstream: Histogram,
    upstream_errors: IntCounter,
    in_flight: IntGauge,
    upstream_waiting: IntGauge,
    connections: IntCounter,
    connections_open: IntGauge,
    turned_away: [IntCounter; Turned::ALL.len()],
    expiry: IntGaugeVec,
    counters: IntGaugeVec,
    slots: IntGauge,
    overflowed: IntGauge,
    shared: SharedMetrics,
    /// Series whose route or limit was gone when they were last looked at.
    gone: Mutex<HashSet<Vec<String>>>,
}

/// Metrics that are counted by the number of a route or limit: those of one ruleset.
#[derive(Debug, Default)]
pub struct RuleMetrics {
    charged: Vec<IntCounter>,
    refunded: Vec<IntCounter>,
    admits: Vec<IntCounter>,
    /// Calls denied, by route and limit; there from the first one on.
    denials: HashMap<(RouteId, LimitId), OnceLock<IntCounter>, RandomState>,
    /// Of no route.
    unmatched: Option<IntCounter>,
    options: Option<IntCounter>,
}

impl RuleMetrics {
    /// Counts an admitted call.
    pub fn admit(&self, target: Target) {
        let counter = match target {
            Target::Route(id) => self.admits.get(id.0),
            Target::Unmatched => self.unmatched.as_ref(),
            Target::Options => self.options.as_ref(),
        };
        if let Some(counter) = counter {
            counter.inc();
        }
    }

    /// Counts charged units.
    pub fn charge(&self, limit: LimitId, units: u32) {
        if let Some(counter) = self.charged.get(limit.0 as usize) {
            counter.inc_by(u64::from(units));
        }
    }

    /// Counts units given back.
    pub fn refund(&self, limit: LimitId, units: u32) {
        if let Some(counter) = self.refunded.get(limit.0 as usize) {
            counter.inc_by(u64::from(units));
        }
    }
}

/// The limits that deny calls of each route. Those of an app's own, of no route and of answers of our
/// own are found by name.
fn denials(rules: &Ruleset) -> HashMap<(RouteId, LimitId), OnceLock<IntCounter>, RandomState> {
    let of_all = &rules.ip_limits.unauthorized;
    let routes = rules.routes.iter().enumerate();
    routes
        .flat_map(|(at, route)| {
            let own = route.editions.iter().flat_map(|edition| &edition.limits);
            own.chain(of_all)
                .map(move |id| ((RouteId(at), *id), OnceLock::new()))
        })
        .collect()
}

/// Of a store that gateways share.
#[derive(Debug)]
struct SharedMetrics {
    up: IntGauge,
    gateways: IntGauge,
    failures: IntCounter,
    round_trips: IntCounter,
    items: IntCounter,
    lease_hits: IntCounter,
    alone: IntCounter,
}

impl SharedMetrics {
    /// The embedded store is always up, and nobody shares it.
    fn set(&self, now: Option<SharedGauges>) {
        self.up
            .set(i64::from(now.as_ref().is_none_or(|now| now.is_up)));
        let Some(now) = now else {
            return;
        };
        let gateways = i64::try_from(now.gateways.len()).unwrap_or(i64::MAX);
        self.gateways.set(gateways);
        for (counter, value) in [
            (&self.failures, now.times_down),
            (&self.round_trips, now.round_trips),
            (&self.items, now.items),
            (&self.lease_hits, now.lease_hits),
            (&self.alone, now.alone),
        ] {
            counter.inc_by(value.saturating_sub(counter.get()));
        }
    }
}

impl Metrics {
    /// Registers them.
    ///
    /// # Errors
    /// When a metric is described wrongly; never with the names below.
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let counters =
            |name: &str, help: &str, labels: &[&str]| -> prometheus::Result<IntCounterVec> {
                let vec = IntCounterVec::new(Opts::new(name, help), labels)?;
                registry.register(Box::new(vec.clone()))?;
                Ok(vec)
            };
        let gauge = |name: &str, help: &str| -> prometheus::Result<IntGauge> {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok(gauge)
        };
        let counter = |name: &str, help: &str| -> prometheus::Result<IntCounter> {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok(counter)
        };
        let histogram =
            |name: &str, help: &str, buckets: &[f64]| -> prometheus::Result<Histogram> {
                let histogram =
                    Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec()))?;
                registry.register(Box::new(histogram.clone()))?;
                Ok(histogram)
            };
        let decisions = counters(
            "floodgate_decisions_total",
            "Decisions by route, verb (admit, deny, shed, reject) and the limit that denied, or refused what a call carries.",
            &["route", "limit", "verb"],
        )?;
        let charged = counters(
            "floodgate_units_charged_total",
            "Units charged, by limit.",
            &["limit", "unit"],
        )?;
        let refunded = counters(
            "floodgate_units_refunded_total",
            "Units given back, by limit.",
            &["limit", "unit"],
        )?;
        let live = IntGaugeVec::new(
            Opts::new(
                "floodgate_counters",
                "Live counters, by the kind of caller they belong to.",
            ),
            &["kind"],
        )?;
        registry.register(Box::new(live.clone()))?;
        let expiry = IntGaugeVec::new(
            Opts::new(
                "floodgate_tls_certificate_expiry_seconds",
                "When a certificate of the TLS listeners ends, Unix seconds.",
            ),
            &["file"],
        )?;
        registry.register(Box::new(expiry.clone()))?;
        let turned_away = counters(
            "floodgate_connections_turned_away_total",
            "Connections closed before their first request, in the middle of a head, or for what they do.",
            &["why"],
        )?;
        Ok(Self {
            reported: counters(
                "floodgate_reported_total",
                "Calls that a report-only limit would have denied or refused.",
                &["route", "limit"],
            )?,
            expired: counters(
                "floodgate_history_refused_total",
                "Calls for an hour of the message history that is not kept, answered here, by the app's plan.",
                &["plan"],
            )?,
            charged,
            refunded,
            own: histogram(
                "floodgate_own_seconds",
                "Time from the request's head to the verdict, without waiting for a body.",
                OWN_BUCKETS,
            )?,
            upstream: histogram(
                "floodgate_upstream_seconds",
                "Time from the verdict to the end of the answer.",
                UPSTREAM_BUCKETS,
            )?,
            upstream_errors: counter(
                "floodgate_upstream_errors_total",
                "Calls that the upstream did not answer.",
            )?,
            in_flight: gauge("floodgate_requests_in_flight", "Requests being handled.")?,
            upstream_waiting: gauge(
                "floodgate_upstream_waiting",
                "Calls that wait for the upstream's answer.",
            )?,
            shed: counters(
                "floodgate_shed_total",
                "Calls refused to protect ourselves or the upstream, by the cap that was reached.",
                &["why"],
            )?,
            connections: counter("floodgate_connections_total", "Connections of callers.")?,
            connections_open: gauge(
                "floodgate_connections_open",
                "Connections of callers that are open.",
            )?,
            turned_away: Turned::ALL.map(|(_, why)| turned_away.with_label_values(&[why])),
            expiry,
            counters: live,
            slots: gauge("floodgate_task_slots_in_use", "Task slots in use.")?,
            overflowed: gauge(
                "floodgate_counter_overflows",
                "Charges that went to a shared overflow counter since the start.",
            )?,
            shared: SharedMetrics {
                up: gauge(
                    "floodgate_store_up",
                    "Whether the counter store can be asked; 0: each limit goes by its on_store_failure.",
                )?,
                gateways: gauge(
                    "floodgate_store_gateways",
                    "Gateways that share the counter store, as far as it knows.",
                )?,
                failures: counter(
                    "floodgate_store_failures_total",
                    "Times that the counter store went out of use.",
                )?,
                round_trips: counter(
                    "floodgate_store_round_trips_total",
                    "Commands sent to the counter store.",
                )?,
                items: counter(
                    "floodgate_store_items_total",
                    "Decisions and givings back in those commands: divided by them, the batch size.",
                )?,
                lease_hits: counter(
                    "floodgate_store_lease_hits_total",
                    "Decisions made by units taken in advance, or by a counter known to be empty, without a command.",
                )?,
                alone: counter(
                    "floodgate_store_local_decisions_total",
                    "Decisions made without the counter store.",
                )?,
            },
            decisions,
            upstreams: UpstreamMetrics::new(&registry)?,
            failures: FailureMetrics::new(&registry)?,
            tokens: TokenMetrics::new(&registry)?,
            reloads: ReloadMetrics::new(&registry)?,
            gone: Mutex::default(),
            registry,
        })
    }

    /// Those that are counted by the numbers of these rules, which are the next to go by. A name that
    /// was there before goes on.
    #[must_use]
    pub fn of(&self, rules: &Ruleset) -> RuleMetrics {
        // What was gone may be back. A look by the rules before takes nothing of these away.
        let mut gone = self.gone.lock();
        gone.clear();
        let by_limit = |vec: &IntCounterVec| -> Vec<IntCounter> {
            let limits = rules.limits.iter();
            limits
                .map(|l| vec.with_label_values(&[&*l.name, l.unit.as_str()]))
                .collect()
        };
        let admit = |route: &str| self.decisions.with_label_values(&[route, "", "admit"]);
        let routes = rules.routes.iter();
        RuleMetrics {
            charged: by_limit(&self.charged),
            refunded: by_limit(&self.refunded),
            admits: routes.map(|route| admit(&route.name)).collect(),
            denials: denials(rules),
            unmatched: Some(admit("unmatched")),
            options: Some(admit("options")),
        }
    }

    /// Drops series whose route or limit these rules do not have. Those that were not yet gone
    /// at the last look stay until the next: they may be scraped, or come back. A call that still
    /// goes by older rules may be counted by no series then.
    pub fn sweep(&self, rules: &Ruleset) {
        let routes: HashSet<&str> = rules.routes.iter().map(|route| &*route.name).collect();
        let payloads = rules.payloads.limits.iter().map(|limit| &*limit.name);
        let limits = rules.limits.iter().map(|limit| &*limit.name);
        let mut limits: HashSet<&str> = limits.chain(payloads).collect();
        limits.extend(Kind::ALL.map(Kind::limit_name));
        let is_known = |name: &str, value: &str| match name {
            "route" => OTHER_ROUTES.contains(&value) || routes.contains(value),
            "limit" => OTHER_LIMITS.contains(&value) || limits.contains(value),
            _ => true,
        };
        let mut before = self.gone.lock();
        let mut gone = HashSet::new();
        for (name, vec, labels) in [
            (
                "decisions",
                &self.decisions,
                &["route", "limit", "verb"][..],
            ),
            ("reported", &self.reported, &["route", "limit"]),
            ("charged", &self.charged, &["limit", "unit"]),
            ("refunded", &self.refunded, &["limit", "unit"]),
        ] {
            for metric in vec.collect().iter().flat_map(|family| family.get_metric()) {
                let values = metric.get_label();
                if values.iter().all(|l| is_known(l.name(), l.value())) {
                    continue;
                }
                let value = |label: &&str| {
                    let found = values.iter().find(|value| value.name() == *label);
                    found.map_or("", |value| value.value())
                };
                let values: Vec<&str> = labels.iter().map(value).collect();
                let series: Vec<String> = std::iter::once(&name)
                    .chain(&values)
                    .map(|word| (*word).to_owned())
                    .collect();
                if before.contains(&series) {
                    // One that is not there has gone.
                    let _ = vec.remove_label_values(&values);
                } else {
                    gone.insert(series);
                }
            }
        }
        *before = gone;
    }

    /// Counts a call that was not admitted. `limit` is empty unless one denied.
    pub fn refuse(&self, route: &str, limit: &str, verb: Verb) {
        self.decisions
            .with_label_values(&[route, limit, verb.as_str()])
            .inc();
    }

    /// Counts a call that a limit has denied: the same series, found sooner.
    pub fn deny(
        &self,
        counts: &RuleMetrics,
        target: Target,
        id: LimitId,
        route: &str,
        limit: &str,
    ) {
        let known = match target {
            Target::Route(at) => counts.denials.get(&(at, id)),
            Target::Unmatched | Target::Options => None,
        };
        let Some(known) = known else {
            return self.refuse(route, limit, Verb::Deny);
        };
        let labels = [route, limit, Verb::Deny.as_str()];
        known
            .get_or_init(|| self.decisions.with_label_values(&labels))
            .inc();
    }

    /// Counts a call that was shed. `why` is one of a few words.
    pub fn shed(&self, why: &'static str) {
        self.shed.with_label_values(&[why]).inc();
    }

    /// Counts a call that a report-only limit would have denied.
    pub fn report(&self, route: &str, limit: &str) {
        self.reported.with_label_values(&[route, limit]).inc();
    }

    /// Counts a call for an hour of the message history that is not kept.
    pub fn not_kept(&self, plan: &'static str) {
        self.expired.with_label_values(&[plan]).inc();
    }

    /// Observes our own part, in microseconds.
    #[expect(
        clippy::cast_precision_loss,
        reason = "durations are far below 2^52 µs"
    )]
    pub fn own(&self, micros: u64) {
        self.own.observe(micros as f64 / 1e6);
    }

    /// Observes the upstream's part, in microseconds.
    #[expect(
        clippy::cast_precision_loss,
        reason = "durations are far below 2^52 µs"
    )]
    pub fn upstream(&self, micros: u64) {
        self.upstream.observe(micros as f64 / 1e6);
    }

    /// Counts a caller's connection.
    pub fn connection(&self) {
        self.connections.inc();
    }

    /// Counts a connection that was turned away.
    pub fn turned_away(&self, why: Turned) {
        let at = Turned::ALL.iter().position(|(turned, _)| *turned == why);
        if let Some(counter) = at.and_then(|at| self.turned_away.get(at)) {
            counter.inc();
        }
    }

    /// A certificate's file is no more one of the listeners'.
    pub fn certificate_gone(&self, file: &str) {
        // One that is not there has gone.
        let _ = self.expiry.remove_label_values(&[file]);
    }

    /// Notes when a certificate ends. Its file is the operator's word.
    pub fn certificate_expiry(&self, file: &str, unix_s: i64) {
        self.expiry.with_label_values(&[file]).set(unix_s);
    }

    /// Counts a call that the upstream did not answer.
    pub fn upstream_error(&self) {
        self.upstream_errors.inc();
    }

    /// The text exposition, with these gauges.
    #[must_use]
    pub fn render(
        &self,
        store: StoreGauges,
        shared: Option<SharedGauges>,
        in_flight: usize,
        upstream_waiting: usize,
        connections: usize,
    ) -> String {
        let gauge = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
        for (kind, live) in ["app", "user", "ip"].iter().zip(store.counters) {
            self.counters.with_label_values(&[kind]).set(gauge(live));
        }
        self.slots.set(gauge(store.slots));
        self.overflowed
            .set(i64::try_from(store.overflowed).unwrap_or(i64::MAX));
        self.in_flight.set(gauge(in_flight));
        self.upstream_waiting.set(gauge(upstream_waiting));
        self.connections_open.set(gauge(connections));
        self.shared.set(shared);
        TextEncoder::new()
            .encode_to_string(&self.registry.gather())
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit::KeyHasher;

    #[test]
    fn series_of_what_has_gone_stay_for_a_while_and_then_go() {
        let all = Ruleset::shipped(KeyHasher::new((1, 2))).unwrap();
        let mut fewer = Ruleset::shipped(KeyHasher::new((1, 2))).unwrap();
        let gone = fewer.routes[0].name.clone();
        fewer.routes = fewer.routes.into_iter().skip(1).collect();
        let is_of_it = |name: &str| name.starts_with(&format!("{gone}:"));
        fewer.limits = fewer
            .limits
            .into_iter()
            .filter(|limit| !is_of_it(&limit.name))
            .collect();
        let limit = all.limits.iter().position(|limit| is_of_it(&limit.name));
        let id = LimitId(u32::try_from(limit.unwrap()).unwrap());
        let metrics = Metrics::new().unwrap();
        let counts = metrics.of(&all);
        counts.charge(id, 7);
        metrics.refuse(&gone, "", Verb::Reject);
        metrics.report(&gone, "history");
        metrics.refuse("none", "", Verb::Shed);
        let has = |what: &str| {
            let text = metrics.render(StoreGauges::default(), None, 0, 0, 0);
            text.lines().any(|line| line.contains(what))
        };
        let (route, limit) = (format!("route=\"{gone}\""), format!("limit=\"{gone}:"));
        metrics.sweep(&fewer);
        assert!(has(&route) && has(&limit));
        // It comes back, and goes again.
        metrics.sweep(&all);
        metrics.sweep(&fewer);
        assert!(has(&route) && has(&limit) && has("} 7"));
        metrics.sweep(&fewer);
        assert!(!has(&route) && !has(&limit));
        assert!(has("route=\"none\"") && has("route=\"unmatched\""));
        // It comes back once more while a look by the rules without it is under way.
        let counts = metrics.of(&all);
        let name = &*all.limit(id).name;
        let deny = || metrics.deny(&counts, Target::Route(RouteId(0)), id, &gone, name);
        deny();
        metrics.sweep(&fewer);
        let next = metrics.of(&all);
        metrics.sweep(&fewer);
        deny();
        // One of no place is the same series.
        metrics.deny(&next, Target::Unmatched, id, &gone, name);
        assert!(has(&format!("limit=\"{name}\",{route},verb=\"deny\"}} 3")));
        metrics.sweep(&fewer);
        metrics.sweep(&fewer);
        assert!(!has(&route) && !has(&limit));
        // A call that began before has counted itself since.
        metrics.refuse(&gone, "", Verb::Reject);
        assert!(has(&route));
        metrics.sweep(&fewer);
        metrics.sweep(&fewer);
        assert!(!has(&route));
    }

    #[test]
    fn series_of_totals_are_of_no_rules_and_stay() {
        let rules = Ruleset::shipped(KeyHasher::new((1, 2))).unwrap();
        let metrics = Metrics::new().unwrap();
        let route = &rules.routes[0].name;
        for nth in 1..=3 {
            for kind in Kind::ALL {
                metrics.refuse(route, kind.limit_name(), Verb::Deny);
                metrics.report(route, kind.limit_name());
            }
            metrics.sweep(&rules);
            let text = metrics.render(StoreGauges::default(), None, 0, 0, 0);
            let of_totals = text.lines().filter(|line| line.contains("limit=\"plan:"));
            let whole = of_totals.filter(|line| line.ends_with(&format!(" {nth}")));
            assert_eq!(whole.count(), 2 * Kind::ALL.len());
        }
    }
}
