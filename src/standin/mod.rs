//! A stand-in IM backend: answers every documented endpoint in the service's form. `floodgate
//! demo` puts the gateway before it; tests and load scripts drive it.
//!
//! A request can say how it wants to be answered: `x-standin-status: 503`,
//! `x-standin-delay-ms: 100`, `x-standin-body: 4096` (bytes of body), `x-standin-close: before`
//! (no answer at all) or `mid` (half of one).

mod answer;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, combinators::BoxBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::watch;

/// The largest body kept of a request, in bytes.
const KEPT_BODY: usize = 64 * 1024;

/// How a stand-in is started.
#[derive(Clone, Copy, Debug)]
pub struct StandInOptions {
    /// Where it listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// How many requests it remembers.
    pub remember: usize,
}

impl Default for StandInOptions {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            remember: 64,
        }
    }
}

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Method.
    pub method: String,
    /// Target, with its query.
    pub target: String,
    /// Header fields, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body's length.
    pub body_length: usize,
    /// The body's first 64 KiB.
    pub body: Bytes,
}

#[derive(Debug)]
struct State {
    count: AtomicUsize,
    next_id: AtomicU64,
    seen: Mutex<VecDeque<Seen>>,
    remember: usize,
}

/// A running stand-in, on a thread of its own. Dropping it stops it.
#[derive(Debug)]
pub struct StandIn {
    /// Where it listens.
    pub addr: SocketAddr,
    state: Arc<State>,
    stop: watch::Sender<bool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl StandIn {
    /// Starts one.
    ///
    /// # Errors
    /// When the address cannot be had or no thread be started.
    pub fn start(options: StandInOptions) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind(options.listen)?;
        listener.set_nonblocking(true)?;
        let addr = listener.local_addr()?;
        let state = Arc::new(State {
            count: AtomicUsize::new(0),
            next_id: AtomicU64::new(1),
            seen: Mutex::default(),
            remember: options.remember,
        });
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (stop, stopped) = watch::channel(false);
        let shared = state.clone();
        let thread = std::thread::Builder::new()
            .name("stand-in".to_owned())
            .spawn(move || {
                runtime.block_on(async move {
                    if let Err(error) = serve(listener, shared, stopped).await {
                        tracing::error!(%error, "the stand-in backend failed");
                    }
                });
            })?;
        Ok(Self {
            addr,
            state,
            stop,
            thread: Some(thread),
        })
    }

    /// How many requests have arrived.
    #[must_use]
    pub fn count(&self) -> usize {
        self.state.count.load(Ordering::SeqCst)
    }

    /// The last requests, oldest first.
    #[must_use]
    pub fn requests(&self) -> Vec<Seen> {
        self.state.seen.lock().iter().cloned().collect()
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        let _ = self.stop.send(true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(
    listener: std::net::TcpListener,
    state: Arc<State>,
    mut stopped: watch::Receiver<bool>,
) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                // One connection's fault (or no descriptor left) is no end of service.
                Err(_) => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                }
            },
            _ = stopped.wait_for(|stop| *stop) => return Ok(()),
        };
        let _ = stream.set_nodelay(true);
        let state = state.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| handle(request, state.clone()));
            // A broken connection is the caller's business.
            let _ = auto::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

type Body = BoxBody<Bytes, io::Error>;

async fn handle(
    request: Request<Incoming>,
    state: Arc<State>,
) -> Result<Response<Body>, io::Error> {
    let (head, mut incoming) = request.into_parts();
    let mut kept = Vec::new();
    let mut length = 0;
    while let Some(frame) = incoming.frame().await {
        let Ok(data) = frame.map_err(io::Error::other)?.into_data() else {
            continue;
        };
        length += data.len();
        let room = KEPT_BODY.saturating_sub(kept.len());
        kept.extend_from_slice(&data[..data.len().min(room)]);
    }
    let body = Bytes::from(kept);
    state.count.fetch_add(1, Ordering::SeqCst);
    if state.remember > 0 {
        let mut seen = state.seen.lock();
        if seen.len() >= state.remember {
            seen.pop_front();
        }
        seen.push_back(Seen {
            method: head.method.to_string(),
            target: head.uri.to_string(),
            headers: head
                .headers
                .iter()
                .map(|(name, value)| {
                    (
                        name.to_string(),
                        String::from_utf8_lossy(value.as_bytes()).into_owned(),
                    )
                })
                .collect(),
            body_length: length,
            body: body.clone(),
        });
    }
    if let Some(delay) = wish::<u64>(&head.headers, "x-standin-delay-ms") {
        tokio::time::sleep(Duration::from_millis(delay)).await;
    }
    let close = head
        .headers
        .get("x-standin-close")
        .map(http::HeaderValue::as_bytes);
    if close == Some(b"before") {
        return Err(io::Error::other("asked to close"));
    }
    let id = state.next_id.fetch_add(1, Ordering::Relaxed);
    let (status, json) = answer::answer(&head, &body, id);
    let status = wish::<u16>(&head.headers, "x-standin-status")
        .and_then(|status| StatusCode::from_u16(status).ok())
        .unwrap_or(status);
    let bytes = match wish::<usize>(&head.headers, "x-standin-body") {
        Some(length) => Bytes::from(vec![b'x'; length.min(64 * 1024 * 1024)]),
        None => Bytes::from(json),
    };
    let response = Response::builder()
        .status(status)
        .header("content-type", "application/json");
    if close == Some(b"mid") {
        let half = bytes.slice(..bytes.len() / 2);
        let body = BodyExt::boxed(Half(Some(half)));
        return response
            .header("content-length", bytes.len())
            .body(body)
            .map_err(io::Error::other);
    }
    let body = http_body_util::Full::new(bytes).map_err(|never: Infallible| match never {});
    response
        .body(BodyExt::boxed(body))
        .map_err(io::Error::other)
}

/// Half a body, and then a fault that closes the connection.
struct Half(Option<Bytes>);

impl hyper::body::Body for Half {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        Poll::Ready(Some(match self.0.take() {
            Some(half) => Ok(Frame::data(half)),
            None => Err(io::Error::other("asked to close")),
        }))
    }
}

/// What the request wishes of its answer.
fn wish<T: std::str::FromStr>(headers: &HeaderMap, name: &str) -> Option<T> {
    headers.get(name)?.to_str().ok()?.parse().ok()
}
