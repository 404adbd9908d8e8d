//! Totals: how many users, groups, friends… there are, which an app's plan bounds.
//!
//! # How a total moves
//!
//! A creating call takes its units before it is forwarded, in the same all-or-nothing decision as
//! its rates. When its answer says how many were made, the rest goes back; a failure gives all of
//! it back. An answer that was lost gives nothing back: what may have been made counts as made,
//! and the total is marked approximate. Deletions lower it by what their answers say, never below
//! 0.
//!
//! # When it is believed
//!
//! Calls alone do not tell the truth (client SDKs make friends and join groups past the gateway),
//! so a total refuses only while it was imported or reconciled not too long ago. Before and after
//! that it counts on, lets pass, and says that it would have refused. A figure of 0 needs no
//! total: nothing fits.
//!
//! # Reconciling while calls go on
//!
//! A listing takes long. [`Change::Begin`] opens a round; what calls add and take from there on is
//! noted apart, and [`Change::End`] makes the total what was listed plus that. Nobody knows whether
//! a listing, or an import, has what calls under way make: their units are counted on top of it and
//! the total is marked, so that it is never too low. For that it knows how many units are under way;
//! each call gives back ([`Change::GiveBack`]) or keeps ([`Change::Keep`]) what it took, by the round
//! in which it took it. What has been under way for `LONGEST_S` counts no more at the next round.
//! A store that gateways share knows whose units these are: of one that is gone they are on top of
//! no listing or import, and mark it for so long, since it may not be gone.
//!
//! Nobody knows either whether a listing has seen what a deletion under way has deleted. So a
//! deletion lowers the count of the listing that was there when it began ([`Change::Lower`]), and
//! marks one that has come since.

use serde::{Deserialize, Serialize};

use super::CounterKey;

/// The largest count: what a store that knows doubles alone keeps exactly.
pub const MOST: u64 = (1 << 53) - 1;
/// No call is under way for longer, in seconds.
const LONGEST_S: u64 = 3600;

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Kind {
    /// Registered users of an app (注册用户总数).
    Users,
    /// Friends of a user (用户好友人数).
    Friends,
    /// Groups of an app (群组总数).
    Groups,
    /// Members of a group, its owner included (群成员数).
    GroupMembers,
    /// Groups that a user is in (用户可加入群组数).
    JoinedGroups,
    /// Chatrooms of an app (聊天室总数).
    Chatrooms,
    /// Chatrooms that a user is in (用户可加入聊天室数).
    JoinedChatrooms,
    /// Bytes of all user attributes of an app (一个 app 下所有用户属性的总长度).
    UserAttributes,
}

/// Who holds what is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// The app.
    App,
    /// A user of it.
    User,
    /// A group of it.
    Group,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Users,
        Self::Friends,
        Self::Groups,
        Self::GroupMembers,
        Self::JoinedGroups,
        Self::Chatrooms,
        Self::JoinedChatrooms,
        Self::UserAttributes,
    ];

    /// The word used in files, metrics and JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Users => "users",
            Self::Friends => "friends",
            Self::Groups => "groups",
            Self::GroupMembers => "group_members",
            Self::JoinedGroups => "joined_groups",
            Self::Chatrooms => "chatrooms",
            Self::JoinedChatrooms => "joined_chatrooms",
            Self::UserAttributes => "user_attributes",
        }
    }

    /// The name by which answers, logs and metrics call its limit.
    #[must_use]
    pub fn limit_name(self) -> &'static str {
        match self {
            Self::Users => "plan:users",
            Self::Friends => "plan:friends",
            Self::Groups => "plan:groups",
            Self::GroupMembers => "plan:group_members",
            Self::JoinedGroups => "plan:joined_groups",
            Self::Chatrooms => "plan:chatrooms",
            Self::JoinedChatrooms => "plan:joined_chatrooms",
            Self::UserAttributes => "plan:user_attributes",
        }
    }

    /// The kind of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }

    /// Its place among [`Kind::ALL`].
    #[must_use]
    pub fn index(self) -> usize {
        match self {
            Self::Users => 0,
            Self::Friends => 1,
            Self::Groups => 2,
            Self::GroupMembers => 3,
            Self::JoinedGroups => 4,
            Self::Chatrooms => 5,
            Self::JoinedChatrooms => 6,
            Self::UserAttributes => 7,
        }
    }

    /// Who holds it.
    #[must_use]
    pub fn holder(self) -> Holder {
        match self {
            Self::Users | Self::Groups | Self::Chatrooms | Self::UserAttributes => Holder::App,
            Self::Friends | Self::JoinedGroups | Self::JoinedChatrooms => Holder::User,
            Self::GroupMembers => Holder::Group,
        }
    }

    /// Whether calls cannot tell it, be it ever so freshly imported: SDKs move it past the
    /// gateway, deletions elsewhere lower it, and what is added twice adds nothing.
    #[must_use]
    pub fn is_approximate(self) -> bool {
        !matches!(self, Self::Users | Self::Groups | Self::Chatrooms)
    }
}

