//! The part of a call in its app's totals: asked with its rates, settled by its answer, whose body
//! is kept up to a bound while it goes by.

use http::header;
use pingora::http::RequestHeader;

use super::context::Context;
use super::reply::Reply;
use super::steps::Heard;
use super::{Gateway, Shared, body};
use crate::admission::totals::{self, Asked, Full, Told};
use crate::admission::{Call, Reject};
use crate::limit::total::TotalCharge;
use crate::limit::{Moment, Plan};
use crate::observe::metrics::Verb;

/// The largest answer that is looked at. Those of documented calls, on 100 users at most, have a
/// tenth of it; of a larger one nobody knows what it says.
const MAX_ANSWER: usize = 512 * 1024;

/// What is followed of one call.
#[derive(Debug, Default)]
pub(super) struct Followed {
    asked: Option<Box<Asked>>,
    /// Until they are decided.
    charges: Vec<TotalCharge>,
    answer: Vec<u8>,
    /// Whether the answer is there as a whole, and can be read.
    whole: bool,
    /// Whether it cannot: coded, or too large.
    unreadable: bool,
}

impl Followed {
    /// Whether the answer matters.
    pub(super) fn is_there(&self) -> bool {
        self.asked.is_some()
    }

    /// Answers are to come as they can be read.
    pub(super) fn prepare(&self, request: &mut RequestHeader) {
        if self.is_there() {
            request.remove_header(&header::ACCEPT_ENCODING);
        }
    }

    /// The answer begins.
    pub(super) fn begin(&mut self, heard: Heard) {
        self.unreadable = heard.is_coded;
        self.answer.clear();
        // Of an answer without a body nothing comes by.
        self.whole = heard.status == 204 || heard.is_empty;
    }

    /// More of the answer.
    pub(super) fn note(&mut self, piece: &[u8], is_end: bool) {
        if !self.is_there() {
            return;
        }
        if !self.unreadable {
            match self.answer.len() + piece.len() <= MAX_ANSWER {
                true => self.answer.extend_from_slice(piece),
                false => {
                    self.unreadable = true;
                    self.answer = Vec::new();
                }
            }
        }
        self.whole |= is_end;
    }

    /// The charges, to be decided.
    pub(super) fn take_charges(&mut self) -> Vec<TotalCharge> {
        std::mem::take(&mut self.charges)
    }

    /// What the call has done to totals. `status`: of the backend's answer. `sent`: whether it may
    /// have done anything.
    pub(super) fn settle(
        &mut self,
        shared: &Shared,
        plan: &mut Plan,
        status: Option<u16>,
        sent: bool,
        now: Moment,
    ) {
        let Some(asked) = self.asked.take() else {
            return;
        };
        let body = (self.whole && !self.unreadable).then_some(&self.answer[..]);
        let told = match status {
            Some(status) => Told::Answered { status, body },
            None if sent => Told::Lost,
            None => Told::Nothing,
        };
        let changes = asked.settle(plan, told, now);
        if !changes.is_empty() {
            shared
                .admission
                .store_totals(asked.app_key(), &changes, now);
        }
    }
}

impl Gateway {
    /// What a call asks of totals, by its path and its body.
    pub(super) fn ask_totals(
        &self,
        call: &Call,
        body: Option<&[u8]>,
        ctx: &mut Context,
    ) -> Result<(), Reject> {
        let shared = ctx.shared.clone();
        let oldest_us = ctx.started.unix_us.saturating_sub(shared.plan_max_age_us());
        let asked = totals::asked(&shared.rules, call, &ctx.path, body, oldest_us / 1_000_000);
        if let Some((asked, charges)) = asked.map_err(Reject::Body)? {
            ctx.totals.asked = Some(Box::new(asked));
            ctx.totals.charges = charges;
        }
        Ok(())
    }

    /// Whether the body of a call, of this announced length, is read for what it asks.
    pub(super) fn counts_totals(&self, call: &Call, shared: &Shared, length: Option<u64>) -> bool {
        totals::reads_body(&shared.rules, call)
            || length.is_some_and(body::fits) && totals::may_read_body(&shared.rules, call)
    }

    /// Notes totals that would have refused; the first of them.
    pub(super) fn report_totals(
        &self,
        shared: &Shared,
        call: &Call,
        plan: &Plan,
    ) -> Option<&'static str> {
        let mut first = None;
        for charge in plan.totals.iter().filter(|charge| charge.over) {
            let name = charge.kind.limit_name();
            let route = call.route_name(&shared.rules);
            shared.metrics.report(route, name);
            first.get_or_insert(name);
        }
        first
    }

    /// The answer to a call that a total has no room for.
    pub(super) fn refuse_full(&self, ctx: &mut Context, full: &Full) -> Reply {
        ctx.verb = Some(Verb::Deny);
        ctx.full = Some(full.kind.limit_name());
        let rules = &ctx.shared.rules;
        let app = ctx.call.as_ref();
        let plan = app.and_then(|call| call.app(rules)?.plan);
        let app = app.map(|call| call.caller.app.as_str());
        Reply::full(full, plan, app.unwrap_or_default())
    }
}
