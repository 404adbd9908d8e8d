//! What a body costs, and which bodies are refused.

use proptest::prelude::*;
use serde_json::Value;

use super::*;

fn price(body: &[u8]) -> Result<u32, PriceError> {
    let source = CostSource {
        field: "to".into(),
        caps: Box::default(),
    };
    recipients(&source, body)
}

fn empty(field: &str) -> PriceError {
    PriceError::Empty {
        field: field.into(),
    }
}

/// As `messages/chatgroups/users`: one group, and up to three of its users, who are the cost.
fn directed(body: &str) -> Result<u32, PriceError> {
    let cap = |field: &str, max| Cap {
        field: field.into(),
        max,
    };
    let source = CostSource {
        field: "users".into(),
        caps: [cap("users", 3), cap("to", 1)].into(),
    };
    recipients(&source, body.as_bytes())
}

#[test]
fn each_capped_field_has_its_own_cap_and_one_is_the_cost() {
    assert_eq!(directed(r#"{"to":["g"],"users":["a","b","c"]}"#), Ok(3));
    assert_eq!(
        directed(r#"{"users":["a","b"],"x":{"to":[]},"to":[1]}"#),
        Ok(2)
    );
    let too_many = |field: &str, max| {
        let field = field.into();
        Err(PriceError::TooMany(Cap { field, max }))
    };
    for (body, told) in [
        (r#"{"to":["g","h"],"users":["a"]}"#, too_many("to", 1)),
        (r#"{"to":["g","g"],"users":["a"]}"#, too_many("to", 1)),
        (
            r#"{"to":["g"],"users":["a","b","c","d"]}"#,
            too_many("users", 3),
        ),
        (r#"{"users":["a"]}"#, Err(empty("to"))),
        (r#"{"to":[],"users":["a"]}"#, Err(empty("to"))),
        (r#"{"to":["g"]}"#, Err(empty("users"))),
        (r#"{"to":"g","users":["a"]}"#, Err(PriceError::Malformed)),
    ] {
        assert_eq!(directed(body), told, "{body}");
    }
}

#[test]
fn no_capped_field_may_be_there_twice() {
    for body in [
        r#"{"to":["g"],"users":["a"],"to":["g"]}"#,
        r#"{"to":["g"],"users":["a"],"\u0074o":["g"]}"#,
        r#"{"to":["g"],"users":["a"],"users":["a"]}"#,
        r#"{"to":[],"users":["a"],"to":["g"]}"#,
    ] {
        assert_eq!(directed(body), Err(PriceError::Malformed), "{body}");
    }
}

#[test]
fn every_recipient_counts_and_a_repeated_one_counts_again() {
    assert_eq!(price(br#"{"to":["a","b","a"]}"#), Ok(3));
    assert_eq!(
        price(b" \n{\"type\":\"txt\",\"to\":[1,2],\"body\":{\"to\":[1,2,3]}}\r\n"),
        Ok(2)
    );
    assert_eq!(
        price("{\"to\":[\"\\u0061\",\"中文\",\"😀\"]}".as_bytes()),
        Ok(3)
    );
}

#[test]
fn a_key_is_the_same_however_it_is_escaped() {
    assert_eq!(price(br#"{"\u0074o":["a"]}"#), Ok(1));
    assert_eq!(
        price(br#"{"to":["a"],"t\u006f":["b"]}"#),
        Err(PriceError::Malformed)
    );
}

#[test]
fn a_counted_key_in_another_case_is_refused() {
    for body in [
        r#"{"to":["a"],"TO":["b"]}"#,
        r#"{"To":["a"]}"#,
        r#"{"t\u004f":["b"],"to":["a"]}"#,
    ] {
        assert_eq!(price(body.as_bytes()), Err(PriceError::Malformed), "{body}");
    }
    for body in [
        r#"{"to":["g"],"users":["a"],"TO":["g"]}"#,
        r#"{"to":["g"],"users":["a"],"uſers":["b"]}"#,
        r#"{"to":["g"],"users":["a"],"u\u017fers":["b"]}"#,
    ] {
        assert_eq!(directed(body), Err(PriceError::Malformed), "{body}");
    }
    // Only at the top, and only whole keys.
    let body = r#"{"to":["a"],"body":{"TO":["b"]},"Too":1,"T":1,"":2}"#;
    assert_eq!(price(body.as_bytes()), Ok(1));
}

#[test]
fn no_recipients_are_told_from_a_bad_body() {
    for body in [&b"{}"[..], br#"{"to":[]}"#, br#"{"body":{"to":["a"]}}"#] {
        assert_eq!(price(body), Err(empty("to")));
    }
}

#[test]
fn what_two_parsers_could_read_differently_is_refused() {
    let utf16: Vec<u8> = "{\"to\":[\"a\"]}"
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    let deep = format!("{{\"to\":{}", "[".repeat(60_000));
    for body in [
        &b""[..],
        b"[]",
        b"null",
        b"\"to\"",
        b"{\"to\":[\"a\"]} x",
        b"{\"to\":[\"a\"]}{}",
        b"{\"to\":[\"a\"],\"to\":[\"b\"]}",
        b"{\"to\":\"a\"}",
        b"{\"to\":{\"a\":1}}",
        b"{\"to\":null}",
        b"{\"to\":[[\"a\"]]}",
        b"{\"to\":[\"a\",null]}",
        b"{\"to\":[1.5]}",
        b"{\"to\":[true]}",
        b"{\"to\":[\"a\",]}",
        b"{'to':['a']}",
        b"\xef\xbb\xbf{\"to\":[\"a\"]}",
        b"{\"to\":[\"a\"],\"x\":\"\xff\"}",
        b"{\"to\":[\"a\"],\"x\":\"\n\"}",
        &utf16,
        deep.as_bytes(),
    ] {
        assert_eq!(
            price(body),
            Err(PriceError::Malformed),
            "{:?}",
            String::from_utf8_lossy(&body[..body.len().min(40)])
        );
    }
}

fn arb_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::btree_map("to|[a-z\"\\\\]{0,3}", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn by_tree(value: &Value) -> Result<u32, PriceError> {
    let object = value.as_object().ok_or(PriceError::Malformed)?;
    let Some(to) = object.get("to") else {
        return Err(empty("to"));
    };
    let to = to.as_array().ok_or(PriceError::Malformed)?;
    if !to.iter().all(|e| e.is_string() || e.is_u64() || e.is_i64()) {
        return Err(PriceError::Malformed);
    }
    u32::try_from(to.len())
        .ok()
        .filter(|n| *n > 0)
        .ok_or_else(|| empty("to"))
}

proptest! {
    #[test]
    fn the_count_is_that_of_a_whole_tree(value in arb_json()) {
        prop_assert_eq!(price(value.to_string().as_bytes()), by_tree(&value));
    }

    #[test]
    fn any_bytes_give_an_answer(body in prop::collection::vec(any::<u8>(), 0..200)) {
        let priced = price(&body);
        if let Ok(tree) = serde_json::from_slice::<Value>(&body) {
            if priced != Err(PriceError::Malformed) {
                prop_assert_eq!(priced, by_tree(&tree));
            }
        } else {
            prop_assert_eq!(priced, Err(PriceError::Malformed));
        }
    }
}
