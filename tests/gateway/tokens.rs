//! Tokens: which are refused here and what that costs whom, which are remembered, and what calls
//! may hold while nobody knows theirs.

use std::io::Write as _;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

use crate::ROUTES;
use crate::door::soon as wait_for;
use crate::harness::{Answer, Connection, Gateway, Start};

pub(crate) const APP_ID: &str = "970CA35de60c44645bbae8a215061b33";
const CERTIFICATE: &str = "5CFd2fd1755d40ecb72977518be15d3b";
const OTHER: &str = "00000000000000000000000000000000";

/// One figure of an app each, and its answers counted by nothing else.
const FIGURES: &str = r#"
[ip]
unauthorized = ["1000/3600s"]
[[route]]
name = "t-eight"
calls = ["GET /t/eight/{username}"]
v3 = { limits = ["8/3600s", "1000/s per user"], ip_copy = false }
v4 = { limits = ["8/3600s"] }
[[route]]
name = "t-open"
calls = ["GET /t/open"]
auth = "off"
v3 = { limits = ["1000/s"] }
[[route]]
name = "t-users"
calls = ["GET /t/users"]
auth = "require-bearer"
v3 = { limits = ["1000/s"] }
[[route]]
name = "t-checked"
calls = ["GET /t/checked"]
auth = "verify"
v3 = { limits = ["1000/s"] }
"#;

/// A gateway that knows two apps, one of them with a certificate.
fn gateway(args: &[&str]) -> Gateway {
    let dir = tempfile::tempdir().unwrap();
    let apps = dir.path().join("apps.toml");
    let key = dir.path().join("certificate");
    writeln!(std::fs::File::create(&key).unwrap(), "{CERTIFICATE}").unwrap();
    let text = format!(
        "[[app]]\nnames = [\"o#a\", \"{APP_ID}\"]\ncertificate_file = {key:?}\n\
         [[app]]\nnames = [\"o#b\", \"{OTHER}\"]\n"
    );
    std::fs::write(&apps, text).unwrap();
    let mut all = vec!["--apps", apps.to_str().unwrap()];
    all.extend(["--trusted-proxy", "127.0.0.0/8"]);
    all.extend(args);
    let routes = format!("{ROUTES}{FIGURES}");
    Start {
        routes: &routes,
        args: &all,
        ..Start::default()
    }
    .start()
}

/// A token of the chat service: its privilege, its user, and how long it has lasted and will.
pub(crate) struct Made<'a> {
    pub(crate) app_id: &'a str,
    pub(crate) certificate: &'a str,
    pub(crate) privilege: u16,
    pub(crate) user: &'a str,
    pub(crate) age_s: i64,
    pub(crate) lasts_s: u32,
}

pub(crate) const APP: Made<'_> = Made {
    app_id: APP_ID,
    certificate: CERTIFICATE,
    privilege: 2,
    user: "",
    age_s: 0,
    lasts_s: 3600,
};

impl Made<'_> {
    pub(crate) fn token(&self) -> String {
        let now_s = i64::try_from(floodgate::clock::unix_us() / 1_000_000).unwrap();
        let issued = u32::try_from(now_s - self.age_s).unwrap().to_le_bytes();
        let salt = 12345_u32.to_le_bytes();
        let string = |bytes: &[u8]| {
            let length = u16::try_from(bytes.len()).unwrap();
            [&length.to_le_bytes(), bytes].concat()
        };
        let mac = |key: &[u8], message: &[u8]| {
            let mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
            mac.chain_update(message).finalize().into_bytes()
        };
        let lasts = self.lasts_s.to_le_bytes();
        let info = [
            &string(self.app_id.as_bytes())[..],
            &issued,
            &lasts,
            &salt,
            &[1, 0, 5, 0, 1, 0],
            &self.privilege.to_le_bytes(),
            &lasts,
            &string(self.user.as_bytes()),
        ]
        .concat();
        let key = mac(&salt, &mac(&issued, self.certificate.as_bytes()));
        let content = [string(&mac(&key, &info)), info].concat();
        let packed = miniz_oxide::deflate::compress_to_vec_zlib(&content, 6);
        format!("007{}", STANDARD.encode(packed))
    }
}

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}")
}

fn call(gateway: &Gateway, path: &str, token: &str) -> Answer {
    gateway.connect().call("GET", path, &[&bearer(token)], "")
}

