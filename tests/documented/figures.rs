//! `deploy/figures.md` against the lines of the limits pages: none of their figures is missing, and
//! each is the one that is enforced.

use std::collections::BTreeSet;
use std::path::Path;

use floodgate::apps::AppPlan;
use floodgate::limit::total::Kind;
use floodgate::payload::{Measure, Most};
use floodgate::spec::payload::PayloadLimit;

use crate::{edition, none, shipped};

const PAGES: &str = include_str!("../data/limits-pages.tsv");
const TABLE: &str = include_str!("../../deploy/figures.md");

/// One figure that an edition prints.
#[derive(Debug)]
struct Cell<'t> {
    edition: &'t str,
    text: &'t str,
    sources: Vec<&'t str>,
}

#[derive(Debug)]
struct Row<'t> {
    what: &'t str,
    cells: Vec<Cell<'t>>,
    by: Vec<&'t str>,
    tests: Vec<&'t str>,
}

/// What stands between backticks.
fn quoted(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

fn rows() -> Vec<Row<'static>> {
    TABLE
        .lines()
        .filter(|line| line.starts_with("| ") && line.matches('|').count() == 7)
        .skip(2)
        .map(|line| {
            let columns: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
            let cells = ["v1", "v2", "v3"].into_iter().zip(&columns[1..4]);
            Row {
                what: columns[0],
                cells: cells
                    .map(|(edition, text)| Cell {
                        edition,
                        text,
                        sources: quoted(text),
                    })
                    .collect(),
                by: quoted(columns[4]),
                tests: quoted(columns[5]),
            }
        })
        .collect()
}

/// The numbers of a text; those of the sources of a cell, and of `0-9`, are none.
fn numbers(text: &str) -> Vec<u64> {
    let text = text.replace("0-9", "").replace(',', "");
    let outside: String = text.split('`').step_by(2).collect();
    outside
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect()
}

#[test]
fn no_figure_of_the_pages_is_missing() {
    let rows = rows();
    let mut mistakes = Vec::new();
    let mut figures = 0;
    let mut lines = BTreeSet::new();
    for line in PAGES.lines().skip(1) {
        let [edition, source, text] =
            <[&str; 3]>::try_from(line.split('\t').collect::<Vec<_>>()).unwrap();
        lines.insert(source);
        let cells: Vec<&Cell<'_>> = rows
            .iter()
            .flat_map(|row| &row.cells)
            .filter(|cell| cell.edition == edition && cell.sources.contains(&source))
            .collect();
        if cells.is_empty() {
            mistakes.push(format!("{source} is in no row: {text}"));
        }
        for number in numbers(text) {
            figures += 1;
            if !cells
                .iter()
                .any(|cell| numbers(cell.text).contains(&number))
            {
                mistakes.push(format!("{number} of {source} is missing: {text}"));
            }
        }
        for of_plan in text.split('|').map(str::trim) {
            let word = match of_plan {
                "无上限" => "unlimited",
                "无" | "不支持" => "none",
                _ => continue,
            };
            figures += 1;
            if !cells.iter().any(|cell| cell.text.starts_with(word)) {
                mistakes.push(format!("{of_plan} of {source} is missing: {text}"));
            }
        }
    }
    assert!(figures > 180, "{figures}");
    for cell in rows.iter().flat_map(|row| &row.cells) {
        for source in &cell.sources {
            if !lines.contains(source) {
                mistakes.push(format!("{source} is no line of the pages: {}", cell.text));
            }
        }
    }
    none(&mistakes);
}

fn limit(name: &str) -> Option<&'static PayloadLimit> {
    let limits = &shipped().payloads.limits;
    limits.iter().find(|limit| &*limit.name == name)
}

/// Whether history is kept for the days of a cell.
fn is_kept(what: &str, cell: &Cell<'_>) -> bool {
    let history = shipped().history.as_ref().unwrap();
    let figures = history.editions[edition(shipped(), cell.edition).0]
        .as_ref()
        .unwrap();
    let plan = plan_of(what).unwrap();
    let from_here = figures
        .sources
        .iter()
        .any(|source| cell.sources.contains(&&**source));
    from_here && numbers(cell.text) == [u64::from(figures.days[plan.index()])]
}

/// The plan that a row is about, if it is about one.
fn plan_of(what: &str) -> Option<AppPlan> {
    let mut plans = AppPlan::ALL.into_iter();
    plans.find(|plan| what.contains(&format!("{} plan", plan.as_str())))
}

/// Whether a plan may hold what a cell says, of every plan where the row names none.
fn is_held(kind: Kind, what: &str, cell: &Cell<'_>) -> bool {
    let figures = shipped().totals[kind.index()].editions[edition(shipped(), cell.edition).0]
        .as_ref()
        .unwrap();
    let from_here = cell
        .sources
        .iter()
        .all(|source| figures.sources.iter().any(|known| &**known == *source));
    let factor = if cell.text.contains("GB") { 1 << 30 } else { 1 };
    let told = match (cell.text.split(' ').next(), &numbers(cell.text)[..]) {
        (Some("unlimited"), []) => u64::MAX,
        (Some("none"), []) => 0,
        (_, [number]) => number * factor,
        _ => return false,
    };
    let plans = AppPlan::ALL.into_iter();
    let mut plans = plans.filter(|plan| plan_of(what).is_none_or(|named| named == *plan));
    from_here && plans.all(|plan| figures.most[plan.index()] == told)
}

