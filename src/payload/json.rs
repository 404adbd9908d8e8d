//! JSON as it comes, byte by byte: where each value stands, and how long it is.
//!
//! No tree is built, and no text is kept but names that may be one of those that are looked at.
//! What is accepted is what RFC 8259 accepts, in UTF-8, without a byte order mark.

use smallvec::SmallVec;

use super::text::{Hash, Names, Utf8, characters};
use super::tree::{Named, Node, NodeId};
use super::{Checks, Found, Measure};

/// How deep values may be in one another.
const MAX_DEPTH: usize = 512;
/// The longest type of a message, in bytes; a longer one is none of those that are known.
const MAX_KIND: usize = 16;

/// What comes next.
#[derive(Clone, Copy, Debug)]
enum At {
    Value,
    /// A value, or the array's end.
    Element,
    Name,
    /// A name, or the object's end.
    FirstName,
    Colon,
    /// A comma, or the end of what the value is in.
    Next,
    Text,
    Escape,
    /// So many digits of an escape, after these.
    Hex(u8, u16),
    Number(Digits),
    /// The rest of `true`, `false` or `null`.
    Word(&'static [u8]),
    End,
}

/// Where in a number.
#[derive(Clone, Copy, Debug)]
enum Digits {
    Minus,
    Zero,
    Whole,
    Point,
    Fraction,
    Exponent,
    Sign,
    Power,
}

impl Digits {
    fn is_end(self) -> bool {
        matches!(
            self,
            Self::Zero | Self::Whole | Self::Fraction | Self::Power
        )
    }

    /// After this byte; `None`: it is none of the number's.
    fn after(self, byte: u8) -> Option<Self> {
        Some(match (self, byte) {
            (Self::Minus, b'0') => Self::Zero,
            (Self::Minus | Self::Whole, b'0'..=b'9') => Self::Whole,
            (Self::Zero | Self::Whole, b'.') => Self::Point,
            (Self::Point | Self::Fraction, b'0'..=b'9') => Self::Fraction,
            (Self::Zero | Self::Whole | Self::Fraction, b'e' | b'E') => Self::Exponent,
            (Self::Exponent, b'+' | b'-') => Self::Sign,
            (Self::Exponent | Self::Sign | Self::Power, b'0'..=b'9') => Self::Power,
            _ => return None,
        })
    }
}

/// An object or array of which something is asked.
#[derive(Debug)]
struct Watched {
    /// It is the one at this depth.
    depth: usize,
    node: NodeId,
    start: u64,
    /// Bytes before it that go on with a character.
    start_inner: u64,
    /// Its fields that are looked at and have come, as bits.
    seen: u64,
    /// Its elements or fields so far.
    count: u64,
    names: Names,
    /// What is asked of the value whose name has come.
    next: Option<NodeId>,
}

/// A string that is coming.
#[derive(Debug, Default)]
struct Text {
    is_name: bool,
    /// Of a value: what is asked of it.
    node: Option<NodeId>,
    is_measured: bool,
    bytes: u64,
    characters: u64,
    /// Rules whose characters it has others than, as bits.
    strange: u64,
    has_charset: bool,
    /// The first half of a character.
    half: Option<u16>,
    /// Its beginning, of at most so many bytes.
    kept: SmallVec<[u8; 64]>,
    room: usize,
    is_cut: bool,
    hash: Option<Hash>,
}

impl Text {
    #[inline]
    fn take(&mut self, run: &[u8], checks: &Checks) {
        self.bytes += run.len() as u64;
        self.characters += characters(run);
        if self.has_charset {
            for nth in self.rules(checks) {
                let allow = checks.rules.get(nth).and_then(|rule| rule.allow.as_ref());
                if allow.is_some_and(|allow| !allow.has_all(run)) {
                    self.strange |= bit(nth);
                }
            }
        }
        if !self.is_cut && self.room > 0 {
            self.is_cut = self.kept.len() + run.len() > self.room;
            if !self.is_cut {
                self.kept.extend_from_slice(run);
            }
        }
        if let Some(hash) = &mut self.hash {
            hash.push(run);
        }
    }

