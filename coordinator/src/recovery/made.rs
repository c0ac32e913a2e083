//! The recovery statements that an authority has made, each a file in its directory: a restored
//! database may be older than the statement that its history held.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tributary_proto::channel::write_durably;
use tributary_shared::outcome::{Failure, chain};
use tributary_shared::tlog::key::VerifierKey;
use tributary_shared::tlog::recovery::Recovery;

use super::statement::read_statement;

/// The folder of the statements, in the authority's directory.
pub(crate) const RECOVERIES: &str = "recoveries";
/// Most statements that are read.
const FILES_MAX: usize = 1_000;

/// Keeps `recovery`, durably.
pub(super) fn remember(directory: &Path, recovery: &Recovery) -> Result<(), Failure> {
    let folder = directory.join(RECOVERIES);
    fs::create_dir_all(&folder).map_err(|e| failed(&folder, &e))?;
    let path = folder.join(format!("{}.json", recovery.statement.digest().to_hex()));
    write_durably(&path, recovery.to_json().as_bytes(), 0o600).map_err(|e| failed(&path, &e))
}

/// The statements that the authority in `directory` has made, each checked against the log's `key`.
pub(super) fn made(directory: &Path, key: &VerifierKey) -> Result<Vec<Recovery>, Failure> {
    let folder = directory.join(RECOVERIES);
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(failed(&folder, &e)),
    };
    let mut found = Vec::new();
    for entry in entries.take(FILES_MAX) {
        let path: PathBuf = entry.map_err(|e| failed(&folder, &e))?.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let text = read_statement(&path)?;
        let recovery = Recovery::from_json(text.as_bytes(), key).map_err(|e| {
            Failure::invalid("recovery", format!("{}: {}", path.display(), chain(&e)))
        })?;
        found.push(recovery);
    }
    Ok(found)
}

fn failed(path: &Path, error: &io::Error) -> Failure {
    Failure::invalid("file", format!("{}: {error}", path.display()))
}
