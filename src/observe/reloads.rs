//! Reloads: who may ask for one, and what became of the last.

use std::sync::OnceLock;

use parking_lot::Mutex;
use prometheus::core::Collector;
use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

/// Reloads that may be asked for before one is done.
const MOST_ASKED: usize = 128;

/// Metrics of reloads.
#[derive(Clone, Debug)]
pub struct ReloadMetrics {
    successful: IntGauge,
    at: IntGauge,
    applied: IntCounter,
    failed: IntCounter,
    hash: IntGauge,
    waiting: IntGauge,
}

impl ReloadMetrics {
    /// Registers them.
    ///
    /// # Errors
    /// When a metric is described wrongly; never with the names below.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        fn kept<C: Collector + Clone + 'static>(
            registry: &Registry,
            one: C,
        ) -> prometheus::Result<C> {
            registry.register(Box::new(one.clone()))?;
            Ok(one)
        }
        let gauge = |name: &str, help: &str| kept(registry, IntGauge::new(name, help)?);
        let reloads = kept(
            registry,
            IntCounterVec::new(
                Opts::new(
                    "floodgate_config_reloads_total",
                    "Reloads by result: applied, failed.",
                ),
                &["result"],
            )?,
        )?;
        let metrics = Self {
            successful: gauge(
                "floodgate_config_last_reload_successful",
                "Whether the last reload was applied (1 before the first); 0: its files are bad, and those before are in use.",
            )?,
            at: gauge(
                "floodgate_config_last_reload_success_timestamp_seconds",
                "When the configuration in use was taken, Unix seconds.",
            )?,
            applied: reloads.with_label_values(&["applied"]),
            failed: reloads.with_label_values(&["failed"]),
            hash: gauge(
                "floodgate_config_hash",
                "48 bits of a hash of the settings, route and app files in use: gateways with the same files have the same.",
            )?,
            waiting: gauge(
                "floodgate_config_restart_needed",
                "Settings in the files that wait for a restart.",
            )?,
        };
        metrics.successful.set(1);
        Ok(metrics)
    }
}

/// Who asked for a reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Cause {
    /// SIGHUP.
    Signal,
    /// A file has changed.
    File,
    /// `POST /reload`.
    Request,
}

impl Cause {
    /// The word for logs and answers.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Signal => "signal",
            Self::File => "file",
            Self::Request => "request",
        }
    }
}

/// A hash of files: 48 bits, so that a gauge can show it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConfigHash(pub u64);

impl std::fmt::Display for ConfigHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:012x}", self.0)
    }
}

/// What a reload has done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done {
    /// Calls go by the new configuration.
    Applied {
        /// Of its files.
        hash: ConfigHash,
        /// Settings that wait for a restart.
        waiting: Vec<&'static str>,
    },
    /// Nothing has changed.
    Failed {
        /// What is wrong, each with its place.
        mistakes: Vec<String>,
    },
}

/// One reload, as the admin listener tells it.
#[derive(Clone, Debug, Serialize)]
struct Last {
    result: &'static str,
    cause: Cause,
    at: String,
    took_ms: u64,
    mistakes: Vec<String>,
}

/// What there is to tell of reloads.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    config_hash: String,
    in_use_since: String,
    restart_needed: Vec<&'static str>,
    applied: u64,
    failed: u64,
    last: Option<Last>,
}

impl Report {
    /// Whether the last reload failed.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.last
            .as_ref()
            .is_some_and(|last| !last.mistakes.is_empty())
    }
}

/// Who asks for a reload, and how it is told the end.
#[derive(Debug)]
pub struct Ask {
    /// Told what became of it.
    pub reply: oneshot::Sender<Report>,
}

/// Why no reload can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// Nothing was read from files or flags that could be read again.
    #[error("this gateway has nothing to read again")]
    Never,
    /// Too many wait.
    #[error("too many reloads are waiting; ask again")]
    Full,
}

/// Reloads of a gateway.
#[derive(Debug)]
pub struct Reloads {
    metrics: ReloadMetrics,
    report: Mutex<Report>,
    asks: OnceLock<mpsc::Sender<Ask>>,
}

fn time(unix_us: u64) -> String {
    let second = i64::try_from(unix_us / 1_000_000).unwrap_or(i64::MAX);
    let at = jiff::Timestamp::from_second(second).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    at.to_string()
}

impl Reloads {
    /// None yet.
    #[must_use]
    pub fn new(metrics: ReloadMetrics) -> Self {
        Self {
            metrics,
            report: Mutex::default(),
            asks: OnceLock::new(),
        }
    }

    /// Reloads can be asked for from now on; they are to be taken from here. `None`: they could
    /// before.
    pub fn open(&self) -> Option<mpsc::Receiver<Ask>> {
        let (ask, asks) = mpsc::channel(MOST_ASKED);
        self.asks.set(ask).ok().map(|()| asks)
    }

    /// Asks for a reload that begins from now on, and waits for its end.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn ask(&self) -> Result<Report, AskError> {
        let (reply, told) = oneshot::channel();
        let asks = self.asks.get().ok_or(AskError::Never)?;
        asks.try_send(Ask { reply }).map_err(|_| AskError::Full)?;
        told.await.map_err(|_| AskError::Full)
    }

    /// The configuration that the process began with.
    pub fn began(&self, hash: ConfigHash, unix_us: u64) {
        let mut report = self.report.lock();
        self.in_use(&mut report, hash, unix_us);
    }

    fn in_use(&self, report: &mut Report, hash: ConfigHash, unix_us: u64) {
        report.config_hash = hash.to_string();
        report.in_use_since = time(unix_us);
        let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        self.metrics.hash.set(gauge(hash.0));
        self.metrics.at.set(gauge(unix_us / 1_000_000));
    }

    /// Notes the end of a reload.
    pub fn note(&self, cause: Cause, done: &Done, unix_us: u64, took_ms: u64) -> Report {
        let mut report = self.report.lock();
        let (result, mistakes) = match done {
            Done::Applied { hash, waiting } => {
                self.in_use(&mut report, *hash, unix_us);
                report.restart_needed.clone_from(waiting);
                report.applied += 1;
                self.metrics.applied.inc();
                let waiting = i64::try_from(waiting.len()).unwrap_or(i64::MAX);
                self.metrics.waiting.set(waiting);
                ("applied", Vec::new())
            }
            Done::Failed { mistakes } => {
                report.failed += 1;
                self.metrics.failed.inc();
                ("failed", mistakes.clone())
            }
        };
        let is_applied = matches!(done, Done::Applied { .. });
        self.metrics.successful.set(i64::from(is_applied));
        report.last = Some(Last {
            result,
            cause,
            at: time(unix_us),
            took_ms,
            mistakes,
        });
        report.clone()
    }

    /// What there is to tell.
    #[must_use]
    pub fn report(&self) -> Report {
        self.report.lock().clone()
    }
}
