//! Asks the backend, through the gateway, in its time.

use std::collections::HashSet;
use std::io::{self, Write as _};
use std::time::Duration;

use serde_json::Value;
use tokio::time::{Instant, sleep, sleep_until};

use super::PlanError;
use super::http::{Client, escaped};
use crate::limit::total::Kind;

/// Entries of a page.
const PAGE: usize = 100;
/// Pages in a row that have a cursor and no entry: one may have lost all that it had since.
const MOST_EMPTY: u32 = 100;
/// How often a call is asked again that was over a limit, or failed.
const TRIES: u32 = 20;

/// Who asks.
pub(super) struct Lister {
    client: Client,
    token: String,
    /// The app's part of paths.
    base: String,
    pause: Duration,
    next: Instant,
}

impl Lister {
    /// Of this app, so many calls a second at most.
    pub(super) fn new(client: Client, token: &str, app: &str, rate: u32) -> Self {
        let base = match app.split_once('#') {
            Some((org, name)) => format!("/{}/{}", escaped(org), escaped(name)),
            None => format!("/app-id/{}", escaped(app)),
        };
        Self {
            client,
            token: token.to_owned(),
            base,
            pause: Duration::from_secs(1) / rate.max(1),
            next: Instant::now(),
        }
    }

    /// Every page of a listing; how many entries there were.
    pub(super) async fn pages(
        &mut self,
        path: &str,
        note: &mut impl FnMut(&Value),
    ) -> Result<u64, PlanError> {
        let mut listed = 0_u64;
        let mut cursors = Cursors::default();
        let mut target = format!("{path}?limit={PAGE}");
        loop {
            let page = self.get(&target).await?;
            let entries = entries(&page).ok_or_else(|| no_list(&target))?;
            listed += entries.len() as u64;
            entries.iter().for_each(&mut *note);
            match cursors.next(path, &target, &page)? {
                Some(next) => target = next,
                None => return Ok(listed),
            }
        }
    }

    /// How many a user has. Groups and chatrooms of a user come in pages with numbers; where the
    /// backend has cursors, these lead on.
    pub(super) async fn count_of(&mut self, user: &str, kind: Kind) -> Result<u64, PlanError> {
        let user = escaped(user);
        let (path, is_numbered) = match kind {
            Kind::Friends => (format!("/users/{user}/contacts/users"), false),
            Kind::JoinedGroups => (format!("/users/{user}/joined_chatgroups"), true),
            _ => (format!("/users/{user}/joined_chatrooms"), true),
        };
        let numbered = |number: u32| format!("{path}?pagesize={PAGE}&pagenum={number}");
        let mut number = 1;
        let mut target = match is_numbered {
            true => numbered(number),
            false => path.clone(),
        };
        let mut cursors = Cursors::default();
        // A page that a backend gives again and again counts once.
        let mut found = HashSet::new();
        loop {
            let page = self.get(&target).await?;
            let total = page["total"].as_u64();
            let entries = match (entries(&page), total) {
                (Some(entries), _) => entries.as_slice(),
                (None, Some(_)) => &[],
                (None, None) => return Err(no_list(&target)),
            };
            let before = found.len();
            found.extend(entries.iter().map(Value::to_string));
            let count = found.len() as u64;
            if let Some(next) = cursors.next(&path, &target, &page)? {
                target = next;
                continue;
            }
            let is_last = !is_numbered || entries.len() < PAGE || found.len() == before;
            match total {
                Some(total) => return Ok(total.max(count)),
                None if is_last => return Ok(count),
                None => number += 1,
            }
            target = numbered(number);
        }
    }

    /// How many members a group has, its owner included, as its details tell.
    pub(super) async fn members_of(&mut self, group: &str) -> Result<u64, PlanError> {
        let path = format!("/chatgroups/{}", escaped(group));
        let answer = self.get(&path).await?;
        let details = entries(&answer).and_then(|all| all.first());
        let details = details.unwrap_or(&answer["data"]);
        members(details).ok_or_else(|| PlanError::Listing {
            path,
            why: "it does not tell how many members there are (affiliations_count)".to_owned(),
        })
    }

