//! `[history]` → [`History`].

use super::Compiler;
use crate::apps::AppPlan;
use crate::limit::calendar::Zone;
use crate::spec::history::{History, Retention};
use crate::spec::written::WrittenRoute;
use crate::spec::{Edition, EditionId};

impl Compiler<'_> {
    pub(super) fn history(&mut self, editions: &[Edition]) -> Option<History> {
        let written = &self.written.history;
        self.mistakes.within("[history]".to_owned());
        written.at?;
        for (edition, entry) in &written.editions {
            let missing = AppPlan::ALL.iter().zip(&entry.days);
            let missing: Vec<&str> = missing
                .filter(|(_, days)| days.is_none())
                .map(|(plan, _)| plan.as_str())
                .collect();
            if !missing.is_empty() && !self.mistakes.has_lost() {
                let message = format!(
                    "an edition has days for each plan; add {} = days",
                    missing.join(" = days, ")
                );
                self.mistakes.add(entry.at, edition, message);
            }
        }
        let printed = |at: usize| {
            let entry = written.editions.get(&*editions.get(at)?.name)?;
            let mut days = [0; AppPlan::ALL.len()];
            for (days, written) in days.iter_mut().zip(entry.days) {
                *days = written??;
            }
            Some(Retention {
                days,
                from: EditionId(at),
                sources: entry.sources.iter().map(|s| s.as_str().into()).collect(),
            })
        };
        // As with limits: one that prints none has those of the newest that does.
        let newest = (0..editions.len()).rev().find_map(printed);
        let by_edition = (0..editions.len())
            .map(|at| printed(at).or_else(|| newest.clone()))
            .collect();
        self.mistakes.within(String::new());
        Some(History {
            zone: written.zone.clone().unwrap_or(Zone::UTC),
            mode: written.mode.unwrap_or_default(),
            answer: written.answer.clone(),
            editions: by_edition,
        })
    }

    /// The last segment of such a route names the hour.
    pub(super) fn check_history_route(&mut self, route: &WrittenRoute) {
        let Some(at) = route.history else { return };
        if self.written.history.at.is_none() && !self.mistakes.has_lost() {
            let message = "nothing says how long messages are kept; write [history] with days by plan for an edition, or leave this out";
            self.mistakes.add(at, "history", message);
        }
        for call in &route.calls {
            let last = call.value.rsplit('/').next().unwrap_or_default();
            if !call.value.starts_with("GET ") || !last.starts_with('{') {
                let message = "a call for history is a GET whose last segment names the hour: \"GET /chatmessages/{time}\"";
                self.mistakes.add(call.at, &*call.value, message);
            }
        }
    }
}
