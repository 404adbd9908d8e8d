//! Restarts and upgrades while callers call.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use floodgate::standin::{StandIn, StandInOptions};
use parking_lot::Mutex;

use crate::door::soon;
use crate::harness::{BIN, Connection, Gateway, Start};

/// A call that no limit stands in the way of.
const ROUTES: &str = r#"
[[route]]
name = "t-free"
calls = ["GET /t/free"]
v3 = { limits = ["10000000/s"], ip_copy = false }

[[route]]
name = "t-few"
calls = ["GET /t/few"]
v3 = { limits = ["3000/3600s"], ip_copy = false }

[[route]]
name = "t-slot"
calls = ["POST /t/slot"]
v3 = { limits = ["2 tasks"], ip_copy = false }
"#;
const PATH: &str = "/o/a/t/free";

/// How callers connect.
#[derive(Clone, Copy, Debug)]
enum How {
    /// Anew for each call.
    Anew,
    /// As long as they are let.
    Kept,
    /// The same, in HTTP/2.
    Http2,
}

/// Callers that call until they are told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    failed: Arc<Mutex<Vec<String>>>,
    callers: Vec<std::thread::JoinHandle<()>>,
}

impl Load {
    fn start(addr: SocketAddr, callers: &[How]) -> Self {
        let mut load = Self {
            stop: Arc::default(),
            done: Arc::default(),
            failed: Arc::default(),
            callers: Vec::new(),
        };
        for how in callers.iter().copied() {
            let (stop, done, failed) = (load.stop.clone(), load.done.clone(), load.failed.clone());
            load.callers.push(std::thread::spawn(move || {
                let mut caller = Caller::new(addr, how);
                while !stop.load(Ordering::Relaxed) {
                    match caller.call() {
                        Ok(()) => drop(done.fetch_add(1, Ordering::Relaxed)),
                        Err(why) => {
                            failed.lock().push(format!("{how:?}: {why}"));
                            caller = Caller::new(addr, how);
                        }
                    }
                }
            }));
        }
        load
    }

    fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Until so many more calls are done.
    fn go_on(&self, calls: u64) {
        let until = self.done() + calls;
        for _ in 0..30_000 {
            if self.done() >= until {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("{} of {until} calls; {:?}", self.done(), self.failed.lock());
    }

    /// Ends it: so many calls, and none of them failed.
    fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        for caller in self.callers {
            caller.join().expect("a caller");
        }
        let failed = self.failed.lock();
        let done = self.done.load(Ordering::Relaxed);
        assert!(
            failed.is_empty(),
            "{} of {done} failed, the first: {:?}",
            failed.len(),
            &failed[..failed.len().min(5)]
        );
        done
    }
}

enum Caller {
    One {
        addr: SocketAddr,
        kept: bool,
        open: Option<TcpStream>,
    },
    Http2 {
        addr: SocketAddr,
        runtime: tokio::runtime::Runtime,
        open: Option<Sender>,
    },
}

type Sender = hyper::client::conn::http2::SendRequest<http_body_util::Empty<bytes::Bytes>>;

impl Caller {
    fn new(addr: SocketAddr, how: How) -> Self {
        match how {
            How::Anew | How::Kept => Self::One {
                addr,
                kept: matches!(how, How::Kept),
                open: None,
            },
            How::Http2 => Self::Http2 {
                addr,
                runtime: tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .expect("a runtime"),
                open: None,
            },
        }
    }

