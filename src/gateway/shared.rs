//! What every worker of a gateway shares.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use http::HeaderValue;

use super::auth::Tokens;
use super::downstream::caps::Caps;
use super::downstream::tls::{Certificates, TlsError};
use super::load::Load;
use super::patience::Serving;
use super::reply::{self, Reply};
use super::shield::Shield;
use super::upstream::{UpstreamError, Upstreams};
use crate::admission::{Admission, Call, Outcome, Policy};
use crate::clock::Clock;
use crate::limit::{LimitId, Moment, Plan};
use crate::observe::admin::Receipts;
use crate::observe::metrics::Metrics;
use crate::observe::top::Top;
use crate::settings::Settings;
use crate::spec::Ruleset;
use crate::store::{AnyStore, Store as _, StoreError, StoreGauges};

/// Why a gateway cannot be put together.
#[derive(Debug, thiserror::Error)]
pub enum SharedError {
    /// The certificates of its listeners.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Its pools.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
}

/// One gateway: rules, counters, metrics.
#[derive(Debug)]
pub struct Shared {
    /// Process settings.
    pub settings: Settings,
    /// Compiled routes and limits.
    pub rules: Arc<Ruleset>,
    /// The spine.
    pub admission: Admission<AnyStore>,
    /// What of the settings the spine needs.
    pub policy: Policy,
    /// Metrics.
    pub metrics: Metrics,
    /// The clock.
    pub clock: Clock,
    /// Who hits which limit.
    pub top: Top,
    /// What others have charged and may give back.
    pub receipts: Receipts,
    /// Where admitted calls go.
    pub upstreams: Arc<Upstreams>,
    pub(super) shield: Shield,
    pub(super) caps: Arc<Caps>,
    /// Of the TLS listeners, if there are any.
    pub(super) certificates: Option<Certificates>,
    pub(super) tokens: Tokens,
    /// `RateLimit-Policy`, and the name in `RateLimit`, by limit.
    limit_fields: Vec<(HeaderValue, String)>,
    hsts: Option<HeaderValue>,
    pub(super) load: Load,
    draining: AtomicBool,
    pub(super) serving: Arc<Serving>,
    next_id: AtomicU64,
}

impl Shared {
    /// Puts a gateway together.
    ///
    /// # Errors
    /// When its certificates or its pools cannot be used.
    pub fn new(
        settings: Settings,
        rules: Arc<Ruleset>,
        policy: Policy,
        store: AnyStore,
        metrics: Metrics,
        clock: Clock,
        id_seed: u64,
    ) -> Result<Self, SharedError> {
        let limit_fields = rules
            .limits
            .iter()
            .map(|limit| {
                let policy = HeaderValue::try_from(reply::policy_field(limit))
                    .unwrap_or_else(|_| HeaderValue::from_static("\"limit\""));
                (policy, reply::sf_string(&limit.name))
            })
            .collect();
        let limits = rules.limits.len();
        let hsts = settings
            .https
            .hsts
            .and_then(|time| HeaderValue::try_from(format!("max-age={}", time.as_secs())).ok());
        let certificates = settings.tls.clone().map(Certificates::load).transpose()?;
        let upstreams = Upstreams::new(&settings, &rules, &metrics.upstreams, None)?;
        let gateway = Self {
            upstreams: Arc::new(upstreams),
            shield: Shield::new(&settings.shield),
            caps: Arc::new(Caps::new(
                settings.max_connections,
                settings.max_connections_per_ip,
            )),
            certificates,
            tokens: Tokens::new(settings.bad_token_memory, settings.unproven_share),
            settings,
            rules,
            admission: Admission::new(store),
            policy,
            metrics,
            clock,
            top: Top::new(limits),
            receipts: Receipts::default(),
            limit_fields,
            hsts,
            load: Load::default(),
            draining: AtomicBool::new(false),
            serving: Arc::default(),
            next_id: AtomicU64::new(id_seed),
        };
        gateway.note_expiry();
        Ok(gateway)
    }

