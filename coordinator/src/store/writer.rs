//! The one connection that writes, and the one function through which every write goes.
//!
//! A commit counts only when `COMMIT` itself said so. After any error SQLite may have rolled back
//! by itself or may still be inside the transaction, so the connection is closed and the next verb
//! opens another: `BEGIN` fails inside a transaction and `COMMIT` fails outside of one, which makes
//! plain SQL its own check. No pool and no counter of nested transactions stands in between.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::time::Duration;

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection, SqliteConnection};
use tokio::sync::Mutex;
use tributary_proto::channel::Member;
use tributary_shared::timestamp::Timestamp;

use super::{Store, StoreError};
use crate::unbroken::to_the_end;

/// Longest wait for readers when the journal is written back after an error.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(1);

/// The place of the writing connection.
#[derive(Debug)]
pub(super) struct Writer {
    options: SqliteConnectOptions,
    slot: Mutex<Slot>,
}

#[derive(Debug, Default)]
struct Slot {
    /// Absent before the first verb, while a verb works, and after any error.
    connection: Option<SqliteConnection>,
    /// True when the last verb did not come to a clean end.
    in_doubt: bool,
    closed: bool,
}

/// A transaction under way.
pub(super) struct Transaction {
    /// The connection inside the transaction.
    pub(super) connection: SqliteConnection,
    /// Changes that memory takes over once the transaction is committed.
    pub(super) appended: Option<Appended>,
}

/// Changes of one transaction to the log and to members' rows.
pub(super) struct Appended {
    /// Leaves in the log.
    pub(super) size: u64,
    /// When members were last heard, as written.
    pub(super) seen: BTreeMap<Member, Timestamp>,
}

/// The work of one write verb. The inner error is a refusal, which is rolled back; the outer one a
/// fault, after which the connection is not used again.
pub(super) type Work<'t, T, E> =
    Pin<Box<dyn Future<Output = Result<Result<T, E>, StoreError>> + Send + 't>>;

impl Writer {
    pub(super) fn new(options: SqliteConnectOptions) -> Self {
        Self { options, slot: Mutex::default() }
    }

    /// Waits for the verb under way, closes the connection, and lets no other verb begin.
    pub(super) async fn close(&self) {
        let mut slot = self.slot.lock().await;
        slot.closed = true;
        if let Some(connection) = slot.connection.take() {
            discard(connection).await;
        }
    }

    async fn open(&self, verb: &'static str) -> Result<SqliteConnection, StoreError> {
        self.options.connect().await.map_err(StoreError::sql(verb))
    }

    /// Writes the journal back and empties it, as far as that is possible now: it gives room back
    /// on a full disk, and takes away what an interrupted commit may have left behind the last
    /// transaction that counts.
    async fn settle(&self) {
        let options = self.options.clone().busy_timeout(SETTLE_TIMEOUT);
        let settled = async {
            let mut connection = options.connect().await?;
            sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(&mut connection).await?;
            connection.close().await
        };
        if let Err(error) = settled.await {
            tracing::debug!(%error, "the database's journal cannot be written back now");
        }
    }
}

impl Store {
    /// Writes the journal back and gives its room to the disk, as far as that is possible now.
    pub async fn give_room_back(&self) {
        let slot = self.0.writer.slot.lock().await;
        if !slot.closed {
            self.0.writer.settle().await;
        }
    }

    /// Runs `work` in a transaction of its own, to the end even when the caller's future is
    /// dropped: no caller may be left in doubt about what was committed, and followers hear of it.
    pub(super) async fn write<T, E, W>(&self, verb: &'static str, work: W) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
        W: for<'t> FnOnce(&'t Self, &'t mut Transaction) -> Work<'t, T, E> + Send + 'static,
    {
        let store = self.clone();
        let done = to_the_end(async move { store.write_once(verb, work).await }).await;
        done.unwrap_or_else(|interrupted| Err(StoreError::from(interrupted).into()))
    }

    async fn write_once<T, E, W>(&self, verb: &'static str, work: W) -> Result<T, E>
    where
        E: From<StoreError>,
        W: for<'t> FnOnce(&'t Self, &'t mut Transaction) -> Work<'t, T, E>,
    {
        let writer = &self.0.writer;
        let mut slot = writer.slot.lock().await;
        if slot.closed {
            return Err(StoreError::sql(verb)(sqlx::Error::PoolClosed).into());
        }
        let connection = match slot.connection.take() {
            Some(connection) => connection,
            None => {
                if slot.in_doubt {
                    writer.settle().await;
                }
                writer.open(verb).await?
            }
        };
        slot.in_doubt = true;
        let mut transaction = Transaction { connection, appended: None };
        match self.carry_out(&mut transaction, verb, work).await {
            Ok(outcome) => {
                slot.connection = Some(transaction.connection);
                slot.in_doubt = false;
                outcome
            }
            Err(fault) => {
                discard(transaction.connection).await;
                Err(fault.into())
            }
        }
    }

    async fn carry_out<T, E, W>(
        &self,
        transaction: &mut Transaction,
        verb: &'static str,
        work: W,
    ) -> Result<Result<T, E>, StoreError>
    where
        W: for<'t> FnOnce(&'t Self, &'t mut Transaction) -> Work<'t, T, E>,
    {
        transaction.say("BEGIN IMMEDIATE", verb).await?;
        let outcome = work(self, transaction).await?;
        if outcome.is_err() {
            transaction.say("ROLLBACK", verb).await?;
            return Ok(outcome);
        }
        transaction.say("COMMIT", verb).await?;
        if let Some(Appended { size, seen }) = transaction.appended.take() {
            self.forget_seen(seen);
            self.0.size.send_replace(size);
        }
        Ok(outcome)
    }
}

impl Transaction {
    async fn say(&mut self, sql: &'static str, verb: &'static str) -> Result<(), StoreError> {
        let said = sqlx::query(sql).execute(&mut self.connection).await;
        said.map(drop).map_err(StoreError::sql(verb))
    }
}

/// Closes a connection; what it had not committed is rolled back.
async fn discard(connection: SqliteConnection) {
    if let Err(error) = connection.close().await {
        tracing::warn!(%error, "a connection to the database was not closed cleanly");
    }
}
