//! What could not be sent and nobody waits for, for when the store is back.

use std::mem;

use foldhash::fast::RandomState;
use hashbrown::{HashMap, HashSet};
use smallvec::SmallVec;

use super::{Terms, WAITING};
use crate::limit::total::Change;
use crate::store::redis::name::Name;
use crate::store::redis::part::Part;
use crate::store::redis::wire::Item;

/// Totals, at most, of which more was to be told than is kept.
const MOST_BEYOND: usize = 100_000;

/// What is kept. Changes of one total that commute are one if they are alike: an outage of an
/// app's is a few of them.
#[derive(Debug, Default)]
pub(in crate::store::redis) struct Unsent {
    items: Vec<Item>,
    /// Of totals, in their order.
    changes: Vec<Part>,
    /// Where the last of each total are, that may change places.
    places: HashMap<Name, SmallVec<[usize; 4]>, RandomState>,
    /// Totals of which more was to be told: in doubt when the store is back.
    beyond: HashSet<Name, RandomState>,
}

impl Unsent {
    /// Keeps an item; what is lost of it, since too much is kept already.
    pub(super) fn keep(&mut self, item: Item) -> Option<Item> {
        let (changes, rest) = item.into_changes();
        let mut lost = SmallVec::<[Part; 6]>::new();
        for change in changes {
            if !self.add(change) {
                lost.push(change);
            }
        }
        if let Some(rest) = rest
            && self.items.len() < WAITING
        {
            self.items.push(rest);
        }
        (!lost.is_empty()).then(|| Item::changes(&lost))
    }

    fn add(&mut self, change: Part) -> bool {
        let is_full = self.changes.len() >= WAITING;
        if is_full && !self.places.contains_key(&change.name) {
            return self.leave_out(change.name);
        }
        let places = self.places.entry(change.name).or_default();
        let last = places.last().and_then(|at| self.changes.get(*at));
        if !last.is_some_and(|last| last.commutes(&change)) {
            places.clear();
        }
        for at in places.iter() {
            let same = self.changes.get_mut(*at);
            if same.is_some_and(|same| same.join(&change)) {
                return true;
            }
        }
        if is_full {
            // What comes after it is not told before it.
            places.clear();
            return self.leave_out(change.name);
        }
        places.push(self.changes.len());
        self.changes.push(change);
        true
    }

    fn leave_out(&mut self, name: Name) -> bool {
        if self.beyond.len() < MOST_BEYOND {
            self.beyond.insert(name);
        }
        false
    }

    /// Whether a total has anything to be told.
    pub(in crate::store::redis) fn has(&self, name: &Name) -> bool {
        self.places.contains_key(name) || self.beyond.contains(name)
    }

    /// Of how many totals anything is to be told.
    pub(in crate::store::redis) fn totals(&self) -> usize {
        self.places.len() + self.beyond.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty() && self.changes.is_empty() && self.beyond.is_empty()
    }
}

/// What was kept for a part of the store. What of it is not told is kept again.
pub(in crate::store::redis) struct Kept<'t> {
    terms: &'t Terms,
    items: Vec<Item>,
    changes: Vec<Part>,
    /// On their way: nobody knows what became of them.
    sent: Vec<Item>,
}

impl<'t> Kept<'t> {
    /// Takes out what concerns these counters.
    pub(in crate::store::redis) fn take(
        terms: &'t Terms,
        concerns: impl Fn(&Name) -> bool,
    ) -> Self {
        let mut unsent = terms.unsent.lock();
        let concerned = |item: &mut Item| item.name().is_none_or(|name| concerns(&name));
        let items = unsent.items.extract_if(.., concerned).collect();
        let mut changes = Vec::new();
        let all = mem::take(&mut unsent.changes);
        unsent.places.clear();
        for change in all {
            match concerns(&change.name) {
                true => changes.push(change),
                false => drop(unsent.add(change)),
            }
        }
        let beyond: Vec<Name> = unsent.beyond.extract_if(|name| concerns(name)).collect();
        drop(unsent);
        for name in beyond {
            changes.push(Part::change(name, Change::Doubt, 0));
            for (era, round, units) in terms.under_way.take_lost(name) {
                changes.push(Part::change(name, Change::Take { units, round }, era));
            }
        }
        Self {
            terms,
            items,
            changes,
            sent: Vec::new(),
        }
    }

