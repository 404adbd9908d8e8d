use super::*;
use crate::limit::{LimitId, Scope, Span, Taken};
use std::time::Duration;

const SECOND: u64 = 1_000_000;
const DAY: u64 = 86_400 * SECOND;

fn store(max_counters: usize) -> MemoryStore {
    MemoryStore::new(MemoryOptions { max_counters })
}

fn finish(store: &MemoryStore, key: CounterKey, task: &str, now: Moment) -> bool {
    let finishing = std::pin::pin!(store.finish_task(key, key, task, now));
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match finishing.poll(&mut context) {
        std::task::Poll::Ready(done) => done.unwrap(),
        std::task::Poll::Pending => panic!("the embedded store never waits"),
    }
}

fn at(us: u64) -> Moment {
    Moment {
        mono_us: us,
        unix_us: us,
    }
}

/// A charge to the counter `key` of the limit `limit`.
fn charge(limit: u32, key: u128, quota: u32, cost: u32, span: Span) -> Charge {
    Charge {
        limit: LimitId(limit),
        key: CounterKey(
            (u128::from(limit) << 64) ^ key.wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C834),
        ),
        overflow: CounterKey(u128::from(limit) << 64),
        quota,
        cost,
        span,
        scope: Scope::App,
        report: false,
        known: false,
        taken: None,
        shared: false,
        on_store_failure: crate::limit::OnStoreFailure::Local,
    }
}

const PER_SECOND: Span = Span::Sliding { window_us: SECOND };
const TODAY: Span = Span::Day {
    start_us: 0,
    end_us: DAY,
};

fn plan(charges: impl IntoIterator<Item = Charge>) -> Plan {
    Plan {
        totals: Vec::new(),
        charges: charges.into_iter().collect(),
        origin: None,
        app: None,
    }
}

fn admitted(decision: &Decision) -> bool {
    matches!(decision, Decision::Admit { .. })
}

fn all(_: &Charge) -> bool {
    true
}

#[test]
fn a_denied_call_spends_nothing_and_makes_no_counter() {
    let store = store(1000);
    let mut full = plan([charge(1, 1, 3, 3, PER_SECOND)]);
    assert!(admitted(&store.decide_now(&mut full, at(0))));
    let mut denied = plan([
        charge(2, 1, 10, 4, PER_SECOND),
        charge(1, 1, 3, 1, PER_SECOND),
        charge(3, 1, 5, 5, TODAY),
    ]);
    let decision = store.decide_now(&mut denied, at(0));
    assert_eq!(
        decision,
        Decision::Deny {
            charge: 1,
            left: 0,
            retry_after: Some(Duration::from_secs(1))
        }
    );
    assert!(denied.charges.iter().all(|charge| charge.taken.is_none()));
    assert_eq!(store.gauges().counters, [1, 0, 0]);
}

#[test]
fn the_longest_wait_is_told_and_never_is_longest() {
    let store = store(1000);
    let minute = Span::Sliding {
        window_us: 60 * SECOND,
    };
    let both = || [charge(1, 1, 1, 1, PER_SECOND), charge(2, 1, 1, 1, minute)];
    assert!(admitted(&store.decide_now(&mut plan(both()), at(0))));
    let decision = store.decide_now(&mut plan(both()), at(0));
    assert!(
        matches!(decision, Decision::Deny { charge: 1, retry_after: Some(wait), .. } if wait == Duration::from_secs(60))
    );
    let [second, minute] = both();
    let never = charge(3, 1, 5, 6, PER_SECOND);
    let decision = store.decide_now(&mut plan([second, never, minute]), at(0));
    assert_eq!(
        decision,
        Decision::Deny {
            charge: 1,
            left: 5,
            retry_after: None
        }
    );
}

#[test]
fn a_look_takes_nothing_and_is_denied_when_nothing_is_left() {
    let store = store(1000);
    let look = || plan([charge(1, 1, 2, 0, PER_SECOND)]);
    assert!(admitted(&store.decide_now(&mut look(), at(0))));
    assert_eq!(store.gauges().counters, [0, 0, 0]);
    store.decide_now(&mut plan([charge(1, 1, 2, 1, PER_SECOND)]), at(0));
    let mut second = look();
    assert!(admitted(&store.decide_now(&mut second, at(0))));
    assert!(second.charges[0].taken.is_none());
    store.decide_now(&mut plan([charge(1, 1, 2, 1, PER_SECOND)]), at(0));
    assert!(!admitted(&store.decide_now(&mut look(), at(0))));
}

