//! Receipts of what others have charged: each gives back once, at the gateway that issued it.
//!
//! A table and no signed text: "once" needs a memory in any case, and slots must be freed when a
//! receipt is never used. It is bounded in time and in number, and ends with the process.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::limit::{Charge, CounterKey, Moment, Plan};
use crate::observe::metrics::RuleMetrics;

/// How long a receipt is good for, microseconds.
const LIVES_US: u64 = 300_000_000;
/// The receipts that were issued last are kept, so many of them.
const MOST: usize = 100_000;

#[derive(Debug)]
struct Charged {
    charges: Box<[Charge]>,
    app: Option<CounterKey>,
    origin: Option<CounterKey>,
    /// Of the rules by which it was charged: others number their limits in another way.
    counts: Arc<RuleMetrics>,
    until_us: u64,
}

impl Charged {
    fn apart(self) -> (Plan, Arc<RuleMetrics>) {
        let plan = Plan {
            charges: self.charges.into_iter().collect(),
            app: self.app,
            origin: self.origin,
            totals: Vec::new(),
        };
        (plan, self.counts)
    }
}

#[derive(Debug, Default)]
struct Table {
    charged: HashMap<u128, Charged>,
    /// All that were issued, oldest first, and until when they are good.
    issued: VecDeque<(u128, u64)>,
}

/// The receipts of a gateway.
#[derive(Debug, Default)]
pub struct Receipts {
    table: Mutex<Table>,
    number: AtomicU64,
    /// Keys that nobody outside knows: the numbers of receipts cannot be guessed.
    secrets: [RandomState; 2],
}

impl Receipts {
    /// A receipt for what this plan took. `None`: that is nothing.
    pub(super) fn issue(
        &self,
        plan: Plan,
        counts: &Arc<RuleMetrics>,
        now: Moment,
    ) -> Option<String> {
        let charges: Box<[Charge]> = plan
            .charges
            .into_iter()
            .filter(|charge| charge.taken.is_some())
            .collect();
        if charges.is_empty() {
            return None;
        }
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let id = self.secrets.iter().fold(0_u128, |id, secret| {
            id << 64 | u128::from(secret.hash_one(number))
        });
        let charged = Charged {
            charges,
            app: plan.app,
            origin: plan.origin,
            counts: counts.clone(),
            until_us: now.mono_us.saturating_add(LIVES_US),
        };
        let until_us = charged.until_us;
        let mut table = self.table.lock();
        table.charged.insert(id, charged);
        table.issued.push_back((id, until_us));
        Some(format!("{id:032x}"))
    }

    /// What a receipt gives back, once, and where that is counted.
    pub(super) fn redeem(&self, receipt: &str, now: Moment) -> Option<(Plan, Arc<RuleMetrics>)> {
        let is_ours = receipt.len() == 32 && receipt.bytes().all(|b| b.is_ascii_hexdigit());
        let id = u128::from_str_radix(receipt, 16).ok().filter(|_| is_ours)?;
        let mut table = self.table.lock();
        let is_good = |charged: &Charged| charged.until_us > now.mono_us;
        table.charged.get(&id).filter(|charged| is_good(charged))?;
        table.charged.remove(&id).map(Charged::apart)
    }

    /// What nobody can give back any more: the receipt is too old, or one of too many.
    pub fn expired(&self, now: Moment) -> Vec<Plan> {
        let mut table = self.table.lock();
        let mut expired = Vec::new();
        while table.issued.len() > MOST
            || table
                .issued
                .front()
                .is_some_and(|(_, until_us)| *until_us <= now.mono_us)
        {
            let Some((id, _)) = table.issued.pop_front() else {
                break;
            };
            let charged = table.charged.remove(&id);
            expired.extend(charged.map(|charged| charged.apart().0));
        }
        if table.charged.capacity() > 1024 && table.charged.len() < table.charged.capacity() / 4 {
            table.charged.shrink_to_fit();
        }
        expired
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit::{LimitId, OnStoreFailure, Scope, Span, Taken};

    fn at(us: u64) -> Moment {
        Moment {
            mono_us: us,
            unix_us: us,
        }
    }

    fn plan(taken: Option<Taken>) -> Plan {
        let charge = Charge {
            limit: LimitId(0),
            key: CounterKey(1),
            overflow: CounterKey(2),
            quota: 1,
            cost: 1,
            span: Span::Running,
            scope: Scope::App,
            report: false,
            on_store_failure: OnStoreFailure::Local,
            known: false,
            taken,
            shared: false,
        };
        Plan {
            charges: [charge].into_iter().collect(),
            ..Plan::default()
        }
    }

    #[test]
    fn a_receipt_gives_back_once_and_in_its_time() {
        let receipts = Receipts::default();
        let slot = || plan(Some(Taken::Slot(7)));
        let one = receipts.issue(slot(), &Arc::default(), at(0)).unwrap();
        let other = receipts.issue(slot(), &Arc::default(), at(0)).unwrap();
        assert_ne!(one, other);
        assert!(receipts.redeem(&one, at(1)).is_some());
        assert!(receipts.redeem(&one, at(1)).is_none());
        assert!(receipts.redeem(&other, at(LIVES_US)).is_none(), "too late");
        for made_up in ["", "0", "+0", &"0".repeat(32), &"f".repeat(33)] {
            assert!(receipts.redeem(made_up, at(1)).is_none());
        }
        assert_eq!(receipts.expired(at(LIVES_US - 1)).len(), 0);
        assert_eq!(receipts.expired(at(LIVES_US)).len(), 1, "one was used");
    }

    #[test]
    fn a_charge_of_nothing_has_no_receipt() {
        assert_eq!(
            Receipts::default().issue(plan(None), &Arc::default(), at(0)),
            None
        );
    }

    #[test]
    fn receipts_are_bounded_in_number() {
        let receipts = Receipts::default();
        for _ in 0..MOST + 2 {
            receipts
                .issue(plan(Some(Taken::Slot(1))), &Arc::default(), at(0))
                .unwrap();
        }
        assert_eq!(receipts.expired(at(1)).len(), 2);
    }
}
