//! Calendar days.

use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan as _};
use serde::{Deserialize, Serialize};

const DAY_US: u64 = 86_400_000_000;

/// A time zone for calendar days.
#[derive(Clone, Debug, PartialEq)]
pub struct Zone(TimeZone);

impl Zone {
    /// UTC, in which the documents count days.
    pub const UTC: Self = Self(TimeZone::UTC);

    /// The zone of this IANA name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        TimeZone::get(name).ok().map(Self)
    }

    /// The zone's IANA name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.iana_name().unwrap_or("UTC")
    }

    /// Start and end of the day that holds this time, Unix microseconds.
    #[must_use]
    pub fn day_of(&self, unix_us: u64) -> (u64, u64) {
        if self.0 == TimeZone::UTC {
            return utc_day(unix_us);
        }
        // Years that no calendar has are counted in UTC.
        self.local_day(unix_us).unwrap_or_else(|| utc_day(unix_us))
    }

    /// What clocks show at this time, Unix microseconds; `None` in years that no calendar has.
    pub(super) fn datetime(&self, unix_us: u64) -> Option<DateTime> {
        let time = Timestamp::from_microsecond(i64::try_from(unix_us).ok()?).ok()?;
        Some(self.0.to_datetime(time))
    }

    fn local_day(&self, unix_us: u64) -> Option<(u64, u64)> {
        let date = self.datetime(unix_us)?.date();
        let mut start = self.midnight(date)?;
        let mut next = date.checked_add(1.day()).ok()?;
        let mut end = self.midnight(next)?;
        // Where clocks are put back across midnight, the minutes that come twice belong to the
        // later day: days follow each other, and no day begins twice.
        while end <= unix_us {
            next = next.checked_add(1.day()).ok()?;
            (start, end) = (end, self.midnight(next)?);
        }
        Some((start, end))
    }

    /// When this date begins. A midnight that clocks skip is when they go on.
    fn midnight(&self, date: Date) -> Option<u64> {
        let zoned = date.to_zoned(self.0.clone()).ok()?;
        Some(u64::try_from(zoned.timestamp().as_microsecond()).unwrap_or(0))
    }
}

fn utc_day(unix_us: u64) -> (u64, u64) {
    let start = unix_us - unix_us % DAY_US;
    (start, start.saturating_add(DAY_US))
}

/// The units of one caller on one day.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Day {
    end_us: u64,
    used: u32,
}

impl Day {
    /// Moves the counter to the day of a call. When the wall clock goes back to an earlier day
    /// the later one stays: a clock that is put right unlocks nothing.
    pub fn advance(&mut self, start_us: u64, end_us: u64) {
        if start_us >= self.end_us {
            *self = Self { end_us, used: 0 };
        } else {
            // Another zone's day, which overlaps: the units count until both are over.
            self.end_us = self.end_us.max(end_us);
        }
    }

    /// Units of the day.
    #[must_use]
    pub fn used(&self) -> u32 {
        self.used
    }

    /// Takes units; the end of the day that holds them.
    pub fn take(&mut self, units: u32) -> u64 {
        self.used = self.used.saturating_add(units);
        self.end_us
    }

    /// Gives units back, if it is still the day from which they were taken.
    pub fn give_back(&mut self, end_us: u64, units: u32) {
        if end_us == self.end_us {
            self.used = self.used.saturating_sub(units);
        }
    }

    /// Microseconds until the day ends: at least 1, at most `length_us`.
    #[must_use]
    pub fn ends_in_us(&self, length_us: u64, unix_us: u64) -> u64 {
        self.end_us
            .saturating_sub(unix_us)
            .clamp(1, length_us.max(1))
    }

