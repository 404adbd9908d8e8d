//! Items that go in one command, as bytes: `script/counters.lua` says what they mean.

use foldhash::fast::RandomState;
use hashbrown::HashMap;

use super::name::{Name, WHOLE, epoch_key, signed_key};
use super::wire::{Item, What};

/// Items that go in one command. Those that ask for the same go as one: a busy app costs the
/// store no more than an idle one.
#[derive(Debug)]
pub(super) struct Batch {
    /// Whether the epoch's key goes before the others.
    epoch: bool,
    is_of_rates: bool,
    is_signed: bool,
    items: u32,
    keys: Vec<Name>,
    places: HashMap<Name, u16, RandomState>,
    rows: Vec<Row>,
}

/// Where the answer to an item is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    /// Among the answers.
    pub(super) row: usize,
    /// Among those that asked for the same.
    pub(super) turn: u32,
}

/// What is sent for one item, or for some that ask for the same.
#[derive(Debug)]
struct Row {
    bytes: Vec<u8>,
    /// Of a decision that others may join.
    asked: Option<Asked>,
}

/// When decisions may run, and how many they are.
#[derive(Clone, Copy, Debug)]
struct Asked {
    earliest_us: u64,
    latest_us: u64,
    times: u32,
}

/// Of a decision's bytes, those that say what is [`Asked`].
const HEAD: usize = 21;

/// Those whose time ends further apart, in microseconds, do not go together: for one that has
/// waited for long it may be over.
const APART_US: u64 = 5000;

impl Asked {
    fn joins(&self, other: &Self) -> bool {
        let times = [
            (self.earliest_us, other.earliest_us),
            (self.latest_us, other.latest_us),
        ];
        times.iter().all(|(a, b)| a.abs_diff(*b) <= APART_US)
    }

    fn join(&mut self, other: Self) {
        self.earliest_us = self.earliest_us.max(other.earliest_us);
        self.latest_us = self.latest_us.min(other.latest_us);
        self.times = self.times.saturating_add(other.times);
    }

    fn head(self) -> [u8; HEAD] {
        let mut head = [b'D'; HEAD];
        head[1..9].copy_from_slice(&double(self.earliest_us));
        head[9..17].copy_from_slice(&double(self.latest_us));
        head[17..].copy_from_slice(&self.times.to_le_bytes());
        head
    }
}

impl Batch {
    /// An empty batch.
    pub(super) fn new(epoch: bool) -> Self {
        Self {
            epoch,
            is_of_rates: true,
            is_signed: false,
            items: 0,
            keys: Vec::new(),
            places: HashMap::default(),
            rows: Vec::new(),
        }
    }

    /// Adds an item; where its answer will be.
    pub(super) fn push(&mut self, item: &Item) -> Place {
        self.items = self.items.saturating_add(1);
        self.is_of_rates &= item.is_of_rates();
        let bytes = self.bytes(item);
        let asked = match item.what() {
            What::Decide {
                earliest_us,
                latest_us,
            } if item.is_plain() => Some(Asked {
                earliest_us,
                latest_us,
                times: 1,
            }),
            _ => None,
        };
        if let Some(more) = asked {
            for (row, there) in self.rows.iter_mut().enumerate() {
                let is_same = there.bytes.get(HEAD..) == bytes.get(HEAD..);
                let joins = |asked: &&mut Asked| is_same && asked.joins(&more);
                if let Some(asked) = there.asked.as_mut().filter(joins) {
                    let turn = asked.times;
                    asked.join(more);
                    there.bytes[..HEAD].copy_from_slice(&asked.head());
                    return Place { row, turn };
                }
            }
        }
        let row = self.rows.len();
        self.rows.push(Row { bytes, asked });
        Place { row, turn: 0 }
    }

