//! Checks of a manifest before a run starts: its own problems, the coordinator's, and the answer of
//! each connected site. Starts nothing; questions and answers are recorded.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tributary_proto::channel::{Member, Role};
use tributary_shared::check::{CheckAnswer, CheckWarning, SiteCheck};
use tributary_shared::manifest::{PAYLOAD_BYTES_LARGE, RunManifest, Training};
use tributary_shared::name::SiteName;
use tributary_shared::problems::Problems;
use tributary_shared::refusal::Refusal;

use super::inquiries::{Answer, Pending, Question};
use super::{Driver, DriverError};
use crate::clock;
use crate::round::Run;
use crate::round::event::RegistryEvent;
use crate::round::seat::Seat;
use crate::store::MemberState;
use crate::unbroken::to_the_end;

/// Least similarity of a name that is proposed, from 0 to 1.
const ALIKE_MIN: f64 = 0.75;
/// Key of a problem of the coordinator itself.
const COORDINATOR: &str = "coordinator";

/// Findings of a check.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Findings that refuse the run.
    pub problems: Problems,
    /// Findings that an operator may pass over.
    pub warnings: Problems,
    /// Every site of the cohort; none when the sites were not asked.
    pub sites: Vec<SiteCheck>,
    /// Bytes that every site receives and sends in a round.
    pub payload_bytes: u64,
    /// Number of problems that are the manifest's own.
    pub manifest_problems: usize,
}

impl Report {
    /// True when the run may begin without a word of the operator.
    pub fn is_clean(&self) -> bool {
        self.problems.is_empty() && self.warnings.is_empty()
    }
}

/// State of a site's enrolment before a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Enrolment {
    Active,
    Suspended,
    Revoked,
    Invited,
}

/// Every site that this coordinator knows by name.
type Roster = BTreeMap<SiteName, Enrolment>;

impl Driver {
    /// Findings of the manifest itself and of this coordinator against a run of it. No site is
    /// asked.
    pub async fn look_over(&self, manifest: &RunManifest) -> Result<Report, DriverError> {
        self.looked_over(manifest, &self.roster().await?).await
    }

    /// As [`Self::look_over`], and asks every connected site of the cohort, for at most `wait`.
    pub async fn check(
        &self,
        manifest: &RunManifest,
        by: &Member,
        wait: Duration,
    ) -> Result<Report, DriverError> {
        let roster = self.roster().await?;
        let mut report = self.looked_over(manifest, &roster).await?;
        // No site could read the manifest, or no record could be kept of having asked.
        if report.manifest_problems > 0 || report.problems.touch(COORDINATOR) {
            return Ok(report);
        }
        let (driver, manifest, by) = (self.clone(), manifest.clone(), by.to_string());
        // What sites were asked and said is recorded even when the operator has gone.
        let asked = async move { driver.ask_sites(&manifest, &by, wait, &roster).await };
        report.sites = to_the_end(asked).await??;
        for problem in report.sites.iter().flat_map(SiteCheck::problems) {
            report.warnings.add(problem.key, problem.problem);
        }
        Ok(report)
    }

    async fn looked_over(
        &self,
        manifest: &RunManifest,
        roster: &Roster,
    ) -> Result<Report, DriverError> {
        let problems = manifest.problems();
        let manifest_problems = problems.len();
        let mut report = Report { problems, manifest_problems, ..Report::default() };
        if self.run(&manifest.name).await.is_ok() {
            let name = &manifest.name;
            let mend = format!("there is a run `{name}` already; give it another name");
            report.problems.add("name", mend);
        }
        judge(manifest, roster, &mut report);
        if report.manifest_problems == 0 {
            report.payload_bytes = manifest.contract().map_or(0, |c| c.layout.payload_bytes());
            match self.check_room_for(manifest).await {
                Err(short @ DriverError::Short { .. }) => {
                    report.problems.add(COORDINATOR, short.to_string());
                }
                room => room?,
            }
        }
        if report.payload_bytes > PAYLOAD_BYTES_LARGE {
            let mib = report.payload_bytes >> 20;
            let mend = format!(
                "every site receives and sends {mib} MiB in every round; lora or last_blocks send \
                 less"
            );
            report.warnings.add("adapter", mend);
        }
        Ok(report)
    }

