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

use std::ops::ControlFlow;
use std::time::Duration;

use rayon::prelude::*;
use tributary_shared::objective::Objective;

use self::dino::Teacher;
pub(super) use self::round::{mean_loss, train};
pub(super) use self::views::{Pictures, Views};
use super::Control;
use super::ahead::{Reader, each_step};
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
    /// Threads that read ahead.
    pub(super) readers: usize,
}

/// Passes over the images.
pub(super) struct Passes<'a> {
    pub(super) views: Views<'a>,
    pub(super) cases: &'a [usize],
    pub(super) epochs: u32,
    pub(super) batch_size: usize,
}

/// One step to come.
struct Planned<'a> {
    views: Views<'a>,
    batch: Vec<usize>,
    ends_epoch: bool,
}

impl<'a> Passes<'a> {
    /// The steps over cases in `order`.
    fn steps(
        &self,
        views: Views<'a>,
        order: Vec<usize>,
    ) -> impl Iterator<Item = Planned<'a>> + use<'a> {
        let batches: Vec<Vec<usize>> =
            order.chunks(self.batch_size).map(<[usize]>::to_vec).collect();
        let last = batches.len().saturating_sub(1);
        let planned =
            move |(at, batch)| Planned { views: views.clone(), batch, ends_epoch: at == last };
        batches.into_iter().enumerate().map(planned)
    }
}

/// What the passes made.
#[derive(Debug, Default)]
pub(super) struct Learnt {
    /// Mean loss of each epoch's images.
    pub(super) losses: Vec<f64>,
    pub(super) steps: u64,
}

impl Learner<'_> {
    /// Trains `values`, step after step; `tell` hears of each step's images and mean loss and of how
    /// long steps waited so far.
    pub(super) fn learn(
        &self,
        values: &mut Values,
        passes: &Passes<'_>,
        descent: &mut Descent,
        control: &Control,
        tell: &mut dyn FnMut(usize, f64, Duration),
    ) -> Result<Learnt, TrainError> {
        let mut teacher = self.teacher(values);
        let mut learnt = Learnt::default();
        let mut sum = 0.0;
        let in_order = (0..passes.epochs).flat_map(|epoch| {
            let views = passes.views.of_epoch(epoch);
            passes.steps(
                views.clone(),
                shuffled(passes.cases, &views.stream_name(&format!("shuffle {epoch}"))),
            )
        });
        each_step(in_order, &self.reader(control), |step, ahead, waited| {
            let views = step.views.with(ahead);
            let mut gradient =
                self.gradient(values, &views, &step.batch, teacher.as_mut(), control)?;
            descent.step(values, &mut gradient)?;
            if let Some(teacher) = &mut teacher {
                teacher.follow(values);
            }
            learnt.steps += 1;
            sum += gradient.loss * step.batch.len() as f64;
            tell(step.batch.len(), gradient.loss, waited);
            if step.ends_epoch {
                learnt.losses.push(std::mem::take(&mut sum) / passes.cases.len() as f64);
            }
            Ok(ControlFlow::Continue(()))
        })?;
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
        let in_order = passes.steps(passes.views.clone(), passes.cases.to_vec());
        each_step(in_order, &self.reader(control), |step, ahead, _| {
            let (views, mut teacher) = (step.views.with(ahead), self.teacher(values));
            let gradient = self.gradient(values, &views, &step.batch, teacher.as_mut(), control)?;
            sum += gradient.loss * step.batch.len() as f64;
            tell(step.batch.len());
            Ok(ControlFlow::Continue(()))
        })?;
        let count = passes.cases.len();
        Ok((count > 0).then(|| sum / count as f64))
    }

    fn teacher(&self, values: &Values) -> Option<Teacher> {
        match self.objective {
            Objective::Dino(dino) => Some(Teacher::new(dino, values)),
            Objective::Mae(_) | Objective::SimClr(_) => None,
        }
    }

    fn reader<'r>(&'r self, control: &'r Control) -> Reader<'r, Planned<'r>, Pictures> {
        Reader {
            cases: Box::new(|step: &Planned<'_>| step.batch.clone()),
            read: Box::new(|step, case| self.pictures(&step.views, case)),
            bytes: self.pictures_bytes(),
            threads: self.readers,
            control,
        }
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
