//! The way to Redis: what waits is gathered, and goes as one command.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex;
use redis::{ErrorKind, RedisResult, ServerErrorKind, Value};
use tokio::sync::{mpsc, oneshot};

use super::connect::{Connection, Connector};
use super::health::Health;
use super::name::Name;
use super::reply::{Answer, Verdict};
use super::time::StoreTime;
use super::wire::{Batch, Item};

const SCRIPT: &str = include_str!("counters.lua");
/// Items that go in one command: Redis does nothing else meanwhile.
const BATCH: usize = 16;
/// Commands that are on their way at the same time: while they are, more gathers for the next.
/// With fewer and larger ones an item costs Redis less, but all callers of a thread wait at once,
/// and the thread for them: `benches/load/store`.
const IN_FLIGHT: usize = 4;
/// The same in a cluster, where each owner's counters take a command of their own, and a node
/// that hangs must not hold up the others.
const IN_FLIGHT_CLUSTER: usize = 512;
/// Items that may wait. More are refused at once.
const WAITING: usize = 4096;
/// Between two attempts to connect.
const PAUSE: Duration = Duration::from_millis(100);

/// An item on its way.
struct Ticket {
    item: Item,
    /// The time for a simulated store clock.
    at_us: Option<u64>,
    /// `None` when nobody waits. Dropped unanswered when the store could not be asked.
    answer: Option<oneshot::Sender<Answer>>,
}

/// What the links of one store share.
#[derive(Debug)]
pub(super) struct Terms {
    pub(super) connector: Connector,
    /// SHA-1 of the script, as `EVALSHA` takes it.
    pub(super) sha: String,
    /// The ID of this gateway.
    pub(super) gateway: String,
    pub(super) prefix: String,
    /// The longest that a command may take.
    pub(super) timeout: Duration,
    /// What is known of each part: of the one server, or of each range of a cluster's slots.
    pub(super) parts: Box<[Part]>,
    pub(super) is_cluster: bool,
    pub(super) round_trips: AtomicU64,
    pub(super) items: AtomicU64,
    /// Items that nobody waits for and that could not be sent: for when the store is back.
    pub(super) unsent: Mutex<Vec<Item>>,
}

/// What is known of a part of the store.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) health: Health,
    pub(super) time: StoreTime,
}

impl Terms {
    /// The part that a counter belongs to.
    pub(super) fn part(&self, name: Option<Name>) -> &Part {
        let index = name.map_or(0, |name| name.part(self.parts.len()));
        // There is always one.
        self.parts.get(index).unwrap_or(&self.parts[0])
    }

    /// Drops tickets unanswered: those who wait know at once.
    fn drop_unsent(&self, tickets: &mut Vec<Ticket>) {
        for ticket in tickets.drain(..) {
            if ticket.answer.is_none() {
                self.keep(ticket.item);
            }
        }
    }

    /// Whether anything is kept.
    pub(super) fn is_unsent(&self) -> bool {
        !self.unsent.lock().is_empty()
    }

    /// Takes out what was kept for the counters of a part of the store.
    pub(super) fn take_unsent(&self, concerns: impl Fn(&Name) -> bool) -> Vec<Item> {
        let mut unsent = self.unsent.lock();
        let concerned = |item: &mut Item| item.name().is_none_or(|name| concerns(&name));
        unsent.extract_if(.., concerned).collect()
    }

    /// Times that the breaker opened, of any part.
    pub(super) fn times_opened(&self) -> u64 {
        self.parts
            .iter()
            .map(|part| part.health.times_opened())
            .sum()
    }

    /// Keeps an item for later, if not too many are kept already.
    pub(super) fn keep(&self, item: Item) {
        let mut unsent = self.unsent.lock();
        if unsent.len() < WAITING {
            unsent.push(item);
        }
    }

    /// The SHA-1 of the script.
    pub(super) fn sha() -> String {
        redis::Script::new(SCRIPT).get_hash().to_owned()
    }
}

/// Where items are handed in.
#[derive(Clone, Debug)]
pub(super) struct Link {
    tickets: mpsc::Sender<Ticket>,
}

