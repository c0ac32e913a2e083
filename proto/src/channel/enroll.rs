//! Enrolment from the member's side: a key made here, a kit, and one request that may be repeated.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{CertificateParams, DistinguishedName, KeyPair, PublicKeyData};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use tonic::{Request, Status};
use tributary_shared::digest::Digest;
use tributary_shared::outcome::{Failure, chain};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::client::{ConnectOptions, connect_pinned};
use super::failure::{ConnectError, connect_failure, status_failure};
use super::identity::{self, Identity, IdentityError};
use super::kit::StartupKit;
use super::member::{Certified, InvalidCertificate, Member, authority_consortium, certified};
use super::verify::{PinnedRoot, only_root};
use super::words::of_tls;
use crate::v1;
use crate::v1::enrolment_client::EnrolmentClient;

/// How to enrol.
#[derive(Clone, Debug, Default)]
pub struct EnrollOptions {
    /// Replace the certificate of the same member, keeping its key.
    pub renew: bool,
    /// How to connect.
    pub connect: ConnectOptions,
}

/// Why a member could not enrol.
#[derive(Debug, thiserror::Error)]
pub enum EnrollError {
    /// The directory is taken.
    #[error("{} already holds the identity of {member}", directory.display())]
    AlreadyEnrolled {
        /// The directory.
        directory: PathBuf,
        /// Whose identity it holds.
        member: Member,
    },
    /// The directory cannot be used.
    #[error("the identity directory")]
    Identity(#[from] IdentityError),
    /// The coordinator was not reached or not believed.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The coordinator said no.
    #[error("the coordinator at {address} refused the enrolment: {}", status.message())]
    Refused {
        /// The coordinator's address.
        address: String,
        /// Its words.
        status: Box<Status>,
    },
    /// The coordinator's answer is not what the kit promises.
    #[error("the coordinator's answer is not to be trusted: {0}")]
    Answer(String),
    /// Key or request could not be made.
    #[error("cannot make a key and a certificate request")]
    Key(#[from] rcgen::Error),
}

impl EnrollError {
    /// The error as the one line and exit code of a command.
    pub fn failure(&self) -> Failure {
        match self {
            Self::AlreadyEnrolled { .. } => Failure::refused("already_enrolled", self.to_string())
                .hint("with a kit for the same member use --renew; in another directory a site begins anew, with other patients held out and an empty ledger"),
            Self::Identity(_) => Failure::invalid("identity", chain(self)),
            Self::Connect(error) => connect_failure(error),
            Self::Refused { address, status } => status_failure(address, status),
            Self::Answer(_) => Failure::connection(self.to_string())
                .hint("ask the operator for a new startup kit; is this machine's clock right?"),
            Self::Key(_) => Failure::invalid("key", chain(self)),
        }
    }
}

/// Enrols the kit's member into `directory`. The key is durable before the request leaves, so
/// that after a lost answer the same call gets the same certificate.
pub async fn enroll(
    kit: &StartupKit,
    directory: &Path,
    options: &EnrollOptions,
) -> Result<Identity, EnrollError> {
    refuse_other_identity(kit, directory, options.renew)?;
    let key = key_of(directory)?;
    let mut params = CertificateParams::default();
    // The coordinator takes the name from the invitation; a request has nothing to say about it.
    params.distinguished_name = DistinguishedName::new();
    let csr = params.serialize_request(&key)?;

    let pinned = PinnedRoot::new(kit.root_fingerprint);
    let channel = connect_pinned(&kit.address, pinned, &options.connect).await?;
    let mut request = Request::new(v1::EnrollRequest {
        token: kit.token.clone(),
        csr_der: csr.der().to_vec().into(),
    });
    request.set_timeout(Duration::from_secs(30));
    let reply = EnrolmentClient::new(channel).enroll(request).await.map_err(|status| {
        EnrollError::Refused { address: kit.address.clone(), status: Box::new(status) }
    })?;
    let identity = check(kit, &key, &reply.into_inner())?;
    identity.store(directory)?;
    Ok(identity)
}

fn refuse_other_identity(
    kit: &StartupKit,
    directory: &Path,
    renew: bool,
) -> Result<(), EnrollError> {
    if !identity::exists(directory) {
        return Ok(());
    }
    let held = Identity::load(directory)?;
    if renew && held.member == kit.member && held.consortium == kit.consortium {
        return Ok(());
    }
    Err(EnrollError::AlreadyEnrolled { directory: directory.to_owned(), member: held.member })
}

/// The key of an earlier, unfinished enrolment or of the identity to renew; else a new one.
fn key_of(directory: &Path) -> Result<KeyPair, EnrollError> {
    if let Some(pem) = identity::read_key(directory)? {
        return Ok(KeyPair::from_pem(&pem)?);
    }
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    identity::write_key(directory, &key.serialize_pem())?;
    Ok(key)
}

/// The identity that the reply gives to the member of `key`.
fn check(
    kit: &StartupKit,
    key: &KeyPair,
    reply: &v1::EnrollReply,
) -> Result<Identity, EnrollError> {
    let Certified { consortium, peer, .. } =
        check_enrolment(kit, &key.subject_public_key_info(), reply)?;
    Ok(Identity {
        consortium,
        member: peer.member,
        address: kit.address.clone(),
        log_verifier_key: reply.log_verifier_key.clone(),
        certificate: CertificateDer::from(reply.certificate_der.to_vec()),
        root: CertificateDer::from(reply.root_der.to_vec()),
        key_pem: key.serialize_pem(),
    })
}

/// Reads the reply to an enrolment with `kit` for the key whose subject public key info, DER, is
/// `public_key`. Believes nothing in it that the two do not confirm.
///
/// # Errors
/// [`EnrollError::Answer`], with what is wrong.
pub fn check_enrolment(
    kit: &StartupKit,
    public_key: &[u8],
    reply: &v1::EnrollReply,
) -> Result<Certified, EnrollError> {
    let answer = |text: String| EnrollError::Answer(text);
    let certificate = CertificateDer::from(reply.certificate_der.to_vec());
    let root = CertificateDer::from(reply.root_der.to_vec());
    if Digest::of(&root) != kit.root_fingerprint {
        return Err(answer("its authority is not the one the startup kit names".to_owned()));
    }
    let invalid = |e: InvalidCertificate| answer(e.to_string());
    let consortium = authority_consortium(&root).map_err(invalid)?;
    let named = certified(&certificate).map_err(invalid)?;
    if consortium != kit.consortium
        || named.consortium != kit.consortium
        || named.peer.member != kit.member
    {
        let found = named.peer.member.uri(&named.consortium);
        return Err(answer(format!("the certificate names {found}")));
    }
    let (_, parsed) = X509Certificate::from_der(&certificate).map_err(|e| answer(e.to_string()))?;
    if parsed.public_key().raw != public_key {
        return Err(answer("the certificate is for another key".to_owned()));
    }
    let chained = WebPkiClientVerifier::builder_with_provider(
        only_root(&root).map_err(|e| answer(e.to_string()))?,
        super::provider(),
    )
    .build()
    .map_err(|e| answer(e.to_string()))?;
    chained
        .verify_client_cert(&certificate, &[], UnixTime::now())
        .map_err(|e| answer(of_tls(&e)))?;
    if reply.log_verifier_key.len() > 1024 || reply.log_verifier_key.contains(['\n', '\r']) {
        return Err(answer("its log key is not one line".to_owned()));
    }
    Ok(named)
}