    fn call(&mut self) -> Result<(), String> {
        match self {
            Self::One { addr, kept, open } => {
                let mut stream = match open.take() {
                    Some(stream) => stream,
                    None => {
                        let stream =
                            TcpStream::connect(*addr).map_err(|e| format!("connect: {e}"))?;
                        let patience = Some(Duration::from_secs(90));
                        stream.set_read_timeout(patience).expect("a timeout");
                        stream.set_nodelay(true).expect("an option");
                        stream
                    }
                };
                let is_kept = call_on(&mut stream, *kept)?;
                if is_kept {
                    *open = Some(stream);
                }
                Ok(())
            }
            Self::Http2 {
                addr,
                runtime,
                open,
            } => runtime.block_on(call_http2(*addr, open)),
        }
    }
}

/// One call; whether the connection may have another.
fn call_on(stream: &mut TcpStream, keep: bool) -> Result<bool, String> {
    let connection = if keep { "keep-alive" } else { "close" };
    let head = format!(
        "GET {PATH} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer YWMtgood\r\nConnection: {connection}\r\n\r\n"
    );
    stream
        .write_all(head.as_bytes())
        .map_err(|e| format!("write: {e}"))?;
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        if let Some(end) = answer.windows(4).position(|end| end == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
            if !head.starts_with("http/1.1 200") {
                return Err(format!("answer: {head}"));
            }
            let of = |name: &str| {
                let line = head.lines().find_map(|line| line.strip_prefix(name));
                line.map(|value| value.trim().to_owned())
            };
            let length: usize = of("content-length:")
                .and_then(|n| n.parse().ok())
                .ok_or("no length")?;
            if answer.len() >= end + 4 + length {
                return Ok(keep && of("connection:").as_deref() != Some("close"));
            }
        }
        match stream.read(&mut buffer) {
            Ok(0) => return Err(format!("closed after {} bytes", answer.len())),
            Ok(n) => answer.extend_from_slice(&buffer[..n]),
            Err(error) => return Err(format!("read after {} bytes: {error}", answer.len())),
        }
    }
}

async fn call_http2(addr: SocketAddr, open: &mut Option<Sender>) -> Result<(), String> {
    use http_body_util::BodyExt as _;
    for _ in 0..10 {
        let mut sender = match open.take() {
            Some(sender) => sender,
            None => {
                let tcp = tokio::net::TcpStream::connect(addr).await;
                let tcp = tcp.map_err(|e| format!("connect: {e}"))?;
                let io = hyper_util::rt::TokioIo::new(tcp);
                let executor = hyper_util::rt::TokioExecutor::new();
                let made = hyper::client::conn::http2::handshake(executor, io).await;
                let (sender, connection) = made.map_err(|e| format!("handshake: {e}"))?;
                tokio::spawn(connection);
                sender
            }
        };
        // Told to go elsewhere before anything was sent: what the protocol is for.
        if sender.ready().await.is_err() {
            continue;
        }
        let request = hyper::Request::get(format!("http://h{PATH}"))
            .header("authorization", "Bearer YWMtgood")
            .body(http_body_util::Empty::new())
            .expect("a request");
        let answer = match sender.try_send_request(request).await {
            Ok(answer) => answer,
            Err(mut error) => match error.take_message() {
                // Handed back unsent.
                Some(_) => continue,
                None => return Err(format!("call: {:?}", error.into_error())),
            },
        };
        let status = answer.status();
        let body = answer.into_body().collect().await;
        body.map_err(|e| format!("body: {e:?}"))?;
        if status != 200 {
            return Err(format!("answer: {status}"));
        }
        *open = Some(sender);
        return Ok(());
    }
    Err("told to go elsewhere ten times".to_owned())
}

const MIXED: &[How] = &[
    How::Anew,
    How::Anew,
    How::Kept,
    How::Kept,
    How::Http2,
    How::Http2,
];

/// A backend, and a place for a socket.
struct Site {
    backend: StandIn,
    dir: tempfile::TempDir,
}

impl Site {
    fn new() -> Self {
        let options = StandInOptions {
            remember: 0,
            ..StandInOptions::default()
        };
        Self {
            backend: StandIn::start(options).expect("a stand-in backend"),
            dir: tempfile::tempdir().expect("a folder"),
        }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("upgrade.sock")
    }

    fn start(&self, args: &[&str]) -> Gateway {
        let socket = self.socket();
        let mut all = vec!["--h2c", "--upgrade-socket", socket.to_str().expect("UTF-8")];
        all.extend(args);
        Start {
            routes: ROUTES,
            args: &all,
            upstream: Some(self.backend.addr),
            ..Start::default()
        }
        .start()
    }

    fn upgrade(&self, args: &[&str]) -> Gateway {
        let mut all = vec!["--upgrade"];
        all.extend(args);
        self.start(&all)
    }
}

