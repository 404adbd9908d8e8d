//! What stands in a path.

use super::place::Place;
use super::text::characters;
use super::{Checks, Found, Measure};

impl Checks {
    /// Whether anything of paths is checked.
    #[must_use]
    pub fn has_path(&self) -> bool {
        self.of_body().count() < self.rules.len()
    }

    /// Checks a path below the app by the pattern that it matched, both in segments. `decode`
    /// resolves the escapes of one segment.
    pub fn path(
        &self,
        pattern: &str,
        tail: &str,
        decode: impl Fn(&str) -> Vec<u8>,
        found: &mut Found,
    ) {
        for (nth, rule) in self.rules.iter().enumerate() {
            let Place::Path { name, is_list } = &rule.place else {
                continue;
            };
            let is_named = |segment: &str| {
                let inner = segment
                    .strip_prefix('{')
                    .and_then(|rest| rest.strip_suffix('}'));
                inner == Some(&**name)
            };
            let mut pairs = pattern.split('/').zip(tail.split('/'));
            let Some((_, segment)) = pairs.find(|(pattern, _)| is_named(pattern)) else {
                continue;
            };
            let decoded = decode(segment);
            let entries = || decoded.split(|byte| *byte == b',');
            if rule.measure == Measure::Entries {
                let count = if *is_list { entries().count() } else { 1 };
                found.judge(self, nth, count as u64, true);
                continue;
            }
            let one = |found: &mut Found, entry: &[u8]| {
                let allowed = rule.allow.as_ref().is_none_or(|allow| allow.has_all(entry));
                let length = match rule.measure {
                    Measure::Characters => characters(entry),
                    _ => entry.len() as u64,
                };
                found.judge(self, nth, length, allowed);
            };
            match is_list {
                true => entries().for_each(|entry| one(found, entry)),
                false => one(found, &decoded),
            }
        }
    }
}
