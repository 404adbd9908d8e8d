//! Route files as written: read with their places, layered, not yet checked against each other.

mod app;
mod entry;
mod history;
mod limit;
mod payload;
mod totals;
mod value;

pub(super) use app::{WrittenApp, WrittenFigure};
pub(super) use history::WrittenHistory;
use payload::{WrittenMessageType, WrittenUse};
pub(super) use payload::{WrittenMost, WrittenPayload};
pub(super) use totals::{WrittenCount, WrittenKind, WrittenRule, WrittenTotals};

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::Unmatched;
use super::check::{Collector, Place, suggestion};
use super::figure::{Figure, Period};
use crate::identity::Auth;
use crate::limit::calendar::Zone;
use crate::limit::total::Kind;
use crate::limit::{Denial, Hold, Mode, OnStoreFailure, Scope, Unit};

/// A value and its place.
#[derive(Clone, Debug)]
pub(super) struct At<T> {
    pub(super) value: T,
    pub(super) at: Place,
}

#[derive(Clone, Debug)]
pub(super) struct WrittenLimit {
    pub(super) at: Place,
    pub(super) text: String,
    pub(super) figure: Figure,
    pub(super) mode: Option<Mode>,
    pub(super) on_store_failure: Option<OnStoreFailure>,
    pub(super) refund_on: Option<Vec<u16>>,
    pub(super) zone: Option<(String, Zone)>,
    pub(super) hold: Hold,
    pub(super) max_hold: Option<Duration>,
    pub(super) denial: Option<Denial>,
}

impl WrittenLimit {
    /// The limit's name without its owner, for this scope. UTC goes without saying.
    pub(super) fn counter_name(&self, scope: Scope) -> String {
        let zone = self.zone.as_ref().map(|(name, _)| name.as_str());
        self.figure
            .counter_name(scope, zone.filter(|name| *name != "UTC"))
    }
}

/// What an edition makes of a route or group.
#[derive(Clone, Debug, Default)]
pub(super) struct WrittenEdition {
    pub(super) at: Option<Place>,
    pub(super) limits: Vec<WrittenLimit>,
    /// Whether there is a `limits` key, be it with mistakes.
    pub(super) has_limits: bool,
    pub(super) group: Option<At<String>>,
    pub(super) sources: Vec<String>,
    pub(super) ip_copy: Option<bool>,
}

#[derive(Clone, Debug)]
pub(super) struct WrittenRoute {
    pub(super) name: At<String>,
    pub(super) title: String,
    pub(super) calls: Vec<At<String>>,
    pub(super) cost: Option<At<String>>,
    /// `cost = 1`: a call carries one message, and its body is not read.
    pub(super) is_one_message: bool,
    pub(super) max_recipients: Option<At<u32>>,
    /// In bytes.
    pub(super) max_body: Option<At<u64>>,
    /// Of fields beside the cost's.
    pub(super) caps: Vec<(At<String>, u32)>,
    /// Limits of what its calls may carry.
    pub(super) payload: Vec<WrittenUse>,
    pub(super) message_type: WrittenMessageType,
    /// Of its caps of counted fields.
    pub(super) validate: Option<Mode>,
    /// What the bearer token must be.
    pub(super) auth: Option<Auth>,
    /// Where it says that it is the message history.
    pub(super) history: Option<Place>,
    /// What its calls make, delete and tell.
    pub(super) totals: WrittenTotals,
    pub(super) denial: Option<Denial>,
    /// Of its limits that have none of their own, the group's included.
    pub(super) mode: Option<Mode>,
    pub(super) on_store_failure: Option<OnStoreFailure>,
    pub(super) editions: BTreeMap<String, WrittenEdition>,
    pub(super) overview: Vec<String>,
}

#[derive(Clone, Debug)]
pub(super) struct WrittenGroup {
    pub(super) name: At<String>,
    /// Of its limits that have none of their own and whose route has none.
    pub(super) denial: Option<Denial>,
    pub(super) mode: Option<Mode>,
    pub(super) on_store_failure: Option<OnStoreFailure>,
    pub(super) editions: BTreeMap<String, WrittenEdition>,
}

/// All files, layered.
#[derive(Debug, Default)]
pub(super) struct Written {
    pub(super) editions: Vec<(At<String>, bool)>,
    pub(super) select: Vec<(At<String>, At<String>, At<String>)>,
    pub(super) defaults: Vec<WrittenLimit>,
    pub(super) unmatched: Unmatched,
    pub(super) fold_app_names: bool,
    pub(super) unauthorized: Vec<WrittenLimit>,
    pub(super) rejected: Vec<WrittenLimit>,
    pub(super) options: Vec<WrittenLimit>,
    pub(super) history: WrittenHistory,
    pub(super) totals: BTreeMap<Kind, WrittenKind>,
    /// Of limits of what calls may carry that have no mode of their own.
    pub(super) validate: Option<Mode>,
    pub(super) payloads: Vec<WrittenPayload>,
    /// Those that a route names in any file, as with groups.
    pub(super) used_payloads: BTreeSet<String>,
    pub(super) groups: Vec<WrittenGroup>,
    /// Groups that a route names in any file, be it that a later one takes it out again.
    pub(super) used_groups: BTreeSet<String>,
    pub(super) routes: Vec<WrittenRoute>,
    /// Of files of apps, which hold nothing else.
    pub(super) apps: Vec<WrittenApp>,
}

