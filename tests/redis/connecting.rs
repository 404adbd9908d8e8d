//! Connections: who gets one, to which server, and in what time.

use std::time::{Duration, Instant};

use floodgate::store::redis::connect::{ConnectError, Connection, Connector, RedisOptions, Secret};
use redis::{RedisResult, Value, cmd};

use crate::server::{Certificates, Cluster, Server, Watched, file, wait_until};

fn options(url: &str) -> RedisOptions {
    RedisOptions {
        // As slow as a busy machine may be.
        timeout: Duration::from_secs(10),
        ..url.parse().unwrap()
    }
}

fn connector(url: &str) -> Connector {
    Connector::new(options(url)).unwrap()
}

/// With the time-outs that there are where nothing else is said.
fn impatient(url: &str) -> Connector {
    Connector::new(url.parse().unwrap()).unwrap()
}

async fn ask(connector: &Connector, arguments: &[&str]) -> RedisResult<String> {
    send(&mut connector.connect().await?, arguments).await
}

async fn send(connection: &mut Connection, arguments: &[&str]) -> RedisResult<String> {
    let (name, rest) = arguments.split_first().unwrap();
    let answer = connection.send(cmd(name).arg(rest)).await?;
    Ok(redis::from_redis_value(answer)?)
}

/// A connection, after some failures perhaps.
async fn reach(connector: &Connector) -> Connection {
    for _ in 0..1200 {
        match connector.connect().await {
            Ok(connection) => return connection,
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
    panic!("{connector:?} cannot connect");
}

#[tokio::test]
async fn a_plain_server_answers() {
    let server = Server::start();
    let connector = connector(&format!("{}/3", server.url()));
    let mut connection = connector.connect().await.unwrap();
    assert_eq!(send(&mut connection, &["PING"]).await.unwrap(), "PONG");
    let clients = send(&mut connection.clone(), &["CLIENT", "LIST"]).await;
    let clients = clients.unwrap();
    assert!(clients.contains(" db=3 "), "{clients}");
    assert!(!connector.is_cluster());
}

#[tokio::test]
async fn an_error_answer_is_an_error() {
    let server = Server::start();
    let mut connection = connector(&server.url()).connect().await.unwrap();
    let error = connection.send(&cmd("NOSUCH")).await.unwrap_err();
    assert!(error.to_string().contains("unknown command"), "{error}");
}

#[tokio::test]
async fn a_password_or_an_acl_user_logs_in() {
    let server = Server::with(&["requirepass secret", "user gate on >other ~fg:* +get +ping"]);
    let port = server.port();
    let url = |user: &str| format!("redis://{user}127.0.0.1:{port}");
    for user in [":secret@", "default:secret@", "gate:other@"] {
        let pong = ask(&connector(&url(user)), &["PING"]).await;
        assert_eq!(pong.unwrap(), "PONG", "{user}");
    }
    for user in ["", ":secreT@", "gate:secret@", "nobody:other@"] {
        let error = ask(&connector(&url(user)), &["PING"]).await.unwrap_err();
        assert!(!format!("{error} {error:?}").contains("secreT"), "{error}");
    }
    let mut apart = options(&url(""));
    apart.username = Some("gate".into());
    apart.password = Some(Secret::new("other"));
    let apart = Connector::new(apart).unwrap();
    assert_eq!(ask(&apart, &["PING"]).await.unwrap(), "PONG");
    assert!(!format!("{apart:?}").contains("other"));
    let denied = ask(&apart, &["GET", "elsewhere"]).await.unwrap_err();
    assert_eq!(denied.code(), Some("NOPERM"));
}

#[tokio::test]
async fn tls_needs_our_authority_and_our_certificate() {
    let certificates = Certificates::new();
    let server = Server::tls(&certificates);
    let with = |ca: bool, client: bool| {
        let mut options = options(&server.url());
        options.ca = ca.then(|| certificates.path("ca.pem"));
        options.client_cert = client.then(|| certificates.path("client.pem"));
        options.client_key = client.then(|| certificates.path("client.key"));
        Connector::new(options).unwrap()
    };
    let pong = ask(&with(true, true), &["PING"]).await;
    assert_eq!(pong.unwrap(), "PONG");
    assert!(ask(&with(true, false), &["PING"]).await.is_err());
    assert!(ask(&with(false, true), &["PING"]).await.is_err());
}

#[test]
fn certificates_that_cannot_be_used_are_refused_at_once() {
    let certificates = Certificates::new();
    let dir = tempfile::tempdir().unwrap();
    let with = |url: &str, change: &dyn Fn(&mut RedisOptions)| {
        let mut options = options(url);
        change(&mut options);
        Connector::new(options).unwrap_err()
    };
    let error = with("rediss://a", &|o| o.ca = Some("/nowhere.pem".into()));
    assert!(matches!(error, ConnectError::Unreadable { .. }), "{error}");
    let empty = file(dir.path(), "empty.pem", "nothing");
    let error = with("rediss://a", &|o| o.ca = Some(empty.clone()));
    assert!(matches!(error, ConnectError::Empty { .. }), "{error}");
    let broken = "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n";
    let broken = file(dir.path(), "broken.pem", broken);
    for url in ["rediss://a", "rediss-cluster://a"] {
        let error = with(url, &|o| o.ca = Some(broken.clone()));
        assert!(matches!(error, ConnectError::Refused(_)), "{error}");
    }
    let cert = certificates.path("client.pem");
    let error = with("rediss://a", &|o| o.client_cert = Some(cert.clone()));
    assert!(matches!(error, ConnectError::HalfIdentity), "{error}");
    let error = with("redis://a", &|o| o.ca = Some(certificates.path("ca.pem")));
    assert!(matches!(error, ConnectError::PlainText), "{error}");
}

#[tokio::test]
async fn the_sentinels_lead_to_the_master_and_after_a_failover_to_the_new_one() {
    let mut watched = Watched::start();
    let connector = connector(&watched.url());
    let old = watched.nodes[0].port();
    let port = ["CONFIG", "GET", "port"];
    let mut connection = connector.connect().await.unwrap();
    let found = |answer: Value| redis::from_redis_value::<(String, u16)>(answer).unwrap().1;
    let answer = connection.send(cmd(port[0]).arg(&port[1..])).await;
    assert_eq!(found(answer.unwrap()), old);

    watched.nodes[0].kill();
    // One that hangs must not keep the others from being asked.
    wait_until("there is a new master", || watched.master_port() != old);
    watched.sentinels[0].freeze();
    let connector = impatient(&watched.url());
    // Named before it has been told: refused until then.
    let mut connection = reach(&connector).await;
    let answer = connection.send(cmd(port[0]).arg(&port[1..])).await;
    assert_eq!(found(answer.unwrap()), watched.nodes[1].port());
}

#[tokio::test]
async fn a_master_that_the_sentinels_do_not_know_is_an_error() {
    let watched = Watched::start();
    let url = watched.url().replace("/counters", "/others");
    let error = connector(&url).connect().await.unwrap_err();
    assert!(
        error.to_string().contains("no master of this name"),
        "{error}"
    );
}

#[tokio::test]
async fn a_cluster_answers_for_keys_on_all_nodes() {
    let cluster = Cluster::start(0);
    let connector = connector(&cluster.url());
    assert!(connector.is_cluster());
    let mut connection = connector.connect().await.unwrap();
    for i in 0..50 {
        let key = format!("fg:{i}");
        send(&mut connection, &["SET", &key, "x"]).await.unwrap();
        let script = ["EVAL", "return redis.call('GET', KEYS[1])", "1", &key];
        assert_eq!(send(&mut connection, &script).await.unwrap(), "x");
    }
    let holding = |node: &Server| node.cli(&["dbsize"]) != "0";
    assert!(cluster.nodes.iter().all(holding));
}

#[tokio::test]
async fn a_cluster_is_reached_and_answers_while_one_of_its_nodes_hangs() {
    let cluster = Cluster::start(1);
    cluster.nodes[0].freeze();
    let connector = impatient(&cluster.url());
    let promoted = |node: &Server| {
        let nodes = node.cli(&["cluster", "nodes"]);
        let lives = |line: &&str| line.contains("master") && !line.contains("fail");
        nodes.contains("fail") && nodes.lines().filter(lives).count() == 3
    };
    wait_until("a replica is promoted", || promoted(&cluster.nodes[1]));
    let mut connection = reach(&connector).await;
    for i in 0..20 {
        let key = format!("fg:{i}");
        let answer = send(&mut connection, &["SET", &key, "x"]).await;
        assert_eq!(answer.unwrap(), "OK", "{key}");
    }
}

#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "measures a real wait")]
async fn a_frozen_server_holds_nobody_longer_than_the_timeout() {
    let server = Server::start();
    let connector = impatient(&server.url());
    server.freeze();
    let start = Instant::now();
    assert!(connector.connect().await.unwrap_err().is_timeout());
    let waited = start.elapsed();
    assert!(waited >= connector.connect_timeout(), "{waited:?}");
    // Of half a second; what more it takes is a busy machine's.
    assert!(waited < Duration::from_secs(20), "{waited:?}");
    server.thaw();
    let patient = self::connector(&server.url());
    assert_eq!(ask(&patient, &["PING"]).await.unwrap(), "PONG");
}

#[tokio::test]
async fn a_server_that_comes_back_is_empty_and_answers() {
    let mut server = Server::start();
    let connector = connector(&server.url());
    ask(&connector, &["SET", "a", "1"]).await.unwrap();
    server.stop();
    assert!(connector.connect().await.is_err());
    server.restart_empty();
    assert_eq!(ask(&connector, &["DBSIZE"]).await.unwrap(), "0");
    assert!(server.log().contains("Ready to accept connections"));
}