    /// The same of one ASCII character.
    fn take_ascii(&mut self, byte: u8, checks: &Checks) {
        if self.has_charset || self.room > 0 || self.hash.is_some() {
            return self.take(&[byte], checks);
        }
        self.bytes += 1;
        self.characters += 1;
    }

    /// The rules that measure it.
    fn rules(&self, checks: &Checks) -> SmallVec<[usize; 2]> {
        let Some(node) = self.node.and_then(|id| checks.tree.node(id)) else {
            return SmallVec::new();
        };
        match self.is_name {
            true => node.names.iter().copied().collect(),
            false => node.rules.clone(),
        }
    }

    /// All of it, unless it is longer than what matters.
    fn whole(&self) -> Option<&str> {
        std::str::from_utf8(&self.kept)
            .ok()
            .filter(|_| !self.is_cut)
    }
}

fn bit(nth: usize) -> u64 {
    let shift = u32::try_from(nth).unwrap_or(u32::MAX);
    1_u64.checked_shl(shift).unwrap_or_default()
}

/// A string, number or word.
#[derive(Clone, Copy, Debug, Default)]
struct Scalar {
    /// What is asked of it.
    node: Option<NodeId>,
    /// Where it began.
    start: u64,
    /// Bytes before it that go on with a character.
    start_inner: u64,
}

/// A body of JSON.
#[derive(Debug)]
pub(super) struct Json {
    at: At,
    utf8: Utf8,
    depth: usize,
    /// Which of the values around are objects, as bits.
    objects: [u64; MAX_DEPTH / 64],
    watched: SmallVec<[Watched; 2]>,
    text: Text,
    /// What is coming and is neither object nor array.
    scalar: Scalar,
    /// Bytes of the pieces before this one.
    before: u64,
    /// Those of them that go on with a character.
    before_inner: u64,
    /// The same of this piece, up to this byte of it.
    piece_inner: (u64, usize),
    /// The message's type, in lower case.
    kind: Option<SmallVec<[u8; MAX_KIND]>>,
}

impl Json {
    pub(super) fn new() -> Self {
        Self {
            at: At::Value,
            utf8: Utf8::default(),
            depth: 0,
            objects: [0; MAX_DEPTH / 64],
            watched: SmallVec::new(),
            text: Text::default(),
            scalar: Scalar::default(),
            before: 0,
            before_inner: 0,
            piece_inner: (0, 0),
            kind: None,
        }
    }

    /// Takes a piece. Whether it can be JSON so far, that is read in one way.
    pub(super) fn push(&mut self, checks: &Checks, found: &mut Found, piece: &[u8]) -> bool {
        let good = self.utf8.push(piece) && self.walk(checks, found, piece);
        self.before += piece.len() as u64;
        if checks.tree.counts_characters {
            let all = self.inner_in(piece, piece.len());
            self.before_inner += all;
            self.piece_inner = (0, 0);
        }
        good
    }

    /// The end has come. Whether all was JSON that is read in one way.
    pub(super) fn finish(&mut self, checks: &Checks, found: &mut Found) -> bool {
        if let At::Number(digits) = self.at
            && digits.is_end()
            && self.depth == 0
        {
            self.end_scalar(checks, found, self.before);
        }
        let is_whole = matches!(self.at, At::End) && self.utf8.is_whole();
        if is_whole && checks.tree.has_kind {
            let kind = self.kind.as_ref();
            let kind = kind.map(|kind| std::str::from_utf8(kind).unwrap_or_default());
            found.judge_message(checks, kind);
        }
        is_whole
    }

