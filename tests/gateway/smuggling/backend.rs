//! A backend that reads strictly: what has two readings is a fault, and never a request.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// A request as read.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) method: String,
    pub(super) target: String,
    pub(super) body: Vec<u8>,
}

#[derive(Debug, Default)]
struct Seen {
    requests: Vec<Request>,
    faults: Vec<String>,
}

pub(super) struct Backend {
    pub(super) addr: SocketAddr,
    seen: Arc<Mutex<Seen>>,
}

/// Why there is no request.
enum Stop {
    /// The connection ended: before a request, or before its end.
    Gone,
    Fault(String),
}

impl From<std::io::Error> for Stop {
    fn from(_: std::io::Error) -> Self {
        Self::Gone
    }
}

fn fault<T>(what: &str, at: &[u8]) -> Result<T, Stop> {
    Err(Stop::Fault(format!("{what}: {}", at.escape_ascii())))
}

impl Backend {
    pub(super) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let addr = listener.local_addr().expect("an address");
        let seen: Arc<Mutex<Seen>> = Arc::default();
        let shared = seen.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let seen = shared.clone();
                std::thread::spawn(move || serve(stream, &seen));
            }
        });
        Self { addr, seen }
    }

    /// What has been seen since the last look.
    pub(super) fn take(&self) -> Vec<Request> {
        std::mem::take(&mut self.seen.lock().expect("a lock").requests)
    }

    pub(super) fn faults(&self) -> Vec<String> {
        self.seen.lock().expect("a lock").faults.clone()
    }
}

fn serve(stream: TcpStream, seen: &Mutex<Seen>) {
    let mut writer = stream.try_clone().expect("a second handle");
    let mut reader = BufReader::new(stream);
    loop {
        match read(&mut reader) {
            Ok(request) => {
                let is_head = request.method == "HEAD";
                seen.lock().expect("a lock").requests.push(request);
                let body = if is_head { "" } else { "{}" };
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{body}");
                if writer.write_all(answer.as_bytes()).is_err() {
                    return;
                }
            }
            Err(Stop::Gone) => return,
            Err(Stop::Fault(what)) => {
                seen.lock().expect("a lock").faults.push(what);
                return;
            }
        }
    }
}

/// A line without its end, which is CR LF and nothing else.
fn line(reader: &mut impl BufRead) -> Result<Vec<u8>, Stop> {
    let mut line = Vec::new();
    reader.read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Err(Stop::Gone);
    }
    match line.strip_suffix(b"\r\n") {
        Some(text) if text.iter().all(|b| *b != b'\r' && *b != 0) => Ok(text.to_vec()),
        _ => fault("a line's end", &line),
    }
}

fn is_token(text: &[u8]) -> bool {
    !text.is_empty()
        && text
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b))
}

fn read(reader: &mut impl BufRead) -> Result<Request, Stop> {
    let first = line(reader)?;
    let parts: Vec<&[u8]> = first.split(|b| *b == b' ').collect();
    let [method, target, b"HTTP/1.1"] = parts[..] else {
        return fault("a request line", &first);
    };
    if !is_token(method) || !target.starts_with(b"/") || !target.iter().all(u8::is_ascii_graphic) {
        return fault("a request line", &first);
    }
    let mut fields = Vec::new();
    loop {
        let line = line(reader)?;
        if line.is_empty() {
            break;
        }
        let Some(colon) = line.iter().position(|b| *b == b':') else {
            return fault("a field", &line);
        };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        // A name with `_` is a second spelling to many.
        let is_spelt_twice = name.contains(&b'_') && name != b"app_key";
        if !is_token(name) || is_spelt_twice || value.iter().any(u8::is_ascii_control) {
            return fault("a field", &line);
        }
        fields.push((
            String::from_utf8_lossy(name).to_ascii_lowercase(),
            String::from_utf8_lossy(value).into_owned(),
        ));
    }
    let all = |name: &str| -> Vec<&str> {
        let named = fields.iter().filter(|(n, _)| n == name);
        named.map(|(_, value)| value.as_str()).collect()
    };
    let [host] = all("host")[..] else {
        return fault("Host", &first);
    };
    if host.is_empty() || host.contains(|c: char| !c.is_ascii_alphanumeric() && c != ':') {
        return fault("Host", host.as_bytes());
    }
    for hop in [
        "upgrade",
        "http2-settings",
        "te",
        "trailer",
        "keep-alive",
        "proxy-connection",
    ] {
        if !all(hop).is_empty() {
            return fault("a field of the hop before", hop.as_bytes());
        }
    }
    let body = match (&all("content-length")[..], &all("transfer-encoding")[..]) {
        ([], []) => Vec::new(),
        ([length], []) => {
            let is_plain = length.bytes().all(|b| b.is_ascii_digit())
                && (*length == "0" || !length.starts_with('0'));
            let Some(length) = length.parse().ok().filter(|_| is_plain) else {
                return fault("a length", length.as_bytes());
            };
            let mut body = vec![0; length];
            reader.read_exact(&mut body)?;
            body
        }
        ([], ["chunked"]) => chunks(reader)?,
        _ => return fault("two framings", &first),
    };
    Ok(Request {
        method: String::from_utf8_lossy(method).into_owned(),
        target: String::from_utf8_lossy(target).into_owned(),
        body,
    })
}

/// No zeros before a size, no extension, no trailer.
fn chunks(reader: &mut impl BufRead) -> Result<Vec<u8>, Stop> {
    let mut body = Vec::new();
    loop {
        let text = line(reader)?;
        let size = std::str::from_utf8(&text)
            .ok()
            .filter(|text| text.bytes().all(|b| b.is_ascii_hexdigit()))
            .and_then(|text| usize::from_str_radix(text, 16).ok());
        let Some(size) = size.filter(|_| text == b"0" || !text.starts_with(b"0")) else {
            return fault("a chunk's size", &text);
        };
        let start = body.len();
        body.resize(start + size, 0);
        reader.read_exact(&mut body[start..])?;
        let end = line(reader)?;
        if !end.is_empty() {
            return fault("a chunk's end", &end);
        }
        if size == 0 {
            return Ok(body);
        }
    }
}
