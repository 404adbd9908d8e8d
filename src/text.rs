//! Short texts made for each call: numbers and addresses, without the formatting machinery and,
//! while they are short, without the heap.

use std::net::IpAddr;

use smallvec::SmallVec;

/// A short text.
#[derive(Clone, Debug, Default)]
pub struct Text(SmallVec<[u8; 112]>);

impl Text {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends text.
    pub fn push(&mut self, text: &str) {
        self.0.extend_from_slice(text.as_bytes());
    }

    /// Appends a number.
    pub fn push_number(&mut self, number: u64) {
        let mut buffer = [0; 20];
        self.push(digits(number, &mut buffer));
    }

    /// Appends an address.
    pub fn push_ip(&mut self, ip: IpAddr) {
        match ip {
            IpAddr::V4(v4) => {
                let mut before = "";
                for part in v4.octets() {
                    self.push(before);
                    self.push_number(u64::from(part));
                    before = ".";
                }
            }
            IpAddr::V6(v6) => self.push(&v6.to_string()),
        }
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // Only whole texts are ever appended.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    /// As bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// A number's digits, in the end of this buffer.
#[must_use]
pub fn digits(number: u64, buffer: &mut [u8; 20]) -> &str {
    let mut rest = number;
    let mut first = buffer.len();
    for (at, digit) in buffer.iter_mut().enumerate().rev() {
        *digit = b'0' + u8::try_from(rest % 10).unwrap_or_default();
        rest /= 10;
        first = at;
        if rest == 0 {
            break;
        }
    }
    let written = buffer.get(first..).unwrap_or_default();
    std::str::from_utf8(written).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_addresses_are_written_as_usual() {
        for number in [0, 7, 10, 429, 1_000_000, u64::MAX] {
            let mut text = Text::new();
            text.push_number(number);
            assert_eq!(text.as_str(), number.to_string());
        }
        for ip in ["0.0.0.0", "127.0.0.1", "255.10.9.100", "::1", "2001:db8::5"] {
            let mut text = Text::new();
            text.push_ip(ip.parse().unwrap());
            assert_eq!(text.as_str(), ip);
        }
    }
}
