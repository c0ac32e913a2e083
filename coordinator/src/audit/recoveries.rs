//! The statements of a history about leaves that were lost, and the known heads that they explain.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use tributary_proto::channel::check_recovery;
use tributary_shared::digest::Digest;
use tributary_shared::outcome::chain;
use tributary_shared::text::printable;
use tributary_shared::timestamp::Timestamp;
use tributary_shared::tlog::checkpoint::Checkpoint;
use tributary_shared::tlog::key::VerifierKey;
use tributary_shared::tlog::recovery::{Recovery, Statement};

use super::finding::Finding;

/// A recovery of a verified history: both signatures hold, and the kept head is one of its own.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RecoveryReport {
    /// The leaf that holds the statement.
    pub leaf: u64,
    /// Digest of the statement, by which sites accept it.
    pub statement: Digest,
    /// The moment at which the statement was made.
    pub at: Timestamp,
    /// The operator who signed it.
    pub operator: String,
    /// The operator's words.
    pub reason: String,
    /// Leaves of the last head that both branches share.
    pub kept_size: u64,
    /// Root of that head.
    pub kept_root: Digest,
    /// The heads that the statement names as lost, the largest first.
    pub lost: Vec<Lost>,
    /// Sizes of the known heads that the statement names.
    pub explains: Vec<u64>,
    /// Sizes of the known heads between the kept and the largest lost head, of which only the size is known to fit.
    pub in_lost_range: Vec<u64>,
}

/// A head on a branch that was lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Lost {
    /// Leaves.
    pub size: u64,
    /// RFC 6962 root over them.
    pub root: Digest,
}

/// The statements of a history so far, and the root after each of its leaves (32 bytes a leaf).
#[derive(Debug, Default)]
pub(super) struct Recoveries {
    roots: Vec<Digest>,
    found: Vec<(u64, Statement)>,
}

impl Recoveries {
    /// Notes the root after the next leaf.
    pub(super) fn grow(&mut self, root: Digest) {
        self.roots.push(root);
    }

    /// Takes a statement that stands in `leaf`. `enrolled` says whether the registry has given an
    /// operator this certificate.
    pub(super) fn take(
        &mut self,
        leaf: u64,
        recovery: &Recovery,
        key: &VerifierKey,
        root: Digest,
        enrolled: impl FnOnce(&str, Digest) -> bool,
    ) -> Result<(), String> {
        let operator = check_recovery(recovery, key, root).map_err(|e| chain(&e))?;
        let statement = &recovery.statement;
        if !enrolled(&statement.operator, operator.peer.fingerprint) {
            return Err(format!(
                "{} signed a recovery with a certificate that the history has not given",
                statement.operator
            ));
        }
        let kept = &statement.kept;
        if kept.size > leaf || self.root_at(kept.size) != Some(kept.root) {
            return Err(format!(
                "a recovery says that {} leaves of root {} were kept, which this history does not begin with",
                kept.size, kept.root
            ));
        }
        self.found.push((leaf, statement.clone()));
        Ok(())
    }

    /// Leaves that the statement `recovery` says were lost; `None` where there is none such.
    pub(super) fn lost_leaves(&self, recovery: Digest) -> Option<u64> {
        let found = self.found.iter().find(|(_, said)| said.digest() == recovery)?;
        Some(found.1.lost_leaves())
    }

    /// Compares the history with every known head; gives the recoveries and what they explain.
    pub(super) fn judge(&self, known: &[Checkpoint]) -> Result<Vec<RecoveryReport>, Finding> {
        let mut reports: Vec<RecoveryReport> =
            self.found.iter().map(|(leaf, said)| report(*leaf, said)).collect();
        for head in known {
            let own = self.root_at(head.size);
            if own == Some(head.root) || head.size == 0 {
                continue;
            }
            let named = self.found.iter().position(|(_, said)| said.names(head));
            let covered = || self.found.iter().position(|(_, said)| said.covers(head));
            if let Some(index) = named {
                reports[index].explains.push(head.size);
            } else if let Some(index) = covered() {
                reports[index].in_lost_range.push(head.size);
            } else {
                return Err(self.broken(head, own));
            }
        }
        self.refuse_more_roots_than_branches(known)?;
        Ok(reports)
    }

    /// Each lost branch has one root of a size, so that more known roots than branches are a fork that no statement
    /// explains.
    fn refuse_more_roots_than_branches(&self, known: &[Checkpoint]) -> Result<(), Finding> {
        let mut roots: BTreeMap<u64, BTreeSet<Digest>> = BTreeMap::new();
        for head in known.iter().filter(|h| h.size > 0 && self.root_at(h.size) != Some(h.root)) {
            roots.entry(head.size).or_default().insert(head.root);
        }
        for (size, roots) in roots {
            let through = |said: &&Statement| said.kept.size < size;
            let said = self.found.iter().map(|(_, said)| said).filter(through);
            let lost = said.flat_map(|said| &said.lost).filter(|lost| lost.size >= size);
            let branches: BTreeSet<(u64, Digest)> = lost.map(|h| (h.size, h.root)).collect();
            if roots.len() > branches.len() {
                let mut roots = roots.into_iter();
                let mut root = || roots.next().unwrap_or(Digest::of(b""));
                return Err(Finding::Fork { size, found: root(), known: root() });
            }
        }
        Ok(())
    }

    fn broken(&self, head: &Checkpoint, own: Option<Digest>) -> Finding {
        match own {
            Some(found) => Finding::Fork { size: head.size, found, known: head.root },
            None => Finding::Rollback { known: head.size, exported: self.roots.len() as u64 },
        }
    }

    fn root_at(&self, size: u64) -> Option<Digest> {
        let last = usize::try_from(size.checked_sub(1)?).ok()?;
        self.roots.get(last).copied()
    }
}

fn report(leaf: u64, said: &Statement) -> RecoveryReport {
    RecoveryReport {
        leaf,
        statement: said.digest(),
        at: said.at,
        operator: said.operator.clone(),
        reason: printable(&said.reason),
        kept_size: said.kept.size,
        kept_root: said.kept.root,
        lost: said.lost.iter().map(|head| Lost { size: head.size, root: head.root }).collect(),
        explains: Vec::new(),
        in_lost_range: Vec::new(),
    }
}

impl std::fmt::Display for RecoveryReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { leaf, at, operator, reason, kept_size, .. } = self;
        let heads: Vec<String> = self
            .lost
            .iter()
            .map(|Lost { size, root }| {
                format!("{} leaves (head of {size}, root {})", size - kept_size, root.short())
            })
            .collect();
        writeln!(
            f,
            "recovery     leaf {leaf}: {kept_size} leaves were kept and {} were lost; \
             signed by the log and {operator} at {at}: {reason}",
            heads.join(" and ")
        )?;
        for size in &self.explains {
            writeln!(f, "             names the known head of {size} leaves")?;
        }
        for size in &self.in_lost_range {
            writeln!(
                f,
                "             the known head of {size} leaves lies in the lost range; its root is not proven"
            )?;
        }
        Ok(())
    }
}
