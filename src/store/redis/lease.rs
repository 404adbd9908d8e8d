//! Leases: units taken in advance, as many as are likely to be used in the lease's life. They
//! were counted in the store when they were granted, in the step in which that life ends, so
//! that what is spent of them here is never over. "Empty until then" is a lease too.

use smallvec::SmallVec;

use super::reply::Reading;
use crate::limit::{Charge, Moment, Span, Taken, sliding};

/// The longest life: shorter than the time for which a new epoch is not believed.
const LONGEST_US: u64 = 1_000_000;
/// Day units are not leased so close to midnight: clocks differ.
const MIDNIGHT_US: u64 = 2_000_000;

/// Quotas below this are decided exactly.
const SMALL: u32 = 100;

/// How long units of this window may be held in advance: a fiftieth of it at most.
fn life_us(span: Span) -> u64 {
    match span {
        Span::Sliding { window_us } => sliding::step_us(window_us).min(LONGEST_US),
        Span::Day { .. } => LONGEST_US,
        Span::Running => 0,
    }
}

/// Units of one grant.
#[derive(Clone, Copy, Debug)]
struct Lease {
    left: u32,
    /// Where the store counts them.
    taken: Taken,
    /// Monotonic.
    until_us: u64,
    /// The figure that had room for them: no good for calls with a smaller one.
    quota: u32,
}

/// A counter that had no room.
#[derive(Clone, Copy, Debug)]
struct Full {
    /// The least that was asked for.
    cost: u32,
    quota: u32,
    left: u32,
    /// Monotonic: units come free then, or the lease ends.
    until_us: u64,
    free_us: u64,
}

/// What a counter lets this gateway decide without a question.
#[derive(Debug, Default)]
pub(super) struct Leases {
    held: SmallVec<[Lease; 1]>,
    full: Option<Full>,
    /// Monotonic: until then the last reading of a counter with room is good enough to look at.
    look_until_us: u64,
    /// Monotonic: when the oldest units come free.
    resets_us: u64,
    /// Which life it is, and the units used in it and in the one before.
    life: u64,
    used: [u32; 2],
}

/// What a charge finds in its leases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Held {
    /// There is room, and units of the lease that were counted there are taken.
    Room(Option<Taken>),
    /// No room for so long, with these units left.
    Full { left: u32, wait_us: u64 },
    /// The store must be asked.
    Unknown,
}

impl Leases {
    /// Takes the cost of this charge.
    pub(super) fn take(&mut self, charge: &Charge, mono_us: u64) -> Held {
        if charge.span == Span::Running {
            return Held::Unknown;
        }
        if let Some(full) = self.full(charge, mono_us) {
            return full;
        }
        if charge.cost == 0 {
            let is_read = mono_us < self.look_until_us;
            return if is_read {
                Held::Room(None)
            } else {
                Held::Unknown
            };
        }
        let valid = |lease: &&mut Lease| {
            mono_us < lease.until_us && lease.left >= charge.cost && lease.quota <= charge.quota
        };
        let Some(lease) = self.held.iter_mut().find(valid) else {
            return Held::Unknown;
        };
        if let (Taken::Day(end_us), Span::Day { end_us: other, .. }) = (lease.taken, charge.span)
            && end_us != other
        {
            return Held::Unknown;
        }
        lease.left -= charge.cost;
        let taken = lease.taken;
        self.used(charge, mono_us);
        Held::Room(Some(taken))
    }

    /// Whether the counter is known to have no room for this charge.
    pub(super) fn full(&mut self, charge: &Charge, mono_us: u64) -> Option<Held> {
        let full = self.full?;
        if mono_us >= full.until_us || full.quota != charge.quota {
            self.full = None;
            return None;
        }
        (charge.cost.max(1) >= full.cost && !charge.report).then(|| Held::Full {
            left: full.left,
            wait_us: full.free_us.saturating_sub(mono_us).max(1),
        })
    }

    /// Puts back what [`Leases::take`] took for a call that was then not decided here.
    pub(super) fn put_back(&mut self, charge: &Charge, taken: Taken) {
        if let Some(lease) = self.held.iter_mut().find(|lease| lease.taken == taken) {
            lease.left += charge.cost;
            self.used[1] = self.used[1].saturating_sub(charge.cost);
        }
    }

