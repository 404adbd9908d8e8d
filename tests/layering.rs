//! The arrows of `lib.rs`, over the `use` paths of the source: the pure middle knows neither
//! pingora nor redis nor tokio, reads no clock and no environment.
#![allow(missing_docs, clippy::expect_used, reason = "tests")]

use std::path::{Path, PathBuf};

/// `(folder or file under src, what its code may not name)`.
const NEVER: &[(&str, &[&str])] = &[
    ("head.rs", PURE),
    ("limit", PURE),
    (
        "limit",
        &[
            "crate::route",
            "crate::identity",
            "crate::spec",
            "crate::store",
            "crate::admission",
        ],
    ),
    ("route", PURE),
    (
        "route",
        &["crate::limit::plan", "crate::store", "crate::admission"],
    ),
    ("identity", PURE),
    (
        "identity",
        &[
            "crate::limit",
            "crate::store",
            "crate::spec",
            "crate::admission",
        ],
    ),
    ("payload", PURE),
    (
        "payload",
        &[
            "crate::limit",
            "crate::route",
            "crate::identity",
            "crate::apps",
            "crate::store",
            "crate::admission",
        ],
    ),
    ("apps", PURE),
    (
        "apps",
        &["crate::route", "crate::store", "crate::admission"],
    ),
    ("spec", PURE),
    ("spec", &["crate::store", "crate::admission"]),
    ("store/memory", PURE),
    (
        "store",
        &[
            "crate::route",
            "crate::identity",
            "crate::spec",
            "crate::admission",
        ],
    ),
    ("protect", PURE),
    (
        "protect",
        &[
            "crate::limit",
            "crate::route",
            "crate::identity",
            "crate::spec",
            "crate::store",
            "crate::admission",
        ],
    ),
    ("admission", PURE),
    (
        "admission",
        &[
            "crate::gateway",
            "crate::observe",
            "crate::settings",
            "crate::serve",
        ],
    ),
    ("observe", &["pingora::"]),
    ("cli", &["pingora::"]),
];

const PURE: &[&str] = &[
    "pingora",
    "redis::",
    "tokio",
    "prometheus",
    "tracing",
    "Instant::now",
    "SystemTime",
    "std::env",
];

fn sources(path: &Path, found: &mut Vec<PathBuf>) {
    if path.is_dir() {
        for entry in std::fs::read_dir(path).expect("a folder").flatten() {
            sources(&entry.path(), found);
        }
    } else if path.extension().is_some_and(|ext| ext == "rs") {
        found.push(path.to_owned());
    }
}

/// The code of a file: no comments, nothing after its tests begin.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .take_while(|(_, line)| !line.starts_with("#[cfg(test)]"))
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
        .map(|(i, line)| (i + 1, line))
}

#[test]
fn the_arrows_hold() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut wrong = Vec::new();
    let mut read = 0;
    for (place, names) in NEVER {
        let mut files = Vec::new();
        sources(&src.join(place), &mut files);
        assert!(!files.is_empty(), "{place} is gone; mend this list");
        for file in files.iter().filter(|file| !file.ends_with("tests.rs")) {
            let text = std::fs::read_to_string(file).expect("a source file");
            for (line, code) in code(&text) {
                read += 1;
                for name in names.iter().filter(|name| code.contains(**name)) {
                    wrong.push(format!(
                        "{}:{line}: {place} names {name}: {}",
                        file.display(),
                        code.trim()
                    ));
                }
            }
        }
    }
    assert!(read > 1000, "only {read} lines were read");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
