//! Calls that are answered without pingora's proxy, by the same steps: those that are refused, and
//! those that can be [carried plainly](super::super::plain). Any other is handed to pingora, with
//! its verdict if it has one.
//!
//! Only requests that can be read in one way are looked at here: one that is whole at once, of
//! HTTP/1.1, with a plain length or without a body. Any other is pingora's to read.

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::pin;
use std::task::{Context as Task, Poll};

use bytes::BytesMut;
use http::header::{HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Uri, Version};
use pingora::http::RequestHeader;
use pingora::protocols::{Shutdown, Stream};
use tokio::io::AsyncReadExt as _;

use super::connection::Connection;
use super::worker::Door;
use crate::gateway::context::Context;
use crate::gateway::judge::Stop;
use crate::gateway::kind;
use crate::gateway::plain::{Alarm, Caller as _, Carried, Carrier};

/// The largest request that is looked at, in bytes.
const MAX_REQUEST: usize = 16 * 1024;
/// The most fields.
const MAX_FIELDS: usize = 64;
/// How long a body is waited for here, µs.
const SOON_US: u64 = 20_000;

impl Door {
    /// Goes on with a connection. `None`: it is over. Otherwise, pingora reads what comes next.
    pub(super) async fn answer_ahead(&self, stream: Stream) -> Option<Stream> {
        let mut connection = match stream.into_any().downcast::<Connection>() {
            Ok(connection) => connection,
            Err(_) => return None,
        };
        // Otherwise pingora has received of the next request already.
        if !connection.is_at_a_beginning() {
            return Some(connection);
        }
        let state = connection.state();
        let mut shutdown = self.shutdown.clone();
        let mut bytes = BytesMut::new();
        let mut alarm = Alarm::new(self.live.look().clock.now());
        // One for all calls: to wait anew for each costs more than to look again.
        let mut stops = pin!(shutdown.wait_for(|stop| *stop));
        loop {
            bytes.clear();
            bytes.reserve(4096);
            state.idle();
            let came = tokio::select! {
                biased;
                came = connection.read_buf(&mut bytes) => came,
                _ = &mut stops => return Some(connection),
            };
            if !came.is_ok_and(|n| n > 0) {
                return None;
            }
            let Some(request) = Plain::read(&bytes) else {
                connection.unread(bytes.freeze());
                return Some(connection);
            };
            if request.length() > bytes.len() {
                // Its body may be on its way; pingora has all the patience that it needs.
                state.busy();
                let due_us = self.live.look().clock.now().mono_us + SOON_US;
                let filled = fill(&mut connection, &mut bytes, request.length(), |cx| {
                    alarm.poll(cx, due_us)
                });
                filled.await.ok()?;
            }
            if request.length() != bytes.len() {
                connection.unread(bytes.freeze());
                return Some(connection);
            }
            state.busy();
            let mut ctx = Box::new(Context::new(self.live.now()));
            let verdict = {
                let (head, body) = bytes.split_at(request.head);
                let judging =
                    self.gateway
                        .judge_whole(&request.header, head, body, &state, &mut ctx);
                judging.await
            };
            ctx.verdict = ctx.shared.clock.since(ctx.started);
            ctx.shared.metrics.own(ctx.own_us());
            let most = ctx.shared.settings.max_requests_per_connection;
            let is_kept = !state.has_had(most) && !ctx.shared.is_draining();
            let Some(Stop { reply, is_last }) = verdict else {
                let carried = match ctx.way.is_plain(ctx.call.as_ref()) {
                    false => Carried::Again,
                    true => {
                        let mut carrier = Carrier {
                            gateway: &self.gateway,
                            idle: &self.idle,
                            alarm: &mut alarm,
                            caller: &mut *connection,
                        };
                        let body = bytes.get(request.head..).unwrap_or_default();
                        let carrying = carrier.carry(&request.header, body, &mut ctx, is_kept);
                        // Boxed: a connection that is idle does without its room.
                        Box::pin(carrying).await
                    }
                };
                match carried {
                    Carried::Over { is_kept } => {
                        state.reads(Some(bytes.len() as u64));
                        drop(ctx);
                        if is_kept {
                            continue;
                        }
                        Shutdown::shutdown(&mut *connection).await;
                        return None;
                    }
                    Carried::Again => {
                        let bytes = bytes.freeze();
                        state.admit(ctx, bytes.clone(), request.head);
                        connection.unread(bytes);
                        return Some(connection);
                    }
                }
            };
            state.reads(Some(bytes.len() as u64));
            let kept = is_kept && !is_last;
            let head_only = request.header.method == Method::HEAD;
            let wire = self
                .gateway
                .on_the_wire(&ctx, &reply, ctx.verdict, head_only, kept)
                .ok()?;
            let sent = connection.send(&wire).await;
            let status = if sent.is_ok() { reply.status } else { 0 };
            ctx.note_end(status, None);
            drop(ctx);
            if !kept || sent.is_err() {
                Shutdown::shutdown(&mut *connection).await;
                return None;
            }
        }
    }
}

