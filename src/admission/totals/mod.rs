//! What a call does to the totals of its app: asked before it is forwarded, settled by its answer.
//!
//! [`asked`] reads the route's `makes`, `frees` and `tells` over the call's path and body: the
//! charges for [`Plan::totals`](crate::limit::Plan), and an [`Asked`] that goes with the call.
//! [`Asked::settle`] turns that and the answer into [`Change`]s: what was not made goes back, what
//! was deleted goes down, what the backend itself says of a total holds.
//!
//! An answer that did not come, broke off, or cannot be read leaves what was taken, and marks the
//! totals. So do 502 and 504: some way between here and the backend lost the answer.

mod answer;
mod body;
#[cfg(test)]
mod tests;

use std::collections::HashSet;

use serde_json::Value;

use self::answer::Made;
use self::body::Body;
use super::call::counted;
use super::{Call, Policy};
use crate::apps::App;
use crate::identity::{fold_user, form, plainest};
use crate::limit::total::{Change, Holder, Kind, TotalCharge};
use crate::limit::{CounterKey, KeyHasher, Mode, Moment, Plan};
use crate::route::Form;
use crate::route::canonical::{decode, split_app};
use crate::route::pricing::{Cap, PriceError};
use crate::spec::totals::{Count, Held, Of, Rule};
use crate::spec::{EditionId, Route, Ruleset};

/// Holders that one call is followed for, of each kind; a call that names more is refused. Documented
/// calls name 60 at most, but for those that make a group or a chatroom: as many as fit into it,
/// which are 300 where groups of a user are bounded.
pub const MOST_HOLDERS: usize = 1000;

/// A call that has no room in a total. Nothing was charged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Full {
    /// What there are too many of.
    pub kind: Kind,
    /// The user or group that holds them, as the call names it.
    pub whose: Option<Box<str>>,
}

/// What came of a call, for totals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told<'a> {
    /// Nothing can have been made: it was not sent, or not as a whole.
    Nothing,
    /// Nobody knows.
    Lost,
    /// The backend answered.
    Answered {
        /// The status.
        status: u16,
        /// The body, as a whole; `None`: it broke off, or cannot be read.
        body: Option<&'a [u8]>,
    },
}

/// What one call is to make, delete or tell, until its answer is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    app: Box<str>,
    app_key: CounterKey,
    entries: Vec<Entry>,
    tells: Option<(Kind, Box<str>)>,
}

/// What one rule of the route makes of the call.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    kind: Kind,
    frees: bool,
    count: Counted,
    made: Option<Box<str>>,
    /// Where the answer names the holder.
    new: Option<Box<str>>,
    /// Whether the body names the holders, and the answer those of them that have one more.
    by_name: bool,
    holders: Vec<Holding>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Counted {
    /// So many of each holder.
    Units(u32),
    /// None that can be seen, where there should be some.
    Idle,
    All,
    /// As many as the answer says.
    ByAnswer,
}

/// One total of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Holding {
    key: CounterKey,
    /// Folded; empty: the app.
    name: Box<str>,
    /// Its place in the plan's totals.
    charge: Option<usize>,
}

/// The key of a total, the same in every process: files and shared stores keep it.
#[must_use]
pub fn key(kind: Kind, app: &App, whose: &str) -> CounterKey {
    key_of(kind, app.name(), whose)
}

fn key_of(kind: Kind, app: &str, whose: &str) -> CounterKey {
    let whose = match kind.holder() {
        Holder::App => "",
        Holder::User | Holder::Group => whose,
    };
    KeyHasher::shared().total(kind.as_str(), app, whose)
}

/// The name by which a user or group is counted.
#[must_use]
pub fn fold_holder(name: &str) -> String {
    plainest(name)
}

/// Whether a call's body says what it asks of a total that its app's plan bounds.
#[must_use]
pub fn reads_body(rules: &Ruleset, call: &Call) -> bool {
    rule_reads_body(rules, call, |most| most < u64::MAX)
}

/// Whether a call's body says what it asks of any total that is kept. Of one without a bound the
/// answer says it too: a body that is too large to be read goes on.
#[must_use]
pub fn may_read_body(rules: &Ruleset, call: &Call) -> bool {
    rule_reads_body(rules, call, |_| true)
}

