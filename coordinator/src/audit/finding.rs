//! What an audit finds wrong: what, where, and what would have been right.

use std::fmt;
use std::io;

use tributary_shared::digest::Digest;
use tributary_shared::name::RunName;
use tributary_shared::tlog::checkpoint::InvalidCheckpoint;

use crate::aggregate::AggregateError;
use crate::round::record::{InvalidRecord, Record, Stream};

/// The first thing in an export that does not hold.
#[derive(Debug, thiserror::Error)]
pub enum Finding {
    /// The file could not be read; nothing is said of the history.
    #[error("cannot read the export")]
    Unreadable(#[source] io::Error),
    /// The file ends too early.
    #[error("the export ends at byte {offset}, inside {inside}")]
    Truncated {
        /// Bytes in the file.
        offset: u64,
        /// What was being read.
        inside: String,
    },
    /// The file is not in the one form of an export.
    #[error("byte {offset}: {problem}")]
    Malformed {
        /// Where.
        offset: u64,
        /// What was expected and what is there.
        problem: String,
    },
    /// The head of the log is not what the public key signed.
    #[error("the checkpoint does not hold")]
    Checkpoint(#[from] InvalidCheckpoint),
    /// The export is older than a head that is known.
    #[error(
        "the history was rolled back: a signed checkpoint has {known} leaves, the export {exported}"
    )]
    Rollback {
        /// Leaves of the known head.
        known: u64,
        /// Leaves of the export.
        exported: u64,
    },
    /// The export has another past than a head that is known.
    #[error(
        "the history was rewritten: its first {size} leaves have root {found}, a signed checkpoint says {known}"
    )]
    Fork {
        /// Leaves of the known head.
        size: u64,
        /// Root over as many leaves of the export.
        found: Digest,
        /// The known head's root.
        known: Digest,
    },
    /// A leaf's bytes were changed.
    #[error("{place}: bytes hash to {found}, recorded {recorded}")]
    LeafHash {
        /// The leaf.
        place: Place,
        /// RFC 6962 hash of its bytes.
        found: Digest,
        /// The hash beside it.
        recorded: Digest,
    },
    /// Leaves and their hashes fit each other, but not the signature.
    #[error(
        "the {size} leaves have root {found}, signed was {signed}: a leaf was changed, moved, added or left out together with its hash"
    )]
    Root {
        /// Leaves.
        size: u64,
        /// Root over them.
        found: Digest,
        /// The checkpoint's root.
        signed: Digest,
    },
    /// A leaf is not a record.
    #[error("leaf {leaf}")]
    Record {
        /// Its index.
        leaf: u64,
        /// Why not.
        #[source]
        source: InvalidRecord,
    },
    /// A stream's records have a gap, a repetition or another order.
    #[error("{place}: seq {expected} of this stream should stand here")]
    Sequence {
        /// The leaf.
        place: Place,
        /// The sequence number that should follow.
        expected: u64,
    },
    /// An event that the rules do not allow where it stands.
    #[error("{place}: {problem}")]
    Impossible {
        /// The leaf.
        place: Place,
        /// The rule.
        problem: String,
    },
    /// The recorded initial adapter is not the one that the manifest leads to.
    #[error("{place}: the manifest's initial adapter is {recomputed}, recorded {recorded}")]
    Initial {
        /// The leaf.
        place: Place,
        /// Digest of the adapter made from the manifest.
        recomputed: Digest,
        /// Digest in the event.
        recorded: Digest,
    },
    /// An exported tensor file is not what the history names.
    #[error("{what}: {problem}")]
    Tensors {
        /// Which delta or adapter.
        what: String,
        /// What does not fit.
        problem: String,
    },
    /// The published adapter is not the mean of what was counted.
    #[error(
        "run {run} round {round}: the accepted deltas lead to adapter {recomputed}, published {published}"
    )]
    Aggregate {
        /// The run.
        run: RunName,
        /// The round.
        round: u32,
        /// Digest of the recomputed adapter.
        recomputed: Digest,
        /// Digest in the history.
        published: Digest,
    },
    /// An adapter was published where the accepted deltas lead to none.
    #[error("run {run} round {round}: the accepted deltas lead to no adapter")]
    NoAggregate {
        /// The run.
        run: RunName,
        /// The round.
        round: u32,
        /// Why they do not.
        #[source]
        source: AggregateError,
    },
}

impl Finding {
    /// A stable code for machines.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unreadable(_) => "unreadable",
            Self::Truncated { .. } => "truncated",
            Self::Malformed { .. } => "malformed",
            Self::Checkpoint(_) => "checkpoint",
            Self::Rollback { .. } => "rollback",
            Self::Fork { .. } => "fork",
            Self::LeafHash { .. } => "leaf_hash",
            Self::Root { .. } => "root",
            Self::Record { .. } => "record",
            Self::Sequence { .. } => "sequence",
            Self::Impossible { .. } => "impossible",
            Self::Initial { .. } => "initial_adapter",
            Self::Tensors { .. } => "tensors",
            Self::Aggregate { .. } | Self::NoAggregate { .. } => "aggregate",
        }
    }
}

/// A leaf as people look it up: its index, and its stream and sequence number where they can be
/// read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Index in the log, from 0.
    pub leaf: u64,
    /// Stream and sequence number.
    pub stream: Option<(Stream, u64)>,
}

impl Place {
    pub(super) fn of(leaf: u64, record: &Record) -> Self {
        Self { leaf, stream: Some((record.stream.clone(), record.seq)) }
    }

    /// The place of a leaf whose bytes may be damaged.
    pub(super) fn read(leaf: u64, bytes: &[u8]) -> Self {
        let record = Record::from_bytes(bytes).ok();
        Self { leaf, stream: record.map(|record| (record.stream, record.seq)) }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.stream {
            Some((stream, seq)) => write!(f, "leaf {} ({stream} seq {seq})", self.leaf),
            None => write!(f, "leaf {}", self.leaf),
        }
    }
}
