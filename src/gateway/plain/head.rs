//! The heads of answers, as HTTP/1.1 has them on the wire.

use std::mem::MaybeUninit;

use http::{HeaderName, Method, header};
use pingora::{Error, ErrorType};
use smallvec::SmallVec;

use super::framing::{Chunk, Framing};
use crate::gateway::field::{Value, push_end, push_own};
use crate::gateway::headers;
use crate::limit::Moment;

/// The most fields of an answer, and its longest head in bytes: pingora's.
const MAX_FIELDS: usize = 256;
const MAX_HEAD: usize = 1_048_575;

/// Fields of ours: they go out in place of the upstream's.
#[derive(Debug)]
pub(super) struct Own {
    names: SmallVec<[HeaderName; 5]>,
    wire: Vec<u8>,
}

impl Own {
    pub(super) fn new() -> Self {
        Self {
            names: SmallVec::new(),
            wire: Vec::with_capacity(256),
        }
    }

    pub(super) fn put(&mut self, name: HeaderName, value: Value<'_>) {
        push_own(&mut self.wire, &name, value);
        self.names.push(name);
    }
}

/// The head of an answer.
#[derive(Debug)]
pub(super) struct Head {
    /// Bytes that it had.
    pub(super) length: usize,
    pub(super) status: u16,
    /// What goes on of it: its line, and its fields but for those of the hop and of ours.
    pub(super) wire: Vec<u8>,
    pub(super) framing: Framing,
    /// Whether the connection can have another call after it.
    pub(super) is_kept: bool,
    /// Whether its body is in a coding.
    pub(super) is_coded: bool,
    /// Whether it announces a body of no bytes.
    pub(super) is_empty: bool,
}

/// Writes a value, if it is folded in one line (RFC 9112, 5.2).
fn push_unfolded(wire: &mut Vec<u8>, value: &[u8]) {
    let is_end = |b: &u8| matches!(b, b'\r' | b'\n');
    if memchr::memchr2(b'\r', b'\n', value).is_none() {
        wire.extend_from_slice(value);
        return;
    }
    let lines = value.split(is_end).map(<[u8]>::trim_ascii);
    let lines: Vec<_> = lines.filter(|line| !line.is_empty()).collect();
    wire.extend_from_slice(&lines.join(&b' '));
}

fn bad(why: &'static str) -> Box<Error> {
    Error::explain(ErrorType::InvalidHTTPHeader, why).into_up()
}

impl Head {
    /// The head of an answer to a call of this method, if it has come. Of its fields, `own` ones
    /// do not go on.
    pub(super) fn read(bytes: &[u8], method: &Method, own: &Own) -> pingora::Result<Option<Self>> {
        let mut fields = [const { MaybeUninit::uninit() }; MAX_FIELDS];
        let mut answer = httparse::Response::new(&mut []);
        let mut config = httparse::ParserConfig::default();
        config.allow_spaces_after_header_name_in_responses(true);
        config.allow_obsolete_multiline_headers_in_responses(true);
        let parsed = config.parse_response_with_uninit_headers(&mut answer, bytes, &mut fields);
        let length = match parsed {
            Ok(httparse::Status::Complete(length)) if length <= MAX_HEAD => length,
            Ok(httparse::Status::Partial) if bytes.len() <= MAX_HEAD => return Ok(None),
            Ok(_) => {
                return Err(bad("Response header larger than 1048575"));
            }
            Err(error) => {
                let why = "an answer's head";
                return Err(Error::because(ErrorType::InvalidHTTPHeader, why, error).into_up());
            }
        };
        let status = answer.code.filter(|code| *code >= 100);
        let status = status.ok_or_else(|| bad("no status"))?;
        let is_old = answer.version == Some(0);
        let mut wire = Vec::with_capacity(length + 512);
        wire.extend_from_slice(b"HTTP/1.1 ");
        wire.extend([100, 10, 1].map(|of| b"0123456789"[usize::from(status / of % 10)]));
        wire.push(b' ');
        wire.extend_from_slice(answer.reason.unwrap_or_default().as_bytes());
        wire.extend_from_slice(b"\r\n");
        let mut hop = Hop::default();
        for header in &*answer.headers {
            hop.note(header.name, header.value)?;
        }
        for header in &*answer.headers {
            let from = wire.len();
            wire.extend(header.name.bytes().map(|b| b.to_ascii_lowercase()));
            let name = wire.get(from..).unwrap_or_default();
            let is_ours = |own: &HeaderName| own.as_str().as_bytes() == name;
            if stays(name) || own.names.iter().any(is_ours) || hop.names(name) {
                wire.truncate(from);
                continue;
            }
            wire.extend_from_slice(b": ");
            push_unfolded(&mut wire, header.value);
            wire.extend_from_slice(b"\r\n");
        }
        let has_none = *method == Method::HEAD || matches!(status, 100..200 | 204 | 304);
        let framing = hop.framing()?;
        let is_kept = hop.is_kept.unwrap_or(!is_old) && (!is_old || hop.codings.is_empty());
        let mut head = Self {
            length,
            status,
            wire,
            framing: if has_none {
                Framing::Length(0)
            } else {
                framing
            },
            is_kept: is_kept && may_follow(framing, has_none, status),
            is_coded: hop.is_coded,
            is_empty: framing == Framing::Length(0),
        };
        head.write_framing(framing, has_none, status);
        Ok(Some(head))
    }

