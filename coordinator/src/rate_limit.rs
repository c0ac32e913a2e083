//! Rate limits: so many events at once, and so many in a while.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// A token bucket for each key, as the virtual schedule of the generic cell rate algorithm (ITU-T
/// I.371): for each key the moment at which its bucket is full again.
#[derive(Debug)]
pub struct RateLimit<K> {
    /// Time in which one token comes back.
    token: Duration,
    /// Tokens of a full bucket.
    burst: u32,
    full: Mutex<BTreeMap<K, Instant>>,
}

impl<K: Ord + Clone> RateLimit<K> {
    /// A full bucket of `burst` tokens for every key, one of which comes back in each `token`.
    pub const fn new(token: Duration, burst: u32) -> Self {
        Self { token, burst, full: Mutex::new(BTreeMap::new()) }
    }

    /// Takes a token of `key` at `now`; gives the time until it is there. Takes none, and gives
    /// `None`, when that is longer than `wait_max`.
    pub fn take(&self, key: &K, now: Instant, wait_max: Duration) -> Option<Duration> {
        // The table is valid after every single operation, also after a panic elsewhere.
        let mut table = self.full.lock().unwrap_or_else(PoisonError::into_inner);
        let full = table.entry(key.clone()).or_insert(now);
        let next = (*full).max(now) + self.token;
        let wait = (next - now).saturating_sub(self.token * self.burst);
        if wait > wait_max {
            return None;
        }
        *full = next;
        Some(wait)
    }

    /// Takes a token of `key` if there is one now; says whether there was.
    pub fn allows(&self, key: &K) -> bool {
        self.take(key, Instant::now(), Duration::ZERO).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_its_burst_then_one_token_a_while_and_costs_other_keys_nothing() {
        let limit = RateLimit::new(Duration::from_secs(10), 3);
        let now = Instant::now();
        let take = |key: &str, seconds| {
            limit
                .take(&key.to_owned(), now + Duration::from_secs(seconds), Duration::ZERO)
                .is_some()
        };
        let taken: Vec<bool> = (0..5).map(|_| take("a", 0)).collect();
        assert_eq!(taken, [true, true, true, false, false]);
        assert!(take("b", 0));
        assert!(take("a", 10) && !take("a", 19) && take("a", 20));
        assert!((0..3).all(|_| take("a", 1_000)) && !take("a", 1_000));
    }
}
