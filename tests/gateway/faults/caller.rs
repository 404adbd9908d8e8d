//! A well-behaved caller over HTTP/1.1 or HTTP/2, in the clear or over TLS, that tells a whole answer
//! from one that was cut off.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::{http1, http2};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

/// No call may take longer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// What a caller sends of a body.
#[derive(Clone, Debug)]
pub(crate) enum Sends {
    Nothing,
    /// With its length.
    Whole(Bytes),
    /// Without: in chunks.
    Chunks(Vec<Bytes>),
}

/// A call.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) method: &'static str,
    pub(crate) path: String,
    pub(crate) fields: Vec<(&'static str, String)>,
    pub(crate) body: Sends,
}

/// What came of it.
#[derive(Clone, Debug)]
pub(crate) struct Got {
    /// 0: no head of an answer.
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
    /// Whether the answer came to its end.
    pub(crate) is_whole: bool,
    pub(crate) ratelimit: String,
}

/// How it connects.
#[derive(Clone)]
pub(crate) struct Wire {
    pub(crate) addr: SocketAddr,
    pub(crate) http2: bool,
    /// Over TLS, for `localhost`.
    pub(crate) tls: Option<Arc<ClientConfig>>,
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

type Body = BoxBody<Bytes, Infallible>;

impl Wire {
    /// One call on a connection of its own, which is closed.
    pub(crate) async fn call(&self, ask: &Ask) -> Got {
        let called = tokio::time::timeout(PATIENCE, self.try_call(ask));
        let called = called.await;
        let called = called.unwrap_or_else(|_| panic!("hangs: {ask:?}"));
        called.unwrap_or(Got {
            status: 0,
            body: Vec::new(),
            is_whole: false,
            ratelimit: String::new(),
        })
    }

    async fn try_call(&self, ask: &Ask) -> Option<Got> {
        let tcp = TcpStream::connect(self.addr).await.ok()?;
        tcp.set_nodelay(true).ok()?;
        let io: Box<dyn Io> = match &self.tls {
            None => Box::new(tcp),
            Some(config) => {
                let name = ServerName::try_from("localhost").expect("a name");
                let connector = TlsConnector::from(config.clone());
                Box::new(connector.connect(name, tcp).await.ok()?)
            }
        };
        let request = self.request(ask);
        let io = TokioIo::new(io);
        if self.http2 {
            let (mut sender, connection) = http2::Builder::new(TokioExecutor::new())
                // As large as HTTP/1.1 has them.
                .max_header_list_size(1024 * 1024)
                .handshake(io)
                .await
                .ok()?;
            let running = tokio::spawn(connection);
            let got = read(sender.send_request(request).await.ok()?).await;
            running.abort();
            Some(got)
        } else {
            let (mut sender, connection) = http1::handshake(io).await.ok()?;
            let running = tokio::spawn(connection);
            let got = read(sender.send_request(request).await.ok()?).await;
            running.abort();
            Some(got)
        }
    }

    fn request(&self, ask: &Ask) -> Request<Body> {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let target = match self.http2 {
            true => format!("{scheme}://gateway{}", ask.path),
            false => ask.path.clone(),
        };
        let mut request = Request::builder().method(ask.method).uri(target);
        if !self.http2 {
            request = request.header("host", "gateway");
        }
        request = request.header("authorization", "Bearer YWMtgood");
        for (name, value) in &ask.fields {
            request = request.header(*name, value);
        }
        let body = match &ask.body {
            Sends::Nothing => Empty::new().boxed(),
            Sends::Whole(bytes) => Full::new(bytes.clone()).boxed(),
            Sends::Chunks(chunks) => {
                let frames: Vec<_> = chunks.iter().cloned().map(Frame::data).collect();
                StreamBody::new(stream::iter(frames.into_iter().map(Ok))).boxed()
            }
        };
        request.body(body).expect("a request")
    }
}

async fn read(response: Response<Incoming>) -> Got {
    let status = response.status().as_u16();
    let field = response.headers().get("ratelimit");
    let ratelimit = field.and_then(|f| f.to_str().ok()).unwrap_or_default();
    let ratelimit = ratelimit.to_owned();
    let mut incoming = response.into_body();
    let mut body = Vec::new();
    let is_whole = loop {
        match incoming.frame().await {
            None => break true,
            Some(Err(_)) => break false,
            Some(Ok(frame)) => {
                // Of one without end, the beginning is enough.
                if let Some(data) = frame.data_ref().filter(|_| body.len() < 1024 * 1024) {
                    body.extend_from_slice(data);
                }
            }
        }
    };
    Got {
        status,
        body,
        is_whole,
        ratelimit,
    }
}
