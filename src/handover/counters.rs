//! Embedded counters after an upgrade: the old process asks about its last calls, the new one
//! answers. So both count in one place, and no limit is exceeded.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::mpsc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::wire::Wire;
use crate::gateway::Lasting;
use crate::store::away::{Answer, Asked, Movable, Question, answer};
use crate::store::memory::moving::Running;

/// Those who wait, by the numbers of their questions.
type Waiting = Mutex<HashMap<u64, oneshot::Sender<Answer>>>;

/// The old process's part: asks until the new process is gone, and goes on by itself then.
pub(super) fn ask(wire: Wire, counters: &Movable) {
    if let Err(error) = keep_asking(wire, counters) {
        tracing::warn!(%error, "the process that took over has ended; deciding here again");
    }
    counters.come_back();
}

fn keep_asking(mut wire: Wire, counters: &Movable) -> io::Result<()> {
    wire.patience(None)?;
    let waiting: Arc<Waiting> = Arc::default();
    let (asking, questions) = mpsc::channel();
    let (mut twin, asked) = (wire.twin()?, waiting.clone());
    std::thread::Builder::new()
        .name("upgrade-ask".to_owned())
        .spawn(move || {
            // Where it fails, the other direction ends too, and says so.
            let _ = pass_on(&mut twin, &questions, &asked);
        })?;
    counters.end_move(asking.clone());
    loop {
        match wire.receive::<(u64, Answer)>() {
            Ok((number, answer)) => {
                if let Some(waits) = waiting.lock().remove(&number) {
                    // A caller that has gone meanwhile is charged nothing, and holds no slot.
                    if let Err(Answer::Decided(plan, _)) = waits.send(answer) {
                        let _ = asking.send((Asked::GiveBack(plan), None));
                    }
                }
            }
            Err(error) => {
                // Whoever waits finds out.
                waiting.lock().clear();
                return Err(error);
            }
        }
    }
}

fn pass_on(
    wire: &mut Wire,
    questions: &mpsc::Receiver<Question>,
    waiting: &Waiting,
) -> io::Result<()> {
    for (number, (asked, waits)) in (0_u64..).zip(questions) {
        let is_waited_for = waits.is_some();
        if let Some(waits) = waits {
            waiting.lock().insert(number, waits);
        }
        wire.send(&(number, is_waited_for, asked))?;
    }
    Ok(())
}

/// The new process's part: answers until the old one has ended. Slots of calls that ended with
/// it are freed.
pub(super) fn help(wire: Wire, shared: Arc<Lasting>, running: Vec<Running>) -> io::Result<()> {
    wire.patience(None)?;
    if let Some(counters) = shared.admission.store().embedded() {
        counters.helps(true);
    }
    std::thread::Builder::new()
        .name("upgrade-help".to_owned())
        .spawn(move || {
            if let Some(counters) = shared.admission.store().embedded() {
                keep_helping(wire, counters, running);
                counters.helps(false);
                tracing::info!("the process before has ended");
            }
        })?;
    Ok(())
}

fn keep_helping(mut wire: Wire, counters: &Movable, mut running: Vec<Running>) {
    while let Ok((number, is_waited_for, asked)) = wire.receive::<(u64, bool, Asked)>() {
        // Counters that are here answer.
        let Some(answer) = answer(counters.counters(), asked) else {
            break;
        };
        if let Answer::Decided(plan, _) = &answer {
            running.extend(plan.charges.iter().filter_map(Running::of));
        }
        if is_waited_for && wire.send(&(number, answer)).is_err() {
            break;
        }
    }
    counters.counters().abandon(&running);
}
