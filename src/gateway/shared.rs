//! What the calls of a gateway share: what they go by, which a reload replaces as a whole, over
//! what lasts. A call holds the one that it began with, and so it ends under the same rules.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::HeaderValue;
use parking_lot::Mutex;

use super::auth::Tokens;
use super::cut::Serving;
use super::downstream::caps::Caps;
use super::downstream::tls::{Certificates, TlsError};
use super::drain::Drain;
use super::field;
use super::load::Load;
use super::shield::Shield;
use super::upstream::{UpstreamError, Upstreams};
use crate::admission::{Admission, Call, Outcome, Policy};
use crate::clock::Clock;
use crate::limit::{CounterKey, LimitId, Moment, Plan, Scope, Unit};
use crate::observe::admin::Receipts;
use crate::observe::metrics::{Metrics, RuleMetrics};
use crate::observe::reloads::Reloads;
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

/// How long a call that takes a slot may run when its limit has gone.
const LONGEST_CALL: Duration = Duration::from_secs(3600);

/// What lasts as long as the process: counters, metrics, connections.
#[derive(Debug)]
pub struct Lasting {
    /// The spine.
    pub admission: Admission<AnyStore>,
    /// Metrics.
    pub metrics: Metrics,
    /// The clock.
    pub clock: Clock,
    /// What others have charged and may give back.
    pub receipts: Receipts,
    /// What has become of reloads.
    pub reloads: Reloads,
    pub(super) caps: Arc<Caps>,
    pub(super) tokens: Tokens,
    pub(super) load: Load,
    pub(super) serving: Arc<Serving>,
    /// The way out.
    pub drain: Drain,
    next_id: AtomicU64,
    former_slots: Mutex<FormerSlots>,
}

/// Salts of limits on tasks that have gone, and until when a task may hold a slot of theirs, µs.
type FormerSlots = Vec<(CounterKey, u64)>;

impl Lasting {
    /// What a gateway with these settings begins with.
    #[must_use]
    pub fn new(
        settings: &Settings,
        store: AnyStore,
        metrics: Metrics,
        clock: Clock,
        id_seed: u64,
    ) -> Self {
        Self {
            admission: Admission::new(store),
            reloads: Reloads::new(metrics.reloads.clone()),
            metrics,
            clock,
            receipts: Receipts::default(),
            caps: Arc::new(Caps::new(
                settings.max_connections,
                settings.max_connections_per_ip,
            )),
            tokens: Tokens::default(),
            load: Load::default(),
            serving: Arc::default(),
            drain: Drain::default(),
            next_id: AtomicU64::new(id_seed),
            former_slots: Mutex::default(),
        }
    }
}

/// What calls go by, over what lasts.
#[derive(Debug)]
pub struct Shared {
    /// Process settings.
    pub settings: Settings,
    /// Compiled routes and limits.
    pub rules: Arc<Ruleset>,
    /// What of the settings the spine needs.
    pub policy: Policy,
    /// Metrics of these rules.
    pub counts: Arc<RuleMetrics>,
    /// Who hits which limit.
    pub top: Top,
    /// Where admitted calls go.
    pub upstreams: Arc<Upstreams>,
    pub(super) shield: Arc<Shield>,
    /// Of the TLS listeners, if there are any.
    pub(super) certificates: Option<Arc<Certificates>>,
    /// `RateLimit-Policy`, and the name in `RateLimit`, by limit.
    limit_fields: Vec<(HeaderValue, String)>,
    hsts: Option<HeaderValue>,
    lasting: Arc<Lasting>,
}

/// A call asks one thing for all that it shares with others.
impl Deref for Shared {
    type Target = Lasting;

    fn deref(&self) -> &Lasting {
        &self.lasting
    }
}

