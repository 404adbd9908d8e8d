//! Several upstreams, and upstreams over TLS.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use floodgate::clock::Clock;
use floodgate::standin::{StandIn, StandInOptions};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio_rustls::rustls::{self, ServerConfig, ServerConnection, StreamOwned};

use crate::ROUTES;
use crate::frames::{Peer, call};
use crate::harness::{BIN, Gateway, Start};

/// An address where nobody listens.
pub(crate) fn dead() -> SocketAddr {
    let bound = tokio::net::TcpSocket::new_v4().expect("a socket");
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    bound.bind(any).expect("a port");
    let addr = bound.local_addr().expect("an address");
    // Nobody else gets it before the test is over.
    std::mem::forget(bound);
    addr
}

#[test]
fn a_dead_upstream_costs_no_call_while_another_lives() {
    let dead = format!("http://{}", dead());
    let gateway = Start {
        args: &["--upstream", &dead],
        ..Start::default()
    }
    .start();
    let mut connection = gateway.connect();
    for n in 0..12 {
        let (method, body) = [("GET", ""), ("POST", "{}")][n % 2];
        let answer = connection.call(method, "/o/a/t/any", &[], body);
        assert_eq!(answer.status, 200, "{n}: {}", answer.text());
    }
    assert_eq!(gateway.backend().count(), 12);
    assert_eq!(
        gateway.metric("floodgate_units_refunded_total", &["unmatched"]),
        0.0
    );
}

#[test]
fn upstreams_take_turns_and_one_that_dies_is_passed_over() {
    let other = StandIn::start(StandInOptions::default()).expect("a stand-in backend");
    let url = format!("http://{}", other.addr);
    let gateway = Start {
        args: &["--upstream", &url, "--threads", "1"],
        ..Start::default()
    }
    .start();
    let mut connection = gateway.connect();
    let mut call = || connection.call("GET", "/o/a/users/x", &[], "").status;
    assert_eq!([call(), call(), call(), call()], [200; 4]);
    assert_eq!((gateway.backend().count(), other.count()), (2, 2));
    drop(other);
    assert_eq!([call(), call(), call(), call()], [200; 4]);
    assert_eq!(gateway.backend().count(), 6);
}

#[test]
fn each_address_is_tried_once_before_a_call_is_given_up() {
    // A port that is only let go of may be the stand-in's next.
    let urls: Vec<String> = (0..6).map(|_| format!("http://{}", dead())).collect();
    let args: Vec<&str> = urls.iter().flat_map(|url| ["--upstream", &**url]).collect();
    let gateway = Start {
        args: &args,
        ..Start::default()
    }
    .start();
    for n in 0..7 {
        let answer = gateway.call("POST", "/o/a/t/any", "{}");
        assert_eq!(answer.status, 200, "{n}: {}", answer.text());
    }
    assert_eq!(gateway.backend().count(), 7);
}

#[test]
fn addresses_that_take_no_connection_share_the_time_to_connect() {
    // Nobody accepts, and the queue is full: what comes now waits.
    let full = || {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)
            .expect("a socket");
        let any: SocketAddr = "127.0.0.1:0".parse().expect("an address");
        socket.bind(&any.into()).expect("a port");
        socket.listen(0).expect("a listener");
        let addr = socket.local_addr().expect("an address").as_socket();
        let addr = addr.expect("an address");
        let waiting = TcpStream::connect(addr).expect("a connection");
        (socket, waiting, format!("http://{addr}"))
    };
    let all = [full(), full(), full()];
    let args: Vec<&str> = all
        .iter()
        .flat_map(|(.., url)| ["--upstream", &**url])
        .collect();
    let gateway = Start {
        args: &[&args[..], &["--connect-timeout", "4s"]].concat(),
        upstream: Some(dead()),
        ..Start::default()
    }
    .start();
    let clock = Clock::start();
    for _ in 0..2 {
        let began = clock.now();
        let answer = gateway.call("GET", "/o/a/t/any", "");
        assert!(matches!(answer.status, 502 | 504), "{}", answer.text());
        let took_us = clock.now().mono_us - began.mono_us;
        // Each with all of the time would take twelve seconds.
        assert!((2_800_000..10_000_000).contains(&took_us), "{took_us}");
    }
}

