//! What pingora takes and another server might read otherwise: refused here, before anything of
//! the call is looked at, and its connection closed.
//!
//! pingora has refused by then: lengths that differ or are no number, a coding that does not end
//! in `chunked`, any on HTTP/1.0, obs-fold, a space before a colon, control characters in names
//! and values, two `Host`s, one unlike an absolute target, names and passwords in a target.

use http::Method;
use http::header::{self, HeaderMap};
use pingora::http::RequestHeader;

use super::reply::Reply;

/// Why a head has two readings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum Fault {
    #[error("A line of the head ends without a carriage return.")]
    LineEnd,
    #[error("The request has a Content-Length and a Transfer-Encoding.")]
    TwoFramings,
    #[error("Transfer-Encoding is `chunked`, once, or not there.")]
    Coding,
    #[error("Content-Length is one plain decimal number, or not there.")]
    Length,
    #[error("Host is one host name or address, with or without a port.")]
    Host,
    #[error("The target begins with `/`, or with http:// or https:// and the host.")]
    Target,
    #[error("The query names a method.")]
    Method,
}

/// Whether nothing may be read after this request on its connection: pingora takes an empty line
/// for the last chunk, any bytes for an extension, and a request for trailers, where another
/// server tells other ends.
pub(super) fn ends_its_connection(request: &RequestHeader) -> bool {
    request.headers.contains_key(header::TRANSFER_ENCODING)
}

/// The answer to a head with two readings. What comes after it on its connection is not read.
/// `head`: as HTTP/1 has it on the wire.
pub(super) fn refusal(request: &RequestHeader, head: Option<&[u8]>) -> Option<Reply> {
    if request.method == Method::CONNECT {
        return Some(Reply::no_tunnel());
    }
    let fault = match head {
        Some(head) => of_http1(head, request),
        None => of_request(request),
    }?;
    Some(Reply {
        description: fault.to_string().into(),
        ..Reply::bad_request()
    })
}

