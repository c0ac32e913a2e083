//! What a site calls.

use std::pin::Pin;
use std::time::Duration;

use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};
use tributary_proto::channel::{Peer, Role, SESSION, require};
use tributary_proto::v1::{self, site_server::Site};
use tributary_shared::name::{RunName, SiteName};
use tributary_shared::refusal::Refusal;
use tributary_shared::terms::SiteMetrics;
use tributary_shared::text::{REASON_CHARS_MAX, printable_start};

use super::budget::Budget;
use super::{Services, answer, digest, evidence, history, parse, refusal, status, unknown, upload};
use crate::clock;
use crate::driver::inquiries::{Answer, Delivery};
use crate::driver::{DriverError, KnownRound, Standing};
use crate::round::Command;
use crate::round::event::RegistryEvent;
use crate::round::lease::Progress;

/// Longest wait for an assignment that a site may ask for.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// Longest metrics read, bytes.
const METRICS_BYTES_MAX: usize = 4 * 1024;
/// Most rounds that a site may say its ledger holds.
const KNOWN_ROUNDS_MAX: usize = 1_000;
/// Longest phase kept of a heartbeat, characters.
const PHASE_CHARS_MAX: usize = 40;
/// Most warnings kept of one answer, and their length, characters.
const WARNINGS_MAX: usize = 16;
const WARNING_CHARS_MAX: usize = 40;

/// The service behind a site's certificate.
pub struct SiteService(Services, Budget);

impl SiteService {
    /// The service over `services`.
    pub fn new(services: Services) -> Self {
        Self(services, Budget::default())
    }

    /// The site behind a request, when it may take part.
    async fn site<T: Sync>(&self, request: &Request<T>) -> Result<SiteName, Status> {
        let peer = self.seen(request).await?;
        match self.0.driver.members().standing(&peer) {
            Standing::Active => {
                self.unshared(&peer.member.name)?;
                self.0.driver.heard(&peer.member.name).await;
                Ok(peer.member.name)
            }
            Standing::Suspended | Standing::Unknown => {
                Err(Status::permission_denied(Refusal::Suspended.to_string()))
            }
        }
    }

    /// The operator's words of the newest suspension, from the history.
    async fn suspend_reason(&self, peer: &Peer) -> Result<String, Status> {
        let name = peer.member.to_string();
        let of_peer = |event: &RegistryEvent| {
            let RegistryEvent::Suspended { member, reason, .. } = event else { return None };
            (*member == name).then(|| reason.clone())
        };
        let found = self.0.driver.store().newest_of_registry(of_peer).await;
        Ok(found.map_err(|e| status(DriverError::Store(e)))?.unwrap_or_default())
    }

    /// The peer behind a request, in its turn and noted as seen now.
    async fn seen<T: Sync>(&self, request: &Request<T>) -> Result<Peer, Status> {
        let peer = require(request, &[Role::Site])?.clone();
        self.1.spend(&peer.member.name).await?;
        let now = clock::now();
        self.0.driver.store().touch_seen(&peer.member, now);
        let nonce = request.metadata().get(SESSION).and_then(|value| value.to_str().ok());
        self.0.driver.presence().session(&peer.member.name, nonce, now);
        Ok(peer)
    }

    /// Refuses work to an identity that two programs use.
    fn unshared(&self, site: &SiteName) -> Result<(), Status> {
        if !self.0.driver.presence().is_shared(site, clock::now()) {
            return Ok(());
        }
        Err(Status::failed_precondition(format!(
            "two programs use the identity of site/{site} at the same time, perhaps from a copied \
             directory; neither gets work until one of them is stopped"
        )))
    }
}

type ChunkStream = Pin<Box<dyn Stream<Item = Result<v1::Chunk, Status>> + Send>>;

