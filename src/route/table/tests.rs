use super::*;

fn table(calls: &[(&'static str, &'static str)]) -> Result<RouteTable, Vec<TableError>> {
    RouteTable::build(
        calls
            .iter()
            .enumerate()
            .map(|(i, (method, path))| (RouteId(i), *method, *path)),
    )
}

fn id(found: &Found<'_>) -> Option<usize> {
    match found {
        Found::Route { id, .. } | Found::Respelt { id, .. } => Some(id.0),
        _ => None,
    }
}

#[test]
fn static_segments_win_and_a_user_of_that_name_is_served() {
    let table = table(&[
        ("POST", "/users/batch/status"),
        ("GET", "/users/{username}/status"),
        ("GET", "/users/{username}"),
        ("GET", "/metadata/user/capacity"),
        ("GET", "/metadata/user/{username}"),
        ("PUT", "/metadata/user/{username}"),
    ])
    .unwrap();
    assert_eq!(id(&table.find("POST", "/users/batch/status")), Some(0));
    assert_eq!(
        table.find("GET", "/users/batch/status"),
        Found::Route {
            id: RouteId(1),
            user: Some("batch")
        }
    );
    assert_eq!(
        table.find("GET", "/users/batch"),
        Found::Route {
            id: RouteId(2),
            user: Some("batch")
        }
    );
    assert_eq!(id(&table.find("GET", "/metadata/user/capacity")), Some(3));
    assert_eq!(id(&table.find("PUT", "/metadata/user/capacity")), Some(5));
}

#[test]
fn backtracking_leaves_a_static_prefix_that_leads_nowhere() {
    let table = table(&[("GET", "/a/b/c"), ("GET", "/a/{x}/d"), ("GET", "/{y}/b/e")]).unwrap();
    assert_eq!(id(&table.find("GET", "/a/b/d")), Some(1));
    assert_eq!(id(&table.find("GET", "/a/b/e")), Some(2));
    assert_eq!(table.find("GET", "/a/b/f"), Found::Unmatched);
}

#[test]
fn head_is_looked_up_as_get_and_405_lists_what_is_allowed() {
    let table = table(&[("GET", "/users"), ("POST", "/users"), ("DELETE", "/users")]).unwrap();
    assert_eq!(id(&table.find("HEAD", "/users")), Some(0));
    assert_eq!(
        table.find("PATCH", "/users"),
        Found::MethodNotAllowed("DELETE, GET, HEAD, OPTIONS, POST".to_owned())
    );
    assert_eq!(table.find("GET", ""), Found::Unmatched);
}

#[test]
fn the_user_is_the_parameter_of_that_name_wherever_it_stands() {
    let table = table(&[("PUT", "/rooms/{room}/users/{username}/tag/{tag}")]).unwrap();
    assert_eq!(
        table.find("PUT", "/rooms/1/users/Al%2Cice/tag/x"),
        Found::Route {
            id: RouteId(0),
            user: Some("Al%2Cice")
        }
    );
}

#[test]
fn another_spelling_of_a_route_is_that_route() {
    let table = table(&[
        ("POST", "/messages/users"),
        ("GET", "/users/{username}/status"),
        ("GET", "/Polls"),
    ])
    .unwrap();
    for tail in [
        "/MESSAGES/users",
        "/messages/Users",
        "/messages/users%20",
        "/messages/users.json",
        "/messages/users%20.json",
        "/messages/users.",
        "/messages/users%3Bx=1",
        "/messages/users%3Fx=1",
        "/messages/%EF%BD%95sers",
        "/me%E2%80%8Bssages/users",
        "/me%C5%BF%C5%BFages/users",
    ] {
        assert_eq!(id(&table.find("POST", tail)), Some(0), "{tail}");
    }
    assert_eq!(id(&table.find("GET", "/polls")), Some(2));
    assert_eq!(
        table.find("GET", "/USERS/Al.Ice%20/status"),
        Found::Respelt {
            id: RouteId(1),
            user: Some("Al.Ice%20")
        }
    );
    for tail in [
        "/message/users",
        "/messages/users/x",
        "",
        "/messages",
        "/messages/usersx",
    ] {
        assert_eq!(table.find("POST", tail), Found::Unmatched, "{tail}");
    }
}

#[test]
fn no_value_of_a_parameter_is_another_spelling_of_a_fixed_segment() {
    let table = table(&[
        ("GET", "/rooms/super_admin"),
        ("GET", "/rooms/{room}"),
        ("GET", "/users/{username}"),
        ("DELETE", "/rooms/{room}"),
    ])
    .unwrap();
    for tail in [
        "/rooms/super_admin",
        "/rooms/Super_Admin",
        "/rooms/super_admin%20",
    ] {
        assert_eq!(id(&table.find("GET", tail)), Some(0), "{tail}");
    }
    for tail in ["/rooms/1", "/rooms/Super", "/Rooms/A"] {
        assert_eq!(id(&table.find("GET", tail)), Some(1), "{tail}");
    }
    assert_eq!(id(&table.find("GET", "/users/Super_Admin")), Some(2));
    assert_eq!(id(&table.find("DELETE", "/rooms/Super_Admin")), Some(3));
    // Of these values nothing is left in the plainest spelling.
    for tail in ["/USERS/.x", "/USERS/%E2%80%8B", "/USERS/%3Bx", "/USERS/%20"] {
        assert_eq!(id(&table.find("GET", tail)), Some(2), "{tail}");
    }
}

#[test]
fn all_mistakes_are_told_at_once() {
    let errors = table(&[
        ("GET", "users"),
        ("GET", "/users/"),
        ("GET", "/u/{a}{b}"),
        ("GET", "/u/{*rest}"),
        ("GET", "/u/{username}/x/{username}"),
        ("GET", "/same/{a}"),
        ("GET", "/same/{b}"),
        ("GET", "/a//b"),
    ])
    .unwrap_err();
    assert_eq!(
        errors.iter().map(|e| e.index).collect::<Vec<_>>(),
        [0, 1, 2, 3, 4, 6, 7]
    );
    assert!(errors[5].reason.contains("GET /same/{a}"), "{}", errors[5]);
}
