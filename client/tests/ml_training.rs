//! What training must be, whatever it learns: exact, contained, repeatable, stoppable.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its set-up too")]

mod ml_support;

use std::cell::Cell;

use ml_support::{architecture, backbone, dataset, initial, manifest, moved};
use tributary_client::data::{HoldoutSalt, Split};
use tributary_client::model::{AdaptedVit, Backbone, Compute, Values};
use tributary_client::trainer::{
    Control, Inference, LocalTraining, LocalUpdate, Phase, Pretraining, TrainError, pretrain, train,
};
use tributary_shared::adaptation::Adaptation;
use tributary_shared::architecture::{Architecture, FinalNorm, Gelu, Mlp, Pool};
use tributary_shared::manifest::{RunManifest, Task};
use tributary_shared::objective::{Mae, Objective};
use tributary_shared::training::Precision;

/// Patches of a few images that nobody drew.
fn rows(backbone: &Backbone, images: usize) -> Vec<f32> {
    let a = backbone.architecture();
    let numbers = images * a.channels * a.image_size * a.image_size;
    (0..numbers).map(|i| ((i * 7919) % 1_000) as f32 / 500.0 - 1.0).collect()
}

fn model(backbone: &Backbone, manifest: &RunManifest) -> AdaptedVit {
    AdaptedVit::new(backbone, &manifest.contract().unwrap(), &Compute::cpu())
}

#[test]
fn an_adapter_with_b_zero_changes_nothing() {
    let backbone = backbone(&architecture());
    let rows = rows(&backbone, 3);
    let (adapted, plain) = (manifest(&backbone, 4), manifest(&backbone, 0));
    let with = model(&backbone, &adapted).logits(&initial(&adapted), &rows, 3);
    let without = model(&backbone, &plain).logits(&initial(&plain), &rows, 3);
    assert_eq!(with, without);
    let moved = model(&backbone, &adapted).logits(&moved(&adapted, 1), &rows, 3);
    assert!(moved.iter().zip(&with).all(|(a, b)| (a - b).abs() > 1e-3), "{moved:?} {with:?}");
}

#[test]
fn merged_weights_equal_backbone_and_adapter() {
    let plain = architecture();
    let retfound =
        Architecture { pool: Pool::Mean, final_norm: FinalNorm::Pooled, ..plain.clone() };
    let giant = Architecture {
        mlp: Mlp::Swiglu,
        register_tokens: 3,
        layer_scale: true,
        pool: Pool::ClassTokenAndMean,
        ..plain.clone()
    };
    let clip = Architecture { embedding_norm: true, gelu: Gelu::Quick, ..plain.clone() };
    for architecture in [plain, retfound, giant, clip] {
        let backbone = backbone(&architecture);
        let adapted = manifest(&backbone, 3);
        let values = moved(&adapted, 2);
        let merged = merge(&backbone, &adapted, &values);
        let plain = manifest(&merged, 0);
        let layout = adapted.contract().unwrap().layout;
        let head: Values = layout
            .tensors()
            .iter()
            .zip(&values)
            .filter(|(spec, _)| spec.name.starts_with("head."))
            .map(|(_, values)| values.clone())
            .collect();
        let rows = rows(&backbone, 3);
        let found = model(&merged, &plain).logits(&head, &rows, 3);
        let expected = model(&backbone, &adapted).logits(&values, &rows, 3);
        for (found, expected) in found.iter().zip(&expected) {
            assert!((found - expected).abs() < 1e-5, "{found} {expected}");
        }
    }
}

