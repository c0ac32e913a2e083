//! Appending to the history: events, leaves, tree nodes and head in one transaction.

use sqlx::SqliteConnection;
use tributary_shared::digest::Digest;
use tributary_shared::name::RunName;
use tributary_shared::timestamp::Timestamp;
use tributary_shared::tlog::frontier::Frontier;
use tributary_shared::tlog::merkle::leaf_hash;

use super::writer::{Appended, Transaction};
use super::{Store, StoreError, int};
use crate::round::record::{Event, LEAF_BYTES_MAX, Record, Stream};

/// Why events were not committed; nothing of them is stored.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The stream is not where the caller thought: another writer was there.
    #[error("{stream} has moved on from event {expected_seq}")]
    Stale {
        /// The stream.
        stream: Stream,
        /// The number that the first event would have had.
        expected_seq: u64,
    },
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a run was not started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// There is one of that name.
    #[error("there is a run `{0}` already; give the manifest another name")]
    RunExists(RunName),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Store {
    /// Appends `events` to `stream`, whose next event must be number `expected_seq`. Gives each
    /// with its leaf index.
    pub async fn commit(
        &self,
        at: Timestamp,
        stream: &Stream,
        expected_seq: u64,
        events: &[Event],
    ) -> Result<Vec<(u64, Record)>, CommitError> {
        let (stream, events) = (stream.clone(), events.to_vec());
        self.write("commit", move |store, tx| {
            Box::pin(async move {
                let moved =
                    advance(&mut tx.connection, &stream, expected_seq, events.len()).await?;
                if !moved {
                    return Ok(Err(CommitError::Stale { stream, expected_seq }));
                }
                Ok(Ok(store.append(tx, at, &stream, expected_seq, events).await?))
            })
        })
        .await
    }

    /// Appends the first `events` of run `name`, of which there must be none.
    pub async fn start_run(
        &self,
        at: Timestamp,
        name: &RunName,
        events: &[Event],
    ) -> Result<Vec<(u64, Record)>, StartError> {
        match self.commit(at, &Stream::Run(name.clone()), 0, events).await {
            Ok(records) => Ok(records),
            Err(CommitError::Stale { .. }) => Err(StartError::RunExists(name.clone())),
            Err(CommitError::Store(error)) => Err(error.into()),
        }
    }

    /// Adds the leaves of `events`, by which `stream` was advanced, to transaction `tx`.
    pub(super) async fn append(
        &self,
        tx: &mut Transaction,
        at: Timestamp,
        stream: &Stream,
        first_seq: u64,
        events: Vec<Event>,
    ) -> Result<Vec<(u64, Record)>, StoreError> {
        let failed = StoreError::sql("append to the history");
        let mut frontier = load_frontier(&mut tx.connection).await?;
        let old_size = frontier.size();
        let mut records = Vec::with_capacity(events.len());
        for (seq, event) in (first_seq..).zip(events) {
            let leaf = frontier.size();
            let record = Record::new(at, stream.clone(), seq, event);
            insert_leaf(&mut tx.connection, &mut frontier, &record).await?;
            records.push((leaf, record));
        }
        if records.is_empty() {
            return Ok(records);
        }
        sqlx::query("UPDATE head SET size = $1, root = $2 WHERE size = $3")
            .bind(int(frontier.size()))
            .bind(&frontier.root().as_bytes()[..])
            .bind(int(old_size))
            .execute(&mut tx.connection)
            .await
            .map_err(&failed)?;
        let seen = self.write_seen(&mut tx.connection).await?;
        tx.appended = Some(Appended { size: frontier.size(), seen });
        Ok(records)
    }
}

