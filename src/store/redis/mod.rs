//! Counters shared through Redis.
//!
//! One script (`counters.lua`) decides a whole plan at one moment of the server's clock, with
//! the arithmetic of `limit::sliding`; requests that arrive together share its call. A script
//! that arrives too late does nothing, so that a call which no longer waits was never charged.

pub mod connect;
mod health;
mod lease;
mod link;
mod news;
mod own;
mod time;
mod watch;
mod wire;

use std::cell::RefCell;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use smallvec::SmallVec;
use tokio::sync::{Notify, oneshot};

use self::connect::Connector;
use self::health::{Health, Peers};
use self::link::{Link, Terms};
use self::own::{Leased, Own};
use self::time::{JUMP_US, StoreTime};
use self::wire::{Answer, Item, Name, Part, Verdict, What};
use super::{Store, StoreError, StoreGauges};
use crate::limit::plan::{reported_bit, smallest_share};
use crate::limit::slots::TASK_WAIT;
use crate::limit::{
    Charge, CounterKey, Decision, Moment, OnStoreFailure, Plan, Room, Scope, Span, Taken,
};

pub use self::news::News;
pub use self::time::TimeSource;

/// Counters in Redis.
#[derive(Debug)]
pub struct RedisStore {
    terms: Arc<Terms>,
    time: TimeSource,
    own: Own,
    peers: Peers,
    /// Wakes the watch before its time.
    wake: Arc<Notify>,
    slot_lease: Duration,
    slots: AtomicU64,
    /// In a cluster, a tag for each part of it.
    tags: Vec<String>,
    /// Whether units are taken in advance.
    leases: bool,
    /// Decisions that leases made.
    lease_hits: AtomicU64,
    /// Decisions that were made without the store.
    alone: AtomicU64,
    /// Number of this store in the process: links are kept by thread.
    number: u64,
    heard: news::Heard,
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
        let part = |_| link::Part {
            health: Health::new(wake.clone()),
            time: StoreTime::new(time),
        };
        Self {
            wake: wake.clone(),
            time,
            own: Own::new(most, options.slot_lease),
            slot_lease: options.slot_lease,
            slots: AtomicU64::new(0),
            tags: match is_cluster {
                true => wire::part_tags(),
                false => Vec::new(),
            },
            leases: options.leases,
            lease_hits: AtomicU64::new(0),
            alone: AtomicU64::new(0),
            number: STORES.fetch_add(1, Ordering::Relaxed),
            peers: Peers::new(&gateway, options.min_gateways),
            heard: news::Heard::default(),
            terms: Arc::new(Terms {
                sha: Terms::sha(),
                parts: (0..if is_cluster { wire::PARTS } else { 1 })
                    .map(part)
                    .collect(),
                is_cluster,
                gateway,
                prefix: options.prefix.clone(),
                timeout: options.timeout,
                round_trips: AtomicU64::new(0),
                items: AtomicU64::new(0),
                unsent: parking_lot::Mutex::default(),
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
            times_down: self
                .terms
                .parts
                .iter()
                .map(|p| p.health.times_opened())
                .sum(),
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
        let name = || plan.charges.first().map(|charge| Name::of(plan, charge));
        match self.terms.is_cluster {
            true => self.terms.part(name()),
            false => self.terms.part(None),
        }
    }

    fn new_epoch(&self) -> String {
        Self::new_gateway_id()
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
        let link = match self.terms.part(item.name()).health.is_open() {
            true => None,
            false => self.link(),
        };
        let told = link.is_some_and(|link| link.tell(item.clone(), at_us));
        if !told {
            self.terms.keep(item);
        }
    }

    fn next_slots(&self, plan: &Plan) -> u64 {
        let count = u64::try_from(plan.charges.len()).unwrap_or(0);
        self.slots.fetch_add(count, Ordering::Relaxed)
    }

    /// Between which times of the store a script that is sent now may run.
    fn bounds(&self, time: &StoreTime, now: Moment) -> What {
        let Some(expected_us) = time.known(now) else {
            return What::Decide {
                earliest_us: 0,
                latest_us: 1 << 53,
            };
        };
        let timeout_us = u64::try_from(self.terms.timeout.as_micros()).unwrap_or(u64::MAX);
        What::Decide {
            earliest_us: expected_us.saturating_sub(JUMP_US),
            latest_us: expected_us.saturating_add(timeout_us),
        }
    }

    /// Whether this part of the store alone may not be believed for this charge: it is still
    /// being told what it lost, or its clock jumped less than a window ago.
    fn is_doubtful(part: &link::Part, charge: &Charge, now: Moment) -> bool {
        let window_us = match charge.span {
            Span::Sliding { window_us } => window_us,
            // Keyed by date.
            Span::Day { .. } => 0,
            // Until their owners have renewed them.
            Span::Running => watch::SEEDING_US,
        };
        let has_jumped = |at_us: u64| now.mono_us < at_us.saturating_add(window_us);
        part.health.is_seeding(now.mono_us) || part.time.jumped_at_us().is_some_and(has_jumped)
    }

    /// Asks the store.
    async fn ask(
        &self,
        plan: &mut Plan,
        now: Moment,
        wanted: &[u32],
    ) -> Result<Decision, StoreError> {
        let link = self.link().ok_or(StoreError::Unavailable)?;
        let time = &self.part(plan).time;
        // A plan is asked a second time at most: when it is another day there than here.
        for _ in 0..2 {
            let slot = self.next_slots(plan);
            let item = Item::decide(plan, wanted, self.bounds(time, now), slot, self.slot_lease);
            let receiver = link
                .ask(item.clone(), self.time.told_us(now))
                .ok_or(StoreError::Unavailable)?;
            let mut waiting = Waiting {
                link: &link,
                receiver,
                item,
                at_us: self.time.told_us(now),
            };
            let answer = waiting.answer(self.terms.timeout).await?;
            drop(waiting);
            time.note(now.mono_us, answer.store_us);
            let (decision, readings) = match answer.verdict {
                Some(Verdict::Admitted(readings)) if readings.len() == plan.charges.len() => {
                    let decision = wire::admitted(plan, &readings, answer.store_us, slot);
                    (Some(decision), readings)
                }
                Some(Verdict::Denied(readings)) if readings.len() == plan.charges.len() => {
                    (wire::denied(plan, &readings, answer.store_us), readings)
                }
                Some(Verdict::AnotherDay) => {
                    shift_days(plan, answer.store_us);
                    continue;
                }
                _ => return Err(StoreError::Unavailable),
            };
            let decision = decision.ok_or(StoreError::Unavailable)?;
            let is_admitted = matches!(decision, Decision::Admit { .. });
            let times = (now.mono_us, answer.store_us);
            let at = time.framed(answer.store_us);
            self.own.note(plan, &readings, is_admitted, times, at);
            return Ok(decision);
        }
        Err(StoreError::Unavailable)
    }

    /// Decides by leases, or asks.
    async fn decide_trusting(&self, plan: &mut Plan, now: Moment) -> Result<Decision, StoreError> {
        if !self.leases {
            return self.ask(plan, now, &[]).await;
        }
        let time = &self.part(plan).time;
        let at = time.framed(time.expected_us(now));
        match self.own.decide_by_leases(plan, now.mono_us, at) {
            Leased::Decided(decision) => {
                self.lease_hits.fetch_add(1, Ordering::Relaxed);
                Ok(decision)
            }
            Leased::Ask { wanted, over } => {
                // In the same command, as a rule.
                self.give_back_leases(&over, self.time.told_us(now));
                self.ask(plan, now, &wanted).await
            }
        }
    }

    /// Gives back units that were leased and not used.
    fn give_back_leases(&self, over: &[Part], at_us: Option<u64>) {
        if !over.is_empty() {
            self.tell_store(Item::of(What::GiveBack, over), at_us);
        }
    }

    /// Decides by each limit's `on_store_failure`.
    fn decide_alone(&self, plan: &mut Plan, now: Moment) -> Result<Decision, StoreError> {
        self.alone.fetch_add(1, Ordering::Relaxed);
        match denies_alone(plan) {
            true => Err(StoreError::Unavailable),
            false => Ok(self.decide_by_share(plan, now)),
        }
    }

    /// Denies a slot after a jump of the store's clock, until the slots that it ended have been
    /// renewed: others may have more of them than their share.
    fn hold_back(&self, plan: &Plan, now: Moment) -> Option<Decision> {
        let jumped_us = self.part(plan).time.jumped_at_us()?;
        let is_over = now.mono_us >= jumped_us.saturating_add(watch::SEEDING_US);
        if is_over || self.peers.gateways().len() <= 1 {
            return None;
        }
        let is_slot = |c: &Charge| {
            let is_asked = c.cost > 0 && c.span == Span::Running && !c.report;
            is_asked && c.on_store_failure != OnStoreFailure::Allow
        };
        Some(Decision::Deny {
            charge: plan.charges.iter().position(is_slot)?,
            left: 0,
            retry_after: Some(TASK_WAIT),
        })
    }

    fn decide_by_share(&self, plan: &mut Plan, now: Moment) -> Decision {
        if let Some(denied) = self.hold_back(plan, now) {
            return denied;
        }
        let time = &self.part(plan).time;
        let store_us = time.expected_us(now);
        shift_days(plan, store_us);
        let slot = self.next_slots(plan);
        let share = |name: &Name, quota| self.peers.share(name, quota);
        self.own
            .decide(plan, share, slot, time.framed(store_us), time)
    }

    /// Decides by share, where that is in doubt, and by the store, and admits what both admit.
    async fn decide_doubtful(&self, plan: &mut Plan, now: Moment) -> Result<Decision, StoreError> {
        let mut by_share = plan.clone();
        for charge in &mut by_share.charges {
            if !Self::is_doubtful(self.part(plan), charge, now) {
                charge.on_store_failure = OnStoreFailure::Allow;
            }
        }
        if let denied @ Decision::Deny { .. } = self.decide_by_share(&mut by_share, now) {
            return Ok(denied);
        }
        let asked = self.ask(plan, now, &[]).await;
        // Either the store knows of these units now, or they are taken again.
        self.give_back(&mut by_share, now, &|_| true);
        match asked {
            Ok(decision) => Ok(decision),
            Err(_) => self.decide_alone(plan, now),
        }
    }
}

impl RedisStore {
    /// Decides a plan whose counters are all in one part of the store.
    async fn decide_in_part(&self, plan: &mut Plan, now: Moment) -> Result<Decision, StoreError> {
        let part = self.part(plan);
        if part.health.is_open() {
            return self.decide_alone(plan, now);
        }
        let is_doubtful = |charge: &Charge| Self::is_doubtful(part, charge, now);
        if plan.charges.iter().any(is_doubtful) {
            return self.decide_doubtful(plan, now).await;
        }
        match self.decide_trusting(plan, now).await {
            Ok(decision) => Ok(decision),
            Err(_) => self.decide_alone(plan, now),
        }
    }

    /// Decides a plan by owner of its counters, which may be on different nodes: an address
    /// first, an app last. What was taken before a denial or a failure is given back.
    async fn decide_by_owner(&self, plan: &mut Plan, now: Moment) -> Result<Decision, StoreError> {
        let mut all = WholePlan::default();
        for indices in owners(plan) {
            let mut part = Plan {
                charges: indices.iter().map(|index| plan.charges[*index]).collect(),
                ..*plan
            };
            // Dropped half-way, this call has taken nothing.
            let before = Reserved {
                store: self,
                plan,
                now,
                is_kept: false,
            };
            let decision = self.decide_in_part(&mut part, now).await;
            for (index, charge) in indices.iter().zip(&part.charges) {
                before.plan.charges[*index] = *charge;
            }
            match decision? {
                Decision::Deny {
                    charge,
                    left,
                    retry_after,
                } => {
                    return Ok(Decision::Deny {
                        charge: indices[charge],
                        left,
                        retry_after,
                    });
                }
                Decision::Admit { nearest, reported } => {
                    all.add(&indices, nearest, reported);
                    before.keep();
                }
            }
        }
        Ok(all.decision(plan))
    }
}

/// The charges of each owner of counters, by their places in the plan: addresses first.
fn owners(plan: &Plan) -> SmallVec<[SmallVec<[usize; 6]>; 2]> {
    let mut owners: SmallVec<[(u64, SmallVec<[usize; 6]>); 2]> = SmallVec::new();
    let is_address = |index: &usize| plan.charges[*index].scope == Scope::Ip;
    let places = 0..plan.charges.len();
    let addresses_first = places
        .clone()
        .filter(is_address)
        .chain(places.filter(|index| !is_address(index)));
    for index in addresses_first {
        let tag = Name::of(plan, &plan.charges[index]).tag();
        match owners.iter_mut().find(|(other, _)| *other == tag) {
            Some((_, indices)) => indices.push(index),
            None => owners.push((tag, SmallVec::from_slice(&[index]))),
        }
    }
    owners.into_iter().map(|(_, indices)| indices).collect()
}

/// What the parts of a plan make together.
#[derive(Default)]
struct WholePlan {
    nearest: SmallVec<[Room; 2]>,
    reported: u64,
}

impl WholePlan {
    fn add(&mut self, indices: &[usize], nearest: Option<Room>, reported: u64) {
        self.nearest.extend(nearest.map(|room| Room {
            charge: indices[room.charge],
            ..room
        }));
        for (bit, index) in indices.iter().enumerate() {
            if reported & reported_bit(bit) != 0 {
                self.reported |= reported_bit(*index);
            }
        }
    }

    fn decision(&self, plan: &Plan) -> Decision {
        let rooms = self.nearest.iter().map(|room| (room.charge, room.left));
        let nearest = smallest_share(&plan.charges, rooms);
        Decision::Admit {
            nearest: nearest
                .and_then(|(charge, _)| self.nearest.iter().find(|room| room.charge == charge))
                .copied(),
            reported: self.reported,
        }
    }
}

/// Charges that were taken for a plan that is not decided yet. Gives them back when dropped.
struct Reserved<'a> {
    store: &'a RedisStore,
    plan: &'a mut Plan,
    now: Moment,
    is_kept: bool,
}

impl Reserved<'_> {
    fn keep(mut self) {
        self.is_kept = true;
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        if !self.is_kept {
            self.store.give_back(self.plan, self.now, &|_| true);
        }
    }
}

