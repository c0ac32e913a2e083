//! Files and folders that only their owner may read: no other user of the machine sees what a program
//! writes.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::Path;

use rustix::fs::Mode;

/// Permission bits of every user but the owner.
const OF_OTHERS: u32 = 0o077;

/// Takes from everything that this process makes from now on what other users could do with it:
/// files are 0600 and folders 0700, also those that libraries make. For the start of a program.
pub fn keep_to_owner() {
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
}

/// Makes a folder, and those above it that are missing, with mode 0700. One that is there stays as
/// it is.
pub fn create_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Takes from a file or folder what other users could do with it; says whether there was anything.
/// A link is left alone.
pub fn tighten(path: &Path) -> io::Result<bool> {
    let found = fs::symlink_metadata(path)?;
    let mode = found.permissions().mode();
    if found.is_symlink() || mode & OF_OTHERS == 0 {
        return Ok(false);
    }
    fs::set_permissions(path, Permissions::from_mode(mode & !OF_OTHERS))?;
    Ok(true)
}

/// As [`tighten`] for `folder`, the files that lie in it, and everything below those of its folders
/// that `own` names: others may belong to other users. Gives the number that were open to others.
/// A file that is gone meanwhile is passed over; the first other error is given after the rest is done.
pub fn tighten_folder(folder: &Path, own: &[&str]) -> io::Result<usize> {
    let mut done = Done::default();
    // Links above it are the user's way of placing it.
    match folder.canonicalize() {
        Ok(real) => done.folder(&real, Some(own)),
        Err(error) => done.hear(Err(error)),
    }
    match done.trouble {
        None => Ok(done.changed),
        Some(error) => Err(error),
    }
}

#[derive(Default)]
struct Done {
    changed: usize,
    trouble: Option<io::Error>,
}

impl Done {
    fn hear(&mut self, tightened: io::Result<bool>) {
        match tightened {
            Ok(changed) => self.changed += usize::from(changed),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => drop(self.trouble.get_or_insert(error)),
        }
    }

    /// Goes into the folders named in `own`, or into all of them.
    fn folder(&mut self, folder: &Path, own: Option<&[&str]>) {
        self.hear(tighten(folder));
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) => return self.hear(Err(error)),
        };
        for entry in entries {
            match entry.and_then(|entry| Ok((entry.file_type()?, entry))) {
                Ok((kind, entry)) if kind.is_file() => self.hear(tighten(&entry.path())),
                Ok((kind, entry)) if kind.is_dir() => {
                    let name = entry.file_name();
                    if own.is_none_or(|own| own.iter().any(|own| name == **own)) {
                        self.folder(&entry.path(), None);
                    }
                }
                Ok(_) => {}
                Err(error) => self.hear(Err(error)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_folder_is_tightened_with_its_own_and_nothing_else() {
        let home = tempfile::tempdir().unwrap();
        let root = home.path().join("site");
        let open = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode));
        for folder in ["own/deep", "images"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        let elsewhere = home.path().join("elsewhere");
        for file in [&root.join("a"), &root.join("own/deep/b"), &root.join("images/c"), &elsewhere]
        {
            fs::write(file, "").unwrap();
            open(file, 0o664).unwrap();
        }
        std::os::unix::fs::symlink(&elsewhere, root.join("link")).unwrap();
        for folder in ["", "own", "own/deep", "images"] {
            open(&root.join(folder), 0o755).unwrap();
        }
        let link = home.path().join("by-link");
        std::os::unix::fs::symlink(&root, &link).unwrap();
        assert_eq!(tighten_folder(&link, &["own", "missing"]).unwrap(), 5);
        assert_eq!(tighten_folder(&link, &["own"]).unwrap(), 0);
        for (path, expected) in [
            ("", 0o700),
            ("a", 0o600),
            ("own", 0o700),
            ("own/deep", 0o700),
            ("own/deep/b", 0o600),
            ("images", 0o755),
            ("images/c", 0o664),
        ] {
            assert_eq!(mode(&root.join(path)), expected, "{path}");
        }
        assert_eq!(mode(&elsewhere), 0o664);
        create_folder(&home.path().join("x/y")).unwrap();
        assert_eq!(mode(&home.path().join("x")), 0o700);
    }
}