    fn turn(&mut self, span: Span, mono_us: u64) {
        let life = mono_us / life_us(span).max(1);
        if life != self.life {
            let before = if life == self.life + 1 {
                self.used[1]
            } else {
                0
            };
            (self.life, self.used) = (life, [before, 0]);
        }
    }

    /// Notes that a call was admitted.
    pub(super) fn used(&mut self, charge: &Charge, mono_us: u64) {
        self.turn(charge.span, mono_us);
        self.used[1] = self.used[1].saturating_add(charge.cost);
    }

    /// How many units more than its cost a charge should ask for: what was used in the life
    /// before, or in this one already, less what is held.
    pub(super) fn wanted(&mut self, charge: &Charge, at: Moment) -> u32 {
        self.turn(charge.span, at.mono_us);
        match charge.span {
            Span::Running => return 0,
            Span::Day { end_us, .. } if at.unix_us.saturating_add(MIDNIGHT_US) >= end_us => {
                return 0;
            }
            Span::Day { .. } | Span::Sliding { .. } => (),
        }
        if charge.quota < SMALL {
            return 0;
        }
        let valid = self.held.iter().filter(|l| at.mono_us < l.until_us);
        let held: u32 = valid.map(|lease| lease.left).sum();
        let [before, now] = self.used;
        before.max(now).saturating_sub(held)
    }

    /// Notes what the store said of this charge; it was asked at `sent_us` (monotonic), and its
    /// clock showed `store_us`. Whether there is something to be returned later.
    pub(super) fn heard(
        &mut self,
        charge: &Charge,
        reading: &Reading,
        used: u32,
        sent_us: u64,
        store_us: u64,
    ) -> bool {
        let life_us = life_us(charge.span);
        self.resets_us = sent_us.saturating_add(reading.wait_us());
        let room = charge.quota.saturating_sub(used);
        let is_roomy = room > charge.quota / 10;
        self.look_until_us = if is_roomy {
            sent_us.saturating_add(life_us)
        } else {
            0
        };
        if reading.granted == 0 {
            return false;
        }
        let taken = match charge.span {
            Span::Sliding { window_us } => Taken::Step(store_us / sliding::step_us(window_us) + 1),
            Span::Day { end_us, .. } => Taken::Day(end_us),
            Span::Running => return false,
        };
        let until_us = sent_us.saturating_add(life_us);
        // A day's leases are all counted in one place.
        let may_join = matches!(taken, Taken::Step(_)) || self.held.len() >= 4;
        let same = |lease: &&mut Lease| may_join && lease.taken == taken;
        match self.held.iter_mut().find(same) {
            // Both were counted there; the earlier end holds for both.
            Some(lease) => {
                lease.left = lease.left.saturating_add(reading.granted);
                lease.until_us = lease.until_us.min(until_us);
                lease.quota = lease.quota.max(charge.quota);
            }
            None => self.held.push(Lease {
                left: reading.granted,
                taken,
                until_us,
                quota: charge.quota,
            }),
        }
        true
    }

    /// Notes that the store denied this charge: it had no room until `wait_us` from then.
    pub(super) fn heard_full(&mut self, charge: &Charge, used: u32, wait_us: u64, sent_us: u64) {
        if matches!(charge.span, Span::Running) || charge.cost > charge.quota {
            return;
        }
        let free_us = sent_us.saturating_add(wait_us);
        self.full = Some(Full {
            cost: charge.cost.max(1),
            quota: charge.quota,
            left: charge.quota.saturating_sub(used),
            until_us: free_us.min(sent_us.saturating_add(LONGEST_US)),
            free_us,
        });
    }

    /// Units came free: what was full need not be so any more.
    pub(super) fn freed(&mut self) {
        self.full = None;
    }

    /// Until the oldest units come free, microseconds.
    pub(super) fn resets_in_us(&self, mono_us: u64) -> u64 {
        self.resets_us.saturating_sub(mono_us)
    }

    /// Units that are held and may still be used.
    pub(super) fn left(&self, mono_us: u64) -> u32 {
        let valid = self.held.iter().filter(|lease| mono_us < lease.until_us);
        valid.map(|lease| lease.left).sum()
    }

