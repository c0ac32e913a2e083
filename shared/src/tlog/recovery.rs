//! The recovery statement: what a log that was restored from a backup says of the leaves it lost.
//!
//! Two keys sign it, the log's and an operator's, so that neither can drop leaves alone. It names
//! the heads that were lost and the head that was kept, each with the log's own signature: a lost
//! head stays evidence of its branch. The operator's certificate is judged by
//! `tributary_proto::channel`, which knows certificates.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::name::ConsortiumName;
use crate::text::REASON_CHARS_MAX;
use crate::timestamp::Timestamp;
use crate::tlog::checkpoint::{Checkpoint, InvalidCheckpoint};
use crate::tlog::key::{Signer, VerifierKey};

/// The only statement schema this version writes and reads.
pub const RECOVERY_SCHEMA: u32 = 1;
/// Largest statement read, bytes of JSON.
pub const RECOVERY_BYTES_MAX: usize = 16 << 10;
/// Most statements that a coordinator sends a site at once.
pub const RECOVERIES_MAX: usize = 16;
/// Most heads that a statement names as lost.
pub const LOST_MAX: usize = 16;
/// First line of what is signed: no note, no checkpoint and no handshake begins with it.
const DOMAIN: &str = "tributary recovery statement v1\n";

/// A head of the log with the signature that proves it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// Leaves.
    pub size: u64,
    /// RFC 6962 root over them.
    pub root: Digest,
    /// The signed checkpoint that says so.
    pub note: String,
}

impl Head {
    /// Reads a checkpoint that `key` signed.
    pub fn open(note: &str, key: &VerifierKey) -> Result<Self, InvalidCheckpoint> {
        let Checkpoint { size, root, .. } = Checkpoint::open(note, key)?;
        Ok(Self { size, root, note: note.to_owned() })
    }

    /// The checkpoint, as the log of its key's name signs it.
    pub fn checkpoint(&self) -> Checkpoint {
        let origin = self.note.lines().next().unwrap_or_default().to_owned();
        Checkpoint { origin, size: self.size, root: self.root }
    }

    fn check(&self, key: &VerifierKey) -> Result<(), InvalidRecovery> {
        let opened = Self::open(&self.note, key)?;
        let differs = InvalidRecovery::Form("a head is not that of its own checkpoint");
        if opened == *self { Ok(()) } else { Err(differs) }
    }
}

/// The heads that were lost and kept, with the operator and the reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Statement {
    /// [`RECOVERY_SCHEMA`].
    pub schema: u32,
    /// The log's public key.
    pub log: VerifierKey,
    /// The consortium.
    pub consortium: ConsortiumName,
    /// Heads that were signed and are not continued, the largest first: one for each branch that is known. There is
    /// more than one after a second restore to before the first one's statement.
    pub lost: Vec<Head>,
    /// The head of the restored history: the last one that both branches share.
    pub kept: Head,
    /// The moment at which the statement was made.
    pub at: Timestamp,
    /// The operator's words.
    pub reason: String,
    /// The member who signs beside the log, `operator/NAME`.
    pub operator: String,
}

