//! Path canonicalisation and matching, against a second reading by RFC 3986 and a plain scan
//! over the routes.
#![no_main]

use std::borrow::Cow;
use std::sync::LazyLock;

use floodgate::identity::{self, fold_app};
use floodgate::limit::KeyHasher;
use floodgate::route::canonical::{canonical, decode, split_app};
use floodgate::route::table::Found;
use floodgate::spec::{RouteId, Ruleset};
use libfuzzer_sys::fuzz_target;

const METHODS: [&str; 6] = ["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD"];

static RULES: LazyLock<Ruleset> =
    LazyLock::new(|| Ruleset::shipped(KeyHasher::new((1, 2))).expect("the shipped table is good"));

fuzz_target!(|data: &[u8]| {
    let Some((choice, raw)) = data.split_first() else {
        return;
    };
    let Ok(raw) = std::str::from_utf8(raw) else {
        return;
    };
    let method = METHODS[usize::from(*choice) % METHODS.len()];
    match canonical(raw) {
        Ok(path) => admitted(raw, &path, method),
        Err(_) => assert!(!is_plain(raw), "refused without a reason: {raw:?}"),
    }
});

fn admitted(raw: &str, path: &str, method: &str) {
    assert_eq!(canonical(path), Ok(Cow::Borrowed(path)), "not canonical");
    assert!(path.starts_with('/') && path.bytes().all(|b| b.is_ascii_graphic()));
    assert!(!path.contains([';', '?', '#', '\\', '"', '<', '>']));

    // RFC 3986 reads the same of what came and of what goes on, and so does who decodes twice.
    let segments = resolved(path);
    assert_eq!(
        resolved(raw),
        segments,
        "{raw:?} and {path:?} are two paths"
    );
    for segment in &segments {
        let text = std::str::from_utf8(segment).expect("UTF-8");
        assert!(!text.contains(['/', '\\']) && !text.contains(|c: char| c.is_ascii_control()));
        assert_eq!(decode(text), *segment, "escaped twice: {path:?}");
    }
    assert_eq!(decode(path), [&b"/"[..], &segments.join(&b'/')].concat());

    // However it is spelt, it is one.
    assert_eq!(canonical(&escaped(path)).as_deref(), Ok(path));
    assert_eq!(canonical(&raw_again(path)).as_deref(), Ok(path));

    let Some((app, tail)) = split_app(path) else {
        assert!(segments.len() < 2, "no app in {path:?}");
        return;
    };
    let name = fold_app(&*app.name, true);
    assert_eq!(fold_app(&name, true), name, "the name of another app");
    assert!(path.ends_with(tail) && (tail.is_empty() || tail.starts_with('/')));
    matched(tail, method);
}

/// The table finds what a scan over its calls finds, and no spelling is outside the table.
fn matched(tail: &str, method: &str) {
    let rules = &*RULES;
    let found = rules.table.find(method, tail);
    let of_method = if method == "HEAD" { "GET" } else { method };
    let is_small = tail
        .bytes()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'/' | b'-' | b'_'));
    let is_any = || METHODS.iter().any(|m| scanned(m, tail).is_some());
    match (scanned(of_method, tail), &found) {
        (Some(id), Found::Route { id: got, user } | Found::Respelt { id: got, user }) => {
            assert!(!is_small || got.0 == id, "{method} {tail}: another route");
            let users: Vec<&str> = tail.split('/').collect();
            assert!(user.is_none_or(|user| users.contains(&user)));
        }
        (Some(_), _) => panic!("{method} {tail}: not found"),
        (None, Found::Unmatched) => assert!(!is_any(), "{method} {tail}: other methods have it"),
        (None, Found::MethodNotAllowed(allow)) => assert!(!allow.is_empty()),
        (None, Found::Route { .. } | Found::Respelt { .. }) => {
            assert!(!is_small, "{method} {tail}: no such route")
        }
    }
    if let Found::Route { id, user } | Found::Respelt { id, user } = found {
        respelt(method, tail, is_small.then_some(id), user);
    }
    let user = tail.rsplit('/').next().unwrap_or_default();
    let shown = String::from_utf8(decode(user)).expect("UTF-8");
    let plain = identity::plainest(&shown);
    assert_eq!(identity::plainest(&plain), plain, "a user of two names");
    assert_eq!(
        identity::fold_user(user),
        identity::fold_user(&escaped(user))
    );
}

