//! The answer of a plain call: its head, and its body as it comes.

use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use pingora::{Error, ErrorType};
use tokio::net::TcpStream;

use super::Call;
use super::caller::{Caller, Came, gone};
use super::framing::{Framing, Piece};
use super::head::{Head, Own};
use crate::gateway::steps::Heard;
use crate::gateway::watch::LATER;
use crate::limit::Moment;

/// Pieces up to this leave together.
const TOGETHER: usize = 16 * 1024;
/// What is read of an answer that nobody hears and that says what was made, in bytes.
const MAX_UNHEARD: usize = 1024 * 1024;

impl<C: Caller> Call<'_, '_, C> {
    /// Waits for the head of the answer: so long for each piece of it, and a second more as a whole.
    /// Interim ones go on.
    pub(super) async fn head(
        &mut self,
        tcp: &mut TcpStream,
        came: &mut BytesMut,
        own: &Own,
        (sent, most): (Moment, Duration),
        is_awaited: bool,
    ) -> pingora::Result<Head> {
        let whole_us = self.ctx.way.due_us(sent, most.saturating_add(LATER));
        let mut due_us = self.ctx.way.due_us(sent, most);
        let mut is_new = false;
        loop {
            while let Some(mut head) = Head::read(came, self.method, own)? {
                came.advance(head.length);
                match head.status {
                    101 => {
                        // `Upgrade` does not go upstream.
                        let why = "101, for which nobody has asked";
                        return Err(Error::explain(ErrorType::InvalidHTTPHeader, why).into_up());
                    }
                    100..200 => {
                        self.ctx.way.interim()?;
                        head.wire.extend_from_slice(b"\r\n");
                        self.send(&head.wire, is_awaited).await?;
                    }
                    _ => return Ok(head),
                }
            }
            if std::mem::take(&mut is_new) {
                let now = self.now();
                due_us = self.ctx.way.due_us(now, most).min(whole_us);
            }
            let before = came.len();
            match self.wait(tcp, came, due_us).await {
                Came::Bytes(n) if n > 0 => is_new = true,
                Came::Bytes(_) => {
                    let why = format!("bytes already read: {before}");
                    return Err(Error::explain(ErrorType::ConnectionClosed, why).into_up());
                }
                Came::Failed(error) => {
                    let why = format!("bytes already read: {before}");
                    return Err(Error::because(ErrorType::ReadError, why, error).into_up());
                }
                Came::Left(how) => self.leaves(how, is_awaited)?,
                Came::Late => return Err(late("the head of the answer")),
            }
        }
    }

    /// Sends the answer on. Whether its end can be told from what comes after it.
    pub(super) async fn answer(
        &mut self,
        tcp: &mut TcpStream,
        came: &mut BytesMut,
        mut head: Head,
        own: &Own,
    ) -> pingora::Result<bool> {
        let gateway = self.carrier.gateway;
        let now = self.now();
        let status = head.status;
        self.ctx.way.answered(status, self.method, true, now)?;
        let heard = Heard {
            status,
            is_coded: head.is_coded,
            is_empty: head.is_empty,
        };
        gateway.hears(self.ctx, heard, now).await;
        let is_read = self.ctx.totals.is_there() || self.ctx.answer.is_some();
        if self.is_gone && !is_read {
            // Only its status was waited for.
            return Err(gone());
        }
        head.finish(own, now, self.is_kept);
        let is_chunked = !matches!(head.framing, Framing::Length(_));
        let mut out = head.wire;
        let mut framing = head.framing;
        let mut room = MAX_UNHEARD;
        let mut last = now;
        loop {
            let pieces = self.pieces(&mut framing, came, &mut out, is_chunked, is_read);
            let is_over = pieces.await;
            if matches!(is_over, Ok(true)) {
                break;
            }
            // It has begun, whatever came after that.
            self.send(&out, is_read).await?;
            out.clear();
            is_over?;
            let due_us = self.ctx.way.due_us(last, self.ctx.way.between());
            let due_us = due_us.min(self.unheard_us.unwrap_or(u64::MAX));
            match self.wait(tcp, came, due_us).await {
                Came::Bytes(0) if framing == Framing::UntilClose => break,
                Came::Bytes(0) => {
                    let why = "in the middle of an answer";
                    return Err(Error::explain(ErrorType::ConnectionClosed, why).into_up());
                }
                Came::Bytes(n) => {
                    if self.is_gone {
                        room = room.saturating_sub(n);
                        if room == 0 {
                            return Err(gone());
                        }
                    }
                }
                Came::Failed(error) => {
                    let why = "in the middle of an answer";
                    return Err(Error::because(ErrorType::ReadError, why, error).into_up());
                }
                Came::Left(how) => self.leaves(how, is_read)?,
                Came::Late if self.unheard_us.is_some() => return Err(gone()),
                Came::Late => return Err(late("more of the answer")),
            }
            last = self.now();
        }
        gateway.hears_more(self.ctx, &[], true);
        if is_chunked {
            out.extend_from_slice(b"0\r\n\r\n");
        }
        self.send(&out, is_read).await?;
        Ok(framing != Framing::UntilClose)
    }

    /// Takes the body in what has come. Whether that was all.
    async fn pieces(
        &mut self,
        framing: &mut Framing,
        came: &mut BytesMut,
        out: &mut Vec<u8>,
        is_chunked: bool,
        is_read: bool,
    ) -> pingora::Result<bool> {
        while !framing.is_done() {
            let Ok(Piece { skip, length }) = framing.next(came) else {
                let why = "not the chunks of an answer";
                return Err(Error::explain(ErrorType::Custom("InvalidChunk"), why).into_up());
            };
            came.advance(skip);
            if skip + length == 0 {
                return Ok(false);
            }
            if length == 0 {
                continue;
            }
            self.ctx.has_time()?;
            let piece = came.get(..length).unwrap_or_default();
            self.carrier.gateway.hears_more(self.ctx, piece, false);
            if is_chunked {
                out.extend_from_slice(format!("{length:x}\r\n").as_bytes());
            }
            if out.len() + length > TOGETHER {
                self.write(out, is_read).await?;
                out.clear();
                let piece = came.get(..length).unwrap_or_default();
                self.write(piece, is_read).await?;
            } else {
                out.extend_from_slice(piece);
            }
            if is_chunked {
                out.extend_from_slice(b"\r\n");
            }
            came.advance(length);
        }
        Ok(true)
    }
}

fn late(what: &str) -> Box<Error> {
    let why = format!("{what} did not come in time");
    Error::explain(ErrorType::ReadTimedout, why).into_up()
}
