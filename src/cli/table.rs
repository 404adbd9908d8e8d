//! The table of settings: the one definition from which flags, environment variables, keys of
//! `floodgate.toml`, the help and the reference are made.

/// One setting.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setting {
    /// Its key in `floodgate.toml`.
    pub(super) key: &'static str,
    /// Its flag, without the dashes.
    pub(super) flag: &'static str,
    /// What a value looks like.
    pub(super) value: &'static str,
    /// Whether it takes a list.
    pub(super) many: bool,
    /// The value when nothing is given.
    pub(super) default: Option<&'static str>,
    /// Heading in the help and the reference.
    pub(super) group: &'static str,
    /// What it does, in one line.
    pub(super) help: &'static str,
    /// What else there is to know.
    pub(super) more: &'static str,
}

impl Setting {
    /// The environment variable.
    pub(super) fn env(&self) -> String {
        env_name(self.flag)
    }

    /// Whether the flag alone means `true`.
    pub(super) fn is_switch(&self) -> bool {
        self.value == "true|false" && self.default == Some("false")
    }
}

/// The environment variable that belongs to a flag.
pub(super) fn env_name(flag: &str) -> String {
    format!("FLOODGATE_{}", flag.replace('-', "_").to_uppercase())
}

/// The setting with this key.
pub(super) fn setting(key: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.key == key)
}

const ONE: Setting = Setting {
    key: "",
    flag: "",
    value: "",
    many: false,
    default: None,
    group: "",
    help: "",
    more: "",
};

const ADDRESSES: &str = "Addresses";
const RULES: &str = "Rules";
const CALLERS: &str = "Callers";
const ANSWERS: &str = "Answers and log";
const PROTECTION: &str = "Protection";
const TIMES: &str = "Times";

