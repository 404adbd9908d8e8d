//! Embedded counters that another process may take over, while calls of this one go on: those
//! are decided there then. When that process is gone, they are decided here again, by what was
//! known when the counters went.

use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::{oneshot, watch};

use super::memory::MemoryStore;
use super::{Store, StoreError, StoreGauges};
use crate::limit::total::{Change, Total};
use crate::limit::{Charge, CounterKey, Decision, Moment, Plan};

/// What the process that has the counters is asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Asked {
    /// To decide.
    Decide(Plan, Moment),
    /// To give back all that was taken.
    GiveBack(Plan),
    /// To keep the slots for a task, so long.
    Hold(Plan, String, Duration, Moment),
    /// To free the slot of a task.
    Finish(CounterKey, String, Moment),
    /// To set counters to empty.
    Reset(Plan, Moment),
    /// To change totals.
    Totals(Vec<(CounterKey, Change)>),
}

/// What it says.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[expect(clippy::large_enum_variant, reason = "nearly all are that one")]
pub enum Answer {
    /// The plan with what was taken, and the decision.
    Decided(Plan, Decision),
    /// Whether the task had a slot.
    Finished(bool),
    /// What totals are after their changes.
    Totals(Vec<Total>),
    /// It is done.
    Done,
}

/// A question, and who waits for the answer.
pub type Question = (Asked, Option<oneshot::Sender<Answer>>);

/// Where questions go.
pub type Asking = std::sync::mpsc::Sender<Question>;

#[derive(Debug, Default)]
enum Place {
    #[default]
    Here,
    /// On the way; and what happened meanwhile.
    Moving(Vec<Asked>),
    Away(Asking),
}

/// Counters of this process, or those that were.
#[derive(Debug)]
pub struct Movable {
    counters: MemoryStore,
    place: Mutex<Place>,
    /// Counts the moves.
    moves: watch::Sender<u64>,
    /// Whether they decide for a process that had them before, too.
    helping: AtomicBool,
}

impl Movable {
    /// Counters that are here.
    #[must_use]
    pub fn new(counters: MemoryStore) -> Self {
        Self {
            counters,
            place: Mutex::default(),
            moves: watch::Sender::new(0),
            helping: AtomicBool::new(false),
        }
    }

    /// Whether they decide for the process that had them before, too.
    pub fn is_helping(&self) -> bool {
        self.helping.load(Ordering::Acquire)
    }

    /// That begins, or ends.
    pub fn helps(&self, whether: bool) {
        self.helping.store(whether, Ordering::Release);
    }

    /// The counters, as far as they are here.
    #[must_use]
    pub fn counters(&self) -> &MemoryStore {
        &self.counters
    }

    /// They are about to go: who asks, waits.
    pub fn begin_move(&self) {
        *self.place.lock() = Place::Moving(Vec::new());
    }

    /// They are where these questions go.
    pub fn end_move(&self, asking: Asking) {
        let mut place = self.place.lock();
        if let Place::Moving(told) = &mut *place {
            for asked in mem::take(told) {
                // The other end may be gone already: then they come back.
                let _ = asking.send((asked, None));
            }
        }
        *place = Place::Away(asking);
        drop(place);
        self.moves.send_modify(|moves| *moves += 1);
    }

    /// They are here again.
    pub fn come_back(&self) {
        self.counters.come_back();
        let place = mem::take(&mut *self.place.lock());
        if let Place::Moving(told) = place {
            for asked in told {
                answer(&self.counters, asked);
            }
        }
        self.moves.send_modify(|moves| *moves += 1);
    }

    /// Asks where the counters are. `None`: that has changed meanwhile.
    async fn ask(&self, asked: impl Fn() -> Asked) -> Option<Answer> {
        let mut moves = self.moves.subscribe();
        let answer = match &*self.place.lock() {
            Place::Here => return None,
            Place::Moving(_) => None,
            Place::Away(asking) => {
                let (answer, heard) = oneshot::channel();
                let _ = asking.send((asked(), Some(answer)));
                Some(heard)
            }
        };
        if let Some(heard) = answer
            && let Ok(answer) = heard.await
        {
            return Some(answer);
        }
        // On the way, or the other end is gone: then it is known here next.
        let _ = moves.changed().await;
        None
    }

    /// Tells it where the counters are.
    fn tell(&self, asked: Asked) {
        let mut place = self.place.lock();
        match &mut *place {
            Place::Moving(told) => told.push(asked),
            Place::Away(asking) => drop(asking.send((asked, None))),
            Place::Here => {
                drop(place);
                answer(&self.counters, asked);
            }
        }
    }
}

