//! The spine over the embedded store, with a simulated clock.

use std::future::Future;
use std::net::IpAddr;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use super::*;
use crate::limit::KeyHasher;
use crate::route::pricing::Cap;
use crate::spec::Unmatched;
use crate::spec::compile::{Layer, compile};
use crate::store::memory::{MemoryOptions, MemoryStore};

const ROUTES: &str = r#"
[editions]
v1 = { ip_copy = true }
[select]
current = { app_key = "v1", app_id = "v1" }
[defaults]
limits = ["3/s"]
[ip]
unauthorized = ["2/s"]
rejected = ["2/s"]
options = ["2/s"]
[[route]]
name = "send"
calls = ["POST /send/{username}"]
cost = "to"
max_recipients = 5
v1 = { limits = ["10 messages/min", "4/s", "3/min per user"] }
[[route]]
name = "run"
calls = ["POST /run"]
v1 = { limits = [{ rate = "1 tasks", hold = "task", max_hold = "60s" }] }
[[route]]
name = "token"
calls = ["POST /token"]
auth = "off"
v1 = { limits = ["5/s"] }
"#;

struct World {
    rules: Ruleset,
    policy: Policy,
    spine: Admission<MemoryStore>,
    now: Moment,
}

/// The embedded store answers at once.
fn ready<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("the embedded store waited"),
    }
}

impl World {
    fn new() -> Self {
        let layer = Layer {
            name: "routes.toml".to_owned(),
            text: ROUTES.to_owned(),
        };
        let rules = compile(&[layer], KeyHasher::new((7, 8))).unwrap_or_else(|m| panic!("{m}"));
        let editions = rules.selection("current").unwrap();
        Self {
            policy: Policy {
                editions,
                auth: Auth::RequireBearer,
                ipv6_prefix: 64,
                unknown_apps: Default::default(),
            },
            rules,
            spine: Admission::new(MemoryStore::new(MemoryOptions {
                max_counters: 100_000,
            })),
            now: Moment {
                mono_us: 10_000_000_000,
                unix_us: 1_700_000_000_000_000,
            },
        }
    }

    fn screen(&self, method: &str, path: &str, ip: &str, has_bearer: bool) -> Result<Call, Reject> {
        let head = Head {
            method,
            raw_path: path,
            ip: ip.parse().unwrap(),
            has_bearer,
        };
        self.spine.screen(&self.rules, &self.policy, &head, path)
    }

    fn admit(
        &self,
        method: &str,
        path: &str,
        recipients: u32,
    ) -> Result<(Call, Admitted), Refused> {
        let call = self.screen(method, path, "192.0.2.1", true).unwrap();
        ready(self.spine.admit(&self.rules, &call, recipients, self.now))
            .map(|admitted| (call, admitted))
    }

    fn finish(&self, app: &str) -> bool {
        ready(
            self.spine
                .finish_task(&self.rules, &[], app, "t1", self.now),
        )
        .unwrap()
    }

