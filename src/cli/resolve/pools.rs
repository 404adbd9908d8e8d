//! The pools, and how they are looked after.

use std::collections::BTreeMap;
use std::path::PathBuf;

mod concurrency;
mod ourselves;

use self::concurrency::Written;
use self::ourselves::Ourselves;
use super::{MILLISECOND, Purpose, Reader, SECOND, beside};
use crate::cli::layers::{Given, Mistake, Origin, PoolGiven};
use crate::cli::table;
use crate::cli::value::{self, ValueError};
use crate::gateway::upstream::names;
use crate::settings::{
    Balance, Check, Listen, Named, PoolSettings, ReadyRequires, RetryOn, Tending, Times, Upstream,
};

const BALANCES: &[(&str, Balance)] = &[
    ("round-robin", Balance::RoundRobin),
    ("least-connections", Balance::LeastConnections),
    ("hash-app", Balance::HashApp),
];

/// The name of the pool for all that no other pool serves.
const DEFAULT: &str = "default";

/// What the settings say of the way upstream.
pub(super) struct Read {
    pub(super) pools: Vec<PoolSettings>,
    pub(super) tending: Tending,
    pub(super) ready_requires: ReadyRequires,
}

pub(super) fn read(reader: &mut Reader, purpose: Purpose, listen: &[Listen]) -> Option<Read> {
    let dns_interval = reader.one("dns_interval", |text| match text {
        "off" => Ok(None),
        _ => value::time(text, MILLISECOND).map(Some),
    });
    let dns_servers = reader.many("dns_servers", |given| value::name_server(&given.text));
    let ourselves = Ourselves::new(reader, listen);
    let known = std::mem::take(&mut reader.known);
    let find = |host: &str, port: u16| match purpose {
        Purpose::Look => ourselves.check_literal(host, port).map(|()| Vec::new()),
        Purpose::Run => {
            let found = names::look_up(host, port, &dns_servers).or_else(|reason| {
                let host = host.to_owned();
                let last = known.get(&(host.clone(), port)).cloned();
                last.filter(|last| !last.is_empty())
                    .ok_or(ValueError::Lookup { host, reason })
            })?;
            ourselves.check(&found).map(|()| found)
        }
    };
    let upstreams = upstreams(reader, purpose, &find);
    let balance = reader.one("balance", |text| value::choice(text, BALANCES));
    let check = reader.one("health_check", check);
    let given = reader.given("retry_on");
    let retry_on = retry_on(reader, given);
    let connect = reader.time("connect_timeout", MILLISECOND);
    let read = reader.time("read_timeout", MILLISECOND);
    let first_byte = reader.one("first_byte_timeout", |text| {
        not_before(value::time(text, MILLISECOND)?, read)
    });
    let write = reader.time("write_timeout", MILLISECOND);
    let request = reader.one("request_timeout", or_off);
    let check_interval = reader.time("health_interval", MILLISECOND);
    let check_timeout = reader.time("health_timeout", MILLISECOND);
    let rise = reader.one("health_rise", |text| value::number(text, 1, 10_000));
    let fall = reader.one("health_fall", |text| value::number(text, 1, 10_000));
    let eject_after = reader.cap("eject_after");
    let eject_time = reader.time("eject_time", SECOND);
    let retry_budget = reader.one("retry_budget", |text| {
        value::number(text.strip_suffix('%').unwrap_or(text), 0, 100)
    });
    let ready_requires = ready_requires(reader);
    let concurrency = Written::read(reader);
    let pools = reader.layers.take_pools();
    let default = PoolSettings {
        name: DEFAULT.to_owned(),
        upstreams,
        balance: balance?,
        ca: None,
        check: check?,
        times: Times {
            connect: connect?,
            first_byte,
            read: read?,
            write: write?,
            request: request?,
        },
        concurrency: concurrency?.into(),
        retry_on,
        routes: Vec::new(),
        apps: Vec::new(),
        editions: Vec::new(),
    };
    let mut all = vec![default.clone()];
    let mut seen = BTreeMap::new();
    for pool in pools {
        let mut of_pool = OfPool {
            mistakes: &mut reader.mistakes,
            pool,
        };
        all.extend(of_pool.read(&default, concurrency?, &find, &mut seen));
    }
    Some(Read {
        pools: all,
        tending: Tending {
            dns_interval: dns_interval?,
            dns_servers,
            check_interval: check_interval?,
            check_timeout: check_timeout?,
            rise: rise?,
            fall: fall?,
            eject_after: eject_after?,
            eject_time: eject_time?,
            retry_budget: retry_budget?,
        },
        ready_requires,
    })
}

type Addresses = Result<Vec<std::net::SocketAddr>, ValueError>;

