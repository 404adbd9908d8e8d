//! `floodgate routes`: every call, and the limits that hold for it.

use std::ffi::OsString;

use clap::ArgMatches;
use serde::Serialize;

use super::show::{LimitView, columns, quota, views};
use super::{CliError, Ended, Purpose, load, print, rules};
use crate::limit::LimitId;
use crate::route::Form;
use crate::spec::size;
use crate::spec::{EditionId, Route, RouteLimits, Ruleset, Unmatched};

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
    sources: Vec<&'r str>,
}

pub(super) fn run(matches: &ArgMatches, env: &[(OsString, OsString)]) -> Result<Ended, CliError> {
    let settings = load(matches, env, Purpose::Look)?;
    let rules = rules::load(&settings.routes)?;
    let editions = rules::selection(&rules, &settings.edition)?;
    print(&match matches.get_flag("json") {
        true => json(&rules, editions),
        false => text(&rules, editions),
    })?;
    Ok(Ended::Good)
}

/// How the address forms begin, and the edition of each.
fn forms(editions: (EditionId, EditionId)) -> [(Form, EditionId); 2] {
    [(Form::AppKey, editions.0), (Form::AppId, editions.1)]
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

fn limits_of(route: &Route, edition: EditionId) -> &[LimitId] {
    let limits: Option<&RouteLimits> = route.editions.get(edition.0);
    limits.map_or(&[], |limits| &limits.limits)
}

fn json(rules: &Ruleset, editions: (EditionId, EditionId)) -> String {
    let mut list = Vec::new();
    for (form, edition) in forms(editions) {
        for route in &rules.routes {
            for (method, path) in &route.calls {
                list.push(RouteView {
                    route: &route.name,
                    edition: &rules.editions[edition.0].name,
                    method,
                    path: format!("{}{path}", prefix(form)),
                    limits: views(rules, limits_of(route, edition)),
                    max_recipients: route.max_recipients,
                    max_body: route.max_body,
                    sources: sources(route, edition).iter().map(|s| &**s).collect(),
                });
            }
        }
    }
    super::show::json(&list)
}

fn text(rules: &Ruleset, editions: (EditionId, EditionId)) -> String {
    let mut text = String::new();
    for (form, edition) in forms(editions) {
        let name = &rules.editions[edition.0].name;
        text.push_str(&format!("{}  (edition {name})\n\n", prefix(form)));
        let mut rows = Vec::new();
        for route in &rules.routes {
            for (method, path) in &route.calls {
                rows.push(row(rules, route, edition, [method, path]));
            }
        }
        if rules.unmatched == Unmatched::DefaultLimit {
            rows.push(row(rules, &rules.unmatched_route, edition, ["*", "*"]));
        }
        text.push_str(&columns("  ", &rows));
        text.push('\n');
    }
    text.truncate(text.trim_end().len() + 1);
    text
}

fn row(rules: &Ruleset, route: &Route, edition: EditionId, call: [&str; 2]) -> [String; 5] {
    // An address's copy of an app's figure is said in the same breath.
    let mut figures: Vec<(String, Vec<&str>)> = Vec::new();
    let mut group = None;
    for id in limits_of(route, edition) {
        let limit = rules.limit(*id);
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

    fn list(selection: &str) -> Vec<Value> {
        let rules = sample::rules();
        let editions = rules.selection(selection).unwrap();
        serde_json::from_str(&json(&rules, editions)).unwrap()
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
        let text = text(&rules, rules.selection("current").unwrap());
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