#[test]
fn an_upgrade_under_load_fails_no_call() {
    let site = Site::new();
    let mut old = site.start(&["--threads", "2", "--access-log", "false"]);
    let load = Load::start(old.addr, MIXED);
    load.go_on(500);
    // More workers than before, and fewer: no socket is left without somebody who accepts.
    for threads in ["2", "3", "1", "2"] {
        let new = site.upgrade(&["--threads", threads, "--access-log", "false"]);
        assert_eq!((new.addr, new.admin), (old.addr, old.admin));
        assert_eq!(old.wait(), Some(0), "the old one ends by itself");
        old = new;
        load.go_on(500);
    }
    assert!(load.end() >= 2500);
}

#[test]
fn who_cannot_start_takes_nothing_over() {
    let site = Site::new();
    let old = site.start(&["--access-log", "false"]);
    let load = Load::start(old.addr, &[How::Anew, How::Kept]);
    let socket = site.socket();
    let upstream = format!("http://{}", site.backend.addr);
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = taken.local_addr().expect("an address").to_string();
    let good = ["--upstream", &upstream, "--admin", "127.0.0.1:0"];
    for (args, says) in [
        (vec!["--edition", "none"], "unknown edition"),
        (vec!["--routes", "/nowhere.toml"], "cannot read"),
        (
            vec!["--listen", "127.0.0.1:0", "--listen", &taken],
            "cannot listen",
        ),
    ] {
        let output = Command::new(BIN)
            .args(["run", "--upgrade", "--upgrade-socket"])
            .arg(&socket)
            .args(good)
            .args(&args)
            .output()
            .expect("it runs");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains(says), "{text}");
    }
    load.go_on(100);
    load.end();
    // And it can still be followed.
    let new = site.upgrade(&[]);
    assert_eq!(new.addr, old.addr);
}

#[test]
fn nobody_to_follow_is_one_clear_line_and_exit_1() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("upgrade.sock");
    let run = |args: &[&str]| {
        let output = Command::new(BIN)
            .args(["run", "--upstream", "http://127.0.0.1:1", "--upgrade"])
            .args(args)
            .output()
            .expect("it runs");
        assert_eq!(output.status.code(), Some(1));
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(text.lines().count(), 1, "{text}");
        text
    };
    assert!(run(&[]).contains("upgrade_socket"));
    let path = path.to_str().expect("UTF-8");
    let text = run(&["--upgrade-socket", path]);
    assert!(
        text.contains(path) && text.contains("without --upgrade"),
        "{text}"
    );
}

