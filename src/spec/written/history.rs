//! `[history]`, each key over that of earlier files.

use std::collections::BTreeMap;

use super::{At, MODES, Reader, Value};
use crate::apps::AppPlan;
use crate::limit::Mode;
use crate::limit::calendar::Zone;
use crate::spec::check::{LAYER, Place, suggestion};
use crate::spec::history::HistoryAnswer;

/// Keys beside the editions.
pub(super) const KEYS: &[&str] = &[
    "timezone",
    "mode",
    "status",
    "error",
    "exception",
    "description",
];
/// A century is all there will be.
const MOST_DAYS: u32 = 36_500;

#[derive(Clone, Debug, Default)]
pub(in crate::spec) struct WrittenHistory {
    /// Where it was written last.
    pub(in crate::spec) at: Option<Place>,
    pub(in crate::spec) zone: Option<Zone>,
    pub(in crate::spec) mode: Option<Mode>,
    pub(in crate::spec) answer: HistoryAnswer,
    pub(in crate::spec) editions: BTreeMap<String, WrittenRetention>,
}

#[derive(Clone, Debug)]
pub(in crate::spec) struct WrittenRetention {
    pub(in crate::spec) at: Place,
    /// By [`AppPlan`]; `Some(None)`: there is a figure, and a mistake in it.
    pub(in crate::spec) days: [Option<Option<u32>>; AppPlan::ALL.len()],
    pub(in crate::spec) sources: Vec<String>,
}

impl Reader<'_> {
    pub(super) fn history(&mut self, value: &Value<'_>) {
        let Some(table) = self.table(value, "[history]") else {
            return;
        };
        self.written.history.at = Some(self.at(value));
        for (key, value) in table {
            match &**key.get_ref() {
                "timezone" => {
                    let zone = self.zone(value).map(|(_, zone)| zone);
                    self.written.history.zone = zone;
                }
                "mode" => self.written.history.mode = self.choice(value, "mode", MODES),
                "status" => self.written.history.answer.status = self.refusal_status(value),
                "error" => self.written.history.answer.error = self.words(value, "error"),
                "exception" => {
                    self.written.history.answer.exception = self.words(value, "exception")
                }
                "description" => {
                    self.written.history.answer.description = self.words(value, "description");
                }
                name => {
                    let editions = &self.written.editions;
                    if editions.iter().any(|(known, _)| known.value == name) {
                        self.retention(name, value);
                    } else if value.get_ref().is_table() && self.written.editions.is_empty() {
                        let at = self.place(key.span().start);
                        let message = format!("no edition of this name; {LAYER}");
                        self.mistakes.add(at, name, message);
                    } else if !self.mistakes.may_have_lost(name) {
                        let at = self.place(key.span().start);
                        let editions = self.written.editions.iter();
                        let known: Vec<&str> = KEYS
                            .iter()
                            .copied()
                            .chain(editions.map(|(known, _)| known.value.as_str()))
                            .collect();
                        let message =
                            format!("unknown key of [history]; {}", suggestion(name, known));
                        self.mistakes.add(at, name, message);
                    }
                }
            }
        }
    }

    fn retention(&mut self, edition: &str, value: &Value<'_>) {
        let Some(table) = self.table(value, "an edition's entry, e.g. { enterprise = 365 },")
        else {
            return;
        };
        let known = self.written.history.editions.get(edition).cloned();
        let at = self.at(value);
        let mut retention = known.unwrap_or(WrittenRetention {
            at,
            days: [None; AppPlan::ALL.len()],
            sources: Vec::new(),
        });
        retention.at = at;
        for (key, value) in table {
            let name = &**key.get_ref();
            let plan = AppPlan::ALL.iter().find(|plan| plan.as_str() == name);
            let days = plan.and_then(|plan| retention.days.get_mut(plan.index()));
            match (days, name) {
                (Some(days), _) => *days = Some(self.days(value)),
                (None, "src") => {
                    let sources = self.strings(value, "a source").into_iter();
                    retention.sources = sources.map(|source| source.value).collect();
                }
                (None, _) => {
                    let plans = AppPlan::ALL.map(AppPlan::as_str);
                    let known: Vec<&str> = plans.into_iter().chain(["src"]).collect();
                    self.unknown_key(key, "an edition's entry", &known);
                }
            }
        }
        self.written
            .history
            .editions
            .insert(edition.to_owned(), retention);
    }

    /// A number of days.
    pub(super) fn days(&mut self, value: &Value<'_>) -> Option<u32> {
        let days = self.integer(value, "a number of days")?;
        if !(1..=MOST_DAYS).contains(&days) {
            let message = format!(
                "days are from 1 to {MOST_DAYS}; an app whose hours are never refused has no plan, or history_days = {MOST_DAYS}"
            );
            self.wrong(value, message);
            return None;
        }
        Some(days)
    }

    /// 401 would be read as a bad token.
    fn refusal_status(&mut self, value: &Value<'_>) -> Option<u16> {
        let status = u16::try_from(self.integer(value, "status")?);
        match status {
            Ok(401) | Err(_) => None,
            Ok(status) => (400..500).contains(&status).then_some(status),
        }
        .or_else(|| {
            self.wrong(
                value,
                "the status of a call that is refused is from 400 to 499, and not 401; write e.g. 404",
            );
            None
        })
    }

    fn words(&mut self, value: &Value<'_>, what: &str) -> Option<Box<str>> {
        let At { value: text, .. } = self.string(value, what)?;
        if text.is_empty() || text.len() > 1000 {
            self.wrong(
                value,
                format!("{what} has 1 to 1,000 bytes; write what callers are to read"),
            );
            return None;
        }
        Some(text.into())
    }
}
