//! Writes the first inputs of every corpus: `cargo run -p tributary-fuzz --example seeds`.
//!
//! From the fixtures of the client and from this project's own writers.

use std::error::Error;
use std::fs;
use std::io::{Cursor, Read as _};
use std::path::{Path, PathBuf};

use image::{DynamicImage, ImageFormat, RgbImage};
use prost::Message;
use tributary_coordinator::audit::ExportWriter;
use tributary_coordinator::round::event::RegistryEvent;
use tributary_coordinator::round::record::{Event, Record, Stream};
use tributary_coordinator::round::{Command, Run};
use tributary_fuzz::{REPLIES, signer};
use tributary_proto::calls::Call;
use tributary_proto::v1;
use tributary_shared::digest::Digest;
use tributary_shared::initial::initial_adapter;
use tributary_shared::manifest::RunManifest;
use tributary_shared::timestamp::Timestamp;
use tributary_shared::tlog::checkpoint::Checkpoint;
use tributary_shared::tlog::frontier::Frontier;
use tributary_shared::tlog::merkle::leaf_hash;

type Done = Result<(), Box<dyn Error>>;
/// Files by their names.
type Files = Vec<(String, Vec<u8>)>;
/// Requests by their calls.
type Requests = Vec<(Call, Vec<u8>)>;

/// Longest input kept, bytes.
const FILE_BYTES_MAX: usize = 64 * 1024;

const MANIFEST: &str = r#"schema_version = 1
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

const KIT: &str = r#"schema = 1
consortium = "demo"
address = "coordinator.example:7443"
root_fingerprint = "ROOT"
token = "0123456789abcdef"
role = "site"
name = "a"
expires = "2026-01-01T00:00:00Z"
"#;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn keep(target: &str, name: &str, bytes: &[u8]) -> Done {
    if bytes.len() > FILE_BYTES_MAX {
        return Ok(());
    }
    let folder = root().join("tests/fuzz/corpus").join(target);
    fs::create_dir_all(&folder)?;
    let file = folder.join(format!("seed-{name}"));
    // What is there stays: a certificate request has a new key each time.
    if !file.exists() {
        fs::write(file, bytes)?;
    }
    Ok(())
}

/// The files of a folder whose names end with one of `endings`, by their names.
fn fixtures(folder: &str, endings: &[&str]) -> Result<Files, Box<dyn Error>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root().join("client/tests/fixtures").join(folder))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if endings.iter().any(|ending| name.ends_with(ending)) {
            found.push((name, fs::read(path)?));
        }
    }
    Ok(found)
}

fn files() -> Done {
    let of: [(&str, &str, &[&str]); 9] = [
        ("dicom", "dicom", &[".dcm"]),
        ("nifti", "nifti", &[".nii", ".nii.gz"]),
        ("tiff", "slides", &[".svs", ".tif"]),
        ("csv", "manifests", &[".csv"]),
        ("parquet", "manifests", &[".parquet"]),
        ("npz", "data", &[".npz"]),
        ("npz", "data", &[".jpg"]),
        ("checkpoint", "backbones", &[".pth", ".bin"]),
        ("safetensors", "backbones", &[".safetensors", "legacy.pth"]),
    ];
    for (target, folder, endings) in of {
        for (name, bytes) in fixtures(folder, endings)? {
            keep(target, &name, &bytes)?;
        }
    }
    for (name, bytes) in fixtures("backbones", &[".pth", ".bin"])? {
        let Ok(mut archive) = zip::ZipArchive::new(Cursor::new(bytes)) else { continue };
        let inside = archive.file_names().find(|name| name.ends_with("data.pkl"));
        let Some(inside) = inside.map(str::to_owned) else { continue };
        let mut pickle = Vec::new();
        archive.by_name(&inside)?.read_to_end(&mut pickle)?;
        keep("pickle", &name, &pickle)?;
    }
    for (name, bytes) in fixtures("peft", &["run.toml"])? {
        keep("manifest", &name, &bytes)?;
    }
    let picture =
        DynamicImage::from(RgbImage::from_fn(9, 7, |x, y| [x as u8, y as u8, 200].into()));
    let mut tiff = Cursor::new(Vec::new());
    picture.write_to(&mut tiff, ImageFormat::Tiff)?;
    keep("tiff", "plain.tif", tiff.get_ref())?;
    keep("tiff", "cut.tif", &tiff.get_ref()[..20])?;
    keep("nifti", "cut.nii", &[0; 400])?;
    keep("csv", "no-file.csv", b"picture,patient\na.png,p\n")?;
    keep("csv", "good.csv", b"file,patient,label\na.png,p,ill\n")
}

