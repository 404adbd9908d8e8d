//! What is found in bodies and paths.

use std::sync::Arc;

use proptest::prelude::*;
use serde::de::IgnoredAny;
use serde_json::Value;

use super::place::steps;
use super::*;

fn rule(place: &str, measure: Measure, most: u64) -> Rule {
    Rule {
        limit: 0,
        place: Place::parse(place).unwrap(),
        measure,
        most: Some(Most::Fixed(most)),
        allow: None,
        types: Box::default(),
    }
}

fn typed(place: &str, most: Most, types: &[&str]) -> Rule {
    Rule {
        most: Some(most),
        types: types.iter().map(|kind| (*kind).into()).collect(),
        ..rule(place, Measure::Bytes, 0)
    }
}

fn checks(rules: Vec<Rule>) -> Arc<Checks> {
    Arc::new(Checks::new(rules, &steps("type").unwrap()))
}

fn found(checks: &Arc<Checks>, body: &[u8]) -> Found {
    let whole = checks.body(None, body);
    // In whatever pieces it comes.
    for size in [1, 7] {
        let mut checker = Checker::new(checks.clone(), None);
        body.chunks(size).for_each(|piece| checker.push(piece));
        checker.finish();
        assert_eq!(*checker.found(), whole, "{}", String::from_utf8_lossy(body));
    }
    whole
}

/// What one rule measures: its length, whether it is too much, whether the body is malformed.
fn one(place: &str, measure: Measure, most: u64, body: &str) -> (Option<u64>, bool, bool) {
    let found = found(&checks(vec![rule(place, measure, most)]), body.as_bytes());
    let length = found.measured.first().map(|(_, length)| *length);
    (length, !found.excesses.is_empty(), found.is_malformed)
}

