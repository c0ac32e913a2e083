//! Looking at a database file without being its coordinator: a consistent copy of one that is in
//! use, and the proof that a copy is whole.

use std::path::{Path, PathBuf};

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection, SqliteConnection};
use tributary_shared::digest::Digest;
use tributary_shared::tlog::frontier::Frontier;
use tributary_shared::tlog::merkle::leaf_hash;

use super::open::{BUSY_TIMEOUT, MIGRATIONS, not_ours, refuse_foreign};
use super::read::{Head, checked_head};
use super::{StoreError, int};
use crate::round::record::Record;

/// Leaves read at once.
const LEAVES_AT_ONCE: u32 = 256;

/// A database file, open for reading. A coordinator may work on it meanwhile.
#[derive(Debug)]
pub struct Look {
    path: PathBuf,
    connection: SqliteConnection,
}

impl Look {
    /// Opens the database `path`, which must be one of ours and of a schema known here.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        let found = std::fs::metadata(path)
            .map_err(|source| StoreError::Open { path: path.to_owned(), source })?;
        if found.len() == 0 {
            let problem = "it is empty".to_owned();
            return Err(StoreError::Foreign { path: path.to_owned(), problem });
        }
        refuse_foreign(path).await?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .read_only(true)
            .busy_timeout(BUSY_TIMEOUT)
            .disable_statement_logging();
        let connection = options.connect().await.map_err(|error| not_ours(path, error))?;
        let mut look = Self { path: path.to_owned(), connection };
        let version = look.schema_version().await?;
        if MIGRATIONS.iter().all(|known| known.version < version) {
            return Err(StoreError::Newer { path: look.path, version });
        }
        Ok(look)
    }

    /// The version of its schema.
    pub async fn schema_version(&mut self) -> Result<i64, StoreError> {
        sqlx::query_scalar("SELECT COALESCE(MAX(version), 0) FROM _sqlx_migrations")
            .fetch_one(&mut self.connection)
            .await
            .map_err(|error| not_ours(&self.path, error))
    }

    /// Writes a copy, as it is at one moment, to the file `to`, which must not exist.
    pub async fn copy_to(&mut self, to: &Path) -> Result<(), StoreError> {
        let to = to.to_str().ok_or_else(|| StoreError::Open {
            path: to.to_owned(),
            source: std::io::Error::other("SQLite needs a path in UTF-8"),
        })?;
        sqlx::query("VACUUM INTO $1")
            .bind(to)
            .execute(&mut self.connection)
            .await
            .map(drop)
            .map_err(StoreError::sql("be copied"))
    }

    /// Asks SQLite whether the file's pages are sound.
    pub async fn check_pages(&mut self) -> Result<(), StoreError> {
        let verdict: String = sqlx::query_scalar("PRAGMA quick_check(1)")
            .fetch_one(&mut self.connection)
            .await
            .map_err(StoreError::sql("check itself"))?;
        if verdict == "ok" { Ok(()) } else { Err(StoreError::Corrupt(verdict)) }
    }

    /// Reads the whole history, gives every record with the tree that ends with it, and compares the last root with the
    /// stored head's.
    pub async fn prove(
        &mut self,
        mut each: impl FnMut(&Record, &Frontier),
    ) -> Result<Head, StoreError> {
        let head = checked_head(&mut self.connection).await?;
        let mut frontier = Frontier::new();
        while frontier.size() < head.size {
            let leaves: Vec<Vec<u8>> =
                sqlx::query_scalar("SELECT bytes FROM leaf WHERE idx >= $1 ORDER BY idx LIMIT $2")
                    .bind(int(frontier.size()))
                    .bind(LEAVES_AT_ONCE)
                    .fetch_all(&mut self.connection)
                    .await
                    .map_err(StoreError::sql("read the history"))?;
            if leaves.is_empty() {
                return Err(StoreError::Corrupt(format!("leaf {} is missing", frontier.size())));
            }
            for bytes in leaves {
                let leaf = frontier.size();
                let record = Record::from_bytes(&bytes)
                    .map_err(|e| StoreError::Corrupt(format!("leaf {leaf}: {e}")))?;
                frontier.append(leaf_hash(&bytes));
                each(&record, &frontier);
            }
        }
        let found: Digest = frontier.root();
        if (frontier.size(), found) != (head.size, head.root) {
            let (size, root) = (head.size, head.root);
            return Err(StoreError::Corrupt(format!(
                "its {size} leaves have root {found}, its head says {root}"
            )));
        }
        Ok(head)
    }

    /// Writes the journal back into the file and closes it.
    pub async fn settle(path: &Path) -> Result<(), StoreError> {
        let options = SqliteConnectOptions::new().filename(path).busy_timeout(BUSY_TIMEOUT);
        let mut connection = options.connect().await.map_err(|error| not_ours(path, error))?;
        sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)")
            .execute(&mut connection)
            .await
            .map_err(|error| not_ours(path, error))?;
        connection.close().await.map_err(|error| not_ours(path, error))
    }

    /// Closes the file.
    pub async fn close(self) -> Result<(), StoreError> {
        self.connection.close().await.map_err(StoreError::sql("be closed"))
    }
}
