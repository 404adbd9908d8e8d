//! What is matched is what is forwarded; heads are put right on the way.

use crate::door::soon;
use crate::frames::{Peer, call};
use crate::harness::{Gateway, Start, start};

fn seen(gateway: &Gateway, path: &str, headers: &[&str]) -> (u16, String, Vec<(String, String)>) {
    let answer = gateway.connect().call("GET", path, headers, "");
    let request = gateway.backend().requests().pop().expect("a request");
    (
        answer.status,
        request.target.clone(),
        request.headers.clone(),
    )
}

fn value(headers: &[(String, String)], name: &str) -> Option<String> {
    let all: Vec<_> = headers
        .iter()
        .filter(|(n, _)| n == name)
        .map(|(_, v)| v.clone())
        .collect();
    assert!(all.len() <= 1, "{name} twice: {all:?}");
    all.into_iter().next()
}

#[test]
fn the_canonical_path_is_forwarded_with_its_query() {
    let gateway = start(&[]);
    for (asked, forwarded) in [
        ("/o/a/users/alice?x=%2F&y=1", "/o/a/users/alice?x=%2F&y=1"),
        ("/o/a/%75sers/alice", "/o/a/users/alice"),
        ("/o/a/users/", "/o/a/users"),
        (
            "http://gateway/o/a/%75sers/alice?x=1",
            "/o/a/users/alice?x=1",
        ),
        ("/o/a/users/a%2cb", "/o/a/users/a%2Cb"),
    ] {
        let (status, target, _) = seen(&gateway, asked, &[]);
        assert_eq!((status, target.as_str()), (200, forwarded), "{asked}");
    }
}

#[test]
fn a_path_with_two_readings_is_refused() {
    let gateway = start(&[]);
    for path in [
        "/o/a//users",
        "/o/a/../b/users",
        "/o/a/%2e%2e/users",
        "/o/a/users%2Falice",
        "/o/a/users/a%00b",
        "/o/a/users\\x",
        "/o/a/users/%zz",
        "/o/a/users;x=1/alice",
        "/o/a/users/alice#/../bob?x=1",
        "/o/a/users/alice?x=1#y",
        "http://gateway/o/a/users/alice#",
        "/#/o/a/users/alice",
        "#/o/a/users/alice",
        "o/a/users",
    ] {
        let answer = gateway.call("GET", path, "");
        assert_eq!(answer.status, 400, "{path}: {}", answer.text());
    }
    assert_eq!(gateway.backend().count(), 0);
    // Empty lines before the request change nothing.
    let mut connection = gateway.connect();
    connection.send(b"\r\n\r\nGET /o/a/users/x# HTTP/1.1\r\nHost: g\r\n\r\n");
    assert_eq!(connection.read_answer("GET").status, 400);
    // An escaped one is a character as any other, and so is one of a header.
    let headers = ["Referer: http://g/#x"];
    let answer = gateway
        .connect()
        .call("GET", "/o/a/users/a%23b", &headers, "");
    assert_eq!(answer.status, 200);
}

#[test]
fn forwarding_fields_name_the_peer_and_nobody_else() {
    let gateway = start(&[]);
    let spoofed = [
        "X-Forwarded-For: 6.6.6.6",
        "Forwarded: for=6.6.6.6",
        "X-Forwarded-Proto: https",
        "X-Request-Id: mine",
    ];
    let (_, _, headers) = seen(&gateway, "/o/a/users/x", &spoofed);
    assert_eq!(
        value(&headers, "x-forwarded-for").as_deref(),
        Some("127.0.0.1")
    );
    assert_eq!(
        value(&headers, "forwarded").as_deref(),
        Some("for=127.0.0.1;proto=http;host=\"gateway\"")
    );
    assert_eq!(
        value(&headers, "x-forwarded-proto").as_deref(),
        Some("http")
    );
    assert_ne!(value(&headers, "x-request-id").as_deref(), Some("mine"));
}

