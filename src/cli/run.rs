//! `floodgate run`.

use std::ffi::OsString;
use std::sync::Arc;

use clap::ArgMatches;

use super::rules::Certificates;
use super::{CliError, Ended, Purpose, load, rules};
use crate::handover::Start;
use crate::limit::KeyHasher;
use crate::serve;
use crate::settings::StoreSettings;

pub(super) fn run(matches: &ArgMatches, env: &[(OsString, OsString)]) -> Result<Ended, CliError> {
    let settings = load(matches, env, Purpose::Run)?;
    let upgrade = matches.get_flag("upgrade");
    let start = Start::begin(upgrade, settings.upgrade_socket.as_deref())
        .map_err(serve::ServeError::from)?;
    let mut rules = match settings.store {
        StoreSettings::Memory => {
            let keys = start.keys((rules::random(), rules::random()));
            rules::load_with(&settings.routes, keys)?
        }
        StoreSettings::Redis(_) => rules::load_with(&settings.routes, KeyHasher::shared())?,
    };
    let editions = rules::selection(&rules, &settings.edition)?;
    let certificates = Certificates::Read(env);
    rules::add_apps(Some((&mut rules, editions)), &settings.apps, certificates)?;
    rules::check_auth(&rules, settings.auth)?;
    serve::run(settings, Arc::new(rules), rules::random(), start)?;
    Ok(Ended::Good)
}
