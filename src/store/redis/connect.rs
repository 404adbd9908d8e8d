//! Connections to the store: one server, the master that sentinels name, or a cluster.

mod cause;
mod options;
mod probe;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use redis::aio::{ConnectionLike as _, MultiplexedConnection};
use redis::cluster::ClusterClient;
use redis::cluster_async::ClusterConnection;
use redis::io::tcp::TcpSettings;
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind,
    IntoConnectionInfo as _, RedisConnectionInfo, RedisError, RedisResult, TlsCertificates, Value,
};

pub use cause::{Cause, IN_A_CLUSTER};
pub use options::{RedisOptions, Secret, Topology, UrlError};
pub use probe::{Master, Probe, State, probe};

/// Commands that may be on their way at once on one connection.
const IN_FLIGHT: usize = 1024;

/// Moved, then asked, then once more: a cluster sends a command no farther.
const CLUSTER_RETRIES: u32 = 3;

/// The wait before a cluster command goes out again, in milliseconds: all of them together are
/// short beside the time that a decision has.
const CLUSTER_RETRY_WAIT: (u64, u64) = (1, 3);

/// Why no store can be connected to with these options.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// A file that cannot be read.
    #[error("cannot read {}: {source}", .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file without what it should hold.
    #[error("{}: there is no {wanted} (PEM) in it", .path.display())]
    Empty {
        /// The file.
        path: PathBuf,
        /// What should be in it.
        wanted: &'static str,
    },
    /// A certificate without its key, or a key without its certificate.
    #[error("a client certificate and its key are given together, or not at all")]
    HalfIdentity,
    /// Certificates for a connection without TLS.
    #[error("certificates are given, but the store's URL is without TLS; write rediss")]
    PlainText,
    /// What the client library refuses.
    #[error("{0}")]
    Refused(#[source] RedisError),
}

/// A connection that any number of calls share.
#[derive(Clone)]
pub enum Connection {
    /// To one server.
    Single(MultiplexedConnection),
    /// To the nodes of a cluster.
    Cluster(ClusterConnection),
}

impl Connection {
    /// Sends a command and waits for its answer, for as long as it takes: the caller knows how
    /// long it can wait. A command that nobody waits for any more may still be carried out.
    ///
    /// # Errors
    /// When the connection or the server fails.
    pub async fn send(&mut self, cmd: &Cmd) -> RedisResult<Value> {
        let answer = match self {
            Self::Single(connection) => connection.req_packed_command(cmd).await?,
            Self::Cluster(connection) => connection.req_packed_command(cmd).await?,
        };
        // Some ways through the library hand an error answer on as a value.
        answer.extract_error()
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Single(_) => "Connection::Single",
            Self::Cluster(_) => "Connection::Cluster",
        })
    }
}

#[expect(clippy::large_enum_variant, reason = "there is one for each store")]
enum Way {
    Direct(Client),
    Sentinels {
        clients: Vec<Client>,
        master: String,
    },
    Cluster(ClusterClient),
}

struct Shared {
    options: RedisOptions,
    certificates: Option<TlsCertificates>,
    way: Way,
}

/// Makes connections. Cloning it is cheap.
#[derive(Clone)]
pub struct Connector(Arc<Shared>);

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Connector").field(&self.0.options).finish()
    }
}

impl Connector {
    /// A connector for these options. Reads the certificates; connects to nothing.
    ///
    /// # Errors
    /// When a certificate cannot be used, or the options contradict each other.
    pub fn new(options: RedisOptions) -> Result<Self, ConnectError> {
        let certificates = certificates(&options)?;
        let info = |(host, port): &(String, u16), login| {
            connection_info(&options, certificates.as_ref(), (host, *port), login)
        };
        let clients = |login: Login| {
            let infos = options.nodes.iter().map(|node| info(node, login));
            let clients = infos.map(|info| client(info?, certificates.as_ref()));
            clients.collect::<RedisResult<Vec<_>>>()
        };
        let way = match &options.topology {
            Topology::Single => clients(Login::Data).and_then(|clients| {
                let client = clients.into_iter().next().ok_or_else(no_node)?;
                Ok(Way::Direct(client))
            }),
            Topology::Sentinel { master } => clients(Login::Sentinel).map(|clients| {
                let master = master.clone();
                Way::Sentinels { clients, master }
            }),
            Topology::Cluster => cluster(&options, certificates.as_ref()).map(Way::Cluster),
        };
        let way = way.map_err(ConnectError::Refused)?;
        Ok(Self(Arc::new(Shared {
            options,
            certificates,
            way,
        })))
    }

