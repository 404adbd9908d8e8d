//! Single values and their places.

use toml::Spanned;
use toml::de::DeTable;

use super::{At, Reader, Value};
use crate::spec::check::{Place, suggestion};
use crate::spec::size;

impl Reader<'_> {
    pub(super) fn place(&self, offset: usize) -> Place {
        // Line n + 1 begins at `lines[n]`.
        Place {
            file: self.file,
            line: self.lines.partition_point(|start| *start <= offset),
        }
    }

    pub(super) fn at(&self, value: &Value<'_>) -> Place {
        self.place(value.span().start)
    }

    pub(super) fn wrong(&mut self, value: &Value<'_>, message: impl Into<String>) {
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

    pub(super) fn table<'v, 'i>(
        &mut self,
        value: &'v Value<'i>,
        what: &str,
    ) -> Option<&'v DeTable<'i>> {
        let table = value.get_ref().as_table();
        if table.is_none() {
            self.wrong(value, format!("{what} is a table"));
        }
        table
    }

    pub(super) fn string(&mut self, value: &Value<'_>, what: &str) -> Option<At<String>> {
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

    pub(super) fn bool(&mut self, value: &Value<'_>, what: &str) -> Option<bool> {
        let read = value.get_ref().as_bool();
        if read.is_none() {
            self.wrong(value, format!("{what} is true or false"));
        }
        read
    }

    pub(super) fn integer(&mut self, value: &Value<'_>, what: &str) -> Option<u32> {
        let read = value
            .get_ref()
            .as_integer()
            .and_then(|i| u32::from_str_radix(&i.as_str().replace('_', ""), i.radix()).ok());
        if read.is_none() {
            self.wrong(value, format!("{what} is a whole number"));
        }
        read
    }

    /// A size in bytes, as a text with its unit or as a whole number.
    pub(super) fn size(&mut self, value: &Value<'_>, what: &str) -> Option<At<u64>> {
        let at = self.at(value);
        let text = match (value.get_ref().as_str(), value.get_ref().as_integer()) {
            (Some(text), _) => text,
            (None, Some(bytes)) if bytes.radix() == 10 => bytes.as_str(),
            _ => "",
        };
        match size::parse(text) {
            Some(value) => Some(At { value, at }),
            None => {
                self.wrong(value, format!("{what} is {}", size::WRITE));
                None
            }
        }
    }

    pub(super) fn strings(&mut self, value: &Value<'_>, what: &str) -> Vec<At<String>> {
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

    pub(super) fn choice<T: Copy>(
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

    pub(super) fn unknown_key(
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

    pub(super) fn each_table(
        &mut self,
        value: &Value<'_>,
        what: &str,
        read: fn(&mut Self, &Value<'_>),
    ) {
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
}
