//! What the ledger's lines say, and what they add up to for one round.

use serde::{Deserialize, Serialize};
use tributary_shared::check::{CheckAnswer, CheckWarning};
use tributary_shared::digest::Digest;
use tributary_shared::name::RunName;
use tributary_shared::refusal::{Refusal, RefusalClass};
use tributary_shared::terms::SiteMetrics;
use tributary_shared::timestamp::Timestamp;

/// One line of the ledger.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// When, by the site's clock.
    pub at: Timestamp,
    /// The run.
    pub run: RunName,
    /// The round.
    pub round: u32,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

/// What happened in a round.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Event {
    /// The site agreed to the terms; it told how many cases it holds.
    Agreed {
        /// The manifest it agreed to.
        manifest: Digest,
        /// The adapter to start from.
        base: Digest,
        /// Sites asked.
        cohort_size: u32,
        /// Training cases declared.
        cases: u64,
    },
    /// The site said no, by policy or because it could not train.
    Declined {
        /// The manifest it refused; absent when what came was none.
        manifest: Option<Digest>,
        /// What it told the coordinator.
        reason: Refusal,
    },
    /// Asked again about a round that it had declined, the site said that it would take part now.
    Willing {
        /// The manifest that was asked about.
        manifest: Digest,
    },
    /// The coordinator ended the work before there was a delta.
    Stopped {
        /// The coordinator's words.
        reason: String,
    },
    /// The delta lies in the outbox. Nothing has left.
    Trained(Trained),
    /// The delta begins to leave the building.
    Released {
        /// The delta.
        digest: Digest,
        /// Its size.
        bytes: u64,
    },
    /// An operator asked before a run began whether the site would take part; of round 0.
    Checked {
        /// The manifest that was asked about.
        manifest: Digest,
        /// The site's answer.
        answer: CheckAnswer,
        /// Points that the operator was told to look at.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        warnings: Vec<CheckWarning>,
    },
    /// The coordinator's verdict.
    Answered {
        /// The delta.
        digest: Digest,
        /// Absent when it is counted.
        refusal: Option<Refusal>,
    },
}

/// A delta, and all that is said of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trained {
    /// The adapter it changes.
    pub base: Digest,
    /// The delta.
    pub digest: Digest,
    /// Its size.
    pub bytes: u64,
    /// Its L2 norm.
    pub norm: f64,
    /// Training cases behind it.
    pub cases: u64,
    /// The counts and sums that are sent with it.
    pub metrics: SiteMetrics,
}

/// Where the site stands in a round: the fold of the round's entries.
#[derive(Clone, Debug, PartialEq)]
pub enum Standing {
    /// Agreed, not trained: a restart trains again, for no delta has left.
    Agreed {
        /// The manifest.
        manifest: Digest,
        /// The adapter to start from.
        base: Digest,
        /// Training cases declared.
        cases: u64,
    },
    /// Declined; asked again, it judges anew where the refusal may have ended, and else gives the
    /// same answer.
    Declined {
        /// The manifest that was judged; `None` where it could not be read.
        manifest: Option<Digest>,
        /// The answer.
        reason: Refusal,
    },
    /// Declined, and willing when it was asked again; asked for the round, it judges anew.
    Willing {
        /// The manifest that was judged.
        manifest: Digest,
    },
    /// Stopped by the coordinator before there was a delta; asked again, it trains.
    Stopped,
    /// Trained, without an answer: the delta in the outbox is owed. Never trained again.
    Owed {
        /// The delta.
        trained: Trained,
        /// Whether it began to leave the building.
        released: bool,
    },
    /// Over: the coordinator has answered.
    Answered {
        /// The delta it answered for.
        digest: Digest,
    },
}

impl Standing {
    /// The no that the site gives when it is asked for the round again; `None` where there is none.
    pub fn refusal(&self) -> Option<Refusal> {
        match self {
            Self::Declined { reason, .. } => Some(reason.clone()),
            Self::Answered { digest } => {
                let reason = format!("this site's delta {digest} was already answered");
                Some(Refusal::SiteFailed { reason, class: RefusalClass::Never })
            }
            Self::Agreed { .. } | Self::Willing { .. } | Self::Stopped | Self::Owed { .. } => None,
        }
    }

    /// The standing after one more entry.
    pub(super) fn after(before: Option<Self>, event: &Event) -> Self {
        match event {
            Event::Agreed { manifest, base, cases, .. } => {
                Self::Agreed { manifest: *manifest, base: *base, cases: *cases }
            }
            Event::Declined { manifest, reason } => {
                Self::Declined { manifest: *manifest, reason: reason.clone() }
            }
            Event::Willing { manifest } => Self::Willing { manifest: *manifest },
            Event::Stopped { .. } => Self::Stopped,
            Event::Trained(trained) => Self::Owed { trained: trained.clone(), released: false },
            Event::Released { .. } => match before {
                Some(Self::Owed { trained, .. }) => Self::Owed { trained, released: true },
                Some(other) => other,
                None => Self::Stopped,
            },
            Event::Answered { digest, .. } => Self::Answered { digest: *digest },
            // A check belongs to no round.
            Event::Checked { .. } => before.unwrap_or(Self::Stopped),
        }
    }
}
