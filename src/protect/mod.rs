//! Adaptive protection of a pool: how many calls its upstreams may have at once, found by their
//! latency, and whose calls those are when it is not enough for all. Pure: time is an argument,
//! and nothing is known of pools, apps or HTTP.

mod gradient;
mod shares;
#[cfg(test)]
mod tests;

pub use self::gradient::Bounds;
use self::gradient::Gradient;
use self::shares::{Bucket, Shares};

/// Who asks for a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// An app that is known to be one.
    App(u128),
    /// Any other name. Anybody can make them up, so that all of them count as one app.
    Stranger,
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// All places are taken.
    Limit,
    /// The app has its share, and others want theirs.
    Share,
}

/// How a call ended, as far as it says something of the upstream's load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// An answer began after this time, µs.
    Answered(u64),
    /// It did not come in time, or it was that there is too much to do.
    Overloaded,
    /// The caller gave up after this time, µs: the answer would have taken longer.
    GivenUp(u64),
    /// Nothing that says how long the upstream takes.
    Unknown,
}

/// One call's place; to be given back by [`Guard::leave`].
#[derive(Debug)]
#[must_use = "a place that is not given back is lost"]
pub struct Place {
    bucket: Bucket,
    began_us: u64,
}

/// The places of one pool.
#[derive(Debug)]
pub struct Guard {
    gradient: Gradient,
    shares: Shares,
    in_flight: u32,
}

impl Guard {
    /// All places free.
    #[must_use]
    pub fn new(bounds: Bounds) -> Self {
        Self {
            gradient: Gradient::new(bounds),
            shares: Shares::default(),
            in_flight: 0,
        }
    }

    /// Goes by these bounds from now on, with what it has learnt.
    pub fn set_bounds(&mut self, bounds: Bounds) {
        self.gradient.set_bounds(bounds);
    }

    /// How many calls the upstreams may have.
    #[must_use]
    pub fn limit(&self) -> u32 {
        self.gradient.limit()
    }

    /// How many they have.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// How many apps are told apart at the moment: bounded, whatever callers call themselves.
    #[must_use]
    pub fn apps(&self) -> usize {
        self.shares.apps()
    }

    /// A place, if there is one for this app.
    ///
    /// # Errors
    /// [`Full`]; nothing is held then.
    pub fn enter(&mut self, who: Who, now_us: u64) -> Result<Place, Full> {
        self.may_enter(who, now_us)?;
        Ok(self.force(who, now_us))
    }

    /// Whether there is a place for this app; none is taken.
    ///
    /// # Errors
    /// [`Full`].
    pub fn may_enter(&mut self, who: Who, now_us: u64) -> Result<(), Full> {
        self.tick(now_us);
        let (limit, room) = (self.gradient.limit(), self.gradient.room());
        let found = self.shares.look(who, limit, room, self.in_flight, now_us);
        if found.is_err() {
            self.gradient.refused();
        }
        found
    }

    /// A place for a call that was let in already.
    pub fn force(&mut self, who: Who, now_us: u64) -> Place {
        self.in_flight = self.in_flight.saturating_add(1);
        self.gradient.entered(self.in_flight);
        Place {
            bucket: self.shares.take(who, now_us),
            began_us: now_us,
        }
    }

    /// The call's place is free again.
    pub fn leave(&mut self, place: Place, outcome: Outcome, now_us: u64) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.shares.give_back(place.bucket);
        self.gradient.ended(place.began_us, outcome);
        self.tick(now_us);
    }

    fn tick(&mut self, now_us: u64) {
        let spare = self.shares.spare(self.gradient.room());
        self.gradient.tick(self.in_flight, spare, now_us);
    }
}
