//! The client's address: the peer, or what trusted proxies say of it.

use std::net::IpAddr;

use ipnet::IpNet;

/// The address to charge: IPv4-mapped IPv6 as IPv4; the peer, or, when the peer is a trusted
/// proxy, the right-most untrusted address of `X-Forwarded-For` (all header lines, joined in
/// order). A malformed entry stops the walk at the last good address.
#[must_use]
pub fn client_ip<'h>(
    peer: IpAddr,
    forwarded_for: impl DoubleEndedIterator<Item = &'h [u8]>,
    trusted: &[IpNet],
) -> IpAddr {
    let _ = (forwarded_for, trusted);
    peer
}

/// The address cut to the prefix that counts as one caller (IPv4 whole).
#[must_use]
pub fn prefix(ip: IpAddr, ipv6_prefix: u8) -> IpAddr {
    let _ = ipv6_prefix;
    ip
}