/// All settings, as the help prints them.
pub(super) const SETTINGS: &[Setting] = &[
    Setting {
        key: "listen",
        flag: "listen",
        value: "ADDR",
        many: true,
        default: Some("127.0.0.1:8080"),
        group: ADDRESSES,
        help: "Where callers connect",
        more: "`:8080` and `8080` mean all IPv4 interfaces.",
    },
    Setting {
        key: "upstream",
        flag: "upstream",
        value: "URL",
        many: true,
        group: ADDRESSES,
        help: "Where admitted calls go: http://host:port or https://host:port",
        more: "Several take turns; one that cannot be reached is passed over. Without a port: 80 \
               and 443. Host names are looked up once, at the start. The caller's own `Host` goes \
               upstream as it is, over https too: an upstream that tells its hosts apart must \
               know it. TLS asks for the certificate of the URL's host (SNI), and checks it \
               against that name. `run` needs at least one.",
        ..ONE
    },
    Setting {
        key: "upstream_ca",
        flag: "upstream-ca",
        value: "FILE",
        group: ADDRESSES,
        help: "Certificates (PEM) that vouch for https upstreams, instead of the system's",
        more: "In floodgate.toml, the path is relative to that file.",
        ..ONE
    },
    Setting {
        key: "admin",
        flag: "admin",
        value: "ADDR",
        default: Some("127.0.0.1:9090"),
        group: ADDRESSES,
        help: "The admin listener: /metrics, /live, /ready, finished tasks",
        more: "It asks for no credentials: keep it on an address that only operators reach.",
        ..ONE
    },
    Setting {
        key: "routes",
        flag: "routes",
        value: "FILE",
        many: true,
        default: Some("shipped"),
        group: RULES,
        help: "Route files; later ones override earlier ones by operation name",
        more: "`shipped` is the table that is compiled in, so that `--routes shipped --routes \
               mine.toml` layers a file over it. In floodgate.toml, paths are relative to that file.",
    },
    Setting {
        key: "edition",
        flag: "edition",
        value: "NAME",
        default: Some("current"),
        group: RULES,
        help: "The edition whose limits hold: current, v1, v2, v3, v4 or one of your own",
        more: "`current` serves v3 for App Key paths and v4 for App ID paths; a named edition \
               holds for both.",
        ..ONE
    },
    Setting {
        key: "store",
        flag: "store",
        value: "memory",
        default: Some("memory"),
        group: RULES,
        help: "Where counters are kept",
        more: "`memory`: in this process.",
        ..ONE
    },
    Setting {
        key: "max_counters",
        flag: "max-counters",
        value: "N",
        default: Some("1000000"),
        group: RULES,
        help: "Live counters the store may hold",
        more: "Above it, new callers of a limit share one overflow counter.",
        ..ONE
    },
    Setting {
        key: "auth",
        flag: "auth",
        value: "off|require-bearer",
        default: Some("require-bearer"),
        group: CALLERS,
        help: "Whether a call without a bearer token is answered 401 here",
        more: "Only the upstream can check a token; this one only looks whether there is one.",
        ..ONE
    },
    Setting {
        key: "trusted_proxies",
        flag: "trusted-proxy",
        value: "CIDR",
        many: true,
        group: CALLERS,
        help: "Proxies whose X-Forwarded-For is believed",
        more: "A bare address is one host. The caller is the right-most address that is not \
               trusted.",
        ..ONE
    },
    Setting {
        key: "ipv6_prefix",
        flag: "ipv6-prefix",
        value: "BITS",
        default: Some("64"),
        group: CALLERS,
        help: "Length of the IPv6 prefix that counts as one address",
        ..ONE
    },
    Setting {
        key: "answers",
        flag: "answers",
        value: "native|problem",
        default: Some("native"),
        group: ANSWERS,
        help: "Form of our own error answers",
        more: "`native`: the service's own JSON; `problem`: RFC 9457.",
        ..ONE
    },
    Setting {
        key: "ratelimit_headers",
        flag: "ratelimit-headers",
        value: "draft-11|x-ratelimit|off",
        default: Some("draft-11"),
        group: ANSWERS,
        help: "Rate-limit header fields of answers",
        more: "`draft-11`: RateLimit-Policy and RateLimit \
               (draft-ietf-httpapi-ratelimit-headers-11); `x-ratelimit`: X-RateLimit-Limit, \
               -Remaining and -Reset.",
        ..ONE
    },
    Setting {
        key: "access_log",
        flag: "access-log",
        value: "true|false",
        default: Some("true"),
        group: ANSWERS,
        help: "Write a line for each request",
        ..ONE
    },
    Setting {
        key: "log",
        flag: "log",
        value: "json|text",
        default: Some("json"),
        group: ANSWERS,
        help: "Form of the log on standard output",
        ..ONE
    },
    Setting {
        key: "max_in_flight",
        flag: "max-in-flight",
        value: "N",
        default: Some("10000"),
        group: PROTECTION,
        help: "Requests at the same time above which new ones are shed (503)",
        ..ONE
    },
    Setting {
        key: "shield_requests",
        flag: "shield-requests",
        value: "N|off",
        default: Some("off"),
        group: PROTECTION,
        help: "Requests per second and address, before any counter is touched",
        ..ONE
    },
    Setting {
        key: "shield_denials",
        flag: "shield-denials",
        value: "N|off",
        default: Some("off"),
        group: PROTECTION,
        help: "Denied requests per second and address, before any counter is touched",
        ..ONE
    },
    Setting {
        key: "h2c",
        flag: "h2c",
        value: "true|false",
        default: Some("false"),
        group: PROTECTION,
        help: "Accept HTTP/2 over clear text",
        more: "Its detection waits for a connection's first bytes without a limit: only behind a \
               proxy of yours.",
        ..ONE
    },
    Setting {
        key: "threads",
        flag: "threads",
        value: "N|auto",
        default: Some("auto"),
        group: PROTECTION,
        help: "Worker threads; auto: one for each core",
        ..ONE
    },
    Setting {
        key: "connect_timeout",
        flag: "connect-timeout",
        value: "TIME",
        default: Some("2s"),
        group: TIMES,
        help: "Time to connect to the upstream",
        ..ONE
    },
    Setting {
        key: "read_timeout",
        flag: "read-timeout",
        value: "TIME",
        default: Some("60s"),
        group: TIMES,
        help: "Longest wait between two reads from the upstream",
        ..ONE
    },
    Setting {
        key: "write_timeout",
        flag: "write-timeout",
        value: "TIME",
        default: Some("60s"),
        group: TIMES,
        help: "Longest wait between two writes to the upstream",
        ..ONE
    },
    Setting {
        key: "body_timeout",
        flag: "body-timeout",
        value: "TIME",
        default: Some("10s"),
        group: TIMES,
        help: "Time in which the body of a call that is counted by messages must arrive",
        ..ONE
    },
    Setting {
        key: "keepalive",
        flag: "keepalive",
        value: "TIME",
        default: Some("75s"),
        group: TIMES,
        help: "How long an idle connection of a caller is kept",
        ..ONE
    },
    Setting {
        key: "grace",
        flag: "grace",
        value: "TIME",
        default: Some("30s"),
        group: TIMES,
        help: "How long running requests may take to end after SIGTERM or Ctrl-C",
        ..ONE
    },
];
