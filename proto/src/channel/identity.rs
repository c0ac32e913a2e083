//! A member's identity on disk: key, certificate, authority, and where the coordinator is.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use tributary_shared::name::ConsortiumName;

use super::member::{InvalidCertificate, Member, certified};
use crate::private;

const KEY: &str = "key.pem";
const CERTIFICATE: &str = "cert.pem";
const ROOT: &str = "root.pem";
const LOG_KEY: &str = "log.vkey";
/// Written last: a directory without it holds an enrolment that has not finished.
const SUMMARY: &str = "identity.toml";

/// Far above what any of the files needs.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// Who we are towards the coordinator. `Debug` shows no key.
pub struct Identity {
    /// The consortium we belong to.
    pub consortium: ConsortiumName,
    /// Who we are in it.
    pub member: Member,
    /// Where the coordinator is, `host:port`.
    pub address: String,
    /// The coordinator's log key, in C2SP verifier form.
    pub log_verifier_key: String,
    /// Our certificate.
    pub certificate: CertificateDer<'static>,
    /// The authority's certificate: the only one we trust a server by.
    pub root: CertificateDer<'static>,
    /// Our private key, PKCS #8 PEM.
    pub key_pem: String,
}

/// Why an identity cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The directory holds none.
    #[error("{} holds no identity; enrol there first with the startup kit", .0.display())]
    Missing(PathBuf),
    /// A file cannot be read or written.
    #[error("{}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What failed.
        #[source]
        source: io::Error,
    },
    /// Somebody else can read the key.
    #[error(
        "{} has mode {mode:o}: others can read the private key; run chmod 600 on it", path.display()
    )]
    Exposed {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A file does not hold what it should.
    #[error("{}: {detail}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// The certificate names another member than the summary.
    #[error("{}: the certificate names {found}, identity.toml names {expected}", path.display())]
    Mismatch {
        /// The certificate file.
        path: PathBuf,
        /// As identity.toml says.
        expected: String,
        /// As the certificate says.
        found: String,
    },
    /// The certificate names no member.
    #[error("{}", path.display())]
    Nameless {
        /// The certificate file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: InvalidCertificate,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Summary {
    schema: u32,
    consortium: ConsortiumName,
    member: String,
    address: String,
}

/// Whether `directory` holds a finished identity.
pub fn exists(directory: &Path) -> bool {
    directory.join(SUMMARY).exists()
}

impl Identity {
    /// Reads the identity in `directory`; refuses a key that others can read.
    pub fn load(directory: &Path) -> Result<Self, IdentityError> {
        if !exists(directory) {
            return Err(IdentityError::Missing(directory.to_owned()));
        }
        let malformed = |name: &str, detail: String| IdentityError::Malformed {
            path: directory.join(name),
            detail,
        };
        let key_pem = read_key(directory)?.ok_or_else(|| malformed(KEY, "missing".to_owned()))?;
        let summary: Summary = toml::from_str(&read(directory, SUMMARY)?)
            .map_err(|e| malformed(SUMMARY, e.to_string()))?;
        if summary.schema != 1 {
            let detail = format!("schema {} is not 1; use a newer program", summary.schema);
            return Err(malformed(SUMMARY, detail));
        }
        let identity = Self {
            consortium: summary.consortium,
            member: summary.member.parse().map_err(|e| malformed(SUMMARY, format!("{e}")))?,
            address: summary.address,
            log_verifier_key: read(directory, LOG_KEY)?.trim().to_owned(),
            certificate: read_certificate(directory, CERTIFICATE)?,
            root: read_certificate(directory, ROOT)?,
            key_pem,
        };
        identity.check_name(directory)?;
        identity.key().map_err(|e| malformed(KEY, e))?;
        Ok(identity)
    }

    /// Writes every file durably, the summary last.
    pub fn store(&self, directory: &Path) -> Result<(), IdentityError> {
        create_private_directory(directory)?;
        let write = |name: &str, bytes: &str| {
            let path = directory.join(name);
            write_durably(&path, bytes.as_bytes(), 0o600)
                .map_err(|source| IdentityError::File { path, source })
        };
        write_key(directory, &self.key_pem)?;
        write(ROOT, &certificate_pem(&self.root))?;
        write(CERTIFICATE, &certificate_pem(&self.certificate))?;
        write(LOG_KEY, &format!("{}\n", self.log_verifier_key))?;
        let summary = Summary {
            schema: 1,
            consortium: self.consortium.clone(),
            member: self.member.to_string(),
            address: self.address.clone(),
        };
        let text = toml::to_string(&summary).map_err(|e| IdentityError::Malformed {
            path: directory.join(SUMMARY),
            detail: e.to_string(),
        })?;
        write(SUMMARY, &text)
    }

    pub(super) fn key(&self) -> Result<PrivateKeyDer<'static>, String> {
        PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes()).map_err(|e| e.to_string())
    }

    fn check_name(&self, directory: &Path) -> Result<(), IdentityError> {
        let path = directory.join(CERTIFICATE);
        match certified(&self.certificate) {
            Ok(c) if c.consortium == self.consortium && c.peer.member == self.member => Ok(()),
            Ok(c) => Err(IdentityError::Mismatch {
                path,
                expected: self.member.uri(&self.consortium),
                found: c.peer.member.uri(&c.consortium),
            }),
            Err(source) => Err(IdentityError::Nameless { path, source }),
        }
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({} at {})", self.member.uri(&self.consortium), self.address)
    }
}

