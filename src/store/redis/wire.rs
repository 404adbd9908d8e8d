//! What goes to the script and what comes back: `counters.lua` says what the bytes mean.

use std::hash::Hasher as _;
use std::iter;
use std::time::Duration;

use foldhash::fast::RandomState;
use hashbrown::HashMap;
use siphasher::sip::SipHasher13;
use smallvec::SmallVec;

use crate::limit::plan::{longest_wait, reported_bit, smallest_share};
use crate::limit::slots::TASK_WAIT;
use crate::limit::{
    Charge, CounterKey, Decision, KeyHasher, Plan, Room, Scope, Span, Taken, sliding,
};

/// Layout of keys and values. Another number is another set of counters.
const VERSION: u8 = 1;

const MINUTE_US: u64 = 60_000_000;

/// A counter's name in Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Name {
    /// Whose counters lie on one node: those of an app, those of an address.
    tag: u64,
    key: CounterKey,
    /// The day's beginning in minutes, 0 for the other kinds.
    day: u64,
}

impl Name {
    /// The name of the counter of this charge.
    pub(super) fn of(plan: &Plan, charge: &Charge) -> Self {
        let owner = match charge.scope {
            Scope::App | Scope::User => plan.app,
            Scope::Ip => plan.origin,
        };
        let day = match charge.span {
            // A beginning of 0 minutes is still a day.
            Span::Day { start_us, .. } => start_us / MINUTE_US + 1,
            Span::Sliding { .. } | Span::Running => 0,
        };
        Self {
            tag: tag(owner.unwrap_or(charge.key)),
            key: charge.key,
            day,
        }
    }

    /// The name of a counter of this owner that is no day's.
    pub(super) fn plain(owner: CounterKey, key: CounterKey) -> Self {
        Self {
            tag: tag(owner),
            key,
            day: 0,
        }
    }

    /// Which of `count` parts of a table it belongs to.
    pub(super) fn shard(&self, count: usize) -> usize {
        usize::try_from(self.key.0 % 0xFFFF_FFFB).unwrap_or(0) % count.max(1)
    }

    /// Whose counters lie on one node.
    pub(super) fn tag(&self) -> u64 {
        self.tag
    }

    /// Which of `count` parts of the store it belongs to; see [`PARTS`].
    pub(super) fn part(&self, count: usize) -> usize {
        match count {
            0 | 1 => 0,
            _ => part_of(format!("{:x}", self.tag).as_bytes()) % count,
        }
    }

    /// A number for this counter and gateway, for a rendezvous among the gateways.
    pub(super) fn rank(&self, gateway: &str) -> u64 {
        let (high, low) = (self.key.0 >> 64, self.key.0 & u128::from(u64::MAX));
        let seeds = [high, low].map(|half| u64::try_from(half).unwrap_or(0));
        let mut hasher = SipHasher13::new_with_keys(seeds[0], seeds[1] ^ self.day);
        hasher.write(gateway.as_bytes());
        hasher.finish()
    }

    /// Itself, for other gateways.
    pub(super) fn to_word(self) -> String {
        let Self { tag, key, day } = self;
        format!("{tag:x}.{:x}.{day:x}", key.0)
    }

    /// Reads what [`Name::to_word`] has written.
    pub(super) fn of_word(word: &str) -> Option<Self> {
        let mut parts = word.split('.');
        let tag = u64::from_str_radix(parts.next()?, 16).ok()?;
        let key = CounterKey(u128::from_str_radix(parts.next()?, 16).ok()?);
        let day = u64::from_str_radix(parts.next()?, 16).ok()?;
        Some(Self { tag, key, day })
    }

    /// The key: `{prefix}:{version}{{tag}}{counter}`, and the day.
    pub(super) fn text(&self, prefix: &str) -> String {
        let Self { tag, key, day } = self;
        match day {
            0 => format!("{prefix}:{VERSION}{{{tag:x}}}{:x}", key.0),
            day => format!("{prefix}:{VERSION}{{{tag:x}}}{:x}.{day}", key.0),
        }
    }
}

/// The tag of what speaks for the whole store.
pub(super) const WHOLE: &str = "all";

/// Parts of a cluster that are watched one by one: ranges of 256 slots, which lie on one node as
/// a rule.
pub(super) const PARTS: usize = 64;

