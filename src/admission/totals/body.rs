//! The names in a body.

use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::{distinct, fold_holder, number};
use crate::payload::is_near;
use crate::route::pricing::PriceError;

/// What of a body counts.
#[derive(Debug, Default)]
pub(super) struct Body {
    /// Entries of an array; of an object, 1.
    pub(super) entries: u32,
    /// Names by field, folded, each once.
    fields: Vec<(String, Vec<String>)>,
}

impl Body {
    /// Reads the names in these fields.
    ///
    /// # Errors
    /// No JSON, or a field that is there twice, or in another case: one backend reads the first,
    /// another the last.
    pub(super) fn read(body: &[u8], fields: &[&str]) -> Result<Self, PriceError> {
        let text = std::str::from_utf8(body).map_err(|_| PriceError::Malformed)?;
        let mut json = serde_json::Deserializer::from_str(text);
        let read = json.deserialize_any(Outer(fields));
        read.and_then(|read| json.end().map(|()| read))
            .map_err(|_| PriceError::Malformed)
    }

    pub(super) fn names(&self, field: &str) -> &[String] {
        let found = self.fields.iter().find(|(name, _)| name == field);
        found.map_or(&[], |(_, names)| names)
    }
}

struct Outer<'f>(&'f [&'f str]);

impl<'de> Visitor<'de> for Outer<'_> {
    type Value = Body;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object, or an array of them")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Body, A::Error> {
        let mut entries = 0_usize;
        while seq.next_element::<IgnoredAny>()?.is_some() {
            entries += 1;
        }
        Ok(Body {
            entries: number(entries),
            fields: Vec::new(),
        })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Body, A::Error> {
        let mut fields: Vec<(String, Vec<String>)> = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            if !self.0.contains(&&*key) {
                if self.0.iter().any(|field| is_near(&key, field)) {
                    return Err(de::Error::custom("a field of names is in another case"));
                }
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            if fields.iter().any(|(known, _)| *known == key) {
                return Err(de::Error::custom("a field of names is there twice"));
            }
            fields.push((key, map.next_value_seed(Names)?));
        }
        Ok(Body { entries: 1, fields })
    }
}

/// One name or a list of them. What is neither names nobody.
struct Names;

impl<'de> DeserializeSeed<'de> for Names {
    type Value = Vec<String>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Vec<String>, D::Error> {
        let value = <serde_json::Value as de::Deserialize>::deserialize(deserializer)?;
        let name = |value: &serde_json::Value| match value {
            serde_json::Value::String(name) => Some(fold_holder(name)),
            serde_json::Value::Number(name) => Some(name.to_string()),
            _ => None,
        };
        Ok(match &value {
            serde_json::Value::Array(all) => distinct(all.iter().filter_map(name)),
            one => distinct(name(one).into_iter()),
        })
    }
}
