//! Short texts made for each call: numbers, addresses and JSON strings, without the formatting
//! machinery; and texts for a terminal.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::Write as _;
use std::net::IpAddr;

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

/// Appends what stands between the quotes of a JSON string.
pub fn push_escaped(out: &mut Vec<u8>, text: &str) {
    // To the end, without branches: the compiler makes vectors of it.
    let special = text.bytes().fold(false, |found, b| {
        found | (b < 0x20) | (b == b'"') | (b == b'\\')
    });
    if !special {
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
        for text in ["", "plain", "\"", "a\"b\\c", "\u{0}\n\u{1f}x", "中\"文"] {
            let mut json = vec![b'"'];
            push_escaped(&mut json, text);
            json.push(b'"');
            assert_eq!(serde_json::from_slice::<String>(&json).unwrap(), text);
        }
    }
}
