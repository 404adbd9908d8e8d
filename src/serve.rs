//! Composition root: builds a gateway from settings and rules, starts it, drains it.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pingora::server::configuration::ServerConf;
use pingora::server::{RunArgs, Server, ShutdownSignal, ShutdownSignalWatch, ShutdownWatch};
use pingora::services::background::{BackgroundService, background_service};
use pingora::tls::{RootCertStore, load_ca_file_into_store};
use tokio::signal::unix::{SignalKind, signal};

use crate::admission::Policy;
use crate::clock::Clock;
use crate::gateway::downstream::tls::{Certificates, TlsError};
use crate::gateway::downstream::{self, Listening, SETTLE, Worker};
use crate::gateway::upstream::{MAX_ATTEMPTS, UpstreamError};
use crate::gateway::{Shared, SharedError};
use crate::observe::{admin, log, metrics::Metrics};
use crate::settings::{Listen, Settings, StoreSettings, TlsSettings};
use crate::spec::Ruleset;
use crate::store::AnyStore;
use crate::store::memory::{MemoryOptions, MemoryStore};
use crate::store::redis::connect::{ConnectError, Connector};
use crate::store::redis::{RedisStore, TimeSource};

/// How often idle counters are looked for; each time in a part of the store.
const SWEEP_EVERY: Duration = Duration::from_millis(100);
/// How long calls that are cut off may take to give back what they hold.
const CUT_OFF: Duration = Duration::from_millis(500);
/// How often the files of certificates are looked at.
const LOOK_AT_CERTIFICATES: Duration = Duration::from_secs(1);

