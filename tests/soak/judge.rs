//! What must hold afterwards.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{BufRead as _, BufReader};
use std::time::Duration;

use tokio::runtime::Runtime;

use crate::caller::{Ask, Sends, Wire};
use crate::harness::Gateway;
use crate::script::Seen;
use crate::server::wait_until;
use crate::setup::descriptors;
use crate::trouble::Troubles;
use crate::{Done, Run, is_up};

/// Figures of the routes: path, units, window; 0: a day.
const LIMITS: [(&str, u32, u64); 4] = [
    ("/o/a/s/second", 60, 1),
    ("/o/a/s/long", 120, 10),
    ("/o/a/s/messages", 150, 5),
    ("/o/a/s/day", 900, 0),
];

/// Every call was answered, or closed, in time.
pub(crate) fn answered(done: &[Done], bound: Duration) {
    let mut statuses: BTreeMap<(u16, bool), u32> = BTreeMap::new();
    for call in done {
        *statuses.entry((call.status, call.is_whole)).or_default() += 1;
        assert!(call.took < bound, "{call:?}");
        let is_known = matches!(
            call.status,
            0 | 200 | 204 | 304 | 403 | 429 | 502 | 503 | 504
        );
        // Of a caller of HTTP/2, an upstream of HTTP/2 that takes nothing is not told from it.
        let is_known = is_known || call.status == 408 && call.what.starts_with("/o/a/s/stream");
        assert!(is_known, "{call:?}");
    }
    let longest = done.iter().map(|call| call.took).max();
    println!(
        "calls of callers that behave: {}; longest {longest:?}",
        done.len()
    );
    println!("(status, whole): {statuses:?}");
    assert!(statuses.get(&(200, true)).is_some_and(|n| *n > 100));
    assert!(statuses.keys().any(|(status, _)| *status == 429));
}

/// By the backend's own record: what was certainly let in within one window. A call was let in
/// between its sending and its arrival.
pub(crate) fn limits(seen: &[Seen], troubles: &Troubles) {
    println!("calls that the backend had: {}", seen.len());
    for (path, quota, seconds) in LIMITS {
        let mut ids = HashSet::new();
        // An attempt that is repeated is the same call.
        let of = |call: &&Seen| call.path == path && ids.insert(call.id.clone());
        let mut calls: Vec<&Seen> = seen.iter().filter(of).collect();
        calls.sort_by_key(|call| call.sent_us);
        if seconds == 0 {
            day(path, quota, &calls);
            continue;
        }
        let window = seconds * 1_000_000;
        let (mut most, mut most_calm) = (0, 0);
        for (at, first) in calls.iter().enumerate() {
            let end = first.sent_us + window;
            let within = calls[at..]
                .iter()
                .take_while(|call| call.sent_us < end)
                .filter(|call| call.at_us < end);
            let units: u32 = within.map(|call| call.units).sum();
            most = most.max(units);
            if troubles.is_calm(first.sent_us, end) {
                most_calm = most_calm.max(units);
            }
        }
        println!(
            "{path}: at most {most} of {quota} in {seconds} s, {most_calm} while all was well"
        );
        assert!(most_calm <= quota, "{path}: {most_calm} of {quota}");
        // A gateway that is cut off alone adds its share, half of it, and each may be.
        assert!(most <= 2 * quota, "{path}: {most} of {quota}");
        assert!(most > quota / 4, "{path}: {most}: too little load");
    }
}

fn day(path: &str, quota: u32, calls: &[&Seen]) {
    // Each run is a day's; one that sees midnight has two of them.
    let units: u32 = calls.iter().map(|call| call.units).sum();
    println!("{path}: {units} of {quota} a day");
    assert!(units <= 2 * quota, "{path}: {units} of {quota}");
}

/// Waits until nothing runs, and no connection is open on either side.
pub(crate) fn quiet(gateways: &[Gateway; 2], run: &Run) {
    run.close_all();
    for gateway in gateways {
        for gauge in [
            "floodgate_requests_in_flight",
            "floodgate_upstream_waiting",
            "floodgate_upstream_in_flight",
            "floodgate_connections_open",
        ] {
            wait_until(gauge, || gateway.metric(gauge, &[]) == 0.0);
        }
    }
    run.close_all();
    wait_until("the upstream has no connection", || {
        run.upstream.open() == 0
    });
}

