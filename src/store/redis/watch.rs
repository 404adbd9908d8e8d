//! The watch over the store: gives this gateway's sign of life, probes a store that is out of
//! use, and tells one that comes back what it missed.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use redis::{ErrorKind, RedisError, RedisResult, Value};

use super::RedisStore;
use super::connect::Connection;
use super::link;
use super::own::Due;
use super::wire::{self, Batch, Item, Name, Part, What};

const SCRIPT: &str = include_str!("beat.lua");
/// Between two signs of life.
const BEAT: Duration = Duration::from_millis(500);
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
    /// When the store's clock jumped for the last time that was looked after.
    jumped_us: u64,
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
            let pause = if self.health().is_open() { PROBE } else { BEAT };
            tokio::select! {
                () = tokio::time::sleep(pause) => (),
                () = self.health().wake.notified() => {
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
                self.give_back_leases(some, None);
            }
            now_us = self.time.mono_us().unwrap_or(now_us);
        }
    }

    /// The first beat, before calls come in: a gateway that starts without its store begins with
    /// its share.
    pub async fn greet(&self) {
        self.beat_once(&mut Watch::default()).await;
    }

    async fn beat_once(&self, watch: &mut Watch) {
        match self.beat(watch).await {
            Ok(()) => self.health().answered(),
            Err(error) => {
                watch.connection = None;
                tracing::debug!(%error, "no beat");
                match error.is_timeout() {
                    true => self.health().timed_out(),
                    false => self.health().fail(&error.to_string()),
                }
            }
        }
    }

    async fn beat(&self, watch: &mut Watch) -> RedisResult<()> {
        let mut connection = match watch.connection.take() {
            Some(connection) => connection,
            None => self.terms.connector.connect().await?,
        };
        let Some(sent_us) = self.time.mono_us() else {
            return Ok(());
        };
        let sign = self.in_time(self.sign(&mut connection)).await?;
        self.time.note(sent_us, sign.store_us);
        let known = self.health().epoch();
        let is_new = known.as_deref() != Some(&*sign.epoch);
        let is_back = self.health().is_open();
        let jumped_us = self.time.jumped_at_us().unwrap_or(0);
        let has_jumped = jumped_us != watch.jumped_us;
        let unsettled_until_us = match jumped_us {
            0 => 0,
            at_us => at_us.saturating_add(GONE_US),
        };
        let too_few =
            is_new || is_back || self.health().is_seeding(sent_us) || sent_us < unsettled_until_us;
        self.health().note_gateways(sign.gateways.clone(), too_few);
        let owes = self.own.owes() || !self.terms.unsent.lock().is_empty();
        if is_new || is_back || has_jumped || owes {
            let lost = is_new || has_jumped;
            let told = self.settle(&mut connection, &sign, is_new, lost).await;
            if told.is_err() {
                self.own.owe_still();
            }
            told?;
            (watch.renewed_us, watch.jumped_us) = (sent_us, jumped_us);
        }
        if is_new || is_back {
            let left_us = sign.seeding_left_us(is_back);
            self.health()
                .close(sign.epoch.clone(), sent_us.saturating_add(left_us));
        }
        let lease_us = u64::try_from(self.slot_lease.as_micros()).unwrap_or(u64::MAX);
        if sent_us.saturating_sub(watch.renewed_us) >= lease_us / 3 {
            self.renew(&mut connection, &sign, false).await?;
            watch.renewed_us = sent_us;
        }
        watch.connection = Some(connection);
        Ok(())
    }

    /// Brings the store up to date, before anybody here asks it again.
    async fn settle(
        &self,
        connection: &mut Connection,
        sign: &Sign,
        everything: bool,
        lost_tasks: bool,
    ) -> RedisResult<()> {
        if everything {
            self.own.drop_leases();
        }
        self.tell(connection, sign, everything).await?;
        let unsent = std::mem::take(&mut *self.terms.unsent.lock());
        if lost_tasks {
            self.tell_tasks(connection, sign).await?;
        }
        // A store that has lost all has been told all by now.
        if !everything {
            for some in unsent.chunks(TOLD_AT_ONCE) {
                self.send(connection, sign, some).await?;
            }
        }
        self.renew(connection, sign, true).await
    }

    async fn in_time<T>(&self, work: impl Future<Output = RedisResult<T>>) -> RedisResult<T> {
        match tokio::time::timeout(self.terms.timeout, work).await {
            Ok(result) => result,
            Err(_) => Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()),
        }
    }

    async fn sign(&self, connection: &mut Connection) -> RedisResult<Sign> {
        let mut command = redis::cmd("EVAL");
        command
            .arg(SCRIPT)
            .arg(2)
            .arg(wire::epoch_key(&self.terms.prefix))
            .arg(wire::peers_key(&self.terms.prefix))
            .arg(&self.terms.gateway)
            .arg(self.new_epoch())
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
        sign: &Sign,
        everything: bool,
    ) -> RedisResult<()> {
        let at = self.framed(sign.store_us);
        let due = self.own.due(everything, at, &self.time);
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
    async fn tell_tasks(&self, connection: &mut Connection, sign: &Sign) -> RedisResult<()> {
        let at = self.framed(sign.store_us);
        let mut times: HashMap<(Name, wire::Task), u64> = HashMap::new();
        let items: Vec<Item> = self
            .own
            .held()
            .into_iter()
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
        sign: &Sign,
        lost_too: bool,
    ) -> RedisResult<()> {
        let running: Vec<(Name, u64)> = self.own.running();
        for some in running.chunks(TOLD_AT_ONCE) {
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
        let mut batch = Batch::new(true);
        items.iter().for_each(|item| batch.push(item));
        let sent = link::run(&self.terms, connection, &batch, None, &sign.epoch);
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
