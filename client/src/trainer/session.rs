//! A model with a run's task: batches cut into shards, computed in parallel, added in order.

mod gathered;
mod reading;

use std::sync::atomic::AtomicU64;

use rand::SeedableRng;
use rand::seq::SliceRandom as _;
use rand_chacha::ChaCha12Rng;
use rayon::prelude::*;
use tributary_shared::architecture::Architecture;
use tributary_shared::bags::Bags;
use tributary_shared::digest::Digest;
use tributary_shared::manifest::{RunManifest, Task, Training};
use tributary_shared::training::DIVERGED;

use super::batch::{Source, Step, Truth, image_rows, truths};
use super::cache::{PrefixCache, Shelf};
use super::heads::segment;
use super::loss::Weighing;
use super::segmentation::{Stretch, segmentation_loss};
use super::shards::{cut, map_shards, shard_images, sum};
use super::survival::{FollowUp, cox_loss};
use super::units::Unit;
use super::{Control, Phase, Progress};
use crate::data::{DataError, Dataset, InputSpec, Label};
use crate::model::{
    AdaptedVit, Backbone, Compute, Dropout, Gradient, HeadOf, Input, Leaves, Level,
    NoSampleGradients, Prefix, SampleGradients, spread_over,
};

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
    #[error("{DIVERGED} at step {step}: {what} is not finite; lower training.learning_rate")]
    Diverged {
        /// The step, from 1.
        step: u64,
        /// What is not finite.
        what: &'static str,
    },
    /// No gradients image by image.
    #[error(transparent)]
    NoSampleGradients(#[from] NoSampleGradients),
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
    /// Where prefixes are kept, with what they are.
    shelf: Option<(Shelf<'a>, Prefix)>,
    /// Threads' time spent on inputs of a step, nanoseconds.
    reading_ns: AtomicU64,
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
        let device_likes = shard_images(backbone, compute);
        let shard_images = training.micro_batch.map_or(device_likes, |most| most.min(device_likes));
        spread_over(training.batch_size.div_ceil(shard_images));
        Ok(Self {
            model: AdaptedVit::of_precision(backbone, &contract, compute, training.precision),
            task: &manifest.task,
            training,
            bags: manifest.bags.as_ref(),
            stretch: Stretch::of(&manifest.task, backbone.architecture()),
            dropout: adaptation.dropout(),
            shard_images,
            shelf: None,
            reading_ns: AtomicU64::new(0),
        })
    }

    /// Keeps in `cache` what the blocks below the first trained one make of `dataset`, of which
    /// `images` images are looked at, where there are such blocks.
    pub(super) fn keep(
        &mut self,
        cache: &'a PrefixCache,
        dataset: &Dataset,
        (backbone, compute): (&Backbone, &Compute),
        images: usize,
    ) {
        let prefix = match self.model.prefix_of(self.level()) {
            None | Some(Prefix::Tokens(0)) => return,
            Some(prefix) => prefix,
        };
        let InputSpec { mean, std, .. } = dataset.input();
        let (program, device, backbone) =
            (env!("CARGO_PKG_VERSION"), compute.device(), backbone.digest());
        let precision = self.training.precision;
        let key =
            format!("{program} {device:?} {precision:?}\n{backbone}\n{mean:?} {std:?}\n{prefix:?}");
        let what = match prefix {
            Prefix::Pooled => "pooled features".to_owned(),
            Prefix::Tokens(block) => format!("tokens before block {block}"),
        };
        let about = format!("{what}, backbone {backbone}");
        let shelf = cache.shelf(&key, &about, self.model.prefix_numbers(prefix), images);
        self.shelf = shelf.map(|shelf| (shelf, prefix));
    }

    /// What the run's head takes of an image.
    fn level(&self) -> Level {
        if self.stretch.is_some() { Level::Tokens } else { Level::Features }
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
        let values = &self.model.place(values);
        let of_shard = |(number, shard): (usize, &[Unit])| {
            check_stop(control)?;
            let cases: Vec<usize> = shard.iter().map(Unit::first).collect();
            let rows = self.rows(step, &cases)?;
            let input = rows.input(cases.len());
            let truths = step.truths(shard)?;
            let loss = |outputs: &[f32]| self.loss(step.weighing, outputs, &truths, share);
            let mut dropout = step.draws.dropout(number);
            if self.stretch.is_some() {
                let (level, head) = (Level::Tokens, &*self.segmentation_head());
                let (model, dropout) = (&self.model, &mut dropout);
                return Ok(model.gradient_through(values, input, level, dropout, head, loss));
            }
            Ok(self.model.gradient(values, input, &mut dropout, loss))
        };
        let shards: Vec<&[Unit]> = batch.chunks(self.shard_images).collect();
        let parts: Result<Vec<Gradient>, TrainError> =
            shards.into_par_iter().enumerate().map(of_shard).collect();
        sum(parts?).ok_or(TrainError::NoCases)
    }

    /// The gradient of each case's own loss, of a shard after another; nothing is dropped.
    pub(super) fn sample_gradients(
        &self,
        values: &[Vec<f32>],
        step: &Step<'_>,
        cases: &[usize],
    ) -> Result<Vec<SampleGradients>, TrainError> {
        if self.gathers() || self.stretch.is_some() {
            return Err(NoSampleGradients::Loss.into());
        }
        let values = &self.model.place(values);
        let of_shard = |shard: &[usize]| {
            let rows = self.rows(step, shard)?;
            let units: Vec<Unit> = shard.iter().map(|case| Unit { cases: vec![*case] }).collect();
            let truths = step.truths(&units)?;
            let loss = |outputs: &[f32]| self.loss(step.weighing, outputs, &truths, 1.0);
            Ok(self.model.sample_gradients(values, rows.input(shard.len()), loss)?)
        };
        let shards: Vec<&[usize]> = cases.chunks(self.shard_images).collect();
        shards.into_par_iter().map(of_shard).collect()
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
            let truths = truths(dataset, units)?;
            return Ok(Some(self.loss(&plain, &outputs.concat(), &truths, 1.0).0));
        }
        let mut sum = 0.0;
        for (unit, outputs) in units.iter().zip(outputs) {
            let truths = truths(dataset, std::slice::from_ref(unit))?;
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
        let values = &self.model.place(values);
        if self.gathers() {
            return self.gathered_outputs(values, dataset, units, watch);
        }
        let cases: Vec<usize> = units.iter().map(Unit::first).collect();
        let of_shard = |input: Input<'_>| {
            if self.stretch.is_none() {
                return self.model.placed_logits(values, input);
            }
            let (level, head) = (Level::Tokens, self.segmentation_head());
            self.model.through(values, input, level, &mut Dropout::off(), &*head)
        };
        self.map_cases(dataset, &cases, Phase::Evaluating, watch, &of_shard)
    }

    /// The pooled features of `cases`, whatever is trained above them.
    pub(super) fn pooled_features(
        &self,
        dataset: &Dataset,
        cases: &[usize],
        watch: (&Control, &mut dyn FnMut(Progress)),
    ) -> Result<Vec<Vec<f32>>, TrainError> {
        let (source, plain) = (Source::Images(dataset), Weighing::default());
        let step = Step::plain(&source, &plain);
        let of_shard = |shard: &[usize]| match &self.shelf {
            Some(shelf @ (_, Prefix::Pooled)) => self.kept_rows(shelf, &step, shard),
            Some((_, Prefix::Tokens(_))) | None => {
                let rows = image_rows(&self.model, dataset, shard)?;
                Ok(cut(&self.model.features(&rows, shard.len()), shard.len()))
            }
        };
        map_shards(cases, self.shard_images, Phase::Features, watch, &of_shard)
    }

    /// Whether the features below the head stay the same while training.
    pub(super) fn trains_head_alone(&self) -> bool {
        let pooled = self.model.prefix_of(self.level()) == Some(Prefix::Pooled);
        pooled && self.training.augment.is_none()
    }

    /// Of a segmentation.
    pub(super) fn stretch(&self) -> Option<&Stretch> {
        self.stretch.as_ref()
    }

    /// One row of `of_shard`, given the cases' model inputs, a case, in the order of `cases`.
    fn map_cases(
        &self,
        dataset: &Dataset,
        cases: &[usize],
        phase: Phase,
        watch: (&Control, &mut dyn FnMut(Progress)),
        of_shard: &(dyn Fn(Input<'_>) -> Vec<f32> + Sync),
    ) -> Result<Vec<Vec<f32>>, TrainError> {
        let (source, plain) = (Source::Images(dataset), Weighing::default());
        let step = Step::plain(&source, &plain);
        let of_cases = |shard: &[usize]| {
            let rows = self.rows(&step, shard)?;
            Ok(cut(&of_shard(rows.input(shard.len())), shard.len()))
        };
        map_shards(cases, self.shard_images, phase, watch, &of_cases)
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
