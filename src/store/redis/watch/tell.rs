//! What a part of the store is told in a beat.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::StreamExt as _;
use redis::{RedisResult, Value};

use super::{Sign, odd};
use crate::limit::total::Change;
use crate::store::redis::connect::Connection;
use crate::store::redis::fault::Fault;
use crate::store::redis::name::Name;
use crate::store::redis::own::{Census, Due};
use crate::store::redis::wire::{self, Batch, Item, Part, What};
use crate::store::redis::{RedisStore, link};

/// Parts of a command that tells a store what it missed.
pub(super) const TOLD_AT_ONCE: usize = 500;

impl RedisStore {
    /// Whether a counter is in this part of the store.
    pub(super) fn concerns(&self, index: usize) -> impl Fn(&Name) -> bool {
        let count = self.terms.parts.len();
        move |name| name.part(count) == index
    }

    /// Brings a part of the store up to date, before anybody here asks it again.
    pub(super) async fn settle(
        &self,
        connection: &mut Connection,
        index: usize,
        sign: &Sign,
        census: &Census<'_>,
        (everything, has_jumped): (bool, bool),
    ) -> RedisResult<()> {
        let concerns = self.concerns(index);
        if everything {
            self.own.drop_leases(&concerns);
        }
        self.tell(connection, index, sign, census, everything)
            .await?;
        let unsent = self.terms.take_unsent(&concerns);
        if has_jumped {
            // Whatever waits for its window to be over: the window begins now.
            for some in self.own.sliding(census.all(index)).chunks(TOLD_AT_ONCE) {
                let look = Item::of(What::Put, some);
                self.send(connection, sign, vec![look]).await?;
            }
        }
        if everything || has_jumped {
            self.tell_tasks(connection, index, sign, census).await?;
        }
        if everything && self.terms.parts[index].health.epoch().is_some() {
            self.tell_lost_totals(connection, index, sign).await?;
        }
        // A store that has lost all has been told all by now, but for totals: they are nobody's own.
        let unsent: Vec<Item> = match everything {
            true => unsent.into_iter().filter(Item::is_of_totals).collect(),
            false => unsent,
        };
        self.send_kept(connection, sign, &unsent).await?;
        let running = census.running(index);
        self.renew(connection, sign, running, true).await
    }

    /// Sends what was kept for later. What was lost on the way is in doubt, and the rest is kept.
    pub(super) async fn send_kept(
        &self,
        connection: &mut Connection,
        sign: &Sign,
        kept: &[Item],
    ) -> RedisResult<()> {
        let mut chunks = kept.chunks(TOLD_AT_ONCE);
        while let Some(some) = chunks.next() {
            let Err(error) = self.send(connection, sign, some.to_vec()).await else {
                continue;
            };
            some.iter().for_each(|item| self.terms.doubt(item));
            let rest = chunks.flatten();
            rest.for_each(|item| self.terms.keep(item.clone()));
            return Err(error);
        }
        Ok(())
    }

    /// Tells the store what it does not know: what was admitted and given back without it, or,
    /// when it has lost all, whatever this gateway has taken that still counts.
    pub(super) async fn tell(
        &self,
        connection: &mut Connection,
        index: usize,
        sign: &Sign,
        census: &Census<'_>,
        everything: bool,
    ) -> RedisResult<()> {
        let time = &self.terms.parts[index].time;
        let at = time.framed(sign.store_us);
        let names = match everything {
            true => census.all(index),
            false => census.owing(index),
        };
        let due = self.own.due(names, everything, at, time);
        for some in due.chunks(TOLD_AT_ONCE) {
            let puts: Vec<Part> = some.iter().filter_map(|due| due.put).collect();
            let backs: Vec<Part> = some.iter().filter_map(|due| due.back).collect();
            let items = vec![Item::of(What::Put, &puts), Item::of(What::GiveBack, &backs)];
            self.send(connection, sign, items).await?;
            some.iter().for_each(|due: &Due| self.own.told(due));
        }
        Ok(())
    }

    /// Tells a store that has lost its totals how many there were when they were last read here,
    /// and how many of those are of calls under way. Those that nobody has checked since are in
    /// doubt then.
    async fn tell_lost_totals(
        &self,
        connection: &mut Connection,
        index: usize,
        sign: &Sign,
    ) -> RedisResult<()> {
        let known = self.remembered.all(self.concerns(index)).into_iter();
        let known = known.map(|(name, count)| Part::change(name, Change::Recall(count), 0));
        let held = self.terms.under_way.all(self.concerns(index)).into_iter();
        let held = held.map(|(name, era, units)| Part::held(name, era, units));
        let parts: Vec<Part> = known.chain(held).collect();
        for some in parts.chunks(TOLD_AT_ONCE) {
            let item = Item::of(What::Change, some);
            self.send(connection, sign, vec![item]).await?;
        }
        Ok(())
    }

