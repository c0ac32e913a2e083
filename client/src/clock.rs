//! The one place that reads the time of day.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tributary_shared::timestamp::Timestamp;

/// Now, by the machine's clock.
#[expect(clippy::disallowed_methods, reason = "this is the clock")]
pub fn now() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_millis(i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX))
}

/// The difference between this machine's clock and another's that shows `other_ms`, milliseconds since 1970.
pub fn skew(other_ms: i64) -> Duration {
    Duration::from_millis(now().as_millis().saturating_sub(other_ms).unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Failed before in `doctor`: the difference overflowed.
    #[test]
    fn a_clock_at_the_end_of_time_differs_by_that_much() {
        let most = Duration::from_millis(u64::try_from(i64::MAX).unwrap());
        assert!(skew(i64::MAX) <= most && skew(i64::MAX) > most / 2);
        assert!(skew(i64::MIN) >= most);
        assert!(skew(now().as_millis()) < Duration::from_secs(60));
    }
}