#[tonic::async_trait]
impl Site for SiteService {
    async fn hello(
        &self,
        request: Request<v1::HelloRequest>,
    ) -> Result<Response<v1::HelloReply>, Status> {
        let peer = self.seen(&request).await?;
        // A program that only looks, such as the site's doctor, knows nothing of its trouble.
        let takes_part = request.metadata().contains_key(SESSION);
        let (site, now) = (&peer.member.name, clock::now());
        let v1::HelloRequest { client_version, trouble, known_rounds: known } =
            request.into_inner();
        let presence = self.0.driver.presence();
        presence.hello(site, &client_version);
        if takes_part {
            presence.trouble(site, &trouble, now);
        }
        let suspended = self.0.driver.members().standing(&peer) == Standing::Suspended;
        let suspend_reason = match suspended {
            true => self.suspend_reason(&peer).await?,
            false => String::new(),
        };
        let known = known_rounds(known)?;
        if !suspended {
            self.0.driver.recall(&peer.member.name, known).await.map_err(status)?;
        }
        Ok(Response::new(v1::HelloReply {
            member: peer.member.to_string(),
            coordinator_version: env!("CARGO_PKG_VERSION").to_owned(),
            now_ms: clock::now().as_millis(),
            suspended,
            suspend_reason,
            log_verifier_key: self.0.heads.signer().verifier_key().to_string(),
            address: self.0.announced.clone().unwrap_or_default(),
            shared_identity: presence.is_shared(site, now),
        }))
    }

    async fn next_assignment(
        &self,
        request: Request<v1::NextAssignmentRequest>,
    ) -> Result<Response<v1::NextAssignmentReply>, Status> {
        let site = self.site(&request).await?;
        let request = request.into_inner();
        let wait = Duration::from_millis(u64::from(request.wait_ms)).min(WAIT_MAX);
        let busy = (!request.busy_run.is_empty())
            .then_some((request.busy_run.as_str(), request.busy_round));
        let driver = &self.0.driver;
        driver.presence().trouble(&site, &request.trouble, clock::now());
        let mut changes = driver.changes();
        let deadline = tokio::time::Instant::now() + wait;
        let found = loop {
            changes.mark_unchanged();
            self.unshared(&site)?;
            if let Some(found) = driver.assignment(&site, busy).await {
                break Some(found);
            }
            let due = match driver.next_inquiry(&site, tokio::time::Instant::now()).await {
                Ok(delivery) => {
                    let inquiry = Some(inquiry(delivery));
                    return Ok(Response::new(v1::NextAssignmentReply {
                        assignment: None,
                        inquiry,
                    }));
                }
                Err(due) => due.filter(|due| *due < deadline),
            };
            tokio::select! {
                _ = changes.changed() => {}
                () = tokio::time::sleep_until(due.unwrap_or(deadline)) => {
                    if due.is_none() {
                        break None;
                    }
                }
                () = driver.stopping().cancelled() => break None,
            }
        };
        let Some((terms, manifest)) = found else {
            return Ok(Response::new(v1::NextAssignmentReply::default()));
        };
        let base_bytes = driver
            .blobs()
            .size(terms.base)
            .await
            .map_err(DriverError::io("reading the adapter"))
            .map_err(status)?;
        let assignment = v1::Assignment {
            run: terms.run.to_string(),
            round: terms.round,
            manifest_json: manifest.to_json().into(),
            base_digest: terms.base.as_bytes().to_vec().into(),
            base_bytes,
            cohort_size: terms.cohort_size,
            deadline_ms: terms.deadline.as_millis(),
        };
        let assignment = Some(assignment);
        Ok(Response::new(v1::NextAssignmentReply { assignment, inquiry: None }))
    }

    async fn answer_inquiry(
        &self,
        request: Request<v1::AnswerInquiryRequest>,
    ) -> Result<Response<v1::AnswerInquiryReply>, Status> {
        let site = self.site(&request).await?;
        let request = request.into_inner();
        let refused = request.refusal.map(|wire| shortened(refusal(Some(wire)))).transpose()?;
        let answer = Answer { refusal: refused, warnings: warnings(&request.warnings) };
        self.0.driver.answer_inquiry(&site, &request.id, answer).await.map_err(status)?;
        Ok(Response::new(v1::AnswerInquiryReply {}))
    }