#[test]
fn a_502_tells_an_upstream_that_broke_off_from_one_that_is_not_there() {
    let gateway = Start::default().start();
    let text = |gateway: &Gateway, wishes: &[&str]| {
        let mut connection = gateway.connect();
        let answer = connection.call("GET", "/o/a/users/x", wishes, "");
        assert_eq!(answer.status, 502);
        answer.error().1
    };
    assert_eq!(
        text(&gateway, &["x-standin-close: before"]),
        "The upstream closed the connection before it had answered."
    );
    let gateway = Start {
        upstream: Some(dead()),
        ..Start::default()
    }
    .start();
    assert_eq!(text(&gateway, &[]), "The upstream could not be reached.");
}

/// An upstream over TLS for `localhost`, and the authority that vouches for it.
pub(crate) struct Secure {
    pub(crate) url: String,
    pub(crate) ca: String,
    /// What each connection asked for: server name, and head of the request.
    pub(crate) asked: Receiver<(String, String)>,
}

/// What a server for `localhost` needs, and the authority that vouches for it.
fn certified() -> (ServerConfig, String) {
    let mut params = CertificateParams::new(Vec::new()).expect("parameters");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_key = KeyPair::generate().expect("a key");
    let ca = params.self_signed(&ca_key).expect("an authority").pem();
    let issuer = Issuer::new(params, ca_key);
    let key = KeyPair::generate().expect("a key");
    let certificate = CertificateParams::new(vec!["localhost".to_owned()])
        .expect("parameters")
        .signed_by(&key, &issuer)
        .expect("a certificate");
    let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .expect("a server");
    (config, ca)
}

pub(crate) fn secure() -> Secure {
    let (config, ca) = certified();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let (ask, asked) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let tls = ServerConnection::new(config.clone()).expect("a connection");
            let mut tls = StreamOwned::new(tls, stream);
            let (mut head, mut byte) = (Vec::new(), [0]);
            while !head.ends_with(b"\r\n\r\n") && matches!(tls.read(&mut byte), Ok(1)) {
                head.extend(byte);
            }
            // A caller that does not trust us has gone by now.
            let name = tls.conn.server_name().unwrap_or_default().to_owned();
            let head = String::from_utf8_lossy(&head).to_lowercase();
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";
            if tls.write_all(answer).is_ok() && ask.send((name, head)).is_err() {
                return;
            }
        }
    });
    Secure {
        url: format!("https://localhost:{port}"),
        ca,
        asked,
    }
}

#[test]
fn an_https_upstream_is_asked_by_its_name_and_gets_the_callers_host() {
    let upstream = secure();
    let dir = tempfile::tempdir().expect("a folder");
    let ca = dir.path().join("ca.pem");
    std::fs::write(&ca, &upstream.ca).expect("a file");
    let gateway = Start {
        args: &["--upstream-ca", ca.to_str().expect("UTF-8")],
        url: Some(upstream.url),
        ..Start::default()
    }
    .start();
    let answer = gateway.call("GET", "/o/a/users/x", "");
    assert_eq!((answer.status, answer.text().as_str()), (200, "ok"));
    let (name, head) = upstream.asked.recv().expect("a request");
    assert_eq!(name, "localhost");
    assert!(head.starts_with("get /o/a/users/x http/1.1\r\n"), "{head}");
    assert!(head.contains("\r\nhost: gateway\r\n"), "{head}");
}

