//! `floodgate explain`: what one call would be charged. Nothing is charged.

mod history;
mod payload;
mod totals;

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::net::IpAddr;

use clap::ArgMatches;
use ipnet::IpNet;
use serde::Serialize;

use self::history::HistoryView;
use self::payload::{Carried, PayloadView, carried};
use self::totals::TotalView;
use super::rules::Certificates;
use super::show::{LimitView, columns, json, quota};
use super::{CliError, Ended, Purpose, load, print, rules};
use crate::admission::{self, Call, Policy, Reject, cost_of};
use crate::apps::{App, AppPlan};
use crate::clock::Clock;
use crate::gateway::reply::Reply;
use crate::gateway::upstream;
use crate::head::Head;
use crate::identity;
use crate::limit::{Limit, LimitId, Moment, Scope, Unit};
use crate::route::canonical;
use crate::route::pricing::{Cap, MAX_COUNTED_BODY};
use crate::serve::Files;
use crate::settings::PoolSettings;
use crate::spec::{Ruleset, size};

/// An argument that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ArgumentError {
    /// The URL has no path.
    #[error("{0:?} is no URL; write https://host/org/app/users, or the path alone")]
    Url(String),
    /// The URL has what none can have.
    #[error(
        "{0:?}: a URL has no spaces and no control characters; write them percent-encoded, e.g. %20"
    )]
    Space(String),
    /// The URL's port is none.
    #[error("{0:?}: the port is no number from 1 to 65535")]
    Port(String),
    /// The method is in small letters.
    #[error("{0}: methods are case-sensitive; write {1}")]
    Case(String, String),
    /// The method is none.
    #[error("{0:?} is no method; write GET, POST, PUT, DELETE, …")]
    Method(String),
    /// The address is none.
    #[error("--ip {0}: not an address; write e.g. 203.0.113.7 or 2001:db8::1")]
    Ip(String),
    /// The body cannot be read.
    #[error("cannot read {path}: {source}")]
    Body {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
}

/// What is said of a call.
#[derive(Debug, Serialize)]
struct Explained<'r> {
    route: Option<&'r str>,
    edition: Option<&'r str>,
    /// The pool whose upstreams get it.
    pool: Option<String>,
    method: String,
    app: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    known: Option<Known<'r>>,
    user: Option<String>,
    ip: IpAddr,
    limits: Vec<Charged<'r>>,
    max_recipients: Option<u32>,
    /// Bytes.
    max_body: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    history: Option<HistoryView<'r>>,
    /// What it may carry.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    payload: Vec<PayloadView<'r>>,
    /// What it does to what its app's plan bounds.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    totals: Vec<TotalView<'r>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    refused: Option<Refusal>,
    #[serde(skip)]
    title: &'r str,
    #[serde(skip)]
    recipients: Option<u32>,
    #[serde(skip)]
    other_caps: Vec<&'r Cap>,
}

/// What is known of the app.
#[derive(Debug, Serialize)]
struct Known<'r> {
    names: &'r [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    plan: Option<&'static str>,
    /// Empty: it may be called from anywhere.
    allow: &'r [IpNet],
    suspended: bool,
}

impl<'r> Known<'r> {
    fn new(app: &'r App) -> Self {
        Self {
            names: &app.names,
            plan: app.plan.map(AppPlan::as_str),
            allow: &app.allow,
            suspended: app.suspended,
        }
    }
}

#[derive(Debug, Serialize)]
struct Charged<'r> {
    #[serde(flatten)]
    limit: LimitView<'r>,
    /// The figure for all, where the app has its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    quota_of_all: Option<u32>,
    cost: Option<u32>,
    key: String,
    #[serde(skip)]
    quota: String,
}

#[derive(Debug, Serialize)]
struct Refusal {
    status: u16,
    reason: String,
    /// The limit of what a call may carry.
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<String>,
}

impl From<Reply> for Refusal {
    fn from(reply: Reply) -> Self {
        Self {
            status: reply.status,
            reason: reply.description.into_owned(),
            limit: reply.limit,
        }
    }
}

/// A call as the command line gives it.
#[derive(Clone, Copy, Debug)]
struct Asked<'a> {
    method: &'a str,
    path: &'a str,
    query: &'a str,
    ip: IpAddr,
    body: Option<&'a [u8]>,
    /// Of routes without a figure of their own.
    max_body: u64,
    now: Moment,
    pools: &'a [PoolSettings],
}

