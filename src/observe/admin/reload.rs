//! `POST /reload`: settings, routes, apps and certificates are read again. `GET /reload`: what
//! became of the last time.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use serde_json::json;

use super::error;
use crate::gateway::Shared;
use crate::observe::reloads::AskError;

pub(super) async fn state(State(shared): State<Arc<Shared>>) -> Response {
    Json(shared.reloads.report()).into_response()
}

pub(super) async fn reload(State(shared): State<Arc<Shared>>) -> Response {
    let lasting = shared.lasting().clone();
    // Not to be held until the end of what replaces it.
    drop(shared);
    match lasting.reloads.ask().await {
        Ok(report) => {
            let status = match report.has_failed() {
                true => StatusCode::UNPROCESSABLE_ENTITY,
                false => StatusCode::OK,
            };
            let mut body = json!(report);
            if report.has_failed() {
                body["error"] = json!("nothing of it is in use: see last.mistakes");
            }
            (status, Json(body)).into_response()
        }
        Err(why @ AskError::Never) => error(StatusCode::NOT_IMPLEMENTED, why.to_string()),
        Err(why @ AskError::Full) => error(StatusCode::SERVICE_UNAVAILABLE, why.to_string()),
    }
}
