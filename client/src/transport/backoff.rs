//! How long to wait before trying again.

use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha12Rng;

const FIRST: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(30);
/// Longest wait for what a person must mend.
const LONGEST_FOR_PEOPLE: Duration = Duration::from_secs(120);
/// Longest wait for a coordinator that has no room: it is back within seconds of having some.
const LONGEST_WHEN_BUSY: Duration = Duration::from_secs(5);

/// Doubling waits up to half a minute (two minutes where a person must act), each shortened at
/// random by up to a half, so that sites cut off together do not come back together.
#[derive(Debug)]
pub struct Backoff {
    rng: ChaCha12Rng,
    failures: u32,
}

impl Backoff {
    /// Begins with the shortest wait.
    pub fn new(seed: [u8; 32]) -> Self {
        Self { rng: ChaCha12Rng::from_seed(seed), failures: 0 }
    }

    /// The wait after one more failure.
    pub fn next_wait(&mut self) -> Duration {
        self.wait_up_to(LONGEST)
    }

    /// The wait after one more failure that only a person can mend.
    pub fn next_wait_for_people(&mut self) -> Duration {
        self.wait_up_to(LONGEST_FOR_PEOPLE)
    }

    /// The wait after the coordinator had no room once more.
    pub fn next_wait_when_busy(&mut self) -> Duration {
        self.wait_up_to(LONGEST_WHEN_BUSY)
    }

    fn wait_up_to(&mut self, most: Duration) -> Duration {
        let longest = FIRST.saturating_mul(1 << self.failures.min(16)).min(most);
        self.failures += 1;
        longest.mul_f64(self.rng.random_range(0.5..1.0))
    }

    /// After a success, the next wait is the shortest again.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_half_a_minute_and_never_vanish() {
        let mut backoff = Backoff::new([7; 32]);
        for failures in 0..100 {
            let longest = FIRST.saturating_mul(1 << failures.min(16)).min(LONGEST);
            let wait = backoff.next_wait();
            assert!(wait >= longest / 2 && wait <= longest, "{failures}: {wait:?}");
        }
        let patient = backoff.next_wait_for_people();
        assert!(patient >= LONGEST_FOR_PEOPLE / 2 && patient <= LONGEST_FOR_PEOPLE, "{patient:?}");
        assert!(backoff.next_wait_when_busy() <= LONGEST_WHEN_BUSY);
        backoff.reset();
        assert!(backoff.next_wait() <= FIRST);
    }
}
