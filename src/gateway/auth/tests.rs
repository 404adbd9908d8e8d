//! What is learnt of tokens, with a simulated clock.

use super::*;
use crate::admission::{Policy, screen};
use crate::apps::{App, Apps, Certificate, UnknownApps};
use crate::head::Head;
use crate::identity::token::TokenError;
use crate::limit::KeyHasher;

const FROM_AGORA: &str = include_str!("../../../tests/data/agora-tokens.json");

struct World {
    rules: Ruleset,
    tokens: Tokens,
    bad: Option<Duration>,
    now: Moment,
}

impl World {
    fn new(bad: Option<Duration>) -> Self {
        let mut rules = Ruleset::shipped(KeyHasher::new((1, 2))).unwrap();
        let certificate = agora()["certificate"].as_str().unwrap().to_owned();
        let app = |names: &[&str]| App {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            key: rules.keys.app(names[0]),
            editions: None,
            plan: None,
            history_days: None,
            totals: Vec::new(),
            certificates: vec![Certificate::new(&certificate).unwrap()],
            allow: Vec::new(),
            suspended: false,
            limits: Vec::new(),
        };
        let id = agora()["app"].as_str().unwrap().to_lowercase();
        rules.apps = Apps::new(vec![
            app(&["o#both", &id]),
            app(&["o#other", "00000000000000000000000000000000"]),
            App {
                certificates: Vec::new(),
                ..app(&["o#none"])
            },
        ]);
        Self {
            rules,
            tokens: Tokens::default(),
            bad,
            now: Moment {
                mono_us: 5_000_000_000,
                unix_us: agora()["issued"].as_u64().unwrap() * 1_000_000,
            },
        }
    }

    fn wait(&mut self, seconds: u64) {
        self.now.mono_us += seconds * 1_000_000;
        self.now.unix_us += seconds * 1_000_000;
    }

    fn look(&self, auth: Auth, app: &str, token: &str) -> Result<Option<Token>, Reject> {
        self.look_at(auth, app, "users", token)
    }

    fn look_at(
        &self,
        auth: Auth,
        app: &str,
        tail: &str,
        token: &str,
    ) -> Result<Option<Token>, Reject> {
        let policy = Policy {
            editions: self.rules.selection("current").unwrap(),
            auth,
            ipv6_prefix: 64,
            unknown_apps: UnknownApps::Allow,
        };
        let path = format!("/{app}/{tail}");
        let head = Head {
            method: "GET",
            raw_path: &path,
            ip: [192, 0, 2, 1].into(),
            has_bearer: true,
        };
        let call = screen(&self.rules, &policy, &head, &path).unwrap();
        self.tokens
            .look(&self.rules, auth, &call, Some(token), self.bad, self.now)
    }

    /// Whether a call with this token needs no share of what is unknown.
    fn is_good(&self, auth: Auth, token: &str) -> bool {
        self.look(auth, "o/both", token).unwrap().unwrap().is_good
    }

    fn answer(&self, token: &str, status: u16) {
        let token = self.look(Auth::RequireBearer, "o/both", token);
        self.tokens
            .answered(token.unwrap().unwrap(), status, self.bad, self.now);
    }
}

fn agora() -> serde_json::Value {
    serde_json::from_str(FROM_AGORA).unwrap()
}

/// A token of the file, by its name.
fn token(name: &str) -> String {
    let file = agora();
    let tokens = file["tokens"].as_array().unwrap();
    let found = tokens.iter().find(|token| token["name"] == name).unwrap();
    found["token"].as_str().unwrap().to_owned()
}

const SOME_S: Option<Duration> = Some(Duration::from_secs(5));

