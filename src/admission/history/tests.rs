//! Which hours are kept, with a simulated clock.

use super::*;
use crate::admission::{Policy, screen};
use crate::apps::UnknownApps;
use crate::head::Head;
use crate::identity::Auth;
use crate::limit::KeyHasher;
use crate::spec::SHIPPED;
use crate::spec::compile::{Layer, compile};

const APPS: &str = r#"
[[app]]
names = ["free#app", "freeid"]
plan = "free"
[[app]]
names = "basic#app"
plan = "basic"
[[app]]
names = "advanced#app"
plan = "advanced"
[[app]]
names = "big#app"
plan = "enterprise"
[[app]]
names = "old#app"
plan = "enterprise"
edition = "v1"
[[app]]
names = "own#app"
plan = "enterprise"
history_days = 400
[[app]]
names = "days#app"
history_days = 1
[[app]]
names = "none#app"
"#;

struct World {
    rules: Ruleset,
    now: Moment,
}

impl World {
    /// With this file over the shipped one, at this time.
    fn new(layer: &str, now: &str) -> Self {
        let layers = [SHIPPED, layer].map(|text| Layer {
            name: "routes.toml".to_owned(),
            text: text.to_owned(),
        });
        let mut rules = compile(&layers, KeyHasher::new((1, 2)))
            .unwrap_or_else(|mistakes| panic!("{mistakes}"));
        let editions = rules.selection("current").unwrap();
        let apps = Layer {
            name: "apps.toml".to_owned(),
            text: APPS.to_owned(),
        };
        rules
            .add_apps(&[apps], editions, &|_| Ok(None))
            .unwrap_or_else(|mistakes| panic!("{mistakes}"));
        let time: jiff::Timestamp = now.parse().unwrap();
        let now = Moment {
            mono_us: 0,
            unix_us: u64::try_from(time.as_microsecond()).unwrap(),
        };
        Self { rules, now }
    }

    fn call(&self, method: &str, path: &str) -> Option<Box<Expired>> {
        let policy = Policy {
            editions: self.rules.selection("current").unwrap(),
            auth: Auth::RequireBearer,
            ipv6_prefix: 64,
            unknown_apps: UnknownApps::Allow,
        };
        let head = Head {
            method,
            raw_path: path,
            ip: [10, 0, 0, 1].into(),
            has_bearer: true,
        };
        let call = screen(&self.rules, &policy, &head, path).unwrap();
        expired(&self.rules, &call, path, self.now)
    }

    fn is_kept(&self, app: &str, hour: &str) -> bool {
        self.call("GET", &format!("/{app}/chatmessages/{hour}"))
            .is_none()
    }
}

#[test]
fn an_hour_is_kept_for_the_days_of_the_plan() {
    let world = World::new("", "2026-11-21T15:30:00Z");
    for (app, oldest, gone) in [
        ("free/app", "2026111815", "2026111814"),
        ("app-id/freeid", "2026111815", "2026111814"),
        ("FREE/App", "2026111815", "2026111814"),
        ("basic/app", "2026111415", "2026111414"),
        ("advanced/app", "2026082315", "2026082314"),
        ("big/app", "2026052515", "2026052514"),
        ("old/app", "2026052515", "2026052514"),
        ("own/app", "2025101715", "2025101714"),
        ("days/app", "2026112015", "2026112014"),
    ] {
        assert!(world.is_kept(app, oldest), "{app} {oldest}");
        assert!(!world.is_kept(app, gone), "{app} {gone}");
        assert!(!world.is_kept(app, "2001010100"), "{app}");
    }
}

#[test]
fn an_hour_is_gone_when_its_last_message_is_too_old() {
    // 14:00 to 15:00: of its end to the microsecond nothing is left, a microsecond before there is.
    let at = |now| World::new("", now).is_kept("free/app", "2026111814");
    assert!(at("2026-11-21T14:00:00Z"));
    assert!(at("2026-11-21T14:59:59.999999Z"));
    assert!(!at("2026-11-21T15:00:00Z"));
    assert!(!at("2026-11-21T15:00:00.000001Z"));
}

