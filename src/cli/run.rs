//! `floodgate run`.

use std::ffi::OsString;

use clap::ArgMatches;

use super::resolve::load_again;
use super::rules::Certificates;
use super::{CliError, Ended, Purpose, rules};
use crate::gateway::upstream::Addresses;
use crate::handover::Start;
use crate::limit::KeyHasher;
use crate::serve::{self, Files, Loaded, Running, Source};
use crate::settings::{Settings, StoreSettings};

pub(super) fn run(matches: &ArgMatches, env: &[(OsString, OsString)]) -> Result<Ended, CliError> {
    let given = Given {
        matches: matches.clone(),
        env: env.to_vec(),
    };
    let files = Files::default();
    let settings = load_again(matches, env, Purpose::Run, &files, Addresses::new())?;
    let upgrade = matches.get_flag("upgrade");
    let start = Start::begin(upgrade, settings.upgrade_socket.as_deref())
        .map_err(serve::ServeError::from)?;
    let keys = match settings.store {
        StoreSettings::Memory => start.keys((rules::random(), rules::random())),
        StoreSettings::Redis(_) => KeyHasher::shared(),
    };
    let loaded = given.finish(settings, keys, &files)?;
    serve::run(Box::new(given), loaded, &files, rules::random(), start)?;
    Ok(Ended::Good)
}

/// What the process was started with. The files that it names are read again; flags and
/// environment stay what they were.
struct Given {
    matches: ArgMatches,
    env: Vec<(OsString, OsString)>,
}

impl Given {
    fn load(&self, running: &Running, files: &Files) -> Result<Loaded, CliError> {
        let known = running.addresses.clone();
        let settings = load_again(&self.matches, &self.env, Purpose::Run, files, known)?;
        // Whatever the settings say now: the store is the one that it was.
        self.finish(settings, running.keys, files)
    }

    /// Reads the rules that these settings name.
    fn finish(
        &self,
        settings: Settings,
        keys: KeyHasher,
        files: &Files,
    ) -> Result<Loaded, CliError> {
        let mut rules = rules::load_with(&settings.routes, keys, files)?;
        rules::validate(&mut rules, &settings);
        let editions = rules::selection(&rules, &settings.edition)?;
        let certificates = Certificates::Read(&self.env);
        rules::add_apps(
            Some((&mut rules, editions)),
            &settings.apps,
            certificates,
            files,
        )?;
        rules::check_auth(&rules, settings.auth)?;
        Ok(Loaded { settings, rules })
    }
}

impl Source for Given {
    fn read(&self, running: &Running, files: &Files) -> Result<Loaded, String> {
        self.load(running, files).map_err(|error| error.to_string())
    }
}
