//! A run as a pure fold over its events. Decides, never acts: no clock, no I/O, no randomness.
//!
//! The shell's whole contract with it (see `driver`): decide -> commit -> evolve -> act. A live
//! run, a restarted one and an audited one are the same fold.

mod closing;
mod command;
mod decide;
pub mod divergence;
pub mod event;
mod evolve;
pub mod lease;
pub mod record;
pub mod seat;
mod tally;
mod waiting;
pub mod weights;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use tributary_shared::contract::AdapterContract;
use tributary_shared::digest::Digest;
use tributary_shared::manifest::RunManifest;
use tributary_shared::name::SiteName;
use tributary_shared::refusal::Refusal;
use tributary_shared::tensors::{Header, Subject};
use tributary_shared::terms::Terms;
use tributary_shared::timestamp::Timestamp;

pub use command::{Command, Skip};
use event::{EndState, Missing, Unusable};
use seat::{Accepted, Seat, Seats};
pub use tally::{Counts, Tally};
pub use waiting::{Absence, Away};
use weights::Weight;

/// Times that a site may come back to one round: each is an event, and so is each time that it goes.
pub const RETURNS_MAX: u32 = 32;

/// One run: its manifest, the phase it is in, and every closed round.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    manifest: RunManifest,
    manifest_digest: Digest,
    contract: AdapterContract,
    started: Timestamp,
    /// Digests of the published adapters; index = version, 0 the initial one.
    adapters: Vec<Digest>,
    phase: Phase,
    /// Closed rounds. Outlives phases: a site that lost our answer must hear it again.
    past: BTreeMap<u32, PastRound>,
    /// Rounds in a row that ended below quorum.
    void_in_a_row: u32,
    /// Every round up to this one is taken, by this branch of the history or by a lost one.
    skipped_to: u32,
    /// The counted deltas of every round up to this one are removed.
    removed_to: u32,
    /// Rounds given up for each recovery statement.
    skipped: BTreeMap<Digest, u64>,
    /// Rounds in a row that were withdrawn before any site agreed to the terms.
    withdrawn_in_a_row: u32,
    /// After a round below quorum, or several that were withdrawn: when the next may open.
    paused_until: Option<Timestamp>,
    /// The sites that are not asked for now.
    away: Away,
}

/// Where a run stands, with the data valid there.
#[derive(Clone, Debug, PartialEq)]
pub enum Phase {
    /// Between rounds, until enough sites are active.
    Waiting,
    /// Deltas are taken.
    Collecting(Collecting),
    /// The round is closed with a quorum; the next adapter is owed.
    Aggregating(Aggregating),
    /// Over, unless the operator takes it up again.
    Ended {
        /// How.
        state: EndState,
        /// Who and why, in words.
        detail: String,
        /// When.
        at: Timestamp,
    },
}

/// An open round.
#[derive(Clone, Debug, PartialEq)]
pub struct Collecting {
    /// The round.
    pub round: u32,
    /// Digest of the adapter the sites start from.
    pub base: Digest,
    /// When it was opened.
    pub opened: Timestamp,
    /// Its hard cap.
    pub deadline: Timestamp,
    /// Every site asked, and those passed over.
    pub seats: Seats,
    /// Sites that were not asked, and why, in words; a site that becomes available is asked.
    pub passed_over: BTreeMap<SiteName, String>,
    /// Times that a site came back after it was lost or refused.
    pub returns: BTreeMap<SiteName, u32>,
}

impl Collecting {
    /// Number of sites that are asked: those that were not passed over.
    pub fn asked(&self) -> u32 {
        let asked = self.seats.len() - self.passed_over.len();
        u32::try_from(asked).unwrap_or(u32::MAX)
    }
}

