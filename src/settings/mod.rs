//! Process settings: listeners, upstreams, store, timeouts. Validated; see `cli::args` for how
//! they are written.

mod pools;
mod restart;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use crate::apps::UnknownApps;
use crate::identity::Auth;
use crate::identity::address::Naming;
use crate::limit::Mode;
use crate::store::redis::connect::{RedisOptions, Secret};

pub use self::pools::{
    Balance, Check, Concurrency, Named, PoolSettings, ReadyRequires, RetryOn, Tending, Times,
    Upstream,
};
pub use self::restart::RESTART;

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

/// One listening address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listen {
    /// Where.
    pub addr: SocketAddr,
    /// Whether callers speak TLS there.
    pub tls: bool,
    /// Whether each connection begins with a PROXY header.
    pub proxy_protocol: bool,
}

/// Whether callers must show a certificate of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientCertificates {
    /// One that is shown must be good.
    Optional,
    /// Nobody comes in without.
    Required,
}

/// Certificates of the TLS listeners.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsSettings {
    /// Chains and their keys (PEM); the first is for callers that ask for no name we have.
    pub pairs: Vec<(PathBuf, PathBuf)>,
    /// Certificates (PEM) that vouch for callers' own.
    pub client_ca: Option<PathBuf>,
    /// What of theirs is asked for, where there is such a file.
    pub client_certificates: ClientCertificates,
    /// Whether TLS 1.2 is refused.
    pub only_tls13: bool,
}

/// What becomes of plain HTTP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Https {
    /// Whether calls must come over HTTPS.
    pub only: bool,
    /// The port that `GET` and `HEAD` are sent to instead of being refused.
    pub redirect: Option<u16>,
    /// How long browsers shall remember to use HTTPS alone.
    pub hsts: Option<Duration>,
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
    pub listen: Vec<Listen>,
    /// Certificates, where a listener speaks TLS.
    pub tls: Option<TlsSettings>,
    /// What becomes of plain HTTP.
    pub https: Https,
    /// Where admitted calls go: the default pool, then those with users of their own.
    pub pools: Vec<PoolSettings>,
    /// How all of them are looked after.
    pub tending: Tending,
    /// What `/ready` depends on.
    pub ready_requires: ReadyRequires,
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
    /// Whether files are read again when they change.
    pub watch: bool,
    /// Files of known apps.
    pub apps: Vec<PathBuf>,
    /// What becomes of calls for other apps.
    pub unknown_apps: UnknownApps,
    /// The selected edition.
    pub edition: String,
    /// Where counters are kept.
    pub store: StoreSettings,
    /// Live counters the embedded store may hold.
    pub max_counters: usize,
    /// For how long a total is believed after it was imported or reconciled.
    pub plan_max_age: Duration,
    /// Where totals are kept that no shared store has.
    pub plan_file: Option<PathBuf>,
    /// Proxies that are believed whom they call for.
    pub trusted_proxies: Vec<IpNet>,
    /// The header in which they say it.
    pub client_ip_header: Naming,
    /// Length of the IPv6 prefix that counts as one address.
    pub ipv6_prefix: u8,
    /// What the bearer token of a call must be.
    pub auth: Auth,
    /// How long a token that the upstream has refused is refused here; `None`: not at all.
    pub bad_token_memory: Option<Duration>,
    /// Percent of a figure that the calls in flight of one address may hold with tokens that
    /// have not been seen good.
    pub unproven_share: u8,
    /// Whether limits of what calls may carry act; `None`: as the route files say.
    pub validate: Option<Mode>,
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
    /// Connections that may be open.
    pub max_connections: usize,
    /// … of one address, unless it is a trusted proxy's.
    pub max_connections_per_ip: Option<std::num::NonZeroU32>,
    /// Requests after which a connection is closed.
    pub max_requests_per_connection: Option<std::num::NonZeroU32>,
    /// Requests of one connection that may be handled at once (HTTP/2).
    pub max_streams: u32,
    /// The largest head of a request, in bytes.
    pub max_header_bytes: usize,
    /// The most fields in it.
    pub max_headers: usize,
    /// The longest target, in bytes.
    pub max_url: usize,
    /// The largest body of a call whose route has no figure of its own, in bytes.
    pub max_body: u64,
    /// Worker threads: one service of one thread each.
    pub threads: usize,
    /// Time in which a request's body must have arrived; in each such time at least 1 KiB/s of a
    /// body that is only forwarded and occupies no slot.
    pub body_timeout: Duration,
    /// Time in which a request's head must have arrived, from its first byte; also a handshake
    /// and a PROXY header.
    pub header_timeout: Duration,
    /// Each such time a caller that is slow to read takes 1 KiB/s of its answer.
    pub send_timeout: Duration,
    /// How long an idle downstream connection is kept.
    pub keepalive: Duration,
    /// How long after SIGTERM callers are still let in, while `/ready` fails.
    pub drain_delay: Duration,
    /// How long running requests may take to end after that.
    pub grace: Duration,
    /// Where a new process asks for the listening sockets; `None`: it cannot have them.
    pub upgrade_socket: Option<PathBuf>,
    /// Requests in flight above which new ones are shed (503).
    pub max_in_flight: usize,
    /// … of which so many may wait for the upstream's answer; further ones are shed.
    pub max_upstream_waiting: usize,
}
