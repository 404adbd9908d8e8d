//! What is known of one call while it runs. Dropping it settles what nothing else has settled.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Method};
use pingora::{Error, ErrorSource, ErrorType};

use super::Shared;
use super::auth::{Held, Token};
use super::body::{Pace, Room};
use super::downstream::state::State;
use super::load::Part;
use super::payload::Payload;
use super::totals::Followed;
use super::upstream::Way;
use crate::admission::{Call, Nearest, Outcome};
use crate::limit::{LimitId, Moment, Plan};
use crate::observe::failures::Cause;
use crate::observe::metrics::Verb;

/// An admitted call's charges, until they are settled.
#[derive(Debug)]
pub(super) struct Admitted {
    pub(super) plan: Box<Plan>,
    /// Whether the request has begun to go out: from then on its units may have bought something.
    pub(super) forwarded: bool,
    /// Whether the whole request has gone out.
    pub(super) whole: bool,
}

/// One call.
#[derive(Debug)]
pub struct Context {
    pub(super) shared: Arc<Shared>,
    part: Part,
    /// The connection it came on.
    pub(super) connection: Option<Arc<State>>,
    pub(super) started: Moment,
    /// When the verdict fell.
    pub(super) verdict: Moment,
    /// Spent waiting for the body: not our own part.
    pub(super) body_us: u64,
    /// Of that part, spent waiting for the shared store.
    pub(super) store_us: u64,
    pub(super) id: HeaderValue,
    /// Of a head that could be read.
    pub(super) method: Option<Method>,
    pub(super) ip: IpAddr,
    pub(super) peer: IpAddr,
    /// Whether the caller speaks HTTPS, to us or to a trusted proxy.
    pub(super) https: bool,
    /// The canonical path.
    pub(super) path: String,
    /// Whether the target must be rewritten before it goes upstream.
    pub(super) rewrite: bool,
    pub(super) call: Option<Call>,
    /// Of a call that needs one.
    pub(super) token: Option<Token>,
    /// What it holds while nobody knows whether its token is good.
    pub(super) held: Held,
    pub(super) admitted: Option<Admitted>,
    pub(super) nearest: Option<Nearest>,
    pub(super) cost: u32,
    pub(super) verb: Option<Verb>,
    pub(super) limit: Option<LimitId>,
    /// The total that has no room, or would have none.
    pub(super) full: Option<&'static str>,
    /// Its part in totals.
    pub(super) totals: Followed,
    /// Its attempts upstream.
    pub(super) way: Way,
    /// Whether the body was read before the decision.
    pub(super) has_read_body: bool,
    /// Whether the caller had no more to send when the call was judged.
    pub(super) has_all: bool,
    /// Of the body that is being forwarded.
    pub(super) pace: Option<Pace>,
    pub(super) room: Room,
    /// What it carries.
    pub(super) payload: Payload,
    /// Status of the upstream's answer.
    pub(super) upstream_status: Option<u16>,
    /// The answer's body, while a task ID is looked for.
    pub(super) answer: Option<Vec<u8>>,
    /// Why it failed, if it did.
    pub(super) cause: Option<Cause>,
    /// The same in more words.
    pub(super) error: &'static str,
    /// The same in the words of who found it, where `error` says little.
    pub(super) detail: Option<Box<str>>,
    /// Whether its end has been counted and logged.
    pub(super) is_noted: bool,
}

