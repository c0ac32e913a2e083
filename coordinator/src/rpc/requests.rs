//! What a request's bytes must pass before its handler asks anything of the coordinator.
//!
//! The handlers read field by field, between questions to the store. Here the same readers stand in
//! one function without a store, for the fuzzer (`tests/fuzz`).

use prost::Message;
use tonic::Status;
use tributary_proto::channel::Role;
use tributary_proto::v1;
use tributary_shared::name::{RunName, SiteName};
use tributary_shared::tlog::key::VerifierKey;
use tributary_shared::tlog::recovery::Head;

use super::upload::Subject;
use super::{digest, operator, parse, refusal, site};
use crate::membership::CertificateRequest;

/// The request messages of [`check_request`], by their names in the proto.
pub const REQUESTS: [&str; 15] = [
    "EnrollRequest",
    "HelloRequest",
    "AnswerInquiryRequest",
    "AcceptTermsRequest",
    "DeclineRequest",
    "HeartbeatRequest",
    "FetchRequest",
    "UploadChunk",
    "SubmitRequest",
    "CheckpointRequest",
    "EvidenceRequest",
    "InviteRequest",
    "CheckRunRequest",
    "StopRunRequest",
    "PullRequest",
];

/// Decodes a request message and reads its fields as the call's handler does.
///
/// `message` is one of [`REQUESTS`]; other messages have no field that is parsed. `key` is the log's,
/// for heads that a site shows.
///
/// # Errors
/// The status with which the call ends: `invalid_argument`, with the field's name.
pub fn check_request(message: &str, body: &[u8], key: &VerifierKey) -> Result<(), Status> {
    match message {
        "EnrollRequest" => {
            let wire: v1::EnrollRequest = decode(body)?;
            let read = CertificateRequest::parse(&wire.csr_der);
            read.map(drop).map_err(|e| Status::invalid_argument(format!("csr_der: {e}")))
        }
        "InviteRequest" => {
            let wire: v1::InviteRequest = decode(body)?;
            parse::<Role>("role", &wire.role)?;
            parse::<SiteName>("name", &wire.name).map(drop)
        }
        "CheckRunRequest" => {
            let wire: v1::CheckRunRequest = decode(body)?;
            operator::read_manifest(&wire.manifest_toml).map(drop)
        }
        "StopRunRequest" => {
            let wire: v1::StopRunRequest = decode(body)?;
            parse::<RunName>("run", &wire.run).map(drop)
        }
        "PullRequest" => {
            let wire: v1::PullRequest = decode(body)?;
            parse::<RunName>("run", &wire.run).map(drop)
        }
        of_a_site => check_site_request(of_a_site, body, key),
    }
}

fn check_site_request(message: &str, body: &[u8], key: &VerifierKey) -> Result<(), Status> {
    let run = |text: &str| parse::<RunName>("run", text).map(drop);
    match message {
        "HelloRequest" => {
            let wire: v1::HelloRequest = decode(body)?;
            site::known_rounds(wire.known_rounds).map(drop)
        }
        "AnswerInquiryRequest" => {
            let wire: v1::AnswerInquiryRequest = decode(body)?;
            site::warnings(&wire.warnings);
            wire.refusal.map(|wire| site::shortened(refusal(Some(wire)))).transpose().map(drop)
        }
        "AcceptTermsRequest" => {
            let wire: v1::AcceptTermsRequest = decode(body)?;
            run(&wire.run)?;
            digest("manifest_digest", &wire.manifest_digest)?;
            digest("base_digest", &wire.base_digest).map(drop)
        }
        "DeclineRequest" => {
            let wire: v1::DeclineRequest = decode(body)?;
            run(&wire.run)?;
            site::shortened(refusal(wire.reason)).map(drop)
        }
        "HeartbeatRequest" => run(&decode::<v1::HeartbeatRequest>(body)?.run),
        "FetchRequest" => {
            let wire: v1::FetchRequest = decode(body)?;
            run(&wire.run)?;
            digest("digest", &wire.digest).map(drop)
        }
        "UploadChunk" => {
            let wire: v1::UploadChunk = decode(body)?;
            let site = parse("site", "any")?;
            wire.subject.map(|subject| Subject::read(site, subject)).transpose().map(drop)
        }
        "SubmitRequest" => {
            let wire: v1::SubmitRequest = decode(body)?;
            run(&wire.run)?;
            digest("digest", &wire.digest)?;
            site::read_metrics(&wire.metrics_json).map(drop)
        }
        "CheckpointRequest" => {
            let wire: v1::CheckpointRequest = decode(body)?;
            held(&wire.held_note, key)
        }
        "EvidenceRequest" => {
            let wire: v1::EvidenceRequest = decode(body)?;
            run(&wire.run)?;
            digest("base_digest", &wire.base_digest)?;
            held(&wire.held_note, key)
        }
        other => Err(Status::unimplemented(format!("{other} is none of the requests read here"))),
    }
}

fn held(note: &str, key: &VerifierKey) -> Result<(), Status> {
    if note.is_empty() {
        return Ok(());
    }
    Head::open(note, key).map(drop).map_err(|e| Status::invalid_argument(format!("held_note: {e}")))
}

fn decode<M: Message + Default>(body: &[u8]) -> Result<M, Status> {
    M::decode(body).map_err(|e| Status::invalid_argument(e.to_string()))
}
