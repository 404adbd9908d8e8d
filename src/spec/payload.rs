//! What a call may carry, compiled from `[[payload]]` and from the routes that name its limits.

use std::sync::Arc;

use smallvec::SmallVec;

use super::{EditionId, RouteId};
use crate::limit::Mode;
use crate::payload::place::{Place, Step};
use crate::payload::{Charset, Checks, Excess, Found, Measure, Most, Rule, Why};

/// What a caller is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Answer {
    /// Of an argument: which, and what it may be.
    #[default]
    Argument,
    /// Of a message that is too large.
    Message,
    /// Of a file that is too large.
    File,
    /// Of too many users in one registration.
    Users,
    /// Of too many friends in one import.
    Friends,
}

/// One limit.
#[derive(Clone, Debug)]
pub struct PayloadLimit {
    /// Its name, unique; a metric label.
    pub name: Box<str>,
    /// The Chinese name of the documents.
    pub title: Box<str>,
    /// What is measured.
    pub measure: Measure,
    /// The characters that may stand in it.
    pub allow: Option<Charset>,
    /// The message types it holds for, in lower case; empty: any. One that no limit has is held to
    /// the largest figure of those that are.
    pub types: Box<[Box<str>]>,
    /// What a caller is told.
    pub answer: Answer,
    /// Its own mode; `None`: that of all.
    pub validate: Option<Mode>,
    /// By edition; `None`: no edition prints one.
    pub figures: Box<[Option<PayloadFigure>]>,
}

/// What one edition prints of a limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PayloadFigure {
    /// The most; `None`: as much as may be.
    pub most: Option<Most>,
    /// The edition that prints it.
    pub from: EditionId,
    /// Where, `document:line`.
    pub sources: Box<[Box<str>]>,
}

/// The limits that one route names.
#[derive(Clone, Debug, Default)]
pub(super) struct Uses {
    /// Limits, and where they are looked for.
    pub(super) places: Vec<(usize, Place)>,
    /// Where the type of a message stands.
    pub(super) kind: Box<[Step]>,
}

/// What holds for the calls of one route, in one edition.
#[derive(Clone, Debug)]
pub struct Checked {
    /// What is measured.
    pub checks: Arc<Checks>,
    /// Whether a call may be refused for its body.
    pub enforces_body: bool,
}

/// All limits of what a call may carry.
#[derive(Debug, Default)]
pub struct Payloads {
    /// By the index that rules have.
    pub limits: Box<[PayloadLimit]>,
    /// Of limits that have no mode of their own.
    validate: Mode,
    /// By route.
    uses: Box<[Uses]>,
    /// By route and edition; `None`: nothing is checked.
    checked: Vec<Box<[Option<Checked>]>>,
}

/// A call that is refused for what it carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The limit, by its index.
    pub limit: usize,
    /// Its name.
    pub name: Box<str>,
    /// What the caller is told.
    pub answer: Answer,
    /// Where.
    pub place: Place,
    /// What was measured.
    pub measure: Measure,
    /// Why.
    pub why: Why,
    /// How much was found.
    pub found: u64,
    /// How much there may be.
    pub most: Option<u64>,
    /// The characters that may stand there.
    pub allow: Option<Box<str>>,
}

/// What becomes of a call by what has been found in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Judged {
    /// The first limit that refuses it.
    pub refused: Option<Box<Refused>>,
    /// Whether it is refused because its body cannot be read in one way.
    pub is_malformed: bool,
    /// Names of limits that would refuse it, and only count it.
    pub reported: SmallVec<[Box<str>; 2]>,
}

/// How caps on recipients are counted.
pub const RECIPIENTS: &str = "max_recipients";

/// How bodies that cannot be read, or not in one way, are counted, where that is not enforced.
pub const MALFORMED: &str = "malformed";

