//! One round from the site's side: judge, agree, fetch, train, record, send. It may be cut off
//! anywhere; the ledger says where the next attempt begins.

use std::sync::Arc;

use tributary_proto::convert::verdict;
use tributary_proto::v1;
use tributary_shared::digest::Digest;
use tributary_shared::outcome::{Failure, chain};
use tributary_shared::refusal::{Refusal, RefusalClass};

use super::activity::{Activity, Phase, RoundId};
use super::adapters::{self, FetchError};
use super::deliver::reason_failed;
use super::failure::WorkFailure;
use super::lease::Lease;
use super::terms::{self, Asked, Before};
use super::trouble::{DISK_FULL, is_full};
use super::work::{Finished, Job, Running, Unfinished, Work};
use super::{ANSWER_PAUSE, Halt, Site};
use crate::config::policy::Policy;
use crate::ledger::{Event, Standing, Trained};
use crate::transport::CallError;

/// Why there is no delta of a round.
enum NoDelta {
    /// The coordinator needs none any more.
    Stopped(String),
    /// The site could not make one.
    Failed(WorkFailure),
}

impl Site {
    /// Takes up an assignment.
    pub(super) async fn round(&mut self, assignment: &v1::Assignment) -> Result<(), Halt> {
        let Some(id) = terms::round_of(assignment) else {
            let text = "the coordinator offers a round without a name or number";
            return Err(CallError::Rejected(Failure::refused("malformed", text)).into());
        };
        let standing = self.standing(&id);
        // A refusal that may have ended is judged anew.
        if let Some(reason) = standing.as_ref().and_then(Standing::refusal)
            && !reason.may_end()
        {
            self.witness().await?;
            return self.repeat_decline(&id, &reason).await;
        }
        if matches!(standing, Some(Standing::Owed { .. })) {
            return self.deliver(&id).await;
        }
        let round = Some(id.clone());
        self.activity.send_replace(Activity {
            phase: Phase::Preparing,
            round,
            ..Activity::default()
        });
        let before = Before {
            manifest: self.ledger.manifest_of(&id.run),
            trained: self.ledger.done(&id.run).deltas_of_run,
            lost_leaves: self.lost_leaves(),
        };
        let asked = match terms::check(&id, assignment, before) {
            Ok(asked) => asked,
            Err(refusal) => {
                self.witness().await?;
                return self.reject(&id, reason_failed(refusal.to_string())).await;
            }
        };
        let manifest = asked.terms.manifest;
        let coordinator = self.coordinator()?.clone();
        let every = asked.manifest.rounds.lease();
        // Reading all images may take minutes: the coordinator hears from the start that the site
        // is at work.
        let lease = Lease::begin(coordinator, id.clone(), every, self.activity.subscribe());
        if let Err(refusal) = self.prove(&asked).await? {
            // Without the manifest: no question about a run that is not in the history is answered in words.
            return self.reject(&id, refusal).await;
        }
        match self.judge_round(&asked).await {
            Ok((policy, work)) => self.train_and_deliver(&id, asked, &policy, work, lease).await,
            Err(refusal) => {
                tracing::warn!(run = %id.run, round = id.round, "declined: {refusal}");
                self.decline(&id, Some(manifest), refusal).await?;
                self.pause(ANSWER_PAUSE).await;
                Ok(())
            }
        }
    }

    /// Declines what is no round to train. It is the coordinator's fault, and the site waits before it
    /// asks for more: such offers cost an entry of the ledger each.
    async fn reject(&mut self, id: &RoundId, refusal: Refusal) -> Result<(), Halt> {
        tracing::error!(run = %id.run, round = id.round, "not a round to train: {refusal}");
        let failure = Failure::refused("not_a_round", refusal.to_string());
        self.decline(id, None, refusal).await?;
        Err(CallError::Rejected(failure).into())
    }

