//! `GET /plan`: the totals of an app. `POST /plan/import`: what they are. `POST /plan/listing` and
//! `/plan/listing/end`: a listing of the backend's begins, and has ended with so many.
//! `floodgate plan` speaks to these.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::Response;
use futures_util::future::join_all;
use serde::Deserialize;
use serde_json::{Value, json};

use super::once::once;
use super::{error, guard};
use crate::admission::totals::{fold_holder, is_kept, key, known};
use crate::apps::App;
use crate::gateway::Shared;
use crate::limit::total::{Change, Holder, Kind, MOST, Total};
use crate::limit::{CounterKey, Mode};
use crate::spec::EditionId;
use crate::spec::check::suggestion;

/// Apps whose totals are among the metrics, at most: each has a few series.
const MOST_IN_METRICS: usize = 200;

/// By kind.
type Counts = BTreeMap<String, u64>;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Shown {
    app: String,
    user: Option<String>,
    group: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Import {
    app: String,
    #[serde(default, deserialize_with = "once")]
    totals: Counts,
    /// Of users, by name.
    #[serde(default, deserialize_with = "once")]
    users: BTreeMap<String, Each>,
    /// Of groups, by ID.
    #[serde(default, deserialize_with = "once")]
    groups: BTreeMap<String, Each>,
}

/// Of one user or group.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
struct Each(#[serde(deserialize_with = "once")] Counts);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Begin {
    app: String,
    total: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct End {
    app: String,
    total: String,
    round: u32,
    listed: u64,
}

/// An app whose totals are kept.
struct Known<'s> {
    shared: &'s Shared,
    app: &'s App,
    edition: EditionId,
}

impl<'s> Known<'s> {
    #[expect(
        clippy::result_large_err,
        reason = "an answer, and not on the hot path"
    )]
    fn find(shared: &'s Shared, name: &str) -> Result<Self, Response> {
        let found = known(&shared.rules, &shared.policy, name);
        let (app, edition) = found.ok_or_else(|| {
            let why = format!(
                "no totals are kept for app {name:?}: give it a plan in a file of apps (plan = \"basic\")"
            );
            error(StatusCode::NOT_FOUND, why)
        })?;
        Ok(Self {
            shared,
            app,
            edition,
        })
    }

    fn now_s(&self) -> u64 {
        self.shared.clock.now().unix_us / 1_000_000
    }

    async fn change(&self, changes: &[(CounterKey, Change)]) -> Result<Vec<Total>, Response> {
        let now = self.shared.clock.now();
        let admission = &self.shared.admission;
        let changed = admission.change_totals(self.app.key, changes, now).await;
        changed.map_err(|why| {
            let reads = changes.iter().all(|(_, change)| *change == Change::Read);
            let what = if reads {
                "totals cannot be read"
            } else {
                "not all totals were changed"
            };
            let why = format!("{why}: {what}; ask again");
            error(StatusCode::SERVICE_UNAVAILABLE, why)
        })
    }

    /// Whether a total can be so many, and is kept at all.
    fn takes(&self, kind: Kind, count: u64) -> Result<Kind, String> {
        let name = kind.as_str();
        if count > MOST {
            return Err(format!("{name}: {count} is too many; the most is {MOST}"));
        }
        let held = self.shared.rules.held(self.app, self.edition, kind);
        held.map(|_| kind).ok_or_else(|| {
            let app = self.app.name();
            format!(
                "{name} is not kept for app {app}: its plan has no figure for it, or [totals] has it off"
            )
        })
    }

    /// A total as it is shown.
    fn view(&self, kind: Kind, total: &Total) -> Value {
        let held = self.shared.rules.held(self.app, self.edition, kind);
        let age_s = self.now_s().saturating_sub(total.checked_s);
        let is_fresh = total.checked_s > 0 && age_s <= self.shared.plan_max_age_us() / 1_000_000;
        let sources = held.and_then(|held| held.figures).map(|f| &f.sources);
        let figure = held.map(|held| held.most);
        let never = figure == Some(0);
        json!({
            "total": kind.as_str(),
            "count": total.count,
            "figure": figure.filter(|most| *most != u64::MAX),
            "approximate": total.approximate || kind.is_approximate(),
            "checked": (total.checked_s > 0).then_some(total.checked_s),
            "age_s": (total.checked_s > 0).then_some(age_s),
            "mode": held.map_or("off", |held| match held.mode {
                Mode::Enforce => "enforce",
                Mode::Report => "report",
                Mode::Off => "off",
            }),
            "enforced": (is_fresh || never) && figure.is_some_and(|most| most != u64::MAX)
                && held.is_some_and(|held| held.mode == Mode::Enforce),
            "listing": total.is_being_listed(),
            "sources": sources,
        })
    }
}

