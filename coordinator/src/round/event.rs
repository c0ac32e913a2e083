//! What happened: the events of a run and of the registry. They are the history itself; each is
//! one leaf of the audit log.

use serde::{Deserialize, Serialize};
use tributary_shared::check::SiteCheck;
use tributary_shared::digest::Digest;
use tributary_shared::manifest::RunManifest;
use tributary_shared::name::{RunName, SiteName};
use tributary_shared::refusal::Refusal;
use tributary_shared::terms::SiteMetrics;
use tributary_shared::timestamp::Timestamp;
use tributary_shared::tlog::recovery::Recovery;

use super::weights::Weight;

/// An event of one run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum RunEvent {
    /// The first event: the operator's manifest was taken.
    RunStarted {
        /// The terms, whole.
        manifest: Box<RunManifest>,
        /// Digest of the manifest's canonical JSON.
        manifest_digest: Digest,
        /// Digest of the adapter contract the manifest implies.
        contract: Digest,
        /// Digest of the initial adapter, version 0.
        adapter: Digest,
        /// Who asked, as the certificate says.
        by: String,
    },
    /// A round was opened to its cohort.
    RoundOpened {
        /// The round, from 1, without gaps but those of `rounds_skipped`; a withdrawn round's
        /// number comes again.
        round: u32,
        /// Digest of the global adapter to start from.
        base: Digest,
        /// The sites asked.
        cohort: Vec<SiteName>,
        /// The round's hard cap.
        deadline: Timestamp,
        /// Sites of the run that are not asked, and why: a refusal that stands, or an absence. They
        /// count as missing in this round unless they become available before it closes.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        passed_over: Vec<Missing>,
    },
    /// A site that refused or was absent may be asked again: it was heard, or it would take part.
    SiteAvailable {
        /// The site.
        site: SiteName,
    },
    /// A site whose refusal stands refuses for another reason than before.
    RefusalChanged {
        /// The site.
        site: SiteName,
        /// Its reason now.
        reason: Refusal,
    },
    /// A round in which nothing was agreed to and every site refuses for now or is absent. It is
    /// not void, and its number is used again.
    RoundWithdrawn {
        /// The round.
        round: u32,
        /// Every site of the round, and why it does not take part, in words.
        reasons: Vec<Missing>,
    },
    /// The operator took up a run that had failed, was stopped or waited.
    RunResumed {
        /// The operator, as the certificate says.
        by: String,
        /// The operator's words.
        reason: String,
    },
    /// A site agreed to the terms and said how many training cases it holds.
    TermsAccepted {
        /// The round.
        round: u32,
        /// The site.
        site: SiteName,
        /// Its training cases.
        cases: u64,
    },
    /// A site said no, by policy or because it could not train.
    Declined {
        /// The round.
        round: u32,
        /// The site.
        site: SiteName,
        /// Its reason.
        reason: Refusal,
    },
    /// A site fell silent, stalled, was suspended or was revoked.
    SiteLost {
        /// The round.
        round: u32,
        /// The site.
        site: SiteName,
        /// Why it counts as lost.
        cause: LossCause,
    },
    /// A lost site was heard again before the round closed.
    SiteReturned {
        /// The round.
        round: u32,
        /// The site.
        site: SiteName,
    },
    /// A delta did not pass admission; the site has no further try in this round.
    DeltaRefused {
        /// The round.
        round: u32,
        /// The site.
        site: SiteName,
        /// The digest it came under.
        digest: Digest,
        /// Why.
        reason: Refusal,
    },
    /// A delta passed admission and is counted.
    DeltaAccepted {
        /// The round.
        round: u32,
        /// The site.
        site: SiteName,
        /// Digest of the delta's canonical bytes.
        digest: Digest,
        /// Its training cases, as declared.
        cases: u64,
        /// Its L2 norm.
        norm: f64,
        /// Size of its canonical bytes.
        bytes: u64,
        /// What the site says of its training.
        metrics: SiteMetrics,
    },
    /// No more deltas are taken.
    RoundClosed {
        /// The round.
        round: u32,
        /// Whether the accepted deltas make the quorum; else the round is void.
        quorum_met: bool,
        /// Who did not contribute, and why, in words.
        missing: Vec<Missing>,
    },
    /// A counted delta that cannot be folded. The closed round goes on without it, or is void.
    DeltaExcluded {
        /// The round.
        round: u32,
        /// The site.
        site: SiteName,
        /// Digest of the delta.
        digest: Digest,
        /// The reason.
        reason: Unusable,
        /// True when the others make the quorum; else the round is void after all.
        quorum_met: bool,
    },
    /// The next global adapter.
    AdapterPublished {
        /// The round it came out of.
        round: u32,
        /// Its version: published rounds so far.
        version: u32,
        /// Digest of its canonical bytes.
        adapter: Digest,
        /// The strategy that made it.
        strategy: String,
        /// Declared cases behind it.
        cases: u64,
        /// The weight of every delta in it.
        weights: Vec<Weight>,
    },
    /// The coordinator removes the counted deltas of all closed rounds up to one, as its configuration
    /// says (`[retention]`). What was published stands, and cannot be computed again from then on.
    DeltasRemoved {
        /// The last of these rounds.
        to: u32,
    },
    /// Rounds that a lost branch of the history knows of: a site has released a delta for them and
    /// will never train them again. The run goes on above them; an open round ends here, and
    /// counts neither as void nor against any site.
    RoundsSkipped {
        /// The last round skipped.
        to: u32,
        /// The site that knows it.
        site: SiteName,
        /// Digest of the recovery statement that explains it.
        recovery: Digest,
    },
    /// The last event, unless the run is resumed.
    RunEnded {
        /// How it ended.
        state: EndState,
        /// Who and why, in words.
        detail: String,
    },
}

