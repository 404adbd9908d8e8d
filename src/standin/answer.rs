//! The service's answers (`service.md` of the documents), without its memory.

use http::request::Parts;
use http::{Method, StatusCode};
use serde_json::{Map, Value, json};

use crate::route::Form;
use crate::route::canonical::split_app;

/// Status and JSON body for a request; `id` is new for each.
pub(super) fn answer(head: &Parts, body: &[u8], id: u64) -> (StatusCode, String) {
    let path = head.uri.path();
    let Some((app, tail)) = split_app(path) else {
        return error(
            StatusCode::NOT_FOUND,
            "organization_application_not_found",
            &format!("Could not find application for org/app from URI: {path}"),
        );
    };
    let token = head
        .headers
        .get("authorization")
        .and_then(|value| value.to_str().ok());
    if token == Some("Bearer bad") {
        return error(
            StatusCode::UNAUTHORIZED,
            "auth_bad_access_token",
            "Unable to authenticate due to corrupt access token",
        );
    }
    let body: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
    let segments: Vec<&str> = tail.split('/').skip(1).collect();
    let mut answer = Map::new();
    answer.insert("action".into(), json!(head.method.as_str().to_lowercase()));
    answer.insert("path".into(), json!(tail));
    answer.insert("uri".into(), json!(format!("https://stand-in{path}")));
    answer.insert("timestamp".into(), json!(1_700_000_000_000_u64 + id));
    answer.insert("duration".into(), json!(1));
    match app.form {
        Form::AppKey => {
            let (org, name) = app.name.split_once('#').unwrap_or((&app.name, ""));
            answer.insert("organization".into(), json!(org));
            answer.insert("applicationName".into(), json!(name));
        }
        Form::AppId => {
            answer.insert("applicationName".into(), json!(app.name));
        }
    }
    let (key, value) = content(&head.method, &segments, &body, id);
    answer.insert(key.into(), value);
    (StatusCode::OK, Value::Object(answer).to_string())
}

fn content(method: &Method, segments: &[&str], body: &Value, id: u64) -> (&'static str, Value) {
    let message_ids = |field: &str| {
        let ids = body[field].as_array().into_iter().flatten().enumerate();
        let ids = ids.map(|(nth, to)| {
            let to = to.as_str().map_or_else(|| to.to_string(), str::to_owned);
            (to, json!(format!("{id}{nth:03}")))
        });
        Value::Object(ids.collect())
    };
    let user = |name: &Value| json!({ "uuid": format!("00000000-0000-0000-0000-{id:012}"), "type": "user", "username": name, "activated": true });
    match (method.as_str(), segments) {
        ("POST", ["token"]) => ("access_token", json!(format!("YWMt{id:032}"))),
        ("POST", ["messages", "chatgroups", "users"]) => ("data", message_ids("users")),
        ("POST", ["messages"]) => ("data", message_ids("target")),
        ("POST", ["messages", "users" | "chatgroups" | "chatrooms"]) => ("data", message_ids("to")),
        ("POST", ["messages", _, "broadcast"]) => ("data", json!({ "id": id.to_string() })),
        ("POST", ["push", "list", "label"]) => (
            "data",
            json!({ "taskId": 968_120_369_184_112_000_u64 + id }),
        ),
        ("POST", ["push", "task"]) => ("data", json!(968_120_369_184_112_000_u64 + id)),
        ("POST", ["users"]) => {
            let users: Vec<Value> = match body {
                Value::Array(all) => all.iter().map(|one| user(&one["username"])).collect(),
                one => vec![user(&one["username"])],
            };
            ("entities", json!(users))
        }
        ("GET" | "HEAD" | "PUT" | "DELETE", ["users", name]) => {
            ("entities", json!([user(&json!(name))]))
        }
        ("GET" | "HEAD", ["users"]) => ("entities", json!([user(&json!("alice"))])),
        ("POST", ["chatfiles"]) => (
            "entities",
            json!([{ "uuid": format!("00000000-0000-0000-0000-{id:012}"), "type": "chatfile", "share-secret": "stand-in" }]),
        ),
        ("POST", ["chatgroups"]) => ("data", json!({ "groupid": id.to_string() })),
        ("POST", ["chatrooms"]) => ("data", json!({ "id": id.to_string() })),
        ("GET" | "HEAD", _) => ("data", json!([])),
        _ => ("data", json!({ "result": true })),
    }
}

fn error(status: StatusCode, error: &str, description: &str) -> (StatusCode, String) {
    let body = json!({
        "error": error, "exception": "StandInException", "timestamp": 1_700_000_000_000_u64,
        "duration": 0, "error_description": description,
    });
    (status, body.to_string())
}