#[test]
fn the_socket_is_this_user_s_alone_and_goes_with_the_process() {
    let site = Site::new();
    let mut old = site.start(&[]);
    let mode = |path: &Path| std::fs::metadata(path).expect("it").permissions().mode() & 0o777;
    assert_eq!(mode(&site.socket()), 0o600);
    // A second process does not take the place unasked.
    let output = Command::new(BIN)
        .args([
            "run",
            "--upstream",
            "http://127.0.0.1:1",
            "--admin",
            "127.0.0.1:0",
        ])
        .args(["--listen", "127.0.0.1:0", "--upgrade-socket"])
        .arg(site.socket())
        .output()
        .expect("it runs");
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("--upgrade"), "{text}");
    // Somebody who talks nonsense, or nothing, changes nothing.
    let mut nonsense = UnixStream::connect(site.socket()).expect("a connection");
    nonsense.write_all(&[7; 64]).expect("sent");
    drop(nonsense);
    drop(UnixStream::connect(site.socket()).expect("a connection"));
    let silent = [(); 3].map(|()| UnixStream::connect(site.socket()).expect("a connection"));
    let new = site.upgrade(&[]);
    drop(silent);
    assert_eq!(mode(&site.socket()), 0o600);
    assert_eq!(old.wait(), Some(0));
    assert!(site.socket().exists(), "it is the new one's");
    let mut new = new;
    new.signal("-TERM");
    assert_eq!(new.wait(), Some(0));
    let left: Vec<_> = std::fs::read_dir(site.dir.path()).expect("it").collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn another_user_gets_nothing() {
    if !rustix::process::geteuid().is_root() {
        // Nobody else can be played.
        return;
    }
    let site = Site::new();
    let old = site.start(&[]);
    let open = |path: &Path, mode| {
        let mode = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(path, mode).expect("it is ours");
    };
    open(site.dir.path(), 0o777);
    let program = site.dir.path().join("floodgate");
    std::fs::copy(BIN, &program).expect("a copy that others may run");
    let follow = || {
        let output = Command::new("setpriv")
            .args(["--reuid", "65534", "--clear-groups"])
            .arg(&program)
            .args(["run", "--upstream", "http://127.0.0.1:1", "--upgrade"])
            .arg("--upgrade-socket")
            .arg(site.socket())
            .output()
            .expect("it runs");
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let text = follow();
    assert!(text.contains("Permission denied"), "{text}");
    // Even where the file lets everybody in.
    open(&site.socket(), 0o777);
    let text = follow();
    assert!(text.contains("another user"), "{text}");
    assert_eq!(old.call("GET", PATH, "").status, 200);
}

#[test]
fn addresses_may_change_with_an_upgrade() {
    let site = Site::new();
    let mut old = site.start(&[
        "--listen",
        "127.0.0.1:0 proxy-protocol",
        "--trusted-proxy",
        "127.0.0.1",
    ]);
    let [kept, gone] = old.listeners[..] else {
        panic!("two listeners")
    };
    let free = free_port();
    let new = site.upgrade(&["--listen", &free.to_string()]);
    assert_eq!(new.listeners, [kept, free]);
    for addr in new.listeners.iter().copied() {
        let answer = Connection::to(addr).call("GET", PATH, &[], "");
        assert_eq!(answer.status, 200);
    }
    assert_eq!(old.wait(), Some(0));
    assert!(TcpStream::connect(gone).is_err());
}

#[test]
fn a_running_call_ends_where_it_began_and_an_idle_connection_has_one_more() {
    let site = Site::new();
    let mut old = site.start(&[]);
    let mut running = old.connect();
    running.send_call("GET", PATH, &["x-standin-delay-ms: 8000"], "");
    let mut idle = old.connect();
    assert_eq!(idle.call("GET", PATH, &[], "").status, 200);
    soon("it runs", || {
        old.metric("floodgate_requests_in_flight", &[]) == 1.0
    });
    let new = site.upgrade(&[]);
    assert_eq!(new.call("GET", PATH, "").status, 200);
    let last = idle.call("GET", PATH, &[], "");
    assert_eq!(
        (last.status, last.header("connection")),
        (200, Some("close"))
    );
    assert_eq!(running.read_answer("GET").status, 200);
    assert_eq!(old.wait(), Some(0));
}

#[test]
fn what_waits_on_a_socket_when_a_drain_begins_is_served() {
    let site = Site::new();
    let mut gateway = site.start(&["--threads", "3"]);
    gateway.signal("-STOP");
    let mut waiting: Vec<_> = (0..50)
        .map(|_| {
            let mut connection = gateway.connect();
            connection.send_call("GET", PATH, &[], "");
            connection
        })
        .collect();
    gateway.signal("-TERM");
    gateway.signal("-CONT");
    for connection in &mut waiting {
        assert_eq!(connection.read_answer("GET").status, 200);
    }
    assert_eq!(gateway.wait(), Some(0));
}

/// Calls until the limit is reached, over kept and new connections; how many were admitted.
fn spend(
    addr: SocketAddr,
    path: &'static str,
    callers: usize,
) -> Vec<std::thread::JoinHandle<u32>> {
    let spending = (0..callers).map(|nth| {
        std::thread::spawn(move || {
            let (mut admitted, mut denied) = (0, 0);
            let mut kept = None;
            while denied < 20 {
                let mut connection = kept.take().unwrap_or_else(|| Connection::to(addr));
                let answer = connection.call("GET", path, &[], "");
                match answer.status {
                    200 => admitted += 1,
                    429 => denied += 1,
                    other => panic!("{other}: {}", answer.text()),
                }
                let may_keep = nth % 2 == 0 && answer.header("connection") != Some("close");
                kept = may_keep.then_some(connection);
            }
            admitted
        })
    });
    spending.collect()
}

#[test]
fn what_is_admitted_across_upgrades_is_the_limit_and_no_more() {
    let site = Site::new();
    let mut old = site.start(&["--access-log", "false"]);
    // Connections that have their last call after the upgrade.
    let mut idle: Vec<_> = (0..20).map(|_| old.connect()).collect();
    for connection in &mut idle {
        assert_eq!(connection.call("GET", PATH, &[], "").status, 200);
    }
    let spending = spend(old.addr, "/o/a/t/few", 4);
    let mut late = 0;
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(300));
        let new = site.upgrade(&["--access-log", "false"]);
        for mut connection in idle.drain(..) {
            let answer = connection.call("GET", "/o/a/t/few", &[], "");
            assert_eq!(answer.header("connection"), Some("close"));
            late += u32::from(answer.status == 200);
        }
        assert_eq!(old.wait(), Some(0));
        old = new;
    }
    let spent: u32 = spending
        .into_iter()
        .map(|one| one.join().expect("a caller"))
        .sum();
    assert_eq!(spent + late, 3000);
    assert_eq!(old.call("GET", "/o/a/t/few", "").status, 429);
}

