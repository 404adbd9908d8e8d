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
use crate::store::redis::part::Part;
use crate::store::redis::wire::{Item, What};

impl RedisStore {
    /// Gives back what was leased and not used, and the slots of calls that are cut off, says
    /// what could not be said before, and is no gateway of this store any more. Once no call is
    /// decided here, before the process ends; what the store does not take in time expires. With
    /// `patience` it waits for a store that is out of use, if that is to hear of totals: these do
    /// not expire.
    pub async fn leave(&self, patience: Duration) {
        self.leaving.store(true, Ordering::Release);
        // What is on its way is answered, or kept, in this time.
        let moment = Instant::now() + 2 * self.terms.timeout;
        let until = moment.max(Instant::now() + patience);
        let (mut watch, mut is_said) = (Watch::default(), false);
        loop {
            let is_out = self.is_any_open() || self.terms.moving.load(Ordering::Relaxed) > 0;
            let parted = match is_out {
                true => None,
                false => Some(self.say_goodbye().await),
            };
            let totals = self.untold_totals();
            match parted {
                Some(Ok(())) => return,
                Some(Err(error)) if totals == 0 => {
                    tracing::warn!(%error, "the store has not taken leases and slots back; they expire");
                    return;
                }
                None if totals == 0 => return,
                _ if Instant::now() >= until => {
                    tracing::warn!(
                        totals,
                        "the store is out of use, and never hears what was made of these totals without it: import them anew"
                    );
                    return;
                }
                _ if is_said || !self.is_any_open() && Instant::now() < moment => (),
                _ => {
                    is_said = true;
                    let patience_ms = patience.as_millis();
                    tracing::warn!(
                        totals,
                        patience_ms,
                        "the store is out of use; waiting to tell it what was made of totals without it"
                    );
                }
            }
            tokio::time::sleep(PROBE).await;
            if self.is_any_open() {
                self.beat_all(&mut watch).await;
            }
        }
    }

    /// Totals of which the store is to hear, and words about them that are on their way.
    fn untold_totals(&self) -> usize {
        self.terms.unsent.lock().totals() + self.terms.moving.load(Ordering::Relaxed)
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
