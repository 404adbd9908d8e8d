//! Units that bought nothing go back, once; slots are free however a call ends.

use std::net::TcpListener;
use std::time::Duration;

use crate::ROUTES;
use crate::door::soon as wait_for;
use crate::harness::{Connection, Gateway, Start, start};

/// Each bad token reaches the backend.
fn gateway(routes: &str) -> Gateway {
    Start {
        routes,
        args: &["--bad-token-memory", "off"],
        ..Start::default()
    }
    .start()
}

#[test]
fn a_401_gives_the_app_its_unit_back_and_charges_the_address() {
    let gateway = gateway(&format!("{ROUTES}\n[ip]\nunauthorized = [\"4/3600s\"]\n"));
    let bad = |path: &str| {
        gateway
            .connect()
            .call("GET", path, &["Authorization: Bearer bad"], "")
            .status
    };
    for _ in 0..4 {
        assert_eq!(bad("/o/a/t/user/eve"), 401);
    }
    // The address has used up its refusals, the app has lost nothing: per user 2, and yet 4 calls.
    assert_eq!(bad("/o/a/t/user/eve"), 429);
    wait_for("every refund", || {
        gateway.metric("floodgate_units_refunded_total", &["t-user", ":user"]) == 4.0
    });
    assert_eq!(
        gateway.metric("floodgate_units_charged_total", &["t-user", ":user"]),
        4.0
    );
}

#[test]
fn an_unreachable_upstream_costs_nothing() {
    let closed = {
        let probe = TcpListener::bind("127.0.0.1:0").expect("a port");
        probe.local_addr().expect("an address")
    };
    let gateway = Start {
        routes: ROUTES,
        upstream: Some(closed),
        ..Start::default()
    }
    .start();
    for _ in 0..10 {
        let answer = gateway.call("GET", "/o/a/t/app", "");
        assert_eq!(answer.status, 502);
        assert_eq!(answer.error().0, "bad_gateway");
    }
    wait_for("every refund", || {
        gateway.metric("floodgate_units_refunded_total", &["t-app", ":app"]) >= 10.0
    });
}

#[test]
fn a_silent_upstream_is_a_504_and_has_cost_its_unit() {
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let upstream = silent.local_addr().expect("an address");
    let gateway = Start {
        routes: ROUTES,
        upstream: Some(upstream),
        args: &["--read-timeout", "200ms"],
        ..Start::default()
    }
    .start();
    let answer = gateway.call("GET", "/o/a/t/app", "");
    assert_eq!(answer.status, 504);
    assert_eq!(answer.error().0, "gateway_timeout");
    assert_eq!(
        gateway.metric("floodgate_units_refunded_total", &["t-app"]),
        0.0
    );
}

#[test]
fn a_slot_is_held_until_the_response_and_then_free() {
    let gateway = gateway(ROUTES);
    let mut slow = gateway.connect();
    slow.send_call("POST", "/o/a/t/slot", &["x-standin-delay-ms: 6000"], "{}");
    wait_for("the slot", || {
        gateway.metric("floodgate_task_slots_in_use", &[]) >= 1.0
    });
    let denied = gateway.call("POST", "/o/a/t/slot", "{}");
    assert_eq!(denied.status, 403);
    assert_eq!(
        denied.error(),
        ("LimitException".to_owned(), "limit request".to_owned())
    );
    assert_eq!(slow.read_answer("POST").status, 200);
    wait_for("a free slot", || {
        gateway.metric("floodgate_task_slots_in_use", &[]) == 0.0
    });
    assert_eq!(gateway.call("POST", "/o/a/t/slot", "{}").status, 200);
}

/// Closes with a reset instead of an end.
fn reset(connection: Connection) {
    connection.reset();
}

