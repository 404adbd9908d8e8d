//! The answers against the limits: what was admitted in any window, and what was denied though
//! there was room.
//!
//! Nobody outside knows when a call was decided, only that it was after it was sent and before
//! it was answered. So the most of a window counts the calls that lie in it from end to end: if
//! these alone are more than the quota, the limit was exceeded, beyond doubt. And a denial was
//! early if even all the calls that may have been counted, in flight ones included, left room.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;

use hashbrown::HashMap;

use crate::admission::{Call, Policy, cost_of, recipients, screen};
use crate::head::Head;
use crate::limit::{Limit, LimitId, Moment, Scope, Window};
use crate::route::canonical;
use crate::spec::Ruleset;

use super::mix::{Asked, Kind};

/// Counters that are kept; above it, calls are not checked.
const MAX_COUNTERS: usize = 200_000;
/// A sliding window is held up to a fiftieth longer; see `limit::sliding`.
const STEPS: u64 = 50;

/// What one call asks of one counter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    limit: LimitId,
    who: Arc<str>,
    cost: u32,
}

/// What came of a call, as its limits see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome<'a> {
    /// It was let through.
    Admitted,
    /// The limit of this name was hit.
    Denied(&'a str),
    /// It may have been counted, or not: an error, or no answer.
    Unknown,
}

/// One counter, seen from outside.
#[derive(Debug)]
struct Counter {
    quota: u64,
    window: Length,
    /// Units of calls that lie in the current window, by when they were sent.
    inside: BinaryHeap<Reverse<(u64, u32)>>,
    inside_units: u64,
    /// Units that may have been counted, by when they were answered.
    maybe: VecDeque<(u64, u32)>,
    in_flight: u64,
    day: (u64, u64),
    row: Row,
}

#[derive(Clone, Copy, Debug)]
enum Length {
    /// Microseconds.
    Sliding(u64),
    Day,
    /// Tasks at once: from outside nobody sees when one begins.
    Running,
}

/// What is said of one counter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Row {
    /// Units admitted, in all.
    pub admitted: u64,
    /// The most units admitted in one window. `None`: cannot be told.
    pub most: Option<u64>,
    /// Calls that this limit denied.
    pub denied: u64,
    /// Those of them for which there was room.
    pub early: u64,
}

/// A row, and whose.
#[derive(Clone, Debug)]
pub(super) struct Checked<'r> {
    /// The limit.
    pub limit: &'r Limit,
    /// The caller: app, app and user, or address.
    pub who: Arc<str>,
    /// Its figures.
    pub row: Row,
}

impl Checked<'_> {
    /// Whether more was admitted than the limit allows.
    #[must_use]
    pub(super) fn is_exceeded(&self) -> bool {
        self.row
            .most
            .is_some_and(|most| most > u64::from(self.limit.quota.get()))
    }
}

/// All counters.
#[derive(Debug)]
pub(super) struct Ledger<'r> {
    rules: &'r Ruleset,
    /// Before it, nobody knows what was used.
    begin: u64,
    counters: HashMap<(LimitId, Arc<str>), Counter>,
    /// Calls with a counter too many.
    unchecked: u64,
}

impl<'r> Ledger<'r> {
    /// An empty one.
    #[must_use]
    pub(super) fn new(rules: &'r Ruleset, begin: Moment) -> Self {
        Self {
            rules,
            begin: begin.mono_us,
            counters: HashMap::new(),
            unchecked: 0,
        }
    }

    /// The call is being sent.
    pub(super) fn sent(&mut self, claims: &[Claim]) {
        for claim in claims {
            let key = (claim.limit, claim.who.clone());
            if self.counters.len() >= MAX_COUNTERS && !self.counters.contains_key(&key) {
                self.unchecked += 1;
                continue;
            }
            let limit = self.rules.limit(claim.limit);
            let counter = self
                .counters
                .entry(key)
                .or_insert_with(|| Counter::new(limit));
            counter.in_flight += u64::from(claim.cost);
        }
    }

    /// The call is over. `ended` never goes back.
    pub(super) fn ended(
        &mut self,
        claims: &[Claim],
        sent: Moment,
        ended: Moment,
        outcome: Outcome<'_>,
    ) {
        for claim in claims {
            let limit = self.rules.limit(claim.limit);
            let key = (claim.limit, claim.who.clone());
            let Some(counter) = self.counters.get_mut(&key) else {
                continue;
            };
            let cost = claim.cost;
            counter.in_flight = counter.in_flight.saturating_sub(cost.into());
            match outcome {
                Outcome::Admitted => counter.admit(limit, sent, ended, cost),
                Outcome::Unknown => counter.maybe.push_back((ended.mono_us, cost)),
                Outcome::Denied(name) if name == &*limit.name => {
                    counter.row.denied += 1;
                    if counter.had_room(sent.mono_us, cost, self.begin) {
                        counter.row.early += 1;
                    }
                }
                // Another limit of the call denied it: nothing was taken of this one.
                Outcome::Denied(_) => {}
            }
        }
    }

