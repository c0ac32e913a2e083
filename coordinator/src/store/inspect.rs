//! Inspection of a database without serving it: beside a running coordinator or alone, changing
//! nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, TryLockError};
use std::path::Path;

use tributary_shared::digest::Digest;
use tributary_shared::tlog::recovery::Recovery;

use super::StoreError;
use super::look::Look;
use super::open::lock_path;
use crate::round::event::{RegistryEvent, RunEvent};
use crate::round::record::{Event, Record, Stream};

/// Contents of a database.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Inspection {
    /// Leaves of the history.
    pub leaves: u64,
    /// The newest adapter of every run that has not ended: without it the run cannot go on.
    pub adapters: BTreeMap<String, Digest>,
    /// Roots over the first leaves, by their number, for the sizes that were asked for.
    pub roots: BTreeMap<u64, Digest>,
    /// Every recovery statement, in order.
    pub recoveries: Vec<Recovery>,
}

/// Says whether a coordinator works on the database `path` right now.
pub fn is_in_use(path: &Path) -> bool {
    let lock = File::options().write(true).open(lock_path(path));
    lock.is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)))
}

/// Proves the database file `path` and reads what the runs that go on need, with the roots at `sizes`.
pub async fn inspect(path: &Path, sizes: &BTreeSet<u64>) -> Result<Inspection, StoreError> {
    let mut look = Look::open(path).await?;
    let mut found = Inspection::default();
    let mut ended = BTreeSet::new();
    let read = async {
        look.check_pages().await?;
        look.prove(|record, tree| {
            found.take(record, &mut ended);
            if sizes.contains(&tree.size()) {
                found.roots.insert(tree.size(), tree.root());
            }
        })
        .await
    };
    let head = read.await;
    look.close().await?;
    found.leaves = head?.size;
    found.adapters.retain(|run, _| !ended.contains(run));
    Ok(found)
}

impl Inspection {
    fn take(&mut self, record: &Record, ended: &mut BTreeSet<String>) {
        if let Event::Registry(RegistryEvent::Recovered { recovery }) = &record.event {
            self.recoveries.push((**recovery).clone());
        }
        let (Stream::Run(run), Event::Run(event)) = (&record.stream, &record.event) else { return };
        if let RunEvent::RunStarted { adapter, .. } | RunEvent::AdapterPublished { adapter, .. } =
            event
        {
            self.adapters.insert(run.to_string(), *adapter);
        }
        if matches!(event, RunEvent::RunEnded { .. }) {
            ended.insert(run.to_string());
        }
        if matches!(event, RunEvent::RunResumed { .. }) {
            ended.remove(run.as_str());
        }
    }
}
