//! Why a store cannot be used, in words: what is wrong, and what to do about it.

use redis::{ErrorKind, RedisError, ServerErrorKind};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::probe::direct;
use super::{Connection, Connector, RedisOptions, Topology, within};

/// What is said of a server that only a cluster's URL reaches.
pub const IN_A_CLUSTER: &str =
    "this server is part of a cluster; write redis-cluster://host:port with some of its nodes";
const NOT_IN_A_CLUSTER: &str = "this server is no part of a cluster; write redis://host:port";
const NO_SENTINEL: &str =
    "this server is no sentinel; write redis://host:port for it, or the sentinels' own addresses";
pub(super) const NO_SUCH_MASTER: &str = "the sentinels know no master of this name";
const PASSWORD: &str = "the user or the password is wrong or missing; set them with --store-username and \
     --store-password-file, FLOODGATE_STORE_PASSWORD, or in the URL";
const SENTINEL_PASSWORD: &str = ", and those of the sentinels with --store-sentinel-username and \
     FLOODGATE_STORE_SENTINEL_PASSWORD";
const NO_TLS: &str = "the server does not answer in TLS; write redis instead of rediss in its URL, or \
     correct the port";

/// Why a store cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// What is wrong, and what to do.
    pub text: String,
    /// Whether a setting or a right is wrong: waiting mends nothing.
    pub is_mistake: bool,
}

impl Cause {
    /// What may pass by itself.
    pub fn outage(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            is_mistake: false,
        }
    }

    /// What somebody must set right.
    pub fn mistake(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            is_mistake: true,
        }
    }

    /// What an error of a store with these options tells.
    #[must_use]
    pub fn of(options: &RedisOptions, error: &RedisError) -> Self {
        if is_login(error) {
            let sentinels = match options.topology {
                Topology::Sentinel { .. } => SENTINEL_PASSWORD,
                Topology::Single | Topology::Cluster => "",
            };
            let none = match options.password {
                Some(_) => "; leave them out where the server asks for none",
                None => "",
            };
            return Self::mistake(format!("{PASSWORD}{sentinels}{none}"));
        }
        let is_cluster = options.topology == Topology::Cluster;
        match error.kind() {
            ErrorKind::Server(
                ServerErrorKind::Moved
                | ServerErrorKind::Ask
                | ServerErrorKind::TryAgain
                | ServerErrorKind::CrossSlot,
            ) if !is_cluster => Self::mistake(IN_A_CLUSTER),
            ErrorKind::Server(ServerErrorKind::NoPerm) => Self::mistake(format!(
                "{error}; `floodgate check --connect` names the rights that are missing"
            )),
            ErrorKind::Io => of_io(options, error),
            ErrorKind::Parse => {
                Self::mistake("what answers there is no Redis; correct the address")
            }
            _ => of_words(error),
        }
    }
}

/// Whether the server does not know who we are. In a cluster an error may be told by another.
pub(super) fn is_login(error: &RedisError) -> bool {
    error.kind() == ErrorKind::AuthenticationFailed
        || matches!(error.code(), Some("NOAUTH" | "WRONGPASS"))
        || error.to_string().contains("authentication failed")
        // What it says to a command of more than ten words.
        || error.to_string().contains("unauthenticated multibulk")
}

/// What an error tells by its words alone.
fn of_words(error: &RedisError) -> Cause {
    let text = error.to_string();
    let has = |part: &str| text.contains(part);
    if has("cluster support disabled") {
        return Cause::mistake(NOT_IN_A_CLUSTER);
    }
    if has("unknown command 'SENTINEL'") {
        return Cause::mistake(NO_SENTINEL);
    }
    if has(NO_SUCH_MASTER) {
        return Cause::mistake(format!(
            "{NO_SUCH_MASTER}; correct the name at the end of the URL"
        ));
    }
    if has("refused to switch database") {
        return Cause::mistake(
            "the server has no database of this number; correct it at the end of the URL",
        );
    }
    let advice = match error.code() {
        Some("OOM") => "it is full: raise its maxmemory",
        Some("READONLY") => {
            "it is a replica: write the address of its master, or redis-sentinel://"
        }
        Some("NOREPLICAS") => "its replicas are gone: see its min-replicas-to-write",
        Some("MISCONF") => "it cannot save to its disk: see its log",
        _ => return Cause::outage(text),
    };
    Cause::outage(format!("{text}; {advice}"))
}

