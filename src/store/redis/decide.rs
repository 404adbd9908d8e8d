//! The one decision over a plan whose counters are all in one part of the store.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use smallvec::SmallVec;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::link;
use super::name::Name;
use super::own::Leased;
use super::part::Part;
use super::reply::{self, Answer, Verdict};
use super::time::{JUMP_US, StoreTime};
use super::wire::{Item, What};
use super::{RedisStore, totals};
use crate::limit::slots::TASK_WAIT;
use crate::limit::{Charge, Decision, Moment, OnStoreFailure, Plan, Span};
use crate::store::{Store as _, StoreError};

/// What can be said of a plan without a question.
pub(in crate::store) enum AtOnce {
    /// The decision.
    Decided(Result<Decision, StoreError>),
    /// The store must be asked, and this gateway's share holds too.
    Doubtful,
    /// The store must be asked.
    Ask(Asking),
}

/// What goes with a question.
#[derive(Default)]
pub(in crate::store) struct Asking {
    /// Units more, of each counter of the plan.
    wanted: SmallVec<[u32; 6]>,
    /// Leases that are over.
    over: Vec<Part>,
}

impl RedisStore {
    /// Denies a slot after a jump of the store's clock, until the slots that it ended have been
    /// renewed: others may have more of them than their share.
    fn hold_back(&self, plan: &Plan, now: Moment, part: &link::Part) -> Option<Decision> {
        let jumped_us = part.time.jumped_at_us()?;
        let is_over = now.mono_us >= jumped_us.saturating_add(self.seeding_us);
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

    /// Decides a plan whose counters are all in one part of the store.
    pub(super) async fn decide_in_part(
        &self,
        plan: &mut Plan,
        now: Moment,
        deadline: Instant,
    ) -> Result<Decision, StoreError> {
        let part = self.part(plan);
        let begun = self.decide_at_once(plan, now, part);
        self.decide_begun(plan, now, part, begun, deadline).await
    }

    pub(super) async fn decide_begun(
        &self,
        plan: &mut Plan,
        now: Moment,
        part: &link::Part,
        begun: AtOnce,
        deadline: Instant,
    ) -> Result<Decision, StoreError> {
        let asking = match begun {
            AtOnce::Decided(decision) => return decision,
            AtOnce::Doubtful => {
                return Box::pin(self.decide_doubtful(plan, now, part, deadline)).await;
            }
            AtOnce::Ask(asking) => asking,
        };
        match self
            .ask_with_leases(plan, now, part, asking, deadline)
            .await
        {
            Ok(decision) => Ok(decision),
            Err(_) => {
                Box::pin(self.read_unknown_totals(plan, now)).await;
                self.decide_alone(plan, now, part)
            }
        }
    }

    /// What can be decided without a question, or how to ask.
    pub(super) fn decide_at_once(&self, plan: &mut Plan, now: Moment, part: &link::Part) -> AtOnce {
        if part.health.is_open() {
            return AtOnce::Decided(self.decide_alone(plan, now, part));
        }
        let is_doubtful = |charge: &Charge| self.is_doubtful(part, charge, now);
        if plan.charges.iter().any(is_doubtful) {
            return AtOnce::Doubtful;
        }
        // No lease is held on a total.
        if !self.leases || !plan.totals.is_empty() {
            return AtOnce::Ask(Asking::default());
        }
        let at = part.time.framed(part.time.expected_us(now));
        match self.own.decide_by_leases(plan, now.mono_us, at) {
            Leased::Decided(decision) => {
                self.lease_hits.fetch_add(1, Ordering::Relaxed);
                AtOnce::Decided(Ok(decision))
            }
            Leased::Ask { wanted, over } => AtOnce::Ask(Asking { wanted, over }),
        }
    }

    /// Asks, and gives back in the same command, as a rule, what leases have left.
    pub(super) async fn ask_with_leases(
        &self,
        plan: &mut Plan,
        now: Moment,
        part: &link::Part,
        asking: Asking,
        deadline: Instant,
    ) -> Result<Decision, StoreError> {
        let at_us = self.time.told_us(now);
        self.give_back_parts(&asking.over, at_us);
        let decision = self.ask(plan, now, part, &asking.wanted, deadline).await?;
        if let Decision::Deny { .. } = decision
            && self.leases
        {
            // What is held here must not be what is missing there.
            let held = self.own.end_leases(plan);
            if !held.is_empty() {
                self.give_back_parts(&held, at_us);
                return self.ask(plan, now, part, &[], deadline).await;
            }
        }
        Ok(decision)
    }

    fn next_slots(&self, plan: &Plan) -> u64 {
        let count = u64::try_from(plan.charges.len()).unwrap_or(0);
        self.slots.fetch_add(count, Ordering::Relaxed)
    }

    /// Between which times of the store a script that is sent now may run.
    pub(super) fn bounds(&self, time: &StoreTime, now: Moment) -> (u64, u64) {
        let Some(expected_us) = time.known(now) else {
            return (0, 1 << 53);
        };
        let timeout_us = u64::try_from(self.terms.timeout.as_micros()).unwrap_or(u64::MAX);
        let earliest_us = expected_us.saturating_sub(JUMP_US);
        (earliest_us, expected_us.saturating_add(timeout_us))
    }

    /// Whether this part of the store alone may not be believed for this charge: it is still
    /// being told what it lost, or its clock jumped less than a window ago.
    fn is_doubtful(&self, part: &link::Part, charge: &Charge, now: Moment) -> bool {
        let window_us = match charge.span {
            Span::Sliding { window_us } => window_us,
            // Keyed by date.
            Span::Day { .. } => 0,
            // Until their owners have renewed them.
            Span::Running => self.seeding_us,
        };
        let has_jumped = |at_us: u64| now.mono_us < at_us.saturating_add(window_us);
        part.health.is_seeding(now.mono_us) || part.time.jumped_at_us().is_some_and(has_jumped)
    }

    /// Asks the store.
    pub(super) async fn ask(
        &self,
        plan: &mut Plan,
        now: Moment,
        part: &link::Part,
        wanted: &[u32],
        deadline: Instant,
    ) -> Result<Decision, StoreError> {
        let link = self.link().ok_or(StoreError::Unavailable)?;
        let time = &part.time;
        // A plan is asked a second time at most: when it is another day there than here.
        for _ in 0..2 {
            let slot = self.next_slots(plan);
            let asks_totals = !plan.totals.is_empty();
            let asks_totals = asks_totals.then(|| self.asks_totals(part, now));
            let (earliest_us, latest_us) = self.bounds(time, now);
            let what = What::Decide {
                earliest_us,
                latest_us,
            };
            let slots = (slot, self.slot_lease);
            let era = asks_totals.map_or(0, |_| self.terms.under_way.asked());
            let item = Arc::new(Item::decide(plan, wanted, what, slots, era));
            let receiver = link
                .ask(item.clone(), part, self.time.told_us(now))
                .ok_or(StoreError::Unavailable)?;
            let mut waiting = Waiting {
                store: self,
                receiver,
                item,
                at_us: self.time.told_us(now),
            };
            let answer = waiting.answer(deadline).await?;
            drop(waiting);
            if answer.verdict == Some(Verdict::Scattered) {
                return self.ask_each(plan, now, part, deadline).await;
            }
            time.note(now.mono_us, answer.store_us);
            // Of totals there are three readings.
            let asked = plan.charges.len() + 3 * plan.totals.len();
            let (decision, readings) = match answer.verdict {
                Some(Verdict::Admitted(readings)) if readings.len() == asked => {
                    let decision = reply::admitted(plan, &readings, answer.store_us, slot);
                    (Some(decision), readings)
                }
                Some(Verdict::Denied(readings)) if readings.len() == asked => {
                    let denied = reply::denied(plan, &readings, answer.store_us);
                    (denied.or_else(|| totals::full(plan, &readings)), readings)
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
            if let Some(asked) = asks_totals {
                self.note_totals(plan, &readings, asked);
            }
            if is_admitted {
                self.took_totals(plan, era);
            }
            return Ok(decision);
        }
        Err(StoreError::Unavailable)
    }

    /// Gives units back in the store, if there are any.
    pub(super) fn give_back_parts(&self, parts: &[Part], at_us: Option<u64>) {
        if !parts.is_empty() {
            self.tell_store(Item::of(What::GiveBack, parts), at_us);
        }
    }

    /// Decides by each limit's `on_store_failure`.
    fn decide_alone(
        &self,
        plan: &mut Plan,
        now: Moment,
        part: &link::Part,
    ) -> Result<Decision, StoreError> {
        self.alone.fetch_add(1, Ordering::Relaxed);
        totals::untaken(plan);
        if denies_alone(plan) {
            return Err(StoreError::Unavailable);
        }
        let decision = self.decide_by_share(plan, now, part);
        if plan.totals.is_empty() || !matches!(decision, Decision::Admit { .. }) {
            return Ok(decision);
        }
        Ok(match self.take_totals_alone(plan, now) {
            Ok(()) => decision,
            Err(total) => {
                self.give_back(plan, now, &|_| true);
                Decision::Full { total }
            }
        })
    }

    fn decide_by_share(&self, plan: &mut Plan, now: Moment, part: &link::Part) -> Decision {
        if let Some(denied) = self.hold_back(plan, now, part) {
            return denied;
        }
        let time = &part.time;
        let store_us = time.expected_us(now);
        shift_days(plan, store_us);
        let slot = self.next_slots(plan);
        let share = |name: &Name, quota| self.peers.share(name, quota);
        self.own
            .decide(plan, share, slot, time.framed(store_us), time)
    }

    /// Decides by share, where that is in doubt, and by the store, and admits what both admit.
    async fn decide_doubtful(
        &self,
        plan: &mut Plan,
        now: Moment,
        part: &link::Part,
        deadline: Instant,
    ) -> Result<Decision, StoreError> {
        let mut by_share = plan.clone();
        by_share.totals.clear();
        for charge in &mut by_share.charges {
            if !self.is_doubtful(part, charge, now) {
                charge.on_store_failure = OnStoreFailure::Allow;
            }
        }
        if let denied @ Decision::Deny { .. } = self.decide_by_share(&mut by_share, now, part) {
            return Ok(denied);
        }
        let is_seeding = part.health.is_seeding(now.mono_us);
        let lacking = is_seeding.then(|| self.lacks_totals(plan, part)).flatten();
        if let Some(full) = lacking {
            self.give_back(&mut by_share, now, &|_| true);
            return Ok(full);
        }
        let asked = self.ask(plan, now, part, &[], deadline).await;
        if let (true, Ok(Decision::Admit { .. })) = (is_seeding, &asked) {
            self.remembered.took(plan, part.health.times_opened());
        }
        // Either the store knows of these units now, or they are taken again.
        self.give_back(&mut by_share, now, &|_| true);
        match asked {
            Ok(decision) => Ok(decision),
            Err(_) => {
                self.read_unknown_totals(plan, now).await;
                self.decide_alone(plan, now, part)
            }
        }
    }
}

/// Whether a limit of this plan admits nothing without the store.
fn denies_alone(plan: &Plan) -> bool {
    let denies = |c: &Charge| !c.report && c.on_store_failure == OnStoreFailure::Deny;
    plan.charges.iter().any(denies)
}

/// Moves the days of a plan to the store's.
pub(super) fn shift_days(plan: &mut Plan, store_us: u64) {
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
    store: &'s RedisStore,
    receiver: oneshot::Receiver<Answer>,
    item: Arc<Item>,
    at_us: Option<u64>,
}

impl Waiting<'_> {
    async fn answer(&mut self, deadline: Instant) -> Result<Answer, StoreError> {
        match tokio::time::timeout_at(deadline, &mut self.receiver).await {
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
            self.store.tell_part(item, self.at_us);
        }
    }
}
