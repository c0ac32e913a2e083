//! The services: decode, one call, encode. Nothing here changes anything except through
//! `driver`.

mod budget;
mod calls;
mod checks;
mod enrolment;
mod evidence;
mod export;
mod history;
mod operator;
mod requests;
mod rows;
mod site;
mod turns;
mod upload;

use std::collections::BTreeSet;
use std::str::FromStr;
use std::sync::{Arc, Mutex};

use tonic::service::interceptor::InterceptedService;
use tonic::{Code, Status};
use tributary_proto::channel::{CHUNK_BYTES, Guard, Peer, Role};
use tributary_proto::v1;
use tributary_shared::digest::Digest;
use tributary_shared::name::RunName;
use tributary_shared::outcome::chain;
use tributary_shared::refusal::{Refusal, RefusalClass};

pub use calls::{Calls, Counted};
pub use enrolment::EnrolmentService;
pub use operator::OperatorService;
pub use requests::check_request;
pub use site::SiteService;
pub use turns::Turns;

use crate::driver::{Driver, DriverError, Standing};
use crate::heads::Heads;
use crate::membership::Authority;

/// Longest message of a stranger, bytes: a token and a certificate request.
const ENROLMENT_BYTES_MAX: usize = 16 * 1024;
/// Longest message of a site, bytes: a chunk of a delta, and what it belongs to.
const SITE_BYTES_MAX: usize = CHUNK_BYTES + 64 * 1024;
/// Longest message of an operator or auditor, bytes: a manifest as it was written.
const OPERATOR_BYTES_MAX: usize = 256 * 1024;

/// What every service needs.
#[derive(Clone)]
pub struct Services {
    /// Owns the runs.
    pub driver: Driver,
    /// Signs certificates.
    pub authority: Arc<Authority>,
    /// Signs checkpoints and remembers the largest.
    pub heads: Heads,
    /// What kits tell members to connect to, `host:port`.
    pub address: String,
    /// Address announced to connected members: as `address`, when the configuration names one.
    pub announced: Option<String>,
    /// Tokens that were shown again with another key.
    pub reused: Arc<Mutex<BTreeSet<Digest>>>,
    /// Turns to upload.
    pub turns: Turns,
}

impl Services {
    /// All services behind their guards, ready to serve.
    pub fn routes(&self) -> tonic::service::Routes {
        use v1::enrolment_server::EnrolmentServer;
        use v1::operator_server::OperatorServer;
        use v1::site_server::SiteServer;
        let enrolment = EnrolmentServer::new(EnrolmentService::new(self.clone()))
            .max_decoding_message_size(ENROLMENT_BYTES_MAX);
        let site = SiteServer::new(SiteService::new(self.clone()))
            .max_decoding_message_size(SITE_BYTES_MAX);
        let operator = OperatorServer::new(OperatorService::new(self.clone()))
            .max_decoding_message_size(OPERATOR_BYTES_MAX);
        tonic::service::Routes::new(enrolment)
            .add_service(InterceptedService::new(site, self.guard(&[Role::Site])))
            .add_service(InterceptedService::new(
                operator,
                self.guard(&[Role::Operator, Role::Auditor]),
            ))
    }

    /// Lets members with a good certificate pass whom the matrix in `tributary_proto::channel::access` allows the call. A suspended
    /// site may still say hello and hear why; `site` refuses it everything else.
    fn guard(&self, roles: &'static [Role]) -> Guard {
        let driver = self.driver.clone();
        let check = move |peer: &Peer| match driver.members().standing(peer) {
            Standing::Active => Ok(()),
            Standing::Suspended if peer.member.role == Role::Site => Ok(()),
            Standing::Suspended => Err(Status::permission_denied(format!(
                "{} is suspended; another operator can reinstate it",
                peer.member
            ))),
            Standing::Unknown => Err(Status::unauthenticated(format!(
                "this coordinator does not accept the certificate of {}: it was revoked or replaced, or issued after the backup that the coordinator was restored from",
                peer.member
            ))),
        };
        Guard::new(roles, Arc::new(check))
    }
}

/// Message for a call that needed the disk while it was full.
const FULL: &str = "the coordinator is short of disk space; it goes on when there is room";

/// A refusal that is part of an answer; every other error becomes a status.
fn answer(result: Result<(), DriverError>) -> Result<Option<v1::Refusal>, Status> {
    match result {
        Ok(()) => Ok(None),
        Err(DriverError::Refused(refusal)) => Ok(Some((&refusal).into())),
        Err(DriverError::UnknownRun(run)) => Ok(Some((&unknown(&run)).into())),
        Err(error) => Err(status(error)),
    }
}

/// The answer for a run that this history does not have: a site that holds a delta of it must not
/// be held up for ever.
fn unknown(run: &RunName) -> Refusal {
    Refusal::RunUnknown { run: run.to_string() }
}

/// The status of an error that is no part of an answer. Faults are logged here, once. Their causes stay here, but for
/// that of a state that could not be written, which an operator must know.
fn status(error: DriverError) -> Status {
    let code = match &error {
        full if full.is_full() => Code::ResourceExhausted,
        DriverError::Short { .. } | DriverError::Quota { .. } => Code::ResourceExhausted,
        DriverError::Refused(_) | DriverError::NotUploaded(_) | DriverError::RevokedMember(_) => {
            Code::FailedPrecondition
        }
        DriverError::UnknownRun(_) | DriverError::UnknownMember(_) => Code::NotFound,
        DriverError::RunExists(_) => Code::AlreadyExists,
        DriverError::Superseded | DriverError::Interrupted(_) => Code::Unavailable,
        DriverError::Store(_)
        | DriverError::Unwritten { .. }
        | DriverError::Corrupt(_)
        | DriverError::Io { .. } => Code::Internal,
    };
    let said = matches!(
        error,
        DriverError::Short { .. } | DriverError::Quota { .. } | DriverError::Unwritten { .. }
    );
    if code == Code::ResourceExhausted && !said {
        tracing::error!(error = %chain(&error), "request failed: the disk is full");
        return Status::new(code, FULL);
    }
    if code == Code::Internal {
        tracing::error!(error = %chain(&error), "request failed");
    }
    Status::new(code, error.to_string())
}

/// Reads a name, a digest or another text field.
fn parse<T: FromStr>(field: &str, text: &str) -> Result<T, Status>
where
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|e| Status::invalid_argument(format!("{field}: {e}")))
}

/// Reads a digest field of 32 bytes.
fn digest(field: &str, bytes: &[u8]) -> Result<Digest, Status> {
    Digest::try_from(bytes).map_err(|e| Status::invalid_argument(format!("{field}: {e}")))
}

/// A refusal as the other side sent it.
fn refusal(wire: Option<v1::Refusal>) -> Refusal {
    let reason = "no reason given".to_owned();
    let unsaid = Refusal::SiteFailed { reason, class: RefusalClass::Never };
    wire.map_or(unsaid, |wire| tributary_proto::convert::refusal(&wire))
}
