//! The shipped table against every row of the documents (`../data/rows.tsv`), limit by limit, with
//! a reading of the printed text that shares nothing with `routes.toml` or its compiler.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests"
)]

mod carried;
mod figures;
mod reading;
mod served;

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::time::Duration;

use floodgate::limit::calendar::Zone;
use floodgate::limit::{KeyHasher, Limit, LimitId, Mode, Unit, Window};
use floodgate::route::table::Found;
use floodgate::spec::{EditionId, RouteId, RouteLimits, Ruleset};
use reading::{Per, Reading, Term, default_figure, read};

const ROWS: &str = include_str!("../data/rows.tsv");
/// Oldest first; the overview prints no limits.
const EDITIONS: [&str; 4] = ["v1", "v2", "v3", "v4"];
const APP_KEY: &str = "/{org_name}/{app_name}";
const APP_ID: &str = "/app-id/{app_id}";

/// Rule 5: edition, calls that share one counter of 100 calls per second.
const GROUPS: &[(&str, &[&str])] = &[
    ("v1", &["POST /users"]),
    ("v1", &["PUT /users/{}"]),
    (
        "v1",
        &["GET /metadata/user/{}", "GET /metadata/user/capacity"],
    ),
    ("v2", &["POST /users", "PUT /users/{}"]),
    (
        "v2",
        &[
            "POST /push/label",
            "GET /push/label/{}",
            "GET /push/label",
            "DELETE /push/label/{}",
            "POST /push/label/{}/user",
            "GET /push/label/{}/user/{}",
            "GET /push/label/{}/user",
            "DELETE /push/label/{}/user",
        ],
    ),
    ("v3", &["POST /users", "PUT /users/{}"]),
    ("v4", &["POST /users"]),
    (
        "v4",
        &["PUT /users/{}/push/binding", "GET /users/{}/push/binding"],
    ),
    ("v4", &["PUT /users/{}"]),
];

/// Rows whose printed call is another operation's: the call they mean has the figure as well.
const MISPRINTED: &[(&str, &str, &str)] = &[
    ("003:246", "POST", "/metadata/chatroom/{chatroom_id}"),
    ("000:288", "POST", "/metadata/chatroom/{chatroom_id}"),
    ("000:180", "GET", "/users/{username}/notification/language"),
    ("002:656", "GET", "/users/{username}/notification/language"),
];

struct Row {
    edition: &'static str,
    source: String,
    name: &'static str,
    method: &'static str,
    /// The path below the app.
    tail: &'static str,
    printed: &'static str,
}

impl Row {
    fn call(&self) -> String {
        let shape: String = segments(self.tail, |_| "{}".to_owned());
        format!("{} {shape}", self.method)
    }
}

fn rows() -> Vec<Row> {
    ROWS.lines()
        .skip(1)
        .map(|line| {
            let [edition, document, at, _, name, method, path, _, printed] =
                <[&str; 9]>::try_from(line.split('\t').collect::<Vec<_>>()).unwrap();
            // Two rows of v4 are printed in the App Key form.
            let tail = path
                .strip_prefix(APP_ID)
                .or_else(|| path.strip_prefix(APP_KEY))
                .expect(path);
            Row {
                edition,
                source: format!("{document}:{at}"),
                name: name.trim_start_matches("* ").trim(),
                method,
                tail,
                printed: printed.trim(),
            }
        })
        .collect()
}

/// The path with something else for each parameter.
fn segments(path: &str, parameter: impl Fn(&str) -> String) -> String {
    path.split('/')
        .map(|segment| match segment.strip_prefix('{') {
            Some(name) => parameter(name.strip_suffix('}').expect(path)),
            None => segment.to_owned(),
        })
        .collect::<Vec<_>>()
        .join("/")
}

fn shipped() -> &'static Ruleset {
    static SHIPPED: LazyLock<Ruleset> =
        LazyLock::new(|| Ruleset::shipped(KeyHasher::new((1, 2))).unwrap());
    &SHIPPED
}

fn find(rules: &Ruleset, method: &str, tail: &str) -> Option<RouteId> {
    let tail = segments(tail, |name| format!("a-{name}"));
    match rules.table.find(method, &tail) {
        Found::Route { id, .. } => Some(id),
        Found::MethodNotAllowed(_) | Found::Unmatched | Found::Respelt { .. } => None,
    }
}

fn route_of(rules: &Ruleset, method: &str, tail: &str) -> RouteId {
    find(rules, method, tail).unwrap_or_else(|| panic!("{method} {tail} is not served"))
}

fn edition(rules: &Ruleset, name: &str) -> EditionId {
    let (key, id) = rules.selection(name).unwrap();
    assert_eq!(key, id, "an edition selects itself for both forms");
    assert_eq!(&*rules.editions[key.0].name, name);
    key
}

