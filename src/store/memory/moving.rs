//! Counters that move to another process: shard by shard, each under its lock. From then on
//! nothing is decided by it here, so that no unit is taken twice; until the other process has
//! said that it goes on, all of it can still come back.
//!
//! A decision locks all shards of its plan before it looks, so it finds either none of them gone
//! or takes nothing.

use serde::{Deserialize, Serialize};

use super::MemoryStore;
use super::bound::{Pool, Written, overflow_key};
use super::counter::Counter;
use crate::limit::total::Total;
use crate::limit::{Charge, CounterKey, Scope, Taken};

/// Counters in one piece.
const AT_ONCE: usize = 4096;

/// A part of the counters on their way.
#[derive(Debug, Serialize, Deserialize)]
pub struct Piece(Kind);

#[derive(Debug, Serialize, Deserialize)]
enum Kind {
    Counters(Vec<(CounterKey, Pool, Scope, Counter)>),
    Bound(Written),
    Totals(Vec<(CounterKey, Total)>),
}

/// A slot of a call that runs in another process.
#[derive(Clone, Copy, Debug)]
pub struct Running {
    key: CounterKey,
    shared: bool,
    slot: u64,
}

impl Running {
    /// The slot that this charge took, if it took one.
    #[must_use]
    pub fn of(charge: &Charge) -> Option<Self> {
        let Some(Taken::Slot(slot)) = charge.taken else {
            return None;
        };
        Some(Self {
            key: match charge.shared {
                true => overflow_key(charge),
                false => charge.key,
            },
            shared: charge.shared,
            slot,
        })
    }
}

impl MemoryStore {
    /// Hands out all counters. From now on nothing is decided here.
    ///
    /// # Errors
    /// The first of `give`; [`MemoryStore::come_back`] is the way back.
    pub fn move_out<E>(&self, mut give: impl FnMut(Piece) -> Result<(), E>) -> Result<(), E> {
        for shard in &self.shards {
            let counters: Vec<_> = {
                let mut shard = shard.lock();
                shard.away = true;
                let all = shard.all();
                all.map(|(key, pool, scope, counter)| (key, pool, scope, counter.clone()))
                    .collect()
            };
            let mut counters = counters.into_iter().peekable();
            while counters.peek().is_some() {
                let some = counters.by_ref().take(AT_ONCE).collect();
                give(Piece(Kind::Counters(some)))?;
            }
        }
        // Whoever looked at it has held a shard: nobody does now.
        let written = {
            let mut bound = self.bound.lock();
            bound.away = true;
            bound.written()
        };
        give(Piece(Kind::Bound(written)))?;
        let totals = {
            let mut totals = self.totals.lock();
            totals.away = true;
            totals.all()
        };
        // One at least: those of the file go where there is none.
        give(Piece(Kind::Totals(Vec::new())))?;
        for some in totals.chunks(AT_ONCE) {
            give(Piece(Kind::Totals(some.to_vec())))?;
        }
        Ok(())
    }

    /// Decides here again, by what the counters were.
    pub fn come_back(&self) {
        self.totals.lock().away = false;
        self.bound.lock().away = false;
        for shard in &self.shards {
            shard.lock().away = false;
        }
    }

    /// Takes in counters of another process, before any call is decided here. The slots of calls
    /// that still run there.
    pub fn move_in(&self, piece: Piece) -> Vec<Running> {
        let mut running = Vec::new();
        match piece.0 {
            Kind::Counters(counters) => {
                for (key, pool, scope, counter) in counters {
                    let slots = counter.running();
                    running.extend(slots.map(|slot| Running {
                        key,
                        shared: false,
                        slot,
                    }));
                    let mut shard = self.shard(key).lock();
                    if shard.with(key, |_| ()).is_none() {
                        shard.insert(key, scope, pool, counter);
                        self.bound.lock().book_read(pool);
                    }
                }
            }
            Kind::Totals(totals) => self.totals.lock().move_in(totals),
            Kind::Bound(written) => {
                let slots = self.bound.lock().read(written);
                running.extend(slots.into_iter().map(|(key, slot)| Running {
                    key,
                    shared: true,
                    slot,
                }));
                // Looked up by the next sweep.
                self.overflowing
                    .store(true, std::sync::atomic::Ordering::Release);
            }
        }
        running
    }

    /// The process in which these calls ran is gone: those that still have their slot lose it.
    pub fn abandon(&self, running: &[Running]) {
        for Running { key, shared, slot } in running.iter().copied() {
            if shared {
                self.bound.lock().abandon(key, slot);
            } else {
                let mut shard = self.shard(key).lock();
                shard.with(key, |counter| counter.abandon(slot));
            }
        }
    }
}
