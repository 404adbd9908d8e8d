//! Figures as limits: whose counter, which copies, from which edition.

use std::collections::HashSet;
use std::time::Duration;

use super::{Compiler, Terms};
use crate::limit::calendar::Zone;
use crate::limit::{Denial, Limit, LimitId, Mode, OnStoreFailure, Scope, Unit, Window};
use crate::spec::check::Place;
use crate::spec::figure::Period;
use crate::spec::written::{WrittenEdition, WrittenLimit, WrittenRoute};
use crate::spec::{Edition, EditionId, RouteLimits};

/// The longest that a slot is held past its response, unless a limit says otherwise
/// (`service.md`: the service lets go of a running-task slot after 5 minutes).
const DEFAULT_MAX_HOLD: Duration = Duration::from_secs(300);
/// Upstream statuses that give app and user units back, unless a limit says otherwise.
const DEFAULT_REFUND_ON: &[u16] = &[401];

/// Whose counters a limit has.
pub(super) struct Owner<'a> {
    pub(super) name: &'a str,
    pub(super) group: Option<&'a str>,
    pub(super) denial: Option<Denial>,
    /// Of its limits that have none of their own.
    pub(super) mode: Option<Mode>,
    pub(super) on_store_failure: Option<OnStoreFailure>,
    pub(super) sources: &'a [String],
}

impl Owner<'_> {
    fn mode_of(&self, limit: &WrittenLimit) -> Mode {
        limit.mode.or(self.mode).unwrap_or_default()
    }
}

