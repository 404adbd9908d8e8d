//! What calls go by at the moment. A reload swaps one pointer; a call loads it once, when it
//! begins. Whatever lives longer than a call holds this, and never what it points to: old rules
//! go when the last call that began with them is over.

use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use tokio::sync::watch;

use super::Shared;

#[derive(Debug)]
struct Inner {
    now: ArcSwap<Shared>,
    changes: watch::Sender<()>,
}

/// A handle on it.
#[derive(Clone, Debug)]
pub struct Live(Arc<Inner>);

impl Live {
    /// Calls go by this.
    #[must_use]
    pub fn new(first: Shared) -> Self {
        first.begin(None);
        Self(Arc::new(Inner {
            now: ArcSwap::from_pointee(first),
            changes: watch::Sender::new(()),
        }))
    }

    /// What a call that begins now goes by, to its end.
    #[must_use]
    pub fn now(&self) -> Arc<Shared> {
        self.0.now.load_full()
    }

    /// The same, for a look at it: not to be kept.
    #[must_use]
    pub fn look(&self) -> Guard<Arc<Shared>> {
        self.0.now.load()
    }

    /// Calls that begin from now on go by this.
    pub fn change(&self, next: Shared) {
        let next = Arc::new(next);
        let previous = self.0.now.swap(next.clone());
        next.begin(Some(&previous));
        self.0.changes.send_replace(());
    }

    /// Wakes whoever must begin anew after a change.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<()> {
        self.0.changes.subscribe()
    }
}
