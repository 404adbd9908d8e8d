//! A part of the table: counters under one lock.

use hashbrown::HashTable;

use super::bound::Pool;
use super::counter::Counter;
use crate::limit::{CounterKey, Moment, Scope};

/// Shards of a store.
pub(super) const SHARDS: usize = 64;

/// Keys are hashes already; one multiplication keeps even keys that are not well spread.
pub(super) fn hash(key: CounterKey) -> u64 {
    let [low, high] = halves(key);
    (low ^ high).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

fn halves(key: CounterKey) -> [u64; 2] {
    let bytes = key.0.to_le_bytes();
    let (low, high) = bytes.split_at(8);
    [low, high].map(|half| half.try_into().map_or(0, u64::from_le_bytes))
}

/// The shard of a key, from bits of its hash that neither place nor tag in the table uses.
pub(super) fn shard_of(key: CounterKey) -> usize {
    usize::try_from((hash(key) >> 40) & 63).unwrap_or(0)
}

/// A counter with its key. The key is kept in halves: a `u128` would pad the entry.
#[derive(Debug)]
pub(super) struct Entry {
    key: [u64; 2],
    /// Which share of the bound it takes.
    pub(super) pool: Pool,
    scope: Scope,
    /// The counter.
    pub(super) counter: Counter,
}

impl Entry {
    fn hash(&self) -> u64 {
        (self.key[0] ^ self.key[1]).wrapping_mul(0x9E37_79B9_7F4A_7C15)
    }
}

/// Counters under one lock.
#[derive(Debug, Default)]
pub(super) struct Shard {
    /// Whether they are another process's now: nothing is decided by them here.
    pub(super) away: bool,
    table: HashTable<Entry>,
    /// Counters by scope.
    pub(super) counters: [usize; 3],
    /// Slots in use, as of the last time that each counter was looked at.
    pub(super) slots: usize,
}

impl Shard {
    /// Works on the counter of this key, if there is one.
    pub(super) fn with<T>(
        &mut self,
        key: CounterKey,
        work: impl FnOnce(&mut Counter) -> T,
    ) -> Option<T> {
        let halves = halves(key);
        let entry = self
            .table
            .find_mut(hash(key), |entry| entry.key == halves)?;
        let before = entry.counter.slots();
        let result = work(&mut entry.counter);
        self.slots = self.slots + entry.counter.slots() - before;
        Some(result)
    }

    /// Adds a counter for a key that has none.
    pub(super) fn insert(&mut self, key: CounterKey, scope: Scope, pool: Pool, counter: Counter) {
        self.counters[scope_index(scope)] += 1;
        self.slots += counter.slots();
        let entry = Entry {
            key: halves(key),
            pool,
            scope,
            counter,
        };
        self.table.insert_unique(hash(key), entry, Entry::hash);
    }

    /// All counters: key, pool, scope.
    pub(super) fn all(&self) -> impl ExactSizeIterator<Item = (CounterKey, Pool, Scope, &Counter)> {
        self.table.iter().map(|entry| {
            let [low, high] = entry.key;
            let key = CounterKey(u128::from(high) << 64 | u128::from(low));
            (key, entry.pool, entry.scope, &entry.counter)
        })
    }

    /// Drops idle counters, and the room they leave. How many, by pool.
    pub(super) fn sweep(&mut self, now: Moment) -> [usize; Pool::COUNT] {
        let mut gone = [0; Pool::COUNT];
        let Self {
            table,
            counters,
            slots,
            away: _,
        } = self;
        table.retain(|entry| {
            let before = entry.counter.slots();
            let idle = entry.counter.is_idle(now);
            *slots = *slots + entry.counter.slots() - before;
            if idle {
                gone[entry.pool.index()] += 1;
                counters[scope_index(entry.scope)] -= 1;
            }
            !idle
        });
        if table.capacity() > 64 && table.len() < table.capacity() / 4 {
            table.shrink_to(table.len() * 2, Entry::hash);
        }
        gone
    }
}

/// The place of a scope in gauges.
pub(in crate::store) fn scope_index(scope: Scope) -> usize {
    match scope {
        Scope::App => 0,
        Scope::User => 1,
        Scope::Ip => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_small_enough_for_a_million_busy_counters() {
        // A table is at worst 7/16 full, an entry has a byte of tag; a busy one has a ring of
        // 102 bytes, for which allocators take 112.
        let entry = (size_of::<Entry>() + 1) * 16 / 7;
        assert!(entry <= 200, "{entry} bytes for an idle counter");
        assert!(
            (entry + 112) * 1_000_000 <= 256 << 20,
            "{entry} bytes and a ring"
        );
    }
}