    /// Whether anything is held that will be returned.
    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Takes out the leases that are over: where the units left were counted.
    pub(super) fn ended(&mut self, mono_us: u64, mut back: impl FnMut(Taken, u32)) {
        self.held.retain(|lease| {
            let is_over = mono_us >= lease.until_us;
            if is_over && lease.left > 0 {
                back(lease.taken, lease.left);
            }
            !is_over
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit::{CounterKey, LimitId, OnStoreFailure, Scope};

    const SECOND: u64 = 1_000_000;
    const STEP: u64 = 20_000;

    fn charge(cost: u32) -> Charge {
        Charge {
            limit: LimitId(0),
            key: CounterKey(1),
            overflow: CounterKey(2),
            quota: 1000,
            cost,
            span: Span::Sliding { window_us: SECOND },
            scope: Scope::App,
            report: false,
            on_store_failure: OnStoreFailure::Local,
            known: false,
            taken: None,
            shared: false,
        }
    }

    fn moment(us: u64) -> Moment {
        Moment {
            mono_us: us,
            unix_us: us,
        }
    }

    #[test]
    fn units_are_leased_as_they_were_used_before_and_count_where_the_life_ends() {
        let mut leases = Leases::default();
        let mono_us = 100 * STEP;
        for _ in 0..5 {
            leases.used(&charge(2), mono_us);
        }
        assert_eq!(leases.wanted(&charge(1), moment(mono_us + STEP)), 10);
        let reading = Reading::new(20, 10, 0);
        let sent_us = mono_us + STEP;
        assert!(leases.heard(&charge(1), &reading, 31, sent_us, 500 * STEP + 3));
        assert_eq!(
            leases.take(&charge(4), sent_us),
            Held::Room(Some(Taken::Step(501)))
        );
        assert_eq!(leases.take(&charge(7), sent_us), Held::Unknown);
        assert_eq!(
            leases.take(&charge(4), sent_us + STEP),
            Held::Unknown,
            "it is over"
        );
        let mut back = Vec::new();
        leases.ended(sent_us + STEP, |taken, units| back.push((taken, units)));
        assert_eq!(back, [(Taken::Step(501), 6)]);
        assert!(leases.is_empty());
    }

    #[test]
    fn units_that_a_larger_figure_had_room_for_are_no_good_for_a_smaller_one() {
        let with = |quota| Charge { quota, ..charge(1) };
        let mut leases = Leases::default();
        let reading = Reading::new(1500, 10, 0);
        leases.heard(&with(2000), &reading, 1511, STEP, STEP);
        assert_eq!(leases.take(&with(1000), STEP), Held::Unknown);
        assert!(matches!(leases.take(&with(2000), STEP), Held::Room(_)));
        assert!(matches!(leases.take(&with(3000), STEP), Held::Room(_)));
        // Joined with units of a smaller one, nobody can tell them apart.
        leases.heard(&with(1000), &Reading::new(100, 10, 0), 110, STEP, STEP);
        assert_eq!(leases.take(&with(1000), STEP), Held::Unknown);
    }

    #[test]
    fn a_counter_known_to_be_empty_denies_until_units_come_free() {
        let mut leases = Leases::default();
        leases.heard_full(&charge(10), 995, 300_000, SECOND);
        let full = |wait_us| Held::Full { left: 5, wait_us };
        assert_eq!(leases.take(&charge(10), SECOND), full(300_000));
        assert_eq!(leases.take(&charge(20), SECOND + 100_000), full(200_000));
        // Less than what was denied may fit, and is asked for.
        assert_eq!(leases.take(&charge(5), SECOND), Held::Unknown);
        assert_eq!(leases.take(&charge(10), SECOND + 300_000), Held::Unknown);
        leases.heard_full(&charge(10), 995, 300_000, SECOND);
        leases.freed();
        assert_eq!(leases.take(&charge(10), SECOND), Held::Unknown);
    }

    #[test]
    fn a_look_at_a_counter_with_room_is_good_for_a_step() {
        let mut leases = Leases::default();
        leases.heard(&charge(0), &Reading::new(100, 0, 0), 100, SECOND, SECOND);
        assert_eq!(leases.take(&charge(0), SECOND + STEP - 1), Held::Room(None));
        assert_eq!(leases.take(&charge(0), SECOND + STEP), Held::Unknown);
        leases.heard(&charge(0), &Reading::new(950, 0, 0), 950, SECOND, SECOND);
        assert_eq!(leases.take(&charge(0), SECOND), Held::Unknown);
    }
}
