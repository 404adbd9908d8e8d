//! Slots: the tasks of one caller that run at the same time.

use std::mem;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::CounterKey;

/// Nobody knows when a task ends: a caller may ask again after this.
pub const TASK_WAIT: Duration = Duration::from_secs(1);

/// A task that a slot is held for, past the end of its call.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Held {
    /// Whose task: callers that share a counter may have tasks of one name.
    caller: CounterKey,
    task: Box<str>,
    /// When it is freed at the latest, monotonic microseconds.
    until_us: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Holder {
    id: u64,
    caller: CounterKey,
    units: u32,
    /// `None` while the call runs.
    held: Option<Held>,
}

/// The slots of one counter.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Slots {
    next: u64,
    used: u32,
    holders: Vec<Holder>,
}

impl Slots {
    /// Frees the slots of tasks that have been held for their longest time.
    pub fn expire(&mut self, now_us: u64) {
        self.free(|holder| {
            holder
                .held
                .as_ref()
                .is_some_and(|held| held.until_us <= now_us)
        });
    }

    /// Slots in use.
    #[must_use]
    pub fn used(&self) -> u32 {
        self.used
    }

    /// Takes slots for a call of this caller; their number.
    pub fn take(&mut self, caller: CounterKey, units: u32) -> u64 {
        let id = self.next;
        self.next = self.next.wrapping_add(1);
        self.take_as(id, caller, units);
        id
    }

    /// Takes slots under a number that was given elsewhere. A counter has either such numbers or
    /// its own.
    pub fn take_as(&mut self, id: u64, caller: CounterKey, units: u32) {
        let units = units.min(u32::MAX - self.used);
        self.used += units;
        self.holders.push(Holder {
            id,
            caller,
            units,
            held: None,
        });
    }

    /// The numbers of the slots whose calls still run.
    pub fn running(&self) -> impl Iterator<Item = u64> {
        let running = self.holders.iter().filter(|holder| holder.held.is_none());
        running.map(|holder| holder.id)
    }

    /// The slots that are held for tasks: number, task, and until when.
    pub fn held(&self) -> impl Iterator<Item = (u64, &str, u64)> {
        self.holders.iter().filter_map(|holder| {
            let held = holder.held.as_ref()?;
            Some((holder.id, &*held.task, held.until_us))
        })
    }

    /// Frees the slots of this number. Whether there were any.
    pub fn release(&mut self, id: u64) -> bool {
        self.free(|holder| holder.id == id)
    }

    /// Frees the slots of this number, if their call still runs. Whether there were any.
    pub fn abandon(&mut self, id: u64) -> bool {
        self.free(|holder| holder.id == id && holder.held.is_none())
    }

    /// Keeps the slots of this number for a task. Whether there were any.
    pub fn hold(&mut self, id: u64, task: &str, until_us: u64) -> bool {
        let Some(holder) = self.holders.iter_mut().find(|holder| holder.id == id) else {
            return false;
        };
        holder.held = Some(Held {
            caller: holder.caller,
            task: task.into(),
            until_us,
        });
        true
    }

    /// Frees the slots held for this caller's task. Whether there were any.
    pub fn finish(&mut self, caller: CounterKey, task: &str) -> bool {
        let mut done = false;
        self.free(|holder| {
            let found = holder
                .held
                .as_ref()
                .is_some_and(|held| held.caller == caller && *held.task == *task);
            // One report ends one task, even if an upstream gives a name twice.
            found && !mem::replace(&mut done, true)
        })
    }

    /// Frees all slots.
    pub fn clear(&mut self) {
        self.free(|_| true);
    }

    /// Whether this caller has a slot here.
    #[must_use]
    pub fn serves(&self, caller: CounterKey) -> bool {
        self.holders.iter().any(|holder| holder.caller == caller)
    }

    fn free(&mut self, mut which: impl FnMut(&Holder) -> bool) -> bool {
        let before = self.holders.len();
        let mut freed = 0;
        self.holders.retain(|holder| {
            let free = which(holder);
            if free {
                freed += holder.units;
            }
            !free
        });
        self.used -= freed;
        self.holders.len() < before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: CounterKey = CounterKey(1);
    const OTHER: CounterKey = CounterKey(2);

    #[test]
    fn a_released_slot_is_free_once() {
        let mut slots = Slots::default();
        let id = slots.take(ME, 1);
        slots.take(ME, 1);
        assert_eq!(slots.used(), 2);
        assert!(slots.release(id));
        assert!(!slots.release(id));
        assert_eq!(slots.used(), 1);
    }

    #[test]
    fn a_held_task_is_freed_when_it_is_done_or_its_time_is_over() {
        let mut slots = Slots::default();
        for task in ["a", "b"] {
            let id = slots.take(ME, 1);
            assert!(slots.hold(id, task, 100));
        }
        assert!(!slots.finish(OTHER, "a"), "another caller's task");
        assert!(slots.finish(ME, "a"));
        assert!(!slots.finish(ME, "a"));
        slots.expire(99);
        assert_eq!(slots.used(), 1);
        slots.expire(100);
        assert_eq!(slots.used(), 0);
    }

    #[test]
    fn who_is_gone_leaves_its_tasks_and_not_its_calls() {
        let mut slots = Slots::default();
        let (call, task) = (slots.take(ME, 1), slots.take(ME, 1));
        slots.hold(task, "a", 100);
        assert!(slots.abandon(call));
        assert!(!slots.abandon(task));
        assert_eq!(slots.used(), 1);
    }

    #[test]
    fn a_running_call_keeps_its_slot_whatever_the_time() {
        let mut slots = Slots::default();
        slots.take(ME, 1);
        slots.expire(u64::MAX);
        assert_eq!(slots.used(), 1);
        assert!(slots.serves(ME) && !slots.serves(OTHER));
    }
}
