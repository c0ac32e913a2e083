//! Files that a command writes for its user and never over another.

use std::io::Write;
use std::path::Path;

use tempfile::NamedTempFile;
use tributary_shared::outcome::Failure;

use super::file_failure;

/// The failure of a file that would be written over.
pub(super) fn taken(path: &Path) -> Failure {
    Failure::invalid("exists", format!("{} exists already", path.display()))
        .hint("name another file with --out, or remove that one")
}

/// Writes a file that only its owner reads, whole or not at all, and never over another.
pub(super) fn write_new(path: &Path, text: &str) -> Result<(), Failure> {
    let failed = |e: &std::io::Error| file_failure(path, e);
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        Some(_) | None => Path::new("."),
    };
    let mut file = NamedTempFile::new_in(folder).map_err(|e| failed(&e))?;
    file.write_all(text.as_bytes()).map_err(|e| failed(&e))?;
    file.as_file().sync_all().map_err(|e| failed(&e))?;
    match file.persist_noclobber(path) {
        Ok(_) => Ok(()),
        Err(e) if e.error.kind() == std::io::ErrorKind::AlreadyExists => Err(taken(path)),
        Err(e) => Err(failed(&e.error)),
    }
}
