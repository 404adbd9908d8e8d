//! Figures of an app's own: which limit for all each goes over.

use std::collections::{BTreeSet, HashMap};
use std::num::NonZeroU32;

use super::{Compiler, Forms};
use crate::limit::{Limit, LimitId, Scope, Window};
use crate::spec::check::suggestion;
use crate::spec::figure::{Figure, Period};
use crate::spec::written::{At, WrittenApp, WrittenFigure};
use crate::spec::{EditionId, Ruleset};

impl Compiler<'_> {
    pub(super) fn limits(
        &mut self,
        written: &WrittenApp,
        editions: Option<(EditionId, EditionId)>,
        forms: Forms,
    ) -> Vec<(LimitId, LimitId)> {
        let Some((rules, for_all)) = self.rules else {
            return Vec::new();
        };
        let is_lost = written.edition.is_some() && editions.is_none();
        if is_lost || !forms.key && !forms.id {
            // Nobody knows which limits are meant.
            return Vec::new();
        }
        let (by_key, by_id) = editions.unwrap_or(for_all);
        let of_form = [(forms.key, by_key), (forms.id, by_id)];
        let mut charged = BTreeSet::new();
        for (_, edition) in of_form.into_iter().filter(|(is_there, _)| *is_there) {
            let known = self.charged.entry(edition.0);
            charged.extend(known.or_insert_with(|| charged_in(rules, edition)).iter());
        }
        let mut own: HashMap<LimitId, NonZeroU32> = HashMap::new();
        let mut copies: HashMap<LimitId, NonZeroU32> = HashMap::new();
        for (owner, figures) in &written.limits {
            let of_owner: Vec<LimitId> = charged
                .iter()
                .copied()
                .filter(|id| owner_of(rules.limit(*id)) == owner.value)
                .collect();
            if of_owner.is_empty() {
                self.no_limit(rules, &charged, owner);
                continue;
            }
            for figure in figures {
                let meant = match meant(rules, &of_owner, figure) {
                    Ok(meant) => meant,
                    Err(why) => {
                        self.mistakes.add(figure.at, &*figure.text, why);
                        continue;
                    }
                };
                for id in meant {
                    if own.insert(id, figure.figure.quota).is_some() {
                        let message = "two figures for one limit; keep the one that is meant";
                        self.mistakes.add(figure.at, &*figure.text, message);
                    }
                    copies.extend(raised_copies(rules, &of_owner, id, figure.figure.quota));
                }
            }
        }
        // A figure per IP that is written out stands instead of the raised copy.
        copies.extend(own);
        copies
            .into_iter()
            .map(|(id, quota)| (id, self.own_limit(rules, id, quota)))
            .collect()
    }

    /// Says which limit is meant perhaps.
    fn no_limit(&mut self, rules: &Ruleset, charged: &BTreeSet<LimitId>, owner: &At<String>) {
        let in_group = rules
            .routes
            .iter()
            .find(|route| *route.name == *owner.value)
            .and_then(|route| {
                let ids = route.editions.iter().flat_map(|edition| &edition.limits);
                let mut ids = ids.filter(|id| charged.contains(id));
                ids.find_map(|id| rules.limit(*id).group.as_deref())
            });
        let message = match in_group {
            Some(group) => {
                format!("this route shares the counter of group `{group}`; write limits.{group}")
            }
            None => {
                let owners: BTreeSet<&str> = charged
                    .iter()
                    .map(|id| owner_of(rules.limit(*id)))
                    .collect();
                format!(
                    "no route or group with a limit in the app's edition (`floodgate routes` lists them); {}",
                    suggestion(&owner.value, owners)
                )
            }
        };
        self.mistakes
            .add(owner.at, format!("limits.{}", owner.value), message);
    }

    /// The limit with this figure; the same counter as the one for all.
    fn own_limit(&mut self, rules: &Ruleset, id: LimitId, quota: NonZeroU32) -> LimitId {
        let for_all = rules.limit(id);
        if for_all.quota == quota {
            return id;
        }
        let next = rules.limits.len() + self.own.len();
        let next = LimitId(u32::try_from(next).unwrap_or(u32::MAX));
        *self.known.entry((id, quota)).or_insert_with(|| {
            self.own.push(Limit {
                quota,
                sources: Box::default(),
                ..for_all.clone()
            });
            next
        })
    }
}

/// The limits that calls of this edition are charged.
fn charged_in(rules: &Ruleset, edition: EditionId) -> BTreeSet<LimitId> {
    rules
        .routes
        .iter()
        .chain([&rules.unmatched_route])
        .filter_map(|route| route.editions.get(edition.0))
        .flat_map(|edition| edition.limits.iter().copied())
        .collect()
}

/// The route or group whose limit it is: the first part of its name.
fn owner_of(limit: &Limit) -> &str {
    limit.name.split(':').next().unwrap_or_default()
}

fn is_period(window: &Window, period: Period) -> bool {
    match (window, period) {
        (Window::Sliding(length), Period::Sliding(other)) => *length == other,
        (Window::Day(_), Period::Day) | (Window::Running, Period::Running) => true,
        _ => false,
    }
}

/// Which of these limits a figure is for.
fn meant(
    rules: &Ruleset,
    of_owner: &[LimitId],
    written: &WrittenFigure,
) -> Result<Vec<LimitId>, String> {
    let figure = &written.figure;
    let has_unit = Figure::names_unit(&written.text);
    let fits = |id: &LimitId| {
        let limit = rules.limit(*id);
        let counts = !has_unit || limit.unit == figure.unit;
        counts && limit.scope == figure.scope && is_period(&limit.window, figure.period)
    };
    let meant: Vec<LimitId> = of_owner.iter().copied().filter(fits).collect();
    let names: BTreeSet<&str> = meant.iter().map(|id| &*rules.limit(*id).name).collect();
    let all = || {
        let mut all: Vec<&str> = of_owner
            .iter()
            .filter_map(|id| rules.limit(*id).name.split_once(':'))
            .map(|(_, counter)| counter)
            .collect();
        all.sort_unstable();
        all.dedup();
        all.join(", ")
    };
    match names.len() {
        1 => Ok(meant),
        0 => Err(format!(
            "an app's figure goes over one for all, and there is none of this unit, window and scope; there are {}",
            all()
        )),
        _ => Err(format!(
            "which of them? write calls or messages; there are {}",
            all()
        )),
    }
}

/// The copies of this limit per IP (rule 3 of the documents) that would stand in the way of a
/// raised figure. A lowered one leaves them: an address is not to pay for the app's figure by
/// what it does elsewhere.
fn raised_copies(
    rules: &Ruleset,
    of_owner: &[LimitId],
    id: LimitId,
    quota: NonZeroU32,
) -> Vec<(LimitId, NonZeroU32)> {
    let limit = rules.limit(id);
    if limit.scope != Scope::App || quota <= limit.quota {
        return Vec::new();
    }
    of_owner
        .iter()
        .filter(|other| {
            let other = rules.limit(**other);
            other.scope == Scope::Ip
                && other.unit == limit.unit
                && other.window == limit.window
                && other.quota == limit.quota
        })
        .map(|other| (*other, quota))
        .collect()
}
