//! How many calls a pool's upstreams may have at once.

use super::{MILLISECOND, OfPool, Reader};
use crate::cli::value::{self, ValueError};
use crate::settings::Concurrency;

const KINDS: &[(&str, bool)] = &[("off", false), ("adaptive", true)];

/// What is written of it: bounds count for a pool that switches it on, too.
#[derive(Clone, Copy)]
pub(super) struct Written {
    is_on: bool,
    bounds: Concurrency,
}

fn limit(text: &str) -> Result<u32, ValueError> {
    value::number(text, 1, 1_000_000)
}

fn least(text: &str, most: Option<u32>) -> Result<u32, ValueError> {
    match (limit(text)?, most) {
        (least, Some(most)) if least > most => Err(ValueError::MoreThanMost(most)),
        (least, _) => Ok(least),
    }
}

fn percent(text: &str) -> Result<u32, ValueError> {
    value::number(text.strip_suffix('%').unwrap_or(text), 10, 1000)
}

impl Written {
    pub(super) fn read(reader: &mut Reader) -> Option<Self> {
        let is_on = reader.one("concurrency", |text| value::choice(text, KINDS));
        let most = reader.one("concurrency_max", limit);
        let least = reader.one("concurrency_min", |text| least(text, most));
        let slack_percent = reader.one("concurrency_slack", percent);
        let measure = reader.time("concurrency_measure", MILLISECOND);
        Some(Self {
            is_on: is_on?,
            bounds: Concurrency {
                least: least?,
                most: most?,
                slack_percent: slack_percent?,
                measure: measure?,
            },
        })
    }

    /// The same, where the pool says nothing else.
    pub(super) fn of_pool(self, pool: &mut OfPool<'_>) -> Self {
        let bounds = self.bounds;
        let is_on = pool.one("concurrency", |text| value::choice(text, KINDS));
        let most = pool.one("concurrency_max", limit).unwrap_or(bounds.most);
        // One that is not its own gives way to its largest limit.
        let own = pool.one("concurrency_min", |text| least(text, Some(most)));
        let slack_percent = pool.one("concurrency_slack", percent);
        let measure = pool.one("concurrency_measure", |text| value::time(text, MILLISECOND));
        Self {
            is_on: is_on.unwrap_or(self.is_on),
            bounds: Concurrency {
                least: own.unwrap_or(bounds.least).min(most),
                most,
                slack_percent: slack_percent.unwrap_or(bounds.slack_percent),
                measure: measure.unwrap_or(bounds.measure),
            },
        }
    }
}

impl From<Written> for Option<Concurrency> {
    fn from(written: Written) -> Self {
        written.is_on.then_some(written.bounds)
    }
}
