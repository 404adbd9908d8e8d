use super::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn client(peer: &str, lines: &[&str]) -> IpAddr {
    let trusted: Vec<IpNet> = vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
    let lines = lines.iter().map(|l| l.as_bytes());
    super::client(ip(peer), Naming::XForwardedFor, lines, &trusted).ip
}

/// The same by `Forwarded`.
fn forwarded(lines: &[&str]) -> IpAddr {
    by_forwarded(lines).ip
}

fn by_forwarded(lines: &[&str]) -> Client {
    let trusted: Vec<IpNet> = vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
    let lines = lines.iter().map(|l| l.as_bytes());
    super::client(ip("10.0.0.1"), Naming::Forwarded, lines, &trusted)
}

#[test]
fn an_untrusted_peer_is_itself_whatever_it_says() {
    assert_eq!(client("9.9.9.9", &["1.1.1.1"]), ip("9.9.9.9"));
    assert_eq!(client("::ffff:9.9.9.9", &["1.1.1.1"]), ip("9.9.9.9"));
    assert_eq!(
        super::client(
            ip("10.0.0.1"),
            Naming::XForwardedFor,
            [&b"1.1.1.1"[..]].into_iter(),
            &[]
        )
        .ip,
        ip("10.0.0.1")
    );
}

#[test]
fn the_right_most_untrusted_address_is_charged() {
    assert_eq!(client("10.0.0.1", &["6.6.6.6, 1.1.1.1"]), ip("1.1.1.1"));
    assert_eq!(
        client("10.0.0.1", &["6.6.6.6", "1.1.1.1, 10.2.2.2", "10.3.3.3"]),
        ip("1.1.1.1")
    );
    assert_eq!(
        client("::ffff:10.0.0.1", &["::ffff:1.1.1.1"]),
        ip("1.1.1.1")
    );
    assert_eq!(client("10.0.0.1", &["10.1.1.1,10.2.2.2"]), ip("10.1.1.1"));
    assert_eq!(client("10.0.0.1", &[]), ip("10.0.0.1"));
}

#[test]
fn ports_brackets_and_quotes_are_understood() {
    for entry in ["1.1.1.1:80", "\"1.1.1.1\"", "\"1.1.1.1:80\""] {
        assert_eq!(client("10.0.0.1", &[entry]), ip("1.1.1.1"), "{entry}");
    }
    for entry in [
        "[2001:db8::1]:80",
        "[2001:db8::1]",
        "2001:db8::1",
        "\"[2001:db8::1]:80\"",
    ] {
        assert_eq!(client("10.0.0.1", &[entry]), ip("2001:db8::1"), "{entry}");
    }
}

#[test]
fn a_malformed_entry_stops_at_the_last_good_address() {
    for bad in [
        "unknown",
        "",
        "1.1.1.1.1",
        "_hidden",
        "1.1.1.1 2.2.2.2",
        "1.1.1.1:",
        "1.1.1.1:x",
        "1.1.1.1:99999",
        "01.1.1.1",
        "0x1.1.1.1",
        "1.1.1",
        "16843009",
        "fe80::1%eth0",
        "[1.1.1.1]",
        "[::1",
        "::1]",
        "2001:db8::1:",
        "\"1.1.1.1",
        "for=1.1.1.1",
        "1.1.1.1\u{0}",
        "\u{661}.1.1.1",
        "\u{b}1.1.1.1",
        "\u{a0}1.1.1.1",
    ] {
        assert_eq!(
            client("10.0.0.1", &["5.5.5.5", bad, "10.2.2.2"]),
            ip("10.2.2.2"),
            "{bad}"
        );
    }
}

#[test]
fn ipv6_counts_by_its_prefix_and_ipv4_whole() {
    assert_eq!(prefix(ip("2001:db8:1:2:3:4:5:6"), 64), ip("2001:db8:1:2::"));
    assert_eq!(
        prefix(ip("2001:db8:1:2:3:4:5:6"), 128),
        ip("2001:db8:1:2:3:4:5:6")
    );
    assert_eq!(prefix(ip("2001:db8::1"), 0), ip("::"));
    assert_eq!(prefix(ip("1.2.3.4"), 8), ip("1.2.3.4"));
    assert_eq!(prefix(ip("::ffff:1.2.3.4"), 64), ip("1.2.3.4"));
}