fn upstream(text: &str, find: &dyn Fn(&str, u16) -> Addresses) -> Result<Upstream, ValueError> {
    let mut upstream = value::upstream_with_words(text)?;
    upstream.addrs = find(&upstream.host, upstream.port)?;
    Ok(upstream)
}

fn upstreams(
    reader: &mut Reader,
    purpose: Purpose,
    find: &dyn Fn(&str, u16) -> Addresses,
) -> Vec<Upstream> {
    let before = reader.mistakes.len();
    let upstreams = reader.many("upstream", |given| upstream(&given.text, find));
    // What could not be read may have named one.
    let is_lost = reader.mistakes.iter().any(|mistake| match mistake {
        Mistake::Unreadable { .. } | Mistake::Syntax { .. } => true,
        Mistake::UnknownKey { near, .. } => near.as_deref() == Some("upstream"),
        Mistake::UnknownEnv { near, .. } => near == "FLOODGATE_UPSTREAM",
        _ => false,
    });
    let is_missing = upstreams.is_empty() && reader.mistakes.len() == before && !is_lost;
    if let (true, Purpose::Run, Some(setting)) = (is_missing, purpose, table::setting("upstream")) {
        reader.mistakes.push(Mistake::Missing {
            key: setting.key,
            flag: setting.flag,
            env: setting.env(),
            value: "http://host:port",
        });
    }
    upstreams
}

/// The time for the head of an answer, which is not less than that between two reads.
fn not_before(
    first_byte: std::time::Duration,
    read: Option<std::time::Duration>,
) -> Result<std::time::Duration, ValueError> {
    match read {
        Some(read) if first_byte < read => Err(ValueError::FirstByte(read)),
        _ => Ok(first_byte),
    }
}

fn or_off(text: &str) -> Result<Option<std::time::Duration>, ValueError> {
    match text {
        "off" => Ok(None),
        _ => value::time(text, MILLISECOND).map(Some),
    }
}

fn check(text: &str) -> Result<Check, ValueError> {
    match text {
        "off" => Ok(Check::Off),
        "tcp" => Ok(Check::Tcp),
        _ if text.starts_with('/') && text.bytes().all(|b| b.is_ascii_graphic()) => {
            Ok(Check::Http(text.to_owned()))
        }
        _ => Err(ValueError::Check),
    }
}

fn retry_on(reader: &mut Reader, given: Vec<Given>) -> RetryOn {
    let (retry_on, mistakes) = retry_words(given);
    reader.mistakes.extend(mistakes);
    retry_on
}

fn retry_words(given: Vec<Given>) -> (RetryOn, Vec<Mistake>) {
    let mut retry_on = RetryOn::default();
    let mut mistakes = Vec::new();
    let is_one = given.len() == 1;
    for given in given {
        let read = match given.text.as_str() {
            "off" if is_one => Ok(()),
            "reset" if retry_on.reset => Err(ValueError::Twice),
            "reset" => {
                retry_on.reset = true;
                Ok(())
            }
            text => match value::number::<u16>(text, 500, 599) {
                Ok(status) if retry_on.statuses.contains(&status) => Err(ValueError::Twice),
                Ok(status) => {
                    retry_on.statuses.push(status);
                    Ok(())
                }
                Err(_) => Err(ValueError::RetryOn),
            },
        };
        if let Err(why) = read {
            mistakes.push(Mistake::Value { given, why });
        }
    }
    (retry_on, mistakes)
}

fn ready_requires(reader: &mut Reader) -> ReadyRequires {
    const KNOWN: &[(&str, u8)] = &[("upstream", 1), ("store", 2), ("nothing", 0)];
    let words = reader.many("ready_requires", |given| value::choice(&given.text, KNOWN));
    if let (true, true, Some(given)) = (
        words.contains(&0),
        words.len() > 1,
        reader.given("ready_requires").pop(),
    ) {
        let why = ValueError::Nothing;
        reader.mistakes.push(Mistake::Value { given, why });
    }
    ReadyRequires {
        upstream: words.contains(&1),
        store: words.contains(&2),
    }
}

/// One `[[pool]]`.
struct OfPool<'r> {
    mistakes: &'r mut Vec<Mistake>,
    pool: PoolGiven,
}

