//! The way out: what is told to whom, and how long is waited for what.

use std::io;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Mutex, watch};

use crate::gateway::Shared;
use crate::gateway::downstream::SETTLE;
use crate::gateway::drain::Stage;
use crate::handover::Giving;

/// How long a shared store may take to hear that this gateway ends.
const TO_GIVE_BACK: Duration = Duration::from_secs(2);
/// Between two looks at what is still there.
const LOOK: Duration = Duration::from_millis(20);

/// The signals that end a gateway: SIGTERM, and SIGINT for Ctrl-C.
pub(super) struct StopSignals(Mutex<[Signal; 2]>);

impl StopSignals {
    /// From now on they do not kill: callers may wait on the listeners before anything runs.
    /// With the runtime in which they were asked for, to be kept as long.
    pub(super) fn begin() -> io::Result<(Self, Runtime)> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let within = runtime.enter();
        let signals = [
            signal(SignalKind::terminate())?,
            signal(SignalKind::interrupt())?,
        ];
        drop(within);
        Ok((Self(Mutex::new(signals)), runtime))
    }

    /// Until the next of them.
    pub(super) async fn next(&self) {
        let mut signals = self.0.lock().await;
        let [terminate, interrupt] = &mut *signals;
        tokio::select! {
            _ = terminate.recv() => (),
            _ = interrupt.recv() => (),
        }
    }
}

/// Until another process has the listeners.
pub(super) async fn handed_over(mut stages: watch::Receiver<Stage>) {
    let is_given = |stage: &Stage| matches!(stage, Stage::HandedOver { .. });
    let _ = stages.wait_for(is_given).await;
}

/// Sees to it that no more comes. How long running calls have then.
pub(super) async fn leave(
    shared: &Shared,
    giving: Option<&Giving>,
    stop_signals: &StopSignals,
) -> Duration {
    let settings = &shared.settings;
    if shared.drain.leave() {
        let delay = settings.drain_delay;
        tracing::info!(drain_delay_ms = delay.as_millis(), "draining");
        if let Some(giving) = giving {
            giving.end();
        }
        tokio::time::sleep(delay).await;
        shared.drain.close();
        return settings.grace;
    }
    let connections = shared.connections();
    tracing::info!(connections, "another process has the listeners; draining");
    let since = shared.clock.now();
    // A connection that is idle now may have a call on its way: that is answered, and then the
    // caller comes to the other process. Those that stay idle have until the end of the grace.
    let idle = settings.grace.saturating_sub(4 * SETTLE);
    let gone = async {
        while shared.connections() > 0 {
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::select! {
        _ = tokio::time::timeout(idle, gone) => (),
        () = stop_signals.next() => (),
    }
    let passed = shared.clock.now().mono_us.saturating_sub(since.mono_us);
    settings.grace.saturating_sub(Duration::from_micros(passed))
}

/// Until no call runs and none is about to, at most for the grace. What is left of that.
pub(super) fn until_done(shared: &Shared, workers: usize, grace: Duration) -> Duration {
    let (mut waited, mut quiet) = (Duration::ZERO, 0);
    while waited < grace && quiet < 2 {
        std::thread::sleep(LOOK);
        waited += LOOK;
        let is_quiet = shared.drain.workers_closed() >= workers && shared.in_flight() == 0;
        quiet = if is_quiet { quiet + 1 } else { 0 };
    }
    grace.saturating_sub(waited)
}

/// What is held in a shared store goes back, if need be later in this time.
pub(super) fn give_back(shared: &Shared, patience: Duration) {
    let Some(store) = shared.admission.store().shared() else {
        return;
    };
    match Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => {
            let most = TO_GIVE_BACK + patience;
            let leaving = async { tokio::time::timeout(most, store.leave(patience)).await };
            if runtime.block_on(leaving).is_err() {
                tracing::warn!("the store is slow; leases and slots expire");
            }
        }
        Err(error) => tracing::warn!(%error, "nothing is given back; leases and slots expire"),
    }
}
