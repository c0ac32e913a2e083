//! The store's promises, on real files.

mod faults;
mod history;
mod members;

use tributary_shared::digest::Digest;
use tributary_shared::name::RunName;

use super::*;
use crate::round::event::{EndState, RegistryEvent, RunEvent};
use crate::round::record::{Event, Stream};

fn at(millis: i64) -> Timestamp {
    Timestamp::from_millis(millis)
}

fn run(name: &str) -> Stream {
    Stream::Run(name.parse().unwrap())
}

/// Events that differ from each other; what they mean is not the store's to know.
fn events(count: usize, first: usize) -> Vec<Event> {
    (first..first + count)
        .map(|i| RunEvent::RunEnded { state: EndState::Stopped, detail: format!("event {i}") })
        .map(Event::Run)
        .collect()
}

fn invited(member: &Member) -> RegistryEvent {
    let (member, by) = (member.to_string(), "operator/anna".to_owned());
    RegistryEvent::Invited { member, expires: at(9_000), by, replaces: false }
}

struct Room {
    directory: tempfile::TempDir,
}

impl Room {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("tributary.db")
    }

    async fn open(&self) -> Store {
        Store::open(&self.file()).await.unwrap()
    }

    /// Several statements that go past our verbs.
    async fn run(&self, sql: &str) {
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(self.file());
        let mut connection = sqlx::ConnectOptions::connect(&options).await.unwrap();
        let sql = sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned()));
        sql.execute(&mut connection).await.unwrap();
        sqlx::Connection::close(connection).await.unwrap();
    }

    /// SQL that goes past our verbs, as a person with a shell would.
    async fn tamper(&self, sql: &'static str) -> Result<(), sqlx::Error> {
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(self.file());
        let mut connection = sqlx::ConnectOptions::connect(&options).await?;
        sqlx::query(sql).execute(&mut connection).await?;
        sqlx::Connection::close(connection).await
    }
}
