//! What files of apps say, and what is said of their mistakes.

use super::*;
use crate::limit::{KeyHasher, Unit};

const CERTIFICATE: &str = "0123456789abcdef0123456789ABCDEF";

const ROUTES: &str = r#"
[editions]
v3 = { ip_copy = true }
v4 = {}
[select]
current = { app_key = "v3", app_id = "v4" }
[defaults]
limits = ["100/s"]
[[group]]
name = "account"
v3 = { limits = ["50/s"] }
[[route]]
name = "users-post"
calls = ["POST /users"]
v3 = { group = "account" }
[[route]]
name = "send"
calls = ["POST /send/{username}"]
cost = "to"
v3 = { limits = ["600 messages/min", "5/min per user"] }
v4 = { limits = ["100/s", "600 messages/min", "20 messages/s"] }
[[route]]
name = "own-ip"
calls = ["GET /own-ip"]
v3 = { limits = ["10/s", "3/s per ip"] }
[[route]]
name = "late"
calls = ["GET /late"]
v3 = { limits = ["10/s"] }
"#;

fn layer(name: &str, text: &str) -> Layer {
    Layer {
        name: name.to_owned(),
        text: text.to_owned(),
    }
}

fn rules() -> Ruleset {
    let routes = layer("routes.toml", ROUTES);
    super::super::compile::compile(&[routes], KeyHasher::new((1, 2)))
        .unwrap_or_else(|m| panic!("{m}"))
}

fn secret(place: SecretPlace<'_>) -> Result<Option<String>, String> {
    match place {
        SecretPlace::File { path: "gone", .. } => Err("cannot read gone".to_owned()),
        SecretPlace::File { path: "bad", .. } => Ok(Some(format!("{CERTIFICATE}\nsecret-x"))),
        SecretPlace::File { path: "empty", .. } => Ok(Some("\n \n".to_owned())),
        SecretPlace::File { .. } => Ok(Some(format!("{CERTIFICATE}\r\n\n{}\n", "ff".repeat(16)))),
        SecretPlace::Env(_) => Ok(Some(format!("{}, {}", "aa".repeat(16), "bb".repeat(16)))),
    }
}

fn with(files: &[&str]) -> Result<Ruleset, String> {
    let mut rules = rules();
    let editions = rules.selection("current").unwrap();
    let layers: Vec<_> = files
        .iter()
        .enumerate()
        .map(|(i, text)| layer(&format!("{i}.toml"), text))
        .collect();
    match rules.add_apps(&layers, editions, &secret) {
        Ok(()) => Ok(rules),
        Err(mistakes) => Err(mistakes.to_string()),
    }
}

fn good(text: &str) -> Ruleset {
    with(&[text]).unwrap_or_else(|mistakes| panic!("{mistakes}"))
}

fn mistakes(text: &str) -> Vec<String> {
    with(&[text])
        .unwrap_err()
        .lines()
        .map(str::to_owned)
        .collect()
}

/// The figure that holds for this app instead of that of a limit.
fn figure(rules: &Ruleset, app: &str, limit: &str) -> u32 {
    let app = rules.apps.find(app).unwrap();
    let (id, _) = (0..)
        .map(LimitId)
        .zip(&rules.limits)
        .find(|(_, known)| *known.name == *limit)
        .unwrap();
    let own = rules.limit(app.limit(id));
    assert_eq!(*own.name, *limit, "the same counter");
    assert_eq!(own.salt, rules.limit(id).salt, "the same counter");
    own.quota.get()
}

#[test]
fn an_app_is_found_by_each_of_its_names() {
    let rules = good(
        "[[app]]\nnames = [\"Org#App\", \"ID1\"]\n[[app]]\nnames = \"x#y\"\nsuspended = true\n",
    );
    assert_eq!(rules.apps.len(), 2);
    let app = rules.apps.find("org#app").unwrap();
    assert_eq!(app.names, ["org#app", "id1"]);
    assert_eq!(app.key, rules.keys.app("org#app"));
    assert_eq!(rules.apps.find_id("org#app"), rules.apps.find_id("id1"));
    assert!(rules.apps.find("x#y").unwrap().suspended && !app.suspended);
    assert!(
        rules.apps.find("Org#App").is_none(),
        "names are folded before"
    );
    assert!(rules.apps.find("").is_none());
}

#[test]
fn an_app_with_names_of_both_forms_has_the_edition_of_the_app_id_for_both() {
    let rules = good(
        "[[app]]\nnames = [\"a#a\", \"a\"]\n[[app]]\nnames = \"b#b\"\n\
         [[app]]\nnames = [\"c#c\", \"c\"]\nedition = \"v3\"\n\
         [[app]]\nnames = [\"d#d\", \"d\"]\nedition = \"current\"\n",
    );
    let edition = |name: &str| rules.selection(name).unwrap().0;
    let (v3, v4) = (edition("v3"), edition("v4"));
    let editions = |app: &str| rules.apps.find(app).unwrap().editions;
    assert_eq!(editions("a"), Some((v4, v4)));
    assert_eq!(editions("b#b"), None);
    assert_eq!(editions("c#c"), Some((v3, v3)));
    assert_eq!(editions("d"), Some((v3, v4)));
}

