//! Totals in this process. What changes is noted for whoever writes it down.

use std::collections::HashSet;

use foldhash::fast::RandomState;
use hashbrown::HashMap;

use crate::limit::CounterKey;
use crate::limit::total::{Change, Total, TotalCharge};

/// All totals, under one lock: calls that move them are few beside those that do not.
#[derive(Debug)]
pub(super) struct Totals {
    all: HashMap<CounterKey, Total, RandomState>,
    /// Above it, new ones are not kept, and refuse nothing.
    most: usize,
    /// What was not written down since it changed; `None`: nobody writes.
    changed: Option<HashSet<CounterKey, RandomState>>,
    /// Another process has them.
    pub(super) away: bool,
    /// They came from the process that had them, as they were.
    is_whole: bool,
    /// What was done here while another process writes them; `None`: none does.
    own: Option<HashMap<CounterKey, Own, RandomState>>,
}

/// What was done here to a total.
#[derive(Clone, Copy, Debug)]
struct Own {
    before: Total,
    /// What calls have added, less what they have taken; since it was checked here, if it was.
    moved: i64,
    /// Whether an answer was lost.
    doubted: bool,
}

impl Own {
    /// What there is by both.
    fn with(self, mut mine: Total, theirs: Total) -> Total {
        if mine == self.before && !self.doubted {
            return theirs;
        }
        let [mut was, mut is] = [self.before, theirs].map(Total::at_rest);
        (was.approximate, is.approximate) = (false, false);
        if was != is {
            return mine.merged(&theirs, &self.before, self.moved);
        }
        if mine.checked_s == self.before.checked_s {
            // That it was in doubt while they had it says nothing any more.
            mine.approximate = theirs.approximate || self.doubted;
        }
        mine
    }
}

impl Totals {
    pub(super) fn new(most: usize) -> Self {
        Self {
            all: HashMap::default(),
            most,
            changed: None,
            away: false,
            is_whole: false,
            own: None,
        }
    }

    /// The first of these that refuses.
    pub(super) fn refused(&self, asked: &[TotalCharge]) -> Option<usize> {
        asked.iter().position(|charge| {
            let total = self.get(charge.key);
            !charge.fits(total.count) && charge.is_enforced(total.checked_s)
        })
    }

    /// Takes what is asked, be there room for it or not.
    pub(super) fn take(&mut self, asked: &mut [TotalCharge]) {
        for charge in asked {
            charge.over = !charge.fits(self.get(charge.key).count);
            charge.taken = match charge.units {
                0 => charge.looks().then(|| self.get(charge.key).basis()),
                units => self.with(charge.key, |total| total.take(units)),
            };
        }
    }

    /// Makes a change; what the total is then.
    pub(super) fn change(&mut self, key: CounterKey, change: Change) -> Total {
        if change != Change::Read {
            self.with(key, |total| total.apply(change));
        }
        let own = self.own.as_mut().and_then(|own| own.get_mut(&key));
        if let Some(own) = own {
            own.doubted |= change == Change::Doubt;
        }
        self.get(key)
    }

    fn get(&self, key: CounterKey) -> Total {
        self.all.get(&key).copied().unwrap_or_default()
    }

    /// Works on a total; `None`: there is no room for a new one.
    fn with<T>(&mut self, key: CounterKey, work: impl FnOnce(&mut Total) -> T) -> Option<T> {
        if self.all.len() >= self.most && !self.all.contains_key(&key) {
            return None;
        }
        let total = self.all.entry(key).or_default();
        let before = *total;
        let result = work(total);
        if let Some(own) = &mut self.own {
            let own = own.entry(key).or_insert(Own {
                before,
                moved: 0,
                doubted: false,
            });
            own.moved = total.moved_since(&before, own.moved);
        }
        if total.is_nothing() {
            self.all.remove(&key);
        }
        if let Some(changed) = &mut self.changed {
            changed.insert(key);
        }
        Some(result)
    }

