//! `[[payload]]`, each over its namesake of earlier files, and what routes say of it.

use std::collections::BTreeMap;

use super::{At, MODES, Reader, Value};
use crate::limit::Mode;
use crate::payload::place::{Place as Where, Step, steps};
use crate::payload::{Charset, Measure, Most};
use crate::spec::check::{LAYER, Place, suggestion};
use crate::spec::payload::Answer;
use crate::spec::size;

/// Keys beside the editions.
pub(super) const KEYS: &[&str] = &[
    "name", "title", "measure", "allow", "types", "paths", "answer", "validate",
];
const FIGURE_KEYS: &[&str] = &["max", "src"];
const MEASURES: &[(&str, Measure)] = &[
    ("bytes", Measure::Bytes),
    ("characters", Measure::Characters),
    ("entries", Measure::Entries),
    ("form", Measure::Form),
    ("file", Measure::File),
];
const ANSWERS: &[(&str, Answer)] = &[
    ("argument", Answer::Argument),
    ("message", Answer::Message),
    ("file", Answer::File),
    ("users", Answer::Users),
    ("friends", Answer::Friends),
];

/// One limit of what a call may carry.
#[derive(Clone, Debug)]
pub(in crate::spec) struct WrittenPayload {
    pub(in crate::spec) name: At<String>,
    pub(in crate::spec) title: String,
    pub(in crate::spec) measure: Option<Measure>,
    pub(in crate::spec) allow: Option<Charset>,
    pub(in crate::spec) types: Vec<String>,
    /// Looked for in every route.
    pub(in crate::spec) paths: Vec<At<Where>>,
    pub(in crate::spec) answer: Answer,
    pub(in crate::spec) validate: Option<Mode>,
    pub(in crate::spec) editions: BTreeMap<String, WrittenMost>,
}

/// What an edition prints of it.
#[derive(Clone, Debug)]
pub(in crate::spec) struct WrittenMost {
    pub(in crate::spec) at: Place,
    /// As it is written.
    pub(in crate::spec) text: String,
    /// `None`: there is a mistake in it, or nothing; `Some(None)`: as much as may be.
    pub(in crate::spec) most: Option<Option<Most>>,
    /// Whether it is written as a size.
    pub(in crate::spec) is_size: bool,
    pub(in crate::spec) sources: Vec<String>,
}

/// A limit that a route names.
#[derive(Clone, Debug)]
pub(in crate::spec) struct WrittenUse {
    pub(in crate::spec) limit: At<String>,
    pub(in crate::spec) places: Vec<At<Where>>,
}

/// Where the type of a route's messages stands.
pub(in crate::spec) type WrittenMessageType = Option<At<Box<[Step]>>>;

