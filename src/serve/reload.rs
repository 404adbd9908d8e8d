//! Reloads: what the process was started with is read again, and taken as a whole or not at all.
//! On a thread of its own: reading, and looking names up, may take their time.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use super::seen::{Files, Watch};
use super::{ServeError, policy, raise_file_limit};
use crate::clock;
use crate::gateway::upstream::Addresses;
use crate::gateway::{Live, Shared};
use crate::limit::KeyHasher;
use crate::observe::admin;
use crate::observe::reloads::{Ask, Cause, Done, Report};
use crate::settings::Settings;
use crate::spec::Ruleset;
use crate::text::printable;

/// How often files are looked at. A change counts when it is the same at two looks.
const LOOK: Duration = Duration::from_millis(500);
/// How often files are read that somebody is writing.
const MOST_TRIES: u32 = 5;
/// Mistakes of one reload that are logged; the admin listener tells all.
const MOST_LOGGED: usize = 20;

/// What of the running gateway the next configuration depends on.
#[derive(Clone, Debug)]
pub struct Running {
    /// Counters are known by its keys.
    pub keys: KeyHasher,
    /// The last addresses of upstreams: they stay while a name cannot be looked up.
    pub addresses: Addresses,
}

/// Settings and rules, read and valid.
#[derive(Debug)]
pub struct Loaded {
    /// The settings.
    pub settings: Settings,
    /// The rules, with their apps.
    pub rules: Ruleset,
}

/// Where settings and rules come from.
pub trait Source: Send {
    /// Reads all anew. What it reads goes through `files`.
    ///
    /// # Errors
    /// Every mistake, one a line.
    fn read(&self, running: &Running, files: &Files) -> Result<Loaded, String>;
}

/// All that a reload needs.
pub(super) struct Reloading {
    live: Live,
    source: Box<dyn Source>,
    watch: Watch,
    asks: mpsc::Receiver<Ask>,
    hangup: Signal,
}

type Replies = Vec<oneshot::Sender<Report>>;

/// Not begun.
pub(super) struct Prepared {
    reloading: Reloading,
    runtime: Runtime,
}

impl std::fmt::Debug for Prepared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Prepared").finish_non_exhaustive()
    }
}

impl Prepared {
    /// Ready to reload what was read through `files`. From here on, SIGHUP ends nothing.
    pub(super) fn new(live: Live, source: Box<dyn Source>, files: &Files) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let hangup = {
            let _inside = runtime.enter();
            signal(SignalKind::hangup())?
        };
        let shared = live.now();
        note_others(&shared.settings, files);
        let mut watch = Watch::default();
        watch.read(files.seen());
        shared.reloads.began(files.hash(), clock::unix_us());
        let asks = shared.reloads.open();
        let asks = asks.ok_or_else(|| io::Error::other("a gateway is reloaded in one place"))?;
        let reloading = Reloading {
            live,
            source,
            watch,
            asks,
            hangup,
        };
        Ok(Self { reloading, runtime })
    }

    /// Reloads from now on, for as long as the process lives.
    pub(super) fn start(self) -> io::Result<()> {
        let Self {
            mut reloading,
            runtime,
        } = self;
        let thread = std::thread::Builder::new().name("reload".to_owned());
        thread.spawn(move || {
            loop {
                let (cause, replies) = runtime.block_on(reloading.wait());
                let report = reloading.reload(cause);
                for reply in replies {
                    // Who has gone is told nothing.
                    let _ = reply.send(report.clone());
                }
            }
        })?;
        Ok(())
    }
}

impl Reloading {
    /// Until there is a reason to reload. All who ask before it begins share it.
    async fn wait(&mut self) -> (Cause, Replies) {
        loop {
            tokio::select! {
                Some(ask) = self.asks.recv() => {
                    let mut replies = vec![ask.reply];
                    while let Ok(ask) = self.asks.try_recv() {
                        replies.push(ask.reply);
                    }
                    return (Cause::Request, replies);
                }
                _ = self.hangup.recv() => return (Cause::Signal, Vec::new()),
                () = tokio::time::sleep(LOOK) => {}
            }
            if self.live.look().settings.watch && self.watch.has_changed() {
                return (Cause::File, Vec::new());
            }
        }
    }

