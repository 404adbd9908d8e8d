//! Whether a store would do: every master of it is asked what it is, and what we may do there.

use redis::{Cmd, ErrorKind, RedisError, RedisResult, ServerErrorKind, Value, cmd};

use super::cause::{Cause, is_in_cluster, is_login};
use super::{Connection, Connector, RedisOptions, Topology, within};

/// All slots of a cluster.
const SLOTS: i64 = 16_384;

/// What a store is, as far as it could be asked.
#[derive(Debug)]
pub struct Probe {
    /// Its masters.
    pub masters: Vec<Master>,
    /// Slots of a cluster that no master serves.
    pub unserved_slots: i64,
}

/// One master.
#[derive(Debug)]
pub struct Master {
    /// Its URL, without user and password.
    pub url: String,
    /// What it said; or why it said nothing.
    pub state: Result<State, Cause>,
}

/// What a server said of itself, and what it lets us do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// Its version, as Redis counts (a Valkey names the Redis it is compatible with).
    pub version: String,
    /// Whether it is a replica.
    pub is_replica: bool,
    /// Whether it is a node of a cluster.
    pub is_in_cluster: bool,
    /// Its `maxmemory-policy`.
    pub eviction: String,
    /// Commands that we may not use.
    pub missing: Vec<String>,
    /// Whether keys below the prefix are out of bounds for us.
    pub keys_denied: bool,
    /// Why it takes no writes.
    pub write_error: Option<String>,
    /// How far its clock is ahead of ours, in milliseconds.
    pub ahead_ms: i64,
}

impl State {
    /// The version's first two numbers.
    #[must_use]
    pub fn major_minor(&self) -> Option<(u32, u32)> {
        let mut numbers = self.version.split('.').map(str::parse);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
    }
}

/// Asks the store; `unix_us` is our own wall clock.
///
/// # Errors
/// When nobody answers.
pub async fn probe(connector: &Connector, unix_us: fn() -> u64) -> Result<Probe, Cause> {
    let asked = masters_of(connector, unix_us).await;
    match asked {
        Ok(probe) => Ok(probe),
        Err(error) => Err(connector.cause(&error).await),
    }
}

async fn masters_of(connector: &Connector, unix_us: fn() -> u64) -> RedisResult<Probe> {
    let options = connector.options();
    if options.topology != Topology::Cluster {
        let state = judged(connector, unix_us).await;
        let url = options.to_string();
        return Ok(Probe {
            masters: vec![Master { url, state }],
            unserved_slots: 0,
        });
    }
    let (nodes, served) = nodes(options).await?;
    let mut masters = Vec::new();
    for node in nodes {
        let direct = direct(options, node)?;
        masters.push(Master {
            url: direct.options().to_string(),
            state: judged(&direct, unix_us).await,
        });
    }
    Ok(Probe {
        masters,
        unserved_slots: SLOTS.saturating_sub(served),
    })
}

/// A connector to one node of a cluster.
pub(super) fn direct(options: &RedisOptions, node: (String, u16)) -> RedisResult<Connector> {
    let mut options = options.clone();
    options.topology = Topology::Single;
    options.nodes = vec![node];
    Connector::new(options).map_err(|error| {
        let what = "the connector was good before";
        RedisError::from((ErrorKind::InvalidClientConfig, what, error.to_string()))
    })
}

