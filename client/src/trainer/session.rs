//! A model with a run's task: batches cut into shards, computed in parallel, added in order.

use rand::SeedableRng;
use rand::seq::SliceRandom as _;
use rand_chacha::ChaCha12Rng;
use rayon::prelude::*;
use tributary_shared::architecture::Architecture;
use tributary_shared::bags::Bags;
use tributary_shared::digest::Digest;
use tributary_shared::manifest::{RunManifest, Task, Training};

use super::batch::{Draws, Source, Step, Truth, image_rows, truths};
use super::heads::{pool_bags, segment};
use super::loss::Weighing;
use super::segmentation::{Stretch, segmentation_loss};
use super::survival::{FollowUp, cox_loss};
use super::units::Unit;
use super::{Control, Meter, Phase, Progress};
use crate::data::{DataError, Dataset, Label};
use crate::model::{
    AdaptedVit, Backbone, Compute, Dropout, Gradient, HeadOf, Input, Leaves, Level, Values,
};

/// Most images of one shard: what a core's cache holds of the demo's model.
const SHARD_IMAGES_MAX: usize = 8;
/// Multiplications of one shard's forward pass, so that a stop is heard within a second.
const SHARD_WORK: usize = 2_000_000_000;

/// Why a training or an evaluation gave no result.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// [`Control::stop`] was called.
    #[error("stopped")]
    Stopped,
    /// An image could not be read.
    #[error("cannot read a case")]
    Data(#[from] DataError),
    /// Nothing to train on.
    #[error("no labelled case to train on; look at the data's labels and at training.holdout")]
    NoCases,
    /// The task is a rehearsal.
    #[error("a rehearsal trains no model")]
    Rehearsal,
    /// Not the run's backbone.
    #[error("the backbone is {found}; the run asks for {expected}")]
    Backbone {
        /// The manifest's.
        expected: Digest,
        /// The one given.
        found: Digest,
    },
    /// The adapter's values do not have the contract's shapes.
    #[error("the adapter does not fit the run's contract: {0}")]
    Adapter(String),
    /// The images were prepared for another input.
    #[error("the images are {found} numbers each; the backbone takes {expected}")]
    Input {
        /// The backbone's.
        expected: usize,
        /// The data set's.
        found: usize,
    },
    /// A label that the task does not have.
    #[error("case {case}: its label is none of the task's")]
    Label {
        /// The case.
        case: String,
    },
    /// The loss or a weight left the finite numbers.
    #[error("training diverged at step {step}: {what} is not finite; lower training.learning_rate")]
    Diverged {
        /// The step, from 1.
        step: u64,
        /// What is not finite.
        what: &'static str,
    },
}

/// A model on a device with a run's task.
pub(super) struct Session<'a> {
    pub(super) model: AdaptedVit,
    pub(super) task: &'a Task,
    pub(super) training: &'a Training,
    bags: Option<&'a Bags>,
    /// Of a segmentation.
    stretch: Option<Stretch>,
    pub(super) dropout: f64,
    pub(super) shard_images: usize,
}

impl<'a> Session<'a> {
    pub(super) fn new(
        backbone: &Backbone,
        manifest: &'a RunManifest,
        compute: &Compute,
    ) -> Result<Self, TrainError> {
        let (Some(asked), Some(adaptation), Some(training), Some(contract)) =
            (&manifest.backbone, &manifest.adapter, &manifest.training, manifest.contract())
        else {
            return Err(TrainError::Rehearsal);
        };
        if asked.digest != backbone.digest() {
            let (expected, found) = (asked.digest, backbone.digest());
            return Err(TrainError::Backbone { expected, found });
        }
        let device_likes = shard_images(backbone);
        Ok(Self {
            model: AdaptedVit::new(backbone, &contract, compute),
            task: &manifest.task,
            training,
            bags: manifest.bags.as_ref(),
            stretch: Stretch::of(&manifest.task, backbone.architecture()),
            dropout: adaptation.dropout(),
            shard_images: training.micro_batch.map_or(device_likes, |most| most.min(device_likes)),
        })
    }

