//! Totals in Redis: keys of an app's that never expire, moved by the script that decides.

use tokio::time::timeout;

use super::name::Name;
use super::reply::{Reading, Verdict};
use super::wire::{Item, Part, What};
use super::{RedisStore, StoreError};
use crate::limit::total::{Change, Total};
use crate::limit::{CounterKey, Decision, Moment, Plan};

/// Changes that go in one item: a script is not to run for long.
const AT_ONCE: usize = 200;

impl RedisStore {
    pub(super) fn tell_changes(
        &self,
        app: CounterKey,
        changes: &[(CounterKey, Change)],
        now: Moment,
    ) {
        for some in changes.chunks(AT_ONCE) {
            self.tell_store(item(app, some), self.time.told_us(now));
        }
    }

    pub(super) async fn ask_changes(
        &self,
        app: CounterKey,
        changes: &[(CounterKey, Change)],
        now: Moment,
    ) -> Result<Vec<Total>, StoreError> {
        let mut made = Vec::with_capacity(changes.len());
        for some in changes.chunks(AT_ONCE) {
            let item = item(app, some);
            let part = self.terms.part(item.name());
            if part.health.is_open() {
                return Err(StoreError::Unavailable);
            }
            let link = self.link().ok_or(StoreError::Unavailable)?;
            let at_us = self.time.told_us(now);
            let receiver = link.ask(item, part, at_us).ok_or(StoreError::Unavailable)?;
            let answer = match timeout(self.terms.timeout, receiver).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(_)) | Err(_) => return Err(StoreError::Unavailable),
            };
            match answer.verdict {
                Some(Verdict::Totals(totals)) if totals.len() == some.len() => made.extend(totals),
                _ => return Err(StoreError::Unavailable),
            }
        }
        Ok(made)
    }
}

fn item(app: CounterKey, changes: &[(CounterKey, Change)]) -> Item {
    let parts = changes
        .iter()
        .map(|(key, change)| Part::change(Name::plain(app, *key), *change));
    Item::of(What::Change, &parts.collect::<Vec<_>>())
}

/// Notes in the plan what an admission took of totals. Their readings come after the charges'.
pub(super) fn taken(plan: &mut Plan, readings: &[Reading]) {
    let readings = readings.iter().skip(plan.charges.len());
    for (charge, reading) in plan.totals.iter_mut().zip(readings) {
        charge.over = reading.is_over();
        charge.taken = (charge.units > 0).then_some(reading.granted);
    }
}

/// The first total that refuses.
pub(super) fn full(plan: &Plan, readings: &[Reading]) -> Option<Decision> {
    let mut readings = readings.iter().skip(plan.charges.len());
    let total = readings.position(Reading::denies)?;
    Some(Decision::Full { total })
}

/// The store is out of use: no total refuses, and what is made is told later.
pub(super) fn untaken(plan: &mut Plan) {
    for charge in &mut plan.totals {
        (charge.taken, charge.over) = (None, false);
    }
}
