//! Callers that misbehave: they leave early, send half of what they said, drip, do not read.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::Run;
use crate::dice::Dice;
use crate::script::Fault;

/// Longer than any limit of the gateway's.
const ENOUGH: Duration = Duration::from_secs(40);

pub(crate) async fn call_on(run: Arc<Run>, to: SocketAddr, mut dice: Dice) {
    while !run.is_over() {
        // The gateway may have closed in the middle of it.
        if let Ok(stream) = TcpStream::connect(to).await {
            let _ = call(&run, stream, &mut dice).await;
        }
        sleep(dice.ms(20, 150)).await;
    }
}

async fn call(run: &Run, mut stream: TcpStream, dice: &mut Dice) -> std::io::Result<()> {
    let fault = match dice.one_in(2) {
        true => Fault::None,
        false => Fault::ALL[dice.below(Fault::ALL.len())],
    };
    let wait_ms = dice.below(300);
    let id = run.next.fetch_add(1, Relaxed);
    // What they break is not to be held against those that behave.
    let ip = format!("10.0.{}.{}", dice.below(256), dice.below(256));
    let head = |method: &str, route: &str, more: &str| {
        let units = if route == "messages" { 3 } else { 1 };
        let sent = run.upstream.clock.now().mono_us;
        format!(
            "{method} /o/a/s/{route} HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer YWMtgood\r\n\
             X-Forwarded-For: {ip}\r\nX-Request-Id: r-{id}\r\nx-units: {units}\r\nx-sent: {sent}\r\nx-fault: {}\r\n\
             x-wait-ms: {wait_ms}\r\n{more}\r\n",
            fault.name()
        )
    };
    let routes = ["messages", "up", "slot", "task"];
    let route = routes[dice.below(routes.len())];
    let body = r#"{"to":["a","b","c"]}"#;
    let length = format!("Content-Length: {}\r\n", body.len());
    match dice.below(9) {
        // Leaves before the answer, with a goodbye or without.
        0 | 1 => {
            stream
                .write_all(head("POST", route, &length).as_bytes())
                .await?;
            stream.write_all(body.as_bytes()).await?;
            sleep(dice.ms(0, 200)).await;
            if dice.one_in(2) {
                reset(&stream);
            }
        }
        // Half a body, then gone.
        2 => {
            stream
                .write_all(head("POST", route, &length).as_bytes())
                .await?;
            stream.write_all(&body.as_bytes()[..8]).await?;
            sleep(dice.ms(0, 200)).await;
            if dice.one_in(2) {
                reset(&stream);
            }
        }
        // Half a body, and no more.
        3 => {
            stream
                .write_all(head("POST", route, &length).as_bytes())
                .await?;
            stream.write_all(&body.as_bytes()[..8]).await?;
            read_to_end(&mut stream).await;
        }
        // A body that drips.
        4 => {
            let head = head("POST", route, "Content-Length: 100000\r\n");
            stream.write_all(head.as_bytes()).await?;
            for _ in 0..300 {
                stream.write_all(b"d").await?;
                sleep(Duration::from_millis(100)).await;
            }
            panic!("a body dripped for half a minute");
        }
        // A head that drips, or half of one.
        5 => {
            let head = head("GET", "second", "");
            for byte in &head.as_bytes()[..head.len() / 2] {
                stream.write_all(&[*byte]).await?;
                sleep(Duration::from_millis(10)).await;
            }
            if dice.one_in(2) {
                read_to_end(&mut stream).await;
            }
        }
        // An answer that nobody reads.
        6 => {
            let head = head("GET", "long", "").replace(&fault.name(), "Endless");
            stream.write_all(head.as_bytes()).await?;
            sleep(dice.ms(100, 7000)).await;
            if dice.one_in(2) {
                reset(&stream);
            }
        }
        // Chunks that are none.
        7 => {
            let head = head("POST", route, "Transfer-Encoding: chunked\r\n");
            stream.write_all(head.as_bytes()).await?;
            stream.write_all(b"5\r\nhello\r\nnot a size\r\n").await?;
            read_to_end(&mut stream).await;
        }
        // No HTTP, or HTTP/2's preface and then nothing.
        _ => {
            let bytes: &[u8] = match dice.one_in(2) {
                true => b"\x16\x03\x01\0\0\0",
                false => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
            };
            stream.write_all(bytes).await?;
            sleep(dice.ms(10, 2000)).await;
        }
    }
    Ok(())
}

/// Until the gateway has had enough: it must have, in time.
async fn read_to_end(stream: &mut TcpStream) {
    let mut bytes = [0; 4096];
    let reading = async { while matches!(stream.read(&mut bytes).await, Ok(1..)) {} };
    let ended = timeout(ENOUGH, reading).await;
    ended.expect("a connection is closed in time");
}

fn reset(stream: &TcpStream) {
    let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
}