#[test]
fn two_charges_to_one_counter_count_together() {
    let store = store(1000);
    let twice = |cost| {
        plan([
            charge(1, 1, 10, cost, PER_SECOND),
            charge(1, 1, 10, cost, PER_SECOND),
        ])
    };
    assert_eq!(
        store.decide_now(&mut twice(6), at(0)),
        Decision::Deny {
            charge: 0,
            left: 10,
            retry_after: None
        },
        "twelve never fit"
    );
    let mut fits = twice(4);
    assert!(admitted(&store.decide_now(&mut fits, at(0))));
    assert_eq!(store.gauges().counters, [1, 0, 0]);
    assert!(!admitted(&store.decide_now(&mut twice(2), at(0))));
    store.give_back(&mut fits, at(0), &all);
    assert!(admitted(&store.decide_now(&mut twice(5), at(0))));
}

#[test]
fn a_report_charge_never_denies_and_takes_only_where_there_is_room() {
    let store = store(1000);
    let report = Charge {
        report: true,
        ..charge(2, 1, 1, 1, PER_SECOND)
    };
    let call = || plan([report, charge(1, 1, 5, 1, PER_SECOND)]);
    let mut first = call();
    assert!(
        matches!(store.decide_now(&mut first, at(0)), Decision::Admit { reported: 0, nearest: Some(room) }
        if room.charge == 1 && room.left == 4)
    );
    let mut second = call();
    assert!(matches!(
        store.decide_now(&mut second, at(0)),
        Decision::Admit { reported: 1, .. }
    ));
    assert!(second.charges[0].taken.is_none() && second.charges[1].taken.is_some());
}

#[test]
fn the_limit_nearest_to_exhaustion_is_named() {
    let store = store(1000);
    let mut call = plan([
        charge(1, 1, 100, 1, PER_SECOND),
        charge(2, 1, 10, 2, TODAY),
        charge(3, 1, 1000, 1, PER_SECOND),
    ]);
    let Decision::Admit {
        nearest: Some(room),
        ..
    } = store.decide_now(&mut call, at(DAY / 2))
    else {
        panic!("denied")
    };
    assert_eq!(
        (room.charge, room.left, room.resets_in),
        (1, 8, Duration::from_secs(43_200))
    );
}

#[test]
fn units_go_back_once_and_only_those_asked_for() {
    let store = store(1000);
    let mut call = plan([charge(1, 1, 1, 1, PER_SECOND), charge(2, 1, 1, 1, TODAY)]);
    store.decide_now(&mut call, at(0));
    store.give_back(&mut call, at(1), &|charge| charge.limit == LimitId(1));
    assert!(call.charges[0].taken.is_none() && call.charges[1].taken.is_some());
    assert!(admitted(
        &store.decide_now(&mut plan([charge(1, 1, 1, 1, PER_SECOND)]), at(1))
    ));
    store.give_back(&mut call, at(2), &all);
    store.give_back(&mut call, at(2), &all);
    assert!(!admitted(
        &store.decide_now(&mut plan([charge(1, 1, 1, 1, PER_SECOND)]), at(2))
    ));
    assert!(admitted(
        &store.decide_now(&mut plan([charge(2, 1, 1, 1, TODAY)]), at(2))
    ));
}

#[test]
fn a_task_keeps_its_slot_past_the_call_until_it_is_done_or_over() {
    let store = store(1000);
    let call = || plan([charge(1, 1, 1, 1, Span::Running)]);
    let key = call().charges[0].key;
    let mut first = call();
    assert!(admitted(&store.decide_now(&mut first, at(0))));
    assert_eq!(
        store.decide_now(&mut call(), at(0)),
        Decision::Deny {
            charge: 0,
            left: 0,
            retry_after: Some(Duration::from_secs(1))
        }
    );
    store.hold_task(&mut first, "task", Duration::from_secs(10), at(0), &all);
    store.give_back(&mut first, at(1), &all);
    assert_eq!(store.gauges().slots, 1);
    assert!(!finish(&store, key, "another", at(1)));
    assert!(finish(&store, key, "task", at(1)));
    assert!(!finish(&store, key, "task", at(1)));
    assert_eq!(store.gauges().slots, 0);

    let mut second = call();
    assert!(admitted(&store.decide_now(&mut second, at(2))));
    store.hold_task(&mut second, "task", Duration::from_secs(10), at(0), &all);
    assert!(!admitted(
        &store.decide_now(&mut call(), at(10 * SECOND - 1))
    ));
    assert!(admitted(&store.decide_now(&mut call(), at(10 * SECOND))));
}