fn history() -> Result<(Vec<Record>, Vec<u8>), Box<dyn Error>> {
    let at = Timestamp::from_millis(1_000);
    let mut records = Vec::new();
    let (consortium, root) = ("demo".to_owned(), Digest::of(b"root"));
    let member = "site/a".to_owned();
    let by = "operator/o".to_owned();
    let registry = [
        RegistryEvent::Founded { consortium, root },
        RegistryEvent::Invited { member: member.clone(), expires: at, by, replaces: false },
        RegistryEvent::Enrolled { member, certificate: Digest::of(b"certificate") },
    ];
    for (seq, event) in (0..).zip(registry) {
        records.push(Record::new(at, Stream::Registry, seq, Event::Registry(event)));
    }
    let manifest = RunManifest::from_toml(MANIFEST)?;
    let stream = Stream::Run(manifest.name.clone());
    let adapter = initial_adapter(&manifest);
    let start = Run::start(manifest, Digest::of(&adapter), "operator/o");
    let run = Run::open(at, &start)?;
    let stop = run.decide(at, Command::Stop { reason: "a rehearsal was enough".to_owned() });
    let stopped = stop.map_err(|refusal| refusal.to_string())?;
    for (seq, event) in (0..).zip(std::iter::once(start).chain(stopped)) {
        records.push(Record::new(at, stream.clone(), seq, Event::Run(event)));
    }
    Ok((records, adapter))
}

fn log() -> Done {
    let (records, adapter) = history()?;
    let leaves: Vec<Vec<u8>> = records.iter().map(Record::to_bytes).collect();
    for (index, leaf) in leaves.iter().enumerate() {
        keep("record", &index.to_string(), leaf)?;
    }
    keep("record", "cut", &leaves[0][..20])?;
    keep("export", "lines", &leaves[..3].join(&b'\n'))?;
    keep("export", "run-lines", &leaves.join(&b'\n'))?;
    let mut frontier = Frontier::new();
    for leaf in &leaves {
        frontier.append(leaf_hash(leaf));
    }
    let note = Checkpoint::sign(frontier.size(), frontier.root(), signer());
    keep("note", "signed", note.as_bytes())?;
    let text = note.split("\n\n").next().unwrap_or_default();
    keep("note", "text", format!("{text}\n").as_bytes())?;
    keep("note", "cut", &note.as_bytes()[..40])?;
    let mut writer = ExportWriter::begin(Vec::new(), &note, frontier.size())?;
    for leaf in &leaves {
        writer.leaf(leaf, leaf_hash(leaf))?;
    }
    writer.tensor_from(Digest::of(&adapter), adapter.len() as u64, &adapter[..])?;
    let export = writer.finish()?;
    keep("export", "whole", &export)?;
    keep("export", "cut", &export[..export.len() / 2])?;
    keep("tensors", "initial", &adapter)?;
    keep("tensors", "cut", &adapter[..adapter.len() - 1])?;
    keep("manifest", "written", MANIFEST.as_bytes())?;
    keep("manifest", "travelled", &RunManifest::from_toml(MANIFEST)?.to_json())?;
    keep("manifest", "cut", &MANIFEST.as_bytes()[..60])?;
    let kit = KIT.replace("ROOT", &Digest::of(b"root").to_string());
    keep("kit", "whole", kit.as_bytes())?;
    keep("kit", "cut", &KIT.as_bytes()[..60])
}

/// What several messages hold.
struct Parts {
    run: String,
    digest: Vec<u8>,
    refusal: Option<v1::Refusal>,
    leaf: Vec<u8>,
    note: String,
}

fn site_requests(parts: &Parts) -> Requests {
    let run = || parts.run.clone();
    let digest = || parts.digest.clone().into();
    let refusal = || parts.refusal.clone();
    let held_note = || parts.note.clone();
    let known_rounds = vec![v1::KnownRound { run: run(), round: 1, answered: true }];
    let hello = v1::HelloRequest { known_rounds, ..Default::default() };
    let warnings = vec!["warmup_too_long".to_owned()];
    let inquiry = v1::AnswerInquiryRequest { id: run(), refusal: refusal(), warnings };
    let (manifest_digest, base_digest) = (digest(), digest());
    let terms =
        v1::AcceptTermsRequest { run: run(), round: 1, manifest_digest, base_digest, cases: 9 };
    let decline = v1::DeclineRequest { run: run(), round: 1, reason: refusal() };
    let beat = v1::HeartbeatRequest { run: run(), phase: run(), ..Default::default() };
    let fetch = v1::FetchRequest { run: run(), digest: digest(), offset: 7 };
    let subject =
        v1::UploadStatusRequest { run: run(), round: 1, digest: digest(), cases: 9, bytes: 200 };
    let upload = v1::UploadChunk { subject: Some(subject.clone()), offset: 0, data: digest() };
    let metrics_json = r#"{"steps":3,"train_loss":0.5}"#.to_owned();
    let submit =
        v1::SubmitRequest { run: run(), round: 1, digest: digest(), cases: 9, metrics_json };
    let checkpoint = v1::CheckpointRequest { old_size: 1, held_note: held_note() };
    let evidence = v1::EvidenceRequest {
        run: run(),
        round: 1,
        base_digest: digest(),
        old_size: 1,
        held_note: held_note(),
    };
    vec![
        (Call::SiteHello, hello.encode_to_vec()),
        (Call::SiteAnswerInquiry, inquiry.encode_to_vec()),
        (Call::SiteAcceptTerms, terms.encode_to_vec()),
        (Call::SiteDecline, decline.encode_to_vec()),
        (Call::SiteHeartbeat, beat.encode_to_vec()),
        (Call::SiteFetchAdapter, fetch.encode_to_vec()),
        (Call::SiteUploadStatus, subject.encode_to_vec()),
        (Call::SiteUpload, upload.encode_to_vec()),
        (Call::SiteSubmit, submit.encode_to_vec()),
        (Call::SiteCheckpoint, checkpoint.encode_to_vec()),
        (Call::SiteEvidence, evidence.encode_to_vec()),
    ]
}