    fn bytes(&mut self, item: &Item) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEAD + 32 * item.parts().len());
        match item.what() {
            What::Decide {
                earliest_us,
                latest_us,
            } => {
                let times = 1;
                let asked = Asked {
                    earliest_us,
                    latest_us,
                    times,
                };
                bytes.extend(asked.head());
            }
            What::GiveBack => bytes.push(b'B'),
            What::Put => bytes.push(b'P'),
            What::Renew { lost_too: false } => bytes.push(b'R'),
            What::Renew { lost_too: true } => bytes.push(b'S'),
            What::Hold { .. } => bytes.push(b'H'),
            What::Keep { .. } => bytes.push(b'K'),
            What::Finish { .. } => bytes.push(b'F'),
            What::Empty => bytes.push(b'E'),
            What::Change => bytes.push(b'C'),
            What::ChangeBy {
                earliest_us,
                latest_us,
            } => {
                bytes.push(b'W');
                bytes.extend(double(earliest_us));
                bytes.extend(double(latest_us));
            }
        }
        for part in item.parts() {
            bytes.extend(self.place(part.name).to_le_bytes());
            match item.what() {
                What::Decide { .. } => {
                    bytes.push(part.kind);
                    bytes.push(u8::from(part.report));
                    bytes.extend(part.quota.to_le_bytes());
                    bytes.extend(part.units.to_le_bytes());
                    bytes.extend(part.more.to_le_bytes());
                }
                What::GiveBack | What::Put | What::Change | What::ChangeBy { .. } => {
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
            bytes.extend(double(part.a));
            bytes.extend(double(part.b));
            if let What::Hold { task } | What::Keep { task } = item.what() {
                bytes.extend(task);
            }
        }
        bytes
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

    /// Lets the gateway sign for the totals that are moved, in the same part of the store.
    pub(super) fn sign(&mut self) {
        (self.is_signed, self.is_of_rates) = (true, false);
    }

    /// Whether it does: the key is the last one then, and the answer too.
    pub(super) fn is_signed(&self) -> bool {
        self.is_signed
    }

    /// Keys of the batch, in the order of their places.
    pub(super) fn keys(&self, prefix: &str, tag: &str) -> Vec<String> {
        let epoch = self.epoch.then(|| epoch_key(prefix, WHOLE));
        let signed = self.is_signed.then(|| signed_key(prefix, tag));
        let names = self.keys.iter().map(|name| name.text(prefix));
        epoch.into_iter().chain(names).chain(signed).collect()
    }

    /// What is sent for a signature, if there is one, after the last sign that the store is known to
    /// have had.
    pub(super) fn signature(&self, last: u64) -> Option<Vec<u8>> {
        let place = self.keys.len() + 1 + usize::from(self.epoch);
        let place = u16::try_from(place).unwrap_or(u16::MAX);
        let mut bytes = vec![b'N'];
        bytes.extend(place.to_le_bytes());
        bytes.extend(double(last));
        self.is_signed.then_some(bytes)
    }

    /// The first counter's name, which says what part of the store it is about.
    pub(super) fn name(&self) -> Option<Name> {
        self.keys.first().copied()
    }

    /// Whether it is about one counter.
    pub(super) fn is_of_one_counter(&self) -> bool {
        self.keys.len() == 1
    }

    /// Whether it is about counters of windows and days alone.
    pub(super) fn is_of_rates(&self) -> bool {
        self.is_of_rates
    }

    /// Items that were added.
    pub(super) fn items(&self) -> u32 {
        self.items
    }

    /// What is sent of them.
    pub(super) fn rows(&self) -> impl Iterator<Item = &[u8]> {
        self.rows.iter().map(|row| &row.bytes[..])
    }
}

/// Numbers go as doubles: Lua has no others.
#[expect(
    clippy::cast_precision_loss,
    reason = "times and steps are far below 2^53"
)]
fn double(number: u64) -> [u8; 8] {
    (number as f64).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::super::part::Part;
    use super::*;
    use crate::limit::{CounterKey, Span};

    fn asks(number: u128, report: bool, times: (u64, u64)) -> Item {
        let (earliest_us, latest_us) = times;
        let span = Span::Sliding {
            window_us: 1_000_000,
        };
        let name = Name::plain(CounterKey(9), CounterKey(number));
        let mut part = Part::new(name, span, 1, 0);
        part.report = report;
        let what = What::Decide {
            earliest_us,
            latest_us,
        };
        Item::of(what, &[part])
    }

    #[test]
    fn what_asks_for_the_same_is_sent_once() {
        let mut batch = Batch::new(true);
        let places = [
            batch.push(&asks(1, false, (5, 20))),
            batch.push(&asks(2, false, (5, 20))),
            batch.push(&asks(1, false, (7, 22))),
            batch.push(&asks(1, true, (7, 22))),
            batch.push(&asks(1, true, (7, 22))),
            batch.push(&asks(1, false, (7 + APART_US, 21 + APART_US))),
        ];
        let places = places.map(|place| (place.row, place.turn));
        assert_eq!(places, [(0, 0), (1, 0), (0, 1), (2, 0), (3, 0), (4, 0)]);
        assert_eq!((batch.items(), batch.rows().count()), (6, 5));
        let mut head = vec![b'D'];
        head.extend(7_f64.to_le_bytes());
        head.extend(20_f64.to_le_bytes());
        head.extend(2_u32.to_le_bytes());
        assert_eq!(batch.rows().next().unwrap()[..HEAD], head);
    }
}
