//! Counters shared through Redis.
//!
//! One script (`script/`) decides a whole plan at one moment of the server's clock, with
//! the arithmetic of `limit::sliding`; requests that arrive together share its call. A script
//! that arrives too late does nothing, so that a call which no longer waits was never charged.

mod batch;
pub mod connect;
pub(super) mod decide;
mod fault;
mod health;
mod lease;
mod link;
mod name;
mod news;
mod own;
mod owners;
mod part;
mod remembered;
mod reply;
mod script;
mod time;
mod totals;
mod under_way;
mod watch;
mod wire;

use std::cell::RefCell;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use smallvec::SmallVec;
use tokio::sync::Notify;
use tokio::time::Instant;

use self::connect::Connector;
use self::decide::AtOnce;
use self::health::{Health, Peers};
use self::link::{Link, Terms};
use self::name::Name;
use self::own::Own;
use self::part::Part;
use self::remembered::Remembered;
use self::reply::Verdict;
use self::script::Scripts;
use self::time::StoreTime;
use self::under_way::UnderWay;
use self::wire::{Item, What};
use super::{Store, StoreError, StoreGauges};
use crate::limit::total::{Change, Total};
use crate::limit::{Charge, CounterKey, Decision, Moment, Plan, Taken};

pub use self::news::News;
pub use self::time::TimeSource;

/// Counters in Redis.
#[derive(Debug)]
pub struct RedisStore {
    terms: Arc<Terms>,
    time: TimeSource,
    own: Own,
    remembered: Remembered,
    peers: Peers,
    /// Wakes the watch before its time.
    wake: Arc<Notify>,
    slot_lease: Duration,
    /// How long a store that is new or back is only believed together with shares.
    seeding_us: u64,
    slots: AtomicU64,
    /// Whether units are taken in advance.
    leases: bool,
    /// Decisions that leases made.
    lease_hits: AtomicU64,
    /// Decisions that were made without the store.
    alone: AtomicU64,
    /// Number of this store in the process: links are kept by thread.
    number: u64,
    heard: news::Heard,
    /// Whether it gives no more signs of life.
    leaving: AtomicBool,
    /// When a part of the store was last found to be an older one; by its clock.
    older_said_us: AtomicU64,
}

/// What can be said of a shared store at a glance.
#[derive(Clone, Debug)]
pub struct SharedGauges {
    /// Whether it can be asked.
    pub is_up: bool,
    /// Times that it went out of use.
    pub times_down: u64,
    /// Commands sent.
    pub round_trips: u64,
    /// Decisions and givings back in them.
    pub items: u64,
    /// Decisions made by leases, without a question.
    pub lease_hits: u64,
    /// Decisions made without it, while it was out of use.
    pub alone: u64,
    /// IDs of the gateways that share it, this one among them.
    pub gateways: Arc<[Box<str>]>,
    /// This gateway's ID.
    pub gateway: Box<str>,
    /// Of which data each part of the store is: another one after it has lost all. `None`: not
    /// yet heard.
    pub epochs: Box<[Option<Arc<str>>]>,
}

static STORES: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// Each thread's links: a request is answered on the runtime it runs on.
    static LINKS: RefCell<Vec<(u64, Link)>> = const { RefCell::new(Vec::new()) };
}

impl RedisStore {
    /// A store over this connector. Connects when it is first asked. `gateway` names this
    /// process among all that share the store; `most` bounds what it remembers for an outage,
    /// in counters.
    #[must_use]
    pub fn new(connector: Connector, gateway: String, most: usize, time: TimeSource) -> Self {
        let options = connector.options();
        let is_cluster = connector.is_cluster();
        let wake = Arc::new(Notify::new());
        let url: Arc<str> = options.to_string().into();
        let out: Arc<AtomicUsize> = Arc::default();
        let tags = match is_cluster {
            true => name::part_tags(),
            false => vec![name::WHOLE.to_owned()],
        };
        let part = |(index, tag)| link::Part {
            index,
            tag,
            health: Health::new(wake.clone(), url.clone(), out.clone()),
            time: StoreTime::new(time),
        };
        Self {
            wake: wake.clone(),
            time,
            own: Own::new(most, options.slot_lease),
            remembered: Remembered::new(most),
            slot_lease: options.slot_lease,
            seeding_us: watch::seeding_us(options.timeout, connector.connect_timeout()),
            slots: AtomicU64::new(0),
            leases: options.leases,
            lease_hits: AtomicU64::new(0),
            alone: AtomicU64::new(0),
            number: STORES.fetch_add(1, Ordering::Relaxed),
            peers: Peers::new(&gateway, options.min_gateways),
            heard: news::Heard::default(),
            leaving: AtomicBool::new(false),
            older_said_us: AtomicU64::new(0),
            terms: Arc::new(Terms {
                scripts: Scripts::new(),
                parts: tags.into_iter().enumerate().map(part).collect(),
                is_cluster,
                gateway,
                prefix: options.prefix.clone(),
                timeout: options.timeout,
                moving: Arc::default(),
                topology: AtomicU64::new(0),
                round_trips: AtomicU64::new(0),
                items: AtomicU64::new(0),
                unsent: parking_lot::Mutex::default(),
                under_way: UnderWay::default(),
                connector,
            }),
        }
    }

