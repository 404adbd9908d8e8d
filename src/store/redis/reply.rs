//! What comes back from the script: `script/counters.lua` says what the bytes mean.

use std::time::Duration;

use smallvec::SmallVec;

use super::totals;
use super::wire::Item;
use crate::limit::plan::{longest_wait, reported_bit, smallest_share};
use crate::limit::slots::TASK_WAIT;
use crate::limit::total::Total;
use crate::limit::{Decision, Plan, Room, Span, Taken, sliding};

/// What became of an item.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Answer {
    /// When the script ran, by the store's clock, microseconds.
    pub(super) store_us: u64,
    /// `None` for an item that is no decision.
    pub(super) verdict: Option<Verdict>,
}

impl Answer {
    /// That the counters are on two nodes, and have to be asked one by one.
    pub(super) fn scattered() -> Self {
        Self {
            store_us: 0,
            verdict: Some(Verdict::Scattered),
        }
    }
}

/// What the script found at one counter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Reading {
    /// Units used before.
    pub(super) used: u32,
    /// Units granted beyond the cost.
    pub(super) granted: u32,
    /// As `script/counters.lua` says.
    time_us: f64,
}

impl Reading {
    #[cfg(test)]
    pub(super) fn new(used: u32, granted: u32, wait_us: u32) -> Self {
        Self {
            used,
            granted,
            time_us: wait_us.into(),
        }
    }

    fn of_bytes(bytes: &[u8; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, time @ ..] = *bytes;
        Self {
            used: u32::from_le_bytes([a, b, c, d]),
            granted: u32::from_le_bytes([e, f, g, h]),
            time_us: f64::from_le_bytes(time),
        }
    }

    /// Whether it has no room.
    pub(super) fn denies(&self) -> bool {
        self.time_us != 0.0
    }

    /// Whether it is a report-only charge's that found no room.
    pub(super) fn is_over(&self) -> bool {
        self.time_us < 0.0
    }

    /// Units of a total, in two halves: its second reading.
    pub(super) fn wide(&self) -> u64 {
        u64::from(self.used) << 32 | u64::from(self.granted)
    }

    /// The time it tells, in microseconds; 0 when it tells none.
    pub(super) fn wait_us(&self) -> u64 {
        micros(self.time_us)
    }
}

/// A total, and the gateways that have units of it under way, but for those known to be gone.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Owned {
    pub(super) total: Total,
    /// When the store had last been found to lack what it had, when somebody last counted.
    pub(super) as_of: u64,
    pub(super) owners: Vec<Box<str>>,
}

impl Owned {
    fn of_text(text: &str) -> Option<Self> {
        let (total, owners) = text.split_once(" @").unwrap_or((text, ""));
        let owners = owners.split(',').filter_map(|one| {
            let (owner, units) = one.split_once(':')?;
            let mut units = units.splitn(3, '/');
            let is_any = units.by_ref().take(2).any(|units| units != "0");
            let is_new = !units.next().is_some_and(|rest| rest.ends_with('!'));
            let (gateway, _) = owner.split_once('.').unwrap_or((owner, ""));
            // What is nobody's, nobody can be asked about.
            (is_any && is_new && gateway != "-").then(|| gateway.into())
        });
        let mut words: Vec<&str> = total.split(' ').collect();
        let mark = words.get_mut(2)?;
        let number: u64 = mark.parse().ok()?;
        *mark = if number.is_multiple_of(2) { "0" } else { "1" };
        Some(Self {
            total: Total::of_text(&words.join(" "))?,
            as_of: number / 2,
            owners: owners.collect(),
        })
    }
}

/// The script's reply to a decision.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Verdict {
    Admitted(SmallVec<[Reading; 6]>),
    Denied(SmallVec<[Reading; 6]>),
    /// It ran too early or too late, and did nothing.
    Late,
    /// The day of the plan is not the store's, and nothing was done.
    AnotherDay,
    /// A task was finished: whether it held a slot.
    Finished(bool),
    /// Totals, each after the last change of it, at that change's place.
    Totals(Vec<Option<Owned>>),
    /// The counters are on two nodes while their slot moves; nothing was done.
    Scattered,
}

impl Verdict {
    /// Reads the reply to an item, or to some that ask for the same: `turn` says which of these it
    /// is. `None` for a reply that no script of ours gives.
    pub(super) fn parse(reply: &[u8], item: &Item, turn: u32) -> Option<Self> {
        let (what, rest) = reply.split_first()?;
        if *what == b'V' {
            let lines = std::str::from_utf8(rest).ok()?.split('\n');
            let total = |line| match line {
                "" => Some(None),
                line => Owned::of_text(line).map(Some),
            };
            return lines.map(total).collect::<Option<_>>().map(Self::Totals);
        }
        if *what == b'M' {
            return Self::of_many(rest, item, turn);
        }
        let (readings, odd) = rest.as_chunks::<16>();
        if !odd.is_empty() {
            return None;
        }
        let readings = readings.iter().map(Reading::of_bytes);
        match what {
            b'A' => Some(Self::Admitted(readings.collect())),
            b'N' => Some(Self::Denied(readings.collect())),
            b'L' => Some(Self::Late),
            b'T' => Some(Self::AnotherDay),
            b'0' => Some(Self::Finished(false)),
            b'1' => Some(Self::Finished(true)),
            _ => None,
        }
    }

