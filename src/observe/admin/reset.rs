//! `POST /counters/reset`: counters of a caller are empty again.

use std::net::IpAddr;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Deserialize;
use serde_json::json;

use super::{error, guard};
use crate::admission::Owner;
use crate::gateway::Shared;
use crate::identity::address::prefix;
use crate::limit::{LimitId, Scope};
use crate::spec::Ruleset;
use crate::spec::check::suggestion;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    app: Option<String>,
    user: Option<String>,
    ip: Option<IpAddr>,
    limit: Option<String>,
}

impl Asked {
    /// Whose counters. One of app, app and user, address.
    fn owner(&self, ipv6_prefix: u8) -> Result<Owner<'_>, &'static str> {
        match (self.app.as_deref(), self.user.as_deref(), self.ip) {
            (Some(app), None, None) if !app.is_empty() => Ok(Owner::App(app)),
            (Some(app), Some(user), None) if !app.is_empty() && !user.is_empty() => {
                Ok(Owner::User(app, user))
            }
            (None, None, Some(ip)) => Ok(Owner::Ip(prefix(ip, ipv6_prefix))),
            _ => Err("whose counters? write `app`, `app` and `user`, or `ip`"),
        }
    }
}

/// The limits to reset: the one of this name, or all that keep counters for this owner.
fn limits(rules: &Ruleset, owner: Owner<'_>, name: Option<&str>) -> Result<Vec<LimitId>, String> {
    let all = || (0..).map(LimitId).zip(&rules.limits);
    let scope = owner.scope();
    let Some(name) = name else {
        let kept = all().filter(|(_, limit)| limit.scope == scope);
        return Ok(kept.map(|(id, _)| id).collect());
    };
    let named: Vec<LimitId> = all()
        .filter(|(_, limit)| &*limit.name == name)
        .map(|(id, _)| id)
        .collect();
    match named.first().map(|id| rules.limit(*id).scope) {
        None => Err(format!(
            "unknown limit {name:?}; {}",
            suggestion(name, rules.limits.iter().map(|limit| &*limit.name))
        )),
        Some(of) if of != scope => Err(format!(
            "limit {name:?} counts by {}: write {}",
            of.as_str(),
            match of {
                Scope::App => "`app` alone",
                Scope::User => "`app` and `user`",
                Scope::Ip => "`ip` alone",
            }
        )),
        Some(_) => Ok(named),
    }
}

pub(super) async fn reset(State(shared): State<Arc<Shared>>, body: Body) -> Response {
    let asked = match guard::body(&shared, body).await {
        Ok(body) => guard::json::<Asked>(&body),
        Err(response) => Err(response),
    };
    let asked = match asked {
        Ok(asked) => asked,
        Err(response) => return response,
    };
    let owner = match asked.owner(shared.policy.ipv6_prefix) {
        Ok(owner) => owner,
        Err(why) => return error(StatusCode::BAD_REQUEST, why),
    };
    let limits = match limits(&shared.rules, owner, asked.limit.as_deref()) {
        Ok(limits) => limits,
        Err(why) => return error(StatusCode::BAD_REQUEST, why),
    };
    let now = shared.clock.now();
    if let Err(why) = shared
        .admission
        .reset(&shared.rules, &limits, owner, now)
        .await
    {
        let why = format!("{why}: not all counters were reset; ask again");
        return error(StatusCode::SERVICE_UNAVAILABLE, why);
    }
    tracing::info!(?owner, limit = asked.limit, "counters were reset");
    let mut names: Vec<&str> = limits
        .iter()
        .map(|id| &*shared.rules.limit(*id).name)
        .collect();
    names.sort_unstable();
    names.dedup();
    guard::answer(StatusCode::OK, json!({ "reset": names }))
}
