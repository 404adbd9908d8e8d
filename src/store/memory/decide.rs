//! One decision: look at every counter, then take from all or from none.

use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::MutexGuard;
use smallvec::SmallVec;

use super::MemoryStore;
use super::bound::{Bound, Fresh, Pool};
use super::counter::Counter;
use super::shard::{Shard, shard_of};
use crate::limit::plan::{longest_wait, reported_bit, smallest_share};
use crate::limit::{Charge, CounterKey, Decision, Moment, Plan, Room, Span};

/// Where the units of a charge are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// In the key's counter.
    Own,
    /// In a counter that is made if the call is admitted; a copy of the overflow if `seeded`.
    New { pool: Pool, seeded: bool },
    /// In the limit's overflow counter.
    Shared,
    /// Nowhere: nothing is asked for, and nothing was ever counted.
    Nowhere,
}

/// What a charge finds.
#[derive(Clone, Copy, Debug)]
struct Found {
    place: Place,
    used: u32,
}

/// The locks of one decision.
struct Session<'s> {
    store: &'s MemoryStore,
    /// The shards that are locked, one bit each.
    mask: u64,
    shards: SmallVec<[MutexGuard<'s, Shard>; 8]>,
    bound: Option<MutexGuard<'s, Bound>>,
    now: Moment,
    origin: Option<CounterKey>,
    fresh: Fresh,
}

impl MemoryStore {
    /// [`Store::decide`](crate::store::Store::decide), at once: this store never waits. `None`:
    /// another process has the counters, and nothing has been taken.
    pub fn decide_here(&self, plan: &mut Plan, now: Moment) -> Option<Decision> {
        let mut session = Session::open(self, plan, now);
        if session.shards.iter().any(|shard| shard.away) {
            return None;
        }
        let charges = &mut plan.charges[..];
        let mut found: SmallVec<[Found; 8]> = SmallVec::new();
        for index in 0..charges.len() {
            charges[index].taken = None;
            charges[index].shared = false;
            let seen = session.look(charges, &found, index);
            found.push(seen);
        }
        if let Some(denied) = session.deny(charges, &found) {
            return Some(denied);
        }
        // Until all is taken nobody else moves them.
        let mut totals = match plan.totals.is_empty() {
            true => None,
            false => Some(self.totals.lock()),
        };
        if let Some(totals) = &mut totals {
            if totals.away {
                return None;
            }
            if let Some(total) = totals.refused(&plan.totals) {
                return Some(Decision::Full { total });
            }
            totals.take(&mut plan.totals);
        }
        for (charge, seen) in charges
            .iter_mut()
            .zip(&found)
            .filter(|(charge, _)| !charge.report)
        {
            session.take(charge, seen.place);
        }
        let mut reported = 0;
        for (index, seen) in found.iter().enumerate() {
            let charge = &charges[index];
            if !charge.report {
                continue;
            }
            if fits(
                charge,
                seen.used,
                asked(charges, &found, index, |other| other.taken.is_some()),
            ) {
                session.take(&mut charges[index], seen.place);
            } else {
                reported |= reported_bit(index);
            }
        }
        Some(Decision::Admit {
            nearest: session.nearest(charges, &found),
            reported,
        })
    }

    /// The same where counters stay. Those that have gone have no room for now.
    pub fn decide_now(&self, plan: &mut Plan, now: Moment) -> Decision {
        self.decide_here(plan, now).unwrap_or(Decision::Deny {
            charge: 0,
            left: 0,
            retry_after: Some(Duration::from_secs(1)),
        })
    }
}

/// Whether the charge fits on top of what is used and what else this plan asks of the counter.
fn fits(charge: &Charge, used: u32, others: u64) -> bool {
    let asked = if charge.cost == 0 {
        1
    } else {
        others + u64::from(charge.cost)
    };
    u64::from(used) + asked <= u64::from(charge.quota)
}

/// Whether two charges of a plan are counted in one place.
fn same_counter(charges: &[Charge], found: &[Found], one: usize, other: usize) -> bool {
    let (a, b) = (&charges[one], &charges[other]);
    a.key == b.key
        || (found[one].place == Place::Shared
            && found[other].place == Place::Shared
            && a.overflow == b.overflow)
}

