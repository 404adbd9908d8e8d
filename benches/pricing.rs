//! Counting the recipients of a body. Aim: over 500 MB/s with 600 recipients.
#![allow(missing_docs, clippy::expect_used, reason = "a bench")]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use floodgate::route::pricing::{CostSource, recipients};

fn pricing(c: &mut Criterion) {
    let to: Vec<String> = (0..600).map(|n| format!("\"user-{n:06}\"")).collect();
    let body = format!(
        r#"{{"from":"admin","to":[{}],"type":"txt","body":{{"msg":"{}"}},"ext":{{"k":"v"}}}}"#,
        to.join(","),
        "hello ".repeat(400)
    );
    let source = CostSource {
        field: "to".into(),
        caps: Box::default(),
    };
    assert_eq!(recipients(&source, body.as_bytes()), Ok(600));
    let mut group = c.benchmark_group("pricing");
    group.throughput(Throughput::Bytes(body.len() as u64));
    group.bench_function("600 recipients", |b| {
        b.iter(|| recipients(black_box(&source), black_box(body.as_bytes())));
    });
    group.finish();
}

criterion_group!(benches, pricing);
criterion_main!(benches);
