//! `multipart/form-data` as it comes: how long its parts are. Nothing of a file is kept.

use super::text::{Hash, Names};
use super::{Checks, Found, Measure};

/// The largest head of a part, in bytes.
const MAX_HEAD: usize = 8 * 1024;
/// The most blanks after a delimiter.
const MAX_BLANK: usize = 64;
/// The longest boundary (RFC 2046), in characters.
const MAX_BOUNDARY: usize = 70;

#[derive(Debug)]
enum At {
    /// Before the first part.
    Preamble,
    /// After a delimiter: `--`, or the end of its line.
    Delimited(Vec<u8>),
    /// A part's head.
    Head(Vec<u8>),
    Part,
    /// After the last part.
    Epilogue,
}

/// A body of parts.
#[derive(Debug)]
pub(super) struct Multipart {
    at: At,
    /// Line break, two dashes, boundary.
    delimiter: Vec<u8>,
    /// By how many bytes matched, how many still match after a byte that does not.
    fallback: Vec<usize>,
    matched: usize,
    /// Bytes of this part so far.
    bytes: u64,
    names: Names,
}

/// The boundary that a `Content-Type` names; `None`: it is not multipart. An error: it is, and
/// its parts cannot be told.
pub(super) fn boundary(content_type: &[u8]) -> Option<Result<Vec<u8>, ()>> {
    let text = std::str::from_utf8(content_type).unwrap_or_default();
    let (kind, parameters) = text.split_once(';').unwrap_or((text, ""));
    let kind = kind.trim();
    let is_multipart = kind
        .get(..10)
        .is_some_and(|start| start.eq_ignore_ascii_case("multipart/"));
    if !is_multipart {
        return None;
    }
    let mut found = None;
    for parameter in parameters.split(';') {
        let Some((name, value)) = parameter.split_once('=') else {
            continue;
        };
        if !name.trim().eq_ignore_ascii_case("boundary") {
            continue;
        }
        let value = value.trim();
        let quoted = value
            .strip_prefix('"')
            .and_then(|rest| rest.strip_suffix('"'));
        let value = quoted.unwrap_or(value);
        let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"'()+_,-./:=? ".contains(&b);
        let is_sane = !value.is_empty()
            && value.len() <= MAX_BOUNDARY
            && value.bytes().all(is_plain)
            && !value.ends_with(' ');
        // Of two, one backend reads the first and another the last.
        if !is_sane || found.replace(value.as_bytes().to_vec()).is_some() {
            return Some(Err(()));
        }
    }
    Some(found.ok_or(()))
}

impl Multipart {
    pub(super) fn new(boundary: &[u8]) -> Self {
        let delimiter = [b"\r\n--", boundary].concat();
        let mut fallback = vec![0; delimiter.len()];
        let mut matched = 0;
        for at in 1..delimiter.len() {
            while matched > 0 && delimiter[at] != delimiter[matched] {
                matched = fallback[matched - 1];
            }
            if delimiter[at] == delimiter[matched] {
                matched += 1;
            }
            fallback[at] = matched;
        }
        Self {
            at: At::Preamble,
            delimiter,
            fallback,
            // The first delimiter may be the first line.
            matched: 2,
            bytes: 0,
            names: Names::default(),
        }
    }

    /// Takes a piece. Whether it can be multipart so far, that is read in one way.
    pub(super) fn push(&mut self, checks: &Checks, found: &mut Found, piece: &[u8]) -> bool {
        let mut rest = piece;
        while !rest.is_empty() {
            match &mut self.at {
                At::Preamble | At::Part => {
                    let is_part = matches!(self.at, At::Part);
                    let (taken, is_end) = self.seek(rest);
                    rest = rest.get(taken..).unwrap_or_default();
                    if is_part {
                        judge(checks, found, self.bytes);
                    }
                    if is_end {
                        self.at = At::Delimited(Vec::new());
                    }
                }
                At::Delimited(line) => {
                    let Some((byte, after)) = rest.split_first() else {
                        break;
                    };
                    line.push(*byte);
                    rest = after;
                    let blank = line.strip_suffix(b"\r").unwrap_or(line);
                    let is_blank = |bytes: &[u8]| bytes.iter().all(|b| matches!(b, b' ' | b'\t'));
                    if *line == b"--" {
                        self.at = At::Epilogue;
                    } else if line.strip_suffix(b"\r\n").is_some_and(is_blank) {
                        self.at = At::Head(Vec::new());
                    } else if *line != b"-" && !is_blank(blank) || line.len() > MAX_BLANK {
                        // A longer boundary to one reader is this one to another.
                        return false;
                    }
                }
                At::Head(head) => {
                    let Some((byte, after)) = rest.split_first() else {
                        break;
                    };
                    head.push(*byte);
                    rest = after;
                    if head.ends_with(b"\r\n\r\n") || head == b"\r\n" {
                        let head = std::mem::take(head);
                        if !self.begin_part(&head) {
                            return false;
                        }
                    } else if head.len() >= MAX_HEAD {
                        return false;
                    }
                }
                At::Epilogue => break,
            }
        }
        true
    }

    /// The end has come. Whether all was multipart that is read in one way.
    pub(super) fn finish(&self) -> bool {
        matches!(self.at, At::Epilogue)
    }

    fn begin_part(&mut self, head: &[u8]) -> bool {
        self.matched = 0;
        self.bytes = 0;
        self.at = At::Part;
        let Some(name) = name(head) else {
            return true;
        };
        let mut hash = Hash::default();
        hash.push(name);
        // Of two, one backend reads the first and another the last.
        self.names.add(hash)
    }

    /// Looks for the delimiter: how many bytes were taken, and whether it was found.
    fn seek(&mut self, bytes: &[u8]) -> (usize, bool) {
        let mut i = 0;
        while let Some(byte) = bytes.get(i) {
            if self.matched == 0 && *byte != b'\r' {
                let rest = bytes.get(i..).unwrap_or_default();
                let plain = rest.iter().position(|b| *b == b'\r').unwrap_or(rest.len());
                self.bytes += plain as u64;
                i += plain;
                continue;
            }
            while self.matched > 0 && self.delimiter.get(self.matched) != Some(byte) {
                let still = self.fallback.get(self.matched - 1).copied().unwrap_or(0);
                self.bytes += (self.matched - still) as u64;
                self.matched = still;
            }
            match self.delimiter.get(self.matched) == Some(byte) {
                true => self.matched += 1,
                false => self.bytes += 1,
            }
            i += 1;
            if self.matched == self.delimiter.len() {
                self.matched = 0;
                return (i, true);
            }
        }
        (i, false)
    }
}

fn judge(checks: &Checks, found: &mut Found, bytes: u64) {
    for (nth, rule) in checks.rules.iter().enumerate() {
        if rule.measure == Measure::File {
            found.judge(checks, nth, bytes, true);
        }
    }
}

/// The name that a part's head gives it.
fn name(head: &[u8]) -> Option<&[u8]> {
    const FIELD: &[u8] = b"content-disposition:";
    let mut lines = head.split(|b| *b == b'\n');
    let line = lines.find(|line| {
        let start = line.get(..FIELD.len());
        start.is_some_and(|start| start.eq_ignore_ascii_case(FIELD))
    })?;
    let mut parameters = line.split(|b| *b == b';');
    parameters.find_map(|parameter| {
        let parameter = parameter.trim_ascii();
        let value = parameter
            .get(..5)
            .filter(|start| start.eq_ignore_ascii_case(b"name="));
        value.and_then(|_| parameter.get(5..))
    })
}
