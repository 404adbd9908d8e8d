//! Route files → [`Ruleset`].

use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::path::{Path, PathBuf};

use super::resolve::SHIPPED;
use super::value::nearest;
use crate::limit::KeyHasher;
use crate::spec::compile::{Layer, Mistakes, compile, mistakes_of_some};
use crate::spec::{self, EditionId, Ruleset};

/// Why route files cannot be used.
#[derive(Debug)]
pub struct RulesError {
    unreadable: Vec<(PathBuf, io::Error)>,
    kind: Option<Kind>,
}

#[derive(Debug)]
enum Kind {
    Mistakes(Mistakes),
    Edition { name: String, known: Vec<String> },
}

impl RulesError {
    /// How many mistakes there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.unreadable.len()
            + match &self.kind {
                Some(Kind::Mistakes(mistakes)) => mistakes.0.len(),
                Some(Kind::Edition { .. }) => 1,
                None => 0,
            }
    }

    /// Whether a file could not be read.
    #[must_use]
    pub fn is_unreadable(&self) -> bool {
        !self.unreadable.is_empty()
    }
}

impl std::error::Error for RulesError {}

impl fmt::Display for RulesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut end = "";
        for (path, error) in &self.unreadable {
            write!(
                f,
                "{end}cannot read {}: {error}; correct the path after --routes, or leave it out for \
                 the table that is built in",
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
            None => Ok(()),
        }
    }
}

/// A number that nobody outside can know: std draws its hash keys from the system.
pub(super) fn random() -> u64 {
    RandomState::new().hash_one(0_u8)
}

/// Reads and compiles route files, in order; `shipped` is the compiled-in table.
pub(super) fn load(files: &[PathBuf]) -> Result<Ruleset, RulesError> {
    load_with(files, KeyHasher::new((random(), random())))
}

/// The same, with counter keys of this hasher.
pub(super) fn load_with(files: &[PathBuf], keys: KeyHasher) -> Result<Ruleset, RulesError> {
    let mut unreadable = Vec::new();
    let mut layers = Vec::with_capacity(files.len());
    for path in files {
        if path == Path::new(SHIPPED) {
            layers.push(Layer {
                name: "routes.toml".to_owned(),
                text: spec::SHIPPED.to_owned(),
            });
            continue;
        }
        match std::fs::read_to_string(path) {
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
            kind: (!mistakes.0.is_empty()).then_some(Kind::Mistakes(mistakes)),
        });
    }
    compile(&layers, keys).map_err(|mistakes| RulesError {
        unreadable,
        kind: Some(Kind::Mistakes(mistakes)),
    })
}

/// The editions of a selection, for the App Key and the App ID form.
pub(super) fn selection(rules: &Ruleset, name: &str) -> Result<(EditionId, EditionId), RulesError> {
    rules.selection(name).ok_or_else(|| RulesError {
        unreadable: Vec::new(),
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
