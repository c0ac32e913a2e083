//! Looking at a database without serving it: beside a running coordinator or alone, changing
//! nothing.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::path::Path;

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection, SqliteConnection};
use tributary_shared::digest::Digest;

use super::open::{lock_path, refuse_foreign};
use super::{StoreError, int};
use crate::round::event::RunEvent;
use crate::round::record::{Event, Record, Stream};

/// Leaves read at a time.
const PAGE: u32 = 1_000;

/// Contents of a database.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inspection {
    /// Leaves of the history.
    pub leaves: u64,
    /// The newest adapter of every run that goes on: without it the run cannot.
    pub adapters: BTreeMap<String, Digest>,
}

/// Says whether a coordinator works on the database `path` right now.
pub fn is_in_use(path: &Path) -> bool {
    let lock = File::options().write(true).open(lock_path(path));
    lock.is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)))
}

/// Checks the database file `path` and reads what the runs that go on need; `None` when there is
/// no file.
pub async fn inspect(path: &Path) -> Result<Option<Inspection>, StoreError> {
    if !path.exists() {
        return Ok(None);
    }
    refuse_foreign(path).await?;
    let open = SqliteConnectOptions::new().filename(path).read_only(true);
    let mut connection = open.connect().await.map_err(StoreError::sql("open"))?;
    let found = read(&mut connection).await;
    connection.close().await.map_err(StoreError::sql("close"))?;
    found.map(Some)
}

async fn read(connection: &mut SqliteConnection) -> Result<Inspection, StoreError> {
    let verdict: String = sqlx::query_scalar("PRAGMA quick_check(1)")
        .fetch_one(&mut *connection)
        .await
        .map_err(StoreError::sql("check itself"))?;
    if verdict != "ok" {
        return Err(StoreError::Corrupt(verdict));
    }
    let mut found = Inspection::default();
    loop {
        let page: Vec<Vec<u8>> =
            sqlx::query_scalar("SELECT bytes FROM leaf WHERE idx >= $1 ORDER BY idx LIMIT $2")
                .bind(int(found.leaves))
                .bind(PAGE)
                .fetch_all(&mut *connection)
                .await
                .map_err(StoreError::sql("read the history"))?;
        if page.is_empty() {
            return Ok(found);
        }
        for bytes in page {
            found.take(&bytes)?;
        }
    }
}

impl Inspection {
    fn take(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        let leaf = self.leaves;
        let record = Record::from_bytes(bytes)
            .map_err(|e| StoreError::Corrupt(format!("leaf {leaf}: {e}")))?;
        self.leaves += 1;
        let (Stream::Run(run), Event::Run(event)) = (record.stream, record.event) else {
            return Ok(());
        };
        if let RunEvent::RunStarted { adapter, .. } | RunEvent::AdapterPublished { adapter, .. } =
            &event
        {
            self.adapters.insert(run.to_string(), *adapter);
        }
        if matches!(event, RunEvent::RunEnded { .. }) {
            self.adapters.remove(run.as_str());
        }
        Ok(())
    }
}
