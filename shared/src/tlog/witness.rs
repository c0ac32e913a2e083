//! A site as the log's witness: it remembers the last head it saw and follows only a log that
//! continues it.

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::tlog::checkpoint::{Checkpoint, InvalidCheckpoint};
use crate::tlog::key::VerifierKey;
use crate::tlog::merkle::{InvalidProof, verify_consistency};

const SCHEMA_VERSION: u32 = 1;

/// What a witness holds: the log's key and the last head that continued all before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Witness {
    key: VerifierKey,
    /// Absent before the first head.
    seen: Option<Seen>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    /// As it came: with its signature it is evidence against a log that later denies it.
    note: String,
    checkpoint: Checkpoint,
}

/// Why a head is not followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WitnessRefusal {
    /// Not a checkpoint that the log's key signed.
    #[error("the coordinator's checkpoint is not signed by its log key")]
    BadSignature(#[source] InvalidCheckpoint),
    /// Fewer leaves than were seen before.
    #[error(
        "the history was rolled back: it had {held} leaves and now has {offered}; keep this site's witness file as evidence and call the consortium"
    )]
    Rollback {
        /// Leaves of the head this witness holds.
        held: u64,
        /// Leaves of the head that was offered.
        offered: u64,
    },
    /// Another past than the one seen before: both heads are signed, only one can be true.
    #[error(
        "the history was rewritten: what was seen at {held} leaves is not the beginning of what is offered at {offered}; keep this site's witness file as evidence and call the consortium"
    )]
    Fork {
        /// Leaves of the head this witness holds.
        held: u64,
        /// Leaves of the head that was offered.
        offered: u64,
        /// What the proof showed.
        #[source]
        proof: InvalidProof,
    },
}

/// Why a witness file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum InvalidWitness {
    /// Not its JSON.
    #[error("not a witness file")]
    Json(#[from] serde_json::Error),
    /// Made by another version.
    #[error("witness file of schema version {found}; this program reads {SCHEMA_VERSION}")]
    Schema {
        /// Its schema version.
        found: u32,
    },
    /// The checkpoint in it does not hold.
    #[error("the checkpoint in the witness file was changed")]
    Checkpoint(#[from] InvalidCheckpoint),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    schema_version: u32,
    log_verifier_key: VerifierKey,
    note: Option<String>,
}

impl Witness {
    /// A witness that has seen nothing of the log that `key` verifies.
    pub fn new(key: VerifierKey) -> Self {
        Self { key, seen: None }
    }

    /// A witness that goes on from the head in `note`, which `key` must have signed.
    pub fn at(key: VerifierKey, note: &str) -> Result<Self, InvalidCheckpoint> {
        let checkpoint = Checkpoint::open(note, &key)?;
        Ok(Self { key, seen: Some(Seen { note: note.to_owned(), checkpoint }) })
    }

    /// The last head followed, with its signature.
    pub fn note(&self) -> Option<&str> {
        self.seen.as_ref().map(|seen| &seen.note[..])
    }

    /// The log's key.
    pub fn key(&self) -> &VerifierKey {
        &self.key
    }

    /// The last head followed.
    pub fn checkpoint(&self) -> Option<&Checkpoint> {
        self.seen.as_ref().map(|seen| &seen.checkpoint)
    }

    /// Leaves of the last head followed: what to ask a consistency proof from.
    pub fn size(&self) -> u64 {
        self.checkpoint().map_or(0, |checkpoint| checkpoint.size)
    }

    /// Follows the log to the head in `note`, which `proof` must show to continue the last one.
    ///
    /// A refusal changes nothing: the held head stays, as evidence.
    pub fn advance(&mut self, note: &str, proof: &[Digest]) -> Result<Checkpoint, WitnessRefusal> {
        let offered = Checkpoint::open(note, &self.key).map_err(WitnessRefusal::BadSignature)?;
        if let Some(Seen { checkpoint: held, .. }) = &self.seen {
            let sizes = (held.size, offered.size);
            if offered.size < held.size {
                return Err(WitnessRefusal::Rollback { held: sizes.0, offered: sizes.1 });
            }
            verify_consistency(held.size, offered.size, held.root, offered.root, proof)
                .map_err(|proof| WitnessRefusal::Fork { held: sizes.0, offered: sizes.1, proof })?;
        }
        self.seen = Some(Seen { note: note.to_owned(), checkpoint: offered.clone() });
        Ok(offered)
    }

    /// The witness file: a small JSON text.
    pub fn to_json(&self) -> String {
        let stored = Stored {
            schema_version: SCHEMA_VERSION,
            log_verifier_key: self.key.clone(),
            note: self.seen.as_ref().map(|seen| seen.note.clone()),
        };
        serde_json::to_string_pretty(&stored).expect("a witness is plain data")
    }

    /// Reads a witness file; its checkpoint's signature is checked again.
    pub fn from_json(text: &str) -> Result<Self, InvalidWitness> {
        let stored: Stored = serde_json::from_str(text)?;
        if stored.schema_version != SCHEMA_VERSION {
            return Err(InvalidWitness::Schema { found: stored.schema_version });
        }
        let key = stored.log_verifier_key;
        let seen = match stored.note {
            None => None,
            Some(note) => Some(Seen { checkpoint: Checkpoint::open(&note, &key)?, note }),
        };
        Ok(Self { key, seen })
    }
}
