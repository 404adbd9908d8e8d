//! Load on gateways, and what was admitted of it, judged by what its clients know for certain.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::harness::{Connection, Gateway};

/// A call that was admitted: when it was sent and answered, and the units it cost.
pub(crate) type Admitted = (Duration, Duration, u32);

/// What a client sends, over and over.
#[derive(Clone, Copy)]
pub(crate) struct Call<'a> {
    pub(crate) method: &'static str,
    pub(crate) path: &'a str,
    pub(crate) body: &'static str,
    pub(crate) units: u32,
}

impl<'a> Call<'a> {
    pub(crate) fn get(path: &'a str) -> Self {
        Self {
            method: "GET",
            path,
            body: "",
            units: 1,
        }
    }
}

/// Sends these calls to each gateway, from one client for each, for as long as `work` takes; what
/// was admitted of each call since `start`, and what `work` says.
pub(crate) fn during<T, const N: usize>(
    gateways: &[&Gateway],
    load: [Call<'_>; N],
    start: Instant,
    work: impl FnOnce() -> T,
) -> ([Vec<Admitted>; N], T) {
    let is_over = AtomicBool::new(false);
    let is_over = &is_over;
    std::thread::scope(|scope| {
        let clients = load.map(|call| {
            let clients = gateways.iter().map(|gateway| {
                let connection = gateway.connect();
                scope.spawn(move || send(connection, call, start, is_over))
            });
            clients.collect::<Vec<_>>()
        });
        let done = work();
        is_over.store(true, Ordering::Relaxed);
        let admitted = clients.map(|clients| {
            let clients = clients.into_iter();
            clients.flat_map(|client| client.join().unwrap()).collect()
        });
        (admitted, done)
    })
}

fn send(
    mut connection: Connection,
    call: Call<'_>,
    start: Instant,
    is_over: &AtomicBool,
) -> Vec<Admitted> {
    let mut admitted = Vec::new();
    while !is_over.load(Ordering::Relaxed) {
        let sent = start.elapsed();
        let answer = connection.call(call.method, call.path, &[], call.body);
        match answer.status {
            200 => admitted.push((sent, start.elapsed(), call.units)),
            // Denied: clients that never rest would keep the servers from their work.
            403 | 429 | 503 => std::thread::sleep(Duration::from_millis(10)),
            other => panic!("{other}: {}", answer.text()),
        }
    }
    admitted
}

/// The most units that were certainly admitted within one window: all sent after its beginning
/// and answered before its end.
pub(crate) fn most_in_a_window(admitted: &[Admitted], window: Duration) -> u32 {
    let within = |from: Duration| {
        let certainly =
            |(sent, answered, _): &&Admitted| *sent >= from && *answered < from + window;
        let units = admitted.iter().filter(certainly).map(|(.., units)| units);
        units.sum()
    };
    admitted
        .iter()
        .map(|(sent, ..)| within(*sent))
        .max()
        .unwrap_or(0)
}

pub(crate) fn sum(admitted: &[Admitted]) -> u32 {
    admitted.iter().map(|(.., units)| units).sum()
}
