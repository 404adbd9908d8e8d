//! The running process's part.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::counters::ask;
use super::wire::{Wire, odd};
use super::{Ask, HandoverError, Held, Offer, PROTOCOL, Say};
use crate::gateway::Lasting;
use crate::store::away::Movable;

/// How long it may take to say who it is.
const TO_GREET: Duration = Duration::from_secs(5);
/// Who may be heard at once. Only processes of the same user come in.
const MOST_HEARD: usize = 8;
/// How long a new process may take to read its settings and rules.
const TO_PREPARE: Duration = Duration::from_secs(60);
/// How long it may take once this one waits for it.
const TO_GO: Duration = Duration::from_secs(5);

/// A socket that new processes ask at, under a name that nobody knows yet.
#[derive(Debug)]
pub(crate) struct Door {
    listener: UnixListener,
    hidden: Hidden,
    path: PathBuf,
    /// Device and number of its file.
    file: (u64, u64),
}

/// A file that goes if nothing comes of it.
#[derive(Debug)]
struct Hidden(PathBuf);

impl Drop for Hidden {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Door {
    /// Makes it. `follows`: the process that is there now is about to go.
    pub(crate) fn make(path: &Path, follows: bool) -> Result<Self, HandoverError> {
        let failed = |source| HandoverError::Bind {
            path: path.to_owned(),
            source,
        };
        match std::fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                let why = "there is a file, and it is no socket";
                return Err(failed(io::Error::new(io::ErrorKind::AlreadyExists, why)));
            }
            Ok(_) if !follows && UnixStream::connect(path).is_ok() => {
                let path = path.to_owned();
                return Err(HandoverError::Occupied { path });
            }
            _ => {}
        }
        // Nobody finds it before it is closed to others.
        let mut hidden = path.as_os_str().to_owned();
        hidden.push(format!(".{}", std::process::id()));
        let hidden = Hidden(PathBuf::from(hidden));
        let _ = std::fs::remove_file(&hidden.0);
        let listener = UnixListener::bind(&hidden.0).map_err(failed)?;
        let own = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(&hidden.0, own).map_err(failed)?;
        let made = std::fs::symlink_metadata(&hidden.0).map_err(failed)?;
        Ok(Self {
            listener,
            hidden,
            path: path.to_owned(),
            file: (made.dev(), made.ino()),
        })
    }
}

/// What a running process has to give, and to whom.
#[derive(Debug)]
pub(crate) struct Giving {
    shared: Arc<Lasting>,
    seed: Option<(u64, u64)>,
    path: PathBuf,
    file: (u64, u64),
    /// `None`: no more.
    held: Mutex<Option<Held>>,
    /// One at a time takes over.
    turn: Mutex<()>,
    heard: AtomicUsize,
}

impl Giving {
    /// Answers new processes from now on.
    ///
    /// # Errors
    /// When there is no thread for it, or no place.
    pub(crate) fn start(
        door: Door,
        shared: Arc<Lasting>,
        seed: Option<(u64, u64)>,
        held: Held,
    ) -> io::Result<Arc<Self>> {
        // In the place of the process before.
        std::fs::rename(&door.hidden.0, &door.path)?;
        let giving = Arc::new(Self {
            shared,
            seed,
            path: door.path,
            file: door.file,
            held: Mutex::new(Some(held)),
            turn: Mutex::new(()),
            heard: AtomicUsize::new(0),
        });
        let (listener, serving) = (door.listener, giving.clone());
        std::thread::Builder::new()
            .name("upgrade".to_owned())
            .spawn(move || {
                for stream in listener.incoming() {
                    match stream {
                        Ok(stream) => serving.hear(stream),
                        Err(error) => {
                            tracing::error!(%error, "the upgrade socket failed");
                            std::thread::sleep(Duration::from_secs(1));
                        }
                    }
                    if serving.held.lock().is_none() {
                        return;
                    }
                }
            })?;
        Ok(giving)
    }

    /// Gives nothing more: the listeners are about to close.
    pub(crate) fn end(&self) {
        if self.held.lock().take().is_some() {
            self.remove();
        }
    }

    fn remove(&self) {
        let ours = |found: std::fs::Metadata| (found.dev(), found.ino()) == self.file;
        if std::fs::symlink_metadata(&self.path).is_ok_and(ours) {
            let _ = std::fs::remove_file(&self.path);
        }
    }

    /// On a thread of its own: one that says nothing keeps nobody from upgrading.
    fn hear(self: &Arc<Self>, stream: UnixStream) {
        if self.heard.fetch_add(1, Ordering::Relaxed) >= MOST_HEARD {
            self.heard.fetch_sub(1, Ordering::Relaxed);
            tracing::warn!("too many ask for an upgrade at once");
            return;
        }
        let this = self.clone();
        let thread = std::thread::Builder::new().name("upgrading".to_owned());
        let spawned = thread.spawn(move || {
            this.serve(stream);
            this.heard.fetch_sub(1, Ordering::Relaxed);
        });
        if let Err(error) = spawned {
            self.heard.fetch_sub(1, Ordering::Relaxed);
            tracing::error!(%error, "no thread for an upgrade");
        }
    }

