//! `floodgate routes`: every call, and the limits that hold for it.

use std::ffi::OsString;

use clap::ArgMatches;
use serde::Serialize;

use super::rules::Certificates;
use super::show::{LimitView, columns, quota, views};
use super::value::nearest;
use super::{CliError, Ended, Purpose, load, print, rules};
use crate::apps::App;
use crate::identity::{self, fold_app};
use crate::limit::LimitId;
use crate::route::Form;
use crate::serve::Files;
use crate::spec::size;
use crate::spec::{EditionId, Route, RouteId, RouteLimits, Ruleset, Unmatched};

/// An app that nobody knows.
#[derive(Debug, thiserror::Error)]
#[error("--app {name:?}: no [[app]] entry has this name; {instead}")]
pub struct AppError {
    name: String,
    instead: String,
}

impl AppError {
    fn new<'k>(name: &str, known: impl Iterator<Item = &'k str>) -> Self {
        let known: Vec<&str> = known.collect();
        let instead = match nearest(name, known.iter().copied()) {
            _ if known.is_empty() => "name the file that has it by --apps".to_owned(),
            Some(near) => format!("did you mean {near:?}?"),
            None => "leave it out to see what holds for an app like any other".to_owned(),
        };
        Self {
            name: name.to_owned(),
            instead,
        }
    }
}

/// One call in JSON.
#[derive(Debug, Serialize)]
struct RouteView<'r> {
    route: &'r str,
    edition: &'r str,
    method: &'r str,
    path: String,
    limits: Vec<LimitView<'r>>,
    max_recipients: Option<u32>,
    max_body: Option<u64>,
    /// Limits of what its calls may carry.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    payload: Vec<&'r str>,
    /// What its calls make, of what an app's plan bounds.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    totals: Vec<&'r str>,
    sources: Vec<&'r str>,
}

/// Whom the list is for.
#[derive(Clone, Copy, Debug)]
struct Audience<'r> {
    rules: &'r Ruleset,
    /// Of an App Key, and of an App ID.
    editions: (EditionId, EditionId),
    /// `None`: an app like any other.
    app: Option<&'r App>,
}

pub(super) fn run(matches: &ArgMatches, env: &[(OsString, OsString)]) -> Result<Ended, CliError> {
    let settings = load(matches, env, Purpose::Look)?;
    let mut rules = rules::load(&settings.routes)?;
    let editions = rules::selection(&rules, &settings.edition)?;
    let apps = Some((&mut rules, editions));
    rules::add_apps(apps, &settings.apps, Certificates::Leave, &Files::default())?;
    let asked = matches.get_one::<String>("app");
    let app = asked.map(|name| find(&rules, name)).transpose()?;
    let of = Audience {
        rules: &rules,
        editions: app.and_then(|app| app.editions).unwrap_or(editions),
        app,
    };
    print(&match matches.get_flag("json") {
        true => json(of),
        false => text(of),
    })?;
    Ok(Ended::Good)
}

/// The known app of this name.
fn find<'r>(rules: &'r Ruleset, name: &str) -> Result<&'r App, AppError> {
    let folded = fold_app(name, rules.fold_app_names);
    rules.apps.find(&folded).ok_or_else(|| {
        let known = rules.apps.iter().flat_map(|app| &app.names);
        AppError::new(name, known.map(String::as_str))
    })
}

impl<'r> Audience<'r> {
    /// The address forms, and the edition of each: those in which the app has a name.
    fn forms(self) -> impl Iterator<Item = (Form, EditionId)> + 'r {
        let both = [
            (Form::AppKey, self.editions.0),
            (Form::AppId, self.editions.1),
        ];
        both.into_iter().filter(move |(form, _)| {
            self.app
                .is_none_or(|app| app.names.iter().any(|n| identity::form(n) == Some(*form)))
        })
    }

    fn limits(self, route: &Route, edition: EditionId) -> Vec<LimitId> {
        let limits: Option<&RouteLimits> = route.editions.get(edition.0);
        let limits = limits.map_or(&[][..], |limits| &limits.limits);
        let own = |id: &LimitId| self.app.map_or(*id, |app| app.limit(*id));
        limits.iter().map(own).collect()
    }

    /// What is known of the app, in a line, and whether others have limits of their own.
    fn note(self) -> Option<String> {
        let Some(app) = self.app else {
            let differ = |app: &&App| app.editions.is_some() || !app.limits.is_empty();
            let differ = self.rules.apps.iter().filter(differ).count();
            return (differ > 0).then(|| {
                format!(
                    "{differ} of {} known apps differ: floodgate routes --app NAME\n\n",
                    self.rules.apps.len()
                )
            });
        };
        let mut note = format!("app {}", app.names.join(", "));
        if let Some(plan) = app.plan {
            note.push_str(&format!("; plan {}", plan.as_str()));
        }
        if !app.allow.is_empty() {
            let allow: Vec<String> = app.allow.iter().map(ToString::to_string).collect();
            note.push_str(&format!("; from {} alone", allow.join(", ")));
        }
        if app.suspended {
            note.push_str("; suspended: each of its calls is answered by 403");
        }
        Some(note + "\n\n")
    }
}

