//! Step 1, identify: who calls. Names folded for counting, addresses cut to their prefix.

pub mod address;

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
    segment.to_lowercase()
}
