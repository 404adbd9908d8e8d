//! Composition root: builds a gateway from settings and rules, starts it, reloads it, drains it.

mod leave;
mod reload;
mod seen;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use async_trait::async_trait;
use pingora::server::configuration::ServerConf;
use pingora::server::{RunArgs, Server, ShutdownSignal, ShutdownSignalWatch, ShutdownWatch};
use pingora::services::background::{BackgroundService, background_service};

use self::leave::StopSignals;
pub use self::reload::{Loaded, Running, Source};
pub use self::seen::Files;
use crate::admission::Policy;
use crate::admission::totals::is_kept;
use crate::clock::Clock;
use crate::gateway::downstream::Worker;
use crate::gateway::downstream::tls::{Certificates, TlsError};
use crate::gateway::upstream::{MAX_ATTEMPTS, UpstreamError};
use crate::gateway::{Lasting, Live, Shared, SharedError};
use crate::handover::{Door, Giving, HandoverError, Sockets, Start};
use crate::observe::{admin, log, metrics::Metrics};
use crate::settings::{Listen, Settings, StoreSettings, TlsSettings};
use crate::spec::Ruleset;
use crate::store::AnyStore;
use crate::store::away::Movable;
use crate::store::journal::{Journal, JournalError};
use crate::store::memory::{MemoryOptions, MemoryStore};
use crate::store::redis::connect::{ConnectError, Connector};
use crate::store::redis::{RedisStore, TimeSource};

