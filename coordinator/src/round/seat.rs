//! One site's place in one round.

use tributary_shared::digest::Digest;
use tributary_shared::name::SiteName;
use tributary_shared::refusal::Refusal;
use tributary_shared::terms::SiteMetrics;

use super::event::{LossCause, Unusable};

/// Where a site of the cohort stands in a round.
#[derive(Clone, Debug, PartialEq)]
pub enum Seat {
    /// Asked; no answer yet.
    Asked,
    /// Agreed to the terms and works.
    Training {
        /// Training cases it declared.
        cases: u64,
    },
    /// Its delta is counted. Final.
    Accepted(Accepted),
    /// Its delta was counted and could not be folded. Final.
    Excluded {
        /// The delta, as it was counted.
        accepted: Accepted,
        /// The reason.
        reason: Unusable,
    },
    /// Its delta did not pass admission. Final.
    Refused {
        /// The digest the delta came under.
        digest: Digest,
        /// Why.
        reason: Refusal,
        /// What it had declared before: cases that the round lacks now.
        cases: Option<u64>,
    },
    /// It said no. Final, unless the no may end before it has agreed to anything.
    Declined {
        /// Its reason.
        reason: Refusal,
        /// What it had declared before: cases that the round lacks now.
        cases: Option<u64>,
    },
    /// Silent, stalled or suspended; may return until the round closes.
    Lost {
        /// Why.
        cause: LossCause,
        /// What it had declared before.
        cases: Option<u64>,
    },
}

/// A counted delta.
#[derive(Clone, Debug, PartialEq)]
pub struct Accepted {
    /// Digest of its canonical bytes.
    pub digest: Digest,
    /// Its weight.
    pub cases: u64,
    /// Its L2 norm.
    pub norm: f64,
    /// Size of its canonical bytes.
    pub bytes: u64,
    /// What the site says of its training.
    pub metrics: SiteMetrics,
}

impl Seat {
    /// The name in tables.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Asked => "asked",
            Self::Training { .. } => "training",
            Self::Accepted(_) => "accepted",
            Self::Excluded { .. } => "excluded",
            Self::Refused { .. } => "refused",
            Self::Declined { .. } => "declined",
            Self::Lost { .. } => "lost",
        }
    }

    /// Why it does not contribute, in words; empty while it may or does.
    pub fn detail(&self) -> String {
        match self {
            Self::Asked | Self::Training { .. } | Self::Accepted(_) => String::new(),
            Self::Refused { reason, .. } | Self::Declined { reason, .. } => reason.to_string(),
            Self::Excluded { reason, .. } => reason.to_string(),
            Self::Lost { cause, .. } => cause.to_string(),
        }
    }

    /// Whether nothing more can come from it.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Accepted(_) | Self::Excluded { .. } | Self::Refused { .. } => true,
            Self::Declined { reason, cases } => cases.is_some() || !reason.may_end(),
            Self::Asked | Self::Training { .. } | Self::Lost { .. } => false,
        }
    }

    /// Says whether the site has agreed to nothing and does not take part for now: it refuses for a
    /// while, is absent, or was taken out.
    pub fn is_passed_by(&self) -> bool {
        match self {
            Self::Declined { .. } => !self.is_final(),
            Self::Lost { cause, cases: None } => cause.is_absence() || cause.is_withdrawal(),
            Self::Lost { cases: Some(_), .. }
            | Self::Asked
            | Self::Training { .. }
            | Self::Accepted(_)
            | Self::Excluded { .. }
            | Self::Refused { .. } => false,
        }
    }

    /// Training cases it declared.
    pub fn cases(&self) -> Option<u64> {
        match self {
            Self::Training { cases } => Some(*cases),
            Self::Accepted(accepted) | Self::Excluded { accepted, .. } => Some(accepted.cases),
            Self::Lost { cases, .. }
            | Self::Refused { cases, .. }
            | Self::Declined { cases, .. } => *cases,
            Self::Asked => None,
        }
    }

    /// Declared cases that a round's share of cases is reckoned over: what a site takes back by its
    /// own act, or sends in a form that is refused, is not held against the others.
    pub fn awaited_cases(&self) -> Option<u64> {
        match self {
            Self::Training { .. } | Self::Accepted(_) | Self::Lost { .. } => self.cases(),
            Self::Asked | Self::Excluded { .. } | Self::Refused { .. } | Self::Declined { .. } => {
                None
            }
        }
    }

    /// Whether the operator has taken it out of the round.
    pub fn is_withdrawn(&self) -> bool {
        matches!(self, Self::Lost { cause, .. } if cause.is_withdrawal())
    }

    /// The verdict on submission `digest`, once there is one; an exclusion later changes none.
    pub fn verdict(&self, digest: Digest) -> Option<Result<(), Refusal>> {
        match self {
            Self::Accepted(accepted) | Self::Excluded { accepted, .. }
                if accepted.digest == digest =>
            {
                Some(Ok(()))
            }
            Self::Accepted(accepted) | Self::Excluded { accepted, .. } => {
                let accepted = accepted.digest.to_string();
                Some(Err(Refusal::AlreadySubmitted { accepted }))
            }
            Self::Declined { .. } if !self.is_final() => None,
            Self::Refused { reason, .. } | Self::Declined { reason, .. } => {
                Some(Err(reason.clone()))
            }
            Self::Asked | Self::Training { .. } | Self::Lost { .. } => None,
        }
    }
}

/// A site that was asked and its seat, for lists.
pub type Seats = std::collections::BTreeMap<SiteName, Seat>;
