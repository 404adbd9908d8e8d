//! Process and access log, through `tracing-subscriber`. Written by a thread of its own, from a
//! bounded queue: a slow terminal drops lines and never holds up a request.

mod json;
mod queue;

use std::cell::RefCell;
use std::io::Write as _;
use std::sync::OnceLock;

use tracing_subscriber::EnvFilter;

pub use self::queue::Guard;
use self::queue::Queue;
use super::failures::Times;
use crate::settings::LogFormat;

/// Where the lines of the access log go.
static LINES: OnceLock<Queue> = OnceLock::new();

thread_local! {
    /// The line at hand; kept for the next one.
    static LINE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Starts logging to standard output. Keep the guard: dropping it writes what still waits.
///
/// # Errors
/// When no thread can be started.
pub fn start(format: LogFormat) -> std::io::Result<Guard> {
    let (queue, guard) = Queue::start(std::io::stdout())?;
    // pingora reports every broken connection of a caller as an error (a port scan, too), and one of HTTP/2 that an
    // upstream has closed as critical where its descriptor has been given to another since: it is
    // not used then. redis reports each of its attempts during an outage. Our own line says why.
    let filter = EnvFilter::new(
        "info,pingora=error,pingora_core=error,pingora_core::apps=off,pingora_core::protocols=off,pingora_proxy=off,redis=off,hickory_resolver=off,hickory_net=off",
    );
    // A second one in one process (tests) is no fault: the first one goes on.
    let _ = LINES.set(queue.clone());
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(queue);
    let _ = match format {
        LogFormat::Json => builder.event_format(json::Lines::new()).try_init(),
        LogFormat::Text => builder.with_ansi(false).try_init(),
    };
    Ok(guard)
}

/// One line of the access log. Never a token, never a query string.
#[derive(Clone, Copy, Debug)]
pub struct Line<'a> {
    /// When the call ended, Unix microseconds.
    pub unix_us: u64,
    /// Request ID.
    pub id: &'a str,
    /// The address as charged.
    pub ip: std::net::IpAddr,
    /// Method.
    pub method: &'a str,
    /// Path as matched, without the query.
    pub path: &'a str,
    /// Route name.
    pub route: &'a str,
    /// App, folded.
    pub app: &'a str,
    /// The verb.
    pub verb: &'a str,
    /// The limit that denied, or would have.
    pub limit: &'a str,
    /// Recipients that the call was priced with.
    pub cost: u32,
    /// Status of the answer; 0: none was sent.
    pub status: u16,
    /// Where its time went.
    pub times: Times,
    /// The pool that it was sent to; empty: none.
    pub pool: &'a str,
    /// The upstream address of the last attempt.
    pub upstream: Option<std::net::SocketAddr>,
    /// Attempts upstream.
    pub attempts: u64,
    /// Why the call failed, if it did: one of a few words.
    pub cause: &'a str,
    /// What exactly went wrong, if anything did.
    pub error: &'a str,
}

impl Line<'_> {
    /// Whether the call was answered here, at once, and without a fault.
    fn ends_here(&self) -> bool {
        let waits = Times {
            own_us: 0,
            ..self.times
        };
        waits == Times::default()
            && self.attempts == 0
            && self.upstream.is_none()
            && [self.cause, self.error].iter().all(|text| text.is_empty())
    }
}

/// Writes a line.
pub fn access(line: &Line<'_>, format: LogFormat) {
    match format {
        // An event, a field at a time, costs more than all else here.
        LogFormat::Json => LINE.with_borrow_mut(|out| {
            out.clear();
            json::push_line(out, line);
            if let Some(mut lines) = LINES.get() {
                // What there is no room for is dropped.
                let _ = lines.write(out);
            }
        }),
        LogFormat::Text => tracing::info!(
            target: "access",
            id = line.id,
            ip = line.ip.to_string().as_str(),
            method = line.method,
            path = line.path,
            route = line.route,
            app = line.app,
            verb = line.verb,
            limit = line.limit,
            cost = line.cost,
            status = line.status,
            own_us = line.times.own_us,
            body_us = line.times.body_us,
            store_us = line.times.store_us,
            upstream_us = line.times.upstream_us,
            connect_us = line.times.connect_us,
            first_byte_us = line.times.first_byte_us,
            pool = line.pool,
            upstream = line.upstream.map(tracing::field::display),
            attempts = line.attempts,
            cause = line.cause,
            error = line.error,
        ),
    }
}
