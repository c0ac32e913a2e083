//! The site's session with its coordinator: connecting, greeting, and following the history.

use std::time::Duration;

use tributary_proto::channel::Identity;
use tributary_proto::v1;
use tributary_shared::outcome::{Failure, chain};

use super::activity::Phase;
use super::directory::identity_of;
use super::trouble::{SHARED_IDENTITY, Trouble, TroubleClass};
use super::witness::Unfollowed;
use super::{Halt, Site, suspended};
use crate::clock;
use crate::transport::{CallError, Coordinator};

/// Difference between the site's clock and the coordinator's that is worth a warning.
const SKEW_MAX: Duration = Duration::from_secs(60);

impl Site {
    /// Connects to the first address that answers.
    pub(super) async fn connect(&mut self) -> Result<(), Halt> {
        let proxy = self.config.proxy.as_deref();
        let session = Some(self.session.as_str());
        let mut unreachable = None;
        for address in self.addresses.in_order() {
            match Coordinator::connect(&address, &self.identity, proxy, session).await {
                Ok(connected) => {
                    self.coordinator = Some(connected);
                    self.connected = true;
                    self.address.send_replace(address);
                    return Ok(());
                }
                Err(error @ CallError::Unreachable(_)) => {
                    tracing::debug!("{}", error.failure());
                    unreachable.get_or_insert(error);
                }
                Err(
                    error @ (CallError::Rejected(_) | CallError::Busy(_) | CallError::Fatal(_)),
                ) => {
                    return Err(error.into());
                }
            }
        }
        let nowhere = || CallError::Unreachable(Failure::connection("no address is known"));
        Err(unreachable.unwrap_or_else(nowhere).into())
    }

    /// Keeps the address that the coordinator announces, for when the present one fails.
    pub(super) fn hear_address(&mut self, announced: &str) {
        match tokio::task::block_in_place(|| self.addresses.hear(announced)) {
            Ok(true) => tracing::info!("the coordinator announces the address {announced}"),
            Ok(false) => {}
            Err(error) => tracing::warn!("the announced address cannot be kept: {error}"),
        }
    }

    /// Connects if need be and says hello.
    pub(super) async fn greet(&mut self) -> Result<(), Halt> {
        if self.coordinator.is_none() {
            self.connect().await?;
        }
        let known = self.known_rounds();
        let reply = self.coordinator()?.hello(self.trouble(), known).await?;
        if reply.log_verifier_key != self.identity.log_verifier_key {
            let message = "the coordinator's log has another key than at enrolment";
            return Err(Halt::Wrong(Failure::refused("log_key", message).hint(
                "its history was begun anew or it is another coordinator: call the consortium",
            )));
        }
        if reply.suspended {
            self.activity.send_modify(|a| a.phase = Phase::Suspended);
            return Err(CallError::Rejected(suspended(&reply.suspend_reason)).into());
        }
        if reply.shared_identity {
            let message = "another program uses this site's identity at the same time";
            return Err(Halt::Wrong(Failure::refused(SHARED_IDENTITY, message).hint(
                "stop it, or enrol one of the two anew: its directory may have been copied",
            )));
        }
        self.clock = clock_trouble(reply.now_ms);
        self.hear_address(&reply.address);
        let (member, address) = (&self.identity.member, self.address.borrow().clone());
        tracing::info!(%member, %address, "connected");
        Ok(())
    }

    /// Takes up a certificate that `enroll --renew` has put in place of the refused one.
    pub(super) fn read_identity_again(&mut self) {
        self.coordinator = None;
        let folder = identity_of(&self.config.directory);
        let same = |found: &Identity| {
            found.member == self.identity.member
                && found.consortium == self.identity.consortium
                && found.log_verifier_key == self.identity.log_verifier_key
        };
        match Identity::load(&folder) {
            Ok(found) if same(&found) => self.identity = found,
            Ok(found) => tracing::warn!("{} holds another identity: {found:?}", folder.display()),
            Err(error) => tracing::warn!("the identity: {}", chain(&error)),
        }
    }

    /// The highest rounds of which the ledger holds a delta, as they are sent to the coordinator.
    pub(super) fn known_rounds(&self) -> Vec<v1::KnownRound> {
        let known = self.ledger.known_rounds().into_iter();
        known
            .map(|(run, round, answered)| v1::KnownRound { run: run.to_string(), round, answered })
            .collect()
    }

    /// Follows the coordinator's history, and halts before one that was rewritten and is not
    /// explained by a recovery statement that this site accepts.
    pub(super) async fn witness(&mut self) -> Result<(), Halt> {
        let (size, note) = (self.keeper.size(), self.keeper.note());
        let reply = self.coordinator()?.checkpoint(size, note).await?;
        self.follow(&reply)
    }

    /// As [`Self::witness`], with the answer at hand.
    pub(super) fn follow(&mut self, reply: &v1::CheckpointReply) -> Result<(), Halt> {
        self.awaited = None;
        let size = self.keeper.size();
        tokio::task::block_in_place(|| match self.keeper.follow(reply) {
            Ok(()) => {
                if self.keeper.size() != size {
                    tracing::info!("follows the history at {} leaves", self.keeper.size());
                }
                Ok(())
            }
            Err(Unfollowed::Disk(error)) => Err(Halt::disk("the witness file", &error)),
            Err(Unfollowed::Broken(failure)) => self.recover(&reply.recoveries_json, failure),
        })
    }
}

/// The trouble of this machine's clock beside the coordinator's, which shows `now_ms`, milliseconds
/// since 1970.
pub(super) fn clock_trouble(now_ms: i64) -> Option<Trouble> {
    let skew = clock::skew(now_ms);
    (skew > SKEW_MAX).then(|| {
        let skew_s = skew.as_secs();
        let detail = format!(
            "this machine's clock and the coordinator's differ by {skew_s} s; set it, best by NTP"
        );
        Trouble::new(TroubleClass::ClockWrong, detail)
    })
}
