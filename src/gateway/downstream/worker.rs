//! One worker: accepts, greets, serves.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pingora::apps::{HttpServerApp as _, HttpServerOptions, ServerApp as _};
use pingora::protocols::Stream;
use pingora::protocols::http::ServerSession;
use pingora::proxy::HttpProxy;
use pingora::server::ShutdownWatch;
use pingora::server::configuration::ServerConf;
use pingora::services::background::BackgroundService;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::Listening;
use super::caps::{Full, Place};
use super::channel::Channel;
use super::closing;
use super::connection::Connection;
use super::http2::Http2;
use super::refusal;
use super::state::State;
use super::wire::Wire;
use crate::gateway::cut::Server;
use crate::gateway::drain::{Stage, Unheard};
use crate::gateway::plain::Idle;
use crate::gateway::reply::Reply;
use crate::gateway::{Gateway, Live, headers, watch};
use crate::identity::address::prefix;
use crate::identity::proxy_protocol::{self, Progress, ProxyError};
use crate::observe::metrics::Turned;
use crate::settings::Listen;

/// Requests whose head is still arriving when the listeners close are given this long.
pub(crate) const SETTLE: Duration = Duration::from_millis(200);
/// Connections that have had no call when the listeners close are given this long for one.
const FIRST_CALL: Duration = Duration::from_secs(2);
/// In which all that the system has for this process is looked at.
const NOTICE: Duration = Duration::from_millis(10);
/// How long nothing is accepted when the process has no file descriptor left.
const OUT_OF_FILES: Duration = Duration::from_millis(100);

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Bytes that tell a method from a TLS record: `PROPFIND` and a blank.
const METHOD: usize = 9;

pub(super) type Proxy = HttpProxy<Gateway>;

/// Accepts on its own sockets, and serves on its own thread.
#[derive(Debug)]
pub(crate) struct Worker {
    live: Live,
    conf: Arc<ServerConf>,
    listening: parking_lot::Mutex<Vec<Listening>>,
}

impl Worker {
    pub(crate) fn new(live: Live, conf: Arc<ServerConf>, listening: Vec<Listening>) -> Self {
        Self {
            live,
            conf,
            listening: parking_lot::Mutex::new(listening),
        }
    }

    fn proxy(&self) -> Arc<Proxy> {
        let mut proxy = HttpProxy::new(Gateway::new(self.live.clone()), self.conf.clone());
        let mut options = HttpServerOptions::default();
        // It is refused here, in our own words.
        options.allow_connect_method_proxying = true;
        proxy.server_options = Some(options);
        proxy.handle_init_modules();
        Arc::new(proxy)
    }
}

#[async_trait]
impl BackgroundService for Worker {
    async fn start(&self, shutdown: ShutdownWatch) {
        let proxy = self.proxy();
        let idle = Arc::new(Idle::default());
        let sweeping = tokio::spawn(idle.clone().sweep());
        let listening = std::mem::take(&mut *self.listening.lock());
        let mut accepting = Vec::new();
        for Listening { socket, how } in listening {
            let socket = match TcpListener::from_std(socket) {
                Ok(socket) => socket,
                Err(error) => {
                    tracing::error!(%error, listen = %how.addr, "cannot listen");
                    continue;
                }
            };
            let door = Door {
                live: self.live.clone(),
                gateway: Gateway::new(self.live.clone()),
                idle: idle.clone(),
                proxy: proxy.clone(),
                how,
                shutdown: shutdown.clone(),
            };
            accepting.push(tokio::spawn(Arc::new(door).accept(socket)));
        }
        for accepting in accepting {
            let _ = accepting.await;
        }
        // Where another process accepts, idle connections may still have a call.
        let _ = shutdown.clone().wait_for(|stop| *stop).await;
        tokio::time::sleep(SETTLE).await;
        let lasting = self.live.now().lasting().clone();
        lasting.drain.all_heard(FIRST_CALL).await;
        // On a machine that is too busy, what has come long ago is only noticed now.
        tokio::time::sleep(NOTICE).await;
        // Connections that are idle now are closed.
        proxy.http_cleanup().await;
        sweeping.abort();
        lasting.drain.worker_closed();
    }
}

/// One listener of one worker.
pub(super) struct Door {
    pub(super) live: Live,
    /// The same adapter as pingora's.
    pub(super) gateway: Gateway,
    /// Its connections to upstreams.
    pub(super) idle: Arc<Idle>,
    proxy: Arc<Proxy>,
    how: Listen,
    pub(super) shutdown: ShutdownWatch,
}

/// Why a connection ends before its first request.
enum Refused {
    /// It is told nothing.
    Silent(Turned),
    /// The caller has gone, or knows.
    Gone,
}

impl From<io::Error> for Refused {
    fn from(_: io::Error) -> Self {
        Self::Gone
    }
}

