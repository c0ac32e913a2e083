//! Heartbeats: while a site works on a round, the coordinator hears of it from outside the
//! training thread, and the site hears when to stop.

use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tributary_proto::v1;
use tributary_shared::text::{REASON_CHARS_MAX, printable_start};

use super::activity::{Activity, RoundId};
use super::disclosure;
use crate::transport::Coordinator;

/// Slowest and fastest beat.
const BEAT_MIN: Duration = Duration::from_millis(500);
const BEAT_MAX: Duration = Duration::from_secs(10);

/// A round's heartbeats; they end when this is dropped.
pub(super) struct Lease {
    stop_reason: watch::Receiver<String>,
    _beating: JoinSet<()>,
}

impl Lease {
    /// Beats three times in each `lease`.
    pub(super) fn begin(
        coordinator: Coordinator,
        id: RoundId,
        lease: Duration,
        activity: watch::Receiver<Activity>,
    ) -> Self {
        let (told, stop_reason) = watch::channel(String::new());
        let mut beating = JoinSet::new();
        let every = beat(lease);
        beating.spawn(async move {
            let mut ticks = tokio::time::interval(every);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                let request = request(&id, &activity.borrow());
                // A beat that takes longer than a lease is worth nothing.
                match coordinator.heartbeat(request, every * 3).await {
                    Ok(reply) => {
                        if let Some(reason) = reason_to_stop(&reply) {
                            told.send_replace(reason);
                        }
                    }
                    // The round loop meets the same trouble and handles it.
                    Err(error) => tracing::debug!("no heartbeat: {}", error.failure()),
                }
            }
        });
        Self { stop_reason, _beating: beating }
    }

    /// Waits until the coordinator says that this round needs no more work, and why.
    pub(super) async fn stopped(&mut self) -> String {
        match self.stop_reason.wait_for(|reason| !reason.is_empty()).await {
            Ok(reason) => reason.clone(),
            // The beating task ends with this value, never before it.
            Err(_) => std::future::pending().await,
        }
    }
}

/// The reason for which the coordinator needs no more work on the round, if it says so.
pub(super) fn reason_to_stop(reply: &v1::HeartbeatReply) -> Option<String> {
    (!reply.stop_reason.is_empty()).then(|| printable_start(&reply.stop_reason, REASON_CHARS_MAX))
}

fn beat(lease: Duration) -> Duration {
    (lease / 3).clamp(BEAT_MIN, BEAT_MAX)
}

fn request(id: &RoundId, activity: &Activity) -> v1::HeartbeatRequest {
    let (step, steps) = disclosure::progress(activity);
    v1::HeartbeatRequest {
        run: id.run.to_string(),
        round: id.round,
        phase: activity.phase.as_str().to_owned(),
        step,
        steps,
        eta_s: activity.eta_s.max(0.0) as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_beat_is_a_third_of_the_lease_within_bounds() {
        for (lease_s, beat_ms) in [(1, 500), (3, 1_000), (30, 10_000), (3_600, 10_000)] {
            assert_eq!(beat(Duration::from_secs(lease_s)), Duration::from_millis(beat_ms));
        }
    }
}