    /// One call, when it is its turn; again where it is over a limit, or has failed.
    pub(super) async fn get(&mut self, path: &str) -> Result<Value, PlanError> {
        let path = format!("{}{path}", self.base);
        let mut failures = 0;
        loop {
            sleep_until(self.next).await;
            self.next = Instant::now() + self.pause;
            let token = Some(self.token.as_str());
            let answer = self.client.send("GET", &path, token, String::new()).await?;
            failures += 1;
            match answer.status {
                200 => return answer.json(&path),
                429 | 500..=599 if failures < TRIES => {
                    let wait = answer.retry_after.unwrap_or(1).clamp(1, 60);
                    // Where there is nowhere to say it, it goes on.
                    let _ = writeln!(
                        io::stderr(),
                        "{path} was answered with {}; asked again in {wait} s ({failures} of {TRIES} times)",
                        answer.status
                    );
                    sleep(Duration::from_secs(wait)).await;
                }
                _ => return Err(self.client.refused(&path, &answer)),
            }
        }
    }
}

/// Cursors that a listing has had.
#[derive(Default)]
struct Cursors {
    known: HashSet<String>,
    last: Option<String>,
    /// Pages without an entry, in a row.
    empty: u32,
}

impl Cursors {
    /// Where the page after this one is; `None`: it was the last.
    fn next(
        &mut self,
        path: &str,
        target: &str,
        page: &Value,
    ) -> Result<Option<String>, PlanError> {
        let Some(cursor) = word(&page["cursor"]) else {
            return Ok(None);
        };
        let wrong = |why: &str| PlanError::Listing {
            path: target.to_owned(),
            why: why.to_owned(),
        };
        let is_empty = entries(page).is_none_or(Vec::is_empty);
        self.empty = if is_empty { self.empty + 1 } else { 0 };
        if self.empty > MOST_EMPTY {
            return Err(wrong(
                "page after page has no entry and yet a cursor: the listing does not end",
            ));
        }
        let next = format!("{path}?limit={PAGE}&cursor={}", escaped(&cursor));
        let is_last = is_empty && self.last.as_ref() == Some(&cursor);
        self.last = Some(cursor.clone());
        match self.known.insert(cursor) {
            true => Ok(Some(next)),
            // Nothing there, and nothing beyond.
            false if is_last => Ok(None),
            false => Err(wrong(
                "its cursor has come before: the listing goes round in circles",
            )),
        }
    }
}

fn no_list(path: &str) -> PlanError {
    PlanError::Listing {
        path: path.to_owned(),
        why: "no list of `entities` or `data` in it".to_owned(),
    }
}

/// A word or a number, as a word.
pub(super) fn word(value: &Value) -> Option<String> {
    match value {
        Value::String(word) if !word.is_empty() => Some(word.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// How many members a group has by what is told of it: a number, or themselves.
pub(super) fn members(group: &Value) -> Option<u64> {
    ["affiliations_count", "affiliations"]
        .into_iter()
        .find_map(|key| match &group[key] {
            Value::Array(all) => Some(all.len() as u64),
            count => count.as_u64(),
        })
}

/// The entries of a page, where the service has them.
fn entries(page: &Value) -> Option<&Vec<Value>> {
    // An empty list of the one beside a full one of the other is not the listing.
    let mut lists = ["entities", "data"]
        .into_iter()
        .filter_map(|key| page[key].as_array());
    let first = lists.next()?;
    match first.is_empty() {
        true => Some(lists.next().unwrap_or(first)),
        false => Some(first),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn next(cursors: &mut Cursors, page: &Value) -> Option<String> {
        cursors.next("/users", "/users?limit=100", page).unwrap()
    }

    #[test]
    fn a_page_without_an_entry_is_not_the_last_while_it_has_a_cursor() {
        let mut cursors = Cursors::default();
        let empty = |cursor: &str| json!({ "entities": [], "cursor": cursor });
        for cursor in ["a", "b"] {
            let target = format!("/users?limit=100&cursor={cursor}");
            assert_eq!(next(&mut cursors, &empty(cursor)), Some(target));
        }
        assert_eq!(
            next(&mut cursors, &empty("b")),
            None,
            "it leads nowhere else"
        );
        assert_eq!(next(&mut cursors, &empty("")), None);
        assert_eq!(next(&mut cursors, &json!({ "entities": ["x"] })), None);
    }

    #[test]
    fn a_listing_that_does_not_end_is_an_error() {
        let mut cursors = Cursors::default();
        let page = |cursor: &str, entries: &[u32]| json!({ "data": entries, "cursor": cursor });
        next(&mut cursors, &page("a", &[1]));
        next(&mut cursors, &page("b", &[2]));
        for round in [page("a", &[1]), page("b", &[3]), page("a", &[])] {
            assert!(cursors.next("/x", "/x", &round).is_err(), "{round}");
        }
        let mut cursors = Cursors::default();
        let mut pages = (0..).map(|n: u32| page(&n.to_string(), &[]));
        assert!(pages.any(|page| cursors.next("/x", "/x", &page).is_err()));
    }
}
