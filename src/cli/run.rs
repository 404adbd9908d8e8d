//! `floodgate run`.

use std::ffi::OsString;
use std::sync::Arc;

use clap::ArgMatches;

use super::rules::Certificates;
use super::{CliError, Ended, Purpose, load, rules};
use crate::limit::KeyHasher;
use crate::serve;
use crate::settings::StoreSettings;

pub(super) fn run(matches: &ArgMatches, env: &[(OsString, OsString)]) -> Result<Ended, CliError> {
    let settings = load(matches, env, Purpose::Run)?;
    let mut rules = match settings.store {
        StoreSettings::Memory => rules::load(&settings.routes)?,
        StoreSettings::Redis(_) => rules::load_with(&settings.routes, KeyHasher::shared())?,
    };
    rules::validate(&mut rules, &settings);
    let editions = rules::selection(&rules, &settings.edition)?;
    let certificates = Certificates::Read(env);
    rules::add_apps(Some((&mut rules, editions)), &settings.apps, certificates)?;
    rules::check_auth(&rules, settings.auth)?;
    serve::run(settings, Arc::new(rules), rules::random())?;
    Ok(Ended::Good)
}
