//! The site's holdout salt on disk, beside the identity.

use std::io;
use std::path::{Path, PathBuf};

use ring::rand::{SecureRandom, SystemRandom};
use tributary_proto::channel::{read_secret, write_secret};
use tributary_shared::outcome::{ExitCode, Failure, chain};

use crate::data::HoldoutSalt;

/// The salt's file in the site's directory.
pub fn salt_of(directory: &Path) -> PathBuf {
    directory.join("holdout-salt")
}

/// Reads a salt; `None` when there is no such file.
pub fn read(file: &Path) -> Result<Option<HoldoutSalt>, Failure> {
    let Some(text) = read_secret(file).map_err(|e| invalid(chain(&e)))? else { return Ok(None) };
    let salt = HoldoutSalt::from_hex(&text).ok_or_else(|| {
        invalid(format!("{}: not a salt of 32 to 128 hexadecimal digits", file.display()))
            .hint("restore the file from a backup; with another salt other patients are held out")
    })?;
    Ok(Some(salt))
}

/// Reads the salt of a site's directory, or makes it: once, for with another one other patients are
/// held out.
pub fn read_or_make(directory: &Path) -> Result<HoldoutSalt, Failure> {
    let file = salt_of(directory);
    if let Some(salt) = read(&file)? {
        return Ok(salt);
    }
    let mut random = [0; 32];
    SystemRandom::new()
        .fill(&mut random)
        .map_err(|_| Failure::new(ExitCode::Bug, "random", "the system gives no random numbers"))?;
    let salt = HoldoutSalt::new(random);
    write(&file, &salt).map_err(|e| invalid(format!("{}: {e}", file.display())))?;
    Ok(salt)
}

/// Writes a salt over the one that is there.
pub fn write(file: &Path, salt: &HoldoutSalt) -> io::Result<()> {
    write_secret(file, format!("{}\n", salt.to_hex()).as_bytes())
}

fn invalid(message: String) -> Failure {
    Failure::invalid("holdout_salt", message)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_salt_is_made_once_and_is_the_owners_alone() {
        let folder = tempfile::tempdir().unwrap();
        let salt = read_or_make(folder.path()).unwrap();
        assert_eq!(read_or_make(folder.path()).unwrap(), salt);
        assert_ne!(read_or_make(tempfile::tempdir().unwrap().path()).unwrap(), salt);
        let file = salt_of(folder.path());
        let mode = std::fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(read_or_make(folder.path()).is_err());
        write_secret(&file, b"short").unwrap();
        let error = read_or_make(folder.path()).unwrap_err().to_string();
        assert!(error.contains("holdout-salt") && error.contains("backup"), "{error}");
    }
}
