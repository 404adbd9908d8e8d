//! Where the store is, and how it is spoken to: its URL and the settings beside it.

use std::fmt;
use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// A text that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Keeps `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text, for the one who must send it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// How the servers hang together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Topology {
    /// One server.
    Single,
    /// Sentinels that know which server is the master now.
    Sentinel {
        /// The name under which they watch it.
        master: String,
    },
    /// A Redis Cluster.
    Cluster,
}

/// How to reach the store, and how the gateways share it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedisOptions {
    /// How the servers hang together.
    pub topology: Topology,
    /// Host and port of the server, of the sentinels, or of some nodes of the cluster.
    pub nodes: Vec<(String, u16)>,
    /// Whether to speak TLS, to sentinels too.
    pub tls: bool,
    /// Certificates (PEM) that vouch for the servers, instead of the system's.
    pub ca: Option<PathBuf>,
    /// Our own certificate (PEM), for servers that ask for one.
    pub client_cert: Option<PathBuf>,
    /// Its key (PEM).
    pub client_key: Option<PathBuf>,
    /// ACL user; none: `default`.
    pub username: Option<String>,
    /// Its password.
    pub password: Option<Secret>,
    /// ACL user at the sentinels.
    pub sentinel_username: Option<String>,
    /// Its password.
    pub sentinel_password: Option<Secret>,
    /// Number of the database; 0 in a cluster.
    pub database: i64,
    /// What all keys begin with.
    pub prefix: String,
    /// How long a decision may wait for the store.
    pub timeout: Duration,
    /// Whether gateways may take units in advance.
    pub leases: bool,
    /// How long a slot outlives its gateway's last sign of life.
    pub slot_lease: Duration,
    /// Gateways to share with during an outage, at least.
    pub min_gateways: u32,
    /// Whether a server that may evict counters is accepted.
    pub allow_eviction: bool,
}

/// Why a store's URL is refused. Quotes nothing of it: a password may be anywhere in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UrlError {
    /// Not one of the schemes.
    #[error(
        "not a store; write memory, redis://host:port, redis-sentinel://host:port,host:port/master \
         or redis-cluster://host:port,host:port, with rediss in front for TLS"
    )]
    Scheme,
    /// No host, or one that cannot be.
    #[error("a host is missing or malformed; write redis://host:port, redis://[::1]:6379 for IPv6")]
    Host,
    /// A bad port.
    #[error("a port is not a number from 1 to 65535; in a password, write / : @ as %2F %3A %40")]
    Port,
    /// A bad database.
    #[error("the database is not a number; write redis://host:port/0")]
    Database,
    /// A database in a cluster.
    #[error("a cluster has no databases; write redis-cluster://host:port,host:port")]
    ClusterDatabase,
    /// Several hosts where one is meant.
    #[error("redis:// has one host; write redis-sentinel:// or redis-cluster:// for several")]
    ManyHosts,
    /// No name of the master.
    #[error("the master's name is missing; write redis-sentinel://host:port,host:port/master")]
    Master,
    /// A bad escape.
    #[error(
        "a % is not followed by two hexadecimal digits that make UTF-8; write a plain % as %25"
    )]
    Escape,
    /// A query or fragment.
    #[error("a store's URL has no ? or #; in a password, write them as %3F and %23")]
    Query,
}

