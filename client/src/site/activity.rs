//! What the site is doing right now: written by the work, read by heartbeats, `status.json` and
//! the progress display.

use serde::{Deserialize, Serialize};
use tributary_shared::name::RunName;

use crate::trainer;

/// What the site is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Not connected.
    #[default]
    Connecting,
    /// Suspended by the consortium.
    Suspended,
    /// Connected; nothing to do.
    Waiting,
    /// Reading data and backbone.
    Preparing,
    /// Fetching the round's adapter.
    Fetching,
    /// Computing the frozen backbone's features.
    Features,
    /// Optimiser steps.
    Training,
    /// Measuring on held-out cases.
    Evaluating,
    /// Writing the delta to the outbox.
    Writing,
    /// Sending the delta.
    Uploading,
    /// Waiting for the coordinator's verdict.
    Submitting,
}

impl Phase {
    /// The word in heartbeats, tables and progress lines.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Suspended => "suspended",
            Self::Waiting => "waiting",
            Self::Preparing => "preparing",
            Self::Fetching => "fetching",
            Self::Features => "features",
            Self::Training => "training",
            Self::Evaluating => "evaluating",
            Self::Writing => "writing",
            Self::Uploading => "uploading",
            Self::Submitting => "submitting",
        }
    }
}

/// A round of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoundId {
    /// The run.
    pub run: RunName,
    /// The round, from 1.
    pub round: u32,
}

/// What the site is doing right now, and how far it is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Activity {
    /// What it is doing.
    pub phase: Phase,
    /// For which round.
    pub round: Option<RoundId>,
    /// Steps done in this phase; bytes while fetching, writing and uploading.
    pub step: u64,
    /// Steps of this phase; 0 when not known.
    pub steps: u64,
    /// Mean training loss of the last step.
    pub loss: Option<f64>,
    /// Speed of training.
    pub images_per_s: f64,
    /// Seconds left in this phase.
    pub eta_s: f64,
    /// Why the coordinator cannot be reached, or would not answer; empty when it can.
    pub trouble: String,
}

impl Activity {
    /// Begins a phase of the same round.
    pub(super) fn enter(&mut self, phase: Phase, steps: u64) {
        *self = Self { phase, steps, round: self.round.take(), ..Self::default() };
    }

    /// Takes over what the trainer says.
    pub(super) fn follow(&mut self, progress: &trainer::Progress) {
        self.phase = match progress.phase {
            trainer::Phase::Features => Phase::Features,
            trainer::Phase::Training => Phase::Training,
            trainer::Phase::Evaluating => Phase::Evaluating,
        };
        self.step = progress.step;
        self.steps = progress.total_steps;
        self.loss = progress.loss;
        self.images_per_s = progress.images_per_s;
        self.eta_s = progress.eta_s;
    }

    /// Ends the round.
    pub(super) fn rest(&mut self) {
        *self = Self { phase: Phase::Waiting, ..Self::default() };
    }
}
