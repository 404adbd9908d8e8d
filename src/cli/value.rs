//! Values as text, parsed. Every error says what to write.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;

use crate::settings::{Listen, Upstream};
use crate::spec::size;
use crate::store::redis::connect::{Secret, UrlError};

/// Why a value is refused, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ValueError {
    #[error("not a listening address; write 127.0.0.1:8080, [::1]:8080 or :8080")]
    Listen,
    #[error("{word:?} after the address; write tls, proxy-protocol or both{}", near_text(.near.as_deref()))]
    ListenWord { word: String, near: Option<String> },
    #[error("the port is missing; write {0}")]
    NoPort(String),
    #[error("an upstream needs http:// or https://; write http://{0}")]
    NoScheme(String),
    #[error("not an upstream; write http://host:port or https://host:port")]
    Upstream,
    #[error("an upstream has no path, query or user; write {0}")]
    UpstreamPath(String),
    #[error("{word:?} after the URL; write weight=1 to weight=100, http2 or sni=NAME{}", near_text(.near.as_deref()))]
    UpstreamWord { word: String, near: Option<String> },
    #[error("not off, tcp or a path; write a path from its slash, e.g. /health")]
    Check,
    #[error("not a status from 500 to 599, reset, or off alone")]
    RetryOn,
    #[error("nothing beside something else; write one of them")]
    Nothing,
    #[error("at {0} already; one pool each")]
    Taken(String),
    #[error("the pool of `upstream`; choose another name")]
    DefaultPool,
    #[error("not a name server; write its address, e.g. 10.0.0.53 or 10.0.0.53:5353")]
    NameServer,
    #[error("{host} cannot be resolved: {reason}")]
    Lookup { host: String, reason: String },
    #[error("not a network; write 10.0.0.0/8, 2001:db8::/32 or one address")]
    Network,
    #[error(
        "the gateway itself listens at {0}: a call would come back for ever; write where the backend is"
    )]
    Ourselves(SocketAddr),
    #[error("more than concurrency_max, which is {0}; write less, or raise that")]
    MoreThanMost(u32),
    #[error(
        "shorter than read_timeout, which is {}: an answer that has begun is not waited for longer \
         than one that has not; write that much or more, or lower read_timeout",
        human(*.0)
    )]
    FirstByte(Duration),
    #[error("not a time; write it with its unit, e.g. 500ms, 2s, 5min")]
    Time,
    #[error("not a time in whole days or hours, e.g. 180d, 1h")]
    Long,
    #[error("a TLS listener needs certificates; set tls_cert (and tls_key)")]
    NoCertificate,
    #[error("no listener speaks TLS; write listen = \"ADDRESS tls\"")]
    NoTlsListener,
    #[error(
        "{certs} in tls_cert and {keys} in tls_key; write one key for each, in the same order, or none"
    )]
    Pairs { certs: usize, keys: usize },
    #[error("a listener with proxy-protocol needs trusted_proxies: whom to believe")]
    NobodyTrusted,
    #[error("a time from {least} to 24h is needed")]
    TimeRange { least: &'static str },
    #[error("not a whole number from {least} to {most}")]
    Number { least: u64, most: u64 },
    #[error("not one of {}{}", .known.join(", "), near_text(.near.as_deref()))]
    Choice {
        known: Vec<&'static str>,
        near: Option<String>,
    },
    #[error("{}", size::WRITE)]
    Size,
    #[error("{0}")]
    Store(UrlError),
    #[error("not a prefix; write 1 to 32 letters, digits, '.', '_' or '-'")]
    Prefix,
    #[error("the callers' address too; choose another port")]
    AdminListens,
    #[error(
        "every app is unknown; name a file of known ones with --apps, or apps = [\"apps.toml\"]"
    )]
    NoApps,
    #[error("not a token; write 16 visible ASCII characters or more")]
    Token,
    #[error("there is no token to ask for; give admin_token_file too, or write changes")]
    AdminAuth,
    #[error("not a host name; write one without a port, like metrics.example.com")]
    Host,
    #[error("there twice")]
    Twice,
    #[error("empty")]
    Empty,
}

