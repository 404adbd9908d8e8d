//! What bounds the table: shares by kind, new keys by origin, and the overflow counters that
//! keys share which got no counter of their own.

use hashbrown::HashMap;
use hashbrown::hash_map::Entry as MapEntry;
use serde::{Deserialize, Serialize};

use super::counter::Counter;
use super::shard::{hash, scope_index};
use crate::limit::sliding::Sliding;
use crate::limit::{Charge, CounterKey, Moment, Scope, Span};

/// New keys that one origin can make a minute.
const NEW_KEYS: u32 = 1_000;
const MINUTE_US: u64 = 60_000_000;

/// Which share of the bound a counter takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Pool {
    /// The share of its scope.
    Scope(Scope),
    /// What is kept back for known apps and their users.
    Reserve,
}

impl Pool {
    /// Pools there are.
    pub(super) const COUNT: usize = 4;

    pub(super) fn index(self) -> usize {
        match self {
            Self::Scope(scope) => scope_index(scope),
            Self::Reserve => 3,
        }
    }
}

/// New keys that a plan is about to make.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Fresh {
    by_pool: [usize; Pool::COUNT],
    by_origin: u32,
}

/// Who has been counted in an overflow counter: a Bloom filter, so that a caller who never was
/// starts from nothing in a counter of its own.
#[derive(Debug)]
struct Callers(Box<[u64; Self::WORDS]>);

impl Callers {
    const WORDS: usize = 512;

    fn bits(key: CounterKey) -> impl Iterator<Item = (usize, u64)> {
        let hash = hash(key);
        [0, 16, 32].into_iter().map(move |shift| {
            let bit = (hash >> shift) % (64 * 512);
            (usize::try_from(bit / 64).unwrap_or(0), 1 << (bit % 64))
        })
    }

    fn contain(&self, key: CounterKey) -> bool {
        Self::bits(key).all(|(word, bit)| self.0[word] & bit != 0)
    }

    /// Whether the key was new.
    fn insert(&mut self, key: CounterKey) -> bool {
        let new = !self.contain(key);
        for (word, bit) in Self::bits(key) {
            self.0[word] |= bit;
        }
        new
    }
}

#[derive(Debug)]
struct Overflow {
    counter: Counter,
    callers: Callers,
}

type Map<V> = HashMap<CounterKey, V, foldhash::fast::FixedState>;

/// The bound of a store. One lock, taken last and only when a key has no counter.
#[derive(Debug)]
pub(super) struct Bound {
    shares: [usize; Pool::COUNT],
    taken: [usize; Pool::COUNT],
    overflows: Map<Overflow>,
    origins: Map<Sliding>,
    /// Origins that got no place among `origins`.
    other_origins: Sliding,
    max_origins: usize,
    overflowed: u64,
    /// Whether it is another process's now.
    pub(super) away: bool,
}

/// What another process must know of a bound.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Written {
    /// Key, counter, and who has been counted there.
    overflows: Vec<(CounterKey, Counter, Vec<u64>)>,
    origins: Vec<(CounterKey, Sliding)>,
    other_origins: Sliding,
    overflowed: u64,
}

/// The overflow counter that this charge would share. Users of known apps share none with
/// made-up ones.
pub(super) fn overflow_key(charge: &Charge) -> CounterKey {
    let known = charge.known && charge.scope == Scope::User;
    CounterKey(charge.overflow.0 ^ u128::from(known))
}

impl Bound {
    pub(super) fn new(max_counters: usize) -> Self {
        let quarter = max_counters / 4;
        let eighth = max_counters / 8;
        let user = max_counters - 2 * quarter - eighth;
        Self {
            shares: [quarter, user, quarter, eighth],
            taken: [0; Pool::COUNT],
            overflows: Map::default(),
            origins: Map::default(),
            other_origins: Sliding::new(),
            max_origins: (max_counters / 16).max(16),
            overflowed: 0,
            away: false,
        }
    }

    /// All but what follows from the counters themselves.
    pub(super) fn written(&self) -> Written {
        let overflows = self
            .overflows
            .iter()
            .map(|(key, overflow)| (*key, overflow.counter.clone(), overflow.callers.0.to_vec()));
        let origins = self.origins.iter();
        Written {
            overflows: overflows.collect(),
            origins: origins.map(|(key, made)| (*key, made.clone())).collect(),
            other_origins: self.other_origins.clone(),
            overflowed: self.overflowed,
        }
    }

    /// Goes on where another left off. The slots of calls that still run there.
    pub(super) fn read(&mut self, written: Written) -> Vec<(CounterKey, u64)> {
        let mut running = Vec::new();
        for (key, counter, words) in written.overflows {
            running.extend(counter.running().map(|slot| (key, slot)));
            let mut callers = Callers(Box::new([0; Callers::WORDS]));
            for (ours, theirs) in callers.0.iter_mut().zip(words) {
                *ours = theirs;
            }
            self.overflows.insert(key, Overflow { counter, callers });
        }
        self.origins.extend(written.origins);
        self.other_origins = written.other_origins;
        self.overflowed = written.overflowed;
        running
    }

    /// Frees a slot of an overflow counter whose call's process is gone.
    pub(super) fn abandon(&mut self, key: CounterKey, slot: u64) {
        if let Some(overflow) = self.overflows.get_mut(&key) {
            overflow.counter.abandon(slot);
        }
    }

    /// Books a counter that was made elsewhere.
    pub(super) fn book_read(&mut self, pool: Pool) {
        self.taken[pool.index()] += 1;
    }

