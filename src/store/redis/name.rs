//! Names of counters: what gateways that share a store must agree on.

use std::hash::Hasher as _;

use siphasher::sip::SipHasher13;

use crate::limit::{Charge, CounterKey, Plan, Scope, Span};

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

    /// The name of a total of the plan's app: it lies with the app's counters.
    pub(super) fn of_total(plan: &Plan, key: CounterKey) -> Self {
        Self::plain(plan.app.unwrap_or(key), key)
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
            _ => part_of(hexadecimal(self.tag, &mut [0; 16])) % count,
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

/// A number as keys have it, without zeros before it.
fn hexadecimal(number: u64, digits: &mut [u8; 16]) -> &[u8] {
    let (mut rest, mut first) = (number, digits.len());
    for (at, digit) in digits.iter_mut().enumerate().rev() {
        *digit = b"0123456789abcdef"[usize::try_from(rest % 16).unwrap_or(0)];
        (rest, first) = (rest / 16, at);
        if rest == 0 {
            break;
        }
    }
    digits.get(first..).unwrap_or_default()
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

/// The key of the last sign of each gateway.
pub(super) fn signed_key(prefix: &str, tag: &str) -> String {
    format!("{prefix}:{VERSION}{{{tag}}}signed")
}

/// The key of when the store was last found to lack what it had.
pub(super) fn doubts_key(prefix: &str, tag: &str) -> String {
    format!("{prefix}:{VERSION}{{{tag}}}doubts")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_is_in_the_part_of_its_keys_slot() {
        for owner in [0, 1, 0xF, 0x10, 0x1234_5678, 0xFFFF_FFFF] {
            let name = Name::plain(CounterKey(owner << 96), CounterKey(7));
            let slot = crc16::State::<crc16::XMODEM>::calculate(format!("{owner:x}").as_bytes());
            let slot = usize::from(slot % 16_384);
            assert_eq!(name.part(PARTS), slot / 256, "{owner:x}");
            assert_eq!(name.part(1), 0);
        }
    }
}