    /// The options it was made from.
    #[must_use]
    pub fn options(&self) -> &RedisOptions {
        &self.0.options
    }

    /// Whether it connects to a cluster.
    #[must_use]
    pub fn is_cluster(&self) -> bool {
        matches!(self.0.way, Way::Cluster(_))
    }

    /// How long connecting may take, names, TLS and login included.
    #[must_use]
    pub fn connect_timeout(&self) -> Duration {
        connect_timeout(&self.0.options)
    }

    /// Connects. Sentinels are asked each time: the master may be another one by now.
    ///
    /// # Errors
    /// When the store is not there in time, refuses us, or is no master.
    pub async fn connect(&self) -> RedisResult<Connection> {
        let all = self.connect_timeout();
        within(all, async {
            match &self.0.way {
                Way::Direct(client) => Ok(Connection::Single(open(client, all).await?)),
                Way::Sentinels { clients, master } => {
                    Ok(Connection::Single(self.ask(clients, master).await?))
                }
                Way::Cluster(client) => {
                    Ok(Connection::Cluster(client.get_async_connection().await?))
                }
            }
        })
        .await
    }

    /// The first master that a sentinel names and that says so itself. A sentinel that hangs
    /// leaves time for the others.
    async fn ask(&self, clients: &[Client], master: &str) -> RedisResult<MultiplexedConnection> {
        let parts = u32::try_from(clients.len()).unwrap_or(u32::MAX).max(1);
        let part = self.connect_timeout() / parts;
        let mut last = no_node();
        for sentinel in clients {
            match within(part, self.ask_one(sentinel, master, part)).await {
                Ok(connection) => return Ok(connection),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn ask_one(
        &self,
        sentinel: &Client,
        master: &str,
        part: Duration,
    ) -> RedisResult<MultiplexedConnection> {
        let mut sentinel = open(sentinel, part).await?;
        let (host, port): (String, u16) = redis::cmd("SENTINEL")
            .arg("get-master-addr-by-name")
            .arg(master)
            .query_async::<Option<(String, u16)>>(&mut sentinel)
            .await?
            .ok_or_else(|| {
                RedisError::from((ErrorKind::InvalidClientConfig, cause::NO_SUCH_MASTER))
            })?;
        let certificates = self.0.certificates.as_ref();
        let node = (&*host, port);
        let info = connection_info(&self.0.options, certificates, node, Login::Data)?;
        let mut connection = open(&client(info, certificates)?, part).await?;
        let role: Vec<Value> = redis::cmd("ROLE").query_async(&mut connection).await?;
        let role: Option<String> = match role.into_iter().next() {
            Some(value) => Some(redis::from_redis_value(value)?),
            None => None,
        };
        match role.as_deref() {
            Some("master") => Ok(connection),
            _ => Err(io::Error::other("the server that a sentinel named is no master").into()),
        }
    }
}

/// With whose name and password to log in.
#[derive(Clone, Copy)]
enum Login {
    Data,
    Sentinel,
}

/// Connecting takes several round trips, and a name may have to be looked up.
fn connect_timeout(options: &RedisOptions) -> Duration {
    let least = Duration::from_millis(500);
    options.timeout.saturating_mul(4).max(least)
}

async fn within<T>(time: Duration, work: impl Future<Output = RedisResult<T>>) -> RedisResult<T> {
    match tokio::time::timeout(time, work).await {
        Ok(result) => result,
        Err(_) => Err(io::Error::from(io::ErrorKind::TimedOut).into()),
    }
}

async fn open(client: &Client, time: Duration) -> RedisResult<MultiplexedConnection> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(time))
        .set_response_timeout(None)
        .set_pipeline_buffer_size(IN_FLIGHT);
    client
        .get_multiplexed_async_connection_with_config(&config)
        .await
}

fn client(info: ConnectionInfo, certificates: Option<&TlsCertificates>) -> RedisResult<Client> {
    match certificates {
        Some(certificates) => Client::build_with_tls(info, certificates.clone()),
        None => Client::open(info),
    }
}

fn no_node() -> RedisError {
    RedisError::from((ErrorKind::InvalidClientConfig, "no server is given"))
}

fn tcp(options: &RedisOptions) -> TcpSettings {
    let tcp = TcpSettings::default().set_nodelay(true);
    // A peer that is cut off sends no reset: without this, what is unacknowledged is sent again
    // at ever longer intervals, long after the network is back.
    #[cfg(target_os = "linux")]
    let tcp = tcp.set_user_timeout(connect_timeout(options));
    #[cfg(not(target_os = "linux"))]
    let _ = options;
    tcp
}

fn connection_info(
    options: &RedisOptions,
    certificates: Option<&TlsCertificates>,
    (host, port): (&str, u16),
    login: Login,
) -> RedisResult<ConnectionInfo> {
    let (username, password, database) = match login {
        Login::Data => (&options.username, &options.password, options.database),
        Login::Sentinel => (&options.sentinel_username, &options.sentinel_password, 0),
    };
    let mut settings = RedisConnectionInfo::default()
        .set_db(database)
        .set_lib_name(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));
    if let Some(username) = username {
        settings = settings.set_username(username);
    }
    if let Some(password) = password {
        settings = settings.set_password(password.expose());
    }
    let host = host.to_owned();
    let addr = match options.tls || certificates.is_some() {
        true => ConnectionAddr::TcpTls {
            host,
            port,
            insecure: false,
            tls_params: None,
        },
        false => ConnectionAddr::Tcp(host, port),
    };
    Ok(addr
        .into_connection_info()?
        .set_redis_settings(settings)
        .set_tcp_settings(tcp(options)))
}

