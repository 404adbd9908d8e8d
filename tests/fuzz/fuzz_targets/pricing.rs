//! Body pricing, against a whole tree of serde_json and against a reader of its own after
//! RFC 8259.
#![no_main]

use floodgate::route::pricing::{Cap, CostSource, PriceError, recipients};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|data: &[u8]| {
    let Some((choice, body)) = data.split_first() else {
        return;
    };
    let source = source(*choice);
    let priced = recipients(&source, body);
    assert_eq!(priced, by_hand(&source, body), "the reader by hand");
    // serde_json keeps the last of two keys, and refuses what a tree cannot hold: numbers past
    // f64, more than 128 levels, half a surrogate. Of the rest it says the same.
    match serde_json::from_slice::<Value>(body) {
        Ok(tree) if priced != Err(PriceError::Malformed) => {
            assert_eq!(priced, by_tree(&source, &tree), "the tree");
        }
        Ok(_) => {}
        Err(error) => {
            let told = error.to_string();
            let is_of_trees = ["out of range", "recursion limit", "surrogate", "hex escape"]
                .iter()
                .any(|limit| told.contains(limit));
            assert!(
                priced == Err(PriceError::Malformed) || is_of_trees,
                "{told}"
            );
        }
    }
});

/// As the routes have them.
fn source(choice: u8) -> CostSource {
    let cap = |field: &str, max| Cap {
        field: field.into(),
        max,
    };
    let (field, caps) = match choice % 4 {
        0 => ("to", vec![]),
        1 => ("to", vec![cap("to", 3)]),
        2 => ("users", vec![cap("users", 3), cap("to", 1)]),
        _ => ("target", vec![cap("targets", 2)]),
    };
    CostSource {
        field: field.into(),
        caps: caps.into(),
    }
}

/// What the counts of the fields make of a body.
fn verdict(source: &CostSource, count: impl Fn(&str) -> Option<usize>) -> Result<u32, PriceError> {
    let entries = |field: &str| match count(field) {
        None | Some(0) => Err(PriceError::Empty {
            field: field.into(),
        }),
        Some(n) => Ok(u32::try_from(n).expect("no body is that long")),
    };
    let cost = entries(&source.field)?;
    for cap in &source.caps {
        if entries(&cap.field)? > cap.max {
            return Err(PriceError::TooMany(cap.clone()));
        }
    }
    Ok(cost)
}

fn fields(source: &CostSource) -> impl Iterator<Item = &str> {
    [&*source.field]
        .into_iter()
        .chain(source.caps.iter().map(|cap| &*cap.field))
}

fn by_tree(source: &CostSource, tree: &Value) -> Result<u32, PriceError> {
    let object = tree.as_object().ok_or(PriceError::Malformed)?;
    let is_entry = |v: &Value| v.is_string() || v.is_i64() || v.is_u64();
    for value in fields(source).filter_map(|field| object.get(field)) {
        let array = value.as_array().ok_or(PriceError::Malformed)?;
        if !array.iter().all(is_entry) {
            return Err(PriceError::Malformed);
        }
    }
    verdict(source, |field| Some(object.get(field)?.as_array()?.len()))
}

fn by_hand(source: &CostSource, body: &[u8]) -> Result<u32, PriceError> {
    let text = std::str::from_utf8(body).map_err(|_| PriceError::Malformed)?;
    let mut reader = Reader {
        rest: text.as_bytes(),
    };
    let pairs = reader.top().ok_or(PriceError::Malformed)?;
    let mut counts: Vec<(&str, usize)> = Vec::new();
    for (key, value) in &pairs {
        let Some(field) = fields(source).find(|field| *field == key) else {
            if fields(source).any(|field| is_near(field, key)) {
                return Err(PriceError::Malformed);
            }
            continue;
        };
        let count = value.ok_or(PriceError::Malformed)?;
        if counts.iter().any(|(known, _)| *known == field) {
            return Err(PriceError::Malformed);
        }
        counts.push((field, count));
    }
    verdict(source, |field| {
        let count = counts.iter().find(|(known, _)| *known == field);
        count.map(|(_, count)| *count)
    })
}

/// The same but for case, as those see it who compare without.
fn is_near(field: &str, key: &str) -> bool {
    key.to_uppercase() == field.to_uppercase()
}

/// A reader of JSON that keeps the top level's keys, and of arrays of recipients their length.
struct Reader<'b> {
    rest: &'b [u8],
}