fn rule_reads_body(rules: &Ruleset, call: &Call, concerns: impl Fn(u64) -> bool) -> bool {
    let route = call.route(rules).filter(|route| !route.totals.is_empty());
    let app = call.app(rules).filter(|app| is_kept(app));
    route.zip(app).is_some_and(|(route, app)| {
        rules_of(route).any(|(rule, _)| {
            let held = rules.held(app, call.edition, rule.kind);
            let is_followed = |most| most < u64::MAX || rule.kind.holder() == Holder::App;
            rule.reads_body()
                && held.is_some_and(|held| is_followed(held.most) && concerns(held.most))
        })
    })
}

/// Whether a call takes units of a total, so that others find it full meanwhile.
#[must_use]
pub fn takes(rules: &Ruleset, call: &Call) -> bool {
    let route = call.route(rules).filter(|route| !route.totals.is_empty());
    let app = call.app(rules).filter(|app| is_kept(app));
    route.zip(app).is_some_and(|(route, app)| {
        route.totals.makes.iter().any(|rule| {
            let held = rules.held(app, call.edition, rule.kind);
            let refuses =
                held.is_some_and(|held| held.most < u64::MAX && held.mode != Mode::Report);
            refuses && rule.count != Count::Units(0) && !matches!(rule.of, Of::Answer(_))
        })
    })
}

/// Whether totals are kept for this app.
#[must_use]
pub fn is_kept(app: &App) -> bool {
    app.plan.is_some() || !app.totals.is_empty()
}

/// The app of this name, if its totals are kept, and the edition whose figures hold for it.
#[must_use]
pub fn known<'r>(rules: &'r Ruleset, policy: &Policy, name: &str) -> Option<(&'r App, EditionId)> {
    let (_, _, id) = counted(rules, name);
    let app = id.and_then(|id| rules.apps.get(id))?;
    let form = form(app.name())?;
    let (by_key, by_id) = app.editions.unwrap_or(policy.editions);
    let edition = match form {
        Form::AppKey => by_key,
        Form::AppId => by_id,
    };
    is_kept(app).then_some((app, edition))
}

/// What this call asks of the totals of its app; `None`: nothing. `path` is the canonical path,
/// `body` is `None` where it was not read, which [`reads_body`] asks for; a total refuses if it was checked at `since_s` or later (Unix seconds).
///
/// # Errors
/// A body that cannot be read, or in two ways; more names than [`MOST_HOLDERS`].
pub fn asked(
    rules: &Ruleset,
    call: &Call,
    path: &str,
    body: Option<&[u8]>,
    since_s: u64,
) -> Result<Option<(Asked, Vec<TotalCharge>)>, PriceError> {
    let route = call.route(rules).filter(|route| !route.totals.is_empty());
    let app = call.app(rules).filter(|app| is_kept(app));
    let (Some(route), Some(app)) = (route, app) else {
        return Ok(None);
    };
    let mut asking = Asking {
        rules,
        call,
        app,
        tail: split_app(path).map_or("", |(_, tail)| tail),
        body: match body.or(reads_body(rules, call).then_some(b"")) {
            Some(body) if may_read_body(rules, call) => Some(Body::read(body, &fields(route))?),
            Some(_) => Some(Body::default()),
            None => None,
        },
        since_s,
        charges: Vec::new(),
        charged: HashSet::new(),
        of_new: Vec::new(),
    };
    let mut entries = Vec::new();
    for (rule, frees) in rules_of(route) {
        entries.extend(asking.entry(rule, frees)?);
    }
    let tells = route.totals.tells.clone();
    let tells = tells.filter(|(kind, _)| rules.held(app, call.edition, *kind).is_some());
    if entries.is_empty() && tells.is_none() {
        return Ok(None);
    }
    let asked = Asked {
        app: app.name().into(),
        app_key: app.key,
        entries,
        tells,
    };
    let Asking {
        mut charges,
        of_new,
        ..
    } = asking;
    charges.extend(of_new);
    Ok(Some((asked, charges)))
}

fn rules_of(route: &Route) -> impl Iterator<Item = (&Rule, bool)> {
    let makes = route.totals.makes.iter().map(|rule| (rule, false));
    makes.chain(route.totals.frees.iter().map(|rule| (rule, true)))
}

/// The fields of the body that name somebody.
fn fields(route: &Route) -> Vec<&str> {
    let mut fields: Vec<&str> = Vec::new();
    for (rule, _) in rules_of(route) {
        if let Of::Field(field) = &rule.of {
            fields.push(field);
        }
        if let Count::Fields(more) = &rule.count {
            fields.extend(more.iter().map(|field| &**field));
        }
    }
    fields.sort_unstable();
    fields.dedup();
    fields
}

