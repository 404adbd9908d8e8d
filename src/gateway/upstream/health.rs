//! Health checks, and the end of ejections.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use pingora::connectors::ConnectorOptions;
use pingora::connectors::http::Connector;
use pingora::http::RequestHeader;
use pingora::server::configuration::ServerConf;
use tokio::net::TcpStream;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::Upstreams;
use super::endpoint::Endpoint;
use super::pool::Pool;
use crate::clock::Clock;
use crate::settings::Check;

/// How often the end of an ejection is looked for.
const TICK: Duration = Duration::from_millis(100);
/// Checks of a pool that run at once.
const AT_ONCE: usize = 32;

/// Gives ejected addresses another chance when their time is over.
pub(super) async fn readmit(upstreams: Arc<Upstreams>, clock: Clock) {
    let mut every = interval(TICK);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        let now_us = clock.now().mono_us;
        for pool in &upstreams.pools {
            for endpoint in &pool.set.load().endpoints {
                endpoint.standing.tick(now_us);
            }
        }
    }
}

/// Checks all addresses of all pools that have checks.
pub(super) async fn watch(upstreams: Arc<Upstreams>) {
    let is_checked = |pool: &&Pool| pool.check != Check::Off;
    if !upstreams.pools.iter().any(|pool| is_checked(&pool)) {
        return;
    }
    let conf = ServerConf::default();
    let connector = Connector::new(Some(ConnectorOptions::from_server_conf(&conf)));
    let checked = upstreams.pools.iter().filter(is_checked);
    let watching = checked.map(|pool| watch_pool(&upstreams, pool, &connector));
    futures_util::future::join_all(watching).await;
}

async fn watch_pool(upstreams: &Upstreams, pool: &Pool, connector: &Connector) {
    let tending = &upstreams.tending;
    let mut every = interval(tending.check_interval);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        let endpoints = pool.set.load_full();
        futures_util::stream::iter(endpoints.endpoints.iter())
            .for_each_concurrent(AT_ONCE, |endpoint| async {
                let limit = tending.check_timeout;
                let found = match &pool.check {
                    Check::Off => return,
                    Check::Tcp => timeout(limit, TcpStream::connect(endpoint.addr))
                        .await
                        .map(|connected| connected.map(|_| ()).map_err(|e| e.to_string())),
                    Check::Http(path) => timeout(limit, ask(connector, endpoint, path)).await,
                };
                let found = found.unwrap_or_else(|_| Err("no answer in time".to_owned()));
                endpoint.standing.checked(found, pool.checking);
            })
            .await;
    }
}

/// A `GET` on a connection of its own: an idle one may outlive what it stands for.
async fn ask(connector: &Connector, endpoint: &Endpoint, path: &str) -> Result<(), String> {
    let asking = async {
        let mut peer = endpoint.peer();
        // One of HTTP/2 that has room for more would be kept for the next.
        peer.options.max_h2_streams = 1;
        let (mut session, _) = connector.get_http_session(&peer).await?;
        let mut request = RequestHeader::build("GET", path.as_bytes(), None)?;
        request.insert_header("Host", &endpoint.authority)?;
        request.insert_header("User-Agent", "floodgate-health-check")?;
        session.write_request_header(Box::new(request)).await?;
        session.finish_request_body().await?;
        session.read_response_header().await?;
        let status = session
            .response_header()
            .map_or(0, |head| head.status.as_u16());
        session.shutdown().await;
        Ok::<u16, Box<pingora::Error>>(status)
    };
    match asking.await {
        Ok(200..=399) => Ok(()),
        Ok(status) => Err(format!("status {status}")),
        Err(error) => Err(error.etype().as_str().to_owned()),
    }
}
