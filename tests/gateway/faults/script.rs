//! An upstream that does what each call asks it to (`x-fault`), and nothing else: what it writes is
//! bytes, not HTTP. It keeps a record of the calls that it was sent.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use floodgate::clock::Clock;
use parking_lot::Mutex;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Fault {
    /// Nothing does.
    None,
    /// No answer, ever.
    Silent,
    /// A head that comes a byte at a time, and never ends.
    DripHead,
    /// Half a head, and no more.
    HalfHead,
    /// Half a head, and the end.
    HalfHeadClose,
    /// The end, after the request.
    Close,
    /// A reset, after the request.
    Reset,
    /// The end, after the request's head.
    CloseAtHead,
    /// A body that stands still.
    SlowBody,
    /// A body that is reset.
    BodyReset,
    /// A body shorter than it said.
    TooShort,
    /// A body longer than it said.
    TooLong,
    /// Chunks that end without the last one.
    ChunksCut,
    /// A chunk whose size is none.
    BadChunk,
    /// 100 before the answer.
    Continue,
    /// 103 before the answer.
    Hints,
    /// 103 for ever.
    EndlessHints,
    /// Trailers.
    Trailers,
    /// A head of 40 KiB.
    LargeHead,
    /// A head of 2 MiB.
    HugeHead,
    /// 300 fields.
    ManyFields,
    /// Bytes that are no HTTP.
    Garbage,
    /// A status that is none.
    BadStatus,
    /// Two lengths that differ.
    TwoLengths,
    /// 101, for which nobody asked.
    Switch,
    /// A body without end.
    Endless,
    /// An answer before the request's body has been read; the body is read afterwards.
    Early,
    /// The same, and the end of the connection.
    EarlyClose,
    /// The end of a connection that has been used before.
    CloseReused,
    /// An answer, and the end of the connection that it says to keep.
    CloseAfter,
    /// HTTP/1.0, to the end of the connection.
    Http10,
    /// HTTP/1.0, with a length, kept.
    Http10Kept,
    /// 204 with a body.
    NoContent,
    /// 304 with a body.
    NotModified,
    /// Two answers to one request.
    Two,
}

impl Fault {
    pub(crate) const ALL: [Self; 35] = [
        Self::None,
        Self::Silent,
        Self::DripHead,
        Self::HalfHead,
        Self::HalfHeadClose,
        Self::Close,
        Self::Reset,
        Self::CloseAtHead,
        Self::SlowBody,
        Self::BodyReset,
        Self::TooShort,
        Self::TooLong,
        Self::ChunksCut,
        Self::BadChunk,
        Self::Continue,
        Self::Hints,
        Self::EndlessHints,
        Self::Trailers,
        Self::LargeHead,
        Self::HugeHead,
        Self::ManyFields,
        Self::Garbage,
        Self::BadStatus,
        Self::TwoLengths,
        Self::Switch,
        Self::Endless,
        Self::Early,
        Self::EarlyClose,
        Self::CloseReused,
        Self::CloseAfter,
        Self::Http10,
        Self::Http10Kept,
        Self::NoContent,
        Self::NotModified,
        Self::Two,
    ];

    /// As `x-fault` names it.
    pub(crate) fn name(self) -> String {
        format!("{self:?}")
    }

    fn named(name: &str) -> Self {
        let known = Self::ALL.into_iter().find(|fault| fault.name() == name);
        known.unwrap_or(Self::None)
    }
}

/// A call that came.
#[allow(dead_code, reason = "the soak reads all of it")]
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// When, µs of [`Scripted::clock`].
    pub(crate) at_us: u64,
    /// When its caller sent it, by the same clock (`x-sent`).
    pub(crate) sent_us: u64,
    pub(crate) path: String,
    /// `x-units`.
    pub(crate) units: u32,
    /// The gateway's ID of it: attempts have the same.
    pub(crate) id: String,
}

/// A running one. Its connections are closed when it is dropped.
#[allow(dead_code, reason = "the soak goes by its clock")]
pub(crate) struct Scripted {
    pub(crate) addr: SocketAddr,
    pub(crate) clock: Clock,
    state: Arc<State>,
}

struct State {
    clock: Clock,
    seen: Mutex<Vec<Seen>>,
    open: Mutex<Vec<(usize, TcpStream)>>,
    next: AtomicUsize,
}

impl Scripted {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let addr = listener.local_addr().expect("an address");
        let clock = Clock::start();
        let state = Arc::new(State {
            clock,
            seen: Mutex::default(),
            open: Mutex::default(),
            next: AtomicUsize::new(0),
        });
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let state = shared.clone();
                std::thread::spawn(move || state.serve(stream));
            }
        });
        Self { addr, clock, state }
    }

    /// Takes the record.
    pub(crate) fn take_seen(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.state.seen.lock())
    }

    /// Ends all connections.
    pub(crate) fn close_all(&self) {
        for (_, stream) in self.state.open.lock().iter() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Connections that are open.
    pub(crate) fn open(&self) -> usize {
        self.state.open.lock().len()
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.close_all();
    }
}

