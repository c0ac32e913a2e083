//! Commands to events. Refuses what the rules do not allow; changes nothing.

use tributary_shared::refusal::RefusalClass;

use super::event::{EndState, LossCause, RunEvent};
use super::seat::{Accepted, Seat};
use super::*;

/// Longest text of one refusal or end in a leaf, characters.
pub(super) const DETAIL_CHARS: usize = 1_000;
/// Longest texts of all missing sites together in one leaf, characters.
pub(super) const REASONS_CHARS: usize = 6_000;

impl Run {
    /// The first event of a run that `by` starts with a checked `manifest`.
    pub fn start(manifest: RunManifest, adapter: Digest, by: &str) -> RunEvent {
        let contract = manifest.contract().expect("a checked manifest has a contract");
        RunEvent::RunStarted {
            manifest_digest: manifest.digest(),
            contract: contract.digest(),
            adapter,
            manifest: Box::new(manifest),
            by: by.to_owned(),
        }
    }

    /// The events `command` leads to at `now`; none when everything it asks is so already.
    pub fn decide(&self, now: Timestamp, command: Command) -> Result<Vec<RunEvent>, Refusal> {
        match command {
            Command::Open { active } => Ok(self.open_round(now, &active)),
            Command::AcceptTerms { site, round, manifest, base, cases } => {
                self.accept_terms(site, round, manifest, base, cases)
            }
            Command::Decline { site, round, reason } => self.decline(now, site, round, reason),
            Command::Lose { site, round, cause } => Ok(self.lose(now, site, round, cause)),
            Command::Hear { site, moving } => Ok(self.hear(site, moving)),
            Command::Admit { site, round, delta } => self.admit(now, site, round, delta),
            Command::Refuse { site, round, digest, reason } => {
                self.refuse(now, site, round, digest, reason)
            }
            Command::Present { site } => Ok(self.present(site)),
            Command::Ready { site } => Ok(self.ready(site)),
            Command::StillRefuses { site, reason } => Ok(self.still_refuses(site, reason)),
            Command::Resume { by, reason } => self.resume(by, &reason),
            Command::Tick => Ok(self.close_if_due(now, &[])),
            Command::Remove { keep } => Ok(self.remove_deltas(keep)),
            Command::Exclude { round, site, digest, reason } => {
                Ok(self.exclude(round, site, digest, reason))
            }
            Command::Publish { round, adapter } => Ok(self.publish(round, adapter)),
            Command::Skip(skip) => Ok(self.skip(skip)),
            Command::Stop { reason } => self.stop(reason),
        }
    }

    fn accept_terms(
        &self,
        site: SiteName,
        round: u32,
        manifest: Digest,
        base: Digest,
        cases: u64,
    ) -> Result<Vec<RunEvent>, Refusal> {
        let (collecting, seat) = self.open_seat(&site, round)?;
        differs("manifest", self.manifest_digest, manifest)?;
        differs("base", collecting.base, base)?;
        let cases_max = self.manifest.limits.cases_max;
        if cases == 0 || cases > cases_max {
            return Err(wrong("cases", format!("1 to {cases_max}"), cases));
        }
        let accepted = |site| Ok(vec![RunEvent::TermsAccepted { round, site, cases }]);
        match seat {
            // Settled already; the site lost our answer and hears of it when it submits.
            Seat::Accepted(_) | Seat::Excluded { .. } => Ok(Vec::new()),
            Seat::Refused { reason, .. } => Err(reason.clone()),
            Seat::Declined { reason, .. } if seat.is_final() => Err(reason.clone()),
            seat if seat.is_withdrawn() => Err(Refusal::Suspended),
            // Declared once a round: else a site could choose its weight after it has trained.
            Seat::Training { cases: declared } | Seat::Lost { cases: Some(declared), .. }
                if *declared != cases =>
            {
                Err(wrong("cases", declared, cases))
            }
            Seat::Training { .. } => Ok(Vec::new()),
            Seat::Asked => accepted(site),
            // Lost, or it changed its mind before it was asked again.
            Seat::Lost { .. } | Seat::Declined { .. } if self.may_return(&site) => accepted(site),
            Seat::Lost { .. } | Seat::Declined { .. } => {
                Err(Refusal::TooOften { round, times: RETURNS_MAX })
            }
        }
    }

