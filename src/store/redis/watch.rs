//! The watch over the store: gives this gateway's sign of life, probes a store that is out of
//! use, and tells one that comes back what it missed.

use std::sync::Arc;
use std::time::Duration;

use redis::{ErrorKind, RedisError, RedisResult, Value};

use super::connect::Connection;
use super::link;
use super::news::Exchanged;
use super::own::Due;
use super::wire::{self, Batch, Item, Name, Part, What};
use super::{RedisStore, own::Own};
use crate::limit::Moment;

const SCRIPT: &str = include_str!("beat.lua");
/// Between two signs of life.
const BEAT: Duration = Duration::from_millis(500);
/// Between two probes of a store that is out of use.
const PROBE: Duration = Duration::from_millis(100);
/// A gateway that has given no sign for so long is gone.
const GONE_US: u64 = 5_000_000;
/// A new epoch: so long do gateways have to say what they have taken, and only their shares
/// hold meanwhile.
const SEEDING_US: u64 = 2_000_000;
/// Parts of a command that tells a store what it missed.
const TOLD_AT_ONCE: usize = 500;

/// What the watch keeps between two beats.
#[derive(Debug, Default)]
pub(super) struct Watch {
    connection: Option<Connection>,
    renewed_us: u64,
    exchanged: Exchanged,
}

struct Sign {
    store_us: u64,
    epoch: Arc<str>,
    gateways: Vec<Box<str>>,
}

impl RedisStore {
    /// Watches over the store for as long as it is polled. Without it, gateways do not know of
    /// each other, and a store that went out of use stays so. `news` is what this gateway tells
    /// the others.
    pub async fn watch(&self, news: &(dyn Fn() -> Vec<u8> + Send + Sync)) {
        let mut watch = Watch::default();
        loop {
            self.beat_once(&mut watch, news).await;
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

    /// The first beat, before calls come in: a gateway that starts without its store begins with
    /// its share.
    pub async fn greet(&self) {
        self.beat_once(&mut Watch::default(), &Vec::new).await;
    }

    async fn beat_once(&self, watch: &mut Watch, news: &(dyn Fn() -> Vec<u8> + Send + Sync)) {
        match self.beat(watch, news).await {
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

    async fn beat(
        &self,
        watch: &mut Watch,
        news: &(dyn Fn() -> Vec<u8> + Send + Sync),
    ) -> RedisResult<()> {
        let mut connection = match watch.connection.take() {
            Some(connection) => connection,
            None => self.terms.connector.connect().await?,
        };
        let Some(sent_us) = self.time.mono_us() else {
            return Ok(());
        };
        let sign = self.in_time(self.sign(&mut connection)).await?;
        self.time.note(sent_us, sign.store_us);
        self.health().note_gateways(sign.gateways.clone());
        let known = self.health().epoch();
        let is_new = known.as_deref() != Some(&*sign.epoch);
        let is_back = self.health().is_open();
        if is_new || is_back {
            self.tell(&mut connection, &sign, is_new).await?;
            let began_us = sign.epoch.rsplit('.').next().and_then(|at| at.parse().ok());
            let seeding_until_us = began_us.unwrap_or(sign.store_us).saturating_add(SEEDING_US);
            self.health().close(sign.epoch.clone(), seeding_until_us);
        }
        let lease_us = u64::try_from(self.slot_lease.as_micros()).unwrap_or(u64::MAX);
        if is_new || is_back || sent_us.saturating_sub(watch.renewed_us) >= lease_us / 3 {
            self.renew(&mut connection, &sign, is_new || is_back)
                .await?;
            watch.renewed_us = sent_us;
        }
        let times = (sent_us, sign.store_us);
        self.exchange(&mut connection, &mut watch.exchanged, times, news)
            .await?;
        watch.connection = Some(connection);
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
        if everything {
            self.tell_tasks(connection, sign, at, &self.own).await?;
        }
        Ok(())
    }

    /// Tasks that this gateway holds slots for.
    async fn tell_tasks(
        &self,
        connection: &mut Connection,
        sign: &Sign,
        at: Moment,
        own: &Own,
    ) -> RedisResult<()> {
        let items: Vec<Item> = own
            .held()
            .into_iter()
            .map(|(name, slot, task, until_us)| {
                let left = Duration::from_micros(until_us.saturating_sub(at.mono_us));
                let task = wire::task(&task);
                Item::of(What::Hold { task }, &[Part::slot(name, slot, left)])
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
