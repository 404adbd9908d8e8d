//! The embedded store against a slow exact model, which keeps every admitted unit with its time.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

use std::time::Duration;

use floodgate::limit::{Charge, CounterKey, Decision, LimitId, Moment, Plan, Scope, Span, sliding};
use floodgate::store::Store as _;
use floodgate::store::memory::{MemoryOptions, MemoryStore};
use proptest::collection::{btree_set, vec};
use proptest::prelude::*;
use proptest::sample::Index;

const DAY_US: u64 = 86_400_000_000;
/// Wall-clock time when the monotonic clock is 0: half a minute before midnight.
const START_UNIX_US: u64 = 20_000 * DAY_US - 30_000_000;
/// Windows of the limits in a trace; 0 is a day.
const WINDOWS_US: [u64; 5] = [1_000_000, 60_000_000, 1_500_007, 100_000, 0];

fn moment(us: u64) -> Moment {
    Moment {
        mono_us: us,
        unix_us: START_UNIX_US + us,
    }
}

fn span(limit: usize, now_us: u64) -> Span {
    match WINDOWS_US[limit] {
        0 => {
            let unix_us = START_UNIX_US + now_us;
            let start_us = unix_us - unix_us % DAY_US;
            Span::Day {
                start_us,
                end_us: start_us + DAY_US,
            }
        }
        window_us => Span::Sliding { window_us },
    }
}

fn charge(limit: usize, caller: usize, quota: u32, cost: u32, span: Span) -> Charge {
    let salt = (u128::try_from(limit).unwrap() + 1) << 100;
    let caller =
        (u128::try_from(caller).unwrap() + 1).wrapping_mul(0x1234_5678_9ABC_DEF1_2345_6789);
    Charge {
        limit: LimitId(u32::try_from(limit).unwrap()),
        key: CounterKey(salt ^ caller),
        overflow: CounterKey(salt),
        quota,
        cost,
        span,
        scope: Scope::App,
        report: false,
        known: false,
        taken: None,
        shared: false,
        on_store_failure: floodgate::limit::OnStoreFailure::Local,
    }
}

fn new_store() -> MemoryStore {
    MemoryStore::new(MemoryOptions::default())
}

/// Room for two counters of apps: most share the overflow, and move to their own as there is room.
fn tiny_store() -> MemoryStore {
    MemoryStore::new(MemoryOptions { max_counters: 8 })
}

/// What a trace does.
#[derive(Clone, Debug)]
enum Act {
    /// Asks for `cost` units of each of these (limit, caller).
    Call {
        counters: Vec<(usize, usize)>,
        cost: u32,
    },
    /// Gives back what an admitted call took, twice: the second time must do nothing.
    GiveBack(Index),
    /// Changes a quota.
    Quota { limit: usize, quota: u32 },
    /// Sweeps.
    Sweep,
}

fn acts() -> impl Strategy<Value = Vec<(u64, Act)>> {
    let call = (btree_set((0..WINDOWS_US.len(), 0..2_usize), 1..4), 0..5_u32).prop_map(
        |(counters, cost)| Act::Call {
            counters: counters.into_iter().collect(),
            cost,
        },
    );
    let act = prop_oneof![
        20 => call,
        3 => any::<Index>().prop_map(Act::GiveBack),
        1 => (0..WINDOWS_US.len(), 1..40_u32).prop_map(|(limit, quota)| Act::Quota { limit, quota }),
        1 => Just(Act::Sweep),
    ];
    // Bursts, steps, windows and the odd long pause.
    let pause = prop_oneof![10 => 0..2_000_u64, 10 => 0..60_000_u64, 4 => 0..1_200_000_u64, 1 => 0..40_000_000_u64];
    vec((pause, act), 1..250)
}

fn quotas() -> impl Strategy<Value = Vec<u32>> {
    vec(1..30_u32, WINDOWS_US.len())
}

/// One admitted charge.
#[derive(Clone, Copy, Debug)]
struct Entry {
    call: usize,
    counter: (usize, usize),
    at_us: u64,
    units: u32,
}

/// Every admitted unit, and every quota, with its time.
struct Model {
    log: Vec<Entry>,
    /// (limit, from, quota)
    quotas: Vec<(usize, u64, u32)>,
}

impl Model {
    fn new(quotas: &[u32]) -> Self {
        Self {
            log: Vec::new(),
            quotas: quotas
                .iter()
                .enumerate()
                .map(|(limit, quota)| (limit, 0, *quota))
                .collect(),
        }
    }

    fn units(&self, counter: (usize, usize), since_us: u64) -> u64 {
        let entries = self
            .log
            .iter()
            .filter(|entry| entry.counter == counter && entry.at_us >= since_us);
        entries.map(|entry| u64::from(entry.units)).sum()
    }

    fn quota(&self, limit: usize) -> u32 {
        self.quotas
            .iter()
            .rev()
            .find(|(of, ..)| *of == limit)
            .unwrap()
            .2
    }

