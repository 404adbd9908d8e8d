//! One event as one JSON object. The access log's own events are written without detours; every
//! other one by `tracing-subscriber`'s formatter, in the same form.

use std::fmt::{self, Debug, Write as _};

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::{self, Format, FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::FmtContext;
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
        writer.write_str("{\"timestamp\":\"")?;
        SystemTime.format_time(&mut writer)?;
        writer.write_str("\",\"level\":\"INFO\"")?;
        let mut members = Members {
            out: &mut writer,
            result: Ok(()),
        };
        event.record(&mut members);
        members.result?;
        writer.write_str(",\"target\":\"access\"}\n")
    }
}

/// Writes each field as a member of the object.
struct Members<'a, 'w> {
    out: &'a mut Writer<'w>,
    result: fmt::Result,
}

impl Members<'_, '_> {
    fn member(&mut self, field: &Field, value: impl FnOnce(&mut Writer<'_>) -> fmt::Result) {
        if self.result.is_ok() {
            // Field names are identifiers of our own: nothing to escape.
            self.result = self
                .out
                .write_str(",\"")
                .and_then(|()| self.out.write_str(field.name()))
                .and_then(|()| self.out.write_str("\":"))
                .and_then(|()| value(self.out));
        }
    }
}

impl Visit for Members<'_, '_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.member(field, |out| {
            out.write_char('"')?;
            Escaped(out).write_str(value)?;
            out.write_char('"')
        });
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.member(field, |out| write!(out, "{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.member(field, |out| {
            out.write_char('"')?;
            write!(Escaped(out), "{value:?}")?;
            out.write_char('"')
        });
    }
}

/// Escapes what may not stand in a JSON string.
struct Escaped<'a, 'w>(&'a mut Writer<'w>);

impl fmt::Write for Escaped<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        // All of these are one byte wide: cutting there keeps the text whole.
        while let Some(at) = rest
            .bytes()
            .position(|b| matches!(b, b'"' | b'\\' | 0..=0x1f))
        {
            let (fine, special) = rest.split_at(at);
            self.0.write_str(fine)?;
            match special.as_bytes().first().copied() {
                Some(b @ (b'"' | b'\\')) => {
                    self.0.write_char('\\')?;
                    self.0.write_char(char::from(b))?;
                }
                Some(b) => write!(self.0, "\\u{b:04x}")?,
                None => {}
            }
            rest = special.get(1..).unwrap_or_default();
        }
        self.0.write_str(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_escaped_reads_back_as_it_was() {
        for text in ["", "plain", "\"", "a\"b\\c", "\u{0}\n\u{1f}x", "中\"文"] {
            let mut line = String::from("\"");
            Escaped(&mut Writer::new(&mut line)).write_str(text).unwrap();
            line.push('"');
            assert_eq!(serde_json::from_str::<String>(&line).unwrap(), text);
        }
    }
}
