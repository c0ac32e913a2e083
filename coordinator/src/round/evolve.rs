//! Events to state. Believes nothing: a history that the rules do not allow is named as such,
//! which is what an audit relies on.

use std::time::Duration;

use super::decide::{DETAIL_CHARS, shorten};
use super::event::{EndState, RunEvent};
use super::seat::{Accepted, Seat, Seats};
use super::*;

/// Longest pause after a round that was withdrawn.
const WITHDRAWAL_PAUSE_MAX: Duration = Duration::from_secs(300);

impl Run {
    /// The run after its first event, committed at `at`.
    pub fn open(at: Timestamp, first: &RunEvent) -> Result<Self, CorruptHistory> {
        let RunEvent::RunStarted { manifest, manifest_digest, contract, adapter, .. } = first
        else {
            return Err(CorruptHistory("a run begins with run_started".to_owned()));
        };
        manifest.check_recorded().map_err(|e| CorruptHistory(format!("manifest: {e}")))?;
        let implied =
            manifest.contract().ok_or_else(|| CorruptHistory("no contract".to_owned()))?;
        require(manifest.digest() == *manifest_digest, || {
            format!("manifest digest is {}, recorded {manifest_digest}", manifest.digest())
        })?;
        require(implied.digest() == *contract, || {
            format!("contract digest is {}, recorded {contract}", implied.digest())
        })?;
        Ok(Self {
            manifest: (**manifest).clone(),
            manifest_digest: *manifest_digest,
            contract: implied,
            started: at,
            adapters: vec![*adapter],
            phase: Phase::Waiting,
            past: BTreeMap::new(),
            void_in_a_row: 0,
            withdrawn_in_a_row: 0,
            skipped_to: 0,
            removed_to: 0,
            skipped: BTreeMap::new(),
            paused_until: None,
            away: Away::default(),
        })
    }

    /// The run after one more event, committed at `at`.
    pub fn evolve(mut self, at: Timestamp, event: &RunEvent) -> Result<Self, CorruptHistory> {
        match event {
            RunEvent::RunStarted { .. } => {
                return Err(CorruptHistory("run_started twice".to_owned()));
            }
            RunEvent::RoundOpened { round, base, cohort, deadline, passed_over } => {
                let seats = self.seats_of(*round, cohort, passed_over)?;
                self.round_opened(at, *round, *base, *deadline, seats, passed_over)?;
            }
            RunEvent::TermsAccepted { round, site, cases } => {
                self.terms_accepted(*round, site, *cases)?;
            }
            RunEvent::SiteAvailable { site } => self.site_available(site)?,
            RunEvent::RefusalChanged { site, reason } => self.refusal_changed(site, reason)?,
            RunEvent::RoundWithdrawn { round, reasons } => {
                self.round_withdrawn(at, *round, reasons)?
            }
            RunEvent::RunResumed { .. } => self.run_resumed()?,
            RunEvent::Declined { round, site, reason } => {
                let cases = self.seat_mut(*round, site)?.cases();
                self.settle(*round, site, Seat::Declined { reason: reason.clone(), cases })?;
                if reason.may_end() {
                    self.away.refusing.insert(site.clone(), reason.clone());
                }
            }
            RunEvent::SiteLost { round, site, cause } => {
                let cases = self.seat_mut(*round, site)?.cases();
                self.settle(*round, site, Seat::Lost { cause: cause.clone(), cases })?;
            }
            RunEvent::SiteReturned { round, site } => self.site_returned(*round, site)?,
            RunEvent::DeltaRefused { round, site, digest, reason } => {
                let cases = self.seat_mut(*round, site)?.cases();
                let seat = Seat::Refused { digest: *digest, reason: reason.clone(), cases };
                self.settle(*round, site, seat)?;
            }
            RunEvent::DeltaAccepted { round, site, digest, cases, norm, bytes, metrics } => {
                let delta = Accepted {
                    digest: *digest,
                    cases: *cases,
                    norm: *norm,
                    bytes: *bytes,
                    metrics: metrics.clone(),
                };
                self.delta_accepted(*round, site, delta)?;
            }
            RunEvent::RoundClosed { round, quorum_met, missing } => {
                self.round_closed(at, *round, *quorum_met, missing)?;
            }
            RunEvent::DeltaExcluded { round, site, digest, reason, quorum_met } => {
                self.delta_excluded(at, *round, site, *digest, reason, *quorum_met)?;
            }
            RunEvent::AdapterPublished { round, version, adapter, cases, weights, .. } => {
                self.adapter_published(at, *round, *version, *adapter, *cases, weights)?;
            }
            RunEvent::DeltasRemoved { to } => {
                let newest = self.past.keys().next_back().copied().unwrap_or_default();
                require(self.removed_to < *to && *to < newest, || {
                    let before = self.removed_to;
                    format!(
                        "deltas removed up to round {to}, after {before} and of {newest} closed"
                    )
                })?;
                self.removed_to = *to;
            }
            RunEvent::RoundsSkipped { to, recovery, .. } => self.rounds_skipped(*to, *recovery)?,
            RunEvent::RunEnded { state, detail } => self.run_ended(at, *state, detail)?,
        }
        Ok(self)
    }

