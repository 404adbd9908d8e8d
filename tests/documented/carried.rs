//! What the limits pages let a call carry, at, below and above each figure, with ASCII, Chinese
//! and emoji: the figures and places here share nothing with `routes.toml`.

use std::collections::BTreeSet;

use floodgate::admission::{self, Policy, payload};
use floodgate::head::Head;
use floodgate::identity::Auth;
use floodgate::spec::Ruleset;
use floodgate::spec::payload::{Answer, Judged};

use crate::{EDITIONS, edition, none, shipped};

/// As the pages print it, oldest edition first; `v4` prints none, and has `v3`'s.
type Figures = [Option<usize>; 4];

const KB: usize = 1024;
const MESSAGE: Figures = [Some(5 * KB), Some(3 * KB), Some(3 * KB), Some(3 * KB)];
/// `v1` has a figure for the file alone.
const MEDIA: Figures = [None, Some(3 * KB), Some(3 * KB), Some(3 * KB)];
const FILE: Figures = [Some(10 * KB * KB); 4];

const fn all(figure: usize) -> Figures {
    [Some(figure); 4]
}

#[derive(Clone, Copy)]
enum Unit {
    Bytes,
    Characters,
    Entries,
}
use Unit::{Bytes, Characters, Entries};

/// A limit at one place. In `call` and `body`, `@` is what is measured; `frame` of it is there
/// already.
struct Case {
    limit: &'static str,
    place: &'static str,
    call: &'static str,
    body: &'static str,
    unit: Unit,
    frame: usize,
    most: Figures,
}

const fn case(
    limit: &'static str,
    place: &'static str,
    call: &'static str,
    body: &'static str,
    unit: Unit,
    most: Figures,
) -> Case {
    Case {
        limit,
        place,
        call,
        body,
        unit,
        frame: 0,
        most,
    }
}

const fn framed(frame: usize, case: Case) -> Case {
    Case { frame, ..case }
}

/// The calls that send a message of its own fields, and those that have it in one field: where it
/// stands, and its `ext`.
const MESSAGES: &[(&str, &str, &str, &str)] = &[
    ("POST /messages/users", "", "body", "ext"),
    ("POST /messages/chatgroups", "", "body", "ext"),
    ("POST /messages/chatrooms", "", "body", "ext"),
    ("POST /messages/chatgroups/users", "", "body", "ext"),
    ("POST /messages/users/import", "", "body", "ext"),
    ("POST /messages/chatgroups/import", "", "body", "ext"),
    ("POST /messages", "msg", "msg", "ext"),
    ("POST /messages/users/broadcast", "msg", "msg", "ext"),
    ("POST /messages/chatrooms/broadcast", "msg", "msg", "ext"),
    ("PUT /messages/rewrite/1", "new_msg", "new_msg", "new_ext"),
];