#[test]
fn a_trusted_proxy_is_believed_and_its_chain_goes_on() {
    let gateway = Start {
        routes: crate::ROUTES,
        args: &["--trusted-proxy", "127.0.0.0/8"],
        ..Start::default()
    }
    .start();
    let from = |ip: &str| format!("X-Forwarded-For: 1.1.1.1, {ip}");
    let (_, _, headers) = seen(
        &gateway,
        "/o/a/users/x",
        &[
            &from("9.9.9.9"),
            "X-Forwarded-Proto: https",
            "X-Request-Id: mine",
        ],
    );
    assert_eq!(
        value(&headers, "x-forwarded-for").as_deref(),
        Some("1.1.1.1, 9.9.9.9, 127.0.0.1")
    );
    assert_eq!(
        value(&headers, "x-forwarded-proto").as_deref(),
        Some("https")
    );
    assert_eq!(value(&headers, "x-request-id").as_deref(), Some("mine"));
    // Each right-most untrusted address has its own figure.
    let call = |ip: &str| {
        gateway
            .connect()
            .call("GET", "/o/a/t/ip", &[&from(ip)], "")
            .status
    };
    assert_eq!(
        [
            call("8.8.8.8"),
            call("8.8.8.8"),
            call("8.8.8.8"),
            call("8.8.8.8")
        ],
        [200, 200, 200, 429]
    );
    assert_eq!(call("7.7.7.7"), 200);
}

#[test]
fn of_two_headers_one_is_read_and_the_other_says_the_same() {
    let sent = [
        "X-Forwarded-For: 1.1.1.1, 9.9.9.9",
        "Forwarded: for=2.2.2.2, for=\"[2001:db8::1]:4711\";proto=https",
    ];
    let trusted = ["--trusted-proxy", "127.0.0.0/8"];
    for (header, real, chain, forwarded) in [
        (
            "x-forwarded-for",
            "9.9.9.9",
            "1.1.1.1, 9.9.9.9, 127.0.0.1",
            "for=9.9.9.9, for=127.0.0.1;proto=http;host=\"gateway\"",
        ),
        (
            "forwarded",
            "2001:db8::1",
            "2001:db8::1, 127.0.0.1",
            "for=2.2.2.2, for=\"[2001:db8::1]:4711\";proto=https, for=127.0.0.1;proto=https;host=\"gateway\"",
        ),
    ] {
        let args = [&trusted[..], &["--client-ip-header", header]].concat();
        let gateway = start(&args);
        let (_, _, headers) = seen(&gateway, "/o/a/users/x", &sent);
        assert_eq!(value(&headers, "x-real-ip").as_deref(), Some(real));
        assert_eq!(value(&headers, "x-forwarded-for").as_deref(), Some(chain));
        assert_eq!(value(&headers, "forwarded").as_deref(), Some(forwarded));
    }
    // A quote that does not end would take what stands behind it along.
    let gateway = start(&[&trusted[..], &["--client-ip-header", "forwarded"]].concat());
    let open = ["Forwarded: for=6.6.6.6;proto=https,for=\"x,for=7.7.7.7;proto=https"];
    let (_, _, headers) = seen(&gateway, "/o/a/users/x", &open);
    let expected = "for=7.7.7.7, for=127.0.0.1;proto=https;host=\"gateway\"";
    assert_eq!(value(&headers, "forwarded").as_deref(), Some(expected));
}

#[test]
fn the_header_that_names_the_caller_says_its_protocol_too() {
    let only = ["--https-only", "true", "--trusted-proxy", "127.0.0.0/8"];
    let status = |gateway: &Gateway, headers: &[&str]| {
        let answer = gateway.connect().call("GET", "/o/a/users/x", headers, "");
        answer.status
    };
    let by_forwarded = start(&[&only[..], &["--client-ip-header", "forwarded"]].concat());
    let by_the_other = start(&only);
    for (headers, first, second) in [
        (&["Forwarded: for=9.9.9.9;proto=https"][..], 200, 403),
        (
            &[
                "Forwarded: for=9.9.9.9;proto=http",
                "X-Forwarded-Proto: https",
            ],
            403,
            200,
        ),
        (
            &["Forwarded: for=9.9.9.9", "X-Forwarded-Proto: https"],
            403,
            200,
        ),
        (
            &["Forwarded: for=1.1.1.1;proto=https, for=9.9.9.9;proto=http"],
            403,
            403,
        ),
        (
            &["X-Forwarded-Proto: https", "X-Forwarded-Proto: https"],
            403,
            403,
        ),
        (&[], 403, 403),
    ] {
        assert_eq!(status(&by_forwarded, headers), first, "{headers:?}");
        assert_eq!(status(&by_the_other, headers), second, "{headers:?}");
    }
}