impl From<ProxyError> for Refused {
    fn from(_: ProxyError) -> Self {
        Self::Silent(Turned::ProxyProtocol)
    }
}

impl Door {
    async fn accept(self: Arc<Self>, socket: TcpListener) {
        let mut stages = self.live.look().drain.watch();
        loop {
            let accepted = tokio::select! {
                biased;
                _ = stages.wait_for(Stage::is_closing) => break,
                accepted = socket.accept() => accepted,
            };
            match accepted {
                Ok((tcp, peer)) => self.enter(tcp, peer),
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    tracing::error!(%error, listen = %self.how.addr, "cannot accept");
                    tokio::time::sleep(OUT_OF_FILES).await;
                }
            }
        }
        let is_given = stages.borrow().has_given(self.how.addr);
        if !is_given {
            closing::serve_queued(socket, SETTLE, |tcp, peer| self.enter(tcp, peer)).await;
        }
    }

    fn enter(self: &Arc<Self>, tcp: TcpStream, peer: SocketAddr) {
        let door = self.clone();
        let shared = self.live.look();
        shared.metrics.connection();
        let place = match shared.caps.take() {
            Ok(place) => place,
            Err(full) => {
                shared.metrics.turned_away(full.into());
                return;
            }
        };
        let unheard = self.live.look().drain.comes();
        tokio::spawn(async move {
            match door.greet(tcp, peer, place, unheard).await {
                Ok(connection) => door.serve(connection).await,
                Err(Refused::Silent(why)) => door.live.look().metrics.turned_away(why),
                Err(Refused::Gone) => {}
            }
        });
    }

    /// All that comes before the first request.
    async fn greet(
        &self,
        tcp: TcpStream,
        peer: SocketAddr,
        mut place: Place,
        unheard: Unheard,
    ) -> Result<Connection, Refused> {
        let shared = self.live.now();
        let settings = &shared.settings;
        let mut wire = Wire::new(tcp);
        let mut peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        if self.how.proxy_protocol {
            if !headers::is_trusted(settings, peer.ip()) {
                return Err(Refused::Silent(Turned::ProxyProtocol));
            }
            let mut source = None;
            let header = wire.look(proxy_protocol::MAX_HEADER, |bytes| {
                Ok::<_, Refused>(match proxy_protocol::read(bytes)? {
                    Progress::More => None,
                    Progress::Done {
                        length,
                        source: told,
                    } => {
                        source = told;
                        Some(length)
                    }
                })
            });
            within(settings.header_timeout, Turned::ProxyProtocol, header).await?;
            peer = source.unwrap_or(peer);
        }
        if !headers::is_trusted(settings, peer.ip()) {
            let address = prefix(peer.ip(), shared.policy.ipv6_prefix);
            place
                .take_address(address)
                .map_err(|full| Refused::Silent(full.into()))?;
        }
        let tls = shared.certificates.as_ref().filter(|_| self.how.tls);
        let (io, http2) = match tls {
            Some(certificates) => {
                let mut is_plain = false;
                let look = wire.look(METHOD, |bytes| {
                    is_plain = begins_with_a_method(bytes);
                    let is_known = !is_plain || bytes.contains(&b' ') || bytes.len() == METHOD;
                    Ok::<_, Refused>(is_known.then_some(0))
                });
                let looked = within(settings.header_timeout, Turned::Tls, look).await;
                looked.map_err(|_| Refused::Silent(Turned::Tls))?;
                if is_plain {
                    let reply = Reply::plain_http();
                    let why = Turned::PlainHttp.as_str();
                    let refusal = refusal::of(&self.live, peer, false, &reply, why);
                    shared.metrics.turned_away(Turned::PlainHttp);
                    refusal::send(&mut wire, &refusal).await;
                    return Err(Refused::Gone);
                }
                let handshake = TlsAcceptor::from(certificates.config()).accept(wire);
                let handshake = async {
                    let stream = handshake.await;
                    stream.map_err(|_| Refused::Silent(Turned::Tls))
                };
                let stream = within(settings.header_timeout, Turned::Tls, handshake).await?;
                let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                (Channel::Tls(Box::new(stream)), http2)
            }
            None if settings.h2c => {
                if !wire.has_ahead() {
                    // Nothing is due yet: the connection may be idle.
                    let readable = async { Ok(wire.tcp().readable().await?) };
                    within(settings.keepalive, Turned::Idle, readable).await?;
                }
                let mut http2 = false;
                let look = wire.look(PREFACE.len(), |bytes| {
                    http2 = bytes.starts_with(PREFACE);
                    let may_be = PREFACE.starts_with(bytes) && !http2;
                    Ok::<_, Refused>((!may_be).then_some(0))
                });
                within(settings.header_timeout, Turned::SlowHead, look).await?;
                (Channel::Plain(wire), http2)
            }
            None => (Channel::Plain(wire), false),
        };
        let state = Arc::new(State::new(peer, self.how.tls, http2, unheard));
        Ok(Connection::new(io, http2, state, self.live.clone(), place))
    }

    async fn serve(&self, connection: Connection) {
        let state = connection.state();
        let http2 = connection.is_http2();
        let stream: Stream = Box::new(connection);
        if http2 {
            self.serve_http2(stream, &state).await;
        } else {
            self.serve_http1(stream, &state).await;
        }
    }

    /// What pingora goes on with, if the connection is not over or cut off before.
    async fn ahead(&self, server: &Server, stream: Stream) -> Option<Stream> {
        // Boxed: nobody else's future has room for it.
        server
            .serve(Box::pin(self.answer_ahead(stream)))
            .await
            .flatten()
    }

    async fn serve_http1(&self, stream: Stream, state: &State) {
        let mut timer = None;
        let server = Server::new(&self.live.look().serving);
        let mut stream = stream;
        if self.live.look().upstreams.has_plain() {
            match self.ahead(&server, stream).await {
                Some(back) => stream = back,
                None => return,
            }
        }
        let mut session = ServerSession::new_http1(stream);
        // No limit of pingora's: an idle connection and a slow head have ours.
        session.set_keepalive((!*self.shutdown.borrow()).then_some(0));
        loop {
            state.idle();
            let next = self.proxy.process_new_http(session, &self.shutdown);
            let next = server.serve(watch::over(next, &mut timer)).await;
            let next = next.flatten().flatten();
            state.drop_admitted();
            let Some((mut stream, kept)) = next.map(|next| next.consume()) else {
                return;
            };
            if state.take_refused() || self.live.look().upstreams.has_plain() {
                match self.ahead(&server, stream).await {
                    Some(back) => stream = back,
                    None => return,
                }
            }
            session = ServerSession::new_http1(stream);
            if let Some(kept) = kept {
                kept.apply_to_session(&mut session);
            }
        }
    }

    /// Tells the caller to go elsewhere when the gateway stops, and when the connection has had
    /// its requests.
    async fn serve_http2(&self, stream: Stream, state: &State) {
        let (stop, stopped) = tokio::sync::watch::channel(*self.shutdown.borrow());
        let shared = self.live.now();
        let most = shared.settings.max_requests_per_connection;
        let (streams, rests) = (shared.settings.max_streams, shared.settings.header_timeout);
        let http2 = Arc::new(Http2::new(self.proxy.clone(), &shared));
        // A connection outlives reloads: it holds on to nothing of this one.
        drop(shared);
        let serving = http2.process_new(stream, &stopped);
        tokio::pin!(serving);
        let told = async {
            let most = most.map_or(u32::MAX, std::num::NonZeroU32::get);
            tokio::select! {
                () = self.leaving(state) => {}
                () = state.spent(most) => {}
            }
            let _ = stop.send(true);
            // pingora waits without a limit for the caller to hear that, and takes calls meanwhile.
            tokio::select! {
                () = state.spent(most.saturating_add(streams)) => {}
                () = state.rest(rests) => {}
            }
        };
        tokio::select! {
            _ = &mut serving => {}
            () = told => {}
        }
    }
}

