//! What one round demands of a site, beside the manifest.

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::name::RunName;
use crate::refusal::Refusal;
use crate::timestamp::Timestamp;

/// One round's demand on a site.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// The run.
    pub run: RunName,
    /// The round, from 1.
    pub round: u32,
    /// Digest of the manifest's canonical JSON.
    pub manifest: Digest,
    /// Digest of the global adapter to start from.
    pub base: Digest,
    /// Sites asked this round, this one included.
    pub cohort_size: u32,
    /// The round's hard cap.
    pub deadline: Timestamp,
}

/// Metrics of one site's training in one round, sent beside the delta: counts and means, never a case.
/// Unknown fields are dropped on reading: a newer client may send more than this coordinator knows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SiteMetrics {
    /// Optimiser steps taken.
    pub steps: u64,
    /// Mean training loss over the round.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train_loss: Option<f64>,
    /// Held-out cases, or bags of them, behind `holdout_loss` and the other `holdout_` numbers. A site
    /// tells them rounded down to tens.
    #[serde(default)]
    pub holdout_cases: u64,
    /// Loss of the round's base adapter on the held-out cases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holdout_loss: Option<f64>,
    /// AUROC (macro over classes) of the round's base adapter on the held-out cases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holdout_auroc: Option<f64>,
    /// Quadratic weighted kappa of the round's base adapter on the held-out cases (ordinal tasks).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holdout_kappa: Option<f64>,
    /// Mean distance of the predicted grade on the held-out cases, in grades (ordinal tasks).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holdout_grade_error: Option<f64>,
    /// Harrell's concordance index on the held-out cases (survival tasks).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holdout_concordance: Option<f64>,
    /// Dice coefficient on the held-out cases, mean over classes but the background (segmentation).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holdout_dice: Option<f64>,
    /// Seconds spent training.
    #[serde(default)]
    pub train_s: f64,
}

/// Most steps of one round: what JSON readers hold exactly.
const STEPS_MAX: u64 = 1 << 53;
/// Most held-out cases, as a multiple of the training cases that one site may declare.
const HOLDOUT_TIMES_MAX: u64 = 10;
/// Longest training, seconds: a round lasts 366 days at most.
const SECONDS_MAX: f64 = 366.0 * 24.0 * 3_600.0;
/// Largest distance of grades.
const GRADES_MAX: f64 = 1e6;
/// Largest loss: a training that diverged has such.
const LOSS_MAX: f64 = 1e30;
/// Rounding that a number may be out of its range by.
const ROUNDING: f64 = 1e-6;

impl SiteMetrics {
    /// Refuses numbers that no training can have, where a site may declare `cases_max` training
    /// cases.
    pub fn check(&self, cases_max: u64) -> Result<(), Refusal> {
        let loss = LOSS_MAX;
        let numbers = [
            ("train_loss", self.train_loss, -loss, loss),
            ("holdout_loss", self.holdout_loss, -loss, loss),
            ("holdout_auroc", self.holdout_auroc, 0.0, 1.0),
            ("holdout_kappa", self.holdout_kappa, -1.0, 1.0),
            ("holdout_grade_error", self.holdout_grade_error, 0.0, GRADES_MAX),
            ("holdout_concordance", self.holdout_concordance, 0.0, 1.0),
            ("holdout_dice", self.holdout_dice, 0.0, 1.0),
            ("train_s", Some(self.train_s), 0.0, SECONDS_MAX),
        ];
        for (name, value, low, high) in numbers {
            let Some(value) = value else { continue };
            if !(low - ROUNDING..=high + ROUNDING).contains(&value) {
                return Err(out_of_range(
                    name,
                    format!("{low:?} to {high:?}"),
                    format!("{value:?}"),
                ));
            }
        }
        let holdout_max = cases_max.saturating_mul(HOLDOUT_TIMES_MAX);
        let counts =
            [("steps", self.steps, STEPS_MAX), ("holdout_cases", self.holdout_cases, holdout_max)];
        for (name, value, most) in counts {
            if value > most {
                return Err(out_of_range(name, format!("0 to {most}"), value.to_string()));
            }
        }
        Ok(())
    }
}

fn out_of_range(name: &str, expected: String, found: String) -> Refusal {
    Refusal::Wrong { field: format!("metrics.{name}"), expected, found }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A15: one site's claims decided every mean. Failed before: nothing was checked.
    #[test]
    fn numbers_that_no_training_has_are_refused_by_name() {
        let honest = SiteMetrics {
            steps: 10,
            train_loss: Some(-0.5),
            holdout_cases: 40,
            holdout_auroc: Some(1.0 + 1e-12),
            train_s: 3.0,
            ..SiteMetrics::default()
        };
        assert_eq!(honest.check(5), Ok(()));
        let refused = |change: fn(&mut SiteMetrics)| {
            let mut metrics = honest.clone();
            change(&mut metrics);
            metrics.check(5).unwrap_err().to_string()
        };
        for (change, words) in [
            (
                (|m| m.holdout_auroc = Some(1e300)) as fn(&mut SiteMetrics),
                "metrics.holdout_auroc: expected 0.0 to 1.0, found 1e300",
            ),
            (
                |m| m.holdout_kappa = Some(-1.1),
                "metrics.holdout_kappa: expected -1.0 to 1.0, found -1.1",
            ),
            (
                |m| m.holdout_loss = Some(f64::NAN),
                "metrics.holdout_loss: expected -1e30 to 1e30, found NaN",
            ),
            (|m| m.holdout_cases = u64::MAX, "metrics.holdout_cases: expected 0 to 50, found 18"),
            (|m| m.steps = u64::MAX, "metrics.steps: expected 0 to 9007199254740992"),
            (|m| m.train_s = -1.0, "metrics.train_s: expected 0.0 to 31622400.0, found -1.0"),
        ] {
            let found = refused(change);
            assert!(found.starts_with(words), "{found}");
        }
    }
    /// Failed before: the whole submission was refused, again and again, and the site's work with it.
    #[test]
    fn a_metric_that_a_newer_client_sends_is_dropped() {
        let sent = r#"{"steps":3,"holdout_metric_of_a_later_version":{"mean":0.5},"train_s":1.5}"#;
        let known = SiteMetrics { steps: 3, train_s: 1.5, ..SiteMetrics::default() };
        assert_eq!(serde_json::from_str::<SiteMetrics>(sent).unwrap(), known);
    }
}
