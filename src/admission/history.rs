//! Hours of the message history that an app's plan does not keep.

use super::Call;
use crate::limit::hour::Hour;
use crate::limit::{Mode, Moment};
use crate::route::table::plain_segment;
use crate::spec::Ruleset;
use crate::spec::history::{HistoryAnswer, Kept};

const DAY_US: u64 = 86_400_000_000;

/// A call for an hour that is not kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expired {
    /// The plan's name, or `own` where the figure is the app's own: a metric label.
    pub plan: &'static str,
    /// The app, by its first name.
    pub app: String,
    /// The hour.
    pub hour: Hour,
    /// Whether the call goes on all the same.
    pub report: bool,
    /// What the caller is told.
    pub answer: HistoryAnswer,
}

/// What is known of a call for the message history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked<'r> {
    /// What holds for its app.
    pub kept: Kept<'r>,
    /// The hour of its path; `None`: the path names none.
    pub hour: Option<Hour>,
    /// The oldest hour of which anything is kept.
    pub oldest: Hour,
}

impl Asked<'_> {
    /// Whether nothing of the hour is kept: its last message is older than the retention. What
    /// names no hour is for the backend to judge, and so is one that has not come yet.
    #[must_use]
    pub fn is_expired(&self) -> bool {
        self.hour.is_some_and(|hour| hour < self.oldest)
    }
}

/// What is known of this call, if it is for the message history of an app whose plan is known.
/// `path` is the canonical path.
#[must_use]
pub fn asked<'r>(rules: &'r Ruleset, call: &Call, path: &str, now: Moment) -> Option<Asked<'r>> {
    if !call.route(rules)?.history {
        return None;
    }
    let history = rules
        .history
        .as_ref()
        .filter(|history| history.mode != Mode::Off)?;
    let kept = rules.kept(call.app(rules)?, call.edition)?;
    let length = u64::from(kept.days).saturating_mul(DAY_US);
    let segment = path.rsplit('/').next().unwrap_or_default();
    Some(Asked {
        kept,
        hour: Hour::read(&plain_segment(segment)),
        oldest: Hour::of(&history.zone, now.unix_us.saturating_sub(length))?,
    })
}

/// Whether this call is for an hour that is not kept.
#[must_use]
pub fn expired(rules: &Ruleset, call: &Call, path: &str, now: Moment) -> Option<Box<Expired>> {
    let asked = asked(rules, call, path, now).filter(Asked::is_expired)?;
    let history = rules.history.as_ref()?;
    Some(Box::new(Expired {
        plan: match (asked.kept.figures, asked.kept.plan) {
            (Some(_), Some(plan)) => plan.as_str(),
            _ => "own",
        },
        app: call.caller.app.clone(),
        hour: asked.hour?,
        report: history.mode == Mode::Report,
        answer: history.answer.clone(),
    }))
}

#[cfg(test)]
mod tests;