impl Payloads {
    pub(super) fn new(
        limits: Box<[PayloadLimit]>,
        uses: Box<[Uses]>,
        validate: Mode,
        editions: usize,
    ) -> Self {
        let mut payloads = Self {
            limits,
            validate,
            checked: uses.iter().map(|_| vec![None; editions].into()).collect(),
            uses,
        };
        payloads.build();
        payloads
    }

    /// Sets the mode of limits that have none of their own.
    pub fn set_validate(&mut self, validate: Mode) {
        self.validate = validate;
        self.build();
    }

    /// The mode of limits that have none of their own.
    #[must_use]
    pub fn validate(&self) -> Mode {
        self.validate
    }

    /// The mode of a limit.
    #[must_use]
    pub fn mode(&self, limit: usize) -> Mode {
        let own = self.limits.get(limit).and_then(|limit| limit.validate);
        own.unwrap_or(self.validate)
    }

    fn build(&mut self) {
        let mut checked = std::mem::take(&mut self.checked);
        for (uses, editions) in self.uses.iter().zip(&mut checked) {
            for (edition, slot) in editions.iter_mut().enumerate() {
                *slot = self.checked_in(uses, edition);
            }
        }
        self.checked = checked;
    }

    fn checked_in(&self, uses: &Uses, edition: usize) -> Option<Checked> {
        let rules: Vec<Rule> = uses
            .places
            .iter()
            .filter(|(limit, _)| self.mode(*limit) != Mode::Off)
            .filter_map(|(nth, place)| {
                let limit = self.limits.get(*nth)?;
                let figure = limit.figures.get(edition)?.as_ref()?;
                // Characters are what they are where their number does not matter.
                (figure.most.is_some() || limit.allow.is_some()).then(|| Rule {
                    limit: *nth,
                    place: place.clone(),
                    measure: limit.measure,
                    most: figure.most,
                    allow: limit.allow.clone(),
                    types: limit.types.clone(),
                })
            })
            .collect();
        if rules.is_empty() {
            return None;
        }
        // A type without a figure here is no misspelt one.
        let types = self.limits.iter().flat_map(|limit| &limit.types);
        let checks = Checks::new(rules, &uses.kind).knowing(types);
        let enforces_body = checks
            .of_body()
            .any(|rule| self.mode(rule.limit) == Mode::Enforce);
        Some(Checked {
            checks: Arc::new(checks),
            enforces_body,
        })
    }

    /// What is checked of the calls of a route.
    #[must_use]
    pub fn of(&self, route: RouteId, edition: EditionId) -> Option<&Checked> {
        self.checked.get(route.0)?.get(edition.0)?.as_ref()
    }

    /// What becomes of a call in which this was found.
    #[must_use]
    pub fn judge(&self, checks: &Checks, found: &Found) -> Judged {
        let mut judged = Judged::default();
        if found.is_good() {
            return judged;
        }
        if found.is_malformed {
            let mut rules = checks.of_body();
            match rules.any(|rule| self.mode(rule.limit) == Mode::Enforce) {
                true => judged.is_malformed = true,
                false => judged.reported.push(MALFORMED.into()),
            }
        }
        for excess in &found.excesses {
            let Some(refused) = self.refused(checks, excess) else {
                continue;
            };
            match self.mode(refused.limit) {
                Mode::Off => {}
                Mode::Enforce if judged.refused.is_none() => {
                    judged.refused = Some(Box::new(refused));
                }
                Mode::Enforce => {}
                Mode::Report if judged.reported.contains(&refused.name) => {}
                Mode::Report => judged.reported.push(refused.name),
            }
        }
        judged
    }

    fn refused(&self, checks: &Checks, excess: &Excess) -> Option<Refused> {
        let rule = checks.rules().get(excess.rule)?;
        let limit = self.limits.get(rule.limit)?;
        Some(Refused {
            limit: rule.limit,
            name: limit.name.clone(),
            answer: limit.answer,
            place: rule.place.clone(),
            measure: rule.measure,
            why: excess.why,
            found: excess.found,
            most: excess.most,
            allow: rule.allow.as_ref().map(|allow| allow.written.clone()),
        })
    }
}
