//! The way to Redis: what waits is gathered, and goes as one command.

mod flight;
mod unsent;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::OptionFuture;
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex;
use redis::{RedisError, RedisResult};
use tokio::sync::{mpsc, oneshot};

pub(super) use self::flight::run;
use self::flight::{Flight, again, batches, fly, land};
pub(super) use self::unsent::Kept;
use self::unsent::Unsent;
use super::batch::Place;
use super::connect::{Cause, Connection, Connector};
use super::fault::Done;
use super::health::Health;
use super::name::Name;
use super::reply::Answer;
use super::script::Scripts;
use super::time::StoreTime;
use super::under_way::UnderWay;
use super::wire::Item;

/// Items that go in one command.
const BATCH: usize = 24;
/// The same where hundreds wait, who would else wait for longer than the store may take, and be
/// decided without it. Redis does nothing else meanwhile: some milliseconds, if no two are alike.
const MAX_BATCH: usize = 256;
/// Commands that are on their way at the same time: while they are, more gathers for the next.
/// In larger ones an item costs Redis less, but all callers of a thread wait at once, and the
/// thread for them; in more and smaller ones it costs both more: `benches/load/store`.
const IN_FLIGHT: usize = 2;
/// The same in a cluster, where each owner's counters take a command of their own, and a node
/// that hangs must not hold up the others.
const IN_FLIGHT_CLUSTER: usize = 512;
/// Items that may wait. More are refused at once.
const WAITING: usize = 4096;
/// Between two attempts to connect.
const PAUSE: Duration = Duration::from_millis(100);

/// An item on its way.
struct Ticket {
    /// Shared with who waits for it: it is large, and goes from hand to hand.
    item: Arc<Item>,
    /// The part of the store that its counters are in.
    part: usize,
    /// The time for a simulated store clock.
    at_us: Option<u64>,
    /// `None` when nobody waits. Dropped unanswered when the store could not be asked.
    answer: Option<oneshot::Sender<Answer>>,
    /// Somebody waited for the answer, and does no more.
    is_unheard: bool,
    /// Where the answer is, once it has been sent.
    place: Place,
    /// Until it is known what became of it.
    moving: Option<Moving>,
}

/// Words of totals that are on their way are counted: a gateway that ends waits for them.
struct Moving(Arc<AtomicUsize>);

impl Moving {
    fn of(item: &Item, count: &Arc<AtomicUsize>) -> Option<Self> {
        item.moves_totals().then(|| {
            count.fetch_add(1, Ordering::Relaxed);
            Self(count.clone())
        })
    }
}

impl Drop for Moving {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Ticket {
    /// For an item that nobody waits for, in this part of the store, at this time.
    fn told(item: Arc<Item>, place: (usize, Option<u64>), moving: &Arc<AtomicUsize>) -> Self {
        let (part, at_us) = place;
        Self {
            moving: Moving::of(&item, moving),
            item,
            part,
            at_us,
            answer: None,
            is_unheard: false,
            place: Place::default(),
        }
    }

    /// Whether anybody is to do with it still: who has given up waiting has decided without it.
    fn is_wanted(&self) -> bool {
        let waiting = self.answer.as_ref();
        waiting.is_none_or(|waiting| !waiting.is_closed())
    }

    /// The same, after nobody waits for it any more.
    fn unheard(&self) -> Self {
        Self {
            item: self.item.clone(),
            part: self.part,
            at_us: self.at_us,
            answer: None,
            is_unheard: self.answer.is_some(),
            place: self.place,
            moving: self
                .moving
                .as_ref()
                .and_then(|moving| Moving::of(&self.item, &moving.0)),
        }
    }
}

/// What the links of one store share.
#[derive(Debug)]
pub(super) struct Terms {
    pub(super) connector: Connector,
    pub(super) scripts: Scripts,
    /// The ID of this gateway.
    pub(super) gateway: String,
    pub(super) prefix: String,
    /// The longest that a command may take.
    pub(super) timeout: Duration,
    /// What is known of each part: of the one server, or of each range of a cluster's slots.
    pub(super) parts: Box<[Part]>,
    pub(super) is_cluster: bool,
    /// How often a new connection to a cluster found who has the slots of a node that hung.
    pub(super) topology: AtomicU64,
    pub(super) round_trips: AtomicU64,
    pub(super) items: AtomicU64,
    /// Words of totals that are on their way.
    pub(super) moving: Arc<AtomicUsize>,
    /// What nobody waits for and could not be sent: for when the store is back.
    pub(super) unsent: Mutex<Unsent>,
    /// What this gateway has under way of totals.
    pub(super) under_way: UnderWay,
}

/// What is known of a part of the store.
#[derive(Debug)]
pub(super) struct Part {
    /// Its place among all.
    pub(super) index: usize,
    /// The tag of keys that speak for it.
    pub(super) tag: String,
    pub(super) health: Health,
    pub(super) time: StoreTime,
}

impl Terms {
    /// The part that a counter belongs to.
    pub(super) fn part(&self, name: Option<Name>) -> &Part {
        self.part_at(name.map_or(0, |name| name.part(self.parts.len())))
    }