    pub(super) fn check(&self, values: &[Vec<f32>], dataset: &Dataset) -> Result<(), TrainError> {
        let specs = self.model.layout().tensors();
        if specs.len() != values.len() {
            let text = format!("{} tensors, not {}", values.len(), specs.len());
            return Err(TrainError::Adapter(text));
        }
        for (spec, tensor) in specs.iter().zip(values) {
            if spec.elements() != tensor.len() {
                return Err(TrainError::Adapter(format!("{spec} has {} values", tensor.len())));
            }
        }
        let Architecture { channels, image_size, .. } = *self.model.architecture();
        let (expected, found) = (channels * image_size * image_size, dataset.input().numbers());
        if expected == found { Ok(()) } else { Err(TrainError::Input { expected, found }) }
    }

    /// The loss of `batch` and its gradient. Shards are cut alike and added in order on any number
    /// of threads, so the bits are the same.
    pub(super) fn gradient(
        &self,
        values: &[Vec<f32>],
        step: &Step<'_>,
        batch: &[Unit],
        control: &Control,
    ) -> Result<Gradient, TrainError> {
        if self.gathers() {
            return self.gathered_gradient(values, step, batch, control);
        }
        let share = 1.0 / batch.len() as f64;
        let of_shard = |(number, shard): (usize, &[Unit])| {
            check_stop(control)?;
            let cases: Vec<usize> = shard.iter().map(Unit::first).collect();
            let (rows, images) = (self.rows(step, &cases)?, cases.len());
            let truths = truths(step.source.dataset(), shard, &step.draws)?;
            let loss = |outputs: &[f32]| self.loss(step.weighing, outputs, &truths, share);
            let mut dropout = step.draws.dropout(number);
            if self.stretch.is_some() {
                let (input, head) =
                    (Input::Patches { rows: &rows, images }, &*self.segmentation_head());
                let level = Level::Tokens;
                return Ok(self.model.gradient_through(
                    values,
                    input,
                    level,
                    &mut dropout,
                    head,
                    loss,
                ));
            }
            let rows = &rows;
            let input = match step.source {
                Source::Images(_) => Input::Patches { rows, images },
                Source::Prefix(..) => Input::Prefix { rows, images },
            };
            Ok(self.model.gradient(values, input, &mut dropout, loss))
        };
        let shards: Vec<&[Unit]> = batch.chunks(self.shard_images).collect();
        let parts: Result<Vec<Gradient>, TrainError> =
            shards.into_par_iter().enumerate().map(of_shard).collect();
        sum(parts?).ok_or(TrainError::NoCases)
    }

    /// Whether a loss needs the features of several images at once.
    fn gathers(&self) -> bool {
        self.bags.is_some() || matches!(self.task, Task::Survival {})
    }