    fn of_many(reply: &[u8], item: &Item, turn: u32) -> Option<Self> {
        let (admitted, readings) = reply.split_first_chunk()?;
        let admitted = u32::from_le_bytes(*admitted);
        let (readings, _) = readings.as_chunks::<16>();
        let parts = item.parts();
        if turn >= admitted {
            let skipped = if admitted > 0 { parts.len() } else { 0 };
            let readings = readings.get(skipped..).filter(|r| r.len() == parts.len())?;
            return Some(Self::Denied(
                readings.iter().map(Reading::of_bytes).collect(),
            ));
        }
        let readings = readings.get(..parts.len())?.iter().map(Reading::of_bytes);
        // Each finds what those before it took.
        let readings = parts.iter().zip(readings).map(|(part, reading)| Reading {
            used: reading
                .used
                .saturating_add(item.asked(part).saturating_mul(turn)),
            ..reading
        });
        Some(Self::Admitted(readings.collect()))
    }
}

/// Microseconds of a reply: whole and not negative.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a cast from a double saturates"
)]
fn micros(time_us: f64) -> u64 {
    time_us as u64
}

/// Notes in the plan what an admission took, and makes the decision of the readings.
pub(super) fn admitted(
    plan: &mut Plan,
    readings: &[Reading],
    store_us: u64,
    slot: u64,
) -> Decision {
    let mut reported = 0_u64;
    for ((index, charge), reading) in plan.charges.iter_mut().enumerate().zip(readings) {
        charge.taken = None;
        if charge.report && reading.is_over() {
            reported |= reported_bit(index);
        } else if charge.cost > 0 {
            charge.taken = Some(match charge.span {
                Span::Sliding { window_us } => Taken::Step(store_us / sliding::step_us(window_us)),
                Span::Day { end_us, .. } => Taken::Day(end_us),
                Span::Running => Taken::Slot(slot + u64::try_from(index).unwrap_or(0)),
            });
        }
    }
    totals::taken(plan, readings);
    Decision::Admit {
        nearest: nearest(plan, readings, store_us),
        reported,
    }
}

/// The enforced charge with the smallest share of its quota left.
fn nearest(plan: &Plan, readings: &[Reading], store_us: u64) -> Option<Room> {
    let left = plan
        .charges
        .iter()
        .zip(readings)
        .enumerate()
        .filter(|(_, (charge, _))| !charge.report)
        .map(|(index, (charge, reading))| {
            let taken = taken(plan, index) + u64::from(charge.cost);
            let left = u64::from(charge.quota).saturating_sub(u64::from(reading.used) + taken);
            (index, u32::try_from(left).unwrap_or(u32::MAX))
        });
    let (index, left) = smallest_share(&plan.charges, left)?;
    let (charge, reading) = (&plan.charges[index], readings[index]);
    let resets_us = match charge.span {
        Span::Sliding { window_us } => micros(reading.time_us).min(window_us),
        Span::Day { start_us, end_us } => {
            let used = u64::from(reading.used) + taken(plan, index) + u64::from(charge.cost);
            if used == 0 {
                0
            } else {
                until(start_us, end_us, store_us)
            }
        }
        Span::Running => 0,
    };
    Some(Room {
        charge: index,
        left,
        resets_in: Duration::from_micros(resets_us),
    })
}

/// What the other charges of the plan took from the counter of charge `index`.
fn taken(plan: &Plan, index: usize) -> u64 {
    let key = plan.charges[index].key;
    plan.charges
        .iter()
        .enumerate()
        .filter(|(other, charge)| *other != index && charge.key == key && charge.taken.is_some())
        .map(|(_, charge)| u64::from(charge.cost))
        .sum()
}

fn until(start_us: u64, end_us: u64, store_us: u64) -> u64 {
    let length_us = end_us.saturating_sub(start_us).max(1);
    end_us.saturating_sub(store_us).clamp(1, length_us)
}

/// The denial with the longest wait. `None` when no reading denies: not a reply of ours.
pub(super) fn denied(plan: &Plan, readings: &[Reading], store_us: u64) -> Option<Decision> {
    let denials = plan.charges.iter().zip(readings).enumerate();
    let longest = longest_wait(
        denials
            .filter(|(_, (charge, reading))| !charge.report && reading.time_us != 0.0)
            .map(|(index, (charge, reading))| {
                let wait = (reading.time_us > 0.0).then(|| match charge.span {
                    Span::Sliding { window_us } => {
                        Duration::from_micros(micros(reading.time_us).clamp(1, window_us.max(1)))
                    }
                    Span::Day { start_us, end_us } => {
                        Duration::from_micros(until(start_us, end_us, store_us))
                    }
                    Span::Running => TASK_WAIT,
                });
                (index, wait)
            }),
    );
    longest.map(|(charge, retry_after)| Decision::Deny {
        charge,
        left: plan.charges[charge]
            .quota
            .saturating_sub(readings[charge].used),
        retry_after,
    })
}