    /// Whether the counter can go.
    #[must_use]
    pub fn is_idle(&self, unix_us: u64) -> bool {
        self.used == 0 || unix_us >= self.end_us
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_US: u64 = 3_600_000_000;

    fn unix_us(text: &str) -> u64 {
        let time: Timestamp = text.parse().unwrap();
        u64::try_from(time.as_microsecond()).unwrap()
    }

    #[test]
    fn a_utc_day_begins_at_midnight() {
        let (start, end) = Zone::UTC.day_of(unix_us("2026-03-29T12:34:56.789Z"));
        assert_eq!(
            (start, end),
            (
                unix_us("2026-03-29T00:00:00Z"),
                unix_us("2026-03-30T00:00:00Z")
            )
        );
        assert_eq!(Zone::UTC.day_of(end).0, end);
        assert_eq!(Zone::UTC.day_of(end - 1).0, start);
        assert_eq!(Zone::UTC.name(), "UTC");
    }

    #[test]
    fn a_named_zone_has_days_of_its_own() {
        let zone = Zone::named("Asia/Shanghai").unwrap();
        assert_eq!(zone.name(), "Asia/Shanghai");
        let (start, end) = zone.day_of(unix_us("2026-05-01T17:00:00Z"));
        assert_eq!(
            (start, end),
            (
                unix_us("2026-05-01T16:00:00Z"),
                unix_us("2026-05-02T16:00:00Z")
            )
        );
        assert!(Zone::named("Mars/Olympus").is_none());
    }

    #[test]
    fn a_day_on_which_clocks_change_has_23_or_25_hours() {
        let zone = Zone::named("Europe/Berlin").unwrap();
        let (start, end) = zone.day_of(unix_us("2026-03-29T12:00:00Z"));
        assert_eq!(end - start, 23 * HOUR_US);
        let (start, end) = zone.day_of(unix_us("2026-10-25T12:00:00Z"));
        assert_eq!(end - start, 25 * HOUR_US);
    }

    #[test]
    fn days_follow_each_other_wherever_clocks_change() {
        // Midnight skipped, midnight twice, a minute past midnight put back, a date left out.
        for (name, from) in [
            ("America/Sao_Paulo", "2018-11-02T00:30:00Z"),
            ("America/Havana", "2024-11-01T00:30:00Z"),
            ("America/St_Johns", "2006-10-27T00:30:00Z"),
            ("Pacific/Apia", "2011-12-28T00:30:00Z"),
        ] {
            let zone = Zone::named(name).unwrap();
            let mut last: Option<(u64, u64)> = None;
            for minute in 0..(5 * 24 * 60) {
                let time = unix_us(from) + minute * 60_000_000;
                let (start, end) = zone.day_of(time);
                assert!(
                    start <= time && time < end,
                    "{name}: {time} not in {start}..{end}"
                );
                if let Some(last) = last {
                    assert!(
                        (start, end) == last || start == last.1,
                        "{name}: {start} after {last:?}"
                    );
                }
                last = Some((start, end));
            }
        }
    }

    #[test]
    fn absurd_times_do_not_panic() {
        for zone in [Zone::UTC, Zone::named("Europe/Berlin").unwrap()] {
            for time in [
                0,
                1,
                u64::MAX / 2,
                u64::MAX - 1,
                u64::MAX,
                253_402_207_200_000_000,
            ] {
                let (start, end) = zone.day_of(time);
                assert!(start <= time && start < end);
            }
        }
    }

    #[test]
    fn a_clock_that_goes_back_unlocks_nothing() {
        let mut day = Day::default();
        day.advance(DAY_US, 2 * DAY_US);
        day.take(5);
        day.advance(0, DAY_US);
        assert_eq!(day.used(), 5);
        assert_eq!(day.ends_in_us(DAY_US, 1), DAY_US);
        day.advance(2 * DAY_US, 3 * DAY_US);
        assert_eq!(day.used(), 0);
    }

    #[test]
    fn units_of_yesterday_do_not_go_back_to_today() {
        let mut day = Day::default();
        day.advance(0, DAY_US);
        let yesterday = day.take(5);
        day.advance(DAY_US, 2 * DAY_US);
        let today = day.take(3);
        day.give_back(yesterday, 5);
        assert_eq!(day.used(), 3);
        day.give_back(today, 3);
        assert_eq!(day.used(), 0);
    }
}
