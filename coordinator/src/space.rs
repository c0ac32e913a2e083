//! Room on the disks that hold the coordinator's state: measured against a reserve, so that
//! uploads stop before the database suffers.
//!
//! The disk is short when less is free than the reserve, uploads that were accepted and have not
//! arrived yet counted as arrived. A small file beside the database holds room that is given up
//! when a commit of the coordinator's own meets a full disk; as long as it cannot be taken again
//! the disk is short, whatever the system says is free (a quota, a limit of file sizes).

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tributary_shared::name::{RunName, SiteName};
use tributary_shared::timestamp::Timestamp;

/// Least reserve unless told, bytes.
const RESERVE_BYTES_MIN: u64 = 64 << 20;
/// Most that the file beside the database holds, bytes; a small disk's holds a sixteenth of it.
const KEPT_BYTES_MAX: u64 = 8 << 20;
/// That file's name.
const KEPT: &str = "tributary.reserve";
/// Bytes that an adapter being written leaves free.
const MARGIN_BYTES: u64 = 1 << 20;

/// The disks of one coordinator. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Space(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// A folder on every disk that must have room; the database's first.
    folders: Vec<PathBuf>,
    /// The reserve as the configuration has it.
    configured: Option<u64>,
    /// True when this process may take and give up the file beside the database.
    keeps: bool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    demand: Demand,
    /// Bytes to come of every accepted upload, and which stream brings them.
    arriving: BTreeMap<(SiteName, RunName), (u64, u64)>,
    streams: u64,
    /// True when the file beside the database holds its room.
    kept: bool,
    short_since: Option<Timestamp>,
    /// When the disk was last short.
    short_until: Option<Timestamp>,
}

/// Disk space that the open runs may ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    /// Bytes that one round of every open run sends.
    rounds: u64,
    /// Bytes of the largest single delta.
    delta: u64,
}

impl Demand {
    /// Adds a run whose rounds ask `sites` sites for `payload_bytes` each.
    pub fn add(&mut self, payload_bytes: u64, sites: usize) {
        let round = payload_bytes.saturating_mul(sites as u64);
        self.rounds = self.rounds.saturating_add(round);
        self.delta = self.delta.max(payload_bytes);
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

/// The disk is short.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Shortage(pub Room);

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let Room { free_bytes, reserve_bytes, .. } = self.0;
        let (free, reserve) = (mib(free_bytes), mib(reserve_bytes));
        write!(
            f,
            "the coordinator is short of disk space ({free:.1} MiB free, {reserve:.1} MiB are kept for itself)"
        )
    }
}

impl Space {
    /// The disks under `folders`, the database's first, with the reserve that the configuration
    /// has. What an earlier process kept is given up: to start may need it.
    pub fn of(folders: &[&Path], configured: Option<u64>) -> Self {
        let space = Self::new(folders, configured, true);
        space.remove_kept();
        space
    }

    /// The same for a process that only measures, beside a running coordinator too.
    pub fn to_look_at(folders: &[&Path], configured: Option<u64>) -> Self {
        Self::new(folders, configured, false)
    }

    fn new(folders: &[&Path], configured: Option<u64>, keeps: bool) -> Self {
        let folders: Vec<_> = folders.iter().map(|folder| folder.to_path_buf()).collect();
        Self(Arc::new(Inner { folders, configured, keeps, state: Mutex::default() }))
    }

    /// Measures, with the demand of the open runs.
    pub fn look_for(&self, now: Timestamp, demand: Demand) -> Room {
        self.lock().demand = demand;
        self.look(now)
    }

    /// Measures.
    pub fn look(&self, now: Timestamp) -> Room {
        let mut state = self.lock();
        let free_bytes = self.free();
        // Another process that was started by mistake may have taken it away.
        state.kept = (state.kept && self.is_kept()) || self.keep(free_bytes);
        let (kept, demand) = (state.kept, state.demand);
        let arriving = state.arriving.values().map(|(_, bytes)| *bytes);
        let arriving_bytes = arriving.fold(0, u64::saturating_add);
        let reserve_bytes = self.reserve(demand);
        let short = !kept || free_bytes.saturating_sub(arriving_bytes) < reserve_bytes;
        let before = state.short_since;
        if short {
            state.short_since = before.or(Some(now));
            state.short_until = Some(now);
        } else {
            state.short_since = None;
        }
        let short_since = state.short_since;
        drop(state);
        let room = Room { free_bytes, reserve_bytes, arriving_bytes, short_since };
        match (before, short_since) {
            (None, Some(_)) => {
                tracing::error!("{}; uploads, rounds, invitations and runs wait", Shortage(room));
            }
            (Some(_), None) => {
                tracing::info!("there is room on the disk again; what waited goes on");
            }
            (None, None) | (Some(_), Some(_)) => {}
        }
        room
    }

    /// Refuses while the disk is short.
    pub fn check(&self, now: Timestamp) -> Result<(), Shortage> {
        let room = self.look(now);
        if room.short_since.is_some() { Err(Shortage(room)) } else { Ok(()) }
    }

