//! The end of a round: when it closes, what makes a quorum, what is folded, and how a run ends.

use std::collections::BTreeMap;

use super::decide::{DETAIL_CHARS, REASONS_CHARS, shorten};
use super::event::{EndState, Missing, RunEvent};
use super::seat::{Seat, Seats};
use super::*;

impl Run {
    pub(super) fn publish(&self, round: u32, adapter: Digest) -> Vec<RunEvent> {
        let Phase::Aggregating(aggregating) = &self.phase else { return Vec::new() };
        if aggregating.round != round {
            return Vec::new();
        }
        let version = self.rounds_published() + 1;
        let mut events = vec![RunEvent::AdapterPublished {
            round,
            version,
            adapter,
            strategy: self.manifest.strategy.as_str().to_owned(),
            cases: aggregating.accepted.iter().map(|(_, a)| a.cases).sum(),
            weights: self.weights(aggregating),
        }];
        if version == self.manifest.rounds.count {
            let (state, detail) = self.completion();
            events.push(RunEvent::RunEnded { state, detail });
        }
        events
    }

    /// Takes a counted delta out of a closed round whose aggregate is owed.
    pub(super) fn exclude(
        &self,
        round: u32,
        site: SiteName,
        digest: Digest,
        reason: Unusable,
    ) -> Vec<RunEvent> {
        let Some((seats, missing)) = self.without(round, &site, digest, &reason) else {
            return Vec::new();
        };
        let quorum_met = self.quorum_met(&seats);
        let mut events = vec![RunEvent::DeltaExcluded { round, site, digest, reason, quorum_met }];
        if !quorum_met {
            events.extend(self.failure(&missing));
        }
        events
    }

    /// The seats and the missing sites of the round that is aggregated, once a delta is excluded.
    pub(super) fn without(
        &self,
        round: u32,
        site: &SiteName,
        digest: Digest,
        reason: &Unusable,
    ) -> Option<(Seats, Vec<Missing>)> {
        let Phase::Aggregating(aggregating) = &self.phase else { return None };
        let past = self.past.get(&round).filter(|_| aggregating.round == round)?;
        let (mut seats, mut missing) = (past.seats.clone(), past.missing.clone());
        let seat = seats.get_mut(site)?;
        let Seat::Accepted(accepted) = seat else { return None };
        if accepted.digest != digest {
            return None;
        }
        *seat = Seat::Excluded { accepted: accepted.clone(), reason: reason.clone() };
        missing.push(Missing { site: site.clone(), reason: reason.to_string() });
        missing.sort_by(|a, b| a.site.cmp(&b.site));
        Some((seats, missing))
    }

    /// The end of a run in which one more round is void, if it is one too many.
    fn failure(&self, missing: &[Missing]) -> Option<RunEvent> {
        let void = self.void_in_a_row + 1;
        if void <= self.manifest.rounds.void_max {
            return None;
        }
        let why: Vec<String> =
            missing.iter().map(|m| format!("{}: {}", m.site, m.reason)).collect();
        let detail = format!("no quorum in {void} rounds in a row; {}", why.join("; "));
        let detail = shorten(&detail, DETAIL_CHARS);
        Some(RunEvent::RunEnded { state: EndState::Failed, detail })
    }

    /// Gives up the deltas of closed rounds but the `keep` newest, where there are any.
    pub(super) fn remove_deltas(&self, keep: u32) -> Vec<RunEvent> {
        // The newest closed round may still be aggregated.
        let older = self.past.iter().rev().skip(keep.max(1) as usize);
        let unremoved = older.take_while(|(round, _)| **round > self.removed_to);
        let held = unremoved.filter(|(_, past)| past.accepted().next().is_some());
        let to = held.map(|(round, _)| *round).max();
        to.map(|to| RunEvent::DeltasRemoved { to }).into_iter().collect()
    }

