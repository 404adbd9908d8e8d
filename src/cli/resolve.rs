//! Settings as given → [`Settings`]. All mistakes are reported at once.

mod door;
mod pools;
mod store;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use clap::ArgMatches;

use super::layers::{Given, Layers, Mistake, Origin};
use super::table::{self, SETTINGS};
use super::value::{self, ValueError};
use crate::apps::UnknownApps;
use crate::gateway::upstream::Addresses;
use crate::identity::Auth;
use crate::identity::address::Naming;
use crate::limit::Mode;
use crate::serve::Files;
use crate::settings::{AnswerForm, LogFormat, RateLimitHeaders, Settings, Shield};
use crate::store::redis::connect::Secret;

/// The word that stands for the compiled-in table among `routes`.
pub(super) const SHIPPED: &str = "shipped";

/// What the settings are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To run: upstreams are needed, and looked up.
    Run,
    /// To look at: no upstream is needed, and no name is looked up.
    Look,
}

/// Every mistake in the settings.
#[derive(Debug)]
pub struct SettingsError {
    mistakes: Vec<Mistake>,
}

impl std::error::Error for SettingsError {}

impl fmt::Display for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, mistake) in self.mistakes.iter().enumerate() {
            let end = if i == 0 { "" } else { "\n" };
            write!(f, "{end}{mistake}")?;
        }
        Ok(())
    }
}

impl SettingsError {
    /// How many mistakes there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.mistakes.len()
    }

    /// Whether a file could not be read.
    #[must_use]
    pub fn is_unreadable(&self) -> bool {
        self.mistakes
            .iter()
            .any(|mistake| matches!(mistake, Mistake::Unreadable { .. }))
    }
}

/// Where the admin listener of a gateway with these settings is. Mistakes in others say nothing of
/// it.
pub(super) fn admin(
    matches: &ArgMatches,
    env: &[(OsString, OsString)],
) -> Result<SocketAddr, SettingsError> {
    let files = Files::default();
    let (layers, _) = Layers::collect(matches, env, &files);
    let mut reader = Reader {
        files,
        known: Addresses::new(),
        layers,
        mistakes: Vec::new(),
        seen: BTreeSet::new(),
    };
    let admin = reader.one("admin", value::listen);
    admin.ok_or(SettingsError {
        mistakes: reader.mistakes,
    })
}

struct Reader {
    files: Files,
    /// Addresses of hosts that cannot be looked up now.
    known: Addresses,
    layers: Layers,
    mistakes: Vec<Mistake>,
    seen: BTreeSet<&'static str>,
}

impl Reader {
    fn given(&mut self, key: &str) -> Vec<Given> {
        table::setting(key).map_or_else(Vec::new, |setting| {
            self.seen.insert(setting.key);
            self.layers.values(setting)
        })
    }

    /// A list. A value that is there twice is a mistake.
    fn many<T: PartialEq>(
        &mut self,
        key: &str,
        parse: impl Fn(&Given) -> Result<T, ValueError>,
    ) -> Vec<T> {
        let mut values = Vec::new();
        for given in self.given(key) {
            let parsed = match given.text.as_str() {
                "" => Err(ValueError::Empty),
                _ => parse(&given),
            };
            match parsed {
                Ok(value) if values.contains(&value) => self.mistakes.push(Mistake::Value {
                    given,
                    why: ValueError::Twice,
                }),
                Ok(value) => values.push(value),
                Err(why) => self.mistakes.push(Mistake::Value { given, why }),
            }
        }
        values
    }

    /// One value. `None` only after a mistake.
    fn one<T>(&mut self, key: &str, parse: impl Fn(&str) -> Result<T, ValueError>) -> Option<T> {
        let given = self.given(key).pop()?;
        match parse(&given.text) {
            Ok(value) => Some(value),
            Err(why) => {
                self.mistakes.push(Mistake::Value { given, why });
                None
            }
        }
    }

    /// A file's path, if one is given.
    fn file(&mut self, key: &str) -> Option<PathBuf> {
        let given = self.given(key).pop()?;
        if given.text.is_empty() {
            let why = ValueError::Empty;
            self.mistakes.push(Mistake::Value { given, why });
            return None;
        }
        Some(beside(&given))
    }

    fn switch(&mut self, key: &str) -> Option<bool> {
        self.one(key, |text| {
            value::choice(text, &[("true", true), ("false", false)])
        })
    }

    fn cap(&mut self, key: &str) -> Option<Option<NonZeroU32>> {
        self.one(key, |text| match text {
            "off" => Ok(None),
            _ => value::number::<u32>(text, 1, u32::MAX.into()).map(NonZeroU32::new),
        })
    }

