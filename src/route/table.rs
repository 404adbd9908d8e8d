//! One `matchit` trie per method over the paths below an app, built once per ruleset.

use crate::spec::RouteId;

/// A table that cannot be built.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{method} {path}: {reason}")]
pub struct TableError {
    /// The call's index in the input.
    pub index: usize,
    /// Its method.
    pub method: String,
    /// Its path.
    pub path: String,
    /// What is wrong, e.g. which other call it conflicts with.
    pub reason: String,
}

/// The compiled matcher.
#[derive(Debug, Default)]
pub struct RouteTable {}

/// What a path matches.
#[derive(Debug, PartialEq, Eq)]
pub enum Found<'p> {
    /// A route.
    Route {
        /// Which.
        id: RouteId,
        /// The value of `{username}`, still percent-encoded.
        user: Option<&'p str>,
    },
    /// Other methods match: their names for `Allow`, sorted, `HEAD` beside `GET`, and `OPTIONS`.
    MethodNotAllowed(String),
    /// No method matches.
    Unmatched,
}

impl RouteTable {
    /// Builds the tries from `(route, method, path)`.
    ///
    /// # Errors
    /// Every call that is malformed or conflicts with another.
    pub fn build<'c>(
        calls: impl IntoIterator<Item = (RouteId, &'c str, &'c str)>,
    ) -> Result<Self, Vec<TableError>> {
        let _ = calls;
        Ok(Self {})
    }

    /// Finds the route of a canonical path below the app (`/users/alice`, or empty). `HEAD` is
    /// looked up as `GET`.
    #[must_use]
    pub fn find<'p>(&self, method: &str, tail: &'p str) -> Found<'p> {
        let _ = (method, tail);
        Found::Unmatched
    }
}
