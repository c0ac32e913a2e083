//! A history that was restored from a backup: the statement that explains it, and its acceptance.
//!
//! The statement alone changes nothing here. It must hold under the log's key and an operator's,
//! and the site's engineer (or `policy.toml`) must accept it by name.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use tributary_proto::channel::{Identity, check_recovery, write_durably};
use tributary_shared::digest::Digest;
use tributary_shared::outcome::{Failure, chain};
use tributary_shared::tlog::checkpoint::Checkpoint;
use tributary_shared::tlog::key::VerifierKey;
use tributary_shared::tlog::recovery::{RECOVERIES_MAX, Recovery, Statement};

use super::directory::recoveries_of;
use super::trouble::RECOVERY_ASKED;
use super::{Halt, Site};
use crate::clock;
use crate::config::policy::{OnRecovery, Policy};

/// Pause between two looks for the acceptance that the site waits for.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Advice where a statement came that does not explain the head of this site.
const UNDERSTATED: &str = "the coordinator's recovery statement names fewer leaves than this site has seen, and the coordinator's log now says so: its operator runs `tributary-coordinator recover` again";
/// Most statements kept in the site's directory that are read.
const FILES_MAX: usize = 1_000;

/// The two files of a statement in the site's directory.
#[derive(Clone, Debug)]
pub struct Files {
    /// The statement, as it came.
    pub statement: PathBuf,
    /// Written when the statement is accepted.
    pub accepted: PathBuf,
}

impl Files {
    /// The files of the statement `digest` of the site in `directory`.
    pub fn of(directory: &Path, digest: Digest) -> Self {
        let folder = recoveries_of(directory);
        let hex = digest.to_hex();
        Self {
            statement: folder.join(format!("{hex}.json")),
            accepted: folder.join(format!("{hex}.accepted")),
        }
    }

    /// Notes who accepted the statement, durably.
    pub fn accept(&self, by: &str) -> std::io::Result<()> {
        let text = format!("accepted by {by} at {}\n", clock::now());
        write_durably(&self.accepted, text.as_bytes(), 0o600)
    }
}

/// The statements that the running client was given and kept, each with its files, checked again
/// against the site's identity.
pub fn kept(directory: &Path, identity: &Identity) -> Result<Vec<(Recovery, Files)>, Failure> {
    let folder = recoveries_of(directory);
    let failed =
        |e: std::io::Error| Failure::invalid("directory", format!("{}: {e}", folder.display()));
    let entries = match std::fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(failed(e)),
    };
    let mut found = Vec::new();
    for entry in entries.take(FILES_MAX) {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let bytes = std::fs::read(&path).map_err(failed)?;
        let recovery = Trust::of(identity).and_then(|trust| trust.checked(&bytes));
        let recovery = recovery.map_err(|problem| {
            Failure::invalid("recovery", format!("{}: {problem}", path.display()))
        })?;
        let files = Files::of(directory, recovery.statement.digest());
        found.push((recovery, files));
    }
    found.sort_by_key(|(recovery, _)| recovery.statement.at);
    Ok(found)
}

/// The part of an identity by which statements are checked.
#[derive(Clone, Debug)]
pub(super) struct Trust {
    /// The log's key.
    pub(super) key: VerifierKey,
    /// Digest of the authority's certificate.
    pub(super) root: Digest,
}

impl Trust {
    /// That of `identity`, or the fault of its log key.
    fn of(identity: &Identity) -> Result<Self, String> {
        let key = identity.log_verifier_key.parse().map_err(|e| chain(&e))?;
        Ok(Self { key, root: Digest::of(&identity.root) })
    }

    /// Reads a statement and checks both signatures.
    fn checked(&self, bytes: &[u8]) -> Result<Recovery, String> {
        let recovery = Recovery::from_json(bytes, &self.key).map_err(|e| chain(&e))?;
        check_recovery(&recovery, &self.key, self.root).map_err(|e| chain(&e))?;
        Ok(recovery)
    }

    /// Of the statements that hold, the one that explains `held` and keeps the most.
    pub(super) fn explanation(&self, held: &Checkpoint, offered: &[Bytes]) -> Option<Recovery> {
        let readable = offered.iter().take(RECOVERIES_MAX).filter_map(|bytes| {
            self.checked(bytes)
                .inspect_err(|problem| tracing::warn!("a recovery statement is refused: {problem}"))
                .ok()
        });
        readable
            .filter(|recovery| recovery.statement.covers(held))
            .max_by_key(|recovery| recovery.statement.kept.size)
    }
}

/// The meaning of a statement for this site, in one line.
fn told(said: &Statement, held: &Checkpoint) -> String {
    format!(
        "the coordinator's history was restored from a backup of {} leaves and this site has seen {}; \
         the log's key and {} have signed that: {}",
        said.kept.size, held.size, said.operator, said.reason
    )
}

impl Site {
    /// Leaves that accepted statements say were lost, over all of them.
    pub(super) fn lost_leaves(&self) -> u64 {
        let kept = kept(&self.config.directory, &self.identity).unwrap_or_default();
        let accepted = kept.iter().filter(|(_, files)| files.accepted.exists());
        accepted.map(|(recovery, _)| recovery.statement.lost_leaves()).sum()
    }

    /// Goes on from the head that an accepted statement keeps, or says why the site waits.
    pub(super) fn recover(&mut self, offered: &[Bytes], broken: Failure) -> Result<(), Halt> {
        let Some(held) = self.keeper.checkpoint().cloned() else { return Err(Halt::Wrong(broken)) };
        let trust = Trust::of(&self.identity)
            .inspect_err(|problem| tracing::warn!("the identity's log key: {problem}"));
        let Some(recovery) = trust.ok().and_then(|trust| trust.explanation(&held, offered)) else {
            let failure = if offered.is_empty() { broken } else { broken.hint(UNDERSTATED) };
            return Err(Halt::Wrong(failure));
        };
        let said = &recovery.statement;
        let files = Files::of(&self.config.directory, said.digest());
        let disk = |e: std::io::Error| Halt::disk("a recovery statement", &e);
        if !files.statement.exists() {
            write_durably(&files.statement, recovery.to_json().as_bytes(), 0o600).map_err(disk)?;
        }
        if !files.accepted.exists() {
            // A policy that cannot be read accepts nothing.
            let asks =
                Policy::load(&self.config.policy).map_or(OnRecovery::Ask, |policy| policy.recovery);
            if asks == OnRecovery::Ask {
                let config = self.config.file.display();
                let hint = format!(
                    "read it with `tributary-client recovery show --config {config}`; if the consortium confirms it, `tributary-client recovery accept --config {config}`"
                );
                self.awaited = Some(files.accepted);
                let failure = Failure::refused(RECOVERY_ASKED, told(said, &held)).hint(hint);
                return Err(Halt::Wrong(failure));
            }
            files.accept("policy.toml, recovery = \"accept\"").map_err(disk)?;
        }
        let evidence =
            self.keeper.resume(&recovery).map_err(|e| Halt::disk("the witness file", &e))?;
        tracing::warn!(
            "{}; accepted: going on from {} leaves, the head seen before is kept in {}",
            told(said, &held),
            said.kept.size,
            evidence.display()
        );
        Ok(())
    }

    /// Waits, at most until a statement that the site asks about was accepted.
    pub(super) async fn pause(&self, wait: Duration) {
        let accepted = async {
            let Some(path) = &self.awaited else { return std::future::pending().await };
            while !path.exists() {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = accepted => {}
        }
    }
}
