//! One event as one JSON object, written by `tracing-subscriber`'s formatter; and the lines of the
//! access log, in the same form, without detours.

use std::cell::RefCell;
use std::fmt::{self, Debug};
use std::net::SocketAddr;

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{self, Format, FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::time::{FormatTime as _, SystemTime};
use tracing_subscriber::registry::LookupSpan;

use super::Line;
use crate::text::{OfSecond, push_digits, push_escaped, push_ip, push_number};

/// The target of what libraries log through the `log` crate.
const OF_LIBRARIES: &str = "log";

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
        writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        match event.metadata().target() {
            OF_LIBRARIES => of_library(writer, event),
            _ => self.others.format_event(ctx, writer, event),
        }
    }
}

/// Writes what a library says, without the paths of the machine that built it.
fn of_library(mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
    let mut said = Said::default();
    event.record(&mut said);
    let mut time = String::new();
    SystemTime.format_time(&mut Writer::new(&mut time))?;
    let mut out = Vec::with_capacity(256);
    for (name, text) in [
        ("{\"timestamp\":\"", time.as_str()),
        ("\",\"level\":\"", event.metadata().level().as_str()),
        ("\",\"message\":\"", &said.message),
        ("\",\"target\":\"", &said.target),
    ] {
        out.extend_from_slice(name.as_bytes());
        push_escaped(&mut out, text);
    }
    out.extend_from_slice(b"\"}\n");
    writer.write_str(&String::from_utf8(out).unwrap_or_default())
}

/// What a library says, and which.
#[derive(Default)]
struct Said {
    message: String,
    target: String,
}

impl Visit for Said {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => value.clone_into(&mut self.message),
            "log.target" => value.clone_into(&mut self.target),
            _ => (),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            self.message = format!("{value:?}");
        }
    }
}

/// Appends a line of the access log.
pub(super) fn push_line(out: &mut Vec<u8>, line: &Line<'_>) {
    out.extend_from_slice(b"{\"timestamp\":\"");
    push_time(out, line.unix_us);
    // Each name closes the text before it.
    out.extend_from_slice(b"\",\"level\":\"INFO\",\"id\":\"");
    push_escaped(out, line.id);
    out.extend_from_slice(b"\",\"ip\":\"");
    push_ip(out, line.ip);
    for (name, text) in [
        ("\",\"method\":\"", line.method),
        ("\",\"path\":\"", line.path),
        ("\",\"route\":\"", line.route),
        ("\",\"app\":\"", line.app),
        ("\",\"verb\":\"", line.verb),
        ("\",\"limit\":\"", line.limit),
    ] {
        out.extend_from_slice(name.as_bytes());
        push_escaped(out, text);
    }
    out.push(b'"');
    for (name, number) in [
        (",\"cost\":", line.cost.into()),
        (",\"status\":", line.status.into()),
        (",\"own_us\":", line.times.own_us),
    ] {
        out.extend_from_slice(name.as_bytes());
        push_number(out, number);
    }
    if line.ends_here() {
        // Two pieces instead of twenty.
        let [before, after] = ENDS_HERE;
        out.extend_from_slice(before);
        push_escaped(out, line.pool);
        out.extend_from_slice(after);
    } else {
        push_rest(out, line);
    }
}

/// The rest of a line, before and after its pool, of a call that went no further and has no fault.
const ENDS_HERE: [&[u8]; 2] = [
    b",\"body_us\":0,\"store_us\":0,\"upstream_us\":0,\"connect_us\":0,\"first_byte_us\":0,\
    \"attempts\":0,\"upstream\":\"\",\"pool\":\"",
    b"\",\"cause\":\"\",\"error\":\"\",\"target\":\"access\"}\n",
];

/// The rest of any line.
fn push_rest(out: &mut Vec<u8>, line: &Line<'_>) {
    for (name, number) in [
        (",\"body_us\":", line.times.body_us),
        (",\"store_us\":", line.times.store_us),
        (",\"upstream_us\":", line.times.upstream_us),
        (",\"connect_us\":", line.times.connect_us),
        (",\"first_byte_us\":", line.times.first_byte_us),
        (",\"attempts\":", line.attempts),
    ] {
        out.extend_from_slice(name.as_bytes());
        push_number(out, number);
    }
    out.extend_from_slice(b",\"upstream\":\"");
    if let Some(addr) = line.upstream {
        push_addr(out, addr);
    }
    for (name, text) in [
        ("\",\"pool\":\"", line.pool),
        ("\",\"cause\":\"", line.cause),
        ("\",\"error\":\"", line.error),
    ] {
        out.extend_from_slice(name.as_bytes());
        push_escaped(out, text);
    }
    out.extend_from_slice(b"\",\"target\":\"access\"}\n");
}

/// Appends an address with its port, as metrics name it.
fn push_addr(out: &mut Vec<u8>, addr: SocketAddr) {
    if addr.is_ipv6() {
        out.push(b'[');
    }
    push_ip(out, addr.ip());
    out.extend_from_slice(if addr.is_ipv6() { b"]:" } else { b":" });
    push_number(out, addr.port().into());
}

thread_local! {
    static SECOND: RefCell<OfSecond> = const { RefCell::new(OfSecond::new()) };
}