/// W + alpha/rank * B A, in f64, for every adapted map.
fn merge(backbone: &Backbone, manifest: &RunManifest, values: &[Vec<f32>]) -> Backbone {
    let layout = manifest.contract().unwrap().layout;
    let Some(Adaptation::Lora(lora)) = &manifest.adapter else { panic!("a run of LoRA") };
    let factor = |name: &str| {
        let at = layout.tensors().iter().position(|spec| spec.name == name)?;
        Some(&values[at])
    };
    let merged = backbone.tensors().map(|(spec, weight)| {
        let Some(module) = spec.name.strip_suffix(".weight") else { return weight.to_vec() };
        let (Some(a), Some(b)) =
            (factor(&format!("{module}.lora_A")), factor(&format!("{module}.lora_B")))
        else {
            return weight.to_vec();
        };
        let input = spec.shape[1];
        let dense = |at: usize| -> f64 {
            let (row, column) = (at / input, at % input);
            let product =
                |k: usize| f64::from(b[row * lora.rank + k]) * f64::from(a[k * input + column]);
            lora.scale() * (0..lora.rank).map(product).sum::<f64>()
        };
        weight.iter().enumerate().map(|(at, w)| (f64::from(*w) + dense(at)) as f32).collect()
    });
    Backbone::from_values(backbone.architecture().clone(), merged.collect())
}

#[test]
fn gradients_are_the_slopes_of_the_loss() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path(), 12, 1);
    let backbone = backbone(&architecture());
    let run = manifest(&backbone, 2);
    let values = moved(&run, 3);
    let all: Vec<usize> = (0..data.len()).collect();
    let compute = Compute::cpu();
    let at = |values: &[Vec<f32>]| {
        let inference = Inference {
            backbone: &backbone,
            manifest: &run,
            values,
            dataset: &data,
            compute: &compute,
        };
        inference.gradient(&all).unwrap()
    };
    let gradient = at(&values).values;
    let layout = run.contract().unwrap().layout;
    assert_eq!(layout.tensors().len(), 2 * 6 * 2 + 2);
    for (tensor, spec) in layout.tensors().iter().enumerate() {
        // Along its own gradient the loss rises by the gradient's norm.
        let norm = gradient[tensor].iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
        assert!(norm > 1e-5, "{spec}: no gradient arrives");
        let step = 0.02;
        let moved = |sign: f64| {
            let mut moved = values.clone();
            for (value, g) in moved[tensor].iter_mut().zip(&gradient[tensor]) {
                *value += (sign * step * f64::from(*g) / norm) as f32;
            }
            at(&moved).loss
        };
        let slope = (moved(1.0) - moved(-1.0)) / (2.0 * step);
        assert!((slope - norm).abs() < 1e-5 + 0.01 * norm, "{spec}: slope {slope}, norm {norm}");
    }
}

#[test]
fn one_full_batch_step_over_sites_equals_the_pooled_step() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path(), 60, 2);
    let backbone = backbone(&architecture());
    let run = manifest(&backbone, 2);
    let values = moved(&run, 4);
    let compute = Compute::cpu();
    let inference = Inference {
        backbone: &backbone,
        manifest: &run,
        values: &values,
        dataset: &data,
        compute: &compute,
    };
    let all: Vec<usize> = (0..data.len()).collect();
    let pooled = inference.gradient(&all).unwrap();
    let sites = [&all[..7], &all[7..30], &all[30..]];
    let mut mean: Vec<Vec<f64>> = pooled.values.iter().map(|t| vec![0.0; t.len()]).collect();
    let mut loss = 0.0;
    for site in sites {
        let own = inference.gradient(site).unwrap();
        let weight = site.len() as f64 / all.len() as f64;
        loss += weight * own.loss;
        for (mean, own) in mean.iter_mut().flatten().zip(own.values.iter().flatten()) {
            *mean += weight * f64::from(*own);
        }
    }
    assert!((loss - pooled.loss).abs() < 1e-6);
    for (mean, pooled) in mean.iter().flatten().zip(pooled.values.iter().flatten()) {
        assert!((mean - f64::from(*pooled)).abs() < 1e-6, "{mean} {pooled}");
    }
}