/// The key in `directory`, when there is one.
pub(super) fn read_key(directory: &Path) -> Result<Option<String>, IdentityError> {
    read_secret(&directory.join(KEY))
}

/// Reads a secret's text, `None` when there is no such file; refuses one that others can read.
pub fn read_secret(path: &Path) -> Result<Option<String>, IdentityError> {
    let mode = match fs::metadata(path) {
        Ok(metadata) => metadata.permissions().mode() & 0o777,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(IdentityError::File { path: path.to_owned(), source }),
    };
    if mode & 0o077 != 0 {
        return Err(IdentityError::Exposed { path: path.to_owned(), mode });
    }
    read_file(path).map(Some)
}

/// Writes the key durably, readable by its owner alone.
pub(super) fn write_key(directory: &Path, key_pem: &str) -> Result<(), IdentityError> {
    create_private_directory(directory)?;
    let path = directory.join(KEY);
    write_secret(&path, key_pem.as_bytes()).map_err(|source| IdentityError::File { path, source })
}

fn create_private_directory(directory: &Path) -> Result<(), IdentityError> {
    private::create_folder(directory)
        .map_err(|source| IdentityError::File { path: directory.to_owned(), source })
}

fn read(directory: &Path, name: &str) -> Result<String, IdentityError> {
    read_file(&directory.join(name))
}

fn read_file(path: &Path) -> Result<String, IdentityError> {
    let path = path.to_owned();
    let mut text = String::new();
    match File::open(&path).and_then(|f| f.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)) {
        Ok(_) if text.len() as u64 > FILE_BYTES_MAX => Err(IdentityError::Malformed {
            path,
            detail: format!("more than {FILE_BYTES_MAX} bytes"),
        }),
        Ok(_) => Ok(text),
        Err(source) => Err(IdentityError::File { path, source }),
    }
}

fn read_certificate(
    directory: &Path,
    name: &str,
) -> Result<CertificateDer<'static>, IdentityError> {
    CertificateDer::from_pem_slice(read(directory, name)?.as_bytes())
        .map_err(|e| IdentityError::Malformed { path: directory.join(name), detail: e.to_string() })
}

/// A certificate's DER as PEM.
pub fn certificate_pem(der: &[u8]) -> String {
    pem("CERTIFICATE", der)
}

/// A PKCS #8 key's DER as PEM.
pub fn private_key_pem(der: &[u8]) -> String {
    pem("PRIVATE KEY", der)
}

fn pem(label: &str, der: &[u8]) -> String {
    let body = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, der);
    let mut text = format!("-----BEGIN {label}-----\n");
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = tail;
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

/// Writes `bytes` to `path` so that after a crash there is the old file or the new one, whole. After
/// an error it may be either, and nothing is left beside it.
pub fn write_durably(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let no_name = || io::Error::new(io::ErrorKind::InvalidInput, "not a file path");
    let directory = path.parent().ok_or_else(no_name)?;
    let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
    let mut name = path.file_name().ok_or_else(no_name)?.to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = directory.join(name);
    // A leftover of a crash may carry wider permissions than we ask for.
    match fs::remove_file(&temporary) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
    let written = file
        .write_all(bytes)
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&temporary, path));
    if let Err(error) = written {
        // Best effort: a full disk needs no halves of files.
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    File::open(directory)?.sync_all()
}

/// Writes a secret durably, readable by its owner alone.
pub fn write_secret(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_durably(path, bytes, 0o600)
}
