//! `[totals]`, each key over that of earlier files; and what routes do to totals.

use std::collections::BTreeMap;

use super::{At, MODES, Reader, Value};
use crate::apps::AppPlan;
use crate::limit::Mode;
use crate::limit::total::Kind;
use crate::spec::check::{LAYER, Place, suggestion};
use crate::spec::size;

/// The largest figure: exact in a store that knows doubles alone.
const MOST: u64 = 1 << 53;
const FIGURE: &str = "a figure is a whole number, \"unlimited\" or \"none\"; of user_attributes it is a size, e.g. \"10GiB\"";
const RULE_KEYS: &[&str] = &["total", "of", "new", "count", "made"];

/// What is written of one kind.
#[derive(Clone, Debug, Default)]
pub(in crate::spec) struct WrittenKind {
    pub(in crate::spec) mode: Option<Mode>,
    pub(in crate::spec) editions: BTreeMap<String, WrittenFigures>,
}

#[derive(Clone, Debug)]
pub(in crate::spec) struct WrittenFigures {
    pub(in crate::spec) at: Place,
    /// By [`AppPlan`]; `Some(None)`: there is a figure, and a mistake in it.
    pub(in crate::spec) most: [Option<Option<u64>>; AppPlan::ALL.len()],
    pub(in crate::spec) sources: Vec<String>,
}

/// What a route does to a total.
#[derive(Clone, Debug)]
pub(in crate::spec) struct WrittenRule {
    pub(in crate::spec) at: Place,
    pub(in crate::spec) kind: Kind,
    pub(in crate::spec) of: Option<At<String>>,
    /// Whose total it is, where the answer says it.
    pub(in crate::spec) new: Option<At<String>>,
    pub(in crate::spec) count: Option<WrittenCount>,
    pub(in crate::spec) made: Option<String>,
}

#[derive(Clone, Debug)]
pub(in crate::spec) enum WrittenCount {
    /// 0, the only number that need be written.
    None,
    /// `body`, `all`, `answer`, or a parameter of the path.
    Word(At<String>),
    /// Fields of the body.
    Fields(Vec<At<String>>),
}

/// The same of a route as a whole.
#[derive(Clone, Debug, Default)]
pub(in crate::spec) struct WrittenTotals {
    pub(in crate::spec) makes: Vec<WrittenRule>,
    pub(in crate::spec) frees: Vec<WrittenRule>,
    pub(in crate::spec) tells: Option<(Kind, At<String>)>,
}

