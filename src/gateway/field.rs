//! Fields of answers of our own, and how they are written.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use jiff::fmt::rfc2822;

use crate::limit::{Limit, Moment, Unit, Window};
use crate::text::{OfSecond, push_number};

/// The value of a field of ours, before it is known whether it becomes bytes of HTTP/1.1 or a field
/// of pingora's.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value<'a> {
    /// One that has been made.
    Field(&'a HeaderValue),
    /// A number.
    Number(u64),
    /// `RateLimit` of a limit.
    Limit {
        /// The limit's name, by [`sf_string`].
        name: &'a str,
        /// Units left.
        left: u32,
        /// Until more come free.
        resets_in: Duration,
    },
}

impl Value<'_> {
    /// Appends it, as HTTP/1.1 has it.
    pub(super) fn push(self, out: &mut Vec<u8>) {
        match self {
            Self::Field(value) => out.extend_from_slice(value.as_bytes()),
            Self::Number(number) => push_number(out, number),
            Self::Limit {
                name,
                left,
                resets_in,
            } => {
                out.extend_from_slice(name.as_bytes());
                out.extend_from_slice(b";r=");
                push_number(out, left.into());
                if !resets_in.is_zero() {
                    out.extend_from_slice(b";t=");
                    push_number(out, whole_seconds(resets_in));
                }
            }
        }
    }
}

impl From<Value<'_>> for HeaderValue {
    fn from(value: Value<'_>) -> Self {
        match value {
            Value::Field(value) => value.clone(),
            Value::Number(number) => number.into(),
            Value::Limit { .. } => {
                let mut text = Vec::with_capacity(96);
                value.push(&mut text);
                // Printable ASCII, which every field may have.
                Self::from_bytes(&text).unwrap_or_else(|_| Self::from_static(""))
            }
        }
    }
}

/// A field, as HTTP/1.1 has it on the wire.
pub(super) fn push_field(wire: &mut Vec<u8>, name: &str, value: &[u8]) {
    for part in [name.as_bytes(), b": ", value, b"\r\n"] {
        wire.extend_from_slice(part);
    }
}

thread_local! {
    static DATE: RefCell<OfSecond> = const { RefCell::new(OfSecond::new()) };
}

/// What every head of ours ends with.
pub(super) fn push_end(wire: &mut Vec<u8>, now: Moment, is_kept: bool) {
    DATE.with_borrow_mut(|date| {
        let written = |time| rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&time);
        let date = date.at(now.unix_us, |time| written(time).unwrap_or_default());
        push_field(wire, "date", date.as_bytes());
    });
    let end: &[u8] = match is_kept {
        true => b"connection: keep-alive\r\n\r\n",
        false => b"connection: close\r\n\r\n",
    };
    wire.extend_from_slice(end);
}

/// A field of ours.
pub(super) fn push_own(wire: &mut Vec<u8>, name: &HeaderName, value: Value<'_>) {
    wire.extend_from_slice(name.as_str().as_bytes());
    wire.extend_from_slice(b": ");
    value.push(wire);
    wire.extend_from_slice(b"\r\n");
}

/// `RateLimit-Policy` of a limit (draft-ietf-httpapi-ratelimit-headers-11).
pub(super) fn policy_field(limit: &Limit) -> String {
    let mut field = sf_string(&limit.name);
    let _ = write!(field, ";q={}", limit.quota);
    match limit.window {
        Window::Running => field.push_str(";qu=\"concurrent-requests\""),
        Window::Sliding(_) | Window::Day(_) => {
            let _ = write!(field, ";w={}", limit.window_s());
        }
    }
    if limit.unit == Unit::Messages {
        field.push_str(";qu=\"messages\"");
    }
    field
}

/// A structured-field string (RFC 9651): printable ASCII, quoted.
pub(super) fn sf_string(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 24);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            ' '..='~' => out.push(c),
            _ => out.push('?'),
        }
    }
    out.push('"');
    out
}

/// Whole seconds, rounded up, at least 1.
pub(super) fn whole_seconds(wait: Duration) -> u64 {
    wait.as_secs()
        .saturating_add(u64::from(wait.subsec_nanos() > 0))
        .max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_the_same_in_both_forms() {
        let made = HeaderValue::from_static("\"a\";q=5");
        let limit = |resets_in| Value::Limit {
            name: "\"a\"",
            left: 7,
            resets_in,
        };
        for (value, text) in [
            (Value::Field(&made), "\"a\";q=5"),
            (Value::Number(u64::MAX), "18446744073709551615"),
            (limit(Duration::ZERO), "\"a\";r=7"),
            (limit(Duration::from_millis(1_001)), "\"a\";r=7;t=2"),
        ] {
            let mut written = Vec::new();
            value.push(&mut written);
            assert_eq!(written, text.as_bytes());
            assert_eq!(HeaderValue::from(value), text);
        }
    }

    #[test]
    fn a_head_ends_with_its_date_and_what_becomes_of_its_connection() {
        let at = |unix_us, is_kept| {
            let mut wire = Vec::new();
            let now = Moment {
                mono_us: 0,
                unix_us,
            };
            push_end(&mut wire, now, is_kept);
            String::from_utf8(wire).unwrap()
        };
        let kept = "date: Sat, 21 Nov 2026 08:00:00 GMT\r\nconnection: keep-alive\r\n\r\n";
        assert_eq!(at(1_795_248_000_000_000, true), kept);
        assert_eq!(at(1_795_248_000_999_999, true), kept);
        assert_eq!(
            at(0, false),
            "date: Thu, 01 Jan 1970 00:00:00 GMT\r\nconnection: close\r\n\r\n"
        );
    }
}