#[test]
fn cases_own_gradients_add_up_to_the_batchs() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path(), 12, 1);
    let backbone = backbone(&architecture());
    let run = manifest(&backbone, 2);
    let values = moved(&run, 3);
    let (all, compute): (Vec<usize>, _) = ((0..data.len()).collect(), Compute::cpu());
    let inference = Inference {
        backbone: &backbone,
        manifest: &run,
        values: &values,
        dataset: &data,
        compute: &compute,
    };
    let whole = inference.gradient(&all).unwrap().values.concat();
    let parts = inference.sample_gradients(&all).unwrap();
    let mut mean = vec![0.0f64; whole.len()];
    let mut cases = 0;
    for part in &parts {
        for case in 0..part.images() {
            cases += 1;
            for (mean, own) in mean.iter_mut().zip(part.of(case).concat()) {
                *mean += f64::from(own) / all.len() as f64;
            }
        }
    }
    assert_eq!(cases, all.len());
    for (mean, whole) in mean.iter().zip(&whole) {
        assert!((mean - f64::from(*whole)).abs() < 1e-6, "{mean} {whole}");
    }
    let survival = RunManifest { task: Task::Survival {}, ..run.clone() };
    let refused = Inference { manifest: &survival, ..inference }.sample_gradients(&[]);
    assert!(refused.unwrap_err().to_string().contains("no gradient of one image"));
}

/// A site with its data, ready to train.
struct Site {
    _folder: tempfile::TempDir,
    data: tributary_client::data::Dataset,
    backbone: Backbone,
    run: RunManifest,
    base: Values,
    split: Split,
}

impl Site {
    fn new(rank: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let data = dataset(folder.path(), 80, 3);
        let backbone = backbone(&architecture());
        let run = manifest(&backbone, rank);
        let (base, split) = (initial(&run), data.split(&HoldoutSalt::public(), 0.25));
        Self { _folder: folder, data, backbone, run, base, split }
    }

    fn train(&self, round: u32, site: &str, control: &Control) -> Result<LocalUpdate, TrainError> {
        self.train_from(&self.base, round, site, control, &mut |_| {})
    }

    fn train_from(
        &self,
        base: &[Vec<f32>],
        round: u32,
        site: &str,
        control: &Control,
        progress: &mut dyn FnMut(tributary_client::trainer::Progress),
    ) -> Result<LocalUpdate, TrainError> {
        let work = LocalTraining {
            backbone: &self.backbone,
            manifest: &self.run,
            base,
            dataset: &self.data,
            split: &self.split,
            round,
            site,
            compute: &Compute::cpu(),
            cache: None,
        };
        train(&work, control, progress)
    }
}

#[test]
fn a_repeated_round_gives_the_same_bits_on_any_number_of_threads() {
    let site = Site::new(2);
    let on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| site.train(1, "a", &Control::default()).unwrap())
    };
    let one = on(1);
    for threads in [1, 3] {
        let again = on(threads);
        assert_eq!(again.values, one.values, "{threads} threads");
        assert_eq!(again.metrics.train_loss, one.metrics.train_loss);
    }
    for (round, name) in [(2, "a"), (1, "b")] {
        let other = site.train(round, name, &Control::default()).unwrap();
        assert_ne!(other.values, one.values, "round {round} at {name} draws its own masks");
    }
}

#[test]
fn training_leaves_the_backbone_as_it_was_and_learns() {
    for rank in [0, 2] {
        let site = Site::new(rank);
        let before = site.backbone.to_bytes();
        let first = site.train(1, "a", &Control::default()).unwrap();
        let second =
            site.train_from(&first.values, 2, "a", &Control::default(), &mut |_| {}).unwrap();
        assert_eq!(site.backbone.to_bytes(), before);
        assert_eq!(first.cases, site.split.train.len() as u64);
        assert_eq!(first.metrics.steps, 2 * first.cases.div_ceil(10));
        assert_eq!(first.metrics.holdout_cases, site.split.holdout.len() as u64);
        // Each round measures its base: the second one's is what the first one trained.
        let (before, after) = (&first.metrics, &second.metrics);
        assert!(after.holdout_loss < before.holdout_loss, "rank {rank}: {before:?} {after:?}");
        assert!(after.holdout_auroc > Some(0.75), "rank {rank}: {after:?}");
        let moved = |values: &Values| {
            values.iter().zip(&site.base).filter(|(a, b)| a != b).count() == site.base.len()
        };
        assert!(moved(&first.values), "every tensor of the adapter is trained");
    }
}

