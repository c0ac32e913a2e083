//! The one service open without a certificate, and the invitations it honours.

use std::sync::PoisonError;
use std::time::Duration;

use tonic::{Request, Response, Status};
use tributary_proto::channel::{Member, certified};
use tributary_proto::v1::{self, enrolment_server::Enrolment};
use tributary_shared::digest::Digest;
use tributary_shared::outcome::chain;

use super::{Services, status};
use crate::clock;
use crate::driver::DriverError;
use crate::membership::{
    self, Admission, CertificateRequest, EnrolmentRefused, INVITATION_VALID_MAX,
};
use crate::rate_limit::RateLimit;
use crate::round::event::RegistryEvent;
use crate::store::{Certificate, EnrolError, Invitation, MemberState};
use crate::unbroken::to_the_end;

/// Time that a refusal is held back, so that trying tokens costs the caller something: with the
/// calls that one address may have at once, it is four tries a second.
const REFUSAL_DELAY: Duration = Duration::from_secs(1);
/// Validity of an invitation when the operator names none.
const VALID_DEFAULT: Duration = Duration::from_secs(72 * 3600);

/// The service behind a one-time token.
pub struct EnrolmentService(Services);

impl EnrolmentService {
    /// The service over `services`.
    pub fn new(services: Services) -> Self {
        Self(services)
    }
}

#[tonic::async_trait]
impl Enrolment for EnrolmentService {
    async fn enroll(
        &self,
        request: Request<v1::EnrollRequest>,
    ) -> Result<Response<v1::EnrollReply>, Status> {
        let enrolled = self.enrolled(request.into_inner()).await;
        if enrolled.is_err() {
            tokio::time::sleep(REFUSAL_DELAY).await;
        }
        enrolled.map(Response::new)
    }
}

impl EnrolmentService {
    async fn enrolled(&self, request: v1::EnrollRequest) -> Result<v1::EnrollReply, Status> {
        let v1::EnrollRequest { token, csr_der } = request;
        let request = CertificateRequest::parse(&csr_der)
            .map_err(|e| Status::invalid_argument(format!("csr_der: {e}")))?;
        // A member that the store has must not stay unknown here because its answer was lost.
        let services = self.0.clone();
        let enrolled = to_the_end(async move { services.enrol(&token, &request).await }).await;
        let (certificate, member) = enrolled.map_err(|e| status(e.into()))??;
        Ok(self.0.authority.reply(certificate, &member))
    }
}

/// Lines of the log about refused enrolments: ten at once, then one in ten seconds, for each invited
/// member and for all unknown tokens together. Others are for the debug level.
static LINES: RateLimit<Option<Member>> = RateLimit::new(Duration::from_secs(10), 10);

impl Services {
    /// Issues an invitation; gives the kit's text.
    pub(super) async fn invite(
        &self,
        by: &Member,
        member: Member,
        valid_s: u64,
        replace: bool,
    ) -> Result<String, Status> {
        let valid = if valid_s == 0 { VALID_DEFAULT } else { Duration::from_secs(valid_s) };
        if valid > INVITATION_VALID_MAX {
            let text =
                format!("valid_s: {valid_s} is above {} (90 days)", INVITATION_VALID_MAX.as_secs());
            return Err(Status::invalid_argument(text));
        }
        let replaces = match self.driver.members().state(&member) {
            Some(MemberState::Active | MemberState::Suspended) => true,
            Some(MemberState::Revoked) | None => false,
        };
        if replaces && !replace {
            return Err(Status::already_exists(format!(
                "{member} is enrolled; a new certificate would take the place of its present one and cut it off: --replace says that this is meant"
            )));
        }
        let mend = "free some on its disk, then invite again";
        self.driver.check_room(mend).map_err(status)?;
        let now = clock::now();
        let (kit, invitation) =
            membership::new_kit(&self.authority, &self.address, &member, valid, now)
                .map_err(|e| internal(&e))?;
        let text = kit.to_toml().map_err(|e| internal(&e))?;
        let event = RegistryEvent::Invited {
            member: member.to_string(),
            expires: invitation.expires,
            by: by.to_string(),
            replaces,
        };
        let stored = self.driver.store().invite(now, &invitation, event).await;
        stored.map_err(|e| status(DriverError::Store(e)))?;
        tracing::info!(%member, "invited");
        Ok(text)
    }

