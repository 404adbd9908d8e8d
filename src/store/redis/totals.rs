//! Totals in Redis: keys of an app's that never expire, moved by the script that decides.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use smallvec::{SmallVec, smallvec};
use tokio::time::{sleep, timeout};

use super::name::Name;
use super::part::Part;
use super::remembered::{self, Asked};
use super::reply::{Owned, Reading, Verdict};
use super::watch::BEAT;
use super::wire::{Item, What};
use super::{RedisStore, StoreError, link};
use crate::limit::total::{Change, Total};
use crate::limit::{CounterKey, Decision, Moment, Plan};

/// Changes that go in one item: a script is not to run for long.
pub(super) const AT_ONCE: usize = 200;

/// How often the gateways that are there are looked at: longer than two beats.
const LOOKS: u32 = 10;

/// How often a total is read again, of which nothing is known when a decision has timed out.
const READ_AGAIN: usize = 2;

/// Totals that were changed.
type Made = HashMap<Name, Owned>;

impl RedisStore {
    pub(super) fn tell_changes(
        &self,
        app: CounterKey,
        changes: &[(CounterKey, Change)],
        now: Moment,
    ) {
        for (key, change) in changes {
            self.remembered.changed(Name::plain(app, *key), *change);
        }
        let parts = changes
            .iter()
            .flat_map(|(key, change)| self.parts(app, *key, *change));
        self.tell_in_order(&parts.collect::<Vec<_>>(), now);
    }

    fn tell_in_order(&self, parts: &[Part], now: Moment) {
        for some in parts.chunks(AT_ONCE) {
            self.tell_store(Item::changes(some), self.time.told_us(now));
        }
    }

    /// What goes to the store for a change: of units that are closed, a part for each era of theirs.
    fn parts(&self, app: CounterKey, key: CounterKey, change: Change) -> SmallVec<[Part; 1]> {
        let (name, under_way) = (Name::plain(app, key), &self.terms.under_way);
        let closed = |units, round| under_way.close(&name, round, units).into_iter();
        match change {
            Change::GiveBack { units, round } => closed(units, round)
                .map(|(era, units)| Part::change(name, Change::GiveBack { units, round }, era))
                .collect(),
            Change::Keep { units, round } => closed(units, round)
                .map(|(era, units)| Part::change(name, Change::Keep { units, round }, era))
                .collect(),
            Change::Take { units, round } => {
                let era = under_way.asked();
                under_way.took(name, era, round, units);
                smallvec![Part::change(name, change, era)]
            }
            _ => smallvec![Part::change(name, change, 0)],
        }
    }

    /// Makes changes; what each total is after the last of them.
    pub(super) async fn ask_changes(
        &self,
        app: CounterKey,
        changes: &[(CounterKey, Change)],
        now: Moment,
    ) -> Result<Vec<Owned>, StoreError> {
        let parts = changes
            .iter()
            .flat_map(|(key, change)| self.parts(app, *key, *change));
        let made = self.ask_parts(&parts.collect::<Vec<_>>(), now).await?;
        let after = |(key, _): &(CounterKey, Change)| {
            let owned = made.get(&Name::plain(app, *key));
            owned.cloned().ok_or(StoreError::Unavailable)
        };
        changes.iter().map(after).collect()
    }

