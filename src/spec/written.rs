//! Route files as written: read with their places, layered, not yet checked against each other.

use std::collections::BTreeMap;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::Unmatched;
use super::check::{Collector, Place, suggestion};
use super::figure::{self, Figure, Period};
use crate::limit::calendar::Zone;
use crate::limit::{Denial, Hold, Mode, Scope, Unit};

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
    pub(super) max_recipients: Option<At<u32>>,
    pub(super) needs_token: Option<bool>,
    pub(super) denial: Option<Denial>,
    /// Of its limits that have none of their own, the group's included.
    pub(super) mode: Option<Mode>,
    pub(super) editions: BTreeMap<String, WrittenEdition>,
    pub(super) overview: Vec<String>,
}

#[derive(Clone, Debug)]
pub(super) struct WrittenGroup {
    pub(super) name: At<String>,
    pub(super) mode: Option<Mode>,
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
    pub(super) groups: Vec<WrittenGroup>,
    pub(super) routes: Vec<WrittenRoute>,
}

type Value<'i> = Spanned<DeValue<'i>>;

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
    "needs_token",
    "denial",
    "mode",
    "remove",
    "overview",
];
const GROUP_KEYS: &[&str] = &["name", "mode"];
const EDITION_KEYS: &[&str] = &["limits", "group", "src", "ip_copy"];
const LIMIT_KEYS: &[&str] = &[
    "rate",
    "mode",
    "refund_on",
    "timezone",
    "hold",
    "max_hold",
    "denial",
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
const HOLDS: &[(&str, Hold)] = &[("response", Hold::Response), ("task", Hold::Task)];
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

    fn place(&self, offset: usize) -> Place {
        // Line n + 1 begins at `lines[n]`.
        Place {
            file: self.file,
            line: self.lines.partition_point(|start| *start <= offset),
        }
    }

    fn at(&self, value: &Value<'_>) -> Place {
        self.place(value.span().start)
    }

    fn wrong(&mut self, value: &Value<'_>, message: impl Into<String>) {
        let at = self.at(value);
        let text: String = self
            .text
            .get(value.span())
            .unwrap_or_default()
            .lines()
            .next()
            .unwrap_or_default()
            .chars()
            .take(60)
            .collect();
        self.mistakes.add(at, text, message);
    }

    /// Reads the whole file.
    pub(super) fn read(&mut self) {
        let (table, errors) = DeTable::parse_recoverable(self.text);
        for error in &errors {
            let at = self.place(error.span().map_or(0, |span| span.start));
            self.mistakes.add(at, "", error.message());
        }
        if !errors.is_empty() {
            return;
        }
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
                "group" => self.each_table(value, "group", Self::group),
                "route" => self.each_table(value, "route", Self::route),
                other => {
                    let known = ["editions", "select", "defaults", "ip", "group", "route"];
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

    fn table<'v, 'i>(&mut self, value: &'v Value<'i>, what: &str) -> Option<&'v DeTable<'i>> {
        let table = value.get_ref().as_table();
        if table.is_none() {
            self.wrong(value, format!("{what} is a table"));
        }
        table
    }

    fn string(&mut self, value: &Value<'_>, what: &str) -> Option<At<String>> {
        let at = self.at(value);
        match value.get_ref().as_str() {
            Some(text) => Some(At {
                value: text.to_owned(),
                at,
            }),
            None => {
                self.wrong(value, format!("{what} is a string, in quotes"));
                None
            }
        }
    }

    fn bool(&mut self, value: &Value<'_>, what: &str) -> Option<bool> {
        let read = value.get_ref().as_bool();
        if read.is_none() {
            self.wrong(value, format!("{what} is true or false"));
        }
        read
    }

    fn integer(&mut self, value: &Value<'_>, what: &str) -> Option<u32> {
        let read = value
            .get_ref()
            .as_integer()
            .and_then(|i| u32::from_str_radix(&i.as_str().replace('_', ""), i.radix()).ok());
        if read.is_none() {
            self.wrong(value, format!("{what} is a whole number"));
        }
        read
    }

    fn strings(&mut self, value: &Value<'_>, what: &str) -> Vec<At<String>> {
        match value.get_ref().as_array() {
            Some(items) => items
                .iter()
                .filter_map(|item| self.string(item, what))
                .collect(),
            None => self
                .string(value, &format!("{what} (or a list of them)"))
                .into_iter()
                .collect(),
        }
    }

    fn choice<T: Copy>(
        &mut self,
        value: &Value<'_>,
        what: &str,
        choices: &[(&str, T)],
    ) -> Option<T> {
        let text = self.string(value, what)?.value;
        let found = choices
            .iter()
            .find(|(name, _)| *name == text)
            .map(|(_, choice)| *choice);
        if found.is_none() {
            let known = suggestion(&text, choices.iter().map(|(name, _)| *name));
            self.wrong(value, format!("unknown {what}; {known}"));
        }
        found
    }

    fn unknown_key(
        &mut self,
        key: &Spanned<std::borrow::Cow<'_, str>>,
        place: &str,
        known: &[&str],
    ) {
        let at = self.place(key.span().start);
        let text = key.get_ref().to_string();
        let known = suggestion(&text, known.iter().copied());
        self.mistakes
            .add(at, text, format!("unknown key of {place}; {known}"));
    }

    fn each_table(&mut self, value: &Value<'_>, what: &str, read: fn(&mut Self, &Value<'_>)) {
        match value.get_ref().as_array() {
            Some(items) => {
                for item in items {
                    self.mistakes.within(String::new());
                    read(self, item);
                }
                self.mistakes.within(String::new());
            }
            None => self.wrong(value, format!("write [[{what}]], with two brackets")),
        }
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
            if ROUTE_KEYS.contains(&&*name.value) || name.value == "current" {
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
                _ => self.unknown_key(
                    key,
                    "[defaults]",
                    &["limits", "unmatched", "fold_app_names"],
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

    fn limits(&mut self, value: &Value<'_>) -> Vec<WrittenLimit> {
        match value.get_ref().as_array() {
            Some(items) => items.iter().filter_map(|item| self.limit(item)).collect(),
            None => self.limit(value).into_iter().collect(),
        }
    }

    fn limit(&mut self, value: &Value<'_>) -> Option<WrittenLimit> {
        let at = self.at(value);
        let read = |reader: &mut Self, value: &Value<'_>| -> Option<(String, Figure)> {
            let text = reader.string(value, "a limit")?.value;
            match Figure::parse(&text) {
                Ok(figure) => Some((text, figure)),
                Err(why) => {
                    reader.wrong(value, why);
                    None
                }
            }
        };
        let Some(table) = value.get_ref().as_table() else {
            let (text, figure) = read(self, value)?;
            return Some(WrittenLimit {
                at,
                text,
                figure,
                mode: None,
                refund_on: None,
                zone: None,
                hold: Hold::Response,
                max_hold: None,
                denial: None,
            });
        };
        let Some(rate) = table.get("rate") else {
            self.wrong(value, "the figure is missing: rate = \"100/s\"");
            return None;
        };
        let (text, figure) = read(self, rate)?;
        let mut limit = WrittenLimit {
            at,
            text,
            figure,
            mode: None,
            refund_on: None,
            zone: None,
            hold: Hold::Response,
            max_hold: None,
            denial: None,
        };
        for (key, value) in table {
            let only = |reader: &mut Self, fits: bool, what: &str| {
                if !fits {
                    reader.wrong(
                        value,
                        format!("this `{}` belongs to {what} only", key.get_ref()),
                    );
                }
            };
            match &**key.get_ref() {
                "rate" => {}
                "mode" => limit.mode = self.choice(value, "mode", MODES),
                "refund_on" => limit.refund_on = Some(self.statuses(value)),
                "timezone" => {
                    only(self, figure.period == Period::Day, "day limits");
                    limit.zone = self.zone(value);
                }
                "hold" => {
                    only(self, figure.period == Period::Running, "task limits");
                    limit.hold = self.choice(value, "hold", HOLDS).unwrap_or_default();
                }
                "max_hold" => {
                    only(self, figure.period == Period::Running, "task limits");
                    limit.max_hold = self.duration(value);
                }
                "denial" => {
                    limit.denial = self.choice(value, "denial", DENIALS);
                    let day = matches!(
                        limit.denial,
                        Some(Denial::BroadcastUsers | Denial::BroadcastRooms)
                    );
                    only(self, !day || figure.period == Period::Day, "day limits");
                }
                _ => self.unknown_key(key, "a limit", LIMIT_KEYS),
            }
        }
        Some(limit)
    }

    fn statuses(&mut self, value: &Value<'_>) -> Vec<u16> {
        let Some(items) = value.get_ref().as_array() else {
            self.wrong(value, "refund_on is a list of statuses, e.g. [401, 503]");
            return Vec::new();
        };
        let mut statuses = Vec::new();
        for item in items {
            match self.integer(item, "a status").map(u16::try_from) {
                Some(Ok(status @ 200..=599)) => statuses.push(status),
                Some(_) => self.wrong(item, "an upstream's status is from 200 to 599"),
                None => {}
            }
        }
        statuses
    }

    fn zone(&mut self, value: &Value<'_>) -> Option<(String, Zone)> {
        let name = self.string(value, "a time zone")?.value;
        let zone = Zone::named(&name);
        if zone.is_none() {
            self.wrong(
                value,
                "unknown time zone; write an IANA name, e.g. \"Asia/Shanghai\"",
            );
        }
        Some((name, zone?))
    }

    fn duration(&mut self, value: &Value<'_>) -> Option<Duration> {
        let text = self.string(value, "a time")?.value;
        match figure::duration(&text) {
            Ok(duration) if !duration.is_zero() => Some(duration),
            Ok(_) => {
                self.wrong(
                    value,
                    "a slot held for no time is no slot; write e.g. \"5min\"",
                );
                None
            }
            Err(why) => {
                self.wrong(value, why);
                None
            }
        }
    }

    fn edition(&mut self, value: &Value<'_>, in_group: bool) -> WrittenEdition {
        let mut edition = WrittenEdition {
            at: Some(self.at(value)),
            ..WrittenEdition::default()
        };
        let Some(table) = self.table(value, "an edition's entry") else {
            return edition;
        };
        for (key, value) in table {
            match &**key.get_ref() {
                "limits" => {
                    edition.limits = self.limits(value);
                    edition.has_limits =
                        value.get_ref().as_array().is_none_or(|all| !all.is_empty());
                }
                "group" if !in_group => edition.group = self.string(value, "a group"),
                "ip_copy" => edition.ip_copy = self.bool(value, "ip_copy"),
                "src" => {
                    edition.sources = self
                        .strings(value, "a source")
                        .into_iter()
                        .map(|s| s.value)
                        .collect();
                }
                _ => self.unknown_key(key, "an edition's entry", EDITION_KEYS),
            }
        }
        edition
    }

    /// Reads an edition's entry, if the key names an edition.
    fn try_edition(
        &mut self,
        key: &Spanned<std::borrow::Cow<'_, str>>,
        value: &Value<'_>,
        editions: &mut BTreeMap<String, WrittenEdition>,
        place: &str,
        keys: &[&str],
    ) {
        let name = key.get_ref().to_string();
        if self
            .written
            .editions
            .iter()
            .any(|(known, _)| known.value == name)
        {
            let edition = self.edition(value, keys == GROUP_KEYS);
            editions.insert(name, edition);
        } else {
            let known: Vec<String> = self
                .written
                .editions
                .iter()
                .map(|(known, _)| known.value.clone())
                .collect();
            let known: Vec<&str> = keys
                .iter()
                .copied()
                .chain(known.iter().map(String::as_str))
                .collect();
            self.unknown_key(key, place, &known);
        }
    }

    fn name(&mut self, value: &Value<'_>, table: &DeTable<'_>, what: &str) -> Option<At<String>> {
        let Some(name) = table.get("name") else {
            self.wrong(value, format!("a {what} has a name: name = \"…\""));
            return None;
        };
        let read = self.string(name, "a name")?;
        let sane = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
        if read.value.is_empty() || read.value.len() > 64 || !read.value.bytes().all(sane) {
            self.wrong(name, "a name is 1 to 64 of a-z, 0-9, `-` and `_`");
        }
        Some(read)
    }

    fn group(&mut self, value: &Value<'_>) {
        let Some(table) = self.table(value, "a group") else {
            return;
        };
        let Some(name) = self.name(value, table, "group") else {
            return;
        };
        self.mistakes.within(format!("group `{}`", name.value));
        let (mut editions, mut mode) = (BTreeMap::new(), None);
        for (key, value) in table {
            match &**key.get_ref() {
                "name" => {}
                "mode" => mode = self.choice(value, "mode", MODES),
                _ => self.try_edition(key, value, &mut editions, "a group", GROUP_KEYS),
            }
        }
        match self
            .written
            .groups
            .iter_mut()
            .find(|group| group.name.value == name.value)
        {
            Some(group) if group.name.at.file == self.file => {
                let line = group.name.at.line;
                self.mistakes.add(
                    name.at,
                    name.value,
                    format!("this group is there already, in line {line}"),
                );
            }
            Some(group) => {
                group.editions.extend(editions);
                group.mode = mode.or(group.mode);
            }
            None => self.written.groups.push(WrittenGroup {
                name,
                mode,
                editions,
            }),
        }
    }

    fn route(&mut self, value: &Value<'_>) {
        let Some(table) = self.table(value, "a route") else {
            return;
        };
        let Some(name) = self.name(value, table, "route") else {
            return;
        };
        self.mistakes.within(format!("route `{}`", name.value));
        let position = self
            .written
            .routes
            .iter()
            .position(|route| route.name.value == name.value);
        let known = position.and_then(|at| self.written.routes.get(at)).cloned();
        if let Some(known) = known
            .as_ref()
            .filter(|known| known.name.at.file == self.file)
        {
            let line = known.name.at.line;
            self.mistakes.add(
                name.at,
                name.value,
                format!("this route is there already, in line {line}"),
            );
            return;
        }
        let is_new = known.is_none();
        let mut route = known.unwrap_or_else(|| WrittenRoute {
            name: name.clone(),
            title: String::new(),
            calls: Vec::new(),
            cost: None,
            max_recipients: None,
            needs_token: None,
            denial: None,
            mode: None,
            editions: BTreeMap::new(),
            overview: Vec::new(),
        });
        route.name.at = name.at;
        let mut remove = false;
        for (key, value) in table {
            match &**key.get_ref() {
                "name" => {}
                "title" => {
                    route.title = self
                        .string(value, "a title")
                        .map(|t| t.value)
                        .unwrap_or_default()
                }
                "calls" => route.calls = self.strings(value, "a call"),
                "cost" => route.cost = self.string(value, "cost"),
                "max_recipients" => {
                    let at = self.at(value);
                    route.max_recipients = self
                        .integer(value, "max_recipients")
                        .map(|value| At { value, at });
                }
                "needs_token" => route.needs_token = self.bool(value, "needs_token"),
                "denial" => route.denial = self.choice(value, "denial", DENIALS),
                "mode" => route.mode = self.choice(value, "mode", MODES),
                "remove" => remove = self.bool(value, "remove").unwrap_or_default(),
                "overview" => {
                    route.overview = self
                        .strings(value, "a source")
                        .into_iter()
                        .map(|s| s.value)
                        .collect();
                }
                _ => self.try_edition(key, value, &mut route.editions, "a route", ROUTE_KEYS),
            }
        }
        if is_new && (remove || route.calls.is_empty()) {
            let known: Vec<&str> = self
                .written
                .routes
                .iter()
                .map(|route| route.name.value.as_str())
                .collect();
            let near = suggestion(&name.value, known);
            let message =
                format!("no earlier file has this route, and it has no calls of its own; {near}");
            self.mistakes.add(name.at, name.value, message);
            return;
        }
        match position {
            Some(at) if remove => {
                self.written.routes.remove(at);
            }
            Some(at) => {
                if let Some(slot) = self.written.routes.get_mut(at) {
                    *slot = route;
                }
            }
            None => self.written.routes.push(route),
        }
    }
}