    /// Tells of eras of totals that they are over. What was to be said of them has been told.
    pub(super) async fn tell_eras(
        &self,
        connection: &mut Connection,
        index: usize,
        sign: &Sign,
    ) -> RedisResult<()> {
        let under_way = &self.terms.under_way;
        if !under_way.doubts() || self.terms.is_unsent() {
            return Ok(());
        }
        // By then a question has been answered, or does nothing.
        let over = under_way.over(2 * self.terms.timeout, self.concerns(index));
        for some in over.chunks(TOLD_AT_ONCE) {
            let parts: Vec<Part> = some
                .iter()
                .map(|(name, era)| Part::over(*name, *era))
                .collect();
            let item = Item::of(What::Change, &parts);
            self.send(connection, sign, vec![item]).await?;
            under_way.told(some);
        }
        Ok(())
    }

    /// Tasks that this gateway holds slots for.
    async fn tell_tasks(
        &self,
        connection: &mut Connection,
        index: usize,
        sign: &Sign,
        census: &Census<'_>,
    ) -> RedisResult<()> {
        let at = self.terms.parts[index].time.framed(sign.store_us);
        let mut times: HashMap<(Name, wire::Task), u64> = HashMap::new();
        let held = census.held(index).iter();
        let items: Vec<Item> = held
            .map(|(name, _, task, until_us)| {
                let left = Duration::from_micros(until_us.saturating_sub(at.mono_us));
                let task = wire::task(task);
                let time = times.entry((*name, task)).or_default();
                *time += 1;
                Item::of(What::Keep { task }, &[Part::slot(*name, *time, left)])
            })
            .collect();
        for some in items.chunks(TOLD_AT_ONCE) {
            self.send(connection, sign, some.to_vec()).await?;
        }
        Ok(())
    }

    /// Renews the slots of calls that still run.
    pub(super) async fn renew(
        &self,
        connection: &mut Connection,
        sign: &Sign,
        running: &[(Name, u64)],
        lost_too: bool,
    ) -> RedisResult<()> {
        for some in running.chunks(TOLD_AT_ONCE) {
            let parts: Vec<Part> = some
                .iter()
                .map(|(name, slot)| Part::slot(*name, *slot, self.slot_lease))
                .collect();
            let item = Item::of(What::Renew { lost_too }, &parts);
            self.send(connection, sign, vec![item]).await?;
        }
        Ok(())
    }

    /// Sends items, if the store is still the one of this sign. What it refuses for itself alone
    /// is dropped: nothing else waits for it.
    pub(super) async fn send(
        &self,
        connection: &mut Connection,
        sign: &Sign,
        items: Vec<Item>,
    ) -> RedisResult<()> {
        let epoch = match self.terms.is_cluster {
            true => "",
            false => &*sign.epoch,
        };
        let refused = match self.terms.is_cluster {
            true => {
                let each = items.into_iter().flat_map(Item::by_owner);
                self.send_each(connection, epoch, each).await?
            }
            false => match self.send_one(connection, epoch, &items).await {
                Err(error) if Fault::of(&error) == Fault::Item => items,
                sent => return sent,
            },
        };
        // One by one: for an item's company, or while its slot moves.
        let each = refused.into_iter().flat_map(Item::by_counter);
        self.send_each(connection, epoch, each).await.map(drop)
    }

    /// Sends each item by itself. Those of several counters that must go one by one; one counter's
    /// that is refused is dropped.
    async fn send_each(
        &self,
        connection: &Connection,
        epoch: &str,
        items: impl Iterator<Item = Item> + Send,
    ) -> RedisResult<Vec<Item>> {
        let mut apart = Vec::new();
        let mut sent = futures_util::stream::iter(items.map(|item| {
            let mut connection = connection.clone();
            async move {
                let sent = self
                    .send_one(&mut connection, epoch, std::slice::from_ref(&item))
                    .await;
                (item, sent)
            }
        }))
        .buffer_unordered(TOLD_AT_ONCE);
        while let Some((item, sent)) = sent.next().await {
            let Err(error) = sent else {
                continue;
            };
            match (Fault::of(&error), item.is_of_one_counter()) {
                (Fault::Item | Fault::Moving, false) => apart.push(item),
                (Fault::Item, true) => {
                    self.terms
                        .part(item.name())
                        .health
                        .refused(&error.to_string());
                }
                _ => return Err(error),
            }
        }
        Ok(apart)
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
