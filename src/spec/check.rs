//! Mistakes of route files: each with its place, all at once.

use std::fmt;

/// Where something is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Index of the file among the layers.
    pub file: usize,
    /// Line, from 1.
    pub line: usize,
}

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The file as given.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// The route or group it belongs to, if any: ``route `message-users` ``.
    pub within: String,
    /// The offending text.
    pub text: String,
    /// What is wrong, and what to write instead.
    pub message: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: ", self.file, self.line)?;
        if !self.within.is_empty() {
            write!(f, "{}: ", self.within)?;
        }
        if !self.text.is_empty() {
            write!(f, "`{}`: ", self.text)?;
        }
        f.write_str(&self.message)
    }
}

/// All mistakes of all files, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mistakes(pub Vec<Mistake>);

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, mistake) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{mistake}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Mistakes {}

/// Collects mistakes while files are read and compiled.
#[derive(Debug, Default)]
pub(super) struct Collector {
    files: Vec<String>,
    found: Vec<(Place, Mistake)>,
    within: String,
    /// What could not be read.
    lost: Lost,
}

/// What of the files could not be read: what is missing may be there.
#[derive(Debug, Default)]
struct Lost {
    /// A whole file.
    file: bool,
    /// Sections that are no TOML.
    sections: String,
}

impl Collector {
    pub(super) fn new(files: Vec<String>) -> Self {
        Self {
            files,
            found: Vec::new(),
            within: String::new(),
            lost: Lost::default(),
        }
    }

    /// The file of this place, and its line.
    pub(super) fn name_of(&self, at: Place) -> String {
        let file = self.files.get(at.file).map_or("", String::as_str);
        format!("{file}:{}", at.line)
    }

    /// A whole file cannot be read.
    pub(super) fn lose_file(&mut self) {
        self.lost.file = true;
    }

    /// A section is no TOML.
    pub(super) fn lose(&mut self, section: &str) {
        self.lost.sections.push_str(section);
    }

    /// Whether anything has been lost.
    pub(super) fn has_lost(&self) -> bool {
        self.lost.file || !self.lost.sections.is_empty()
    }

    /// Whether something of this name may be in what could not be read: that it is missing is
    /// no mistake then.
    pub(super) fn may_have_lost(&self, name: &str) -> bool {
        self.lost.file || self.lost.sections.contains(name)
    }

    /// What the mistakes that follow belong to.
    pub(super) fn within(&mut self, within: String) {
        self.within = within;
    }

    pub(super) fn add(&mut self, at: Place, text: impl Into<String>, message: impl Into<String>) {
        let file = self.files.get(at.file).cloned().unwrap_or_default();
        let mistake = Mistake {
            file,
            line: at.line,
            within: self.within.clone(),
            text: text.into(),
            message: message.into(),
        };
        if !self.found.iter().any(|(_, known)| *known == mistake) {
            self.found.push((at, mistake));
        }
    }

    pub(super) fn finish(mut self) -> Result<(), Mistakes> {
        if self.found.is_empty() {
            return Ok(());
        }
        self.found.sort_by_key(|(at, _)| *at);
        Err(Mistakes(
            self.found.into_iter().map(|(_, mistake)| mistake).collect(),
        ))
    }
}

/// What to do where a file builds upon another that is not there.
pub(crate) const LAYER: &str = "nothing is known before this file; to layer it over the shipped table, write \
     `--routes shipped` before it";

/// `; did you mean "x"?`, or the list of what there is.
pub(crate) fn suggestion<'a>(wrong: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let known: Vec<&str> = known.into_iter().collect();
    if known.is_empty() {
        return LAYER.to_owned();
    }
    let near = known
        .iter()
        .map(|k| (strsim::damerau_levenshtein(wrong, k), *k))
        .filter(|(edits, k)| *edits <= (k.len() / 3).max(1))
        .min_by_key(|(edits, _)| *edits);
    match near {
        Some((_, near)) => format!("did you mean `{near}`?"),
        None if known.len() <= 16 => format!("known: {}", known.join(", ")),
        None => "nothing of that name is known".to_owned(),
    }
}
