//! From what is written to what cannot be invalid.

mod checks;
mod history;
mod limits;
mod payload;
mod totals;

use std::collections::HashMap;
use std::time::Duration;

use self::limits::Owner;
use super::check::{Collector, suggestion};
pub use super::check::{Mistake, Mistakes};
use super::totals::RouteTotals;
use super::written::{Reader, Written, WrittenRoute};
use super::{Edition, EditionId, IpLimits, Route, RouteId, RouteLimits, Ruleset, SHIPPED};
use crate::apps::Apps;
use crate::limit::{Denial, KeyHasher, Limit, LimitId, Mode, OnStoreFailure, Scope, Unit};
use crate::route::RouteTable;
use crate::route::pricing::{Cap, CostSource};

const METHODS: &[&str] = &["GET", "POST", "PUT", "DELETE", "PATCH"];
/// Methods whose calls carry a body.
const WITH_BODY: &[&str] = &["POST", "PUT", "PATCH"];

impl Ruleset {
    /// The shipped table.
    ///
    /// # Errors
    /// Never, unless the shipped file is broken; a test compiles it.
    pub fn shipped(keys: KeyHasher) -> Result<Self, Mistakes> {
        compile(
            &[Layer {
                name: "routes.toml".to_owned(),
                text: SHIPPED.to_owned(),
            }],
            keys,
        )
    }
}

/// One route file.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Its name, for mistakes.
    pub name: String,
    /// What it says.
    pub text: String,
}

/// Reads, layers and compiles route files, later ones over earlier ones.
///
/// # Errors
/// Every mistake of every file.
pub fn compile(layers: &[Layer], keys: KeyHasher) -> Result<Ruleset, Mistakes> {
    let mistakes = Collector::new(layers.iter().map(|layer| layer.name.clone()).collect());
    compile_into(mistakes, layers, keys)
}

/// The mistakes of these files where others could not be read. What those may hold is not
/// missed.
#[must_use]
pub fn mistakes_of_some(layers: &[Layer]) -> Mistakes {
    let mut mistakes = Collector::new(layers.iter().map(|layer| layer.name.clone()).collect());
    mistakes.lose_file();
    compile_into(mistakes, layers, KeyHasher::new((0, 0)))
        .err()
        .unwrap_or_default()
}

fn compile_into(
    mut mistakes: Collector,
    layers: &[Layer],
    keys: KeyHasher,
) -> Result<Ruleset, Mistakes> {
    let mut written = Written {
        fold_app_names: true,
        ..Written::default()
    };
    for (file, Layer { text, .. }) in layers.iter().enumerate() {
        Reader::new(&mut written, &mut mistakes, file, text).read();
    }
    let mut compiler = Compiler {
        written: &written,
        mistakes,
        keys,
        limits: Vec::new(),
        known: HashMap::new(),
    };
    let ruleset = compiler.ruleset();
    compiler.mistakes.finish().map(|()| ruleset)
}

/// What of a body is counted.
fn cost_source(written: &WrittenRoute) -> Option<CostSource> {
    let field = &written.cost.as_ref()?.value;
    let own = written
        .max_recipients
        .as_ref()
        .map(|max| (field, max.value));
    let others = written.caps.iter().map(|(field, max)| (&field.value, *max));
    let caps = own.into_iter().chain(others).map(|(field, max)| Cap {
        field: field.as_str().into(),
        max,
    });
    Some(CostSource {
        field: field.as_str().into(),
        caps: caps.collect(),
    })
}

/// What makes two limits of one name one limit.
#[derive(PartialEq, Eq, Hash)]
struct Terms {
    name: String,
    quota: u32,
    mode: Mode,
    on_store_failure: OnStoreFailure,
    refund_on: Vec<u16>,
    hold: crate::limit::Hold,
    max_hold: Duration,
    denial: Denial,
}

struct Compiler<'w> {
    written: &'w Written,
    mistakes: Collector,
    keys: KeyHasher,
    limits: Vec<Limit>,
    known: HashMap<Terms, LimitId>,
}