    async fn enrol(
        &self,
        token: &str,
        request: &CertificateRequest,
    ) -> Result<(Vec<u8>, Member), Status> {
        let now = clock::now();
        let store = self.driver.store();
        let token = membership::token_digest(token);
        let invitation = store.invitation(token).await;
        let invitation = invitation.map_err(|e| status(DriverError::Store(e)))?;
        let admitted = membership::admit(invitation.as_ref(), request, now);
        if let Err(refused) = &admitted {
            self.note_refused(invitation.as_ref(), refused).await;
        }
        let (member, key_digest) = match admitted? {
            Admission::Repeat { member, certificate } => return Ok((certificate, member)),
            Admission::Sign { member, key_digest } => (member, key_digest),
        };
        let der = self.authority.sign(request, &member, now).map_err(|e| internal(&e))?;
        let read = certified(&der).map_err(|e| internal(&e))?;
        let certificate = Certificate {
            serial_hex: read.peer.serial_hex,
            expires: read.expires,
            der: der.clone(),
        };
        let event =
            RegistryEvent::Enrolled { member: member.to_string(), certificate: Digest::of(&der) };
        let enrolled = store.enrol(now, token, key_digest, &certificate, event).await;
        // It may be written although its answer was lost.
        let enrolled = enrolled.inspect_err(|_| self.driver.members().expect_change());
        let der = enrolled.map_err(|error| match error {
            EnrolError::Store(error) => status(DriverError::Store(error)),
            refused @ (EnrolError::UnknownToken | EnrolError::Expired(_) | EnrolError::Used) => {
                Status::permission_denied(refused.to_string())
            }
        })?;
        // Cuts the connections of the certificate that was replaced.
        self.driver.members_changed().await.map_err(status)?;
        tracing::info!(%member, "enrolled");
        Ok((der, member))
    }
}

impl Services {
    /// Logs a refused enrolment. A token that is shown with a second key is an alarm, and stands in the history once
    /// per process.
    async fn note_refused(&self, invitation: Option<&Invitation>, refused: &EnrolmentRefused) {
        let Some(Invitation { member, token_digest, .. }) = invitation else {
            match LINES.allows(&None) {
                true => tracing::warn!("enrolment refused: {refused}"),
                false => tracing::debug!("enrolment refused: {refused}"),
            }
            return;
        };
        if *refused != EnrolmentRefused::Used {
            match LINES.allows(&Some(member.clone())) {
                true => tracing::warn!(%member, "enrolment refused: {refused}"),
                false => tracing::debug!(%member, "enrolment refused: {refused}"),
            }
            return;
        }
        let first = {
            // The set is valid after every single operation, also after a panic elsewhere.
            let mut reused = self.reused.lock().unwrap_or_else(PoisonError::into_inner);
            reused.insert(*token_digest)
        };
        if !first {
            return;
        }
        tracing::error!(
            %member,
            "ALARM: the token of this member's kit was used before and came with another key; the kit may be stolen: compare with its owner, `revoke` in doubt"
        );
        let event = RegistryEvent::TokenReused { member: member.to_string() };
        if let Err(error) = self.driver.store().record(clock::now(), event).await {
            tracing::error!(error = %chain(&error), "the alarm is not in the history");
        }
    }
}

fn internal(error: &(dyn std::error::Error + 'static)) -> Status {
    tracing::error!(error = %chain(error), "request failed");
    Status::internal("the coordinator failed; its log says why")
}