    pub(super) fn part_at(&self, index: usize) -> &Part {
        // There is always one.
        self.parts.get(index).unwrap_or(&self.parts[0])
    }

    fn part_of(&self, tickets: &[Ticket]) -> &Part {
        self.part_at(tickets.first().map_or(0, |ticket| ticket.part))
    }

    /// None of the store can be used. Said once.
    pub(super) fn fail(&self, cause: &Cause) {
        let is_news = |part: &&Part| part.health.note_failure(cause);
        if self.parts.iter().filter(is_news).count() > 0 {
            self.parts[0].health.say(cause);
        }
    }

    /// What an error tells.
    pub(super) fn cause(&self, error: &RedisError) -> Cause {
        Cause::of(self.connector.options(), error)
    }

    /// Drops tickets without an answer: those who wait know at once. What nobody waits for is kept
    /// if nothing was done, and else what moves totals is in doubt: no word of those is just lost.
    fn unanswered(&self, tickets: impl IntoIterator<Item = Ticket>, done: Done) {
        for ticket in tickets {
            match done {
                Done::Nothing if ticket.answer.is_none() && !ticket.is_unheard => {
                    self.keep(Arc::unwrap_or_clone(ticket.item));
                }
                Done::Nothing => (),
                Done::Unknown => self.doubt(&ticket.item),
            }
        }
    }

    /// Whether anything is kept.
    pub(super) fn is_unsent(&self) -> bool {
        !self.unsent.lock().is_empty()
    }

    /// Times that the breaker opened, of any part.
    pub(super) fn times_opened(&self) -> u64 {
        self.parts
            .iter()
            .map(|part| part.health.times_opened())
            .sum()
    }

    /// Keeps an item for later. What would be too much is in doubt then.
    pub(super) fn keep(&self, item: Item) {
        let lost = self.unsent.lock().keep(item);
        if let Some(lost) = lost {
            self.lost(&lost);
        }
    }

    /// Nobody knows what became of an item: the totals that it moves are marked, and what was
    /// taken without the store is told again.
    pub(super) fn doubt(&self, item: &Item) {
        self.lost(item);
        let again = item
            .again(|name, era, round, units| self.under_way.take_again(name, era, round, units));
        for item in item.doubt().into_iter().chain(again) {
            self.keep(item);
        }
    }

    fn lost(&self, item: &Item) {
        for (name, era) in item.eras() {
            self.under_way.doubt(name, era);
        }
    }
}

/// Where items are handed in.
#[derive(Clone, Debug)]
pub(super) struct Link {
    tickets: mpsc::Sender<Ticket>,
    moving: Arc<AtomicUsize>,
}

impl Link {
    /// A link that lives on the current runtime until it is dropped.
    pub(super) fn start(terms: Arc<Terms>) -> Self {
        let (tickets, waiting) = mpsc::channel(WAITING);
        let moving = terms.moving.clone();
        tokio::spawn(pump(terms, waiting));
        Self { tickets, moving }
    }

    /// Whether the runtime it lived on has ended.
    pub(super) fn is_over(&self) -> bool {
        self.tickets.is_closed()
    }

    /// Hands in an item whose answer is waited for. `None` when too many wait already.
    pub(super) fn ask(
        &self,
        item: Arc<Item>,
        part: &Part,
        at_us: Option<u64>,
    ) -> Option<oneshot::Receiver<Answer>> {
        let (answer, receiver) = oneshot::channel();
        self.hand_in(item, part, at_us, Some(answer))
            .then_some(receiver)
    }

