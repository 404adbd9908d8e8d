//! HTTP/2 as the settings have it when a connection begins: pingora would ask once, at the start.

use std::sync::Arc;

use async_trait::async_trait;
use pingora::apps::{HttpServerApp, HttpServerOptions, ReusedHttpStream};
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::v2::server::{H2Options, default_h2_options};
use pingora::server::ShutdownWatch;

use super::worker::Proxy;
use crate::gateway::cut::{Server, Serving};
use crate::gateway::{Shared, watch};

/// One connection's way into the proxy.
pub(super) struct Http2 {
    proxy: Arc<Proxy>,
    options: HttpServerOptions,
    h2: H2Options,
    serving: Arc<Serving>,
}

impl Http2 {
    pub(super) fn new(proxy: Arc<Proxy>, shared: &Shared) -> Self {
        let settings = &shared.settings;
        let mut options = HttpServerOptions::default();
        options.h2_idle_timeout = Some(settings.keepalive);
        let mut h2 = default_h2_options();
        h2.max_concurrent_streams(settings.max_streams);
        h2.max_header_list_size(u32::try_from(settings.max_header_bytes).unwrap_or(u32::MAX));
        Self {
            proxy,
            options,
            h2,
            serving: shared.serving.clone(),
        }
    }
}

#[async_trait]
impl HttpServerApp for Http2 {
    async fn process_new_http(
        self: &Arc<Self>,
        session: ServerSession,
        shutdown: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        let doing = self.proxy.process_new_http(session, shutdown);
        let server = Server::new(&self.serving);
        let done = server.serve(watch::over(doing, &mut None)).await;
        done.flatten().flatten()
    }

    fn h2_options(&self) -> Option<H2Options> {
        Some(self.h2.clone())
    }

    fn server_options(&self) -> Option<&HttpServerOptions> {
        Some(&self.options)
    }
}
