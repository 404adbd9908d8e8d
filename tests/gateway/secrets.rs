//! No secret in anything that is printed or served; and a process that needs no rights.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use floodgate::standin::{StandIn, StandInOptions};
use rcgen::generate_simple_self_signed;

use crate::door::soon;
use crate::harness::{BIN, Connection};
use crate::tokens::{APP, APP_ID, Made};

const STORE: &str = "sesame-of-the-store-8841";
const SENTINEL: &str = "sesame-of-the-sentinels-9954";
const ADMIN: &str = "an-admin-token-nobody-sees";
const BY_FILE: &str = "5cfd2fd1755d40ecb72977518be15d3b";
const BY_ENV: &str = "0f0e0d0c0b0a09080706050403020100";
const OPAQUE: &str = "YWMtopaque-token-of-a-caller-7712";
const QUERY: &str = "token-in-a-query-5521";
const COOKIE: &str = "cookie-of-a-caller-6632";
const BODY: &str = "password-in-a-body-3310";

/// A folder with every kind of secret in it.
struct Safe {
    dir: tempfile::TempDir,
    /// Whatever must not be seen.
    secrets: Vec<String>,
}

impl Safe {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let made = generate_simple_self_signed(["a.example".to_owned()]).expect("a certificate");
        let key = made.signing_key.serialize_pem();
        let safe = Self {
            dir,
            secrets: [
                STORE, SENTINEL, ADMIN, BY_FILE, BY_ENV, OPAQUE, QUERY, COOKIE, BODY,
            ]
            .map(str::to_owned)
            .into_iter()
            // Of the key, each line of its own.
            .chain(
                key.lines()
                    .filter(|line| !line.starts_with("--"))
                    .map(str::to_owned),
            )
            .chain([good(), forged()])
            .collect(),
        };
        safe.write("tls.crt", &made.cert.pem());
        safe.write("tls.key", &key);
        safe.write("app.cert", BY_FILE);
        safe.write("admin", ADMIN);
        safe.write("store", STORE);
        let apps = format!(
            "[[app]]\nnames = [\"o#a\", \"{APP_ID}\"]\ncertificate_file = \"app.cert\"\n\
             certificate_env = \"APP_CERTIFICATE\"\n"
        );
        safe.write("apps.toml", &apps);
        safe
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }

    fn write(&self, file: &str, text: &str) {
        std::fs::write(self.path(file), text).expect("a file");
    }

    /// That none of them is in what was seen.
    fn check(&self, what: &str, seen: &str) {
        let seen = seen.to_lowercase();
        for secret in &self.secrets {
            let found = seen.find(&secret.to_lowercase());
            let around = found.map(|at| {
                let from = seen[..at]
                    .char_indices()
                    .rev()
                    .nth(80)
                    .map_or(0, |(at, _)| at);
                &seen[from..at]
            });
            assert!(found.is_none(), "{what}: {secret} after {around:?}");
        }
    }
}

/// The same each time: made for one moment.
fn good() -> String {
    static TOKEN: std::sync::LazyLock<String> = std::sync::LazyLock::new(|| {
        Made {
            certificate: BY_FILE,
            ..APP
        }
        .token()
    });
    TOKEN.clone()
}

fn forged() -> String {
    static TOKEN: std::sync::LazyLock<String> = std::sync::LazyLock::new(|| APP.token());
    TOKEN.clone()
}

/// A store that lets nobody in, and says what it was told.
fn indiscreet(says: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let addr = listener.local_addr().expect("its address");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                while matches!(stream.read(&mut buffer), Ok(1..)) {
                    let answer = format!("-{says} '{STORE}'\r\n").repeat(4);
                    if stream.write_all(answer.as_bytes()).is_err() {
                        return;
                    }
                }
            });
        }
    });
    addr
}

/// A gateway whose every word is kept.
struct Watched {
    child: Child,
    log: PathBuf,
}

impl Watched {
    fn start(command: &mut Command, dir: &Path) -> Self {
        let log = dir.join("log");
        let file = std::fs::File::create(&log).expect("a file");
        let child = command
            .stdout(file.try_clone().expect("a file"))
            .stderr(file)
            .spawn()
            .expect("it starts");
        Self { child, log }
    }