/// The part of the slot that keys with this tag lie in.
fn part_of(tag: &[u8]) -> usize {
    usize::from(crc16::State::<crc16::XMODEM>::calculate(tag) % 16_384) / 256
}

/// Tags whose keys lie in each part.
pub(super) fn part_tags() -> Vec<String> {
    let tag_of = |part| {
        let tags = (0_u32..).map(|n| format!("p{n}"));
        tags.into_iter().find(|tag| part_of(tag.as_bytes()) == part)
    };
    (0..PARTS).filter_map(tag_of).collect()
}

/// The key of the epoch: what a store that came back empty no longer has.
pub(super) fn epoch_key(prefix: &str, tag: &str) -> String {
    format!("{prefix}:{VERSION}{{{tag}}}epoch")
}

/// The key of the gateways that share the store.
pub(super) fn peers_key(prefix: &str, tag: &str) -> String {
    format!("{prefix}:{VERSION}{{{tag}}}gateways")
}

/// The key of the resets that gateways may not have heard of.
pub(super) fn resets_key(prefix: &str) -> String {
    format!("{prefix}:{VERSION}resets")
}

/// The key of what a gateway has to say to whoever asks.
pub(super) fn news_key(prefix: &str, gateway: &str) -> String {
    format!("{prefix}:{VERSION}news.{gateway}")
}

/// 32 bits spread owners over a cluster's 16,384 slots.
fn tag(owner: CounterKey) -> u64 {
    u64::try_from(owner.0 >> 96).unwrap_or(0)
}

/// What an item asks for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum What {
    /// One all-or-nothing decision, if it runs between these times of the store
    /// (microseconds).
    Decide { earliest_us: u64, latest_us: u64 },
    /// Units back to where they were taken from.
    GiveBack,
    /// Units that were admitted without the store.
    Put,
    /// Slots whose calls still run; `lost_too`: also those that the store has forgotten.
    Renew { lost_too: bool },
    /// A slot that outlives its call, as this task's.
    Hold { task: Task },
    /// The same, unless the store knows of it: the slot's number says which of this name.
    Keep { task: Task },
    /// The end of such a task.
    Finish { task: Task },
    /// Counters to be empty.
    Empty,
}

/// A task's name, hashed: names are callers' and of any length.
pub(super) type Task = [u8; 16];

/// The hash of a task's name.
pub(super) fn task(name: &str) -> Task {
    KeyHasher::shared().task(name).0.to_le_bytes()
}

/// Units asked of one counter, or given back to it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    name: Name,
    kind: u8,
    report: bool,
    quota: u32,
    units: u32,
    /// Wanted beyond the units.
    more: u32,
    a: u64,
    b: u64,
}

impl Part {
    /// Units of a step of a sliding window, of a day (`at` is of no account), or a slot.
    pub(super) fn new(name: Name, span: Span, units: u32, at: u64) -> Self {
        let (kind, a, b) = match span {
            Span::Sliding { window_us } => (0, sliding::step_us(window_us), at),
            Span::Day { start_us, end_us } => (1, start_us, end_us),
            Span::Running => (2, 0, at),
        };
        Self {
            name,
            kind,
            report: false,
            quota: 0,
            units,
            more: 0,
            a,
            b,
        }
    }

    /// A slot and the time for which it is to count.
    pub(super) fn slot(name: Name, number: u64, lasts: Duration) -> Self {
        Self {
            a: micros_of(lasts),
            ..Self::new(name, Span::Running, 1, number)
        }
    }
}