#[test]
fn forwarded_names_its_callers_in_for() {
    for (line, client) in [
        ("for=1.1.1.1", "1.1.1.1"),
        ("For=1.1.1.1;Proto=https;by=10.9.9.9", "1.1.1.1"),
        ("proto=http; for=1.1.1.1 ;host=\"a\"", "1.1.1.1"),
        ("for=\"1.1.1.1:80\"", "1.1.1.1"),
        ("for=1.1.1.1:80", "1.1.1.1"),
        ("for=\"1.1.1.1:_port\"", "1.1.1.1"),
        ("for=\"[2001:db8::1]\"", "2001:db8::1"),
        ("for=\"[2001:db8::1]:4711\"", "2001:db8::1"),
        ("for=\"[::ffff:1.1.1.1]\"", "1.1.1.1"),
        ("for=6.6.6.6, for=1.1.1.1", "1.1.1.1"),
        (
            "for=1.1.1.1, for=10.2.2.2;by=_x,for=\"[fd00::1]\"",
            "1.1.1.1",
        ),
        ("for=1.1.1.1;host=\"a,b;c\", for=10.2.2.2", "1.1.1.1"),
        ("for=1.1.1.1;host=\"a\\\",for=6.6.6.6\"", "1.1.1.1"),
        ("host=\"\\\\\";for=1.1.1.1", "1.1.1.1"),
        ("for=1.1.1.1;", "1.1.1.1"),
    ] {
        assert_eq!(forwarded(&[line]), ip(client), "{line}");
    }
    assert_eq!(
        forwarded(&["for=6.6.6.6", "for=1.1.1.1", "for=10.2.2.2"]),
        ip("1.1.1.1")
    );
}

#[test]
fn what_forwarded_does_not_name_stops_at_the_last_good_address() {
    for bad in [
        "for=unknown",
        "for=_hidden",
        "for=\"_hidden\"",
        "proto=https",
        "",
        "for",
        "for=",
        "for=\"\"",
        "for = 1.1.1.1",
        "for=1.1.1.1;for=2.2.2.2",
        "for=1.1.1.1;proto=http;proto=https",
        "for=\"1.1.1.1",
        "for=1.1.1.1\"",
        "for=[2001:db8::1",
        "for=\"1.1.1.1\";x",
        "1.1.1.1",
        "for=1.1.1.1 for=2.2.2.2",
        "for=\"1.1.1.1, 2.2.2.2\"",
        "for=\"\\1.1.1.1\"",
    ] {
        let line = format!("for=5.5.5.5, {bad}, for=10.2.2.2");
        assert_eq!(forwarded(&[&line]), ip("10.2.2.2"), "{bad}");
    }
}

#[test]
fn no_caller_of_a_proxy_hides_what_the_proxy_adds() {
    for garbage in [
        "for=\"",
        "\"",
        "for=\"\\",
        "for=x;host=\"",
        "\\\"",
        ",,,",
        ";;;",
        "for=\"a\\\"b",
    ] {
        let line = format!("{garbage}, for=1.1.1.1");
        assert_eq!(forwarded(&[&line]), ip("1.1.1.1"), "{garbage}");
        assert_eq!(
            forwarded(&[garbage, "for=1.1.1.1"]),
            ip("1.1.1.1"),
            "{garbage}"
        );
        let line = format!("{garbage}, 1.1.1.1");
        assert_eq!(client("10.0.0.1", &[&line]), ip("1.1.1.1"), "{garbage}");
    }
}

#[test]
fn a_chain_of_proxies_ends() {
    let line = vec!["10.2.2.2"; 100_000].join(",");
    assert_eq!(client("10.0.0.1", &["1.1.1.1", &line]), ip("10.2.2.2"));
}

#[test]
fn the_protocol_is_that_of_the_callers_own_element() {
    for (line, https) in [
        ("for=1.1.1.1;proto=https", Some(true)),
        ("proto=\"HTTPS\";for=1.1.1.1", Some(true)),
        ("for=1.1.1.1;proto=http", Some(false)),
        ("for=1.1.1.1;proto=wss", Some(false)),
        ("for=1.1.1.1", None),
        (
            "for=6.6.6.6;proto=https, for=1.1.1.1;proto=http",
            Some(false),
        ),
        ("for=6.6.6.6;proto=https, for=1.1.1.1", None),
        (
            "for=1.1.1.1;proto=https, for=10.2.2.2;proto=http",
            Some(true),
        ),
        ("for=6.6.6.6;proto=https, unknown", None),
    ] {
        assert_eq!(by_forwarded(&[line]).https, https, "{line}");
    }
}