/// The reason for which a statement is refused.
#[derive(Debug, thiserror::Error)]
pub enum InvalidRecovery {
    /// Not its JSON.
    #[error("not a recovery statement")]
    Json(#[from] serde_json::Error),
    /// Made by another version.
    #[error("recovery statement of schema {0}; this program reads {RECOVERY_SCHEMA}")]
    Schema(u32),
    /// Its parts do not fit each other.
    #[error("not a recovery statement: {0}")]
    Form(&'static str),
    /// Of another log.
    #[error("the recovery statement is of log `{0}`, not of this consortium's")]
    Log(String),
    /// One of its heads is not signed by the log's key.
    #[error("a head in the recovery statement does not hold")]
    Head(#[from] InvalidCheckpoint),
    /// The log's key did not sign it.
    #[error("the recovery statement is not signed by the log's key")]
    LogSignature,
}

impl Statement {
    /// Leaves of the largest lost head.
    pub fn lost_size(&self) -> u64 {
        self.lost.first().map_or(0, |head| head.size)
    }

    /// Leaves that were lost, as far as the largest lost head tells.
    pub fn lost_leaves(&self) -> u64 {
        self.lost_size().saturating_sub(self.kept.size)
    }

    /// Says whether `head` lies on a branch that was lost, as far as its size and the lost heads tell.
    pub fn covers(&self, head: &Checkpoint) -> bool {
        self.kept.size < head.size && (head.size < self.lost_size() || self.names(head))
    }

    /// Says whether `head` is one of the lost heads.
    pub fn names(&self, head: &Checkpoint) -> bool {
        self.lost.iter().any(|lost| (lost.size, lost.root) == (head.size, head.root))
    }

    /// The bytes that are signed.
    pub fn message(&self) -> Vec<u8> {
        let mut message = DOMAIN.as_bytes().to_vec();
        message.extend(serde_json::to_vec(self).expect("a statement is plain data"));
        message
    }

    /// The statement's name: a digest of what is signed.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.message())
    }

    /// Checks everything but signatures over the whole, as a statement of the log of `key`.
    pub fn check(&self, key: &VerifierKey) -> Result<(), InvalidRecovery> {
        let form = |problem| Err(InvalidRecovery::Form(problem));
        if self.schema != RECOVERY_SCHEMA {
            return Err(InvalidRecovery::Schema(self.schema));
        }
        if self.log != *key {
            return Err(InvalidRecovery::Log(self.log.name().to_owned()));
        }
        if self.lost.is_empty() || self.lost.len() > LOST_MAX {
            return form("it names no lost head, or more than 16");
        }
        self.lost.iter().chain([&self.kept]).try_for_each(|head| head.check(key))?;
        if !self.lost.is_sorted_by(|a, b| a.size >= b.size && a != b) {
            return form("its lost heads are not in order, the largest first");
        }
        if self.lost.iter().any(|head| head.size <= self.kept.size) {
            return form("a lost head is not larger than the kept one");
        }
        if self.reason.trim().is_empty() || self.reason.chars().count() > REASON_CHARS_MAX {
            return form("it gives no reason, or one of more than 500 characters");
        }
        if self.reason.chars().chain(self.operator.chars()).any(char::is_control) {
            return form("its words hold control characters");
        }
        Ok(())
    }
}

/// A statement that the log's key has signed and an operator has not yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Draft {
    /// The statement.
    pub statement: Statement,
    /// The log's signature over its message, base64.
    pub log_signature: String,
}

impl Draft {
    /// Signs with the log's key.
    pub fn sign(statement: Statement, signer: &Signer) -> Self {
        let log_signature = STANDARD.encode(signer.signature(&statement.message()));
        Self { statement, log_signature }
    }

    /// Reads a draft and checks it against the log's key.
    pub fn from_json(bytes: &[u8], key: &VerifierKey) -> Result<Self, InvalidRecovery> {
        let draft: Self = serde_json::from_slice(sized(bytes)?)?;
        check_log(&draft.statement, &draft.log_signature, key)?;
        Ok(draft)
    }

    /// The draft's file.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("a statement is plain data")
    }
}

/// A statement with both signatures, as it stands in the history and goes to the sites.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recovery {
    /// The statement.
    pub statement: Statement,
    /// The log's signature over its message, base64.
    pub log_signature: String,
    /// The operator's certificate, DER, base64.
    pub operator_certificate: String,
    /// The operator's signature over the same message: ECDSA P-256 with SHA-256, ASN.1, base64.
    pub operator_signature: String,
    /// The consortium's root certificate, DER, base64; its digest stands in leaf 0.
    pub root_certificate: String,
}

impl Recovery {
    /// Reads a statement and checks it against the log's key; the operator's part is checked by
    /// `tributary_proto::channel::check_recovery`.
    pub fn from_json(bytes: &[u8], key: &VerifierKey) -> Result<Self, InvalidRecovery> {
        let recovery: Self = serde_json::from_slice(sized(bytes)?)?;
        recovery.check_log(key)?;
        Ok(recovery)
    }

    /// The statement on the wire and in files.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("a statement is plain data")
    }

    /// Checks the statement and the log's signature.
    pub fn check_log(&self, key: &VerifierKey) -> Result<(), InvalidRecovery> {
        check_log(&self.statement, &self.log_signature, key)
    }
}

fn sized(bytes: &[u8]) -> Result<&[u8], InvalidRecovery> {
    let long = InvalidRecovery::Form("it is longer than 16 KiB");
    if bytes.len() > RECOVERY_BYTES_MAX { Err(long) } else { Ok(bytes) }
}

fn check_log(
    statement: &Statement,
    signature: &str,
    key: &VerifierKey,
) -> Result<(), InvalidRecovery> {
    statement.check(key)?;
    let signature = STANDARD.decode(signature).map_err(|_| InvalidRecovery::LogSignature)?;
    if key.verifies(&statement.message(), &signature) {
        Ok(())
    } else {
        Err(InvalidRecovery::LogSignature)
    }
}
