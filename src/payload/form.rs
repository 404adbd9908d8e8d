//! `application/x-www-form-urlencoded` as it comes: how long its names and values are.

use super::text::{Hash, Names, Utf8};
use super::{Checks, Found, Measure};

/// A body of fields.
#[derive(Debug, Default)]
pub(super) struct Form {
    /// Bytes of all names and values, escapes resolved.
    bytes: u64,
    utf8: Utf8,
    names: Names,
    /// The name that is coming; `None`: its value is.
    name: Option<Hash>,
    /// Whether anything of this field has come.
    has_begun: bool,
    /// An escape that is coming: its first digit.
    escape: Option<Option<u8>>,
}

impl Form {
    pub(super) fn new() -> Self {
        Self {
            name: Some(Hash::default()),
            ..Self::default()
        }
    }

    /// Takes a piece. Whether it can be a form so far, that is read in one way.
    pub(super) fn push(&mut self, checks: &Checks, found: &mut Found, piece: &[u8]) -> bool {
        let good = piece.iter().all(|byte| self.byte(*byte));
        self.judge(checks, found);
        good
    }

    /// The end has come. Whether all was a form that is read in one way.
    pub(super) fn finish(&mut self, checks: &Checks, found: &mut Found) -> bool {
        let good = self.escape.is_none() && self.end_field();
        self.judge(checks, found);
        good
    }

    fn judge(&self, checks: &Checks, found: &mut Found) {
        for (nth, rule) in checks.rules.iter().enumerate() {
            if rule.measure == Measure::Form {
                found.judge(checks, nth, self.bytes, true);
            }
        }
    }

    fn byte(&mut self, byte: u8) -> bool {
        let decoded = match (self.escape, byte) {
            (None, b'%') => {
                self.escape = Some(None);
                return true;
            }
            (None, b'&') => return self.end_field(),
            (None, b'=') if self.name.is_some() => return self.end_name(),
            (None, b'+') => b' ',
            (None, byte) => byte,
            (Some(first), byte) => {
                let digit = char::from(byte).to_digit(16);
                let Some(digit) = digit.and_then(|digit| u8::try_from(digit).ok()) else {
                    return false;
                };
                match first {
                    None => {
                        self.escape = Some(Some(digit));
                        return true;
                    }
                    Some(first) => {
                        self.escape = None;
                        first << 4 | digit
                    }
                }
            }
        };
        self.has_begun = true;
        self.bytes += 1;
        if let Some(name) = &mut self.name {
            name.push(&[decoded]);
        }
        self.utf8.push(&[decoded])
    }

    fn end_name(&mut self) -> bool {
        self.has_begun = true;
        let name = self.name.take();
        // Of two, one backend reads the first and another the last.
        self.utf8.is_whole() && name.is_none_or(|name| self.names.add(name))
    }

    fn end_field(&mut self) -> bool {
        let good = !self.has_begun || self.name.is_none() || self.end_name();
        self.name = Some(Hash::default());
        self.has_begun = false;
        good && self.utf8.is_whole()
    }
}