fn other_requests(parts: &Parts) -> Result<Requests, Box<dyn Error>> {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519)?;
    let certificate = rcgen::CertificateParams::default().serialize_request(&key)?;
    let csr_der = certificate.der().to_vec().into();
    let enrol = v1::EnrollRequest { token: parts.run.clone(), csr_der };
    let (role, name) = ("site".to_owned(), parts.run.clone());
    let persons = v1::ListPersonsRequest { role: role.clone() };
    let withdraw = v1::WithdrawInvitationsRequest { role: role.clone(), name: name.clone() };
    let state = v1::SetMemberStateRequest {
        role: role.clone(),
        name: name.clone(),
        state: "suspended".to_owned(),
        reason: "audit".to_owned(),
    };
    let invite = v1::InviteRequest { role, name, ..Default::default() };
    let manifest_toml = || MANIFEST.to_owned();
    let check = v1::CheckRunRequest { manifest_toml: manifest_toml(), wait_ms: 1 };
    let start = v1::StartRunRequest { manifest_toml: manifest_toml(), anyway: true, wait_ms: 1 };
    let (run, reason) = (parts.run.clone(), "enough".to_owned());
    let stop = v1::StopRunRequest { run: run.clone(), reason };
    let resume = v1::ResumeRunRequest { run: run.clone(), reason: "go on".to_owned() };
    let show = v1::ShowRunRequest { run: run.clone() };
    let log = v1::LogRequest { run: run.clone(), from_leaf: 3, follow: true };
    let pull = v1::PullRequest { run, version: Some(1) };
    Ok(vec![
        (Call::EnrolmentEnroll, enrol.encode_to_vec()),
        (Call::OperatorInvite, invite.encode_to_vec()),
        (Call::OperatorListPersons, persons.encode_to_vec()),
        (Call::OperatorSetMemberState, state.encode_to_vec()),
        (Call::OperatorWithdrawInvitations, withdraw.encode_to_vec()),
        (Call::OperatorCheckRun, check.encode_to_vec()),
        (Call::OperatorStartRun, start.encode_to_vec()),
        (Call::OperatorStopRun, stop.encode_to_vec()),
        (Call::OperatorResumeRun, resume.encode_to_vec()),
        (Call::OperatorShowRun, show.encode_to_vec()),
        (Call::OperatorLog, log.encode_to_vec()),
        (Call::OperatorPull, pull.encode_to_vec()),
    ])
}

/// Replies in the order of the target.
fn replies(parts: &Parts) -> Result<Vec<Vec<u8>>, Box<dyn Error>> {
    let assignment = Some(v1::Assignment {
        run: parts.run.clone(),
        round: 1,
        manifest_json: RunManifest::from_toml(MANIFEST)?.to_json().into(),
        base_digest: parts.digest.clone().into(),
        ..v1::Assignment::default()
    });
    let given = v1::NextAssignmentReply { assignment, inquiry: None };
    let submitted = v1::SubmitReply { refusal: parts.refusal.clone() };
    let record_json = parts.leaf.clone().into();
    let inclusion = vec![parts.digest.clone().into()];
    let leaves = vec![v1::ProvenLeaf { leaf: 0, record_json, inclusion }];
    let proven = v1::EvidenceReply { checkpoint: None, leaves };
    Ok(vec![given.encode_to_vec(), submitted.encode_to_vec(), proven.encode_to_vec()])
}

/// The first byte is the message's place in the target's list.
fn wire() -> Done {
    let (held, _) = history()?;
    let leaf = held[0].to_bytes();
    let json = r#"{"code":"policy","reason":"not on Mondays","class":"never"}"#.to_owned();
    let parts = Parts {
        run: "demo".to_owned(),
        digest: Digest::of(b"x").as_bytes().to_vec(),
        refusal: Some(v1::Refusal { json }),
        note: Checkpoint::sign(1, leaf_hash(&leaf), signer()),
        leaf,
    };
    for (choice, message) in (0..REPLIES).zip(replies(&parts)?) {
        keep("wire", &format!("reply-{choice}"), &[&[choice][..], &message].concat())?;
    }
    for (call, message) in [site_requests(&parts), other_requests(&parts)?].concat() {
        let at = Call::ALL.iter().position(|c| *c == call).ok_or("a call of none of all")?;
        let choice = REPLIES + u8::try_from(at)?;
        let name = format!("{call:?}").to_lowercase();
        keep("wire", &name, &[&[choice][..], &message].concat())?;
    }
    keep("wire", "cut", &[REPLIES + 1, 0x1A, 0x7F, 0])
}

fn main() -> Done {
    files()?;
    log()?;
    wire()
}