/// Reason for which a counted delta cannot be aggregated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "problem", rename_all = "snake_case", deny_unknown_fields)]
pub enum Unusable {
    /// The stored bytes are not those that were counted.
    #[error("its delta was counted, and its stored bytes are damaged")]
    Damaged,
    /// With it a value of the adapter leaves the range of f32, and no delta is further from zero
    /// there.
    #[error("its delta was counted, and with it value {index} of the adapter would be {value}")]
    NotFinite {
        /// The flat index over all tensors.
        index: u64,
        /// `NaN`, `inf` or `-inf`.
        value: String,
    },
}

/// Why a site counts as lost to a round.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "cause", rename_all = "snake_case", deny_unknown_fields)]
pub enum LossCause {
    /// It never answered the round's terms.
    #[error("did not answer within {waited_s} s")]
    NoAnswer {
        /// Seconds since the round opened.
        waited_s: u64,
    },
    /// Its heartbeats stopped.
    #[error("not heard for {silent_s} s")]
    Silent {
        /// Seconds since the last heartbeat.
        silent_s: u64,
    },
    /// It is heard, but its training step does not move.
    #[error("no progress for {stalled_s} s at step {step}")]
    Stalled {
        /// Seconds since the step last moved.
        stalled_s: u64,
        /// The step.
        step: u64,
    },
    /// The operator suspended it; in histories of earlier versions also one that was revoked.
    #[error("suspended by the operator")]
    Suspended,
    /// The operator revoked it.
    #[error("revoked by the operator")]
    Revoked,
}

impl LossCause {
    /// Says whether the operator took the site out of the round: it is not back in that round.
    pub fn is_withdrawal(&self) -> bool {
        match self {
            Self::Suspended | Self::Revoked => true,
            Self::NoAnswer { .. } | Self::Silent { .. } | Self::Stalled { .. } => false,
        }
    }

    /// Says whether the site is not there at all, so that later rounds need not ask it.
    pub fn is_absence(&self) -> bool {
        match self {
            Self::NoAnswer { .. } | Self::Silent { .. } => true,
            Self::Stalled { .. } | Self::Suspended | Self::Revoked => false,
        }
    }
}

/// A site that did not contribute to a round.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Missing {
    /// The site.
    pub site: SiteName,
    /// Why, in words.
    pub reason: String,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndState {
    /// Every round asked for, from every site asked.
    Completed,
    /// Every round asked for, but not from every site; the detail names who and why.
    CompletedPartial,
    /// The operator stopped it; published versions stand.
    Stopped,
    /// Quorum could not be met; published versions stand.
    Failed,
}

impl EndState {
    /// The name in tables and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::CompletedPartial => "completed_partial",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
        }
    }
}

/// An event of the registry: who may take part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum RegistryEvent {
    /// The coordinator was set up; always leaf 0.
    Founded {
        /// The consortium.
        consortium: String,
        /// SHA-256 of the root certificate, DER.
        root: Digest,
    },
    /// An invitation was issued.
    Invited {
        /// `site/NAME`, `operator/NAME` or `auditor/NAME`.
        member: String,
        /// When the token expires.
        expires: Timestamp,
        /// Who asked.
        by: String,
        /// True when the member was enrolled: the new certificate takes the place of its present one.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        replaces: bool,
    },
    /// The unused invitations of a member were withdrawn. A revocation does the same without this event.
    InvitationsWithdrawn {
        /// The member.
        member: String,
        /// Their number.
        count: u32,
        /// The operator that asked.
        by: String,
    },
    /// A token that had given a certificate was shown again with another key: its kit may have been stolen.
    TokenReused {
        /// The member that the token invited.
        member: String,
    },
    /// A certificate was issued against an invitation.
    Enrolled {
        /// The member.
        member: String,
        /// SHA-256 of the certificate, DER.
        certificate: Digest,
    },
    /// A site may not take part until reinstated.
    Suspended {
        /// The member.
        member: String,
        /// The operator's words.
        reason: String,
        /// Who asked.
        by: String,
    },
    /// A suspended site may take part again.
    Reinstated {
        /// The member.
        member: String,
        /// Who asked.
        by: String,
    },
    /// The history was restored from a backup and leaves were lost; what is said of them.
    Recovered {
        /// The statement, with the log's and an operator's signature.
        recovery: Box<Recovery>,
    },
    /// An operator asked connected sites whether they would take part in a run; none was started.
    RunChecked {
        /// The operator that asked.
        by: String,
        /// The run's name, which may be free.
        run: RunName,
        /// Digest of its manifest's canonical JSON.
        manifest: Digest,
        /// The sites asked.
        asked: Vec<SiteName>,
    },
    /// The sites' answers to a check, each by a class.
    CheckAnswered {
        /// The run's name.
        run: RunName,
        /// Digest of its manifest's canonical JSON.
        manifest: Digest,
        /// An answer of every site that was asked, in the same order.
        answers: Vec<SiteCheck>,
    },
    /// The certificate is dead for good; a new invitation is needed.
    Revoked {
        /// The member.
        member: String,
        /// The operator's words.
        reason: String,
        /// Who asked.
        by: String,
    },
}
