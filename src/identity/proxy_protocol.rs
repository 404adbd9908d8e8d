//! The PROXY protocol's header, versions 1 and 2: what a balancer says of the connection that it
//! passes on, before the connection's own first byte.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

/// The longest header that is read, in bytes. Version 1 has 107 at most, version 2 with the
/// usual extras some hundreds; its length field would allow 65,551.
pub const MAX_HEADER: usize = 2048;

const V2_SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
const V2_FIXED: usize = 16;
const V1_MAX: usize = 107;

/// How far a header has been read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// More bytes are needed.
    More,
    /// The header is whole.
    Done {
        /// Its length in bytes; the connection's own bytes follow.
        length: usize,
        /// Who connected. `None`: the balancer itself (`LOCAL`), or it does not know.
        source: Option<SocketAddr>,
    },
}

/// Why bytes are no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProxyError {
    /// It begins otherwise.
    #[error("no PROXY header")]
    Missing,
    /// It begins so, and goes on otherwise.
    #[error("a malformed PROXY header")]
    Malformed,
    /// Longer than [`MAX_HEADER`].
    #[error("a PROXY header that is too long")]
    TooLong,
}

/// Reads a header from a connection's first bytes.
///
/// # Errors
/// [`ProxyError`]: the connection must be closed. Nothing it says may be believed.
pub fn read(bytes: &[u8]) -> Result<Progress, ProxyError> {
    let begins = |start: &[u8]| {
        let n = bytes.len().min(start.len());
        bytes[..n] == start[..n]
    };
    if begins(V2_SIGNATURE) {
        return read_v2(bytes);
    }
    if begins(b"PROXY ") {
        return read_v1(bytes);
    }
    Err(ProxyError::Missing)
}

fn read_v1(bytes: &[u8]) -> Result<Progress, ProxyError> {
    let Some(end) = bytes.iter().take(V1_MAX).position(|b| *b == b'\n') else {
        return match bytes.len() >= V1_MAX {
            true => Err(ProxyError::Malformed),
            false => Ok(Progress::More),
        };
    };
    let line = bytes[..end]
        .strip_suffix(b"\r")
        .and_then(|line| std::str::from_utf8(line).ok())
        .ok_or(ProxyError::Malformed)?;
    let length = end + 1;
    let mut words = line.split(' ').skip(1);
    let family = words.next();
    if family == Some("UNKNOWN") {
        // Whatever follows is to be ignored.
        return Ok(Progress::Done {
            length,
            source: None,
        });
    }
    let mut word = || words.next().ok_or(ProxyError::Malformed);
    let (source, target) = (word()?, word()?);
    let (source_port, target_port) = (word()?, word()?);
    if words.next().is_some() {
        return Err(ProxyError::Malformed);
    }
    port(target_port)?;
    let ip = match family {
        Some("TCP4") => address::<Ipv4Addr>(source, target)?,
        Some("TCP6") => address::<Ipv6Addr>(source, target)?,
        _ => return Err(ProxyError::Malformed),
    };
    Ok(Progress::Done {
        length,
        source: Some(SocketAddr::new(ip, port(source_port)?)),
    })
}

/// The first of two addresses of one family.
fn address<A: FromStr + Into<IpAddr>>(source: &str, target: &str) -> Result<IpAddr, ProxyError> {
    match (source.parse::<A>(), target.parse::<A>()) {
        (Ok(source), Ok(_)) => Ok(source.into().to_canonical()),
        _ => Err(ProxyError::Malformed),
    }
}

/// Decimal digits, without a sign and without leading zeros.
fn port(text: &str) -> Result<u16, ProxyError> {
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    match text.parse() {
        Ok(port) if plain => Ok(port),
        _ => Err(ProxyError::Malformed),
    }
}

