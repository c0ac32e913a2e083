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

#[cfg(test)]
mod tests {
    use std::io::Write;

    use tributary_shared::digest::Digest;

    use super::*;
    use crate::store::Store;

    /// A4: failed before: nothing removed a file that no event names.
    #[test]
    fn what_no_event_names_is_listed_then_removed_and_never_under_a_coordinator() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("coordinator.toml");
        std::fs::write(&config, "directory = \".\"").unwrap();
        let blobs = Blobs::at(folder.path()).unwrap();
        let digest = Digest::of(b"unnamed");
        let write = |out: &mut std::fs::File| out.write_all(b"unnamed").map(|()| digest);
        blobs.put_with(write).unwrap();
        let gc = |dry_run| gc(&Gc { config: config.clone(), dry_run });
        let listed = |answer| match answer {
            Ok(Answer::Whole { data, .. }) => data["unnamed"].as_array().unwrap().len(),
            Ok(Answer::Printed) => panic!("an answer"),
            Err(failure) => panic!("{failure}"),
        };
        let database = folder.path().join("tributary.db");
        let serving = runtime().unwrap();
        let store = serving.block_on(Store::open(&database)).unwrap();
        let Err(refused) = gc(false) else { panic!("a coordinator may be using it") };
        assert_eq!(refused.code, "in_use");
        assert_eq!(listed(gc(true)), 1);
        assert!(blobs.exists(digest));
        serving.block_on(store.close());
        drop(store);
        assert_eq!(listed(gc(false)), 1);
        assert!(!blobs.exists(digest));
        assert_eq!(listed(gc(false)), 0);
    }
}
