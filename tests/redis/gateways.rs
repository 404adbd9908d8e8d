//! Gateway processes that share a store, and what they answer.

use std::time::{Duration, Instant};

use crate::harness::{Connection, Gateway, Start};
use crate::server::wait_until;

/// Longer than any call may take that finds the store gone: [`IMPATIENT`] gateways wait 200 ms for
/// it, and a busy machine takes its time too.
pub(crate) const BOUND: Duration = Duration::from_secs(10);

/// For a store that goes away: of those that stay, a gateway is as patient as a busy machine asks
/// for, which would be an outage otherwise.
pub(crate) const IMPATIENT: [&str; 2] = ["--store-timeout", "200ms"];

/// How long a quota that is used up is looked at.
pub(crate) const LOOKING_ON: Duration = Duration::from_millis(500);

/// Windows so long that no test waits for one.
pub(crate) const ROUTES: &str = r#"
[[route]]
name = "t-local"
calls = ["GET /t/local"]
v3 = { limits = ["10/3600s"], ip_copy = false }

[[route]]
name = "t-day"
calls = ["GET /t/day"]
v3 = { limits = ["11/day"], ip_copy = false }

[[route]]
name = "t-allow"
calls = ["GET /t/allow"]
v3 = { limits = [{ rate = "2/3600s", on_store_failure = "allow" }], ip_copy = false }

[[route]]
name = "t-deny"
calls = ["GET /t/deny"]
v3 = { limits = [{ rate = "1000/3600s", on_store_failure = "deny" }], ip_copy = false }

[[route]]
name = "t-slot"
calls = ["POST /t/slot"]
v3 = { limits = ["2 tasks"], ip_copy = false }

[[route]]
name = "push-task"
v3 = { limits = [{ rate = "1 tasks", hold = "task", max_hold = "600s" }], ip_copy = false }
"#;

/// A gateway with these flags besides, before a backend of its own.
pub(crate) fn gateway(url: &str, args: &[&str]) -> Gateway {
    with_routes(ROUTES, url, args)
}

pub(crate) fn with_routes(routes: &str, url: &str, args: &[&str]) -> Gateway {
    let mut all = vec!["--store", url, "--threads", "2"];
    if !args.contains(&"--store-timeout") {
        all.extend(["--store-timeout", "10s"]);
    }
    // Calls of one address may take all slots at once, whatever is known of their tokens.
    all.extend(["--unproven-share", "100"]);
    all.extend(args);
    Start {
        routes,
        args: &all,
        ..Start::default()
    }
    .start()
}

/// Two gateways on the store at these URLs, with these flags besides, that know each other.
pub(crate) fn pair(urls: [&str; 2], args: &[&str]) -> (Gateway, Gateway) {
    let [a, b] = urls.map(|url| gateway(url, args));
    acquainted(&[&a, &b]);
    (a, b)
}

/// Waits until each of these gateways knows of all, and believes a store that was found empty.
pub(crate) fn acquainted(gateways: &[&Gateway]) {
    let all = f64::from(u32::try_from(gateways.len()).unwrap());
    for gateway in gateways {
        wait_until("the gateways know of each other", || {
            gateway.metric("floodgate_store_gateways", &[]) == all
        });
    }
    std::thread::sleep(Duration::from_millis(1600));
}

pub(crate) fn is_up(gateway: &Gateway) -> bool {
    gateway.metric("floodgate_store_up", &[]) == 1.0
}

/// What became of a number of calls.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) admitted: u32,
    /// 429, with a time after which to come again.
    pub(crate) denied: u32,
    /// 503.
    pub(crate) unavailable: u32,
    pub(crate) longest: Duration,
}

/// Calls one after the other.
pub(crate) fn calls(gateway: &Gateway, path: &str, count: usize) -> Tally {
    let mut connection = gateway.connect();
    let mut tally = Tally::default();
    for _ in 0..count {
        call(&mut connection, path, &mut tally);
    }
    tally
}

#[expect(clippy::disallowed_methods, reason = "measures a real wait")]
pub(crate) fn call(connection: &mut Connection, path: &str, tally: &mut Tally) {
    let start = Instant::now();
    let answer = connection.call("GET", path, &[], "");
    tally.longest = tally.longest.max(start.elapsed());
    match answer.status {
        200 => tally.admitted += 1,
        429 => {
            let after = answer.header("retry-after").map(str::parse::<u64>);
            assert!(matches!(after, Some(Ok(1..))), "{:?}", answer.headers);
            tally.denied += 1;
        }
        503 => tally.unavailable += 1,
        other => panic!("{other}: {}", answer.text()),
    }
}

/// Calls until there have been `all` admitted with those of before, and then for a while more:
/// how many there were at last.
#[expect(clippy::disallowed_methods, reason = "looks on for a while")]
pub(crate) fn exhaust(gateways: &[&Gateway], path: &str, before: u32, all: u32) -> u32 {
    let mut sum = before;
    let mut round = || {
        for gateway in gateways {
            sum += calls(gateway, path, 2).admitted;
        }
        sum
    };
    wait_until("the quota is used up", || round() >= all);
    let end = Instant::now() + LOOKING_ON;
    let mut sum = 0;
    while Instant::now() < end {
        sum = round();
        std::thread::sleep(Duration::from_millis(50));
    }
    sum
}
