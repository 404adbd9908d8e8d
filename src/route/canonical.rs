//! One spelling for each path: what is matched is what is forwarded.
//!
//! Chosen: unreserved characters (RFC 3986: letters, digits, `-._~`) are decoded, all other
//! escapes are written in upper case, characters that may not stand in a path are escaped, one
//! trailing slash is removed. Refused, because two servers could read them differently: empty
//! and dot segments (also encoded), encoded slashes and backslashes, control characters, broken
//! escapes, escapes of escapes (`%2575`), `;` (matrix parameters, which some backends cut off). Letters keep their case: the
//! documents say that URLs are case-sensitive. A raw `#` is refused too: by the gateway, since
//! pingora cuts it off, with what follows, before it gets here.
//!
//! An escape that stays, `%2C` for a comma, is forwarded as it came, and its call matches the
//! same route as the comma's: fixed segments have unreserved characters only. Counters know app
//! and user decoded (see [`identity`]), so that neither is a second caller.

use std::borrow::Cow;

use super::{AppRef, Form};
use crate::identity;

/// Why a path is refused (400).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// It does not begin with `/`.
    #[error("The path must begin with `/`.")]
    NoSlash,
    /// `//`.
    #[error("The path has an empty segment (`//`).")]
    EmptySegment,
    /// `.` or `..`, also encoded.
    #[error("The path has a dot segment.")]
    DotSegment,
    /// `%2F`, `%5C` or a backslash.
    #[error("The path has an encoded slash or a backslash.")]
    Slash,
    /// A control character, raw or encoded.
    #[error("The path has a control character.")]
    Control,
    /// `%` without two hex digits, or escapes that are no UTF-8.
    #[error("The path has a broken percent-escape.")]
    Escape,
    /// `%25` before two hex digits.
    #[error("The path is escaped twice.")]
    Twice,
    /// `;`, `#` or `?`.
    #[error("The path has a `;` or `#`, which servers read differently.")]
    Delimiter,
}

/// A byte that stands in a canonical path as it is.
fn is_plain(b: u8) -> bool {
    is_unreserved(b) || b"!$&'()*+,=:@".contains(&b)
}

fn is_unreserved(b: u8) -> bool {
    b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~')
}

fn hex(b: u8) -> Option<u8> {
    char::from(b)
        .to_digit(16)
        .and_then(|d| u8::try_from(d).ok())
}

fn push_escape(out: &mut Vec<u8>, b: u8) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    out.extend([
        b'%',
        DIGITS[usize::from(b >> 4)],
        DIGITS[usize::from(b & 15)],
    ]);
}

/// The canonical form of a raw path (without its query).
///
/// # Errors
/// A path that two servers could read differently.
pub fn canonical(raw: &str) -> Result<Cow<'_, str>, PathError> {
    let bytes = raw.as_bytes();
    if bytes.first() != Some(&b'/') {
        return Err(PathError::NoSlash);
    }
    if is_canonical(bytes) {
        return Ok(Cow::Borrowed(raw));
    }
    let mut out = Vec::with_capacity(bytes.len() + 8);
    let mut at = 0;
    while let Some(b) = bytes.get(at).copied() {
        at += 1;
        match b {
            b'/' => out.push(b),
            b'%' => {
                let digit = |i: usize| bytes.get(i).copied().and_then(hex);
                let (Some(high), Some(low)) = (digit(at), digit(at + 1)) else {
                    return Err(PathError::Escape);
                };
                at += 2;
                match high << 4 | low {
                    b'/' | b'\\' => return Err(PathError::Slash),
                    0..=0x1f | 0x7f => return Err(PathError::Control),
                    b if is_unreserved(b) => out.push(b),
                    b => push_escape(&mut out, b),
                }
            }
            b'\\' => return Err(PathError::Slash),
            0..=0x1f | 0x7f => return Err(PathError::Control),
            b';' | b'#' | b'?' => return Err(PathError::Delimiter),
            b if is_plain(b) => out.push(b),
            b => push_escape(&mut out, b),
        }
    }
    if out.len() > 1 && out.last() == Some(&b'/') {
        out.pop();
    }
    let path = String::from_utf8(out).map_err(|_| PathError::Escape)?;
    if path.len() > 1 {
        for segment in path[1..].split('/') {
            match segment {
                "" => return Err(PathError::EmptySegment),
                "." | ".." => return Err(PathError::DotSegment),
                _ => {}
            }
        }
    }
    // Whoever decodes once more reads another path.
    if path.split("%25").skip(1).any(|rest| {
        let mut digits = rest.bytes().map(hex);
        digits.next().flatten().is_some() && digits.next().flatten().is_some()
    }) {
        return Err(PathError::Twice);
    }
    if std::str::from_utf8(&decode(&path)).is_err() {
        return Err(PathError::Escape);
    }
    Ok(Cow::Owned(path))
}