    /// As [`Self::gradient`] of a loss over many images at once, in the memory of a few: all
    /// features first, without a graph; the loss's derivative by each of them; then each shard's
    /// own pass with that derivative (Gao et al. 2021, arXiv:2101.06983). The same numbers as one
    /// graph over everything would give.
    fn gathered_gradient(
        &self,
        values: &[Vec<f32>],
        step: &Step<'_>,
        batch: &[Unit],
        control: &Control,
    ) -> Result<Gradient, TrainError> {
        let most = self.bags.map_or(usize::MAX, |bags| bags.instances_max);
        let drawn: Vec<Vec<usize>> =
            batch.iter().map(|unit| step.draws.instances(unit, most)).collect();
        let sizes: Vec<usize> = drawn.iter().map(Vec::len).collect();
        let cases: Vec<usize> = drawn.into_iter().flatten().collect();
        let shards: Vec<&[usize]> = cases.chunks(self.shard_images).collect();
        let features = match step.source {
            Source::Prefix(..) => self.rows(step, &cases)?,
            Source::Images(_) => {
                let of_shard = |(number, shard): (usize, &&[usize])| {
                    check_stop(control)?;
                    let rows = self.rows(step, shard)?;
                    let input = Input::Patches { rows: &rows, images: shard.len() };
                    let (level, mut dropout) = (Level::Features, step.draws.dropout(number));
                    Ok(self.model.through(values, input, level, &mut dropout, &as_it_is))
                };
                let parts: Result<Vec<Vec<f32>>, TrainError> =
                    shards.par_iter().enumerate().map(of_shard).collect();
                parts?.concat()
            }
        };
        let truths = truths(step.source.dataset(), batch, &step.draws)?;
        let share = 1.0 / batch.len() as f64;
        let loss = |outputs: &[f32]| self.loss(step.weighing, outputs, &truths, share);
        let width = features.len() / cases.len();
        let dims = [cases.len(), 1, width];
        let head = self.gathered_head(&sizes);
        let (mut whole, by_feature) =
            self.model.head_gradient(values, &features, dims, &*head, loss);
        if let Source::Prefix(..) = step.source {
            return Ok(whole);
        }
        let derivatives: Vec<&[f32]> = by_feature.chunks(self.shard_images * width).collect();
        let of_shard = |(number, (shard, by_feature)): (usize, (&&[usize], &&[f32]))| {
            check_stop(control)?;
            let rows = self.rows(step, shard)?;
            let input = Input::Patches { rows: &rows, images: shard.len() };
            let known = |_: &[f32]| (0.0, by_feature.to_vec());
            let (level, mut dropout) = (Level::Features, step.draws.dropout(number));
            Ok(self.model.gradient_through(values, input, level, &mut dropout, &as_it_is, known))
        };
        let parts: Result<Vec<Gradient>, TrainError> =
            shards.par_iter().zip(&derivatives).enumerate().map(of_shard).collect();
        for part in parts? {
            add(&mut whole.values, &part.values);
        }
        Ok(whole)
    }

