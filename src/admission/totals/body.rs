//! The names in a body.

use std::{fmt, mem};

use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::{distinct, fold_holder, number};
use crate::payload::is_near;
use crate::route::pricing::PriceError;

/// What of a body counts.
#[derive(Debug, Default)]
pub(super) struct Body {
    /// Entries of an array; of an object, 1.
    pub(super) entries: u32,
    /// By field.
    fields: Vec<(String, Named)>,
}

/// Who is named.
#[derive(Debug, Default)]
struct Named {
    /// Folded, each once.
    names: Vec<String>,
    /// What else stands there, of which nobody knows whom the backend takes it for.
    odd: usize,
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
        self.named(field).map_or(&[], |named| &named.names)
    }

    /// How many more a field may name than can be read.
    pub(super) fn odd(&self, field: &str) -> usize {
        self.named(field).map_or(0, |named| named.odd)
    }

    fn named(&self, field: &str) -> Option<&Named> {
        let found = self.fields.iter().find(|(name, _)| name == field);
        found.map(|(_, named)| named)
    }

    /// Takes in what another entry of a list names.
    fn add(&mut self, other: Self) {
        for (field, more) in other.fields {
            match self.fields.iter_mut().find(|(name, _)| *name == field) {
                Some((_, named)) => {
                    let all = mem::take(&mut named.names).into_iter().chain(more.names);
                    named.names = distinct(all);
                    named.odd += more.odd;
                }
                None => self.fields.push((field, more)),
            }
        }
    }
}

struct Outer<'f>(&'f [&'f str]);

impl<'de> Visitor<'de> for Outer<'_> {
    type Value = Body;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object, or an array of them")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Body, A::Error> {
        let mut body = Body::default();
        let mut entries = 0_usize;
        while let Some(entry) = seq.next_element_seed(Inner(self.0))? {
            entries += 1;
            body.add(entry);
        }
        body.entries = number(entries);
        Ok(body)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Body, A::Error> {
        object(self.0, map)
    }
}

fn object<'de, A: MapAccess<'de>>(names: &[&str], mut map: A) -> Result<Body, A::Error> {
    let mut fields: Vec<(String, Named)> = Vec::new();
    while let Some(key) = map.next_key::<String>()? {
        if !names.contains(&&*key) {
            if names.iter().any(|field| is_near(&key, field)) {
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

/// An entry of a list, which is an object that names somebody, or names nobody.
struct Inner<'f>(&'f [&'f str]);

impl<'de> DeserializeSeed<'de> for Inner<'_> {
    type Value = Body;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Body, D::Error> {
        match self.0.is_empty() {
            true => deserializer
                .deserialize_ignored_any(IgnoredAny)
                .map(|_| Body::default()),
            false => deserializer.deserialize_any(self),
        }
    }
}

impl<'de> Visitor<'de> for Inner<'_> {
    type Value = Body;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an entry")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Body, A::Error> {
        object(self.0, map)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Body, A::Error> {
        let mut body = Body::default();
        while let Some(entry) = seq.next_element_seed(Inner(self.0))? {
            body.add(entry);
        }
        Ok(body)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Body, E> {
        Ok(Body::default())
    }

    fn visit_i64<E>(self, _: i64) -> Result<Body, E> {
        Ok(Body::default())
    }

    fn visit_u64<E>(self, _: u64) -> Result<Body, E> {
        Ok(Body::default())
    }

    fn visit_f64<E>(self, _: f64) -> Result<Body, E> {
        Ok(Body::default())
    }

    fn visit_str<E>(self, _: &str) -> Result<Body, E> {
        Ok(Body::default())
    }

    fn visit_unit<E>(self) -> Result<Body, E> {
        Ok(Body::default())
    }
}

/// One name or a list of them; no name has a comma in it. What is neither may be somebody to the
/// backend.
struct Names;

impl<'de> DeserializeSeed<'de> for Names {
    type Value = Named;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Named, D::Error> {
        let value = <Value as de::Deserialize>::deserialize(deserializer)?;
        let (mut names, mut odd) = (Vec::new(), 0);
        let all = match &value {
            Value::Array(all) => all.as_slice(),
            one => std::slice::from_ref(one),
        };
        for one in all {
            match one {
                Value::String(some) => names.extend(some.split(',').map(fold_holder)),
                Value::Number(name) => names.push(name.to_string()),
                other => odd += leaves(other),
            }
        }
        let names = distinct(names.into_iter());
        Ok(Named { names, odd })
    }
}

/// How many names there may be in what is no list of names.
fn leaves(value: &Value) -> usize {
    match value {
        Value::Null => 0,
        Value::Bool(_) | Value::Number(_) => 1,
        Value::String(some) => some.split(',').filter(|name| !name.is_empty()).count(),
        Value::Array(all) => all.iter().map(leaves).sum(),
        Value::Object(all) => all.values().map(leaves).sum::<usize>().max(1),
    }
}