    /// Judges a round: the policy and everything that the work needs, or the refusal.
    async fn judge_round(&mut self, asked: &Asked) -> Result<(Policy, Arc<Work>), Refusal> {
        let policy = self.judge_policy(&asked.manifest, asked.terms.cohort_size).await?;
        // Whether a later round starts from the initial adapter shows when it was fetched.
        if asked.terms.round == 1 {
            let checked = tokio::task::block_in_place(|| asked.check_initial());
            checked.map_err(|e| reason_failed(e.to_string()))?;
        }
        let work = self.judge_data(&asked.manifest, &policy).await.map_err(|no| no.refusal)?;
        Ok((policy, work))
    }

    async fn train_and_deliver(
        &mut self,
        id: &RoundId,
        asked: Asked,
        policy: &Policy,
        work: Arc<Work>,
        mut lease: Lease,
    ) -> Result<(), Halt> {
        let (terms, cases) = (asked.terms.clone(), work.cases());
        self.agree(id, &asked, cases).await?;
        let prepared = Arc::clone(&work);
        match self.make_delta(asked, work, policy, &mut lease).await? {
            Ok(finished) => {
                let Finished { checked, bytes, metrics } = finished;
                let base = terms.base;
                let (digest, norm) = (checked.digest, checked.norm);
                let trained = Trained { base, digest, bytes, norm, cases, metrics };
                self.record(id, Event::Trained(trained))?;
                self.deliver(id).await
            }
            Err(NoDelta::Stopped(reason)) => {
                tracing::info!(run = %id.run, round = id.round, "stopped: {reason}");
                self.activity.send_modify(Activity::rest);
                self.record(id, Event::Stopped { reason })?;
                self.pause(ANSWER_PAUSE).await;
                Ok(())
            }
            Err(NoDelta::Failed(failure)) => {
                tracing::error!(run = %id.run, round = id.round, "no delta: {}", failure.detail);
                let there = tokio::task::block_in_place(|| prepared.still_there(&self.config));
                // What failed fails again, unless the images were taken away under the training.
                let class = if there { RefusalClass::Never } else { RefusalClass::Passing };
                self.decline(id, Some(terms.manifest), failure.of_class(class).refusal()).await?;
                self.pause(ANSWER_PAUSE).await;
                Ok(())
            }
        }
    }

    async fn agree(&mut self, id: &RoundId, asked: &Asked, cases: u64) -> Result<(), Halt> {
        let terms = &asked.terms;
        let (manifest, base, cohort_size) = (terms.manifest, terms.base, terms.cohort_size);
        self.record_news(id, Event::Agreed { manifest, base, cohort_size, cases })?;
        let released = self.ledger.release_terms(&id.run, id.round)?;
        let reply = self.coordinator()?.accept_terms(&released).await?;
        if let Err(refusal) = verdict(reply.refusal) {
            if let Some(told) = cases_changed(&refusal) {
                let refused = Failure::refused(refusal.code(), told.clone());
                self.decline(id, Some(manifest), reason_failed(told)).await?;
                return Err(CallError::Rejected(refused).into());
            }
            self.record(id, Event::Stopped { reason: refusal.to_string() })?;
            return Err(CallError::Rejected(Failure::refused(
                refusal.code(),
                format!("the coordinator withdrew round {} of {}: {refusal}", id.round, id.run),
            ))
            .into());
        }
        tracing::info!(run = %id.run, round = id.round, cases, "agreed to the round's terms");
        Ok(())
    }

