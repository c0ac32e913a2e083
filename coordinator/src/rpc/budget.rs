//! The calls that one site may make in a while, so that no site's calls wait behind another's flood.

use std::time::Duration;

use tokio::time::Instant;
use tonic::Status;
use tributary_shared::name::SiteName;

use crate::rate_limit::RateLimit;

/// Calls a second that a site may make for long. One that trains makes a few.
const CALLS_PER_S: u32 = 500;
/// Calls that it may make at once, after a rest.
const BURST: u32 = 2_000;
/// Longest time that a call waits for its turn; one that would wait longer is refused.
const WAIT_MAX: Duration = Duration::from_secs(2);

/// The calls of every site.
pub(super) struct Budget(RateLimit<SiteName>);

impl Default for Budget {
    fn default() -> Self {
        Self(RateLimit::new(Duration::from_secs(1) / CALLS_PER_S, BURST))
    }
}

impl Budget {
    /// Lets a call of `site` pass, at once or in its turn.
    pub(super) async fn spend(&self, site: &SiteName) -> Result<(), Status> {
        match self.0.take(site, Instant::now(), WAIT_MAX) {
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
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A2: nothing bounded the calls of a site. A flood waits and is refused, and costs the others
    /// nothing.
    #[test]
    fn a_flood_is_slowed_then_refused_and_nobody_else_is() {
        let (budget, now) = (Budget::default(), Instant::now());
        let take = |site: &SiteName, now| budget.0.take(site, now, WAIT_MAX);
        let (flood, calm) =
            ("mallory".parse::<SiteName>().unwrap(), "alder".parse::<SiteName>().unwrap());
        for _ in 0..BURST {
            assert_eq!(take(&flood, now), Some(Duration::ZERO));
        }
        assert_eq!(take(&flood, now), Some(Duration::from_millis(2)));
        let more = std::iter::from_fn(|| take(&flood, now)).count();
        assert_eq!(more, 999, "as many as wait for two seconds");
        assert_eq!(take(&calm, now), Some(Duration::ZERO));
        let later = now + Duration::from_secs(1);
        assert_eq!(take(&flood, later), Some(Duration::from_millis(1_002)));
        let rested = now + Duration::from_secs(60);
        assert_eq!(take(&flood, rested), Some(Duration::ZERO));
    }
}
