//! Time: one task that wakes when the next deadline of any run has come.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tributary_shared::outcome::chain;

use super::Driver;
use crate::clock;

/// Longest sleep: what a clock that jumped, or a disk that was full, may cost.
const IDLE: Duration = Duration::from_secs(5);

/// Runs until the coordinator stops.
pub(super) async fn tick(driver: Driver) {
    let mut changes = driver.changes();
    loop {
        let mut next = IDLE;
        for run in driver.runs().await {
            if let Some(deadline) = run.next_deadline().await {
                next = next.min(deadline.since(clock::now()));
            }
        }
        tokio::select! {
            () = driver.stopping().cancelled() => return,
            () = sleep_until(Instant::now() + next) => {}
            // Deadlines may have moved; look again before sleeping on.
            _ = changes.changed() => continue,
        }
        for run in driver.runs().await {
            if let Err(error) = run.tick(&driver).await {
                tracing::error!(run = %run.name(), error = %chain(&error), "tick failed");
            }
        }
    }
}
