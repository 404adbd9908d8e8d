//! Hours as the message history names them: `yyyyMMddHH`, in some zone.

use std::fmt;

use jiff::civil::DateTime;

use super::calendar::Zone;

/// One hour of a calendar, by its beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hour(DateTime);

impl Hour {
    /// The hour of these ten digits; `None` if there is none.
    #[must_use]
    pub fn read(text: &str) -> Option<Self> {
        if text.len() != 10 || !text.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let part = |from: usize, to: usize| text.get(from..to)?.parse::<i8>().ok();
        let year = text.get(..4)?.parse::<i16>().ok()?;
        DateTime::new(year, part(4, 6)?, part(6, 8)?, part(8, 10)?, 0, 0, 0)
            .ok()
            .map(Self)
    }

    /// The hour that clocks of this zone show at this time, Unix microseconds; `None` in years
    /// that no calendar has.
    #[must_use]
    pub fn of(zone: &Zone, unix_us: u64) -> Option<Self> {
        let now = zone.datetime(unix_us)?;
        let (date, time) = (now.date(), now.time());
        Some(Self(date.at(time.hour(), 0, 0, 0)))
    }
}

impl fmt::Display for Hour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(at) = self;
        let (year, month, day, hour) = (at.year(), at.month(), at.day(), at.hour());
        write!(f, "{year:04}{month:02}{day:02}{hour:02}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unix_us(text: &str) -> u64 {
        let time: jiff::Timestamp = text.parse().unwrap();
        u64::try_from(time.as_microsecond()).unwrap()
    }

    #[test]
    fn an_hour_is_ten_digits_that_a_calendar_has() {
        for good in ["2026112100", "2026112123", "2024022912", "0001010100"] {
            assert_eq!(Hour::read(good).unwrap().to_string(), good);
        }
        for bad in [
            "",
            "20261121",
            "202611210",
            "20261121000",
            "2026112124",
            "2026113100",
            "2026022900",
            "2026130100",
            "2026000100",
            "2026010000",
            "+202611210",
            "2026-11-21",
            "20261121 0",
            "２０２６１１２１００",
        ] {
            assert_eq!(Hour::read(bad), None, "{bad}");
        }
    }

    #[test]
    fn an_hour_is_that_of_its_zone() {
        let at = unix_us("2026-11-20T16:59:59.999999Z");
        let of = |zone: &str, at| Hour::of(&Zone::named(zone).unwrap(), at).unwrap();
        assert_eq!(of("UTC", at).to_string(), "2026112016");
        assert_eq!(of("Asia/Shanghai", at).to_string(), "2026112100");
        assert_eq!(of("Asia/Kolkata", at).to_string(), "2026112022");
        assert_eq!(of("UTC", at + 1).to_string(), "2026112017");
        assert_eq!(of("UTC", 0).to_string(), "1970010100");
        assert_eq!(Hour::of(&Zone::UTC, u64::MAX), None);
    }

    #[test]
    fn hours_follow_each_other_by_their_names() {
        let hour = |text| Hour::read(text).unwrap();
        assert!(hour("2025123123") < hour("2026010100"));
        assert!(hour("2026093023") < hour("2026100100"));
    }
}
