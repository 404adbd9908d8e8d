//! The sockets of a gateway: bound, or taken over from the process before.

use std::io;
use std::net::{SocketAddr, TcpListener};

use super::{Offered, Taking};
use crate::gateway::downstream::{self, Listening};
use crate::serve::ServeError;
use crate::settings::{Listen, Settings};

/// The sockets of a gateway that is about to start.
#[derive(Debug)]
pub(crate) struct Sockets {
    /// Where it will listen, ports resolved.
    pub(crate) listen: Vec<Listen>,
    /// The sockets, by worker.
    pub(crate) by_worker: Vec<Vec<Listening>>,
    pub(crate) admin: TcpListener,
    pub(crate) admin_addr: SocketAddr,
}

/// The same once more, for the process that follows.
#[derive(Debug)]
pub(crate) struct Held {
    pub(super) listeners: Vec<(Offered, Vec<TcpListener>)>,
    pub(super) admin: (Offered, TcpListener),
}

impl Sockets {
    /// Takes over what the process before has, and binds the rest.
    pub(crate) fn open(
        settings: &Settings,
        taking: Option<&mut Taking>,
    ) -> Result<Self, ServeError> {
        let workers = settings.threads;
        let (mut inherited, before) = match taking {
            Some(taking) => (taking.sockets(settings)?, taking.addresses()),
            None => (Inherited::default(), Vec::new()),
        };
        let mut listen = Vec::new();
        let mut by_worker: Vec<Vec<Listening>> = (0..workers).map(|_| Vec::new()).collect();
        for how in &settings.listen {
            let failed = |source| ServeError::Listen {
                addr: how.addr,
                flag: "--listen",
                source,
            };
            let (addr, mut sockets) = match inherited.listener(how.addr) {
                Some(taken) => taken,
                None => bind(how.addr, workers, &before).map_err(failed)?,
            };
            // More workers than sockets; fewer have several each, so that none is left alone.
            let missing = workers.saturating_sub(sockets.len());
            sockets.extend(downstream::bind_more(addr, missing).map_err(failed)?);
            let how = Listen { addr, ..*how };
            listen.push(how);
            for (nth, socket) in sockets.into_iter().enumerate() {
                by_worker[nth % workers].push(Listening { socket, how });
            }
        }
        let failed = |source| ServeError::Listen {
            addr: settings.admin,
            flag: "--admin",
            source,
        };
        let admin = match inherited.admin {
            Some(admin) => admin,
            None => TcpListener::bind(settings.admin).map_err(failed)?,
        };
        admin.set_nonblocking(true).map_err(failed)?;
        let admin_addr = admin.local_addr().map_err(failed)?;
        Ok(Self {
            listen,
            by_worker,
            admin,
            admin_addr,
        })
    }

    /// All of them once more.
    pub(crate) fn hold(&self, settings: &Settings) -> io::Result<Held> {
        let mut listeners = Vec::new();
        for (written, how) in settings.listen.iter().zip(&self.listen) {
            let all = self.by_worker.iter().flatten();
            let of_it = all.filter(|listening| listening.how.addr == how.addr);
            let sockets: io::Result<Vec<_>> = of_it.map(|one| one.socket.try_clone()).collect();
            let sockets = sockets?;
            let offered = Offered {
                written: written.addr,
                addr: how.addr,
                sockets: sockets.len(),
            };
            listeners.push((offered, sockets));
        }
        let admin = Offered {
            written: settings.admin,
            addr: self.admin_addr,
            sockets: 1,
        };
        Ok(Held {
            listeners,
            admin: (admin, self.admin.try_clone()?),
        })
    }
}

/// Sockets of the process before.
#[derive(Debug, Default)]
pub(super) struct Inherited {
    pub(super) listeners: Vec<(Offered, Vec<TcpListener>)>,
    pub(super) admin: Option<TcpListener>,
}

impl Inherited {
    /// Those for an address of the settings.
    fn listener(&mut self, written: SocketAddr) -> Option<(SocketAddr, Vec<TcpListener>)> {
        let nth = self.listeners.iter().position(|(of, _)| of.is(written))?;
        let (of, sockets) = self.listeners.swap_remove(nth);
        Some((of.addr, sockets))
    }
}

/// Binds an address that the process before does not have.
fn bind(
    addr: SocketAddr,
    workers: usize,
    before: &[SocketAddr],
) -> io::Result<(SocketAddr, Vec<TcpListener>)> {
    match downstream::bind(addr, workers) {
        // Not taken by just anybody: the process before has the port, on more or other addresses.
        Err(error)
            if error.kind() == io::ErrorKind::AddrInUse
                && before.iter().any(|other| other.port() == addr.port()) =>
        {
            Ok((addr, downstream::bind_more(addr, workers)?))
        }
        bound => bound,
    }
}
