//! Messages of the wire: every request, and replies to a site.

use std::error::Error;
use std::time::Duration;

use prost::Message;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};
use tributary_fuzz::{
    HELD_LEAVES, MANIFEST, SITE_SEED, Spoken, assignment, base, signed_head, signer, spoken,
};
use tributary_proto::calls::Call;
use tributary_proto::channel::{Identity, sign_recovery};
use tributary_proto::v1;
use tributary_shared::digest::Digest;
use tributary_shared::manifest::RunManifest;
use tributary_shared::timestamp::Timestamp;
use tributary_shared::tlog::checkpoint::Checkpoint;
use tributary_shared::tlog::frontier::Frontier;
use tributary_shared::tlog::merkle::leaf_hash;
use tributary_shared::tlog::recovery::{Draft, Head, RECOVERY_SCHEMA, Statement};

use super::{Done, history, keep};

type Made<T> = Result<T, Box<dyn Error>>;
/// Messages by their calls.
type Messages = Vec<(Call, Vec<u8>)>;

/// Values that several messages hold.
struct Parts {
    run: String,
    digest: Vec<u8>,
    refusal: Option<v1::Refusal>,
    note: String,
}

fn site_requests(parts: &Parts) -> Messages {
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

fn other_requests(parts: &Parts) -> Made<Messages> {
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

/// Before the seed of an Ed25519 key in PKCS #8.
const ED25519_KEY: [u8; 16] =
    [0x30, 0x2E, 2, 1, 0, 0x30, 5, 6, 3, 0x2B, 0x65, 0x70, 4, 0x22, 4, 0x20];

fn ed25519(seed: [u8; 32]) -> Made<KeyPair> {
    Ok(KeyPair::try_from([&ED25519_KEY[..], &seed].concat())?)
}

/// The authority of consortium `demo`.
struct Root {
    der: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
}

fn named(uri: &str) -> Made<CertificateParams> {
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(uri.try_into()?)];
    Ok(params)
}

impl Root {
    fn new() -> Made<Self> {
        let mut params = named("tributary://demo")?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = ed25519([8; 32])?;
        let der = params.self_signed(&key)?.der().to_vec();
        Ok(Self { der, issuer: Issuer::new(params, key) })
    }

    fn certificate(&self, member: &str, key: &KeyPair) -> Made<Vec<u8>> {
        let mut params = named(&format!("tributary://demo/{member}"))?;
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        Ok(params.signed_by(key, &self.issuer)?.der().to_vec())
    }
}

/// The statement that the head which the site holds was lost, down to one leaf.
fn recovery(root: &Root) -> Made<String> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let log = signer().verifier_key();
    let leaves: Vec<String> = (0..HELD_LEAVES).map(|leaf| leaf.to_string()).collect();
    let leaves: Vec<&[u8]> = leaves.iter().map(String::as_bytes).collect();
    let statement = Statement {
        schema: RECOVERY_SCHEMA,
        log: log.clone(),
        consortium: "demo".parse()?,
        lost: vec![Head::open(&signed_head(&leaves), &log)?],
        kept: Head::open(&signed_head(&leaves[..1]), &log)?,
        at: Timestamp::from_millis(0).plus(Duration::from_secs(1_800_000_000)),
        reason: "restored".to_owned(),
        operator: "operator/o".to_owned(),
    };
    let identity = Identity {
        consortium: "demo".parse()?,
        member: "operator/o".parse()?,
        address: "coordinator.example:7443".to_owned(),
        log_verifier_key: log.to_string(),
        certificate: root.certificate("operator/o", &key)?.into(),
        root: root.der.clone().into(),
        key_pem: key.serialize_pem(),
    };
    Ok(sign_recovery(Draft::sign(statement, signer()), &identity)?.to_json())
}

/// The leaves that prove the round: the run's start, its first version, the round's opening.
fn proof() -> Made<Vec<v1::ProvenLeaf>> {
    let manifest = RunManifest::from_toml(MANIFEST)?.digest();
    let (initial, base) = (Digest::of(b"version 0"), Digest::of(&base()));
    let events = [
        serde_json::json!({ "type": "run_started", "manifest_digest": manifest, "adapter": initial }),
        serde_json::json!({ "type": "adapter_published", "version": 1, "adapter": base }),
        serde_json::json!({
            "type": "round_opened", "round": 2, "base": base, "deadline": 9, "cohort": ["a"],
            "passed_over": [{ "site": "c", "reason": "away" }],
        }),
    ];
    let leaf = |event| {
        let record = serde_json::json!({ "stream": "run/demo", "event": event }).to_string();
        v1::ProvenLeaf { record_json: record.into_bytes().into(), ..Default::default() }
    };
    Ok(events.map(leaf).into())
}