/// The masters of a cluster, and how many slots they serve, from the first node that answers.
async fn nodes(options: &RedisOptions) -> RedisResult<(Vec<(String, u16)>, i64)> {
    let mut last = super::no_node();
    for node in &options.nodes {
        let answer = async {
            let connector = direct(options, node.clone())?;
            let mut connection = connector.connect().await?;
            ask(&connector, &mut connection, cmd("CLUSTER").arg("SLOTS")).await
        };
        match answer.await {
            Ok(slots) => return masters(slots, &node.0),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Reads the answer of `CLUSTER SLOTS`; a node that has no name there has that of the one asked.
fn masters(slots: Value, asked: &str) -> RedisResult<(Vec<(String, u16)>, i64)> {
    let mut nodes = Vec::new();
    let mut served = 0;
    for range in redis::from_redis_value::<Vec<Vec<Value>>>(slots)? {
        let mut range = range.into_iter();
        let (Some(first), Some(last), Some(master)) = (range.next(), range.next(), range.next())
        else {
            continue;
        };
        let (first, last): (i64, i64) = (
            redis::from_redis_value(first)?,
            redis::from_redis_value(last)?,
        );
        served += last - first + 1;
        let mut master = redis::from_redis_value::<Vec<Value>>(master)?.into_iter();
        if let (Some(host), Some(port)) = (master.next(), master.next()) {
            let host = redis::from_redis_value::<Option<String>>(host)?
                .filter(|host| !host.is_empty())
                .unwrap_or_else(|| asked.to_owned());
            let node = (host, redis::from_redis_value(port)?);
            if !nodes.contains(&node) {
                nodes.push(node);
            }
        }
    }
    Ok((nodes, served))
}

async fn ask(connector: &Connector, connection: &mut Connection, cmd: &Cmd) -> RedisResult<Value> {
    within(connector.connect_timeout(), connection.send(cmd)).await
}

async fn judged(connector: &Connector, unix_us: fn() -> u64) -> Result<State, Cause> {
    match state(connector, unix_us).await {
        Ok(state) => Ok(state),
        Err(error) => Err(connector.cause(&error).await),
    }
}

async fn state(connector: &Connector, unix_us: fn() -> u64) -> RedisResult<State> {
    let mut connection = connector.connect().await?;
    let mut state = State {
        version: String::new(),
        is_replica: false,
        is_in_cluster: false,
        eviction: String::new(),
        missing: Vec::new(),
        keys_denied: false,
        write_error: None,
        ahead_ms: 0,
    };
    for trial in trials(&connector.options().prefix) {
        let before = unix_us();
        let answer = ask(connector, &mut connection, &trial.cmd).await;
        let after = unix_us();
        match answer {
            Ok(answer) => match trial.name {
                "INFO" => state.read_info(&redis::from_redis_value::<String>(answer)?),
                "TIME" => {
                    let (s, us): (i64, i64) = redis::from_redis_value(answer)?;
                    let between = before + after.saturating_sub(before) / 2;
                    let ours = i64::try_from(between).unwrap_or(i64::MAX);
                    let theirs = s.saturating_mul(1_000_000).saturating_add(us);
                    state.ahead_ms = theirs.saturating_sub(ours) / 1000;
                }
                _ => {}
            },
            Err(error) => state.judge(&trial, error)?,
        }
    }
    Ok(state)
}

impl State {
    fn read_info(&mut self, info: &str) {
        let line = |key: &str| {
            let found = info.lines().find_map(|line| line.strip_prefix(key));
            found.unwrap_or_default().trim().to_owned()
        };
        self.version = line("redis_version:");
        self.is_replica = line("role:") == "slave";
        self.eviction = line("maxmemory_policy:");
        self.is_in_cluster = is_in_cluster(info);
    }

    /// What a refused trial tells. An error that ends the connection ends the probe.
    fn judge(&mut self, trial: &Trial, error: RedisError) -> RedisResult<()> {
        match error.kind() {
            ErrorKind::Server(ServerErrorKind::NoPerm) => {
                // Redis has one code for both; only its words differ.
                let is_key = error.detail().is_some_and(|text| text.contains(" key"));
                match is_key {
                    true => self.keys_denied = true,
                    false if self.missing.iter().any(|name| name == trial.name) => {}
                    false => self.missing.push(trial.name.to_owned()),
                }
            }
            // Another node's slot, or a script that it has not seen: we were let through.
            ErrorKind::Server(
                ServerErrorKind::Moved | ServerErrorKind::Ask | ServerErrorKind::NoScript,
            ) => {}
            ErrorKind::Io | ErrorKind::Parse => return Err(error),
            _ if is_login(&error) => return Err(error),
            _ if trial.writes && self.write_error.is_none() => {
                self.write_error = Some(error.to_string());
            }
            _ => {}
        }
        Ok(())
    }
}

struct Trial {
    name: &'static str,
    cmd: Cmd,
    writes: bool,
}

/// Every command that the store uses, on keys that nothing else has.
fn trials(prefix: &str) -> Vec<Trial> {
    let text = format!("{prefix}:check");
    let set = format!("{prefix}:check.set");
    let (text, set) = (text.as_str(), set.as_str());
    let nothing = "0000000000000000000000000000000000000000";
    let read = |arguments: &[&'static str], keys: &[&str], more: &[&str]| Trial {
        name: arguments[0],
        cmd: {
            let mut cmd = cmd(arguments[0]);
            cmd.arg(&arguments[1..]).arg(keys).arg(more);
            cmd
        },
        writes: false,
    };
    let write = |name: &'static str, key: &str, more: &[&str]| Trial {
        writes: true,
        ..read(&[name], &[key], more)
    };
    vec![
        read(&["PING"], &[], &[]),
        read(&["INFO"], &[], &[]),
        read(&["TIME"], &[], &[]),
        read(&["SCRIPT", "LOAD", "return 1"], &[], &[]),
        read(&["EVAL", "return 1", "1"], &[text], &[]),
        read(&["EVALSHA", nothing, "1"], &[text], &[]),
        write("SET", text, &["0", "PX", "1000"]),
        read(&["GET"], &[text], &[]),
        read(&["MGET"], &[text], &[]),
        write("INCRBY", text, &["1"]),
        read(&["PTTL"], &[text], &[]),
        write("PEXPIRE", text, &["1000"]),
        write("ZADD", set, &["1", "a"]),
        write("PEXPIRE", set, &["1000"]),
        read(&["ZCARD"], &[set], &[]),
        read(&["ZSCORE"], &[set], &["a"]),
        read(&["ZRANGE"], &[set], &["0", "-1"]),
        write("ZREMRANGEBYSCORE", set, &["0", "0"]),
        write("ZREMRANGEBYRANK", set, &["0", "-10"]),
        write("ZREM", set, &["a"]),
        write("DEL", text, &[]),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_of_the_scripts_is_tried() {
        let tried: Vec<&str> = trials("fg").iter().map(|trial| trial.name).collect();
        let scripts = [
            include_str!("../script/counters.lua"),
            include_str!("../script/slots.lua"),
            include_str!("../script/totals.lua"),
            include_str!("../script/run.lua"),
            include_str!("../script/beat.lua"),
            include_str!("../news.rs"),
        ];
        let calls = scripts.iter().flat_map(|text| text.split("call('").skip(1));
        let used: Vec<&str> = calls
            .filter_map(|rest| rest.split_once('\'').map(|(name, _)| name))
            .collect();
        assert!(used.len() > 20);
        for name in used {
            assert!(tried.contains(&name), "{name}");
        }
    }
}