/// What these counters say.
pub fn answer(counters: &MemoryStore, asked: Asked) -> Option<Answer> {
    Some(match asked {
        Asked::Decide(mut plan, now) => {
            let decision = counters.decide_here(&mut plan, now)?;
            Answer::Decided(plan, decision)
        }
        Asked::GiveBack(mut plan) => {
            let whenever = Moment {
                mono_us: 0,
                unix_us: 0,
            };
            counters.give_back(&mut plan, whenever, &|_| true);
            counters.change_here(&untaken(&plan))?;
            Answer::Done
        }
        Asked::Hold(mut plan, task, longest, now) => {
            counters.hold_task(&mut plan, &task, longest, now, &|_| true);
            Answer::Done
        }
        Asked::Finish(key, task, now) => Answer::Finished(counters.finish_now(key, &task, now)?),
        Asked::Reset(plan, now) => {
            counters.reset_now(&plan, now).then_some(())?;
            Answer::Done
        }
        Asked::Totals(changes) => Answer::Totals(counters.change_here(&changes)?),
    })
}

/// What gives back all that was taken of totals.
fn untaken(plan: &Plan) -> Vec<(CounterKey, Change)> {
    let back = plan.totals.iter().filter_map(|charge| {
        let (units, round) = (charge.units, charge.taken?);
        (units > 0).then_some((charge.key, Change::GiveBack { units, round }))
    });
    back.collect()
}

/// Takes out what is still taken and passes `which`.
fn take_out(plan: &mut Plan, which: &dyn Fn(&Charge) -> bool) -> Option<Plan> {
    let mut out = Plan {
        app: plan.app,
        origin: plan.origin,
        ..Plan::default()
    };
    for charge in &mut plan.charges {
        if charge.taken.is_some() && which(charge) {
            out.charges.push(*charge);
            charge.taken = None;
        }
    }
    (!out.charges.is_empty()).then_some(out)
}

impl Store for Movable {
    async fn decide(&self, plan: &mut Plan, now: Moment) -> Result<Decision, StoreError> {
        loop {
            if let Some(decision) = self.counters.decide_here(plan, now) {
                return Ok(decision);
            }
            let asked = || Asked::Decide(plan.clone(), now);
            if let Some(Answer::Decided(decided, decision)) = Box::pin(self.ask(asked)).await {
                *plan = decided;
                return Ok(decision);
            }
        }
    }

    fn give_back(&self, plan: &mut Plan, now: Moment, which: &dyn Fn(&Charge) -> bool) {
        self.counters.give_back(plan, now, which);
        if let Some(away) = take_out(plan, which) {
            self.tell(Asked::GiveBack(away));
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
        self.counters.hold_task(plan, task, longest, now, which);
        let is_slot = |charge: &Charge| charge.span == crate::limit::Span::Running && which(charge);
        if let Some(away) = take_out(plan, &is_slot) {
            self.tell(Asked::Hold(away, task.to_owned(), longest, now));
        }
    }

    async fn finish_task(
        &self,
        _app: CounterKey,
        key: CounterKey,
        task: &str,
        now: Moment,
    ) -> Result<bool, StoreError> {
        loop {
            if let Some(finished) = self.counters.finish_now(key, task, now) {
                return Ok(finished);
            }
            let asked = || Asked::Finish(key, task.to_owned(), now);
            if let Some(Answer::Finished(finished)) = self.ask(asked).await {
                return Ok(finished);
            }
        }
    }

    async fn reset(&self, plan: &Plan, now: Moment) -> Result<(), StoreError> {
        loop {
            if self.counters.reset_now(plan, now) {
                return Ok(());
            }
            if self.ask(|| Asked::Reset(plan.clone(), now)).await.is_some() {
                return Ok(());
            }
        }
    }

    fn tell_totals(&self, _app: CounterKey, changes: &[(CounterKey, Change)], _now: Moment) {
        if self.counters.change_here(changes).is_none() {
            self.tell(Asked::Totals(changes.to_vec()));
        }
    }

    async fn change_totals(
        &self,
        _app: CounterKey,
        changes: &[(CounterKey, Change)],
        _now: Moment,
    ) -> Result<Vec<Total>, StoreError> {
        loop {
            if let Some(totals) = self.counters.change_here(changes) {
                return Ok(totals);
            }
            let asked = || Asked::Totals(changes.to_vec());
            if let Some(Answer::Totals(totals)) = self.ask(asked).await {
                return Ok(totals);
            }
        }
    }

    fn sweep(&self, now: Moment) {
        self.counters.sweep(now);
    }

    fn gauges(&self) -> StoreGauges {
        self.counters.gauges()
    }
}
