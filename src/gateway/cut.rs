//! The end of the gateway's grace: calls that still run are given up. The context of each settles and
//! writes its line as it is dropped; an HTTP/1.1 caller that has nothing yet gets a 503, an HTTP/2
//! stream is reset.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;

use futures_util::task::AtomicWaker;
use hashbrown::HashMap;
use parking_lot::Mutex;

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

    /// Whether that has been done.
    pub(super) fn is_cut_off(&self) -> bool {
        self.is_over.load(Ordering::SeqCst)
    }
}

/// What serves calls, one after the other, and can be cut off.
#[derive(Debug)]
pub(super) struct Server {
    serving: Arc<Serving>,
    number: u64,
    waker: Arc<AtomicWaker>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.serving.all.lock().remove(&self.number);
    }
}

impl Server {
    pub(super) fn new(serving: &Arc<Serving>) -> Self {
        let number = serving.next.fetch_add(1, Ordering::Relaxed);
        let waker = Arc::new(AtomicWaker::new());
        serving.all.lock().insert(number, waker.clone());
        Self {
            serving: serving.clone(),
            number,
            waker,
        }
    }

    /// One call, or nothing if it is cut off.
    pub(super) async fn serve<T>(&self, doing: impl Future<Output = T>) -> Option<T> {
        let mut doing = pin!(doing);
        poll_fn(|cx| {
            if let Poll::Ready(done) = doing.as_mut().poll(cx) {
                return Poll::Ready(Some(done));
            }
            self.waker.register(cx.waker());
            // After that: one that is cut off from now on is woken.
            match self.serving.is_cut_off() {
                true => Poll::Ready(None),
                false => Poll::Pending,
            }
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_that_waits_is_cut_off_and_nothing_waits_after() {
        let all = Arc::new(Serving::default());
        let waiting: Vec<_> = (0..3)
            .map(|_| {
                let server = Server::new(&all);
                tokio::spawn(async move { server.serve(std::future::pending::<()>()).await })
            })
            .collect();
        tokio::task::yield_now().await;
        all.cut_off();
        for waiting in waiting {
            assert_eq!(waiting.await.unwrap(), None);
        }
        assert!(all.all.lock().is_empty());
        let late = Server::new(&all);
        assert_eq!(late.serve(std::future::pending::<()>()).await, None);
        assert_eq!(late.serve(async { 5 }).await, Some(5));
    }
}