impl Compiler<'_> {
    pub(super) fn limit(
        &mut self,
        written: &WrittenLimit,
        owner: &Owner<'_>,
        scope: Scope,
    ) -> LimitId {
        let figure = &written.figure;
        let zone = written.zone.as_ref();
        let name = format!("{}:{}", owner.name, written.counter_name(scope));
        let terms = Terms {
            name,
            quota: figure.quota.get(),
            mode: owner.mode_of(written),
            on_store_failure: written
                .on_store_failure
                .or(owner.on_store_failure)
                .unwrap_or_default(),
            refund_on: match (&written.refund_on, scope) {
                (Some(statuses), _) => statuses.clone(),
                (None, Scope::Ip) => Vec::new(),
                (None, _) => DEFAULT_REFUND_ON.to_vec(),
            },
            hold: written.hold,
            max_hold: written.max_hold.unwrap_or(DEFAULT_MAX_HOLD),
            denial: written
                .denial
                .or(owner.denial)
                .unwrap_or(match figure.unit {
                    Unit::Calls => Denial::CallRate,
                    Unit::Messages => Denial::MessageCount,
                    Unit::Tasks => Denial::Push,
                }),
        };
        if let Some(id) = self.known.get(&terms) {
            let id = *id;
            if let Some(limit) = self.limits.get_mut(id.0 as usize) {
                let mut sources: Vec<Box<str>> = limit.sources.to_vec();
                sources.extend(owner.sources.iter().map(|s| s.as_str().into()));
                sources.sort_unstable();
                sources.dedup();
                limit.sources = sources.into();
            }
            return id;
        }
        let id = LimitId(u32::try_from(self.limits.len()).unwrap_or(u32::MAX));
        self.limits.push(Limit {
            salt: self.keys.limit(&terms.name),
            name: terms.name.as_str().into(),
            unit: figure.unit,
            quota: figure.quota,
            window: match figure.period {
                Period::Sliding(length) => Window::Sliding(length),
                Period::Day => Window::Day(zone.map_or(Zone::UTC, |(_, zone)| zone.clone())),
                Period::Running => Window::Running,
            },
            scope,
            group: owner.group.map(Into::into),
            mode: terms.mode,
            on_store_failure: terms.on_store_failure,
            refund_on: terms.refund_on.as_slice().into(),
            hold: terms.hold,
            max_hold: terms.max_hold,
            denial: terms.denial,
            sources: owner.sources.iter().map(|s| s.as_str().into()).collect(),
        });
        self.known.insert(terms, id);
        id
    }

    /// These limits, each followed by its per-IP copy where the edition has one (rule 3 of the
    /// documents: per-app limits on calls and messages for seconds and minutes).
    pub(super) fn with_ip_copies(
        &mut self,
        written: &[WrittenLimit],
        owner: &Owner<'_>,
        ip_copy: bool,
    ) -> Vec<LimitId> {
        let mut own = Vec::new();
        let mut copies = Vec::new();
        let named: HashSet<String> = written
            .iter()
            .map(|limit| limit.counter_name(limit.figure.scope))
            .collect();
        for limit in written
            .iter()
            .filter(|limit| owner.mode_of(limit) != Mode::Off)
        {
            own.push(self.limit(limit, owner, limit.figure.scope));
            let copied = limit.figure.scope == Scope::App
                && matches!(limit.figure.period, Period::Sliding(_))
                // A figure per IP that is written out stands instead of the copy.
                && !named.contains(&limit.counter_name(Scope::Ip));
            if ip_copy && copied {
                // The copy's refunds are the default ones: the address goes on paying.
                let copy = WrittenLimit {
                    refund_on: None,
                    ..limit.clone()
                };
                copies.push(self.limit(&copy, owner, Scope::Ip));
            }
        }
        own.extend(copies);
        own
    }

    pub(super) fn address_limits(
        &mut self,
        name: &str,
        written: &[WrittenLimit],
    ) -> Box<[LimitId]> {
        let owner = Owner {
            name,
            group: None,
            denial: None,
            mode: None,
            on_store_failure: None,
            sources: &[],
        };
        written
            .iter()
            .filter(|limit| owner.mode_of(limit) != Mode::Off)
            .map(|limit| self.limit(limit, &owner, Scope::Ip))
            .collect()
    }

    /// Rule 4 of the documents: what the edition does not print, it takes whole from the newest
    /// edition that prints it; its own rule of per-IP copies holds all the same.
    pub(super) fn route_limits(
        &mut self,
        written: &WrittenRoute,
        editions: &[Edition],
        selected: EditionId,
        ip_copy: bool,
    ) -> RouteLimits {
        let name_of = |id: EditionId| editions.get(id.0).map(|e| &*e.name).unwrap_or_default();
        let printed = |id: EditionId| written.editions.get(name_of(id));
        let newest = (0..editions.len())
            .rev()
            .map(EditionId)
            .find(|id| printed(*id).is_some());
        let from = printed(selected).map(|_| selected).or(newest);
        let sources = printed(selected)
            .map(|entry| entry.sources.iter().map(|s| s.as_str().into()).collect())
            .unwrap_or_default();
        let Some((from, entry)) = from.and_then(|from| Some((from, printed(from)?))) else {
            let owner = Owner {
                name: &written.name.value,
                group: None,
                denial: written.denial,
                mode: written.mode,
                on_store_failure: written.on_store_failure,
                sources: &[],
            };
            let limits = self.with_ip_copies(&self.written.defaults, &owner, ip_copy);
            return RouteLimits {
                limits: limits.into(),
                from: None,
                sources,
            };
        };
        let ip_copy = ip_copy && entry.ip_copy != Some(false);
        let mut limits = Vec::new();
        if let Some(group) = &entry.group {
            limits.extend(self.group_limits(&group.value, name_of(from), entry, written, ip_copy));
        }
        let owner = Owner {
            name: &written.name.value,
            group: None,
            denial: written.denial,
            mode: written.mode,
            on_store_failure: written.on_store_failure,
            sources: &entry.sources,
        };
        limits.extend(self.with_ip_copies(&entry.limits, &owner, ip_copy));
        RouteLimits {
            limits: limits.into(),
            from: Some(from),
            sources,
        }
    }

    pub(super) fn group_limits(
        &mut self,
        name: &str,
        edition: &str,
        entry: &WrittenEdition,
        route: &WrittenRoute,
        ip_copy: bool,
    ) -> Vec<LimitId> {
        // An unknown group is told where the entry is checked.
        let Some(group) = self
            .written
            .groups
            .iter()
            .find(|group| group.name.value == name)
        else {
            return Vec::new();
        };
        let Some(figures) = group.editions.get(edition) else {
            if self.mistakes.may_have_lost(name) {
                return Vec::new();
            }
            let at: Place = entry.group.as_ref().map_or(route.name.at, |group| group.at);
            let message = format!(
                "the group has no figures for this edition; add to it: {edition} = {{ limits = [\"100/s\"] }}"
            );
            self.mistakes.add(at, name, message);
            return Vec::new();
        };
        let ip_copy = ip_copy && figures.ip_copy != Some(false);
        let owner = Owner {
            name,
            group: Some(name),
            denial: route.denial.or(group.denial),
            mode: route.mode.or(group.mode),
            on_store_failure: route.on_store_failure.or(group.on_store_failure),
            sources: &figures.sources,
        };
        self.with_ip_copies(&figures.limits, &owner, ip_copy)
    }
}
