//! Whose units of a total are under way: the script itself, asked by several gateways, of which
//! some are gone or seem so, beside what there is.

use floodgate::store::redis::connect::{Connection, Connector, RedisOptions};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use redis::{Value, cmd};

use crate::calls::{START_US, runtime};
use crate::server::Server;

const SCRIPT: &str = concat!(
    include_str!("../../src/store/redis/script/counters.lua"),
    include_str!("../../src/store/redis/script/slots.lua"),
    include_str!("../../src/store/redis/script/totals.lua"),
    include_str!("../../src/store/redis/script/run.lua"),
);
const START_S: u64 = START_US / 1_000_000;
const GATEWAYS: usize = 3;

/// A change of a total, as the script takes it.
#[derive(Clone, Copy, Debug)]
enum Word {
    GiveBack { units: u32, round: u32, era: u32 },
    Doubt,
    Set(u64),
    Begin,
    End { round: u32, listed: u64 },
    Read,
    Keep { units: u32, round: u32, era: u32 },
    Take { units: u32, round: u32, era: u32 },
    Gone(usize),
    Over { era: u32 },
}

/// A total, as the script tells it.
#[derive(Clone, Debug)]
struct Told {
    count: u64,
    approximate: bool,
    round: u32,
    text: String,
}

struct Store {
    connection: Connection,
    key: String,
    now_s: u64,
}

fn id(gateway: usize) -> String {
    format!("{:016x}", 0xfeed_0000_0000_0001_u64 + gateway as u64)
}

fn double(bytes: &mut Vec<u8>, number: u64) {
    bytes.extend((number as f64).to_le_bytes());
}

impl Store {
    async fn start(url: &str, key: String) -> Self {
        let connector = Connector::new(url.parse::<RedisOptions>().unwrap()).unwrap();
        Self {
            connection: connector.connect().await.unwrap(),
            key,
            now_s: START_S,
        }
    }