    /// The largest quota that held since then: a lowered one holds from one window on.
    fn largest_quota(&self, limit: usize, since_us: u64) -> u64 {
        let of: Vec<_> = self.quotas.iter().filter(|(of, ..)| *of == limit).collect();
        let before = of
            .iter()
            .rposition(|(_, from, _)| *from <= since_us)
            .unwrap_or(0);
        of[before..]
            .iter()
            .map(|(.., quota)| u64::from(*quota))
            .max()
            .unwrap()
    }

    /// When the interval begins that ends now and must not hold more than the quota.
    fn window_start(limit: usize, now_us: u64) -> u64 {
        match span(limit, now_us) {
            Span::Day { start_us, .. } => start_us.saturating_sub(START_UNIX_US),
            Span::Sliding { window_us } => now_us.saturating_sub(window_us),
            Span::Running => unreachable!(),
        }
    }

    fn check_never_over(&self, counter: (usize, usize), now_us: u64) {
        let since_us = Self::window_start(counter.0, now_us);
        let (units, quota) = (
            self.units(counter, since_us),
            self.largest_quota(counter.0, since_us),
        );
        assert!(
            units <= quota,
            "{units} units of {quota} in the window of {counter:?} that ends at {now_us}"
        );
    }

    /// Whether this charge may be denied: by units of the window and one step.
    fn may_deny(&self, counter: (usize, usize), cost: u32, now_us: u64) -> bool {
        let since_us = match WINDOWS_US[counter.0] {
            0 => Self::window_start(counter.0, now_us),
            // A unit as old as this has stopped counting.
            window_us => (now_us + 1).saturating_sub(window_us.div_ceil(50) * 51),
        };
        self.units(counter, since_us) + u64::from(cost.max(1)) > u64::from(self.quota(counter.0))
    }
}

/// A call that was denied, when, and how.
type Denied = (Plan, u64, Decision);

/// Runs a trace against the model. The store, and the last act if it was denied.
fn run(trace: &[(u64, Act)], quotas: &[u32]) -> (MemoryStore, Option<Denied>) {
    run_on(new_store(), trace, quotas, false)
}

/// Runs a trace on a store in which callers may have to share.
fn run_on(
    store: MemoryStore,
    trace: &[(u64, Act)],
    quotas: &[u32],
    shared: bool,
) -> (MemoryStore, Option<Denied>) {
    let mut model = Model::new(quotas);
    let mut calls: Vec<Plan> = Vec::new();
    let mut now_us = 0;
    let mut last = None;
    for (pause, act) in trace {
        now_us += pause;
        last = None;
        match act {
            Act::Call { counters, cost } => {
                let charges = counters.iter().map(|&(limit, caller)| {
                    charge(
                        limit,
                        caller,
                        model.quota(limit),
                        *cost,
                        span(limit, now_us),
                    )
                });
                let mut plan = Plan {
                    charges: charges.collect(),
                    origin: None,
                    app: None,
                    totals: Vec::new(),
                };
                match store.decide_now(&mut plan, moment(now_us)) {
                    Decision::Admit { nearest, .. } => {
                        assert!(nearest.is_some());
                        assert!(
                            plan.charges
                                .iter()
                                .all(|charge| charge.taken.is_some() == (*cost > 0))
                        );
                        for &counter in counters.iter().filter(|_| *cost > 0) {
                            model.log.push(Entry {
                                call: calls.len(),
                                counter,
                                at_us: now_us,
                                units: *cost,
                            });
                            model.check_never_over(counter, now_us);
                        }
                        calls.push(plan);
                    }
                    decision @ Decision::Deny {
                        charge: index,
                        retry_after,
                        ..
                    } => {
                        // Had it taken anything, a later call would be denied without a reason.
                        assert!(plan.charges.iter().all(|charge| charge.taken.is_none()));
                        assert!(
                            shared || model.may_deny(counters[index], *cost, now_us),
                            "denied without a reason"
                        );
                        let never = counters
                            .iter()
                            .any(|(limit, _)| (*cost).max(1) > model.quota(*limit));
                        assert_eq!(retry_after.is_none(), never);
                        last = Some((plan, now_us, decision));
                    }
                    Decision::Full { .. } => panic!("no total was asked"),
                }
            }
            Act::GiveBack(index) if !calls.is_empty() => {
                let index = index.index(calls.len());
                store.give_back(&mut calls[index], moment(now_us), &|_| true);
                store.give_back(&mut calls[index], moment(now_us), &|_| true);
                model.log.retain(|entry| entry.call != index);
            }
            Act::GiveBack(_) => {}
            Act::Quota { limit, quota } => model.quotas.push((*limit, now_us, *quota)),
            Act::Sweep => (0..8).for_each(|_| store.sweep(moment(now_us))),
        }
    }
    (store, last)
}

