//! The way out: what is told to whom, and how long is waited for what.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use crate::gateway::Shared;
use crate::gateway::downstream::SETTLE;
use crate::gateway::drain::Stage;
use crate::handover::Giving;

/// Between two looks at what is still there.
const LOOK: Duration = Duration::from_millis(20);

/// Until another process has the listeners.
pub(super) async fn handed_over(shared: &Shared) {
    let mut stages = shared.drain.watch();
    let is_given = |stage: &Stage| matches!(stage, Stage::HandedOver { .. });
    let _ = stages.wait_for(is_given).await;
}

/// Sees to it that no more comes. How long running calls have then.
pub(super) async fn leave(shared: &Shared, giving: Option<&Giving>) -> Duration {
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
        () = stopped() => (),
    }
    let passed = shared.clock.now().mono_us.saturating_sub(since.mono_us);
    settings.grace.saturating_sub(Duration::from_micros(passed))
}

/// Until a signal says that it has taken long enough.
async fn stopped() {
    match (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) {
        (Ok(mut terminate), Ok(mut interrupt)) => tokio::select! {
            _ = terminate.recv() => (),
            _ = interrupt.recv() => (),
        },
        _ => std::future::pending().await,
    }
}

/// Until no call runs and none is about to, at most for the grace.
pub(super) fn until_done(shared: &Shared, grace: Duration) {
    let workers = shared.settings.threads;
    let (mut waited, mut quiet) = (Duration::ZERO, 0);
    while waited < grace && quiet < 2 {
        std::thread::sleep(LOOK);
        waited += LOOK;
        let is_quiet = shared.drain.workers_closed() >= workers && shared.in_flight() == 0;
        quiet = if is_quiet { quiet + 1 } else { 0 };
    }
}