    async fn accept_terms(
        &self,
        request: Request<v1::AcceptTermsRequest>,
    ) -> Result<Response<v1::AcceptTermsReply>, Status> {
        let site = self.site(&request).await?;
        let request = request.into_inner();
        let run = self.0.driver.run(&parse("run", &request.run)?).await.map_err(status)?;
        run.touch(&site, clock::now());
        let command = Command::AcceptTerms {
            site,
            round: request.round,
            manifest: digest("manifest_digest", &request.manifest_digest)?,
            base: digest("base_digest", &request.base_digest)?,
            cases: request.cases,
        };
        let refusal = answer(run.command(&self.0.driver, command).await)?;
        Ok(Response::new(v1::AcceptTermsReply { refusal }))
    }

    async fn decline(
        &self,
        request: Request<v1::DeclineRequest>,
    ) -> Result<Response<v1::DeclineReply>, Status> {
        let site = self.site(&request).await?;
        let request = request.into_inner();
        let run = self.0.driver.run(&parse("run", &request.run)?).await.map_err(status)?;
        let reason = shortened(refusal(request.reason))?;
        let command = Command::Decline { site, round: request.round, reason };
        let refusal = answer(run.command(&self.0.driver, command).await)?;
        Ok(Response::new(v1::DeclineReply { refusal }))
    }

    async fn heartbeat(
        &self,
        request: Request<v1::HeartbeatRequest>,
    ) -> Result<Response<v1::HeartbeatReply>, Status> {
        let site = self.site(&request).await?;
        let request = request.into_inner();
        let run: RunName = parse("run", &request.run)?;
        let progress = Progress {
            phase: printable_start(&request.phase, PHASE_CHARS_MAX),
            step: request.step,
            steps: request.steps,
            eta_s: request.eta_s,
        };
        let beat = self.0.driver.heartbeat(&site, &run, request.round, progress).await;
        let stop_reason = match beat {
            Err(DriverError::UnknownRun(run)) => unknown(&run).to_string(),
            beat => beat.map_err(status)?.unwrap_or_default(),
        };
        Ok(Response::new(v1::HeartbeatReply { stop_reason }))
    }

    type FetchAdapterStream = ChunkStream;

    async fn fetch_adapter(
        &self,
        request: Request<v1::FetchRequest>,
    ) -> Result<Response<ChunkStream>, Status> {
        let site = self.site(&request).await?;
        let request = request.into_inner();
        let run = self.0.driver.run(&parse("run", &request.run)?).await.map_err(status)?;
        let wanted = digest("digest", &request.digest)?;
        if !run.read(|run| run.may_ask(&site)) {
            let text = format!("run {} does not ask site {site}", run.name());
            return Err(Status::permission_denied(text));
        }
        // Only what the run published: a delta is nobody's to fetch.
        if !run.read(|run| run.adapters().contains(&wanted)) {
            return Err(Status::not_found(format!("{wanted} is no adapter of run {}", run.name())));
        }
        let chunks = history::blob_pieces(self.0.driver.blobs(), wanted, request.offset);
        let stream = chunks.map(|piece| piece.map(|data| v1::Chunk { data }));
        Ok(Response::new(Box::pin(stream)))
    }

    async fn upload_status(
        &self,
        request: Request<v1::UploadStatusRequest>,
    ) -> Result<Response<v1::UploadStatusReply>, Status> {
        let site = self.site(&request).await?;
        let subject = upload::Subject::read(site, request.into_inner())?;
        let (durable_offset, refusal) =
            upload::durable_offset(&self.0.driver, &self.0.turns, &subject).await?;
        Ok(Response::new(v1::UploadStatusReply { durable_offset, refusal }))
    }

    async fn upload(
        &self,
        request: Request<Streaming<v1::UploadChunk>>,
    ) -> Result<Response<v1::UploadReply>, Status> {
        let site = self.site(&request).await?;
        let received =
            upload::receive(&self.0.driver, &self.0.turns, site, request.into_inner()).await?;
        let (durable_offset, refusal) = received;
        Ok(Response::new(v1::UploadReply { durable_offset, refusal }))
    }

