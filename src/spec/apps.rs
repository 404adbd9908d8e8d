//! Files of apps: `[[app]]` entries → [`Apps`], as a part of the ruleset.
//!
//! Knows no file system and no environment: who has them hands certificates in.

mod limits;

use std::collections::{BTreeSet, HashMap};
use std::num::NonZeroU32;

use super::check::{Collector, Mistakes, Place, suggestion};
use super::compile::Layer;
use super::written::{At, Reader, Written, WrittenApp};
use super::{EditionId, Ruleset};
use crate::apps::{App, Apps, Certificate};
use crate::identity;
use crate::limit::{CounterKey, Limit, LimitId};
use crate::route::Form;

/// Certificates that an app has at the same time, at most: the old, the new, and room for a
/// mishap. Each is one more try for a bad token.
const MOST_CERTIFICATES: usize = 4;

/// Where a certificate is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecretPlace<'a> {
    /// In this file, which the file of this layer names.
    File {
        /// Index among the layers.
        layer: usize,
        /// As written there.
        path: &'a str,
    },
    /// In this environment variable.
    Env(&'a str),
}

/// What stands at that place; `None`: certificates are not needed. Otherwise why it cannot be had.
pub type Secrets<'s> = dyn Fn(SecretPlace<'_>) -> Result<Option<String>, String> + 's;

impl Ruleset {
    /// Adds the apps of these files. `editions` hold where an app has none of its own.
    ///
    /// # Errors
    /// Every mistake of every file; nothing is added then.
    pub fn add_apps(
        &mut self,
        layers: &[Layer],
        editions: (EditionId, EditionId),
        secrets: &Secrets<'_>,
    ) -> Result<(), Mistakes> {
        let mut compiler = Compiler::new(layers, secrets, Some((self, editions)));
        let apps = compiler.apps(layers);
        let Compiler { mistakes, own, .. } = compiler;
        mistakes.finish()?;
        let mut limits = std::mem::take(&mut self.limits).into_vec();
        limits.extend(own);
        self.limits = limits.into();
        self.apps = Apps::new(apps);
        Ok(())
    }
}

/// The mistakes of these files where the limits are not known: names of limits and editions are
/// not looked at.
#[must_use]
pub fn mistakes_alone(layers: &[Layer], secrets: &Secrets<'_>) -> Mistakes {
    let mut compiler = Compiler::new(layers, secrets, None);
    compiler.apps(layers);
    compiler.mistakes.finish().err().unwrap_or_default()
}

struct Compiler<'r> {
    rules: Option<(&'r Ruleset, (EditionId, EditionId))>,
    secrets: &'r Secrets<'r>,
    mistakes: Collector,
    /// Limits that differ from one for all, to be numbered after those.
    own: Vec<Limit>,
    known: HashMap<(LimitId, NonZeroU32), LimitId>,
    /// The limits that each edition charges.
    charged: HashMap<usize, BTreeSet<LimitId>>,
    names: HashMap<String, (String, Place)>,
}

