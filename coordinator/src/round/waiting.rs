//! The sites asked next, and what a run waits for: refusals that stand, absences, the pause after a
//! round below quorum, and taking up a run that is not running.

use std::collections::BTreeSet;

use tributary_shared::manifest::COHORT_MAX;
use tributary_shared::refusal::RefusalClass;
use tributary_shared::timestamp::Timestamp;

use super::decide::{DETAIL_CHARS, REASONS_CHARS, bounded, shorten};
use super::event::{EndState, LossCause, Missing, RunEvent};
use super::seat::{Seat, Seats};
use super::*;

/// A site that was asked in a round and not heard.
#[derive(Clone, Debug, PartialEq)]
pub struct Absence {
    /// The round.
    pub round: u32,
    /// The way it was missed.
    pub cause: LossCause,
}

/// The sites of a run that are not asked for now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Away {
    pub(super) refusing: BTreeMap<SiteName, Refusal>,
    pub(super) absent: BTreeMap<SiteName, Absence>,
    /// Times that the reason of a standing refusal has changed.
    changes: BTreeMap<SiteName, u32>,
}

/// Most changes of a standing refusal's reason that are recorded.
const CHANGES_MAX: u32 = 16;

impl Away {
    /// Sites whose refusal stands, with it.
    pub fn refusing(&self) -> &BTreeMap<SiteName, Refusal> {
        &self.refusing
    }

    /// Says whether any site was asked and not heard since.
    pub fn has_absent(&self) -> bool {
        !self.absent.is_empty()
    }

    /// Says whether `site` was asked, not heard, and not heard since.
    pub fn is_absent(&self, site: &SiteName) -> bool {
        self.absent.contains_key(site)
    }

    /// The reason, in words, for which `site` is not asked for now.
    pub fn reason(&self, site: &SiteName) -> Option<String> {
        let refusal = self.refusing.get(site).map(ToString::to_string);
        refusal.or_else(|| {
            let Absence { round, cause } = self.absent.get(site)?;
            Some(format!("absent since round {round}: {cause}"))
        })
    }

    /// The seat of a site that a round passes over.
    pub(super) fn seat(&self, site: &SiteName) -> Option<Seat> {
        if let Some(reason) = self.refusing.get(site) {
            return Some(Seat::Declined { reason: reason.clone(), cases: None });
        }
        let Absence { cause, .. } = self.absent.get(site)?;
        Some(Seat::Lost { cause: cause.clone(), cases: None })
    }

    pub(super) fn holds(&self, site: &SiteName) -> bool {
        self.refusing.contains_key(site) || self.absent.contains_key(site)
    }

    pub(super) fn forget(&mut self, site: &SiteName) {
        self.refusing.remove(site);
        self.absent.remove(site);
        self.changes.remove(site);
    }

    /// Says whether a round of `size` sites may ask `site`: its refusal does not stand, or asks only for that many.
    pub(super) fn would_join(&self, site: &SiteName, size: usize) -> bool {
        match self.refusing.get(site) {
            Some(Refusal::Cohort { min, .. }) => *min as usize <= size,
            Some(_) => false,
            None => true,
        }
    }

    /// Says whether `reason` is news about the refusal of `site` that stands.
    fn is_news(&self, site: &SiteName, reason: &Refusal) -> bool {
        let few = self.changes.get(site).is_none_or(|count| *count < CHANGES_MAX);
        few && match (self.refusing.get(site), reason) {
            (None, _) => false,
            // Its size is the coordinator's own doing.
            (Some(Refusal::Cohort { min: known, .. }), Refusal::Cohort { min, .. }) => known != min,
            (Some(known), reason) => known != reason,
        }
    }

    /// Takes the new reason of a refusal that stands; false where none stands.
    pub(super) fn change(&mut self, site: &SiteName, reason: &Refusal) -> bool {
        let Some(known) = self.refusing.get_mut(site) else { return false };
        known.clone_from(reason);
        *self.changes.entry(site.clone()).or_default() += 1;
        true
    }

