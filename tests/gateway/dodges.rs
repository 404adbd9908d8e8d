//! Attempts to get more than the limits give. Each spends a limit in the plain way, and then
//! tries once more in another: that is denied or refused, and the backend never sees it.

use std::time::Duration;

use crate::ROUTES;
use crate::door::soon;
use crate::harness::{Answer, Connection, Gateway, Start};

fn gateway(args: &[&str]) -> Gateway {
    Start {
        routes: ROUTES,
        args,
        ..Start::default()
    }
    .start()
}

/// Raw bytes on a connection of their own.
fn raw(gateway: &Gateway, bytes: &[u8]) -> Answer {
    let mut connection = gateway.connect();
    connection.send(bytes);
    let is_head = bytes.starts_with(b"HEAD ");
    connection.read_answer(if is_head { "HEAD" } else { "GET" })
}

/// Nothing more got through than was there before.
fn is_held(gateway: &Gateway, answer: &Answer, before: usize) {
    let status = answer.status;
    assert!((400..500).contains(&status), "{status}");
    assert_eq!(gateway.backend().count(), before, "the backend saw it");
}

/// Spends a limit with this call, then tries this one.
fn after(spent: &str, times: usize, method: &str, target: &str, headers: &[&str]) {
    let gateway = gateway(&[]);
    for _ in 0..times {
        assert_eq!(gateway.call("GET", spent, "").status, 200);
    }
    let answer = gateway.connect().call(method, target, headers, "");
    is_held(&gateway, &answer, times);
    assert_eq!(gateway.call("GET", spent, "").status, 429);
}

/// A test for each: its name, and the target that stands for `/o/a/t/app`.
macro_rules! targets {
    ($($name:ident: $target:expr,)*) => {$(
        #[test]
        fn $name() {
            after("/o/a/t/app", 3, "GET", $target, &[]);
        }
    )*};
}

mod by_the_paths_spelling {
    use super::after;

    targets! {
        upper_case: "/o/a/T/APP",
        mixed_case: "/o/a/t/aPp",
        an_escaped_letter: "/o/a/t/%61pp",
        an_escaped_capital: "/o/a/t/%41pp",
        all_escaped: "/%6f/%61/%74/%61%70%70",
        lower_case_hex: "/o/a/t/a%70p",
        escaped_twice: "/o/a/t/%2561pp",
        escaped_thrice: "/o/a/t/%252561pp",
        escaped_in_halves: "/o/a/t/%25%36%31pp",
        an_escaped_slash: "/o/a/t%2Fapp",
        an_escaped_slash_twice: "/o/a/t%252Fapp",
        a_backslash: "/o/a/t\\app",
        an_escaped_backslash: "/o/a/t%5Capp",
        a_dot_segment: "/o/a/t/./app",
        a_way_up: "/o/a/t/x/../app",
        an_escaped_way_up: "/o/a/t/x/%2e%2e/app",
        a_half_escaped_way_up: "/o/a/t/x/.%2E/app",
        a_way_up_escaped_twice: "/o/a/t/x/%252e%252e/app",
        a_way_up_from_another_app: "/o/b/../a/t/app",
        a_double_slash: "/o/a/t//app",
        a_double_slash_first: "//o/a/t/app",
        a_trailing_slash: "/o/a/t/app/",
        trailing_slashes: "/o/a/t/app//",
        a_trailing_dot: "/o/a/t/app.",
        trailing_dots: "/o/a/t/app...",
        a_trailing_dot_segment: "/o/a/t/app/.",
        a_trailing_blank: "/o/a/t/app%20",
        a_trailing_tab: "/o/a/t/app%09",
        a_raw_blank: "/o/a/t/app ",
        an_extension: "/o/a/t/app.json",
        a_blank_and_an_extension: "/o/a/t/app%20.json",
        matrix_parameters: "/o/a/t/app;v=1",
        matrix_parameters_inside: "/o/a/t;v=1/app",
        escaped_matrix_parameters: "/o/a/t/app%3Bv=1",
        an_empty_matrix_parameter: "/o/a/t/app;",
        a_query: "/o/a/t/app?x=1",
        an_empty_query: "/o/a/t/app?",
        an_escaped_query: "/o/a/t/app%3Fx=1",
        a_fragment: "/o/a/t/app#x",
        an_escaped_fragment: "/o/a/t/app%23x",
        a_zero_byte: "/o/a/t/app%00",
        a_zero_byte_and_an_extension: "/o/a/t/app%00.json",
        a_line_end: "/o/a/t/app%0d%0a",
        letters_of_full_width: "/o/a/t/%EF%BD%81pp",
        an_overlong_letter: "/o/a/t/%C1%A1pp",
        an_overlong_slash: "/o/a/t%C0%AFapp",
        an_invisible_character: "/o/a/t/a%E2%80%8Bpp",
        a_byte_order_mark: "/o/a/t/%EF%BB%BFapp",
        no_utf_8: "/o/a/t/app%FF",
        a_broken_escape: "/o/a/t/%6pp",
        an_escape_of_unicode: "/o/a/t/%u0061pp",
        an_absolute_target: "http://gateway/o/a/t/app",
        an_absolute_target_in_capitals: "HTTP://gateway/o/a/t/app",
        another_host_in_the_target: "http://other/o/a/t/app",
        no_slash_first: "o/a/t/app",
        an_org_in_capitals: "/O/a/t/app",
        an_app_in_capitals: "/o/A/t/app",
        an_escaped_org: "/%4f/a/t/app",
        an_org_escaped_twice: "/%256f/a/t/app",
        an_org_with_a_blank: "/o%20/a/t/app",
        an_app_of_full_width: "/o/%EF%BD%81/t/app",
        an_app_with_a_matrix_parameter: "/o/a;x/t/app",
    }
}

