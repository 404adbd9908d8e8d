//! Each kind of limit admits its figure and not one more.

use crate::ROUTES;
use crate::harness::{Gateway, Start};

fn gateway() -> Gateway {
    Start {
        routes: ROUTES,
        ..Start::default()
    }
    .start()
}

fn admitted(gateway: &Gateway, method: &str, path: &str, body: &str, calls: usize) -> usize {
    let mut connection = gateway.connect();
    (0..calls)
        .filter(|_| connection.call(method, path, &[], body).status == 200)
        .count()
}

#[test]
fn an_app_gets_its_figure_and_no_other_app_pays_for_it() {
    let gateway = gateway();
    assert_eq!(admitted(&gateway, "GET", "/o/one/t/app", "", 6), 3);
    // The per-IP copy of v3 is shared by all apps of one address.
    assert_eq!(admitted(&gateway, "GET", "/o/two/t/app", "", 6), 0);
    assert_eq!(gateway.backend().count(), 3);
}

#[test]
fn an_app_is_one_whatever_its_letters_case() {
    let gateway = Start {
        routes: &ROUTES.replace(
            "v3 = { limits = [\"3/3600s\"] }",
            "v3 = { limits = [\"3/3600s\"], ip_copy = false }",
        ),
        ..Start::default()
    }
    .start();
    assert_eq!(admitted(&gateway, "GET", "/Org/App/t/app", "", 2), 2);
    assert_eq!(admitted(&gateway, "GET", "/org/app/t/app", "", 2), 1);
    assert_eq!(admitted(&gateway, "GET", "/org/other/t/app", "", 5), 3);
}

#[test]
fn a_user_gets_its_figure_whatever_its_spelling() {
    let gateway = gateway();
    assert_eq!(admitted(&gateway, "GET", "/o/a/t/user/Alice", "", 1), 1);
    assert_eq!(admitted(&gateway, "GET", "/o/a/t/user/%61lice", "", 1), 1);
    assert_eq!(admitted(&gateway, "GET", "/o/a/t/user/ALICE", "", 3), 0);
    assert_eq!(admitted(&gateway, "GET", "/o/a/t/user/bob", "", 3), 2);
    assert_eq!(admitted(&gateway, "GET", "/o/b/t/user/alice", "", 3), 2);
}

#[test]
fn an_app_and_a_user_are_one_whatever_is_escaped_and_the_path_goes_on_as_it_came() {
    let routes = ROUTES.replace(
        "v3 = { limits = [\"3/3600s\"] }",
        "v3 = { limits = [\"3/3600s\"], ip_copy = false }",
    );
    let gateway = Start {
        routes: &routes,
        ..Start::default()
    }
    .start();
    let paths = ["/o/a,b/t/app", "/o/a%2Cb/t/app", "/o/%61%2cb/t/app"];
    for path in paths {
        assert_eq!(admitted(&gateway, "GET", path, "", 1), 1, "{path}");
    }
    for path in paths {
        assert_eq!(admitted(&gateway, "GET", path, "", 1), 0, "{path}");
    }
    let forwarded: Vec<_> = gateway
        .backend()
        .requests()
        .into_iter()
        .map(|seen| seen.target)
        .collect();
    assert_eq!(
        forwarded,
        ["/o/a,b/t/app", "/o/a%2Cb/t/app", "/o/a%2Cb/t/app"]
    );
    // `#` joins org and app: escaped in either, it makes other apps.
    for path in ["/a%23b/c/t/app", "/a/b%23c/t/app"] {
        assert_eq!(admitted(&gateway, "GET", path, "", 3), 3, "{path}");
    }
    let user = ["/o/x/t/user/a,b", "/o/x/t/user/a%2Cb", "/o/x/t/user/A%2cB"];
    let of_user: Vec<_> = user
        .iter()
        .map(|path| admitted(&gateway, "GET", path, "", 1))
        .collect();
    assert_eq!(of_user, [1, 1, 0]);
}

#[test]
fn a_day_holds_its_figure() {
    let gateway = gateway();
    // A run over midnight sees two days.
    let admitted = admitted(&gateway, "POST", "/o/a/t/day", "", 5);
    assert!(admitted == 2 || admitted == 4, "{admitted}");
}

#[test]
fn a_group_shares_one_counter() {
    let gateway = gateway();
    assert_eq!(admitted(&gateway, "GET", "/o/a/t/first", "", 3), 3);
    assert_eq!(admitted(&gateway, "GET", "/o/a/t/second", "", 3), 1);
}