    /// The seats of a round that opens. Passing a site over needs a ground in the history.
    fn seats_of(
        &mut self,
        round: u32,
        cohort: &[SiteName],
        passed_over: &[Missing],
    ) -> Result<Seats, CorruptHistory> {
        require(cohort.len() >= self.manifest.quorum.sites as usize, || {
            format!("round {round} asks {} sites, below the quorum", cohort.len())
        })?;
        let mut seats: Seats = cohort.iter().map(|s| (s.clone(), Seat::Asked)).collect();
        for Missing { site, .. } in passed_over {
            let seat = self.away.seat(site).ok_or_else(|| {
                let problem = "which neither refuses nor is absent";
                CorruptHistory(format!("round {round} passes over {site}, {problem}"))
            })?;
            seats.insert(site.clone(), seat);
        }
        require(seats.len() == cohort.len() + passed_over.len(), || {
            format!("round {round} asks a site twice")
        })?;
        let refuses = |site: &&SiteName| !self.away.would_join(site, cohort.len());
        if let Some(site) = cohort.iter().find(refuses) {
            return Err(CorruptHistory(format!("round {round} asks {site}, which refuses")));
        }
        // Asking a site that was not heard is legal: when to ask is scheduling.
        cohort.iter().for_each(|site| self.away.forget(site));
        Ok(seats)
    }

    fn round_opened(
        &mut self,
        at: Timestamp,
        round: u32,
        base: Digest,
        deadline: Timestamp,
        seats: Seats,
        passed_over: &[Missing],
    ) -> Result<(), CorruptHistory> {
        require(self.phase == Phase::Waiting, || {
            format!("round {round} opened while another ran")
        })?;
        require(round == self.round() + 1, || format!("round {round} after {}", self.round()))?;
        require(base == self.adapter(), || format!("round {round} starts from {base}"))?;
        require(self.rounds_published() < self.manifest.rounds.count, || {
            format!("round {round} opened after all {} were published", self.manifest.rounds.count)
        })?;
        require(deadline == at.plus(self.manifest.rounds.round_deadline()), || {
            format!("round {round} has deadline {deadline}")
        })?;
        let passed_over = passed_over.iter().map(|m| (m.site.clone(), m.reason.clone())).collect();
        let returns = BTreeMap::new();
        let collecting =
            Collecting { round, base, opened: at, deadline, seats, passed_over, returns };
        self.paused_until = None;
        self.phase = Phase::Collecting(collecting);
        Ok(())
    }

    fn terms_accepted(
        &mut self,
        round: u32,
        site: &SiteName,
        cases: u64,
    ) -> Result<(), CorruptHistory> {
        self.withdrawn_in_a_row = 0;
        let seat = self.seat_mut(round, site)?;
        require(!seat.is_final() && !seat.is_withdrawn(), || {
            format!("{site} accepted terms after it was settled or suspended")
        })?;
        require(seat.cases().is_none_or(|declared| declared == cases), || {
            format!("{site} declared cases twice in round {round}")
        })?;
        let returned = !matches!(seat, Seat::Asked);
        *seat = Seat::Training { cases };
        if returned {
            self.returned(site)?;
        }
        self.came_back(site);
        Ok(())
    }

