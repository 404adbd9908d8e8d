//! Callers over TLS, and plain HTTP beside it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio_rustls::rustls::pki_types::{
    CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _,
};
use tokio_rustls::rustls::{
    self, ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion,
};

use crate::door::{soon, turned_away};
use crate::harness::{BIN, Connection, Gateway, Start, start};

/// An authority, and a folder for what it signs.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    dir: tempfile::TempDir,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("an authority").pem();
        Self {
            issuer: Issuer::new(params, key),
            pem,
            dir: tempfile::tempdir().expect("a folder"),
        }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }

    fn write(&self, file: &str, text: &str) -> String {
        let path = self.path(file);
        std::fs::write(&path, text).expect("a file");
        path.display().to_string()
    }

    /// Certificate and key for these names, as PEM.
    fn sign(&self, names: &[&str]) -> (String, String) {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(names).expect("parameters");
        let signed = params.signed_by(&key, &self.issuer).expect("a certificate");
        (signed.pem(), key.serialize_pem())
    }

    /// Both in files of this name.
    fn files(&self, name: &str, names: &[&str]) -> (String, String) {
        let (certificate, key) = self.sign(names);
        let certificate = self.write(&format!("{name}.crt"), &certificate);
        (certificate, self.write(&format!("{name}.key"), &key))
    }

    fn client(&self, how: Client<'_>) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        let ca = CertificateDer::from_pem_slice(self.pem.as_bytes()).expect("a certificate");
        roots.add(ca).expect("an authority");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(how.versions)
            .expect("versions")
            .with_root_certificates(roots);
        let mut config = match how.certificate {
            None => config.with_no_client_auth(),
            Some((certificate, key)) => {
                let certificate = CertificateDer::from_pem_slice(certificate.as_bytes());
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes());
                let chain = vec![certificate.expect("a certificate")];
                let config = config.with_client_auth_cert(chain, key.expect("a key"));
                config.expect("a client's certificate")
            }
        };
        config.alpn_protocols = how
            .alpn
            .iter()
            .map(|name| name.as_bytes().to_vec())
            .collect();
        Arc::new(config)
    }
}

struct Client<'a> {
    versions: &'a [&'static SupportedProtocolVersion],
    certificate: Option<(&'a str, &'a str)>,
    alpn: &'a [&'a str],
}

const ANY: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13, &rustls::version::TLS12];

impl Default for Client<'_> {
    fn default() -> Self {
        Self {
            versions: ANY,
            certificate: None,
            alpn: &[],
        }
    }
}

/// A connection to this name, whoever answers for it.
fn connect(to: SocketAddr, config: &Arc<ClientConfig>, name: &str) -> Connection {
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    let tls = ClientConnection::new(config.clone(), name).expect("a connection");
    Connection::over(to, |tcp| Box::new(StreamOwned::new(tls, tcp)))
}

/// The status of a call, or why there was none.
fn status(to: SocketAddr, config: &Arc<ClientConfig>, name: &str) -> Result<u16, String> {
    let mut connection = connect(to, config, name);
    connection
        .try_send(b"GET /o/a/users/x HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer t\r\n\r\n")
        .map_err(|error| error.to_string())?;
    let answer = connection.try_line()?;
    answer
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .ok_or(answer.clone())
}

fn over_tls(files: &[&(String, String)], args: &[&str]) -> Gateway {
    let mut all = vec!["--listen", "127.0.0.1:0 tls"];
    for (certificate, key) in files {
        all.extend(["--tls-cert", certificate, "--tls-key", key]);
    }
    all.extend(args);
    Start {
        routes: crate::ROUTES,
        args: &all,
        ..Start::default()
    }
    .start()
}

#[test]
fn a_caller_gets_the_certificate_of_the_name_it_asks_for() {
    let authority = Authority::new();
    let first = authority.files("first", &["a.example"]);
    let second = authority.files("second", &["*.b.example", "c.example"]);
    let gateway = over_tls(&[&first, &second], &[]);
    let to = gateway.listeners[1];
    let client = authority.client(Client::default());
    for name in ["a.example", "x.b.example", "c.example", "C.EXAMPLE"] {
        assert_eq!(status(to, &client, name), Ok(200), "{name}");
    }
    // `*` stands for one label; nobody has the others, and gets the first.
    for name in ["b.example", "x.y.b.example", "d.example"] {
        let error = status(to, &client, name).expect_err(name);
        assert!(error.contains("not valid for name"), "{error}");
    }
}

