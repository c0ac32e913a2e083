//! The fold over all leaves: every stream without gaps, every run by its own rules.

use std::collections::{BTreeMap, HashMap};

use tributary_shared::check::SiteCheck;
use tributary_shared::digest::Digest;
use tributary_shared::initial::initial_digest;
use tributary_shared::name::{RunName, SiteName};
use tributary_shared::tensors::{Header, Subject};
use tributary_shared::text::printable;
use tributary_shared::timestamp::Timestamp;
use tributary_shared::tlog::key::VerifierKey;
use tributary_shared::tlog::recovery::Recovery;

use super::export::tensor_of_run;
use super::finding::{Finding, Place};
use super::recoveries::Recoveries;
use crate::round::event::{RegistryEvent, RunEvent};
use crate::round::record::{Event, Record, Stream};
use crate::round::{Collecting, Phase, Run};

/// What the leaves add up to.
#[derive(Debug)]
pub(super) struct History {
    key: VerifierKey,
    /// Digest of the root certificate, as leaf 0 has it.
    root: Option<Digest>,
    /// The certificate that the registry last gave each member.
    certificates: BTreeMap<String, Digest>,
    recoveries: Recoveries,
    next_leaf: u64,
    next_seq: HashMap<Stream, u64>,
    runs: BTreeMap<RunName, Run>,
    tensors: HashMap<Digest, Named>,
    members: BTreeMap<String, MemberState>,
    /// Checks without an answer yet: who was asked, by run and manifest. Two operators may ask at
    /// the same time.
    checks: HashMap<(RunName, Digest), Vec<Vec<SiteName>>>,
    span: Option<(Timestamp, Timestamp)>,
}

/// What the registry last said of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MemberState {
    /// Asked to enrol.
    Invited,
    /// Holds a certificate.
    Active,
    /// May not take part for now.
    Suspended,
    /// Its certificate is dead.
    Revoked,
}

/// A tensor file that the history names, and what it must be.
#[derive(Clone, Debug)]
pub(super) struct Named {
    leaf: u64,
    pub(super) run: RunName,
    pub(super) subject: Subject,
    /// Size and norm, where the history records them: of deltas.
    pub(super) recorded: Option<(u64, f64)>,
}

impl Named {
    /// The file as people look it up.
    pub(super) fn describe(&self, digest: Digest) -> String {
        let run = &self.run;
        match &self.subject {
            Subject::Adapter { version, .. } => format!("adapter {version} of run {run}, {digest}"),
            Subject::Delta { round, site, .. } => {
                format!("delta of {site} in round {round} of run {run}, {digest}")
            }
        }
    }
}

impl History {
    /// An empty history of the log of `key`.
    pub(super) fn new(key: VerifierKey) -> Self {
        Self {
            key,
            root: None,
            certificates: BTreeMap::new(),
            recoveries: Recoveries::default(),
            next_leaf: 0,
            next_seq: HashMap::new(),
            runs: BTreeMap::new(),
            tensors: HashMap::new(),
            members: BTreeMap::new(),
            checks: HashMap::new(),
            span: None,
        }
    }

    /// Takes the next leaf's bytes, after which the tree has the root `root`.
    pub(super) fn take(&mut self, bytes: &[u8], root: Digest) -> Result<(), Finding> {
        let leaf = self.next_leaf;
        let record = |source| Finding::Record { leaf, source };
        let parsed = Record::from_bytes(bytes).map_err(record)?;
        let place = Place::of(leaf, &parsed);
        // One spelling a record, so that nothing hides in what a parser passes over.
        if parsed.to_bytes() != bytes {
            return Err(impossible(place, "the record is not in canonical form".to_owned()));
        }
        let expected = self.next_seq.entry(parsed.stream.clone()).or_default();
        if parsed.seq != *expected {
            return Err(Finding::Sequence { place, expected: *expected });
        }
        *expected += 1;
        match (&parsed.stream, &parsed.event) {
            (Stream::Registry, Event::Registry(event)) => self.take_registry(place, event)?,
            (Stream::Run(name), Event::Run(event)) => {
                self.take_run(place, parsed.at, name, event)?;
            }
            (Stream::Registry, Event::Run(_)) | (Stream::Run(_), Event::Registry(_)) => {
                return Err(impossible(place, "the event belongs to another stream".to_owned()));
            }
        }
        let first = self.span.map_or(parsed.at, |(first, _)| first);
        self.span = Some((first, parsed.at));
        self.next_leaf += 1;
        self.recoveries.grow(root);
        Ok(())
    }

