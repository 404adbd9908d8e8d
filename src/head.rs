//! What the pure part may see of a request.

use std::net::IpAddr;

/// The head of one call, as the pure part sees it.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    /// The method as sent (`GET`, `POST`, …).
    pub method: &'a str,
    /// The request target's path as sent, without the query string.
    pub raw_path: &'a str,
    /// The caller's address, proxies already accounted for.
    pub ip: IpAddr,
    /// Whether an `Authorization: Bearer …` credential with a non-empty token is there.
    pub has_bearer: bool,
}
