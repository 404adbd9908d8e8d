//! Lines on their way to standard output: gathered in one buffer, written by a thread of its own.
//! No system call and no allocation on a request's way.

use std::io::{self, Write};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tracing_subscriber::fmt::MakeWriter;

/// Bytes that may wait to be written; above it lines are dropped.
const MAX_WAITING: usize = 16 * 1024 * 1024;
/// Bytes that are written without gathering more: what is still in the processor's cache.
const BATCH: usize = 128 * 1024;
/// How long lines are gathered before they are written together.
const GATHER: Duration = Duration::from_millis(10);
/// How long a slow reader may hold up the end of the process.
const LAST_WRITE: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
struct Waiting {
    lines: Vec<u8>,
    closing: bool,
}

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

/// Takes lines.
#[derive(Clone, Debug, Default)]
pub(super) struct Queue(Arc<Shared>);

/// Dropping it writes what still waits.
#[derive(Debug)]
pub struct Guard {
    queue: Queue,
    ended: mpsc::Receiver<()>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.queue.0.waiting.lock().closing = true;
        self.queue.0.changed.notify_one();
        // The thread answers by ending: it lets go of the other side.
        let _ = self.ended.recv_timeout(LAST_WRITE);
    }
}

impl Queue {
    /// A queue that is written to `out`.
    ///
    /// # Errors
    /// When no thread can be started.
    pub(super) fn start(out: impl Write + Send + 'static) -> io::Result<(Self, Guard)> {
        let queue = Self::default();
        let (alive, ended) = mpsc::channel();
        let writer = queue.clone();
        std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || {
                writer.write_all_to(out);
                drop(alive);
            })?;
        let guard = Guard {
            queue: queue.clone(),
            ended,
        };
        Ok((queue, guard))
    }

    fn write_all_to(&self, mut out: impl Write) {
        let Shared { waiting, changed } = &*self.0;
        let mut batch = Vec::new();
        loop {
            let mut guard = waiting.lock();
            while guard.lines.is_empty() && !guard.closing {
                changed.wait(&mut guard);
            }
            if !guard.closing && guard.lines.len() < BATCH {
                // One wake-up for many lines.
                let _ = changed.wait_for(&mut guard, GATHER);
            }
            let closing = guard.closing;
            std::mem::swap(&mut batch, &mut guard.lines);
            drop(guard);
            // A reader that has gone away misses its lines, and nothing else happens.
            let _ = out.write_all(&batch).and_then(|()| out.flush());
            batch.clear();
            if closing {
                return;
            }
        }
    }
}

impl<'a> MakeWriter<'a> for Queue {
    type Writer = &'a Queue;

    fn make_writer(&'a self) -> &'a Queue {
        self
    }
}

impl Write for &Queue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut waiting = self.0.waiting.lock();
        let before = waiting.lines.len();
        let after = before + line.len();
        if after <= MAX_WAITING {
            waiting.lines.extend_from_slice(line);
        }
        drop(waiting);
        if before == 0 || (before < BATCH && after >= BATCH) {
            self.0.changed.notify_one();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Out(Arc<Mutex<Vec<u8>>>);

    impl Write for Out {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_waits_is_written_in_order_before_the_end() {
        let out = Out::default();
        let (queue, guard) = Queue::start(out.clone()).unwrap();
        let expected: String = (0..1000).map(|n| format!("line {n}\n")).collect();
        for line in expected.split_inclusive('\n') {
            (&queue).write_all(line.as_bytes()).unwrap();
        }
        drop(guard);
        assert_eq!(String::from_utf8(out.0.lock().clone()).unwrap(), expected);
    }

    #[test]
    fn lines_are_written_without_being_asked_for() {
        let out = Out::default();
        let (queue, _guard) = Queue::start(out.clone()).unwrap();
        for wanted in ["one\n", "two\n"] {
            out.0.lock().clear();
            (&queue).write_all(wanted.as_bytes()).unwrap();
            for _ in 0..6000 {
                if !out.0.lock().is_empty() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            assert_eq!(&**out.0.lock(), wanted.as_bytes());
        }
    }

    #[test]
    fn a_reader_that_stands_still_costs_lines_and_no_memory() {
        struct Stuck(mpsc::Receiver<()>);
        impl Write for Stuck {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                let _ = self.0.recv();
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (release, stuck) = mpsc::channel();
        let (queue, guard) = Queue::start(Stuck(stuck)).unwrap();
        let line = vec![b'x'; 1024 * 1024];
        for _ in 0..40 {
            (&queue).write_all(&line).unwrap();
        }
        assert!(queue.0.waiting.lock().lines.len() <= MAX_WAITING);
        drop(release);
        drop(guard);
    }
}
