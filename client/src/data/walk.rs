//! All files under a folder: in one order, never through a link, within limits.

use std::fs;
use std::path::{Path, PathBuf};

use super::report::Report;
use super::{DataError, folder};

/// Most files of one source.
const FILES_MAX: usize = 2_000_000;
/// Deepest nesting.
const DEPTH_MAX: usize = 32;

/// The files under `root` (a real path), sorted by path. Links and hidden files are passed over; a
/// folder that cannot be read is refused and the walk goes on.
pub(super) fn files(root: &Path, report: &mut Report) -> Result<Vec<PathBuf>, DataError> {
    // The root itself must be readable; whatever lies below is only refused.
    fs::read_dir(root).map_err(folder::unreadable(root))?;
    let mut files = Vec::new();
    let mut folders = vec![(root.to_owned(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(source) => {
                report.refuse(folder::unreadable(&folder)(source));
                continue;
            }
        };
        for entry in entries {
            let kind = entry.and_then(|entry| Ok((entry.file_type()?, entry)));
            let (kind, entry) = match kind {
                Ok(known) => known,
                Err(source) => {
                    report.refuse(folder::unreadable(&folder)(source));
                    continue;
                }
            };
            if kind.is_symlink() {
                report.pass_over("links are not followed");
            } else if entry.file_name().as_encoded_bytes().starts_with(b".") {
                report.pass_over("hidden");
            } else if kind.is_dir() {
                if depth == DEPTH_MAX {
                    report.pass_over("nested too deeply");
                } else {
                    folders.push((entry.path(), depth + 1));
                }
            } else if kind.is_file() {
                if files.len() == FILES_MAX {
                    let path = root.display().to_string();
                    return Err(DataError::TooManyFiles { path, max: FILES_MAX });
                }
                files.push(entry.path());
            } else {
                report.pass_over("neither a file nor a folder");
            }
        }
    }
    files.sort();
    Ok(files)
}
