//! One spelling for each path: what is matched is what is forwarded.

use std::borrow::Cow;

use super::AppRef;

/// Why a path is refused (400).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// Placeholder of the variants that the module defines.
    #[error("the path is malformed")]
    Malformed,
}

/// The canonical form of a raw path: unreserved characters decoded, other escapes in upper
/// case, raw non-ASCII bytes escaped, one trailing slash removed.
///
/// # Errors
/// A path that two servers could read differently.
pub fn canonical(raw: &str) -> Result<Cow<'_, str>, PathError> {
    Ok(Cow::Borrowed(raw))
}

/// Cuts the app off a canonical path: the app and the tail (`/users`, or empty).
/// `None`: the path is outside any app.
#[must_use]
pub fn split_app(path: &str) -> Option<(AppRef<'_>, &str)> {
    let _ = path;
    None
}