impl RedisOptions {
    /// The options that a URL gives, with defaults for all else.
    ///
    /// # Errors
    /// When it is not a store's URL.
    pub fn parse(url: &str) -> Result<Self, UrlError> {
        let (scheme, rest) = url.split_once("://").ok_or(UrlError::Scheme)?;
        let scheme = scheme.to_ascii_lowercase();
        let (tls, kind) = match scheme.strip_prefix("rediss") {
            Some(kind) => (true, kind),
            None => (false, scheme.strip_prefix("redis").ok_or(UrlError::Scheme)?),
        };
        if rest.contains(['?', '#']) {
            return Err(UrlError::Query);
        }
        let (authority, path) = match rest.split_once('/') {
            Some((authority, path)) => (authority, path.strip_suffix('/').unwrap_or(path)),
            None => (rest, ""),
        };
        let (user, hosts) = match authority.rsplit_once('@') {
            Some((user, hosts)) => (user, hosts),
            None => ("", authority),
        };
        let (username, password) = match user.split_once(':') {
            Some((name, password)) => (name, Some(password)),
            None => (user, None),
        };
        let default_port = if kind == "-sentinel" { 26379 } else { 6379 };
        let nodes = hosts
            .split(',')
            .map(|host| node(host, default_port))
            .collect::<Result<Vec<_>, _>>()?;
        let (topology, database) = match kind {
            "" if nodes.len() > 1 => return Err(UrlError::ManyHosts),
            "" => (Topology::Single, database(path)?),
            "-sentinel" => {
                let (master, path) = path.split_once('/').unwrap_or((path, ""));
                if master.is_empty() {
                    return Err(UrlError::Master);
                }
                let master = unescape(master)?;
                (Topology::Sentinel { master }, database(path)?)
            }
            "-cluster" if database(path) == Ok(0) => (Topology::Cluster, 0),
            "-cluster" => return Err(UrlError::ClusterDatabase),
            _ => return Err(UrlError::Scheme),
        };
        let username = unescape(username)?;
        let password = password.map(unescape).transpose()?;
        Ok(Self {
            topology,
            nodes,
            tls,
            ca: None,
            client_cert: None,
            client_key: None,
            username: Some(username).filter(|name| !name.is_empty()),
            password: password.filter(|text| !text.is_empty()).map(Secret),
            sentinel_username: None,
            sentinel_password: None,
            database,
            prefix: "fg".to_owned(),
            timeout: Duration::from_millis(50),
            leases: true,
            slot_lease: Duration::from_secs(10),
            min_gateways: 1,
            allow_eviction: false,
        })
    }
}

impl FromStr for RedisOptions {
    type Err = UrlError;

    fn from_str(url: &str) -> Result<Self, UrlError> {
        Self::parse(url)
    }
}

/// Without its user and password: what may be printed.
impl fmt::Display for RedisOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.topology {
            Topology::Single => "",
            Topology::Sentinel { .. } => "-sentinel",
            Topology::Cluster => "-cluster",
        };
        let s = if self.tls { "s" } else { "" };
        write!(f, "redis{s}{kind}://")?;
        for (i, (host, port)) in self.nodes.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            match host.contains(':') {
                true => write!(f, "{comma}[{host}]:{port}")?,
                false => write!(f, "{comma}{host}:{port}")?,
            }
        }
        if let Topology::Sentinel { master } = &self.topology {
            write!(f, "/{master}")?;
        }
        match self.database {
            0 => Ok(()),
            database => write!(f, "/{database}"),
        }
    }
}

