//! Judges a run before the site agrees: policy, backbone, images, number of cases. Each refusal
//! has a class.

use std::sync::Arc;

use tributary_shared::check::CheckAnswer;
use tributary_shared::manifest::RunManifest;
use tributary_shared::refusal::{Refusal, RefusalClass};

use super::Site;
use super::failure::WorkFailure;
use super::work::Work;
use crate::clock;
use crate::config::policy::Policy;

/// A refusal, and its subject, which is all that an operator's check says.
#[derive(Debug)]
pub(super) struct Unfit {
    /// The refusal in full, as a round is declined.
    pub(super) refusal: Refusal,
    /// Its class, unless it passes by itself.
    pub(super) about: CheckAnswer,
}

impl Unfit {
    /// The class that a check is answered by.
    pub(super) fn answer(&self) -> CheckAnswer {
        match self.refusal.class() {
            RefusalClass::Passing => CheckAnswer::Passing,
            RefusalClass::UntilChanged | RefusalClass::Never => self.about,
        }
    }
}

impl Site {
    /// Judges a round of `manifest` with `cohort_size` sites by the policy; returns the policy or
    /// the refusal.
    pub(super) async fn judge_policy(
        &self,
        manifest: &RunManifest,
        cohort_size: u32,
    ) -> Result<Policy, Refusal> {
        let unread = |trouble: String| {
            tracing::error!("{trouble}");
            let reason = "the site's policy file cannot be read".to_owned();
            Refusal::Policy { reason, class: RefusalClass::UntilChanged }
        };
        let file = self.config.policy.clone();
        // A folder of the network may hang, which must not hold up the program's end.
        let loading = tokio::task::spawn_blocking(move || Policy::load(&file));
        let loaded = loading.await.map_err(|e| unread(e.to_string()))?;
        let policy = loaded.map_err(|e| unread(e.to_string()))?;
        let done = self.ledger.done(&manifest.name);
        let judged = policy.judge(manifest, cohort_size, done, clock::now());
        judged.map_err(|no| no.refusal())?;
        Ok(policy)
    }

    /// Everything that the work of `manifest` needs, or why the site has not got it.
    pub(super) async fn judge_data(
        &mut self,
        manifest: &RunManifest,
        policy: &Policy,
    ) -> Result<Arc<Work>, Unfit> {
        let work = self.prepare(manifest).await.map_err(|failure| {
            tracing::error!("{}", failure.detail);
            Unfit { refusal: failure.refusal(), about: failure.about }
        })?;
        // No count is told before the terms are agreed to.
        match work.unfit_cases(policy.cases_min, manifest.limits.cases_max) {
            None => Ok(work),
            Some(reason) => {
                let refusal = Refusal::SiteFailed { reason, class: RefusalClass::UntilChanged };
                Err(Unfit { refusal, about: CheckAnswer::Cases })
            }
        }
    }

    /// Images and backbone are read once a run, not once a round; again when they were taken away
    /// in between.
    async fn prepare(&mut self, manifest: &RunManifest) -> Result<Arc<Work>, WorkFailure> {
        let key = manifest.digest();
        if let Some((prepared, work)) = &self.prepared
            && *prepared == key
            && tokio::task::block_in_place(|| work.still_there(&self.config))
        {
            return Ok(Arc::clone(work));
        }
        self.prepared = None;
        let (config, salt, manifest) = (self.config.clone(), self.salt.clone(), manifest.clone());
        let reading = tokio::task::spawn_blocking(move || Work::prepare(&config, &salt, &manifest));
        let work = reading.await.unwrap_or_else(|_| {
            let detail = "reading the data panicked; this is a bug, its message stands above";
            Err(WorkFailure::new("a bug of the client; see its log", detail))
        })?;
        let work = Arc::new(work);
        self.prepared = Some((key, Arc::clone(&work)));
        Ok(work)
    }
}