type Value<'i> = Spanned<DeValue<'i>>;

/// Whether a header begins here: `[name]` or `[[name]]`, at the beginning of a line.
fn begins_section(text: &str) -> bool {
    let mut chars = text.chars();
    let is_bracket = |c: char| c == '[';
    chars.next().is_some_and(is_bracket)
        && chars
            .find(|c| !is_bracket(*c))
            .is_some_and(|c| c.is_ascii_alphabetic())
}

/// Reads one file over what earlier files said.
pub(super) struct Reader<'w> {
    written: &'w mut Written,
    mistakes: &'w mut Collector,
    file: usize,
    text: &'w str,
    /// Where each line begins.
    lines: Vec<usize>,
}

const ROUTE_KEYS: &[&str] = &[
    "name",
    "title",
    "calls",
    "cost",
    "max_recipients",
    "max_body",
    "caps",
    "payload",
    "message_type",
    "validate",
    "auth",
    "history",
    "makes",
    "frees",
    "tells",
    "denial",
    "mode",
    "on_store_failure",
    "remove",
    "overview",
];
const DENIALS: &[(&str, Denial)] = &[
    ("call-rate", Denial::CallRate),
    ("message-count", Denial::MessageCount),
    ("broadcast-users", Denial::BroadcastUsers),
    ("broadcast-rooms", Denial::BroadcastRooms),
    ("push", Denial::Push),
];
const MODES: &[(&str, Mode)] = &[
    ("enforce", Mode::Enforce),
    ("report", Mode::Report),
    ("off", Mode::Off),
];
const FAILURES: &[(&str, OnStoreFailure)] = &[
    ("local", OnStoreFailure::Local),
    ("allow", OnStoreFailure::Allow),
    ("deny", OnStoreFailure::Deny),
];
const UNMATCHED: &[(&str, Unmatched)] = &[
    ("default-limit", Unmatched::DefaultLimit),
    ("reject", Unmatched::Reject),
];

impl<'w> Reader<'w> {
    /// A reader of the file of this index.
    pub(super) fn new(
        written: &'w mut Written,
        mistakes: &'w mut Collector,
        file: usize,
        text: &'w str,
    ) -> Self {
        let lines = std::iter::once(0)
            .chain(text.match_indices('\n').map(|(at, _)| at + 1))
            .collect();
        Self {
            written,
            mistakes,
            file,
            text,
            lines,
        }
    }

    /// Reads the whole file.
    pub(super) fn read(&mut self) {
        let readable = self.readable();
        let table = match DeTable::parse(&readable) {
            Ok(table) => table,
            Err(error) => {
                self.syntax(&error, 0);
                // Two sections that exclude each other: nothing of them can be told.
                self.mistakes.lose_file();
                return;
            }
        };
        let table = table.get_ref();
        // Editions first: route keys are checked against their names.
        if let Some(editions) = table.get("editions") {
            self.editions(editions);
        }
        for (key, value) in table {
            match &**key.get_ref() {
                "editions" => {}
                "select" => self.select(value),
                "defaults" => self.defaults(value),
                "ip" => self.ip(value),
                "history" => self.history(value),
                "totals" => self.totals(value),
                "payload" => self.each_table(value, "payload", Self::payload),
                "group" => self.each_table(value, "group", Self::group),
                "route" => self.each_table(value, "route", Self::route),
                other => {
                    let known = [
                        "editions", "select", "defaults", "ip", "history", "totals", "group",
                        "editions", "select", "defaults", "ip", "history", "payload", "group",
                        "route",
                    ];
                    let at = self.place(key.span().start);
                    self.mistakes.add(
                        at,
                        other,
                        format!("unknown key; {}", suggestion(other, known)),
                    );
                }
            }
        }
    }

