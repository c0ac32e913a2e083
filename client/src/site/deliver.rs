//! From the outbox to the coordinator's verdict. The same delta may be sent any number of times,
//! before and after restarts of either side; the answer is the same.

use tributary_proto::convert::verdict;
use tributary_shared::outcome::Failure;
use tributary_shared::refusal::{Refusal, RefusalClass};
use tributary_shared::text::{REASON_CHARS_MAX, printable_start};

use super::activity::{Phase, RoundId};
use super::{Halt, Site};
use crate::ledger::{Delta, Event, Released, Standing};
use crate::transport::{CallError, Upload};

/// Times that a delta is sent again because it arrived damaged.
const DAMAGED_MAX: u32 = 3;

impl Site {
    /// Delivers every delta that an earlier start or a broken connection left in the outbox.
    pub(super) async fn deliver_owed(&mut self) -> Result<(), Halt> {
        for (run, round) in self.ledger.owed() {
            let id = RoundId { run, round };
            let Some(Standing::Owed { trained, .. }) = self.standing(&id) else { continue };
            let holds = || self.outbox.holds(&id.run, id.round, trained.digest, trained.bytes);
            if tokio::task::block_in_place(holds) {
                tracing::info!(run = %id.run, round, "sending the delta that waits in the outbox");
                self.deliver(&id).await?;
            } else {
                self.witness().await?;
                // Without the bytes there is nothing to send, and training again is not allowed.
                let reason = "the trained delta was lost from the outbox before it was counted";
                self.decline(&id, None, reason_failed(reason)).await?;
            }
        }
        Ok(())
    }

    /// Sends the delta of a round and records the verdict.
    pub(super) async fn deliver(&mut self, id: &RoundId) -> Result<(), Halt> {
        let Some(Standing::Owed { trained, .. }) = self.standing(id) else { return Ok(()) };
        // A training may take hours: nothing leaves under a history that was rewritten meanwhile.
        self.witness_when_there_is_room(id, trained.bytes).await?;
        let event = Event::Released { digest: trained.digest, bytes: trained.bytes };
        self.record_news(id, event)?;
        let delta = self.ledger.release_delta(&id.run, id.round)?;
        let refusal = self.send_when_there_is_room(id, &delta).await?.err();
        match &refusal {
            None => tracing::info!(run = %id.run, round = id.round, "the delta is counted"),
            Some(refusal) => {
                tracing::warn!(run = %id.run, round = id.round, "the delta is refused: {refusal}");
            }
        }
        self.record(id, Event::Answered { digest: trained.digest, refusal })?;
        self.outbox.remove(&id.run, id.round).map_err(|e| Halt::disk("the outbox", &e))?;
        self.activity.send_modify(super::activity::Activity::rest);
        Ok(())
    }

    /// Sends a delta; a coordinator without room for it is asked again and again, while the round's
    /// heartbeats go on.
    async fn send_when_there_is_room(
        &self,
        id: &RoundId,
        delta: &Released<Delta>,
    ) -> Result<Result<(), Refusal>, Halt> {
        let mut backoff = super::backoff();
        loop {
            self.show_upload(id, delta.get().subject.bytes);
            match self.send(id, delta).await {
                Err(Halt::Call(CallError::Busy(failure))) => {
                    self.wait_for_room(&failure, &mut backoff).await;
                }
                ended => return ended,
            }
        }
    }

    /// Follows the history; a coordinator that has no room to remember the head it signs is asked again
    /// and again, while the round's heartbeats go on.
    async fn witness_when_there_is_room(&mut self, id: &RoundId, bytes: u64) -> Result<(), Halt> {
        let mut backoff = super::backoff();
        loop {
            match self.witness().await {
                Err(Halt::Call(CallError::Busy(failure))) => {
                    self.show_upload(id, bytes);
                    self.wait_for_room(&failure, &mut backoff).await;
                }
                ended => return ended,
            }
        }
    }

    /// Shows that a delta of `bytes` bytes is on its way; what keeps it stays shown.
    fn show_upload(&self, id: &RoundId, bytes: u64) {
        self.activity.send_modify(|a| {
            a.round = Some(id.clone());
            let trouble = std::mem::take(&mut a.trouble);
            a.enter(Phase::Uploading, bytes);
            a.trouble = trouble;
        });
    }

    /// Sends what the coordinator still needs of a delta and asks for it to be counted. The inner
    /// result is the verdict.
    async fn send(
        &self,
        id: &RoundId,
        delta: &Released<Delta>,
    ) -> Result<Result<(), Refusal>, Halt> {
        let coordinator = self.coordinator()?;
        let bytes = delta.get().subject.bytes;
        let file = self.outbox.path(&id.run, id.round);
        let mut damaged = 0;
        loop {
            let status = coordinator.upload_status(delta).await?;
            if let Err(refusal) = verdict(status.refusal) {
                return Ok(Err(refusal));
            }
            self.activity.send_modify(|a| a.trouble.clear());
            if status.durable_offset == bytes {
                match self.submit(delta).await {
                    // Cut off between the last byte and its admission: a stream without bytes
                    // makes the coordinator finish.
                    Err(Halt::Call(CallError::Rejected(_))) => {}
                    ended => return ended,
                }
            }
            if status.durable_offset > bytes {
                let text = "the coordinator says that it holds more bytes than the delta has";
                return Err(CallError::Rejected(Failure::refused("offset", text)).into());
            }
            let upload = Upload { delta, file: &file, offset: status.durable_offset };
            let sent = |bytes| self.activity.send_modify(|a| a.step = bytes);
            let reply = coordinator.upload(upload, sent).await;
            let reply = reply.map_err(|e| Halt::disk("the outbox", &e))??;
            match verdict(reply.refusal) {
                Ok(()) if reply.durable_offset == bytes => return self.submit(delta).await,
                Ok(()) => return Err(CallError::broken_off("not every byte arrived").into()),
                Err(Refusal::Digest { .. }) if damaged < DAMAGED_MAX => damaged += 1,
                Err(refusal) => return Ok(Err(refusal)),
            }
        }
    }

    async fn submit(&self, delta: &Released<Delta>) -> Result<Result<(), Refusal>, Halt> {
        self.activity.send_modify(|a| a.enter(Phase::Submitting, 0));
        let reply = self.coordinator()?.submit(delta).await?;
        Ok(verdict(reply.refusal))
    }
}

/// The refusal of a round that the site could not train.
pub(super) fn reason_failed(reason: impl Into<String>) -> Refusal {
    // Some quote what the coordinator sent.
    let reason = printable_start(&reason.into(), REASON_CHARS_MAX);
    Refusal::SiteFailed { reason, class: RefusalClass::Never }
}
