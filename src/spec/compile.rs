//! From what is written to what cannot be invalid.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::check::{Collector, Place, suggestion};
pub use super::check::{Mistake, Mistakes};
use super::figure::Period;
use super::written::{Reader, Written, WrittenEdition, WrittenLimit, WrittenRoute};
use super::{Edition, EditionId, IpLimits, Route, RouteId, RouteLimits, Ruleset, SHIPPED};
use crate::limit::calendar::Zone;
use crate::limit::{Denial, KeyHasher, Limit, LimitId, Mode, Scope, Unit, Window};
use crate::route::RouteTable;
use crate::route::pricing::CostSource;

/// The longest that a slot is held past its response, unless a limit says otherwise
/// (`service.md`: the service lets go of a running-task slot after 5 minutes).
const DEFAULT_MAX_HOLD: Duration = Duration::from_secs(300);
/// Upstream statuses that give app and user units back, unless a limit says otherwise.
const DEFAULT_REFUND_ON: &[u16] = &[401];
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
    let mut mistakes = Collector::new(layers.iter().map(|layer| layer.name.clone()).collect());
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

/// What makes two limits of one name one limit.
#[derive(PartialEq, Eq, Hash)]
struct Terms {
    name: String,
    quota: u32,
    mode: Mode,
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

/// Whose counters a limit has.
struct Owner<'a> {
    name: &'a str,
    group: Option<&'a str>,
    denial: Option<Denial>,
    /// Of its limits that have none of their own.
    mode: Option<Mode>,
    sources: &'a [String],
}

