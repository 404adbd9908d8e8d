//! Who hits which limit: a few callers for each limit, those with the most units and denials of
//! late. Bounded, approximate, and cheap: a thread notes its first calls of each second, and of
//! the others a random sample.

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::HashMap;
use std::hash::BuildHasher as _;
use std::net::IpAddr;
use std::sync::Arc;

use foldhash::fast::RandomState;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::admission::{Call, Owner};
use crate::limit::plan::reported_bit;
use crate::limit::{LimitId, Moment, Plan, Scope};
use crate::spec::Ruleset;

/// Callers that are kept for a limit.
const CALLERS: usize = 64;
/// Calls that a thread notes in a second; of the others one in so many on average.
const NOTED_PER_S: u32 = 500;
const THEN_ONE_IN: u32 = 64;
/// Units and denials count half after this.
pub const HALF_LIFE_US: u64 = 60_000_000;
/// Sums are kept in so many parts of one, so that halving does not lose the small ones at once.
const PARTS: u64 = 1024;
/// What a gateway tells others: callers of a limit, and of all.
const TOLD_OF_A_LIMIT: usize = 16;
const TOLD: usize = 500;

/// A caller by name, as counters know it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Name {
    /// An app.
    App(Box<str>),
    /// A user of an app.
    User(Box<str>, Box<str>),
    /// An address, cut to its prefix.
    Ip(IpAddr),
}

impl Name {
    fn of(owner: Owner<'_>) -> Self {
        match owner {
            Owner::App(app) => Self::App(app.into()),
            Owner::User(app, user) => Self::User(app.into(), user.into()),
            Owner::Ip(ip) => Self::Ip(ip),
        }
    }

    /// Whose counter it names.
    #[must_use]
    pub fn owner(&self) -> Owner<'_> {
        match self {
            Self::App(app) => Owner::App(app),
            Self::User(app, user) => Owner::User(app, user),
            Self::Ip(ip) => Owner::Ip(*ip),
        }
    }
}

/// A caller of a limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hitter {
    /// The limit.
    pub limit: LimitId,
    /// Whose counter.
    pub name: Name,
    /// Units charged of late.
    pub units: u64,
    /// Calls denied of late.
    pub denied: u64,
}

#[derive(Debug)]
struct Entry {
    hash: u64,
    name: Name,
    units: u64,
    denied: u64,
    /// Units asked for, with those of the caller whose place this one took: a newcomer does not
    /// push out who has been here for long.
    weight: u64,
}

#[derive(Debug, Default)]
struct Sketch {
    halved_us: u64,
    entries: Vec<Entry>,
}

impl Sketch {
    fn age(&mut self, now: Moment) {
        let times = now.mono_us.saturating_sub(self.halved_us) / HALF_LIFE_US;
        if times == 0 {
            return;
        }
        self.halved_us += times * HALF_LIFE_US;
        let times = u32::try_from(times).unwrap_or(u32::MAX).min(63);
        for entry in &mut self.entries {
            entry.units >>= times;
            entry.denied >>= times;
            entry.weight >>= times;
        }
        self.entries
            .retain(|entry| entry.units.max(entry.denied) >= PARTS / 2);
    }

    fn entry(&mut self, hash: u64, owner: Owner<'_>) -> &mut Entry {
        let known = self
            .entries
            .iter()
            .position(|entry| entry.hash == hash && entry.name.owner() == owner);
        let fresh = |weight| Entry {
            hash,
            name: Name::of(owner),
            units: 0,
            denied: 0,
            weight,
        };
        let at = match known {
            Some(at) => at,
            None if self.entries.len() < CALLERS => {
                self.entries.push(fresh(0));
                self.entries.len() - 1
            }
            None => {
                let least = (0..self.entries.len())
                    .min_by_key(|at| self.entries[*at].weight)
                    .unwrap_or(0);
                let weight = self.entries[least].weight;
                self.entries[least] = fresh(weight);
                least
            }
        };
        &mut self.entries[at]
    }
}

/// How much of what a thread sees it notes.
#[derive(Clone, Copy, Debug)]
struct Pace {
    second: u64,
    noted: u32,
    /// Calls to pass over before the next that is noted.
    gap: u32,
    random: u32,
}

