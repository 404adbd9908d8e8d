//! What a route file may say, and what is told of one that may not.

use super::compile::{Layer, compile};
use super::*;
use crate::identity::Auth;
use crate::limit::{Denial, Hold, Mode, Scope, Unit, Window};
use crate::route::table::Found;

const BASE: &str = r#"
[editions]
v1 = { ip_copy = true }
v2 = {}
[select]
current = { app_key = "v1", app_id = "v2" }
[defaults]
limits = ["100/s"]
[ip]
unauthorized = ["20/s"]
[[group]]
name = "pair"
v1 = { limits = ["10/s"] }
[[route]]
name = "one"
calls = ["GET /one/{username}"]
v1 = { group = "pair" }
v2 = { limits = ["5/min per user", "50/day"] }
[[route]]
name = "two"
calls = ["POST /two"]
cost = "to"
v1 = { group = "pair" }
"#;

fn read(layers: &[&str]) -> Result<Ruleset, compile::Mistakes> {
    let layers: Vec<Layer> = layers
        .iter()
        .enumerate()
        .map(|(i, text)| Layer {
            name: format!("{i}.toml"),
            text: (*text).to_owned(),
        })
        .collect();
    compile(&layers, KeyHasher::new((1, 2)))
}

fn names(rules: &Ruleset, route: &str, edition: usize) -> Vec<String> {
    let route = rules.routes.iter().find(|r| &*r.name == route).unwrap();
    route.editions[edition]
        .limits
        .iter()
        .map(|id| format!("{} {}", rules.limit(*id).quota, rules.limit(*id).name))
        .collect()
}

/// The mistakes of a layer over the base, as `line: message`.
fn mistakes(layer: &str) -> String {
    read(&[BASE, layer]).unwrap_err().to_string()
}

#[test]
fn the_shipped_table_is_good() {
    let rules = Ruleset::shipped(KeyHasher::new((1, 2))).unwrap_or_else(|m| panic!("{m}"));
    assert_eq!(rules.routes.len(), 182);
    assert_eq!(
        rules.routes.iter().map(|r| r.calls.len()).sum::<usize>(),
        185
    );
}

#[test]
fn a_group_is_one_counter_and_its_ip_copy_another() {
    let rules = read(&[BASE]).unwrap();
    assert_eq!(
        names(&rules, "one", 0),
        ["10 pair:calls/s:app", "10 pair:calls/s:ip"]
    );
    assert_eq!(
        rules.routes[0].editions[0].limits,
        rules.routes[1].editions[0].limits
    );
}

#[test]
fn neither_users_nor_days_are_copied_to_addresses() {
    let layer = "[editions]\nv2 = { ip_copy = true }\n";
    let rules = read(&[BASE, layer]).unwrap();
    assert_eq!(
        names(&rules, "one", 1),
        ["5 one:calls/min:user", "50 one:calls/day:app"]
    );
}

#[test]
fn what_an_edition_does_not_print_comes_whole_from_the_newest_that_does() {
    let rules = read(&[BASE]).unwrap();
    // v2 has no per-IP copies of its own, whatever v1 has.
    assert_eq!(names(&rules, "two", 1), ["10 pair:calls/s:app"]);
    let layer = "[[route]]\nname = \"new\"\ncalls = [\"GET /new\"]\n";
    let rules = read(&[BASE, layer]).unwrap();
    assert_eq!(
        names(&rules, "new", 0),
        ["100 new:calls/s:app", "100 new:calls/s:ip"]
    );
}

#[test]
fn a_layer_overrides_by_name_and_key() {
    let layer =
        "[[route]]\nname = \"one\"\nv2 = { limits = [\"7/s\"] }\n[ip]\noptions = [\"3/s\"]\n";
    let rules = read(&[BASE, layer]).unwrap();
    assert_eq!(names(&rules, "one", 1), ["7 one:calls/s:app"]);
    assert_eq!(names(&rules, "one", 0).len(), 2);
    assert_eq!(rules.ip_limits.unauthorized.len(), 1);
    assert_eq!(rules.ip_limits.options.len(), 1);
    let rules = read(&[BASE, "[[route]]\nname = \"one\"\nremove = true\n"]).unwrap();
    assert_eq!(rules.table.find("GET", "/one/x"), Found::Unmatched);
}

#[test]
fn the_long_form_says_everything_of_a_limit() {
    let layer = r#"
[[route]]
name = "long"
calls = ["POST /long"]
v1 = { limits = [
  { rate = "9/day", timezone = "Asia/Shanghai", mode = "report", refund_on = [401, 503], denial = "push" },
  { rate = "2 tasks", hold = "task", max_hold = "90s" },
  { rate = "4/s", mode = "off" },
] }
"#;
    let rules = read(&[BASE, layer]).unwrap();
    let route = rules.routes.iter().find(|r| &*r.name == "long").unwrap();
    let [day, tasks] = &*route.editions[0].limits else {
        panic!("{:?}", route.editions[0])
    };
    let (day, tasks) = (rules.limit(*day), rules.limit(*tasks));
    assert_eq!(
        (&*day.name, day.mode, day.denial),
        (
            "long:calls/day@Asia/Shanghai:app",
            Mode::Report,
            Denial::Push
        )
    );
    assert_eq!(*day.refund_on, [401, 503]);
    assert!(matches!(day.window, Window::Day(_)));
    assert_eq!(
        (tasks.unit, tasks.hold, tasks.max_hold.as_secs()),
        (Unit::Tasks, Hold::Task, 90)
    );
}