impl Store for RedisStore {
    async fn decide(&self, plan: &mut Plan, now: Moment) -> Result<Decision, StoreError> {
        if self.terms.is_cluster {
            for charge in &mut plan.charges {
                charge.taken = None;
            }
            return self.decide_by_owner(plan, now).await;
        }
        self.decide_in_part(plan, now).await
    }

    fn give_back(&self, plan: &mut Plan, now: Moment, which: &dyn Fn(&Charge) -> bool) {
        let mut back = Plan {
            charges: smallvec::SmallVec::new(),
            ..*plan
        };
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
                    back.charges.push(charge);
                }
            }
        }
        if let Some(item) = Item::give_back(&mut back, &|_| true) {
            self.tell_store(item, self.time.told_us(now));
        }
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
        let item = Item::of(finish, &[Part::slot(name, 0, Duration::ZERO)]);
        let at_us = self.time.told_us(now);
        let receiver = link.ask(item, at_us).ok_or(StoreError::Unavailable)?;
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

    fn sweep(&self, now: Moment) {
        // In a cluster clocks differ a little, and what is swept is idle for long.
        let time = &self.terms.parts[0].time;
        self.own.sweep(time.framed(time.expected_us(now)));
    }

    fn gauges(&self) -> StoreGauges {
        self.own.gauges()
    }
}