#[test]
fn a_caller_that_leaves_early_pays_what_the_status_says() {
    for leave in [drop::<Connection>, reset] {
        let gateway = gateway(ROUTES);
        let early = |token: &str, body: &str| {
            let token = format!("Authorization: Bearer {token}");
            let mut connection = gateway.connect();
            let wishes = [&*token, "x-standin-delay-ms: 500"];
            let before = gateway.backend().count();
            connection.send_call("POST", "/o/a/t/messages", &wishes, body);
            wait_for("its call", || gateway.backend().count() > before);
            leave(connection);
        };
        for n in 1..=3_u8 {
            early("bad", r#"{"to":["a","b","c"]}"#);
            wait_for("the refund", || {
                gateway.metric("floodgate_units_refunded_total", &["t-messages", ":app"])
                    == 3.0 * f64::from(n)
            });
        }
        // Each has cost its address a refusal, per second and per minute.
        wait_for("the last one's", || {
            gateway.metric("floodgate_units_charged_total", &["unauthorized"]) == 6.0
        });
        early("good", r#"{"to":["a"]}"#);
        wait_for("its end", || {
            gateway.log().matches("t-messages").count() == 4
        });
        let app = |name| gateway.metric(name, &["t-messages", ":app"]);
        assert_eq!(app("floodgate_units_charged_total"), 10.0);
        assert_eq!(app("floodgate_units_refunded_total"), 9.0);
    }
}

#[test]
fn a_call_that_is_left_incomplete_costs_its_address_and_not_the_app() {
    let gateway = gateway(&format!(
        "{ROUTES}\n[[route]]\nname = \"t-up\"\ncalls = [\"POST /t/up\"]\nv3 = {{ limits = [\"50/s\"], ip_copy = false }}\n[ip]\nunauthorized = [\"4/3600s\"]\n"
    ));
    for n in 1..=4_u8 {
        let mut connection = gateway.connect();
        connection.send(b"POST /o/a/t/up HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer bad\r\nContent-Length: 100\r\n\r\n{");
        wait_for("its charge", || {
            gateway.metric("floodgate_units_charged_total", &["t-up"]) == f64::from(n)
        });
        drop(connection);
        wait_for("the refund", || {
            gateway.metric("floodgate_units_refunded_total", &["t-up"]) == f64::from(n)
        });
    }
    let denied = gateway.call("POST", "/o/a/t/up", "{}");
    assert_eq!(denied.status, 429);
    assert_eq!(
        denied.json()["limit"],
        "unauthorized:calls/60min:ip",
        "{}",
        denied.text()
    );
}

#[test]
fn a_client_that_goes_away_frees_its_slot_when_the_backend_has_answered() {
    let gateway = gateway(ROUTES);
    let mut slow = gateway.connect();
    slow.send_call("POST", "/o/a/t/slot", &["x-standin-delay-ms: 6000"], "{}");
    wait_for("the slot", || {
        gateway.metric("floodgate_task_slots_in_use", &[]) >= 1.0
    });
    drop(slow);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(gateway.call("POST", "/o/a/t/slot", "{}").status, 403);
    wait_for("a free slot", || {
        gateway.metric("floodgate_task_slots_in_use", &[]) == 0.0
    });
    assert_eq!(gateway.call("POST", "/o/a/t/slot", "{}").status, 200);
}

#[test]
fn an_upstream_that_breaks_off_frees_the_slot() {
    let gateway = gateway(ROUTES);
    let answer = gateway
        .connect()
        .call("POST", "/o/a/t/slot", &["x-standin-close: before"], "{}");
    assert_eq!(answer.status, 502);
    wait_for("a free slot", || {
        gateway.metric("floodgate_task_slots_in_use", &[]) == 0.0
    });
}

#[test]
fn an_answer_that_names_no_task_frees_the_slot() {
    let gateway = gateway(
        r#"
[[route]]
name = "t-task"
calls = ["POST /push/t/task"]
v3 = { limits = [{ rate = "1 tasks", hold = "task" }] }
"#,
    );
    for _ in 0..3 {
        assert_eq!(gateway.call("POST", "/o/a/push/t/task", "{}").status, 200);
        wait_for("a free slot", || {
            gateway.metric("floodgate_task_slots_in_use", &[]) == 0.0
        });
    }
}

#[test]
fn push_tasks_of_v2_run_three_at_a_time_and_are_reported_done_by_id() {
    let gateway = Start {
        routes: &shipped_push_task_held(),
        args: &["--edition", "v2"],
        ..Start::default()
    }
    .start();
    let mut ids = Vec::new();
    for _ in 0..3 {
        let answer = gateway.call("POST", "/o/a/push/task", "{}");
        assert_eq!(answer.status, 200, "{}", answer.text());
        ids.push(answer.json()["data"].clone());
    }
    let denied = gateway.call("POST", "/o/a/push/task", "{}");
    assert_eq!(
        (denied.status, denied.error().0.as_str()),
        (403, "LimitException")
    );
    wait_for("three slots", || {
        gateway.metric("floodgate_task_slots_in_use", &[]) == 3.0
    });

    let done = |id: &str| {
        Connection::to(gateway.admin)
            .call("DELETE", &format!("/apps/o%23a/tasks/{id}"), &[], "")
            .status
    };
    assert_eq!(done("no-such-task"), 404);
    // A slot is its task's when its call has ended, shortly after the answer.
    wait_for("the task", || done(&ids[0].to_string()) == 200);
    assert_eq!(done(&ids[0].to_string()), 404);
    assert_eq!(gateway.call("POST", "/o/a/push/task", "{}").status, 200);
}

#[test]
fn a_task_whose_caller_left_early_keeps_its_slot_under_its_name() {
    let gateway = Start {
        routes: &shipped_push_task_held(),
        args: &["--edition", "v2"],
        ..Start::default()
    }
    .start();
    // From here on its token is known to be good.
    assert_eq!(gateway.call("GET", "/o/a/users/known", "").status, 200);
    for leave in [drop::<Connection>, reset] {
        let mut connection = gateway.connect();
        let before = gateway.backend().count();
        connection.send_call("POST", "/o/a/push/task", &["x-standin-delay-ms: 500"], "{}");
        wait_for("its call", || gateway.backend().count() > before);
        leave(connection);
    }
    wait_for("their ends", || {
        gateway.log().matches("push/task").count() == 2
    });
    assert_eq!(gateway.metric("floodgate_task_slots_in_use", &[]), 2.0);
    let id = gateway.call("POST", "/o/a/push/task", "{}").json()["data"]
        .as_u64()
        .expect("a task");
    for id in [id - 1, id - 2, id] {
        let path = format!("/apps/o%23a/tasks/{id}");
        let done = || Connection::to(gateway.admin).call("DELETE", &path, &[], "");
        wait_for(&path, || done().status == 200);
    }
}

#[test]
fn a_task_that_was_never_answered_keeps_its_slot() {
    let gateway = Start {
        routes: &shipped_push_task_held(),
        args: &["--edition", "v2"],
        ..Start::default()
    }
    .start();
    let mut connection = gateway.connect();
    let wishes = ["x-standin-close: before"];
    let answer = connection.call("POST", "/o/a/push/task", &wishes, "{}");
    assert_eq!(answer.status, 502);
    let id = answer.header("x-request-id").expect("an ID");
    wait_for("its end", || gateway.log().contains("push/task"));
    assert_eq!(gateway.metric("floodgate_task_slots_in_use", &[]), 1.0);
    let path = format!("/apps/o%23a/tasks/call:{id}");
    let done = Connection::to(gateway.admin).call("DELETE", &path, &[], "");
    assert_eq!(done.status, 200);
}

#[test]
fn a_finished_task_names_its_app_by_any_spelling() {
    let gateway = Start {
        routes: &shipped_push_task_held(),
        args: &["--edition", "v2"],
        ..Start::default()
    }
    .start();
    for (path, app) in [
        ("/%E4%B8%AD/a,b", "%E4%B8%AD%23a%2Cb"),
        ("/%E4%B8%AD/x%2Cy", "%e4%b8%ad%23x,y"),
        ("/a%23b/c", "a%2523b%23c"),
        ("/app-id/%E4%B8%AD", "%E4%B8%AD"),
    ] {
        let answer = gateway.call("POST", &format!("{path}/push/task"), "{}");
        assert_eq!(answer.status, 200, "{path}");
        let done = format!("/apps/{app}/tasks/{}", answer.json()["data"]);
        wait_for(&done, || {
            Connection::to(gateway.admin)
                .call("DELETE", &done, &[], "")
                .status
                == 200
        });
    }
    assert_eq!(gateway.metric("floodgate_task_slots_in_use", &[]), 0.0);
}

/// v2's own figures for push/task, with slots that outlive the response.
fn shipped_push_task_held() -> String {
    let table: toml::Table = floodgate::spec::SHIPPED.parse().expect("the shipped table");
    let name = table["route"]
        .as_array()
        .expect("routes")
        .iter()
        .find(|route| {
            route["calls"]
                .as_array()
                .is_some_and(|c| c.iter().any(|c| c.as_str() == Some("POST /push/task")))
        })
        .and_then(|route| route["name"].as_str())
        .expect("push/task");
    format!(
        "[[route]]\nname = \"{name}\"\nv2 = {{ limits = [\"50/min\", {{ rate = \"3 tasks\", hold = \"task\" }}] }}\n"
    )
}

#[test]
fn a_report_of_a_task_without_a_slot_says_why() {
    let gateway = start(&[]);
    let answer = Connection::to(gateway.admin).call("DELETE", "/apps/o%23a/tasks/1", &[], "");
    assert_eq!(answer.status, 404);
    assert!(
        answer.json()["error"]
            .as_str()
            .is_some_and(|e| e.contains("hold"))
    );
}
