//! A caller that was refused and goes on is answered without pingora, for as long as it is
//! refused: most of what a flood of refused calls costs is pingora's. The verdict is the same,
//! by the same steps; a call that is admitted after all is handed to pingora with it.
//!
//! Only requests that can be read in one way are looked at here: one that is whole, of HTTP/1.1,
//! with a plain length or without a body. Any other is pingora's to read.

use bytes::BytesMut;
use http::header::{self, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Uri, Version};
use pingora::http::RequestHeader;
use pingora::protocols::{Shutdown, Stream};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::connection::Connection;
use super::worker::Door;
use crate::gateway::context::Context;
use crate::gateway::judge::Stop;
use crate::gateway::kind;

/// The largest request that is looked at, in bytes.
const MAX_REQUEST: usize = 16 * 1024;
/// The most fields.
const MAX_FIELDS: usize = 64;

impl Door {
    /// Goes on with a connection whose last request was refused. `None`: it is over. Otherwise,
    /// pingora reads what comes next.
    pub(super) async fn answer_ahead(&self, stream: Stream) -> Option<Stream> {
        let mut connection = match stream.into_any().downcast::<Connection>() {
            Ok(connection) => connection,
            Err(_) => return None,
        };
        // Otherwise pingora has received of the next request already.
        if self.live.look().shield.counts_requests() || !connection.is_at_a_beginning() {
            return Some(connection);
        }
        let state = connection.state();
        let mut shutdown = self.shutdown.clone();
        let mut bytes = BytesMut::new();
        loop {
            bytes.clear();
            bytes.reserve(4096);
            state.idle();
            let came = tokio::select! {
                biased;
                came = connection.read_buf(&mut bytes) => came,
                _ = shutdown.wait_for(|stop| *stop) => return Some(connection),
            };
            if !came.is_ok_and(|n| n > 0) {
                return None;
            }
            let Some(request) = Whole::read(&bytes) else {
                connection.unread(bytes.freeze());
                return Some(connection);
            };
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
            let Some(Stop { reply, is_last }) = verdict else {
                let bytes = bytes.freeze();
                state.admit(ctx, bytes.clone(), request.head);
                connection.unread(bytes);
                return Some(connection);
            };
            state.reads(Some(bytes.len() as u64));
            let most = ctx.shared.settings.max_requests_per_connection;
            let kept = !is_last && !state.has_had(most) && !ctx.shared.is_draining();
            let head_only = request.header.method == Method::HEAD;
            let wire = self
                .gateway
                .on_the_wire(&ctx, &reply, head_only, kept)
                .ok()?;
            let sent = match connection.write_all(&wire).await {
                Ok(()) => connection.flush().await,
                failed => failed,
            };
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

/// A request that is here as a whole, and nothing after it.
struct Whole {
    header: RequestHeader,
    /// Bytes of its head; the rest is its body.
    head: usize,
}

impl Whole {
    fn read(bytes: &[u8]) -> Option<Self> {
        if bytes.len() > MAX_REQUEST {
            return None;
        }
        let head = bytes.windows(4).position(|end| end == b"\r\n\r\n")? + 4;
        let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
        let mut request = httparse::Request::new(&mut fields);
        match request.parse(bytes) {
            Ok(httparse::Status::Complete(length)) if length == head => {}
            _ => return None,
        }
        if request.version != Some(1) {
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
        is_plain(&parts.headers, bytes.len() - head).then(|| Self {
            header: RequestHeader::from(parts),
            head,
        })
    }
}

/// Whether these fields frame a body of this length, ask for nothing else of the connection, and
/// name one host.
fn is_plain(fields: &HeaderMap, length: usize) -> bool {
    const OTHERS: [HeaderName; 6] = [
        header::TRANSFER_ENCODING,
        header::CONTENT_ENCODING,
        header::EXPECT,
        header::UPGRADE,
        header::TRAILER,
        header::TE,
    ];
    let one = |name: HeaderName| {
        let mut values = fields.get_all(name).iter();
        match (values.next(), values.next()) {
            (value, None) => Some(value.map(HeaderValue::as_bytes)),
            _ => None,
        }
    };
    let is_kept = match one(header::CONNECTION) {
        Some(None) => true,
        Some(Some(value)) => value.eq_ignore_ascii_case(b"keep-alive"),
        None => false,
    };
    let announced = match one(header::CONTENT_LENGTH) {
        Some(None) => Some(0),
        Some(Some(value)) => std::str::from_utf8(value).ok().and_then(|v| v.parse().ok()),
        None => None,
    };
    is_kept
        && announced == Some(length)
        && matches!(one(header::HOST), Some(Some(_)))
        && !OTHERS.iter().any(|name| fields.contains_key(name))
        && !kind::has_other_characters(fields)
        && !kind::is_form(fields)
}

#[cfg(test)]
mod tests {
    use super::Whole;

    const PLAIN: &str = "GET /o/a/users?x=1 HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer t\r\n\r\n";

    #[test]
    fn a_plain_request_is_read() {
        let read = Whole::read(PLAIN.as_bytes()).unwrap();
        assert_eq!(read.head, PLAIN.len());
        assert_eq!(read.header.raw_path(), b"/o/a/users?x=1");
        assert_eq!(read.header.headers.len(), 2);
        let with_body = "POST /a HTTP/1.1\r\nhost: h\r\nContent-Length: 2\r\n\r\n{}";
        let read = Whole::read(with_body.as_bytes()).unwrap();
        assert_eq!(&with_body[read.head..], "{}");
    }

    #[test]
    fn anything_else_is_left_to_pingora() {
        let plain = |from: &str, to: &str| PLAIN.replace(from, to);
        for text in [
            PLAIN[..PLAIN.len() - 1].to_owned(),
            PLAIN.repeat(2),
            format!("\r\n{PLAIN}x"),
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
            plain("Host: h", "Host: h\r\nContent-Length: 1"),
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
            assert!(Whole::read(text.as_bytes()).is_none(), "{text:?}");
        }
        assert!(Whole::read(plain("x=1", &"x".repeat(20_000)).as_bytes()).is_none());
    }
}
