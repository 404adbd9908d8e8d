use super::*;

/// The head that pingora has of these bytes, if it can read them.
fn read(bytes: &[u8]) -> Option<Vec<u8>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let stream = Box::new(std::io::Cursor::new(bytes.to_vec()));
        let mut session = pingora::protocols::http::v1::server::HttpSession::new(stream);
        session.read_request().await.ok()??;
        Some(session.get_headers_raw_bytes().to_vec())
    })
}

fn head(target: &[u8]) -> Vec<u8> {
    [b"GET ", target, b" HTTP/1.1\r\nHost: h\r\n\r\n"].concat()
}

#[test]
fn whatever_pingora_escapes_in_a_target_is_seen() {
    let beside = [
        "", " ", "\t", "\u{7f}", "<", "\"", "%", "\u{80}", "é", "中", "😀", "%20",
    ];
    let mut alone = Vec::new();
    for byte in 0..=255_u8 {
        for with in beside {
            let sent = head(&[b"/", with.as_bytes(), &[byte], with.as_bytes(), b"b"].concat());
            let Some(had) = read(&sent).filter(|had| *had != sent) else {
                continue;
            };
            assert!(may_be_escaped(&had), "{byte:#x} beside {with:?}");
            if with.is_empty() {
                alone.push(byte);
            }
        }
    }
    // What makes it escape. A line's end ends the line.
    let makes = |byte: &u8| matches!(byte, 0..=b' ' | 0x7F) && *byte != b'\n';
    let expected: Vec<u8> = (0..=255).filter(makes).collect();
    assert_eq!(alone, expected);
    // And what it escapes then.
    let had = read(&head("/ <>\"é\u{80}中".as_bytes())).unwrap();
    let expected = head(b"/%20%3C%3E%22%C3%A9%C2%80%E4%B8%AD");
    assert_eq!(String::from_utf8(had), String::from_utf8(expected));
}

#[test]
fn what_a_caller_escapes_in_the_usual_way_is_its_own() {
    for target in [
        "/o/a/users/x",
        "/a%2Cb%2F%3A?x=%5B%5D",
        "/%41%7E%23%3F",
        "/%3C%3E%22%C3%A9%FF",
        "/é中",
    ] {
        let sent = head(target.as_bytes());
        assert_eq!(read(&sent).as_deref(), Some(&*sent));
        assert!(!may_be_escaped(&sent), "{target}");
    }
    let after = b"GET /x HTTP/1.1\r\nHost: h\r\nX: %20%FF\r\n\r\n";
    assert!(!may_be_escaped(after));
    assert!(may_be_escaped(b"\r\nGET /%20 HTTP/1.1\r\n\r\n"));
}

#[test]
fn crumbs_of_cookies_are_one_line_in_their_order() {
    let joined = |lines: &[&'static str]| {
        let lines = lines.iter().map(|crumb| HeaderValue::from_static(crumb));
        let fields: HeaderMap = lines.map(|crumb| (header::COOKIE, crumb)).collect();
        crumbs(&fields).map(|joined| String::from_utf8(joined).unwrap())
    };
    assert_eq!(joined(&[]), None);
    assert_eq!(joined(&["a=b; c=d"]), None);
    let all = joined(&["a=b", "c=d; e=f", "g=h"]);
    assert_eq!(all.as_deref(), Some("a=b; c=d; e=f; g=h"));
}