#[test]
fn a_token_is_good_when_it_was_answered_2xx_and_not_by_any_other_answer() {
    let mut world = World::new(SOME_S);
    for status in [400, 403, 404, 413, 429, 500, 503, 304] {
        world.answer("t", status);
        assert!(!world.is_good(Auth::RequireBearer, "t"), "{status}");
    }
    world.answer("t", 200);
    assert!(world.is_good(Auth::RequireBearer, "t"));
    assert!(!world.is_good(Auth::RequireBearer, "u"));
    let other = world
        .look(Auth::RequireBearer, "o/x", "t")
        .unwrap()
        .unwrap();
    assert!(!other.is_good, "another app's token is another");
    // Seen good again and again it stays so.
    for _ in 0..5 {
        world.wait(3000);
        assert!(world.is_good(Auth::RequireBearer, "t"));
        world.answer("t", 204);
    }
    world.wait(3600);
    assert!(!world.is_good(Auth::RequireBearer, "t"));
}

#[test]
fn a_2xx_of_what_no_document_has_proves_nothing() {
    let world = World::new(SOME_S);
    let look = |tail: &str| {
        let seen = world.look_at(Auth::RequireBearer, "o/both", tail, "t");
        seen.unwrap().unwrap()
    };
    world
        .tokens
        .answered(look("health"), 200, SOME_S, world.now);
    assert!(!look("users").is_good);
    world.tokens.answered(look("users"), 200, SOME_S, world.now);
    assert!(look("health").is_good);
}

#[test]
fn a_refused_token_is_refused_here_for_a_while() {
    let mut world = World::new(SOME_S);
    let look = |world: &World| world.look(Auth::RequireBearer, "o/both", "t");
    let seen = look(&world).unwrap().unwrap();
    world.answer("t", 401);
    assert_eq!(look(&world).unwrap_err(), Reject::TokenRefused);
    assert!(world.look(Auth::RequireBearer, "o/x", "t").is_ok());
    world.wait(4);
    assert!(look(&world).is_err());
    world.wait(1);
    assert!(look(&world).is_ok());
    // A call of before is answered 2xx: it was a mistake.
    world.answer("t", 401);
    world.tokens.answered(seen, 200, SOME_S, world.now);
    assert!(look(&world).unwrap().unwrap().is_good);
}

#[test]
fn a_good_token_is_refused_here_by_its_second_401_only() {
    let world = World::new(SOME_S);
    world.answer("t", 200);
    world.answer("t", 401);
    assert!(!world.is_good(Auth::RequireBearer, "t"));
    world.answer("t", 401);
    let look = world.look(Auth::RequireBearer, "o/both", "t");
    assert_eq!(look.unwrap_err(), Reject::TokenRefused);
}

#[test]
fn nothing_bad_is_remembered_where_that_is_off() {
    let world = World::new(None);
    for _ in 0..3 {
        world.answer("t", 401);
    }
    assert!(world.look(Auth::RequireBearer, "o/both", "t").is_ok());
}

#[test]
fn a_verified_token_is_good_until_it_ends() {
    let mut world = World::new(SOME_S);
    let app = token("an app token");
    assert!(!world.is_good(Auth::RequireBearer, &app));
    assert!(world.is_good(Auth::Verify, &app));
    world.answer(&app, 200);
    world.wait(3599);
    assert!(world.is_good(Auth::Verify, &app));
    world.answer(&app, 200);
    world.wait(1);
    let look = world.look(Auth::Verify, "o/both", &app);
    assert_eq!(look.unwrap_err(), Reject::Token(TokenError::Expired));
}

#[test]
fn a_token_that_was_good_unchecked_is_checked_where_it_must_be() {
    let world = World::new(SOME_S);
    let user = token("a user token");
    world.answer(&user, 200);
    assert!(world.is_good(Auth::RequireBearer, &user));
    let look = world.look(Auth::Verify, "o/both", &user);
    assert_eq!(look.unwrap_err(), Reject::Token(TokenError::NoAppPrivilege));
}

