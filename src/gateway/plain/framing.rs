//! Where the body of an answer ends (RFC 9112, 6 and 7).

/// The longest line before a chunk, and of a trailer, in bytes.
const MAX_LINE: usize = 8 * 1024;
/// The most bytes of trailers, which go no further.
const MAX_TRAILERS: usize = 64 * 1024;

/// What is left of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// So many bytes.
    Length(u64),
    /// Chunks.
    Chunked(Chunk),
    /// Whatever comes until the connection is closed.
    UntilClose,
}

/// Where in its chunks a body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chunk {
    /// Before the size of one.
    Size,
    /// So many bytes of it are left.
    Data(u64),
    /// Before the end of its line.
    End,
    /// After the last one. So many bytes of trailers have come.
    Trailers(usize),
    /// All is here.
    Done,
}

/// What has come of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// Bytes of framing before it.
    pub(super) skip: usize,
    /// Its bytes. Nothing of both: more must come.
    pub(super) length: usize,
}

/// No chunk.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NoChunk;

impl Framing {
    /// Whether all of it has come.
    pub(super) fn is_done(self) -> bool {
        matches!(self, Self::Length(0) | Self::Chunked(Chunk::Done))
    }

    /// The next piece in what has come.
    pub(super) fn next(&mut self, bytes: &[u8]) -> Result<Piece, NoChunk> {
        match self {
            Self::Length(left) => Ok(data(left, bytes)),
            Self::Chunked(chunk) => chunk.next(bytes),
            Self::UntilClose => Ok(Piece {
                skip: 0,
                length: bytes.len(),
            }),
        }
    }
}

/// So much of what has come, and no more than is left.
fn data(left: &mut u64, bytes: &[u8]) -> Piece {
    let length = usize::try_from(*left).map_or(bytes.len(), |left| left.min(bytes.len()));
    *left -= length as u64;
    Piece { skip: 0, length }
}

impl Chunk {
    fn next(&mut self, bytes: &[u8]) -> Result<Piece, NoChunk> {
        let mut skip = 0;
        loop {
            let rest = bytes.get(skip..).unwrap_or_default();
            match self {
                // httparse takes an empty line for the last chunk.
                Self::Size if rest.first().is_some_and(|b| !b.is_ascii_hexdigit()) => {
                    return Err(NoChunk);
                }
                Self::Size => match httparse::parse_chunk_size(rest) {
                    Ok(httparse::Status::Complete((line, size))) => {
                        skip += line;
                        *self = if size == 0 {
                            Self::Trailers(0)
                        } else {
                            Self::Data(size)
                        };
                    }
                    Ok(httparse::Status::Partial) if rest.len() <= MAX_LINE => break,
                    Ok(httparse::Status::Partial) | Err(_) => return Err(NoChunk),
                },
                Self::Data(left) => {
                    let piece = data(left, rest);
                    if *left == 0 {
                        *self = Self::End;
                    }
                    let length = piece.length;
                    return Ok(Piece { skip, length });
                }
                Self::End => match rest {
                    [b'\r', b'\n', ..] => {
                        skip += 2;
                        *self = Self::Size;
                    }
                    [] | [b'\r'] => break,
                    _ => return Err(NoChunk),
                },
                Self::Trailers(before) => {
                    let Some(end) = memchr::memchr(b'\n', rest) else {
                        if rest.len() > MAX_LINE {
                            return Err(NoChunk);
                        }
                        break;
                    };
                    skip += end + 1;
                    *before += end + 1;
                    match rest.get(..end) {
                        Some([b'\r']) => *self = Self::Done,
                        Some([.., b'\r']) if *before <= MAX_TRAILERS => {}
                        _ => return Err(NoChunk),
                    }
                }
                Self::Done => break,
            }
        }
        Ok(Piece { skip, length: 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The body in these bytes, as they come in pieces of this size, and what is left of them.
    fn read(mut framing: Framing, bytes: &[u8], size: usize) -> Result<(Vec<u8>, usize), NoChunk> {
        let (mut body, mut held, mut left) = (Vec::new(), Vec::new(), bytes.len());
        for some in bytes.chunks(size) {
            held.extend_from_slice(some);
            while !framing.is_done() {
                let Piece { skip, length } = framing.next(&held)?;
                if skip + length == 0 {
                    break;
                }
                body.extend_from_slice(&held[skip..skip + length]);
                held.drain(..skip + length);
                left -= skip + length;
            }
        }
        assert!(framing == Framing::UntilClose || framing.is_done());
        Ok((body, left))
    }

    #[test]
    fn a_body_ends_where_its_framing_says_however_it_comes() {
        let chunks: &[u8] =
            b"5\r\nhello\r\n6;x=\"y\"\r\n world\r\n000\r\nTrailer: t\r\nU: v\r\n\r\nHTTP";
        for size in 1..chunks.len() {
            let whole = Ok((b"hello world".to_vec(), 4));
            assert_eq!(read(Framing::Chunked(Chunk::Size), chunks, size), whole);
            let five = Ok((chunks[..5].to_vec(), chunks.len() - 5));
            assert_eq!(read(Framing::Length(5), chunks, size), five);
            let all = Ok((chunks.to_vec(), 0));
            assert_eq!(read(Framing::UntilClose, chunks, size), all);
        }
        assert!(Framing::Length(0).is_done());
    }

    #[test]
    fn what_is_no_chunk_is_refused() {
        let long = [b"5;".to_vec(), vec![b'x'; MAX_LINE]].concat();
        let trailers = [&b"0\r\n"[..], &b"a: b\r\n".repeat(MAX_TRAILERS / 6 + 1)].concat();
        let trailer = [&b"0\r\n"[..], &vec![b'a'; MAX_LINE + 1]].concat();
        for bytes in [
            &b"x\r\n"[..],
            b"5\r\nhelloX",
            b"5\r\nhello\rX",
            b"5\nhello\r\n",
            b"\r\n",
            b"-5\r\n",
            b"11111111111111111\r\n",
            b"0\r\n\n",
            b"0\r\nT: x\n\r\n",
            &long,
            &trailers,
            &trailer,
        ] {
            for size in [1, 7, bytes.len()] {
                let mut framing = Framing::Chunked(Chunk::Size);
                let (mut held, mut is_bad) = (Vec::new(), false);
                for some in bytes.chunks(size) {
                    held.extend_from_slice(some);
                    match framing.next(&held) {
                        Ok(Piece { skip, length }) => drop(held.drain(..skip + length)),
                        Err(NoChunk) => is_bad = true,
                    }
                    if !is_bad && matches!(framing, Framing::Chunked(Chunk::End)) {
                        is_bad = framing.next(&held) == Err(NoChunk);
                    }
                    if is_bad {
                        break;
                    }
                }
                let shown = bytes.escape_ascii().to_string();
                assert!(is_bad, "{size} {}", shown.get(..40).unwrap_or(&shown));
            }
        }
    }
}
