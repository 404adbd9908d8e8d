//! Step 3, price: how many recipients a body addresses.
//!
//! The body is parsed as a stream of JSON: no tree is built, nothing is kept but a count.

use std::fmt;

use serde::Deserialize;
use serde::de::{self, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use smallvec::SmallVec;

use crate::payload::is_near;

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
    /// Where a field's count is: the cost's first, then those of the caps, in their order.
    fn nth(&self, field: &str) -> Option<usize> {
        if *field == *self.field {
            return Some(0);
        }
        let capped = self.caps.iter().position(|cap| *cap.field == *field);
        capped.map(|nth| nth + 1)
    }

    /// Whether a key is a counted field but for its case: some parsers take it for that field.
    fn is_near(&self, key: &str) -> bool {
        is_near(key, &self.field) || self.caps.iter().any(|cap| is_near(key, &cap.field))
    }

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
    /// or it is there twice or in another case.
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
    /// A field, or a path, names more users than are followed.
    #[error("{} names more than {}", .0.field, .0.max)]
    TooManyNames(Cap),
}

/// The largest body that is read for pricing, in bytes.
pub const MAX_COUNTED_BODY: usize = 64 * 1024;

/// Entries by counted field; see [`CostSource::nth`].
type Counts = SmallVec<[Option<u32>; 4]>;

/// Counts the recipients of a whole body. Recipients named twice count twice.
///
/// # Errors
/// See [`PriceError`].
pub fn recipients(source: &CostSource, body: &[u8]) -> Result<u32, PriceError> {
    match price(source, body)? {
        (_, Some(cap)) => Err(PriceError::TooMany(cap)),
        (cost, None) => Ok(cost),
    }
}

/// The same, and the first cap that the body is over.
///
/// # Errors
/// See [`PriceError`].
pub fn price(source: &CostSource, body: &[u8]) -> Result<(u32, Option<Cap>), PriceError> {
    let counts = count(source, body)?;
    let entries = |field: &str| {
        let nth = source.nth(field);
        nth.and_then(|nth| counts.get(nth).copied().flatten())
            .filter(|count| *count > 0)
            .ok_or_else(|| PriceError::Empty {
                field: field.into(),
            })
    };
    let cost = entries(&source.field)?;
    for cap in &source.caps {
        if entries(&cap.field)? > cap.max {
            return Ok((cost, Some(cap.clone())));
        }
    }
    Ok((cost, None))
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
        match self.0.nth(key) {
            None if self.0.is_near(key) => Err(E::custom("a counted field is in another case")),
            nth => Ok(nth),
        }
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
mod tests;
