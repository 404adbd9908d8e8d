//! One call's way upstream: its attempts, how long each may take, and whether there is another.

mod broken;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use pingora::prelude::HttpPeer;
use pingora::{Error, ErrorType};
use smallvec::SmallVec;

pub(in crate::gateway) use self::broken::Broken;
use self::broken::MAX_REPEATS;
use super::adaptive::{Adaptive, Held};
use super::choice::{self, Choosing};
use super::endpoint::Endpoint;
use super::pool::Pool;
use super::{MAX_ATTEMPTS, Upstreams};
use crate::admission::Call;
use crate::limit::Moment;
use crate::observe::upstreams::{Again, Failure};
use crate::settings::Balance;

/// Idle connections that turned out to have been closed, before the next attempt makes a new one:
/// where an upstream has closed all of them, there may be more than attempts; and one that breaks
/// whatever has been used before is not to have a call once more for each.
const MAX_STALE: u8 = 1;
/// Marks connections for one attempt alone.
const FRESH: u64 = 0x8000_0000_0000_0000;

/// Interim answers to one attempt; an upstream could go on with them for ever.
const MAX_INTERIM: u32 = 32;

/// One attempt: where it goes, and how long each of its waits may take.
#[derive(Clone, Copy, Debug)]
pub(in crate::gateway) struct Hop {
    pub(in crate::gateway) addr: SocketAddr,
    pub(in crate::gateway) connect: Duration,
    /// From all of the call to the head of its answer, if the call has that long.
    pub(in crate::gateway) head: Duration,
    pub(in crate::gateway) write: Duration,
}

/// What is known of a call's way.
#[derive(Debug)]
pub(in crate::gateway) struct Way {
    upstreams: Arc<Upstreams>,
    /// The pool, once it is known.
    pool: Option<usize>,
    /// The call's number in it, and the hash of its app.
    nth: usize,
    app: u64,
    tried: SmallVec<[SocketAddr; 1]>,
    attempts: usize,
    repeats: u8,
    /// Attempts on idle connections that had been closed, and such as an upstream refused.
    stale: u8,
    /// Where it is now.
    at: Option<Arc<Endpoint>>,
    /// Its place among the calls that the pool may have at once, where that is limited.
    pub(super) held: Option<Held>,
    /// When the latest attempt began.
    connecting: Moment,
    /// When it had its connection, µs: from then on the head of an answer is waited for.
    asked_us: u64,
    /// When the upstream had all of the call, µs.
    pub(super) sent_us: Option<u64>,
    /// Spent connecting, µs.
    connect_us: u64,
    /// Until the head of the latest answer, µs.
    first_byte_us: u64,
    /// What is left of the time to connect.
    connect_left: Option<Duration>,
    /// When the call must be over, µs.
    ends_us: Option<u64>,
    /// Interim answers (1xx) of the latest attempt.
    interims: u32,
    /// Whether any attempt has got out that may have run, and whether any had before the latest.
    was_sent: bool,
    had_sent: bool,
    /// An address that has answered with an error, where the call goes again if nothing else can be
    /// reached.
    answerer: Option<SocketAddr>,
    /// Whether the latest attempt's waits are bounded by our own watch alone.
    is_watched: bool,
    /// Whether pingora's own are longer than that for the head.
    is_patient: bool,
    /// Whether the latest one is a stream of an HTTP/2 connection.
    pub(in crate::gateway) is_stream: bool,
    /// Whether its head has gone out as a whole.
    pub(in crate::gateway) has_begun: bool,
    /// Whether the attempt that ends now is followed by another.
    repeat: bool,
}

