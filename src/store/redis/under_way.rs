//! What this gateway has under way of totals, in eras. An era ends when nobody knows what became
//! of a word to the store: units are taken in the next one from then on. When nothing of the old
//! one is under way any more, what the store has of it is of words that were lost, and goes.
//! Eras of units that are taken without the store are odd: it hears of these in any order.

use std::time::Duration;

use foldhash::fast::RandomState;
use hashbrown::HashMap;
use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::time::Instant;

use super::name::Name;

/// Totals, and doubts, at most. What is beyond them is told as of the present era, and its doubts
/// last until the store forgets them.
const MOST: usize = 100_000;

/// By era: units that are to be closed.
pub(super) type ByEra = SmallVec<[(u32, u32); 1]>;

/// Units of calls under way, by total.
#[derive(Debug, Default)]
pub(super) struct UnderWay {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    era: u32,
    /// Of how many outages the store had had by then, units of the present era were taken without
    /// it; `None`: of none.
    alone: Option<u64>,
    taken: HashMap<Name, SmallVec<[Taken; 1]>, RandomState>,
    /// Eras of which the store may have more than is under way.
    doubted: HashMap<(Name, u32), Doubt, RandomState>,
}

#[derive(Clone, Copy, Debug)]
struct Taken {
    era: u32,
    round: u32,
    units: u32,
    /// Without the store, which may not have been told yet.
    alone: bool,
}

#[derive(Clone, Copy, Debug)]
struct Doubt {
    since: Instant,
    /// Words that may yet be heard.
    late: u32,
    /// A beat has found nothing of it under way: the last words have gone out before the next one.
    is_over: bool,
}

impl State {
    /// The present era, for units that are taken so.
    fn era(&mut self, alone: Option<u64>) -> u32 {
        // Without the store they are of a round that may be over: they have an era of their own.
        if self.alone != alone {
            self.alone = alone;
            self.next();
        }
        self.era
    }

    fn next(&mut self) {
        let next = self.era.wrapping_add(1);
        self.era = next.wrapping_add((next ^ u32::from(self.alone.is_some())) & 1);
    }

    /// No unit of this era is taken any more.
    fn doubt(&mut self, name: Name, era: u32) {
        if self.era == era {
            self.next();
        }
        let is_full = self.doubted.len() >= MOST;
        let new = Doubt {
            since: Instant::now(),
            late: 0,
            is_over: false,
        };
        match self.doubted.get_mut(&(name, era)) {
            Some(doubt) => {
                *doubt = Doubt {
                    late: doubt.late,
                    ..new
                }
            }
            None if is_full => (),
            None => drop(self.doubted.insert((name, era), new)),
        }
    }

    /// An era for units of which the store is told again.
    fn again(&mut self) -> u32 {
        let again = self.era.wrapping_add(1) | 1;
        self.era = again;
        self.next();
        again
    }

    fn has(&self, name: &Name, era: u32) -> bool {
        let taken = self.taken.get(name).into_iter().flatten();
        taken.filter(|taken| taken.era == era).count() > 0
    }
}

impl UnderWay {
    /// The era of what the store is asked for now.
    pub(super) fn asked(&self) -> u32 {
        self.state.lock().era(None)
    }

    /// Units were taken.
    pub(super) fn took(&self, name: Name, era: u32, round: u32, units: u32) {
        let taken = Taken {
            era,
            round,
            units,
            alone: false,
        };
        self.state.lock().took(name, taken);
    }

    /// Units were taken without the store, which had had so many outages; their era.
    pub(super) fn took_alone(&self, name: Name, round: u32, units: u32, outages: u64) -> u32 {
        let mut state = self.state.lock();
        let era = state.era(Some(outages));
        let taken = Taken {
            era,
            round,
            units,
            alone: true,
        };
        state.took(name, taken);
        era
    }

    /// Units of this round are under way no more: of which eras. Those of one round are alike, and
    /// the oldest go first.
    pub(super) fn close(&self, name: &Name, round: u32, mut units: u32) -> ByEra {
        let mut state = self.state.lock();
        let mut closed = ByEra::new();
        if let Some(all) = state.taken.get_mut(name) {
            for taken in all.iter_mut().filter(|taken| taken.round == round) {
                let some = taken.units.min(units);
                (taken.units, units) = (taken.units - some, units - some);
                if some > 0 {
                    closed.push((taken.era, some));
                }
            }
            all.retain(|taken| taken.units > 0);
            if all.is_empty() {
                state.taken.remove(name);
            }
        }
        // Of units that nobody knows of, none will be told.
        let present = state.era & !1;
        match closed.last_mut() {
            Some(_) if units == 0 => (),
            Some((era, more)) if *era == present => *more = more.saturating_add(units),
            _ => closed.push((present, units)),
        }
        closed
    }

    /// A word about units of this era is late, and may yet be heard.
    pub(super) fn late(&self, name: Name, era: u32) {
        let mut state = self.state.lock();
        state.doubt(name, era);
        if let Some(doubt) = state.doubted.get_mut(&(name, era)) {
            doubt.late = doubt.late.saturating_add(1);
        }
    }