    async fn make_delta(
        &self,
        asked: Asked,
        work: Arc<Work>,
        policy: &Policy,
        lease: &mut Lease,
    ) -> Result<Result<Finished, NoDelta>, Halt> {
        let base = tokio::select! {
            fetched = self.fetch(&asked) => match fetched? {
                Ok(path) => path,
                Err(failure) => return Ok(Err(NoDelta::Failed(failure))),
            },
            reason = lease.stopped() => return Ok(Err(NoDelta::Stopped(reason))),
        };
        self.activity.send_modify(|a| a.enter(Phase::Training, 0));
        let site = self.name.clone();
        let norm_max = policy.delta_norm_max.min(asked.manifest.limits.delta_norm_max);
        let Policy { holdout_cases_min, base_norm_max, .. } = *policy;
        let outbox = self.outbox.clone();
        let job =
            Job { work, asked, site, base, outbox, norm_max, base_norm_max, holdout_cases_min };
        let mut running = Running::begin(job, self.activity.clone())
            .map_err(|e| Halt::disk("starting the training thread", &e))?;
        let ended = tokio::select! {
            ended = running.finished() => ended,
            reason = lease.stopped() => {
                running.stop();
                // The next round must find the processor free.
                match running.finished().await {
                    Ok(_) | Err(Unfinished::Stopped) => {
                        return Ok(Err(NoDelta::Stopped(reason)));
                    }
                    Err(failed) => Err(failed),
                }
            }
        };
        match ended {
            Ok(finished) => Ok(Ok(finished)),
            Err(Unfinished::Stopped) => Ok(Err(NoDelta::Stopped("stopped".to_owned()))),
            Err(Unfinished::Failed(failure)) => Ok(Err(NoDelta::Failed(failure))),
            // The round is still agreed to: it is trained when there is room again.
            Err(Unfinished::Disk(error)) => Err(Halt::disk("the outbox", &error)),
        }
    }

    async fn fetch(&self, asked: &Asked) -> Result<Result<std::path::PathBuf, WorkFailure>, Halt> {
        self.activity.send_modify(|a| a.enter(Phase::Fetching, asked.base_bytes));
        let folder = self.directory.adapters();
        let disk = |e: &std::io::Error| Halt::disk("the adapters' folder", e);
        adapters::sweep(&folder, Some(asked.terms.base)).map_err(|e| disk(&e))?;
        let received = |bytes| self.activity.send_modify(|a| a.step = bytes);
        match adapters::obtain(self.coordinator()?, &folder, asked, received).await {
            Ok(path) => Ok(Ok(path)),
            Err(FetchError::Call(error)) => Err(error.into()),
            Err(FetchError::Disk(error)) => Err(disk(&error)),
            Err(FetchError::Refused(refusal)) => {
                let told = format!("the base adapter is not what the terms name: {refusal}");
                Ok(Err(WorkFailure::open(told)))
            }
        }
    }

    /// Records a refusal, then sends it.
    pub(super) async fn decline(
        &mut self,
        id: &RoundId,
        manifest: Option<Digest>,
        reason: Refusal,
    ) -> Result<(), Halt> {
        self.record_news(id, Event::Declined { manifest, reason })?;
        self.say_no(id).await
    }

    /// Says a recorded no again. The coordinator has not heard it, or does not hear it: either
    /// way there is no hurry to ask for the next round.
    async fn repeat_decline(&self, id: &RoundId, reason: &Refusal) -> Result<(), Halt> {
        self.say_no(id).await?;
        let text = format!("round {} of {} was offered again: {reason}", id.round, id.run);
        Err(CallError::Rejected(Failure::refused("declined", text)).into())
    }

    async fn say_no(&self, id: &RoundId) -> Result<(), Halt> {
        self.activity.send_modify(Activity::rest);
        let released = self.ledger.release_decline(&id.run, id.round)?;
        let reply = self.coordinator()?.decline(&released).await?;
        if let Err(refusal) = verdict(reply.refusal) {
            tracing::info!(run = %id.run, round = id.round, "declining was too late: {refusal}");
        }
        Ok(())
    }
}

/// Words for a round whose cases were declared before and are others now: cases are declared once.
pub(super) fn cases_changed(refusal: &Refusal) -> Option<String> {
    let Refusal::Wrong { field, .. } = refusal else { return None };
    let told = "the training cases have changed since this site agreed to the round";
    (field == "cases").then(|| told.to_owned())
}

impl Halt {
    /// The site's own disk said no; trying again later may help.
    pub(super) fn disk(what: &str, error: &std::io::Error) -> Self {
        let code = if is_full(error) { DISK_FULL } else { "disk" };
        Self::Local(Failure::invalid(code, format!("{what}: {}", chain(error))))
    }
}
