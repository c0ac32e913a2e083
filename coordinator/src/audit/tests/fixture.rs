//! A small history, made by the rules of a run, and exports of it.

use std::collections::BTreeMap;

use ring::signature::Ed25519KeyPair;
use tributary_shared::digest::Digest;
use tributary_shared::initial::{adapter_header, initial_adapter};
use tributary_shared::manifest::RunManifest;
use tributary_shared::name::{RunName, SiteName};
use tributary_shared::refusal::{Refusal, RefusalClass};
use tributary_shared::tensors::encode;
use tributary_shared::terms::SiteMetrics;
use tributary_shared::timestamp::Timestamp;
use tributary_shared::tlog::checkpoint::Checkpoint;
use tributary_shared::tlog::frontier::Frontier;
use tributary_shared::tlog::key::{Signer, VerifierKey};
use tributary_shared::tlog::merkle::leaf_hash;

use crate::audit::ExportWriter;
use crate::round::event::{LossCause, RegistryEvent};
use crate::round::record::{Event, Record, Stream};
use crate::round::seat::Accepted;
use crate::round::{Command, Run};

const MANIFEST: &str = r#"
schema_version = 1
name = "demo"
[task]
kind = "rehearsal"
payload_bytes = 12
[rounds]
count = 2
round_deadline_s = 60
stall_timeout_s = 30
[quorum]
sites = 1
"#;

pub(super) fn signer(seed: u8) -> Signer {
    let pair = Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap();
    Signer::new("log.example/consortium", pair).unwrap()
}

pub(super) fn key() -> VerifierKey {
    signer(7).verifier_key()
}

pub(super) fn site(name: &str) -> SiteName {
    name.parse().unwrap()
}

/// A coordinator without a network: decides, records, folds.
pub(super) struct Coordinator {
    pub(super) records: Vec<Record>,
    pub(super) runs: BTreeMap<RunName, Run>,
    pub(super) files: BTreeMap<Digest, Vec<u8>>,
}

impl Coordinator {
    pub(super) fn found() -> Self {
        let mut new = Self { records: Vec::new(), runs: BTreeMap::new(), files: BTreeMap::new() };
        let consortium = "consortium".to_owned();
        new.register(RegistryEvent::Founded { consortium, root: Digest::of(b"root") });
        for member in ["site/a", "site/b", "site/c"].map(str::to_owned) {
            let certificate = Digest::of(member.as_bytes());
            let expires = Timestamp::from_millis(9_000);
            let by = "operator/o".to_owned();
            new.register(RegistryEvent::Invited {
                member: member.clone(),
                expires,
                by,
                replaces: false,
            });
            new.register(RegistryEvent::Enrolled { member, certificate });
        }
        new
    }

    pub(super) fn now(&self) -> Timestamp {
        Timestamp::from_millis(1_000 * self.records.len() as i64)
    }

    pub(super) fn record(&mut self, stream: Stream, event: Event) {
        let seq = self.records.iter().filter(|record| record.stream == stream).count() as u64;
        self.records.push(Record::new(self.now(), stream, seq, event));
    }

    pub(super) fn register(&mut self, event: RegistryEvent) {
        self.record(Stream::Registry, Event::Registry(event));
    }

    pub(super) fn start(&mut self, name: &str) -> RunName {
        let toml = MANIFEST.replace("demo", name);
        let manifest = RunManifest::from_toml(&toml).unwrap();
        let adapter = self.keep(initial_adapter(&manifest));
        let name = manifest.name.clone();
        let event = Run::start(manifest, adapter, "operator/o");
        self.runs.insert(name.clone(), Run::open(self.now(), &event).unwrap());
        self.record(Stream::Run(name.clone()), Event::Run(event));
        name
    }

    pub(super) fn keep(&mut self, bytes: Vec<u8>) -> Digest {
        let digest = Digest::of(&bytes);
        self.files.insert(digest, bytes);
        digest
    }

    pub(super) fn command(&mut self, name: &RunName, command: Command) {
        let now = self.now();
        for event in self.runs[name].decide(now, command).unwrap() {
            let at = self.now();
            let run = self.runs.remove(name).unwrap().evolve(at, &event).unwrap();
            self.runs.insert(name.clone(), run);
            self.record(Stream::Run(name.clone()), Event::Run(event));
        }
    }

    pub(super) fn open(&mut self, name: &RunName) {
        let active = ["a", "b", "c"].map(site).into();
        self.command(name, Command::Open { active });
    }

