//! Step 4, decide: what a limit is, and what one call asks of its counters.
//!
//! Knows no sibling: neither routes nor stores nor requests.

pub mod calendar;
pub mod hour;
pub mod key;
pub mod plan;
pub mod sliding;
pub mod slots;
pub mod total;

use std::num::NonZeroU32;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use key::{CounterKey, KeyHasher};
pub use plan::{Charge, Decision, LimitId, Plan, Room, Span, Taken};

/// A point in time, given to the pure part as an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// Monotonic time, microseconds from an arbitrary start. Sliding windows and slots use it.
    pub mono_us: u64,
    /// Wall-clock time, microseconds since the Unix epoch. Calendar windows use it.
    pub unix_us: u64,
}

/// What a limit counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unit {
    /// Calls (次).
    Calls,
    /// Messages (条): a call that addresses n recipients costs n.
    Messages,
    /// Tasks that run at the same time.
    Tasks,
}

impl Unit {
    /// The word used in names and JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Calls => "calls",
            Self::Messages => "messages",
            Self::Tasks => "tasks",
        }
    }
}

/// The period of a quota.
#[derive(Clone, Debug, PartialEq)]
pub enum Window {
    /// No interval of this length holds more than the quota.
    Sliding(Duration),
    /// No calendar day of this zone holds more than the quota.
    Day(calendar::Zone),
    /// No moment sees more tasks running than the quota.
    Running,
}

/// Whose calls share one counter: the attributes of the descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Scope {
    /// One counter for each app.
    App,
    /// One counter for each app and user ID.
    User,
    /// One counter for each client address (IPv6: prefix), across apps.
    Ip,
}

impl Scope {
    /// The word used in limit names.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::App => "app",
            Self::User => "user",
            Self::Ip => "ip",
        }
    }

    /// The attributes of the descriptor, as `explain` prints them.
    #[must_use]
    pub fn attributes(self) -> &'static [&'static str] {
        match self {
            Self::App => &["app"],
            Self::User => &["app", "user"],
            Self::Ip => &["ip"],
        }
    }
}

/// Whether a limit acts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Denies.
    #[default]
    Enforce,
    /// Decides and counts as if, and lets the call pass.
    Report,
    /// Is not there.
    Off,
}

/// What becomes of a limit while the counter store cannot be asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum OnStoreFailure {
    /// Each gateway gives its share of the quota from its own memory.
    #[default]
    Local,
    /// Every call passes.
    Allow,
    /// No call passes.
    Deny,
}

/// How long a task slot is held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Hold {
    /// Until the response has been sent.
    #[default]
    Response,
    /// Until the task is reported done, or the maximum time has passed.
    Task,
}

/// Which of the service's answers a denial by this limit gets (see `service.md` of the
/// documents; the status codes are known to the reply module alone).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Denial {
    /// `reach_limit`.
    CallRate,
    /// `message_send_error`: `message send reach limit`.
    MessageCount,
    /// `forbidden_op`: `online user broadcast limit exceeded`.
    BroadcastUsers,
    /// `forbidden_op`: `chatroom broadcast limit exceeded`.
    BroadcastRooms,
    /// `LimitException`: `limit request`.
    Push,
}

/// A named rule: quota, descriptor and algorithm. Compiled; cannot be invalid.
#[derive(Clone, Debug)]
pub struct Limit {
    /// `owner:unit/window:scope`, e.g. `messages-users:messages/min:app`. Names the counter:
    /// the same in every edition and whatever the figure.
    pub name: Box<str>,
    /// What is counted.
    pub unit: Unit,
    /// Units per window.
    pub quota: NonZeroU32,
    /// The period.
    pub window: Window,
    /// Whose counter.
    pub scope: Scope,
    /// The combined group whose routes share the counter.
    pub group: Option<Box<str>>,
    /// Whether it acts.
    pub mode: Mode,
    /// What it does while the store cannot be asked.
    pub on_store_failure: OnStoreFailure,
    /// Upstream statuses after which the units are given back.
    pub refund_on: Box<[u16]>,
    /// How long a slot is held; only for [`Unit::Tasks`].
    pub hold: Hold,
    /// The longest a slot is held past the response.
    pub max_hold: Duration,
    /// The answer of a denial.
    pub denial: Denial,
    /// Where the figure is printed, `document:line`; empty for our own limits.
    pub sources: Box<[Box<str>]>,
    /// Hash of the name; half of a counter key.
    pub salt: CounterKey,
}

impl Limit {
    /// The window's length in seconds as printed in `explain` and `RateLimit-Policy`:
    /// 86,400 for a day, 0 for tasks.
    #[must_use]
    pub fn window_s(&self) -> u64 {
        match &self.window {
            Window::Sliding(length) => length.as_secs(),
            Window::Day(_) => 86_400,
            Window::Running => 0,
        }
    }

    /// The charge of `cost` units to this limit's counter for `caller_key` at `now`.
    #[must_use]
    pub fn charge(
        &self,
        id: LimitId,
        caller_key: CounterKey,
        cost: u32,
        known: bool,
        now: Moment,
    ) -> Charge {
        let span = match &self.window {
            Window::Sliding(length) => Span::Sliding {
                window_us: u64::try_from(length.as_micros()).unwrap_or(u64::MAX),
            },
            Window::Day(zone) => {
                let (start_us, end_us) = zone.day_of(now.unix_us);
                Span::Day { start_us, end_us }
            }
            Window::Running => Span::Running,
        };
        Charge {
            limit: id,
            key: self.salt.with(caller_key),
            overflow: self.salt,
            quota: self.quota.get(),
            cost,
            span,
            scope: self.scope,
            report: self.mode == Mode::Report,
            on_store_failure: self.on_store_failure,
            known,
            taken: None,
            shared: false,
        }
    }
}