#[test]
fn a_string_is_measured_decoded_and_all_else_as_it_is_written() {
    for (json, bytes, characters) in [
        (r#""""#, 0, 0),
        (r#""abc""#, 3, 3),
        (r#""中文""#, 6, 2),
        (r#""😀""#, 4, 1),
        (r#""\ud83d\ude00""#, 4, 1),
        (r#""\u4e2d\n\"\\\/\b\f\r\t""#, 11, 9),
        (r#""\u0000""#, 1, 1),
        ("12.5e-7", 7, 7),
        ("-0", 2, 2),
        ("true", 4, 4),
        ("null", 4, 4),
        (r#"{ "a" : [1, "中"] }"#, 20, 18),
        ("[]", 2, 2),
    ] {
        let body = format!(r#" {{"x":[{{}}],"a" :{json} , "y":"\u0061\ud800"}} "#);
        for (measure, length) in [(Measure::Bytes, bytes), (Measure::Characters, characters)] {
            let at = |most| one("a", measure, most, &body);
            assert_eq!(at(length), (Some(length), false, false), "{json}");
            assert_eq!(at(length + 1), (Some(length), false, false), "{json}");
            if length > 0 {
                assert_eq!(at(length - 1), (Some(length), true, false), "{json}");
            }
        }
    }
}

#[test]
fn a_place_is_found_wherever_it_is_and_nowhere_else() {
    // Where there is no object, all there is counts.
    for (place, body, length) in [
        (
            "a.b",
            r#"{"b":"1","a":{"b":"22","c":{"b":"333"}}}"#,
            Some(2),
        ),
        ("a.b", r#"{"a":[{"b":"22"}]}"#, Some(12)),
        ("a[]", r#"{"a":["1","333","22"]}"#, Some(3)),
        (
            "a[].b",
            r#"{"a":[{"b":"1"},{"b":"22"},7,{"c":{"b":"333"}}]}"#,
            Some(2),
        ),
        ("[].b", r#"[{"b":"1"},{"b":"22"}]"#, Some(2)),
        (
            "a.*",
            r#"{"a":{"x":"1","y":"22","z":[]},"b":"333"}"#,
            Some(2),
        ),
        ("names(a)", r#"{"a":{"x":1,"\u0079y":2},"zzz":3}"#, Some(2)),
        ("a", r#"{"\u0061":"22"}"#, Some(2)),
    ] {
        let (found, _, malformed) = one(place, Measure::Characters, 9, body);
        assert_eq!((found, malformed), (length, false), "{place} in {body}");
    }
    for (place, body, count) in [
        ("a[]", r#"{"a":[1,[2,3],{"x":4}]}"#, Some(3)),
        ("a[]", r#"{"a":[]}"#, Some(0)),
        ("a[]", r#"{"a":{"x":1}}"#, None),
        ("a[]", r#"{"a":"x"}"#, None),
        ("[]", "[1,2]", Some(2)),
        ("[]", r#"{"a":1,"b":2,"c":3}"#, None),
        ("a.*", r#"{"a":{"x":{"y":1,"z":2},"w":[1,2,3]}}"#, Some(2)),
    ] {
        assert_eq!(
            one(place, Measure::Entries, 9, body).0,
            count,
            "{place} in {body}"
        );
    }
    assert!(one("a[]", Measure::Entries, 2, r#"{"a":[1,2,3]}"#).1);
}

#[test]
fn a_character_that_may_not_be_is_found_in_any_spelling() {
    let ids = || Rule {
        allow: Charset::parse("A-Za-z0-9_.-"),
        ..rule("u[]", Measure::Characters, 64)
    };
    let why = |body: &str| {
        let found = found(&checks(vec![ids()]), body.as_bytes());
        assert!(!found.is_malformed, "{body}");
        found.excesses.first().map(|excess| excess.why)
    };
    let longest = "a".repeat(64);
    for good in ["\"aZ0_.-\"", "\"\\u0061\"", "12", &format!("\"{longest}\"")] {
        assert_eq!(why(&format!("{{\"u\":[{good}]}}")), None, "{good}");
    }
    for bad in [
        "\"a b\"",
        "\"a\\u0020b\"",
        "\"中\"",
        "\"a@b\"",
        "\"😀\"",
        "\"\\n\"",
        "\"a/b\"",
    ] {
        assert_eq!(
            why(&format!("{{\"u\":[\"a\",{bad}]}}")),
            Some(Why::Character),
            "{bad}"
        );
    }
    assert_eq!(
        why(&format!("{{\"u\":[\"{longest}a\"]}}")),
        Some(Why::TooMuch)
    );
}

#[test]
fn a_message_is_measured_by_its_type_wherever_that_stands() {
    let rules = || {
        checks(vec![
            typed("body.msg", Most::Fixed(5), &["txt"]),
            typed("body", Most::Fixed(20), &["img", "cmd"]),
            typed("ext", Most::AsMessage, &[]),
        ])
    };
    let wrong = |body: &str| {
        let found = found(&rules(), body.as_bytes());
        assert!(!found.is_malformed, "{body}");
        found
            .excesses
            .iter()
            .map(|excess| (excess.rule, excess.found, excess.most.unwrap()))
            .collect::<Vec<_>>()
    };
    let text = |msg: &str| format!(r#"{{"body":{{"msg":"{msg}"}},"type":"txt"}}"#);
    assert_eq!(wrong(&text("12345")), []);
    assert_eq!(wrong(&text("123456")), [(0, 6, 5)]);
    assert_eq!(wrong(&text("中1")), []);
    assert_eq!(wrong(&text("中文")), [(0, 6, 5)]);
    assert_eq!(wrong(&text("😀12")), [(0, 6, 5)]);
    for kind in [r#""type":"TXT","#, ""] {
        let body = format!(r#"{{{kind}"body":{{"msg":"123456"}}}}"#);
        assert_eq!(wrong(&body), [(0, 6, 5)], "{kind}");
    }
    // Of an image, the raw JSON.
    assert_eq!(wrong(r#"{"type":"img","body":{"msg":"123456789"}}"#), []);
    let large = r#"{"type":"img","body":{"msg" : "123456789"}}"#;
    assert_eq!(wrong(large), [(1, 21, 20)]);
    // `ext` by itself, as much as its message may have.
    let ext = |kind: &str, ext: &str| format!(r#"{{"ext":{ext},"type":"{kind}","body":{{}}}}"#);
    assert_eq!(wrong(&ext("txt", "{\"\":1}")), [(2, 6, 5)]);
    assert_eq!(wrong(&ext("txt", "{   }")), []);
    assert_eq!(wrong(&ext("cmd", "{\"a\":\"12345678901\"}")), []);
    assert_eq!(
        wrong(&ext("cmd", "{\"a\":\"中\",\"b\":123456}")),
        [(2, 22, 20)]
    );
    for odd in [
        r#"{"type":5}"#,
        r#"{"type":null}"#,
        r#"{"type":["txt"]}"#,
        r#"{"type":{}}"#,
    ] {
        assert!(found(&rules(), odd.as_bytes()).is_malformed, "{odd}");
    }
}

#[test]
fn what_is_no_object_is_measured_where_its_fields_are() {
    for (json, bytes, characters) in [
        (r#"{"v":"abc"}"#, Some(5), Some(5)),
        (r#"{"v":"\u0041中"}"#, Some(11), Some(9)),
        (r#"{"中":"文","v":[{"w":"中"}]}"#, Some(13), Some(11)),
        (r#"{"v": 12345 }"#, Some(5), Some(5)),
        (r#"{"v":false}"#, Some(5), Some(5)),
        (r#"{"v":{"x":"abcdef","w":"中"}}"#, Some(3), Some(1)),
        (r#"{"v":{"x":"abcdef"}}"#, None, None),
        (r#"{"x":"abc"}"#, None, None),
    ] {
        for (measure, length) in [(Measure::Bytes, bytes), (Measure::Characters, characters)] {
            let length_of = |most| one("v.w", measure, most, json);
            assert_eq!(length_of(99), (length, false, false), "{json}");
            let most = length.unwrap_or(1) - 1;
            assert_eq!(length_of(most), (length, length.is_some(), false), "{json}");
        }
    }
    // Of each field, as of one.
    let values = |json| one("v.*", Measure::Characters, 5, json);
    assert_eq!(values(r#"{"v":"中文ab"}"#), (Some(6), true, false));
    assert_eq!(
        values(r#"{"v":{"a":"中文ab","b":"x"}}"#),
        (Some(4), false, false)
    );
    // By the type of the message, as its fields are.
    let checks = checks(vec![
        typed("body.msg", Most::Fixed(5), &["txt"]),
        typed("body", Most::Fixed(20), &["img"]),
    ]);
    let is_over = |body: &str| !found(&checks, body.as_bytes()).excesses.is_empty();
    assert!(is_over(r#"{"body":"abcd","type":"txt"}"#));
    assert!(is_over(r#"{"type":"txt","body":[{"msg":"a"}]}"#));
    assert!(!is_over(r#"{"type":"txt","body":"abc"}"#));
    assert!(!is_over(r#"{"type":"img","body":"abcdef"}"#));
}

#[test]
fn a_type_that_nobody_knows_is_held_to_the_largest_figure() {
    let rules = || {
        vec![
            typed("body.msg", Most::Fixed(5), &["txt"]),
            typed("body", Most::Fixed(20), &["img", "cmd"]),
            typed("ext", Most::AsMessage, &[]),
        ]
    };
    let wrong = |checks: &Arc<Checks>, kind: &str, msg: usize, ext: usize| {
        let (msg, ext) = ("m".repeat(msg), "e".repeat(ext));
        let body = format!(r#"{{"body":{{"msg":"{msg}"}},"type":"{kind}","ext":"{ext}"}}"#);
        let found = found(checks, body.as_bytes());
        let mut wrong: Vec<_> = found.excesses.iter().map(|e| (e.rule, e.most)).collect();
        wrong.sort_unstable();
        wrong
    };
    let usual = checks(rules());
    for kind in [
        "loc",
        "txt ",
        " txt",
        "txt\\u0000",
        "text",
        "",
        "t\\tx",
        "ｔｘｔ",
        "a-type-of-more-than-sixteen-letters",
    ] {
        assert_eq!(wrong(&usual, kind, 10, 20), [], "{kind}");
        assert_eq!(wrong(&usual, kind, 11, 0), [(1, Some(20))], "{kind}");
        let all = [(0, Some(20)), (1, Some(20)), (2, Some(20))];
        assert_eq!(wrong(&usual, kind, 21, 21), all, "{kind}");
    }
    // In another case it is the type; one without a figure of its own is known still.
    assert_eq!(wrong(&usual, "Txt", 6, 6), [(0, Some(5)), (2, Some(5))]);
    let known: [Box<str>; 1] = ["loc".into()];
    let knowing = Arc::new(Checks::new(rules(), &steps("type").unwrap()).knowing(&known));
    assert_eq!(wrong(&knowing, "loc", 99, 99), []);
    assert_eq!(wrong(&knowing, "lo", 11, 0), [(1, Some(20))]);
    // Where no type has a figure, none has.
    let plain = checks(vec![typed("ext", Most::AsMessage, &[])]);
    assert_eq!(wrong(&plain, "loc", 99, 99), []);
}

#[test]
fn what_could_be_read_in_two_ways_is_malformed() {
    let rules = checks(vec![
        rule("name", Measure::Characters, 100),
        rule("a.b", Measure::Bytes, 100),
        rule("meta.*", Measure::Entries, 100),
    ]);
    let deep = "{\"x\":".repeat(600);
    let bom = "\u{feff}{}";
    for body in [
        r#"{"name":1,"name":1}"#,
        r#"{"name":1,"\u006eame":1}"#,
        r#"{"name":1,"NAME":1}"#,
        r#"{"Name":1}"#,
        r#"{"a":{"b":1,"b":2}}"#,
        r#"{"a":{"B":1}}"#,
        r#"{"meta":{"x":1,"x":2}}"#,
        r#"{"meta":{"x":1,"\u0078":2}}"#,
        r#"{"name":"\ud800"}"#,
        r#"{"name":"\udc00"}"#,
        r#"{"name":"\ud800\n"}"#,
        r#"{"name":"\ud800x"}"#,
        r#"{"name":"\ud800\ud800"}"#,
        r#"{"\ud800":1}"#,
        "{} x",
        "{}{}",
        "{",
        "{\"a\"",
        "{\"a\":}",
        "{\"a\":1,}",
        r#"{"x":[1,]}"#,
        r#"{"x":[1 2]}"#,
        "{a:1}",
        "{'a':1}",
        r#"{"x":[01]}"#,
        r#"{"x":[1.]}"#,
        r#"{"x":[.1]}"#,
        r#"{"x":[+1]}"#,
        r#"{"x":[1e]}"#,
        r#"{"x":[-]}"#,
        r#"{"x":[tru]}"#,
        r#"{"x":[nul}"#,
        r#"{"x":[True]}"#,
        "{\"x\":[\"\t\"]}",
        "{\"x\":[\"\\x\"]}",
        "{\"x\":[\"\\u12g4\"]}",
        "]",
        r#"{"x":[}}"#,
        "{]",
        " ",
        // A list of bodies, where one is looked into.
        "[]",
        r#"[{"name":1}]"#,
        r#" [{"a":{"b":1}}]"#,
        "\u{b}{}",
        bom,
        &deep,
    ] {
        assert!(found(&rules, body.as_bytes()).is_malformed, "{body}");
    }
    for body in [
        &b"{\"x\":\"\xff\"}"[..],
        b"{\"x\":\"\xe4\xb8\"}",
        b"\xff\xfe{\0}\0",
        b"{}\xff",
    ] {
        assert!(found(&rules, body).is_malformed, "{body:?}");
    }
    // Of what is not looked at, each backend reads its own.
    for body in [
        "",
        "null",
        "7",
        "\"name\"",
        r#"{"x":1,"x":2,"X":3,"y":"\ud800"}"#,
        r#"{"a":{"name":1,"Name":2,"name":3}}"#,
        r#"{"nam":1,"namesake":1,"":2}"#,
    ] {
        assert!(found(&rules, body.as_bytes()).is_good(), "{body}");
    }
}

const FORM: &[u8] = b"Application/x-www-form-urlencoded ; charset=utf-8";

fn fields(checks: &Arc<Checks>, query: &[u8], kind: Option<&[u8]>, body: &[u8]) -> Found {
    let whole = checks.fields(query, kind, body);
    for size in [1, 7] {
        let mut checker = Checker::new(checks.clone(), kind);
        checker.query(query);
        body.chunks(size).for_each(|piece| checker.push(piece));
        checker.finish();
        assert_eq!(*checker.found(), whole, "{}", String::from_utf8_lossy(body));
    }
    whole
}

#[test]
fn a_form_is_measured_decoded() {
    let form = |most| checks(vec![rule(".", Measure::Form, most)]);
    for (body, length) in [
        ("", None),
        ("a=b", Some(2)),
        ("nickname=%E4%B8%AD&sex=1", Some(8 + 3 + 3 + 1)),
        ("a=中", Some(4)),
        ("a=%F0%9F%98%80+%26", Some(1 + 4 + 1 + 1)),
        ("a&b==&&c=", Some(1 + 2 + 1)),
        ("{\"a\":1}", Some(7)),
    ] {
        let found = fields(&form(99), b"", Some(FORM), body.as_bytes());
        assert!(found.is_good(), "{body}");
        assert_eq!(
            found.measured.first().map(|(_, length)| *length),
            length,
            "{body}"
        );
    }
    let at = |length: usize| {
        let body = format!("a={}", "%E4%B8%AD".repeat(length / 3));
        fields(&form(100), b"", Some(FORM), body.as_bytes()).is_good()
    };
    assert!(at(96) && at(99) && !at(102));
    for body in [
        "a=%",
        "a=%4",
        "a=%zz",
        "a=1&a=2",
        "a&a=1",
        "%61=1&a=2",
        "a=%ff",
        "a=%E4%B8&b=1",
    ] {
        assert!(
            fields(&form(99), b"", Some(FORM), body.as_bytes()).is_malformed,
            "{body}"
        );
    }
}

#[test]
fn the_fields_of_a_query_count_with_those_of_the_form() {
    let form = checks(vec![rule(".", Measure::Form, 99)]);
    let length = |query: &str, body: &str| {
        let found = fields(&form, query.as_bytes(), Some(FORM), body.as_bytes());
        let length = found.measured.first().map(|(_, length)| *length);
        (length, found.is_malformed)
    };
    assert_eq!(length("", ""), (None, false));
    assert_eq!(length("b=%41%41", ""), (Some(3), false));
    assert_eq!(length("b=%41%41", "c=d&e"), (Some(6), false));
    assert_eq!(length("b=1&", "&c=d"), (Some(4), false));
    // One backend reads the first, another the last, a third both.
    for (query, body) in [
        ("b=1", "b=2"),
        ("b=%4", "1=2"),
        ("b=%E4%B8", "%AD=1"),
        ("b=%", ""),
    ] {
        assert!(length(query, body).1, "{query} {body}");
    }
    // Of bodies of other formats it says nothing.
    let json = checks(vec![rule("b", Measure::Bytes, 1)]);
    assert!(json.fields(b"b=%", None, b"{}").is_good());
}

#[test]
fn what_does_not_say_that_it_is_a_form_is_as_long_as_it_is() {
    let form = checks(vec![rule(".", Measure::Form, 99)]);
    let length = |kind: Option<&[u8]>, query: &[u8], body: &str| {
        let found = fields(&form, query, kind, body.as_bytes());
        assert!(!found.is_malformed, "{body}");
        found.measured.first().map(|(_, length)| *length)
    };
    let body = "a=%41%41";
    assert_eq!(length(Some(FORM), b"", body), Some(3));
    assert_eq!(length(None, b"", body), Some(8));
    for kind in [
        "application/json",
        "multipart/form-data; boundary=x",
        "x",
        "",
        "application/x-www-form-urlencoded2",
    ] {
        assert_eq!(
            length(Some(kind.as_bytes()), b"b=%41", body),
            Some(10),
            "{kind}"
        );
        assert_eq!(
            length(Some(kind.as_bytes()), b"", "{\"a\":\"1%\"}"),
            Some(10),
            "{kind}"
        );
    }
}

const BOUNDARY: &[u8] = b"multipart/form-data; boundary=\"--x\"";

fn file(content_type: &[u8], body: &[u8], most: u64) -> Found {
    let checks = checks(vec![rule(".", Measure::File, most)]);
    let whole = checks.body(Some(content_type), body);
    let mut checker = Checker::new(checks, Some(content_type));
    body.iter().for_each(|byte| checker.push(&[*byte]));
    checker.finish();
    let (pieces, shown) = (checker.found(), String::from_utf8_lossy(body));
    assert_eq!(pieces.is_malformed, whole.is_malformed, "{shown}");
    assert!(whole.is_malformed || *pieces == whole, "{shown}");
    whole
}

fn part(content: &str) -> String {
    format!(
        "----x\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\n{content}\r\n----x--\r\n"
    )
}

#[test]
fn a_file_is_measured_without_its_frame() {
    for content in [
        "",
        "abc",
        "中文😀",
        "\r\n--",
        "\r\n----y",
        "\r\r\n\r\n---\r\n----",
        "\r\n\r\n",
    ] {
        let found = file(BOUNDARY, part(content).as_bytes(), content.len() as u64);
        assert!(found.is_good(), "{content:?} {found:?}");
        assert_eq!(
            found.measured.to_vec(),
            [(0, content.len() as u64)],
            "{content:?}"
        );
        if !content.is_empty() {
            let found = file(BOUNDARY, part(content).as_bytes(), content.len() as u64 - 1);
            assert_eq!(found.excesses.len(), 1, "{content:?}");
        }
    }
    // Any part is a file to some backend.
    let several = format!(
        "\r\n----x\r\nContent-Disposition: form-data; name=b\r\n\r\n12345\r\n{}",
        part("123").replace("----x--\r\n", "----x-- \t\r\n\r\n")
    );
    let found = file(BOUNDARY, several.as_bytes(), 5);
    assert!(
        found.is_good() && found.measured.to_vec() == [(0, 5)],
        "{found:?}"
    );
    assert!(!file(BOUNDARY, several.as_bytes(), 4).is_good());
    assert!(file(BOUNDARY, part("").trim_end().as_bytes(), 5).is_good());
    // A body that is not multipart is the file, and one of another kind is one to some backend.
    for kind in [&b"image/png"[..], b"multipart/mixed; boundary=x"] {
        assert!(file(kind, b"12345", 5).is_good());
        assert!(!file(kind, b"123456", 5).is_good());
    }
}

#[test]
fn a_multipart_body_that_could_be_read_in_two_ways_is_malformed() {
    let good = part("abc");
    let again = &good[..good.len() - 4];
    let twice = format!("{again}\r\n{good}");
    let after = |rest: &str| format!("{}{rest}", good.trim_end());
    let content = |text: &str| part(text);
    for body in [
        "----x\r\n",
        "no parts",
        &good[..good.len() - 5],
        &good.replace("----x--", "----x-"),
        &good.replacen("----x\r\n", "----xy\r\n", 1),
        &good.replacen("\r\n\r\n", "\r\n", 1),
        &good.replacen("form-data;", &" ".repeat(9000), 1),
        // The same field twice, in any spelling.
        &twice,
        &twice.replacen("\"file\"", "file", 1),
        &twice.replacen("\"file\"", "\"File\"", 1),
        // A preamble, and what is a delimiter in it to some.
        &format!("before\r\n{good}"),
        &format!("\r\n\r\n{good}"),
        &format!("\n{good}"),
        &format!("----y\r\n{good}"),
        &format!("x----x\r\n\r\nabc\r\n{good}"),
        // A delimiter after half a line break, or none.
        &content("a\n----x\r\n\r\nb"),
        &content("a\r----x\r\n\r\nb"),
        &content("a\n----x"),
        &content("a\n----xyz"),
        &content("\n----x--\r\n"),
        &content("----x\r\n\r\nb"),
        &content("----xyz"),
        // More in a delimiter's line.
        &good.replacen("----x\r\n", "----x  \r\n", 1),
        &good.replacen("----x\r\n", "----x\t\r\n", 1),
        &good.replacen("----x\r\n", "----x\n", 1),
        &good.replacen("----x\r\n", "----x-\r\n", 1),
        &content("a\r\n----xyz"),
        &after("x"),
        &after("-"),
        &after("x\r\n"),
        &after("\n"),
        &after("\r"),
        &after("\rx"),
        &after(" x"),
        // More after the last one.
        &after("\r\nafter"),
        &after(&format!("\r\n{good}")),
        &good.replacen("----x--\r\n", "----x--y\r\n----x--\r\n", 1),
        // Heads.
        &good.replacen(": form-data;", ": form-data;\r\n ", 1),
        &good.replacen("; filename", "; filename*0", 1),
        &good.replacen(
            "\r\n\r\n",
            "\r\nContent-Transfer-Encoding: base64\r\n\r\n",
            1,
        ),
        &good.replacen("\r\n\r\n", "\n\n", 1),
        &good.replacen("\r\n\r\n", "\n\r\n", 1),
    ] {
        assert!(file(BOUNDARY, body.as_bytes(), 99).is_malformed, "{body}");
    }
    // In a line, it is content to everyone.
    for content in ["a----x\r\nb", "\r\n -----x", "\r\n-----x", "\n---- x"] {
        let found = file(BOUNDARY, part(content).as_bytes(), 99);
        assert!(found.is_good(), "{content:?}");
        assert_eq!(found.measured.to_vec(), [(0, content.len() as u64)]);
    }
    for kind in [
        &b"multipart/form-data"[..],
        b"multipart/form-data; boundary=",
        b"multipart/form-data; boundary=a; boundary=b",
        b"multipart/form-data; boundary=\"--x\"; boundary*=\"y\"",
        b"Multipart/Form-Data; Boundary=\"a\tb\"",
    ] {
        assert!(file(kind, good.as_bytes(), 99).is_malformed, "{kind:?}");
    }
}

#[test]
fn a_segment_of_a_path_is_measured_decoded() {
    let ids = |place: &str| {
        checks(vec![Rule {
            allow: Charset::parse("A-Za-z0-9_.-"),
            ..rule(place, Measure::Characters, 64)
        }])
    };
    let why = |place: &str, tail: &str| {
        let mut found = Found::default();
        let decode = |segment: &str| crate::route::canonical::decode(segment);
        ids(place).path("/users/{username}/x/{other}", tail, decode, &mut found);
        found.excesses.first().map(|excess| excess.why)
    };
    let long = "a".repeat(64);
    assert_eq!(why("{username}", &format!("/users/{long}/x/@")), None);
    assert_eq!(
        why("{username}", &format!("/users/{long}a/x/b")),
        Some(Why::TooMuch)
    );
    assert_eq!(why("{username}", "/users/a%20b/x/b"), Some(Why::Character));
    assert_eq!(why("{other}", "/users/a/x/%E4%B8%AD"), Some(Why::Character));
    assert_eq!(why("{other}", "/users/a/x/b,c"), Some(Why::Character));
    assert_eq!(why("{other}[]", "/users/a/x/b,c%2Cd"), None);
    assert_eq!(
        why("{other}[]", &format!("/users/a/x/b,{long}a")),
        Some(Why::TooMuch)
    );
    let count = checks(vec![rule("{other}[]", Measure::Entries, 2)]);
    for (tail, good) in [("/users/a/x/b,c", true), ("/users/a/x/b%2Cc,d", false)] {
        let mut found = Found::default();
        let decode = |segment: &str| crate::route::canonical::decode(segment);
        count.path("/users/{username}/x/{other}", tail, decode, &mut found);
        assert_eq!(found.is_good(), good, "{tail}");
    }
}

#[test]
fn a_set_of_characters_is_written_in_one_way() {
    let set = Charset::parse("A-Za-z0-9_.-").unwrap();
    let all: String = (0..=255_u8)
        .filter(|b| set.has_all(&[*b]))
        .map(char::from)
        .collect();
    assert_eq!(
        all,
        "-.0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz"
    );
    assert!(Charset::parse("-a").unwrap().has_all(b"-a"));
    for wrong in ["", "z-a", "a-Z", "0-z", "中", " ", "a b"] {
        assert_eq!(Charset::parse(wrong), None, "{wrong}");
    }
}

fn arb_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a中😀\"\\\\\n]{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::btree_map("a|b|[c-e\"\\\\中]{0,3}", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// The same by a tree.
fn by_tree(value: &Value, measure: Measure) -> u64 {
    let raw;
    let text = match value {
        Value::String(text) => text,
        other => {
            raw = other.to_string();
            &raw
        }
    };
    let length = match measure {
        Measure::Characters => text.chars().count(),
        _ => text.len(),
    };
    length as u64
}

proptest! {
    #[test]
    fn what_is_measured_is_what_a_tree_has(value in arb_json(), ascii in any::<bool>()) {
        let mut text = value.to_string();
        if ascii {
            // Escapes make strings no longer, and containers are measured as they are written.
            prop_assume!(value.get("a").is_none_or(|a| !a.is_array() && !a.is_object()));
            text = text
                .chars()
                .map(|c| match c.is_ascii() {
                    true => c.to_string(),
                    false => {
                        let mut units = [0; 2];
                        c.encode_utf16(&mut units)
                            .iter()
                            .map(|unit| format!("\\u{unit:04x}"))
                            .collect()
                    }
                })
                .collect();
        }
        for measure in [Measure::Bytes, Measure::Characters] {
            let rules = checks(vec![rule("a", measure, 99), rule("b[]", Measure::Entries, 99)]);
            let found = found(&rules, text.as_bytes());
            prop_assert_eq!(found.is_malformed, value.is_array());
            if found.is_malformed {
                continue;
            }
            let length = |nth| found.measured.iter().find(|(known, _)| *known == nth).map(|(_, l)| *l);
            prop_assert_eq!(length(0), value.get("a").map(|a| by_tree(a, measure)));
            let entries = value.get("b").and_then(|b| match b {
                Value::Array(items) => Some(items.len() as u64),
                _ => None,
            });
            prop_assert_eq!(length(1), entries);
        }
    }

    #[test]
    fn what_is_json_is_json(text in r#"[\[\]{},:"a1\-+.eE\\u0dn\nt ]{0,12}"#) {
        let rules = checks(vec![rule("none", Measure::Bytes, 9)]);
        let text = format!("{{\"x\":{text}}}");
        let is_json = serde_json::from_str::<IgnoredAny>(&text).is_ok();
        prop_assert_eq!(!found(&rules, text.as_bytes()).is_malformed, is_json, "{}", text);
    }

    #[test]
    fn a_text_of_json_is_json(value in arb_json(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut text = format!("{{\"x\":{value}}}").into_bytes();
        let at = at.index(text.len());
        text[at] = byte;
        let rules = checks(vec![rule("none", Measure::Bytes, 9)]);
        let is_json = std::str::from_utf8(&text).is_ok()
            && serde_json::from_slice::<IgnoredAny>(&text).is_ok();
        prop_assert_eq!(!found(&rules, &text).is_malformed, is_json);
    }

    #[test]
    fn any_bytes_give_an_answer(body in prop::collection::vec(any::<u8>(), 0..100)) {
        for measure in [Measure::Form, Measure::File] {
            found(&checks(vec![rule(".", measure, 9)]), &body);
        }
        file(BOUNDARY, &body, 9);
        found(&checks(vec![rule("a.*", Measure::Characters, 9)]), &body);
    }
}