struct Asking<'c> {
    rules: &'c Ruleset,
    call: &'c Call,
    app: &'c App,
    tail: &'c str,
    /// `None`: it was not read.
    body: Option<Body>,
    since_s: u64,
    charges: Vec<TotalCharge>,
    /// Their totals.
    charged: HashSet<CounterKey>,
    /// Of what the call makes: they come last, since no store is asked for them.
    of_new: Vec<TotalCharge>,
}

impl Asking<'_> {
    fn entry(&mut self, rule: &Rule, frees: bool) -> Result<Option<Entry>, PriceError> {
        let held = self.rules.held(self.app, self.call.edition, rule.kind);
        // Of users and groups there are many: nobody asks for what is not bounded.
        let is_asked = |held: &Held<'_>| held.most != u64::MAX || rule.kind.holder() == Holder::App;
        let Some(held) = held.filter(is_asked) else {
            return Ok(None);
        };
        let count = match &rule.count {
            Count::Units(units) => Counted::Units(*units),
            Count::Body | Count::Fields(_) if self.body.is_none() => Counted::ByAnswer,
            Count::Body => Counted::Units(self.body.as_ref().map_or(0, |body| body.entries)),
            Count::Segment(at) => Counted::Units(number(self.segment(*at).len())),
            Count::Fields(fields) => {
                // Who is named in several is one.
                let names = fields.iter().flat_map(|field| self.names(field));
                let names = names.collect::<HashSet<_>>().len();
                let odd = fields.iter().map(|field| self.odd(field));
                Counted::Units(number(odd.fold(names, usize::saturating_add)))
            }
            Count::All => Counted::All,
            Count::Answer => Counted::ByAnswer,
        };
        let (names, new) = match &rule.of {
            Of::App => (vec![String::new()], None),
            Of::Segment(at) => (self.segment(*at), None),
            Of::Field(field) => (self.names(field).to_vec(), None),
            Of::Answer(at) => (Vec::new(), Some(at.clone())),
        };
        if names.len() > MOST_HOLDERS {
            let field = match &rule.of {
                Of::Field(field) => field.clone(),
                _ => "usernames".into(),
            };
            return Err(PriceError::TooManyNames(Cap {
                field,
                max: number(MOST_HOLDERS),
            }));
        }
        let charge = |key, whose: &str, units, is_new| TotalCharge {
            kind: rule.kind,
            key,
            figure: held.most,
            units,
            report: held.mode == Mode::Report,
            since_s: self.since_s,
            whose: (!whose.is_empty()).then(|| whose.into()),
            is_new,
            taken: None,
            over: false,
        };
        let asks = match count {
            Counted::Units(units) if !frees => Some(units),
            _ => None,
        };
        // Nothing is made: no total is to refuse that.
        let is_idle = asks == Some(0) && rule.count != Count::Units(0);
        let mut holders = Vec::with_capacity(names.len());
        for name in names {
            let key = key_of(rule.kind, self.app.name(), &name);
            // A twin was charged where it was named first.
            let charge = match asks {
                Some(units) => {
                    (!is_idle && self.charged.insert(key)).then(|| charge(key, &name, units, false))
                }
                // What goes down is that of now.
                None => (frees && count != Counted::All).then(|| TotalCharge {
                    figure: u64::MAX,
                    report: true,
                    ..charge(key, &name, 0, false)
                }),
            };
            holders.push(Holding {
                key,
                charge: charge.is_some().then_some(self.charges.len()),
                name: name.into(),
            });
            self.charges.extend(charge);
        }
        if let (Some(units), Some(_)) = (asks, &new) {
            self.of_new.push(charge(CounterKey(0), "", units, true));
        }
        Ok(Some(Entry {
            kind: rule.kind,
            frees,
            count: if is_idle { Counted::Idle } else { count },
            made: rule.made.clone(),
            new,
            by_name: !frees && matches!(rule.of, Of::Field(_)) && rule.made.is_some(),
            holders,
        }))
    }

    /// How many more a field of the body may name than can be read.
    fn odd(&self, field: &str) -> usize {
        self.body.as_ref().map_or(0, |body| body.odd(field))
    }

    /// The names in a field of the body.
    fn names(&self, field: &str) -> &[String] {
        self.body.as_ref().map_or(&[], |body| body.names(field))
    }

    /// The names in a segment of the path.
    fn segment(&self, at: usize) -> Vec<String> {
        let segment = self.tail.split('/').nth(at + 1).unwrap_or_default();
        let text = String::from_utf8_lossy(&decode(segment)).into_owned();
        distinct(text.split(',').map(fold_user))
    }
}

