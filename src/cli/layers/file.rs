//! What the settings file says: its keys, and its `[[pool]]` tables.

use std::collections::BTreeMap;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{Given, Mistake, Origin, POOLS, PoolGiven, line_of};
use crate::cli::table::{POOL, Setting};
use crate::cli::value::nearest;

/// Reads one file's tables.
pub(super) struct FileReader<'f> {
    pub(super) path: &'f Path,
    pub(super) text: &'f str,
    /// Lines that are no TOML.
    pub(super) broken: Vec<usize>,
    pub(super) mistakes: &'f mut Vec<Mistake>,
}

impl FileReader<'_> {
    /// The `[[pool]]` tables.
    pub(super) fn pools(&mut self, pools: Spanned<DeValue<'_>>) -> Vec<PoolGiven> {
        let line = line_of(self.text, pools.span().start);
        let mut read = Vec::new();
        let items: Vec<(usize, DeValue<'_>)> = match pools.into_inner() {
            DeValue::Array(items) => items
                .into_iter()
                .map(|item| (line_of(self.text, item.span().start), item.into_inner()))
                .collect(),
            other => vec![(line, other)],
        };
        for (line, item) in items {
            match item {
                DeValue::Table(table) => read.push(PoolGiven {
                    path: self.path.to_owned(),
                    line,
                    keys: self.keys(table, POOL),
                }),
                other => {
                    let mistake = Mistake::Type {
                        path: self.path.to_owned(),
                        line,
                        key: POOLS.to_owned(),
                        found: kind(&other),
                        wanted: "[[pool]] on a line of its own, and its keys below".to_owned(),
                    };
                    self.mistakes.push(mistake);
                }
            }
        }
        read
    }

    /// The values of a table's keys.
    pub(super) fn keys(
        &mut self,
        table: DeTable<'_>,
        known: &'static [Setting],
    ) -> BTreeMap<&'static str, Vec<Given>> {
        let mut read = BTreeMap::new();
        let mut table: Vec<_> = table.into_iter().collect();
        table.sort_by_key(|(key, _)| key.span().start);
        for (key, value) in table {
            let line = line_of(self.text, key.span().start);
            let key = key.into_inner();
            // What the parser guessed on a broken line is not worth a second mistake.
            if self.broken.contains(&line) {
                continue;
            }
            let Some(setting) = known.iter().find(|setting| setting.key == key) else {
                let names = known.iter().map(|s| s.key).chain([POOLS]);
                self.mistakes.push(Mistake::UnknownKey {
                    path: self.path.to_owned(),
                    line,
                    near: nearest(&key.replace('-', "_"), names).map(str::to_owned),
                    key: key.into_owned(),
                });
                continue;
            };
            let mut entries = Vec::new();
            match value.into_inner() {
                DeValue::Array(items) if setting.many => {
                    for item in items {
                        entries.push((line_of(self.text, item.span().start), item.into_inner()));
                    }
                }
                value => entries.push((line, value)),
            }
            let is_empty = entries.is_empty();
            let mut values = Vec::new();
            for (line, value) in entries {
                match scalar(setting, &value) {
                    Ok(text) => values.push(Given {
                        text,
                        origin: Origin::File {
                            path: self.path.to_owned(),
                            line,
                            key: setting.key.to_owned(),
                            quoted: matches!(value, DeValue::String(_)),
                        },
                        secret: setting.secret,
                    }),
                    Err(found) => self.mistakes.push(Mistake::Type {
                        path: self.path.to_owned(),
                        line,
                        key: setting.key.to_owned(),
                        found,
                        wanted: example(setting),
                    }),
                }
            }
            if is_empty && (setting.default.is_some() || setting.group.is_empty()) {
                self.mistakes.push(Mistake::Type {
                    path: self.path.to_owned(),
                    line,
                    key: setting.key.to_owned(),
                    found: "an empty list",
                    wanted: example(setting),
                });
            }
            read.insert(setting.key, values);
        }
        read
    }
}

/// The text of a value; or what it is, where it has none.
fn scalar(setting: &Setting, value: &DeValue<'_>) -> Result<String, &'static str> {
    let has = |such: &dyn Fn(&str) -> bool| setting.value.split('|').any(such);
    let is_switch = has(&|word| word == "true");
    let is_number =
        has(&|word| matches!(word, "N" | "BITS" | "PERCENT" | "PORT" | "SIZE" | "STATUS"));
    match value {
        DeValue::String(text) => Ok(text.clone().into_owned()),
        DeValue::Integer(n) if is_number && n.radix() == 10 => Ok(n.as_str().to_owned()),
        DeValue::Boolean(b) if is_switch => Ok(b.to_string()),
        DeValue::Float(n) if has(&|word| word == n.as_str()) => Ok(n.as_str().to_owned()),
        other => Err(kind(other)),
    }
}

/// What a value is.
fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) => "a number",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// How a key of the file is written.
fn example(setting: &Setting) -> String {
    let key = setting.key;
    let value = setting.default.unwrap_or(match setting.value {
        "URL" => "http://host:port",
        "CIDR" => "10.0.0.0/8",
        other => other,
    });
    let is_plain = value.parse::<u64>().is_ok() || matches!(value, "true" | "false");
    match (setting.many, is_plain) {
        (true, _) => format!("{key} = [{value:?}]"),
        (false, true) => format!("{key} = {value}"),
        (false, false) => format!("{key} = {value:?}"),
    }
}
