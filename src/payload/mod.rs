//! What a call may carry: the lengths, numbers and characters of what stands in a path or a body.
//!
//! A [`Checker`] takes a body as it comes, in pieces of any size, and keeps lengths, never
//! content. It says what it has found; whether a call is refused for it is said elsewhere
//! ([`crate::spec::payload`]). Knows no limits but those it is given, and no sockets.
//!
//! What is measured is what a backend reads: a body that could be read in two ways (a key twice
//! or in another case, half a surrogate, bytes after the end) is malformed.

mod checker;
mod form;
mod json;
mod multipart;
mod path;
pub mod place;
mod text;
mod tree;

use smallvec::SmallVec;

pub use self::checker::Checker;
use self::place::{Place, Step};
pub(crate) use self::text::is_near;
use self::tree::Tree;

/// What of a value is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Measure {
    /// The UTF-8 bytes of a string, escapes resolved; of anything else, those of its JSON.
    Bytes,
    /// The Unicode scalar values of the same.
    Characters,
    /// How many there are, of what one call names: elements, fields, entries of a list.
    Entries,
    /// The bytes of all names and values of a form, escapes resolved.
    Form,
    /// The bytes of a file: of a part of a multipart body, or of a body that is none.
    File,
}

impl Measure {
    /// Its name in route files.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bytes => "bytes",
            Self::Characters => "characters",
            Self::Entries => "entries",
            Self::Form => "form",
            Self::File => "file",
        }
    }
}

/// The most that a rule lets pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Most {
    /// This much.
    Fixed(u64),
    /// As much as the message itself may have, by its type.
    AsMessage,
}

impl Most {
    fn fixed(self) -> Option<u64> {
        match self {
            Self::Fixed(most) => Some(most),
            Self::AsMessage => None,
        }
    }
}

/// The ASCII characters that may stand in a value.
#[derive(Clone, PartialEq, Eq)]
pub struct Charset {
    /// As it was written: `A-Za-z0-9_.-`.
    pub written: Box<str>,
    allowed: [bool; 128],
}

impl std::fmt::Debug for Charset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Charset").field(&self.written).finish()
    }
}

impl Charset {
    /// Reads `A-Za-z0-9_.-`: single characters, and ranges of letters or of digits.
    #[must_use]
    pub fn parse(written: &str) -> Option<Self> {
        let mut allowed = [false; 128];
        let mut rest = written.as_bytes();
        while let [from, after @ ..] = rest {
            let (to, after) = match after {
                [b'-', to, after @ ..] if from.is_ascii_alphanumeric() => (to, after),
                _ => (from, after),
            };
            let kind = |b: &u8| (b.is_ascii_digit(), b.is_ascii_lowercase());
            if !from.is_ascii_graphic()
                || from > to
                || from != to && (kind(from) != kind(to) || !to.is_ascii_alphanumeric())
            {
                return None;
            }
            for byte in *from..=*to {
                *allowed.get_mut(usize::from(byte))? = true;
            }
            rest = after;
        }
        (!written.is_empty()).then(|| Self {
            written: written.into(),
            allowed,
        })
    }

    fn has_all(&self, bytes: &[u8]) -> bool {
        let has = |byte: &u8| self.allowed.get(usize::from(*byte)) == Some(&true);
        bytes.iter().all(has)
    }
}

/// One limit at one place of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Which limit it is: an index of [`crate::spec::payload::Payloads::limits`].
    pub limit: usize,
    /// Where it is looked for.
    pub place: Place,
    /// What is measured.
    pub measure: Measure,
    /// The most of it; `None`: its characters alone matter.
    pub most: Option<Most>,
    /// The characters that may stand in it.
    pub allow: Option<Charset>,
    /// The message types it holds for, in lower case; empty: any. A message of a type that no
    /// limit names is held to the largest figure of all types, wherever one is measured.
    pub types: Box<[Box<str>]>,
}

impl Rule {
    /// Whether it can be told only when the message's type is known.
    fn waits(&self) -> bool {
        !self.types.is_empty() || self.most == Some(Most::AsMessage)
    }

    /// Whether it names this type.
    fn names(&self, kind: &str) -> bool {
        self.types.iter().any(|known| **known == *kind)
    }
}

/// In what form a body is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// JSON, whatever the call says of it: many say nothing, or something else.
    #[default]
    Json,
    /// `application/x-www-form-urlencoded`, whatever the call says of it.
    Form,
    /// `multipart/form-data`; where the call does not say so, a file by itself.
    File,
}

/// All that is checked of the calls of one route, in one edition.
#[derive(Debug, Default)]
pub struct Checks {
    rules: Box<[Rule]>,
    format: Format,
    tree: Tree,
    /// The message types that some limit names, whether it is one of these rules or not.
    known: Vec<Box<str>>,
}

/// The most rules of a route: what has been found of each is a bit.
pub const MAX_RULES: usize = 64;

