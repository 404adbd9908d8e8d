//! Why calls fail, in a closed set of words: the `cause` of the access log, and its metrics.

use prometheus::{Histogram, HistogramOpts, IntCounterVec, Opts, Registry};

/// Why a call did not get a whole answer of the upstream's, though no limit spoke against it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The upstream's host refused the connection.
    ConnectRefused,
    /// No connection in time.
    ConnectTimeout,
    /// No connection for another reason.
    ConnectFailed,
    /// The TLS handshake with the upstream failed, or its certificate is not trusted.
    Tls,
    /// The pool has no address.
    NoUpstream,
    /// The connection broke before the head of an answer was whole.
    ResetBeforeHeaders,
    /// It broke in the middle of an answer's body, or the answer ended too soon.
    ResetInBody,
    /// No head of an answer in time.
    HeaderTimeout,
    /// The answer stood still.
    BodyTimeout,
    /// The upstream did not take the request.
    WriteTimeout,
    /// The call has had its `request_timeout`.
    RequestTimeout,
    /// What the upstream sent is no answer.
    Malformed,
    /// The head of its answer is too large.
    HeadTooLarge,
    /// The caller went away.
    ClientLeft,
    /// The caller sent its body, or read its answer, too slowly.
    ClientSlow,
    /// The body of the request is not what its framing says.
    ClientMalformed,
    /// The body of the request is too large.
    ClientTooLarge,
    /// Turned away to protect ourselves or the upstream.
    Shed,
    /// The limits could not be checked.
    Store,
    /// Still running when the gateway's `grace` was over.
    Draining,
    /// A fault of ours.
    Internal,
}

impl Cause {
    /// All of them.
    pub const ALL: [Self; 21] = [
        Self::ConnectRefused,
        Self::ConnectTimeout,
        Self::ConnectFailed,
        Self::Tls,
        Self::NoUpstream,
        Self::ResetBeforeHeaders,
        Self::ResetInBody,
        Self::HeaderTimeout,
        Self::BodyTimeout,
        Self::WriteTimeout,
        Self::RequestTimeout,
        Self::Malformed,
        Self::HeadTooLarge,
        Self::ClientLeft,
        Self::ClientSlow,
        Self::ClientMalformed,
        Self::ClientTooLarge,
        Self::Shed,
        Self::Store,
        Self::Draining,
        Self::Internal,
    ];

    /// The word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ConnectRefused => "connect-refused",
            Self::ConnectTimeout => "connect-timeout",
            Self::ConnectFailed => "connect-failed",
            Self::Tls => "tls",
            Self::NoUpstream => "no-upstream",
            Self::ResetBeforeHeaders => "reset-before-headers",
            Self::ResetInBody => "reset-in-body",
            Self::HeaderTimeout => "header-timeout",
            Self::BodyTimeout => "body-timeout",
            Self::WriteTimeout => "write-timeout",
            Self::RequestTimeout => "request-timeout",
            Self::Malformed => "malformed",
            Self::HeadTooLarge => "head-too-large",
            Self::ClientLeft => "client-left",
            Self::ClientSlow => "client-slow",
            Self::ClientMalformed => "client-malformed",
            Self::ClientTooLarge => "client-too-large",
            Self::Shed => "shed",
            Self::Store => "store",
            Self::Draining => "draining",
            Self::Internal => "internal",
        }
    }
}

/// Where the time of a call went, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// Our own part.
    pub own_us: u64,
    /// Waiting for the body, where it is read before the decision.
    pub body_us: u64,
    /// Of our own part: waiting for the shared store.
    pub store_us: u64,
    /// From the verdict to the end.
    pub upstream_us: u64,
    /// Of that: connecting, over all attempts.
    pub connect_us: u64,
    /// Of that: from the connection of the last attempt to the head of its answer; 0 without one.
    pub first_byte_us: u64,
}

/// From 0.1 ms to 60 s.
const BUCKETS: &[f64] = &[
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    10.0, 60.0,
];

/// Counts failures, and observes the parts of a call's time.
#[derive(Debug)]
pub struct FailureMetrics {
    failures: IntCounterVec,
    store: Histogram,
    connect: Histogram,
    first_byte: Histogram,
}

impl FailureMetrics {
    /// Registers them.
    ///
    /// # Errors
    /// When a metric is described wrongly; never with the names below.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let histogram = |name: &str, help: &str| -> prometheus::Result<Histogram> {
            let opts = HistogramOpts::new(name, help).buckets(BUCKETS.to_vec());
            let histogram = Histogram::with_opts(opts)?;
            registry.register(Box::new(histogram.clone()))?;
            Ok(histogram)
        };
        let failures = IntCounterVec::new(
            Opts::new(
                "floodgate_failures_total",
                "Calls that got no whole answer of the upstream's, by the pool (empty where none was chosen) and the cause that the access log has.",
            ),
            &["pool", "cause"],
        )?;
        registry.register(Box::new(failures.clone()))?;
        for cause in Cause::ALL {
            // There from the start, so that a rate can be taken of the first one too.
            failures.with_label_values(&["", cause.as_str()]);
        }
        Ok(Self {
            failures,
            store: histogram(
                "floodgate_store_wait_seconds",
                "Time that decisions waited for the shared store.",
            )?,
            connect: histogram(
                "floodgate_upstream_connect_seconds",
                "Time to connect to upstreams, of calls that needed a new connection.",
            )?,
            first_byte: histogram(
                "floodgate_upstream_first_byte_seconds",
                "Time from the connection to the head of the upstream's answer.",
            )?,
        })
    }

    /// Counts a failed call.
    pub fn failed(&self, pool: &str, cause: Cause) {
        self.failures
            .with_label_values(&[pool, cause.as_str()])
            .inc();
    }

    /// Observes the parts of a call's time that there were.
    #[expect(
        clippy::cast_precision_loss,
        reason = "durations are far below 2^52 µs"
    )]
    pub fn took(&self, times: &Times) {
        for (histogram, micros) in [
            (&self.store, times.store_us),
            (&self.connect, times.connect_us),
            (&self.first_byte, times.first_byte_us),
        ] {
            if micros > 0 {
                histogram.observe(micros as f64 / 1e6);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::Cause;

    #[test]
    fn each_cause_has_a_word_of_its_own_and_is_documented() {
        let words: HashSet<_> = Cause::ALL.iter().map(|cause| cause.as_str()).collect();
        assert_eq!(words.len(), Cause::ALL.len());
        let page = include_str!("log/README.md");
        for word in words {
            assert!(page.contains(&format!("| `{word}` |")), "{word}");
        }
    }
}