/// Whether a cell's figure is the one that holds in its edition.
fn is_enforced(limit: &PayloadLimit, cell: &Cell<'_>) -> bool {
    let figure = limit.figures[edition(shipped(), cell.edition).0]
        .as_ref()
        .unwrap();
    let from_here = cell
        .sources
        .iter()
        .all(|source| figure.sources.iter().any(|known| &**known == *source));
    let factor = match (cell.text.contains("KB"), cell.text.contains("MB")) {
        (true, _) => 1024,
        (_, true) => 1024 * 1024,
        _ => 1,
    };
    let is_same = match figure.most {
        Some(Most::Fixed(most)) => numbers(cell.text).first().map(|n| n * factor) == Some(most),
        Some(Most::AsMessage) => cell.text.starts_with("as its message"),
        None => false,
    };
    // A set of characters: so many of them.
    let of = cell.text.split_once(" of ").map(|(_, set)| set);
    let has_set = of.is_some_and(|set| {
        let allow = limit.allow.as_ref().map(|allow| allow.written.to_string());
        let range = set.split([' ', '`']).next().unwrap_or_default();
        allow.is_some_and(|allow| !range.is_empty() && allow.contains(range))
    });
    from_here && (is_same || has_set)
}

#[test]
fn each_figure_is_enforced_as_its_row_says_and_tried_by_its_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut mistakes = Vec::new();
    let mut named = BTreeSet::new();
    for row in rows() {
        for by in &row.by {
            named.insert(*by);
            if *by == "[history]" {
                let kept = row.cells.iter().filter(|cell| !is_kept(row.what, cell));
                mistakes.extend(kept.map(|cell| format!("{}: not {}", row.what, cell.text)));
                continue;
            }
            if let Some(name) = by.strip_prefix("[totals.") {
                let kind = name.strip_suffix(']').and_then(Kind::named).unwrap();
                let held = row
                    .cells
                    .iter()
                    .filter(|cell| !is_held(kind, row.what, cell));
                mistakes.extend(held.map(|cell| format!("{}: not {}", row.what, cell.text)));
                continue;
            }
            if by.starts_with("metadata/") {
                continue;
            }
            let Some(limit) = limit(by) else {
                mistakes.push(format!("{}: no limit `{by}`", row.what));
                continue;
            };
            for cell in row.cells.iter().filter(|cell| !cell.sources.is_empty()) {
                if !is_enforced(limit, cell) {
                    mistakes.push(format!("{}: `{by}` is not {}", row.what, cell.text));
                }
            }
        }
        match row.tests[..] {
            [file, name] => {
                let text = std::fs::read_to_string(root.join(file)).unwrap_or_default();
                if !text.contains(&format!("#[test]\nfn {name}()")) {
                    mistakes.push(format!("{}: no test {name} in {file}", row.what));
                }
            }
            [] if row.by.is_empty() => {}
            _ => mistakes.push(format!("{}: which test?", row.what)),
        }
    }
    // The other way round: what has a line of the pages for its source has a row.
    for limit in &shipped().payloads.limits {
        let of_pages = limit
            .figures
            .iter()
            .flatten()
            .any(|figure| figure.sources.iter().any(|source| source.starts_with("00")));
        if of_pages && !named.contains(&*limit.name) {
            mistakes.push(format!("`{}` has no row", limit.name));
        }
    }
    for kind in Kind::ALL {
        if !named.contains(&*format!("[totals.{}]", kind.as_str())) {
            mistakes.push(format!("[totals.{}] has no row", kind.as_str()));
        }
    }
    none(&mistakes);
}

#[test]
fn the_second_table_names_every_other_limit() {
    let mut others: Vec<(String, u64)> = shipped()
        .payloads
        .limits
        .iter()
        .filter_map(|limit| {
            let figure = limit.figures.last()?.as_ref()?;
            let is_other = !figure.sources.iter().any(|source| source.starts_with("00"));
            match figure.most {
                Some(Most::Fixed(most)) if is_other => Some((limit.name.to_string(), most)),
                _ => None,
            }
        })
        .collect();
    others.sort_unstable();
    assert!(
        others
            .iter()
            .all(|(name, _)| limit(name).is_some_and(|l| l.measure == Measure::Entries))
    );
    let mut told: Vec<(String, u64)> = TABLE
        .lines()
        .filter(|line| line.matches('|').count() == 4 && line.contains('`'))
        .filter(|line| !line.contains("max_recipients"))
        .map(|line| (quoted(line)[0].to_owned(), numbers(line)[0]))
        .collect();
    told.sort_unstable();
    assert_eq!(told, others);
}
