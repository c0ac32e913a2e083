//! C2SP checkpoints (c2sp.org/tlog-checkpoint): the signed head of a log.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::digest::Digest;
use crate::tlog::key::{Signer, VerifierKey};
use crate::tlog::note::{self, InvalidNote};

/// A log's head: its name, its number of leaves and the root over them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The log's name, equal to that of the key that signs.
    pub origin: String,
    /// Leaves.
    pub size: u64,
    /// RFC 6962 root over them.
    pub root: Digest,
}

/// Why a checkpoint is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidCheckpoint {
    /// The note around it.
    #[error("the checkpoint's note is refused")]
    Note(#[from] InvalidNote),
    /// Signed, but not a checkpoint.
    #[error("not a checkpoint: {0}")]
    Form(&'static str),
    /// Of another log, though signed by our key.
    #[error("the checkpoint is of log `{found}`, not of `{expected}`")]
    Origin {
        /// The key's name.
        expected: String,
        /// The checkpoint's first line.
        found: String,
    },
}

impl Checkpoint {
    /// The head of `signer`'s log as a signed note.
    pub fn sign(size: u64, root: Digest, signer: &Signer) -> String {
        let checkpoint = Self { origin: signer.name().to_owned(), size, root };
        note::sign(&checkpoint.to_string(), signer)
    }

    /// Reads a signed note that `key` must have signed, as the log of its name.
    pub fn open(note: &str, key: &VerifierKey) -> Result<Self, InvalidCheckpoint> {
        let checkpoint = Self::parse(note::open(note, key)?)?;
        if checkpoint.origin != key.name() {
            return Err(InvalidCheckpoint::Origin {
                expected: key.name().to_owned(),
                found: checkpoint.origin,
            });
        }
        Ok(checkpoint)
    }

    /// Reads the three lines of a note's text.
    ///
    /// Extension lines are refused: the specification advises against them and we write none, so
    /// nothing may hide there.
    fn parse(text: &str) -> Result<Self, InvalidCheckpoint> {
        let form = InvalidCheckpoint::Form;
        let mut lines = text.strip_suffix('\n').ok_or(form("no last newline"))?.split('\n');
        let (Some(origin), Some(size), Some(root), None) =
            (lines.next(), lines.next(), lines.next(), lines.next())
        else {
            return Err(form("it does not have three lines"));
        };
        if origin.is_empty() {
            return Err(form("the origin is empty"));
        }
        let parsed: u64 = size.parse().map_err(|_| form("the size is not a number"))?;
        // `parse` takes a plus sign and leading zeros; a checkpoint has one spelling.
        if parsed.to_string() != size {
            return Err(form("the size is not a plain decimal"));
        }
        let root = STANDARD.decode(root).map_err(|_| form("the root is not base64"))?;
        let root = Digest::try_from(&root[..]).map_err(|_| form("the root is not 32 bytes"))?;
        Ok(Self { origin: origin.to_owned(), size: parsed, root })
    }
}

impl fmt::Display for Checkpoint {
    /// The note's text: three lines, each with its newline.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n{}\n{}\n", self.origin, self.size, STANDARD.encode(self.root.as_bytes()))
    }
}
