//! Where an adapted model looked, as a map over an image's patches.

use tributary_shared::architecture::{Architecture, Pool};
use tributary_shared::contract::AdapterContract;
use tributary_shared::manifest::{RunManifest, Task};

use super::loss::probabilities;
use super::session::TrainError;
use crate::model::{AdaptedVit, Backbone, BlockAttention, Compute, Looked, Values};

/// How attention of all blocks becomes one map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Explanation {
    /// Products of the blocks' attention, each half mixed with the skip connection (Abnar and
    /// Zuidema 2020, arXiv:2005.00928): where the output's information came from, whatever it says.
    Rollout,
    /// Attention times its own derivative, positive parts alone, summed over blocks (Chefer et al.
    /// 2021, arXiv:2103.15679): what speaks for the class that was asked about.
    Gradient,
}

/// One image explained.
#[derive(Clone, Debug)]
pub struct Explained {
    /// What is predicted, see [`super::prediction_columns`].
    pub prediction: Vec<f32>,
    /// The class that was asked about; `None` where the output is no class's.
    pub class: Option<usize>,
    /// Relevance of each patch, `[side, side]`, for [`Explanation::Rollout`]; sums to 1.
    pub rollout: Vec<f32>,
    /// As above for [`Explanation::Gradient`]; zero everywhere if nothing speaks for the class.
    pub gradient: Vec<f32>,
}

/// A run that no map explains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotExplained {
    /// Its output is a map.
    #[error(
        "a segmentation's output is itself a map of the image: `evaluate` measures it, and `export --as timm` gives the model that draws it"
    )]
    Segmentation,
    /// Its output is no judgement.
    #[error(
        "a self-supervised run judges nothing: merge its adapter with `export --as backbone` and train a task on that"
    )]
    SelfSupervised,
    /// No model.
    #[error("a rehearsal trains no model")]
    Rehearsal,
}

/// A trained adapter that is asked where it looks.
#[derive(Debug)]
pub struct Explainer<'a> {
    model: AdaptedVit,
    manifest: &'a RunManifest,
    values: &'a [Vec<f32>],
}

impl NotExplained {
    /// Refuses a run that no map explains; what is explained has this contract.
    pub fn check(manifest: &RunManifest) -> Result<AdapterContract, Self> {
        match manifest.task {
            Task::Segmentation { .. } => return Err(Self::Segmentation),
            Task::SelfSupervised { .. } => return Err(Self::SelfSupervised),
            Task::Binary { .. }
            | Task::MultiClass { .. }
            | Task::MultiLabel { .. }
            | Task::Ordinal { .. }
            | Task::Survival {}
            | Task::Rehearsal { .. } => {}
        }
        let contract = manifest.contract().filter(|contract| contract.adaptation.is_some());
        contract.ok_or(Self::Rehearsal)
    }
}

impl<'a> Explainer<'a> {
    /// Puts the run's model on the device.
    pub fn new(
        backbone: &Backbone,
        manifest: &'a RunManifest,
        values: &'a Values,
        compute: &Compute,
    ) -> Result<Self, NotExplained> {
        let contract = NotExplained::check(manifest)?;
        Ok(Self { model: AdaptedVit::new(backbone, &contract, compute), manifest, values })
    }

    /// Explains one image `[channels, size, size]` as the model sees it: the class `class`, or the
    /// most likely one. With bags an image counts as a bag of its own.
    pub fn explain(&self, image: &[f32], class: Option<usize>) -> Result<Explained, TrainError> {
        let Architecture { channels, image_size, .. } = *self.model.architecture();
        let (expected, found) = (channels * image_size * image_size, image.len());
        if expected != found {
            return Err(TrainError::Input { expected, found });
        }
        let mut rows = Vec::new();
        self.model.patchify(image, &mut rows);
        let task = &self.manifest.task;
        let mut asked = class;
        let looked = self.model.look(self.values, &rows, |logits| {
            let (class, weights) = question(task, logits, class);
            asked = class;
            weights
        });
        let map = |how| heat(self.model.architecture(), &looked, how);
        Ok(Explained {
            prediction: probabilities(task, &looked.logits),
            class: asked,
            rollout: map(Explanation::Rollout),
            gradient: map(Explanation::Gradient),
        })
    }
}

