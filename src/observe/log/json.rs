//! One event as one JSON object. The access log's own events are written without detours; every
//! other one by `tracing-subscriber`'s formatter, in the same form.

use std::fmt::{self, Debug, Write as _};

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{self, Format, FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::registry::LookupSpan;

/// The access log's target.
pub(super) const ACCESS: &str = "access";

/// The formatter.
pub(super) struct Lines {
    others: Format<format::Json>,
}

impl Lines {
    pub(super) fn new() -> Self {
        Self {
            others: format::format()
                .json()
                .flatten_event(true)
                .with_current_span(false),
        }
    }
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        ctx: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        if event.metadata().target() != ACCESS {
            return self.others.format_event(ctx, writer, event);
        }
        // The writer is behind a pointer: one call for the line, not one for every piece of it.
        let mut line = String::with_capacity(512);
        line.push_str("{\"timestamp\":\"");
        SystemTime.format_time(&mut Writer::new(&mut line))?;
        line.push_str("\",\"level\":\"INFO\"");
        event.record(&mut Members(&mut line));
        line.push_str(",\"target\":\"access\"}\n");
        writer.write_str(&line)
    }
}

/// Writes each field as a member of the object.
struct Members<'a>(&'a mut String);

impl Members<'_> {
    fn name(&mut self, field: &Field) {
        // Field names are identifiers of our own: nothing to escape.
        self.0.push_str(",\"");
        self.0.push_str(field.name());
        self.0.push_str("\":");
    }
}

impl Visit for Members<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.name(field);
        self.0.push('"');
        push_escaped(self.0, value);
        self.0.push('"');
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.name(field);
        push_number(self.0, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.name(field);
        self.0.push('"');
        // Writing to a string does not fail.
        let _ = write!(Escaped(self.0), "{value:?}");
        self.0.push('"');
    }
}

struct Escaped<'a>(&'a mut String);

impl fmt::Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        push_escaped(self.0, text);
        Ok(())
    }
}

/// Appends text, with what may not stand in a JSON string escaped.
fn push_escaped(out: &mut String, text: &str) {
    let special = |b: u8| b < 0x20 || b == b'"' || b == b'\\';
    if !text.bytes().any(special) {
        out.push_str(text);
        return;
    }
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            '\u{0}'..='\u{1f}' => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
}

/// Appends a number: mostly one of few digits.
fn push_number(out: &mut String, value: u64) {
    let mut digits = [b'0'; 20];
    let mut rest = value;
    let mut first = digits.len();
    for (at, digit) in digits.iter_mut().enumerate().rev() {
        *digit += u8::try_from(rest % 10).unwrap_or_default();
        rest /= 10;
        first = at;
        if rest == 0 {
            break;
        }
    }
    let written = digits.get(first..).unwrap_or_default();
    out.extend(written.iter().copied().map(char::from));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_escaped_reads_back_as_it_was() {
        for text in ["", "plain", "\"", "a\"b\\c", "\u{0}\n\u{1f}x", "中\"文"] {
            let mut line = String::from("\"");
            push_escaped(&mut line, text);
            line.push('"');
            assert_eq!(serde_json::from_str::<String>(&line).unwrap(), text);
        }
    }

    #[test]
    fn numbers_are_written_in_full() {
        for number in [0, 7, 10, 429, 1_000_000, u64::MAX] {
            let mut line = String::new();
            push_number(&mut line, number);
            assert_eq!(line, number.to_string());
        }
    }
}