impl Door {
    /// Until a caller of HTTP/2 must go elsewhere. One that came while callers were still let in
    /// has its first call.
    async fn leaving(&self, state: &State) {
        let mut stages = self.live.look().drain.watch();
        let came_late = *stages.borrow() != Stage::Open;
        let _ = stages.wait_for(|stage| *stage != Stage::Open).await;
        if came_late {
            tokio::select! {
                () = state.spent(1) => {}
                _ = stages.wait_for(Stage::is_closing) => {}
            }
        }
    }
}

/// Whether these bytes, the first of a connection, can begin an HTTP request, and no TLS record.
fn begins_with_a_method(bytes: &[u8]) -> bool {
    let mut after = bytes.iter().skip_while(|b| b.is_ascii_uppercase());
    let is_letter = bytes.first().is_some_and(u8::is_ascii_uppercase);
    is_letter && after.next().is_none_or(|b| *b == b' ')
}

/// Whether accepting failed for one caller alone.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted, WouldBlock};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionReset | Interrupted | WouldBlock
    )
}

async fn within<T>(
    limit: Duration,
    late: Turned,
    doing: impl Future<Output = Result<T, Refused>>,
) -> Result<T, Refused> {
    match timeout(limit, doing).await {
        Ok(done) => done,
        Err(_) => Err(Refused::Silent(late)),
    }
}

impl From<Full> for Turned {
    fn from(full: Full) -> Self {
        match full {
            Full::All => Self::Full,
            Full::Address => Self::AddressFull,
        }
    }
}
