//! Until when the head of an answer is waited for, as a whole. pingora's own time is for each read:
//! an upstream that drips a byte at a time would hold a call, its slot and its connection for ever.
//!
//! The task that serves a call is given up when its time is over: the context settles as it is
//! dropped, an HTTP/1.1 caller gets its 504 as the connection's last words, an HTTP/2 stream is
//! reset. That is the second line: what pingora's times can tell, they tell before.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;
use pingora::apps::{HttpServerApp, HttpServerOptions, ReusedHttpStream};
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::v2::server::H2Options;
use pingora::server::ShutdownWatch;
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

/// Whether the call is given up for want of it.
pub(super) fn is_over() -> bool {
    let until = UNTIL.try_with(Cell::get);
    matches!(until, Ok(Until::Over))
}

fn set(until: Until) {
    // Outside such a task there is nobody to give up.
    let _ = UNTIL.try_with(|cell| cell.set(until));
}

/// The timer of a task. A connection keeps it for all its calls: to put it off costs little.
#[derive(Debug, Default)]
pub(super) struct Patience(Option<Pin<Box<Sleep>>>);

impl Patience {
    /// Serves, unless it is given up.
    pub(super) async fn serve<T>(&mut self, serving: impl Future<Output = T>) -> Option<T> {
        let timer = &mut self.0;
        let limited = async {
            let mut serving = pin!(serving);
            poll_fn(|cx| {
                if let Poll::Ready(served) = serving.as_mut().poll(cx) {
                    return Poll::Ready(Some(served));
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

/// An app whose calls are given up so, each by itself.
pub(super) struct Patient<A>(pub(super) Arc<A>);

#[async_trait]
impl<A: HttpServerApp + Send + Sync + 'static> HttpServerApp for Patient<A> {
    async fn process_new_http(
        self: &Arc<Self>,
        session: ServerSession,
        shutdown: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        let mut patience = Patience::default();
        patience
            .serve(self.0.process_new_http(session, shutdown))
            .await
            .flatten()
    }

    fn h2_options(&self) -> Option<H2Options> {
        self.0.h2_options()
    }

    fn server_options(&self) -> Option<&HttpServerOptions> {
        self.0.server_options()
    }

    async fn http_cleanup(&self) {
        self.0.http_cleanup().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_expected_and_does_not_come_ends_the_task() {
        let mut patience = Patience::default();
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
                self.0.store(is_over(), std::sync::atomic::Ordering::SeqCst);
            }
        }
        let seen = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let held = Seen(seen.clone());
        let serving = async move {
            let _held = held;
            expect_within(Duration::from_secs(1));
            std::future::pending::<()>().await;
        };
        assert_eq!(Patience::default().serve(serving).await, None);
        assert!(seen.load(std::sync::atomic::Ordering::SeqCst));
    }
}