pub(super) async fn show(
    State(shared): State<Arc<Shared>>,
    asked: Result<Query<Shown>, QueryRejection>,
) -> Response {
    let work = async {
        let Query(asked) = asked.map_err(|why| error(StatusCode::BAD_REQUEST, why.body_text()))?;
        let known = Known::find(&shared, &asked.app)?;
        let (holder, whose) = match (&asked.user, &asked.group) {
            (None, None) => (Holder::App, ""),
            (Some(user), None) => (Holder::User, &**user),
            (None, Some(group)) => (Holder::Group, &**group),
            (Some(_), Some(_)) => {
                let why = "whose totals? write `user` or `group`, or neither for the app's";
                return Err(error(StatusCode::BAD_REQUEST, why));
            }
        };
        let kinds = Kind::ALL.into_iter().filter(|kind| kind.holder() == holder);
        let kinds: Vec<Kind> = kinds.collect();
        let whose = fold_holder(whose);
        if whose.is_empty() && holder != Holder::App {
            let why = "whose totals? the user or group has no name";
            return Err(error(StatusCode::BAD_REQUEST, why));
        }
        let keys = kinds.iter().map(|kind| key(*kind, known.app, &whose));
        let reads: Vec<_> = keys.map(|key| (key, Change::Read)).collect();
        let totals = known.change(&reads).await?;
        let views = kinds.iter().zip(&totals);
        let views: Vec<Value> = views
            .map(|(kind, total)| known.view(*kind, total))
            .collect();
        Ok(json!({
            "app": known.app.name(),
            "user": asked.user,
            "group": asked.group,
            "plan": known.app.plan.map(|plan| plan.as_str()),
            "totals": views,
        }))
    };
    answered(work.await)
}

fn answered(result: Result<Value, Response>) -> Response {
    match result {
        Ok(body) => guard::answer(StatusCode::OK, body),
        Err(response) => response,
    }
}

async fn read<T: serde::de::DeserializeOwned>(shared: &Shared, body: Body) -> Result<T, Response> {
    let body = guard::body(shared, body).await?;
    guard::json(&body)
}

/// The kind of this name that this holder has.
fn kind_of(name: &str, holder: Holder) -> Result<Kind, String> {
    let word = match holder {
        Holder::App => "an app",
        Holder::User => "a user",
        Holder::Group => "a group",
    };
    let own = || Kind::ALL.into_iter().filter(|kind| kind.holder() == holder);
    own().find(|kind| kind.as_str() == name).ok_or_else(|| {
        let known = suggestion(name, own().map(Kind::as_str));
        format!("{name:?} is no total of {word}; {known}")
    })
}

pub(super) async fn import(State(shared): State<Arc<Shared>>, body: Body) -> Response {
    let work = async {
        let asked: Import = read(&shared, body).await?;
        let known = Known::find(&shared, &asked.app)?;
        let now_s = known.now_s();
        let app = (Holder::App, "", &asked.totals);
        let users = asked.users.iter().map(|(n, c)| (Holder::User, &**n, &c.0));
        let groups = asked
            .groups
            .iter()
            .map(|(n, c)| (Holder::Group, &**n, &c.0));
        let (mut changes, mut wrong) = (Vec::new(), Vec::new());
        let mut named = HashSet::new();
        for (holder, name, counts) in std::iter::once(app).chain(users).chain(groups) {
            let whose = fold_holder(name);
            if whose.is_empty() && holder != Holder::App {
                wrong.push("a user or group has no name".to_owned());
                continue;
            }
            for (total, count) in counts {
                let count = *count;
                let kind = kind_of(total, holder).and_then(|kind| known.takes(kind, count));
                let change = kind.map(|kind| (key(kind, known.app, &whose), count));
                match change {
                    Ok((key, _)) if !named.insert(key) => {
                        wrong.push(format!("{total} of {name:?} is there twice"));
                    }
                    Ok((key, count)) => changes.push((key, Change::Set { count, now_s })),
                    Err(why) => wrong.push(why),
                }
            }
        }
        if changes.is_empty() && wrong.is_empty() {
            wrong.push("nothing to import; write e.g. totals: { users: 42 }".to_owned());
        }
        if !wrong.is_empty() {
            return Err(error(StatusCode::BAD_REQUEST, wrong.join("; ")));
        }
        known.change(&changes).await?;
        tracing::info!(
            app = known.app.name(),
            totals = changes.len(),
            "totals were imported"
        );
        Ok(json!({ "app": known.app.name(), "imported": changes.len() }))
    };
    answered(work.await)
}

