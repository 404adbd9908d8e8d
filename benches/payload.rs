//! Checking what a call carries, by the shipped limits. Aims: a message of 3 KB under 5 µs, a call
//! to 600 recipients under 100 µs. One with an escape in every seventh character may take a little more.
#![allow(missing_docs, clippy::expect_used, reason = "a bench")]

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use floodgate::limit::KeyHasher;
use floodgate::spec::{RouteId, Ruleset};

fn payload(c: &mut Criterion) {
    let rules = Ruleset::shipped(KeyHasher::new((1, 2))).expect("the shipped table");
    let route = rules
        .routes
        .iter()
        .position(|route| &*route.name == "messages-users");
    let (edition, _) = rules.selection("current").expect("the default");
    let checked = rules.payloads.of(RouteId(route.expect("a route")), edition);
    let checks = &checked.expect("its limits").checks;
    let message = |to: &str, text: &str| {
        format!(
            r#"{{"from":"admin","to":[{to}],"type":"txt","body":{{"msg":"{text}"}},"ext":{{"k":"v"}},"sync_device":true}}"#
        )
    };
    let list: Vec<String> = (0..600).map(|n| format!("\"user-{n:06}\"")).collect();
    let lines = "a \\\"line\\\" of text, \\n".repeat(3000 / 20);
    let bodies = [
        ("3 KB, ASCII", message("\"bob\"", &"hello ".repeat(512))),
        ("3 KB, Chinese", message("\"bob\"", &"中文".repeat(512))),
        ("3 KB, emoji", message("\"bob\"", &"😀".repeat(768))),
        ("3 KB, escapes", message("\"bob\"", &lines)),
        ("600 recipients", message(&list.join(","), "hello")),
        (
            "600 recipients, 3 KB",
            message(&list.join(","), &"中文".repeat(512)),
        ),
    ];
    let mut group = c.benchmark_group("payload");
    for (name, body) in &bodies {
        let found = checks.body(None, body.as_bytes());
        assert!(found.is_good(), "{name}: {found:?}");
        group.bench_function(*name, |b| {
            b.iter(|| checks.body(None, black_box(body.as_bytes())));
        });
    }
    // As many values as fit into a body: each byte is looked at once, whatever asks.
    let room = rules
        .routes
        .iter()
        .position(|route| &*route.name == "metadata-chatroom-user-one-put");
    if let Some(room) = room {
        let checked = rules.payloads.of(RouteId(room), edition);
        let checks = &checked.expect("its limits").checks;
        for count in [1000, 16_000] {
            let fields: Vec<String> = (0..count).map(|n| format!("\"{n}\":[]")).collect();
            let body = format!("{{\"metaData\":{{{}}}}}", fields.join(","));
            group.bench_function(format!("{count} attributes"), |b| {
                b.iter(|| checks.body(None, black_box(body.as_bytes())));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, payload);
criterion_main!(benches);
