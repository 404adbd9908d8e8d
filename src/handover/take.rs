//! The new process's part.

use std::collections::BTreeSet;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::counters::help;
use super::sockets::Inherited;
use super::wire::{Wire, odd};
use super::{Ask, HandoverError, Offer, PROTOCOL, Say};
use crate::gateway::Lasting;
use crate::settings::Settings;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// The new process's end.
#[derive(Debug)]
pub struct Taking {
    wire: Wire,
    offer: Offer,
}

impl Taking {
    /// Asks the process at this socket what it has to give.
    ///
    /// # Errors
    /// When there is none, or it will not.
    pub(super) fn begin(path: &Path) -> Result<Self, HandoverError> {
        let nobody = |source| HandoverError::Nobody {
            path: path.to_owned(),
            source,
        };
        let mut wire = Wire::new(UnixStream::connect(path).map_err(nobody)?);
        wire.patience(Some(PATIENCE))?;
        let (theirs, ours) = (wire.peer()?, rustix::process::geteuid().as_raw());
        if theirs != ours {
            let path = path.to_owned();
            return Err(HandoverError::Stranger { path, theirs, ours });
        }
        wire.send(&Ask::Hello {
            protocol: PROTOCOL,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        })?;
        match receive(&mut wire)? {
            Say::Welcome(offer) => Ok(Self { wire, offer }),
            _ => Err(unexpected().into()),
        }
    }

    /// The secret of its counter keys.
    pub(super) fn seed(&self) -> Option<(u64, u64)> {
        self.offer.seed
    }

    /// Where it listens.
    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        let all = self.offer.listeners.iter();
        all.map(|offered| offered.addr).collect()
    }

    /// Gets the sockets that these settings have a use for.
    pub(super) fn sockets(&mut self, settings: &Settings) -> Result<Inherited, HandoverError> {
        let of = |written| {
            let mut all = self.offer.listeners.iter();
            all.position(|offered| offered.is(written))
        };
        let listeners: BTreeSet<_> = settings.listen.iter().filter_map(|l| of(l.addr)).collect();
        let listeners: Vec<usize> = listeners.into_iter().collect();
        let admin = self.offer.admin.is(settings.admin);
        self.wire.send(&Ask::Take {
            listeners: listeners.clone(),
            admin,
        })?;
        let mut inherited = Inherited::default();
        match receive(&mut self.wire)? {
            Say::Sockets => {}
            _ => return Err(unexpected().into()),
        }
        for nth in listeners {
            let offered = self.offer.listeners[nth];
            let sockets = self.wire.receive_sockets(offered.sockets)?;
            let sockets = sockets.into_iter().map(TcpListener::from).collect();
            inherited.listeners.push((offered, sockets));
        }
        if admin {
            let socket = self.wire.receive_sockets(1)?;
            inherited.admin = socket.into_iter().next().map(TcpListener::from);
        }
        Ok(inherited)
    }

    /// Everything else is there: the running process has its last word.
    ///
    /// # Errors
    /// When it will not go.
    pub(crate) fn finish(mut self, shared: &Arc<Lasting>) -> Result<(), HandoverError> {
        let embedded = shared.admission.store().embedded();
        let embedded = embedded.filter(|_| self.offer.seed.is_some());
        let counters = embedded.is_some();
        self.wire.send(&Ask::Ready { counters })?;
        let mut running = Vec::new();
        loop {
            match (receive(&mut self.wire)?, embedded) {
                (Say::Counters(piece), Some(embedded)) => {
                    running.extend(embedded.counters().move_in(piece));
                }
                (Say::End, _) => break,
                _ => return Err(unexpected().into()),
            }
        }
        self.wire.send(&Ask::Go)?;
        match receive(&mut self.wire)? {
            Say::Gone => {}
            _ => return Err(unexpected().into()),
        }
        let Offer { pid, version, .. } = &self.offer;
        tracing::info!(pid, version, counters, "took over from the process before");
        if counters {
            help(self.wire, shared.clone(), running)?;
        } else if self.offer.seed.is_some() != shared.admission.store().embedded().is_some() {
            tracing::warn!("the store is another one: counters begin anew");
        }
        Ok(())
    }
}

fn receive(wire: &mut Wire) -> Result<Say, HandoverError> {
    match wire.receive()? {
        Say::Refused(why) => Err(HandoverError::Refused(why)),
        said => Ok(said),
    }
}

fn unexpected() -> io::Error {
    odd("it said something unexpected")
}
