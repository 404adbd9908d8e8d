//! What calls in flight hold of an app's limits with tokens that nobody has seen good yet. A bad
//! token is told by the backend's 401, which gives back what its call has taken; until then, and
//! a slow backend makes it long, one address holds its share of a figure and no more.
//!
//! Only counters of calls in flight are there: no more than `max_in_flight` can make.

use std::collections::HashMap;

use foldhash::quality::RandomState;
use parking_lot::Mutex;
use smallvec::SmallVec;

use crate::limit::{Charge, CounterKey, LimitId, Plan, Scope};

/// Locks over them.
const SHARDS: usize = 16;

/// A counter, and the address that holds something of it.
type Key = (CounterKey, CounterKey);

#[derive(Debug, Default)]
pub(super) struct Unproven {
    shards: [Mutex<HashMap<Key, u64, RandomState>>; SHARDS],
}

/// What one call holds; see [`Unproven::let_go`].
#[derive(Debug, Default)]
pub(in crate::gateway) struct Held(SmallVec<[(Key, u32); 4]>);

impl Unproven {
    fn shard(&self, key: Key) -> &Mutex<HashMap<Key, u64, RandomState>> {
        // Hashes both.
        let [first, ..] = (key.0.0 ^ key.1.0).to_le_bytes();
        &self.shards[usize::from(first) % SHARDS]
    }

    /// Takes what a call with this plan asks of its app and user, all of it or nothing. An address
    /// holds `percent` of a figure at most.
    ///
    /// One call may always: it might be the only kind that its caller makes.
    ///
    /// # Errors
    /// The limit whose share the address holds already.
    pub(super) fn hold(&self, plan: &Plan, percent: u8) -> Result<Held, LimitId> {
        let mut held = Held::default();
        let Some(ip) = plan.origin else {
            return Ok(held);
        };
        let own = |charge: &&Charge| charge.scope != Scope::Ip && !charge.report && charge.cost > 0;
        let charges = plan.charges.iter().filter(own);
        let charges = charges.map(|c| (c.limit, c.key, u64::from(c.quota), c.cost));
        // A total has no limit of its own: the call's first one answers for it.
        let first = plan.charges.iter().find(own).map(|charge| charge.limit);
        let totals = plan.totals.iter().filter(|total| total.units > 0);
        let totals = totals.filter_map(|t| Some((first?, t.key, t.figure, t.units)));
        for (limit, key, quota, cost) in charges.chain(totals) {
            let key = (key, ip);
            let share = quota.saturating_mul(percent.into()) / 100;
            let fits = {
                let mut shard = self.shard(key).lock();
                let units = shard.entry(key).or_default();
                let fits = *units == 0 || *units + u64::from(cost) <= share;
                if fits {
                    *units += u64::from(cost);
                }
                fits
            };
            if !fits {
                self.let_go(&mut held);
                return Err(limit);
            }
            held.0.push((key, cost));
        }
        Ok(held)
    }

    /// Lets go of it, once.
    pub(super) fn let_go(&self, held: &mut Held) {
        for (key, cost) in held.0.drain(..) {
            let mut shard = self.shard(key).lock();
            if let Some(units) = shard.get_mut(&key) {
                *units = units.saturating_sub(cost.into());
                if *units == 0 {
                    shard.remove(&key);
                }
            }
        }
    }

    /// Counters of which something is held.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit::total::{Kind, TotalCharge};
    use crate::limit::{OnStoreFailure, Span};

    fn charge(limit: u32, quota: u32, cost: u32, scope: Scope) -> Charge {
        Charge {
            limit: LimitId(limit),
            key: CounterKey(limit.into()),
            overflow: CounterKey(0),
            quota,
            cost,
            span: Span::Running,
            scope,
            report: false,
            on_store_failure: OnStoreFailure::Local,
            known: false,
            taken: None,
            shared: false,
        }
    }