/// One total, as stores keep it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Total {
    /// How many there are, what calls under way may make included.
    pub count: u64,
    /// When it was last imported or reconciled, Unix seconds; 0: never.
    pub checked_s: u64,
    /// Whether an answer was lost, or calls came between a listing, since then.
    pub approximate: bool,
    /// Of imports and reconciliations; the last may not have ended.
    round: u32,
    /// The round that the count goes by.
    basis: u32,
    /// What calls have added since the round began, less what they have taken.
    net: i64,
    /// How often they did.
    moves: u32,
    /// Units of calls under way that were taken in this round.
    open: u64,
    /// The same of rounds before it.
    older: u64,
    /// When the last of those rounds ended that had any, Unix seconds; 0: nobody knows.
    older_s: u64,
}

/// What becomes of a total outside a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// So many more, which no decision took.
    Add(u32),
    /// So many fewer of those that there were by a listing. Another one since then may not have
    /// seen them: it is marked.
    Lower {
        /// How many.
        units: u32,
        /// What [`Total::basis`] was before they were deleted.
        basis: u32,
    },
    /// Units that a gateway has taken for a call by itself, by what it last knew of the round.
    Take {
        /// How many.
        units: u32,
        /// The round.
        round: u32,
    },
    /// Units that a decision took in this round, and that bought nothing.
    GiveBack {
        /// How many.
        units: u32,
        /// When they were taken.
        round: u32,
    },
    /// Units that a decision took in this round, and that bought what they were for, or may have.
    Keep {
        /// How many.
        units: u32,
        /// When they were taken.
        round: u32,
    },
    /// Nobody knows what came of a call.
    Doubt,
    /// What held it is gone.
    Clear,
    /// There are so many at least: the backend says so.
    AtLeast {
        /// How many.
        count: u64,
        /// Of the round in which it was said: nothing of a later one. `None`: of any.
        round: Option<u32>,
    },
    /// There were so many when it was last read, if it has been lost since: of one that was checked,
    /// that says nothing. It is marked.
    Recall(u64),
    /// There are so many, as of then.
    Set {
        /// How many.
        count: u64,
        /// Unix seconds.
        now_s: u64,
    },
    /// A listing begins.
    Begin {
        /// Unix seconds.
        now_s: u64,
    },
    /// The listing of this round has ended with so many.
    End {
        /// What [`Total::round`] was after it had begun.
        round: u32,
        /// What was listed.
        listed: u64,
        /// Unix seconds.
        now_s: u64,
    },
    /// Nothing: it is only read.
    Read,
}

impl Total {
    /// The round that is open, or the last one.
    #[must_use]
    pub fn round(&self) -> u32 {
        self.round
    }

    /// The round that the count goes by.
    #[must_use]
    pub fn basis(&self) -> u32 {
        self.basis
    }

    /// Whether the count goes by the listing of this round.
    #[must_use]
    pub fn goes_by(&self, round: u32) -> bool {
        self.basis == round
    }

    /// Whether a listing has begun and not ended.
    #[must_use]
    pub fn is_being_listed(&self) -> bool {
        self.round != self.basis
    }

