//! The demo's folder: fresh each time, and never somebody else's.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::command::Failed;

/// Says that a demo made the folder and may empty it.
const MARK: &str = ".tributary-demo";

/// Makes `out` an empty folder: removes what an earlier demo left, refuses anything else.
pub(super) fn fresh(out: &Path) -> Result<PathBuf, Failed> {
    let failed = |e: io::Error| Failed::file(out, &e);
    if out.exists() {
        let occupied = fs::read_dir(out).map_err(failed)?.next().is_some();
        if occupied && !out.join(MARK).is_file() {
            let problem = "it holds something that no demo made; name another folder with --out";
            return Err(Failed::new(&out.display().to_string(), None, problem));
        }
        fs::remove_dir_all(out).map_err(failed)?;
    }
    fs::create_dir_all(out).map_err(failed)?;
    fs::write(out.join(MARK), "`cargo demo` made this folder and may empty it.\n")
        .map_err(failed)?;
    out.canonicalize().map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_folder_of_its_own_is_emptied() {
        let folder = tempfile::tempdir().unwrap();
        let own = folder.path().join("own");
        fresh(&own).unwrap();
        fs::write(own.join("old"), "").unwrap();
        fresh(&own).unwrap();
        assert!(!own.join("old").exists());
        let other = folder.path().join("other");
        fs::create_dir(&other).unwrap();
        fs::write(other.join("thesis.tex"), "").unwrap();
        assert!(fresh(&other).unwrap_err().problem.contains("--out"));
        assert!(other.join("thesis.tex").exists());
    }
}
