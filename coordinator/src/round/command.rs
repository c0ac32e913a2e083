//! Commands to a run.

use std::collections::BTreeSet;

use tributary_shared::digest::Digest;
use tributary_shared::name::SiteName;
use tributary_shared::refusal::Refusal;

use super::event::{LossCause, Unusable};
use super::seat::Accepted;

/// Commands to a run.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Open the next round to these active sites, if they are enough.
    Open {
        /// The sites that may take part.
        active: BTreeSet<SiteName>,
    },
    /// A site agrees to a round's terms.
    AcceptTerms {
        /// The site, from its certificate.
        site: SiteName,
        /// The round.
        round: u32,
        /// The manifest it read.
        manifest: Digest,
        /// The adapter it will start from.
        base: Digest,
        /// Its training cases.
        cases: u64,
    },
    /// A site declines.
    Decline {
        /// The site.
        site: SiteName,
        /// The round.
        round: u32,
        /// Its reason.
        reason: Refusal,
    },
    /// A site fell silent, stalled or was suspended.
    Lose {
        /// The site.
        site: SiteName,
        /// The round it was lost to; `None` for whichever is open.
        round: Option<u32>,
        /// Why.
        cause: LossCause,
    },
    /// A site was heard.
    Hear {
        /// The site.
        site: SiteName,
        /// True when its work moves, as its lease tells: a stalled site that is merely heard stays
        /// lost.
        moving: bool,
    },
    /// A delta passed admission.
    Admit {
        /// The site.
        site: SiteName,
        /// The round.
        round: u32,
        /// The delta.
        delta: Accepted,
    },
    /// A delta did not pass admission.
    Refuse {
        /// The site.
        site: SiteName,
        /// The round.
        round: u32,
        /// The digest it came under.
        digest: Digest,
        /// Why.
        reason: Refusal,
    },
    /// A call of any kind from a site.
    Present {
        /// The site.
        site: SiteName,
    },
    /// A site whose refusal stood would take part now.
    Ready {
        /// The site.
        site: SiteName,
    },
    /// A site whose refusal stood refuses still, perhaps for another reason.
    StillRefuses {
        /// The site.
        site: SiteName,
        /// Its reason now.
        reason: Refusal,
    },
    /// The operator takes the run up again.
    Resume {
        /// The operator.
        by: String,
        /// The operator's words.
        reason: String,
    },
    /// Time has passed.
    Tick,
    /// A counted delta turned out to be of no use to the aggregate.
    Exclude {
        /// The round.
        round: u32,
        /// The site.
        site: SiteName,
        /// Digest of the delta.
        digest: Digest,
        /// Why.
        reason: Unusable,
    },
    /// Counted deltas are no longer kept.
    Remove {
        /// Newest closed rounds whose deltas are kept, at least 1.
        keep: u32,
    },
    /// The aggregate is computed and durable.
    Publish {
        /// The round.
        round: u32,
        /// Digest of the new adapter.
        adapter: Digest,
    },
    /// A site holds a delta of a round that a lost branch of the history knows.
    Skip(Skip),
    /// The operator ends the run.
    Stop {
        /// The operator's words.
        reason: String,
    },
}

/// A round of a site's ledger that this history does not know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skip {
    /// The site.
    pub site: SiteName,
    /// The highest round of which its ledger holds a delta.
    pub round: u32,
    /// True when that delta was answered; one that was not may still be delivered.
    pub answered: bool,
    /// The recovery statement that explains it.
    pub recovery: Digest,
    /// Most rounds that may be given up for that statement: the leaves that were lost.
    pub most: u64,
}