/// The class that is asked about, and how much of each logit speaks for it: a binary run's one
/// logit for or against, a class's own; every threshold of grades; the hazard.
fn question(task: &Task, logits: &[f32], class: Option<usize>) -> (Option<usize>, Vec<f32>) {
    let likely = |numbers: &[f32]| {
        let of = numbers.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
        of.map_or(0, |(class, _)| class)
    };
    match task {
        Task::Binary { .. } => {
            let class = class.unwrap_or(usize::from(logits[0] > 0.0));
            (Some(class), vec![if class == 1 { 1.0 } else { -1.0 }])
        }
        Task::MultiClass { .. } | Task::MultiLabel { .. } => {
            let class = class.unwrap_or_else(|| likely(logits));
            (Some(class), (0..logits.len()).map(|c| f32::from(u8::from(c == class))).collect())
        }
        Task::Ordinal { .. }
        | Task::Survival {}
        | Task::Segmentation { .. }
        | Task::SelfSupervised { .. }
        | Task::Rehearsal { .. } => (None, vec![1.0; logits.len()]),
    }
}

/// What the pooled tokens owe to each patch.
fn heat(shape: &Architecture, looked: &Looked, how: Explanation) -> Vec<f32> {
    let (own, patches) = (shape.tokens(), shape.patches());
    // Row after row: what each token owes to each of the tokens that entered the first block.
    let mut owes: Vec<Vec<f64>> = (0..own).map(|row| unit(own, row)).collect();
    for block in &looked.blocks {
        owes.truncate(block.keys - block.fresh);
        // Prompts owe nothing to the image when they enter.
        owes.resize(block.keys, vec![0.0; own]);
        let step = step(block, how);
        owes = step.chunks(block.keys).map(|row| combined(row, &owes)).collect();
    }
    let first = own - patches;
    // Each row that is pooled, and how much it counts.
    let mean = || (first..own).map(|row| (row, 1.0));
    let pooled: Vec<(usize, f64)> = match (&looked.shares, shape.pool) {
        (Some(shares), _) => (first..own).zip(shares.iter().map(|s| f64::from(*s))).collect(),
        (None, Pool::Mean) => mean().collect(),
        (None, Pool::ClassToken) => vec![(0, 1.0)],
        // The class token counts as much as all patches together.
        (None, Pool::ClassTokenAndMean) => mean().chain([(0, patches as f64)]).collect(),
    };
    let mut heat = vec![0.0; patches];
    for (row, share) in pooled {
        let own_row = &owes[row][first..];
        // A token owes itself to itself: the gradient's maps leave that out.
        heat.iter_mut().zip(own_row).for_each(|(heat, owed)| *heat += share * owed);
        if how == Explanation::Gradient && row >= first {
            heat[row - first] -= share;
        }
    }
    let sum: f64 = heat.iter().sum();
    heat.iter().map(|h| if sum > 0.0 { (h / sum) as f32 } else { 0.0 }).collect()
}

/// A map of patches on a square grid of `side` pixels: bilinear between the patches' middles.
pub fn stretched(heat: &[f32], side: usize) -> Vec<f32> {
    let patches = heat.len().isqrt();
    let place = |i: usize| {
        let at = (i as f32 + 0.5) * patches as f32 / side as f32 - 0.5;
        let at = at.clamp(0.0, (patches - 1) as f32);
        let low = at as usize;
        (low, (low + 1).min(patches - 1), at - low as f32)
    };
    let places: Vec<_> = (0..side).map(place).collect();
    let mut stretched = Vec::with_capacity(side * side);
    for (top, bottom, v) in &places {
        for (left, right, h) in &places {
            let row = |row: usize| {
                heat[row * patches + left] * (1.0 - h) + heat[row * patches + right] * h
            };
            stretched.push(row(*top) * (1.0 - v) + row(*bottom) * v);
        }
    }
    stretched
}

fn unit(length: usize, at: usize) -> Vec<f64> {
    (0..length).map(|i| f64::from(u8::from(i == at))).collect()
}

/// The sum of `rows`, each times its share.
fn combined(shares: &[f64], rows: &[Vec<f64>]) -> Vec<f64> {
    let mut sum = vec![0.0; rows.first().map_or(0, Vec::len)];
    for (share, row) in shares.iter().zip(rows) {
        sum.iter_mut().zip(row).for_each(|(sum, v)| *sum += share * v);
    }
    sum
}

