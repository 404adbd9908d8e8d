//! `floodgate check`: every mistake at once.

mod store;

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::PathBuf;

use clap::ArgMatches;

use super::rules::Certificates;
use super::{CliError, Ended, Purpose, RulesError, load, print, rules, table};
use crate::gateway::upstream;
use crate::serve;
use crate::settings::StoreSettings;
use crate::spec::Ruleset;
use crate::store::journal::{Journal, JournalError};
use crate::text::printable;

pub(super) fn run(matches: &ArgMatches, env: &[(OsString, OsString)]) -> Result<Ended, CliError> {
    let mut report = Report::default();
    // Mistakes elsewhere do not hide those of the route files that are named.
    let mut found = String::new();
    let (routes, apps, of_all, pools) = match load(matches, env, Purpose::Look) {
        Ok(settings) => {
            if let Some(Err(error)) = settings.tls.as_ref().map(serve::check_tls) {
                report.add(&error.to_string(), 1, error.unreadable);
            }
            found = store::check(&settings.store, matches.get_flag("connect"), &mut report);
            if let (StoreSettings::Redis(_), Some(file)) = (&settings.store, &settings.plan_file) {
                let file = file.display().to_string();
                let file = printable(&file);
                let _ = writeln!(
                    found,
                    "warning: plan_file {file} is not used: the store in Redis keeps totals itself; \
                     leave plan_file out"
                );
            }
            if let (StoreSettings::Memory, Some(file)) = (&settings.store, &settings.plan_file)
                && let Err(error) = Journal::check(file)
            {
                let unreadable = matches!(error, JournalError::Read { .. });
                report.add(&error.to_string(), 1, unreadable);
            }
            let of_all = (settings.edition, settings.auth);
            (settings.routes, settings.apps, Some(of_all), settings.pools)
        }
        Err(error) => {
            report.add(&error.to_string(), error.count(), error.is_unreadable());
            let apps = named(matches, "apps");
            (named_routes(matches), apps, None, Vec::new())
        }
    };
    let mut rules = match rules::load(&routes) {
        Ok(rules) => Some(rules),
        Err(error) => {
            report.add_rules(&error);
            None
        }
    };
    let mut editions = None;
    if let (Some(rules), Some((edition, _))) = (&rules, &of_all) {
        match rules::selection(rules, edition) {
            Ok(found) => editions = Some(found),
            Err(error) => report.add_rules(&error),
        }
    }
    let good = rules.as_ref().map(summary);
    if let Err(error) = rules::add_apps(
        rules.as_mut().zip(editions),
        &apps,
        Certificates::Read(env),
        &serve::Files::default(),
    ) {
        report.add_rules(&error);
    } else if let (Some(rules), Some((_, auth))) = (&rules, &of_all)
        && let Err(error) = rules::check_auth(rules, *auth)
    {
        report.add_rules(&error);
    }
    // Without rules nobody knows their users.
    for mistake in rules
        .iter()
        .flat_map(|rules| upstream::mistakes(&pools, rules))
    {
        report.say(&mistake);
    }
    match (rules, good, of_all, report.mistakes) {
        (Some(rules), Some(good), Some((edition, _)), 0) => {
            let apps = match (apps.is_empty(), rules.apps.len()) {
                (true, _) => String::new(),
                (false, 1) => "; 1 app".to_owned(),
                (false, count) => format!("; {count} apps"),
            };
            print(&format!("{good}; selected: {edition}{apps}\n{found}"))?;
            Ok(Ended::Good)
        }
        _ => report.end(),
    }
}

/// The files that a flag names.
fn named(matches: &ArgMatches, flag: &str) -> Vec<PathBuf> {
    match matches.try_get_many::<String>(flag) {
        Ok(Some(named)) => named.map(PathBuf::from).collect(),
        _ => Vec::new(),
    }
}

fn named_routes(matches: &ArgMatches) -> Vec<PathBuf> {
    let named = named(matches, "routes");
    if !named.is_empty() {
        return named;
    }
    let shipped = table::setting("routes").and_then(|setting| setting.default);
    shipped.into_iter().map(PathBuf::from).collect()
}

#[derive(Debug, Default)]
struct Report {
    text: String,
    mistakes: usize,
    unreadable: bool,
}

impl Report {
    /// One mistake.
    fn say(&mut self, text: &str) {
        self.add(text, 1, false);
    }

    fn add(&mut self, text: &str, mistakes: usize, unreadable: bool) {
        self.text.push_str(text);
        self.text.push('\n');
        self.mistakes += mistakes;
        self.unreadable |= unreadable;
    }

    fn add_rules(&mut self, error: &RulesError) {
        self.add(&error.to_string(), error.count(), error.is_unreadable());
    }

    fn end(self) -> Result<Ended, CliError> {
        let s = if self.mistakes == 1 { "" } else { "s" };
        let text = format!("{}{} mistake{s}\n", self.text, self.mistakes);
        io::stderr()
            .write_all(printable(&text).as_bytes())
            .map_err(CliError::Print)?;
        Ok(match self.unreadable {
            true => Ended::Unreadable,
            false => Ended::Bad,
        })
    }
}

fn summary(rules: &Ruleset) -> String {
    let editions: Vec<&str> = rules.editions.iter().map(|e| &*e.name).collect();
    format!(
        "good: {} routes, {} limits, editions {}",
        rules.routes.len(),
        rules.limits.len(),
        editions.join(" "),
    )
}