pub(super) fn run(matches: &ArgMatches, env: &[(OsString, OsString)]) -> Result<Ended, CliError> {
    let text = |name| matches.get_one::<String>(name).map_or("", String::as_str);
    let settings = load(matches, env, Purpose::Look)?;
    let ip = text("ip");
    let ip: IpAddr = ip.parse().map_err(|_| ArgumentError::Ip(ip.to_owned()))?;
    let path = path_of(text("url"))?;
    let query = query_of(text("url"));
    let mut rules = rules::load(&settings.routes)?;
    rules::validate(&mut rules, &settings);
    let editions = rules::selection(&rules, &settings.edition)?;
    let apps = Some((&mut rules, editions));
    let files = Files::default();
    rules::add_apps(apps, &settings.apps, Certificates::Leave, &files)?;
    let policy = Policy {
        editions,
        auth: settings.auth,
        ipv6_prefix: settings.ipv6_prefix,
        unknown_apps: settings.unknown_apps,
    };
    let body = match matches.get_one::<String>("body") {
        Some(path) => Some(read_body(path, largest(&rules, settings.max_body))?),
        None => None,
    };
    let method = method_of(text("method"))?;
    let asked = Asked {
        method,
        path,
        query,
        ip: ip.to_canonical(),
        body: body.as_deref(),
        max_body: settings.max_body,
        now: Clock::start().now(),
        pools: &settings.pools,
    };
    let explained = explain(&rules, &policy, asked);
    print(&match matches.get_flag("json") {
        true => json(&explained),
        false => in_words(&explained, path),
    })?;
    Ok(match explained.refused {
        Some(_) => Ended::Bad,
        None => Ended::Good,
    })
}

/// A method, as callers must write it.
fn method_of(text: &str) -> Result<&str, ArgumentError> {
    let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    if text.is_empty() || !text.chars().all(is_token) {
        return Err(ArgumentError::Method(text.to_owned()));
    }
    match text.to_ascii_uppercase() {
        upper if upper == text => Ok(text),
        upper => Err(ArgumentError::Case(text.to_owned(), upper)),
    }
}

/// Whether the part of a URL before its path names a host, and a port that can be.
fn check_authority(url: &str, authority: &str) -> Result<(), ArgumentError> {
    let host = authority
        .rsplit_once('@')
        .map_or(authority, |(_, host)| host);
    let after = host.rfind(']').map_or(0, |at| at + 1);
    let (name, port) = match host[after..].split_once(':') {
        Some((name, port)) => (name, port),
        None => (&host[after..], ""),
    };
    if after == 0 && name.is_empty() {
        return Err(ArgumentError::Url(url.to_owned()));
    }
    let is_digits = port.bytes().all(|b| b.is_ascii_digit());
    match port.is_empty() || is_digits && matches!(port.parse::<u16>(), Ok(1..)) {
        true => Ok(()),
        false => Err(ArgumentError::Port(url.to_owned())),
    }
}

/// The path of a URL, or of a path with a query string.
fn path_of(url: &str) -> Result<&str, ArgumentError> {
    if url.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(ArgumentError::Space(url.to_owned()));
    }
    let rest = ["https://", "http://"]
        .iter()
        .find_map(|scheme| url.strip_prefix(scheme));
    let from = match rest {
        Some(rest) => {
            let (authority, from) = match rest.find(['/', '?', '#']) {
                Some(at) => rest.split_at(at),
                None => (rest, "/"),
            };
            check_authority(url, authority)?;
            from
        }
        None => url,
    };
    let path = from.split(['?', '#']).next().unwrap_or(from);
    match (path, rest) {
        ("", Some(_)) => Ok("/"),
        (path, _) if path.starts_with('/') => Ok(path),
        _ => Err(ArgumentError::Url(url.to_owned())),
    }
}

/// The query of a URL.
fn query_of(url: &str) -> &str {
    let before = url.split('#').next().unwrap_or_default();
    before.split_once('?').map_or("", |(_, query)| query)
}

/// The largest body of any call.
fn largest(rules: &Ruleset, of_all: u64) -> u64 {
    let own = rules.routes.iter().filter_map(|route| route.max_body);
    own.fold(of_all, u64::max)
}

/// Reads one byte more than any call may have, and no more.
fn read_body(path: &str, most: u64) -> Result<Vec<u8>, ArgumentError> {
    let mut body = Vec::new();
    let mut read = |from: &mut dyn Read| from.take(most.saturating_add(1)).read_to_end(&mut body);
    match path {
        "-" => read(&mut io::stdin().lock()),
        _ => File::open(path).and_then(|mut file| read(&mut file)),
    }
    .map_err(|source| ArgumentError::Body {
        path: path.to_owned(),
        source,
    })?;
    Ok(body)
}

fn explain<'r>(rules: &'r Ruleset, policy: &Policy, asked: Asked<'_>) -> Explained<'r> {
    let head = Head {
        method: asked.method,
        raw_path: asked.path,
        ip: asked.ip,
        has_bearer: true,
    };
    let screened = canonical::canonical(asked.path)
        .map_err(Reject::Path)
        .and_then(|path| Ok((admission::screen(rules, policy, &head, &path)?, path)));
    match screened {
        Ok((call, path)) => admissible(rules, &call, asked, &path),
        Err(reject) => rejected(rules, policy, &reject, asked),
    }
}

