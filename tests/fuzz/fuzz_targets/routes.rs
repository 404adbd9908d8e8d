//! Route files: any text compiles or has mistakes that are inside it, and what compiles finds its
//! own calls.
#![no_main]

use floodgate::limit::KeyHasher;
use floodgate::route::table::Found;
use floodgate::spec::Ruleset;
use floodgate::spec::compile::{Layer, Mistakes, compile, mistakes_of_some};
use libfuzzer_sys::fuzz_target;

/// A table that others can be layered over in no time.
const SMALL: &str = r#"
[editions]
v1 = { ip_copy = true }
v2 = {}
[select]
current = { app_key = "v1", app_id = "v2" }
[defaults]
limits = ["100/s"]
[ip]
unauthorized = ["20/s"]
[[group]]
name = "pair"
v1 = { limits = ["10/s"] }
[[route]]
name = "one"
calls = ["GET /one/{username}"]
v1 = { group = "pair" }
v2 = { limits = ["5/min per user", "50/day"] }
[[route]]
name = "two"
calls = ["POST /two"]
cost = "to"
v1 = { group = "pair" }
"#;

fuzz_target!(|data: &[u8]| {
    let Some((choice, text)) = data.split_first() else {
        return;
    };
    let Ok(text) = std::str::from_utf8(text) else {
        return;
    };
    let layer = |name: &str, text: &str| Layer {
        name: name.to_owned(),
        text: text.to_owned(),
    };
    let mut layers = vec![layer("mine.toml", text)];
    match choice {
        b'a' => {}
        _ => layers.insert(0, layer("routes.toml", SMALL)),
    }
    match compile(&layers, KeyHasher::new((1, 2))) {
        Ok(rules) => {
            compiled(&rules);
            assert!(mistakes_of_some(&layers).0.is_empty());
        }
        Err(mistakes) => {
            assert!(!mistakes.0.is_empty());
            placed(&mistakes, text);
        }
    }
    placed(&mistakes_of_some(&layers), text);
});

/// Each has its place, and says something.
fn placed(mistakes: &Mistakes, text: &str) {
    for mistake in &mistakes.0 {
        let text = match &*mistake.file {
            "mine.toml" => text,
            "routes.toml" => SMALL,
            other => panic!("{mistake}: there is no {other:?}"),
        };
        let lines = text.matches('\n').count() + 1;
        assert!((1..=lines).contains(&mistake.line), "{mistake}: {lines}");
        assert!(!mistake.message.is_empty());
    }
}

/// Everything that is referred to is there, and every call is found.
fn compiled(rules: &Ruleset) {
    for (_, key, id) in &rules.selections {
        assert!(key.0 < rules.editions.len() && id.0 < rules.editions.len());
    }
    for route in rules.routes.iter().chain([&rules.unmatched_route]) {
        assert_eq!(route.editions.len(), rules.editions.len());
        for limit in route.editions.iter().flat_map(|e| &e.limits) {
            assert!((limit.0 as usize) < rules.limits.len());
        }
    }
    for (id, route) in rules.routes.iter().enumerate() {
        for (method, path) in &route.calls {
            let tail = path.split('/').map(|part| match part.starts_with('{') {
                true => "x-1",
                false => part,
            });
            let tail = tail.collect::<Vec<_>>().join("/");
            match rules.table.find(method, &tail) {
                Found::Route { id: found, .. } if found.0 == id => {}
                // Another has a fixed segment where this has a parameter.
                Found::Route { id: found, .. } => {
                    let calls = &rules.routes[found.0].calls;
                    let same = calls
                        .iter()
                        .any(|(m, p)| m == method && is_case_of(p, path));
                    assert!(same, "{method} {path}: found {calls:?}");
                }
                other => panic!("{method} {path}: {other:?}"),
            }
        }
    }
}

/// Whether the second path's fixed segments are those of the first, or what it has for any.
fn is_case_of(found: &str, path: &str) -> bool {
    let of = |text: &str| text.split('/').map(str::to_lowercase).collect::<Vec<_>>();
    let (found, path) = (of(found), of(path));
    found.len() == path.len()
        && found
            .iter()
            .zip(&path)
            .all(|(a, b)| a == b || a.starts_with('{') || b.starts_with('{'))
}
