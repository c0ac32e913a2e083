//! Folders that appear whole or not at all.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tributary_proto::private::create_folder;

use super::DataError;
use crate::durable;

/// A folder being written beside its final place; removed again unless committed.
pub struct Staging {
    partial: TempDir,
    out: PathBuf,
}

impl Staging {
    /// Refuses an `out` that holds anything.
    pub fn begin(out: &Path) -> Result<Self, DataError> {
        match fs::read_dir(out) {
            Ok(mut entries) => {
                if entries.next().is_some() {
                    return Err(DataError::NotEmpty { path: out.display().to_string() });
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => return Err(write_error(out)(source)),
        }
        let name = out.file_name().ok_or_else(|| DataError::Argument {
            argument: "--out",
            problem: format!("`{}` names no folder", out.display()),
        })?;
        let parent = durable::folder_of(out);
        create_folder(parent).map_err(write_error(parent))?;
        let partial = tempfile::Builder::new()
            .prefix(&format!(".{}.partial-", name.to_string_lossy()))
            .permissions(fs::Permissions::from_mode(0o700))
            .tempdir_in(parent)
            .map_err(write_error(parent))?;
        Ok(Self { partial, out: out.to_owned() })
    }

    /// Where to write meanwhile.
    pub fn path(&self) -> &Path {
        self.partial.path()
    }

    /// Puts the folder in its place in one step.
    pub fn commit(self) -> Result<(), DataError> {
        let failed = write_error(&self.out);
        File::open(self.path()).and_then(|folder| folder.sync_all()).map_err(&failed)?;
        fs::rename(self.path(), &self.out).map_err(&failed)?;
        let _ = self.partial.keep();
        durable::sync_folder_of(&self.out).map_err(&failed)
    }
}

/// Copies a file's bytes. Who may read it is not copied: hospitals' files are often open to all.
pub fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    let mut from = File::open(from)?;
    std::io::copy(&mut from, &mut File::create(to)?).map(|_| ())
}

/// Writes and syncs one file.
pub fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), DataError> {
    let write = || -> std::io::Result<()> {
        let mut file = File::create_new(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(write_error(path))
}

/// Names the path in an error of writing.
pub fn write_error(path: &Path) -> impl Fn(std::io::Error) -> DataError + use<> {
    let path = path.display().to_string();
    move |source| DataError::Write { path: path.clone(), source }
}
