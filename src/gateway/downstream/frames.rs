//! The frames of an HTTP/2 connection, counted as they come in: h2 takes any number of those that
//! ask for nothing and change nothing (PRIORITY, unknown ones, empty DATA, WINDOW_UPDATE by one).
//!
//! Only lengths and types are looked at. What each frame means is h2's to read.

use std::time::Duration;

use tokio::time::Instant;

/// What comes before the first frame.
const PREFACE: usize = 24;
/// Bytes of a frame's head.
const HEAD: usize = 9;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
/// A flag of those two.
const END_HEADERS: u8 = 4;

/// How many frames of no use a connection may begin with, and the most it may have saved up.
const START: u32 = 2_000;
const MOST: u32 = 10_000;
/// What a request brings: its window, its priority, its end, its reset.
const BY_REQUEST: u32 = 8;
/// What is sent brings a frame by this many bytes: who receives gives window, twice for each
/// piece. Less than an answer to a PING or to SETTINGS.
const BY_SENT: u64 = 64;
/// What a second brings.
const BY_SECOND: u64 = 100;

/// The frames of one connection.
#[derive(Debug)]
pub(super) struct Frames {
    /// Of the preface, or of a frame's payload: what is still to come.
    skip: usize,
    head: [u8; HEAD],
    /// Bytes of it that are here.
    have: usize,
    /// What the frame at hand is.
    kind: u8,
    /// Whether a request's head goes on in the next frame.
    goes_on: bool,
    /// Counts frames, and heads of requests as one each.
    begun: u32,
    /// How many frames of no use may come.
    left: u32,
    /// Until when time has been counted.
    since: Instant,
    /// Bytes sent that have brought nothing yet.
    sent: u64,
}

impl Frames {
    pub(super) fn new() -> Self {
        Self {
            skip: PREFACE,
            head: [0; HEAD],
            have: 0,
            kind: DATA,
            goes_on: false,
            begun: 0,
            left: START,
            since: Instant::now(),
            sent: 0,
        }
    }