fn prefix(form: Form) -> &'static str {
    match form {
        Form::AppKey => "/{org_name}/{app_name}",
        Form::AppId => "/app-id/{app_id}",
    }
}

/// The rows that print what holds: the edition's own; those of the edition whose figures it
/// takes; or, where no edition prints the route, all there are.
fn sources(route: &Route, edition: EditionId) -> &[Box<str>] {
    let printed = |id: EditionId| {
        route
            .editions
            .get(id.0)
            .map(|limits| &*limits.sources)
            .filter(|sources| !sources.is_empty())
    };
    let from = route.editions.get(edition.0).and_then(|limits| limits.from);
    printed(edition)
        .or_else(|| printed(from?))
        .unwrap_or(&route.sources)
}

fn json(of: Audience<'_>) -> String {
    let rules = of.rules;
    let mut list = Vec::new();
    for (form, edition) in of.forms() {
        for (nth, route) in rules.routes.iter().enumerate() {
            for (method, path) in &route.calls {
                list.push(RouteView {
                    route: &route.name,
                    edition: &rules.editions[edition.0].name,
                    method,
                    path: format!("{}{path}", prefix(form)),
                    limits: views(rules, &of.limits(route, edition)),
                    max_recipients: route.max_recipients,
                    max_body: route.max_body,
                    payload: payload(rules, RouteId(nth), edition),
                    totals: totals(route),
                    sources: sources(route, edition).iter().map(|s| &**s).collect(),
                });
            }
        }
    }
    super::show::json(&list)
}

/// The limits of what calls of a route may carry, each once.
fn payload(rules: &Ruleset, route: RouteId, edition: EditionId) -> Vec<&str> {
    let checks = rules.payloads.of(route, edition);
    let checks = checks.map_or(&[][..], |checked| checked.checks.rules());
    let named = checks
        .iter()
        .filter_map(|check| rules.payloads.limits.get(check.limit));
    once(named.map(|limit| &*limit.name))
}

/// What calls of a route make, each once.
fn totals(route: &Route) -> Vec<&str> {
    let makes = route.totals.makes.iter();
    once(makes.map(|rule| rule.kind.as_str()))
}

fn once<'r>(names: impl Iterator<Item = &'r str>) -> Vec<&'r str> {
    let mut list = Vec::new();
    for name in names {
        if !list.contains(&name) {
            list.push(name);
        }
    }
    list
}

fn text(of: Audience<'_>) -> String {
    let rules = of.rules;
    let mut text = of.note().unwrap_or_default();
    for (form, edition) in of.forms() {
        let name = &rules.editions[edition.0].name;
        text.push_str(&format!("{}  (edition {name})\n\n", prefix(form)));
        let mut rows = Vec::new();
        for (nth, route) in rules.routes.iter().enumerate() {
            let payload = payload(rules, RouteId(nth), edition);
            for (method, path) in &route.calls {
                rows.push(row(of, route, edition, [method, path], &payload));
            }
        }
        if rules.unmatched == Unmatched::DefaultLimit {
            rows.push(row(of, &rules.unmatched_route, edition, ["*", "*"], &[]));
        }
        text.push_str(&columns("  ", &rows));
        text.push('\n');
    }
    text.truncate(text.trim_end().len() + 1);
    text
}

