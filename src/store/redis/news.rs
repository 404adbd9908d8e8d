//! What gateways tell each other through the store: that a counter was reset, and news of their
//! own that the store does not look into.

use std::sync::Arc;

use redis::{RedisError, RedisResult, Value};
use tokio::sync::Mutex;

use super::batch::Batch;
use super::connect::Connection;
use super::decide::shift_days;
use super::link;
use super::name::{self, Name};
use super::part::Part;
use super::watch::BEAT;
use super::wire::{Item, What};
use super::{RedisStore, StoreError};
use crate::limit::{Moment, Plan};

/// Says that counters were reset. The score tells the resets of one counter apart.
const ANNOUNCE: &str = "local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
for i = 1, #ARGV do redis.call('ZADD', KEYS[1], now, ARGV[i]) end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - 60000000)
return redis.call('PEXPIRE', KEYS[1], 60000)";
/// News are told once in so many exchanges.
const TELL_EVERY: u32 = 4;
/// So long are news of a gateway that is gone still told, milliseconds.
const NEWS_LIVE_MS: u64 = 10_000;
/// What was heard less than this ago is not asked for again.
const FRESH_US: u64 = 1_000_000;

/// News by gateway.
pub type News = Vec<(Box<str>, Vec<u8>)>;

/// News of all gateways, and when they were heard: whoever asks often does not ask the store.
#[derive(Debug, Default)]
pub(super) struct Heard(Mutex<Option<(u64, Arc<News>)>>);

/// Resets of the last minute, by counter and time.
type Resets = Vec<(String, String)>;

impl RedisStore {
    /// Tells whoever asks what `news` says, and forgets counters that another gateway has reset,
    /// for as long as it is polled. What fails is for the watch to judge.
    pub async fn exchange_news(&self, news: &(dyn Fn() -> Vec<u8> + Send + Sync)) {
        let mut way = None;
        let mut known: Option<Resets> = None;
        for turn in (0..TELL_EVERY).cycle() {
            if !self.is_any_open() {
                let told = (turn == 0).then_some(news);
                match self.exchange(&mut way, told).await {
                    Ok(resets) => {
                        self.forget_reset(known.as_deref(), &resets);
                        known = Some(resets);
                    }
                    Err(error) => {
                        way = None;
                        tracing::debug!(%error, "no news");
                    }
                }
            }
            tokio::time::sleep(BEAT).await;
        }
    }

    async fn exchange(
        &self,
        way: &mut Option<Connection>,
        news: Option<&(dyn Fn() -> Vec<u8> + Send + Sync)>,
    ) -> RedisResult<Resets> {
        let connection = match way {
            Some(connection) => connection,
            None => way.insert(self.terms.connector.connect().await?),
        };
        if let Some(news) = news {
            let mut set = redis::cmd("SET");
            set.arg(name::news_key(&self.terms.prefix, &self.terms.gateway))
                .arg(news())
                .arg("PX")
                .arg(NEWS_LIVE_MS);
            self.in_time(connection.send(&set)).await?;
        }
        let mut range = redis::cmd("ZRANGE");
        range
            .arg(name::resets_key(&self.terms.prefix))
            .arg(&[0, -1])
            .arg("WITHSCORES");
        redis::from_redis_value(self.in_time(connection.send(&range)).await?).map_err(Into::into)
    }

    /// Forgets what has been reset since the resets that are known. Those from before the first
    /// look are: nothing that is older is remembered here.
    fn forget_reset(&self, known: Option<&[(String, String)]>, resets: &[(String, String)]) {
        let Some(known) = known else {
            return;
        };
        for reset in resets.iter().filter(|reset| !known.contains(reset)) {
            match reset.0.split_once(' ') {
                // Forgotten when it was done, and counted anew since.
                Some((gateway, _)) if gateway == self.terms.gateway => (),
                Some((_, word)) => {
                    if let Some(name) = Name::of_word(word) {
                        self.own.forget(name);
                    }
                }
                None => (),
            }
        }
    }

    /// Empties counters in the store, here, and at the next beat of every other gateway.
    pub(super) async fn reset_for_all(&self, plan: &Plan, now: Moment) -> Result<(), StoreError> {
        if self.is_any_open() {
            return Err(StoreError::Unavailable);
        }
        let mut plan = plan.clone();
        let store_us = self.part(&plan).time.expected_us(now);
        shift_days(&mut plan, store_us);
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
                .arg(name::resets_key(&self.terms.prefix));
            for name in &names {
                announce.arg(format!("{} {}", self.terms.gateway, name.to_word()));
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
        if self.is_any_open() {
            return Err(StoreError::Unavailable);
        }
        let gateways = self.peers.gateways();
        let asked = async {
            let mut connection = self.terms.connector.connect().await?;
            let mut news = News::new();
            for gateway in &*gateways {
                let mut get = redis::cmd("GET");
                get.arg(name::news_key(&self.terms.prefix, gateway));
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
