//! The `[privacy]` table: the members who may see what single sites send.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// The members who may see what single sites send.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Privacy {
    /// Members who may fetch the deltas of single sites from the coordinator. None when empty:
    /// adapters cannot be recomputed by an audit then.
    pub deltas_for: BTreeSet<Reader>,
}

/// A kind of member that may fetch deltas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reader {
    /// Those who start runs.
    Operator,
    /// Those who verify the history.
    Auditor,
}

impl Reader {
    /// Its name in configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::Auditor => "auditor",
        }
    }
}

impl Default for Privacy {
    fn default() -> Self {
        Self { deltas_for: [Reader::Operator, Reader::Auditor].into() }
    }
}

impl Privacy {
    /// Says whether it is the meaning of a manifest without the table.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}