    /// The statements about lost leaves.
    pub(super) fn recoveries(&self) -> &Recoveries {
        &self.recoveries
    }

    /// Runs by name, each as its events leave it.
    pub(super) fn runs(&self) -> &BTreeMap<RunName, Run> {
        &self.runs
    }

    /// Members by name, `site/NAME` and so on.
    pub(super) fn members(&self) -> &BTreeMap<String, MemberState> {
        &self.members
    }

    /// Time of the first and of the last leaf.
    pub(super) fn span(&self) -> Option<(Timestamp, Timestamp)> {
        self.span
    }

    /// What tensor file `digest` must be, if an event names it.
    pub(super) fn named(&self, digest: Digest) -> Option<(&Named, Header)> {
        let named = self.tensors.get(&digest)?;
        let contract = self.runs.get(&named.run)?.contract();
        let header = Header::new(named.subject.clone(), contract.digest(), &contract.layout);
        Some((named, header))
    }

    fn take_registry(&mut self, place: Place, event: &RegistryEvent) -> Result<(), Finding> {
        let founding = matches!(event, RegistryEvent::Founded { .. });
        if founding != (place.leaf == 0) {
            let problem = "a log begins with `founded`, and has it nowhere else";
            return Err(impossible(place, problem.to_owned()));
        }
        let (member, state) = match event {
            RegistryEvent::Founded { root, .. } => {
                self.root = Some(*root);
                return Ok(());
            }
            RegistryEvent::Recovered { recovery } => return self.take_recovery(place, recovery),
            RegistryEvent::RunChecked { run, manifest, asked, .. } => {
                return self.take_check(place, run, *manifest, asked);
            }
            RegistryEvent::CheckAnswered { run, manifest, answers } => {
                return self.take_answers(place, run, *manifest, answers);
            }
            // They change no member.
            RegistryEvent::InvitationsWithdrawn { .. } | RegistryEvent::TokenReused { .. } => {
                return Ok(());
            }
            RegistryEvent::Invited { member, .. } => (member, MemberState::Invited),
            RegistryEvent::Enrolled { member, .. } | RegistryEvent::Reinstated { member, .. } => {
                (member, MemberState::Active)
            }
            RegistryEvent::Suspended { member, .. } => (member, MemberState::Suspended),
            RegistryEvent::Revoked { member, .. } => (member, MemberState::Revoked),
        };
        if let RegistryEvent::Enrolled { member, certificate } = event {
            self.certificates.insert(member.clone(), *certificate);
        }
        if let RegistryEvent::Revoked { member, .. } = event {
            self.certificates.remove(member);
        }
        let before = self.members.insert(member.clone(), state);
        // A new invitation alone takes nothing from a member that already works.
        if let (MemberState::Invited, Some(before)) = (state, before) {
            self.members.insert(member.clone(), before);
        }
        Ok(())
    }

    fn take_recovery(&mut self, place: Place, recovery: &Recovery) -> Result<(), Finding> {
        let Self { key, root, certificates, recoveries, .. } = self;
        let Some(root) = *root else {
            return Err(impossible(place, "a log begins with `founded`".to_owned()));
        };
        let enrolled = |member: &str, digest| certificates.get(member) == Some(&digest);
        recoveries
            .take(place.leaf, recovery, key, root, enrolled)
            .map_err(|problem| impossible(place, problem))
    }

