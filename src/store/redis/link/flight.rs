//! One command to Redis: how it goes out, and what becomes of its answers.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use redis::{Cmd, ErrorKind, RedisResult, ServerErrorKind, Value};

use super::{Part, Terms, Ticket};
use crate::store::redis::batch::Batch;
use crate::store::redis::connect::{Cause, Connection};
use crate::store::redis::fault::{Done, Fault};
use crate::store::redis::name::Name;
use crate::store::redis::reply::{Answer, Verdict};

/// Between two attempts to find a counter whose slot moves.
const MOVING: Duration = Duration::from_millis(2);

/// How long an answer is looked for that nobody waits for, and that says what was taken of totals:
/// these do not expire.
const LATE: Duration = Duration::from_secs(30);

/// Turns of this thread after an answer was due. It may have come, and stand behind the calls of a
/// gateway that has no time left: then it is not the store that is out of use.
const TURNS: usize = 2;

/// Tickets on their way.
pub(super) type Flight = Pin<Box<dyn Future<Output = Landing> + Send>>;

/// Tickets and what came back.
pub(super) struct Landing {
    tickets: Vec<Ticket>,
    reply: Reply,
}

/// How it ended.
enum Reply {
    Answers(Value),
    /// Refused as they are together.
    Apart(Fault, Done),
    /// Nobody could say in time where the counter is.
    Nowhere,
    /// No answer: the way is broken.
    Lost(Done),
    /// No answer in time. Whatever may need one waits elsewhere.
    Late,
}

/// Sends what a landing leaves to be sent, batch by batch.
pub(super) fn again(
    batches: Vec<Vec<Ticket>>,
    terms: &Arc<Terms>,
    connection: Option<&Connection>,
) -> impl Iterator<Item = Flight> {
    let mut flights: Vec<Flight> = Vec::with_capacity(batches.len());
    for tickets in batches {
        match connection {
            Some(link) => flights.push(Box::pin(fly(terms.clone(), link.clone(), tickets))),
            None => terms.unanswered(tickets, Done::Nothing),
        }
    }
    flights.into_iter()
}

