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
use super::{Halt, Site};
use crate::ledger::Event;
use crate::transport::CallError;

impl Site {
    /// Answers a question, whatever the answer is.
    pub(super) async fn inquiry(&mut self, inquiry: &v1::Inquiry) -> Result<(), Halt> {
        let Ok(run) = inquiry.run.parse::<RunName>() else {
            let text = "the coordinator asks about a run without a name";
            return Err(CallError::Rejected(Failure::refused("malformed", text)).into());
        };
        let known = self.ledger.manifest_of(&run);
        // The coordinator's word is not enough: under it, questions could be asked without limit.
        let asked = Some(Digest::of(&inquiry.manifest_json));
        let declined = self.ledger.declined(&run).is_some_and(|(_, manifest, _)| manifest == asked);
        if inquiry.is_check || !declined {
            return self.check(run, inquiry).await;
        }
        let answer = match read_manifest(&run, &inquiry.manifest_json, known) {
            Ok(manifest) => self.consider(&manifest, inquiry.cohort_size).await?,
            Err(refusal) => Some(reason_failed(refusal.to_string())),
        };
        match &answer {
            None => tracing::info!(%run, "asked whether it would take part: yes"),
            Some(refusal) => tracing::info!(%run, "asked whether it would take part: {refusal}"),
        }
        self.activity.send_modify(Activity::rest);
        if let Some(refusal) = &answer
            && refusal.may_end()
        {
            self.note_changed(&run, Digest::of(&inquiry.manifest_json), refusal)?;
        }
        let request = v1::AnswerInquiryRequest {
            id: inquiry.id.clone(),
            refusal: answer.as_ref().map(Into::into),
            warnings: Vec::new(),
        };
        self.coordinator()?.answer_inquiry(request).await?;
        Ok(())
    }

    /// Records that a run is refused for another reason than before; the same answer again, and a
    /// yes, which the next round's terms record, write no entry.
    fn note_changed(
        &mut self,
        run: &RunName,
        manifest: Digest,
        refusal: &Refusal,
    ) -> Result<(), Halt> {
        let Some((round, _, before)) = self.ledger.declined(run) else { return Ok(()) };
        if before == refusal {
            return Ok(());
        }
        let id = RoundId { run: run.clone(), round };
        self.record(&id, Event::Declined { manifest: Some(manifest), reason: refusal.clone() })
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