impl Compiler<'_> {
    fn ruleset(&mut self) -> Ruleset {
        let written = self.written;
        let editions: Box<[Edition]> = written
            .editions
            .iter()
            .map(|(name, ip_copy)| Edition {
                name: name.value.as_str().into(),
                ip_copy: *ip_copy,
            })
            .collect();
        self.check_names();
        self.check_uses();
        for group in &written.groups {
            self.mistakes
                .within(format!("group `{}`", group.name.value));
            for entry in group.editions.values() {
                self.check_twins(&entry.limits);
            }
        }
        for route in &written.routes {
            self.mistakes
                .within(format!("route `{}`", route.name.value));
            for entry in route.editions.values() {
                self.check_twins(&entry.limits);
            }
        }
        self.mistakes.within(String::new());
        let own = [
            &written.defaults,
            &written.unauthorized,
            &written.rejected,
            &written.options,
        ];
        for limits in own {
            self.check_twins(limits);
        }
        let selections = self.selections(&editions);
        let routes: Box<[Route]> = written
            .routes
            .iter()
            .map(|route| self.route(route, &editions))
            .collect();
        self.mistakes.within(String::new());
        self.check_counters(&routes, &editions);
        let unmatched_route = self.unmatched(&editions);
        let ip_limits = IpLimits {
            unauthorized: self.address_limits("unauthorized", &written.unauthorized),
            rejected: self.address_limits("rejected", &written.rejected),
            options: self.address_limits("options", &written.options),
        };
        let history = self.history(&editions);
        let totals = self.totals(&editions);
        let payloads = self.payloads(&editions);
        let table = self.table();
        Ruleset {
            limits: std::mem::take(&mut self.limits).into(),
            routes,
            editions,
            selections,
            unmatched_route,
            unmatched: written.unmatched,
            fold_app_names: written.fold_app_names,
            ip_limits,
            history,
            totals,
            payloads,
            table,
            keys: self.keys,
            apps: Apps::default(),
        }
    }

    fn selections(&mut self, editions: &[Edition]) -> Box<[(Box<str>, EditionId, EditionId)]> {
        let mut selections = Vec::new();
        let find = |name: &str| {
            editions
                .iter()
                .position(|e| &*e.name == name)
                .map(EditionId)
        };
        for (name, app_key, app_id) in &self.written.select {
            let mut resolve = |edition: &super::written::At<String>| {
                let found = find(&edition.value);
                if found.is_none() && !self.mistakes.may_have_lost(&edition.value) {
                    let known = suggestion(&edition.value, editions.iter().map(|e| &*e.name));
                    self.mistakes.add(
                        edition.at,
                        &*edition.value,
                        format!("unknown edition; {known}"),
                    );
                }
                found
            };
            if let (Some(key), Some(id)) = (resolve(app_key), resolve(app_id)) {
                selections.push((name.value.as_str().into(), key, id));
            }
            if find(&name.value).is_some() {
                self.mistakes.add(
                    name.at,
                    &*name.value,
                    "an edition has this name; each edition can be selected as it is",
                );
            }
        }
        selections.extend(
            editions
                .iter()
                .enumerate()
                .map(|(i, e)| (e.name.clone(), EditionId(i), EditionId(i))),
        );
        selections.into()
    }

    fn unmatched(&mut self, editions: &[Edition]) -> Route {
        let written = self.written;
        for limit in &written.defaults {
            if limit.figure.unit == Unit::Messages {
                self.mistakes.add(
                    limit.at,
                    &*limit.text,
                    "paths that no document has name no recipients; count calls",
                );
            }
            if limit.figure.scope == Scope::User {
                self.mistakes.add(
                    limit.at,
                    &*limit.text,
                    "paths that no document has name no user; write `per app` or `per ip`",
                );
            }
        }
        let owner = Owner {
            name: "unmatched",
            group: None,
            denial: None,
            mode: None,
            on_store_failure: None,
            sources: &[],
        };
        let editions = editions
            .iter()
            .map(|edition| RouteLimits {
                limits: self
                    .with_ip_copies(&written.defaults, &owner, edition.ip_copy)
                    .into(),
                from: None,
                sources: Box::default(),
            })
            .collect();
        Route {
            name: "unmatched".into(),
            title: "".into(),
            calls: Box::default(),
            auth: None,
            history: false,
            totals: RouteTotals::default(),
            cost: None,
            max_recipients: None,
            validate: None,
            max_body: None,
            editions,
            sources: Box::default(),
        }
    }

    fn route(&mut self, written: &WrittenRoute, editions: &[Edition]) -> Route {
        self.mistakes
            .within(format!("route `{}`", written.name.value));
        let calls = self.calls(written);
        self.check_cost(written, &calls);
        self.check_body(written, &calls);
        self.check_history_route(written);
        let has_user = calls.iter().all(|(_, path)| path.contains("{username}"));
        for (edition, entry) in &written.editions {
            self.check_entry(written, edition, entry, has_user);
        }
        let by_edition = editions
            .iter()
            .enumerate()
            .map(|(i, edition)| self.route_limits(written, editions, EditionId(i), edition.ip_copy))
            .collect();
        let mut sources: Vec<Box<str>> = written
            .editions
            .values()
            .flat_map(|entry| &entry.sources)
            .chain(&written.overview)
            .map(|source| source.as_str().into())
            .collect();
        sources.sort_unstable();
        Route {
            name: written.name.value.as_str().into(),
            title: written.title.as_str().into(),
            calls: calls.into(),
            auth: written.auth,
            history: written.history.is_some(),
            totals: self.route_totals(written),
            cost: cost_source(written),
            max_recipients: written.max_recipients.as_ref().map(|max| max.value),
            validate: written.validate,
            max_body: written.max_body.as_ref().map(|max| max.value),
            editions: by_edition,
            sources: sources.into(),
        }
    }

    fn calls(&mut self, written: &WrittenRoute) -> Vec<(Box<str>, Box<str>)> {
        let mut calls = Vec::new();
        for call in &written.calls {
            match call.value.split_once(' ') {
                Some((method, path)) if METHODS.contains(&method) => {
                    calls.push((method.into(), path.trim().into()));
                }
                Some((method @ ("HEAD" | "OPTIONS"), _)) => {
                    let message = format!(
                        "{method} needs no route: HEAD counts as its GET, OPTIONS is charged to the IP"
                    );
                    self.mistakes.add(call.at, &*call.value, message);
                }
                Some((method, _)) => {
                    let known = suggestion(method, METHODS.iter().copied());
                    self.mistakes.add(
                        call.at,
                        &*call.value,
                        format!("`{method}` is no method; {known}"),
                    );
                }
                None => self.mistakes.add(
                    call.at,
                    &*call.value,
                    "a call is a method and a path: \"GET /users/{username}\"",
                ),
            }
        }
        calls
    }

    fn table(&mut self) -> RouteTable {
        let calls: Vec<_> = self
            .written
            .routes
            .iter()
            .enumerate()
            .flat_map(|(i, route)| route.calls.iter().map(move |call| (RouteId(i), call)))
            .filter_map(|(id, call)| {
                let (method, path) = call.value.split_once(' ')?;
                METHODS
                    .contains(&method)
                    .then_some((id, method, path.trim(), call))
            })
            .collect();
        match RouteTable::build(
            calls
                .iter()
                .map(|(id, method, path, _)| (*id, *method, *path)),
        ) {
            Ok(table) => table,
            Err(errors) => {
                for error in errors {
                    if let Some((id, .., call)) = calls.get(error.index) {
                        let name = self.written.routes.get(id.0).map(|route| &route.name.value);
                        self.mistakes.within(
                            name.map_or_else(String::new, |name| format!("route `{name}`")),
                        );
                        self.mistakes.add(call.at, &*call.value, error.reason);
                    }
                }
                RouteTable::default()
            }
        }
    }
}
