//! `[[group]]` and `[[route]]`, each over its namesake of earlier files.

use std::collections::BTreeMap;

use toml::Spanned;
use toml::de::DeTable;

use super::{
    At, DENIALS, FAILURES, MODES, ROUTE_KEYS, Reader, Value, WrittenEdition, WrittenGroup,
    WrittenRoute, WrittenTotals,
};
use crate::identity::Auth;
use crate::spec::check::{LAYER, suggestion};

const GROUP_KEYS: &[&str] = &["name", "denial", "mode", "on_store_failure"];
const EDITION_KEYS: &[&str] = &["limits", "group", "src", "ip_copy"];

impl Reader<'_> {
    pub(super) fn edition(&mut self, value: &Value<'_>, in_group: bool) -> WrittenEdition {
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
                "group" if !in_group => {
                    edition.group = self.string(value, "a group");
                    let name = edition.group.as_ref().map(|group| group.value.clone());
                    self.written.used_groups.extend(name);
                }
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
    pub(super) fn try_edition(
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
        } else if value.get_ref().is_table() && self.mistakes.may_have_lost(&name) {
            // Most likely an edition's; its own mistakes can be told all the same.
            self.edition(value, keys == GROUP_KEYS);
        } else if value.get_ref().is_table() && self.written.editions.is_empty() {
            let at = self.place(key.span().start);
            let message = format!("no edition of this name; {LAYER}");
            self.mistakes.add(at, name, message);
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

    pub(super) fn name(
        &mut self,
        value: &Value<'_>,
        table: &DeTable<'_>,
        what: &str,
    ) -> Option<At<String>> {
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

    pub(super) fn group(&mut self, value: &Value<'_>) {
        let Some(table) = self.table(value, "a group") else {
            return;
        };
        let Some(name) = self.name(value, table, "group") else {
            return;
        };
        self.mistakes.within(format!("group `{}`", name.value));
        let mut editions = BTreeMap::new();
        let (mut denial, mut mode, mut on_store_failure) = (None, None, None);
        for (key, value) in table {
            match &**key.get_ref() {
                "name" => {}
                "denial" => denial = self.choice(value, "denial", DENIALS),
                "mode" => mode = self.choice(value, "mode", MODES),
                "on_store_failure" => {
                    on_store_failure = self.choice(value, "on_store_failure", FAILURES);
                }
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
                group.denial = denial.or(group.denial);
                group.mode = mode.or(group.mode);
                group.on_store_failure = on_store_failure.or(group.on_store_failure);
            }
            None => self.written.groups.push(WrittenGroup {
                name,
                denial,
                mode,
                on_store_failure,
                editions,
            }),
        }
    }

    fn caps(&mut self, value: &Value<'_>) -> Vec<(At<String>, u32)> {
        let Some(table) = self.table(value, "caps, e.g. { to = 1 },") else {
            return Vec::new();
        };
        let mut caps = Vec::new();
        for (field, max) in table {
            if let Some(max) = self.integer(max, "a cap") {
                let field = At {
                    value: field.get_ref().to_string(),
                    at: self.place(field.span().start),
                };
                caps.push((field, max));
            }
        }
        caps
    }

    pub(super) fn route(&mut self, value: &Value<'_>) {
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
            is_one_message: false,
            max_recipients: None,
            max_body: None,
            caps: Vec::new(),
            payload: Vec::new(),
            message_type: None,
            validate: None,
            auth: None,
            history: None,
            totals: WrittenTotals::default(),
            denial: None,
            mode: None,
            on_store_failure: None,
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
                "cost" => {
                    route.is_one_message = value
                        .get_ref()
                        .as_integer()
                        .is_some_and(|one| one.as_str() == "1");
                    route.cost = match route.is_one_message {
                        true => None,
                        false => self.string(value, "cost (1, or a field of the body)"),
                    };
                }
                "max_recipients" => {
                    let at = self.at(value);
                    route.max_recipients = self
                        .integer(value, "max_recipients")
                        .map(|value| At { value, at });
                }
                "max_body" => route.max_body = self.size(value, "max_body"),
                "caps" => route.caps = self.caps(value),
                "payload" => route.payload = self.uses(value),
                "validate" => route.validate = self.choice(value, "validate", MODES),
                "message_type" => route.message_type = self.message_type(value),
                "auth" => route.auth = self.choice(value, "auth", Auth::WORDS),
                "history" => {
                    let at = self.at(value);
                    let is_history = self.bool(value, "history").unwrap_or_default();
                    route.history = is_history.then_some(at);
                }
                "makes" => route.totals.makes = self.total_rules(value, "makes"),
                "frees" => route.totals.frees = self.total_rules(value, "frees"),
                "tells" => route.totals.tells = self.tells(value),
                "denial" => route.denial = self.choice(value, "denial", DENIALS),
                "mode" => route.mode = self.choice(value, "mode", MODES),
                "on_store_failure" => {
                    route.on_store_failure = self.choice(value, "on_store_failure", FAILURES);
                }
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
        let is_missing = is_new && (remove || route.calls.is_empty());
        if is_missing && self.mistakes.may_have_lost(&name.value) {
            return;
        }
        if is_missing {
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
