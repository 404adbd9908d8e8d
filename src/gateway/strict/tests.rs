use http::Method;

use super::*;

/// A request as pingora hands it over.
fn request(target: &str, fields: &[(&'static str, &str)]) -> RequestHeader {
    let mut request =
        RequestHeader::build(Method::POST, target.as_bytes(), None).expect("a request");
    for (name, value) in fields {
        request.append_header(*name, *value).expect("a field");
    }
    request
}

fn fault(target: &str, fields: &[(&'static str, &str)]) -> Option<Fault> {
    let mut head = format!("POST {target} HTTP/1.1\r\n");
    for (name, value) in fields {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    of_http1(head.as_bytes(), &request(target, fields))
}

#[test]
fn a_plain_request_passes() {
    for target in [
        "/o/a/users?x=%2F&y=1",
        "http://gateway/o/a/users",
        "HTTPS://gateway",
    ] {
        let fields = [("Host", "gateway"), ("Content-Length", "12")];
        assert_eq!(fault(target, &fields), None, "{target}");
    }
    let fields = [("Host", "gateway"), ("Transfer-Encoding", "Chunked")];
    assert_eq!(fault("/", &fields), None);
}

#[test]
fn a_line_ends_in_both_characters() {
    let plain = request("/", &[("Host", "g")]);
    for (head, expected) in [
        ("GET / HTTP/1.1\r\nHost: g\r\n\r\n", None),
        ("\r\nGET / HTTP/1.1\r\nHost: g\r\n\r\n", None),
        ("\nGET / HTTP/1.1\r\nHost: g\r\n\r\n", Some(Fault::LineEnd)),
        ("GET / HTTP/1.1\nHost: g\r\n\r\n", Some(Fault::LineEnd)),
        ("GET / HTTP/1.1\r\nHost: g\n\r\n", Some(Fault::LineEnd)),
        ("GET / HTTP/1.1\r\nHost: g\r\n\n", Some(Fault::LineEnd)),
    ] {
        assert_eq!(of_http1(head.as_bytes(), &plain), expected, "{head:?}");
    }
}

#[test]
fn one_framing_in_its_plain_form() {
    let host = ("Host", "g");
    for coding in ["gzip, chunked", "chunked, chunked", "chunked,", "identity"] {
        let fields = [host, ("Transfer-Encoding", coding)];
        assert_eq!(fault("/", &fields), Some(Fault::Coding), "{coding}");
    }
    let twice = [
        host,
        ("Transfer-Encoding", "chunked"),
        ("Transfer-Encoding", "chunked"),
    ];
    assert_eq!(fault("/", &twice), Some(Fault::Coding));
    let both = [
        host,
        ("cOntent-Length", "5"),
        ("Transfer-Encoding", "chunked"),
    ];
    assert_eq!(fault("/", &both), Some(Fault::TwoFramings));
    let near = [
        host,
        ("Content-Length-X", "5"),
        ("Transfer-Encoding", "chunked"),
    ];
    assert_eq!(fault("/", &near), None);
    for length in [
        "5, 5",
        "5,",
        "+5",
        "05",
        "00",
        "",
        "0x5",
        "1e1",
        "9999999999999999999",
    ] {
        let fields = [host, ("Content-Length", length)];
        assert_eq!(fault("/", &fields), Some(Fault::Length), "{length}");
    }
    let twice = [host, ("Content-Length", "5"), ("Content-Length", "5")];
    assert_eq!(fault("/", &twice), Some(Fault::Length));
}

#[test]
fn a_host_is_there_once_and_is_one() {
    for host in [
        "gateway",
        "gateway:80",
        "a.b-c_d.example.",
        "1.2.3.4:65535",
        "[2001:db8::1]",
        "[::1]:8080",
    ] {
        assert_eq!(fault("/", &[("Host", host)]), None, "{host}");
    }
    for host in [
        "", ":", ":80", "g:", "g:x", "g:65536", "g:+80", "g:080000", "a b", "a,b", "a/b", "a@b",
        "a#b", "a?b", "a%20b", "[::1", "[g]", "[]", "[::1]x", "::1", "g:80:80", "bücher",
    ] {
        assert_eq!(fault("/", &[("Host", host)]), Some(Fault::Host), "{host:?}");
    }
    assert_eq!(fault("/", &[]), Some(Fault::Host));
    let twice = [("Host", "g"), ("Host", "g")];
    assert_eq!(fault("/", &twice), Some(Fault::Host));
}

#[test]
fn a_target_is_a_path_or_of_http() {
    for target in [
        "o/a/users",
        "*",
        "gateway:80",
        "ftp://gateway/x",
        "http:x",
        "http:/x",
    ] {
        assert_eq!(
            fault(target, &[("Host", "gateway")]),
            Some(Fault::Target),
            "{target}"
        );
    }
}

#[test]
fn no_query_names_a_method() {
    for query in [
        "_method=DELETE",
        "x=1&_METHOD=PUT",
        "x=1;_method=PUT",
        "%5Fmethod=PUT",
        "_meth%6fd=PUT",
        "+_method+=PUT",
        "%20_method%00=PUT",
        "_method",
        "_method[]=PUT",
        "X-HTTP-Method-Override=PUT",
    ] {
        let target = format!("/o/a/users?{query}");
        assert_eq!(
            fault(&target, &[("Host", "g")]),
            Some(Fault::Method),
            "{query}"
        );
    }
    for query in [
        "",
        "method=x",
        "_methods=1",
        "x_method=1",
        "_metho%d",
        "x=_method",
        "%",
        "%5",
    ] {
        let target = format!("/o/a/users?{query}");
        assert_eq!(fault(&target, &[("Host", "g")]), None, "{query}");
    }
}