    /// From features to the outputs of each bag of `sizes` or, without bags, of each image.
    fn gathered_head<'s>(&'s self, sizes: &'s [usize]) -> Box<HeadOf<'s>> {
        Box::new(move |leaves: &Leaves<'_>, features| {
            let pooled = match self.bags {
                Some(bags) => pool_bags(leaves, bags, sizes, features),
                None => features,
            };
            self.model.head(leaves, pooled)
        })
    }

    fn segmentation_head(&self) -> Box<HeadOf<'_>> {
        Box::new(|leaves: &Leaves<'_>, tokens| {
            let Task::Segmentation { decoder, .. } = self.task else { return tokens };
            let decoder = (decoder, self.model.head_outputs());
            segment(leaves, self.model.architecture(), decoder, tokens)
        })
    }

    /// The sum of the units' losses, each times `share`, and its derivative by each output; of a
    /// survival task the loss of the set.
    pub(super) fn loss(
        &self,
        weighing: &Weighing,
        outputs: &[f32],
        truths: &[Truth<'_>],
        share: f64,
    ) -> (f64, Vec<f32>) {
        if let Task::Survival {} = self.task {
            let loss = cox_loss(outputs, &follow_ups(truths));
            return (loss.value, loss.by_logit.into_iter().map(|d| d as f32).collect());
        }
        let mut sum = 0.0;
        let mut by_output = Vec::with_capacity(outputs.len());
        let of_unit = outputs.len() / truths.len().max(1);
        for (outputs, truth) in outputs.chunks(of_unit.max(1)).zip(truths) {
            let loss = match (truth, &self.stretch) {
                (Truth::Label(label), _) => weighing.case_loss(self.task, outputs, label),
                (Truth::Mask(mask), Some(stretch)) => {
                    Some(segmentation_loss(stretch, weighing, outputs, mask))
                }
                (Truth::Mask(_), None) => None,
            };
            let loss = loss.expect("units without a fitting label were left out or refused");
            sum += share * loss.value;
            by_output.extend(loss.by_logit.iter().map(|d| (share * d) as f32));
        }
        (sum, by_output)
    }

    /// The mean loss of `units` given the outputs of each, unweighed.
    pub(super) fn mean_loss(
        &self,
        dataset: &Dataset,
        units: &[Unit],
        outputs: &[Vec<f32>],
    ) -> Result<Option<f64>, TrainError> {
        if units.is_empty() {
            return Ok(None);
        }
        let plain = Weighing::default();
        if let Task::Survival {} = self.task {
            let truths = truths(dataset, units, &Draws::default())?;
            return Ok(Some(self.loss(&plain, &outputs.concat(), &truths, 1.0).0));
        }
        let mut sum = 0.0;
        for (unit, outputs) in units.iter().zip(outputs) {
            let truths = truths(dataset, std::slice::from_ref(unit), &Draws::default())?;
            sum += self.loss(&plain, outputs, &truths, 1.0).0;
        }
        Ok(Some(sum / units.len() as f64))
    }

    /// The outputs of each unit, nothing drawn.
    pub(super) fn outputs(
        &self,
        values: &[Vec<f32>],
        dataset: &Dataset,
        units: &[Unit],
        watch: (&Control, &mut dyn FnMut(Progress)),
    ) -> Result<Vec<Vec<f32>>, TrainError> {
        let cases: Vec<usize> = units.iter().flat_map(|unit| unit.cases.clone()).collect();
        let dropout = Dropout::off;
        if !self.gathers() {
            let of_shard = |rows: &[f32], images: usize| match self.stretch {
                Some(_) => {
                    let (input, head) =
                        (Input::Patches { rows, images }, &*self.segmentation_head());
                    self.model.through(values, input, Level::Tokens, &mut dropout(), head)
                }
                None => self.model.logits(values, rows, images),
            };
            return self.map_cases(dataset, &cases, Phase::Evaluating, watch, &of_shard);
        }
        let of_shard = |rows: &[f32], images: usize| {
            let (input, level) = (Input::Patches { rows, images }, Level::Features);
            self.model.through(values, input, level, &mut dropout(), &as_it_is)
        };
        let features = self.map_cases(dataset, &cases, Phase::Evaluating, watch, &of_shard)?;
        let mut features = &features[..];
        let mut outputs = Vec::with_capacity(units.len());
        for unit in units {
            let (own, rest) = features.split_at(unit.cases.len());
            features = rest;
            let sizes = [own.len()];
            let dims = [own.len(), 1, own[0].len()];
            let head = self.gathered_head(&sizes);
            outputs.push(self.model.head_outputs_of(values, &own.concat(), dims, &*head));
        }
        Ok(outputs)
    }

    /// Model inputs of `cases`, row after row.
    fn rows(&self, step: &Step<'_>, cases: &[usize]) -> Result<Vec<f32>, TrainError> {
        match step.source {
            Source::Prefix(_, features) => {
                Ok(cases.iter().flat_map(|index| features[*index].iter().copied()).collect())
            }
            Source::Images(dataset) => image_rows(&self.model, dataset, cases, &step.draws),
        }
    }

    /// Whether the features below the head stay the same while training.
    pub(super) fn trains_head_alone(&self) -> bool {
        let images_stay = self.stretch.is_none() && self.training.augment.is_none();
        images_stay && self.model.prefix_is_pooled()
    }

    /// Of a segmentation.
    pub(super) fn stretch(&self) -> Option<&Stretch> {
        self.stretch.as_ref()
    }

    /// One row of `of_shard(rows, images)` a case, in the order of `cases`.
    pub(super) fn map_cases(
        &self,
        dataset: &Dataset,
        cases: &[usize],
        phase: Phase,
        watch: (&Control, &mut dyn FnMut(Progress)),
        of_shard: &(dyn Fn(&[f32], usize) -> Vec<f32> + Sync),
    ) -> Result<Vec<Vec<f32>>, TrainError> {
        let rows = |shard: &[usize]| image_rows(&self.model, dataset, shard, &Draws::default());
        map_shards(cases, self.shard_images, phase, watch, &rows, of_shard)
    }
}

