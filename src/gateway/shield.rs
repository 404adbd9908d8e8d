//! The shield before all counters: a per-IP cap on requests and on denied requests per second.
//!
//! governor's GCRA may pass up to twice the figure within one second: right for a shield that
//! protects the process, not for the documented limits.

use std::collections::HashMap;
use std::net::IpAddr;
use std::num::NonZeroU32;

use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use parking_lot::RwLock;

use crate::limit::Moment;
use crate::settings;

/// Addresses that each limiter may remember; above it, new ones are turned away until
/// the next sweep.
const MAX_ADDRESSES: usize = 1_000_000;

type PerAddress = DefaultKeyedRateLimiter<IpAddr>;

#[derive(Debug)]
pub(super) struct Shield {
    requests: Option<PerAddress>,
    denials: Option<PerAddress>,
    /// Addresses over their denials, and until when (monotonic microseconds). governor cannot
    /// look without taking.
    penalised: RwLock<HashMap<IpAddr, u64>>,
}

/// How long an address over its denials is turned away.
const PENALTY_US: u64 = 1_000_000;

impl Shield {
    pub(super) fn new(settings: &settings::Shield) -> Self {
        let limiter =
            |per_s: Option<NonZeroU32>| per_s.map(|n| RateLimiter::keyed(Quota::per_second(n)));
        Self {
            requests: limiter(settings.requests_per_s),
            denials: limiter(settings.denials_per_s),
            penalised: RwLock::default(),
        }
    }

    /// Whether this address may ask at all.
    pub(super) fn admits(&self, ip: IpAddr, now: Moment) -> bool {
        let within = self
            .requests
            .as_ref()
            .is_none_or(|limiter| limiter.check_key(&ip).is_ok() && limiter.len() <= MAX_ADDRESSES);
        let penalised = self.denials.is_some()
            && self
                .penalised
                .read()
                .get(&ip)
                .is_some_and(|until| now.mono_us < *until);
        within && !penalised
    }

    /// Notes a request that was denied.
    pub(super) fn note_denial(&self, ip: IpAddr, now: Moment) {
        let Some(limiter) = &self.denials else { return };
        if limiter.check_key(&ip).is_err() {
            let mut penalised = self.penalised.write();
            if penalised.len() < MAX_ADDRESSES {
                penalised.insert(ip, now.mono_us + PENALTY_US);
            }
        }
    }

    /// Forgets addresses that have been quiet.
    pub(super) fn sweep(&self, now: Moment) {
        for limiter in [&self.requests, &self.denials].into_iter().flatten() {
            limiter.retain_recent();
            limiter.shrink_to_fit();
        }
        self.penalised
            .write()
            .retain(|_, until| now.mono_us < *until);
    }
}
