//! The connections: each sends what is due, one call after another (HTTP/1.1) or several at a
//! time (HTTP/2), and tells what came of it.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc};
use tokio_rustls::TlsConnector;

use super::ledger::Claim;
use super::mix::{Asked, Mix};
use crate::clock::Clock;
use crate::limit::Moment;

/// The most of an answer that is read, bytes.
const MAX_ANSWER: usize = 16 * 1024 * 1024;
/// The most of a denial that is looked into, bytes.
const MAX_DENIAL: usize = 64 * 1024;

/// Where calls go.
#[derive(Clone)]
pub(super) struct Target {
    pub(super) addr: SocketAddr,
    /// As `Host` has it.
    pub(super) authority: String,
    pub(super) tls: Option<(TlsConnector, ServerName<'static>)>,
    pub(super) http2: bool,
    pub(super) timeout: Duration,
}

/// A call that is due.
pub(super) struct Job {
    /// Monotonic time, µs.
    pub(super) due: u64,
    pub(super) asked: Asked,
    pub(super) claims: Arc<[Claim]>,
}

/// What a connection tells.
pub(super) enum Event {
    Sent(Arc<[Claim]>),
    Ended(Box<Ended>),
}

pub(super) struct Ended {
    pub(super) kind: usize,
    pub(super) claims: Arc<[Claim]>,
    pub(super) due: u64,
    pub(super) sent: Moment,
    pub(super) ended: Moment,
    pub(super) answer: Result<Answer, Failed>,
}

pub(super) struct Answer {
    pub(super) status: u16,
    /// The limit that it names.
    pub(super) limit: Option<String>,
}

/// Why there was no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failed {
    Connect,
    Tls,
    Timeout,
    Broken,
    TooLong,
}

impl Failed {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "could not connect",
            Self::Tls => "TLS handshake failed",
            Self::Timeout => "no answer in time",
            Self::Broken => "connection broken",
            Self::TooLong => "answer too long",
        }
    }
}

/// Calls that are due and not yet sent.
#[derive(Default)]
pub(super) struct Queue {
    jobs: Mutex<(VecDeque<Job>, bool)>,
    more: Notify,
}

impl Queue {
    /// Whether there was room.
    pub(super) fn push(&self, job: Job, most: usize) -> bool {
        let mut jobs = self.jobs.lock();
        let has_room = jobs.0.len() < most && !jobs.1;
        if has_room {
            jobs.0.push_back(job);
        }
        drop(jobs);
        self.more.notify_one();
        has_room
    }

    /// Nothing more is due.
    pub(super) fn close(&self) {
        self.jobs.lock().1 = true;
        self.more.notify_waiters();
        self.more.notify_one();
    }

    /// Drops what has not been sent. How much that was.
    pub(super) fn clear(&self) -> usize {
        let left = std::mem::take(&mut self.jobs.lock().0);
        left.len()
    }

    async fn pop(&self) -> Option<Job> {
        loop {
            let more = self.more.notified();
            tokio::pin!(more);
            // In line before looking, so that what comes between is not missed.
            more.as_mut().enable();
            {
                let mut jobs = self.jobs.lock();
                if let Some(job) = jobs.0.pop_front() {
                    if !jobs.0.is_empty() {
                        self.more.notify_one();
                    }
                    return Some(job);
                }
                if jobs.1 {
                    // The next one is to hear it too.
                    self.more.notify_one();
                    return None;
                }
            }
            more.await;
        }
    }
}

