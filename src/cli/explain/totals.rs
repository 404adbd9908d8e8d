//! What `explain` says of what a call does to the totals of its app's plan.

use serde::Serialize;

use crate::admission::totals::{self, Full};
use crate::admission::{Call, Reject};
use crate::gateway::reply::Reply;
use crate::limit::Mode;
use crate::limit::total::{Kind, TotalCharge};
use crate::spec::Ruleset;
use crate::spec::totals::Held;

/// One total of a call.
#[derive(Debug, Serialize)]
pub(super) struct TotalView<'r> {
    total: &'static str,
    /// The user or group that holds it; `null`: the app, or what the body would name.
    of: Option<Box<str>>,
    effect: &'static str,
    /// How many it may make; `null`: the body, or the answer, says it.
    units: Option<u32>,
    /// `null`: any number.
    max: Option<u64>,
    mode: &'static str,
    /// Whether calls alone cannot tell it.
    approximate: bool,
    /// Whether it is refused however few there are.
    never_fits: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    sources: Vec<&'r str>,
}

/// What is said of all totals, and what refuses the call whatever they are.
#[derive(Debug, Default)]
pub(super) struct Totals<'r> {
    pub(super) views: Vec<TotalView<'r>>,
    pub(super) refused: Option<Reply>,
}

impl<'r> TotalView<'r> {
    fn new(kind: Kind, effect: &'static str, held: Held<'r>) -> Self {
        let sources = held.figures.map_or(&[][..], |figures| &figures.sources);
        Self {
            total: kind.as_str(),
            of: None,
            effect,
            units: None,
            max: (held.most != u64::MAX).then_some(held.most),
            mode: match held.mode {
                Mode::Enforce => "enforce",
                Mode::Report => "report",
                Mode::Off => "off",
            },
            approximate: kind.is_approximate(),
            never_fits: false,
            sources: sources.iter().map(|source| &**source).collect(),
        }
    }

    fn charged(charge: &TotalCharge, held: Held<'r>) -> Self {
        Self {
            of: charge.whose.clone(),
            units: Some(charge.units),
            never_fits: charge.can_never_fit(),
            ..Self::new(charge.kind, "takes", held)
        }
    }
}

/// What a call does to totals. How many there are is not known here.
pub(super) fn told<'r>(
    rules: &'r Ruleset,
    call: &Call,
    path: &str,
    body: Option<&[u8]>,
) -> Totals<'r> {
    let route = call.route(rules).filter(|route| !route.totals.is_empty());
    let app = call.app(rules).filter(|app| totals::is_kept(app));
    let (Some(route), Some(app)) = (route, app) else {
        return Totals::default();
    };
    let held = |kind| rules.held(app, call.edition, kind);
    let unasked = |kind, effect| held(kind).map(|held| TotalView::new(kind, effect, held));
    let mut all = Totals::default();
    let needs_body = totals::reads_body(rules, call);
    if needs_body && body.is_none() {
        let makes = route.totals.makes.iter();
        all.views
            .extend(makes.filter_map(|rule| unasked(rule.kind, "takes")));
    } else {
        // The time from which totals are believed has no part in what never fits.
        match totals::asked(rules, call, path, body, 0) {
            Ok(None) => (),
            Ok(Some((_, charges))) => {
                all.refused = charges
                    .iter()
                    .find(|charge| charge.can_never_fit())
                    .map(|charge| {
                        let full = Full {
                            kind: charge.kind,
                            whose: charge.whose.clone(),
                        };
                        Reply::full(&full, app.plan, &call.caller.app)
                    });
                all.views.extend(
                    charges
                        .iter()
                        .filter(|charge| !charge.looks())
                        .filter_map(|charge| Some(TotalView::charged(charge, held(charge.kind)?))),
                );
            }
            Err(error) => all.refused = Some(Reply::rejected(&Reject::Body(error), path)),
        }
    }
    let frees = route.totals.frees.iter();
    all.views
        .extend(frees.filter_map(|rule| unasked(rule.kind, "frees")));
    let tells = route.totals.tells.iter();
    all.views
        .extend(tells.filter_map(|(kind, _)| unasked(*kind, "tells")));
    all
}

/// A table's rows, the first its headings.
pub(super) fn rows(views: &[TotalView<'_>]) -> Vec<[String; 5]> {
    let mut rows = vec![["total", "at most", "of", "call", "mode"].map(str::to_owned)];
    rows.extend(views.iter().map(|view| {
        let call = match (view.effect, view.units) {
            ("takes", Some(0)) => "asks for room".to_owned(),
            ("takes", Some(units)) => format!("takes {units}"),
            ("takes", None) => "takes, by body".to_owned(),
            (effect, _) => effect.to_owned(),
        };
        [
            match view.approximate {
                true => format!("{} (approximate)", view.total),
                false => view.total.to_owned(),
            },
            view.max.map_or("any".to_owned(), |max| max.to_string()),
            view.of.as_deref().unwrap_or("-").to_owned(),
            match view.never_fits {
                true => format!("{call}, which is refused"),
                false => call,
            },
            view.mode.to_owned(),
        ]
    }));
    rows
}