/// A closed round whose aggregate is owed.
#[derive(Clone, Debug, PartialEq)]
pub struct Aggregating {
    /// The round.
    pub round: u32,
    /// Digest of the adapter the deltas change.
    pub base: Digest,
    /// What is aggregated, in the order it is aggregated: by site name.
    pub accepted: Vec<(SiteName, Accepted)>,
}

/// A closed round.
#[derive(Clone, Debug, PartialEq)]
pub struct PastRound {
    /// Digest of the adapter the sites started from.
    pub base: Digest,
    /// When it was opened.
    pub opened: Timestamp,
    /// Where each site stood at the close.
    pub seats: Seats,
    /// Who did not contribute.
    pub missing: Vec<Missing>,
    /// The adapter that came out, and when; `None` for a void round or while it is owed.
    pub published: Option<(Digest, Timestamp)>,
}

impl PastRound {
    /// The deltas that were counted and are folded, in the order of their sites.
    pub fn accepted(&self) -> impl Iterator<Item = (&SiteName, &Accepted)> {
        self.seats.iter().filter_map(|(site, seat)| match seat {
            Seat::Accepted(accepted) => Some((site, accepted)),
            Seat::Asked
            | Seat::Training { .. }
            | Seat::Excluded { .. }
            | Seat::Refused { .. }
            | Seat::Declined { .. }
            | Seat::Lost { .. } => None,
        })
    }
}

/// Events that no run could have written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("impossible history: {0}")]
pub struct CorruptHistory(pub String);

impl Run {
    /// The manifest.
    pub fn manifest(&self) -> &RunManifest {
        &self.manifest
    }

    /// Digest of the manifest's canonical JSON.
    pub fn manifest_digest(&self) -> Digest {
        self.manifest_digest
    }

    /// The adapter contract.
    pub fn contract(&self) -> &AdapterContract {
        &self.contract
    }

    /// When the run was started.
    pub fn started(&self) -> Timestamp {
        self.started
    }

    /// Digests of the published adapters; index = version, 0 the initial one.
    pub fn adapters(&self) -> &[Digest] {
        &self.adapters
    }

    /// Where the run stands.
    pub fn phase(&self) -> &Phase {
        &self.phase
    }

    /// Closed rounds by number.
    pub fn past(&self) -> &BTreeMap<u32, PastRound> {
        &self.past
    }

    /// Published rounds.
    pub fn rounds_published(&self) -> u32 {
        u32::try_from(self.adapters.len() - 1).unwrap_or(u32::MAX)
    }

    /// The newest adapter.
    pub fn adapter(&self) -> Digest {
        self.adapters[self.adapters.len() - 1]
    }

    /// The open round, the one being aggregated, or the last one closed or skipped; 0 before the
    /// first.
    pub fn round(&self) -> u32 {
        match &self.phase {
            Phase::Collecting(collecting) => collecting.round,
            Phase::Waiting | Phase::Aggregating(_) | Phase::Ended { .. } => {
                let closed = self.past.last_key_value().map_or(0, |(round, _)| *round);
                closed.max(self.skipped_to)
            }
        }
    }

    /// The last round whose counted deltas are removed, with all before it; 0 for none.
    pub fn removed_to(&self) -> u32 {
        self.removed_to
    }

    /// Rounds given up for the recovery statement `recovery`.
    pub fn skipped(&self, recovery: Digest) -> u64 {
        self.skipped.get(&recovery).copied().unwrap_or_default()
    }

    /// Rounds that a skip to round `to` would give up; an open round is one of them.
    pub fn given_up(&self, to: u32) -> u64 {
        let open = u32::from(matches!(self.phase, Phase::Collecting(_)));
        u64::from(to.saturating_sub(self.round().saturating_sub(open)))
    }

