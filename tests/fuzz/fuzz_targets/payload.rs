//! What a body carries, in any pieces, against serde_json and against plain readers of whole
//! forms and multipart bodies.
#![no_main]

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use floodgate::payload::place::Place;
use floodgate::payload::{Charset, Checker, Checks, Found, Measure, Most, Rule};
use libfuzzer_sys::fuzz_target;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

const BOUNDARY: &[u8] = b"x-y";

fuzz_target!(|data: &[u8]| {
    let [choice, size, body @ ..] = data else {
        return;
    };
    let (checks, kind): (&Arc<Checks>, Option<&[u8]>) = match choice % 3 {
        0 => (&JSON, None),
        1 => (&FORM, Some(b"application/x-www-form-urlencoded")),
        _ => (&FILE, Some(b"multipart/form-data; boundary=x-y")),
    };
    let found = checks.body(kind, body);
    let mut pieces = Checker::new(checks.clone(), kind);
    for piece in body.chunks(usize::from(*size).max(1)) {
        pieces.push(piece);
    }
    pieces.finish();
    assert_eq!(pieces.found().is_malformed, found.is_malformed, "in pieces");
    if found.is_malformed || body.is_empty() {
        if choice % 3 == 0 && !body.is_empty() {
            is_rightly_malformed(body);
        }
        return;
    }
    assert_eq!(*pieces.found(), found, "in pieces");
    match choice % 3 {
        0 => json(&found, body),
        1 => assert_eq!(measured(&found, 0), Some(form(body)), "the form"),
        _ => assert_eq!(measured(&found, 0).unwrap_or(0), file(body), "the file"),
    }
});

fn rule(place: &str, measure: Measure) -> Rule {
    Rule {
        limit: 0,
        place: Place::parse(place).expect("a place"),
        measure,
        most: Some(Most::Fixed(5)),
        allow: None,
        types: Box::default(),
    }
}

static JSON: LazyLock<Arc<Checks>> = LazyLock::new(|| {
    let rules = vec![
        rule("a", Measure::Bytes),
        rule("a", Measure::Characters),
        rule("b[]", Measure::Entries),
        rule("m.*", Measure::Characters),
        Rule {
            allow: Charset::parse("a-z"),
            ..rule("names(m)", Measure::Bytes)
        },
    ];
    Arc::new(Checks::new(rules, &[]))
});
static FORM: LazyLock<Arc<Checks>> =
    LazyLock::new(|| Arc::new(Checks::new(vec![rule(".", Measure::Form)], &[])));
static FILE: LazyLock<Arc<Checks>> =
    LazyLock::new(|| Arc::new(Checks::new(vec![rule(".", Measure::File)], &[])));

fn measured(found: &Found, rule: usize) -> Option<u64> {
    let known = found.measured.iter().find(|(known, _)| *known == rule);
    known.map(|(_, length)| *length)
}

/// The text that is measured of a value: a string decoded, all else as it is written.
fn text(value: &RawValue) -> String {
    match value.get().starts_with('"') {
        true => serde_json::from_str(value.get()).expect("a string of whole characters"),
        false => value.get().to_owned(),
    }
}

fn json(found: &Found, body: &[u8]) {
    let body = std::str::from_utf8(body).expect("UTF-8");
    serde_json::from_str::<IgnoredAny>(body).expect("JSON");
    assert!(!is_list(body), "where one body is looked into");
    let Ok(top) = serde_json::from_str::<BTreeMap<String, &RawValue>>(body) else {
        assert!(found.measured.is_empty(), "no object is looked into");
        return;
    };
    let a = top.get("a").map(|value| text(value));
    assert_eq!(measured(found, 0), a.as_ref().map(|a| a.len() as u64));
    assert_eq!(
        measured(found, 1),
        a.as_ref().map(|a| a.chars().count() as u64)
    );
    let b = top
        .get("b")
        .and_then(|b| serde_json::from_str::<Vec<IgnoredAny>>(b.get()).ok());
    assert_eq!(measured(found, 2), b.map(|b| b.len() as u64));
    let m = top
        .get("m")
        .and_then(|m| serde_json::from_str::<BTreeMap<String, &RawValue>>(m.get()).ok());
    let m = m.unwrap_or_default();
    let longest = m
        .values()
        .map(|value| text(value).chars().count() as u64)
        .max();
    // What is no object is measured as it is written.
    let instead = top.get("m").filter(|m| !m.get().starts_with('{'));
    let longest = match instead {
        Some(instead) => Some(instead.get().chars().count() as u64),
        None => longest,
    };
    assert_eq!(measured(found, 3), longest);
    let names = m.keys().map(|name| name.len() as u64).max();
    assert_eq!(measured(found, 4), names);
    let strange = m
        .keys()
        .any(|name| name.bytes().any(|b| !b.is_ascii_lowercase()));
    let is_excess = |rule| found.excesses.iter().any(|excess| excess.rule == rule);
    assert_eq!(
        is_excess(4),
        strange || names.is_some_and(|longest| longest > 5)
    );
    assert_eq!(is_excess(3), longest.is_some_and(|longest| longest > 5));
}

fn is_list(text: &str) -> bool {
    text.trim_start_matches([' ', '\t', '\n', '\r'])
        .starts_with('[')
}

/// What is malformed is no JSON, or could be read in two ways, or is a list of bodies.
fn is_rightly_malformed(body: &[u8]) {
    let Ok(text) = std::str::from_utf8(body) else {
        return;
    };
    if serde_json::from_str::<IgnoredAny>(text).is_err() {
        return;
    }
    let has_half = text.contains("\\u");
    let is_deep = text.matches(['[', '{']).count() > 500;
    // A key that is there twice is one of two; one in another case has a capital.
    let is_twice = text.matches(':').count() > 1;
    let is_near = text.contains(['A', 'B', 'M']);
    assert!(
        has_half || is_deep || is_twice || is_near || is_list(text),
        "{text}"
    );
}

fn form(body: &[u8]) -> u64 {
    let one = |text: &[u8]| text.len() - 2 * text.iter().filter(|b| **b == b'%').count();
    let fields = body.split(|b| *b == b'&');
    let lengths = fields.map(|field| match field.iter().position(|b| *b == b'=') {
        Some(at) => one(&field[..at]) + one(&field[at + 1..]),
        None => one(field),
    });
    lengths.sum::<usize>() as u64
}

/// The longest part, of those that a reader finds who takes any line break.
fn file(body: &[u8]) -> u64 {
    let delimiter = [b"\r\n--", BOUNDARY].concat();
    let body = [b"\r\n", body].concat();
    let find = |bytes: &[u8], wanted: &[u8]| bytes.windows(wanted.len()).position(|w| w == wanted);
    let count = |wanted: &[u8]| body.windows(wanted.len()).filter(|w| *w == wanted).count();
    let after = |end: &[u8]| count(&[end, b"--", BOUNDARY].concat());
    assert_eq!(
        (after(b"\n"), after(b"\r")),
        (after(b"\r\n"), 0),
        "half a line break"
    );
    let mut longest = 0;
    let mut rest = &body[find(&body, &delimiter).expect("a first") + delimiter.len()..];
    while !rest.starts_with(b"--") {
        let line = find(rest, b"\r\n").expect("its line") + 2;
        rest = &rest[line..];
        rest = match rest.strip_prefix(b"\r\n") {
            Some(rest) => rest,
            None => &rest[find(rest, b"\r\n\r\n").expect("its head") + 4..],
        };
        let end = find(rest, &delimiter).expect("its end");
        longest = longest.max(end as u64);
        rest = &rest[end + delimiter.len()..];
    }
    longest
}