    async fn roster(&self) -> Result<Roster, DriverError> {
        let invited = self.store().open_invitations(clock::now()).await?;
        let sites = |member: &Member| (member.role == Role::Site).then(|| member.name.clone());
        let invited = invited.iter().filter(|i| i.used.is_none());
        let mut roster: Roster = invited
            .filter_map(|invitation| sites(&invitation.member))
            .map(|site| (site, Enrolment::Invited))
            .collect();
        for row in self.store().members().await? {
            let Some(site) = sites(&row.member) else { continue };
            let state = match row.state {
                MemberState::Active => Enrolment::Active,
                MemberState::Suspended => Enrolment::Suspended,
                // A new invitation lets it come back.
                MemberState::Revoked if roster.contains_key(&site) => continue,
                MemberState::Revoked => Enrolment::Revoked,
            };
            roster.insert(site, state);
        }
        Ok(roster)
    }

    async fn ask_sites(
        &self,
        manifest: &RunManifest,
        by: &str,
        wait: Duration,
        roster: &Roster,
    ) -> Result<Vec<SiteCheck>, DriverError> {
        let mut found = Vec::new();
        let mut asked = Vec::new();
        let active = cohort(manifest, roster).filter(|(_, e)| *e == Enrolment::Active).count();
        let question = Question {
            manifest: manifest.clone(),
            cohort_size: u32::try_from(active).unwrap_or(u32::MAX),
            is_check: true,
        };
        for (site, enrolment) in cohort(manifest, roster) {
            let answer = match enrolment {
                Enrolment::Active if self.members().is_connected(site) => {
                    asked.push(site.clone());
                    continue;
                }
                Enrolment::Active => CheckAnswer::NotConnected,
                Enrolment::Suspended => CheckAnswer::Suspended,
                Enrolment::Invited => CheckAnswer::NotEnrolled,
                // Told as a problem already.
                Enrolment::Revoked => continue,
            };
            found.push(SiteCheck { site: site.clone(), answer, warnings: Vec::new() });
        }
        let answers = self.asked_and_recorded(question, by, wait, asked).await?;
        found.extend(answers);
        found.sort_by(|a, b| a.site.cmp(&b.site));
        Ok(found)
    }

    async fn asked_and_recorded(
        &self,
        question: Question,
        by: &str,
        wait: Duration,
        asked: Vec<SiteName>,
    ) -> Result<Vec<SiteCheck>, DriverError> {
        let (run, digest) = (question.manifest.name.clone(), question.manifest.digest());
        let event = RegistryEvent::RunChecked {
            by: by.to_owned(),
            run: run.clone(),
            manifest: digest,
            asked: asked.clone(),
        };
        self.record(event).await?;
        if asked.is_empty() {
            return Ok(Vec::new());
        }
        // All are asked before the first is waited for.
        let ask = |site: SiteName| {
            let pending = self.inquire(&site, question.clone()).ok();
            (site, pending)
        };
        let pending: Vec<(SiteName, Option<Pending>)> = asked.into_iter().map(ask).collect();
        let deadline = Instant::now() + wait;
        let mut answers = Vec::new();
        for (site, pending) in pending {
            let answer = match pending {
                Some(mut pending) => timeout_at(deadline, pending.answered()).await.ok().flatten(),
                None => None,
            };
            answers.push(match answer {
                Some(answer) => SiteCheck {
                    site,
                    answer: class_of(answer.refusal.as_ref()),
                    warnings: warnings_of(&answer),
                },
                None => self.unanswered(site).await,
            });
        }
        let event =
            RegistryEvent::CheckAnswered { run, manifest: digest, answers: answers.clone() };
        self.record(event).await?;
        Ok(answers)
    }

    /// A site without an answer; one at work on a round cannot give any.
    async fn unanswered(&self, site: SiteName) -> SiteCheck {
        let trains = |run: &Run| {
            let seat = run.seat(&site, run.round());
            matches!(seat, Some(Seat::Training { .. }))
        };
        let mut warnings = Vec::new();
        for run in self.runs().await {
            if warnings.is_empty() && run.read(trains) {
                warnings.push(CheckWarning::Training);
            }
        }
        SiteCheck { site, answer: CheckAnswer::NoAnswer, warnings }
    }

