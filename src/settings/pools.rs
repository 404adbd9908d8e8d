//! Where admitted calls go, and how.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

/// One upstream: a host, and the addresses behind its name.
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
    /// The share of each of its addresses among the pool's.
    pub weight: u32,
    /// Whether HTTP/2 is spoken with it.
    pub http2: bool,
    /// The name to ask for and to check in TLS, where it is not the host.
    pub sni: Option<String>,
}

/// How the calls of a pool are spread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Balance {
    /// One after the other.
    #[default]
    RoundRobin,
    /// Where the fewest calls are in flight.
    LeastConnections,
    /// Calls of one app go to one address, as long as it is there.
    HashApp,
}

/// How upstreams are asked whether they are well.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Check {
    /// Not at all.
    #[default]
    Off,
    /// By a connection.
    Tcp,
    /// By a `GET` of this path, which must be answered 2xx or 3xx.
    Http(String),
}

/// How long a call may take on its way upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// Time to connect, to one address after another if there are more.
    pub connect: Duration,
    /// Time for the head of the answer; `None`: as `read`.
    pub first_byte: Option<Duration>,
    /// Time between two reads.
    pub read: Duration,
    /// Time between two writes.
    pub write: Duration,
    /// Time for the call as a whole.
    pub request: Option<Duration>,
}

impl Times {
    /// Time for the head of the answer.
    #[must_use]
    pub fn head(&self) -> Duration {
        self.first_byte.unwrap_or(self.read)
    }
}

/// How many calls a pool's upstreams may have at once: as many as their latency bears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Concurrency {
    /// The smallest limit.
    pub least: u32,
    /// The largest.
    pub most: u32,
    /// How much longer than with little to do an answer may take, in percent.
    pub slack_percent: u32,
    /// How often the latency of an upstream with little to do is measured anew.
    pub measure: Duration,
}

/// A word of the operator's, and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// The word.
    pub name: String,
    /// File and line.
    pub place: String,
}

/// Upstreams that stand in for each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolSettings {
    /// Its name, in metrics and log lines.
    pub name: String,
    /// Its upstreams.
    pub upstreams: Vec<Upstream>,
    /// How calls are spread over them.
    pub balance: Balance,
    /// Certificates (PEM) that vouch for them, instead of those for all pools.
    pub ca: Option<PathBuf>,
    /// How they are asked whether they are well.
    pub check: Check,
    /// How long a call may take.
    pub times: Times,
    /// How many calls they may have at once; `None`: as many as come.
    pub concurrency: Option<Concurrency>,
    /// Answers after which a call may be tried elsewhere.
    pub retry_on: RetryOn,
    /// The routes whose calls go there.
    pub routes: Vec<Named>,
    /// … the apps.
    pub apps: Vec<Named>,
    /// … the editions.
    pub editions: Vec<Named>,
}

/// After what a call with an idempotent method is tried again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RetryOn {
    /// These statuses.
    pub statuses: Vec<u16>,
    /// A connection that broke before the answer. A kept one that breaks has calls with a safe
    /// method sent again in any case.
    pub reset: bool,
}

/// What holds for the upstreams of all pools.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tending {
    /// How often names are looked up again; `None`: never.
    pub dns_interval: Option<Duration>,
    /// Whom to ask; the system where it is empty.
    pub dns_servers: Vec<SocketAddr>,
    /// How often an upstream is checked.
    pub check_interval: Duration,
    /// How long a check may take.
    pub check_timeout: Duration,
    /// Good checks in a row that bring one back.
    pub rise: u32,
    /// Bad ones that take it out.
    pub fall: u32,
    /// Calls that fail in a row until it is ejected; `None`: never.
    pub eject_after: Option<NonZeroU32>,
    /// How long, the first time.
    pub eject_time: Duration,
    /// Repeated calls, in percent of all of a pool.
    pub retry_budget: u32,
}

/// What `/ready` depends on, beside the gateway itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadyRequires {
    /// An upstream in each pool.
    pub upstream: bool,
    /// The counter store.
    pub store: bool,
}
