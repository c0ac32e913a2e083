//! Reading the history.

use sqlx::{QueryBuilder, Sqlite, SqliteConnection};
use tributary_shared::digest::Digest;
use tributary_shared::name::RunName;
use tributary_shared::tlog::merkle::leaf_hash;

use super::append::load_frontier;
use super::{Store, StoreError, int};
use crate::round::event::RegistryEvent;
use crate::round::record::{Event, Record, Stream};

/// Events read at a time.
const PAGE: u32 = 256;

/// The log's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Leaves.
    pub size: u64,
    /// The root of their tree.
    pub root: Digest,
}

/// One leaf as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Its place in the log.
    pub index: u64,
    /// The event's record.
    pub bytes: Vec<u8>,
    /// Its hash in the tree.
    pub hash: Digest,
}

impl Store {
    /// Every run, by name.
    pub async fn run_names(&self) -> Result<Vec<RunName>, StoreError> {
        let names: Vec<String> =
            sqlx::query_scalar("SELECT name FROM stream WHERE name GLOB 'run/*' ORDER BY name")
                .fetch_all(&self.0.readers)
                .await
                .map_err(StoreError::sql("list the runs"))?;
        names.iter().map(|name| run_name(name)).collect()
    }

    /// The records of `stream` in order, each with its leaf index.
    pub async fn records(&self, stream: &Stream) -> Result<Vec<(u64, Record)>, StoreError> {
        let rows: Vec<(u64, Vec<u8>)> =
            sqlx::query_as("SELECT idx, bytes FROM leaf WHERE stream = $1 ORDER BY seq")
                .bind(stream.to_string())
                .fetch_all(&self.0.readers)
                .await
                .map_err(StoreError::sql("read the history"))?;
        rows.into_iter()
            .map(|(index, bytes)| {
                let record = Record::from_bytes(&bytes)
                    .map_err(|e| StoreError::Corrupt(format!("leaf {index}: {e}")))?;
                Ok((index, record))
            })
            .collect()
    }

    /// Value that `wanted` takes of the newest registry event for which it returns one.
    pub async fn newest_of_registry<T>(
        &self,
        wanted: impl Fn(&RegistryEvent) -> Option<T>,
    ) -> Result<Option<T>, StoreError> {
        let mut before = i64::MAX;
        loop {
            let rows: Vec<(i64, u64, Vec<u8>)> = sqlx::query_as(
                "SELECT seq, idx, bytes FROM leaf WHERE stream = $1 AND seq < $2
                 ORDER BY seq DESC LIMIT $3",
            )
            .bind(Stream::Registry.to_string())
            .bind(before)
            .bind(PAGE)
            .fetch_all(&self.0.readers)
            .await
            .map_err(StoreError::sql("read the history"))?;
            let Some((oldest, ..)) = rows.last() else { return Ok(None) };
            before = *oldest;
            for (_, index, bytes) in rows {
                let record = Record::from_bytes(&bytes)
                    .map_err(|e| StoreError::Corrupt(format!("leaf {index}: {e}")))?;
                let found = match &record.event {
                    Event::Registry(event) => wanted(event),
                    Event::Run(_) => None,
                };
                if found.is_some() {
                    return Ok(found);
                }
            }
        }
    }

    /// At most `limit` leaves of the whole log from index `from` on.
    pub async fn leaves(&self, from: u64, limit: u32) -> Result<Vec<Leaf>, StoreError> {
        let mut query = select_leaves();
        query.push("leaf.idx >= ").push_bind(int(from));
        query.push(" ORDER BY leaf.idx LIMIT ").push_bind(limit);
        self.read_leaves(query).await
    }

    /// The leaves at `indices`, in the log's order. One that the log does not have is left out.
    pub async fn leaves_at(&self, indices: &[u64]) -> Result<Vec<Leaf>, StoreError> {
        let mut query = select_leaves();
        query.push("leaf.idx IN (");
        let mut list = query.separated(", ");
        for index in indices {
            list.push_bind(int(*index));
        }
        query.push(") ORDER BY leaf.idx");
        self.read_leaves(query).await
    }

    async fn read_leaves(&self, mut query: QueryBuilder<Sqlite>) -> Result<Vec<Leaf>, StoreError> {
        let rows: Vec<(u64, Vec<u8>, Vec<u8>)> = query
            .build_query_as()
            .fetch_all(&self.0.readers)
            .await
            .map_err(StoreError::sql("read the history"))?;
        rows.into_iter()
            .map(|(index, bytes, hash)| {
                let hash = digest(&hash, || format!("leaf {index}"))?;
                // One hash of a small text, against handing out what no longer fits the tree.
                if leaf_hash(&bytes) != hash {
                    return Err(StoreError::Corrupt(format!("leaf {index} was changed")));
                }
                Ok(Leaf { index, bytes, hash })
            })
            .collect()
    }

    /// The log's head.
    pub async fn head(&self) -> Result<Head, StoreError> {
        let failed = StoreError::sql("read the history's head");
        let mut connection = self.0.readers.acquire().await.map_err(failed)?;
        read_head(&mut connection).await
    }

    /// Compares the stored head with the tree under it; gives the size.
    pub(super) async fn check_head(&self) -> Result<u64, StoreError> {
        let failed = StoreError::sql("read the history's head");
        let mut connection = self.0.readers.acquire().await.map_err(failed)?;
        Ok(checked_head(&mut connection).await?.size)
    }
}

/// The beginning of a query for leaves; the condition follows.
fn select_leaves() -> QueryBuilder<Sqlite> {
    QueryBuilder::new(
        "SELECT leaf.idx, leaf.bytes, node.hash FROM leaf
         JOIN node ON node.level = 0 AND node.idx = leaf.idx WHERE ",
    )
}

/// The stored head, compared with the tree under it.
pub(super) async fn checked_head(connection: &mut SqliteConnection) -> Result<Head, StoreError> {
    let head = read_head(connection).await?;
    let root = load_frontier(connection).await?.root();
    let leaves: u64 = sqlx::query_scalar("SELECT COALESCE(MAX(idx) + 1, 0) FROM leaf")
        .fetch_one(&mut *connection)
        .await
        .map_err(StoreError::sql("read the history's head"))?;
    if (leaves, root) != (head.size, head.root) {
        let (size, stored) = (head.size, head.root);
        return Err(StoreError::Corrupt(format!(
            "its head says {size} leaves under {stored}, it holds {leaves} under {root}"
        )));
    }
    Ok(head)
}

async fn read_head(connection: &mut SqliteConnection) -> Result<Head, StoreError> {
    let (size, root): (u64, Vec<u8>) = sqlx::query_as("SELECT size, root FROM head")
        .fetch_one(connection)
        .await
        .map_err(StoreError::sql("read the history's head"))?;
    Ok(Head { size, root: digest(&root, || "the head".to_owned())? })
}

pub(super) fn digest(bytes: &[u8], what: impl Fn() -> String) -> Result<Digest, StoreError> {
    Digest::try_from(bytes).map_err(|e| StoreError::Corrupt(format!("{}: {e}", what())))
}

fn run_name(stream: &str) -> Result<RunName, StoreError> {
    match stream.parse() {
        Ok(Stream::Run(name)) => Ok(name),
        Ok(Stream::Registry) | Err(_) => Err(StoreError::Corrupt(format!("stream `{stream}`"))),
    }
}