    /// Makes an event of the registry that changes no member durable.
    async fn record(&self, event: RegistryEvent) -> Result<(), DriverError> {
        self.store().record(clock::now(), event).await?;
        self.wake();
        Ok(())
    }
}

/// The class of a site's refusal; one that a site may not give of itself counts as `other`.
fn class_of(refusal: Option<&Refusal>) -> CheckAnswer {
    let word = match refusal {
        None => return CheckAnswer::Ready,
        Some(Refusal::Policy { reason, .. } | Refusal::SiteFailed { reason, .. }) => reason,
        Some(Refusal::Cohort { .. }) => return CheckAnswer::Policy,
        Some(_) => return CheckAnswer::Other,
    };
    match word.parse() {
        Ok(
            answer @ (CheckAnswer::Policy
            | CheckAnswer::Backbone
            | CheckAnswer::Data
            | CheckAnswer::Cases
            | CheckAnswer::Passing
            | CheckAnswer::ChecksPerDay
            | CheckAnswer::Other),
        ) => answer,
        Ok(
            CheckAnswer::Ready
            | CheckAnswer::NotConnected
            | CheckAnswer::NoAnswer
            | CheckAnswer::NotEnrolled
            | CheckAnswer::Suspended,
        )
        | Err(_) => CheckAnswer::Other,
    }
}

fn warnings_of(answer: &Answer) -> Vec<CheckWarning> {
    let known: BTreeSet<CheckWarning> =
        answer.warnings.iter().filter_map(|word| word.parse().ok()).collect();
    known.into_iter().collect()
}

/// The known sites that a round of `manifest` may ask.
fn cohort<'r>(
    manifest: &RunManifest,
    roster: &'r Roster,
) -> impl Iterator<Item = (&'r SiteName, Enrolment)> {
    let named = manifest.cohort.as_ref().map(|cohort| cohort.sites.clone());
    roster.iter().filter_map(move |(site, enrolment)| {
        let asked = match &named {
            Some(named) => named.contains(site),
            // Without a table every active site is asked, and sites that enrol later.
            None => matches!(enrolment, Enrolment::Active),
        };
        asked.then_some((site, *enrolment))
    })
}

/// Adds the coordinator's findings against the run's cohort and quorum.
fn judge(manifest: &RunManifest, roster: &Roster, report: &mut Report) {
    if manifest.training.as_ref().is_some_and(Training::only_evaluates) {
        let mend = "1 holds every patient out and trains nothing; give it to `tributary-client \
                    evaluate`, or write 0 to 0.9";
        report.problems.add("training.holdout", mend);
    }
    for site in manifest.cohort.iter().flat_map(|cohort| &cohort.sites) {
        match roster.get(site) {
            None => report.problems.add("cohort.sites", unknown(site, roster)),
            Some(Enrolment::Revoked) => {
                let mend = format!("`{site}` is revoked; invite it anew or leave it out");
                report.problems.add("cohort.sites", mend);
            }
            Some(Enrolment::Active | Enrolment::Suspended | Enrolment::Invited) => {}
        }
    }
    let active = cohort(manifest, roster).filter(|(_, e)| *e == Enrolment::Active).count();
    let quorum = manifest.quorum.sites as usize;
    if quorum > active && !report.problems.touch("quorum.sites") {
        let enrolled = match active {
            0 => "no site that may take part is enrolled".to_owned(),
            1 => "1 site that may take part is enrolled".to_owned(),
            more => format!("{more} sites that may take part are enrolled"),
        };
        let mend =
            format!("{quorum} are needed and {enrolled}; the run would wait until more enrol");
        report.warnings.add("quorum.sites", mend);
    }
}

