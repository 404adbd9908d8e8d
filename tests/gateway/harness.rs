//! A real gateway process before a real stand-in backend, and a client on raw sockets.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use floodgate::standin::{StandIn, StandInOptions};

/// The program under test.
pub(crate) const BIN: &str = env!("CARGO_BIN_EXE_floodgate");

/// A running gateway. Killed when dropped.
pub(crate) struct Gateway {
    child: Child,
    /// The first listener.
    pub(crate) addr: SocketAddr,
    /// All of them, as given.
    pub(crate) listeners: Vec<SocketAddr>,
    pub(crate) admin: SocketAddr,
    pub(crate) backend: Option<StandIn>,
    /// What it has logged until it listened.
    start: String,
    _dir: tempfile::TempDir,
}

/// How to start one.
#[derive(Default)]
pub(crate) struct Start<'a> {
    /// A second route file over the shipped one.
    pub(crate) routes: &'a str,
    pub(crate) args: &'a [&'a str],
    /// Instead of a stand-in backend.
    pub(crate) upstream: Option<SocketAddr>,
    /// The same, as the flag takes it.
    pub(crate) url: Option<String>,
    /// Whether what it says on standard error is kept, for [`Gateway::errors`].
    pub(crate) keep_errors: bool,
}

pub(crate) fn start(args: &[&str]) -> Gateway {
    Start {
        args,
        ..Start::default()
    }
    .start()
}

impl Start<'_> {
    pub(crate) fn start(self) -> Gateway {
        let backend = match (&self.url, self.upstream) {
            (Some(_), _) | (_, Some(_)) => None,
            (None, None) => {
                Some(StandIn::start(StandInOptions::default()).expect("a stand-in backend"))
            }
        };
        let addr = self.upstream.or(backend.as_ref().map(|b| b.addr));
        let url = self
            .url
            .or(addr.map(|addr| format!("http://{addr}")))
            .expect("an upstream");
        let dir = tempfile::tempdir().expect("a folder");
        let mut command = Command::new(BIN);
        command.args(["run", "--listen", "127.0.0.1:0", "--log", "json"]);
        if !self.args.contains(&"--admin") {
            command.args(["--admin", "127.0.0.1:0"]);
        }
        command.args(["--upstream", &url]);
        command.args(["--routes", "shipped"]);
        if !self.routes.is_empty() {
            let own = dir.path().join("own.toml");
            std::fs::write(&own, self.routes).expect("a route file");
            command.arg("--routes").arg(&own);
        }
        command
            .args(self.args)
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        if self.keep_errors {
            let errors = std::fs::File::create(dir.path().join("errors"));
            command.stderr(errors.expect("a file"));
        }
        let mut child = command.spawn().expect("the gateway starts");
        let mut lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        let mut listeners = Vec::new();
        let mut said = String::new();
        let admin = loop {
            let line = lines
                .next()
                .expect("the gateway says where it listens")
                .expect("UTF-8");
            said += &format!("{line}\n");
            let line: serde_json::Value = serde_json::from_str(&line).expect("a JSON log line");
            let at = |key: &str| {
                line[key]
                    .as_str()
                    .and_then(|at| at.parse::<SocketAddr>().ok())
            };
            listeners.extend(at("listen"));
            if let Some(admin) = at("admin") {
                break admin;
            }
        };
        let log = dir.path().join("log");
        let mut log = std::fs::File::create(log).expect("a log file");
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let _ = writeln!(log, "{line}");
            }
        });
        let gateway = Gateway {
            child,
            addr: *listeners.first().expect("a listener"),
            listeners,
            admin,
            backend,
            start: said,
            _dir: dir,
        };
        gateway.wait_until_listening();
        gateway
    }
}

