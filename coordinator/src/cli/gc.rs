//! `tributary-coordinator gc`: adapters and deltas that no event names.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use tributary_shared::outcome::{Failure, chain};

use super::present::bytes;
use super::service::{load, runtime};
use super::{Answer, file_failure};
use crate::audit::TensorFiles;
use crate::blobs::Blobs;
use crate::config::CoordinatorConfig;
use crate::store::{Look, StoreError, lock};

/// Arguments of `gc`.
#[derive(Debug, Args)]
pub(super) struct Gc {
    /// coordinator.toml
    #[arg(long, default_value = "coordinator.toml", value_name = "FILE")]
    config: PathBuf,
    /// Only say what would be removed; also while the coordinator serves, where a file that is just
    /// being written may be named
    #[arg(long)]
    dry_run: bool,
}

/// Does `gc`.
pub(super) fn gc(arguments: &Gc) -> Result<Answer, Failure> {
    let config = load(&arguments.config)?;
    let in_use = |e: StoreError| {
        Failure::refused("in_use", chain(&e)).hint("stop the coordinator, or look with --dry-run")
    };
    let _lock = match arguments.dry_run {
        true => None,
        false => Some(lock(&config.database).map_err(in_use)?),
    };
    let named = runtime()?.block_on(named(&config));
    let named = named.map_err(|e| Failure::invalid("database", chain(&e)))?.digests();
    let blobs = Blobs::look(&config.directory);
    let failed = |e: std::io::Error| file_failure(&config.directory.join("blobs"), &e);
    let mut unnamed = blobs.list().map_err(failed)?;
    unnamed.retain(|digest| !named.contains(digest));
    let mut size = 0;
    for digest in &unnamed {
        size +=
            blobs.open_blocking(*digest).and_then(|file| file.metadata()).map_err(failed)?.len();
        if !arguments.dry_run {
            blobs.remove(*digest).map_err(failed)?;
        }
    }
    let (count, verb) = (unnamed.len(), if arguments.dry_run { "would remove" } else { "removed" });
    let mut text = format!("{verb} {count} files, {}; {} are named", bytes(size), named.len());
    unnamed.iter().for_each(|digest| text.push_str(&format!("\n  {digest}")));
    let data = json!({ "dry_run": arguments.dry_run, "unnamed": unnamed, "bytes": size, "named": named.len() });
    Ok(Answer::new(data, text))
}

/// The files that a proven history names.
async fn named(config: &CoordinatorConfig) -> Result<TensorFiles, StoreError> {
    let mut look = Look::open(&config.database).await?;
    let mut named = TensorFiles::default();
    look.prove(|record, _| named.take(record)).await?;
    look.close().await?;
    Ok(named)
}