/// A name that is no site's, with the one that may have been meant.
fn unknown(site: &SiteName, roster: &Roster) -> String {
    let alike = |known: &&SiteName| strsim::jaro_winkler(known.as_str(), site.as_str());
    let nearest = roster.keys().max_by(|a, b| alike(a).total_cmp(&alike(b)));
    match nearest.filter(|known| alike(known) >= ALIKE_MIN) {
        Some(known) => {
            format!("`{site}` is neither enrolled nor invited; the nearest name is `{known}`")
        }
        None => {
            format!("`{site}` is neither enrolled nor invited; `tributary site list` shows who is")
        }
    }
}

#[cfg(test)]
mod tests {
    use tributary_shared::refusal::RefusalClass;

    use super::*;

    fn manifest(more: &str) -> RunManifest {
        RunManifest::from_toml(&format!(
            "schema_version = 1\nname = \"r\"\n\
             task = {{ kind = \"rehearsal\", payload_bytes = 4 }}\n\
             rounds = {{ count = 1, round_deadline_s = 9, stall_timeout_s = 9 }}\n{more}"
        ))
        .unwrap()
    }

    fn roster(sites: &[(&str, Enrolment)]) -> Roster {
        sites.iter().map(|(site, e)| (site.parse().unwrap(), *e)).collect()
    }

    fn judged(more: &str, sites: &[(&str, Enrolment)]) -> (Vec<String>, Vec<String>) {
        let mut report = Report::default();
        judge(&manifest(more), &roster(sites), &mut report);
        (report.problems.lines(), report.warnings.lines())
    }

    /// A name with a typing error was taken and never asked.
    #[test]
    fn every_unknown_site_is_told_with_the_nearest_known_name() {
        let known = [("charite-berlin", Enrolment::Active), ("karolinska", Enrolment::Invited)];
        let more = "cohort = { sites = [\"charite\", \"karolinska\", \"x9\"] }\n\
                    quorum = { sites = 1 }";
        let (problems, _) = judged(more, &known);
        assert_eq!(
            problems,
            [
                "cohort.sites: `charite` is neither enrolled nor invited; the nearest name is \
                 `charite-berlin`",
                "cohort.sites: `x9` is neither enrolled nor invited; `tributary site list` shows \
                 who is",
            ]
        );
        let gone = [("karolinska", Enrolment::Revoked)];
        let (problems, _) =
            judged("cohort = { sites = [\"karolinska\"] }\nquorum = { sites = 1 }", &gone);
        assert_eq!(
            problems,
            ["cohort.sites: `karolinska` is revoked; invite it anew or leave it out"]
        );
    }

    /// A quorum of 50 waited for ever without a word.
    #[test]
    fn a_quorum_above_the_sites_that_may_take_part_is_told() {
        let sites = [
            ("a", Enrolment::Active),
            ("b", Enrolment::Active),
            ("c", Enrolment::Suspended),
            ("d", Enrolment::Invited),
        ];
        assert_eq!(judged("quorum = { sites = 2 }", &sites), (Vec::new(), Vec::new()));
        let (problems, warnings) = judged("quorum = { sites = 50 }", &sites);
        assert!(problems.is_empty(), "{problems:?}");
        assert_eq!(
            warnings,
            ["quorum.sites: 50 are needed and 2 sites that may take part are enrolled; the run \
              would wait until more enrol"]
        );
        let named = "cohort = { sites = [\"a\", \"c\", \"d\"] }\nquorum = { sites = 2 }";
        assert!(judged(named, &sites).1[0].contains("1 site that may take part is enrolled"));
    }

    #[test]
    fn a_site_answers_by_a_class_that_is_its_own_to_say_and_nothing_else_is_kept() {
        let said = |reason: &str| {
            let reason = reason.to_owned();
            class_of(Some(&Refusal::SiteFailed { reason, class: RefusalClass::UntilChanged }))
        };
        assert_eq!(class_of(None), CheckAnswer::Ready);
        assert_eq!(said("cases"), CheckAnswer::Cases);
        for other in ["12 cases in /data/images", "ready", "not_connected", ""] {
            assert_eq!(said(other), CheckAnswer::Other, "{other}");
        }
        let warnings = ["warmup_too_long", "42 cases", "warmup_too_long"].map(str::to_owned).into();
        let answer = Answer { refusal: None, warnings };
        assert_eq!(warnings_of(&answer), [CheckWarning::WarmupTooLong]);
    }
}
