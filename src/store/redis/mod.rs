//! Counters shared through Redis.
//!
//! One script (`counters.lua`) decides a whole plan at one moment of the server's clock, with
//! the arithmetic of `limit::sliding`; requests that arrive together share its call. A script
//! that arrives too late does nothing, so that a call which no longer waits was never charged.

pub mod connect;
mod health;
mod link;
mod news;
mod own;
#[cfg(test)]
mod tests;
mod time;
mod watch;
mod wire;

use std::cell::RefCell;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::oneshot;

use self::connect::Connector;
use self::health::Health;
use self::link::{Link, Terms};
use self::own::Own;
use self::time::{JUMP_US, StoreTime};
use self::wire::{Answer, Item, Name, Part, Reading, Verdict, What};
use super::{Store, StoreError, StoreGauges};
use crate::limit::{Charge, CounterKey, Decision, Moment, OnStoreFailure, Plan, Span, Taken};

pub use self::news::News;
pub use self::time::TimeSource;

/// Counters in Redis.
#[derive(Debug)]
pub struct RedisStore {
    terms: Arc<Terms>,
    time: StoreTime,
    own: Own,
    slot_lease: Duration,
    slots: AtomicU64,
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
    /// Decisions made without it.
    pub alone: u64,
    /// IDs of the gateways that share it, this one among them.
    pub gateways: Arc<[Box<str>]>,
    /// This gateway's ID.
    pub gateway: Box<str>,
    /// Of which data the store is: another one after it has lost all. `None`: not yet heard.
    pub epoch: Option<Arc<str>>,
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
        Self {
            time: StoreTime::new(time),
            own: Own::new(most, options.slot_lease),
            slot_lease: options.slot_lease,
            slots: AtomicU64::new(0),
            alone: AtomicU64::new(0),
            number: STORES.fetch_add(1, Ordering::Relaxed),
            heard: news::Heard::default(),
            terms: Arc::new(Terms {
                sha: Terms::sha(),
                health: Health::new(&gateway, options.min_gateways),
                gateway,
                prefix: options.prefix.clone(),
                timeout: options.timeout,
                round_trips: AtomicU64::new(0),
                items: AtomicU64::new(0),
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
            is_up: !self.health().is_open(),
            times_down: self.health().times_opened(),
            round_trips,
            items,
            alone: self.alone.load(Ordering::Relaxed),
            gateways: self.health().gateways(),
            gateway: self.terms.gateway.as_str().into(),
            epoch: self.health().epoch(),
        }
    }

    fn health(&self) -> &Health {
        &self.terms.health
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

    /// Hands in an item that nobody waits for. Whether it will be sent.
    fn tell_store(&self, item: Item, now: Moment) -> bool {
        !self.health().is_open()
            && self
                .link()
                .is_some_and(|link| link.tell(item, self.time.told_us(now)))
    }

    /// A time of the store by the clock of this gateway's own counters.
    fn framed(&self, store_us: u64) -> Moment {
        Moment {
            mono_us: self.time.framed_us(store_us),
            unix_us: store_us,
        }
    }

    fn next_slots(&self, plan: &Plan) -> u64 {
        let count = u64::try_from(plan.charges.len()).unwrap_or(0);
        self.slots.fetch_add(count, Ordering::Relaxed)
    }

    /// Between which times of the store a script that is sent now may run.
    fn bounds(&self, now: Moment) -> What {
        let Some(expected_us) = self.time.known(now) else {
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

    /// Whether the store alone may not be believed for this plan: it is still being told what it
    /// lost, or its clock jumped less than a window ago.
    fn is_doubtful(&self, plan: &Plan, now: Moment) -> bool {
        let jumped = || {
            let at_us = self.time.jumped_at_us()?;
            let windows = plan.charges.iter().map(|charge| match charge.span {
                Span::Sliding { window_us } => window_us,
                Span::Day { .. } | Span::Running => 0,
            });
            let longest_us = windows.max().unwrap_or(0);
            Some(now.mono_us < at_us.saturating_add(longest_us))
        };
        self.health().is_seeding(self.time.expected_us(now)) || jumped().unwrap_or(false)
    }

    /// Asks the store.
    async fn ask(&self, plan: &mut Plan, now: Moment) -> Result<Decision, StoreError> {
        let link = self.link().ok_or(StoreError::Unavailable)?;
        // A plan is asked a second time at most: when it is another day there than here.
        for _ in 0..2 {
            let slot = self.next_slots(plan);
            let item = Item::decide(plan, self.bounds(now), slot, self.slot_lease);
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
            self.time.note(now.mono_us, answer.store_us);
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
            self.heard(plan, &readings, answer.store_us);
            return decision.ok_or(StoreError::Unavailable);
        }
        Err(StoreError::Unavailable)
    }

    /// Remembers what the store said and what was taken.
    fn heard(&self, plan: &Plan, readings: &[Reading], store_us: u64) {
        self.own.note(plan, readings, self.framed(store_us));
    }

    /// Decides by each limit's `on_store_failure`.
    fn decide_alone(&self, plan: &mut Plan, now: Moment) -> Result<Decision, StoreError> {
        self.alone.fetch_add(1, Ordering::Relaxed);
        let denies = |c: &Charge| !c.report && c.on_store_failure == OnStoreFailure::Deny;
        if plan.charges.iter().any(denies) {
            return Err(StoreError::Unavailable);
        }
        Ok(self.decide_by_share(plan, now))
    }

    fn decide_by_share(&self, plan: &mut Plan, now: Moment) -> Decision {
        let store_us = self.time.expected_us(now);
        shift_days(plan, store_us);
        let slot = self.next_slots(plan);
        let share = |name: &Name, quota| self.health().share(name, quota);
        self.own
            .decide(plan, share, slot, self.framed(store_us), &self.time)
    }

    /// Decides by share and by the store, and admits what both admit.
    async fn decide_doubtful(&self, plan: &mut Plan, now: Moment) -> Result<Decision, StoreError> {
        let by_share = self.decide_by_share(plan, now);
        if let Decision::Deny { .. } = by_share {
            return Ok(by_share);
        }
        let mut asked = plan.clone();
        match self.ask(&mut asked, now).await {
            Ok(decision) => {
                // The store knows of these units now, and so they are not owed.
                self.forget(plan);
                *plan = asked;
                Ok(decision)
            }
            Err(_) => Ok(by_share),
        }
    }

    /// Takes back what was decided by share.
    fn forget(&self, plan: &Plan) {
        for charge in &plan.charges {
            if let Some(taken) = charge.taken {
                let name = Name::of(plan, charge);
                self.own.give_back(name, charge, taken, true, &self.time);
            }
        }
    }
}

impl Store for RedisStore {
    async fn decide(&self, plan: &mut Plan, now: Moment) -> Result<Decision, StoreError> {
        if self.health().is_open() {
            return self.decide_alone(plan, now);
        }
        if self.is_doubtful(plan, now) {
            return self.decide_doubtful(plan, now).await;
        }
        match self.ask(plan, now).await {
            Ok(decision) => Ok(decision),
            Err(_) => self.decide_alone(plan, now),
        }
    }

    fn give_back(&self, plan: &mut Plan, now: Moment, which: &dyn Fn(&Charge) -> bool) {
        let reachable = !self.health().is_open();
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
                if self
                    .own
                    .give_back(name, &charge, taken, reachable, &self.time)
                {
                    back.charges.push(charge);
                }
            }
        }
        if let Some(item) = Item::give_back(&mut back, &|_| true)
            && !self.tell_store(item, now)
        {
            tracing::debug!("could not give back: the units count until their window is over");
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
            let at = self.framed(self.time.expected_us(now));
            let until_us = at.mono_us.saturating_add(longest_us);
            self.own.hold(name, Taken::Slot(slot), task, until_us);
            let hold = What::Hold {
                task: wire::task(task),
            };
            let item = Item::of(hold, &[Part::slot(name, slot, longest)]);
            if !self.tell_store(item, now) {
                tracing::debug!("a task's slot is held by this gateway alone");
            }
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
        if self.health().is_open() {
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
            .finish(name, key, task, self.framed(answer.store_us));
        Ok(held)
    }

    async fn reset(&self, plan: &Plan, now: Moment) -> Result<(), StoreError> {
        self.reset_for_all(plan, now).await
    }

    fn sweep(&self, now: Moment) {
        self.own.sweep(self.framed(self.time.expected_us(now)));
    }

    fn gauges(&self) -> StoreGauges {
        self.own.gauges()
    }
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
