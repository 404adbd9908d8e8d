//! The commands. Reads flags, environment and files; hands what is valid to the rest.

mod args;
mod check;
mod demo;
mod explain;
mod health;
mod layers;
mod load;
mod plan;
#[cfg(test)]
mod reference;
mod resolve;
mod routes;
mod rules;
mod run;
#[cfg(test)]
mod sample;
mod show;
mod table;
#[cfg(test)]
mod tests;
mod value;

use std::borrow::Cow;
use std::ffi::OsString;
use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::ArgMatches;

pub use args::command;
pub use resolve::{Purpose, SettingsError, load};
pub use rules::RulesError;

use crate::serve::ServeError;
use crate::text::printable;

/// Why a command ended early.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// Mistakes in the settings.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// Mistakes in the route files.
    #[error(transparent)]
    Rules(#[from] RulesError),
    /// The gateway could not start.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// An argument of `explain`.
    #[error(transparent)]
    Explain(#[from] explain::ArgumentError),
    /// A command of `plan`.
    #[error(transparent)]
    Plan(#[from] plan::PlanError),
    /// A gateway's health is not known.
    #[error(transparent)]
    Health(#[from] health::HealthError),
    /// An app that `routes` is asked for.
    #[error(transparent)]
    App(#[from] routes::AppError),
    /// `load` cannot begin, or not end.
    #[error(transparent)]
    Load(#[from] load::ArgumentError),
    /// Nowhere to print to.
    #[error("cannot print: {0}")]
    Print(#[source] io::Error),
}

/// How a command ended: its exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Good,
    Bad,
    Unreadable,
}

impl From<Ended> for ExitCode {
    fn from(ended: Ended) -> Self {
        match ended {
            Ended::Good => Self::SUCCESS,
            Ended::Bad => Self::from(1),
            Ended::Unreadable => Self::from(2),
        }
    }
}

/// Runs the program with these arguments.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments = args::joined(arguments);
    let matches = match command().try_get_matches_from(&arguments) {
        Ok(matches) => matches,
        Err(mut error) => {
            args::help_with_files(&mut error);
            let is_clean = |argument: &OsString| {
                let text = argument.to_string_lossy();
                matches!(printable(&text), Cow::Borrowed(_))
            };
            // Where there is nowhere to print to, the code still tells.
            let _ = match arguments.iter().all(is_clean) {
                true => error.print(),
                false => write!(io::stderr(), "{}", printable(&error.render().to_string())),
            };
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let env: Vec<_> = std::env::vars_os().collect();
    match dispatch(&matches, &env) {
        Ok(ended) => ended.into(),
        Err(error) => {
            let mut stderr = io::stderr().lock();
            for line in error.to_string().lines() {
                let _ = writeln!(stderr, "floodgate: {}", printable(line));
            }
            ExitCode::FAILURE
        }
    }
}

fn dispatch(matches: &ArgMatches, env: &[(OsString, OsString)]) -> Result<Ended, CliError> {
    match matches.subcommand() {
        Some(("run", matches)) => run::run(matches, env),
        Some(("demo", matches)) => demo::run(matches, env),
        Some(("check", matches)) => check::run(matches, env),
        Some(("routes", matches)) => routes::run(matches, env),
        Some(("plan", matches)) => plan::run(matches, env),
        Some(("explain", matches)) => explain::run(matches, env),
        Some(("health", matches)) => health::run(matches, env),
        Some(("load", matches)) => load::run(matches, env),
        // clap lets no other through.
        _ => Ok(Ended::Bad),
    }
}

/// Prints to standard output. A reader that has gone away (`| head`) is no error.
fn print(text: &str) -> Result<(), CliError> {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(printable(text).as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(CliError::Print(error)),
        _ => Ok(()),
    }
}
