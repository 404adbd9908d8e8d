//! Route files → [`Ruleset`].

use std::cell::Cell;
use std::ffi::OsString;
use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::path::{Path, PathBuf};

use super::resolve::SHIPPED;
use super::value::nearest;
use crate::identity::Auth;
use crate::limit::KeyHasher;
use crate::serve::Files;
use crate::settings::Settings;
use crate::spec::apps::{SecretPlace, mistakes_alone};
use crate::spec::compile::{Layer, Mistakes, compile, mistakes_of_some};
use crate::spec::{self, EditionId, Ruleset};

/// Why route files cannot be used.
#[derive(Debug)]
pub struct RulesError {
    unreadable: Vec<(PathBuf, io::Error)>,
    /// Whether a file that these files name could not be read: a mistake says which.
    lacks_file: bool,
    kind: Option<Kind>,
}

#[derive(Debug)]
enum Kind {
    Mistakes(Mistakes),
    Edition {
        name: String,
        known: Vec<String>,
    },
    /// Of the settings, or of this route.
    NothingVerifies {
        route: Option<Box<str>>,
    },
}

impl RulesError {
    /// How many mistakes there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.unreadable.len()
            + match &self.kind {
                Some(Kind::Mistakes(mistakes)) => mistakes.0.len(),
                Some(Kind::Edition { .. } | Kind::NothingVerifies { .. }) => 1,
                None => 0,
            }
    }

    /// Whether a file could not be read.
    #[must_use]
    pub fn is_unreadable(&self) -> bool {
        !self.unreadable.is_empty() || self.lacks_file
    }
}

impl std::error::Error for RulesError {}

impl fmt::Display for RulesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut end = "";
        for (path, error) in &self.unreadable {
            write!(
                f,
                "{end}cannot read {}: {error}; correct the path after --routes or --apps, or leave \
                 it out: a table of routes is built in",
                path.display()
            )?;
            end = "\n";
        }
        match &self.kind {
            Some(Kind::Mistakes(mistakes)) => write!(f, "{end}{mistakes}"),
            Some(Kind::Edition { name, known }) if known.is_empty() => write!(
                f,
                "{end}no edition {name:?}: there is no edition and no route in the route files; \
                 write --routes {SHIPPED} before them to add to the table that is built in"
            ),
            Some(Kind::Edition { name, known }) => {
                write!(
                    f,
                    "{end}unknown edition {name:?}; known: {}",
                    known.join(", ")
                )?;
                match nearest(name, known.iter().map(String::as_str)) {
                    Some(near) => write!(f, "; did you mean {near}?"),
                    None => Ok(()),
                }
            }
            Some(Kind::NothingVerifies { route }) => {
                if let Some(route) = route {
                    write!(f, "{end}route `{route}`: ")?;
                }
                f.write_str(
                    "auth verify: no app has a certificate, so that nothing would be verified; \
                     give it one in a file of apps (--apps), or write require-bearer",
                )
            }
            None => Ok(()),
        }
    }
}

/// Whether there is anything to verify tokens by, if any are to be: with no certificate at all,
/// every token would pass.
pub(super) fn check_auth(rules: &Ruleset, all: Auth) -> Result<(), RulesError> {
    if rules.apps.iter().any(|app| !app.certificates.is_empty()) {
        return Ok(());
    }
    let verifies = |route: &&spec::Route| route.auth == Some(Auth::Verify);
    let route = match all {
        Auth::Verify => None,
        _ => match rules.routes.iter().find(verifies) {
            Some(route) => Some(route.name.clone()),
            None => return Ok(()),
        },
    };
    Err(RulesError {
        unreadable: Vec::new(),
        lacks_file: false,
        kind: Some(Kind::NothingVerifies { route }),
    })
}

/// A number that nobody outside can know: std draws its hash keys from the system.
pub(super) fn random() -> u64 {
    RandomState::new().hash_one(0_u8)
}

/// Reads and compiles route files, in order; `shipped` is the compiled-in table.
pub(super) fn load(files: &[PathBuf]) -> Result<Ruleset, RulesError> {
    let keys = KeyHasher::new((random(), random()));
    load_with(files, keys, &Files::default())
}