    /// It has been heard, or never will be.
    pub(super) fn late_no_more(&self, name: Name, era: u32) {
        let mut state = self.state.lock();
        if let Some(doubt) = state.doubted.get_mut(&(name, era)) {
            (doubt.since, doubt.is_over) = (Instant::now(), false);
            doubt.late = doubt.late.saturating_sub(1);
        }
    }

    /// Nobody knows what became of a word about units of this era.
    pub(super) fn doubt(&self, name: Name, era: u32) {
        self.state.lock().doubt(name, era);
    }

    /// The store is an older one: what it has under way of this total may be over.
    pub(super) fn doubt_all(&self, name: Name) {
        let mut state = self.state.lock();
        let present = state.era;
        state.doubt(name, present);
    }

    /// The word was lost by which the store was told of units that were taken without it: it is to
    /// be told again of those that are under way still, as of an era of their own.
    pub(super) fn take_again(
        &self,
        name: Name,
        era: u32,
        round: u32,
        units: u32,
    ) -> Option<(u32, u32)> {
        let mut state = self.state.lock();
        let mut all = state.taken.get_mut(&name)?.iter_mut();
        let taken = all.find(|taken| (taken.era, taken.round) == (era, round))?;
        let units = taken.units.min(units);
        taken.units -= units;
        let again = state.again();
        let all = state.taken.get_mut(&name)?;
        all.retain(|taken| taken.units > 0);
        all.push(Taken {
            era: again,
            round,
            units,
            alone: true,
        });
        Some((again, units))
    }

    /// Words of this total were lost: what is to be told again of units that were taken without the
    /// store, as of which era and round.
    pub(super) fn take_lost(&self, name: Name) -> Vec<(u32, u32, u32)> {
        let mut state = self.state.lock();
        let is_lost = |state: &State, taken: &Taken| {
            taken.alone && state.doubted.contains_key(&(name, taken.era))
        };
        let all = state.taken.get(&name).into_iter().flatten();
        if all.filter(|taken| is_lost(&state, taken)).count() == 0 {
            return Vec::new();
        }
        let again = state.again();
        let mut all = state.taken.remove(&name).unwrap_or_default();
        let mut told = Vec::with_capacity(all.len());
        for taken in &mut all {
            if is_lost(&state, taken) {
                taken.era = again;
                told.push((again, taken.round, taken.units));
            }
        }
        state.taken.insert(name, all);
        told
    }

    /// All that the store was asked for and that is under way: so many of each era.
    pub(super) fn all(&self, concerns: impl Fn(&Name) -> bool) -> Vec<(Name, u32, u32)> {
        let state = self.state.lock();
        let mut found: Vec<(Name, u32, u32)> = Vec::new();
        for (name, all) in state.taken.iter().filter(|(name, _)| concerns(name)) {
            let first = found.len();
            for taken in all.iter().filter(|taken| !taken.alone) {
                let mut same = found[first..].iter_mut();
                match same.find(|(_, era, _)| *era == taken.era) {
                    Some((_, _, units)) => *units = units.saturating_add(taken.units),
                    None => found.push((*name, taken.era, taken.units)),
                }
            }
        }
        found
    }

    /// Whether anything is in doubt.
    pub(super) fn doubts(&self) -> bool {
        !self.state.lock().doubted.is_empty()
    }

    /// Eras of which nothing is under way, and no word is on its way: doubts as old as `patience`
    /// that a beat before this one has found so.
    pub(super) fn over(
        &self,
        patience: Duration,
        concerns: impl Fn(&Name) -> bool,
    ) -> Vec<(Name, u32)> {
        let mut state = self.state.lock();
        let settled = state.doubted.iter().filter(|((name, era), doubt)| {
            let is_heard = doubt.late == 0 && doubt.since.elapsed() >= patience;
            concerns(name) && is_heard && !state.has(name, *era)
        });
        let settled: Vec<(Name, u32)> = settled.map(|(of, _)| *of).collect();
        let mut over = Vec::new();
        for of in settled {
            let doubt = state.doubted.get_mut(&of);
            if doubt.is_some_and(|doubt| std::mem::replace(&mut doubt.is_over, true)) {
                over.push(of);
            }
        }
        over
    }

    /// The store has been told so.
    pub(super) fn told(&self, over: &[(Name, u32)]) {
        let mut state = self.state.lock();
        for of in over {
            // Unless it is in doubt again.
            if state.doubted.get(of).is_some_and(|doubt| doubt.is_over) {
                state.doubted.remove(of);
            }
        }
    }
}