impl Reader<'_> {
    pub(super) fn totals(&mut self, value: &Value<'_>) {
        let Some(table) = self.table(value, "[totals]") else {
            return;
        };
        for (key, value) in table {
            match Kind::named(key.get_ref()) {
                Some(kind) => {
                    self.mistakes.within(format!("[totals.{}]", kind.as_str()));
                    self.kind(kind, value);
                    self.mistakes.within(String::new());
                }
                None => self.unknown_key(key, "[totals]", &Kind::ALL.map(Kind::as_str)),
            }
        }
    }

    fn kind(&mut self, kind: Kind, value: &Value<'_>) {
        let Some(table) = self.table(value, "a total's entry") else {
            return;
        };
        let mut written = self.written.totals.remove(&kind).unwrap_or_default();
        for (key, value) in table {
            let name = &**key.get_ref();
            let editions = &self.written.editions;
            if name == "mode" {
                written.mode = self.choice(value, "mode", MODES);
            } else if editions.iter().any(|(known, _)| known.value == name) {
                let known = written.editions.remove(name);
                let figures = self.plan_figures(kind, known, value);
                written
                    .editions
                    .extend(figures.map(|f| (name.to_owned(), f)));
            } else if value.get_ref().is_table() && editions.is_empty() {
                let at = self.place(key.span().start);
                let message = format!("no edition of this name; {LAYER}");
                self.mistakes.add(at, name, message);
            } else if !self.mistakes.may_have_lost(name) {
                let at = self.place(key.span().start);
                let editions = editions.iter().map(|(known, _)| known.value.as_str());
                let known: Vec<&str> = std::iter::once("mode").chain(editions).collect();
                let message = format!("unknown key of a total; {}", suggestion(name, known));
                self.mistakes.add(at, name, message);
            }
        }
        self.written.totals.insert(kind, written);
    }

    fn plan_figures(
        &mut self,
        kind: Kind,
        known: Option<WrittenFigures>,
        value: &Value<'_>,
    ) -> Option<WrittenFigures> {
        let what = "an edition's entry, e.g. { basic = 5000 },";
        let Some(table) = self.table(value, what) else {
            return known;
        };
        let at = self.at(value);
        let mut figures = known.unwrap_or(WrittenFigures {
            at,
            most: [None; AppPlan::ALL.len()],
            sources: Vec::new(),
        });
        figures.at = at;
        for (key, value) in table {
            let name = &**key.get_ref();
            let plan = AppPlan::ALL.iter().find(|plan| plan.as_str() == name);
            let most = plan.and_then(|plan| figures.most.get_mut(plan.index()));
            match (most, name) {
                (Some(most), _) => *most = Some(self.most(kind, value)),
                (None, "src") => {
                    let sources = self.strings(value, "a source").into_iter();
                    figures.sources = sources.map(|source| source.value).collect();
                }
                (None, _) => {
                    let plans = AppPlan::ALL.map(AppPlan::as_str);
                    let known: Vec<&str> = plans.into_iter().chain(["src"]).collect();
                    self.unknown_key(key, "an edition's entry", &known);
                }
            }
        }
        Some(figures)
    }

    /// How many there may be.
    fn most(&mut self, kind: Kind, value: &Value<'_>) -> Option<u64> {
        let number = value.get_ref().as_integer().and_then(|number| {
            u64::from_str_radix(&number.as_str().replace('_', ""), number.radix()).ok()
        });
        let most = match (value.get_ref().as_str(), number) {
            (Some("unlimited"), _) => Some(u64::MAX),
            (Some("none"), _) => Some(0),
            (Some(text), _) if kind == Kind::UserAttributes => size::parse(text),
            (_, number) => number.filter(|number| *number <= MOST),
        };
        if most.is_none() {
            self.wrong(value, FIGURE);
        }
        most
    }

    /// `totals` of an app.
    pub(super) fn own_totals(&mut self, value: &Value<'_>) -> Vec<(Kind, u64)> {
        let Some(table) = self.table(value, "totals, e.g. totals.users = 500,") else {
            return Vec::new();
        };
        let mut own = Vec::new();
        for (key, value) in table {
            match Kind::named(key.get_ref()) {
                Some(kind) => own.extend(self.most(kind, value).map(|most| (kind, most))),
                None => self.unknown_key(key, "totals", &Kind::ALL.map(Kind::as_str)),
            }
        }
        own
    }

    /// `makes` or `frees` of a route.
    pub(super) fn total_rules(&mut self, value: &Value<'_>, what: &str) -> Vec<WrittenRule> {
        let Some(items) = value.get_ref().as_array() else {
            let message = format!("{what} is a list, e.g. [{{ total = \"users\" }}]");
            self.wrong(value, message);
            return Vec::new();
        };
        items
            .iter()
            .filter_map(|item| self.total_rule(item))
            .collect()
    }

    fn total_rule(&mut self, value: &Value<'_>) -> Option<WrittenRule> {
        let table = self.table(value, "an entry, e.g. { total = \"users\" },")?;
        let Some(total) = table.get("total") else {
            self.wrong(
                value,
                "what is counted is not said; write total = \"users\"",
            );
            return None;
        };
        let kind = self.total_kind(total)?;
        let mut rule = WrittenRule {
            at: self.at(value),
            kind,
            of: None,
            new: None,
            count: None,
            made: None,
        };
        for (key, value) in table {
            match &**key.get_ref() {
                "total" => {}
                "of" => rule.of = self.string(value, "of"),
                "new" => rule.new = self.string(value, "new"),
                "made" => rule.made = self.string(value, "made").map(|made| made.value),
                "count" => rule.count = self.count(value),
                _ => self.unknown_key(key, "an entry", RULE_KEYS),
            }
        }
        Some(rule)
    }

    fn count(&mut self, value: &Value<'_>) -> Option<WrittenCount> {
        let number = value.get_ref().as_integer().map(|number| number.as_str());
        if number == Some("0") {
            return Some(WrittenCount::None);
        }
        if value.get_ref().is_array() {
            return Some(WrittenCount::Fields(self.strings(value, "a field")));
        }
        if value.get_ref().is_str() {
            return self.string(value, "count").map(WrittenCount::Word);
        }
        self.wrong(
            value,
            "count is 0, \"body\", \"all\", \"answer\", a parameter such as \"{username}\", or a list of fields of the body; without it, it is 1",
        );
        None
    }

    fn total_kind(&mut self, value: &Value<'_>) -> Option<Kind> {
        let kinds = Kind::ALL.map(|kind| (kind.as_str(), kind));
        self.choice(value, "total", &kinds)
    }

    /// `tells` of a route.
    pub(super) fn tells(&mut self, value: &Value<'_>) -> Option<(Kind, At<String>)> {
        let what = "tells, e.g. { total = \"user_attributes\", at = \"data\" },";
        let table = self.table(value, what)?;
        let (mut kind, mut at) = (None, None);
        for (key, value) in table {
            match &**key.get_ref() {
                "total" => kind = self.total_kind(value),
                "at" => at = self.string(value, "at"),
                _ => self.unknown_key(key, "tells", &["total", "at"]),
            }
        }
        if kind.is_none() || at.is_none() {
            self.wrong(value, format!("write {what} with both"));
        }
        kind.zip(at)
    }
}
