//! Who holds how many places, and whether an app may have one more.
//!
//! While there is room, anybody may. At the limit an app gets no more than its fair share among
//! those that are active; and a quarter of all places is kept for those below theirs, so that they
//! find one at once and need not wait until a flood ebbs.

use foldhash::fast::RandomState;
use hashbrown::HashMap;

use super::{Full, Who};

/// Apps that are told apart; further ones share a place among them.
const MOST_APPS: usize = 1024;
/// An app is active for so long after it has asked.
const ACTIVE_US: u64 = 1_000_000;
/// How often those that are not are forgotten.
const SWEEP_US: u64 = ACTIVE_US / 4;

/// Where a place is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bucket {
    App(u128),
    Strangers,
}

#[derive(Debug, Default)]
struct Holder {
    held: u32,
    asked_us: u64,
}

impl Holder {
    fn is_active(&self, now_us: u64) -> bool {
        self.held > 0 || now_us.saturating_sub(self.asked_us) < ACTIVE_US
    }
}

#[derive(Debug, Default)]
pub(super) struct Shares {
    /// Those that are active, and some that were a moment ago.
    apps: HashMap<u128, Holder, RandomState>,
    strangers: Option<Holder>,
    swept_us: u64,
}

impl Shares {
    pub(super) fn apps(&self) -> usize {
        self.apps.len()
    }

    fn active(&self) -> u32 {
        let active = self.apps.len() + usize::from(self.strangers.is_some());
        u32::try_from(active).unwrap_or(u32::MAX).max(1)
    }

    /// While there is less room for a moment, each app that holds nothing may still have one place,
    /// if there are few of them: so many places.
    pub(super) fn spare(&self, room: u32) -> u32 {
        let active = self.active();
        if active <= room / 2 { active } else { 0 }
    }

    /// Whether this app may have one more place. `limit`: of all; `room`: of those at the moment.
    pub(super) fn look(
        &mut self,
        who: Who,
        limit: u32,
        room: u32,
        in_flight: u32,
        now_us: u64,
    ) -> Result<(), Full> {
        let held = self.holder(who, now_us).1.held;
        if room < limit && held == 0 && in_flight < limit && self.spare(room) > 0 {
            return Ok(());
        }
        let limit = room;
        let active = self.active();
        let kept = match active {
            1 => 0,
            _ => limit.div_ceil(4),
        };
        let is_below_its_share = held < limit.div_ceil(active);
        let room = match is_below_its_share {
            true => limit,
            false => limit.saturating_sub(kept),
        };
        match (in_flight < room, is_below_its_share) {
            (true, _) => Ok(()),
            (false, true) => Err(Full::Limit),
            (false, false) if active == 1 => Err(Full::Limit),
            (false, false) => Err(Full::Share),
        }
    }

    pub(super) fn take(&mut self, who: Who, now_us: u64) -> Bucket {
        let (bucket, holder) = self.holder(who, now_us);
        holder.held = holder.held.saturating_add(1);
        bucket
    }

    pub(super) fn give_back(&mut self, bucket: Bucket) {
        let holder = match bucket {
            Bucket::App(app) => self.apps.get_mut(&app),
            Bucket::Strangers => self.strangers.as_mut(),
        };
        if let Some(holder) = holder {
            holder.held = holder.held.saturating_sub(1);
        }
    }

    fn holder(&mut self, who: Who, now_us: u64) -> (Bucket, &mut Holder) {
        if now_us.saturating_sub(self.swept_us) >= SWEEP_US {
            self.sweep(now_us);
        }
        let own = match who {
            Who::App(app) if self.apps.len() < MOST_APPS || self.apps.contains_key(&app) => {
                Some(app)
            }
            _ => None,
        };
        let (bucket, holder) = match own {
            Some(app) => (Bucket::App(app), self.apps.entry(app).or_default()),
            None => (
                Bucket::Strangers,
                self.strangers.get_or_insert_with(Holder::default),
            ),
        };
        holder.asked_us = now_us;
        (bucket, holder)
    }

    fn sweep(&mut self, now_us: u64) {
        self.swept_us = now_us;
        self.apps.retain(|_, holder| holder.is_active(now_us));
        self.strangers
            .take_if(|strangers| !strangers.is_active(now_us));
    }
}