/// Each name once: who is added twice is there once.
fn distinct(names: impl Iterator<Item = String>) -> Vec<String> {
    let mut seen = HashSet::new();
    names
        .filter(|name| !name.is_empty() && seen.insert(name.clone()))
        .collect()
}

fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

impl Asked {
    /// Whose totals these are.
    #[must_use]
    pub fn app_key(&self) -> CounterKey {
        self.app_key
    }

    /// The changes that follow from what came of the call. The plan's totals have no part in them
    /// afterwards.
    #[must_use]
    pub fn settle(
        &self,
        plan: &mut Plan,
        told: Told<'_>,
        now: Moment,
    ) -> Vec<(CounterKey, Change)> {
        let mut changes = Vec::new();
        match told {
            Told::Nothing => self.fail(plan, &mut changes),
            Told::Lost
            | Told::Answered {
                status: 502 | 504, ..
            } => self.doubt(plan, &mut changes),
            Told::Answered {
                status: 200..=299,
                body,
            } => match body.and_then(answer::read) {
                Some(answer) => self.succeed(plan, &answer, now, &mut changes),
                None => self.doubt(plan, &mut changes),
            },
            Told::Answered { body, .. } => {
                self.fail(plan, &mut changes);
                self.correct(plan, body.unwrap_or_default(), &mut changes);
            }
        }
        for charge in &mut plan.totals {
            charge.taken = None;
        }
        changes
    }

    fn taken(plan: &Plan, held: &Holding) -> Option<(u32, u32)> {
        let charge = plan.totals.get(held.charge?)?;
        let taken = charge.taken.filter(|_| !charge.looks());
        taken.map(|round| (charge.units, round))
    }

    /// What a deletion lowers, as it was before: `None`: nobody knows.
    fn seen(plan: &Plan, held: &Holding) -> Option<u32> {
        let charge = plan.totals.get(held.charge?)?;
        charge.taken.filter(|_| charge.looks())
    }

    /// All goes back.
    fn fail(&self, plan: &Plan, changes: &mut Vec<(CounterKey, Change)>) {
        for held in self.entries.iter().flat_map(|entry| &entry.holders) {
            if let Some((units, round)) = Self::taken(plan, held) {
                changes.push((held.key, Change::GiveBack { units, round }));
            }
        }
    }

    /// All that may have been made counts as made.
    fn doubt(&self, plan: &Plan, changes: &mut Vec<(CounterKey, Change)>) {
        for entry in &self.entries {
            for held in &entry.holders {
                match (entry.frees, entry.count) {
                    // It was asked for without the store.
                    (false, Counted::Units(units @ 1..))
                        if held.charge.is_some() && Self::taken(plan, held).is_none() =>
                    {
                        changes.push((held.key, Change::Add(units)));
                    }
                    (false, Counted::Units(0) | Counted::Idle) => continue,
                    _ => (),
                }
                if let Some((units, round)) = Self::taken(plan, held) {
                    changes.push((held.key, Change::Keep { units, round }));
                }
                changes.push((held.key, Change::Doubt));
            }
        }
    }

    fn succeed(
        &self,
        plan: &Plan,
        answer: &Value,
        now: Moment,
        changes: &mut Vec<(CounterKey, Change)>,
    ) {
        for entry in &self.entries {
            let made = match &entry.made {
                // Of so many that nobody has counted.
                None if !entry.frees && entry.count == Counted::ByAnswer => Made::Unsaid,
                None if entry.frees => Made::unless_denied(answer),
                None => Made::All,
                Some(at) => Made::read(answer, at),
            };
            for held in &entry.holders {
                let most = match entry.count {
                    Counted::Units(units) => units,
                    Counted::Idle => 0,
                    Counted::All | Counted::ByAnswer => u32::MAX,
                };
                let made_here = made.of(&held.name, entry.holders.len(), most);
                // What it lists beside them is not this holder's, and no more goes than was asked.
                let is_of_list = !entry.frees && entry.kind.holder() != Holder::User;
                let cap = if is_of_list { u32::MAX } else { most };
                entry.settle(plan, held, made_here.map(|made| made.min(cap)), changes);
            }
            if entry.by_name {
                self.add_unasked(entry, &made, changes);
            }
            if let (Some(at), Counted::Units(units)) = (&entry.new, entry.count)
                && let Some(name) = answer::name(answer, at)
            {
                let key = key_of(entry.kind, &self.app, &fold_holder(&name));
                changes.push((key, Change::Add(units)));
            }
        }
        if let Some((kind, at)) = &self.tells
            && let Some(count) = answer::at(answer, at).and_then(Value::as_u64)
        {
            let now_s = now.unix_us / 1_000_000;
            let key = key_of(*kind, &self.app, "");
            changes.push((key, Change::Set { count, now_s }));
        }
    }