    /// The text, with sections that are no TOML blanked out, so that one slip does not hide the
    /// mistakes of all that follows.
    fn readable(&mut self) -> Cow<'w, str> {
        let text = self.text;
        if DeTable::parse(text).is_ok() {
            return Cow::Borrowed(text);
        }
        let mut readable = String::with_capacity(text.len());
        let mut starts: Vec<usize> = self
            .lines
            .iter()
            .copied()
            .filter(|start| text.get(*start..).is_some_and(begins_section))
            .collect();
        starts.push(text.len());
        let mut from = 0;
        for to in starts {
            let section = text.get(from..to).unwrap_or_default();
            match DeTable::parse(section) {
                Ok(_) => readable.push_str(section),
                Err(error) => {
                    self.syntax(&error, from);
                    self.mistakes.lose(section);
                    // Byte by byte: places stay what they are.
                    let blank = |b| if b == b'\n' { '\n' } else { ' ' };
                    readable.extend(section.bytes().map(blank));
                }
            }
            from = to;
        }
        Cow::Owned(readable)
    }

    fn syntax(&mut self, error: &toml::de::Error, offset: usize) {
        let at = self.place(offset + error.span().map_or(0, |span| span.start));
        self.mistakes.add(at, "", error.message());
    }

    fn editions(&mut self, value: &Value<'_>) {
        let Some(table) = self.table(value, "[editions]") else {
            return;
        };
        // Oldest first, as written; the table itself is sorted by name.
        let mut entries: Vec<_> = table.iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        for (key, value) in entries {
            let mut ip_copy = false;
            if let Some(edition) = self.table(value, "an edition") {
                for (key, value) in edition {
                    match &**key.get_ref() {
                        "ip_copy" => ip_copy = self.bool(value, "ip_copy").unwrap_or_default(),
                        _ => self.unknown_key(key, "an edition", &["ip_copy"]),
                    }
                }
            }
            let name = At {
                value: key.get_ref().to_string(),
                at: self.place(key.span().start),
            };
            let taken = |keys: &[&str]| keys.contains(&&*name.value);
            if taken(ROUTE_KEYS)
                || taken(history::KEYS)
                || taken(payload::KEYS)
                || name.value == "current"
            {
                self.mistakes.add(
                    name.at,
                    &*name.value,
                    "this name is taken; choose another for the edition",
                );
                continue;
            }
            match self
                .written
                .editions
                .iter_mut()
                .find(|(known, _)| known.value == name.value)
            {
                Some(known) => known.1 = ip_copy,
                None => self.written.editions.push((name, ip_copy)),
            }
        }
    }

    fn select(&mut self, value: &Value<'_>) {
        let Some(table) = self.table(value, "[select]") else {
            return;
        };
        for (key, value) in table {
            let Some(forms) = self.table(value, "a selection") else {
                continue;
            };
            let (mut app_key, mut app_id) = (None, None);
            for (key, value) in forms {
                match &**key.get_ref() {
                    "app_key" => app_key = self.string(value, "app_key"),
                    "app_id" => app_id = self.string(value, "app_id"),
                    _ => self.unknown_key(key, "a selection", &["app_key", "app_id"]),
                }
            }
            let name = At {
                value: key.get_ref().to_string(),
                at: self.place(key.span().start),
            };
            match (app_key, app_id) {
                (Some(app_key), Some(app_id)) => {
                    self.written
                        .select
                        .retain(|(known, ..)| known.value != name.value);
                    self.written.select.push((name, app_key, app_id));
                }
                _ => self.wrong(
                    value,
                    "a selection names an edition for app_key and for app_id",
                ),
            }
        }
    }

    fn defaults(&mut self, value: &Value<'_>) {
        let Some(table) = self.table(value, "[defaults]") else {
            return;
        };
        for (key, value) in table {
            match &**key.get_ref() {
                "limits" => self.written.defaults = self.limits(value),
                "unmatched" => {
                    if let Some(unmatched) = self.choice(value, "unmatched", UNMATCHED) {
                        self.written.unmatched = unmatched;
                    }
                }
                "fold_app_names" => {
                    if let Some(fold) = self.bool(value, "fold_app_names") {
                        self.written.fold_app_names = fold;
                    }
                }
                "validate" => self.written.validate = self.choice(value, "validate", MODES),
                _ => self.unknown_key(
                    key,
                    "[defaults]",
                    &["limits", "unmatched", "fold_app_names", "validate"],
                ),
            }
        }
    }

    fn ip(&mut self, value: &Value<'_>) {
        let Some(table) = self.table(value, "[ip]") else {
            return;
        };
        for (key, value) in table {
            let mut limits = || {
                let mut limits = self.limits(value);
                for limit in &mut limits {
                    let counts_calls = limit.figure.unit == Unit::Calls;
                    let slides = matches!(limit.figure.period, Period::Sliding(_));
                    let other = [" per user", " per app"]
                        .iter()
                        .any(|per| limit.text.contains(per));
                    if !counts_calls || !slides || other {
                        self.mistakes.add(
                            limit.at,
                            &*limit.text,
                            "limits of addresses slide, and count calls per ip; write e.g. \"20/s\" or \"300/min\"",
                        );
                    }
                    limit.figure.scope = Scope::Ip;
                }
                limits
            };
            match &**key.get_ref() {
                "unauthorized" => self.written.unauthorized = limits(),
                "rejected" => self.written.rejected = limits(),
                "options" => self.written.options = limits(),
                _ => self.unknown_key(key, "[ip]", &["unauthorized", "rejected", "options"]),
            }
        }
    }
}