    /// Makes changes, or none of them after nobody waits any more; what the totals are then.
    async fn ask_parts(&self, parts: &[Part], now: Moment) -> Result<Made, StoreError> {
        let mut made = Made::default();
        for some in parts.chunks(AT_ONCE) {
            let now = self.time.later(now);
            let part = self.terms.part(some.first().map(|part| part.name));
            let (earliest_us, latest_us) = self.bounds(&part.time, now);
            let what = What::ChangeBy {
                earliest_us,
                latest_us,
            };
            let item = Arc::new(Item::of(what, some));
            if part.health.is_open() {
                return Err(StoreError::Unavailable);
            }
            let link = self.link().ok_or(StoreError::Unavailable)?;
            let at_us = self.time.told_us(now);
            let asked = self.asks_totals(part, now);
            let receiver = link.ask(item, part, at_us).ok_or(StoreError::Unavailable)?;
            let answer = match timeout(self.terms.timeout, receiver).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(_)) | Err(_) => return Err(StoreError::Unavailable),
            };
            if answer.verdict.is_some() {
                part.time.note(now.mono_us, answer.store_us);
            }
            match answer.verdict {
                Some(Verdict::Totals(totals)) if totals.len() == some.len() => {
                    for (change, total) in some.iter().zip(totals) {
                        let Some(mut owned) = total else { continue };
                        owned.total.approximate |= owned.as_of != part.health.doubts();
                        let reading = owned.total.into();
                        self.remembered.note(change.name, reading, asked);
                        made.insert(change.name, owned);
                    }
                }
                _ => return Err(StoreError::Unavailable),
            }
        }
        Ok(made)
    }

    /// Makes changes; what each total is then. What gateways that are gone had under way is in
    /// doubt from now on, and not on top of what is imported.
    pub(super) async fn change_owned(
        &self,
        app: CounterKey,
        changes: &[(CounterKey, Change)],
        now: Moment,
    ) -> Result<Vec<Total>, StoreError> {
        let begins = |change: &Change| matches!(change, Change::Set { .. } | Change::Begin { .. });
        let begun = changes.iter().filter(|(_, change)| begins(change));
        let begun: Vec<_> = begun.map(|(key, _)| (*key, Change::Read)).collect();
        let before = self.ask_changes(app, &begun, now).await?;
        self.leave_out_gone(app, &begun, before, now).await?;
        let made = self.ask_changes(app, changes, now).await?;
        let made = self.leave_out_gone(app, changes, made, now).await?;
        Ok(made.into_iter().map(|owned| owned.total).collect())
    }

    /// Says of these totals which of the gateways that have units of them under way are gone:
    /// nobody will tell what came of those.
    async fn leave_out_gone(
        &self,
        app: CounterKey,
        changes: &[(CounterKey, Change)],
        mut made: Vec<Owned>,
        now: Moment,
    ) -> Result<Vec<Owned>, StoreError> {
        let owners = made
            .iter()
            .flat_map(|owned| owned.owners.iter().map(|o| &**o));
        let gone = self.gone(owners.collect()).await;
        let mut parts = Vec::new();
        for ((key, _), owned) in changes.iter().zip(&made) {
            let gone = owned.owners.iter().filter(|owner| gone.contains(&***owner));
            let name = Name::plain(app, *key);
            parts.extend(gone.filter_map(|gateway| Part::gone(name, gateway)));
        }
        let after = self.ask_parts(&parts, now).await?;
        for ((key, _), owned) in changes.iter().zip(&mut made) {
            if let Some(other) = after.get(&Name::plain(app, *key)) {
                owned.clone_from(other);
            }
        }
        Ok(made)
    }

    /// Which of these gateways are gone. One that has just come is known in a beat.
    async fn gone<'g>(&self, mut gateways: HashSet<&'g str>) -> HashSet<&'g str> {
        gateways.remove(&*self.terms.gateway);
        for _ in 0..LOOKS {
            let known = self.peers.gateways();
            gateways.retain(|gateway| !known.iter().any(|other| **other == **gateway));
            if gateways.is_empty() {
                return gateways;
            }
            // Nobody watches over the store, or nobody can.
            if known.is_empty() || self.is_any_open() {
                return HashSet::new();
            }
            sleep(BEAT / 4).await;
        }
        gateways
    }

    /// The store is asked of totals now.
    pub(super) fn asks_totals(&self, part: &link::Part, now: Moment) -> Asked {
        let health = &part.health;
        self.remembered
            .asked(health.times_opened(), health.is_seeding(now.mono_us))
    }

    /// Notes what the store said of the totals of a plan, which it may have admitted.
    pub(super) fn note_totals(&self, plan: &Plan, readings: &[Reading], asked: Asked) {
        let first = readings.iter().skip(plan.charges.len());
        let second = first.clone().skip(plan.totals.len());
        let third = second.clone().skip(plan.totals.len());
        let all = plan.totals.iter().zip(first).zip(second).zip(third);
        for (((charge, first), second), third) in all {
            let taken = charge.taken.map_or(0, |_| charge.units);
            let reading = remembered::Reading {
                count: second.wide().saturating_add(taken.into()),
                checked_s: second.wait_us(),
                round: first.granted,
                basis: third.used,
            };
            let name = Name::of_total(plan, charge.key);
            self.remembered.note(name, reading, asked);
        }
    }

    /// Asks again what totals are of which nothing is known here: a store that is only slow has a
    /// moment more before they pass.
    pub(super) async fn read_unknown_totals(&self, plan: &Plan, now: Moment) {
        let Some(app) = plan.app.filter(|_| !plan.totals.is_empty()) else {
            return;
        };
        for _ in 0..READ_AGAIN {
            let unknown = self.remembered.unknown(plan).into_iter();
            let reads: Vec<_> = unknown.map(|key| (key, Change::Read)).collect();
            if reads.is_empty() || self.ask_changes(app, &reads, now).await.is_ok() {
                return;
            }
        }
    }

    /// Takes what the plan asks of totals without the store, which is told of it as soon as it
    /// can be; or the first that refuses.
    pub(super) fn take_totals_alone(&self, plan: &mut Plan, now: Moment) -> Result<(), usize> {
        let share = |name: &Name, left| self.peers.share_of(name, left);
        self.remembered.take(plan, share)?;
        let outages = self.terms.times_opened();
        let taken = plan.totals.iter().filter_map(|charge| {
            let (units, round) = (charge.units, charge.taken.filter(|_| charge.units > 0)?);
            let name = Name::of_total(plan, charge.key);
            let era = self.terms.under_way.took_alone(name, round, units, outages);
            Some(Part::change(name, Change::Take { units, round }, era))
        });
        let taken: Vec<_> = taken.collect();
        self.tell_in_order(&taken, now);
        Ok(())
    }

    /// The store has admitted a plan: what of totals is under way now.
    pub(super) fn took_totals(&self, plan: &Plan, era: u32) {
        for charge in &plan.totals {
            if let Some(round) = charge.taken.filter(|_| charge.units > 0) {
                let name = Name::of_total(plan, charge.key);
                self.terms.under_way.took(name, era, round, charge.units);
            }
        }
    }

    /// Refuses what is more than this gateway's share of what was left before the store was out
    /// of use, where it may not have heard since what the others took.
    pub(super) fn lacks_totals(&self, plan: &Plan, part: &link::Part) -> Option<Decision> {
        let share = |name: &Name, left| self.peers.share_of(name, left);
        let outages = part.health.times_opened();
        let total = self.remembered.lacks(plan, outages, share)?;
        Some(Decision::Full { total })
    }
}

/// Notes in the plan what an admission took of totals. Their readings come after the charges'.
pub(super) fn taken(plan: &mut Plan, readings: &[Reading]) {
    let readings = readings.iter().skip(plan.charges.len());
    let bases = readings.clone().skip(2 * plan.totals.len());
    for ((charge, reading), basis) in plan.totals.iter_mut().zip(readings).zip(bases) {
        charge.over = reading.is_over();
        charge.taken = match charge.units {
            0 => charge.looks().then_some(basis.used),
            _ => Some(reading.granted),
        };
    }
}

/// The first total that refuses.
pub(super) fn full(plan: &Plan, readings: &[Reading]) -> Option<Decision> {
    let readings = readings.iter().skip(plan.charges.len());
    let total = readings.take(plan.totals.len()).position(Reading::denies)?;
    Some(Decision::Full { total })
}

/// Nothing was taken.
pub(super) fn untaken(plan: &mut Plan) {
    for charge in &mut plan.totals {
        (charge.taken, charge.over) = (None, false);
    }
}
