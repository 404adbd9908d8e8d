//! One event as one JSON object. The access log's own events are written without detours; every
//! other one by `tracing-subscriber`'s formatter, in the same form.

use std::cell::RefCell;
use std::fmt::{self, Debug, Write as _};

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{self, Format, FormatEvent, FormatFields, Writer};
use tracing_subscriber::registry::LookupSpan;

use crate::clock;
use crate::text::digits;

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
        push_time(&mut line, clock::unix_us());
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
        self.0.push_str(digits(value, &mut [0; 20]));
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

thread_local! {
    /// The last second that was written, and how.
    static SECOND: RefCell<(u64, String)> = const { RefCell::new((u64::MAX, String::new())) };
}

/// Appends a Unix time in RFC 3339, to the microsecond.
fn push_time(out: &mut String, unix_us: u64) {
    let (second, micros) = (unix_us / 1_000_000, unix_us % 1_000_000);
    SECOND.with_borrow_mut(|(known, text)| {
        if *known != second {
            let time = i64::try_from(second)
                .ok()
                .and_then(|second| jiff::Timestamp::from_second(second).ok())
                .unwrap_or(jiff::Timestamp::UNIX_EPOCH);
            *text = time.to_string();
            text.truncate("2026-01-01T00:00:00".len());
            *known = second;
        }
        out.push_str(text);
    });
    out.push('.');
    let mut buffer = [0; 20];
    let written = digits(micros, &mut buffer);
    out.extend(std::iter::repeat_n('0', 6 - written.len()));
    out.push_str(written);
    out.push('Z');
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
    fn times_are_written_in_full() {
        for (unix_us, text) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (999_999, "1970-01-01T00:00:00.999999Z"),
            (951_782_400_000_040, "2000-02-29T00:00:00.000040Z"),
            (1_795_247_999_120_000, "2026-11-21T07:59:59.120000Z"),
        ] {
            let mut line = String::new();
            push_time(&mut line, unix_us);
            assert_eq!(line, text);
        }
    }
}
