//! What came of it: for people, for programs, and as a page.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use super::ledger::{Checked, Ledger};
use super::mix::Mix;
use super::tally::{Counts, Latency, Point, Second, Tally};
use super::{Options, html};
use crate::limit::{Limit, Moment, Scope, Unit, Window};

/// Limits that are shown in the terminal.
const SHOWN: usize = 20;
/// Limits that are written to files.
const WRITTEN: usize = 5_000;

/// A run, from its end.
#[derive(Debug, Serialize)]
pub struct Report {
    pub(super) version: &'static str,
    pub(super) target: String,
    /// Unix milliseconds.
    pub(super) begun: u64,
    pub(super) seconds: f64,
    /// Calls each second: asked for at the start.
    pub(super) rate_from: f64,
    /// At the end.
    pub(super) rate_to: f64,
    pub(super) connections: usize,
    pub(super) http2: bool,
    pub(super) seed: u64,
    #[serde(flatten)]
    pub(super) counts: Counts,
    /// Due and never sent.
    pub(super) missed: u64,
    pub(super) statuses: BTreeMap<u16, u64>,
    pub(super) errors: BTreeMap<&'static str, u64>,
    /// Of admitted calls, from when they were due.
    pub(super) latency: Latency,
    /// Of admitted calls, from when they were sent.
    pub(super) service: Latency,
    /// Of denials, from when they were due.
    pub(super) denials: Latency,
    pub(super) distribution: Vec<Point>,
    pub(super) calls: Vec<CallRow>,
    pub(super) limits: Vec<LimitRow>,
    /// Counters of which more was admitted than the limit allows.
    pub(super) exceeded: usize,
    /// Denials for which there was room.
    pub(super) early: u64,
    /// Claims on counters too many to be checked.
    pub(super) unchecked: u64,
    pub(super) series: Vec<Second>,
}

/// One kind of call.
#[derive(Debug, Serialize)]
pub(super) struct CallRow {
    pub(super) name: String,
    #[serde(flatten)]
    pub(super) counts: Counts,
    pub(super) latency: Latency,
}

/// One counter of one limit.
#[derive(Debug, Serialize)]
pub(super) struct LimitRow {
    pub(super) limit: String,
    pub(super) scope: &'static str,
    pub(super) who: String,
    pub(super) quota: u32,
    pub(super) unit: &'static str,
    /// 0: tasks at once, which cannot be told from outside.
    pub(super) window_s: u64,
    pub(super) most_in_a_window: Option<u64>,
    /// Units.
    pub(super) admitted: u64,
    /// Calls.
    pub(super) denied: u64,
    pub(super) denied_early: u64,
    pub(super) exceeded: bool,
    #[serde(skip)]
    pub(super) per: String,
}

impl LimitRow {
    fn new(checked: &Checked<'_>) -> Self {
        let Checked { limit, who, row } = checked;
        Self {
            limit: limit.name.to_string(),
            scope: limit.scope.as_str(),
            who: who.to_string(),
            quota: limit.quota.get(),
            unit: limit.unit.as_str(),
            window_s: limit.window_s(),
            most_in_a_window: row.most,
            admitted: row.admitted,
            denied: row.denied,
            denied_early: row.early,
            exceeded: checked.is_exceeded(),
            per: per(limit),
        }
    }

    /// `6,000 messages/min allowed, 6,000 admitted, 4,112 denied`
    pub(super) fn in_words(&self) -> String {
        let whose = match self.scope {
            scope if scope == Scope::App.as_str() => "app",
            scope if scope == Scope::Ip.as_str() => "address",
            _ => "user",
        };
        let most = match self.most_in_a_window {
            Some(most) if most == self.admitted => grouped(most),
            Some(most) => format!(
                "{} admitted at most in one ({} in all",
                grouped(most),
                grouped(self.admitted)
            ),
            None => grouped(self.admitted),
        };
        let admitted = match most.split_once(" admitted") {
            Some(_) => format!("{most})"),
            None => format!("{most} admitted"),
        };
        let denied = match self.unit {
            unit if unit == Unit::Calls.as_str() => format!("{} denied", grouped(self.denied)),
            _ => format!("{} calls denied", grouped(self.denied)),
        };
        let mut words = format!(
            "{whose} {}: {} {}{} allowed, {admitted}, {denied}",
            self.who,
            grouped(self.quota.into()),
            self.unit,
            self.per,
        );
        if self.denied_early > 0 {
            let _ = write!(
                words,
                ", {} of them though there was room",
                grouped(self.denied_early)
            );
        }
        if self.exceeded {
            words.push_str(": EXCEEDED");
        }
        words
    }
}

