//! The site's own trouble, by class: what the coordinator is told in one word, and what the site's
//! engineer reads in full.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Halt;
use crate::config::policy::Policy;
use crate::config::site::SiteConfig;
use crate::transport::{CERTIFICATE_NOT_ACCEPTED, CallError};

/// Below this many free bytes nothing can be recorded, however small.
const FREE_BYTES_MIN: u64 = 1 << 20;

/// Class of a site's trouble. The word is all that leaves the site: no path, no patient.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TroubleClass {
    /// No room for a delta, a line of the ledger or another file.
    DiskFull,
    /// The images that site.toml names are not there.
    DataMissing,
    /// The backbone that site.toml names is not there.
    BackboneMissing,
    /// policy.toml cannot be read.
    PolicyUnreadable,
    /// This machine's clock differs from the coordinator's.
    ClockWrong,
    /// Another program uses this site's identity.
    SharedIdentity,
    /// The coordinator's history does not continue the one that this site saw.
    HistoryNotContinued,
    /// A recovery statement explains the coordinator's history and is not accepted here yet.
    RecoveryNotAccepted,
    /// This site's certificate is not accepted.
    Certificate,
    /// The coordinator cannot be reached.
    Network,
    /// Anything else on this site's own machine.
    Other,
}

impl TroubleClass {
    /// Says whether a greeting and a history that is followed disprove it. A full disk, for one, lasts until the work
    /// that met it succeeds.
    pub(super) fn is_of_the_connection(self) -> bool {
        match self {
            Self::SharedIdentity
            | Self::HistoryNotContinued
            | Self::RecoveryNotAccepted
            | Self::Certificate
            | Self::Network => true,
            Self::DiskFull
            | Self::DataMissing
            | Self::BackboneMissing
            | Self::PolicyUnreadable
            | Self::ClockWrong
            | Self::Other => false,
        }
    }

    /// The word on the wire and in tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::DiskFull => "disk_full",
            Self::DataMissing => "data_missing",
            Self::BackboneMissing => "backbone_missing",
            Self::PolicyUnreadable => "policy_unreadable",
            Self::ClockWrong => "clock_wrong",
            Self::SharedIdentity => "shared_identity",
            Self::HistoryNotContinued => "history_not_continued",
            Self::RecoveryNotAccepted => "recovery_not_accepted",
            Self::Certificate => "certificate",
            Self::Network => "network",
            Self::Other => "other",
        }
    }
}

/// One trouble of the site.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// Its class.
    pub class: TroubleClass,
    /// Description of the trouble, its place and how to mend it. It stays at the site.
    pub detail: String,
}

impl Trouble {
    pub(super) fn new(class: TroubleClass, detail: impl Into<String>) -> Self {
        Self { class, detail: detail.into() }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.class.as_str(), self.detail)
    }
}

/// Troubles that keep the site from working, found by checks of the file system.
pub fn look(config: &SiteConfig) -> Vec<Trouble> {
    let mut found = Vec::new();
    if let Some(free) = free_bytes(&config.directory).filter(|free| *free < FREE_BYTES_MIN) {
        let place = config.directory.display();
        let detail = format!("{place}: {free} bytes free; make room for adapters and deltas");
        found.push(Trouble::new(TroubleClass::DiskFull, detail));
    }
    if let Err(error) = Policy::load(&config.policy) {
        found.push(Trouble::new(TroubleClass::PolicyUnreadable, error.to_string()));
    }
    let gone = |what: &str, path: &Path| {
        let error = path.metadata().err()?;
        let place = path.display();
        Some(format!("{place}: {error}; put the {what} there, or correct site.toml"))
    };
    if let Some(detail) = config.backbone.as_ref().and_then(|path| gone("backbone", path)) {
        found.push(Trouble::new(TroubleClass::BackboneMissing, detail));
    }
    if let Some(detail) = config.data.as_ref().and_then(|place| gone("images", &place.path)) {
        found.push(Trouble::new(TroubleClass::DataMissing, detail));
    }
    found
}

/// Free bytes for this user on the disk of `folder`; `None` where it cannot be asked.
pub fn free_bytes(folder: &Path) -> Option<u64> {
    #[cfg(unix)]
    {
        let disk = rustix::fs::statvfs(folder).ok()?;
        Some(disk.f_bavail.saturating_mul(disk.f_frsize))
    }
    #[cfg(not(unix))]
    {
        let _ = folder;
        None
    }
}

