//! Calendar days.

/// A time zone for calendar days.
#[derive(Clone, Debug, PartialEq)]
pub struct Zone(jiff::tz::TimeZone);

impl Zone {
    /// UTC, in which the documents count days.
    pub const UTC: Self = Self(jiff::tz::TimeZone::UTC);

    /// The zone of this IANA name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        jiff::tz::TimeZone::get(name).ok().map(Self)
    }

    /// Start and end of the day that holds this time, Unix microseconds.
    #[must_use]
    pub fn day_of(&self, unix_us: u64) -> (u64, u64) {
        const DAY_US: u64 = 86_400_000_000;
        let start = unix_us - unix_us % DAY_US;
        (start, start + DAY_US)
    }
}