    /// Every counter, those with most denials first.
    #[must_use]
    pub(super) fn rows(&self) -> Vec<Checked<'r>> {
        let mut rows: Vec<Checked<'r>> = self
            .counters
            .iter()
            .map(|((limit, who), counter)| Checked {
                limit: self.rules.limit(*limit),
                who: who.clone(),
                row: counter.row.clone(),
            })
            .collect();
        rows.sort_by(|a, b| {
            let order = |c: &Checked<'_>| Reverse((c.is_exceeded(), c.row.denied, c.row.admitted));
            order(a)
                .cmp(&order(b))
                .then_with(|| (&a.limit.name, &a.who).cmp(&(&b.limit.name, &b.who)))
        });
        rows
    }

    /// Calls that had a counter too many to be checked in full.
    #[must_use]
    pub(super) fn unchecked(&self) -> u64 {
        self.unchecked
    }
}

/// What a call will be charged; nothing, if it will be refused before its limits.
#[must_use]
pub(super) fn claims(rules: &Ruleset, policy: &Policy, kind: &Kind, asked: &Asked) -> Arc<[Claim]> {
    claimed(rules, policy, kind, asked)
        .unwrap_or_default()
        .into()
}

fn claimed(rules: &Ruleset, policy: &Policy, kind: &Kind, asked: &Asked) -> Option<Vec<Claim>> {
    let raw_path = asked.path.split('?').next()?;
    let path = canonical::canonical(raw_path).ok()?;
    let head = Head {
        method: kind.method.as_str(),
        raw_path,
        ip: asked.ip.unwrap_or([127, 0, 0, 1].into()),
        has_bearer: true,
    };
    let call = screen(rules, policy, &head, &path).ok()?;
    let counted = call.route(rules).filter(|route| route.cost.is_some());
    let cost = match counted {
        Some(route) => recipients(route, &asked.body).ok()?,
        None => 1,
    };
    let claims = call.limits(rules).filter_map(|id| {
        let limit = rules.limit(id);
        Some(Claim {
            limit: id,
            who: who(limit.scope, &call)?.into(),
            cost: cost_of(limit.unit, cost),
        })
    });
    Some(claims.collect())
}

fn who(scope: Scope, call: &Call) -> Option<String> {
    Some(match scope {
        Scope::App => call.caller.app.clone(),
        Scope::User => format!("{},{}", call.caller.app, call.caller.user.as_deref()?),
        Scope::Ip => call.ip.to_string(),
    })
}

impl Counter {
    fn new(limit: &Limit) -> Self {
        let window = match &limit.window {
            Window::Sliding(length) => {
                Length::Sliding(u64::try_from(length.as_micros()).unwrap_or(u64::MAX))
            }
            Window::Day(_) => Length::Day,
            Window::Running => Length::Running,
        };
        Self {
            quota: limit.quota.get().into(),
            inside: BinaryHeap::new(),
            inside_units: 0,
            maybe: VecDeque::new(),
            in_flight: 0,
            day: (0, 0),
            row: Row {
                most: (!matches!(window, Length::Running)).then_some(0),
                ..Row::default()
            },
            window,
        }
    }

    fn admit(&mut self, limit: &Limit, sent: Moment, ended: Moment, cost: u32) {
        let units = u64::from(cost);
        self.row.admitted += units;
        match self.window {
            Length::Running => return,
            Length::Sliding(window) => {
                self.maybe.push_back((ended.mono_us, cost));
                self.inside.push(Reverse((sent.mono_us, cost)));
                self.inside_units += units;
                while let Some(Reverse((first, cost))) = self.inside.peek().copied()
                    && first.saturating_add(window) <= ended.mono_us
                {
                    self.inside.pop();
                    self.inside_units -= u64::from(cost);
                }
            }
            Length::Day => {
                let Window::Day(zone) = &limit.window else {
                    return;
                };
                let day = zone.day_of(ended.unix_us);
                if day != self.day {
                    self.day = day;
                    self.inside_units = 0;
                }
                // One that was sent the day before may have been counted then.
                if zone.day_of(sent.unix_us) == day {
                    self.inside_units += units;
                }
            }
        }
        self.row.most = self.row.most.max(Some(self.inside_units));
    }

