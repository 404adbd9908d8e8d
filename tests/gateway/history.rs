//! Hours of the message history that an app's plan does not keep.

use serde_json::json;

use crate::door::soon;
use crate::harness::{Answer, Gateway, Start};

const APPS: &str = "[[app]]\nnames = [\"Free#App\", \"freeid\"]\nplan = \"free\"\n\
                    [[app]]\nnames = \"big#app\"\nplan = \"enterprise\"\nhistory_days = 400\n\
                    [[app]]\nnames = \"plain#app\"\n";

fn gateway(routes: &str, args: &[&str]) -> Gateway {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("apps.toml");
    std::fs::write(&path, APPS).unwrap();
    let mut all = vec!["--apps", path.to_str().unwrap()];
    all.extend(["--trusted-proxy", "127.0.0.0/8"]);
    all.extend(args);
    Start {
        routes,
        args: &all,
        ..Start::default()
    }
    .start()
}

/// The UTC hour of so many days ago.
fn hour(days: i64) -> String {
    let then = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(24 * days);
    then.strftime("%Y%m%d%H").to_string()
}

fn get(gateway: &Gateway, app: &str, hour: &str) -> Answer {
    gateway.call("GET", &format!("/{app}/chatmessages/{hour}"), "")
}

fn refused(gateway: &Gateway, plan: &str) -> f64 {
    let label = format!("plan=\"{plan}\"");
    gateway.metric("floodgate_history_refused_total", &[&label])
}

#[test]
fn an_hour_that_is_not_kept_never_reaches_the_backend() {
    let gateway = gateway("", &[]);
    let (gone, kept) = (hour(4), hour(2));
    for app in ["free/app", "app-id/FreeID"] {
        let answer = get(&gateway, app, &gone);
        assert_eq!(answer.status, 404, "{app}");
        let (error, description) = answer.error();
        assert_eq!(error, "illegal_argument");
        assert_eq!(
            description,
            format!(
                "illegal arguments: appkey: free#app, time: {gone}, maybe chat message history is expired or unstored"
            )
        );
        assert_eq!(
            answer.json()["exception"],
            "java.lang.IllegalArgumentException"
        );
        assert_eq!(answer.header("ratelimit"), None, "its app was not charged");
    }
    assert_eq!(gateway.backend().count(), 0);
    assert_eq!(refused(&gateway, "free"), 2.0);
    let rejects = ["route=\"chatmessages-one\"", "verb=\"reject\""];
    assert_eq!(gateway.metric("floodgate_decisions_total", &rejects), 2.0);

    assert_eq!(get(&gateway, "free/app", &kept).status, 200);
    assert_eq!(get(&gateway, "app-id/freeid", &kept).status, 200);
    assert_eq!(gateway.backend().count(), 2);
    assert_eq!(refused(&gateway, ""), 0.0);
    soon("all lines", || gateway.log().lines().count() >= 4);
    let log = gateway.log();
    assert_eq!(log.matches("\"history not kept\"").count(), 2, "{log}");
}

#[test]
fn other_apps_other_hours_and_what_is_no_hour_go_on() {
    let gateway = gateway("", &[]);
    let gone = hour(4);
    for app in ["plain/app", "un/known", "app-id/unknown", "big/app"] {
        assert_eq!(get(&gateway, app, &gone).status, 200, "{app}");
    }
    for time in [
        "2020-01-01",
        "20200101",
        "2020013200",
        "9999123123",
        "latest",
    ] {
        assert_eq!(get(&gateway, "free/app", time).status, 200, "{time}");
    }
    assert_eq!(gateway.backend().count(), 9);
    // Its own figure goes over its plan's.
    let kept = hour(399);
    assert_eq!(get(&gateway, "big/app", &kept).status, 200);
    assert_eq!(get(&gateway, "big/app", &hour(401)).status, 404);
    assert_eq!(refused(&gateway, "own"), 1.0);
    let last = gateway.backend().requests().pop().unwrap();
    assert_eq!(last.target, format!("/big/app/chatmessages/{kept}"));
}

#[test]
fn such_a_call_costs_its_address_a_refusal_and_its_app_nothing() {
    let gateway = gateway("[ip]\nrejected = [\"3/3600s\"]\n", &[]);
    let gone = hour(4);
    let statuses: Vec<u16> = (0..5)
        .map(|_| get(&gateway, "free/app", &gone).status)
        .collect();
    assert_eq!(statuses, [404, 404, 404, 429, 429]);
    let charged = |limit: &str| gateway.metric("floodgate_units_charged_total", &[limit]);
    assert_eq!(charged("\"rejected:"), 3.0);
    assert_eq!(charged("\"chatmessages-one:"), 0.0);
    assert_eq!(refused(&gateway, "free"), 3.0);
    assert_eq!(get(&gateway, "free/app", &hour(2)).status, 200);
    assert_eq!(charged("\"chatmessages-one:"), 1.0);
}

#[test]
fn nobody_is_told_without_a_token() {
    let gateway = gateway("", &[]);
    let path = format!("/free/app/chatmessages/{}", hour(4));
    let answer = gateway
        .connect()
        .call("GET", &path, &["Authorization: -"], "");
    assert_eq!(answer.status, 401);
    let head = gateway.connect().call("HEAD", &path, &[], "");
    assert_eq!((head.status, head.body.len()), (404, 0));
    assert_eq!(gateway.backend().count(), 0);
}

#[test]
fn figures_status_and_words_can_be_changed() {
    let routes = "[history]\nstatus = 410\nerror = \"gone\"\nexception = \"GoneException\"\n\
                  description = \"{time} of {app} is \\\"gone\\\" {x}\"\nv3 = { free = 9 }\n";
    let changed = gateway(routes, &[]);
    let gone = hour(10);
    assert_eq!(get(&changed, "free/app", &hour(8)).status, 200);
    let answer = get(&changed, "free/app", &gone);
    assert_eq!(answer.status, 410);
    let (error, description) = answer.error();
    assert_eq!(error, "gone");
    assert_eq!(description, format!("{gone} of free#app is \"gone\" {{x}}"));
    assert_eq!(answer.json()["exception"], "GoneException");
    let problem = gateway("", &["--answers", "problem"]);
    let answer = get(&problem, "free/app", &gone);
    assert_eq!(answer.json()["status"], json!(404));
}

#[test]
fn reported_hours_are_counted_and_pass() {
    let gateway = gateway("[history]\nmode = \"report\"\n", &[]);
    assert_eq!(get(&gateway, "free/app", &hour(4)).status, 200);
    assert_eq!(get(&gateway, "free/app", &hour(2)).status, 200);
    let labels = ["route=\"chatmessages-one\"", "limit=\"history\""];
    assert_eq!(gateway.metric("floodgate_reported_total", &labels), 1.0);
    assert_eq!(refused(&gateway, "free"), 0.0);
}