    /// Records the sites that were absent when `round` ended.
    pub(super) fn note_absences(&mut self, round: u32, seats: &Seats) {
        for (site, seat) in seats {
            if let Seat::Lost { cause, .. } = seat
                && cause.is_absence()
            {
                let absence = Absence { round, cause: cause.clone() };
                self.absent.entry(site.clone()).or_insert(absence);
            }
        }
    }
}

impl Run {
    /// The sites that are not asked for now.
    pub fn away(&self) -> &Away {
        &self.away
    }

    pub(super) fn open_round(&self, now: Timestamp, active: &BTreeSet<SiteName>) -> Vec<RunEvent> {
        if self.phase != Phase::Waiting || self.paused_until.is_some_and(|until| now < until) {
            return Vec::new();
        }
        let invited: Vec<SiteName> =
            active.iter().filter(|site| self.may_ask(site)).cloned().collect();
        let mut cohort = self.largest_cohort(&invited);
        cohort.truncate(COHORT_MAX);
        let away: Vec<SiteName> = invited
            .into_iter()
            .filter(|site| self.away.holds(site) && !cohort.contains(site))
            .collect();
        if cohort.len() < self.manifest.quorum.sites as usize {
            return Vec::new();
        }
        let chars_max = DETAIL_CHARS.min(REASONS_CHARS / away.len().clamp(1, COHORT_MAX));
        let passed_over = away
            .into_iter()
            .take(COHORT_MAX - cohort.len())
            .filter_map(|site| {
                let reason = shorten(&self.away.reason(&site)?, chars_max);
                Some(Missing { site, reason })
            })
            .collect();
        vec![RunEvent::RoundOpened {
            round: self.round() + 1,
            base: self.adapter(),
            cohort,
            deadline: now.plus(self.manifest.rounds.round_deadline()),
            passed_over,
        }]
    }

    /// The sites of `invited` that a round may ask: those that are not away, and those that refuse only because the
    /// cohort was too small, as many as make each other's cohort large enough.
    fn largest_cohort(&self, invited: &[SiteName]) -> Vec<SiteName> {
        let cohort_only =
            |site: &SiteName| matches!(self.away.refusing.get(site), Some(Refusal::Cohort { .. }));
        let may_join = |site: &SiteName| {
            !self.away.is_absent(site) && (!self.away.holds(site) || cohort_only(site))
        };
        let mut cohort: Vec<SiteName> = invited.iter().filter(|s| may_join(s)).cloned().collect();
        loop {
            let size = cohort.len();
            cohort.retain(|site| self.away.would_join(site, size.min(COHORT_MAX)));
            if cohort.len() == size {
                return cohort;
            }
        }
    }

    /// Says whether nothing in the open round was agreed to and every site refuses for now or is
    /// absent: it can be withdrawn as if it had not been opened.
    pub(super) fn is_withdrawable(seats: &Seats) -> bool {
        seats.values().all(Seat::is_passed_by)
    }

    /// A site was heard, by a call of any kind.
    pub(super) fn present(&self, site: SiteName) -> Vec<RunEvent> {
        let ended = matches!(self.phase, Phase::Ended { .. });
        if ended || !self.away.is_absent(&site) || !self.may_return(&site) {
            return Vec::new();
        }
        vec![RunEvent::SiteAvailable { site }]
    }

    /// A site whose refusal stood would take part now.
    pub(super) fn ready(&self, site: SiteName) -> Vec<RunEvent> {
        let ended = matches!(self.phase, Phase::Ended { .. });
        if ended || !self.away.refusing.contains_key(&site) || !self.may_return(&site) {
            return Vec::new();
        }
        vec![RunEvent::SiteAvailable { site }]
    }

