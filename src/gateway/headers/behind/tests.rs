use super::*;

#[test]
fn every_listed_name_stays_behind_in_each_spelling() {
    for list in [OF_THIS_HOP, OTHER_READINGS, OTHER_CALLERS] {
        for name in list {
            assert!(
                name.bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            );
            for trusted in [false, true] {
                assert!(stays_behind(name, trusted), "{name}");
                assert!(stays_behind(&name.replace('-', "_"), trusted), "{name}");
                assert!(stays_behind(&name.replacen('-', "_", 1), trusted), "{name}");
            }
        }
    }
}

#[test]
fn what_a_call_needs_goes_on() {
    for name in [
        "accept",
        "accept-encoding",
        "accept-language",
        "authorization",
        "cache-control",
        "content-disposition",
        "content-encoding",
        "content-length",
        "content-type",
        "cookie",
        "date",
        "dnt",
        "expect",
        "from",
        "host",
        "if-match",
        "if-none-match",
        "origin",
        "pragma",
        "priority",
        "range",
        "referer",
        "sec-fetch-mode",
        "restrict-access",
        "share-secret",
        "thumbnail",
        "traceparent",
        "tracestate",
        "user-agent",
        "via",
        "x-request-id",
        "app_key",
        "x-b3-traceid",
        "x-requested-with",
        "x-api-key",
        "x-easemob-x",
    ] {
        assert!(!stays_behind(name, false), "{name}");
    }
    let long = "x".repeat(70);
    assert!(!stays_behind(&long, false));
}

#[test]
fn a_trusted_proxys_own_fields_go_on() {
    for name in ["x-forwarded-host", "x-forwarded-port", "x-forwarded-proto"] {
        assert!(stays_behind(name, false), "{name}");
        assert!(!stays_behind(name, true), "{name}");
        assert!(stays_behind(&name.replace('-', "_"), true), "{name}");
    }
}
