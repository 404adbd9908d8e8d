//! The watch over the store: gives this gateway's sign of life, probes a store that is out of
//! use, and tells one that comes back what it missed.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::join_all;
use redis::{ErrorKind, RedisError, RedisResult, Value};

use super::RedisStore;
use super::connect::Connection;
use super::link;
use super::name::{self, Name};
use super::own::Due;
use super::wire::{self, Batch, Item, Part, What};

const SCRIPT: &str = include_str!("beat.lua");
/// Between two signs of life.
pub(super) const BEAT: Duration = Duration::from_millis(500);
/// Between two probes of a store that is out of use.
const PROBE: Duration = Duration::from_millis(100);
/// Between two looks at the leases: a lease that nobody asks about is back after two of them.
const LEASES: Duration = Duration::from_millis(20);
/// A gateway that has given no sign for so long is gone.
const GONE_US: u64 = 5_000_000;
/// The store is empty, or back: so long do gateways have to say what they have taken, and only
/// their shares hold meanwhile.
pub(super) const SEEDING_US: u64 = 1_500_000;
/// Parts of a command that tells a store what it missed.
const TOLD_AT_ONCE: usize = 500;

/// What the watch keeps between two beats.
#[derive(Debug, Default)]
pub(super) struct Watch {
    connection: Option<Connection>,
    renewed_us: u64,
    /// When all parts were last seen to; monotonic.
    looked_us: u64,
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
    gateways: Vec<Box<str>>,
}