    fn walk(&mut self, checks: &Checks, found: &mut Found, piece: &[u8]) -> bool {
        let mut i = 0;
        while let Some(byte) = piece.get(i).copied() {
            match self.at {
                At::Text => {
                    let rest = piece.get(i..).unwrap_or_default();
                    let run = plain_run(rest);
                    if run > 0 {
                        if self.text.is_measured {
                            if self.text.half.is_some() {
                                return false;
                            }
                            self.text.take(rest.get(..run).unwrap_or_default(), checks);
                        }
                        i += run;
                        continue;
                    }
                    match byte {
                        b'"' if self.text.half.is_some() => return false,
                        b'"' => {
                            if !self.end_text(checks, found, piece, i) {
                                return false;
                            }
                        }
                        // Here as a whole, most often.
                        b'\\' => match piece.get(i + 1).filter(|next| **next != b'u') {
                            Some(next) if self.escape(checks, *next).is_some() => i += 1,
                            Some(_) => return false,
                            None => self.at = At::Escape,
                        },
                        _ => return false,
                    }
                }
                At::Escape => match self.escape(checks, byte) {
                    Some(at) => self.at = at,
                    None => return false,
                },
                At::Hex(left, unit) => {
                    let Some(digit) = char::from(byte).to_digit(16) else {
                        return false;
                    };
                    let unit = unit << 4 | u16::try_from(digit).unwrap_or_default();
                    if left > 1 {
                        self.at = At::Hex(left - 1, unit);
                    } else {
                        self.at = At::Text;
                        if self.text.is_measured && !self.unit(checks, unit) {
                            return false;
                        }
                    }
                }
                At::Number(digits) => match digits.after(byte) {
                    Some(digits) => self.at = At::Number(digits),
                    None if digits.is_end() => {
                        self.end_scalar(checks, found, self.before + i as u64);
                        continue;
                    }
                    None => return false,
                },
                At::Word(rest) => match rest.split_first() {
                    Some((first, rest)) if *first == byte => {
                        self.at = At::Word(rest);
                        if rest.is_empty() {
                            self.end_scalar(checks, found, self.before + i as u64 + 1);
                        }
                    }
                    _ => return false,
                },
                _ if matches!(byte, b' ' | b'\t' | b'\n' | b'\r') => {}
                _ => {
                    if !self.structure(checks, found, piece, i, byte) {
                        return false;
                    }
                }
            }
            i += 1;
        }
        true
    }

    /// A byte between strings, numbers and words.
    fn structure(
        &mut self,
        checks: &Checks,
        found: &mut Found,
        piece: &[u8],
        i: usize,
        byte: u8,
    ) -> bool {
        match (self.at, byte) {
            (At::Element, b']') | (At::FirstName, b'}') => self.close(checks, found, piece, i),
            (At::Value | At::Element, _) => return self.begin(checks, piece, i, byte),
            (At::Name | At::FirstName, b'"') => self.begin_name(checks),
            (At::Colon, b':') => self.at = At::Value,
            (At::Next, b',') if self.is_object() => self.at = At::Name,
            (At::Next, b',') => self.at = At::Value,
            (At::Next, b'}') if self.is_object() => self.close(checks, found, piece, i),
            (At::Next, b']') if !self.is_object() => self.close(checks, found, piece, i),
            _ => return false,
        }
        true
    }

    fn is_object(&self) -> bool {
        let at = self.depth.saturating_sub(1);
        let word = self.objects.get(at / 64).copied().unwrap_or_default();
        word >> (at % 64) & 1 == 1
    }

    /// The object or array around, if something is asked of it.
    fn around(&mut self) -> Option<&mut Watched> {
        let depth = self.depth;
        self.watched.last_mut().filter(|top| top.depth == depth)
    }

    /// What is asked of the value that begins.
    fn asked(&mut self, checks: &Checks) -> Option<NodeId> {
        if self.depth == 0 {
            return Some(0);
        }
        let is_object = self.is_object();
        let around = self.around()?;
        if is_object {
            return around.next.take();
        }
        around.count += 1;
        checks.tree.node(around.node)?.items
    }

