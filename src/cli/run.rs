//! `floodgate run`.

use std::ffi::OsString;
use std::sync::Arc;

use clap::ArgMatches;

use super::{CliError, Ended, Purpose, load, rules};
use crate::limit::KeyHasher;
use crate::serve;
use crate::settings::StoreSettings;

pub(super) fn run(matches: &ArgMatches, env: &[(OsString, OsString)]) -> Result<Ended, CliError> {
    let settings = load(matches, env, Purpose::Run)?;
    let rules = match settings.store {
        StoreSettings::Memory => rules::load(&settings.routes)?,
        StoreSettings::Redis(_) => rules::load_with(&settings.routes, KeyHasher::shared())?,
    };
    rules::selection(&rules, &settings.edition)?;
    serve::run(settings, Arc::new(rules), rules::random())?;
    Ok(Ended::Good)
}
