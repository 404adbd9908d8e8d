//! The watch over the store: gives this gateway's sign of life, probes a store that is out of
//! use, and tells one that comes back what it missed.

mod leave;
mod tell;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::join_all;
use redis::{ErrorKind, RedisError, RedisResult};

use self::tell::TOLD_AT_ONCE;
use super::RedisStore;
use super::connect::{Cause, Connection};
use super::fault::Fault;
use super::name;
use super::own::Census;

const SCRIPT: &str = include_str!("script/beat.lua");
/// Between two signs of life.
pub(super) const BEAT: Duration = Duration::from_millis(500);
/// Between two probes of a store that is out of use.
const PROBE: Duration = Duration::from_millis(100);
/// Between two looks at the leases: a lease that nobody asks about is back after two of them.
const LEASES: Duration = Duration::from_millis(20);
/// A gateway that has given no sign for so long is gone.
const GONE_US: u64 = 5_000_000;
/// What a busy machine adds to the time that a gateway takes to notice that the store is back.
const SLACK: Duration = Duration::from_millis(250);
/// Longer than this no gateway waits for the others.
const MOST_SEEDING: Duration = Duration::from_millis(1500);

/// The store is empty, or back: so long do gateways have to say what they have taken, and only
/// their shares hold meanwhile. A gateway notices it after a beat that finds no answer, or after
/// an attempt to connect that finds none, and the probe that follows.
pub(super) fn seeding_us(timeout: Duration, connect_timeout: Duration) -> u64 {
    let noticed = connect_timeout.max(BEAT + timeout) + PROBE;
    let told = noticed + 2 * timeout + SLACK;
    u64::try_from(told.min(MOST_SEEDING).as_micros()).unwrap_or(u64::MAX)
}

/// What the watch keeps between two beats.
#[derive(Debug, Default)]
pub(super) struct Watch {
    connection: Option<Connection>,
    /// When that was made; monotonic.
    connected_us: u64,
    /// A node of the cluster does not answer: another may have its slots by now.
    hangs: bool,
    renewed_us: u64,
    /// When all parts were last seen to; monotonic.
    looked_us: u64,
    /// Whether the last beat failed in some part.
    failed: bool,
}

/// What is to be looked after in a beat.
#[derive(Clone, Copy, Debug)]
struct Since {
    /// Slots are due for renewal.
    renews: bool,
    /// The store must be told something.
    owes: bool,
    /// When all parts were last seen to; monotonic.
    looked_us: u64,
}

struct Sign {
    store_us: u64,
    epoch: Arc<str>,
    /// Of this gateway.
    sign: u64,
    /// When the store was last found to lack what it had.
    doubts: u64,
    gateways: Vec<Box<str>>,
}

impl Sign {
    /// How long other gateways may still have to say what they have taken, of the time they get.
    fn seeding_left_us(&self, is_back: bool, seeding_us: u64) -> u64 {
        let began_us = self.epoch.rsplit('.').next().and_then(|at| at.parse().ok());
        // An epoch of the future: the clock has been put back since.
        let age_us = self
            .store_us
            .checked_sub(began_us.unwrap_or(self.store_us))
            .unwrap_or(seeding_us);
        match is_back {
            true => seeding_us,
            false => seeding_us.saturating_sub(age_us),
        }
    }
}

impl RedisStore {
    /// Watches over the store for as long as it is polled. Without it, gateways do not know of
    /// each other, and a store that went out of use stays so.
    pub async fn watch(&self) {
        tokio::join!(self.watch_over_health(), self.watch_over_leases());
    }

    async fn watch_over_health(&self) {
        let mut watch = Watch::default();
        while !self.leaving.load(Ordering::Acquire) {
            self.beat_all(&mut watch).await;
            let is_well = !watch.failed && !self.is_any_open();
            let pause = if is_well { BEAT } else { PROBE };
            tokio::select! {
                () = tokio::time::sleep(pause) => (),
                () = self.wake.notified() => {
                    // Not at once again and again, whatever calls find.
                    tokio::time::sleep(PROBE / 10).await;
                }
            }
        }
    }

