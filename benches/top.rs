//! What it costs a call to be noted for `/top`.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use floodgate::admission::{Admission, Foreign, Policy};
use floodgate::limit::{KeyHasher, Moment};
use floodgate::observe::top::Top;
use floodgate::spec::SHIPPED;
use floodgate::spec::compile::{Layer, compile};
use floodgate::store::memory::{MemoryOptions, MemoryStore};

fn moment(us: u64) -> Moment {
    Moment {
        mono_us: 3_600_000_000 + us,
        unix_us: 1_800_000_000_000_000 + us,
    }
}

fn top(criterion: &mut Criterion) {
    let layer = Layer {
        name: "routes.toml".to_owned(),
        text: SHIPPED.to_owned(),
    };
    let Ok(rules) = compile(&[layer], KeyHasher::new((1, 2))) else {
        return;
    };
    let Some(editions) = rules.selection("current") else {
        return;
    };
    let policy = Policy {
        editions,
        auth: floodgate::identity::Auth::RequireBearer,
        ipv6_prefix: 64,
        unknown_apps: Default::default(),
    };
    let calls: Vec<Foreign> = (0..10_000_u32)
        .filter_map(|n| {
            let app = format!("org#app{n}");
            let ip = IpAddr::V4(Ipv4Addr::from_bits(n));
            Foreign::new(&rules, &policy, "users-one-get", &app, None, Some(ip), 1).ok()
        })
        .collect();
    let spine = Admission::new(MemoryStore::new(MemoryOptions::default()));
    let Some(first) = calls.first() else {
        return;
    };
    let mut plan = spine.plan(&rules, first.call(), 1, moment(0));
    spine.store().decide_now(&mut plan, moment(0));

    let mut group = criterion.benchmark_group("top");
    // 40,000 calls a second of one thread: more than a gateway's thread serves.
    for (name, callers) in [("one caller", 1), ("10,000 callers", calls.len())] {
        let top = Top::new(rules.limits.len());
        let mut n = 0_usize;
        let mut us = 0;
        group.bench_function(
            format!("an admitted call of two limits, {name}"),
            |bencher| {
                bencher.iter(|| {
                    n += 1;
                    us += 25;
                    let call = calls[n % callers].call();
                    top.admitted(black_box(call), black_box(&plan), 0, moment(us));
                });
            },
        );
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(30).measurement_time(Duration::from_secs(3)).warm_up_time(Duration::from_secs(1));
    targets = top
}
criterion_main!(benches);
