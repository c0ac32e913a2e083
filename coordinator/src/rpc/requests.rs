//! What a request's bytes must pass before its handler asks anything of the coordinator.
//!
//! The handlers read field by field, between questions to the store. Here the same readers stand in
//! one place without a store, for the fuzzer (`tests/fuzz`).

use prost::Message;
use tonic::Status;
use tributary_proto::calls::Call;
use tributary_proto::channel::Role;
use tributary_proto::v1;
use tributary_shared::name::{RunName, SiteName};
use tributary_shared::tlog::key::VerifierKey;
use tributary_shared::tlog::recovery::Head;

use super::upload::Subject;
use super::{digest, operator, parse, refusal, site};
use crate::membership::CertificateRequest;

/// Decodes the request message of `call` and reads its fields as the call's handler does.
///
/// Of a call without a field that is parsed, the message is decoded alone. `key` is the log's, for
/// heads that a site shows.
///
/// # Errors
/// The status with which the call ends: `invalid_argument`, with the field's name.
pub fn check_request(call: Call, body: &[u8], key: &VerifierKey) -> Result<(), Status> {
    match call {
        Call::EnrolmentEnroll => certificate(&decode(body)?),
        Call::SiteHello => known_rounds(decode(body)?),
        Call::SiteNextAssignment => decode::<v1::NextAssignmentRequest>(body).map(drop),
        Call::SiteAnswerInquiry => answer(decode(body)?),
        Call::SiteAcceptTerms => terms(&decode(body)?),
        Call::SiteDecline => decline(decode(body)?),
        Call::SiteHeartbeat => run(&decode::<v1::HeartbeatRequest>(body)?.run),
        Call::SiteFetchAdapter => fetch(&decode(body)?),
        Call::SiteUploadStatus => subject(decode(body)?),
        Call::SiteUpload => decode::<v1::UploadChunk>(body)?.subject.map_or(Ok(()), subject),
        Call::SiteSubmit => submission(&decode(body)?),
        Call::SiteCheckpoint => held(&decode::<v1::CheckpointRequest>(body)?.held_note, key),
        Call::SiteEvidence => evidence(&decode(body)?, key),
        Call::OperatorStatus => decode::<v1::StatusRequest>(body).map(drop),
        Call::OperatorInvite => invitation(&decode(body)?),
        Call::OperatorListSites => decode::<v1::ListSitesRequest>(body).map(drop),
        Call::OperatorListPersons => role(&decode::<v1::ListPersonsRequest>(body)?.role),
        Call::OperatorSetMemberState => state(&decode(body)?),
        Call::OperatorWithdrawInvitations => withdrawal(&decode(body)?),
        Call::OperatorCheckRun => manifest(&decode::<v1::CheckRunRequest>(body)?.manifest_toml),
        Call::OperatorStartRun => manifest(&decode::<v1::StartRunRequest>(body)?.manifest_toml),
        Call::OperatorStopRun => run(&decode::<v1::StopRunRequest>(body)?.run),
        Call::OperatorResumeRun => run(&decode::<v1::ResumeRunRequest>(body)?.run),
        Call::OperatorListRuns => decode::<v1::ListRunsRequest>(body).map(drop),
        Call::OperatorShowRun => run(&decode::<v1::ShowRunRequest>(body)?.run),
        Call::OperatorLog => log(&decode(body)?),
        Call::OperatorPull => run(&decode::<v1::PullRequest>(body)?.run),
        Call::OperatorCheckpoint => decode::<v1::CheckpointRequest>(body).map(drop),
        Call::OperatorExport => decode::<v1::ExportRequest>(body).map(drop),
    }
}

fn decode<M: Message + Default>(body: &[u8]) -> Result<M, Status> {
    M::decode(body).map_err(|e| Status::invalid_argument(e.to_string()))
}

fn run(text: &str) -> Result<(), Status> {
    parse::<RunName>("run", text).map(drop)
}

fn role(text: &str) -> Result<(), Status> {
    parse::<Role>("role", text).map(drop)
}

fn member(of: &str, name: &str) -> Result<(), Status> {
    role(of)?;
    parse::<SiteName>("name", name).map(drop)
}

fn manifest(toml: &str) -> Result<(), Status> {
    operator::read_manifest(toml).map(drop)
}

fn held(note: &str, key: &VerifierKey) -> Result<(), Status> {
    if note.is_empty() {
        return Ok(());
    }
    Head::open(note, key).map(drop).map_err(|e| Status::invalid_argument(format!("held_note: {e}")))
}

fn certificate(wire: &v1::EnrollRequest) -> Result<(), Status> {
    let read = CertificateRequest::parse(&wire.csr_der);
    read.map(drop).map_err(|e| Status::invalid_argument(format!("csr_der: {e}")))
}

fn known_rounds(wire: v1::HelloRequest) -> Result<(), Status> {
    site::known_rounds(wire.known_rounds).map(drop)
}

fn answer(wire: v1::AnswerInquiryRequest) -> Result<(), Status> {
    site::warnings(&wire.warnings);
    wire.refusal.map(|wire| site::shortened(refusal(Some(wire)))).transpose().map(drop)
}

fn terms(wire: &v1::AcceptTermsRequest) -> Result<(), Status> {
    run(&wire.run)?;
    digest("manifest_digest", &wire.manifest_digest)?;
    digest("base_digest", &wire.base_digest).map(drop)
}

fn decline(wire: v1::DeclineRequest) -> Result<(), Status> {
    run(&wire.run)?;
    site::shortened(refusal(wire.reason)).map(drop)
}

fn fetch(wire: &v1::FetchRequest) -> Result<(), Status> {
    run(&wire.run)?;
    digest("digest", &wire.digest).map(drop)
}

fn subject(wire: v1::UploadStatusRequest) -> Result<(), Status> {
    Subject::read(parse("site", "any")?, wire).map(drop)
}

fn submission(wire: &v1::SubmitRequest) -> Result<(), Status> {
    run(&wire.run)?;
    digest("digest", &wire.digest)?;
    site::read_metrics(&wire.metrics_json).map(drop)
}

fn evidence(wire: &v1::EvidenceRequest, key: &VerifierKey) -> Result<(), Status> {
    run(&wire.run)?;
    digest("base_digest", &wire.base_digest)?;
    held(&wire.held_note, key)
}

fn invitation(wire: &v1::InviteRequest) -> Result<(), Status> {
    member(&wire.role, &wire.name)
}

fn withdrawal(wire: &v1::WithdrawInvitationsRequest) -> Result<(), Status> {
    member(&wire.role, &wire.name)
}

fn state(wire: &v1::SetMemberStateRequest) -> Result<(), Status> {
    member(&wire.role, &wire.name)?;
    operator::member_state(&wire.state).map(drop)
}

fn log(wire: &v1::LogRequest) -> Result<(), Status> {
    match wire.run.as_str() {
        "" => Ok(()),
        name => run(name),
    }
}
