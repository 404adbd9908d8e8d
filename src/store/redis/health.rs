//! Whether a part of the store can be asked, since when it knows what it should, and who shares
//! it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use parking_lot::RwLock;
use tokio::sync::Notify;

use super::connect::Cause;
use super::name::Name;

/// Commands in a row that may time out before the store counts as gone.
const TIMEOUTS: u32 = 3;

/// State of the breaker of one part of the store, and what the last beat said.
#[derive(Debug)]
pub(super) struct Health {
    /// The breaker: nothing is asked while it is open.
    open: AtomicBool,
    timeouts: AtomicU32,
    /// Times that the breaker opened.
    opened: AtomicU64,
    /// Whether somebody was told to set something right since then.
    told: AtomicBool,
    /// Items that the store refused, itself being well.
    refused: AtomicU64,
    /// Wakes the watch before its time.
    wake: Arc<Notify>,
    /// The store's URL, without user and password, for the log.
    url: Arc<str>,
    /// Parts of the store that cannot be used: what they have in common is said once.
    out: Arc<AtomicUsize>,
    epoch: RwLock<Option<Arc<str>>>,
    /// The last sign of this gateway that the store has answered. It may need no more than that.
    last_sign: AtomicU64,
    /// Words have found the store to lack it.
    is_older: AtomicBool,
    /// When any gateway last found the store to lack what it had, by its clock. 0: not yet heard.
    doubts: AtomicU64,
    /// The same, once the store has been told what is known here.
    told_doubts: AtomicU64,
    /// Until then the store may lack what other gateways have taken; monotonic.
    seeding_until_us: AtomicU64,
}

/// The gateways that share the store.
#[derive(Debug)]
pub(super) struct Peers {
    gateways: RwLock<Arc<[Box<str>]>>,
    min_gateways: u32,
    me: Box<str>,
}

