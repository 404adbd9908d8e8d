//! What a part of the store is told in a beat.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::StreamExt as _;
use redis::{RedisError, RedisResult, Value};

use super::{Sign, odd};
use crate::limit::total::Change;
use crate::store::redis::batch::Batch;
use crate::store::redis::connect::Connection;
use crate::store::redis::fault::{Done, Fault};
use crate::store::redis::link::Kept;
use crate::store::redis::name::Name;
use crate::store::redis::own::{Census, Due};
use crate::store::redis::part::Part;
use crate::store::redis::totals::AT_ONCE;
use crate::store::redis::wire::{self, Item, What};
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
        let mut kept = Kept::take(&self.terms, &concerns);
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
        if everything {
            kept.only_totals();
        }
        self.send_kept(connection, sign, kept).await?;
        let running = census.running(index);
        self.renew(connection, sign, running, true).await
    }

    /// Sends what was kept for later. What may have been done on the way is in doubt, and what was
    /// not is kept.
    pub(super) async fn send_kept(
        &self,
        connection: &mut Connection,
        sign: &Sign,
        mut kept: Kept<'_>,
    ) -> RedisResult<()> {
        loop {
            let some = kept.next(TOLD_AT_ONCE, AT_ONCE);
            if some.is_empty() {
                return Ok(());
            }
            let failed = self.send_all(connection, sign, some).await;
            kept.settled();
            let (mut again, mut error) = (Vec::new(), None);
            for (item, why) in failed {
                let is_refused = is_refused(&item, &why);
                match Done::of(&why) {
                    Done::Unknown => self.terms.doubt(&item),
                    Done::Nothing if is_refused && !item.is_of_totals() => (),
                    Done::Nothing => again.push(item),
                }
                error = error.or(Some(why).filter(|_| !is_refused));
            }
            if let Some(error) = error {
                kept.put_back(again);
                return Err(error);
            }
            again.into_iter().for_each(|item| self.terms.keep(item));
        }
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

    /// Tells a store that lacks what it had (one that was restored, or a replica without the last
    /// writes) how many of each total it knew: no fewer, where nobody has counted since. All of its
    /// totals are in doubt already.
    pub(super) async fn tell_older_totals(
        &self,
        connection: &mut Connection,
        index: usize,
        sign: &Sign,
    ) -> RedisResult<()> {
        // Parts of a cluster come back together.
        let before = self.older_said_us.swap(sign.store_us, Ordering::Relaxed);
        if sign.store_us.abs_diff(before) > 5_000_000 {
            tracing::warn!(
                store = %self.terms.connector.options(),
                "the store lacks what it had: totals of plans are in doubt until they are imported anew"
            );
        }
        let known = self.remembered.all(self.concerns(index));
        for some in known.chunks(TOLD_AT_ONCE) {
            let parts = some.iter().map(|(name, count)| {
                self.terms.under_way.doubt_all(*name);
                Part::change(*name, Change::Recall(*count), 0)
            });
            let item = Item::of(What::Change, &parts.collect::<Vec<_>>());
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
        if !under_way.doubts() {
            return Ok(());
        }
        let concerns = self.concerns(index);
        let is_told = |name: &Name| concerns(name) && !self.terms.unsent.lock().has(name);
        // By then a question has been answered, or does nothing.
        let over = under_way.over(2 * self.terms.timeout, is_told);
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
        let failed = self.send_all(connection, sign, items).await.into_iter();
        let mut failed = failed.filter(|(item, why)| !is_refused(item, why));
        failed.next().map_or(Ok(()), |(_, why)| Err(why))
    }

    /// The same; those that got no answer, and why. What is refused together goes one by one: for
    /// an item's company, or while its slot moves.
    async fn send_all(
        &self,
        connection: &mut Connection,
        sign: &Sign,
        items: Vec<Item>,
    ) -> Vec<(Item, RedisError)> {
        let is_cluster = self.terms.is_cluster;
        let epoch = if is_cluster { "" } else { &*sign.epoch };
        let mut failed = match is_cluster {
            true => {
                let each = items.into_iter().flat_map(Item::by_owner);
                self.send_each(connection, epoch, each).await
            }
            false => match self.send_one(connection, epoch, &items).await {
                Ok(()) => Vec::new(),
                Err(why) => {
                    let with = |item| (item, why.clone());
                    items.into_iter().map(with).collect()
                }
            },
        };
        let is_apart = |(item, why): &mut (Item, RedisError)| {
            let is_safe = Done::of(why) == Done::Nothing || !item.moves_totals();
            let fault = Fault::of(why);
            let is_joint = match is_cluster {
                true => fault != Fault::Store && !item.is_of_one_counter(),
                false => fault == Fault::Item,
            };
            is_safe && is_joint
        };
        let apart: Vec<_> = failed.extract_if(.., is_apart).collect();
        let each = apart.into_iter().flat_map(|(item, _)| item.by_counter());
        for (item, why) in self.send_each(connection, epoch, each).await {
            if is_refused(&item, &why) {
                let health = &self.terms.part(item.name()).health;
                health.refused(&why.to_string());
            }
            failed.push((item, why));
        }
        failed
    }

    /// Sends each item by itself.
    async fn send_each(
        &self,
        connection: &Connection,
        epoch: &str,
        items: impl Iterator<Item = Item> + Send,
    ) -> Vec<(Item, RedisError)> {
        let sent = futures_util::stream::iter(items.map(|item| {
            let mut connection = connection.clone();
            async move {
                let items = std::slice::from_ref(&item);
                let sent = self.send_one(&mut connection, epoch, items).await;
                sent.err().map(|why| (item, why))
            }
        }));
        let sent = sent.buffer_unordered(TOLD_AT_ONCE);
        sent.filter_map(std::future::ready).collect().await
    }

    async fn send_one(
        &self,
        connection: &mut Connection,
        epoch: &str,
        items: &[Item],
    ) -> RedisResult<()> {
        let mut batch = Batch::new(!epoch.is_empty());
        for item in items {
            batch.push(item);
        }
        if !self.terms.is_cluster && items.iter().any(Item::moves_totals) {
            batch.sign();
        }
        let sent = link::run(&self.terms, connection, &batch, None, epoch);
        match self.in_time(sent).await? {
            Value::Array(values) if values.len() > items.len() => Ok(()),
            _ => Err(odd()),
        }
    }
}

/// Whether an item is refused for itself alone.
fn is_refused(item: &Item, why: &RedisError) -> bool {
    Fault::of(why) == Fault::Item && item.is_of_one_counter()
}