impl Way {
    pub(in crate::gateway) fn new(upstreams: Arc<Upstreams>, started: Moment) -> Self {
        Self {
            upstreams,
            pool: None,
            nth: 0,
            app: 0,
            tried: SmallVec::new(),
            attempts: 0,
            repeats: 0,
            stale: 0,
            at: None,
            held: None,
            connecting: started,
            asked_us: started.mono_us,
            sent_us: None,
            connect_us: 0,
            first_byte_us: 0,
            connect_left: None,
            ends_us: None,
            interims: 0,
            was_sent: false,
            had_sent: false,
            answerer: None,
            is_watched: false,
            is_patient: false,
            is_stream: false,
            has_begun: false,
            repeat: false,
        }
    }

    fn pool(&self) -> Option<&Pool> {
        self.upstreams.pools.get(self.pool?)
    }

    /// The guard of the call's pool, if it has one.
    pub(super) fn guard_of(&mut self, call: &Call) -> Option<Arc<Adaptive>> {
        let index = self.upstreams.pool_of(Some(call));
        self.pool = Some(index);
        self.pool()?.adaptive.clone()
    }

    /// How long the call may take as a whole, if its pool says so.
    pub(in crate::gateway) fn request_timeout(&self, call: &Call) -> Option<Duration> {
        let index = self.upstreams.pool_of(Some(call));
        self.upstreams.pools.get(index)?.times.request
    }

    /// How many attempts there were.
    pub(in crate::gateway) fn attempts(&self) -> u64 {
        u64::try_from(self.attempts).unwrap_or(u64::MAX)
    }

    /// The address of the latest.
    pub(in crate::gateway) fn address(&self) -> Option<SocketAddr> {
        self.tried.last().copied()
    }

    /// The name of its pool; empty before there is one.
    pub(in crate::gateway) fn pool_name(&self) -> &str {
        self.pool().map_or("", |pool| &*pool.name)
    }

    /// Spent connecting, over all attempts.
    pub(in crate::gateway) fn connect_us(&self) -> u64 {
        self.connect_us
    }

    /// From the connection of the attempt that was answered to the head of the answer.
    pub(in crate::gateway) fn first_byte_us(&self) -> u64 {
        self.first_byte_us
    }

    /// The attempt has a new connection.
    pub(in crate::gateway) fn connected(&mut self, now: Moment) {
        self.asked_us = now.mono_us;
        let took = now.mono_us.saturating_sub(self.connecting.mono_us);
        self.connect_us = self.connect_us.saturating_add(took);
    }

    /// The longest wait for something from upstream.
    pub(in crate::gateway) fn read_timeout(&self, now: Moment) -> Duration {
        let Some(pool) = self.pool() else {
            return Duration::ZERO;
        };
        pool.times.head().min(self.left(now))
    }

    /// The longest wait for the head of the answer.
    pub(in crate::gateway) fn head_timeout(&self) -> Duration {
        self.pool().map_or(Duration::ZERO, |pool| pool.times.head())
    }

    /// The longest wait for the upstream to take more of the request.
    pub(in crate::gateway) fn write_timeout(&self) -> Duration {
        self.pool().map_or(Duration::ZERO, |pool| pool.times.write)
    }

    /// The longest wait for the next piece of an answer, where pingora does not know it.
    pub(in crate::gateway) fn piece_timeout(&self) -> Option<Duration> {
        let times = self.pool()?.times;
        let is_ours = self.is_watched || self.is_patient || times.read < times.head();
        is_ours.then_some(times.read)
    }

    /// What is left of the time for the whole call, if it has one.
    pub(in crate::gateway) fn time_left(&self, now: Moment) -> Option<Duration> {
        self.ends_us.map(|_| self.left(now))
    }

    /// An interim answer: an error where there are too many.
    pub(in crate::gateway) fn interim(&mut self) -> pingora::Result<()> {
        self.interims += 1;
        if self.interims > MAX_INTERIM {
            let why = "interim answers, and no answer";
            return Err(Error::explain(ErrorType::InvalidHTTPHeader, why).into_up());
        }
        Ok(())
    }

    /// What is left of the time for the whole call.
    fn left(&self, now: Moment) -> Duration {
        self.ends_us.map_or(Duration::MAX, |ends| {
            Duration::from_micros(ends.saturating_sub(now.mono_us))
        })
    }