    /// Forgets what is not of totals.
    pub(in crate::store::redis) fn only_totals(&mut self) {
        self.items.clear();
    }

    /// The next to be sent, not more than these.
    pub(in crate::store::redis) fn next(&mut self, items: usize, changes: usize) -> Vec<Item> {
        let count = self.items.len().min(items);
        self.sent = self.items.drain(..count).collect();
        if count == 0 && !self.changes.is_empty() {
            let count = self.changes.len().min(changes);
            let some: Vec<Part> = self.changes.drain(..count).collect();
            self.sent = vec![Item::changes(&some)];
        }
        self.sent.clone()
    }

    /// Of those, these were not sent.
    pub(in crate::store::redis) fn put_back(&mut self, items: Vec<Item>) {
        let (mut changes, mut rest) = (Vec::new(), Vec::new());
        for item in items {
            let (some, other) = item.into_changes();
            changes.extend(some);
            rest.extend(other);
        }
        self.changes.splice(..0, changes);
        self.items.splice(..0, rest);
    }

    /// What became of those is known, or seen to.
    pub(in crate::store::redis) fn settled(&mut self) {
        self.sent.clear();
    }
}

impl Drop for Kept<'_> {
    fn drop(&mut self) {
        let (items, changes) = (mem::take(&mut self.items), mem::take(&mut self.changes));
        if !items.is_empty() || !changes.is_empty() {
            // They were there before what has been kept since.
            let later = mem::take(&mut *self.terms.unsent.lock());
            items.into_iter().for_each(|item| self.terms.keep(item));
            self.terms.keep(Item::changes(&changes));
            later
                .items
                .into_iter()
                .for_each(|item| self.terms.keep(item));
            self.terms.keep(Item::changes(&later.changes));
            self.terms.unsent.lock().beyond.extend(later.beyond);
        }
        for item in mem::take(&mut self.sent) {
            self.terms.doubt(&item);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit::CounterKey;

    fn name(key: u128) -> Name {
        Name::plain(CounterKey(7), CounterKey(key))
    }

    fn keep(unsent: &mut Unsent, key: u128, change: Change) -> bool {
        let part = Part::change(name(key), change, 1);
        unsent.keep(Item::changes(&[part])).is_none()
    }

    fn add(units: u32) -> Change {
        Change::Add(units)
    }

    #[test]
    fn changes_that_are_alike_are_one_unless_another_lies_between() {
        let mut unsent = Unsent::default();
        let (take, keep_one) = (
            Change::Take { units: 1, round: 4 },
            Change::Keep { units: 1, round: 4 },
        );
        for _ in 0..WAITING {
            assert!(keep(&mut unsent, 1, take) && keep(&mut unsent, 1, keep_one));
        }
        assert_eq!(unsent.changes.len(), 2);
        let units = unsent.changes.iter().map(|part| part.units);
        assert_eq!(units.collect::<Vec<_>>(), [4096, 4096]);
        let lower = Change::Lower { units: 2, basis: 4 };
        for change in [take, lower, lower, take, Change::Clear, take, add(1), take] {
            assert!(keep(&mut unsent, 1, change));
        }
        let units = unsent.changes.iter().map(|part| part.units);
        assert_eq!(units.collect::<Vec<_>>(), [4097, 4096, 4, 1, 0, 2, 1]);
    }

    #[test]
    fn what_is_more_than_can_be_kept_is_known_to_be_so() {
        let mut unsent = Unsent::default();
        for key in 0..WAITING as u128 {
            assert!(keep(&mut unsent, key, add(1)));
        }
        assert!(keep(&mut unsent, 0, add(1)), "it is there");
        assert!(!keep(&mut unsent, WAITING as u128, add(1)));
        assert!(unsent.has(&name(WAITING as u128)) && unsent.beyond.len() == 1);
        assert_eq!(
            unsent.places.len(),
            WAITING,
            "it takes no room but its name's"
        );
    }
}
