//! The admin listener's connections: few, and none that is held for nothing.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

use crate::gateway::drain::Stage;

/// Connections at once; further ones wait to be accepted.
const MOST: usize = 128;
/// For a request's head, and for the next one on a connection.
const HEAD: Duration = Duration::from_secs(10);
/// For a connection as a whole: a scraper opens another.
const WHOLE: Duration = Duration::from_secs(600);
/// How long nothing is accepted when the process has no file descriptor left.
const OUT_OF_FILES: Duration = Duration::from_millis(100);

/// Serves until the process ends, or another has the listener.
///
/// # Errors
/// When the listener cannot be used at all.
pub async fn serve(
    listener: std::net::TcpListener,
    router: Router,
    mut stages: watch::Receiver<Stage>,
) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let places = Arc::new(Semaphore::new(MOST));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else {
            return Ok(());
        };
        let accepted = tokio::select! {
            biased;
            _ = stages.wait_for(|stage| matches!(stage, Stage::HandedOver { .. })) => return Ok(()),
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::error!(%error, "the admin listener cannot accept");
                tokio::time::sleep(OUT_OF_FILES).await;
                continue;
            }
        };
        let serving = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD)
            .serve_connection(
                TokioIo::new(stream),
                TowerToHyperService::new(router.clone()),
            );
        tokio::spawn(async move {
            let _place = place;
            // A caller that breaks off is no fault of ours.
            let _ = tokio::time::timeout(WHOLE, serving).await;
        });
    }
}
