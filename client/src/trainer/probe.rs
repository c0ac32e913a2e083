//! A linear probe: how much of the labels a linear map sees in frozen features.

use tributary_shared::adaptation::Adaptation;
use tributary_shared::contract::AdapterContract;
use tributary_shared::head::Head;
use tributary_shared::manifest::Task;

use super::batch::image_rows;
use super::loss::{case_loss, probabilities};
use super::optimizer::AdamW;
use super::session::TrainError;
use super::{Control, Phase, Progress, shards};
use crate::data::{Dataset, Label, Split};
use crate::metrics::macro_auroc;
use crate::model::{AdaptedVit, Backbone, Compute};

/// Full-batch steps of the probe; its loss is convex and flat long before.
const STEPS: usize = 400;

/// Whose features are looked at.
#[derive(Clone, Copy)]
pub struct Probed<'a> {
    /// The frozen weights.
    pub backbone: &'a Backbone,
    /// An adapter on them, in the order of its contract's layout.
    pub adapter: Option<(&'a AdapterContract, &'a [Vec<f32>])>,
}

/// The held-out AUROC (macro over classes) of a logistic regression on standardised features,
/// trained on `split.train`. `None` when the held-out labels have no curve.
pub fn linear_probe(
    of: Probed<'_>,
    task: &Task,
    dataset: &Dataset,
    split: &Split,
    compute: &Compute,
    (control, progress): (&Control, &mut dyn FnMut(Progress)),
) -> Result<Option<f64>, TrainError> {
    let outputs = task.head_outputs();
    let (backbone, head) = (of.backbone, Some(Head::default()));
    let (digest, shape) = (backbone.digest(), backbone.architecture());
    let plain = AdapterContract::new(digest, shape, Adaptation::HeadOnly, head, outputs);
    let contract = of.adapter.map_or(&plain, |(contract, _)| contract);
    let model = AdaptedVit::new(backbone, contract, compute);
    let adapted = of.adapter.map(|(_, values)| model.place(values));
    let images = shards::shard_images(backbone, compute);
    let mut features = |indices: &[usize]| {
        let of_shard = |shard: &[usize]| {
            let rows = image_rows(&model, dataset, shard)?;
            let features = match &adapted {
                Some(values) => model.adapted_features(values, &rows, shard.len()),
                None => model.features(&rows, shard.len()),
            };
            Ok(shards::cut(&features, shard.len()))
        };
        let mut tell = |done| progress(done);
        let watch: (&Control, &mut dyn FnMut(Progress)) = (control, &mut tell);
        shards::map_shards(indices, images, Phase::Features, watch, &of_shard)
    };
    let (mut train, mut held) = (features(&split.train)?, features(&split.holdout)?);
    standardise(&mut train, &mut held);
    let labels = |indices: &[usize]| -> Vec<Label> {
        indices.iter().map(|i| dataset.cases()[*i].label.clone()).collect()
    };
    let values = fit(task, &train, &labels(&split.train), outputs);
    let said: Vec<Vec<f32>> =
        held.iter().map(|row| probabilities(task, &logits(&values, row))).collect();
    Ok(macro_auroc(&said, &labels(&split.holdout)))
}

/// Weights `[outputs, width]` and bias `[outputs]`.
fn fit(task: &Task, rows: &[Vec<f32>], labels: &[Label], outputs: usize) -> Vec<Vec<f32>> {
    let width = rows.first().map_or(0, Vec::len);
    let mut values = vec![vec![0.0; outputs * width], vec![0.0; outputs]];
    let mut optimizer = AdamW::new(&values, vec![true, false], 0.1);
    for _ in 0..STEPS {
        let mut gradient = vec![vec![0.0f32; outputs * width], vec![0.0f32; outputs]];
        for (row, label) in rows.iter().zip(labels) {
            let Some(loss) = case_loss(task, &logits(&values, row), label) else { continue };
            for (k, by_logit) in loss.by_logit.iter().enumerate() {
                let d = (by_logit / rows.len() as f64) as f32;
                let weights = &mut gradient[0][k * width..(k + 1) * width];
                weights.iter_mut().zip(row).for_each(|(g, x)| *g += d * x);
                gradient[1][k] += d;
            }
        }
        optimizer.step(&mut values, &gradient, 0.02);
    }
    values
}

fn logits(values: &[Vec<f32>], row: &[f32]) -> Vec<f32> {
    let product = |weights: &[f32]| weights.iter().zip(row).map(|(w, x)| w * x).sum::<f32>();
    values[0].chunks(row.len()).zip(&values[1]).map(|(w, b)| product(w) + b).collect()
}

/// Every feature at mean 0 and variance 1 over `train`.
fn standardise(train: &mut [Vec<f32>], held: &mut [Vec<f32>]) {
    let width = train.first().map_or(0, Vec::len);
    let count = train.len() as f64;
    for i in 0..width {
        let mean = train.iter().map(|row| f64::from(row[i])).sum::<f64>() / count;
        let squares = train.iter().map(|row| (f64::from(row[i]) - mean).powi(2)).sum::<f64>();
        let deviation = (squares / count).sqrt().max(1e-6);
        for row in train.iter_mut().chain(held.iter_mut()) {
            row[i] = ((f64::from(row[i]) - mean) / deviation) as f32;
        }
    }
}