    /// A skip of rounds is explained by a recovery, and no larger than what was lost.
    fn check_skip(&self, run: &Run, event: &RunEvent) -> Result<(), String> {
        let RunEvent::RoundsSkipped { to, site, recovery } = event else { return Ok(()) };
        let lost = self.recoveries.lost_leaves(*recovery).ok_or_else(|| {
            format!("rounds up to {to} skipped for a recovery that the history does not have")
        })?;
        let skipped = run.skipped(*recovery);
        if skipped > lost {
            return Err(format!("{skipped} rounds skipped where {lost} leaves were lost"));
        }
        if self.enrolled(site) {
            Ok(())
        } else {
            Err(format!("rounds skipped for {site}, which was never enrolled"))
        }
    }

    /// Sites that are asked before a run are members; a coordinator that was killed leaves a check
    /// without answers.
    fn take_check(
        &mut self,
        place: Place,
        run: &RunName,
        manifest: Digest,
        asked: &[SiteName],
    ) -> Result<(), Finding> {
        if let Some(stranger) = asked.iter().find(|site| !self.enrolled(site)) {
            let problem = format!("{stranger} is asked and was never enrolled");
            return Err(impossible(place, problem));
        }
        self.checks.entry((run.clone(), manifest)).or_default().push(asked.to_vec());
        Ok(())
    }

    fn take_answers(
        &mut self,
        place: Place,
        run: &RunName,
        manifest: Digest,
        answers: &[SiteCheck],
    ) -> Result<(), Finding> {
        let open = self.checks.entry((run.clone(), manifest)).or_default();
        let asked = |asked: &Vec<SiteName>| answers.iter().map(|answer| &answer.site).eq(asked);
        match open.iter().position(asked) {
            Some(at) => {
                open.swap_remove(at);
                Ok(())
            }
            None => {
                let problem = format!("answers about run {run} of other sites than were asked");
                Err(impossible(place, problem))
            }
        }
    }

    /// Whether a site ever held a certificate. Whether it may take part at this moment is not
    /// asked: a suspension may reach the log just before a round that was decided without it.
    fn enrolled(&self, site: &SiteName) -> bool {
        match self.members.get(&format!("site/{site}")) {
            Some(MemberState::Active | MemberState::Suspended | MemberState::Revoked) => true,
            Some(MemberState::Invited) | None => false,
        }
    }

    fn take_run(
        &mut self,
        place: Place,
        at: Timestamp,
        name: &RunName,
        event: &RunEvent,
    ) -> Result<(), Finding> {
        if place.leaf == 0 {
            return Err(impossible(place, "a log begins with `founded`".to_owned()));
        }
        let corrupt = |problem: String| impossible(place.clone(), problem);
        if let RunEvent::RoundOpened { cohort, passed_over, .. } = event
            && let Some(stranger) = cohort
                .iter()
                .chain(passed_over.iter().map(|m| &m.site))
                .find(|site| !self.enrolled(site))
        {
            return Err(corrupt(format!("{stranger} is asked and was never enrolled")));
        }
        let run = match self.runs.remove(name) {
            None => Run::open(at, event),
            Some(run) => {
                check_before(&run, event).map_err(corrupt)?;
                run.evolve(at, event)
            }
        };
        let run = run.map_err(|e| corrupt(e.0))?;
        self.check_skip(&run, event).map_err(corrupt)?;
        if run.manifest().name != *name {
            return Err(corrupt(format!("the manifest is of run {}", run.manifest().name)));
        }
        if let RunEvent::RunStarted { adapter, .. } = event {
            let recomputed = initial_digest(run.manifest());
            if recomputed != *adapter {
                return Err(Finding::Initial { place, recomputed, recorded: *adapter });
            }
        }
        if let Some((digest, named)) = names(place.leaf, &run, event)
            && let Some(earlier) = self.tensors.insert(digest, named)
        {
            let problem = format!("{digest} is named as another file by leaf {}", earlier.leaf);
            return Err(impossible(place, problem));
        }
        self.runs.insert(name.clone(), run);
        Ok(())
    }
}