impl<'r> Compiler<'r> {
    fn new(
        layers: &[Layer],
        secrets: &'r Secrets<'r>,
        rules: Option<(&'r Ruleset, (EditionId, EditionId))>,
    ) -> Self {
        Self {
            rules,
            secrets,
            mistakes: Collector::new(layers.iter().map(|layer| layer.name.clone()).collect()),
            own: Vec::new(),
            known: HashMap::new(),
            charged: HashMap::new(),
            names: HashMap::new(),
        }
    }

    fn apps(&mut self, layers: &[Layer]) -> Vec<App> {
        let mut written = Written::default();
        for (file, Layer { text, .. }) in layers.iter().enumerate() {
            Reader::new(&mut written, &mut self.mistakes, file, text).read_apps();
        }
        let apps = written.apps.iter().map(|app| self.app(app)).collect();
        self.mistakes.within(String::new());
        apps
    }

    fn app(&mut self, written: &WrittenApp) -> App {
        let first = written.names.first();
        self.mistakes
            .within(first.map_or_else(String::new, |name| format!("app `{}`", name.value)));
        let (names, forms) = self.names(written);
        let editions = self.editions(written, forms);
        let key = match (self.rules, names.first()) {
            (Some((rules, _)), Some(name)) => rules.keys.app(name),
            _ => CounterKey(0),
        };
        App {
            key,
            editions,
            plan: written.plan,
            history_days: written.history_days,
            totals: written.totals.clone(),
            certificates: self.certificates(written, forms),
            allow: written.allow.clone(),
            suspended: written.suspended,
            limits: self.limits(written, editions, forms),
            names,
        }
    }

    /// The folded names, and whether there is one of each form.
    fn names(&mut self, written: &WrittenApp) -> (Vec<String>, Forms) {
        let fold = self.rules.is_none_or(|(rules, _)| rules.fold_app_names);
        let mut names: Vec<String> = Vec::new();
        let mut forms = Forms::default();
        for At { value: name, at } in &written.names {
            let folded = identity::fold_app(name, fold);
            let is_plain = name.trim() == name && identity::form(&folded).is_some();
            let form = identity::form(name).filter(|_| is_plain);
            let is_reserved = folded.to_lowercase().starts_with("app-id#");
            match form {
                Some(Form::AppKey) if !is_reserved => forms.key = true,
                Some(Form::AppId) => forms.id = true,
                Some(Form::AppKey) | None => {
                    self.mistakes.add(
                        *at,
                        format!("{name:?}"),
                        "no app has this name; write org#app, or an App ID",
                    );
                    continue;
                }
            }
            if names.contains(&folded) {
                let message = "the app has this name already; case and escapes make no other";
                self.mistakes.add(*at, &**name, message);
                continue;
            }
            if let Some((other, place)) = self.names.get(&folded) {
                let place = self.mistakes.name_of(*place);
                let message = format!(
                    "app `{other}` has this name already, in {place}; an app's names stand in one entry"
                );
                self.mistakes.add(*at, &**name, message);
                continue;
            }
            let first = written.names.first().map(|first| first.value.clone());
            self.names
                .insert(folded.clone(), (first.unwrap_or_default(), *at));
            names.push(folded);
        }
        (names, forms)
    }

    /// The app's editions. One that is known by both forms has that of the App ID for both.
    fn editions(&mut self, written: &WrittenApp, forms: Forms) -> Option<(EditionId, EditionId)> {
        let (rules, for_all) = self.rules?;
        let Some(name) = &written.edition else {
            return (forms.key && forms.id).then_some((for_all.1, for_all.1));
        };
        let editions = rules.selection(&name.value);
        if editions.is_none() {
            let known = rules.selections.iter().map(|(known, ..)| &**known);
            let message = format!("unknown edition; {}", suggestion(&name.value, known));
            self.mistakes.add(name.at, &*name.value, message);
        }
        editions
    }

    fn certificates(&mut self, written: &WrittenApp, forms: Forms) -> Vec<Certificate> {
        let file = written.certificate_file.as_ref().map(|path| {
            let layer = path.at.file;
            let place = SecretPlace::File {
                layer,
                path: &path.value,
            };
            (path, place)
        });
        let env = written.certificate_env.as_ref();
        let env = env.map(|name| (name, SecretPlace::Env(&name.value)));
        let mut certificates = Vec::new();
        for (At { value: shown, at }, place) in file.into_iter().chain(env) {
            if !forms.id && !written.names.is_empty() {
                let message = "a certificate belongs to an App ID; add it to the app's names";
                self.mistakes.add(*at, &**shown, message);
            }
            let text = match (self.secrets)(place) {
                Ok(Some(text)) => text,
                Ok(None) => continue,
                Err(why) => {
                    self.mistakes.add(*at, &**shown, why);
                    continue;
                }
            };
            let before = certificates.len();
            for (index, line) in entries(&text, place).enumerate() {
                match Certificate::new(line) {
                    Some(one) if certificates.contains(&one) => {}
                    Some(one) => certificates.push(one),
                    None => {
                        let message = format!(
                            "entry {} is no certificate; write 32 hex digits, one certificate a line",
                            index + 1
                        );
                        self.mistakes.add(*at, &**shown, message);
                        return Vec::new();
                    }
                }
            }
            if certificates.len() == before && entries(&text, place).next().is_none() {
                let message = "there is no certificate in it; write 32 hex digits";
                self.mistakes.add(*at, &**shown, message);
            }
        }
        if certificates.len() > MOST_CERTIFICATES {
            let message = format!(
                "{} certificates; an app has at most {MOST_CERTIFICATES} at a time",
                certificates.len()
            );
            self.mistakes.add(written.at, "[[app]]", message);
        }
        certificates
    }
}

/// By which forms an app is known.
#[derive(Clone, Copy, Debug, Default)]
struct Forms {
    key: bool,
    id: bool,
}

/// A file has one certificate a line; a variable, of which there may be no lines, separates them
/// by commas or spaces.
fn entries<'t>(text: &'t str, place: SecretPlace<'_>) -> impl Iterator<Item = &'t str> {
    let is_end = move |c: char| match place {
        SecretPlace::File { .. } => c == '\n',
        SecretPlace::Env(_) => c == ',' || c.is_whitespace(),
    };
    text.split(is_end)
        .map(str::trim)
        .filter(|entry| !entry.is_empty())
}

#[cfg(test)]
mod tests;
