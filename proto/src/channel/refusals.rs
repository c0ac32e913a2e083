//! The log of connections that were refused or dropped: a few lines in full, and one that counts
//! the rest, however many there are.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::door::Origin;

/// Time that one count is over.
pub(super) const PERIOD: Duration = Duration::from_secs(10);
/// Lines in full within that time.
const LINES: u64 = 5;
/// Addresses counted one by one.
const ORIGINS_MAX: usize = 1024;

/// Connections refused since the last count.
#[derive(Default)]
pub(super) struct Refusals(Mutex<Period>);

#[derive(Default)]
struct Period {
    refused: u64,
    by_origin: HashMap<Origin, u64>,
    last: String,
}

impl Refusals {
    /// Notes that a connection from `remote` was refused or dropped for `reason`.
    pub(super) fn note(&self, remote: SocketAddr, reason: &str) {
        let mut period = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        period.refused += 1;
        if period.refused <= LINES {
            tracing::warn!(peer = %remote, reason, "connection refused");
            return;
        }
        let origin = Origin::of(remote.ip());
        if period.by_origin.len() < ORIGINS_MAX || period.by_origin.contains_key(&origin) {
            *period.by_origin.entry(origin).or_default() += 1;
        }
        reason.clone_into(&mut period.last);
    }

    /// Ends the period, with a line that counts the connections without a line of their own.
    pub(super) fn tell(&self) {
        let period = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        if let Some(line) = period.counted() {
            tracing::warn!("{line}");
        }
    }
}

impl Period {
    fn counted(&self) -> Option<String> {
        let (most, count) = self.by_origin.iter().max_by_key(|(_, count)| **count)?;
        let (more, addresses) = (self.refused - LINES, self.by_origin.len());
        Some(format!(
            "{more} more connections refused or dropped in {} s, from {addresses} addresses; most ({count}) from {most}; the last: {}",
            PERIOD.as_secs(),
            self.last,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A3d. Failed before: every refused connection wrote a line.
    #[test]
    fn a_flood_of_refusals_is_five_lines_and_one_that_counts_the_rest() {
        let refusals = Refusals::default();
        let counted = || refusals.0.lock().unwrap().counted();
        for port in 0..LINES {
            refusals.note(SocketAddr::from(([10, 0, 0, 1], port as u16)), "garbage");
            assert_eq!(counted(), None, "told in full");
        }
        for port in 0..2000 {
            refusals.note(SocketAddr::from(([10, 0, 0, 1], port)), "garbage");
        }
        refusals.note(SocketAddr::from(([10, 0, 0, 2], 1)), "silence");
        let line = counted().unwrap();
        let parts =
            ["2001 more connections", "from 2 addresses", "most (2000) from 10.0.0.1", "silence"];
        assert!(parts.iter().all(|part| line.contains(part)), "{line}");
        refusals.tell();
        assert_eq!(counted(), None, "a new period");
    }
}