fn read_v2(bytes: &[u8]) -> Result<Progress, ProxyError> {
    let Some(fixed) = bytes.get(..V2_FIXED) else {
        return Ok(Progress::More);
    };
    let (version_command, family) = (fixed[12], fixed[13]);
    if version_command >> 4 != 2 {
        return Err(ProxyError::Malformed);
    }
    let length = V2_FIXED + usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    if length > MAX_HEADER {
        return Err(ProxyError::TooLong);
    }
    let Some(rest) = bytes.get(V2_FIXED..length) else {
        return Ok(Progress::More);
    };
    let source = match version_command & 0x0f {
        0 => None,
        1 => source_v2(family, rest)?,
        _ => return Err(ProxyError::Malformed),
    };
    Ok(Progress::Done { length, source })
}

fn source_v2(family: u8, rest: &[u8]) -> Result<Option<SocketAddr>, ProxyError> {
    let port = |at: usize| match rest.get(at..at + 2) {
        Some([high, low]) => Ok(u16::from_be_bytes([*high, *low])),
        _ => Err(ProxyError::Malformed),
    };
    match family {
        // TCP over IPv4: two addresses, two ports.
        0x11 => {
            let all = rest.first_chunk::<12>().ok_or(ProxyError::Malformed)?;
            extras(rest.get(12..).unwrap_or_default())?;
            let ip = Ipv4Addr::new(all[0], all[1], all[2], all[3]);
            Ok(Some(SocketAddr::new(ip.into(), port(8)?)))
        }
        // TCP over IPv6.
        0x21 => {
            rest.first_chunk::<36>().ok_or(ProxyError::Malformed)?;
            extras(rest.get(36..).unwrap_or_default())?;
            let ip = rest.first_chunk::<16>().ok_or(ProxyError::Malformed)?;
            let ip = IpAddr::from(Ipv6Addr::from(*ip)).to_canonical();
            Ok(Some(SocketAddr::new(ip, port(32)?)))
        }
        // Not told: as `LOCAL`.
        0x00 => Ok(None),
        _ => Err(ProxyError::Malformed),
    }
}