    fn reload(&mut self, cause: Cause) -> Report {
        let shared = self.live.now();
        let began_us = clock::unix_us();
        let (files, read) = self.read(&shared);
        let taken = read.and_then(|loaded| self.take(&shared, loaded));
        let done = match taken {
            Ok(waiting) => Done::Applied {
                hash: files.hash(),
                waiting,
            },
            Err(mistakes) => Done::Failed {
                mistakes: mistakes.lines().map(str::to_owned).collect(),
            },
        };
        self.watch.read(files.seen());
        let now_us = clock::unix_us();
        let took_ms = now_us.saturating_sub(began_us) / 1000;
        say(cause, &done, took_ms);
        shared.reloads.note(cause, &done, now_us, took_ms)
    }

    /// Reads all anew, and again where somebody writes meanwhile: the half of a file may be a
    /// good one, with half the limits.
    fn read(&self, shared: &Shared) -> (Files, Result<Loaded, String>) {
        let running = Running {
            keys: shared.rules.keys,
            addresses: shared.upstreams.addresses(),
        };
        let mut tries = 0;
        loop {
            let files = Files::default();
            // Those in use, too: the settings that name others may be the bad ones.
            note_others(&shared.settings, &files);
            let read = self.source.read(&running, &files);
            if let Ok(loaded) = &read {
                note_others(&loaded.settings, &files);
            }
            tries += 1;
            if tries == MOST_TRIES || files.are_still_so() {
                return (files, read);
            }
        }
    }

    /// Lets calls go by what was read. The settings that wait for a restart.
    fn take(&self, shared: &Shared, loaded: Loaded) -> Result<Vec<&'static str>, String> {
        let Loaded {
            mut settings,
            rules,
        } = loaded;
        let waiting = settings.keep_what_cannot_change(&shared.settings);
        let policy = policy(&settings, &rules).map_err(|error| error.to_string())?;
        let lasting = shared.lasting().clone();
        let next = Shared::new(settings, Arc::new(rules), policy, lasting, Some(shared))
            .map_err(|error| ServeError::from(error).to_string())?;
        if next.settings.max_connections != shared.settings.max_connections {
            raise_file_limit(&next.settings);
        }
        if next.settings.admin_token_for_all != shared.settings.admin_token_for_all {
            admin::warn_if_open(&next.settings);
        }
        self.live.change(next);
        Ok(waiting)
    }
}

/// Files that are read by others than the source. Those of the TLS listeners have a watch of
/// their own: they are taken even while something else is bad.
fn note_others(settings: &Settings, files: &Files) {
    let pools = settings.pools.iter().filter_map(|pool| pool.ca.as_ref());
    let others: Vec<&PathBuf> = pools.chain(&settings.upstream_ca).collect();
    for path in others {
        files.note(path);
    }
}

fn say(cause: Cause, done: &Done, took_ms: u64) {
    let cause = cause.as_str();
    match done {
        Done::Applied { hash, waiting } => {
            tracing::info!(cause, took_ms, config_hash = %hash, "reloaded");
            for setting in waiting {
                tracing::warn!(
                    setting,
                    "changed, and waits for a restart; all else is in use"
                );
            }
        }
        Done::Failed { mistakes } => {
            for mistake in mistakes.iter().take(MOST_LOGGED) {
                tracing::error!(cause, mistake = &*printable(mistake), "cannot reload");
            }
            let mistakes = mistakes.len();
            tracing::error!(
                cause,
                took_ms,
                mistakes,
                "reload failed; settings, routes and apps are as they were"
            );
        }
    }
}