#[test]
fn messages_cost_their_recipients_all_or_nothing() {
    let gateway = gateway();
    let to = |n: usize| format!("{{\"to\":{:?},\"type\":\"txt\"}}", vec!["u"; n]);
    assert_eq!(admitted(&gateway, "POST", "/o/a/t/messages", &to(6), 1), 1);
    // 4 are left: 5 are denied and take none of them.
    assert_eq!(admitted(&gateway, "POST", "/o/a/t/messages", &to(5), 3), 0);
    assert_eq!(admitted(&gateway, "POST", "/o/a/t/messages", &to(4), 1), 1);
    assert_eq!(admitted(&gateway, "POST", "/o/a/t/messages", &to(1), 1), 0);
    assert_eq!(
        gateway.metric(
            "floodgate_units_charged_total",
            &["t-messages:messages", ":app"]
        ),
        10.0
    );
}

#[test]
fn a_cap_on_recipients_refuses_and_charges_nothing() {
    let gateway = gateway();
    let answer = gateway.call(
        "POST",
        "/o/a/t/messages",
        r#"{"to":["a","b","c","d","e","f","g"]}"#,
    );
    assert_eq!(answer.status, 400);
    assert_eq!(answer.error().1, "params to's size can't exceed limit 6");
    assert_eq!(
        gateway.metric("floodgate_units_charged_total", &["t-messages"]),
        0.0
    );
}

