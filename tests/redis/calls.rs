//! Calls to a store without a gateway around it.

use std::time::Duration;

use floodgate::limit::{
    Charge, CounterKey, Decision, LimitId, Moment, OnStoreFailure, Plan, Scope, Span,
};
use floodgate::store::redis::connect::{Connector, RedisOptions};
use floodgate::store::redis::{RedisStore, TimeSource};

pub(crate) const DAY_US: u64 = 86_400_000_000;
/// A quarter of a minute before a midnight.
pub(crate) const START_US: u64 = 20_000 * DAY_US - 15_000_000;

/// A store of a gateway at this URL.
pub(crate) fn store(url: &str, prefix: &str, gateway: &str, time: TimeSource) -> RedisStore {
    store_with(url, prefix, gateway, time, false)
}

/// The same, with leases if wanted.
pub(crate) fn store_with(
    url: &str,
    prefix: &str,
    gateway: &str,
    time: TimeSource,
    leases: bool,
) -> RedisStore {
    let options = RedisOptions {
        prefix: prefix.to_owned(),
        // A simulated clock stands still meanwhile.
        timeout: Duration::from_secs(60),
        slot_lease: Duration::from_secs(86_400),
        leases,
        ..RedisOptions::parse(url).unwrap()
    };
    let connector = Connector::new(options).unwrap();
    RedisStore::new(connector, gateway.to_owned(), 100_000, time)
}

/// A plan of these charges, all of one app.
pub(crate) fn plan(asks: &[Ask], now_us: u64) -> Plan {
    let mut plan = Plan {
        app: Some(CounterKey(9 << 100)),
        ..Plan::default()
    };
    plan.charges
        .extend(asks.iter().map(|ask| charge(*ask, now_us)));
    plan
}

pub(crate) fn is_admitted(decision: &Decision) -> bool {
    matches!(decision, Decision::Admit { .. })
}

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

pub(crate) fn moment(us: u64) -> Moment {
    Moment {
        mono_us: us,
        unix_us: us,
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Ask {
    pub(crate) counter: u8,
    pub(crate) quota: u32,
    pub(crate) cost: u32,
    pub(crate) report: bool,
}

pub(crate) fn charge(ask: Ask, now_us: u64) -> Charge {
    let key = CounterKey(u128::from(ask.counter) + (7 << 100));
    let span = match ask.counter % 4 {
        0 => Span::Sliding {
            window_us: 1_000_000,
        },
        1 => Span::Sliding {
            window_us: 60_000_000,
        },
        2 => Span::Day {
            start_us: now_us - now_us % DAY_US,
            end_us: now_us - now_us % DAY_US + DAY_US,
        },
        _ => Span::Running,
    };
    Charge {
        limit: LimitId(0),
        key,
        overflow: CounterKey(1),
        quota: ask.quota,
        cost: if span == Span::Running {
            ask.cost.min(1)
        } else {
            ask.cost
        },
        span,
        scope: Scope::App,
        report: ask.report,
        known: false,
        taken: None,
        shared: false,
        on_store_failure: OnStoreFailure::Local,
    }
}

/// Admitted units of a trace, each with the time before it was asked and after it was answered:
/// the store took them somewhere between.
pub(crate) fn most_in_a_window(admitted: &[(u64, u64, u32)], window_us: u64) -> u32 {
    admitted
        .iter()
        .map(|(first, ..)| {
            // Certainly within one window: asked after `first`, answered before its end.
            admitted
                .iter()
                .filter(|(asked, answered, _)| asked >= first && *answered < first + window_us)
                .map(|(.., units)| units)
                .sum()
        })
        .max()
        .unwrap_or(0)
}
