//! Calls to the coordinator: one method a call, each with its time limit, and one error that says
//! whether to try again. What the site says of its work comes from the ledger's release step alone.

mod backoff;
mod transfer;

use std::future::Future;
use std::time::Duration;

use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};
use tributary_proto::channel::{
    ConnectError, ConnectOptions, Identity, SESSION, connect, connect_failure, status_failure,
};
use tributary_proto::v1;
use tributary_proto::v1::site_client::SiteClient;
use tributary_shared::outcome::Failure;

use crate::ledger::{Delta, Released};

pub use backoff::Backoff;
pub use transfer::{Download, Upload};

/// Longest wait for the answer to one small call.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// The failure code of a coordinator that does not take our certificate.
pub const CERTIFICATE_NOT_ACCEPTED: &str = "certificate_not_accepted";

/// Why a call gave no answer.
#[derive(Debug)]
pub enum CallError {
    /// No connection, or it broke off: try again.
    Unreachable(Failure),
    /// The coordinator refused the call: try again later, for a person may mend the reason.
    Rejected(Failure),
    /// No disk space at the coordinator; retry later.
    Busy(Failure),
    /// Our configuration can't work: trying again is no use.
    Fatal(Failure),
}

impl CallError {
    /// What happened, in one line.
    pub fn failure(&self) -> &Failure {
        let (Self::Unreachable(failure)
        | Self::Rejected(failure)
        | Self::Busy(failure)
        | Self::Fatal(failure)) = self;
        failure
    }

    fn from_connect(error: &ConnectError) -> Self {
        let failure = connect_failure(error);
        match error {
            ConnectError::Address { .. }
            | ConnectError::ProxyAddress { .. }
            | ConnectError::Identity(_) => Self::Fatal(failure),
            // A coordinator restored from a backup may lack this site's enrolment for a while.
            ConnectError::Certificate { .. } => Self::Rejected(failure),
            ConnectError::Unreachable { .. }
            | ConnectError::Proxy { .. }
            | ConnectError::ProxyUnreachable { .. }
            | ConnectError::Server { .. }
            | ConnectError::ServerUntimely { .. }
            | ConnectError::ServerName { .. }
            | ConnectError::Handshake { .. }
            | ConnectError::Timeout { .. } => Self::Unreachable(failure),
        }
    }

    fn from_status(address: &str, status: &Status) -> Self {
        let failure = status_failure(address, status);
        if failure.code == CERTIFICATE_NOT_ACCEPTED {
            return Self::Rejected(failure);
        }
        match status.code() {
            Code::Unauthenticated => {
                Self::Rejected(Failure { code: CERTIFICATE_NOT_ACCEPTED, ..failure })
            }
            Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::Unimplemented => Self::Rejected(failure),
            Code::ResourceExhausted => Self::Busy(Failure { code: "coordinator_short", ..failure }),
            Code::Ok
            | Code::Cancelled
            | Code::Unknown
            | Code::DeadlineExceeded
            | Code::Aborted
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss => Self::Unreachable(failure),
        }
    }

    /// A stream that ended before its time.
    pub(crate) fn broken_off(detail: &str) -> Self {
        Self::Unreachable(Failure::connection(format!("the transfer broke off: {detail}")))
    }

    fn timeout(address: &str) -> Self {
        Self::from_status(address, &Status::deadline_exceeded("no answer in time"))
    }
}

/// Puts the session nonce into every call.
#[derive(Clone, Debug)]
struct Tag(Option<MetadataValue<Ascii>>);

impl Interceptor for Tag {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(nonce) = &self.0 {
            request.metadata_mut().insert(SESSION, nonce.clone());
        }
        Ok(request)
    }
}

/// The coordinator, as this site may call it. Clones share one connection, which comes back by
/// itself after it broke.
#[derive(Clone, Debug)]
pub struct Coordinator {
    address: String,
    site: SiteClient<InterceptedService<Channel, Tag>>,
}

impl Coordinator {
    /// Connects; both sides have accepted each other's certificate when this returns. `session` is
    /// the nonce of a program that takes part; one that only looks has none.
    pub async fn connect(
        address: &str,
        identity: &Identity,
        proxy: Option<&str>,
        session: Option<&str>,
    ) -> Result<Self, CallError> {
        let options = ConnectOptions { proxy: proxy.map(str::to_owned), ..Default::default() };
        let channel =
            connect(address, identity, &options).await.map_err(|e| CallError::from_connect(&e))?;
        let tag = Tag(session.and_then(|nonce| nonce.parse().ok()));
        let site = SiteClient::with_interceptor(channel, tag);
        Ok(Self { address: address.to_owned(), site })
    }