    /// Connections of callers that are open.
    pub fn connections(&self) -> usize {
        self.caps.open()
    }

    /// Looks at the certificates' files again. Blocks while it reads them.
    pub fn reload_certificates(&self) -> Result<bool, TlsError> {
        let Some(certificates) = &self.certificates else {
            return Ok(false);
        };
        let changed = certificates.reload()?;
        if changed {
            self.note_expiry();
        }
        Ok(changed)
    }

    fn note_expiry(&self) {
        for (file, until) in self.certificates.iter().flat_map(Certificates::expiry) {
            self.metrics.certificate_expiry(&file, until);
        }
    }

    /// An answer as it stands on the wire, for a connection that ends with it.
    pub(super) fn whole(&self, reply: &Reply) -> Vec<u8> {
        reply.whole(self.settings.answers, self.clock.now().unix_us / 1000)
    }

    /// Whether decisions may wait for a store elsewhere.
    pub(super) fn is_store_shared(&self) -> bool {
        self.admission.store().shared().is_some()
    }

    /// Requests being handled.
    pub fn in_flight(&self) -> usize {
        self.load.here()
    }

    /// Those of them that wait for the upstream's answer.
    pub fn upstream_waiting(&self) -> usize {
        self.load.waiting()
    }

    /// Whether the gateway is on its way out.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// From now on `/ready` fails and connections are not kept.
    pub fn begin_drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Gives up all calls that still run: what they hold goes back, and their lines are written.
    pub fn cut_off(&self) {
        self.serving.cut_off();
    }

    /// The store's gauges.
    pub fn gauges(&self) -> StoreGauges {
        self.admission.store().gauges()
    }

    /// Reports a task done. Whether it held a slot.
    ///
    /// # Errors
    /// When the store cannot be asked.
    pub async fn finish_task(&self, app: &str, task: &str) -> Result<bool, StoreError> {
        let now = self.clock.now();
        self.admission
            .finish_task(&self.rules, app, task, now)
            .await
    }

    /// Drops idle counters, a part at a time.
    pub fn sweep(&self) {
        let now = self.clock.now();
        self.admission.store().sweep(now);
        for mut plan in self.receipts.expired(now) {
            self.admission.end_foreign(&mut plan, now);
        }
    }

    /// Forgets quiet addresses. Walks all of them: once a second is often enough.
    pub fn sweep_shield(&self) {
        self.shield.sweep(self.clock.now());
    }

    /// `RateLimit-Policy` of a limit, and its name as `RateLimit` spells it.
    pub(super) fn limit_fields(&self, id: LimitId) -> (&HeaderValue, &str) {
        let (policy, name) = &self.limit_fields[id.0 as usize];
        (policy, name)
    }

    /// `Strict-Transport-Security`.
    pub(super) fn hsts(&self) -> Option<&HeaderValue> {
        self.hsts.as_ref()
    }

    /// A request ID: 16 hex digits, unique in this process, not guessable in order.
    pub(super) fn new_id(&self) -> HeaderValue {
        // SplitMix64: a bijection, so that distinct numbers give distinct IDs.
        let mut z = self
            .next_id
            .fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^= z >> 31;
        let mut id = [0; 16];
        for (pair, byte) in id.chunks_exact_mut(2).zip(z.to_be_bytes()) {
            const DIGITS: &[u8; 16] = b"0123456789abcdef";
            pair.copy_from_slice(&[
                DIGITS[usize::from(byte >> 4)],
                DIGITS[usize::from(byte & 15)],
            ]);
        }
        HeaderValue::from_bytes(&id).unwrap_or_else(|_| HeaderValue::from_static(""))
    }

    /// Gives back what bought nothing. The refunds are counted.
    pub(super) fn settle(&self, call: &Call, plan: &mut Plan, outcome: Outcome<'_>, now: Moment) {
        for (limit, units) in self.admission.settle(&self.rules, call, plan, outcome, now) {
            self.metrics.refund(limit, units);
        }
    }
}