    fn time(&mut self, key: &str, least: (Duration, &'static str)) -> Option<Duration> {
        self.one(key, |text| value::time(text, least))
    }
}

const MILLISECOND: (Duration, &str) = (Duration::from_millis(1), "1ms");
/// Keep-alive is counted in whole seconds, and 0 would mean for ever.
const SECOND: (Duration, &str) = (Duration::from_secs(1), "1s");
const NOTHING: (Duration, &str) = (Duration::ZERO, "0s");

/// The settings that flags, environment and file give.
///
/// # Errors
/// Every mistake in them.
pub fn load(
    matches: &ArgMatches,
    env: &[(OsString, OsString)],
    purpose: Purpose,
) -> Result<Settings, SettingsError> {
    load_again(matches, env, purpose, &Files::default(), Addresses::new())
}

/// The same through `files`. Upstreams of `known` keep their addresses while they cannot be
/// looked up.
///
/// # Errors
/// Every mistake in them.
pub(super) fn load_again(
    matches: &ArgMatches,
    env: &[(OsString, OsString)],
    purpose: Purpose,
    files: &Files,
    known: Addresses,
) -> Result<Settings, SettingsError> {
    let (layers, mistakes) = Layers::collect(matches, env, files);
    let mut reader = Reader {
        files: files.clone(),
        known,
        layers,
        mistakes,
        seen: BTreeSet::new(),
    };
    let settings = resolve(&mut reader, purpose);
    debug_assert_eq!(
        reader.seen.len(),
        SETTINGS.len(),
        "a setting that nothing reads"
    );
    match settings {
        Some(settings) if reader.mistakes.is_empty() => Ok(settings),
        _ => Err(SettingsError {
            mistakes: reader.mistakes,
        }),
    }
}

fn resolve(reader: &mut Reader, purpose: Purpose) -> Option<Settings> {
    let listen = reader.many("listen", |given| value::listener(&given.text));
    let secured = door::secured(reader, &listen);
    door::check_trust(reader, &listen);
    let upstream = pools::read(reader, purpose, &listen);
    let upstream_ca = reader.file("upstream_ca");
    let admin = reader.one("admin", |text| {
        let admin = value::listen(text)?;
        match listen.iter().any(|listen| overlap(listen.addr, admin)) {
            true => Err(ValueError::AdminListens),
            false => Ok(admin),
        }
    });
    let admin_token = admin_token(reader);
    let has_token =
        !(reader.given("admin_token").is_empty() && reader.given("admin_token_file").is_empty());
    let admin_token_for_all = reader.one("admin_auth", |text| {
        match value::choice(text, &[("changes", false), ("all", true)]) {
            Ok(true) if !has_token => Err(ValueError::AdminAuth),
            read => read,
        }
    });
    let admin_hosts = reader.many("admin_hosts", |given| value::host(&given.text));
    let routes = reader.many("routes", |given| Ok(route_file(given)));
    let apps = reader.many("apps", |given| Ok(beside(given)));
    let watch = reader.switch("watch");
    let unknown_apps = reader.one("unknown_apps", |text| {
        let known = [
            ("allow", UnknownApps::Allow),
            ("reject", UnknownApps::Reject),
        ];
        match value::choice(text, &known)? {
            UnknownApps::Reject if apps.is_empty() => Err(ValueError::NoApps),
            choice => Ok(choice),
        }
    });
    let edition = reader.one("edition", |text| match text {
        "" => Err(ValueError::Empty),
        _ => Ok(text.to_owned()),
    });
    let store = store::read(reader);
    let plan_max_age = reader.one("plan_max_age", |text| match text.ends_with('d') {
        true => value::long(text),
        false => value::time(text, SECOND),
    });
    let plan_file = reader.file("plan_file");
    let max_counters = reader.one("max_counters", |t| value::number(t, 1000, 1_000_000_000));
    let auth = reader.one("auth", |text| value::choice(text, Auth::WORDS));
    let bad_token_memory = reader.one("bad_token_memory", |text| match text {
        "off" => Ok(None),
        _ => value::time(text, MILLISECOND).map(Some),
    });
    let unproven_share = reader.one("unproven_share", |text| {
        value::number(text.strip_suffix('%').unwrap_or(text), 1, 100)
    });
    let trusted_proxies = reader.many("trusted_proxies", |given| value::network(&given.text));
    let client_ip_header = reader.one("client_ip_header", |text| {
        let known = [
            ("x-forwarded-for", Naming::XForwardedFor),
            ("forwarded", Naming::Forwarded),
        ];
        value::choice(text, &known)
    });
    let ipv6_prefix = reader.one("ipv6_prefix", |text| value::number(text, 1, 128));
    let answers = reader.one("answers", |text| {
        let known = [
            ("native", AnswerForm::Native),
            ("problem", AnswerForm::Problem),
        ];
        value::choice(text, &known)
    });
    let ratelimit_headers = reader.one("ratelimit_headers", |text| {
        let known = [
            ("draft-11", RateLimitHeaders::Draft11),
            ("x-ratelimit", RateLimitHeaders::XRateLimit),
            ("off", RateLimitHeaders::Off),
        ];
        value::choice(text, &known)
    });
    let access_log = reader.switch("access_log");
    let validate = reader.one("validate", |text| {
        let known = [
            ("auto", None),
            ("enforce", Some(Mode::Enforce)),
            ("report", Some(Mode::Report)),
            ("off", Some(Mode::Off)),
        ];
        value::choice(text, &known)
    });
    let log = reader.one("log", |text| {
        value::choice(
            text,
            &[("json", LogFormat::Json), ("text", LogFormat::Text)],
        )
    });
    let max_in_flight = reader.one("max_in_flight", |t| value::number(t, 1, 10_000_000));
    let max_upstream_waiting =
        reader.one("max_upstream_waiting", |t| value::number(t, 1, 10_000_000));
    let requests_per_s = reader.cap("shield_requests");
    let denials_per_s = reader.cap("shield_denials");
    let max_connections = reader.one("max_connections", |t| value::number(t, 1, 10_000_000));
    let max_connections_per_ip = reader.cap("max_connections_per_ip");
    let max_requests_per_connection = reader.cap("max_requests_per_connection");
    let max_streams = reader.one("max_streams", |t| value::number(t, 1, 100_000));
    let max_header_bytes = reader.one("max_header_bytes", |t| value::number(t, 1024, 1_000_000));
    let max_headers = reader.one("max_headers", |t| value::number(t, 1, 256));
    let max_body = reader.one("max_body", value::size);
    let max_url = reader.one("max_url", |t| value::number(t, 256, 1_000_000));
    let h2c = reader.switch("h2c");
    let threads = reader.one("threads", |text| match text {
        "auto" => Ok(std::thread::available_parallelism().map_or(1, usize::from)),
        _ => value::number(text, 1, 1024),
    });
    let body_timeout = reader.time("body_timeout", MILLISECOND);
    let header_timeout = reader.time("header_timeout", MILLISECOND);
    let send_timeout = reader.time("send_timeout", MILLISECOND);
    let keepalive = reader.time("keepalive", SECOND);
    let drain_delay = reader.time("drain_delay", NOTHING);
    let grace = reader.time("grace", NOTHING);
    let upgrade_socket = reader.file("upgrade_socket");
    let secured = secured?;
    let upstream = upstream?;
    Some(Settings {
        listen,
        tls: secured.tls,
        https: secured.https,
        pools: upstream.pools,
        tending: upstream.tending,
        ready_requires: upstream.ready_requires,
        upstream_ca,
        admin: admin?,
        admin_token,
        admin_token_for_all: admin_token_for_all?,
        admin_hosts,
        routes,
        watch: watch?,
        apps,
        unknown_apps: unknown_apps?,
        edition: edition?,
        store: store?,
        max_counters: max_counters?,
        plan_max_age: plan_max_age?,
        plan_file,
        trusted_proxies,
        client_ip_header: client_ip_header?,
        ipv6_prefix: ipv6_prefix?,
        auth: auth?,
        bad_token_memory: bad_token_memory?,
        unproven_share: unproven_share?,
        validate: validate?,
        log: log?,
        access_log: access_log?,
        answers: answers?,
        ratelimit_headers: ratelimit_headers?,
        shield: Shield {
            requests_per_s: requests_per_s?,
            denials_per_s: denials_per_s?,
        },
        h2c: h2c?,
        max_connections: max_connections?,
        max_connections_per_ip: max_connections_per_ip?,
        max_requests_per_connection: max_requests_per_connection?,
        max_streams: max_streams?,
        max_header_bytes: max_header_bytes?,
        max_headers: max_headers?,
        max_url: max_url?,
        max_body: max_body?,
        threads: threads?,
        body_timeout: body_timeout?,
        header_timeout: header_timeout?,
        send_timeout: send_timeout?,
        keepalive: keepalive?,
        drain_delay: drain_delay?,
        grace: grace?,
        upgrade_socket,
        max_in_flight: max_in_flight?,
        max_upstream_waiting: max_upstream_waiting?,
    })
}

fn admin_token(reader: &mut Reader) -> Option<Secret> {
    let file = reader.file("admin_token_file");
    let (given, text) = match (reader.given("admin_token").pop(), file) {
        (Some(given), _) => {
            let text = given.text.clone();
            (given, text)
        }
        (None, Some(path)) => {
            // A mistake in the file names the file, and never what is in it.
            let given = reader.given("admin_token_file").pop()?;
            let secret = store::secret_in(reader, path, "admin_token_file")?;
            (given, secret.expose().to_owned())
        }
        (None, None) => return None,
    };
    match value::token(&text) {
        Ok(token) => Some(token),
        Err(why) => {
            reader.mistakes.push(Mistake::Value { given, why });
            None
        }
    }
}

/// Whether one connection could be meant for both.
fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let is_any = a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() != 0 && a.port() == b.port() && (is_any || a.ip() == b.ip())
}

fn route_file(given: &Given) -> PathBuf {
    match given.text.as_str() {
        SHIPPED => PathBuf::from(SHIPPED),
        _ => beside(given),
    }
}

/// A path in a file is relative to that file.
fn beside(given: &Given) -> PathBuf {
    match &given.origin {
        Origin::File { path, .. } => path
            .parent()
            .map_or_else(|| PathBuf::from(&given.text), |dir| dir.join(&given.text)),
        _ => PathBuf::from(&given.text),
    }
}
