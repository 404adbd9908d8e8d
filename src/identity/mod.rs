//! Step 1, identify: who calls. Names folded for counting, addresses cut to their prefix.

pub mod address;

use crate::route::canonical::decode;

/// The caller of one call, with names as counters know them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// `org#app` or the App ID, folded.
    pub app: String,
    /// The user in the path, lower-cased and percent-decoded.
    pub user: Option<String>,
}

/// Folds an app's name for counting.
#[must_use]
pub fn fold_app(name: &str, fold: bool) -> String {
    if fold {
        name.to_lowercase()
    } else {
        name.to_owned()
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
}
