//! Names of upstreams, looked up: never on a thread that serves calls.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use tokio::time::{MissedTickBehavior, interval};

use super::Upstreams;

/// How long a server may take to answer, and how often it is asked.
const PATIENCE: Duration = Duration::from_secs(2);
const ATTEMPTS: usize = 2;

/// Who knows addresses.
#[expect(clippy::large_enum_variant, reason = "there is one in a process")]
enum Names {
    /// The system, as it is asked by all else on the host.
    System,
    /// Servers of the operator's.
    Servers(TokioResolver),
}

impl Names {
    fn new(servers: &[SocketAddr]) -> Result<Self, String> {
        if servers.is_empty() {
            return Ok(Self::System);
        }
        let server = |addr: &SocketAddr| {
            let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()];
            let connections = connections.map(|mut connection| {
                connection.port = addr.port();
                connection
            });
            NameServerConfig::new(addr.ip(), false, connections.to_vec())
        };
        let config = ResolverConfig::from_name_servers(servers.iter().map(server).collect());
        let mut options = ResolverOpts::default();
        options.timeout = PATIENCE;
        options.attempts = ATTEMPTS;
        // How often to ask is ours to say.
        options.cache_size = 0;
        options.use_hosts_file = ResolveHosts::Never;
        TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
            .with_options(options)
            .build()
            .map(Self::Servers)
            .map_err(|error| error.to_string())
    }

    /// The addresses of a host, in order.
    async fn look_up(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, String> {
        let mut addrs: Vec<SocketAddr> = match self {
            Self::System => tokio::net::lookup_host((host, port))
                .await
                .map_err(|error| error.to_string())?
                .collect(),
            Self::Servers(resolver) => resolver
                .lookup_ip(host)
                .await
                .map_err(|error| error.to_string())?
                .iter()
                .map(|ip| SocketAddr::new(ip, port))
                .collect(),
        };
        addrs.sort_unstable();
        addrs.dedup();
        match addrs.is_empty() {
            true => Err("it has no address".to_owned()),
            false => Ok(addrs),
        }
    }
}

/// The addresses of a host, before anything is served.
///
/// # Errors
/// Why there is none.
pub(crate) fn look_up(
    host: &str,
    port: u16,
    servers: &[SocketAddr],
) -> Result<Vec<SocketAddr>, String> {
    if let Ok(ip) = host.parse() {
        return Ok(vec![SocketAddr::new(ip, port)]);
    }
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?
        .block_on(async { Names::new(servers)?.look_up(host, port).await })
}

/// Looks all names up again and again. What cannot be looked up keeps its addresses.
pub(super) async fn watch(upstreams: Arc<Upstreams>) {
    let Some(every) = upstreams.tending.dns_interval else {
        return;
    };
    let names = match Names::new(&upstreams.tending.dns_servers) {
        Ok(names) => Arc::new(names),
        Err(error) => {
            tracing::error!(error, "names of upstreams are not looked up again");
            return;
        }
    };
    let mut hosts: Vec<(String, u16)> = upstreams.pools.iter().flat_map(|p| p.hosts()).collect();
    hosts.retain(|(host, _)| host.parse::<std::net::IpAddr>().is_err());
    hosts.sort_unstable();
    hosts.dedup();
    let watching = hosts
        .into_iter()
        .map(|(host, port)| watch_one(&upstreams, &names, host, port, every));
    futures_util::future::join_all(watching).await;
}

async fn watch_one(upstreams: &Upstreams, names: &Names, host: String, port: u16, every: Duration) {
    let mut every = interval(every);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first is due at once, and was looked up before the start.
    every.tick().await;
    let mut is_failing = false;
    loop {
        every.tick().await;
        match names.look_up(&host, port).await {
            Ok(addrs) => {
                if std::mem::take(&mut is_failing) {
                    tracing::info!(host, "upstream name looked up again");
                }
                upstreams.found(&host, port, &addrs);
            }
            Err(error) => {
                upstreams.not_found(&host);
                // Said once: the metric counts the rest.
                if !std::mem::replace(&mut is_failing, true) {
                    tracing::warn!(
                        host,
                        error,
                        "upstream name cannot be looked up; its last addresses stay"
                    );
                }
            }
        }
    }
}
