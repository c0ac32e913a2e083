//! The calls that one site may make in a while, so that no site's calls wait behind another's flood.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tonic::Status;
use tributary_shared::name::SiteName;

/// Calls a second that a site may make for long. One that trains makes a few.
const CALLS_PER_S: u32 = 500;
/// Calls that it may make at once, after a rest.
const BURST: u32 = 2_000;
/// Longest time that a call waits for its turn; one that would wait longer is refused.
const WAIT_MAX: Duration = Duration::from_secs(2);

/// A token bucket a site, as the virtual schedule of the generic cell rate algorithm (ITU-T I.371):
/// for each site the moment at which its bucket is full again.
#[derive(Default)]
pub(super) struct Budget(Mutex<BTreeMap<SiteName, Instant>>);

impl Budget {
    /// Lets a call of `site` pass, at once or in its turn.
    pub(super) async fn spend(&self, site: &SiteName) -> Result<(), Status> {
        match self.take(site, Instant::now()) {
            Some(Duration::ZERO) => Ok(()),
            Some(wait) => {
                tokio::time::sleep(wait).await;
                Ok(())
            }
            None => Err(Status::unavailable(format!(
                "site/{site} makes more than {CALLS_PER_S} calls a second; it is heard again when \
                 it makes fewer"
            ))),
        }
    }

    /// Takes a token at `now`; gives the time until it is there, or `None` when that is too long.
    fn take(&self, site: &SiteName, now: Instant) -> Option<Duration> {
        let token = Duration::from_secs(1) / CALLS_PER_S;
        // The table is valid after every single operation, also after a panic elsewhere.
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let full = table.entry(site.clone()).or_insert(now);
        let next = (*full).max(now) + token;
        let wait = (next - now).saturating_sub(token * BURST);
        if wait > WAIT_MAX {
            return None;
        }
        *full = next;
        Some(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A2: nothing bounded the calls of a site. A flood waits and is refused, and costs the others
    /// nothing.
    #[test]
    fn a_flood_is_slowed_then_refused_and_nobody_else_is() {
        let (budget, now) = (Budget::default(), Instant::now());
        let (flood, calm) = ("mallory".parse().unwrap(), "alder".parse().unwrap());
        for _ in 0..BURST {
            assert_eq!(budget.take(&flood, now), Some(Duration::ZERO));
        }
        assert_eq!(budget.take(&flood, now), Some(Duration::from_millis(2)));
        let more = std::iter::from_fn(|| budget.take(&flood, now)).count();
        assert_eq!(more, 999, "as many as wait for two seconds");
        assert_eq!(budget.take(&calm, now), Some(Duration::ZERO));
        let later = now + Duration::from_secs(1);
        assert_eq!(budget.take(&flood, later), Some(Duration::from_millis(1_002)));
        let rested = now + Duration::from_secs(60);
        assert_eq!(budget.take(&flood, rested), Some(Duration::ZERO));
    }
}