impl Context {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let started = shared.clock.now();
        let way = Way::new(shared.upstreams.clone(), started);
        Self {
            shared,
            part: Part::default(),
            connection: None,
            started,
            verdict: started,
            body_us: 0,
            store_us: 0,
            id: HeaderValue::from_static(""),
            method: None,
            ip: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            peer: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            https: false,
            path: String::new(),
            rewrite: false,
            call: None,
            token: None,
            held: Held::default(),
            admitted: None,
            nearest: None,
            cost: 0,
            verb: None,
            limit: None,
            full: None,
            totals: Followed::default(),
            way,
            has_read_body: false,
            has_all: false,
            pace: None,
            room: Room::default(),
            payload: Payload::default(),
            upstream_status: None,
            answer: None,
            cause: None,
            error: "",
            detail: None,
            is_noted: false,
        }
    }

    /// Of what was refused before a request had come of it.
    pub(super) fn refused(shared: Arc<Shared>, peer: IpAddr, tls: bool, why: &'static str) -> Self {
        let mut ctx = Self::new(shared);
        ctx.id = ctx.shared.new_id();
        (ctx.ip, ctx.peer, ctx.https) = (peer.to_canonical(), peer, tls);
        (ctx.verb, ctx.error) = (Some(Verb::Reject), why);
        ctx.cause = match why {
            "slow-head" => Some(Cause::ClientSlow),
            "large-head" => Some(Cause::ClientTooLarge),
            _ => None,
        };
        ctx
    }

    /// No other body than this one, which was priced, goes upstream.
    pub(super) fn only(&mut self, body: Bytes) {
        self.room.only(body);
    }

    /// Counts the call among those in flight. Whether there is room for it.
    pub(super) fn enter(&mut self) -> bool {
        let most = self.shared.settings.max_in_flight;
        self.shared.load.enter(&mut self.part, most)
    }

    /// Whether the call may wait for the upstream.
    pub(super) fn may_wait(&mut self, has_body: bool) -> bool {
        let most = self.shared.settings.max_upstream_waiting;
        self.shared.load.may_wait(&mut self.part, most, has_body)
    }

    /// The upstream has the whole call.
    pub(super) fn waits(&mut self) {
        self.shared.load.waits(&mut self.part);
    }

    /// The upstream has answered, or will not be asked.
    pub(super) fn waits_no_more(&mut self) {
        self.shared.load.answered(&mut self.part);
    }

    /// Our own part, µs.
    pub(super) fn own_us(&self) -> u64 {
        self.verdict
            .mono_us
            .saturating_sub(self.started.mono_us + self.body_us)
    }

    /// Stands for a task whose name has not become known.
    pub(super) fn unnamed_task(&self) -> String {
        format!("call:{}", self.id.to_str().unwrap_or_default())
    }

    /// Whether the call ended with neither a whole request nor an answer.
    pub(super) fn is_incomplete(&self) -> bool {
        self.upstream_status.is_none()
            && self
                .admitted
                .as_ref()
                .is_some_and(|admitted| admitted.forwarded && !admitted.whole)
    }

    /// Whether a call is incomplete because the upstream took too long: it did not take what came, or
    /// did not ask for it. (What makes it break may well be the caller's.)
    pub(super) fn is_upstream_late(&self, error: Option<&Error>) -> bool {
        error.is_some_and(|error| {
            *error.esource() == ErrorSource::Upstream
                && match error.etype() {
                    ErrorType::WriteTimedout => true,
                    // Otherwise the caller was waited for.
                    ErrorType::ReadTimedout => self.pace.is_none(),
                    _ => false,
                }
        })
    }

    /// Lets go of what the call holds by an unknown token.
    pub(super) fn let_go(&mut self) {
        self.shared.tokens.let_go(&mut self.held);
    }

    /// Settles the call, once.
    pub(super) fn settle(&mut self, task: Option<&str>, now: Moment) {
        let incomplete = self.is_incomplete();
        let (Some(mut admitted), Some(call)) = (self.admitted.take(), self.call.as_ref()) else {
            return;
        };
        let unnamed;
        let outcome = match self.upstream_status {
            Some(status) => Outcome::Answered { status, task },
            None if !admitted.forwarded => Outcome::NotForwarded,
            None if incomplete => Outcome::Incomplete,
            None => {
                unnamed = self.unnamed_task();
                Outcome::NoAnswer { task: &unnamed }
            }
        };
        let sent = matches!(outcome, Outcome::NoAnswer { .. });
        let status = self.upstream_status;
        self.totals
            .settle(&self.shared, &mut admitted.plan, status, sent, now);
        self.shared.settle(call, &mut admitted.plan, outcome, now);
        self.let_go();
    }
}

impl Drop for Context {
    // A panic in a hook, or the end of the runtime, skips `logging` and not this.
    fn drop(&mut self) {
        self.note_lost();
        if self.admitted.is_some() {
            let now = self.shared.clock.now();
            self.settle(None, now);
        }
        self.let_go();
        if self.way.has_place() {
            let now = self.shared.clock.since(self.started);
            self.way.give_place_up(now);
        }
        self.shared.load.leave(&mut self.part);
        if let Some(connection) = &self.connection {
            match self.cause {
                Some(Cause::ClientLeft) => connection.call_is_left(),
                _ => connection.call_ends(),
            }
        }
    }
}