/// A connection, once it is there.
#[derive(Clone)]
enum Link {
    /// One call at a time: it is not cloned.
    Http1(Arc<tokio::sync::Mutex<http1::SendRequest<Full<Bytes>>>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

/// Shared by the streams of one connection.
#[derive(Clone, Default)]
pub(super) struct Slot(Arc<tokio::sync::Mutex<Option<Link>>>);

/// Sends what is due until nothing more is.
pub(super) async fn work(
    target: Arc<Target>,
    mix: Arc<Mix>,
    queue: Arc<Queue>,
    slot: Slot,
    clock: Clock,
    tell: mpsc::Sender<Event>,
) {
    while let Some(Job { due, asked, claims }) = queue.pop().await {
        if tell.send(Event::Sent(claims.clone())).await.is_err() {
            return;
        }
        let sent = clock.now();
        let kind = asked.kind;
        let answer = tokio::time::timeout(target.timeout, call(&target, &mix, &slot, asked)).await;
        let answer = answer.unwrap_or(Err(Failed::Timeout));
        if answer.is_err() {
            // What is left of it is of no use.
            *slot.0.lock().await = None;
        }
        let ended = Ended {
            kind,
            claims,
            due,
            sent,
            ended: clock.since(sent),
            answer,
        };
        if tell.send(Event::Ended(Box::new(ended))).await.is_err() {
            return;
        }
    }
}

async fn call(target: &Target, mix: &Mix, slot: &Slot, asked: Asked) -> Result<Answer, Failed> {
    let (link, was_open) = link(target, slot).await?;
    match exchange(target, mix, link, &asked).await {
        // It was closed before anything was sent: nobody has seen the call.
        Err((_, true)) if was_open => {
            *slot.0.lock().await = None;
            let (link, _) = self::link(target, slot).await?;
            exchange(target, mix, link, &asked).await
        }
        other => other,
    }
    .map_err(|(failed, _)| failed)
}

/// The connection, and whether it was there.
async fn link(target: &Target, slot: &Slot) -> Result<(Link, bool), Failed> {
    let mut held = slot.0.lock().await;
    if let Some(link) = &*held {
        let is_open = match link {
            Link::Http1(sender) => !sender.lock().await.is_closed(),
            Link::Http2(sender) => !sender.is_closed(),
        };
        if is_open {
            return Ok((link.clone(), true));
        }
    }
    let tcp = TcpStream::connect(target.addr).await;
    let tcp = tcp.map_err(|_| Failed::Connect)?;
    tcp.set_nodelay(true).map_err(|_| Failed::Connect)?;
    let link = match &target.tls {
        Some((connector, name)) => {
            let tls = connector.connect(name.clone(), tcp).await;
            greet(target, tls.map_err(|_| Failed::Tls)?).await?
        }
        None => greet(target, tcp).await?,
    };
    *held = Some(link.clone());
    Ok((link, false))
}

async fn greet<S>(target: &Target, stream: S) -> Result<Link, Failed>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let io = TokioIo::new(stream);
    if target.http2 {
        let (sender, connection) = http2::handshake(TokioExecutor::new(), io)
            .await
            .map_err(|_| Failed::Broken)?;
        tokio::spawn(connection);
        return Ok(Link::Http2(sender));
    }
    let (sender, connection) = http1::handshake(io).await.map_err(|_| Failed::Broken)?;
    tokio::spawn(connection);
    Ok(Link::Http1(Arc::new(tokio::sync::Mutex::new(sender))))
}

/// The answer; or why there is none, and whether the call was not even sent.
async fn exchange(
    target: &Target,
    mix: &Mix,
    link: Link,
    asked: &Asked,
) -> Result<Answer, (Failed, bool)> {
    let request = request(target, mix, asked).ok_or((Failed::Broken, false))?;
    let broken = |error: hyper::Error| {
        let unsent = error.is_canceled() || error.is_closed();
        (Failed::Broken, unsent)
    };
    let (status, body) = match link {
        Link::Http1(sender) => {
            let mut sender = sender.lock().await;
            sender.ready().await.map_err(|_| (Failed::Broken, true))?;
            let response = sender.send_request(request).await.map_err(broken)?;
            let status = response.status();
            (status, read(response).await)
        }
        Link::Http2(mut sender) => {
            sender.ready().await.map_err(|_| (Failed::Broken, true))?;
            let response = sender.send_request(request).await.map_err(broken)?;
            let status = response.status();
            (status, read(response).await)
        }
    };
    let body = body.map_err(|failed| (failed, false))?;
    let named = (status.is_client_error() && body.len() <= MAX_DENIAL)
        .then(|| serde_json::from_slice::<serde_json::Value>(&body).ok())
        .flatten();
    Ok(Answer {
        status: status.as_u16(),
        limit: named.and_then(|body| Some(body.get("limit")?.as_str()?.to_owned())),
    })
}

async fn read(response: http::Response<hyper::body::Incoming>) -> Result<Bytes, Failed> {
    let body = Limited::new(response.into_body(), MAX_ANSWER);
    match body.collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => Err(Failed::TooLong),
        Err(_) => Err(Failed::Broken),
    }
}

fn request(target: &Target, mix: &Mix, asked: &Asked) -> Option<Request<Full<Bytes>>> {
    let kind = mix.kinds.get(asked.kind)?;
    let builder = Request::builder().method(kind.method.clone()).header(
        header::USER_AGENT,
        concat!("floodgate-load/", env!("CARGO_PKG_VERSION")),
    );
    let mut builder = match (target.http2, &target.tls) {
        (false, _) => builder
            .uri(&asked.path)
            .header(header::HOST, &target.authority),
        (true, None) => builder.uri(format!("http://{}{}", target.authority, asked.path)),
        (true, Some(_)) => builder.uri(format!("https://{}{}", target.authority, asked.path)),
    };
    if !mix.token.is_empty() {
        builder = builder.header(header::AUTHORIZATION, format!("Bearer {}", mix.token));
    }
    if let Some(content_type) = &kind.content_type {
        builder = builder.header(header::CONTENT_TYPE, content_type);
    }
    if let Some(ip) = asked.ip {
        builder = builder.header("x-forwarded-for", ip.to_string());
    }
    builder.body(Full::new(asked.body.clone())).ok()
}