#[test]
fn refunds_are_for_apps_and_users_and_not_for_addresses() {
    let rules = read(&[BASE]).unwrap();
    for limit in &rules.limits {
        assert_eq!(
            limit.refund_on.is_empty(),
            limit.scope == Scope::Ip,
            "{}",
            limit.name
        );
    }
}

#[test]
fn a_counters_name_does_not_depend_on_its_figure() {
    let other = BASE.replace("10/s", "99/s");
    let (a, b) = (read(&[BASE]).unwrap(), read(&[&other]).unwrap());
    assert_eq!(a.limits[0].salt, b.limits[0].salt);
    assert_ne!(a.limits[0].quota, b.limits[0].quota);
}

#[test]
fn all_mistakes_are_told_at_once_with_their_lines() {
    let told = mistakes(
        "[[route]]\nname = \"one\"\nlimts = 1\nv1 = { limits = [\"0/s\", \"1/0s\"] }\n\n[[route]]\nname = \"oen\"\nv1 = { limits = [\"1/s\"] }\n",
    );
    let lines: Vec<&str> = told.lines().collect();
    assert_eq!(lines.len(), 4, "{told}");
    assert!(
        lines[0].starts_with("1.toml:3: route `one`: `limts`: unknown key of a route"),
        "{told}"
    );
    assert!(
        lines[1].starts_with("1.toml:4: route `one`: `\"0/s\"`")
            && lines[1].contains("mode = \"off\""),
        "{told}"
    );
    assert!(
        lines[2].starts_with("1.toml:4: ") && lines[2].contains("window of 0"),
        "{told}"
    );
    assert!(
        lines[3].starts_with("1.toml:7: route `oen`: `oen`")
            && lines[3].contains("did you mean `one`?"),
        "{told}"
    );
}

#[test]
fn an_explicit_limit_per_ip_stands_for_the_copy() {
    let layer = "[[route]]\nname = \"own\"\ncalls = [\"GET /own\"]\nv1 = { limits = [\"100/s\", \"50/s per ip\"] }\n";
    let rules = read(&[BASE, layer]).unwrap();
    assert_eq!(
        names(&rules, "own", 0),
        ["100 own:calls/s:app", "50 own:calls/s:ip"]
    );
}

