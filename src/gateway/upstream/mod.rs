//! The way upstream: pools of addresses, whom each serves, which address gets a call, and what
//! becomes of those that fail. Knows the ruleset only to find a call's pool.

mod authority;
mod choice;
mod endpoint;
mod health;
pub(crate) mod names;
mod pool;
mod users;
mod way;

use std::sync::Arc;

use self::endpoint::Ejecting;
use self::pool::Pool;
use self::users::Users;
pub(super) use self::way::{Broken, Way};
use crate::admission::Call;
use crate::clock::Clock;
use crate::observe::upstreams::UpstreamMetrics;
use crate::settings::{Settings, Tending};
use crate::spec::Ruleset;

pub use self::users::unknown_users;

/// Attempts for one call; no address is connected to twice.
pub const MAX_ATTEMPTS: usize = 8;

/// Why the pools of the settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// A pool's certificates.
    #[error("pool {pool}: ca {path}: {reason}; write the path of a PEM file of certificates")]
    Ca {
        /// The pool.
        pool: String,
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Users of pools that the rules do not know, one a line.
    #[error("{0}")]
    Users(String),
}

/// What ends a call that has had its time.
pub(super) fn out_of_time() -> Box<pingora::Error> {
    let why = "the call has had its time";
    pingora::Error::explain(pingora::ErrorType::ReadTimedout, why).into_up()
}

/// All pools of a gateway.
#[derive(Debug)]
pub struct Upstreams {
    pools: Box<[Pool]>,
    users: Users,
    tending: Tending,
    metrics: UpstreamMetrics,
}

impl Upstreams {
    /// Puts the pools together.
    ///
    /// # Errors
    /// [`UpstreamError`].
    pub fn new(
        settings: &Settings,
        rules: &Ruleset,
        metrics: &UpstreamMetrics,
    ) -> Result<Self, UpstreamError> {
        let tending = settings.tending.clone();
        let ejecting = Ejecting {
            after: tending.eject_after,
            time: tending.eject_time,
        };
        let mut pools = Vec::new();
        for pool in &settings.pools {
            let ca = pool.ca.as_deref().map(authority::load).transpose();
            let ca = ca.map_err(|reason| UpstreamError::Ca {
                pool: pool.name.clone(),
                path: pool.ca.iter().map(|p| p.display().to_string()).collect(),
                reason,
            })?;
            let budget = tending.retry_budget;
            pools.push(Pool::new(pool, ca.as_ref(), ejecting, budget, metrics));
        }
        let unknown = unknown_users(&settings.pools, rules);
        if !unknown.is_empty() {
            return Err(UpstreamError::Users(unknown.join("\n")));
        }
        Ok(Self {
            users: Users::new(&settings.pools, rules),
            pools: pools.into(),
            tending,
            metrics: metrics.clone(),
        })
    }

    /// The pool of a call.
    fn pool_of(&self, call: Option<&Call>) -> usize {
        call.map_or(0, |call| self.users.pool_of(call))
    }

    /// The first pool in which nothing is well, and how many addresses it has.
    pub fn unwell(&self) -> Option<(&str, usize)> {
        let pool = self.pools.iter().find(|pool| !pool.is_well())?;
        Some((&pool.name, pool.well().1))
    }

    /// Brings the gauges up to date.
    pub fn show(&self) {
        for endpoint in self.pools.iter().flat_map(|pool| pool.endpoints()) {
            endpoint.metrics.up.set(i64::from(endpoint.is_well()));
            let in_flight = i64::try_from(endpoint.in_flight()).unwrap_or(i64::MAX);
            endpoint.metrics.in_flight.set(in_flight);
        }
    }

    /// Looks names up again, checks health, and ends ejections, for ever. Never on a thread that
    /// serves calls.
    pub async fn tend(self: Arc<Self>, clock: Clock, ca_file: Option<String>) {
        tokio::join!(
            names::watch(self.clone()),
            health::watch(self.clone(), ca_file),
            health::readmit(self, clock),
        );
    }
}
