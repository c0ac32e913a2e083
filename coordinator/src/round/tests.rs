//! Scenarios and properties of the fold.

mod leases;
mod property;
mod scenarios;
mod skips;
mod waiting;

use std::collections::BTreeSet;

use tributary_shared::refusal::RefusalClass;
use tributary_shared::terms::SiteMetrics;

use super::event::{LossCause, RunEvent};
use super::record::{Event, Record, Stream};
use super::*;

const DEADLINE_S: i64 = 100;
const CASES: u64 = 100;

/// A run on a clock that only the test moves: every command is decided, written down as the store
/// would, and folded.
struct Trial {
    run: Run,
    now: Timestamp,
    records: Vec<Record>,
}

/// A run whose rounds follow each other at once, also those below quorum.
fn manifest(quorum: &str) -> RunManifest {
    manifest_with(quorum, "void_pause_s = 0")
}

fn manifest_with(quorum: &str, rounds: &str) -> RunManifest {
    RunManifest::from_toml(&format!(
        "schema_version = 1
        name = 'trial'
        task = {{ kind = 'rehearsal', payload_bytes = 16 }}
        rounds = {{ count = 2, round_deadline_s = {DEADLINE_S}, stall_timeout_s = 30, lease_s = 10, void_max = 1, {rounds} }}
        quorum = {{ {quorum} }}
        limits = {{ delta_norm_max = 10.0 }}"
    ))
    .unwrap()
}

fn site(name: &str) -> SiteName {
    name.parse().unwrap()
}

fn sites(names: &str) -> BTreeSet<SiteName> {
    names.split(' ').map(site).collect()
}

/// A delta of some content with `cases` cases.
fn delta(content: u8, cases: u64) -> Accepted {
    let metrics = SiteMetrics::default();
    Accepted { digest: Digest::of(&[content]), cases, norm: 1.0, bytes: 16, metrics }
}

impl Trial {
    fn start(quorum: &str) -> Self {
        Self::start_of(manifest(quorum))
    }

    fn start_of(manifest: RunManifest) -> Self {
        let now = Timestamp::from_millis(1_000_000);
        let event = Run::start(manifest, Digest::of(b"version 0"), "operator/anna");
        let run = Run::open(now, &event).unwrap();
        let stream = Stream::Run(run.manifest().name.clone());
        let record = Record::new(now, stream, 0, Event::Run(event));
        Self { run, now, records: vec![record] }
    }

    /// A run whose first round is open to `names`.
    fn collecting(quorum: &str, names: &str) -> Self {
        let mut trial = Self::start(quorum);
        trial.yes(Command::Open { active: sites(names) });
        trial
    }

    /// decide -> write -> evolve.
    fn ask(&mut self, command: Command) -> Result<Vec<RunEvent>, Refusal> {
        let events = self.run.decide(self.now, command)?;
        for event in &events {
            let seq = self.records.len() as u64;
            let stream = Stream::Run(self.run.manifest().name.clone());
            let record = Record::new(self.now, stream, seq, Event::Run(event.clone()));
            let read = Record::from_bytes(&record.to_bytes()).expect("a record reads back");
            assert_eq!(read, record, "a record reads back as it was written");
            self.records.push(record);
            let evolved = self.run.clone().evolve(self.now, event);
            self.run = evolved.unwrap_or_else(|e| panic!("{e}: {event:?}"));
        }
        Ok(events)
    }

    /// The events of a command that is not refused.
    fn yes(&mut self, command: Command) -> Vec<RunEvent> {
        self.ask(command).unwrap()
    }

    fn wait(&mut self, seconds: i64) {
        self.now = Timestamp::from_millis(self.now.as_millis() + 1_000 * seconds);
    }

    fn accept(&mut self, name: &str, cases: u64) -> Result<Vec<RunEvent>, Refusal> {
        let (round, manifest) = (self.run.round(), self.run.manifest_digest());
        let base = self.run.adapter();
        self.ask(Command::AcceptTerms { site: site(name), round, manifest, base, cases })
    }

    fn admit(&mut self, name: &str, delta: Accepted) -> Result<Vec<RunEvent>, Refusal> {
        let round = self.run.round();
        self.ask(Command::Admit { site: site(name), round, delta })
    }

    /// The whole of one site's part in the open round.
    fn contribute(&mut self, name: &str) -> Vec<RunEvent> {
        self.accept(name, CASES).unwrap();
        self.admit(name, delta(1, CASES)).unwrap()
    }

    fn lose(&mut self, name: &str, cause: LossCause) -> Vec<RunEvent> {
        let round = Some(self.run.round());
        self.yes(Command::Lose { site: site(name), round, cause })
    }

    /// A no that holds for the round.
    fn decline(&mut self, name: &str, reason: &str) -> Vec<RunEvent> {
        self.decline_as(name, reason, RefusalClass::Never)
    }

    fn decline_as(&mut self, name: &str, reason: &str, class: RefusalClass) -> Vec<RunEvent> {
        let (site, round) = (site(name), self.run.round());
        let reason = Refusal::Policy { reason: reason.to_owned(), class };
        self.yes(Command::Decline { site, round, reason })
    }

    fn ready(&mut self, name: &str) -> Vec<RunEvent> {
        self.yes(Command::Ready { site: site(name) })
    }

    fn publish(&mut self) -> Vec<RunEvent> {
        let round = self.run.round();
        let adapter = Digest::of(format!("adapter of round {round}").as_bytes());
        self.yes(Command::Publish { round, adapter })
    }

    /// The run as a restarted coordinator or an auditor sees it.
    fn refold(&self) -> Run {
        let mut run: Option<Run> = None;
        for record in &self.records {
            let Event::Run(event) = &record.event else { unreachable!("a run's records") };
            let next = match run {
                None => Run::open(record.at, event),
                Some(run) => run.evolve(record.at, event),
            };
            run = Some(next.expect("a committed history folds"));
        }
        run.expect("a run has a first record")
    }

    fn events(&self) -> impl Iterator<Item = &RunEvent> {
        self.records.iter().map(|record| match &record.event {
            Event::Run(event) => event,
            Event::Registry(_) => unreachable!("a run's records"),
        })
    }
}

/// Whether the events close a round, and with what quorum.
fn closed(events: &[RunEvent]) -> Option<bool> {
    events.iter().find_map(|event| {
        if let RunEvent::RoundClosed { quorum_met, .. } = event { Some(*quorum_met) } else { None }
    })
}

/// How the events end the run.
fn ended(events: &[RunEvent]) -> Option<EndState> {
    events.iter().find_map(|event| {
        if let RunEvent::RunEnded { state, .. } = event { Some(*state) } else { None }
    })
}