/// Says whether `error`, or one under it, is of a disk without room.
pub(super) fn is_full(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return matches!(
                error.kind(),
                io::ErrorKind::StorageFull
                    | io::ErrorKind::QuotaExceeded
                    | io::ErrorKind::FileTooLarge
            );
        }
        next = error.source();
    }
    false
}

/// The code of a failure by a full disk.
pub(super) const DISK_FULL: &str = "disk_full";
/// The code of a failure by a recovery statement that waits for its acceptance.
pub(super) const RECOVERY_ASKED: &str = "recovery_asked";
/// The code of a failure by an identity that two programs use.
pub(super) const SHARED_IDENTITY: &str = "shared_identity";

/// The site's own trouble behind a halt; `None` when the coordinator caused it.
pub(super) fn of(halt: &Halt) -> Option<Trouble> {
    let (failure, class) = match halt {
        Halt::Call(CallError::Unreachable(failure)) => (failure, TroubleClass::Network),
        Halt::Call(CallError::Fatal(failure)) => (failure, TroubleClass::Other),
        Halt::Call(CallError::Rejected(failure)) if failure.code == CERTIFICATE_NOT_ACCEPTED => {
            (failure, TroubleClass::Certificate)
        }
        Halt::Call(CallError::Rejected(_) | CallError::Busy(_)) => return None,
        Halt::Wrong(failure) if failure.code == SHARED_IDENTITY => {
            (failure, TroubleClass::SharedIdentity)
        }
        Halt::Wrong(failure) if failure.code == RECOVERY_ASKED => {
            (failure, TroubleClass::RecoveryNotAccepted)
        }
        Halt::Wrong(failure) => (failure, TroubleClass::HistoryNotContinued),
        Halt::Local(failure) if failure.code == DISK_FULL => (failure, TroubleClass::DiskFull),
        Halt::Local(failure) => (failure, TroubleClass::Other),
    };
    Some(Trouble::new(class, failure.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classes(found: &[Trouble]) -> Vec<&'static str> {
        found.iter().map(|trouble| trouble.class.as_str()).collect()
    }

    /// Before, a client began without a word where backbone and images were missing.
    #[test]
    fn what_site_toml_names_and_is_not_there_is_found_until_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("site.toml");
        let text = "directory = \".\"\npolicy = \"p.toml\"\n[data]\npath = \"images\"\n\
            [backbone]\npath = \"b.safetensors\"";
        let config = SiteConfig::from_toml(&file, text, &[]).unwrap();
        let found = look(&config);
        assert_eq!(classes(&found), ["policy_unreadable", "backbone_missing", "data_missing"]);
        assert!(found[1].detail.contains("b.safetensors"), "{}", found[1]);
        std::fs::write(folder.path().join("p.toml"), "backbones = []\nstrategies = []").unwrap();
        std::fs::create_dir(folder.path().join("images")).unwrap();
        std::fs::write(folder.path().join("b.safetensors"), "").unwrap();
        assert_eq!(look(&config), []);
        std::fs::write(folder.path().join("p.toml"), "backbones = [").unwrap();
        assert_eq!(classes(&look(&config)), ["policy_unreadable"]);
    }

    #[test]
    fn a_full_disk_is_known_under_whatever_wraps_its_error() {
        let full = io::Error::from(io::ErrorKind::StorageFull);
        let halt = Halt::disk("the outbox", &full);
        assert_eq!(of(&halt).unwrap().class, TroubleClass::DiskFull);
        let other = Halt::disk("the outbox", &io::Error::from(io::ErrorKind::PermissionDenied));
        assert_eq!(of(&other).unwrap().class, TroubleClass::Other);
    }

    #[test]
    fn the_coordinators_own_no_is_no_trouble_of_the_site() {
        let failure = tributary_shared::outcome::Failure::refused("refused", "no disk here");
        assert_eq!(of(&Halt::Call(CallError::Rejected(failure))), None);
        let failure = tributary_shared::outcome::Failure::refused("refused", "no room there");
        assert_eq!(of(&Halt::Call(CallError::Busy(failure))), None);
    }
}