#[test]
fn bfloat16_learns_as_f32_does_and_sends_f32() {
    let mut site = Site::new(2);
    let held = |site: &Site| {
        let first = site.train(1, "a", &Control::default()).unwrap();
        let second = site.train_from(&first.values, 2, "a", &Control::default(), &mut |_| {});
        (second.unwrap().metrics, first)
    };
    let (exact, first) = held(&site);
    site.run.training.as_mut().unwrap().precision = Precision::Bf16;
    let (rough, rough_first) = held(&site);
    let (exact_loss, rough_loss) = (exact.holdout_loss.unwrap(), rough.holdout_loss.unwrap());
    assert!((exact_loss - rough_loss).abs() < 0.02, "{exact_loss} {rough_loss}");
    let before = rough_first.metrics.holdout_loss.unwrap();
    assert!(rough_loss < before, "{before} {rough_loss}");
    assert!(rough.holdout_auroc > Some(0.75), "{rough:?}");
    assert_ne!(first.values, rough_first.values);
    // What is trained is not itself rounded to 8 bits.
    let rounded = |v: &f32| v.to_bits() & 0xffff == 0;
    let values: Vec<f32> = rough_first.values.concat();
    assert!(values.iter().filter(|v| !rounded(v)).count() > values.len() / 2);
}

#[test]
fn a_stop_is_heard_at_the_next_step() {
    let site = Site::new(2);
    let (control, steps) = (Control::default(), Cell::new(0));
    let ended = site.train_from(&site.base, 1, "a", &control, &mut |progress| {
        if progress.phase == Phase::Training {
            steps.set(steps.get() + 1);
            control.stop();
        }
    });
    assert!(matches!(ended, Err(TrainError::Stopped)), "{ended:?}");
    assert_eq!(steps.get(), 1);
    assert!(matches!(site.train(1, "a", &control), Err(TrainError::Stopped)));
}

#[test]
fn what_does_not_fit_is_refused_before_training() {
    let mut site = Site::new(2);
    let control = Control::default();
    let short = site.base[1..].to_vec();
    let refused = site.train_from(&short, 1, "a", &control, &mut |_| {});
    assert!(matches!(refused, Err(TrainError::Adapter(_))), "{refused:?}");
    site.split.train.clear();
    assert!(matches!(site.train(1, "a", &control), Err(TrainError::NoCases)));
    let mut another = architecture();
    another.width = 20;
    site.backbone = backbone(&another);
    assert!(matches!(site.train(1, "a", &control), Err(TrainError::Backbone { .. })));
}

#[test]
fn a_masked_autoencoder_learns_and_is_repeatable() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset(folder.path(), 64, 5);
    let plan = Pretraining {
        architecture: architecture(),
        epochs: 12,
        batch_size: 16,
        learning_rate: 5e-3,
        weight_decay: 0.05,
        objective: Objective::Mae(Mae { decoder_width: 32, ..Mae::default() }),
        augment: None,
        seed: 1,
    };
    let run = || pretrain(&plan, &data, &Compute::cpu(), &Control::default(), &mut |_| {}).unwrap();
    let made = run();
    assert_eq!(made.losses.len(), 12);
    // Standardised noise cannot be guessed: the error of guessing nothing is its variance, 15/16.
    assert!(made.losses[0] > 0.94, "{:?}", made.losses);
    assert!(made.losses[11] < 0.96 && made.losses[11] < made.losses[0] - 0.05);
    assert_eq!(run().backbone.digest(), made.backbone.digest());
    let control = Control::default();
    control.stop();
    let stopped = pretrain(&plan, &data, &Compute::cpu(), &control, &mut |_| {});
    assert!(matches!(stopped, Err(TrainError::Stopped)));
}
