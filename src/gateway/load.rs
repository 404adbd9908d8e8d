//! How many calls there are at once, and when that is too much: then new ones are shed, before
//! memory or the time of those that are here grows.

use std::sync::atomic::{AtomicUsize, Ordering};

/// The calls of a gateway.
#[derive(Debug, Default)]
pub(super) struct Load {
    /// All, also while the answer to one that was shed goes out.
    here: AtomicUsize,
    /// Those that were not shed.
    handled: AtomicUsize,
    /// Those that the upstream has as a whole, and has not answered.
    waiting: AtomicUsize,
}

/// What one call is counted as.
#[derive(Debug, Default)]
pub(super) struct Part {
    here: bool,
    handled: bool,
    waiting: bool,
}

impl Load {
    /// All calls.
    pub(super) fn here(&self) -> usize {
        self.here.load(Ordering::Relaxed)
    }

    /// Those that wait for the upstream's answer.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// A call begins. Whether there is room for it.
    pub(super) fn enter(&self, part: &mut Part, most: usize) -> bool {
        self.here.fetch_add(1, Ordering::Relaxed);
        part.here = true;
        // One that is shed takes nobody's room while its answer goes out.
        part.handled = take(&self.handled, most);
        part.handled
    }

    /// Whether another call may wait for the upstream. One whose body is here does from now on;
    /// any other when its body has gone: a slow one holds no place meanwhile.
    pub(super) fn may_wait(&self, part: &mut Part, most: usize, has_body: bool) -> bool {
        if !has_body {
            return self.waiting() < most;
        }
        part.waiting = take(&self.waiting, most);
        part.waiting
    }

    /// The upstream has all of it.
    pub(super) fn waits(&self, part: &mut Part) {
        if !std::mem::replace(&mut part.waiting, true) {
            self.waiting.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The upstream has answered, or will not be asked.
    pub(super) fn answered(&self, part: &mut Part) {
        if std::mem::take(&mut part.waiting) {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// The call is over.
    pub(super) fn leave(&self, part: &mut Part) {
        self.answered(part);
        if std::mem::take(&mut part.handled) {
            self.handled.fetch_sub(1, Ordering::Relaxed);
        }
        if std::mem::take(&mut part.here) {
            self.here.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// One more, unless there are so many.
fn take(count: &AtomicUsize, most: usize) -> bool {
    // Counted first: two workers at once never pass the cap.
    let is_room = count.fetch_add(1, Ordering::Relaxed) < most;
    if !is_room {
        count.fetch_sub(1, Ordering::Relaxed);
    }
    is_room
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_is_shed_takes_nobodys_room() {
        let load = Load::default();
        let mut parts: Vec<Part> = (0..5).map(|_| Part::default()).collect();
        let entered: Vec<bool> = parts.iter_mut().map(|part| load.enter(part, 2)).collect();
        assert_eq!(entered, [true, true, false, false, false]);
        assert_eq!(load.here(), 5);
        load.leave(&mut parts[0]);
        // Those that were shed are still being told so.
        assert!(load.enter(&mut Part::default(), 2));
        assert_eq!(load.here(), 5);
    }

    #[test]
    fn a_call_waits_until_it_is_answered_and_once() {
        let load = Load::default();
        let (mut first, mut second) = (Part::default(), Part::default());
        assert!(load.may_wait(&mut first, 1, true));
        load.waits(&mut first);
        assert_eq!(load.waiting(), 1);
        assert!(!load.may_wait(&mut second, 1, true));
        assert!(!load.may_wait(&mut second, 1, false));
        load.answered(&mut first);
        load.answered(&mut first);
        assert_eq!(load.waiting(), 0);
        // Its body still comes: it takes a place when it has come.
        assert!(load.may_wait(&mut second, 1, false));
        assert!(load.may_wait(&mut first, 1, true));
        load.waits(&mut second);
        assert_eq!(load.waiting(), 2);
        load.leave(&mut second);
        load.leave(&mut first);
        assert_eq!((load.waiting(), load.here()), (0, 0));
    }
}
