//! Making certificates: what each kind may be used for, and for how long.

use std::net::IpAddr;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use ring::rand::{SecureRandom, SystemRandom};
use time::OffsetDateTime;
use tributary_proto::channel::{Member, authority_uri};
use tributary_shared::digest::Digest;
use tributary_shared::name::ConsortiumName;
use tributary_shared::timestamp::Timestamp;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate, X509CertificationRequest};

/// Largest certificate request read.
const REQUEST_BYTES_MAX: usize = 8 * 1024;
/// How far a member's clock may be behind ours.
const CLOCK_SKEW: Duration = Duration::from_secs(10 * 60);

/// A certificate request whose signature proves that the sender holds the key. Only the key is
/// taken from it: whatever names or uses it asks for are ignored.
pub struct CertificateRequest {
    key: SubjectPublicKeyInfo,
}

/// Why a certificate request is not signed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRequest {
    /// Not a PKCS #10 request.
    #[error("not a certificate request: {0}")]
    Malformed(String),
    /// The signature does not verify.
    #[error("the certificate request is not signed by its own key")]
    Signature,
    /// Not a P-256 key.
    #[error("the certificate request holds a key of another kind than ECDSA P-256")]
    KeyKind,
}

impl CertificateRequest {
    /// Parses and verifies a request.
    pub fn parse(der: &[u8]) -> Result<Self, InvalidRequest> {
        let malformed = InvalidRequest::Malformed;
        if der.len() > REQUEST_BYTES_MAX {
            return Err(malformed(format!("more than {REQUEST_BYTES_MAX} bytes")));
        }
        let (rest, request) =
            X509CertificationRequest::from_der(der).map_err(|e| malformed(e.to_string()))?;
        if !rest.is_empty() {
            return Err(malformed(format!("{} bytes after it", rest.len())));
        }
        let spki = &request.certification_request_info.subject_pki;
        let key = SubjectPublicKeyInfo::from_der(spki.raw).map_err(|_| InvalidRequest::KeyKind)?;
        if key.algorithm() != &rcgen::PKCS_ECDSA_P256_SHA256 {
            return Err(InvalidRequest::KeyKind);
        }
        request.verify_signature().map_err(|_| InvalidRequest::Signature)?;
        Ok(Self { key })
    }

    /// For a key that is ours, and needs no proof.
    pub(super) fn of(key: &KeyPair) -> Self {
        let spki = key.subject_public_key_info();
        let key = SubjectPublicKeyInfo::from_der(&spki).expect("rcgen reads what it writes");
        Self { key }
    }

    /// The digest of the public key: who asks again under a used token must hold this key.
    pub fn key_digest(&self) -> Digest {
        Digest::of(&self.key.subject_public_key_info())
    }
}

/// A certificate for `member` over the key of `request`.
pub(super) fn member(
    issuer: &Issuer<'_, KeyPair>,
    consortium: &ConsortiumName,
    member: &Member,
    request: &CertificateRequest,
    valid: (Timestamp, Duration),
) -> Result<Vec<u8>, rcgen::Error> {
    let mut params = leaf(&member.to_string(), consortium, valid)?;
    params.subject_alt_names = vec![SanType::URI(member.uri(consortium).try_into()?)];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    Ok(params.signed_by(&request.key, issuer)?.der().to_vec())
}

/// A certificate for the server over `key`, good for `names` (DNS names and addresses).
pub(super) fn server(
    issuer: &Issuer<'_, KeyPair>,
    consortium: &ConsortiumName,
    names: &[String],
    key: &KeyPair,
    valid: (Timestamp, Duration),
) -> Result<Vec<u8>, rcgen::Error> {
    let mut params = leaf("coordinator", consortium, valid)?;
    params.subject_alt_names = CertificateParams::new(names.to_vec())?.subject_alt_names;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    Ok(params.signed_by(key, issuer)?.der().to_vec())
}

/// The authority's own certificate. It signs leaves only.
pub(super) fn root(
    consortium: &ConsortiumName,
    key: &KeyPair,
    valid: (Timestamp, Duration),
) -> Result<Vec<u8>, rcgen::Error> {
    let mut params = leaf("authority", consortium, valid)?;
    params.subject_alt_names = vec![SanType::URI(authority_uri(consortium).try_into()?)];
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = false;
    Ok(params.self_signed(key)?.der().to_vec())
}

/// The DNS names and addresses in a server's certificate.
pub(super) fn server_names(der: &[u8]) -> Result<Vec<String>, String> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|e| e.to_string())?;
    let names = certificate.subject_alternative_name().map_err(|e| e.to_string())?;
    let names = names.map(|extension| extension.value.general_names.as_slice());
    names.unwrap_or_default().iter().map(server_name).collect()
}

fn server_name(name: &GeneralName<'_>) -> Result<String, String> {
    let address = |bytes: &[u8]| match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        _ => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
    };
    if let GeneralName::DNSName(name) = name {
        return Ok((*name).to_owned());
    }
    if let GeneralName::IPAddress(bytes) = name {
        return address(bytes)
            .map(|ip| ip.to_string())
            .ok_or_else(|| "a broken address".to_owned());
    }
    Err(format!("{name} is no server name"))
}

/// Whether `key` is the certificate's.
pub(super) fn check_key(der: &[u8], key: &KeyPair) -> Result<(), String> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|e| e.to_string())?;
    if certificate.public_key().raw == key.subject_public_key_info() {
        Ok(())
    } else {
        Err("not the key of the certificate beside it".to_owned())
    }
}

fn leaf(
    name: &str,
    consortium: &ConsortiumName,
    (from, valid): (Timestamp, Duration),
) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::default();
    let skew = i64::try_from(CLOCK_SKEW.as_millis()).unwrap_or(0);
    params.not_before = date(Timestamp::from_millis(from.as_millis() - skew))?;
    params.not_after = date(from.plus(valid))?;
    params.serial_number = Some(serial()?);
    params.distinguished_name = DistinguishedName::new();
    // For people who look at a certificate; no program of ours reads it.
    params.distinguished_name.push(DnType::OrganizationName, consortium.as_str());
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn date(at: Timestamp) -> Result<OffsetDateTime, rcgen::Error> {
    OffsetDateTime::from_unix_timestamp(at.as_millis().div_euclid(1000))
        .map_err(|_| rcgen::Error::Time)
}

/// 127 random bits, first of them set: positive and of one length (RFC 5280, 4.1.2.2).
fn serial() -> Result<SerialNumber, rcgen::Error> {
    let mut bytes = [0; 16];
    SystemRandom::new().fill(&mut bytes).map_err(|_| rcgen::Error::RingUnspecified)?;
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}
