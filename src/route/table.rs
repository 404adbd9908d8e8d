//! One `matchit` trie per method over the paths below an app, built once per ruleset.

use std::collections::{BTreeMap, HashMap};

use matchit::Router;

use super::canonical::decode;
use crate::identity;
use crate::spec::RouteId;

/// A call that cannot be in the table.
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

#[derive(Clone, Copy, Debug)]
struct Entry {
    id: RouteId,
    /// Which segment is `{username}`.
    user: Option<usize>,
}

/// A trie for each method. A handful: a scan is faster than a hash.
type Methods = Vec<(String, Router<Entry>)>;

/// The compiled matcher.
#[derive(Debug, Default)]
pub struct RouteTable {
    methods: Methods,
    /// The same, fixed segments in lower case.
    plain: Methods,
    /// Routes with a parameter where another has a fixed segment: some server may take a value
    /// for that one.
    shadowed: Vec<bool>,
}

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
    /// None as it is written; this one in a spelling that some servers take for its own.
    Respelt {
        /// Which.
        id: RouteId,
        /// The value of `{username}`, as it is written.
        user: Option<&'p str>,
    },
    /// Other methods match: their names for `Allow`, sorted, `HEAD` beside `GET`, and `OPTIONS`.
    MethodNotAllowed(String),
    /// No method matches.
    Unmatched,
}

/// The path with positional parameter names (matchit refuses different names at one position),
/// and which segment is `{username}`.
fn positional(path: &str) -> Result<(String, Option<usize>), String> {
    let mut out = String::with_capacity(path.len());
    let (mut user, mut count) = (None, 0_usize);
    let Some(below) = path.strip_prefix('/') else {
        return Err("a path begins with `/`".to_owned());
    };
    for (nth, segment) in below.split('/').enumerate() {
        out.push('/');
        if segment.is_empty() {
            return Err("a path has no empty segment and no trailing `/`".to_owned());
        }
        match segment
            .strip_prefix('{')
            .and_then(|rest| rest.strip_suffix('}'))
        {
            Some(name) => {
                if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
                {
                    return Err(format!(
                        "`{segment}` is no parameter: write one name of letters, digits and `_` in braces"
                    ));
                }
                if name == "username" && user.replace(nth).is_some() {
                    return Err("`{username}` is there twice: name the acting user so, the other one otherwise".to_owned());
                }
                out.push_str(&format!("{{p{count}}}"));
                count += 1;
            }
            None => {
                if let Some(odd) = segment
                    .chars()
                    .find(|c| !c.is_ascii_alphanumeric() && !"-_.~".contains(*c))
                {
                    return Err(format!(
                        "`{odd}` cannot stand in a path segment; a parameter is a whole segment, `{{name}}`"
                    ));
                }
                if segment == "." || segment == ".." {
                    return Err("dot segments are never matched".to_owned());
                }
                out.push_str(segment);
            }
        }
    }
    Ok((out, user))
}

