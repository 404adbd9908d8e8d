//! `POST /charge`: others charge the counters that calls are charged to. `POST
//! /charge/give-back`: what bought nothing.

use std::net::IpAddr;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use futures_util::future::join_all;
use serde::Deserialize;
use serde_json::{Value, json};

use super::error;
use super::guard;
use crate::admission::{self, Admitted, Foreign, Refused};
use crate::gateway::Shared;
use crate::limit::Moment;
use crate::observe::metrics::Verb;

/// Charges, or receipts, in one request.
const MOST: usize = 100;

/// A charge.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    route: String,
    app: String,
    user: Option<String>,
    ip: Option<IpAddr>,
    #[serde(default = "one")]
    cost: u32,
}

fn one() -> u32 {
    1
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Given {
    receipt: String,
}

/// One item or a list of them, read one by one so that each mistake says where it is. The answer
/// has the same form.
struct Items {
    values: Vec<Value>,
    is_list: bool,
}

impl Items {
    async fn read(shared: &Shared, body: Body) -> Result<Self, Response> {
        let body = guard::body(shared, body).await?;
        let items = match guard::json(&body)? {
            Value::Array(values) => Self {
                values,
                is_list: true,
            },
            value => Self {
                values: vec![value],
                is_list: false,
            },
        };
        match items.values.len() {
            0 => Err(error(StatusCode::BAD_REQUEST, "an empty list")),
            count if count > MOST => Err(error(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("{count} items; send at most {MOST} at once"),
            )),
            _ => Ok(items),
        }
    }

    /// All items, or every mistake in them.
    #[expect(
        clippy::result_large_err,
        reason = "an answer, and not on the hot path"
    )]
    fn parse<T>(self, parse: impl Fn(Value) -> Result<T, String>) -> Result<Vec<T>, Response> {
        let mut good = Vec::with_capacity(self.values.len());
        let mut bad = Vec::new();
        for (index, value) in self.values.into_iter().enumerate() {
            match parse(value) {
                Ok(item) => good.push(item),
                Err(why) => bad.push(json!({ "item": index, "error": why })),
            }
        }
        if bad.is_empty() {
            return Ok(good);
        }
        let body = json!({ "error": "nothing was done: see items", "items": bad });
        Err(guard::answer(StatusCode::BAD_REQUEST, body))
    }
}

fn in_form(is_list: bool, mut answers: Vec<Value>) -> Response {
    let body = match is_list {
        true => Value::Array(answers),
        false => answers.pop().unwrap_or_default(),
    };
    guard::answer(StatusCode::OK, body)
}

pub(super) async fn charge(State(shared): State<Arc<Shared>>, body: Body) -> Response {
    let read = async {
        let items = Items::read(&shared, body).await?;
        let is_list = items.is_list;
        let charges = items.parse(|value| {
            let asked: Asked = serde_json::from_value(value).map_err(|why| why.to_string())?;
            let Asked {
                route,
                app,
                user,
                ip,
                cost,
            } = asked;
            let (rules, policy) = (&shared.rules, &shared.policy);
            Foreign::new(rules, policy, &route, &app, user.as_deref(), ip, cost)
                .map_err(|why| why.to_string())
        })?;
        Ok((is_list, charges))
    };
    let (is_list, charges) = match read.await {
        Ok(read) => read,
        Err(response) => return response,
    };
    // A task of its own: who hangs up must not leave charges that nobody can give back or end.
    let work = tokio::spawn(async move {
        let now = shared.clock.now();
        join_all(
            charges
                .iter()
                .map(|foreign| one_charge(&shared, foreign, now)),
        )
        .await
    });
    match work.await {
        Ok(answers) => in_form(is_list, answers),
        Err(_) => error(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the charges failed; some may have been made",
        ),
    }
}

async fn one_charge(shared: &Shared, foreign: &Foreign, now: Moment) -> Value {
    let (rules, call) = (&shared.rules, foreign.call());
    let name = |id| &*rules.limit(id).name;
    match shared.admission.admit_foreign(rules, foreign, now).await {
        Ok(Admitted {
            plan,
            nearest,
            reported,
        }) => {
            shared.counts.admit(call.target);
            shared.top.admitted(call, &plan, reported, now);
            for (i, charge) in plan.charges.iter().enumerate() {
                if charge.taken.is_some() {
                    shared.counts.charge(charge.limit, charge.cost);
                }
                if i < 64 && reported >> i & 1 == 1 {
                    let route = call.route_name(rules);
                    shared.metrics.report(route, name(charge.limit));
                }
            }
            json!({
                "admitted": true,
                "limit": nearest.map(|nearest| name(nearest.limit)),
                "left": nearest.map(|nearest| nearest.left),
                "retry_after": null,
                "receipt": shared.receipts.issue(*plan, &shared.counts, now),
            })
        }
        Err(Refused::Deny(denied)) => {
            let route = call.route_name(rules);
            shared.metrics.refuse(route, name(denied.limit), Verb::Deny);
            let cost = admission::cost_of(rules.limit(denied.limit).unit, foreign.recipients());
            shared.top.denied(rules, call, denied.limit, cost, now);
            json!({
                "admitted": false,
                "limit": name(denied.limit),
                "left": denied.left,
                "retry_after": denied.retry_after.map(|wait| {
                    // Rounded up: never too early.
                    wait.as_micros().div_ceil(1000) as f64 / 1000.0
                }),
                "receipt": null,
            })
        }
        Err(Refused::Store(why)) => unavailable(&why.to_string()),
        // Not an answer of a decision.
        Err(Refused::Reject(_) | Refused::Full(_)) => unavailable("it could not be decided"),
    }
}

fn unavailable(why: &str) -> Value {
    json!({
        "admitted": false, "limit": null, "left": null, "retry_after": null, "receipt": null,
        "error": why,
    })
}

pub(super) async fn give_back(State(shared): State<Arc<Shared>>, body: Body) -> Response {
    let read = async {
        let items = Items::read(&shared, body).await?;
        let is_list = items.is_list;
        let given = items
            .parse(|value| serde_json::from_value::<Given>(value).map_err(|why| why.to_string()))?;
        Ok((is_list, given))
    };
    let (is_list, given) = match read.await {
        Ok(read) => read,
        Err(response) => return response,
    };
    let now = shared.clock.now();
    let answers = given.into_iter().map(|Given { receipt }| {
        let Some((mut plan, counts)) = shared.receipts.redeem(&receipt, now) else {
            return json!({
                "receipt": receipt,
                "given_back": false,
                "error": "not a receipt of this gateway's, used before, or older than 5 minutes",
            });
        };
        for (limit, units) in shared.admission.give_back_foreign(&mut plan, now) {
            counts.refund(limit, units);
        }
        json!({ "receipt": receipt, "given_back": true })
    });
    in_form(is_list, answers.collect())
}