    fn decline(
        &self,
        now: Timestamp,
        site: SiteName,
        round: u32,
        reason: Refusal,
    ) -> Result<Vec<RunEvent>, Refusal> {
        let (collecting, seat) = self.open_seat(&site, round)?;
        // A refusal that stands already is not written again, whatever its words are now.
        if seat.is_final() || matches!(seat, Seat::Declined { .. }) {
            return Ok(Vec::new());
        }
        let mut reason = bounded(reason);
        // A cohort that is large enough by the site's own words would be asked again at once: it is asked later.
        if let Refusal::Cohort { min, .. } = reason
            && min <= collecting.asked()
        {
            let class = RefusalClass::Passing;
            reason = Refusal::Policy { reason: reason.to_string(), class };
        }
        let seat = Seat::Declined { reason: reason.clone(), cases: seat.cases() };
        let mut events = vec![RunEvent::Declined { round, site: site.clone(), reason }];
        events.extend(self.close_if_due(now, &[(site, seat)]));
        Ok(events)
    }

    fn lose(
        &self,
        now: Timestamp,
        site: SiteName,
        round: Option<u32>,
        cause: LossCause,
    ) -> Vec<RunEvent> {
        let Phase::Collecting(collecting) = &self.phase else { return Vec::new() };
        // A lease that ran out in a round says nothing about the round that was opened since.
        if round.is_some_and(|round| round != collecting.round) {
            return Vec::new();
        }
        let Some(seat) = collecting.seats.get(&site) else { return Vec::new() };
        let lost = match seat {
            Seat::Asked | Seat::Training { .. } => true,
            Seat::Lost { cause: earlier, .. } => supersedes(&cause, earlier),
            Seat::Declined { .. } => cause.is_withdrawal() && !seat.is_final(),
            Seat::Accepted(_) | Seat::Excluded { .. } | Seat::Refused { .. } => false,
        };
        if !lost {
            return Vec::new();
        }
        let round = collecting.round;
        let seat = Seat::Lost { cause: cause.clone(), cases: seat.cases() };
        let mut events = vec![RunEvent::SiteLost { round, site: site.clone(), cause }];
        events.extend(self.close_if_due(now, &[(site, seat)]));
        events
    }

    fn hear(&self, site: SiteName, moving: bool) -> Vec<RunEvent> {
        let Phase::Collecting(collecting) = &self.phase else { return Vec::new() };
        match collecting.seats.get(&site) {
            Some(seat) if seat.is_withdrawn() => Vec::new(),
            // Its heartbeats never ceased; only work brings it back.
            Some(Seat::Lost { cause: LossCause::Stalled { .. }, .. }) if !moving => Vec::new(),
            // Without declared cases it has not agreed yet: it returns by accepting the terms.
            Some(Seat::Lost { cases: Some(_), .. }) if self.may_return(&site) => {
                vec![RunEvent::SiteReturned { round: collecting.round, site }]
            }
            Some(_) | None => Vec::new(),
        }
    }

    fn admit(
        &self,
        now: Timestamp,
        site: SiteName,
        round: u32,
        delta: Accepted,
    ) -> Result<Vec<RunEvent>, Refusal> {
        if let Some(verdict) = self.verdict(&site, round, delta.digest) {
            return verdict.map(|()| Vec::new());
        }
        let (_, seat) = self.open_seat(&site, round)?;
        if seat.is_withdrawn() {
            return Err(Refusal::Suspended);
        }
        if let Some(reason) = cases_differ(seat, delta.cases, self.manifest.limits.cases_max) {
            return self.refuse(now, site, round, delta.digest, reason);
        }
        if let Err(reason) = delta.metrics.check(self.manifest.limits.cases_max) {
            return self.refuse(now, site, round, delta.digest, reason);
        }
        let norm_max = self.manifest.limits.delta_norm_max;
        if delta.norm > norm_max {
            let reason = Refusal::OverNorm { norm: delta.norm, norm_max };
            return self.refuse(now, site, round, delta.digest, reason);
        }
        let seat = Seat::Accepted(delta.clone());
        let Accepted { digest, cases, norm, bytes, metrics } = delta;
        let mut events = vec![RunEvent::DeltaAccepted {
            round,
            site: site.clone(),
            digest,
            cases,
            norm,
            bytes,
            metrics,
        }];
        events.extend(self.close_if_due(now, &[(site, seat)]));
        Ok(events)
    }

    fn refuse(
        &self,
        now: Timestamp,
        site: SiteName,
        round: u32,
        digest: Digest,
        reason: Refusal,
    ) -> Result<Vec<RunEvent>, Refusal> {
        let (_, seat) = self.open_seat(&site, round)?;
        if seat.is_final() {
            return Ok(Vec::new());
        }
        let reason = bounded(reason);
        let seat = Seat::Refused { digest, reason: reason.clone(), cases: seat.cases() };
        let mut events = vec![RunEvent::DeltaRefused { round, site: site.clone(), digest, reason }];
        events.extend(self.close_if_due(now, &[(site, seat)]));
        Ok(events)
    }

