//! `Authorization`: a token that is found is the one that every reader finds, and no good one is
//! missed.
#![no_main]

use floodgate::identity::bearer;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let lines: Vec<&[u8]> = data.split(|b| *b == b'\n').collect();
    let found = bearer(lines.iter().copied());
    match lines.as_slice() {
        [line] => {
            assert_eq!(found, strict(line), "by the grammar");
            if let Some(token) = found {
                is_everyones(line, token);
            }
        }
        _ => assert_eq!(found, None, "one of several lines"),
    }
    // Nothing beside a line makes a token of another.
    assert_eq!(bearer(lines.iter().chain([&data]).copied()), None);
    assert_eq!(bearer(std::iter::empty()), None);
    spelled(data);
});

/// RFC 6750 over RFC 9110, character by character: the scheme in any case, blanks, a token, and
/// its padding. Blanks at the end belong to the field's line.
fn strict(line: &[u8]) -> Option<&str> {
    let mut at = 0;
    for expected in b"bearer" {
        if line.get(at)?.to_ascii_lowercase() != *expected {
            return None;
        }
        at += 1;
    }
    let blanks = |mut at: usize| {
        while line.get(at) == Some(&b' ') {
            at += 1;
        }
        at
    };
    let start = blanks(at);
    if start == at {
        return None;
    }
    let mut end = start;
    let mut is_padded = false;
    while let Some(byte) = line.get(end) {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' if !is_padded => {}
            b'-' | b'.' | b'_' | b'~' | b'+' | b'/' if !is_padded => {}
            b'=' if end > start => is_padded = true,
            _ => break,
        }
        end += 1;
    }
    let is_whole = end > start && blanks(end) == line.len();
    is_whole.then(|| std::str::from_utf8(&line[start..end]).expect("ASCII"))
}

/// Servers that take what is between blanks, before a comma or a semicolon, inside of quotes, or
/// behind the first blank, all take this token.
fn is_everyones(line: &[u8], token: &str) {
    let text = std::str::from_utf8(line).expect("ASCII");
    let mut words = text.split_whitespace();
    assert!(
        words
            .next()
            .expect("a scheme")
            .eq_ignore_ascii_case("bearer")
    );
    assert_eq!((words.next(), words.next()), (Some(token), None));
    let behind = text.split_once(' ').map(|(_, behind)| behind.trim());
    assert_eq!(behind, Some(token));
    assert_eq!(
        text.split([',', ';']).next().map(str::trim_end),
        Some(text.trim_end())
    );
    assert!(!text.contains(['"', '\'', '\\', '\0', '%']));
}

/// A token that is made of the input is found in any spelling of its scheme.
fn spelled(data: &[u8]) {
    const CHARACTERS: &[u8] = b"AZaz09-._~+/";
    let Some((choice, rest)) = data.split_first() else {
        return;
    };
    let mut line: Vec<u8> = b"bearer".to_vec();
    for (nth, byte) in line.iter_mut().enumerate() {
        if choice >> nth & 1 == 1 {
            byte.make_ascii_uppercase();
        }
    }
    line.resize(line.len() + 1 + usize::from(choice >> 6), b' ');
    let token = rest
        .iter()
        .map(|b| CHARACTERS[usize::from(*b) % CHARACTERS.len()]);
    let mut token: Vec<u8> = token.collect();
    let is_empty = token.is_empty();
    token.resize(token.len() + usize::from(choice >> 5 & 3), b'=');
    line.extend(&token);
    let expected = std::str::from_utf8(&token).expect("ASCII");
    let found = bearer([&*line].into_iter());
    assert_eq!(found, (!is_empty).then_some(expected));
}
