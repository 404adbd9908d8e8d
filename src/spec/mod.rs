//! `routes.toml`, and files of apps: as written (serde) → validated → compiled.
//!
//! Compiled types cannot be invalid; every mistake of a file is reported at once.

pub mod apps;
pub mod check;
pub mod compile;
pub mod figure;
pub mod history;
pub mod payload;
pub(crate) mod size;
pub mod totals;
mod written;

#[cfg(test)]
mod tests;

use crate::apps::Apps;
use crate::identity::Auth;
use crate::limit::{KeyHasher, Limit, LimitId};
use crate::route::{RouteTable, pricing::CostSource};

/// The shipped table, compiled in.
pub const SHIPPED: &str = include_str!("../../routes.toml");

/// What happens to a path of an app that no document has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unmatched {
    /// Forwarded; all such paths of an app share one counter with the default figure.
    #[default]
    DefaultLimit,
    /// 404.
    Reject,
}

/// Index of an edition in [`Ruleset::editions`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EditionId(pub usize);

/// One documented set of limits.
#[derive(Clone, Debug)]
pub struct Edition {
    /// `v1` … `v4`, or an operator's own.
    pub name: Box<str>,
    /// Whether per-app limits on calls and messages for seconds and minutes also count per IP.
    pub ip_copy: bool,
}

/// What an edition makes of one route.
#[derive(Clone, Debug, Default)]
pub struct RouteLimits {
    /// The limits an authorised call is charged, IP copies included, `mode = "off"` excluded.
    pub limits: Box<[LimitId]>,
    /// The edition the figures were taken from, if any prints the route.
    pub from: Option<EditionId>,
    /// Where this edition prints the route, `document:line`; empty if it does not.
    pub sources: Box<[Box<str>]>,
}

/// Index of a route in [`Ruleset::routes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RouteId(pub usize);

/// One operation.
#[derive(Clone, Debug)]
pub struct Route {
    /// The operation's name, unique; a metric label.
    pub name: Box<str>,
    /// The Chinese name of the documents.
    pub title: Box<str>,
    /// Its calls: method and path below the app, e.g. `("GET", "/users/{username}")`.
    pub calls: Box<[(Box<str>, Box<str>)]>,
    /// What the bearer token of a call must be; `None`: what the settings say for all.
    pub auth: Option<Auth>,
    /// Whether it is the message history, and the last segment of its path the hour.
    pub history: bool,
    /// What its calls do to the app's totals.
    pub totals: totals::RouteTotals,
    /// The body field whose entries are the recipients, and the caps of counted fields; `None`:
    /// the body is not read.
    pub cost: Option<CostSource>,
    /// The most recipients of one call: the cap of the cost's field.
    pub max_recipients: Option<u32>,
    /// Whether the caps of counted fields act; `None`: as limits of what calls may carry do.
    pub validate: Option<crate::limit::Mode>,
    /// The largest body of a call, in bytes; `None`: what the settings say for all.
    pub max_body: Option<u64>,
    /// By edition.
    pub editions: Box<[RouteLimits]>,
    /// All printed rows, `document:line`, every edition and the overview.
    pub sources: Box<[Box<str>]>,
}

/// The per-IP limits that do not belong to a route.
#[derive(Clone, Debug, Default)]
pub struct IpLimits {
    /// Calls without a token, and 401 answers.
    pub unauthorized: Box<[LimitId]>,
    /// Our own 404 and 405 answers.
    pub rejected: Box<[LimitId]>,
    /// `OPTIONS`.
    pub options: Box<[LimitId]>,
}

/// Compiled routes and limits.
#[derive(Debug)]
pub struct Ruleset {
    /// All limits, by [`LimitId`].
    pub limits: Box<[Limit]>,
    /// All routes, by [`RouteId`].
    pub routes: Box<[Route]>,
    /// The editions, oldest first; the overview is not one.
    pub editions: Box<[Edition]>,
    /// `(App Key form, App ID form)` for each selectable name: `current` and every edition.
    pub selections: Box<[(Box<str>, EditionId, EditionId)]>,
    /// The route for paths that no document has; `editions` holds its limits too.
    pub unmatched_route: Route,
    /// What happens to them.
    pub unmatched: Unmatched,
    /// Whether org, app and App ID are folded to lower case in counter keys.
    pub fold_app_names: bool,
    /// Limits of addresses alone.
    pub ip_limits: IpLimits,
    /// How long messages are kept.
    pub history: Option<history::History>,
    /// How much apps may hold, by [`Kind`](crate::limit::total::Kind).
    pub totals: Box<[totals::KindRules]>,
    /// What a call may carry.
    pub payloads: payload::Payloads,
    /// The matcher.
    pub table: RouteTable,
    /// Makes the counter keys that belong to these limits' salts.
    pub keys: KeyHasher,
    /// What is known of single apps.
    pub apps: Apps,
}

impl Ruleset {
    /// The editions that a selection name gives to the App Key and the App ID form.
    #[must_use]
    pub fn selection(&self, name: &str) -> Option<(EditionId, EditionId)> {
        self.selections
            .iter()
            .find(|(n, ..)| &**n == name)
            .map(|(_, key, id)| (*key, *id))
    }

    /// The limit.
    #[must_use]
    pub fn limit(&self, id: LimitId) -> &Limit {
        &self.limits[id.0 as usize]
    }
}
