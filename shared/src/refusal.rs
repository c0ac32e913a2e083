//! Reasons why a delta or a request is refused. The code is stable and goes into
//! tables, logs and the history; the text says what, where and how to mend.

use serde::{Deserialize, Serialize};

use crate::text::printable_strings;

/// Duration class of a site's refusal, which decides when the site is asked again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalClass {
    /// Ends by itself: outside the site's hours, images away for a moment, a full disk.
    Passing,
    /// Ends when a person at the site changes something: a policy, a file, a configuration.
    UntilChanged,
    /// Holds for this round, whatever changes: training failed, or the round was answered before.
    #[default]
    Never,
}

impl RefusalClass {
    /// The word in tables and in the JSON form.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Passing => "passing",
            Self::UntilChanged => "until_changed",
            Self::Never => "never",
        }
    }

    /// Says whether it is left out of the JSON form, as in records written before there were classes.
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

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
    /// The header names another contract, base adapter, run or round than was asked for, the cases
    /// are not those declared, or a metric is out of its range.
    #[error("{field}: expected {expected}, found {found}")]
    Wrong {
        /// The header field (`contract`, `base`, `run`, `round`, `site`, `cases`), or a metric.
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
    /// The coordinator knows no such run: its history was restored from an older backup.
    #[error("the coordinator knows no run `{run}`; its history was restored from an older backup")]
    RunUnknown {
        /// The run of the request.
        run: String,
    },
    /// The run cannot be taken up again as it stands.
    #[error("the run cannot be resumed: {state}")]
    NotResumable {
        /// Its present work, or its end.
        state: String,
    },
    /// The site is suspended.
    #[error("this site is suspended; ask the operator of the consortium")]
    Suspended,
    /// The site left the round and came back too often: each time is an event of the history.
    #[error(
        "this site left round {round} and came back {times} times; it is asked again in the next"
    )]
    TooOften {
        /// The round of the request.
        round: u32,
        /// Times that it came back.
        times: u32,
    },
    /// A site's own policy said no.
    #[error("the site's policy refuses: {reason}")]
    Policy {
        /// The site's words.
        reason: String,
        /// The time that it holds.
        #[serde(default, skip_serializing_if = "RefusalClass::is_default")]
        class: RefusalClass,
    },
    /// A site's policy asks for more sites in a round, and for nothing else.
    #[error("the site's policy refuses: a cohort of {size} is below cohort_min = {min}")]
    Cohort {
        /// Sites that the round asks, this one included.
        size: u32,
        /// Sites that the policy asks for, this one included.
        min: u32,
    },
    /// The site tried and could not.
    #[error("the site could not train: {reason}")]
    SiteFailed {
        /// The site's words.
        reason: String,
        /// The time that it holds.
        #[serde(default, skip_serializing_if = "RefusalClass::is_default")]
        class: RefusalClass,
    },
}

impl Refusal {
    /// The refusal with every text in it made printable: what the other side or a hostile file wrote
    /// in it goes to terminals, logs and the history.
    pub fn printable(self) -> Self {
        let mut value = serde_json::to_value(&self).expect("a refusal is plain data");
        printable_strings(&mut value);
        serde_json::from_value(value).unwrap_or(self)
    }

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
            Self::RunUnknown { .. } => "run_unknown",
            Self::NotResumable { .. } => "not_resumable",
            Self::Suspended => "suspended",
            Self::TooOften { .. } => "too_often",
            Self::Policy { .. } => "policy",
            Self::Cohort { .. } => "cohort",
            Self::SiteFailed { .. } => "site_failed",
        }
    }

    /// The time that it holds; what only a coordinator refuses holds for its round.
    pub fn class(&self) -> RefusalClass {
        match self {
            Self::Policy { class, .. } | Self::SiteFailed { class, .. } => *class,
            Self::Cohort { .. } => RefusalClass::UntilChanged,
            Self::Malformed { .. }
            | Self::Contract { .. }
            | Self::Wrong { .. }
            | Self::NotFinite { .. }
            | Self::OverNorm { .. }
            | Self::Size { .. }
            | Self::Digest { .. }
            | Self::AlreadySubmitted { .. }
            | Self::RoundOver { .. }
            | Self::NotInCohort { .. }
            | Self::RunEnded { .. }
            | Self::RunUnknown { .. }
            | Self::NotResumable { .. }
            | Self::TooOften { .. }
            | Self::Suspended => RefusalClass::Never,
        }
    }

    /// Says whether the site may say yes later, so that it is worth asking again.
    pub fn may_end(&self) -> bool {
        match self.class() {
            RefusalClass::Passing | RefusalClass::UntilChanged => true,
            RefusalClass::Never => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Leaves and ledger entries written before there were classes keep their bytes.
    #[test]
    fn a_refusal_without_a_class_holds_for_its_round_and_keeps_its_bytes() {
        let old = r#"{"code":"policy","reason":"no"}"#;
        let read: Refusal = serde_json::from_str(old).unwrap();
        assert_eq!(read.class(), RefusalClass::Never);
        assert!(!read.may_end());
        assert_eq!(serde_json::to_string(&read).unwrap(), old);
        let passing = Refusal::Policy { reason: "no".to_owned(), class: RefusalClass::Passing };
        assert_eq!(
            serde_json::to_string(&passing).unwrap(),
            r#"{"code":"policy","reason":"no","class":"passing"}"#
        );
    }
}
