//! Why there is no channel, in one line that says what to do about it.

use std::error::Error;
use std::io;

use tonic::{Code, Status};
use tributary_shared::outcome::{ExitCode, Failure, chain};

/// Why a connection to the coordinator did not come about.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address does not parse.
    #[error("`{address}` is not an address; write host:port")]
    Address {
        /// As given.
        address: String,
    },
    /// The proxy setting does not parse.
    #[error("`{proxy}` is not a usable proxy; write http://host:port")]
    ProxyAddress {
        /// As given, without credentials where it could be read.
        proxy: String,
    },
    /// The name does not resolve, the port is closed, no route.
    #[error("cannot reach {target}")]
    Unreachable {
        /// Whom we called: the coordinator or the proxy.
        target: String,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The proxy opened no tunnel.
    #[error("the proxy {proxy} opened no tunnel: {detail}")]
    Proxy {
        /// The proxy's host and port.
        proxy: String,
        /// What it did instead.
        detail: String,
    },
    /// The server could not prove that it is our coordinator.
    #[error("{address} did not prove to be the coordinator of this consortium: {detail}")]
    Server {
        /// The coordinator's address.
        address: String,
        /// What the handshake says.
        detail: String,
    },
    /// The server refused our certificate.
    #[error("{address} did not accept our certificate")]
    Certificate {
        /// The coordinator's address.
        address: String,
        /// What the handshake says.
        #[source]
        source: io::Error,
    },
    /// The handshake broke off, or something else than a coordinator answers there.
    #[error("the handshake with {address} failed")]
    Handshake {
        /// The coordinator's address.
        address: String,
        /// What happened.
        #[source]
        source: io::Error,
    },
    /// Nothing answered in time.
    #[error("{address} did not answer within {seconds} s")]
    Timeout {
        /// The coordinator's address.
        address: String,
        /// How long we waited.
        seconds: u64,
    },
    /// Our own identity cannot be used.
    #[error("our own key or certificate cannot be used")]
    Identity(#[source] rustls::Error),
}

impl ConnectError {
    fn hint(&self) -> &'static str {
        match self {
            Self::Address { .. } => "check the address in the configuration or the startup kit",
            Self::ProxyAddress { .. } => "check `proxy` in the configuration, or HTTPS_PROXY",
            Self::Unreachable { source, .. }
                if source.kind() == io::ErrorKind::ConnectionRefused =>
            {
                "nothing listens there: is the coordinator running, is the port right?"
            }
            Self::Unreachable { .. } => "check the address, the firewall and the proxy setting",
            Self::Proxy { .. } => {
                "ask the network team to allow CONNECT to the coordinator's host and port"
            }
            Self::Server { .. } => {
                "is this the address of the kit, and does a proxy break TLS open in between?"
            }
            Self::Certificate { .. } => {
                "it may be expired or revoked, or this machine's clock is wrong; ask the operator for a new startup kit"
            }
            Self::Handshake { .. } => {
                "is the port right, and does a proxy break TLS open in between?"
            }
            Self::Timeout { .. } => "check the address, the firewall and the proxy setting",
            Self::Identity(_) => "enrol again into an empty directory with a new startup kit",
        }
    }

    fn exit(&self) -> ExitCode {
        match self {
            Self::Timeout { .. } => ExitCode::Timeout,
            Self::Address { .. } | Self::ProxyAddress { .. } | Self::Identity(_) => {
                ExitCode::Invalid
            }
            Self::Unreachable { .. }
            | Self::Proxy { .. }
            | Self::Server { .. }
            | Self::Certificate { .. }
            | Self::Handshake { .. } => ExitCode::Connection,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Address { .. } => "address",
            Self::ProxyAddress { .. } => "proxy_address",
            Self::Unreachable { .. } => "unreachable",
            Self::Proxy { .. } => "proxy",
            Self::Server { .. } => "server_not_trusted",
            Self::Certificate { .. } => "certificate_not_accepted",
            Self::Handshake { .. } => "handshake",
            Self::Timeout { .. } => "timeout",
            Self::Identity(_) => "identity",
        }
    }
}

/// A connection error as the one line and exit code of a command.
pub fn connect_failure(error: &ConnectError) -> Failure {
    Failure::new(error.exit(), error.code(), chain(error)).hint(error.hint())
}

/// What a failed call means for a command: the connection's own trouble where there is one under
/// the status, else what the coordinator said.
pub fn status_failure(address: &str, status: &Status) -> Failure {
    if let Some(error) = find::<ConnectError>(status) {
        return connect_failure(error);
    }
    let said = format!("the coordinator at {address} says: {}", status.message());
    match status.code() {
        Code::Unauthenticated => Failure::connection(said)
            .hint("enrol with the startup kit, or ask the operator for a new one"),
        Code::DeadlineExceeded => Failure::new(
            ExitCode::Timeout,
            "timeout",
            format!("the coordinator at {address} did not answer in time"),
        ),
        Code::InvalidArgument | Code::OutOfRange => Failure::invalid("invalid", said),
        Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::NotFound
        | Code::AlreadyExists
        | Code::Aborted
        | Code::ResourceExhausted => Failure::refused("refused", said),
        Code::Unimplemented => Failure::refused("unimplemented", said)
            .hint("the coordinator and this program are of different versions"),
        Code::Internal | Code::DataLoss => {
            Failure::new(ExitCode::Bug, "coordinator_fault", said).hint("see the coordinator's log")
        }
        Code::Ok | Code::Cancelled | Code::Unknown | Code::Unavailable => {
            Failure::connection(format!("lost the coordinator at {address}: {}", chain(status)))
                .hint("it may be restarting; try again")
        }
    }
}

/// The first `E` in the chain of errors under `error`.
pub(super) fn find<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = error.source();
    }
    None
}