    /// Whether it says no more than one that is not there.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        let is_new = self.checked_s == 0 && !self.approximate && !self.is_being_listed();
        is_new && self.count == 0 && self.under_way() == 0
    }

    /// The same where no call is under way: as a file keeps it for a process to come.
    #[must_use]
    pub fn at_rest(self) -> Self {
        Self {
            open: 0,
            older: 0,
            older_s: 0,
            ..self
        }
    }

    /// What calls have added since `before`, less what they have taken: of those since it was checked,
    /// if it was, what is under way.
    #[must_use]
    pub fn moved_since(&self, before: &Self, moved: i64) -> i64 {
        // Counts stay below 2^53.
        let signed = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        match self.basis == before.basis {
            true => moved.saturating_add(signed(self.count).saturating_sub(signed(before.count))),
            false => signed(self.under_way()),
        }
    }

    /// What it is together with what another process has written of it, where both have moved it
    /// since it was `before`. The one that was checked last says how many there were. If that is the
    /// other, what calls here have done since comes on top (`moved`); if not, what the other's have
    /// made, unless it was checked there too.
    #[must_use]
    pub fn merged(&self, theirs: &Self, before: &Self, moved: i64) -> Self {
        let mut both = match theirs.checked_s >= self.checked_s {
            true => Self {
                count: theirs.count.saturating_add_signed(moved).min(MOST),
                ..*theirs
            },
            false => {
                let is_same = theirs.basis == before.basis;
                let made = theirs.count.saturating_sub(before.count);
                let made = if is_same { made } else { 0 };
                Self {
                    count: self.count.saturating_add(made).min(MOST),
                    ..*self
                }
            }
        };
        // Every round of before is over, and so is a listing that either has begun.
        both.round = self.round.max(theirs.round).wrapping_add(1);
        (both.basis, both.net, both.moves) = (both.round, 0, 0);
        (both.open, both.older, both.older_s) = (0, self.under_way(), 0);
        both.approximate = true;
        both
    }

    /// Takes units for a call; the round to give them back to, or to keep them by.
    pub fn take(&mut self, units: u32) -> u32 {
        let round = self.round;
        self.apply(Change::Take { units, round });
        round
    }

    /// Makes a change.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Add(units) => {
                self.count = self.count.saturating_add(units.into()).min(MOST);
                self.note(i64::from(units));
            }
            // Nobody has counted any.
            Change::Lower { .. } if self.count == 0 && self.checked_s == 0 => {}
            Change::Lower { units, basis } => {
                match basis == self.basis {
                    true => self.count = self.count.saturating_sub(units.into()),
                    false => self.approximate = true,
                }
                self.note(0);
            }
            Change::Take { units, round } => {
                self.apply(Change::Add(units));
                let under_way = match round == self.round {
                    true => &mut self.open,
                    false => &mut self.older,
                };
                *under_way = under_way.saturating_add(units.into()).min(MOST);
            }
            Change::GiveBack { units, round } => {
                let known = self.close(units, round);
                self.count = self.count.saturating_sub(known.into());
                self.note(-i64::from(known));
            }
            Change::Keep { units, round } => {
                let known = self.close(units, round);
                if known < units {
                    // What was forgotten was there after all.
                    self.apply(Change::Add(units - known));
                    self.approximate = true;
                }
            }
            Change::Doubt => {
                self.approximate = true;
                self.note(0);
            }
            Change::Clear => {
                let all = i64::try_from(self.count).unwrap_or(i64::MAX);
                self.count = 0;
                self.note(-all);
            }
            Change::AtLeast { count, round } => {
                if round.is_none_or(|round| round == self.round) {
                    self.count = self.count.max(count.min(MOST));
                }
            }
            Change::Recall(count) => {
                if self.checked_s == 0 {
                    self.count = self.count.max(count.min(MOST));
                    self.approximate = true;
                }
            }
            Change::Set { count, now_s } => {
                let under_way = self.begin(now_s);
                self.settle(count.min(MOST).saturating_add(under_way), now_s);
                self.approximate = under_way > 0;
            }
            Change::Begin { now_s } => {
                let under_way = self.begin(now_s);
                self.net = i64::try_from(under_way).unwrap_or(i64::MAX);
                self.moves = u32::from(under_way > 0);
            }
            Change::End {
                round,
                listed,
                now_s,
            } => {
                if round == self.round && self.is_being_listed() {
                    let is_doubtful = self.moves > 0;
                    self.settle(listed.saturating_add_signed(self.net), now_s);
                    self.approximate = is_doubtful;
                }
            }
            Change::Read => (),
        }
    }

    fn settle(&mut self, count: u64, now_s: u64) {
        self.count = count.min(MOST);
        self.basis = self.round;
        self.checked_s = now_s.min(MOST);
        (self.net, self.moves) = (0, 0);
    }

    /// Begins a round; how many units are under way.
    fn begin(&mut self, now_s: u64) -> u64 {
        if self.older_s > 0 && now_s.saturating_sub(self.older_s) > LONGEST_S {
            (self.older, self.older_s) = (0, 0);
        }
        if self.open > 0 || self.older_s == 0 {
            self.older_s = now_s.min(MOST);
        }
        self.older = self.under_way();
        self.open = 0;
        self.round = self.round.wrapping_add(1);
        self.forget_when();
        self.older
    }

    /// Units of calls under way.
    #[must_use]
    pub fn under_way(&self) -> u64 {
        self.open.saturating_add(self.older).min(MOST)
    }

    /// A call of this round is not under way any more; how many of its units were known.
    fn close(&mut self, units: u32, round: u32) -> u32 {
        let under_way = match round == self.round {
            true => &mut self.open,
            false => &mut self.older,
        };
        let known = u32::try_from(*under_way).unwrap_or(u32::MAX).min(units);
        *under_way -= u64::from(known);
        self.forget_when();
        known
    }

    fn forget_when(&mut self) {
        if self.older == 0 {
            self.older_s = 0;
        }
    }

    /// Notes what comes between a listing.
    fn note(&mut self, units: i64) {
        if self.is_being_listed() {
            self.net = self.net.saturating_add(units);
            self.moves = self.moves.saturating_add(1);
        }
    }

    /// As stores write it.
    #[must_use]
    pub fn to_text(&self) -> String {
        let Self {
            count,
            checked_s,
            approximate,
            round,
            basis,
            net,
            moves,
            open,
            older,
            older_s,
        } = self;
        let approximate = u8::from(*approximate);
        let text = format!("{count} {checked_s} {approximate} {round} {basis} {net} {moves}");
        match self.under_way() {
            0 => text,
            _ => format!("{text} {open} {older} {older_s}"),
        }
    }

    /// Reads what [`Total::to_text`] has written.
    #[must_use]
    pub fn of_text(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let mut total = Self {
            count: words.next()?.parse().ok().filter(|count| *count <= MOST)?,
            checked_s: words.next()?.parse().ok().filter(|time| *time <= MOST)?,
            approximate: match words.next()? {
                "0" => false,
                "1" => true,
                _ => return None,
            },
            round: words.next()?.parse().ok()?,
            basis: words.next()?.parse().ok()?,
            net: words.next()?.parse().ok()?,
            moves: words.next()?.parse().ok()?,
            ..Self::default()
        };
        if let Some(open) = words.next() {
            total.open = open.parse().ok().filter(|units| *units <= MOST)?;
            total.older = words.next()?.parse().ok().filter(|units| *units <= MOST)?;
            total.older_s = words.next()?.parse().ok().filter(|time| *time <= MOST)?;
        }
        words.next().is_none().then_some(total)
    }
}

