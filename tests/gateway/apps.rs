//! Known apps: their names, figures and editions, where they may be called from, who is unknown.

use serde_json::{Value, json};

use crate::ROUTES;
use crate::door::soon;
use crate::harness::{Answer, Connection, Gateway, Start};

const TOKEN: &str = "an-admin-token-of-tests";

/// A gateway that knows these apps, behind a proxy that it trusts.
fn gateway(apps: &str, args: &[&str]) -> Gateway {
    by_routes(ROUTES, apps, args)
}

fn by_routes(routes: &str, apps: &str, args: &[&str]) -> Gateway {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("apps.toml");
    std::fs::write(&path, apps).unwrap();
    let mut all = vec!["--apps", path.to_str().unwrap(), "--admin-token", TOKEN];
    all.extend(["--trusted-proxy", "127.0.0.0/8"]);
    all.extend(args);
    Start {
        routes,
        args: &all,
        ..Start::default()
    }
    .start()
}

fn admitted(gateway: &Gateway, method: &str, path: &str, calls: usize) -> usize {
    let mut connection = gateway.connect();
    (0..calls)
        .filter(|_| connection.call(method, path, &[], "").status == 200)
        .count()
}

fn from(gateway: &Gateway, ip: &str, path: &str) -> Answer {
    let header = format!("X-Forwarded-For: {ip}");
    gateway.connect().call("GET", path, &[&header], "")
}

fn ask(gateway: &Gateway, method: &str, path: &str, body: &Value) -> Answer {
    let token = format!("Authorization: Bearer {TOKEN}");
    let body = match body {
        Value::Null => String::new(),
        body => body.to_string(),
    };
    Connection::to(gateway.admin).call(method, path, &[&token], &body)
}

#[test]
fn both_names_of_an_app_share_its_counters() {
    let gateway = gateway("[[app]]\nnames = [\"Org#App\", \"ID1\"]\n", &[]);
    assert_eq!(admitted(&gateway, "GET", "/org/app/t/app", 2), 2);
    assert_eq!(admitted(&gateway, "GET", "/app-id/id1/t/app", 4), 1);
    assert_eq!(admitted(&gateway, "GET", "/ORG/app/t/app", 1), 0);
    assert_eq!(admitted(&gateway, "GET", "/app-id/Id1/t/user/Eve", 1), 1);
    assert_eq!(admitted(&gateway, "GET", "/org/app/t/user/eve", 3), 1);
    let denied = gateway.call("GET", "/app-id/id1/t/app", "");
    assert_eq!(denied.json()["app"], "org#app", "the first name");
    soon("all lines", || gateway.log().lines().count() >= 12);
    let log = gateway.log();
    assert_eq!(log.matches("\"app\":\"org#app\"").count(), 12, "{log}");
    // Forwarded as it came.
    let last = gateway.backend().requests().pop().unwrap();
    assert_eq!(last.target, "/org/app/t/user/eve");
}

#[test]
fn the_admin_listener_knows_an_app_by_any_name() {
    let gateway = gateway(
        "[[app]]\nnames = [\"o#a\", \"id\"]\nlimits.t-app = \"5/3600s\"\n",
        &[],
    );
    let charge = |app: &str| {
        let body = json!({ "route": "t-app", "app": app });
        ask(&gateway, "POST", "/charge", &body).json()["left"].clone()
    };
    assert_eq!(charge("ID"), 4);
    assert_eq!(charge("o#a"), 3);
    assert_eq!(admitted(&gateway, "GET", "/app-id/id/t/app", 9), 3);
    let top = ask(
        &gateway,
        "GET",
        "/top?limit=t-app:calls/60min:app",
        &Value::Null,
    )
    .json();
    assert_eq!(top["top"].as_array().unwrap().len(), 1, "{top}");
    let row = &top["top"][0];
    assert_eq!(row["app"], "o#a");
    assert_eq!(
        (&row["quota"], &row["used"], &row["left"]),
        (&json!(5), &json!(5), &json!(0))
    );
    let reset = ask(&gateway, "POST", "/counters/reset", &json!({ "app": "Id" }));
    assert_eq!(reset.status, 200, "{}", reset.text());
    assert_eq!(admitted(&gateway, "GET", "/o/a/t/app", 9), 5);
}

#[test]
fn a_figure_of_its_own_holds_and_is_told() {
    let gateway = gateway(
        "[[app]]\nnames = \"up#up\"\nlimits.t-app = \"5/3600s\"\n\
         [[app]]\nnames = \"down\"\nlimits.t-app = \"2/60min\"\nlimits.t-messages = \"4/60min\"\n\
         [[app]]\nnames = \"same\"\nlimits.t-user = \"50/s\"\n",
        &["--edition", "current"],
    );
    // Under v3 the figure is also one per address: raised with it.
    assert_eq!(admitted(&gateway, "GET", "/up/up/t/app", 9), 5);
    assert_eq!(admitted(&gateway, "GET", "/app-id/down/t/app", 9), 2);
    assert_eq!(admitted(&gateway, "GET", "/app-id/same/t/app", 9), 3);
    let denied = gateway.call("GET", "/up/up/t/app", "");
    assert_eq!(denied.status, 429);
    let policy = denied.header("ratelimit-policy").unwrap();
    assert_eq!(policy, "\"t-app:calls/60min:app\";q=5;w=3600");
    let send = |to: &str| {
        gateway.call(
            "POST",
            "/app-id/down/t/messages",
            &format!("{{\"to\":{to}}}"),
        )
    };
    assert_eq!(send("[1,2,3,4,5]").status, 403, "never");
    let sent = send("[1,2,3]");
    assert_eq!(sent.status, 200);
    assert_eq!(
        sent.header("ratelimit-policy").unwrap(),
        "\"t-messages:messages/60min:app\";q=4;w=3600;qu=\"messages\""
    );
    assert!(sent.header("ratelimit").unwrap().contains(";r=1;"));
}