fn of_io(options: &RedisOptions, error: &RedisError) -> Cause {
    let text = error.to_string();
    let has = |part: &str| text.contains(part);
    // Its nodes are asked one by one for what this tells in its words.
    let is_cluster = options.topology == Topology::Cluster;
    let advice = if error.is_timeout() {
        let tls = match options.tls {
            true => " and speaks TLS (else write redis instead of rediss)",
            false => "",
        };
        return Cause::outage(format!(
            "it does not answer in time; check that it runs{tls}, its address, and any firewall between"
        ));
    } else if error.is_connection_refusal() {
        "nothing listens there; start the server, or correct the address"
    } else if has("lookup address") {
        "correct the host's name"
    } else if options.tls && has("certificate") {
        "give the certificates of its authority with --store-ca, and our own with --store-client-cert \
         and --store-client-key if it asks for one"
    } else if options.tls && (has("InvalidContentType") || has("corrupt message")) {
        return Cause::mistake(NO_TLS);
    } else if !is_cluster && !options.tls && error.is_connection_dropped() {
        "it closed the connection; if that port speaks TLS, write rediss instead of redis"
    } else {
        return Cause::outage(text);
    };
    Cause::outage(format!("{text}; {advice}"))
}

impl Connector {
    /// What an error in connecting tells. The nodes of a cluster are asked themselves, and a server
    /// that says nothing in TLS is asked without.
    pub async fn cause(&self, error: &RedisError) -> Cause {
        let options = self.options();
        if self.is_cluster()
            && let Some(cause) = self.cause_of_nodes().await
        {
            return cause;
        }
        if options.tls && error.is_timeout() && self.is_plain().await {
            return Cause::mistake(NO_TLS);
        }
        Cause::of(options, error)
    }

    /// Why none of the nodes can be connected to: a mistake before an outage.
    async fn cause_of_nodes(&self) -> Option<Cause> {
        let mut last = None;
        for node in &self.options().nodes {
            let direct = direct(self.options(), node.clone()).ok()?;
            let Err(error) = direct.connect().await else {
                return None;
            };
            let cause = Box::pin(direct.cause(&error)).await;
            if cause.is_mistake {
                return Some(cause);
            }
            last = Some(cause);
        }
        last
    }

    /// Whether some server answers without TLS.
    async fn is_plain(&self) -> bool {
        for (host, port) in &self.options().nodes {
            let asked = async {
                let mut stream = tokio::net::TcpStream::connect((host.as_str(), *port)).await?;
                stream.write_all(b"PING\r\n").await?;
                Ok(stream.read_u8().await?)
            };
            // `+PONG`, or an error.
            let part = self.connect_timeout() / 4;
            if matches!(within(part, asked).await, Ok(b'+' | b'-')) {
                return true;
            }
        }
        false
    }

    /// Makes sure that a server of its own is not part of a cluster. One that does not say is
    /// believed.
    ///
    /// # Errors
    /// When it is.
    pub async fn refuse_cluster(&self, connection: &mut Connection) -> Result<(), Cause> {
        if self.is_cluster() {
            return Ok(());
        }
        let mut info = redis::cmd("INFO");
        let said = within(self.connect_timeout(), connection.send(info.arg("cluster"))).await;
        let said = said.and_then(|said| Ok(redis::from_redis_value::<String>(said)?));
        match said {
            Ok(text) if is_in_cluster(&text) => Err(Cause::mistake(IN_A_CLUSTER)),
            _ => Ok(()),
        }
    }
}

/// Whether a server that says this of itself is part of a cluster.
pub(super) fn is_in_cluster(info: &str) -> bool {
    info.lines().any(|line| line.trim() == "cluster_enabled:1")
}
