//! A store that cannot be used because somebody set something wrong: said once, as an error, and
//! plainly; calls are answered all the same.

use crate::gateways::{IMPATIENT, ROUTES, calls, gateway, is_up, with_routes};
use crate::harness::Gateway;
use crate::server::{Cluster, Server, wait_until};

/// The lines of this level that the gateway has logged about its store.
fn lines(gateway: &Gateway, level: &str) -> Vec<serde_json::Value> {
    let log = gateway.whole_log();
    let lines = log
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let said = |line: &serde_json::Value| line["level"] == level && line["store"].is_string();
    lines.filter(said).collect()
}

fn is_said_once(gateway: &Gateway, why: &str) {
    wait_until("it is said", || !lines(gateway, "ERROR").is_empty());
    // Many probes later.
    std::thread::sleep(std::time::Duration::from_millis(800));
    let errors = lines(gateway, "ERROR");
    assert_eq!(errors.len(), 1, "{errors:?}");
    let said = errors[0]["why"].as_str().unwrap();
    assert!(said.contains(why), "{said}");
    assert!(!is_up(gateway));
    // By this gateway alone, and no call waits.
    let tally = calls(gateway, "/o/a/t/local", 12);
    assert_eq!((tally.admitted, tally.denied), (10, 2), "{tally:?}");
    assert_eq!(lines(gateway, "ERROR").len(), 1);
    assert_eq!(lines(gateway, "WARN").len(), 0);
}

#[test]
fn a_node_of_a_cluster_is_not_taken_for_a_server_of_its_own() {
    let cluster = Cluster::start(0);
    let gateway = gateway(&cluster.nodes[0].url(), &[]);
    is_said_once(&gateway, "write redis-cluster://");
}

#[test]
fn a_server_of_its_own_is_not_taken_for_a_cluster() {
    let server = Server::start();
    let gateway = gateway(&server.url().replace("redis:", "redis-cluster:"), &[]);
    is_said_once(&gateway, "no part of a cluster; write redis://");
}

#[test]
fn a_password_that_is_wrong_or_missing_is_said() {
    let server = Server::with(&["requirepass secret"]);
    for user in ["", ":wrong@"] {
        let url = server.url().replace("://", &format!("://{user}"));
        for url in [&url, &url.replace("redis:", "redis-cluster:")] {
            let gateway = gateway(url, &[]);
            is_said_once(&gateway, "the password is wrong or missing; set them with");
        }
    }
}

#[test]
fn a_server_without_tls_is_said() {
    let server = Server::start();
    for scheme in ["rediss:", "rediss-cluster:"] {
        let gateway = gateway(&server.url().replace("redis:", scheme), &[]);
        is_said_once(&gateway, "does not answer in TLS; write redis");
    }
}

#[test]
fn a_password_that_is_set_right_is_used() {
    let server = Server::with(&["requirepass other"]);
    let gateway = gateway(&server.url().replace("://", "://:secret@"), &[]);
    assert!(!is_up(&gateway));
    server.cli(&["-a", "other", "config", "set", "requirepass", "secret"]);
    wait_until("it is used", || is_up(&gateway));
}

#[test]
fn what_libraries_log_names_no_file_of_the_machine_that_built_it() {
    let mut server = Server::start();
    let gateway = with_routes(ROUTES, &server.url(), &IMPATIENT);
    wait_until("it is up", || is_up(&gateway));
    server.kill();
    calls(&gateway, "/o/a/t/local", 3);
    wait_until("it is given up", || !is_up(&gateway));
    server.restart();
    wait_until("it is back", || is_up(&gateway));
    let mut cluster = Cluster::start(0);
    let other = with_routes(ROUTES, &cluster.url(), &IMPATIENT);
    wait_until("it is up", || is_up(&other));
    cluster.nodes[0].kill();
    wait_until("a part is given up", || !is_up(&other));
    for gateway in [&gateway, &other] {
        wait_until("it is in the log", || {
            gateway.whole_log().contains("out of use")
        });
        let log = gateway.whole_log();
        for path in ["registry", "log.file", "/src/"] {
            assert!(!log.contains(path), "{path}: {log}");
        }
    }
}