/// A time, as it is written.
fn human(time: Duration) -> String {
    match time.as_millis() {
        ms if ms % 1000 == 0 => format!("{}s", ms / 1000),
        ms => format!("{ms}ms"),
    }
}

fn near_text(near: Option<&str>) -> String {
    near.map_or_else(String::new, |near| format!("; did you mean {near}?"))
}

/// The known word that is closest to a misspelt one, if any is close.
pub(super) fn nearest<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    known
        .into_iter()
        .map(|known| (strsim::normalized_damerau_levenshtein(word, known), known))
        .filter(|(closeness, _)| *closeness >= 0.6)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, known)| known)
}

/// A bearer token: what a header can carry, and nobody guesses.
pub(super) fn token(text: &str) -> Result<Secret, ValueError> {
    let is_good = text.len() >= 16 && text.bytes().all(|byte| byte.is_ascii_graphic());
    is_good.then(|| Secret::new(text)).ok_or(ValueError::Token)
}

/// A host name, in lower case.
pub(super) fn host(text: &str) -> Result<String, ValueError> {
    let is_name = text
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'));
    is_name
        .then(|| text.to_ascii_lowercase())
        .ok_or(ValueError::Host)
}

/// An address to listen on.
pub(super) fn listen(text: &str) -> Result<SocketAddr, ValueError> {
    if let Ok(addr) = text.parse() {
        return Ok(addr);
    }
    if let Ok(ip) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
        return Err(ValueError::NoPort(SocketAddr::new(ip, 8080).to_string()));
    }
    let (host, port) = text.rsplit_once(':').unwrap_or(("", text));
    let ip = match host {
        "" | "*" => Ipv4Addr::UNSPECIFIED,
        "localhost" => Ipv4Addr::LOCALHOST,
        _ => return Err(ValueError::Listen),
    };
    port.parse()
        .map(|port| SocketAddr::new(ip.into(), port))
        .map_err(|_| ValueError::Listen)
}

/// A listening address, and what is spoken there.
pub(super) fn listener(text: &str) -> Result<Listen, ValueError> {
    const WORDS: [&str; 2] = ["tls", "proxy-protocol"];
    let mut words = text.split_ascii_whitespace();
    let mut listener = Listen {
        addr: listen(words.next().unwrap_or_default())?,
        tls: false,
        proxy_protocol: false,
    };
    for word in words {
        let said = match word {
            "tls" => &mut listener.tls,
            "proxy-protocol" => &mut listener.proxy_protocol,
            _ => {
                return Err(ValueError::ListenWord {
                    word: word.to_owned(),
                    near: nearest(word, WORDS).map(str::to_owned),
                });
            }
        };
        if std::mem::replace(said, true) {
            return Err(ValueError::Twice);
        }
    }
    Ok(listener)
}

/// A long time: whole days or hours.
pub(super) fn long(text: &str) -> Result<Duration, ValueError> {
    let hours = match (text.strip_suffix('d'), text.strip_suffix('h')) {
        (Some(days), _) => number::<u64>(days, 1, 36_500).map(|days| days * 24),
        (_, Some(hours)) => number::<u64>(hours, 1, 876_000),
        _ => Err(ValueError::Long),
    };
    let hours = hours.map_err(|_| ValueError::Long)?;
    Ok(Duration::from_secs(hours * 3600))
}

