//! A gateway that reloads goes on with what it has leased, and with the slots that it holds.

use std::time::{Duration, Instant};

use crate::gateways::{acquainted, exhaust};
use crate::harness::{Connection, Gateway, Start};
use crate::load::{Call, during, most_in_a_window, sum};
use crate::server::{Server, wait_until};

const DAY: u32 = 3_000;
const SECOND: u32 = 200;

/// Limits change their numbers with each.
fn routes(nth: usize) -> String {
    let route = |name: &str, limit: &str| {
        format!(
            "[[route]]\nname = \"{name}\"\ncalls = [\"GET /t/{name}\"]\n\
             v3 = {{ limits = [\"{limit}\"], ip_copy = false }}\n"
        )
    };
    let mut all: String = (0..nth % 3)
        .map(|n| route(&format!("new{n}"), "5/s"))
        .collect();
    all += &route("day", &format!("{DAY}/day"));
    all += &route("second", &format!("{SECOND}/s"));
    all + "[[route]]\nname = \"slot\"\ncalls = [\"POST /t/slot\"]\n\
           v3 = { limits = [\"1 tasks\"], ip_copy = false }\n"
}

fn reloads(gateway: &Gateway) -> f64 {
    gateway.metric("floodgate_config_reloads_total", &["applied"])
}

#[test]
#[expect(clippy::disallowed_methods, reason = "windows of real time")]
fn leases_and_slots_survive_a_storm_of_reloads() {
    let server = Server::start();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("routes.toml");
    let beside = dir.path().join("new");
    std::fs::write(&path, routes(0)).unwrap();
    let (path_given, url) = (path.display().to_string(), server.url());
    let mut args = vec!["--routes", &path_given, "--watch", "false", "--store", &url];
    // A busy machine is no outage: then each gateway would go by its share.
    args.extend(["--store-timeout", "10s", "--unproven-share", "100"]);
    args.extend(["--read-timeout", "600s"]);
    let start = || {
        Start {
            args: &args,
            ..Start::default()
        }
        .start()
    };
    let gateways = [start(), start()];
    let gateways: Vec<&Gateway> = gateways.iter().collect();
    acquainted(&gateways);
    let mut running = gateways[0].connect();
    running.send_call("POST", "/o/a/t/slot", &["x-standin-delay-ms: 600000"], "{}");
    let is_taken = |gateway: &Gateway| gateway.call("POST", "/o/a/t/slot", "{}").status == 403;
    wait_until("it runs", || {
        gateways[0].metric("floodgate_task_slots_in_use", &[]) == 1.0
    });
    assert!(is_taken(gateways[1]));
    let hits = |gateway: &Gateway| gateway.metric("floodgate_store_lease_hits_total", &[]);
    let load = [Call::get("/o/a/t/day"), Call::get("/o/a/t/second")];
    let ([day, second], ()) = during(&gateways, load, Instant::now(), || {
        let mut nth = 0;
        wait_until("each has reloaded often", || {
            nth += 1;
            // Half a file may be a good one, with half the limits.
            std::fs::write(&beside, routes(nth)).unwrap();
            std::fs::rename(&beside, &path).unwrap();
            for gateway in &gateways {
                gateway.signal("-HUP");
            }
            std::thread::sleep(Duration::from_millis(120));
            gateways.iter().all(|gateway| reloads(gateway) > 5.0)
        });
    });
    for gateway in &gateways {
        assert!(hits(gateway) > 0.0, "{}", hits(gateway));
        assert!(is_taken(gateway), "the slot of a call that runs");
    }
    let alone = |gateway: &&Gateway| gateway.metric("floodgate_store_local_decisions_total", &[]);
    let alone: f64 = gateways.iter().map(alone).sum();
    assert!(alone == 0.0, "{alone} decided without the store");
    let most = most_in_a_window(&second, Duration::from_secs(1));
    assert!(most <= SECOND, "{most} in a second");
    // Nothing that was leased is lost, and nothing is given twice.
    let is_denied = |gateway: &&Gateway| {
        let labels = ["route=\"day\"", "verb=\"deny\""];
        gateway.metric("floodgate_decisions_total", &labels) > 0.0
    };
    let load = [Call::get("/o/a/t/day")];
    let ([rest], ()) = during(&gateways, load, Instant::now(), || {
        wait_until("the day is used up", || gateways.iter().any(is_denied));
    });
    let before = sum(&day) + sum(&rest);
    assert_eq!(exhaust(&gateways, "/o/a/t/day", before, DAY), DAY);
    // It ends with its gateway, and there is nobody who would tell.
    gateways[0].signal("-KILL");
    wait_until("the slot is free", || {
        let mut connection = Connection::to(gateways[1].addr);
        connection.call("POST", "/o/a/t/slot", &[], "{}").status == 200
    });
}