/// What is wrong with an HTTP/1 head.
fn of_http1(head: &[u8], request: &RequestHeader) -> Option<Fault> {
    if has_bare_line_feed(head) {
        return Some(Fault::LineEnd);
    }
    let mut codings = request.headers.get_all(header::TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next() {
        if codings.next().is_some() || !coding.as_bytes().eq_ignore_ascii_case(b"chunked") {
            return Some(Fault::Coding);
        }
        // pingora has taken it out of the fields.
        if has_line(head, b"content-length") {
            return Some(Fault::TwoFramings);
        }
    }
    of_request(request)
}

/// What is wrong with a request of any version.
fn of_request(request: &RequestHeader) -> Option<Fault> {
    if !has_plain_length(&request.headers) {
        return Some(Fault::Length);
    }
    let authority = || request.uri.authority().map(|a| a.as_str().as_bytes());
    let mut hosts = request.headers.get_all(header::HOST).iter();
    let host = hosts.next().map(http::HeaderValue::as_bytes);
    if hosts.next().is_some() || !host.or_else(authority).is_some_and(is_host) {
        return Some(Fault::Host);
    }
    let target = request.raw_path();
    let begins = |with: &[u8]| {
        let start = target.get(..with.len());
        start.is_some_and(|start| start.eq_ignore_ascii_case(with))
    };
    if !target.starts_with(b"/") && !begins(b"http://") && !begins(b"https://") {
        return Some(Fault::Target);
    }
    let query = target.iter().position(|b| *b == b'?');
    let query = query.and_then(|at| target.get(at + 1..));
    query.is_some_and(names_a_method).then_some(Fault::Method)
}

/// Whether a line ends in `\n` alone. Without branches: the compiler makes vectors of it.
fn has_bare_line_feed(head: &[u8]) -> bool {
    let pairs = head.iter().zip(head.iter().skip(1));
    head.first() == Some(&b'\n')
        || pairs.fold(false, |bare, (before, b)| {
            bare | ((*b == b'\n') & (*before != b'\r'))
        })
}

/// Whether the raw head has a field of this name.
fn has_line(head: &[u8], name: &[u8]) -> bool {
    head.split(|b| *b == b'\n').skip(1).any(|line| {
        line.get(..name.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(name))
            && line.get(name.len()) == Some(&b':')
    })
}

/// Whether there is no length, or one that every server reads alike: no list, no sign, no zeros
/// before it, and in 63 bits.
fn has_plain_length(headers: &HeaderMap) -> bool {
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    let Some(length) = lengths.next().map(http::HeaderValue::as_bytes) else {
        return true;
    };
    lengths.next().is_none()
        && (1..=18).contains(&length.len())
        && length.iter().all(u8::is_ascii_digit)
        && (length.len() == 1 || !length.starts_with(b"0"))
}

/// Whether this is a host name or an address, with a port or without.
fn is_host(host: &[u8]) -> bool {
    let is_port = |port: &[u8]| {
        (1..=5).contains(&port.len())
            && std::str::from_utf8(port).is_ok_and(|port| {
                port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok()
            })
    };
    let (is_named, rest) = if host.starts_with(b"[") {
        let Some(end) = host.iter().position(|b| *b == b']') else {
            return false;
        };
        let (inside, rest) = (&host[1..end], &host[end + 1..]);
        let is_address = std::str::from_utf8(inside)
            .is_ok_and(|inside| inside.parse::<std::net::Ipv6Addr>().is_ok());
        (is_address, rest)
    } else {
        let end = host.iter().position(|b| *b == b':').unwrap_or(host.len());
        let (name, rest) = host.split_at(end);
        let is_plain = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_';
        let is_name = name.first().is_some_and(is_plain)
            && name.iter().all(|b| is_plain(b) || matches!(b, b'-' | b'.'))
            && !name.windows(2).any(|pair| pair == b"..");
        (is_name, rest)
    };
    is_named && (rest.is_empty() || rest.strip_prefix(b":").is_some_and(is_port))
}

/// Names in a query by which some frameworks take another method than the request line's.
const OTHER_METHODS: &[&[u8]] = &[
    b"_method",
    b"x-http-method",
    b"x-http-method-override",
    b"x-method-override",
];

/// Whether a query has such a name, escaped or not.
fn names_a_method(query: &[u8]) -> bool {
    query.split(|b| matches!(b, b'&' | b';')).any(|pair| {
        let name = pair.split(|b| *b == b'=').next().unwrap_or(pair);
        // Most names are none of these by their first letter.
        matches!(name.first(), Some(b'_' | b'x' | b'X' | b'%' | b'+'))
            && OTHER_METHODS.iter().any(|other| spells(name, other))
    })
}

/// Whether an escaped name is this one, but for case and blanks around it.
fn spells(name: &[u8], other: &[u8]) -> bool {
    let digit = |b: u8| char::from(b).to_digit(16);
    let mut at = 0;
    let decoded = std::iter::from_fn(|| {
        let b = *name.get(at)?;
        at += 1;
        if b == b'+' {
            return Some(b' ');
        }
        let escape = (name.get(at).copied(), name.get(at + 1).copied());
        let (b'%', (Some(high), Some(low))) = (b, escape) else {
            return Some(b);
        };
        let (Some(high), Some(low)) = (digit(high), digit(low)) else {
            return Some(b);
        };
        at += 2;
        u8::try_from(high << 4 | low).ok()
    });
    let is_blank = |b: &u8| matches!(b, 0..=b' ');
    let mut decoded = decoded.skip_while(is_blank);
    let begins = other
        .iter()
        .all(|b| decoded.next().is_some_and(|d| d.eq_ignore_ascii_case(b)));
    // PHP cuts `[` off, and what begins there.
    begins && decoded.find(|b| !is_blank(b)).is_none_or(|b| b == b'[')
}

#[cfg(test)]
mod tests;
