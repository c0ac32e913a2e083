//! Checks of the coordinator's replies, as the site makes them before it acts.
//!
//! The site reads field by field, between its ledger, its disk and the next call. Here the same
//! readers stand in one place without any of these, for the fuzzer (`tests/fuzz`).

use prost::Message;
use tributary_proto::calls::Call;
use tributary_proto::channel::{StartupKit, check_enrolment};
use tributary_proto::convert::verdict;
use tributary_proto::v1;
use tributary_shared::manifest::RunManifest;
use tributary_shared::name::RunName;
use tributary_shared::outcome::chain;
use tributary_shared::refusal::Refusal;
use tributary_shared::tlog::key::VerifierKey;
use tributary_shared::tlog::witness::Witness;

use super::adapters::BaseCheck;
use super::deliver::reason_failed;
use super::recovery::Trust;
use super::round::cases_changed;
use super::terms::{self, Asked, Before};
use super::{addresses, disclosure, evidence, lease, session, suspended, witness};
use crate::clock;
use crate::config::policy::{Done, Policy};
use crate::trainer;

/// State of a site when a reply comes.
#[derive(Clone, Debug)]
pub struct AtHand {
    /// The kit that it enrols with; names the site and the root.
    pub kit: StartupKit,
    /// Subject public key info, DER, of the key that it enrols with.
    pub public_key: Vec<u8>,
    /// The log's key.
    pub log: VerifierKey,
    /// The head of the history that it has seen last.
    pub witness: Witness,
    /// The round that it asks for proof of, and fetches the base of.
    pub assignment: v1::Assignment,
    /// Its policy.
    pub policy: Policy,
    /// Its training cases.
    pub cases: u64,
}

/// Decodes the reply to `call` and reads its fields as a site does that has `held`.
///
/// Of a reply without a field that is parsed, the message is decoded alone.
///
/// # Errors
/// The reason for which the site refuses the reply; for a call that a site does not make, that.
pub fn check_reply(call: Call, body: &[u8], held: &AtHand) -> Result<(), String> {
    match call {
        Call::EnrolmentEnroll => {
            let read = check_enrolment(&held.kit, &held.public_key, &decode(body)?);
            read.map(drop).map_err(|e| chain(&e))
        }
        Call::SiteHello => greeting(&decode(body)?, held),
        Call::SiteNextAssignment => work(decode(body)?, held),
        Call::SiteAnswerInquiry => decode::<v1::AnswerInquiryReply>(body).map(drop),
        Call::SiteAcceptTerms => accepted(decode(body)?),
        Call::SiteDecline => told(decode::<v1::DeclineReply>(body)?.refusal),
        Call::SiteHeartbeat => lease::reason_to_stop(&decode(body)?).map_or(Ok(()), Err),
        Call::SiteFetchAdapter => adapter(&decode(body)?, held),
        Call::SiteUploadStatus => told(decode::<v1::UploadStatusReply>(body)?.refusal),
        Call::SiteUpload => told(decode::<v1::UploadReply>(body)?.refusal),
        Call::SiteSubmit => told(decode::<v1::SubmitReply>(body)?.refusal),
        Call::SiteCheckpoint => follow(&decode(body)?, held).map(drop),
        Call::SiteEvidence => proof(&decode(body)?, held),
        Call::OperatorStatus
        | Call::OperatorInvite
        | Call::OperatorListSites
        | Call::OperatorListPersons
        | Call::OperatorSetMemberState
        | Call::OperatorWithdrawInvitations
        | Call::OperatorCheckRun
        | Call::OperatorStartRun
        | Call::OperatorStopRun
        | Call::OperatorResumeRun
        | Call::OperatorListRuns
        | Call::OperatorShowRun
        | Call::OperatorLog
        | Call::OperatorPull
        | Call::OperatorCheckpoint
        | Call::OperatorExport => Err("a site does not make this call".to_owned()),
    }
}