    /// Gives back what was leased and not used, where no later call has done so.
    async fn watch_over_leases(&self) {
        let Some(mut now_us) = self.time.mono_us() else {
            return;
        };
        loop {
            tokio::time::sleep(LEASES).await;
            let over = self.own.leases_over(now_us);
            for some in over.chunks(TOLD_AT_ONCE) {
                self.give_back_parts(some, None);
            }
            now_us = self.time.mono_us().unwrap_or(now_us);
        }
    }

    /// The first beat, before calls come in: a gateway that starts without its store begins with
    /// its share.
    pub async fn greet(&self) {
        self.beat_all(&mut Watch::default()).await;
    }

    /// A beat for each part of the store.
    async fn beat_all(&self, watch: &mut Watch) {
        let Some(sent_us) = self.time.mono_us() else {
            return;
        };
        let beat_us = u64::try_from(BEAT.as_micros()).unwrap_or(u64::MAX);
        let is_due = sent_us.saturating_sub(watch.connected_us) >= beat_us;
        let before = watch.connection.take();
        let connects = before.is_none() || self.terms.is_cluster && watch.hangs && is_due;
        let connection = match (before, connects) {
            (Some(connection), false) => Ok(connection),
            // The library asks no other node who has the slots of one that hangs.
            (Some(connection), true) => self.connect().await.or(Ok(connection)),
            (None, _) => self.connect().await,
        };
        if connects {
            watch.connected_us = sent_us;
        }
        let connection = match connection {
            Ok(connection) => connection,
            Err(cause) => {
                self.terms.fail(&cause);
                watch.failed = true;
                return;
            }
        };
        let lease_us = u64::try_from(self.slot_lease.as_micros()).unwrap_or(u64::MAX);
        let since = Since {
            renews: sent_us.saturating_sub(watch.renewed_us) >= lease_us / 3,
            owes: self.own.owes() || self.terms.is_unsent(),
            looked_us: watch.looked_us,
        };
        let census = &Census::new(&self.own, self.terms.parts.len());
        let beats = (0..self.terms.parts.len()).map(|index| {
            let mut connection = connection.clone();
            async move {
                let beaten = self
                    .beat(&mut connection, index, sent_us, since, census)
                    .await;
                let health = &self.terms.parts[index].health;
                match &beaten {
                    Ok(()) => health.answered(),
                    Err(error) if error.is_timeout() => health.timed_out(),
                    // Its own keys move: the next beat finds them.
                    Err(error) if self.is_moving(error) => health.answered(),
                    Err(error) => health.fail(&self.terms.cause(error)),
                }
                let hangs = beaten.as_ref().is_err_and(RedisError::is_timeout);
                (beaten.is_ok(), hangs)
            }
        });
        let (beaten, hang): (Vec<bool>, Vec<bool>) = join_all(beats).await.into_iter().unzip();
        let hung = std::mem::replace(&mut watch.hangs, hang.contains(&true));
        if connects && hung && !watch.hangs {
            self.terms.topology.fetch_add(1, Ordering::Relaxed);
        }
        watch.failed = beaten.contains(&false);
        if !beaten.contains(&false) {
            watch.looked_us = sent_us;
        } else if since.owes {
            self.own.owe_still();
        }
        if since.renews {
            watch.renewed_us = sent_us;
        }
        // A cluster's connection is to all nodes, and mends itself.
        if self.terms.is_cluster && beaten.contains(&true) || !beaten.contains(&false) {
            watch.connection = Some(connection);
        }
    }

    async fn connect(&self) -> Result<Connection, Cause> {
        let connector = &self.terms.connector;
        match connector.connect().await {
            Ok(mut connection) => {
                connector.refuse_cluster(&mut connection).await?;
                Ok(connection)
            }
            Err(error) => {
                tracing::debug!(%error, "no beat");
                // The whole truth, which may take a look, once.
                Err(match self.is_any_open() {
                    true => self.terms.cause(&error),
                    false => connector.cause(&error).await,
                })
            }
        }
    }

    fn is_moving(&self, error: &RedisError) -> bool {
        self.terms.is_cluster && Fault::of(error) == Fault::Moving
    }