/// The same for a user's limit, `/o/a/t/user/alice`.
macro_rules! users {
    ($($name:ident: $user:expr,)*) => {$(
        #[test]
        fn $name() {
            let target = format!("/o/a/t/user/{}", $user);
            after("/o/a/t/user/alice", 2, "GET", &target, &[]);
        }
    )*};
}

mod by_the_users_spelling {
    use super::after;

    #[test]
    fn a_path_in_capitals_for_a_user_that_begins_with_a_dot() {
        after("/o/a/t/user/.x", 2, "GET", "/o/a/T/USER/.x", &[]);
    }

    users! {
        upper_case: "ALICE",
        a_capital: "Alice",
        an_escaped_letter: "%61lice",
        an_escaped_capital: "%41lice",
        escaped_twice: "%2561lice",
        a_trailing_slash: "alice/",
        a_trailing_blank: "alice%20",
        a_leading_blank: "%20alice",
        a_blank_that_is_none: "alice%C2%A0",
        matrix_parameters: "alice;v=1",
        escaped_matrix_parameters: "alice%3Bv=1",
        an_escaped_query: "alice%3Fx",
        an_escaped_fragment: "alice%23x",
        a_zero_byte: "alice%00",
        a_line_end: "alice%0a",
        letters_of_full_width: "%EF%BD%81lice",
        capitals_of_full_width: "%EF%BC%A1lice",
        an_invisible_character: "al%E2%80%8Bice",
        a_soft_hyphen: "al%C2%ADice",
        a_dot_segment: "x/../alice",
        a_query: "alice?user=bob",
    }
}

mod by_the_method {
    use super::{after, gateway, is_held, raw};

    /// A test for each: method, target, and headers beside.
    macro_rules! methods {
        ($($name:ident: $method:expr, $target:expr, $headers:expr,)*) => {$(
            #[test]
            fn $name() {
                after("/o/a/t/app", 3, $method, $target, &$headers);
            }
        )*};
    }

    methods! {
        head: "HEAD", "/o/a/t/app", [],
        lower_case: "get", "/o/a/t/app", [],
        trace: "TRACE", "/o/a/t/app", [],
        an_unknown_one: "FETCH", "/o/a/t/app", [],
        an_override_of_post: "POST", "/o/a/t/app", ["X-HTTP-Method-Override: GET"],
        an_override_to_post: "GET", "/o/a/t/app", ["X-HTTP-Method-Override: POST"],
        an_override_with_underlines: "PUT", "/o/a/t/app", ["X_HTTP_METHOD_OVERRIDE: GET"],
        an_override_in_the_query: "POST", "/o/a/t/app?_method=GET", [],
        an_original_url: "GET", "/o/a/t/app", ["X-Original-URL: /o/a/t/other"],
    }