/// One batch for each time, of which there is one in production, the server's own; in a cluster
/// one for each owner of counters.
pub(super) fn batches(gathered: &mut Vec<Ticket>, is_cluster: bool) -> Vec<Vec<Ticket>> {
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

pub(super) async fn fly(terms: Arc<Terms>, link: Connection, mut tickets: Vec<Ticket>) -> Landing {
    let part = terms.part_of(&tickets);
    let health = &part.health;
    // In a cluster the epoch's key lies elsewhere, and the watch alone looks at it.
    let epoch = health.epoch().filter(|_| !terms.is_cluster);
    let mut batch = Batch::new(epoch.is_some());
    for ticket in &mut tickets {
        ticket.place = batch.push(&ticket.item);
    }
    let at_us = tickets.first().and_then(|ticket| ticket.at_us);
    let has_totals = !batch.is_of_rates() && tickets.iter().any(|t| t.item.moves_totals());
    if has_totals && !terms.is_cluster {
        batch.sign();
    }
    let moves = Arc::new(AtomicBool::new(false));
    let going = (moves.clone(), has_totals);
    let asked = ask(terms.clone(), link.clone(), batch, at_us, epoch, going);
    let mut asked: Asked = Box::pin(asked);
    let mut reply = tokio::time::timeout(terms.timeout, &mut asked).await;
    for _ in 0..TURNS {
        if reply.is_ok() {
            break;
        }
        tokio::task::yield_now().await;
        reply = tokio::time::timeout(Duration::ZERO, &mut asked).await;
    }
    let reply = match reply {
        Ok(Ok(reply)) => {
            health.answered();
            if has_totals && terms.is_cluster {
                tokio::spawn(sign(terms.clone(), link, part.index));
            }
            Reply::Answers(reply)
        }
        Ok(Err(error)) => match Fault::of(&error) {
            fault if fault == Fault::Store || fault == Fault::Moving && !terms.is_cluster => {
                health.fail(&terms.cause(&error));
                Reply::Lost(Done::of(&error))
            }
            fault => {
                health.answered();
                if fault == Fault::Item && tickets.len() == 1 {
                    health.refused(&error.to_string());
                }
                Reply::Apart(fault, Done::of(&error))
            }
        },
        Err(_) if moves.load(Ordering::Relaxed) => Reply::Nowhere,
        Err(_) => {
            health.timed_out();
            let is_of_totals = |ticket: &Ticket| ticket.item.moves_totals();
            if tickets.iter().any(is_of_totals) {
                let eras = tickets.iter().flat_map(|ticket| ticket.item.eras());
                let eras: Vec<(Name, u32)> = eras.collect();
                // Nothing more is taken of these: they are over the sooner.
                for (name, era) in &eras {
                    terms.under_way.late(*name, *era);
                }
                let unheard = tickets.iter().map(Ticket::unheard).collect();
                let (terms, landing) = (terms.clone(), land_late(terms.clone(), asked, unheard));
                tokio::spawn(async move {
                    landing.await;
                    for (name, era) in eras {
                        terms.under_way.late_no_more(name, era);
                    }
                });
            }
            Reply::Late
        }
    };
    Landing { tickets, reply }
}

/// A question on its way.
type Asked = Pin<Box<dyn Future<Output = RedisResult<Value>> + Send>>;

/// Asks until the counters have stopped moving. `moves`: they do, and nothing is on its way that
/// moves totals.
async fn ask(
    terms: Arc<Terms>,
    mut link: Connection,
    batch: Batch,
    at_us: Option<u64>,
    epoch: Option<Arc<str>>,
    (moves, has_totals): (Arc<AtomicBool>, bool),
) -> RedisResult<Value> {
    let epoch = epoch.as_deref().unwrap_or_default();
    let is_single = terms.is_cluster && batch.is_of_one_counter();
    loop {
        match run(&terms, &mut link, &batch, at_us, epoch).await {
            Err(error) if is_single && Fault::of(&error) == Fault::Moving => {
                moves.store(true, Ordering::Relaxed);
                tokio::time::sleep(MOVING).await;
                // What is on its way may be done.
                moves.store(!has_totals, Ordering::Relaxed);
            }
            reply => break reply,
        }
    }
}

/// What comes back after the time in which it was waited for: units that were taken go back, and
/// totals of which nobody will ever know are marked.
async fn land_late(terms: Arc<Terms>, asked: Asked, tickets: Vec<Ticket>) {
    match tokio::time::timeout(LATE, asked).await {
        Ok(Ok(reply)) => {
            let undone = hand_out(tickets, reply, &terms).into_iter().flatten();
            terms.unanswered(undone, Done::Nothing);
        }
        Ok(Err(error)) => terms.unanswered(tickets, Done::of(&error)),
        Err(_) => terms.unanswered(tickets, Done::Unknown),
    }
}

/// Signs for totals that were moved, with a key that lies elsewhere.
async fn sign(terms: Arc<Terms>, mut link: Connection, part: usize) {
    let mut batch = Batch::new(false);
    batch.sign();
    let signed = run_in(&terms, &mut link, &batch, None, "", terms.part_at(part));
    // If it comes to nothing, the next beat does it.
    let _ = tokio::time::timeout(terms.timeout, signed).await;
}

/// Runs the script on a batch.
pub(in crate::store::redis) async fn run(
    terms: &Terms,
    link: &mut Connection,
    batch: &Batch,
    at_us: Option<u64>,
    epoch: &str,
) -> RedisResult<Value> {
    let part = terms.part(batch.name());
    run_in(terms, link, batch, at_us, epoch, part).await
}

async fn run_in(
    terms: &Terms,
    link: &mut Connection,
    batch: &Batch,
    at_us: Option<u64>,
    epoch: &str,
    part: &Part,
) -> RedisResult<Value> {
    let script = terms.scripts.of(batch.is_of_rates());
    let last = part.health.last_sign();
    let of = |command, script| {
        let mut command = command_of(terms, (command, script), batch, at_us, epoch, part);
        command.arg(batch.signature(last).as_slice());
        command
    };
    let mut reply = link.send(&of("EVALSHA", &script.sha)).await;
    if let Err(error) = &reply
        && error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)
    {
        // The server was started anew, or its scripts were flushed. Nothing was done.
        reply = link.send(&of("EVAL", script.text)).await;
    }
    if let Ok(Value::Array(values)) = &mut reply
        && batch.is_signed()
        && values.len() > 1
        && let Some(Value::BulkString(sign)) = values.pop()
    {
        let sign = str::from_utf8(&sign).ok();
        part.health
            .signed(sign.and_then(|sign| sign.parse().ok()), last);
    }
    reply
}

fn command_of(
    terms: &Terms,
    (command, script): (&str, &str),
    batch: &Batch,
    at_us: Option<u64>,
    epoch: &str,
    part: &Part,
) -> Cmd {
    terms.round_trips.fetch_add(1, Ordering::Relaxed);
    terms
        .items
        .fetch_add(batch.items().into(), Ordering::Relaxed);
    let keys = batch.keys(&terms.prefix, &part.tag);
    let mut command = redis::cmd(command);
    command.arg(script).arg(keys.len()).arg(&keys).arg(epoch);
    match at_us {
        Some(at_us) => command.arg(at_us),
        None => command.arg(""),
    };
    command.arg(&terms.gateway).arg(part.health.doubts());
    for row in batch.rows() {
        command.arg(row);
    }
    command
}