/// Begins a call that is answered after a while.
fn begin(gateway: &Gateway, path: &str, token: &str, ip: &str, delay_ms: u32) -> Connection {
    let mut connection = gateway.connect();
    let delay = format!("x-standin-delay-ms: {delay_ms}");
    let ip = format!("X-Forwarded-For: {ip}");
    connection.send_call("GET", path, &[&bearer(token), &delay, &ip], "");
    connection
}

fn charged(gateway: &Gateway, limit: &str) -> f64 {
    gateway.metric("floodgate_units_charged_total", &[limit])
}

#[test]
fn a_call_without_a_token_is_a_native_401_and_costs_its_address_alone() {
    for auth in ["require-bearer", "verify"] {
        let gateway = gateway(&["--auth", auth]);
        for header in [
            "Authorization: -",
            "Authorization: Bearer ",
            "Authorization: Basic YTpi",
            "Authorization: Bearer a\r\nAuthorization: Bearer b",
            // What a laxer backend might take a token from.
            "Authorization: Bearer \"007a\"",
            "Authorization: Bearer ,007a",
            "Authorization: Bearer x, Bearer 007a",
            "Authorization: Bearer x 007a",
            "Authorization: Bearer\t007a",
            "Authorization: Bearer \t007a",
            "Authorization: Bearer %30%30%37a",
            "Authorization: Bearer =007a",
            "Authorization: Bearer 007a;x",
            "Authorization: Bearer \u{e9}007a",
            "Authorization: Bearer:007a",
            "Authorization: \"Bearer 007a\"",
        ] {
            let answer = gateway.connect().call("GET", "/o/a/t/app", &[header], "");
            assert_eq!(answer.status, 401, "{header}");
            assert_eq!(
                answer.error(),
                ("unauthorized".into(), "Unable to authenticate".into())
            );
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
        }
        assert_eq!(charged(&gateway, "unauthorized"), 16.0);
        let result = |result: &str| {
            let label = format!("result=\"{result}\"");
            gateway.metric("floodgate_tokens_total", &[&label])
        };
        assert_eq!((result("missing"), result("malformed")), (1.0, 15.0));
        assert_eq!(gateway.metric("floodgate_tokens_total", &[]), 16.0);
        assert_eq!(charged(&gateway, "t-app"), 0.0);
        assert_eq!(gateway.backend().count(), 0);
        // The one call that asks for no token is the one that gets one.
        let mut connection = gateway.connect();
        let token = connection.call("POST", "/o/a/token", &["Authorization: -"], "{}");
        assert_eq!(token.status, 200);
    }
}

#[test]
fn a_token_that_can_be_checked_is_checked_before_anything_is_charged() {
    let gateway = gateway(&["--auth", "verify"]);
    let made = |of: Made<'_>| of.token();
    let good = made(APP);
    for path in ["/o/a/t/app", "/O/A/t/app"] {
        assert_eq!(call(&gateway, path, &good).status, 200);
    }
    let by_id = format!("/app-id/{APP_ID}/t/eight/eve");
    assert_eq!(call(&gateway, &by_id, &good).status, 200);
    let seen = gateway.backend().count();
    let corrupt = "Unable to authenticate due to corrupt access token";
    let expired = "Unable to authenticate due to expired access token";
    let refused = "Unable to authenticate";
    let mut flipped = good.clone();
    let middle = flipped.len() / 2;
    let other = if flipped.as_bytes()[middle] == b'A' {
        "B"
    } else {
        "A"
    };
    flipped.replace_range(middle..=middle, other);
    let bad = [
        ("007", corrupt),
        ("007AAAA", corrupt),
        (&flipped, corrupt),
        (&good[..good.len() - 4], corrupt),
        (
            &made(Made {
                certificate: OTHER,
                ..APP
            }),
            corrupt,
        ),
        (&made(Made { age_s: 3600, ..APP }), expired),
        (&made(Made { lasts_s: 0, ..APP }), expired),
        (&made(Made { age_s: -120, ..APP }), refused),
        (
            &made(Made {
                app_id: OTHER,
                ..APP
            }),
            refused,
        ),
        (
            &made(Made {
                privilege: 1,
                user: "alice",
                ..APP
            }),
            refused,
        ),
        (
            &made(Made {
                user: "alice",
                ..APP
            }),
            refused,
        ),
    ];
    let before = charged(&gateway, "t-app:");
    for (nth, (token, description)) in bad.iter().enumerate() {
        let answer = call(&gateway, "/o/a/t/app", token);
        assert_eq!(answer.status, 401, "{nth}");
        let challenge = answer.header("www-authenticate");
        assert_eq!(challenge, Some("Bearer error=\"invalid_token\""), "{nth}");
        let error = answer.error();
        assert_eq!(
            (&*error.0, &*error.1),
            ("auth_bad_access_token", *description),
            "{nth}"
        );
    }
    assert_eq!(charged(&gateway, "unauthorized"), 11.0);
    for (result, number) in [
        ("verified", 1.0),
        ("known", 2.0),
        ("corrupt", 4.0),
        ("wrong-signature", 1.0),
        ("expired", 2.0),
        ("not-yet-valid", 1.0),
        ("other-app", 1.0),
        ("no-app-privilege", 2.0),
        ("opaque", 0.0),
    ] {
        let label = format!("result=\"{result}\"");
        let counted = gateway.metric("floodgate_tokens_total", &[&label]);
        assert_eq!(counted, number, "{result}");
    }
    assert_eq!(charged(&gateway, "t-app:"), before);
    assert_eq!(gateway.backend().count(), seen);
    wait_for("the log says why", || {
        let log = gateway.log();
        [
            "corrupt",
            "signature wrong",
            "expired",
            "not yet valid",
            "of another app",
            "without app privilege",
        ]
        .iter()
        .all(|why| log.contains(&format!("\"token {why}\"")))
    });
}