/// What a message of this type looks like: its body (`@` is what is measured), and how much of
/// what is measured is there already.
fn message(typed: &str, kind: &str, body: &str, ext: (&str, &str)) -> (String, usize) {
    let (ext, ext_value) = ext;
    let text = match (typed, kind) {
        ("", _) => format!(
            r#"{{"from":"a","to":["b"],"type":"{kind}","body":{body},"{ext}":{ext_value}}}"#
        ),
        (field, _) => {
            let inner = body.trim_start_matches('{').trim_end_matches('}');
            format!(r#"{{"{ext}":{ext_value},"{field}":{{"type":"{kind}",{inner}}}}}"#)
        }
    };
    // Of a message in one field, its type is a part of it.
    let frame = match typed {
        "" => body.len() - 1,
        _ => body.len() - 1 + format!(r#""type":"{kind}","#).len(),
    };
    (text, frame)
}

const CASES: &[Case] = &[
    case(
        "group-name",
        "groupname",
        "POST /chatgroups",
        r#"{"groupname":"@"}"#,
        Characters,
        all(128),
    ),
    case(
        "group-description",
        "desc",
        "POST /chatgroups",
        r#"{"desc":"@"}"#,
        Characters,
        all(512),
    ),
    case(
        "group-description",
        "description",
        "POST /chatgroups",
        r#"{"description":"@"}"#,
        Characters,
        all(512),
    ),
    case(
        "group-ext",
        "custom",
        "POST /chatgroups",
        r#"{"custom":"@"}"#,
        Characters,
        all(1024),
    ),
    framed(
        8,
        case(
            "group-ext",
            "custom",
            "POST /chatgroups",
            r#"{"custom":{"k":"@"}}"#,
            Characters,
            all(1024),
        ),
    ),
    case(
        "group-name",
        "groupname",
        "PUT /chatgroups/1",
        r#"{"groupname":"@"}"#,
        Characters,
        all(128),
    ),
    case(
        "group-description",
        "desc",
        "PUT /chatgroups/1",
        r#"{"desc":"@"}"#,
        Characters,
        all(512),
    ),
    case(
        "group-description",
        "description",
        "PUT /chatgroups/1",
        r#"{"description":"@"}"#,
        Characters,
        all(512),
    ),
    case(
        "group-ext",
        "custom",
        "PUT /chatgroups/1",
        r#"{"custom":"@"}"#,
        Characters,
        all(1024),
    ),
    case(
        "room-name",
        "name",
        "POST /chatrooms",
        r#"{"name":"@"}"#,
        Characters,
        all(128),
    ),
    case(
        "room-description",
        "description",
        "POST /chatrooms",
        r#"{"description":"@"}"#,
        Characters,
        all(512),
    ),
    case(
        "room-name",
        "name",
        "PUT /chatrooms/1",
        r#"{"name":"@"}"#,
        Characters,
        all(128),
    ),
    case(
        "room-description",
        "description",
        "PUT /chatrooms/1",
        r#"{"description":"@"}"#,
        Characters,
        all(512),
    ),
    case(
        "room-attribute-values",
        "metaData.*",
        "PUT /metadata/chatroom/1/user/u",
        r#"{"metaData":{"k":"@"}}"#,
        Characters,
        all(4096),
    ),
    case(
        "room-attribute-values",
        "metaData.*",
        "PUT /metadata/chatroom/1/user/u/forced",
        r#"{"metaData":{"j":"","k":"@"}}"#,
        Characters,
        all(4096),
    ),
    case(
        "room-attributes",
        "metaData.*",
        "PUT /metadata/chatroom/1/user/u",
        r#"{"metaData":{@}}"#,
        Entries,
        all(100),
    ),
    case(
        "room-attributes",
        "metaData.*",
        "PUT /metadata/chatroom/1/user/u/forced",
        r#"{"metaData":{@}}"#,
        Entries,
        all(100),
    ),
    case(
        "room-attribute-keys",
        "names(metaData)",
        "PUT /metadata/chatroom/1/user/u",
        r#"{"metaData":{"@":"v"}}"#,
        Characters,
        all(128),
    ),
    case(
        "room-attribute-keys",
        "names(metaData)",
        "PUT /metadata/chatroom/1/user/u/forced",
        r#"{"metaData":{"@":"v"}}"#,
        Characters,
        all(128),
    ),
    framed(
        8,
        case(
            "user-attributes",
            ".",
            "PUT /metadata/user/u",
            "nickname=@",
            Bytes,
            all(2 * KB),
        ),
    ),
    case(
        "users-registered",
        "[]",
        "POST /users",
        "[@]",
        Entries,
        all(60),
    ),
    case(
        "user-id-registered",
        "username",
        "POST /users",
        r#"{"username":"@"}"#,
        Characters,
        all(64),
    ),
    case(
        "user-id-registered",
        "[].username",
        "POST /users",
        r#"[{"username":"a"},{"username":"@"}]"#,
        Characters,
        all(64),
    ),
    case(
        "friends-imported",
        "usernames[]",
        "POST /users/u/contacts/import",
        r#"{"usernames":[@]}"#,
        Entries,
        all(10),
    ),
    case(
        "members-added",
        "usernames[]",
        "POST /chatgroups/1/users",
        r#"{"usernames":[@]}"#,
        Entries,
        all(60),
    ),
    case(
        "members-added",
        "usernames[]",
        "POST /chatrooms/1/users",
        r#"{"usernames":[@]}"#,
        Entries,
        all(60),
    ),
    case(
        "listed-added",
        "usernames[]",
        "POST /chatgroups/1/blocks/users",
        r#"{"usernames":[@]}"#,
        Entries,
        all(60),
    ),
    case(
        "listed-added",
        "usernames[]",
        "POST /chatrooms/1/blocks/users",
        r#"{"usernames":[@]}"#,
        Entries,
        all(60),
    ),
    case(
        "listed-added",
        "usernames[]",
        "POST /chatgroups/1/white/users",
        r#"{"usernames":[@]}"#,
        Entries,
        all(60),
    ),
    case(
        "listed-added",
        "usernames[]",
        "POST /chatrooms/1/white/users",
        r#"{"usernames":[@]}"#,
        Entries,
        all(60),
    ),
    case(
        "group-members-removed",
        "{username}[]",
        "DELETE /chatgroups/1/users/@",
        "",
        Entries,
        all(60),
    ),
    case(
        "room-members-removed",
        "{username}[]",
        "DELETE /chatrooms/1/users/@",
        "",
        Entries,
        all(100),
    ),
    case(
        "listed-removed",
        "{username}[]",
        "DELETE /chatgroups/1/blocks/users/@",
        "",
        Entries,
        all(60),
    ),
    case(
        "listed-removed",
        "{username}[]",
        "DELETE /chatrooms/1/blocks/users/@",
        "",
        Entries,
        all(60),
    ),
    case("file", ".", "POST /chatfiles", "@", Bytes, FILE),
    case(
        "file",
        ".",
        "POST /chatgroups/1/share_files",
        "@",
        Bytes,
        FILE,
    ),
];

/// The limits of one message, with the body of each.
fn of_messages() -> Vec<(String, String, String, String, usize, Figures)> {
    let mut cases = Vec::new();
    for (call, typed, at, ext) in MESSAGES {
        let mut add = |limit: &str, place: String, body: (String, usize), most: Figures| {
            cases.push((
                limit.to_owned(),
                place,
                (*call).to_owned(),
                body.0,
                body.1,
                most,
            ));
        };
        let text = message(typed, "txt", r#"{"msg":"@"}"#, (ext, "{}"));
        add("message-text", format!("{at}.msg"), (text.0, 0), MESSAGE);
        for (limit, kinds, most) in [
            (
                "message-media",
                &["img", "audio", "video", "file"][..],
                MEDIA,
            ),
            ("message-command", &["cmd"], MESSAGE),
            ("message-custom", &["custom"], MESSAGE),
        ] {
            for kind in kinds {
                let body = message(typed, kind, r#"{"x":"@"}"#, (ext, "{}"));
                add(limit, (*at).to_owned(), body, most);
            }
        }
        let frame = r#"{"k":""}"#.len();
        for (kind, most) in [
            ("txt", MESSAGE),
            ("img", MEDIA),
            ("cmd", MESSAGE),
            // No row of its own.
            ("loc", MESSAGE),
        ] {
            let (body, _) = message(typed, kind, r#"{"x":1}"#, (ext, r#"{"k":"@"}"#));
            add("message-ext", (*ext).to_owned(), (body, frame), most);
        }
    }
    cases
}

fn policy(rules: &Ruleset, name: &str) -> Policy {
    let edition = edition(rules, name);
    Policy {
        editions: (edition, edition),
        auth: Auth::RequireBearer,
        ipv6_prefix: 64,
        unknown_apps: Default::default(),
    }
}

/// What is refused of a call.
fn judged(rules: &Ruleset, edition: &str, call: &str, body: &[u8]) -> Judged {
    let (method, tail) = call.split_once(' ').unwrap();
    let path = format!("/o/a{tail}");
    let path = floodgate::route::canonical::canonical(&path).unwrap();
    let head = Head {
        method,
        raw_path: &path,
        ip: [192, 0, 2, 1].into(),
        has_bearer: true,
    };
    let call = admission::screen(rules, &policy(rules, edition), &head, &path).unwrap();
    let found = payload::in_path(rules, &call, method, &path);
    let in_path = payload::judge(rules, &call, &found);
    match in_path.refused.is_some() {
        true => in_path,
        false => {
            // Only what is a form by the documents is looked at for it.
            let form: &[u8] = b"application/x-www-form-urlencoded";
            payload::in_body(rules, &call, b"", Some(form), body)
        }
    }
}

/// `units` of it, mostly of this character.
fn fill(unit: Unit, filler: char, units: usize, call: &str) -> String {
    match unit {
        Characters => filler.to_string().repeat(units),
        Bytes => {
            let whole = filler.to_string().repeat(units / filler.len_utf8());
            format!("{whole}{}", "a".repeat(units % filler.len_utf8()))
        }
        Entries => {
            let list: Vec<String> = (0..units)
                .map(|nth| match call.split_once('/').unwrap().1 {
                    tail if tail.starts_with("metadata/") => format!("\"k{nth}\":\"{filler}\""),
                    "users" => format!("{{\"username\":\"u{nth}\"}}"),
                    tail if tail.ends_with('@') => format!("u{nth}"),
                    _ => format!("\"u{nth}\""),
                })
                .collect();
            list.join(",")
        }
    }
}

/// Every limit, at every place of every route, in every edition.
#[test]
fn each_limit_holds_at_its_figure_and_lets_pass_what_is_not_above_it() {
    let rules = shipped();
    let mut cases: Vec<_> = CASES
        .iter()
        .map(|case| {
            let (limit, place, call) = (case.limit, case.place, case.call);
            let texts = (limit.to_owned(), place.to_owned(), call.to_owned());
            (
                texts,
                case.body.to_owned(),
                case.unit,
                case.frame,
                case.most,
            )
        })
        .collect();
    let messages = of_messages();
    cases.extend(
        messages
            .into_iter()
            .map(|(limit, place, call, body, frame, most)| {
                ((limit, place, call), body, Bytes, frame, most)
            }),
    );
    let mut mistakes = Vec::new();
    let mut tried = 0;
    for ((limit, place, call), body, unit, frame, most) in &cases {
        // Keys and user IDs have ASCII alone; a file of any content is as long as it is.
        let ascii = limit.contains("keys") || limit.contains("user-id") || limit == "file";
        let fillers: &[char] = if ascii { &['a'] } else { &['a', '中', '😀'] };
        for (nth, name) in EDITIONS.iter().enumerate() {
            for filler in fillers {
                let figure = most[nth];
                let lengths = match figure {
                    Some(most) => vec![most - 1, most, most + 1],
                    None => vec![20_000],
                };
                for length in lengths {
                    let text = fill(*unit, *filler, length - frame, call);
                    let body = body.replace('@', &text);
                    let judged = judged(rules, name, &call.replace('@', &text), body.as_bytes());
                    let refused = judged.refused.as_ref();
                    let expected = figure.is_some_and(|most| length > most);
                    let told = refused.map(|refused| (&*refused.name, refused.most));
                    let right = match told {
                        Some((by, most)) => {
                            expected && by == limit && most == figure.map(|most| most as u64)
                        }
                        None => !expected && !judged.is_malformed,
                    };
                    if !right {
                        mistakes.push(format!("{limit} at {place} of {call} in {name}, {length} of {filler}: {judged:?}"));
                    }
                    tried += 1;
                }
            }
        }
    }
    none(&mistakes);
    assert!(tried > 2000, "{tried}");
    // And no place that is checked is missing here.
    let tried: BTreeSet<(String, String, String)> = cases
        .iter()
        .map(|((limit, place, call), ..)| {
            let (method, tail) = call.split_once(' ').unwrap();
            let id = crate::route_of(rules, method, tail);
            (
                rules.routes[id.0].name.to_string(),
                limit.clone(),
                place.clone(),
            )
        })
        .collect();
    let mut missing = Vec::new();
    for (id, route) in rules.routes.iter().enumerate() {
        for name in EDITIONS {
            let id = floodgate::spec::RouteId(id);
            let Some(checked) = rules.payloads.of(id, edition(rules, name)) else {
                continue;
            };
            for rule in checked.checks.rules() {
                let limit = rules.payloads.limits[rule.limit].name.to_string();
                let place = rule.place.to_string();
                let known = (route.name.to_string(), limit.clone(), place.clone());
                if limit != "user-id" && !tried.contains(&known) {
                    missing.push(format!("{} {limit} at {place}", route.name));
                }
            }
        }
    }
    none(&missing);
}

/// A type that has no row is no way around the figures of those that have one.
#[test]
fn a_message_of_no_documented_type_has_the_largest_figure_of_all() {
    let rules = shipped();
    let mut mistakes = Vec::new();
    for (call, typed, _, ext) in MESSAGES {
        for kind in ["loc", "txt ", "text", " img", "customs", ""] {
            for (nth, name) in EDITIONS.iter().enumerate() {
                let largest = MESSAGE[nth].max(MEDIA[nth]).unwrap();
                let (body, frame) = message(typed, kind, r#"{"msg":"@"}"#, (ext, "{}"));
                for length in [largest, largest + 1] {
                    let body = body.replace('@', &"a".repeat(length - frame));
                    let refused = judged(rules, name, call, body.as_bytes()).refused;
                    let most = refused.and_then(|refused| refused.most);
                    if most != (length > largest).then_some(largest as u64) {
                        mistakes.push(format!("{call} in {name}, {kind:?} of {length}: {most:?}"));
                    }
                }
            }
        }
    }
    none(&mistakes);
}

#[test]
fn keys_and_registered_users_have_the_documented_characters_alone() {
    let rules = shipped();
    for (call, body, limit) in [
        (
            "PUT /metadata/chatroom/1/user/u",
            r#"{"metaData":{"@":"v"}}"#,
            "room-attribute-keys",
        ),
        ("POST /users", r#"{"username":"@"}"#, "user-id-registered"),
        ("POST /users", r#"[{"username":"@"}]"#, "user-id-registered"),
    ] {
        let refused = |text: &str| {
            let judged = judged(rules, "v3", call, body.replace('@', text).as_bytes());
            judged.refused.map(|refused| refused.name.to_string())
        };
        assert_eq!(refused("azAZ09_-."), None);
        for bad in ["a b", "中", "😀", "a@b", "a/b", "a\\u4e2d", "a:b"] {
            assert_eq!(refused(bad).as_deref(), Some(limit), "{bad}");
        }
    }
}

/// A place of user IDs: the route's call, with one ID in it.
const USERS: &[(&str, &str)] = &[
    ("GET /users/@", ""),
    ("PUT /users/@", ""),
    ("POST /users/a/contacts/users/@", ""),
    ("DELETE /users/a/blocks/users/@", ""),
    ("DELETE /chatgroups/1/admin/@", ""),
    ("DELETE /chatrooms/super_admin/@", ""),
    ("DELETE /chatgroups/1/mute/a,@", ""),
    ("DELETE /chatgroups/1/users/a,@", ""),
    ("GET /mutes/@", ""),
    ("POST /messages/users", r#"{"from":"@","to":["a"]}"#),
    ("POST /messages/users", r#"{"from":"a","to":["a","@"]}"#),
    (
        "POST /messages/chatgroups/users",
        r#"{"to":["1"],"users":["@"]}"#,
    ),
    ("POST /chatgroups", r#"{"owner":"@"}"#),
    ("POST /chatgroups", r#"{"owner":"a","members":["a","@"]}"#),
    ("PUT /chatgroups/1", r#"{"newowner":"@"}"#),
    ("POST /chatrooms/1/users", r#"{"usernames":["@"]}"#),
    ("POST /users/a/blocks/users", r#"{"usernames":["@"]}"#),
    ("POST /mutes", r#"{"username":"@"}"#),
    ("POST /push/single", r#"{"targets":["@"]}"#),
    (
        "POST /metadata/user/get",
        r#"{"targets":["@"],"properties":["a"]}"#,
    ),
];

#[test]
fn user_ids_in_paths_and_lists_are_reported_and_pass() {
    let rules = shipped();
    for (call, body) in USERS {
        for (text, is_good) in [
            ("a".repeat(64), true),
            ("a".repeat(65), false),
            ("a".to_owned(), true),
            ("a%40b".to_owned(), false),
            ("中".to_owned(), false),
        ] {
            let judged = judged(
                rules,
                "v3",
                &call.replace('@', &text),
                body.replace('@', &text).as_bytes(),
            );
            assert!(
                judged.refused.is_none() && !judged.is_malformed,
                "{call} {text}"
            );
            // In a body, a percent sign is a character like any other.
            let in_path = call.contains('@');
            if in_path {
                assert!(judged.reported.is_empty(), "the path is judged by itself");
            } else {
                assert_eq!(judged.reported.is_empty(), is_good, "{call} {body} {text}");
            }
            let (method, tail) = call.split_once(' ').unwrap();
            let path = format!("/o/a{}", tail.replace('@', &text));
            let path = floodgate::route::canonical::canonical(&path).unwrap();
            let head = Head {
                method,
                raw_path: &path,
                ip: [192, 0, 2, 1].into(),
                has_bearer: true,
            };
            let known = admission::screen(rules, &policy(rules, "v3"), &head, &path).unwrap();
            let found = payload::in_path(rules, &known, method, &path);
            let reported = payload::judge(rules, &known, &found).reported;
            assert_eq!(reported.is_empty(), is_good || !in_path, "{call} {text}");
        }
    }
}

#[test]
fn what_a_caller_is_told_is_the_services_own_answer() {
    let rules = shipped();
    for (limit, answer) in [
        ("message-text", Answer::Message),
        ("message-media", Answer::Message),
        ("message-ext", Answer::Message),
        ("file", Answer::File),
        ("users-registered", Answer::Users),
        ("group-name", Answer::Argument),
    ] {
        let known = rules
            .payloads
            .limits
            .iter()
            .find(|known| &*known.name == limit);
        assert_eq!(known.map(|known| known.answer), Some(answer), "{limit}");
    }
}
