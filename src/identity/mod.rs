//! Step 1, identify: who calls. Names folded for counting, addresses cut to their prefix.

pub mod address;
mod bearer;
pub mod proxy_protocol;
pub mod token;

use std::borrow::Cow;

pub use self::bearer::bearer;
use crate::route::Form;
use crate::route::canonical::{decode, decode_but};

/// What a call's bearer token must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Auth {
    /// Nobody looks whether there is one.
    Off,
    /// There is one. Only the backend can tell whether it is good.
    #[default]
    RequireBearer,
    /// There is one, and one that can be checked here is good.
    Verify,
}

impl Auth {
    /// All of them, by the words of settings and route files.
    pub const WORDS: &[(&'static str, Self)] = &[
        ("off", Self::Off),
        ("require-bearer", Self::RequireBearer),
        ("verify", Self::Verify),
    ];
}

/// The caller of one call, with names as counters know them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// `org#app` or the App ID, percent-decoded and folded; see [`fold_app`].
    pub app: String,
    /// The user in the path, lower-cased and percent-decoded.
    pub user: Option<String>,
}

/// Folds an app's name for counting: percent-decoded, lower-cased if `fold` says so.
///
/// `#` and `%` stay escaped (`%23`, `%25`): `#` joins org and app, and decoding `%25` would make
/// escapes of what is none. So two names are one only where every server reads them as one, and
/// a name as the gateway prints it names its app again.
#[must_use]
pub fn fold_app<'a>(name: impl Into<Cow<'a, str>>, fold: bool) -> String {
    let name = name.into();
    let decoded = match name.contains('%') {
        // A canonical path decodes to UTF-8; anything else stays as it is written.
        true => String::from_utf8(decode_but(&name, b"#%")).map_or(name, Cow::Owned),
        false => name,
    };
    match fold {
        true if decoded.is_ascii() && !decoded.contains(' ') => {
            let mut folded = decoded.into_owned();
            folded.make_ascii_lowercase();
            folded
        }
        true => {
            let plain = one_letter_each(&decoded);
            let parts: Vec<&str> = plain.split('#').map(str::trim).collect();
            parts.join("#")
        }
        false => decoded.into_owned(),
    }
}

/// The form of an app's name: `#` stands in an App Key alone. `None`: neither.
#[must_use]
pub fn form(app: &str) -> Option<Form> {
    if app.contains('/') || app.contains(char::is_control) {
        return None;
    }
    match app.split_once('#') {
        None => (!app.is_empty()).then_some(Form::AppId),
        Some((org, name)) => {
            (!org.is_empty() && !name.is_empty() && !name.contains('#')).then_some(Form::AppKey)
        }
    }
}

/// The user ID that a path segment spells: percent-decoded, lower-cased, and without what some
/// servers drop. An ID has ASCII letters, digits and `_.-`: no two of them become one.
#[must_use]
pub fn fold_user(segment: &str) -> String {
    if segment.is_ascii() && !segment.contains('%') {
        return segment.to_ascii_lowercase();
    }
    // A canonical path decodes to UTF-8; anything else stays as it is written.
    match String::from_utf8(decode(segment)) {
        Ok(user) => plainest(&user),
        Err(_) => segment.to_lowercase(),
    }
}

/// The plainest spelling of a name: `one_letter_each`, and without blanks at its ends and what
/// begins with `;`, `?` or `#`.
#[must_use]
pub fn plainest(name: &str) -> String {
    let plain = one_letter_each(name);
    let end = plain.find([';', '?', '#']).unwrap_or(plain.len());
    plain[..end].trim().to_owned()
}

/// Letters and digits of full width are those of ASCII, and neither case nor invisible characters
/// count.
fn one_letter_each(name: &str) -> String {
    let is_visible = |c: &char| {
        !matches!(
            c,
            '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2060}' | '\u{feff}'
        )
    };
    let narrow = |c: char| {
        let ascii = u32::from(c).checked_sub(0xfee0).and_then(char::from_u32);
        ascii
            .filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_'))
            .unwrap_or(c)
    };
    let plain: String = name.chars().filter(is_visible).map(narrow).collect();
    // The long s and the Kelvin sign are letters in one direction only.
    plain.to_uppercase().to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_one_whatever_its_spelling() {
        for spelling in ["Alice", "alice", "ALICE", "%41lice"] {
            assert_eq!(fold_user(spelling), "alice");
        }
        for spelling in [
            "alice%20",
            "%20alice",
            "alice%3Bv=1",
            "alice%3Fx",
            "alice%23x",
            "%EF%BC%A1lice",
            "al%E2%80%8Bice",
            "alice%EF%BB%BF",
            "al%C2%ADice",
            "alice%C2%A0",
        ] {
            assert_eq!(fold_user(spelling), "alice", "{spelling}");
        }
        assert_eq!(fold_user("%E2%84%AAim"), "kim");
        assert_eq!(fold_user("%C5%BFue"), "sue");
        assert_eq!(fold_user("a%2Cb"), "a,b");
        assert_eq!(fold_user("a%FF"), "a%ff");
    }

    #[test]
    fn an_app_is_folded_unless_told_otherwise() {
        assert_eq!(fold_app("Org#App", true), "org#app");
        assert_eq!(fold_app("Org#App", false), "Org#App");
    }

    #[test]
    fn an_app_is_one_whatever_is_escaped_in_its_name() {
        for spelling in ["o#a,b", "o#a%2Cb", "o#a%2cb", "O#%61%2CB"] {
            assert_eq!(fold_app(spelling, true), "o#a,b");
        }
        for spelling in [
            "o%20#a,b",
            "o#%20A,b%C2%A0",
            "%EF%BD%8F#a,b",
            "o%E2%80%8B#a,b",
        ] {
            assert_eq!(fold_app(spelling, true), "o#a,b");
        }
        assert_eq!(fold_app("o%EF%BC%83x#a", true), "o\u{ff03}x#a");
        assert_eq!(fold_app("%E4%B8%AD#a%20b", true), "中#a b");
        assert_eq!(fold_app("o#A%2CB", false), "o#A,B");
        assert_eq!(fold_app("o#a%FF", false), "o#a%FF");
        assert_eq!(fold_app("o#50%", true), "o#50%");
    }

    #[test]
    fn a_printed_name_names_its_app_and_no_other() {
        let written = [
            "a%23b#c",
            "a#b%23c",
            "a#b#c",
            "a%2523b#c",
            "a%252Cb#c",
            "a%2Cb#c",
        ];
        let printed: Vec<_> = written.iter().map(|name| fold_app(*name, true)).collect();
        for (i, name) in printed.iter().enumerate() {
            assert_eq!(&fold_app(name, true), name);
            assert!(!printed[..i].contains(name), "{name} twice");
        }
    }
}
