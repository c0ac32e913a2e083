//! `tributary-coordinator init` and `renew-server`: everything a new consortium starts with.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{Issuer, KeyPair};
use ring::rand::SystemRandom;
use rustls::pki_types::{CertificateDer, ServerName};
use tributary_proto::channel::{
    Identity, IdentityError, Member, Role, certificate_pem, private_key_pem, write_secret,
};
use tributary_proto::private::create_folder;
use tributary_shared::name::{ConsortiumName, SiteName};
use tributary_shared::outcome::{Failure, chain};
use tributary_shared::timestamp::Timestamp;
use tributary_shared::tlog::key::Signer;

use super::authority::{Authority, AuthorityError, MEMBER_VALID, log_name, read_certificate};
use super::certificate::{self, CertificateRequest};
use super::server::{ServerCertificate, Unworkable};
use super::{
    CONFIG, FOUNDER, LOG_KEY, LOG_VERIFIER_KEY, OPERATOR, REHEARSAL, ROOT, ROOT_KEY, SERVER,
};

const ROOT_VALID: Duration = Duration::from_secs(3653 * 24 * 3600);
const SERVER_VALID: Duration = Duration::from_secs(365 * 24 * 3600);

/// The sample is what `init` writes, so that every key is explained in one text.
const SAMPLE: &str = include_str!("../../../deploy/coordinator.toml");
const REHEARSAL_SAMPLE: &str = include_str!("../../../deploy/rehearsal.toml");
const SAMPLE_LISTEN: &str = "listen = \"127.0.0.1:8443\"";
const SAMPLE_ADDRESS: &str = "address = \"coordinator.example.org:8443\"";

/// What a new consortium is made from.
#[derive(Clone, Debug)]
pub struct Founding {
    /// Its name.
    pub consortium: ConsortiumName,
    /// DNS names and addresses in the server's certificate; the host of `address` is added.
    pub server_names: Vec<String>,
    /// Where to listen, for coordinator.toml.
    pub listen: String,
    /// What kits tell members to connect to, `host:port`.
    pub address: String,
    /// Who operates it first.
    pub operator: SiteName,
}

/// What `init` made.
#[derive(Clone, Debug)]
pub struct Founded {
    /// The configuration to serve with.
    pub config: PathBuf,
    /// The operator's identity directory.
    pub operator: PathBuf,
    /// The manifest of a rehearsal, to try everything with.
    pub rehearsal: PathBuf,
    /// The log's public key, to be published.
    pub log_verifier_key: String,
    /// The server certificate's names.
    pub server_names: Vec<String>,
}