    async fn run(&mut self, gateway: usize, item: &[u8]) -> Vec<u8> {
        let mut command = cmd("EVAL");
        command.arg(SCRIPT).arg(1).arg(&self.key).arg("");
        command
            .arg(self.now_s * 1_000_000)
            .arg(id(gateway))
            .arg(0)
            .arg(item);
        match self.connection.send(&command).await.unwrap() {
            Value::Array(mut replies) => match replies.remove(1) {
                Value::BulkString(reply) => reply,
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    }

    /// Takes units; the round, unless there is no room.
    async fn take(&mut self, gateway: usize, era: u32, units: u32, figure: u64) -> Option<u32> {
        let mut item = vec![b'D'];
        double(&mut item, 0);
        double(&mut item, 1 << 52);
        item.extend(1_u32.to_le_bytes());
        item.extend(1_u16.to_le_bytes());
        item.extend([3, 0]);
        for number in [0, units, era] {
            item.extend(number.to_le_bytes());
        }
        double(&mut item, 0);
        double(&mut item, figure);
        let reply = self.run(gateway, &item).await;
        (reply[0] == b'A').then(|| u32::from_le_bytes(reply[5..9].try_into().unwrap()))
    }

    async fn say(&mut self, gateway: usize, word: Word) -> Told {
        let now_s = self.now_s;
        let (how, units, a, b) = match word {
            Word::GiveBack { units, round, era } => (2_u8, units, round.into(), era.into()),
            Word::Doubt => (3, 0, 0, 0),
            Word::Set(count) => (6, 0, count, now_s),
            Word::Begin => (7, 0, now_s, 0),
            Word::End { round, listed } => (8, round, listed, now_s),
            Word::Read => (9, 0, 0, 0),
            Word::Keep { units, round, era } => (10, units, round.into(), era.into()),
            Word::Take { units, round, era } => (11, units, round.into(), era.into()),
            Word::Gone(gone) => (13, 0, 0xfeed_0000, 1 + gone as u64),
            Word::Over { era } => (14, 0, era.into(), 0),
        };
        let mut item = vec![b'C'];
        item.extend(1_u16.to_le_bytes());
        item.push(how);
        item.extend(units.to_le_bytes());
        double(&mut item, a);
        double(&mut item, b);
        let reply = self.run(gateway, &item).await;
        let text = String::from_utf8(reply).unwrap().split_off(1);
        let words: Vec<&str> = text.split(' ').collect();
        Told {
            count: words[0].parse().unwrap(),
            approximate: words[2] == "1",
            round: words[3].parse().unwrap(),
            text: text.clone(),
        }
    }

    async fn put(&mut self, text: &str) {
        let put = self
            .connection
            .send(cmd("SET").arg(&self.key).arg(text))
            .await;
        put.unwrap();
    }
}

#[derive(Clone, Copy, Debug)]
struct Call {
    era: u32,
    round: u32,
    units: u32,
    /// What the backend has made of it, once it has.
    made: Option<u32>,
}

#[derive(Clone, Debug, Default)]
struct Gateway {
    is_dead: bool,
    era: u32,
    /// Whether units of the era are taken without the store.
    is_alone: bool,
    calls: Vec<Call>,
    /// The round that it last knew of.
    round: u32,
    doubted: Vec<u32>,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Take {
        gateway: usize,
        units: u32,
    },
    /// The script has run or not, and nobody knows: the call goes on without.
    LoseTake {
        gateway: usize,
        units: u32,
        ran: bool,
    },
    /// Without the store, which is told of it; the word is lost perhaps, and said again, or on its
    /// way for long.
    TakeAlone {
        gateway: usize,
        units: u32,
        lost: Option<bool>,
        late: bool,
    },
    /// A word that was on its way for long comes.
    Deliver(usize),
    /// The backend makes so many hundredths of what a call asks.
    Make {
        gateway: usize,
        nth: usize,
        part: u32,
    },
    /// The call's answer comes; its words are heard by the store, or lost before they run, or after,
    /// or on their way for long.
    Answer {
        gateway: usize,
        nth: usize,
        lost: Option<bool>,
        late: bool,
    },
    /// All that was heard of an era in doubt is over.
    Over {
        gateway: usize,
    },
    /// It seems to be gone.
    Gone {
        gateway: usize,
    },
    Kill {
        gateway: usize,
    },
    /// Another comes in the place of a dead one.
    Import {
        by: usize,
    },
    Begin {
        by: usize,
    },
    List,
    End {
        by: usize,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let gateway = 0..GATEWAYS;
    let units = 1_u32..9;
    let step = prop_oneof![
        6 => (gateway.clone(), units.clone()).prop_map(|(gateway, units)| Step::Take { gateway, units }),
        1 => (gateway.clone(), units, prop::bool::ANY)
            .prop_map(|(gateway, units, ran)| Step::LoseTake { gateway, units, ran }),
        2 => (gateway.clone(), 1_u32..9, prop::option::of(prop::bool::ANY))
            .prop_map(|(gateway, units, lost)| Step::TakeAlone { gateway, units, lost, late: false }),
        3 => (gateway.clone(), 1_u32..9)
            .prop_map(|(gateway, units)| Step::TakeAlone { gateway, units, lost: None, late: true }),
        4 => (0_usize..16).prop_map(Step::Deliver),
        5 => (gateway.clone(), 0_usize..8, 0_u32..101)
            .prop_map(|(gateway, nth, part)| Step::Make { gateway, nth, part }),
        5 => (gateway.clone(), 0_usize..8)
            .prop_map(|(gateway, nth)| Step::Answer { gateway, nth, lost: None, late: false }),
        2 => (gateway.clone(), 0_usize..8)
            .prop_map(|(gateway, nth)| Step::Answer { gateway, nth, lost: None, late: true }),
        1 => (gateway.clone(), 0_usize..8, prop::bool::ANY)
            .prop_map(|(gateway, nth, ran)| Step::Answer { gateway, nth, lost: Some(ran), late: false }),
        2 => gateway.clone().prop_map(|gateway| Step::Over { gateway }),
        2 => gateway.clone().prop_map(|gateway| Step::Gone { gateway }),
        1 => gateway.clone().prop_map(|gateway| Step::Kill { gateway }),
        2 => gateway.clone().prop_map(|by| Step::Import { by }),
        2 => gateway.clone().prop_map(|by| Step::Begin { by }),
        2 => Just(Step::List),
        2 => gateway.prop_map(|by| Step::End { by }),
    ];
    prop::collection::vec(step, 1..120)
}

struct World {
    store: Store,
    gateways: Vec<Gateway>,
    there: u64,
    /// Of gateways that were killed: what the backend may yet make.
    orphans: Vec<u32>,
    /// Words on their way.
    late: Vec<(usize, Word)>,
    /// The round of a listing, and what it has read.
    listing: Option<(u32, Option<u64>)>,
    kills: bool,
}

impl World {
    async fn doubt(&mut self, gateway: usize, era: u32) {
        let one = &mut self.gateways[gateway];
        one.era += 2 * u32::from(one.era == era);
        one.doubted.push(era);
        self.store.say(gateway, Word::Doubt).await;
    }

    async fn make(&mut self, gateway: usize, nth: usize, part: u32) {
        let calls = &mut self.gateways[gateway].calls;
        let count = calls.len().max(1);
        if let Some(call) = calls.get_mut(nth % count)
            && call.made.is_none()
        {
            let made = call.units * part / 100;
            call.made = Some(made);
            self.there += u64::from(made);
        }
    }

    /// Those without the store have an era of their own: an odd one.
    fn era(&mut self, gateway: usize, is_alone: bool) -> u32 {
        let one = &mut self.gateways[gateway];
        one.era += u32::from(one.is_alone != is_alone);
        one.is_alone = is_alone;
        one.era
    }

    async fn tell(&mut self, gateway: usize, word: Word, late: bool) {
        match late {
            true => self.late.push((gateway, word)),
            false => drop(self.store.say(gateway, word).await),
        }
    }

    async fn deliver(&mut self, nth: usize) {
        if !self.late.is_empty() {
            let (gateway, word) = self.late.swap_remove(nth % self.late.len());
            self.store.say(gateway, word).await;
        }
    }

    async fn answer(&mut self, gateway: usize, nth: usize, lost: Option<bool>, late: bool) {
        self.make(gateway, nth, 50).await;
        let calls = &mut self.gateways[gateway].calls;
        if calls.is_empty() {
            return;
        }
        let call = calls.swap_remove(nth % calls.len());
        let Call { era, round, .. } = call;
        let units = call.made.unwrap();
        if lost != Some(false) {
            let back = call.units - units;
            self.tell(gateway, Word::Keep { units, round, era }, late)
                .await;
            let units = back;
            self.tell(gateway, Word::GiveBack { units, round, era }, late)
                .await;
        }
        if lost.is_some() {
            self.doubt(gateway, era).await;
        }
    }

    async fn over(&mut self, gateway: usize) {
        let one = &mut self.gateways[gateway];
        let calls = one.calls.clone();
        let late = &self.late;
        let is_of = |word: &Word, is: u32| match word {
            Word::Take { era, .. } | Word::Keep { era, .. } | Word::GiveBack { era, .. } => {
                *era == is
            }
            _ => false,
        };
        let is_late = |is: u32| {
            late.iter()
                .any(|(of, word)| *of == gateway && is_of(word, is))
        };
        let is_over = |era: &mut u32| calls.iter().all(|call| call.era != *era) && !is_late(*era);
        let over: Vec<u32> = one.doubted.extract_if(.., is_over).collect();
        for era in over {
            self.store.say(gateway, Word::Over { era }).await;
        }
    }

    async fn take_alone(&mut self, gateway: usize, units: u32, lost: Option<bool>, late: bool) {
        let era = self.era(gateway, true);
        let round = self.gateways[gateway].round;
        let mut call = Call {
            era,
            round,
            units,
            made: None,
        };
        if lost != Some(false) {
            self.tell(gateway, Word::Take { units, round, era }, late)
                .await;
        }
        if lost.is_some() {
            self.doubt(gateway, era).await;
            // What else was taken in it is told again with it.
            let one = &mut self.gateways[gateway];
            (call.era, one.era) = (one.era, one.era + 2);
            let era = call.era;
            self.store
                .say(gateway, Word::Take { units, round, era })
                .await;
        }
        self.gateways[gateway].calls.push(call);
    }

    async fn step(&mut self, step: Step) {
        match step {
            Step::Take { gateway, units } => {
                let era = self.era(gateway, false);
                if let Some(round) = self.store.take(gateway, era, units, 40).await {
                    let call = Call {
                        era,
                        round,
                        units,
                        made: None,
                    };
                    self.gateways[gateway].calls.push(call);
                    self.gateways[gateway].round = round;
                }
            }
            Step::TakeAlone {
                gateway,
                units,
                lost,
                late,
            } => self.take_alone(gateway, units, lost, late).await,
            Step::Deliver(nth) => self.deliver(nth).await,
            Step::LoseTake {
                gateway,
                units,
                ran,
            } => {
                let era = self.era(gateway, false);
                if ran {
                    self.store.take(gateway, era, units, 40).await;
                }
                self.doubt(gateway, era).await;
            }
            Step::Make { gateway, nth, part } => self.make(gateway, nth, part).await,
            Step::Answer {
                gateway,
                nth,
                lost,
                late,
            } => self.answer(gateway, nth, lost, late).await,
            Step::Over { gateway } => self.over(gateway).await,
            Step::Gone { gateway } => {
                let by = (gateway + 1) % GATEWAYS;
                self.store.say(by, Word::Gone(gateway)).await;
            }
            Step::Kill { gateway } => {
                let dead = &mut self.gateways[gateway];
                dead.is_dead = true;
                let calls = std::mem::take(&mut dead.calls).into_iter();
                self.kills |= calls.len() > 0 || !dead.doubted.is_empty();
                let left = calls.filter(|call| call.made.is_none());
                self.orphans.extend(left.map(|call| call.units));
            }
            Step::Import { by } => {
                self.store.say(by, Word::Set(self.there)).await;
                self.listing = None;
            }
            Step::Begin { by } => {
                let begun = self.store.say(by, Word::Begin).await;
                self.listing = Some((begun.round, None));
            }
            Step::List => {
                if let Some((_, read @ None)) = &mut self.listing {
                    *read = Some(self.there);
                }
            }
            Step::End { by } => {
                if let Some((round, Some(listed))) = self.listing.take() {
                    self.store.say(by, Word::End { round, listed }).await;
                }
            }
        }
    }

    fn speaks(&self, step: Step) -> bool {
        match step {
            Step::Take { gateway, .. }
            | Step::LoseTake { gateway, .. }
            | Step::TakeAlone { gateway, .. }
            | Step::Make { gateway, .. }
            | Step::Answer { gateway, .. }
            | Step::Over { gateway }
            | Step::Kill { gateway } => !self.gateways[gateway].is_dead,
            Step::Import { .. } | Step::Begin { .. } | Step::End { .. } => true,
            Step::Gone { .. } | Step::List | Step::Deliver(_) => true,
        }
    }

    /// Units of which it has not been said that they were taken.
    fn untold(&self) -> u64 {
        let units = |(_, word): &(usize, Word)| match word {
            Word::Take { units, .. } => u64::from(*units),
            _ => 0,
        };
        self.late.iter().map(units).sum()
    }

    /// What there is, and what calls may make yet.
    fn may_be(&self) -> u64 {
        let calls = self.gateways.iter().flat_map(|gateway| &gateway.calls);
        let open = calls.filter(|call| call.made.is_none());
        let open = open
            .map(|call| call.units)
            .chain(self.orphans.iter().copied());
        self.there + open.map(u64::from).sum::<u64>()
    }
}

#[test]
fn a_total_that_is_shown_as_exact_is_never_too_low_whoever_seems_gone() {
    let server = Server::start();
    let runtime = runtime();
    let traces = std::cell::Cell::new(0);
    let seemed_gone = std::cell::Cell::new(false);
    let mut runner = TestRunner::new(Config {
        cases: 256,
        failure_persistence: None,
        ..Config::default()
    });
    let ran = runner.run(&steps(), |steps| {
        traces.set(traces.get() + 1);
        runtime.block_on(async {
            let mut world = World {
                store: Store::start(&server.url(), format!("t{}", traces.get())).await,
                gateways: vec![Gateway::default(); GATEWAYS],
                there: 0,
                orphans: Vec::new(),
                late: Vec::new(),
                listing: None,
                kills: false,
            };
            world.store.say(0, Word::Set(0)).await;
            seemed_gone.set(false);
            for step in steps {
                if matches!(step, Step::Gone { .. }) {
                    seemed_gone.set(true);
                }
                if !world.speaks(step) {
                    continue;
                }
                world.step(step).await;
                let told = world.store.say(0, Word::Read).await;
                prop_assert!(
                    told.approximate || told.count + world.untold() >= world.may_be(),
                    "{step:?}: {told:?}, {}",
                    world.may_be()
                );
            }
            for gateway in 0..GATEWAYS {
                while !world.gateways[gateway].calls.is_empty() {
                    world.answer(gateway, 0, None, false).await;
                }
            }
            while !world.late.is_empty() {
                world.deliver(0).await;
            }
            let told = world.store.say(0, Word::Read).await;
            let made = world.there
                + world
                    .orphans
                    .iter()
                    .map(|units| u64::from(*units))
                    .sum::<u64>();
            let is_right = match told.approximate {
                true => told.count >= world.there || seemed_gone.get(),
                // Of one that is dead nobody says what came back.
                false => told.count == made || world.kills && told.count > made,
            };
            prop_assert!(is_right, "{told:?}, {made}");
            for gateway in 0..GATEWAYS {
                match world.gateways[gateway].is_dead {
                    false => world.over(gateway).await,
                    true => drop(world.store.say(0, Word::Gone(gateway)).await),
                }
            }
            world.there += world.orphans.drain(..).map(u64::from).sum::<u64>();
            let told = world.store.say(0, Word::Set(world.there)).await;
            prop_assert_eq!(told.count, world.there, "{:?}", told);
            prop_assert!(world.kills || !told.approximate, "{:?}", told);
            // No call is under way for so long.
            world.store.now_s += 3601;
            let told = world.store.say(0, Word::Set(world.there)).await;
            prop_assert_eq!(
                (told.count, told.approximate),
                (world.there, false),
                "{:?}",
                told
            );
            prop_assert!(!told.text.contains('@'), "{:?}", told);
            Ok(())
        })
    });
    ran.unwrap();
}

#[test]
fn who_only_seemed_gone_closes_nothing_that_it_or_others_have_taken_since() {
    let server = Server::start();
    runtime().block_on(async {
        let mut store = Store::start(&server.url(), "t".to_owned()).await;
        let figure = 120;
        store.say(0, Word::Set(100)).await;
        let old = store.take(0, 0, 10, figure).await.unwrap();
        // Two imports: the newer units are in no round that this one knows of, and old too.
        for _ in 0..2 {
            store.say(1, Word::Gone(0)).await;
            let told = store.say(1, Word::Set(100)).await;
            assert_eq!((told.count, told.approximate), (100, true));
        }
        let new = store.take(0, 0, 5, figure).await.unwrap();
        let other = store.take(1, 0, 5, figure).await.unwrap();
        let told = store.say(1, Word::Set(100)).await;
        assert_eq!((told.count, told.approximate), (110, true));
        let keep = |round, units| Word::Keep {
            units,
            round,
            era: 0,
        };
        let told = store.say(0, keep(old, 6)).await;
        assert_eq!(
            (told.count, told.approximate),
            (116, true),
            "they were there after all"
        );
        let back = Word::GiveBack {
            units: 4,
            round: old,
            era: 0,
        };
        assert_eq!(store.say(0, back).await.count, 116, "they were in no count");
        let told = store.say(1, Word::Set(106)).await;
        assert_eq!(
            told.count, 116,
            "both have theirs under way still: {told:?}"
        );
        assert_eq!(store.take(1, 0, 5, figure).await, None);
        assert_eq!(store.say(0, keep(new, 5)).await.count, 116);
        let back = Word::GiveBack {
            units: 5,
            round: other,
            era: 0,
        };
        assert_eq!(store.say(1, back).await.count, 111);
        let told = store.say(1, Word::Set(111)).await;
        assert_eq!((told.count, told.approximate), (111, false), "{told:?}");
    });
}

#[test]
fn a_word_of_a_gateway_says_that_it_is_not_gone() {
    let server = Server::start();
    runtime().block_on(async {
        let mut store = Store::start(&server.url(), "t".to_owned()).await;
        store.say(0, Word::Set(10)).await;
        let round = store.take(0, 0, 2, 40).await.unwrap();
        store.take(0, 1, 3, 40).await.unwrap();
        assert!(store.say(1, Word::Gone(0)).await.approximate);
        let told = store
            .say(
                0,
                Word::GiveBack {
                    units: 1,
                    round,
                    era: 0,
                },
            )
            .await;
        assert_eq!(told.count, 14);
        let told = store.say(1, Word::Set(10)).await;
        assert_eq!(
            (told.count, told.approximate),
            (14, true),
            "on top: {told:?}"
        );
    });
}

#[test]
fn what_is_under_way_and_has_no_entry_is_nobodys() {
    let server = Server::start();
    runtime().block_on(async {
        let mut store = Store::start(&server.url(), "t".to_owned()).await;
        let text = format!("19 100 0 7 7 0 0 5 4 {}", START_S - 9);
        store.put(&text).await;
        let told = store.say(1, Word::Read).await;
        assert!(told.text.starts_with(&text), "{told:?}");
        let told = store.say(1, Word::Set(10)).await;
        assert_eq!((told.count, told.approximate), (19, true), "{told:?}");
        // Of a total that no version has written so, nothing is known.
        store.put("19 100 0 7 7 0 0 5 4 @x:1").await;
        assert_eq!(store.say(1, Word::Read).await.count, 0);
    });
}

#[test]
fn words_of_what_was_taken_without_the_store_come_in_any_order() {
    let server = Server::start();
    runtime().block_on(async {
        let mut store = Store::start(&server.url(), "t".to_owned()).await;
        let round = store.say(0, Word::Set(100)).await.round;
        let (era, units) = (3, 5);
        let keep = Word::Keep {
            units: 4,
            round,
            era,
        };
        let back = Word::GiveBack {
            units: 1,
            round,
            era,
        };
        let take = Word::Take { units, round, era };
        for words in [[keep, back, take], [back, take, keep], [keep, take, back]] {
            let before = store.say(0, Word::Read).await.count;
            for word in words {
                store.say(0, word).await;
            }
            let told = store.say(0, Word::Read).await;
            assert_eq!((told.count, told.approximate), (before + 4, false));
            assert!(!told.text.contains('@'), "{told:?}");
        }
        // An import between, and one after.
        store.say(0, keep).await;
        let told = store.say(1, Word::Set(200)).await;
        assert_eq!((told.count, told.approximate), (200, false));
        assert!(told.text.contains('@'), "it is owed: {told:?}");
        store.say(0, take).await;
        assert_eq!(store.say(0, back).await.count, 200);
        let told = store.say(1, Word::Set(200)).await;
        assert_eq!((told.count, told.text.contains('@')), (200, false));
        // What is never heard of is forgotten.
        store.say(0, keep).await;
        for _ in 0..2 {
            store.say(1, Word::Set(200)).await;
            store.now_s += 3601;
        }
        let told = store.say(1, Word::Set(200)).await;
        assert!(!told.text.contains('@'), "{told:?}");
    });
}
