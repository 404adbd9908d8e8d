//! Which address of a pool gets a call. Neither locks nor allocates.

use std::hash::Hasher as _;
use std::net::SocketAddr;
use std::sync::Arc;

use siphasher::sip::SipHasher13;

use super::endpoint::Endpoint;
use crate::settings::Balance;

/// The addresses of a pool, as they are now.
#[derive(Debug, Default)]
pub(super) struct Set {
    pub(super) endpoints: Box<[Arc<Endpoint>]>,
    /// Whose turn it is: each as often as its weight says, well mixed.
    turns: Box<[u32]>,
}

/// What a choice depends on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Choosing<'a> {
    pub(super) balance: Balance,
    /// The call's number.
    pub(super) nth: usize,
    /// [`hash`] of its app.
    pub(super) app: u64,
    /// Where it has been already.
    pub(super) tried: &'a [SocketAddr],
    /// Whether it may go there again: it got an answer there, or none.
    pub(super) again: bool,
}

impl Set {
    pub(super) fn new(endpoints: Vec<Arc<Endpoint>>) -> Self {
        let common = endpoints
            .iter()
            .map(|endpoint| endpoint.weight)
            .reduce(gcd)
            .unwrap_or(1)
            .max(1);
        // The k-th turn of one with weight w is due at (k + 1/2) / w of the round.
        let mut due: Vec<(f64, u32)> = Vec::new();
        for (index, endpoint) in (0_u32..).zip(&endpoints) {
            let weight = endpoint.weight / common;
            due.extend((0..weight).map(|k| ((f64::from(k) + 0.5) / f64::from(weight), index)));
        }
        due.sort_by(|a, b| a.0.total_cmp(&b.0));
        Self {
            turns: due.into_iter().map(|(_, index)| index).collect(),
            endpoints: endpoints.into(),
        }
    }

    /// The address for a call: one that is well before one that is not, so that a pool in which
    /// none is well is used as a whole.
    pub(super) fn choose(&self, how: Choosing<'_>) -> Option<&Arc<Endpoint>> {
        let is_new = |endpoint: &Endpoint| !how.tried.contains(&endpoint.addr);
        let known = |may: fn(&Endpoint) -> bool| how.again.then(|| self.pick(how, may)).flatten();
        self.pick(how, |endpoint| {
            endpoint.standing.is_available() && is_new(endpoint)
        })
        .or_else(|| known(|endpoint| endpoint.standing.is_available()))
        .or_else(|| self.pick(how, is_new))
        .or_else(|| known(|_| true))
    }

    fn pick(&self, how: Choosing<'_>, may: impl Fn(&Endpoint) -> bool) -> Option<&Arc<Endpoint>> {
        match how.balance {
            Balance::RoundRobin => {
                let endpoint = |turn: &u32| self.endpoints.get(usize::try_from(*turn).ok()?);
                let turns = self.turns.len().max(1);
                let (round, turn) = (how.nth / turns, how.nth % turns);
                let due = self.turns.get(turn).and_then(endpoint);
                if let Some(due) = due.filter(|due| may(due)) {
                    return Some(due);
                }
                // The turns of one that is out go to the turns of the others, one after the other:
                // to its neighbour alone, they would be twice as much for it.
                let others = || self.turns.iter().filter_map(endpoint).filter(|e| may(e));
                let count = others().count();
                others().nth(round.wrapping_add(turn).checked_rem(count)?)
            }
            Balance::LeastConnections => {
                // Ties go to the next in turn, among those that there are.
                let some = || self.endpoints.iter().filter(|endpoint| may(endpoint));
                let start = how.nth.checked_rem(some().count())?;
                let load = |endpoint: &Endpoint| endpoint.standing.in_flight().saturating_add(1);
                some()
                    .skip(start)
                    .chain(some().take(start))
                    .reduce(|best, other| {
                        let theirs = load(other).saturating_mul(best.weight.into());
                        let ours = load(best).saturating_mul(other.weight.into());
                        if theirs < ours { other } else { best }
                    })
            }
            Balance::HashApp => self
                .endpoints
                .iter()
                .filter(|endpoint| may(endpoint))
                .max_by(|a, b| a.score(how.app).total_cmp(&b.score(how.app))),
        }
    }
}

impl Endpoint {
    /// Its claim to an app: the highest gets it (rendezvous hashing). When an address comes or
    /// goes, only its own apps move.
    fn score(&self, app: u64) -> f64 {
        let mixed = mix(app ^ self.hash);
        // The upper 52 bits, as a number between 0 and 1.
        let high = u32::try_from(mixed >> 32).unwrap_or(0);
        let low = u32::try_from((mixed >> 12) & 0xF_FFFF).unwrap_or(0);
        let unit = (f64::from(high) * 1_048_576.0 + f64::from(low) + 0.5) / 4_503_599_627_370_496.0;
        -f64::from(self.weight) / unit.ln()
    }
}

/// The same in every gateway, and after every start.
pub(super) fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = SipHasher13::new();
    hasher.write(bytes);
    hasher.finish()
}

/// SplitMix64's last step.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests;