#[test]
fn a_reset_counter_is_empty_and_calls_of_before_free_nothing_of_others() {
    let store = store(1000);
    let charges = || {
        plan([
            charge(1, 1, 3, 3, PER_SECOND),
            charge(2, 1, 3, 3, TODAY),
            charge(3, 1, 1, 1, Span::Running),
        ])
    };
    let mut before = charges();
    assert!(admitted(&store.decide_now(&mut before, at(0))));
    let mut other = plan([charge(1, 2, 3, 3, PER_SECOND)]);
    assert!(admitted(&store.decide_now(&mut other, at(0))));
    let counters = charges();
    let reset = std::pin::pin!(store.reset(&counters, at(1)));
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(reset.poll(&mut context).is_ready());
    let mut after = charges();
    assert!(admitted(&store.decide_now(&mut after, at(2))));
    assert!(!admitted(&store.decide_now(&mut other.clone(), at(2))));
    // The slot of before has another number.
    store.give_back(&mut before, at(3), &|c| c.span == Span::Running);
    for charge in charges().charges {
        assert!(!admitted(&store.decide_now(&mut plan([charge]), at(3))));
    }
    assert_eq!(store.gauges().slots, 1);
}

#[test]
fn idle_counters_go_and_live_ones_stay() {
    let store = store(100_000);
    for key in 0..5_000 {
        store.decide_now(
            &mut plan([
                charge(1, key, 5, 1, PER_SECOND),
                charge(2, key, 5, 1, TODAY),
            ]),
            at(0),
        );
    }
    assert_eq!(store.gauges().counters, [10_000, 0, 0]);
    for _ in 0..8 {
        store.sweep(at(2 * SECOND));
    }
    assert_eq!(store.gauges().counters, [5_000, 0, 0], "the day's are live");
    for _ in 0..8 {
        store.sweep(at(DAY));
    }
    assert_eq!(store.gauges().counters, [0, 0, 0]);
}

#[test]
fn above_the_bound_new_keys_share_one_counter_and_live_ones_stay() {
    let store = store(80); // 20 apps, 10 in reserve
    let call = |key| plan([charge(1, key, 3, 1, PER_SECOND)]);
    for key in 0..20 {
        assert!(admitted(&store.decide_now(&mut call(key), at(0))));
    }
    let flood = (20..1_000)
        .filter(|key| admitted(&store.decide_now(&mut call(*key), at(0))))
        .count();
    assert_eq!(flood, 3, "one counter for all of them");
    assert_eq!(store.gauges().counters, [20, 0, 0]);
    assert!(store.gauges().overflowed >= 3);
    for key in 0..20 {
        assert!(
            admitted(&store.decide_now(&mut call(key), at(0))),
            "a live counter was evicted"
        );
    }
    let user = plan([Charge {
        scope: Scope::User,
        ..charge(2, 1, 1, 1, PER_SECOND)
    }]);
    assert!(
        admitted(&store.decide_now(&mut user.clone(), at(0))),
        "another kind has its own share"
    );
}

#[test]
fn known_apps_never_share_the_overflow() {
    let store = store(80);
    let known = |key| {
        plan([Charge {
            known: true,
            ..charge(1, key, 1, 1, PER_SECOND)
        }])
    };
    for key in 0..200 {
        store.decide_now(&mut plan([charge(1, key, 1, 1, PER_SECOND)]), at(0));
    }
    for key in 1_000..1_100 {
        let mut plan = known(key);
        assert!(admitted(&store.decide_now(&mut plan, at(0))));
        assert!(!plan.charges[0].shared);
    }
    // Their users are anybody's to make up: bounded, but apart from those of unknown apps.
    let user = |key, known| {
        plan([Charge {
            known,
            scope: Scope::User,
            ..charge(2, key, 1, 1, PER_SECOND)
        }])
    };
    for key in 0..200 {
        store.decide_now(&mut user(key, false), at(0));
    }
    let mut known_user = user(1_000, true);
    assert!(admitted(&store.decide_now(&mut known_user, at(0))));
    for key in 1_001..1_200 {
        store.decide_now(&mut user(key, true), at(0));
    }
    assert!(store.gauges().counters[1] <= 80);
}