fn rejected<'r>(
    rules: &'r Ruleset,
    policy: &Policy,
    reject: &Reject,
    asked: Asked<'_>,
) -> Explained<'r> {
    let ip = identity::address::prefix(asked.ip, policy.ipv6_prefix);
    let app = canonical::canonical(asked.path).ok().and_then(|path| {
        let (app, _) = canonical::split_app(&path)?;
        rules
            .apps
            .find(&identity::fold_app(&*app.name, rules.fold_app_names))
    });
    let charged = |id: &LimitId| {
        let limit = rules.limit(*id);
        Charged {
            quota_of_all: None,
            cost: Some(1),
            key: format!("{}{{{ip}}}", limit.name),
            quota: quota(limit),
            limit: LimitView::new(limit),
        }
    };
    Explained {
        route: None,
        edition: None,
        pool: None,
        method: asked.method.to_owned(),
        app: app.map(|app| app.name().to_owned()),
        known: app.map(Known::new),
        user: None,
        ip,
        limits: admission::address_limits(rules, reject)
            .iter()
            .map(charged)
            .collect(),
        max_recipients: None,
        max_body: None,
        history: None,
        payload: Vec::new(),
        totals: Vec::new(),
        refused: Some(Reply::rejected(reject, asked.path).into()),
        title: "",
        recipients: None,
        other_caps: Vec::new(),
    }
}

fn admissible<'r>(rules: &'r Ruleset, call: &Call, asked: Asked<'_>, path: &str) -> Explained<'r> {
    let route = call.route(rules);
    let counted = route.filter(|route| route.cost.is_some());
    let mut max_body = call.max_body(rules, asked.max_body);
    let reads_totals = admission::totals::reads_body(rules, call);
    if counted.is_some() || reads_totals || call.holds_others_up(rules) {
        max_body = max_body.min(u64::try_from(MAX_COUNTED_BODY).unwrap_or(u64::MAX));
    }
    let is_too_large =
        |body: &[u8]| u64::try_from(body.len()).is_ok_and(|length| length > max_body);
    let expired = admission::history::expired(rules, call, path, asked.now)
        .filter(|expired| !expired.report)
        .map(Reject::Expired);
    let (recipients, refused) = match (counted, asked.body) {
        (None, Some(body)) if is_too_large(body) => {
            (Some(1), Some(Reply::too_large_to_read(rules, call)))
        }
        (None, _) => (Some(1), None),
        (Some(_), None) => (None, None),
        (Some(_), Some(body)) if is_too_large(body) => (None, Some(Reply::body_too_large())),
        (Some(route), Some(body)) => match admission::payload::recipients(rules, route, body) {
            Ok((recipients, _)) => (Some(recipients), None),
            Err(reject) => (None, Some(Reply::rejected(&reject, asked.path))),
        },
    };
    let Carried {
        views,
        refused: carries,
    } = carried(rules, call, asked, path);
    let refused = expired
        .as_ref()
        .map(|reject| Reply::rejected(reject, asked.path))
        .or(refused)
        .or_else(|| carries.map(|reject| Reply::rejected(&reject, asked.path)));
    let totals = totals::told(rules, call, path, asked.body);
    let refused = refused.or(totals.refused);
    let cost = |limit: &Limit| match (&refused, limit.unit, recipients) {
        // An hour that is not kept is charged to the address, a body that is refused to nobody.
        (Some(_), ..) => Some(u32::from(expired.is_some())),
        (None, Unit::Messages, recipients) => recipients,
        (None, unit, _) => Some(cost_of(unit, 1)),
    };
    let charged = |id: LimitId| {
        let limit = rules.limit(id);
        let own = call.app(rules);
        let of_all = own.and_then(|app| {
            app.limits
                .iter()
                .find(|(all, own)| *own == id && *all != id)
        });
        Some(Charged {
            quota_of_all: of_all.map(|(all, _)| rules.limit(*all).quota.get()),
            cost: cost(limit),
            key: counter(limit, call)?,
            quota: quota(limit),
            limit: LimitView::new(limit),
        })
    };
    Explained {
        route: Some(route.map_or("options", |route| &route.name)),
        edition: rules.editions.get(call.edition.0).map(|e| &*e.name),
        pool: upstream::pool_of(asked.pools, rules, call)
            .filter(|_| refused.is_none())
            .map(str::to_owned),
        method: asked.method.to_owned(),
        app: Some(call.caller.app.clone()),
        known: call.app(rules).map(Known::new),
        user: call.caller.user.clone(),
        ip: call.ip,
        limits: match &expired {
            Some(reject) => {
                let limits = admission::address_limits(rules, reject).iter();
                limits.copied().filter_map(charged).collect()
            }
            None => call.limits(rules).filter_map(charged).collect(),
        },
        max_recipients: route.and_then(|route| route.max_recipients),
        max_body: Some(max_body),
        history: admission::history::asked(rules, call, path, asked.now)
            .and_then(|asked| HistoryView::new(rules, &asked)),
        payload: views,
        totals: totals.views,
        refused: refused.map(Refusal::from),
        title: route.map_or("", |route| &route.title),
        recipients: recipients.filter(|_| counted.is_some()),
        other_caps: route
            .and_then(|route| route.cost.as_ref())
            .map_or_else(Vec::new, |cost| cost.other_caps().collect()),
    }
}