/// An upstream that speaks HTTP/2 over TLS and nothing else. It tells what each call came with: the
/// server name of the handshake, the version, and the method and path.
fn secure_http2() -> (u16, String, Receiver<(String, http::Version, String)>) {
    let (mut config, ca) = certified();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    listener.set_nonblocking(true).expect("a socket option");
    let (ask, asked) = channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
            let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
            while let Ok((tcp, _)) = listener.accept().await {
                let Ok(tls) = acceptor.accept(tcp).await else {
                    continue;
                };
                let name = tls.get_ref().1.server_name().unwrap_or_default().to_owned();
                let ask = ask.clone();
                let service = hyper::service::service_fn(move |request: http::Request<_>| {
                    let _: &hyper::body::Incoming = request.body();
                    let said = request.headers().get("forwarded");
                    let said = said.and_then(|said| said.to_str().ok()).unwrap_or_default();
                    let uri = request.uri();
                    let what = format!("{} {} {said}", request.method(), uri.path());
                    let _ = ask.send((name.clone(), request.version(), what));
                    let body = http_body_util::Full::new(bytes::Bytes::from_static(b"ok"));
                    std::future::ready(Ok::<_, std::convert::Infallible>(http::Response::new(body)))
                });
                let io = hyper_util::rt::TokioIo::new(tls);
                let executor = hyper_util::rt::TokioExecutor::new();
                let serving = hyper::server::conn::http2::Builder::new(executor);
                tokio::spawn(serving.serve_connection(io, service));
            }
        });
    });
    (port, ca, asked)
}

#[test]
fn an_https_upstream_speaks_http2_with_an_authority_and_a_name_of_its_own() {
    let (port, text, asked) = secure_http2();
    let dir = tempfile::tempdir().expect("a folder");
    let ca = dir.path().join("ca.pem");
    std::fs::write(&ca, text).expect("a file");
    let file = dir.path().join("floodgate.toml");
    // By its address, so that the name is the one that is set.
    let pool = format!(
        "[[pool]]\nname = \"h2\"\nroutes = [\"unmatched\"]\nca = {ca:?}\nsni = \"localhost\"\n\
         http2 = true\nupstreams = [\"https://127.0.0.1:{port}\"]\n"
    );
    std::fs::write(&file, pool).expect("a file");
    let gateway = Start {
        args: &["--config", file.to_str().expect("UTF-8"), "--h2c"],
        upstream: Some(dead()),
        ..Start::default()
    }
    .start();
    let who = "for=127.0.0.1;proto=http;host=";
    let mut connection = gateway.connect();
    for (method, body) in [("GET", ""), ("POST", "{\"a\":1}")] {
        let answer = connection.call(method, "/o/a/t/any", &[], body);
        assert_eq!((answer.status, answer.text().as_str()), (200, "ok"));
        let (name, version, what) = asked.recv().expect("a call");
        assert_eq!(name, "localhost");
        assert_eq!(version, http::Version::HTTP_2);
        assert_eq!(what, format!("{method} /o/a/t/any {who}\"gateway\""));
    }
    // A caller of HTTP/2 has no `Host`.
    let mut peer = Peer::new(&gateway);
    peer.ask(1, &call("GET", "/o/a/t/any", &[]));
    assert_eq!(peer.answered(), Some(200));
    let (.., what) = asked.recv().expect("a call");
    assert_eq!(what, format!("GET /o/a/t/any {who}\"gateway\""));
}

#[test]
fn an_https_upstream_that_nobody_vouches_for_gets_no_call_and_costs_none() {
    let upstream = secure();
    let gateway = Start {
        routes: ROUTES,
        url: Some(upstream.url),
        ..Start::default()
    }
    .start();
    for _ in 0..4 {
        let answer = gateway.call("GET", "/o/a/t/app", "");
        assert_eq!(answer.status, 502);
        assert_eq!(answer.error().0, "bad_gateway");
    }
    assert!(upstream.asked.try_recv().is_err());
}

#[test]
fn certificates_that_cannot_be_used_are_one_clear_line_and_exit_1() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).expect("a file");
        path
    };
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    for path in [
        file("empty.pem", ""),
        file("broken.pem", broken),
        dir.path().join("nowhere.pem"),
    ] {
        let output = Command::new(BIN)
            .args(["run", "--upstream", "https://127.0.0.1:1"])
            .args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
            .arg("--upstream-ca")
            .arg(&path)
            .output()
            .expect("it runs");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(
            text.contains("--upstream-ca") && text.contains("PEM"),
            "{text}"
        );
    }
}
