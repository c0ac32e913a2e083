//! Backup, restore and recovery: what a lost or damaged database costs, and how it is mended in the
//! open. `docs/recovery.md` says it for operators, site engineers and auditors.

pub mod archive;
pub mod backup;
pub mod check;
mod made;
pub mod restore;
pub mod statement;

#[cfg(test)]
mod tests;

use std::path::PathBuf;

use tributary_shared::outcome::Failure;

use crate::config::CoordinatorConfig;
use crate::membership::CONFIG;

pub(crate) use self::made::RECOVERIES;

/// The database's name in a directory unless the configuration says another.
pub const DATABASE: &str = "tributary.db";
/// The head that a restored backup had: where the branches part if more had been signed.
pub const RESTORED_HEAD: &str = "restored-head";

/// A directory with an authority and the database that belongs to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Authority and blobs.
    pub directory: PathBuf,
    /// The SQLite file.
    pub database: PathBuf,
}

impl Place {
    /// The place that a configuration names.
    pub fn of(config: &CoordinatorConfig) -> Self {
        Self { directory: config.directory.clone(), database: config.database.clone() }
    }

    /// A directory whose configuration, where there is one, says where the database is.
    pub fn at(directory: PathBuf, environment: &[(String, String)]) -> Result<Self, Failure> {
        let config = directory.join(CONFIG);
        if config.exists() {
            return Ok(Self::of(&CoordinatorConfig::load(&config, environment)?));
        }
        let database = directory.join(DATABASE);
        Ok(Self { directory, database })
    }
}
