//! What a call carries in its path and its body, against the limits of its route.

use super::{Call, Reject, Target};
use crate::limit::Mode;
use crate::payload::Found;
use crate::route::canonical;
use crate::route::pricing::{self, PriceError};
use crate::spec::payload::{Checked, Judged};
use crate::spec::{Route, Ruleset};

/// What is checked of this call.
#[must_use]
pub fn checked<'r>(rules: &'r Ruleset, call: &Call) -> Option<&'r Checked> {
    match call.target {
        Target::Route(id) => rules.payloads.of(id, call.edition),
        Target::Unmatched | Target::Options => None,
    }
}

/// The recipients of a call's body, and whether there are more than a cap that is only reported.
///
/// # Errors
/// [`Reject::Body`].
pub fn recipients(rules: &Ruleset, route: &Route, body: &[u8]) -> Result<(u32, bool), Reject> {
    let Some(source) = &route.cost else {
        return Ok((1, false));
    };
    let (cost, over) = pricing::price(source, body).map_err(Reject::Body)?;
    let mode = route.validate.unwrap_or(rules.payloads.validate());
    match (over, mode) {
        (None, _) | (Some(_), Mode::Off) => Ok((cost, false)),
        (Some(_), Mode::Report) => Ok((cost, true)),
        (Some(cap), Mode::Enforce) => Err(Reject::Body(PriceError::TooMany(cap))),
    }
}

/// What is found in the canonical path of a call.
#[must_use]
pub fn in_path(rules: &Ruleset, call: &Call, method: &str, path: &str) -> Found {
    let mut found = Found::default();
    let checked = checked(rules, call).filter(|checked| checked.checks.has_path());
    let (Some(checked), Some(route)) = (checked, call.route(rules)) else {
        return found;
    };
    let Some((_, tail)) = canonical::split_app(path) else {
        return found;
    };
    let method = if method == "HEAD" { "GET" } else { method };
    let count = tail.split('/').count();
    let fits = |pattern: &str| {
        let mut pairs = pattern.split('/').zip(tail.split('/'));
        pattern.split('/').count() == count
            && pairs.all(|(pattern, segment)| pattern.starts_with('{') || *pattern == *segment)
    };
    let mut calls = route.calls.iter().filter(|(known, _)| **known == *method);
    // Of a path in another spelling, a pattern of its length.
    let pattern = calls
        .clone()
        .find(|(_, pattern)| fits(pattern))
        .or_else(|| calls.find(|(_, pattern)| pattern.split('/').count() == count));
    if let Some((_, pattern)) = pattern {
        checked
            .checks
            .path(pattern, tail, canonical::decode, &mut found);
    }
    found
}

/// What becomes of a call in whose path this was found.
#[must_use]
pub fn judge(rules: &Ruleset, call: &Call, found: &Found) -> Judged {
    match checked(rules, call) {
        Some(checked) if !found.is_good() => rules.payloads.judge(&checked.checks, found),
        _ => Judged::default(),
    }
}

/// What becomes of a call with this query, whose body is here as a whole.
#[must_use]
pub fn in_body(
    rules: &Ruleset,
    call: &Call,
    query: &[u8],
    content_type: Option<&[u8]>,
    body: &[u8],
) -> Judged {
    match checked(rules, call).filter(|checked| checked.checks.of_body().next().is_some()) {
        Some(checked) => rules.payloads.judge(
            &checked.checks,
            &checked.checks.fields(query, content_type, body),
        ),
        None => Judged::default(),
    }
}

/// The refusal, if there is one.
#[must_use]
pub fn rejected(judged: &mut Judged) -> Option<Reject> {
    match (judged.refused.take(), judged.is_malformed) {
        (Some(refused), _) => Some(Reject::Payload(refused)),
        (None, true) => Some(Reject::Body(PriceError::Malformed)),
        (None, false) => None,
    }
}