    /// Bytes have come in. Whether they may.
    pub(super) fn came(&mut self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = bytes.get(skipped..).unwrap_or_default();
            if self.skip > 0 {
                break;
            }
            let part = (HEAD - self.have).min(bytes.len());
            if self.have == 0 && part > 0 && !self.goes_on {
                self.begun = self.begun.wrapping_add(1);
            }
            let (now, rest) = bytes.split_at(part);
            if let Some(room) = self.head.get_mut(self.have..self.have + part) {
                room.copy_from_slice(now);
            }
            self.have += part;
            bytes = rest;
            if self.have == HEAD {
                self.have = 0;
                let [a, b, c, kind, flags, ..] = self.head;
                self.kind = kind;
                if matches!(kind, HEADERS | CONTINUATION) {
                    self.goes_on = flags & END_HEADERS == 0;
                }
                let length = u32::from_be_bytes([0, a, b, c]);
                self.skip = usize::try_from(length).unwrap_or(usize::MAX);
                if !self.may_come(kind, length) {
                    return false;
                }
            }
        }
        true
    }

    /// What has begun and is not whole: the head of a request, or a frame that is no body's. Which one
    /// it is.
    pub(super) fn awaited(&self) -> Option<u32> {
        let is_whole = self.have == 0 && (self.skip == 0 || self.kind == DATA) && !self.goes_on;
        (!is_whole).then_some(self.begun)
    }

    /// Bytes have gone out.
    pub(super) fn went(&mut self, bytes: usize) {
        self.sent = self.sent.saturating_add(bytes as u64);
    }

    fn may_come(&mut self, kind: u8, length: u32) -> bool {
        match kind {
            HEADERS => self.add(u64::from(BY_REQUEST)),
            CONTINUATION => {}
            DATA if length > 0 => {}
            _ => {
                if self.left == 0 {
                    self.earn();
                }
                match self.left.checked_sub(1) {
                    Some(left) => self.left = left,
                    None => return false,
                }
            }
        }
        true
    }

    /// What time, and what was sent, has brought; asked for where nothing is left.
    fn earn(&mut self) {
        let seconds = self.since.elapsed().as_secs();
        self.since += Duration::from_secs(seconds);
        self.add(
            seconds
                .saturating_mul(BY_SECOND)
                .saturating_add(self.sent / BY_SENT),
        );
        self.sent %= BY_SENT;
    }

    fn add(&mut self, frames: u64) {
        let left = u64::from(self.left).saturating_add(frames);
        self.left = u32::try_from(left).unwrap_or(MOST).min(MOST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, length: usize) -> Vec<u8> {
        let bytes = u32::try_from(length).unwrap().to_be_bytes();
        let mut frame = bytes[1..].to_vec();
        frame.extend([kind, 0, 0, 0, 0, 1]);
        frame.resize(HEAD + length, 0);
        frame
    }

    fn begun() -> Frames {
        let mut frames = Frames::new();
        assert!(frames.came(&[b'x'; PREFACE]));
        frames
    }

    #[test]
    fn what_is_awaited_is_told_from_what_came_before() {
        let mut frames = begun();
        assert_eq!(frames.awaited(), None);
        let mut head = frame(HEADERS, 10);
        assert!(frames.came(&head[..3]));
        assert_eq!(frames.awaited(), Some(1));
        assert!(frames.came(&head[3..12]));
        assert_eq!(frames.awaited(), Some(1));
        // It goes on in other frames, and is one head all the same.
        assert!(frames.came(&head[12..]));
        assert!(frames.came(&frame(CONTINUATION, 3)));
        assert_eq!(frames.awaited(), Some(1));
        head = frame(CONTINUATION, 3);
        head[4] = END_HEADERS;
        assert!(frames.came(&head));
        assert_eq!(frames.awaited(), None);
        // Each frame is another one, however they are cut.
        let pings = frame(6, 8).repeat(3);
        assert!(frames.came(&pings[..20]));
        assert_eq!(frames.awaited(), Some(3));
        assert!(frames.came(&pings[20..]));
        assert_eq!(frames.awaited(), None);
        // A body has times of its own.
        assert!(frames.came(&frame(DATA, 100)[..50]));
        assert_eq!(frames.awaited(), None);
    }

    #[test]
    fn frames_of_no_use_are_counted_however_they_come_in() {
        for (kind, length) in [
            (2, 5),
            (8, 4),
            (0xbe, 0),
            (0xbe, 70),
            (0, 0),
            (6, 8),
            (4, 6),
        ] {
            let one = frame(kind, length);
            for piece in [1, 7, one.len(), 1000] {
                let mut frames = begun();
                let many = one.repeat(START as usize);
                assert!(many.chunks(piece).all(|piece| frames.came(piece)), "{kind}");
                assert!(!frames.came(&one), "{kind}");
            }
        }
    }

    #[test]
    fn requests_bodies_and_answers_bring_what_goes_with_them() {
        let mut frames = begun();
        for _ in 0..100_000 {
            // A call with a priority, a body, its end, and a reset.
            for (kind, length) in [(1, 40), (2, 5), (9, 10), (0, 1000), (0, 0), (3, 4), (8, 4)] {
                assert!(frames.came(&frame(kind, length)));
            }
        }
        let mut frames = begun();
        for _ in 0..10_000 {
            // An answer in small pieces, and window for each.
            frames.went(9 + 120);
            assert!(frames.came(&[frame(8, 4), frame(8, 4)].concat()));
        }
    }

    #[test]
    fn what_is_asked_for_does_not_pay_for_the_asking() {
        let mut frames = begun();
        let ping = frame(6, 8);
        let taken = (0..100_000).take_while(|_| {
            frames.went(ping.len());
            frames.came(&ping)
        });
        assert!(taken.count() < 5_000);
    }

    #[tokio::test(start_paused = true)]
    async fn a_quiet_connection_goes_on_for_ever() {
        let mut frames = begun();
        for _ in 0..100 {
            for _ in 0..BY_SECOND {
                assert!(frames.came(&frame(6, 8)));
            }
            tokio::time::advance(Duration::from_secs(1)).await;
        }
    }
}
