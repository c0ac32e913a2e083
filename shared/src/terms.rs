//! What one round demands of a site, beside the manifest.

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::name::RunName;
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

/// What a site says of its training beside the delta: counts and sums, never a case.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
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
