//! Decisions by this gateway alone: by its leases, or by its share.

use std::time::Duration;

use smallvec::SmallVec;

use super::{Found, Leased, Own, in_proportion};
use crate::limit::plan::{longest_wait, reported_bit, smallest_share};
use crate::limit::slots::TASK_WAIT;
use crate::limit::{Charge, Decision, Moment, OnStoreFailure, Plan, Room, Span, Taken, sliding};
use crate::store::redis::lease::{Held, Leases};
use crate::store::redis::name::Name;
use crate::store::redis::part::Part;
use crate::store::redis::reply::Reading;
use crate::store::redis::time::StoreTime;

impl Own {
    /// Decides by the leases, if they suffice. `at` is by the clock of the own counters,
    /// `mono_us` is the process's.
    pub(in crate::store::redis) fn decide_by_leases(
        &self,
        plan: &mut Plan,
        mono_us: u64,
        at: Moment,
    ) -> Leased {
        let mut own: SmallVec<[Option<Taken>; 6]> = SmallVec::new();
        let mut rooms: SmallVec<[(u32, u64); 6]> = SmallVec::new();
        let (mut decided, mut is_known) = (None, true);
        for index in 0..plan.charges.len() {
            let charge = plan.charges[index];
            let name = Name::of(plan, &charge);
            let found = self.with(name, None, |entry| {
                let held = match is_known {
                    true => entry.leases.take(&charge, mono_us),
                    // The store must be asked, unless a counter is known to be full.
                    false => entry.leases.full(&charge, mono_us).unwrap_or(Held::Unknown),
                };
                let Held::Room(taken) = held else {
                    return (held, None, (0, 0));
                };
                let taken_here = taken.map(|_| {
                    entry.advance(charge.span, at);
                    entry.counter.take(&charge)
                });
                let left = charge
                    .quota
                    .saturating_sub(entry.seen)
                    .saturating_add(entry.leases.left(mono_us))
                    .min(charge.quota);
                let resets_us = match charge.span {
                    Span::Day { end_us, .. } => end_us.saturating_sub(at.unix_us),
                    Span::Sliding { .. } | Span::Running => entry.leases.resets_in_us(mono_us),
                };
                (held, taken_here, (left, resets_us))
            });
            let (held, taken_here, room) = found.unwrap_or((Held::Unknown, None, (0, 0)));
            match held {
                Held::Room(taken) => {
                    plan.charges[index].taken = taken;
                    own.push(taken_here);
                    rooms.push(room);
                }
                Held::Full { left, wait_us } => {
                    decided = Some(Decision::Deny {
                        charge: index,
                        left,
                        retry_after: Some(Duration::from_micros(wait_us)),
                    });
                    break;
                }
                Held::Unknown => is_known = false,
            }
        }
        if is_known && decided.is_none() {
            let left = rooms
                .iter()
                .enumerate()
                .map(|(index, (left, _))| (index, *left));
            let enforced = left.filter(|(index, _)| !plan.charges[*index].report);
            let nearest = smallest_share(&plan.charges, enforced).map(|(charge, left)| Room {
                charge,
                left,
                resets_in: Duration::from_micros(rooms[charge].1),
            });
            return Leased::Decided(Decision::Admit {
                nearest,
                reported: 0,
            });
        }
        for (index, taken_here) in own.into_iter().enumerate() {
            let charge = plan.charges[index];
            plan.charges[index].taken = None;
            if let (Some(taken), Some(taken_here)) = (charge.taken, taken_here) {
                self.with(Name::of(plan, &charge), None, |entry| {
                    entry.leases.put_back(&charge, taken);
                    entry.counter.give_back(&charge, taken_here);
                });
            }
        }
        if let Some(denied) = decided {
            return Leased::Decided(denied);
        }
        let (mut wanted, mut over) = (SmallVec::new(), Vec::new());
        for charge in &plan.charges {
            let name = Name::of(plan, charge);
            let more = self.with(name, None, |entry| {
                // Where room is scarce, a call that asks must find what is held here.
                let room = charge.quota.saturating_sub(entry.seen);
                let is_scarce = room < charge.cost.saturating_add(charge.quota / 5);
                let until_us = if is_scarce { u64::MAX } else { mono_us };
                entry.end_leases(name, until_us, &mut over);
                let by_store = Moment { mono_us, ..at };
                entry.leases.wanted(charge, by_store)
            });
            wanted.push(more.unwrap_or(0));
        }
        Leased::Ask { wanted, over }
    }