    /// The pool that pays for a new counter of this charge, counted into `fresh`; `None`: it
    /// shares the overflow.
    pub(super) fn pool_for(
        &mut self,
        charge: &Charge,
        origin: Option<CounterKey>,
        now: Moment,
        fresh: &mut Fresh,
    ) -> Option<Pool> {
        // An address is nobody's: naming a known app in its calls does not make it known.
        let known = charge.known && charge.scope != Scope::Ip;
        let own = Pool::Scope(charge.scope);
        let pool = if self.has_room(own, fresh) && (known || self.origin_may(origin, now, fresh)) {
            own
        } else if known && (charge.scope == Scope::App || self.has_room(Pool::Reserve, fresh)) {
            // Known apps are as many as there are; their users are anybody's to make up.
            Pool::Reserve
        } else {
            return None;
        };
        fresh.by_pool[pool.index()] += 1;
        fresh.by_origin += u32::from(!known);
        Some(pool)
    }

    fn has_room(&self, pool: Pool, fresh: &Fresh) -> bool {
        let index = pool.index();
        self.taken[index] + fresh.by_pool[index] < self.shares[index]
    }

    fn origin_may(&mut self, origin: Option<CounterKey>, now: Moment, fresh: &Fresh) -> bool {
        let Some(origin) = origin else { return true };
        let full = self.origins.len() >= self.max_origins;
        let made = match self.origins.get_mut(&origin) {
            Some(made) => made,
            None if full => &mut self.other_origins,
            None => return fresh.by_origin < NEW_KEYS,
        };
        made.advance(MINUTE_US, now.mono_us);
        made.used() + fresh.by_origin < NEW_KEYS
    }

    /// Books a new counter.
    pub(super) fn book(
        &mut self,
        pool: Pool,
        known: bool,
        origin: Option<CounterKey>,
        now: Moment,
    ) {
        self.taken[pool.index()] += 1;
        let Some(origin) = origin.filter(|_| !known) else {
            return;
        };
        let full = self.origins.len() >= self.max_origins;
        let made = match self.origins.entry(origin) {
            MapEntry::Occupied(made) => made.into_mut(),
            MapEntry::Vacant(_) if full => &mut self.other_origins,
            MapEntry::Vacant(made) => made.insert(Sliding::new()),
        };
        made.advance(MINUTE_US, now.mono_us);
        made.take(1);
    }

    /// What a new counter must begin with, so that nobody gains by leaving the overflow: a copy
    /// of it, if this caller may have been counted there.
    pub(super) fn seed(&mut self, charge: &Charge, now: Moment) -> Option<&Counter> {
        let overflow = self.overflows.get_mut(&overflow_key(charge))?;
        if !overflow.callers.contain(charge.key) {
            return None;
        }
        overflow.counter.advance(charge.span, now);
        Some(&overflow.counter)
    }

    /// Whether this caller must go on sharing: a slot is freed where it was taken.
    pub(super) fn must_share(&self, charge: &Charge) -> bool {
        charge.span == Span::Running
            && self.overflows.get(&overflow_key(charge)).is_some_and(
                |overflow| matches!(&overflow.counter, Counter::Slots(slots) if slots.serves(charge.key)),
            )
    }

    /// Works on the overflow counter of this charge, if there is one.
    pub(super) fn with<T>(
        &mut self,
        charge: &Charge,
        work: impl FnOnce(&mut Counter) -> T,
    ) -> Option<T> {
        self.overflows
            .get_mut(&overflow_key(charge))
            .map(|overflow| work(&mut overflow.counter))
    }

    /// The overflow counter of this charge, which now counts for its caller.
    pub(super) fn share(&mut self, charge: &Charge, now: Moment) -> &mut Counter {
        let overflow = self
            .overflows
            .entry(overflow_key(charge))
            .or_insert_with(|| Overflow {
                counter: Counter::new(charge.span, now),
                callers: Callers(Box::new([0; Callers::WORDS])),
            });
        if overflow.callers.insert(charge.key) {
            self.overflowed += 1;
        }
        &mut overflow.counter
    }

    /// Frees the slot of a task that an overflow counter holds. Whether there was one.
    pub(super) fn finish(&mut self, key: CounterKey, task: &str, now: Moment) -> bool {
        self.overflows
            .values_mut()
            .any(|overflow| overflow.counter.finish(key, task, now))
    }

    /// Gives back the room of counters that went.
    pub(super) fn release(&mut self, gone: [usize; Pool::COUNT]) {
        for (taken, gone) in self.taken.iter_mut().zip(gone) {
            *taken = taken.saturating_sub(gone);
        }
    }

    /// Drops idle overflow counters and origins. Whether overflow counters remain.
    pub(super) fn sweep(&mut self, now: Moment) -> bool {
        self.overflows
            .retain(|_, overflow| !overflow.counter.is_idle(now));
        self.origins.retain(|_, made| !made.is_idle(now.mono_us));
        if self.origins.len() < self.origins.capacity() / 4 {
            self.origins.shrink_to_fit();
        }
        !self.overflows.is_empty()
    }

    /// Slots in use in overflow counters.
    pub(super) fn slots(&self) -> usize {
        self.overflows
            .values()
            .map(|overflow| overflow.counter.slots())
            .sum()
    }

    /// Keys that were counted in an overflow counter.
    pub(super) fn overflowed(&self) -> u64 {
        self.overflowed
    }
}
