//! The shipped table against every row of the documents (`data/rows.tsv`), limit by limit, with
//! a reading of the printed text that shares nothing with `routes.toml` or its compiler.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use floodgate::limit::calendar::Zone;
use floodgate::limit::{KeyHasher, Limit, LimitId, Mode, Unit, Window};
use floodgate::route::table::Found;
use floodgate::spec::{EditionId, RouteId, RouteLimits, Ruleset};

const ROWS: &str = include_str!("data/rows.tsv");
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
            Row {
                edition,
                source: format!("{document}:{at}"),
                name: name.trim_start_matches("* ").trim(),
                method,
                // Two v4 rows are printed in the App Key form.
                tail: path
                    .strip_prefix(APP_ID)
                    .or_else(|| path.strip_prefix(APP_KEY))
                    .expect(path),
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

fn shipped() -> Ruleset {
    Ruleset::shipped(KeyHasher::new((1, 2))).unwrap()
}

fn find(rules: &Ruleset, method: &str, tail: &str) -> Option<RouteId> {
    let tail = segments(tail, |name| format!("a-{name}"));
    match rules.table.find(method, &tail) {
        Found::Route { id, .. } => Some(id),
        Found::MethodNotAllowed(_) | Found::Unmatched => None,
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

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Per {
    Seconds(u64),
    Day,
    AtOnce,
}

/// Unit, quota, period, scope: the words of `Unit::as_str` and `Scope::as_str`.
type Term = (&'static str, u32, Per, &'static str);

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

/// What a printed text means.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Reading {
    terms: Vec<Term>,
    /// The most recipients of one call.
    cap: Option<u32>,
}

fn number(text: &str) -> u32 {
    text.trim().parse().unwrap_or_else(|_| panic!("{text:?}"))
}

fn read(printed: &str) -> Reading {
    let mut reading = Reading::default();
    // A note in brackets is no limit of its own, but for the downstream messages (rule 8).
    let (text, note) = match printed.split_once('（') {
        Some((text, note)) => (text.trim(), note),
        None => (printed, ""),
    };
    let mut bullets: Vec<&str> = text.split("<br/>").map(str::trim).collect();
    if bullets.len() > 1 {
        assert_eq!(
            bullets.remove(0),
            "对于单个 app，该 REST API 存在以下三个限制："
        );
        assert_eq!(bullets.len(), 3, "{printed}");
    }
    for bullet in bullets {
        // What follows a full stop explains.
        let sentence = bullet.split('。').next().unwrap_or_default();
        for clause in sentence.split(['，', ',']) {
            clause_into(&mut reading, clause.trim_start_matches("- ").trim());
        }
    }
    if note.contains("1秒下行分发消息量限制是该频率的20倍") {
        let [("calls", calls, Per::Seconds(1), "app")] = reading.terms[..] else {
            panic!("{printed}");
        };
        reading
            .terms
            .push(("messages", calls * 20, Per::Seconds(1), "app"));
    } else {
        assert!(note.is_empty() || note == "可联系商务提升该上限）。");
    }
    reading.terms.sort_unstable();
    reading
}

fn clause_into(reading: &mut Reading, clause: &str) {
    let tasks = clause
        .strip_prefix("同时执行的任务不能超过")
        .and_then(|rest| rest.strip_suffix('个'));
    if let Some(tasks) = tasks {
        reading
            .terms
            .push(("tasks", number(tasks), Per::AtOnce, "app"));
        return;
    }
    // 每分钟限 1 次, 而且每天最多可发 100 次广播消息
    if let Some(every) = clause.trim_start_matches("而且").strip_prefix('每') {
        let (per, rest) = match every.strip_prefix("分钟") {
            Some(rest) => (Per::Seconds(60), rest),
            None => (Per::Day, every.strip_prefix('天').expect(clause)),
        };
        let figure = rest
            .strip_prefix("最多可发")
            .or_else(|| rest.strip_prefix('限'))
            .and_then(|rest| rest.trim_end_matches("广播消息").strip_suffix('次'));
        let figure = number(figure.expect(clause));
        reading.terms.push(("calls", figure, per, "app"));
        return;
    }
    let mut parts = clause.split('/').map(str::trim);
    let amount = parts.next().unwrap_or_default();
    let per = parts.next().unwrap_or_default();
    let digits = amount
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(amount.len());
    let (figure, unit) = amount.split_at(digits);
    let figure = number(figure);
    let scope = match parts.next() {
        None | Some("App Key" | "App ID") => "app",
        Some("单用户 ID") => "user",
        Some(other) => panic!("{other:?} in {clause:?}"),
    };
    assert_eq!(parts.next(), None, "{clause:?}");
    let unit = match (unit.trim(), per) {
        ("人" | "个群" | "个聊天室", "次") => {
            assert_eq!(reading.cap.replace(figure), None);
            return;
        }
        ("次", _) | ("", "second") => "calls",
        ("条", _) => "messages",
        (other, _) => panic!("{other:?} in {clause:?}"),
    };
    let per = match per {
        "秒" | "second" => Per::Seconds(1),
        "分钟" => Per::Seconds(60),
        "天" => Per::Day,
        other => panic!("{other:?} in {clause:?}"),
    };
    reading.terms.push((unit, figure, per, scope));
}

fn default_figure() -> Reading {
    Reading {
        terms: vec![("calls", 100, Per::Seconds(1), "app")],
        cap: None,
    }
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
    }
    by_route
}

/// Fails with every mistake, not with the first.
fn none(mistakes: &[String]) {
    assert!(mistakes.is_empty(), "\n{}", mistakes.join("\n"));
}

#[test]
fn printed_text_is_read_as_the_rules_say() {
    let own = |text| read(text).terms;
    let s = Per::Seconds;
    assert_eq!(own("100/second"), [("calls", 100, s(1), "app")]);
    assert_eq!(
        own("5 次/分钟/单用户 ID，100 次/秒/App ID"),
        [("calls", 5, s(60), "user"), ("calls", 100, s(1), "app")]
    );
    assert_eq!(
        own("每分钟最多可发 10 次，而且每天最多可发 100 次广播消息。"),
        [("calls", 10, s(60), "app"), ("calls", 100, Per::Day, "app")]
    );
    let listed = "对于单个 app，该 REST API 存在以下三个限制：<br/> - 20 条/秒/App ID   <br/> - 20 次/秒 <br/> -  3 个群/次";
    assert_eq!(
        read(listed),
        Reading {
            terms: vec![("calls", 20, s(1), "app"), ("messages", 20, s(1), "app")],
            cap: Some(3)
        }
    );
}

#[test]
fn every_printed_row_has_the_limits_it_prints_and_no_other() {
    let rules = shipped();
    let rows = rows();
    assert_eq!(rows.len(), 754);
    let mut checked = 0;
    let mut mistakes = Vec::new();
    for row in rows.iter().filter(|row| row.edition != "overview") {
        let id = route_of(&rules, row.method, row.tail);
        let found = limits_in(&rules, id, row.edition);
        let at = format!("{} {} {}", row.edition, row.source, row.call());
        let expected = with_ip_copies(Some(row), &reading_of(row), row.edition);
        let actual = terms(&rules, &found.limits);
        if expected != actual {
            mistakes.push(format!("{at}: printed {expected:?}, shipped {actual:?}"));
        }
        if found.from != Some(edition(&rules, row.edition)) {
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
fn recipient_caps_are_the_printed_ones() {
    let rules = shipped();
    let mut caps = BTreeSet::new();
    for row in rows().iter().filter(|row| row.edition != "overview") {
        if let Some(cap) = reading_of(row).cap {
            let route = &rules.routes[route_of(&rules, row.method, row.tail).0];
            assert_eq!(route.max_recipients, Some(cap), "{}", row.source);
            assert!(route.cost.is_some(), "{}", row.source);
            caps.insert(cap);
        }
    }
    assert_eq!(Vec::from_iter(caps), [3, 10, 600]);
}

#[test]
fn messages_are_counted_only_where_recipients_can_be_read() {
    let rules = shipped();
    for route in &rules.routes {
        for id in route.editions.iter().flat_map(|edition| &edition.limits) {
            let limit = rules.limit(*id);
            let read =
                route.cost.is_some() || route.calls.iter().any(|(_, p)| p.contains("import"));
            assert!(limit.unit != Unit::Messages || read, "{}", limit.name);
        }
    }
}

#[test]
fn the_routes_of_a_printed_group_share_one_counter() {
    let rules = shipped();
    for (edition, calls) in GROUPS {
        let mut counters = BTreeSet::new();
        for call in *calls {
            let (method, tail) = call.split_once(' ').unwrap();
            let tail = tail.replace("{}", "{x}");
            let limits = &limits_in(&rules, route_of(&rules, method, &tail), edition).limits;
            counters.insert(limits.to_vec());
        }
        assert_eq!(counters.len(), 1, "{edition} {calls:?}");
    }
}

#[test]
fn every_shape_is_served_and_named_as_printed() {
    let rules = shipped();
    let rows = rows();
    let shapes: BTreeSet<String> = rows.iter().map(Row::call).collect();
    assert_eq!(shapes.len(), 185);
    for (id, rows) in rows_by_route(&rules, &rows) {
        let route = &rules.routes[id];
        let rank = |row: &Row| EDITIONS.iter().position(|e| *e == row.edition);
        let newest = rows.iter().map(|row| rank(row)).max().unwrap();
        for row in rows.iter().filter(|row| rank(row) == newest) {
            assert!(
                route.title.contains(row.name),
                "{}: {} is not {}",
                row.source,
                route.title,
                row.name
            );
        }
        for row in rows {
            assert!(
                route.sources.iter().any(|s| **s == *row.source),
                "{}",
                row.source
            );
        }
    }
}

/// Rule 4: the figures of the newest edition that prints a route, whole, and the per-IP copies
/// of the selected one.
#[test]
fn what_an_edition_does_not_print_has_the_newest_editions_figures() {
    let rules = shipped();
    let rows = rows();
    let mut inherited = 0;
    for (id, rows) in rows_by_route(&rules, &rows) {
        for selected in EDITIONS {
            if rows.iter().any(|row| row.edition == selected) {
                continue;
            }
            let newest = EDITIONS
                .iter()
                .rev()
                .find_map(|e| rows.iter().find(|row| row.edition == *e));
            let own = newest.map_or_else(default_figure, |row| reading_of(row));
            let expected = with_ip_copies(newest.copied(), &own, selected);
            let found = limits_in(&rules, RouteId(id), selected);
            assert_eq!(
                terms(&rules, &found.limits),
                expected,
                "{selected} {}",
                rules.routes[id].name
            );
            inherited += 1;
        }
    }
    assert!(inherited > 150, "{inherited}");
}

#[test]
fn inherited_figures_by_example() {
    let rules = shipped();
    let s = Per::Seconds;
    let own = |method: &str, tail: &str, edition: &str| {
        terms(
            &rules,
            &limits_in(&rules, route_of(&rules, method, tail), edition).limits,
        )
    };
    assert_eq!(
        own("POST", "/token", "v3"),
        [("calls", 300, s(1), "app"), ("calls", 300, s(1), "ip")]
    );
    assert_eq!(
        own("POST", "/push/task", "v4"),
        [("calls", 5, s(60), "app"), ("calls", 100, Per::Day, "app")]
    );
    assert_eq!(
        own("POST", "/messages", "v4"),
        [("calls", 100, s(1), "app"), ("messages", 2000, s(1), "app")]
    );
    assert_eq!(
        own("POST", "/messages/chatgroups/users", "v1"),
        [
            ("messages", 100, s(1), "app"),
            ("messages", 100, s(1), "ip")
        ]
    );
}

#[test]
fn two_printed_calls_of_one_operation_share_its_counters() {
    let rules = shipped();
    for (a, b, tail) in [
        ("PUT", "POST", "/users/{u}/password"),
        ("GET", "POST", "/users/{u}/disconnect"),
    ] {
        assert_eq!(find(&rules, a, tail), find(&rules, b, tail));
    }
    assert_eq!(
        find(&rules, "POST", "/messages/recall"),
        find(&rules, "POST", "/messages/msg_recall")
    );
}

#[test]
fn static_segments_win_within_a_method_and_users_of_that_name_are_served() {
    let rules = shipped();
    let name =
        |method: &str, tail: &str| &*rules.routes[find(&rules, method, tail).unwrap().0].name;
    assert_eq!(name("POST", "/users/batch/status"), "users-batch-status");
    assert_eq!(name("GET", "/users/batch/status"), "users-status");
    assert_eq!(
        name("GET", "/metadata/user/capacity"),
        "metadata-user-capacity"
    );
    assert_eq!(
        name("PUT", "/metadata/user/capacity"),
        name("PUT", "/metadata/user/{u}")
    );
    assert_eq!(
        name("GET", "/metadata/user/get"),
        name("GET", "/metadata/user/{u}")
    );
    assert_ne!(
        name("GET", "/chatrooms/super_admin"),
        name("GET", "/chatrooms/{id}")
    );
}

#[test]
fn current_is_v3_for_app_keys_and_v4_for_app_ids() {
    let rules = shipped();
    let selected = rules.selection("current").unwrap();
    assert_eq!(selected, (edition(&rules, "v3"), edition(&rules, "v4")));
}
