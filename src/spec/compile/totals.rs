//! `[totals]` → [`KindRules`], and what routes do to totals.

use super::{Compiler, WITH_BODY};
use crate::apps::AppPlan;
use crate::limit::total::{Holder, Kind};
use crate::spec::totals::{Count, KindRules, Of, PlanFigures, RouteTotals, Rule};
use crate::spec::written::{At, WrittenCount, WrittenRoute, WrittenRule};
use crate::spec::{Edition, EditionId};

/// Why a rule is none.
type Wrong = (super::super::check::Place, String, String);

impl Compiler<'_> {
    pub(super) fn totals(&mut self, editions: &[Edition]) -> Box<[KindRules]> {
        let kinds = Kind::ALL.map(|kind| self.kind(kind, editions));
        self.mistakes.within(String::new());
        Box::new(kinds)
    }

    fn kind(&mut self, kind: Kind, editions: &[Edition]) -> KindRules {
        self.mistakes.within(format!("[totals.{}]", kind.as_str()));
        let Some(written) = self.written.totals.get(&kind) else {
            return KindRules::default();
        };
        for (edition, entry) in &written.editions {
            let missing = AppPlan::ALL.iter().zip(&entry.most);
            let missing: Vec<&str> = missing
                .filter(|(_, most)| most.is_none())
                .map(|(plan, _)| plan.as_str())
                .collect();
            if !missing.is_empty() && !self.mistakes.has_lost() {
                let message = format!(
                    "an edition has a figure for each plan; add {} = \"unlimited\", or a number",
                    missing.join(" = \"unlimited\", ")
                );
                self.mistakes.add(entry.at, edition, message);
            }
        }
        let printed = |at: usize| {
            let entry = written.editions.get(&*editions.get(at)?.name)?;
            let mut most = [0; AppPlan::ALL.len()];
            for (most, written) in most.iter_mut().zip(entry.most) {
                *most = written??;
            }
            Some(PlanFigures {
                most,
                from: EditionId(at),
                sources: entry.sources.iter().map(|s| s.as_str().into()).collect(),
            })
        };
        // As with limits: one that prints none has those of the newest that does.
        let newest = (0..editions.len()).rev().find_map(printed);
        KindRules {
            mode: written.mode.unwrap_or_default(),
            editions: (0..editions.len())
                .map(|at| printed(at).or_else(|| newest.clone()))
                .collect(),
        }
    }

    pub(super) fn route_totals(&mut self, route: &WrittenRoute) -> RouteTotals {
        let written = &route.totals;
        let mut rules = |rules: &[WrittenRule], frees: bool| -> Box<[Rule]> {
            let compiled = rules.iter().filter_map(|rule| {
                let compiled = rule_of(route, rule, frees);
                compiled
                    .map_err(|(at, text, why)| self.mistakes.add(at, text, why))
                    .ok()
            });
            compiled.collect()
        };
        let (makes, frees) = (rules(&written.makes, false), rules(&written.frees, true));
        let tells = written.tells.as_ref().map(|(kind, at)| {
            if kind.holder() != Holder::App {
                let message = "an answer tells totals of an app alone";
                self.mistakes.add(at.at, kind.as_str(), message);
            }
            (*kind, at.value.as_str().into())
        });
        let totals = RouteTotals {
            makes,
            frees,
            tells,
        };
        let methods = route.calls.iter().map(|call| call.value.split(' ').next());
        let bodiless = methods.flatten().any(|method| !WITH_BODY.contains(&method));
        if let Some(first) = written.makes.iter().chain(&written.frees).next()
            && totals.reads_body()
            && bodiless
        {
            let message =
                "calls of this route have no body to count in; only POST, PUT and PATCH have one";
            self.mistakes.add(first.at, "", message);
        }
        totals
    }
}

fn rule_of(route: &WrittenRoute, rule: &WrittenRule, frees: bool) -> Result<Rule, Wrong> {
    let kind = rule.kind;
    let wrong = |text: &str, why: &str| Err((rule.at, text.to_owned(), why.to_owned()));
    let of = match (kind.holder(), &rule.of, &rule.new) {
        (Holder::App, None, None) => Of::App,
        (Holder::App, ..) => {
            return wrong(
                kind.as_str(),
                "the app itself holds these; leave `of` and `new` out",
            );
        }
        (_, Some(of), None) => match segment(route, of)? {
            Some(at) => Of::Segment(at),
            None => Of::Field(of.value.as_str().into()),
        },
        (_, None, Some(new)) if !frees => Of::Answer(new.value.as_str().into()),
        _ => {
            return wrong(
                kind.as_str(),
                "whose they are is not said; write of = \"{username}\", a field of the body, or, of what is made, new = \"data.groupid\"",
            );
        }
    };
    let count = match &rule.count {
        None => Count::Units(1),
        Some(WrittenCount::None) if frees => return wrong("count", "0 frees nothing"),
        Some(WrittenCount::None) => Count::Units(0),
        Some(WrittenCount::Fields(fields)) => Count::Fields(
            fields
                .iter()
                .map(|field| field.value.as_str().into())
                .collect(),
        ),
        Some(WrittenCount::Word(word)) => match (&*word.value, frees) {
            ("body", _) => Count::Body,
            ("all", true) => Count::All,
            ("answer", true) if rule.made.is_some() => Count::Answer,
            ("answer", true) => {
                return wrong("answer", "where does it say so? write made = \"entities\"");
            }
            ("all" | "answer", false) => {
                return wrong(
                    &word.value,
                    "what a call makes must be known before it is forwarded",
                );
            }
            _ => match segment(route, word)? {
                Some(at) => Count::Segment(at),
                None => {
                    return wrong(
                        &word.value,
                        "no count; write \"body\", a parameter of the path, or [\"field\"]",
                    );
                }
            },
        },
    };
    Ok(Rule {
        kind,
        of,
        count,
        made: rule.made.as_deref().map(Into::into),
    })
}

/// The segment of this parameter, if it is written as one. Each call must have it there.
fn segment(route: &WrittenRoute, name: &At<String>) -> Result<Option<usize>, Wrong> {
    if !name.value.starts_with('{') {
        return Ok(None);
    }
    let mut places = route.calls.iter().map(|call| {
        let path = call.value.split_once(' ').map_or("", |(_, path)| path);
        path.trim()
            .split('/')
            .skip(1)
            .position(|segment| segment == name.value)
    });
    let first = places.next().flatten();
    if first.is_none() || places.any(|place| place != first) {
        let message = "each call of the route has this parameter at one place of its path";
        return Err((name.at, name.value.clone(), message.to_owned()));
    }
    Ok(first)
}