#[test]
fn each_kind_of_mistake_is_found() {
    let route = |rest: &str| format!("[[route]]\nname = \"x\"\ncalls = [\"GET /x\"]\n{rest}\n");
    for (layer, said) in [
        ("[[route]\n".to_owned(), "1.toml:1"),
        ("editons = 1\n".to_owned(), "did you mean `editions`?"),
        (
            route("v9 = { limits = [\"1/s\"] }"),
            "unknown key of a route",
        ),
        (
            route("v1 = { group = \"pairs\" }"),
            "unknown group; did you mean `pair`?",
        ),
        (
            route("v2 = { group = \"pair\" }"),
            "no figures for this edition",
        ),
        (
            route("v1 = { limits = [\"1/s\", \"2/s\"] }"),
            "two limits of one unit",
        ),
        (
            route("v1 = { limits = [\"1/s per user\"] }"),
            "no `{username}`",
        ),
        (
            route("cost = \"to\"\nv1 = { limits = [\"1/s\"] }"),
            "GET has no body",
        ),
        (
            route("max_recipients = 3\nv1 = { limits = [\"1/s\"] }"),
            "what is counted is missing",
        ),
        (
            route("caps = { to = 1 }\nv1 = { limits = [\"1/s\"] }"),
            "what is counted is missing beside it",
        ),
        (
            "[[route]]\nname = \"two\"\ncaps = { to = 1 }\n".to_owned(),
            "written max_recipients = 1",
        ),
        (
            "[[route]]\nname = \"two\"\ncaps = { users = 0 }\n".to_owned(),
            "no call can ever satisfy it",
        ),
        (
            "[[route]]\nname = \"two\"\ncaps = { users = \"1\" }\n".to_owned(),
            "a cap is a whole number",
        ),
        (
            "[[route]]\nname = \"two\"\ncaps = 1\n".to_owned(),
            "e.g. { to = 1 }",
        ),
        (
            route("v1 = { limits = [\"1 messages/s\"] }"),
            "nothing says how many messages a call has",
        ),
        (
            format!(
                "[[group]]\nname = \"sends\"\nv1 = {{ limits = [\"1 messages/s\"] }}\n{}",
                route("v1 = { group = \"sends\" }")
            ),
            "`sends`: nothing says how many messages a call has",
        ),
        (
            "[defaults]\nlimits = [\"1 messages/s\"]\n".to_owned(),
            "name no recipients; count calls",
        ),
        (
            route("cost = 2\nv1 = { limits = [\"1 messages/s\"] }"),
            "cost (1, or a field of the body) is a string",
        ),
        (
            "[[group]]\nname = \"pairs\"\nv1 = { limits = [\"1/s\"] }\n".to_owned(),
            "1.toml:2: `pairs`: no route is in this group; write group = \"pairs\"",
        ),
        (route("v1 = {}"), "has limits or a group"),
        (
            route("v1 = { limits = [{ rate = \"1/s\", hold = \"task\" }] }"),
            "task limits only",
        ),
        (
            route("v1 = { limits = [{ rate = \"1/s\", timezone = \"UTC\" }] }"),
            "day limits only",
        ),
        (
            route("v1 = { limits = [{ rate = \"1/day\", timezone = \"Mars/Phobos\" }] }"),
            "unknown time zone",
        ),
        (
            route("v1 = { limits = [{ rate = \"1/s\", mode = \"warn\" }] }"),
            "unknown mode",
        ),
        (
            route("v1 = { limits = [{ rate = \"1/s\", refund_on = [99] }] }"),
            "from 200 to 599",
        ),
        (
            route("v1 = { limits = [{ mode = \"off\" }] }"),
            "the figure is missing",
        ),
        (route("v1 = { limits = [5] }"), "is a string"),
        (
            "[[route]]\nname = \"x\"\ncalls = [\"GET /one/{other}\"]\n".to_owned(),
            "the same call as `GET /one/{username}`",
        ),
        (
            "[[route]]\nname = \"x\"\ncalls = [\"FETCH /x\"]\n".to_owned(),
            "no method",
        ),
        (
            "[[route]]\nname = \"x\"\ncalls = [\"GET x\"]\n".to_owned(),
            "begins with `/`",
        ),
        (
            "[[route]]\nname = \"x\"\ncalls = [\"HEAD /x\"]\n".to_owned(),
            "HEAD counts as its GET",
        ),
        (
            "[[route]]\nname = \"pair\"\ncalls = [\"GET /x\"]\n".to_owned(),
            "would share counters",
        ),
        (
            "[[route]]\nname = \"unmatched\"\ncalls = [\"GET /x\"]\n".to_owned(),
            "the gateway's own",
        ),
        (
            "[[route]]\nname = \"X Y\"\ncalls = [\"GET /x\"]\n".to_owned(),
            "a name is",
        ),
        ("[[route]]\ncalls = [\"GET /x\"]\n".to_owned(), "has a name"),
        (
            "[[route]]\nname = \"one\"\n[[route]]\nname = \"one\"\n".to_owned(),
            "there already, in line 2",
        ),
        (
            "[select]\nmine = { app_key = \"v1\", app_id = \"v7\" }\n".to_owned(),
            "unknown edition",
        ),
        (
            "[defaults]\nunmatched = \"drop\"\n".to_owned(),
            "unknown unmatched",
        ),
        (
            "[ip]\noptions = [\"3/s\", \"4/s\"]\n".to_owned(),
            "two limits of one unit",
        ),
        (
            "[ip]\noptions = [\"3/s per user\"]\n".to_owned(),
            "limits of addresses",
        ),
        (
            route("v1 = { limits = [{ rate = \"1 tasks\", max_hold = \"1s\" }] }"),
            "max_hold does nothing",
        ),
        (
            route("v1 = { limits = [{ rate = \"1 tasks per ip\", hold = \"task\" }] }"),
            "hold = \"task\" is for limits per app",
        ),
        (
            "[ip]\noptions = [\"3/day\"]\n".to_owned(),
            "limits of addresses slide",
        ),
        (
            "[ip]\noptions = [\"3/s\", \"4/s\"]\n".to_owned(),
            "two limits of one unit",
        ),
        (
            "[defaults]\nlimits = [\"3/s per user\"]\n".to_owned(),
            "`per app` or `per ip`",
        ),
        (
            "[[group]]\nname = \"pair\"\nv1 = { limits = [\"1/s\", \"2/s\"] }\n".to_owned(),
            "two limits of one unit",
        ),
        (
            "[[group]]\nname = \"pair\"\nv1 = { limits = [\"1/s per user\"] }\n".to_owned(),
            "route `two` of this group has no",
        ),
        (
            "[[group]]\nname = \"new\"\nmoed = \"off\"\n".to_owned(),
            "did you mean `mode`?",
        ),
        (
            "[[route]]\nname = \"x-y\"\ncalls = [\"GET /x\"]\n[[route]]\nname = \"x_y\"\ncalls = [\"GET /y\"]\n".to_owned(),
            "by its dashes alone",
        ),
        (
            "[[route]]\nname = \"x\"\ncalls = [\"POST /x\"]\ncost = \"to\"\nmax_recipients = 0\n".to_owned(),
            "no call can ever satisfy it",
        ),
        (
            route("max_body = \"1MiB\"\nv1 = { limits = [\"1/s\"] }"),
            "none of these calls has a body",
        ),
        (
            "[[route]]\nname = \"two\"\nmax_body = \"65KiB\"\n".to_owned(),
            "has 64KiB at most",
        ),
        (
            "[[route]]\nname = \"two\"\nmax_body = \"10MB\"\n".to_owned(),
            "max_body is not a size; write",
        ),
        (
            "[[route]]\nname = \"two\"\nmax_body = -1\n".to_owned(),
            "max_body is not a size; write",
        ),
        (
            "[[route]]\nname = \"x\"\ncalls = [\"GET /x/\"]\n".to_owned(),
            "no trailing `/`",
        ),
        (
            route("v1 = { limits = [{ rate = \"1/min\", denial = \"broadcast-users\" }] }"),
            "day limits only",
        ),
        (
            "[[route]]\nname = \"oen\"\nremove = true\n".to_owned(),
            "did you mean `one`?",
        ),
    ] {
        let told = mistakes(&layer);
        assert!(told.contains(said), "{layer}\n→ {told}");
        assert!(told.starts_with("1.toml:"), "{layer}\n→ {told}");
    }
}

#[test]
fn a_mode_holds_for_all_limits_of_a_route_its_groups_included() {
    let layer = "[[route]]\nname = \"one\"\nmode = \"report\"\n";
    let rules = read(&[BASE, layer]).unwrap();
    let modes = |route: usize| -> Vec<Mode> {
        let ids = &rules.routes[route].editions[0].limits;
        ids.iter().map(|id| rules.limit(*id).mode).collect()
    };
    assert_eq!(modes(0), [Mode::Report; 2]);
    assert_eq!(modes(1), [Mode::Enforce; 2]);
    // Still one counter: what one route reports, the other one counts.
    let key = |route: usize| rules.limit(rules.routes[route].editions[0].limits[0]).salt;
    assert_eq!(key(0), key(1));
}