    async fn submit(
        &self,
        request: Request<v1::SubmitRequest>,
    ) -> Result<Response<v1::SubmitReply>, Status> {
        let site = self.site(&request).await?;
        let request = request.into_inner();
        let run: RunName = parse("run", &request.run)?;
        let delta = digest("digest", &request.digest)?;
        let metrics = read_metrics(&request.metrics_json)?;
        let driver = &self.0.driver;
        let verdict =
            driver.submit(&site, &run, request.round, delta, request.cases, metrics).await;
        Ok(Response::new(v1::SubmitReply { refusal: answer(verdict)? }))
    }

    async fn checkpoint(
        &self,
        request: Request<v1::CheckpointRequest>,
    ) -> Result<Response<v1::CheckpointReply>, Status> {
        self.seen(&request).await?;
        let request = request.into_inner();
        let reply = history::witnessed(&self.0.driver, &self.0.heads, &request, 0).await?;
        Ok(Response::new(reply))
    }

    async fn evidence(
        &self,
        request: Request<v1::EvidenceRequest>,
    ) -> Result<Response<v1::EvidenceReply>, Status> {
        let site = self.site(&request).await?;
        let Services { driver, heads, .. } = &self.0;
        let reply = evidence::evidence(driver, heads, &site, request.into_inner()).await?;
        Ok(Response::new(reply))
    }
}

fn inquiry(delivery: Delivery) -> v1::Inquiry {
    let Delivery { id, question } = delivery;
    v1::Inquiry {
        id,
        run: question.manifest.name.to_string(),
        manifest_json: question.manifest.to_json().into(),
        cohort_size: question.cohort_size,
        is_check: question.is_check,
    }
}

/// A site's warnings: few words of a class, and nothing else.
pub(super) fn warnings(wire: &[String]) -> Vec<String> {
    let plain = |c: &char| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == '_';
    let word =
        |text: &String| -> String { text.chars().filter(plain).take(WARNING_CHARS_MAX).collect() };
    wire.iter().take(WARNINGS_MAX).map(word).filter(|word| !word.is_empty()).collect()
}

/// The rounds that a site says its ledger holds, bounded.
pub(super) fn known_rounds(wire: Vec<v1::KnownRound>) -> Result<Vec<KnownRound>, Status> {
    if wire.len() > KNOWN_ROUNDS_MAX {
        let text = format!("known_rounds: {} of at most {KNOWN_ROUNDS_MAX}", wire.len());
        return Err(Status::invalid_argument(text));
    }
    wire.into_iter()
        .map(|known| {
            let v1::KnownRound { run, round, answered } = known;
            Ok(KnownRound { run: parse("known_rounds.run", &run)?, round, answered })
        })
        .collect()
}

/// Reads a site's metrics, of which known fields alone go into the history: those that a newer client sends
/// beside them are dropped. Their ranges are judged with the delta.
pub(super) fn read_metrics(json: &str) -> Result<SiteMetrics, Status> {
    if json.len() > METRICS_BYTES_MAX {
        let text = format!("metrics_json: {} bytes, above {METRICS_BYTES_MAX}", json.len());
        return Err(Status::invalid_argument(text));
    }
    let metrics: SiteMetrics = serde_json::from_str(json)
        .map_err(|e| Status::invalid_argument(format!("metrics_json: {e}")))?;
    Ok(metrics)
}

/// A site's reason goes into the history, where an entry has a size limit. Only a site's own
/// kinds of no are taken from it.
pub(super) fn shortened(reason: Refusal) -> Result<Refusal, Status> {
    let cut = |text: String| printable_start(&text, REASON_CHARS_MAX);
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "every other kind is the coordinator's to say"
    )]
    match reason {
        Refusal::Policy { reason, class } => Ok(Refusal::Policy { reason: cut(reason), class }),
        Refusal::SiteFailed { reason, class } => {
            Ok(Refusal::SiteFailed { reason: cut(reason), class })
        }
        cohort @ Refusal::Cohort { .. } => Ok(cohort),
        other => Err(Status::invalid_argument(format!(
            "reason: a site declines with `policy`, `cohort` or `site_failed`, not with `{}`",
            other.code()
        ))),
    }
}