    fn said(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).expect("its log")).into_owned()
    }

    /// The addresses that it says it listens on: the callers', then the admin's.
    fn addresses(&self, callers: usize) -> Vec<SocketAddr> {
        let mut found = Vec::new();
        soon("it says where it listens", || {
            let said = self.said();
            found = said
                .lines()
                .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
                .filter_map(|line| {
                    let at = line["listen"].as_str().or(line["admin"].as_str());
                    at?.parse().ok()
                })
                .collect();
            found.len() == callers + 1
        });
        found
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A call that ends its connection, and all that is said to it.
fn whole(to: SocketAddr, request: &str, headers: &[String], body: &str) -> String {
    let mut connection = Connection::to(to);
    let mut text = format!("{request} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n");
    for header in headers {
        text += &format!("{header}\r\n");
    }
    text += &format!("Content-Length: {}\r\n\r\n{body}", body.len());
    let _ = connection.try_send(text.as_bytes());
    connection.rest()
}

#[test]
fn no_secret_is_printed_or_served() {
    for says in [
        "WRONGPASS no user with the password",
        "ERR unknown command 'AUTH', with args beginning with:",
    ] {
        let safe = Safe::new();
        let store = indiscreet(says);
        let backend = StandIn::start(StandInOptions::default()).expect("a backend");
        let file = |name: &str| safe.path(name).display().to_string();
        safe.write(
            "own.toml",
            "[[route]]\nname = \"t-one\"\ncalls = [\"GET /t/one\"]\nv3 = { limits = [\"1/3600s\"] }\n",
        );
        let mut command = Command::new(BIN);
        command
            .args([
                "run",
                "--listen",
                "127.0.0.1:0",
                "--listen",
                "127.0.0.1:0 tls",
            ])
            .args([
                "--admin",
                "127.0.0.1:0",
                "--https-only=false",
                "--auth",
                "verify",
            ])
            .args([
                "--tls-cert",
                &file("tls.crt"),
                "--tls-key",
                &file("tls.key"),
            ])
            .args([
                "--apps",
                &file("apps.toml"),
                "--routes",
                "shipped",
                "--routes",
                &file("own.toml"),
            ])
            .args(["--upstream", &format!("http://{}", backend.addr)])
            .env("FLOODGATE_STORE", format!("redis://user:{STORE}@{store}"))
            .env("FLOODGATE_ADMIN_TOKEN", ADMIN)
            .env("APP_CERTIFICATE", BY_ENV)
            .env("RUST_LOG", "trace")
            .env("RUST_BACKTRACE", "1");
        let gateway = Watched::start(&mut command, safe.dir.path());
        let at = gateway.addresses(2);
        let (plain, tls, admin) = (at[0], at[1], at[2]);
        let bearer = |token: &str| format!("Authorization: Bearer {token}");
        let cookie = format!("Cookie: session={COOKIE}");
        let (good, forged, opaque) = (bearer(&good()), bearer(&forged()), bearer(OPAQUE));
        let query = format!("?access_token={QUERY}");
        let mut served = String::new();
        let mut call = |request: &str, headers: &[&str], expected: &str| {
            let headers: Vec<String> = headers.iter().map(|h| (*h).to_owned()).collect();
            let body = format!("{{\"grant_type\":\"password\",\"password\":\"{BODY}\"}}");
            let body = if request.starts_with("POST") {
                &*body
            } else {
                ""
            };
            let answer = whole(plain, request, &headers, body);
            assert!(answer.starts_with(expected), "{request}: {answer}");
            served += &answer;
        };
        let (ok, denied) = ("HTTP/1.1 200", "HTTP/1.1 429");
        let bad = "HTTP/1.1 400";
        for token in [&good, &opaque] {
            call(&format!("GET /o/a/users/x{query}"), &[token, &cookie], ok);
        }
        call(&format!("GET /o/a/t/one{query}"), &[&good], ok);
        call(&format!("GET /o/a/t/one{query}"), &[&good], denied);
        call("GET /o/a/users/x", &[&forged], "HTTP/1.1 401");
        call(
            "GET /o/a/users/x",
            &[&good, "x-standin-status: 401"],
            "HTTP/1.1 401",
        );
        call(
            "GET /o/a/users/x",
            &[&good, "x-standin-close: before"],
            "HTTP/1.1 502",
        );
        call(
            "GET /o/a/users/x",
            &[&good, "x-standin-close: mid"],
            "HTTP/1.1 ",
        );
        call("POST /o/a/token", &[], ok);
        call("POST /o/a/messages/users", &[&good], bad);
        call(&format!("GET /o/a/%zz{query}"), &[&good, &cookie], bad);
        call("GET /o/a/users/x", &[&good, &cookie, "bad field"], bad);
        call("GET /o/a/users/x", &[&good, "Transfer-Encoding: gzip"], bad);
        call("GET /o/a/users/x", &[&good, &good], "HTTP/1.1 4");
        call("DELETE /o/a/t/one", &[&good], "HTTP/1.1 405");
        call(
            "GET /o/a/users/x",
            &[&good, "Expect: wonders"],
            "HTTP/1.1 417",
        );
        // A handshake that is none, with a token in it.
        let mut broken = Connection::to(tls);
        let _ = broken.try_send(format!("GET / HTTP/1.1\r\n{good}\r\n\r\n").as_bytes());
        served += &broken.rest();

        let right = bearer(ADMIN);
        for (request, token, body) in [
            ("GET /metrics", &right, ""),
            ("GET /top", &right, ""),
            ("GET /peers", &right, ""),
            ("GET /ready", &right, ""),
            ("GET /nowhere", &right, ""),
            (
                "POST /charge",
                &right,
                "{\"route\":\"t-one\",\"app\":\"o#a\"}",
            ),
            ("POST /charge", &right, "{\"route\""),
            ("POST /charge", &opaque, "{}"),
            ("POST /counters/reset", &right, "{\"app\":\"o#a\"}"),
            ("DELETE /apps/o%23a/tasks/1", &right, ""),
        ] {
            served += &whole(admin, request, std::slice::from_ref(token), body);
        }
        assert!(served.contains("floodgate_decisions_total"), "{served}");
        // Files that become bad while it runs.
        let key = std::fs::read_to_string(safe.path("tls.key")).expect("the key");
        safe.write("tls.key", &key[..key.len() - 60]);
        soon("it says so", || {
            gateway.said().contains("certificates not changed")
        });
        let pid = gateway.child.id().to_string();
        let told = Command::new("kill").args(["-TERM", &pid]).status();
        assert!(told.expect("kill").success());
        soon("it ends", || gateway.said().contains("drained"));

        let said = gateway.said();
        assert!(
            said.contains("/o/a/t/one") && said.contains("store"),
            "{said}"
        );
        safe.check("served", &served);
        safe.check("printed", &said);
    }
}

#[test]
fn a_mistake_in_a_setting_is_told_without_what_it_holds() {
    let safe = Safe::new();
    let file = |name: &str| safe.path(name).display().to_string();
    let store = indiscreet("WRONGPASS no user with the password");
    safe.write(
        "open.toml",
        &format!("admin_token = \"{ADMIN}\nstore = 5\n"),
    );
    safe.write(
        "kind.toml",
        &format!("admin_token = [\"{ADMIN}\", 7]\nstore_password = {{ a = \"{STORE}\" }}\n"),
    );
    safe.write(
        "near.toml",
        &format!("admin_tokn = \"{ADMIN}\"\nstore_pasword = \"{STORE}\"\n"),
    );
    safe.write(
        "apps-inline.toml",
        &format!("[[app]]\nnames = \"o#a\"\ncertificate = \"{BY_FILE}\"\n"),
    );
    safe.write(
        "apps-env.toml",
        &format!("[[app]]\nnames = \"o#a\"\ncertificate_env = \"{BY_FILE}\"\n"),
    );
    safe.write(
        "apps-broken.toml",
        &format!(
            "[[app]]\nnames = \"o#a\"\ncertificate_file = \"bad.cert\"\ncertificate = {BY_ENV}\n"
        ),
    );
    safe.write("bad.cert", &format!("{BY_FILE}0\n{BY_ENV}zz\n"));
    safe.write("apps-bad.toml", "[[app]]\nnames = \"o#a\"\ncertificate_file = \"bad.cert\"\ncertificate_env = \"APP_BAD\"\n");
    let key = std::fs::read_to_string(safe.path("tls.key")).expect("the key");
    safe.write("broken.key", &key[..key.len() - 60]);
    safe.write("swapped.crt", &key);
    let url = |scheme: &str, rest: &str| format!("{scheme}://user:{STORE}@{rest}");
    let tls = |cert: &str, key: &str| {
        let listen = ["--listen".to_owned(), "127.0.0.1:0 tls".to_owned()];
        let files = [
            "--tls-cert".to_owned(),
            file(cert),
            "--tls-key".to_owned(),
            file(key),
        ];
        [&listen[..], &files[..]].concat()
    };
    let flag = |name: &str, value: &str| vec![format!("--{name}"), value.to_owned()];
    let mut tried = vec![
        tls("tls.crt", "broken.key"),
        tls("swapped.crt", "tls.key"),
        tls("tls.crt", "swapped.crt"),
        tls("tls.key", "tls.crt"),
        flag("admin-token", &format!("{ADMIN} \u{e9}")),
        flag("admin-token", &format!("{ADMIN}\n")),
        flag("admin-tokn", ADMIN),
        flag("store-pasword", STORE),
        flag("upstream", &format!("http://user:{STORE}@127.0.0.1:1")),
        flag("upstream", &format!("user:{STORE}@127.0.0.1:1")),
        flag("upstream", &format!("ftp://user:{STORE}@127.0.0.1:1")),
        flag("listen", &format!("user:{STORE}@127.0.0.1:1")),
        flag("store-sentinel-password", SENTINEL),
        [
            flag("store", &url("redis", "127.0.0.1:1")),
            flag("admin", "127.0.0.1:0"),
            flag("edition", "v9"),
        ]
        .concat(),
    ];
    for file_name in ["open.toml", "kind.toml", "near.toml"] {
        tried.push(flag("config", &file(file_name)));
    }
    for file_name in [
        "apps-inline.toml",
        "apps-env.toml",
        "apps-broken.toml",
        "apps-bad.toml",
    ] {
        tried.push(flag("apps", &file(file_name)));
    }
    for (scheme, rest) in [
        ("redsi", "a"),
        ("redis", "a:x"),
        ("redis", "a:1/x"),
        ("redis", "a:1/1/1"),
        ("redis", "[::1"),
        ("redis-sentinel", "a"),
        ("redis-cluster", "a/1"),
        ("http", "a"),
        ("redis", "a?x=1"),
        ("redis", "a#x"),
        ("rediss", "%zz"),
        ("redis", ""),
    ] {
        tried.push(flag("store", &url(scheme, rest)));
        tried.push(flag("store", &format!("{scheme}:user:{STORE}@{rest}")));
        // A password with a separator in it.
        tried.push(flag(
            "store",
            &format!("{scheme}://user:{STORE}@{STORE}@{rest}"),
        ));
        tried.push(flag("store", &format!("{scheme}://user:a/{STORE}@{rest}")));
    }
    let mut seen = String::new();
    let mut refused = 0;
    for args in &tried {
        // `routes` reads neither certificates nor the store; `check` reads everything.
        for command in ["check", "routes"] {
            let mut run = Command::new(BIN);
            run.arg(command)
                .args(args)
                .env("APP_BAD", format!("{BY_ENV}77"));
            if command == "check" {
                run.args(["--upstream", "http://127.0.0.1:1"]);
            }
            let output = run.output().expect("a run");
            refused += u32::from(!output.status.success());
            seen += &String::from_utf8_lossy(&output.stdout);
            seen += &String::from_utf8_lossy(&output.stderr);
        }
    }
    assert!(refused > 60, "{refused} of {}", 2 * tried.len());
    // A flag that is misspelt is no setting: what follows it is an argument like any other.
    let connect = flag("store", &url("redis", &store.to_string()));
    let help: &[&str] = &["run", "--help"];
    for (args, more) in [(help, &[][..]), (&["check", "--connect"], &connect[..])] {
        let output = Command::new(BIN)
            .args(args)
            .args(more)
            .env("FLOODGATE_ADMIN_TOKEN", ADMIN)
            .env("FLOODGATE_STORE_PASSWORD", STORE)
            .output()
            .expect("a run");
        seen += &String::from_utf8_lossy(&output.stdout);
        seen += &String::from_utf8_lossy(&output.stderr);
    }
    assert!(seen.contains("admin_token"), "{seen}");
    safe.check("printed", &seen);
}

/// How a process is started that may write nothing and is nobody, as far as this machine can.
fn confined(program: &Path) -> Command {
    let is_root = std::fs::metadata("/proc/self")
        .is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0);
    // No file can grow, wherever it is; no directory can be written to, but what is mounted below.
    let inner = "ulimit -f 0; cd /; exec \"$@\"";
    let read_only = format!("mount --make-rprivate / && mount -o remount,ro,bind / / && {inner}");
    let nobody = [
        "setpriv",
        "--reuid=65532",
        "--regid=65532",
        "--clear-groups",
        "--no-new-privs",
    ];
    let can_mount = Command::new("unshare")
        .args([
            "-m",
            "sh",
            "-c",
            "mount --make-rprivate / && mount -o remount,ro,bind / /",
        ])
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    let mut command = match can_mount {
        true => {
            let mut command = Command::new("unshare");
            command.args(["-m", "sh", "-c", &read_only, "sh"]);
            command
        }
        false => {
            let mut command = Command::new("sh");
            command.args(["-c", inner, "sh"]);
            command
        }
    };
    if is_root {
        command.args(nobody);
    }
    command.arg(program);
    command
}

