//! A bare pingora proxy with default settings, from the same crates: what the gateway is
//! measured against. `bare <listen> <upstream> <threads> [h2c]`.
#![allow(missing_docs, clippy::expect_used, reason = "a bench")]

use std::net::SocketAddr;

use async_trait::async_trait;
use pingora::apps::HttpServerOptions;
use pingora::prelude::{HttpPeer, http_proxy_service};
use pingora::proxy::{ProxyHttp, Session};
use pingora::server::Server;
use pingora::server::configuration::ServerConf;

struct Bare(SocketAddr);

#[async_trait]
impl ProxyHttp for Bare {
    type CTX = ();

    fn new_ctx(&self) {}

    async fn upstream_peer(&self, _: &mut Session, (): &mut ()) -> pingora::Result<Box<HttpPeer>> {
        Ok(Box::new(HttpPeer::new(self.0, false, String::new())))
    }
}

fn main() {
    let mut args = std::env::args().skip(1);
    let listen = args.next().expect("a listen address");
    let upstream = args
        .next()
        .and_then(|at| at.parse().ok())
        .expect("an upstream address");
    let threads = args
        .next()
        .and_then(|n| n.parse().ok())
        .expect("a number of threads");
    let conf = ServerConf {
        threads,
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let mut service = http_proxy_service(&server.configuration, Bare(upstream));
    if args.next().is_some_and(|word| word == "h2c") {
        let mut options = HttpServerOptions::default();
        options.h2c = true;
        let proxy = service.app_logic_mut().expect("the proxy");
        proxy.server_options = Some(options);
    }
    service.add_tcp(&listen);
    server.add_service(service);
    server.run_forever();
}