impl Link {
    /// A link that lives on the current runtime until it is dropped.
    pub(super) fn start(terms: Arc<Terms>) -> Self {
        let (tickets, waiting) = mpsc::channel(WAITING);
        tokio::spawn(pump(terms, waiting));
        Self { tickets }
    }

    /// Whether the runtime it lived on has ended.
    pub(super) fn is_over(&self) -> bool {
        self.tickets.is_closed()
    }

    /// Hands in an item whose answer is waited for. `None` when too many wait already.
    pub(super) fn ask(&self, item: Item, at_us: Option<u64>) -> Option<oneshot::Receiver<Answer>> {
        let (answer, receiver) = oneshot::channel();
        self.hand_in(item, at_us, Some(answer)).then_some(receiver)
    }

    /// Hands in an item that nobody waits for. Whether there was room for it.
    pub(super) fn tell(&self, item: Item, at_us: Option<u64>) -> bool {
        self.hand_in(item, at_us, None)
    }

    fn hand_in(
        &self,
        item: Item,
        at_us: Option<u64>,
        answer: Option<oneshot::Sender<Answer>>,
    ) -> bool {
        let ticket = Ticket {
            item,
            at_us,
            answer,
        };
        self.tickets.try_send(ticket).is_ok()
    }
}

type Flight = Pin<Box<dyn Future<Output = Landing> + Send>>;

struct Landing {
    tickets: Vec<Ticket>,
    reply: Option<Value>,
    name: Option<Name>,
}