#[test]
fn a_signed_token_that_the_backend_refuses_is_refused() {
    let world = World::new(SOME_S);
    let app = token("an app token");
    for _ in 0..2 {
        assert!(world.is_good(Auth::Verify, &app));
        world.answer(&app, 200);
        world.answer(&app, 401);
        assert!(world.is_good(Auth::Verify, &app));
        world.answer(&app, 401);
        let look = world.look(Auth::Verify, "o/both", &app);
        assert_eq!(look.unwrap_err(), Reject::TokenRefused);
        let entry = world.rules.apps.find("o#both");
        let key = world.tokens.key("o#both", &app, entry);
        world.tokens.bad.remove(key);
    }
}

#[test]
fn a_token_is_verified_anew_when_its_apps_certificates_or_ids_change() {
    let mut world = World::new(SOME_S);
    let app = token("an app token");
    assert!(world.is_good(Auth::Verify, &app));
    let before = std::mem::take(&mut world.rules.apps);
    let changed = |change: &dyn Fn(&mut App)| {
        let mut all: Vec<App> = before.iter().cloned().collect();
        all.iter_mut().for_each(change);
        Apps::new(all)
    };
    world.rules.apps = changed(&|app| {
        app.certificates = vec![Certificate::new(&"0".repeat(32)).unwrap()];
    });
    let look = world.look(Auth::Verify, "o/both", &app);
    assert_eq!(look.unwrap_err(), Reject::Token(TokenError::Signature));
    world.rules.apps = changed(&|app| app.names.truncate(1));
    let look = world.look(Auth::Verify, "o/both", &app);
    assert_eq!(look.unwrap_err(), Reject::Token(TokenError::OtherApp));
    world.rules.apps = before;
    assert!(world.is_good(Auth::Verify, &app));
}

#[test]
fn a_token_is_for_the_app_of_the_path() {
    let world = World::new(SOME_S);
    let app = token("an app token");
    let look = |path: &str| {
        world
            .look(Auth::Verify, path, &app)
            .map(|t| t.unwrap().is_good)
    };
    assert_eq!(look("o/both"), Ok(true));
    assert_eq!(look("app-id/970ca35DE60c44645bbae8a215061b33"), Ok(true));
    assert_eq!(look("o/other"), Err(Reject::Token(TokenError::OtherApp)));
    // There is nothing to check it with.
    assert_eq!(look("o/none"), Ok(false));
    assert_eq!(look("o/unknown"), Ok(false));
}

#[test]
fn what_cannot_be_checked_passes_as_unknown() {
    let world = World::new(SOME_S);
    for opaque in ["YWMtabc", "anything"] {
        assert!(!world.is_good(Auth::Verify, opaque));
    }
    assert!(world.look(Auth::Off, "o/both", "t").unwrap().is_none());
}

#[test]
fn no_token_is_printed() {
    let world = World::new(SOME_S);
    let app = token("an app token");
    let seen = world.look(Auth::Verify, "o/both", &app).unwrap();
    let printed = format!("{seen:?} {:?}", world.tokens);
    assert!(!printed.contains(&app));
}

#[test]
fn a_call_with_a_known_token_allocates_nothing() {
    let world = World::new(SOME_S);
    let app = token("an app token");
    let policy = Policy {
        editions: world.rules.selection("current").unwrap(),
        auth: Auth::Verify,
        ipv6_prefix: 64,
        unknown_apps: UnknownApps::Allow,
    };
    let head = Head {
        method: "GET",
        raw_path: "/o/both/users",
        ip: [192, 0, 2, 1].into(),
        has_bearer: true,
    };
    let call = screen(&world.rules, &policy, &head, head.raw_path).unwrap();
    for token in [app.as_str(), "YWMtopaque"] {
        let run = || {
            let rules = &world.rules;
            let seen =
                world
                    .tokens
                    .look(rules, Auth::Verify, &call, Some(token), SOME_S, world.now);
            let seen = seen.unwrap().unwrap();
            let mut held = world.tokens.hold(Some(seen), &Plan::default(), 25).unwrap();
            world.tokens.answered(seen, 200, SOME_S, world.now);
            world.tokens.let_go(&mut held);
        };
        run();
        assert_eq!(allocation_counter::measure(run).count_total, 0);
    }
}
