//! Compares the database with the heads that the authority beside it has signed.

use std::fs;
use std::path::Path;

use tributary_shared::outcome::{Failure, chain};
use tributary_shared::tlog::recovery::{Head, Recovery};

use super::Place;
use super::made::made;
use crate::driver::recoveries;
use crate::heads::{self, Heads};
use crate::membership::SIGNED_HEAD;
use crate::store::{Store, StoreError};

/// Refuses to begin an empty history where there was one: beside a head that was signed, or
/// beside blobs.
pub fn refuse_missing(place: &Place) -> Result<(), Failure> {
    if fs::metadata(&place.database).is_ok_and(|found| found.len() > 0) {
        return Ok(());
    }
    let signed = fs::read_to_string(place.directory.join(SIGNED_HEAD)).ok();
    let size = signed.as_deref().and_then(|note| note.lines().nth(1)).map(str::to_owned);
    if let Some(size) = size.filter(|size| size != "0") {
        return Err(older(&place.database, "is missing or empty", &size));
    }
    if has_blobs(&place.directory) {
        let message = format!(
            "{} is missing or empty, and the blobs of a history lie in {}",
            place.database.display(),
            place.directory.display()
        );
        return Err(Failure::refused("history_lost", message).hint(MEND));
    }
    Ok(())
}

const MEND: &str = "restore the newest backup with `tributary-coordinator restore`; if there is none that is newer, name what was lost with `tributary-coordinator recover` (docs/recovery.md)";

fn older(database: &Path, has: &str, signed: &str) -> Failure {
    let message = format!(
        "{}: the history {has}, and its log has signed {signed} leaves",
        database.display()
    );
    Failure::refused("history_lost", message).hint(MEND)
}

/// The end of a service whose sites have seen more than its database holds.
pub fn older_than(database: &Path, signed: &Head) -> Failure {
    older(database, "is not the newest", &signed.size.to_string())
}

fn has_blobs(directory: &Path) -> bool {
    let Ok(folders) = fs::read_dir(directory.join("blobs")) else { return false };
    folders
        .flatten()
        .any(|folder| fs::read_dir(folder.path()).is_ok_and(|mut f| f.next().is_some()))
}

/// The relation of a history to a head that its log has signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stands {
    /// It continues it.
    Continued,
    /// A recovery statement says why it does not.
    Explained,
    /// A recovery statement says that the history forked below it, and names fewer leaves.
    Understated,
    /// Nothing says why it does not.
    Lost,
}

/// The relation of `store` to `head`.
pub async fn stands(
    store: &Store,
    recoveries: &[Recovery],
    head: &Head,
) -> Result<Stands, StoreError> {
    let own = store.head().await?;
    if head.size <= own.size && store.root_at(head.size).await? == head.root {
        return Ok(Stands::Continued);
    }
    let checkpoint = head.checkpoint();
    if recoveries.iter().any(|r| r.statement.covers(&checkpoint)) {
        return Ok(Stands::Explained);
    }
    let forked = recoveries.iter().any(|r| r.statement.kept.size < head.size);
    Ok(if forked { Stands::Understated } else { Stands::Lost })
}

/// The heads that the authority knows to have been signed: the largest of its log, the largest that a site showed, and
/// those that its recovery statements name as lost.
pub fn known_heads(directory: &Path, heads: &Heads) -> Result<Vec<Head>, Failure> {
    let key = heads.signer().verifier_key();
    let lost = heads::read_lost(directory, &key)
        .map_err(|e| Failure::invalid("file", format!("{}: {e}", directory.display())))?;
    let named = made(directory, &key)?.into_iter().flat_map(|recovery| recovery.statement.lost);
    Ok(heads.largest().into_iter().chain(lost).chain(named).collect())
}

/// Refuses a database that is older than what its log has signed.
pub async fn refuse_older(place: &Place, store: &Store, heads: &Heads) -> Result<(), Failure> {
    let failed = |e: StoreError| Failure::invalid("database", chain(&e));
    let statements = recoveries(store).await.map_err(failed)?;
    let own = store.head().await.map_err(failed)?;
    for head in known_heads(&place.directory, heads)? {
        match stands(store, &statements, &head).await.map_err(failed)? {
            Stands::Continued | Stands::Explained => {}
            Stands::Understated => tracing::error!(
                "a site holds a signed head of {} leaves, more than the last recovery names; stop and run `tributary-coordinator recover` again",
                head.size
            ),
            Stands::Lost => {
                let has = format!("has {} leaves and does not continue what was signed", own.size);
                return Err(older(&place.database, &has, &head.size.to_string()));
            }
        }
    }
    Ok(())
}
