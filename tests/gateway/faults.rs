//! An upstream that breaks in every way, against every kind of call: the answer is right, nothing
//! hangs, units are settled once, slots and file descriptors are free at the end, and the log says
//! why.

pub(crate) mod caller;
mod causes;
pub(crate) mod script;
pub(crate) mod setup;

use std::collections::HashMap;

use bytes::Bytes;

use self::caller::{Ask, Got, Sends, Wire};
use self::script::{Fault, Scripted};
use self::setup::{certificate, descriptors, runtime, wires};
use crate::door::soon;
use crate::harness::{Connection, Gateway, Start};

pub(crate) const ROUTES: &str = r#"
[[route]]
name = "f-get"
calls = ["GET /f/get"]
v3 = { limits = ["100000/3600s"], ip_copy = false }

[[route]]
name = "f-count"
calls = ["POST /f/count"]
cost = "to"
max_recipients = 6
v3 = { limits = ["100000 messages/3600s"], ip_copy = false }

[[route]]
name = "f-up"
calls = ["POST /f/up"]
v3 = { limits = ["100000/3600s"], ip_copy = false }

[[route]]
name = "f-slot"
calls = ["POST /f/slot"]
v3 = { limits = ["10000 tasks"], ip_copy = false }

[[route]]
name = "f-task"
calls = ["POST /f/task"]
v3 = { limits = [{ rate = "10000 tasks", hold = "task", max_hold = "600s" }], ip_copy = false }
"#;

/// A kind of call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Get,
    Head,
    Counted,
    CountedChunks,
    Upload,
    UploadChunks,
    Slot,
    Task,
}

impl Kind {
    const ALL: [Self; 8] = [
        Self::Get,
        Self::Head,
        Self::Counted,
        Self::CountedChunks,
        Self::Upload,
        Self::UploadChunks,
        Self::Slot,
        Self::Task,
    ];

