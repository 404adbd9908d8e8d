//! Messages and sockets over a Unix socket.

use std::io::{self, IoSlice, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Sockets that go in one message; the system takes 253.
const AT_ONCE: usize = 64;
/// The longest message.
const LONGEST: usize = 64 << 20;

/// One end of the conversation.
#[derive(Debug)]
pub(super) struct Wire {
    stream: UnixStream,
}

impl Wire {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { stream }
    }

    /// Who is at the other end: the user.
    pub(super) fn peer(&self) -> io::Result<u32> {
        Ok(rustix::net::sockopt::socket_peercred(&self.stream)?
            .uid
            .as_raw())
    }

    /// Whatever is waited for, it is not for longer.
    pub(super) fn patience(&self, patience: Option<Duration>) -> io::Result<()> {
        self.stream.set_read_timeout(patience)?;
        self.stream.set_write_timeout(patience)
    }

    /// The same end, to be used on another thread.
    pub(super) fn twin(&self) -> io::Result<Self> {
        self.stream.try_clone().map(Self::new)
    }

    pub(super) fn send(&mut self, message: &impl Serialize) -> io::Result<()> {
        let mut frame = vec![0; 4];
        frame = postcard::to_extend(message, frame).map_err(odd)?;
        let length = u32::try_from(frame.len() - 4).map_err(odd)?;
        frame[..4].copy_from_slice(&length.to_le_bytes());
        self.stream.write_all(&frame)
    }

    pub(super) fn receive<T: DeserializeOwned>(&mut self) -> io::Result<T> {
        let mut length = [0; 4];
        self.stream.read_exact(&mut length)?;
        let length = usize::try_from(u32::from_le_bytes(length)).map_err(odd)?;
        if length > LONGEST {
            return Err(odd("a message that is too long"));
        }
        let mut frame = vec![0; length];
        self.stream.read_exact(&mut frame)?;
        postcard::from_bytes(&frame).map_err(odd)
    }

    /// Sends sockets: both processes have them then.
    pub(super) fn send_sockets(&self, sockets: &[BorrowedFd<'_>]) -> io::Result<()> {
        for some in sockets.chunks(AT_ONCE) {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(AT_ONCE))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !control.push(SendAncillaryMessage::ScmRights(some)) {
                return Err(odd("no room for sockets"));
            }
            // Sockets travel with a byte.
            sendmsg(
                &self.stream,
                &[IoSlice::new(&[0])],
                &mut control,
                SendFlags::NOSIGNAL,
            )?;
        }
        Ok(())
    }

    pub(super) fn receive_sockets(&self, count: usize) -> io::Result<Vec<OwnedFd>> {
        let mut sockets = Vec::new();
        while sockets.len() < count {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(AT_ONCE))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let before = sockets.len();
            let received = recvmsg(
                &self.stream,
                &mut [IoSliceMut::new(&mut [0])],
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            )?;
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(some) = message {
                    sockets.extend(some);
                }
            }
            if received.bytes == 0 || sockets.len() == before {
                return Err(odd("sockets are missing"));
            }
        }
        match sockets.len() == count {
            true => Ok(sockets),
            false => Err(odd("too many sockets")),
        }
    }
}

/// What cannot be understood.
pub(super) fn odd(why: impl ToString) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.to_string())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn any_number_of_sockets_arrives_in_order() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (mut ours, mut theirs) = (Wire::new(ours), Wire::new(theirs));
        let sockets: Vec<_> = (0..150)
            .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
            .collect();
        let fds: Vec<_> = sockets.iter().map(|socket| socket.as_fd()).collect();
        ours.send(&"before").unwrap();
        ours.send_sockets(&fds).unwrap();
        ours.send(&"after").unwrap();
        assert_eq!(theirs.receive::<String>().unwrap(), "before");
        let received = theirs.receive_sockets(150).unwrap();
        assert_eq!(theirs.receive::<String>().unwrap(), "after");
        for (socket, received) in sockets.iter().zip(received) {
            let received = TcpListener::from(received);
            assert_eq!(received.local_addr().unwrap(), socket.local_addr().unwrap());
        }
        assert_eq!(ours.peer().unwrap(), rustix::process::geteuid().as_raw());
    }

    #[test]
    fn what_is_no_message_is_an_error() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.write_all(&[255; 8]).unwrap();
        assert!(Wire::new(theirs).receive::<String>().is_err());
    }
}