/// A route is one, and its user too, in other spellings that some server takes for it.
fn respelt(method: &str, tail: &str, id: Option<RouteId>, user: Option<&str>) {
    // Those letters of a canonical path that belong to escapes are capitals already.
    let upper = tail.to_ascii_uppercase();
    let (first, rest) = tail.split_at(1);
    for other in [
        upper,
        format!("{tail}.json"),
        format!("{tail}%20"),
        format!("{tail}%3Bv=1"),
        format!("{first}%E2%80%8B{rest}"),
    ] {
        let (found, other_user) = match RULES.table.find(method, &other) {
            Found::Route { id, user } | Found::Respelt { id, user } => (id, user),
            // Refused: a parameter of other methods takes the segment for its value.
            Found::MethodNotAllowed(_) => continue,
            Found::Unmatched => panic!("{method} {other}: no route"),
        };
        // A parameter may be of another's spelling, unless it is plain.
        if id.is_some_and(|id| id == found) && !other.ends_with(".json") {
            assert_eq!(
                other_user.map(identity::fold_user),
                user.map(identity::fold_user)
            );
        }
        assert!(id.is_none_or(|id| id == found), "{method} {other}: another");
    }
}

/// A call of the table: method, segments, and the index of its route.
type Shape = (&'static str, Vec<&'static str>, usize);

static SHAPES: LazyLock<Vec<Shape>> = LazyLock::new(|| {
    let routes = RULES.routes.iter().enumerate();
    let calls = routes.flat_map(|(id, route)| route.calls.iter().map(move |call| (id, call)));
    calls
        .map(|(id, (method, path))| (&**method, path.split('/').collect(), id))
        .collect()
});

/// The index of the most exact call of this shape: fixed segments go before parameters.
fn scanned(method: &str, tail: &str) -> Option<usize> {
    let segments: Vec<&str> = tail.split('/').collect();
    let is_open = |part: &str| part.starts_with('{');
    let fits = |(part, segment): (&&str, &&str)| match is_open(part) {
        true => !segment.is_empty(),
        false => part == segment,
    };
    let mut best: Option<&Shape> = None;
    for shape in SHAPES.iter() {
        let (of, parts, _) = shape;
        if *of != method || parts.len() != segments.len() {
            continue;
        }
        let fits = parts.iter().zip(&segments).all(fits);
        let open = |parts: &[&str]| parts.iter().map(|part| is_open(part)).collect::<Vec<_>>();
        if fits && best.is_none_or(|(_, known, _)| open(parts) < open(known)) {
            best = Some(shape);
        }
    }
    best.map(|(_, _, id)| *id)
}

/// A path that nobody could read in two ways: it may not be refused.
fn is_plain(raw: &str) -> bool {
    let is_char = |c: char| c.is_ascii_alphanumeric() || "-._~!$&'()*+,=:@".contains(c);
    raw.strip_prefix('/').is_some_and(|below| {
        below.is_empty()
            || below
                .strip_suffix('/')
                .unwrap_or(below)
                .split('/')
                .all(|segment| {
                    !segment.is_empty()
                        && segment.chars().all(is_char)
                        && !matches!(segment, "." | "..")
                })
    })
}

/// The decoded segments as RFC 3986 has them (5.2.4, on decoded dots, as servers do), without
/// one trailing slash.
fn resolved(path: &str) -> Vec<Vec<u8>> {
    let below = path.strip_prefix('/').expect("it begins with a slash");
    let below = below.strip_suffix('/').unwrap_or(below);
    if below.is_empty() {
        return vec![vec![]];
    }
    let mut out: Vec<Vec<u8>> = Vec::new();
    for segment in below.split('/') {
        match &*unescaped(segment) {
            b"." => {}
            b".." => {
                out.pop();
            }
            other => out.push(other.to_vec()),
        }
    }
    out
}

fn unescaped(text: &str) -> Vec<u8> {
    let mut parts = text.split('%');
    let mut out = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        match part
            .get(..2)
            .and_then(|hex| u8::from_str_radix(hex, 16).ok())
        {
            Some(b) => {
                out.push(b);
                out.extend_from_slice(&part.as_bytes()[2..]);
            }
            None => {
                out.push(b'%');
                out.extend_from_slice(part.as_bytes());
            }
        }
    }
    out
}

/// Every unreserved character as an escape in small letters.
fn escaped(path: &str) -> String {
    let mut out = String::new();
    let mut plain = 0;
    for b in path.bytes() {
        match b {
            b'%' => plain = 2,
            _ if plain > 0 => plain -= 1,
            b if b.is_ascii_alphanumeric() || b"-._~".contains(&b) => {
                out.push_str(&format!("%{b:02x}"));
                continue;
            }
            _ => {}
        }
        out.push(char::from(b.to_ascii_lowercase()));
    }
    out
}

/// Letters of other scripts raw.
fn raw_again(path: &str) -> String {
    let mut out = Vec::new();
    let bytes = path.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let hex = (bytes[at] == b'%').then(|| &path[at + 1..at + 3]);
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(b) if b >= 0x80 => {
                out.push(b);
                at += 3;
            }
            _ => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8(out).expect("UTF-8")
}
