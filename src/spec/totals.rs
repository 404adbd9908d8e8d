//! How much an app's plan lets it hold, compiled from `[totals]`, and what calls do to it,
//! compiled from `makes`, `frees` and `tells` of the routes.

use super::{EditionId, Ruleset};
use crate::apps::{App, AppPlan};
use crate::limit::Mode;
use crate::limit::total::Kind;

/// What `[totals]` says of one kind.
#[derive(Clone, Debug, Default)]
pub struct KindRules {
    /// Whether its figure refuses.
    pub mode: Mode,
    /// By edition; `None`: no edition prints figures.
    pub editions: Box<[Option<PlanFigures>]>,
}

/// What one edition prints of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlanFigures {
    /// How many, by [`AppPlan`]; `u64::MAX`: any number.
    pub most: [u64; AppPlan::ALL.len()],
    /// The edition that prints them.
    pub from: EditionId,
    /// Where, `document:line`.
    pub sources: Box<[Box<str>]>,
}

/// What holds for one app.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held<'r> {
    /// How many there may be; `u64::MAX`: any number.
    pub most: u64,
    /// Whether the figure refuses.
    pub mode: Mode,
    /// By this plan.
    pub plan: Option<AppPlan>,
    /// The figures that hold; `None`: it is the app's own.
    pub figures: Option<&'r PlanFigures>,
}

/// What the calls of a route do to totals.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteTotals {
    /// What they make.
    pub makes: Box<[Rule]>,
    /// What they delete.
    pub frees: Box<[Rule]>,
    /// The total that their answers tell, and where in the answer it stands.
    pub tells: Option<(Kind, Box<str>)>,
}

impl RouteTotals {
    /// Whether they do nothing to any.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.makes.is_empty() && self.frees.is_empty() && self.tells.is_none()
    }

    /// Whether a call's body says how much it is about.
    #[must_use]
    pub fn reads_body(&self) -> bool {
        self.makes.iter().chain(&self.frees).any(Rule::reads_body)
    }
}

/// One thing that a call makes or deletes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// What.
    pub kind: Kind,
    /// Whose.
    pub of: Of,
    /// How many, for each of those.
    pub count: Count,
    /// Where the answer says how many it were; `None`: a 2xx says that it were all.
    pub made: Option<Box<str>>,
}

impl Rule {
    /// Whether a call's body says whose, or how many.
    #[must_use]
    pub fn reads_body(&self) -> bool {
        matches!(self.of, Of::Field(_)) || matches!(self.count, Count::Body | Count::Fields(_))
    }
}

/// Whose total it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Of {
    /// The app's.
    App,
    /// That of each name in this segment of the path below the app, commas between them.
    Segment(usize),
    /// That of each name in this field of the body.
    Field(Box<str>),
    /// That of what the call makes: the answer says here what it is called.
    Answer(Box<str>),
}

/// How many a call is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Count {
    /// So many; 0: none, but the call is refused when the total is full.
    Units(u32),
    /// The entries of a body that is an array; of an object, 1.
    Body,
    /// The names in this segment of the path.
    Segment(usize),
    /// The names in these fields of the body.
    Fields(Box<[Box<str>]>),
    /// All there are: what held them is gone.
    All,
    /// The answer alone says it.
    Answer,
}

impl Ruleset {
    /// How many of this kind an app may have: its own figure, or that of its plan in this edition.
    /// `None`: nobody knows, and its total is not kept.
    #[must_use]
    pub fn held<'r>(&'r self, app: &App, edition: EditionId, kind: Kind) -> Option<Held<'r>> {
        let rules = self.totals.get(kind.index())?;
        let plan = app.plan;
        if rules.mode == Mode::Off {
            return None;
        }
        if let Some((_, most)) = app.totals.iter().find(|(own, _)| *own == kind) {
            return Some(Held {
                most: *most,
                mode: rules.mode,
                plan,
                figures: None,
            });
        }
        let figures = rules.editions.get(edition.0)?.as_ref()?;
        Some(Held {
            most: *figures.most.get(plan?.index())?,
            mode: rules.mode,
            plan,
            figures: Some(figures),
        })
    }
}
