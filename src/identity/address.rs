//! The client's address: the peer, or what trusted proxies say of it.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;

/// Entries of `X-Forwarded-For` that are looked at, from the right.
const MAX_HOPS: usize = 64;

/// The address to charge: IPv4-mapped IPv6 as IPv4; the peer, or, when the peer is a trusted
/// proxy, the right-most untrusted address of `X-Forwarded-For` (all header lines, in order).
/// A malformed entry stops the walk at the last good address: it makes nobody anonymous.
#[must_use]
pub fn client_ip<'h>(
    peer: IpAddr,
    forwarded_for: impl DoubleEndedIterator<Item = &'h [u8]>,
    trusted: &[IpNet],
) -> IpAddr {
    let is_trusted = |ip: &IpAddr| trusted.iter().any(|net| net.contains(ip));
    let mut ip = peer.to_canonical();
    if trusted.is_empty() || !is_trusted(&ip) {
        return ip;
    }
    let entries = forwarded_for
        .rev()
        .flat_map(|line| line.rsplit(|b| *b == b','));
    for entry in entries.take(MAX_HOPS) {
        let Some(hop) = std::str::from_utf8(entry)
            .ok()
            .and_then(|text| parse(text.trim()))
        else {
            return ip;
        };
        ip = hop;
        if !is_trusted(&ip) {
            return ip;
        }
    }
    ip
}

/// `ip`, `ip:port`, `[ip]`, `[ip]:port`, also quoted.
fn parse(entry: &str) -> Option<IpAddr> {
    let entry = entry
        .strip_prefix('"')
        .and_then(|e| e.strip_suffix('"'))
        .unwrap_or(entry);
    let bare = entry.strip_prefix('[').and_then(|e| e.strip_suffix(']'));
    let ip = match bare {
        Some(v6) => IpAddr::V6(v6.parse().ok()?),
        None => entry
            .parse()
            .or_else(|_| entry.parse::<SocketAddr>().map(|addr| addr.ip()))
            .ok()?,
    };
    Some(ip.to_canonical())
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
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn client(peer: &str, lines: &[&str]) -> IpAddr {
        let trusted: Vec<IpNet> = vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
        client_ip(ip(peer), lines.iter().map(|l| l.as_bytes()), &trusted)
    }

    #[test]
    fn an_untrusted_peer_is_itself_whatever_it_says() {
        assert_eq!(client("9.9.9.9", &["1.1.1.1"]), ip("9.9.9.9"));
        assert_eq!(client("::ffff:9.9.9.9", &["1.1.1.1"]), ip("9.9.9.9"));
        assert_eq!(
            client_ip(ip("10.0.0.1"), [&b"1.1.1.1"[..]].into_iter(), &[]),
            ip("10.0.0.1")
        );
    }

    #[test]
    fn the_right_most_untrusted_address_is_charged() {
        assert_eq!(client("10.0.0.1", &["6.6.6.6, 1.1.1.1"]), ip("1.1.1.1"));
        assert_eq!(
            client("10.0.0.1", &["6.6.6.6", "1.1.1.1, 10.2.2.2", "10.3.3.3"]),
            ip("1.1.1.1")
        );
        assert_eq!(
            client("::ffff:10.0.0.1", &["::ffff:1.1.1.1"]),
            ip("1.1.1.1")
        );
        assert_eq!(client("10.0.0.1", &["10.1.1.1,10.2.2.2"]), ip("10.1.1.1"));
        assert_eq!(client("10.0.0.1", &[]), ip("10.0.0.1"));
    }

    #[test]
    fn ports_brackets_and_quotes_are_understood() {
        for entry in ["1.1.1.1:80", "\"1.1.1.1\"", "\"1.1.1.1:80\""] {
            assert_eq!(client("10.0.0.1", &[entry]), ip("1.1.1.1"), "{entry}");
        }
        for entry in [
            "[2001:db8::1]:80",
            "[2001:db8::1]",
            "2001:db8::1",
            "\"[2001:db8::1]:80\"",
        ] {
            assert_eq!(client("10.0.0.1", &[entry]), ip("2001:db8::1"), "{entry}");
        }
    }

    #[test]
    fn a_malformed_entry_stops_at_the_last_good_address() {
        for bad in ["unknown", "", "1.1.1.1.1", "_hidden", "1.1.1.1 2.2.2.2"] {
            assert_eq!(
                client("10.0.0.1", &["5.5.5.5", bad, "10.2.2.2"]),
                ip("10.2.2.2"),
                "{bad}"
            );
        }
    }

    #[test]
    fn ipv6_counts_by_its_prefix_and_ipv4_whole() {
        assert_eq!(prefix(ip("2001:db8:1:2:3:4:5:6"), 64), ip("2001:db8:1:2::"));
        assert_eq!(
            prefix(ip("2001:db8:1:2:3:4:5:6"), 128),
            ip("2001:db8:1:2:3:4:5:6")
        );
        assert_eq!(prefix(ip("2001:db8::1"), 0), ip("::"));
        assert_eq!(prefix(ip("1.2.3.4"), 8), ip("1.2.3.4"));
        assert_eq!(prefix(ip("::ffff:1.2.3.4"), 64), ip("1.2.3.4"));
    }
}