fn impossible(place: Place, problem: String) -> Finding {
    Finding::Impossible { place, problem: printable(&problem) }
}

/// What the terms bind beside the order of events.
fn check_before(run: &Run, event: &RunEvent) -> Result<(), String> {
    let manifest = run.manifest();
    match event {
        RunEvent::TermsAccepted { site, cases, .. }
        | RunEvent::DeltaAccepted { site, cases, .. } => {
            let cases_max = manifest.limits.cases_max;
            if !(1..=cases_max).contains(cases) {
                return Err(format!("{site}: {cases} cases are not between 1 and {cases_max}"));
            }
        }
        RunEvent::AdapterPublished { strategy, .. } => {
            let expected = manifest.strategy.as_str();
            if strategy != expected {
                return Err(format!("made by {strategy}, the manifest says {expected}"));
            }
        }
        RunEvent::RunStarted { .. }
        | RunEvent::RoundOpened { .. }
        | RunEvent::Declined { .. }
        | RunEvent::SiteLost { .. }
        | RunEvent::SiteReturned { .. }
        | RunEvent::DeltaRefused { .. }
        | RunEvent::SiteAvailable { .. }
        | RunEvent::RefusalChanged { .. }
        | RunEvent::RoundWithdrawn { .. }
        | RunEvent::RunResumed { .. }
        | RunEvent::RoundClosed { .. }
        | RunEvent::DeltaExcluded { .. }
        | RunEvent::DeltasRemoved { .. }
        | RunEvent::RoundsSkipped { .. }
        | RunEvent::RunEnded { .. } => {}
    }
    if let (Some(cohort), RunEvent::RoundOpened { cohort: asked, .. }) = (&manifest.cohort, event)
        && let Some(stranger) = asked.iter().find(|site| !cohort.sites.contains(site))
    {
        return Err(format!("{stranger} is asked and not in the manifest's cohort"));
    }
    Ok(())
}

/// The tensor file that `event` names, `run` being the run after it.
fn names(leaf: u64, run: &Run, event: &RunEvent) -> Option<(Digest, Named)> {
    let name = run.manifest().name.clone();
    let digest = tensor_of_run(event)?;
    let (subject, recorded) = match event {
        RunEvent::DeltaAccepted { round, site, cases, norm, bytes, .. } => {
            let Phase::Collecting(Collecting { base, .. }) = run.phase() else { return None };
            let (run, round, site) = (name.clone(), *round, site.clone());
            let subject = Subject::Delta { run, round, site, base: *base, cases: *cases };
            (subject, Some((*bytes, *norm)))
        }
        RunEvent::RunStarted { .. }
        | RunEvent::AdapterPublished { .. }
        | RunEvent::RoundOpened { .. }
        | RunEvent::TermsAccepted { .. }
        | RunEvent::Declined { .. }
        | RunEvent::SiteLost { .. }
        | RunEvent::SiteReturned { .. }
        | RunEvent::DeltaRefused { .. }
        | RunEvent::SiteAvailable { .. }
        | RunEvent::RefusalChanged { .. }
        | RunEvent::RoundWithdrawn { .. }
        | RunEvent::RunResumed { .. }
        | RunEvent::RoundClosed { .. }
        | RunEvent::DeltaExcluded { .. }
        | RunEvent::DeltasRemoved { .. }
        | RunEvent::RoundsSkipped { .. }
        | RunEvent::RunEnded { .. } => {
            (Subject::Adapter { run: name.clone(), version: run.rounds_published() }, None)
        }
    };
    Some((digest, Named { leaf, run: name, subject, recorded }))
}