    pub(super) fn accept(&mut self, name: &RunName, who: &str, cases: u64) {
        let terms = self.runs[name].assignment(&site(who)).unwrap();
        let (manifest, base, round) = (terms.manifest, terms.base, terms.round);
        self.command(name, Command::AcceptTerms { site: site(who), round, manifest, base, cases });
    }

    /// A delta of three equal values: their norm is the value times the root of three.
    pub(super) fn submit(&mut self, name: &RunName, who: &str, cases: u64, value: f32) {
        let round = self.runs[name].round();
        let header = self.runs[name].expected_delta(&site(who), round, cases).unwrap();
        let bytes = encode(&header, &[vec![value; 3]]);
        let norm = (0..3).map(|_| f64::from(value) * f64::from(value)).sum::<f64>().sqrt();
        let delta = Accepted {
            cases,
            norm,
            bytes: bytes.len() as u64,
            metrics: SiteMetrics { train_loss: Some(0.1), ..SiteMetrics::default() },
            digest: self.keep(bytes),
        };
        self.command(name, Command::Admit { site: site(who), round, delta });
    }

    pub(super) fn publish(&mut self, name: &RunName, version: u32, value: f32) {
        let run = &self.runs[name];
        let header = adapter_header(name, version, run.contract());
        let round = run.round();
        let adapter = self.keep(encode(&header, &[vec![value; 3]]));
        self.command(name, Command::Publish { round, adapter });
    }

    pub(super) fn leaves(&self) -> Vec<Vec<u8>> {
        self.records.iter().map(Record::to_bytes).collect()
    }

    pub(super) fn export(&self) -> Vec<u8> {
        export(&self.leaves(), &self.files)
    }
}

/// Two runs: one whose sites do what sites do, one that the operator stops.
pub(super) fn history() -> Coordinator {
    let mut c = Coordinator::found();
    let demo = c.start("demo");
    c.open(&demo);
    c.accept(&demo, "a", 100);
    c.accept(&demo, "b", 300);
    c.accept(&demo, "c", 50);
    c.submit(&demo, "a", 100, 1.0);
    let reason = Refusal::NotFinite { tensor: "payload".into(), index: 1, value: "NaN".into() };
    let digest = Digest::of(b"a delta with NaN");
    c.command(&demo, Command::Refuse { site: site("c"), round: 1, digest, reason });
    c.submit(&demo, "b", 300, 2.0);
    // (100 * 1 + 300 * 2) / 400
    c.publish(&demo, 1, 1.75);

    let other = c.start("other");
    c.open(&other);
    c.command(&other, Command::Stop { reason: "a rehearsal was enough".into() });

    c.open(&demo);
    c.accept(&demo, "a", 100);
    let class = RefusalClass::Never;
    let policy = Refusal::Policy { reason: "not on Mondays".into(), class };
    c.command(&demo, Command::Decline { site: site("b"), round: 2, reason: policy });
    let cause = LossCause::NoAnswer { waited_s: 30 };
    c.command(&demo, Command::Lose { site: site("c"), round: Some(2), cause });
    c.submit(&demo, "a", 100, -4.0);
    c.publish(&demo, 2, -2.25);
    c
}

pub(super) fn head(leaves: &[Vec<u8>]) -> Frontier {
    let mut frontier = Frontier::new();
    for leaf in leaves {
        frontier.append(leaf_hash(leaf));
    }
    frontier
}

pub(super) fn checkpoint(leaves: &[Vec<u8>]) -> Checkpoint {
    let head = head(leaves);
    Checkpoint { origin: signer(7).name().into(), size: head.size(), root: head.root() }
}

/// An export in which everything fits: also of a history that was made up.
pub(super) fn export(leaves: &[Vec<u8>], files: &BTreeMap<Digest, Vec<u8>>) -> Vec<u8> {
    export_under(&checkpoint(leaves), leaves, files)
}

pub(super) fn export_under(
    head: &Checkpoint,
    leaves: &[Vec<u8>],
    files: &BTreeMap<Digest, Vec<u8>>,
) -> Vec<u8> {
    let note = Checkpoint::sign(head.size, head.root, &signer(7));
    let mut writer = ExportWriter::begin(Vec::new(), &note, leaves.len() as u64).unwrap();
    for leaf in leaves {
        writer.leaf(leaf, leaf_hash(leaf)).unwrap();
    }
    for (digest, bytes) in files {
        writer.tensor_from(*digest, bytes.len() as u64, &bytes[..]).unwrap();
    }
    writer.finish().unwrap()
}
