//! Who is believed in a handshake, on either side.

use std::sync::Arc;

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

use super::member::certified;

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

fn other(error: Arc<dyn std::error::Error + Send + Sync>) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(error)))
}
