//! Time: one task that wakes when the next deadline of any run has come, and watches the disk.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, interval_at, sleep_until, timeout};
use tributary_shared::outcome::chain;

use super::{Driver, DriverError, LiveRun};
use crate::clock;

/// Longest time between two looks at everything: what a clock that jumped may cost.
const IDLE: Duration = Duration::from_secs(5);
/// The same while the disk is short: what was freed is noticed soon.
const IDLE_SHORT: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// Runs until the coordinator stops.
pub(super) async fn tick(driver: Driver) {
    // A coordinator without deadlines would wait for ever: if this task panics, the process ends.
    let _stop = driver.stopping().clone().drop_guard();
    let mut changes = driver.changes();
    let mut short = driver.room().await.short_since.is_some();
    let mut looked = Instant::now();
    // Notified when a run's tick has ended.
    let ended = Arc::new(Notify::new());
    loop {
        let idle = looked + if short { IDLE_SHORT } else { IDLE };
        let mut next = idle;
        for run in driver.runs().await.into_iter().filter(|run| !run.is_ticking()) {
            if let Some(deadline) = run.next_deadline(&driver) {
                next = next.min(Instant::now() + deadline.since(clock::now()));
            }
        }
        tokio::select! {
            () = driver.stopping().cancelled() => return,
            () = sleep_until(next) => {}
            // Deadlines may have moved; look again before sleeping on.
            () = ended.notified(), if Instant::now() < idle => continue,
            _ = changes.changed(), if Instant::now() < idle => continue,
        }
        // Whatever failed when a certificate was replaced or revoked, its connections end here: first,
        // for the disk or the database may hang.
        driver.members().cut_unknown();
        if driver.members().is_stale() {
            // The runs' ticks below look for new members.
            match timeout(IDLE, driver.members().reload(driver.store())).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::error!(error = %chain(&error), "the members could not be read again");
                }
                Err(late) => tracing::error!("the members could not be read again: {late}"),
            }
        }
        short = driver.room().await.short_since.is_some();
        if short {
            // The database's own journal may be what takes the room.
            driver.store().give_room_back().await;
            short = driver.room().await.short_since.is_some();
        }
        looked = Instant::now();
        for run in driver.runs().await.into_iter().filter(|run| !run.is_settled()) {
            // Beside one another: no run's deadline waits for another's tick, and a run whose last
            // tick still lasts is passed over.
            let Some(turn) = run.begin_tick() else { continue };
            let (driver, ending) = (driver.clone(), Ending(ended.clone()));
            tokio::spawn(async move {
                if let Err(error) = watched(&run, &driver).await {
                    tracing::error!(run = %run.name(), error = %chain(&error), "tick failed");
                    // The deadline is still due: no hot loop.
                    tokio::time::sleep(IDLE_SHORT).await;
                }
                drop((turn, ending));
            });
        }
    }
}

/// One tick of `run`, with a warning in the log for each minute that it lasts.
async fn watched(run: &Arc<LiveRun>, driver: &Driver) -> Result<(), DriverError> {
    let begun = Instant::now();
    let mut minutes = interval_at(begun + MINUTE, MINUTE);
    let mut tick = pin!(run.tick(driver));
    loop {
        tokio::select! {
            done = &mut tick => return done,
            now = minutes.tick() => tracing::warn!(
                run = %run.name(),
                seconds = (now - begun).as_secs(),
                "deadlines are not kept: a write has not ended; look at the disk and the database",
            ),
        }
    }
}

/// Tells the ticker that a tick has ended, also when it panicked.
struct Ending(Arc<Notify>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}