fn per(limit: &Limit) -> String {
    match (&limit.window, limit.window_s()) {
        (Window::Running, _) => " at once".to_owned(),
        (Window::Day(_), _) => "/day".to_owned(),
        (Window::Sliding(_), 1) => "/s".to_owned(),
        (Window::Sliding(_), 60) => "/min".to_owned(),
        (Window::Sliding(length), _) => format!("/{length:?}"),
    }
}

impl Report {
    pub(super) fn new(
        options: &Options,
        mix: &Mix,
        ledger: &Ledger<'_>,
        tally: &Tally,
        begin: Moment,
        took_us: u64,
    ) -> Self {
        let rows = ledger.rows();
        Self {
            version: env!("CARGO_PKG_VERSION"),
            target: options.target.clone(),
            begun: begin.unix_us / 1000,
            seconds: std::time::Duration::from_micros(took_us).as_secs_f64(),
            rate_from: options.pace.from,
            rate_to: options.pace.to,
            connections: options.connections,
            http2: options.http2,
            seed: options.seed,
            counts: tally.counts,
            missed: tally.missed,
            statuses: tally.statuses.clone(),
            errors: tally.errors.clone(),
            latency: tally.since_due(),
            service: tally.since_sent(),
            denials: tally.denials(),
            distribution: tally.distribution(),
            calls: mix
                .kinds
                .iter()
                .enumerate()
                .map(|(at, kind)| {
                    let (counts, latency) = tally.kind(at);
                    CallRow {
                        name: kind.name.clone(),
                        counts,
                        latency,
                    }
                })
                .collect(),
            exceeded: rows.iter().filter(|row| row.is_exceeded()).count(),
            early: rows.iter().map(|row| row.row.early).sum(),
            limits: rows.iter().take(WRITTEN).map(LimitRow::new).collect(),
            unchecked: ledger.unchecked(),
            series: tally.seconds().to_vec(),
        }
    }

    /// Whether any limit was exceeded.
    #[must_use]
    pub fn is_exceeded(&self) -> bool {
        self.exceeded > 0
    }

    /// Whether nothing was answered at all.
    #[must_use]
    pub fn is_void(&self) -> bool {
        self.statuses.is_empty()
    }

    /// One line: whether the limits were kept.
    #[must_use]
    pub fn verdict(&self) -> String {
        if self.is_void() {
            return "Nothing was answered.".to_owned();
        }
        let mut said = match self.exceeded {
            0 => "No limit was exceeded.".to_owned(),
            1 => "1 limit was EXCEEDED.".to_owned(),
            n => format!("{n} limits were EXCEEDED."),
        };
        if self.early > 0 {
            let _ = write!(
                said,
                " {} calls were denied though there was room, unless others call the same apps.",
                grouped(self.early)
            );
        }
        if self.unchecked > 0 {
            let _ = write!(
                said,
                " {} charges were not checked: too many counters.",
                grouped(self.unchecked)
            );
        }
        said
    }