    /// Goes on above the round that a site will not train again, as far as the leaves that were
    /// lost can have opened rounds.
    fn skip(&self, skip: Skip) -> Vec<RunEvent> {
        let Skip { site, round, answered, recovery, most } = skip;
        let stands_in_the_way = match &self.phase {
            Phase::Waiting => round > self.round(),
            Phase::Collecting(open) if open.round == round => match open.seats.get(&site) {
                // It was never asked here, and so its delta is of the other branch.
                Some(Seat::Asked | Seat::Lost { cases: None, .. }) => true,
                Some(Seat::Training { .. } | Seat::Lost { .. }) => answered,
                Some(
                    Seat::Accepted(_)
                    | Seat::Excluded { .. }
                    | Seat::Refused { .. }
                    | Seat::Declined { .. },
                )
                | None => false,
            },
            Phase::Collecting(open) => round > open.round,
            Phase::Aggregating(_) | Phase::Ended { .. } => false,
        };
        let fits = self.may_ask(&site)
            && self.skipped(recovery).saturating_add(self.given_up(round)) <= most;
        if stands_in_the_way && fits {
            vec![RunEvent::RoundsSkipped { to: round, site, recovery }]
        } else {
            Vec::new()
        }
    }

    fn stop(&self, reason: String) -> Result<Vec<RunEvent>, Refusal> {
        if let Phase::Ended { state, .. } = &self.phase {
            return Err(Refusal::RunEnded { state: state.as_str().to_owned() });
        }
        let detail = shorten(&reason, DETAIL_CHARS);
        Ok(vec![RunEvent::RunEnded { state: EndState::Stopped, detail }])
    }
}

/// Says whether a site that was lost for `earlier` is lost anew for `cause`: the operator's word
/// outranks silence, and a revocation a suspension.
fn supersedes(cause: &LossCause, earlier: &LossCause) -> bool {
    match cause {
        LossCause::Suspended => !earlier.is_withdrawal(),
        LossCause::Revoked => *earlier != LossCause::Revoked,
        LossCause::NoAnswer { .. } | LossCause::Silent { .. } | LossCause::Stalled { .. } => false,
    }
}

/// Why a submission's cases are not those its site declared, if they are not.
pub(super) fn cases_differ(seat: &Seat, cases: u64, cases_max: u64) -> Option<Refusal> {
    match seat.cases() {
        Some(declared) if declared == cases => None,
        Some(declared) => Some(wrong("cases", declared, cases)),
        None => Some(wrong("cases", format!("terms accepted with 1 to {cases_max} cases"), cases)),
    }
}

/// A leaf has a size limit, and the whole story is in the earlier events.
pub(super) fn shorten(text: &str, chars_max: usize) -> String {
    match text.char_indices().nth(chars_max) {
        Some((end, _)) => format!("{} …", &text[..end]),
        None => text.to_owned(),
    }
}

/// A reason as it goes into a leaf: what others wrote in it, cut to size.
pub(super) fn bounded(reason: Refusal) -> Refusal {
    let cut = |text: String| shorten(&text, DETAIL_CHARS);
    match reason.printable() {
        Refusal::Malformed { detail } => Refusal::Malformed { detail: cut(detail) },
        Refusal::Policy { reason, class } => Refusal::Policy { reason: cut(reason), class },
        Refusal::SiteFailed { reason, class } => Refusal::SiteFailed { reason: cut(reason), class },
        // Few lines, cut where they were made.
        reason @ (Refusal::Contract { .. }
        | Refusal::Wrong { .. }
        | Refusal::NotFinite { .. }
        | Refusal::OverNorm { .. }
        | Refusal::Size { .. }
        | Refusal::Digest { .. }
        | Refusal::AlreadySubmitted { .. }
        | Refusal::RoundOver { .. }
        | Refusal::NotInCohort { .. }
        | Refusal::RunEnded { .. }
        | Refusal::RunUnknown { .. }
        | Refusal::NotResumable { .. }
        | Refusal::Cohort { .. }
        | Refusal::TooOften { .. }
        | Refusal::Suspended) => reason,
    }
}

fn differs(field: &str, expected: Digest, found: Digest) -> Result<(), Refusal> {
    if expected == found { Ok(()) } else { Err(wrong(field, expected, found)) }
}

fn wrong(field: &str, expected: impl ToString, found: impl ToString) -> Refusal {
    Refusal::Wrong {
        field: field.to_owned(),
        expected: expected.to_string(),
        found: found.to_string(),
    }
}