    /// A name for a process that shares a store: nobody else has it.
    #[must_use]
    pub fn new_gateway_id() -> String {
        format!("{:016x}", RandomState::new().hash_one(std::process::id()))
    }

    /// Commands sent since the start, and the items in them.
    pub fn round_trips(&self) -> (u64, u64) {
        (
            self.terms.round_trips.load(Ordering::Relaxed),
            self.terms.items.load(Ordering::Relaxed),
        )
    }

    /// What can be said of it at a glance.
    pub fn shared_gauges(&self) -> SharedGauges {
        let (round_trips, items) = self.round_trips();
        SharedGauges {
            is_up: !self.is_any_open(),
            times_down: self.terms.times_opened(),
            round_trips,
            items,
            lease_hits: self.lease_hits.load(Ordering::Relaxed),
            alone: self.alone.load(Ordering::Relaxed),
            gateways: self.peers.gateways(),
            gateway: self.terms.gateway.as_str().into(),
            epochs: self.terms.parts.iter().map(|p| p.health.epoch()).collect(),
        }
    }

    fn is_any_open(&self) -> bool {
        self.terms.parts.iter().any(|part| part.health.is_open())
    }

    /// The part of the store that this plan is decided in: all of it, outside a cluster.
    fn part(&self, plan: &Plan) -> &link::Part {
        let charge = || plan.charges.first().map(|charge| Name::of(plan, charge));
        let total = || plan.totals.first().map(|c| Name::of_total(plan, c.key));
        let name = || charge().or_else(total);
        match self.terms.is_cluster {
            true => self.terms.part(name()),
            false => self.terms.part(None),
        }
    }

    /// This thread's link; `None` outside a runtime.
    fn link(&self) -> Option<Link> {
        tokio::runtime::Handle::try_current().ok()?;
        Some(LINKS.with_borrow_mut(|links| {
            links.retain(|(_, link)| !link.is_over());
            if let Some((_, link)) = links.iter().find(|(number, _)| *number == self.number) {
                return link.clone();
            }
            let link = Link::start(self.terms.clone());
            links.push((self.number, link.clone()));
            link
        }))
    }

    /// Hands in an item that nobody waits for: now, or when the store is back.
    fn tell_store(&self, item: Item, at_us: Option<u64>) {
        if !self.terms.is_cluster {
            return self.tell_part(item, at_us);
        }
        for item in item.by_owner() {
            self.tell_part(item, at_us);
        }
    }

    fn tell_part(&self, item: Item, at_us: Option<u64>) {
        let part = self.terms.part(item.name());
        let link = match part.health.is_open() {
            true => None,
            false => self.link(),
        };
        let item = Arc::new(item);
        let told = link.is_some_and(|link| link.tell(item.clone(), part, at_us));
        if !told {
            self.terms.keep(Arc::unwrap_or_clone(item));
        }
    }
}

impl RedisStore {
    /// Decides at once, if no question is needed. In a cluster that is not known yet.
    pub(super) fn begin(&self, plan: &mut Plan, now: Moment) -> AtOnce {
        match self.terms.is_cluster {
            true => AtOnce::Doubtful,
            false => self.decide_at_once(plan, now, self.terms.part(None)),
        }
    }

    /// Ends what was begun.
    pub(super) async fn finish(
        &self,
        plan: &mut Plan,
        now: Moment,
        begun: AtOnce,
    ) -> Result<Decision, StoreError> {
        // One deadline for all that a decision may ask.
        let deadline = Instant::now() + self.terms.timeout;
        if self.terms.is_cluster {
            for charge in &mut plan.charges {
                charge.taken = None;
            }
            return Box::pin(self.decide_by_owner(plan, now, deadline)).await;
        }
        let part = self.terms.part(None);
        self.decide_begun(plan, now, part, begun, deadline).await
    }
}