impl RouteTable {
    /// Builds the tries from `(route, method, path)`.
    ///
    /// # Errors
    /// Every call that is malformed or conflicts with another.
    pub fn build<'c>(
        calls: impl IntoIterator<Item = (RouteId, &'c str, &'c str)>,
    ) -> Result<Self, Vec<TableError>> {
        let mut methods: BTreeMap<String, Router<Entry>> = BTreeMap::new();
        let mut plain: BTreeMap<String, Router<Entry>> = BTreeMap::new();
        let mut seen: HashMap<(String, String), (RouteId, String)> = HashMap::new();
        let mut errors = Vec::new();
        for (index, (id, method, path)) in calls.into_iter().enumerate() {
            let mut fail = |reason: String| {
                errors.push(TableError {
                    index,
                    method: method.to_owned(),
                    path: path.to_owned(),
                    reason,
                });
            };
            let (shape, user) = match positional(path) {
                Ok(positional) => positional,
                Err(reason) => {
                    fail(reason);
                    continue;
                }
            };
            if let Some((_, other)) = seen.get(&(method.to_owned(), shape.clone())) {
                fail(format!("the same call as `{method} {other}`"));
                continue;
            }
            let router = methods.entry(method.to_owned()).or_default();
            match router.insert(shape.clone(), Entry { id, user }) {
                Ok(()) => {
                    let plain = plain.entry(method.to_owned()).or_default();
                    // Of two that differ in case alone, the first.
                    let _ = plain.insert(shape.to_lowercase(), Entry { id, user });
                    seen.insert((method.to_owned(), shape), (id, path.to_owned()));
                }
                Err(error) => fail(error.to_string()),
            }
        }
        let is_shadowed = |method: &str, shape: &str| {
            seen.keys()
                .any(|(m, other)| m == method && is_shadow(shape, other))
        };
        let mut shadowed = Vec::new();
        for ((method, shape), (id, _)) in &seen {
            if is_shadowed(method, shape) {
                shadowed.resize(shadowed.len().max(id.0 + 1), false);
                shadowed[id.0] = true;
            }
        }
        if errors.is_empty() {
            Ok(Self {
                shadowed,
                methods: methods.into_iter().collect(),
                plain: plain.into_iter().collect(),
            })
        } else {
            Err(errors)
        }
    }

    /// Finds the route of a canonical path below the app (`/users/alice`, or empty). `HEAD` is
    /// looked up as `GET`.
    ///
    /// A path that no route has, and that some servers take for one all the same (`/USERS`,
    /// `/users%20`, `/users.json`), is [`Respelt`](Found::Respelt): a spelling is no way around its
    /// limits.
    #[must_use]
    pub fn find<'p>(&self, method: &str, tail: &'p str) -> Found<'p> {
        let method = if method == "HEAD" { "GET" } else { method };
        let found = find(&self.methods, method, tail, tail);
        let is_sure = match &found {
            Found::Route { id, .. } => {
                !self.shadowed.get(id.0).is_some_and(|shadowed| *shadowed) || is_plain(tail)
            }
            Found::MethodNotAllowed(_) | Found::Respelt { .. } => true,
            Found::Unmatched => false,
        };
        if is_sure {
            return found;
        }
        match (find(&self.plain, method, &plainest(tail), tail), &found) {
            (Found::Unmatched, _) => found,
            (Found::Route { id, user }, Found::Unmatched) => Found::Respelt { id, user },
            (plain, _) => plain,
        }
    }
}

/// Whether a path of the first shape may be one of the second, but for its spelling.
fn is_shadow(shape: &str, other: &str) -> bool {
    let pairs = || shape.split('/').zip(other.split('/'));
    let is_parameter = |segment: &str| segment.starts_with('{');
    shape.split('/').count() == other.split('/').count()
        && pairs().all(|(a, b)| a == b || is_parameter(a) || is_parameter(b))
        && pairs().any(|(a, b)| is_parameter(a) && !is_parameter(b))
}

/// Whether a path is its own plainest spelling: the usual case.
fn is_plain(tail: &str) -> bool {
    tail.bytes()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'/' | b'-' | b'_'))
}

/// The plainest spelling of a path's segments, without their extensions.
fn plainest(tail: &str) -> String {
    let mut plain = String::with_capacity(tail.len());
    for segment in tail.split('/').skip(1) {
        plain.push('/');
        let name = plain_segment(segment);
        // A user may be called `.x`: a segment of which nothing is left is no route's.
        plain.push_str(if name.is_empty() { segment } else { &name });
    }
    plain
}

/// The plainest spelling of one segment, without an extension.
#[must_use]
pub fn plain_segment(segment: &str) -> String {
    let mut name = identity::plainest(&String::from_utf8_lossy(&decode(segment)));
    let end = name.find('.').unwrap_or(name.len());
    let end = name.get(..end).map_or(0, |name| name.trim_end().len());
    name.truncate(end);
    name
}

/// Looks a path up; the user is taken from it as it is written.
fn find<'p>(methods: &Methods, method: &str, tail: &str, written: &'p str) -> Found<'p> {
    let router = methods
        .iter()
        .find(|(name, _)| name == method)
        .map(|(_, router)| router);
    if let Some(found) = router.and_then(|router| router.at(tail).ok()) {
        let user = found.value.user;
        return Found::Route {
            id: found.value.id,
            user: user.and_then(|nth| written.split('/').nth(nth + 1)),
        };
    }
    let mut allow: Vec<&str> = Vec::new();
    for (name, router) in methods {
        if router.at(tail).is_ok() {
            allow.push(name);
            if name == "GET" {
                allow.push("HEAD");
            }
        }
    }
    if allow.is_empty() {
        return Found::Unmatched;
    }
    allow.push("OPTIONS");
    allow.sort_unstable();
    Found::MethodNotAllowed(allow.join(", "))
}

#[cfg(test)]
mod tests;