    #[test]
    fn no_override_reaches_the_backend() {
        let gateway = gateway(&[]);
        for name in [
            "X-HTTP-Method-Override",
            "X-HTTP-Method",
            "X-Method-Override",
            "X-Method",
            "X_HTTP_Method_Override",
        ] {
            let field = format!("{name}: DELETE");
            let headers = [&*field];
            let answer = gateway.connect().call("GET", "/o/a/users/x", &headers, "");
            assert_eq!(answer.status, 200);
            let seen = gateway.backend().requests().pop().expect("a request");
            assert_eq!(seen.method, "GET");
            assert!(seen.headers.iter().all(|(_, v)| v != "DELETE"), "{name}");
        }
        for query in ["_method=DELETE", "x=1&%5fMethod=DELETE"] {
            let answer = gateway.call("GET", &format!("/o/a/users/x?{query}"), "");
            is_held(&gateway, &answer, 5);
        }
    }

    #[test]
    fn an_older_version() {
        let gateway = gateway(&[]);
        let old = b"GET /o/a/t/app HTTP/1.0\r\nHost: g\r\nAuthorization: Bearer t\r\n\r\n";
        for _ in 0..3 {
            assert_eq!(raw(&gateway, old).status, 200);
        }
        assert_eq!(gateway.call("GET", "/o/a/t/app", "").status, 429);
        is_held(&gateway, &raw(&gateway, old), 3);
    }
}

mod by_the_body {
    use super::{gateway, is_held, raw};

    /// Half of ten messages is spent; this body would send six more.
    fn six_more(lines: &str, body: &[u8]) {
        let gateway = gateway(&[]);
        let five = r#"{"to":["a","b","c","d","e"]}"#;
        assert_eq!(gateway.call("POST", "/o/a/t/messages", five).status, 200);
        let length = match lines.contains("Transfer-Encoding") {
            true => String::new(),
            false => format!("Content-Length: {}\r\n", body.len()),
        };
        let mut bytes = format!(
            "POST /o/a/t/messages HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer t\r\n{length}{lines}\r\n"
        )
        .into_bytes();
        bytes.extend(body);
        is_held(&gateway, &raw(&gateway, &bytes), 1);
        assert_eq!(gateway.call("POST", "/o/a/t/messages", five).status, 200);
    }

    /// A test for each: its name, and the body.
    macro_rules! bodies {
        ($($name:ident: $body:expr,)*) => {$(
            #[test]
            fn $name() {
                six_more("", $body.as_ref());
            }
        )*};
    }

    const SIX: &str = r#"["1","2","3","4","5","6"]"#;

    fn utf16(text: &str, big: bool) -> Vec<u8> {
        let units = "\u{feff}".encode_utf16().chain(text.encode_utf16());
        units
            .flat_map(|unit| match big {
                true => unit.to_be_bytes(),
                false => unit.to_le_bytes(),
            })
            .collect()
    }