impl State {
    fn took(&mut self, name: Name, new: Taken) {
        if self.taken.len() >= MOST && !self.taken.contains_key(&name) {
            return;
        }
        let all = self.taken.entry(name).or_default();
        let same = |old: &&mut Taken| (old.era, old.round) == (new.era, new.round);
        match all.iter_mut().find(same) {
            Some(old) => old.units = old.units.saturating_add(new.units),
            None => all.push(new),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit::CounterKey;

    const PATIENCE: Duration = Duration::from_millis(100);

    fn name() -> Name {
        Name::plain(CounterKey(7), CounterKey(9))
    }

    fn over(under_way: &UnderWay) -> Vec<(Name, u32)> {
        under_way.over(PATIENCE, |_| true)
    }

    #[test]
    fn units_are_closed_by_their_round_and_the_oldest_era_first() {
        let under_way = UnderWay::default();
        let first = under_way.asked();
        under_way.took(name(), first, 5, 3);
        under_way.took(name(), first, 6, 1);
        under_way.doubt(name(), first);
        let second = under_way.asked();
        assert_ne!(first, second);
        under_way.took(name(), second, 5, 4);
        assert_eq!(under_way.close(&name(), 5, 2)[..], [(first, 2)]);
        assert_eq!(
            under_way.close(&name(), 5, 2)[..],
            [(first, 1), (second, 1)]
        );
        assert_eq!(under_way.close(&name(), 5, 3)[..], [(second, 3)]);
        // More than there is, and what nobody knows of, is of the present.
        assert_eq!(
            under_way.close(&name(), 6, 2)[..],
            [(first, 1), (second, 1)]
        );
        assert_eq!(under_way.close(&name(), 6, 0)[..], [(second, 0)]);
    }

    #[test]
    fn what_is_taken_without_the_store_has_an_era_of_its_own() {
        let under_way = UnderWay::default();
        let first = under_way.asked();
        let alone = under_way.took_alone(name(), 1, 1, 1);
        assert_eq!(under_way.took_alone(name(), 1, 1, 1), alone);
        let later = under_way.took_alone(name(), 1, 1, 2);
        let asked = under_way.asked();
        assert_eq!(under_way.asked(), asked);
        let mut all = vec![first, alone, later, asked];
        all.dedup();
        assert_eq!(all.len(), 4, "{all:?}");
    }

    #[test]
    fn a_store_that_has_lost_all_is_told_what_it_was_asked_for_and_is_under_way() {
        let under_way = UnderWay::default();
        let era = under_way.asked();
        under_way.took(name(), era, 5, 3);
        under_way.took(name(), era, 6, 1);
        under_way.took_alone(name(), 6, 1, 1);
        assert_eq!(under_way.all(|_| true), [(name(), era, 4)]);
        assert_eq!(under_way.all(|_| false), []);
    }

    #[test]
    fn what_was_taken_without_the_store_is_told_again_if_the_word_was_lost() {
        let under_way = UnderWay::default();
        let alone = under_way.took_alone(name(), 5, 3, 1);
        assert_eq!(under_way.close(&name(), 5, 1)[..], [(alone, 1)]);
        let (again, units) = under_way.take_again(name(), alone, 5, 3).unwrap();
        assert!(again != alone && again != under_way.asked());
        assert_eq!(units, 2, "one is under way no more");
        assert_eq!(under_way.close(&name(), 5, 2)[..], [(again, 2)]);
        assert_eq!(under_way.take_again(name(), again, 5, 2), None);
    }

    #[tokio::test(start_paused = true)]
    async fn an_era_is_not_over_while_a_word_of_it_is_late() {
        let under_way = UnderWay::default();
        let era = under_way.asked();
        under_way.late(name(), era);
        assert_ne!(under_way.asked(), era, "it has ended");
        under_way.doubt(name(), era);
        tokio::time::advance(10 * PATIENCE).await;
        assert_eq!((over(&under_way), over(&under_way)), (vec![], vec![]));
        under_way.late_no_more(name(), era);
        assert_eq!((over(&under_way), over(&under_way)), (vec![], vec![]));
        tokio::time::advance(PATIENCE).await;
        assert_eq!(
            (over(&under_way), over(&under_way)),
            (vec![], vec![(name(), era)])
        );
    }

    #[tokio::test(start_paused = true)]
    async fn an_era_in_doubt_is_over_when_nothing_of_it_is_under_way() {
        let under_way = UnderWay::default();
        let era = under_way.asked();
        under_way.took(name(), era, 5, 1);
        under_way.doubt(name(), era);
        tokio::time::advance(PATIENCE).await;
        assert_eq!((over(&under_way), over(&under_way)), (vec![], vec![]));
        under_way.close(&name(), 5, 1);
        assert_eq!(over(&under_way), [], "its last word may be on its way");
        assert_eq!(over(&under_way), [(name(), era)]);
        assert_eq!(over(&under_way), [(name(), era)], "the store was not told");
        // A word of it is lost meanwhile.
        under_way.doubt(name(), era);
        under_way.told(&[(name(), era)]);
        assert!(under_way.doubts());
        tokio::time::advance(PATIENCE).await;
        assert_eq!(
            (over(&under_way), over(&under_way)),
            (vec![], vec![(name(), era)])
        );
        under_way.told(&[(name(), era)]);
        assert!(!under_way.doubts());
    }
}
