//! The way upstream: pools of addresses, whom each serves, which address gets a call, and what
//! becomes of those that fail. Knows the ruleset only to find a call's pool.

mod adaptive;
mod authority;
mod choice;
mod endpoint;
mod health;
pub(crate) mod names;
mod place;
mod pool;
mod refused;
mod standing;
mod users;
mod way;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use pingora::protocols::tls::CaType;

use self::pool::Pool;
use self::users::Users;
pub(super) use self::way::{Broken, Hop, NOWHERE, Way};
use crate::admission::Call;
use crate::clock::Clock;
use crate::observe::upstreams::UpstreamMetrics;
use crate::settings::{PoolSettings, Settings, Tending};
use crate::spec::Ruleset;

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
    /// The certificates for all pools that have none of their own.
    #[error("--upstream-ca {path}: {reason}; write the path of a PEM file of certificates")]
    CaOfAll {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Users of pools that the rules do not know, one a line.
    #[error("{0}")]
    Users(String),
}

/// Certificates, and a number that tells them from others.
type Authority = (Arc<CaType>, u64);

/// The certificates of a pool's own.
fn authority(pool: &PoolSettings) -> Result<Option<Authority>, UpstreamError> {
    let Some(path) = &pool.ca else {
        return Ok(None);
    };
    authority::load(path)
        .map(Some)
        .map_err(|reason| UpstreamError::Ca {
            pool: pool.name.clone(),
            path: path.display().to_string(),
            reason,
        })
}

/// The certificates of each pool, in their order.
fn authorities(settings: &Settings) -> Result<Vec<Option<Authority>>, UpstreamError> {
    let of_all = settings.upstream_ca.as_ref().map(|path| {
        authority::load(path).map_err(|reason| UpstreamError::CaOfAll {
            path: path.display().to_string(),
            reason,
        })
    });
    let of_all = of_all.transpose()?;
    let pools = settings.pools.iter();
    pools
        .map(|pool| Ok(authority(pool)?.or_else(|| of_all.clone())))
        .collect()
}

/// Every mistake in the pools, as far as one can tell without asking an upstream.
#[must_use]
pub fn mistakes(pools: &[PoolSettings], rules: &Ruleset) -> Vec<String> {
    let bad = pools.iter().filter_map(|pool| authority(pool).err());
    let mut mistakes = users::unknown(pools, rules);
    mistakes.extend(bad.map(|error| error.to_string()));
    mistakes
}

/// The name of the pool that a call goes to.
#[must_use]
pub fn pool_of<'p>(pools: &'p [PoolSettings], rules: &Ruleset, call: &Call) -> Option<&'p str> {
    let index = Users::new(pools, rules).pool_of(call);
    pools.get(index).map(|pool| pool.name.as_str())
}

/// What ends a call that has had its time.
pub(super) fn out_of_time() -> Box<pingora::Error> {
    let why = "the call has had its time";
    pingora::Error::explain(pingora::ErrorType::ReadTimedout, why).into_up()
}

/// Hosts and ports, and their addresses.
pub type Addresses = BTreeMap<(String, u16), Vec<SocketAddr>>;

/// All pools of a gateway.
#[derive(Debug)]
pub struct Upstreams {
    pools: Box<[Pool]>,
    users: Users,
    tending: Tending,
    metrics: UpstreamMetrics,
    /// Whether others have taken its place: what it learns is of no account any more.
    replaced: Mutex<bool>,
}

impl Upstreams {
    /// Puts the pools together. Addresses that `previous` has as well keep their state.
    ///
    /// # Errors
    /// [`UpstreamError`].
    pub fn new(
        settings: &Settings,
        rules: &Ruleset,
        metrics: &UpstreamMetrics,
        previous: Option<&Self>,
    ) -> Result<Self, UpstreamError> {
        let tending = settings.tending.clone();
        let unknown = users::unknown(&settings.pools, rules);
        if !unknown.is_empty() {
            return Err(UpstreamError::Users(unknown.join("\n")));
        }
        let authorities = authorities(settings)?;
        // From here on nothing fails. Addresses that come or go meanwhile would be lost.
        let mut replaced = previous.map(|previous| previous.replaced.lock());
        let pools = settings.pools.iter().zip(&authorities).map(|(pool, ca)| {
            let previous = previous.and_then(|all| all.pool(&pool.name));
            Pool::new(pool, ca.as_ref(), &tending, metrics, previous)
        });
        let next = Self {
            users: Users::new(&settings.pools, rules),
            pools: pools.collect(),
            tending,
            metrics: metrics.clone(),
            replaced: Mutex::new(false),
        };
        if let Some(replaced) = &mut replaced {
            **replaced = true;
        }
        Ok(next)
    }

    /// The addresses of a host, as they are from now on: in all its pools.
    fn found(&self, host: &str, port: u16, addrs: &[SocketAddr]) {
        let replaced = self.replaced.lock();
        if !*replaced {
            for pool in &self.pools {
                pool.found(host, port, addrs, &self.metrics);
            }
        }
    }

    /// A host could not be looked up.
    fn not_found(&self, host: &str) {
        let replaced = self.replaced.lock();
        if !*replaced {
            self.metrics.lookup_failed(host);
        }
    }

    /// The last addresses of each host.
    #[must_use]
    pub fn addresses(&self) -> Addresses {
        self.pools.iter().flat_map(Pool::addresses).collect()
    }

    fn pool(&self, name: &str) -> Option<&Pool> {
        self.pools.iter().find(|pool| &*pool.name == name)
    }

    /// After a change of settings: forgets the metrics of pools, hosts and addresses that `next`
    /// has not.
    pub fn retire(&self, next: &Self) {
        let hosts = next.addresses();
        for (host, _) in self.addresses().keys() {
            if hosts.keys().all(|(other, _)| other != host) {
                self.metrics.forget_host(host);
            }
        }
        for pool in &self.pools {
            if next.pool(&pool.name).is_none() {
                self.metrics.forget_pool(&pool.name);
            }
            let kept = next.pool(&pool.name).map_or_else(Vec::new, Pool::endpoints);
            let is_limited = |pool: &Pool| pool.adaptive.is_some();
            if is_limited(pool) && !next.pool(&pool.name).is_some_and(is_limited) {
                self.metrics.forget_concurrency(&pool.name);
            }
            for gone in pool.endpoints() {
                if kept.iter().all(|endpoint| endpoint.addr != gone.addr) {
                    self.metrics.forget(&pool.name, &gone.addr.to_string());
                }
            }
        }
    }

    /// Whether calls of any pool go the plain way.
    pub(super) fn has_plain(&self) -> bool {
        self.pools.iter().any(|pool| pool.is_plain)
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
            let standing = &endpoint.standing;
            standing.metrics.up.set(i64::from(standing.is_well()));
            let in_flight = i64::try_from(standing.in_flight()).unwrap_or(i64::MAX);
            standing.metrics.in_flight.set(in_flight);
        }
        for adaptive in self.pools.iter().filter_map(|pool| pool.adaptive.as_ref()) {
            adaptive.show();
        }
    }

    /// Looks names up again, checks health, and ends ejections, for ever. Never on a thread that
    /// serves calls.
    pub async fn tend(self: Arc<Self>, clock: Clock) {
        tokio::join!(
            names::watch(self.clone()),
            health::watch(self.clone()),
            health::readmit(self, clock),
        );
    }
}