/// A request's head.
#[derive(Default)]
struct Head {
    method: String,
    path: String,
    fields: Vec<(String, String)>,
}

impl Head {
    fn read(stream: &mut BufReader<TcpStream>) -> Option<Self> {
        let mut head = Self::default();
        let mut line = String::new();
        stream.read_line(&mut line).ok().filter(|n| *n > 0)?;
        let mut words = line.split(' ');
        head.method = words.next()?.to_owned();
        head.path = words.next()?.to_owned();
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).ok().filter(|n| *n > 0)?;
            match line.trim_end().split_once(':') {
                Some((name, value)) => head
                    .fields
                    .push((name.to_ascii_lowercase(), value.trim().to_owned())),
                None => return Some(head),
            }
        }
    }

    fn field(&self, name: &str) -> &str {
        let field = self.fields.iter().find(|(n, _)| n == name);
        field.map_or("", |(_, value)| value)
    }

    /// Reads the body, or some of it.
    fn read_body(&self, stream: &mut BufReader<TcpStream>) -> Option<()> {
        let skip = |stream: &mut BufReader<TcpStream>, n: u64| {
            std::io::copy(&mut stream.take(n), &mut std::io::sink())
                .ok()
                .filter(|copied| *copied == n)
        };
        if self.field("transfer-encoding") == "chunked" {
            loop {
                let mut size = String::new();
                stream.read_line(&mut size).ok().filter(|n| *n > 0)?;
                let size = u64::from_str_radix(size.trim(), 16).ok()?;
                skip(stream, size + 2)?;
                if size == 0 {
                    return Some(());
                }
            }
        }
        skip(stream, self.field("content-length").parse().unwrap_or(0)).map(|_| ())
    }
}

impl State {
    fn serve(&self, tcp: TcpStream) {
        let number = self.next.fetch_add(1, SeqCst);
        let Ok(other) = tcp.try_clone() else { return };
        self.open.lock().push((number, other));
        self.serve_all(tcp);
        self.open.lock().retain(|(n, _)| *n != number);
    }

    fn serve_all(&self, tcp: TcpStream) {
        tcp.set_nodelay(true).expect("an option");
        // None of ours outlives a test by much.
        tcp.set_read_timeout(Some(Duration::from_secs(60)))
            .expect("an option");
        let mut stream = BufReader::new(tcp);
        let mut before = 0;
        while let Some(head) = Head::read(&mut stream) {
            self.note(&head);
            let fault = Fault::named(head.field("x-fault"));
            let wait_ms = head.field("x-wait-ms").parse().unwrap_or(0);
            std::thread::sleep(Duration::from_millis(wait_ms));
            if answer(&mut stream, &head, fault, before).is_none() {
                return;
            }
            before += 1;
        }
    }

    fn note(&self, head: &Head) {
        self.seen.lock().push(Seen {
            at_us: self.clock.now().mono_us,
            sent_us: head.field("x-sent").parse().unwrap_or(0),
            path: head.path.clone(),
            units: head.field("x-units").parse().unwrap_or(1),
            id: head.field("x-request-id").to_owned(),
        });
    }
}