fn decode<M: Message + Default>(body: &[u8]) -> Result<M, String> {
    M::decode(body).map_err(|e| e.to_string())
}

fn words(refusal: &Refusal) -> String {
    reason_failed(refusal.to_string()).to_string()
}

fn told(refusal: Option<v1::Refusal>) -> Result<(), String> {
    verdict(refusal).map_err(|refusal| words(&refusal))
}

fn accepted(reply: v1::AcceptTermsReply) -> Result<(), String> {
    verdict(reply.refusal)
        .map_err(|refusal| cases_changed(&refusal).unwrap_or_else(|| words(&refusal)))
}

fn greeting(reply: &v1::HelloReply, held: &AtHand) -> Result<(), String> {
    session::clock_trouble(reply.now_ms);
    if reply.log_verifier_key != held.log.to_string() {
        return Err("another log key".to_owned());
    }
    if reply.suspended {
        return Err(suspended(&reply.suspend_reason).to_string());
    }
    match addresses::is_good(&reply.address) {
        true => Ok(()),
        false => Err("the announced address is none".to_owned()),
    }
}

fn work(reply: v1::NextAssignmentReply, held: &AtHand) -> Result<(), String> {
    match (reply.assignment, reply.inquiry) {
        (Some(assignment), _) => {
            let asked = asked(&assignment)?;
            judge(&asked.manifest, asked.terms.cohort_size, held)
        }
        (None, Some(inquiry)) => {
            let run: RunName = inquiry.run.parse().map_err(|e| format!("run: {e}"))?;
            let manifest = terms::read_manifest(&run, &inquiry.manifest_json, None);
            judge(&manifest.map_err(|e| words(&e))?, inquiry.cohort_size, held)
        }
        (None, None) => Ok(()),
    }
}

fn asked(assignment: &v1::Assignment) -> Result<Asked, String> {
    let id = terms::round_of(assignment).ok_or("names no round")?;
    terms::check(&id, assignment, Before::default()).map_err(|refusal| words(&refusal))
}

fn judge(manifest: &RunManifest, cohort_size: u32, held: &AtHand) -> Result<(), String> {
    trainer::warmup_outlasts(manifest, disclosure::count(held.cases));
    let judged = held.policy.judge(manifest, cohort_size, Done::default(), clock::now());
    judged.map_err(|no| no.refusal().to_string())
}

/// The whole of the base, in two pieces.
fn adapter(chunk: &v1::Chunk, held: &AtHand) -> Result<(), String> {
    let Asked { terms, contract, .. } = asked(&held.assignment)?;
    let mut check = BaseCheck::new(&terms.run, terms.round, &contract);
    let (one, two) = chunk.data.split_at(chunk.data.len() / 2);
    let pushed = check.push(one).and_then(|()| check.push(two));
    let found = pushed.and_then(|()| check.finish()).map_err(|refusal| words(&refusal))?;
    if found == terms.base { Ok(()) } else { Err("another adapter than the terms name".to_owned()) }
}

/// The witness after the reply; where the log does not continue, whether a statement explains it.
fn follow(reply: &v1::CheckpointReply, held: &AtHand) -> Result<Witness, String> {
    let trust = Trust { key: held.log.clone(), root: held.kit.root_fingerprint };
    witness::advanced(&held.witness, reply).or_else(|broken| {
        let seen = held.witness.checkpoint();
        seen.and_then(|seen| trust.explanation(seen, &reply.recoveries_json).ok())
            .map(|_| held.witness.clone())
            .ok_or_else(|| broken.to_string())
    })
}

fn proof(reply: &v1::EvidenceReply, held: &AtHand) -> Result<(), String> {
    let followed = follow(&reply.checkpoint.clone().unwrap_or_default(), held)?;
    let head = followed.checkpoint().ok_or("the history has no checkpoint")?;
    evidence::check(&reply.leaves, head, &asked(&held.assignment)?, &held.kit.member.name)
}
