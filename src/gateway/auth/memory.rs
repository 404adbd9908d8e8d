//! A memory of hashes, of a fixed size: a flood of new ones takes the place of old ones.

use parking_lot::RwLock;

/// Locks over the memory.
const SHARDS: usize = 64;
/// Places that one hash may have. The one that would be forgotten first makes room.
const WAYS: usize = 8;

#[derive(Clone, Copy, Debug)]
struct Slot<T> {
    key: u128,
    /// Monotonic microseconds; 0 is free.
    until_us: u64,
    value: T,
}

/// Empty until something is to be remembered.
type Shard<T> = RwLock<Box<[[Slot<T>; WAYS]]>>;

#[derive(Debug)]
pub(super) struct Memory<T> {
    shards: [Shard<T>; SHARDS],
    /// Of a shard; a power of two.
    sets: usize,
}

impl<T: Copy + Default> Memory<T> {
    /// A memory of about so many hashes.
    pub(super) fn new(most: usize) -> Self {
        Self {
            shards: [(); SHARDS].map(|()| RwLock::default()),
            sets: (most / (SHARDS * WAYS)).next_power_of_two(),
        }
    }

    /// The hash is evenly spread already.
    fn place(&self, key: u128) -> (&Shard<T>, usize) {
        let bytes = key.to_le_bytes();
        let shard = usize::from(bytes[0]) % SHARDS;
        let set = usize::from(u16::from_le_bytes([bytes[1], bytes[2]])) % self.sets;
        (&self.shards[shard], set)
    }

    /// What is remembered of this hash, and until when.
    pub(super) fn get(&self, key: u128, now_us: u64) -> Option<(T, u64)> {
        let (shard, set) = self.place(key);
        let shard = shard.read();
        let found = shard.get(set)?.iter().find(|slot| slot.key == key)?;
        (now_us < found.until_us).then_some((found.value, found.until_us))
    }

    /// Remembers it, in place of what was.
    pub(super) fn put(&self, key: u128, value: T, until_us: u64) {
        let (shard, set) = self.place(key);
        let mut shard = shard.write();
        if shard.is_empty() {
            let free = Slot {
                key: 0,
                until_us: 0,
                value: T::default(),
            };
            *shard = vec![[free; WAYS]; self.sets].into();
        }
        let Some(slots) = shard.get_mut(set) else {
            return;
        };
        let same = slots.iter().position(|slot| slot.key == key);
        let at = same.or_else(|| {
            let oldest = slots.iter().enumerate().min_by_key(|(_, s)| s.until_us);
            oldest.map(|(at, _)| at)
        });
        if let Some(slot) = at.and_then(|at| slots.get_mut(at)) {
            *slot = Slot {
                key,
                until_us,
                value,
            };
        }
    }

    /// Forgets it.
    pub(super) fn remove(&self, key: u128) {
        let (shard, set) = self.place(key);
        let mut shard = shard.write();
        let slots = shard.get_mut(set).into_iter().flatten();
        for slot in slots.filter(|slot| slot.key == key) {
            slot.until_us = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_remembered_until_its_time() {
        let memory = Memory::new(1024);
        assert_eq!(memory.get(7, 0), None);
        memory.put(7, 'a', 10);
        assert_eq!(memory.get(7, 9), Some(('a', 10)));
        assert_eq!(memory.get(7, 10), None);
        memory.put(7, 'b', 20);
        assert_eq!(memory.get(7, 10), Some(('b', 20)));
        memory.remove(7);
        assert_eq!(memory.get(7, 10), None);
        assert_eq!(memory.get(0, 0), None, "a free place is nobody's");
    }

    #[test]
    fn a_flood_takes_no_more_room_and_drops_what_would_be_forgotten_first() {
        let memory = Memory::new(1024);
        // One set: the hashes differ above what chooses it.
        let key = |n: u128| n << 64 | 1;
        for n in 1..=8 {
            memory.put(key(n), (), 100 + u64::try_from(n).unwrap());
        }
        memory.put(key(9), (), 50);
        assert_eq!(memory.get(key(1), 0), None);
        memory.put(key(10), (), 200);
        assert_eq!(memory.get(key(9), 0), None);
        assert!((2..=8).all(|n| memory.get(key(n), 0).is_some()));
        for n in 0..100_000_u128 {
            memory.put(
                n.wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_0C5C_A5F2_3B91),
                (),
                1000,
            );
        }
        let slots: usize = memory.shards.iter().map(|s| s.read().len() * WAYS).sum();
        assert_eq!(slots, 1024);
    }
}
