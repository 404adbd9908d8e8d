//! One upstream address: what it is, and how it is connected to.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use pingora::prelude::HttpPeer;
use pingora::protocols::tls::CaType;
use pingora::upstreams::peer::HttpUpstreamRequestPolicy;

use super::standing::Standing;
use crate::settings::Upstream;

/// How often a connection of many streams is asked whether it lives; five seconds without an answer
/// end it.
const PING: Duration = Duration::from_secs(10);
/// Calls that share one HTTP/2 connection.
const STREAMS: u32 = 100;
/// What an upstream may send ahead of a caller that does not read, in bytes.
const STREAM_WINDOW: u32 = 128 * 1024;
/// The same of a whole connection: room for all, so that no caller holds up another.
const CONNECTION_WINDOW: u32 = STREAMS * STREAM_WINDOW;

/// What makes an address, beside where it is.
#[derive(Clone, Debug)]
pub(super) struct Kind {
    pub(super) upstream: Upstream,
    pub(super) ca: Option<Arc<CaType>>,
    /// Tells apart connections that must not be shared.
    pub(super) group: u64,
}

impl Kind {
    /// The same for kinds between which nothing tells.
    pub(super) fn number(&self) -> u64 {
        let Upstream { host, weight, .. } = &self.upstream;
        let all = format!("{} {host} {weight}", self.nature());
        super::choice::hash(all.as_bytes())
    }

    /// The same for kinds of which one address is the same: what has been learnt of it holds on.
    fn nature(&self) -> u64 {
        let (name, http2, group) = (self.name(), self.upstream.http2, self.group);
        let all = format!("{name:?} {http2} {group}");
        super::choice::hash(all.as_bytes())
    }

    /// The name to ask for in TLS, where that is spoken.
    fn name(&self) -> Option<&str> {
        let Upstream { tls, host, sni, .. } = &self.upstream;
        tls.then(|| sni.as_deref().unwrap_or(host))
    }
}

/// One address of a pool.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub(super) addr: SocketAddr,
    pub(super) weight: u32,
    /// [`Kind::number`].
    pub(super) kind: u64,
    /// [`Kind::nature`].
    nature: u64,
    /// What consistent hashing knows it by.
    pub(super) hash: u64,
    /// Whether its calls are streams of a connection, if it can.
    pub(super) http2: bool,
    /// Cloned for each attempt.
    peer: HttpPeer,
    /// The host and port of its URL, for health checks.
    pub(super) authority: String,
    /// Shared with those that it is [like](Self::is_like).
    pub(super) standing: Arc<Standing>,
}

impl Endpoint {
    pub(super) fn new(addr: SocketAddr, kind: &Kind, standing: Arc<Standing>) -> Self {
        let Upstream {
            host,
            port,
            weight,
            http2,
            ..
        } = &kind.upstream;
        let name = kind.name();
        let tls = name.is_some();
        let mut peer = HttpPeer::new(addr, tls, name.unwrap_or_default().to_owned());
        peer.group_key = kind.group;
        peer.options.ca.clone_from(&kind.ca);
        if *http2 {
            // Over TLS, one that cannot may say so; in the clear there is nothing to ask.
            peer.options.set_http_version(2, if tls { 1 } else { 2 });
            peer.options.max_h2_streams = STREAMS as usize;
            peer.options.h2_stream_window_size = Some(STREAM_WINDOW);
            peer.options.h2_connection_window_size = Some(CONNECTION_WINDOW);
            peer.options.h2_ping_interval = Some(PING);
        }
        // Ours to do: pingora would take whatever `Connection` names, the token too.
        peer.options.http_upstream_request_policy = HttpUpstreamRequestPolicy::preserve();
        let authority = match host.contains(':') {
            true => format!("[{host}]:{port}"),
            false => format!("{host}:{port}"),
        };
        Self {
            addr,
            weight: *weight,
            http2: *http2,
            kind: kind.number(),
            nature: kind.nature(),
            hash: super::choice::hash(addr.to_string().as_bytes()),
            peer,
            authority,
            standing,
        }
    }

    /// How it is connected to.
    pub(super) fn peer(&self) -> HttpPeer {
        self.peer.clone()
    }

    /// Whether it stands for the same as one of this kind at this address would.
    pub(super) fn is_like(&self, addr: SocketAddr, kind: &Kind) -> bool {
        self.addr == addr && self.nature == kind.nature()
    }
}