/// Why a gateway could not start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A listener's address cannot be had.
    #[error(
        "cannot listen on {addr}: {source}; is another process there? choose another with {flag}"
    )]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// The flag that sets it.
        flag: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The selected edition is not in the rules.
    #[error("unknown edition {name:?}; known: {known}")]
    Edition {
        /// As given.
        name: String,
        /// What there is.
        known: String,
    },
    /// The certificates for `https` upstreams cannot be used.
    #[error("--upstream-ca {path}: {reason}; write the path of a PEM file of certificates")]
    UpstreamCa {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The certificates of the TLS listeners cannot be used.
    #[error("certificates: {0}")]
    Tls(#[from] TlsError),
    /// The pools cannot be used.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    /// The counter store's settings cannot be used.
    #[error("store: {0}")]
    Store(#[from] ConnectError),
    /// Metrics could not be registered.
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// The signals could not be watched, or a thread not be started.
    #[error("cannot start: {0}")]
    Start(#[source] io::Error),
    /// The server's thread ended before it was told to.
    #[error("the server stopped unexpectedly")]
    Stopped,
}

impl From<SharedError> for ServeError {
    fn from(error: SharedError) -> Self {
        match error {
            SharedError::Tls(error) => Self::Tls(error),
            SharedError::Upstream(error) => Self::Upstream(error),
        }
    }
}

/// A gateway that is ready to run: its sockets are known to be free.
#[derive(Debug)]
pub struct Prepared {
    shared: Arc<Shared>,
    /// Where it will listen, ports resolved.
    pub listen: Vec<Listen>,
    /// The sockets, by worker.
    listening: Vec<Vec<Listening>>,
    /// The admin listener, bound.
    admin: TcpListener,
    /// Its address.
    pub admin_addr: SocketAddr,
}

/// Puts a gateway together.
///
/// # Errors
/// [`ServeError`]; nothing has been started then.
pub fn prepare(
    settings: Settings,
    rules: Arc<Ruleset>,
    id_seed: u64,
) -> Result<Prepared, ServeError> {
    let editions = rules
        .selection(&settings.edition)
        .ok_or_else(|| ServeError::Edition {
            name: settings.edition.clone(),
            known: rules
                .selections
                .iter()
                .map(|(name, ..)| &**name)
                .collect::<Vec<_>>()
                .join(", "),
        })?;
    if let Some(path) = &settings.upstream_ca {
        check_certificates(path)?;
    }
    raise_file_limit(&settings);
    let mut listen = Vec::new();
    let mut listening: Vec<Vec<Listening>> = (0..settings.threads).map(|_| Vec::new()).collect();
    for how in &settings.listen {
        let (addr, sockets) =
            downstream::bind(how.addr, settings.threads).map_err(|source| ServeError::Listen {
                addr: how.addr,
                flag: "--listen",
                source,
            })?;
        let how = Listen { addr, ..*how };
        listen.push(how);
        for (of_worker, socket) in listening.iter_mut().zip(sockets) {
            of_worker.push(Listening { socket, how });
        }
    }
    let admin_error = |source| ServeError::Listen {
        addr: settings.admin,
        flag: "--admin",
        source,
    };
    let admin = TcpListener::bind(settings.admin).map_err(admin_error)?;
    admin.set_nonblocking(true).map_err(admin_error)?;
    let admin_addr = admin.local_addr().map_err(admin_error)?;
    let policy = Policy {
        editions,
        auth: settings.auth,
        ipv6_prefix: settings.ipv6_prefix,
        unknown_apps: settings.unknown_apps,
    };
    let metrics = Metrics::new(&rules)?;
    let clock = Clock::start();
    let store = store(&settings, clock)?;
    let shared = Shared::new(settings, rules, policy, store, metrics, clock, id_seed)?;
    Ok(Prepared {
        shared: Arc::new(shared),
        listen,
        listening,
        admin,
        admin_addr,
    })
}

/// The counters that the settings name.
fn store(settings: &Settings, clock: Clock) -> Result<AnyStore, ConnectError> {
    Ok(match &settings.store {
        StoreSettings::Memory => AnyStore::Memory(MemoryStore::new(MemoryOptions {
            max_counters: settings.max_counters,
        })),
        StoreSettings::Redis(options) => AnyStore::Redis(RedisStore::new(
            Connector::new(options.clone())?,
            RedisStore::new_gateway_id(),
            settings.max_counters,
            TimeSource::Server(clock),
        )),
    })
}

/// pingora panics over a file that it cannot use: look first.
fn check_certificates(path: &Path) -> Result<(), ServeError> {
    let failed = |reason: String| ServeError::UpstreamCa {
        path: path.display().to_string(),
        reason,
    };
    if path.to_str().is_none() {
        return Err(failed("the path is no UTF-8".to_owned()));
    }
    std::fs::File::open(path).map_err(|error| failed(error.to_string()))?;
    let mut store = RootCertStore::empty();
    load_ca_file_into_store(path, &mut store)
        .map_err(|_| failed("not a list of certificates".to_owned()))?;
    match store.is_empty() {
        true => Err(failed("there is no certificate in it".to_owned())),
        false => Ok(()),
    }
}

/// The certificates for all pools that have none of their own.
fn shared_ca(settings: &Settings) -> Option<String> {
    let path = settings.upstream_ca.as_ref()?;
    path.to_str().map(str::to_owned)
}

/// Whether these certificates can be used.
///
/// # Errors
/// The first that cannot.
pub fn check_tls(settings: &TlsSettings) -> Result<(), TlsError> {
    Certificates::load(settings.clone()).map(|_| ())
}

/// Runs a gateway until SIGTERM or Ctrl-C, and drains it.
///
/// # Errors
/// [`ServeError`].
pub fn run(settings: Settings, rules: Arc<Ruleset>, id_seed: u64) -> Result<(), ServeError> {
    let _log = log::start(settings.log).map_err(ServeError::Start)?;
    prepare(settings, rules, id_seed)?.run(None)
}

impl Prepared {
    /// What the workers share.
    #[must_use]
    pub fn shared(&self) -> Arc<Shared> {
        self.shared.clone()
    }

    /// Runs until SIGTERM or Ctrl-C, or until `stop` says so, then drains: no new connections,
    /// running requests end, at most for `grace`.
    ///
    /// # Errors
    /// [`ServeError`].
    pub fn run(self, stop: Option<tokio::sync::watch::Receiver<bool>>) -> Result<(), ServeError> {
        let shared = self.shared.clone();
        let settings = &shared.settings;
        let conf = ServerConf {
            threads: 1,
            work_stealing: false,
            // pingora would sleep this long in any case; we end as soon as nothing runs.
            grace_period_seconds: Some(settings.grace.as_secs().saturating_add(1)),
            graceful_shutdown_timeout_seconds: Some(0),
            upstream_keepalive_pool_size: 1024,
            max_retries: MAX_ATTEMPTS,
            ca_file: shared_ca(settings),
            ..ServerConf::default()
        };
        if let Some(store) = shared.admission.store().shared() {
            // Known before the first call: with the store, or with this gateway's share.
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(ServeError::Start)?
                .block_on(store.greet());
        }
        let mut server = Server::new_with_opt_and_conf(None, conf);
        server.bootstrap();
        for (worker, listening) in self.listening.into_iter().enumerate() {
            let conf = server.configuration.clone();
            let worker_of_its_own = Worker::new(shared.clone(), conf, listening);
            let name = format!("gateway-{worker}");
            server.add_service(background_service(&name, worker_of_its_own));
        }
        let housekeeping = Housekeeping {
            shared: shared.clone(),
            admin: parking_lot::Mutex::new(Some(self.admin)),
        };
        server.add_service(background_service("admin", housekeeping));
        for addr in &self.listen {
            let Listen {
                addr,
                tls,
                proxy_protocol,
            } = *addr;
            tracing::info!(listen = %addr, tls, proxy_protocol, workers = settings.threads, edition = %settings.edition, "listening");
        }
        tracing::info!(admin = %self.admin_addr, "admin");
        admin::warn_if_open(settings);

        let (stopping, stopped) = std::sync::mpsc::channel();
        let signals = Signals {
            shared: shared.clone(),
            stop,
            stopping,
        };
        std::thread::Builder::new()
            .name("server".to_owned())
            .spawn(move || {
                server.run(RunArgs {
                    shutdown_signal: Box::new(signals),
                })
            })
            .map_err(ServeError::Start)?;
        stopped.recv().map_err(|_| ServeError::Stopped)?;

        std::thread::sleep(SETTLE.min(settings.grace));
        let mut waited = SETTLE;
        while shared.in_flight() > 0 && waited < settings.grace {
            std::thread::sleep(Duration::from_millis(20));
            waited += Duration::from_millis(20);
        }
        match shared.in_flight() {
            0 => tracing::info!("drained"),
            left => tracing::warn!(
                left,
                grace_s = settings.grace.as_secs(),
                "grace is over; cutting off"
            ),
        }
        shared.cut_off();
        let mut waited = Duration::ZERO;
        while shared.in_flight() > 0 && waited < CUT_OFF {
            std::thread::sleep(Duration::from_millis(5));
            waited += Duration::from_millis(5);
        }
        Ok(())
    }
}

/// Each connection of a caller needs a file descriptor, and each call in flight another.
fn raise_file_limit(settings: &Settings) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    let current = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => raised.current,
        Err(_) => limit.current,
    };
    let needed = settings.max_connections.saturating_mul(2);
    if let Some(current) = current.filter(|n| usize::try_from(*n).is_ok_and(|n| n < needed)) {
        tracing::warn!(
            open_files = current,
            max_connections = settings.max_connections,
            "fewer files may be open than max_connections needs (two for each); raise the hard \
             limit (ulimit -Hn, LimitNOFILE), or lower max_connections"
        );
    }
}

struct Signals {
    shared: Arc<Shared>,
    stop: Option<tokio::sync::watch::Receiver<bool>>,
    stopping: std::sync::mpsc::Sender<()>,
}

#[async_trait]
impl ShutdownSignalWatch for Signals {
    async fn recv(&self) -> ShutdownSignal {
        let stop = self.stop.clone();
        let told = async move {
            let told = match stop {
                Some(mut stop) => stop.wait_for(|stop| *stop).await.is_ok(),
                None => false,
            };
            if !told {
                // A sender that is gone tells nobody to stop.
                std::future::pending::<()>().await;
            }
        };
        match (
            signal(SignalKind::terminate()),
            signal(SignalKind::interrupt()),
        ) {
            (Ok(mut terminate), Ok(mut interrupt)) => tokio::select! {
                _ = terminate.recv() => (),
                _ = interrupt.recv() => (),
                () = told => (),
            },
            (Err(error), _) | (_, Err(error)) => {
                tracing::error!(%error, "cannot watch signals; stopping");
            }
        }
        let delay = self.shared.settings.drain_delay;
        tracing::info!(drain_delay_ms = delay.as_millis(), "draining");
        self.shared.begin_drain();
        tokio::time::sleep(delay).await;
        let _ = self.stopping.send(());
        ShutdownSignal::GracefulTerminate
    }
}

/// The admin listener and the sweeping of idle counters.
struct Housekeeping {
    shared: Arc<Shared>,
    admin: parking_lot::Mutex<Option<TcpListener>>,
}

#[async_trait]
impl BackgroundService for Housekeeping {
    async fn start(&self, _shutdown: ShutdownWatch) {
        let shared = self.shared.clone();
        tokio::spawn(async move {
            let mut every = tokio::time::interval(SWEEP_EVERY);
            every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            let mut ticks = 0_u64;
            loop {
                every.tick().await;
                shared.sweep();
                ticks += 1;
                if ticks.is_multiple_of(10) {
                    shared.sweep_shield();
                }
            }
        });
        let shared = self.shared.clone();
        tokio::spawn(async move { watch_certificates(shared).await });
        let ca_file = shared_ca(&self.shared.settings);
        let upstreams = self.shared.upstreams.clone();
        tokio::spawn(upstreams.tend(self.shared.clock, ca_file));
        let shared = self.shared.clone();
        tokio::spawn(async move {
            if let Some(store) = shared.admission.store().shared() {
                let news = || shared.top.told(&shared.rules, shared.clock.now());
                tokio::join!(store.watch(), store.exchange_news(&news));
            }
        });
        let listener = self.admin.lock().take();
        let Some(listener) = listener else {
            return;
        };
        let served = admin::serve(listener, admin::router(self.shared.clone())).await;
        if let Err(error) = served {
            tracing::error!(%error, "the admin listener failed");
        }
    }
}

/// Takes new certificates when their files have changed. Bad ones are reported once.
async fn watch_certificates(shared: Arc<Shared>) {
    let mut every = tokio::time::interval(LOOK_AT_CERTIFICATES);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut reported = String::new();
    loop {
        every.tick().await;
        let reader = shared.clone();
        let looked = tokio::task::spawn_blocking(move || reader.reload_certificates()).await;
        match looked {
            Ok(Ok(false)) => reported.clear(),
            Ok(Ok(true)) => {
                tracing::info!("new certificates in use");
                reported.clear();
            }
            Ok(Err(error)) => {
                let error = error.to_string();
                if error != reported {
                    tracing::error!(%error, "certificates not changed; the old ones stay in use");
                }
                reported = error;
            }
            Err(_) => return,
        }
    }
}
