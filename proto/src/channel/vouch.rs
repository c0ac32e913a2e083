//! An operator's signature on a recovery statement: made with the key of its identity, believed
//! by the certificate that the consortium's root gave it.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, UnparsedPublicKey,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use tributary_shared::digest::Digest;
use tributary_shared::timestamp::Timestamp;
use tributary_shared::tlog::key::VerifierKey;
use tributary_shared::tlog::recovery::{Draft, InvalidRecovery, Recovery};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::identity::Identity;
use super::member::{Certified, InvalidCertificate, Role, authority_consortium, certified};
use super::verify::MemberVerifier;

/// The reason for which a recovery statement is not signed or not believed.
#[derive(Debug, thiserror::Error)]
pub enum VouchError {
    /// The statement itself, or the log's signature on it.
    #[error(transparent)]
    Statement(#[from] InvalidRecovery),
    /// Another member than the one that the statement names, or no operator.
    #[error("the recovery statement names {expected}, its certificate {found}")]
    Member {
        /// As the statement says.
        expected: String,
        /// As the certificate says.
        found: String,
    },
    /// Of another consortium's root.
    #[error(
        "the recovery statement is vouched for by root {found}, this consortium has {expected}"
    )]
    Root {
        /// The consortium's root, digest of its DER.
        expected: Digest,
        /// The statement's.
        found: Digest,
    },
    /// A certificate that cannot be read.
    #[error("a certificate in the recovery statement")]
    Certificate(#[from] InvalidCertificate),
    /// A certificate that the root does not vouch for at the statement's time.
    #[error("the operator's certificate did not hold when the statement was made")]
    Chain(#[source] rustls::Error),
    /// The operator's key did not sign it.
    #[error("the recovery statement is not signed by its operator's key")]
    Signature,
    /// The operator's own key cannot sign.
    #[error("the operator's key cannot sign: {0}")]
    Key(String),
}

/// Adds `identity`'s signature to a statement that the log has signed.
pub fn sign_recovery(draft: Draft, identity: &Identity) -> Result<Recovery, VouchError> {
    let expected = draft.statement.operator.clone();
    if identity.member.role != Role::Operator || identity.member.to_string() != expected {
        return Err(VouchError::Member { expected, found: identity.member.to_string() });
    }
    let key = identity.key().map_err(VouchError::Key)?;
    let PrivateKeyDer::Pkcs8(key) = key else {
        return Err(VouchError::Key("it is not in PKCS #8".to_owned()));
    };
    let random = SystemRandom::new();
    let algorithm = &ECDSA_P256_SHA256_ASN1_SIGNING;
    let pair = EcdsaKeyPair::from_pkcs8(algorithm, key.secret_pkcs8_der(), &random)
        .map_err(|e| VouchError::Key(e.to_string()))?;
    let signature = pair
        .sign(&random, &draft.statement.message())
        .map_err(|_| VouchError::Key("the system gave no randomness".to_owned()))?;
    Ok(Recovery {
        statement: draft.statement,
        log_signature: draft.log_signature,
        operator_certificate: STANDARD.encode(&identity.certificate),
        operator_signature: STANDARD.encode(signature),
        root_certificate: STANDARD.encode(&identity.root),
    })
}

/// Checks both signatures of `recovery` and that the root of digest `root` vouched for its
/// operator when the statement was made; gives the operator.
pub fn check_recovery(
    recovery: &Recovery,
    key: &VerifierKey,
    root: Digest,
) -> Result<Certified, VouchError> {
    recovery.check_log(key)?;
    let root_der = decode(&recovery.root_certificate)?;
    let found = Digest::of(&root_der);
    if found != root {
        return Err(VouchError::Root { expected: root, found });
    }
    let statement = &recovery.statement;
    let consortium = authority_consortium(&root_der)?;
    if consortium != statement.consortium {
        let problem = "its consortium is not that of its root";
        return Err(InvalidRecovery::Form(problem).into());
    }
    let der = CertificateDer::from(decode(&recovery.operator_certificate)?);
    let verifier = MemberVerifier::new(&CertificateDer::from(root_der), consortium)
        .map_err(VouchError::Chain)?;
    let at = unix_time(statement.at);
    verifier.verify_client_cert(&der, &[], at).map_err(VouchError::Chain)?;
    let operator = certified(&der)?;
    let member = &operator.peer.member;
    if member.role != Role::Operator || member.to_string() != statement.operator {
        let (expected, found) = (statement.operator.clone(), member.to_string());
        return Err(VouchError::Member { expected, found });
    }
    let signature = decode(&recovery.operator_signature)?;
    let (_, certificate) = X509Certificate::from_der(&der)
        .map_err(|e| InvalidCertificate::Malformed(e.to_string()))?;
    let point = &certificate.public_key().subject_public_key.data;
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point)
        .verify(&statement.message(), &signature)
        .map_err(|_| VouchError::Signature)?;
    Ok(operator)
}

fn decode(base64: &str) -> Result<Vec<u8>, VouchError> {
    let form = InvalidRecovery::Form("a certificate or signature is not base64");
    STANDARD.decode(base64).map_err(|_| form.into())
}

fn unix_time(at: Timestamp) -> UnixTime {
    let millis = u64::try_from(at.as_millis()).unwrap_or_default();
    UnixTime::since_unix_epoch(Duration::from_millis(millis))
}