    /// Refuses when the disk would be short with `demand`.
    pub fn check_for(&self, now: Timestamp, demand: Demand) -> Result<(), Shortage> {
        self.check(now)?;
        let mut room = self.look(now);
        room.reserve_bytes = self.reserve(demand);
        let left = room.free_bytes.saturating_sub(room.arriving_bytes);
        if left < room.reserve_bytes { Err(Shortage(room)) } else { Ok(()) }
    }

    /// True when an adapter of `bytes` bytes can be written and 1 MiB stays free. The reserve
    /// counts as free.
    pub fn fits(&self, bytes: u64) -> bool {
        self.free() >= bytes.saturating_add(MARGIN_BYTES)
    }

    /// True when the disk is short, or was within the last `grace`. Work that sites could not do
    /// then is not held against them.
    pub fn is_or_was_short(&self, now: Timestamp, grace: Duration) -> bool {
        self.look(now);
        let state = self.lock();
        state.short_since.is_some() || state.short_until.is_some_and(|at| now < at.plus(grace))
    }

    /// Accepts an upload of which `bytes` bytes are still to come, unless the disk is short.
    pub fn accept(
        &self,
        now: Timestamp,
        site: &SiteName,
        run: &RunName,
        bytes: u64,
    ) -> Result<Arriving, Shortage> {
        let key = (site.clone(), run.clone());
        // A newer stream takes the place of an older one of the same delta.
        self.lock().arriving.remove(&key);
        if bytes > 0 {
            self.check(now)?;
        }
        let mut state = self.lock();
        state.streams += 1;
        let stream = state.streams;
        state.arriving.insert(key.clone(), (stream, bytes));
        drop(state);
        Ok(Arriving { space: self.clone(), key, stream })
    }

    /// Gives up what is kept, for a commit that found the disk full; says whether there was
    /// anything. The disk is short from now on.
    pub fn give_up(&self, now: Timestamp) -> bool {
        let mut state = self.lock();
        let gave = state.kept && self.remove_kept();
        state.kept = false;
        state.short_since = state.short_since.or(Some(now));
        state.short_until = Some(now);
        gave
    }

    /// Bytes that uploads may not take. With little configured there must still be room for the
    /// largest delta that may be accepted next.
    fn reserve(&self, demand: Demand) -> u64 {
        let told = self.0.configured;
        let reserve = told.unwrap_or(RESERVE_BYTES_MIN.max(demand.rounds.saturating_mul(2)));
        reserve.max(demand.delta.saturating_add(reserve / 2))
    }

    fn free(&self) -> u64 {
        self.0.folders.iter().map(|folder| free(folder)).min().unwrap_or(u64::MAX)
    }

    /// Takes the room that is kept beside the database, where there is twice as much.
    fn keep(&self, free_bytes: u64) -> bool {
        let Some(folder) = self.0.folders.first().filter(|_| self.0.keeps) else { return true };
        let bytes = KEPT_BYTES_MAX.min(total(folder) / 16);
        if free_bytes < bytes.saturating_mul(2) {
            return false;
        }
        let path = folder.join(KEPT);
        let taken = File::create(&path).and_then(|file| take_room(&file, bytes));
        if let Err(error) = taken {
            tracing::debug!(%error, "no room can be kept: {}", path.display());
            self.remove_kept();
            return false;
        }
        true
    }

    fn is_kept(&self) -> bool {
        let kept = self.0.folders.first().filter(|_| self.0.keeps);
        kept.is_none_or(|folder| folder.join(KEPT).exists())
    }

