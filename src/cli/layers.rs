//! Settings as given, in layers: flag over environment over file over default.

mod file;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use clap::ArgMatches;
use clap::parser::ValueSource;
use toml::de::DeTable;

use self::file::FileReader;
use super::table::{SETTINGS, Setting, env_name};
use super::value::{ValueError, nearest};
use crate::serve::Files;

/// An app's token, for `floodgate plan reconcile`: no setting, so that no file has it.
pub(super) const APP_TOKEN_ENV: &str = "FLOODGATE_APP_TOKEN";

/// Where a value was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    Flag(&'static str),
    Env(String),
    File {
        path: PathBuf,
        line: usize,
        key: String,
        /// Whether the file has it in quotes.
        quoted: bool,
    },
    Default,
}

/// One value as given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Given {
    pub(super) text: String,
    pub(super) origin: Origin,
    /// Whether it is never printed.
    pub(super) secret: bool,
}

/// A text without what may be a user and a password in it: they are no part of any setting that
/// is printed, and are written into one all the same.
fn without_login(text: &str) -> Cow<'_, str> {
    match text.rsplit_once('@') {
        None => Cow::Borrowed(text),
        Some((before, host)) => {
            let scheme = before.find("://").map_or("", |at| &before[..at + 3]);
            Cow::Owned(format!("{scheme}***@{host}"))
        }
    }
}

impl fmt::Display for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self.secret {
            true => Cow::Borrowed("***"),
            false => without_login(&self.text),
        };
        match &self.origin {
            Origin::Flag(flag) => write!(f, "--{flag} {text}"),
            Origin::Env(name) => write!(f, "{name}={text}"),
            Origin::File {
                path,
                line,
                key,
                quoted,
            } => {
                write!(f, "{}:{line}: {key} = ", path.display())?;
                match quoted {
                    true => write!(f, "{text:?}"),
                    false => f.write_str(&text),
                }
            }
            Origin::Default => f.write_str(&text),
        }
    }
}

/// A mistake in the settings.
#[derive(Debug, thiserror::Error)]
pub(super) enum Mistake {
    #[error("cannot read {}: {source}; correct the path, or leave {setting} out", .path.display())]
    Unreadable {
        path: PathBuf,
        source: std::io::Error,
        setting: &'static str,
    },
    #[error("{}:{line}: {message}", .path.display())]
    Syntax {
        path: PathBuf,
        line: usize,
        message: String,
    },
    #[error("{}:{line}: unknown key {key:?}{}", .path.display(), instead(.near.as_deref(), "see `floodgate run --help` for the keys"))]
    UnknownKey {
        path: PathBuf,
        line: usize,
        key: String,
        near: Option<String>,
    },
    #[error("{}:{line}: {key} is {found}; write {wanted}", .path.display())]
    Type {
        path: PathBuf,
        line: usize,
        key: String,
        found: &'static str,
        wanted: String,
    },
    #[error("{name} is not a setting; did you mean {near}?")]
    UnknownEnv { name: String, near: String },
    #[error("{0} is not valid UTF-8")]
    NotText(String),
    #[error("{given}: {why}")]
    Value { given: Given, why: ValueError },
    #[error("{}:{line}: {message}", .path.display())]
    Pool {
        path: PathBuf,
        line: usize,
        message: String,
    },
    #[error("no {key} is given; write --{flag} {value}, {env}={value} or {key} = {value:?}")]
    Missing {
        key: &'static str,
        flag: &'static str,
        env: String,
        value: &'static str,
    },
}

fn instead(near: Option<&str>, otherwise: &str) -> String {
    match near {
        Some(near) => format!("; did you mean {near}?"),
        None => format!("; {otherwise}"),
    }
}

/// The values given, by layer.
#[derive(Debug, Default)]
pub(super) struct Layers {
    flags: BTreeMap<&'static str, Vec<Given>>,
    env: BTreeMap<&'static str, Vec<Given>>,
    file: BTreeMap<&'static str, Vec<Given>>,
    pools: Vec<PoolGiven>,
}

/// One `[[pool]]`, as given.
#[derive(Debug)]
pub(super) struct PoolGiven {
    pub(super) path: PathBuf,
    pub(super) line: usize,
    pub(super) keys: BTreeMap<&'static str, Vec<Given>>,
}

/// The file's key for them.
const POOLS: &str = "pool";

impl Layers {
    /// Collects what was given, and the mistakes in how it was written.
    pub(super) fn collect(
        matches: &ArgMatches,
        env: &[(OsString, OsString)],
        files: &Files,
    ) -> (Self, Vec<Mistake>) {
        let mut layers = Self::default();
        let mut mistakes = Vec::new();
        layers.read_flags(matches);
        let config_env = layers.read_env(env, &mut mistakes);
        let config_flag = matches
            .try_get_one::<String>("config")
            .ok()
            .flatten()
            .cloned();
        if let Some(path) = config_flag.or(config_env) {
            layers.read_file(Path::new(&path), files, &mut mistakes);
        }
        (layers, mistakes)
    }

