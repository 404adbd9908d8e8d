//! A plan whose counters have several owners, which in a cluster may be on different nodes.

use std::ops::Range;
use std::pin::Pin;

use smallvec::SmallVec;
use tokio::time::Instant;

use super::name::Name;
use super::{RedisStore, link};
use crate::limit::plan::{reported_bit, smallest_share};
use crate::limit::total::Change;
use crate::limit::{Decision, Moment, Plan, Room, Scope};
use crate::store::{Store as _, StoreError};

impl RedisStore {
    /// Decides a plan by owner of its counters, which may be on different nodes: an address
    /// first, an app last. What was taken before a denial or a failure is given back.
    pub(super) async fn decide_by_owner(
        &self,
        plan: &mut Plan,
        now: Moment,
        deadline: Instant,
    ) -> Result<Decision, StoreError> {
        let mut groups = groups(plan, |name| name.tag());
        // With the app's counters, which come last, or behind those of addresses.
        let totals = 0..plan.totals.len();
        match groups.last_mut() {
            Some(last) if last.is_of_app(plan) => last.totals.extend(totals),
            _ => groups.push(Group::of_totals(totals)),
        }
        self.decide_in_groups(plan, now, groups, (None, deadline))
            .await
    }

    /// Asks for each counter of a plan by itself: their slot moves, and they are on two nodes.
    pub(super) fn ask_each<'a>(
        &'a self,
        plan: &'a mut Plan,
        now: Moment,
        part: &'a link::Part,
        deadline: Instant,
    ) -> Pin<Box<dyn Future<Output = Result<Decision, StoreError>> + Send + 'a>> {
        let mut groups = groups(plan, |name| *name);
        groups.extend((0..plan.totals.len()).map(|at| Group::of_totals(at..at + 1)));
        Box::pin(self.decide_in_groups(plan, now, groups, (Some(part), deadline)))
    }

    /// Decides group by group. What was taken before a denial or a failure is given back. With a
    /// part of the store, that part alone is asked.
    async fn decide_in_groups(
        &self,
        plan: &mut Plan,
        now: Moment,
        groups: Groups,
        (asked, deadline): (Option<&link::Part>, Instant),
    ) -> Result<Decision, StoreError> {
        let mut all = WholePlan::default();
        for Group {
            charges: indices,
            totals,
        } in groups
        {
            if indices.is_empty() && totals.is_empty() {
                continue;
            }
            let mut part = Plan {
                charges: indices.iter().map(|index| plan.charges[*index]).collect(),
                totals: totals.iter().map(|at| plan.totals[*at].clone()).collect(),
                origin: plan.origin,
                app: plan.app,
            };
            // Dropped half-way, this call has taken nothing.
            let before = Reserved {
                store: self,
                plan,
                now,
                is_kept: false,
            };
            let decision = match asked {
                None => self.decide_in_part(&mut part, now, deadline).await,
                Some(asked) => self.ask(&mut part, now, asked, &[], deadline).await,
            };
            for (index, charge) in indices.iter().zip(&part.charges) {
                before.plan.charges[*index] = *charge;
            }
            for (at, charge) in totals.iter().zip(part.totals) {
                before.plan.totals[*at] = charge;
            }
            match decision? {
                Decision::Full { total } => {
                    let total = totals.get(total).copied().unwrap_or(total);
                    return Ok(Decision::Full { total });
                }
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

/// Places in a plan, in groups.
type Groups = SmallVec<[Group; 2]>;

/// What of a plan is decided together.
struct Group {
    charges: SmallVec<[usize; 6]>,
    totals: Vec<usize>,
}

impl Group {
    fn of_totals(totals: Range<usize>) -> Self {
        Self {
            charges: SmallVec::new(),
            totals: totals.collect(),
        }
    }

    fn is_of_app(&self, plan: &Plan) -> bool {
        let first = self.charges.first().and_then(|at| plan.charges.get(*at));
        first.is_some_and(|charge| charge.scope != Scope::Ip)
    }
}

/// The charges with the same `of`, such as the owner of their counters, by their places in the
/// plan: addresses first.
fn groups<T: PartialEq>(plan: &Plan, of: impl Fn(&Name) -> T) -> Groups {
    let mut groups: SmallVec<[(T, SmallVec<[usize; 6]>); 2]> = SmallVec::new();
    let is_address = |index: &usize| plan.charges[*index].scope == Scope::Ip;
    let places = 0..plan.charges.len();
    let addresses_first = places
        .clone()
        .filter(is_address)
        .chain(places.filter(|index| !is_address(index)));
    for index in addresses_first {
        let of = of(&Name::of(plan, &plan.charges[index]));
        match groups.iter_mut().find(|(other, _)| *other == of) {
            Some((_, indices)) => indices.push(index),
            None => groups.push((of, SmallVec::from_slice(&[index]))),
        }
    }
    let group = |(_, charges)| Group {
        charges,
        totals: Vec::new(),
    };
    groups.into_iter().map(group).collect()
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
            let mut back = Vec::new();
            for charge in &mut self.plan.totals {
                let units = charge.units;
                let taken = charge.taken.take();
                back.extend(taken.map(|round| (charge.key, Change::GiveBack { units, round })));
            }
            if let Some(app) = self.plan.app {
                self.store.tell_changes(app, &back, self.now);
            }
        }
    }
}
