//! Counters shared through Redis.
//!
//! One script (`counters.lua`) decides a whole plan at one moment of the server's clock, with
//! the arithmetic of `limit::sliding`; requests that arrive together share its call. A script
//! that arrives too late does nothing, so that a call which no longer waits was never charged.

pub mod connect;
mod link;
#[cfg(test)]
mod tests;
mod wire;

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::oneshot;

use self::connect::Connector;
use self::link::{Link, Terms};
use self::wire::{Answer, Item, Verdict, What};
use super::StoreError;
use crate::clock::Clock;
use crate::limit::{Charge, Decision, Moment, Plan, Span};

/// The store's clock may be this far behind what was expected of it.
const BEHIND_US: u64 = 1_000_000;

/// Whose time decides.
#[derive(Clone, Copy, Debug)]
pub enum TimeSource {
    /// The server's clock; this process's own says how far it has gone since an answer.
    Server(Clock),
    /// The monotonic part of the moment that each call is given: for tests.
    Caller,
}

/// Counters in Redis.
#[derive(Debug)]
pub struct RedisStore {
    terms: Arc<Terms>,
    time: TimeSource,
    slot_lease: Duration,
    slots: AtomicU64,
    /// Number of this store in the process: links are kept by thread.
    number: u64,
    /// Store time less monotonic time, at the last answer; `i64::MIN` before the first.
    ahead_us: AtomicI64,
}

static STORES: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// Each thread's links: a request is answered on the runtime it runs on.
    static LINKS: RefCell<Vec<(u64, Link)>> = const { RefCell::new(Vec::new()) };
}

impl RedisStore {
    /// A store over this connector. Connects when it is first asked. `gateway` names this
    /// process among all that share the store.
    #[must_use]
    pub fn new(connector: Connector, gateway: String, time: TimeSource) -> Self {
        let options = connector.options();
        Self {
            time,
            slot_lease: options.slot_lease,
            slots: AtomicU64::new(0),
            number: STORES.fetch_add(1, Ordering::Relaxed),
            ahead_us: AtomicI64::new(i64::MIN),
            terms: Arc::new(Terms {
                sha: Terms::sha(),
                gateway,
                prefix: options.prefix.clone(),
                timeout: options.timeout,
                round_trips: AtomicU64::new(0),
                items: AtomicU64::new(0),
                connector,
            }),
        }
    }

    /// Commands sent since the start, and the items in them.
    pub fn round_trips(&self) -> (u64, u64) {
        (
            self.terms.round_trips.load(Ordering::Relaxed),
            self.terms.items.load(Ordering::Relaxed),
        )
    }

    /// This thread's link.
    fn link(&self) -> Link {
        LINKS.with_borrow_mut(|links| {
            links.retain(|(_, link)| !link.is_over());
            if let Some((_, link)) = links.iter().find(|(number, _)| *number == self.number) {
                return link.clone();
            }
            let link = Link::start(self.terms.clone());
            links.push((self.number, link.clone()));
            link
        })
    }

    fn at_us(&self, now: Moment) -> Option<u64> {
        matches!(self.time, TimeSource::Caller).then_some(now.mono_us)
    }

    /// Between which times of the store a script that is sent now may run.
    fn bounds(&self, now: Moment) -> What {
        let ahead_us = self.ahead_us.load(Ordering::Relaxed);
        let expected_us = match self.time {
            TimeSource::Server(_) if ahead_us != i64::MIN => {
                now.mono_us.checked_add_signed(ahead_us)
            }
            TimeSource::Server(_) | TimeSource::Caller => None,
        };
        let Some(expected_us) = expected_us else {
            return What::Decide {
                earliest_us: 0,
                latest_us: 1 << 53,
            };
        };
        let timeout_us = u64::try_from(self.terms.timeout.as_micros()).unwrap_or(u64::MAX);
        What::Decide {
            earliest_us: expected_us.saturating_sub(BEHIND_US),
            latest_us: expected_us.saturating_add(timeout_us),
        }
    }

    /// Notes what the store's clock said. It said so before now: what is expected of it is
    /// never later than what it shows, and no script outlives the call that waits for it.
    fn note(&self, store_us: u64) {
        if let TimeSource::Server(clock) = self.time
            && let (Ok(store), Ok(mono)) =
                (i64::try_from(store_us), i64::try_from(clock.now().mono_us))
        {
            self.ahead_us.store(store - mono, Ordering::Relaxed);
        }
    }

    /// One all-or-nothing decision.
    ///
    /// # Errors
    /// [`StoreError`]; nothing stays charged then.
    pub async fn decide(&self, plan: &mut Plan, now: Moment) -> Result<Decision, StoreError> {
        let link = self.link();
        // A plan is asked a second time at most: when it is another day there than here.
        for _ in 0..2 {
            let count = u64::try_from(plan.charges.len()).unwrap_or(0);
            let slot = self.slots.fetch_add(count, Ordering::Relaxed);
            let item = Item::decide(plan, self.bounds(now), slot, self.slot_lease);
            let receiver = link
                .ask(item.clone(), self.at_us(now))
                .ok_or(StoreError::Unavailable)?;
            let mut waiting = Waiting {
                link: &link,
                receiver,
                item,
                at_us: self.at_us(now),
            };
            let answer = waiting.answer(self.terms.timeout).await?;
            drop(waiting);
            self.note(answer.store_us);
            match answer.verdict {
                Some(Verdict::Admitted(readings)) if readings.len() == plan.charges.len() => {
                    return Ok(wire::admitted(plan, &readings, answer.store_us, slot));
                }
                Some(Verdict::Denied(readings)) if readings.len() == plan.charges.len() => {
                    return wire::denied(plan, &readings, answer.store_us)
                        .ok_or(StoreError::Unavailable);
                }
                Some(Verdict::AnotherDay) => shift_days(plan, answer.store_us),
                _ => return Err(StoreError::Unavailable),
            }
        }
        Err(StoreError::Unavailable)
    }

    /// Gives back what these charges took; see [`Store::give_back`](super::Store::give_back).
    pub fn give_back(&self, plan: &mut Plan, now: Moment, which: &dyn Fn(&Charge) -> bool) {
        if let Some(item) = Item::give_back(plan, which)
            && !self.link().tell(item, self.at_us(now))
        {
            tracing::debug!("no room to give back: the units count until their window is over");
        }
    }
}

/// Moves the days of a plan to the store's.
fn shift_days(plan: &mut Plan, store_us: u64) {
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
    link: &'s Link,
    receiver: oneshot::Receiver<Answer>,
    item: Item,
    at_us: Option<u64>,
}

impl Waiting<'_> {
    async fn answer(&mut self, timeout: Duration) -> Result<Answer, StoreError> {
        match tokio::time::timeout(timeout, &mut self.receiver).await {
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
            self.link.tell(item, self.at_us);
        }
    }
}
