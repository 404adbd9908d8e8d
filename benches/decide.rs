//! Step 4, decide: one plan over three limits of the embedded store.

use std::hint::black_box;
use std::num::NonZeroU32;
use std::time::Duration;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use floodgate::limit::{
    Decision, Denial, Hold, KeyHasher, Limit, LimitId, Mode, Moment, OnStoreFailure, Plan, Scope,
    Unit, Window, calendar::Zone,
};
use floodgate::store::memory::{MemoryOptions, MemoryStore};

const KEYS: KeyHasher = KeyHasher::new((1, 2));

fn limit(name: &str, quota: u32, window: Window, scope: Scope) -> Limit {
    Limit {
        name: name.into(),
        unit: Unit::Calls,
        quota: NonZeroU32::new(quota).unwrap_or(NonZeroU32::MIN),
        window,
        scope,
        group: None,
        mode: Mode::Enforce,
        on_store_failure: OnStoreFailure::Local,
        refund_on: Box::default(),
        hold: Hold::Response,
        max_hold: Duration::ZERO,
        denial: Denial::CallRate,
        sources: Box::default(),
        salt: KEYS.limit(name),
    }
}

fn limits(quota: u32) -> [Limit; 3] {
    let second = || Window::Sliding(Duration::from_secs(1));
    [
        limit("calls/s:app", quota, second(), Scope::App),
        limit(
            "calls/min:user",
            quota,
            Window::Sliding(Duration::from_secs(60)),
            Scope::User,
        ),
        limit("calls/day:app", quota, Window::Day(Zone::UTC), Scope::App),
    ]
}

/// Plans and decides one call of caller `n`.
fn call(store: &MemoryStore, limits: &[Limit; 3], n: u32, now: Moment) -> Decision {
    let app = KEYS.app("org#app");
    // Salted by number: names are hashed when callers are identified, not here.
    let user = floodgate::limit::CounterKey(app.0.wrapping_mul(u128::from(n) * 2 + 1));
    let mut plan = Plan {
        origin: Some(user),
        ..Plan::default()
    };
    for (id, limit) in (0..).zip(limits) {
        let caller = if limit.scope == Scope::User {
            user
        } else {
            app
        };
        plan.charges
            .push(limit.charge(LimitId(id), caller, 1, true, now));
    }
    store.decide_now(&mut plan, now)
}

fn moment(us: u64) -> Moment {
    Moment {
        mono_us: us,
        unix_us: 1_800_000_000_000_000 + us,
    }
}

fn decide(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decide");

    let (store, many) = (MemoryStore::new(MemoryOptions::default()), limits(u32::MAX));
    let mut us = 0;
    group.bench_function("admit, 3 limits, one caller", |bencher| {
        bencher.iter(|| {
            us += 10;
            black_box(call(&store, &many, 0, moment(us)))
        });
    });

    let (store, many) = (MemoryStore::new(MemoryOptions::default()), limits(u32::MAX));
    let (mut us, mut n) = (0, 0_u32);
    group.bench_function("admit, 3 limits, 100,000 callers", |bencher| {
        bencher.iter(|| {
            us += 10;
            n = (n + 1) % 100_000;
            black_box(call(&store, &many, n, moment(us)))
        });
    });

    let (store, few) = (MemoryStore::new(MemoryOptions::default()), limits(100));
    let mut us = 0;
    group.bench_function("deny, 3 limits, one caller", |bencher| {
        bencher.iter(|| {
            us += 10;
            black_box(call(&store, &few, 0, moment(us)))
        });
    });

    let few = limits(100);
    group.bench_function("first call of a caller", |bencher| {
        bencher.iter_batched(
            || MemoryStore::new(MemoryOptions::default()),
            |store| {
                black_box(call(&store, &few, 0, moment(1)));
                store
            },
            BatchSize::LargeInput,
        );
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(30).measurement_time(Duration::from_secs(3)).warm_up_time(Duration::from_secs(1));
    targets = decide
}
criterion_main!(benches);
