//! Why there is no channel, in one line that says what to do about it.

use std::error::Error;

use tonic::{Code, Status};
use tributary_shared::outcome::{ExitCode, Failure, chain};

use super::words::{Broken, Untimely};

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
    /// The coordinator's name does not resolve, its port is closed, no route.
    #[error("cannot reach the coordinator at {address}")]
    Unreachable {
        /// The coordinator's address.
        address: String,
        /// The system's error.
        #[source]
        source: Broken,
    },
    /// The same of the proxy in between.
    #[error("cannot reach the proxy {proxy}, by which the coordinator at {address} is reached")]
    ProxyUnreachable {
        /// The proxy's host and port.
        proxy: String,
        /// The coordinator's address.
        address: String,
        /// What the system says.
        #[source]
        source: Broken,
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
    /// The server's certificate is not good at this time.
    #[error("the certificate of the coordinator at {address} {untimely}")]
    ServerUntimely {
        /// The coordinator's address.
        address: String,
        /// Its time and ours.
        untimely: Untimely,
    },
    /// The server is of this consortium, and its certificate names other hosts than the address.
    #[error(
        "the coordinator's certificate at {address} is for {} and not for {host}", names.join(", ")
    )]
    ServerName {
        /// The coordinator's address.
        address: String,
        /// Its host.
        host: String,
        /// The DNS names and addresses in the certificate.
        names: Vec<String>,
    },
    /// The server refused our certificate.
    #[error("{address} did not accept our certificate{}", told(untimely.as_ref()))]
    Certificate {
        /// The coordinator's address.
        address: String,
        /// Its time and ours, when that is the reason.
        untimely: Option<Untimely>,
    },
    /// The handshake broke off, or something else than a coordinator answers there.
    #[error("the handshake with {address} failed")]
    Handshake {
        /// The coordinator's address.
        address: String,
        /// What happened.
        #[source]
        source: Broken,
    },
    /// Nothing answered in time.
    #[error("{target} did not answer within {seconds} s")]
    Timeout {
        /// Whom we waited for: the coordinator's address, or the proxy.
        target: String,
        /// How long we waited.
        seconds: u64,
    },
    /// Our own identity cannot be used.
    #[error("our own key or certificate cannot be used")]
    Identity(#[source] rustls::Error),
}

/// Reason our certificate is refused, as a suffix of the message. Empty when its time is not it.
fn told(untimely: Option<&Untimely>) -> String {
    untimely.map_or_else(String::new, |untimely| format!(": it {untimely}"))
}

impl ConnectError {
    fn hint(&self) -> &'static str {
        match self {
            Self::Address { .. } => "check the address in the configuration or the startup kit",
            Self::ProxyAddress { .. } => "check `proxy` in the configuration, or HTTPS_PROXY",
            Self::Unreachable { source, .. } if source.is_refused() => {
                "nothing listens there: is the coordinator running, is the port right?"
            }
            Self::Unreachable { .. } => "check the address, the firewall and the proxy setting",
            Self::ProxyUnreachable { .. } => {
                "check `proxy` in the configuration, or HTTPS_PROXY; the coordinator was not asked"
            }
            Self::Proxy { .. } => {
                "ask the network team to allow CONNECT to the coordinator's host and port"
            }
            Self::Server { .. } => {
                "is this the address of the kit, and does a proxy break TLS open in between?"
            }
            Self::ServerName { .. } => {
                "ask the operator for the address whose name the certificate carries, or to add this one: `tributary-coordinator renew-server --server-name HOST`"
            }
            Self::ServerUntimely { untimely, .. } => of_server(untimely),
            Self::Certificate { untimely: Some(untimely), .. } => of_ours(untimely),
            Self::Certificate { untimely: None, .. } => {
                "it may be revoked; ask the operator for a new startup kit"
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
            | Self::ProxyUnreachable { .. }
            | Self::Proxy { .. }
            | Self::Server { .. }
            | Self::ServerUntimely { .. }
            | Self::ServerName { .. }
            | Self::Certificate { .. }
            | Self::Handshake { .. } => ExitCode::Connection,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Address { .. } => "address",
            Self::ProxyAddress { .. } => "proxy_address",
            Self::Unreachable { .. } => "unreachable",
            Self::ProxyUnreachable { .. } => "proxy_unreachable",
            Self::Proxy { .. } => "proxy",
            Self::Server { .. } => "server_not_trusted",
            Self::ServerUntimely { .. } => "server_certificate_time",
            Self::ServerName { .. } => "server_name",
            Self::Certificate { .. } => "certificate_not_accepted",
            Self::Handshake { .. } => "handshake",
            Self::Timeout { .. } => "timeout",
            Self::Identity(_) => "identity",
        }
    }
}

fn of_server(untimely: &Untimely) -> &'static str {
    match untimely {
        Untimely::Expired { .. } => {
            "if that clock is right, the operator renews it by `tributary-coordinator renew-server`; else set the clock"
        }
        Untimely::NotYet { .. } | Untimely::ByTheirClock { .. } => {
            "set this machine's clock, best by NTP; if it is right, the coordinator's was wrong"
        }
    }
}

fn of_ours(untimely: &Untimely) -> &'static str {
    match untimely {
        Untimely::Expired { .. } => {
            "if that clock is right, ask the operator for a new kit and run `enroll KIT --renew`; else set the clock"
        }
        Untimely::NotYet { .. } => {
            "set this machine's clock, best by NTP; if it is right, the coordinator's was wrong"
        }
        Untimely::ByTheirClock { .. } => {
            "compare this machine's clock with the coordinator's and set the one that is wrong"
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
    if status.source().is_some() {
        // Made on this side, of what happened to the connection.
        return lost(address, &Broken::of(status).to_string());
    }
    let said = format!("the coordinator at {address} says: {}", status.message());
    match status.code() {
        Code::Unauthenticated => Failure::connection(said)
            .hint("ask the operator for a new startup kit, and enrol with it and --renew"),
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
            lost(address, status.message())
        }
    }
}

fn lost(address: &str, why: &str) -> Failure {
    Failure::connection(format!("lost the coordinator at {address}: {why}"))
        .hint("it may be restarting; try again")
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
