//! Who called: waited for, and written to.

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::task::{Context as Task, Poll};

use bytes::BytesMut;
use pingora::{Error, ErrorType};
use tokio::io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{Alarm, Call, Carrier};
use crate::gateway::upstream;

/// Room for what an upstream says, in bytes: at first, and where it has more.
pub(super) const LITTLE: usize = 4 * 1024;
const MUCH: usize = 64 * 1024;

/// Who called.
pub(in crate::gateway) trait Caller: AsyncWrite + Unpin {
    /// Sends all of this, with what has been written before it.
    async fn send(&mut self, answer: &[u8]) -> io::Result<()>;

    /// Until nothing more comes from the caller: it has gone, or says no more and waits for its
    /// answer (`Ok`). What comes before that is kept for later.
    fn poll_left(&mut self, cx: &mut Task<'_>) -> Poll<io::Result<()>>;
}

/// What has come of a wait.
pub(super) enum Came {
    Bytes(usize),
    Failed(io::Error),
    /// The caller says no more, or has gone.
    Left(io::Result<()>),
    Late,
}

impl<C: Caller> Call<'_, '_, C> {
    /// Waits for more from upstream, and for the caller to leave.
    pub(super) async fn wait(
        &mut self,
        tcp: &mut TcpStream,
        came: &mut BytesMut,
        due_us: u64,
    ) -> Came {
        // What has filled its room has more behind it.
        let is_full = came.capacity() == came.len();
        came.reserve(if is_full { MUCH } else { LITTLE });
        let is_watched = self.is_watched;
        let Carrier { caller, alarm, .. } = &mut *self.carrier;
        let mut reading = pin!(tcp.read_buf(came));
        poll_fn(|cx| {
            if let Poll::Ready(read) = reading.as_mut().poll(cx) {
                return Poll::Ready(match read {
                    Ok(n) => Came::Bytes(n),
                    Err(error) => Came::Failed(error),
                });
            }
            if is_watched && let Poll::Ready(how) = caller.poll_left(cx) {
                return Poll::Ready(Came::Left(how));
            }
            alarm.poll(cx, due_us).map(|()| Came::Late)
        })
        .await
    }

    /// Nothing more comes from the caller. An error, unless the call goes on all the same: then one
    /// that is still there has its answer.
    pub(super) fn leaves(&mut self, how: io::Result<()>, goes_on: bool) -> pingora::Result<()> {
        self.is_watched = false;
        match (how, goes_on) {
            (_, false) => Err(gone()),
            (Ok(()), true) => Ok(()),
            (Err(error), true) => self.is_written(Err(error), true),
        }
    }

    /// Writes to the caller, if it is there. `goes_on`: whether the call does without it.
    pub(super) async fn write(&mut self, bytes: &[u8], goes_on: bool) -> pingora::Result<()> {
        match bytes.is_empty() {
            true => Ok(()),
            false => self.put(bytes, false, goes_on).await,
        }
    }

    /// Writes to the caller what it waits for: this leaves at once, with all that was written.
    pub(super) async fn send(&mut self, bytes: &[u8], goes_on: bool) -> pingora::Result<()> {
        self.put(bytes, true, goes_on).await
    }

    async fn put(&mut self, bytes: &[u8], leaves: bool, goes_on: bool) -> pingora::Result<()> {
        if self.is_gone {
            return Ok(());
        }
        if let (Some(status), 0) = (self.ctx.upstream_status, self.status) {
            self.status = status;
        }
        let ends_us = self.ctx.way.ends_us();
        let Carrier { caller, alarm, .. } = &mut *self.carrier;
        let putting = async {
            match leaves {
                true => caller.send(bytes).await,
                false => caller.write_all(bytes).await,
            }
        };
        let put = in_time(putting, alarm, ends_us).await?;
        self.is_written(put, goes_on)
    }

    fn is_written(&mut self, written: io::Result<()>, goes_on: bool) -> pingora::Result<()> {
        let Err(error) = written else {
            return Ok(());
        };
        (self.is_gone, self.is_watched) = (true, false);
        if !goes_on {
            let why = "while writing the answer";
            return Err(Error::because(ErrorType::WriteError, why, error).into_down());
        }
        let now = self.now();
        let until = self.ctx.way.due_us(now, self.ctx.way.between());
        self.unheard_us.get_or_insert(until);
        Ok(())
    }
}

pub(super) fn gone() -> Box<Error> {
    Error::explain(ErrorType::ConnectionClosed, "the caller has gone").into_down()
}

/// What is done for a caller, unless the call has had its time first.
async fn in_time(
    doing: impl Future<Output = io::Result<()>>,
    alarm: &mut Alarm,
    ends_us: Option<u64>,
) -> pingora::Result<io::Result<()>> {
    let mut doing = pin!(doing);
    poll_fn(|cx| match (doing.as_mut().poll(cx), ends_us) {
        (Poll::Ready(done), _) => Poll::Ready(Ok(done)),
        (Poll::Pending, Some(ends)) => alarm.poll(cx, ends).map(|()| Err(upstream::out_of_time())),
        (Poll::Pending, None) => Poll::Pending,
    })
    .await
}
