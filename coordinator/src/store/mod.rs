//! The database: the history with its Merkle tree, and who may take part. SQLite, one writer.
//!
//! Every verb that writes is one transaction (`writer`), and runs to its end even when the caller
//! has gone away. What memory holds beside the file follows only a commit that counts.

mod append;
mod inspect;
mod look;
mod members;
mod open;
mod proofs;
mod read;
mod writer;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sqlx::SqlitePool;
use tokio::sync::watch;
use tributary_proto::channel::Member;
use tributary_shared::timestamp::Timestamp;
use tributary_shared::tlog::merkle::ProofError;

use self::writer::Writer;
use crate::unbroken::Interrupted;

pub use append::{CommitError, StartError};
pub use inspect::{Inspection, inspect, is_in_use};
pub use look::Look;
pub use members::{
    Certificate, EnrolError, Invitation, MemberRow, MemberState, StateChange, StateError,
};
pub use open::lock;
pub use read::{Head, Leaf};

/// The coordinator's database. Cheap to clone; the last clone closes it.
#[derive(Clone, Debug)]
pub struct Store(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    writer: Writer,
    readers: SqlitePool,
    /// Leaves in the log.
    size: watch::Sender<u64>,
    /// When members were last heard, as far as no transaction has carried it to their rows.
    seen: Mutex<BTreeMap<Member, Timestamp>>,
    /// Held as long as the database is open; the system releases it if we are killed.
    lock: File,
}

/// Why the database cannot be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process works on it.
    #[error("{path} is in use by another coordinator; stop it, or give this one its own directory")]
    InUse {
        /// The database file.
        path: PathBuf,
    },
    /// The file or its directory cannot be used at all.
    #[error("cannot open the database {path}; is its directory there and writable?")]
    Open {
        /// The database file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A database, but not one of ours.
    #[error("{path} is not a Tributary database: {problem}")]
    Foreign {
        /// The database file.
        path: PathBuf,
        /// What it lacks or has.
        problem: String,
    },
    /// Written by a later version.
    #[error(
        "{path} has schema version {version}, which this version does not know; use the coordinator that wrote it, or a later one"
    )]
    Newer {
        /// The database file.
        path: PathBuf,
        /// The schema version found.
        version: i64,
    },
    /// SQLite said no.
    #[error("the database cannot {verb}")]
    Sql {
        /// The verb that failed.
        verb: &'static str,
        /// What SQLite said.
        source: sqlx::Error,
    },
    /// What is stored contradicts itself.
    #[error("the database is damaged: {0}; restore it from a backup")]
    Corrupt(String),
    /// An event too large for a leaf.
    #[error("an event of {0} bytes does not fit a leaf of the history")]
    LeafTooLarge(usize),
    /// An event that could not be read back.
    #[error("an event would not be read back as it was written")]
    Unreadable,
    /// The process is shutting down.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// SQLite's codes for a disk, a quota or a file-size limit that leaves no room: `SQLITE_FULL`, and
/// `SQLITE_IOERR` of writing, of syncing and of the shared memory's size.
const FULL: [&str; 4] = ["13", "778", "1034", "4874"];

impl StoreError {
    /// True when the disk has no room.
    pub fn is_full(&self) -> bool {
        let Self::Sql { source, .. } = self else { return false };
        let code = source.as_database_error().and_then(sqlx::error::DatabaseError::code);
        code.is_some_and(|code| FULL.contains(&&*code))
    }

    fn sql(verb: &'static str) -> impl Fn(sqlx::Error) -> Self {
        move |source| Self::Sql { verb, source }
    }
}

impl From<ProofError<Self>> for StoreError {
    fn from(error: ProofError<Self>) -> Self {
        match error {
            ProofError::Node(error) => error,
            outside @ ProofError::OutOfRange { .. } => Self::Corrupt(outside.to_string()),
        }
    }
}

impl Store {
    /// The size of the log, now and whenever it grows.
    pub fn follow(&self) -> watch::Receiver<u64> {
        self.0.size.subscribe()
    }

    /// Closes the database: writes its journal back, waits until that is done, and lets another
    /// process in.
    pub async fn close(&self) {
        self.0.readers.close().await;
        // The last one to go writes the journal back.
        self.0.writer.close().await;
        if let Err(error) = self.0.lock.unlock() {
            tracing::warn!(%error, "the database stays locked until this process ends");
        }
    }

    fn seen(&self) -> MutexGuard<'_, BTreeMap<Member, Timestamp>> {
        // The map is valid after every single operation, also after a panic elsewhere.
        self.0.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A count as SQLite stores it. None comes near the limit.
fn int(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
