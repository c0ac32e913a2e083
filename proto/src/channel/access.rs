//! Authorisation matrix: the roles that may make each call, and whose objects it reaches. Every
//! request is compared with it before anything of it is counted or read. A call without a row does
//! not build.

use tonic::Status;

use super::member::{Peer, Role};
use crate::calls::Call;

/// The objects that a call reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Objects {
    /// The caller's own: its seat, its deltas, the adapters of its runs. The name is that of its
    /// certificate; no message carries one.
    Own,
    /// Everybody's.
    All,
}

/// One row of the matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The roles that may make the call; empty for the one call that needs no certificate.
    pub roles: &'static [Role],
    /// The objects that it reaches.
    pub objects: Objects,
}

const ANYONE: &[Role] = &[];
const SITE: &[Role] = &[Role::Site];
const OPERATOR: &[Role] = &[Role::Operator];
const READERS: &[Role] = &[Role::Operator, Role::Auditor];

/// The row of `call`.
pub const fn rule(call: Call) -> Rule {
    let (roles, objects) = match call {
        Call::EnrolmentEnroll => (ANYONE, Objects::Own),
        Call::SiteHello
        | Call::SiteNextAssignment
        | Call::SiteAnswerInquiry
        | Call::SiteAcceptTerms
        | Call::SiteDecline
        | Call::SiteHeartbeat
        | Call::SiteFetchAdapter
        | Call::SiteUploadStatus
        | Call::SiteUpload
        | Call::SiteSubmit => (SITE, Objects::Own),
        // The history is one for all; a site reads of it what its own round needs.
        Call::SiteCheckpoint | Call::SiteEvidence => (SITE, Objects::All),
        Call::OperatorInvite
        | Call::OperatorSetMemberState
        | Call::OperatorWithdrawInvitations
        | Call::OperatorCheckRun
        | Call::OperatorStartRun
        | Call::OperatorStopRun
        | Call::OperatorResumeRun => (OPERATOR, Objects::All),
        Call::OperatorStatus
        | Call::OperatorListSites
        | Call::OperatorListPersons
        | Call::OperatorListRuns
        | Call::OperatorShowRun
        | Call::OperatorLog
        | Call::OperatorPull
        | Call::OperatorCheckpoint
        | Call::OperatorExport => (READERS, Objects::All),
    };
    Rule { roles, objects }
}

/// Refuses `call` to a caller that its row does not name; `peer` is absent without a certificate.
pub fn authorize(call: Call, peer: Option<&Peer>) -> Result<(), Status> {
    let Rule { roles, .. } = rule(call);
    let Some(peer) = peer else {
        return match roles {
            [] => Ok(()),
            _ => {
                Err(Status::unauthenticated("this call needs a member's certificate; enrol first"))
            }
        };
    };
    if roles.is_empty() || roles.contains(&peer.member.role) {
        return Ok(());
    }
    let asked: Vec<&str> = roles.iter().map(|role| role.as_str()).collect();
    let text = format!("{} may not call this; it is for: {}", peer.member, asked.join(", "));
    Err(Status::permission_denied(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_certificate_enrolment_alone_is_open() {
        for call in Call::ALL {
            let open = authorize(call, None).is_ok();
            assert_eq!(open, call == Call::EnrolmentEnroll, "{call:?}");
            assert_eq!(Call::of(call.path()), Some(call));
        }
    }
}