    /// The first byte of a value.
    fn begin(&mut self, checks: &Checks, piece: &[u8], i: usize, byte: u8) -> bool {
        let node = self.asked(checks);
        let start = self.before + i as u64;
        self.at = match byte {
            b'{' | b'[' => return self.open(checks, piece, i, node, byte == b'{'),
            b'"' => {
                let asked = node.and_then(|id| checks.tree.node(id));
                let is_measured = asked.is_some_and(|node| !node.rules.is_empty() || node.is_kind);
                let has_charset =
                    is_measured && asked.is_some_and(|node| has_charset(checks, &node.rules));
                self.text.is_name = false;
                self.begin_text(node, is_measured, has_charset);
                self.text.room = match asked.is_some_and(|node| node.is_kind) {
                    true => MAX_KIND,
                    false => 0,
                };
                At::Text
            }
            b'-' => At::Number(Digits::Minus),
            b'0' => At::Number(Digits::Zero),
            b'1'..=b'9' => At::Number(Digits::Whole),
            b't' => At::Word(b"rue"),
            b'f' => At::Word(b"alse"),
            b'n' => At::Word(b"ull"),
            _ => return false,
        };
        self.scalar = Scalar {
            node,
            start,
            start_inner: self.inner_until(checks, node, piece, i),
        };
        // The type of a message is a string.
        byte == b'"'
            || !node
                .and_then(|id| checks.tree.node(id))
                .is_some_and(|node| node.is_kind)
    }

    fn open(
        &mut self,
        checks: &Checks,
        piece: &[u8],
        i: usize,
        node: Option<NodeId>,
        is_object: bool,
    ) -> bool {
        let asked = node.and_then(|id| checks.tree.node(id));
        if self.depth >= MAX_DEPTH || asked.is_some_and(|node| node.is_kind) {
            return false;
        }
        // A list of bodies where one is expected: none of them would be looked into.
        let takes_no_list = |node: &Node| node.items.is_none() && node.looks_into_objects();
        if self.depth == 0 && !is_object && asked.is_some_and(takes_no_list) {
            return false;
        }
        if let Some(word) = self.objects.get_mut(self.depth / 64) {
            let bit = 1 << (self.depth % 64);
            *word = if is_object { *word | bit } else { *word & !bit };
        }
        self.depth += 1;
        if let Some(node) = node {
            let start_inner = self.inner_until(checks, Some(node), piece, i);
            self.watched.push(Watched {
                depth: self.depth,
                node,
                start: self.before + i as u64,
                start_inner,
                seen: 0,
                count: 0,
                names: Names::default(),
                next: None,
            });
        }
        self.at = match is_object {
            true => At::FirstName,
            false => At::Element,
        };
        true
    }

    fn close(&mut self, checks: &Checks, found: &mut Found, piece: &[u8], i: usize) {
        let is_object = self.is_object();
        let top = match self.around() {
            Some(_) => self.watched.pop(),
            None => None,
        };
        self.depth -= 1;
        self.end_value();
        let Some((top, node)) = top.and_then(|top| {
            let node = checks.tree.node(top.node)?;
            Some((top, node))
        }) else {
            return;
        };
        let counted = if is_object {
            &node.entries
        } else {
            &node.elements
        };
        for nth in counted {
            found.judge(checks, *nth, top.count, true);
        }
        let instead: &[usize] = if is_object { &[] } else { &node.instead };
        if node.rules.is_empty() && instead.is_empty() {
            return;
        }
        let bytes = self.before + i as u64 + 1 - top.start;
        let inner = self.inner_until(checks, Some(top.node), piece, i);
        let characters = bytes - (inner - top.start_inner);
        measure(checks, found, &node.rules, bytes, characters);
        measure(checks, found, instead, bytes, characters);
    }

    /// Bytes before this one that go on with a character, if that matters to this node.
    fn inner_until(
        &mut self,
        checks: &Checks,
        node: Option<NodeId>,
        piece: &[u8],
        i: usize,
    ) -> u64 {
        let node = node.and_then(|id| checks.tree.node(id));
        match node.is_some_and(|node| node.counts_characters) {
            true => self.before_inner + self.inner_in(piece, i),
            false => 0,
        }
    }