/// How often idle counters are looked for; each time in a part of the store.
const SWEEP_EVERY: Duration = Duration::from_millis(100);
/// How long calls that are cut off may take to give back what they hold.
const CUT_OFF: Duration = Duration::from_millis(500);
/// How often series of routes and limits that have gone are looked for, in sweeps: they stay for
/// one such time at least, and two at most.
const GONE_FOR: u64 = 3000;
/// pingora's own limit of a drain; ours is `grace`.
const LONGEST_GRACE_S: u64 = 30 * 86_400;
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
    /// The certificates of the TLS listeners cannot be used.
    #[error("certificates: {0}")]
    Tls(#[from] TlsError),
    /// The pools cannot be used.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    /// The counter store's settings cannot be used.
    #[error("store: {0}")]
    Store(#[from] ConnectError),
    /// The file of totals cannot be used.
    #[error(transparent)]
    Totals(#[from] JournalError),
    /// Metrics could not be registered.
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    /// Nothing can be handed over.
    #[error(transparent)]
    Handover(#[from] HandoverError),
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
    live: Live,
    /// What is read again, if anything is.
    reloading: Option<reload::Prepared>,
    /// Where it will listen, ports resolved.
    pub listen: Vec<Listen>,
    /// Its admin listener's address.
    pub admin_addr: SocketAddr,
    /// The file of totals, if there is one.
    journal: Option<Journal>,
    sockets: Sockets,
    /// What it follows.
    start: Start,
    /// Where its follower asks.
    door: Option<Door>,
}

/// Puts a gateway together.
///
/// # Errors
/// [`ServeError`]; nothing has been started then.
pub fn prepare(
    settings: Settings,
    rules: Arc<Ruleset>,
    id_seed: u64,
    mut start: Start,
) -> Result<Prepared, ServeError> {
    let policy = policy(&settings, &rules)?;
    raise_file_limit(&settings);
    let sockets = Sockets::open(&settings, start.taking.as_mut())?;
    let follows = start.taking.is_some();
    let door = settings.upgrade_socket.as_deref();
    let door = door.map(|path| Door::make(path, follows)).transpose()?;
    let metrics = Metrics::new()?;
    let clock = Clock::start();
    let store = store(&settings, clock)?;
    let journal = journal(&settings, &rules, &store)?;
    let lasting = Arc::new(Lasting::new(&settings, store, metrics, clock, id_seed));
    let shared = Shared::new(settings, rules, policy, lasting, None)?;
    Ok(Prepared {
        live: Live::new(shared),
        reloading: None,
        listen: sockets.listen.clone(),
        admin_addr: sockets.admin_addr,
        sockets,
        start,
        door,
        journal,
    })
}

/// What of the settings the spine needs.
fn policy(settings: &Settings, rules: &Ruleset) -> Result<Policy, ServeError> {
    let editions = rules.selection(&settings.edition);
    let editions = editions.ok_or_else(|| ServeError::Edition {
        name: settings.edition.clone(),
        known: rules
            .selections
            .iter()
            .map(|(name, ..)| &**name)
            .collect::<Vec<_>>()
            .join(", "),
    })?;
    Ok(Policy {
        editions,
        auth: settings.auth,
        ipv6_prefix: settings.ipv6_prefix,
        unknown_apps: settings.unknown_apps,
    })
}

/// The file of totals that the settings name, read into the store.
fn journal(
    settings: &Settings,
    rules: &Ruleset,
    store: &AnyStore,
) -> Result<Option<Journal>, JournalError> {
    let kept = rules.apps.iter().any(is_kept);
    match (store.embedded(), &settings.plan_file) {
        (Some(store), Some(path)) => Journal::open(path.clone(), store.counters()).map(Some),
        (Some(_), None) if kept => {
            tracing::warn!(
                "apps have plans, and nothing keeps their totals: they begin anew with each start, and \
                 refuse nothing until they are imported; set plan_file, or keep counters in Redis"
            );
            Ok(None)
        }
        (None, Some(path)) => {
            let file = path.display();
            tracing::warn!(%file, "plan_file is not used: the store in Redis keeps totals itself");
            Ok(None)
        }
        (Some(_), None) | (None, None) => Ok(None),
    }
}

/// The counters that the settings name.
fn store(settings: &Settings, clock: Clock) -> Result<AnyStore, ConnectError> {
    Ok(match &settings.store {
        StoreSettings::Memory => AnyStore::Memory(Movable::new(MemoryStore::new(MemoryOptions {
            max_counters: settings.max_counters,
        }))),
        StoreSettings::Redis(options) => AnyStore::Redis(RedisStore::new(
            Connector::new(options.clone())?,
            RedisStore::new_gateway_id(),
            settings.max_counters,
            TimeSource::Server(clock),
        )),
    })
}

/// Whether these certificates can be used.
///
/// # Errors
/// The first that cannot.
pub fn check_tls(settings: &TlsSettings) -> Result<(), TlsError> {
    Certificates::load(settings.clone(), None).map(|_| ())
}

/// Runs a gateway until SIGTERM or Ctrl-C, and drains it. Meanwhile, `source` is read again when
/// it changes, and when somebody asks for that. `loaded`: what it gave first, from `files`.
///
/// # Errors
/// [`ServeError`].
pub fn run(
    source: Box<dyn Source>,
    loaded: Loaded,
    files: &Files,
    id_seed: u64,
    start: Start,
) -> Result<(), ServeError> {
    let Loaded { settings, rules } = loaded;
    let _log = log::start(settings.log).map_err(ServeError::Start)?;
    let mut prepared = prepare(settings, Arc::new(rules), id_seed, start)?;
    let reloading = reload::Prepared::new(prepared.live.clone(), source, files);
    prepared.reloading = Some(reloading.map_err(ServeError::Start)?);
    prepared.run(None)
}

impl Prepared {
    /// What calls go by.
    #[must_use]
    pub fn live(&self) -> Live {
        self.live.clone()
    }

    /// Runs until SIGTERM or Ctrl-C, or until `stop` says so, then drains: no new connections,
    /// running requests end, at most for `grace`.
    ///
    /// # Errors
    /// [`ServeError`].
    pub fn run(self, stop: Option<tokio::sync::watch::Receiver<bool>>) -> Result<(), ServeError> {
        let (stop_signals, _asked_in) = StopSignals::begin().map_err(ServeError::Start)?;
        let shared = self.live.now();
        let settings = &shared.settings;
        let workers = settings.threads;
        let conf = ServerConf {
            threads: 1,
            work_stealing: false,
            // pingora would sleep this long in any case; we end as soon as nothing runs, and when
            // `grace` as it is by then is over.
            grace_period_seconds: Some(LONGEST_GRACE_S),
            graceful_shutdown_timeout_seconds: Some(0),
            upstream_keepalive_pool_size: 1024,
            max_retries: MAX_ATTEMPTS,
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
        let held = match self.door {
            Some(_) => Some(self.sockets.hold(settings).map_err(ServeError::Start)?),
            None => None,
        };
        let mut server = Server::new_with_opt_and_conf(None, conf);
        server.bootstrap();
        for (worker, listening) in self.sockets.by_worker.into_iter().enumerate() {
            let conf = server.configuration.clone();
            let worker_of_its_own = Worker::new(self.live.clone(), conf, listening);
            let name = format!("gateway-{worker}");
            server.add_service(background_service(&name, worker_of_its_own));
        }
        let housekeeping = Housekeeping {
            live: self.live.clone(),
            admin: parking_lot::Mutex::new(Some(self.sockets.admin)),
        };
        server.add_service(background_service("admin", housekeeping));
        if let Some(taking) = self.start.taking {
            taking.finish(shared.lasting())?;
        }
        let giving = match (self.door, held) {
            (Some(door), Some(held)) => {
                let seed = shared.rules.keys.seed();
                let giving = Giving::start(door, shared.lasting().clone(), seed, held);
                Some(giving.map_err(ServeError::Start)?)
            }
            _ => None,
        };
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

        let keeping =
            Keeping::start(self.journal, shared.lasting().clone()).map_err(ServeError::Start)?;
        if let Some(reloading) = self.reloading {
            reloading.start().map_err(ServeError::Start)?;
        }
        // Rules that have been replaced are held by the calls that began with them alone.
        drop(shared);

        let (stopping, stopped) = std::sync::mpsc::channel();
        let signals = Signals {
            live: self.live.clone(),
            giving,
            stop,
            stop_signals,
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
        let grace = stopped.recv().map_err(|_| ServeError::Stopped)?;
        let shared = self.live.now();
        let settings = &shared.settings;
        let patience = leave::until_done(&shared, workers, grace);
        let left = shared.in_flight();
        shared.cut_off();
        let mut waited = Duration::ZERO;
        while shared.in_flight() > 0 && waited < CUT_OFF {
            std::thread::sleep(Duration::from_millis(5));
            waited += Duration::from_millis(5);
        }
        leave::give_back(&shared, patience);
        match left {
            0 => tracing::info!("drained"),
            left => tracing::warn!(
                left,
                grace_s = settings.grace.as_secs(),
                "grace is over; cut off"
            ),
        }
        keeping.end();
        Ok(())
    }
}

/// The thread that writes totals down.
struct Keeping {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Keeping {
    fn start(journal: Option<Journal>, shared: Arc<Lasting>) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        let keep = journal.map(|journal| {
            let keep = move || {
                if let Some(store) = shared.admission.store().embedded() {
                    journal.keep(store.counters(), &told);
                }
            };
            let thread = std::thread::Builder::new().name("totals".to_owned());
            thread.spawn(keep)
        });
        Ok(Self {
            stop,
            thread: keep.transpose()?,
        })
    }

    /// Writes what is left.
    fn end(self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread {
            let _ = thread.join();
        }
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
    live: Live,
    stop: Option<tokio::sync::watch::Receiver<bool>>,
    stop_signals: StopSignals,
    giving: Option<Arc<Giving>>,
    /// Is told how long running calls still have.
    stopping: std::sync::mpsc::Sender<Duration>,
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
        let stages = self.live.look().drain.watch();
        tokio::select! {
            () = self.stop_signals.next() => (),
            () = told => (),
            () = leave::handed_over(stages) => (),
        }
        // Settings may have changed since.
        let shared = self.live.now();
        let left = leave::leave(&shared, self.giving.as_deref(), &self.stop_signals).await;
        let _ = self.stopping.send(left);
        ShutdownSignal::GracefulTerminate
    }
}

/// The admin listener and the sweeping of idle counters.
struct Housekeeping {
    live: Live,
    admin: parking_lot::Mutex<Option<TcpListener>>,
}

#[async_trait]
impl BackgroundService for Housekeeping {
    async fn start(&self, _shutdown: ShutdownWatch) {
        let live = self.live.clone();
        tokio::spawn(async move {
            let mut every = tokio::time::interval(SWEEP_EVERY);
            every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            let mut ticks = 0_u64;
            loop {
                every.tick().await;
                let shared = live.now();
                shared.sweep();
                ticks += 1;
                if ticks.is_multiple_of(10) {
                    shared.sweep_shield();
                }
                if ticks.is_multiple_of(GONE_FOR) {
                    shared.metrics.sweep(&shared.rules);
                }
            }
        });
        tokio::spawn(watch_certificates(self.live.clone()));
        tokio::spawn(tend(self.live.clone()));
        let live = self.live.clone();
        tokio::spawn(async move {
            let lasting = live.now().lasting().clone();
            if let Some(store) = lasting.admission.store().shared() {
                let news = || {
                    let shared = live.now();
                    shared.top.told(&shared.rules, shared.clock.now())
                };
                tokio::join!(store.watch(), store.exchange_news(&news));
            }
        });
        let listener = self.admin.lock().take();
        let Some(listener) = listener else {
            return;
        };
        let stages = self.live.look().drain.watch();
        let served = admin::serve(listener, admin::router(self.live.clone()), stages).await;
        if let Err(error) = served {
            tracing::error!(%error, "the admin listener failed");
        }
    }
}

/// Looks after the upstreams, after a change of settings after the new ones.
async fn tend(live: Live) {
    let mut changes = live.changes();
    loop {
        changes.mark_unchanged();
        let shared = live.now();
        let (upstreams, clock) = (shared.upstreams.clone(), shared.clock);
        drop(shared);
        tokio::select! {
            // What is being looked up or checked is given up: the new ones do that anew.
            biased;
            changed = changes.changed() => if changed.is_err() { return },
            () = upstreams.tend(clock) => return,
        }
    }
}

/// Takes new certificates when their files have changed. Bad ones are reported once.
async fn watch_certificates(live: Live) {
    let mut every = tokio::time::interval(LOOK_AT_CERTIFICATES);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut reported = String::new();
    loop {
        every.tick().await;
        let reader = live.now();
        if !reader.settings.watch {
            continue;
        }
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