    /// Whether the call as a whole has a time: then the clock is worth reading.
    pub(in crate::gateway) fn has_limit(&self) -> bool {
        self.ends_us.is_some()
    }

    /// Whether the call has had its time.
    pub(in crate::gateway) fn is_over(&self, now: Moment) -> bool {
        self.ends_us.is_some_and(|ends| now.mono_us >= ends)
    }

    /// The next attempt. `pause`: how long the rest of the call's body may keep the upstream
    /// waiting, if there is a rest.
    pub(in crate::gateway) fn begin(
        &mut self,
        call: Option<&Call>,
        started: Moment,
        pause: Option<Duration>,
        now: Moment,
    ) -> pingora::Result<Box<HttpPeer>> {
        let Hop {
            connect,
            head,
            write,
            ..
        } = self.next(call, started, now)?;
        let endpoint = self.at.as_ref().ok_or_else(nowhere)?;
        let mut peer = endpoint.peer();
        peer.options.connection_timeout = Some(connect);
        peer.options.total_connection_timeout = Some(connect);
        // Of a stream, pingora's would begin with the body, however long that takes to come.
        self.is_watched = endpoint.http2 && pause.is_some();
        // Of a connection, it begins with each piece of the body.
        let pause = pause.unwrap_or_default();
        self.is_patient = pause > head;
        let read = head.max(pause).min(self.left(now));
        peer.options.read_timeout = (!self.is_watched).then_some(read);
        peer.options.write_timeout = Some(write);
        if self.stale >= MAX_STALE {
            // In no pool, and not kept either.
            peer.group_key ^= FRESH;
            peer.options.idle_timeout = Some(Duration::ZERO);
        }
        Ok(Box::new(peer))
    }

    /// Whether all addresses of a call's pool speak HTTP/1.1 in the clear.
    pub(in crate::gateway) fn is_plain(&self, call: Option<&Call>) -> bool {
        let index = self.upstreams.pool_of(call);
        let pool = self.upstreams.pools.get(index);
        pool.is_some_and(|pool| pool.is_plain)
    }

    /// When a wait of this length is over, or the call as a whole, monotonic microseconds.
    pub(in crate::gateway) fn due_us(&self, now: Moment, most: Duration) -> u64 {
        let most = u64::try_from(most.as_micros()).unwrap_or(u64::MAX);
        let due = now.mono_us.saturating_add(most);
        self.ends_us.map_or(due, |ends| ends.min(due))
    }

    /// When the call must be over, if it must, monotonic microseconds.
    pub(in crate::gateway) fn ends_us(&self) -> Option<u64> {
        self.ends_us
    }

    /// The longest wait for the next piece of an answer.
    pub(in crate::gateway) fn between(&self) -> Duration {
        self.pool().map_or(Duration::ZERO, |pool| pool.times.read)
    }

    /// Where the next attempt goes. The first one looks for the pool.
    pub(in crate::gateway) fn next(
        &mut self,
        call: Option<&Call>,
        started: Moment,
        now: Moment,
    ) -> pingora::Result<Hop> {
        self.leave();
        // One that found no connection goes nowhere twice.
        let again = std::mem::take(&mut self.repeat);
        let upstreams = &self.upstreams;
        let index = *self.pool.get_or_insert_with(|| upstreams.pool_of(call));
        let Some(pool) = upstreams.pools.get(index) else {
            return Err(nowhere());
        };
        if self.attempts == 0 {
            self.nth = pool.next();
            if let (Balance::HashApp, Some(call)) = (pool.balance, call) {
                self.app = choice::hash(call.caller.app.as_bytes());
            }
            self.ends_us = pool.times.request.map(|time| {
                let time = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
                started.mono_us.saturating_add(time)
            });
        }
        let set = pool.set.load();
        let how = Choosing {
            balance: pool.balance,
            nth: self.nth.wrapping_add(self.attempts),
            app: self.app,
            tried: &self.tried,
            again,
        };
        let Some(endpoint) = set.choose(how) else {
            return Err(nowhere());
        };
        self.attempts += 1;
        // All attempts share the time to connect: while there are more, half of what is left.
        let left = *self.connect_left.get_or_insert(pool.times.connect);
        let is_last = self.attempts >= set.endpoints.len().min(MAX_ATTEMPTS);
        let patience = if is_last { left } else { left / 2 };
        let of_call = self.left(now);
        self.connecting = now;
        self.asked_us = now.mono_us;
        self.interims = 0;
        self.sent_us = None;
        let hop = Hop {
            addr: endpoint.addr,
            // An attempt that got out has not used its time up by connecting.
            connect: patience.min(of_call),
            head: pool.times.head(),
            write: pool.times.write.min(of_call),
        };
        endpoint.standing.enter();
        self.tried.push(endpoint.addr);
        self.at = Some(endpoint.clone());
        Ok(hop)
    }

