//! Waits that pingora does not bound: between two pieces of an answer where that is less than for
//! its head, for a head that drips in, and for a call as a whole while nothing comes.
//!
//! pingora knows one time-out for each read from the upstream, set before the call goes there, and
//! asks us nothing while it waits. So each call runs under a watch, and one that has had its time is
//! dropped: with it go its connections, and its [`Context`](super::Context) settles and logs it. Of an
//! HTTP/2 caller, who could be answered no more, the connection to the upstream is broken instead:
//! pingora sees that as any other failure.

use std::cell::RefCell;
use std::os::fd::RawFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

use nix::sys::socket::{Shutdown, shutdown};

use super::downstream::state::State;

/// pingora's own time-out comes first: it can still be answered properly, and tried again.
pub(super) const LATER: Duration = Duration::from_secs(1);
/// An upstream that takes nothing may have answered: pingora looks only after its own time-out.
const LOOK: Duration = Duration::from_millis(500);

tokio::task_local! {
    static WATCH: RefCell<Watch>;
}

/// What is waited for, and until when.
#[derive(Debug, Default)]
struct Watch {
    /// The end of the call as a whole.
    whole: Option<Instant>,
    /// The longest wait for the next step.
    step: Option<Duration>,
    steps: u32,
    /// Who may be what is slow: while it takes nothing, nobody else is.
    caller: Option<Arc<State>>,
    /// Whether that is for the upstream to take more of the request.
    is_taking: bool,
    /// The connection to the upstream, while it is this call's alone and its head is waited for.
    upstream: Option<RawFd>,
    is_late: bool,
}

/// A timer that is set anew only when it fires, or fires too late.
pub(super) type Timer = Option<Pin<Box<Sleep>>>;

fn with(change: impl FnOnce(&mut Watch)) {
    // Without one, as in the answers that are not pingora's, there is nothing to wait for.
    let _ = WATCH.try_with(|watch| change(&mut watch.borrow_mut()));
}

/// The upstream is being connected to: that has a time of its own.
pub(super) fn connects() {
    with(|watch| {
        watch.step = None;
        watch.upstream = None;
    });
}

/// This is the connection, and no other call has it, until [`lets_go`].
pub(super) fn holds(upstream: RawFd) {
    with(|watch| watch.upstream = Some(upstream));
}

/// The connection is not this call's alone, or not any more.
pub(super) fn lets_go() {
    with(|watch| watch.upstream = None);
}

/// More of the request has come for the upstream: `most` until it takes more, unless the caller is
/// what is slow.
pub(super) fn takes(most: Duration, caller: Option<Arc<State>>) {
    with(|watch| {
        watch.step = Some(most.saturating_add(LOOK));
        watch.steps = watch.steps.wrapping_add(1);
        watch.is_taking = true;
        if watch.caller.is_none() {
            watch.caller = caller;
        }
    });
}

/// The head of the answer is waited for, and what of the call goes out before it.
pub(super) fn awaits_head(most: Duration, left: Option<Duration>) {
    with(|watch| {
        watch.step = Some(most.saturating_add(LATER));
        watch.whole = left.map(|left| Instant::now() + left + LATER);
        watch.steps = watch.steps.wrapping_add(1);
        (watch.caller, watch.is_taking) = (None, false);
    });
}

/// The answer, or the rest of it, is waited for. `most`: where pingora has no time for that, or a
/// longer one.
pub(super) fn awaits_body(
    most: Option<Duration>,
    left: Option<Duration>,
    caller: Option<Arc<State>>,
) {
    with(|watch| {
        watch.step = most;
        watch.whole = left.map(|left| Instant::now() + left);
        watch.steps = watch.steps.wrapping_add(1);
        (watch.caller, watch.is_taking) = (caller, false);
        watch.upstream = None;
    });
}

/// A piece has come.
pub(super) fn step() {
    with(|watch| watch.steps = watch.steps.wrapping_add(1));
}

/// All of it has come.
pub(super) fn ends() {
    with(|watch| {
        watch.step = None;
        watch.whole = None;
        watch.upstream = None;
    });
}

/// Whether the call is ended because it has had its time.
pub(super) fn is_late() -> bool {
    WATCH
        .try_with(|watch| watch.borrow().is_late)
        .unwrap_or(false)
}

/// Whether that was to take the request.
pub(super) fn is_taking() -> bool {
    WATCH
        .try_with(|watch| watch.borrow().is_taking)
        .unwrap_or(false)
}

impl Watch {
    /// Whether the caller is what is slow.
    fn is_callers(&self) -> bool {
        self.caller
            .as_ref()
            .is_some_and(|caller| match self.is_taking {
                true => caller.is_waited_for(),
                false => caller.is_held_up(),
            })
    }