fn limits_in<'r>(rules: &'r Ruleset, route: RouteId, name: &str) -> &'r RouteLimits {
    &rules.routes[route.0].editions[edition(rules, name).0]
}

fn term(limit: &Limit) -> Term {
    let per = match &limit.window {
        Window::Sliding(length) => {
            assert_eq!(*length, Duration::from_secs(limit.window_s()));
            Per::Seconds(limit.window_s())
        }
        // Rule 7.
        Window::Day(zone) => {
            assert_eq!(*zone, Zone::UTC, "{}", limit.name);
            Per::Day
        }
        Window::Running => Per::AtOnce,
    };
    let tasks = limit.unit == Unit::Tasks;
    assert_eq!(tasks, per == Per::AtOnce, "{}", limit.name);
    assert_eq!(limit.mode, Mode::Enforce, "{}", limit.name);
    (
        limit.unit.as_str(),
        limit.quota.get(),
        per,
        limit.scope.as_str(),
    )
}

fn terms(rules: &Ruleset, ids: &[LimitId]) -> Vec<Term> {
    let mut terms: Vec<Term> = ids.iter().map(|id| term(rules.limit(*id))).collect();
    terms.sort_unstable();
    terms
}

fn group_of(row: &Row) -> Option<usize> {
    let call = row.call();
    GROUPS
        .iter()
        .position(|(edition, calls)| *edition == row.edition && calls.contains(&&*call))
}

/// The row's own limits, by rules 5 and 8; the printed text alone outside of groups.
fn reading_of(row: &Row) -> Reading {
    match (group_of(row), row.printed) {
        (Some(_), "") => default_figure(),
        (Some(_), printed) => {
            assert_eq!(read(printed), default_figure(), "{}", row.source);
            default_figure()
        }
        (None, printed) => read(printed),
    }
}

/// Rule 3.
fn with_ip_copies(row: Option<&Row>, own: &Reading, edition: &str) -> Vec<Term> {
    let mut terms = own.terms.clone();
    let excepted = row.is_some_and(|row| row.tail.starts_with("/chatmessages/"));
    if edition != "v4" && !excepted {
        for (unit, quota, per, scope) in &own.terms {
            if *scope == "app" && matches!(per, Per::Seconds(_)) {
                terms.push((unit, *quota, *per, "ip"));
            }
        }
    }
    terms.sort_unstable();
    terms
}

/// Every printed row by the route that serves it.
fn rows_by_route<'r>(rules: &Ruleset, rows: &'r [Row]) -> BTreeMap<usize, Vec<&'r Row>> {
    let mut by_route: BTreeMap<usize, Vec<&Row>> = BTreeMap::new();
    for row in rows {
        let id = route_of(rules, row.method, row.tail);
        by_route.entry(id.0).or_default().push(row);
        for (source, method, tail) in MISPRINTED {
            if row.source == *source {
                let id = route_of(rules, method, tail);
                by_route.entry(id.0).or_default().push(row);
            }
        }
    }
    by_route
}

/// Fails with every mistake, not with the first.
fn none(mistakes: &[String]) {
    assert!(mistakes.is_empty(), "\n{}", mistakes.join("\n"));
}

#[test]
fn every_printed_row_has_the_limits_it_prints_and_no_other() {
    let rules = shipped();
    let rows = rows();
    assert_eq!(rows.len(), 754);
    let mut checked = 0;
    let mut mistakes = Vec::new();
    for row in rows.iter().filter(|row| row.edition != "overview") {
        let id = route_of(rules, row.method, row.tail);
        let found = limits_in(rules, id, row.edition);
        let at = format!("{} {} {}", row.edition, row.source, row.call());
        let expected = with_ip_copies(Some(row), &reading_of(row), row.edition);
        let actual = terms(rules, &found.limits);
        if expected != actual {
            mistakes.push(format!("{at}: printed {expected:?}, shipped {actual:?}"));
        }
        if found.from != Some(edition(rules, row.edition)) {
            mistakes.push(format!("{at}: figures from {:?}", found.from));
        }
        if !found.sources.iter().any(|source| **source == *row.source) {
            mistakes.push(format!("{at}: sources {:?}", found.sources));
        }
        let grouped = group_of(row).is_some();
        for id in &found.limits {
            let limit = rules.limit(*id);
            if limit.group.is_some() != grouped {
                mistakes.push(format!("{at}: {} in {:?}", limit.name, limit.group));
            }
        }
        checked += 1;
    }
    assert_eq!(checked, 754 - 149);
    none(&mistakes);
}