impl Reader<'_> {
    pub(super) fn payload(&mut self, value: &Value<'_>) {
        let Some(table) = self.table(value, "a payload") else {
            return;
        };
        let Some(name) = self.name(value, table, "payload") else {
            return;
        };
        self.mistakes.within(format!("payload `{}`", name.value));
        let known = &self.written.payloads;
        let position = known
            .iter()
            .position(|known| known.name.value == name.value);
        let known = position.and_then(|at| known.get(at)).cloned();
        if let Some(known) = known
            .as_ref()
            .filter(|known| known.name.at.file == self.file)
        {
            let message = format!(
                "this payload is there already, in line {}",
                known.name.at.line
            );
            self.mistakes.add(name.at, name.value, message);
            return;
        }
        let mut payload = known.unwrap_or_else(|| WrittenPayload {
            name: name.clone(),
            title: String::new(),
            measure: None,
            allow: None,
            types: Vec::new(),
            paths: Vec::new(),
            answer: Answer::default(),
            validate: None,
            editions: BTreeMap::new(),
        });
        payload.name.at = name.at;
        for (key, value) in table {
            match &**key.get_ref() {
                "name" => {}
                "title" => {
                    let title = self.string(value, "a title");
                    payload.title = title.map(|title| title.value).unwrap_or_default();
                }
                "measure" => payload.measure = self.choice(value, "measure", MEASURES),
                "allow" => payload.allow = self.charset(value),
                "types" => {
                    let types = self.strings(value, "a message type").into_iter();
                    payload.types = types.map(|kind| kind.value.to_lowercase()).collect();
                }
                "paths" => payload.paths = self.places(value),
                "answer" => {
                    payload.answer = self.choice(value, "answer", ANSWERS).unwrap_or_default();
                }
                "validate" => payload.validate = self.choice(value, "validate", MODES),
                edition => {
                    self.payload_most(edition, key.span().start, value, &mut payload.editions)
                }
            }
        }
        match position.and_then(|at| self.written.payloads.get_mut(at)) {
            Some(slot) => *slot = payload,
            None => self.written.payloads.push(payload),
        }
    }

    fn charset(&mut self, value: &Value<'_>) -> Option<Charset> {
        let text = self.string(value, "allow")?.value;
        let charset = Charset::parse(&text);
        if charset.is_none() {
            self.wrong(
                value,
                "allow lists ASCII characters, and ranges of letters or digits; write e.g. \"A-Za-z0-9_.-\"",
            );
        }
        charset
    }

    /// The figure of an edition, if the key names one.
    fn payload_most(
        &mut self,
        name: &str,
        start: usize,
        value: &Value<'_>,
        editions: &mut BTreeMap<String, WrittenMost>,
    ) {
        let known: Vec<String> = self
            .written
            .editions
            .iter()
            .map(|(known, _)| known.value.clone())
            .collect();
        if !known.iter().any(|known| known == name) {
            if self.mistakes.may_have_lost(name) {
                return;
            }
            let message = match value.get_ref().is_table() && known.is_empty() {
                true => format!("no edition of this name; {LAYER}"),
                false => {
                    let known = KEYS.iter().copied().chain(known.iter().map(String::as_str));
                    format!("unknown key of a payload; {}", suggestion(name, known))
                }
            };
            let at = self.place(start);
            self.mistakes.add(at, name, message);
            return;
        }
        let Some(table) = self.table(value, "an edition's entry, e.g. { max = \"3KiB\" },") else {
            return;
        };
        let at = self.at(value);
        let mut figure = editions.get(name).cloned().unwrap_or(WrittenMost {
            at,
            text: String::new(),
            most: None,
            is_size: false,
            sources: Vec::new(),
        });
        figure.at = at;
        for (key, value) in table {
            match &**key.get_ref() {
                "max" => {
                    let (most, is_size) = self.max(value);
                    (figure.most, figure.is_size) = (most, is_size);
                    figure.text = self.text.get(value.span()).unwrap_or_default().to_owned();
                }
                "src" => {
                    let sources = self.strings(value, "a source").into_iter();
                    figure.sources = sources.map(|source| source.value).collect();
                }
                _ => self.unknown_key(key, "an edition's entry", FIGURE_KEYS),
            }
        }
        if figure.most.is_none() && !table.contains_key("max") {
            self.wrong(
                value,
                "the figure is missing: max = \"3KiB\", or max = \"none\"",
            );
        }
        editions.insert(name.to_owned(), figure);
    }

    /// The most, and whether it is written as a size.
    fn max(&mut self, value: &Value<'_>) -> (Option<Option<Most>>, bool) {
        match value.get_ref().as_str() {
            Some("none") => (Some(None), false),
            Some("message") => (Some(Some(Most::AsMessage)), true),
            Some(text) => match size::parse(text) {
                Some(bytes) => (Some(Some(Most::Fixed(bytes))), true),
                None => {
                    self.wrong(
                        value,
                        "max is a size, e.g. \"3KiB\" (3 KB of the documents), a whole number, \"message\" (as much as the message may have, by its type) or \"none\"",
                    );
                    (None, true)
                }
            },
            None => {
                let number = self.integer(value, "max");
                if number == Some(0) {
                    self.wrong(
                        value,
                        "no call can ever satisfy it; write at least 1, or \"none\"",
                    );
                }
                let most = number.filter(|number| *number > 0);
                (most.map(|most| Some(Most::Fixed(most.into()))), false)
            }
        }
    }

    /// `payload = { limit = "place" }` of a route.
    pub(super) fn uses(&mut self, value: &Value<'_>) -> Vec<WrittenUse> {
        let Some(table) = self.table(value, "payload, e.g. { message-text = \"body.msg\" },")
        else {
            return Vec::new();
        };
        let mut uses = Vec::new();
        for (key, value) in table {
            let limit = At {
                value: key.get_ref().to_string(),
                at: self.place(key.span().start),
            };
            self.written.used_payloads.insert(limit.value.clone());
            let places = self.places(value);
            uses.push(WrittenUse { limit, places });
        }
        uses
    }

    fn places(&mut self, value: &Value<'_>) -> Vec<At<Where>> {
        let mut places = Vec::new();
        for At { value: text, at } in self.strings(value, "a place") {
            match Where::parse(&text) {
                Some(value) => places.push(At { value, at }),
                None => self.mistakes.add(
                    at,
                    text,
                    "no place of a call; write e.g. \"body.msg\", \"to[]\", \"metaData.*\", \"names(metaData)\", \"{username}\", \"{usernames}[]\" or \".\"",
                ),
            }
        }
        places
    }

    /// `message_type = "type"` of a route.
    pub(super) fn message_type(&mut self, value: &Value<'_>) -> WrittenMessageType {
        let At { value: text, at } = self.string(value, "message_type")?;
        let steps = steps(&text);
        if steps.is_none() {
            self.wrong(
                value,
                "no field of the body; write e.g. \"type\" or \"msg.type\"",
            );
        }
        steps.map(|value| At { value, at })
    }
}
