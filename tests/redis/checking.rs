//! `floodgate check --connect`.

use std::net::TcpListener;
use std::process::Command;

use floodgate::standin::{StandIn, StandInOptions};

use crate::server::{Certificates, Cluster, Server, Watched};

/// What a busy machine takes is no answer of the store's.
const PATIENT: [&str; 2] = ["--store-timeout", "5s"];

/// The exit code, standard output and standard error.
fn check(store: &str, more: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_floodgate"))
        .env_clear()
        .args(["check", "--connect", "--store", store])
        .args(PATIENT)
        .args(more)
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let code = output.status.code().unwrap();
    (code, text(output.stdout), text(output.stderr))
}

#[test]
fn a_good_store_is_named_with_its_version_and_clock() {
    let server = Server::start();
    let clock = floodgate::clock::Clock::start();
    let began = clock.now().mono_us;
    let (code, out, err) = check(&server.url(), &[]);
    let took_ms = (clock.now().mono_us - began) / 1000;
    assert_eq!(code, 0, "{err}");
    let line = out.lines().last().unwrap();
    let start = format!("good: {} is Redis ", server.url());
    assert!(line.starts_with(&start), "{line}");
    let ahead = line.split(", noeviction, its clock ").nth(1).unwrap();
    let ms: u64 = ahead.split(' ').next().unwrap().parse().unwrap();
    // The same clock: no further away than it took to ask it.
    assert!(ms <= took_ms, "{line}, asked in {took_ms} ms");
    assert_eq!(code, check("memory", &[]).0);
}

#[test]
fn nothing_is_left_behind() {
    let server = Server::start();
    assert_eq!(check(&server.url(), &[]).0, 0);
    assert_eq!(server.cli(&["dbsize"]), "0");
}

#[test]
fn a_store_that_is_not_there_is_a_mistake_without_its_password() {
    let mut server = Server::start();
    server.stop();
    let url = server.url().replace("://", "://user:secret@");
    let (code, out, err) = check(&url, &[]);
    assert_eq!((code, out.as_str()), (1, ""));
    let start = format!("{}: cannot connect: ", server.url());
    assert!(err.starts_with(&start), "{err}");
    assert!(!err.contains("secret"), "{err}");
}

/// The one line that says why nothing can be had there.
fn mistake(store: &str, env: &[(&str, &str)]) -> String {
    mistake_with(store, env, &PATIENT)
}

fn mistake_with(store: &str, env: &[(&str, &str)], more: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_floodgate"))
        .env_clear()
        .envs(env.iter().copied())
        .args(["check", "--connect", "--store", store])
        .args(more)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    let (line, rest) = text.split_once('\n').unwrap();
    assert_eq!(rest, "1 mistake\n", "{text}");
    line.to_owned()
}

#[test]
fn a_node_of_a_cluster_is_told_from_a_server_of_its_own() {
    let cluster = Cluster::start(0);
    for node in &cluster.nodes {
        let line = mistake(&node.url(), &[]);
        assert!(
            line.ends_with(
                "part of a cluster; write redis-cluster://host:port with some of its nodes"
            ),
            "{line}"
        );
    }
    let alone = Server::start();
    let line = mistake(&alone.url().replace("redis:", "redis-cluster:"), &[]);
    assert!(
        line.ends_with("no part of a cluster; write redis://host:port"),
        "{line}"
    );
}