#[test]
fn a_figure_of_its_own_goes_over_the_one_for_all_and_keeps_the_counter() {
    let rules = good(
        "[[app]]\nnames = \"one\"\nlimits.send = [\"1200/min\", \"50 messages/s\"]\n\
         limits.unmatched = \"7/s\"\n[[app]]\nnames = \"two\"\nlimits.send = \"3 messages/min\"\n",
    );
    assert_eq!(figure(&rules, "one", "send:messages/min:app"), 1200);
    assert_eq!(figure(&rules, "one", "send:messages/s:app"), 50);
    assert_eq!(figure(&rules, "one", "send:calls/s:app"), 100);
    assert_eq!(figure(&rules, "one", "unmatched:calls/s:app"), 7);
    assert_eq!(figure(&rules, "two", "send:messages/min:app"), 3);
    assert_eq!(figure(&rules, "two", "send:messages/s:app"), 20);
    let own = rules
        .limits
        .iter()
        .filter(|limit| limit.quota.get() == 1200);
    for limit in own {
        assert_eq!(limit.unit, Unit::Messages, "the unit goes without saying");
    }
}

#[test]
fn the_copies_per_ip_of_a_raised_figure_are_raised_and_of_a_lowered_one_left() {
    let rules = good(
        "[[app]]\nnames = \"up#up\"\nlimits.send = \"1200/min\"\nlimits.own-ip = \"20/s\"\n\
         [[app]]\nnames = \"down#down\"\nlimits.send = \"10/min\"\n\
         [[app]]\nnames = \"said#said\"\nlimits.send = [\"1200/min\", \"800/min per ip\"]\n",
    );
    let copy = "send:messages/min:ip";
    assert_eq!(figure(&rules, "up#up", copy), 1200);
    assert_eq!(figure(&rules, "up#up", "own-ip:calls/s:ip"), 3, "no copy");
    assert_eq!(figure(&rules, "down#down", copy), 600);
    assert_eq!(figure(&rules, "said#said", copy), 800);
}

#[test]
fn apps_of_one_figure_share_its_limit() {
    let apps: String = (0..100)
        .map(|n| {
            format!(
                "[[app]]\nnames = \"a{n}\"\nlimits.late = \"{}/s\"\n",
                10 + n % 2
            )
        })
        .collect();
    let before = rules().limits.len();
    assert_eq!(good(&apps).limits.len(), before + 1, "10/s holds for all");
}

#[test]
fn certificates_are_read_in_their_order_and_never_printed() {
    let rules =
        good("[[app]]\nnames = \"id\"\ncertificate_file = \"c\"\ncertificate_env = \"C\"\n");
    let app = rules.apps.find("id").unwrap();
    let exposed: Vec<&str> = app.certificates.iter().map(Certificate::expose).collect();
    assert_eq!(exposed[0], CERTIFICATE, "spelt as it is");
    assert_eq!(exposed[1..], ["f", "a", "b"].map(|digit| digit.repeat(32)));
    let printed = format!("{app:?}");
    for secret in exposed {
        assert!(!printed.contains(secret), "{printed}");
    }
}

#[test]
fn mistakes_in_certificates_do_not_print_them() {
    let written = format!(
        "[[app]]\nnames = \"id\"\ncertificate_file = \"bad\"\ncertificate_env = \"{CERTIFICATE}\"\n\
         [[app]]\nnames = \"o#a\"\ncertificate_file = \"c\"\n\
         [[app]]\nnames = \"id2\"\ncertificate_file = \"empty\"\ncertificate = \"{CERTIFICATE}\"\n\
         [[app]]\nnames = \"id3\"\ncertificate_file = \"gone\"\n"
    );
    let mistakes = mistakes(&written);
    for (mistake, said) in mistakes.iter().zip([
        "0.toml:3: app `id`: `bad`: entry 2 is no certificate",
        "0.toml:4: app `id`: `certificate_env`: this looks like a certificate itself",
        "0.toml:7: app `o#a`: `c`: a certificate belongs to an App ID",
        "0.toml:10: app `id2`: `empty`: there is no certificate in it",
        "0.toml:11: app `id2`: `certificate`: unknown key of an app",
        "0.toml:14: app `id3`: `gone`: cannot read gone",
    ]) {
        assert!(mistake.starts_with(said), "{mistake}");
        assert!(!mistake.contains(CERTIFICATE) && !mistake.contains("secret-x"));
    }
    assert_eq!(mistakes.len(), 6, "{mistakes:#?}");
}

#[test]
fn addresses_are_allowed_by_network_and_mapped_ones_are_ipv4() {
    let rules = good(
        "[[app]]\nnames = \"a\"\nallow = [\"10.1.2.3/8\", \"2001:db8::/32\", \"::ffff:192.0.2.0/120\", \"::1\"]\n",
    );
    let app = rules.apps.find("a").unwrap();
    let allows = |ip: &str| app.allows(ip.parse().unwrap());
    for ip in [
        "10.9.9.9",
        "::ffff:10.9.9.9",
        "2001:db8::7",
        "192.0.2.200",
        "::ffff:192.0.2.1",
        "::1",
    ] {
        assert!(allows(ip), "{ip}");
    }
    for ip in [
        "11.0.0.1",
        "2001:db9::7",
        "192.0.3.1",
        "::2",
        "::ffff:11.0.0.1",
    ] {
        assert!(!allows(ip), "{ip}");
    }
}