/// What is the user of one pool alone: its kind and name, and where that stands.
type Seen = BTreeMap<(&'static str, String), String>;

impl OfPool<'_> {
    fn read(
        &mut self,
        default: &PoolSettings,
        concurrency: Written,
        find: &dyn Fn(&str, u16) -> Addresses,
        seen: &mut Seen,
    ) -> Option<PoolSettings> {
        let name = self.name(seen);
        let mut upstreams = self.many("upstreams", |given| upstream(&given.text, find));
        if !self.pool.keys.contains_key("upstreams") {
            upstreams.clone_from(&default.upstreams);
        }
        let switch = [("true", true), ("false", false)];
        if let Some(http2) = self.one("http2", |text| value::choice(text, &switch)) {
            upstreams.iter_mut().for_each(|u| u.http2 = http2);
        }
        if let Some(sni) = self.one("sni", value::sni) {
            upstreams.iter_mut().for_each(|u| u.sni = Some(sni.clone()));
        }
        let given = self.pool.keys.get("retry_on").cloned();
        let retry_on = given.map(|given| {
            let (retry_on, mistakes) = retry_words(given);
            self.mistakes.extend(mistakes);
            retry_on
        });
        let times = default.times;
        let time = |text: &str| value::time(text, MILLISECOND);
        let read = self.one("read_timeout", time).unwrap_or(times.read);
        let first_byte = self.one("first_byte_timeout", |text| {
            not_before(time(text)?, Some(read))
        });
        if !self.pool.keys.contains_key("first_byte_timeout")
            && times.first_byte.is_some_and(|first_byte| first_byte < read)
        {
            self.wrong(
                "has a read_timeout above first_byte_timeout; write its own first_byte_timeout too",
            );
        }
        let times = Times {
            connect: self.one("connect_timeout", time).unwrap_or(times.connect),
            first_byte: first_byte.or(times.first_byte),
            read,
            write: self.one("write_timeout", time).unwrap_or(times.write),
            request: self.one("request_timeout", or_off).unwrap_or(times.request),
        };
        let balance = self.one("balance", |text| value::choice(text, BALANCES));
        let pool = PoolSettings {
            name: name.unwrap_or_default(),
            upstreams,
            balance: balance.unwrap_or(default.balance),
            ca: self.ca(),
            check: self
                .one("health_check", check)
                .unwrap_or_else(|| default.check.clone()),
            times,
            concurrency: concurrency.of_pool(self).into(),
            retry_on: retry_on.unwrap_or_else(|| default.retry_on.clone()),
            routes: self.users("routes", seen),
            apps: self.users("apps", seen),
            editions: self.users("editions", seen),
        };
        let has_users = ["routes", "apps", "editions"]
            .iter()
            .any(|key| self.pool.keys.contains_key(key));
        if !has_users {
            self.wrong("serves nobody; write apps, routes or editions = [\"…\"]");
        }
        Some(pool)
    }

    fn wrong(&mut self, message: &str) {
        self.mistakes.push(Mistake::Pool {
            path: self.pool.path.clone(),
            line: self.pool.line,
            message: format!("this [[pool]] {message}"),
        });
    }

    fn name(&mut self, seen: &mut Seen) -> Option<String> {
        if !self.pool.keys.contains_key("name") {
            self.wrong("has no name; write name = \"files\"");
            return None;
        }
        let place = self.place("name");
        self.one("name", |text| {
            let name = value::prefix(text)?;
            let key = ("name", name.clone());
            match seen.insert(key, place.clone()) {
                Some(other) => Err(ValueError::Taken(other)),
                None if name == DEFAULT => Err(ValueError::DefaultPool),
                None => Ok(name),
            }
        })
    }

    fn place(&self, key: &str) -> String {
        let given = self.pool.keys.get(key).and_then(|given| given.first());
        given.map_or_else(String::new, place)
    }

    fn given(&self, key: &str) -> Vec<Given> {
        self.pool.keys.get(key).cloned().unwrap_or_default()
    }

    fn one<T>(
        &mut self,
        key: &str,
        parse: impl FnOnce(&str) -> Result<T, ValueError>,
    ) -> Option<T> {
        let given = self.given(key).pop()?;
        match parse(&given.text) {
            Ok(value) => Some(value),
            Err(why) => {
                self.mistakes.push(Mistake::Value { given, why });
                None
            }
        }
    }

    fn many<T: PartialEq>(
        &mut self,
        key: &str,
        mut parse: impl FnMut(&Given) -> Result<T, ValueError>,
    ) -> Vec<T> {
        let mut values = Vec::new();
        for given in self.given(key) {
            match parse(&given) {
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

    fn users(&mut self, key: &'static str, seen: &mut Seen) -> Vec<Named> {
        self.many(key, |given| {
            let name = given.text.clone();
            let place = place(given);
            if name.is_empty() {
                return Err(ValueError::Empty);
            }
            match seen.insert((key, name.clone()), place.clone()) {
                Some(other) => Err(ValueError::Taken(other)),
                None => Ok(Named { name, place }),
            }
        })
    }

    fn ca(&mut self) -> Option<PathBuf> {
        let given = self.given("ca").pop()?;
        if given.text.is_empty() {
            let why = ValueError::Empty;
            self.mistakes.push(Mistake::Value { given, why });
            return None;
        }
        Some(beside(&given))
    }
}

/// File and line.
fn place(given: &Given) -> String {
    match &given.origin {
        Origin::File { path, line, .. } => format!("{}:{line}", path.display()),
        _ => String::new(),
    }
}