    /// The closing events once nothing more is worth waiting for, with `changes` to the seats
    /// that earlier events of the same decision make.
    pub(super) fn close_if_due(
        &self,
        now: Timestamp,
        changes: &[(SiteName, Seat)],
    ) -> Vec<RunEvent> {
        let Phase::Collecting(collecting) = &self.phase else { return Vec::new() };
        let mut seats = collecting.seats.clone();
        seats.extend(changes.iter().cloned());
        let round = collecting.round;
        if Self::is_withdrawable(&seats) {
            let reasons = missing(&seats, &collecting.passed_over);
            return vec![RunEvent::RoundWithdrawn { round, reasons }];
        }
        if now < collecting.deadline && self.is_awaited(collecting, &seats) {
            return Vec::new();
        }
        let quorum_met = self.quorum_met(&seats);
        let missing = missing(&seats, &collecting.passed_over);
        let failure = self.failure(&missing).filter(|_| !quorum_met);
        let mut events = vec![RunEvent::RoundClosed { round, quorum_met, missing }];
        events.extend(failure);
        events
    }

    /// Says whether more may come, and is wanted, before the deadline.
    pub(super) fn is_awaited(&self, collecting: &Collecting, seats: &Seats) -> bool {
        let quorum_met = self.quorum_met(seats);
        // A site that is away may come back, which matters as long as the quorum needs it; one that
        // was passed over was not counted upon.
        let may_return = |site| !quorum_met && !collecting.passed_over.contains_key(site);
        seats.iter().any(|(site, seat)| match seat {
            Seat::Asked | Seat::Training { .. } => true,
            // One that the operator withdrew is not back in this round, even if it is reinstated.
            Seat::Lost { cause, .. } => !cause.is_withdrawal() && may_return(site),
            Seat::Declined { .. } => !seat.is_final() && may_return(site),
            Seat::Accepted(_) | Seat::Excluded { .. } | Seat::Refused { .. } => false,
        })
    }

    pub(super) fn quorum_met(&self, seats: &Seats) -> bool {
        let accepted = || seats.values().filter(|s| matches!(s, Seat::Accepted(_)));
        if accepted().count() < self.manifest.quorum.sites as usize {
            return false;
        }
        let Some(share) = self.manifest.quorum.share_of_cases else { return true };
        // A claim weighs here what it would weigh in the aggregate.
        let awaited = || seats.values().filter(|seat| seat.awaited_cases().is_some());
        let declared: Vec<u64> = awaited().filter_map(Seat::awaited_cases).collect();
        let used = weights::used(&declared, self.manifest.limits.share_max);
        let whole: u64 = used.iter().sum();
        let counted = awaited().zip(used).filter(|(seat, _)| matches!(seat, Seat::Accepted(_)));
        let held: u64 = counted.map(|(_, used)| used).sum();
        held as f64 >= share * whole as f64
    }

    /// The end state of a run after its last round, and in words which sites were missing in which rounds.
    fn completion(&self) -> (EndState, String) {
        let mut gaps: BTreeMap<&SiteName, (Vec<String>, &str)> = BTreeMap::new();
        for (round, past) in &self.past {
            for m in &past.missing {
                let gap = gaps.entry(&m.site).or_insert((Vec::new(), &m.reason));
                gap.0.push(round.to_string());
                gap.1 = &m.reason;
            }
        }
        if gaps.is_empty() {
            return (EndState::Completed, String::new());
        }
        let words: Vec<String> = gaps
            .iter()
            .map(|(site, (rounds, reason))| {
                format!("{site} missing in round {}: {reason}", rounds.join(", "))
            })
            .collect();
        (EndState::CompletedPartial, shorten(&words.join("; "), DETAIL_CHARS))
    }
}

/// The sites that do not contribute, and why; one that is still passed over has the reason that it
/// was passed over for.
fn missing(seats: &Seats, passed_over: &BTreeMap<SiteName, String>) -> Vec<Missing> {
    let chars_max = DETAIL_CHARS.min(REASONS_CHARS / seats.len().max(1));
    let late = |seat: &Seat| match seat {
        Seat::Asked => Some("did not answer before the round closed".to_owned()),
        Seat::Training { .. } => Some("still training when the round closed".to_owned()),
        Seat::Accepted(_) => None,
        Seat::Excluded { .. }
        | Seat::Refused { .. }
        | Seat::Declined { .. }
        | Seat::Lost { .. } => Some(shorten(&seat.detail(), chars_max)),
    };
    seats
        .iter()
        .filter_map(|(site, seat)| {
            let reason = match passed_over.get(site) {
                Some(reason) => shorten(reason, chars_max),
                None => late(seat)?,
            };
            Some(Missing { site: site.clone(), reason })
        })
        .collect()
}
