//! Until when a call is served at all: until the head of an answer is late as a whole, and until the
//! gateway's grace is over. pingora's own time is for each read: an upstream that drips a byte at a
//! time would hold a call, its slot and its connection for ever.
//!
//! The task that serves a call is given up: the context settles and writes its line as it is dropped,
//! an HTTP/1.1 caller gets its answer as the connection's last words, an HTTP/2 stream is reset. For
//! answers that are late, that is the second line: what pingora's times can tell, they tell before.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use futures_util::task::AtomicWaker;
use hashbrown::HashMap;
use parking_lot::Mutex;
use tokio::time::{Instant, Sleep};

/// What pingora's times are given on top, so that they are the first.
const MARGIN: Duration = Duration::from_millis(250);

#[derive(Clone, Copy, Debug)]
enum Until {
    /// Nothing is waited for.
    Open,
    At(Instant),
    /// It was, and nothing came.
    Over,
    /// The gateway ends.
    CutOff,
}

/// Why a call is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GivenUp {
    /// For want of a head of an answer.
    Late,
    /// The gateway ends.
    CutOff,
}

tokio::task_local! {
    static UNTIL: Cell<Until>;
}

/// The head of an answer is due within this time from now on.
pub(super) fn expect_within(time: Duration) {
    let at = Instant::now().checked_add(time.saturating_add(MARGIN));
    set(at.map_or(Until::Open, Until::At));
}

/// It is here, or nobody waits for it.
pub(super) fn expect_nothing() {
    set(Until::Open);
}

/// Why the call in whose task this is asked is given up, if it is.
pub(super) fn given_up() -> Option<GivenUp> {
    match UNTIL.try_with(Cell::get) {
        Ok(Until::Over) => Some(GivenUp::Late),
        Ok(Until::CutOff) => Some(GivenUp::CutOff),
        _ => None,
    }
}

fn set(until: Until) {
    // Outside such a task there is nobody to give up.
    let _ = UNTIL.try_with(|cell| cell.set(until));
}

/// All that can be cut off. A call that waits is woken without having asked for it each time.
#[derive(Debug, Default)]
pub(super) struct Serving {
    is_over: AtomicBool,
    next: AtomicU64,
    all: Mutex<HashMap<u64, Arc<AtomicWaker>>>,
}

impl Serving {
    /// Gives all calls up.
    pub(super) fn cut_off(&self) {
        self.is_over.store(true, Ordering::SeqCst);
        for waker in self.all.lock().values() {
            waker.wake();
        }
    }
}

/// What a task that serves calls needs to give them up. A connection keeps it for all its calls: to
/// put its timer off costs little.
#[derive(Debug)]
pub(super) struct Patience {
    timer: Option<Pin<Box<Sleep>>>,
    serving: Arc<Serving>,
    number: u64,
    waker: Arc<AtomicWaker>,
}

impl Drop for Patience {
    fn drop(&mut self) {
        self.serving.all.lock().remove(&self.number);
    }
}

impl Patience {
    pub(super) fn new(serving: &Arc<Serving>) -> Self {
        let number = serving.next.fetch_add(1, Ordering::Relaxed);
        let waker = Arc::new(AtomicWaker::new());
        serving.all.lock().insert(number, waker.clone());
        Self {
            timer: None,
            serving: serving.clone(),
            number,
            waker,
        }
    }

    /// Serves, unless it is given up.
    pub(super) async fn serve<T>(&mut self, serving: impl Future<Output = T>) -> Option<T> {
        let Self {
            timer,
            serving: all,
            waker,
            ..
        } = self;
        let limited = async {
            let mut serving = pin!(serving);
            poll_fn(|cx| {
                if let Poll::Ready(served) = serving.as_mut().poll(cx) {
                    return Poll::Ready(Some(served));
                }
                waker.register(cx.waker());
                // After that: one that is cut off from now on is woken.
                if all.is_over.load(Ordering::SeqCst) {
                    set(Until::CutOff);
                    return Poll::Ready(None);
                }
                let Ok(Until::At(at)) = UNTIL.try_with(Cell::get) else {
                    return Poll::Pending;
                };
                let timer = timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
                if timer.deadline() != at {
                    timer.as_mut().reset(at);
                }
                match timer.as_mut().poll(cx) {
                    Poll::Pending => Poll::Pending,
                    Poll::Ready(()) => {
                        // What is dropped now sees why.
                        set(Until::Over);
                        Poll::Ready(None)
                    }
                }
            })
            .await
        };
        UNTIL.scope(Cell::new(Until::Open), limited).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_expected_and_does_not_come_ends_the_task() {
        let mut patience = Patience::new(&Arc::default());
        let over = patience.serve(async {
            expect_within(Duration::from_secs(1));
            std::future::pending::<()>().await;
        });
        assert_eq!(over.await, None);
        let in_time = patience.serve(async {
            expect_within(Duration::from_secs(1));
            tokio::time::sleep(Duration::from_millis(900)).await;
            expect_within(Duration::from_secs(1));
            tokio::time::sleep(Duration::from_millis(900)).await;
            expect_nothing();
            tokio::time::sleep(Duration::from_secs(100)).await;
            5
        });
        assert_eq!(in_time.await, Some(5));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_given_up_sees_it_as_it_is_dropped() {
        struct Seen(Arc<std::sync::atomic::AtomicBool>);
        impl Drop for Seen {
            fn drop(&mut self) {
                self.0.store(
                    given_up() == Some(GivenUp::Late),
                    std::sync::atomic::Ordering::SeqCst,
                );
            }
        }
        let seen = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let held = Seen(seen.clone());
        let serving = async move {
            let _held = held;
            expect_within(Duration::from_secs(1));
            std::future::pending::<()>().await;
        };
        let mut patience = Patience::new(&Arc::default());
        assert_eq!(patience.serve(serving).await, None);
        assert!(seen.load(std::sync::atomic::Ordering::SeqCst));
    }

    #[tokio::test]
    async fn all_that_waits_is_cut_off_and_nothing_begins_after() {
        let all = Arc::new(Serving::default());
        let waiting: Vec<_> = (0..3)
            .map(|_| {
                let mut patience = Patience::new(&all);
                tokio::spawn(async move { patience.serve(std::future::pending::<()>()).await })
            })
            .collect();
        tokio::task::yield_now().await;
        all.cut_off();
        for waiting in waiting {
            assert_eq!(waiting.await.unwrap(), None);
        }
        assert!(all.all.lock().is_empty());
        let mut late = Patience::new(&all);
        assert_eq!(late.serve(std::future::pending::<()>()).await, None);
        assert_eq!(late.serve(async { 5 }).await, Some(5));
    }
}
