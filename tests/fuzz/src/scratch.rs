//! A folder of this process for decoders that take a path.

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

thread_local! {
    static FOLDER: RefCell<Option<TempDir>> = const { RefCell::new(None) };
}

/// In memory where the system has such a file system.
fn folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() };
    made.expect("a temporary folder can be made")
}

/// Calls `read` with the path of a file `name` that holds `bytes`, alone in a folder beside `others`.
pub(crate) fn with_file<T>(
    name: &str,
    bytes: &[u8],
    others: &[(&str, &[u8])],
    read: impl FnOnce(&Path) -> T,
) -> T {
    let root = FOLDER.with_borrow_mut(|kept| kept.get_or_insert_with(folder).path().to_owned());
    let files = others.iter().copied().chain([(name, bytes)]);
    let written: Vec<PathBuf> = files
        .map(|(name, bytes)| {
            let path = root.join(name);
            fs::write(&path, bytes).expect("the temporary folder can be written");
            path
        })
        .collect();
    let read = read(&root.join(name));
    for path in written {
        fs::remove_file(path).expect("what was written can be removed");
    }
    read
}
