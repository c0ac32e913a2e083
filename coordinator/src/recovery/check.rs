//! Compares the database with the heads that the authority beside it has signed.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use tributary_shared::digest::Digest;
use tributary_shared::outcome::{Failure, chain};
use tributary_shared::tlog::recovery::{Head, Recovery};

use super::Place;
use super::made::made;
use crate::driver::recoveries;
use crate::heads::{self, Heads};
use crate::membership::{Authority, SIGNED_HEAD};
use crate::store::{self, Inspection, Store, StoreError};

/// Refuses to begin an empty history where there was one: beside a head that was signed, or
/// beside blobs.
pub fn refuse_missing(place: &Place) -> Result<(), Failure> {
    if fs::metadata(&place.database).is_ok_and(|found| found.len() > 0) {
        return Ok(());
    }
    let signed = fs::read_to_string(place.directory.join(SIGNED_HEAD)).ok();
    let size = signed.as_deref().and_then(|note| note.lines().nth(1)).map(str::to_owned);
    if let Some(size) = size.filter(|size| size != "0") {
        return Err(
            older(&place.database, "the database is missing or empty", &size).hint(MEND_MISSING)
        );
    }
    if has_blobs(&place.directory) {
        let message = format!(
            "{} is missing or empty, and the blobs of a history lie in {}",
            place.database.display(),
            place.directory.display()
        );
        return Err(Failure::refused("history_lost", message).hint(MEND_MISSING));
    }
    Ok(())
}

const MEND: &str = "restore the newest backup with `tributary-coordinator restore`; if there is none that is newer, name what was lost with `tributary-coordinator recover`; see docs/recovery.md";

const MEND_MISSING: &str = "restore the newest backup with `tributary-coordinator restore`; without any backup the history cannot be continued: found a new consortium, and keep this directory and the sites' witness files as evidence; see docs/recovery.md";

fn older(database: &Path, has: &str, signed: &str) -> Failure {
    let message = format!("{}: {has}, but this log has signed {signed} leaves", database.display());
    Failure::refused("history_lost", message).hint(MEND)
}

/// The end of a service whose sites have seen more than its database holds.
pub fn older_than(database: &Path, signed: &Head) -> Failure {
    older(database, "the history is not the newest", &signed.size.to_string())
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
    /// A recovery statement says that the history forked below it, and names fewer leaves; the history has outgrown it.
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
    let root = match head.size <= own.size {
        true => Some(store.root_at(head.size).await?),
        false => None,
    };
    Ok(compared(head, root, recoveries))
}

/// The relation of a history to `head`, whose own `root` at that size is given; `None` where it is shorter.
fn compared(head: &Head, root: Option<Digest>, recoveries: &[Recovery]) -> Stands {
    if root == Some(head.root) {
        return Stands::Continued;
    }
    let checkpoint = head.checkpoint();
    if recoveries.iter().any(|r| r.statement.covers(&checkpoint)) {
        return Stands::Explained;
    }
    // Beyond this history, a head may be of the branch that an older statement began: nothing says that it was lost.
    let forked = recoveries.iter().any(|r| r.statement.kept.size < head.size);
    if forked && root.is_some() { Stands::Understated } else { Stands::Lost }
}

/// Inspects the database of `place` as `serve` would before it begins, changing nothing; `None` when there is none and
/// none is missed.
pub async fn inspect(place: &Place) -> Result<Option<Inspection>, Failure> {
    refuse_missing(place)?;
    if !place.database.exists() {
        return Ok(None);
    }
    let signer = Authority::load(&place.directory).and_then(|authority| authority.log_signer());
    let heads = match signer {
        Ok(signer) => {
            let heads = Heads::open(&place.directory, Arc::new(signer));
            let heads = heads.map_err(|e| unreadable_head(&place.directory, &e))?;
            known_heads(&place.directory, &heads)?
        }
        // An authority that cannot be read is a fault of its own.
        Err(_) => Vec::new(),
    };
    let sizes = heads.iter().map(|head| head.size).collect();
    let found = store::inspect(&place.database, &sizes).await;
    let found = found.map_err(|e| {
        Failure::invalid("database", chain(&e)).hint("restore the directory from a backup")
    })?;
    for head in &heads {
        let root = found.roots.get(&head.size).copied();
        if compared(head, root, &found.recoveries) == Stands::Lost {
            let has = format!("has {} leaves and does not continue what was signed", found.leaves);
            return Err(older(&place.database, &has, &head.size.to_string()));
        }
    }
    Ok(Some(found))
}

/// The refusal of a `signed-head` that cannot be read.
pub fn unreadable_head(directory: &Path, error: &std::io::Error) -> Failure {
    let path = directory.join(SIGNED_HEAD);
    Failure::invalid("authority", format!("{}: {error}", path.display())).hint(
        "it is the memory of what was signed, and a power failure may damage it: restore it from a backup, or move it away and keep it; sites bring the coordinator what they hold",
    )
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
                let has = format!(
                    "the history has {} leaves and does not continue what was signed",
                    own.size
                );
                return Err(older(&place.database, &has, &head.size.to_string()));
            }
        }
    }
    Ok(())
}
