//! Upstreams that are the gateway itself: a call would go round for ever.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use crate::cli::resolve::Reader;
use crate::cli::value::{self, ValueError};
use crate::settings::Listen;

/// Where the gateway listens.
pub(super) struct Ourselves(Vec<SocketAddr>);

impl Ourselves {
    pub(super) fn new(reader: &mut Reader, listen: &[Listen]) -> Self {
        let admin = reader.given("admin").pop();
        // What is wrong with it is said where it is read.
        let admin = admin.and_then(|given| value::listen(&given.text).ok());
        Self(
            listen
                .iter()
                .map(|listen| listen.addr)
                .chain(admin)
                .collect(),
        )
    }

    /// Whether none of these addresses is ours.
    pub(super) fn check(&self, addrs: &[SocketAddr]) -> Result<(), ValueError> {
        let ours = |addr: &SocketAddr| self.0.iter().find(|own| leads_to(**own, *addr));
        match addrs.iter().find_map(ours) {
            Some(own) => Err(ValueError::Ourselves(*own)),
            None => Ok(()),
        }
    }

    /// The same for a host that is not looked up.
    pub(super) fn check_literal(&self, host: &str, port: u16) -> Result<(), ValueError> {
        match host.parse::<IpAddr>() {
            Ok(ip) => self.check(&[SocketAddr::new(ip, port)]),
            Err(_) => Ok(()),
        }
    }
}

/// Whether who connects to `addr` on this host reaches the listener at `own`.
fn leads_to(own: SocketAddr, addr: SocketAddr) -> bool {
    if own.port() == 0 || own.port() != addr.port() {
        return false;
    }
    let (own, ip) = (own.ip().to_canonical(), addr.ip().to_canonical());
    if !own.is_unspecified() {
        return own == ip || ip.is_unspecified() && own.is_loopback();
    }
    // A listener on all addresses of IPv6 takes IPv4 too.
    let is_of_it = own.is_ipv6() || ip.is_ipv4();
    is_of_it && (ip.is_loopback() || ip.is_unspecified() || UdpSocket::bind((ip, 0)).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_a_listener_is_told_from_others() {
        let leads = |own: &str, addr: &str| leads_to(own.parse().unwrap(), addr.parse().unwrap());
        for (own, addr) in [
            ("127.0.0.1:80", "127.0.0.1:80"),
            ("0.0.0.0:80", "127.0.0.1:80"),
            ("0.0.0.0:80", "127.0.0.9:80"),
            ("[::]:80", "127.0.0.1:80"),
            ("127.0.0.1:80", "0.0.0.0:80"),
            ("10.1.2.3:80", "10.1.2.3:80"),
        ] {
            assert!(leads(own, addr), "{own} {addr}");
        }
        for (own, addr) in [
            ("127.0.0.1:80", "127.0.0.1:81"),
            ("127.0.0.1:80", "127.0.0.2:80"),
            ("127.0.0.1:0", "127.0.0.1:0"),
            ("0.0.0.0:80", "203.0.113.7:80"),
            ("0.0.0.0:80", "[2001:db8::7]:80"),
        ] {
            assert!(!leads(own, addr), "{own} {addr}");
        }
    }
}
