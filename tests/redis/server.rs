//! Real servers on free ports: one, with TLS, under sentinels, in a cluster. Killed when dropped.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(90);

/// Waits until `ready` says yes.
#[expect(clippy::disallowed_methods, reason = "waits for a real process")]
pub(crate) fn wait_until(what: &str, mut ready: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !ready() {
        assert!(Instant::now() < end, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A port that is free, as is the one 10,000 above it (a cluster's bus). Each is given out once.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        // Below the ports that systems give to outgoing connections; processes begin apart.
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        // Far apart also for neighbours: the sentinels of one would order the other's servers.
        let start = u64::from(std::process::id()) * 7_919 % 9_000;
        let start = u16::try_from(start).unwrap();
        let port = 12_000 + (start + step) % 9_000;
        let is_free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
        if is_free(port) && is_free(port + 10_000) {
            return port;
        }
    }
}

/// Certificates of one authority, for servers on 127.0.0.1 and for a client.
pub(crate) struct Certificates {
    dir: TempDir,
}

impl Certificates {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // OpenSSL takes a certificate that has its issuer's name for a self-signed one.
        params
            .distinguished_name
            .push(DnType::CommonName, "authority");
        let ca_key = KeyPair::generate().unwrap();
        let ca = params.self_signed(&ca_key).unwrap().pem();
        fs::write(dir.path().join("ca.pem"), ca).unwrap();
        let issuer = Issuer::new(params, ca_key);
        for (name, hosts) in [
            ("server", vec!["127.0.0.1".to_owned(), "localhost".into()]),
            ("client", Vec::new()),
        ] {
            let key = KeyPair::generate().unwrap();
            let params = CertificateParams::new(hosts).unwrap();
            let certificate = params.signed_by(&key, &issuer).unwrap().pem();
            fs::write(dir.path().join(format!("{name}.pem")), certificate).unwrap();
            fs::write(dir.path().join(format!("{name}.key")), key.serialize_pem()).unwrap();
        }
        Self { dir }
    }

    /// `ca.pem`, `server.pem`, `server.key`, `client.pem`, `client.key`.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn lines(&self) -> String {
        format!(
            "tls-ca-cert-file {}\ntls-cert-file {}\ntls-key-file {}\n",
            self.path("ca.pem").display(),
            self.path("server.pem").display(),
            self.path("server.key").display(),
        )
    }
}

/// A redis-server.
pub(crate) struct Server {
    child: Option<Child>,
    port: u16,
    tls: bool,
    sentinel: bool,
    clock: Option<Clock>,
    dir: TempDir,
}

/// A server's clock that can be put forward and back: `clock.c`.
struct Clock {
    library: PathBuf,
    /// Seconds from the time of the day to noon: then no jump of an hour is one to another day.
    noon_s: i64,
}

impl Clock {
    fn new() -> Self {
        static LIBRARY: OnceLock<TempDir> = OnceLock::new();
        let dir = LIBRARY.get_or_init(|| {
            let dir = tempfile::tempdir().unwrap();
            let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/redis/clock.c");
            let output = Command::new("cc")
                .args(["-shared", "-fPIC", "-O1", "-o"])
                .arg(dir.path().join("clock.so"))
                .arg(source)
                .output()
                .expect("a C compiler, which tests/run installs");
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{said}");
            dir
        });
        let now_us = floodgate::clock::Clock::start().now().unix_us;
        let of_day = i64::try_from(now_us / 1_000_000 % 86_400).unwrap();
        Self {
            library: dir.path().join("clock.so"),
            noon_s: 43_200 - of_day,
        }
    }
}

impl Server {
    /// With a clock of its own: [`Server::put_clock`].
    pub(crate) fn with_clock(lines: &[&str]) -> Self {
        let clock = Some(Clock::new());
        Self::run(free_port(), false, false, clock, &lines.join("\n"))
    }

    /// Puts the clock so many seconds ahead of where it was in the beginning, at once.
    pub(crate) fn put_clock(&self, ahead_s: i64) {
        let clock = self.clock.as_ref().unwrap();
        let ahead_s = clock.noon_s + ahead_s;
        // In its place, in one piece: the server looks at it all the time.
        let path = self.dir.path().join("clock");
        let mut options = fs::OpenOptions::new();
        let file = options.create(true).truncate(false).write(true).open(path);
        let all = file.unwrap().write(&ahead_s.to_ne_bytes()).unwrap();
        assert_eq!(all, 8);
    }