/// All units and all slots are there again, by the store's own word.
pub(crate) fn nothing_taken(runtime: &Runtime, gateways: &[Gateway; 2], wires: &[Vec<Wire>; 2]) {
    for gateway in gateways {
        // The longest that a task's slot is held, after which nobody has reported it done.
        wait_until("no slot is in use", || {
            gateway.metric("floodgate_task_slots_in_use", &[]) == 0.0
        });
        assert!(is_up(gateway));
    }
    // The longest window, and leases with it.
    std::thread::sleep(Duration::from_secs(12));
    let ask = |method: &'static str, route: &str, wait_ms: u64, body: Sends| Ask {
        method,
        path: format!("/o/a/s/{route}"),
        fields: vec![
            ("x-wait-ms", wait_ms.to_string()),
            ("x-units", "1".to_owned()),
            // What callers have left undone is held against their addresses.
            ("x-forwarded-for", "10.255.0.1".to_owned()),
        ],
        body,
    };
    let to = || Sends::Whole(br#"{"to":["a"]}"#.to_vec().into());
    for (method, route, quota, body) in [
        ("GET", "second", 60, Sends::Nothing),
        ("GET", "long", 120, Sends::Nothing),
        ("POST", "messages", 150, to()),
    ] {
        let got = runtime.block_on(wires[0][0].call(&ask(method, route, 0, body)));
        let left = got.ratelimit.split(';').find_map(|p| p.strip_prefix("r="));
        assert_eq!(left, Some(&*(quota - 1).to_string()), "{route}: {got:?}");
    }
    // As many as there are slots, two at each gateway, at once; and then no more.
    for (route, slots) in [("slot", 4), ("task", 6)] {
        let held = ask("POST", route, 700, Sends::Whole(b"{}".to_vec().into()));
        let (wires, held) = (wires.clone(), held.clone());
        let statuses = runtime.block_on(async move {
            let calls = (0..slots).map(|n| {
                let (wire, held) = (wires[n % 2][0].clone(), held.clone());
                tokio::spawn(async move { wire.call(&held).await.status })
            });
            let calls: Vec<_> = calls.collect();
            let mut statuses = Vec::new();
            for call in calls {
                statuses.push(call.await.expect("a call"));
            }
            statuses
        });
        assert!(
            statuses.iter().all(|status| *status == 200),
            "{route}: {statuses:?}"
        );
    }
}

/// What a gateway uses, from its beginning to its end.
pub(crate) struct Life<'g> {
    gateway: &'g Gateway,
    descriptors: usize,
    /// Resident, KiB.
    memory: Vec<u64>,
}

impl<'g> Life<'g> {
    pub(crate) fn begin(gateway: &'g Gateway) -> Self {
        Self {
            gateway,
            descriptors: descriptors(gateway),
            memory: Vec::new(),
        }
    }

    pub(crate) fn look(&mut self) {
        self.memory.push(self.gateway.memory().0);
    }

    /// As many descriptors as in the beginning, and no more memory than early on.
    pub(crate) fn end(&mut self, run: &Run) {
        let gateway = self.gateway;
        wait_until("all descriptors are closed", || {
            run.close_all();
            descriptors(gateway) <= self.descriptors
        });
        let n = self.memory.len();
        let median = |part: &[u64]| {
            let mut part = part.to_vec();
            part.sort_unstable();
            part[part.len() / 2]
        };
        assert!(n >= 5, "looked at {n} times");
        let early = median(&self.memory[n / 5..=2 * n / 5]);
        let late = median(&self.memory[4 * n / 5..]);
        let all: Vec<u64> = self
            .memory
            .iter()
            .step_by(n.div_ceil(20))
            .copied()
            .collect();
        println!(
            "descriptors {}; memory {early} KiB, then {late} KiB: {all:?}",
            self.descriptors
        );
        assert!(late < early + early / 10 + 8 * 1024, "{:?}", self.memory);
    }
}

/// One line for each call, with a cause where it failed; and no panic.
pub(crate) fn logs(gateways: &[Gateway; 2], done: &[Done]) {
    let mut causes: BTreeMap<String, u32> = BTreeMap::new();
    let mut lines: HashMap<String, u32> = HashMap::new();
    let mut unexplained = Vec::new();
    for gateway in gateways {
        let errors = gateway.errors();
        assert!(!errors.contains("panicked"), "{errors}");
        let file = std::fs::File::open(gateway.log_file()).unwrap();
        for line in BufReader::new(file).lines().map_while(Result::ok) {
            assert!(!line.contains("panicked"), "{line}");
            let line: serde_json::Value = serde_json::from_str(&line).expect(&line);
            if line["target"] != "access" {
                assert_ne!(line["level"], "ERROR", "{line}");
                continue;
            }
            let cause = line["cause"].as_str().unwrap();
            *causes.entry(cause.to_owned()).or_default() += 1;
            *lines
                .entry(line["id"].as_str().unwrap().to_owned())
                .or_default() += 1;
            let failed = matches!(line["status"].as_u64(), Some(0 | 408 | 502 | 503 | 504));
            if cause == "internal" || failed && cause.is_empty() {
                unexplained.push(line.to_string());
            }
        }
    }
    println!("causes: {causes:?}");
    assert!(unexplained.is_empty(), "{unexplained:#?}");
    for call in done {
        let lines = lines.get(&call.id).copied().unwrap_or(0);
        assert_eq!(lines, 1, "{call:?}");
    }
}