impl Gateway {
    fn wait_until_listening(&self) {
        for addr in [self.addr, self.admin] {
            let mut tries = 0;
            while TcpStream::connect(addr).is_err() {
                tries += 1;
                assert!(tries < 9000, "{addr} does not listen");
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }

    pub(crate) fn connect(&self) -> Connection {
        Connection::to(self.addr)
    }

    /// One call on a connection of its own, with a token.
    pub(crate) fn call(&self, method: &str, path: &str, body: &str) -> Answer {
        self.connect().call(method, path, &[], body)
    }

    /// The value of a metric, summed over the series that contain all these labels.
    pub(crate) fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let text = Connection::to(self.admin)
            .call("GET", "/metrics", &[], "")
            .text();
        text.lines()
            .filter(|line| {
                line.starts_with(name) && labels.iter().all(|label| line.contains(label))
            })
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    /// What it has said on standard error, where that is kept.
    pub(crate) fn errors(&self) -> String {
        std::fs::read_to_string(self._dir.path().join("errors")).unwrap_or_default()
    }

    /// The file of its log.
    pub(crate) fn log_file(&self) -> std::path::PathBuf {
        self._dir.path().join("log")
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// The same, with what was said before it listened.
    pub(crate) fn whole_log(&self) -> String {
        format!("{}{}", self.start, self.log())
    }

    pub(crate) fn backend(&self) -> &StandIn {
        self.backend.as_ref().expect("a stand-in backend")
    }

    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.pid().to_string();
        assert!(
            Command::new("kill")
                .args([signal, &pid])
                .status()
                .expect("kill")
                .success()
        );
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Resident memory in KiB: now, and the most since the last look at it.
    pub(crate) fn memory(&self) -> (u64, u64) {
        let of = |name: &str| {
            let text = std::fs::read_to_string(format!("/proc/{}/status", self.pid()));
            let text = text.expect("its status");
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|line| line.trim().strip_suffix(" kB"));
            number.and_then(|n| n.trim().parse().ok()).expect("a size")
        };
        let seen = (of("VmRSS:"), of("VmHWM:"));
        // From now on, the most is that of what follows.
        std::fs::write(format!("/proc/{}/clear_refs", self.pid()), "5").expect("a reset");
        seen
    }

    pub(crate) fn wait(&mut self) -> Option<i32> {
        self.child.wait().expect("its end").code()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a client writes to and reads from.
pub(crate) trait Wire: Read + Write + Send {}
impl<T: Read + Write + Send> Wire for T {}

/// A client connection.
pub(crate) struct Connection {
    stream: BufReader<Box<dyn Wire>>,
    tcp: TcpStream,
}

impl Connection {
    pub(crate) fn to(addr: SocketAddr) -> Self {
        Self::over(addr, |tcp| Box::new(tcp))
    }

    /// A connection in which something else goes over TCP.
    pub(crate) fn over(addr: SocketAddr, wrap: impl FnOnce(TcpStream) -> Box<dyn Wire>) -> Self {
        let tcp = TcpStream::connect(addr).expect("a connection");
        tcp.set_read_timeout(Some(Duration::from_secs(90)))
            .expect("a timeout");
        Self {
            stream: BufReader::new(wrap(tcp.try_clone().expect("the same socket"))),
            tcp,
        }
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).expect("sent");
    }

    /// Sends, unless the other side has closed.
    pub(crate) fn try_send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    /// A call with a token and a length; `headers` are lines.
    pub(crate) fn call(
        &mut self,
        method: &str,
        path: &str,
        headers: &[&str],
        body: &str,
    ) -> Answer {
        self.send_call(method, path, headers, body);
        self.read_answer(method)
    }

    pub(crate) fn send_call(&mut self, method: &str, path: &str, headers: &[&str], body: &str) {
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: gateway\r\n");
        if !headers
            .iter()
            .any(|h| h.to_ascii_lowercase().starts_with("authorization:"))
        {
            head.push_str("Authorization: Bearer YWMtgood\r\n");
        }
        for header in headers.iter().filter(|h| !h.ends_with(": -")) {
            head.push_str(header);
            head.push_str("\r\n");
        }
        if !body.is_empty() || method == "POST" || method == "PUT" {
            head.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        head.push_str("\r\n");
        self.send(head.as_bytes());
        self.send(body.as_bytes());
    }

    /// The next answer; 1xx answers are collected, not returned.
    pub(crate) fn read_answer(&mut self, method: &str) -> Answer {
        let mut interim = Vec::new();
        loop {
            let mut line = String::new();
            self.stream.read_line(&mut line).expect("a status line");
            let status: u16 = line
                .split(' ')
                .nth(1)
                .unwrap_or_default()
                .parse()
                .unwrap_or_else(|_| {
                    panic!("no status line: {line:?}");
                });
            let mut headers = Vec::new();
            loop {
                let mut line = String::new();
                self.stream.read_line(&mut line).expect("a header");
                let line = line.trim_end();
                let Some((name, value)) = line.split_once(':') else {
                    break;
                };
                headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
            }
            if (100..200).contains(&status) {
                interim.push(status);
                continue;
            }
            let mut answer = Answer {
                status,
                headers,
                body: Vec::new(),
                interim,
            };
            answer.body = self.read_body(&answer, method);
            return answer;
        }
    }

    /// The status of a 1xx answer, read by itself.
    pub(crate) fn read_interim(&mut self) -> u16 {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            let read = self.stream.read_line(&mut head).expect("a line");
            assert!(read > 0, "closed after {head:?}");
        }
        let status = head.split(' ').nth(1).unwrap_or_default();
        status.parse().expect("a status")
    }

    fn read_body(&mut self, answer: &Answer, method: &str) -> Vec<u8> {
        let mut body = Vec::new();
        if method == "HEAD" || answer.status == 204 || answer.status == 304 {
            return body;
        }
        if answer.header("transfer-encoding") == Some("chunked") {
            loop {
                let mut line = String::new();
                self.stream.read_line(&mut line).expect("a chunk size");
                let size = usize::from_str_radix(line.trim(), 16).expect("a chunk size");
                let mut chunk = vec![0; size + 2];
                self.stream.read_exact(&mut chunk).expect("a chunk");
                if size == 0 {
                    return body;
                }
                body.extend_from_slice(&chunk[..size]);
            }
        }
        match answer.header("content-length") {
            Some(length) => {
                body.resize(length.parse().expect("a length"), 0);
                self.stream.read_exact(&mut body).expect("a body");
            }
            None => {
                self.stream.read_to_end(&mut body).expect("a body");
            }
        }
        body
    }

    /// Closes its own half.
    pub(crate) fn say_no_more(&self) {
        self.tcp.shutdown(Shutdown::Write).expect("shut down");
    }

    /// Closes with a reset: to close without reading what has come would do the same.
    pub(crate) fn reset(self) {
        socket2::SockRef::from(&self.tcp)
            .set_linger(Some(Duration::ZERO))
            .expect("a socket option");
    }

    /// Whether the other side has closed.
    pub(crate) fn is_closed(&mut self) -> bool {
        let mut byte = [0];
        matches!(self.stream.read(&mut byte), Ok(0))
    }

    /// Whether the other side has closed, or reset, before it has said anything.
    pub(crate) fn is_gone(&mut self) -> bool {
        let mut byte = [0];
        match self.stream.read(&mut byte) {
            Ok(n) => n == 0,
            Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
        }
    }

    /// A line, or why there is none.
    pub(crate) fn try_line(&mut self) -> Result<String, String> {
        let mut line = String::new();
        match self.stream.read_line(&mut line) {
            Ok(0) => Err("closed".to_owned()),
            Ok(_) => Ok(line),
            Err(error) => Err(error.to_string()),
        }
    }

    /// So many bytes.
    pub(crate) fn read_some(&mut self, n: usize) -> Vec<u8> {
        let mut bytes = vec![0; n];
        self.stream.read_exact(&mut bytes).expect("bytes");
        bytes
    }

    /// All that comes until the other side closes.
    pub(crate) fn rest(&mut self) -> String {
        let mut rest = Vec::new();
        let _ = self.stream.read_to_end(&mut rest);
        String::from_utf8_lossy(&rest).into_owned()
    }
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    pub(crate) interim: Vec<u16>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    /// `error` and `error_description`.
    pub(crate) fn error(&self) -> (String, String) {
        let json = self.json();
        let text = |key: &str| json[key].as_str().unwrap_or_default().to_owned();
        for key in ["error", "exception", "error_description"] {
            assert!(json[key].is_string(), "{key} is missing: {json}");
        }
        for key in ["timestamp", "duration"] {
            assert!(json[key].is_u64(), "{key} is missing: {json}");
        }
        (text("error"), text("error_description"))
    }
}
