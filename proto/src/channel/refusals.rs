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
    /// A connection from `remote` was refused or dropped for `reason`.
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

    /// Ends the period, with a line about what was not told in full.
    pub(super) fn tell(&self) {
        let period = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let Some((most, count)) = period.by_origin.iter().max_by_key(|(_, count)| **count) else {
            return;
        };
        let (more, addresses) = (period.refused - LINES, period.by_origin.len());
        tracing::warn!(
            "{more} more connections refused or dropped in {} s, from {addresses} addresses; most ({count}) from {most}; the last: {}",
            PERIOD.as_secs(),
            period.last,
        );
    }
}
