//! What gateways tell each other through the store: that a counter was reset, and news of their
//! own that the store does not look into.

use std::sync::Arc;

use redis::{RedisError, RedisResult, Value};
use tokio::sync::Mutex;

use super::connect::Connection;
use super::link;
use super::wire::{self, Batch, Item, Name, Part, What};
use super::{RedisStore, StoreError, shift_days};
use crate::limit::{Moment, Plan};

/// Says that counters were reset. The score is the time of saying so, not that of the reset: a
/// gateway that has heard of a later one has heard of all before.
const ANNOUNCE: &str = "local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
for i = 1, #ARGV do redis.call('ZADD', KEYS[1], now, ARGV[i]) end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - 60000000)
return redis.call('PEXPIRE', KEYS[1], 60000)";
/// Between two tellings of news.
const TELL_EVERY_US: u64 = 2_000_000;
/// So long are news of a gateway that is gone still told, milliseconds.
const NEWS_LIVE_MS: u64 = 10_000;
/// What was heard less than this ago is not asked for again.
const FRESH_US: u64 = 1_000_000;

/// News by gateway.
pub type News = Vec<(Box<str>, Vec<u8>)>;

/// News of all gateways, and when they were heard: whoever asks often does not ask the store.
#[derive(Debug, Default)]
pub(super) struct Heard(Mutex<Option<(u64, Arc<News>)>>);

/// What a watch keeps between two exchanges.
#[derive(Debug, Default)]
pub(super) struct Exchanged {
    told_us: Option<u64>,
    /// Store time of the last reset that was heard of.
    resets_us: Option<u64>,
}

impl RedisStore {
    /// Tells news, and forgets counters that another gateway has reset.
    pub(super) async fn exchange(
        &self,
        connection: &mut Connection,
        exchanged: &mut Exchanged,
        (sent_us, store_us): (u64, u64),
        news: &(dyn Fn() -> Vec<u8> + Send + Sync),
    ) -> RedisResult<()> {
        let is_due = |at: u64| sent_us.saturating_sub(at) >= TELL_EVERY_US;
        if exchanged.told_us.is_none_or(is_due) {
            let mut set = redis::cmd("SET");
            set.arg(wire::news_key(&self.terms.prefix, &self.terms.gateway))
                .arg(news())
                .arg("PX")
                .arg(NEWS_LIVE_MS);
            self.in_time(connection.send(&set)).await?;
            exchanged.told_us = Some(sent_us);
        }
        // Nothing from before the first beat is remembered here. A clock that went back has
        // resets of its own.
        let after_us = exchanged.resets_us.unwrap_or(store_us).min(store_us);
        let mut range = redis::cmd("ZRANGE");
        range
            .arg(wire::resets_key(&self.terms.prefix))
            .arg(format!("({after_us}"))
            .arg("+inf")
            .arg("BYSCORE")
            .arg("WITHSCORES");
        let heard = self.in_time(connection.send(&range)).await?;
        let heard: Vec<(String, f64)> = redis::from_redis_value(heard)?;
        exchanged.resets_us = Some(after_us);
        for (word, at_us) in heard {
            if let Some(name) = Name::of_word(&word) {
                self.own.forget(name);
            }
            let at_us = wire::micros(at_us);
            exchanged.resets_us = exchanged.resets_us.max(Some(at_us));
        }
        Ok(())
    }

    /// Empties counters in the store, here, and at the next beat of every other gateway.
    pub(super) async fn reset_for_all(&self, plan: &Plan, now: Moment) -> Result<(), StoreError> {
        if self.health().is_open() {
            return Err(StoreError::Unavailable);
        }
        let mut plan = plan.clone();
        shift_days(&mut plan, self.time.expected_us(now));
        let names: Vec<Name> = plan.charges.iter().map(|c| Name::of(&plan, c)).collect();
        let done = async {
            let mut connection = self.terms.connector.connect().await?;
            for (name, charge) in names.iter().zip(&plan.charges) {
                let mut batch = Batch::new(false);
                let part = Part::new(*name, charge.span, 0, 0);
                batch.push(&Item::of(What::Empty, &[part]));
                let at_us = self.time.told_us(now);
                let emptied = link::run(&self.terms, &mut connection, &batch, at_us, "");
                self.in_time(emptied).await?;
                self.own.forget(*name);
            }
            let mut announce = redis::cmd("EVAL");
            announce
                .arg(ANNOUNCE)
                .arg(1)
                .arg(wire::resets_key(&self.terms.prefix));
            for name in &names {
                announce.arg(name.to_word());
            }
            self.in_time(connection.send(&announce)).await?;
            Ok::<(), RedisError>(())
        };
        done.await.map_err(|error| {
            tracing::warn!(%error, "counters were not reset, or not all");
            StoreError::Unavailable
        })
    }

    /// The news of all gateways that share the store.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub async fn news(&self, now: Moment) -> Result<Arc<News>, StoreError> {
        // Locked while the store is asked: who asks meanwhile waits for the same answer.
        let mut heard = self.heard.0.lock().await;
        if let Some((at_us, news)) = &*heard
            && now.mono_us.saturating_sub(*at_us) < FRESH_US
        {
            return Ok(news.clone());
        }
        if self.health().is_open() {
            return Err(StoreError::Unavailable);
        }
        let gateways = self.health().gateways();
        let asked = async {
            let mut connection = self.terms.connector.connect().await?;
            let mut news = News::new();
            for gateway in &*gateways {
                let mut get = redis::cmd("GET");
                get.arg(wire::news_key(&self.terms.prefix, gateway));
                if let Value::BulkString(text) = self.in_time(connection.send(&get)).await? {
                    news.push((gateway.clone(), text));
                }
            }
            Ok::<News, RedisError>(news)
        };
        let news = Arc::new(asked.await.map_err(|_| StoreError::Unavailable)?);
        *heard = Some((now.mono_us, news.clone()));
        Ok(news)
    }
}