    /// With default settings.
    pub(crate) fn start() -> Self {
        Self::with(&[])
    }

    /// With these lines in its configuration.
    pub(crate) fn with(lines: &[&str]) -> Self {
        Self::run(free_port(), false, false, None, &lines.join("\n"))
    }

    /// With TLS alone; asks for a client's certificate.
    pub(crate) fn tls(certificates: &Certificates) -> Self {
        Self::run(free_port(), true, false, None, &certificates.lines())
    }

    fn run(port: u16, tls: bool, sentinel: bool, clock: Option<Clock>, lines: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ports = match tls {
            true => format!("port 0\ntls-port {port}"),
            false => format!("port {port}"),
        };
        let common = "bind 127.0.0.1\ndaemonize no\nlogfile log\nloglevel notice";
        let data = match sentinel {
            true => "",
            false => "save \"\"\nrepl-diskless-sync-delay 0",
        };
        let place = dir.path().display();
        let text = format!("{ports}\n{common}\n{data}\ndir {place}\n{lines}\n");
        fs::write(dir.path().join("redis.conf"), text).unwrap();
        let mut server = Self {
            child: None,
            port,
            tls,
            sentinel,
            clock,
            dir,
        };
        server.launch();
        server
    }

    fn launch(&mut self) {
        let mut command = Command::new("redis-server");
        command.arg(self.dir.path().join("redis.conf"));
        if self.sentinel {
            command.arg("--sentinel");
        }
        if let Some(clock) = &self.clock {
            self.put_clock(0);
            command
                .env("LD_PRELOAD", &clock.library)
                .env("CLOCK", self.dir.path().join("clock"));
        }
        let child = command
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        self.child = Some(child.expect("redis-server, which tests/run installs"));
        wait_until("a redis-server answers", || {
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none(), "redis-server ended: {}", self.log());
            self.answers()
        });
    }

    /// Whether it answers at all; behind TLS, whether it accepts.
    fn answers(&self) -> bool {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.port)) else {
            return false;
        };
        if self.tls {
            return true;
        }
        let mut byte = [0];
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(b"PING\r\n").is_ok() && stream.read_exact(&mut byte).is_ok()
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Its URL, without a user.
    pub(crate) fn url(&self) -> String {
        let s = if self.tls { "s" } else { "" };
        format!("redis{s}://127.0.0.1:{}", self.port)
    }

    /// What it keeps on disk.
    pub(crate) fn dump(&self) -> std::path::PathBuf {
        self.dir.path().join("dump.rdb")
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Runs a command through `redis-cli`; its output.
    pub(crate) fn cli(&self, arguments: &[&str]) -> String {
        cli(self.port, arguments)
    }

    /// Asks it to end, and waits.
    pub(crate) fn stop(&mut self) {
        self.signal("TERM");
        if let Some(mut child) = self.child.take() {
            child.wait().unwrap();
        }
    }

    /// Ends it without a word.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Lets it hang: its sockets live on, nothing answers.
    pub(crate) fn freeze(&self) {
        self.signal("STOP");
    }

    pub(crate) fn thaw(&self) {
        self.signal("CONT");
    }

    /// Back on the same port, with what it has kept on disk.
    pub(crate) fn restart(&mut self) {
        self.kill();
        self.launch();
    }

    /// Back on the same port, with nothing in it. Whether it still runs or not.
    pub(crate) fn restart_empty(&mut self) {
        self.kill();
        self.launch();
    }

    fn signal(&self, name: &str) {
        if let Some(child) = &self.child {
            let pid = child.id().to_string();
            let status = Command::new("kill").args(["-s", name, &pid]).status();
            assert!(status.unwrap().success(), "kill -s {name} {pid}");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn cli(port: u16, arguments: &[&str]) -> String {
    let output = Command::new("redis-cli")
        .args(["-h", "127.0.0.1", "-p", &port.to_string()])
        .args(arguments)
        .output()
        .expect("redis-cli");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// A master and a replica under three sentinels, which call the master `counters`.
pub(crate) struct Watched {
    pub(crate) nodes: [Server; 2],
    pub(crate) sentinels: Vec<Server>,
}

impl Watched {
    pub(crate) fn start() -> Self {
        let master = Server::start();
        let replica = Server::with(&[&format!("replicaof 127.0.0.1 {}", master.port())]);
        Self::over(master, replica)
    }

    pub(crate) fn over(master: Server, replica: Server) -> Self {
        let port = master.port();
        let lines = format!(
            "sentinel monitor counters 127.0.0.1 {port} 2\n\
             sentinel down-after-milliseconds counters 2000\n\
             sentinel failover-timeout counters 6000\n"
        );
        let sentinels: Vec<_> = (0..3)
            .map(|_| Server::run(free_port(), false, true, None, &lines))
            .collect();
        wait_until("the sentinels know each other and the replica", || {
            sentinels.iter().all(|sentinel| {
                let text = sentinel.cli(&["sentinel", "master", "counters"]);
                let lines: Vec<_> = text.lines().collect();
                let has = |key: &str, value: &str| lines.windows(2).any(|w| w == [key, value]);
                has("num-other-sentinels", "2") && has("num-slaves", "1")
            })
        });
        wait_until("the replica is in step", || {
            let info = replica.cli(&["info", "replication"]);
            info.contains("master_link_status:up")
        });
        Self {
            nodes: [master, replica],
            sentinels,
        }
    }

    pub(crate) fn url(&self) -> String {
        let hosts: Vec<_> = self.sentinels.iter().map(host).collect();
        format!("redis-sentinel://{}/counters", hosts.join(","))
    }

    /// The port of the master, as the nodes have it.
    pub(crate) fn master_port_of_nodes(&self) -> u16 {
        let is_master = |node: &&Server| node.cli(&["role"]).starts_with("master");
        self.nodes.iter().find(is_master).unwrap().port()
    }

    /// The port of the master, as a sentinel has it.
    pub(crate) fn master_port(&self) -> u16 {
        let answer = self.sentinels[0].cli(&["sentinel", "get-master-addr-by-name", "counters"]);
        answer.lines().last().unwrap().parse().unwrap()
    }
}

/// A Redis Cluster of three masters.
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Server>,
}

impl Cluster {
    /// With so many replicas for each master.
    pub(crate) fn start(replicas: usize) -> Self {
        let lines = "cluster-enabled yes\ncluster-node-timeout 4000";
        let nodes: Vec<_> = (0..3 * (1 + replicas))
            .map(|_| Server::with(&[lines]))
            .collect();
        let hosts: Vec<_> = nodes.iter().map(host).collect();
        let output = Command::new("redis-cli")
            .args(["--cluster", "create"])
            .args(&hosts)
            .args(["--cluster-replicas", &replicas.to_string(), "--cluster-yes"])
            .output()
            .expect("redis-cli");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{said}");
        wait_until("every node sees the whole cluster", || {
            nodes.iter().all(|node| {
                let info = node.cli(&["cluster", "info"]);
                info.contains("cluster_state:ok")
                    && info.contains(&format!("cluster_known_nodes:{}", nodes.len()))
            })
        });
        Self { nodes }
    }

    /// The port of the master that serves a slot.
    pub(crate) fn master_of(&self, slot: u16) -> u16 {
        let nodes = self.nodes[0].cli(&["cluster", "nodes"]);
        let serves = |line: &&str| {
            line.split(' ').skip(8).any(|range| {
                let (from, to) = range.split_once('-').unwrap_or((range, range));
                let (from, to) = (from.parse::<u16>(), to.parse::<u16>());
                from.is_ok_and(|from| from <= slot) && to.is_ok_and(|to| slot <= to)
            })
        };
        let line = nodes.lines().find(serves).expect("a master of the slot");
        let address = line.split([' ', '@']).nth(1).unwrap();
        address.rsplit(':').next().unwrap().parse().unwrap()
    }

    pub(crate) fn url(&self) -> String {
        let hosts: Vec<_> = self.nodes.iter().map(host).collect();
        format!("redis-cluster://{}", hosts.join(","))
    }
}

fn host(server: &Server) -> String {
    format!("127.0.0.1:{}", server.port())
}

/// A file with this text in it, gone with the folder.
pub(crate) fn file(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, text).unwrap();
    path
}
