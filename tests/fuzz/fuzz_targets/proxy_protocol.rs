//! The PROXY protocol's header: what has been read once stays read, and a second reading of
//! what is whole.
#![no_main]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use floodgate::identity::proxy_protocol::{MAX_HEADER, Progress, ProxyError, read};
use libfuzzer_sys::fuzz_target;

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

fuzz_target!(|data: &[u8]| {
    let whole = read(data);
    prefixes(data, whole);
    match whole {
        Ok(Progress::More) => assert!(data.len() < MAX_HEADER, "it waits for ever"),
        Ok(Progress::Done { length, source }) => {
            assert!(length <= data.len() && length <= MAX_HEADER);
            assert_eq!(read(&data[..length]), whole, "the bytes behind it count");
            let second = match data.strip_prefix(SIGNATURE) {
                Some(rest) => second_v2(rest),
                None => second_v1(&data[..length]),
            };
            assert_eq!(second, Some(source), "another source");
        }
        Err(error) => {
            let is_ours = data.starts_with(SIGNATURE) || data.starts_with(b"PROXY ");
            assert_eq!(is_ours, error != ProxyError::Missing);
        }
    }
    written(data);
});

/// A shorter piece waits for more, until the verdict; then nothing changes it.
fn prefixes(data: &[u8], whole: Result<Progress, ProxyError>) {
    let mut verdict = None;
    for end in 0..=data.len().min(300) {
        let read = read(&data[..end]);
        match verdict {
            None if read == Ok(Progress::More) => {}
            None => verdict = Some(read),
            Some(verdict) => assert_eq!(read, verdict, "after {end} bytes"),
        }
    }
    match verdict {
        Some(verdict) => assert_eq!(whole, verdict),
        None => assert!(data.len() > 300 || whole == Ok(Progress::More)),
    }
}

fn second_v1(line: &[u8]) -> Option<Option<SocketAddr>> {
    let line = std::str::from_utf8(line).ok()?.strip_suffix("\r\n")?;
    let words: Vec<&str> = line.split(' ').collect();
    let source = match *words.as_slice() {
        ["PROXY", "UNKNOWN", ..] => return Some(None),
        ["PROXY", "TCP4", source, target, from, to] => {
            let (ip, _) = (
                source.parse::<Ipv4Addr>().ok()?,
                target.parse::<Ipv4Addr>().ok()?,
            );
            (IpAddr::V4(ip), from, to)
        }
        ["PROXY", "TCP6", source, target, from, to] => {
            let (ip, _) = (
                source.parse::<Ipv6Addr>().ok()?,
                target.parse::<Ipv6Addr>().ok()?,
            );
            (IpAddr::V6(ip), from, to)
        }
        _ => return None,
    };
    let port = |text: &str| {
        let port = text.parse::<u16>().ok()?;
        (port.to_string() == text).then_some(port)
    };
    port(source.2)?;
    Some(Some(SocketAddr::new(
        source.0.to_canonical(),
        port(source.1)?,
    )))
}

fn second_v2(rest: &[u8]) -> Option<Option<SocketAddr>> {
    let (&[command, family, high, low], rest) = rest.split_first_chunk::<4>()?;
    let rest = rest.get(..usize::from(high) * 256 + usize::from(low))?;
    let number = |bytes: &[u8]| bytes.iter().fold(0_u128, |n, b| n << 8 | u128::from(*b));
    let (ip, port): (IpAddr, u128) = match (command, family) {
        (0x20, _) | (0x21, 0) => return Some(None),
        (0x21, 0x11) => {
            let ip = Ipv4Addr::from(u32::try_from(number(rest.get(..4)?)).ok()?);
            (ip.into(), number(rest.get(..12)?.get(8..10)?))
        }
        (0x21, 0x21) => {
            let ip = Ipv6Addr::from(number(rest.get(..16)?));
            (ip.into(), number(rest.get(..36)?.get(32..34)?))
        }
        _ => return None,
    };
    let port = u16::try_from(port).ok()?;
    Some(Some(SocketAddr::new(ip.to_canonical(), port)))
}

/// What a balancer writes of any connection is read back.
fn written(data: &[u8]) {
    let Some((bytes, rest)) = data.split_first_chunk::<36>() else {
        return;
    };
    let port = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    let ip4 = |at: usize| Ipv4Addr::new(bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]);
    let ip6 = |at: usize| {
        let bytes = bytes[at..at + 16].try_into().expect("16 bytes");
        Ipv6Addr::from_bits(u128::from_be_bytes(bytes))
    };
    let value = &rest[..rest.len().min(MAX_HEADER - 16 - 36 - 3)];
    let length = u16::try_from(value.len()).expect("it is bounded");
    let extras = [&[bytes[0]][..], &length.to_be_bytes(), value].concat();
    let v1 = |family: &str, source: IpAddr, target: IpAddr, from: u16, to: u16| {
        let line = format!("PROXY {family} {source} {target} {from} {to}\r\n");
        is_read(line.as_bytes(), rest, source, from);
    };
    v1("TCP4", ip4(0).into(), ip4(4).into(), port(8), port(10));
    v1("TCP6", ip6(0).into(), ip6(16).into(), port(32), port(34));
    for (family, length, source, from) in [
        (0x11, 12, IpAddr::from(ip4(0)), port(8)),
        (0x21, 36, IpAddr::from(ip6(0)), port(32)),
    ] {
        let told = u16::try_from(length + extras.len()).expect("it is bounded");
        let mut header = [SIGNATURE, &[0x21, family]].concat();
        header.extend(told.to_be_bytes());
        header.extend(&bytes[..length]);
        header.extend(&extras);
        is_read(&header, rest, source, from);
    }
}

fn is_read(header: &[u8], rest: &[u8], ip: IpAddr, port: u16) {
    let done = Progress::Done {
        length: header.len(),
        source: Some(SocketAddr::new(ip.to_canonical(), port)),
    };
    assert_eq!(read(&[header, rest].concat()), Ok(done));
}
