//! Steps 1 and 2, identify and match: a head becomes a [`Call`].

use std::borrow::Cow;
use std::net::IpAddr;

use super::{Policy, Reject, totals};
use crate::apps::{App, AppId, UnknownApps};
use crate::head::Head;
use crate::identity::{self, Auth, Caller};
use crate::limit::{CounterKey, LimitId, Scope, Window};
use crate::route::Form;
use crate::route::canonical;
use crate::route::table::Found;
use crate::spec::{EditionId, Route, RouteId, Ruleset, Unmatched};

/// What the call is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A documented operation.
    Route(RouteId),
    /// A path of an app that no document has.
    Unmatched,
    /// `OPTIONS`: charged to the address alone.
    Options,
}

/// A call that is well-formed and known: steps 1 and 2 done.
#[derive(Clone, Debug)]
pub struct Call {
    /// What it is for.
    pub target: Target,
    /// How the app was addressed.
    pub form: Form,
    /// The edition whose limits hold.
    pub edition: EditionId,
    /// Whose call it is. A known app goes by its first name.
    pub caller: Caller,
    /// The app's entry, if it is a known one.
    pub known: Option<AppId>,
    /// The address, cut to the prefix that counts.
    pub ip: IpAddr,
    pub(super) ip_key: CounterKey,
    pub(super) app_key: CounterKey,
    /// Whether no route has this path as it is written.
    pub(super) respelt: bool,
}

impl Call {
    /// The operation; the shared one for a path that no document has. `None` for `OPTIONS`.
    #[must_use]
    pub fn route<'r>(&self, rules: &'r Ruleset) -> Option<&'r Route> {
        match self.target {
            Target::Route(id) => rules.routes.get(id.0),
            Target::Unmatched => Some(&rules.unmatched_route),
            Target::Options => None,
        }
    }

    /// The operation's name: a metric label.
    #[must_use]
    pub fn route_name<'r>(&self, rules: &'r Ruleset) -> &'r str {
        self.route(rules).map_or("options", |route| &route.name)
    }

    /// What is known of the app.
    #[must_use]
    pub fn app<'r>(&self, rules: &'r Ruleset) -> Option<&'r App> {
        self.known.and_then(|id| rules.apps.get(id))
    }

    /// The key of its app: the same for all names of a known one.
    #[must_use]
    pub fn app_key(&self) -> CounterKey {
        self.app_key
    }

    /// The limits that an authorised call is charged, the app's own in place of those for all.
    pub fn limits<'r>(&self, rules: &'r Ruleset) -> impl Iterator<Item = LimitId> + use<'r> {
        let of_all: &[LimitId] = match self.route(rules) {
            Some(route) => route
                .editions
                .get(self.edition.0)
                .map_or(&[], |e| &e.limits),
            None => &rules.ip_limits.options,
        };
        let app = self.app(rules);
        of_all
            .iter()
            .map(move |id| app.map_or(*id, |app| app.limit(*id)))
    }

    /// What its bearer token must be.
    #[must_use]
    pub fn auth(&self, rules: &Ruleset, policy: &Policy) -> Auth {
        let own = self.route(rules).map(|route| route.auth);
        match own {
            None => Auth::Off,
            // A spelling gives no rights that a path of no route would not have.
            Some(Some(Auth::Off)) if self.respelt => policy.auth,
            Some(own) => own.unwrap_or(policy.auth),
        }
    }

    /// The largest body it may have, in bytes, where routes without a figure of their own have
    /// `of_all`. One that is read before the decision is smaller in any case.
    #[must_use]
    pub fn max_body(&self, rules: &Ruleset, of_all: u64) -> u64 {
        let own = self.route(rules).and_then(|route| route.max_body);
        own.unwrap_or(of_all)
    }

    /// Whether others would miss for long what this call takes of its app or user: a slot, or
    /// units of the day or of a total. Such a call takes them only when its body is
    /// there as a whole: a bad token, told by the backend's 401, must not keep them meanwhile by
    /// a body that never ends.
    #[must_use]
    pub fn holds_others_up(&self, rules: &Ruleset) -> bool {
        self.holds_rates_up(rules) || totals::takes(rules, self)
    }

    /// Whether a body of its that is read as a whole, and is too large for that, is a message's.
    #[must_use]
    pub fn has_message(&self, rules: &Ruleset) -> bool {
        let is_counted = |route: &Route| route.cost.is_some();
        self.route(rules).is_some_and(is_counted) || self.holds_rates_up(rules)
    }

    fn holds_rates_up(&self, rules: &Ruleset) -> bool {
        self.limits(rules).any(|id| {
            let limit = rules.limit(id);
            limit.scope != Scope::Ip && matches!(limit.window, Window::Day(_) | Window::Running)
        })
    }
}

