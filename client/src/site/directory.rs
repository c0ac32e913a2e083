//! The site's directory: identity, ledger, outbox, adapters, status. One program at a time.

use std::fs::{File, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tributary_proto::private;
use tributary_shared::outcome::Failure;

use crate::ledger;

/// Where `enroll` puts the identity.
pub fn identity_of(directory: &Path) -> PathBuf {
    directory.join("identity")
}

/// Where `run` tells how it is.
pub fn status_of(directory: &Path) -> PathBuf {
    directory.join("status.json")
}

/// Where the ledger is.
pub fn ledger_of(directory: &Path) -> PathBuf {
    directory.join(ledger::FILE_NAME)
}

/// The folder of recovery statements and of the site's answers to them.
pub fn recoveries_of(directory: &Path) -> PathBuf {
    directory.join("recoveries")
}

/// Whether a program holds the directory right now.
pub fn is_held(directory: &Path) -> bool {
    let lock = File::options().write(true).open(directory.join(LOCK));
    lock.is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)))
}

const LOCK: &str = "lock";
/// Folders that hold nothing but what the program wrote.
const OWN_FOLDERS: [&str; 4] = ["identity", "outbox", "adapters", "recoveries"];
/// Longest name of a process read from a lock file, bytes.
const HOLDER_BYTES_MAX: u64 = 20;
/// Pause between two tries for the lock.
const LOCK_RETRY: Duration = Duration::from_millis(50);

/// The site's directory, held until this value is dropped or the process ends.
#[derive(Debug)]
pub(super) struct SiteDirectory {
    root: PathBuf,
    _lock: File,
}

impl SiteDirectory {
    /// Makes what is missing and takes the lock; waits up to `patience` for another program to let
    /// go of it, for one that was just killed takes a moment to be gone.
    pub(super) fn open(root: &Path, patience: Duration) -> Result<Self, Failure> {
        let failed = |path: &Path, e: io::Error| {
            Failure::invalid("directory", format!("{}: {e}", path.display()))
                .hint("site.toml's `directory` must be a folder that this user may write")
        };
        let directory = |path: &Path| private::create_folder(path).map_err(|e| failed(path, e));
        directory(root)?;
        let lock_path = root.join(LOCK);
        let mut options = File::options();
        let opened = options.create(true).truncate(false).write(true).open(&lock_path);
        let lock = opened.map_err(|e| failed(&lock_path, e))?;
        let busy = || {
            let holder = holder(&lock_path);
            format!("{}: another tributary-client{holder} uses it", root.display())
        };
        let waits = || {
            let seconds = patience.as_secs();
            tracing::warn!("{}; waiting up to {seconds} s for it to end", busy());
        };
        take(&lock, patience, waits).map_err(|e| match e {
            TryLockError::WouldBlock => {
                Failure::invalid("directory", busy()).hint("stop that one first")
            }
            TryLockError::Error(e) => failed(&lock_path, e),
        })?;
        sign(&lock);
        let held = Self { root: root.to_path_buf(), _lock: lock };
        directory(&held.outbox())?;
        directory(&held.adapters())?;
        directory(&recoveries_of(root))?;
        tighten(root);
        Ok(held)
    }

    pub(super) fn ledger(&self) -> PathBuf {
        ledger_of(&self.root)
    }

    pub(super) fn outbox(&self) -> PathBuf {
        self.root.join("outbox")
    }

    pub(super) fn adapters(&self) -> PathBuf {
        self.root.join("adapters")
    }

    pub(super) fn witness(&self) -> PathBuf {
        self.root.join("witness.json")
    }

    pub(super) fn status(&self) -> PathBuf {
        status_of(&self.root)
    }
}

/// Takes the lock; `waits` is called once, when the lock is held and waiting starts.
fn take(lock: &File, patience: Duration, waits: impl FnOnce()) -> Result<(), TryLockError> {
    let began = Instant::now();
    let mut waits = Some(waits);
    loop {
        match lock.try_lock() {
            Err(TryLockError::WouldBlock) if began.elapsed() < patience => {
                if let Some(waits) = waits.take() {
                    waits();
                }
                std::thread::sleep(LOCK_RETRY);
            }
            taken => return taken,
        }
    }
}

/// Writes into the lock who holds it. It helps people only: without room on the disk it is missing.
fn sign(mut lock: &File) {
    let _ = lock.set_len(0).and_then(|()| write!(lock, "{}", std::process::id()));
}

/// Process that wrote its id into the lock, as words for a message. Empty when it cannot be read.
fn holder(lock: &Path) -> String {
    let mut text = String::new();
    let read = File::open(lock)
        .and_then(|file| file.take(HOLDER_BYTES_MAX).read_to_string(&mut text))
        .is_ok();
    match text.trim().parse::<u32>() {
        Ok(process) if read => format!(" (process {process})"),
        Ok(_) | Err(_) => String::new(),
    }
}

/// Takes from other users what they could do with the site's files. A disk that says no to it does
/// not stop the site.
fn tighten(root: &Path) {
    match private::tighten_folder(root, &OWN_FOLDERS) {
        Ok(0) => {}
        Ok(open) => tracing::warn!(
            "{}: {open} files and folders were open to other users of this machine; now they are not",
            root.display()
        ),
        Err(error) => tracing::warn!(
            "{}: other users of this machine may read files of the site: {error}",
            root.display()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A11. Failed before: a directory that was there already stayed open to everybody.
    #[test]
    fn a_directory_that_others_could_read_is_closed() {
        use std::fs::{Permissions, metadata, set_permissions, write};
        use std::os::unix::fs::PermissionsExt as _;

        let folder = tempfile::tempdir().unwrap();
        let ledger = ledger_of(folder.path());
        write(&ledger, "").unwrap();
        for (path, mode) in [(folder.path(), 0o755), (ledger.as_path(), 0o644)] {
            set_permissions(path, Permissions::from_mode(mode)).unwrap();
        }
        SiteDirectory::open(folder.path(), Duration::ZERO).unwrap();
        for (path, mode) in [(folder.path(), 0o700), (ledger.as_path(), 0o600)] {
            assert_eq!(metadata(path).unwrap().permissions().mode() & 0o777, mode);
        }
    }

    #[test]
    fn a_directory_serves_one_program_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("a/b");
        let first = SiteDirectory::open(&root, Duration::ZERO).unwrap();
        assert!(is_held(&root));
        let error = SiteDirectory::open(&root, Duration::ZERO).unwrap_err();
        let holder = format!("another tributary-client (process {})", std::process::id());
        assert!(error.to_string().contains(&holder), "{error}");
        // One that goes away within the patience is waited for.
        let waiting = {
            let root = root.clone();
            std::thread::spawn(move || SiteDirectory::open(&root, Duration::from_secs(60)).is_ok())
        };
        drop(first);
        assert!(waiting.join().unwrap());
        assert!(!is_held(&root));
        assert!(SiteDirectory::open(&root, Duration::ZERO).is_ok());
    }
}