#[test]
fn a_combined_group_is_one_counter_in_its_edition_and_no_other_route_has_it() {
    let rules = shipped();
    for (name, calls) in GROUPS {
        let members: Vec<RouteId> = calls
            .iter()
            .map(|call| {
                let (method, shape) = call.split_once(' ').unwrap();
                route_of(rules, method, &shape.replace("{}", "{p}"))
            })
            .collect();
        let shared = &limits_in(rules, members[0], name).limits;
        assert_eq!(shared.len(), if *name == "v4" { 1 } else { 2 }, "{calls:?}");
        for member in &members {
            assert_eq!(&limits_in(rules, *member, name).limits, shared);
        }
        for id in shared {
            assert!(rules.limit(*id).group.is_some(), "{calls:?} in {name}");
        }
        for (i, route) in rules.routes.iter().enumerate() {
            let theirs = limits_in(rules, RouteId(i), name);
            if theirs.from == Some(edition(rules, name)) && !members.contains(&RouteId(i)) {
                let taken = theirs.limits.iter().find(|id| shared.contains(id));
                assert_eq!(taken, None, "{} shares {calls:?} in {name}", route.name);
            }
        }
    }
}

#[test]
fn outside_of_groups_every_route_has_its_own_counters() {
    let rules = shipped();
    for name in EDITIONS {
        let mut owner: BTreeMap<LimitId, &str> = BTreeMap::new();
        for (i, route) in rules.routes.iter().enumerate() {
            for id in &limits_in(rules, RouteId(i), name).limits {
                let other = owner.insert(*id, &route.name);
                let limit = rules.limit(*id);
                assert!(
                    other.is_none() || limit.group.is_some(),
                    "{other:?} and {} share {} in {name}",
                    route.name,
                    limit.name
                );
            }
        }
    }
}

#[test]
fn a_route_that_an_edition_does_not_print_has_the_newest_editions_figures() {
    let rules = shipped();
    let rows = rows();
    let mut mistakes = Vec::new();
    let mut taken = 0;
    for (id, rows) in rows_by_route(rules, &rows) {
        let route = &rules.routes[id];
        for name in EDITIONS {
            if rows.iter().any(|row| row.edition == name) {
                continue;
            }
            let found = limits_in(rules, RouteId(id), name);
            assert!(found.sources.is_empty(), "{} in {name}", route.name);
            let newest = EDITIONS
                .iter()
                .rev()
                .find_map(|name| rows.iter().find(|row| row.edition == *name));
            let own = newest.map_or_else(default_figure, |row| reading_of(row));
            let expected = with_ip_copies(newest.copied(), &own, name);
            let actual = terms(rules, &found.limits);
            let from = newest.map(|row| edition(rules, row.edition));
            if expected != actual || from != found.from {
                mistakes.push(format!(
                    "{} in {name}: {expected:?}, {actual:?}",
                    route.name
                ));
            }
            let grouped = newest.is_some_and(|row| group_of(row).is_some());
            for id in &found.limits {
                if rules.limit(*id).group.is_some() != grouped {
                    mistakes.push(format!("{} in {name}: group", route.name));
                }
            }
            taken += 1;
        }
    }
    assert!(taken > 0);
    none(&mistakes);
}

#[test]
fn figures_taken_from_another_edition_by_example() {
    const S: Per = Per::Seconds(1);
    const MIN: Per = Per::Seconds(60);
    let rules = shipped();
    let has = |call: &str, name: &str, expected: &[Term]| {
        let (method, tail) = call.split_once(' ').unwrap();
        let found = limits_in(rules, route_of(rules, method, tail), name);
        assert_eq!(terms(rules, &found.limits), expected, "{call} in {name}");
    };
    let token = [("calls", 300, S, "app"), ("calls", 300, S, "ip")];
    has("POST /token", "v3", &token);
    has("POST /token", "v4", &token[..1]);
    has(
        "POST /push/task",
        "v4",
        &[("calls", 5, MIN, "app"), ("calls", 100, Per::Day, "app")],
    );
    has(
        "POST /messages",
        "v4",
        &[("calls", 100, S, "app"), ("messages", 2000, S, "app")],
    );
    has(
        "POST /messages/chatgroups/users",
        "v1",
        &[("messages", 100, S, "app"), ("messages", 100, S, "ip")],
    );
    has(
        "POST /messages/users/broadcast",
        "v3",
        &[
            ("calls", 1, MIN, "app"),
            ("calls", 1, MIN, "ip"),
            ("calls", 50, Per::Day, "app"),
        ],
    );
    let history = "GET /chatmessages/{time}";
    for name in EDITIONS {
        has(history, name, &[("calls", 10, MIN, "app")]);
    }
}
