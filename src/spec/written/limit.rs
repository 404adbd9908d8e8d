//! One limit: the short form, or a table that says everything.

use std::time::Duration;

use super::{DENIALS, FAILURES, MODES, Reader, Value, WrittenLimit};
use crate::limit::calendar::Zone;
use crate::limit::{Denial, Hold};
use crate::spec::figure::{self, Figure, Period};

const LIMIT_KEYS: &[&str] = &[
    "rate",
    "mode",
    "on_store_failure",
    "refund_on",
    "timezone",
    "hold",
    "max_hold",
    "denial",
];
const HOLDS: &[(&str, Hold)] = &[("response", Hold::Response), ("task", Hold::Task)];

impl Reader<'_> {
    pub(super) fn limits(&mut self, value: &Value<'_>) -> Vec<WrittenLimit> {
        match value.get_ref().as_array() {
            Some(items) => items.iter().filter_map(|item| self.limit(item)).collect(),
            None => self.limit(value).into_iter().collect(),
        }
    }

    pub(super) fn limit(&mut self, value: &Value<'_>) -> Option<WrittenLimit> {
        let at = self.at(value);
        let read = |reader: &mut Self, value: &Value<'_>| -> Option<(String, Figure)> {
            let text = reader.string(value, "a limit")?.value;
            match Figure::parse(&text) {
                Ok(figure) => Some((text, figure)),
                Err(why) => {
                    reader.wrong(value, why);
                    None
                }
            }
        };
        let table = value.get_ref().as_table();
        let rate = match table {
            None => value,
            Some(table) => {
                let Some(rate) = table.get("rate") else {
                    self.wrong(value, "the figure is missing: rate = \"100/s\"");
                    return None;
                };
                rate
            }
        };
        let (text, figure) = read(self, rate)?;
        let mut limit = WrittenLimit {
            at,
            text,
            figure,
            mode: None,
            on_store_failure: None,
            refund_on: None,
            zone: None,
            hold: Hold::Response,
            max_hold: None,
            denial: None,
        };
        for (key, value) in table.into_iter().flatten() {
            let only = |reader: &mut Self, fits: bool, what: &str| {
                if !fits {
                    reader.wrong(
                        value,
                        format!("this `{}` belongs to {what} only", key.get_ref()),
                    );
                }
            };
            match &**key.get_ref() {
                "rate" => {}
                "mode" => limit.mode = self.choice(value, "mode", MODES),
                "on_store_failure" => {
                    limit.on_store_failure = self.choice(value, "on_store_failure", FAILURES);
                }
                "refund_on" => limit.refund_on = Some(self.statuses(value)),
                "timezone" => {
                    only(self, figure.period == Period::Day, "day limits");
                    limit.zone = self.zone(value);
                }
                "hold" => {
                    only(self, figure.period == Period::Running, "task limits");
                    limit.hold = self.choice(value, "hold", HOLDS).unwrap_or_default();
                }
                "max_hold" => {
                    only(self, figure.period == Period::Running, "task limits");
                    limit.max_hold = self.duration(value);
                }
                "denial" => {
                    limit.denial = self.choice(value, "denial", DENIALS);
                    let day = matches!(
                        limit.denial,
                        Some(Denial::BroadcastUsers | Denial::BroadcastRooms)
                    );
                    only(self, !day || figure.period == Period::Day, "day limits");
                }
                _ => self.unknown_key(key, "a limit", LIMIT_KEYS),
            }
        }
        Some(limit)
    }

    pub(super) fn statuses(&mut self, value: &Value<'_>) -> Vec<u16> {
        let Some(items) = value.get_ref().as_array() else {
            self.wrong(value, "refund_on is a list of statuses, e.g. [401, 503]");
            return Vec::new();
        };
        let mut statuses = Vec::new();
        for item in items {
            match self.integer(item, "a status").map(u16::try_from) {
                Some(Ok(status @ 200..=599)) => statuses.push(status),
                Some(_) => self.wrong(item, "an upstream's status is from 200 to 599"),
                None => {}
            }
        }
        statuses
    }

    pub(super) fn zone(&mut self, value: &Value<'_>) -> Option<(String, Zone)> {
        let name = self.string(value, "a time zone")?.value;
        let zone = Zone::named(&name);
        if zone.is_none() {
            self.wrong(
                value,
                "unknown time zone; write an IANA name, e.g. \"Asia/Shanghai\"",
            );
        }
        Some((name, zone?))
    }

    pub(super) fn duration(&mut self, value: &Value<'_>) -> Option<Duration> {
        let text = self.string(value, "a time")?.value;
        match figure::duration(&text) {
            Ok(duration) if !duration.is_zero() => Some(duration),
            Ok(_) => {
                self.wrong(
                    value,
                    "a slot held for no time is no slot; write e.g. \"5min\"",
                );
                None
            }
            Err(why) => {
                self.wrong(value, why);
                None
            }
        }
    }
}