/// Hands out the answers, and says what is to be sent next: what was refused for its company, and
/// what must be undone, since nobody waits for it any more. `None` when there are no answers: the
/// way is broken.
pub(super) fn land(landing: Landing, terms: &Terms) -> Option<Vec<Vec<Ticket>>> {
    let Landing { tickets, reply } = landing;
    match reply {
        Reply::Answers(reply) => hand_out(tickets, reply, terms).map(|undone| match undone.len() {
            0 => Vec::new(),
            _ => vec![undone],
        }),
        Reply::Apart(fault, done) => Some(apart(tickets, fault, done, terms)),
        Reply::Nowhere => {
            terms.unanswered(tickets, Done::Nothing);
            Some(Vec::new())
        }
        Reply::Lost(done) => {
            terms.unanswered(tickets, done);
            None
        }
        Reply::Late => None,
    }
}

/// Smaller batches of tickets that were refused together.
fn apart(tickets: Vec<Ticket>, fault: Fault, done: Done, terms: &Terms) -> Vec<Vec<Ticket>> {
    let is_alone = tickets.len() == 1;
    let mut batches: Vec<Vec<Ticket>> = Vec::with_capacity(tickets.len());
    for ticket in tickets {
        let is_small = ticket.item.is_of_one_counter();
        if done == Done::Unknown && ticket.item.moves_totals() {
            terms.unanswered([ticket], done);
            continue;
        }
        match ticket.answer {
            // Nobody waits for it any more, and nothing was done.
            Some(waiting) if waiting.is_closed() => (),
            // A decision that is refused is refused to its caller, who knows what to do then.
            Some(_) if fault == Fault::Item && is_alone => (),
            Some(waiting) if fault == Fault::Moving && !is_small => {
                let _ = waiting.send(Answer::scattered());
            }
            answer @ Some(_) => batches.push(vec![Ticket { answer, ..ticket }]),
            None if fault == Fault::Item && is_alone && is_small => {
                if ticket.item.moves_totals() {
                    terms.keep(Arc::unwrap_or_clone(ticket.item));
                }
            }
            None => {
                let (place, is_unheard) = ((ticket.part, ticket.at_us), ticket.is_unheard);
                let each = Arc::unwrap_or_clone(ticket.item).by_counter().into_iter();
                batches.extend(each.map(|item| {
                    let alone = Ticket::told(Arc::new(item), place, &terms.moving);
                    vec![Ticket {
                        is_unheard,
                        ..alone
                    }]
                }));
            }
        }
    }
    batches
}

/// Hands out the answers; what must be undone, since nobody waits for it any more.
fn hand_out(tickets: Vec<Ticket>, reply: Value, terms: &Terms) -> Option<Vec<Ticket>> {
    let values = match &reply {
        Value::Array(values) => &values[..],
        _ => &[],
    };
    let time = values.first().and_then(|time| match time {
        Value::BulkString(bytes) => str::from_utf8(bytes).ok()?.parse::<u64>().ok(),
        _ => None,
    });
    let Some(store_us) = time else {
        terms.unanswered(tickets, Done::Unknown);
        return None;
    };
    let replies = &values[1..];
    if replies.is_empty() {
        let health = &terms.part_of(&tickets).health;
        health.fail(&Cause::outage("it has lost its counters"));
        // Nothing was done, and totals are told to the new one.
        let told = tickets.into_iter().filter(|t| t.item.is_of_totals());
        terms.unanswered(told, Done::Nothing);
        return Some(Vec::new());
    }
    let mut undone = Vec::new();
    for ticket in tickets {
        let Some(Value::BulkString(reply)) = replies.get(ticket.place.row) else {
            terms.unanswered([ticket], Done::Unknown);
            continue;
        };
        let answer = Answer {
            store_us,
            verdict: Verdict::parse(reply, &ticket.item, ticket.place.turn),
        };
        if answer.verdict.is_none() && ticket.item.has_verdict() {
            terms.unanswered([ticket], Done::Unknown);
            continue;
        }
        let unheard = match ticket.answer {
            Some(waiting) => waiting.send(answer).err(),
            None => ticket.is_unheard.then_some(answer),
        };
        undone.extend(
            unheard
                .and_then(|answer| ticket.item.undo(&answer))
                .map(|item| {
                    Ticket::told(Arc::new(item), (ticket.part, ticket.at_us), &terms.moving)
                }),
        );
    }
    Some(undone)
}