fn as_it_is(_: &Leaves<'_>, features: burn::tensor::Tensor<3>) -> burn::tensor::Tensor<3> {
    features
}

/// The follow-ups among `truths`.
pub(super) fn follow_ups(truths: &[Truth<'_>]) -> Vec<FollowUp> {
    let of = |truth: &Truth<'_>| match truth {
        Truth::Label(Label::FollowUp { time, event }) => {
            Some(FollowUp { time: *time, event: *event })
        }
        Truth::Label(_) | Truth::Mask(_) => None,
    };
    truths.iter().filter_map(of).collect()
}

pub(super) fn sum(parts: Vec<Gradient>) -> Option<Gradient> {
    let mut parts = parts.into_iter();
    let mut whole = parts.next()?;
    for part in parts {
        whole.loss += part.loss;
        add(&mut whole.values, &part.values);
    }
    Some(whole)
}

/// Gives the model inputs of a shard's cases, row after row.
pub(super) type RowsOf<'a> = dyn Fn(&[usize]) -> Result<Vec<f32>, TrainError> + Sync + 'a;

/// One row of `of_shard(rows(shard), images)` a case, in the order of `cases`.
pub(super) fn map_shards(
    cases: &[usize],
    shard_images: usize,
    phase: Phase,
    (control, progress): (&Control, &mut dyn FnMut(Progress)),
    rows: &RowsOf<'_>,
    of_shard: &(dyn Fn(&[f32], usize) -> Vec<f32> + Sync),
) -> Result<Vec<Vec<f32>>, TrainError> {
    // Between groups progress is told; inside one, shards keep every thread busy.
    let group_images = shard_images * 2 * rayon::current_num_threads();
    let mut meter = Meter::new(phase, cases.len().div_ceil(group_images) as u64);
    let mut all = Vec::with_capacity(cases.len());
    for group in cases.chunks(group_images) {
        let shards: Vec<&[usize]> = group.chunks(shard_images).collect();
        let rows_of = |shard: &[usize]| -> Result<Vec<Vec<f32>>, TrainError> {
            check_stop(control)?;
            let flat = of_shard(&rows(shard)?, shard.len());
            Ok(flat.chunks(flat.len() / shard.len()).map(<[f32]>::to_vec).collect())
        };
        let parts: Result<Vec<_>, _> = shards.into_par_iter().map(rows_of).collect();
        all.extend(parts?.into_iter().flatten());
        progress(meter.advance(group.len(), None));
    }
    Ok(all)
}

pub(super) fn shard_images(backbone: &Backbone) -> usize {
    let work = backbone.parameters() * backbone.architecture().tokens();
    // LibTorch parallelises inside its kernels and wants few, large calls.
    let images_max = if cfg!(feature = "tch") { 64 } else { SHARD_IMAGES_MAX };
    (SHARD_WORK / work).clamp(1, images_max)
}

pub(super) fn add(sum: &mut Values, part: &[Vec<f32>]) {
    for (sum, part) in sum.iter_mut().zip(part) {
        sum.iter_mut().zip(part).for_each(|(s, p)| *s += p);
    }
}

pub(super) fn check_stop(control: &Control) -> Result<(), TrainError> {
    if control.is_stopped() { Err(TrainError::Stopped) } else { Ok(()) }
}

/// The key of the random stream that `name` names.
pub(super) fn stream(name: &str) -> [u8; 32] {
    *Digest::of(format!("tributary training\n{name}").as_bytes()).as_bytes()
}

/// `indices` in the order that the stream `name` gives.
pub(super) fn shuffled<T: Clone>(indices: &[T], name: &str) -> Vec<T> {
    let mut order = indices.to_vec();
    order.shuffle(&mut ChaCha12Rng::from_seed(stream(name)));
    order
}