    /// The time at which the run next needs a [`Command::Tick`] if no call comes.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        match &self.phase {
            Phase::Collecting(collecting) => Some(collecting.deadline),
            Phase::Waiting => self.paused_until,
            Phase::Aggregating(_) | Phase::Ended { .. } => None,
        }
    }

    /// Says whether the run may ask `site`, as its manifest has it.
    pub fn may_ask(&self, site: &SiteName) -> bool {
        self.manifest.cohort.as_ref().is_none_or(|cohort| cohort.sites.contains(site))
    }

    /// What `site` should work on now: the open round, unless nothing more is wanted of it there.
    pub fn assignment(&self, site: &SiteName) -> Option<Terms> {
        let Phase::Collecting(collecting) = &self.phase else { return None };
        let seat = collecting.seats.get(site)?;
        let refuses = matches!(seat, Seat::Declined { .. });
        let gone = matches!(seat, Seat::Lost { .. }) && !self.may_return(site);
        if seat.is_final() || seat.is_withdrawn() || refuses || gone {
            return None;
        }
        Some(Terms {
            run: self.manifest.name.clone(),
            round: collecting.round,
            manifest: self.manifest_digest,
            base: collecting.base,
            cohort_size: collecting.asked(),
            deadline: collecting.deadline,
        })
    }

    /// The earlier verdict on this submission, if there is one; the same for all time.
    pub fn verdict(
        &self,
        site: &SiteName,
        round: u32,
        digest: Digest,
    ) -> Option<Result<(), Refusal>> {
        self.seat(site, round)?.verdict(digest)
    }

    /// The header a delta of `site` must have now, or why none is wanted.
    pub fn expected_delta(
        &self,
        site: &SiteName,
        round: u32,
        cases: u64,
    ) -> Result<Header, Refusal> {
        let (collecting, seat) = self.open_seat(site, round)?;
        if seat.is_withdrawn() {
            return Err(Refusal::Suspended);
        }
        if let Some(reason) = decide::cases_differ(seat, cases, self.manifest.limits.cases_max) {
            return Err(reason);
        }
        let subject = Subject::Delta {
            run: self.manifest.name.clone(),
            round,
            site: site.clone(),
            base: collecting.base,
            cases,
        };
        Ok(Header::new(subject, self.contract.digest(), &self.contract.layout))
    }

    /// The weights of the deltas that are aggregated.
    pub fn weights(&self, aggregating: &Aggregating) -> Vec<Weight> {
        let accepted = aggregating.accepted.iter().map(|(site, accepted)| (site, accepted));
        weights::weigh(accepted, self.manifest.limits.share_max)
    }

    /// Says whether `site` may come back to the open round once more.
    fn may_return(&self, site: &SiteName) -> bool {
        match &self.phase {
            Phase::Collecting(open) => open.returns.get(site).is_none_or(|n| *n < RETURNS_MAX),
            Phase::Waiting | Phase::Aggregating(_) | Phase::Ended { .. } => true,
        }
    }

    /// A site's seat in an open or closed round.
    pub fn seat(&self, site: &SiteName, round: u32) -> Option<&Seat> {
        match &self.phase {
            Phase::Collecting(collecting) if collecting.round == round => {
                collecting.seats.get(site)
            }
            Phase::Collecting(_) | Phase::Waiting | Phase::Aggregating(_) | Phase::Ended { .. } => {
                self.past.get(&round)?.seats.get(site)
            }
        }
    }

    /// The open round and the site's seat in it, or why it has none.
    fn open_seat(&self, site: &SiteName, round: u32) -> Result<(&Collecting, &Seat), Refusal> {
        if let Phase::Ended { state, .. } = &self.phase {
            return Err(Refusal::RunEnded { state: state.as_str().to_owned() });
        }
        match &self.phase {
            Phase::Collecting(collecting) if collecting.round == round => {
                let seat = collecting.seats.get(site).ok_or(Refusal::NotInCohort { round })?;
                Ok((collecting, seat))
            }
            Phase::Collecting(_) | Phase::Waiting | Phase::Aggregating(_) | Phase::Ended { .. } => {
                Err(Refusal::RoundOver { round, current: self.round() })
            }
        }
    }
}