fn row(
    of: Audience<'_>,
    route: &Route,
    edition: EditionId,
    call: [&str; 2],
    payload: &[&str],
) -> [String; 5] {
    // An address's copy of an app's figure is said in the same breath.
    let mut figures: Vec<(String, Vec<&str>)> = Vec::new();
    let mut group = None;
    for id in of.limits(route, edition) {
        let limit = of.rules.limit(id);
        group = group.or(limit.group.as_deref());
        let (quota, scope) = (quota(limit), limit.scope.as_str());
        match figures.iter_mut().find(|(known, _)| *known == quota) {
            Some((_, scopes)) => scopes.push(scope),
            None => figures.push((quota, vec![scope])),
        }
    }
    let mut limits: Vec<String> = figures
        .into_iter()
        .map(|(quota, scopes)| format!("{quota} per {}", scopes.join(" and ")))
        .collect();
    limits.extend(group.map(|group| format!("group {group}")));
    if let Some(max) = route.max_recipients {
        limits.push(format!("at most {max} recipients"));
    }
    let others = route.cost.iter().flat_map(|cost| cost.other_caps());
    limits.extend(others.map(|cap| format!("at most {} in `{}`", cap.max, cap.field)));
    limits.extend(
        route
            .max_body
            .map(|most| format!("body at most {}", size::show(most))),
    );
    for (what, names) in [("carries", payload), ("makes", &totals(route))] {
        limits.extend((!names.is_empty()).then(|| format!("{what} {}", names.join(" "))));
    }
    [
        call[0].to_owned(),
        call[1].to_owned(),
        route.name.to_string(),
        limits.join(", "),
        route.title.to_string(),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::cli::sample;

    fn all(rules: &Ruleset, editions: (EditionId, EditionId)) -> Audience<'_> {
        Audience {
            rules,
            editions,
            app: None,
        }
    }

    fn list(selection: &str) -> Vec<Value> {
        let rules = sample::rules();
        let editions = rules.selection(selection).unwrap();
        serde_json::from_str(&json(all(&rules, editions))).unwrap()
    }

    fn find<'l>(list: &'l [Value], path: &str) -> &'l Value {
        list.iter().find(|entry| entry["path"] == path).unwrap()
    }

    #[test]
    fn a_route_is_listed_in_both_address_forms_with_the_limits_of_each() {
        let list = list("current");
        let by_key = find(&list, "/{org_name}/{app_name}/users/{username}");
        assert_eq!(
            *by_key,
            json!({
                "route": "user-get",
                "edition": "v3",
                "method": "GET",
                "path": "/{org_name}/{app_name}/users/{username}",
                "limits": [
                    {"name": "user-get:calls/s:app", "unit": "calls", "quota": 100,
                     "window_s": 1, "scope": ["app"], "group": null},
                    {"name": "user-get:calls/s:ip", "unit": "calls", "quota": 100,
                     "window_s": 1, "scope": ["ip"], "group": null},
                ],
                "max_recipients": null,
                "max_body": null,
                "sources": ["002:10"],
            })
        );
        let by_id = find(&list, "/app-id/{app_id}/users/{username}");
        assert_eq!(by_id["edition"], "v4");
        assert_eq!(by_id["limits"][1]["scope"], json!(["app", "user"]));
        assert_eq!(by_id["limits"][1]["group"], "profile");
    }

    #[test]
    fn a_named_edition_holds_for_both_forms() {
        assert!(list("v4").iter().all(|entry| entry["edition"] == "v4"));
    }

    #[test]
    fn figures_of_another_edition_name_its_sources() {
        let list = list("v3");
        let send = find(&list, "/{org_name}/{app_name}/messages/users");
        assert_eq!(send["sources"], json!(["001:16"]));
        assert_eq!(send["max_recipients"], 3);
        let token = find(&list, "/{org_name}/{app_name}/token");
        assert_eq!(token["sources"], json!(["004:1"]));
    }

    #[test]
    fn the_text_has_titles_and_the_paths_that_no_document_has() {
        let rules = sample::rules();
        let text = text(all(&rules, rules.selection("current").unwrap()));
        assert!(text.contains("获取用户"), "{text}");
        assert!(text.contains("100 calls/s per app and ip"), "{text}");
        assert!(
            text.contains("5 calls/min per user, group profile"),
            "{text}"
        );
        assert!(
            text.contains("at most 3 recipients, at most 1 in `rooms`"),
            "{text}"
        );
        assert_eq!(text.matches("\n  *  ").count(), 2, "{text}");
    }
}
