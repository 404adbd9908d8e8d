//! Step 1, identify: who calls. Names folded for counting, addresses cut to their prefix.

pub mod address;
pub mod proxy_protocol;

use std::borrow::Cow;

use crate::route::canonical::{decode, decode_but};

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
pub fn fold_app(name: &str, fold: bool) -> String {
    let decoded = match name.contains('%') {
        // A canonical path decodes to UTF-8; anything else stays as it is written.
        true => String::from_utf8(decode_but(name, b"#%")).map_or(Cow::Borrowed(name), Cow::Owned),
        false => Cow::Borrowed(name),
    };
    if fold {
        decoded.to_lowercase()
    } else {
        decoded.into_owned()
    }
}

/// The user ID that a path segment spells: percent-decoded, lower-cased.
#[must_use]
pub fn fold_user(segment: &str) -> String {
    if !segment.contains('%') {
        return segment.to_lowercase();
    }
    // A canonical path decodes to UTF-8; anything else stays as it is written.
    match String::from_utf8(decode(segment)) {
        Ok(user) => user.to_lowercase(),
        Err(_) => segment.to_lowercase(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_one_whatever_its_spelling() {
        for spelling in ["Alice", "alice", "ALICE", "%41lice"] {
            assert_eq!(fold_user(spelling), "alice");
        }
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
        let printed: Vec<_> = written.iter().map(|name| fold_app(name, true)).collect();
        for (i, name) in printed.iter().enumerate() {
            assert_eq!(&fold_app(name, true), name);
            assert!(!printed[..i].contains(name), "{name} twice");
        }
    }
}