    /// A site whose refusal stands was asked again and still refuses.
    pub(super) fn still_refuses(&self, site: SiteName, reason: Refusal) -> Vec<RunEvent> {
        let reason = bounded(reason);
        let ended = matches!(self.phase, Phase::Ended { .. });
        if ended || !reason.may_end() || !self.away.is_news(&site, &reason) {
            return Vec::new();
        }
        vec![RunEvent::RefusalChanged { site, reason }]
    }

    /// The class of a refusal of `site` that may have ended, and how many sites a round would ask
    /// with it.
    pub fn refusal_in_doubt(
        &self,
        site: &SiteName,
        active: impl FnOnce() -> BTreeSet<SiteName>,
    ) -> Option<(RefusalClass, u32)> {
        if matches!(self.phase, Phase::Ended { .. }) {
            return None;
        }
        let class = self.away.refusing.get(site)?.class();
        let others = match &self.phase {
            Phase::Collecting(collecting) => {
                let passed_over = |other| collecting.passed_over.contains_key(other);
                collecting
                    .seats
                    .keys()
                    .filter(|other| *other != site && !passed_over(*other))
                    .count()
            }
            Phase::Waiting | Phase::Aggregating(_) | Phase::Ended { .. } => {
                let open = |other: &SiteName| self.may_ask(other) && !self.away.holds(other);
                active().iter().filter(|other| *other != site && open(other)).count()
            }
        };
        Some((class, u32::try_from(others + 1).unwrap_or(u32::MAX)))
    }

    pub(super) fn resume(&self, by: String, reason: &str) -> Result<Vec<RunEvent>, Refusal> {
        self.check_resumable()?;
        Ok(vec![RunEvent::RunResumed { by, reason: shorten(reason, DETAIL_CHARS) }])
    }

    pub(super) fn check_resumable(&self) -> Result<(), Refusal> {
        let state = match &self.phase {
            Phase::Waiting => return Ok(()),
            Phase::Ended { state: EndState::Stopped | EndState::Failed, .. } => return Ok(()),
            Phase::Ended { state: EndState::Completed | EndState::CompletedPartial, .. } => {
                "it has completed; start another run".to_owned()
            }
            Phase::Collecting(collecting) => {
                format!("it is running, and round {} is open", collecting.round)
            }
            Phase::Aggregating(aggregating) => {
                format!("it is running, and round {} is aggregated", aggregating.round)
            }
        };
        Err(Refusal::NotResumable { state })
    }

    /// Says in words what a waiting run waits for at `now`.
    pub fn waits_for(&self, now: Timestamp) -> String {
        let quorum = self.manifest.quorum.sites;
        let mut words = Vec::new();
        if let Some(until) = self.paused_until.filter(|until| now < *until) {
            let round = self.round();
            words.push(match self.withdrawn_in_a_row {
                0 => format!(
                    "round {round} ended below quorum; the next opens at {until} at the earliest, \
                     rounds.void_pause_s, or by `run resume`"
                ),
                times => format!(
                    "{times} rounds in a row were withdrawn, because each site that was asked refused or was \
                     absent; the next opens at {until} at the earliest, or by `run resume`"
                ),
            });
        }
        let away: BTreeSet<&SiteName> =
            self.away.refusing.keys().chain(self.away.absent.keys()).collect();
        let sites = match quorum {
            1 => "1 site".to_owned(),
            more => format!("{more} sites"),
        };
        if !away.is_empty() {
            let why = |site: &&SiteName| Some(format!("{site}: {}", self.away.reason(site)?));
            let reasons: Vec<String> = away.iter().filter_map(why).collect();
            words.push(format!(
                "needs {sites}; not available: {}; `run resume` asks all again",
                reasons.join("; ")
            ));
        } else if words.is_empty() {
            words.push(format!("waits until {sites} that may take part are enrolled"));
        }
        shorten(&words.join("; "), DETAIL_CHARS * 4)
    }
}