    /// Begins with these. From now on changes are noted.
    pub(super) fn restore(&mut self, all: impl Iterator<Item = (CounterKey, Total)>) {
        self.all.extend(all);
        self.changed = Some(HashSet::default());
    }

    /// What has changed since this was last asked.
    pub(super) fn changed(&mut self) -> Vec<(CounterKey, Total)> {
        let changed = self.changed.as_mut().map(std::mem::take);
        let changed = changed.into_iter().flatten();
        changed.map(|key| (key, self.get(key))).collect()
    }

    /// All there are.
    pub(super) fn all(&mut self) -> Vec<(CounterKey, Total)> {
        if let Some(changed) = &mut self.changed {
            changed.clear();
        }
        self.all.iter().map(|(key, total)| (*key, *total)).collect()
    }

    /// Takes in those of another process, in the place of what a file has said.
    pub(super) fn move_in(&mut self, all: Vec<(CounterKey, Total)>) {
        if !std::mem::replace(&mut self.is_whole, true) {
            self.all.clear();
        }
        self.all.extend(all);
    }

    /// From now on what is done here is noted.
    pub(super) fn note_own(&mut self) {
        self.own = Some(HashMap::default());
    }

    pub(super) fn has_own(&self) -> bool {
        !self.away && self.own.as_ref().is_some_and(|own| !own.is_empty())
    }

    /// Takes in what another process has written; `None`: nothing.
    pub(super) fn merge(&mut self, theirs: Option<impl Iterator<Item = (CounterKey, Total)>>) {
        let own = self.own.take();
        // Nobody else can have changed them.
        if std::mem::take(&mut self.is_whole) {
            return;
        }
        match own.zip(theirs) {
            Some((own, theirs)) => {
                let mine = std::mem::replace(&mut self.all, theirs.collect());
                for (key, own) in own {
                    let mine = mine.get(&key).copied().unwrap_or_default();
                    let both = own.with(mine, self.get(key));
                    self.all.insert(key, both);
                }
                self.all.retain(|_, total| !total.is_nothing());
            }
            // What the other process has changed is not known here.
            None => self
                .all
                .values_mut()
                .for_each(|total| total.apply(Change::Doubt)),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_total_of_nothing_is_not_kept() {
        let mut totals = Totals::new(10);
        totals.change(CounterKey(1), Change::Add(2));
        assert_eq!(totals.len(), 1);
        totals.change(CounterKey(1), Change::Lower { units: 2, basis: 0 });
        assert_eq!(totals.len(), 0);
        totals.change(CounterKey(1), Change::Set { count: 0, now_s: 1 });
        assert_eq!(totals.len(), 1, "that there are none is worth knowing");
    }

    #[test]
    fn above_the_bound_new_totals_are_not_kept_and_old_ones_are() {
        let mut totals = Totals::new(1);
        totals.change(CounterKey(1), Change::Add(2));
        assert_eq!(totals.change(CounterKey(2), Change::Add(2)).count, 0);
        assert_eq!(totals.change(CounterKey(1), Change::Add(2)).count, 4);
    }

    #[test]
    fn changes_are_noted_once_for_who_writes() {
        let mut totals = Totals::new(10);
        totals.change(CounterKey(1), Change::Add(2));
        assert!(totals.changed().is_empty(), "nobody writes yet");
        totals.restore(std::iter::once((CounterKey(2), Total::default())));
        totals.change(CounterKey(1), Change::Add(2));
        totals.change(CounterKey(1), Change::Add(2));
        totals.change(CounterKey(1), Change::Read);
        let changed = totals.changed();
        assert_eq!(changed.len(), 1);
        assert_eq!(changed[0].1.count, 6);
        assert!(totals.changed().is_empty());
        totals.change(CounterKey(1), Change::Clear);
        assert!(
            totals.changed()[0].1.is_nothing(),
            "what is gone is written"
        );
    }
}
