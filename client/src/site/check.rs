//! An operator's check before a run begins: answered by a class, after the policy's limit, and
//! written down here.

use std::time::Duration;

use tributary_proto::v1;
use tributary_shared::check::{CheckAnswer, CheckWarning};
use tributary_shared::digest::Digest;
use tributary_shared::manifest::RunManifest;
use tributary_shared::name::RunName;
use tributary_shared::text::printable;

use super::activity::{Activity, RoundId};
use super::disclosure;
use super::judge::Unfit;
use super::terms::read_manifest;
use super::{Halt, Site};
use crate::clock;
use crate::config::policy::{CHECKS_PER_DAY, Policy};
use crate::ledger::Event;
use crate::trainer;

/// Period over which `checks_per_day` counts: 24 hours.
const DAY: Duration = Duration::from_secs(24 * 3600);
/// Checks belong to no round.
const NO_ROUND: u32 = 0;

impl Site {
    /// Answers a check. Its record is durable before the answer leaves.
    pub(super) async fn check(
        &mut self,
        run: RunName,
        manifest: Digest,
        asked: &v1::Inquiry,
    ) -> Result<(), Halt> {
        let file = self.config.policy.clone();
        let policy = tokio::task::spawn_blocking(move || Policy::load(&file)).await;
        // A policy that cannot be read refuses the run below, and counts as the usual one here.
        let policy = policy.ok().and_then(Result::ok);
        let allowed = policy.map_or(CHECKS_PER_DAY, |policy| policy.checks_per_day);
        let spent = self.ledger.checks_within(clock::now(), DAY);
        let within = spent.answered < allowed as usize;
        let (answer, warnings) = match within {
            true => self.look_at(&run, asked).await?,
            false => (CheckAnswer::ChecksPerDay, Vec::new()),
        };
        tracing::info!(%run, "asked by an operator whether it would take part: {answer}");
        self.activity.send_modify(Activity::rest);
        // One entry a day says that the limit is reached, and one after each check below it.
        if within || spent.over == 0 {
            let id = RoundId { run: run.clone(), round: NO_ROUND };
            self.record(&id, Event::Checked { manifest, answer, warnings })?;
        }
        let answer = self.ledger.release_check(&asked.id, &run, manifest)?;
        self.coordinator()?.answer_inquiry(&answer).await?;
        Ok(())
    }

    async fn look_at(
        &mut self,
        run: &RunName,
        asked: &v1::Inquiry,
    ) -> Result<(CheckAnswer, Vec<CheckWarning>), Halt> {
        let known = self.ledger.manifest_of(run);
        let manifest = match read_manifest(run, &asked.manifest_json, known) {
            Ok(manifest) => manifest,
            Err(refusal) => {
                let told = printable(&refusal.to_string());
                tracing::error!(%run, "not a run to look at: {told}");
                return Ok((CheckAnswer::Other, Vec::new()));
            }
        };
        // The coordinator hears that the site is at work: reading all images may take minutes.
        let _lease = self.lives(&manifest)?;
        Ok(match self.judge(&manifest, asked.cohort_size).await {
            Ok(warnings) => (CheckAnswer::Ready, warnings),
            Err(no) => {
                tracing::warn!(%run, "would not take part: {}", no.refusal);
                (no.answer(), Vec::new())
            }
        })
    }

    async fn judge(
        &mut self,
        manifest: &RunManifest,
        cohort_size: u32,
    ) -> Result<Vec<CheckWarning>, Unfit> {
        let policy = self
            .judge_policy(manifest, cohort_size)
            .await
            .map_err(|refusal| Unfit { refusal, about: CheckAnswer::Policy })?;
        let work = self.judge_data(manifest, &policy).await?;
        let rising = trainer::warmup_outlasts(manifest, disclosure::count(work.cases()));
        Ok(rising.then_some(CheckWarning::WarmupTooLong).into_iter().collect())
    }
}