/// The counter a limit keeps for this caller, in words. `None`: it keeps none, since the call
/// names no user.
fn counter(limit: &Limit, call: &Call) -> Option<String> {
    let caller = match limit.scope {
        Scope::App => call.caller.app.clone(),
        Scope::User => format!("{},{}", call.caller.app, call.caller.user.as_deref()?),
        Scope::Ip => call.ip.to_string(),
    };
    Some(format!("{}{{{caller}}}", limit.name))
}

fn in_words(explained: &Explained<'_>, path: &str) -> String {
    let mut text = format!("{} {path}\n", explained.method);
    let mut facts = Vec::new();
    let mut fact = |name: &str, value: Option<String>| {
        facts.extend(value.map(|value| [name.to_owned(), value]));
    };
    fact(
        "route",
        explained.route.map(|route| match explained.title {
            "" => route.to_owned(),
            title => format!("{route}  {title}"),
        }),
    );
    fact("edition", explained.edition.map(str::to_owned));
    fact("pool", explained.pool.clone());
    fact("app", explained.app.clone());
    if let Some(Known {
        names,
        plan,
        allow,
        suspended,
    }) = &explained.known
    {
        let others = names.get(1..).unwrap_or_default().join(", ");
        fact("also", Some(others).filter(|others| !others.is_empty()));
        fact("plan", plan.map(str::to_owned));
        let allow: Vec<String> = allow.iter().map(ToString::to_string).collect();
        fact(
            "allowed",
            Some(allow.join(", ")).filter(|allow| !allow.is_empty()),
        );
        fact("suspended", suspended.then(|| "yes".to_owned()));
    }
    fact("user", explained.user.clone());
    fact("ip", Some(explained.ip.to_string()));
    let recipients = match (explained.recipients, explained.max_recipients) {
        (Some(count), Some(max)) => Some(format!("{count} of at most {max}")),
        (Some(count), None) => Some(count.to_string()),
        (None, Some(max)) => Some(format!("at most {max}")),
        (None, None) => None,
    };
    fact("recipients", recipients);
    fact(
        "body",
        explained
            .max_body
            .filter(|_| matches!(&*explained.method, "POST" | "PUT" | "PATCH"))
            .map(|most| format!("at most {}", size::show(most))),
    );
    for Cap { field, max } in &explained.other_caps {
        fact(field, Some(format!("at most {max}")));
    }
    fact(
        "history",
        explained.history.as_ref().map(HistoryView::in_words),
    );
    if let Some(Refusal {
        status,
        reason,
        limit,
    }) = &explained.refused
    {
        let limit = limit
            .as_ref()
            .map_or_else(String::new, |limit| format!(" ({limit})"));
        fact("refused", Some(format!("{status} {reason}{limit}")));
    }
    text.push_str(&columns("  ", &facts));
    text.push('\n');
    if !explained.payload.is_empty() {
        text.push_str(&columns("  ", &payload::rows(&explained.payload)));
        text.push('\n');
    }
    if !explained.totals.is_empty() {
        text.push_str(&columns("  ", &totals::rows(&explained.totals)));
        text.push('\n');
    }
    if explained.limits.is_empty() {
        text.push_str("  no limit is charged\n");
        return text;
    }
    let mut rows = vec![["limit", "cost", "group", "counter"].map(str::to_owned)];
    rows.extend(explained.limits.iter().map(|charged| {
        [
            match charged.quota_of_all {
                Some(for_all) => format!("{} (its own; {for_all} for all)", charged.quota),
                None => charged.quota.clone(),
            },
            match (charged.cost, explained.refused.is_some()) {
                (None, _) => "by body".to_owned(),
                (Some(0), true) => "refused".to_owned(),
                (Some(cost), _) => cost.to_string(),
            },
            charged.limit.group.unwrap_or("-").to_owned(),
            charged.key.clone(),
        ]
    }));
    text.push_str(&columns("  ", &rows));
    text
}

#[cfg(test)]
mod tests;
