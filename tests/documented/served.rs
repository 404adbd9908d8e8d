//! Which route serves a documented call, and what the route says of itself.

use std::collections::BTreeSet;

use floodgate::limit::{Scope, Unit};
use floodgate::route::Form;
use floodgate::route::canonical::{canonical, split_app};
use floodgate::route::table::Found;

use super::reading::{Per, default_figure};
use super::{
    EDITIONS, Row, limits_in, none, reading_of, route_of, rows, rows_by_route, segments, shipped,
    terms,
};

#[test]
fn no_route_is_shipped_that_no_document_prints() {
    let rules = shipped();
    let rows = rows();
    let printed: BTreeSet<usize> = rows_by_route(rules, &rows).into_keys().collect();
    assert_eq!(printed, (0..rules.routes.len()).collect());
    let calls: BTreeSet<String> = rows.iter().map(Row::call).collect();
    for (method, path) in rules.routes.iter().flat_map(|route| &route.calls) {
        let call = format!("{method} {}", segments(path, |_| "{}".to_owned()));
        assert!(calls.contains(&call), "{call}");
    }
}

#[test]
fn every_row_is_a_source_of_its_route_and_every_source_is_a_row() {
    let rules = shipped();
    let rows = rows();
    for (id, rows) in rows_by_route(rules, &rows) {
        let printed: BTreeSet<&str> = rows.iter().map(|row| &*row.source).collect();
        let shipped: BTreeSet<&str> = rules.routes[id].sources.iter().map(|s| &**s).collect();
        assert_eq!(shipped, printed, "{}", rules.routes[id].name);
    }
}

#[test]
fn a_title_has_the_names_of_the_newest_edition_that_prints_the_route() {
    let rules = shipped();
    let rows = rows();
    let mut mistakes = Vec::new();
    for (id, rows) in rows_by_route(rules, &rows) {
        let newest = ["v4", "v3", "v2", "v1", "overview"]
            .iter()
            .find(|name| rows.iter().any(|row| row.edition == **name));
        for row in rows.iter().filter(|row| Some(&row.edition) == newest) {
            let title = &rules.routes[id].title;
            if !title.contains(row.name) {
                mistakes.push(format!("{}: {} is not in {title}", row.source, row.name));
            }
        }
    }
    none(&mistakes);
}

#[test]
fn every_documented_call_is_served_in_both_address_forms() {
    let rules = shipped();
    let rows = rows();
    let mut calls = BTreeSet::new();
    for row in &rows {
        let id = route_of(rules, row.method, row.tail);
        calls.insert(row.call());
        for (app, form) in [("/org/app", Form::AppKey), ("/app-id/a1b2", Form::AppId)] {
            let path = format!("{app}{}", segments(row.tail, |name| format!("a-{name}")));
            let path = canonical(&path).unwrap();
            let (app, tail) = split_app(&path).unwrap();
            assert_eq!(app.form, form);
            let Found::Route { id: found, .. } = rules.table.find(row.method, tail) else {
                panic!("{} {path} is not served", row.method);
            };
            assert_eq!(found, id, "{} {path}", row.method);
        }
    }
    assert_eq!(calls.len(), 185);
}

#[test]
fn a_fixed_segment_goes_before_a_parameter() {
    let rules = shipped();
    let calls = |method: &str, tail: &str| -> Vec<String> {
        let Found::Route { id, .. } = rules.table.find(method, tail) else {
            panic!("{method} {tail} is not served");
        };
        let calls = rules.routes[id.0].calls.iter();
        calls
            .map(|(method, path)| format!("{method} {path}"))
            .collect()
    };
    for (method, tail, expected) in [
        ("POST", "/users/batch/status", "POST /users/batch/status"),
        (
            "GET",
            "/chatrooms/super_admin",
            "GET /chatrooms/super_admin",
        ),
        (
            "POST",
            "/chatrooms/super_admin",
            "POST /chatrooms/super_admin",
        ),
        (
            "GET",
            "/metadata/user/capacity",
            "GET /metadata/user/capacity",
        ),
        // With another method the same words are a user's or a chatroom's name.
        ("GET", "/users/batch/status", "GET /users/{username}/status"),
        (
            "DELETE",
            "/chatrooms/super_admin",
            "DELETE /chatrooms/{chatroom_id}",
        ),
        (
            "PUT",
            "/metadata/user/capacity",
            "PUT /metadata/user/{username}",
        ),
        // Only the whole segment is fixed.
        (
            "GET",
            "/chatrooms/super_admins",
            "GET /chatrooms/{chatroom_id}",
        ),
        (
            "GET",
            "/metadata/user/capacity2",
            "GET /metadata/user/{username}",
        ),
    ] {
        assert_eq!(calls(method, tail), [expected], "{method} {tail}");
    }
}