fn micros_of(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// One decision or one giving back.
#[derive(Clone, Debug)]
pub(super) struct Item {
    what: What,
    parts: SmallVec<[Part; 6]>,
}

impl Item {
    /// Asks for a plan, and for these units more of each of its counters. `slot` numbers the slots that it may take, from there on.
    pub(super) fn decide(
        plan: &Plan,
        wanted: &[u32],
        what: What,
        slot: u64,
        slot_lease: Duration,
    ) -> Self {
        let wanted = wanted.iter().copied().chain(iter::repeat(0));
        let lease_us = micros_of(slot_lease);
        let parts = plan
            .charges
            .iter()
            .zip(slot..)
            .zip(wanted)
            .map(|((charge, slot), more)| {
                let (kind, a, b) = match charge.span {
                    Span::Sliding { window_us } => (0, sliding::step_us(window_us), 0),
                    Span::Day { start_us, end_us } => (1, start_us, end_us),
                    Span::Running => (2, lease_us, slot),
                };
                Part {
                    name: Name::of(plan, charge),
                    kind,
                    report: charge.report,
                    quota: charge.quota,
                    units: charge.cost,
                    more,
                    a,
                    b,
                }
            });
        Self {
            what,
            parts: parts.collect(),
        }
    }

    /// Gives back what these charges of a plan took; they have nothing left afterwards. `None`
    /// when that is nothing.
    pub(super) fn give_back(plan: &mut Plan, which: &dyn Fn(&Charge) -> bool) -> Option<Self> {
        let mut parts = SmallVec::new();
        for index in 0..plan.charges.len() {
            let charge = plan.charges[index];
            if charge.taken.is_none() || !which(&charge) {
                continue;
            }
            // Taken out: whoever comes next finds nothing to give back.
            let Some(taken) = plan.charges[index].taken.take() else {
                continue;
            };
            let at = match taken {
                Taken::Step(at) | Taken::Day(at) | Taken::Slot(at) => at,
            };
            parts.push(Part::new(
                Name::of(plan, &charge),
                charge.span,
                charge.cost,
                at,
            ));
        }
        (!parts.is_empty()).then_some(Self {
            what: What::GiveBack,
            parts,
        })
    }
}

impl Item {
    /// Units that were admitted without the store, or given back then.
    pub(super) fn of(what: What, parts: &[Part]) -> Self {
        Self {
            what,
            parts: parts.into(),
        }
    }

    /// Whose counters these are: the first one's, which in a cluster are all on one node.
    pub(super) fn name(&self) -> Option<Name> {
        self.parts.first().map(|part| part.name)
    }

    /// The same for each owner of counters.
    pub(super) fn by_owner(self) -> Vec<Self> {
        let mut items: Vec<Self> = Vec::with_capacity(1);
        for part in self.parts {
            let same = |item: &&mut Self| item.name().is_some_and(|n| n.tag == part.name.tag);
            match items.iter_mut().find(same) {
                Some(item) => item.parts.push(part),
                None => items.push(Self::of(self.what, &[part])),
            }
        }
        items
    }

    /// What undoes this decision after it was admitted. `None` when it took nothing.
    pub(super) fn undo(&self, answer: &Answer) -> Option<Self> {
        let Some(Verdict::Admitted(readings)) = &answer.verdict else {
            return None;
        };
        let parts: SmallVec<[Part; 6]> = self
            .parts
            .iter()
            .zip(readings)
            .filter(|(part, reading)| part.units > 0 && reading.time_us >= 0.0)
            .flat_map(|(part, reading)| {
                let step = answer.store_us / part.a.max(1);
                let at = |units, ahead| Part {
                    units,
                    b: if part.kind == 0 { step + ahead } else { part.b },
                    ..*part
                };
                // What was granted beyond the cost lies a step ahead.
                let more = (reading.granted > 0).then(|| at(reading.granted, 1));
                iter::once(at(part.units, 0)).chain(more)
            })
            .collect();
        (!parts.is_empty()).then_some(Self {
            what: What::GiveBack,
            parts,
        })
    }
}

/// What became of an item.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Answer {
    /// When the script ran, by the store's clock, microseconds.
    pub(super) store_us: u64,
    /// `None` for an item that is no decision.
    pub(super) verdict: Option<Verdict>,
}

/// Items that go in one command.
#[derive(Debug)]
pub(super) struct Batch {
    /// Whether the epoch's key goes before the others.
    epoch: bool,
    keys: Vec<Name>,
    places: HashMap<Name, u16, RandomState>,
    items: Vec<Vec<u8>>,
}

impl Batch {
    /// An empty batch.
    pub(super) fn new(epoch: bool) -> Self {
        Self {
            epoch,
            keys: Vec::new(),
            places: HashMap::default(),
            items: Vec::new(),
        }
    }