/// Why a consortium was not founded or the server's certificate not renewed.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// Something is there already.
    #[error("{} exists; init never overwrites an authority", .0.display())]
    Exists(PathBuf),
    /// A name that no certificate can carry.
    #[error("`{0}` is neither a DNS name nor an IP address")]
    ServerName(String),
    /// The address has no port or no host.
    #[error("`{0}` is not an address; write host:port")]
    Address(String),
    /// A file cannot be written.
    #[error("{}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What failed.
        #[source]
        source: io::Error,
    },
    /// The operator's identity cannot be written.
    #[error("the operator's identity")]
    Operator(#[from] IdentityError),
    /// A key or certificate cannot be made.
    #[error("cannot make a certificate")]
    Certificate(#[from] rcgen::Error),
    /// The log's key cannot be made.
    #[error("cannot make the log's key: {0}")]
    LogKey(String),
    /// A name to leave out that is not there.
    #[error("`{}` is not in the server's certificate, which is for {}", .0, .1.join(", "))]
    NotPresent(String, Vec<String>),
    /// The result would be of no use to members.
    #[error("nothing is replaced, because the new certificate would not work")]
    Unworkable(#[from] Unworkable),
    /// The authority cannot be read.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
}

impl InitError {
    /// The error as the one line and exit code of a command.
    pub fn failure(&self) -> Failure {
        let failure = Failure::invalid("init", chain(self));
        match self {
            Self::Exists(_) => {
                failure.hint("choose an empty directory, or delete what a broken init left")
            }
            Self::Authority(error) => error.failure(),
            Self::Unworkable(unworkable) => failure.hint(unworkable.mend()),
            Self::NotPresent(..)
            | Self::ServerName(_)
            | Self::Address(_)
            | Self::File { .. }
            | Self::Operator(_)
            | Self::Certificate(_)
            | Self::LogKey(_) => failure,
        }
    }
}

/// Founds a consortium in `directory`: authority, server certificate, log key, the first
/// operator's identity, configuration. Overwrites nothing.
pub fn init(directory: &Path, founding: &Founding, now: Timestamp) -> Result<Founded, InitError> {
    let server_names = server_names(founding)?;
    create_folder(directory)
        .map_err(|source| InitError::File { path: directory.to_owned(), source })?;
    let keys = [ROOT_KEY, ROOT, SERVER, FOUNDER, LOG_KEY, LOG_VERIFIER_KEY];
    let files = keys.into_iter().chain([CONFIG, REHEARSAL, OPERATOR]);
    if let Some(taken) = files.map(|name| directory.join(name)).find(|path| path.exists()) {
        return Err(InitError::Exists(taken));
    }
    let consortium = &founding.consortium;
    let root_key = new_key()?;
    let root = certificate::root(consortium, &root_key, (now, ROOT_VALID))?;
    write(directory, ROOT_KEY, &root_key.serialize_pem())?;
    let root = CertificateDer::from(root);
    let issuer = Issuer::from_ca_cert_der(&root, root_key)?;

    let server = new_server(&issuer, consortium, &server_names, now)?;
    write(directory, SERVER, &server.text)?;
    let log_verifier_key = write_log_key(directory, consortium)?;
    let operator = found_operator(founding, &issuer, root.clone(), &log_verifier_key, now)?;
    write(directory, FOUNDER, &certificate_pem(&operator.certificate))?;
    let operator_directory = directory.join(OPERATOR);
    operator.store(&operator_directory)?;
    write(directory, CONFIG, &config_text(founding))?;
    write(directory, REHEARSAL, REHEARSAL_SAMPLE)?;
    // Last: without it nothing here can be served or invited with.
    write(directory, ROOT, &certificate_pem(&root))?;
    Ok(Founded {
        config: directory.join(CONFIG),
        operator: operator_directory,
        rehearsal: directory.join(REHEARSAL),
        log_verifier_key,
        server_names,
    })
}

/// Change to the names in the server's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerNames {
    /// Add these to the present ones, then leave out the others named.
    Change {
        /// Added.
        added: Vec<String>,
        /// Left out.
        dropped: Vec<String>,
    },
    /// These alone.
    Only(Vec<String>),
}

impl ServerNames {
    fn of(self, present: &[String]) -> Result<Vec<String>, InitError> {
        let mut names = match self {
            Self::Only(names) => names,
            Self::Change { added, dropped } => {
                if let Some(stranger) = dropped.iter().find(|name| !present.contains(name)) {
                    return Err(InitError::NotPresent(stranger.clone(), present.to_vec()));
                }
                let kept = present.iter().filter(|name| !dropped.contains(name)).cloned();
                kept.chain(added).collect()
            }
        };
        let mut seen = BTreeSet::new();
        names.retain(|name| seen.insert(name.clone()));
        check_names(&names)?;
        Ok(names)
    }
}

/// Replaces the server's key and certificate, from the same authority. Nothing is replaced by a
/// certificate with which members that are told `address` could not connect. The running server
/// takes it on reload.
pub fn renew_server(
    directory: &Path,
    names: ServerNames,
    address: &str,
    now: Timestamp,
) -> Result<Vec<String>, InitError> {
    let authority = Authority::load(directory)?;
    let names = match names {
        only @ ServerNames::Only(_) => only.of(&[])?,
        change @ ServerNames::Change { .. } => {
            let present = read_certificate(directory, SERVER)?;
            let present = certificate::server_names(&present);
            change.of(&present.map_err(|detail| AuthorityError::Malformed {
                path: directory.join(SERVER),
                detail,
            })?)?
        }
    };
    let made = new_server(authority.issuer(), authority.consortium(), &names, now)?;
    let root = read_certificate(directory, ROOT)?;
    let certificate = ServerCertificate::of(made.leaf.clone(), root)
        .map_err(|detail| AuthorityError::Malformed { path: directory.join(SERVER), detail })?;
    certificate.check(address, now)?;
    write(directory, SERVER, &made.text)?;
    Ok(names)
}

fn server_names(founding: &Founding) -> Result<Vec<String>, InitError> {
    let invalid = || InitError::Address(founding.address.clone());
    let (host, port) = founding.address.rsplit_once(':').ok_or_else(invalid)?;
    port.parse::<u16>().map_err(|_| invalid())?;
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let mut names = founding.server_names.clone();
    if !names.contains(&host) {
        names.insert(0, host);
    }
    check_names(&names)?;
    Ok(names)
}

fn check_names(names: &[String]) -> Result<(), InitError> {
    match names.iter().find(|name| ServerName::try_from(name.as_str()).is_err()) {
        Some(bad) => Err(InitError::ServerName(bad.clone())),
        None => Ok(()),
    }
}

/// A certificate of the server, and the text of its file with the key.
struct NewServer {
    leaf: CertificateDer<'static>,
    text: String,
}

fn new_server(
    issuer: &Issuer<'_, KeyPair>,
    consortium: &ConsortiumName,
    names: &[String],
    now: Timestamp,
) -> Result<NewServer, InitError> {
    let key = new_key()?;
    let leaf = certificate::server(issuer, consortium, names, &key, (now, SERVER_VALID))?;
    let text = format!("{}{}", certificate_pem(&leaf), key.serialize_pem());
    Ok(NewServer { leaf: CertificateDer::from(leaf), text })
}

fn write_log_key(directory: &Path, consortium: &ConsortiumName) -> Result<String, InitError> {
    let failed = |e: &dyn std::error::Error| InitError::LogKey(chain(e));
    let pkcs8 = Signer::generate(&SystemRandom::new()).map_err(|e| failed(&e))?;
    let signer = Signer::from_pkcs8(&log_name(consortium), &pkcs8).map_err(|e| failed(&e))?;
    let verifier_key = signer.verifier_key().to_string();
    write(directory, LOG_KEY, &private_key_pem(&pkcs8))?;
    write(directory, LOG_VERIFIER_KEY, &format!("{verifier_key}\n"))?;
    Ok(verifier_key)
}

fn found_operator(
    founding: &Founding,
    issuer: &Issuer<'_, KeyPair>,
    root: CertificateDer<'static>,
    log_verifier_key: &str,
    now: Timestamp,
) -> Result<Identity, InitError> {
    let key = new_key()?;
    let member = Member { role: Role::Operator, name: founding.operator.clone() };
    let request = CertificateRequest::of(&key);
    let valid = (now, MEMBER_VALID);
    let certificate = certificate::member(issuer, &founding.consortium, &member, &request, valid)?;
    Ok(Identity {
        consortium: founding.consortium.clone(),
        member,
        address: founding.address.clone(),
        log_verifier_key: log_verifier_key.to_owned(),
        certificate: CertificateDer::from(certificate),
        root,
        key_pem: key.serialize_pem(),
    })
}

fn config_text(founding: &Founding) -> String {
    SAMPLE.replacen(SAMPLE_LISTEN, &format!("listen = {:?}", founding.listen), 1).replacen(
        SAMPLE_ADDRESS,
        &format!("address = {:?}", founding.address),
        1,
    )
}

fn new_key() -> Result<KeyPair, rcgen::Error> {
    KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
}

/// Public ones too are their owner's alone: they are handed over, not read in place.
fn write(directory: &Path, name: &str, text: &str) -> Result<(), InitError> {
    let path = directory.join(name);
    write_secret(&path, text.as_bytes()).map_err(|source| InitError::File { path, source })
}