#[test]
fn a_limits_own_mode_stands_before_its_routes_and_that_before_its_groups() {
    let layer = r#"
[[group]]
name = "pair"
mode = "off"
[[route]]
name = "one"
mode = "report"
v2 = { limits = [{ rate = "5/min", mode = "enforce" }, "50/day"] }
"#;
    let rules = read(&[BASE, layer]).unwrap();
    let modes = |route: usize, edition: usize| -> Vec<Mode> {
        let ids = &rules.routes[route].editions[edition].limits;
        ids.iter().map(|id| rules.limit(*id).mode).collect()
    };
    assert_eq!(modes(0, 1), [Mode::Enforce, Mode::Report]);
    assert_eq!(modes(0, 0), [Mode::Report; 2]);
    assert_eq!(modes(1, 0), []);
}

#[test]
fn a_limits_own_on_store_failure_stands_before_its_routes_and_that_before_its_groups() {
    use crate::limit::OnStoreFailure::{Allow, Deny, Local};
    let layer = r#"
[[group]]
name = "pair"
on_store_failure = "allow"
[[route]]
name = "one"
on_store_failure = "deny"
v2 = { limits = [{ rate = "5/min", on_store_failure = "local" }, "50/day"] }
"#;
    let rules = read(&[BASE, layer]).unwrap();
    let failures = |route: usize, edition: usize| -> Vec<_> {
        let ids = &rules.routes[route].editions[edition].limits;
        ids.iter()
            .map(|id| rules.limit(*id).on_store_failure)
            .collect()
    };
    assert_eq!(failures(0, 1), [Local, Deny]);
    assert_eq!(failures(0, 0), [Deny; 2]);
    assert_eq!(failures(1, 0), [Allow; 2]);
    let told = mistakes("[[route]]\nname = \"one\"\non_store_failure = \"pass\"\n");
    assert!(told.contains("\"pass\""), "{told}");
}

#[test]
fn a_limits_own_denial_stands_before_its_routes_and_that_before_its_groups() {
    let layer = r#"
[[group]]
name = "pair"
denial = "push"
v1 = { limits = ["10/s", { rate = "9/min", denial = "call-rate" }] }
v2 = { limits = ["10/s", { rate = "9/min", denial = "call-rate" }] }
[[route]]
name = "two"
denial = "message-count"
v2 = { group = "pair" }
[[route]]
name = "three"
calls = ["GET /three"]
v2 = { group = "pair" }
"#;
    let rules = read(&[BASE, layer]).unwrap();
    let denials = |route: usize, edition: usize| -> Vec<Denial> {
        let ids = &rules.routes[route].editions[edition].limits;
        ids.iter().map(|id| rules.limit(*id).denial).collect()
    };
    assert_eq!(
        denials(0, 0),
        [
            Denial::Push,
            Denial::CallRate,
            Denial::Push,
            Denial::CallRate
        ]
    );
    assert_eq!(denials(1, 1), [Denial::MessageCount, Denial::CallRate]);
    assert_eq!(denials(2, 1), [Denial::Push, Denial::CallRate]);
    let told = mistakes("[[group]]\nname = \"pair\"\ndenial = \"pusj\"\n");
    assert!(told.contains("did you mean `push`?"), "{told}");
}

#[test]
fn one_counter_has_one_quota_in_an_edition() {
    // In v1, `one` is printed and `two` is not: it takes the figure of v2.
    let base = BASE
        .replace("cost = \"to\"\nv1 = { group", "cost = \"to\"\nv2 = { group")
        .replace(
            "v1 = { limits = [\"10/s\"] }",
            "v1 = { limits = [\"10/s\"] }\nv2 = { limits = [\"20/s\"] }",
        );
    let told = read(&[&base]).unwrap_err().to_string();
    assert_eq!(told.lines().count(), 1, "{told}");
    assert!(told.contains("in edition v1"), "{told}");
    assert!(
        told.contains("10 for route `one` and 20 for route `two`"),
        "{told}"
    );
}

#[test]
fn the_newest_edition_is_the_last_written() {
    let layer = "[editions]\nzeta = {}\nalpha = {}\n";
    let rules = read(&[BASE, layer]).unwrap();
    let names: Vec<&str> = rules.editions.iter().map(|e| &*e.name).collect();
    assert_eq!(names, ["v1", "v2", "zeta", "alpha"]);
}

#[test]
fn recipients_are_read_and_capped_as_the_service_does() {
    let rules = Ruleset::shipped(KeyHasher::new((1, 2))).unwrap();
    let mut counted: Vec<_> = rules
        .routes
        .iter()
        .filter_map(|r| Some((&*r.calls[0].1, &*r.cost.as_ref()?.field, r.max_recipients)))
        .collect();
    counted.sort_unstable();
    assert_eq!(
        counted,
        [
            ("/messages", "target", None),
            ("/messages/chatgroups", "to", Some(3)),
            ("/messages/chatgroups/users", "users", Some(20)),
            ("/messages/chatrooms", "to", Some(10)),
            ("/messages/users", "to", Some(600)),
            ("/push/list/label", "targets", Some(5)),
            ("/push/single", "targets", Some(100)),
        ]
    );
}