/// Reads until there is so much, or until it is late.
async fn fill(
    connection: &mut Connection,
    bytes: &mut BytesMut,
    length: usize,
    mut late: impl FnMut(&mut Task<'_>) -> Poll<()>,
) -> io::Result<()> {
    while bytes.len() < length {
        bytes.reserve(length - bytes.len());
        let mut reading = pin!(connection.read_buf(bytes));
        let came = poll_fn(|cx| match reading.as_mut().poll(cx) {
            Poll::Pending => late(cx).map(|()| Ok(0)),
            came => came,
        });
        if came.await? == 0 {
            break;
        }
    }
    Ok(())
}

/// A request whose head is here, with its body or the beginning of it, and nothing after it.
struct Plain {
    header: RequestHeader,
    /// Bytes of its head.
    head: usize,
    /// Bytes of its body.
    body: usize,
}

impl Plain {
    fn length(&self) -> usize {
        self.head + self.body
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let mut fields = [const { MaybeUninit::uninit() }; MAX_FIELDS];
        let mut request = httparse::Request::new(&mut []);
        let parsed = request.parse_with_uninit_headers(bytes, &mut fields);
        let Ok(httparse::Status::Complete(head)) = parsed else {
            return None;
        };
        // No empty line before it, and none at its end that is a line feed alone.
        let is_strict =
            bytes.first()?.is_ascii_uppercase() && bytes.get(..head)?.ends_with(b"\r\n\r\n");
        if !is_strict || request.version != Some(1) {
            return None;
        }
        let is_plain_target = |target: &&str| {
            target.starts_with('/') && target.bytes().all(|b| b.is_ascii_graphic() && b != b'#')
        };
        let target = request.path.filter(is_plain_target)?;
        let (mut parts, ()) = http::Request::new(()).into_parts();
        parts.method = Method::from_bytes(request.method?.as_bytes()).ok()?;
        if parts.method == Method::CONNECT {
            return None;
        }
        parts.version = Version::HTTP_11;
        parts.uri = Uri::from(target.parse::<PathAndQuery>().ok()?);
        // Otherwise it would not be forwarded as it came.
        if parts.uri.path_and_query()?.as_str() != target {
            return None;
        }
        parts.headers.reserve(request.headers.len());
        for field in request.headers.iter() {
            let name = HeaderName::from_bytes(field.name.as_bytes()).ok()?;
            let value = HeaderValue::from_bytes(field.value).ok()?;
            parts.headers.append(name, value);
        }
        let body = plain_length(&parts.headers)?;
        let length = head.checked_add(body)?;
        (bytes.len() <= length && length <= MAX_REQUEST).then(|| Self {
            header: RequestHeader::from(parts),
            head,
            body,
        })
    }
}

/// The length of the body that these fields frame, if they ask for nothing else of the connection,
/// and name one host.
fn plain_length(fields: &HeaderMap) -> Option<usize> {
    let (mut hosts, mut kept, mut length, mut is_typed) = (0, None, None, false);
    for (name, value) in fields {
        let before = match name.as_str() {
            "connection" => kept.replace(value),
            "content-length" => length.replace(value),
            "transfer-encoding" | "content-encoding" | "expect" | "upgrade" | "trailer" | "te" => {
                Some(value)
            }
            other => {
                hosts += u32::from(other == "host");
                is_typed |= other == "content-type";
                None
            }
        };
        if before.is_some() {
            return None;
        }
    }
    let is_kept = kept.is_none_or(|value| value.as_bytes().eq_ignore_ascii_case(b"keep-alive"));
    let is_odd = is_typed && (kind::has_other_characters(fields) || kind::is_form(fields));
    let length = match length.map(HeaderValue::as_bytes) {
        None => Some(0),
        Some(value) if value.iter().all(u8::is_ascii_digit) => {
            std::str::from_utf8(value).ok().and_then(|v| v.parse().ok())
        }
        Some(_) => None,
    };
    length.filter(|_| is_kept && hosts == 1 && !is_odd)
}

#[cfg(test)]
mod tests {
    use super::Plain;

    const PLAIN: &str = "GET /o/a/users?x=1 HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer t\r\n\r\n";

    #[test]
    fn a_plain_request_is_read() {
        let read = Plain::read(PLAIN.as_bytes()).unwrap();
        assert_eq!(read.head, PLAIN.len());
        assert_eq!(read.header.raw_path(), b"/o/a/users?x=1");
        assert_eq!(read.header.headers.len(), 2);
        let with_body = "POST /a HTTP/1.1\r\nhost: h\r\nContent-Length: 2\r\n\r\n{}";
        let read = Plain::read(with_body.as_bytes()).unwrap();
        assert_eq!(&with_body[read.head..], "{}");
        assert_eq!(read.length(), with_body.len());
        let begun = Plain::read(&with_body.as_bytes()[..with_body.len() - 1]);
        assert_eq!(begun.unwrap().length(), with_body.len());
    }

    #[test]
    fn anything_else_is_left_to_pingora() {
        let plain = |from: &str, to: &str| PLAIN.replace(from, to);
        for text in [
            PLAIN[..PLAIN.len() - 1].to_owned(),
            PLAIN.repeat(2),
            format!("\r\n{PLAIN}"),
            plain("\r\n\r\n", "\n\n"),
            plain("\r\n\r\n", "\r\n\n"),
            plain("1.1", "1.0"),
            plain("/o/a", "http://h/o/a"),
            plain("GET", "CONNECT"),
            plain("?x", "#x"),
            plain("?x", "?\u{e9}"),
            plain("Host: h\r\n", ""),
            plain("Host: h\r\n", "Host: h\r\nHost: h\r\n"),
            plain("Host: h", "Host : h"),
            plain("Host: h", "Host: h\r\nConnection: close"),
            plain("Host: h", "Host: h\r\nConnection: keep-alive, x"),
            plain("Host: h", "Host: h\r\nTransfer-Encoding: chunked"),
            plain("Host: h", "Host: h\r\nContent-Length: +0"),
            plain("Host: h", "Host: h\r\nContent-Length: "),
            plain("Host: h", "Host: h\r\nContent-Length: 18446744073709551615"),
            plain("Host: h", "Host: h\r\nContent-Length: 20000"),
            plain("Host: h", "Host: h\r\nContent-Length: 1") + "xy",
            plain(
                "Host: h",
                "Host: h\r\nContent-Length: 0\r\nContent-Length: 0",
            ),
            plain("Host: h", "Host: h\r\nExpect: 100-continue"),
            plain("Host: h", "Host: h\r\nContent-Type: a/json; charset=utf-7"),
            plain(
                "Host: h",
                "Host: h\r\nContent-Type: application/x-www-form-urlencoded",
            ),
            plain("Host: h", "Host: h\r\nUpgrade: x"),
            plain("Host: h", "Host: h\r\n x: folded"),
            plain("Host: h", "Host: h\r\nx: \u{0}"),
            String::new(),
        ] {
            assert!(Plain::read(text.as_bytes()).is_none(), "{text:?}");
        }
        assert!(Plain::read(plain("x=1", &"x".repeat(20_000)).as_bytes()).is_none());
    }
}
