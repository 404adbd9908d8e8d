//! Answers that nobody reads, of an upstream of HTTP/2: they hold up no other call of the connection.

use std::convert::Infallible;
use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};

use super::*;

const SIZE: usize = 24 << 20;

/// Answers `/o/a/t/any` with 24 MiB, and all else with one.
fn upstream() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let addr = listener.local_addr().expect("an address");
    listener.set_nonblocking(true).expect("a socket option");
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
            let large = Bytes::from(vec![b'x'; SIZE]);
            while let Ok((tcp, _)) = listener.accept().await {
                let large = large.clone();
                let service = hyper::service::service_fn(move |request: Request<_>| {
                    let _: &hyper::body::Incoming = request.body();
                    let is_large = request.uri().path() == "/o/a/t/any";
                    let length = if is_large { SIZE } else { SIZE / 24 };
                    let answer = Response::new(Full::new(large.slice(..length)));
                    std::future::ready(Ok::<_, Infallible>(answer))
                });
                let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(tcp), service);
                tokio::spawn(serving);
            }
        });
    });
    addr
}

#[test]
fn who_does_not_read_holds_up_no_other_call_of_a_connection() {
    let url = format!("http://{} http2", upstream());
    let times = ["--read-timeout", "5s", "--send-timeout", "60s"];
    let gateway = before(&url, &[&times[..], &["--threads", "1"]].concat());
    let mut silent: Vec<_> = (0..6).map(|_| gateway.connect()).collect();
    for connection in &mut silent {
        connection.send_call("GET", "/o/a/t/any", &[], "");
    }
    soon("all are answered", || {
        let waiting = gateway.metric("floodgate_upstream_waiting", &[]);
        let running = gateway.metric("floodgate_requests_in_flight", &[]);
        (waiting, running) == (0.0, 6.0)
    });
    // Until each has sent what it may.
    std::thread::sleep(std::time::Duration::from_secs(2));
    for _ in 0..3 {
        let answer = gateway.call("GET", "/o/a/t/other", "");
        assert_eq!((answer.status, answer.text().len()), (200, SIZE / 24));
    }
    assert_eq!(failures(&gateway), 0.0);
}