    /// Says hello, with the class of the site's trouble, empty for none, and the rounds that the ledger
    /// holds; the answer tells who we are to the coordinator.
    pub async fn hello(
        &self,
        trouble: &str,
        known_rounds: Vec<v1::KnownRound>,
    ) -> Result<v1::HelloReply, CallError> {
        let (client_version, trouble) = (env!("CARGO_PKG_VERSION").to_owned(), trouble.to_owned());
        let request = v1::HelloRequest { client_version, trouble, known_rounds };
        let mut site = self.site.clone();
        self.answer(ANSWER_TIMEOUT, site.hello(request)).await
    }

    /// Waits up to `wait` for a round to train or a question to answer.
    pub async fn next_assignment(
        &self,
        wait: Duration,
        trouble: &str,
    ) -> Result<v1::NextAssignmentReply, CallError> {
        let request = v1::NextAssignmentRequest {
            trouble: trouble.to_owned(),
            wait_ms: u32::try_from(wait.as_millis()).unwrap_or(u32::MAX),
            ..Default::default()
        };
        let mut site = self.site.clone();
        self.answer(wait + ANSWER_TIMEOUT, site.next_assignment(request)).await
    }

    /// Answers a question.
    pub async fn answer_inquiry(
        &self,
        answer: &Released<v1::AnswerInquiryRequest>,
    ) -> Result<v1::AnswerInquiryReply, CallError> {
        let mut site = self.site.clone();
        self.answer(ANSWER_TIMEOUT, site.answer_inquiry(answer.get().clone())).await
    }

    /// Agrees to a round's terms.
    pub async fn accept_terms(
        &self,
        terms: &Released<v1::AcceptTermsRequest>,
    ) -> Result<v1::AcceptTermsReply, CallError> {
        let mut site = self.site.clone();
        self.answer(ANSWER_TIMEOUT, site.accept_terms(terms.get().clone())).await
    }

    /// Says no to a round.
    pub async fn decline(
        &self,
        decline: &Released<v1::DeclineRequest>,
    ) -> Result<v1::DeclineReply, CallError> {
        let mut site = self.site.clone();
        self.answer(ANSWER_TIMEOUT, site.decline(decline.get().clone())).await
    }

    /// Tells how far the work is; `limit` keeps a lost beat from delaying the next.
    pub async fn heartbeat(
        &self,
        request: v1::HeartbeatRequest,
        limit: Duration,
    ) -> Result<v1::HeartbeatReply, CallError> {
        let mut site = self.site.clone();
        self.answer(limit, site.heartbeat(request)).await
    }

    /// Asks for the first byte of a delta that the coordinator still needs.
    pub async fn upload_status(
        &self,
        delta: &Released<Delta>,
    ) -> Result<v1::UploadStatusReply, CallError> {
        let mut site = self.site.clone();
        self.answer(ANSWER_TIMEOUT, site.upload_status(delta.get().subject.clone())).await
    }

    /// Asks for an uploaded delta to be counted.
    pub async fn submit(&self, delta: &Released<Delta>) -> Result<v1::SubmitReply, CallError> {
        let mut site = self.site.clone();
        self.answer(ANSWER_TIMEOUT, site.submit(delta.get().submission.clone())).await
    }

    /// Asks for the proof that a round stands in the history.
    pub async fn evidence(
        &self,
        request: v1::EvidenceRequest,
    ) -> Result<v1::EvidenceReply, CallError> {
        let mut site = self.site.clone();
        self.answer(ANSWER_TIMEOUT, site.evidence(request)).await
    }

    /// Asks for the log's head and the proof that it continues a log of `old_size` leaves, whose
    /// signed head is `held_note`.
    pub async fn checkpoint(
        &self,
        old_size: u64,
        held_note: String,
    ) -> Result<v1::CheckpointReply, CallError> {
        let mut site = self.site.clone();
        let request = v1::CheckpointRequest { old_size, held_note };
        self.answer(ANSWER_TIMEOUT, site.checkpoint(request)).await
    }

    async fn answer<T>(
        &self,
        limit: Duration,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, CallError> {
        match tokio::time::timeout(limit, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(CallError::from_status(&self.address, &status)),
            Err(_) => Err(CallError::timeout(&self.address)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Failed before: both ended the program, and a coordinator restored from an older backup
    /// lost every site that had enrolled since.
    #[test]
    fn a_certificate_that_is_not_accepted_and_a_full_disk_there_are_waited_out() {
        let unknown = Status::unauthenticated("the certificate of site/a is revoked");
        let refused = ConnectError::Certificate { address: "a:1".to_owned(), untimely: None };
        for error in [CallError::from_status("a:1", &unknown), CallError::from_connect(&refused)] {
            let CallError::Rejected(failure) = error else { panic!("{error:?}") };
            assert_eq!(failure.code, CERTIFICATE_NOT_ACCEPTED);
        }
        let short = Status::resource_exhausted("the coordinator is short of disk space");
        assert!(matches!(CallError::from_status("a:1", &short), CallError::Busy(_)));
        let address = ConnectError::Address { address: "nonsense".to_owned() };
        assert!(matches!(CallError::from_connect(&address), CallError::Fatal(_)));
    }
}
