//! The admin listener: metrics, health, tasks, and what others do with the counters. Bound to
//! loopback unless told otherwise.

mod charge;
mod guard;
mod once;
mod plan;
mod receipts;
mod reload;
mod reset;
mod serve;
mod top;

use std::sync::Arc;

use axum::extract::{FromRef, Path, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router, middleware};
use serde_json::json;

pub use self::receipts::Receipts;
pub use self::serve::serve;
use crate::gateway::{Live, Shared};
use crate::settings::Settings;
use crate::store::redis::RedisStore;

/// Each request is answered by what calls go by when it begins.
impl FromRef<Live> for Arc<Shared> {
    fn from_ref(live: &Live) -> Self {
        live.now()
    }
}

/// The listener's routes.
pub fn router(live: Live) -> Router {
    let guarded = Router::new()
        .route("/charge", post(charge::charge))
        .route("/charge/give-back", post(charge::give_back))
        .route("/counters/reset", post(reset::reset))
        .route("/plan/import", post(plan::import))
        .route("/plan/listing", post(plan::begin))
        .route("/plan/listing/end", post(plan::end))
        .route("/reload", post(reload::reload))
        .route_layer(middleware::from_fn_with_state(live.clone(), guard::token));
    let tasks = Router::new()
        .route("/apps/{app}/tasks/{task}", delete(finish_task))
        .route_layer(middleware::from_fn_with_state(live.clone(), guard::task));
    let reads = Router::new()
        .route("/top", get(top::top))
        .route("/peers", get(top::peers))
        .route("/plan", get(plan::show))
        .route("/reload", get(reload::state))
        .route("/metrics", get(metrics))
        .route_layer(middleware::from_fn_with_state(live.clone(), guard::read));
    Router::new()
        .merge(guarded)
        .merge(tasks)
        .merge(reads)
        .layer(middleware::from_fn_with_state(live.clone(), guard::page))
        // Probes call by any name, and learn nothing else.
        .route("/live", get(|| async { "live\n" }))
        .route("/ready", get(ready))
        .with_state(live)
}

/// Says so where everybody who reaches the listener may read what it tells.
pub fn warn_if_open(settings: &Settings) {
    if !settings.admin.ip().is_loopback() && !settings.admin_token_for_all {
        tracing::warn!(
            admin = %settings.admin,
            "the admin listener is not on loopback, and tells without a token who calls and how often; \
             set admin_auth = \"all\" and admin_token_file, or let only operators reach it"
        );
    }
}

fn error(status: StatusCode, why: impl Into<String>) -> Response {
    (status, Json(json!({ "error": why.into() }))).into_response()
}

async fn metrics(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    shared.upstreams.show();
    let totals = plan::metrics(&shared).await;
    (
        [(CONTENT_TYPE, prometheus::TEXT_FORMAT)],
        totals
            + &shared.metrics.render(
                shared.gauges(),
                shared
                    .admission
                    .store()
                    .shared()
                    .map(RedisStore::shared_gauges),
                shared.in_flight(),
                shared.upstream_waiting(),
                shared.connections(),
            ),
    )
}

async fn ready(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    let requires = shared.settings.ready_requires;
    let store = shared.admission.store().shared();
    let reason = if shared.is_draining() {
        "draining\n".to_owned()
    } else if requires.store && store.is_some_and(|store| !store.shared_gauges().is_up) {
        "the counter store is away\n".to_owned()
    } else if let Some((pool, of)) = shared.upstreams.unwell().filter(|_| requires.upstream) {
        format!("pool {pool}: none of {of} upstream addresses is well\n")
    } else {
        return (StatusCode::OK, "ready\n".to_owned());
    };
    (StatusCode::SERVICE_UNAVAILABLE, reason)
}

/// `{app}` is `org#app` or the App ID as answers, log and `explain` print it, percent-encoded
/// (`o%23a`; a `%` of the name as `%25`). Other spellings of a name name the same app.
async fn finish_task(
    State(shared): State<Arc<Shared>>,
    Path((app, task)): Path<(String, String)>,
) -> impl IntoResponse {
    let freed = match shared.finish_task(&app, &task).await {
        Ok(freed) => freed,
        Err(error) => {
            let error = format!("{error}: the task may still hold slots; report it again");
            return (
                StatusCode::SERVICE_UNAVAILABLE,
                Json(json!({ "app": app, "task": task, "freed": false, "error": error })),
            );
        }
    };
    if freed {
        (
            StatusCode::OK,
            Json(json!({ "app": app, "task": task, "freed": true })),
        )
    } else {
        let error = "no slot of this app is held by this task: it has ended, expired, or its limit has hold = \"response\"";
        (
            StatusCode::NOT_FOUND,
            Json(json!({ "app": app, "task": task, "freed": false, "error": error })),
        )
    }
}