    /// Counts that a site came back to the open round.
    fn returned(&mut self, site: &SiteName) -> Result<(), CorruptHistory> {
        let Phase::Collecting(collecting) = &mut self.phase else { return Ok(()) };
        let returns = collecting.returns.entry(site.clone()).or_default();
        *returns += 1;
        require(*returns <= RETURNS_MAX, || {
            format!("{site} came back more than {RETURNS_MAX} times in a round")
        })
    }

    /// Forgets that a site was away; it is one of those asked.
    fn came_back(&mut self, site: &SiteName) {
        self.away.forget(site);
        if let Phase::Collecting(collecting) = &mut self.phase {
            collecting.passed_over.remove(site);
        }
    }

    fn site_available(&mut self, site: &SiteName) -> Result<(), CorruptHistory> {
        require(self.away.holds(site), || format!("{site} became available and was not away"))?;
        require(!matches!(self.phase, Phase::Ended { .. }), || {
            format!("{site} became available after the end")
        })?;
        if let Phase::Collecting(collecting) = &mut self.phase
            && let Some(seat) = collecting.seats.get_mut(site)
            && seat.is_passed_by()
            && !seat.is_withdrawn()
        {
            *seat = Seat::Asked;
            self.returned(site)?;
        }
        self.came_back(site);
        Ok(())
    }

    fn refusal_changed(&mut self, site: &SiteName, reason: &Refusal) -> Result<(), CorruptHistory> {
        require(reason.may_end(), || {
            format!("{site} changed to a refusal that holds for a round")
        })?;
        require(!matches!(self.phase, Phase::Ended { .. }), || {
            format!("{site} refused for another reason after the end")
        })?;
        require(self.away.change(site, reason), || {
            format!("{site} refused for another reason and did not refuse before")
        })?;
        let Phase::Collecting(collecting) = &mut self.phase else { return Ok(()) };
        if let Some(Seat::Declined { reason: known, .. }) = collecting.seats.get_mut(site)
            && known.may_end()
        {
            known.clone_from(reason);
        }
        if let Some(words) = collecting.passed_over.get_mut(site) {
            *words = shorten(&reason.to_string(), DETAIL_CHARS);
        }
        Ok(())
    }

    fn run_resumed(&mut self) -> Result<(), CorruptHistory> {
        self.check_resumable().map_err(|e| CorruptHistory(e.to_string()))?;
        (self.phase, self.away) = (Phase::Waiting, Away::default());
        (self.void_in_a_row, self.withdrawn_in_a_row) = (0, 0);
        self.paused_until = None;
        Ok(())
    }

    fn round_withdrawn(
        &mut self,
        at: Timestamp,
        round: u32,
        reasons: &[Missing],
    ) -> Result<(), CorruptHistory> {
        let collecting = self.close(round)?;
        let seats = &collecting.seats;
        require(Self::is_withdrawable(seats), || {
            format!("round {round} was withdrawn although a site had agreed to it or was awaited")
        })?;
        require(reasons.iter().map(|m| &m.site).eq(seats.keys()), || {
            format!("round {round} was withdrawn with {} sites named", reasons.len())
        })?;
        self.away.note_absences(round, seats);
        let pause = withdrawal_pause(self.withdrawn_in_a_row);
        self.withdrawn_in_a_row = self.withdrawn_in_a_row.saturating_add(1);
        self.paused_until = pause.map(|pause| at.plus(pause));
        Ok(())
    }

    /// Leaves the open round.
    fn close(&mut self, round: u32) -> Result<Collecting, CorruptHistory> {
        match std::mem::replace(&mut self.phase, Phase::Waiting) {
            Phase::Collecting(collecting) if collecting.round == round => Ok(collecting),
            Phase::Collecting(_) | Phase::Waiting | Phase::Aggregating(_) | Phase::Ended { .. } => {
                Err(CorruptHistory(format!("round {round} closed and was not open")))
            }
        }
    }