#[test]
fn a_directed_message_names_one_group_and_counts_its_users() {
    let rules = Ruleset::shipped(KeyHasher::new((1, 2))).unwrap();
    let Found::Route { id, .. } = rules.table.find("POST", "/messages/chatgroups/users") else {
        panic!("no such route")
    };
    let route = &rules.routes[id.0];
    let cost = route.cost.as_ref().unwrap();
    let caps: Vec<_> = cost.caps.iter().map(|cap| (&*cap.field, cap.max)).collect();
    assert_eq!(
        (&*cost.field, caps),
        ("users", vec![("users", 20), ("to", 1)])
    );
    assert_eq!(route.max_recipients, Some(20));
}

#[test]
fn a_call_of_one_message_says_so_and_is_not_read() {
    let layer = "[[route]]\nname = \"two\"\ncost = 1\nv1 = { limits = [\"3 messages/s\"] }\n";
    let rules = read(&[BASE, layer]).unwrap();
    assert_eq!(rules.routes[1].cost, None);
    assert_eq!(
        names(&rules, "two", 0),
        ["3 two:messages/s:app", "3 two:messages/s:ip"]
    );
    let back = "[[route]]\nname = \"two\"\ncost = \"users\"\n";
    let rules = read(&[BASE, layer, back]).unwrap();
    assert!(rules.routes[1].cost.is_some());
}

#[test]
fn a_group_whose_routes_a_later_file_takes_out_is_no_mistake() {
    let layer = "[[route]]\nname = \"one\"\nremove = true\n[[route]]\nname = \"two\"\nv1 = { limits = [\"1/s\"] }\n";
    assert!(read(&[BASE, layer]).is_ok());
}

#[test]
fn a_layer_without_what_it_changes_is_told_to_name_it() {
    let layer = "[[route]]\nname = \"one\"\nv1 = { limits = [\"5/s\"] }\n";
    let told = read(&[layer]).unwrap_err().to_string();
    let lines: Vec<&str> = told.lines().collect();
    for (line, said) in [
        ("0.toml:2: ", "no earlier file has this route"),
        ("0.toml:3: ", "no edition of this name"),
    ] {
        let of_line = |text: &&str| text.starts_with(line) && text.contains(said);
        let text = lines.iter().find(|text| of_line(text)).expect(line);
        assert!(text.contains("`--routes shipped`"), "{text}");
    }
}

