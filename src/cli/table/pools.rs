//! The keys of a `[[pool]]` in floodgate.toml.

use super::{ONE, Setting};

/// What a pool says of itself. What it does not say is as for the default pool.
pub(in crate::cli) const POOL: &[Setting] = &[
    Setting {
        key: "name",
        value: "NAME",
        help: "Its name in metrics and log lines",
        more: "1 to 32 letters, digits, `.`, `_` or `-`; not `default`.",
        ..ONE
    },
    Setting {
        key: "upstreams",
        value: "URL",
        many: true,
        help: "Where its calls go, written as `upstream`",
        more: "Without any, where those of the default pool go: so a pool can be no more than other times.",
        ..ONE
    },
    Setting {
        key: "apps",
        value: "APP",
        many: true,
        help: "Apps whose calls it gets: `org#app` or an App ID",
        more: "An app goes over a route, a route over an edition.",
        ..ONE
    },
    Setting {
        key: "routes",
        value: "ROUTE",
        many: true,
        help: "Routes whose calls it gets, by the names that `floodgate routes` prints",
        more: "`unmatched` and `options` stand for calls of no documented route, and for OPTIONS.",
        ..ONE
    },
    Setting {
        key: "editions",
        value: "EDITION",
        many: true,
        help: "Editions whose calls it gets: v1, v2, v3, v4 or one of your own",
        ..ONE
    },
    Setting {
        key: "balance",
        value: "round-robin|least-connections|hash-app",
        help: "See `balance` above",
        ..ONE
    },
    Setting {
        key: "http2",
        value: "true|false",
        help: "Speak HTTP/2 with all of its upstreams",
        ..ONE
    },
    Setting {
        key: "sni",
        value: "NAME",
        help: "The name that its https upstreams are asked for, and checked against, instead of the URL's host",
        ..ONE
    },
    Setting {
        key: "ca",
        value: "FILE",
        help: "Certificates (PEM) that vouch for its https upstreams",
        more: "The path is relative to the file.",
        ..ONE
    },
    Setting {
        key: "health_check",
        value: "off|tcp|PATH",
        help: "See `health_check` above",
        ..ONE
    },
    Setting {
        key: "retry_on",
        value: "STATUS|reset|off",
        many: true,
        help: "See `retry_on` above",
        ..ONE
    },
    Setting {
        key: "connect_timeout",
        value: "TIME",
        help: "Time to connect",
        ..ONE
    },
    Setting {
        key: "first_byte_timeout",
        value: "TIME",
        help: "Longest wait for the head of the answer",
        ..ONE
    },
    Setting {
        key: "read_timeout",
        value: "TIME",
        help: "Longest wait between two reads",
        ..ONE
    },
    Setting {
        key: "write_timeout",
        value: "TIME",
        help: "Longest wait between two writes",
        ..ONE
    },
    Setting {
        key: "request_timeout",
        value: "TIME|off",
        help: "Time for a call as a whole",
        ..ONE
    },
    Setting {
        key: "concurrency",
        value: "off|adaptive",
        help: "See `concurrency` above; each pool has a limit of its own",
        ..ONE
    },
    Setting {
        key: "concurrency_min",
        value: "N",
        help: "The smallest limit",
        ..ONE
    },
    Setting {
        key: "concurrency_max",
        value: "N",
        help: "The largest limit",
        ..ONE
    },
    Setting {
        key: "concurrency_slack",
        value: "PERCENT",
        help: "How much longer answers may take before the limit shrinks",
        ..ONE
    },
    Setting {
        key: "concurrency_measure",
        value: "TIME",
        help: "How often the latency of an upstream with little to do is measured anew",
        ..ONE
    },
];
