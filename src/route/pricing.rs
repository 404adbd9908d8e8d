//! Step 3, price: how many recipients a body addresses.
//!
//! The body is parsed as a stream of JSON: no tree is built, nothing is kept but a count.

use std::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// Where a body names its recipients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CostSource {
    /// The top-level JSON field, an array: `to`, `users`, `target`, `targets`.
    pub field: Box<str>,
}

/// Why a body cannot be priced (400).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PriceError {
    /// Not one JSON object in UTF-8, or the counted field is no array of strings or integers,
    /// or it is there twice.
    #[error("the body is not valid JSON of the documented form")]
    Malformed,
    /// The counted field is missing or an empty array.
    #[error("the recipients are missing")]
    Empty,
}

/// The largest body that is read for pricing, in bytes.
pub const MAX_COUNTED_BODY: usize = 64 * 1024;

/// Counts the recipients of a whole body. Recipients named twice count twice.
///
/// # Errors
/// See [`PriceError`].
pub fn recipients(source: &CostSource, body: &[u8]) -> Result<u32, PriceError> {
    // serde_json skips ignored strings without a look at their UTF-8.
    let text = std::str::from_utf8(body).map_err(|_| PriceError::Malformed)?;
    let mut json = serde_json::Deserializer::from_str(text);
    let count = json
        .deserialize_map(Body {
            field: &source.field,
        })
        .and_then(|count| json.end().map(|()| count))
        .map_err(|_| PriceError::Malformed)?;
    match count {
        None | Some(0) => Err(PriceError::Empty),
        Some(count) => Ok(count),
    }
}

/// The object; its value is the number of entries in the counted field.
struct Body<'f> {
    field: &'f str,
}

impl<'de> Visitor<'de> for Body<'_> {
    type Value = Option<u32>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut count = None;
        while let Some(is_counted) = map.next_key_seed(KeyIs(self.field))? {
            if !is_counted {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            // Of two, one backend reads the first and another the last.
            if count.replace(map.next_value::<Entries>()?.0).is_some() {
                return Err(de::Error::custom("the counted field is there twice"));
            }
        }
        Ok(count)
    }
}

/// Compares a key, escapes resolved, without keeping it.
struct KeyIs<'f>(&'f str);

impl<'de> de::DeserializeSeed<'de> for KeyIs<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for KeyIs<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: de::Error>(self, key: &str) -> Result<bool, E> {
        Ok(key == self.0)
    }
}

/// The number of entries of an array of strings or integers.
struct Entries(u32);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(EntriesVisitor)
    }
}

struct EntriesVisitor;

impl<'de> Visitor<'de> for EntriesVisitor {
    type Value = Entries;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of strings or integers")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Entries, A::Error> {
        let mut count = 0_u32;
        while seq.next_element::<Entry>()?.is_some() {
            count = count.saturating_add(1);
        }
        Ok(Entries(count))
    }
}

/// One recipient: a user ID, or a group's number.
struct Entry;

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(EntryVisitor)
    }
}

struct EntryVisitor;

impl Visitor<'_> for EntryVisitor {
    type Value = Entry;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or an integer")
    }

    fn visit_str<E: de::Error>(self, _: &str) -> Result<Entry, E> {
        Ok(Entry)
    }

    fn visit_u64<E: de::Error>(self, _: u64) -> Result<Entry, E> {
        Ok(Entry)
    }

    fn visit_i64<E: de::Error>(self, _: i64) -> Result<Entry, E> {
        Ok(Entry)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn price(body: &[u8]) -> Result<u32, PriceError> {
        recipients(&CostSource { field: "to".into() }, body)
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
    fn no_recipients_are_told_from_a_bad_body() {
        for body in [
            &b"{}"[..],
            br#"{"to":[]}"#,
            br#"{"TO":["a"]}"#,
            br#"{"body":{"to":["a"]}}"#,
        ] {
            assert_eq!(price(body), Err(PriceError::Empty));
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
            return Err(PriceError::Empty);
        };
        let to = to.as_array().ok_or(PriceError::Malformed)?;
        if !to.iter().all(|e| e.is_string() || e.is_u64() || e.is_i64()) {
            return Err(PriceError::Malformed);
        }
        u32::try_from(to.len())
            .ok()
            .filter(|n| *n > 0)
            .ok_or(PriceError::Empty)
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
}