/// An app as counters know it.
pub(super) struct Named {
    pub(super) name: String,
    pub(super) key: CounterKey,
    pub(super) known: Option<AppId>,
    pub(super) edition: EditionId,
}

/// The app of this name in this form: all names of a known app are one.
pub(super) fn named<'a>(
    rules: &Ruleset,
    policy: &Policy,
    name: impl Into<Cow<'a, str>>,
    form: Form,
) -> Named {
    let (name, key, known) = counted(rules, name);
    let own = known.and_then(|id| rules.apps.get(id)?.editions);
    let (by_key, by_id) = own.unwrap_or(policy.editions);
    Named {
        name,
        key,
        known,
        edition: match form {
            Form::AppKey => by_key,
            Form::AppId => by_id,
        },
    }
}

/// The name and key by which the counters know an app of this name, and its entry.
pub(super) fn counted<'a>(
    rules: &Ruleset,
    name: impl Into<Cow<'a, str>>,
) -> (String, CounterKey, Option<AppId>) {
    let mut name = identity::fold_app(name, rules.fold_app_names);
    let id = rules.apps.find_id(&name);
    let Some(app) = id.and_then(|id| rules.apps.get(id)) else {
        let key = rules.keys.app(&name);
        return (name, key, None);
    };
    if name != app.name() {
        app.name().clone_into(&mut name);
    }
    (name, app.key, id)
}

/// Steps 1 and 2: who calls, and what.
///
/// `path` is the canonical path ([`canonical::canonical`]); the one that is forwarded.
///
/// # Errors
/// [`Reject`]; the caller then asks [`Admission::charge_address`](super::Admission::charge_address) whether the address may
/// still have that answer.
pub fn screen(
    rules: &Ruleset,
    policy: &Policy,
    head: &Head<'_>,
    path: &str,
) -> Result<Call, Reject> {
    if matches!(head.method, "TRACE" | "CONNECT") {
        // Never for a backend: one echoes credentials, the other opens a tunnel.
        let allow = "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT".to_owned();
        return Err(Reject::MethodNotAllowed { allow });
    }
    let (app, tail) = canonical::split_app(path).ok_or(Reject::NotFound)?;
    let named = named(rules, policy, app.name, app.form);
    if let Some(known) = named.known.and_then(|id| rules.apps.get(id)) {
        if known.suspended {
            return Err(Reject::Suspended);
        }
        if !known.allows(head.ip) {
            return Err(Reject::Address);
        }
    } else if policy.unknown_apps == UnknownApps::Reject {
        return Err(Reject::UnknownApp);
    }
    let mut respelt = false;
    let (target, user) = if head.method == "OPTIONS" {
        (Target::Options, None)
    } else {
        match rules.table.find(head.method, tail) {
            Found::Route { id, user } => (Target::Route(id), user.map(identity::fold_user)),
            Found::MethodNotAllowed(allow) => return Err(Reject::MethodNotAllowed { allow }),
            Found::Unmatched | Found::Respelt { .. } if rules.unmatched == Unmatched::Reject => {
                return Err(Reject::NotFound);
            }
            Found::Respelt { id, user } => {
                respelt = true;
                (Target::Route(id), user.map(identity::fold_user))
            }
            Found::Unmatched => (Target::Unmatched, None),
        }
    };
    let ip = identity::address::prefix(head.ip, policy.ipv6_prefix);
    let call = Call {
        target,
        form: app.form,
        edition: named.edition,
        ip,
        ip_key: rules.keys.ip(ip),
        app_key: named.key,
        caller: Caller {
            app: named.name,
            user,
        },
        known: named.known,
        respelt,
    };
    if call.auth(rules, policy) != Auth::Off && !head.has_bearer {
        return Err(Reject::Unauthenticated);
    }
    Ok(call)
}
