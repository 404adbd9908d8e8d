//! Paths, against what an nginx resolves: whatever is admitted, an nginx behind the gateway
//! reads as the gateway does.
//!
//! Starts an nginx of its own (Debian's, if it is in the PATH) on a socket in a folder for its
//! time; it ends when this process does.
#![no_main]

use std::cell::RefCell;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use floodgate::route::canonical::{canonical, decode};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    // The first byte is a method in the corpus that this shares with `path`.
    let raw = data.get(1..).and_then(|raw| std::str::from_utf8(raw).ok());
    let Some(raw) = raw else { return };
    // Longer ones get an answer of their own from both.
    if raw.len() > 4096 {
        return;
    }
    let Ok(path) = canonical(raw) else {
        return;
    };
    NGINX.with_borrow_mut(|nginx| {
        let nginx = nginx.get_or_insert_with(Nginx::start);
        let read = decode(&path);
        assert_eq!(
            nginx.resolves(path.as_bytes()),
            Some(read.clone()),
            "{path:?}, sent on"
        );
        // As it came, where that can be a request's target: it may have a slash at its end.
        if raw.bytes().all(|b| b > b' ' && b != 0x7f) {
            let mut found = nginx.resolves(raw.as_bytes());
            if let Some(found) = &mut found
                && found.len() > 1
                && found.last() == Some(&b'/')
            {
                found.pop();
            }
            assert_eq!(found, Some(read), "{raw:?}, as it came");
        }
    });
});

thread_local! {
    static NGINX: RefCell<Option<Nginx>> = const { RefCell::new(None) };
}

struct Nginx {
    /// Ends with this process, and the nginx with it.
    _shell: Child,
    socket: PathBuf,
    connection: BufReader<UnixStream>,
}

impl Nginx {
    fn start() -> Self {
        let folder = std::env::temp_dir().join(format!("floodgate-fuzz-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let shown = folder.display();
        let socket = folder.join("socket");
        let configuration = format!(
            "worker_processes 1; daemon off; pid {shown}/pid; error_log stderr crit;
             events {{ worker_connections 64; }}
             http {{
                 access_log off; keepalive_requests 1000000000; keepalive_timeout 1d;
                 default_type application/octet-stream;
                 client_body_temp_path {shown}; proxy_temp_path {shown};
                 fastcgi_temp_path {shown}; uwsgi_temp_path {shown}; scgi_temp_path {shown};
                 large_client_header_buffers 4 32k;
                 server {{ listen unix:{}; location / {{ return 200 $uri; }} }}
             }}",
            socket.display()
        );
        std::fs::write(folder.join("nginx.conf"), configuration).expect("written");
        let script = "nginx -c \"$1/nginx.conf\" & read -r _; kill $!; wait $!; rm -r \"$1\"";
        let shell = Command::new("sh")
            .args(["-c", script, "sh"])
            .arg(&folder)
            .stdin(Stdio::piped())
            .spawn()
            .expect("a shell");
        Self {
            _shell: shell,
            connection: connect(&socket),
            socket,
        }
    }

    /// The path as nginx sees it; `None`: it refuses it.
    fn resolves(&mut self, target: &[u8]) -> Option<Vec<u8>> {
        let request = [b"GET ", target, b" HTTP/1.1\r\nHost: a\r\n\r\n"].concat();
        self.connection.get_mut().write_all(&request).expect("sent");
        let (mut status, mut length, mut is_last) = (String::new(), 0, false);
        self.connection.read_line(&mut status).expect("an answer");
        loop {
            let mut line = String::new();
            self.connection.read_line(&mut line).expect("a field");
            let line = line.trim_end().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            is_last |= line == "connection: close";
            if let Some(value) = line.strip_prefix("content-length: ") {
                length = value.parse().expect("a length");
            }
        }
        let mut body = vec![0; length];
        self.connection.read_exact(&mut body).expect("a body");
        if is_last {
            self.connection = connect(&self.socket);
        }
        status.starts_with("HTTP/1.1 200").then_some(body)
    }
}

fn connect(socket: &PathBuf) -> BufReader<UnixStream> {
    for _ in 0..500 {
        if let Ok(stream) = UnixStream::connect(socket) {
            return BufReader::new(stream);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("no nginx: is it in the PATH?");
}