    /// For a terminal.
    #[must_use]
    pub fn in_words(&self) -> String {
        let mut text = format!(
            "\n{} calls in {:.1} s: {} admitted, {} denied, {} failed; {} due and not sent\n",
            grouped(self.counts.all()),
            self.seconds,
            grouped(self.counts.admitted),
            grouped(self.counts.denied),
            grouped(self.counts.failed),
            grouped(self.missed),
        );
        // Writing to a string does not fail.
        for (name, latency) in [
            ("admitted, from when due", self.latency),
            ("admitted, from when sent", self.service),
            ("denied, from when due", self.denials),
        ] {
            if latency.count > 0 {
                let _ = writeln!(
                    text,
                    "  {name:<26} p50 {:>9}  p90 {:>9}  p99 {:>9}  p99.9 {:>9}  max {:>9}",
                    millis(latency.p50_us),
                    millis(latency.p90_us),
                    millis(latency.p99_us),
                    millis(latency.p999_us),
                    millis(latency.max_us),
                );
            }
        }
        let statuses = self
            .statuses
            .iter()
            .map(|(status, n)| format!("{status}: {}", grouped(*n)));
        let errors = self
            .errors
            .iter()
            .map(|(why, n)| format!("{why}: {}", grouped(*n)));
        let ends: Vec<String> = statuses.chain(errors).collect();
        let _ = writeln!(text, "  {}\n", ends.join(", "));
        for call in &self.calls {
            let _ = writeln!(
                text,
                "  {:<20} {:>9} admitted {:>9} denied {:>9} failed   p50 {:>9}  p99 {:>9}",
                call.name,
                grouped(call.counts.admitted),
                grouped(call.counts.denied),
                grouped(call.counts.failed),
                millis(call.latency.p50_us),
                millis(call.latency.p99_us),
            );
        }
        text.push('\n');
        let used = self
            .limits
            .iter()
            .filter(|row| row.admitted + row.denied > 0);
        for row in used.clone().take(SHOWN) {
            let _ = writeln!(text, "  {}  ({})", row.in_words(), row.limit);
        }
        let more = used.count().saturating_sub(SHOWN);
        if more > 0 {
            let _ = writeln!(text, "  and {} counters more", grouped(more as u64));
        }
        let _ = writeln!(text, "\n{}", self.verdict());
        text
    }

    /// For programs.
    #[must_use]
    pub fn json(&self) -> String {
        // Of numbers, strings and lists: there is nothing that could fail.
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }

    /// As a page, with charts.
    #[must_use]
    pub fn html(&self) -> String {
        html::page(self)
    }
}

/// A number with its thousands apart.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A latency, in milliseconds.
pub(super) fn millis(us: u64) -> String {
    match us {
        0..10_000 => format!("{}.{:02} ms", us / 1000, us % 1000 / 10),
        _ => format!("{} ms", grouped(us / 1000)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(most: Option<u64>, admitted: u64) -> LimitRow {
        LimitRow {
            limit: "messages-users:messages/min:app".to_owned(),
            scope: "app",
            who: "acme#chat".to_owned(),
            quota: 6_000,
            unit: "messages",
            window_s: 60,
            most_in_a_window: most,
            admitted,
            denied: 4_112,
            denied_early: 0,
            exceeded: false,
            per: "/min".to_owned(),
        }
    }

    #[test]
    fn a_limit_is_told_in_a_sentence() {
        assert_eq!(
            row(Some(6_000), 6_000).in_words(),
            "app acme#chat: 6,000 messages/min allowed, 6,000 admitted, 4,112 calls denied"
        );
        assert_eq!(
            row(Some(6_000), 12_345).in_words(),
            "app acme#chat: 6,000 messages/min allowed, 6,000 admitted at most in one (12,345 in all), 4,112 calls denied"
        );
        let over = LimitRow {
            exceeded: true,
            denied_early: 2,
            ..row(Some(6_001), 6_001)
        };
        assert!(
            over.in_words()
                .ends_with("denied, 2 of them though there was room: EXCEEDED")
        );
    }

    #[test]
    fn numbers_are_read_at_a_glance() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1_000, "1,000"),
            (1_234_567, "1,234,567"),
        ] {
            assert_eq!(grouped(number), text);
        }
        for (us, text) in [
            (0, "0.00 ms"),
            (1_234, "1.23 ms"),
            (10_000, "10 ms"),
            (1_500_000, "1,500 ms"),
        ] {
            assert_eq!(millis(us), text);
        }
    }
}
