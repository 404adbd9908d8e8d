//! The short form of a limit: `6000 messages/min`, `5/min per user`, `3 tasks`.

use std::num::NonZeroU32;
use std::time::Duration;

use crate::limit::{Scope, Unit};

/// The longest sliding window: a day; longer periods are calendar days.
const MAX_SLIDING_S: u64 = 86_400;

/// The period as written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Period {
    /// Seconds and minutes.
    Sliding(Duration),
    /// A calendar day.
    Day,
    /// Tasks that run at the same time.
    Running,
}

/// A parsed figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Figure {
    /// Units per period.
    pub quota: NonZeroU32,
    /// What is counted.
    pub unit: Unit,
    /// The period.
    pub period: Period,
    /// Whose.
    pub scope: Scope,
}

impl Figure {
    /// Parses the short form.
    ///
    /// # Errors
    /// What to write instead.
    pub fn parse(text: &str) -> Result<Self, String> {
        const FORM: &str = "write e.g. \"100/s\", \"6000 messages/min\", \"5/min per user\", \"50/day\" or \"3 tasks\"";
        let (figure, scope) = match text.split_once(" per ") {
            None => (text, Scope::App),
            Some((figure, "app")) => (figure, Scope::App),
            Some((figure, "user")) => (figure, Scope::User),
            Some((figure, "ip")) => (figure, Scope::Ip),
            Some((_, other)) => {
                return Err(format!(
                    "`{other}` is no scope; write `per app`, `per user` or `per ip`"
                ));
            }
        };
        let (amount, period) = match figure.split_once('/') {
            Some((amount, period)) => (amount.trim(), Some(period.trim())),
            None => (figure.trim(), None),
        };
        let (number, unit) = amount.split_once(' ').unwrap_or((amount, ""));
        let unit = match (unit.trim(), period) {
            ("" | "calls" | "call", Some(_)) => Unit::Calls,
            ("messages" | "message", Some(_)) => Unit::Messages,
            ("tasks" | "task", None) => Unit::Tasks,
            ("tasks" | "task", Some(_)) => {
                return Err(
                    "tasks have no period: they run at the same time; write e.g. \"3 tasks\""
                        .to_owned(),
                );
            }
            ("" | "calls" | "messages", None) => {
                return Err(format!("the period is missing; {FORM}"));
            }
            (other, _) => {
                return Err(format!(
                    "`{other}` is no unit; write calls, messages or tasks"
                ));
            }
        };
        let number = number.replace(['_', ','], "");
        let quota = number.parse::<u32>().map_err(|_| {
            format!("`{number}` is no figure (a whole number up to 4,294,967,295); {FORM}")
        })?;
        let quota = NonZeroU32::new(quota).ok_or(
            "no call can ever satisfy a limit of 0; to switch a limit off write mode = \"off\"",
        )?;
        let period = match period {
            None => Period::Running,
            Some("day" | "d") => Period::Day,
            Some(period) => Period::Sliding(
                duration(&spell_out(period)).map_err(|why| format!("{why}; {FORM}"))?,
            ),
        };
        if let Period::Sliding(length) = period {
            if length.is_zero() {
                return Err("a window of 0 holds nothing; write /s, /min, /10s, /day, …".to_owned());
            }
            if length.as_secs() > MAX_SLIDING_S || length.subsec_nanos() > 0 {
                return Err("a sliding window is whole seconds, at most 86400s; for calendar days write /day".to_owned());
            }
        }
        Ok(Self {
            quota,
            unit,
            period,
            scope,
        })
    }

    /// Whether a parsed text says what is counted; where it does not, calls are meant.
    #[must_use]
    pub fn names_unit(text: &str) -> bool {
        let amount = text.split('/').next().unwrap_or(text);
        amount.contains(|c: char| c.is_ascii_alphabetic())
    }