#[test]
fn leaving_the_overflow_gains_nothing() {
    for span in [PER_SECOND, TODAY] {
        let store = store(8); // 2 apps
        let call = |key, quota| plan([charge(1, key, quota, 1, span)]);
        for key in 0..2 {
            let mut blocker = plan([charge(
                9,
                key,
                1,
                1,
                Span::Sliding {
                    window_us: SECOND / 2,
                },
            )]);
            assert!(admitted(&store.decide_now(&mut blocker, at(0))));
        }
        let mut shared = call(7, 2);
        assert!(admitted(&store.decide_now(&mut shared, at(SECOND / 4))));
        assert!(shared.charges[0].shared);
        for _ in 0..8 {
            store.sweep(at(SECOND * 6 / 10));
        }
        let mut own = call(7, 2);
        assert!(admitted(&store.decide_now(&mut own, at(SECOND * 7 / 10))));
        assert!(!own.charges[0].shared, "there is room again");
        assert!(
            !admitted(&store.decide_now(&mut call(7, 2), at(SECOND * 7 / 10))),
            "two within the window"
        );
        let mut other = call(8, 2);
        assert!(admitted(&store.decide_now(&mut other, at(SECOND * 7 / 10))));
        assert!(
            admitted(&store.decide_now(&mut call(8, 2), at(SECOND * 7 / 10))),
            "this one was never there"
        );
    }
}

#[test]
fn a_slot_of_the_overflow_is_freed_where_it_was_taken() {
    let store = store(8);
    let call = |key| plan([charge(1, key, 2, 1, Span::Running)]);
    let mut running: Vec<Plan> = (0..4).map(call).collect();
    for plan in &mut running {
        assert!(admitted(&store.decide_now(plan, at(0))));
    }
    assert!(running[3].charges[0].shared);
    assert!(!admitted(&store.decide_now(&mut call(4), at(0))));
    let key = running[3].charges[0].key;
    store.hold_task(&mut running[3], "task", Duration::from_secs(1), at(0), &all);
    // Room again, but this caller's task still runs in the overflow.
    store.give_back(&mut running[0], at(0), &all);
    (0..8).for_each(|_| store.sweep(at(0)));
    store.give_back(&mut running[2], at(0), &all);
    let mut second = call(3);
    assert!(admitted(&store.decide_now(&mut second, at(0))));
    assert!(second.charges[0].shared);
    assert!(finish(&store, key, "task", at(0)));
    for plan in &mut running {
        store.give_back(plan, at(0), &all);
    }
    store.give_back(&mut second, at(0), &all);
    assert_eq!(store.gauges().slots, 0);
}

#[test]
fn one_origin_makes_a_thousand_new_keys_a_minute() {
    let store = store(100_000);
    let origin = |key, origin| {
        let mut plan = plan([charge(1, key, 2, 1, PER_SECOND)]);
        plan.origin = Some(CounterKey(origin));
        plan
    };
    for key in 0..3_000 {
        store.decide_now(&mut origin(key, 1), at(0));
    }
    assert_eq!(store.gauges().counters, [1_000, 0, 0]);
    assert!(
        admitted(&store.decide_now(&mut origin(5_000, 2), at(0))),
        "another address"
    );
    assert_eq!(store.gauges().counters, [1_001, 0, 0]);
    store.decide_now(&mut origin(6_000, 1), at(62 * SECOND));
    assert_eq!(store.gauges().counters, [1_002, 0, 0], "a minute later");
}