/// An upstream's scheme, host and port; not looked up.
pub(super) fn upstream(text: &str) -> Result<(bool, String, u16), ValueError> {
    let lower = text.to_ascii_lowercase();
    let (tls, rest) = if let Some(rest) = lower.strip_prefix("http://") {
        (false, rest)
    } else if let Some(rest) = lower.strip_prefix("https://") {
        (true, rest)
    } else if lower.contains("://") {
        return Err(ValueError::Upstream);
    } else {
        let host = lower.rsplit_once('@').map_or(&*lower, |(_, host)| host);
        return Err(ValueError::NoScheme(host.to_owned()));
    };
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    if let Some(end) = authority.find(['/', '?', '#', '@']) {
        let scheme = if tls { "https" } else { "http" };
        let host = match authority.rsplit_once('@') {
            Some((_, host)) => host.split(['/', '?', '#']).next().unwrap_or(host),
            None => &authority[..end],
        };
        return Err(ValueError::UpstreamPath(format!("{scheme}://{host}")));
    }
    let (host, port) = match authority.strip_prefix('[') {
        Some(v6) => {
            let (host, port) = v6.split_once(']').ok_or(ValueError::Upstream)?;
            host.parse::<std::net::Ipv6Addr>()
                .map_err(|_| ValueError::Upstream)?;
            match port {
                "" => (host, None),
                _ => (
                    host,
                    Some(port.strip_prefix(':').ok_or(ValueError::Upstream)?),
                ),
            }
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    let port = match port {
        Some(port) => port.parse().map_err(|_| ValueError::Upstream)?,
        None if tls => 443,
        None => 80,
    };
    let bad = |c: char| c.is_whitespace() || c.is_control();
    if host.is_empty() || host.contains(bad) || port == 0 {
        return Err(ValueError::Upstream);
    }
    Ok((tls, host.to_owned(), port))
}

/// An upstream, and the words after it; not looked up.
pub(super) fn upstream_with_words(text: &str) -> Result<Upstream, ValueError> {
    const WORDS: [&str; 3] = ["weight=", "http2", "sni="];
    // A URL with a space in it is no URL, and what follows a space no word of ours, most often.
    let mut words = text.split_ascii_whitespace();
    let (tls, host, port) = upstream(words.next().unwrap_or_default())?;
    let mut read = Upstream {
        tls,
        host,
        port,
        addrs: Vec::new(),
        weight: 0,
        http2: false,
        sni: None,
    };
    for word in words {
        let wrong = || ValueError::UpstreamWord {
            word: word.to_owned(),
            near: nearest(word, WORDS).map(str::to_owned),
        };
        let is_again = if let Some(weight) = word.strip_prefix("weight=") {
            let weight = number(weight, 1, 100).map_err(|_| wrong())?;
            std::mem::replace(&mut read.weight, weight) != 0
        } else if let Some(name) = word.strip_prefix("sni=") {
            read.sni.replace(sni(name)?).is_some()
        } else if word == "http2" {
            std::mem::replace(&mut read.http2, true)
        } else {
            return Err(wrong());
        };
        if is_again {
            return Err(ValueError::Twice);
        }
    }
    read.weight = read.weight.max(1);
    Ok(read)
}

/// A name for TLS.
pub(super) fn sni(text: &str) -> Result<String, ValueError> {
    match text {
        "" => Err(ValueError::Empty),
        _ => host(text),
    }
}

/// A name server's address; port 53 unless it says another.
pub(super) fn name_server(text: &str) -> Result<SocketAddr, ValueError> {
    text.parse::<SocketAddr>()
        .or_else(|_| text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53)))
        .map_err(|_| ValueError::NameServer)
}

/// A network, or one address.
pub(super) fn network(text: &str) -> Result<IpNet, ValueError> {
    text.parse::<IpNet>()
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
        .map(|net| net.trunc())
        .map_err(|_| ValueError::Network)
}

/// A time with its unit, from `least` to a day.
pub(super) fn time(
    text: &str,
    (least, least_text): (Duration, &'static str),
) -> Result<Duration, ValueError> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit_ms: u64 = match unit.trim_start() {
        "ms" => 1,
        "s" => 1000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        _ => return Err(ValueError::Time),
    };
    let number: u64 = number.parse().map_err(|_| ValueError::Time)?;
    let time = Duration::from_millis(number.saturating_mul(unit_ms));
    if time < least || time > Duration::from_secs(86_400) {
        return Err(ValueError::TimeRange { least: least_text });
    }
    Ok(time)
}