    /// Those of this piece. Each byte of it is looked at once, however many values ask.
    fn inner_in(&mut self, piece: &[u8], until: usize) -> u64 {
        let (sum, from) = &mut self.piece_inner;
        *sum += inner(piece.get(*from..until).unwrap_or_default());
        *from = until;
        *sum
    }

    fn end_value(&mut self) {
        self.at = match self.depth {
            0 => At::End,
            _ => At::Next,
        };
    }

    fn end_scalar(&mut self, checks: &Checks, found: &mut Found, end: u64) {
        self.end_value();
        let Scalar { node, start, .. } = self.scalar;
        if let Some(node) = node.and_then(|id| checks.tree.node(id)) {
            let length = end - start;
            measure(checks, found, &node.rules, length, length);
            measure(checks, found, &node.instead, length, length);
        }
    }

    fn begin_name(&mut self, checks: &Checks) {
        let node = self.around().map(|around| around.node);
        let asked = node.and_then(|id| checks.tree.node(id));
        let asked = asked.filter(|node| node.looks_into_objects());
        self.text.is_name = true;
        let has_charset = asked.is_some_and(|node| has_charset(checks, &node.names));
        self.begin_text(node, asked.is_some(), has_charset);
        self.text.room = asked.map_or(0, Node::longest_name);
        self.text.hash = asked.filter(|node| node.is_open()).map(|_| Hash::default());
        self.at = At::Text;
    }

    fn begin_text(&mut self, node: Option<NodeId>, is_measured: bool, has_charset: bool) {
        let text = &mut self.text;
        text.node = node;
        text.is_measured = is_measured;
        text.has_charset = has_charset;
        (text.bytes, text.characters, text.strange) = (0, 0, 0);
        text.half = None;
        text.kept.clear();
        text.is_cut = false;
        text.hash = None;
    }

    fn end_text(&mut self, checks: &Checks, found: &mut Found, piece: &[u8], i: usize) -> bool {
        if self.text.is_name {
            self.at = At::Colon;
            return !self.text.is_measured || self.end_name(checks, found);
        }
        self.end_value();
        let Scalar {
            node,
            start,
            start_inner,
        } = self.scalar;
        let asked = node.and_then(|id| checks.tree.node(id));
        if let Some(asked) = asked.filter(|asked| !asked.instead.is_empty()) {
            let bytes = self.before + i as u64 + 1 - start;
            let inner = self.inner_until(checks, node, piece, i);
            let characters = bytes - (inner - start_inner);
            measure(checks, found, &asked.instead, bytes, characters);
        }
        if !self.text.is_measured {
            return true;
        }
        let text = &self.text;
        let Some(node) = text.node.and_then(|id| checks.tree.node(id)) else {
            return true;
        };
        for nth in &node.rules {
            judge_text(checks, found, *nth, text);
        }
        if node.is_kind {
            let kind = text.whole().unwrap_or_default().to_ascii_lowercase();
            self.kind = Some(SmallVec::from_slice(kind.as_bytes()));
        }
        true
    }

    /// A name of an object that is looked into.
    fn end_name(&mut self, checks: &Checks, found: &mut Found) -> bool {
        let text = &self.text;
        let Some(node) = text.node.and_then(|id| checks.tree.node(id)) else {
            return true;
        };
        for nth in &node.names {
            judge_text(checks, found, *nth, text);
        }
        let named = node.named(text.whole());
        let hash = text.hash;
        let Some(around) = self.around() else {
            return true;
        };
        around.count += 1;
        if hash.is_some_and(|hash| !around.names.add(hash)) {
            return false;
        }
        match named {
            Named::Near => return false,
            Named::Any(next) => around.next = next,
            Named::Field(nth, next) => {
                // Of two, one backend reads the first and another the last.
                if around.seen & bit(nth) != 0 {
                    return false;
                }
                around.seen |= bit(nth);
                around.next = Some(next);
            }
        }
        true
    }