    #[test]
    fn an_address_holds_its_share_of_a_total_too() {
        let unproven = Unproven::default();
        let ask = || {
            let mut plan = plan(1, &[charge(0, 1000, 1, Scope::App)]);
            plan.totals.push(TotalCharge {
                kind: Kind::Users,
                key: CounterKey(77),
                figure: 100,
                units: 10,
                report: false,
                since_s: 0,
                whose: None,
                is_new: false,
                taken: None,
                over: false,
            });
            unproven.hold(&plan, 25)
        };
        let (first, second) = (ask().unwrap(), ask().unwrap());
        assert_eq!(ask().unwrap_err(), LimitId(0));
        for mut held in [first, second] {
            unproven.let_go(&mut held);
        }
        assert_eq!(unproven.len(), 0);
    }

    fn plan(ip: u128, charges: &[Charge]) -> Plan {
        Plan {
            charges: charges.iter().copied().collect(),
            origin: Some(CounterKey(ip)),
            app: None,
            totals: Vec::new(),
        }
    }

    #[test]
    fn an_address_holds_its_share_of_a_figure_and_another_one_its_own() {
        let unproven = Unproven::default();
        let call = |ip| unproven.hold(&plan(ip, &[charge(1, 100, 1, Scope::App)]), 25);
        let mut held: Vec<Held> = (0..25).map(|_| call(1).unwrap()).collect();
        assert_eq!(call(1).unwrap_err(), LimitId(1));
        assert!(call(2).is_ok());
        unproven.let_go(held.last_mut().unwrap());
        unproven.let_go(held.last_mut().unwrap());
        assert!(call(1).is_ok());
        assert!(call(1).is_err(), "what was let go of twice came back once");
    }

    #[test]
    fn one_call_is_let_in_whatever_it_costs() {
        let unproven = Unproven::default();
        for (quota, cost) in [(1, 1), (3, 1), (20, 20)] {
            let plan = plan(1, &[charge(quota, quota, cost, Scope::User)]);
            let mut held = unproven.hold(&plan, 25).unwrap();
            assert!(unproven.hold(&plan, 25).is_err());
            unproven.let_go(&mut held);
            unproven.let_go(&mut unproven.hold(&plan, 25).unwrap());
        }
        assert_eq!(unproven.len(), 0);
    }

    #[test]
    fn who_does_not_get_all_holds_nothing() {
        let unproven = Unproven::default();
        let (wide, narrow) = (charge(1, 100, 1, Scope::App), charge(2, 4, 1, Scope::App));
        let mut first = unproven.hold(&plan(1, &[narrow]), 25).unwrap();
        for _ in 0..100 {
            assert_eq!(
                unproven.hold(&plan(1, &[wide, narrow]), 25).unwrap_err(),
                LimitId(2)
            );
        }
        // Held by nobody, 25 are there.
        let mut held = unproven
            .hold(&plan(1, &[Charge { cost: 25, ..wide }]), 25)
            .unwrap();
        unproven.let_go(&mut held);
        unproven.let_go(&mut first);
        assert_eq!(unproven.len(), 0);
    }

    #[test]
    fn limits_of_addresses_and_those_that_deny_nothing_have_no_share() {
        let unproven = Unproven::default();
        let report = Charge {
            report: true,
            ..charge(1, 1, 1, Scope::App)
        };
        let plan = plan(
            1,
            &[
                charge(2, 1, 1, Scope::Ip),
                report,
                charge(3, 1, 0, Scope::App),
            ],
        );
        for _ in 0..10 {
            assert!(unproven.hold(&plan, 25).is_ok());
        }
        assert_eq!(unproven.len(), 0);
    }

    #[test]
    fn calls_of_many_threads_hold_no_more_and_leave_nothing_behind() {
        use std::sync::atomic::{AtomicU32, Ordering};
        let unproven = Unproven::default();
        let most = AtomicU32::new(0);
        let plan = plan(
            1,
            &[charge(1, 40, 1, Scope::App), charge(2, 24, 2, Scope::User)],
        );
        let running = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..2000 {
                        if let Ok(mut held) = unproven.hold(&plan, 25) {
                            let now = running.fetch_add(1, Ordering::SeqCst) + 1;
                            most.fetch_max(now, Ordering::SeqCst);
                            std::thread::yield_now();
                            running.fetch_sub(1, Ordering::SeqCst);
                            unproven.let_go(&mut held);
                        }
                    }
                });
            }
        });
        // A quarter of 24 is three calls of two units.
        assert!((1..=3).contains(&most.into_inner()));
        assert_eq!(unproven.len(), 0);
    }
}