fn node(text: &str, default_port: u16) -> Result<(String, u16), UrlError> {
    let (host, port) = match text.strip_prefix('[') {
        Some(v6) => {
            let (host, port) = v6.split_once(']').ok_or(UrlError::Host)?;
            host.parse::<Ipv6Addr>().map_err(|_| UrlError::Host)?;
            let port = match port {
                "" => None,
                _ => Some(port.strip_prefix(':').ok_or(UrlError::Port)?),
            };
            (host, port)
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let bad = |c: char| c.is_whitespace() || c.is_control() || c == '[' || c == ']';
    if host.is_empty() || host.contains(bad) {
        return Err(UrlError::Host);
    }
    let port = match port {
        Some(port) => port.parse().map_err(|_| UrlError::Port)?,
        None => default_port,
    };
    match port {
        0 => Err(UrlError::Port),
        port => Ok((host.to_owned(), port)),
    }
}

fn database(text: &str) -> Result<i64, UrlError> {
    match text {
        "" => Ok(0),
        _ if text.bytes().all(|b| b.is_ascii_digit()) => {
            text.parse().map_err(|_| UrlError::Database)
        }
        _ => Err(UrlError::Database),
    }
}

fn unescape(text: &str) -> Result<String, UrlError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || {
            let digit = char::from(rest.next()?).to_digit(16)?;
            u8::try_from(digit).ok()
        };
        let (Some(high), Some(low)) = (digit(), digit()) else {
            return Err(UrlError::Escape);
        };
        bytes.push(high << 4 | low);
    }
    String::from_utf8(bytes).map_err(|_| UrlError::Escape)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> RedisOptions {
        url.parse().unwrap()
    }

    #[test]
    fn each_scheme_has_its_topology_and_port() {
        for (url, topology, tls, port) in [
            ("redis://a", Topology::Single, false, 6379),
            ("REDISS://a/", Topology::Single, true, 6379),
            ("redis-cluster://a", Topology::Cluster, false, 6379),
            ("rediss-cluster://a:7/0", Topology::Cluster, true, 7),
            (
                "redis-sentinel://a/m",
                Topology::Sentinel { master: "m".into() },
                false,
                26379,
            ),
            (
                "rediss-sentinel://a:9/m/0",
                Topology::Sentinel { master: "m".into() },
                true,
                9,
            ),
        ] {
            let options = parse(url);
            assert_eq!(options.topology, topology, "{url}");
            assert_eq!(options.tls, tls, "{url}");
            assert_eq!(options.nodes, [("a".to_owned(), port)], "{url}");
        }
    }

    #[test]
    fn user_password_and_database_are_read() {
        let options = parse("redis://us%65r:p%40s%2Fs@[::1]:1/3");
        assert_eq!(options.username.as_deref(), Some("user"));
        assert_eq!(options.password.unwrap().expose(), "p@s/s");
        assert_eq!(options.nodes, [("::1".to_owned(), 1)]);
        assert_eq!(options.database, 3);
        let options = parse("redis://:word@a");
        assert_eq!(options.username, None);
        assert_eq!(options.password.unwrap().expose(), "word");
        assert_eq!(parse("redis-sentinel://a,b:1/m/2").database, 2);
        assert_eq!(parse("redis-sentinel://a,b:1/m/2").nodes.len(), 2);
    }

    #[test]
    fn a_bad_url_is_told_what_is_wrong() {
        for (url, error) in [
            ("memroy", UrlError::Scheme),
            ("http://a", UrlError::Scheme),
            ("redis-other://a", UrlError::Scheme),
            ("redis://", UrlError::Host),
            ("redis://a b", UrlError::Host),
            ("redis://[x]:1", UrlError::Host),
            ("redis-cluster://a,", UrlError::Host),
            ("redis://a:x", UrlError::Port),
            ("redis://a:0", UrlError::Port),
            ("redis://user:pa/ss@a", UrlError::Port),
            ("redis://a:1/x", UrlError::Database),
            ("redis://a:1/-1", UrlError::Database),
            ("redis-cluster://a/1", UrlError::ClusterDatabase),
            ("redis://a,b", UrlError::ManyHosts),
            ("redis-sentinel://a", UrlError::Master),
            ("redis://u:%zz@a", UrlError::Escape),
            ("redis://u:%@a", UrlError::Escape),
            ("redis://u:%ff@a", UrlError::Escape),
            ("redis://a?db=1", UrlError::Query),
        ] {
            assert_eq!(RedisOptions::parse(url), Err(error), "{url}");
        }
    }

    #[test]
    fn a_password_is_never_printed() {
        let options = parse("rediss-sentinel://user:secret@a,b:1/m/2");
        assert!(!format!("{options:?}").contains("secret"));
        assert_eq!(
            options.to_string(),
            "rediss-sentinel://a:26379,b:1/m/2",
            "user and password are left out"
        );
    }
}
