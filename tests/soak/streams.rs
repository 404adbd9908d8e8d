//! An upstream of HTTP/2 that breaks: calls that it never answers, half bodies, broken streams and
//! connections.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

/// What it does, by the field `x-fault` of a call.
pub(crate) const FAULTS: [&str; 8] = [
    "none", "hang", "deaf", "early", "reset", "slow", "cut", "drop",
];

type Body = BoxBody<Bytes, std::io::Error>;

pub(crate) struct Streams {
    pub(crate) addr: SocketAddr,
    connections: Arc<Mutex<Vec<AbortHandle>>>,
}

impl Streams {
    pub(crate) fn start(runtime: &tokio::runtime::Runtime) -> Self {
        let listening = tokio::net::TcpListener::bind("127.0.0.1:0");
        let listener = runtime.block_on(listening).expect("a port");
        let addr = listener.local_addr().expect("an address");
        let connections: Arc<Mutex<Vec<AbortHandle>>> = Arc::default();
        let all = connections.clone();
        runtime.spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let end = Arc::new(Notify::new());
                let ended = end.clone();
                let service = hyper::service::service_fn(move |request| {
                    let end = end.clone();
                    async move { answer(request, &end).await }
                });
                let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(tcp), service);
                let task = tokio::spawn(async move {
                    tokio::select! {
                        _ = serving => {}
                        () = ended.notified() => {}
                    }
                });
                let mut all = all.lock();
                all.retain(|connection| !connection.is_finished());
                all.push(task.abort_handle());
            }
        });
        Self { addr, connections }
    }

    pub(crate) fn close_all(&self) {
        self.connections
            .lock()
            .drain(..)
            .for_each(|one| one.abort());
    }
}

async fn answer(request: Request<Incoming>, end: &Notify) -> std::io::Result<Response<Body>> {
    let broken = || std::io::Error::other("as asked");
    let fault = request.headers().get("x-fault");
    let fault = fault.and_then(|name| name.to_str().ok()).unwrap_or("none");
    match fault {
        "deaf" => std::future::pending().await,
        "reset" => return Err(broken()),
        "drop" => end.notify_one(),
        "early" => return Ok(Response::new(whole())),
        _ => {}
    }
    let fault = fault.to_owned();
    let body = request.into_body().collect().await;
    body.map_err(std::io::Error::other)?;
    if fault == "hang" {
        std::future::pending::<()>().await;
    }
    let pause = match fault.as_str() {
        "slow" | "cut" => Duration::from_millis(100),
        _ => return Ok(Response::new(whole())),
    };
    let pieces = stream::iter(0..5).then(move |nth| {
        let is_cut = fault == "cut" && nth == 3;
        async move {
            tokio::time::sleep(pause).await;
            match is_cut {
                true => Err(broken()),
                false => Ok(Frame::data(Bytes::from_static(b"piece"))),
            }
        }
    });
    Ok(Response::new(BoxBody::new(StreamBody::new(pieces))))
}

fn whole() -> Body {
    let never = |never: Infallible| match never {};
    Full::new(Bytes::from_static(b"{}")).map_err(never).boxed()
}
