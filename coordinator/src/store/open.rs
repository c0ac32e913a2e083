//! Opening: one process at a time, our own file only, its schema known and brought up to date.

use std::ffi::OsString;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sqlx::SqlitePool;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection};
use tokio::sync::watch;

use super::writer::Writer;
use super::{Inner, Store, StoreError};

pub(super) static MIGRATIONS: Migrator = sqlx::migrate!("./migrations");

/// "TRIB": what SQLite's file header calls our databases; the first migration writes it.
const APPLICATION_ID: i64 = 1_414_678_850;
/// A backup tool may hold the file for a moment.
pub(super) const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
const READERS: u32 = 2;

impl Store {
    /// Opens the database file `path`, creating it when there is none, for this process alone.
    pub async fn open(path: &Path) -> Result<Self, StoreError> {
        let lock = lock(path)?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY_TIMEOUT)
            .disable_statement_logging();
        refuse_foreign(path).await?;
        migrate(path, &options).await?;
        let readers = readers(path, options.clone().read_only(true)).await?;
        let store = Self(Arc::new(Inner {
            path: path.to_owned(),
            writer: Writer::new(options),
            readers,
            size: watch::Sender::new(0),
            seen: Mutex::default(),
            lock,
        }));
        let size = store.check_head().await?;
        store.0.size.send_replace(size);
        Ok(store)
    }

    /// The database file.
    pub fn path(&self) -> &Path {
        &self.0.path
    }
}

/// Takes the lock that keeps a second coordinator out. It is on a file of its own: SQLite's locks
/// come and go with each transaction.
pub fn lock(path: &Path) -> Result<File, StoreError> {
    let open = |source| StoreError::Open { path: path.to_owned(), source };
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(lock_path(path))
        .map_err(open)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::InUse { path: path.to_owned() }),
        Err(TryLockError::Error(source)) => Err(open(source)),
    }
}

/// The lock file beside the database `path`.
pub(super) fn lock_path(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".lock");
    PathBuf::from(name)
}

/// Makes the file if there is none, and brings its schema up to date. The connection is not used
/// for anything else.
async fn migrate(path: &Path, options: &SqliteConnectOptions) -> Result<(), StoreError> {
    let options = options.clone().create_if_missing(true);
    let mut connection = options.connect().await.map_err(|error| not_ours(path, error))?;
    let migrated = MIGRATIONS.run(&mut connection).await;
    migrated.map_err(|error| migration_failed(path, error))?;
    connection.close().await.map_err(StoreError::sql("migrate"))
}

/// The connections that read. One stays open for good: as long as there is one, no other
/// connection recovers the journal, which could bring back a commit that was reported as failed.
async fn readers(path: &Path, options: SqliteConnectOptions) -> Result<SqlitePool, StoreError> {
    SqlitePoolOptions::new()
        .max_connections(READERS)
        .min_connections(1)
        .idle_timeout(None)
        .max_lifetime(None)
        .test_before_acquire(false)
        .connect_with(options)
        .await
        .map_err(|error| not_ours(path, error))
}

/// Looks at an existing file before anything is written to it.
pub(super) async fn refuse_foreign(path: &Path) -> Result<(), StoreError> {
    let size = match std::fs::metadata(path) {
        Ok(found) => found.len(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
        Err(source) => return Err(StoreError::Open { path: path.to_owned(), source }),
    };
    // Empty: SQLite makes the file before it writes to it, and we may have been killed between.
    if size == 0 {
        return Ok(());
    }
    let looked = |error| not_ours(path, error);
    let mut connection =
        SqliteConnectOptions::new().filename(path).connect().await.map_err(looked)?;
    let id: i64 = sqlx::query_scalar("PRAGMA application_id")
        .fetch_one(&mut connection)
        .await
        .map_err(looked)?;
    let tables: i64 = sqlx::query_scalar(
        "SELECT COUNT(*) FROM sqlite_schema WHERE type = 'table' AND name <> '_sqlx_migrations'",
    )
    .fetch_one(&mut connection)
    .await
    .map_err(looked)?;
    if id != APPLICATION_ID && (id != 0 || tables > 0) {
        let problem = format!("its application id is {id}");
        return Err(StoreError::Foreign { path: path.to_owned(), problem });
    }
    Ok(())
}

/// SQLITE_NOTADB among the reasons why a connection fails.
pub(super) fn not_ours(path: &Path, error: sqlx::Error) -> StoreError {
    let not_a_database =
        error.as_database_error().and_then(|e| e.code()).is_some_and(|code| code == "26");
    if not_a_database {
        let problem = "it is no SQLite file".to_owned();
        return StoreError::Foreign { path: path.to_owned(), problem };
    }
    StoreError::Sql { verb: "open", source: error }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "sqlx's enum is not exhaustive")]
fn migration_failed(path: &Path, error: MigrateError) -> StoreError {
    let path = path.to_owned();
    match error {
        MigrateError::VersionMissing(version) => StoreError::Newer { path, version },
        MigrateError::VersionMismatch(version) => {
            StoreError::Foreign { path, problem: format!("its schema {version} is another one") }
        }
        other => StoreError::Sql { verb: "migrate", source: other.into() },
    }
}
