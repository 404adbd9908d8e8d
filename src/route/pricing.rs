//! Step 3, price: how many recipients a body addresses.
//!
//! The body is parsed as a stream of JSON: no tree is built, nothing is kept but a count.

use std::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use smallvec::SmallVec;

/// Where a body names its recipients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CostSource {
    /// The top-level JSON field, an array, whose entries are the cost: `to`, `users`, `target`,
    /// `targets`.
    pub field: Box<str>,
    /// The most entries of fields, the one of the cost or others; each must have one at least.
    pub caps: Box<[Cap]>,
}

impl CostSource {
    /// The caps of fields beside the cost's.
    pub fn other_caps(&self) -> impl Iterator<Item = &Cap> {
        self.caps.iter().filter(|cap| cap.field != self.field)
    }
}

/// The most entries of a body field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cap {
    /// The top-level JSON field, an array.
    pub field: Box<str>,
    /// The most entries of one call.
    pub max: u32,
}

/// Why a body cannot be priced (400).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PriceError {
    /// Not one JSON object in UTF-8, or a counted field is no array of strings or integers,
    /// or it is there twice.
    #[error("the body is not valid JSON of the documented form")]
    Malformed,
    /// A counted field is missing or an empty array.
    #[error("{field} is missing or empty")]
    Empty {
        /// Which.
        field: Box<str>,
    },
    /// A counted field has too many entries.
    #[error("{} has more than {} entries", .0.field, .0.max)]
    TooMany(Cap),
}

/// The largest body that is read for pricing, in bytes.
pub const MAX_COUNTED_BODY: usize = 64 * 1024;

/// Entries by counted field: the cost's first, then those of the caps, in their order.
type Counts = SmallVec<[Option<u32>; 4]>;

/// Counts the recipients of a whole body. Recipients named twice count twice.
///
/// # Errors
/// See [`PriceError`].
pub fn recipients(source: &CostSource, body: &[u8]) -> Result<u32, PriceError> {
    let counts = count(source, body)?;
    let fields = || std::iter::once(&source.field).chain(source.caps.iter().map(|cap| &cap.field));
    let of = |field: &str| {
        let nth = fields().position(|known| **known == *field)?;
        counts
            .get(nth)
            .copied()
            .flatten()
            .filter(|count| *count > 0)
    };
    let entries = |field: &Box<str>| {
        of(field).ok_or_else(|| PriceError::Empty {
            field: field.clone(),
        })
    };
    let cost = entries(&source.field)?;
    for cap in &source.caps {
        if entries(&cap.field)? > cap.max {
            return Err(PriceError::TooMany(cap.clone()));
        }
    }
    Ok(cost)
}

/// One pass over the body.
fn count(source: &CostSource, body: &[u8]) -> Result<Counts, PriceError> {
    // serde_json skips ignored strings without a look at their UTF-8.
    let text = std::str::from_utf8(body).map_err(|_| PriceError::Malformed)?;
    let mut json = serde_json::Deserializer::from_str(text);
    json.deserialize_map(Body(source))
        .and_then(|counts| json.end().map(|()| counts))
        .map_err(|_| PriceError::Malformed)
}

/// The object; its value is the number of entries in each counted field.
struct Body<'s>(&'s CostSource);

impl<'de> Visitor<'de> for Body<'_> {
    type Value = Counts;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut counts = Counts::from_elem(None, 1 + self.0.caps.len());
        while let Some(nth) = map.next_key_seed(Counted(self.0))? {
            let Some(count) = nth.and_then(|nth| counts.get_mut(nth)) else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            // Of two, one backend reads the first and another the last.
            if count.replace(map.next_value::<Entries>()?.0).is_some() {
                return Err(de::Error::custom("a counted field is there twice"));
            }
        }
        Ok(counts)
    }
}

/// Which counted field a key is, escapes resolved, without keeping it.
struct Counted<'s>(&'s CostSource);

impl<'de> de::DeserializeSeed<'de> for Counted<'_> {
    type Value = Option<usize>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<usize>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Counted<'_> {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: de::Error>(self, key: &str) -> Result<Option<usize>, E> {
        if *key == *self.0.field {
            return Ok(Some(0));
        }
        // The first of a name: the cost's own cap shares the cost's count.
        let capped = self.0.caps.iter().position(|cap| *cap.field == *key);
        Ok(capped.map(|nth| nth + 1))
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
    fn no_recipients_are_told_from_a_bad_body() {
        for body in [
            &b"{}"[..],
            br#"{"to":[]}"#,
            br#"{"TO":["a"]}"#,
            br#"{"body":{"to":["a"]}}"#,
        ] {
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
}
