//! Text as it comes: UTF-8 in pieces, names that are alike.

/// Whether a name is another but for its case: some parsers take it for that one.
pub(crate) fn is_near(name: &str, other: &str) -> bool {
    let upper = |text: &str| {
        text.chars()
            .flat_map(char::to_uppercase)
            .collect::<String>()
    };
    // A letter has at most three bytes whose capital is ASCII, as the long s has two.
    (other.len()..=other.len() * 3).contains(&name.len()) && upper(name) == upper(other)
}

/// UTF-8 that comes in pieces.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Utf8 {
    /// The beginning of a character whose end has not come yet.
    begun: [u8; 4],
    length: usize,
}

impl Utf8 {
    /// Whether all is UTF-8 so far.
    pub(super) fn push(&mut self, mut bytes: &[u8]) -> bool {
        while self.length > 0 {
            let Some((first, rest)) = bytes.split_first() else {
                return true;
            };
            let Some(slot) = self.begun.get_mut(self.length) else {
                return false;
            };
            *slot = *first;
            self.length += 1;
            bytes = rest;
            match std::str::from_utf8(self.begun.get(..self.length).unwrap_or_default()) {
                Ok(_) => self.length = 0,
                Err(error) if error.error_len().is_some() => return false,
                Err(_) => {}
            }
        }
        match simdutf8::compat::from_utf8(bytes) {
            Ok(_) => true,
            Err(error) if error.error_len().is_some() => false,
            Err(error) => {
                let rest = bytes.get(error.valid_up_to()..).unwrap_or_default();
                self.length = rest.len().min(3);
                for (slot, byte) in self.begun.iter_mut().zip(rest) {
                    *slot = *byte;
                }
                true
            }
        }
    }

    /// Whether no character is left half.
    pub(super) fn is_whole(&self) -> bool {
        self.length == 0
    }
}

/// How many characters these bytes of UTF-8 begin.
pub(super) fn characters(bytes: &[u8]) -> u64 {
    // Sums that fit into a byte are made many at a time.
    let begun = |some: &[u8]| -> u8 { some.iter().map(|b| u8::from(*b & 0xC0 != 0x80)).sum() };
    bytes.chunks(255).map(|some| u64::from(begun(some))).sum()
}

/// The names of a body, of which none may be there twice.
#[derive(Clone, Debug, Default)]
pub(super) struct Names {
    /// In order.
    known: Vec<u64>,
}

/// The most names that are remembered. What has more is refused by its number, where that matters.
const MAX_NAMES: usize = 1024;

impl Names {
    /// Whether this name is new, as far as is known.
    pub(super) fn add(&mut self, name: Hash) -> bool {
        // In order: a body of nothing but names costs little more than any other.
        let Err(at) = self.known.binary_search(&name.0) else {
            return false;
        };
        if self.known.len() < MAX_NAMES {
            self.known.insert(at, name.0);
        }
        true
    }
}

/// A name's FNV-1a hash. Whoever makes two names of one hash is refused, and gains nothing.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hash(u64);

impl Default for Hash {
    fn default() -> Self {
        Self(0xCBF2_9CE4_8422_2325)
    }
}

impl Hash {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn utf_8_is_the_same_in_any_pieces() {
        let text = "a中😀é\u{7ff}\u{ffff}".as_bytes();
        for from in 0..=text.len() {
            for to in from..=text.len() {
                let mut utf8 = Utf8::default();
                let pieces = [&text[..from], &text[from..to], &text[to..]];
                assert!(pieces.iter().all(|piece| utf8.push(piece)) && utf8.is_whole());
            }
        }
        for bad in [
            &b"\xff"[..],
            b"\xc0\x80",
            b"\xed\xa0\x80",
            b"\xf5\x80\x80\x80",
            b"a\x80",
            b"\xe4\xb8a",
        ] {
            for at in 0..=bad.len() {
                let mut utf8 = Utf8::default();
                assert!(
                    !(utf8.push(&bad[..at]) && utf8.push(&bad[at..])),
                    "{bad:?} {at}"
                );
            }
        }
        let mut half = Utf8::default();
        assert!(half.push(b"\xe4\xb8") && !half.is_whole());
    }
}