#[test]
fn hop_by_hop_fields_and_method_overrides_stay_behind() {
    let gateway = start(&[]);
    let (_, _, headers) = seen(
        &gateway,
        "/o/a/users/x",
        &[
            "Connection: keep-alive, X-Hop",
            "X-Hop: 1",
            "Keep-Alive: timeout=5",
            "TE: trailers",
            "X-HTTP-Method-Override: DELETE",
            "X-Stays: 1",
        ],
    );
    for gone in ["x-hop", "keep-alive", "te", "x-http-method-override"] {
        assert_eq!(value(&headers, gone), None, "{gone}");
    }
    assert_eq!(value(&headers, "x-stays").as_deref(), Some("1"));
    assert!(value(&headers, "authorization").is_some());
}

#[test]
fn no_field_lets_a_backend_read_another_path_method_or_caller() {
    let gateway = start(&[]);
    let sent = [
        "X-Original-URL: /o/b/users/y",
        "X-Rewrite-URL: /o/b/users/y",
        "X-Original-Method: DELETE",
        "X_HTTP_METHOD_OVERRIDE: DELETE",
        "X-Http_Method.Override: DELETE",
        "X_Original-URL: /o/b/users/y",
        "X-Forwarded-Uri: /o/b/users/y",
        "X-Forwarded-Prefix: /o/b",
        "X-Forwarded-Host: other",
        "X-Forwarded-Port: 1",
        "X_Forwarded_For: 6.6.6.6",
        "X-Real-IP: 6.6.6.6",
        "X_REAL_IP: 6.6.6.6",
        "True-Client-IP: 6.6.6.6",
        "WL-Proxy-Client-IP: 6.6.6.6",
        "Proxy_Client_IP: 6.6.6.6",
        "X-Azure-ClientIP: 6.6.6.6",
        "X-Azure-SocketIP: 6.6.6.6",
        "X-Appengine-User-Ip: 6.6.6.6",
        "X-ProxyUser-Ip: 6.6.6.6",
        "Remote-Addr: 6.6.6.6",
        "X-Remote-User: root",
        "X-SSL-Client-Verify: SUCCESS",
        "Path-Info: /o/b/users/y",
        "Script-Name: /o/b",
        "X-Method: DELETE",
        "Method_Override: DELETE",
        "X-Sendfile: /etc/passwd",
        "X-Accel-Redirect: /o/b/users/y",
        "Proxy: http://6.6.6.6",
        "X-Host: other",
        "X-HTTP-Host-Override: other",
        "Content_Length: 9",
        "Transfer_Encoding: chunked",
        "app_key: stays",
        "X-Stays: 1",
    ];
    let (status, target, headers) = seen(&gateway, "/o/a/users/x", &sent);
    assert_eq!((status, &*target), (200, "/o/a/users/x"));
    let kept: Vec<_> = sent
        .iter()
        .filter_map(|line| line.split_once(": "))
        .filter(|(name, said)| {
            headers
                .iter()
                .any(|(n, v)| *n == name.to_ascii_lowercase() && v == said)
        })
        .map(|(name, _)| name)
        .collect();
    assert_eq!(kept, ["app_key", "X-Stays"]);
    assert_eq!(value(&headers, "x-real-ip").as_deref(), Some("127.0.0.1"));
}