/// How a block mixes its tokens, `[queries, keys]`: the mean over heads with the skip connection.
fn step(block: &BlockAttention, how: Explanation) -> Vec<f64> {
    let size = block.queries * block.keys;
    let heads = block.probabilities.len() / size;
    let mut mean = vec![0.0; size];
    let of_heads = block.probabilities.chunks(size).zip(block.gradient.chunks(size));
    for (probabilities, gradient) in of_heads {
        for ((mean, p), g) in mean.iter_mut().zip(probabilities).zip(gradient) {
            let (p, g) = (f64::from(*p), f64::from(*g));
            *mean += match how {
                Explanation::Rollout => p,
                Explanation::Gradient => (p * g).max(0.0),
            } / heads as f64;
        }
    }
    for (query, row) in mean.chunks_mut(block.keys).enumerate() {
        row[query] += 1.0;
        if how == Explanation::Rollout {
            // Half attention, half skip; the rows of attention sum to one.
            row.iter_mut().for_each(|share| *share /= 2.0);
        }
    }
    mean
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use safetensors::SafeTensors;
    use tributary_shared::adaptation::Adaptation;
    use tributary_shared::contract::AdapterContract;
    use tributary_shared::head::Head;

    use super::*;

    /// Maps of tests/python/adaptation_fixtures.py, whose attention timm computed.
    #[test]
    fn heat_is_what_pytorch_computes() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/adaptations");
        let paths = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
        let mut compared = 0;
        for path in paths.filter(|path| !path.to_string_lossy().contains(".backbone.")) {
            compared += usize::from(compare(&folder, &path));
        }
        assert_eq!(compared, 12);
    }

    fn compare(folder: &Path, path: &PathBuf) -> bool {
        let bytes = std::fs::read(path).unwrap();
        let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        let metadata = metadata.metadata().clone().unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let floats = |name: &str| -> Vec<f32> {
            let view = tensors.tensor(name).unwrap();
            view.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
        };
        if tensors.tensor("rollout").is_err() {
            return false;
        }
        let file = format!("{}.backbone.safetensors", metadata["backbone"]);
        let backbone = Backbone::open_described(&folder.join(file)).unwrap();
        let adaptation: Adaptation = serde_json::from_str(&metadata["adapter"]).unwrap();
        let head: Head = serde_json::from_str(&metadata["head"]).unwrap();
        let shape = backbone.architecture();
        let contract = AdapterContract::new(backbone.digest(), shape, adaptation, Some(head), 3);
        let specs = contract.layout.tensors();
        let values: Values =
            specs.iter().map(|spec| floats(&format!("trained.{}", spec.name))).collect();
        let model = AdaptedVit::new(&backbone, &contract, &Compute::cpu());
        let numbers = shape.channels * shape.image_size.pow(2);
        let image: Vec<f32> =
            (0..numbers).map(|i| ((i * 7919) % 1_000) as f32 / 500.0 - 1.0).collect();
        let mut rows = Vec::new();
        model.patchify(&image, &mut rows);
        let looked = model.look(&values, &rows, |_| vec![0.0, 1.0, 0.0]);
        for (how, name) in [(Explanation::Rollout, "rollout"), (Explanation::Gradient, "relevance")]
        {
            let found = heat(shape, &looked, how);
            let expected = floats(name);
            let far = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(far < 1e-5, "{}: {name}: {far}", path.display());
            assert!((found.iter().sum::<f32>() - 1.0).abs() < 1e-5);
        }
        true
    }

    #[test]
    fn the_question_is_of_the_class_asked_for() {
        let classes = vec!["a".to_owned(), "b".to_owned(), "c".to_owned()];
        let many = Task::MultiClass { classes: classes.clone() };
        assert_eq!(question(&many, &[0.1, 3.0, -1.0], None), (Some(1), vec![0.0, 1.0, 0.0]));
        assert_eq!(question(&many, &[0.1, 3.0, -1.0], Some(2)), (Some(2), vec![0.0, 0.0, 1.0]));
        let two = Task::Binary { classes: classes[..2].to_vec() };
        assert_eq!(question(&two, &[-0.5], None), (Some(0), vec![-1.0]));
        assert_eq!(question(&two, &[-0.5], Some(1)), (Some(1), vec![1.0]));
        let grades = Task::Ordinal { classes };
        assert_eq!(question(&grades, &[1.0, -1.0], None), (None, vec![1.0, 1.0]));
    }
}