#[test]
fn an_app_has_its_own_edition_in_both_forms() {
    let gateway = gateway(
        "[[app]]\nnames = [\"old#old\", \"old\"]\nedition = \"v3\"\n\
         [[app]]\nnames = [\"two#two\", \"two\"]\n",
        &[],
    );
    // By `v3` the App ID form has a copy per address, which other apps have used up.
    assert_eq!(admitted(&gateway, "GET", "/some/app/t/app", 3), 3);
    assert_eq!(admitted(&gateway, "GET", "/app-id/old/t/app", 1), 0);
    assert_eq!(admitted(&gateway, "GET", "/old/old/t/app", 1), 0);
    // Known by both forms, it is served by `v4` in both, which has none.
    assert_eq!(admitted(&gateway, "GET", "/two/two/t/app", 1), 1);
    assert_eq!(admitted(&gateway, "GET", "/app-id/two/t/app", 9), 2);
}

#[test]
fn an_app_may_be_called_from_where_it_allows_and_others_pay_for_their_calls() {
    // As many refusals as the shipped table has for a second, and so long that none comes free.
    let gateway = by_routes(
        &format!("{ROUTES}\n[ip]\nunauthorized = [\"20/3600s\"]\n"),
        "[[app]]\nnames = \"o#a\"\nallow = [\"192.0.2.0/24\", \"2001:db8:1::/48\", \"::ffff:198.51.100.7\"]\n\
         [[app]]\nnames = \"free\"\n",
        &[],
    );
    for ip in [
        "192.0.2.9",
        "::ffff:192.0.2.10",
        "2001:db8:1:7::1",
        "198.51.100.7",
    ] {
        assert_eq!(from(&gateway, ip, "/o/a/t/second").status, 200, "{ip}");
    }
    let outside = from(&gateway, "203.0.113.1", "/o/a/t/second");
    assert_eq!(outside.status, 403);
    let (error, description) = outside.error();
    assert_eq!(error, "forbidden_op");
    assert_eq!(description, "This app may not be called from this address.");
    for ip in ["2001:db8:2::1", "127.0.0.1", "::ffff:203.0.113.1"] {
        assert_eq!(from(&gateway, ip, "/o/a/t/app").status, 403, "{ip}");
    }
    assert_eq!(gateway.backend().count(), 4);
    assert_eq!(
        gateway.metric("floodgate_units_charged_total", &["\"t-app:"]),
        0.0,
        "nothing of the app's"
    );
    // Its refusals are counted as 401s are, and then it reaches no app at all.
    let statuses: Vec<u16> = (0..40)
        .map(|_| from(&gateway, "203.0.113.50", "/o/a/t/app").status)
        .collect();
    assert!(statuses.ends_with(&[429]), "{statuses:?}");
    assert_eq!(
        from(&gateway, "203.0.113.50", "/app-id/free/t/second").status,
        429
    );
    assert_eq!(
        from(&gateway, "203.0.113.51", "/app-id/free/t/second").status,
        200
    );
}

#[test]
fn a_suspended_app_is_answered_here() {
    let gateway = gateway(
        "[[app]]\nnames = [\"o#a\", \"id\"]\nsuspended = true\n",
        &[],
    );
    for path in ["/O/A/t/app", "/app-id/id/users/alice", "/o/a/nowhere"] {
        let answer = gateway.call("GET", path, "");
        assert_eq!(answer.status, 403, "{path}");
        let (error, description) = answer.error();
        assert_eq!(
            (&*error, &*description),
            ("forbidden_op", "This app is suspended.")
        );
    }
    assert_eq!(gateway.backend().count(), 0);
    let charged = |limit: &str| gateway.metric("floodgate_units_charged_total", &[limit]);
    assert_eq!(charged("unauthorized:calls/s:ip"), 3.0);
    assert_eq!(charged(":app\""), 0.0);
    assert_eq!(admitted(&gateway, "GET", "/o/b/t/app", 1), 1);
    soon("all lines", || gateway.log().lines().count() >= 4);
    assert_eq!(gateway.log().matches("\"app suspended\"").count(), 3);
}

#[test]
fn an_unknown_app_is_let_in_unless_it_is_told_otherwise() {
    let known = "[[app]]\nnames = [\"o#a\", \"id\"]\n";
    assert_eq!(admitted(&gateway(known, &[]), "GET", "/x/y/t/app", 1), 1);
    let strict = gateway(known, &["--unknown-apps", "reject"]);
    assert_eq!(admitted(&strict, "GET", "/o/a/t/app", 1), 1);
    assert_eq!(admitted(&strict, "GET", "/app-id/ID/t/app", 1), 1);
    for path in ["/x/y/t/app", "/app-id/idd/t/app", "/app-id/o%23a/t/app"] {
        let answer = strict.call("GET", path, "");
        assert_eq!(answer.status, 404, "{path}");
        let (error, description) = answer.error();
        assert_eq!(error, "organization_application_not_found");
        let said = format!("Could not find application for org/app from URI: {path}");
        assert_eq!(description, said);
    }
    assert_eq!(strict.backend().count(), 2);
    let charged = |limit: &str| strict.metric("floodgate_units_charged_total", &[limit]);
    assert_eq!(charged("rejected:calls/s:ip"), 3.0);
    assert_eq!(charged("t-app:calls/60min:app"), 2.0);
}
