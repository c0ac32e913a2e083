//! Learning from images without labels: an objective's loss and gradient over the weights that are
//! trained, be they an adapter's in a round or a whole backbone's in pretraining.

mod dino;
mod mae;
mod mask;
mod round;
mod simclr;
#[cfg(test)]
mod tests;
mod views;

pub use dino::dino_loss;
pub use simclr::nt_xent;

use rayon::prelude::*;
use tributary_shared::objective::Objective;

use self::dino::Teacher;
pub(super) use self::round::{mean_loss, train};
pub(super) use self::views::Views;
use super::Control;
use super::descent::Descent;
use super::session::{TrainError, check_stop, shuffled};
use crate::model::{AdaptedVit, Dropout, Gradient, Values};

/// A loss and its derivative by each number judged.
#[derive(Clone, Debug, PartialEq)]
pub struct Judged {
    /// The loss.
    pub loss: f64,
    /// Its derivative, number for number.
    pub by_output: Vec<f32>,
}

/// A model with the objective that it learns by.
pub(super) struct Learner<'a> {
    pub(super) model: &'a AdaptedVit,
    pub(super) objective: &'a Objective,
    /// Images in one pass of the model.
    pub(super) shard_images: usize,
    pub(super) dropout: f64,
}

/// Passes over the images.
pub(super) struct Passes<'a> {
    pub(super) views: Views<'a>,
    pub(super) cases: &'a [usize],
    pub(super) epochs: u32,
    pub(super) batch_size: usize,
}

/// What the passes made.
#[derive(Debug, Default)]
pub(super) struct Learnt {
    /// Mean loss of each epoch's images.
    pub(super) losses: Vec<f64>,
    pub(super) steps: u64,
}

impl Learner<'_> {
    /// Trains `values`, step after step; `tell` hears of each step's images and mean loss.
    pub(super) fn learn(
        &self,
        values: &mut Values,
        passes: &Passes<'_>,
        descent: &mut Descent,
        control: &Control,
        tell: &mut dyn FnMut(usize, f64),
    ) -> Result<Learnt, TrainError> {
        let mut teacher = match self.objective {
            Objective::Dino(dino) => Some(Teacher::new(dino, values)),
            Objective::Mae(_) | Objective::SimClr(_) => None,
        };
        let mut learnt = Learnt::default();
        for epoch in 0..passes.epochs {
            let views = passes.views.of_epoch(epoch);
            let order = shuffled(passes.cases, &views.stream_name(&format!("shuffle {epoch}")));
            let mut sum = 0.0;
            for batch in order.chunks(passes.batch_size) {
                check_stop(control)?;
                let mut gradient =
                    self.gradient(values, &views, batch, teacher.as_mut(), control)?;
                descent.step(values, &mut gradient)?;
                if let Some(teacher) = &mut teacher {
                    teacher.follow(values);
                }
                learnt.steps += 1;
                sum += gradient.loss * batch.len() as f64;
                tell(batch.len(), gradient.loss);
            }
            learnt.losses.push(sum / passes.cases.len() as f64);
        }
        Ok(learnt)
    }

    /// The mean loss over `cases`, in batches, nothing trained; a teacher is the model itself.
    /// `None` without cases.
    pub(super) fn mean_loss(
        &self,
        values: &Values,
        passes: &Passes<'_>,
        control: &Control,
        tell: &mut dyn FnMut(usize),
    ) -> Result<Option<f64>, TrainError> {
        let mut sum = 0.0;
        for batch in passes.cases.chunks(passes.batch_size) {
            check_stop(control)?;
            let mut teacher = match self.objective {
                Objective::Dino(dino) => Some(Teacher::new(dino, values)),
                Objective::Mae(_) | Objective::SimClr(_) => None,
            };
            let gradient =
                self.gradient(values, &passes.views, batch, teacher.as_mut(), control)?;
            sum += gradient.loss * batch.len() as f64;
            tell(batch.len());
        }
        let count = passes.cases.len();
        Ok((count > 0).then(|| sum / count as f64))
    }

    /// The mean loss of a batch and its gradient: shards in parallel, added in order.
    fn gradient(
        &self,
        values: &Values,
        views: &Views<'_>,
        batch: &[usize],
        teacher: Option<&mut Teacher>,
        control: &Control,
    ) -> Result<Gradient, TrainError> {
        match (self.objective, teacher) {
            (Objective::Mae(mae), _) => mae::gradient(self, mae, values, views, batch, control),
            (Objective::SimClr(simclr), _) => {
                simclr::gradient(self, simclr, values, views, batch, control)
            }
            (Objective::Dino(dino), Some(teacher)) => {
                dino::gradient(self, dino, values, views, batch, teacher, control)
            }
            (Objective::Dino(_), None) => unreachable!("self-distillation has a teacher"),
        }
    }

    /// One dropout a shard of a step.
    fn dropout(&self, views: &Views<'_>, batch: &[usize], shard: usize) -> Dropout {
        let first = batch.first().copied().unwrap_or_default();
        Dropout::seeded(self.dropout, views.stream(&format!("dropout {first} {shard}")))
    }

    /// Images in a shard where the model sees `views` pictures of each.
    fn images_of_shard(&self, views: usize) -> usize {
        (self.shard_images / views).max(1)
    }
}

/// `of` each shard of `images` cases, on all threads, in order; stops between shards.
fn each_shard<T: Send>(
    batch: &[usize],
    images: usize,
    control: &Control,
    of: impl Fn(usize, &[usize]) -> Result<T, TrainError> + Sync,
) -> Result<Vec<T>, TrainError> {
    let shards: Vec<&[usize]> = batch.chunks(images).collect();
    let one = |(number, shard): (usize, &[usize])| {
        check_stop(control)?;
        of(number, shard)
    };
    shards.into_par_iter().enumerate().map(one).collect()
}

fn sum(parts: Vec<Gradient>) -> Result<Gradient, TrainError> {
    super::shards::sum(parts).ok_or(TrainError::NoCases)
}
