//! Limits and tables, as the commands print them.

use serde::Serialize;

use crate::limit::{Limit, LimitId, Mode, Unit, Window};
use crate::spec::Ruleset;

/// A limit in JSON.
#[derive(Clone, Debug, Serialize)]
pub(super) struct LimitView<'r> {
    pub(super) name: &'r str,
    pub(super) unit: &'static str,
    pub(super) quota: u32,
    pub(super) window_s: u64,
    pub(super) scope: &'static [&'static str],
    pub(super) group: Option<&'r str>,
}

impl<'r> LimitView<'r> {
    pub(super) fn new(limit: &'r Limit) -> Self {
        Self {
            name: &limit.name,
            unit: limit.unit.as_str(),
            quota: limit.quota.get(),
            window_s: limit.window_s(),
            scope: limit.scope.attributes(),
            group: limit.group.as_deref(),
        }
    }
}

/// The limits in JSON.
pub(super) fn views<'r>(rules: &'r Ruleset, limits: &[LimitId]) -> Vec<LimitView<'r>> {
    limits
        .iter()
        .map(|id| LimitView::new(rules.limit(*id)))
        .collect()
}

/// A limit's quota and window, e.g. `100 calls/s`.
pub(super) fn quota(limit: &Limit) -> String {
    let quota = limit.quota.get();
    let name = |unit: Unit| match (quota, unit.as_str()) {
        (1, unit) => unit.trim_end_matches('s'),
        (_, unit) => unit,
    };
    let unit = name(limit.unit);
    let text = match (&limit.window, limit.window_s()) {
        (Window::Running, _) => format!("{quota} {} at once", name(Unit::Tasks)),
        (Window::Day(_), _) => format!("{quota} {unit}/day"),
        (Window::Sliding(_), 1) => format!("{quota} {unit}/s"),
        (Window::Sliding(_), 60) => format!("{quota} {unit}/min"),
        (Window::Sliding(length), _) => format!("{quota} {unit}/{length:?}"),
    };
    match limit.mode {
        Mode::Report => format!("{text} (report only)"),
        Mode::Enforce | Mode::Off => text,
    }
}

/// Rows with their columns aligned; the last one is as long as it is.
pub(super) fn columns<const N: usize>(indent: &str, rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in rows {
        let mut line = indent.to_owned();
        for (cell, width) in row.iter().zip(widths) {
            let pad = width - cell.chars().count();
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', pad + 2));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// JSON for people and programs.
pub(super) fn json(value: &impl Serialize) -> String {
    // Views are made of strings, numbers and lists: there is nothing that could fail.
    let mut text = serde_json::to_string_pretty(value).unwrap_or_default();
    text.push('\n');
    text
}
