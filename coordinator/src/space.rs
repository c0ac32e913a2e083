//! Room on the disks that hold the coordinator's state: measured against a reserve, so that
//! uploads stop before the database suffers.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tributary_shared::timestamp::Timestamp;

/// Least reserve unless told, bytes.
const RESERVE_BYTES_MIN: u64 = 64 << 20;

/// The disks of one coordinator. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Space(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// A folder on every disk that must have room.
    folders: Vec<PathBuf>,
    /// The reserve as the configuration has it.
    configured: Option<u64>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    short_since: Option<Timestamp>,
}

/// What the open runs may ask of the disks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    /// Bytes that one round of every open run sends.
    rounds: u64,
}

impl Demand {
    /// Adds a run whose rounds ask `sites` sites for `payload_bytes` each.
    pub fn add(&mut self, payload_bytes: u64, sites: usize) {
        let round = payload_bytes.saturating_mul(sites as u64);
        self.rounds = self.rounds.saturating_add(round);
    }
}

/// The room at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Bytes free on the fullest of the disks.
    pub free_bytes: u64,
    /// Bytes that uploads may not take.
    pub reserve_bytes: u64,
    /// Bytes of accepted uploads that have not arrived yet.
    pub arriving_bytes: u64,
    /// The moment since which less than the reserve is left; absent while there is room.
    pub short_since: Option<Timestamp>,
}

impl Space {
    /// The disks under `folders`, with the reserve that the configuration has.
    pub fn of(folders: &[&Path], configured: Option<u64>) -> Self {
        let folders = folders.iter().map(|folder| folder.to_path_buf()).collect();
        Self(Arc::new(Inner { folders, configured, state: Mutex::default() }))
    }

    /// Measures.
    pub fn look(&self, now: Timestamp, demand: Demand) -> Room {
        let free_bytes = self.0.folders.iter().map(|folder| free(folder)).min().unwrap_or(0);
        let reserve_bytes = self.reserve(demand);
        let mut state = self.lock();
        let short = free_bytes < reserve_bytes;
        state.short_since = if short { state.short_since.or(Some(now)) } else { None };
        Room { free_bytes, reserve_bytes, arriving_bytes: 0, short_since: state.short_since }
    }

    fn reserve(&self, demand: Demand) -> u64 {
        self.0.configured.unwrap_or(RESERVE_BYTES_MIN.max(demand.rounds.saturating_mul(2)))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is valid after every single operation, whoever panicked.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes that this process may still write under `folder`; none where that cannot be told.
fn free(folder: &Path) -> u64 {
    rustix::fs::statvfs(folder).map_or(0, |found| found.f_bavail.saturating_mul(found.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_short_when_less_than_the_reserve_is_free() {
        let folder = tempfile::tempdir().unwrap();
        let (first, second) = (Timestamp::from_millis(1), Timestamp::from_millis(2));
        let space = Space::of(&[folder.path()], Some(1 << 20));
        assert_eq!(space.look(first, Demand::default()).short_since, None);
        let space = Space::of(&[folder.path()], Some(u64::MAX));
        assert_eq!(space.look(first, Demand::default()).short_since, Some(first));
        assert_eq!(space.look(second, Demand::default()).short_since, Some(first));
        let gone = Space::of(&[&folder.path().join("gone")], Some(1));
        assert_eq!(gone.look(first, Demand::default()).free_bytes, 0);
    }

    #[test]
    fn the_reserve_follows_the_open_runs_unless_it_is_configured() {
        let mut demand = Demand::default();
        demand.add(500, 2);
        let space = Space::of(&[], None);
        assert_eq!(space.reserve(demand), 64 << 20);
        demand.add(100 << 20, 1);
        assert_eq!(space.reserve(demand), (200 << 20) + 2_000);
        assert_eq!(Space::of(&[], Some(5)).reserve(demand), 5);
    }
}
