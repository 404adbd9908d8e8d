//! A plan whose counters have several owners, which in a cluster may be on different nodes.

use smallvec::SmallVec;
use tokio::time::Instant;

use super::RedisStore;
use super::name::Name;
use crate::limit::plan::{reported_bit, smallest_share};
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
            let decision = self.decide_in_part(&mut part, now, deadline).await;
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