    /// Writes how the body goes on.
    fn write_framing(&mut self, framing: Framing, has_none: bool, status: u16) {
        if matches!(status, 100..200 | 204) {
            // There is no body (RFC 9110, 8.6): who waited for one would take the next answer for it.
            return;
        }
        match framing {
            Framing::Length(length) => {
                push_own(
                    &mut self.wire,
                    &header::CONTENT_LENGTH,
                    Value::Number(length),
                );
            }
            Framing::UntilClose if has_none => {}
            Framing::UntilClose | Framing::Chunked(_) => {
                self.wire
                    .extend_from_slice(b"transfer-encoding: chunked\r\n");
            }
        }
    }

    /// Ends a head that is the answer.
    pub(super) fn finish(&mut self, own: &Own, now: Moment, is_kept: bool) {
        self.wire.extend_from_slice(&own.wire);
        push_end(&mut self.wire, now, is_kept);
    }
}

/// Whether another answer can be told from what follows this one.
fn may_follow(framing: Framing, has_none: bool, status: u16) -> bool {
    match framing {
        // Who announces the body of an answer that has none may send it, too.
        Framing::Length(1..) | Framing::Chunked(_) => status != 204,
        Framing::Length(0) => true,
        Framing::UntilClose => has_none,
    }
}

/// Whether a field is the hop's, or written anew.
fn stays(name: &[u8]) -> bool {
    matches!(
        name,
        b"connection"
            | b"content-length"
            | b"date"
            | b"keep-alive"
            | b"proxy-connection"
            | b"transfer-encoding"
    )
}

/// What the fields of a hop say.
#[derive(Default)]
struct Hop<'a> {
    /// Of `Connection`.
    is_kept: Option<bool>,
    named: SmallVec<[&'a str; 2]>,
    codings: SmallVec<[&'a str; 2]>,
    length: Option<u64>,
    is_coded: bool,
}

impl<'a> Hop<'a> {
    fn note(&mut self, name: &str, value: &'a [u8]) -> pingora::Result<()> {
        let is = |other: &str| name.eq_ignore_ascii_case(other);
        // By their lengths: most are none of these.
        match name.len() {
            10 if is("connection") => {
                for token in tokens(value) {
                    if token.eq_ignore_ascii_case("close") {
                        self.is_kept = Some(false);
                    } else if token.eq_ignore_ascii_case("keep-alive") {
                        self.is_kept.get_or_insert(true);
                    } else {
                        self.named.push(token);
                    }
                }
            }
            14 if is("content-length") => {
                for token in tokens(value) {
                    let is_number = !token.is_empty() && token.bytes().all(|b| b.is_ascii_digit());
                    let length = token.parse().ok().filter(|_| is_number);
                    let length = length.ok_or_else(|| bad("Content-Length is no number"))?;
                    if self.length.is_some_and(|other| other != length) {
                        return Err(bad("two Content-Lengths"));
                    }
                    self.length = Some(length);
                }
                if self.length.is_none() {
                    return Err(bad("Content-Length is no number"));
                }
            }
            16 if is("content-encoding") => self.is_coded = value != b"identity",
            17 if is("transfer-encoding") => {
                let before = self.codings.len();
                self.codings.extend(tokens(value));
                if self.codings.len() == before {
                    return Err(bad("an empty Transfer-Encoding"));
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Whether `Connection` names this field of its hop.
    fn names(&self, name: &[u8]) -> bool {
        self.named.iter().any(|named| {
            let is_it = named.as_bytes().eq_ignore_ascii_case(name);
            is_it
                && named
                    .parse()
                    .is_ok_and(|named| !headers::is_end_to_end(&named))
        })
    }

    fn framing(&self) -> pingora::Result<Framing> {
        match (&*self.codings, self.length) {
            ([], Some(length)) => Ok(Framing::Length(length)),
            ([], None) => Ok(Framing::UntilClose),
            ([coding], _) if coding.eq_ignore_ascii_case("chunked") => {
                Ok(Framing::Chunked(Chunk::Size))
            }
            ([coding], _) if coding.eq_ignore_ascii_case("identity") => Ok(Framing::UntilClose),
            _ => Err(bad("a transfer coding that is not known here")),
        }
    }
}

/// What a list has, but for what is no text.
fn tokens(value: &[u8]) -> impl Iterator<Item = &str> {
    let text = std::str::from_utf8(value).unwrap_or("\u{fffd}");
    text.split(',')
        .map(str::trim)
        .filter(|token| !token.is_empty())
}