/// Moves `stream` on by `count` events if its next one is number `expected_seq`; says whether it
/// was. The compare-and-swap of every transaction, and its first statement.
async fn advance(
    tx: &mut SqliteConnection,
    stream: &Stream,
    expected_seq: u64,
    count: usize,
) -> Result<bool, StoreError> {
    let sql = if expected_seq == 0 {
        "INSERT INTO stream (name, next_seq) VALUES ($1, $3) ON CONFLICT (name) DO NOTHING"
    } else {
        "UPDATE stream SET next_seq = $2 + $3 WHERE name = $1 AND next_seq = $2"
    };
    if count == 0 {
        return Ok(true);
    }
    let done = sqlx::query(sql)
        .bind(stream.to_string())
        .bind(int(expected_seq))
        .bind(int(count as u64))
        .execute(tx)
        .await
        .map_err(StoreError::sql("append to the history"))?;
    Ok(done.rows_affected() == 1)
}

/// Moves the registry on by one event, wherever it is; gives that event's number.
pub(super) async fn advance_registry(tx: &mut SqliteConnection) -> Result<u64, StoreError> {
    let next: u64 = sqlx::query_scalar(
        "INSERT INTO stream (name, next_seq) VALUES ($1, 1)
         ON CONFLICT (name) DO UPDATE SET next_seq = next_seq + 1 RETURNING next_seq",
    )
    .bind(Stream::Registry.to_string())
    .fetch_one(tx)
    .await
    .map_err(StoreError::sql("append to the history"))?;
    Ok(next - 1)
}

async fn insert_leaf(
    tx: &mut SqliteConnection,
    frontier: &mut Frontier,
    record: &Record,
) -> Result<(), StoreError> {
    let failed = StoreError::sql("append to the history");
    let bytes = record.to_bytes();
    if bytes.len() > LEAF_BYTES_MAX {
        return Err(StoreError::LeafTooLarge(bytes.len()));
    }
    // What cannot be read again (a NaN has no JSON) would make the whole history unreadable.
    if !Record::from_bytes(&bytes).is_ok_and(|read| read == *record) {
        return Err(StoreError::Unreadable);
    }
    let hash = leaf_hash(&bytes);
    sqlx::query("INSERT INTO leaf (idx, stream, seq, bytes) VALUES ($1, $2, $3, $4)")
        .bind(int(frontier.size()))
        .bind(record.stream.to_string())
        .bind(int(record.seq))
        .bind(bytes)
        .execute(&mut *tx)
        .await
        .map_err(&failed)?;
    for node in frontier.append(hash) {
        sqlx::query("INSERT INTO node (level, idx, hash) VALUES ($1, $2, $3)")
            .bind(node.level)
            .bind(int(node.index))
            .bind(&node.hash.as_bytes()[..])
            .execute(&mut *tx)
            .await
            .map_err(&failed)?;
    }
    Ok(())
}

/// The right edge of the stored tree.
pub(super) async fn load_frontier(tx: &mut SqliteConnection) -> Result<Frontier, StoreError> {
    let failed = StoreError::sql("read the history's head");
    let size: u64 =
        sqlx::query_scalar("SELECT size FROM head").fetch_one(&mut *tx).await.map_err(&failed)?;
    // One subtree for every set bit of the size, looked up by its key.
    let edge: Vec<(u32, Vec<u8>)> = sqlx::query_as(
        "WITH RECURSIVE levels (level) AS
             (SELECT 0 UNION ALL SELECT level + 1 FROM levels WHERE level < 62)
         SELECT node.level, node.hash FROM levels CROSS JOIN node
         ON node.level = levels.level AND node.idx = ($1 >> levels.level) - 1
         WHERE ($1 >> levels.level) & 1 = 1",
    )
    .bind(int(size))
    .fetch_all(&mut *tx)
    .await
    .map_err(&failed)?;
    Frontier::load(size, |level, index| {
        let found = edge.iter().find(|(l, _)| *l == level);
        let hash = found.and_then(|(_, hash)| Digest::try_from(&hash[..]).ok());
        hash.ok_or_else(|| StoreError::Corrupt(format!("tree node {level}/{index} is missing")))
    })
}