/// What the other charges that pass `which` ask of the counter of charge `index`.
fn asked(
    charges: &[Charge],
    found: &[Found],
    index: usize,
    which: impl Fn(&Charge) -> bool,
) -> u64 {
    let others = (0..found.len()).filter(|&other| other != index && which(&charges[other]));
    others
        .filter(|&other| same_counter(charges, found, index, other))
        .map(|other| u64::from(charges[other].cost))
        .sum()
}

impl<'s> Session<'s> {
    /// Locks the shards of the plan, in ascending order: two decisions never wait for each other.
    fn open(store: &'s MemoryStore, plan: &Plan, now: Moment) -> Self {
        let mask = plan
            .charges
            .iter()
            .fold(0_u64, |mask, charge| mask | 1 << shard_of(charge.key));
        let mut shards = SmallVec::new();
        let mut rest = mask;
        while rest != 0 {
            let index = usize::try_from(rest.trailing_zeros()).unwrap_or(0);
            shards.push(store.shards[index].lock());
            rest &= rest - 1;
        }
        Self {
            store,
            mask,
            shards,
            bound: None,
            now,
            origin: plan.origin,
            fresh: Fresh::default(),
        }
    }

    fn shard(&mut self, key: CounterKey) -> &mut Shard {
        let below = self.mask & ((1 << shard_of(key)) - 1);
        &mut self.shards[usize::try_from(below.count_ones()).unwrap_or(0)]
    }

    fn bound(&mut self) -> &mut Bound {
        let store = self.store;
        self.bound.get_or_insert_with(|| store.bound.lock())
    }

    /// Finds the place of charge `index`, and moves its counter to now.
    fn look(&mut self, charges: &[Charge], found: &[Found], index: usize) -> Found {
        let charge = &charges[index];
        let now = self.now;
        let own = self.shard(charge.key).with(charge.key, |counter| {
            counter.advance(charge.span, now);
            counter.used()
        });
        if let Some(used) = own {
            return Found {
                place: Place::Own,
                used,
            };
        }
        if let Some(twin) = charges[..index]
            .iter()
            .position(|other| other.key == charge.key)
            && found[twin].place != Place::Nowhere
        {
            return found[twin];
        }
        // A key that shared the overflow did so under this shard's lock: the flag is up to date.
        if charge.cost == 0 && !self.store.overflowing.load(Ordering::Acquire) {
            return Found {
                place: Place::Nowhere,
                used: 0,
            };
        }
        self.look_further(charge)
    }

    /// The place of a key that has no counter.
    fn look_further(&mut self, charge: &Charge) -> Found {
        let (now, origin, mut fresh) = (self.now, self.origin, self.fresh);
        let bound = self.bound();
        let pool = if bound.must_share(charge) {
            None
        } else {
            bound.pool_for(charge, origin, now, &mut fresh)
        };
        let found = match pool {
            Some(pool) => {
                let seed = if charge.span == Span::Running {
                    None
                } else {
                    bound.seed(charge, now)
                };
                let used = seed.map_or(0, Counter::used);
                Found {
                    place: Place::New {
                        pool,
                        seeded: seed.is_some(),
                    },
                    used,
                }
            }
            None => {
                let used = bound.with(charge, |counter| {
                    counter.advance(charge.span, now);
                    counter.used()
                });
                Found {
                    place: Place::Shared,
                    used: used.unwrap_or(0),
                }
            }
        };
        self.fresh = fresh;
        found
    }

    /// Works on the counter of a charge, if there is one.
    fn with<T>(
        &mut self,
        charge: &Charge,
        place: Place,
        work: impl FnOnce(&Counter) -> T,
    ) -> Option<T> {
        let now = self.now;
        match place {
            Place::Shared => self.bound().with(charge, |counter| work(counter)),
            Place::New { seeded: true, .. } if charge.taken.is_none() => {
                self.bound().seed(charge, now).map(work)
            }
            Place::Own | Place::New { .. } | Place::Nowhere => self
                .shard(charge.key)
                .with(charge.key, |counter| work(counter)),
        }
    }