    fn denied_by(&self, method: &str, path: &str, recipients: u32) -> String {
        match self.admit(method, path, recipients) {
            Err(Refused::Deny(denied)) => self.rules.limit(denied.limit).name.to_string(),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn another_spelling_of_a_route_has_its_limits_and_none_of_its_rights() {
    let mut world = World::new();
    let target = |path: &str| {
        world
            .screen("POST", path, "192.0.2.1", true)
            .map(|call| call.target)
    };
    assert_eq!(target("/o/a/TOKEN"), target("/o/a/token"));
    assert_eq!(target("/o/a/Send/bob"), target("/o/a/send/bob"));
    let without = |path: &str| world.screen("POST", path, "192.0.2.1", false);
    assert!(without("/o/a/token").is_ok());
    assert_eq!(without("/o/a/TOKEN").err(), Some(Reject::Unauthenticated));
    world.rules.unmatched = Unmatched::Reject;
    let target = |path: &str| {
        world
            .screen("POST", path, "192.0.2.1", true)
            .map(|call| call.target)
    };
    assert_eq!(target("/o/a/TOKEN"), Err(Reject::NotFound));
    assert!(target("/o/a/token").is_ok());
}

#[test]
fn a_denied_call_has_charged_no_limit() {
    let world = World::new();
    assert!(world.admit("POST", "/o/a/send/alice", 8).is_ok());
    // 2 messages are left: the call is denied by them, and the user's 3 calls are whole but one.
    assert_eq!(
        world.denied_by("POST", "/o/a/send/alice", 3),
        "send:messages/min:app"
    );
    assert!(world.admit("POST", "/o/a/send/alice", 1).is_ok());
    assert!(world.admit("POST", "/o/a/send/alice", 1).is_ok());
}

#[test]
fn a_call_that_was_not_forwarded_gets_all_back_once() {
    let world = World::new();
    let (call, mut admitted) = world.admit("POST", "/o/a/send/alice", 10).unwrap();
    let back = world.spine.settle(
        &world.rules,
        &call,
        &mut admitted.plan,
        Outcome::NotForwarded,
        world.now,
    );
    assert_eq!(back.len(), 5, "{back:?}");
    let again = world.spine.settle(
        &world.rules,
        &call,
        &mut admitted.plan,
        Outcome::NotForwarded,
        world.now,
    );
    assert_eq!(again, []);
    assert!(world.admit("POST", "/o/a/send/alice", 10).is_ok());
    assert_eq!(
        world.denied_by("POST", "/o/a/send/bob", 1),
        "send:messages/min:app"
    );
}

#[test]
fn a_401_gives_the_app_back_and_not_the_address() {
    let world = World::new();
    let (call, mut admitted) = world.admit("POST", "/o/a/send/alice", 4).unwrap();
    let outcome = Outcome::Answered {
        status: 401,
        task: None,
    };
    let back = world
        .spine
        .settle(&world.rules, &call, &mut admitted.plan, outcome, world.now);
    let names: Vec<&str> = back
        .iter()
        .map(|(id, _)| &*world.rules.limit(*id).name)
        .collect();
    assert_eq!(
        names,
        [
            "send:messages/min:app",
            "send:calls/s:app",
            "send:calls/min:user"
        ]
    );
    // The per-IP copy of the message limit has kept its 4 of 10.
    assert_eq!(
        world.denied_by("POST", "/o/b/send/bob", 7),
        "send:messages/min:ip"
    );
}

#[test]
fn other_answers_have_cost_their_units() {
    let world = World::new();
    for outcome in [
        Outcome::Answered {
            status: 500,
            task: None,
        },
        Outcome::NoAnswer { task: "c1" },
    ] {
        let (call, mut admitted) = world.admit("POST", "/o/a/send/alice", 5).unwrap();
        assert_eq!(
            world
                .spine
                .settle(&world.rules, &call, &mut admitted.plan, outcome, world.now),
            []
        );
    }
    assert_eq!(
        world.denied_by("POST", "/o/a/send/alice", 1),
        "send:messages/min:app"
    );
}

#[test]
fn an_address_that_used_up_its_refusals_reaches_no_app() {
    let world = World::new();
    let ip: IpAddr = "192.0.2.1".parse().unwrap();
    assert_eq!(
        world
            .screen("GET", "/o/a/x", "192.0.2.1", false)
            .unwrap_err(),
        Reject::Unauthenticated
    );
    for _ in 0..2 {
        let charged = world.spine.charge_address(
            &world.rules,
            &world.policy,
            ip,
            &Reject::Unauthenticated,
            world.now,
        );
        assert!(ready(charged).is_ok());
    }
    assert_eq!(
        world.denied_by("GET", "/o/a/x", 1),
        "unauthorized:calls/s:ip"
    );
    // Another address is not touched.
    let call = world.screen("GET", "/o/a/x", "192.0.2.2", true).unwrap();
    assert!(ready(world.spine.admit(&world.rules, &call, 1, world.now)).is_ok());
}

#[test]
fn a_task_holds_its_slot_until_done_or_expired() {
    let mut world = World::new();
    let (call, mut admitted) = world.admit("POST", "/o/a/run", 1).unwrap();
    let outcome = Outcome::Answered {
        status: 200,
        task: Some("t1"),
    };
    world
        .spine
        .settle(&world.rules, &call, &mut admitted.plan, outcome, world.now);
    assert_eq!(world.denied_by("POST", "/o/a/run", 1), "run:tasks:app");
    assert!(!world.finish("o#b"), "another app's task");
    assert!(world.finish("O#A"));
    assert!(!world.finish("o#a"));

    let (call, mut admitted) = world.admit("POST", "/o/a/run", 1).unwrap();
    world
        .spine
        .settle(&world.rules, &call, &mut admitted.plan, outcome, world.now);
    world.now.mono_us += 59_000_000;
    assert_eq!(world.denied_by("POST", "/o/a/run", 1), "run:tasks:app");
    world.now.mono_us += 2_000_000;
    assert!(world.admit("POST", "/o/a/run", 1).is_ok());
}

#[test]
fn a_failed_task_frees_its_slot() {
    let world = World::new();
    for outcome in [
        Outcome::Answered {
            status: 500,
            task: Some("t1"),
        },
        Outcome::Answered {
            status: 200,
            task: None,
        },
        Outcome::Incomplete,
        Outcome::NotForwarded,
    ] {
        let (call, mut admitted) = world.admit("POST", "/o/a/run", 1).unwrap();
        world
            .spine
            .settle(&world.rules, &call, &mut admitted.plan, outcome, world.now);
    }
    assert!(world.admit("POST", "/o/a/run", 1).is_ok());
}

#[test]
fn a_task_that_nobody_heard_of_holds_its_slot_for_its_longest_time() {
    let mut world = World::new();
    let (call, mut admitted) = world.admit("POST", "/o/a/run", 1).unwrap();
    let outcome = Outcome::NoAnswer { task: "t1" };
    world
        .spine
        .settle(&world.rules, &call, &mut admitted.plan, outcome, world.now);
    assert_eq!(world.denied_by("POST", "/o/a/run", 1), "run:tasks:app");
    world.now.mono_us += 61_000_000;
    assert!(world.admit("POST", "/o/a/run", 1).is_ok());
}

#[test]
fn an_incomplete_call_gives_back_what_a_401_does() {
    let world = World::new();
    let back = [
        Outcome::Incomplete,
        Outcome::Answered {
            status: 401,
            task: None,
        },
    ]
    .map(|outcome| {
        let (call, mut admitted) = world.admit("POST", "/o/a/send/alice", 4).unwrap();
        world
            .spine
            .settle(&world.rules, &call, &mut admitted.plan, outcome, world.now)
    });
    assert_eq!(back[0].len(), 3);
    assert_eq!(back[0], back[1]);
}

#[test]
fn options_is_charged_to_its_address_and_a_token_call_needs_no_token() {
    let world = World::new();
    let call = world
        .screen("OPTIONS", "/o/a/send/alice", "192.0.2.1", false)
        .unwrap();
    assert_eq!(call.target, Target::Options);
    assert!(
        call.limits(&world.rules)
            .all(|id| world.rules.limit(id).scope == Scope::Ip)
    );
    assert!(
        world
            .screen("POST", "/o/a/token", "192.0.2.1", false)
            .is_ok()
    );
}

#[test]
fn recipients_beyond_the_cap_are_refused() {
    let world = World::new();
    let route = &world.rules.routes[0];
    assert_eq!(recipients(route, br#"{"to":["a","b"]}"#), Ok(2));
    let many = recipients(route, br#"{"to":["a","b","c","d","e","f"]}"#);
    assert_eq!(
        many,
        Err(Reject::Body(PriceError::TooMany(Cap {
            max: 5,
            field: "to".into()
        })))
    );
}

#[test]
fn a_foreign_charge_that_nobody_gives_back_frees_its_slot_and_keeps_its_units() {
    let world = World::new();
    let foreign = |route: &str, ip: Option<&str>| {
        let ip = ip.map(|ip| ip.parse().unwrap());
        Foreign::new(&world.rules, &world.policy, route, "O#A", None, ip, 1).unwrap()
    };
    let admit =
        |foreign: &Foreign| ready(world.spine.admit_foreign(&world.rules, foreign, world.now));
    let mut task = admit(&foreign("run", None)).unwrap();
    assert!(task.plan.charges.iter().all(|c| c.scope == Scope::App));
    assert!(admit(&foreign("run", None)).is_err());
    world.spine.end_foreign(&mut task.plan, world.now);
    assert!(admit(&foreign("run", None)).is_ok());

    let with_ip = foreign("token", Some("192.0.2.1"));
    for _ in 0..5 {
        let mut call = admit(&with_ip).unwrap();
        assert!(call.plan.charges.iter().any(|c| c.scope == Scope::Ip));
        world.spine.end_foreign(&mut call.plan, world.now);
    }
    assert_eq!(
        world.denied_by("POST", "/o/a/token", 1),
        "token:calls/s:app"
    );
}

/// The same world, where these apps are known.
fn with_apps(text: &str) -> World {
    let mut world = World::new();
    let layer = Layer {
        name: "apps.toml".to_owned(),
        text: text.to_owned(),
    };
    let editions = world.policy.editions;
    world
        .rules
        .add_apps(&[layer], editions, &|_| Ok(None))
        .unwrap_or_else(|m| panic!("{m}"));
    world
}

#[test]
fn all_names_of_an_app_share_its_counters_and_its_users() {
    let world = with_apps("[[app]]\nnames = [\"Org#App\", \"ID1\"]\n");
    let (call, _) = world.admit("POST", "/app-id/id1/send/Alice", 1).unwrap();
    assert_eq!(call.caller.app, "org#app", "as logs know it");
    assert!(world.admit("POST", "/org/APP/send/alice", 1).is_ok());
    assert!(world.admit("POST", "/app-id/ID1/send/ALICE", 1).is_ok());
    assert_eq!(
        world.denied_by("POST", "/org/app/send/alice", 1),
        "send:calls/min:user"
    );
    assert!(world.admit("POST", "/org/app/send/bob", 1).is_ok());
    assert_eq!(
        world.denied_by("POST", "/app-id/id1/send/bob", 1),
        "send:calls/s:app"
    );
}

#[test]
fn others_charge_look_and_reset_by_any_name() {
    let world = with_apps("[[app]]\nnames = [\"o#a\", \"id\"]\n");
    let foreign = Foreign::new(
        &world.rules,
        &world.policy,
        "send",
        "ID",
        Some("eve"),
        None,
        4,
    );
    let foreign = foreign.unwrap();
    assert!(ready(world.spine.admit_foreign(&world.rules, &foreign, world.now)).is_ok());
    assert_eq!(foreign.call().caller.app, "o#a");
    let limit = (0..)
        .map(LimitId)
        .find(|id| &*world.rules.limit(*id).name == "send:messages/min:app")
        .unwrap();
    let left = |owner| ready(world.spine.left(&world.rules, limit, owner, world.now)).unwrap();
    assert_eq!(left(Owner::App("O#A")), 6);
    assert_eq!(left(Owner::App("id")), 6);
    ready(
        world
            .spine
            .reset(&world.rules, &[limit], Owner::App("ID"), world.now),
    )
    .unwrap();
    assert_eq!(left(Owner::App("o#a")), 10);
}

#[test]
fn a_task_is_reported_done_by_any_name_of_its_app() {
    let world = with_apps("[[app]]\nnames = [\"o#a\", \"id\"]\n");
    let (call, mut admitted) = world.admit("POST", "/o/a/run", 1).unwrap();
    let outcome = Outcome::Answered {
        status: 200,
        task: Some("t1"),
    };
    world
        .spine
        .settle(&world.rules, &call, &mut admitted.plan, outcome, world.now);
    assert_eq!(
        world.denied_by("POST", "/app-id/id/run", 1),
        "run:tasks:app"
    );
    assert!(world.finish("ID"));
    assert!(world.admit("POST", "/app-id/id/run", 1).is_ok());
}

#[test]
fn a_figure_of_its_own_holds_for_the_app_and_for_no_other() {
    let world = with_apps(
        "[[app]]\nnames = \"up#up\"\nlimits.send = [\"20 messages/min\", \"9/s\", \"9/min per user\"]\n\
         [[app]]\nnames = \"down#down\"\nlimits.send = \"2 messages/min\"\n",
    );
    assert_eq!(
        world.denied_by("POST", "/down/down/send/a", 3),
        "send:messages/min:app"
    );
    assert!(world.admit("POST", "/down/down/send/a", 2).is_ok());
    // Addresses count across apps: 18 of 20 for this one, and more than 10 for any other.
    for _ in 0..3 {
        assert!(world.admit("POST", "/up/up/send/a", 5).is_ok());
    }
    assert!(world.admit("POST", "/up/up/send/a", 3).is_ok());
    assert_eq!(
        world.denied_by("POST", "/up/up/send/a", 3),
        "send:messages/min:app"
    );
    assert_eq!(
        world.denied_by("POST", "/o/a/send/a", 1),
        "send:messages/min:ip"
    );
}

#[test]
fn a_suspended_app_and_an_address_that_it_does_not_allow_cost_the_address_alone() {
    let world = with_apps(
        "[[app]]\nnames = \"gone#gone\"\nsuspended = true\n\
         [[app]]\nnames = \"shut#shut\"\nallow = [\"2001:db8::/32\"]\n",
    );
    let screen = |path: &str, ip: &str| world.screen("POST", path, ip, true).map(|_| ());
    assert_eq!(
        screen("/gone/gone/send/a", "192.0.2.1"),
        Err(Reject::Suspended)
    );
    assert_eq!(
        screen("/gone/gone/no/such/path", "192.0.2.1"),
        Err(Reject::Suspended)
    );
    assert_eq!(
        screen("/shut/shut/send/a", "192.0.2.1"),
        Err(Reject::Address)
    );
    assert_eq!(screen("/shut/shut/send/a", "2001:db8::1"), Ok(()));
    let options = world.screen("OPTIONS", "/gone/gone/send/a", "192.0.2.1", false);
    assert_eq!(options.map(|_| ()), Err(Reject::Suspended));
    for reject in [Reject::Suspended, Reject::Address] {
        let names: Vec<&str> = address_limits(&world.rules, &reject)
            .iter()
            .map(|id| &*world.rules.limit(*id).name)
            .collect();
        assert_eq!(names, ["unauthorized:calls/s:ip"]);
    }
}

#[test]
fn where_apps_must_be_known_others_cost_the_address_alone() {
    let mut world = with_apps("[[app]]\nnames = [\"o#a\", \"id\"]\n");
    world.policy.unknown_apps = UnknownApps::Reject;
    let screen = |path: &str| world.screen("POST", path, "192.0.2.1", true).map(|_| ());
    assert_eq!(screen("/o/a/send/a"), Ok(()));
    assert_eq!(screen("/app-id/ID/send/a"), Ok(()));
    for path in [
        "/o/b/send/a",
        "/app-id/id2/send/a",
        "/id/send",
        "/o%23a/x/send/a",
    ] {
        assert_eq!(screen(path), Err(Reject::UnknownApp), "{path}");
    }
    let names: Vec<&str> = address_limits(&world.rules, &Reject::UnknownApp)
        .iter()
        .map(|id| &*world.rules.limit(*id).name)
        .collect();
    assert_eq!(names, ["rejected:calls/s:ip"]);
}

#[test]
fn a_user_that_others_charge_is_the_user_that_a_path_spells() {
    let world = World::new();
    for user in ["Alice", "\u{ff21}lice", " alice\u{200b}"] {
        let foreign = Foreign::new(
            &world.rules,
            &world.policy,
            "send",
            "o#a",
            Some(user),
            None,
            1,
        );
        let foreign = foreign.unwrap();
        assert_eq!(
            foreign.call().caller.user.as_deref(),
            Some("alice"),
            "{user:?}"
        );
        assert!(ready(world.spine.admit_foreign(&world.rules, &foreign, world.now)).is_ok());
    }
    assert_eq!(
        world.denied_by("POST", "/o/a/send/%EF%BC%A1lice", 1),
        "send:calls/min:user"
    );
}