#[test]
fn both_versions_and_both_protocols_are_spoken() {
    let authority = Authority::new();
    let files = authority.files("first", &["a.example"]);
    let gateway = over_tls(&[&files], &[]);
    let only13 = over_tls(&[&files], &["--tls-min", "1.3"]);
    for (version, by_strict) in [
        (&rustls::version::TLS12, false),
        (&rustls::version::TLS13, true),
    ] {
        let client = authority.client(Client {
            versions: &[version],
            ..Client::default()
        });
        assert_eq!(status(gateway.listeners[1], &client, "a.example"), Ok(200));
        let strict = status(only13.listeners[1], &client, "a.example");
        assert_eq!(strict.is_ok(), by_strict, "{strict:?}");
    }
    soon("it is counted", || turned_away(&only13, "tls") >= 1.0);

    let client = authority.client(Client {
        alpn: &["h2", "http/1.1"],
        ..Client::default()
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(async {
        let tcp = tokio::net::TcpStream::connect(gateway.listeners[1])
            .await
            .expect("a connection");
        let name = ServerName::try_from("a.example").expect("a name");
        let tls = tokio_rustls::TlsConnector::from(client)
            .connect(name, tcp)
            .await
            .expect("TLS");
        assert_eq!(tls.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let io = hyper_util::rt::TokioIo::new(tls);
        let executor = hyper_util::rt::TokioExecutor::new();
        let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, io)
            .await
            .expect("a handshake");
        tokio::spawn(connection);
        for expected in [200, 200, 200, 429] {
            let request = http::Request::get("https://a.example/o/a/t/app")
                .header("authorization", "Bearer t")
                .body(http_body_util::Empty::<bytes::Bytes>::new())
                .expect("a request");
            let answer = sender.send_request(request).await.expect("an answer");
            assert_eq!(answer.status().as_u16(), expected);
        }
    });
    let seen = gateway.backend().requests().pop().expect("a call");
    let proto = seen
        .headers
        .iter()
        .find(|(name, _)| name == "x-forwarded-proto");
    assert_eq!(proto.map(|(_, value)| &**value), Some("https"));
}

#[test]
fn new_certificates_are_taken_and_no_connection_is_dropped() {
    let authority = Authority::new();
    let (certificate, key) = authority.files("first", &["a.example"]);
    let gateway = over_tls(&[&(certificate.clone(), key.clone())], &[]);
    let to = gateway.listeners[1];
    let client = authority.client(Client::default());
    let mut kept = connect(to, &client, "a.example");
    assert_eq!(kept.call("GET", "/o/a/users/x", &[], "").status, 200);
    let expiry = gateway.metric("floodgate_tls_certificate_expiry_seconds", &["first.crt"]);
    assert!(expiry > 1_700_000_000.0, "{expiry}");

    // Half of a change: a certificate whose key has not come yet.
    let (new_certificate, new_key) = authority.sign(&["b.example"]);
    std::fs::write(&certificate, &new_certificate).expect("a file");
    soon("a report", || {
        gateway.log().contains("certificates not changed")
    });
    assert!(
        gateway.log().contains("first.key: not the key of"),
        "{}",
        gateway.log()
    );
    assert_eq!(status(to, &client, "a.example"), Ok(200));

    // As cert-manager does it: the name of the file is given to another one.
    let moved = authority.write("new.key", &new_key);
    std::fs::rename(moved, &key).expect("moved");
    soon("the new one", || {
        status(to, &client, "b.example") == Ok(200)
    });
    assert!(status(to, &client, "a.example").is_err());
    assert_eq!(kept.call("GET", "/o/a/users/x", &[], "").status, 200);
    soon("a report", || {
        gateway.log().contains("new certificates in use")
    });
    for text in ["PRIVATE KEY", new_key.lines().nth(1).expect("a key")] {
        assert!(!gateway.log().contains(text));
    }
}

#[test]
fn callers_can_be_asked_for_certificates_of_their_own() {
    let authority = Authority::new();
    let files = authority.files("first", &["a.example"]);
    let ca = authority.write("ca.pem", &authority.pem);
    let stranger = Authority::new();
    let (good, bad) = (authority.sign(&["client"]), stranger.sign(&["client"]));
    let with = |(certificate, key): &(String, String)| {
        authority.client(Client {
            certificate: Some((certificate, key)),
            ..Client::default()
        })
    };
    let (good, bad, none) = (with(&good), with(&bad), authority.client(Client::default()));
    for (how, without) in [("required", false), ("optional", true)] {
        let args = ["--tls-client-ca", &*ca, "--tls-client-auth", how];
        let gateway = over_tls(&[&files], &args);
        let to = gateway.listeners[1];
        assert_eq!(status(to, &good, "a.example"), Ok(200), "{how}");
        assert!(status(to, &bad, "a.example").is_err(), "{how}");
        assert_eq!(status(to, &none, "a.example").is_ok(), without, "{how}");
        let refused = if without { 1.0 } else { 2.0 };
        soon("they are counted", || {
            turned_away(&gateway, "tls") == refused
        });
    }
}

#[test]
fn plain_http_is_refused_where_there_is_https() {
    let authority = Authority::new();
    let files = authority.files("first", &["a.example"]);
    let gateway = over_tls(&[&files], &["--hsts", "180d"]);
    let answer = gateway.call("GET", "/o/a/users/x", "");
    assert_eq!(answer.status, 403);
    assert_eq!(answer.error().1, "This service is reached over HTTPS only.");
    assert_eq!(answer.header("strict-transport-security"), None);
    // Saying so is not enough.
    let lie = gateway
        .connect()
        .call("GET", "/o/a/users/x", &["X-Forwarded-Proto: https"], "");
    assert_eq!(lie.status, 403);
    assert_eq!(gateway.backend().count(), 0);
    let client = authority.client(Client::default());
    let mut secure = connect(gateway.listeners[1], &client, "a.example");
    let answer = secure.call("GET", "/o/a/users/x", &[], "");
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.header("strict-transport-security"),
        Some("max-age=15552000")
    );

    let off = over_tls(&[&files], &["--https-only", "false"]);
    assert_eq!(off.call("GET", "/o/a/users/x", "").status, 200);
}

#[test]
fn a_trusted_proxy_says_whether_its_caller_came_over_https() {
    let gateway = start(&["--https-only", "true", "--trusted-proxy", "127.0.0.1"]);
    let status = |proto: &str| {
        let line = format!("X-Forwarded-Proto: {proto}");
        gateway
            .connect()
            .call("GET", "/o/a/users/x", &[&line], "")
            .status
    };
    assert_eq!(status("https"), 200);
    assert_eq!(status("HTTPS"), 200);
    assert_eq!(status("http"), 403);
    assert_eq!(status("https, http"), 403);
    assert_eq!(status("https\r\nX-Forwarded-Proto: http"), 403);
    assert_eq!(gateway.call("GET", "/o/a/users/x", "").status, 403);
}

#[test]
fn what_can_be_fetched_again_is_sent_to_https() {
    let gateway = start(&["--https-only", "true", "--https-redirect", "8443"]);
    let ask = |method: &str, host: &str| {
        let mut connection = gateway.connect();
        connection.send(
            format!(
                "{method} /o/a/users/x?q=1 HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n\r\n"
            )
            .as_bytes(),
        );
        let answer = connection.read_answer(method);
        (answer.status, answer.header("location").map(str::to_owned))
    };
    let moved = |to: &str| (308, Some(to.to_owned()));
    assert_eq!(
        ask("GET", "a.example"),
        moved("https://a.example:8443/o/a/users/x?q=1")
    );
    assert_eq!(
        ask("HEAD", "a.example:8080"),
        moved("https://a.example:8443/o/a/users/x?q=1")
    );
    assert_eq!(
        ask("GET", "[::1]:80"),
        moved("https://[::1]:8443/o/a/users/x?q=1")
    );
    assert_eq!(
        ask("GET", "[::1]"),
        moved("https://[::1]:8443/o/a/users/x?q=1")
    );
    assert_eq!(ask("POST", "a.example"), (403, None));
    assert_eq!(gateway.backend().count(), 0);
}

#[test]
fn certificates_that_cannot_be_used_are_one_clear_line_and_exit_1() {
    let authority = Authority::new();
    let (certificate, key) = authority.files("first", &["a.example"]);
    let (_, other_key) = authority.files("second", &["b.example"]);
    let empty = authority.write("empty.pem", "");
    let missing = authority.path("missing.pem").display().to_string();
    for (certificate, key, says) in [
        (&missing, &key, "missing.pem: No such file"),
        (&certificate, &missing, "missing.pem: No such file"),
        (
            &empty,
            &key,
            "empty.pem: no certificate in it; write a PEM file",
        ),
        (&certificate, &empty, "empty.pem: no private key in it"),
        (
            &certificate,
            &certificate,
            "first.crt: no private key in it",
        ),
        (&certificate, &other_key, "second.key: not the key of"),
    ] {
        for command in ["run", "check"] {
            let output = Command::new(BIN)
                .args([
                    command,
                    "--listen",
                    "127.0.0.1:0 tls",
                    "--admin",
                    "127.0.0.1:0",
                ])
                .args(["--upstream", "http://127.0.0.1:1"])
                .args(["--tls-cert", certificate, "--tls-key", key])
                .output()
                .expect("its end");
            let text = String::from_utf8_lossy(&output.stderr);
            let unreadable = command == "check" && says.contains("No such file");
            let code = if unreadable { 2 } else { 1 };
            assert_eq!(output.status.code(), Some(code), "{command}: {text}");
            let mut lines = text.lines();
            assert!(
                lines.next().unwrap_or_default().contains(says),
                "{says}: {text}"
            );
            let rest = if command == "check" {
                Some("1 mistake")
            } else {
                None
            };
            assert_eq!((lines.next(), lines.next()), (rest, None), "{text}");
        }
    }
    assert!(Path::new(&certificate).exists());
}

#[test]
fn plain_http_at_a_tls_port_is_told_so() {
    let authority = Authority::new();
    let files = authority.files("first", &["a.example"]);
    let gateway = over_tls(&[&files], &["--header-timeout", "5s"]);
    let to = gateway.listeners[1];
    let long = format!(
        "POST /o/a/users HTTP/1.1\r\nHost: h\r\nX: {}\r\nContent-Length: 20000\r\n\r\n{}",
        "x".repeat(3000),
        "y".repeat(20000)
    );
    for request in [
        "GET / HTTP/1.1\r\nHost: h\r\n\r\n",
        "PROPFIND / HTTP/1.1\r\nHost: h\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        &long,
    ] {
        let mut plain = Connection::to(to);
        plain.send(request.as_bytes());
        let answer = plain.read_answer("GET");
        assert_eq!(answer.status, 400);
        assert_eq!(
            answer.error().1,
            "A plain HTTP request was sent to an HTTPS port."
        );
        assert_eq!(answer.header("strict-transport-security"), None);
        assert!(plain.is_closed());
    }
    soon("all are counted", || {
        turned_away(&gateway, "plain-http") == 4.0
    });
    soon("it is logged", || {
        gateway.log().matches("\"plain-http\"").count() == 4
    });
    // What is neither is told nothing.
    for bytes in [
        &b"\x80\x2e\x01"[..],
        b"\0",
        b"get / HTTP/1.1\r\n\r\n",
        b"SSH-2.0-x\r\n",
        b"G",
    ] {
        let mut other = Connection::to(to);
        other.send(bytes);
        assert!(!other.rest().contains("HTTP"), "{bytes:?}");
    }
    // A greeting in pieces is one greeting.
    let client = authority.client(Client::default());
    assert_eq!(status(to, &client, "a.example"), Ok(200));
    assert_eq!(gateway.backend().count(), 1);
}
