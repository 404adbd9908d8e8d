//! The settings themselves.

use super::{ONE, Setting};

const ADDRESSES: &str = "Addresses";
const UPSTREAMS: &str = "Upstreams";
const RULES: &str = "Rules";
const STORE: &str = "Store";
const CALLERS: &str = "Callers";
const ANSWERS: &str = "Answers and log";
const PROTECTION: &str = "Protection";
const TIMES: &str = "Times";

/// All settings, as the help prints them.
pub(in crate::cli) const SETTINGS: &[Setting] = &[
    Setting {
        key: "listen",
        flag: "listen",
        value: "ADDR",
        many: true,
        default: Some("127.0.0.1:8080"),
        group: ADDRESSES,
        help: "Where callers connect: an address, then tls, proxy-protocol or both",
        more: "`:8080` and `8080` mean all IPv4 interfaces. `:8443 tls` speaks HTTPS with the \
               certificates of `tls_cert`, HTTP/1.1 and HTTP/2. `:8081 proxy-protocol`: each \
               connection begins with a PROXY header, version 1 or 2, and must come from one of \
               `trusted_proxies`; the address that it names is the caller's.",
        ..ONE
    },
    Setting {
        key: "tls_cert",
        flag: "tls-cert",
        value: "FILE",
        many: true,
        group: ADDRESSES,
        help: "Certificate chains (PEM) of the TLS listeners",
        more: "Callers get the one for the name that they ask for, or the first. Read again when \
               they change, without a restart; files that cannot be used change nothing. In \
               floodgate.toml, paths are relative to that file.",
        ..ONE
    },
    Setting {
        key: "tls_key",
        flag: "tls-key",
        value: "FILE",
        many: true,
        group: ADDRESSES,
        help: "Their private keys (PEM), in the same order",
        more: "Without any, each chain's file holds its key as well.",
        ..ONE
    },
    Setting {
        key: "tls_min",
        flag: "tls-min",
        value: "1.2|1.3",
        default: Some("1.2"),
        group: ADDRESSES,
        help: "The oldest TLS version that callers may speak",
        ..ONE
    },
    Setting {
        key: "tls_client_ca",
        flag: "tls-client-ca",
        value: "FILE",
        group: ADDRESSES,
        help: "Certificates (PEM) that vouch for callers' own",
        more: "With it, callers are asked for a certificate; see `tls_client_auth`.",
        ..ONE
    },
    Setting {
        key: "tls_client_auth",
        flag: "tls-client-auth",
        value: "required|optional",
        default: Some("required"),
        group: ADDRESSES,
        help: "Whether a caller without a certificate is let in",
        more: "Matters only with `tls_client_ca`. One that is shown must be good in any case.",
        ..ONE
    },
    Setting {
        key: "https_only",
        flag: "https-only",
        value: "auto|true|false",
        default: Some("auto"),
        group: ADDRESSES,
        help: "Refuse plain HTTP with 403; auto: where a listener speaks TLS",
        more: "A call is HTTPS if it came over TLS, or if one of `trusted_proxies` says so in \
               `X-Forwarded-Proto`, or beside the caller's address in `Forwarded` (`client_ip_header`).",
        ..ONE
    },
    Setting {
        key: "https_redirect",
        flag: "https-redirect",
        value: "PORT|off",
        default: Some("off"),
        group: ADDRESSES,
        help: "Send GET and HEAD over plain HTTP to this HTTPS port instead",
        more: "The port as callers see it, most often 443. Any other method is refused: its body, \
               and its token, have been sent in the clear.",
        ..ONE
    },
    Setting {
        key: "hsts",
        flag: "hsts",
        value: "TIME|off",
        default: Some("off"),
        group: ADDRESSES,
        help: "Strict-Transport-Security in answers over HTTPS: how long browsers remember",
        more: "For example `180d`. Browsers then use HTTPS alone for the host until it has passed: \
               begin with a short time.",
        ..ONE
    },
    Setting {
        key: "admin",
        flag: "admin",
        value: "ADDR",
        default: Some("127.0.0.1:9090"),
        group: ADDRESSES,
        help: "The admin listener: /metrics, /live, /ready, /top, /peers, finished tasks, charges of others, reloads",
        more: "All that changes counters, and a reload, asks for `admin_token`, and all else where `admin_auth` says \
               so: keep it on an address that only operators reach. Web pages of other origins get \
               no answer from it.",
        ..ONE
    },
    Setting {
        key: "admin_auth",
        flag: "admin-auth",
        value: "changes|all",
        default: Some("changes"),
        group: ADDRESSES,
        help: "What of the admin listener asks for its token",
        more: "`changes`: what changes counters. `all`: everything but /live and /ready. On an address \
               beyond this host, finished tasks are not taken without a token.",
        ..ONE
    },
    Setting {
        key: "admin_hosts",
        flag: "admin-host",
        value: "NAME",
        many: true,
        group: ADDRESSES,
        help: "A host name by which the admin listener is called",
        more: "IP addresses, names without a dot and names in `localhost`, `svc`, `cluster.local` and \
               `internal` need not be given. Any other may be that of a web page which points its name \
               here (DNS rebinding): it is answered 421.",
        ..ONE
    },
    Setting {
        key: "admin_token",
        flag: "admin-token",
        value: "TEXT",
        secret: true,
        group: ADDRESSES,
        help: "The bearer token that /charge, /counters/reset, /plan and /reload of the admin listener ask for",
        more: "16 visible ASCII characters or more. Without one, they answer 403. Every process on the host can \
               read a flag: the environment and a file are better places.",
        ..ONE
    },
    Setting {
        key: "admin_token_file",
        flag: "admin-token-file",
        value: "FILE",
        group: ADDRESSES,
        help: "A file that holds the token and nothing else",
        more: "Read where `admin_token` is not given; a line's end after it does not count. In floodgate.toml, the \
               path is relative to that file.",
        ..ONE
    },
    Setting {
        key: "upstream",
        flag: "upstream",
        value: "URL",
        many: true,
        group: UPSTREAMS,
        help: "Where admitted calls go: http://host:port or https://host:port, then its options",
        more: "Several share the calls (`balance`); one that cannot be reached is passed over. Without \
               a port: 80 and 443. Each address of a host name is an upstream, and names are looked up \
               again (`dns_interval`). Options: `weight=1` to `weight=100`, the share of each address; \
               `http2`, without TLS too; `sni=NAME`, the name that TLS asks for and checks instead of \
               the URL's host. The caller's own `Host` goes upstream as it is, over https too: an \
               upstream that tells its hosts apart must know it. `run` needs at least one. Other \
               upstreams for some routes, apps or editions: `[[pool]]`, below.",
        ..ONE
    },
    Setting {
        key: "upstream_ca",
        flag: "upstream-ca",
        value: "FILE",
        group: UPSTREAMS,
        help: "Certificates (PEM) that vouch for https upstreams of all pools, instead of the system's",
        more: "In floodgate.toml, the path is relative to that file.",
        ..ONE
    },
    Setting {
        key: "balance",
        flag: "balance",
        value: "round-robin|least-connections|hash-app",
        default: Some("round-robin"),
        group: UPSTREAMS,
        help: "How calls are spread over the upstreams, by weight",
        more: "`round-robin`: in turns. `least-connections`: where the fewest calls of this gateway are in \
               flight. `hash-app`: calls of one app go to one address, the same from every gateway; \
               when an address comes or goes, only its own apps move.",
        ..ONE
    },
    Setting {
        key: "dns_interval",
        flag: "dns-interval",
        value: "TIME|off",
        default: Some("5s"),
        group: UPSTREAMS,
        help: "How often host names of upstreams are looked up again",
        more: "The addresses that come and go are taken and left without a restart, as those of a \
               headless service in Kubernetes. While a name cannot be looked up, or has no address, its \
               last ones stay.",
        ..ONE
    },
    Setting {
        key: "dns_servers",
        flag: "dns-server",
        value: "ADDR",
        many: true,
        group: UPSTREAMS,
        help: "A name server to ask for them, instead of the system's resolver",
        more: "An address, with a port if it is not 53. Names are then asked for as they are written.",
        ..ONE
    },
    Setting {
        key: "health_check",
        flag: "health-check",
        value: "off|tcp|PATH",
        default: Some("off"),
        group: UPSTREAMS,
        help: "How upstreams are checked: by a connection, or by GET of a path (2xx or 3xx is good)",
        more: "One that fails gets no calls while there is another; where all fail, all get them.",
        ..ONE
    },
    Setting {
        key: "health_interval",
        flag: "health-interval",
        value: "TIME",
        default: Some("5s"),
        group: UPSTREAMS,
        help: "How often each address is checked",
        ..ONE
    },
    Setting {
        key: "health_timeout",
        flag: "health-timeout",
        value: "TIME",
        default: Some("1s"),
        group: UPSTREAMS,
        help: "How long a check may take",
        ..ONE
    },
    Setting {
        key: "health_rise",
        flag: "health-rise",
        value: "N",
        default: Some("2"),
        group: UPSTREAMS,
        help: "Good checks in a row that bring an address back",
        ..ONE
    },
    Setting {
        key: "health_fall",
        flag: "health-fall",
        value: "N",
        default: Some("3"),
        group: UPSTREAMS,
        help: "Bad checks in a row that take it out",
        ..ONE
    },
    Setting {
        key: "eject_after",
        flag: "eject-after",
        value: "N|off",
        default: Some("5"),
        group: UPSTREAMS,
        help: "Calls in a row that an address fails until it is ejected",
        more: "A failure is no connection, a broken one, or no answer in time; any answer ends the row. \
               Where `request_timeout` ends the wait, it is one if the upstream has had the whole call \
               for at least half of that time. An HTTP/2 connection that goes away is one if it has \
               taken no call. The last address of a pool is never ejected.",
        ..ONE
    },
    Setting {
        key: "eject_time",
        flag: "eject-time",
        value: "TIME",
        default: Some("10s"),
        group: UPSTREAMS,
        help: "How long it gets no calls",
        more: "Twice as long each time that it fails again soon, up to five minutes.",
        ..ONE
    },
    Setting {
        key: "retry_on",
        flag: "retry-on",
        value: "STATUS|reset|off",
        many: true,
        default: Some("off"),
        group: UPSTREAMS,
        help: "After what a call is tried again elsewhere: a status (500 to 599), or a broken connection",
        more: "Only GET, HEAD, PUT, DELETE and OPTIONS, with bodies up to 64 KiB, twice at most, and \
               never once an answer has begun to go out. It is charged once. A call that found no \
               connection, or that the upstream has refused unbegun, has not run: it is always \
               tried elsewhere. Where a connection that had been idle breaks, as one that the \
               upstream has closed, GET, HEAD and OPTIONS are always sent once more on a new one, PUT \
               and DELETE with `reset`: without budget, and besides.",
        ..ONE
    },
    Setting {
        key: "retry_budget",
        flag: "retry-budget",
        value: "PERCENT",
        default: Some("20"),
        group: UPSTREAMS,
        help: "Such repeated calls, in percent of all calls of a pool in 10 seconds",
        more: "Ten are always allowed, unless it is 0. Those that found no connection do not count.",
        ..ONE
    },
    Setting {
        key: "ready_requires",
        flag: "ready-requires",
        value: "upstream|store|nothing",
        many: true,
        default: Some("nothing"),
        group: UPSTREAMS,
        help: "What /ready of the admin listener depends on, beside the gateway itself",
        more: "`upstream`: in each pool an address that is neither failing its checks nor ejected (the \
               last one counts as ejected when it fails as often). `store`: the counter store can be asked.",
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
        ..ONE
    },
    Setting {
        key: "watch",
        flag: "watch",
        value: "true|false",
        default: Some("true"),
        group: RULES,
        help: "Read settings, routes, apps and certificates again when their files change",
        more: "Within two seconds, and by what is in them: a symlink that is swapped above a file counts \
               as well. Files that cannot be used change nothing. `false`: at SIGHUP and `POST /reload` \
               of the admin listener alone.",
        ..ONE
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
        key: "apps",
        flag: "apps",
        value: "FILE",
        many: true,
        group: RULES,
        help: "Files of known apps: their names, editions, limits, certificates, allowed addresses",
        more: "Each holds `[[app]]` entries; no two may have a name in common. In floodgate.toml, \
               paths are relative to that file.",
        ..ONE
    },
    Setting {
        key: "unknown_apps",
        flag: "unknown-apps",
        value: "allow|reject",
        default: Some("allow"),
        group: RULES,
        help: "Whether an app that no entry names may be called; reject: 404",
        more: "`reject` needs `apps`.",
        ..ONE
    },
    Setting {
        key: "plan_max_age",
        flag: "plan-max-age",
        value: "TIME",
        default: Some("7d"),
        group: RULES,
        help: "How long a total of an app's plan refuses calls after it was imported or reconciled",
        more: "Client SDKs and what is deleted elsewhere move totals past the gateway. One that is older, or \
               was never imported, lets calls pass, and reports those that it would have refused. See \
               `floodgate plan`.",
        ..ONE
    },
    Setting {
        key: "plan_file",
        flag: "plan-file",
        value: "FILE",
        group: RULES,
        help: "Where totals of apps' plans are kept, with `store = \"memory\"`",
        more: "Written ten times a second where anything has changed, and read at the start: a crash loses a \
               tenth of a second. One gateway writes it. Without it they begin anew with the process, and \
               refuse nothing until they are imported. A store in Redis keeps them itself. In \
               floodgate.toml, the path is relative to that file.",
        ..ONE
    },
    Setting {
        key: "store",
        flag: "store",
        value: "memory|URL",
        secret: true,
        default: Some("memory"),
        group: STORE,
        help: "Where counters are kept: memory, or the URL of a Redis that gateways share",
        more: "`memory`: in this process. `redis://[user[:password]@]host[:port][/database]`: one \
               server. `redis-sentinel://host:port,host:port/master[/database]`: the master that \
               the sentinels know by this name. `redis-cluster://host:port,host:port`: a cluster. \
               `rediss` instead of `redis`: over TLS. Redis 7.0 or newer, or Valkey.",
        ..ONE
    },
    Setting {
        key: "max_counters",
        flag: "max-counters",
        value: "N",
        default: Some("1000000"),
        group: STORE,
        help: "Live counters the store in memory may hold",
        more: "Above it, new callers of a limit share one overflow counter.",
        ..ONE
    },
    Setting {
        key: "store_username",
        flag: "store-username",
        value: "NAME",
        group: STORE,
        help: "ACL user at the Redis servers",
        more: "Goes over that of the URL.",
        ..ONE
    },
    Setting {
        key: "store_password",
        flag: "store-password",
        value: "TEXT",
        secret: true,
        group: STORE,
        help: "Its password",
        more: "Goes over that of the URL. Every process on the host can read a flag: the environment and \
               a file are better places.",
        ..ONE
    },
    Setting {
        key: "store_password_file",
        flag: "store-password-file",
        value: "FILE",
        group: STORE,
        help: "A file that holds the password and nothing else",
        more: "Read where `store_password` is not given; a line's end after it does not count. In floodgate.toml, the path is \
               relative to that file.",
        ..ONE
    },
    Setting {
        key: "store_sentinel_username",
        flag: "store-sentinel-username",
        value: "NAME",
        group: STORE,
        help: "ACL user at the sentinels",
        ..ONE
    },
    Setting {
        key: "store_sentinel_password",
        flag: "store-sentinel-password",
        value: "TEXT",
        secret: true,
        group: STORE,
        help: "Its password at the sentinels",
        ..ONE
    },
    Setting {
        key: "store_ca",
        flag: "store-ca",
        value: "FILE",
        group: STORE,
        help: "Certificates (PEM) that vouch for the Redis servers, instead of the system's",
        more: "In floodgate.toml, the path is relative to that file.",
        ..ONE
    },
    Setting {
        key: "store_client_cert",
        flag: "store-client-cert",
        value: "FILE",
        group: STORE,
        help: "Our certificate (PEM), for Redis servers that ask for one",
        more: "In floodgate.toml, the path is relative to that file.",
        ..ONE
    },
    Setting {
        key: "store_client_key",
        flag: "store-client-key",
        value: "FILE",
        group: STORE,
        help: "Its key (PEM)",
        more: "In floodgate.toml, the path is relative to that file.",
        ..ONE
    },
    Setting {
        key: "store_prefix",
        flag: "store-prefix",
        value: "NAME",
        default: Some("fg"),
        group: STORE,
        help: "What all keys in Redis begin with",
        more: "Gateways with the same prefix share their counters. Letters, digits and `.` `_` `-`.",
        ..ONE
    },
    Setting {
        key: "store_timeout",
        flag: "store-timeout",
        value: "TIME",
        default: Some("50ms"),
        group: STORE,
        help: "How long a decision may wait for Redis",
        more: "Then the limit's `on_store_failure` decides.",
        ..ONE
    },
    Setting {
        key: "store_leases",
        flag: "store-leases",
        value: "true|false",
        default: Some("true"),
        group: STORE,
        help: "Take units of busy counters in advance, and decide without asking",
        more: "`false`: every decision asks Redis.",
        ..ONE
    },
    Setting {
        key: "store_slot_lease",
        flag: "store-slot-lease",
        value: "TIME",
        default: Some("10s"),
        group: STORE,
        help: "How long a running task's slot outlives the last sign of life of its gateway",
        ..ONE
    },
    Setting {
        key: "min_gateways",
        flag: "min-gateways",
        value: "N",
        default: Some("1"),
        group: STORE,
        help: "Gateways that share each limit while Redis is away, at least",
        more: "Set it to the number that the deployment runs: a gateway that starts during an outage has \
               seen no other.",
        ..ONE
    },
    Setting {
        key: "store_allow_eviction",
        flag: "store-allow-eviction",
        value: "true|false",
        default: Some("false"),
        group: STORE,
        help: "Accept a Redis that may drop counters to make room",
        more: "Without it, `check --connect` takes any `maxmemory-policy` but `noeviction` for a mistake.",
        ..ONE
    },
    Setting {
        key: "auth",
        flag: "auth",
        value: "off|require-bearer|verify",
        default: Some("require-bearer"),
        group: CALLERS,
        help: "What a call's bearer token must be, or it is answered 401 here",
        more: "`require-bearer`: there. `verify`: and, where it is an AccessToken2 (`007…`) and the app has \
               certificates, good for REST calls of this app; only the upstream can check any other. \
               A route's own `auth` goes over this.",
        ..ONE
    },
    Setting {
        key: "validate",
        flag: "validate",
        value: "auto|enforce|report|off",
        default: Some("auto"),
        group: CALLERS,
        help: "Whether calls are refused for what they carry: message lengths, names, files, user IDs",
        more: "`report`: they pass, and are counted in floodgate_reported_total. `auto`: as the route \
               files say, `enforce` as shipped. A limit's own `validate` goes over this, as the shipped \
               `report` of user IDs in paths and lists does.",
        ..ONE
    },
    Setting {
        key: "bad_token_memory",
        flag: "bad-token-memory",
        value: "TIME|off",
        default: Some("5s"),
        group: CALLERS,
        help: "How long a token that the upstream has refused (401) is answered 401 here",
        more: "Only a keyed hash of it is kept.",
        ..ONE
    },
    Setting {
        key: "unproven_share",
        flag: "unproven-share",
        value: "PERCENT",
        default: Some("25"),
        group: CALLERS,
        help: "Share of a limit that one address may hold with tokens not yet seen good",
        more: "Of each limit per app and user, by calls that have not been answered yet, and one call in any \
               case. A token is seen good when a documented call with it has been answered 2xx, or when it has been \
               verified here.",
        ..ONE
    },
    Setting {
        key: "trusted_proxies",
        flag: "trusted-proxy",
        value: "CIDR",
        many: true,
        group: CALLERS,
        help: "Proxies that are believed whom they call for",
        more: "A bare address is one host. The caller is the right-most address of \
               `client_ip_header` that is not trusted.",
        ..ONE
    },
    Setting {
        key: "client_ip_header",
        flag: "client-ip-header",
        value: "x-forwarded-for|forwarded",
        default: Some("x-forwarded-for"),
        group: CALLERS,
        help: "The header in which trusted proxies name their callers",
        more: "The other one is never read: a proxy that sets one passes on what its caller wrote into \
               the other. Upstream gets both, with what is known here. An entry that is malformed, \
               `unknown` or hidden (`_x`) ends the list: the proxy that wrote it is the caller.",
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
        key: "max_upstream_waiting",
        flag: "max-upstream-waiting",
        value: "N",
        default: Some("5000"),
        group: PROTECTION,
        help: "Calls that may wait for the upstream's answer; further ones are shed (503)",
        more: "Nothing is charged for one that is shed. A little above what the upstream works on at once \
               keeps its queue short: by an answer's usual time of 50 ms, 500 waiting calls are 10,000 a second.",
        ..ONE
    },
    Setting {
        key: "concurrency",
        flag: "concurrency",
        value: "off|adaptive",
        default: Some("off"),
        group: PROTECTION,
        help: "Whether each pool has a limit of calls at once that follows its latency; further ones are shed (503)",
        more: "`adaptive`: the limit grows while answers come about as fast as from an upstream with \
               little to do, and shrinks when they take longer, or time out, or are a 503 or 504. \
               Nothing is charged for a call that is shed. At the limit each app gets its fair share: a \
               quarter of the places is kept for apps below theirs, and names of apps that no entry has \
               and no 2xx has proven count as one app. A pool's calls should take about as long as each \
               other: give slow routes a pool of their own.",
        ..ONE
    },
    Setting {
        key: "concurrency_min",
        flag: "concurrency-min",
        value: "N",
        default: Some("4"),
        group: PROTECTION,
        help: "The smallest limit that `concurrency` comes to",
        ..ONE
    },
    Setting {
        key: "concurrency_max",
        flag: "concurrency-max",
        value: "N",
        default: Some("1000"),
        group: PROTECTION,
        help: "The largest",
        ..ONE
    },
    Setting {
        key: "concurrency_slack",
        flag: "concurrency-slack",
        value: "PERCENT",
        default: Some("100"),
        group: PROTECTION,
        help: "How much longer than from an upstream with little to do answers may take before the limit shrinks",
        more: "The head of the answer counts, and the median. 100: twice as long.",
        ..ONE
    },
    Setting {
        key: "concurrency_measure",
        flag: "concurrency-measure",
        value: "TIME",
        default: Some("30s"),
        group: PROTECTION,
        help: "How often that latency is measured anew, while calls are shed or take too long",
        more: "The limit is then a quarter for about ten answers (with `concurrency_slack` 100).",
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
        more: "For callers that know it beforehand; over TLS, HTTP/2 is always there.",
        ..ONE
    },
    Setting {
        key: "max_connections",
        flag: "max-connections",
        value: "N",
        default: Some("50000"),
        group: PROTECTION,
        help: "Connections that may be open; further ones are closed at once",
        more: "Each needs a file descriptor, and a call in flight another: the limit of the \
               process (`ulimit -n`) is raised as far as the system allows, and a warning says \
               if that is not enough.",
        ..ONE
    },
    Setting {
        key: "max_connections_per_ip",
        flag: "max-connections-per-ip",
        value: "N|off",
        default: Some("1000"),
        group: PROTECTION,
        help: "Connections that one address may have open",
        more: "Addresses of `trusted_proxies` may have any number. IPv6 addresses count by \
               `ipv6_prefix`.",
        ..ONE
    },
    Setting {
        key: "max_requests_per_connection",
        flag: "max-requests-per-connection",
        value: "N|off",
        default: Some("10000"),
        group: PROTECTION,
        help: "Requests after which a connection is closed, and the caller opens another",
        ..ONE
    },
    Setting {
        key: "max_streams",
        flag: "max-streams",
        value: "N",
        default: Some("100"),
        group: PROTECTION,
        help: "Requests of one HTTP/2 connection that are handled at once",
        more: "One that its caller has reset counts until the backend has answered: resetting \
               makes no room.",
        ..ONE
    },
    Setting {
        key: "max_header_bytes",
        flag: "max-header-bytes",
        value: "N",
        default: Some("32768"),
        group: PROTECTION,
        help: "The largest head of a request (431 above)",
        ..ONE
    },
    Setting {
        key: "max_headers",
        flag: "max-headers",
        value: "N",
        default: Some("100"),
        group: PROTECTION,
        help: "The most fields in a head (431 above)",
        ..ONE
    },
    Setting {
        key: "max_url",
        flag: "max-url",
        value: "N",
        default: Some("8192"),
        group: PROTECTION,
        help: "The longest target of a request, in bytes (414 above)",
        ..ONE
    },
    Setting {
        key: "max_body",
        flag: "max-body",
        value: "SIZE",
        default: Some("2MiB"),
        group: PROTECTION,
        help: "The largest body of a request (413 above)",
        more: "`64KiB`, `2MiB`, `1GiB`, or bytes. A route's own `max_body` goes over it, as the shipped 11MiB \
               of uploads does: a file of 10 MB and its multipart frame. A body whose recipients are counted has \
               64KiB at most (400 above). One of no announced length is cut off where it passes the figure.",
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
        help: "Time to connect to an upstream",
        more: "All attempts of a call share it: up to eight addresses are tried, each once.",
        ..ONE
    },
    Setting {
        key: "first_byte_timeout",
        flag: "first-byte-timeout",
        value: "TIME",
        group: TIMES,
        help: "Longest wait for the head of the upstream's answer (504 after); without it: `read_timeout`",
        more: "Not less than `read_timeout`. A head that drips in has a second more as a whole.",
        ..ONE
    },
    Setting {
        key: "read_timeout",
        flag: "read-timeout",
        value: "TIME",
        default: Some("60s"),
        group: TIMES,
        help: "Longest wait between two reads from the upstream",
        more: "What has begun to go out is cut off after it. For callers of HTTP/2 the wait may be longer \
               by `send_timeout`, if it is less than `first_byte_timeout` or than `body_timeout`, or if \
               the call had a body and the upstream speaks HTTP/2: they may be what is slow.",
        ..ONE
    },
    Setting {
        key: "write_timeout",
        flag: "write-timeout",
        value: "TIME",
        default: Some("60s"),
        group: TIMES,
        help: "Longest wait between two writes to the upstream",
        more: "Half a second later the call is ended, unless an answer has come: one that comes while the \
               upstream takes nothing more is seen only then. The last pieces of a \
               body may be on their way already, and a caller of HTTP/2 may be what is slow: then \
               an upstream of HTTP/1.1 has `read_timeout` for an answer as well.",
        ..ONE
    },
    Setting {
        key: "request_timeout",
        flag: "request-timeout",
        value: "TIME|off",
        default: Some("off"),
        group: TIMES,
        help: "Time for a call as a whole, from its head to the end of its answer",
        more: "504 where no answer has begun, 408 where the call is not yet whole, else the connection \
               is closed. A head that drips in has a second more.",
        ..ONE
    },
    Setting {
        key: "header_timeout",
        flag: "header-timeout",
        value: "TIME",
        default: Some("10s"),
        group: TIMES,
        help: "Time in which a request's head must arrive, from its first byte (408 after)",
        more: "So must a TLS handshake, and a PROXY header from the connection's begin.",
        ..ONE
    },
    Setting {
        key: "send_timeout",
        flag: "send-timeout",
        value: "TIME",
        default: Some("30s"),
        group: TIMES,
        help: "How long a caller may hold up its answer by not reading it",
        more: "One that reads slowly may take longer while it takes 1 KiB/s.",
        ..ONE
    },
    Setting {
        key: "body_timeout",
        flag: "body-timeout",
        value: "TIME",
        default: Some("10s"),
        group: TIMES,
        help: "Time in which a request's body must arrive",
        more: "One that is only forwarded may take longer while it brings 1 KiB/s; a caller of HTTP/2 that \
               stops in the middle of it has `first_byte_timeout`, to an upstream of HTTP/2 at least \
               `write_timeout`, and so has one over HTTP/1.1 after `Expect: 100-continue`. Of a call that is \
               counted by messages, takes a task slot, or is charged to a day limit of its app or \
               user, the whole body (64 KiB at most) is read before anything is \
               taken.",
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
        key: "drain_delay",
        flag: "drain-delay",
        value: "TIME",
        default: Some("0s"),
        group: TIMES,
        help: "How long after SIGTERM or Ctrl-C callers are still let in",
        more: "`/ready` fails at once, and connections are closed after their answer: so a balancer \
               has the time to look elsewhere before the listeners close. In Kubernetes, the \
               period of the readiness probe times its failure threshold, and a little.",
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
    Setting {
        key: "upgrade_socket",
        flag: "upgrade-socket",
        value: "FILE",
        group: TIMES,
        help: "The Unix socket at which `run --upgrade` takes over from this process",
        more: "Only this user may connect to it; its folder should be this user's too. Whoever takes \
               over gets all listening sockets, so that no caller notices. In floodgate.toml, the \
               path is relative to that file.",
        ..ONE
    },
];