#[test]
fn a_slot_is_held_across_an_upgrade_until_its_call_ends() {
    let site = Site::new();
    let mut old = site.start(&[]);
    let slot = |gateway: &Gateway, delay: &str| {
        let mut connection = gateway.connect();
        connection.send_call("POST", "/o/a/t/slot", &[delay], "");
        connection
    };
    let slots = |gateway: &Gateway| gateway.metric("floodgate_task_slots_in_use", &[]);
    // A token that is seen good may hold all slots.
    old.call("GET", PATH, "");
    // A call that ends, and one that does not.
    let mut ends = slot(&old, "x-standin-delay-ms: 20000");
    let _never = slot(&old, "x-standin-delay-ms: 600000");
    soon("both run", || slots(&old) == 2.0);
    let new = site.upgrade(&[]);
    assert_eq!(slots(&new), 2.0);
    new.call("GET", PATH, "");
    let denied = || {
        let answer = new.call("POST", "/o/a/t/slot", "");
        assert_eq!(answer.status, 403, "{}", answer.text());
    };
    denied();
    assert_eq!(ends.read_answer("POST").status, 200);
    soon("its slot is free", || slots(&new) == 1.0);
    assert_eq!(new.call("POST", "/o/a/t/slot", "").status, 200);
    let mut other = slot(&new, "x-standin-delay-ms: 20000");
    soon("it runs", || slots(&new) == 2.0);
    denied();
    // While the old one's calls are decided by the new one, nobody follows that.
    let output = Command::new(BIN)
        .args([
            "run",
            "--upgrade",
            "--admin",
            "127.0.0.1:0",
            "--listen",
            "127.0.0.1:0",
        ])
        .args(["--upstream", "http://127.0.0.1:1", "--upgrade-socket"])
        .arg(site.socket())
        .output()
        .expect("it runs");
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("still has connections"), "{text}");
    // It ends, whatever of it runs: then that holds nothing any more.
    old.signal("-KILL");
    old.wait();
    soon("its slot is free", || slots(&new) == 1.0);
    assert_eq!(other.read_answer("POST").status, 200);
    soon("all are free", || slots(&new) == 0.0);
}

#[test]
fn when_the_new_process_dies_the_old_one_decides_its_last_calls_itself() {
    let site = Site::new();
    let mut old = site.start(&[]);
    let mut idle: Vec<_> = (0..5).map(|_| old.connect()).collect();
    for connection in &mut idle {
        assert_eq!(connection.call("GET", PATH, &[], "").status, 200);
    }
    let mut new = site.upgrade(&[]);
    let mut idle = idle.into_iter();
    let mut call = || {
        idle.next()
            .expect("one more")
            .call("GET", "/o/a/t/few", &[], "")
    };
    assert_eq!(call().status, 200);
    new.signal("-KILL");
    new.wait();
    assert_eq!(call().status, 200);
    old.signal("-TERM");
    assert_eq!(old.wait(), Some(0));
}

