//! Stores the largest signed head beside the log's key, so that a lost or older database is noticed.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tributary_proto::channel::write_durably;
use tributary_shared::digest::Digest;
use tributary_shared::tlog::checkpoint::Checkpoint;
use tributary_shared::tlog::key::{Signer, VerifierKey};
use tributary_shared::tlog::note::NOTE_BYTES_MAX;
use tributary_shared::tlog::recovery::Head;

use crate::membership::{LOST_HEAD, SIGNED_HEAD};

/// Pause between two syncs of the file. It is written before a head is given out; after a power
/// failure the sites still hold newer heads.
const EVERY: Duration = Duration::from_secs(1);
/// Age up to which a head is given out again: many sites ask at once, and each new head is written
/// to the disk.
const RECENT: Duration = Duration::from_secs(1);

/// Signs heads and remembers the largest. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Heads(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    signer: Arc<Signer>,
    path: PathBuf,
    largest: Mutex<Option<Head>>,
    /// When this process signed the largest head.
    signed: Mutex<Option<Instant>>,
    grown: Notify,
    lost: OnceLock<Head>,
}

impl Inner {
    fn lost_path(&self) -> PathBuf {
        self.path.with_file_name(LOST_HEAD)
    }
}

impl Heads {
    /// The memory in the authority's `directory`.
    pub fn open(directory: &Path, signer: Arc<Signer>) -> io::Result<Self> {
        let largest = read(directory, &signer.verifier_key())?;
        Ok(Self(Arc::new(Inner {
            signer,
            path: directory.join(SIGNED_HEAD),
            largest: Mutex::new(largest),
            signed: Mutex::default(),
            grown: Notify::new(),
            lost: OnceLock::new(),
        })))
    }

    /// The key that signs.
    pub fn signer(&self) -> &Signer {
        &self.0.signer
    }

    /// The largest head that is known to have been signed.
    pub fn largest(&self) -> Option<Head> {
        self.lock().clone()
    }

    /// Signs the head of `size` leaves; gives the signed note. If it is the largest, it is written to
    /// the file first. An error means that it could not be written and must not be given out: a restored
    /// database would not be known to be older than what a site holds.
    pub fn sign(&self, size: u64, root: Digest) -> io::Result<String> {
        let note = Checkpoint::sign(size, root, &self.0.signer);
        let mut largest = self.lock();
        if largest.as_ref().is_none_or(|known| known.size < size) {
            replace(&self.0.path, &note)?;
            *largest = Some(Head { size, root, note: note.clone() });
            *self.signed() = Some(Instant::now());
            self.0.grown.notify_one();
        }
        Ok(note)
    }

    /// The largest head, if this process signed it within the last second.
    pub fn recent(&self) -> Option<Head> {
        let largest = self.lock();
        let is_recent = self.signed().is_some_and(|at| at.elapsed() < RECENT);
        largest.clone().filter(|_| is_recent)
    }

    /// Makes the file durable as it is. Blocks.
    fn sync(&self) -> io::Result<()> {
        File::open(&self.0.path)?.sync_all()?;
        match self.0.path.parent() {
            Some(folder) => File::open(folder)?.sync_all(),
            None => Ok(()),
        }
    }

    /// Makes durable what is remembered. Blocks.
    pub fn write(&self) -> io::Result<()> {
        match self.largest() {
            Some(head) => write_durably(&self.0.path, head.note.as_bytes(), 0o600),
            None => Ok(()),
        }
    }

    /// Remembers a head that the log has signed and does not continue, for `recover`; `fatal` when
    /// nothing explains the fork, so that going on would make it longer. Says whether it is the
    /// first such head. Blocks for one small file.
    pub fn lose(&self, head: &Head, fatal: bool) -> bool {
        let known = read_file(&self.0.lost_path(), &self.0.signer.verifier_key());
        let is_news = !matches!(known, Ok(Some(known)) if known.size >= head.size);
        if is_news
            && let Err(error) = write_durably(&self.0.lost_path(), head.note.as_bytes(), 0o600)
        {
            tracing::error!(%error, "{}: cannot remember it", self.0.lost_path().display());
        }
        // After the file: the line is the operator's cue to stop and recover.
        let stops = fatal && self.0.lost.set(head.clone()).is_ok();
        if is_news || stops {
            tracing::error!(
                "a site holds a signed head of {} leaves that this history does not continue; {}run `tributary-coordinator recover`",
                head.size,
                if stops { "this coordinator stops in a few seconds; then " } else { "" }
            );
        }
        stops
    }

    /// The head that ended the service.
    pub fn lost(&self) -> Option<&Head> {
        self.0.lost.get()
    }