    fn due(&self, seen: &mut (u32, Instant)) -> Option<Instant> {
        let step = self.step.map(|most| {
            if seen.0 != self.steps {
                *seen = (self.steps, Instant::now());
            }
            seen.1 + most
        });
        match (step, self.whole) {
            (Some(step), Some(whole)) => Some(step.min(whole)),
            (step, whole) => step.or(whole),
        }
    }
}

/// One call, or nothing if it has had its time.
pub(super) async fn over<T>(doing: impl Future<Output = T>, timer: &mut Timer) -> Option<T> {
    let watched = async {
        let mut doing = std::pin::pin!(doing);
        let mut seen = (0, Instant::now());
        std::future::poll_fn(|cx| {
            if let Poll::Ready(done) = doing.as_mut().poll(cx) {
                return Poll::Ready(Some(done));
            }
            WATCH.with(|watch| {
                let mut watch = watch.borrow_mut();
                loop {
                    let Some(due) = watch.due(&mut seen) else {
                        return Poll::Pending;
                    };
                    let timer = timer.get_or_insert_with(|| Box::pin(sleep_until(due)));
                    if timer.deadline() > due {
                        timer.as_mut().reset(due);
                    }
                    if timer.as_mut().poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                    let now = Instant::now();
                    if now < due {
                        timer.as_mut().reset(due);
                        continue;
                    }
                    let is_over = watch.whole.is_some_and(|whole| now >= whole);
                    if !is_over && watch.is_callers() {
                        seen.1 = now;
                        continue;
                    }
                    watch.is_late = true;
                    // The upstream has taken all that came, and waits for its caller as we do.
                    watch.is_taking &= !watch.is_callers();
                    // It is open: what holds it is what has just been asked.
                    let broken = watch.upstream.take().map(|fd| shutdown(fd, Shutdown::Both));
                    if !matches!(broken, Some(Ok(()))) {
                        return Poll::Ready(None);
                    }
                    (watch.step, watch.whole) = (Some(LATER), None);
                    seen.1 = now;
                }
            })
        })
        .await
    };
    WATCH.scope(RefCell::default(), watched).await
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn run<T>(doing: impl Future<Output = T>) -> T {
        // By a clock that moves on when there is nothing to do: no machine is too slow for it.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build();
        runtime.unwrap().block_on(doing)
    }

    #[test]
    fn a_call_that_waits_for_nothing_bounded_goes_on() {
        run(async {
            let mut timer = None;
            let done = over(
                async {
                    ends();
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    7
                },
                &mut timer,
            );
            assert_eq!(done.await, Some(7));
        });
    }

    #[test]
    fn pieces_that_come_in_time_go_on_and_one_that_does_not_ends_the_call() {
        run(async {
            let wait = Duration::from_millis(400);
            let pieces = |n: u32| async move {
                awaits_body(Some(wait), None, None);
                for _ in 0..n {
                    tokio::time::sleep(wait / 8).await;
                    step();
                }
                tokio::time::sleep(wait * 20).await;
            };
            let began = Instant::now();
            assert_eq!(over(pieces(16), &mut None).await, None);
            let took = began.elapsed();
            // All pieces, and one wait.
            assert!(took >= wait * 3 && took < wait * 18, "{took:?}");
        });
    }

    #[test]
    fn the_call_as_a_whole_ends_though_pieces_come() {
        run(async {
            let endless = async {
                awaits_body(Some(SECOND * 60), Some(SECOND / 4), None);
                loop {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    step();
                }
            };
            let mut timer = None;
            assert_eq!(over(endless, &mut timer).await, None::<()>);
            // The timer serves the next call.
            assert_eq!(over(async { 1 }, &mut timer).await, Some(1));
        });
    }

    #[test]
    fn what_is_dropped_knows_that_it_is_late() {
        struct Last(Arc<std::sync::atomic::AtomicBool>);
        impl Drop for Last {
            fn drop(&mut self) {
                self.0.store(is_late(), std::sync::atomic::Ordering::SeqCst);
            }
        }
        run(async {
            let was_late = Arc::new(std::sync::atomic::AtomicBool::new(false));
            let last = Last(was_late.clone());
            let late = async move {
                let _last = last;
                awaits_body(None, Some(Duration::from_millis(20)), None);
                tokio::time::sleep(SECOND * 60).await;
            };
            assert_eq!(over(late, &mut None).await, None);
            assert!(was_late.load(std::sync::atomic::Ordering::SeqCst));
            assert!(!is_late());
        });
    }
}
