//! Files that a command writes for its user and never over another.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tributary_shared::outcome::Failure;

use super::file_failure;

/// Permission bits of a file that only its owner reads.
pub(super) const PRIVATE: u32 = 0o600;
/// Permission bits of a file that all may read.
pub(super) const PUBLIC: u32 = 0o644;

/// The failure of a file that would be written over.
pub(super) fn taken(path: &Path) -> Failure {
    Failure::invalid("exists", format!("{} exists already", path.display()))
        .hint("name another file with --out, or remove that one")
}

/// Writes a file of permission bits `mode`, whole or not at all, and never over another.
pub(super) fn write_new(path: &Path, text: &str, mode: u32) -> Result<(), Failure> {
    let failed = |e: &std::io::Error| file_failure(path, e);
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        Some(_) | None => Path::new("."),
    };
    let mut file = tempfile::Builder::new()
        .permissions(std::fs::Permissions::from_mode(mode))
        .tempfile_in(folder)
        .map_err(|e| failed(&e))?;
    file.write_all(text.as_bytes()).map_err(|e| failed(&e))?;
    file.as_file().sync_all().map_err(|e| failed(&e))?;
    match file.persist_noclobber(path) {
        Ok(_) => Ok(()),
        Err(e) if e.error.kind() == std::io::ErrorKind::AlreadyExists => Err(taken(path)),
        Err(e) => Err(failed(&e.error)),
    }
}