    bodies! {
        as_it_is: format!(r#"{{"to":{SIX}}}"#),
        the_field_twice_large_first: format!(r#"{{"to":{SIX},"to":["a"]}}"#),
        the_field_twice_large_last: format!(r#"{{"to":["a"],"to":{SIX}}}"#),
        the_field_twice_one_escaped: format!(r#"{{"to":["a"],"\u0074o":{SIX}}}"#),
        an_escaped_key: format!(r#"{{"\u0074\u006f":{SIX}}}"#),
        another_case: format!(r#"{{"TO":{SIX}}}"#),
        another_case_beside: format!(r#"{{"to":["a"],"To":{SIX}}}"#),
        nested: format!(r#"{{"to":{{"to":{SIX}}}}}"#),
        nested_in_an_array: format!(r#"{{"to":[{SIX}]}}"#),
        below_another: format!(r#"{{"msg":{{"to":{SIX}}}}}"#),
        a_string: r#"{"to":"1,2,3,4,5,6"}"#,
        a_string_of_json: r#"{"to":"[1,2,3,4,5,6]"}"#,
        an_object: r#"{"to":{"0":"1","1":"2","2":"3","3":"4","4":"5","5":"6"}}"#,
        a_number: r#"{"to":6}"#,
        huge_numbers: r#"{"to":[1e999,2,3,4,5,6]}"#,
        numbers_beyond_64_bits: r#"{"to":[99999999999999999999999999,2]}"#,
        numbers_with_zeros: r#"{"to":[01,2]}"#,
        nulls: r#"{"to":["1","2",null]}"#,
        null: r#"{"to":null}"#,
        empty: r#"{"to":[]}"#,
        missing: r#"{"from":"a"}"#,
        no_body: "",
        a_byte_order_mark: format!("\u{feff}{{\"to\":{SIX}}}"),
        utf_16_little: utf16(&format!(r#"{{"to":{SIX}}}"#), false),
        utf_16_big: utf16(&format!(r#"{{"to":{SIX}}}"#), true),
        no_utf_8: b"{\"to\":[\"1\"],\"x\":\"\xff\"}",
        trailing_data: format!(r#"{{"to":["a"]}}{{"to":{SIX}}}"#),
        trailing_lines: format!("{{\"to\":[\"a\"]}}\n{{\"to\":{SIX}}}"),
        trailing_zeros: "{\"to\":[\"a\"]}\0\0",
        an_array_of_calls: format!(r#"[{{"to":["a"]}},{{"to":{SIX}}}]"#),
        comments: format!(r#"{{"to":["a"]/*],"to":{SIX}//*/}}"#),
        single_quotes: "{'to':['1','2','3','4','5','6']}",
        no_quotes: "{to:[1,2,3,4,5,6]}",
        a_trailing_comma: r#"{"to":["1","2",]}"#,
        a_form: "to=1&to=2&to=3&to=4&to=5&to=6",
        a_form_of_json: format!("{{\"to\":[\"a\"]}}&to={SIX}"),
        depth: format!("{}{}", r#"{"x":"#.repeat(5000), "}".repeat(5000)),
        a_control_character_in_a_key: format!("{{\"to\":[\"a\"],\"t\no\":{SIX}}}"),
        a_broken_surrogate: r#"{"to":["\ud800","2","3","4","5","6"]}"#,
        too_many: r#"{"to":[1,2,3,4,5,6,7]}"#,
        too_large: format!("{{\"to\":[\"a\"],\"x\":\"{}\"}}", "x".repeat(70_000)),
    }

    #[test]
    fn chunks() {
        let text = format!(r#"{{"to":{SIX}}}"#);
        let chunks: String = text
            .chars()
            .map(|c| format!("1\r\n{c}\r\n"))
            .chain(["0\r\n\r\n".to_owned()])
            .collect();
        six_more("Transfer-Encoding: chunked\r\n", chunks.as_bytes());
    }

    /// For a reader of UTF-7 there is a second list in the text.
    #[test]
    fn quotation_marks_of_utf_7() {
        let body = r#"{"to":["1"],"x":"+ACI-,+ACI-to+ACI-:[1,2,3,4,5,6],+ACI-y+ACI-:+ACI-"}"#;
        for charset in ["utf-7", "\"UTF-7\"", "utf-8; charset=utf-7"] {
            let line = format!("Content-Type: application/json; charset={charset}\r\n");
            is_refused(&line, body);
        }
        is_refused(
            "Content-Type: application/json\r\nContent-Type: a/json; charset=utf-7\r\n",
            body,
        );
    }

    /// For a reader of forms there is a second list in the text.
    #[test]
    fn fields_of_a_form_in_a_text() {
        let body = r#"{"to":["1"],"x":"&to=1&to=2&to=3&to=4&to=5&to=6&y="}"#;
        is_refused("Content-Type: application/x-www-form-urlencoded\r\n", body);
        let body = r#"{"to":["1"],"x":";to=1;to=2;to=3;to=4;to=5;to=6;y="}"#;
        is_refused(
            "Content-Type: APPLICATION/x-www-form-urlencoded; charset=utf-8\r\n",
            body,
        );
    }

    /// On a connection of its own, and after a refusal on one.
    fn is_refused(lines: &str, body: &str) {
        let gateway = gateway(&[]);
        for refused_before in [false, true] {
            let mut connection = gateway.connect();
            if refused_before {
                let answer = connection.call("GET", "/nobody", &[], "");
                assert_eq!(answer.status, 404);
            }
            let request = format!(
                "POST /o/a/t/messages HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer t\r\n{lines}Content-Length: {}\r\n\r\n{body}",
                body.len()
            );
            connection.send(request.as_bytes());
            let answer = connection.read_answer("POST");
            assert!(
                matches!(answer.status, 400 | 415),
                "{lines}: {}",
                answer.status
            );
        }
        assert_eq!(gateway.backend().count(), 0, "{lines}");
    }

    /// A test for each: lines of the head, beside a plain body.
    macro_rules! heads {
        ($($name:ident: $lines:expr,)*) => {$(
            #[test]
            fn $name() {
                six_more($lines, format!(r#"{{"to":{SIX}}}"#).as_bytes());
            }
        )*};
    }

    heads! {
        a_coding: "Content-Encoding: gzip\r\n",
        a_coding_and_none: "Content-Encoding: identity, gzip\r\n",
        another_type: "Content-Type: text/plain\r\n",
        the_type_of_a_form: "Content-Type: application/x-www-form-urlencoded\r\n",
        another_charset: "Content-Type: application/json; charset=utf-16\r\n",
        an_expectation: "Expect: 100-continue\r\n",
        another_expectation: "Expect: 200-ok\r\n",
        a_query_beside: "X: ?to=a\r\n",
        two_lengths: "Content-Length: 0\r\n",
        a_second_length_with_underlines: "Content_Length: 2\r\n",
    }
}

mod by_the_address {
    use super::{gateway, is_held};

    const TRUSTED: [&str; 2] = ["--trusted-proxy", "127.0.0.0/8"];

    /// Three calls of an address, then one with these headers.
    fn from(args: &[&str], spent: &str, headers: &[&str]) {
        let gateway = gateway(args);
        for _ in 0..3 {
            let answer = gateway.connect().call("GET", "/o/a/t/ip", &[spent], "");
            assert_eq!(answer.status, 200);
        }
        let answer = gateway.connect().call("GET", "/o/a/t/ip", headers, "");
        is_held(&gateway, &answer, 3);
    }

    /// A test for each: what an untrusted peer says of itself.
    macro_rules! untrusted {
        ($($name:ident: $header:expr,)*) => {$(
            #[test]
            fn $name() {
                from(&[], "X-Nothing: 1", &[$header]);
            }
        )*};
    }

    untrusted! {
        a_spoofed_x_forwarded_for: "X-Forwarded-For: 6.6.6.6",
        a_spoofed_forwarded: "Forwarded: for=6.6.6.6",
        a_spoofed_x_real_ip: "X-Real-IP: 6.6.6.6",
        a_spoofed_true_client_ip: "True-Client-IP: 6.6.6.6",
        a_spoofed_cf_connecting_ip: "CF-Connecting-IP: 6.6.6.6",
        a_spoofed_loopback: "X-Forwarded-For: 127.0.0.1",
        a_spoofed_nobody: "X-Forwarded-For: unknown",
        a_spoofed_host: "X-Forwarded-Host: other",
    }

    /// A test for each: what a trusted proxy says of `2001:db8:1:2::1` and of `9.9.9.9`.
    macro_rules! trusted {
        ($($name:ident: $ip:literal, $headers:expr,)*) => {$(
            #[test]
            fn $name() {
                from(&TRUSTED, concat!("X-Forwarded-For: ", $ip), &$headers);
            }
        )*};
    }

    trusted! {
        the_next_address_of_a_64: "2001:db8:1:2::1", ["X-Forwarded-For: 2001:db8:1:2::2"],
        the_last_address_of_a_64: "2001:db8:1:2::1", ["X-Forwarded-For: 2001:db8:1:2:ffff:ffff:ffff:ffff"],
        an_address_written_out: "2001:db8:1:2::1", ["X-Forwarded-For: 2001:0DB8:0001:0002:0000:0000:0000:0001"],
        an_address_with_a_port: "2001:db8:1:2::1", ["X-Forwarded-For: [2001:db8:1:2::9]:4711"],
        an_address_in_quotes: "2001:db8:1:2::1", ["X-Forwarded-For: \"[2001:db8:1:2::9]\""],
        a_mapped_address: "9.9.9.9", ["X-Forwarded-For: ::ffff:9.9.9.9"],
        a_mapped_address_in_hex: "9.9.9.9", ["X-Forwarded-For: ::ffff:909:909"],
        another_port: "9.9.9.9", ["X-Forwarded-For: 9.9.9.9:1234"],
        an_address_to_the_left: "9.9.9.9", ["X-Forwarded-For: 6.6.6.6, 9.9.9.9"],
        a_line_before: "9.9.9.9", ["X-Forwarded-For: 6.6.6.6", "X-Forwarded-For: 9.9.9.9"],
        garbage_to_the_left: "9.9.9.9", ["X-Forwarded-For: \"6.6.6.6, ,,x, 9.9.9.9"],
        a_trusted_address_to_the_right: "9.9.9.9", ["X-Forwarded-For: 6.6.6.6, 9.9.9.9, 127.0.0.7"],
        forwarded_beside: "9.9.9.9", ["Forwarded: for=6.6.6.6", "X-Forwarded-For: 9.9.9.9"],
        a_real_ip_beside: "9.9.9.9", ["X-Real-IP: 6.6.6.6", "X-Forwarded-For: 9.9.9.9"],
        underlines_beside: "9.9.9.9", ["X_Forwarded_For: 6.6.6.6", "X-Forwarded-For: 9.9.9.9"],
    }

    /// The same by `Forwarded`.
    macro_rules! forwarded {
        ($($name:ident: $ip:literal, $headers:expr,)*) => {$(
            #[test]
            fn $name() {
                let args = [&TRUSTED[..], &["--client-ip-header", "forwarded"]].concat();
                from(&args, concat!("Forwarded: for=", $ip), &$headers);
            }
        )*};
    }

    forwarded! {
        forwarded_in_quotes: "9.9.9.9", ["Forwarded: For=\"9.9.9.9:80\";proto=https"],
        forwarded_of_a_64: "\"[2001:db8:1:2::1]\"", ["Forwarded: for=\"[2001:db8:1:2::9]:4711\""],
        forwarded_to_the_left: "9.9.9.9", ["Forwarded: for=6.6.6.6, for=9.9.9.9"],
        an_open_quote_to_the_left: "9.9.9.9", ["Forwarded: for=\"6.6.6.6, for=9.9.9.9"],
        an_open_quote_a_line_before: "9.9.9.9", ["Forwarded: for=\"", "Forwarded: for=9.9.9.9"],
        x_forwarded_for_beside: "9.9.9.9", ["X-Forwarded-For: 6.6.6.6", "Forwarded: for=9.9.9.9"],
        other_nobodies: "unknown", ["Forwarded: for=_hidden"],
        other_garbage: "unknown", ["Forwarded: for=1.2.3"],
        two_of_them: "unknown", ["Forwarded: for=6.6.6.6;for=7.7.7.7"],
    }

    #[test]
    fn a_wider_prefix_holds_its_networks_together() {
        let args = [&TRUSTED[..], &["--ipv6-prefix", "48"]].concat();
        let other = "X-Forwarded-For: 2001:db8:1:ffff::1";
        from(&args, "X-Forwarded-For: 2001:db8:1:2::1", &[other]);
    }
}

/// The backend takes its time.
const SLOWLY: &str = "x-standin-delay-ms: 300";

#[test]
fn closing_early_is_no_way_to_pay_nothing() {
    let gateway = gateway(ALL_AT_ONCE);
    for nth in 1..=3 {
        let mut connection = gateway.connect();
        connection.send_call("GET", "/o/a/t/app", &[SLOWLY], "");
        soon("it has arrived", || gateway.backend().count() == nth);
        connection.reset();
    }
    let answer = gateway.call("GET", "/o/a/t/app", "");
    is_held(&gateway, &answer, 3);
    std::thread::sleep(Duration::from_millis(500));
    let answer = gateway.call("GET", "/o/a/t/app", "");
    is_held(&gateway, &answer, 3);
}

#[test]
fn closing_early_frees_no_slot_while_the_task_runs() {
    let gateway = gateway(&[]);
    let mut connection = gateway.connect();
    connection.send_call("POST", "/o/a/t/slot", &["x-standin-delay-ms: 50000"], "{}");
    soon("it has arrived", || gateway.backend().count() == 1);
    connection.reset();
    std::thread::sleep(Duration::from_millis(50));
    let answer = gateway.call("POST", "/o/a/t/slot", "{}");
    is_held(&gateway, &answer, 1);
}

/// Otherwise a token that is not known yet could not have all of the figure in flight.
const ALL_AT_ONCE: &[&str] = &["--unproven-share", "100"];

/// The statuses of these, in order.
fn count(statuses: &[u16], wanted: u16) -> usize {
    statuses.iter().filter(|status| **status == wanted).count()
}

#[test]
fn pipelining_gives_no_more() {
    let gateway = gateway(&[]);
    let mut connection = gateway.connect();
    let one = "GET /o/a/t/app HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer t\r\n\r\n";
    connection.send(one.repeat(20).as_bytes());
    let statuses: Vec<u16> = (0..20)
        .map(|_| connection.read_answer("GET").status)
        .collect();
    assert_eq!((count(&statuses, 200), count(&statuses, 429)), (3, 17));
    assert_eq!(gateway.backend().count(), 3);
}

#[test]
fn many_connections_give_no_more() {
    let gateway = gateway(&[ALL_AT_ONCE, &["--threads", "4"]].concat());
    let mut connections: Vec<Connection> = (0..40).map(|_| gateway.connect()).collect();
    for connection in &mut connections {
        connection.send_call("GET", "/o/a/t/app", &[SLOWLY], "");
    }
    let read = |connection: &mut Connection| connection.read_answer("GET").status;
    let statuses: Vec<u16> = connections.iter_mut().map(read).collect();
    assert_eq!((count(&statuses, 200), count(&statuses, 429)), (3, 37));
    assert_eq!(gateway.backend().count(), 3);
}

#[test]
fn many_tokens_and_agents_give_no_more() {
    let gateway = gateway(&[]);
    let calls = (0..10).map(|i| {
        let (token, agent) = (
            format!("Authorization: Bearer {i}"),
            format!("User-Agent: {i}"),
        );
        let headers = [&*token, &*agent];
        gateway
            .connect()
            .call("GET", "/o/a/t/app", &headers, "")
            .status
    });
    let statuses: Vec<u16> = calls.collect();
    assert_eq!((count(&statuses, 200), count(&statuses, 429)), (3, 7));
}

#[test]
fn streams_of_http_2_give_no_more() {
    let gateway = gateway(&[ALL_AT_ONCE, &["--h2c"]].concat());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let statuses: Vec<u16> = runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(gateway.addr)
            .await
            .expect("a connection");
        let io = hyper_util::rt::TokioIo::new(stream);
        let executor = hyper_util::rt::TokioExecutor::new();
        let (sender, connection) = hyper::client::conn::http2::handshake(executor, io)
            .await
            .expect("a handshake");
        tokio::spawn(connection);
        let calls = (0..20).map(|_| {
            let mut sender = sender.clone();
            let request = http::Request::get(format!("http://{}/o/a/t/app", gateway.addr))
                .header("authorization", "Bearer t")
                .body(http_body_util::Empty::<bytes::Bytes>::new())
                .expect("a request");
            async move {
                let answer = sender.send_request(request).await.expect("an answer");
                answer.status().as_u16()
            }
        });
        futures_util::future::join_all(calls).await
    });
    assert_eq!((count(&statuses, 200), count(&statuses, 429)), (3, 17));
    assert_eq!(gateway.backend().count(), 3);
}

#[test]
fn a_path_of_another_form_shares_nothing_it_should_not() {
    // Another spelling of the App ID form's first segment is that form, and one app.
    let gateway = gateway(&[]);
    let mut statuses = Vec::new();
    for first in ["app-id", "App-Id", "APP-ID", "app%2Did", "app-id%20"] {
        statuses.push(
            gateway
                .call("GET", &format!("/{first}/x1/t/app"), "")
                .status,
        );
    }
    assert_eq!(count(&statuses, 429), 2, "{statuses:?}");
    assert_eq!(gateway.backend().count(), 3);
}