/// The same, with counter keys of this hasher, and through `reading`.
pub(super) fn load_with(
    files: &[PathBuf],
    keys: KeyHasher,
    reading: &Files,
) -> Result<Ruleset, RulesError> {
    let mut unreadable = Vec::new();
    let mut layers = Vec::with_capacity(files.len());
    for path in files {
        if path == Path::new(SHIPPED) {
            reading.note_text(spec::SHIPPED);
            layers.push(Layer {
                name: "routes.toml".to_owned(),
                text: spec::SHIPPED.to_owned(),
            });
            continue;
        }
        match reading.read(path) {
            Ok(text) => layers.push(Layer {
                name: path.display().to_string(),
                text,
            }),
            Err(error) => unreadable.push((path.clone(), error)),
        }
    }
    if !unreadable.is_empty() {
        // What can be read has its mistakes told all the same.
        let mistakes = mistakes_of_some(&layers);
        return Err(RulesError {
            unreadable,
            lacks_file: false,
            kind: (!mistakes.0.is_empty()).then_some(Kind::Mistakes(mistakes)),
        });
    }
    compile(&layers, keys).map_err(|mistakes| RulesError {
        unreadable,
        lacks_file: false,
        kind: Some(Kind::Mistakes(mistakes)),
    })
}

/// Sets what the settings say of limits of what calls may carry.
pub(super) fn validate(rules: &mut Ruleset, settings: &Settings) {
    if let Some(mode) = settings.validate {
        rules.payloads.set_validate(mode);
    }
}

/// Whether the certificates of apps are read.
#[derive(Clone, Copy, Debug)]
pub(super) enum Certificates<'e> {
    /// From their files and from this environment.
    Read(&'e [(OsString, OsString)]),
    /// They are not needed, and need not be there.
    Leave,
}

/// Reads files of apps and adds them to the rules. Without rules, which have mistakes of their
/// own, only looks for mistakes.
pub(super) fn add_apps(
    rules: Option<(&mut Ruleset, (EditionId, EditionId))>,
    files: &[PathBuf],
    certificates: Certificates<'_>,
    reading: &Files,
) -> Result<(), RulesError> {
    let mut unreadable = Vec::new();
    let (mut layers, mut paths) = (Vec::new(), Vec::new());
    for path in files {
        match reading.read(path) {
            Ok(text) => {
                paths.push(path.as_path());
                layers.push(Layer {
                    name: path.display().to_string(),
                    text,
                });
            }
            Err(error) => unreadable.push((path.clone(), error)),
        }
    }
    let lacks_file = Cell::new(false);
    let secrets = |place: SecretPlace<'_>| {
        let Certificates::Read(env) = certificates else {
            return Ok(None);
        };
        match place {
            SecretPlace::File { layer, path } => {
                let beside = paths.get(layer).and_then(|file| file.parent());
                let path = beside.map_or_else(|| PathBuf::from(path), |dir| dir.join(path));
                reading.read_secret(&path).map(Some).map_err(|error| {
                    lacks_file.set(true);
                    format!("cannot read {}: {error}", path.display())
                })
            }
            SecretPlace::Env(name) => {
                let found = env.iter().find(|(known, _)| known.to_str() == Some(name));
                let text = found.and_then(|(_, value)| value.to_str());
                text.map(|text| Some(text.to_owned())).ok_or_else(|| {
                    "no such variable in the environment; set it to the certificate".to_owned()
                })
            }
        }
    };
    let mistakes = match rules {
        Some((rules, editions)) if unreadable.is_empty() => {
            rules.add_apps(&layers, editions, &secrets).err()
        }
        // What can be read has its mistakes told all the same.
        _ => Some(mistakes_alone(&layers, &secrets)).filter(|mistakes| !mistakes.0.is_empty()),
    };
    if unreadable.is_empty() && mistakes.is_none() {
        return Ok(());
    }
    Err(RulesError {
        unreadable,
        lacks_file: lacks_file.get(),
        kind: mistakes.map(Kind::Mistakes),
    })
}

/// The editions of a selection, for the App Key and the App ID form.
pub(super) fn selection(rules: &Ruleset, name: &str) -> Result<(EditionId, EditionId), RulesError> {
    rules.selection(name).ok_or_else(|| RulesError {
        unreadable: Vec::new(),
        lacks_file: false,
        kind: Some(Kind::Edition {
            name: name.to_owned(),
            known: rules
                .selections
                .iter()
                .map(|(known, ..)| known.to_string())
                .collect(),
        }),
    })
}