#[test]
fn refusals_of_tokens_are_themselves_limited() {
    let gateway = gateway(&["--auth", "verify"]);
    let ip = "X-Forwarded-For: 192.0.2.7";
    let bad = || {
        let headers = [ip, "Authorization: Bearer 007AAAA"];
        gateway
            .connect()
            .call("GET", "/o/a/t/app", &headers, "")
            .status
    };
    let mut connection = gateway.connect();
    for _ in 0..1000 {
        let headers = [ip, "Authorization: Bearer 007AAAA"];
        assert_eq!(
            connection.call("GET", "/o/a/t/app", &headers, "").status,
            401
        );
    }
    assert_eq!(bad(), 429);
    // And no good token of that address gets through any more.
    let good = bearer(&APP.token());
    let answer = gateway
        .connect()
        .call("GET", "/o/a/t/app", &[ip, &good], "");
    assert_eq!(answer.status, 429);
    assert_eq!(call(&gateway, "/o/a/t/app", &APP.token()).status, 200);
}

#[test]
fn what_cannot_be_checked_is_the_backends_to_tell() {
    let gateway = gateway(&["--auth", "verify"]);
    for (path, token) in [
        ("/o/a/t/app", "YWMtopaque"),
        ("/o/b/t/app", "007AAAA"),
        ("/o/c/t/app", &APP.token()),
    ] {
        assert_eq!(call(&gateway, path, token).status, 200, "{path}");
    }
    assert_eq!(call(&gateway, "/o/a/t/app", "bad").status, 401);
    assert_eq!(gateway.backend().count(), 4);
}

#[test]
fn a_routes_own_auth_goes_over_that_for_all() {
    let user = Made {
        privilege: 1,
        user: "alice",
        ..APP
    }
    .token();
    let of = |gateway: &Gateway, path: &str| {
        let none = gateway
            .connect()
            .call("GET", path, &["Authorization: -"], "");
        (none.status, call(gateway, path, &user).status)
    };
    let expected = [
        ("off", (200, 200)),
        ("require-bearer", (401, 200)),
        ("verify", (401, 401)),
    ];
    for (auth, both) in expected {
        let gateway = gateway(&["--auth", auth]);
        assert_eq!(of(&gateway, "/o/a/t/first"), both, "{auth}");
        assert_eq!(of(&gateway, "/o/a/t/open"), (200, 200), "{auth}");
        assert_eq!(of(&gateway, "/o/a/t/users"), (401, 200), "{auth}");
        assert_eq!(of(&gateway, "/o/a/t/checked"), (401, 401), "{auth}");
    }
}