#[test]
fn a_trusted_proxys_host_is_passed_on_and_its_callers_paths_are_not() {
    let gateway = start(&["--trusted-proxy", "127.0.0.0/8"]);
    let (_, _, headers) = seen(
        &gateway,
        "/o/a/users/x",
        &[
            "X-Forwarded-For: 9.9.9.9",
            "X-Forwarded-Host: api.example.com",
            "X-Forwarded-Prefix: /o/b",
            "X-Real-IP: 6.6.6.6",
        ],
    );
    let value = |name| value(&headers, name);
    assert_eq!(
        value("x-forwarded-host").as_deref(),
        Some("api.example.com")
    );
    assert_eq!(value("x-forwarded-prefix"), None);
    assert_eq!(value("x-real-ip").as_deref(), Some("9.9.9.9"));
}

#[test]
fn connection_names_fields_of_the_hop_and_takes_no_other() {
    let gateway = start(&[]);
    let named = "Connection: Authorization, Host, Content-Type, X-Forwarded-For, X-Hop, :path, a b, \
                 Cookie, Cache-Control, Accept-Language, If-None-Match, User-Agent";
    let (status, _, headers) = seen(
        &gateway,
        "/o/a/users/x",
        &[
            named,
            "Content-Type: text/plain",
            "X-Hop: 1",
            "Cookie: a=b",
            "Cache-Control: no-cache",
            "Accept-Language: zh",
            "If-None-Match: \"a\"",
            "User-Agent: me",
        ],
    );
    assert_eq!(status, 200);
    for kept in [
        "authorization",
        "host",
        "content-type",
        "x-forwarded-for",
        "cookie",
        "cache-control",
        "accept-language",
        "if-none-match",
        "user-agent",
    ] {
        assert!(value(&headers, kept).is_some(), "{kept}");
    }
    assert_eq!(value(&headers, "x-hop"), None);
}

#[test]
fn crumbs_of_cookies_go_up_in_one_line() {
    let gateway = start(&["--h2c"]);
    let sent = |more: &[(&str, &str)]| {
        let mut peer = Peer::new(&gateway);
        peer.ask(1, &call("GET", "/o/a/users/x", more));
        peer.answered()
    };
    let crumbs = [
        ("cookie", "a=b"),
        ("x-other", "1"),
        ("cookie", "c=d; e=f"),
        ("cookie", "g=h"),
    ];
    assert_eq!(sent(&crumbs), Some(200));
    let seen_cookie = || {
        let request = gateway.backend().requests().pop().expect("a request");
        value(&request.headers, "cookie")
    };
    assert_eq!(seen_cookie().as_deref(), Some("a=b; c=d; e=f; g=h"));
    let lines = ["Cookie: a=b", "cookie: c=d"];
    assert_eq!(seen(&gateway, "/o/a/users/x", &lines).0, 200);
    assert_eq!(seen_cookie().as_deref(), Some("a=b; c=d"));
    // So many as a head may have fields, and no more bytes than one may have.
    assert_eq!(sent(&[("cookie", "a=b"); 90]), Some(200));
    assert_eq!(seen_cookie(), Some(["a=b"; 90].join("; ")));
    let before = gateway.backend().count();
    assert_eq!(sent(&[("cookie", "a=b"); 120]), Some(431));
    let long = "c".repeat(1000);
    assert_ne!(sent(&vec![("cookie", &*long); 80]), Some(200));
    assert_eq!(gateway.backend().count(), before);
}

#[test]
fn a_websocket_handshake_goes_up_as_a_plain_call() {
    let gateway = start(&[]);
    let handshake = ["Connection: Upgrade", "Upgrade: websocket"];
    let (status, _, headers) = seen(&gateway, "/o/a/users/x", &handshake);
    assert_eq!(status, 200);
    assert_eq!(value(&headers, "upgrade"), None);
}

#[test]
fn head_counts_as_get_and_options_goes_through() {
    let gateway = Start {
        routes: crate::ROUTES,
        ..Start::default()
    }
    .start();
    for _ in 0..3 {
        assert_eq!(gateway.call("HEAD", "/o/a/t/app", "").status, 200);
    }
    assert_eq!(gateway.call("GET", "/o/a/t/app", "").status, 429);
    let answer = gateway
        .connect()
        .call("OPTIONS", "/o/a/t/app", &["Authorization: -"], "");
    assert_ne!(answer.status, 429);
    assert_eq!(gateway.backend().count(), 4);
}

