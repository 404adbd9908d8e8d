//! Totals that are asked for one by one: imported as they come, and what of it went wrong.

use serde_json::{Map, Value, json};

use super::{Admin, PlanError};

/// Imports that go to the admin listener at once, where a list tells them.
pub(super) const LISTED: usize = 100;
/// The same where each is asked for: what calls make between the answer and the import is lost.
pub(super) const ASKED: usize = 1;
/// Failures in a row after which it is not the users or groups that fail.
const MOST_FAILURES: usize = 10;

/// What became of the totals of users or groups.
pub(super) struct Tally<'a> {
    admin: &'a Admin,
    app: &'a str,
    /// `users` or `groups`.
    holders: &'static str,
    at_once: usize,
    ready: Map<String, Value>,
    imported: usize,
    gone: usize,
    failed: usize,
    in_a_row: usize,
    /// The first failure.
    why: Option<String>,
    /// Whether the rest is not worth asking.
    is_over: bool,
}

impl<'a> Tally<'a> {
    pub(super) fn new(
        admin: &'a Admin,
        app: &'a str,
        holders: &'static str,
        at_once: usize,
    ) -> Self {
        Self {
            admin,
            app,
            holders,
            at_once,
            ready: Map::new(),
            imported: 0,
            gone: 0,
            failed: 0,
            in_a_row: 0,
            why: None,
            is_over: false,
        }
    }

    /// These are the totals of one; with what has failed of them.
    pub(super) async fn add(
        &mut self,
        name: &str,
        totals: Map<String, Value>,
        failure: Option<PlanError>,
    ) -> Result<(), PlanError> {
        match failure {
            None => self.in_a_row = 0,
            // It was there when it was listed.
            Some(PlanError::Refused { status: 404, .. }) => {
                self.in_a_row = 0;
                self.gone += 1;
            }
            Some(failure) => self.fail(name, &failure),
        }
        if !totals.is_empty() {
            self.ready.insert(name.to_owned(), Value::Object(totals));
        }
        match self.ready.len() < self.at_once {
            true => Ok(()),
            false => self.import().await,
        }
    }

    fn fail(&mut self, name: &str, failure: &PlanError) {
        self.failed += 1;
        self.in_a_row += 1;
        self.why.get_or_insert_with(|| format!("{name}: {failure}"));
        self.is_over = self.in_a_row >= MOST_FAILURES
            || matches!(
                failure,
                PlanError::Unreachable { .. } | PlanError::Refused { status: 401, .. }
            );
    }

    /// Whether the rest is not worth asking.
    pub(super) fn is_over(&self) -> bool {
        self.is_over
    }

    async fn import(&mut self) -> Result<(), PlanError> {
        let some = std::mem::take(&mut self.ready);
        if some.is_empty() {
            return Ok(());
        }
        let count = some.len();
        let body = json!({ "app": self.app, self.holders: some });
        self.admin.ask("POST", "/plan/import", Some(&body)).await?;
        self.imported += count;
        Ok(())
    }

    /// Imports the rest; what there is to say of these totals, and whether all went well.
    pub(super) async fn end(mut self, totals: &[&str]) -> Result<(String, bool), PlanError> {
        self.import().await?;
        let Self { holders, .. } = self;
        let mut text = String::new();
        for total in totals {
            text.push_str(&format!("{total}: of {} {holders}\n", self.imported));
        }
        if self.gone > 0 {
            let gone = self.gone;
            text.push_str(&format!(
                "{holders} skipped, gone since they were listed: {gone}\n"
            ));
        }
        if let Some(why) = &self.why {
            let over = if self.is_over {
                "; the rest was not asked"
            } else {
                ""
            };
            text.push_str(&format!(
                "{holders} failed: {}, the first {why}{over}\n",
                self.failed
            ));
        }
        Ok((text, self.why.is_none()))
    }
}
