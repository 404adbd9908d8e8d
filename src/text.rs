//! Short texts made for each call: numbers, addresses and JSON strings, without the formatting
//! machinery; and texts for a terminal.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::IpAddr;

use jiff::Timestamp;

/// Appends a number.
pub fn push_number(out: &mut Vec<u8>, number: u64) {
    push_digits(out, number, 1);
}

/// Appends a number, with zeros before it up to this many digits (at most 20).
pub fn push_digits(out: &mut Vec<u8>, number: u64, least: usize) {
    if number < 10 && least <= 1 {
        out.push(digit(number));
        return;
    }
    let mut buffer = [b'0'; 20];
    let mut rest = number;
    let mut first = buffer.len();
    for (at, place) in buffer.iter_mut().enumerate().rev() {
        *place = digit(rest % 10);
        rest /= 10;
        first = at;
        if rest == 0 {
            break;
        }
    }
    let first = first.min(buffer.len().saturating_sub(least));
    out.extend_from_slice(buffer.get(first..).unwrap_or_default());
}

fn digit(number: u64) -> u8 {
    b'0' + u8::try_from(number).unwrap_or_default()
}

/// Appends an address.
pub fn push_ip(out: &mut Vec<u8>, ip: IpAddr) {
    match ip {
        IpAddr::V4(v4) => {
            // Gathered first: a vector looks for room at each push.
            let mut text = [0; "255.255.255.255".len()];
            let mut places = text.iter_mut();
            let mut length = 0;
            let mut push = |b| {
                if let Some(place) = places.next() {
                    *place = b;
                    length += 1;
                }
            };
            for (at, part) in v4.octets().into_iter().enumerate() {
                if at > 0 {
                    push(b'.');
                }
                if part >= 100 {
                    push(b'0' + part / 100);
                }
                if part >= 10 {
                    push(b'0' + part / 10 % 10);
                }
                push(b'0' + part % 10);
            }
            out.extend_from_slice(text.get(..length).unwrap_or_default());
        }
        IpAddr::V6(v6) => {
            // Writing to a vector does not fail.
            let _ = write!(out, "{v6}");
        }
    }
}

/// A text of the second at hand, kept until the next one: most calls need the same.
#[derive(Debug, Default)]
pub struct OfSecond {
    second: Option<u64>,
    text: String,
}

impl OfSecond {
    /// Nothing yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            second: None,
            text: String::new(),
        }
    }

    /// What `make` makes of the second of this time, Unix microseconds; of 1970 where the clock shows a
    /// time beyond the year 9999.
    pub fn at(&mut self, unix_us: u64, make: impl FnOnce(Timestamp) -> String) -> &str {
        let second = unix_us / 1_000_000;
        if self.second != Some(second) {
            let time = i64::try_from(second).ok();
            let time = time.and_then(|second| Timestamp::from_second(second).ok());
            self.text = make(time.unwrap_or(Timestamp::UNIX_EPOCH));
            self.second = Some(second);
        }
        &self.text
    }
}

/// Appends what stands between the quotes of a JSON string.
pub fn push_escaped(out: &mut Vec<u8>, text: &str) {
    if !has_special(text.as_bytes()) {
        out.extend_from_slice(text.as_bytes());
        return;
    }
    for b in text.bytes() {
        match b {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', b]),
            0..=0x1f => {
                let _ = write!(out, "\\u{b:04x}");
            }
            b => out.push(b),
        }
    }
}

/// Whether JSON escapes any of these bytes. Eight at a time: most texts are short.
fn has_special(text: &[u8]) -> bool {
    const ONES: u64 = u64::MAX / 255;
    const HIGH: u64 = ONES << 7;
    // The high bit of each byte that is smaller than `least`, and of some above the first such.
    let below = |bytes: u64, least: u64| bytes.wrapping_sub(ONES * least) & !bytes & HIGH;
    let special = |bytes: u64| {
        let quote = bytes ^ (ONES * u64::from(b'"'));
        let backslash = bytes ^ (ONES * u64::from(b'\\'));
        below(bytes, 0x20) | below(quote, 1) | below(backslash, 1)
    };
    let (chunks, rest) = text.as_chunks::<8>();
    let mut last = [b' '; 8];
    for (place, byte) in last.iter_mut().zip(rest) {
        *place = *byte;
    }
    let whole = chunks.iter().chain([&last]);
    whole.fold(0, |found, bytes| {
        found | special(u64::from_le_bytes(*bytes))
    }) != 0
}

/// A text as a terminal may show it: whatever could steer it, or turn its lines around, is
/// escaped, in a form that JSON has too. Lines and tabs stay.
#[must_use]
pub fn printable(text: &str) -> Cow<'_, str> {
    let steers = |c: char| {
        c.is_control() && c != '\n' && c != '\t'
            || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !text.contains(steers) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match steers(c) {
            // Writing to a string does not fail.
            true => drop(write!(shown, "\\u{:04x}", u32::from(c))),
            false => shown.push(c),
        }
    }
    Cow::Owned(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_addresses_are_written_as_usual() {
        let mut text = Vec::new();
        for number in [0, 7, 10, 429, 1_000_000, u64::MAX] {
            text.clear();
            push_number(&mut text, number);
            assert_eq!(text, number.to_string().into_bytes());
        }
        for ip in ["0.0.0.0", "127.0.0.1", "255.10.9.100", "::1", "2001:db8::5"] {
            text.clear();
            push_ip(&mut text, ip.parse().unwrap());
            assert_eq!(text, ip.as_bytes());
        }
    }

    #[test]
    fn nothing_that_is_printed_steers_a_terminal() {
        assert_eq!(printable("a\tb\n中\"'"), "a\tb\n中\"'");
        assert_eq!(
            printable("\u{1b}[31mred\r\u{7}\u{9b}\u{202e}"),
            "\\u001b[31mred\\u000d\\u0007\\u009b\\u202e"
        );
    }

    #[test]
    fn zeros_fill_a_number_up() {
        for (number, least, written) in [(0, 6, "000000"), (42, 3, "042"), (1234, 3, "1234")] {
            let mut text = Vec::new();
            push_digits(&mut text, number, least);
            assert_eq!(text, written.as_bytes());
        }
    }

    #[test]
    fn what_is_escaped_reads_back_as_it_was() {
        let some = ["", "plain", "\"", "a\"b\\c", "\u{0}\n\u{1f}x", "中\"文"];
        let mut texts: Vec<String> = some.map(str::to_owned).into();
        // Each character in each place of two pieces of eight bytes, and behind them.
        for c in (0..0x180).filter_map(char::from_u32) {
            texts.extend((0..18).map(|at| format!("{}{c}{}", "!".repeat(at), "~".repeat(17 - at))));
        }
        for text in &texts {
            let mut json = vec![b'"'];
            push_escaped(&mut json, text);
            json.push(b'"');
            let read: String = serde_json::from_slice(&json).unwrap();
            assert_eq!(&read, text);
        }
    }
}