#[test]
fn threads_together_never_exceed_a_quota() {
    let store = store(1000);
    let taken: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|thread| {
                let store = &store;
                scope.spawn(move || {
                    let mut taken = 0;
                    for call in 0..2_000_u64 {
                        // Several keys in either order: locks must not wait for each other.
                        let mut keys = [
                            charge(1, 1, 500, 1, PER_SECOND),
                            charge(2, thread, 5_000, 1, TODAY),
                        ];
                        if call % 2 == 0 {
                            keys.reverse();
                        }
                        let mut plan = plan(keys);
                        if admitted(&store.decide_now(&mut plan, at(call * 10))) {
                            taken += 1;
                            if call % 5 == 0 {
                                store.give_back(&mut plan, at(call * 10), &all);
                                taken -= 1;
                            }
                        }
                    }
                    taken
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .sum()
    });
    assert_eq!(taken, 500);
}

#[test]
fn no_decision_allocates_once_its_counters_exist() {
    let store = store(1000);
    let call = || {
        plan((1..=3).map(|limit| {
            charge(
                limit,
                1,
                1_000_000,
                1,
                if limit == 3 { TODAY } else { PER_SECOND },
            )
        }))
    };
    for step in 0..60 {
        store.decide_now(&mut call(), at(step * SECOND / 50));
    }
    let run = allocation_counter::measure(|| {
        for step in 0..20_000 {
            let now = at(2 * SECOND + step * 997);
            let mut call = call();
            assert!(admitted(&store.decide_now(&mut call, now)));
            if step % 3 == 0 {
                store.give_back(&mut call, now, &all);
            }
        }
    });
    assert_eq!(run.count_total, 0);
}

#[test]
fn a_million_live_counters_fit_in_256_mib() {
    let store = store(4_000_000);
    let fill = allocation_counter::measure(|| {
        for key in 0..1_000_000 {
            store.decide_now(&mut plan([charge(1, key, 10, 1, TODAY)]), at(0));
        }
    });
    assert_eq!(store.gauges().counters, [1_000_000, 0, 0]);
    let bytes = fill.bytes_current;
    assert!(bytes <= 200 * 1_000_000, "{bytes} bytes");
}

#[test]
fn absurd_times_and_costs_do_not_panic() {
    let store = store(100);
    for now in [
        at(u64::MAX),
        at(0),
        Moment {
            mono_us: 0,
            unix_us: u64::MAX,
        },
    ] {
        for cost in [0, 1, u32::MAX] {
            for quota in [0, 1, u32::MAX] {
                let spans = [
                    PER_SECOND,
                    TODAY,
                    Span::Running,
                    Span::Sliding {
                        window_us: u64::MAX,
                    },
                ];
                let mut plan = plan(
                    (1..)
                        .zip(spans)
                        .map(|(limit, span)| charge(limit, 1, quota, cost, span)),
                );
                let decision = store.decide_now(&mut plan, now);
                if let Some(Taken::Slot(_)) = plan.charges[2].taken {
                    assert!(admitted(&decision));
                }
                store.give_back(&mut plan, now, &all);
            }
        }
        store.sweep(now);
    }
    assert!(admitted(&store.decide_now(&mut Plan::default(), at(0))));
}

/// A store that has gone on from where this one was, and the slots of calls that run there.
fn moved(from: &MemoryStore, max_counters: usize) -> (MemoryStore, Vec<moving::Running>) {
    let (to, mut running) = (store(max_counters), Vec::new());
    let given = from.move_out(|piece| {
        // As it goes to another process.
        let text = serde_json::to_string(&piece)?;
        running.extend(to.move_in(serde_json::from_str(&text)?));
        Ok::<_, serde_json::Error>(())
    });
    given.unwrap();
    (to, running)
}

fn mixed(key: u128) -> Plan {
    plan([
        charge(0, key, 10, 1, PER_SECOND),
        charge(1, key + 1, 7, 1, TODAY),
        charge(2, key + 2, 3, 1, Span::Running),
    ])
}

#[test]
fn counters_that_move_go_on_where_they_were() {
    let from = store(1000);
    let mut taken = [mixed(10), mixed(10)];
    for plan in &mut taken {
        assert!(admitted(&from.decide_now(plan, at(0))));
    }
    let (to, _) = moved(&from, 1000);
    assert_eq!(to.gauges(), from.gauges());
    // Three slots, of which two are taken.
    assert!(admitted(&to.decide_now(&mut mixed(10), at(5))));
    assert!(!admitted(&to.decide_now(&mut mixed(10), at(5))));
    // What was taken before the move is given back after it, to where it was taken.
    let [first, second] = &mut taken;
    to.give_back(first, at(6), &all);
    to.give_back(second, at(6), &|charge| charge.span == Span::Running);
    assert_eq!(to.gauges().slots, 1);
    for _ in 0..2 {
        assert!(admitted(&to.decide_now(&mut mixed(10), at(7))));
    }
    let left = |span, key, quota| {
        let mut look = plan([charge(0, key, quota, 0, span)]);
        match to.decide_now(&mut look, at(8)) {
            Decision::Admit { nearest, .. } => nearest.map(|room| room.left),
            Decision::Deny { left, .. } => Some(left),
            Decision::Full { .. } => None,
        }
    };
    assert_eq!(left(PER_SECOND, 10, 10), Some(6));
}

#[test]
fn nothing_is_taken_from_counters_that_have_gone_until_they_are_back() {
    let store = store(1000);
    let mut before = mixed(10);
    store.decide_now(&mut before, at(0));
    moved(&store, 1000);
    for key in [10, 500] {
        let mut plan = mixed(key);
        assert_eq!(store.decide_here(&mut plan, at(1)), None);
        assert!(plan.charges.iter().all(|charge| charge.taken.is_none()));
    }
    store.give_back(&mut before, at(2), &all);
    assert!(
        before.charges.iter().all(|charge| charge.taken.is_some()),
        "to be given back elsewhere"
    );
    let slots = before.charges[2].key;
    assert_eq!(store.finish_now(slots, "a", at(2)), None);
    assert!(!store.reset_now(&before, at(2)));
    store.come_back();
    store.give_back(&mut before, at(2), &all);
    assert_eq!(store.gauges().slots, 0);
    assert!(admitted(&store.decide_now(&mut mixed(10), at(3))));
}

#[test]
fn slots_of_calls_whose_process_is_gone_are_freed_and_tasks_stay() {
    let from = store(1000);
    let (mut call, mut task, mut ended) = (mixed(10), mixed(10), mixed(10));
    for plan in [&mut call, &mut task, &mut ended] {
        assert!(admitted(&from.decide_now(plan, at(0))));
    }
    from.hold_task(&mut task, "a", Duration::from_secs(60), at(0), &all);
    let (to, running) = moved(&from, 1000);
    assert_eq!(running.len(), 2);
    to.give_back(&mut ended, at(1), &all);
    assert_eq!(to.gauges().slots, 2);
    to.abandon(&running);
    assert_eq!(to.gauges().slots, 1, "the task's");
    assert_eq!(to.finish_now(call.charges[2].key, "a", at(2)), Some(true));
}

#[test]
fn what_shares_the_overflow_goes_on_sharing_it_elsewhere() {
    let from = store(8);
    for key in 0..40 {
        from.decide_now(
            &mut plan([charge(0, key << 70, 1000, 1, PER_SECOND)]),
            at(0),
        );
    }
    let used = |store: &MemoryStore| {
        // A key that shares: the overflow counts for it.
        let mut look = plan([charge(0, 39 << 70, 1000, 0, PER_SECOND)]);
        match store.decide_now(&mut look, at(1)) {
            Decision::Admit { nearest, .. } => nearest.map(|room| 1000 - room.left),
            Decision::Deny { .. } | Decision::Full { .. } => None,
        }
    };
    let before = used(&from);
    assert!(before > Some(30), "{before:?}");
    let (to, _) = moved(&from, 8);
    assert_eq!(used(&to), before);
    assert_eq!(to.gauges(), from.gauges());
}

#[test]
fn while_counters_move_threads_together_never_exceed_a_quota() {
    let from = store(1000);
    let admitted_by = |store: &MemoryStore| {
        let mut count = 0;
        for _ in 0..2000 {
            match store.decide_here(&mut plan([charge(0, 10, 1500, 1, PER_SECOND)]), at(0)) {
                Some(decision) => count += u32::from(admitted(&decision)),
                None => return count,
            }
        }
        count
    };
    let (to, before) = std::thread::scope(|scope| {
        let spending: Vec<_> = (0..4).map(|_| scope.spawn(|| admitted_by(&from))).collect();
        let (to, _) = moved(&from, 1000);
        let spent = spending.into_iter().map(|one| one.join().unwrap());
        (to, spent.sum::<u32>())
    });
    assert_eq!(before + admitted_by(&to), 1500);
}
