//! Whom a pool serves: apps before routes before editions; all else goes to the default pool.

use hashbrown::HashMap;

use crate::admission::{Call, Target};
use crate::identity;
use crate::settings::{Named, PoolSettings};
use crate::spec::Ruleset;

/// Pools by their users.
#[derive(Debug, Default)]
pub(super) struct Users {
    apps: HashMap<Box<str>, usize>,
    /// By the route's number.
    routes: Box<[Option<usize>]>,
    unmatched: Option<usize>,
    options: Option<usize>,
    editions: Box<[Option<usize>]>,
}

/// What calls of no documented route are named by, as in the metrics.
const UNMATCHED: &str = "unmatched";
const OPTIONS: &str = "options";

impl Users {
    pub(super) fn new(pools: &[PoolSettings], rules: &Ruleset) -> Self {
        let with = |of: fn(&PoolSettings) -> &[Named], name: &str| {
            pools
                .iter()
                .position(|pool| of(pool).iter().any(|named| named.name == name))
        };
        let mut apps = HashMap::new();
        for (index, pool) in pools.iter().enumerate() {
            for named in &pool.apps {
                apps.insert(app(rules, &named.name).into_boxed_str(), index);
            }
        }
        Self {
            apps,
            routes: rules
                .routes
                .iter()
                .map(|route| with(|p| &p.routes, &route.name))
                .collect(),
            unmatched: with(|p| &p.routes, UNMATCHED),
            options: with(|p| &p.routes, OPTIONS),
            editions: rules
                .editions
                .iter()
                .map(|edition| with(|p| &p.editions, &edition.name))
                .collect(),
        }
    }

    pub(super) fn pool_of(&self, call: &Call) -> usize {
        let by_app = match self.apps.is_empty() {
            true => None,
            false => self.apps.get(call.caller.app.as_str()).copied(),
        };
        let by_route = || match call.target {
            Target::Route(id) => self.routes.get(id.0).copied().flatten(),
            Target::Unmatched => self.unmatched,
            Target::Options => self.options,
        };
        let by_edition = || self.editions.get(call.edition.0).copied().flatten();
        by_app.or_else(by_route).or_else(by_edition).unwrap_or(0)
    }
}

/// An app's name as calls have it: folded, and the first of a known app's.
fn app(rules: &Ruleset, name: &str) -> String {
    let folded = identity::fold_app(name, rules.fold_app_names);
    let known = rules
        .apps
        .find_id(&folded)
        .and_then(|id| rules.apps.get(id));
    known.map_or(folded, |app| app.name().to_owned())
}

/// What is wrong with the users of pools, each with its place.
pub(super) fn unknown(pools: &[PoolSettings], rules: &Ruleset) -> Vec<String> {
    let routes = rules.routes.iter().map(|route| &*route.name);
    let routes: Vec<&str> = routes.chain([UNMATCHED, OPTIONS]).collect();
    let editions: Vec<&str> = rules
        .editions
        .iter()
        .map(|edition| &*edition.name)
        .collect();
    let mut wrong = Vec::new();
    let mut apps: HashMap<String, &Named> = HashMap::new();
    for pool in pools {
        for (kind, named, known) in [
            ("route", &pool.routes, &routes),
            ("edition", &pool.editions, &editions),
        ] {
            for Named { name, place } in named {
                if known.contains(&name.as_str()) {
                    continue;
                }
                let instead = match (nearest(name, known), kind) {
                    (Some(near), _) => format!("did you mean {near}?"),
                    (None, "edition") => format!("known: {}", known.join(", ")),
                    (None, _) => "see `floodgate routes`".to_owned(),
                };
                wrong.push(format!("{place}: there is no {kind} {name:?}; {instead}"));
            }
        }
        for named in &pool.apps {
            let Named { name, place } = named;
            if identity::form(name).is_none() {
                wrong.push(format!(
                    "{place}: {name:?} is no app; write org#app or an App ID"
                ));
            } else if let Some(other) = apps.insert(app(rules, name), named) {
                wrong.push(format!(
                    "{place}: app {name:?} is at {} already: a call goes to one pool",
                    other.place
                ));
            }
        }
    }
    wrong
}

fn nearest<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    known
        .iter()
        .map(|known| (strsim::normalized_damerau_levenshtein(word, known), *known))
        .filter(|(closeness, _)| *closeness >= 0.6)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, known)| known)
}