    fn site_returned(&mut self, round: u32, site: &SiteName) -> Result<(), CorruptHistory> {
        let seat = self.seat_mut(round, site)?;
        let Seat::Lost { cases: Some(cases), cause } = seat else {
            return Err(CorruptHistory(format!("{site} returned without having been lost")));
        };
        require(!cause.is_withdrawal(), || format!("{site} returned: {cause}"))?;
        *seat = Seat::Training { cases: *cases };
        self.returned(site)
    }

    fn delta_accepted(
        &mut self,
        round: u32,
        site: &SiteName,
        delta: Accepted,
    ) -> Result<(), CorruptHistory> {
        let norm_max = self.manifest.limits.delta_norm_max;
        require(delta.norm <= norm_max, || {
            format!("{site}: norm {} above {norm_max}", delta.norm)
        })?;
        let sane = delta.metrics.check(self.manifest.limits.cases_max);
        sane.map_err(|refusal| CorruptHistory(format!("{site}: {refusal}")))?;
        let seat = self.seat_mut(round, site)?;
        require(!seat.is_withdrawn(), || format!("{site} was counted while suspended"))?;
        let declared = seat.cases();
        require(declared == Some(delta.cases), || {
            let declared = declared.map_or_else(|| "none".to_owned(), |cases| cases.to_string());
            format!("{site}: {} cases counted, {declared} declared", delta.cases)
        })?;
        self.settle(round, site, Seat::Accepted(delta))
    }

    fn round_closed(
        &mut self,
        at: Timestamp,
        round: u32,
        quorum_met: bool,
        missing: &[Missing],
    ) -> Result<(), CorruptHistory> {
        let collecting = self.close(round)?;
        require(quorum_met == self.quorum_met(&collecting.seats), || {
            let deltas = collecting.seats.values().filter(|s| matches!(s, Seat::Accepted(_)));
            format!("round {round} with {} deltas has quorum_met {quorum_met}", deltas.count())
        })?;
        require(
            at >= collecting.deadline || !self.is_awaited(&collecting, &collecting.seats),
            || format!("round {round} closed while sites were awaited"),
        )?;
        let absent = collecting.seats.iter().filter(|(_, s)| !matches!(s, Seat::Accepted(_)));
        require(missing.iter().map(|m| &m.site).eq(absent.map(|(site, _)| site)), || {
            format!("round {round} closed with {} sites named as missing", missing.len())
        })?;
        let base = collecting.base;
        self.away.note_absences(round, &collecting.seats);
        let past = PastRound {
            base,
            opened: collecting.opened,
            seats: collecting.seats,
            missing: missing.to_vec(),
            published: None,
        };
        if quorum_met {
            let accepted = past.accepted().map(|(site, a)| (site.clone(), a.clone())).collect();
            self.phase = Phase::Aggregating(Aggregating { round, base, accepted });
        } else {
            self.round_void(at);
        }
        self.past.insert(round, past);
        Ok(())
    }

    fn round_void(&mut self, at: Timestamp) {
        self.phase = Phase::Waiting;
        self.void_in_a_row += 1;
        self.withdrawn_in_a_row = 0;
        self.paused_until = Some(at.plus(self.manifest.rounds.void_pause(self.void_in_a_row)));
    }

    fn delta_excluded(
        &mut self,
        at: Timestamp,
        round: u32,
        site: &SiteName,
        digest: Digest,
        reason: &Unusable,
        quorum_met: bool,
    ) -> Result<(), CorruptHistory> {
        let (seats, missing) = self.without(round, site, digest, reason).ok_or_else(|| {
            CorruptHistory(format!(
                "{digest} of {site} excluded, which round {round} does not fold"
            ))
        })?;
        require(quorum_met == self.quorum_met(&seats), || {
            format!("round {round} without {site} has quorum_met {quorum_met}")
        })?;
        if let Some(past) = self.past.get_mut(&round) {
            (past.seats, past.missing) = (seats, missing);
        }
        if !quorum_met {
            self.round_void(at);
        } else if let Phase::Aggregating(aggregating) = &mut self.phase {
            aggregating.accepted.retain(|(counted, _)| counted != site);
        }
        Ok(())
    }

