//! Expected noes: why a delta or a request was not taken. The code is stable and goes into
//! tables, logs and the history; the text says what, where and how to mend.

use serde::{Deserialize, Serialize};

/// Why an adapter, a delta or a request was refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "code", rename_all = "snake_case")]
pub enum Refusal {
    /// Not our canonical bytes at all.
    #[error("malformed bytes: {detail}")]
    Malformed {
        /// What did not parse.
        detail: String,
    },
    /// Tensors, names, shapes or order differ from the contract.
    #[error("does not fit the adapter contract: {}", diff.join("; "))]
    Contract {
        /// One line a difference.
        diff: Vec<String>,
    },
    /// The header names another contract, base adapter, run or round than was asked for.
    #[error("{field}: expected {expected}, found {found}")]
    Wrong {
        /// The header field: `contract`, `base`, `run`, `round`, `site`, `cases`.
        field: String,
        /// What this round asks for.
        expected: String,
        /// What the header says.
        found: String,
    },
    /// NaN or infinity.
    #[error("{tensor}[{index}] is {value}; a delta holds finite numbers only")]
    NotFinite {
        /// The tensor.
        tensor: String,
        /// The flat index in it.
        index: u64,
        /// `NaN`, `inf` or `-inf`.
        value: String,
    },
    /// L2 norm above the manifest's `limits.delta_norm_max`.
    #[error("norm {norm:.6} is above limits.delta_norm_max = {norm_max}")]
    OverNorm {
        /// The delta's L2 norm.
        norm: f64,
        /// The bound.
        norm_max: f64,
    },
    /// More or fewer bytes than the contract implies.
    #[error("{found} bytes; the contract allows {expected}")]
    Size {
        /// Bytes allowed.
        expected: u64,
        /// Bytes announced or sent.
        found: u64,
    },
    /// The bytes do not hash to the name they came under.
    #[error("bytes hash to {found}, not to {expected}; send them again")]
    Digest {
        /// The name they came under.
        expected: String,
        /// Their digest.
        found: String,
    },
    /// Another delta of this site is already counted in this round.
    #[error("this round already holds another delta of this site: {accepted}")]
    AlreadySubmitted {
        /// Digest of the one that is counted.
        accepted: String,
    },
    /// The round is over.
    #[error("round {round} is over; round {current} is open")]
    RoundOver {
        /// The round of the request.
        round: u32,
        /// The run's current round.
        current: u32,
    },
    /// The site was not asked this round.
    #[error("this site is not in the cohort of round {round}")]
    NotInCohort {
        /// The round of the request.
        round: u32,
    },
    /// The run has ended.
    #[error("the run has ended: {state}")]
    RunEnded {
        /// Its end state.
        state: String,
    },
    /// The site is suspended.
    #[error("this site is suspended; ask the operator of the consortium")]
    Suspended,
    /// A site's own policy said no.
    #[error("the site's policy refuses: {reason}")]
    Policy {
        /// The site's words.
        reason: String,
    },
    /// The site tried and could not.
    #[error("the site could not train: {reason}")]
    SiteFailed {
        /// The site's words.
        reason: String,
    },
}

impl Refusal {
    /// The stable code, as in the JSON form.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Malformed { .. } => "malformed",
            Self::Contract { .. } => "contract",
            Self::Wrong { .. } => "wrong",
            Self::NotFinite { .. } => "not_finite",
            Self::OverNorm { .. } => "over_norm",
            Self::Size { .. } => "size",
            Self::Digest { .. } => "digest",
            Self::AlreadySubmitted { .. } => "already_submitted",
            Self::RoundOver { .. } => "round_over",
            Self::NotInCohort { .. } => "not_in_cohort",
            Self::RunEnded { .. } => "run_ended",
            Self::Suspended => "suspended",
            Self::Policy { .. } => "policy",
            Self::SiteFailed { .. } => "site_failed",
        }
    }
}
