//! The end of a gateway: what it holds in the store goes back at once, not when it expires.

use std::sync::atomic::Ordering;
use std::time::Duration;

use redis::RedisResult;
use tokio::time::Instant;

use super::{PROBE, Sign, TOLD_AT_ONCE, Watch};
use crate::limit::Span;
use crate::store::redis::RedisStore;
use crate::store::redis::connect::Connection;
use crate::store::redis::link::Kept;
use crate::store::redis::name;
use crate::store::redis::own::Census;
use crate::store::redis::wire::{Item, Part, What};

impl RedisStore {
    /// Gives back what was leased and not used, and the slots of calls that are cut off, says
    /// what could not be said before, and is no gateway of this store any more. Once no call is
    /// decided here, before the process ends; what the store does not take in time expires. With
    /// `patience` it waits for a store that is out of use, if that is to hear of totals: these do
    /// not expire.
    pub async fn leave(&self, patience: Duration) {
        self.leaving.store(true, Ordering::Release);
        if self.is_any_open() {
            self.wait_to_tell(patience).await;
        }
        if self.is_any_open() {
            let totals = self.untold_totals();
            if totals > 0 {
                tracing::warn!(
                    totals,
                    "the store is out of use, and never hears what was made of these totals without it: import them anew"
                );
            }
            return;
        }
        if let Err(error) = self.say_goodbye().await {
            tracing::warn!(%error, "the store has not taken leases and slots back; they expire");
        }
    }

    fn untold_totals(&self) -> usize {
        self.terms.unsent.lock().totals()
    }

    async fn wait_to_tell(&self, patience: Duration) {
        let (until, mut watch) = (Instant::now() + patience, Watch::default());
        let totals = self.untold_totals();
        if totals > 0 && !patience.is_zero() {
            tracing::warn!(
                totals,
                patience_ms = patience.as_millis(),
                "the store is out of use; waiting to tell it what was made of totals without it"
            );
        }
        while self.is_any_open() && self.untold_totals() > 0 && Instant::now() < until {
            tokio::time::sleep(PROBE).await;
            self.beat_all(&mut watch).await;
        }
    }

    async fn say_goodbye(&self) -> RedisResult<()> {
        let connecting = async {
            self.connect()
                .await
                .map_err(|_| std::io::Error::from(std::io::ErrorKind::NotConnected).into())
        };
        let mut connection = self.in_time(connecting).await?;
        let census = Census::new(&self.own, self.terms.parts.len());
        let leases = self.own.leases_over(u64::MAX);
        for index in 0..self.terms.parts.len() {
            let sign = self.in_time(self.sign(&mut connection, index)).await?;
            self.tell(&mut connection, index, &sign, &census, false)
                .await?;
            let kept = Kept::take(&self.terms, self.concerns(index));
            self.send_kept(&mut connection, &sign, kept).await?;
            let running = census.running(index).iter();
            let slots: Vec<Part> = running
                .map(|(name, slot)| Part::new(*name, Span::Running, 1, *slot))
                .collect();
            self.return_all(&mut connection, &sign, &slots).await?;
            if index == 0 {
                // Each finds its own way.
                self.return_all(&mut connection, &sign, &leases).await?;
            }
            let tag = &self.terms.part_at(index).tag;
            let mut gone = redis::cmd("ZREM");
            gone.arg(name::peers_key(&self.terms.prefix, tag))
                .arg(&self.terms.gateway);
            self.in_time(connection.send(&gone)).await?;
        }
        Ok(())
    }

    async fn return_all(
        &self,
        connection: &mut Connection,
        sign: &Sign,
        parts: &[Part],
    ) -> RedisResult<()> {
        for some in parts.chunks(TOLD_AT_ONCE) {
            let item = Item::of(What::GiveBack, some);
            self.send(connection, sign, vec![item]).await?;
        }
        Ok(())
    }
}