/// Whether the call is admitted when it comes again.
fn admits(store: &MemoryStore, plan: &Plan, now_us: u64) -> bool {
    let mut plan = plan.clone();
    for charge in &mut plan.charges {
        charge.span = span(usize::try_from(charge.limit.0).unwrap(), now_us);
    }
    matches!(
        store.decide_now(&mut plan, moment(now_us)),
        Decision::Admit { .. }
    )
}

fn one(quota: u32, cost: u32, window_us: u64) -> Plan {
    let mut plan = Plan::default();
    plan.charges
        .push(charge(0, 0, quota, cost, Span::Sliding { window_us }));
    plan
}

fn windows() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(1_000_000_u64),
        Just(60_000_000),
        50_000..100_000_000_u64
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_window_holds_more_than_its_quota_and_no_call_is_denied_without_reason(trace in acts(), quotas in quotas()) {
        run(&trace, &quotas);
    }

    #[test]
    fn a_caller_that_moves_between_overflow_and_own_counter_is_never_over(trace in acts(), quotas in quotas()) {
        run_on(tiny_store(), &trace, &quotas, true);
    }

    #[test]
    fn a_denial_says_exactly_when(trace in acts(), quotas in quotas(), pick in any::<Index>()) {
        // A part of the trace that ends in a denial, if there is one.
        let end = pick.index(trace.len());
        let found = (0..=end).rev().take(20).find_map(|end| {
            let (store, denied) = run(&trace[..=end], &quotas);
            denied.map(|denied| (end, store, denied))
        });
        if let Some((end, store, (plan, now_us, Decision::Deny { charge, retry_after: Some(wait), .. }))) = found {
            let wait_us = u64::try_from(wait.as_micros()).unwrap();
            let window_us = match plan.charges[charge].span {
                Span::Sliding { window_us } => window_us,
                Span::Day { .. } | Span::Running => DAY_US,
            };
            prop_assert!((1..=window_us).contains(&wait_us));
            prop_assert!(!admits(&store, &plan, now_us + wait_us - 1), "it could have come again earlier");
            // A wait of a whole window may be cut short, by a step.
            let short_us = match plan.charges[charge].span {
                Span::Sliding { .. } if wait_us == window_us => sliding::step_us(window_us),
                _ => 0,
            };
            let (store, _) = run(&trace[..=end], &quotas);
            let in_time = admits(&store, &plan, now_us + wait_us + short_us);
            prop_assert!(in_time, "told to come again too early");
        }
    }

    #[test]
    fn an_evenly_paced_client_is_never_denied(
        window_us in windows(),
        quota in prop_oneof![1..12_u32, 1..1_000_u32],
        cost in prop_oneof![Just(0_u32), any::<u32>()],
        offset in 0..100_000_000_u64,
    ) {
        let cost = 1 + cost % quota;
        let calls = u64::from(quota / cost);
        let store = new_store();
        for call in 0..3 * calls + 3 {
            // 95 % of `calls` a window: one every window / (0.95 × calls).
            let now_us = offset + (call * window_us * 100).div_ceil(95 * calls);
            let decision = store.decide_now(&mut one(quota, cost, window_us), moment(now_us));
            let admitted = matches!(decision, Decision::Admit { .. });
            prop_assert!(admitted, "call {} of {} a window: {:?}", call, calls, decision);
        }
    }

    #[test]
    fn demand_far_above_a_limit_gets_97_percent_of_it(
        window_us in windows(),
        quota in 1..400_u32,
        offset in 0..100_000_000_u64,
    ) {
        let store = new_store();
        let (mut admitted, mut now_us) = (0_u64, offset);
        while now_us < offset + 20 * window_us {
            match store.decide_now(&mut one(quota, 1, window_us), moment(now_us)) {
                Decision::Admit { .. } => admitted += 1,
                Decision::Deny { retry_after, .. } => {
                    prop_assert!(retry_after.unwrap() >= Duration::from_micros(1));
                    // Ten tries a step.
                    now_us += window_us / 500;
                }
                Decision::Full { .. } => panic!("no total was asked"),
            }
        }
        let full = 20 * u64::from(quota);
        prop_assert!(admitted * 100 >= full * 97, "{} of {}", admitted, full);
    }
}

#[test]
fn a_quota_is_exact_when_many_threads_ask() {
    let store = new_store();
    let admitted: u32 = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8_u64)
            .map(|thread| {
                let store = &store;
                scope.spawn(move || {
                    let ask = |call: u64| {
                        let now_us = call * 7 + thread;
                        let mut plan = one(3_000, 1, 1_000_000);
                        plan.charges
                            .push(charge(4, 1, 1_000_000, 1, span(4, now_us)));
                        u32::from(matches!(
                            store.decide_now(&mut plan, moment(now_us)),
                            Decision::Admit { .. }
                        ))
                    };
                    (0..2_000).map(ask).sum::<u32>()
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .sum()
    });
    assert_eq!(admitted, 3_000);
}