    /// The denial with the longest wait, if an enforced charge does not fit.
    fn deny(&mut self, charges: &[Charge], found: &[Found]) -> Option<Decision> {
        let denials = charges.iter().zip(found).enumerate();
        let longest = longest_wait(denials.filter_map(|(index, (charge, seen))| {
            let others = asked(charges, found, index, |other| {
                !other.report && charge.cost > 0
            });
            let denies = !charge.report && !fits(charge, seen.used, others);
            denies.then(|| (index, self.wait(charges, found, index)))
        }));
        longest.map(|(charge, retry_after)| Decision::Deny {
            charge,
            left: charges[charge].quota.saturating_sub(found[charge].used),
            retry_after,
        })
    }

    /// When a charge that does not fit can; `None`: never.
    fn wait(&mut self, charges: &[Charge], found: &[Found], index: usize) -> Option<Duration> {
        let (charge, now) = (&charges[index], self.now);
        let quota = u64::from(charge.quota);
        let enforced = |other: &Charge| !other.report && charge.cost > 0;
        let of_caller = asked(charges, found, index, |other| {
            enforced(other) && other.key == charge.key
        });
        if of_caller + u64::from(charge.cost.max(1)) > quota {
            return None;
        }
        // With others of the overflow it may be more than the quota, but they will not stay.
        let of_all = asked(charges, found, index, enforced) + u64::from(charge.cost);
        let cost = u32::try_from(of_all.min(quota)).unwrap_or(charge.quota);
        let wait = self.with(charge, found[index].place, |counter| {
            counter.wait(charge, cost, now)
        });
        wait.unwrap_or(Some(Duration::from_micros(1)))
    }

    /// Takes what a charge asks for.
    fn take(&mut self, charge: &mut Charge, place: Place) {
        if charge.cost == 0 {
            return;
        }
        let (now, origin) = (self.now, self.origin);
        match place {
            Place::Shared => {
                self.store.overflowing.store(true, Ordering::Release);
                charge.taken = Some(self.bound().share(charge, now).take(charge));
                charge.shared = true;
            }
            Place::Own | Place::New { .. } | Place::Nowhere => {
                let taken = self
                    .shard(charge.key)
                    .with(charge.key, |counter| counter.take(charge));
                charge.taken = taken.or_else(|| self.make(charge, place, origin));
            }
        }
    }

    /// Makes the counter of a charge, and takes from it.
    fn make(
        &mut self,
        charge: &Charge,
        place: Place,
        origin: Option<CounterKey>,
    ) -> Option<crate::limit::Taken> {
        let Place::New { pool, seeded } = place else {
            return None;
        };
        let now = self.now;
        let bound = self.bound();
        let seed = if seeded {
            bound.seed(charge, now).cloned()
        } else {
            None
        };
        bound.book(pool, charge.known, origin, now);
        let mut counter = seed.unwrap_or_else(|| Counter::new(charge.span, now));
        let taken = counter.take(charge);
        self.shard(charge.key)
            .insert(charge.key, charge.scope, pool, counter);
        Some(taken)
    }

    /// The enforced charge with the smallest share of its quota left.
    fn nearest(&mut self, charges: &[Charge], found: &[Found]) -> Option<Room> {
        let left = charges
            .iter()
            .zip(found)
            .enumerate()
            .filter(|(_, (charge, _))| !charge.report)
            .map(|(index, (charge, seen))| {
                let taken = asked(charges, found, index, |other| other.taken.is_some())
                    + u64::from(charge.cost);
                let left = u64::from(charge.quota).saturating_sub(u64::from(seen.used) + taken);
                (index, u32::try_from(left).unwrap_or(u32::MAX))
            });
        let (index, left) = smallest_share(charges, left)?;
        let (charge, now) = (&charges[index], self.now);
        let resets_in = self.with(charge, found[index].place, |counter| {
            counter.resets_in(charge.span, now)
        });
        Some(Room {
            charge: index,
            left,
            resets_in: resets_in.unwrap_or_default(),
        })
    }
}