/// What follows the addresses is not used, but has its form: a type, a length, so many bytes.
fn extras(mut rest: &[u8]) -> Result<(), ProxyError> {
    while !rest.is_empty() {
        let [_, high, low, value @ ..] = rest else {
            return Err(ProxyError::Malformed);
        };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        rest = value.get(length..).ok_or(ProxyError::Malformed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn done(text: &str) -> Option<SocketAddr> {
        match read(text.as_bytes()) {
            Ok(Progress::Done { length, source }) => {
                assert_eq!(length, text.find('\n').unwrap() + 1);
                source
            }
            other => panic!("{text:?}: {other:?}"),
        }
    }

    fn v2(version_command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let mut bytes = V2_SIGNATURE.to_vec();
        bytes.extend([version_command, family]);
        bytes.extend(u16::try_from(rest.len()).unwrap().to_be_bytes());
        bytes.extend(rest);
        bytes
    }

    #[test]
    fn version_1_names_who_connected() {
        let v4 = done("PROXY TCP4 1.2.3.4 5.6.7.8 4711 443\r\nGET /");
        assert_eq!(v4, Some("1.2.3.4:4711".parse().unwrap()));
        let v6 = done("PROXY TCP6 2001:db8::1 ::1 1 443\r\n");
        assert_eq!(v6, Some("[2001:db8::1]:1".parse().unwrap()));
        let mapped = done("PROXY TCP6 ::ffff:1.2.3.4 ::1 1 443\r\n");
        assert_eq!(mapped, Some("1.2.3.4:1".parse().unwrap()));
        assert_eq!(done("PROXY UNKNOWN\r\n"), None);
        assert_eq!(done("PROXY UNKNOWN ff:: ::1 1 2\r\n"), None);
    }

    #[test]
    fn version_1_is_read_strictly() {
        for text in [
            "PROXY TCP4 1.2.3.4 5.6.7.8 4711\r\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 4711 443 1\r\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 4711 443\n",
            "PROXY TCP4 1.2.3.4  5.6.7.8 4711 443\r\n",
            "PROXY TCP4 01.2.3.4 5.6.7.8 4711 443\r\n",
            "PROXY TCP4 ::1 ::1 4711 443\r\n",
            "PROXY TCP6 1.2.3.4 5.6.7.8 4711 443\r\n",
            "PROXY TCP4 1.2.3.4 x 4711 443\r\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 +1 443\r\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 65536 443\r\n",
            "PROXY TCP4 1.2.3.4 5.6.7.8 080 443\r\n",
            "PROXY UDP4 1.2.3.4 5.6.7.8 1 443\r\n",
            "PROXY \r\n",
        ] {
            assert_eq!(read(text.as_bytes()), Err(ProxyError::Malformed), "{text}");
        }
        let endless = format!("PROXY TCP4 {}", "1".repeat(200));
        assert_eq!(read(endless.as_bytes()), Err(ProxyError::Malformed));
    }

    #[test]
    fn version_2_names_who_connected() {
        let v4 = [1, 2, 3, 4, 5, 6, 7, 8, 0x12, 0x67, 1, 187];
        let mut bytes = v2(0x21, 0x11, &v4);
        let length = bytes.len();
        bytes.extend(b"GET /");
        let source = Some("1.2.3.4:4711".parse().unwrap());
        assert_eq!(read(&bytes), Ok(Progress::Done { length, source }));

        let mut v6 = [0; 36];
        v6[15] = 1;
        v6[33] = 7;
        let with_extras = [&v6[..], &[4, 0, 1, 0]].concat();
        let bytes = v2(0x21, 0x21, &with_extras);
        let source = Some("[::1]:7".parse().unwrap());
        let length = bytes.len();
        assert_eq!(read(&bytes), Ok(Progress::Done { length, source }));
    }

    #[test]
    fn version_2_may_speak_for_the_balancer_itself() {
        for (command, family) in [(0x20, 0x00), (0x20, 0x11), (0x21, 0x00)] {
            let bytes = v2(command, family, &[]);
            let length = bytes.len();
            let source = None;
            assert_eq!(read(&bytes), Ok(Progress::Done { length, source }));
        }
    }

    #[test]
    fn version_2_is_read_strictly() {
        for bytes in [
            v2(0x11, 0x11, &[0; 12]),
            v2(0x22, 0x11, &[0; 12]),
            v2(0x21, 0x11, &[0; 11]),
            v2(0x21, 0x11, &[&[1; 12][..], &[4, 0xFF, 0xFF]].concat()),
            v2(0x21, 0x11, &[&[1; 12][..], &[4, 0]].concat()),
            v2(0x21, 0x21, &[&[1; 36][..], &[4, 0, 2, 0]].concat()),
            v2(0x21, 0x21, &[0; 35]),
            v2(0x21, 0x12, &[0; 12]),
            v2(0x21, 0x31, &[0; 216]),
        ] {
            assert_eq!(read(&bytes), Err(ProxyError::Malformed));
        }
        assert_eq!(read(&v2(0x21, 0x11, &[0; 4000])), Err(ProxyError::TooLong));
    }

    #[test]
    fn half_a_header_waits_for_the_rest_and_anything_else_is_none() {
        let text = b"PROXY TCP4 1.2.3.4 5.6.7.8 4711 443\r\n";
        let binary = v2(0x21, 0x11, &[0; 12]);
        for whole in [&text[..], &binary] {
            for end in 0..whole.len() {
                assert_eq!(read(&whole[..end]), Ok(Progress::More), "{end}");
            }
        }
        for other in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"\x16\x03\x01",
            b"PROXX",
            b"\r\n\r\nx",
        ] {
            assert_eq!(read(other), Err(ProxyError::Missing));
        }
    }
}
