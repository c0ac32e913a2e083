//! Who is on the other side: the one name a certificate carries, and nothing else in it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use tributary_shared::digest::Digest;
use tributary_shared::name::{ConsortiumName, SiteName};
use tributary_shared::timestamp::Timestamp;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

const SCHEME: &str = "tributary://";

/// What a member may do at the coordinator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// A hospital: trains and submits.
    Site,
    /// Invites sites, starts and stops runs.
    Operator,
    /// Reads.
    Auditor,
}

impl Role {
    /// The role as it stands in certificates, kits and tables.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Site => "site",
            Self::Operator => "operator",
            Self::Auditor => "auditor",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Role {
    type Err = InvalidMember;

    fn from_str(text: &str) -> Result<Self, InvalidMember> {
        match text {
            "site" => Ok(Self::Site),
            "operator" => Ok(Self::Operator),
            "auditor" => Ok(Self::Auditor),
            _ => Err(InvalidMember(text.chars().take(80).collect())),
        }
    }
}

/// A text that names no member.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` names no member; write site/NAME, operator/NAME or auditor/NAME")]
pub struct InvalidMember(String);

/// A member of the consortium: written `site/NAME`, `operator/NAME` or `auditor/NAME`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Member {
    /// What it may do.
    pub role: Role,
    /// Its name, unique in its role.
    pub name: SiteName,
}

impl Member {
    /// The one URI by which a certificate of `consortium` names this member.
    pub fn uri(&self, consortium: &ConsortiumName) -> String {
        format!("{SCHEME}{consortium}/{self}")
    }
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}/{}", self.role.as_str(), self.name.as_str()))
    }
}

impl FromStr for Member {
    type Err = InvalidMember;

    fn from_str(text: &str) -> Result<Self, InvalidMember> {
        let invalid = || InvalidMember(text.chars().take(80).collect());
        let (role, name) = text.split_once('/').ok_or_else(invalid)?;
        Ok(Self {
            role: role.parse().map_err(|_| invalid())?,
            name: name.parse().map_err(|_| invalid())?,
        })
    }
}

/// The member at the other end of a connection, from its verified certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Who it is.
    pub member: Member,
    /// The certificate's serial number, lower-case hex.
    pub serial_hex: String,
    /// SHA-256 of the certificate's DER.
    pub fingerprint: Digest,
}

/// What a member's certificate says. Reading it proves nothing; the handshake does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certified {
    /// The consortium that vouches.
    pub consortium: ConsortiumName,
    /// The member, with serial number and fingerprint.
    pub peer: Peer,
    /// The last moment the certificate is good.
    pub expires: Timestamp,
}

/// Why a certificate names no member.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidCertificate {
    /// Not a DER certificate.
    #[error("not an X.509 certificate: {0}")]
    Malformed(String),
    /// No name we know, or more than one.
    #[error(
        "the certificate carries {found} subject alternative names; a member has exactly one, a tributary:// URI"
    )]
    Names {
        /// How many names of any kind it carries.
        found: usize,
    },
    /// The one name is not a member's.
    #[error("`{0}` is not tributary://CONSORTIUM/ROLE/NAME")]
    NotAMember(String),
    /// The one name is not an authority's.
    #[error("`{0}` is not tributary://CONSORTIUM")]
    NotAnAuthority(String),
}

/// Reads the member that a certificate names: its single subject alternative name must be a URI
/// `tributary://CONSORTIUM/ROLE/NAME`; subject, common name and every other field are ignored.
pub fn certified(der: &[u8]) -> Result<Certified, InvalidCertificate> {
    let certificate = parse(der)?;
    let uri = only_uri(&certificate)?;
    let invalid = || InvalidCertificate::NotAMember(uri.chars().take(200).collect());
    let path = uri.strip_prefix(SCHEME).ok_or_else(invalid)?;
    let (consortium, member) = path.split_once('/').ok_or_else(invalid)?;
    let seconds = certificate.validity().not_after.timestamp();
    Ok(Certified {
        consortium: consortium.parse().map_err(|_| invalid())?,
        peer: Peer {
            member: member.parse().map_err(|_| invalid())?,
            serial_hex: certificate.raw_serial().iter().map(|b| format!("{b:02x}")).collect(),
            fingerprint: Digest::of(der),
        },
        expires: Timestamp::from_millis(seconds.saturating_mul(1000)),
    })
}

/// The one URI by which the authority's own certificate names its consortium.
pub fn authority_uri(consortium: &ConsortiumName) -> String {
    format!("{SCHEME}{consortium}")
}

/// Reads the consortium that an authority's certificate names: `tributary://CONSORTIUM`.
pub fn authority_consortium(der: &[u8]) -> Result<ConsortiumName, InvalidCertificate> {
    let certificate = parse(der)?;
    let uri = only_uri(&certificate)?;
    uri.strip_prefix(SCHEME)
        .and_then(|name| name.parse().ok())
        .ok_or_else(|| InvalidCertificate::NotAnAuthority(uri.chars().take(200).collect()))
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, InvalidCertificate> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok((rest, _)) => {
            Err(InvalidCertificate::Malformed(format!("{} bytes after it", rest.len())))
        }
        Err(e) => Err(InvalidCertificate::Malformed(e.to_string())),
    }
}

fn only_uri<'a>(certificate: &X509Certificate<'a>) -> Result<&'a str, InvalidCertificate> {
    let names = certificate
        .subject_alternative_name()
        .map_err(|e| InvalidCertificate::Malformed(e.to_string()))?
        .map(|extension| extension.value.general_names.as_slice())
        .unwrap_or_default();
    match names {
        [GeneralName::URI(uri)] => Ok(uri),
        _ => Err(InvalidCertificate::Names { found: names.len() }),
    }
}
