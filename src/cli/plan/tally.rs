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
    ) {
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
        if self.ready.len() >= self.at_once {
            self.import().await;
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

    /// What fails here has been listed in vain; what was imported before holds.
    async fn import(&mut self) {
        let some = std::mem::take(&mut self.ready);
        if some.is_empty() {
            return;
        }
        let count = some.len();
        let body = json!({ "app": self.app, self.holders: some });
        match self.admin.ask("POST", "/plan/import", Some(&body)).await {
            Ok(_) => self.imported += count,
            Err(failure) => {
                self.fail("the import", &failure);
                self.failed += count - 1;
                self.is_over |= matches!(failure, PlanError::Refused { status: 503, .. });
            }
        }
    }

    /// Imports the rest; what there is to say of these totals, and whether all went well.
    pub(super) async fn end(mut self, totals: &[&str]) -> (String, bool) {
        self.import().await;
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
        (text, self.why.is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::plan::tests::admin;

    #[tokio::test]
    async fn what_was_imported_is_told_though_an_import_fails_after_it() {
        let admin = admin(&[200, 200, 503, 503, 503, 503, 503]);
        let mut tally = Tally::new(&admin, "o#a", "users", 2);
        for name in ["a", "b", "c", "d", "e"] {
            let totals = Map::from_iter([("friends".to_owned(), json!(1))]);
            tally.add(name, totals, None).await;
        }
        let (text, is_good) = tally.end(&["friends"]).await;
        assert!(
            text.starts_with("friends: of 4 users\nusers failed: 1, the first"),
            "{text}"
        );
        assert!(text.contains("503") && !is_good, "{text}");
    }
}