thread_local! {
    static PACE: Cell<Pace> = const {
        Cell::new(Pace { second: 0, noted: 0, gap: 0, random: 0x9E37_79B9 })
    };
}

impl Pace {
    /// For how many calls this one stands; `None`: it is passed over.
    fn next(&mut self, now: Moment) -> Option<u64> {
        let second = now.mono_us / 1_000_000;
        if self.second != second {
            (self.second, self.noted, self.gap) = (second, 0, 0);
        }
        if self.gap > 0 {
            self.gap -= 1;
            return None;
        }
        if self.noted < NOTED_PER_S {
            self.noted += 1;
            return Some(1);
        }
        // xorshift32: callers that take turns must not be in step with the sample.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 17;
        self.random ^= self.random << 5;
        self.gap = self.random % (2 * THEN_ONE_IN - 1);
        Some(THEN_ONE_IN.into())
    }
}

/// A limit's quota, and its sketch.
type Figure<'a> = (u32, &'a Arc<Mutex<Sketch>>);

/// Callers with the most units and denials, for each limit.
#[derive(Debug)]
pub struct Top {
    sketches: Box<[Arc<Mutex<Sketch>>]>,
    hasher: RandomState,
}

/// Whose counter a limit keeps for this call. `None`: it names no user.
fn owner(scope: Scope, call: &Call) -> Option<Owner<'_>> {
    let app = &call.caller.app;
    Some(match scope {
        Scope::App => Owner::App(app),
        Scope::User => Owner::User(app, call.caller.user.as_deref()?),
        Scope::Ip => Owner::Ip(call.ip),
    })
}

impl Top {
    /// Nobody yet.
    #[must_use]
    pub fn new(limits: usize) -> Self {
        Self {
            sketches: (0..limits).map(|_| Arc::default()).collect(),
            hasher: RandomState::default(),
        }
    }

    /// For other rules: a limit of the same name, and most of all of the same figure too, goes
    /// on. Calls that end under the old rules are noted there as well.
    #[must_use]
    pub fn after(previous: &Self, old: &Ruleset, new: &Ruleset) -> Self {
        let mut left: HashMap<&str, Vec<Figure<'_>>> = HashMap::new();
        for (limit, sketch) in old.limits.iter().zip(&previous.sketches) {
            let named = left.entry(&limit.name).or_default();
            named.push((limit.quota.get(), sketch));
        }
        let mut sketches: Vec<Option<Arc<Mutex<Sketch>>>> = vec![None; new.limits.len()];
        for by_figure in [true, false] {
            for (limit, place) in new.limits.iter().zip(&mut sketches) {
                let Some(named) = left.get_mut(&*limit.name).filter(|_| place.is_none()) else {
                    continue;
                };
                let is_same = |(quota, _): &Figure<'_>| !by_figure || *quota == limit.quota.get();
                if let Some(at) = named.iter().position(is_same) {
                    *place = Some(named.remove(at).1.clone());
                }
            }
        }
        Self {
            sketches: sketches
                .into_iter()
                .map(Option::unwrap_or_default)
                .collect(),
            hasher: previous.hasher.clone(),
        }
    }

    /// An admitted call. `reported` has a bit for each charge whose limit only reports and would
    /// have denied.
    pub fn admitted(&self, call: &Call, plan: &Plan, reported: u64, now: Moment) {
        let Some(times) = self.times(now) else {
            return;
        };
        for (index, charge) in plan.charges.iter().enumerate() {
            let is_reported = reported & reported_bit(index) != 0;
            if charge.taken.is_none() && !is_reported {
                continue;
            }
            if let Some(owner) = owner(charge.scope, call) {
                let asked = u64::from(charge.cost) * times;
                let (units, denied) = if is_reported { (0, times) } else { (asked, 0) };
                self.note(charge.limit, owner, now, units, denied, asked);
            }
        }
    }

    /// A call that this limit denied, and what it asked of it.
    pub fn denied(&self, rules: &Ruleset, call: &Call, limit: LimitId, cost: u32, now: Moment) {
        let (Some(times), Some(owner)) = (self.times(now), owner(rules.limit(limit).scope, call))
        else {
            return;
        };
        self.note(limit, owner, now, 0, times, u64::from(cost) * times);
    }