/// Sends what has gathered whenever the way is free.
async fn pump(terms: Arc<Terms>, mut waiting: mpsc::Receiver<Ticket>) {
    let mut connection: Option<Connection> = None;
    let mut connected_after = 0;
    let mut flights: FuturesUnordered<Flight> = FuturesUnordered::new();
    let mut gathered = Vec::with_capacity(BATCH);
    let in_flight = match terms.is_cluster {
        true => IN_FLIGHT_CLUSTER,
        false => IN_FLIGHT,
    };
    loop {
        tokio::select! {
            biased;
            Some(landing) = flights.next() => {
                match land(landing, &terms) {
                    Some(undone) => flights.extend(undoing(undone, &terms, connection.as_ref())),
                    // The library keeps the connections to the other nodes, and mends this one.
                    None if terms.is_cluster => (),
                    // Whatever is still on its way there must not be waited for.
                    None => connection = None,
                }
            }
            count = waiting.recv_many(&mut gathered, BATCH), if flights.len() < in_flight => {
                if count == 0 {
                    break;
                }
                // A store that was gone meanwhile may be another one now, or know us no more.
                let failures = terms.times_opened();
                if failures != connected_after && !terms.is_cluster {
                    connection = None;
                }
                connected_after = failures;
                let link = match connection.clone() {
                    Some(link) => link,
                    None => match terms.connector.connect().await {
                        Ok(link) => connection.insert(link).clone(),
                        Err(error) => {
                            let why = error.to_string();
                            terms.parts.iter().for_each(|part| part.health.fail(&why));
                            terms.drop_unsent(&mut gathered);
                            tokio::time::sleep(PAUSE).await;
                            while let Ok(ticket) = waiting.try_recv() {
                                gathered.push(ticket);
                            }
                            terms.drop_unsent(&mut gathered);
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
        let undone = land(landing, &terms).unwrap_or_default();
        flights.extend(undoing(undone, &terms, connection.as_ref()));
    }
}

/// Sends what undoes answers that nobody heard, if there is any.
fn undoing(
    undone: Vec<Ticket>,
    terms: &Arc<Terms>,
    connection: Option<&Connection>,
) -> Option<Flight> {
    let link = connection.filter(|_| !undone.is_empty())?.clone();
    Some(Box::pin(fly(terms.clone(), link, undone)))
}

/// One batch for each time, of which there is one in production, the server's own; in a cluster
/// one for each owner of counters.
fn batches(gathered: &mut Vec<Ticket>, is_cluster: bool) -> Vec<Vec<Ticket>> {
    let tag = |ticket: &Ticket| ticket.item.name().map(|name| name.tag());
    let mut batches: Vec<Vec<Ticket>> = Vec::with_capacity(1);
    for ticket in gathered.drain(..) {
        let fits = |batch: &&mut Vec<Ticket>| {
            batch.last().is_some_and(|last| {
                last.at_us == ticket.at_us && (!is_cluster || tag(last) == tag(&ticket))
            })
        };
        let batch = match is_cluster {
            true => batches.iter_mut().find(fits),
            // In the order in which they came: a later time never goes first.
            false => batches.last_mut().filter(|batch| fits(batch)),
        };
        match batch {
            Some(batch) => batch.push(ticket),
            None => batches.push(vec![ticket]),
        }
    }
    batches
}

async fn fly(terms: Arc<Terms>, mut link: Connection, tickets: Vec<Ticket>) -> Landing {
    let name = tickets.first().and_then(|ticket| ticket.item.name());
    let health = &terms.part(name).health;
    // In a cluster the epoch's key lies elsewhere, and the watch alone looks at it.
    let epoch = health.epoch().filter(|_| !terms.is_cluster);
    let mut batch = Batch::new(epoch.is_some());
    for ticket in &tickets {
        batch.push(&ticket.item);
    }
    let at_us = tickets.first().and_then(|ticket| ticket.at_us);
    let asked = run(
        &terms,
        &mut link,
        &batch,
        at_us,
        epoch.as_deref().unwrap_or_default(),
    );
    let reply = match tokio::time::timeout(terms.timeout, asked).await {
        Ok(Ok(reply)) => {
            health.answered();
            Some(reply)
        }
        Ok(Err(error)) => {
            health.fail(&error.to_string());
            None
        }
        Err(_) => {
            health.timed_out();
            None
        }
    };
    Landing {
        tickets,
        reply,
        name,
    }
}

/// Runs the script on a batch.
pub(super) async fn run(
    terms: &Terms,
    link: &mut Connection,
    batch: &Batch,
    at_us: Option<u64>,
    epoch: &str,
) -> RedisResult<Value> {
    let first = send(terms, link, "EVALSHA", &terms.sha, batch, at_us, epoch).await;
    match first {
        Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
            // The server was started anew, or its scripts were flushed. Nothing was done.
            send(terms, link, "EVAL", SCRIPT, batch, at_us, epoch).await
        }
        reply => reply,
    }
}

async fn send(
    terms: &Terms,
    link: &mut Connection,
    command: &str,
    script: &str,
    batch: &Batch,
    at_us: Option<u64>,
    epoch: &str,
) -> RedisResult<Value> {
    terms.round_trips.fetch_add(1, Ordering::Relaxed);
    terms.items.fetch_add(
        u64::try_from(batch.items().len()).unwrap_or(0),
        Ordering::Relaxed,
    );
    let keys: Vec<String> = batch.keys(&terms.prefix).collect();
    let mut command = redis::cmd(command);
    command.arg(script).arg(keys.len()).arg(&keys).arg(epoch);
    match at_us {
        Some(at_us) => command.arg(at_us),
        None => command.arg(""),
    };
    command.arg(&terms.gateway);
    for item in batch.items() {
        command.arg(&item[..]);
    }
    link.send(&command).await
}

/// Hands out the answers, and says what must be undone, since nobody waits for it any more.
/// `None` when there are no answers: the way is broken.
fn land(landing: Landing, terms: &Terms) -> Option<Vec<Ticket>> {
    let Some(Value::Array(values)) = landing.reply else {
        return None;
    };
    let mut values = values.into_iter();
    let store_us = values.next().and_then(|time| match time {
        Value::BulkString(bytes) => str::from_utf8(&bytes).ok()?.parse::<u64>().ok(),
        _ => None,
    })?;
    if values.len() == 0 {
        let health = &terms.part(landing.name).health;
        health.fail("it has lost its counters");
        return Some(Vec::new());
    }
    let mut undone = Vec::new();
    for (ticket, value) in landing.tickets.into_iter().zip(values) {
        let Value::BulkString(reply) = value else {
            continue;
        };
        let answer = Answer {
            store_us,
            verdict: Verdict::parse(&reply),
        };
        let unheard = ticket.answer.and_then(|waiting| waiting.send(answer).err());
        undone.extend(
            unheard
                .and_then(|answer| ticket.item.undo(&answer))
                .map(|item| Ticket {
                    item,
                    at_us: ticket.at_us,
                    answer: None,
                }),
        );
    }
    Some(undone)
}
