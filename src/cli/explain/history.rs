//! What `explain` says of a call for the message history.

use serde::Serialize;

use crate::admission::history::Asked;
use crate::limit::Mode;
use crate::spec::Ruleset;

/// What holds for a call for the message history.
#[derive(Debug, Serialize)]
pub(super) struct HistoryView<'r> {
    days: u32,
    timezone: &'r str,
    /// `null`: the path names no hour, and the backend is asked.
    hour: Option<String>,
    oldest: String,
    expired: bool,
    mode: &'static str,
    /// Empty: it is the app's own figure.
    sources: Vec<&'r str>,
}

impl<'r> HistoryView<'r> {
    pub(super) fn new(rules: &'r Ruleset, asked: &Asked<'r>) -> Option<Self> {
        let compiled = rules.history.as_ref()?;
        let sources = asked
            .kept
            .figures
            .map_or(&[][..], |figures| &figures.sources);
        Some(Self {
            days: asked.kept.days,
            timezone: compiled.zone.name(),
            hour: asked.hour.map(|hour| hour.to_string()),
            oldest: asked.oldest.to_string(),
            expired: asked.is_expired(),
            mode: match compiled.mode {
                Mode::Enforce => "enforce",
                Mode::Report => "report",
                Mode::Off => "off",
            },
            sources: sources.iter().map(|source| &**source).collect(),
        })
    }

    pub(super) fn in_words(&self) -> String {
        let report = match (self.expired, self.mode) {
            (true, "report") => "; older is reported, and passes",
            _ => "",
        };
        format!(
            "{} days; from {} on ({}){report}",
            self.days, self.oldest, self.timezone
        )
    }
}