    /// Hands in an item that nobody waits for. Whether there was room for it.
    pub(super) fn tell(&self, item: Arc<Item>, part: &Part, at_us: Option<u64>) -> bool {
        self.hand_in(item, part, at_us, None)
    }

    fn hand_in(
        &self,
        item: Arc<Item>,
        part: &Part,
        at_us: Option<u64>,
        answer: Option<oneshot::Sender<Answer>>,
    ) -> bool {
        let told = Ticket::told(item, (part.index, at_us), &self.moving);
        let ticket = Ticket { answer, ..told };
        self.tickets.try_send(ticket).is_ok()
    }
}

type Connecting = Pin<Box<dyn Future<Output = RedisResult<Connection>> + Send>>;

/// Sends what has gathered whenever the way is free.
async fn pump(terms: Arc<Terms>, mut waiting: mpsc::Receiver<Ticket>) {
    let mut connection: Option<Connection> = None;
    let mut connected_after = 0;
    let mut flights: FuturesUnordered<Flight> = FuturesUnordered::new();
    let mut gathered = Vec::with_capacity(MAX_BATCH);
    let mut topology = terms.topology.load(Ordering::Relaxed);
    // A connection that is being made while the present one is used.
    let mut next: OptionFuture<Connecting> = None.into();
    let in_flight = match terms.is_cluster {
        true => IN_FLIGHT_CLUSTER,
        false => IN_FLIGHT,
    };
    loop {
        tokio::select! {
            biased;
            Some(landing) = flights.next() => {
                match land(landing, &terms) {
                    Some(next) => flights.extend(again(next, &terms, connection.as_ref())),
                    // The library keeps the connections to the other nodes, and mends this one.
                    None if terms.is_cluster => (),
                    // Whatever is still on its way there must not be waited for.
                    None => connection = None,
                }
            }
            Some(renewed) = &mut next => {
                next = None.into();
                connection = renewed.ok().or(connection);
            }
            count = waiting.recv_many(&mut gathered, BATCH), if flights.len() < in_flight => {
                if count == 0 {
                    break;
                }
                if waiting.len() < MAX_BATCH {
                    // The calls that have arrived meanwhile have not asked yet.
                    tokio::task::yield_now().await;
                }
                let most = usize::midpoint(gathered.len(), waiting.len()).clamp(BATCH, MAX_BATCH);
                while gathered.len() < most && let Ok(ticket) = waiting.try_recv() {
                    gathered.push(ticket);
                }
                gathered.retain(Ticket::is_wanted);
                if gathered.is_empty() {
                    continue;
                }
                // A store that was gone meanwhile may be another one now, or know us no more.
                let failures = terms.times_opened();
                if failures != connected_after && !terms.is_cluster {
                    connection = None;
                }
                connected_after = failures;
                let known = terms.topology.load(Ordering::Relaxed);
                if known != topology {
                    topology = known;
                    let terms = terms.clone();
                    let connecting: Connecting = Box::pin(async move { terms.connector.connect().await });
                    next = Some(connecting).into();
                }
                let link = match connection.clone() {
                    Some(link) => link,
                    None => match terms.connector.connect().await {
                        Ok(link) => connection.insert(link).clone(),
                        Err(error) => {
                            terms.fail(&terms.cause(&error));
                            terms.unanswered(gathered.drain(..), Done::Nothing);
                            tokio::time::sleep(PAUSE).await;
                            while let Ok(ticket) = waiting.try_recv() {
                                gathered.push(ticket);
                            }
                            terms.unanswered(gathered.drain(..), Done::Nothing);
                            continue;
                        }
                    },
                };
                for tickets in batches(&mut gathered, terms.is_cluster) {
                    flights.push(Box::pin(fly(terms.clone(), link.clone(), tickets)));
                }
            }
        }
    }
    // What was handed in before the end still goes: slots and units are given back.
    while let Some(landing) = flights.next().await {
        let next = land(landing, &terms).unwrap_or_default();
        flights.extend(again(next, &terms, connection.as_ref()));
    }
}