impl Owner<'_> {
    fn mode_of(&self, limit: &WrittenLimit) -> Mode {
        limit.mode.or(self.mode).unwrap_or_default()
    }
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
            table,
            keys: self.keys,
        }
    }

    /// Two limits of one counter would charge it twice.
    fn check_twins(&mut self, limits: &[WrittenLimit]) {
        let mut seen = HashSet::new();
        for limit in limits {
            if !seen.insert(limit.counter_name(limit.figure.scope)) {
                let message =
                    "two limits of one unit, window and scope; keep the one that is meant";
                self.mistakes.add(limit.at, &*limit.text, message);
            }
            if limit.hold == crate::limit::Hold::Task && limit.figure.scope != Scope::App {
                let message =
                    "hold = \"task\" is for limits per app: a task is reported done by its app";
                self.mistakes.add(limit.at, &*limit.text, message);
            }
            if limit.max_hold.is_some() && limit.hold == crate::limit::Hold::Response {
                let message = "max_hold does nothing without hold = \"task\"";
                self.mistakes.add(limit.at, &*limit.text, message);
            }
        }
    }

    /// Counters are named by route or group: one name for both would be one counter.
    fn check_names(&mut self) {
        let reserved = ["unmatched", "unauthorized", "rejected", "options", "none"];
        for group in &self.written.groups {
            if let Some(route) = self
                .written
                .routes
                .iter()
                .find(|route| route.name.value == group.name.value)
            {
                let message = "a route and a group of one name would share counters; rename one";
                self.mistakes.add(
                    route.name.at.max(group.name.at),
                    &*group.name.value,
                    message,
                );
            }
        }
        let mut alike: HashMap<String, &super::written::At<String>> = HashMap::new();
        let names = self
            .written
            .groups
            .iter()
            .map(|g| &g.name)
            .chain(self.written.routes.iter().map(|r| &r.name));
        for name in names {
            if let Some(other) = alike.insert(name.value.replace('_', "-"), name)
                && other.value != name.value
            {
                let message = format!("differs from `{}` by its dashes alone", other.value);
                self.mistakes.add(name.at, &*name.value, message);
            }
            if reserved.contains(&&*name.value) {
                self.mistakes.add(
                    name.at,
                    &*name.value,
                    "this name is the gateway's own; choose another",
                );
            }
        }
    }

    /// A group's routes can have their figures from different editions (rule 4): one counter
    /// must not get two quotas by that.
    fn check_counters(&mut self, routes: &[Route], editions: &[Edition]) {
        let mut told = HashSet::new();
        for (i, edition) in editions.iter().enumerate() {
            let mut quotas: HashMap<&str, (u32, &str)> = HashMap::new();
            for route in routes {
                let ids = route
                    .editions
                    .get(i)
                    .map(|e| &*e.limits)
                    .unwrap_or_default();
                for limit in ids.iter().filter_map(|id| self.limits.get(id.0 as usize)) {
                    let quota = limit.quota.get();
                    let (other, by) = *quotas.entry(&*limit.name).or_insert((quota, &*route.name));
                    let Some(group) = self
                        .written
                        .groups
                        .iter()
                        .find(|group| Some(&*group.name.value) == limit.group.as_deref())
                    else {
                        continue;
                    };
                    if other != quota && told.insert(&*group.name.value) {
                        let at = group.editions.values().filter_map(|entry| entry.at).max();
                        let message = format!(
                            "in edition {} this counter has two quotas, {other} for route `{by}` and {quota} for route `{}`; write one figure in every edition, or an entry for {} in both routes",
                            edition.name, route.name, edition.name
                        );
                        self.mistakes
                            .add(at.unwrap_or(group.name.at), &*limit.name, message);
                    }
                }
            }
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
                if found.is_none() {
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

    fn limit(&mut self, written: &WrittenLimit, owner: &Owner<'_>, scope: Scope) -> LimitId {
        let figure = &written.figure;
        let zone = written.zone.as_ref();
        let name = format!("{}:{}", owner.name, written.counter_name(scope));
        let terms = Terms {
            name,
            quota: figure.quota.get(),
            mode: owner.mode_of(written),
            refund_on: match (&written.refund_on, scope) {
                (Some(statuses), _) => statuses.clone(),
                (None, Scope::Ip) => Vec::new(),
                (None, _) => DEFAULT_REFUND_ON.to_vec(),
            },
            hold: written.hold,
            max_hold: written.max_hold.unwrap_or(DEFAULT_MAX_HOLD),
            denial: written
                .denial
                .or(owner.denial)
                .unwrap_or(match figure.unit {
                    Unit::Calls => Denial::CallRate,
                    Unit::Messages => Denial::MessageCount,
                    Unit::Tasks => Denial::Push,
                }),
        };
        if let Some(id) = self.known.get(&terms) {
            let id = *id;
            if let Some(limit) = self.limits.get_mut(id.0 as usize) {
                let mut sources: Vec<Box<str>> = limit.sources.to_vec();
                sources.extend(owner.sources.iter().map(|s| s.as_str().into()));
                sources.sort_unstable();
                sources.dedup();
                limit.sources = sources.into();
            }
            return id;
        }
        let id = LimitId(u32::try_from(self.limits.len()).unwrap_or(u32::MAX));
        self.limits.push(Limit {
            salt: self.keys.limit(&terms.name),
            name: terms.name.as_str().into(),
            unit: figure.unit,
            quota: figure.quota,
            window: match figure.period {
                Period::Sliding(length) => Window::Sliding(length),
                Period::Day => Window::Day(zone.map_or(Zone::UTC, |(_, zone)| zone.clone())),
                Period::Running => Window::Running,
            },
            scope,
            group: owner.group.map(Into::into),
            mode: terms.mode,
            refund_on: terms.refund_on.as_slice().into(),
            hold: terms.hold,
            max_hold: terms.max_hold,
            denial: terms.denial,
            sources: owner.sources.iter().map(|s| s.as_str().into()).collect(),
        });
        self.known.insert(terms, id);
        id
    }

    /// These limits, each followed by its per-IP copy where the edition has one (rule 3 of the
    /// documents: per-app limits on calls and messages for seconds and minutes).
    fn with_ip_copies(
        &mut self,
        written: &[WrittenLimit],
        owner: &Owner<'_>,
        ip_copy: bool,
    ) -> Vec<LimitId> {
        let mut own = Vec::new();
        let mut copies = Vec::new();
        let named: HashSet<String> = written
            .iter()
            .map(|limit| limit.counter_name(limit.figure.scope))
            .collect();
        for limit in written
            .iter()
            .filter(|limit| owner.mode_of(limit) != Mode::Off)
        {
            own.push(self.limit(limit, owner, limit.figure.scope));
            let copied = limit.figure.scope == Scope::App
                && matches!(limit.figure.period, Period::Sliding(_))
                // A figure per IP that is written out stands instead of the copy.
                && !named.contains(&limit.counter_name(Scope::Ip));
            if ip_copy && copied {
                // The copy's refunds are the default ones: the address goes on paying.
                let copy = WrittenLimit {
                    refund_on: None,
                    ..limit.clone()
                };
                copies.push(self.limit(&copy, owner, Scope::Ip));
            }
        }
        own.extend(copies);
        own
    }

    fn address_limits(&mut self, name: &str, written: &[WrittenLimit]) -> Box<[LimitId]> {
        let owner = Owner {
            name,
            group: None,
            denial: None,
            mode: None,
            sources: &[],
        };
        written
            .iter()
            .filter(|limit| owner.mode_of(limit) != Mode::Off)
            .map(|limit| self.limit(limit, &owner, Scope::Ip))
            .collect()
    }

    fn unmatched(&mut self, editions: &[Edition]) -> Route {
        let written = self.written;
        for limit in &written.defaults {
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
            needs_token: true,
            cost: None,
            max_recipients: None,
            editions,
            sources: Box::default(),
        }
    }

    fn route(&mut self, written: &WrittenRoute, editions: &[Edition]) -> Route {
        self.mistakes
            .within(format!("route `{}`", written.name.value));
        let calls = self.calls(written);
        self.check_cost(written, &calls);
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
            needs_token: written.needs_token.unwrap_or(true),
            cost: written.cost.as_ref().map(|field| CostSource {
                field: field.value.as_str().into(),
            }),
            max_recipients: written.max_recipients.as_ref().map(|max| max.value),
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

    fn check_cost(&mut self, written: &WrittenRoute, calls: &[(Box<str>, Box<str>)]) {
        if let Some(cost) = &written.cost {
            if let Some((method, _)) = calls
                .iter()
                .find(|(method, _)| !WITH_BODY.contains(&&**method))
            {
                let message = format!("{method} has no body to read a cost from; remove `cost`");
                self.mistakes.add(cost.at, &*cost.value, message);
            }
            if cost.value.is_empty() {
                self.mistakes.add(
                    cost.at,
                    "",
                    "the cost's field is empty; write e.g. cost = \"to\"",
                );
            }
        }
        if let Some(max) = &written.max_recipients {
            if max.value == 0 {
                self.mistakes.add(
                    max.at,
                    "max_recipients = 0",
                    "no call can ever satisfy it; write at least 1, or leave it out",
                );
            }
            if written.cost.is_none() {
                self.mistakes.add(
                    max.at,
                    "max_recipients",
                    "what is counted is missing: cost = \"to\"",
                );
            }
        }
    }

    fn check_entry(
        &mut self,
        written: &WrittenRoute,
        edition: &str,
        entry: &WrittenEdition,
        has_user: bool,
    ) {
        let at = entry.at.unwrap_or(written.name.at);
        if !entry.has_limits && entry.group.is_none() {
            self.mistakes.add(at, &*written.name.value, "an edition that prints a route has limits or a group; to switch limits off write mode = \"off\"");
        }
        for limit in &entry.limits {
            if limit.figure.scope == Scope::User && !has_user {
                self.mistakes.add(
                    limit.at,
                    &*limit.text,
                    "the path has no `{username}`, whose calls could be counted",
                );
            }
        }
        let Some(group) = &entry.group else { return };
        let groups = &self.written.groups;
        if let Some(known) = groups.iter().find(|known| known.name.value == group.value) {
            let user = known
                .editions
                .get(edition)
                .and_then(|e| e.limits.iter().find(|l| l.figure.scope == Scope::User));
            if let (Some(limit), false) = (user, has_user) {
                let message = format!(
                    "route `{}` of this group has no `{{username}}`",
                    written.name.value
                );
                self.mistakes.add(limit.at, &*limit.text, message);
            }
        } else {
            let near = suggestion(&group.value, groups.iter().map(|g| g.name.value.as_str()));
            self.mistakes
                .add(group.at, &*group.value, format!("unknown group; {near}"));
        }
    }

    /// Rule 4 of the documents: what the edition does not print, it takes whole from the newest
    /// edition that prints it; its own rule of per-IP copies holds all the same.
    fn route_limits(
        &mut self,
        written: &WrittenRoute,
        editions: &[Edition],
        selected: EditionId,
        ip_copy: bool,
    ) -> RouteLimits {
        let name_of = |id: EditionId| editions.get(id.0).map(|e| &*e.name).unwrap_or_default();
        let printed = |id: EditionId| written.editions.get(name_of(id));
        let newest = (0..editions.len())
            .rev()
            .map(EditionId)
            .find(|id| printed(*id).is_some());
        let from = printed(selected).map(|_| selected).or(newest);
        let sources = printed(selected)
            .map(|entry| entry.sources.iter().map(|s| s.as_str().into()).collect())
            .unwrap_or_default();
        let Some((from, entry)) = from.and_then(|from| Some((from, printed(from)?))) else {
            let owner = Owner {
                name: &written.name.value,
                group: None,
                denial: written.denial,
                mode: written.mode,
                sources: &[],
            };
            let limits = self.with_ip_copies(&self.written.defaults, &owner, ip_copy);
            return RouteLimits {
                limits: limits.into(),
                from: None,
                sources,
            };
        };
        let ip_copy = ip_copy && entry.ip_copy != Some(false);
        let mut limits = Vec::new();
        if let Some(group) = &entry.group {
            limits.extend(self.group_limits(&group.value, name_of(from), entry, written, ip_copy));
        }
        let owner = Owner {
            name: &written.name.value,
            group: None,
            denial: written.denial,
            mode: written.mode,
            sources: &entry.sources,
        };
        limits.extend(self.with_ip_copies(&entry.limits, &owner, ip_copy));
        RouteLimits {
            limits: limits.into(),
            from: Some(from),
            sources,
        }
    }

    fn group_limits(
        &mut self,
        name: &str,
        edition: &str,
        entry: &WrittenEdition,
        route: &WrittenRoute,
        ip_copy: bool,
    ) -> Vec<LimitId> {
        // An unknown group is told where the entry is checked.
        let Some(group) = self
            .written
            .groups
            .iter()
            .find(|group| group.name.value == name)
        else {
            return Vec::new();
        };
        let Some(figures) = group.editions.get(edition) else {
            let at: Place = entry.group.as_ref().map_or(route.name.at, |group| group.at);
            let message = format!(
                "the group has no figures for this edition; add to it: {edition} = {{ limits = [\"100/s\"] }}"
            );
            self.mistakes.add(at, name, message);
            return Vec::new();
        };
        let ip_copy = ip_copy && figures.ip_copy != Some(false);
        let owner = Owner {
            name,
            group: Some(name),
            denial: None,
            mode: route.mode.or(group.mode),
            sources: &figures.sources,
        };
        self.with_ip_copies(&figures.limits, &owner, ip_copy)
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