    /// Takes out all leases of this plan's counters.
    pub(in crate::store::redis) fn end_leases(&self, plan: &Plan) -> Vec<Part> {
        let mut over = Vec::new();
        for charge in &plan.charges {
            let name = Name::of(plan, charge);
            self.with(name, None, |entry| {
                entry.end_leases(name, u64::MAX, &mut over)
            });
        }
        over
    }

    /// The store does not know of any lease: nothing may be taken from one, or given back.
    pub(in crate::store::redis) fn drop_leases(&self, concerns: impl Fn(&Name) -> bool) {
        self.leased.lock().retain(|name| {
            if concerns(name) {
                self.with(*name, None, |entry| {
                    (entry.leases, entry.is_leased) = (Leases::default(), false);
                });
            }
            !concerns(name)
        });
    }

    /// The leases that have been over since `mono_us`.
    pub(in crate::store::redis) fn leases_over(&self, mono_us: u64) -> Vec<Part> {
        let mut over = Vec::new();
        let mut leased = self.leased.lock();
        leased.retain(|name| {
            let is_leased = self.with(*name, None, |entry| {
                entry.end_leases(*name, mono_us, &mut over);
                entry.is_leased = !entry.leases.is_empty();
                entry.is_leased
            });
            is_leased.unwrap_or(false)
        });
        over
    }

    /// Notes what the store said to a plan: what is used there, and what was taken from it.
    /// `sent_us` is when it was asked, `at` and `store_us` when it answered.
    pub(in crate::store::redis) fn note(
        &self,
        plan: &Plan,
        readings: &[Reading],
        is_admitted: bool,
        (sent_us, store_us): (u64, u64),
        at: Moment,
    ) {
        let mut newly_leased: SmallVec<[Name; 6]> = SmallVec::new();
        for (charge, reading) in plan.charges.iter().zip(readings) {
            let fresh = Some((charge, at));
            let name = Name::of(plan, charge);
            self.with(name, fresh, |entry| {
                entry.advance(charge.span, at);
                entry.seen = reading.used;
                entry.seen_us = at.mono_us;
                entry.since = 0;
                if let Some(taken) = charge.taken {
                    entry.seen = entry.seen.saturating_add(charge.cost + reading.granted);
                    entry.counter.take_as(charge, taken);
                    entry.leases.used(charge, sent_us);
                }
                let (used, wait_us) = (entry.seen, reading.wait_us());
                if is_admitted {
                    let leases = &mut entry.leases;
                    if leases.heard(charge, reading, used, sent_us, store_us) && !entry.is_leased {
                        entry.is_leased = true;
                        newly_leased.push(name);
                    }
                } else if wait_us > 0 && !charge.report {
                    entry.leases.heard_full(charge, used, wait_us, sent_us);
                }
            });
        }
        if !newly_leased.is_empty() {
            self.leased.lock().extend(newly_leased);
        }
    }

