//! Addresses of the coordinator: the one that the engineer wrote, the one that the coordinator
//! announced, and the one in the startup kit. A coordinator that moves is followed without editing
//! a file. The certificate behind every address must prove the consortium.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use tributary_proto::channel::{Identity, write_durably};

use super::directory::identity_of;
use crate::config::site::{SiteConfig, is_address};

/// The file beside the identity that keeps the announced address.
const FILE: &str = "announced-address";
/// Longest address read, bytes.
const ADDRESS_BYTES_MAX: usize = 300;

/// The addresses of the coordinator.
#[derive(Debug)]
pub struct Addresses {
    file: PathBuf,
    written: Option<String>,
    announced: Option<String>,
    enrolled: String,
}

impl Addresses {
    /// The addresses of `config` and `identity`, and the one that was announced last.
    pub fn load(config: &SiteConfig, identity: &Identity) -> Self {
        let file = identity_of(&config.directory).join(FILE);
        let announced = read(&file).unwrap_or_else(|error| {
            tracing::warn!("{}: {error}; passed over", file.display());
            None
        });
        let (written, enrolled) = (config.address.clone(), identity.address.clone());
        Self { file, written, announced, enrolled }
    }

    /// The addresses in the order in which they are tried: the engineer's, the announced one, the
    /// startup kit's.
    pub fn in_order(&self) -> Vec<String> {
        let mut addresses: Vec<String> = Vec::new();
        for address in self.written.iter().chain(&self.announced).chain([&self.enrolled]) {
            if !addresses.contains(address) {
                addresses.push(address.clone());
            }
        }
        addresses
    }

    /// Keeps the address that the coordinator announced, durably; says whether it is news. Text
    /// that is no address is passed over.
    pub(super) fn hear(&mut self, address: &str) -> io::Result<bool> {
        if !is_good(address) || self.announced.as_deref() == Some(address) {
            return Ok(false);
        }
        // Nothing to keep until it differs from the kit's.
        if self.announced.is_none() && address == self.enrolled {
            return Ok(false);
        }
        write_durably(&self.file, format!("{address}\n").as_bytes(), 0o600)?;
        self.announced = Some(address.to_owned());
        Ok(true)
    }
}

fn read(file: &Path) -> io::Result<Option<String>> {
    let mut text = String::new();
    match std::fs::File::open(file) {
        Ok(open) => open.take(ADDRESS_BYTES_MAX as u64 + 2).read_to_string(&mut text)?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let address = text.trim();
    if is_good(address) {
        return Ok(Some(address.to_owned()));
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "not one HOST:PORT"))
}

/// Says whether the text can be an announced address.
pub(super) fn is_good(address: &str) -> bool {
    address.len() <= ADDRESS_BYTES_MAX && !address.contains('@') && is_address(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(folder: &Path, written: Option<&str>) -> Addresses {
        let file = folder.join(FILE);
        let announced = read(&file).unwrap();
        let (written, enrolled) = (written.map(str::to_owned), "old.example.org:8443".to_owned());
        Addresses { file, written, announced, enrolled }
    }

    #[test]
    fn an_announced_address_is_kept_and_tried_before_the_kits_and_after_the_engineers() {
        let folder = tempfile::tempdir().unwrap();
        let mut held = addresses(folder.path(), None);
        assert_eq!(held.in_order(), ["old.example.org:8443"]);
        assert!(!held.hear("old.example.org:8443").unwrap(), "it is no news");
        assert!(held.hear("new.example.org:443").unwrap());
        assert!(!held.hear("new.example.org:443").unwrap());
        let restarted = addresses(folder.path(), None);
        assert_eq!(restarted.in_order(), ["new.example.org:443", "old.example.org:8443"]);
        let written = addresses(folder.path(), Some("mine.example.org:1"));
        let order = ["mine.example.org:1", "new.example.org:443", "old.example.org:8443"];
        assert_eq!(written.in_order(), order);
        // It moves back.
        let mut back = addresses(folder.path(), None);
        assert!(back.hear("old.example.org:8443").unwrap());
        assert_eq!(addresses(folder.path(), None).in_order(), ["old.example.org:8443"]);
    }

    #[test]
    fn text_that_is_no_address_is_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let mut held = addresses(folder.path(), None);
        let long = format!("{}:1", "a".repeat(400));
        for text in ["", "no-port", "a b:1", "a:1\nb:2", "user@host:1", "host:0", &long] {
            assert!(!held.hear(text).unwrap(), "{text:?}");
        }
        assert!(!folder.path().join(FILE).exists());
        std::fs::write(folder.path().join(FILE), "two words\n").unwrap();
        assert!(read(&folder.path().join(FILE)).is_err());
    }
}
