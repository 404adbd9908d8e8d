//! The admin listener: metrics, health, tasks. Bound to loopback unless told otherwise.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::{delete, get};
use axum::{Json, Router};
use serde_json::json;

use crate::gateway::Shared;
use crate::store::redis::RedisStore;

/// The listener's routes.
pub fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/live", get(|| async { "live\n" }))
        .route("/ready", get(ready))
        .route("/apps/{app}/tasks/{task}", delete(finish_task))
        .with_state(shared)
}

async fn metrics(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    (
        [(CONTENT_TYPE, prometheus::TEXT_FORMAT)],
        shared.metrics.render(
            shared.gauges(),
            shared
                .admission
                .store()
                .shared()
                .map(RedisStore::shared_gauges),
            shared.in_flight(),
        ),
    )
}

async fn ready(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    if shared.is_draining() {
        (StatusCode::SERVICE_UNAVAILABLE, "draining\n")
    } else {
        (StatusCode::OK, "ready\n")
    }
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
