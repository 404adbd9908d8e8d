//! What `explain` says of what a call carries.

use serde::Serialize;

use super::Asked;
use crate::admission::{Call, Reject, payload};
use crate::limit::Mode;
use crate::payload::{Checks, Format, Found, Measure, Most};
use crate::spec::payload::Checked;
use crate::spec::{Ruleset, size};

/// One limit at one place.
#[derive(Debug, Serialize)]
pub(super) struct PayloadView<'r> {
    limit: &'r str,
    place: String,
    measure: &'static str,
    /// `null`: as much as may be, or as the message may have.
    max: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    allow: Option<&'r str>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    types: &'r [Box<str>],
    validate: &'static str,
    /// The most that was found; `null`: nothing, or no body was given.
    found: Option<u64>,
    exceeded: bool,
    sources: Vec<&'r str>,
    #[serde(skip)]
    most: Option<Most>,
}

/// What is said of all that a call carries, and what refuses it.
pub(super) struct Carried<'r> {
    pub(super) views: Vec<PayloadView<'r>>,
    pub(super) refused: Option<Reject>,
}

/// What holds for a call, and what was found in it.
pub(super) fn carried<'r>(
    rules: &'r Ruleset,
    call: &Call,
    Asked {
        method,
        query,
        body,
        ..
    }: Asked<'_>,
    path: &str,
) -> Carried<'r> {
    let Some(Checked { checks, .. }) = payload::checked(rules, call) else {
        return Carried {
            views: Vec::new(),
            refused: None,
        };
    };
    let in_path = payload::in_path(rules, call, method, path);
    let body = body.or((checks.reads_query() && !query.is_empty()).then_some(b""));
    let in_body = match body {
        Some(body) if checks.of_body().next().is_some() => {
            let kind = content_type(checks, body);
            checks.fields(query.as_bytes(), kind.as_deref(), body)
        }
        _ => Found::default(),
    };
    let mut refusals = [&in_path, &in_body].into_iter().filter_map(|found| {
        let mut judged = rules.payloads.judge(checks, found);
        payload::rejected(&mut judged)
    });
    let found = [&in_path, &in_body];
    let views = checks.rules().iter().enumerate().filter_map(|(nth, rule)| {
        let limit = rules.payloads.limits.get(rule.limit)?;
        let figure = limit.figures.get(call.edition.0)?.as_ref()?;
        let measured = |found: &&Found| {
            let measured = found.measured.iter().find(|(known, _)| *known == nth);
            measured.map(|(_, length)| *length)
        };
        let excess = |found: &&Found| found.excesses.iter().any(|excess| excess.rule == nth);
        Some(PayloadView {
            limit: &limit.name,
            place: rule.place.to_string(),
            measure: rule.measure.as_str(),
            max: match rule.most {
                Some(Most::Fixed(most)) => Some(most),
                Some(Most::AsMessage) | None => None,
            },
            allow: limit.allow.as_ref().map(|allow| &*allow.written),
            types: &limit.types,
            validate: match rules.payloads.mode(rule.limit) {
                Mode::Enforce => "enforce",
                Mode::Report => "report",
                Mode::Off => "off",
            },
            found: found.iter().find_map(measured),
            exceeded: found.iter().any(excess),
            sources: figure.sources.iter().map(|source| &**source).collect(),
            most: rule.most,
        })
    });
    Carried {
        refused: refusals.next(),
        views: views.collect(),
    }
}

/// The `Content-Type` that a multipart body must have come with: its first line is its boundary.
fn content_type(checks: &Checks, body: &[u8]) -> Option<Vec<u8>> {
    if checks.format() == Format::Form {
        return Some(b"application/x-www-form-urlencoded".to_vec());
    }
    let line = body.strip_prefix(b"--")?.split(|b| *b == b'\r').next()?;
    let is_one = checks.format() == Format::File && (1..=70).contains(&line.len());
    is_one.then(|| [b"multipart/form-data; boundary=\"", line, b"\""].concat())
}

/// A table's rows, the first its headings.
pub(super) fn rows(views: &[PayloadView<'_>]) -> Vec<[String; 5]> {
    let mut rows = vec![["carries", "at most", "where", "found", "validate"].map(str::to_owned)];
    rows.extend(views.iter().map(|view| {
        let most = match view.most {
            Some(Most::Fixed(most)) if view.measure == Measure::Characters.as_str() => {
                format!("{most} characters")
            }
            Some(Most::Fixed(most)) if view.measure == Measure::Entries.as_str() => {
                format!("{most} entries")
            }
            Some(Most::Fixed(most)) => size::show(most),
            Some(Most::AsMessage) => "as its message".to_owned(),
            None => "any".to_owned(),
        };
        let allow = view
            .allow
            .map_or_else(String::new, |allow| format!(" of {allow}"));
        let found = match (view.found, view.exceeded) {
            (None, _) => "-".to_owned(),
            (Some(found), false) => found.to_string(),
            (Some(found), true) => format!("{found}, which is refused"),
        };
        let found = match view.validate {
            "report" => found.replace("refused", "reported"),
            _ => found,
        };
        [
            view.limit.to_owned(),
            format!("{most}{allow}"),
            view.place.clone(),
            found,
            view.validate.to_owned(),
        ]
    }));
    rows
}