/// Whether a limit of this plan admits nothing without the store.
fn denies_alone(plan: &Plan) -> bool {
    let denies = |c: &Charge| !c.report && c.on_store_failure == OnStoreFailure::Deny;
    plan.charges.iter().any(denies)
}

/// Moves the days of a plan to the store's.
fn shift_days(plan: &mut Plan, store_us: u64) {
    for charge in &mut plan.charges {
        if let Span::Day { start_us, end_us } = &mut charge.span {
            let length_us = end_us.saturating_sub(*start_us);
            if store_us >= *end_us {
                (*start_us, *end_us) = (*end_us, end_us.saturating_add(length_us));
            } else if store_us < *start_us {
                (*start_us, *end_us) = (start_us.saturating_sub(length_us), *start_us);
            }
        }
    }
}

/// A decision that is waited for. What it admits after nobody waits is given back: by the link
/// if the answer finds nobody, here if it has come and was not heard.
struct Waiting<'s> {
    link: &'s Link,
    receiver: oneshot::Receiver<Answer>,
    item: Item,
    at_us: Option<u64>,
}

impl Waiting<'_> {
    async fn answer(&mut self, timeout: Duration) -> Result<Answer, StoreError> {
        match tokio::time::timeout(timeout, &mut self.receiver).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) | Err(_) => Err(StoreError::Unavailable),
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.receiver.close();
        if let Ok(answer) = self.receiver.try_recv()
            && let Some(item) = self.item.undo(&answer)
        {
            self.link.tell(item, self.at_us);
        }
    }
}
