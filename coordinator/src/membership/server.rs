//! The server's certificate against what it has to do: prove this consortium, at this time, under
//! the host that members connect to.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use tributary_proto::channel::{ServerFault, Untimely, host_of, judge_server};
use tributary_shared::outcome::Failure;
use tributary_shared::timestamp::Timestamp;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::authority::{AuthorityError, read_certificate};
use super::{ROOT, SERVER, certificate};

/// A certificate that ends sooner is worth renewing.
pub const EXPIRY_WARNING: Duration = Duration::from_secs(30 * 24 * 3600);

/// The server's certificate as it lies in the coordinator's directory.
pub struct ServerCertificate {
    pub(super) leaf: CertificateDer<'static>,
    pub(super) root: CertificateDer<'static>,
    names: Vec<String>,
    until: Timestamp,
}

/// Reason no member could connect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unworkable {
    /// The address that members are told is none.
    #[error("`{0}` is no address that a member can connect to")]
    Address(String),
    /// The certificate lacks the host of the address.
    #[error("the server's certificate is for {} and not for {host}, the host of `address`", names.join(", "))]
    Name {
        /// The host that members connect to.
        host: String,
        /// The certificate's names.
        names: Vec<String>,
    },
    /// It is not good at this time.
    #[error("the server's certificate {0}")]
    Untimely(Untimely),
    /// It is no server's certificate of this authority.
    #[error("the server's certificate is not one that members accept: {0}")]
    Untrusted(String),
}

impl Unworkable {
    /// Hint that mends the problem.
    pub fn mend(&self) -> String {
        match self {
            Self::Address(_) => {
                "write what sites can reach into `address`, e.g. coordinator.example.org:8443"
                    .into()
            }
            Self::Name { host, .. } => format!(
                "`tributary-coordinator renew-server --server-name {host}` adds it; or correct `address`"
            ),
            Self::Untrusted(_) => "`tributary-coordinator renew-server` makes a new one".into(),
            Self::Untimely(_) => {
                "if the clock is right, `tributary-coordinator renew-server` makes a new one".into()
            }
        }
    }

    /// The one line and exit code of a command.
    pub fn failure(&self, file: &Path) -> Failure {
        let code = match self {
            Self::Address(_) => "address",
            Self::Name { .. } => "server_name",
            Self::Untimely(_) | Self::Untrusted(_) => "server_certificate",
        };
        Failure::invalid(code, format!("{}: {self}", file.display())).hint(self.mend())
    }
}

impl ServerCertificate {
    /// Reads the certificate in `directory`.
    pub fn load(directory: &Path) -> Result<Self, AuthorityError> {
        let leaf = read_certificate(directory, SERVER)?;
        let root = read_certificate(directory, ROOT)?;
        Self::of(leaf, root)
            .map_err(|detail| AuthorityError::Malformed { path: directory.join(SERVER), detail })
    }

    pub(super) fn of(
        leaf: CertificateDer<'static>,
        root: CertificateDer<'static>,
    ) -> Result<Self, String> {
        let names = certificate::server_names(&leaf)?;
        let (_, parsed) = X509Certificate::from_der(&leaf).map_err(|e| e.to_string())?;
        let seconds = parsed.validity().not_after.timestamp();
        let until = Timestamp::from_millis(seconds.saturating_mul(1000));
        Ok(Self { leaf, root, names, until })
    }

    /// The DNS names and addresses in it.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The last moment it is good.
    pub fn until(&self) -> Timestamp {
        self.until
    }

    /// The certificate, DER.
    pub fn leaf(&self) -> &CertificateDer<'static> {
        &self.leaf
    }

    /// The authority's certificate, DER.
    pub fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// Judges it as a member does that connects to `address` at `now`.
    pub fn check(&self, address: &str, now: Timestamp) -> Result<(), Unworkable> {
        let host = host_of(address).map_err(|_| Unworkable::Address(address.to_owned()))?;
        if host.parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified()) {
            return Err(Unworkable::Address(address.to_owned()));
        }
        judge_server(&self.leaf, &self.root, &host, now).map_err(|fault| match fault {
            ServerFault::Name { host, .. } => Unworkable::Name { host, names: self.names.clone() },
            ServerFault::Untimely(untimely) => Unworkable::Untimely(untimely),
            ServerFault::Other(detail) => Unworkable::Untrusted(detail),
        })
    }
}

/// Warning about telling members `address` while the coordinator listens on `bound`, if there is
/// one. It works where something in between forwards connections. Port 0 is one not found yet.
pub fn mismatch(address: &str, bound: SocketAddr) -> Option<String> {
    let (_, port) = address.rsplit_once(':')?;
    let host = host_of(address).ok()?;
    let local = match host.parse::<IpAddr>() {
        Ok(ip) => ip.is_loopback(),
        Err(_) => host == "localhost",
    };
    if bound.ip().is_loopback() && !local {
        return Some(format!(
            "members are told {address}, but only this machine can reach {bound}"
        ));
    }
    (bound.port() != 0 && port.parse() != Ok(bound.port()))
        .then(|| format!("members are told port {port}, the coordinator listens on {bound}"))
}