/// `None`: the connection ends here.
fn answer(
    stream: &mut BufReader<TcpStream>,
    head: &Head,
    fault: Fault,
    before: usize,
) -> Option<()> {
    use Fault as F;
    match fault {
        F::CloseAtHead => return None,
        F::Early => {
            ok(stream, head)?;
            return head.read_body(stream);
        }
        F::EarlyClose => {
            ok(stream, head)?;
            return None;
        }
        _ => head.read_body(stream)?,
    }
    let is_head = head.method == "HEAD";
    // The lines of a head, and a body where there may be one.
    let mut whole = |lines: &str, body: &str| {
        let body = if is_head { "" } else { body };
        write(stream, format!("{lines}\r\n\r\n{body}").as_bytes())
    };
    // To a HEAD, the answers whose bodies go wrong are whole.
    let is_of_body = matches!(
        fault,
        F::SlowBody | F::BodyReset | F::TooShort | F::ChunksCut | F::BadChunk | F::Endless
    );
    if is_head && is_of_body {
        return whole("HTTP/1.1 200 OK\r\nContent-Length: 100", "");
    }
    match fault {
        F::None | F::CloseAtHead | F::Early | F::EarlyClose => ok(stream, head),
        F::Silent => wait_for_end(stream),
        F::DripHead => {
            write(stream, b"HTTP/1.1 200 OK\r\nx-drip: ")?;
            repeat(stream, b"x", 50)
        }
        F::HalfHead => {
            write(stream, b"HTTP/1.1 200 OK\r\nContent-Le")?;
            wait_for_end(stream)
        }
        F::HalfHeadClose => {
            write(stream, b"HTTP/1.1 200 OK\r\nContent-Le")?;
            None
        }
        F::Close => None,
        F::Reset => reset(stream),
        F::SlowBody => {
            whole("HTTP/1.1 200 OK\r\nContent-Length: 100", "begun")?;
            wait_for_end(stream)
        }
        F::BodyReset => {
            whole("HTTP/1.1 200 OK\r\nContent-Length: 100", "begun")?;
            // What has been written is to arrive.
            std::thread::sleep(Duration::from_millis(200));
            reset(stream)
        }
        F::TooShort => {
            whole("HTTP/1.1 200 OK\r\nContent-Length: 100", "begun")?;
            None
        }
        F::TooLong => {
            whole("HTTP/1.1 200 OK\r\nContent-Length: 2", "{}too long")?;
            Some(())
        }
        F::ChunksCut => {
            whole(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked",
                "5\r\nbegun\r\n",
            )?;
            None
        }
        F::BadChunk => {
            whole(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked",
                "5\r\nbegun\r\nzz\r\n",
            )?;
            wait_for_end(stream)
        }
        F::Continue => {
            write(stream, b"HTTP/1.1 100 Continue\r\n\r\n")?;
            ok(stream, head)
        }
        F::Hints => {
            write(stream, b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")?;
            ok(stream, head)
        }
        F::EndlessHints => repeat(stream, b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", 5),
        F::Trailers => whole(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum",
            "2\r\n{}\r\n0\r\nx-sum: 1\r\n\r\n",
        ),
        F::LargeHead => {
            let field = format!("x-large: {}", "l".repeat(40 * 1024));
            whole(
                &format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n{field}"),
                "{}",
            )
        }
        F::HugeHead => {
            write(stream, b"HTTP/1.1 200 OK\r\n")?;
            let line = format!("x-huge: {}\r\n", "h".repeat(16 * 1024));
            for _ in 0..128 {
                write(stream, line.as_bytes())?;
            }
            wait_for_end(stream)
        }
        F::ManyFields => {
            let fields: String = (0..300).map(|n| format!("\r\nx-{n}: 1")).collect();
            whole(
                &format!("HTTP/1.1 200 OK\r\nContent-Length: 2{fields}"),
                "{}",
            )
        }
        F::Garbage => {
            write(stream, b"\x16\x03\x01\x02\x00SSH-2.0\0\0\r\n\r\n")?;
            wait_for_end(stream)
        }
        F::BadStatus => whole("HTTP/1.1 2x0 OK\r\nContent-Length: 2", "{}"),
        F::TwoLengths => whole(
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3",
            "{}",
        ),
        F::Switch => {
            whole(
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade",
                "",
            )?;
            wait_for_end(stream)
        }
        F::Endless => {
            whole("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked", "")?;
            let chunk = format!("1000\r\n{}\r\n", "e".repeat(4096));
            repeat(stream, chunk.as_bytes(), 5)
        }
        F::CloseReused if before > 0 => None,
        F::CloseReused => ok(stream, head),
        F::CloseAfter => {
            ok(stream, head)?;
            None
        }
        F::Http10 => {
            whole("HTTP/1.0 200 OK", "{}")?;
            None
        }
        F::Http10Kept => whole(
            "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2",
            "{}",
        ),
        F::NoContent => {
            write(
                stream,
                b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\nhello",
            )?;
            Some(())
        }
        F::NotModified => {
            write(
                stream,
                b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\nhello",
            )?;
            Some(())
        }
        F::Two => {
            ok(stream, head)?;
            write(
                stream,
                b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nanother",
            )?;
            Some(())
        }
    }
}

/// An answer that names its request.
fn ok(stream: &mut BufReader<TcpStream>, head: &Head) -> Option<()> {
    let body = format!("{{\"id\":\"{}\"}}", head.field("x-request-id"));
    let lines = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let body = if head.method == "HEAD" { "" } else { &body };
    write(stream, format!("{lines}{body}").as_bytes())
}

fn write(stream: &mut BufReader<TcpStream>, bytes: &[u8]) -> Option<()> {
    stream.get_mut().write_all(bytes).ok()
}

/// Until the other side has had enough.
fn repeat(stream: &mut BufReader<TcpStream>, bytes: &[u8], every_ms: u64) -> Option<()> {
    // Half an hour of it, at most.
    for _ in 0..1_800_000 / every_ms {
        write(stream, bytes)?;
        std::thread::sleep(Duration::from_millis(every_ms));
    }
    None
}

fn wait_for_end(stream: &mut BufReader<TcpStream>) -> Option<()> {
    let mut bytes = [0; 1024];
    while matches!(stream.read(&mut bytes), Ok(1..)) {}
    None
}

fn reset(stream: &mut BufReader<TcpStream>) -> Option<()> {
    let _ = socket2::SockRef::from(stream.get_ref()).set_linger(Some(Duration::ZERO));
    None
}