fn replies(parts: &Parts) -> Made<Messages> {
    let root = Root::new()?;
    let enrolled = v1::EnrollReply {
        certificate_der: root.certificate("site/a", &ed25519(SITE_SEED)?)?.into(),
        root_der: root.der.clone().into(),
        member: "site/a".to_owned(),
        log_verifier_key: signer().verifier_key().to_string(),
    };
    let hello = v1::HelloReply {
        now_ms: 1,
        log_verifier_key: signer().verifier_key().to_string(),
        address: "coordinator.example:7443".to_owned(),
        ..Default::default()
    };
    let given = v1::NextAssignmentReply { assignment: Some(assignment()), inquiry: None };
    let refusal = || parts.refusal.clone();
    let changed = r#"{"code":"wrong","field":"cases","expected":"9","found":"8"}"#.to_owned();
    let accepted = v1::AcceptTermsReply { refusal: Some(v1::Refusal { json: changed }) };
    let recoveries_json = vec![recovery(&root)?.into_bytes().into()];
    let rewritten =
        v1::CheckpointReply { note: parts.note.clone(), recoveries_json, ..Default::default() };
    let proven = v1::EvidenceReply { checkpoint: None, leaves: proof()? };
    let stopped = v1::HeartbeatReply { stop_reason: "over".to_owned() };
    let upload = v1::UploadReply { durable_offset: 9, refusal: None };
    let status = v1::UploadStatusReply { durable_offset: 9, refusal: refusal() };
    Ok(vec![
        (Call::EnrolmentEnroll, enrolled.encode_to_vec()),
        (Call::SiteHello, hello.encode_to_vec()),
        (Call::SiteNextAssignment, given.encode_to_vec()),
        (Call::SiteAcceptTerms, accepted.encode_to_vec()),
        (Call::SiteDecline, v1::DeclineReply { refusal: refusal() }.encode_to_vec()),
        (Call::SiteHeartbeat, stopped.encode_to_vec()),
        (Call::SiteFetchAdapter, v1::Chunk { data: base().into() }.encode_to_vec()),
        (Call::SiteUploadStatus, status.encode_to_vec()),
        (Call::SiteUpload, upload.encode_to_vec()),
        (Call::SiteSubmit, v1::SubmitReply { refusal: refusal() }.encode_to_vec()),
        (Call::SiteCheckpoint, rewritten.encode_to_vec()),
        (Call::SiteEvidence, proven.encode_to_vec()),
    ])
}

/// Replies of a kind that is there already.
fn other_replies() -> Made<Vec<(&'static str, Call, Vec<u8>)>> {
    let asked = v1::Inquiry {
        id: "1".to_owned(),
        run: "demo".to_owned(),
        manifest_json: assignment().manifest_json,
        cohort_size: 2,
        is_check: true,
    };
    let asked = v1::NextAssignmentReply { assignment: None, inquiry: Some(asked) };
    let mut log = Frontier::new();
    let hashes: Vec<Digest> = ["0", "1", "2", "3"].map(|leaf| leaf_hash(leaf.as_bytes())).into();
    hashes.iter().for_each(|hash| drop(log.append(*hash)));
    // RFC 6962, 2.1.2: from three leaves to four.
    let left = tributary_shared::tlog::merkle::node_hash(hashes[0], hashes[1]);
    let consistency = [hashes[2], hashes[3], left].map(|hash| hash.as_bytes().to_vec().into());
    let note = Checkpoint::sign(log.size(), log.root(), signer());
    let grown = v1::CheckpointReply { note, consistency: consistency.into(), ..Default::default() };
    let suspended = v1::HelloReply {
        log_verifier_key: signer().verifier_key().to_string(),
        suspended: true,
        suspend_reason: "audit".to_owned(),
        ..Default::default()
    };
    Ok(vec![
        ("inquiry", Call::SiteNextAssignment, asked.encode_to_vec()),
        ("grown", Call::SiteCheckpoint, grown.encode_to_vec()),
        ("suspended", Call::SiteHello, suspended.encode_to_vec()),
    ])
}

/// The bytes of the target: the message's place in its list, and the message.
fn input(message: Spoken, body: &[u8]) -> Made<Vec<u8>> {
    let place = spoken().position(|known| known == message).ok_or("a message of none of all")?;
    Ok([&[u8::try_from(place)?][..], body].concat())
}

/// Writes all of them.
pub(super) fn write() -> Done {
    let (held, _) = history()?;
    let leaf = held[0].to_bytes();
    let json = r#"{"code":"policy","reason":"not on Mondays","class":"never"}"#.to_owned();
    let parts = Parts {
        run: "demo".to_owned(),
        digest: Digest::of(b"x").as_bytes().to_vec(),
        refusal: Some(v1::Refusal { json }),
        note: Checkpoint::sign(1, leaf_hash(&leaf), signer()),
    };
    for (call, body) in [site_requests(&parts), other_requests(&parts)?].concat() {
        let name = format!("{call:?}").to_lowercase();
        keep("wire", &name, &input(Spoken::Request(call), &body)?)?;
    }
    for (call, body) in replies(&parts)? {
        let name = format!("reply-{call:?}").to_lowercase();
        keep("wire", &name, &input(Spoken::Reply(call), &body)?)?;
    }
    for (name, call, body) in other_replies()? {
        keep("wire", &format!("reply-{name}"), &input(Spoken::Reply(call), &body)?)?;
    }
    keep("wire", "cut", &input(Spoken::Request(Call::SiteHello), &[0x1A, 0x7F, 0])?)
}
