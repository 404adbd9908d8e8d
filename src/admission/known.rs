//! Apps with a recent 2xx: their counters never share the overflow.

use std::collections::HashMap;

use foldhash::fast::RandomState;
use parking_lot::RwLock;

use crate::limit::{CounterKey, Moment};

/// How many apps are remembered. Only an app whose call the backend has answered with 2xx is, so
/// made-up names cannot fill it.
const CAPACITY: usize = 100_000;
/// How long a 2xx counts as recent.
const RECENT_US: u64 = 3_600_000_000;
/// A younger note is not renewed: keeps the write lock off the hot path.
const RENEW_US: u64 = 60_000_000;

#[derive(Debug, Default)]
pub(super) struct KnownApps {
    /// The keys are hashes with a secret already.
    noted: RwLock<HashMap<CounterKey, u64, RandomState>>,
}

impl KnownApps {
    pub(super) fn contains(&self, app: CounterKey, now: Moment) -> bool {
        self.noted
            .read()
            .get(&app)
            .is_some_and(|at| now.mono_us.saturating_sub(*at) < RECENT_US)
    }

    pub(super) fn note(&self, app: CounterKey, now: Moment) {
        let noted_at = self.noted.read().get(&app).copied();
        if noted_at.is_some_and(|at| now.mono_us.saturating_sub(at) < RENEW_US) {
            return;
        }
        let mut noted = self.noted.write();
        if noted.len() >= CAPACITY {
            noted.retain(|_, at| now.mono_us.saturating_sub(*at) < RECENT_US);
        }
        if noted.len() < CAPACITY {
            noted.insert(app, now.mono_us);
        }
    }
}
