//! Whether the store would do.

use std::fmt::Write as _;

use super::Report;
use crate::clock;
use crate::settings::StoreSettings;
use crate::store::redis::connect::{
    ConnectError, Connector, IN_A_CLUSTER, Probe, RedisOptions, State, Topology, probe,
};

/// The oldest Redis whose scripts and expiries are those that the store relies on.
const LEAST_VERSION: (u32, u32) = (7, 0);

/// Adds the mistakes; gives what is good, in lines.
pub(super) fn check(store: &StoreSettings, connect: bool, report: &mut Report) -> String {
    let options = match store {
        StoreSettings::Redis(options) => options,
        StoreSettings::Memory if connect => {
            return "good: counters are in memory, there is nothing to connect to\n".to_owned();
        }
        StoreSettings::Memory => return String::new(),
    };
    let connector = match Connector::new(options.clone()) {
        Ok(connector) => connector,
        Err(error) => {
            let is_unreadable = matches!(error, ConnectError::Unreadable { .. });
            report.add(&format!("store: {error}"), 1, is_unreadable);
            return String::new();
        }
    };
    match connect {
        true => ask(&connector, report),
        false => String::new(),
    }
}

fn ask(connector: &Connector, report: &mut Report) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            report.say(&format!("store: cannot connect: {error}"));
            return String::new();
        }
    };
    match runtime.block_on(probe(connector, clock::unix_us)) {
        Ok(probe) => judge(connector.options(), &probe, report),
        Err(cause) => {
            let url = connector.options();
            report.say(&format!("{url}: cannot connect: {}", cause.text));
            String::new()
        }
    }
}

fn judge(options: &RedisOptions, probe: &Probe, report: &mut Report) -> String {
    let mut good = String::new();
    if options.topology == Topology::Cluster && probe.unserved_slots > 0 {
        let slots = probe.unserved_slots;
        report.say(&format!("{options}: {slots} slots are served by no master"));
    }
    for master in &probe.masters {
        let url = &master.url;
        match &master.state {
            Err(cause) => report.say(&format!("{url}: cannot connect: {}", cause.text)),
            Ok(state) => {
                let mistakes = mistakes(options, state);
                for mistake in &mistakes {
                    report.say(&format!("{url}: {mistake}"));
                }
                if mistakes.is_empty() {
                    let _ = writeln!(good, "good: {url} is {}", describe(state));
                }
            }
        }
    }
    good
}

fn describe(state: &State) -> String {
    let version = match state.version.as_str() {
        "" => "unknown",
        version => version,
    };
    let (ms, side) = match state.ahead_ms {
        ms @ ..0 => (ms.unsigned_abs(), "behind"),
        ms => (ms.unsigned_abs(), "ahead of"),
    };
    let policy = &state.eviction;
    format!("Redis {version}, {policy}, its clock {ms} ms {side} ours")
}

fn mistakes(options: &RedisOptions, state: &State) -> Vec<String> {
    let mut mistakes = Vec::new();
    let (major, minor) = LEAST_VERSION;
    // Without INFO, nothing is known; that it is missing is said below.
    if state
        .major_minor()
        .is_some_and(|version| version < LEAST_VERSION)
    {
        let version = &state.version;
        mistakes.push(format!(
            "Redis {version}; {major}.{minor} or newer is needed"
        ));
    }
    if state.is_in_cluster && options.topology != Topology::Cluster {
        mistakes.push(IN_A_CLUSTER.to_owned());
    }
    if state.is_replica {
        mistakes.push("a replica; write its master, or redis-sentinel://".to_owned());
    }
    if state.keys_denied {
        let (prefix, user) = (&options.prefix, user(options));
        mistakes.push(format!(
            "no right to the keys that begin with {prefix}:; give it with ACL SETUSER {user} ~{prefix}:*"
        ));
    }
    if !state.missing.is_empty() {
        let user = user(options);
        let names = state.missing.join(", ");
        let rights: Vec<_> = state
            .missing
            .iter()
            .map(|c| format!("+{}", c.to_lowercase()))
            .collect();
        let rights = rights.join(" ");
        mistakes.push(format!(
            "no right to use {names}; give it with ACL SETUSER {user} {rights}"
        ));
    }
    if let Some(error) = &state.write_error
        && !state.is_replica
    {
        mistakes.push(format!("takes no writes: {error}"));
    }
    let evicts = !matches!(state.eviction.as_str(), "noeviction" | "");
    if evicts && !options.allow_eviction {
        let policy = &state.eviction;
        mistakes.push(format!(
            "maxmemory-policy is {policy}, which drops counters; set it to noeviction, or accept \
             that with --store-allow-eviction"
        ));
    }
    mistakes
}

fn user(options: &RedisOptions) -> &str {
    options.username.as_deref().unwrap_or("default")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(change: impl Fn(&mut State)) -> State {
        let mut state = State {
            version: "7.0.0".into(),
            is_replica: false,
            is_in_cluster: false,
            eviction: "noeviction".into(),
            missing: Vec::new(),
            keys_denied: false,
            write_error: None,
            ahead_ms: 0,
        };
        change(&mut state);
        state
    }

    fn mistakes_of(change: impl Fn(&mut State)) -> Vec<String> {
        mistakes(&"redis://a".parse().unwrap(), &state(change))
    }

    #[test]
    fn a_redis_before_7_is_too_old() {
        for old in ["6.2.14", "2.8.0"] {
            let got = mistakes_of(|state| state.version = old.into());
            assert_eq!(got, [format!("Redis {old}; 7.0 or newer is needed")]);
        }
        for new in ["7.0.0", "7.2.4", "8.0.1", "10.0.0", ""] {
            assert!(mistakes_of(|state| state.version = new.into()).is_empty());
        }
    }

    #[test]
    fn a_replica_is_not_told_twice_that_it_takes_no_writes() {
        let got = mistakes_of(|state| {
            state.is_replica = true;
            state.write_error = Some("READONLY".into());
        });
        assert_eq!(got.len(), 1, "{got:?}");
    }

    #[test]
    fn the_clock_says_which_side_it_is_on() {
        let say = |ahead| describe(&state(|state| state.ahead_ms = ahead));
        assert!(say(-7).ends_with("its clock 7 ms behind ours"));
        assert!(say(7).ends_with("its clock 7 ms ahead of ours"));
    }
}