#[test]
fn a_directed_message_goes_to_one_group_and_costs_its_users() {
    let gateway = gateway();
    let path = "/app-id/x/messages/chatgroups/users";
    let send = |to: &str, users: usize| {
        let body = format!("{{\"to\":{to},\"users\":{:?}}}", vec!["u"; users]);
        let answer = gateway.call("POST", path, &body);
        match answer.status {
            200 => (200, String::new()),
            status => (status, answer.error().1),
        }
    };
    let refused = |why: &str| (400, why.to_owned());
    assert_eq!(send(r#"["g"]"#, 20), (200, String::new()));
    assert_eq!(
        send(r#"["g","h"]"#, 1),
        refused("params to's size can't exceed limit 1")
    );
    assert_eq!(
        send(r#"["g"]"#, 21),
        refused("params users's size can't exceed limit 20")
    );
    assert_eq!(send("[]", 1), refused("param to can't be empty"));
    assert_eq!(send(r#"["g"]"#, 0), refused("param users can't be empty"));
    assert_eq!(
        send(r#"["g"],"to":["g"]"#, 1),
        refused("Request body is invalid. Please check body is correct.")
    );
    assert_eq!(
        gateway.metric(
            "floodgate_units_charged_total",
            &["messages-chatgroups-users:messages"]
        ),
        20.0
    );
}

#[test]
fn an_address_gets_its_figure_across_apps() {
    let gateway = gateway();
    let paths = ["/o/a/t/ip", "/o/b/t/ip", "/o/c/t/ip", "/o/d/t/ip"];
    let admitted = paths
        .iter()
        .filter(|path| gateway.call("GET", path, "").status == 200)
        .count();
    assert_eq!(admitted, 3);
}

#[test]
fn options_is_forwarded_and_its_address_alone_pays() {
    let gateway = Start {
        routes: &format!("{ROUTES}\n[ip]\noptions = [\"2/3600s\"]\n"),
        args: &["--trusted-proxy", "127.0.0.0/8"],
        ..Start::default()
    }
    .start();
    let options = |path: &str, ip: &str| {
        let from = format!("X-Forwarded-For: {ip}");
        let headers = ["Authorization: -", &from];
        gateway.connect().call("OPTIONS", path, &headers, "").status
    };
    assert_eq!(options("/o/a/t/app", "192.0.2.1"), 200);
    assert_eq!(options("/o/b/no/such/path", "192.0.2.1"), 200);
    assert_eq!(options("/o/c/t/app", "192.0.2.1"), 429);
    assert_eq!(options("/o/c/t/app", "192.0.2.2"), 200);
    let seen = gateway.backend().requests();
    assert_eq!(seen.len(), 3);
    assert!(seen.iter().all(|request| request.method == "OPTIONS"));
    let charged = |limit: &str| gateway.metric("floodgate_units_charged_total", &[limit]);
    assert_eq!(charged("options:calls"), 3.0);
    assert_eq!(
        charged("t-app") + charged("unmatched") + charged("unauthorized"),
        0.0
    );
}

#[test]
fn a_known_app_keeps_its_figures_while_made_up_names_share_an_overflow() {
    let routes = r#"
[[route]]
name = "k-one"
calls = ["GET /k/one"]
v3 = { limits = ["3/3600s"], ip_copy = false }
[[route]]
name = "k-two"
calls = ["GET /k/two"]
v3 = { limits = ["3/3600s"], ip_copy = false }
"#;
    let gateway = Start {
        routes,
        args: &["--max-counters", "1000", "--trusted-proxy", "127.0.0.0/8"],
        ..Start::default()
    }
    .start();
    // The backend's 2xx makes it known.
    assert_eq!(gateway.call("GET", "/o/known/k/one", "").status, 200);
    let mut connection = gateway.connect();
    let mut made_up = |n: usize| {
        let from = format!("X-Forwarded-For: 10.0.{}.{}", n / 250, n % 250 + 1);
        let headers = ["x-standin-status: 404", &from];
        connection
            .call("GET", &format!("/o/made-up-{n}/k/two"), &headers, "")
            .status
    };
    let flood: Vec<u16> = (0..1500).map(&mut made_up).collect();
    // Above the bound they share three calls, and then have none.
    assert_eq!(flood[1400..], [429; 100]);
    assert_eq!(admitted(&gateway, "GET", "/o/known/k/two", "", 6), 3);
    assert_eq!(made_up(1500), 429);
}

#[test]
fn a_report_only_limit_lets_pass_and_counts() {
    let gateway = gateway();
    assert_eq!(admitted(&gateway, "GET", "/o/a/t/report", "", 4), 4);
    assert_eq!(
        gateway.metric("floodgate_reported_total", &["t-report"]),
        3.0
    );
}

#[test]
fn callers_without_a_token_never_reach_an_app_and_use_up_their_address_alone() {
    let gateway = Start {
        routes: &format!("{ROUTES}\n[ip]\nunauthorized = [\"2/3600s\"]\n"),
        ..Start::default()
    }
    .start();
    let no_token = |path: &str| {
        gateway
            .connect()
            .call("GET", path, &["Authorization: -"], "")
    };
    let answer = no_token("/o/a/t/app");
    assert_eq!(answer.status, 401);
    assert_eq!(
        answer.error(),
        (
            "unauthorized".to_owned(),
            "Unable to authenticate".to_owned()
        )
    );
    assert_eq!(no_token("/o/a/t/app").status, 401);
    assert_eq!(no_token("/o/a/t/app").status, 429);
    // A good token does not help an address that has used up its refusals.
    assert_eq!(gateway.call("GET", "/o/a/t/app", "").status, 429);
    assert_eq!(gateway.backend().count(), 0);
    assert_eq!(
        gateway.metric("floodgate_units_charged_total", &["t-app"]),
        0.0
    );
}

#[test]
fn our_own_404_and_405_are_charged_to_the_address() {
    let gateway = Start {
        routes: "[ip]\nrejected = [\"3/3600s\"]\n",
        ..Start::default()
    }
    .start();
    assert_eq!(gateway.call("GET", "/nowhere", "").status, 404);
    let answer = gateway.call("PATCH", "/o/a/users", "");
    assert_eq!(answer.status, 405);
    let allow = answer.header("allow").expect("Allow");
    for method in ["GET", "HEAD", "POST", "DELETE", "OPTIONS"] {
        assert!(
            allow.split(", ").any(|m| m == method),
            "{method} is not in {allow}"
        );
    }
    assert_eq!(gateway.call("GET", "/", "").status, 404);
    assert_eq!(gateway.call("GET", "/nowhere", "").status, 429);
}

#[test]
fn an_unknown_path_of_an_app_is_forwarded_within_the_default_figure() {
    let gateway = Start {
        routes: "[defaults]\nlimits = [\"2/3600s\"]\n",
        ..Start::default()
    }
    .start();
    let statuses: Vec<u16> = ["/o/a/new/one", "/o/a/new/two", "/o/a/other"]
        .iter()
        .map(|p| gateway.call("GET", p, "").status)
        .collect();
    assert_eq!(statuses[2], 429);
    assert_eq!(gateway.backend().count(), 2);
}

#[test]
fn an_unknown_path_of_an_app_can_be_rejected() {
    let gateway = Start {
        routes: "[defaults]\nunmatched = \"reject\"\n",
        ..Start::default()
    }
    .start();
    let answer = gateway.call("GET", "/o/a/new/one", "");
    assert_eq!(answer.status, 404);
    assert_eq!(answer.error().0, "organization_application_not_found");
    assert_eq!(gateway.backend().count(), 0);
}

#[test]
fn a_caller_who_waits_as_told_comes_in_a_step_later_at_most() {
    let gateway = Start {
        routes: "[[route]]\nname = \"t-five-long\"\ncalls = [\"GET /t/five-long\"]\n\
                 v3 = { limits = [\"1/5s\"], ip_copy = false }\n",
        ..Start::default()
    }
    .start();
    let paths = [0, 1, 2].map(|app| format!("/o/a{app}/t/five-long"));
    for path in &paths {
        assert_eq!(gateway.call("GET", path, "").status, 200);
        let denied = gateway.call("GET", path, "");
        assert_eq!(denied.status, 429);
        let after = denied.header("retry-after").expect("when").parse::<u64>();
        assert!(matches!(after, Ok(1..=5)), "{after:?}");
    }
    // The window, and a fiftieth of it.
    std::thread::sleep(std::time::Duration::from_millis(5_100));
    for path in &paths {
        assert_eq!(gateway.call("GET", path, "").status, 200);
    }
}
