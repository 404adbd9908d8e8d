//! What calls may carry, over sockets.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::mpsc;
use std::time::Duration;

use crate::door::soon;
use crate::frames::{END_HEADERS, HEADERS, Peer, call, frame, head};
use crate::harness::{Answer, BIN, Connection, Gateway, Start, start};

const MB: usize = 1 << 20;
const FORM: &str = "Content-Type: application/x-www-form-urlencoded";

fn text(filler: &str, length: usize) -> String {
    let whole = filler.repeat(length / filler.len());
    let rest = "a".repeat(length % filler.len());
    format!(r#"{{"from":"a","to":["b"],"type":"txt","body":{{"msg":"{whole}{rest}"}}}}"#)
}

/// Units of limits of this name: charged, and given back.
fn units(gateway: &Gateway, limit: &str) -> (f64, f64) {
    let of = |name: &str| gateway.metric(name, &[limit]);
    (
        of("floodgate_units_charged_total"),
        of("floodgate_units_refunded_total"),
    )
}

fn refused(gateway: &Gateway, limit: &str) -> f64 {
    let label = format!("limit=\"{limit}\"");
    gateway.metric("floodgate_decisions_total", &[&label, "reject"])
}

fn reported(gateway: &Gateway, limit: &str) -> f64 {
    let label = format!("limit=\"{limit}\"");
    gateway.metric("floodgate_reported_total", &[&label])
}

/// `error`, `error_description`, `limit`, `max`.
fn told(answer: &Answer) -> (String, String, String, u64) {
    let json = answer.json();
    let text = |key: &str| json[key].as_str().unwrap_or_default().to_owned();
    (
        text("error"),
        text("error_description"),
        text("limit"),
        json["max"].as_u64().unwrap_or_default(),
    )
}

#[test]
fn a_message_of_3_kb_passes_and_one_byte_more_is_told_its_limit() {
    let gateway = start(&[]);
    let call = |path: &str, body: &str| gateway.call("POST", path, body);
    for filler in ["a", "中", "😀"] {
        for length in [3071, 3072] {
            let answer = call("/o/a/messages/users", &text(filler, length));
            assert_eq!(answer.status, 200, "{filler} {length}: {}", answer.text());
        }
        for path in ["/o/a/messages/users", "/app-id/x/messages/users"] {
            let answer = call(path, &text(filler, 3073));
            assert_eq!(answer.status, 400);
            assert_eq!(
                told(&answer),
                (
                    "message_send_error".to_owned(),
                    "message is too large".to_owned(),
                    "message-text".to_owned(),
                    3072
                )
            );
        }
    }
    assert_eq!(gateway.backend().count(), 6);
    // Nothing was charged for what was refused, not even to be given back.
    assert_eq!(
        units(&gateway, "messages-users:messages/min:app"),
        (6.0, 0.0)
    );
    soon("it is counted", || refused(&gateway, "message-text") == 6.0);
    soon("the log names the limit", || {
        gateway.log().contains("\"limit\":\"message-text\"")
            && gateway.log().contains("\"error\":\"payload\"")
    });
}

#[test]
fn an_older_edition_lets_pass_5_kb() {
    let gateway = start(&["--edition", "v1"]);
    let status = |length| {
        gateway
            .call("POST", "/o/a/messages/users", &text("中", length))
            .status
    };
    assert_eq!([status(5119), status(5120), status(5121)], [200, 200, 400]);
}

#[test]
fn another_spelling_of_a_type_is_no_way_around_its_figure() {
    let gateway = start(&[]);
    let call = |kind: &str, length: usize| {
        let body = text("a", length).replace("\"txt\"", kind);
        gateway.call("POST", "/o/a/messages/users", &body)
    };
    for kind in [
        "\"txt \"",
        "\" txt\"",
        "\"text\"",
        "\"loc\"",
        "\"TXT\\u0020\"",
        "\"\"",
        "\"a-type-of-more-than-sixteen-letters\"",
    ] {
        let frame = r#"{"msg":""}"#.len();
        assert_eq!(call(kind, 3072 - frame).status, 200, "{kind}");
        let answer = call(kind, 3073);
        assert_eq!(answer.status, 400, "{kind}");
        let told = told(&answer);
        assert_eq!((&*told.1, told.3), ("message is too large", 3072), "{kind}");
    }
    for kind in ["\"TXT\"", "\"\\u0074xt\""] {
        assert_eq!(
            [call(kind, 3072).status, call(kind, 3073).status],
            [200, 400]
        );
    }
    for kind in ["1", "null", "[\"txt\"]", "true"] {
        assert_eq!(call(kind, 10).status, 400, "{kind}");
    }
    assert_eq!(gateway.backend().count(), 9);
    // Of a type that its edition has no figure for, there is none.
    let gateway = start(&["--edition", "v1"]);
    let body = text("a", 6000).replace("\"txt\"", "\"img\"");
    let status = |body: &str| gateway.call("POST", "/o/a/messages/users", body).status;
    assert_eq!(status(&body), 200);
    assert_eq!(status(&body.replace("img", "img ")), 400);
}

#[test]
fn each_answer_is_the_services_own() {
    let gateway = start(&[]);
    let users: Vec<String> = (0..61)
        .map(|n| format!(r#"{{"username":"u{n}"}}"#))
        .collect();
    let names: Vec<String> = (0..61).map(|n| format!("\"u{n}\"")).collect();
    let listed: Vec<String> = (0..61).map(|n| format!("u{n}")).collect();
    let argument = "illegal_argument";
    for (call, body, expected) in [
        (
            "POST /users".to_owned(),
            format!("[{}]", users.join(",")),
            (
                argument,
                "Request body array size[61] had almost reached or been greater than the upper range value[60]",
                "users-registered",
                60,
            ),
        ),
        (
            "POST /users".to_owned(),
            r#"{"username":"a b"}"#.to_owned(),
            (
                argument,
                "param username may have the characters A-Za-z0-9_.- alone",
                "user-id-registered",
                64,
            ),
        ),
        (
            "POST /chatgroups".to_owned(),
            format!(r#"{{"groupname":"{}"}}"#, "中".repeat(129)),
            (
                argument,
                "param groupname's length can't exceed limit 128 characters",
                "group-name",
                128,
            ),
        ),
        (
            "POST /chatgroups/1/users".to_owned(),
            format!(r#"{{"usernames":[{}]}}"#, names.join(",")),
            (
                argument,
                "params usernames[]'s size can't exceed limit 60",
                "members-added",
                60,
            ),
        ),
        (
            "POST /users/u/contacts/import".to_owned(),
            format!(r#"{{"usernames":[{}]}}"#, names[..11].join(",")),
            (
                argument,
                "request user over flow limit:10.",
                "friends-imported",
                10,
            ),
        ),
        (
            format!("DELETE /chatgroups/1/users/{}", listed.join(",")),
            String::new(),
            (
                argument,
                "params {username}[]'s size can't exceed limit 60",
                "group-members-removed",
                60,
            ),
        ),
        (
            "PUT /metadata/user/u".to_owned(),
            format!("nickname={}", "%E4%B8%AD".repeat(681)),
            (
                argument,
                "param .'s length can't exceed limit 2048 bytes",
                "user-attributes",
                2048,
            ),
        ),
        (
            "POST /chatrooms".to_owned(),
            "{\"name\":".to_owned(),
            (
                "invalid_request_body",
                "Request body is invalid. Please check body is correct.",
                "",
                0,
            ),
        ),
    ] {
        let (method, tail) = call.split_once(' ').expect("a call");
        let kind = match body.starts_with("nickname=") {
            true => FORM,
            false => "Content-Type: application/json",
        };
        let path = format!("/o/a{tail}");
        let answer = gateway.connect().call(method, &path, &[kind], &body);
        let (error, description, limit, most) = expected;
        assert_eq!(answer.status, 400, "{call}: {}", answer.text());
        let expected = (
            error.to_owned(),
            description.to_owned(),
            limit.to_owned(),
            most,
        );
        assert_eq!(told(&answer), expected, "{call}");
    }
    assert_eq!(gateway.backend().count(), 0);
    // The one before is what may be.
    let users = users[..60].join(",");
    assert_eq!(
        gateway
            .call("POST", "/o/a/users", &format!("[{users}]"))
            .status,
        200
    );
    let form = format!("nickname={}", "%E4%B8%AD".repeat(680));
    let mut connection = gateway.connect();
    let put = connection.call("PUT", "/o/a/metadata/user/u", &[FORM], &form);
    assert_eq!(put.status, 200);
    assert_eq!(
        units(&gateway, "metadata-user-one-put:calls/s:app"),
        (1.0, 0.0)
    );
}

#[test]
fn attributes_are_no_longer_by_a_query_or_under_another_name() {
    let gateway = start(&[]);
    let put = |query: &str, fields: &[&str], body: &str| {
        let path = format!("/o/a/metadata/user/u{query}");
        gateway.connect().call("PUT", &path, fields, body).status
    };
    let (half, escaped) = ("x".repeat(1024), "%41".repeat(1024));
    let query = format!("?b={half}");
    let json = "Content-Type: application/json";
    let parts = "Content-Type: multipart/form-data; boundary=b";
    let good = [
        put("?b=1", &[FORM], ""),
        put(&query, &[FORM], &format!("c={}", "y".repeat(1022))),
        put(&query, &[FORM], ""),
        put("", &[FORM], &format!("c={escaped}")),
        put("", &[], &format!("c={half}")),
        put("", &[json], &format!(r#"{{"c":"{half}"}}"#)),
    ];
    assert_eq!(good, [200; 6]);
    let bad = [
        put(&format!("?b={half}{half}"), &[FORM], ""),
        put(&format!("?b={half}{half}"), &["Content-Length: -"], ""),
        put(&query, &[FORM], &format!("c={}", "y".repeat(1023))),
        put("?b=1", &[FORM], "b=2"),
        put("", &[json], &format!("c={escaped}")),
        put("", &[parts], &format!("c={escaped}")),
        put("", &[], &format!("c={escaped}")),
        put(&query, &[json], &format!("c={half}")),
    ];
    assert_eq!(bad, [400; 8]);
    // A body of no announced length is looked at while it goes by.
    let chunked = |query: &str, value: &str| {
        let mut connection = gateway.connect();
        let head = format!(
            "PUT /o/a/metadata/user/u{query} HTTP/1.1\r\nHost: h\r\n{FORM}\r\nAuthorization: Bearer t\r\nTransfer-Encoding: chunked\r\n\r\n"
        );
        connection.send(head.as_bytes());
        connection.send(format!("{:x}\r\n{value}\r\n0\r\n\r\n", value.len()).as_bytes());
        connection.read_answer("PUT").status
    };
    assert_eq!(chunked("?b=1", "c=2"), 200);
    assert_eq!(chunked(&query, &format!("c={half}")), 400);
    assert_eq!(gateway.backend().count(), 7);
    // explain says the same.
    let explained = |url: &str| {
        let mut command = std::process::Command::new(BIN);
        let ran = command.args(["explain", "PUT", url]).output().unwrap();
        (
            ran.status.code(),
            String::from_utf8_lossy(&ran.stdout).contains("2048 bytes"),
        )
    };
    let url = format!("/o/a/metadata/user/u?b={half}");
    assert_eq!(explained(&url), (Some(0), false));
    assert_eq!(explained(&format!("{url}{half}")), (Some(1), true));
}

#[test]
fn a_value_of_another_type_is_no_way_around_a_length() {
    let gateway = start(&[]);
    let send = |method: &str, path: &str, body: &str| {
        let answer = gateway.call(method, path, body);
        let (_, _, limit, most) = told(&answer);
        (answer.status, limit, most)
    };
    let message = |body: &str| {
        let body = format!(r#"{{"from":"a","to":["b"],"type":"txt","body":{body}}}"#);
        send("POST", "/o/a/messages/users", &body)
    };
    let text = "a".repeat(4096);
    for body in [format!("\"{text}\""), format!("[{{\"msg\":\"{text}\"}}]")] {
        assert_eq!(message(&body), (400, "message-text".to_owned(), 3072));
    }
    assert_eq!(message(r#""a""#).0, 200);
    let room = "/o/a/metadata/chatroom/1/user/u";
    for value in [format!("\"{text}a\""), format!("[\"{text}\"]")] {
        let body = format!(r#"{{"metaData":{value}}}"#);
        let expected = (400, "room-attribute-values".to_owned(), 4096);
        assert_eq!(send("PUT", room, &body), expected);
    }
}

#[test]
fn a_chunked_body_is_checked_and_its_units_come_back() {
    let gateway = start(&[]);
    let send = |body: &str| {
        let mut connection = gateway.connect();
        let head = "POST /o/a/chatgroups HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer t\r\nTransfer-Encoding: chunked\r\n\r\n";
        connection.send(head.as_bytes());
        for piece in body.as_bytes().chunks(11) {
            let mut chunk = format!("{:x}\r\n", piece.len()).into_bytes();
            chunk.extend_from_slice(piece);
            chunk.extend_from_slice(b"\r\n");
            if connection.try_send(&chunk).is_err() {
                break;
            }
        }
        let _ = connection.try_send(b"0\r\n\r\n");
        connection.read_answer("POST")
    };
    let body = |n| format!(r#"{{"groupname":"g","description":"{}"}}"#, "😀".repeat(n));
    assert_eq!(send(&body(512)).status, 200);
    let seen = gateway.backend().requests().pop().expect("a call");
    assert_eq!(seen.body.as_ref(), body(512).as_bytes());
    for bad in [
        body(513),
        format!("{} x", body(1)),
        body(1).replace('}', ""),
    ] {
        let answer = send(&bad);
        assert_eq!(answer.status, 400, "{}", answer.text());
        assert_eq!(answer.header("connection"), Some("close"));
    }
    for scope in ["app", "ip"] {
        let limit = format!("chatgroups-post:calls/s:{scope}");
        soon("all of them come back", || {
            units(&gateway, &limit) == (4.0, 3.0)
        });
    }
    assert_eq!(gateway.backend().count(), 1);
    soon("it is counted", || {
        refused(&gateway, "group-description") == 1.0
    });
    soon("nothing is in flight", || {
        gateway.metric("floodgate_requests_in_flight", &[]) == 0.0
    });
}

/// A file of this length in its multipart frame: fields and body.
fn upload(file: usize) -> (String, Vec<u8>) {
    let boundary = "-".repeat(40);
    let mut body = format!(
        "--{boundary}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.bin\"\r\n\r\n"
    )
    .into_bytes();
    body.resize(body.len() + file, b'\r');
    body.extend(format!("\r\n--{boundary}--\r\n").into_bytes());
    let fields = format!(
        "Host: h\r\nAuthorization: Bearer t\r\nContent-Type: multipart/form-data; boundary={boundary}\r\n"
    );
    (fields, body)
}

fn send_upload(gateway: &Gateway, path: &str, file: usize) -> Answer {
    let (fields, body) = upload(file);
    let mut connection = gateway.connect();
    let head = format!(
        "POST {path} HTTP/1.1\r\n{fields}Content-Length: {}\r\n\r\n",
        body.len()
    );
    connection.send(head.as_bytes());
    let _ = connection.try_send(&body);
    connection.read_answer("POST")
}

#[test]
fn a_file_of_10_mb_passes_and_one_byte_more_is_cut_off() {
    let gateway = start(&["--threads", "1"]);
    for (path, limit) in [
        ("/o/a/chatfiles", "chatfiles:calls/s"),
        (
            "/app-id/x/chatgroups/1/share_files",
            "chatgroups-share-files-post:calls/s",
        ),
    ] {
        for length in [10 * MB - 1, 10 * MB] {
            let answer = send_upload(&gateway, path, length);
            assert_eq!(answer.status, 200, "{path} {length}: {}", answer.text());
            let seen = gateway.backend().requests().pop().expect("a call");
            assert_eq!(seen.body_length, upload(length).1.len());
        }
        let answer = send_upload(&gateway, path, 10 * MB + 1);
        assert_eq!(answer.status, 413, "{}", answer.text());
        assert_eq!(
            told(&answer),
            (
                "file exceeding maximum limit".to_owned(),
                "the file size exceeds the maximum limit.".to_owned(),
                "file".to_owned(),
                10 * MB as u64
            )
        );
        soon("the units come back", || {
            let (charged, refunded) = units(&gateway, limit);
            refunded > 0.0 && charged == 3.0 * refunded
        });
    }
    // The backend never had it as a whole; that nothing of it is kept here, `sizes` has tried.
    assert_eq!(gateway.backend().count(), 4);
    soon("it is counted", || refused(&gateway, "file") == 2.0);
}

#[test]
fn what_is_an_upload_and_no_multipart_is_refused_or_a_file() {
    let gateway = start(&[]);
    let call = |kind: &str, body: &str| {
        let kind = format!("Content-Type: {kind}");
        gateway
            .connect()
            .call("POST", "/o/a/chatfiles", &[&kind], body)
            .status
    };
    assert_eq!(call("image/png", "anything"), 200);
    assert_eq!(call("multipart/form-data", "--x\r\n\r\na\r\n--x--"), 400);
    assert_eq!(
        call("multipart/form-data; boundary=x", "--x\r\n\r\na\r\n--x--"),
        200
    );
    assert_eq!(
        call("multipart/form-data; boundary=x", "--x\r\n\r\na\r\n--y--"),
        400
    );
    assert_eq!(gateway.backend().count(), 2);
}

#[test]
fn an_upload_that_other_readers_find_other_parts_in_goes_no_further() {
    let gateway = start(&[]);
    let part =
        "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\nabc\r\n";
    let call = |parameters: &str, body: &str, chunked: bool| {
        let length = match chunked {
            true => "Transfer-Encoding: chunked".to_owned(),
            false => format!("Content-Length: {}", body.len()),
        };
        let head = format!(
            "POST /o/a/chatfiles HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer t\r\nContent-Type: multipart/form-data{parameters}\r\n{length}\r\n\r\n"
        );
        let mut connection = gateway.connect();
        connection.send(head.as_bytes());
        let body = match chunked {
            true => format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len()),
            false => body.to_owned(),
        };
        let _ = connection.try_send(body.as_bytes());
        connection.read_answer("POST").status
    };
    let good = format!("{part}--b--\r\n");
    for chunked in [false, true] {
        assert_eq!(call("; boundary=b", &good, chunked), 200);
        let two = format!("{}{good}", part.replace("file", "note"));
        assert_eq!(call("; Boundary=\"b\"", &two, chunked), 200);
    }
    let bodies = [
        format!("{part}--b--x\r\n{part}--b--\r\n"),
        format!("{part}--b--\r\n{part}--b--\r\n"),
        format!("{part}{good}"),
        format!("before\r\n{good}"),
        format!("\n{good}"),
        good.replace("abc", "a\n--b\r\n\r\nc"),
        good.replace("abc", "--b\r\n\r\nc"),
        good.replace("--b\r\nC", "--b \r\nC"),
        good.replace(": form-data;", ": form-data;\r\n "),
        good.replace("filename=", "filename*0="),
        good.replace("\r\n\r\n", "\r\nContent-Transfer-Encoding: base64\r\n\r\n"),
        good.replace(
            "\r\n\r\n",
            "\r\nContent-Disposition: form-data; name=\"x\"\r\n\r\n",
        ),
        good.replace("\r\n", "\n"),
    ];
    let long = "b".repeat(71);
    let kinds = [
        "; boundary=b; boundary*=x",
        "; boundary*0=b; boundary*1=c",
        "; boundaryX=x; boundary=b",
        "; boundary=b; boundary=x",
        "; boundary=\"\\b\"",
        "; x=\"; boundary=x; y=\"; boundary=b",
        &format!("; boundary={long}"),
    ];
    for chunked in [false, true] {
        for body in &bodies {
            assert_eq!(call("; boundary=b", body, chunked), 400, "{body}");
        }
        for kind in kinds {
            let body = good.replace("--b", &format!("--{long}"));
            let body = if kind.contains(&long) { &body } else { &good };
            assert_eq!(call(kind, body, chunked), 400, "{kind}");
        }
    }
    assert_eq!(gateway.backend().count(), 4);
}

/// 100 attributes of 4,096 Chinese characters, the last of them of `last`.
fn attributes(last: usize) -> String {
    let value = "中".repeat(4096);
    let all: Vec<String> = (0..99)
        .map(|n| format!("\"k{n}\":\"{value}\""))
        .chain([format!("\"k99\":\"{}\"", "中".repeat(last))])
        .collect();
    format!(
        "{{\"metaData\":{{{}}},\"autoDelete\":\"NO_DELETE\"}}",
        all.join(",")
    )
}

#[test]
fn attributes_of_1_2_mb_are_judged_while_they_stream() {
    let gateway = start(&[]);
    let path = "/o/a/metadata/chatroom/1/user/u";
    let body = attributes(4096);
    assert!(body.len() > 1_200_000);
    let answer = gateway.call("PUT", path, &body);
    assert_eq!(answer.status, 200, "{}", answer.text());
    let seen = gateway.backend().requests().pop().expect("a call");
    assert_eq!(seen.body_length, body.len());
    let answer = gateway.call("PUT", path, &attributes(4097));
    assert_eq!(answer.status, 400);
    assert_eq!(told(&answer).2, "room-attribute-values");
    let limit = "metadata-chatroom-user-one-put:calls/s:app";
    soon("the unit comes back", || {
        units(&gateway, limit) == (2.0, 1.0)
    });
    assert_eq!(gateway.backend().count(), 1);
    let one_more = body.replacen("{\"metaData\":{", "{\"metaData\":{\"k\":\"\",", 1);
    assert_eq!(
        told(&gateway.call("PUT", path, &one_more)).2,
        "room-attributes"
    );
}

/// A backend that keeps what it gets, and never answers: told when a connection ends.
fn listening() -> (std::net::SocketAddr, mpsc::Receiver<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let addr = listener.local_addr().expect("its address");
    let (send, ended) = mpsc::channel();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let send = send.clone();
            std::thread::spawn(move || {
                let mut all = Vec::new();
                let _ = stream.read_to_end(&mut all);
                let _ = stream.write_all(b"");
                let _ = send.send(all);
            });
        }
    });
    (addr, ended)
}

#[test]
fn a_backend_never_has_the_last_byte_of_what_is_refused() {
    let (upstream, ended) = listening();
    let gateway = Start {
        upstream: Some(upstream),
        ..Start::default()
    }
    .start();
    // What is wrong is the very last byte.
    let body = attributes(4096).replacen("\"NO_DELETE\"}", "\"NO_DELETE\"]", 1);
    let answer = gateway.call("PUT", "/o/a/metadata/chatroom/1/user/u", &body);
    assert_eq!(answer.status, 400, "{}", answer.text());
    let got = ended
        .recv_timeout(Duration::from_secs(60))
        .expect("its end");
    let head = got
        .windows(4)
        .position(|end| end == b"\r\n\r\n")
        .expect("a head")
        + 4;
    let got = got.len() - head;
    assert!(got > 500_000 && got < body.len(), "{got} of {}", body.len());
    let limit = "metadata-chatroom-user-one-put:calls/s:app";
    soon("the unit comes back", || {
        units(&gateway, limit) == (1.0, 1.0)
    });
}

#[test]
fn a_stream_of_http_2_is_checked_too() {
    let gateway = start(&["--h2c"]);
    let path = "/o/a/metadata/chatroom/1/user/u";
    let put = |last: usize, announced: bool| {
        let body = attributes(last);
        let length = body.len().to_string();
        let more: &[(&str, &str)] = match announced {
            true => &[("content-length", &length)],
            false => &[],
        };
        let mut peer = Peer::new(&gateway);
        let fields = call("PUT", path, more);
        peer.send(&frame(HEADERS, END_HEADERS, 1, &head(&fields)))
            .expect("sent");
        peer.upload_bytes(1, body.as_bytes())
    };
    for announced in [true, false] {
        assert_eq!(put(4096, announced), Some(200));
        assert_eq!(put(4097, announced), Some(400));
    }
    let limit = "metadata-chatroom-user-one-put:calls/s:app";
    soon("the units come back", || {
        units(&gateway, limit) == (4.0, 2.0)
    });
    assert_eq!(gateway.backend().count(), 2);
}

#[test]
fn what_is_reported_passes_and_is_counted() {
    let gateway = start(&["--validate", "report"]);
    assert_eq!(
        gateway
            .call("POST", "/o/a/messages/users", &text("a", 3073))
            .status,
        200
    );
    assert_eq!(reported(&gateway, "message-text"), 1.0);
    assert_eq!(gateway.call("POST", "/o/a/chatgroups", "{").status, 200);
    assert_eq!(reported(&gateway, "malformed"), 1.0);
    // In a coding, or in other characters: nobody here can look into it.
    for field in [
        "Content-Encoding: gzip",
        "Content-Type: application/json; charset=utf-16",
    ] {
        let mut connection = gateway.connect();
        let answer = connection.call("POST", "/o/a/chatgroups", &[field], "{}");
        assert_eq!(answer.status, 200, "{field}");
    }
    assert_eq!(reported(&gateway, "malformed"), 3.0);
    assert_eq!(
        send_upload(&gateway, "/o/a/chatfiles", 10 * MB + 1).status,
        200
    );
    assert_eq!(reported(&gateway, "file"), 1.0);
    assert_eq!(
        gateway
            .call("PUT", "/o/a/metadata/chatroom/1/user/u", &attributes(4097))
            .status,
        200
    );
    assert_eq!(reported(&gateway, "room-attribute-values"), 1.0);
    soon("it is counted", || refused(&gateway, "") == 0.0);
    soon("the log names the limit", || {
        gateway.log().contains("\"limit\":\"message-text\"")
    });
}

#[test]
fn caps_on_recipients_are_reported_too() {
    let routes = "[[route]]\nname = \"messages-chatgroups\"\nvalidate = \"report\"\n";
    let gateway = Start {
        routes,
        ..Start::default()
    }
    .start();
    let four = r#"{"to":["1","2","3","4"],"type":"txt","body":{"msg":"a"}}"#;
    let status = |path: &str, body: &str| gateway.call("POST", path, body).status;
    assert_eq!(status("/o/a/messages/chatgroups", four), 200);
    assert_eq!(reported(&gateway, "max_recipients"), 1.0);
    // They cost what they are.
    let limit = "messages-chatgroups:messages/s:app";
    assert_eq!(units(&gateway, limit), (4.0, 0.0));
    let eleven = format!(r#"{{"to":[{}"x"]}}"#, r#""x","#.repeat(10));
    assert_eq!(status("/o/a/messages/chatrooms", &eleven), 400);
    soon("it is counted", || {
        refused(&gateway, "max_recipients") == 1.0
    });
    let gateway = start(&["--validate", "off"]);
    assert_eq!(
        gateway
            .call("POST", "/o/a/messages/chatrooms", &eleven)
            .status,
        200
    );
    assert_eq!(reported(&gateway, "max_recipients"), 0.0);
}

#[test]
fn what_is_off_is_not_looked_at() {
    let gateway = start(&["--validate", "off"]);
    assert_eq!(
        gateway
            .call("POST", "/o/a/messages/users", &text("a", 9000))
            .status,
        200
    );
    assert_eq!(
        gateway
            .call("POST", "/o/a/chatfiles", &"x".repeat(10 * MB + 1))
            .status,
        200
    );
    assert_eq!(gateway.metric("floodgate_reported_total", &[]), 0.0);
    // What says itself that it is reported is so still.
    assert_eq!(gateway.call("GET", "/o/a/users/a%20b", "").status, 200);
    assert_eq!(reported(&gateway, "user-id"), 1.0);
}

#[test]
fn a_layered_file_changes_a_figure_and_a_mode() {
    let gateway = Start {
        routes: "[[payload]]\nname = \"message-text\"\nv3 = { max = \"10B\" }\n\
                 [[payload]]\nname = \"group-name\"\nvalidate = \"report\"\n\
                 [[payload]]\nname = \"user-id\"\nvalidate = \"enforce\"\n",
        ..Start::default()
    }
    .start();
    let status = |path: &str, body: &str| gateway.call("POST", path, body).status;
    assert_eq!(status("/o/a/messages/users", &text("a", 10)), 200);
    assert_eq!(status("/o/a/messages/users", &text("a", 11)), 400);
    let name = format!(r#"{{"groupname":"{}"}}"#, "a".repeat(129));
    assert_eq!(status("/o/a/chatgroups", &name), 200);
    assert_eq!(reported(&gateway, "group-name"), 1.0);
    assert_eq!(status("/o/a/chatgroups", r#"{"owner":"a b"}"#), 400);
    assert_eq!(gateway.call("GET", "/o/a/users/a%20b", "").status, 400);
    soon("it is counted", || refused(&gateway, "user-id") == 2.0);
}

#[test]
fn user_ids_of_paths_and_lists_are_reported_and_those_of_registrations_refused() {
    let gateway = start(&[]);
    assert_eq!(gateway.call("GET", "/o/a/users/a%20b", "").status, 200);
    assert_eq!(
        gateway
            .call("GET", &format!("/o/a/users/{}", "a".repeat(65)), "")
            .status,
        200
    );
    assert_eq!(
        gateway
            .call("GET", &format!("/o/a/users/{}", "a".repeat(64)), "")
            .status,
        200
    );
    assert_eq!(reported(&gateway, "user-id"), 2.0);
    let body = r#"{"from":"a","to":["b","@"],"type":"txt","body":{"msg":"a"}}"#;
    assert_eq!(
        gateway.call("POST", "/o/a/messages/users", body).status,
        200
    );
    assert_eq!(reported(&gateway, "user-id"), 3.0);
    for (id, status) in [
        ("a".repeat(64), 200),
        ("a".repeat(65), 400),
        ("中".to_owned(), 400),
    ] {
        let body = format!(r#"{{"username":"{id}","password":"p"}}"#);
        assert_eq!(
            gateway.call("POST", "/o/a/users", &body).status,
            status,
            "{id}"
        );
    }
    soon("it is counted", || {
        refused(&gateway, "user-id-registered") == 2.0
    });
    // What refuses a call is named, not what was reported of it before.
    let form = format!("nickname={}", "a".repeat(2048));
    assert_eq!(
        gateway
            .call("PUT", "/o/a/metadata/user/a%20b", &form)
            .status,
        400
    );
    soon("it is counted", || {
        refused(&gateway, "user-attributes") == 1.0
    });
    assert_eq!(reported(&gateway, "user-id"), 4.0);
    assert_eq!(refused(&gateway, "user-id"), 0.0);
}

#[test]
fn a_body_in_a_coding_cannot_be_looked_into() {
    let gateway = start(&[]);
    let coded = |path: &str, body: &str| {
        gateway
            .connect()
            .call("POST", path, &["Content-Encoding: gzip"], body)
            .status
    };
    assert_eq!(coded("/o/a/chatgroups", "{}"), 415);
    assert_eq!(coded("/o/a/chatfiles", &"x".repeat(70_000)), 415);
    // Where it is only reported, it passes.
    assert_eq!(coded("/o/a/users/batch/status", "{}"), 200);
    assert_eq!(gateway.backend().count(), 1);
}

#[test]
fn a_refused_caller_that_goes_on_is_checked_as_before() {
    let gateway = start(&[]);
    let mut connection = gateway.connect();
    for _ in 0..3 {
        let answer = connection.call(
            "POST",
            "/o/a/chatgroups",
            &[],
            r#"{"groupname":1,"groupname":2}"#,
        );
        assert_eq!(answer.status, 400);
        let long = format!(r#"{{"groupname":"{}"}}"#, "x".repeat(129));
        let answer = connection.call("POST", "/o/a/chatgroups", &[], &long);
        assert_eq!(
            (answer.status, told(&answer).2.as_str()),
            (400, "group-name")
        );
        let answer = connection.call("POST", "/o/a/chatgroups", &[], r#"{"groupname":"x"}"#);
        assert_eq!(answer.status, 200);
    }
    soon("it is counted", || refused(&gateway, "group-name") == 3.0);
    assert_eq!(units(&gateway, "chatgroups-post:calls/s:app"), (3.0, 0.0));
}

#[test]
fn who_has_no_good_token_pays_for_what_is_cut_off() {
    let gateway = start(&[]);
    let mut connection = Connection::to(gateway.addr);
    let (_, body) = upload(10 * MB + 1);
    let head = format!(
        "POST /o/a/chatfiles HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer unknown\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    connection.send(head.as_bytes());
    let _ = connection.try_send(&body);
    assert_eq!(connection.read_answer("POST").status, 413);
    soon("its address is charged", || {
        units(&gateway, "unauthorized:calls/s").0 == 1.0
    });
    soon("the unit comes back", || {
        units(&gateway, "chatfiles:calls/s:app") == (1.0, 1.0)
    });
}