#[test]
fn two_printed_spellings_of_one_operation_are_one_counter() {
    let rules = shipped();
    for (one, other) in [
        (
            "PUT /users/{username}/password",
            "POST /users/{username}/password",
        ),
        (
            "GET /users/{username}/disconnect",
            "POST /users/{username}/disconnect",
        ),
        ("POST /messages/msg_recall", "POST /messages/recall"),
    ] {
        let id = |call: &str| {
            let (method, tail) = call.split_once(' ').unwrap();
            route_of(rules, method, tail)
        };
        assert_eq!(id(one), id(other), "{one}");
        for name in EDITIONS {
            let limits = &limits_in(rules, id(one), name).limits;
            assert!(!limits.is_empty(), "{one} in {name}");
            assert_eq!(limits, &limits_in(rules, id(other), name).limits);
        }
    }
}

#[test]
fn the_user_of_a_limit_per_user_is_the_one_in_the_path() {
    let rules = shipped();
    for (method, tail) in [
        ("DELETE", "/users/Alice/user_channel"),
        ("GET", "/user/Alice/user_channels"),
    ] {
        let Found::Route { id, user } = rules.table.find(method, tail) else {
            panic!("{method} {tail}");
        };
        assert_eq!(user, Some("Alice"));
        let limits = &limits_in(rules, id, "v3").limits;
        assert!(
            limits
                .iter()
                .any(|id| rules.limit(*id).scope == Scope::User)
        );
    }
}

#[test]
fn what_no_edition_prints_has_the_default_figure() {
    let rules = shipped();
    let rows = rows();
    // Every route is printed by some edition: the figure is left to paths that no document has.
    for (id, rows) in rows_by_route(rules, &rows) {
        let name = &rules.routes[id].name;
        assert!(rows.iter().any(|row| row.edition != "overview"), "{name}");
    }
    let route = &rules.unmatched_route;
    for (limits, name) in route.editions.iter().zip(EDITIONS) {
        let mut expected = default_figure().terms;
        if name != "v4" {
            expected.push(("calls", 100, Per::Seconds(1), "ip"));
        }
        assert_eq!(terms(rules, &limits.limits), expected, "{name}");
        assert_eq!(limits.from, None, "{name}");
    }
}

#[test]
fn the_default_selection_is_the_newest_page_of_each_address_form() {
    let rules = shipped();
    let (app_key, app_id) = rules.selection("current").unwrap();
    assert_eq!(&*rules.editions[app_key.0].name, "v3");
    assert_eq!(&*rules.editions[app_id.0].name, "v4");
    let names: Vec<&str> = rules
        .editions
        .iter()
        .map(|edition| &*edition.name)
        .collect();
    assert_eq!(names, EDITIONS);
}

#[test]
fn recipient_caps_are_the_printed_ones() {
    let rules = shipped();
    let mut caps = BTreeSet::new();
    for row in rows().iter().filter(|row| row.edition != "overview") {
        if let Some(cap) = reading_of(row).cap {
            let route = &rules.routes[route_of(rules, row.method, row.tail).0];
            assert_eq!(route.max_recipients, Some(cap), "{}", row.source);
            assert!(route.cost.is_some(), "{}", row.source);
            caps.insert(cap);
        }
    }
    assert_eq!(Vec::from_iter(caps), [3, 10, 600]);
}

#[test]
fn messages_are_counted_where_recipients_can_be_read_or_the_call_has_one() {
    let rules = shipped();
    for route in &rules.routes {
        // An import carries one message to one recipient.
        let counted = route.cost.is_some() || route.name.ends_with("-import");
        for id in route.editions.iter().flat_map(|edition| &edition.limits) {
            let limit = rules.limit(*id);
            assert!(limit.unit != Unit::Messages || counted, "{}", limit.name);
        }
    }
}