fn cluster(
    options: &RedisOptions,
    certificates: Option<&TlsCertificates>,
) -> RedisResult<ClusterClient> {
    let nodes = options
        .nodes
        .iter()
        .map(|(host, port)| connection_info(options, certificates, (host, *port), Login::Data))
        .collect::<RedisResult<Vec<_>>>()?;
    // A node that hangs leaves time for the others. Not less than a decision may wait.
    let part = connect_timeout(options) / 4;
    let (least, most) = CLUSTER_RETRY_WAIT;
    let mut builder = ClusterClient::builder(nodes)
        .connection_timeout(part)
        .response_timeout(part)
        .overall_response_timeout(Some(connect_timeout(options)))
        .retries(CLUSTER_RETRIES)
        .min_retry_wait(least)
        .max_retry_wait(most)
        .tcp_settings(tcp(options));
    if let Some(certificates) = certificates {
        builder = builder.certs(certificates.clone());
    }
    builder.build()
}

fn certificates(options: &RedisOptions) -> Result<Option<TlsCertificates>, ConnectError> {
    let given = [&options.ca, &options.client_cert, &options.client_key];
    if given.iter().all(|file| file.is_none()) {
        return Ok(None);
    }
    if !options.tls {
        return Err(ConnectError::PlainText);
    }
    let client_tls = match (&options.client_cert, &options.client_key) {
        (Some(cert), Some(key)) => Some(ClientTlsConfig {
            client_cert: pem(cert, "CERTIFICATE-----", "certificate")?,
            client_key: pem(key, "PRIVATE KEY-----", "private key")?,
        }),
        (None, None) => None,
        _ => return Err(ConnectError::HalfIdentity),
    };
    let root_cert = match &options.ca {
        Some(ca) => Some(pem(ca, "CERTIFICATE-----", "certificate")?),
        None => None,
    };
    Ok(Some(TlsCertificates {
        client_tls,
        root_cert,
    }))
}

fn pem(path: &Path, mark: &str, wanted: &'static str) -> Result<Vec<u8>, ConnectError> {
    let bytes = std::fs::read(path).map_err(|source| ConnectError::Unreadable {
        path: path.to_owned(),
        source,
    })?;
    match String::from_utf8_lossy(&bytes).contains(mark) {
        true => Ok(bytes),
        false => Err(ConnectError::Empty {
            path: path.to_owned(),
            wanted,
        }),
    }
}
