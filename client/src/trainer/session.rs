//! A model with a run's task: batches cut into shards, computed in parallel, added in order.

use rand::SeedableRng;
use rand::seq::SliceRandom as _;
use rand_chacha::ChaCha12Rng;
use rayon::prelude::*;
use tributary_shared::architecture::Architecture;
use tributary_shared::digest::Digest;
use tributary_shared::manifest::{RunManifest, Task, Training};

use super::loss::case_loss;
use super::{Control, Meter, Phase, Progress};
use crate::data::{DataError, Dataset, Label};
use crate::model::{AdaptedVit, Backbone, Compute, Dropout, Gradient, Input, Values};

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

/// Where a batch's model inputs come from.
pub(super) enum Source<'a> {
    /// Images.
    Images(&'a Dataset),
    /// What the frozen blocks made of them, one row a case of the data set, where it was computed.
    Prefix(&'a Dataset, &'a [Vec<f32>]),
}

impl Source<'_> {
    fn label(&self, index: usize) -> &Label {
        let (Self::Images(dataset) | Self::Prefix(dataset, _)) = self;
        &dataset.cases()[index].label
    }
}

/// A model on a device with a run's task.
pub(super) struct Session<'a> {
    pub(super) model: AdaptedVit,
    pub(super) task: &'a Task,
    pub(super) training: &'a Training,
    pub(super) dropout: f64,
    shard_images: usize,
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
        Ok(Self {
            model: AdaptedVit::new(backbone, &contract, compute),
            task: &manifest.task,
            training,
            dropout: adaptation.dropout(),
            shard_images: shard_images(backbone),
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

    /// The mean loss of `batch` and its gradient. Shards are cut alike and added in order on any
    /// number of threads, so the bits are the same.
    pub(super) fn gradient(
        &self,
        values: &[Vec<f32>],
        source: &Source<'_>,
        batch: &[usize],
        control: &Control,
        dropout: &(dyn Fn(usize) -> Dropout + Sync),
    ) -> Result<Gradient, TrainError> {
        let share = 1.0 / batch.len() as f64;
        let of_shard = |(number, shard): (usize, &[usize])| {
            check_stop(control)?;
            let (rows, images) = (self.rows(source, shard)?, shard.len());
            let input = match source {
                Source::Images(_) => Input::Patches { rows: &rows, images },
                Source::Prefix(..) => Input::Prefix { rows: &rows, images },
            };
            let loss = |logits: &[f32]| self.shard_loss(source, shard, logits, share);
            Ok(self.model.gradient(values, input, &mut dropout(number), loss))
        };
        let shards: Vec<&[usize]> = batch.chunks(self.shard_images).collect();
        let parts: Result<Vec<Gradient>, TrainError> =
            shards.into_par_iter().enumerate().map(of_shard).collect();
        let mut parts = parts?.into_iter();
        let mut whole = parts.next().ok_or(TrainError::NoCases)?;
        for part in parts {
            whole.loss += part.loss;
            add(&mut whole.values, &part.values);
        }
        Ok(whole)
    }

    fn shard_loss(
        &self,
        source: &Source<'_>,
        shard: &[usize],
        logits: &[f32],
        share: f64,
    ) -> (f64, Vec<f32>) {
        let mut sum = 0.0;
        let mut by_logit = Vec::with_capacity(logits.len());
        for (index, logits) in shard.iter().zip(logits.chunks(self.model.head_outputs())) {
            let loss = case_loss(self.task, logits, source.label(*index))
                .expect("cases without a fitting label were left out or refused");
            sum += share * loss.value;
            by_logit.extend(loss.by_logit.iter().map(|d| (share * d) as f32));
        }
        (sum, by_logit)
    }

    /// Model inputs of `cases`, row after row.
    fn rows(&self, source: &Source<'_>, cases: &[usize]) -> Result<Vec<f32>, TrainError> {
        match source {
            Source::Prefix(_, features) => {
                Ok(cases.iter().flat_map(|index| features[*index].iter().copied()).collect())
            }
            Source::Images(dataset) => image_rows(&self.model, dataset, cases),
        }
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
        let rows = |shard: &[usize]| image_rows(&self.model, dataset, shard);
        map_shards(cases, self.shard_images, phase, watch, &rows, of_shard)
    }

    /// The cases of `indices` that have a label; an error names one whose label is not the task's.
    pub(super) fn labelled(
        &self,
        dataset: &Dataset,
        indices: &[usize],
    ) -> Result<Vec<usize>, TrainError> {
        let zeros = vec![0.0; self.model.head_outputs()];
        let mut labelled = Vec::with_capacity(indices.len());
        for &index in indices {
            let case = &dataset.cases()[index];
            if case.label == Label::Unlabelled {
                continue;
            }
            if case_loss(self.task, &zeros, &case.label).is_none() {
                return Err(TrainError::Label { case: case.id.clone() });
            }
            labelled.push(index);
        }
        Ok(labelled)
    }
}

/// The patches of `cases`, image after image.
pub(super) fn image_rows(
    model: &AdaptedVit,
    dataset: &Dataset,
    cases: &[usize],
) -> Result<Vec<f32>, TrainError> {
    let mut image = vec![0.0; dataset.input().numbers()];
    let mut rows = Vec::with_capacity(image.len() * cases.len());
    for index in cases {
        dataset.pixels(*index, &mut image)?;
        model.patchify(&image, &mut rows);
    }
    Ok(rows)
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
pub(super) fn shuffled(indices: &[usize], name: &str) -> Vec<usize> {
    let mut order = indices.to_vec();
    order.shuffle(&mut ChaCha12Rng::from_seed(stream(name)));
    order
}