    /// Adds an item.
    pub(super) fn push(&mut self, item: &Item) {
        let mut bytes = Vec::with_capacity(17 + 32 * item.parts.len());
        match item.what {
            What::Decide {
                earliest_us,
                latest_us,
            } => {
                bytes.push(b'D');
                put_time(&mut bytes, earliest_us);
                put_time(&mut bytes, latest_us);
            }
            What::GiveBack => bytes.push(b'B'),
            What::Put => bytes.push(b'P'),
            What::Renew { lost_too: false } => bytes.push(b'R'),
            What::Renew { lost_too: true } => bytes.push(b'S'),
            What::Hold { .. } => bytes.push(b'H'),
            What::Keep { .. } => bytes.push(b'K'),
            What::Finish { .. } => bytes.push(b'F'),
            What::Empty => bytes.push(b'E'),
        }
        for part in &item.parts {
            bytes.extend(self.place(part.name).to_le_bytes());
            match item.what {
                What::Decide { .. } => {
                    bytes.push(part.kind);
                    bytes.push(u8::from(part.report));
                    bytes.extend(part.quota.to_le_bytes());
                    bytes.extend(part.units.to_le_bytes());
                    bytes.extend(part.more.to_le_bytes());
                }
                What::GiveBack | What::Put => {
                    bytes.push(part.kind);
                    bytes.extend(part.units.to_le_bytes());
                }
                What::Renew { .. } | What::Hold { .. } | What::Keep { .. } => (),
                What::Empty => continue,
                What::Finish { task } => {
                    bytes.extend(task);
                    continue;
                }
            }
            put_time(&mut bytes, part.a);
            put_time(&mut bytes, part.b);
            if let What::Hold { task } | What::Keep { task } = item.what {
                bytes.extend(task);
            }
        }
        self.items.push(bytes);
    }

    /// The place of a key among the script's, which count from 1; the epoch's is the first.
    fn place(&mut self, name: Name) -> u16 {
        let before = self.keys.len() + usize::from(self.epoch);
        let next = u16::try_from(before + 1).unwrap_or(u16::MAX);
        *self.places.entry(name).or_insert_with(|| {
            self.keys.push(name);
            next
        })
    }

    /// Keys of the batch, in the order of their places.
    pub(super) fn keys(&self, prefix: &str) -> impl Iterator<Item = String> {
        let epoch = self.epoch.then(|| epoch_key(prefix, WHOLE));
        epoch
            .into_iter()
            .chain(self.keys.iter().map(move |name| name.text(prefix)))
    }

    /// The items' bytes.
    pub(super) fn items(&self) -> &[Vec<u8>] {
        &self.items
    }
}

/// Numbers go as doubles: Lua has no others.
#[expect(
    clippy::cast_precision_loss,
    reason = "times and steps are far below 2^53"
)]
fn put_time(bytes: &mut Vec<u8>, number: u64) {
    bytes.extend((number as f64).to_le_bytes());
}

/// What the script found at one counter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Reading {
    /// Units used before.
    pub(super) used: u32,
    /// Units granted beyond the cost.
    pub(super) granted: u32,
    /// As `counters.lua` says.
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

    /// The time it tells, in microseconds; 0 when it tells none.
    pub(super) fn wait_us(&self) -> u64 {
        micros(self.time_us)
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
}

impl Verdict {
    /// Reads a reply; `None` for one that no script of ours gives.
    pub(super) fn parse(reply: &[u8]) -> Option<Self> {
        let (what, rest) = reply.split_first()?;
        let (readings, odd) = rest.as_chunks::<16>();
        if !odd.is_empty() {
            return None;
        }
        let readings = readings.iter().map(|bytes| {
            let [a, b, c, d, e, f, g, h, time @ ..] = *bytes;
            Reading {
                used: u32::from_le_bytes([a, b, c, d]),
                granted: u32::from_le_bytes([e, f, g, h]),
                time_us: f64::from_le_bytes(time),
            }
        });
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
        if charge.report && reading.time_us < 0.0 {
            reported |= reported_bit(index);
        } else if charge.cost > 0 {
            charge.taken = Some(match charge.span {
                Span::Sliding { window_us } => Taken::Step(store_us / sliding::step_us(window_us)),
                Span::Day { end_us, .. } => Taken::Day(end_us),
                Span::Running => Taken::Slot(slot + u64::try_from(index).unwrap_or(0)),
            });
        }
    }
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