    async fn beat(
        &self,
        connection: &mut Connection,
        index: usize,
        sent_us: u64,
        since: Since,
        census: &Census<'_>,
    ) -> RedisResult<()> {
        let part = &self.terms.parts[index];
        let sign = self.in_time(self.sign(connection, index)).await?;
        part.time.note(sent_us, sign.store_us);
        let lacks = part.health.note_doubts(sign.doubts);
        let known = part.health.epoch();
        let is_new = known.as_deref() != Some(&*sign.epoch);
        let is_back = part.health.is_open();
        let jumped_us = part.time.jumped_at_us().unwrap_or(0);
        let has_jumped = jumped_us > since.looked_us;
        let unsettled_until_us = match jumped_us {
            0 => 0,
            at_us => at_us.saturating_add(GONE_US),
        };
        let too_few =
            is_new || is_back || part.health.is_seeding(sent_us) || sent_us < unsettled_until_us;
        self.peers.note_gateways(sign.gateways.clone(), too_few);
        if is_new || is_back || has_jumped || since.owes {
            self.settle(connection, index, &sign, census, (is_new, has_jumped))
                .await?;
        } else if since.renews {
            let running = census.running(index);
            self.renew(connection, &sign, running, false).await?;
        }
        if lacks {
            self.tell_older_totals(connection, index, &sign).await?;
        }
        part.health.told_doubts(sign.doubts);
        part.health.note_sign(sign.sign);
        self.tell_eras(connection, index, &sign).await?;
        if is_new || is_back {
            let left_us = sign.seeding_left_us(is_back, self.seeding_us);
            part.health
                .close(sign.epoch.clone(), sent_us.saturating_add(left_us));
        }
        Ok(())
    }

    pub(super) async fn in_time<T>(
        &self,
        work: impl Future<Output = RedisResult<T>>,
    ) -> RedisResult<T> {
        match tokio::time::timeout(self.terms.timeout, work).await {
            Ok(result) => result,
            Err(_) => Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()),
        }
    }

    async fn sign(&self, connection: &mut Connection, index: usize) -> RedisResult<Sign> {
        let part = self.terms.part_at(index);
        let (tag, health) = (&part.tag, &part.health);
        let mut command = redis::cmd("EVAL");
        command
            .arg(SCRIPT)
            .arg(4)
            .arg(name::epoch_key(&self.terms.prefix, tag))
            .arg(name::peers_key(&self.terms.prefix, tag))
            .arg(name::signed_key(&self.terms.prefix, tag))
            .arg(name::doubts_key(&self.terms.prefix, tag))
            .arg(&self.terms.gateway)
            // The epoch, if there is none yet: nobody else draws it.
            .arg(Self::new_gateway_id())
            .arg(GONE_US)
            .arg(health.last_sign())
            .arg(health.epoch().as_deref().unwrap_or_default())
            .arg(u8::from(health.is_older()));
        let reply: Vec<String> = redis::from_redis_value(connection.send(&command).await?)?;
        let mut reply = reply.into_iter();
        match (
            reply.next().and_then(|time| time.parse().ok()),
            reply.next(),
            reply.next().and_then(|sign| sign.parse().ok()),
            reply.next().and_then(|doubts| doubts.parse().ok()),
        ) {
            (Some(store_us), Some(epoch), Some(sign), Some(doubts)) => Ok(Sign {
                store_us,
                epoch: epoch.into(),
                sign,
                doubts,
                gateways: reply.map(Into::into).collect(),
            }),
            _ => Err(odd()),
        }
    }
}

fn odd() -> RedisError {
    RedisError::from((
        ErrorKind::UnexpectedReturnType,
        "not an answer of our script",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gateways_wait_for_each_other_no_longer_than_all_need_to_notice() {
        let ms = Duration::from_millis;
        // With the default timeout; a longer one; one that no rule of two seconds can hold.
        for (timeout, connect_timeout, waits) in
            [(50, 500, 1000), (100, 500, 1150), (900, 3600, 1500)]
        {
            assert_eq!(seeding_us(ms(timeout), ms(connect_timeout)), waits * 1000);
        }
    }
}