/// Appends a Unix time in RFC 3339, to the microsecond.
fn push_time(out: &mut Vec<u8>, unix_us: u64) {
    SECOND.with_borrow_mut(|second| {
        let text = second.at(unix_us, |time| time.strftime("%FT%T").to_string());
        out.extend_from_slice(text.as_bytes());
    });
    out.push(b'.');
    push_digits(out, unix_us % 1_000_000, 6);
    out.push(b'Z');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::failures::Times;

    #[test]
    fn a_line_is_json_whatever_callers_write() {
        let asked = Line {
            unix_us: 1_795_247_999_120_000,
            id: "i",
            ip: "2001:db8::1".parse().unwrap(),
            method: "GET",
            path: "/o/a/\"\\\u{1}中",
            route: "r",
            app: "o#\"a",
            verb: "deny",
            limit: "",
            cost: 7,
            status: 429,
            times: Times {
                upstream_us: u64::MAX,
                connect_us: 3,
                ..Times::default()
            },
            pool: "p\"",
            upstream: Some("[2001:db8::2]:80".parse().unwrap()),
            attempts: 2,
            cause: "tls",
            error: "",
        };
        let mut written = Vec::new();
        push_line(&mut written, &asked);
        assert!(written.ends_with(b"\n"));
        let read: serde_json::Value = serde_json::from_slice(&written).unwrap();
        assert_eq!(read["timestamp"], "2026-11-21T07:59:59.120000Z");
        assert_eq!(read["path"], asked.path);
        assert_eq!(read["app"], asked.app);
        assert_eq!(read["ip"], "2001:db8::1");
        assert_eq!(read["cost"], 7);
        assert_eq!(read["upstream_us"], u64::MAX);
        assert_eq!(read["upstream"], "[2001:db8::2]:80");
        assert_eq!(read["attempts"], 2);
        assert_eq!(read["connect_us"], 3);
        assert_eq!(read["pool"], asked.pool);
        assert_eq!(read["cause"], "tls");
        let page = include_str!("README.md");
        let fields = read.as_object().unwrap();
        assert_eq!(fields.len(), 24);
        for field in fields.keys() {
            assert!(page.contains(&format!("| `{field}` |")), "{field}");
        }
    }

    #[test]
    fn a_line_of_a_call_that_ends_here_has_the_same_fields() {
        let denied = Line {
            unix_us: 1_795_247_999_120_000,
            id: "i",
            ip: "127.0.0.1".parse().unwrap(),
            method: "GET",
            path: "/o/a",
            route: "r",
            app: "o#a",
            verb: "deny",
            limit: "l",
            cost: 1,
            status: 429,
            times: Times {
                own_us: 5,
                ..Times::default()
            },
            pool: "p\"",
            upstream: None,
            attempts: 0,
            cause: "",
            error: "",
        };
        let written = |line: &Line<'_>| {
            let mut out = Vec::new();
            push_line(&mut out, line);
            String::from_utf8(out).unwrap()
        };
        assert!(denied.ends_here());
        // With anything more to say it is written the other way, and has that alone besides.
        let times = denied.times;
        for (field, text, line) in [
            (
                "body_us",
                "7",
                Line {
                    times: Times {
                        body_us: 7,
                        ..times
                    },
                    ..denied
                },
            ),
            (
                "store_us",
                "7",
                Line {
                    times: Times {
                        store_us: 7,
                        ..times
                    },
                    ..denied
                },
            ),
            (
                "upstream_us",
                "7",
                Line {
                    times: Times {
                        upstream_us: 7,
                        ..times
                    },
                    ..denied
                },
            ),
            (
                "connect_us",
                "7",
                Line {
                    times: Times {
                        connect_us: 7,
                        ..times
                    },
                    ..denied
                },
            ),
            (
                "first_byte_us",
                "7",
                Line {
                    times: Times {
                        first_byte_us: 7,
                        ..times
                    },
                    ..denied
                },
            ),
            (
                "attempts",
                "7",
                Line {
                    attempts: 7,
                    ..denied
                },
            ),
            (
                "upstream",
                "\"127.0.0.1:80\"",
                Line {
                    upstream: "127.0.0.1:80".parse().ok(),
                    ..denied
                },
            ),
            (
                "cause",
                "\"c\"",
                Line {
                    cause: "c",
                    ..denied
                },
            ),
            (
                "error",
                "\"e\"",
                Line {
                    error: "e",
                    ..denied
                },
            ),
        ] {
            let nothing = if text == "7" { "0" } else { "\"\"" };
            let more = format!("\"{field}\":{text}");
            let expected = written(&line).replace(&more, &format!("\"{field}\":{nothing}"));
            assert!(written(&line).contains(&more), "{field}");
            assert_eq!(written(&denied), expected, "{field}");
        }
    }

    /// Keeps what is written.
    #[derive(Clone, Default)]
    struct Kept(std::sync::Arc<parking_lot::Mutex<Vec<u8>>>);

    impl std::io::Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_a_library_says_is_written_without_its_file() {
        let (kept, file) = (Kept::default(), "/root/.cargo/registry/src/lib.rs");
        let writer = kept.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .event_format(Lines::new())
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            let said = "\"no\"\n";
            tracing::warn!(target: "log", { log.target = "a::lib", log.file = file }, "{said}");
        });
        let written = String::from_utf8(kept.0.lock().clone()).unwrap();
        let read: serde_json::Value = serde_json::from_str(&written).unwrap();
        assert!(read["timestamp"].as_str().unwrap().ends_with('Z'));
        assert_eq!(read["level"], "WARN");
        assert_eq!(read["message"], "\"no\"\n");
        assert_eq!(read["target"], "a::lib");
        assert_eq!(read.as_object().unwrap().len(), 4);
    }

    #[test]
    fn times_are_written_in_full() {
        for (unix_us, text) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (999_999, "1970-01-01T00:00:00.999999Z"),
            (951_782_400_000_040, "2000-02-29T00:00:00.000040Z"),
            (1_795_247_999_120_000, "2026-11-21T07:59:59.120000Z"),
        ] {
            let mut line = Vec::new();
            push_time(&mut line, unix_us);
            assert_eq!(line, text.as_bytes());
        }
    }
}