pub(super) async fn begin(State(shared): State<Arc<Shared>>, body: Body) -> Response {
    let work = async {
        let asked: Begin = read(&shared, body).await?;
        let known = Known::find(&shared, &asked.app)?;
        let kind = kind_of(&asked.total, Holder::App)
            .and_then(|kind| known.takes(kind, 0))
            .map_err(|why| error(StatusCode::BAD_REQUEST, why))?;
        let key = key(kind, known.app, "");
        let now_s = known.now_s();
        let totals = known.change(&[(key, Change::Begin { now_s })]).await?;
        let total = totals.first().copied().unwrap_or_default();
        Ok(json!({
            "app": known.app.name(),
            "round": total.round(),
            "before": known.view(kind, &total),
        }))
    };
    answered(work.await)
}

pub(super) async fn end(State(shared): State<Arc<Shared>>, body: Body) -> Response {
    let work = async {
        let asked: End = read(&shared, body).await?;
        let known = Known::find(&shared, &asked.app)?;
        let kind = kind_of(&asked.total, Holder::App)
            .and_then(|kind| known.takes(kind, asked.listed))
            .map_err(|why| error(StatusCode::BAD_REQUEST, why))?;
        let end = Change::End {
            round: asked.round,
            listed: asked.listed,
            now_s: known.now_s(),
        };
        let key = key(kind, known.app, "");
        let totals = known.change(&[(key, end)]).await?;
        let total = totals.first().copied().unwrap_or_default();
        if !total.goes_by(asked.round) || total.is_being_listed() || total.checked_s == 0 {
            let why = "this listing has not begun, or another or an import has come between; nothing was changed";
            return Err(error(StatusCode::CONFLICT, why));
        }
        tracing::info!(
            app = known.app.name(),
            total = kind.as_str(),
            listed = asked.listed,
            count = total.count,
            "a total was reconciled"
        );
        Ok(json!({ "app": known.app.name(), "after": known.view(kind, &total) }))
    };
    answered(work.await)
}

/// The totals of apps, as metrics.
pub(super) async fn metrics(shared: &Shared) -> String {
    let kept = shared.rules.apps.iter().filter(|app| is_kept(app));
    let apps: Vec<Known<'_>> = kept
        .take(MOST_IN_METRICS)
        .filter_map(|app| {
            let (app, edition) = known(&shared.rules, &shared.policy, app.name())?;
            Some(Known {
                shared,
                app,
                edition,
            })
        })
        .collect();
    let own = || {
        Kind::ALL
            .into_iter()
            .filter(|kind| kind.holder() == Holder::App)
    };
    let read = join_all(apps.iter().map(|known| async move {
        let keys = own().map(|kind| (key(kind, known.app, ""), Change::Read));
        known.change(&keys.collect::<Vec<_>>()).await.ok()
    }));
    let [mut counts, mut figures, mut checks] = [const { String::new() }; 3];
    for (known, totals) in apps.iter().zip(read.await) {
        let app = known.app.name().replace('\\', "\\\\").replace('"', "\\\"");
        for (kind, total) in own().zip(totals.iter().flatten()) {
            let Some(held) = shared.rules.held(known.app, known.edition, kind) else {
                continue;
            };
            let approximate = total.approximate || kind.is_approximate();
            let name = kind.as_str();
            let _ = writeln!(
                counts,
                "floodgate_plan_total{{app=\"{app}\",total=\"{name}\",approximate=\"{approximate}\"}} {}",
                total.count
            );
            let labels = format!("{{app=\"{app}\",total=\"{name}\"}}");
            if held.most != u64::MAX {
                let _ = writeln!(figures, "floodgate_plan_figure{labels} {}", held.most);
            }
            let checked = total.checked_s;
            let _ = writeln!(
                checks,
                "floodgate_plan_checked_timestamp_seconds{labels} {checked}"
            );
        }
    }
    let mut text = String::new();
    for (name, help, lines) in [
        (
            "floodgate_plan_total",
            "How many users, groups, … an app has, as far as is known.",
            counts,
        ),
        (
            "floodgate_plan_figure",
            "How many of them its plan allows; none: any number.",
            figures,
        ),
        (
            "floodgate_plan_checked_timestamp_seconds",
            "When the total was last imported or reconciled, Unix seconds; 0: never.",
            checks,
        ),
    ] {
        if !lines.is_empty() {
            let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} gauge\n{lines}");
        }
    }
    text
}