#[test]
fn what_has_no_plan_is_not_looked_at() {
    let world = World::new("", "2026-11-21T15:30:00Z");
    for app in ["none/app", "some/other", "app-id/unknown"] {
        assert!(world.is_kept(app, "2001010100"), "{app}");
    }
    assert!(
        world
            .call("OPTIONS", "/free/app/chatmessages/2001010100")
            .is_none()
    );
    assert!(world.call("GET", "/free/app/users/2001010100").is_none());
    assert!(
        world
            .call("HEAD", "/free/app/chatmessages/2001010100")
            .is_some()
    );
}

#[test]
fn what_names_no_hour_or_a_coming_one_is_for_the_backend_to_judge() {
    let world = World::new("", "2026-11-21T15:30:00Z");
    for hour in [
        "2026112115",
        "2026112116",
        "9999123123",
        "0",
        "20010101",
        "200101010",
        "20010101000",
        "2001013200",
        "2001010124",
        "2001-01-01",
        "latest",
    ] {
        assert!(world.is_kept("free/app", hour), "{hour}");
    }
}

#[test]
fn a_spelling_is_no_way_to_an_hour_that_is_gone() {
    let world = World::new("", "2026-11-21T15:30:00Z");
    for tail in [
        "chatmessages/2001010100.json",
        "chatmessages/2001010100%20",
        "CHATMESSAGES/2001010100",
        "chatmessages/%EF%BC%92001010100",
    ] {
        let path = format!("/free/app/{tail}");
        assert!(world.call("GET", &path).is_some(), "{path}");
    }
}

#[test]
fn hours_are_those_of_the_zone() {
    let world = World::new(
        "[history]\ntimezone = \"Asia/Shanghai\"\n",
        "2026-11-21T15:30:00Z",
    );
    assert!(world.is_kept("free/app", "2026111823"));
    assert!(!world.is_kept("free/app", "2026111822"));
    // Days have 24 hours, also those on which clocks are put back: 02:30, the second time.
    let world = World::new(
        "[history]\ntimezone = \"Europe/Berlin\"\n",
        "2026-10-28T01:30:00Z",
    );
    assert!(world.is_kept("free/app", "2026102502"));
    assert!(!world.is_kept("free/app", "2026102501"));
}

#[test]
fn a_layered_file_changes_one_figure_and_the_rest_stays() {
    let world = World::new("[history]\nv3 = { free = 4 }\n", "2026-11-21T15:30:00Z");
    assert!(world.is_kept("free/app", "2026111715"));
    assert!(!world.is_kept("free/app", "2026111714"));
    // Known by both forms: `v4`, which prints none, and takes those of `v3`.
    assert!(world.is_kept("app-id/freeid", "2026111715"));
    assert!(!world.is_kept("basic/app", "2026111414"));
    assert!(!world.is_kept("old/app", "2026052514"));
}

#[test]
fn what_is_off_is_not_looked_at_and_what_is_reported_says_so() {
    let now = "2026-11-21T15:30:00Z";
    let off = World::new("[history]\nmode = \"off\"\n", now);
    assert!(off.is_kept("free/app", "2001010100"));
    let report = World::new("[history]\nmode = \"report\"\n", now);
    let expired = report.call("GET", "/app-id/FreeID/chatmessages/2001010100");
    let expired = expired.unwrap();
    assert!(expired.report);
    assert_eq!((expired.plan, &*expired.app), ("free", "free#app"));
    assert_eq!(expired.hour.to_string(), "2001010100");
}

#[test]
fn absurd_times_refuse_nothing() {
    let mut world = World::new("", "2026-11-21T15:30:00Z");
    for unix_us in [0, 1, u64::MAX] {
        world.now.unix_us = unix_us;
        assert!(world.is_kept("big/app", "1970010100"), "{unix_us}");
    }
}

#[test]
fn another_call_pays_nothing_for_the_look() {
    let world = World::new("", "2026-11-21T15:30:00Z");
    let policy = Policy {
        editions: world.rules.selection("current").unwrap(),
        auth: Auth::RequireBearer,
        ipv6_prefix: 64,
        unknown_apps: UnknownApps::Allow,
    };
    let path = "/free/app/users/alice";
    let head = Head {
        method: "GET",
        raw_path: path,
        ip: [10, 0, 0, 1].into(),
        has_bearer: true,
    };
    let call = screen(&world.rules, &policy, &head, path).unwrap();
    let run = allocation_counter::measure(|| {
        assert!(asked(&world.rules, &call, path, world.now).is_none());
    });
    assert_eq!(run.count_total, 0);
}