    fn read_flags(&mut self, matches: &ArgMatches) {
        for setting in SETTINGS {
            let Ok(Some(values)) = matches.try_get_many::<String>(setting.key) else {
                continue;
            };
            if matches.value_source(setting.key) != Some(ValueSource::CommandLine) {
                continue;
            }
            let given = values.map(|text| Given {
                text: text.clone(),
                origin: Origin::Flag(setting.flag),
                secret: setting.secret,
            });
            self.flags.insert(setting.key, given.collect());
        }
    }

    /// Reads the environment; gives the configuration file it names.
    fn read_env(
        &mut self,
        env: &[(OsString, OsString)],
        mistakes: &mut Vec<Mistake>,
    ) -> Option<String> {
        let config = env_name("config");
        let known: Vec<(String, Option<&'static Setting>)> = SETTINGS
            .iter()
            .map(|setting| (setting.env(), Some(setting)))
            .chain([(config, None)])
            .collect();
        let mut file = None;
        for (name, value) in env {
            let Some(name) = name.to_str().filter(|name| name.starts_with("FLOODGATE_")) else {
                continue;
            };
            if name == APP_TOKEN_ENV {
                continue;
            }
            let Some((_, setting)) = known.iter().find(|(known, _)| known == name) else {
                // Kubernetes sets variables of its own for a service that is called floodgate;
                // only a near miss is taken for a misspelling.
                let prefix = "FLOODGATE_".len();
                if let Some(near) = nearest(
                    &name[prefix..],
                    known.iter().map(|(known, _)| &known[prefix..]),
                ) {
                    mistakes.push(Mistake::UnknownEnv {
                        name: name.to_owned(),
                        near: format!("FLOODGATE_{near}"),
                    });
                }
                continue;
            };
            let Some(value) = value.to_str() else {
                mistakes.push(Mistake::NotText(name.to_owned()));
                continue;
            };
            // An empty variable is one that was not set (`${X:-}`).
            if value.is_empty() {
                continue;
            }
            let given = |text: &str| Given {
                text: text.trim().to_owned(),
                origin: Origin::Env(name.to_owned()),
                secret: setting.is_some_and(|setting| setting.secret),
            };
            match setting {
                None => file = Some(value.to_owned()),
                Some(setting) if setting.many => {
                    self.env
                        .insert(setting.key, value.split(',').map(given).collect());
                }
                Some(setting) => {
                    self.env.insert(setting.key, vec![given(value)]);
                }
            }
        }
        file
    }

    fn read_file(&mut self, path: &Path, files: &Files, mistakes: &mut Vec<Mistake>) {
        let text = match files.read(path) {
            Ok(text) => text,
            Err(source) => {
                mistakes.push(Mistake::Unreadable {
                    path: path.to_owned(),
                    source,
                    setting: "--config",
                });
                return;
            }
        };
        let (table, errors) = DeTable::parse_recoverable(&text);
        let mut broken = Vec::new();
        for error in errors {
            let line = error.span().map_or(1, |span| line_of(&text, span.start));
            broken.push(line);
            mistakes.push(Mistake::Syntax {
                path: path.to_owned(),
                line,
                message: error.message().to_owned(),
            });
        }
        let mut table = table.into_inner();
        let pools = table.remove(POOLS);
        let mut file = FileReader {
            path,
            text: &text,
            broken,
            mistakes,
        };
        self.file = file.keys(table, SETTINGS);
        if let Some(pools) = pools {
            self.pools = file.pools(pools);
        }
    }

    /// The pools of the file.
    pub(super) fn take_pools(&mut self) -> Vec<PoolGiven> {
        std::mem::take(&mut self.pools)
    }

    /// The values that hold for a setting: those of the highest layer that has any.
    pub(super) fn values(&self, setting: &Setting) -> Vec<Given> {
        [&self.flags, &self.env, &self.file]
            .into_iter()
            .find_map(|layer| layer.get(setting.key))
            .cloned()
            .unwrap_or_else(|| {
                setting
                    .default
                    .map(|text| Given {
                        text: text.to_owned(),
                        origin: Origin::Default,
                        secret: false,
                    })
                    .into_iter()
                    .collect()
            })
    }
}

/// The line of a byte offset, from 1.
pub(super) fn line_of(text: &str, offset: usize) -> usize {
    let upto = text.as_bytes().get(..offset).unwrap_or(text.as_bytes());
    upto.iter().filter(|b| **b == b'\n').count() + 1
}