    /// Decides without the store: `share` is this gateway's part of a quota. What it takes is
    /// owed to the store. `first_slot` numbers the slots.
    pub(in crate::store::redis) fn decide(
        &self,
        plan: &mut Plan,
        share: impl Fn(&Name, u32) -> u32,
        first_slot: u64,
        at: Moment,
        time: &StoreTime,
    ) -> Decision {
        let mut denied: Option<(usize, u32, Option<Duration>)> = None;
        let mut left: SmallVec<[(usize, u32); 6]> = SmallVec::new();
        let mut reported = 0;
        for index in 0..plan.charges.len() {
            let charge = plan.charges[index];
            let name = Name::of(plan, &charge);
            let share = match charge.on_store_failure {
                OnStoreFailure::Allow => None,
                OnStoreFailure::Local | OnStoreFailure::Deny => Some(share(&name, charge.quota)),
            };
            let slot = first_slot + u64::try_from(index).unwrap_or(0);
            let (found, taken) = self.reserve(name, &charge, share, slot, at);
            let charge = &mut plan.charges[index];
            charge.taken = taken.map(|taken| match (taken, charge.span) {
                (Taken::Step(step), Span::Sliding { window_us }) => {
                    Taken::Step(time.store_step(step, sliding::step_us(window_us)))
                }
                (taken, _) => taken,
            });
            match found {
                Found::Room { left: room } if !charge.report => left.push((index, room)),
                Found::Room { .. } => (),
                Found::Full { .. } if charge.report => reported |= reported_bit(index),
                Found::Full { left, wait } => {
                    let wait = (charge.cost <= charge.quota).then_some(wait);
                    let this = (index, wait);
                    let longest =
                        longest_wait(denied.map(|d| (d.0, d.2)).into_iter().chain([this]));
                    if longest == Some(this) {
                        denied = Some((index, left, wait));
                    }
                }
            }
        }
        if let Some((charge, left, retry_after)) = denied {
            for index in 0..plan.charges.len() {
                let charge = plan.charges[index];
                if let Some(taken) = charge.taken {
                    self.give_back(Name::of(plan, &charge), &charge, taken, true, time);
                }
                plan.charges[index].taken = None;
            }
            return Decision::Deny {
                charge,
                left,
                retry_after,
            };
        }
        let nearest = smallest_share(&plan.charges, left.into_iter()).map(|(charge, left)| Room {
            charge,
            left,
            resets_in: Duration::ZERO,
        });
        Decision::Admit { nearest, reported }
    }

    fn reserve(
        &self,
        name: Name,
        charge: &Charge,
        share: Option<u32>,
        slot: u64,
        at: Moment,
    ) -> (Found, Option<Taken>) {
        let reserved = self.with(name, Some((charge, at)), |entry| {
            entry.advance(charge.span, at);
            let lasts_us = match charge.span {
                Span::Sliding { window_us } => window_us,
                Span::Day { start_us, end_us } => end_us.saturating_sub(start_us),
                Span::Running => self.slot_lease_us,
            };
            if at.mono_us.saturating_sub(entry.seen_us) > lasts_us {
                (entry.seen, entry.since) = (0, 0);
            }
            let own = entry.counter.used();
            let left = share.map_or(charge.quota, |share| {
                let read = in_proportion(entry.seen, share, charge.quota);
                share.saturating_sub(own.max(read.saturating_add(entry.since)))
            });
            if share.is_some() && left < charge.cost.max(1) {
                let wait = entry
                    .counter
                    .wait(charge, charge.cost, at)
                    .unwrap_or(Duration::from_micros(lasts_us))
                    .clamp(
                        Duration::from_micros(1),
                        Duration::from_micros(lasts_us.max(1)),
                    );
                let wait = match charge.span {
                    Span::Running => TASK_WAIT,
                    _ => wait,
                };
                return (Found::Full { left, wait }, None);
            }
            if charge.cost == 0 {
                return (Found::Room { left }, None);
            }
            let taken = match charge.span {
                Span::Running => {
                    entry.counter.take_as(charge, Taken::Slot(slot));
                    Taken::Slot(slot)
                }
                _ => entry.counter.take(charge),
            };
            entry.since = entry.since.saturating_add(charge.cost);
            if !matches!(taken, Taken::Slot(_)) {
                entry.owe(taken.place(), i64::from(charge.cost));
            }
            self.owe_still();
            let left = left.saturating_sub(charge.cost);
            (Found::Room { left }, Some(taken))
        });
        // No room to remember it: what cannot be counted is not given.
        reserved.unwrap_or((
            Found::Full {
                left: 0,
                wait: TASK_WAIT,
            },
            None,
        ))
    }
}