#[test]
fn a_token_that_the_backend_has_refused_does_not_reach_it_for_a_while() {
    let gateway = gateway(&["--bad-token-memory", "8s"]);
    for nth in 1..=3_u8 {
        assert_eq!(call(&gateway, "/o/a/t/eight/eve", "bad").status, 401);
        assert_eq!(gateway.backend().count(), 1);
        wait_for("its refusal is charged as the backend's is", || {
            charged(&gateway, "unauthorized") == f64::from(nth)
        });
    }
    assert_eq!(
        call(&gateway, "/o/a/t/first", "bad").error(),
        (
            "auth_bad_access_token".into(),
            "Unable to authenticate".into()
        )
    );
    // The same text is another token in another app, and another text is another token.
    assert_eq!(call(&gateway, "/o/b/t/app", "bad").status, 401);
    assert_eq!(call(&gateway, "/o/a/t/app", "other").status, 200);
    assert_eq!(gateway.backend().count(), 3);
    std::thread::sleep(Duration::from_millis(8100));
    assert_eq!(call(&gateway, "/o/a/t/app", "bad").status, 401);
    assert_eq!(gateway.backend().count(), 4);
    for (result, number) in [
        ("remembered-bad", 3.0),
        ("refused-upstream", 3.0),
        ("opaque", 4.0),
    ] {
        let label = format!("result=\"{result}\"");
        let counted = gateway.metric("floodgate_tokens_total", &[&label]);
        assert_eq!(counted, number, "{result}");
    }
    // No unit of the app is gone.
    assert_eq!(
        gateway.metric("floodgate_units_refunded_total", &["t-eight", ":app"]),
        1.0
    );
}

#[test]
fn a_good_token_survives_one_401() {
    let gateway = gateway(&[]);
    let refused = |path: &str| {
        let wishes = [&*bearer("good"), "x-standin-status: 401"];
        gateway.connect().call("GET", path, &wishes, "").status
    };
    assert_eq!(call(&gateway, "/o/a/t/first", "good").status, 200);
    assert_eq!(refused("/o/a/t/user/eve"), 401);
    assert_eq!(call(&gateway, "/o/a/t/first", "good").status, 200);
    for _ in 0..2 {
        assert_eq!(refused("/o/a/t/user/eve"), 401);
    }
    let seen = gateway.backend().count();
    assert_eq!(call(&gateway, "/o/a/t/first", "good").status, 401);
    assert_eq!(gateway.backend().count(), seen);
}

#[test]
fn bad_tokens_and_a_slow_backend_leave_three_quarters_to_others() {
    let gateway = gateway(&[]);
    let path = "/o/a/t/eight/eve";
    // Known to be good before the attack begins.
    assert_eq!(call(&gateway, "/o/a/t/open", "good").status, 200);
    assert_eq!(call(&gateway, "/o/a/t/users", "good").status, 200);
    let mut attack: Vec<Connection> = (0..20)
        .map(|nth| {
            begin(
                &gateway,
                path,
                if nth < 10 { "bad" } else { "worse" },
                "192.0.2.1",
                8000,
            )
        })
        .collect();
    wait_for("the attack", || gateway.backend().count() == 4);
    // Two are in flight, which is a quarter of eight; the others are answered at once.
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(gateway.backend().count(), 4);
    let mut others: Vec<Connection> = (0..7)
        .map(|_| begin(&gateway, path, "good", "192.0.2.2", 0))
        .collect();
    let statuses: Vec<u16> = others
        .iter_mut()
        .map(|c| c.read_answer("GET").status)
        .collect();
    assert_eq!(
        statuses.iter().filter(|status| **status == 200).count(),
        6,
        "{statuses:?}"
    );
    let answers: Vec<Answer> = attack.iter_mut().map(|c| c.read_answer("GET")).collect();
    let denied: Vec<&Answer> = answers.iter().filter(|a| a.status == 429).collect();
    assert_eq!(denied.len(), 18);
    let unproven = ["result=\"unproven\""];
    assert_eq!(gateway.metric("floodgate_tokens_total", &unproven), 18.0);
    for answer in denied {
        assert_eq!(answer.error().0, "reach_limit");
        assert_eq!(answer.header("retry-after"), Some("1"));
        assert_eq!(answer.json()["limit"], "t-eight:calls/60min:app");
    }
    wait_for("the log says why", || {
        gateway.log().matches("\"error\":\"unproven\"").count() == 18
    });
}

