//! How far a gateway is on its way out.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::watch;

/// The stages of a way out. Each is left for one further down, never back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It serves.
    Open,
    /// `/ready` fails and connections are not kept; callers are still let in.
    Leaving,
    /// What is queued on the listeners is served, and then they close.
    Closing,
    /// Another process has the listeners, but for those on these addresses, which close.
    HandedOver {
        /// Addresses that the other process does not listen on.
        left: Arc<[SocketAddr]>,
    },
}

impl Stage {
    /// Whether no more is accepted.
    #[must_use]
    pub fn is_closing(&self) -> bool {
        matches!(self, Self::Closing | Self::HandedOver { .. })
    }

    /// Whether another process accepts what comes to this address.
    #[must_use]
    pub fn has_given(&self, addr: SocketAddr) -> bool {
        matches!(self, Self::HandedOver { left } if !left.contains(&addr))
    }
}

/// The way out of one gateway.
#[derive(Debug)]
pub struct Drain {
    /// Looked at with every answer.
    leaving: AtomicBool,
    stage: watch::Sender<Stage>,
    /// Workers that accept no more and have no idle connections.
    closed: AtomicUsize,
    /// Connections that were accepted and have had no call yet.
    unheard: Arc<AtomicUsize>,
}

/// A connection that has had no call yet.
#[derive(Debug)]
pub(super) struct Unheard(Arc<AtomicUsize>);

impl Drop for Unheard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Default for Drain {
    fn default() -> Self {
        Self {
            leaving: AtomicBool::new(false),
            stage: watch::Sender::new(Stage::Open),
            closed: AtomicUsize::new(0),
            unheard: Arc::default(),
        }
    }
}

impl Drain {
    /// Whether it has begun.
    pub fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Relaxed)
    }

    /// The stages, from now on.
    pub fn watch(&self) -> watch::Receiver<Stage> {
        self.stage.subscribe()
    }

    /// From now on `/ready` fails and connections are not kept. `false`: it had begun already.
    pub fn leave(&self) -> bool {
        self.go(Stage::Leaving, |stage| *stage == Stage::Open)
    }

    /// From now on the listeners close. `false`: they are another process's.
    pub fn close(&self) -> bool {
        self.go(Stage::Closing, |stage| !stage.is_closing())
    }

    /// From now on the listeners are another process's. `false`: they are about to close.
    pub fn hand_over(&self, left: Arc<[SocketAddr]>) -> bool {
        self.go(Stage::HandedOver { left }, |stage| *stage == Stage::Open)
    }

    fn go(&self, to: Stage, from: impl Fn(&Stage) -> bool) -> bool {
        self.stage.send_if_modified(|stage| {
            let goes = from(stage);
            if goes {
                self.leaving.store(true, Ordering::Relaxed);
                *stage = to;
            }
            goes
        })
    }

    /// One more connection is here.
    pub(super) fn comes(&self) -> Unheard {
        self.unheard.fetch_add(1, Ordering::AcqRel);
        Unheard(self.unheard.clone())
    }

    /// Until every connection has had its first call, or is gone, at most so long.
    pub(super) async fn all_heard(&self, longest: Duration) {
        let heard = async {
            while self.unheard.load(Ordering::Acquire) > 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let _ = tokio::time::timeout(longest, heard).await;
    }

    /// One more worker has nothing but running calls.
    pub(super) fn worker_closed(&self) {
        self.closed.fetch_add(1, Ordering::Release);
    }

    /// Workers that have nothing but running calls.
    pub fn workers_closed(&self) -> usize {
        self.closed.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_been_told_to_leave_hands_nothing_over() {
        let drain = Drain::default();
        assert!(drain.leave());
        assert!(drain.is_leaving());
        assert!(!drain.leave());
        assert!(!drain.hand_over(Arc::default()));
        assert!(drain.close());
        assert!(drain.watch().borrow().is_closing());
    }

    #[test]
    fn what_is_another_process_s_is_not_closed() {
        let drain = Drain::default();
        let left: SocketAddr = "127.0.0.1:1".parse().unwrap();
        let given: SocketAddr = "127.0.0.1:2".parse().unwrap();
        assert!(drain.hand_over([left].into()));
        assert!(drain.is_leaving() && !drain.close());
        let watch = drain.watch();
        let stage = watch.borrow();
        assert!(stage.is_closing() && stage.has_given(given) && !stage.has_given(left));
    }
}