impl Health {
    pub(super) fn new(wake: Arc<Notify>, url: Arc<str>, out: Arc<AtomicUsize>) -> Self {
        Self {
            open: AtomicBool::new(false),
            timeouts: AtomicU32::new(0),
            opened: AtomicU64::new(0),
            told: AtomicBool::new(false),
            refused: AtomicU64::new(0),
            wake,
            url,
            out,
            epoch: RwLock::new(None),
            last_sign: AtomicU64::new(0),
            is_older: AtomicBool::new(false),
            doubts: AtomicU64::new(0),
            told_doubts: AtomicU64::new(0),
            seeding_until_us: AtomicU64::new(0),
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    pub(super) fn times_opened(&self) -> u64 {
        self.opened.load(Ordering::Relaxed)
    }

    /// A command was answered.
    pub(super) fn answered(&self) {
        if self.timeouts.load(Ordering::Relaxed) > 0 {
            self.timeouts.store(0, Ordering::Relaxed);
        }
    }

    /// A command was not answered in time.
    pub(super) fn timed_out(&self) {
        if self.timeouts.fetch_add(1, Ordering::Relaxed) + 1 >= TIMEOUTS {
            self.fail(&Cause::outage("it does not answer in time"));
        }
    }

    /// The store cannot be used. The watch probes it from now on.
    pub(super) fn fail(&self, cause: &Cause) {
        if self.note_failure(cause) {
            self.say(cause);
        }
    }

    /// The same, silently. Whether it is to be said.
    pub(super) fn note_failure(&self, cause: &Cause) -> bool {
        let mut is_first = !self.open.swap(true, Ordering::AcqRel);
        if is_first {
            self.opened.fetch_add(1, Ordering::Relaxed);
            self.wake.notify_one();
            is_first = self.out.fetch_add(1, Ordering::AcqRel) == 0;
        }
        // What somebody must set right is said also where an outage has been.
        let is_news = cause.is_mistake && !self.told.swap(true, Ordering::Relaxed);
        is_first || is_news
    }

    /// Says why the store cannot be used.
    pub(super) fn say(&self, cause: &Cause) {
        let (store, why) = (&*self.url, cause.text.as_str());
        match cause.is_mistake {
            true => tracing::error!(
                store,
                why,
                "the counter store cannot be used: deciding by on_store_failure until that is set right"
            ),
            false => tracing::warn!(
                store,
                why,
                "the counter store is out of use: deciding by on_store_failure until it is back"
            ),
        }
    }

    /// The store has refused an item, and is well itself.
    pub(super) fn refused(&self, why: &str) {
        let before = self.refused.fetch_add(1, Ordering::Relaxed);
        // Not once for each call.
        if (before + 1).is_power_of_two() {
            tracing::warn!(
                store = &*self.url,
                why,
                times = before + 1,
                "the counter store refuses what concerns one counter: its calls are decided by \
                 on_store_failure, and what was to be told of it is lost"
            );
        }
    }

    /// The last sign of this gateway that the store has answered; 0: none.
    pub(super) fn last_sign(&self) -> u64 {
        self.last_sign.load(Ordering::Relaxed)
    }

    /// A beat has been answered with this sign, and all is told.
    pub(super) fn note_sign(&self, sign: u64) {
        self.last_sign.store(sign, Ordering::Relaxed);
        self.is_older.store(false, Ordering::Relaxed);
    }

    /// Words have been answered with this sign; `None`: the store lacks the `last` one that was
    /// known then.
    pub(super) fn signed(&self, sign: Option<u64>, last: u64) {
        match sign {
            Some(sign) => drop(self.last_sign.fetch_max(sign, Ordering::Relaxed)),
            // Seen to since.
            None if last < self.last_sign() => (),
            None if self.is_older.swap(true, Ordering::Relaxed) => (),
            None => self.wake.notify_one(),
        }
    }

    /// Whether words have found the store to lack the last sign.
    pub(super) fn is_older(&self) -> bool {
        self.is_older.load(Ordering::Relaxed)
    }

    /// When the store was last found to lack what it had.
    pub(super) fn doubts(&self) -> u64 {
        self.doubts.load(Ordering::Relaxed)
    }

    /// Notes that. Whether the store is to be told what is known here.
    pub(super) fn note_doubts(&self, doubts: u64) -> bool {
        self.doubts.store(doubts, Ordering::Relaxed);
        let told = self.told_doubts.load(Ordering::Relaxed);
        told != doubts && told != 0
    }

    /// It has been told, if need be.
    pub(super) fn told_doubts(&self, doubts: u64) {
        self.told_doubts.store(doubts, Ordering::Relaxed);
    }

    /// The store is in use, as of this epoch.
    pub(super) fn close(&self, epoch: Arc<str>, seeding_until_us: u64) {
        *self.epoch.write() = Some(epoch);
        self.seeding_until_us
            .store(seeding_until_us, Ordering::Release);
        self.timeouts.store(0, Ordering::Relaxed);
        self.told.store(false, Ordering::Relaxed);
        if self.open.swap(false, Ordering::AcqRel) && self.out.fetch_sub(1, Ordering::AcqRel) == 1 {
            tracing::info!(store = &*self.url, "the counter store is in use again");
        }
    }

    pub(super) fn epoch(&self) -> Option<Arc<str>> {
        self.epoch.read().clone()
    }

    /// Whether the store may still lack units that others have taken.
    pub(super) fn is_seeding(&self, mono_us: u64) -> bool {
        mono_us < self.seeding_until_us.load(Ordering::Acquire)
    }
}

impl Peers {
    pub(super) fn new(me: &str, min_gateways: u32) -> Self {
        Self {
            gateways: RwLock::new(Arc::new([])),
            min_gateways,
            me: me.into(),
        }
    }

    /// The gateways that the store last knew of.
    pub(super) fn gateways(&self) -> Arc<[Box<str>]> {
        self.gateways.read().clone()
    }

    /// Notes the gateways that the store knows of. `too_few`: it may have forgotten some, and
    /// those that were known share on.
    pub(super) fn note_gateways(&self, mut gateways: Vec<Box<str>>, too_few: bool) {
        let known = self.gateways.read().clone();
        if too_few {
            gateways.extend(known.iter().cloned());
            gateways.sort_unstable();
            gateways.dedup();
        }
        if *known != *gateways {
            *self.gateways.write() = gateways.into();
        }
    }

    /// This gateway's part of a quota: an equal one, and one of what remains, if all gateways
    /// are known and the rendezvous says so.
    pub(super) fn share(&self, name: &Name, quota: u32) -> u32 {
        u32::try_from(self.share_of(name, quota.into())).unwrap_or(quota)
    }

    /// The same of any number of units.
    pub(super) fn share_of(&self, name: &Name, quota: u64) -> u64 {
        let gateways = self.gateways();
        let known = gateways.len() as u64;
        let count = known.max(self.min_gateways.into()).max(1);
        let (part, rest) = (quota / count, quota % count);
        if rest == 0 || known != count {
            return part;
        }
        let mine = name.rank(&self.me);
        let before = gateways.iter().filter(|g| name.rank(g) < mine).count();
        let is_among = gateways.contains(&self.me) && (before as u64) < rest;
        part + u64::from(is_among)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit::CounterKey;

    #[test]
    fn the_shares_of_all_gateways_make_the_quota() {
        let ids: Vec<Box<str>> = ["a", "b", "c", "d", "e"].map(Into::into).into();
        for key in 0..100 {
            let name = Name::plain(CounterKey(7), CounterKey(key << 40 | key));
            for quota in [1, 4, 5, 99, 100] {
                let sum: u32 = ids
                    .iter()
                    .map(|id| {
                        let peers = Peers::new(id, 3);
                        peers.note_gateways(ids.clone(), false);
                        peers.share(&name, quota)
                    })
                    .sum();
                assert_eq!(sum, quota);
            }
        }
    }

    #[test]
    fn gateways_that_are_not_known_get_their_part_all_the_same() {
        let peers = Peers::new("a", 4);
        peers.note_gateways(vec!["a".into()], false);
        let name = Name::plain(CounterKey(7), CounterKey(9));
        assert_eq!(peers.share(&name, 103), 25);
        assert_eq!(peers.share(&name, 3), 0);
    }

    #[test]
    fn gateways_that_an_emptied_store_has_forgotten_share_on() {
        let peers = Peers::new("a", 1);
        peers.note_gateways(vec!["b".into(), "a".into()], false);
        peers.note_gateways(vec!["a".into()], true);
        assert_eq!(
            peers.share(&Name::plain(CounterKey(7), CounterKey(9)), 10),
            5
        );
        peers.note_gateways(vec!["a".into()], false);
        assert_eq!(
            peers.share(&Name::plain(CounterKey(7), CounterKey(9)), 10),
            10
        );
    }

    #[test]
    fn three_timeouts_in_a_row_open_the_breaker() {
        let health = Health::new(Arc::default(), "redis://here".into(), Arc::default());
        health.timed_out();
        health.timed_out();
        health.answered();
        health.timed_out();
        health.timed_out();
        assert!(!health.is_open());
        health.timed_out();
        assert!(health.is_open());
        health.close("e".into(), 0);
        assert!(!health.is_open());
        assert_eq!(health.times_opened(), 1);
    }
}