impl Reader<'_> {
    fn peek(&mut self) -> Option<u8> {
        while let Some((b' ' | b'\t' | b'\n' | b'\r', rest)) = self.rest.split_first() {
            self.rest = rest;
        }
        self.rest.first().copied()
    }

    fn take(&mut self, wanted: u8) -> Option<()> {
        (self.peek()? == wanted).then(|| self.rest = &self.rest[1..])
    }

    /// The pairs of the one object; of a value its number of entries, if it may be a list of
    /// recipients.
    fn top(&mut self) -> Option<Vec<(String, Option<usize>)>> {
        let mut pairs = Vec::new();
        self.take(b'{')?;
        if self.peek()? == b'}' {
            self.take(b'}')?;
        } else {
            loop {
                self.peek()?;
                let key = self.string()?.ok()?;
                self.take(b':')?;
                pairs.push((key, self.entries()?));
                if self.take(b',').is_none() {
                    self.take(b'}')?;
                    break;
                }
            }
        }
        self.peek().is_none().then_some(pairs)
    }

    /// A value; how many entries it has if it is an array of strings and whole numbers.
    fn entries(&mut self) -> Option<Option<usize>> {
        if self.peek()? != b'[' {
            self.value()?;
            return Some(None);
        }
        let from = self.rest;
        self.value()?;
        let mut inside = Reader {
            rest: &from[1..from.len() - self.rest.len()],
        };
        let mut count = 0;
        while inside.peek()? != b']' {
            let is_entry = match inside.peek()? {
                b'"' => inside.string()?.is_ok(),
                b'-' | b'0'..=b'9' => is_whole(inside.number()?),
                _ => false,
            };
            if !is_entry {
                return Some(None);
            }
            count += 1;
            let _ = inside.take(b',');
        }
        Some(Some(count))
    }

    /// Any value, however deep.
    fn value(&mut self) -> Option<()> {
        let mut open = Vec::new();
        loop {
            match self.peek()? {
                b'"' => {
                    let _ = self.string()?;
                }
                b'-' | b'0'..=b'9' => {
                    self.number()?;
                }
                b't' => self.word(b"true")?,
                b'f' => self.word(b"false")?,
                b'n' => self.word(b"null")?,
                b'[' => {
                    self.take(b'[')?;
                    if self.take(b']').is_none() {
                        open.push(b']');
                        continue;
                    }
                }
                b'{' => {
                    self.take(b'{')?;
                    if self.take(b'}').is_none() {
                        self.key()?;
                        open.push(b'}');
                        continue;
                    }
                }
                _ => return None,
            }
            // What was open goes on, or ends.
            loop {
                let Some(end) = open.last().copied() else {
                    return Some(());
                };
                if self.take(b',').is_some() {
                    if end == b'}' {
                        self.key()?;
                    }
                    break;
                }
                self.take(end)?;
                open.pop();
            }
        }
    }

    fn key(&mut self) -> Option<()> {
        self.peek()?;
        let _ = self.string()?;
        self.take(b':')
    }

    fn word(&mut self, word: &[u8]) -> Option<()> {
        self.rest = self.rest.strip_prefix(word)?;
        Some(())
    }

    fn number(&mut self) -> Option<&[u8]> {
        let all = self.rest;
        let digits = |rest: &mut &[u8]| {
            let n = rest.iter().take_while(|b| b.is_ascii_digit()).count();
            *rest = &rest[n..];
            (n > 0).then_some(n)
        };
        let mut rest = all.strip_prefix(b"-").unwrap_or(all);
        if let Some(after) = rest.strip_prefix(b"0") {
            rest = after;
        } else {
            digits(&mut rest)?;
        }
        if let Some(mut after) = rest.strip_prefix(b".") {
            digits(&mut after)?;
            rest = after;
        }
        if let Some((b'e' | b'E', mut after)) = rest.split_first() {
            after = after
                .strip_prefix(b"+")
                .or(after.strip_prefix(b"-"))
                .unwrap_or(after);
            digits(&mut after)?;
            rest = after;
        }
        self.rest = rest;
        Some(&all[..all.len() - rest.len()])
    }

    /// The next character. The whole is UTF-8.
    fn char(&mut self) -> Option<char> {
        let most = self.rest.len().min(4);
        let c = self.rest[..most]
            .utf8_chunks()
            .next()?
            .valid()
            .chars()
            .next()?;
        self.rest = &self.rest[c.len_utf8()..];
        Some(c)
    }

    /// The text of a string; an inner error where it is one that no text can hold (half a
    /// surrogate).
    fn string(&mut self) -> Option<Result<String, ()>> {
        self.rest = self.rest.strip_prefix(b"\"")?;
        let mut units: Vec<u16> = Vec::new();
        loop {
            let c = self.char()?;
            match c {
                '"' => return Some(String::from_utf16(&units).map_err(|_| ())),
                '\0'..='\x1f' => return None,
                '\\' => {
                    let (escape, rest) = self.rest.split_first()?;
                    self.rest = rest;
                    units.push(match escape {
                        b'"' | b'\\' | b'/' => u16::from(*escape),
                        b'b' => 8,
                        b'f' => 12,
                        b'n' => 10,
                        b'r' => 13,
                        b't' => 9,
                        b'u' => {
                            let digits = rest.get(..4)?;
                            let is_hex = digits.iter().all(u8::is_ascii_hexdigit);
                            self.rest = &rest[4..];
                            let digits = std::str::from_utf8(digits).ok().filter(|_| is_hex)?;
                            u16::from_str_radix(digits, 16).ok()?
                        }
                        _ => return None,
                    });
                }
                c => units.extend(c.encode_utf16(&mut [0; 2]).iter()),
            }
        }
    }
}

/// A whole number that 64 bits hold. `-0` is none: there it has no sign.
fn is_whole(text: &[u8]) -> bool {
    let text = std::str::from_utf8(text).unwrap_or_default();
    text != "-0" && (text.parse::<u64>().is_ok() || text.parse::<i64>().is_ok())
}