#[test]
fn every_mistake_says_where_it_is_and_what_to_write() {
    let mistakes = mistakes(
        r#"
[[app]]
names = ["one#one", "ONE#one", "a/b", "app-id#x", " x", "", "%20#x"]
edition = "v5"
[[app]]
names = "one#ONE"
limits.sned = "1/s"
limits.users-post = "1/s"
limits.late = ["1/min", "0/s", "7/s", "8/s", { rate = "1/s" }, "x"]
allow = ["10.0.0.0/33"]
suspend = true
[[app]]
names = []
allow = []
[[app]]
suspended = "yes"
[[app]]
names = "v4"
limits.send = "7/s"
plan = "freee"
history_days = 0
[[ap]]
x = 1
"#,
    );
    let said = [
        ("3: app `one#one`: `ONE#one`", "has this name already"),
        ("3: app `one#one`: `\"a/b\"`", "write org#app"),
        ("3: app `one#one`: `\"app-id#x\"`", "write org#app"),
        ("3: app `one#one`: `\" x\"`", "write org#app"),
        ("3: app `one#one`: `\"\"`", "write org#app"),
        ("3: app `one#one`: `\"%20#x\"`", "write org#app"),
        (
            "4: app `one#one`: `v5`",
            "unknown edition; did you mean `v3`?",
        ),
        (
            "6: app `one#ONE`: `one#ONE`",
            "app `one#one` has this name already, in 0.toml:3",
        ),
        ("7: app `one#ONE`: `limits.sned`", "did you mean `send`?"),
        (
            "8: app `one#ONE`: `limits.users-post`",
            "write limits.account",
        ),
        ("9: app `one#ONE`: `\"0/s\"`", "write suspended = true"),
        ("9: app `one#ONE`: `{ rate = \"1/s\" }`", "write e.g."),
        ("9: app `one#ONE`: `\"x\"`", "write e.g."),
        (
            "9: app `one#ONE`: `1/min`",
            "there are calls/s:app, calls/s:ip",
        ),
        ("9: app `one#ONE`: `8/s`", "two figures for one limit"),
        (
            "10: app `one#ONE`: `\"10.0.0.0/33\"`",
            "write 203.0.113.0/24",
        ),
        ("11: app `one#ONE`: `suspend`", "did you mean `suspended`?"),
        ("13: `[]`", "write names ="),
        ("14: `[]`", "leave allow out"),
        ("15: `[[app]]`", "write names ="),
        ("16: `\"yes\"`", "suspended is true or false"),
        ("19: app `v4`: `7/s`", "write calls or messages"),
        ("20: app `v4`: `\"freee\"`", "did you mean `free`?"),
        ("21: app `v4`: `0`", "days are from 1 to 36500"),
        ("22: `ap`", "did you mean `app`?"),
    ];
    for (start, end) in said {
        let found = mistakes
            .iter()
            .any(|m| m.starts_with(&format!("0.toml:{start}: ")) && m.contains(end));
        assert!(found, "{start} … {end}:\n{mistakes:#?}");
    }
    assert_eq!(mistakes.len(), said.len(), "{mistakes:#?}");
}

#[test]
fn two_files_are_one_list_and_no_two_apps_share_a_name() {
    let rules = with(&["[[app]]\nnames = \"a\"\n", "", "[[app]]\nnames = \"b\"\n"]).unwrap();
    assert_eq!(
        rules.apps.iter().map(App::name).collect::<Vec<_>>(),
        ["a", "b"]
    );
    let twice = with(&[
        "[[app]]\nnames = \"a\"\n",
        "\n[[app]]\nnames = [\"b\", \"A\"]\n",
    ]);
    assert_eq!(
        twice.unwrap_err(),
        "1.toml:3: app `b`: `A`: app `a` has this name already, in 0.toml:2; an app's names stand in one entry"
    );
}

#[test]
fn a_slip_in_one_entry_does_not_hide_the_mistakes_of_the_next() {
    let mistakes = mistakes("[[app]]\nnames = [\"a\"\n[[app]]\nnames = \"b\"\nsuspended = 1\n");
    assert_eq!(mistakes.len(), 2, "{mistakes:#?}");
    assert!(
        mistakes[1].contains("suspended is true or false"),
        "{mistakes:#?}"
    );
}

#[test]
fn without_the_limits_all_else_is_looked_at() {
    let text = "[[app]]\nnames = \"a\"\nedition = \"none\"\nlimits.none = \"1/s\"\nsuspend = 1\n";
    let mistakes = mistakes_alone(&[layer("0.toml", text)], &secret);
    assert_eq!(mistakes.0.len(), 1, "{mistakes}");
}