    /// An address that was charged for an answer of our own, or denied it.
    pub fn address(&self, limit: LimitId, ip: IpAddr, is_denied: bool, now: Moment) {
        if let Some(times) = self.times(now) {
            let denied = if is_denied { times } else { 0 };
            self.note(limit, Owner::Ip(ip), now, times - denied, denied, times);
        }
    }

    fn times(&self, now: Moment) -> Option<u64> {
        PACE.with(|pace| {
            let mut next = pace.get();
            let times = next.next(now);
            pace.set(next);
            times
        })
    }

    fn note(
        &self,
        limit: LimitId,
        owner: Owner<'_>,
        now: Moment,
        units: u64,
        denied: u64,
        weight: u64,
    ) {
        let Some(sketch) = self.sketches.get(limit.0 as usize) else {
            return;
        };
        let hash = self.hasher.hash_one(owner);
        let mut sketch = sketch.lock();
        sketch.age(now);
        let entry = sketch.entry(hash, owner);
        for (sum, more) in [
            (&mut entry.units, units),
            (&mut entry.denied, denied),
            (&mut entry.weight, weight),
        ] {
            *sum = sum.saturating_add(more.saturating_mul(PARTS));
        }
    }

    /// At most so many callers of each limit that passes `which`, those that are denied the
    /// most first, then those with the most units.
    pub fn list(
        &self,
        of_a_limit: usize,
        which: impl Fn(LimitId) -> bool,
        now: Moment,
    ) -> Vec<Hitter> {
        let mut all = Vec::new();
        for (id, sketch) in (0..).map(LimitId).zip(&self.sketches) {
            if !which(id) {
                continue;
            }
            let mut sketch = sketch.lock();
            sketch.age(now);
            let rounded = |parts: u64| (parts + PARTS / 2) / PARTS;
            let mut some: Vec<Hitter> = sketch
                .entries
                .iter()
                .map(|entry| Hitter {
                    limit: id,
                    name: entry.name.clone(),
                    units: rounded(entry.units),
                    denied: rounded(entry.denied),
                })
                .collect();
            drop(sketch);
            some.sort_by_key(|hitter| std::cmp::Reverse((hitter.denied, hitter.units)));
            some.truncate(of_a_limit);
            all.append(&mut some);
        }
        all
    }

    /// What other gateways are told: [`heard`] reads it.
    #[must_use]
    pub fn told(&self, rules: &Ruleset, now: Moment) -> Vec<u8> {
        let mut list = self.list(TOLD_OF_A_LIMIT, |_| true, now);
        by_pressure(&mut list, rules);
        list.truncate(TOLD);
        let told: Vec<Told<'_>> = list
            .into_iter()
            .map(|hitter| {
                let limit = rules.limit(hitter.limit);
                Told {
                    limit: Cow::Borrowed(&*limit.name),
                    quota: limit.quota.get(),
                    name: hitter.name,
                    units: hitter.units,
                    denied: hitter.denied,
                }
            })
            .collect();
        serde_json::to_vec(&told).unwrap_or_default()
    }
}

/// A hitter in another gateway's words: its limits have other numbers.
#[derive(Debug, Serialize, Deserialize)]
struct Told<'t> {
    limit: Cow<'t, str>,
    quota: u32,
    name: Name,
    units: u64,
    denied: u64,
}

/// What another gateway told. Limits that are unknown here are left out.
#[must_use]
pub fn heard(rules: &Ruleset, told: &[u8]) -> Vec<Hitter> {
    let told: Vec<Told<'_>> = serde_json::from_slice(told).unwrap_or_default();
    let limit = |told: &Told<'_>| {
        let named = || (0..).map(LimitId).zip(&rules.limits);
        let same = named()
            .find(|(_, limit)| *limit.name == *told.limit && limit.quota.get() == told.quota);
        let same = same.or_else(|| named().find(|(_, limit)| *limit.name == *told.limit));
        same.map(|(id, _)| id)
    };
    told.into_iter()
        .filter_map(|told| {
            Some(Hitter {
                limit: limit(&told)?,
                name: told.name,
                units: told.units,
                denied: told.denied,
            })
        })
        .collect()
}

