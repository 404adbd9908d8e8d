//! Where in a call something stands, as route files write it.
//!
//! `from`, `body.msg`: a field of the body's JSON. `to[]`: each element of an array, `metaData.*`
//! each field of an object, and `[]` each element of a body that is an array. `names(metaData)`:
//! the names of an object's fields. `{username}`: a segment of the path, `{usernames}[]` each
//! entry of one with a list. `.`: the body as a whole.

use std::fmt;

/// One step into a JSON value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// To the field of this name.
    Field(Box<str>),
    /// To each field.
    Any,
    /// To each element.
    Items,
}

/// A place.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// A value of the body, or several.
    Value(Box<[Step]>),
    /// The names of the fields of such a value.
    Names(Box<[Step]>),
    /// A segment of the path.
    Path {
        /// The name of the parameter.
        name: Box<str>,
        /// Whether it is a list.
        is_list: bool,
    },
    /// The body as a whole.
    Whole,
}

impl Place {
    /// Reads what a route file has.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if text == "." {
            return Some(Self::Whole);
        }
        if let Some(rest) = text.strip_prefix('{') {
            let (name, after) = rest.split_once('}')?;
            let is_sane =
                !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
            return (is_sane && matches!(after, "" | "[]")).then(|| Self::Path {
                name: name.into(),
                is_list: after == "[]",
            });
        }
        let names = text.strip_prefix("names(");
        match names {
            Some(inner) => steps(inner.strip_suffix(')')?).map(Self::Names),
            None => steps(text).map(Self::Value),
        }
    }
}

/// `a.b`, `a[].b`, `[].b`, `a.*`.
pub(crate) fn steps(text: &str) -> Option<Box<[Step]>> {
    let mut steps = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix("[]") {
            steps.push(Step::Items);
            rest = after;
            continue;
        }
        if !steps.is_empty() {
            rest = rest.strip_prefix('.')?;
        }
        let end = rest.find(['.', '[']).unwrap_or(rest.len());
        let (name, after) = rest.split_at(end);
        let is_sane = |c: char| c.is_alphanumeric() || c == '_' || c == '-';
        steps.push(match name {
            "*" => Step::Any,
            name if !name.is_empty() && name.chars().all(is_sane) => Step::Field(name.into()),
            _ => return None,
        });
        rest = after;
    }
    (!steps.is_empty()).then(|| steps.into())
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(steps) => write_steps(f, steps),
            Self::Names(steps) => {
                f.write_str("names(")?;
                write_steps(f, steps)?;
                f.write_str(")")
            }
            Self::Path { name, is_list } => {
                write!(f, "{{{name}}}{}", if *is_list { "[]" } else { "" })
            }
            Self::Whole => f.write_str("."),
        }
    }
}

fn write_steps(f: &mut fmt::Formatter<'_>, steps: &[Step]) -> fmt::Result {
    for (nth, step) in steps.iter().enumerate() {
        match step {
            Step::Items => f.write_str("[]")?,
            Step::Field(_) | Step::Any => {
                if nth > 0 {
                    f.write_str(".")?;
                }
                match step {
                    Step::Field(name) => f.write_str(name)?,
                    _ => f.write_str("*")?,
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_written_as_it_is_read() {
        for text in [
            ".",
            "from",
            "body.msg",
            "to[]",
            "[]",
            "[].username",
            "metaData.*",
            "names(metaData)",
            "{username}",
            "{usernames}[]",
            "a[][].b.*",
        ] {
            let place = Place::parse(text);
            assert_eq!(place.map(|place| place.to_string()).as_deref(), Some(text));
        }
        for text in [
            "", "..", "a.", ".a", "a..b", "a[", "a]", "a[0]", "{a", "{}", "{a}x", "names(",
            "names()", "a b", "{a.b}", "a[]b",
        ] {
            assert_eq!(Place::parse(text), None, "{text:?}");
        }
    }
}