    fn ask(self, fault: Fault, id: &str) -> Ask {
        let to = Bytes::from_static(br#"{"to":["a","b","c"]}"#);
        let part = Bytes::from(vec![b'u'; 20_000]);
        let (method, route, body) = match self {
            Self::Get => ("GET", "get", Sends::Nothing),
            Self::Head => ("HEAD", "get", Sends::Nothing),
            Self::Counted => ("POST", "count", Sends::Whole(to)),
            Self::CountedChunks => (
                "POST",
                "count",
                Sends::Chunks(vec![to.slice(..7), to.slice(7..)]),
            ),
            Self::Upload => ("POST", "up", Sends::Whole(vec![b'u'; 200_000].into())),
            Self::UploadChunks => ("POST", "up", Sends::Chunks(vec![part; 10])),
            Self::Slot => ("POST", "slot", Sends::Whole(Bytes::from_static(b"{}"))),
            Self::Task => ("POST", "task", Sends::Whole(Bytes::from_static(b"{}"))),
        };
        Ask {
            method,
            path: format!("/o/a/f/{route}"),
            fields: vec![("x-fault", fault.name()), ("x-request-id", id.to_owned())],
            body,
        }
    }

    fn may_run_twice(self) -> bool {
        matches!(self, Self::Get | Self::Head)
    }

    fn is_upload(self) -> bool {
        matches!(self, Self::Upload | Self::UploadChunks)
    }
}

/// What the caller must get: a status, whether to its end, and the cause in the log.
type Due = (u16, bool, &'static str);

/// One of these.
fn due(fault: Fault, kind: Kind) -> Vec<Due> {
    use Fault as F;
    const GOOD: Due = (200, true, "");
    const RESET: Due = (502, true, "reset-before-headers");
    let bad = |cause| vec![(502, true, cause)];
    // There is no body to be cut off.
    if kind == Kind::Head
        && matches!(
            fault,
            F::SlowBody | F::BodyReset | F::TooShort | F::ChunksCut | F::BadChunk | F::Endless
        )
    {
        return vec![GOOD];
    }
    match fault {
        F::None
        | F::TooLong
        | F::Continue
        | F::Hints
        | F::Trailers
        | F::LargeHead
        | F::Early
        | F::Http10
        | F::Http10Kept
        | F::Two => vec![GOOD],
        F::Silent | F::HalfHead => vec![(504, true, "header-timeout")],
        F::DripHead => vec![(504, true, "header-timeout")],
        F::HalfHeadClose | F::Close | F::Reset | F::CloseAtHead => vec![RESET],
        F::SlowBody => vec![(200, false, "body-timeout")],
        // A busy machine may not have read the beginning when the reset comes.
        F::BodyReset => vec![(200, false, "reset-in-body"), RESET],
        F::TooShort | F::ChunksCut => vec![(200, false, "reset-in-body")],
        F::BadChunk => vec![(200, false, "malformed")],
        F::Endless => vec![(200, false, "request-timeout")],
        F::EndlessHints | F::Garbage | F::BadStatus | F::TwoLengths | F::Switch => bad("malformed"),
        F::HugeHead | F::ManyFields => bad("head-too-large"),
        // What is left of the request may reset the connection before the answer has been read.
        F::EarlyClose if kind.is_upload() => {
            vec![GOOD, RESET, (200, false, "reset-in-body")]
        }
        F::EarlyClose => vec![GOOD, RESET],
        F::CloseReused | F::CloseAfter if kind.may_run_twice() => vec![GOOD],
        F::CloseReused | F::CloseAfter => vec![GOOD, RESET],
        F::NoContent => vec![(204, true, "")],
        F::NotModified => vec![(304, true, "")],
    }
}

/// The access log's lines by the calls' IDs.
pub(crate) fn lines(gateway: &Gateway) -> HashMap<String, Vec<serde_json::Value>> {
    let mut lines: HashMap<String, Vec<_>> = HashMap::new();
    for line in gateway.log().lines() {
        let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
        if line["target"] == "access" {
            let id = line["id"].as_str().expect("an ID").to_owned();
            lines.entry(id).or_default().push(line);
        }
    }
    lines
}

struct Bench {
    upstream: Scripted,
    gateway: Gateway,
    wires: Vec<(&'static str, Wire)>,
    runtime: tokio::runtime::Runtime,
    _dir: tempfile::TempDir,
}

impl Bench {
    fn start() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let ([certificate, key], tls) = certificate(dir.path());
        let upstream = Scripted::start();
        let gateway = Start {
            routes: ROUTES,
            upstream: Some(upstream.addr),
            keep_errors: true,
            args: &[
                "--listen",
                "127.0.0.1:0 tls",
                "--tls-cert",
                &certificate,
                "--tls-key",
                &key,
                "--https-only",
                "false",
                "--h2c",
                "--trusted-proxy",
                "127.0.0.1",
                "--unproven-share",
                "100",
                // Long enough for a machine that stands still now and then.
                "--read-timeout",
                "6s",
                "--request-timeout",
                "20s",
            ],
            ..Start::default()
        }
        .start();
        let wires = wires(&gateway, &tls);
        Self {
            upstream,
            gateway,
            wires,
            runtime: runtime(),
            _dir: dir,
        }
    }

    /// One call of each kind over each wire, all at once.
    fn round(&self, fault: Fault, round: usize) -> Vec<(String, Kind, Got)> {
        let mut calls = Vec::new();
        for (name, wire) in &self.wires {
            for kind in Kind::ALL {
                let id = format!("{round}-{name}-{kind:?}-{}", fault.name());
                let (ask, wire) = (kind.ask(fault, &id), wire.clone());
                calls.push((id, kind, async move { wire.call(&ask).await }));
            }
        }
        self.runtime.block_on(async {
            let calls: Vec<_> = calls
                .into_iter()
                .map(|(id, kind, call)| (id, kind, tokio::spawn(call)))
                .collect();
            let mut all = Vec::new();
            for (id, kind, call) in calls {
                all.push((id, kind, call.await.expect("a call")));
            }
            all
        })
    }

    /// Nothing of the last round is left on any connection.
    fn is_in_step(&self, after: Fault) {
        for (n, kind) in [Kind::Get, Kind::Counted].into_iter().enumerate() {
            let id = format!("after-{}-{n}", after.name());
            let ask = kind.ask(Fault::None, &id);
            let got = self.runtime.block_on(self.wires[0].1.call(&ask));
            let body = String::from_utf8_lossy(&got.body).into_owned();
            assert_eq!(
                (got.status, &*body),
                (200, &*format!("{{\"id\":\"{id}\"}}"))
            );
        }
    }

    /// Reports a task done that has no name. Whether it held a slot.
    fn finish(&self, id: &str) -> bool {
        let path = format!("/apps/o%23a/tasks/call:{id}");
        let mut admin = Connection::to(self.gateway.admin);
        admin.call("DELETE", &path, &[], "").status == 200
    }

    fn slots(&self) -> f64 {
        self.gateway.metric("floodgate_task_slots_in_use", &[])
    }

    /// What is left of a route's limit, by the answer to one more call.
    fn left(&self, kind: Kind) -> u64 {
        let mut ask = kind.ask(Fault::None, "left");
        // Uploads that were cut off have been charged to the other address.
        ask.fields.push(("x-forwarded-for", "10.1.2.3".to_owned()));
        let got = self.runtime.block_on(self.wires[0].1.call(&ask));
        let left = got.ratelimit.split(';').find_map(|p| p.strip_prefix("r="));
        left.and_then(|left| left.parse().ok())
            .unwrap_or_else(|| panic!("{got:?}"))
    }
}

#[test]
fn whatever_the_upstream_does_each_call_ends_as_it_should_and_nothing_is_left() {
    let bench = Bench::start();
    // The first calls make what every later one finds.
    bench.round(Fault::None, 0);
    bench.upstream.close_all();
    let (gateway, upstream) = (&bench.gateway, &bench.upstream);
    let quiet = || {
        gateway.metric("floodgate_requests_in_flight", &[]) == 0.0
            // That of the question itself.
            && gateway.metric("floodgate_connections_open", &[]) == 0.0
            && upstream.open() == 0
    };
    soon("the first round is over", quiet);
    let before = descriptors(gateway);
    let mut expected = Vec::new();
    for fault in Fault::ALL {
        let all = bench.round(fault, 1);
        for (id, kind, got) in all {
            let due = due(fault, kind);
            let is_due = due
                .iter()
                .any(|(status, is_whole, _)| (*status, *is_whole) == (got.status, got.is_whole));
            let beginning = String::from_utf8_lossy(&got.body[..got.body.len().min(200)]);
            if !is_due {
                std::thread::sleep(std::time::Duration::from_millis(500));
                let lines = lines(gateway);
                panic!(
                    "{id}: {due:?}, not {:?} {beginning}: {:?}",
                    (got.status, got.is_whole),
                    lines.get(&id)
                );
            }
            if got.status == 200 && got.is_whole && kind != Kind::Head {
                let own = format!("{{\"id\":\"{id}\"}}");
                assert!(
                    got.body == b"{}" || got.body == own.as_bytes(),
                    "{id}: {beginning}"
                );
            }
            expected.push((id, kind, due, got.status));
        }
        bench.is_in_step(fault);
        upstream.close_all();
        // On this side too, so that the next call does not meet one that is about to be.
        soon("its connections are closed", || {
            upstream.open() == 0 && descriptors(gateway) <= before
        });
    }

    // Each has one line, which says what came of it.
    let is_written = |id: &str| gateway.log().contains(&format!("\"id\":\"{id}\""));
    soon("all lines", || {
        expected.iter().all(|(id, ..)| is_written(id))
    });
    let lines = lines(gateway);
    for (id, _, due, status) in &expected {
        let [line] = &lines[id][..] else {
            panic!("{id}: {:?}", lines[id]);
        };
        let is_due = due.iter().any(|(.., cause)| line["cause"] == *cause);
        assert!(is_due, "{due:?}: {line}");
        assert_eq!(line["status"], *status, "{line}");
        assert_eq!(line["pool"], "default", "{line}");
        assert_eq!(line["upstream"], upstream.addr.to_string(), "{line}");
        let us = |field: &str| line[field].as_u64().expect("a time");
        assert!(
            us("connect_us") + us("first_byte_us") <= us("upstream_us"),
            "{line}"
        );
    }
    // What may not run twice was sent once.
    let mut seen: HashMap<String, u32> = HashMap::new();
    for call in upstream.take_seen() {
        *seen.entry(call.id).or_default() += 1;
    }
    for (id, kind, _, status) in &expected {
        let times = seen.get(id).copied().unwrap_or(0);
        // None: it met a connection that was about to be closed.
        let is_right = match times {
            0 => *status == 502,
            1 => true,
            _ => kind.may_run_twice(),
        };
        assert!(is_right, "{id}: sent {times} times");
    }
    for cause in [
        "reset-before-headers",
        "header-timeout",
        "malformed",
        "body-timeout",
    ] {
        let of = |line: &&Vec<serde_json::Value>| line[0]["cause"] == cause;
        let logged = lines.values().filter(of).count();
        let counted = gateway.metric("floodgate_failures_total", &[&format!("\"{cause}\"")]);
        assert_eq!(counted, logged as f64, "{cause}");
    }

    // What the counters hold is what was charged less what was given back, once each.
    for (kind, route, cost) in [
        (Kind::Get, "f-get", 1),
        (Kind::Counted, "f-count", 3),
        (Kind::Upload, "f-up", 1),
    ] {
        let left = bench.left(kind);
        let of = |name: &str| gateway.metric(name, &[&format!("\"{route}:")]);
        let charged = of("floodgate_units_charged_total");
        let refunded = of("floodgate_units_refunded_total");
        let calls = upstream_calls(&lines, route) + 1;
        assert_eq!(charged, (calls * cost) as f64, "{route}");
        assert_eq!(left as f64, 100_000.0 - charged + refunded, "{route}");
        if route != "f-up" {
            assert_eq!(refunded, 0.0, "{route}");
        }
    }

    // Slots of calls are free; those of tasks that may run are their names'.
    for (id, kind, ..) in &expected {
        if *kind == Kind::Task {
            let held = bench.finish(id);
            let must = [
                "Silent", "Close", "Reset", "TooShort", "Garbage", "DripHead",
            ];
            let must = must.iter().any(|name| id.ends_with(&format!("-{name}")));
            assert!(held || !must, "{id} held nothing");
        }
    }
    soon("no slot is left", || bench.slots() == 0.0);
    upstream.close_all();
    soon("nothing is in flight", quiet);
    soon("all descriptors are closed", || {
        descriptors(gateway) <= before
    });
    assert_eq!(gateway.errors(), "");
}

/// Calls of a route that have a line.
fn upstream_calls(lines: &HashMap<String, Vec<serde_json::Value>>, route: &str) -> usize {
    let of = |line: &&serde_json::Value| line["route"] == route;
    lines.values().flatten().filter(of).count()
}