/// A port that is free, and that the system gives to nobody who does not ask for it.
fn free_port() -> SocketAddr {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let of_process = u64::from(std::process::id()) * 64;
    loop {
        let nth = of_process + NEXT.fetch_add(1, Ordering::Relaxed);
        let port = u16::try_from(10_000 + nth % 20_000).expect("a port");
        let addr = SocketAddr::from(([127, 0, 0, 1], port));
        if TcpListener::bind(addr).is_ok() {
            return addr;
        }
    }
}

/// A real balancer before two gateways, with health checks.
struct Balancer {
    process: Child,
    addr: SocketAddr,
    stats: PathBuf,
}

impl Balancer {
    fn start(dir: &Path, servers: &[(SocketAddr, SocketAddr)]) -> Self {
        let addr = free_port();
        let stats = dir.join("stats.sock");
        let mut config = format!(
            "global\n stats socket {}\ndefaults\n mode http\n timeout connect 5s\n \
             timeout client 60s\n timeout server 60s\n timeout check 10s\n option redispatch\n\
             frontend in\n bind {addr}\n default_backend gateways\n\
             backend gateways\n balance roundrobin\n option httpchk GET /ready\n \
             default-server check inter 100ms fall 2 rise 2\n",
            stats.display()
        );
        for (nth, (listen, admin)) in servers.iter().enumerate() {
            config += &format!(" server g{nth} {listen} port {}\n", admin.port());
        }
        let file = dir.join("haproxy.cfg");
        std::fs::write(&file, config).expect("its settings");
        let process = Command::new("haproxy")
            .args(["-db", "-q", "-f"])
            .arg(&file)
            .spawn()
            .expect("haproxy (tests/run installs it)");
        let balancer = Self {
            process,
            addr,
            stats,
        };
        for nth in 0..servers.len() {
            balancer.wait_until_up(nth);
        }
        balancer
    }

    fn is_up(&self, nth: usize) -> bool {
        let Ok(mut stats) = UnixStream::connect(&self.stats) else {
            return false;
        };
        let mut text = String::new();
        let asked = stats.write_all(b"show stat\n");
        asked
            .and_then(|()| stats.read_to_string(&mut text))
            .is_ok_and(|_| {
                let name = format!("gateways,g{nth},");
                let line = text.lines().find(|line| line.starts_with(&name));
                // The eighteenth field is its state.
                line.and_then(|line| line.split(',').nth(17)) == Some("UP")
            })
    }

    fn wait_until_up(&self, nth: usize) {
        soon("the balancer uses it", || self.is_up(nth));
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_rolling_restart_behind_a_balancer_fails_none_of_20_000_calls() {
    let backend = Site::new().backend;
    let dir = tempfile::tempdir().expect("a folder");
    let places: Vec<_> = (0..2).map(|_| (free_port(), free_port())).collect();
    let start = |(listen, admin): (SocketAddr, SocketAddr)| {
        let (listen, admin) = (listen.to_string(), admin.to_string());
        Start {
            routes: ROUTES,
            args: &[
                "--listen",
                &listen,
                "--admin",
                &admin,
                "--drain-delay",
                "6s",
                "--access-log",
                "false",
            ],
            upstream: Some(backend.addr),
            ..Start::default()
        }
        .start()
    };
    let mut gateways: Vec<_> = places.iter().map(|place| start(*place)).collect();
    let balancer = Balancer::start(dir.path(), &places);
    let load = Load::start(
        balancer.addr,
        &[
            How::Anew,
            How::Anew,
            How::Anew,
            How::Kept,
            How::Kept,
            How::Kept,
        ],
    );
    let mut restarts = 0;
    while load.done() < 20_000 || restarts < 4 {
        let nth = restarts % 2;
        load.go_on(1000);
        let old = &mut gateways[nth];
        old.signal("-TERM");
        assert_eq!(old.wait(), Some(0));
        gateways[nth] = start(places[nth]);
        balancer.wait_until_up(nth);
        restarts += 1;
    }
    // The last one has only just come.
    load.go_on(1000);
    let done = load.end();
    assert!(done >= 20_000);
    // Both had their part.
    for gateway in &gateways {
        assert!(gateway.metric("floodgate_decisions_total", &["verb=\"admit\""]) > 0.0);
    }
}
