//! A delta that a site wants counted: the header that it must have, and its one verdict.

use tributary_shared::digest::Digest;
use tributary_shared::name::{RunName, SiteName};
use tributary_shared::refusal::Refusal;
use tributary_shared::tensors::Header;
use tributary_shared::terms::SiteMetrics;

use super::{Driver, DriverError};
use crate::blobs::SpoolKey;
use crate::ingest::Admitted;
use crate::round::seat::Accepted;
use crate::round::{Command, Run};
use crate::unbroken::to_the_end;

impl Driver {
    /// The header a delta of `site` must have, or its earlier verdict.
    pub async fn expected_delta(
        &self,
        site: &SiteName,
        run: &RunName,
        round: u32,
        digest: Digest,
        cases: u64,
    ) -> Result<Expected, DriverError> {
        let live = self.run(run).await?;
        let read = |run: &Run| match run.verdict(site, round, digest) {
            Some(verdict) => Ok(Expected::Verdict(verdict)),
            None => run.expected_delta(site, round, cases).map(Expected::Header),
        };
        Ok(live.read(read)?)
    }

    /// Counts an uploaded delta, once; the same submission always gets the same answer.
    pub async fn submit(
        &self,
        site: &SiteName,
        run: &RunName,
        round: u32,
        digest: Digest,
        cases: u64,
        metrics: SiteMetrics,
    ) -> Result<(), DriverError> {
        let expected = || self.expected_delta(site, run, round, digest, cases);
        if let Expected::Verdict(verdict) = expected().await? {
            return Ok(verdict?);
        }
        let key = SpoolKey { run: run.clone(), round, site: site.clone(), digest };
        let held = self.0.uploads.hold(key).await;
        // Another call may have had it counted meanwhile.
        let header = match expected().await? {
            Expected::Verdict(verdict) => return Ok(verdict?),
            Expected::Header(header) => header,
        };
        let Admitted { norm, bytes, .. } = match self.checked(&held, header).await {
            Ok(admitted) => admitted,
            Err(DriverError::Refused(reason)) => {
                self.refuse(site, run, round, digest, reason.clone()).await?;
                return Err(reason.into());
            }
            Err(error) => return Err(error),
        };
        let live = self.run(run).await?;
        let delta = Accepted { digest, cases, norm, bytes, metrics };
        let command = Command::Admit { site: site.clone(), round, delta };
        let driver = self.clone();
        to_the_end(async move {
            let counted = live.command(&driver, command).await;
            drop(held);
            counted
        })
        .await??;
        // Admission may itself have refused (cases, norm): the verdict is what was committed.
        match self.run(run).await?.read(|run| run.verdict(site, round, digest)) {
            Some(verdict) => Ok(verdict?),
            None => Err(DriverError::NotUploaded(digest)),
        }
    }

    /// Records that a delta did not pass admission.
    pub async fn refuse(
        &self,
        site: &SiteName,
        run: &RunName,
        round: u32,
        digest: Digest,
        reason: Refusal,
    ) -> Result<(), DriverError> {
        let live = self.run(run).await?;
        let command = Command::Refuse { site: site.clone(), round, digest, reason };
        live.command(self, command).await
    }
}

/// The answer to a site that announces a delta.
#[derive(Debug)]
pub enum Expected {
    /// The submission has its answer already.
    Verdict(Result<(), Refusal>),
    /// The delta must have this header.
    Header(Header),
}
