//! Whom trusted proxies call for: nobody to the left of an untrusted address is ever charged,
//! and nothing that a caller writes hides what its proxy adds.
#![no_main]

use std::net::{IpAddr, Ipv4Addr};

use floodgate::identity::address::{Client, Naming, client};
use ipnet::IpNet;
use libfuzzer_sys::fuzz_target;

const PEER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
const STRANGER: IpAddr = IpAddr::V4(Ipv4Addr::new(9, 9, 9, 9));
/// Entries that are looked at.
const MAX_HOPS: usize = 64;

fuzz_target!(|data: &[u8]| {
    let trusted: [IpNet; 2] = ["10.0.0.0/8", "fd00::/8"].map(|net| net.parse().expect("a net"));
    let Some((choice, header)) = data.split_first() else {
        return;
    };
    let naming = match choice % 2 {
        0 => Naming::XForwardedFor,
        _ => Naming::Forwarded,
    };
    let lines: Vec<&[u8]> = header.split(|b| *b == b'\n').collect();
    let named = |lines: &[&[u8]]| client(PEER, naming, lines.iter().copied(), &trusted);
    let found = named(&lines);
    assert_eq!(found.ip, found.ip.to_canonical());

    // Who is no trusted proxy says nothing.
    let alone = client(STRANGER, naming, lines.iter().copied(), &trusted);
    let itself = Client {
        ip: STRANGER,
        https: None,
    };
    assert_eq!(alone, itself);
    assert_eq!(client(PEER, naming, lines.iter().copied(), &[]).ip, PEER);

    // To the left of an untrusted address nothing counts.
    for from in (0..lines.len()).rev() {
        let right = named(&lines[from..]);
        if !trusted.iter().any(|net| net.contains(&right.ip)) {
            assert_eq!(right, found, "lines above {from} count");
            break;
        }
    }
    if let Some(second) = second(naming, &lines, &trusted) {
        assert_eq!(found, second, "the second reading");
    }

    // Two proxies behind anything, in its line and in lines of their own.
    let (ours, theirs): (&[u8], &[u8]) = match naming {
        Naming::XForwardedFor => (b"1.1.1.1", b"10.2.2.2"),
        Naming::Forwarded => (b"for=1.1.1.1;by=_x", b"for=\"[fd00::1]:80\";host=\"a,b\""),
    };
    let added = IpAddr::V4(Ipv4Addr::new(1, 1, 1, 1));
    let apart = [&lines, &[ours, theirs][..]].concat();
    assert_eq!(named(&apart).ip, added, "hidden in a line above");
    let together = [header, b", ", ours, b",", theirs].concat();
    let together: Vec<&[u8]> = together.split(|b| *b == b'\n').collect();
    assert_eq!(named(&together).ip, added, "hidden in the same line");
});

/// From left to right, by the grammar of RFC 7239; `None` where a line is not of it, and the
/// walk from the right may end anywhere.
fn second(naming: Naming, lines: &[&[u8]], trusted: &[IpNet]) -> Option<Client> {
    let mut hops: Vec<Option<Client>> = Vec::new();
    for line in lines {
        match naming {
            Naming::XForwardedFor => hops.extend(line.split(|b| *b == b',').map(by_list)),
            Naming::Forwarded => hops.extend(by_grammar(std::str::from_utf8(line).ok()?)?),
        }
    }
    let mut client = Client {
        ip: PEER,
        https: None,
    };
    for hop in hops.into_iter().rev().take(MAX_HOPS) {
        let Some(hop) = hop else { break };
        client = hop;
        if !trusted.iter().any(|net| net.contains(&client.ip)) {
            break;
        }
    }
    Some(client)
}

/// An entry of `X-Forwarded-For`.
fn by_list(entry: &[u8]) -> Option<Client> {
    let text = std::str::from_utf8(entry).ok()?;
    let text = text.trim_matches([' ', '\t']);
    let text = match text.len() >= 2 && text.starts_with('"') && text.ends_with('"') {
        true => &text[1..text.len() - 1],
        false => text,
    };
    let ip = node(text)?;
    Some(Client { ip, https: None })
}

/// The elements of a line of `Forwarded`.
fn by_grammar(line: &str) -> Option<Vec<Option<Client>>> {
    let mut elements = Vec::new();
    let mut pairs: Vec<(String, &str)> = Vec::new();
    let mut rest = line.trim_start_matches([' ', '\t']);
    loop {
        let name = rest.len() - rest.trim_start_matches(is_token).len();
        if name > 0 {
            let after = rest[name..].strip_prefix('=')?;
            let value = match after.starts_with('"') {
                true => quoted(after)?,
                false => after.len() - after.trim_start_matches(is_token).len(),
            };
            if value == 0 {
                return None;
            }
            pairs.push((rest[..name].to_ascii_lowercase(), &after[..value]));
            rest = &after[value..];
        }
        if let Some(after) = rest.strip_prefix(';') {
            rest = after;
            continue;
        }
        rest = rest.trim_start_matches([' ', '\t']);
        elements.push(element(&std::mem::take(&mut pairs)));
        match rest.strip_prefix(',') {
            Some(after) => rest = after.trim_start_matches([' ', '\t']),
            None => return rest.is_empty().then_some(elements),
        }
    }
}

fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

/// The length of a quoted string.
fn quoted(text: &str) -> Option<usize> {
    let mut is_escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            '"' => return Some(at + 1),
            _ => {}
        }
    }
    None
}

/// One `for`, and one `proto` at most.
fn element(pairs: &[(String, &str)]) -> Option<Client> {
    let one = |wanted: &str| -> Option<Option<&str>> {
        let mut values = pairs.iter().filter(|(name, _)| name == wanted);
        let first = values.next().map(|(_, value)| value.trim_matches('"'));
        values.next().is_none().then_some(first)
    };
    let ip = node(one("for")??)?;
    let https = one("proto")?.map(|proto| proto.eq_ignore_ascii_case("https"));
    Some(Client { ip, https })
}

/// An address, with or without a port.
fn node(text: &str) -> Option<IpAddr> {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    let is_port = |port: &str| match port.strip_prefix('_') {
        Some(name) => {
            let is_char = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            !name.is_empty() && name.chars().all(is_char)
        }
        None => !port.starts_with('+') && port.parse::<u16>().is_ok(),
    };
    if !port.is_none_or(is_port) {
        return None;
    }
    let ip = match host.strip_prefix('[') {
        Some(inside) => IpAddr::V6(inside.strip_suffix(']')?.parse().ok()?),
        None => host.parse().ok()?,
    };
    Some(ip.to_canonical())
}
