//! HTTP/2 over clear text, frame by frame.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::harness::Gateway;

pub(crate) type Field<'a> = (&'a str, &'a str);

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a length");
    let mut frame = length.to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A length in seven bits, or more (RFC 7541, 5.1).
fn length(block: &mut Vec<u8>, length: usize) {
    let byte = |n: usize| u8::try_from(n).expect("a byte");
    let Some(mut rest) = length.checked_sub(127) else {
        block.push(byte(length));
        return;
    };
    block.push(127);
    while rest >= 128 {
        block.push(byte(rest % 128 + 128));
        rest /= 128;
    }
    block.push(byte(rest));
}

/// Each field as a literal that nobody remembers.
pub(crate) fn head(fields: &[Field<'_>]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            length(&mut block, text.len());
            block.extend(text.as_bytes());
        }
    }
    block
}

/// The status in a block of fields: its first one.
pub(crate) fn status(block: &[u8]) -> u16 {
    match block[0] {
        0x88 => 200,
        0x8c => 400,
        0x8d => 404,
        0x8e => 500,
        // A literal of which the name is known; digits in five and six bits.
        _ => {
            let bits: Vec<u8> = block[2..]
                .iter()
                .flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1))
                .collect();
            let (mut at, mut status) = (0, 0);
            for _ in 0..3 {
                let number = |length| {
                    bits[at..at + length]
                        .iter()
                        .fold(0, |n, b| n << 1 | u16::from(*b))
                };
                let (length, digit) = match number(5) {
                    digit @ 0..=2 => (5, digit),
                    _ => (6, number(6) - 0x19 + 3),
                };
                at += length;
                status = status * 10 + digit;
            }
            status
        }
    }
}

/// The fields of a call with a token.
pub(crate) fn call<'a>(method: &'a str, path: &'a str, more: &[Field<'a>]) -> Vec<Field<'a>> {
    let first = [
        (":method", method),
        (":scheme", "http"),
        (":authority", "gateway"),
        (":path", path),
        ("authorization", "Bearer YWMtgood"),
    ];
    [&first[..], more].concat()
}

/// One frame, as it came.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    /// The error of a GOAWAY, or of a reset stream.
    pub(crate) fn error(&self) -> u32 {
        let from = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[from..from + 4].try_into().expect("a number"))
    }
}

/// A client connection. It has sent its preface and its settings, which are those of everyone.
pub(crate) struct Peer {
    tcp: TcpStream,
}

impl Peer {
    pub(crate) fn new(gateway: &Gateway) -> Self {
        Self::over(TcpStream::connect(gateway.addr).expect("a connection"))
    }

    pub(crate) fn over(mut tcp: TcpStream) -> Self {
        tcp.set_nodelay(true).expect("a socket option");
        for timeout in [TcpStream::set_read_timeout, TcpStream::set_write_timeout] {
            timeout(&tcp, Some(Duration::from_secs(60))).expect("a timeout");
        }
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        bytes.extend(frame(SETTINGS, 0, 0, &[]));
        // One that is turned away may be closed already.
        let _ = tcp.write_all(&bytes);
        Self { tcp }
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.tcp.write_all(bytes)
    }

    /// A whole request without a body.
    pub(crate) fn ask(&mut self, stream: u32, fields: &[Field<'_>]) {
        let flags = END_STREAM | END_HEADERS;
        self.send(&frame(HEADERS, flags, stream, &head(fields)))
            .expect("sent");
    }

    /// The next frame. `None`: the connection is closed, or nothing comes.
    pub(crate) fn next(&mut self) -> Option<Frame> {
        let mut start = [0; 9];
        self.tcp.read_exact(&mut start).ok()?;
        let length = u32::from_be_bytes([0, start[0], start[1], start[2]]);
        let mut payload = vec![0; usize::try_from(length).expect("a length")];
        self.tcp.read_exact(&mut payload).ok()?;
        Some(Frame {
            kind: start[3],
            stream: u32::from_be_bytes([start[5], start[6], start[7], start[8]]),
            payload,
        })
    }

    /// The next frame of these kinds.
    pub(crate) fn next_of(&mut self, kinds: &[u8]) -> Option<Frame> {
        loop {
            let frame = self.next()?;
            if kinds.contains(&frame.kind) {
                return Some(frame);
            }
        }
    }

    /// The status of the next answer.
    pub(crate) fn answered(&mut self) -> Option<u16> {
        let is_end = |frame: &Frame| match frame.kind {
            HEADERS | RST_STREAM => true,
            GOAWAY => frame.error() > 0,
            _ => false,
        };
        let frame = std::iter::from_fn(|| self.next()).find(is_end)?;
        (frame.kind == HEADERS).then(|| status(&frame.payload))
    }

    /// Sends a body as its windows allow, and reads the status of the answer.
    pub(crate) fn upload(&mut self, stream: u32, length: usize) -> Option<u16> {
        self.upload_bytes(stream, &vec![b'x'; length])
    }

    /// The same with this body.
    pub(crate) fn upload_bytes(&mut self, stream: u32, body: &[u8]) -> Option<u16> {
        let mut left = body.len();
        // Of the connection, and of the stream: what everyone begins with.
        let mut windows = [65_535, 65_535];
        loop {
            let size = left.min(10_000);
            if left > 0 && windows.iter().all(|window| *window >= size) {
                let piece = &body[body.len() - left..][..size];
                left -= size;
                windows = windows.map(|window| window - size);
                let end = if left == 0 { END_STREAM } else { 0 };
                // Whoever has answered may have closed.
                let _ = self.send(&frame(DATA, end, stream, piece));
                continue;
            }
            let frame = self.next_of(&[HEADERS, RST_STREAM, GOAWAY, WINDOW_UPDATE])?;
            match frame.kind {
                HEADERS => return Some(status(&frame.payload)),
                WINDOW_UPDATE => {
                    let more = u32::from_be_bytes(frame.payload.try_into().expect("a number"));
                    windows[usize::from(frame.stream > 0)] +=
                        usize::try_from(more).expect("a size");
                }
                _ => return None,
            }
        }
    }

    pub(crate) fn close(&self) {
        let _ = self.tcp.shutdown(std::net::Shutdown::Both);
    }

    /// Reads in the background, and tells what came until the connection is closed.
    pub(crate) fn reading(&self) -> std::thread::JoinHandle<Vec<Frame>> {
        let mut reader = Self {
            tcp: self.tcp.try_clone().expect("the same socket"),
        };
        std::thread::spawn(move || std::iter::from_fn(|| reader.next()).collect())
    }
}
