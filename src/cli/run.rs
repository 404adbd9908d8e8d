//! `floodgate run`.

use std::ffi::OsString;
use std::sync::Arc;

use clap::ArgMatches;

use super::{CliError, Ended, Purpose, load, rules};
use crate::serve;

pub(super) fn run(matches: &ArgMatches, env: &[(OsString, OsString)]) -> Result<Ended, CliError> {
    let settings = load(matches, env, Purpose::Run)?;
    let rules = rules::load(&settings.routes)?;
    rules::selection(&rules, &settings.edition)?;
    serve::run(settings, Arc::new(rules), rules::random())?;
    Ok(Ended::Good)
}
