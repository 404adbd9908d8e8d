//! How long an app's plan keeps messages, compiled from `[history]`.

use super::{EditionId, Ruleset};
use crate::apps::{App, AppPlan};
use crate::limit::Mode;
use crate::limit::calendar::Zone;

/// `[history]`: which hours of the message history are asked for in vain.
#[derive(Clone, Debug)]
pub struct History {
    /// Whose hours the paths name.
    pub zone: Zone,
    /// Whether older hours are answered here.
    pub mode: Mode,
    /// The answer of an older hour.
    pub answer: HistoryAnswer,
    /// By edition; `None`: no edition prints figures.
    pub editions: Box<[Option<Retention>]>,
}

/// What a caller is told that asks for an hour which is not kept; `None`: as the service says it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HistoryAnswer {
    /// HTTP status.
    pub status: Option<u16>,
    /// `error`.
    pub error: Option<Box<str>>,
    /// `exception`.
    pub exception: Option<Box<str>>,
    /// `error_description`; `{app}` and `{time}` stand for those of the call.
    pub description: Option<Box<str>>,
}

/// What one edition prints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Days, by [`AppPlan`].
    pub days: [u32; AppPlan::ALL.len()],
    /// The edition that prints them.
    pub from: EditionId,
    /// Where, `document:line`.
    pub sources: Box<[Box<str>]>,
}

/// What holds for one app.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept<'r> {
    /// For how many days its messages are kept.
    pub days: u32,
    /// By this plan.
    pub plan: Option<AppPlan>,
    /// The figures that hold; `None`: it is the app's own.
    pub figures: Option<&'r Retention>,
}

impl Ruleset {
    /// For how long the messages of this app are kept: its own figure, or that of its plan in this
    /// edition. `None`: nobody knows.
    #[must_use]
    pub fn kept<'r>(&'r self, app: &App, edition: EditionId) -> Option<Kept<'r>> {
        let history = self.history.as_ref()?;
        let plan = app.plan;
        if let Some(days) = app.history_days {
            return Some(Kept {
                days,
                plan,
                figures: None,
            });
        }
        let figures = history.editions.get(edition.0)?.as_ref()?;
        Some(Kept {
            days: *figures.days.get(plan?.index())?,
            plan,
            figures: Some(figures),
        })
    }
}
