//! The bytes of one TCP connection: small writes gathered, and what has been read ahead (a PROXY
//! header's rest, a preface) read again.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, BufWriter, ReadBuf};
use tokio::net::TcpStream;

use crate::gateway::unseen::Unseen;

/// A head and a small body leave together; what is larger is written as it is.
const WRITE_BUFFER: usize = 2048;

/// One TCP connection.
#[derive(Debug)]
pub(super) struct Wire {
    tcp: BufWriter<TcpStream>,
    ahead: Unseen,
}

impl Wire {
    pub(super) fn new(tcp: TcpStream) -> Self {
        Self {
            tcp: BufWriter::with_capacity(WRITE_BUFFER, tcp),
            ahead: Unseen::default(),
        }
    }

    pub(super) fn tcp(&self) -> &TcpStream {
        self.tcp.get_ref()
    }

    /// Writes what there is room for, if nothing has been gathered; otherwise nothing.
    pub(super) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self.tcp.buffer() {
            [] => self.tcp.get_ref().try_write(bytes),
            _ => Ok(0),
        }
    }

    pub(super) fn into_tcp(self) -> TcpStream {
        self.tcp.into_inner()
    }

    /// Whether bytes have been looked at, and are still to be read.
    pub(super) fn has_ahead(&self) -> bool {
        !self.ahead.is_empty()
    }

    /// Looks at the first bytes until `enough` has seen what it needs: the number of bytes to
    /// drop. The rest is read again. `most`: how many it may look at.
    ///
    /// # Errors
    /// Its own, and those of the connection; `UnexpectedEof` if it ends before.
    pub(super) async fn look<E: From<io::Error>>(
        &mut self,
        most: usize,
        mut enough: impl FnMut(&[u8]) -> Result<Option<usize>, E>,
    ) -> Result<(), E> {
        let mut seen = BytesMut::from(&self.ahead[..]);
        loop {
            if !seen.is_empty()
                && let Some(used) = enough(&seen)?
            {
                seen.advance(used.min(seen.len()));
                self.ahead = Unseen(seen.freeze());
                return Ok(());
            }
            let mut limited = (&mut self.tcp).take((most.saturating_sub(seen.len())) as u64);
            if limited.read_buf(&mut seen).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.ahead.is_empty() {
            // Reads are not buffered: pingora, h2 and rustls have buffers of their own.
            return Pin::new(&mut this.tcp).poll_read(cx, buf);
        }
        let n = this.ahead.len().min(buf.remaining());
        buf.put_slice(&this.ahead.split_to(n));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().tcp).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().tcp).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tcp).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tcp).poll_shutdown(cx)
    }
}