impl Shared {
    /// Puts together what calls go by from now on. What of `previous` is still true is taken
    /// over: health of upstreams, who hits which limit, tickets of TLS.
    ///
    /// # Errors
    /// When its certificates or its pools cannot be used: nothing has changed then.
    pub fn new(
        settings: Settings,
        rules: Arc<Ruleset>,
        policy: Policy,
        lasting: Arc<Lasting>,
        previous: Option<&Self>,
    ) -> Result<Self, SharedError> {
        let limit_fields = rules
            .limits
            .iter()
            .map(|limit| {
                let policy = HeaderValue::try_from(field::policy_field(limit))
                    .unwrap_or_else(|_| HeaderValue::from_static("\"limit\""));
                (policy, field::sf_string(&limit.name))
            })
            .collect();
        let hsts = settings
            .https
            .hsts
            .and_then(|time| HeaderValue::try_from(format!("max-age={}", time.as_secs())).ok());
        let known = previous.and_then(|previous| previous.certificates.as_deref());
        let certificates = settings
            .tls
            .clone()
            .map(|tls| Certificates::load(tls, known).map(Arc::new))
            .transpose()?;
        // Last: from here on nothing fails.
        let upstreams = Upstreams::new(
            &settings,
            &rules,
            &lasting.metrics.upstreams,
            previous.map(|previous| &*previous.upstreams),
        )?;
        let shield = match previous.filter(|p| p.settings.shield == settings.shield) {
            Some(previous) => previous.shield.clone(),
            None => Arc::new(Shield::new(&settings.shield)),
        };
        let top = match previous {
            Some(previous) => Top::after(&previous.top, &previous.rules, &rules),
            None => Top::new(rules.limits.len()),
        };
        Ok(Self {
            counts: Arc::new(lasting.metrics.of(&rules)),
            upstreams: Arc::new(upstreams),
            shield,
            certificates,
            top,
            settings,
            rules,
            policy,
            limit_fields,
            hsts,
            lasting,
        })
    }

    /// What outlives a reload.
    #[must_use]
    pub fn lasting(&self) -> &Arc<Lasting> {
        &self.lasting
    }

    /// Calls go by this from now on, instead of by `previous`.
    pub(super) fn begin(&self, previous: Option<&Self>) {
        self.caps.set(
            self.settings.max_connections,
            self.settings.max_connections_per_ip,
        );
        self.note_expiry();
        let Some(previous) = previous else { return };
        let files = |shared: &Self| {
            let certificates = shared.certificates.iter();
            let expiry = certificates.flat_map(|certificates| certificates.expiry());
            expiry.map(|(file, _)| file).collect::<Vec<_>>()
        };
        let kept = files(self);
        for gone in files(previous).iter().filter(|file| !kept.contains(file)) {
            self.metrics.certificate_gone(gone);
        }
        self.keep_former_slots(&previous.rules);
        previous.upstreams.retire(&self.upstreams);
    }

    /// Tasks that run on may be reported done though their limit has gone: it may come back.
    fn keep_former_slots(&self, previous: &Ruleset) {
        let now_us = self.clock.now().mono_us;
        let slots = |rules: &Ruleset| {
            let limits = rules.limits.iter();
            let slots = limits.filter(|l| l.unit == Unit::Tasks && l.scope == Scope::App);
            slots
                .map(|limit| (limit.salt, limit.max_hold))
                .collect::<Vec<_>>()
        };
        let current = slots(&self.rules);
        let mut former = self.former_slots.lock();
        former.retain(|(salt, until_us)| {
            *until_us > now_us && current.iter().all(|(other, _)| other != salt)
        });
        for (salt, longest) in slots(previous) {
            let is_known = current.iter().any(|(other, _)| *other == salt)
                || former.iter().any(|(other, _)| *other == salt);
            if !is_known {
                // And the call that began it may run on for a while.
                let longest = longest.saturating_add(LONGEST_CALL);
                let longest_us = u64::try_from(longest.as_micros()).unwrap_or(u64::MAX);
                former.push((salt, now_us.saturating_add(longest_us)));
            }
        }
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
        let certificates = self.certificates.iter();
        for (file, until) in certificates.flat_map(|certificates| certificates.expiry()) {
            self.metrics.certificate_expiry(&file, until);
        }
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
        self.drain.is_leaving()
    }

    /// For how long a total is believed, microseconds.
    pub fn plan_max_age_us(&self) -> u64 {
        u64::try_from(self.settings.plan_max_age.as_micros()).unwrap_or(u64::MAX)
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
        let former: Vec<_> = self
            .former_slots
            .lock()
            .iter()
            .map(|(salt, _)| *salt)
            .collect();
        self.admission
            .finish_task(&self.rules, &former, app, task, now)
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
            self.counts.refund(limit, units);
        }
    }
}