    fn serve(&self, stream: UnixStream) {
        let mut wire = Wire::new(stream);
        match self.talk(&mut wire) {
            Ok(Some(counters)) => ask(wire, counters),
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "asked for an upgrade; nothing came of it"),
        }
    }

    /// The conversation up to its end; with the counters that are with the other then.
    fn talk(&self, wire: &mut Wire) -> io::Result<Option<&Movable>> {
        wire.patience(Some(TO_GREET))?;
        let (theirs, ours) = (wire.peer()?, rustix::process::geteuid().as_raw());
        if theirs != ours {
            let why = format!("user {theirs} asked; only user {ours} may");
            let _ = wire.send(&Say::Refused("only for the same user".to_owned()));
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
        let Ask::Hello { protocol, version } = wire.receive()? else {
            return Err(odd("no hello"));
        };
        let ours = env!("CARGO_PKG_VERSION");
        if protocol != PROTOCOL {
            let why = format!(
                "version {ours} cannot hand over to {version}; stop it, and start the other"
            );
            return refuse(wire, &why);
        }
        let Some(_turn) = self.turn.try_lock() else {
            return refuse(wire, ANOTHER);
        };
        wire.patience(Some(TO_PREPARE))?;
        let Some(offer) = self.offer() else {
            return refuse(wire, ON_ITS_WAY);
        };
        if self.embedded().is_some_and(Movable::is_helping) {
            return refuse(wire, STILL_HELPING);
        }
        wire.send(&Say::Welcome(offer))?;
        let Ask::Take { listeners, admin } = wire.receive()? else {
            return Err(odd("nothing is taken"));
        };
        let left = match &*self.held.lock() {
            Some(held) => give(wire, held, &listeners, admin)?,
            None => return refuse(wire, ON_ITS_WAY),
        };
        let Ask::Ready { counters } = wire.receive()? else {
            return Err(odd("it is not ready"));
        };
        wire.patience(Some(TO_GO))?;
        let counters = self.embedded().filter(|_| counters);
        let gone = self.go(wire, counters, left);
        if let (Ok(false) | Err(_), Some(counters)) = (&gone, counters) {
            counters.come_back();
        }
        Ok(gone?.then_some(counters).flatten())
    }

    /// Gives the counters, and the listeners with the last word. Whether the other has them.
    fn go(
        &self,
        wire: &mut Wire,
        counters: Option<&Movable>,
        left: Arc<[SocketAddr]>,
    ) -> io::Result<bool> {
        if let Some(counters) = counters {
            counters.begin_move();
            let give = |piece| wire.send(&Say::Counters(piece));
            counters.counters().move_out(give)?;
        }
        wire.send(&Say::End)?;
        let Ask::Go = wire.receive()? else {
            return Err(odd("it does not go"));
        };
        if !self.shared.drain.hand_over(left) {
            refuse::<()>(wire, ON_ITS_WAY)?;
            return Ok(false);
        }
        self.held.lock().take();
        wire.send(&Say::Gone)?;
        Ok(true)
    }

    fn embedded(&self) -> Option<&Movable> {
        self.shared.admission.store().embedded()
    }

    fn offer(&self) -> Option<Offer> {
        let held = self.held.lock();
        let held = held.as_ref()?;
        Some(Offer {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            seed: self.embedded().and(self.seed),
            listeners: held.listeners.iter().map(|(offered, _)| *offered).collect(),
            admin: held.admin.0,
        })
    }
}

const ON_ITS_WAY: &str = "it is about to end; wait for that, and start without --upgrade";
const ANOTHER: &str =
    "another process is taking over from it; wait until that one runs, or has ended";
const STILL_HELPING: &str = "the process before it still has connections, whose calls are decided \
                             by its counters; wait until that one has ended (`grace` at most)";

fn refuse<T>(wire: &mut Wire, why: &str) -> io::Result<Option<T>> {
    tracing::warn!(why, "asked for an upgrade, and refused it");
    wire.send(&Say::Refused(why.to_owned())).map(|()| None)
}

/// Gives the sockets of these addresses. The addresses that are left.
fn give(
    wire: &mut Wire,
    held: &Held,
    listeners: &[usize],
    admin: bool,
) -> io::Result<Arc<[SocketAddr]>> {
    let mut sockets = Vec::new();
    for nth in listeners {
        let (_, of_it) = held
            .listeners
            .get(*nth)
            .ok_or_else(|| odd("no such listener"))?;
        sockets.push(
            of_it
                .iter()
                .map(|socket| socket.as_fd())
                .collect::<Vec<_>>(),
        );
    }
    if admin {
        sockets.push(vec![held.admin.1.as_fd()]);
    }
    wire.send(&Say::Sockets)?;
    for some in sockets {
        wire.send_sockets(&some)?;
    }
    let all = held.listeners.iter().enumerate();
    let left = all.filter(|(nth, _)| !listeners.contains(nth));
    Ok(left.map(|(_, (offered, _))| offered.addr).collect())
}