    /// The byte after a backslash.
    fn escape(&mut self, checks: &Checks, byte: u8) -> Option<At> {
        let plain = match byte {
            b'u' => return Some(At::Hex(4, 0)),
            b'"' | b'\\' | b'/' => byte,
            b'b' => 8,
            b'f' => 12,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            _ => return None,
        };
        if self.text.is_measured {
            if self.text.half.is_some() {
                return None;
            }
            self.text.take_ascii(plain, checks);
        }
        Some(At::Text)
    }

    /// One unit of UTF-16 of a string that is measured.
    fn unit(&mut self, checks: &Checks, unit: u16) -> bool {
        let character = match (self.text.half.take(), unit) {
            (None, 0xD800..=0xDBFF) => {
                self.text.half = Some(unit);
                return true;
            }
            (Some(high), 0xDC00..=0xDFFF) => {
                let high = u32::from(high) - 0xD800;
                char::from_u32(0x1_0000 + (high << 10) + (u32::from(unit) - 0xDC00))
            }
            (None, unit) => char::from_u32(unit.into()),
            (Some(_), _) => None,
        };
        let Some(character) = character else {
            return false;
        };
        let mut bytes = [0; 4];
        let bytes = character.encode_utf8(&mut bytes).as_bytes();
        self.text.take(bytes, checks);
        true
    }
}

fn has_charset(checks: &Checks, rules: &[usize]) -> bool {
    let mut rules = rules.iter().filter_map(|nth| checks.rules.get(*nth));
    rules.any(|rule| rule.allow.is_some())
}

fn judge_text(checks: &Checks, found: &mut Found, nth: usize, text: &Text) {
    let measure = checks.rules.get(nth).map(|rule| rule.measure);
    let length = match measure {
        Some(Measure::Characters) => text.characters,
        _ => text.bytes,
    };
    found.judge(checks, nth, length, text.strange & bit(nth) == 0);
}

/// Measures JSON that is no string.
fn measure(checks: &Checks, found: &mut Found, rules: &[usize], bytes: u64, characters: u64) {
    for nth in rules {
        let measure = checks.rules.get(*nth).map(|rule| rule.measure);
        let length = match measure {
            Some(Measure::Characters) => characters,
            _ => bytes,
        };
        found.judge(checks, *nth, length, true);
    }
}

/// Bytes that go on with a character.
fn inner(bytes: &[u8]) -> u64 {
    bytes.len() as u64 - characters(bytes)
}

/// How many bytes of a string stand for themselves, from here on. Most runs are short, and those
/// that are not are looked through many bytes at a time.
#[inline]
fn plain_run(bytes: &[u8]) -> usize {
    let is_special = |byte: &u8| matches!(byte, b'"' | b'\\' | 0..=0x1f);
    let any = |some: &[u8]| some.iter().fold(false, |any, byte| any | is_special(byte));
    let from = |run: usize| bytes.get(run..).unwrap_or_default();
    let mut run = 0;
    while let Some(word) = from(run).first_chunk() {
        if let Some(at) = first_special(*word) {
            return run + at;
        }
        run += word.len();
        if run == 4 * word.len() {
            let many = from(run).chunks_exact(32);
            run += 32 * many.take_while(|some| !any(some)).count();
        }
    }
    let rest = from(run);
    run + rest.iter().position(is_special).unwrap_or(rest.len())
}

/// Where in eight bytes the first is that does not stand for itself.
#[inline]
fn first_special(word: [u8; 8]) -> Option<usize> {
    const ONES: u64 = u64::from_le_bytes([1; 8]);
    const HIGH: u64 = ONES * 0x80;
    let word = u64::from_le_bytes(word);
    let zeros = |word: u64| word.wrapping_sub(ONES) & !word & HIGH;
    // The lowest bit is never a false one; those above it may be.
    let special = zeros(word ^ (ONES * 0x22))
        | zeros(word ^ (ONES * 0x5C))
        | (word.wrapping_sub(ONES * 0x20) & !word & HIGH);
    (special != 0).then(|| usize::try_from(special.trailing_zeros() / 8).unwrap_or_default())
}
