//! The consortium's private authority, as it lies in the coordinator's directory.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{Issuer, KeyPair};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tributary_proto::channel::{
    Certified, IdentityError, Member, ServerIdentity, authority_consortium, certified, read_secret,
};
use tributary_proto::v1;
use tributary_shared::digest::Digest;
use tributary_shared::name::ConsortiumName;
use tributary_shared::outcome::{Failure, chain};
use tributary_shared::timestamp::Timestamp;
use tributary_shared::tlog::key::Signer;

use super::certificate::{self, CertificateRequest};
use super::{FOUNDER, LOG_KEY, ROOT, ROOT_KEY, SERVER};

/// How long a member's certificate is good.
pub const MEMBER_VALID: Duration = Duration::from_secs(365 * 24 * 3600);

/// Largest of the authority's files.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// The authority: signs members' certificates. `Debug` shows no key.
pub struct Authority {
    consortium: ConsortiumName,
    root: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    founder: Certified,
    log_verifier_key: String,
    directory: PathBuf,
}

/// Why the authority cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A file cannot be read.
    #[error("{}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What failed.
        #[source]
        source: io::Error,
    },
    /// A private key cannot be read, or others can read it.
    #[error("the authority's directory")]
    Secret(#[from] IdentityError),
    /// A file does not hold what it should.
    #[error("{}: {detail}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// Signing failed.
    #[error("cannot sign a certificate")]
    Sign(#[from] rcgen::Error),
    /// The system gave no randomness.
    #[error("the system gave no randomness")]
    Random,
}

impl AuthorityError {
    /// The error as the one line and exit code of a command.
    pub fn failure(&self) -> Failure {
        Failure::invalid("authority", chain(self)).hint(
            "`tributary-coordinator init` makes the authority; restore the file from a backup",
        )
    }
}

impl Authority {
    /// Reads the authority in `directory`.
    pub fn load(directory: &Path) -> Result<Self, AuthorityError> {
        let malformed = |name: &str, detail: String| AuthorityError::Malformed {
            path: directory.join(name),
            detail,
        };
        let root = read_certificate(directory, ROOT)?;
        let consortium = authority_consortium(&root).map_err(|e| malformed(ROOT, e.to_string()))?;
        let key = KeyPair::from_pem(&secret(directory, ROOT_KEY)?)
            .map_err(|e| malformed(ROOT_KEY, e.to_string()))?;
        certificate::check_key(&root, &key).map_err(|e| malformed(ROOT_KEY, e))?;
        let issuer =
            Issuer::from_ca_cert_der(&root, key).map_err(|e| malformed(ROOT, e.to_string()))?;
        let founder = certified(&read_certificate(directory, FOUNDER)?)
            .map_err(|e| malformed(FOUNDER, e.to_string()))?;
        let log_verifier_key = log_signer(directory, &consortium)?.verifier_key().to_string();
        let directory = directory.to_owned();
        Ok(Self { consortium, root, issuer, founder, log_verifier_key, directory })
    }

    /// The consortium it vouches for.
    pub fn consortium(&self) -> &ConsortiumName {
        &self.consortium
    }

    /// SHA-256 of the root's DER, as kits name it.
    pub fn root_fingerprint(&self) -> Digest {
        Digest::of(&self.root)
    }

    /// The operator whom `init` enrolled; the store must know its certificate like any other.
    pub fn founder(&self) -> &Certified {
        &self.founder
    }

    /// Signs the log's checkpoints.
    pub fn log_signer(&self) -> Result<Signer, AuthorityError> {
        log_signer(&self.directory, &self.consortium)
    }

    /// The log's public key in C2SP verifier form.
    pub fn log_verifier_key(&self) -> &str {
        &self.log_verifier_key
    }

    /// A certificate (DER) for `member` over the key of `request`, good for [`MEMBER_VALID`].
    pub fn sign(
        &self,
        request: &CertificateRequest,
        member: &Member,
        now: Timestamp,
    ) -> Result<Vec<u8>, AuthorityError> {
        let valid = (now, MEMBER_VALID);
        Ok(certificate::member(&self.issuer, &self.consortium, member, request, valid)?)
    }

    /// The answer to an enrolment that was admitted.
    pub fn reply(&self, certificate: Vec<u8>, member: &Member) -> v1::EnrollReply {
        v1::EnrollReply {
            certificate_der: certificate.into(),
            root_der: self.root.to_vec().into(),
            member: member.to_string(),
            log_verifier_key: self.log_verifier_key.clone(),
        }
    }

    pub(super) fn issuer(&self) -> &Issuer<'static, KeyPair> {
        &self.issuer
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Authority({})", self.consortium)
    }
}

/// What the server presents: for [`tributary_proto::channel::Acceptor`], at start and on reload.
pub fn server_identity(directory: &Path) -> Result<ServerIdentity, AuthorityError> {
    let server = secret(directory, SERVER)?;
    let root = read(directory, ROOT)?;
    ServerIdentity::from_pem(server.as_bytes(), root.as_bytes(), server.as_bytes())
        .map_err(|detail| AuthorityError::Malformed { path: directory.join(SERVER), detail })
}

/// The log's name in its verifier key and in the first line of every checkpoint.
pub(super) fn log_name(consortium: &ConsortiumName) -> String {
    format!("tributary/{consortium}")
}

fn log_signer(directory: &Path, consortium: &ConsortiumName) -> Result<Signer, AuthorityError> {
    let key = secret(directory, LOG_KEY)?;
    let malformed =
        |detail: String| AuthorityError::Malformed { path: directory.join(LOG_KEY), detail };
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from_pem_slice(key.as_bytes())
        .map_err(|e| malformed(e.to_string()))?;
    Signer::from_pkcs8(&log_name(consortium), key.secret_pkcs8_der())
        .map_err(|e| malformed(e.to_string()))
}

fn secret(directory: &Path, name: &str) -> Result<String, AuthorityError> {
    let path = directory.join(name);
    read_secret(&path)?
        .ok_or_else(|| AuthorityError::File { path, source: io::ErrorKind::NotFound.into() })
}

pub(super) fn read_certificate(
    directory: &Path,
    name: &str,
) -> Result<CertificateDer<'static>, AuthorityError> {
    CertificateDer::from_pem_slice(read(directory, name)?.as_bytes()).map_err(|e| {
        AuthorityError::Malformed { path: directory.join(name), detail: e.to_string() }
    })
}

fn read(directory: &Path, name: &str) -> Result<String, AuthorityError> {
    use std::io::Read;
    let path = directory.join(name);
    let mut text = String::new();
    let file = std::fs::File::open(&path);
    match file.and_then(|f| f.take(FILE_BYTES_MAX).read_to_string(&mut text)) {
        Ok(_) => Ok(text),
        Err(source) => Err(AuthorityError::File { path, source }),
    }
}