    /// Whether a call that was sent at this time, and denied, had room for sure.
    fn had_room(&mut self, sent: u64, cost: u32, begin: u64) -> bool {
        let Length::Sliding(window) = self.window else {
            return false;
        };
        let longest = window + window / STEPS;
        let Some(since) = sent.checked_sub(longest).filter(|since| *since >= begin) else {
            return false;
        };
        // No call is denied so long after another was answered.
        while let Some((ended, _)) = self.maybe.front()
            && ended.saturating_add(longest.saturating_mul(2)) < since
        {
            self.maybe.pop_front();
        }
        let mut counted = self.in_flight + u64::from(cost);
        for (_, cost) in self
            .maybe
            .iter()
            .rev()
            .take_while(|(ended, _)| *ended > since)
        {
            if counted > self.quota {
                break;
            }
            counted += u64::from(*cost);
        }
        counted <= self.quota
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::mix::Mix;

    const ROUTES: &str = r#"
[[route]]
name = "calls"
calls = ["GET /calls/{username}"]
v3 = { limits = ["10/s"] }
[[route]]
name = "daily"
calls = ["GET /daily"]
v3 = { limits = ["5/day"] }
"#;

    fn at(us: u64) -> Moment {
        Moment {
            mono_us: 3_600_000_000 + us,
            unix_us: 1_795_219_200_000_000 + us,
        }
    }

    fn with_ledger(path: &str, test: impl FnOnce(&mut Ledger<'_>, Arc<[Claim]>)) {
        let layers =
            [("routes.toml", crate::spec::SHIPPED), ("more.toml", ROUTES)].map(|(name, text)| {
                crate::spec::compile::Layer {
                    name: name.to_owned(),
                    text: text.to_owned(),
                }
            });
        let rules =
            crate::spec::compile::compile(&layers, crate::limit::KeyHasher::new((1, 2))).unwrap();
        let policy = Policy {
            editions: rules.selection("v3").unwrap(),
            auth: crate::identity::Auth::Off,
            ipv6_prefix: 64,
            unknown_apps: Default::default(),
        };
        let mut ledger = Ledger::new(&rules, at(0));
        let mix = Mix::read(&format!(
            "apps = [\"o#a\"]\n[[call]]\nname = \"c\"\nmethod = \"GET\"\npath = \"{path}\""
        ))
        .unwrap();
        let claims = claims(&rules, &policy, &mix.kinds[0], &mix.call(1, 1));
        assert!(!claims.is_empty());
        test(&mut ledger, claims);
    }

    fn app_row(ledger: &Ledger<'_>) -> (Row, bool) {
        let rows = ledger.rows();
        let row = rows
            .iter()
            .find(|row| row.limit.scope == Scope::App)
            .unwrap();
        (row.row.clone(), row.is_exceeded())
    }

    #[test]
    fn more_in_one_window_than_the_quota_is_seen() {
        with_ledger("/calls/u", |ledger, claims| {
            for n in 0..11 {
                ledger.sent(&claims);
                ledger.ended(
                    &claims,
                    at(n * 90_000),
                    at(n * 90_000 + 1_000),
                    Outcome::Admitted,
                );
            }
            let (row, exceeded) = app_row(ledger);
            assert_eq!((row.most, row.admitted, exceeded), (Some(11), 11, true));
        });
    }

    #[test]
    fn a_call_that_may_lie_in_the_next_window_proves_nothing() {
        with_ledger("/calls/u", |ledger, claims| {
            for n in 0..10 {
                ledger.sent(&claims);
                ledger.ended(
                    &claims,
                    at(n * 90_000),
                    at(n * 90_000 + 1_000),
                    Outcome::Admitted,
                );
            }
            // Sent in time, answered a window after the first one was sent.
            ledger.sent(&claims);
            ledger.ended(&claims, at(900_000), at(1_000_000), Outcome::Admitted);
            let (row, exceeded) = app_row(ledger);
            assert_eq!((row.most, row.admitted, exceeded), (Some(10), 11, false));
        });
    }

    #[test]
    fn a_denial_with_room_is_early_and_one_without_is_not() {
        with_ledger("/calls/u", |ledger, claims| {
            let name = |ledger: &Ledger<'_>| {
                let rows = ledger.rows();
                rows.iter()
                    .find(|row| row.limit.scope == Scope::App)
                    .unwrap()
                    .limit
                    .name
                    .to_string()
            };
            for n in 0..10 {
                ledger.sent(&claims);
                let sent = 2_000_000 + n * 1_000;
                ledger.ended(&claims, at(sent), at(sent + 500), Outcome::Admitted);
            }
            let limit = name(ledger);
            let mut deny = |us: u64| {
                ledger.sent(&claims);
                ledger.ended(&claims, at(us), at(us + 500), Outcome::Denied(&limit));
                app_row(ledger).0
            };
            assert_eq!((deny(2_500_000).denied, deny(2_600_000).early), (1, 0));
            // All ten have left the window, steps included.
            assert_eq!(deny(3_100_000).early, 1);
        });
    }

    #[test]
    fn what_was_used_before_the_start_is_not_known() {
        with_ledger("/calls/u", |ledger, claims| {
            let limit = ledger.rules.limit(claims[0].limit).name.to_string();
            ledger.sent(&claims);
            ledger.ended(&claims, at(500_000), at(500_500), Outcome::Denied(&limit));
            assert!(ledger.rows().iter().all(|row| row.row.early == 0));
        });
    }

    #[test]
    fn a_day_is_counted_as_a_whole() {
        with_ledger("/daily", |ledger, claims| {
            for n in 0..6 {
                ledger.sent(&claims);
                ledger.ended(
                    &claims,
                    at(n * 9_000_000),
                    at(n * 9_000_000 + 1),
                    Outcome::Admitted,
                );
            }
            let (row, exceeded) = app_row(ledger);
            assert_eq!((row.most, exceeded), (Some(6), true));
        });
    }
}
