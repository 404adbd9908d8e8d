//! What happens to Redis, to the way there, and to the upstream's connections.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use floodgate::clock::Clock;
use parking_lot::Mutex;

use crate::Run;
use crate::dice::Dice;
use crate::proxy::Proxy;
use crate::server::Server;

/// How long an outage may have its effects after its end: the gateways have to find that the store
/// is back, and to tell it what they have let in.
const AFTER: Duration = Duration::from_secs(6);

/// What a gateway with a time-out of 200 ms may take for an outage, if the machine stands still.
const STILL_US: u64 = 150_000;

/// When the machine stood still, µs: as long as this lives, a thread sleeps for a moment, and looks
/// how long that was.
struct Stills {
    seen: Arc<Mutex<Vec<(u64, u64)>>>,
    is_over: Arc<AtomicBool>,
}

impl Stills {
    fn new(clock: Clock) -> Self {
        let stills = Self {
            seen: Arc::default(),
            is_over: Arc::default(),
        };
        let (seen, is_over) = (stills.seen.clone(), stills.is_over.clone());
        std::thread::spawn(move || {
            while !is_over.load(Relaxed) {
                let begun = clock.now().mono_us;
                std::thread::sleep(Duration::from_millis(10));
                let ended = clock.now().mono_us;
                if ended - begun > STILL_US {
                    seen.lock().push((begun, ended));
                }
            }
        });
        stills
    }
}

impl Drop for Stills {
    fn drop(&mut self) {
        self.is_over.store(true, Relaxed);
    }
}

pub(crate) struct Troubles {
    clock: Clock,
    stills: Stills,
    /// When the store was not in order for all, µs.
    pub(crate) outages: Vec<(u64, u64)>,
    pub(crate) counts: BTreeMap<&'static str, u32>,
}

impl Troubles {
    pub(crate) fn new(clock: Clock) -> Self {
        Self {
            clock,
            stills: Stills::new(clock),
            outages: Vec::new(),
            counts: BTreeMap::new(),
        }
    }

    /// The next one, from its beginning to its end, and a rest.
    pub(crate) fn make(
        &mut self,
        dice: &mut Dice,
        redis: &mut Server,
        stores: &[Proxy; 2],
        run: &Run,
    ) {
        let begun = self.clock.now().mono_us;
        let one = &stores[dice.below(2)];
        let what = match dice.below(10) {
            0 => {
                redis.freeze();
                std::thread::sleep(dice.ms(50, 3000));
                redis.thaw();
                "redis hangs"
            }
            1 => {
                redis.kill();
                std::thread::sleep(dice.ms(50, 2000));
                redis.restart();
                "redis dies and comes back"
            }
            2 => {
                redis.cli(&["flushall"]);
                redis.kill();
                std::thread::sleep(dice.ms(50, 1000));
                redis.restart();
                "redis dies and comes back empty"
            }
            3 => {
                redis.cli(&["flushall"]);
                "redis is flushed"
            }
            4 => {
                one.slow(dice.ms(5, 500));
                std::thread::sleep(dice.ms(200, 2000));
                one.heal();
                "one way to redis is slow"
            }
            5 => {
                for store in stores {
                    store.slow(dice.ms(5, 500));
                }
                std::thread::sleep(dice.ms(200, 2000));
                for store in stores {
                    store.heal();
                }
                "both ways to redis are slow"
            }
            6 => {
                one.cut();
                std::thread::sleep(dice.ms(50, 3000));
                one.heal();
                "one way to redis is cut"
            }
            7 => {
                one.break_all();
                "connections to redis break"
            }
            _ => {
                run.close_all();
                *self
                    .counts
                    .entry("connections to the upstreams break")
                    .or_default() += 1;
                std::thread::sleep(dice.ms(200, 1500));
                return;
            }
        };
        *self.counts.entry(what).or_default() += 1;
        self.outages
            .push((begun, self.clock.now().mono_us + after_us()));
        // Now and then long enough for a time without any.
        let rest = match dice.one_in(4) {
            true => dice.ms(8_000, 20_000),
            false => dice.ms(200, 3_000),
        };
        std::thread::sleep(rest);
    }

    /// Whether the store was in order all this time.
    pub(crate) fn is_calm(&self, from_us: u64, to_us: u64) -> bool {
        let is_apart = |begun: u64, ended: u64| ended < from_us || to_us < begun;
        let mut outages = self.outages.iter();
        let stills = self.stills.seen.lock();
        outages.all(|(begun, ended)| is_apart(*begun, *ended))
            && stills
                .iter()
                .all(|(begun, ended)| is_apart(*begun, *ended + after_us()))
    }

    /// How often the machine stood still.
    pub(crate) fn stills(&self) -> usize {
        self.stills.seen.lock().len()
    }
}

fn after_us() -> u64 {
    u64::try_from(AFTER.as_micros()).unwrap()
}
