//! Questions of the coordinator about a run, judged as a round is; nothing is trained. Only a run that this site has
//! declined is answered in words. Every other question is a check: answered by a class, under the policy's limit.

use tributary_proto::v1;
use tributary_shared::digest::Digest;
use tributary_shared::manifest::RunManifest;
use tributary_shared::name::RunName;
use tributary_shared::outcome::Failure;
use tributary_shared::refusal::Refusal;

use super::activity::{Activity, Phase, RoundId};
use super::deliver::reason_failed;
use super::lease::Lease;
use super::terms::read_manifest;
use super::{ANSWER_PAUSE, Halt, Site};
use crate::ledger::{Event, Ledger};
use crate::transport::CallError;

impl Site {
    /// Answers a question, whatever the answer is.
    pub(super) async fn inquiry(&mut self, inquiry: &v1::Inquiry) -> Result<(), Halt> {
        let Ok(run) = inquiry.run.parse::<RunName>() else {
            let text = "the coordinator asks about a run without a name";
            return Err(CallError::Rejected(Failure::refused("malformed", text)).into());
        };
        let known = self.ledger.manifest_of(&run);
        let manifest = Digest::of(&inquiry.manifest_json);
        let round = match answered_in_words(&self.ledger, &run, manifest) {
            Some(round) if !inquiry.is_check => round,
            Some(_) | None => return self.check(run, manifest, inquiry).await,
        };
        let answer = match read_manifest(&run, &inquiry.manifest_json, known) {
            Ok(manifest) => self.consider(&manifest, inquiry.cohort_size).await?,
            Err(refusal) => Some(reason_failed(refusal.to_string())),
        };
        match &answer {
            None => tracing::info!(%run, "asked whether it would take part: yes"),
            Some(refusal) => tracing::info!(%run, "asked whether it would take part: {refusal}"),
        }
        self.activity.send_modify(Activity::rest);
        let event = match answer {
            None => Event::Willing { manifest },
            Some(reason) => Event::Declined { manifest: Some(manifest), reason },
        };
        self.record_news(&RoundId { run: run.clone(), round }, event)?;
        let answer = self.ledger.release_answer(&inquiry.id, &run, manifest)?;
        self.coordinator()?.answer_inquiry(&answer).await?;
        self.pause(ANSWER_PAUSE).await;
        Ok(())
    }

    /// Judges a run; the refusal, if there is one. Reading all images may take minutes, in which
    /// the coordinator hears that the site is at work.
    async fn consider(
        &mut self,
        manifest: &RunManifest,
        cohort_size: u32,
    ) -> Result<Option<Refusal>, Halt> {
        let policy = match self.judge_policy(manifest, cohort_size).await {
            Ok(policy) => policy,
            Err(refusal) => return Ok(Some(refusal)),
        };
        let _lease = self.lives(manifest)?;
        Ok(self.judge_data(manifest, &policy).await.err().map(|no| no.refusal))
    }

    /// Begins heartbeats while the images of `manifest` are read for a question.
    pub(super) fn lives(&self, manifest: &RunManifest) -> Result<Lease, Halt> {
        // No round: heartbeats of round 0 say that the site lives, and renew no seat.
        let round = RoundId { run: manifest.name.clone(), round: 0 };
        self.activity.send_modify(|a| a.enter(Phase::Preparing, 0));
        let coordinator = self.coordinator()?.clone();
        Ok(Lease::begin(coordinator, round, manifest.rounds.lease(), self.activity.subscribe()))
    }
}

/// The declined round for which a question about `run` is answered in words.
///
/// The coordinator's word is not enough: under it, questions could be asked without limit. A refusal
/// that cannot end has no such question, and may be of a run that is not in the history.
fn answered_in_words(ledger: &Ledger, run: &RunName, manifest: Digest) -> Option<u32> {
    let (round, of, reason) = ledger.declined(run)?;
    let may_end = reason.is_none_or(Refusal::may_end);
    (of == Some(manifest) && may_end).then_some(round)
}

#[cfg(test)]
mod tests {
    use tributary_shared::refusal::RefusalClass;
    use tributary_shared::timestamp::Timestamp;

    use super::*;
    use crate::ledger::Entry;

    /// Failed before: a round that the history did not prove was declined under its manifest, and every
    /// question about it was answered in words from then on.
    #[test]
    fn questions_are_answered_in_words_for_refusals_that_may_end_alone() {
        let folder = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::open(&folder.path().join("ledger.jsonl")).unwrap();
        let run: RunName = "run".parse().unwrap();
        let (known, other) = (Digest::of(b"known"), Digest::of(b"other"));
        let mut stands = |event| {
            let at = Timestamp::from_millis(1);
            ledger.append(&Entry { at, run: run.clone(), round: 3, event }).unwrap();
            [known, other].map(|manifest| answered_in_words(&ledger, &run, manifest))
        };
        let declined = |manifest, class| Event::Declined {
            manifest,
            reason: Refusal::Policy { reason: "hours".to_owned(), class },
        };
        assert_eq!(stands(declined(Some(known), RefusalClass::Never)), [None, None]);
        assert_eq!(stands(declined(None, RefusalClass::Never)), [None, None]);
        assert_eq!(stands(declined(Some(known), RefusalClass::Passing)), [Some(3), None]);
        assert_eq!(stands(declined(Some(known), RefusalClass::UntilChanged)), [Some(3), None]);
        assert_eq!(stands(Event::Willing { manifest: known }), [Some(3), None]);
    }
}
