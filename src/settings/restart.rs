//! What a reload cannot change: it stays as it was at the start, and the settings say which wait.

use super::{Settings, StoreSettings};
use crate::store::redis::connect::RedisOptions;

/// Settings of which a change waits for a restart.
pub const RESTART: &[&str] = &[
    "listen",
    "admin",
    "store",
    "max_counters",
    "plan_file",
    "store_username",
    "store_password",
    "store_password_file",
    "store_sentinel_username",
    "store_sentinel_password",
    "store_ca",
    "store_client_cert",
    "store_client_key",
    "store_prefix",
    "store_timeout",
    "store_leases",
    "store_slot_lease",
    "min_gateways",
    "store_allow_eviction",
    "log",
    "threads",
    "upgrade_socket",
];

impl Settings {
    /// Takes from `running` what cannot change while it runs. The settings in which that differs.
    pub fn keep_what_cannot_change(&mut self, running: &Self) -> Vec<&'static str> {
        let mut waiting = Vec::new();
        if self.listen != running.listen {
            waiting.push("listen");
            self.keep_listeners(running);
        }
        if self.admin != running.admin {
            waiting.push("admin");
            self.admin = running.admin;
        }
        if self.max_counters != running.max_counters {
            waiting.push("max_counters");
            self.max_counters = running.max_counters;
        }
        if self.plan_file != running.plan_file {
            waiting.push("plan_file");
            self.plan_file.clone_from(&running.plan_file);
        }
        if self.log != running.log {
            waiting.push("log");
            self.log = running.log;
        }
        if self.threads != running.threads {
            waiting.push("threads");
            self.threads = running.threads;
        }
        if self.upgrade_socket != running.upgrade_socket {
            waiting.push("upgrade_socket");
            self.upgrade_socket.clone_from(&running.upgrade_socket);
        }
        waiting.extend(of_store(&self.store, &running.store));
        self.store = running.store.clone();
        waiting
    }

    /// The listeners, and what would not go with them.
    fn keep_listeners(&mut self, running: &Self) {
        let tls = |settings: &Self| settings.listen.iter().any(|listen| listen.tls);
        if tls(self) != tls(running) {
            self.tls.clone_from(&running.tls);
            self.https = running.https;
        }
        let is_trusting = running.listen.iter().any(|listen| listen.proxy_protocol);
        if is_trusting && self.trusted_proxies.is_empty() {
            self.trusted_proxies.clone_from(&running.trusted_proxies);
        }
        self.listen.clone_from(&running.listen);
    }
}

/// The settings by which two stores differ.
fn of_store(one: &StoreSettings, other: &StoreSettings) -> Vec<&'static str> {
    use StoreSettings::{Memory, Redis};
    let (one, other) = match (one, other) {
        (Memory, Memory) => return Vec::new(),
        (Memory, Redis(_)) | (Redis(_), Memory) => return vec!["store"],
        (Redis(one), Redis(other)) => (one, other),
    };
    // Each field is here: one that is added must say which setting it is.
    let RedisOptions {
        topology,
        nodes,
        tls,
        ca,
        client_cert,
        client_key,
        username,
        password,
        sentinel_username,
        sentinel_password,
        database,
        prefix,
        timeout,
        leases,
        slot_lease,
        min_gateways,
        allow_eviction,
    } = one;
    let is_where = topology == &other.topology
        && nodes == &other.nodes
        && tls == &other.tls
        && database == &other.database;
    let same = [
        ("store", is_where),
        ("store_username", username == &other.username),
        ("store_password", password == &other.password),
        (
            "store_sentinel_username",
            sentinel_username == &other.sentinel_username,
        ),
        (
            "store_sentinel_password",
            sentinel_password == &other.sentinel_password,
        ),
        ("store_ca", ca == &other.ca),
        ("store_client_cert", client_cert == &other.client_cert),
        ("store_client_key", client_key == &other.client_key),
        ("store_prefix", prefix == &other.prefix),
        ("store_timeout", timeout == &other.timeout),
        ("store_leases", leases == &other.leases),
        ("store_slot_lease", slot_lease == &other.slot_lease),
        ("min_gateways", min_gateways == &other.min_gateways),
        (
            "store_allow_eviction",
            allow_eviction == &other.allow_eviction,
        ),
    ];
    same.into_iter()
        .filter(|(_, is_same)| !is_same)
        .map(|(key, _)| key)
        .collect()
}