impl Checks {
    /// Checks by these rules, of which only [`MAX_RULES`] count. `kind`: where the type of a
    /// message stands.
    #[must_use]
    pub fn new(mut rules: Vec<Rule>, kind: &[Step]) -> Self {
        rules.truncate(MAX_RULES);
        let measures = |measure| rules.iter().any(|rule| rule.measure == measure);
        let format = match (measures(Measure::File), measures(Measure::Form)) {
            (true, _) => Format::File,
            (false, true) => Format::Form,
            (false, false) => Format::Json,
        };
        let known = rules.iter().flat_map(|rule| rule.types.iter().cloned());
        Self {
            tree: Tree::new(&rules, kind),
            known: known.collect(),
            rules: rules.into(),
            format,
        }
    }

    /// The same, where these message types are known besides: what holds for others does not hold
    /// for them.
    #[must_use]
    pub fn knowing<'a>(mut self, types: impl IntoIterator<Item = &'a Box<str>>) -> Self {
        self.known.extend(types.into_iter().cloned());
        self
    }

    /// The rules.
    #[must_use]
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// The form that bodies have.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    /// The rules of bodies.
    pub fn of_body(&self) -> impl Iterator<Item = &Rule> {
        let is_of_body = |rule: &&Rule| !matches!(rule.place, Place::Path { .. });
        self.rules.iter().filter(is_of_body)
    }

    /// What a rule lets pass of a message of this type; `None`: anything.
    fn most(&self, rule: &Rule, kind: Option<&str>) -> Option<u64> {
        // One that names no type is a text.
        let kind = kind.unwrap_or("txt");
        let most = rule.most?;
        if !self.known.iter().any(|known| **known == *kind) {
            // Of a type that nobody knows, a backend makes what it likes: it may be any of them.
            return self.largest();
        }
        if !rule.types.is_empty() && !rule.names(kind) {
            return None;
        }
        let mut messages = self.rules.iter().filter(|rule| rule.names(kind));
        match most {
            Most::Fixed(most) => Some(most),
            Most::AsMessage => messages.find_map(|rule| rule.most?.fixed()),
        }
    }

    /// The most that a message of any type may have.
    fn largest(&self) -> Option<u64> {
        let typed = self.rules.iter().filter(|rule| !rule.types.is_empty());
        typed.filter_map(|rule| rule.most?.fixed()).max()
    }
}

/// Why a rule does not let pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// There is too much of it.
    TooMuch,
    /// There is a character in it that may not be.
    Character,
}

/// What a rule does not let pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Excess {
    /// The rule, by its index.
    pub rule: usize,
    /// Why.
    pub why: Why,
    /// The most that there was of it so far.
    pub found: u64,
    /// How much there may be; `None`: as much as may be.
    pub most: Option<u64>,
}

/// What has been found in a call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// One for each rule.
    pub excesses: SmallVec<[Excess; 2]>,
    /// Whether the body could be read in two ways, or in none.
    pub is_malformed: bool,
    /// The most that each rule has measured, while that has not been too much.
    pub measured: SmallVec<[(usize, u64); 8]>,
    /// The rules of the excesses, as bits.
    seen: u64,
}

impl Found {
    /// Of a body that cannot be read at all.
    #[must_use]
    pub fn malformed() -> Self {
        Self {
            is_malformed: true,
            ..Self::default()
        }
    }

    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.excesses.is_empty() && !self.is_malformed
    }

    fn add(&mut self, excess: Excess) {
        let bit = 1_u64.checked_shl(u32::try_from(excess.rule).unwrap_or(u32::MAX));
        let bit = bit.unwrap_or_default();
        if self.seen & bit == 0 {
            self.seen |= bit;
            self.excesses.push(excess);
        } else if let Some(known) = self.excesses.iter_mut().find(|e| e.rule == excess.rule)
            && known.why == excess.why
        {
            known.found = known.found.max(excess.found);
        }
    }

    /// Measures one value by a rule that waits for nothing.
    fn judge(&mut self, checks: &Checks, nth: usize, found: u64, is_allowed: bool) {
        let Some(rule) = checks.rules.get(nth) else {
            return;
        };
        let most = match rule.most {
            Some(Most::Fixed(most)) => Some(most),
            _ => None,
        };
        if !rule.waits() && most.is_some_and(|most| found > most) {
            self.add(Excess {
                rule: nth,
                why: Why::TooMuch,
                found,
                most,
            });
        } else if !is_allowed {
            self.add(Excess {
                rule: nth,
                why: Why::Character,
                found,
                most,
            });
        }
        match self.measured.iter_mut().find(|(known, _)| *known == nth) {
            Some((_, known)) => *known = found.max(*known),
            None => self.measured.push((nth, found)),
        }
    }

    /// Judges what had to wait for the message's type.
    fn judge_message(&mut self, checks: &Checks, kind: Option<&str>) {
        let measured = self.measured.clone();
        for (nth, found) in measured {
            let Some(rule) = checks.rules.get(nth).filter(|rule| rule.waits()) else {
                continue;
            };
            if let Some(most) = checks.most(rule, kind).filter(|most| found > *most) {
                self.add(Excess {
                    rule: nth,
                    why: Why::TooMuch,
                    found,
                    most: Some(most),
                });
            }
        }
    }
}

#[cfg(test)]
mod tests;