    /// Forgets the branch that was lost: from now on `head` of this one is the largest.
    pub fn begin_anew(&self, size: u64, root: Digest) -> io::Result<()> {
        let note = Checkpoint::sign(size, root, &self.0.signer);
        *self.lock() = Some(Head { size, root, note });
        *self.signed() = None;
        self.write()?;
        match std::fs::remove_file(self.0.lost_path()) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Makes the file durable after it was replaced, at most once a second, until `stop`.
    pub async fn keep(self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = self.0.grown.notified() => {}
                () = stop.cancelled() => return,
            }
            let heads = self.clone();
            let written = tokio::task::spawn_blocking(move || heads.sync()).await;
            if let Ok(Err(error)) = written {
                tracing::warn!(%error, "{}: not made durable", self.0.path.display());
            }
            tokio::select! {
                () = tokio::time::sleep(EVERY) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// Locked after `largest`, where both are.
    fn signed(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.0.signed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Head>> {
        // One value that is whole after every assignment, also after a panic.
        self.0.largest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Replaces the file by one rename, without waiting for the disk.
fn replace(path: &Path, note: &str) -> io::Result<()> {
    let part = path.with_extension("part");
    std::fs::write(&part, note)?;
    std::fs::rename(&part, path)
}

/// Reads the remembered head of the authority in `directory`; `None` when it never signed one. A
/// file that holds no head of this log is an error: it is the only memory there is.
pub fn read(directory: &Path, key: &VerifierKey) -> io::Result<Option<Head>> {
    read_file(&directory.join(SIGNED_HEAD), key)
}

/// Reads the largest head that a site showed and the history did not continue.
pub fn read_lost(directory: &Path, key: &VerifierKey) -> io::Result<Option<Head>> {
    read_file(&directory.join(LOST_HEAD), key)
}

fn read_file(path: &Path, key: &VerifierKey) -> io::Result<Option<Head>> {
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let mut note = String::new();
    io::Read::read_to_string(&mut io::Read::take(file, NOTE_BYTES_MAX as u64), &mut note)?;
    let invalid =
        |e| io::Error::new(io::ErrorKind::InvalidData, tributary_shared::outcome::chain(&e));
    Head::open(&note, key).map(Some).map_err(invalid)
}

#[cfg(test)]
mod tests {
    use ring::rand::SystemRandom;

    use super::*;

    #[test]
    fn the_largest_head_survives_a_restart_and_a_smaller_one_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let pkcs8 = Signer::generate(&SystemRandom::new()).unwrap();
        let signer = Arc::new(Signer::from_pkcs8("log", &pkcs8).unwrap());
        let heads = Heads::open(folder.path(), signer.clone()).unwrap();
        assert_eq!(heads.largest(), None);
        let large = heads.sign(7, Digest::of(b"7")).unwrap();
        heads.sign(3, Digest::of(b"3")).unwrap();
        assert_eq!(heads.recent().unwrap().note, large);
        heads.write().unwrap();
        let again = Heads::open(folder.path(), signer.clone()).unwrap();
        assert_eq!(again.largest().unwrap().note, large);
        assert_eq!(again.recent(), None, "another process signed it");
        again.begin_anew(4, Digest::of(b"4")).unwrap();
        let key = signer.verifier_key();
        assert_eq!(read(folder.path(), &key).unwrap().unwrap().size, 4);
        std::fs::write(folder.path().join(SIGNED_HEAD), "7 leaves").unwrap();
        assert!(Heads::open(folder.path(), signer).is_err());
    }
    /// Failed before: on a full disk the head was given out, and after a restore `recover` did not know of it.
    #[test]
    fn a_head_that_cannot_be_remembered_is_not_given_out() {
        let folder = tempfile::tempdir().unwrap();
        let pkcs8 = Signer::generate(&SystemRandom::new()).unwrap();
        let signer = Arc::new(Signer::from_pkcs8("log", &pkcs8).unwrap());
        let heads = Heads::open(folder.path(), signer).unwrap();
        let first = heads.sign(3, Digest::of(b"3")).unwrap();
        // A folder where the file's successor would be written.
        let blocked = folder.path().join(SIGNED_HEAD).with_extension("part");
        std::fs::create_dir(&blocked).unwrap();
        assert!(heads.sign(7, Digest::of(b"7")).is_err());
        assert_eq!(heads.sign(3, Digest::of(b"3")).unwrap(), first, "it is in the file already");
        std::fs::remove_dir(&blocked).unwrap();
        let large = heads.sign(7, Digest::of(b"7")).unwrap();
        assert_eq!(std::fs::read_to_string(folder.path().join(SIGNED_HEAD)).unwrap(), large);
    }
}
