//! Handles sites that were absent or refused: their return, work on other runs, answers to inquiries.

use tokio::time::Instant;
use tributary_shared::name::{RunName, SiteName};
use tributary_shared::outcome::chain;
use tributary_shared::timestamp::Timestamp;

use super::inquiries::{Answer, Delivery, Question};
use super::{Driver, DriverError};
use crate::round::Command;

impl Driver {
    /// Notes that `site` called. Runs that passed it over because it was absent may ask it again.
    pub async fn heard(&self, site: &SiteName) {
        for run in self.runs().await {
            if !run.misses_a_site() {
                continue;
            }
            let present = run.command(self, Command::Present { site: site.clone() }).await;
            if let Err(error) = present {
                // The site's own call goes on; its next one tells again.
                let error = chain(&error);
                tracing::error!(run = %run.name(), %site, error, "noting a site's return failed");
            }
        }
    }

    /// A heartbeat of `site` in `working_on` shows other runs that it lives and is busy.
    pub(super) async fn busy(&self, site: &SiteName, working_on: &RunName, now: Timestamp) {
        for run in self.runs().await {
            if run.name() != working_on {
                run.busy_elsewhere(site, now);
            }
        }
    }

    /// The next question that `site` should hear; else when there may be one.
    pub async fn next_inquiry(
        &self,
        site: &SiteName,
        now: Instant,
    ) -> Result<Delivery, Option<Instant>> {
        if let Some(delivery) = self.0.inquiries.next(site, now) {
            return Ok(delivery);
        }
        let mut next: Option<Instant> = None;
        for run in self.runs().await {
            let asked = run.read(|run| {
                let (class, cohort_size) =
                    run.refusal_in_doubt(site, || self.members().active_sites())?;
                let manifest = run.manifest().clone();
                Some((class, Question { manifest, cohort_size, is_check: false }))
            });
            let Some((class, question)) = asked else { continue };
            match self.0.inquiries.ask_again(site, run.name(), self.0.pace.of(class), now) {
                Ok(id) => return Ok(Delivery { id, question }),
                Err(due) => next = Some(next.map_or(due, |next| next.min(due))),
            }
        }
        Err(next)
    }

    /// Takes up a site's answer. A question that was taken back, or that an earlier coordinator
    /// asked, needs none.
    pub async fn answer_inquiry(
        &self,
        site: &SiteName,
        id: &str,
        answer: Answer,
    ) -> Result<(), DriverError> {
        let Some(run) = self.0.inquiries.answered_again(site, id, Instant::now()) else {
            self.0.inquiries.answer(site, id, answer);
            return Ok(());
        };
        let site = site.clone();
        let command = match answer.refusal {
            Some(reason) => Command::StillRefuses { site, reason },
            None => Command::Ready { site },
        };
        self.run(&run).await?.command(self, command).await
    }
}
