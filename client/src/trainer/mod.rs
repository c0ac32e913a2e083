//! Training, prediction and export: from an adapter and batches to a changed adapter.
//!
//! Everything runs on the calling thread and on the process's compute threads, is stopped through
//! a [`Control`] and tells a caller's closure how far it is. All randomness comes from ChaCha
//! streams named by the manifest's seed, the site and the round, so that a repeated round gives
//! the same bits, however many threads compute it.

mod ahead;
mod batch;
mod cache;
mod descent;
mod explain;
mod heads;
mod inference;
mod local;
mod loss;
mod optimizer;
mod pretrain;
mod probe;
mod python;
mod segmentation;
mod self_supervised;
mod session;
mod shards;
mod survival;
mod units;

pub use cache::{PrefixCache, Shelved};
pub use explain::{Explained, Explainer, Explanation, NotExplained, stretched};
pub use inference::{Evaluation, Inference, prediction_columns};
pub use local::{LocalTraining, LocalUpdate, train, warmup_outlasts};
pub use loss::{Loss, Weighing, case_loss, probabilities};
pub use optimizer::{AdamW, clip, learning_rate};
pub use pretrain::{Pretrained, Pretraining, pretrain};
pub use probe::{Probed, linear_probe};
pub use python::{
    ExportError, ImportPeftError, Transformers, export_peft, export_timm, import_peft,
};
pub use segmentation::{Stretch, segmentation_loss};
pub use self_supervised::{Judged, dino_loss, nt_xent};
pub use session::TrainError;
pub use survival::{FollowUp, cox_loss};
pub use units::trainable;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Stops a training from another thread; it ends within a second.
#[derive(Clone, Debug, Default)]
pub struct Control(Arc<AtomicBool>);

impl Control {
    /// Asks the work to end.
    pub fn stop(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it was asked to end.
    pub fn is_stopped(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The frozen backbone's features, once for all epochs of a head.
    Features,
    /// Optimiser steps.
    Training,
    /// Predictions.
    Evaluating,
}

impl Phase {
    /// The word in progress lines.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Features => "features",
            Self::Training => "training",
            Self::Evaluating => "evaluating",
        }
    }
}

/// How far the work is.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// What is being done.
    pub phase: Phase,
    /// Steps done in this phase.
    pub step: u64,
    /// Steps of this phase.
    pub total_steps: u64,
    /// Mean loss of the last step's cases while training.
    pub loss: Option<f64>,
    /// Images a second since the phase began.
    pub images_per_s: f64,
    /// Seconds left in this phase at that speed.
    pub eta_s: f64,
    /// Seconds that threads spent on images on their way into the model, added up, since the
    /// training began; 0 where nobody counts.
    pub reading_s: f64,
    /// Seconds that the training stood still for such images.
    pub waited_s: f64,
}

/// Measures one phase.
pub(crate) struct Meter {
    phase: Phase,
    total_steps: u64,
    step: u64,
    images: u64,
    began: Instant,
}

impl Meter {
    pub(crate) fn new(phase: Phase, total_steps: u64) -> Self {
        Self { phase, total_steps, step: 0, images: 0, began: Instant::now() }
    }

    /// One step more, over `images` images.
    pub(crate) fn advance(&mut self, images: usize, loss: Option<f64>) -> Progress {
        self.step += 1;
        self.images += images as u64;
        let elapsed = self.began.elapsed().as_secs_f64().max(1e-9);
        Progress {
            phase: self.phase,
            step: self.step,
            total_steps: self.total_steps,
            loss,
            images_per_s: self.images as f64 / elapsed,
            eta_s: elapsed / self.step as f64 * (self.total_steps - self.step) as f64,
            reading_s: 0.0,
            waited_s: 0.0,
        }
    }
}