/// Those that are denied the most first, then those with the most units by their quota.
pub fn by_pressure(list: &mut [Hitter], rules: &Ruleset) {
    list.sort_by(|a, b| {
        let share = |one: &Hitter, other: &Hitter| {
            u128::from(one.units) * u128::from(rules.limit(other.limit).quota.get())
        };
        b.denied
            .cmp(&a.denied)
            .then_with(|| share(b, a).cmp(&share(a, b)))
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(us: u64) -> Moment {
        Moment {
            mono_us: 3_600_000_000 + us,
            unix_us: 0,
        }
    }

    fn ip(n: u32) -> IpAddr {
        IpAddr::from(n.to_be_bytes())
    }

    fn units(top: &Top, now: Moment) -> Vec<(Name, u64, u64)> {
        let list = top.list(usize::MAX, |_| true, now);
        let facts = list.into_iter().map(|h| (h.name, h.units, h.denied));
        facts.collect()
    }

    #[test]
    fn a_flood_of_names_does_not_push_out_who_asks_most() {
        let top = Top::new(1);
        for n in 1..100_000 {
            // Twenty calls a second.
            let now = at(u64::from(n) * 500);
            let owner = Owner::Ip(if n % 4 == 0 { ip(0) } else { ip(n) });
            top.note(LimitId(0), owner, now, 1, 0, 1);
        }
        let list = units(&top, at(50_000_000));
        assert_eq!(list.len(), CALLERS);
        assert_eq!(list[0], (Name::Ip(ip(0)), 24_999, 0));
    }

    fn rules(limits: &[(&str, u32)]) -> Ruleset {
        let mut rules = Ruleset::shipped(crate::limit::KeyHasher::new((1, 2))).unwrap();
        let some = rules.limits[0].clone();
        let limit = |(name, quota): &(&str, u32)| crate::limit::Limit {
            name: (*name).into(),
            quota: (*quota).try_into().unwrap(),
            ..some.clone()
        };
        rules.limits = limits.iter().map(limit).collect();
        rules
    }

    #[test]
    fn after_a_reload_a_limit_goes_on_under_its_name_and_figure() {
        let old = rules(&[("a", 1), ("a", 2), ("b", 1), ("gone", 1)]);
        let new = rules(&[("new", 1), ("b", 9), ("a", 2), ("a", 1), ("a", 3)]);
        let before = Top::new(old.limits.len());
        let after = Top::after(&before, &old, &new);
        // A call of before may end later.
        for (limit, name) in (0..).zip(["a1", "a2", "b1", "gone"]) {
            before.note(LimitId(limit), Owner::App(name), at(0), 1, 0, 1);
        }
        let all = after.list(9, |_| true, at(1));
        let found: Vec<_> = all.iter().map(|h| (h.limit.0, h.name.clone())).collect();
        let app = |name: &str| Name::App(name.into());
        assert_eq!(found, [(1, app("b1")), (2, app("a2")), (3, app("a1"))]);
        assert_eq!(after.sketches.len(), 5);
    }

    #[test]
    fn what_was_long_ago_counts_less_and_then_not_at_all() {
        let top = Top::new(1);
        for _ in 0..8 {
            top.note(LimitId(0), Owner::App("a"), at(0), 1, 1, 1);
        }
        let name = Name::App("a".into());
        assert_eq!(units(&top, at(1)), [(name.clone(), 8, 8)]);
        assert_eq!(units(&top, at(HALF_LIFE_US)), [(name, 4, 4)]);
        assert_eq!(units(&top, at(10 * HALF_LIFE_US)), []);
    }

    #[test]
    fn a_sample_stands_for_all() {
        let mut pace = PACE.get();
        let mut sum = 0;
        for _ in 0..1_000_000 {
            sum += pace.next(at(0)).unwrap_or(0);
        }
        assert!((950_000..1_050_000).contains(&sum), "{sum}");
    }

    #[test]
    fn the_first_calls_of_a_second_are_all_noted() {
        let mut pace = PACE.get();
        for second in 0..3 {
            for _ in 0..NOTED_PER_S {
                assert_eq!(pace.next(at(second * 1_000_000)), Some(1));
            }
        }
    }
}