    fn adapter_published(
        &mut self,
        at: Timestamp,
        round: u32,
        version: u32,
        adapter: Digest,
        cases: u64,
        weights: &[Weight],
    ) -> Result<(), CorruptHistory> {
        let Phase::Aggregating(aggregating) = &self.phase else {
            return Err(CorruptHistory(format!("round {round} published and was not closed")));
        };
        require(aggregating.round == round, || format!("round {round} published out of turn"))?;
        let counted: u64 = aggregating.accepted.iter().map(|(_, a)| a.cases).sum();
        require(counted == cases, || format!("{cases} cases published, {counted} accepted"))?;
        require(self.weights(aggregating) == weights, || {
            format!("round {round} published with other weights than limits.share_max leads to")
        })?;
        require(version == self.rounds_published() + 1, || {
            format!("version {version} out of turn")
        })?;
        if let Some(past) = self.past.get_mut(&round) {
            past.published = Some((adapter, at));
        }
        self.adapters.push(adapter);
        self.void_in_a_row = 0;
        self.phase = Phase::Waiting;
        Ok(())
    }

    fn rounds_skipped(&mut self, to: u32, recovery: Digest) -> Result<(), CorruptHistory> {
        require(matches!(self.phase, Phase::Waiting | Phase::Collecting(_)), || {
            format!("rounds up to {to} skipped while none could be opened")
        })?;
        let given_up = self.given_up(to);
        require(given_up > 0, || format!("rounds up to {to} skipped after {}", self.round()))?;
        *self.skipped.entry(recovery).or_default() += given_up;
        self.skipped_to = to;
        self.cut_short(Phase::Waiting);
        Ok(())
    }

    /// Goes to `phase`. A round cut short by that keeps its seats: its sites may still ask for a
    /// lost answer.
    fn cut_short(&mut self, phase: Phase) {
        if let Phase::Collecting(Collecting { round, base, opened, seats, .. }) =
            std::mem::replace(&mut self.phase, phase)
        {
            let past = PastRound { base, opened, seats, missing: Vec::new(), published: None };
            self.past.insert(round, past);
        }
    }

    fn run_ended(
        &mut self,
        at: Timestamp,
        state: EndState,
        detail: &str,
    ) -> Result<(), CorruptHistory> {
        require(!matches!(self.phase, Phase::Ended { .. }), || "ended twice".to_owned())?;
        let finished = self.rounds_published() == self.manifest.rounds.count;
        let complete = self.past.values().all(|past| past.missing.is_empty());
        let honest = match state {
            EndState::Completed => finished && complete,
            EndState::CompletedPartial => finished && !complete,
            EndState::Stopped | EndState::Failed => !finished,
        };
        require(honest, || {
            let (done, asked) = (self.rounds_published(), self.manifest.rounds.count);
            format!("ended as {} with {done} of {asked} rounds", state.as_str())
        })?;
        self.cut_short(Phase::Ended { state, detail: detail.to_owned(), at });
        Ok(())
    }

    fn seat_mut(&mut self, round: u32, site: &SiteName) -> Result<&mut Seat, CorruptHistory> {
        let stray =
            || CorruptHistory(format!("{site} acts in round {round}, which does not ask it"));
        match &mut self.phase {
            Phase::Collecting(collecting) if collecting.round == round => {
                collecting.seats.get_mut(site).ok_or_else(stray)
            }
            Phase::Collecting(_) | Phase::Waiting | Phase::Aggregating(_) | Phase::Ended { .. } => {
                Err(stray())
            }
        }
    }

    fn settle(&mut self, round: u32, site: &SiteName, seat: Seat) -> Result<(), CorruptHistory> {
        let current = self.seat_mut(round, site)?;
        require(!current.is_final(), || format!("{site} was settled twice in round {round}"))?;
        *current = seat;
        Ok(())
    }
}

/// The pause after a round that was withdrawn, where `before` rounds in a row were withdrawn too: none after the first,
/// then one that doubles. So sites that come and refuse again and again leave few events.
fn withdrawal_pause(before: u32) -> Option<Duration> {
    let doublings = before.checked_sub(1)?;
    Some(Duration::from_secs(1 << doublings.min(9)).min(WITHDRAWAL_PAUSE_MAX))
}

fn require(holds: bool, problem: impl FnOnce() -> String) -> Result<(), CorruptHistory> {
    if holds { Ok(()) } else { Err(CorruptHistory(problem())) }
}