#[test]
fn it_runs_as_nobody_and_writes_nothing() {
    use std::os::unix::fs::PermissionsExt as _;
    let safe = Safe::new();
    // Where 65532 can get at it, in a folder that it cannot write to.
    let dir = tempfile::tempdir().expect("a folder");
    let mode = |path: &Path, mode: u32| {
        let mode = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(path, mode).expect("a mode");
    };
    let program = dir.path().join("floodgate");
    std::fs::copy(BIN, &program).expect("a copy");
    for name in ["tls.crt", "tls.key", "apps.toml", "app.cert", "admin"] {
        std::fs::copy(safe.path(name), dir.path().join(name)).expect("a copy");
        mode(&dir.path().join(name), 0o444);
    }
    mode(&program, 0o555);
    mode(dir.path(), 0o555);
    let before = std::fs::read_dir(dir.path()).expect("a folder").count();
    let backend = StandIn::start(StandInOptions::default()).expect("a backend");
    let file = |name: &str| dir.path().join(name).display().to_string();
    let mut child = confined(&program)
        .args([
            "run",
            "--listen",
            "127.0.0.1:0",
            "--listen",
            "127.0.0.1:0 tls",
            "--https-only=false",
        ])
        .args([
            "--admin",
            "127.0.0.1:0",
            "--admin-token-file",
            &file("admin"),
        ])
        .args([
            "--tls-cert",
            &file("tls.crt"),
            "--tls-key",
            &file("tls.key"),
        ])
        .args(["--apps", &file("apps.toml")])
        .args(["--upstream", &format!("http://{}", backend.addr)])
        .env("APP_CERTIFICATE", BY_ENV)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts");
    // To a pipe: to a file it may not write either.
    let mut lines = BufReader::new(child.stdout.take().expect("its output")).lines();
    let mut at = Vec::new();
    while at.len() < 3 {
        let line = lines.next().expect("a line").expect("UTF-8");
        let line: serde_json::Value = serde_json::from_str(&line).expect("a JSON log line");
        let said = line["listen"].as_str().or(line["admin"].as_str());
        at.extend(said.and_then(|at| at.parse::<SocketAddr>().ok()));
    }
    std::thread::spawn(move || lines.for_each(drop));
    let call = |method: &str, path: &str, body: &str| {
        let mut connection = Connection::to(at[0]);
        connection.call(method, path, &[], body).status
    };
    soon("it listens", || std::net::TcpStream::connect(at[0]).is_ok());
    assert_eq!(call("GET", "/o/a/users/x", ""), 200);
    // Larger than what is kept in memory of a body.
    assert_eq!(call("POST", "/o/a/chatfiles", &"x".repeat(10 << 20)), 200);
    assert_eq!(call("POST", "/o/a/messages/users", "{\"to\":[\"a\"]}"), 200);
    assert_eq!(call("GET", "/nowhere", ""), 404);
    let metrics = Connection::to(at[2]).call("GET", "/metrics", &[], "");
    assert_eq!(metrics.status, 200);
    let pid = child.id();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.expect("a field")
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert!(!field("Uid:").split(' ').any(|uid| uid == "0"), "{status}");
    assert_eq!(field("CapEff:"), "0000000000000000");
    // What it has open is sockets, pipes and the like.
    for open in std::fs::read_dir(format!("/proc/{pid}/fd")).expect("its files") {
        let open = open.expect("a file").path();
        let Ok(target) = std::fs::read_link(&open) else {
            continue;
        };
        let info = std::fs::read_to_string(open.to_string_lossy().replace("/fd/", "/fdinfo/"));
        let flags = info.ok().and_then(|info| {
            let line = info.lines().find_map(|line| line.strip_prefix("flags:"))?;
            u32::from_str_radix(line.trim(), 8).ok()
        });
        let is_file = target.metadata().is_ok_and(|file| file.is_file());
        assert!(
            !is_file || flags.is_some_and(|flags| flags & 3 == 0),
            "{target:?} is open for writing"
        );
    }
    let told = Command::new("kill")
        .args(["-TERM", &pid.to_string()])
        .status();
    assert!(told.expect("kill").success());
    let end = child.wait().expect("its end");
    assert_eq!(end.code(), Some(0), "{end:?}");
    assert_eq!(
        std::fs::read_dir(dir.path()).expect("a folder").count(),
        before
    );
    std::thread::sleep(Duration::from_millis(10));
    mode(dir.path(), 0o755);
}

#[test]
fn the_admin_listener_is_on_loopback_unless_told_otherwise() {
    let shown = Command::new(BIN)
        .args(["run", "--help"])
        .output()
        .expect("a run");
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    let from = shown
        .find("--admin <")
        .or(shown.find("--admin ADDR"))
        .expect("the setting");
    assert!(
        shown[from..]
            .lines()
            .take(9)
            .any(|line| line.contains("127.0.0.1:9090")),
        "{shown}"
    );
}
