//! `cache`: what is kept of the frozen blocks' work, and an end to it.

use std::path::PathBuf;

use comfy_table::{Table, presets::NOTHING};
use indicatif::HumanBytes;
use serde_json::json;
use tributary_shared::outcome::Failure;

use crate::cli::{Format, print};
use crate::config::site::SiteConfig;
use crate::trainer::{PrefixCache, Shelved};

/// Looks at the cache of a site, or empties it.
#[derive(Debug, clap::Subcommand)]
pub enum CacheCommand {
    /// How much is kept, of how many images, under which backbones
    Show(Place),
    /// Remove everything that is kept; safe while a training uses it, which computes again
    Clear(Place),
}

/// Which cache.
#[derive(Debug, clap::Args)]
pub struct Place {
    /// The site's configuration, which says where its cache is
    #[arg(long, value_name = "FILE", default_value = "site.toml", conflicts_with = "dir")]
    config: PathBuf,
    /// The directory that `train --cache` was given
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl Place {
    fn dir(&self) -> Result<PathBuf, Failure> {
        if let Some(dir) = &self.dir {
            return Ok(dir.clone());
        }
        let environment: Vec<_> = std::env::vars().collect();
        let config = SiteConfig::read(&self.config, &environment)?;
        let none = || Failure::invalid("cache", "the site.toml names no directory of a cache");
        config.cache.dir.ok_or_else(none)
    }
}

pub(super) fn run(command: &CacheCommand, format: Format) -> Result<(), Failure> {
    let (CacheCommand::Show(place) | CacheCommand::Clear(place)) = command;
    let dir = place.dir()?;
    let found = match command {
        CacheCommand::Show(_) => PrefixCache::look(&dir),
        CacheCommand::Clear(_) => PrefixCache::clear(&dir),
    };
    let shelves =
        found.map_err(|e| Failure::invalid("cache", format!("{}: {e}", dir.display())))?;
    let records: u64 = shelves.iter().map(|shelf| shelf.records).sum();
    let bytes: u64 = shelves.iter().map(|shelf| shelf.bytes).sum();
    let data = json!({ "dir": dir, "records": records, "bytes": bytes, "shelves": shelves });
    print(format, data, || match command {
        CacheCommand::Show(_) => {
            if !shelves.is_empty() {
                say!("{}", table(&shelves));
            }
            say!("{}: {records} records, {}", dir.display(), HumanBytes(bytes));
        }
        CacheCommand::Clear(_) => {
            say!("{}: removed {records} records, {}", dir.display(), HumanBytes(bytes));
        }
    });
    Ok(())
}

fn table(shelves: &[Shelved]) -> Table {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header(["RECORDS", "SIZE", "OF"]);
    for shelf in shelves {
        let unknown = || format!("unknown ({})", &shelf.shelf[..12]);
        table.add_row([
            shelf.records.to_string(),
            HumanBytes(shelf.bytes).to_string(),
            shelf.about.clone().unwrap_or_else(unknown),
        ]);
    }
    table
}