    /// The answer names some whom nobody could read in the body: they have one more all the same.
    fn add_unasked(&self, entry: &Entry, made: &Made, changes: &mut Vec<(CounterKey, Change)>) {
        let asked: HashSet<&str> = entry.holders.iter().map(|held| &*held.name).collect();
        let names = made.names().unwrap_or_default().iter();
        let unasked = names.filter(|name| !name.is_empty() && !asked.contains(name.as_str()));
        for name in unasked.take(MOST_HOLDERS) {
            changes.push((key_of(entry.kind, &self.app, name), Change::Add(1)));
        }
    }

    /// The backend says that a total is full: then it is.
    fn correct(&self, plan: &Plan, answer: &[u8], changes: &mut Vec<(CounterKey, Change)>) {
        let Some((kind, whose)) = answer::refusal(answer) else {
            return;
        };
        let whose = whose.map(|name| fold_holder(&name));
        let is_meant = |held: &&Holding| {
            whose
                .as_ref()
                .is_none_or(|whose| held.name.is_empty() || **whose == *held.name)
        };
        let of_kind = self
            .entries
            .iter()
            .filter(|entry| entry.kind == kind && !entry.frees);
        // Of several that it may mean, none is known to be it. A twin has no charge.
        let charged = |held: &&Holding| held.charge.is_some();
        let mut meant = of_kind
            .flat_map(|entry| entry.holders.iter().filter(is_meant))
            .filter(charged);
        let only = meant.next().filter(|_| meant.next().is_none());
        let charge = only.and_then(|held| plan.totals.get(held.charge?));
        if let Some(charge) = charge.filter(|charge| charge.figure != u64::MAX) {
            let least = charge.figure.saturating_add(1);
            let least = least.saturating_sub(u64::from(charge.units.max(1)));
            // What has been imported since knows better.
            let round = charge.taken.filter(|_| charge.units > 0);
            let count = least;
            changes.push((charge.key, Change::AtLeast { count, round }));
        }
    }
}

impl Entry {
    /// What follows from an answer that says how many were made. `made`: `None` if it does not.
    fn settle(
        &self,
        plan: &Plan,
        held: &Holding,
        made: Option<u32>,
        changes: &mut Vec<(CounterKey, Change)>,
    ) {
        let mut add = |change| changes.push((held.key, change));
        match (self.frees, self.count, made) {
            (true, Counted::All, Some(1..)) => add(Change::Clear),
            (true, Counted::All, Some(0)) | (_, Counted::Units(0), _) => (),
            (true, Counted::Units(_) | Counted::ByAnswer, Some(0)) => (),
            // All of so many that nobody has counted.
            (true, Counted::ByAnswer, Some(u32::MAX)) => add(Change::Doubt),
            (true, Counted::Units(_) | Counted::ByAnswer, Some(made @ 1..)) => {
                add(match Asked::seen(plan, held) {
                    Some(basis) => Change::Lower { units: made, basis },
                    None => Change::Doubt,
                });
            }
            (true, _, None) => add(Change::Doubt),
            (false, Counted::Units(units), made) => {
                // One that is named twice in the plan was charged where it was named first.
                if held.charge.is_none() {
                    return;
                }
                let taken = Asked::taken(plan, held);
                let most = made.unwrap_or(units).min(units);
                match taken {
                    Some((_, round)) => {
                        if most > 0 {
                            add(Change::Keep { units: most, round });
                        }
                        if most < units {
                            let units = units - most;
                            add(Change::GiveBack { units, round });
                        }
                    }
                    // The store was out of use when it was asked: whether what it is told by then
                    // has these, nobody knows.
                    None if most > 0 => {
                        add(Change::Add(most));
                        add(Change::Doubt);
                    }
                    None => (),
                }
                let more = made.map_or(0, |made| made.saturating_sub(units));
                if more > 0 {
                    add(Change::Add(more));
                }
                if made.is_none() || more > 0 {
                    add(Change::Doubt);
                }
            }
            (false, Counted::Idle, Some(made @ 1..)) => {
                add(Change::Add(made));
                add(Change::Doubt);
            }
            (false, Counted::ByAnswer, Some(u32::MAX) | None) => add(Change::Doubt),
            (false, Counted::ByAnswer, Some(made @ 1..)) => add(Change::Add(made)),
            (_, Counted::Idle, _) | (false, Counted::All, _) => (),
            (false, Counted::ByAnswer, Some(0)) => (),
        }
    }
}