    /// Removes the file beside the database. True when there was one.
    fn remove_kept(&self) -> bool {
        self.0.folders.first().is_some_and(|folder| fs::remove_file(folder.join(KEPT)).is_ok())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is valid after every single operation, also after a panic elsewhere.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An accepted upload: room that is promised until its bytes are there or its stream has ended.
#[derive(Debug)]
pub struct Arriving {
    space: Space,
    key: (SiteName, RunName),
    stream: u64,
}

impl Arriving {
    /// Takes `bytes` more bytes, which are on the disk now, out of what is to come.
    pub fn came(&self, bytes: u64) {
        if let Some((stream, left)) = self.space.lock().arriving.get_mut(&self.key)
            && *stream == self.stream
        {
            *left = left.saturating_sub(bytes);
        }
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        let mut state = self.space.lock();
        if state.arriving.get(&self.key).is_some_and(|(stream, _)| *stream == self.stream) {
            state.arriving.remove(&self.key);
        }
    }
}

/// Bytes that this process may still write under `folder`; none where that cannot be told.
fn free(folder: &Path) -> u64 {
    rustix::fs::statvfs(folder).map_or(0, |found| found.f_bavail.saturating_mul(found.f_frsize))
}

/// The size of the disk under `folder`.
fn total(folder: &Path) -> u64 {
    rustix::fs::statvfs(folder).map_or(0, |found| found.f_blocks.saturating_mul(found.f_frsize))
}

/// Takes `bytes` bytes on the disk; where the file system cannot promise them, by writing them.
fn take_room(mut file: &File, bytes: u64) -> io::Result<()> {
    use rustix::fs::{FallocateFlags, fallocate};
    use rustix::io::Errno;
    match fallocate(file, FallocateFlags::empty(), 0, bytes) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
            let block = [0; 64 << 10];
            for _ in 0..bytes.div_ceil(block.len() as u64) {
                file.write_all(&block)?;
            }
            file.sync_all()
        }
        taken => Ok(taken?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_millis(second * 1_000)
    }

    fn names(site: &str) -> (SiteName, RunName) {
        (site.parse().unwrap(), "run".parse().unwrap())
    }

    #[test]
    fn a_disk_is_short_when_less_than_the_reserve_is_free() {
        let folder = tempfile::tempdir().unwrap();
        let space = Space::of(&[folder.path()], Some(MIB));
        assert_eq!(space.look(at(1)).short_since, None);
        assert!(!space.is_or_was_short(at(1), Duration::from_secs(60)));
        let space = Space::of(&[folder.path()], Some(u64::MAX / 4));
        assert_eq!(space.look(at(1)).short_since, Some(at(1)));
        let shortage = space.check(at(2)).unwrap_err();
        assert_eq!(shortage.0.short_since, Some(at(1)));
        let text = shortage.to_string();
        assert!(text.starts_with("the coordinator is short of disk space ("), "{text}");
        assert!(space.is_or_was_short(at(9), Duration::ZERO));
        let gone = Space::of(&[&folder.path().join("gone")], Some(1));
        assert_eq!(gone.look(at(1)).free_bytes, 0);
        assert!(gone.check(at(1)).is_err());
    }

    #[test]
    fn the_reserve_follows_the_open_runs_unless_it_is_configured() {
        let mut demand = Demand::default();
        demand.add(500, 2);
        let space = Space::of(&[], None);
        assert_eq!(space.reserve(demand), 64 * MIB);
        demand.add(100 * MIB, 1);
        assert_eq!(space.reserve(demand), 200 * MIB + 2_000);
        assert_eq!(Space::of(&[], Some(6)).reserve(demand), 100 * MIB + 3, "the next delta fits");
        assert_eq!(Space::of(&[], Some(MIB)).reserve(Demand::default()), MIB);
    }

    #[test]
    fn accepted_uploads_count_until_they_have_arrived_or_ended() {
        let space = Space::of(&[], Some(MIB));
        let ((a, run), (b, _)) = (names("a"), names("b"));
        let all_but_half = space.look(at(1)).free_bytes - MIB / 2;
        let upload = space.accept(at(1), &a, &run, all_but_half).unwrap();
        assert!(space.accept(at(2), &b, &run, 1).is_err());
        space.accept(at(2), &b, &run, 0).expect("what is here whole takes no room");
        upload.came(all_but_half - MIB);
        assert_eq!(space.look(at(3)).arriving_bytes, MIB);
        assert!(space.accept(at(3), &b, &run, 1).is_ok());
        // A newer stream of the same delta takes the older one's place, also when that ends.
        let newer = space.accept(at(4), &a, &run, 2 * MIB).unwrap();
        drop(upload);
        assert_eq!(space.look(at(4)).arriving_bytes, 2 * MIB);
        drop(newer);
        assert_eq!(space.look(at(4)).arriving_bytes, 0);
    }

    #[test]
    fn what_is_kept_is_given_up_once_and_taken_again() {
        let folder = tempfile::tempdir().unwrap();
        let space = Space::of(&[folder.path()], Some(MIB));
        let kept = folder.path().join(KEPT);
        assert!(!space.give_up(at(1)), "nothing is kept before the first look");
        assert_eq!(space.look(at(2)).short_since, None);
        assert!(fs::metadata(&kept).unwrap().len() > 0);
        assert!(space.give_up(at(3)));
        assert!(!kept.exists());
        assert!(!space.give_up(at(3)));
        let grace = Duration::from_secs(5);
        assert_eq!(space.look(at(4)).short_since, None, "there is room again");
        assert!(space.is_or_was_short(at(7), grace), "sites have some time to come back");
        assert!(!space.is_or_was_short(at(8), grace));
        // One that only looks leaves it alone, the next one to serve begins without it.
        assert_eq!(space.look(at(9)).short_since, None);
        Space::to_look_at(&[folder.path()], Some(MIB)).look(at(9));
        assert!(kept.exists());
        Space::of(&[folder.path()], Some(MIB));
        assert!(!kept.exists());
    }

    #[test]
    fn a_run_that_would_make_the_disk_short_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let space = Space::of(&[folder.path()], None);
        let mut demand = Demand::default();
        space.check_for(at(1), demand).unwrap();
        demand.add(space.look(at(1)).free_bytes, 3);
        assert!(space.check_for(at(1), demand).is_err());
        assert_eq!(space.look(at(1)).short_since, None, "the run was not started");
    }
}
