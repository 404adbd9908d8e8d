//! The upstream of the load: 100 bytes for every request, with one receive and one send, since what
//! it takes of its core the proxies beside it would seem to. Prints where it listens.
#![allow(missing_docs, clippy::print_stdout, reason = "a bench")]

use std::io;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const HEAD: &[u8] =
    b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\ndate: Thu, 01 Jan 2026 00:00:00 GMT\r\n\r\n";

#[tokio::main(flavor = "current_thread")]
async fn main() -> io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        // A connection that the proxy drops is no fault of ours.
        let _ = stream.set_nodelay(true);
        tokio::spawn(serve(stream));
    }
}

async fn serve(mut stream: TcpStream) -> io::Result<()> {
    let answer = [HEAD, &[b'x'; 100]].concat();
    let mut read = BytesMut::with_capacity(8192);
    while stream.read_buf(&mut read).await? > 0 {
        while let Some(length) = request(&read)? {
            read.advance(length);
            stream.write_all(&answer).await?;
        }
        read.reserve(8192);
    }
    Ok(())
}

/// The bytes of the first request of `read`, once all of it is there. Bodies have a length: those
/// of the load do.
fn request(read: &[u8]) -> io::Result<Option<usize>> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut head = httparse::Request::new(&mut headers);
    let parsed = head.parse(read).map_err(io::Error::other)?;
    let httparse::Status::Complete(length) = parsed else {
        return Ok(None);
    };
    let mut body = 0;
    for header in head.headers.iter() {
        if header.name.eq_ignore_ascii_case("content-length") {
            let value = str::from_utf8(header.value).map_err(io::Error::other)?;
            body = value.parse::<usize>().map_err(io::Error::other)?;
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            return Err(io::Error::other("a body without a length"));
        }
    }
    Ok((length + body <= read.len()).then_some(length + body))
}
