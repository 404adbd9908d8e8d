//! What one value alone cannot tell: limits, routes and groups against each other.

use std::collections::{HashMap, HashSet};

use super::{Compiler, WITH_BODY};
use crate::limit::{Hold, Scope, Unit};
use crate::route::pricing::MAX_COUNTED_BODY;
use crate::spec::check::suggestion;
use crate::spec::written::{At, WrittenEdition, WrittenLimit, WrittenRoute};
use crate::spec::{Edition, Route};

impl Compiler<'_> {
    /// Two limits of one counter would charge it twice.
    pub(super) fn check_twins(&mut self, limits: &[WrittenLimit]) {
        let mut seen = HashSet::new();
        for limit in limits {
            if !seen.insert(limit.counter_name(limit.figure.scope)) {
                let message =
                    "two limits of one unit, window and scope; keep the one that is meant";
                self.mistakes.add(limit.at, &*limit.text, message);
            }
            if limit.hold == Hold::Task && limit.figure.scope != Scope::App {
                let message =
                    "hold = \"task\" is for limits per app: a task is reported done by its app";
                self.mistakes.add(limit.at, &*limit.text, message);
            }
            if limit.max_hold.is_some() && limit.hold == Hold::Response {
                let message = "max_hold does nothing without hold = \"task\"";
                self.mistakes.add(limit.at, &*limit.text, message);
            }
        }
    }

    /// Counters are named by route or group: one name for both would be one counter.
    pub(super) fn check_names(&mut self) {
        let reserved = ["unmatched", "unauthorized", "rejected", "options", "none"];
        for group in &self.written.groups {
            if let Some(route) = self
                .written
                .routes
                .iter()
                .find(|route| route.name.value == group.name.value)
            {
                let message = "a route and a group of one name would share counters; rename one";
                self.mistakes.add(
                    route.name.at.max(group.name.at),
                    &*group.name.value,
                    message,
                );
            }
        }
        let mut alike: HashMap<String, &At<String>> = HashMap::new();
        let names = self
            .written
            .groups
            .iter()
            .map(|g| &g.name)
            .chain(self.written.routes.iter().map(|r| &r.name));
        for name in names {
            if let Some(other) = alike.insert(name.value.replace('_', "-"), name)
                && other.value != name.value
            {
                let message = format!("differs from `{}` by its dashes alone", other.value);
                self.mistakes.add(name.at, &*name.value, message);
            }
            if reserved.contains(&&*name.value) {
                self.mistakes.add(
                    name.at,
                    &*name.value,
                    "this name is the gateway's own; choose another",
                );
            }
        }
    }

    /// A group that no route names is most likely a misspelt name. One whose routes a later file
    /// has taken out is not: nobody can remove a group of the shipped file.
    pub(super) fn check_uses(&mut self) {
        for group in &self.written.groups {
            let name = &group.name.value;
            if !self.written.used_groups.contains(name) && !self.mistakes.may_have_lost(name) {
                let message = format!(
                    "no route is in this group; write group = \"{}\" in an edition of its routes, or remove it",
                    group.name.value
                );
                self.mistakes
                    .add(group.name.at, &*group.name.value, message);
            }
        }
    }

    /// Messages are counted by a field of the body, or are one for each call: a route says which.
    fn check_messages(&mut self, written: &WrittenRoute, edition: &str, entry: &WrittenEdition) {
        if written.cost.is_some() || written.is_one_message {
            return;
        }
        let message = "nothing says how many messages a call has; write e.g. cost = \"to\" in the route, or cost = 1 if each call has one";
        for limit in &entry.limits {
            if limit.figure.unit == Unit::Messages {
                self.mistakes.add(limit.at, &*limit.text, message);
            }
        }
        let Some(group) = &entry.group else { return };
        let figures = self
            .written
            .groups
            .iter()
            .find(|known| known.name.value == group.value)
            .and_then(|known| known.editions.get(edition));
        if figures.is_some_and(|figures| {
            let mut limits = figures.limits.iter();
            limits.any(|limit| limit.figure.unit == Unit::Messages)
        }) {
            self.mistakes.add(group.at, &*group.value, message);
        }
    }

    /// A group's routes can have their figures from different editions (rule 4): one counter
    /// must not get two quotas by that.
    pub(super) fn check_counters(&mut self, routes: &[Route], editions: &[Edition]) {
        if self.mistakes.has_lost() {
            // A figure may be in what could not be read.
            return;
        }
        let mut told = HashSet::new();
        for (i, edition) in editions.iter().enumerate() {
            let mut quotas: HashMap<&str, (u32, &str)> = HashMap::new();
            for route in routes {
                let ids = route
                    .editions
                    .get(i)
                    .map(|e| &*e.limits)
                    .unwrap_or_default();
                for limit in ids.iter().filter_map(|id| self.limits.get(id.0 as usize)) {
                    let quota = limit.quota.get();
                    let (other, by) = *quotas.entry(&*limit.name).or_insert((quota, &*route.name));
                    let Some(group) = self
                        .written
                        .groups
                        .iter()
                        .find(|group| Some(&*group.name.value) == limit.group.as_deref())
                    else {
                        continue;
                    };
                    if other != quota && told.insert(&*group.name.value) {
                        let at = group.editions.values().filter_map(|entry| entry.at).max();
                        let message = format!(
                            "in edition {} this counter has two quotas, {other} for route `{by}` and {quota} for route `{}`; write one figure in every edition, or an entry for {} in both routes",
                            edition.name, route.name, edition.name
                        );
                        self.mistakes
                            .add(at.unwrap_or(group.name.at), &*limit.name, message);
                    }
                }
            }
        }
    }

    pub(super) fn check_cost(&mut self, written: &WrittenRoute, calls: &[(Box<str>, Box<str>)]) {
        if let Some(cost) = &written.cost {
            if let Some((method, _)) = calls
                .iter()
                .find(|(method, _)| !WITH_BODY.contains(&&**method))
            {
                let message = format!("{method} has no body to read a cost from; remove `cost`");
                self.mistakes.add(cost.at, &*cost.value, message);
            }
            if cost.value.is_empty() {
                self.mistakes.add(
                    cost.at,
                    "",
                    "the cost's field is empty; write e.g. cost = \"to\"",
                );
            }
        }
        if let Some(max) = &written.max_recipients {
            if max.value == 0 {
                self.mistakes.add(
                    max.at,
                    "max_recipients = 0",
                    "no call can ever satisfy it; write at least 1, or leave it out",
                );
            }
            if written.cost.is_none() {
                self.mistakes.add(
                    max.at,
                    "max_recipients",
                    "what is counted is missing: cost = \"to\"",
                );
            }
        }
        for (field, max) in &written.caps {
            if *max == 0 {
                let message = "no call can ever satisfy it; write at least 1, or leave it out";
                self.mistakes
                    .add(field.at, format!("{} = 0", field.value), message);
            }
            match &written.cost {
                None => {
                    let message = "what is counted is missing beside it: cost = \"to\"";
                    self.mistakes.add(field.at, &*field.value, message);
                }
                Some(cost) if cost.value == field.value => {
                    let message = format!("the cost's own cap is written max_recipients = {max}");
                    self.mistakes.add(field.at, &*field.value, message);
                }
                Some(_) => {}
            }
        }
    }

    /// A figure that could never hold is a mistake, not a promise.
    pub(super) fn check_body(&mut self, written: &WrittenRoute, calls: &[(Box<str>, Box<str>)]) {
        let Some(max) = &written.max_body else { return };
        let most = u64::try_from(MAX_COUNTED_BODY).unwrap_or(u64::MAX);
        let message = if written.cost.is_some() && max.value > most {
            "a body whose recipients are counted has 64KiB at most; leave max_body out, or write less"
        } else if !calls.is_empty()
            && !calls
                .iter()
                .any(|(method, _)| WITH_BODY.contains(&&**method))
        {
            "none of these calls has a body; remove max_body"
        } else {
            return;
        };
        self.mistakes.add(max.at, "max_body", message);
    }

    pub(super) fn check_entry(
        &mut self,
        written: &WrittenRoute,
        edition: &str,
        entry: &WrittenEdition,
        has_user: bool,
    ) {
        self.check_messages(written, edition, entry);
        let at = entry.at.unwrap_or(written.name.at);
        if !entry.has_limits && entry.group.is_none() {
            self.mistakes.add(at, &*written.name.value, "an edition that prints a route has limits or a group; to switch limits off write mode = \"off\"");
        }
        for limit in &entry.limits {
            if limit.figure.scope == Scope::User && !has_user {
                self.mistakes.add(
                    limit.at,
                    &*limit.text,
                    "the path has no `{username}`, whose calls could be counted",
                );
            }
        }
        let Some(group) = &entry.group else { return };
        let groups = &self.written.groups;
        if let Some(known) = groups.iter().find(|known| known.name.value == group.value) {
            let user = known
                .editions
                .get(edition)
                .and_then(|e| e.limits.iter().find(|l| l.figure.scope == Scope::User));
            if let (Some(limit), false) = (user, has_user) {
                let message = format!(
                    "route `{}` of this group has no `{{username}}`",
                    written.name.value
                );
                self.mistakes.add(limit.at, &*limit.text, message);
            }
        } else if !self.mistakes.may_have_lost(&group.value) {
            let near = suggestion(&group.value, groups.iter().map(|g| g.name.value.as_str()));
            self.mistakes
                .add(group.at, &*group.value, format!("unknown group; {near}"));
        }
    }
}