/// What one call asks of one total.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TotalCharge {
    /// What is counted.
    pub kind: Kind,
    /// The total.
    pub key: CounterKey,
    /// How many there may be; `u64::MAX`: any number.
    pub figure: u64,
    /// How many more the call may make. 0 takes nothing, and is refused when the total is full.
    pub units: u32,
    /// It never refuses.
    pub report: bool,
    /// It refuses only if it was checked then or later, Unix seconds.
    pub since_s: u64,
    /// Who holds it, where it is a user or a group.
    pub whose: Option<Box<str>>,
    /// It is of something that the call makes: there is no total to ask.
    pub is_new: bool,
    /// Filled by the store when units were taken: the round to give them back to, or to keep them by.
    /// Of one that only looks: the round that the count goes by.
    pub taken: Option<u32>,
    /// Filled by the store: it would have refused, had it been believed.
    pub over: bool,
}

impl TotalCharge {
    /// Whether this total has room for it.
    #[must_use]
    pub fn fits(&self, count: u64) -> bool {
        count.saturating_add(u64::from(self.units.max(1))) <= self.figure
    }

    /// Whether it refuses where it does not fit.
    #[must_use]
    pub fn is_enforced(&self, checked_s: u64) -> bool {
        !self.report && checked_s >= self.since_s
    }

    /// Whether it takes nothing and never refuses: a deletion is to know what it lowers.
    #[must_use]
    pub fn looks(&self) -> bool {
        self.units == 0 && self.figure == u64::MAX
    }

    /// Whether no total has room for it, so that none need be asked.
    #[must_use]
    pub fn can_never_fit(&self) -> bool {
        let is_known = self.is_new || self.figure == 0;
        !self.report && is_known && !self.fits(0)
    }
}

#[cfg(test)]
mod tests;
