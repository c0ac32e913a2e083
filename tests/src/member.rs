//! A site by hand: the wire's calls under a real certificate, so that a test can say whatever a
//! hostile site could.

use std::path::Path;

use tokio_stream::iter;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tributary_proto::channel::{CHUNK_BYTES, ConnectOptions, Identity, connect};
use tributary_proto::convert::{refusal, verdict};
use tributary_proto::v1::{self, site_client::SiteClient};
use tributary_shared::contract::AdapterContract;
use tributary_shared::digest::Digest;
use tributary_shared::manifest::RunManifest;
use tributary_shared::name::SiteName;
use tributary_shared::refusal::{Refusal, RefusalClass};
use tributary_shared::tensors::{Header, Subject, encode};

/// A connected site.
pub struct Member {
    /// Its name.
    pub name: SiteName,
    /// Its calls.
    pub calls: SiteClient<Channel>,
}

/// A round that a site is asked to work on.
#[derive(Clone)]
pub struct Round {
    /// As it came.
    pub wire: v1::Assignment,
    /// Its manifest.
    pub manifest: RunManifest,
    /// The contract the manifest implies.
    pub contract: AdapterContract,
    /// The adapter to start from.
    pub base: Digest,
}

impl Member {
    /// Connects with the identity in a site's `folder`.
    pub async fn connect(folder: &Path, address: &str) -> Self {
        let identity = Identity::load(&folder.join("identity")).expect("the site is enrolled");
        let channel = connect(address, &identity, &ConnectOptions::default()).await;
        let name = identity.member.name.clone();
        Self { name, calls: SiteClient::new(channel.expect("the coordinator answers")) }
    }

    /// Waits for a round and agrees to its terms with `cases`.
    pub async fn join(&mut self, cases: u64) -> Round {
        let request = v1::NextAssignmentRequest { wait_ms: 60_000, ..Default::default() };
        let reply = self.calls.next_assignment(request).await.expect("a wait").into_inner();
        let wire = reply.assignment.expect("a round opens within the wait");
        let manifest = RunManifest::from_json(&wire.manifest_json).expect("a manifest");
        let base = Digest::try_from(&wire.base_digest[..]).expect("a digest");
        let contract = manifest.contract().expect("a checked manifest has a contract");
        let round = Round { wire, manifest, contract, base };
        self.accept(&round, cases).await.expect("the terms can be accepted");
        round
    }

    /// Agrees to the terms of `round` with `cases`, perhaps once more.
    pub async fn accept(&mut self, round: &Round, cases: u64) -> Result<(), Refusal> {
        let request = v1::AcceptTermsRequest {
            run: round.wire.run.clone(),
            round: round.wire.round,
            manifest_digest: round.manifest.digest().as_bytes().to_vec().into(),
            base_digest: round.wire.base_digest.clone(),
            cases,
        };
        let reply = self.calls.accept_terms(request).await.expect("an answer").into_inner();
        verdict(reply.refusal)
    }

    /// Says no to `round`, for its rest.
    pub async fn decline(&mut self, round: &Round) {
        self.try_decline(round).await.expect("a site may say no");
    }

    /// Says no to `round`; the refusal of that, if there is one.
    pub async fn try_decline(&mut self, round: &Round) -> Result<(), Refusal> {
        let reason = Refusal::Policy { reason: "no".to_owned(), class: RefusalClass::Never };
        let request = v1::DeclineRequest {
            run: round.wire.run.clone(),
            round: round.wire.round,
            reason: Some((&reason).into()),
        };
        let reply = self.calls.decline(request).await.expect("an answer").into_inner();
        verdict(reply.refusal)
    }

    /// The header that an honest delta has.
    pub fn header(&self, round: &Round, cases: u64) -> Header {
        let subject = Subject::Delta {
            run: round.manifest.name.clone(),
            round: round.wire.round,
            site: self.name.clone(),
            base: round.base,
            cases,
        };
        Header::new(subject, round.contract.digest(), &round.contract.layout)
    }

    /// An honest delta: `value` everywhere.
    pub fn delta(&self, round: &Round, cases: u64, value: f32) -> Vec<u8> {
        filled(&self.header(round, cases), value)
    }

    /// What an upload of `bytes` announces.
    pub fn subject(&self, round: &Round, cases: u64, bytes: &[u8]) -> v1::UploadStatusRequest {
        v1::UploadStatusRequest {
            run: round.wire.run.clone(),
            round: round.wire.round,
            digest: Digest::of(bytes).as_bytes().to_vec().into(),
            cases,
            bytes: bytes.len() as u64,
        }
    }

    /// Uploads `bytes` under `subject`; the refusal, if there is one.
    pub async fn upload(
        &mut self,
        subject: &v1::UploadStatusRequest,
        bytes: &[u8],
    ) -> Result<Result<u64, Refusal>, Status> {
        let mut chunks: Vec<v1::UploadChunk> = Vec::new();
        for (index, piece) in bytes.chunks(CHUNK_BYTES).enumerate() {
            chunks.push(v1::UploadChunk {
                subject: (index == 0).then(|| subject.clone()),
                offset: (index * CHUNK_BYTES) as u64,
                data: piece.to_vec().into(),
            });
        }
        let reply = self.calls.upload(iter(chunks)).await?.into_inner();
        Ok(match reply.refusal {
            None => Ok(reply.durable_offset),
            Some(wire) => Err(refusal(&wire)),
        })
    }

    /// Submits what was uploaded.
    pub async fn submit(&mut self, subject: &v1::UploadStatusRequest) -> Result<(), Refusal> {
        let reply = self.try_submit(subject).await.expect("an answer");
        verdict(reply.refusal)
    }

    /// Submits; the status where there is no answer.
    pub async fn try_submit(
        &mut self,
        subject: &v1::UploadStatusRequest,
    ) -> Result<v1::SubmitReply, Status> {
        let request = v1::SubmitRequest {
            run: subject.run.clone(),
            round: subject.round,
            digest: subject.digest.clone(),
            cases: subject.cases,
            metrics_json: "{\"steps\":1}".to_owned(),
        };
        Ok(self.calls.submit(request).await?.into_inner())
    }

    /// Uploads and submits an honest delta.
    pub async fn contribute(&mut self, round: &Round, cases: u64, value: f32) -> Digest {
        let bytes = self.delta(round, cases, value);
        let subject = self.subject(round, cases, &bytes);
        self.upload(&subject, &bytes).await.expect("an answer").expect("an honest delta");
        self.submit(&subject).await.expect("an honest delta counts");
        Digest::of(&bytes)
    }
}

/// Canonical bytes of `header` with `value` everywhere.
pub fn filled(header: &Header, value: f32) -> Vec<u8> {
    let values: Vec<Vec<f32>> =
        header.tensors.iter().map(|spec| vec![value; spec.elements()]).collect();
    encode(header, &values)
}

/// The code of a call that must have failed.
pub fn code<T: std::fmt::Debug>(result: Result<T, Status>) -> Code {
    result.expect_err("this call must fail").code()
}