    /// No connection: nothing has been sent, so that another address may be tried, whatever the
    /// method. Whether there is one, and time.
    pub(in crate::gateway) fn not_connected(&mut self, now: Moment) -> bool {
        let waited = Duration::from_micros(now.mono_us.saturating_sub(self.connecting.mono_us));
        let left = self.connect_left.unwrap_or_default().saturating_sub(waited);
        self.connect_left = Some(left);
        self.connected(now);
        let Some(pool) = self.pool() else {
            return false;
        };
        // The call's own time may have been too short to connect.
        if let Some(endpoint) = &self.at
            && !self.is_over(now)
        {
            pool.failed(endpoint, Failure::Connect, now.mono_us);
        }
        let set = pool.set.load();
        let mut is_another = set.endpoints.iter().any(|e| !self.tried.contains(&e.addr));
        let may = self.attempts < MAX_ATTEMPTS && !left.is_zero() && !self.is_over(now);
        let mut back = None;
        if may && !is_another && self.repeats < MAX_REPEATS {
            // What it has said says more than that another one cannot be reached.
            back = self.answerer.filter(|_| pool.may_repeat(now.mono_us));
            is_another = back.is_some();
        }
        if may && is_another {
            pool.metrics.again(Again::Connect);
        }
        if let Some(back) = back {
            self.repeats += 1;
            self.tried.retain(|addr| *addr != back);
        }
        self.leave();
        may && is_another
    }

    /// An answer has begun. An error asks for another attempt instead of it.
    pub(in crate::gateway) fn answered(
        &mut self,
        status: u16,
        method: &Method,
        is_kept: bool,
        now: Moment,
    ) -> pingora::Result<()> {
        self.first_byte_us = now.mono_us.saturating_sub(self.asked_us).max(1);
        if let Some(endpoint) = &self.at {
            endpoint.standing.answered();
        }
        let Some(pool) = self.pool() else {
            return Ok(());
        };
        let is_wanted = pool.retry_on.statuses.contains(&status) && is_kept;
        if !is_wanted || !self.may_repeat(pool, method, now) {
            return Ok(());
        }
        pool.metrics.again(Again::Status);
        self.answerer = self.at.as_ref().map(|endpoint| endpoint.addr);
        self.repeats += 1;
        self.repeat = true;
        Err(Error::explain(ErrorType::HTTPStatus(status), "asked again").into_up())
    }

    /// Out of the upstream address's hands.
    pub(in crate::gateway) fn leave(&mut self) {
        if let Some(endpoint) = self.at.take() {
            endpoint.standing.leave();
        }
    }
}

/// What ends a call whose pool has no address.
pub(in crate::gateway) const NOWHERE: ErrorType = ErrorType::Custom("NoUpstream");

fn nowhere() -> Box<Error> {
    Error::explain(NOWHERE, "no upstream address").into_up()
}

impl Drop for Way {
    fn drop(&mut self) {
        self.leave();
    }
}
