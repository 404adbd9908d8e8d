//! `GET /top`: who hits which limit. `GET /peers`: who shares the store.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use futures_util::future::join_all;
use serde::Deserialize;
use serde_json::{Value, json};

use super::error;
use crate::gateway::Shared;
use crate::limit::{LimitId, Scope};
use crate::observe::top::{HALF_LIFE_US, Hitter, Name, by_pressure, heard};
use crate::spec::check::suggestion;

/// The most rows of an answer.
const MOST: usize = 100;
/// Callers whose counters are looked at, for each row of the answer.
const CANDIDATES: usize = 4;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    limit: Option<String>,
    by: Option<By>,
    #[serde(default = "ten")]
    n: usize,
}

fn ten() -> usize {
    10
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum By {
    App,
    User,
    Ip,
}

impl By {
    fn scope(self) -> Scope {
        match self {
            Self::App => Scope::App,
            Self::User => Scope::User,
            Self::Ip => Scope::Ip,
        }
    }
}

pub(super) async fn top(
    State(shared): State<Arc<Shared>>,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Response {
    let asked = match asked {
        Ok(Query(asked)) => asked,
        Err(why) => {
            let why = format!(
                "{}; write limit=NAME, by=app|user|ip, n=1..{MOST}",
                why.body_text()
            );
            return error(StatusCode::BAD_REQUEST, why);
        }
    };
    if !(1..=MOST).contains(&asked.n) {
        return error(StatusCode::BAD_REQUEST, format!("n: not from 1 to {MOST}"));
    }
    let rules = &shared.rules;
    if let Some(name) = &asked.limit
        && !rules.limits.iter().any(|limit| *limit.name == **name)
    {
        let near = suggestion(name, rules.limits.iter().map(|limit| &*limit.name));
        return error(
            StatusCode::BAD_REQUEST,
            format!("unknown limit {name:?}; {near}"),
        );
    }
    let is_asked = |id: LimitId| {
        let limit = rules.limit(id);
        asked
            .limit
            .as_ref()
            .is_none_or(|name| *limit.name == **name)
            && asked.by.is_none_or(|by| limit.scope == by.scope())
    };
    let now = shared.clock.now();
    let mut all = shared.top.list(MOST, is_asked, now);
    let mut missing = Vec::new();
    if let Some(store) = shared.admission.store().shared() {
        let gateways = store.shared_gauges();
        let news = store.news(now).await.unwrap_or_default();
        let told: HashSet<&str> = news.iter().map(|(gateway, _)| &**gateway).collect();
        let others = || {
            gateways
                .gateways
                .iter()
                .filter(|one| **one != gateways.gateway)
        };
        missing.extend(others().filter(|one| !told.contains(&***one)).cloned());
        for (gateway, told) in news.iter() {
            if *gateway != gateways.gateway {
                all.extend(heard(rules, told).into_iter().filter(|h| is_asked(h.limit)));
            }
        }
    }
    let mut hitters = merge(all);
    by_pressure(&mut hitters, rules);
    hitters.truncate(asked.n * CANDIDATES);
    let left = look(&shared, &hitters).await;
    let mut rows: Vec<(Hitter, Option<u32>)> = hitters.into_iter().zip(left).collect();
    // Those that were denied come first; of the others those with the smallest share left.
    rows.sort_by(|(a, a_left), (b, b_left)| {
        let share = |one: &Hitter, left: &Option<u32>, other: &Hitter| {
            let left = left.unwrap_or(rules.limit(one.limit).quota.get());
            u64::from(left) * u64::from(rules.limit(other.limit).quota.get())
        };
        b.denied
            .cmp(&a.denied)
            .then_with(|| share(a, a_left, b).cmp(&share(b, b_left, a)))
    });
    rows.truncate(asked.n);
    let rows: Vec<Value> = rows
        .into_iter()
        .map(|(hitter, left)| row(&shared, &hitter, left))
        .collect();
    Json(json!({
        "half_life_s": HALF_LIFE_US / 1_000_000,
        "silent_gateways": missing,
        "top": rows,
    }))
    .into_response()
}

/// Units left in their counters. `None`: the store cannot be asked.
async fn look(shared: &Shared, hitters: &[Hitter]) -> Vec<Option<u32>> {
    let (rules, admission) = (&shared.rules, &shared.admission);
    let store = admission.store().shared();
    if store.is_some_and(|store| !store.shared_gauges().is_up) {
        // A share of this gateway's would say little.
        return vec![None; hitters.len()];
    }
    // The news may have taken their time.
    let now = shared.clock.now();
    let looks = hitters.iter().map(|hitter| async move {
        let owner = hitter.name.owner();
        admission.left(rules, hitter.limit, owner, now).await.ok()
    });
    join_all(looks).await
}

/// One entry for each limit's name and caller.
fn merge(all: Vec<Hitter>) -> Vec<Hitter> {
    let mut merged: HashMap<(LimitId, Name), Hitter> = HashMap::new();
    for hitter in all {
        merged
            .entry((hitter.limit, hitter.name.clone()))
            .and_modify(|sum| {
                sum.units = sum.units.saturating_add(hitter.units);
                sum.denied = sum.denied.saturating_add(hitter.denied);
            })
            .or_insert(hitter);
    }
    merged.into_values().collect()
}

fn row(shared: &Shared, hitter: &Hitter, left: Option<u32>) -> Value {
    let limit = shared.rules.limit(hitter.limit);
    let quota = limit.quota.get();
    let mut row = json!({
        "limit": limit.name,
        "by": limit.scope.as_str(),
        "units": hitter.units,
        "denied": hitter.denied,
        "quota": quota,
        "used": left.map(|left| quota.saturating_sub(left)),
        "left": left,
    });
    match &hitter.name {
        Name::App(app) => row["app"] = json!(app),
        Name::User(app, user) => {
            row["app"] = json!(app);
            row["user"] = json!(user);
        }
        Name::Ip(ip) => row["ip"] = json!(ip),
    }
    row
}

pub(super) async fn peers(State(shared): State<Arc<Shared>>) -> Response {
    let Some(store) = shared.admission.store().shared() else {
        return Json(json!({
            "store": "memory", "up": true, "times_down": 0, "epochs": [],
            "gateway": null, "gateways": [],
        }))
        .into_response();
    };
    let gauges = store.shared_gauges();
    Json(json!({
        "store": "redis",
        "up": gauges.is_up,
        "times_down": gauges.times_down,
        "epochs": gauges.epochs.iter().map(|epoch| epoch.as_deref()).collect::<Vec<_>>(),
        "gateway": gauges.gateway,
        "gateways": *gauges.gateways,
    }))
    .into_response()
}
