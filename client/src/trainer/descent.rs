//! The way down: gradients clipped and checked, the learning rate's place on its path.

use super::optimizer::{AdamW, clip, learning_rate};
use super::session::TrainError;
use crate::model::{Gradient, Values};

/// Where the learning rate is on its path over a run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Path {
    pub(super) peak: f64,
    pub(super) warmup: u64,
    /// Steps done before, by earlier rounds.
    pub(super) done: u64,
    /// Steps of the whole run.
    pub(super) total: u64,
}

/// An optimiser on a path.
pub(super) struct Descent {
    optimizer: AdamW,
    path: Path,
    /// Global gradient norm above which gradients are scaled down; 0 switches it off.
    norm_max: f64,
    steps: u64,
}

impl Descent {
    pub(super) fn new(optimizer: AdamW, path: Path, norm_max: f64) -> Self {
        Self { optimizer, path, norm_max, steps: 0 }
    }

    /// One step of `values` against `gradient`, which is clipped.
    pub(super) fn step(
        &mut self,
        values: &mut Values,
        gradient: &mut Gradient,
    ) -> Result<(), TrainError> {
        let norm = clip(&mut gradient.values, self.norm_max);
        let step = self.steps + 1;
        for (what, value) in [("the loss", gradient.loss), ("the gradient", norm)] {
            if !value.is_finite() {
                return Err(TrainError::Diverged { step, what });
            }
        }
        let Path { peak, warmup, done, total } = self.path;
        let rate = learning_rate(peak, done + self.steps, warmup, total);
        self.optimizer.step(values, &gradient.values, rate);
        self.steps = step;
        Ok(())
    }
}