#[test]
fn a_password_that_is_wrong_or_missing_is_said_to_be_so() {
    let server = Server::with(&["requirepass secret"]);
    for url in [
        server.url(),
        server.url().replace("://", "://:wrong@"),
        server.url().replace("://", "://nobody:secret@"),
    ] {
        let line = mistake(&url, &[]);
        assert!(
            line.contains(
                ": cannot connect: the user or the password is wrong or missing; set them with"
            ),
            "{line}"
        );
        assert!(!line.contains("wrong@"), "{line}");
    }
    let right = [("FLOODGATE_STORE_PASSWORD", "secret")];
    let output = Command::new(env!("CARGO_BIN_EXE_floodgate"))
        .envs(right)
        .args(["check", "--connect", "--store", &server.url()])
        .args(PATIENT)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn who_does_not_answer_or_not_in_tls_is_told_what_to_do() {
    let mut server = Server::start();
    let line = mistake(&server.url().replace("redis:", "rediss:"), &[]);
    assert!(
        line.ends_with(
            "the server does not answer in TLS; write redis instead of rediss in its URL, or correct \
             the port"
        ),
        "{line}"
    );
    server.stop();
    let line = mistake(&server.url(), &[]);
    assert!(
        line.ends_with("nothing listens there; start the server, or correct the address"),
        "{line}"
    );
    let line = mistake(&server.url().replace("redis:", "redis-cluster:"), &[]);
    assert!(line.contains("nothing listens there; start the"), "{line}");
    let line = mistake("redis://no-such-host.invalid", &[]);
    assert!(line.ends_with("; correct the host's name"), "{line}");
    let certificates = Certificates::new();
    let server = Server::tls(&certificates);
    let line = mistake(&server.url(), &[]);
    assert!(
        line.ends_with(
            "; give the certificates of its authority with --store-ca, and our own with \
             --store-client-cert and --store-client-key if it asks for one"
        ),
        "{line}"
    );
    let line = mistake(&server.url().replace("rediss:", "redis:"), &[]);
    assert!(
        line.ends_with("if that port speaks TLS, write rediss instead of redis"),
        "{line}"
    );
}

#[test]
fn what_is_at_the_address_instead_is_named() {
    let server = Server::start();
    let sentinel = server.url().replace("redis:", "redis-sentinel:") + "/counters";
    let line = mistake(&sentinel, &[]);
    assert!(
        line.contains("this server is no sentinel; write redis://"),
        "{line}"
    );
    let line = mistake(&format!("{}/99", server.url()), &[]);
    assert!(
        line.contains("no database of this number; correct it"),
        "{line}"
    );
    let backend = StandIn::start(StandInOptions::default()).unwrap();
    let line = mistake(&format!("redis://{}", backend.addr), &[]);
    assert!(line.contains("is no Redis; correct the address"), "{line}");
    let line = mistake(&format!("rediss://{}", backend.addr), &[]);
    assert!(line.contains("does not answer in TLS"), "{line}");
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = silent.local_addr().unwrap();
    let line = mistake_with(&format!("rediss://{silent}"), &[], &[]);
    assert!(line.contains("check that it runs and speaks TLS"), "{line}");
    let watched = Watched::start();
    let line = mistake(&watched.url().replace("/counters", "/others"), &[]);
    assert!(
        line.contains("correct the name at the end of the URL"),
        "{line}"
    );
}

#[test]
fn missing_rights_are_named_with_what_gives_them() {
    let server = Server::with(&[
        "user few on >few ~fg:* +@all -zadd -time -info -script",
        "user elsewhere on >elsewhere ~other:* +@all",
    ]);
    let url = |user: &str| server.url().replace("://", &format!("://{user}:{user}@"));
    let (code, _, err) = check(&url("few"), &[]);
    assert_eq!(code, 1);
    let line = format!(
        "{}: no right to use INFO, TIME, SCRIPT, ZADD; give it with ACL SETUSER few +info +time \
         +script +zadd\n1 mistake\n",
        server.url()
    );
    assert_eq!(err, line);
    let (code, _, err) = check(&url("elsewhere"), &[]);
    assert_eq!(code, 1);
    assert!(
        err.contains("ACL SETUSER elsewhere ~fg:*\n1 mistake"),
        "{err}"
    );
    let (code, _, err) = check(&url("elsewhere"), &["--store-prefix", "other"]);
    assert_eq!(code, 0, "{err}");
}

#[test]
fn a_store_that_may_evict_counters_must_be_accepted() {
    let server = Server::with(&["maxmemory-policy allkeys-lru"]);
    let (code, _, err) = check(&server.url(), &[]);
    assert_eq!(code, 1);
    assert!(err.contains("maxmemory-policy is allkeys-lru"), "{err}");
    let (code, out, err) = check(&server.url(), &["--store-allow-eviction"]);
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("allkeys-lru"), "{out}");
}

#[test]
fn a_store_that_takes_no_writes_is_a_mistake() {
    let master = Server::start();
    let replica = Server::with(&[&format!("replicaof 127.0.0.1 {}", master.port())]);
    let (code, _, err) = check(&replica.url(), &[]);
    assert_eq!(code, 1);
    assert!(err.contains(": a replica; "), "{err}");
    assert!(err.ends_with("\n1 mistake\n"), "{err}");
    let full = Server::with(&["maxmemory 1"]);
    let (code, _, err) = check(&full.url(), &[]);
    assert_eq!(code, 1);
    assert!(err.contains(": takes no writes: "), "{err}");
}

#[test]
fn every_master_of_a_cluster_is_checked() {
    let cluster = Cluster::start(0);
    let (code, out, err) = check(&cluster.url(), &[]);
    assert_eq!(code, 0, "{err}");
    for node in &cluster.nodes {
        assert!(out.contains(&format!("good: {} is ", node.url())), "{out}");
    }
    cluster.nodes[2].cli(&["config", "set", "maxmemory-policy", "allkeys-lru"]);
    let (code, _, err) = check(&cluster.url(), &[]);
    assert_eq!(code, 1);
    assert!(err.starts_with(&cluster.nodes[2].url()), "{err}");
}

#[test]
fn sentinels_lead_to_the_master_that_is_checked() {
    let watched = Watched::start();
    let (code, out, err) = check(&watched.url(), &[]);
    assert_eq!(code, 0, "{err}");
    assert!(
        out.contains(&format!("good: {} is ", watched.url())),
        "{out}"
    );
}

#[test]
fn a_certificate_that_cannot_be_read_is_unreadable() {
    let (code, _, err) = check("rediss://a", &["--store-ca", "/nowhere.pem"]);
    assert_eq!(code, 2);
    assert!(
        err.starts_with("store: cannot read /nowhere.pem: "),
        "{err}"
    );
}