/// Whether nothing is to be done: the usual case, in one scan. May say no to a canonical path
/// (one with escapes), never yes to another.
fn is_canonical(bytes: &[u8]) -> bool {
    let mut before = 0_u8;
    for (i, b) in bytes.iter().copied().enumerate() {
        let fine = match b {
            b'/' => i == 0 || before != b'/',
            // A segment that begins with a dot is looked at with care.
            b'.' => before != b'/',
            _ => is_plain(b),
        };
        if !fine {
            return false;
        }
        before = b;
    }
    bytes.len() == 1 || before != b'/'
}

/// Percent-decodes; broken escapes stay as they are.
#[must_use]
pub fn decode(text: &str) -> Vec<u8> {
    decode_but(text, b"")
}

/// Percent-decodes, but for these characters; broken escapes stay as they are.
#[must_use]
pub fn decode_but(text: &str, kept: &[u8]) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(b) = bytes.get(at).copied() {
        let digit = |i: usize| bytes.get(i).copied().and_then(hex);
        match (b, digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) if !kept.contains(&(high << 4 | low)) => {
                out.push(high << 4 | low);
                at += 3;
            }
            _ => {
                out.push(b);
                at += 1;
            }
        }
    }
    out
}

/// Cuts the app off a canonical path: the app and the tail (`/users`, or empty).
/// `None`: the path is outside any app.
///
/// `app-id` is reserved as a first segment. The name of an App Key is its two segments as they
/// stand in the canonical path with `#` between them: `#` is always escaped there, and stays so
/// when the name is folded for counting, so that no other app can spell the same name.
#[must_use]
pub fn split_app(path: &str) -> Option<(AppRef<'_>, &str)> {
    let below = path.strip_prefix('/')?;
    let (first, rest) = below.split_once('/')?;
    let (second, tail) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, ""),
    };
    if first.is_empty() || second.is_empty() {
        return None;
    }
    // Reserved in every spelling that some server takes for it.
    let is_app_id = first.eq_ignore_ascii_case("app-id")
        || first.contains('%')
            && identity::plainest(&String::from_utf8_lossy(&decode(first))) == "app-id";
    let app = if is_app_id {
        AppRef {
            form: Form::AppId,
            name: Cow::Borrowed(second),
        }
    } else {
        AppRef {
            form: Form::AppKey,
            name: Cow::Owned([first, "#", second].concat()),
        }
    };
    Some((app, tail))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_spelling_for_each_path() {
        for (raw, one) in [
            ("/o/a/users/alice", "/o/a/users/alice"),
            ("/o/a/%75sers/%61lice", "/o/a/users/alice"),
            ("/o/a/users/", "/o/a/users"),
            ("/", "/"),
            ("/o/a/users/a%2cb", "/o/a/users/a%2Cb"),
            ("/o/a/users/a,b", "/o/a/users/a,b"),
            ("/o/a/users/a b", "/o/a/users/a%20b"),
            ("/o/a/users/中", "/o/a/users/%E4%B8%AD"),
            ("/o/a/users/%e4%b8%ad", "/o/a/users/%E4%B8%AD"),
            ("/o/a/users/.hidden", "/o/a/users/.hidden"),
            ("/o/a/users/%2Ehidden", "/o/a/users/.hidden"),
            ("/o/a/users/50%25", "/o/a/users/50%25"),
            ("/o/a/users/50%25off", "/o/a/users/50%25off"),
        ] {
            assert_eq!(canonical(raw).as_deref(), Ok(one), "{raw}");
        }
    }

    #[test]
    fn two_readings_are_refused() {
        for (raw, error) in [
            ("", PathError::NoSlash),
            ("o/a/users", PathError::NoSlash),
            ("/o//a", PathError::EmptySegment),
            ("//o/a", PathError::EmptySegment),
            ("/o/a//", PathError::EmptySegment),
            ("/o/./a", PathError::DotSegment),
            ("/o/a/..", PathError::DotSegment),
            ("/o/%2e%2E/a", PathError::DotSegment),
            ("/o/a/.%2e/b", PathError::DotSegment),
            ("/o/a%2Fb", PathError::Slash),
            ("/o/a%5cb", PathError::Slash),
            ("/o/a\\b", PathError::Slash),
            ("/o/a%00", PathError::Control),
            ("/o/a%0d%0a", PathError::Control),
            ("/o/a\u{7f}", PathError::Control),
            ("/o/a%", PathError::Escape),
            ("/o/a%4", PathError::Escape),
            ("/o/a%zz", PathError::Escape),
            ("/o/a%ff", PathError::Escape),
            ("/o/a%2575", PathError::Twice),
            ("/o/a%25%37%35", PathError::Twice),
            ("/o/a%252575", PathError::Twice),
            ("/o/a/%252e%252e/b", PathError::Twice),
            ("/o/a;b=c", PathError::Delimiter),
            ("/o/a#b", PathError::Delimiter),
        ] {
            assert_eq!(canonical(raw), Err(error), "{raw}");
        }
    }

    #[test]
    fn an_app_is_cut_off_in_both_forms() {
        let app = |path| split_app(path).map(|(app, tail)| (app.form, app.name.into_owned(), tail));
        assert_eq!(
            app("/o/a/users/x"),
            Some((Form::AppKey, "o#a".into(), "/users/x"))
        );
        assert_eq!(app("/o/a"), Some((Form::AppKey, "o#a".into(), "")));
        assert_eq!(
            app("/app-id/x1/users"),
            Some((Form::AppId, "x1".into(), "/users"))
        );
        for path in [
            "/app-id/x1",
            "/App-ID/x1",
            "/app-id%20/x1",
            "/app-%EF%BD%89d/x1",
        ] {
            assert_eq!(app(path), Some((Form::AppId, "x1".into(), "")), "{path}");
        }
        for outside in ["/", "/o", "/app-id"] {
            assert_eq!(app(outside), None);
        }
    }

    #[test]
    fn no_app_can_spell_another_ones_name() {
        let name = |raw: &str| {
            let path = canonical(raw).unwrap().into_owned();
            split_app(&path).unwrap().0.name.into_owned()
        };
        assert_ne!(name("/a%23b/c/x"), name("/a/b%23c/x"));
        assert_eq!(name("/%6frg/app/x"), name("/org/%61pp/x"));
    }

    proptest! {
        #[test]
        fn canonical_twice_is_canonical_once(raw in "/[ -~中]{0,40}") {
            if let Ok(once) = canonical(&raw) {
                let twice = canonical(&once).map(Cow::into_owned);
                prop_assert_eq!(twice.as_deref(), Ok(&*once));
            }
        }

        #[test]
        fn no_decoding_adds_a_segment(raw in "(/([a-z.%]|%2[ef]|%5c|%25){0,4}){1,4}") {
            if let Ok(once) = canonical(&raw) {
                let decoded = decode(&once);
                let slashes = |bytes: &[u8]| bytes.iter().filter(|b| **b == b'/').count();
                prop_assert_eq!(slashes(&decoded), slashes(once.as_bytes()));
                for segment in decoded.split(|b| *b == b'/') {
                    prop_assert!(segment != b"." && segment != b"..");
                }
            }
        }

        #[test]
        fn any_text_gives_an_answer(raw in "\\PC{0,60}") {
            let _ = canonical(&raw).map(|path| split_app(&path).is_some());
        }
    }
}