/// A whole number; `_` may group its digits.
pub(super) fn number<T: TryFrom<u64>>(text: &str, least: u64, most: u64) -> Result<T, ValueError> {
    let wrong = ValueError::Number { least, most };
    let digits = text.replace('_', "");
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(wrong);
    }
    match digits.parse::<u64>() {
        Ok(n) if (least..=most).contains(&n) => T::try_from(n).map_err(|_| wrong),
        _ => Err(wrong),
    }
}

/// A size of a body, in bytes.
pub(super) fn size(text: &str) -> Result<u64, ValueError> {
    size::parse(text).ok_or(ValueError::Size)
}

/// What keys begin with. Braces would choose the cluster node of every key.
pub(super) fn prefix(text: &str) -> Result<String, ValueError> {
    let is_good = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    match (1..=32).contains(&text.len()) && text.bytes().all(is_good) {
        true => Ok(text.to_owned()),
        false => Err(ValueError::Prefix),
    }
}

/// One of a few words.
pub(super) fn choice<T: Clone>(text: &str, known: &[(&'static str, T)]) -> Result<T, ValueError> {
    match known.iter().find(|(word, _)| *word == text) {
        Some((_, value)) => Ok(value.clone()),
        None => Err(ValueError::Choice {
            known: known.iter().map(|(word, _)| *word).collect(),
            near: nearest(text, known.iter().map(|(word, _)| *word)).map(str::to_owned),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_port_listens_on_all_interfaces() {
        for text in [":8080", "8080", "0.0.0.0:8080", "*:8080"] {
            assert_eq!(listen(text), Ok(([0, 0, 0, 0], 8080).into()), "{text}");
        }
        assert_eq!(listen("localhost:1"), Ok(([127, 0, 0, 1], 1).into()));
        assert_eq!(listen("[::1]:80").map(|a| a.is_ipv6()), Ok(true));
    }

    #[test]
    fn a_listener_says_what_is_spoken_there() {
        let spoken = |text| listener(text).map(|l| (l.tls, l.proxy_protocol));
        assert_eq!(spoken(":1"), Ok((false, false)));
        assert_eq!(spoken(":1 tls"), Ok((true, false)));
        assert_eq!(spoken(":1  proxy-protocol tls"), Ok((true, true)));
        assert_eq!(spoken(":1 tls tls"), Err(ValueError::Twice));
        assert_eq!(spoken("tls"), Err(ValueError::Listen));
        assert_eq!(spoken(""), Err(ValueError::Listen));
        assert_eq!(
            listener(":1 proxy-protcol").unwrap_err().to_string(),
            "\"proxy-protcol\" after the address; write tls, proxy-protocol or both; \
             did you mean proxy-protocol?"
        );
    }

    #[test]
    fn a_long_time_has_days() {
        assert_eq!(long("180d"), Ok(Duration::from_secs(180 * 86_400)));
        assert_eq!(long("1h"), Ok(Duration::from_secs(3600)));
        for text in ["", "1", "0d", "1s", "d", "99999999999999999999d"] {
            assert_eq!(long(text), Err(ValueError::Long), "{text}");
        }
    }

    #[test]
    fn an_address_without_a_port_is_told_one() {
        assert_eq!(
            listen("10.0.0.1"),
            Err(ValueError::NoPort("10.0.0.1:8080".into()))
        );
        assert_eq!(listen("::1"), Err(ValueError::NoPort("[::1]:8080".into())));
        assert_eq!(listen("example.com:80"), Err(ValueError::Listen));
        assert_eq!(listen("127.0.0.1:99999"), Err(ValueError::Listen));
        assert_eq!(listen(""), Err(ValueError::Listen));
    }

    #[test]
    fn an_upstream_has_the_port_of_its_scheme() {
        assert_eq!(upstream("http://a"), Ok((false, "a".into(), 80)));
        assert_eq!(
            upstream("https://A.example/"),
            Ok((true, "a.example".into(), 443))
        );
        assert_eq!(upstream("http://[::1]:81"), Ok((false, "::1".into(), 81)));
        assert_eq!(upstream("https://[::1]"), Ok((true, "::1".into(), 443)));
    }

    #[test]
    fn an_upstream_is_told_what_to_write() {
        assert_eq!(upstream("a:80"), Err(ValueError::NoScheme("a:80".into())));
        assert_eq!(
            upstream("http://u:p@a:80/x"),
            Err(ValueError::UpstreamPath("http://a:80".into()))
        );
        assert_eq!(
            upstream("https://a/x?y"),
            Err(ValueError::UpstreamPath("https://a".into()))
        );
        for text in [
            "ftp://a",
            "http://",
            "http://a:",
            "http://a:0",
            "http://[x]",
            "http://[::1]81",
            "http://a b",
        ] {
            assert_eq!(upstream(text), Err(ValueError::Upstream), "{text}");
        }
    }

    #[test]
    fn an_upstream_has_options_after_its_url() {
        let read = |text| upstream_with_words(text).map(|u| (u.weight, u.http2, u.sni));
        assert_eq!(read("http://a:80"), Ok((1, false, None)));
        assert_eq!(
            read("https://a weight=3  http2 sni=B.example"),
            Ok((3, true, Some("b.example".into())))
        );
        assert_eq!(read("http://a http2 http2"), Err(ValueError::Twice));
        assert_eq!(read("http://a sni="), Err(ValueError::Empty));
        assert_eq!(
            read("http://a wieght=3").unwrap_err().to_string(),
            "\"wieght=3\" after the URL; write weight=1 to weight=100, http2 or sni=NAME; did you \
             mean weight=?"
        );
        for text in ["http://a weight=0", "http://a weight=101", "http://a b"] {
            let error = read(text).unwrap_err();
            assert!(matches!(error, ValueError::UpstreamWord { .. }), "{text}");
        }
    }

    #[test]
    fn a_name_server_has_the_port_of_dns() {
        assert_eq!(name_server("10.0.0.53"), Ok(([10, 0, 0, 53], 53).into()));
        assert_eq!(name_server("127.0.0.1:5"), Ok(([127, 0, 0, 1], 5).into()));
        assert_eq!(name_server("dns.local"), Err(ValueError::NameServer));
    }

    #[test]
    fn a_time_needs_its_unit() {
        let least = (Duration::from_millis(1), "1ms");
        assert_eq!(time("500ms", least), Ok(Duration::from_millis(500)));
        assert_eq!(time("2 s", least), Ok(Duration::from_secs(2)));
        assert_eq!(time("5min", least), Ok(Duration::from_secs(300)));
        for text in ["2", "s", "-1s", "1.5s", "2 weeks", ""] {
            assert_eq!(time(text, least), Err(ValueError::Time), "{text}");
        }
        for text in ["0s", "25h", "99999999999999999h"] {
            assert_eq!(
                time(text, least),
                Err(ValueError::TimeRange { least: "1ms" })
            );
        }
    }

    #[test]
    fn a_number_stays_in_its_range() {
        assert_eq!(number::<usize>("1_000", 1, 2000), Ok(1000));
        for text in [
            "0",
            "2001",
            "-1",
            "x",
            "",
            "_",
            "1e3",
            "+5",
            "99999999999999999999",
        ] {
            assert!(number::<usize>(text, 1, 2000).is_err(), "{text}");
        }
        assert!(number::<u8>("300", 1, 2000).is_err());
    }

    #[test]
    fn a_misspelt_choice_is_told_the_near_one() {
        let error = choice("probelm", &[("native", 1), ("problem", 2)]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "not one of native, problem; did you mean problem?"
        );
    }

    #[test]
    fn a_bare_address_is_a_network_of_one() {
        assert_eq!(network("10.0.0.1").unwrap().to_string(), "10.0.0.1/32");
        assert_eq!(network("10.1.2.3/8").unwrap().to_string(), "10.0.0.0/8");
        assert!(network("10.0.0.0/33").is_err());
    }
}
