//! Composition root: builds a gateway from settings and rules, starts it, drains it.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pingora::apps::HttpServerOptions;
use pingora::listeners::TcpSocketOptions;
use pingora::proxy::ProxyServiceBuilder;
use pingora::server::configuration::ServerConf;
use pingora::server::{RunArgs, Server, ShutdownSignal, ShutdownSignalWatch, ShutdownWatch};
use pingora::services::background::{BackgroundService, background_service};
use pingora::tls::{RootCertStore, load_ca_file_into_store};
use tokio::signal::unix::{SignalKind, signal};

use crate::admission::Policy;
use crate::clock::Clock;
use crate::gateway::{Gateway, MAX_ATTEMPTS, Shared};
use crate::observe::{admin, log, metrics::Metrics};
use crate::settings::{Settings, StoreSettings};
use crate::spec::Ruleset;
use crate::store::AnyStore;
use crate::store::memory::{MemoryOptions, MemoryStore};
use crate::store::redis::connect::{ConnectError, Connector};
use crate::store::redis::{RedisStore, TimeSource};

/// How often idle counters are looked for; each time in a part of the store.
const SWEEP_EVERY: Duration = Duration::from_millis(100);
/// Requests whose head is still arriving when the listeners close are given this long.
const SETTLE: Duration = Duration::from_millis(200);

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

/// A gateway that is ready to run: its sockets are known to be free.
#[derive(Debug)]
pub struct Prepared {
    shared: Arc<Shared>,
    /// Where it will listen, ports resolved.
    pub listen: Vec<SocketAddr>,
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
    let mut listen = Vec::new();
    for addr in &settings.listen {
        // Our own listeners share the port among themselves; without this look they would share
        // it with any other process too.
        let probe = TcpListener::bind(addr)
            .and_then(|probe| probe.local_addr())
            .map_err(|source| ServeError::Listen {
                addr: *addr,
                flag: "--listen",
                source,
            })?;
        listen.push(probe);
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
        require_bearer: settings.require_bearer,
        ipv6_prefix: settings.ipv6_prefix,
    };
    let metrics = Metrics::new(&rules)?;
    let clock = Clock::start();
    let store = store(&settings, clock)?;
    let shared = Shared::new(settings, rules, policy, store, metrics, clock, id_seed);
    Ok(Prepared {
        shared: Arc::new(shared),
        listen,
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
            ca_file: settings
                .upstream_ca
                .as_ref()
                .and_then(|path| path.to_str().map(str::to_owned)),
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
        for worker in 0..settings.threads {
            let mut options = HttpServerOptions::default();
            options.h2c = settings.h2c;
            let mut service =
                ProxyServiceBuilder::new(&server.configuration, Gateway::new(shared.clone()))
                    .name(format!("gateway-{worker}"))
                    .server_options(options)
                    .build();
            service.threads = Some(1);
            let mut socket = TcpSocketOptions::default();
            socket.so_reuseport = Some(true);
            for addr in &self.listen {
                service.add_tcp_with_settings(&worker_address(*addr, worker), socket.clone());
            }
            server.add_service(service);
        }
        let housekeeping = Housekeeping {
            shared: shared.clone(),
            admin: parking_lot::Mutex::new(Some(self.admin)),
        };
        server.add_service(background_service("admin", housekeeping));
        for addr in &self.listen {
            tracing::info!(listen = %addr, workers = settings.threads, edition = %settings.edition, "listening");
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
        Ok(())
    }
}

/// pingora keeps listening sockets by the address's text: two services on the same text get one
/// socket. Zeros before the port make a text of its own for each worker.
fn worker_address(addr: SocketAddr, worker: usize) -> String {
    let zeros = "0".repeat(worker);
    match addr {
        SocketAddr::V4(v4) => format!("{}:{zeros}{}", v4.ip(), v4.port()),
        SocketAddr::V6(v6) => format!("[{}]:{zeros}{}", v6.ip(), v6.port()),
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
        tracing::info!("draining");
        self.shared.begin_drain();
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
        tokio::spawn(async move {
            if let Some(store) = shared.admission.store().shared() {
                let news = || shared.top.told(&shared.rules, shared.clock.now());
                tokio::join!(store.watch(), store.exchange_news(&news));
            }
        });
        let listener = self.admin.lock().take();
        let served = match listener.map(tokio::net::TcpListener::from_std) {
            Some(Ok(listener)) => axum::serve(listener, admin::router(self.shared.clone())).await,
            Some(Err(error)) => Err(error),
            None => return,
        };
        if let Err(error) = served {
            tracing::error!(%error, "the admin listener failed");
        }
    }
}