#[test]
fn a_slip_of_syntax_hides_no_other_mistake() {
    let broken = r#"[[route]]
name = "three"
calls = ["GET /three"
v1 = { limits = ["1/s"] }

[[group]]
name = "lost
v1 = { limits = ["1/s"] }

[[route]]
name = "four"
calls = ["GET /four"]
v1 = { limits = ["0/s"], group = "lost" }
v2 = { group = "pairs" }
"#;
    let later = r#"[[route]]
name = "three"
v2 = { limits = ["1/s", "2/s"] }
[[route]]
name = "fuor"
remove = true
"#;
    let told = read(&[BASE, broken, later]).unwrap_err().to_string();
    let lines: Vec<&str> = told.lines().collect();
    let said = [
        ("1.toml:4: ", "comma"),
        ("1.toml:7: ", "string"),
        ("1.toml:13: ", "limit of 0"),
        ("1.toml:14: ", "unknown group; did you mean `pair`?"),
        ("2.toml:5: ", "did you mean `four`?"),
    ];
    assert_eq!(lines.len(), said.len(), "{told}");
    for (line, (at, what)) in lines.iter().zip(said) {
        assert!(line.starts_with(at) && line.contains(what), "{told}");
    }
}

#[test]
fn what_a_missing_file_may_hold_is_not_missed_and_the_rest_is_told() {
    let layer = |text: &str| Layer {
        name: "mine.toml".to_owned(),
        text: text.to_owned(),
    };
    let mine = r#"
[[route]]
name = "one"
v1 = { limits = ["5/s"], group = "pair" }
[select]
mine = { app_key = "v1", app_id = "v7" }
"#;
    let none = compile::mistakes_of_some(&[layer(mine)]);
    assert_eq!(none.to_string(), "");
    let wrong = mine.replace("5/s", "0/s").replace("app_id", "appid");
    let told = compile::mistakes_of_some(&[layer(&wrong)]).to_string();
    for said in ["mine.toml:4: ", "limit of 0", "mine.toml:6: ", "`app_id`?"] {
        assert!(told.contains(said), "{told}");
    }
}

#[test]
fn a_routes_auth_is_one_of_three_words_and_a_mistake_has_its_place() {
    let layer = |auth: &str| format!("[[route]]\nname = \"one\"\nauth = {auth}\n");
    for (word, auth) in Auth::WORDS {
        let rules = read(&[BASE, &layer(&format!("{word:?}"))]).unwrap();
        assert_eq!(rules.routes[0].auth, Some(*auth));
        assert_eq!(rules.routes[1].auth, None);
    }
    for (auth, told) in [
        ("\"verfy\"", "did you mean `verify`?"),
        ("\"none\"", "known: off, require-bearer, verify"),
        ("false", "auth is a string"),
    ] {
        let mistakes = mistakes(&layer(auth));
        let place = format!("1.toml:3: route `one`: `{auth}`: ");
        assert!(mistakes.starts_with(&place), "{mistakes}");
        assert!(mistakes.contains(told), "{mistakes}");
    }
}

#[test]
fn a_token_alone_is_asked_for_without_one() {
    let rules = Ruleset::shipped(KeyHasher::new((1, 2))).unwrap();
    let open: Vec<&str> = rules
        .routes
        .iter()
        .filter(|r| r.auth == Some(Auth::Off))
        .map(|r| &*r.calls[0].1)
        .collect();
    assert_eq!(open, ["/token"]);
    assert!(rules.fold_app_names);
    assert_eq!(rules.unmatched, Unmatched::DefaultLimit);
}

#[test]
fn days_and_pushes_have_denials_of_their_own() {
    let rules = Ruleset::shipped(KeyHasher::new((1, 2))).unwrap();
    for limit in &rules.limits {
        let owner = limit.name.split(':').next().unwrap();
        let expected = match (owner, limit.unit) {
            ("messages-users-broadcast", _) => Denial::BroadcastUsers,
            ("messages-chatrooms-broadcast", _) => Denial::BroadcastRooms,
            ("push-single" | "push-list-label" | "push-task", _) => Denial::Push,
            (_, Unit::Messages) => Denial::MessageCount,
            _ => Denial::CallRate,
        };
        assert_eq!(limit.denial, expected, "{}", limit.name);
    }
}

#[test]
fn a_call_printed_with_anothers_path_has_its_figure_in_both_places() {
    let rules = Ruleset::shipped(KeyHasher::new((1, 2))).unwrap();
    for (method, path, edition, source) in [
        ("POST", "/metadata/chatroom/1", 0, "003:246"),
        ("POST", "/metadata/chatroom/1", 1, "000:288"),
        ("GET", "/users/a/notification/language", 1, "000:180"),
        ("GET", "/users/a/notification/language", 2, "002:656"),
    ] {
        let Found::Route { id, .. } = rules.table.find(method, path) else {
            panic!("{method} {path}")
        };
        let made = &rules.routes[id.0].editions[edition];
        assert_eq!(made.from, Some(EditionId(edition)), "{method} {path}");
        assert!(made.sources.iter().any(|s| **s == *source), "{source}");
    }
}

#[test]
fn an_upload_has_room_for_a_file_and_its_frame() {
    let rules = Ruleset::shipped(KeyHasher::new((1, 2))).unwrap();
    let most: Vec<_> = rules
        .routes
        .iter()
        .filter_map(|route| Some((&*route.name, route.max_body?)))
        .collect();
    assert_eq!(
        most,
        [
            ("chatfiles", 11 << 20),
            ("chatgroups-share-files-post", 11 << 20)
        ]
    );
}

#[test]
fn a_layer_sets_the_size_of_a_body_and_leaves_the_rest() {
    let layer = "[[route]]\nname = \"two\"\nmax_body = 1_000\n";
    let rules = read(&[BASE, layer]).unwrap();
    let two = rules.routes.iter().find(|r| &*r.name == "two").unwrap();
    assert_eq!(two.max_body, Some(1000));
    assert!(two.cost.is_some());
    assert_eq!(rules.unmatched_route.max_body, None);
}

/// Days of the free and of the enterprise plan, and the edition that prints them.
fn days(rules: &Ruleset) -> Vec<(u32, u32, &str)> {
    let history = rules.history.as_ref().unwrap();
    let kept = history.editions.iter().flatten();
    kept.map(|kept| {
        let from = &*rules.editions[kept.from.0].name;
        (kept.days[0], kept.days[3], from)
    })
    .collect()
}

#[test]
fn history_is_kept_as_the_documents_say() {
    let rules = Ruleset::shipped(KeyHasher::new((1, 2))).unwrap();
    let history = rules.history.as_ref().unwrap();
    let sources: Vec<String> = history
        .editions
        .iter()
        .flatten()
        .map(|kept| {
            assert_eq!(kept.days, [3, 7, 90, 180]);
            kept.sources.join(" ")
        })
        .collect();
    assert_eq!(
        sources,
        [
            "003:32 003:33 003:34 003:35",
            "000:39 000:40 000:41 000:42",
            "002:36 002:38 002:40 002:42",
            "002:36 002:38 002:40 002:42",
        ]
    );
    let with: Vec<&str> = rules
        .routes
        .iter()
        .filter(|route| route.history)
        .map(|route| &*route.name)
        .collect();
    assert_eq!(with, ["chatmessages-one"]);
}

#[test]
fn history_is_layered_key_by_key() {
    let first = "[history]\nv1 = { free = 3, basic = 7, advanced = 90, enterprise = 180 }\n";
    let rules = read(&[BASE, first]).unwrap();
    assert_eq!(days(&rules), [(3, 180, "v1"), (3, 180, "v1")]);
    assert_eq!(rules.history.unwrap().answer.status, None);
    let second = "[history]\nstatus = 410\nmode = \"report\"\nv1 = { enterprise = 365 }\n";
    let rules = read(&[BASE, first, second]).unwrap();
    assert_eq!(days(&rules), [(3, 365, "v1"), (3, 365, "v1")]);
    let third = "[history]\ndescription = \"gone\"\nv2 = { free = 1, basic = 2, advanced = 3, enterprise = 4 }\n";
    let rules = read(&[BASE, first, second, third]).unwrap();
    assert_eq!(days(&rules), [(3, 365, "v1"), (1, 4, "v2")]);
    let history = rules.history.unwrap();
    assert_eq!(history.answer.status, Some(410));
    assert_eq!(history.answer.description.as_deref(), Some("gone"));
    assert_eq!(history.mode, Mode::Report);
}

#[test]
fn mistakes_of_the_history_say_where_they_are_and_what_to_write() {
    let said = mistakes(
        r#"
[history]
timezone = "Mars/Olympus"
mode = "on"
status = 401
error = ""
descriptoin = "x"
v1 = { free = 3, basic = 0, advanced = "90", premium = 1 }
v2 = 7
[[route]]
name = "hour"
calls = ["GET /hour", "POST /hour/{time}", "GET /hours/{time}"]
history = true
[[route]]
name = "late"
calls = ["GET /late"]
history = "yes"
"#,
    );
    for (start, end) in [
        ("3: `\"Mars/Olympus\"`", "write an IANA name"),
        ("4: `\"on\"`", "known: enforce, report, off"),
        ("5: `401`", "write e.g. 404"),
        ("6: `\"\"`", "write what callers are to read"),
        ("7: `descriptoin`", "did you mean `description`?"),
        ("8: `0`", "days are from 1 to 36500"),
        ("8: `\"90\"`", "a number of days is a whole number"),
        (
            "8: `premium`",
            "known: free, basic, advanced, enterprise, src",
        ),
        ("8: [history]: `v1`", "add enterprise = days"),
        ("9: `7`", "is a table"),
        (
            "12: route `hour`: `GET /hour`",
            "whose last segment names the hour",
        ),
        (
            "12: route `hour`: `POST /hour/{time}`",
            "whose last segment names the hour",
        ),
        ("17: route `late`: `\"yes\"`", "history is true or false"),
    ] {
        let found = said
            .lines()
            .any(|m| m.starts_with(&format!("1.toml:{start}: ")) && m.contains(end));
        assert!(found, "{start} … {end}:\n{said}");
    }
    assert_eq!(said.lines().count(), 13, "{said}");
    let without = "[[route]]\nname = \"hour\"\ncalls = [\"GET /hours/{time}\"]\nhistory = true\n";
    assert_eq!(
        mistakes(without),
        "1.toml:4: route `hour`: `history`: nothing says how long messages are kept; write [history] with days by plan for an edition, or leave this out"
    );
    let taken = "[editions]\nmode = {}\n";
    assert!(mistakes(taken).contains("this name is taken"));
}

const CARRIES: &str = r#"
[[payload]]
name = "size"
measure = "bytes"
types = ["txt"]
v1 = { max = "5KiB", src = ["a:1"] }
v2 = { max = "3KiB", src = ["b:2"] }
[[payload]]
name = "id"
measure = "characters"
allow = "a-z"
paths = ["{username}"]
v1 = { max = 64 }
[[route]]
name = "two"
payload = { size = "body.msg", id = ["from", "to[]"] }
message_type = "type"
"#;

fn figures(rules: &Ruleset, name: &str) -> Vec<Option<crate::payload::Most>> {
    let limits = &rules.payloads.limits;
    let limit = limits.iter().find(|limit| &*limit.name == name).unwrap();
    let figures = limit.figures.iter();
    figures
        .map(|figure| figure.as_ref().unwrap().most)
        .collect()
}

#[test]
fn what_calls_may_carry_is_layered_key_by_key_and_edition_by_edition() {
    use crate::payload::Most::{AsMessage, Fixed};
    let rules = read(&[BASE, CARRIES]).unwrap_or_else(|m| panic!("{m}"));
    assert_eq!(
        figures(&rules, "size"),
        [Some(Fixed(5120)), Some(Fixed(3072))]
    );
    // An edition without an entry has that of the newest that has one.
    assert_eq!(figures(&rules, "id"), [Some(Fixed(64)), Some(Fixed(64))]);
    let layer = "[defaults]\nvalidate = \"report\"\n[[payload]]\nname = \"size\"\nvalidate = \"enforce\"\nv2 = { max = \"none\" }\n[[payload]]\nname = \"ext\"\nmeasure = \"bytes\"\nv1 = { max = \"message\" }\n[[route]]\nname = \"two\"\npayload = { size = \"x\", ext = \"y\" }\n";
    let rules = read(&[BASE, CARRIES, layer]).unwrap_or_else(|m| panic!("{m}"));
    assert_eq!(figures(&rules, "size"), [Some(Fixed(5120)), None]);
    assert_eq!(figures(&rules, "ext"), [Some(AsMessage), Some(AsMessage)]);
    let limits = &rules.payloads.limits;
    assert_eq!(
        &*limits[0].figures[0].as_ref().unwrap().sources,
        [Box::from("a:1")]
    );
    assert_eq!(
        (rules.payloads.mode(0), rules.payloads.mode(1)),
        (Mode::Enforce, Mode::Report)
    );
    let of = |route: usize, edition: usize| {
        let checked = rules.payloads.of(RouteId(route), EditionId(edition));
        let rules = checked.map(|checked| checked.checks.rules().iter());
        let places =
            rules.map(|rules| rules.map(|rule| rule.place.to_string()).collect::<Vec<_>>());
        places.unwrap_or_default().join(" ")
    };
    // A path is looked at in every route that has its parameter; no figure, no check.
    assert_eq!([of(0, 0), of(1, 0), of(1, 1)], ["{username}", "y x", "y"]);
}

#[test]
fn the_mode_of_all_is_that_of_limits_without_one_of_their_own() {
    let layer = "[[payload]]\nname = \"id\"\nvalidate = \"off\"\n";
    let mut rules = read(&[BASE, CARRIES, layer]).unwrap_or_else(|m| panic!("{m}"));
    let enforced = |rules: &Ruleset| {
        let checked = rules.payloads.of(RouteId(1), EditionId(0));
        checked.map(|checked| (checked.checks.rules().len(), checked.enforces_body))
    };
    assert_eq!(enforced(&rules), Some((1, true)));
    rules.payloads.set_validate(Mode::Report);
    assert_eq!(enforced(&rules), Some((1, false)));
    rules.payloads.set_validate(Mode::Off);
    assert_eq!(enforced(&rules), None);
    rules.payloads.set_validate(Mode::Enforce);
    assert_eq!(enforced(&rules), Some((1, true)));
}

#[test]
fn mistakes_of_what_calls_may_carry_say_where_they_are_and_what_to_write() {
    for (layer, line, told) in [
        (
            "[[payload]]\nname = \"x\"\n",
            2,
            "nothing says what is measured",
        ),
        (
            "[[payload]]\nname = \"sise\"\nv1 = { max = \"1KiB\" }\n",
            2,
            "did you mean `size`?",
        ),
        (
            "[[payload]]\nname = \"x\"\nmeasure = \"byte\"\n",
            3,
            "unknown measure; did you mean `bytes`?",
        ),
        (
            "[[payload]]\nname = \"x\"\nmeasure = \"bytes\"\nv1 = { max = \"1KiB\" }\n",
            2,
            "no route names it; write payload = { x",
        ),
        (
            "[[payload]]\nname = \"x\"\nmeasure = \"bytes\"\npaths = [\"{username}\"]\n",
            2,
            "no edition has a figure",
        ),
        (
            "[[payload]]\nname = \"size\"\nv1 = { max = \"3KB\" }\n",
            3,
            "max is a size, e.g. \"3KiB\"",
        ),
        (
            "[[payload]]\nname = \"size\"\nv1 = { max = 12 }\n",
            3,
            "bytes are a size",
        ),
        (
            "[[payload]]\nname = \"id\"\nv1 = { max = \"3KiB\" }\n",
            3,
            "characters and entries are a whole number",
        ),
        (
            "[[payload]]\nname = \"id\"\nv1 = { max = 0 }\n",
            3,
            "no call can ever satisfy it",
        ),
        (
            "[[payload]]\nname = \"id\"\nv1 = { max = \"message\" }\n",
            3,
            "only bytes can be as many",
        ),
        (
            "[[payload]]\nname = \"id\"\nv2 = { src = [\"a:1\"] }\n",
            3,
            "the figure is missing",
        ),
        (
            "[[payload]]\nname = \"id\"\nv9 = { max = 1 }\n",
            3,
            "unknown key of a payload",
        ),
        (
            "[[payload]]\nname = \"id\"\nv1 = { most = 1 }\n",
            3,
            "unknown key of an edition's entry",
        ),
        (
            "[[payload]]\nname = \"id\"\nallow = \"z-a\"\n",
            3,
            "ranges of letters or digits",
        ),
        (
            "[[payload]]\nname = \"id\"\npaths = [\"from\"]\n",
            3,
            "a parameter of its path",
        ),
        (
            "[[payload]]\nname = \"id\"\nvalidate = \"on\"\n",
            3,
            "unknown validate",
        ),
        (
            "[[payload]]\nname = \"id\"\nanswer = \"files\"\n",
            3,
            "did you mean `file`?",
        ),
        (
            "[[payload]]\nname = \"id\"\n[[payload]]\nname = \"id\"\n",
            4,
            "there already, in line 2",
        ),
        (
            "[[route]]\nname = \"two\"\npayload = { sise = \"a\" }\n",
            3,
            "unknown payload; did you mean `size`?",
        ),
        (
            "[[route]]\nname = \"two\"\npayload = { size = \"a..b\" }\n",
            3,
            "no place of a call",
        ),
        (
            "[[route]]\nname = \"two\"\npayload = { id = \"{name}\" }\n",
            3,
            "no path of this route has {name}",
        ),
        (
            "[[route]]\nname = \"two\"\npayload = { id = \".\" }\n",
            3,
            "name a field",
        ),
        (
            "[[route]]\nname = \"one\"\npayload = { id = \"a\" }\n",
            3,
            "none of these calls has a body",
        ),
        (
            "[[route]]\nname = \"two\"\nmessage_type = \"a b\"\n",
            3,
            "no field of the body",
        ),
        (
            "[[payload]]\nname = \"n\"\nmeasure = \"entries\"\nv1 = { max = 1 }\n[[route]]\nname = \"two\"\npayload = { n = \"to\" }\n",
            7,
            "write e.g. \"to[]\"",
        ),
        (
            "[[payload]]\nname = \"f\"\nmeasure = \"file\"\nv1 = { max = \"1KiB\" }\n[[route]]\nname = \"two\"\npayload = { f = \".\", id = \"a\" }\n",
            7,
            "what is measured of one",
        ),
        (
            "[[payload]]\nname = \"f\"\nmeasure = \"file\"\nv1 = { max = \"1KiB\" }\n[[route]]\nname = \"two\"\npayload = { f = \"a\" }\n",
            7,
            "are the body as a whole",
        ),
        (
            "[[payload]]\nname = \"e\"\nmeasure = \"bytes\"\nv1 = { max = \"message\" }\n[[route]]\nname = \"three\"\ncalls = [\"POST /three\"]\npayload = { e = \"ext\" }\n",
            8,
            "nothing says where that is",
        ),
        ("[defaults]\nvalidate = \"no\"\n", 2, "unknown validate"),
        ("[editions]\nmeasure = {}\n", 2, "this name is taken"),
    ] {
        let said = read(&[BASE, CARRIES, layer]).map(|_| String::new());
        let said = said.unwrap_or_else(|mistakes| mistakes.to_string());
        assert!(
            said.contains(&format!("2.toml:{line}: ")),
            "{layer}: {said}"
        );
        assert!(said.contains(told), "{layer}: {said}");
    }
}
