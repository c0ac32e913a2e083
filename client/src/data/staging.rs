//! Folders that appear whole or not at all.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use super::DataError;

/// A folder being written beside its final place; removed again unless committed.
pub struct Staging {
    partial: PathBuf,
    out: PathBuf,
    committed: bool,
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
        let partial = out.with_file_name(format!(
            ".{}.partial-{}",
            name.to_string_lossy(),
            std::process::id()
        ));
        fs::create_dir_all(&partial).map_err(write_error(&partial))?;
        Ok(Self { partial, out: out.to_owned(), committed: false })
    }

    /// Where to write meanwhile.
    pub fn path(&self) -> &Path {
        &self.partial
    }

    /// Puts the folder in its place in one step.
    pub fn commit(mut self) -> Result<(), DataError> {
        let failed = write_error(&self.out);
        sync_folder(&self.partial).map_err(&failed)?;
        fs::rename(&self.partial, &self.out).map_err(&failed)?;
        self.committed = true;
        let parent = self.out.parent().filter(|p| !p.as_os_str().is_empty());
        sync_folder(parent.unwrap_or(Path::new("."))).map_err(&failed)
    }
}

fn sync_folder(folder: &Path) -> std::io::Result<()> {
    File::open(folder)?.sync_all()
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.committed {
            // Best effort: we are already on the way out with an error.
            let _ = fs::remove_dir_all(&self.partial);
        }
    }
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