#[test]
fn trace_goes_nowhere() {
    let gateway = start(&[]);
    for path in ["/o/a/users/x", "/o/a/no/such/path"] {
        assert_eq!(gateway.call("TRACE", path, "").status, 405);
    }
    assert_eq!(gateway.backend().count(), 0);
}

#[test]
fn h2c_is_served_where_it_is_switched_on() {
    let gateway = Start {
        routes: crate::ROUTES,
        args: &["--h2c"],
        ..Start::default()
    }
    .start();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let statuses = runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(gateway.addr)
            .await
            .expect("a connection");
        let io = hyper_util::rt::TokioIo::new(stream);
        let executor = hyper_util::rt::TokioExecutor::new();
        let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, io)
            .await
            .expect("a handshake");
        tokio::spawn(connection);
        let mut statuses = Vec::new();
        for body in [
            r#"{"to":["a","b","c","d","e","f"]}"#,
            r#"{"to":["a","b","c","d","e"]}"#,
        ] {
            let request = http::Request::post(format!("http://{}/o/a/t/messages", gateway.addr))
                .header("authorization", "Bearer t")
                .body(http_body_util::Full::new(bytes::Bytes::from(body)))
                .expect("a request");
            statuses.push(
                sender
                    .send_request(request)
                    .await
                    .expect("an answer")
                    .status()
                    .as_u16(),
            );
        }
        statuses
    });
    assert_eq!(statuses, [200, 403]);
}

#[test]
fn an_h2c_stream_that_is_reset_early_pays_what_the_status_says() {
    let gateway = Start {
        routes: crate::ROUTES,
        args: &["--h2c"],
        ..Start::default()
    }
    .start();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(gateway.addr)
            .await
            .expect("a connection");
        let io = hyper_util::rt::TokioIo::new(stream);
        let executor = hyper_util::rt::TokioExecutor::new();
        let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, io)
            .await
            .expect("a handshake");
        tokio::spawn(connection);
        let body = bytes::Bytes::from(r#"{"to":["a","b","c"]}"#);
        let request = http::Request::post(format!("http://{}/o/a/t/messages", gateway.addr))
            .header("authorization", "Bearer bad")
            .header("x-standin-delay-ms", "5000")
            .body(http_body_util::Full::new(body))
            .expect("a request");
        let answer = sender.send_request(request);
        let early = std::time::Duration::from_millis(150);
        assert!(tokio::time::timeout(early, answer).await.is_err());
        // It leaves when its call has come, and before that is answered.
        while gateway.backend().count() == 0 {
            tokio::time::sleep(early).await;
        }
    });
    soon("its line", || gateway.log().contains("t-messages"));
    let app = |name| gateway.metric(name, &["t-messages", ":app"]);
    assert_eq!(app("floodgate_units_charged_total"), 3.0);
    assert_eq!(app("floodgate_units_refunded_total"), 3.0);
    let unauthorized = gateway.metric("floodgate_units_charged_total", &["unauthorized"]);
    assert_eq!(unauthorized, 2.0);
}

#[test]
fn a_304_and_a_5xx_pass_as_they_are() {
    let gateway = start(&[]);
    let mut connection = gateway.connect();
    for status in [304, 503, 304, 200] {
        let wishes = [
            format!("x-standin-status: {status}"),
            "If-None-Match: \"a\"".to_owned(),
            "Range: bytes=0-1".to_owned(),
        ];
        let wishes: Vec<&str> = wishes.iter().map(String::as_str).collect();
        let answer = connection.call("GET", "/o/a/users/x", &wishes, "");
        assert_eq!(answer.status, status);
        let seen = gateway.backend().requests().pop().expect("a request");
        let has = |name: &str| seen.headers.iter().any(|(n, _)| n == name);
        assert!(has("if-none-match") && has("range"), "{:?}", seen.headers);
    }
}
