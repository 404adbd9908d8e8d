//! `multipart/form-data` as it comes: how long its parts are. Nothing of a file is kept.
//!
//! What is a delimiter to one reader and content to another is malformed, as is whatever a client
//! that keeps to RFC 7578 does not write: a preamble, an epilogue, line ends of another kind.

mod head;
mod kind;

pub(super) use self::kind::boundary;
use super::text::Names;
use super::{Checks, Found, Measure};

/// The largest head of a part, in bytes.
const MAX_HEAD: usize = 8 * 1024;

/// What stands before a byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Before {
    /// Other bytes of the line: none of it is a delimiter.
    Line,
    /// A line break, and so many bytes of a delimiter after it.
    Break(usize),
    /// The same after a line break that only some take for one, or after the head alone.
    HalfBreak(usize),
    /// A carriage return, which may be a line break's.
    Return,
}

#[derive(Debug)]
enum At {
    /// Before the first delimiter: its line break, at most.
    Start,
    /// After a delimiter: `--`, or the end of its line.
    Delimited(Vec<u8>),
    /// A part's head.
    Head(Vec<u8>),
    Part,
    /// In the last delimiter's line, perhaps after a carriage return.
    Closing(bool),
    /// After that line.
    Epilogue,
}

/// A body of parts.
#[derive(Debug)]
pub(super) struct Multipart {
    at: At,
    /// Two dashes, boundary.
    delimiter: Vec<u8>,
    before: Before,
    /// Bytes of this part so far.
    bytes: u64,
    names: Names,
}

/// What was found of a part's end.
enum Sought {
    Nothing,
    Delimiter,
    /// A delimiter to some readers.
    HalfDelimiter,
}

impl Multipart {
    pub(super) fn new(boundary: &[u8]) -> Self {
        Self {
            at: At::Start,
            delimiter: [b"--", boundary].concat(),
            // The first delimiter may be the first line.
            before: Before::Break(0),
            bytes: 0,
            names: Names::default(),
        }
    }

    /// Takes a piece. Whether it can be multipart so far, that is read in one way.
    pub(super) fn push(&mut self, checks: &Checks, found: &mut Found, piece: &[u8]) -> bool {
        let mut rest = piece;
        while let Some((byte, after)) = rest.split_first() {
            match &mut self.at {
                At::Start | At::Part => {
                    let is_part = matches!(self.at, At::Part);
                    let (taken, sought) = self.seek(rest);
                    rest = rest.get(taken..).unwrap_or_default();
                    let (content, is_end) = match sought {
                        Sought::Nothing => (self.bytes - self.pending(), false),
                        // Less than nothing where the first delimiter is the first line.
                        Sought::Delimiter => {
                            let frame = self.delimiter.len() as u64 + 2;
                            (self.bytes.saturating_sub(frame), true)
                        }
                        Sought::HalfDelimiter => return false,
                    };
                    if is_part {
                        judge(checks, found, content);
                    } else if content > 0 {
                        // Some find a delimiter in a preamble where others find none.
                        return false;
                    }
                    if is_end {
                        self.at = At::Delimited(Vec::new());
                    }
                    continue;
                }
                At::Delimited(line) => {
                    line.push(*byte);
                    match line.as_slice() {
                        b"\r\n" => self.at = At::Head(Vec::new()),
                        b"--" => self.at = At::Closing(false),
                        b"\r" | b"-" => {}
                        // A longer boundary, or a padded one, is this one to another reader.
                        _ => return false,
                    }
                }
                At::Head(head) => {
                    head.push(*byte);
                    if head.ends_with(b"\r\n\r\n") || head == b"\r\n" {
                        let head = std::mem::take(head);
                        if !self.begin_part(&head) {
                            return false;
                        }
                    } else if head.len() >= MAX_HEAD {
                        return false;
                    }
                }
                At::Closing(is_return) => match (*is_return, byte) {
                    (false, b' ' | b'\t') => {}
                    (false, b'\r') => *is_return = true,
                    (true, b'\n') => self.at = At::Epilogue,
                    // A longer boundary whose first characters are these, or a break of half a line.
                    _ => return false,
                },
                // Some read on there.
                At::Epilogue if !matches!(byte, b'\r' | b'\n' | b' ' | b'\t') => return false,
                At::Epilogue => {}
            }
            rest = after;
        }
        true
    }

    /// The end has come. Whether all was multipart that is read in one way.
    pub(super) fn finish(&self) -> bool {
        matches!(self.at, At::Closing(false) | At::Epilogue)
    }

    fn begin_part(&mut self, head: &[u8]) -> bool {
        self.before = Before::HalfBreak(0);
        self.bytes = 0;
        self.at = At::Part;
        head::read(head).is_some_and(|name| {
            // Of two, one backend reads the first and another the last.
            name.is_none_or(|name| self.names.add(name))
        })
    }

    /// How many of the bytes that have come may be the delimiter's.
    fn pending(&self) -> u64 {
        let pending = match self.before {
            Before::Line | Before::HalfBreak(_) => 0,
            Before::Return => 1,
            Before::Break(matched) => matched + 2,
        };
        self.bytes.min(pending as u64)
    }

    /// Looks for the delimiter: how many bytes were taken, and whether it was found.
    fn seek(&mut self, bytes: &[u8]) -> (usize, Sought) {
        let mut i = 0;
        while let Some(byte) = bytes.get(i) {
            let is_break = |b: &u8| matches!(b, b'\r' | b'\n');
            if self.before == Before::Line && !is_break(byte) {
                let rest = bytes.get(i..).unwrap_or_default();
                let plain = rest.iter().position(is_break).unwrap_or(rest.len());
                self.bytes += plain as u64;
                i += plain;
                continue;
            }
            let next = |matched: usize| self.delimiter.get(matched) == Some(byte);
            self.before = match (self.before, byte) {
                (_, b'\r') => Before::Return,
                (Before::Return, b'\n') => Before::Break(0),
                (_, b'\n') => Before::HalfBreak(0),
                (Before::Break(matched), _) if next(matched) => Before::Break(matched + 1),
                (Before::HalfBreak(matched), _) if next(matched) => Before::HalfBreak(matched + 1),
                (Before::Return, _) if next(0) => Before::HalfBreak(1),
                _ => Before::Line,
            };
            self.bytes += 1;
            i += 1;
            match self.before {
                Before::Break(matched) if matched == self.delimiter.len() => {
                    return (i, Sought::Delimiter);
                }
                Before::HalfBreak(matched) if matched == self.delimiter.len() => {
                    return (i, Sought::HalfDelimiter);
                }
                _ => {}
            }
        }
        (i, Sought::Nothing)
    }
}

fn judge(checks: &Checks, found: &mut Found, bytes: u64) {
    for (nth, rule) in checks.rules.iter().enumerate() {
        if rule.measure == Measure::File {
            found.judge(checks, nth, bytes, true);
        }
    }
}
