//! Settings, routes, apps and certificates, read again while calls go on: all or nothing.

use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use floodgate::standin::{StandIn, StandInOptions};
use serde_json::{Value, json};

use crate::door::soon;
use crate::harness::{Answer, Connection, Gateway, Start};

const TOKEN: &str = "an-admin-token-of-tests";

/// A folder of files that a gateway is started with.
pub(crate) struct Folder(tempfile::TempDir);

impl Folder {
    pub(crate) fn new(files: &[(&str, &str)]) -> Self {
        let folder = Self(tempfile::tempdir().expect("a folder"));
        for (name, text) in files {
            folder.write(name, text);
        }
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// At once: half a file may be a good one, with half the limits.
    pub(crate) fn write(&self, name: &str, text: &str) {
        let beside = self.path("new");
        std::fs::write(&beside, text).expect("a file");
        std::fs::rename(beside, self.path(name)).expect("a file");
    }

    pub(crate) fn start(&self, args: &[&str]) -> Gateway {
        self.start_before(None, args)
    }

    /// With settings of this folder, if it has any, and its route files.
    fn start_before(&self, url: Option<String>, args: &[&str]) -> Gateway {
        let mut all = vec!["--admin-token".to_owned(), TOKEN.to_owned()];
        for (name, flag) in [
            ("floodgate.toml", "--config"),
            ("routes.toml", "--routes"),
            ("apps.toml", "--apps"),
        ] {
            let path = self.path(name);
            if path.exists() {
                all.extend([flag.to_owned(), path.display().to_string()]);
            }
        }
        all.extend(args.iter().map(|arg| (*arg).to_owned()));
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        Start {
            args: &all,
            url,
            ..Start::default()
        }
        .start()
    }
}

fn ask(gateway: &Gateway, method: &str) -> Answer {
    let token = format!("Authorization: Bearer {TOKEN}");
    Connection::to(gateway.admin).call(method, "/reload", &[&token], "")
}

/// A reload that must be good.
pub(crate) fn reload(gateway: &Gateway) -> Value {
    let answer = ask(gateway, "POST");
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

fn config(gateway: &Gateway, what: &str) -> f64 {
    gateway.metric(&format!("floodgate_config_{what}"), &[])
}

/// One route of our own, with so many calls an hour.
fn route(name: &str, quota: u32) -> String {
    format!(
        "[[route]]\nname = \"{name}\"\ncalls = [\"GET /t/{name}\"]\n\
         v3 = {{ limits = [\"{quota}/3600s\"], ip_copy = false }}\n"
    )
}

fn status(gateway: &Gateway, path: &str) -> u16 {
    gateway.call("GET", path, "").status
}

#[test]
fn counters_go_on_and_a_bad_file_changes_nothing_and_says_what_is_wrong() {
    let folder = Folder::new(&[("routes.toml", &route("few", 3))]);
    let gateway = folder.start(&["--watch", "false"]);
    for expected in [200, 200, 200, 429] {
        assert_eq!(status(&gateway, "/o/a/t/few"), expected);
    }
    assert_eq!(config(&gateway, "last_reload_successful"), 1.0);
    let first = config(&gateway, "hash");

    folder.write("routes.toml", &route("few", 5));
    let told = reload(&gateway);
    assert_eq!(told["last"]["result"], "applied");
    assert_eq!(told["last"]["cause"], "request");
    assert_eq!(told["restart_needed"], json!([]));
    // Three of the five are used.
    for expected in [200, 200, 429] {
        assert_eq!(status(&gateway, "/o/a/t/few"), expected);
    }
    let second = config(&gateway, "hash");
    assert_ne!(first, second);

    folder.write("routes.toml", &route("few", 9).replace("limits", "limmits"));
    let answer = ask(&gateway, "POST");
    assert_eq!(answer.status, 422, "{}", answer.text());
    let told = answer.json();
    assert_eq!(told["last"]["result"], "failed");
    let mistake = told["last"]["mistakes"][0].as_str().unwrap().to_owned();
    assert!(
        mistake.contains("routes.toml:4") && mistake.contains("limmits"),
        "{mistake}"
    );
    assert_eq!(told, {
        let mut state = ask(&gateway, "GET").json();
        state["error"] = told["error"].clone();
        state
    });
    assert_eq!(status(&gateway, "/o/a/t/few"), 429);
    assert_eq!(config(&gateway, "last_reload_successful"), 0.0);
    assert_eq!(config(&gateway, "hash"), second);
    soon("it is logged", || gateway.log().contains("limmits"));

    folder.write("routes.toml", &route("few", 3));
    reload(&gateway);
    assert_eq!(config(&gateway, "last_reload_successful"), 1.0);
    assert_eq!(config(&gateway, "hash"), first);
    assert_eq!(status(&gateway, "/o/a/t/few"), 429);
    let count = |result: &str| {
        let label = format!("result=\"{result}\"");
        gateway.metric("floodgate_config_reloads_total", &[&label])
    };
    assert_eq!((count("applied"), count("failed")), (2.0, 1.0));
    assert!(config(&gateway, "last_reload_success_timestamp_seconds") > 1.7e9);
}

#[test]
fn only_who_has_the_token_reloads() {
    let folder = Folder::new(&[("routes.toml", &route("few", 3))]);
    let gateway = folder.start(&["--watch", "false"]);
    let admin = || Connection::to(gateway.admin);
    let none = admin().call("POST", "/reload", &["Authorization: -"], "");
    assert_eq!(none.status, 401);
    let token = format!("Authorization: Bearer {TOKEN}");
    let page = admin().call(
        "POST",
        "/reload",
        &[&token, "Origin: http://example.com"],
        "",
    );
    assert_eq!(page.status, 403);
    assert_eq!(ask(&gateway, "GET").json()["applied"], 0);
}

#[test]
fn sighup_reads_everything_again() {
    let folder = Folder::new(&[
        ("floodgate.toml", "watch = false\nanswers = \"native\"\n"),
        ("routes.toml", &route("few", 3)),
        ("apps.toml", "[[app]]\nnames = [\"o#b\"]\n"),
    ]);
    let gateway = folder.start(&[]);
    assert_eq!(status(&gateway, "/o/a/t/few"), 200);
    assert_eq!(status(&gateway, "/o/b/t/few"), 200);
    folder.write(
        "floodgate.toml",
        "watch = false\nanswers = \"problem\"\nunknown_apps = \"reject\"\n",
    );
    folder.write(
        "apps.toml",
        "[[app]]\nnames = [\"o#b\"]\nsuspended = true\n[[app]]\nnames = [\"o#c\"]\n",
    );
    folder.write("routes.toml", &route("other", 3));
    gateway.signal("-HUP");
    soon("it is reloaded", || {
        ask(&gateway, "GET").json()["applied"] == 1
    });
    let unknown = gateway.call("GET", "/o/a/users/x", "");
    assert_eq!(unknown.status, 404);
    assert_eq!(
        unknown.header("content-type"),
        Some("application/problem+json")
    );
    assert_eq!(status(&gateway, "/o/b/users/x"), 403);
    assert_eq!(status(&gateway, "/o/c/t/other"), 200);
    let told = ask(&gateway, "GET").json();
    assert_eq!(told["last"]["cause"], "signal");
    assert_eq!(gateway.metric("floodgate_decisions_total", &["t-"]), 0.0);
}

#[test]
fn a_changed_file_is_taken_and_a_bad_one_is_told_once() {
    let folder = Folder::new(&[("routes.toml", &route("few", 1))]);
    let gateway = folder.start(&[]);
    assert_eq!(status(&gateway, "/o/a/t/few"), 200);
    assert_eq!(status(&gateway, "/o/a/t/few"), 429);
    folder.write("routes.toml", &route("few", 2));
    soon("it is taken", || status(&gateway, "/o/a/t/few") == 200);
    folder.write("routes.toml", "[[route]]\nname = \"half");
    soon("it is told", || {
        config(&gateway, "last_reload_successful") == 0.0
    });
    std::thread::sleep(Duration::from_secs(2));
    let failed = gateway.metric("floodgate_config_reloads_total", &["failed"]);
    assert_eq!(failed, 1.0);
    assert_eq!(gateway.log().matches("are as they were").count(), 1);
    folder.write("routes.toml", &route("few", 3));
    soon("the next one is taken", || {
        config(&gateway, "last_reload_successful") == 1.0
    });
    assert_eq!(status(&gateway, "/o/a/t/few"), 200);
    assert_eq!(status(&gateway, "/o/a/t/few"), 429);
}

/// As Kubernetes changes the files of a `ConfigMap`.
#[test]
fn a_swapped_symlink_is_a_change_of_all_files_at_once() {
    let folder = Folder::new(&[]);
    let fill = |name: &str, quota: u32, extra: &str| {
        std::fs::create_dir(folder.path(name)).unwrap();
        folder.write(&format!("{name}/routes.toml"), &route("few", quota));
        folder.write(&format!("{name}/floodgate.toml"), extra);
    };
    fill("..1", 1, "");
    symlink("..1", folder.path("..data")).unwrap();
    for name in ["floodgate.toml", "routes.toml"] {
        symlink(format!("..data/{name}"), folder.path(name)).unwrap();
    }
    let gateway = folder.start(&[]);
    assert_eq!(status(&gateway, "/o/a/t/few"), 200);
    assert_eq!(status(&gateway, "/o/a/t/few"), 429);
    fill("..2", 2, "answers = \"problem\"\n");
    symlink("..2", folder.path("..tmp")).unwrap();
    std::fs::rename(folder.path("..tmp"), folder.path("..data")).unwrap();
    soon("it is taken", || status(&gateway, "/o/a/t/few") == 200);
    let denied = gateway.call("GET", "/o/a/t/few", "");
    assert_eq!(denied.status, 429);
    assert_eq!(
        denied.header("content-type"),
        Some("application/problem+json")
    );
    let told = ask(&gateway, "GET").json();
    assert_eq!((&told["applied"], &told["failed"]), (&json!(1), &json!(0)));
    assert_eq!(told["last"]["cause"], "file");
}

#[test]
fn a_call_ends_under_the_rules_it_began_with() {
    let slot = "[[route]]\nname = \"slot\"\ncalls = [\"POST /t/slot\"]\n\
                v3 = { limits = [\"1 tasks\", \"5/3600s\"], ip_copy = false }\n";
    let folder = Folder::new(&[("routes.toml", slot), ("floodgate.toml", "")]);
    let gateway = folder.start(&["--watch", "false"]);
    let slots = || gateway.metric("floodgate_task_slots_in_use", &[]);
    let mut running = gateway.connect();
    running.send_call("POST", "/o/a/t/slot", &["x-standin-delay-ms: 6000"], "{}");
    soon("it runs", || slots() == 1.0);
    folder.write("routes.toml", &route("other", 3));
    folder.write("floodgate.toml", "ratelimit_headers = \"off\"\n");
    reload(&gateway);
    // The new rules hold for whoever comes now.
    let answer = gateway.call("GET", "/o/a/t/other", "");
    assert_eq!((answer.status, answer.header("ratelimit")), (200, None));
    let answer = running.read_answer("POST");
    assert_eq!(answer.status, 200);
    let field = answer.header("ratelimit").expect("a field of its rules");
    assert!(field.contains("slot:"), "{field}");
    soon("its slot is free", || slots() == 0.0);
    soon("its line has its route", || {
        gateway.log().contains("\"route\":\"slot\"")
    });
    // On the same connection, the next one goes by the new rules.
    let answer = running.call("POST", "/o/a/t/slot", &[], "{}");
    assert_eq!(answer.header("ratelimit"), None);
}

#[test]
fn a_task_is_reported_done_though_its_limit_has_gone() {
    let tasks = "[[route]]\nname = \"push-task\"\n\
                 v3 = { limits = [{ rate = \"1 tasks\", hold = \"task\" }], ip_copy = false }\n";
    let folder = Folder::new(&[("routes.toml", tasks)]);
    let gateway = folder.start(&["--watch", "false"]);
    let push = || gateway.call("POST", "/o/a/push/task", "{}");
    let begun = push();
    assert_eq!(begun.status, 200);
    let task = begun.json()["data"].clone();
    assert_eq!(push().status, 403);
    folder.write(
        "routes.toml",
        &tasks.replace("1 tasks\", hold = \"task", "50/s\", mode = \"report"),
    );
    reload(&gateway);
    reload(&gateway);
    let token = format!("Authorization: Bearer {TOKEN}");
    let mut admin = Connection::to(gateway.admin);
    let path = format!("/apps/o%23a/tasks/{task}");
    soon("it is done", || {
        admin.call("DELETE", &path, &[&token], "").status == 200
    });
    folder.write("routes.toml", tasks);
    reload(&gateway);
    assert_eq!(push().status, 200);
}

#[test]
fn what_waits_for_a_restart_is_told_and_the_rest_is_taken() {
    let folder = Folder::new(&[("floodgate.toml", "threads = 2\n")]);
    let gateway = folder.start(&["--watch", "false"]);
    folder.write(
        "floodgate.toml",
        "threads = 3\nmax_counters = 5000\nstore = \"redis://127.0.0.1:1\"\nlog = \"text\"\n\
         answers = \"problem\"\n",
    );
    let told = reload(&gateway);
    // `--log json` is a flag: the file's word does not count.
    assert_eq!(
        told["restart_needed"],
        json!(["max_counters", "threads", "store"])
    );
    assert_eq!(config(&gateway, "restart_needed"), 3.0);
    let missing = gateway.call("GET", "/", "");
    assert_eq!(
        missing.header("content-type"),
        Some("application/problem+json")
    );
    assert_eq!(status(&gateway, "/o/a/users/x"), 200);
    soon("it is logged", || {
        gateway.log().contains("\"setting\":\"max_counters\"")
    });
    folder.write("floodgate.toml", "threads = 2\n");
    assert_eq!(reload(&gateway)["restart_needed"], json!([]));
    assert_eq!(config(&gateway, "restart_needed"), 0.0);
}

#[test]
fn a_receipt_of_before_gives_back_what_it_took() {
    let folder = Folder::new(&[("routes.toml", &(route("first", 3) + &route("few", 1)))]);
    let gateway = folder.start(&["--watch", "false"]);
    let token = format!("Authorization: Bearer {TOKEN}");
    let post = |path: &str, body: Value| {
        let mut admin = Connection::to(gateway.admin);
        admin
            .call("POST", path, &[&token], &body.to_string())
            .json()
    };
    let charge = json!({ "route": "few", "app": "o#a" });
    let receipt = post("/charge", charge.clone())["receipt"].clone();
    assert_eq!(post("/charge", charge.clone())["admitted"], false);
    // Its limit has another number now.
    folder.write("routes.toml", &route("few", 1));
    reload(&gateway);
    let back = post("/charge/give-back", json!({ "receipt": receipt }));
    assert_eq!(back["given_back"], true);
    assert_eq!(post("/charge", charge)["admitted"], true);
    let refunded = gateway.metric("floodgate_units_refunded_total", &["\"few:"]);
    assert_eq!(refunded, 1.0);
}

#[test]
fn other_upstreams_are_taken_and_the_old_ones_are_forgotten() {
    let standin = || StandIn::start(StandInOptions::default()).expect("a backend");
    let (first, second) = (standin(), standin());
    let pool = |to: &StandIn| {
        format!(
            "health_interval = \"100ms\"\n[[pool]]\nname = \"files\"\napps = [\"o#f\"]\n\
             health_check = \"tcp\"\nupstreams = [\"http://{}\"]\n",
            to.addr
        )
    };
    let folder = Folder::new(&[("floodgate.toml", &pool(&first))]);
    let gateway = folder.start(&["--watch", "false"]);
    assert_eq!(status(&gateway, "/o/f/users/x"), 200);
    let mut running = gateway.connect();
    running.send_call("GET", "/o/f/users/x", &["x-standin-delay-ms: 1000"], "");
    soon("it is there", || first.count() == 2);
    folder.write("floodgate.toml", &pool(&second));
    reload(&gateway);
    assert_eq!(status(&gateway, "/o/f/users/x"), 200);
    assert_eq!(running.read_answer("GET").status, 200);
    assert_eq!((first.count(), second.count()), (2, 1));
    let label = |of: &StandIn| format!("upstream=\"{}\"", of.addr);
    let text = || {
        let mut admin = Connection::to(gateway.admin);
        admin.call("GET", "/metrics", &[], "").text()
    };
    assert!(!text().contains(&label(&first)));
    // It is the new one that is looked after.
    soon("it is checked", || {
        let labels = [label(&second), "result=\"pass\"".to_owned()];
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        gateway.metric("floodgate_upstream_checks_total", &labels) >= 2.0
    });
    folder.write("floodgate.toml", "");
    reload(&gateway);
    assert!(!text().contains("pool=\"files\""));
    assert_eq!(status(&gateway, "/o/f/users/x"), 200);
    assert_eq!((first.count(), second.count()), (2, 1));
}

#[test]
fn calls_that_run_keep_their_places_when_the_bounds_of_concurrency_change() {
    let settings = |most: u32| {
        format!("concurrency = \"adaptive\"\nconcurrency_min = 2\nconcurrency_max = {most}\n")
    };
    let folder = Folder::new(&[
        ("floodgate.toml", &settings(2)),
        ("routes.toml", &route("any", 1000)),
    ]);
    let gateway = folder.start(&[]);
    let mut held: Vec<Connection> = (0..2).map(|_| gateway.connect()).collect();
    for connection in &mut held {
        connection.send_call("GET", "/o/a/t/any", &["x-standin-delay-ms: 600000"], "");
    }
    let in_flight = || gateway.metric("floodgate_upstream_concurrency_in_flight", &[]);
    let limit = || gateway.metric("floodgate_upstream_concurrency_limit", &[]);
    soon("both have a place", || in_flight() == 2.0);
    assert_eq!(gateway.call("GET", "/o/a/t/any", "").status, 503);
    folder.write("floodgate.toml", &settings(3));
    reload(&gateway);
    assert_eq!(
        (limit(), in_flight()),
        (2.0, 2.0),
        "what was learnt goes on"
    );
    assert_eq!(gateway.call("GET", "/o/a/t/any", "").status, 503);
    drop(held);
    soon("the places are free", || in_flight() == 0.0);
}

#[test]
fn only_addresses_that_are_others_than_before_a_reload_are_news() {
    let standins: Vec<_> = (0..4)
        .map(|_| StandIn::start(StandInOptions::default()).expect("a backend"))
        .collect();
    let pool = |which: &[usize]| {
        let urls: Vec<_> = which
            .iter()
            .map(|n| format!("\"http://{}\"", standins[*n].addr))
            .collect();
        let urls = urls.join(", ");
        format!("[[pool]]\nname = \"files\"\napps = [\"o#f\"]\nupstreams = [{urls}]\n")
    };
    let folder = Folder::new(&[("floodgate.toml", &pool(&[0, 1, 2]))]);
    let gateway = folder.start(&["--watch", "false"]);
    for _ in 0..3 {
        reload(&gateway);
    }
    folder.write("floodgate.toml", &pool(&[0, 3, 2]));
    reload(&gateway);
    let said = |what: &str| -> Vec<(String, Value)> {
        let log = gateway.whole_log();
        let lines = log.lines().filter(|line| line.contains(what));
        let told = |line: &str| {
            let line: Value = serde_json::from_str(line).expect("JSON");
            let upstream = line["upstream"].as_str().expect("an address").to_owned();
            (upstream, line["count"].clone())
        };
        lines.map(told).collect()
    };
    soon("it is told", || !said("address gone").is_empty());
    let told = |n: usize| vec![(standins[n].addr.to_string(), json!(3))];
    assert_eq!(said("address gone"), told(1));
    soon("the other too", || !said("address found").is_empty());
    assert_eq!(said("address found"), told(3));
}

#[test]
fn a_bad_pool_leaves_no_trace() {
    let folder = Folder::new(&[("floodgate.toml", "")]);
    let gateway = folder.start(&["--watch", "false"]);
    let bad = format!(
        "[[pool]]\nname = \"good\"\napps = [\"o#f\"]\n\
         [[pool]]\nname = \"bad\"\napps = [\"o#g\"]\nca = \"{}\"\n",
        folder.path("none.pem").display()
    );
    folder.write("floodgate.toml", &bad);
    let answer = ask(&gateway, "POST");
    assert_eq!(answer.status, 422);
    assert!(answer.text().contains("none.pem"), "{}", answer.text());
    let mut admin = Connection::to(gateway.admin);
    let text = admin.call("GET", "/metrics", &[], "").text();
    assert!(!text.contains("pool=\"good\""), "{text}");
    assert_eq!(status(&gateway, "/o/f/users/x"), 200);
}

#[test]
fn caps_on_connections_hold_from_then_on() {
    let folder = Folder::new(&[("floodgate.toml", "max_connections = 50\n")]);
    let gateway = folder.start(&["--watch", "false"]);
    let mut kept = gateway.connect();
    assert_eq!(kept.call("GET", "/o/a/users/x", &[], "").status, 200);
    folder.write(
        "floodgate.toml",
        "max_connections = 1\nmax_requests_per_connection = 2\nmax_url = 300\n",
    );
    reload(&gateway);
    soon("nobody else comes in", || gateway.connect().is_gone());
    // A connection of before goes by the new figures.
    let long = format!("/o/a/users/x?{}", "q".repeat(300));
    let answer = kept.call("GET", &long, &[], "");
    assert_eq!(
        (answer.status, answer.header("connection")),
        (414, Some("close"))
    );
}

#[test]
fn a_limit_that_has_gone_leaves_no_counters_behind() {
    let short = route("short", 1000).replace("3600s", "s");
    let folder = Folder::new(&[("routes.toml", &short)]);
    let gateway = folder.start(&["--watch", "false"]);
    let counters = || gateway.metric("floodgate_counters", &["kind=\"app\""]);
    for app in 0..20 {
        assert_eq!(status(&gateway, &format!("/o/a{app}/t/short")), 200);
    }
    assert!(counters() >= 1.0);
    folder.write("routes.toml", &route("other", 3));
    reload(&gateway);
    soon("they are gone", || counters() == 0.0);
}

/// A hundred reloads in ten seconds, each with other rules, settings and upstreams, under load.
#[test]
fn a_storm_of_reloads_under_load_loses_nothing() {
    const QUOTA: u32 = 400;
    let standin = || StandIn::start(StandInOptions::default()).expect("a backend");
    let backends = [standin(), standin()];
    let [first, second] = [0, 1].map(|n: usize| backends[n].addr);
    let settings = |nth: u32| {
        let pool = match nth % 3 {
            0 => String::new(),
            1 => format!(
                "[[pool]]\nname = \"p\"\nroutes = [\"free\"]\nupstreams = [\"http://{second}\"]\n"
            ),
            _ => format!(
                "[[pool]]\nname = \"p\"\nroutes = [\"free\"]\nbalance = \"least-connections\"\n\
                 upstreams = [\"http://{first}\", \"http://{second} weight={}\"]\n",
                nth % 7 + 1
            ),
        };
        format!(
            "dns_interval = \"{}s\"\nmax_in_flight = {}\nshield_requests = {}\n{pool}",
            nth % 5 + 1,
            1000 + nth,
            100_000 + nth % 2,
        )
    };
    let routes = |nth: u32| {
        // Limits change their numbers, and one comes and goes.
        let mut routes = vec![route("few", QUOTA), route("free", 10_000_000)];
        if nth.is_multiple_of(2) {
            routes.insert(0, route("gone", 5 + nth));
        }
        routes.concat()
    };
    let apps = |nth: u32| format!("[[app]]\nnames = [\"o#known{}\"]\n", nth % 4);
    let folder = Folder::new(&[
        ("floodgate.toml", &settings(0)),
        ("routes.toml", &routes(0)),
        ("apps.toml", &apps(0)),
    ]);
    let gateway = folder.start_before(Some(format!("http://{first}")), &[]);
    let over = AtomicBool::new(false);
    let (admitted, free, denied) = (AtomicU32::new(0), AtomicU32::new(0), AtomicU32::new(0));
    let [mut applied, mut failed] = [0, 0];
    std::thread::scope(|scope| {
        for caller in 0..4 {
            let (gateway, over) = (&gateway, &over);
            let (admitted, free, denied) = (&admitted, &free, &denied);
            scope.spawn(move || {
                let mut connection = gateway.connect();
                let mut nth = 0;
                while !over.load(Ordering::Relaxed) {
                    nth += 1;
                    if nth % 50 == 0 {
                        // The way in is not closed for a moment.
                        connection = gateway.connect();
                    }
                    let path = ["/o/a/t/few", "/o/a/t/free"][usize::from(nth % 3 > 0)];
                    let answer = connection.call("GET", path, &[], "");
                    match (path, answer.status) {
                        ("/o/a/t/few", 200) => admitted.fetch_add(1, Ordering::Relaxed),
                        ("/o/a/t/few", 429) => denied.fetch_add(1, Ordering::Relaxed),
                        ("/o/a/t/free", 200) => free.fetch_add(1, Ordering::Relaxed),
                        (_, status) => panic!("caller {caller}: {status}: {}", answer.text()),
                    };
                    std::thread::sleep(Duration::from_millis(2));
                }
            });
        }
        for nth in 1..=100 {
            folder.write("floodgate.toml", &settings(nth));
            folder.write("routes.toml", &routes(nth));
            folder.write("apps.toml", &apps(nth));
            match nth % 10 {
                3 => gateway.signal("-HUP"),
                // What is written meanwhile may be half: then nothing changes.
                6 => {
                    folder.write("routes.toml", "[[route]]\nname = ");
                    failed += u32::from(ask(&gateway, "POST").status == 422);
                }
                // Seen by the watch, or overtaken.
                9 => {}
                _ => applied += u32::from(ask(&gateway, "POST").status == 200),
            }
            std::thread::sleep(Duration::from_millis(60));
        }
        // However slow the machine is: the limit was asked for often enough to be given in full.
        let enough = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            soon("there was load", || free.load(Ordering::Relaxed) > 500);
        }));
        over.store(true, Ordering::Relaxed);
        if let Err(why) = enough {
            std::panic::resume_unwind(why);
        }
    });
    assert_eq!((applied, failed), (70, 10));
    let [admitted, free, denied] = [&admitted, &free, &denied].map(|n| n.load(Ordering::Relaxed));
    assert_eq!(
        admitted,
        QUOTA.min(admitted + denied),
        "given in full, and no more"
    );
    soon("nothing runs", || {
        gateway.metric("floodgate_requests_in_flight", &[]) == 0.0
    });
    let count = |labels: &[&str]| gateway.metric("floodgate_decisions_total", labels);
    assert_eq!(
        count(&["route=\"few\"", "verb=\"admit\""]),
        f64::from(admitted)
    );
    assert_eq!(count(&["route=\"free\""]), f64::from(free));
    assert_eq!(count(&["verb=\"shed\""]), 0.0);
    let charged = gateway.metric("floodgate_units_charged_total", &["\"few:"]);
    assert_eq!(charged, f64::from(admitted));
    let reached: usize = backends.iter().map(StandIn::count).sum();
    assert_eq!(u32::try_from(reached), Ok(admitted + free));
}
