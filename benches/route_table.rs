//! Matching a path against the whole shipped table. Aim: under 250 ns.
#![allow(missing_docs, clippy::expect_used, reason = "a bench")]

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use floodgate::limit::KeyHasher;
use floodgate::route::canonical::{canonical, split_app};
use floodgate::spec::Ruleset;

fn route_table(c: &mut Criterion) {
    let rules = Ruleset::shipped(KeyHasher::new((1, 2))).expect("the shipped table");
    let mut group = c.benchmark_group("route_table");
    for (name, method, path) in [
        ("static", "POST", "/org/app/messages/users"),
        ("parameter", "GET", "/org/app/users/alice"),
        (
            "deep",
            "PUT",
            "/org/app/metadata/chatroom/1/user/alice/forced",
        ),
        ("miss", "GET", "/org/app/nothing/like/this"),
    ] {
        let (_, tail) = split_app(path).expect("an app");
        group.bench_function(format!("find {name}"), |b| {
            b.iter(|| rules.table.find(black_box(method), black_box(tail)));
        });
        group.bench_function(format!("canonical, app and find {name}"), |b| {
            b.iter(|| {
                let path = canonical(black_box(path)).expect("a path");
                let (app, tail) = split_app(&path).expect("an app");
                black_box(&app);
                matches!(
                    rules.table.find(method, tail),
                    floodgate::route::table::Found::Route { .. }
                )
            });
        });
    }
    group.finish();
}

criterion_group!(benches, route_table);
criterion_main!(benches);
