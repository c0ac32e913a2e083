//! One leaf of the history: an event with its place and time.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use tributary_shared::name::RunName;
use tributary_shared::timestamp::Timestamp;

use super::event::{RegistryEvent, RunEvent};

/// The only record schema this version writes and reads.
pub const RECORD_SCHEMA: u32 = 1;
/// Largest leaf, bytes: the limit of an entry in a C2SP log.
pub const LEAF_BYTES_MAX: usize = 65_535;

/// Which sequence of events a record belongs to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Stream {
    /// Who may take part.
    Registry,
    /// One run.
    Run(RunName),
}

impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry => f.write_str("registry"),
            Self::Run(run) => write!(f, "run/{run}"),
        }
    }
}

impl FromStr for Stream {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("run/") {
            Some(run) => run.parse().map(Self::Run).map_err(|e| format!("{e}")),
            None if text == "registry" => Ok(Self::Registry),
            None => Err(format!("`{text}` is neither `registry` nor `run/NAME`")),
        }
    }
}

impl TryFrom<String> for Stream {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Stream> for String {
    fn from(stream: Stream) -> Self {
        stream.to_string()
    }
}

/// An event of either kind of stream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Event {
    /// Of a run.
    Run(RunEvent),
    /// Of the registry.
    Registry(RegistryEvent),
}

/// A leaf's content.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// [`RECORD_SCHEMA`].
    pub schema: u32,
    /// When the coordinator committed it.
    pub at: Timestamp,
    /// The sequence it belongs to.
    pub stream: Stream,
    /// Its place in that sequence, from 0, without gaps.
    pub seq: u64,
    /// What happened.
    pub event: Event,
}

impl Record {
    /// A record of this schema.
    pub fn new(at: Timestamp, stream: Stream, seq: u64, event: Event) -> Self {
        Self { schema: RECORD_SCHEMA, at, stream, seq, event }
    }

    /// The leaf's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a record is plain data")
    }

    /// Reads a leaf's bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, InvalidRecord> {
        if bytes.len() > LEAF_BYTES_MAX {
            return Err(InvalidRecord::TooLarge(bytes.len()));
        }
        let record: Self =
            serde_json::from_slice(bytes).map_err(|e| InvalidRecord::Json(e.to_string()))?;
        if record.schema != RECORD_SCHEMA {
            return Err(InvalidRecord::Schema(record.schema));
        }
        Ok(record)
    }
}

/// Bytes that are no record.
#[derive(Debug, thiserror::Error)]
pub enum InvalidRecord {
    /// Larger than [`LEAF_BYTES_MAX`].
    #[error("{0} bytes; a leaf has at most {LEAF_BYTES_MAX}")]
    TooLarge(usize),
    /// Not the JSON of a record.
    #[error("not a record: {0}")]
    Json(String),
    /// Written by another version.
    #[error("record schema {0}; this version reads {RECORD_SCHEMA}")]
    Schema(u32),
}
