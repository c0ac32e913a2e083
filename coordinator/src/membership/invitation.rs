//! Invitations: a one-time token, who it is for, and whether a request under it is admitted.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::{SecureRandom, SystemRandom};
use tonic::Status;
use tributary_proto::channel::{Member, StartupKit};
use tributary_shared::digest::Digest;
use tributary_shared::timestamp::Timestamp;

use super::authority::{Authority, AuthorityError};
use super::certificate::CertificateRequest;
use crate::store::Invitation;

/// A new invitation: the kit to hand over, and the row to keep.
pub fn new_kit(
    authority: &Authority,
    address: &str,
    member: &Member,
    valid: Duration,
    now: Timestamp,
) -> Result<(StartupKit, Invitation), AuthorityError> {
    let mut secret = [0; 32];
    SystemRandom::new().fill(&mut secret).map_err(|_| AuthorityError::Random)?;
    let token = URL_SAFE_NO_PAD.encode(secret);
    let invitation = Invitation {
        token_digest: token_digest(&token),
        member: member.clone(),
        expires: now.plus(valid),
        used: None,
    };
    let kit = StartupKit {
        consortium: authority.consortium().clone(),
        address: address.to_owned(),
        root_fingerprint: authority.root_fingerprint(),
        token,
        member: member.clone(),
        expires: invitation.expires,
    };
    Ok((kit, invitation))
}

/// The name under which the store keeps a token. 256 random bits need no salt, and looking up
/// a digest leaks nothing about the token by its timing.
pub fn token_digest(token: &str) -> Digest {
    Digest::of(token.as_bytes())
}

/// What to do about a request under an invitation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Sign, record certificate and key digest if the row is still unused, then answer.
    Sign {
        /// Who is enrolling.
        member: Member,
        /// For the row.
        key_digest: Digest,
    },
    /// The same request came before and its answer was lost: give the same certificate.
    Repeat {
        /// Who is enrolling.
        member: Member,
        /// The certificate given then, DER.
        certificate: Vec<u8>,
    },
}

/// Why a request is not admitted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnrolmentRefused {
    /// No such token was given out.
    #[error("this token is unknown here: the kit is of another coordinator, or it was withdrawn")]
    Unknown,
    /// The token's time is over.
    #[error("this token expired at {at}; ask the operator for a new startup kit")]
    Expired {
        /// When it ended.
        at: Timestamp,
    },
    /// Somebody has enrolled with it, under another key.
    #[error(
        "this token has been used with another key; if that was not you, tell the operator at once"
    )]
    Used,
}

impl From<EnrolmentRefused> for Status {
    fn from(refused: EnrolmentRefused) -> Self {
        Self::permission_denied(refused.to_string())
    }
}

/// Decides about a request under the row found for its token's digest.
pub fn admit(
    invitation: Option<&Invitation>,
    request: &CertificateRequest,
    now: Timestamp,
) -> Result<Admission, EnrolmentRefused> {
    let invitation = invitation.ok_or(EnrolmentRefused::Unknown)?;
    let member = invitation.member.clone();
    let key_digest = request.key_digest();
    match &invitation.used {
        // Even after the token's end: the answer was given while it was good.
        Some((used_by, certificate)) if *used_by == key_digest => {
            Ok(Admission::Repeat { member, certificate: certificate.clone() })
        }
        Some(_) => Err(EnrolmentRefused::Used),
        None if now < invitation.expires => Ok(Admission::Sign { member, key_digest }),
        None => Err(EnrolmentRefused::Expired { at: invitation.expires }),
    }
}