impl Sign {
    /// How long other gateways may still have to say what they have taken.
    fn seeding_left_us(&self, is_back: bool) -> u64 {
        let began_us = self.epoch.rsplit('.').next().and_then(|at| at.parse().ok());
        // An epoch of the future: the clock has been put back since.
        let age_us = self
            .store_us
            .checked_sub(began_us.unwrap_or(self.store_us))
            .unwrap_or(SEEDING_US);
        match is_back {
            true => SEEDING_US,
            false => SEEDING_US.saturating_sub(age_us),
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
        loop {
            self.beat_once(&mut watch).await;
            let pause = if self.is_any_open() { PROBE } else { BEAT };
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
        self.beat_once(&mut Watch::default()).await;
    }

    /// A beat for each part of the store.
    async fn beat_once(&self, watch: &mut Watch) {
        let Some(sent_us) = self.time.mono_us() else {
            return;
        };
        let connection = match watch.connection.take() {
            Some(connection) => Ok(connection),
            None => self.terms.connector.connect().await,
        };
        let connection = match connection {
            Ok(connection) => connection,
            Err(error) => {
                tracing::debug!(%error, "no beat");
                let why = error.to_string();
                self.terms
                    .parts
                    .iter()
                    .for_each(|part| part.health.fail(&why));
                return;
            }
        };
        let lease_us = u64::try_from(self.slot_lease.as_micros()).unwrap_or(u64::MAX);
        let since = Since {
            renews: sent_us.saturating_sub(watch.renewed_us) >= lease_us / 3,
            owes: self.own.owes() || self.terms.is_unsent(),
            looked_us: watch.looked_us,
        };
        // Looked up once, for all parts.
        let running = match since.renews {
            true => self.own.running(),
            false => Vec::new(),
        };
        let running = &running[..];
        let beats = (0..self.terms.parts.len()).map(|index| {
            let mut connection = connection.clone();
            async move {
                let beaten = self
                    .beat(&mut connection, index, sent_us, since, running)
                    .await;
                let health = &self.terms.parts[index].health;
                match &beaten {
                    Ok(()) => health.answered(),
                    Err(error) if error.is_timeout() => health.timed_out(),
                    Err(error) => health.fail(&error.to_string()),
                }
                beaten.is_ok()
            }
        });
        let beaten = join_all(beats).await;
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

    async fn beat(
        &self,
        connection: &mut Connection,
        index: usize,
        sent_us: u64,
        since: Since,
        running: &[(Name, u64)],
    ) -> RedisResult<()> {
        let part = &self.terms.parts[index];
        let sign = self.in_time(self.sign(connection, index)).await?;
        part.time.note(sent_us, sign.store_us);
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
            self.settle(connection, index, &sign, is_new, has_jumped)
                .await?;
        } else if since.renews {
            self.renew(connection, index, &sign, running, false).await?;
        }
        if is_new || is_back {
            let left_us = sign.seeding_left_us(is_back);
            part.health
                .close(sign.epoch.clone(), sent_us.saturating_add(left_us));
        }
        Ok(())
    }

    /// Whether a counter is in this part of the store.
    fn concerns(&self, index: usize) -> impl Fn(&Name) -> bool {
        let count = self.terms.parts.len();
        move |name| name.part(count) == index
    }

    /// Brings a part of the store up to date, before anybody here asks it again.
    async fn settle(
        &self,
        connection: &mut Connection,
        index: usize,
        sign: &Sign,
        everything: bool,
        has_jumped: bool,
    ) -> RedisResult<()> {
        let concerns = self.concerns(index);
        if everything {
            self.own.drop_leases(&concerns);
        }
        self.tell(connection, index, sign, everything).await?;
        let unsent = self.terms.take_unsent(&concerns);
        if has_jumped {
            // Whatever waits for its window to be over: the window begins now.
            for some in self.own.sliding(&concerns).chunks(TOLD_AT_ONCE) {
                let look = Item::of(What::Put, some);
                self.send(connection, sign, &[look]).await?;
            }
        }
        if everything || has_jumped {
            self.tell_tasks(connection, index, sign).await?;
        }
        // A store that has lost all has been told all by now.
        if !everything {
            for some in unsent.chunks(TOLD_AT_ONCE) {
                self.send(connection, sign, some).await?;
            }
        }
        let running = self.own.running();
        self.renew(connection, index, sign, &running, true).await
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
        let tag = self.tags.get(index).map_or(name::WHOLE, String::as_str);
        let mut command = redis::cmd("EVAL");
        command
            .arg(SCRIPT)
            .arg(2)
            .arg(name::epoch_key(&self.terms.prefix, tag))
            .arg(name::peers_key(&self.terms.prefix, tag))
            .arg(&self.terms.gateway)
            // The epoch, if there is none yet: nobody else draws it.
            .arg(Self::new_gateway_id())
            .arg(GONE_US);
        let reply: Vec<String> = redis::from_redis_value(connection.send(&command).await?)?;
        let mut reply = reply.into_iter();
        match (
            reply.next().and_then(|time| time.parse().ok()),
            reply.next(),
        ) {
            (Some(store_us), Some(epoch)) => Ok(Sign {
                store_us,
                epoch: epoch.into(),
                gateways: reply.map(Into::into).collect(),
            }),
            _ => Err(odd()),
        }
    }

    /// Tells the store what it does not know: what was admitted and given back without it, or,
    /// when it has lost all, whatever this gateway has taken that still counts.
    async fn tell(
        &self,
        connection: &mut Connection,
        index: usize,
        sign: &Sign,
        everything: bool,
    ) -> RedisResult<()> {
        let time = &self.terms.parts[index].time;
        let at = time.framed(sign.store_us);
        let due = self.own.due(self.concerns(index), everything, at, time);
        for some in due.chunks(TOLD_AT_ONCE) {
            let puts: Vec<Part> = some.iter().filter_map(|due| due.put).collect();
            let backs: Vec<Part> = some.iter().filter_map(|due| due.back).collect();
            let items = [Item::of(What::Put, &puts), Item::of(What::GiveBack, &backs)];
            self.send(connection, sign, &items).await?;
            some.iter().for_each(|due: &Due| self.own.told(due));
        }
        Ok(())
    }

    /// Tasks that this gateway holds slots for.
    async fn tell_tasks(
        &self,
        connection: &mut Connection,
        index: usize,
        sign: &Sign,
    ) -> RedisResult<()> {
        let at = self.terms.parts[index].time.framed(sign.store_us);
        let concerns = self.concerns(index);
        let mut times: HashMap<(Name, wire::Task), u64> = HashMap::new();
        let held = self.own.held().into_iter();
        let items: Vec<Item> = held
            .filter(|(name, ..)| concerns(name))
            .map(|(name, _, task, until_us)| {
                let left = Duration::from_micros(until_us.saturating_sub(at.mono_us));
                let task = wire::task(&task);
                let time = times.entry((name, task)).or_default();
                *time += 1;
                Item::of(What::Keep { task }, &[Part::slot(name, *time, left)])
            })
            .collect();
        for some in items.chunks(TOLD_AT_ONCE) {
            self.send(connection, sign, some).await?;
        }
        Ok(())
    }

    /// Renews the slots of calls that still run.
    async fn renew(
        &self,
        connection: &mut Connection,
        index: usize,
        sign: &Sign,
        running: &[(Name, u64)],
        lost_too: bool,
    ) -> RedisResult<()> {
        let concerns = self.concerns(index);
        let mut here = running.to_vec();
        here.retain(|(name, _)| concerns(name));
        for some in here.chunks(TOLD_AT_ONCE) {
            let parts: Vec<Part> = some
                .iter()
                .map(|(name, slot)| Part::slot(*name, *slot, self.slot_lease))
                .collect();
            let item = Item::of(What::Renew { lost_too }, &parts);
            self.send(connection, sign, &[item]).await?;
        }
        Ok(())
    }

    /// Sends items, if the store is still the one of this sign.
    async fn send(
        &self,
        connection: &mut Connection,
        sign: &Sign,
        items: &[Item],
    ) -> RedisResult<()> {
        if !self.terms.is_cluster {
            return self.send_one(connection, &sign.epoch, items).await;
        }
        let items = items.iter().cloned().flat_map(Item::by_owner);
        let mut sent = futures_util::stream::iter(items.map(|item| {
            let mut connection = connection.clone();
            async move { self.send_one(&mut connection, "", &[item]).await }
        }))
        .buffer_unordered(TOLD_AT_ONCE);
        while let Some(sent) = sent.next().await {
            sent?;
        }
        Ok(())
    }

    async fn send_one(
        &self,
        connection: &mut Connection,
        epoch: &str,
        items: &[Item],
    ) -> RedisResult<()> {
        let mut batch = Batch::new(!epoch.is_empty());
        items.iter().for_each(|item| batch.push(item));
        let sent = link::run(&self.terms, connection, &batch, None, epoch);
        match self.in_time(sent).await? {
            Value::Array(values) if values.len() > items.len() => Ok(()),
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