    /// The part of the limit's name after the owner: `calls/s:app`.
    #[must_use]
    pub fn counter_name(&self, scope: Scope, zone: Option<&str>) -> String {
        let unit = self.unit.as_str();
        let scope = scope.as_str();
        match self.period {
            Period::Running => format!("{unit}:{scope}"),
            Period::Day => match zone {
                Some(zone) => format!("{unit}/day@{zone}:{scope}"),
                None => format!("{unit}/day:{scope}"),
            },
            Period::Sliding(length) => {
                let period = match length.as_secs() {
                    1 => "s".to_owned(),
                    60 => "min".to_owned(),
                    s if s.is_multiple_of(60) => format!("{}min", s / 60),
                    s => format!("{s}s"),
                };
                format!("{unit}/{period}:{scope}")
            }
        }
    }
}

/// `s` is `1s`.
fn spell_out(period: &str) -> String {
    if period.starts_with(|c: char| c.is_ascii_digit()) {
        period.to_owned()
    } else {
        format!("1{period}")
    }
}

/// Parses `500ms`, `2s`, `5min`, `1h`.
///
/// # Errors
/// What to write instead.
pub fn duration(text: &str) -> Result<Duration, String> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let wrong = || format!("`{text}` is no time; write a whole number with ms, s, min or h");
    let number: u64 = number.parse().map_err(|_| wrong())?;
    match unit.trim() {
        "ms" => Ok(Duration::from_millis(number)),
        "s" => Ok(Duration::from_secs(number)),
        "min" | "m" => Ok(Duration::from_secs(number.saturating_mul(60))),
        "h" => Ok(Duration::from_secs(number.saturating_mul(3600))),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(text: &str) -> (u32, Unit, Period, Scope) {
        let figure = Figure::parse(text).unwrap();
        (figure.quota.get(), figure.unit, figure.period, figure.scope)
    }

    #[test]
    fn the_documented_forms_are_read() {
        let s = |n| Period::Sliding(Duration::from_secs(n));
        assert_eq!(figure("100/s"), (100, Unit::Calls, s(1), Scope::App));
        assert_eq!(
            figure("6_000 messages/min"),
            (6000, Unit::Messages, s(60), Scope::App)
        );
        assert_eq!(
            figure("5/min per user"),
            (5, Unit::Calls, s(60), Scope::User)
        );
        assert_eq!(figure("7/10s per ip"), (7, Unit::Calls, s(10), Scope::Ip));
        assert_eq!(figure("50/day"), (50, Unit::Calls, Period::Day, Scope::App));
        assert_eq!(
            figure("3 tasks"),
            (3, Unit::Tasks, Period::Running, Scope::App)
        );
    }

    #[test]
    fn a_wrong_figure_says_what_to_write() {
        for (text, said) in [
            ("0/s", "mode = \"off\""),
            ("1/0s", "window of 0"),
            ("100", "period is missing"),
            ("100/s per host", "per ip"),
            ("100 bananas/s", "no unit"),
            ("x/s", "no figure"),
            ("5000000000/s", "no figure"),
            ("3 tasks/s", "no period"),
            ("1/fortnight", "no time"),
            ("1/500ms", "whole seconds"),
            ("1/48h", "/day"),
        ] {
            let error = Figure::parse(text).unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
    }

    #[test]
    fn a_counter_is_named_without_its_figure() {
        let name = |text: &str, zone| Figure::parse(text).unwrap().counter_name(Scope::App, zone);
        assert_eq!(name("100/s", None), "calls/s:app");
        assert_eq!(name("6000 messages/min", None), "messages/min:app");
        assert_eq!(name("1/120s", None), "calls/2min:app");
        assert_eq!(name("1/90s", None), "calls/90s:app");
        assert_eq!(
            name("50/day", Some("Asia/Shanghai")),
            "calls/day@Asia/Shanghai:app"
        );
        assert_eq!(name("3 tasks", None), "tasks:app");
    }
}
