//! Pretraining: a backbone from images alone, by an objective that needs no labels.

use std::time::Duration;

use tributary_shared::adaptation::Adaptation;
use tributary_shared::architecture::Architecture;
use tributary_shared::augment::Augment;
use tributary_shared::contract::AdapterContract;
use tributary_shared::layout::{Layout, TensorSpec};
use tributary_shared::objective::Objective;
use tributary_shared::problems::Problems;

use super::descent::{Descent, Path};
use super::optimizer::{AdamW, decayed};
use super::self_supervised::{Learner, Passes, Views};
use super::session::TrainError;
use super::shards::shard_images;
use super::{Control, Meter, Phase, Progress};
use crate::data::Dataset;
use crate::model::{AdaptedVit, Backbone, Compute, Values, backbone_layout, positions, untrained};

/// Global gradient norm above which gradients are scaled down.
const NORM_MAX: f64 = 1.0;

/// How to pretrain.
#[derive(Clone, Debug)]
pub struct Pretraining {
    /// The backbone to make.
    pub architecture: Architecture,
    /// What it learns by.
    pub objective: Objective,
    /// How images are varied; a masked autoencoder's are mirrored, every other time, when absent.
    pub augment: Option<Augment>,
    /// Passes over the images.
    pub epochs: u32,
    /// Images of a step.
    pub batch_size: usize,
    /// AdamW's peak learning rate.
    pub learning_rate: f64,
    /// AdamW's weight decay.
    pub weight_decay: f64,
    /// Seed of weights, order, masks and views.
    pub seed: u64,
}

/// What pretraining made.
#[derive(Debug)]
pub struct Pretrained {
    /// The backbone.
    pub backbone: Backbone,
    /// Mean loss of each epoch.
    pub losses: Vec<f64>,
}

impl Pretraining {
    /// Refuses an objective that makes no sense on the architecture.
    pub fn check(&self) -> Result<(), Problems> {
        let (shape, augment) = (Some(&self.architecture), self.augment.as_ref());
        Problems::of(|found| self.objective.check(shape, augment, found))
    }

    /// The weights start as nothing and everything is trained, as a change of nothing: one model
    /// serves pretraining and rounds. Positions are fixed and stay out of the layout.
    pub(super) fn contract(&self, nothing: &Backbone) -> AdapterContract {
        let mut tensors = backbone_layout(&self.architecture).tensors().to_vec();
        tensors.retain(|spec| spec.name != "pos_embed");
        let (head, outputs) = (self.objective.head(), self.objective.head_outputs());
        let of_head = head.as_ref().map(|head| head.tensors(&self.architecture, outputs));
        tensors.extend(of_head.unwrap_or_default());
        tensors.extend(self.objective.tensors(&self.architecture));
        AdapterContract {
            backbone: Some(nothing.digest()),
            adaptation: Some(Adaptation::Full),
            head,
            head_outputs: outputs,
            layout: Layout::new(tensors),
        }
    }

    /// Fixed positions, and zeros.
    pub(super) fn nothing(&self) -> Backbone {
        let of = |spec: &TensorSpec| match spec.name.as_str() {
            "pos_embed" => positions(&self.architecture, self.architecture.width),
            _ => vec![0.0; spec.elements()],
        };
        let values = backbone_layout(&self.architecture).tensors().iter().map(of).collect();
        Backbone::from_values(self.architecture.clone(), values)
    }
}

/// Pretrains a backbone on every image of `dataset`; labels are not looked at.
pub fn pretrain(
    plan: &Pretraining,
    dataset: &Dataset,
    compute: &Compute,
    control: &Control,
    progress: &mut dyn FnMut(Progress),
) -> Result<Pretrained, TrainError> {
    let nothing = plan.nothing();
    let contract = plan.contract(&nothing);
    let model = AdaptedVit::new(&nothing, &contract, compute);
    let specs = contract.layout.tensors();
    let start = |spec: &TensorSpec| {
        let name = spec.name.strip_prefix("head.").unwrap_or(&spec.name).to_owned();
        untrained(&TensorSpec { name, shape: spec.shape.clone() }, plan.seed)
    };
    let mut values: Values = specs.iter().map(start).collect();
    let optimizer = AdamW::new(&values, decayed(specs), plan.weight_decay).beta2(0.95);
    let cases: Vec<usize> = (0..dataset.len()).collect();
    let total = cases.len().div_ceil(plan.batch_size) as u64 * u64::from(plan.epochs);
    let path = Path { peak: plan.learning_rate, warmup: total / 20, done: 0, total };
    let mut descent = Descent::new(optimizer, path, NORM_MAX);
    let name = format!("{}\npretraining", plan.seed);
    let augment = plan.augment.as_ref();
    let views =
        Views { dataset, augment, name: &name, mirrored: augment.is_none(), epoch: 0, ahead: None };
    let passes = Passes { views, cases: &cases, epochs: plan.epochs, batch_size: plan.batch_size };
    let learner = Learner {
        model: &model,
        objective: &plan.objective,
        shard_images: shard_images(&nothing, compute),
        dropout: 0.0,
        readers: compute.readers(),
    };
    let mut meter = Meter::new(Phase::Training, total);
    let mut tell = |images, loss, waited: Duration| {
        let waited_s = waited.as_secs_f64();
        progress(Progress { waited_s, ..meter.advance(images, Some(loss)) });
    };
    let learnt = learner.learn(&mut values, &passes, &mut descent, control, &mut tell)?;
    let backbone = made(&plan.architecture, &nothing, specs, values);
    Ok(Pretrained { backbone, losses: learnt.losses })
}

/// The trained weights and the fixed positions; the objective's own layers are dropped.
fn made(
    architecture: &Architecture,
    nothing: &Backbone,
    specs: &[TensorSpec],
    mut values: Values,
) -> Backbone {
    let of = |(spec, fixed): (&TensorSpec, &[f32])| {
        let trained = specs.iter().position(|t| t.name == spec.name);
        trained.map_or_else(|| fixed.to_vec(), |at| std::mem::take(&mut values[at]))
    };
    Backbone::from_values(architecture.clone(), nothing.tensors().map(of).collect())
}
