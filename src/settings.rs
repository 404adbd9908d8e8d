//! Process settings: listeners, upstreams, store, timeouts. Validated; see `cli::args` for how
//! they are written.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use crate::identity::address::Naming;
use crate::store::redis::connect::{RedisOptions, Secret};

/// Form of the access log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line.
    #[default]
    Json,
    /// For eyes.
    Text,
}

/// Form of an error answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AnswerForm {
    /// The service's own five fields.
    #[default]
    Native,
    /// RFC 9457.
    Problem,
}

/// Which rate-limit header fields answers carry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RateLimitHeaders {
    /// `RateLimit-Policy` and `RateLimit`, draft-ietf-httpapi-ratelimit-headers-11.
    #[default]
    Draft11,
    /// `X-RateLimit-Limit`, `-Remaining`, `-Reset`.
    XRateLimit,
    /// None.
    Off,
}

/// One upstream address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// Whether to speak TLS.
    pub tls: bool,
    /// Host name (SNI, certificate check) or address literal.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Its addresses, resolved when the settings were loaded.
    pub addrs: Vec<SocketAddr>,
}

/// The per-IP shield before all counters (governor, GCRA). Off where `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shield {
    /// Requests per second and address.
    pub requests_per_s: Option<std::num::NonZeroU32>,
    /// Denied requests per second and address.
    pub denials_per_s: Option<std::num::NonZeroU32>,
}

/// Where counters are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "there is one in a process")]
pub enum StoreSettings {
    /// In this process.
    Memory,
    /// In a Redis that gateways share.
    Redis(RedisOptions),
}

/// Everything a process needs to know, valid.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where downstream connects; each listener is opened once per thread.
    pub listen: Vec<SocketAddr>,
    /// Where admitted calls go, round robin.
    pub upstreams: Vec<Upstream>,
    /// Certificates (PEM) that vouch for `https` upstreams, instead of the system's.
    pub upstream_ca: Option<PathBuf>,
    /// The admin listener: metrics, health, tasks.
    pub admin: SocketAddr,
    /// The token that changing counters there asks for; `None`: nobody may.
    pub admin_token: Option<Secret>,
    /// Whether all else there asks for it too, but for health.
    pub admin_token_for_all: bool,
    /// Host names by which it is called, beside those that no web page can have.
    pub admin_hosts: Vec<String>,
    /// Route files, later ones over earlier ones; empty: the shipped table.
    pub routes: Vec<PathBuf>,
    /// The selected edition.
    pub edition: String,
    /// Where counters are kept.
    pub store: StoreSettings,
    /// Live counters the embedded store may hold.
    pub max_counters: usize,
    /// Proxies that are believed whom they call for.
    pub trusted_proxies: Vec<IpNet>,
    /// The header in which they say it.
    pub client_ip_header: Naming,
    /// Length of the IPv6 prefix that counts as one address.
    pub ipv6_prefix: u8,
    /// Whether a call without a bearer token is refused.
    pub require_bearer: bool,
    /// Access log form.
    pub log: LogFormat,
    /// Whether to write the access log.
    pub access_log: bool,
    /// Form of error answers.
    pub answers: AnswerForm,
    /// Rate-limit header fields.
    pub ratelimit_headers: RateLimitHeaders,
    /// The shield.
    pub shield: Shield,
    /// HTTP/2 over clear text downstream.
    pub h2c: bool,
    /// Worker threads: one service of one thread each.
    pub threads: usize,
    /// Time to connect to the upstream, to one address after another if there are more.
    pub connect_timeout: Duration,
    /// Time between two reads from the upstream.
    pub read_timeout: Duration,
    /// Time between two writes to the upstream.
    pub write_timeout: Duration,
    /// Time in which a request's body must have arrived; in each such time at least 1 KiB/s of a
    /// body that is only forwarded and occupies no slot.
    pub body_timeout: Duration,
    /// How long an idle downstream connection is kept.
    pub keepalive: Duration,
    /// How long running requests may take to end after SIGTERM.
    pub grace: Duration,
    /// Requests in flight above which new ones are shed (503).
    pub max_in_flight: usize,
}
