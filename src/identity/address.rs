//! The client's address: the peer, or what trusted proxies say of it.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;

/// Entries of the header that are looked at, from the right.
const MAX_HOPS: usize = 64;

/// The header by which trusted proxies name their callers. Only one is read: of two, a proxy
/// sets one, and passes on what its caller has written into the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Naming {
    /// `X-Forwarded-For`.
    #[default]
    XForwardedFor,
    /// `Forwarded` (RFC 7239).
    Forwarded,
}

/// Whom trusted proxies call for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// The address to charge.
    pub ip: IpAddr,
    /// Whether it speaks HTTPS to the first of them; `None` where `Forwarded` does not say so
    /// beside the address, and always where that is not read.
    pub https: Option<bool>,
}

/// The address to charge: IPv4-mapped IPv6 as IPv4; the peer, or, when the peer is a trusted
/// proxy, the right-most untrusted address of the header (all its lines, in order).
/// An entry that names no address, malformed or on purpose (`unknown`, `_hidden`), stops the walk
/// at the last good address: it makes nobody anonymous, and nobody someone else.
#[must_use]
pub fn client<'h>(
    peer: IpAddr,
    naming: Naming,
    lines: impl DoubleEndedIterator<Item = &'h [u8]>,
    trusted: &[IpNet],
) -> Client {
    let is_trusted = |ip: &IpAddr| trusted.iter().any(|net| net.contains(ip));
    let ip = peer.to_canonical();
    let mut client = Client { ip, https: None };
    if trusted.is_empty() || !is_trusted(&ip) {
        return client;
    }
    let entries = lines.rev().flat_map(|line| Entries {
        rest: Some(line),
        quoted: naming == Naming::Forwarded,
    });
    for entry in entries.take(MAX_HOPS) {
        let text = std::str::from_utf8(entry).ok();
        let hop = text.and_then(|text| match naming {
            Naming::XForwardedFor => {
                let ip = node(unquoted(text.trim_matches([' ', '\t'])))?;
                Some(Client { ip, https: None })
            }
            Naming::Forwarded => element(text),
        });
        let Some(hop) = hop else {
            return client;
        };
        client = hop;
        if !is_trusted(&client.ip) {
            return client;
        }
    }
    client
}

/// The entries of a line, from the right: what trusted proxies have written stands there, and is
/// read the same whatever stands to the left of it. An open quote there swallows nothing.
struct Entries<'h> {
    rest: Option<&'h [u8]>,
    /// Whether a comma between quotes parts nothing.
    quoted: bool,
}

impl<'h> Iterator for Entries<'h> {
    type Item = &'h [u8];

    fn next(&mut self) -> Option<&'h [u8]> {
        let line = self.rest.take()?;
        let Some(comma) = last(line, b',', self.quoted) else {
            return Some(line);
        };
        let (before, entry) = line.split_at(comma);
        self.rest = Some(before);
        entry.get(1..)
    }
}

/// Where a byte stands last, outside quotes where these count.
fn last(text: &[u8], wanted: u8, quoted: bool) -> Option<usize> {
    let mut is_inside = false;
    for (at, b) in text.iter().enumerate().rev() {
        if quoted && *b == b'"' {
            let before = text.get(..at).unwrap_or_default();
            let escapes = before.iter().rev().take_while(|b| **b == b'\\').count();
            // In a quoted string an escaped quote is a character; outside, nothing is escaped.
            if escapes % 2 == 0 || !is_inside {
                is_inside = !is_inside;
            }
        } else if *b == wanted && !is_inside {
            return Some(at);
        }
    }
    None
}

/// One element of `Forwarded`: pairs, of which exactly one is `for`, and one at most `proto`.
fn element(text: &str) -> Option<Client> {
    let mut rest = Some(text);
    let (mut ip, mut https) = (None, None);
    while let Some(pairs) = rest {
        let pair = match last(pairs.as_bytes(), b';', true) {
            Some(at) => {
                rest = pairs.get(..at);
                pairs.get(at + 1..)?
            }
            None => {
                rest = None;
                pairs
            }
        };
        let pair = pair.trim_matches([' ', '\t']);
        if pair.is_empty() {
            continue;
        }
        let (name, value) = pair.split_once('=')?;
        let value = unquoted(value);
        let is_twice = if name.eq_ignore_ascii_case("for") {
            ip.replace(node(value)?).is_some()
        } else if name.eq_ignore_ascii_case("proto") {
            https.replace(value.eq_ignore_ascii_case("https")).is_some()
        } else {
            false
        };
        if is_twice {
            return None;
        }
    }
    Some(Client { ip: ip?, https })
}

/// What stands between quotes; anything else as it is. An address has nothing to escape.
fn unquoted(value: &str) -> &str {
    value
        .strip_prefix('"')
        .and_then(|value| value.strip_suffix('"'))
        .unwrap_or(value)
}

/// `ip`, `ip:port`, `[ip]`, `[ip]:port`; a port may be hidden (`_x`).
fn node(text: &str) -> Option<IpAddr> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Some(ip.to_canonical());
    }
    let (ip, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (inside, after) = rest.split_once(']')?;
            let port = match after {
                "" => None,
                _ => Some(after.strip_prefix(':')?),
            };
            (IpAddr::V6(inside.parse().ok()?), port)
        }
        None => {
            let (ip, port) = text.split_once(':')?;
            (IpAddr::V4(ip.parse().ok()?), Some(port))
        }
    };
    port.is_none_or(is_port).then(|| ip.to_canonical())
}

fn is_port(port: &str) -> bool {
    let is_hidden = |name: &str| {
        let mut bytes = name.bytes();
        !name.is_empty() && bytes.all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
    };
    match port.strip_prefix('_') {
        Some(name) => is_hidden(name),
        None => port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok(),
    }
}

/// The address cut to the prefix that counts as one caller (IPv4 whole).
#[must_use]
pub fn prefix(ip: IpAddr, ipv6_prefix: u8) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(v6) => {
            let mask = u128::MAX
                .checked_shl(128 - u32::from(ipv6_prefix.min(128)))
                .unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & mask))
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests;
