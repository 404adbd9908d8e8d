//! What the backend's answers say of totals.

use serde_json::Value;

use super::fold_holder;
use crate::limit::total::Kind;

/// What an answer says was made or deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Made {
    /// All that was asked for.
    All,
    /// So many, and these by name, as far as it names any, in order.
    Some(u32, Vec<String>),
    /// It does not say.
    Unsaid,
}

impl Made {
    /// Reads it where the answer has it: a list of what was made, of which entries with `result` or
    /// `success: false` were not; the one thing, or its ID; or whether it was.
    pub(super) fn read(answer: &Value, place: &str) -> Self {
        match at(answer, place) {
            None | Some(Value::Null) => Self::Unsaid,
            Some(Value::Bool(false)) => Self::Some(0, Vec::new()),
            Some(one @ Value::Object(_)) if !is_good(one) => Self::Some(0, Vec::new()),
            Some(Value::Array(all)) => {
                let good = all.iter().filter(|one| is_good(one));
                let count = u32::try_from(good.clone().count()).unwrap_or(u32::MAX);
                let mut names: Vec<String> = good.filter_map(name_of).collect();
                names.sort_unstable();
                Self::Some(count, names)
            }
            Some(_) => Self::All,
        }
    }

    /// What was deleted by an answer that need not say it: all, unless it says what was not.
    pub(super) fn unless_denied(answer: &Value) -> Self {
        let is_denied = |one: &Value| match one {
            Value::Array(all) => !all.iter().all(is_good),
            one => !is_good(one),
        };
        let denied = ["data", "entities"]
            .into_iter()
            .find(|place| at(answer, place).is_some_and(is_denied));
        match denied {
            Some(place) => Self::read(answer, place),
            None if is_good(answer) => Self::All,
            None => Self::Some(0, Vec::new()),
        }
    }

    /// How many of them are this holder's, of `holders` that were asked for `most` each; `None`:
    /// it does not say.
    pub(super) fn of(&self, holder: &str, holders: usize, most: u32) -> Option<u32> {
        match self {
            Self::All => Some(most),
            Self::Some(0, _) => Some(0),
            // Each of several holders has one, if it is named.
            Self::Some(..) if holders > 1 => {
                let names = self.names()?;
                let is_named = names.binary_search_by(|name| name.as_str().cmp(holder));
                Some(u32::from(is_named.is_ok()))
            }
            Self::Some(count, _) => Some(*count),
            Self::Unsaid => None,
        }
    }

    /// Who they are, in order; `None`: it does not name them all.
    pub(super) fn names(&self) -> Option<&[String]> {
        match self {
            Self::Some(count, names) => {
                let is_all = names.len() == usize::try_from(*count).unwrap_or(usize::MAX);
                is_all.then_some(names)
            }
            Self::All | Self::Unsaid => None,
        }
    }
}

/// Whether it does not say that it was not done.
fn is_good(one: &Value) -> bool {
    ["result", "success"]
        .into_iter()
        .all(|key| match one.get(key) {
            Some(Value::Bool(done)) => *done,
            Some(Value::String(done)) => !done.eq_ignore_ascii_case("false"),
            _ => true,
        })
}

/// The name of a user in a list of what was made.
fn name_of(one: &Value) -> Option<String> {
    let named = ["user", "username", "member"];
    let name = one
        .as_str()
        .or_else(|| named.into_iter().find_map(|key| one.get(key)?.as_str()))?;
    Some(fold_holder(name))
}

/// An answer, which may say nothing at all.
pub(super) fn read(answer: &[u8]) -> Option<Value> {
    match answer {
        b"" => Some(Value::Null),
        answer => serde_json::from_slice(answer).ok(),
    }
}

/// What stands at a place such as `data.newmembers`.
pub(super) fn at<'v>(answer: &'v Value, place: &str) -> Option<&'v Value> {
    place
        .split('.')
        .try_fold(answer, |value, key| value.get(key))
}

/// The ID that stands there.
pub(super) fn name(answer: &Value, place: &str) -> Option<String> {
    match at(answer, place)? {
        Value::String(name) if !name.is_empty() => Some(name.clone()),
        Value::Number(name) => Some(name.to_string()),
        _ => None,
    }
}

/// Which total the backend refuses a call by, and whose it is, if it says so.
pub(super) fn refusal(answer: &[u8]) -> Option<(Kind, Option<String>)> {
    let answer: Value = serde_json::from_slice(answer).ok()?;
    let text = answer.get("error_description")?.as_str()?;
    match answer.get("error")?.as_str()? {
        "resource_limited" => Some((Kind::Users, None)),
        "exceed_limit" => {
            if let Some((before, what)) = text.split_once(" has joined too many ") {
                let user = before.strip_prefix("user ").map(str::to_owned);
                let kind = match what.starts_with("chatroom") {
                    true => Kind::JoinedChatrooms,
                    false => Kind::JoinedGroups,
                };
                return Some((kind, user));
            }
            let kinds = [
                ("too many groups", Kind::Groups),
                ("too many chatrooms", Kind::Chatrooms),
                ("members size is greater", Kind::GroupMembers),
                ("contact number exceed", Kind::Friends),
            ];
            let kind = kinds.into_iter().find(|(words, _)| text.contains(words));
            kind.map(|(_, kind)| (kind, None))
        }
        _ => None,
    }
}