#[test]
fn a_call_without_an_answer_holds_its_share_until_it_ends_however_it_ends() {
    let gateway = gateway(&["--read-timeout", "8s", "--bad-token-memory", "off"]);
    let path = "/o/a/t/eight/eve";
    for leave in [drop::<Connection>, Connection::reset] {
        let before = gateway.backend().count();
        let slow = [(); 2].map(|()| begin(&gateway, path, "bad", "192.0.2.1", 4000));
        wait_for("both calls", || gateway.backend().count() == before + 2);
        let denied = begin(&gateway, path, "unknown", "192.0.2.1", 0).read_answer("GET");
        assert_eq!(denied.status, 429);
        slow.into_iter().for_each(leave);
        wait_for("the end of the call", || {
            gateway.metric("floodgate_requests_in_flight", &[]) == 0.0
        });
    }
    // A silent backend, and one that breaks off, have the unit: what is held is free.
    let held = |path: &str, wish: &str| {
        let ip = "X-Forwarded-For: 192.0.2.1";
        gateway
            .connect()
            .call("GET", path, &[&bearer("t"), wish, ip], "")
            .status
    };
    assert_eq!(held(path, "x-standin-delay-ms: 60000"), 504);
    for wish in [
        "x-standin-close: before",
        "x-standin-status: 500",
        "x-standin-status: 404",
    ] {
        for _ in 0..2 {
            assert!(held(path, wish) >= 404, "{wish}");
        }
    }
    assert_eq!(
        begin(&gateway, path, "t", "192.0.2.1", 0)
            .read_answer("GET")
            .status,
        200
    );
}

#[test]
fn each_address_has_its_share_and_a_good_token_needs_none() {
    let gateway = gateway(&["--unproven-share", "50%"]);
    let path = "/o/a/t/eight/eve";
    let mut begun = Vec::new();
    for ip in ["192.0.2.1", "192.0.2.2"] {
        for _ in 0..3 {
            begun.push(begin(&gateway, path, "unknown", ip, 7000));
        }
    }
    begun.push(begin(&gateway, path, "unknown", "192.0.2.1", 7000));
    wait_for("seven calls", || gateway.backend().count() == 7);
    let over = begin(&gateway, path, "unknown", "192.0.2.1", 0).read_answer("GET");
    assert_eq!((over.status, over.header("retry-after")), (429, Some("1")));
    assert!(begun.iter_mut().all(|c| c.read_answer("GET").status == 200));
    // One unit is left, and by now the token is known.
    assert_eq!(
        begin(&gateway, path, "unknown", "192.0.2.1", 0)
            .read_answer("GET")
            .status,
        200
    );
}

#[test]
fn a_first_burst_is_let_in_as_soon_as_one_call_is_answered() {
    let gateway = gateway(&["--unproven-share", "1"]);
    let path = "/o/a/t/eight/eve";
    assert_eq!(
        begin(&gateway, path, "new", "192.0.2.1", 0)
            .read_answer("GET")
            .status,
        200
    );
    let mut burst: Vec<Connection> = (0..7)
        .map(|_| begin(&gateway, path, "new", "192.0.2.1", 500))
        .collect();
    assert!(burst.iter_mut().all(|c| c.read_answer("GET").status == 200));
}

#[test]
fn a_verified_token_holds_no_share() {
    let gateway = gateway(&["--auth", "verify", "--unproven-share", "1"]);
    let token = APP.token();
    let mut burst: Vec<Connection> = (0..8)
        .map(|_| begin(&gateway, "/o/a/t/eight/eve", &token, "192.0.2.1", 500))
        .collect();
    assert!(burst.iter_mut().all(|c| c.read_answer("GET").status == 200));
}

#[test]
fn no_token_and_no_certificate_is_in_the_log_the_metrics_or_an_answer() {
    let gateway = gateway(&["--auth", "verify", "--answers", "problem"]);
    let signed = APP.token();
    let forged = Made {
        certificate: OTHER,
        ..APP
    }
    .token();
    let secrets = [
        &signed,
        &forged,
        "YWMtsecret-of-somebody",
        "bad",
        CERTIFICATE,
    ];
    let mut said = String::new();
    for token in &secrets[..4] {
        for path in [
            "/o/a/t/app",
            "/o/b/t/eight/eve",
            "/o/a/t/first",
            "/o/a//x",
            "/nowhere",
        ] {
            for _ in 0..2 {
                let answer = call(&gateway, path, token);
                said.push_str(&format!("{:?}{}", answer.headers, answer.text()));
            }
        }
    }
    wait_for("all lines", || gateway.log().lines().count() >= 40);
    for path in ["/metrics", "/top"] {
        said.push_str(
            &Connection::to(gateway.admin)
                .call("GET", path, &[], "")
                .text(),
        );
    }
    said.push_str(&gateway.log());
    // Of `bad` alone there is no telling: it is a word.
    for secret in secrets.iter().filter(|secret| **secret != "bad") {
        for part in [
            &secret[..],
            &secret[..secret.len() / 2],
            &secret[secret.len() / 2..],
        ] {
            assert!(!said.contains(part), "{part}");
        }
    }
    assert!(!said.contains("Bearer b"));
}
