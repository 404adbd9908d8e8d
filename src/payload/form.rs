//! `application/x-www-form-urlencoded` as it comes: how long its names and values are.

use super::text::{Hash, Names, Utf8};
use super::{Checks, Found, Measure};

/// What a call says that its body of fields is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Said {
    /// A form.
    Form,
    /// Nothing: it may be one.
    #[default]
    Nothing,
    /// Something else. A backend that reads that, and one that reads the bytes of a form all the
    /// same, find no more in it than it is long.
    Another,
}

impl Said {
    fn of(content_type: Option<&[u8]>) -> Self {
        let Some(kind) = content_type else {
            return Self::Nothing;
        };
        let kind = kind.split(|byte| *byte == b';').next().unwrap_or(kind);
        match kind
            .trim_ascii()
            .eq_ignore_ascii_case(b"application/x-www-form-urlencoded")
        {
            true => Self::Form,
            false => Self::Another,
        }
    }
}

/// A body of fields, and those of the query before it: many backends read both as one.
#[derive(Debug, Default)]
pub(super) struct Form {
    said: Said,
    /// Bytes of all names and values, escapes resolved.
    bytes: u64,
    /// Those of the query, and all bytes of the body.
    raw: u64,
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
    pub(super) fn new(content_type: Option<&[u8]>) -> Self {
        Self {
            said: Said::of(content_type),
            name: Some(Hash::default()),
            ..Self::default()
        }
    }

    /// Takes the query, before the body. Whether it is read in one way.
    pub(super) fn query(&mut self, checks: &Checks, found: &mut Found, query: &[u8]) -> bool {
        let good = query.iter().all(|byte| self.byte(*byte)) && self.end();
        self.raw = self.bytes;
        self.judge(checks, found);
        good
    }

    /// Takes a piece. Whether it can be a form so far, that is read in one way.
    pub(super) fn push(&mut self, checks: &Checks, found: &mut Found, piece: &[u8]) -> bool {
        let is_read = self.said != Said::Another;
        let good = piece.iter().all(|byte| {
            self.raw += 1;
            !is_read || self.byte(*byte)
        });
        self.judge(checks, found);
        good
    }

    /// The end has come. Whether all was a form that is read in one way.
    pub(super) fn finish(&mut self, checks: &Checks, found: &mut Found) -> bool {
        let good = self.end();
        self.judge(checks, found);
        good
    }

    fn end(&mut self) -> bool {
        self.escape.is_none() && self.end_field()
    }

    fn judge(&self, checks: &Checks, found: &mut Found) {
        let bytes = match self.said {
            Said::Form => self.bytes,
            Said::Nothing | Said::Another => self.bytes.max(self.raw),
        };
        for (nth, rule) in checks.rules.iter().enumerate() {
            if rule.measure == Measure::Form {
                found.judge(checks, nth, bytes, true);
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
