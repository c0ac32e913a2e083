//! `status.json`: the site's status, for `tributary-client status` and for programs that watch it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tributary_proto::channel::Identity;
use tributary_shared::timestamp::Timestamp;

use super::activity::Activity;
use super::directory::{SiteDirectory, status_of};
use super::trouble::Trouble;
use crate::{clock, durable};

/// Fewest seconds between two writes.
const EVERY: Duration = Duration::from_secs(1);
/// Largest status file read, bytes.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// How the site is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// 1.
    pub schema_version: u32,
    /// Who this is.
    pub member: String,
    /// The consortium.
    pub consortium: String,
    /// The coordinator's address.
    pub coordinator: String,
    /// The program's process id.
    pub process: u32,
    /// When this was written.
    pub at: Timestamp,
    /// Whether the program was leaving when it wrote this.
    pub left: bool,
    /// What it does.
    pub activity: Activity,
    /// The site's own troubles.
    #[serde(default)]
    pub troubles: Vec<Trouble>,
}

impl Status {
    /// Reads what the program in `directory` wrote last; `None` when it never ran.
    pub fn read(directory: &Path) -> io::Result<Option<Self>> {
        let file = match std::fs::File::open(status_of(directory)) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        let mut text = String::new();
        io::Read::read_to_string(&mut io::Read::take(file, FILE_BYTES_MAX), &mut text)?;
        Ok(Some(serde_json::from_str(&text)?))
    }
}

/// Writes `status.json` whenever the activity changes.
#[derive(Clone, Debug)]
pub(super) struct Reporter {
    path: PathBuf,
    status: Status,
    address: watch::Receiver<String>,
    troubles: watch::Receiver<Vec<Trouble>>,
}

impl Reporter {
    pub(super) fn new(
        directory: &SiteDirectory,
        identity: &Identity,
        address: watch::Receiver<String>,
        troubles: watch::Receiver<Vec<Trouble>>,
    ) -> Self {
        let status = Status {
            schema_version: 1,
            member: identity.member.to_string(),
            consortium: identity.consortium.to_string(),
            coordinator: address.borrow().clone(),
            process: std::process::id(),
            at: clock::now(),
            left: false,
            activity: Activity::default(),
            troubles: Vec::new(),
        };
        Self { path: directory.status(), status, address, troubles }
    }

    /// Goes on until it is aborted.
    pub(super) async fn keep(mut self, mut activity: watch::Receiver<Activity>) {
        loop {
            self.status.activity = activity.borrow_and_update().clone();
            self.write();
            // A trouble is told at once.
            tokio::select! {
                () = tokio::time::sleep(EVERY) => {}
                changed = self.troubles.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return,
                },
            }
            let changed = tokio::select! {
                changed = activity.changed() => changed,
                changed = self.troubles.changed() => changed,
            };
            if changed.is_err() {
                return;
            }
        }
    }

    /// The last word.
    pub(super) fn leave(mut self) {
        self.status.left = true;
        self.write();
    }

    /// Writes the file as things are.
    pub(super) fn write(&mut self) {
        self.status.at = clock::now();
        self.status.coordinator = self.address.borrow().clone();
        self.status.troubles = self.troubles.borrow_and_update().clone();
        let json = serde_json::to_vec_pretty(&self.status).expect("a status is plain data");
        // On a full disk the old file's room is all that there is.
        let written = durable::replace_lazily(&self.path, &json)
            .or_else(|_| durable::write_over(&self.path, &json));
        if let Err(error) = written {
            // Work is worth more than telling about it.
            tracing::debug!("{}: {error}", self.path.display());
        }
    }
}