impl Store for RedisStore {
    async fn decide(&self, plan: &mut Plan, now: Moment) -> Result<Decision, StoreError> {
        match self.begin(plan, now) {
            AtOnce::Decided(decision) => decision,
            begun => self.finish(plan, now, begun).await,
        }
    }

    fn give_back(&self, plan: &mut Plan, now: Moment, which: &dyn Fn(&Charge) -> bool) {
        let mut back: SmallVec<[Part; 6]> = SmallVec::new();
        for index in 0..plan.charges.len() {
            if !which(&plan.charges[index]) {
                continue;
            }
            // Taken out: whoever comes next finds nothing to give back.
            let charge = plan.charges[index];
            if let Some(taken) = plan.charges[index].taken.take() {
                let name = Name::of(plan, &charge);
                let part = self.terms.part(Some(name));
                let is_up = !part.health.is_open();
                if self.own.give_back(name, &charge, taken, is_up, &part.time) {
                    back.push(Part::new(name, charge.span, charge.cost, taken.place()));
                }
            }
        }
        self.give_back_parts(&back, self.time.told_us(now));
    }

    fn hold_task(
        &self,
        plan: &mut Plan,
        task: &str,
        longest: Duration,
        now: Moment,
        which: &dyn Fn(&Charge) -> bool,
    ) {
        for index in 0..plan.charges.len() {
            let charge = plan.charges[index];
            let Some(Taken::Slot(slot)) = charge.taken else {
                continue;
            };
            if !which(&charge) {
                continue;
            }
            // The slot is the task's now: the end of the call does not free it.
            plan.charges[index].taken = None;
            let name = Name::of(plan, &charge);
            let longest_us = u64::try_from(longest.as_micros()).unwrap_or(u64::MAX);
            let part = self.terms.part(Some(name));
            let at = part.time.framed(part.time.expected_us(now));
            let until_us = at.mono_us.saturating_add(longest_us);
            self.own.hold(name, Taken::Slot(slot), task, until_us);
            let hold = What::Hold {
                task: wire::task(task),
            };
            let item = Item::of(hold, &[Part::slot(name, slot, longest)]);
            self.tell_store(item, self.time.told_us(now));
        }
    }

    async fn finish_task(
        &self,
        app: CounterKey,
        key: CounterKey,
        task: &str,
        now: Moment,
    ) -> Result<bool, StoreError> {
        let name = Name::plain(app, key);
        let part = self.terms.part(Some(name));
        if part.health.is_open() {
            return Err(StoreError::Unavailable);
        }
        let link = self.link().ok_or(StoreError::Unavailable)?;
        let finish = What::Finish {
            task: wire::task(task),
        };
        let item = Arc::new(Item::of(finish, &[Part::slot(name, 0, Duration::ZERO)]));
        let at_us = self.time.told_us(now);
        let receiver = link.ask(item, part, at_us).ok_or(StoreError::Unavailable)?;
        let answer = match tokio::time::timeout(self.terms.timeout, receiver).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) | Err(_) => return Err(StoreError::Unavailable),
        };
        let Some(Verdict::Finished(held)) = answer.verdict else {
            return Err(StoreError::Unavailable);
        };
        self.own
            .finish(name, key, task, part.time.framed(answer.store_us));
        Ok(held)
    }

    async fn reset(&self, plan: &Plan, now: Moment) -> Result<(), StoreError> {
        self.reset_for_all(plan, now).await
    }

    fn tell_totals(&self, app: CounterKey, changes: &[(CounterKey, Change)], now: Moment) {
        self.tell_changes(app, changes, now);
    }

    async fn change_totals(
        &self,
        app: CounterKey,
        changes: &[(CounterKey, Change)],
        now: Moment,
    ) -> Result<Vec<Total>, StoreError> {
        self.change_owned(app, changes, now).await
    }

    fn sweep(&self, now: Moment) {
        // In a cluster clocks differ a little, and what is swept is idle for long.
        let time = &self.terms.parts[0].time;
        self.own.sweep(time.framed(time.expected_us(now)));
    }

    fn gauges(&self) -> StoreGauges {
        self.own.gauges()
    }
}
