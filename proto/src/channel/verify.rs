//! Who is believed in a handshake, on either side.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore,
    SignatureScheme,
};
use tributary_shared::digest::Digest;
use tributary_shared::name::ConsortiumName;
use tributary_shared::timestamp::Timestamp;

use super::member::certified;
use super::words::{Untimely, of_tls};

/// A store that trusts `root` alone.
pub(super) fn only_root(root: &CertificateDer<'_>) -> Result<Arc<RootCertStore>, Error> {
    let mut roots = RootCertStore::empty();
    roots.add(root.clone().into_owned())?;
    Ok(Arc::new(roots))
}

/// The server's judge: no certificate is let through (enrolment needs that), a presented one must
/// chain to our root for client use and name a member of our consortium.
#[derive(Debug)]
pub(super) struct MemberVerifier {
    chain: Arc<dyn ClientCertVerifier>,
    consortium: ConsortiumName,
}

impl MemberVerifier {
    pub(super) fn new(
        root: &CertificateDer<'_>,
        consortium: ConsortiumName,
    ) -> Result<Self, Error> {
        let chain =
            WebPkiClientVerifier::builder_with_provider(only_root(root)?, super::provider())
                .allow_unauthenticated()
                .build()
                .map_err(|e| Error::General(e.to_string()))?;
        Ok(Self { chain, consortium })
    }
}

impl ClientCertVerifier for MemberVerifier {
    fn offer_client_auth(&self) -> bool {
        true
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.chain.verify_client_cert(end_entity, intermediates, now)?;
        let named = certified(end_entity).map_err(|e| other(Arc::new(e)))?;
        if named.consortium != self.consortium {
            return Err(other(Arc::new(ForeignConsortium(named.consortium))));
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// A member of another consortium.
#[derive(Debug, thiserror::Error)]
#[error("the certificate names a member of consortium `{0}`")]
struct ForeignConsortium(ConsortiumName);

/// The server presented no certificate with the fingerprint that the kit names.
#[derive(Debug, thiserror::Error)]
#[error("the server's authority is not the one the startup kit names ({expected})")]
pub(super) struct WrongAuthority {
    expected: Digest,
}

/// The enrolling client's judge: the chain must hold the very root whose fingerprint came with
/// the startup kit, and then verify against that root like any other.
#[derive(Debug)]
pub(super) struct PinnedRoot {
    fingerprint: Digest,
}

impl PinnedRoot {
    pub(super) fn new(fingerprint: Digest) -> Self {
        Self { fingerprint }
    }
}

impl ServerCertVerifier for PinnedRoot {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let root = intermediates
            .iter()
            .find(|der| Digest::of(der) == self.fingerprint)
            .ok_or_else(|| other(Arc::new(WrongAuthority { expected: self.fingerprint })))?;
        let verifier =
            WebPkiServerVerifier::builder_with_provider(only_root(root)?, super::provider())
                .build()
                .map_err(|e| Error::General(e.to_string()))?;
        verifier.verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = super::provider().signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, &algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = super::provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        super::provider().signature_verification_algorithms.supported_schemes()
    }
}

/// Reason a server's certificate proves nothing to a member that connects to a host.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServerFault {
    /// The certificate is good and names other hosts.
    #[error("the certificate is for {} and not for {host}", names.join(", "))]
    Name {
        /// The host that was connected to.
        host: String,
        /// The DNS names and addresses in the certificate.
        names: Vec<String>,
    },
    /// It is not good at this time.
    #[error("the certificate {0}")]
    Untimely(Untimely),
    /// It is no server's certificate of this authority.
    #[error("{0}")]
    Other(String),
}

impl ServerFault {
    /// The fault in the verifier's judgement.
    pub(super) fn of(error: &Error) -> Self {
        if let Some(untimely) = Untimely::of_judgement(error) {
            return Self::Untimely(untimely);
        }
        let Error::InvalidCertificate(CertificateError::NotValidForNameContext {
            expected,
            presented,
        }) = error
        else {
            return Self::Other(of_tls(error));
        };
        let names = presented.iter().map(|name| bare(name)).collect();
        Self::Name { host: expected.to_str().into_owned(), names }
    }
}

/// The name in `DnsName("a.example")` or `IpAddress(127.0.0.1)`, as the verifier writes names.
fn bare(presented: &str) -> String {
    let inner = presented.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')'));
    let name = inner.unwrap_or(presented).trim_matches('"');
    // It writes addresses in a spelling of its own.
    name.parse::<IpAddr>().map_or_else(|_| name.to_owned(), |ip| ip.to_string())
}

/// Judges a server's certificate as a member does that trusts `root` alone and connects to `host`
/// at `now`.
pub fn judge_server(
    leaf: &CertificateDer<'_>,
    root: &CertificateDer<'_>,
    host: &str,
    now: Timestamp,
) -> Result<(), ServerFault> {
    let other = |e: &dyn std::fmt::Display| ServerFault::Other(e.to_string());
    let name = ServerName::try_from(host.to_owned()).map_err(|e| other(&e))?;
    let roots = only_root(root).map_err(|e| other(&e))?;
    let verifier = WebPkiServerVerifier::builder_with_provider(roots, super::provider())
        .build()
        .map_err(|e| other(&e))?;
    let seconds = u64::try_from(now.as_millis() / 1000).unwrap_or(0);
    let now = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
    let judged = verifier.verify_server_cert(leaf, &[], &name, &[], now);
    judged.map(drop).map_err(|e| ServerFault::of(&e))
}

fn other(error: Arc<dyn std::error::Error + Send + Sync>) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(error)))
}
