//! The mutual-TLS session of an operator or auditor with the coordinator.

use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use tonic::transport::Channel;
use tonic::{Code, Response, Status};
use tributary_proto::channel::{
    ConnectOptions, Identity, connect, connect_failure, exists, status_failure,
};
use tributary_proto::v1::operator_client::OperatorClient;
use tributary_shared::outcome::{ExitCode, Failure, chain};

use super::Format;

/// Longest wait for one answer unless told.
pub(super) const TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);
/// Directories that are searched for an identity when none is named: where `enroll` puts a person's
/// by role, and where `init --directory coord` puts the first operator's.
const PLACES: [&str; 3] = ["operator", "auditor", "coord/operator"];
const HINT: &str = "name its directory with --identity DIR or TRIBUTARY_IDENTITY; \
    `tributary-coordinator init` or `tributary enroll KIT` makes one";
/// Largest answer read, bytes: a run of a thousand rounds with all who contributed.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// What every command of `tributary` takes.
#[derive(Clone, Debug, Args)]
pub(super) struct Globals {
    /// Directory of your identity, as `init` or `enroll` made it [default: $TRIBUTARY_IDENTITY,
    /// else the first of ./operator, ./auditor and ./coord/operator that holds one]
    #[arg(long, global = true, value_name = "DIR")]
    pub(super) identity: Option<PathBuf>,
    /// Where the coordinator is, when it has moved since you enrolled
    #[arg(long, global = true, value_name = "HOST:PORT")]
    pub(super) address: Option<String>,
    /// How results are printed
    #[arg(long, global = true, value_enum, default_value_t)]
    pub(super) format: Format,
    /// Longest wait for an answer, or for the end in `run wait`, e.g. 90s or 2h [default: 30s]
    #[arg(long, global = true, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub(super) timeout: Option<Duration>,
}

impl Globals {
    /// The directory that `--identity` or the environment names.
    pub(super) fn named(&self) -> Option<PathBuf> {
        let environment = std::env::var_os("TRIBUTARY_IDENTITY").filter(|named| !named.is_empty());
        self.identity.clone().or_else(|| environment.map(PathBuf::from))
    }

    /// The directory of the identity that is named, else of the first that is found.
    pub(super) fn directory(&self) -> Result<PathBuf, Failure> {
        let found = || PLACES.iter().map(PathBuf::from).find(|place| exists(place));
        self.named().or_else(found).ok_or_else(|| {
            let looked = PLACES.map(|place| format!("./{place}")).join(", ");
            Failure::invalid("identity", format!("no identity: looked in {looked}")).hint(HINT)
        })
    }

    /// The identity that is named, else the first that is found.
    pub(super) fn load_identity(&self) -> Result<Identity, Failure> {
        let directory = self.directory()?;
        Identity::load(&directory).map_err(|e| Failure::invalid("identity", chain(&e)).hint(HINT))
    }
}

/// Adds to the failure of an address that does not answer what to do when the coordinator has moved.
fn may_have_moved(failure: Failure) -> Failure {
    if !["unreachable", "timeout"].contains(&failure.code) {
        return failure;
    }
    let hint = failure.hint.clone().unwrap_or_default();
    failure.hint(format!(
        "{hint}; if the coordinator has moved, name its new address with --address HOST:PORT"
    ))
}

/// A connection that both sides have accepted.
pub(super) struct Session {
    /// For streaming calls, whose length has no bound.
    pub(super) client: OperatorClient<Channel>,
    /// Who we are.
    pub(super) identity: Identity,
    address: String,
    timeout: Duration,
}

impl Session {
    /// Connects as the identity that `globals` name.
    pub(super) async fn open(globals: &Globals) -> Result<Self, Failure> {
        let identity = globals.load_identity()?;
        let address = globals.address.clone().unwrap_or_else(|| identity.address.clone());
        let timeout = globals.timeout.unwrap_or(TIMEOUT_DEFAULT);
        let default = ConnectOptions::default();
        let options =
            ConnectOptions { connect_timeout: default.connect_timeout.min(timeout), ..default };
        let unconnected = |error| {
            let failure = connect_failure(&error);
            match globals.address {
                None => may_have_moved(failure),
                Some(_) => failure,
            }
        };
        let channel = connect(&address, &identity, &options).await.map_err(unconnected)?;
        let client = OperatorClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
        Ok(Self { client, identity, address, timeout })
    }

    /// Waits for one answer, at most as long as `--timeout` says.
    pub(super) async fn ask<T>(
        &self,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Failure> {
        let answer = tokio::time::timeout(self.timeout, call)
            .await
            .unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer in time")));
        answer.map(Response::into_inner).map_err(|status| self.failure(&status))
    }

    /// Waits for the next message of a stream, at most as long as `--timeout` says.
    pub(super) async fn next<T>(
        &self,
        stream: &mut tonic::Streaming<T>,
    ) -> Result<Option<T>, Failure> {
        let next = tokio::time::timeout(self.timeout, stream.message()).await;
        let next = next.unwrap_or_else(|_| Err(Status::deadline_exceeded("no data in time")));
        next.map_err(|status| self.failure(&status))
    }

    /// What a failed call means to the person at the keyboard.
    pub(super) fn failure(&self, status: &Status) -> Failure {
        let failure = status_failure(&self.address, status);
        if status.code() == Code::PermissionDenied {
            let member = &self.identity.member;
            let hint = format!("you are {member}; another identity may be allowed to");
            return Failure { exit: ExitCode::Connection, code: "permission", ..failure }
                .hint(hint);
        }
        failure
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Failed before: after a move the operator's program named the old address and no way out.
    #[test]
    fn an_address_that_does_not_answer_is_told_with_the_option_that_names_another() {
        let gone = Failure::new(ExitCode::Connection, "unreachable", "cannot reach it");
        let hint = may_have_moved(gone.hint("check the address")).hint.unwrap();
        assert!(hint.starts_with("check the address; ") && hint.contains("--address HOST:PORT"));
        let refused = Failure::refused("refused", "no").hint("ask");
        assert_eq!(may_have_moved(refused).hint.as_deref(), Some("ask"));
    }
}
